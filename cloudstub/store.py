"""Where the cloud keeps ciphertext: blobs in a folder, what they belong to in SQLite (paper eq. 5).

    folder/lock        held while a server runs; a second server on the folder is refused
    folder/meta.db     views, who holds which blob for which record, spent nonces, what was erased, a log for each
                       record (WAL, synchronous=FULL)
    folder/blobs/ab/…  one file per blob, named by the SHA-256 of its bytes
    folder/tmp/…       one folder per upload under way, emptied at start

Invariants, at every instant and after a loss of power at any instant:
- A file under `blobs` is whole and was synced before it got its name.
- A view is readable only when all its blobs are under `blobs`: one transaction makes an upload's views
  readable together.
- Whoever asks for a blob asks as a patient and for a record. The same bytes may lie under several patients;
  knowing a hash gives nobody a claim to them.
- Of each record, what was asked of it is listed in a log that is only ever added to, and goes when the record is
  erased. Refusals beyond `REFUSALS_LISTED` an hour are counted, so that nobody can fill the disk with them.
- A file under `blobs` is either held by somebody or listed in `placing`, so a crash between renaming and
  committing, or between committing a deletion and removing files, leaves nothing behind after the next start.
- Of an erased record there remain its counts under a digest of patient, record and a salt of this folder: the
  record cannot come back, and the folder lists neither patient nor record. Who has the folder can still confirm
  a guess of both.

Deleted rows are overwritten with zeros (`secure_delete`) and do not stay in the write-ahead log. Deleted files
are unlinked, not overwritten: on journals, copy-on-write file systems and SSDs that would not reach the old
blocks. These hold ciphertext until the disk uses them again; backups hold it longer.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite
import msgspec

from crypto.codec import encode
from crypto.errors import Conflict, Denied, NotFound, Unauthentic, Unavailable
from protocol.record import (
    BlobRef,
    CloudEntry,
    View,
    decode_cloud_entry,
    decode_envelope,
    decode_view,
    digest,
)

REFUSALS_LISTED = 100
HOUR_MS = 3_600_000
SYNCS = 8
"""Folders that are synced at once."""

_SCHEMA_VERSION = 2
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS view (
    address BLOB PRIMARY KEY, patient BLOB NOT NULL, chain_id TEXT NOT NULL, record BLOB NOT NULL,
    version INTEGER NOT NULL, encoded BLOB NOT NULL,
    UNIQUE (patient, chain_id, record, version)) STRICT;
CREATE TABLE IF NOT EXISTS holding (
    patient BLOB NOT NULL, record BLOB NOT NULL, hash BLOB NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (patient, record, hash)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holding_by_hash ON holding (hash);
CREATE TABLE IF NOT EXISTS placing (hash BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS view_by_record ON view (record);
CREATE TABLE IF NOT EXISTS entry (
    patient BLOB NOT NULL, record BLOB NOT NULL, number INTEGER NOT NULL, encoded BLOB NOT NULL,
    PRIMARY KEY (patient, record, number)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log (
    patient BLOB NOT NULL, record BLOB NOT NULL, count INTEGER NOT NULL, head BLOB NOT NULL,
    hour_ms INTEGER NOT NULL, refused INTEGER NOT NULL, unlisted INTEGER NOT NULL,
    PRIMARY KEY (patient, record)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS salt (salt BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS erased (
    name BLOB PRIMARY KEY, views INTEGER NOT NULL, blobs INTEGER NOT NULL, size INTEGER NOT NULL,
    time_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nonce (
    requester BLOB NOT NULL, nonce BLOB NOT NULL, expires_ms INTEGER NOT NULL,
    PRIMARY KEY (requester, nonce)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonce_by_expiry ON nonce (expires_ms);
PRAGMA user_version = {_SCHEMA_VERSION};
"""


class OverQuota(Denied):
    """The patient's share of the cloud is full."""

    status = 507


