"""What a client makes of nodes that lie to it in form rather than in content: it asks another, or says so, and never goes on for ever."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from client.chain import ChainClient
from crypto.codec import encode
from crypto.errors import Malformed, Unavailable
from crypto.sign import SigningKey
from protocol.contract import Receipt
from protocol.genesis import Genesis, Member
from protocol.network import ChainAddresses, NodeAddress
from protocol.tx import Request, decode_tx

KEY = SigningKey(b"k" * 32)
RECEIPT = Receipt(bytes(32), 1, 0, 0, "x", KEY.public, None, None, True, "ok", "")
DEEP = b"[" * 100_000
Answer = Callable[[str, bytes], bytes]
"""From the path and the body of a request."""


@pytest.fixture
def connect() -> Iterator[Callable[..., ChainClient]]:
    """A client of nodes that answer like this."""
    servers: list[ThreadingHTTPServer] = []
    clients: list[ChainClient] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = answer(self.path, self.rfile.read(int(self.headers.get("content-length", 0))))
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    def make(*answers: Answer) -> ChainClient:
        members = tuple(Member(f"n{i}", bytes([i + 1]) * 32, f"p{i}") for i in range(len(answers)))
        nodes = {m.name: NodeAddress("127.0.0.1:1", start(a)) for m, a in zip(members, answers, strict=True)}
        genesis = Genesis("diptych/1/storage/x", "storage", "bft", members, bytes(32), bytes(32), 0)
        clients.append(ChainClient(genesis, ChainAddresses("g", "00" * 32, nodes)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def shown(receipt: Receipt) -> bytes:
    return json.dumps({"encoded": encode(receipt).hex()}).encode()


def honest(path: str, body: bytes) -> bytes:
    return shown(msgspec.structs.replace(RECEIPT, tx=decode_tx(body).id)) if body else b"{}"


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"no JSON",
        DEEP,
        b"[]",
        b'{"encoded": 7}',
        b'{"encoded": "zz"}',
        b'{"encoded": "00"}',
        shown(RECEIPT),
    ],
    ids=["nothing", "no JSON", "deep", "a list", "a number", "no hex", "no receipt", "another's receipt"],
)
def test_one_node_that_answers_nonsense_does_not_keep_a_transaction_from_its_receipt(connect, lie):
    client = connect(lambda path, body: lie, honest)
    for _ in range(4):  # whoever is asked first
        assert client.send(KEY, Request(bytes(16), "research"), seconds=10).ok
    with pytest.raises(Unavailable):
        connect(lambda path, body: lie).send(KEY, Request(bytes(16), "research"), seconds=0.3)


@pytest.mark.parametrize(
    "lie", [{"encoded": [encode(RECEIPT).hex()], "next": "1.0"}, {"encoded": [], "next": "9.9"}]
)
def test_an_access_log_that_does_not_end_is_refused(connect, lie):
    with pytest.raises(Malformed, match="does not come to an end"):
        connect(lambda path, body: json.dumps(lie).encode()).access_log(bytes(16))


@pytest.mark.parametrize("lie", [{}, {"encoded": "abc", "next": None}, {"encoded": [1]}, [], "x"])
def test_an_access_log_in_another_form_is_refused(connect, lie):
    with pytest.raises(Malformed, match="not in the agreed form"):
        connect(lambda path, body: json.dumps(lie).encode()).access_log(bytes(16))


@pytest.mark.parametrize("lie", [DEEP, b"[]", b'"up"', b"\xff"])
def test_a_status_that_is_none_counts_as_no_answer(connect, lie):
    assert [s["error"] for s in connect(lambda path, body: lie).status()] == ["does not answer"]
