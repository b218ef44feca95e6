"""The authority that certifies people: their keys, roles and attributes, on both chains. Keys to the attributes are its issuer's business.

An invitation is used once: the answer is stored before it is given, and the same person gets the same answer again, so a crash on
either side loses nothing. It never sees anybody's private keys.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from client.chain import ChainClient
from client.enrolment import (
    MAX_ENROLMENT,
    MAX_SKEW_MS,
    Enrolment,
    Invitation,
    Renewal,
    decode_enrolment,
    decode_key_request,
    decode_renewal,
)
from client.issuer import Issuer
from client.terminal import time_text
from client.web import now_ms
from configs.files import load_network
from configs.settings import AuthoritySettings
from configs.signer import signer_of
from configs.web import EXCEPTION_HANDLERS, read_body
from crypto.abe import check_attributes
from crypto.ces import SUITES
from crypto.codec import encode
from crypto.epoch import EVERY_WEEK, in_week, is_bound, renewed, week_at
from crypto.errors import Conflict, Denied, Malformed, NotFound
from crypto.policy import check_attribute
from crypto.sign import Ed25519Signer
from protocol.genesis import Genesis
from protocol.identity import (
    KEY_KIND,
    MAX_CERTIFIED,
    Credential,
    Role,
    SignedCredential,
    decode_credential,
    key_attribute,
)
from protocol.network import Network
from protocol.tx import Certify, Revoke

DAY_MS = 86_400_000
_REVOKED = "the credential of this key was revoked; ask the authority for a new invitation and make new keys"
_log = structlog.get_logger("authority")


class Authority:
    def __init__(
        self,
        key: Ed25519Signer,
        network: Network,
        chains: dict[str, Genesis],
        data: Path,
        days: int,
    ) -> None:
        """`Conflict` when `key` is not the one that network and genesis files name."""
        if network.authority.key != key.public.hex() or any(
            g.authority != key.public for g in chains.values()
        ):
            raise Conflict(
                "this authority's key is not the one that certifies people by the network and genesis files"
            )
        self._key, self._days = key, days
        self._chains = [ChainClient(genesis, network.chains[genesis.kind]) for genesis in chains.values()]
        self._data = data
        self._lock = threading.Lock()

    @classmethod
    def open(cls, settings: AuthoritySettings, passphrase: bytes | None) -> "Authority":
        """From config and key files. Raises as the constructor."""
        network, chains = load_network(settings.network)
        key = signer_of(settings, "authority.key", passphrase)
        return cls(key, network, chains, settings.data, settings.credential_days)

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
        if any(name.startswith(f"{KEY_KIND}:") for name in listed):
            raise Malformed(
                f"{KEY_KIND}:… names the person's own key and is certified unasked; leave it away"
            )
        if bound := [name for name in listed if is_bound(name)]:
            raise Malformed(f"{bound[0]}: the authority fills in the week; write {EVERY_WEEK} in its place")
        certified = _with_key((in_week(name, week_at(now_ms())) for name in listed), bytes(32))
        if len(check_attributes(certified)) > MAX_CERTIFIED:
            raise Malformed(f"a credential has at most {MAX_CERTIFIED} attributes, one of them for its key")
        expires_ms = now_ms() + hours * 3_600_000
        return Invitation.make(role, listed, expires_ms, os.urandom(32), self._key).to_text()

    def enrol(self, enrolment: Enrolment) -> SignedCredential:
        """Certify on both chains; takes as long as the chains take. Raises `DiptychError`."""
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
            signed = self._answer_for(body.subject, invite.key)
            if signed is None:
                now = now_ms()
                credential = Credential(
                    body.subject,
                    invite.role,
                    _with_key((in_week(name, week_at(now)) for name in invite.attributes), body.subject),
                    body.seal_key,
                    body.ces_key,
                    now - 60_000,  # clocks differ
                    now + self._days * DAY_MS,
                )
                signed = SignedCredential.issue(credential, self._key)
                with self._database() as db:
                    db.execute(
                        "INSERT INTO invites VALUES (?, ?, ?)", (invite.key, body.subject, encode(signed))
                    )
        self._put_on_chains(signed)
        _log.info("enrolled", role=invite.role)
        return signed

    def renew(self, renewal: Renewal) -> SignedCredential:
        """Move the time-bound attributes of a certified person to this week, on both chains; the one that names their key is added.

        The credential ends when it would have ended. In the same week the answer is the same. Raises `DiptychError`.
        """
        renewal.verify()
        subject, now = renewal.body.subject, now_ms()
        if abs(now - renewal.body.time_ms) > MAX_SKEW_MS:
            raise Denied(
                "the renewal was signed at another time; set the clock of this machine and try again"
            )
        with self._lock:
            invite_key, signed = self._last_answer(subject)
            credential = signed.credential
            if now >= credential.not_after_ms:
                raise Denied("the credential has expired; ask the authority for a new invitation")
            attributes = _with_key((renewed(name, week_at(now)) for name in credential.attributes), subject)
            if attributes != credential.attributes:
                credential = msgspec.structs.replace(credential, attributes=attributes)
                signed = SignedCredential.issue(credential, self._key)
                with self._database() as db:
                    db.execute(
                        "UPDATE invites SET answer = ? WHERE key = ? AND answer IS NOT NULL",
                        (encode(signed), invite_key),
                    )
        self._put_on_chains(signed)
        _log.info("renewed", role=credential.role)
        return signed

    def revocation(self, subject: bytes) -> tuple[tuple[str, str], ...]:
        """What a revocation leads to: before, after, and what the person may have kept. `NotFound` if nobody has this key."""
        now, [chain, *_] = now_ms(), self._chains
        credential = chain.verified_person(subject).signed.credential
        grants = [ticket for chain in self._chains for ticket in chain.grants_of(subject)]
        live = sum(now < ticket.expires_ms for ticket in grants)
        return (
            (
                "before",
                f"certified as {credential.role} until {time_text(credential.not_after_ms)} with "
                f"{', '.join(credential.attributes)}: is granted each record whose rule these satisfy; "
                f"{len(grants)} grants so far, {live} of them alive",
            ),
            (
                "after",
                "this key is granted nothing, publishes, approves and acts for nobody; living grants end; it is certified and renewed no more",
            ),
            (
                "kept",
                "what they opened; tickets they hold, for ten minutes where a cloud does not ask the chains; and their attribute key, which "
                "opens what its policies name no week for, if somebody gives them the ciphertext",
            ),
        )

    def revoke(self, subject: bytes) -> None:
        """End the credential of a key on both chains, for good, and renew it no more. Raises `DiptychError`."""
        with self._lock, self._database() as db:
            db.execute("UPDATE invites SET answer = NULL WHERE subject = ?", (subject,))
        self._on_both_chains(lambda chain: chain.execute(self._key, Revoke(subject)))
        _log.info("revoked")

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
            person = chain.verified_person(credential.credential.subject)
            if person.is_revoked:
                raise Denied(_REVOKED)
            if person.signed == credential:
                return
        chain.execute(self._key, Certify(credential))

    def _on_both_chains(self, act: Callable[[ChainClient], object]) -> None:
        with ThreadPoolExecutor(len(self._chains)) as pool:
            list(pool.map(act, self._chains))

    def _answer_for(self, subject: bytes, invite_key: bytes) -> SignedCredential | None:
        with self._database() as db:
            row = db.execute("SELECT subject, answer FROM invites WHERE key = ?", (invite_key,)).fetchone()
            if row and row[0] != subject:
                raise Conflict("the invitation was used by another key; ask the authority for a new one")
            if self._is_revoked(db, subject):
                raise Denied(_REVOKED)
        return decode_credential(row[1]) if row else None

    def _last_answer(self, subject: bytes) -> tuple[bytes, SignedCredential]:
        """The invitation's key and the answer of the last enrolment of this key."""
        with self._database() as db:
            query = "SELECT key, answer FROM invites WHERE subject = ? ORDER BY rowid DESC"
            row = db.execute(query, (subject,)).fetchone()
            if row is None:
                raise NotFound("this key is not enrolled here; use an invitation: diptych init --invite …")
            if self._is_revoked(db, subject):
                raise Denied(_REVOKED)
        return row[0], decode_credential(row[1])

    @staticmethod
    def _is_revoked(db: sqlite3.Connection, subject: bytes) -> bool:
        query = "SELECT 1 FROM invites WHERE subject = ? AND answer IS NULL"
        return db.execute(query, (subject,)).fetchone() is not None

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self._data / "authority.db")
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("CREATE TABLE IF NOT EXISTS invites (key BLOB PRIMARY KEY, subject BLOB, answer BLOB)")
            with db:
                yield db
        finally:
            db.close()


