"""The index key by the contract: who may deal and judge, when a round goes on, who is excluded, and that resharing keeps the key."""

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from crypto import tdh2
from crypto.codec import encode
from crypto.dkg import Complaint, Dealing, HolderKey, combined_share
from crypto.errors import Unauthentic
from crypto.group import G1_GENERATOR, random_scalar
from crypto.sharing import lagrange
from crypto.sign import SigningKey
from protocol.contract import Receipt, apply, decode_receipt, may_send
from protocol.genesis import Member
from protocol.index_key import (
    DEALING_MS,
    JUDGING_MS,
    IndexKey,
    awaited,
    get_dealing,
    get_key,
    get_round,
    open_resharing,
    run_of,
)
from protocol.tx import Action, Close, Deal, Judge, Tx, TxBody, decode_tx
from tests.dealer import deal, dishonest, share_key
from tests.memory_state import MemoryState
from tests.simulation.cluster import WALL0, make_genesis

AUTHORITY = SigningKey(bytes([77]) * 32)
KEYS = [SigningKey(bytes([i + 1]) * 32) for i in range(12)]
replace = msgspec.structs.replace


def members(*numbers: int) -> tuple[Member, ...]:
    return tuple(Member(f"n{i}", KEYS[i].public, f"p{i}", share_key(i).public.to_bytes()) for i in numbers)


class World:
    """The contract's state on one node, its members numbered by `KEYS`; every call is a transaction of its own block."""

    def __init__(self, size: int = 4, mode: str = "bft") -> None:
        self.genesis, _ = make_genesis(size, mode)
        self.state, self.time, self.height = MemoryState(), WALL0, 0

    def do(self, sender: int, action: Action) -> Receipt:
        self.height += 1
        body = TxBody(
            self.genesis.chain_id, KEYS[sender].public, self.height.to_bytes(16, "big"), WALL0, action
        )
        tx = Tx(body, bytes(64))
        assert decode_tx(encode(tx)) == tx
        before = dict(self.state)
        receipt = apply(self.state, self.genesis, tx, self.height, 0, self.time)
        assert receipt.ok or self.state == before, "a refused transaction changes nothing"
        assert decode_receipt(encode(receipt)) == receipt
        return receipt

    @property
    def round(self):
        return get_round(self.state, self.genesis)

    @property
    def key(self) -> IndexKey | None:
        return get_key(self.state)

    @property
    def run(self):
        return run_of(self.genesis.hash, self.round.number, self.round.holders, self.round.threshold)

    def dealing(self, sender: int) -> Dealing:
        """What an honest dealer deals now."""
        if self.key is None:
            return self.run.deal(self.place(sender, self.round.holders))
        return self.run.deal(self.place(sender, self.key.holders), self.share(sender))

    def deal(self, *senders: int) -> Receipt:
        return [self.do(i, Deal(self.round.number, self.dealing(i))) for i in senders][-1]

    def complaints(self, holder: int) -> tuple[Complaint, ...]:
        found, place = [], self.place(holder, self.round.holders)
        for dealer in self.round.dealt:
            dealing = get_dealing(self.state, self.round.number, dealer)
            try:
                self.run.piece(dealer, dealing, place, share_key(holder))
            except Unauthentic:
                found.append(self.run.complain(dealer, dealing, place, share_key(holder)))
        return tuple(found)

    def judge(self, *senders: int) -> Receipt:
        return [self.do(i, Judge(self.round.number, self.complaints(i))) for i in senders][-1]

    def make(self) -> "World":
        everybody = range(len(self.genesis.members))
        self.deal(*everybody)
        assert self.judge(*everybody).code == "key-made"
        return self

    @staticmethod
    def place(number: int, of: tuple[Member, ...]) -> int:
        return [m.key for m in of].index(KEYS[number].public)

    def share(self, number: int) -> int:
        """The share of the current key that member `number` opens from the state."""
        key = self.key
        run = run_of(self.genesis.hash, key.round, key.holders, key.threshold)
        place = self.place(number, key.holders)
        pieces = {
            d: run.piece(d, get_dealing(self.state, key.round, d), place, share_key(number))
            for d in key.dealers
        }
        return combined_share(pieces, key.weights)

    def opens(self, *numbers: int) -> bool:
        """Whether these members together open something encrypted to the key."""
        ciphertext = tdh2.encrypt(self.key.public, b"label", b"message")
        parts = {
            self.place(i, self.key.holders): tdh2.decryption_share(
                self.key.public, b"label", ciphertext, self.share(i)
            )
            for i in numbers
        }
        try:
            return tdh2.combine(self.key.shared, b"label", ciphertext, parts) == (b"message", frozenset())
        except Unauthentic:
            return False


