"""Members that make, lose, re-share and use the index key: first their steps on one state, then whole daemons over real sockets."""

import shutil

import pytest
from node_world import World

from crypto import tdh2
from crypto.codec import encode
from crypto.errors import Unauthentic, Unavailable
from crypto.group import random_scalar
from crypto.sign import SigningKey
from node import index_key as node_index_key
from node.index_key import CLOSE_LIFETIME_MS, TX_LIFETIME_MS, Holder
from node.ledger import Ledger, _Changes
from protocol import index_key
from protocol.contract import Receipt, apply
from protocol.genesis import Member
from protocol.index_key import DEALING_MS, get_key, open_resharing, run_of
from protocol.tx import Close, Deal, Judge, decode_tx
from tests.dealer import dishonest, share_key, share_point
from tests.ledger_state import write_into
from tests.memory_state import MemoryState
from tests.simulation.cluster import WALL0, make_genesis

LABEL = b"label"


class Liar(Holder):
    """Deals a wrong piece to holder 0, with everything about it in order."""

    def _word(self, state, current, share):
        word = super()._word(state, current, share)
        if isinstance(word, Judge):
            return word
        run = run_of(self._genesis.hash, current.number, current.holders, current.threshold)
        place = [m.key for m in current.holders].index(self._keys[0].public)
        return Deal(
            current.number, dishonest(run, place, [random_scalar() for _ in range(run.threshold)], {0: 5})
        )


class Board:
    """A state that everybody sees, a clock, and members whose steps become blocks of their own."""

    def __init__(self, size: int = 4) -> None:
        self.genesis, self.keys = make_genesis(size)
        self.state, self.now, self.height = MemoryState(), WALL0, 0
        self.members = {i: self.member(i) for i in range(size)}
        self.receipts: list[Receipt] = []
        self.entry = b""

    def member(self, i: int, kind: type[Holder] = Holder, key: SigningKey | None = None) -> Holder:
        return kind(self.genesis, [key or self.keys[i]], share_key(i))

    def execute(self, raw: bytes) -> Receipt:
        self.height += 1
        receipt = apply(self.state, self.genesis, decode_tx(raw), self.height, 0, self.now)
        self.receipts.append(receipt)
        return receipt

    def settle(self) -> list[str]:
        """Let everybody speak until nobody has anything to say; the codes of the receipts."""
        before = len(self.receipts)
        while steps := [s for m in self.members.values() if (s := m.next_step(self.state, self.now))]:
            for step in steps:
                self.execute(step)
        return [r.code for r in self.receipts[before:]]

    def opens(self, *numbers: int) -> bool:
        """Whether these members together open an entry, the same each time."""
        key = get_key(self.state)
        self.entry = self.entry or tdh2.encrypt(key.public, LABEL, b"message")
        parts = {}
        for i in numbers:
            round_, part = self.members[i].decryption_share(self.state, LABEL, self.entry)
            assert round_ == key.round
            parts[key.place(self.members[i]._keys[0].public)] = part
        try:
            return tdh2.combine(key.shared, LABEL, self.entry, parts) == (b"message", frozenset())
        except Unauthentic:
            return False

    def status(self, i: int) -> tuple:
        status = self.members[i].status
        return status["round"], status["holds_share"], status["phase"], status["waits_for"]


# --- steps -------------------------------------------------------------------------------------------------------------


def test_members_make_the_key_with_one_dealing_and_one_judgement_each():
    board = Board()
    ciphertext = b"whatever"
    with pytest.raises(Unavailable, match="still making its index key"):
        board.members[0].decryption_share(board.state, LABEL, ciphertext)
    assert board.settle() == ["dealt"] * 3 + ["dealing-closed"] + ["judged"] * 3 + ["key-made"]
    for i in range(4):
        assert board.status(i) == (0, True, None, [])
    assert board.opens(1, 2, 3)
    assert not board.opens(1, 2)


def test_a_step_is_said_once_while_it_may_still_become_final_and_again_when_it_cannot():
    board = Board()
    first = board.members[0].next_step(board.state, board.now)
    assert board.members[0].next_step(board.state, board.now + TX_LIFETIME_MS - 1) is None
    again = board.members[0].next_step(board.state, board.now + TX_LIFETIME_MS)
    assert board.execute(first).code == "dealt"
    assert board.execute(again).code == "already-dealt"
    assert board.members[0].next_step(board.state, board.now) is None


def test_a_member_that_crashed_after_its_dealing_deals_again_and_does_no_harm():
    board = Board()
    lost = board.members[0].next_step(board.state, board.now)
    board.members[0] = board.member(0)
    assert board.settle()[-1] == "key-made"
    assert board.execute(lost).code == "no-such-round"
    board.members[0] = board.member(0)
    assert board.opens(0, 1, 2), "the share comes from the board again"


