"""Backups and snapshots of a node that runs: both databases, consistent with each other, with a manifest; and their way into an empty
data folder.

A copy of the journal is marked `restored` from its first moment, so that no node votes by it before it has rejoined: the key may have
signed since, and would sign against itself. The ledger is copied before the journal, which is always at or ahead of it, so a restored
node executes what is missing and nothing twice. Copies hold what all members of the chain see and no private key.

A snapshot is a backup without the bodies of old blocks, with which a new member starts without replaying years. What an import proves:
every header links to genesis, each epoch was handed over by its own members, and a quorum of the present ones has finalized the last block;
bodies and receipts are those of the headers and of the receipts root.
the contract's state is that of the state root at the height executed. What it cannot prove: the roots themselves are no part of a block.
The manifest names both: compare them with the checkpoint that the other nodes sign for this height (`/v1/checkpoint/HEIGHT`). The state roots of
earlier heights, which the node will sign when it is asked for a receipt of then, are the exporter's word: take a snapshot from a node you
trust, or let the node replay the chain.
"""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from configs.files import read, write
from crypto.codec import Short
from crypto.errors import Conflict, Malformed, NotFound, Unauthentic, Unavailable
from node.ledger import KEPT_TABLES
from node.ledger import SCHEMA as LEDGER_SCHEMA
from node.prune import disk_troubles, drop_bodies, last_unneeded
from node.store import JOURNAL, LEDGER, FolderLock, pruned_height
from node.store import SCHEMA as JOURNAL_SCHEMA
from protocol import merkle
from protocol.block import Committee, Header, decode_block, decode_certificate
from protocol.contract import decode_receipt, next_root
from protocol.epochs import decode_handover, follow
from protocol.genesis import Genesis
from protocol.state_tree import (
    BUCKETS,
    PAIR,
    StateTree,
    bucket_hash,
    bucket_of,
    key_hash,
    value_hash,
    value_in,
)

