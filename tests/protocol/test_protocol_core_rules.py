"""When an honest core signs and when it does not: the signing rules of the protocol, case by case."""

import msgspec
import pytest

from crypto.codec import encode
from protocol.block import Block, Body, Certificate, Chain, Status, Vote, Votes, decode_message
from protocol.core import DRIFT_MS, Core, Restored, SaveCertificate, SaveVote, ServeChain, anchor_tip
from protocol.mempool import Mempool
from tests.simulation.cluster import WALL0, Cluster, request_tx

REPLACE = msgspec.structs.replace
ME = 1
"""A member that does not lead the first term; member 0 does."""


def cut_off(**changes: int) -> Cluster:
    cluster = Cluster(**changes)
    cluster.cut = lambda a, b: True
    return cluster


def signed(
    cluster: Cluster, *messages, src: int = 0, now: float = 0.0, me: int = ME
) -> list[tuple[str, int, bytes | None]]:
    """What the core signs when these messages come."""
    core, votes = cluster.cores[me], []
    for message in messages:
        core.receive(src, decode_message(encode(message)), now, WALL0 + int(now * 1000))
        votes += [e.vote for e in core.take_effects() if isinstance(e, SaveVote)]
    return [(v.kind, v.view, v.block) for v in votes]


def notarizes(cluster: Cluster, proposal, **kwargs) -> bool:
    return ("notarize", proposal.block.header.view, proposal.block.header.id) in signed(
        cluster, proposal, **kwargs
    )


# --- notarize ----------------------------------------------------------------------------------------------------------


def test_a_true_proposal_of_the_leader_is_notarized_once_whoever_passes_it_on():
    cluster = cut_off()
    proposal = cluster.proposal(cluster.block(1, request_tx(1)))
    assert notarizes(cluster, proposal, src=3)
    assert not signed(cluster, proposal)


def test_a_second_proposal_of_the_leader_in_a_view_is_not_notarized():
    cluster = cut_off()
    assert notarizes(cluster, cluster.proposal(cluster.block(1, request_tx(1))))
    assert not signed(cluster, cluster.proposal(cluster.block(1, request_tx(2))))


@pytest.mark.parametrize(
    ("txs", "changes"),
    [
        ([request_tx(1), request_tx(1)], {}),
        ([request_tx(1)[:-1] + b"\x00"], {}),
        ([request_tx(1, "diptych/1/sharing/test")], {}),
        ([request_tx(1, expires_ms=WALL0 + 1)], {}),
        ([request_tx(1, expires_ms=WALL0 + 600_002)], {}),
        ([b""], {}),
        ([request_tx(1)], {"tx_count": 2}),
        ([request_tx(1)], {"tx_root": bytes(32)}),
        ([], {"height": 2}),
        ([], {"height": 0}),
        ([], {"time_ms": WALL0}),
        ([], {"time_ms": WALL0 + DRIFT_MS + 1}),
        ([], {"chain_id": "diptych/1/sharing/test"}),
        ([], {"epoch": 1}),
        ([], {"validators_hash": bytes(32)}),
        ([], {"next_validators_hash": bytes(32)}),
        ([], {"proposer": 1}),
        ([], {"proposer": 63}),
        ([], {"parent": b"p" * 32}),
        ([], {"parent_view": 1}),
        ([], {"view": 2}),
        ([], {"view": 5, "proposer": 1}),
    ],
)
def test_a_block_that_breaks_a_rule_is_not_notarized_even_if_the_leader_signed_it(txs, changes):
    cluster = cut_off()
    block = cluster.block(1, *txs)
    broken = REPLACE(block, header=REPLACE(block.header, **changes))
    assert not notarizes(cluster, cluster.proposal(broken))


def test_a_block_is_not_notarized_on_the_word_of_anyone_but_its_leader():
    cluster = cut_off()
    block = cluster.block(1)
    good = cluster.proposal(block)
    for vote in (
        REPLACE(good.vote, signature=bytes(64)),
        cluster.committee.sign(cluster.keys[2], 2, "notarize", 1, block.header.id),
        cluster.committee.sign(cluster.keys[0], 0, "finalize", 1, block.header.id),
        cluster.committee.sign(cluster.keys[0], 0, "notarize", 1, b"x" * 32),
        cluster.committee.sign(cluster.keys[0], 0, "notarize", 2, block.header.id),
    ):
        assert not signed(cluster, REPLACE(good, vote=vote))
    assert notarizes(cluster, good)


