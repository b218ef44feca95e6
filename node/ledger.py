"""The executed side of one node: contract state and receipts, in a SQLite file of its own.

A block is executed in one transaction with its receipts and its height, after it is final in the journal. After a crash, or a power cut
that undid the last transactions, execution goes on from the height it had reached. One thread at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crypto.codec import encode
from crypto.errors import Conflict
from node.store import LEDGER, connect
from protocol import contract
from protocol.block import Block
from protocol.contract import Receipt, decode_receipt
from protocol.genesis import Genesis
from protocol.tx import decode_tx

SCHEMA = """
CREATE TABLE IF NOT EXISTS state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (tx BLOB PRIMARY KEY, height INTEGER NOT NULL, position INTEGER NOT NULL, record BLOB,
                                     kind TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS receipts_by_record ON receipts (record, height, position) WHERE record IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS receipts_by_place ON receipts (height, position);
CREATE TABLE IF NOT EXISTS executed (height INTEGER PRIMARY KEY, root BLOB NOT NULL);
"""

MAX_KEY = 128
"""More bytes than a key of the state has."""


class _Changes:
    """The state while blocks are executed: what they have read and `written`, over what the ledger holds."""

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger = ledger
        self._known: dict[bytes, bytes | None] = {}
        self.written: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        if key not in self._known:
            self._known[key] = self._ledger.get(key)
        return self._known[key]

    def put(self, key: bytes, value: bytes) -> None:
        self._known[key] = self.written[key] = value

    def remove(self, key: bytes) -> None:
        self._known[key] = self.written[key] = None


class Ledger:
    """`executed` begins with the hash of genesis at height 0. Raises `Conflict` if the file is another chain's."""

    def __init__(self, folder: Path, genesis: Genesis) -> None:
        self._db = connect(folder / LEDGER, "NORMAL")
        self._db.executescript(SCHEMA)
        self._genesis = genesis
        self._db.execute("INSERT OR IGNORE INTO executed VALUES (0, ?)", (genesis.hash,))
        if self._db.execute("SELECT root FROM executed WHERE height = 0").fetchone()[0] != genesis.hash:
            self.close()
            raise Conflict(
                f"{folder / LEDGER} is the ledger of another chain: move it away, and the node makes its own anew from the journal"
            )

    def close(self) -> None:
        self._db.close()

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

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put these values into the state; None removes the key."""
        gone = [(key,) for key, value in changes.items() if value is None]
        kept = sorted((key, value) for key, value in changes.items() if value is not None)
        self._db.executemany("DELETE FROM state WHERE key = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", kept)

    def head(self) -> tuple[int, bytes]:
        """The height executed so far and the running root of receipts there."""
        row = self._db.execute("SELECT height, root FROM executed ORDER BY height DESC LIMIT 1").fetchone()
        return row[0], row[1]

    def execute(self, blocks: Iterable[Block]) -> list[Receipt]:
        """Execute final blocks in height order, skipping those executed before; returns the new receipts."""
        new: list[Receipt] = []
        db, state = self._db, _Changes(self)
        db.execute("BEGIN IMMEDIATE")
        try:
            height, root = self.head()
            for block in blocks:
                header = block.header
                if header.height != height + 1:
                    continue
                receipts = [
                    contract.apply(
                        state, self._genesis, decode_tx(raw), header.height, position, header.time_ms
                    )
                    for position, raw in enumerate(block.txs)
                ]
                height, root = header.height, contract.next_root(root, header.id, receipts)
                db.execute("INSERT INTO executed VALUES (?, ?)", (height, root))
                new += receipts
            # At the end and all together: that costs a fifth less than as they come.
            self.write(state.written)
            rows = [(r.tx, r.height, r.position, r.record, r.kind, encode(r)) for r in new]
            db.executemany("INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return new

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