def polynomial(count: int) -> list[int]:
    return [random_scalar() for _ in range(count)]


# --- making the key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "mode", "threshold"), [(1, "bft", 1), (4, "bft", 3), (5, "majority", 3), (7, "bft", 5)]
)
def test_the_members_of_genesis_make_a_key_that_a_quorum_of_them_opens_with(size, mode, threshold):
    world = World(size, mode)
    everybody = range(size)
    assert [world.deal(i).code for i in everybody] == ["dealt"] * (size - 1) + ["dealing-closed"]
    made = [world.judge(i) for i in everybody][-1]
    key = world.key
    assert (made.code, made.reason.split()[4][:-1]) == ("key-made", key.commitments[0].hex())
    assert (key.threshold, key.holders, key.round) == (threshold, world.genesis.members, 0)
    assert world.round is None
    assert world.opens(*everybody[size - threshold :])
    assert threshold == 1 or not world.opens(*everybody[: threshold - 1])
    secret = sum(w * world.share(i) for i, w in lagrange(everybody[:threshold]).items())
    assert G1_GENERATOR * secret == key.public


def test_only_members_take_part_each_in_its_own_name_once_and_in_its_phase():
    world = World()
    dealing = world.dealing(0)
    assert world.do(5, Deal(0, dealing)).code == "not-a-dealer"
    assert world.do(1, Deal(0, dealing)).code == "bad-dealing", "copied from another dealer"
    assert world.do(0, Deal(1, dealing)).code == "no-such-round"
    assert world.do(0, Judge(0, ())).code == "wrong-phase"
    assert world.do(0, Deal(0, dealing)).ok
    assert world.do(0, Deal(0, world.dealing(0))).code == "already-dealt"
    world.deal(1, 2, 3)
    assert world.do(0, Deal(0, dealing)).code == "wrong-phase"
    assert world.do(5, Judge(0, ())).code == "not-a-holder"
    assert world.do(1, Judge(0, ())).ok
    assert world.do(1, Judge(0, ())).code == "already-judged"
    world.judge(0, 2, 3)
    for action in (Deal(0, dealing), Judge(0, ()), Close(0, "judging")):
        assert world.do(0, action).code == "no-such-round"


def test_members_may_send_while_a_round_is_open_and_not_afterwards():
    world = World()
    member, stranger = KEYS[0].public, KEYS[5].public
    assert may_send(world.state, world.genesis, member)
    assert not may_send(world.state, world.genesis, stranger)
    world.make()
    assert not may_send(world.state, world.genesis, member)
    open_resharing(world.state, world.genesis, members(5, 6), 1)
    assert may_send(world.state, world.genesis, member)
    assert may_send(world.state, world.genesis, stranger)


# --- silence -----------------------------------------------------------------------------------------------------------


def test_a_silent_dealer_is_waited_for_until_the_deadline_and_then_left_out():
    world = World()
    world.deal(0)
    start = world.time
    world.deal(1, 2)
    assert [m.name for m in awaited(world.state, world.round)] == ["n3"]
    world.time = start + DEALING_MS - 1
    assert world.do(0, Close(0, "dealing")).code == "too-early"
    world.time += 1
    assert world.do(5, Close(0, "dealing")).code == "not-a-holder"
    assert world.do(0, Close(0, "judging")).code == "wrong-phase"
    assert world.do(0, Close(0, "dealing")).code == "dealing-closed"
    assert world.do(1, Close(0, "dealing")).code == "wrong-phase"
    world.judge(0, 1)
    world.time += JUDGING_MS
    assert world.do(0, Close(0, "judging")).code == "too-early", "two of four could not use the key"
    assert world.judge(2).code == "key-made", "late and enough"
    assert world.key.dealers == (0, 1, 2)
    assert world.opens(3, 0, 1), "whoever was away has its share on the chain"


