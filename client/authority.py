"""The attribute authority: certifies keys on both chains and issues CP-ABE attribute keys against the certified attributes.

An invitation is used once: the answer is stored before it is given, and the same person gets the same answer again, so a crash on
either side loses nothing. It never sees anybody's private keys.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from client.chain import ChainClient, now_ms
from client.enrolment import (
    MAX_ENROLMENT,
    Enrolled,
    Enrolment,
    Invite,
    InviteBody,
    Renewal,
    decode_enrolled,
    decode_enrolment,
    decode_renewal,
)
from configs.files import load_network, read_key
from configs.settings import AuthoritySettings
from configs.web import EXCEPTION_HANDLERS, read_body
from crypto.abe import MasterKey, check_attributes
from crypto.ces import SUITES
from crypto.codec import encode
from crypto.epoch import EVERY_WEEK, in_week, is_bound, renewed, week_at
from crypto.errors import Conflict, Denied, Malformed, NotFound
from crypto.policy import check_attribute
from crypto.schemes import read_master
from crypto.seal import seal
from crypto.sign import SigningKey
from protocol.genesis import Genesis
from protocol.identity import Credential, Role, SignedCredential
from protocol.network import Network
from protocol.tx import Certify, Revoke

DAY_MS = 86_400_000
MAX_SKEW_MS = 600_000
"""How far the clock of who asks for a renewal may be off."""
_REVOKED = "the credential of this key was revoked; ask the authority for a new invitation and make new keys"
_log = structlog.get_logger("authority")


class Authority:
    def __init__(
        self,
        key: SigningKey,
        abe: MasterKey,
        network: Network,
        chains: dict[str, Genesis],
        data: Path,
        days: int,
    ) -> None:
        self._key, self._abe, self._days = key, abe, days
        self._chains = [ChainClient(genesis, network.chains[genesis.kind]) for genesis in chains.values()]
        self._data = data
        self._lock = threading.Lock()

    @classmethod
    def open(cls, settings: AuthoritySettings, passphrase: bytes | None) -> "Authority":
        """From config and key files; `Conflict` when the key is not the one the network names."""
        network, chains = load_network(settings.network)
        key = SigningKey(read_key(settings.keys / "authority.key", passphrase))
        if network.authority.key != key.public.hex() or any(
            g.authority != key.public for g in chains.values()
        ):
            raise Conflict(
                f"the key in {settings.keys} is not the authority's key in the network and genesis files"
            )
        abe = read_master(read_key(settings.keys / "abe.key", passphrase))
        return cls(key, abe, network, chains, settings.data, settings.credential_days)

    def invite(self, role: Role, attributes: Sequence[str], hours: int) -> str:
        """A new invitation as text. Doctors and patients get `role:doctor`, `role:patient` beside the attributes given.

        `status:active@week` stands for the week of the enrolment and, renewed, of each week after it.
        """
        implied = () if role == "user" else (f"role:{role}",)
        listed = tuple(sorted({check_attribute(a) for a in (*implied, *attributes)}))
        if not listed:
            raise Malformed(
                "a data user needs at least one attribute, such as role:researcher; add --attribute"
            )
        if bound := [name for name in listed if is_bound(name)]:
            raise Malformed(f"{bound[0]}: the authority fills in the week; write {EVERY_WEEK} in its place")
        check_attributes(in_week(name, week_at(now_ms())) for name in listed)
        body = InviteBody(role, listed, os.urandom(16), now_ms() + hours * 3_600_000)
        return Invite.make(body, self._key).to_text()

    def enrol(self, enrolment: Enrolment) -> Enrolled:
        """Certify on both chains and issue the attribute key; takes as long as the chains take. Raises `DiptychError`."""
        enrolment.verify()
        body, invite = enrolment.body, enrolment.body.invite.body
        enrolment.body.invite.verify(self._key.public)
        if now_ms() >= invite.expires_ms:
            raise Denied("the invitation has expired; ask the authority for a new one")
        if (body.ces_key is None) == (invite.role == "doctor"):
            raise Malformed("doctors enrol with a record-signing (CES) key, others without one")
        if body.ces_key is not None and body.ces_key.suite not in SUITES:
            raise Malformed(
                f"the record-signing suite {body.ces_key.suite!r} is not known; use one of {', '.join(SUITES)}"
            )
        with self._lock:  # one enrolment at a time: the use of an invitation is decided by one of them
            enrolled = self._answer_for(body.subject, invite.nonce)
            if enrolled is None:
                now = now_ms()
                credential = Credential(
                    body.subject,
                    invite.role,
                    tuple(in_week(name, week_at(now)) for name in invite.attributes),
                    body.seal_key,
                    body.ces_key,
                    now - 60_000,  # clocks differ
                    now + self._days * DAY_MS,
                )
                enrolled = self._issue(credential)
                with self._database() as db:
                    db.execute(
                        "INSERT INTO invites VALUES (?, ?, ?)", (invite.nonce, body.subject, encode(enrolled))
                    )
        self._put_on_chains(enrolled.credential)
        _log.info("enrolled", role=invite.role)
        return enrolled

    def renew(self, renewal: Renewal) -> Enrolled:
        """Move the time-bound attributes of a certified person to this week, on both chains and in a new attribute key.

        The credential ends when it would have ended. In the same week the answer is the same. Raises `DiptychError`.
        """
        renewal.verify()
        subject, now = renewal.body.subject, now_ms()
        if abs(now - renewal.body.time_ms) > MAX_SKEW_MS:
            raise Denied(
                "the renewal was signed at another time; set the clock of this machine and try again"
            )
        with self._lock:
            nonce, enrolled = self._last_answer(subject)
            credential = enrolled.credential.credential
            if now >= credential.not_after_ms:
                raise Denied("the credential has expired; ask the authority for a new invitation")
            attributes = tuple(renewed(name, week_at(now)) for name in credential.attributes)
            if attributes != credential.attributes:
                enrolled = self._issue(msgspec.structs.replace(credential, attributes=attributes))
                with self._database() as db:
                    db.execute(
                        "UPDATE invites SET answer = ? WHERE nonce = ? AND answer IS NOT NULL",
                        (encode(enrolled), nonce),
                    )
        self._put_on_chains(enrolled.credential)
        _log.info("renewed", role=credential.role)
        return enrolled

    def revoke(self, subject: bytes) -> None:
        """End the credential of a key on both chains, for good, and renew it no more. Raises `DiptychError`."""
        with self._lock, self._database() as db:
            db.execute("UPDATE invites SET answer = NULL WHERE subject = ?", (subject,))
        self._on_both_chains(lambda chain: chain.execute(self._key, Revoke(subject)))
        _log.info("revoked")

    def info(self) -> dict[str, str]:
        return {"public_key": self._key.public.hex(), "abe_public": self._abe.public.to_bytes().hex()}

    def _put_on_chains(self, signed: SignedCredential) -> None:
        """Certify on both chains; a revocation that came meanwhile wins."""
        subject = signed.credential.subject
        self._on_both_chains(lambda chain: self._certify(chain, signed))
        with self._database() as db:
            is_revoked = self._is_revoked(db, subject)
        if is_revoked:
            self._on_both_chains(lambda chain: chain.execute(self._key, Revoke(subject)))
            raise Denied(_REVOKED)

    def _certify(self, chain: ChainClient, credential: SignedCredential) -> None:
        """Put the credential on a chain, unless it is there; an invitation used again does not undo a revocation."""
        with contextlib.suppress(NotFound):
            person = chain.person(credential.credential.subject)
            if person.is_revoked:
                raise Denied(_REVOKED)
            if person.signed == credential:
                return
        chain.execute(self._key, Certify(credential))

    def _on_both_chains(self, act: Callable[[ChainClient], object]) -> None:
        with ThreadPoolExecutor(len(self._chains)) as pool:
            list(pool.map(act, self._chains))

    def _answer_for(self, subject: bytes, nonce: bytes) -> Enrolled | None:
        with self._database() as db:
            row = db.execute("SELECT subject, answer FROM invites WHERE nonce = ?", (nonce,)).fetchone()
            if row and row[0] != subject:
                raise Conflict("the invitation was used by another key; ask the authority for a new one")
            if self._is_revoked(db, subject):
                raise Denied(_REVOKED)
        return decode_enrolled(row[1]) if row else None

    def _last_answer(self, subject: bytes) -> tuple[bytes, Enrolled]:
        """The invitation's nonce and the answer of the last enrolment of this key."""
        with self._database() as db:
            query = "SELECT nonce, answer FROM invites WHERE subject = ? ORDER BY rowid DESC"
            row = db.execute(query, (subject,)).fetchone()
            if row is None:
                raise NotFound("this key is not enrolled here; use an invitation: diptych init --invite …")
            if self._is_revoked(db, subject):
                raise Denied(_REVOKED)
        return row[0], decode_enrolled(row[1])

    @staticmethod
    def _is_revoked(db: sqlite3.Connection, subject: bytes) -> bool:
        query = "SELECT 1 FROM invites WHERE subject = ? AND answer IS NULL"
        return db.execute(query, (subject,)).fetchone() is not None

    def _issue(self, credential: Credential) -> Enrolled:
        attribute_key = self._abe.issue(credential.attributes).to_bytes()
        return Enrolled.make(
            SignedCredential.issue(credential, self._key),
            self._abe.public.to_bytes(),
            seal(credential.seal_key, attribute_key),
            self._key,
        )

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self._data / "authority.db")
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS invites (nonce BLOB PRIMARY KEY, subject BLOB, answer BLOB)"
            )
            with db:
                yield db
        finally:
            db.close()


def create_app(authority: Authority) -> Starlette:
    """`POST /v1/enrol`: Enrolment -> Enrolled (msgpack); `POST /v1/renew`: Renewal -> Enrolled; `GET /v1/info`, `/healthz`,
    `/readyz`."""

    async def enrol(request: Request) -> Response:
        enrolment = decode_enrolment(await read_body(request, MAX_ENROLMENT))
        enrolled = await to_thread.run_sync(authority.enrol, enrolment)
        return Response(encode(enrolled), media_type="application/msgpack")

    async def renew(request: Request) -> Response:
        renewal = decode_renewal(await read_body(request, MAX_ENROLMENT))
        enrolled = await to_thread.run_sync(authority.renew, renewal)
        return Response(encode(enrolled), media_type="application/msgpack")

    async def info(_: Request) -> Response:
        return JSONResponse(authority.info())

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    routes = [
        Route("/v1/enrol", enrol, methods=["POST"]),
        Route("/v1/renew", renew, methods=["POST"]),
        Route("/v1/info", info),
        Route("/healthz", alive),
        Route("/readyz", alive),
    ]
    return Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
