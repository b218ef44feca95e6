"""The cloud's HTTP door: who may put ciphertext in and who may take it out.

Source: paper eqs. 5-7 and the fetch step of its protocol; docs/protocol.md.

    POST /v1/upload    4-byte big-endian length ‖ Upload ‖ blobs      ->  UploadReceipt
    POST /v1/download  Download                                       ->  4-byte length ‖ DownloadHead ‖ blobs
    POST /v1/delete    Delete                                         ->  DeletionReceipt
    POST /v1/log       CloudLogRequest                                ->  CloudLogPage
    GET  /v1/info, /healthz, /readyz

Invariants:
- Nothing of an upload is readable unless all of it was checked and is on disk.
- A record goes out to its patient, or to the requester whom a quorum of the chain's nodes names in a ticket
  for exactly this view, as long as a quorum says that the requester is certified and the version current; the patient's signature on the address (the paper's S_1) is needed beside it and
  opens nothing by itself. Every request is signed for this cloud and recent; a download is answered once.
- A patient's deletion is on disk before its receipt is signed. Repeating it changes nothing, as nothing can be stored
  again under the id of a record that was erased, nor a version below a stored one.
- Memory per request is bounded by its head, the envelopes of a view, the names of the record's blobs and a
  chunk, whatever the size of the parts.
- A download is in the record's log before its first byte goes out; so is each refusal of one that comes with the
  patient's signature on the address. Requests of which anybody could make endless numbers are only counted.
- A refusal is an RFC 9457 problem whose `detail` is a sentence and whose `code` is a word for programs; it never
  says whether somebody else holds something.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import ChainMap, Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from cloudstub.store import BlobStore, OverQuota, Quota, Staging, check_size, read_chunk, read_whole
from configs.web import EXCEPTION_HANDLERS, problem
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from crypto.sign import PUBLIC_BYTES, Ed25519Signer
from protocol.block import Committee
from protocol.contract import Person, RecordEntry
from protocol.identity import Ticket
from protocol.record import (
    MAX_ENVELOPE,
    MAX_LOG_PAGE,
    BlobRef,
    CloudEntry,
    CloudLogPage,
    DeletionReceipt,
    DownloadBody,
    DownloadHead,
    Index,
    Upload,
    UploadReceipt,
    View,
    decode_cloud_log_request,
    decode_delete,
    decode_download,
    decode_envelope,
    decode_upload,
)

API_VERSION = 1
MAX_HEAD = 1 << 20
"""Bytes of an encoded Upload or Download; the largest that their types allow has less than half of it."""
MAX_SKEW_MS = 60_000
CHUNK = 256 << 10
_IDLE_S = 30

_log = structlog.get_logger("cloud")


class Chain(Protocol):
    """What the cloud asks of a chain (`cloudstub.chain`); may wait for the network."""

    def committee(self, at_least: int) -> Committee: ...
    def person(self, key: bytes, fresh: bool) -> Person | None: ...
    def record(self, record: bytes, fresh: bool) -> RecordEntry | None: ...


class TooLarge(Malformed):
    """Something exceeds a limit of this server."""

    status = 413


@dataclass(frozen=True)
class Limits:
    """What the server bears; sizes in bytes.

    `view_bytes` bounds the envelopes of one view together, and so the memory of a download. A client has
    `patience_s` seconds for a request head, and for blobs the time that they take at `slowest_rate` bytes a
    second on top.
    """

    quota: Quota = field(default_factory=Quota)
    view_bytes: int = 16 << 20
    connections: int = 256
    patience_s: int = 30
    slowest_rate: int = 32 << 10


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class CloudConfig:
    """Everything that `create_app` needs; `clock` gives Unix milliseconds."""

    folder: Path
    key: Ed25519Signer
    authority: bytes
    chains: Mapping[str, Chain]
    clock: Callable[[], int] = _unix_ms
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if len(self.authority) != PUBLIC_BYTES:
            raise Malformed(f"the authority's public key must have {PUBLIC_BYTES} bytes")


def create_app(config: CloudConfig) -> Starlette:
    """The server as an ASGI application; it holds the data folder while its lifespan runs.

    Entering the lifespan raises `Conflict` if another server has the folder.
    """
    cloud = _Cloud(config)
    app = Starlette(
        routes=[
            Route("/v1/upload", cloud.upload, methods=["POST"]),
            Route("/v1/download", cloud.download, methods=["POST"]),
            Route("/v1/delete", cloud.delete, methods=["POST"]),
            Route("/v1/log", cloud.log, methods=["POST"]),
            Route("/v1/info", cloud.info),
            Route("/healthz", cloud.healthz),
            Route("/readyz", cloud.readyz),
        ],
        exception_handlers={
            **EXCEPTION_HANDLERS,
            OSError: _on_storage_failure,
            sqlite3.OperationalError: _on_storage_failure,
        },
        lifespan=cloud.lifespan,
    )
    app.state.config = config
    return app


class _Cloud:
    def __init__(self, config: CloudConfig) -> None:
        self._config = config
        self._limits = config.limits
        self._arriving: Counter[bytes] = Counter()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with BlobStore(self._config.folder) as self._store:
            yield

    async def healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        await self._store.usage(bytes(32))  # nobody's: what counts is that the database answers
        return PlainTextResponse("ready\n")

    async def info(self, _: Request) -> Response:
        return JSONResponse(
            {
                "public_key": self._config.key.public.hex(),
                "version": API_VERSION,
                "chains": sorted(self._config.chains),
                "limits": asdict(self._limits) | {"head_bytes": MAX_HEAD, "envelope_bytes": MAX_ENVELOPE},
            }
        )

    async def upload(self, request: Request) -> Response:
        body = _Body(request, self._limits)
        upload = decode_upload(await body.head())
        patient = self._uploader(upload)
        sent = {ref.hash: ref.size for ref in upload.body.blobs}
        if len(sent) != len(upload.body.blobs):
            raise Malformed("the upload lists a blob twice")
        records = {view.record for view in upload.body.views}
        held = {record: await self._store.held(patient, record) for record in records}
        known = {record: ChainMap(sent, blobs) for record, blobs in held.items()}
        for view in upload.body.views:
            self._check_envelope_refs(view, known[view.record])
            await self._store.check_version(view)
        used, count = await self._store.usage(patient)
        new = [size for digest, size in sent.items() if not any(digest in blobs for blobs in held.values())]
        self._limits.quota.check(used + sum(new), count + len(new))

        with self._room(patient, sum(sent.values())):
            async with self._store.staging() as staging:
                body.extend(sum(sent.values()))
                for ref in upload.body.blobs:
                    await staging.put(ref, body.chunks(ref.size))
                await body.end()
                holdings = await self._holdings(upload, known, staging)
                await self._store.publish(upload.body.views, holdings, staging, self._limits.quota)
        receipt = UploadReceipt.make(upload, self._config.clock(), self._config.key)
        return Response(encode(receipt), media_type="application/msgpack")

    def _uploader(self, upload: Upload) -> bytes:
        """The patient who uploads, if signature, credential, role, time and the views' heads are in order."""
        upload.verify()
        self._check_meant(upload.body.cloud, upload.body.time_ms)
        credential = upload.body.credential.verify(self._config.authority, self._config.clock())
        if credential.role != "patient":
            raise Denied(
                f"only a patient may upload records, and this credential is for the role {credential.role}"
            )
        for view in upload.body.views:
            if view.patient != credential.subject:
                raise Denied("a view names another patient than the one who uploads")
            if view.chain_id not in self._config.chains:
                raise Denied("a view is for a chain that this cloud does not serve; see /v1/info")
        return credential.subject

    def _check_meant(self, cloud: bytes, time_ms: int) -> None:
        """Raise `Denied` unless a request is for this cloud and now."""
        if cloud != self._config.key.public:
            raise Denied(
                "the request was signed for another cloud; see /v1/info for this one's key", "other-cloud"
            )
        if abs(self._config.clock() - time_ms) > MAX_SKEW_MS:
            raise Denied(
                "the request was not made within the last minute; set your clock and sign a new one", "stale"
            )

    def _check_envelope_refs(self, view: View, known: Mapping[bytes, int]) -> None:
        for ref in view.envelopes:
            if known.get(ref.hash) != ref.size:
                raise _missing("an envelope")
            if ref.size > MAX_ENVELOPE:
                raise TooLarge(f"an envelope of {ref.size} bytes is over the limit of {MAX_ENVELOPE}")
        total = sum(ref.size for ref in view.envelopes)
        if total > self._limits.view_bytes:
            raise TooLarge(
                f"the envelopes of a view have {total} bytes, over the limit of {self._limits.view_bytes}"
            )

    @contextlib.contextmanager
    def _room(self, patient: bytes, size: int) -> Iterator[None]:
        """Bounds what one patient's uploads under way take up on disk, beside what the patient holds."""
        if self._arriving[patient] + size > self._limits.quota.max_bytes:
            raise OverQuota(
                "your other uploads under way leave no room for this one; wait until they have ended"
            )
        self._arriving[patient] += size
        try:
            yield
        finally:
            self._arriving[patient] -= size
            if not self._arriving[patient]:
                del self._arriving[patient]

    async def _holdings(
        self, upload: Upload, known: Mapping[bytes, Mapping[bytes, int]], staging: Staging
    ) -> set[tuple[bytes, BlobRef]]:
        """The (record, blob) pairs that the views need, if all are there and nothing else was sent."""
        needed: set[tuple[bytes, BlobRef]] = set()
        for record, version, ref in {
            (v.record, v.version, r) for v in upload.body.views for r in v.envelopes
        }:
            path = staging.path(ref.hash) if ref.hash in staging.hashes else self._store.path(ref.hash)
            needed.add((record, ref))
            for blob in await asyncio.to_thread(_parts_of, path, ref, record, version):
                if known[record].get(blob.hash) != blob.size:
                    raise _missing("a sealed part")
                needed.add((record, blob))
        if not staging.hashes <= {blob.hash for _, blob in needed}:
            raise Malformed("the upload carries a blob that none of its views needs")
        return needed

    async def download(self, request: Request) -> Response:
        download = decode_download(await _Body(request, self._limits).whole())
        download.verify()
        body, now = download.body, self._config.clock()
        view = await self._store.view(body.index.address)
        patient, record = (view.patient, view.record) if view else await self._subject(body.index)
        body.index.verify(patient)
        # From here on the sender has the patient's word, and all they try goes into the record's log.
        entry = _entry(body, now)
        try:
            self._check_meant(body.cloud, body.time_ms)
            if view is None:
                raise _no_view("superseded")
            await _authorise(body, view, self._config, now)
            envelopes, parts = await self._read(view, body.wanted)
            # Last of all checks, so that only who may read can make the table of nonces grow; first of all effects.
            if not await self._store.admit(patient, record, entry, body.nonce, body.time_ms + MAX_SKEW_MS):
                raise Denied(
                    "this request has been answered already; sign a new one with a fresh nonce", "replay"
                )
        except DiptychError as error:
            await self._store.refuse(
                patient, record, msgspec.structs.replace(entry, code=error.code or type(error).__name__)
            )
            raise
        head = encode(DownloadHead(view, envelopes, parts))
        size = 4 + len(head) + sum(ref.size for ref in parts)
        return _Timed(
            self._stream(head, parts),
            headers={"content-length": str(size)},
            media_type="application/octet-stream",
            seconds=self._limits.patience_s + size / self._limits.slowest_rate,
        )

    async def _subject(self, index: Index) -> tuple[bytes, bytes]:
        """Patient and record of an index entry at whose address nothing lies any more; `NotFound` if it never was one of theirs."""
        for patient, newest in (await self._store.versions(index.chain_id, index.record)).items():
            with contextlib.suppress(Unauthentic):
                index.verify(patient)
                if index.version < newest:
                    return patient, index.record
        raise _no_view("unknown-address")

    async def _read(
        self, view: View, wanted: tuple[bytes, ...]
    ) -> tuple[tuple[bytes, ...], tuple[BlobRef, ...]]:
        try:
            return await asyncio.to_thread(self._read_view, view, wanted)
        except Unavailable:
            if await self._store.view(view.address) is None:
                raise _no_view("unknown-address") from None  # deleted meanwhile
            raise

    async def log(self, request: Request) -> Response:
        asked = decode_cloud_log_request(await _Body(request, self._limits).whole())
        asked.verify()
        body, now = asked.body, self._config.clock()
        self._check_meant(body.cloud, body.time_ms)
        if not await self._store.held(body.patient, body.record):
            raise NotFound("this patient stores no such record here")
        if not await self._store.use_nonce(body.patient, body.nonce, body.time_ms + MAX_SKEW_MS, now):
            raise Denied(
                "this request has been answered already; sign a new one with a fresh nonce", "replay"
            )
        entries, count, head = await self._store.log_page(body.patient, body.record, body.after, MAX_LOG_PAGE)
        page = CloudLogPage.make(asked, tuple(entries), count, head, now, self._config.key)
        return Response(encode(page), media_type="application/msgpack")

    async def delete(self, request: Request) -> Response:
        delete = decode_delete(await _Body(request, self._limits).whole())
        delete.verify()
        body = delete.body
        self._check_meant(body.cloud, body.time_ms)
        gone = await self._store.delete(body.patient, body.record, body.before, self._config.clock())
        receipt = DeletionReceipt.make(
            delete, gone.views, gone.blobs, gone.size, gone.time_ms, self._config.key
        )
        return Response(encode(receipt), media_type="application/msgpack")

    def _read_view(
        self, view: View, wanted: tuple[bytes, ...]
    ) -> tuple[tuple[bytes, ...], tuple[BlobRef, ...]]:
        """The envelopes of a view and the wanted parts, all of which are there."""
        if len(set(wanted)) != len(wanted):
            raise Malformed("the request asks for a part twice", "malformed")
        envelopes = tuple(read_whole(self._store.path(ref.hash), ref) for ref in view.envelopes)
        missing, found = set(wanted), dict[bytes, BlobRef]()
        for envelope in envelopes if wanted else ():
            refs = {
                part.blob.hash: part.blob
                for part in decode_envelope(envelope).parts
                if part.blob.hash in missing
            }
            found |= refs
            missing -= refs.keys()
        if missing:
            raise Denied(
                "the request asks for a part that is not in this view; take the hashes from its envelopes",
                "other-part",
            )
        for ref in found.values():
            check_size(self._store.path(ref.hash), ref)
        return envelopes, tuple(found[digest] for digest in wanted)

    async def _stream(self, head: bytes, parts: tuple[BlobRef, ...]) -> AsyncIterator[bytes]:
        yield len(head).to_bytes(4, "big") + head
        for spans in self._spans(parts):
            yield await asyncio.to_thread(_joined, spans)

    def _spans(self, parts: tuple[BlobRef, ...]) -> Iterator[list[tuple[Path, int, int]]]:
        """The places of the parts on disk in order, at most `CHUNK` bytes at a time: small parts travel together, as a record may have
        thousands."""
        spans: list[tuple[Path, int, int]] = []
        room = CHUNK
        for ref in parts:
            for at in range(0, ref.size, CHUNK):
                size = min(CHUNK, ref.size - at)
                if size > room:
                    yield spans
                    spans, room = [], CHUNK
                spans.append((self._store.path(ref.hash), at, size))
                room -= size
        if spans:
            yield spans