def test_fewer_dealers_than_one_needs_shares_are_waited_for_without_end():
    world = World()
    world.deal(0, 1)
    world.time += 100 * DEALING_MS
    assert world.do(0, Close(0, "dealing")).code == "too-early"
    assert world.deal(2).code == "dealing-closed"


def test_a_silent_holder_keeps_nobody_from_the_key_after_the_deadline():
    world = World()
    world.deal(0, 1, 2, 3)
    world.judge(0, 1, 2)
    assert world.key is None
    world.time += JUDGING_MS
    assert world.do(2, Close(0, "judging")).code == "key-made"
    assert world.opens(3, 0, 1)


# --- lies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", [(0,), (1, 3), (0, 1, 2, 3)])
def test_a_dealer_of_wrong_pieces_is_excluded_by_whoever_got_one(victims):
    world = World()
    world.deal(0, 1, 2)
    bad = dishonest(world.run, 3, polynomial(3), {j: 5 for j in victims})
    assert world.do(3, Deal(0, bad)).code == "dealing-closed", "nobody sees it from outside"
    for i in range(4):
        assert len(world.complaints(i)) == (i in victims)
    assert world.judge(0, 1, 2, 3).code == "key-made"
    assert world.key.dealers == (0, 1, 2)
    assert all(world.opens(*(i for i in range(4) if i != left)) for left in range(4))


def test_a_dealing_that_is_wrong_on_its_face_is_refused_and_may_be_made_anew():
    world = World()
    good = world.dealing(0)
    six, _ = make_genesis(6)
    wrong = [
        dishonest(run_of(six.hash, 0, six.members, 4), 0, polynomial(4), {}),
        replace(good, commitments=good.commitments[:2]),
        replace(good, commitments=(*good.commitments, good.commitments[0])),
        replace(good, pieces=good.pieces[:3]),
        replace(good, pieces=good.pieces[::-1]),
        replace(good, seed=good.commitments[0]),
        replace(good, seed=bytes(48)),
        replace(good, suite="dkg9"),
        replace(good, constant_proof=good.seed_proof),
    ]
    for dealing in wrong:
        assert world.do(0, Deal(0, dealing)).code == "bad-dealing"
    assert world.do(0, Deal(0, good)).ok


def test_a_false_complaint_is_refused_and_its_maker_may_still_judge_rightly():
    world = World()
    world.deal(0, 1, 2, 3)
    dealing = get_dealing(world.state, 0, 0)
    lies = [
        (world.run.complain(0, dealing, 2, share_key(2)),),
        (Complaint(0, dealing.seed, bytes(64)),),
        (replace(world.run.complain(0, dealing, 1, share_key(1)), dealer=0),),
        (world.run.complain(0, dealing, 2, HolderKey.generate()),),
    ]
    for complaints in lies:
        assert world.do(2, Judge(0, complaints)).code == "false-complaint"
    assert world.do(2, Judge(0, (replace(lies[0][0], dealer=9),))).code == "no-such-dealing"
    assert world.judge(0, 1, 2, 3).code == "key-made"
    assert world.key.dealers == (0, 1, 2, 3)


def test_one_true_complaint_does_not_carry_a_false_one():
    world = World()
    world.deal(0, 1, 2)
    world.do(3, Deal(0, dishonest(world.run, 3, polynomial(3), {2: 5})))
    (true,) = world.complaints(2)
    false = world.run.complain(0, get_dealing(world.state, 0, 0), 2, share_key(2))
    assert world.do(2, Judge(0, (true, false))).code == "false-complaint"
    assert world.round.guilty == ()
    assert world.do(2, Judge(0, (true, true))).ok
    assert world.round.guilty == (3,)


