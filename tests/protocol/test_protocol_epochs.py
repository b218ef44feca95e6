"""Changes of members: what ends an epoch and what does not, who then decides, and what liars make of the boundary."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.codec import encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.sign import SigningKey
from protocol import contract
from protocol.block import (
    Committee,
)
from protocol.contract import get_members
from protocol.epochs import next_members, successor
from protocol.genesis import Genesis, Member
from protocol.tx import Approval, ChangeMembers, Tx, decode_tx
from tests.simulation.cluster import (
    ADMINS,
    CLIENT,
    WALL0,
    Cluster,
    make_genesis,
    member,
    request_tx,
)

REPLACE = msgspec.structs.replace
GENESIS, KEYS = make_genesis(4)
FIRST = Committee(GENESIS)
MEMBERS = tuple(member(i, SigningKey(bytes([i + 1]) * 32)) for i in range(6))
NEXT = MEMBERS[:5]


def cut_off(n: int = 4, **changes) -> Cluster:
    """A cluster whose messages get nowhere unless a test injects them."""
    cluster = Cluster(n, spares=2, **changes)
    cluster.cut = lambda a, b: True
    return cluster


def approved(
    *admins: SigningKey, epoch: int = 0, members: tuple[Member, ...] = NEXT, genesis: Genesis = GENESIS
) -> ChangeMembers:
    change = ChangeMembers(epoch, members, ())
    for admin in admins:
        change = change.approve(genesis, admin)
    return change


def sent(change: ChangeMembers, number: int = 0) -> Tx:
    return decode_tx(wrapped(change, number))


def wrapped(change: ChangeMembers, number: int = 0, sender: SigningKey = ADMINS[0]) -> bytes:
    """The change in a transaction; with another number it is another one."""
    nonce = number.to_bytes(16, "big")
    return encode(Tx.make(GENESIS.chain_id, sender, nonce, WALL0 + 500_000, change))


# --- what the admins sign ------------------------------------------------------------------------------------------------


@given(st.permutations(ADMINS), st.integers(0, 3), st.booleans())
def test_a_change_holds_once_enough_admins_have_approved_in_whatever_order(order, count, repeats):
    admins = [*order[:count], *order[: count * repeats]]
    change = approved(*admins)
    assert [a.admin for a in change.approvals] == sorted(ADMINS.index(a) for a in order[:count])
    if count >= GENESIS.admin_quorum:
        change.check(FIRST)
    else:
        with pytest.raises(Denied, match=rf"{count} admins have approved where 2 of 3 must"):
            change.check(FIRST)


def test_only_an_admin_approves():
    for key in (CLIENT, KEYS[0]):
        with pytest.raises(Denied, match="not among the admins"):
            approved(key)


GOOD = approved(*ADMINS)
A, B, C = GOOD.approvals
STRANGE = Approval(1, CLIENT.sign("members", encode((GENESIS.hash, 0, NEXT))))


@pytest.mark.parametrize(
    "approvals",
    [
        (A, A),
        (A, A, B),
        (B, A),
        (A, C, B),
        (A, REPLACE(B, admin=3)),
        (A, B, REPLACE(C, admin=31)),
        (REPLACE(A, admin=1), REPLACE(B, admin=2)),
        (A, STRANGE),
        (A, STRANGE, C),
        (A, REPLACE(B, signature=A.signature)),
        (REPLACE(A, admin=1), B),
    ],
)
def test_approvals_that_are_doubled_moved_or_forged_count_for_nothing(approvals):
    with pytest.raises((Denied, Unauthentic)):
        REPLACE(GOOD, approvals=approvals).check(FIRST)
    assert next_members(FIRST, [sent(REPLACE(GOOD, approvals=approvals))]) is None


def test_approvals_are_for_one_chain_one_epoch_and_these_members_in_this_order():
    other = REPLACE(GENESIS, chain_id="diptych/1/sharing/test")
    later = successor(FIRST, Cluster().block(1).header, NEXT[:4])
    for change, committee in (
        (GOOD, Committee(other)),
        (REPLACE(GOOD, members=NEXT[::-1]), FIRST),
        (REPLACE(GOOD, members=MEMBERS[:3]), FIRST),
        (REPLACE(GOOD, epoch=1), Committee(GENESIS, 1, MEMBERS[:4])),
    ):
        with pytest.raises(Unauthentic, match="approval"):
            change.check(committee)
    with pytest.raises(Denied, match="end of epoch 0, and this is epoch 1; make it anew"):
        GOOD.check(later)
    with pytest.raises(Denied, match="end of epoch 1, and this is epoch 0"):
        approved(*ADMINS, epoch=1).check(FIRST)


def test_a_change_that_changes_nothing_ends_nothing():
    same = approved(*ADMINS, members=GENESIS.members)
    with pytest.raises(Denied, match="changes nothing"):
        same.check(FIRST)
    turned = approved(*ADMINS, members=GENESIS.members[::-1])
    turned.check(FIRST)  # who leads when is a change


def test_a_chain_without_admins_keeps_its_members():
    genesis = REPLACE(GENESIS, admins=(), admin_quorum=0)
    with pytest.raises(Denied, match="0 admins have approved"):
        ChangeMembers(0, NEXT, ()).check(Committee(genesis))


@pytest.mark.parametrize(
    "members",
    [
        (),
        (MEMBERS[0], MEMBERS[0]),
        (MEMBERS[0], REPLACE(MEMBERS[1], name="n0")),
        (MEMBERS[0], REPLACE(MEMBERS[1], key=MEMBERS[0].key)),
        (MEMBERS[0], REPLACE(MEMBERS[1], identity="peer-0")),
        tuple(Member(f"m{i}", i.to_bytes(32, "big"), str(i), bytes([i]) * 48) for i in range(65)),
    ],
)
def test_members_that_cannot_be_told_apart_or_are_too_many_do_not_decode(members):
    raw = wrapped(GOOD)
    plain = msgspec.msgpack.decode(raw)
    plain[0][4][2] = [[m.name, m.key, m.identity] for m in members]
    with pytest.raises(Malformed):
        decode_tx(encode(plain))


# --- which transaction ends an epoch, in consensus and in the contract -----------------------------------------------------


class State(dict):
    def put(self, key: bytes, value: bytes) -> None:
        self[key] = value


OTHER = approved(*ADMINS[:2], members=MEMBERS[:3])
BAD = approved(ADMINS[2])
PLAIN = decode_tx(request_tx(1))


@pytest.mark.parametrize(
    ("txs", "members"),
    [
        ([], None),
        ([PLAIN], None),
        ([sent(BAD)], None),
        ([PLAIN, sent(BAD), sent(GOOD), PLAIN], NEXT),
        ([sent(GOOD), sent(OTHER)], NEXT),
        ([sent(OTHER), sent(GOOD)], MEMBERS[:3]),
        ([sent(BAD), sent(OTHER), sent(GOOD)], MEMBERS[:3]),
        ([sent(approved(*ADMINS, epoch=1)), sent(OTHER)], MEMBERS[:3]),
    ],
)
def test_of_the_changes_in_a_block_the_first_valid_one_counts(txs, members):
    assert next_members(FIRST, txs) == members


def receipts(state: State, height: int, *changes: ChangeMembers) -> list[contract.Receipt]:
    return [
        contract.apply(state, GENESIS, sent(change, 100 * height + number), height, number, WALL0)
        for number, change in enumerate(changes)
    ]


def test_the_receipts_say_which_change_counted_and_why_the_others_did_not():
    state = State()
    signed_ahead = approved(*ADMINS, epoch=1, members=MEMBERS[:3])
    told = receipts(state, 1, BAD, GOOD, OTHER, signed_ahead)
    assert {r.kind for r in told} == {"members.change"}
    assert [r.ok for r in told] == [False, True, False, False]
    assert told[0].reason == "1 admins have approved where 2 of 3 must"
    assert (told[1].code, told[1].reason) == ("members-changed", "epoch 1 begins with 5 members")
    assert {r.reason for r in told[2:]} == {"this block has ended epoch 0 already; send the change again"}
    assert get_members(state, GENESIS) == (1, NEXT)
    told = receipts(state, 2, GOOD, approved(*ADMINS, epoch=1), signed_ahead)
    assert [r.ok for r in told] == [False, False, True]
    assert "end of epoch 0, and this is epoch 1" in told[0].reason
    assert told[1].reason == "the change of members changes nothing"
    assert get_members(state, GENESIS) == (2, MEMBERS[:3])


rosters = st.sampled_from([(0, 1, 2, 3), (3, 2, 1, 0), (0, 1, 2, 3, 4), (4, 5)])
changes = st.tuples(st.integers(0, 3), rosters, st.sampled_from([0, 1, 2, 3, 3]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(changes, max_size=4), max_size=5))
def test_the_contract_and_consensus_always_agree_on_the_members(blocks):
    """Blocks of changes, for the end of any epoch, to any members, approved by any number of admins."""
    state, committee = State(), FIRST
    for height, block in enumerate(blocks, 1):
        made = [
            approved(*ADMINS[:count], epoch=epoch, members=tuple(MEMBERS[p] for p in places))
            for epoch, places, count in block
        ]
        receipts(state, height, *made)
        members = next_members(committee, map(sent, made))
        if members:
            committee = Committee(GENESIS, committee.epoch + 1, members)
        assert get_members(state, GENESIS) == (committee.epoch, committee.members)
