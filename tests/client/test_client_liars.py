"""What a client bears from a server that lies to it: a node of a chain, the cloud."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Semaphore, Thread

import httpx2
import msgspec
import pytest

from client.chain import ChainClient
from client.chaos.history import History
from client.chaos.load import ChainLoad
from client.cloud import Blobs, CloudClient
from client.web import MAX_ANSWER, TooLarge, checked, http_client
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, Unavailable
from crypto.sign import SigningKey
from protocol.contract import Receipt
from protocol.genesis import Genesis, Member
from protocol.network import ChainAddresses, NodeAddress, Service
from protocol.record import BlobRef, DownloadHead, Envelope, Index, View, decode_envelope
from protocol.tx import Request
from tests.dealer import share_point

KEY = SigningKey(b"k" * 32)
RECORD = b"R" * 16
MEGABYTE = bytes(1 << 20)

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def chain(answer: Answer) -> Iterator[ChainClient]:
    members = (Member("n0", SigningKey(b"n" * 32).public, "p0", share_point(0)),)
    genesis = Genesis("diptych/1/sharing/x", "sharing", "bft", members, bytes(32), 0)
    with server(answer) as url:
        addresses = ChainAddresses("g", "0" * 64, {"n0": NodeAddress("127.0.0.1:1", url)})
        client = ChainClient(genesis, addresses)
        yield client
        client.close()


def endless(status: int = 200) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()
        while True:
            handler.wfile.write(MEGABYTE)

    return answer


def saying(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_an_answer_without_end_is_broken_off():
    with server(endless()) as url, http_client(20) as http, pytest.raises(TooLarge, match=str(MAX_ANSWER)):
        http.get(url)
    with chain(endless()) as client, pytest.raises(Unavailable):
        client.verified_state(RECORD, 0)


def test_an_answer_that_would_unpack_to_something_large_is_not_unpacked():
    bomb = saying(gzip.compress(bytes(100 << 20)), content_encoding="gzip")
    with server(bomb) as url, http_client(20) as http, pytest.raises(TooLarge, match="compressed"):
        http.get(url)


def test_an_answer_may_be_as_large_as_the_request_says_and_no_larger():
    with server(saying(MEGABYTE)) as url, http_client(20) as http:
        assert http.get(url, extensions={"max_answer": len(MEGABYTE)}).content == MEGABYTE
        with pytest.raises(TooLarge):
            http.get(url, extensions={"max_answer": len(MEGABYTE) - 1})


@pytest.mark.parametrize("status", [200, 403])
def test_a_cloud_that_never_ends_its_refusal_or_its_answer_is_given_up(status: int):
    with server(endless(status)) as url:
        cloud = CloudClient(Service(url, "00" * 32))
        with pytest.raises(DiptychError):
            cloud.fetch(Index.make(VIEW, KEY), None, KEY)
        cloud.close()


@pytest.mark.parametrize("status", [200, 400])
def test_nested_beyond_reason_an_answer_is_a_refusal_and_no_crash(status: int):
    with chain(saying(b"[" * 1_000_000, status)) as client, pytest.raises(DiptychError):
        client.verified_state(RECORD, 0)


def test_a_problem_of_an_unknown_shape_is_told_by_its_status():
    for body in (b"[]", b"{}", b"junk", b"[" * 100_000):
        with pytest.raises(Malformed, match="400"):
            checked(httpx2.Response(400, content=body))


def receipt(height: int, position: int = 0, record: bytes = RECORD) -> Receipt:
    tx = bytes([height % 256]) * 32
    return Receipt(
        tx, height, position, 0, "access.request", KEY.public, record, "research", None, True, "allowed", ""
    )


def shown(of: Receipt) -> bytes:
    return json.dumps({"encoded": encode(of).hex()}).encode()


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"no JSON",
        b"\x99",
        b"[" * 100_000,
        b"[]",
        b'{"encoded": "zz"}',
        b'{"encoded": "00"}',
        shown(receipt(1)),
    ],
    ids=["nothing", "no JSON", "no UTF-8", "deep", "a list", "no hex", "no receipt", "another's receipt"],
)
def test_a_node_that_answers_a_transaction_with_nonsense_counts_as_one_that_does_not_answer(lie: bytes):
    with chain(saying(lie)) as client, pytest.raises(Unavailable, match="made the transaction final"):
        client.send(KEY, Request(RECORD, "research"), seconds=0.1)


@pytest.mark.parametrize("lie", [b"[" * 100_000, b"[]", b'"up"', b"\x99"])
def test_a_status_that_is_none_counts_as_no_answer(lie: bytes):
    with chain(saying(lie)) as client:
        assert [s["error"] for s in client.status()] == ["does not answer"]


# --- the cloud ---------------------------------------------------------------------------------------------------------


PARTS = [b"ciphertext of one part", b"ciphertext of another"]
ENVELOPE = encode(Envelope(RECORD, 1, "shared", "role:doctor", b"header", (), b"extract"))
VIEW = View("diptych/1/sharing/x", RECORD, 1, KEY.public, bytes(32), (BlobRef.of(ENVELOPE),))
WANTED = [BlobRef.of(part) for part in PARTS]
HONEST = DownloadHead(VIEW, (ENVELOPE,), tuple(WANTED))


def download(head: DownloadHead | bytes, *parts: bytes) -> bytes:
    data = head if isinstance(head, bytes) else encode(head)
    return len(data).to_bytes(4, "big") + data + b"".join(parts)


def fetch(answer: bytes) -> Blobs:
    with server(saying(answer)) as url:
        cloud = CloudClient(Service(url, "00" * 32))
        try:
            return cloud.fetch(Index.make(VIEW, KEY), None, KEY, WANTED)[2]
        finally:
            cloud.close()


def test_what_an_honest_cloud_serves_is_taken():
    assert dict(fetch(download(HONEST, *PARTS))) == {
        ref.hash: part for ref, part in zip(WANTED, PARTS, strict=True)
    }


OLD = msgspec.structs.replace(VIEW, version=0)
OTHER_ENVELOPE = encode(msgspec.structs.replace(decode_envelope(ENVELOPE), policy="role:stranger"))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (download(msgspec.structs.replace(HONEST, view=OLD), *PARTS), "another view"),
        (
            download(msgspec.structs.replace(HONEST, envelopes=(OTHER_ENVELOPE,)), *PARTS),
            "changed an envelope",
        ),
        (download(msgspec.structs.replace(HONEST, envelopes=()), *PARTS), "changed an envelope"),
        (download(HONEST, PARTS[0], PARTS[1][::-1]), "changed a ciphertext"),
        (download(HONEST, PARTS[1], PARTS[0]), "changed a ciphertext"),
        (download(msgspec.structs.replace(HONEST, blobs=HONEST.blobs[:1]), PARTS[0]), "other parts"),
        (download(msgspec.structs.replace(HONEST, blobs=()), *PARTS), "other parts"),
        (
            download(msgspec.structs.replace(HONEST, blobs=(*WANTED, BlobRef.of(b"more"))), *PARTS, b"more"),
            "other parts",
        ),
        (download(HONEST, PARTS[0]), "ended too early"),
        (download(HONEST), "ended too early"),
        (download(encode(HONEST) + b"\x00", *PARTS), "does not decode"),
        ((1 << 31).to_bytes(4, "big"), "too large"),
        (b"\x00", "ended too early"),
    ],
)
def test_what_the_cloud_changes_swaps_holds_back_or_adds_is_refused(lie: bytes, words: str):
    with pytest.raises(DiptychError, match=words):
        fetch(lie)


@pytest.mark.parametrize("chain_id", ["mine", "another"])
def test_a_chaos_run_does_not_take_another_chain_at_a_nodes_address_for_that_node(chain_id):
    status = {"height": 7, "block": "b", "executed_height": 7, "receipts_root": "r", "evidence": 0}
    answer = saying(json.dumps(status | {"alarm": None, "halted": None, "chain_id": chain_id}).encode())
    requests = Semaphore(0)

    def counted(handler: BaseHTTPRequestHandler) -> None:
        answer(handler)
        requests.release()

    history, genesis = History(), Genesis("mine", "sharing", "bft", (), bytes(32), 0)
    with server(counted) as url:
        load = ChainLoad(genesis, {"n0": url}, history, lambda: 0.0)
        load.start(seed=1, pause_s=0)
        requests.acquire(timeout=10)
        load.stop()
        is_believed = chain_id == "mine"
        assert (bool(history.seen), bool(history.no_answer)) == (is_believed, not is_believed)
        assert load.read_finals() == {"n0": [] if is_believed else None}