def test_with_too_few_right_dealings_the_next_round_begins_and_can_succeed():
    world = World()
    first = world.dealing(0)
    world.do(0, Deal(0, first))
    world.deal(1)
    for i in (2, 3):
        world.do(i, Deal(0, dishonest(world.run, i, polynomial(3), {0: 5})))
    receipt = world.judge(0, 1, 2, 3)
    assert (receipt.ok, receipt.code) == (True, "round-failed")
    assert (world.key, world.round.number, world.round.dealt) == (None, 1, ())
    assert world.do(0, Deal(0, first)).code == "no-such-round"
    assert world.do(0, Deal(1, first)).code == "bad-dealing", "of another round"
    world.make()
    assert world.key.round == 1


# --- resharing ---------------------------------------------------------------------------------------------------------


def test_the_key_is_dealt_to_other_members_and_stays_the_same():
    world = World().make()
    old, old_shares = world.key, {i: world.share(i) for i in range(4)}
    open_resharing(world.state, world.genesis, members(2, 3, 6, 7, 8), 4)
    assert world.key == old, "the old shares serve until the new ones are there"
    assert world.opens(0, 1, 2)
    world.deal(0, 1, 2, 3)
    assert world.judge(2, 3, 6, 7, 8).code == "key-made"
    new = world.key
    assert (new.public, new.threshold, new.round) == (old.public, 4, 1)
    assert world.opens(6, 7, 8, 2)
    assert not world.opens(6, 7, 8)
    mixed = {0: old_shares[0], 1: old_shares[1], 4: world.share(8)}
    assert G1_GENERATOR * sum(w * mixed[i] for i, w in lagrange(mixed).items()) != new.public


def test_resharing_goes_on_without_an_old_member_that_is_gone_and_without_a_new_one_that_is_late():
    world = World().make()
    open_resharing(world.state, world.genesis, members(0, 1, 2, 4), 3)
    public = world.key.public
    world.deal(0, 1, 2)
    world.time += DEALING_MS
    assert world.do(4, Close(1, "dealing")).code == "dealing-closed"
    world.judge(0, 1, 2)
    world.time += JUDGING_MS
    assert world.do(0, Close(1, "judging")).code == "key-made"
    assert (world.key.public, world.key.dealers) == (public, (0, 1, 2))
    assert world.opens(4, 0, 1)


def test_only_holders_of_the_key_deal_it_and_only_their_own_share():
    world = World().make()
    open_resharing(world.state, world.genesis, members(4, 5, 6), 2)
    assert world.do(4, Deal(1, world.run.deal(0))).code == "not-a-dealer"
    for secret in (None, world.share(1)):
        assert world.do(0, Deal(1, world.run.deal(0, secret))).code == "bad-dealing"
    world.deal(0, 1, 2)
    assert world.do(3, Judge(1, ())).code == "wrong-phase"
    world.do(3, Deal(1, dishonest(world.run, 3, [world.share(3), *polynomial(1)], {1: 5})))
    assert world.do(0, Judge(1, ())).code == "not-a-holder"
    public = world.key.public
    assert world.judge(4, 5, 6).code == "key-made"
    assert (world.key.public, world.key.dealers) == (public, (0, 1, 2))
    assert world.opens(5, 6)


def test_a_failed_resharing_leaves_the_old_shares_in_force_and_begins_anew():
    world = World().make()
    old = world.key
    open_resharing(world.state, world.genesis, members(4, 5, 6, 7), 3)
    world.deal(0, 1)
    for i in (2, 3):
        world.do(i, Deal(1, dishonest(world.run, i, [world.share(i), *polynomial(2)], {0: 5})))
    assert world.judge(4, 5, 6, 7).code == "round-failed"
    assert world.key == old
    assert world.opens(0, 1, 2)
    world.deal(0, 1, 2, 3)
    assert world.judge(4, 5, 6, 7).code == "key-made"
    assert (world.key.public, world.key.round) == (old.public, 2)


def test_the_same_members_refresh_their_shares_again_and_again():
    world = World().make()
    public, seen = world.key.public, {world.share(0)}
    for number in (1, 2, 3):
        open_resharing(world.state, world.genesis, world.genesis.members, 3)
        world.make()
        assert (world.key.public, world.key.round) == (public, number)
        assert world.opens(1, 2, 3)
        seen.add(world.share(0))
    assert len(seen) == 4


