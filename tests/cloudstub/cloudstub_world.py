"""People, nodes and records for the tests of the cloud.

Parts and headers are random bytes, as the cloud never looks inside.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cloudstub.server import CloudConfig, Limits
from crypto.codec import encode
from crypto.errors import Unavailable
from crypto.sign import SigningKey
from protocol.block import Committee
from protocol.contract import Person, RecordEntry
from protocol.genesis import Genesis, Member
from protocol.identity import Credential, SignedCredential, SignedTicket, Ticket, TicketSignature
from protocol.record import (
    BlobRef,
    CloudLogBody,
    CloudLogRequest,
    Delete,
    DeleteBody,
    Download,
    DownloadBody,
    DownloadHead,
    Envelope,
    Index,
    SealedPart,
    Upload,
    UploadBody,
    View,
    decode_download_head,
)
from tests.dealer import share_point

NOW = 1_760_000_000_000
CHAINS = ("storage-1", "sharing-1")
QUORUM = 3


def key(name: str) -> SigningKey:
    return SigningKey(name.encode().ljust(32, b"."))


AUTHORITY, CLOUD, PATIENT, OTHER_PATIENT, READER = (
    key(n) for n in ("authority", "cloud", "patient", "other-patient", "reader")
)

NODES = {chain: [key(f"{chain}-node-{i}") for i in range(4)] for chain in CHAINS}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class WorldChain:
    """A chain on which all are certified, and a record's first version is current unless `publish` says otherwise."""

    def __init__(self, name: str) -> None:
        self.name, self.revoked, self.asked, self.is_silent = name, set[bytes](), 0, False
        self.current: dict[bytes, View | None] = {}

    def committee(self, at_least: int) -> Committee:
        return committee(self.name)

    def person(self, key: bytes, fresh: bool) -> Person | None:
        self.asked += 1
        if self.is_silent:
            raise Unavailable("too few nodes answer", "chain-silent")
        plain = Credential(key, "user", (), bytes(32), None, 0, 2**62)
        return Person(SignedCredential.issue(plain, AUTHORITY), key in self.revoked)

    def record(self, record: bytes, fresh: bool) -> RecordEntry | None:
        view = self.current.get(record)
        none, status = bytes(32), "published" if view else "retired"
        version, commit = (view.version, view.commit) if view else (1, none)
        return RecordEntry(none, none, none, version, commit, b"", None, 0, status, (), None, b"")  # type: ignore[arg-type]


def committee(chain: str) -> Committee:
    members = tuple(
        Member(f"n{i}", node.public, f"peer-{i}", share_point(i)) for i, node in enumerate(NODES[chain])
    )
    fixed = Committee(Genesis(chain, "storage", "bft", members, AUTHORITY.public, NOW))
    assert fixed.quorum == QUORUM
    return fixed


WORLD = {chain: WorldChain(chain) for chain in CHAINS}


def publish(record: "Record") -> None:
    """Make this version the current one on its chains."""
    for view in record.views:
        WORLD[view.chain_id].current[view.record] = view


def config(folder: Path, clock: Any, limits: Limits | None = None) -> CloudConfig:
    return CloudConfig(folder, CLOUD, AUTHORITY.public, WORLD, clock, limits or Limits())


def credential(subject: SigningKey, authority: SigningKey = AUTHORITY, **changes: Any) -> SignedCredential:
    plain = Credential(subject.public, "patient", (), bytes(32), None, 0, 2**62)
    return SignedCredential.issue(msgspec.structs.replace(plain, **changes), authority)


@dataclass
class Record:
    """One version of a record: a view a chain, one envelope in each, every envelope with all the parts."""

    owner: SigningKey
    views: list[View]
    parts: list[BlobRef]
    blobs: dict[bytes, bytes]

    @property
    def refs(self) -> tuple[BlobRef, ...]:
        return tuple(BlobRef(digest, len(data)) for digest, data in self.blobs.items())


def make_envelope(record: bytes, version: int, parts: Sequence[BlobRef]) -> bytes:
    sealed = tuple(SealedPart(i, version, ref, os.urandom(48)) for i, ref in enumerate(parts))
    return encode(Envelope(record, version, "shared", "role:doctor", os.urandom(600), sealed, os.urandom(90)))