def create_app(authority: Authority | None, issuer: Issuer, key: bytes) -> Starlette:
    """The HTTP side of an authority whose public key is `key`.

    `POST /v1/enrol`: Enrolment -> SignedCredential (msgpack), `POST /v1/renew`: Renewal -> SignedCredential, where it certifies people;
    `POST /v1/key`: KeyRequest -> Issued; `GET /v1/ceremony/{round}`: its word; `GET /v1/info`, `/healthz`, `/readyz`.
    """

    async def enrol(request: Request) -> Response:
        certifying = _certifying()
        enrolment = decode_enrolment(await read_body(request, MAX_ENROLMENT))
        return _packed(await to_thread.run_sync(certifying.enrol, enrolment))

    async def renew(request: Request) -> Response:
        certifying = _certifying()
        renewal = decode_renewal(await read_body(request, MAX_ENROLMENT))
        return _packed(await to_thread.run_sync(certifying.renew, renewal))

    def _certifying() -> Authority:
        if authority is None:
            raise NotFound(
                "this authority issues keys and certifies nobody; ask the one that the network file names"
            )
        return authority

    async def issue(request: Request) -> Response:
        key_request = decode_key_request(await read_body(request, MAX_ENROLMENT))
        return _packed(await to_thread.run_sync(issuer.issue, key_request))

    async def word(request: Request) -> Response:
        said = await to_thread.run_sync(issuer.word, request.path_params["round"])
        return Response(said, media_type="application/msgpack")

    async def info(_: Request) -> Response:
        public = issuer.public
        return JSONResponse({"public_key": key.hex(), "abe_public": public.hex() if public else None})

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        issuer.check_ready()
        return PlainTextResponse("ok\n")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        issuer.start()
        yield
        await to_thread.run_sync(issuer.stop)

    routes = [
        Route("/v1/enrol", enrol, methods=["POST"]),
        Route("/v1/renew", renew, methods=["POST"]),
        Route("/v1/key", issue, methods=["POST"]),
        Route("/v1/ceremony/{round:int}", word),
        Route("/v1/info", info),
        Route("/healthz", alive),
        Route("/readyz", ready),
    ]
    return Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS, lifespan=lifespan)


def _with_key(attributes: Iterable[str], subject: bytes) -> tuple[str, ...]:
    """In the order given, the attribute that names the key last."""
    return tuple(dict.fromkeys((*attributes, key_attribute(subject))))


def _packed(answer: object) -> Response:
    return Response(encode(answer), media_type="application/msgpack")