def test_a_change_of_members_during_a_round_takes_its_place():
    world = World()
    world.deal(0, 1)
    open_resharing(world.state, world.genesis, members(0, 1, 2, 5), 3)
    assert (world.round.number, world.round.dealt) == (1, ())
    assert world.do(3, Deal(1, world.run.deal(3))).code == "not-a-dealer"
    world.deal(0, 1, 2, 5)
    assert world.judge(0, 1, 2, 5).code == "key-made"
    open_resharing(world.state, world.genesis, members(6), 1)
    open_resharing(world.state, world.genesis, members(7, 8), 2)
    assert world.round.number == 3
    world.deal(0, 1, 2, 5)
    assert world.judge(7, 8).code == "key-made"
    assert world.opens(7, 8)


def test_a_dealt_key_can_be_reshared_as_any_other():
    world = World()
    deal(world.genesis, world.state)
    public = world.key.public
    open_resharing(world.state, world.genesis, members(0, 1, 5), 2)
    world.deal(0, 1, 2, 3)
    assert world.judge(0, 1, 5).code == "key-made"
    assert world.key.public == public
    assert world.opens(1, 5)


# --- any history -------------------------------------------------------------------------------------------------------

kinds = st.sampled_from(
    ["deal", "lie", "judge", "close", "wait", "junk", "reshare", "everybody", "everybody"]
)


def carry_out(world: World, sender: int, kind: str) -> None:
    """One step of whoever it is; what makes no sense now is left out or refused."""
    current = world.round
    if kind == "wait":
        world.time += DEALING_MS // 2
    elif current is None:
        if kind == "reshare":
            open_resharing(world.state, world.genesis, members(*range(sender % 3, 4)), 2)
    elif kind == "everybody":
        for member in awaited(world.state, current):
            number = [key.public for key in KEYS].index(member.key)
            carry_out(world, number, "deal" if current.phase == "dealing" else "judge")
    elif kind == "close":
        world.do(sender, Close(current.number, current.phase))
    elif kind == "junk":
        world.do(sender, Deal(current.number, dishonest(world.run, 0, polynomial(current.threshold), {})))
    elif kind == "judge":
        if KEYS[sender].public in [m.key for m in current.holders]:
            world.judge(sender)
    elif KEYS[sender].public in [m.key for m in (world.key or current).holders]:
        try:
            dealing = world.dealing(sender)
        except Unauthentic:  # it was dealt a wrong piece while it was away, and has nothing to deal
            return
        if kind == "lie" and world.key is None:
            place = world.place(sender, current.holders)
            dealing = dishonest(world.run, place, polynomial(current.threshold), {0: 5})
        world.do(sender, Deal(current.number, dealing))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), kinds), max_size=25))
def test_whatever_happens_those_who_judged_open_with_the_key_and_it_never_changes(history):
    world, public, judged = World(), None, ()
    for sender, kind in history:
        before = world.round
        carry_out(world, sender, kind)
        if world.key is None:
            continue
        public = public or world.key.public
        assert world.key.public == public
        if before and world.round is None:
            event("a key was made")
            judged = list(range(5)) if kind == "everybody" else [*places_of(before), sender]
    if world.key:
        holders = [m.key for m in world.key.holders]
        able = [n for n in dict.fromkeys(judged) if KEYS[n].public in holders][: world.key.threshold]
        assert world.opens(*able)
        assert not world.opens(*able[:-1])


def places_of(current) -> list[int]:
    """The numbers of those who have judged."""
    return [int(current.holders[place].name[1:]) for place in current.judged]


def test_two_nodes_that_execute_the_same_transactions_have_the_same_key_and_state():
    one = World().make()
    history: list[tuple[int, Action]] = []
    two, three = World(), World()
    do = two.do
    two.do = lambda sender, action: (history.append((sender, action)), do(sender, action))[1]  # type: ignore[method-assign]
    two.make()
    for sender, action in history:
        three.do(sender, action)
    assert three.state == two.state
    assert three.key != one.key, "each run makes a key of its own"