def test_a_block_over_the_limits_of_genesis_is_not_notarized():
    cluster = cut_off(max_block_txs=2, max_block_bytes=64 << 10)
    assert not notarizes(cluster, cluster.proposal(cluster.block(1, *(request_tx(k) for k in range(3)))))
    cluster = cut_off(max_block_bytes=64 << 10)
    count = (64 << 10) // len(request_tx(1)) + 1
    assert not notarizes(cluster, cluster.proposal(cluster.block(1, *(request_tx(k) for k in range(count)))))
    cluster = cut_off(max_block_bytes=64 << 10)
    assert notarizes(cluster, cluster.proposal(cluster.block(1, *(request_tx(k) for k in range(count - 1)))))


def two_views(cluster: Cluster, first_txs=(), second_txs=(), **changes):
    """A notarized block of view 1, and a proposal on it in view 2."""
    first = cluster.block(1, *first_txs)
    notarized = cluster.certificate("notarize", 1, first.header.id)
    second = cluster.block(2, *second_txs, parent=first.header, **changes)
    return cluster.proposal(first), cluster.proposal(second, notarized)


def test_a_child_is_notarized_with_the_notarization_of_its_parent_and_not_without():
    first, second = two_views(cut_off())
    cluster = cut_off()
    signed(cluster, first)
    for cert in (
        None,
        REPLACE(second.parent_cert, signatures=(bytes(64),) * 3),
        cluster.certificate("nullify", 1, None),
        cluster.certificate("notarize", 1, b"x" * 32),
        cluster.certificate("notarize", 2, first.block.header.id),
    ):
        assert not notarizes(cluster, REPLACE(second, parent_cert=cert))
    assert notarizes(cluster, second)


@pytest.mark.parametrize(
    ("first", "second", "changes"),
    [
        ([request_tx(1)], [request_tx(1)], {}),
        ([], [], {"time_ms": WALL0 + 1}),
        ([], [], {"height": 1}),
        ([], [], {"height": 3}),
        ([], [], {"parent_view": 0}),
    ],
)
def test_a_child_must_follow_its_parent_in_time_height_view_and_transactions(first, second, changes):
    cluster = cut_off()
    parent, child = two_views(cluster, first, second, **changes)
    signed(cluster, parent)
    assert not notarizes(cluster, child)


def test_a_transaction_that_is_final_is_not_notarized_again():
    cluster = cut_off()
    block = cluster.block(1, request_tx(1))
    finalized = cluster.certificate("finalize", 1, block.header.id)
    signed(cluster, Chain((block,), (), finalized))
    again = cluster.block(2, request_tx(1), parent=block.header)
    assert not notarizes(cluster, cluster.proposal(again, finalized))
    fresh = cut_off()
    signed(fresh, Chain((block,), (), finalized))
    other = fresh.block(2, request_tx(2), parent=block.header)
    assert notarizes(fresh, fresh.proposal(other, finalized))


def test_a_block_from_the_near_future_is_notarized_when_its_time_has_come_near():
    cluster = cut_off()
    proposal = cluster.proposal(cluster.block(1, time_ms=WALL0 + DRIFT_MS + 500))
    assert not notarizes(cluster, proposal)
    core = cluster.cores[ME]
    core.tick(0.5, WALL0 + 500)
    assert [e.vote.kind for e in core.take_effects() if isinstance(e, SaveVote)] == ["notarize"]


def test_after_its_own_nullify_a_core_does_not_notarize_in_that_view_but_may_in_the_next():
    cluster = cut_off()
    core = cluster.cores[ME]
    core.mempool.add(request_tx(9), WALL0)
    core.submit(0, WALL0)
    core.tick(2.0, WALL0 + 2000)
    assert [(e.vote.kind, e.vote.view) for e in core.take_effects() if isinstance(e, SaveVote)] == [
        ("nullify", 1)
    ]
    first, second = two_views(cluster)
    assert not notarizes(cluster, first, now=2.0)
    core.deadline = 100.0
    assert notarizes(cluster, second, now=2.1)


def test_a_proposal_of_a_view_that_nothing_proves_entered_waits_for_nothing():
    cluster = cut_off()
    _, second = two_views(cluster)
    third = cluster.block(3, parent=second.block.header)
    assert not signed(cluster, cluster.proposal(third))
    assert cluster.cores[ME].view == 1


# --- finalize ----------------------------------------------------------------------------------------------------------


def test_a_notarized_block_is_finalized_once_its_body_is_held():
    cluster = cut_off()
    proposal = cluster.proposal(cluster.block(1, request_tx(1)))
    block_id = proposal.block.header.id
    notarized = Votes((), cluster.certificate("notarize", 1, block_id))
    assert signed(cluster, notarized) == []
    assert signed(cluster, proposal) == [("finalize", 1, block_id)], "view 1 is over, so no notarize any more"


