"""Changes of members: what ends an epoch and what does not, who then decides, and what liars make of the boundary."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.codec import encode
from crypto.errors import Conflict, Denied, Malformed, Unauthentic
from crypto.sign import SigningKey
from protocol import contract
from protocol.block import (
    Accusation,
    Block,
    Chain,
    Committee,
    Header,
    Proposal,
    Rejoin,
    Status,
    Votes,
    decode_message,
    signer_set,
    validators_hash,
)
from protocol.contract import get_members
from protocol.core import (
    Core,
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
    Send,
    ServeChain,
    anchor_tip,
)
from protocol.epochs import Handover, decode_handover, follow, next_change, successor
from protocol.genesis import Genesis, Member
from protocol.mempool import Mempool
from protocol.tx import Approval, ChangeMembers, Tx, decode_tx
from tests.memory_state import MemoryState
from tests.simulation.cluster import (
    ADMINS,
    CLIENT,
    WALL0,
    Cluster,
    Link,
    make_genesis,
    member,
    request_tx,
)
from tests.simulation.oracle import Invariants

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
    assert next_change(FIRST, [sent(REPLACE(GOOD, approvals=approvals))]) is None


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
    change = plain[1][4]
    assert change[2] == [[m.name, m.key, m.identity, m.share_key] for m in GOOD.members]
    change[2] = [[m.name, m.key, m.identity, m.share_key] for m in members]
    with pytest.raises(Malformed):
        decode_tx(encode(plain))


# --- which transaction ends an epoch, in consensus and in the contract -----------------------------------------------------


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
    change = next_change(FIRST, txs)
    assert (change and change.members) == members


def receipts(state: MemoryState, height: int, *changes: ChangeMembers) -> list[contract.Receipt]:
    return [
        contract.apply(state, GENESIS, sent(change, 100 * height + number), height, number, WALL0)
        for number, change in enumerate(changes)
    ]


def test_the_receipts_say_which_change_counted_and_why_the_others_did_not():
    state = MemoryState()
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
    state, committee = MemoryState(), FIRST
    for height, block in enumerate(blocks, 1):
        made = [
            approved(*ADMINS[:count], epoch=epoch, members=tuple(MEMBERS[p] for p in places))
            for epoch, places, count in block
        ]
        receipts(state, height, *made)
        change = next_change(committee, map(sent, made))
        if change:
            committee = Committee(GENESIS, committee.epoch + 1, change.members)
        assert get_members(state, GENESIS) == (committee.epoch, committee.members)


# --- following the members ------------------------------------------------------------------------------------------------------


CLUSTER = cut_off()
_, HANDOVER = CLUSTER.ending(FIRST, 0, 1, 2, 3, 4, helpers=(2, 5))


def other(value: object) -> object:
    """Another value of the same type and size."""
    return (
        value + 1
        if isinstance(value, int)
        else value[:-1] + type(value)(b"?" if isinstance(value, bytes) else "?")
    )


def other_header(header: Header, field: str) -> Header:
    return REPLACE(header, **{field: other(getattr(header, field))})


def resigned(
    *headers: Header, handover: Handover = HANDOVER, committee: Committee = FIRST, **more
) -> Handover:
    """As if a quorum had made these headers final: the first ends the epoch, each is linked to the one before."""
    linked = [headers[0]]
    for header in headers[1:]:
        linked.append(REPLACE(header, parent=linked[-1].id))
    last = linked[-1]
    proof = CLUSTER.certificate("finalize", last.view, last.id, committee=committee)
    return REPLACE(handover, header=linked[0], links=tuple(linked[1:]), finalization=proof, **more)


def test_whoever_knows_the_members_follows_them_over_an_end():
    for handover in (HANDOVER, resigned(HANDOVER.header), resigned(HANDOVER.header, *HANDOVER.links)):
        committee = follow(FIRST, decode_handover(encode(handover)))
        header = HANDOVER.header
        assert (committee.epoch, committee.members) == (1, MEMBERS[:5])
        assert committee.anchor == (header.id, header.height, header.time_ms)
        assert (committee.size, committee.quorum) == (5, 4)


HEADERS = Header.__struct_fields__
FORGED = {
    **{f"header.{f}": REPLACE(HANDOVER, header=other_header(HANDOVER.header, f)) for f in HEADERS},
    **{
        f"links[{i}].{f}": REPLACE(
            HANDOVER,
            links=(*HANDOVER.links[:i], other_header(HANDOVER.links[i], f), *HANDOVER.links[i + 1 :]),
        )
        for i in (0, 1)
        for f in HEADERS
    },
    "no links": REPLACE(HANDOVER, links=()),
    "a link left out": REPLACE(HANDOVER, links=HANDOVER.links[1:]),
    "the last link left out": REPLACE(HANDOVER, links=HANDOVER.links[:1]),
    "links turned": REPLACE(HANDOVER, links=HANDOVER.links[::-1]),
    "a link twice": REPLACE(HANDOVER, links=(HANDOVER.links[0], *HANDOVER.links)),
    "the header among the links": REPLACE(HANDOVER, links=(HANDOVER.header, *HANDOVER.links)),
    "other members": REPLACE(HANDOVER, change=approved(*ADMINS, members=NEXT[:4])),
    "members turned": REPLACE(HANDOVER, change=approved(*ADMINS, members=NEXT[::-1])),
    "another key": REPLACE(
        HANDOVER, change=approved(*ADMINS, members=(*NEXT[:4], REPLACE(MEMBERS[5], name="n4")))
    ),
    "an approval less": REPLACE(HANDOVER, change=approved(ADMINS[1])),
    "another epoch's change": REPLACE(HANDOVER, change=approved(*ADMINS, epoch=1)),
    "a block that only helped as the last": REPLACE(
        HANDOVER, header=HANDOVER.links[0], links=HANDOVER.links[1:]
    ),
    "the last that helped as the last": REPLACE(HANDOVER, header=HANDOVER.links[1], links=()),
}
PROOF = HANDOVER.finalization
PROOFS = {
    "of another kind": CLUSTER.certificate("notarize", PROOF.view, PROOF.block),
    "of another view": REPLACE(PROOF, view=PROOF.view + 1),
    "of another block": REPLACE(PROOF, block=HANDOVER.header.id),
    "of nothing": REPLACE(PROOF, kind="nullify", block=None),
    "with a signature less": REPLACE(PROOF, signatures=PROOF.signatures[:-1]),
    "with a signer less": REPLACE(PROOF, signers=signer_set((2, 3))),
    "with one signer less": REPLACE(PROOF, signers=signer_set((2, 3)), signatures=PROOF.signatures[1:]),
    "with other signers": REPLACE(PROOF, signers=signer_set((0, 1, 2))),
    "with signers beyond the members": REPLACE(PROOF, signers=signer_set((5, 6, 7))),
    "with a signature twice": REPLACE(PROOF, signatures=(PROOF.signatures[0],) * 3),
    "by the next members": CLUSTER.certificate(
        "finalize", PROOF.view, PROOF.block, committee=follow(FIRST, HANDOVER)
    ),
}
SIGNED_BY_A_QUORUM = {
    "of another chain": resigned(REPLACE(HANDOVER.header, chain_id="other")),
    "of another epoch": resigned(REPLACE(HANDOVER.header, epoch=1)),
    "by other members": resigned(REPLACE(HANDOVER.header, validators_hash=bytes(32))),
    "naming others than told": resigned(HANDOVER.header, change=approved(*ADMINS, members=MEMBERS[:3])),
    "whom no admin approved": resigned(
        REPLACE(HANDOVER.header, next_validators_hash=validators_hash(GENESIS, MEMBERS[4:])),
        change=ChangeMembers(0, MEMBERS[4:], ()),
    ),
    "whom too few admins approved": resigned(
        REPLACE(HANDOVER.header, next_validators_hash=validators_hash(GENESIS, MEMBERS[4:])),
        change=approved(ADMINS[0], members=MEMBERS[4:]),
    ),
    "whom the admins approved for later": resigned(
        REPLACE(HANDOVER.header, next_validators_hash=validators_hash(GENESIS, MEMBERS[4:])),
        change=approved(*ADMINS, epoch=1, members=MEMBERS[4:]),
    ),
    "naming the same members": resigned(
        REPLACE(HANDOVER.header, next_validators_hash=FIRST.validators_hash),
        change=approved(*ADMINS, members=FIRST.members),
    ),
    "without a transaction": resigned(REPLACE(HANDOVER.header, tx_count=0)),
    "with a transaction on top": resigned(HANDOVER.header, REPLACE(HANDOVER.links[0], tx_count=1)),
    "with a link of another chain": resigned(HANDOVER.header, REPLACE(HANDOVER.links[0], chain_id="other")),
    "with a link of the next epoch": resigned(HANDOVER.header, REPLACE(HANDOVER.links[0], epoch=1)),
}


@pytest.mark.parametrize(
    "forged",
    [
        *(pytest.param(handover, id=name) for name, handover in FORGED.items()),
        *(pytest.param(REPLACE(HANDOVER, finalization=p), id=f"proof {name}") for name, p in PROOFS.items()),
        *(pytest.param(handover, id=f"signed {name}") for name, handover in SIGNED_BY_A_QUORUM.items()),
    ],
)
def test_a_false_end_of_an_epoch_leads_nowhere(forged):
    with pytest.raises(Unauthentic, match="end of epoch 0 of diptych/1/storage/test"):
        follow(FIRST, forged)


def test_ends_are_followed_in_their_order_and_on_their_own_chain_only():
    second = follow(FIRST, HANDOVER)
    _, later = CLUSTER.ending(second, 5, 4, 3, 2)
    third = follow(second, later)
    assert (third.epoch, third.anchor.height) == (2, 2)
    for committee, handover in ((FIRST, later), (second, HANDOVER), (third, later), (third, HANDOVER)):
        with pytest.raises(Unauthentic):
            follow(committee, handover)
    elsewhere = Committee(REPLACE(GENESIS, chain_id="diptych/1/sharing/test"))
    majority = Committee(REPLACE(GENESIS, mode="majority"))
    for committee in (elsewhere, majority):
        with pytest.raises(Unauthentic):
            follow(committee, HANDOVER)


@given(st.binary(max_size=300))
def test_what_is_no_end_of_an_epoch_does_not_decode(data):
    with pytest.raises(Malformed):
        decode_handover(data)


@given(st.integers(0, len(encode(HANDOVER)) - 1), st.integers(1, 255))
def test_an_end_with_any_byte_changed_is_refused(place, change):
    data = bytearray(encode(HANDOVER))
    data[place] ^= change
    with pytest.raises((Malformed, Unauthentic)):
        follow(FIRST, decode_handover(bytes(data)))


# --- the last block ----------------------------------------------------------------------------------------------------------


def take(cluster: Cluster, host: int, src: int, *messages) -> list[Effect]:
    """The effects of messages on a core, not carried out."""
    core, effects = cluster.cores[host], []
    for message in messages:
        core.receive(src, decode_message(encode(message)), cluster.now, cluster.wall())
        effects += core.take_effects()
    return effects


def notarized(effects: list[Effect]) -> list[bytes | None]:
    return [e.vote.block for e in effects if isinstance(e, SaveVote) and e.vote.kind == "notarize"]


AFTER = {"next_validators_hash": validators_hash(GENESIS, NEXT)}
CHANGE, REFUSED = wrapped(GOOD), wrapped(BAD)


@pytest.mark.parametrize(
    ("txs", "changes", "is_right"),
    [
        ([CHANGE], AFTER, True),
        ([request_tx(1), CHANGE, request_tx(2)], AFTER, True),
        ([CHANGE, wrapped(OTHER)], AFTER, True),
        ([wrapped(OTHER), CHANGE], AFTER, False),
        ([CHANGE], {}, False),
        ([CHANGE], {"next_validators_hash": bytes(32)}, False),
        ([REFUSED], AFTER, False),
        ([REFUSED], {}, True),
        ([request_tx(1)], AFTER, False),
        ([], AFTER, False),
        ([CHANGE], {**AFTER, "validators_hash": AFTER["next_validators_hash"]}, False),
        ([CHANGE], {**AFTER, "epoch": 1}, False),
    ],
)
def test_a_block_names_the_next_members_exactly_if_it_carries_their_change(txs, changes, is_right):
    cluster = cut_off()
    block = cluster.block(1, *txs, **changes)
    effects = take(cluster, 1, 0, cluster.proposal(block))
    assert notarized(effects) == ([block.header.id] if is_right else [])


@pytest.mark.parametrize(
    ("txs", "changes", "is_right"),
    [
        ([], AFTER, True),
        ([], {}, False),
        ([], {"next_validators_hash": bytes(32)}, False),
        ([request_tx(1)], AFTER, False),
        ([wrapped(OTHER)], {"next_validators_hash": validators_hash(GENESIS, MEMBERS[:3])}, False),
        ([wrapped(GOOD, 1)], AFTER, False),
    ],
)
def test_on_top_of_the_last_block_only_empty_ones_that_name_the_same_members_are_notarized(
    txs, changes, is_right
):
    cluster = cut_off()
    blocks = [cluster.block(1, CHANGE, **AFTER)]
    take(cluster, 1, 0, cluster.proposal(blocks[0]))
    for view in (2, 3)[: 1 + is_right]:
        parent = blocks[-1].header
        blocks.append(cluster.block(view, *txs, parent=parent, **changes))
        certificate = cluster.certificate("notarize", parent.view, parent.id)
        effects = take(cluster, 1, 0, cluster.proposal(blocks[-1], certificate))
        assert notarized(effects) == ([blocks[-1].header.id] if is_right else [])


def test_a_leader_puts_nothing_but_empty_blocks_on_the_last_one_and_waits_before_it_does():
    cluster = cut_off()
    leader = cluster.cores[0]
    for raw in (CHANGE, request_tx(1)):
        leader.mempool.add(raw, cluster.wall())
    leader.submit(cluster.now, cluster.wall())
    first = next(e.message for e in leader.take_effects() if isinstance(e, Send))
    assert first.block.txs == (CHANGE, request_tx(1))
    assert first.block.header.next_validators_hash == AFTER["next_validators_hash"]
    leader.mempool.add(request_tx(2), cluster.wall())
    notarization = cluster.certificate("notarize", 1, first.block.header.id)
    effects = take(cluster, 0, 1, Votes((), notarization))
    assert not [e for e in effects if isinstance(e, Send) and isinstance(e.message, Proposal)]
    leader.tick(0.3, WALL0 + 300)
    second = next(
        e.message for e in leader.take_effects() if isinstance(e, Send) and isinstance(e.message, Proposal)
    )
    assert second.block.txs == ()
    assert second.block.header.next_validators_hash == AFTER["next_validators_hash"]


def test_blocks_that_only_helped_are_dropped_and_their_proof_is_handed_over():
    cluster = cut_off()
    blocks, handover = cluster.ending(cluster.committee, 0, 1, 2, 3, 4, helpers=(2, 3))
    messages = [cluster.proposal(blocks[0])]
    for parent, block in itertools.pairwise(blocks):
        certificate = cluster.certificate("notarize", parent.header.view, parent.header.id)
        messages.append(cluster.proposal(block, certificate))
    last = blocks[-1].header
    messages.append(Votes((), cluster.certificate("notarize", last.view, last.id)))
    take(cluster, 1, 0, *messages)
    effects = take(cluster, 1, 0, Status(0, 4, 1, handover.finalization, None, None, ()))
    final, ended = (e for e in effects if not isinstance(e, Send | SaveCertificate))
    assert isinstance(final, Finalized)
    assert [b for b, _ in final.blocks] == blocks[:1]
    assert ended == EpochEnded(handover)
    core = cluster.cores[1]
    assert core.next_committee.anchor.id == blocks[0].header.id
    assert not take(cluster, 1, 0, *messages), "the engine of an epoch that is over does nothing more"
    core.tick(99, WALL0 + 99_000)
    core.submit(99, WALL0 + 99_000)
    core.greet(0)
    assert not core.take_effects()


def test_a_final_block_that_names_members_of_no_change_halts_the_chain():
    """More members lie than the mode bears."""
    cluster = cut_off(may_halt=True)
    for txs, named in (([request_tx(1)], NEXT), ([CHANGE], MEMBERS[:3]), ([REFUSED], NEXT)):
        cluster.start(1)
        block = cluster.block(1, *txs, next_validators_hash=validators_hash(GENESIS, named))
        proof = cluster.certificate("finalize", 1, block.header.id)
        effects = take(cluster, 1, 0, Chain((block,), (), proof))
        assert isinstance(effects[-1], Halted)
        assert "names members that no change in it names" in effects[-1].reason
        assert not [e for e in effects if isinstance(e, EpochEnded)]


# --- pages ---------------------------------------------------------------------------------------------------------------------


def test_a_page_brings_the_end_of_an_epoch_by_its_own_proof_or_by_that_of_the_blocks_on_top():
    for helpers in ((), (2,), (2, 3)):
        cluster = cut_off()
        blocks, handover = cluster.ending(cluster.committee, 0, 1, 2, 3, 4, helpers=helpers)
        page = Chain((blocks[0],), handover.links, handover.finalization)
        effects = take(cluster, 3, 0, page)
        assert [e for e in effects if isinstance(e, SaveBlock)] == [SaveBlock(blocks[0])]
        after = effects[effects.index(EpochEnded(handover)) + 1 :]
        assert all(isinstance(e, Send) for e in after), "nothing of the old epoch becomes durable any more"
        core = cluster.cores[3].next_epoch(cluster.keys[3])
        assert (core.committee.epoch, core.me, core.view, core.tip.height) == (1, 3, 1, 1)


def test_a_page_up_to_shortly_before_the_end_keeps_the_proof_for_the_rest():
    cluster = cut_off()
    block = cluster.block(1, request_tx(1))
    last = cluster.block(2, CHANGE, parent=block.header, **AFTER)
    helper = cluster.block(3, parent=last.header, **AFTER)
    proof = cluster.certificate("finalize", 3, helper.header.id)
    effects = take(cluster, 3, 0, Chain((block,), (last.header, helper.header), proof))
    assert not [e for e in effects if isinstance(e, EpochEnded)]
    assert cluster.cores[3].tip.height == 1
    effects = take(cluster, 3, 0, Chain((last,), (helper.header,), proof))
    assert [e.handover.links for e in effects if isinstance(e, EpochEnded)] == [(helper.header,)]


def test_a_page_that_crosses_the_end_of_an_epoch_is_refused():
    cluster = cut_off()
    blocks, handover = cluster.ending(cluster.committee, 0, 1, 2, 3, 4, helpers=(2, 3))
    following = successor(FIRST, blocks[0].header, NEXT)
    beyond = cluster.block(1, request_tx(1), committee=following)
    proofs = [
        cluster.certificate("finalize", 1, beyond.header.id),
        cluster.certificate("finalize", 1, beyond.header.id, committee=following),
    ]
    pages = [
        Chain(tuple(blocks), (), handover.finalization),
        Chain(tuple(blocks[:2]), (blocks[2].header,), handover.finalization),
        *(Chain((blocks[0], beyond), (), proof) for proof in proofs),
        *(Chain((blocks[0],), (beyond.header,), proof) for proof in proofs),
        Chain((beyond,), (), proofs[1]),
    ]
    for page in pages:
        assert not take(cluster, 3, 0, page)
    assert cluster.cores[3].tip.height == 0


# --- between epochs ------------------------------------------------------------------------------------------------------------


def in_next_epoch(*members: int, **options) -> tuple[Cluster, Committee]:
    """Hosts 0 to 5 in epoch 1, which those given decide in; from then on messages get nowhere unless a test injects them."""
    cluster = Cluster(spares=2, **options)
    cluster.submit(cluster.change(0, *members))
    cluster.run_until(lambda: all(core.committee.epoch == 1 for core in cluster.cores))
    cluster.cut = lambda a, b: True
    for core in cluster.cores:
        core.take_effects()
    return cluster, cluster.disks[0].committee


def test_a_status_of_an_earlier_epoch_is_answered_by_a_page_and_one_of_a_later_by_a_status():
    cluster, _ = in_next_epoch(0, 1, 2, 3, 4)
    height = cluster.cores[0].tip.height
    behind = Status(0, 1, 0, None, None, None, ())
    assert take(cluster, 0, 5, behind) == [ServeChain(5, 1)]
    (answer,) = take(cluster, 0, 3, Status(2, 1, 9, None, None, None, ()))
    assert (answer.to, answer.message.epoch, answer.message.height) == (3, 1, height)


@pytest.mark.parametrize("height", [1, 2, 2**40, 2**63 - 1])
def test_nobody_who_claims_to_stand_in_an_earlier_epoch_beyond_its_end_is_answered(height):
    cluster, _ = in_next_epoch(0, 1, 2, 3, 4)
    assert not take(cluster, 0, 3, Status(0, 1, height, None, None, None, ()))


def test_of_a_status_of_another_epoch_nothing_else_counts():
    """True certificates of this epoch, in a status that says it is of another, are not even looked at."""
    cluster, committee = in_next_epoch(0, 1, 2, 3, 4)
    notarization = cluster.certificate("notarize", 7, b"x" * 32, committee=committee)
    votes = (committee.sign(cluster.keys[2], 2, "notarize", 1, b"x" * 32),)
    for epoch in (0, 2):
        take(cluster, 0, 2, Status(epoch, 8, 9, None, notarization, None, votes))
        assert cluster.cores[0].view == 1
        assert cluster.cores[0].missing_votes()["notarize"] == [0, 1, 2, 3, 4]
    take(cluster, 0, 2, Status(1, 8, 1, None, notarization, None, votes))
    assert cluster.cores[0].view == 8


def test_votes_certificates_and_accusations_of_one_epoch_do_not_count_in_another():
    """Though the members are the same but for one, and the same views come again."""
    cluster, committee = in_next_epoch(0, 1, 2, 3, 4)
    block = cluster.block(1, request_tx(1), committee=committee)
    take(cluster, 1, 0, cluster.proposal(block, committee=committee))
    core, first = cluster.cores[1], cluster.committee
    old = [first.sign(cluster.keys[s], s, "notarize", 1, block.header.id) for s in (0, 2, 3)]
    nullify = [first.sign(cluster.keys[s], s, "nullify", 1, None) for s in (0, 2, 3)]
    finalize = [first.sign(cluster.keys[s], s, "finalize", 1, block.header.id) for s in (0, 2, 3)]
    lie = [first.sign(cluster.keys[2], 2, "notarize", 2, bytes([i]) * 32) for i in (1, 2)]
    messages = [
        Votes((*old, *nullify, *finalize), None),
        *(Votes((), first.certify(votes)) for votes in (old, nullify, finalize)),
        Status(1, 9, 1, first.certify(finalize), first.certify(old), first.certify(nullify), ()),
        Accusation(*lie),
        Votes(tuple(lie), None),
    ]
    assert not [e for e in take(cluster, 1, 2, *messages) if not isinstance(e, Send)]
    assert (core.view, core.tip.height) == (1, 1)
    assert core.missing_votes()["notarize"] == [2, 3, 4]
    true = [committee.sign(cluster.keys[s], s, "notarize", 1, block.header.id) for s in (2, 3)]
    take(cluster, 1, 2, Votes(tuple(true), None))
    assert core.view == 2


def test_evidence_names_the_epoch_and_convicts_by_its_members():
    cluster, committee = in_next_epoch(4, 3, 2, 1)
    lie = [committee.sign(cluster.keys[4], 0, "notarize", 1, bytes([i]) * 32) for i in (1, 2)]
    effects = take(cluster, 1, 0, Votes(tuple(lie), None))
    (evidence,) = [e.evidence for e in effects if isinstance(e, Record)]
    assert evidence.epoch == 1
    assert committee.members[evidence.first.signer].name == "n4"


def test_a_removed_member_follows_and_signs_nothing():
    cluster, committee = in_next_epoch(1, 2, 3, 4)
    removed = cluster.cores[0]
    assert removed.me is None
    block = cluster.block(1, request_tx(1), committee=committee)
    take(cluster, 0, 1, cluster.proposal(block, committee=committee))
    notarization = cluster.certificate("notarize", 1, block.header.id, committee=committee)
    effects = take(cluster, 0, 1, Votes((), notarization))
    removed.tick(50, WALL0 + 50_000)
    effects += removed.take_effects()
    effects += take(cluster, 0, 1, Rejoin(bytes(32)))
    assert not [e for e in effects if isinstance(e, SaveVote)]
    assert all(isinstance(e.message, Status) for e in effects if isinstance(e, Send))
    proof = cluster.certificate("finalize", 1, block.header.id, committee=committee)
    effects = take(cluster, 0, 1, Status(1, 2, 2, proof, None, None, ()))
    assert [type(e) for e in effects].count(Finalized) == 1


def test_the_votes_of_a_removed_member_count_no_more():
    cluster, committee = in_next_epoch(1, 2, 3, 4)
    block = cluster.block(1, request_tx(1), committee=committee)
    take(cluster, 2, 1, cluster.proposal(block, committee=committee))
    for signer in range(4):
        vote = committee.sign(cluster.keys[0], signer, "notarize", 1, block.header.id)
        take(cluster, 2, 5, Votes((vote,), None))
    assert cluster.cores[2].missing_votes()["notarize"] == [2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epoch": 0},
        {"validators_hash": FIRST.validators_hash},
        {"parent": GENESIS.hash},
        {"height": 1},
        {"time_ms": WALL0},
        {"parent_view": 1},
        {"proposer": 3},
    ],
)
def test_the_first_block_of_an_epoch_stands_on_the_last_of_the_one_before(changes):
    cluster, committee = in_next_epoch(0, 1, 2, 3, 4)
    block = cluster.block(1, request_tx(1), committee=committee)
    block = REPLACE(block, header=REPLACE(block.header, **changes))
    effects = take(cluster, 1, 0, cluster.proposal(block, committee=committee))
    assert notarized(effects) == ([] if changes else [block.header.id])


# --- changes that come again, early, or with others -----------------------------------------------------------------------------


def final_everywhere(cluster: Cluster, *raws: bytes) -> None:
    for raw in raws:
        cluster.submit(raw)
    cluster.run_until(lambda: all(set(raws) <= set(cluster.final_txs(i)) for i in range(len(cluster.cores))))


def checked(n: int = 4, **options) -> Cluster:
    return Cluster(
        n, make_oracle=lambda genesis: Invariants(genesis, frozenset(), 6), spares=6 - n, **options
    )


def test_a_change_that_has_been_final_is_refused_and_one_wrapped_anew_changes_nothing():
    cluster = checked()
    change = cluster.change(0, 0, 1, 2, 3, 4)
    final_everywhere(cluster, change)
    cluster.run_until(lambda: all(core.committee.epoch == 1 for core in cluster.cores))
    with pytest.raises(Conflict, match="already final"):
        cluster.submit(change)
    again = wrapped(decode_tx(change).body.action, 7, CLIENT)
    final_everywhere(cluster, again)
    assert {core.committee.epoch for core in cluster.cores} == {1}
    assert {core.committee.size for core in cluster.cores} == {5}


def test_a_change_for_a_later_epoch_is_final_now_and_never_takes_effect():
    cluster = checked()
    final_everywhere(cluster, cluster.change(1, 0, 1, 2), cluster.change(0, 0, 1, 2, 3, 4))
    cluster.run_for(5)
    assert {(core.committee.epoch, core.committee.size) for core in cluster.cores} == {(1, 5)}


def test_of_two_changes_in_one_block_the_first_takes_effect():
    cluster = checked()
    first, second = cluster.change(0, 0, 1, 2, 3, 4), cluster.change(0, 1, 2, 3)
    for raw in (first, second):
        cluster.cores[0].mempool.add(raw, cluster.wall())
    cluster.submit(request_tx(1))
    cluster.run_until(lambda: all(core.committee.epoch == 1 for core in cluster.cores))
    assert cluster.final_txs(0)[:2] == [first, second]
    assert [m.name for m in cluster.disks[0].committee.members] == ["n0", "n1", "n2", "n3", "n4"]


def test_what_waits_when_an_epoch_ends_becomes_final_in_the_next():
    cluster = checked(max_block_txs=1)
    raws = [request_tx(0), cluster.change(0, 0, 1, 2, 3, 4), *map(request_tx, range(1, 6))]
    final_everywhere(cluster, *raws)
    epochs = [block.header.epoch for block, _ in cluster.disks[0].final]
    assert epochs == sorted(epochs)
    assert epochs[:2] == [0, 0]
    assert epochs.count(1) == 5


@pytest.mark.parametrize(
    ("n", "mode", "rosters"),
    [
        (1, "bft", [(0, 1), (1,), (0, 1, 2, 3)]),
        (4, "bft", [(0, 1, 2, 3, 4), (3, 4, 5, 0), (0, 5, 3, 4)]),
        (3, "majority", [(1,), (1, 2), (0, 1, 2, 3, 4)]),
        (2, "majority", [(3, 4, 5), (0, 1)]),
    ],
)
def test_members_change_one_after_another_down_to_one_and_altogether(n, mode, rosters):
    cluster = checked(n, mode=mode)
    for epoch, members in enumerate(rosters):
        final_everywhere(cluster, request_tx(epoch), cluster.change(epoch, *members))
        cluster.run_until(lambda e=epoch: all(core.committee.epoch == e + 1 for core in cluster.cores))
        names = [m.name for m in cluster.disks[0].committee.members]
        assert names == [f"n{m}" for m in members]
        assert [core.me for core in cluster.cores] == [
            members.index(host) if host in members else None for host in range(6)
        ]
    final_everywhere(cluster, request_tx(99))


def test_a_new_key_counts_from_its_epoch_on_and_the_old_one_no_more():
    cluster = checked()
    new = SigningKey(b"2" * 32)
    cluster.new_keys[2] = [new]
    old = cluster.keys[2]
    final_everywhere(cluster, cluster.change(0, 0, 1, 2, 3))
    cluster.run_until(lambda: all(core.committee.epoch == 1 for core in cluster.cores))
    committee = cluster.disks[0].committee
    assert committee.is_valid_vote(committee.sign(new, 2, "nullify", 1, None))
    assert not committee.is_valid_vote(committee.sign(old, 2, "nullify", 1, None))
    cluster.crash(0)
    cluster.submit(request_tx(1))
    cluster.run_until(lambda: all(request_tx(1) in cluster.final_txs(i) for i in range(1, 6)))


@pytest.mark.parametrize("point", ["before commit", "after commit", "between sends"])
@pytest.mark.parametrize("number", range(0, 8, 2))
def test_a_crash_in_the_step_that_ends_an_epoch_loses_nothing(point, number):
    cluster = checked(link=Link(delay=(0.01, 0.01)))
    cluster.on_crash = lambda host: cluster.at(cluster.now + 0.2, lambda: cluster.start(host))
    cluster.submit(cluster.change(0, 0, 1, 2, 3, 4))
    cluster.run_for(0.025)
    for host in range(6):
        cluster.crash_next[host] = (point, number)
    cluster.run_for(0.01)
    assert cluster.cores[1] is None
    cluster.run_for(0.5)
    final_everywhere(cluster, request_tx(1))
    assert {core.committee.epoch for core in cluster.cores} == {1}


# --- a lost journal at the end of an epoch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "view", "after"),
    [
        (None, 1, None),
        (None, 9, None),
        (5, 1, None),
        (5, 4, None),
        (5, 5, None),
        (5, 6, 0),
        (5, 9, 0),
        (0, 1, 0),
    ],
)
@pytest.mark.parametrize("me", [1, 5])
def test_an_abstention_ends_with_the_epoch_only_if_the_last_block_came_in_a_view_beyond_it(
    before, view, after, me
):
    """Otherwise the lost journal may have seen the end of this epoch, and hold votes of the next."""
    cluster = cut_off()
    restored = Restored(anchor_tip(FIRST), abstain_until=before)
    key, mempool = cluster.keys[me], Mempool(GENESIS.chain_id)
    cluster.cores[me] = core = Core(FIRST, key, mempool, restored, 0.0, WALL0, b"n" * 32)
    chain: list[Block] = []
    for v in range(1, view):
        chain.append(cluster.block(v, request_tx(v), parent=chain[-1].header if chain else None))
    last = cluster.block(view, CHANGE, parent=chain[-1].header if chain else None, **AFTER)
    helper = cluster.block(view + 1, parent=last.header, **AFTER)
    proof = cluster.certificate("finalize", view + 1, helper.header.id)
    effects = take(cluster, me, 0, Chain((*chain, last), (helper.header,), proof))
    assert [type(e) for e in effects].count(EpochEnded) == 1
    saved = [e.until for e in effects if isinstance(e, SaveAbstention)]
    assert saved == ([] if before == 0 else [after])
    assert core.next_epoch(key).abstain_until == after


def test_a_member_that_must_abstain_in_a_new_epoch_asks_there_and_heeds_only_reports_of_that_epoch():
    cluster, committee = in_next_epoch(0, 1, 2, 3, 4)
    restored = Restored(anchor_tip(committee), abstain_until=None)
    key, nonce, mempool = cluster.keys[1], b"n" * 32, Mempool(GENESIS.chain_id)
    cluster.cores[1] = core = Core(committee, key, mempool, restored, 0.0, WALL0, nonce)
    core.tick(0.0, WALL0)
    assert Send(None, Rejoin(nonce)) in core.take_effects()
    for who in (FIRST, committee):
        for src in (0, 2, 3):
            take(cluster, 1, src, who.report(cluster.keys[src], src, nonce, 1, None))
        if who is FIRST:
            assert not core._reports
    take(cluster, 1, 5, committee.report(cluster.keys[4], 4, nonce, 1, None))
    take(cluster, 1, 4, FIRST.report(cluster.keys[4], 4, nonce, 1, None))
    assert core.abstain_until is None
    take(cluster, 1, 4, committee.report(cluster.keys[4], 4, nonce, 1, None))
    assert core.abstain_until == committee.term_start(1)