MANIFEST = "manifest.json"
MAX_VALUE = 8 << 20
"""Bytes of one value in a database of a backup."""
_Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds: `height` and `block` of the last final block, what the ledger has executed, a SHA-256 per file."""

    format: Literal["diptych/backup/1"]
    kind: Literal["backup", "snapshot"]
    chain_id: Short
    genesis: _Hash
    node: Short
    height: Annotated[int, msgspec.Meta(ge=0)]
    block: _Hash
    executed_height: Annotated[int, msgspec.Meta(ge=0)]
    receipts_root: _Hash
    state_root: _Hash
    journal_sha256: _Hash
    ledger_sha256: _Hash


def backup(data: Path, out: Path, genesis: Genesis, node: str, *, is_snapshot: bool = False) -> Manifest:
    """Copy the databases in `data`, whose node may be running and goes on, into the new folder `out`; a snapshot without what
    only this node needs: bodies of old blocks, its own votes.

    Raises `Conflict` if `out` exists, `NotFound` if there is nothing to copy, `Unavailable` if the disk does not let it or the
    node is still catching up.
    """
    if out.exists():
        raise Conflict(f"{out} exists already and is not overwritten; name a new folder")
    for name in (JOURNAL, LEDGER):
        if not (data / name).is_file():
            raise NotFound(f"{data} holds no {name}: the node has never run with it; check the config")
    with _new_folder(out) as folder:
        _copy(data / LEDGER, folder / LEDGER)  # before the journal, see above
        _copy(data / JOURNAL, folder / JOURNAL)
        _mark(folder / JOURNAL, genesis)
        _forget_hashes(folder / LEDGER)
        if is_snapshot:
            _lighten(folder)
        (height, block), (executed, root, state) = _verify(folder / JOURNAL, folder / LEDGER, genesis)
        manifest = Manifest(
            "diptych/backup/1",
            "snapshot" if is_snapshot else "backup",
            genesis.chain_id,
            genesis.hash.hex(),
            node,
            height,
            block.hex(),
            executed,
            root.hex(),
            state.hex(),
            _sealed(folder / JOURNAL),
            _sealed(folder / LEDGER),
        )
        write(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


def restore(source: Path, data: Path, genesis: Genesis, node: str) -> Manifest:
    """Put a backup or snapshot into the empty data folder of `node`, which is not running; its next start needs `--rejoin`.

    Raises `Conflict` if the folder is in use or holds a database or the backup is another node's, `Unauthentic` if it was
    changed or does not hold together, `Malformed` if it is none or is of another chain.
    """
    try:
        manifest = msgspec.json.decode(read(source / MANIFEST), type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"{source / MANIFEST} is no manifest of a backup: {error}") from None
    if manifest.genesis != genesis.hash.hex():
        raise Malformed(
            f"{source} is of the chain {manifest.chain_id} with another genesis; get the right backup"
        )
    if manifest.kind == "backup" and manifest.node != node:
        raise Conflict(
            f"{source} is the backup of {manifest.node}, with its votes; give {node} a snapshot of it"
        )
    lock = FolderLock(data)
    try:
        for name in (JOURNAL, LEDGER):
            if (data / name).exists():
                raise Conflict(
                    f"{data / name} exists and is not overwritten; move the data folder away if it is to be replaced"
                )
        copies = {JOURNAL: manifest.journal_sha256, LEDGER: manifest.ledger_sha256}
        try:
            for name, expected in copies.items():
                with disk_troubles(source):
                    shutil.copyfile(source / name, data / f".{name}.new")
                os.chmod(data / f".{name}.new", 0o600)
                if _sealed(data / f".{name}.new") != expected:
                    raise Unauthentic(
                        f"{source / name} is not the file of its manifest: it is damaged or was changed"
                    )
            found = _verify(data / f".{JOURNAL}.new", data / f".{LEDGER}.new", genesis)
            (height, block), (executed, root, state) = found
            told = (
                *(manifest.height, manifest.block, manifest.executed_height),
                *(manifest.receipts_root, manifest.state_root),
            )
            if (height, block.hex(), executed, root.hex(), state.hex()) != told:
                raise Unauthentic(f"{source} is not what its manifest says: it was changed")
            _mark(data / f".{JOURNAL}.new", genesis)
            if manifest.kind == "snapshot":
                _keep_final(data / f".{JOURNAL}.new")
            # The journal first: a ledger alone would let a fresh journal begin.
            for name in copies:
                os.replace(data / f".{name}.new", data / name)
            _sync_folder(data)
        finally:
            for name in copies:
                (data / f".{name}.new").unlink(missing_ok=True)
    finally:
        lock.release()
    return manifest


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears as `out` once it is whole, or not at all."""
    building = out.with_name(f".{out.name}.{os.getpid()}.new")
    with disk_troubles(out):
        building.mkdir(mode=0o700, parents=True)
    try:
        yield building
        with disk_troubles(out):
            _sync_folder(building)
            building.rename(out)
            _sync_folder(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """One state of a database, whatever its node writes meanwhile: the whole copy is one read transaction."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with (
        disk_troubles(source),
        closing(sqlite3.connect(uri, uri=True, timeout=30)) as from_db,
        closing(sqlite3.connect(target)) as to_db,
    ):
        from_db.backup(to_db)
        to_db.execute("PRAGMA journal_mode=DELETE")  # a copy is one file


def _mark(journal: Path, genesis: Genesis) -> None:
    """Mark a copy of a journal as restored."""
    with disk_troubles(journal), closing(sqlite3.connect(journal)) as db, db:
        if db.execute("SELECT value FROM meta WHERE name = 'genesis'").fetchone() != (genesis.hash,):
            raise Malformed(f"{journal} is of another chain than the genesis; check the config")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('restored', x'01')")


def _forget_hashes(ledger: Path) -> None:
    """Take out of a copy of a ledger what a node finds its tree again by: it makes that anew."""
    with disk_troubles(ledger), closing(sqlite3.connect(ledger)) as db, db:
        for table in KEPT_TABLES:
            db.execute(f"DELETE FROM {table}")  # noqa: S608


def _lighten(folder: Path) -> None:
    """Make the copies in `folder` a snapshot."""
    _keep_final(folder / JOURNAL)
    with (
        disk_troubles(folder),
        closing(sqlite3.connect(folder / JOURNAL, isolation_level=None)) as journal,
        closing(sqlite3.connect(folder / LEDGER)) as ledger,
    ):
        (executed,) = ledger.execute("SELECT COALESCE(MAX(height), 0) FROM executed").fetchone()
        drop_bodies(journal, last_unneeded(journal, executed), None)
        journal.execute("VACUUM")


def _keep_final(journal: Path) -> None:
    """Take out of a journal what is one node's own (another would take those votes for its own) and what a node would believe at
    its start without checking it again."""
    with disk_troubles(journal), closing(sqlite3.connect(journal)) as db, db:
        for table in ("votes", "certificates", "evidence"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608
        db.execute("DELETE FROM blocks WHERE id NOT IN (SELECT id FROM final)")
        db.execute("DELETE FROM meta WHERE name NOT IN ('genesis', 'restored', 'pruned', 'halted')")


def _verify(
    journal: Path, ledger: Path, genesis: Genesis
) -> tuple[tuple[int, bytes], tuple[int, bytes, bytes]]:
    """Height and id of the last block, height and roots (receipts, state) of what is executed, of two databases that hold together as the module
    promises; nothing in them has been believed before."""
    with (
        disk_troubles(journal),
        closing(sqlite3.connect(journal)) as blocks,
        closing(sqlite3.connect(ledger)) as receipts,
    ):
        for db, schema in ((blocks, JOURNAL_SCHEMA), (receipts, LEDGER_SCHEMA)):
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
            db.execute("PRAGMA trusted_schema=OFF")
            _check_schema(db, schema)
            if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise Malformed("a database of the backup is damaged; take another backup")
        if blocks.execute("SELECT value FROM meta WHERE name = 'genesis'").fetchone() != (genesis.hash,):
            raise Malformed(f"{journal} is of another chain than the genesis; get the right one")
        for table in KEPT_TABLES:
            if receipts.execute(f"SELECT COUNT(*) FROM {table}").fetchone() != (0,):  # noqa: S608
                raise Unauthentic("the ledger of the backup brings a tree of its own; take another backup")
        ids = _block_ids(blocks, genesis)
        executed, root = _receipts_root(receipts, ids)
        state = _state_root(receipts, executed)
        if pruned_height(blocks) > last_unneeded(blocks, executed):
            raise Unauthentic("bodies that a node needs are missing; take another backup")
    return (len(ids) - 1, ids[-1]), (executed, root, state)


def _block_ids(journal: sqlite3.Connection, genesis: Genesis) -> list[bytes]:
    """The ids of all blocks by height, from genesis on: links and bodies checked, the members followed from epoch to epoch, the last
    block proved final."""
    committee, pruned, view, ids = Committee(genesis), pruned_height(journal), 0, [genesis.hash]
    certificate: object = None
    for row in journal.execute(
        "SELECT f.height, f.id, f.time_ms, f.epoch, f.view, b.epoch, b.view, b.data, f.certificate"
        " FROM final f LEFT JOIN blocks b ON b.id = f.id ORDER BY f.height"
    ):
        block = decode_block(_blob(row[7]))
        header, certificate = block.header, row[8]
        place = (header.epoch, header.view)
        is_linked = (header.height, header.parent, header.parent_view) == (len(ids), ids[-1], view)
        is_of_epoch = header.epoch == committee.epoch and header.validators_hash == committee.validators_hash
        is_bare = header.height <= pruned and not block.txs
        has_body = header.tx_count == len(block.txs) and header.tx_root == merkle.root(block.txs)
        if (
            (header.height, header.id, header.time_ms, *place, *place) != row[:7]
            or not (is_linked and is_of_epoch and header.view > view and (is_bare or has_body))
            or not committee.is_legal_parent(header.parent_view, header.view, block.skips)
            or not all(map(committee.is_valid_certificate, block.skips))
        ):
            raise Unauthentic(
                f"the block after height {len(ids) - 1} does not belong there; take another backup"
            )
        view = header.view
        ids.append(header.id)
        if header.next_validators_hash != committee.validators_hash:
            committee, view = _next_committee(journal, committee, header), 0
    if journal.execute("SELECT COUNT(*) FROM epochs").fetchone() != (committee.epoch,):
        raise Unauthentic("there are ends of epochs that no block brings; take another backup")
    if view:
        if certificate is None:
            raise Unavailable(
                "the node is catching up, its last block has no proof yet; try again in a minute"
            )
        proof = decode_certificate(_blob(certificate))
        is_of_tip = (proof.kind, proof.view, proof.block) == ("finalize", view, ids[-1])
        if not is_of_tip or not committee.is_valid_certificate(proof):
            raise Unauthentic("the finalization of the last block does not hold; take another backup")
    return ids


def _next_committee(journal: sqlite3.Connection, committee: Committee, last: Header) -> Committee:
    """The committee after the one whose last block has the header `last`, proved by the handover kept with it."""
    query = "SELECT height, handover FROM epochs WHERE epoch = ?"
    height, data = journal.execute(query, (committee.epoch,)).fetchone() or (None, None)
    handover = decode_handover(_blob(data))
    if (height, handover.header) != (last.height, last):
        raise Unauthentic(
            f"epoch {committee.epoch} ends otherwise than its last block says; take another backup"
        )
    return follow(committee, handover)


def _receipts_root(ledger: sqlite3.Connection, ids: list[bytes]) -> tuple[int, bytes]:
    """The height executed and the running root there, made anew from the receipts and the block ids."""
    rows = ledger.execute(
        "SELECT tx, height, position, record, kind, data FROM receipts ORDER BY height, position"
    )
    told = ledger.execute("SELECT height, root FROM executed ORDER BY height").fetchall()
    height, root, row = 0, ids[0], rows.fetchone()
    if told[:1] != [(height, root)]:
        raise Unauthentic("the ledger is of another chain; take another backup")
    if len(told) > len(ids):
        raise Unauthentic("the ledger is ahead of the journal; take another backup")
    for height, block_id in enumerate(ids[1 : len(told)], 1):
        receipts = []
        while row is not None and row[1] == height:
            receipt = decode_receipt(_blob(row[5]))
            if (receipt.tx, receipt.height, receipt.position, receipt.record, receipt.kind) != row[:5]:
                raise Unauthentic(f"a receipt of height {height} is filed wrongly; take another backup")
            receipts.append(receipt)
            row = rows.fetchone()
        root = next_root(root, block_id, receipts)
        if told[height] != (height, root):
            raise Unauthentic(
                f"the receipts of height {height} are not those of their root; take another backup"
            )
    if row is not None:
        raise Unauthentic("there are receipts of blocks that were not executed; take another backup")
    return height, root


def _state_root(ledger: sqlite3.Connection, executed: int) -> bytes:
    """The root of the state at the height executed, made anew; each value is in its bucket, and nothing else is in any."""
    wrong = Unauthentic("the contract's state is not that of its root; take another backup")
    hashes: dict[int, bytes] = {}
    size = count = 0
    for number, pairs in ledger.execute("SELECT number, pairs FROM buckets"):
        if not 0 <= number < BUCKETS:
            raise wrong
        hashes[number] = bucket_hash(_blob(pairs))
        size += len(pairs)
    root = StateTree(hashes.items()).root
    if ledger.execute("SELECT state FROM executed WHERE height = ?", (executed,)).fetchone() != (root,):
        raise wrong
    del hashes
    query = "SELECT pairs FROM buckets WHERE number = ?"
    for key, value in ledger.execute("SELECT key, value FROM state"):
        hashed = key_hash(_blob(key))
        (pairs,) = ledger.execute(query, (bucket_of(hashed),)).fetchone() or (b"",)
        if value_in(pairs, hashed) != value_hash(_blob(value)):
            raise wrong
        count += 1
    if size != count * PAIR:
        raise wrong
    return root


def _blob(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise Unauthentic("a row is missing or of the wrong type; take another backup")
    return value


def _check_schema(db: sqlite3.Connection, schema: str) -> None:
    """Exactly our tables and indexes: a view or trigger of a stranger would run in our node."""
    query = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(schema)
        if db.execute(query).fetchall() != fresh.execute(query).fetchall():
            raise Malformed(
                "a database of the backup is of another version or was changed; take another backup"
            )


def _sealed(path: Path) -> str:
    """The SHA-256 of a file that is on the disk by then."""
    with disk_troubles(path), path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
