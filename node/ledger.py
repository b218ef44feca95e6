"""The executed side of one node: contract state and receipts, in a SQLite file of its own.

A block is executed in one transaction with its receipts and its height, after it is final in the journal. After a crash, or a power cut
that undid the last transactions, execution goes on from the height it had reached. One thread at a time.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crypto.codec import encode
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
CREATE INDEX IF NOT EXISTS receipts_by_record ON receipts (record, kind, height, position) WHERE record IS NOT NULL;
CREATE TABLE IF NOT EXISTS executed (height INTEGER PRIMARY KEY, root BLOB NOT NULL);
"""


class Ledger:
    def __init__(self, folder: Path, genesis: Genesis) -> None:
        self._db = connect(folder / LEDGER, "NORMAL")
        self._db.executescript(SCHEMA)
        self._genesis = genesis

    def close(self) -> None:
        self._db.close()

    def get(self, key: bytes) -> bytes | None:
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: bytes, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def head(self) -> tuple[int, bytes]:
        """The height executed so far and the running root of receipts there."""
        row = self._db.execute("SELECT height, root FROM executed ORDER BY height DESC LIMIT 1").fetchone()
        return (row[0], row[1]) if row else (0, self._genesis.hash)

    def execute(self, blocks: Iterable[Block]) -> list[Receipt]:
        """Execute final blocks in height order, skipping those executed before; returns the new receipts."""
        new: list[Receipt] = []
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            height, root = self.head()
            for block in blocks:
                header = block.header
                if header.height != height + 1:
                    continue
                receipts = [
                    contract.apply(
                        self, self._genesis, decode_tx(raw), header.height, position, header.time_ms
                    )
                    for position, raw in enumerate(block.txs)
                ]
                rows = [(r.tx, r.height, r.position, r.record, r.kind, encode(r)) for r in receipts]
                db.executemany("INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)", rows)
                height, root = header.height, contract.next_root(root, header.id, receipts)
                db.execute("INSERT INTO executed VALUES (?, ?)", (height, root))
                new += receipts
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return new

    def receipt(self, tx_id: bytes) -> Receipt | None:
        row = self._db.execute("SELECT data FROM receipts WHERE tx = ?", (tx_id,)).fetchone()
        return decode_receipt(row[0]) if row else None

    def access_log(self, record: bytes, after: tuple[int, int], limit: int) -> list[Receipt]:
        """Receipts of access requests for a record in chain order, after the (height, position) given."""
        rows: Iterable[Any] = self._db.execute(
            "SELECT data FROM receipts WHERE record = ? AND kind = 'access.request' AND (height, position) > (?, ?)"
            " ORDER BY height, position LIMIT ?",
            (record, *after, limit),
        )
        return [decode_receipt(data) for (data,) in rows]
