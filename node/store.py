"""The consensus journal of one node, in SQLite (WAL; synchronous=FULL for what must survive a power cut).

All methods are synchronous. `apply` is one transaction per step of the core; the daemon sends nothing of a step before it returns. `page` and
`block_at` read over a connection of their own, so that another thread may call them meanwhile. A lock file keeps two processes from voting with one key.
"""

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from configs.files import write
from crypto.codec import Decoder, encode
from crypto.errors import Conflict, NotFound
from protocol.block import (
    Block,
    Certificate,
    Chain,
    Committee,
    Header,
    decode_block,
    decode_certificate,
    decode_vote,
)
from protocol.core import (
    RECOVERABLE,
    Effect,
    EpochEnded,
    Finalized,
    Halted,
    Record,
    Restored,
    SaveAbstention,
    SaveBlock,
    SaveCertificate,
    SaveVote,
    Tip,
    anchor_tip,
)
from protocol.epochs import Handover, decode_handover, follow
from protocol.evidence import Evidence, decode_evidence
from protocol.genesis import Genesis
from protocol.mempool import Pending
from protocol.tx import MAX_LIFETIME_MS, decode_tx

JOURNAL, LEDGER = "consensus.db", "ledger.db"
PAGE_BYTES, PAGE_BLOCKS, MAX_LINKS = 2 << 20, 256, 4096
MAX_VIEW = (1 << 63) - 1
"""The largest integer of SQLite."""
MAX_HANDOVERS = 100
"""Read in one go; an asker comes again for the rest."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS votes (epoch INTEGER, view INTEGER, kind TEXT, data BLOB NOT NULL,
                                  PRIMARY KEY (epoch, view, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (epoch INTEGER, view INTEGER, kind TEXT, data BLOB NOT NULL,
                                         PRIMARY KEY (epoch, view, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (id BLOB PRIMARY KEY, epoch INTEGER NOT NULL, view INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS final (height INTEGER PRIMARY KEY, id BLOB NOT NULL, epoch INTEGER NOT NULL, view INTEGER NOT NULL,
                                  time_ms INTEGER NOT NULL, certificate BLOB);
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, height INTEGER NOT NULL, handover BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS evidence (data BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blocks_by_view ON blocks (epoch, view);
"""


_MARK, _MARK_BYTES = re.compile(rb"([0-9a-f]{32}) ([0-9]{20})\n"), 54
_decode_count = Decoder[int](int, "a height or a count", 16)
_decode_abstention = Decoder[int | None](int | None, "an abstention", 16)  # type: ignore[arg-type]


