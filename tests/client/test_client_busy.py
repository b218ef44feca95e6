"""What a client does when nodes say that they have too much to do."""

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx2
import pytest

from client.chain import ChainClient
from client.web import Busy, checked
from crypto.codec import encode
from crypto.errors import Unavailable
from crypto.sign import SigningKey
from protocol.contract import Receipt
from protocol.genesis import Genesis, Member
from protocol.network import ChainAddresses, NodeAddress
from protocol.tx import Request, decode_tx
from tests.dealer import share_point

KEY = SigningKey(b"k" * 32)


class Server:
    """One node's HTTP side, answering from a list of statuses; the time of each request is kept."""

    def __init__(self, *statuses: int, retry_after: str = "1") -> None:
        self.asked: list[float] = []
        left = list(statuses)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                server.asked.append(time.monotonic())
                status = left.pop(0) if len(left) > 1 else left[0]
                tx = decode_tx(raw)
                receipt = Receipt(tx.id, 1, 0, 0, "x", tx.body.sender, None, None, None, True, "ok", "")
                body = f'{{"encoded": "{encode(receipt).hex()}", "detail": "full"}}'.encode()
                self.send_response(status)
                if status == 503 and retry_after:
                    self.send_header("Retry-After", retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def connect() -> Iterator[Callable[..., ChainClient]]:
    made: list[ChainClient | Server] = []

    def make(*servers: Server) -> ChainClient:
        names = [f"n{i}" for i in range(len(servers))]
        members = tuple(
            Member(n, SigningKey(bytes([i + 1]) * 32).public, f"p{i}", share_point(i))
            for i, n in enumerate(names)
        )
        genesis = Genesis("diptych/1/storage/x", "storage", "bft", members, bytes(32), 0)
        nodes = {n: NodeAddress("127.0.0.1:1", s.url) for n, s in zip(names, servers, strict=True)}
        made.extend([*servers, ChainClient(genesis, ChainAddresses("g", "0" * 64, nodes))])
        client = made[-1]
        assert isinstance(client, ChainClient)
        return client

    yield make
    for each in reversed(made):
        each.close() if isinstance(each, ChainClient) else each.stop()


ACTION = Request(bytes(16), "research")


def test_a_busy_node_is_left_alone_for_as_long_as_it_asks_and_then_asked_again(connect):
    server = Server(503, 200)
    assert connect(server).send(KEY, ACTION, 20).ok
    first, second = server.asked
    assert second - first >= 1


def test_another_node_is_asked_at_once_and_the_busy_one_not_meanwhile(connect):
    busy, slow = Server(503, retry_after="30"), Server(202, 202, 202, 200)
    assert connect(busy, slow).send(KEY, ACTION, 20).ok
    assert len(slow.asked) == 4
    assert len(busy.asked) <= 1


def test_waiting_for_a_busy_node_ends_with_the_time_given(connect):
    server = Server(503, retry_after="30")
    with pytest.raises(Unavailable, match="full"):
        connect(server).send(KEY, ACTION, 0.3)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0", 0), ("999", 30), ("9" * 40, 1), ("", 1), ("-5", 1), ("soon", 1), ("1e9", 1), ("²", 1)],
)
def test_only_sensible_requests_to_wait_are_taken(text, seconds):
    headers = [(b"Retry-After", text.encode())]
    with pytest.raises(Busy) as caught:
        checked(httpx2.Response(503, headers=headers, json={"detail": "full"}))
    assert caught.value.seconds == seconds
