"""What the adversaries have in hand: a proxy that sees and changes what passes, keys of nodes, requests of their own making."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx2
import msgspec

from client.chain import now_ms
from client.doctor import Doctor
from client.fhir import load_profile
from client.patient import Patient
from client.session import Session
from configs.files import read_key
from crypto.codec import encode
from crypto.sign import SigningKey
from node.devnet import Supervisor
from protocol.identity import ChainKind, Purpose, SignedTicket, Ticket, TicketSignature
from protocol.record import CloudEntry, Download, DownloadBody, Index
from protocol.tx import Request

POLICIES = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}


@dataclass(frozen=True)
class Passed:
    """One exchange that went through a proxy."""

    method: str
    path: str
    body: bytes
    status: int
    answer: bytes


Rewrite = Callable[[Passed], tuple[int, bytes] | None]
"""What a proxy answers instead; None: what the server said."""


@dataclass
class Proxy:
    """A server in front of another one, as a liar, a wiretap or a bad line: keeps all that passes, and answers as `rewrite` says."""

    target: str
    url: str = ""
    passed: list[Passed] = field(default_factory=list)
    rewrite: Rewrite = lambda _: None

    @contextmanager
    def lying(self, rewrite: Rewrite) -> Iterator[None]:
        before, self.rewrite = self.rewrite, rewrite
        try:
            yield
        finally:
            self.rewrite = before

    def last(self, path: str) -> Passed:
        return next(seen for seen in reversed(self.passed) if seen.path.startswith(path))


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    made = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass("GET", b"")

        def do_POST(self) -> None:
            if "content-length" in self.headers:
                body = self.rfile.read(int(self.headers["content-length"]))
            else:
                body = b"".join(iter(self._chunk, b""))
            self._pass("POST", body)

        def _chunk(self) -> bytes:
            data = self.rfile.read(int(self.rfile.readline(), 16))
            self.rfile.readline()
            return data

        def _pass(self, method: str, body: bytes) -> None:
            answer = httpx2.request(
                method, made.target + self.path, content=body, trust_env=False, timeout=40
            )
            seen = Passed(method, self.path, body, answer.status_code, answer.content)
            made.passed.append(seen)
            status, content = made.rewrite(seen) or (answer.status_code, answer.content)
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("content-type", answer.headers.get("content-type", "text/plain"))
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield made
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@dataclass
class World:
    """A running network, the people on it, and proxies between the cloud and two nodes of the sharing chain."""

    net: Supervisor
    doctor: Session
    patient: Session
    reader: Session
    thief: Session
    bundle: bytes
    cloud_sees: dict[str, Proxy]

    @property
    def cloud_url(self) -> str:
        return self.patient.home.network.cloud.url

    def store(self, policies: dict[str, str] = POLICIES) -> bytes:
        """A new record, stored and published; its id."""
        profile = load_profile("safe")
        patient = Patient(self.patient)
        record, package, _ = Doctor(self.doctor).sign(self.bundle, self.patient.home.sign.public, profile)
        patient.receive(package)
        access = {g.label: g.access for g in (*profile.groups, *profile.derived)}
        patient.store(record, access, policies, ("research", "treatment"))
        return record

    def grant(
        self, session: Session, record: bytes, kind: ChainKind = "sharing", purpose: Purpose = "research"
    ) -> tuple[Index, SignedTicket]:
        """What an allowed request gives: the opened index entry and a ticket."""
        receipt = session.chains[kind].execute(session.home.sign, Request(record, purpose))
        return session.chains[kind].release(receipt.tx, session.home.seal)

    def body(
        self, index: Index, ticket: SignedTicket | None, requester: bytes, wanted: Sequence[bytes] = ()
    ) -> DownloadBody:
        cloud = bytes.fromhex(self.patient.home.network.cloud.key)
        return DownloadBody(cloud, index, ticket, requester, tuple(wanted), now_ms(), os.urandom(16))

    def ask(
        self, index: Index, ticket: SignedTicket | None, requester: SigningKey, **changes: object
    ) -> httpx2.Response:
        """The cloud's answer to a download that somebody signs."""
        body = msgspec.structs.replace(self.body(index, ticket, requester.public), **changes)
        return self.post("download", encode(Download.make(body, requester)))

    def post(self, what: str, content: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.cloud_url}/v1/{what}", content=content, trust_env=False, timeout=30)

    def cloud_log(self, record: bytes) -> list[CloudEntry]:
        """What the patient reads in the cloud's log."""
        return self.patient.cloud.access_log(record, self.patient.home.sign)

    def check_on_chain(self, record: bytes, asker: Session, code: str) -> None:
        """The patient finds the request on the chain, with what came of it."""
        wanted = (asker.home.sign.public, code)
        log = self.patient.chains["sharing"].verified_log
        eventually(lambda: wanted in [(r.sender, r.code) for r in log(record).receipts])

    def node_key(self, number: int, kind: ChainKind = "sharing") -> SigningKey:
        return SigningKey(read_key(self.net.folder / f"{kind}-{number}" / "keys" / "consensus.key", None))

    def forge_ticket(self, ticket: Ticket, *numbers: int) -> SignedTicket:
        """A ticket signed with the stolen keys of these nodes of the sharing chain."""
        signed = [
            TicketSignature(number - 1, self.node_key(number).sign("ticket", encode(ticket)))
            for number in numbers
        ]
        return SignedTicket(ticket, 0, tuple(signed))

    def check_refused(
        self, record: bytes, answer: httpx2.Response, code: str, attacker: SigningKey, status: int = 403
    ) -> None:
        """The attacker gets a problem and nothing else, and the patient finds the attempt with its reason."""
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"type", "title", "status", "detail", "code"}
        assert answer.json()["code"] == code
        entry = self.cloud_log(record)[-1]
        assert (entry.code, entry.requester) == (code, attacker.public)


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    """Return once the condition holds; it is looked at often, and not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come about"
        time.sleep(0.05)