@dataclass(frozen=True)
class Quota:
    """What one patient may hold: bytes, and number of blobs."""

    max_bytes: int = 10 << 30
    max_blobs: int = 100_000

    def check(self, size: int, blobs: int) -> None:
        """Raise `OverQuota` unless this much fits."""
        if size > self.max_bytes or blobs > self.max_blobs:
            raise OverQuota(
                f"the quota is {self.max_bytes} bytes in {self.max_blobs} blobs and this upload would need "
                f"{size} bytes in {blobs}; ask the operator of the cloud for more"
            )


@dataclass(frozen=True)
class Deleted:
    """What a deletion took away: views, blobs and their bytes, when."""

    views: int
    blobs: int
    size: int
    time_ms: int


class Staging:
    """The blobs of one upload on their way in: on disk, nobody's yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._syncing: list[asyncio.Future[None]] = []
        self.hashes: set[bytes] = set()

    def path(self, digest: bytes) -> Path:
        return self._folder / digest.hex()

    async def put(self, ref: BlobRef, chunks: AsyncIterator[bytes]) -> None:
        """Write and hash one blob; `Unauthentic` unless the chunks are the bytes that `ref` names."""
        path, hasher, size = self.path(ref.hash), hashlib.sha256(), 0
        async for chunk in chunks:
            # Each step opens the file anew: a cancelled caller leaves its thread running, and a descriptor
            # closed under it could by then be another file's.
            await asyncio.to_thread(_append, path, chunk, hasher)
            size += len(chunk)
        if size != ref.size or hasher.digest() != ref.hash:
            raise Unauthentic(
                "a blob is not the bytes that its hash names: it was changed on the way; send it again"
            )
        # While the next ones arrive: a disk syncs many small files at once in little more time than one.
        self._syncing.append(asyncio.ensure_future(asyncio.to_thread(_sync, path)))
        self.hashes.add(ref.hash)

    async def synced(self) -> None:
        """Wait until all that was put is on disk."""
        await asyncio.gather(*self._syncing)

    async def abandon(self) -> None:
        """Remove what was not published."""
        await asyncio.gather(*self._syncing, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


class BlobStore:
    """An open store; use as `async with BlobStore(folder) as store`.

    Entering raises `Conflict` if another server has the folder or another version wrote it. Methods may be
    called concurrently.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._publishing = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "BlobStore":
        async with AsyncExitStack() as stack:
            lock = await asyncio.to_thread(_claim, self._folder)
            stack.callback(os.close, lock)
            await asyncio.to_thread(_prepare, self._folder)
            self._writer = await stack.enter_async_context(self._connect())
            [(version,)] = await self._writer.execute_fetchall("PRAGMA user_version")
            if not 0 <= version <= _SCHEMA_VERSION:
                raise Conflict(
                    "the data folder was written by another version of the cloud server; run that version"
                )
            await self._writer.executescript(_SCHEMA)
            sql = "INSERT INTO salt SELECT ? WHERE NOT EXISTS (SELECT 1 FROM salt)"
            await self._writer.execute(sql, (os.urandom(32),))
            [(self._salt,)] = await self._writer.execute_fetchall("SELECT salt FROM salt")
            # Readers have their own connection, so they never see what a transaction has not yet committed.
            self._reader = await stack.enter_async_context(self._connect())
            await self._remove_unheld()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._publishing, self._writing:
            await self._stack.aclose()

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(self._folder / "meta.db", isolation_level=None) as db:
            await db.execute("PRAGMA journal_mode = WAL")
            await db.execute("PRAGMA synchronous = FULL")
            await db.execute("PRAGMA secure_delete = ON")
            yield db

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._writing:
            await self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                await self._writer.execute("COMMIT")
            except BaseException:
                await self._writer.rollback()
                raise

    def path(self, digest: bytes) -> Path:
        name = digest.hex()
        return Path(f"{self._folder}/blobs/{name[:2]}/{name}")

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[Staging]:
        """A place for the blobs of one upload; what was not published is removed on leaving."""
        folder = self._folder / "tmp" / os.urandom(16).hex()
        folder.mkdir(mode=0o700)
        staging = Staging(folder)
        try:
            yield staging
        finally:
            await staging.abandon()

    async def view(self, address: bytes) -> View | None:
        rows = await self._select(self._reader, "SELECT encoded FROM view WHERE address = ?", address)
        return decode_view(rows[0][0]) if rows else None

    async def versions(self, chain_id: str, record: bytes) -> dict[bytes, int]:
        """The newest version of a record on a chain, for each patient who stores one under this id."""
        sql = "SELECT patient, max(version) FROM view WHERE record = ? AND chain_id = ? GROUP BY patient LIMIT 16"
        return {row[0]: row[1] for row in await self._select(self._reader, sql, record, chain_id)}

    async def held(self, patient: bytes, record: bytes) -> dict[bytes, int]:
        """Hash and size of every blob that this patient holds for this record."""
        sql = "SELECT hash, size FROM holding WHERE patient = ? AND record = ?"
        return {row[0]: row[1] for row in await self._select(self._reader, sql, patient, record)}

    async def usage(self, patient: bytes) -> tuple[int, int]:
        """Bytes and number of blobs that this patient holds."""
        return await self._usage(self._reader, patient)

    async def check_version(self, view: View) -> None:
        """Raise `Conflict` if the patient has another view of this record version on this chain, or a later version, or has
        erased the record."""
        await self._is_stored(self._reader, view)

    async def use_nonce(self, requester: bytes, nonce: bytes, expires_ms: int, now_ms: int) -> bool:
        """Spend a nonce; False if it was spent before. It is forgotten once `now_ms` is past `expires_ms`."""
        return await asyncio.shield(self._use_nonce(requester, nonce, expires_ms, now_ms))

    async def admit(
        self, patient: bytes, record: bytes, entry: CloudEntry, nonce: bytes, expires_ms: int
    ) -> bool:
        """Spend the nonce of a request that is served now and list it in the record's log, durably; False if the nonce was
        spent before. `NotFound` if the record was deleted meanwhile: nothing is written about it any more."""
        return await asyncio.shield(self._admit(patient, record, entry, nonce, expires_ms))

    async def refuse(self, patient: bytes, record: bytes, entry: CloudEntry) -> None:
        """List a refusal in the record's log, or count it where too many are listed already; not for a deleted record."""
        await asyncio.shield(self._refuse(patient, record, entry))

    async def log_page(
        self, patient: bytes, record: bytes, after: int, limit: int
    ) -> tuple[list[CloudEntry], int, bytes]:
        """At most `limit` entries of a record's log after the first `after`, how many there are in all, and their head."""
        count, head, *_ = await self._log_row(self._reader, patient, record)
        sql = (
            "SELECT encoded FROM entry WHERE patient = ? AND record = ? AND number > ? AND number <= ? "
            "ORDER BY number LIMIT ?"
        )
        found = await self._select(self._reader, sql, patient, record, after, count, limit)
        return [decode_cloud_entry(row[0]) for row in found], count, head

    async def publish(
        self,
        views: Sequence[View],
        holdings: Iterable[tuple[bytes, BlobRef]],
        staging: Staging,
        quota: Quota,
    ) -> None:
        """Make `views`, all of one patient, and the (record, blob) pairs they need readable, all or nothing.

        Durable on return. Views that are already there stay as they are. Raises `Conflict` as `check_version`, and if
        a blob that was not sent along is held no more, `OverQuota` if the patient would then hold too much.
        """
        await staging.synced()
        # A caller that is cancelled must not leave half a transaction on the shared connection.
        await asyncio.shield(self._publish(views, holdings, staging, quota))

    async def _publish(
        self,
        views: Sequence[View],
        holdings: Iterable[tuple[bytes, BlobRef]],
        staging: Staging,
        quota: Quota,
    ) -> None:
        patient = views[0].patient
        async with self._publishing:
            async with self._transaction() as db:
                await db.executemany(
                    "INSERT OR IGNORE INTO placing VALUES (?)", [(h,) for h in staging.hashes]
                )
            try:
                await asyncio.to_thread(self._place, staging)
                async with self._transaction() as db:
                    for view in views:
                        if not await self._is_stored(db, view):
                            row = (
                                view.address,
                                patient,
                                view.chain_id,
                                view.record,
                                view.version,
                                encode(view),
                            )
                            await db.execute("INSERT INTO view VALUES (?, ?, ?, ?, ?, ?)", row)
                    for record, ref in holdings:
                        if ref.hash not in staging.hashes and not await self._holds(db, patient, record, ref):
                            raise Conflict(
                                "an earlier version of the record was deleted meanwhile; send the upload again"
                            )
                    rows = [(patient, record, ref.hash, ref.size) for record, ref in holdings]
                    await db.executemany("INSERT OR IGNORE INTO holding VALUES (?, ?, ?, ?)", rows)
                    quota.check(*await self._usage(db, patient))
                    await db.execute("DELETE FROM placing WHERE hash IN (SELECT hash FROM holding)")
            except BaseException:
                await self._remove_unheld()
                raise

    async def delete(self, patient: bytes, record: bytes, before: int | None, now_ms: int) -> Deleted:
        """Delete all that this patient has of a record, for good, or only the versions `before` one and what they alone
        need. Durable on return; doing it again gives the same answer for a whole record.

        Raises `Conflict` if no later version would remain, `Unavailable` if the envelopes that remain cannot be read.
        """
        return await asyncio.shield(self._delete(patient, record, before, now_ms))

    async def _delete(self, patient: bytes, record: bytes, before: int | None, now_ms: int) -> Deleted:
        async with self._publishing:
            async with self._transaction() as db:
                deleted = await self._forget(db, patient, record, before, now_ms)
            await self._remove_unheld()
            return deleted

    async def _forget(
        self, db: aiosqlite.Connection, patient: bytes, record: bytes, before: int | None, now_ms: int
    ) -> Deleted:
        name = self._erased_name(patient, record)
        sql = "SELECT views, blobs, size, time_ms FROM erased WHERE name = ?"
        if earlier := await self._select(db, sql, name):
            return Deleted(*earlier[0])
        sql = "SELECT encoded FROM view WHERE patient = ? AND record = ?"
        views = [decode_view(row[0]) for row in await self._select(db, sql, patient, record)]
        going = [view for view in views if before is None or view.version < before]
        kept = [view for view in views if view not in going]
        if before is not None and not {v.chain_id for v in going} <= {v.chain_id for v in kept}:
            raise Conflict(f"no version from {before} on is stored, and this never deletes the last one")
        needed = await asyncio.to_thread(self._needed, kept)
        sql = "SELECT hash, size FROM holding WHERE patient = ? AND record = ?"
        held = await self._select(db, sql, patient, record)
        lost = {row[0]: row[1] for row in held if row[0] not in needed}
        deleted = Deleted(len(going), len(lost), sum(lost.values()), now_ms)
        await db.executemany("DELETE FROM view WHERE address = ?", [(view.address,) for view in going])
        sql = "DELETE FROM holding WHERE patient = ? AND record = ? AND hash = ?"
        await db.executemany(sql, [(patient, record, hash_) for hash_ in lost])
        await db.executemany("INSERT OR IGNORE INTO placing VALUES (?)", [(hash_,) for hash_ in lost])
        if before is None:
            for table in ("entry", "log"):
                await db.execute(f"DELETE FROM {table} WHERE patient = ? AND record = ?", (patient, record))  # noqa: S608
        if before is None and held:  # else anybody could fill the table with names of their own
            row = (name, deleted.views, deleted.blobs, deleted.size, now_ms)
            await db.execute("INSERT INTO erased VALUES (?, ?, ?, ?, ?)", row)
        return deleted

    def _needed(self, views: Iterable[View]) -> set[bytes]:
        """The hashes of all blobs that these views need."""
        envelopes = {ref for view in views for ref in view.envelopes}
        needed = {ref.hash for ref in envelopes}
        for ref in envelopes:
            envelope = decode_envelope(read_whole(self.path(ref.hash), ref))
            needed |= {part.blob.hash for part in envelope.parts}
        return needed

    def _erased_name(self, patient: bytes, record: bytes) -> bytes:
        return digest("erased", encode((self._salt, patient, record)))

    def _place(self, staging: Staging) -> None:
        for name in staging.hashes:
            staging.path(name).rename(self.path(name))
        with ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, {self.path(name).parent for name in staging.hashes}))

    async def _remove_unheld(self) -> None:
        """Remove what an unfinished publication put in place, and what a deletion has left to nobody.

        Runs at start and under `_publishing`, so no other publication counts on these files.
        """
        sql = "SELECT hash FROM placing WHERE hash NOT IN (SELECT hash FROM holding)"
        async with self._writing:
            paths = [self.path(row[0]) for row in await self._writer.execute_fetchall(sql)]
        await asyncio.to_thread(_unlink, paths)
        async with self._transaction() as db:
            await db.execute("DELETE FROM placing")
        async with self._writing:
            await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")

    async def _use_nonce(self, requester: bytes, nonce: bytes, expires_ms: int, now_ms: int) -> bool:
        async with self._transaction() as db:
            return await self._spend(db, requester, nonce, expires_ms, now_ms)

    async def _admit(
        self, patient: bytes, record: bytes, entry: CloudEntry, nonce: bytes, expires_ms: int
    ) -> bool:
        async with self._transaction() as db:
            if not await self._has(db, patient, record):
                raise NotFound("the record was deleted meanwhile", "unknown-address")
            if not await self._spend(db, entry.requester, nonce, expires_ms, entry.time_ms):
                return False
            await self._append(db, patient, record, entry, await self._log_row(db, patient, record))
            return True

    async def _refuse(self, patient: bytes, record: bytes, entry: CloudEntry) -> None:
        async with self._transaction() as db:
            if not await self._has(db, patient, record):
                return
            count, head, hour_ms, refused, unlisted = await self._log_row(db, patient, record)
            if entry.time_ms >= hour_ms + HOUR_MS:
                hour_ms, refused = entry.time_ms, 0
            if refused < REFUSALS_LISTED:
                row = (count, head, hour_ms, refused + 1, unlisted)
                await self._append(db, patient, record, entry, row)
            else:
                row = (count, head, hour_ms, refused, unlisted + 1)
                await self._write_log_row(db, patient, record, row)

    async def _append(
        self,
        db: aiosqlite.Connection,
        patient: bytes,
        record: bytes,
        entry: CloudEntry,
        row: tuple[int, bytes, int, int, int],
    ) -> None:
        count, head, hour_ms, refused, unlisted = row
        entry = msgspec.structs.replace(entry, unlisted=unlisted)
        await db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (patient, record, count + 1, encode(entry)))
        row = (count + 1, entry.head_after(head), hour_ms, refused, 0)
        await self._write_log_row(db, patient, record, row)

    async def _log_row(
        self, db: aiosqlite.Connection, patient: bytes, record: bytes
    ) -> tuple[int, bytes, int, int, int]:
        """Of a record's log: entries, head, the hour that refusals are counted in, refusals listed in it, refusals not listed
        since the last entry."""
        sql = "SELECT count, head, hour_ms, refused, unlisted FROM log WHERE patient = ? AND record = ?"
        rows = await self._select(db, sql, patient, record)
        count, head, hour_ms, refused, unlisted = rows[0] if rows else (0, bytes(32), 0, 0, 0)
        return count, head, hour_ms, refused, unlisted

    @staticmethod
    async def _write_log_row(
        db: aiosqlite.Connection, patient: bytes, record: bytes, row: tuple[int, bytes, int, int, int]
    ) -> None:
        await db.execute("INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", (patient, record, *row))

    @staticmethod
    async def _spend(
        db: aiosqlite.Connection, requester: bytes, nonce: bytes, expires_ms: int, now_ms: int
    ) -> bool:
        await db.execute("DELETE FROM nonce WHERE expires_ms < ?", (now_ms,))
        cursor = await db.execute(
            "INSERT OR IGNORE INTO nonce VALUES (?, ?, ?)", (requester, nonce, expires_ms)
        )
        return cursor.rowcount == 1

    async def _is_stored(self, db: aiosqlite.Connection, view: View) -> bool:
        sql = "SELECT address, version FROM view WHERE patient = ? AND chain_id = ? AND record = ? AND version >= ?"
        rows = await self._select(db, sql, view.patient, view.chain_id, view.record, view.version)
        stored = {row[1]: row[0] for row in rows}
        if view.version in stored and stored[view.version] != view.address:
            raise Conflict(
                "another view of this record version is stored for this chain; publish a new version instead",
                "other-view",
            )
        if rows and view.version not in stored:
            raise Conflict(
                "a later version of the record is stored already; publish a new one", "other-version"
            )
        name = self._erased_name(view.patient, view.record)
        if await self._select(db, "SELECT 1 FROM erased WHERE name = ?", name):
            raise Conflict("the record was erased for good; nothing is stored under its id again", "erased")
        return bool(rows)

    async def _has(self, db: aiosqlite.Connection, patient: bytes, record: bytes) -> bool:
        sql = "SELECT 1 FROM holding WHERE patient = ? AND record = ? LIMIT 1"
        return bool(await self._select(db, sql, patient, record))

    async def _holds(self, db: aiosqlite.Connection, patient: bytes, record: bytes, ref: BlobRef) -> bool:
        sql = "SELECT 1 FROM holding WHERE patient = ? AND record = ? AND hash = ?"
        return bool(await self._select(db, sql, patient, record, ref.hash))

    async def _usage(self, db: aiosqlite.Connection, patient: bytes) -> tuple[int, int]:
        sql = "SELECT coalesce(sum(size), 0), count(*) FROM holding WHERE patient = ?"
        [(size, blobs)] = await self._select(db, sql, patient)
        return size, blobs

    @staticmethod
    async def _select(db: aiosqlite.Connection, sql: str, *parameters: object) -> list[aiosqlite.Row]:
        return list(await db.execute_fetchall(sql, parameters))