def make_record(
    owner: SigningKey = PATIENT,
    record: bytes = b"",
    version: int = 1,
    sizes: Sequence[int] = (1, 5_000, 300_000),
    chains: Sequence[str] = CHAINS,
) -> Record:
    record = record or os.urandom(16)
    data = [os.urandom(size) for size in sizes]
    parts = [BlobRef.of(part) for part in data]
    envelope = make_envelope(record, version, parts)
    ref = BlobRef.of(envelope)
    views = [View(chain, record, version, owner.public, os.urandom(32), (ref,)) for chain in chains]
    blobs = {r.hash: d for r, d in zip([ref, *parts], [envelope, *data], strict=True)}
    made = Record(owner, views, parts, blobs)
    if version == 1:
        publish(made)
    return made


def make_upload(record: Record, time_ms: int = NOW, **changes: Any) -> Upload:
    body = UploadBody(CLOUD.public, credential(record.owner), tuple(record.views), record.refs, time_ms)
    return Upload.make(msgspec.structs.replace(body, **changes), record.owner)


def framed(head: bytes, *blobs: bytes) -> bytes:
    return len(head).to_bytes(4, "big") + head + b"".join(blobs)


def upload_bytes(record: Record, time_ms: int = NOW) -> bytes:
    return framed(encode(make_upload(record, time_ms)), *record.blobs.values())


def make_ticket(
    view: View, requester: SigningKey = READER, signers: Sequence[int] = (0, 1, 2), **changes: Any
) -> SignedTicket:
    plain = Ticket(
        view.chain_id,
        os.urandom(32),
        view.record,
        view.version,
        view.commit,
        requester.public,
        "treatment",
        NOW * 2,
    )
    ticket = msgspec.structs.replace(plain, **changes)
    nodes = NODES[view.chain_id]
    signatures = (TicketSignature(i, nodes[i].sign("ticket", encode(ticket))) for i in signers)
    return SignedTicket(ticket, 0, tuple(signatures))


def make_download(
    record: Record,
    requester: SigningKey = READER,
    wanted: Sequence[BlobRef] = (),
    time_ms: int = NOW,
    **changes: Any,
) -> Download:
    view = record.views[0]
    ticket = None if requester is record.owner else make_ticket(view, requester)
    index, hashes = Index.make(view, record.owner), tuple(ref.hash for ref in wanted)
    body = DownloadBody(CLOUD.public, index, ticket, requester.public, hashes, time_ms, os.urandom(16))
    return Download.make(msgspec.structs.replace(body, **changes), requester)


def make_delete(record: Record, owner: SigningKey = PATIENT, time_ms: int = NOW, **changes: Any) -> Delete:
    body = DeleteBody(CLOUD.public, owner.public, record.views[0].record, None, time_ms, os.urandom(16))
    return Delete.make(msgspec.structs.replace(body, **changes), owner)


def make_log_request(
    record: Record, owner: SigningKey = PATIENT, time_ms: int = NOW, **changes: Any
) -> CloudLogRequest:
    body = CloudLogBody(CLOUD.public, owner.public, record.views[0].record, 0, time_ms, os.urandom(16))
    return CloudLogRequest.make(msgspec.structs.replace(body, **changes), owner)


def next_version(old: Record, sizes: Sequence[int] = (), keep: int = 99) -> Record:
    """The next version of a record with the first `keep` of its parts and new ones of these sizes."""
    view = old.views[0]
    new = [os.urandom(size) for size in sizes]
    parts = [*old.parts[:keep], *(BlobRef.of(data) for data in new)]
    envelope = make_envelope(view.record, view.version + 1, parts)
    blobs = {BlobRef.of(data).hash: data for data in [envelope, *new]}
    views = [
        View(v.chain_id, v.record, v.version + 1, v.patient, os.urandom(32), (BlobRef.of(envelope),))
        for v in old.views
    ]
    return Record(old.owner, views, parts, blobs)


def parse_download(data: bytes) -> tuple[DownloadHead, list[bytes]]:
    size = int.from_bytes(data[:4], "big")
    head, rest = decode_download_head(data[4 : 4 + size]), data[4 + size :]
    blobs = []
    for ref in head.blobs:
        blobs.append(rest[: ref.size])
        rest = rest[ref.size :]
    assert not rest
    return head, blobs


def files(folder: Path) -> set[str]:
    """Names of all files under `blobs` and `tmp`."""
    return {path.name for part in ("blobs", "tmp") for path in (folder / part).rglob("*") if path.is_file()}


def rows(folder: Path, table: str) -> int:
    with sqlite3.connect(folder / "meta.db") as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def is_empty(folder: Path) -> bool:
    return not files(folder) and not any(rows(folder, table) for table in ("view", "holding", "placing"))


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds; it is looked at often, and not for ever."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("what the test waits for did not come about")
