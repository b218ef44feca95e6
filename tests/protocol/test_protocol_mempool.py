"""The mempool: what it takes, its bounds, and that what was final never comes in again."""

from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crypto.codec import encode
from crypto.errors import Conflict, Malformed, Unauthentic, Unavailable
from crypto.sign import SigningKey
from protocol import mempool as mempool_module
from protocol.mempool import Mempool, is_admissible
from protocol.tx import MAX_LIFETIME_MS, Request, Tx
from tests.simulation.cluster import WALL0, request_tx

CHAIN = "diptych/1/storage/test"
SENDERS = [SigningKey(bytes([i + 1]) * 32) for i in range(3)]


def tx_by(sender: int, number: int, expires_ms: int = WALL0 + 1000) -> bytes:
    nonce = number.to_bytes(16, "big")
    return encode(Tx.make(CHAIN, SENDERS[sender], nonce, expires_ms, Request(nonce, "research")))


def test_a_transaction_waits_once_however_often_it_comes():
    pool = Mempool(CHAIN)
    assert pool.add(request_tx(1), WALL0) is pool.add(request_tx(1), WALL0)
    assert len(pool) == 1
    assert [e.raw for e in pool.fill((), 10, 10_000, WALL0)] == [request_tx(1)]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (request_tx(1, "diptych/1/sharing/test"), Malformed),
        (request_tx(1)[:-1] + b"\x00", Unauthentic),
        (request_tx(1, expires_ms=WALL0), Malformed),
        (request_tx(1, expires_ms=WALL0 + MAX_LIFETIME_MS + 1), Malformed),
        (b"", Malformed),
        (bytes(100_000), Malformed),
    ],
)
def test_what_cannot_become_final_is_refused_and_not_kept(raw, error):
    pool = Mempool(CHAIN)
    with pytest.raises(error):
        pool.add(raw, WALL0)
    assert len(pool) == 0
    assert is_admissible(pool, raw, WALL0) is None


def test_a_final_transaction_is_refused_until_it_expires_and_then_because_it_expired():
    pool = Mempool(CHAIN)
    entry = pool.add(tx_by(0, 1), WALL0)
    pool.finalize([entry], WALL0 + 1)
    assert len(pool) == 0
    with pytest.raises(Conflict, match="already final"):
        pool.add(tx_by(0, 1), WALL0 + 999)
    assert is_admissible(pool, tx_by(0, 1), WALL0 + 999) is None
    pool.finalize([], WALL0 + 1000)
    assert not pool.final
    with pytest.raises(Malformed, match="expired"):
        pool.add(tx_by(0, 1), WALL0 + 1000)
    assert is_admissible(pool, tx_by(0, 1), WALL0 + 1000) is None


def test_a_block_takes_a_transaction_only_in_its_time():
    pool = Mempool(CHAIN)
    late = tx_by(0, 1, WALL0 + MAX_LIFETIME_MS + 5)
    assert is_admissible(pool, late, WALL0 + 4) is None
    assert is_admissible(pool, late, WALL0 + 5).raw == late
    pool.add(late, WALL0 + 5)
    assert pool.fill((), 10, 10_000, WALL0 + 4) == []
    assert len(pool.fill((), 10, 10_000, WALL0 + 5)) == 1


def test_a_block_is_filled_with_the_oldest_that_fit_and_are_not_taken():
    pool = Mempool(CHAIN)
    entries = [pool.add(tx_by(0, i), WALL0) for i in range(5)]
    size = len(entries[0].raw)
    assert pool.fill((), 2, 10 * size, WALL0) == entries[:2]
    assert pool.fill({entries[0].id, entries[2].id}, 9, 3 * size, WALL0) == [
        entries[1],
        entries[3],
        entries[4],
    ]
    assert pool.fill((), 9, 2 * size + size - 1, WALL0) == entries[:2]
    assert pool.oldest(3) == entries[:3]


@pytest.mark.parametrize(
    ("cap", "value"), [("MAX_PER_SENDER", 2), ("MAX_BYTES_PER_SENDER", 3 * len(tx_by(0, 1)) - 1)]
)
def test_one_sender_cannot_take_all_the_room(monkeypatch, cap, value):
    monkeypatch.setattr(mempool_module, cap, value)
    pool = Mempool(CHAIN)
    first = pool.add(tx_by(0, 1), WALL0)
    pool.add(tx_by(0, 2), WALL0)
    with pytest.raises(Unavailable, match="this sender"):
        pool.add(tx_by(0, 3), WALL0)
    pool.add(tx_by(1, 1), WALL0)
    pool.finalize([first], WALL0 + 1)
    pool.add(tx_by(0, 3), WALL0)


def test_the_largest_transactions_of_one_sender_leave_most_of_the_room_to_others():
    assert mempool_module.MAX_BYTES_PER_SENDER * 8 <= mempool_module.MAX_BYTES
    assert mempool_module.MAX_PER_SENDER * 8 <= mempool_module.MAX_TXS