def test_when_a_member_is_silent_one_of_the_others_says_that_the_deadline_has_passed():
    board = Board()
    del board.members[3]
    assert board.settle() == ["dealt"] * 3
    assert board.status(0) == (None, False, "dealing", ["n3"])
    board.now += DEALING_MS
    assert board.settle() == []
    board.now += 200
    assert board.settle() == ["dealing-closed", "judged", "judged", "judged"], (
        "each waits for its turn to say so"
    )
    board.now += DEALING_MS + 1000
    assert board.settle()[:1] == ["key-made"]
    board.members[3] = board.member(3)
    assert board.opens(3, 0, 1)


def test_a_member_whose_clock_is_ahead_says_again_that_the_deadline_has_passed():
    board = Board()
    del board.members[3]
    board.settle()
    early = board.members[0].next_step(board.state, board.now + DEALING_MS + 500)
    assert isinstance(decode_tx(early).body.action, Close)
    assert board.execute(early).code == "too-early"
    later = board.now + DEALING_MS + 500 + CLOSE_LIFETIME_MS
    assert board.members[0].next_step(board.state, later - 1) is None
    board.now = later
    assert board.execute(board.members[0].next_step(board.state, later)).code == "dealing-closed"


def test_a_member_that_deals_a_wrong_piece_is_left_out_by_the_complaint_of_its_victim():
    board = Board()
    board.members[3] = board.member(3, Liar)
    assert board.settle()[-1] == "key-made"
    assert get_key(board.state).dealers == (0, 1, 2)
    assert board.opens(0, 1, 3)


def test_a_victim_that_was_away_while_pieces_were_judged_has_no_share_and_says_so_until_the_next_resharing():
    board = Board()
    victim = board.members.pop(0)
    board.members[3] = board.member(3, Liar)
    for _ in range(3):
        board.settle()
        board.now += DEALING_MS + 1000
    key = get_key(board.state)
    assert key is not None
    board.members[0] = victim
    ciphertext = tdh2.encrypt(key.public, LABEL, b"message")
    assert key.dealers == (1, 2, 3)
    assert victim.decryption_share(board.state, LABEL, ciphertext) == (0, None)
    assert board.settle() == []
    assert board.status(0) == (0, False, None, [])
    assert board.opens(1, 2, 3)
    board.members[3] = board.member(3)
    open_resharing(board.state, board.genesis, board.genesis.members, 3)
    for _ in range(3):
        board.settle()
        board.now += DEALING_MS + 1000
    assert get_key(board.state).public == key.public
    assert board.opens(0, 1, 2)


def test_old_members_hand_the_key_to_new_ones_and_those_who_leave_hold_nothing_that_is_asked_for():
    board = Board()
    board.settle()
    public = get_key(board.state).public
    new_keys = {i: SigningKey(bytes([i + 1]) * 32) for i in (4, 5)}
    joining = tuple(Member(f"n{i}", key.public, f"p{i}", share_point(i)) for i, key in new_keys.items())
    open_resharing(board.state, board.genesis, (*board.genesis.members[1:], *joining), 4)
    assert board.opens(0, 1, 2), "until the new shares are there"
    for i, key in new_keys.items():
        board.members[i] = board.member(i, key=key)
    codes = board.settle()
    assert codes[:4] == ["dealt"] * 3 + ["dealing-closed"]
    assert codes[-1] == "key-made"
    assert get_key(board.state).public == public
    assert board.opens(2, 3, 4, 5)
    assert board.members[0].decryption_share(board.state, LABEL, tdh2.encrypt(public, LABEL, b"")) == (
        1,
        None,
    )
    assert board.status(5) == (1, True, None, [])


def test_a_share_is_answered_for_the_right_label_alone():
    board = Board()
    board.settle()
    ciphertext = tdh2.encrypt(get_key(board.state).public, LABEL, b"message")
    with pytest.raises(Unauthentic, match="another key or label"):
        board.members[0].decryption_share(board.state, b"another record", ciphertext)


def test_a_share_that_is_asked_for_again_is_made_once_and_memory_for_that_is_bounded(monkeypatch):
    board, made = Board(), []
    board.settle()
    public, make = get_key(board.state).public, tdh2.decryption_share
    monkeypatch.setattr(tdh2, "decryption_share", lambda *a: made.append(a) or make(*a))
    monkeypatch.setattr(node_index_key, "MAX_PARTS", 2)
    entries = [tdh2.encrypt(public, LABEL, bytes([i])) for i in range(3)]
    for entry in (entries[0], entries[0], entries[1], entries[0], entries[2], entries[2]):
        board.members[0].decryption_share(board.state, LABEL, entry)
    assert len(made) == 3
    assert len(board.members[0]._parts) == 1