def test_rule_f_a_core_that_nullified_finalizes_nothing_at_or_after_that_view_in_the_term():
    cluster = cut_off()
    core = cluster.cores[ME]
    core.mempool.add(request_tx(9), WALL0)
    core.submit(0, WALL0)
    core.tick(2.0, WALL0 + 2000)
    core.take_effects()
    core.deadline = 100.0
    first, second = two_views(cluster)
    third = cluster.certificate("notarize", 2, second.block.header.id)
    kinds = [kind for kind, _, _ in signed(cluster, first, second, Votes((), third), now=2.1)]
    assert "finalize" not in kinds


def test_a_view_that_a_known_nullification_covers_is_not_finalized():
    cluster = cut_off()
    first, _ = two_views(cluster)
    nullified = cluster.certificate("nullify", 1, None)
    notarized = cluster.certificate("notarize", 1, first.block.header.id)
    assert signed(cluster, Status(0, 1, 0, None, None, nullified, ()), first, Votes((), notarized)) == []


def test_a_block_that_displaced_the_one_notarized_here_is_not_finalized():
    """Only more liars than the mode bears can bring it about; I1 holds all the same."""
    cluster = cut_off()
    mine, theirs = cluster.block(1, request_tx(1)), cluster.block(1, request_tx(2))
    assert notarizes(cluster, cluster.proposal(mine))
    notarized = cluster.certificate("notarize", 1, theirs.header.id, 0, 2, 3)
    assert signed(cluster, Votes((), notarized), Body(theirs)) == []


def test_a_block_that_misstates_the_view_of_its_parent_is_not_finalized():
    cluster = cut_off()
    first = cluster.block(1)
    first_final = Chain((first,), (), cluster.certificate("finalize", 1, first.header.id))
    true = cluster.block(5, parent=first.header)
    for parent_view, expected in ((0, 0), (1, 1)):
        header = REPLACE(true.header, parent_view=parent_view)
        block = Block(header, (), (cluster.certificate("nullify", parent_view + 1, None),))
        cluster.cores[ME] = restart(cluster)
        signed(cluster, first_final)
        notarized = Votes((), cluster.certificate("notarize", 5, header.id))
        assert len(signed(cluster, notarized, Body(block))) == expected


def test_an_invalid_block_is_not_finalized_even_if_it_is_notarized():
    cluster = cut_off()
    proposal = cluster.proposal(cluster.block(1, request_tx(1), height=1, time_ms=WALL0))
    assert signed(cluster, proposal) == []
    notarized = cluster.certificate("notarize", 1, proposal.block.header.id)
    assert signed(cluster, Votes((), notarized)) == []


# --- counting and time -------------------------------------------------------------------------------------------------


def certificates(cluster: Cluster, *votes: Vote) -> list[Certificate]:
    core = cluster.cores[ME]
    core.receive(0, Votes(votes, None), 0.0, WALL0)
    return [e.certificate for e in core.take_effects() if isinstance(e, SaveCertificate)]


def votes_for(cluster: Cluster, block: bytes, *signers: int) -> tuple[Vote, ...]:
    return tuple(cluster.committee.sign(cluster.keys[s], s, "notarize", 1, block) for s in signers)


def test_a_quorum_of_votes_for_one_block_makes_a_certificate_in_any_order_and_number():
    cluster = cut_off()
    votes = votes_for(cluster, b"x" * 32, 3, 0, 0, 3, 2, 2)
    assert certificates(cluster, *votes) == [cluster.certificate("notarize", 1, b"x" * 32, 0, 2, 3)]


def test_votes_for_two_blocks_do_not_add_up():
    cluster = cut_off()
    assert not certificates(cluster, *votes_for(cluster, b"x" * 32, 0, 2), *votes_for(cluster, b"y" * 32, 3))


def test_only_the_first_vote_of_a_member_who_votes_twice_counts():
    cluster = cut_off()
    x, y = b"x" * 32, b"y" * 32
    assert not certificates(cluster, *votes_for(cluster, x, 0), *votes_for(cluster, y, 0, 2, 3))


def test_every_term_that_fails_doubles_the_time_to_the_next_nullify_up_to_a_minute():
    cluster = cut_off(term_length=1)
    core = cluster.cores[ME]
    core.mempool.add(request_tx(9, expires_ms=WALL0 + 600_000), WALL0)
    core.submit(0, WALL0)
    now, waits = 0.0, []
    for view in range(1, 12):
        begin = now
        while (view, "nullify") not in core._own:
            now = core.next_deadline()
            core.tick(now, WALL0)
        waits.append(round(now - begin, 3))
        core.receive(
            0, Status(0, view, 0, None, None, cluster.certificate("nullify", view, None), ()), now, WALL0
        )
    led = [view - 1 for view in range(1, 12) if cluster.committee.leader(view) == ME]
    expected = [min(60.0, 2.0**k) for k in range(11)]
    assert [w for i, w in enumerate(waits) if i not in led] == [
        w for i, w in enumerate(expected) if i not in led
    ]