def test_the_room_is_bounded_in_number_and_bytes(monkeypatch):
    size = len(tx_by(0, 1))
    for name, value in (("MAX_TXS", 2), ("MAX_BYTES", 3 * size - 1)):
        with monkeypatch.context() as patched:
            patched.setattr(mempool_module, name, value)
            pool = Mempool(CHAIN)
            pool.add(tx_by(0, 1), WALL0)
            pool.add(tx_by(1, 2), WALL0)
            with pytest.raises(Unavailable, match="try again"):
                pool.add(tx_by(2, 3), WALL0)
            assert pool.add(tx_by(0, 1), WALL0), "what waits already needs no room"
            assert len(pool.expire(WALL0 + 1000)) == 2
            pool.add(tx_by(2, 3), WALL0)


def test_of_what_became_final_only_the_id_is_remembered():
    pool = Mempool(CHAIN)
    entries = [pool.add(tx_by(0, number), WALL0) for number in range(5)]
    pool.finalize(entries[1:], WALL0 + 1)
    assert list(pool._verified) == [entries[0].raw]
    assert pool._verified_bytes == len(entries[0].raw)


def test_what_is_remembered_of_verified_transactions_is_bounded_in_bytes_also_when_the_room_is_full(
    monkeypatch,
):
    """A member may gossip large transactions of made-up senders for ever."""
    size = len(tx_by(0, 0))
    monkeypatch.setattr(mempool_module, "MAX_BYTES", 4 * size)
    pool = Mempool(CHAIN)
    for i in range(40):
        pool.verify(tx_by(i % 3, i))
    assert sum(map(len, pool._verified)) <= 8 * size
    assert pool.verify(tx_by(0, 39)).raw == tx_by(0, 39)


CAPS = {
    "MAX_TXS": 6,
    "MAX_BYTES": 5 * len(tx_by(0, 1)),
    "MAX_PER_SENDER": 3,
    "MAX_BYTES_PER_SENDER": 3 * len(tx_by(0, 1)),
}
CHOICES = [(s, n, n * 400) for s in range(3) for n in range(1, 5)]
"""(sender, number, milliseconds of life) of the transactions in play."""


@cache
def choice(sender: int, number: int, life: int) -> tuple[bytes, int]:
    return tx_by(sender, number, WALL0 + life), WALL0 + life


class Life(RuleBasedStateMachine):
    """Clients add, blocks become final, time passes: against a plain model, under small caps."""

    @initialize()
    def begin(self):
        self.patch = patch.multiple(mempool_module, **CAPS)
        self.patch.start()
        self.pool, self.now, self.chain_time = Mempool(CHAIN), WALL0, WALL0
        self.waiting: dict[bytes, int] = {}
        self.ever_final: dict[bytes, int] = {}

    def teardown(self):
        if hasattr(self, "patch"):
            self.patch.stop()

    @rule(which=st.sampled_from(CHOICES))
    def add(self, which):
        raw, expires = choice(*which)
        is_full = len(self.waiting) == 6 or (len(self.waiting) + 1) * len(raw) > CAPS["MAX_BYTES"]
        of_sender = sum(choice(*c)[0] in self.waiting for c in CHOICES if c[0] == which[0])
        try:
            self.pool.add(raw, self.now)
        except Conflict:
            assert raw in self.ever_final
        except Malformed:
            assert expires <= max(self.now, self.chain_time)
        except Unavailable:
            assert is_full or of_sender >= 3
        else:
            assert raw in self.waiting or (not is_full and of_sender < 3)
            assert raw not in self.ever_final
            self.waiting[raw] = expires

    @rule(which=st.lists(st.sampled_from(CHOICES), max_size=3, unique=True), ms=st.integers(1, 300))
    def block_becomes_final(self, which, ms):
        self.chain_time = max(self.chain_time + 1, min(self.chain_time + ms, self.now + 2000))
        entries = []
        for raw, expires in (choice(*c) for c in which):
            entry = is_admissible(self.pool, raw, self.chain_time)
            assert (entry is None) == (raw in self.ever_final or expires <= self.chain_time)
            if entry:
                entries.append(entry)
                self.ever_final[raw] = expires
                self.waiting.pop(raw, None)
        self.pool.finalize(entries, self.chain_time)

    @rule(ms=st.integers(1, 400))
    def time_passes(self, ms):
        self.now += ms
        gone = {e.raw for e in self.pool.expire(self.now)}
        time = max(self.now, self.chain_time)
        assert gone == {raw for raw, expires in self.waiting.items() if expires <= time}
        self.waiting = {raw: e for raw, e in self.waiting.items() if raw not in gone}

    @precondition(lambda self: self.waiting)
    @rule(count=st.integers(0, 6))
    def fill_a_block(self, count):
        time = max(self.now, self.chain_time + 1)
        usable = [raw for raw, expires in self.waiting.items() if expires > time]
        assert [e.raw for e in self.pool.fill((), count, 10**6, time)] == usable[:count]

    @invariant()
    def the_books_are_right(self):
        if not hasattr(self, "pool"):
            return
        assert [e.raw for e in self.pool.oldest(100)] == list(self.waiting)
        assert len(self.pool) == len(self.waiting)
        assert self.pool._bytes == sum(map(len, self.waiting))
        assert sum(self.pool._per_sender.values()) == len(self.waiting)
        assert sum(self.pool._bytes_per_sender.values()) == self.pool._bytes
        for books in (self.pool._per_sender, self.pool._bytes_per_sender):
            assert all(books.values()), "no sender is remembered for nothing"
        assert len(self.pool.final) == sum(e > self.chain_time for e in self.ever_final.values())


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