def _joined(spans: list[tuple[Path, int, int]]) -> bytes:
    return b"".join(starmap(read_chunk, spans))


def _parts_of(path: Path, ref: BlobRef, record: bytes, version: int) -> list[BlobRef]:
    """The blobs of the parts inside an envelope, which must be of this record version."""
    envelope = decode_envelope(read_whole(path, ref))
    if (envelope.record, envelope.version) != (record, version):
        raise Malformed("an envelope is of another record or version than the view that lists it")
    return [part.blob for part in envelope.parts]


def _missing(what: str) -> Malformed:
    return Malformed(
        f"{what} is neither among the blobs of this upload nor held for this record with this size; "
        "send it along"
    )


def _no_view(code: str) -> NotFound:
    return NotFound("no record lies at this address; ask for the record's newest index entry", code)


def _entry(body: DownloadBody, now_ms: int) -> CloudEntry:
    """What the log says of a request that is served."""
    index, ticket = body.index, body.ticket.ticket if body.ticket else None
    return CloudEntry(
        now_ms,
        index.chain_id,
        index.version,
        body.requester,
        ticket.request if ticket else None,
        ticket.purpose if ticket else None,
        len(body.wanted),
        "served",
        0,
    )


async def _authorise(body: DownloadBody, view: View, config: CloudConfig, now_ms: int) -> None:
    """Raise `Unauthentic` or `Denied` unless the requester may read this view now, `Unavailable` if the chain does not say."""
    index = body.index
    if (index.chain_id, index.record, index.version) != (view.chain_id, view.record, view.version):
        raise Denied(
            "the index entry is for another record, version or chain than the view at its address",
            "other-index",
        )
    if body.requester == view.patient:
        return
    if body.ticket is None:
        raise Denied(
            "an index entry alone opens nothing: request access on the chain and send the ticket it issues",
            "no-ticket",
        )
    chain = config.chains.get(view.chain_id)
    if chain is None:
        raise Denied("this cloud no longer serves the chain of this record", "other-chain")
    committee = await asyncio.to_thread(chain.committee, body.ticket.epoch)
    ticket = body.ticket.verify(view.chain_id, committee.epoch, committee.keys, committee.quorum, now_ms)
    if ticket.requester != body.requester:
        raise Denied("the ticket was issued to somebody else; request access yourself", "transfer")
    if ticket.record != view.record:
        raise Denied("the ticket is for another record; request access to this one", "other-record")
    if (ticket.version, ticket.commit) != (view.version, view.commit):
        raise Denied(
            "the ticket is for another version or view of the record; request access to this one",
            "other-version",
        )
    try:
        await _check_standing(chain, ticket, config.authority, now_ms, False)
    except Denied:  # what was asked some seconds ago may not hold any more
        await _check_standing(chain, ticket, config.authority, now_ms, True)


