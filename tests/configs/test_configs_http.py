"""What a client takes from a server that lies: a whole answer of bounded size, or a refusal before memory is gone."""

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from configs import http
from configs.http import Client
from crypto.errors import Unavailable


class Liar(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        getattr(self, f"do_{self.path.strip('/')}")()

    def do_plain(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def do_error(self) -> None:
        self.send_error(404)

    def do_endless(self) -> None:
        self.send_response(503)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except ConnectionError:
            self.server.gave_up.set()

    def do_packed(self) -> None:
        body = gzip.compress(bytes(1 << 24))
        self.send_response(200)
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    made.gave_up = threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def ask(server) -> Iterator[Callable[[str], httpx2.Response]]:
    with Client(10) as client:
        yield lambda path: client.get(f"http://127.0.0.1:{server.server_port}/{path}")


def test_a_true_answer_comes_whole_whatever_its_status(ask):
    assert (ask("plain").status_code, ask("plain").content) == (200, b"hello")
    assert ask("error").status_code == 404


def test_an_answer_without_end_is_given_up_and_the_connection_closed(ask, server, monkeypatch):
    monkeypatch.setattr(http, "MAX_ANSWER", 1 << 20)
    with pytest.raises(Unavailable, match="longer than 1048576 bytes"):
        ask("endless")
    assert server.gave_up.wait(10)


def test_an_answer_that_would_unpack_to_more_is_not_unpacked(ask):
    with pytest.raises(Unavailable, match="compressed"):
        ask("packed")


def test_a_streamed_answer_is_for_the_caller_to_bound(server):
    with Client(10) as client, client.stream("GET", f"http://127.0.0.1:{server.server_port}/plain") as answer:
        assert http.read(answer) == b"hello"