def read_whole(path: Path, ref: BlobRef) -> bytes:
    """A small blob, or `Unavailable` if the file no longer is what its name says."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).digest() != ref.hash:
        raise _damaged()
    return data


def check_size(path: Path, ref: BlobRef) -> None:
    """Raise `Unavailable` unless the file is there with the size that `ref` says."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    if size != ref.size:
        raise _damaged()


def read_chunk(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)  # a record has thousands of these: open() takes twice as long
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _damaged() -> Unavailable:
    return Unavailable(
        "the cloud's copy of a blob is damaged; tell its operator, and let the patient upload again",
        "damaged",
    )


def _append(path: Path, chunk: bytes, hasher: "hashlib._Hash") -> None:
    hasher.update(chunk)
    with open(path, "ab", opener=_private) as file:
        file.write(chunk)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        _sync(folder)


def _claim(folder: Path) -> int:
    """Make the folder if need be and lock it; the descriptor holds the lock."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Conflict(
            "another cloud server uses this data folder; stop it or choose another folder"
        ) from None
    return lock


def _prepare(folder: Path) -> None:
    """Remove what uploads cut short by a crash left; make the folders, and a database file for us alone."""
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir(mode=0o700)
    (folder / "blobs").mkdir(mode=0o700, exist_ok=True)
    for prefix in range(256):
        (folder / "blobs" / f"{prefix:02x}").mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(folder / "meta.db", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    _sync(folder / "blobs")
    _sync(folder)