async def _check_standing(chain: Chain, ticket: Ticket, authority: bytes, now_ms: int, fresh: bool) -> None:
    """Raise `Denied` unless the chain says that the requester is certified and the ticket's version current."""
    person, entry = await asyncio.gather(
        asyncio.to_thread(chain.person, ticket.requester, fresh),
        asyncio.to_thread(chain.record, ticket.record, fresh),
    )
    if person is None or person.is_revoked:
        raise Denied("the credential of this key was revoked", "revoked")
    person.signed.verify(authority, now_ms)
    if entry is None or (entry.status, entry.version, entry.commit) != (
        "published",
        ticket.version,
        ticket.commit,
    ):
        raise Denied(
            "the record has a newer version than the ticket, or is published no more; request access again",
            "superseded",
        )


class _Body:
    """A request body that is taken in order, in small pieces, before a deadline."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self._stream = request.stream()
        self._limits = limits
        self._buffer = bytearray()
        self._deadline = asyncio.get_running_loop().time() + limits.patience_s

    def extend(self, size: int) -> None:
        """Give the client the time that `size` bytes more may take."""
        self._deadline += size / self._limits.slowest_rate

    async def head(self) -> bytes:
        """What follows a 4-byte length; `TooLarge` over `MAX_HEAD`."""
        size = int.from_bytes(await self._take(4), "big")
        if size > MAX_HEAD:
            raise TooLarge(f"a request head of {size} bytes is over the limit of {MAX_HEAD}")
        return await self._take(size)

    async def chunks(self, size: int) -> AsyncIterator[bytes]:
        """The next `size` bytes, at most `CHUNK` at a time."""
        while size:
            chunk = await self._take(min(size, CHUNK))
            size -= len(chunk)
            yield chunk

    async def end(self) -> None:
        """Raise `Malformed` if anything follows."""
        if self._buffer or await self._receive():
            raise Malformed("the body goes on after the last blob that its head lists")

    async def whole(self) -> bytes:
        """Everything; `TooLarge` over `MAX_HEAD`."""
        while await self._receive():
            if len(self._buffer) > MAX_HEAD:
                raise TooLarge(f"the request is over the limit of {MAX_HEAD} bytes")
        return bytes(self._buffer)

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._receive():
                raise Malformed("the body ends before all that its head lists has come; send it whole")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _receive(self) -> bool:
        try:
            async with asyncio.timeout_at(self._deadline):
                chunk = await anext(self._stream, b"")
        except TimeoutError:
            raise HTTPException(
                408, "the request came too slowly; try again over a better connection"
            ) from None
        self._buffer += chunk
        return bool(chunk)


class _Timed(StreamingResponse):
    """Gives up on a client that takes the answer too slowly, and on what is deleted meanwhile: the connection ends before all is sent."""

    def __init__(
        self, content: AsyncIterator[bytes], headers: dict[str, str], media_type: str, seconds: float
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._seconds = seconds

    async def stream_response(self, send: Send) -> None:
        with contextlib.suppress(TimeoutError, FileNotFoundError):
            async with asyncio.timeout(self._seconds):
                await super().stream_response(send)


async def _on_storage_failure(_: Request, error: Exception) -> Response:
    _log.error("storage_failure", kind=type(error).__name__, errno=getattr(error, "errno", None))
    return problem(
        503,
        "the cloud cannot use its disk now; nothing was stored; try again later",
        "urn:diptych:Unavailable",
    )
