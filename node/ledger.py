"""The executed side of one node: contract state, its authenticated tree, and receipts, in a SQLite file of its own.

A block is executed in one transaction with its receipts, its roots and its height, after it is final in the journal. After a crash, or a power
cut that undid the last transactions, execution goes on from the height it had reached. One thread at a time, but for `prove`.

The tree lives in memory and its buckets in the file. So that a start need not read them all, the file also has the hashes of all buckets as they
once were, and which buckets have changed since.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from crypto.codec import encode
from crypto.errors import Conflict, Unavailable
from node.store import LEDGER, connect
from protocol import contract
from protocol.block import Block
from protocol.contract import Receipt, decode_receipt
from protocol.genesis import Genesis
from protocol.state_tree import (
    EMPTY_ROOT,
    ProvedValue,
    StateProof,
    StateTree,
    bucket_hash,
    bucket_of,
    changed,
    key_hash,
    value_hash,
)
from protocol.tx import decode_tx

SCHEMA = """
CREATE TABLE IF NOT EXISTS state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (tx BLOB PRIMARY KEY, height INTEGER NOT NULL, position INTEGER NOT NULL, record BLOB,
                                     kind TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS receipts_by_record ON receipts (record, height, position) WHERE record IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS receipts_by_place ON receipts (height, position);
CREATE TABLE IF NOT EXISTS buckets (number INTEGER PRIMARY KEY, pairs BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS hashes (height INTEGER PRIMARY KEY, buckets BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS changed (height INTEGER PRIMARY KEY, buckets BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS executed (height INTEGER PRIMARY KEY, root BLOB NOT NULL, state BLOB NOT NULL);
"""
KEPT_TABLES = ("hashes", "changed")
"""By which a start finds the tree again; without them it reads all buckets."""

MAX_KEY = 128
"""More bytes than a key of the state has."""
MAX_CHANGED = 8192
"""Changes of buckets after which the hashes of all are kept anew: 2 MB, a fiftieth of what the changes themselves write."""
CACHE_KB = 8_000
"""For the upper pages of all trees of a file with millions of rows."""
MAX_LOG_PAGES = 16_000
"""Pages of the write-ahead log at which a commit moves them into the file itself, if nobody has called `tidy`."""
NUMBER_BYTES = 2
"""Of the number of a bucket in the table `changed`."""


class _Changes:
    """The state while blocks are executed: what they have read and `written`, over what the ledger holds. `fresh` is what was written
    since it was emptied last."""

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger = ledger
        self._known: dict[bytes, bytes | None] = {}
        self.written: dict[bytes, bytes | None] = {}
        self.fresh: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        if key not in self._known:
            self._known[key] = self._ledger.get(key)
        return self._known[key]

    def put(self, key: bytes, value: bytes) -> None:
        self._known[key] = self.written[key] = self.fresh[key] = value

    def remove(self, key: bytes) -> None:
        self._known[key] = self.written[key] = self.fresh[key] = None


class _Buckets:
    """The tree while blocks are executed: it goes ahead of what the ledger holds by the buckets `changed`, until `undo` takes it back."""

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger, self._tree = ledger, ledger.tree
        self._before: dict[int, bytes] = {}
        self.changed: dict[int, bytes] = {}

    def put(self, values: Mapping[bytes, bytes | None]) -> bytes:
        """The root of the state with these values, None for a key that goes. `Conflict` if a bucket of the ledger is not that of the tree."""
        touched: dict[int, dict[bytes, bytes | None]] = {}
        for key, value in values.items():
            hashed = key_hash(key)
            touched.setdefault(bucket_of(hashed), {})[hashed] = None if value is None else value_hash(value)
        hashes = {}
        for number, changes in touched.items():
            if number not in self.changed:
                self.changed[number] = self._ledger.sound_bucket(number)
                self._before[number] = self._tree.bucket(number)
            self.changed[number] = changed(self.changed[number], changes)
            hashes[number] = bucket_hash(self.changed[number])
        self._tree.update(hashes)
        return self._tree.root

    def undo(self) -> None:
        self._tree.update(self._before)


class Ledger:
    """`executed` begins with the hash of genesis at height 0. Raises `Conflict` if the file is another chain's, of an earlier version, or
    does not hold together."""

    def __init__(self, folder: Path, genesis: Genesis) -> None:
        self._file = folder / LEDGER
        self._db = connect(self._file, "NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint={MAX_LOG_PAGES}")
        self._db.execute(f"PRAGMA cache_size=-{CACHE_KB}")
        self._genesis = genesis
        self._changed = 0
        """How many changes of buckets the table of that name tells."""
        self._lock = Lock()
        """Held while the tree and the file may differ, or must not."""
        self._db.executescript(SCHEMA)
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(executed)")]
        if columns != ["height", "root", "state"]:
            self._refuse("of an earlier version")
        self._db.execute("INSERT OR IGNORE INTO executed VALUES (0, ?, ?)", (genesis.hash, EMPTY_ROOT))
        if self._db.execute("SELECT root FROM executed WHERE height = 0").fetchone()[0] != genesis.hash:
            self._refuse("the ledger of another chain")

    def _refuse(self, why: str) -> None:
        self.close()
        raise self._fault(why)

    def _fault(self, why: str) -> Conflict:
        return Conflict(
            f"{self._file} is {why}: move it away, and the node makes its own anew from the journal "
            "(one whose old blocks were archived starts from a snapshot)"
        )

    def close(self) -> None:
        self._db.close()

    @cached_property
    def tree(self) -> StateTree:
        """The tree over the state; only whoever executes or proves needs it, so it is made then."""
        query = "SELECT state FROM executed ORDER BY height DESC LIMIT 1"
        (root,) = self._db.execute(query).fetchone()
        tree = self._kept_tree()
        if tree.root != root:  # the file was last written by a version that keeps none
            rows = self._db.execute("SELECT number, pairs FROM buckets")
            tree = StateTree((number, bucket_hash(pairs)) for number, pairs in rows)
            self._changed = MAX_CHANGED
        if tree.root != root:
            self._refuse("damaged, its state is not that of its root")
        return tree

    def _kept_tree(self) -> StateTree:
        """The tree from the hashes that were kept last, at first none, and the buckets changed since."""
        row = self._db.execute("SELECT buckets FROM hashes").fetchone()
        tree = StateTree.of(row[0]) if row else StateTree()
        told = b"".join(numbers for (numbers,) in self._db.execute("SELECT buckets FROM changed"))
        places = range(0, len(told), NUMBER_BYTES)
        numbers = {int.from_bytes(told[at : at + NUMBER_BYTES], "big") for at in places}
        tree.update({number: bucket_hash(self.bucket(number)) for number in numbers})
        self._changed = len(places)
        return tree

    def _keep_tree(self, height: int, changed: Iterable[int]) -> int:
        """Have `_kept_tree` know that these buckets have changed up to a height; how many it will have to read then."""
        numbers = [number.to_bytes(NUMBER_BYTES, "big") for number in sorted(changed)]
        total = self._changed + len(numbers)
        if total <= MAX_CHANGED:
            self._db.execute("INSERT INTO changed VALUES (?, ?)", (height, b"".join(numbers)))
            return total
        self._db.execute("DELETE FROM changed")
        self._db.execute("DELETE FROM hashes")
        self._db.execute("INSERT INTO hashes VALUES (?, ?)", (height, self.tree.hashes))
        return 0

    def get(self, key: bytes) -> bytes | None:
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def listing(self, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        """As `protocol.queries.Listable` says."""
        end = prefix + b"\xff" * MAX_KEY  # beyond every key with this prefix
        rows = self._db.execute(
            "SELECT key FROM state WHERE key > ? AND key < ? ORDER BY key LIMIT ?",
            (prefix + after, end, limit),
        )
        return [key[len(prefix) :] for (key,) in rows]

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Everything read within is of one moment, between two blocks."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def bucket(self, number: int) -> bytes:
        """The pairs in a bucket of the tree (`protocol.state_tree`)."""
        row = self._db.execute("SELECT pairs FROM buckets WHERE number = ?", (number,)).fetchone()
        return row[0] if row else b""

    def sound_bucket(self, number: int) -> bytes:
        """The same where it is that of the tree; `Conflict` otherwise."""
        pairs = self.bucket(number)
        if bucket_hash(pairs) != self.tree.bucket(number):
            raise self._fault("damaged, a bucket of its state is not that of its root")
        return pairs

    def prove(self, key: bytes) -> ProvedValue:
        """What the state holds of a key at the height executed so far, with its proof. May be called while another thread executes.

        `Unavailable` where the file is damaged."""
        with self._lock:
            number = bucket_of(key_hash(key))
            try:
                proof = StateProof(self.sound_bucket(number), self.tree.siblings(number))
            except Conflict:
                raise Unavailable("the state of this node is damaged; ask another node") from None
            return ProvedValue(self.head()[0], self.get(key), proof)

    def roots(self, height: int) -> tuple[bytes, bytes] | None:
        """The running root of receipts and the root of the state after a height; None if that is not executed."""
        query = "SELECT root, state FROM executed WHERE height = ?"
        row = self._db.execute(query, (height,)).fetchone()
        return (row[0], row[1]) if row else None

    def receipts_at(self, height: int) -> list[bytes]:
        """The encoded receipts of the block at a height, in order."""
        query = "SELECT data FROM receipts WHERE height = ? ORDER BY position"
        return [data for (data,) in self._db.execute(query, (height,))]

    def head(self) -> tuple[int, bytes]:
        """The height executed so far and the running root of receipts there."""
        row = self._db.execute("SELECT height, root FROM executed ORDER BY height DESC LIMIT 1").fetchone()
        return row[0], row[1]

    def execute(self, blocks: Iterable[Block]) -> list[Receipt]:
        """Execute final blocks in height order, skipping those executed before; returns the new receipts."""
        new: list[Receipt] = []
        with self._lock:
            db, state, buckets = self._db, _Changes(self), _Buckets(self)
            db.execute("BEGIN IMMEDIATE")
            try:
                height, root = self.head()
                for block in blocks:
                    header = block.header
                    if header.height != height + 1:
                        continue
                    state.fresh = {}
                    receipts = [
                        contract.apply(
                            state, self._genesis, decode_tx(raw), header.height, position, header.time_ms
                        )
                        for position, raw in enumerate(block.txs)
                    ]
                    height, root = header.height, contract.next_root(root, header.id, receipts)
                    db.execute(
                        "INSERT INTO executed VALUES (?, ?, ?)", (height, root, buckets.put(state.fresh))
                    )
                    new += receipts
                count = self._changed
                if buckets.changed:
                    count = self._keep_tree(height, buckets.changed)
                # At the end and all together: that costs a fifth less than as they come.
                self._save(state.written, buckets.changed)
                rows = [(r.tx, r.height, r.position, r.record, r.kind, encode(r)) for r in new]
                db.executemany("INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)", rows)
                db.execute("COMMIT")
                self._changed = count
            except BaseException:
                buckets.undo()
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return new

    def tidy(self) -> None:
        """Move what is committed from the write-ahead log into the file: on a long chain as much work as to execute, so a thread of its own does
        it meanwhile."""
        with closing(connect(self._file, "NORMAL")) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _save(self, values: Mapping[bytes, bytes | None], buckets: Mapping[int, bytes]) -> None:
        """Put values into the state, None for a key that goes, and buckets into the tree's table."""
        gone = [(key,) for key, value in values.items() if value is None]
        kept = sorted((key, value) for key, value in values.items() if value is not None)
        self._db.executemany("DELETE FROM state WHERE key = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", kept)
        self._db.executemany("INSERT OR REPLACE INTO buckets VALUES (?, ?)", sorted(buckets.items()))

    def receipt(self, tx_id: bytes) -> Receipt | None:
        row = self._db.execute("SELECT data FROM receipts WHERE tx = ?", (tx_id,)).fetchone()
        return decode_receipt(row[0]) if row else None

    def record_log(self, record: bytes, after: tuple[int, int], limit: int) -> list[Receipt]:
        """Receipts that concern a record in chain order, after the (height, position) given."""
        rows: Iterable[Any] = self._db.execute(
            "SELECT data FROM receipts WHERE record = ? AND (height, position) > (?, ?)"
            " ORDER BY height, position LIMIT ?",
            (record, *after, limit),
        )
        return [decode_receipt(data) for (data,) in rows]

    def receipts_after(self, after: tuple[int, int], limit: int) -> list[Receipt]:
        """All receipts in chain order, after the (height, position) given."""
        rows = self._db.execute(
            "SELECT data FROM receipts WHERE (height, position) > (?, ?) ORDER BY height, position LIMIT ?",
            (*after, limit),
        )
        return [decode_receipt(data) for (data,) in rows]