def connect(path: Path, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> sqlite3.Connection:
    """A connection that may be used from any one thread at a time. FULL: durable after each commit; NORMAL: a power cut may
    undo the last commits, never a part of one."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(f"PRAGMA synchronous={synchronous}")
    return db


def pruned_height(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT value FROM meta WHERE name = 'pruned'").fetchone()
    return _decode_count(row[0]) if row else 0


class FolderLock:
    """Held for the life of the process; a second holder is refused."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise Conflict(f"{folder} is in use by another process; stop that one first") from None

    def release(self) -> None:
        """Safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class _Marker:
    """The file beside a key that names the journal by which the key votes, and how many votes it has cast.

    Held open and locked, so that no two processes vote with one key out of two data folders. The count is written in place, after a
    step with a vote is durable and before the vote is sent, without waiting for the disk: it outlives the process and, but for its
    last half minute, the machine. A journal with fewer votes than that is an old copy.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            write(path, b"")
        self._fd = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise Conflict(f"the key of {path} is in use by another process; stop that one first") from None

    def read(self) -> tuple[str, int] | None:
        """Name of the journal in hex and number of votes; None where no journal was ever bound."""
        text = os.pread(self._fd, 128, 0)
        found = _MARK.fullmatch(text)
        if text and not found:
            raise Conflict(
                "consensus.journal beside the key is damaged, so the votes of this key are unknown: start once with --rejoin"
            )
        return (found[1].decode(), int(found[2])) if found else None

    def write(self, journal: str, votes: int) -> None:
        os.pwrite(self._fd, b"%s %020d\n" % (journal.encode(), votes), 0)

    def sync(self) -> None:
        """Make what was written durable, and all that the file holds."""
        os.ftruncate(self._fd, _MARK_BYTES)
        os.fsync(self._fd)

    def close(self) -> None:
        """Safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Store:
    """`committee` is that of the epoch in which the journal stands."""

    def __init__(self, folder: Path, genesis: Genesis) -> None:
        self._lock = FolderLock(folder)
        self._db = connect(folder / JOURNAL)
        self._db.executescript(SCHEMA)
        self._reader = connect(folder / JOURNAL)
        self._marker: _Marker | None = None
        self._votes = _decode_count(self._meta("votes") or encode(0))
        """How many votes this journal has ever taken; those of past terms are not in it any more."""
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('genesis', ?)", (genesis.hash,))
        if self._meta("genesis") != genesis.hash:
            self.close()
            raise Conflict(
                f"{folder} holds the data of another chain; use an empty folder or the right genesis file"
            )
        self.committee = Committee(genesis)
        while found := self.handovers(self.committee.epoch):
            for handover in found:
                self.committee = follow(self.committee, handover)

    def bind(self, marker: Path, *, rejoin: bool) -> None:
        """Tie this journal to the key beside which the file `marker` lies: it names the only journal that the key votes by.

        Written at the first start. Raises `Conflict` when it names another journal (this one is new, so the votes that the key
        has cast are unknown) or more votes than are in this one (this is an old copy), when this one was copied by `node.backup`,
        all this unless `rejoin`, which makes the core abstain before anything else (docs/protocol.md, "Rejoin"); and when another
        process holds it.
        """
        try:
            self._marker = _Marker(marker)
            if rejoin:
                self.apply([SaveAbstention(None)])
                # Under a new name: no other copy of the journal counts any more.
                self._db.execute("DELETE FROM meta WHERE name IN ('restored', 'journal')")
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('journal', ?)", (os.urandom(16),))
            self._name = self._meta("journal").hex()
            if not rejoin:
                self._check(self._marker.read())
            self._marker.write(self._name, self._votes)
            self._marker.sync()
        except BaseException:
            self.close()
            raise

    def _check(self, told: tuple[str, int] | None) -> None:
        """Raise `Conflict` unless this journal has all votes of its key, as far as it and the marker tell."""
        if self._meta("restored"):
            raise Conflict(
                "the data folder comes from a backup, which lacks the votes that this node has cast since: start once with "
                "--rejoin; two votes in one view are proof of a lie"
            )
        if told is not None and told[0] != self._name:
            raise Conflict(
                "the journal of the votes of this key is gone: consensus.journal beside the key names another one than lies in "
                "the data folder. Put the data folder back, or, if it is lost or comes from a backup, start once with "
                "--rejoin; two votes in one view are proof of a lie"
            )
        if told is not None and told[1] > self._votes:
            raise Conflict(
                f"the data folder is an old copy: this key has cast {told[1]} votes, and {self._votes} of them are in it. Put the "
                "newest one back, or start once with --rejoin; two votes in one view are proof of a lie"
            )

    def _meta(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Safe to call again."""
        self._db.close()
        self._reader.close()
        if self._marker:
            self._marker.close()
        self._lock.release()

    def apply(self, effects: Iterable[Effect]) -> None:
        """Make the durable effects of one step durable, all or none. Raises `sqlite3.Error` (disk full, I/O) with nothing kept.

        The end of the process undoes nothing; a power cut at most the last steps, those of `RECOVERABLE` effects alone."""
        db, committee, votes = self._db, self.committee, self._votes
        effects = list(effects)
        is_recoverable = all(isinstance(effect, RECOVERABLE) for effect in effects)
        db.executescript(f"PRAGMA synchronous={'NORMAL' if is_recoverable else 'FULL'}")
        db.execute("BEGIN IMMEDIATE")
        try:
            for effect in effects:
                match effect:
                    case SaveVote(vote):
                        votes += 1
                        row0 = (self.committee.epoch, vote.view, vote.kind, encode(vote))
                        db.execute("INSERT INTO votes VALUES (?, ?, ?, ?)", row0)
                    case SaveAbstention(until):
                        row2 = (encode(until),)
                        db.execute("INSERT OR REPLACE INTO meta VALUES ('abstention', ?)", row2)
                    case SaveBlock(block):
                        row = (block.header.id, block.header.epoch, block.header.view, encode(block))
                        db.execute("INSERT OR IGNORE INTO blocks VALUES (?, ?, ?, ?)", row)
                    case SaveCertificate(cert):
                        row3 = (self.committee.epoch, cert.view, cert.kind, encode(cert))
                        db.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?)", row3)
                    case Finalized(blocks, cert):
                        self._finalize([b for b, _ in blocks], cert)
                    case EpochEnded(handover):
                        self._end_epoch(handover)
                        committee = follow(committee, handover)
                    case Record(evidence):
                        db.execute("INSERT OR IGNORE INTO evidence VALUES (?)", (encode(evidence),))
                    case Halted(reason):
                        db.execute("INSERT OR REPLACE INTO meta VALUES ('halted', ?)", (reason.encode(),))
            if votes > self._votes:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('votes', ?)", (encode(votes),))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        if votes > self._votes and self._marker:
            self._marker.write(self._name, votes)
        self.committee, self._votes = committee, votes

    def _finalize(self, blocks: list[Block], cert: Certificate) -> None:
        """Number the blocks and drop what lies below: blocks that lost, certificates, votes of past terms.

        The notarization of a block that has no finalization of its own stays: an audit of a fork needs one or the other."""
        epoch = self.committee.epoch
        query = "SELECT view FROM final WHERE height > ? ORDER BY height DESC LIMIT 1"
        row = self._db.execute(query, (self.committee.anchor.height,)).fetchone()
        past, first = row[0] if row else 0, blocks[0].header.height
        for block in blocks:
            header, block_id = block.header, block.header.id
            own = encode(cert) if cert.block == block_id else None
            values = (header.height, block_id, epoch, header.view, header.time_ms, own)
            self._db.execute("INSERT INTO final VALUES (?, ?, ?, ?, ?, ?)", values)
        last = blocks[-1].header.view
        views = (epoch, past, last, first)
        self._db.execute(
            "DELETE FROM blocks WHERE epoch = ? AND view > ? AND view <= ?"
            " AND id NOT IN (SELECT id FROM final WHERE height >= ?)",
            views,
        )
        self._db.execute(
            "DELETE FROM certificates WHERE epoch = ? AND view > ? AND view <= ? AND NOT (kind = 'notarize' AND view IN"
            " (SELECT view FROM final WHERE height >= ? AND certificate IS NULL))",
            views,
        )
        term_start = self.committee.term_start(self.committee.term(last))
        self._db.execute("DELETE FROM votes WHERE epoch = ? AND view < ?", (epoch, term_start))

    def _end_epoch(self, handover: Handover) -> None:
        """Drop what stands on the last block, but not the certificates that helped to finalize it: an audit of a fork needs them."""
        last, proof, epoch = handover.header, handover.finalization, self.committee.epoch
        self._db.execute("DELETE FROM blocks WHERE epoch = ? AND view > ?", (epoch, last.view))
        self._db.execute("DELETE FROM certificates WHERE epoch = ? AND view > ?", (epoch, proof.view))
        self._db.execute("DELETE FROM votes WHERE epoch = ?", (epoch,))
        self._db.execute("INSERT INTO epochs VALUES (?, ?, ?)", (epoch, last.height, encode(handover)))

    def handovers(self, first: int) -> list[Handover]:
        """The proofs with which one follows the members from epoch `first` to the present one."""
        query = "SELECT handover FROM epochs WHERE epoch >= ? ORDER BY epoch LIMIT ?"
        rows = self._reader.execute(query, (first, MAX_HANDOVERS))
        return [decode_handover(data) for (data,) in rows]

    def load(self) -> Restored:
        """Everything the core needs to go on: the tip, what stands above it, own votes, recent transactions."""
        db, epoch = self._db, self.committee.epoch
        row = db.execute(
            "SELECT id, view, height, time_ms, certificate FROM final WHERE height > ? ORDER BY height DESC LIMIT 1",
            (self.committee.anchor.height,),
        ).fetchone()
        above = db.execute(
            "SELECT data FROM certificates WHERE epoch = ? AND view > ? ORDER BY view",
            (epoch, row[1] if row else 0),
        )
        certificates = [decode_certificate(d) for (d,) in above]
        tip = anchor_tip(self.committee)
        if row:
            pending = [c for c in certificates if c.kind == "finalize"]
            certificate = decode_certificate(row[4]) if row[4] else pending[-1] if pending else None
            tip = Tip(row[0], row[1], row[2], row[3], certificate)
        blocks = db.execute("SELECT data FROM blocks WHERE epoch = ? AND view > ?", (epoch, tip.view))
        votes = [decode_vote(d) for (d,) in db.execute("SELECT data FROM votes WHERE epoch = ?", (epoch,))]
        halted, abstention = self._meta("halted"), self._meta("abstention")
        return Restored(
            tip,
            [decode_block(d) for (d,) in blocks],
            certificates,
            votes,
            list(self._recent(tip.time_ms)),
            halted.decode() if halted else None,
            _decode_abstention(abstention) if abstention else 0,
            self.evidence(),
        )

    def _recent(self, now_ms: int) -> Iterator[Pending]:
        """The transactions of the last blocks that have not expired, from the tip down as far as one may not have."""
        newest_first = self._db.execute(
            "SELECT b.data, f.time_ms FROM final f JOIN blocks b ON b.id = f.id ORDER BY f.height DESC"
        )
        for data, time_ms in newest_first:
            if time_ms <= now_ms - MAX_LIFETIME_MS:
                return
            txs = ((raw, decode_tx(raw)) for raw in decode_block(data).txs)
            yield from (Pending(raw, tx) for raw, tx in txs if tx.body.expires_ms > now_ms)

    def evidence(self) -> list[Evidence]:
        """All pairs of contradicting votes ever recorded here."""
        return [decode_evidence(data) for (data,) in self._db.execute("SELECT data FROM evidence")]

    def pruned_height(self) -> int:
        """Up to which height the bodies of blocks are not here (`node.prune`); headers and certificates always are."""
        return pruned_height(self._reader)

    def block_at(self, height: int) -> tuple[Block, Certificate | None] | None:
        """The final block at `height` and, if it has one of its own, its finalization. `NotFound` if its body was archived."""
        if height <= self.pruned_height():
            raise NotFound(
                f"the body of the block at height {height} was archived here; ask another node for it"
            )
        row = self._reader.execute(
            "SELECT b.data, f.certificate FROM final f JOIN blocks b ON b.id = f.id WHERE f.height = ?",
            (height,),
        ).fetchone()
        return (decode_block(row[0]), decode_certificate(row[1]) if row[1] else None) if row else None

    def page(self, height: int) -> Chain | None:
        """Final blocks of one epoch from `height` on, at most `PAGE_BYTES`, with the first finalization at or after the last of them;
        None if this node has none to prove them with, at most `MAX_LINKS` further on, or has archived their bodies."""
        if height <= self.pruned_height():
            return None
        query = "SELECT epoch, height, handover FROM epochs WHERE height >= ? ORDER BY height LIMIT 1"
        end = self._reader.execute(query, (height,)).fetchone()
        last_height = end[1] if end else MAX_VIEW
        rows = self._reader.execute(
            "SELECT b.data, f.certificate, f.height FROM final f JOIN blocks b ON b.id = f.id"
            " WHERE f.height >= ? AND f.height <= ? ORDER BY f.height LIMIT ?",
            (height, last_height, PAGE_BLOCKS),
        )
        page: list[tuple[bytes, bytes | None, int]] = []
        size = 0
        for data, certificate, at in rows:
            size += len(data)
            if page and size > PAGE_BYTES:
                break
            page.append((data, certificate, at))
        if not page:
            return None
        proved = [number for number, row in enumerate(page, 1) if row[1] or row[2] == last_height]
        page = page[: proved[-1]] if proved else page
        _, proof, last = page[-1]
        found = self._finality(last, proof, last_height, end[2] if end else None)
        return Chain(tuple(decode_block(d) for d, _, _ in page), *found) if found else None

    def final_at(self, height: int) -> tuple[bytes, int] | None:
        """Id and time of the final block at a height."""
        row = self._reader.execute("SELECT id, time_ms FROM final WHERE height = ?", (height,)).fetchone()
        return (row[0], row[1]) if row else None

    def proved_block(self, height: int) -> tuple[Block, tuple[Header, ...], Certificate] | None:
        """The final block at a height, without its body if that was archived, with the headers from there to the one that the
        certificate finalizes; None if this node has none to prove it with."""
        query = "SELECT epoch, height, handover FROM epochs WHERE height >= ? ORDER BY height LIMIT 1"
        end = self._reader.execute(query, (height,)).fetchone()
        row = self._reader.execute(
            "SELECT b.data, f.certificate FROM final f JOIN blocks b ON b.id = f.id WHERE f.height = ?",
            (height,),
        ).fetchone()
        if row is None:
            return None
        last_height, handover = (end[1], end[2]) if end else (MAX_VIEW, None)
        found = self._finality(height, row[1], last_height, handover)
        return (decode_block(row[0]), *found) if found else None

    def _finality(
        self, height: int, proof: bytes | None, last_height: int, end: bytes | None
    ) -> tuple[tuple[Header, ...], Certificate] | None:
        """What proves a block final whose own certificate is `proof`: without one, the next at most `MAX_LINKS` further on in its epoch, which
        ends at `last_height` with the handover `end`, and the headers up to there."""
        links: list[Header] = []
        later = self._reader.execute(
            "SELECT b.data, f.certificate FROM final f JOIN blocks b ON b.id = f.id"
            " WHERE f.height > ? AND f.height <= ? ORDER BY f.height LIMIT ?",
            (height, last_height, MAX_LINKS),
        )
        while proof is None and (row := later.fetchone()):
            links.append(decode_block(row[0]).header)
            proof = row[1]
        if proof is None and end and (links[-1].height if links else height) == last_height:
            handover = decode_handover(end)
            links += handover.links
            proof = encode(handover.finalization)
        if proof is None or len(links) > MAX_LINKS:
            return None
        return tuple(links), decode_certificate(proof)