# --- restart -----------------------------------------------------------------------------------------------------------


def restart(
    cluster: Cluster, *votes: Vote, certificates: tuple[Certificate, ...] = (), blocks: tuple[Block, ...] = ()
) -> Core:
    restored = Restored(anchor_tip(cluster.committee), list(blocks), list(certificates), list(votes))
    return Core(cluster.committee, cluster.keys[ME], Mempool(cluster.genesis.chain_id), restored, 0, WALL0)


def own(cluster: Cluster, kind: str, view: int, block: bytes | None = None) -> Vote:
    return cluster.committee.sign(cluster.keys[ME], ME, kind, view, block)


def test_after_a_restart_the_view_is_the_highest_that_certificates_and_own_votes_imply():
    cluster = cut_off()
    assert restart(cluster, own(cluster, "nullify", 3)).view == 3
    assert restart(cluster, certificates=(cluster.certificate("notarize", 3, b"x" * 32),)).view == 4
    assert restart(cluster, certificates=(cluster.certificate("nullify", 2, None),)).view == 5
    assert restart(cluster, certificates=(cluster.certificate("finalize", 7, b"x" * 32),)).view == 8


def test_after_a_restart_no_vote_is_signed_that_contradicts_one_before():
    cluster = cut_off()
    cluster.cores[ME] = restart(cluster, own(cluster, "notarize", 1, b"x" * 32), own(cluster, "nullify", 1))
    proposal = cluster.proposal(cluster.block(1))
    notarized = cluster.certificate("notarize", 1, proposal.block.header.id)
    assert signed(cluster, proposal, Votes((), notarized)) == []


def test_after_a_restart_a_core_repeats_its_votes_in_its_first_status():
    cluster = cut_off()
    votes = (own(cluster, "nullify", 1), own(cluster, "notarize", 2, b"x" * 32))
    core = restart(cluster, *votes)
    core.tick(0, WALL0)
    statuses = [e.message for e in core.take_effects() if isinstance(getattr(e, "message", None), Status)]
    assert set(statuses[0].votes) == set(votes)


def test_after_a_restart_in_the_term_of_the_tip_rule_f_still_looks_below_the_tip():
    cluster = cut_off()
    first, second = two_views(cluster)
    core = restart(cluster, own(cluster, "nullify", 1))
    cluster.cores[ME] = core
    finalized = cluster.certificate("finalize", 1, first.block.header.id)
    signed(cluster, Chain((first.block,), (), finalized))
    notarized = cluster.certificate("notarize", 2, second.block.header.id)
    kinds = [kind for kind, _, _ in signed(cluster, second, Votes((), notarized))]
    assert kinds == ["notarize"], "nullify in view 1 forbids finalize in view 2 of the term"


# --- who is served ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lag", "view", "after", "is_served"),
    [
        (1, 4, 0.0, False),
        (1, 4, 0.49, False),
        (1, 4, 0.5, True),
        (1, 3, 0.0, True),
        (2, 4, 0.0, False),
        (2, 2, 0.0, True),
        (3, 4, 0.0, True),
    ],
)
def test_a_block_is_not_served_to_a_member_that_has_seen_it_notarized_until_it_has_had_time_to_become_final(
    lag, view, after, is_served
):
    """Of three final blocks the first one is a second old; the member of the status lacks the last `lag`."""
    cluster, certificate, parent = cut_off(), None, None
    core = cluster.cores[ME]
    for number, at in enumerate((0.0, 1.0, 1.0), 1):
        block = cluster.block(number, request_tx(number), parent=parent)
        signed(cluster, cluster.proposal(block, certificate), now=at)
        certificate = cluster.certificate("notarize", number, block.header.id)
        final = cluster.certificate("finalize", number, block.header.id)
        signed(cluster, Status(0, number + 1, number, final, certificate, None, ()), now=at)
        parent = block.header
    assert core.tip.height == 3
    core.receive(3, Status(0, view, 3 - lag, None, None, None, ()), 1.0 + after, WALL0 + 1000)
    pages = [e.height for e in core.take_effects() if isinstance(e, ServeChain)]
    assert pages == ([4 - lag] if is_served else [])
