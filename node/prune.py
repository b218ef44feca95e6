"""Moving the bodies of old blocks out of a journal: headers, skips and certificates stay, so history stays provable and linked.

What a node still needs keeps its body: blocks that the ledger has not executed, and those so young that a transaction in them could be
sent again and must be known as a replay. The archive is an SQLite file with the whole blocks: archive(height, id, data). Anyone can check it:
the id is the digest of the header, whose `tx_root` commits to the body.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from crypto.codec import encode
from crypto.errors import Conflict, Malformed, NotFound, Unavailable
from node.store import JOURNAL, LEDGER, FolderLock, connect, pruned_height
from protocol.block import decode_block
from protocol.genesis import Genesis
from protocol.tx import MAX_LIFETIME_MS

BATCH = 200


@contextmanager
def disk_troubles(path: Path) -> Iterator[None]:
    """What the operating system and SQLite report about `path`, as refusals."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"{path} cannot be read or written now ({error}); check the disk and try again"
        ) from None
    except sqlite3.DatabaseError as error:
        raise Malformed(f"{path} is damaged ({error}); use another copy") from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read or written ({error.strerror}); check the disk") from None


def prune(data: Path, archive: Path, genesis: Genesis, keep_ms: int) -> tuple[int, int]:
    """Move bodies older than `keep_ms` before the tip, of a node that does not run, from `data` into `archive` (made, or grown
    by what is not in it). Returns the first and last height moved, first > last if there was nothing.

    A body leaves the journal only when it is durable in the archive; after an interruption do it again. Raises `Conflict` if
    the node runs, `NotFound` if it has no databases, `Malformed` if they or the archive are of another chain or damaged.
    """
    for name in (JOURNAL, LEDGER):
        if not (data / name).is_file():
            raise NotFound(f"{data} holds no {name}: the node has never run with it; check the config")
    lock = FolderLock(data)
    try:
        with disk_troubles(data), closing(connect(data / JOURNAL)) as journal:
            if journal.execute("SELECT value FROM meta WHERE name = 'genesis'").fetchone() != (genesis.hash,):
                raise Conflict(f"{data} holds the data of another chain; check the config")
            with closing(sqlite3.connect(data / LEDGER)) as ledger:
                (executed,) = ledger.execute("SELECT COALESCE(MAX(height), 0) FROM executed").fetchone()
            first = pruned_height(journal) + 1
            last = last_unneeded(journal, executed, keep_ms)
            if first <= last:
                with disk_troubles(archive), closing(_open_archive(archive, genesis)) as kept:
                    drop_bodies(journal, last, kept)
                journal.execute("VACUUM")
            return first, last
    finally:
        lock.release()


def last_unneeded(journal: sqlite3.Connection, executed: int, keep_ms: int = 0) -> int:
    """The highest height up to which a node runs on without the bodies."""
    query = "SELECT height, time_ms FROM final ORDER BY height DESC LIMIT 1"
    tip = journal.execute(query).fetchone()
    if tip is None:
        return 0
    young = journal.execute(
        "SELECT COALESCE(MIN(height), ?) FROM final WHERE time_ms > ?",
        (tip[0] + 1, tip[1] - max(keep_ms, MAX_LIFETIME_MS)),
    ).fetchone()[0]
    return int(min(young - 1, executed))


def drop_bodies(journal: sqlite3.Connection, last: int, archive: sqlite3.Connection | None) -> None:
    """Take the bodies up to height `last` out of an open journal, after writing them to `archive` if there is one."""
    query = (
        "SELECT f.height, f.id, b.data FROM final f JOIN blocks b ON b.id = f.id"
        " WHERE f.height BETWEEN ? AND ? ORDER BY f.height"
    )
    while (first := pruned_height(journal) + 1) <= last:
        until = min(last, first + BATCH - 1)
        rows = journal.execute(query, (first, until)).fetchall()
        if len(rows) != until - first + 1:
            raise Malformed(
                f"the journal lacks blocks between heights {first} and {until}: its files are damaged"
            )
        blocks = [(block_id, decode_block(data)) for _, block_id, data in rows]
        if archive:
            with archive:
                archive.executemany("INSERT OR IGNORE INTO archive VALUES (?, ?, ?)", rows)
            held = "SELECT height, id, data FROM archive WHERE height BETWEEN ? AND ? ORDER BY height"
            if archive.execute(held, (first, until)).fetchall() != rows:
                raise Malformed(
                    f"the archive holds other blocks between heights {first} and {until}; name a new file"
                )
        journal.execute("BEGIN IMMEDIATE")
        with journal:
            bare = [(encode(msgspec.structs.replace(b, txs=())), block_id) for block_id, b in blocks]
            journal.executemany("UPDATE blocks SET data = ? WHERE id = ?", bare)
            journal.execute("INSERT OR REPLACE INTO meta VALUES ('pruned', ?)", (encode(until),))


def _open_archive(path: Path, genesis: Genesis) -> sqlite3.Connection:
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    db = sqlite3.connect(path)
    try:
        db.execute("PRAGMA synchronous=FULL")
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS chain (genesis BLOB PRIMARY KEY)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS archive (height INTEGER PRIMARY KEY, id BLOB NOT NULL, data BLOB NOT NULL)"
            )
            db.execute("INSERT OR IGNORE INTO chain VALUES (?)", (genesis.hash,))
            if db.execute("SELECT COUNT(*) FROM chain").fetchone() != (1,):
                raise Conflict(f"{path} is the archive of another chain; name another file")
    except BaseException:
        db.close()
        raise
    return db