# --- daemons -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path, makes_index_key=True)
    yield made
    await made.stop()


@pytest.fixture
def hasty(monkeypatch):
    """Deadlines of a fifth of a second."""
    monkeypatch.setattr(index_key, "DEALING_MS", 200)
    monkeypatch.setattr(index_key, "JUDGING_MS", 200)


async def until_shared(world: World, *numbers: int) -> None:
    nodes = [world.nodes[i] for i in numbers or world.nodes]
    await world.until(lambda: all(n.holder.status.get("holds_share") for n in nodes))


def key_of(world: World, i: int) -> index_key.IndexKey:
    return get_key(world.nodes[i]._ledger)


def open_with(world: World, *numbers: int) -> bool:
    key = key_of(world, numbers[0])
    ciphertext = tdh2.encrypt(key.public, LABEL, b"message")
    shares = {
        key.place(world.keys[i].public): world.nodes[i].holder.decryption_share(
            world.nodes[i]._ledger, LABEL, ciphertext
        )[1]
        for i in numbers
    }
    return tdh2.combine(key.shared, LABEL, ciphertext, shares) == (b"message", frozenset())


async def test_a_new_chain_makes_its_key_by_itself_and_stays_idle_then(world):
    await world.start()
    await until_shared(world)
    assert len({encode(key_of(world, i)) for i in range(4)}) == 1
    assert open_with(world, 0, 1, 2)
    assert open_with(world, 1, 2, 3)
    status = (await world.get(2, "/v1/status")).json()["index_key"]
    assert (status["public"], status["threshold"]) == (key_of(world, 0).commitments[0].hex(), 3)
    height = max(n.tip.height for n in world.nodes.values())
    await world.grow(0)
    assert world.nodes[0].tip.height <= height + 2
    metrics = (await world.get(1, "/metrics")).text
    assert "diptych_index_share 1.0" in metrics


async def test_a_chain_whose_member_is_missing_at_the_start_makes_its_key_and_the_late_member_gets_its_share(
    world, hasty
):
    await world.start(0, 1, 2)
    await until_shared(world)
    assert key_of(world, 0).dealers == (0, 1, 2)
    await world.start(3)
    await until_shared(world, 3)
    assert open_with(world, 3, 0, 1)


async def test_a_node_without_its_data_folder_has_its_share_again_from_the_chain(world):
    await world.start()
    await until_shared(world)
    await world.stop(3)
    shutil.rmtree(world.data(3))
    await world.start(3, rejoin=True)
    await until_shared(world, 3)
    assert open_with(world, 3, 0, 1)


async def test_a_member_that_stops_in_mid_round_keeps_its_place(world, monkeypatch):
    monkeypatch.setattr(index_key, "JUDGING_MS", 60_000)
    silent = Holder._word

    def no_judgement(self, state, current, share):
        word = silent(self, state, current, share)
        if isinstance(word, Judge) and self._keys[0].public == world.keys[2].public:
            raise Unavailable("not yet")
        return word

    monkeypatch.setattr(Holder, "_word", no_judgement)
    await world.start(0, 1, 3)
    world.nodes[2] = world.make(2)
    await world.nodes[2].start()
    await world.until(
        lambda: all(n.holder.status.get("waits_for") == ["n2"] for i, n in world.nodes.items() if i != 2)
    )
    await world.stop(2)
    monkeypatch.setattr(Holder, "_word", silent)
    await world.start(2)
    await until_shared(world)
    assert key_of(world, 0).dealers == (0, 1, 2, 3)


async def test_a_lying_member_is_left_out_of_the_key_by_all_nodes(world):
    for i in range(4):
        world.nodes[i] = world.make(i)
    liar = world.nodes[3].holder
    world.nodes[3].holder = Liar(world.genesis, liar._keys, liar._share_key)
    for node in world.nodes.values():
        await node.start()
    await until_shared(world)
    assert key_of(world, 1).dealers == (0, 1, 2)
    assert open_with(world, 0, 1, 2)


async def test_daemons_reshare_the_key_and_go_on_with_the_new_shares(world):
    await world.start()
    await until_shared(world)
    before, old = key_of(world, 0), world.nodes[0].holder._share
    await world.stop()
    for i in range(4):
        ledger = Ledger(world.data(i), world.genesis)
        state = _Changes(ledger)
        open_resharing(state, world.genesis, world.genesis.members, 3)
        write_into(ledger, state.written)
        ledger.close()
    await world.start()
    await world.until(lambda: all(n.holder.status.get("round") == 1 for n in world.nodes.values()))
    await until_shared(world)
    assert key_of(world, 0).public == before.public
    assert world.nodes[0].holder._share != old
    assert open_with(world, 0, 2, 3)
