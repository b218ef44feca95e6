"""The transactions a node has checked and not yet seen final, in order of arrival; bounded in number, bytes and per sender.

Each transaction is verified once: a block's transactions that came through here before cost no second signature check.
"""

from collections import Counter, OrderedDict
from collections.abc import Container
from heapq import heappop, heappush

from crypto.errors import Conflict, DiptychError, Malformed, Unavailable
from protocol.block import MAX_TX
from protocol.tx import MAX_LIFETIME_MS, Tx, check_tx

MAX_TXS, MAX_BYTES = 50_000, 64 << 20
MAX_PER_SENDER, MAX_BYTES_PER_SENDER = 5_000, 8 << 20


class Pending:
    """A verified transaction with its id and encoding."""

    __slots__ = ("expires_ms", "id", "raw", "sender", "tx")

    def __init__(self, raw: bytes, tx: Tx) -> None:
        self.raw, self.tx, self.id = raw, tx, tx.id
        self.sender, self.expires_ms = tx.body.sender, tx.body.expires_ms


class Mempool:
    def __init__(self, chain_id: str) -> None:
        self._chain_id = chain_id
        self._pending: OrderedDict[bytes, Pending] = OrderedDict()
        self._bytes = 0
        self._per_sender: Counter[bytes] = Counter()
        self._bytes_per_sender: Counter[bytes] = Counter()
        self._verified: OrderedDict[bytes, Pending] = OrderedDict()
        self._verified_bytes = 0
        self.final: dict[bytes, int] = {}
        """Ids of finalized transactions that have not expired yet, with their expiry."""
        self._expiring: list[tuple[int, bytes]] = []
        self._final_ms = 0
        """Time of the last final block: it may be ahead of this node's clock, and no later block takes what it ended."""

    def __len__(self) -> int:
        return len(self._pending)

    def verify(self, raw: bytes) -> Pending:
        """The checked transaction; raises as `check_tx`. Remembers the last verdicts until their transactions are final."""
        known = self._verified.get(raw)
        if known is None:
            known = self._verified[raw] = Pending(raw, check_tx(raw, self._chain_id))
            self._verified_bytes += len(raw)
            while len(self._verified) > 2 * MAX_TXS or self._verified_bytes > 2 * MAX_BYTES:
                self._verified_bytes -= len(self._verified.popitem(last=False)[0])
        return known

    def add(self, raw: bytes, now_ms: int) -> Pending:
        """Take a transaction in; adding it again is harmless. Raises `Malformed`, `Unauthentic`, `Conflict` (already
        final) or `Unavailable` (full: try again later)."""
        if len(raw) > MAX_TX:
            raise Malformed(f"a transaction of {len(raw)} bytes is over the limit of {MAX_TX}")
        entry = self.verify(raw)
        if entry.id in self._pending:
            return self._pending[entry.id]
        if entry.id in self.final:
            raise Conflict("this transaction is already final; a replay changes nothing")
        now_ms = max(now_ms, self._final_ms)
        if not now_ms < entry.expires_ms <= now_ms + MAX_LIFETIME_MS:
            raise Malformed(
                "the transaction has expired or expires too late; check the clock and sign it anew"
            )
        if len(self._pending) >= MAX_TXS or self._bytes + len(raw) > MAX_BYTES:
            raise Unavailable("the node has too many waiting transactions; try again in a second")
        if (
            self._per_sender[entry.sender] >= MAX_PER_SENDER
            or self._bytes_per_sender[entry.sender] + len(raw) > MAX_BYTES_PER_SENDER
        ):
            raise Unavailable("this sender has too many waiting transactions; wait until they are final")
        self._pending[entry.id] = entry
        self._bytes += len(raw)
        self._per_sender[entry.sender] += 1
        self._bytes_per_sender[entry.sender] += len(raw)
        return entry

    def fill(self, taken: Container[bytes], max_txs: int, max_bytes: int, time_ms: int) -> list[Pending]:
        """The oldest transactions that fit a block at `time_ms` and are not `taken` by its ancestors."""
        chosen: list[Pending] = []
        for entry in self._pending.values():
            if len(chosen) == max_txs:
                break
            fits = time_ms < entry.expires_ms <= time_ms + MAX_LIFETIME_MS
            if fits and entry.id not in taken and len(entry.raw) <= max_bytes:
                chosen.append(entry)
                max_bytes -= len(entry.raw)
        return chosen

    def oldest(self, count: int) -> list[Pending]:
        """Up to `count` waiting transactions, for telling peers again."""
        return [entry for entry, _ in zip(self._pending.values(), range(count), strict=False)]

    def finalize(self, entries: list[Pending], time_ms: int) -> None:
        """Drop what became final in a block at `time_ms`, remember it until it expires, forget what has expired."""
        self._final_ms = time_ms
        for entry in entries:
            self.final[entry.id] = entry.expires_ms
            self._drop(entry.id)
            if self._verified.pop(entry.raw, None):
                self._verified_bytes -= len(entry.raw)
            heappush(self._expiring, (entry.expires_ms, entry.id))
        while self._expiring and self._expiring[0][0] <= time_ms:
            self.final.pop(heappop(self._expiring)[1], None)

    def expire(self, now_ms: int) -> list[Pending]:
        """Drop and return the waiting transactions that can no longer become final."""
        now_ms = max(now_ms, self._final_ms)
        gone = [entry for entry in self._pending.values() if entry.expires_ms <= now_ms]
        for entry in gone:
            self._drop(entry.id)
        return gone

    def _drop(self, tx_id: bytes) -> None:
        entry = self._pending.pop(tx_id, None)
        if entry:
            self._bytes -= len(entry.raw)
            self._per_sender[entry.sender] -= 1
            self._bytes_per_sender[entry.sender] -= len(entry.raw)
            if not self._per_sender[entry.sender]:
                del self._per_sender[entry.sender], self._bytes_per_sender[entry.sender]


def is_admissible(mempool: Mempool, raw: bytes, time_ms: int) -> Pending | None:
    """The checked transaction if a block at `time_ms` may carry it, else None."""
    try:
        entry = mempool.verify(raw)
    except DiptychError:
        return None
    in_time = time_ms < entry.expires_ms <= time_ms + MAX_LIFETIME_MS
    return entry if in_time and entry.id not in mempool.final else None
