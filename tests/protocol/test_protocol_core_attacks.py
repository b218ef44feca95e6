"""What members who lie, forge, flood and repeat can make of an honest core, up to all others lying together."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto.codec import encode
from protocol.block import (
    Block,
    Body,
    Certificate,
    Chain,
    Header,
    Proposal,
    Status,
    Vote,
    Votes,
    Want,
    decode_message,
)
from protocol.core import (
    Core,
    Finalized,
    Halted,
    Record,
    Restored,
    SaveBlock,
    SaveVote,
    Send,
    ServeChain,
    anchor_tip,
)
from protocol.mempool import Mempool
from tests.simulation.cluster import WALL0, Cluster, request_tx

REPLACE = msgspec.structs.replace


def cut_off(**changes: int) -> Cluster:
    """A cluster whose messages get nowhere unless a test injects them."""
    cluster = Cluster(**changes)
    cluster.cut = lambda a, b: True
    return cluster


def sent_by(core: Core, kind: type) -> list:
    return [e.message for e in core.take_effects() if isinstance(e, Send) and isinstance(e.message, kind)]


def receive(cluster: Cluster, dst: int, src: int, message) -> list:
    """The effects of one message on a core, not carried out."""
    core = cluster.cores[dst]
    core.receive(src, decode_message(encode(message)), cluster.now, cluster.wall())
    return core.take_effects()


# --- false bodies ------------------------------------------------------------------------------------------------------


def test_a_true_header_with_other_transactions_does_not_displace_the_true_block():
    """Any member can send it: the leader's header and vote are public."""
    cluster = cut_off()
    block = cluster.block(1, request_tx(1))
    forged = REPLACE(cluster.proposal(block), block=Block(block.header, (request_tx(2),), ()))
    cluster.inject(3, 2, forged)
    cluster.cut = lambda a, b: False
    for member in (1, 2, 3):
        cluster.inject(member, 0, cluster.proposal(block))
    cluster.run_until(lambda: min(cluster.heights()[1:]) == 1)
    assert cluster.final_txs(3) == cluster.final_txs(1) == [request_tx(1)]


@pytest.mark.parametrize("txs", [(request_tx(2),), (), (request_tx(1), request_tx(1))])
def test_a_false_body_in_answer_to_a_want_is_not_taken_and_the_true_one_is(txs):
    cluster = cut_off()
    block = cluster.block(1, request_tx(1))
    notarized = cluster.certificate("notarize", 1, block.header.id)
    effects = receive(cluster, 0, 1, Votes((), notarized))
    assert Send(1, Want(block.header.id)) in effects
    assert not receive(cluster, 0, 2, Body(Block(block.header, txs, ())))
    assert SaveBlock(block) in receive(cluster, 0, 1, Body(block))


def test_a_body_nobody_asked_for_is_not_kept():
    cluster = cut_off()
    assert not receive(cluster, 0, 1, Body(cluster.block(1, request_tx(1))))


def test_skipped_views_without_true_nullifications_are_not_taken_from_anyone():
    """They are no part of the block id, so whoever passes a block on could strip, invent or inflate them."""
    cluster = cut_off()
    true = Block(cluster.block(5).header, (), (cluster.certificate("nullify", 1, None),))
    lie = Certificate("nullify", 1, None, b"\x0e", (bytes(64),) * 3)
    late = cluster.certificate("nullify", 2, None)
    finalized = cluster.certificate("finalize", 5, true.header.id)
    for skips in ((), (lie,), (late,), (*true.skips, *true.skips), (finalized,)):
        false = Block(true.header, (), skips)
        assert not receive(cluster, 0, 1, Chain((false,), (), finalized))
        assert not receive(cluster, 0, 1, cluster.proposal(false))
    assert any(isinstance(e, Finalized) for e in receive(cluster, 0, 1, Chain((true,), (), finalized)))
    receive(cluster, 2, 1, Votes((), cluster.certificate("notarize", 5, true.header.id)))
    assert not receive(cluster, 2, 1, Body(Block(true.header, (), (lie,) * 1000)))
    assert receive(cluster, 2, 1, Body(true))


def test_a_proposal_from_a_view_far_away_costs_nothing():
    cluster = cut_off()
    for view in (2**40 + 1, 2**62 + 1, 2**63 - 1):
        leader = cluster.committee.leader(view)
        proposal = cluster.proposal(cluster.block(view))
        assert not receive(cluster, (leader + 1) % 4, leader, proposal)


# --- floods ------------------------------------------------------------------------------------------------------------


def test_a_member_who_votes_for_block_after_block_fills_the_record_once():
    cluster = cut_off()
    sign = cluster.committee.sign
    effects = []
    for i in range(20):
        vote = sign(cluster.keys[2], 2, "notarize", 1, bytes([i]) * 32)
        effects += receive(cluster, 0, 2, Votes((vote, vote), None))
    assert sum(isinstance(e, Record) for e in effects) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_nullify_and_a_later_finalize_in_one_term_are_recorded_whichever_comes_first(order):
    cluster = cut_off()
    sign = cluster.committee.sign
    votes = [sign(cluster.keys[2], 2, "nullify", 1, None), sign(cluster.keys[2], 2, "finalize", 3, b"x" * 32)]
    effects = []
    for i in order:
        effects += receive(cluster, 0, 3, Votes((votes[i],), None))
    found = [e.evidence for e in effects if isinstance(e, Record)]
    assert [(e.kind, {e.first, e.second}) for e in found] == [("E4", set(votes))]


def test_asking_for_a_block_again_and_again_is_answered_once_in_half_a_second():
    cluster = cut_off()
    cluster.submit(request_tx(1), to=0)
    want = Want(next(iter(cluster.disks[0].blocks)))
    core = cluster.cores[0]
    for _ in range(50):
        core.receive(2, want, cluster.now, cluster.wall())
    assert len(sent_by(core, Body)) == 1
    core.receive(2, want, cluster.now + 0.5, cluster.wall())
    assert len(sent_by(core, Body)) == 1


def test_a_member_who_claims_every_height_gets_one_page_a_step():
    cluster = Cluster()
    for k in range(8):
        cluster.submit(request_tx(k))
        cluster.run_until(lambda k=k: request_tx(k) in cluster.final_txs(0))
    core = cluster.cores[0]
    for height in range(core.tip.height):
        core.receive(3, Status(0, 1, height, None, None, None, ()), cluster.now, cluster.wall())
    assert sum(isinstance(e, ServeChain) for e in core.take_effects()) == 1


def test_a_chain_without_a_quorum_waits_without_burning_time():
    cluster = cut_off()
    core = cluster.cores[1]
    core.mempool.add(request_tx(1), WALL0)
    core.submit(0, WALL0)
    ticks, now = 0, 0.0
    while now < 60:
        now = max(now, core.next_deadline())
        core.tick(now, WALL0 + int(now * 1000))
        ticks += 1
    assert ticks < 200
    assert any(isinstance(e, SaveVote) and e.vote.kind == "nullify" for e in core.take_effects())


# --- more liars than the mode bears ------------------------------------------------------------------------------------


def halted(effects: list) -> bool:
    return any(isinstance(e, Halted) for e in effects)


def final_at(cluster: Cluster, *views: int) -> Header:
    """Let core 0 finalize a chain of empty blocks at these views by pages; the last header."""
    parent = None
    for view in views:
        block = cluster.block(view, parent=parent)
        skipped = cluster.committee.covering_terms(parent.view if parent else 0, view)
        block = REPLACE(block, skips=tuple(cluster.certificate("nullify", v, None) for _, v in skipped))
        finalized = cluster.certificate("finalize", view, block.header.id)
        assert any(isinstance(e, Finalized) for e in receive(cluster, 0, 1, Chain((block,), (), finalized)))
        parent = block.header
    return parent


def test_a_second_finalization_of_a_final_view_halts_the_chain():
    cluster = cut_off()
    final_at(cluster, 1, 2)
    other = cluster.certificate("finalize", 1, b"x" * 32)
    assert halted(receive(cluster, 0, 1, Status(0, 9, 9, other, None, None, ())))


def test_a_finalization_in_a_view_that_the_final_chain_skipped_halts_the_chain():
    cluster = cut_off()
    final_at(cluster, 1, 5)
    other = cluster.certificate("finalize", 2, b"x" * 32)
    assert halted(receive(cluster, 0, 1, Status(0, 9, 9, other, None, None, ())))


def test_a_forged_finalization_halts_nothing():
    cluster = cut_off()
    final_at(cluster, 1, 5)
    for view in (1, 2, 5):
        forged = Certificate("finalize", view, b"x" * 32, b"\x0e", (bytes(64),) * 3)
        assert not halted(receive(cluster, 0, 1, Status(0, 9, 9, forged, None, None, ())))


def test_a_final_chain_that_does_not_extend_ours_halts_the_chain():
    cluster = cut_off()
    final_at(cluster, 1)
    other = cluster.block(1, time_ms=WALL0 + 2)
    child = cluster.block(2, parent=other.header)
    page = Chain((other, child), (), cluster.certificate("finalize", 2, child.header.id))
    assert halted(receive(cluster, 0, 1, page))


def test_two_notarized_blocks_in_a_view_halt_the_chain_and_convict_the_signers_of_both():
    cluster = cut_off()
    receive(cluster, 0, 1, Votes((), cluster.certificate("notarize", 1, b"x" * 32, 0, 1, 2)))
    effects = receive(cluster, 0, 1, Votes((), cluster.certificate("notarize", 1, b"y" * 32, 1, 2, 3)))
    assert halted(effects)
    assert {(e.evidence.kind, e.evidence.first.signer) for e in effects if isinstance(e, Record)} == {
        ("E1", 1),
        ("E1", 2),
    }


@pytest.mark.parametrize("raw", [b"no transaction", request_tx(1, "diptych/1/sharing/test")])
def test_a_final_block_with_an_impossible_transaction_halts_instead_of_being_executed(raw):
    by_page, by_votes = cut_off(), cut_off()
    block = by_page.block(1, raw)
    finalized = by_page.certificate("finalize", 1, block.header.id)
    effects = receive(by_page, 0, 1, Chain((block,), (), finalized))
    assert halted(effects)
    assert not any(isinstance(e, Finalized) for e in effects)
    receive(by_votes, 1, 0, by_votes.proposal(block))
    effects = receive(by_votes, 1, 0, Status(0, 2, 0, finalized, None, None, ()))
    assert halted(effects)
    assert not any(isinstance(e, Finalized | SaveVote) for e in effects)


def test_a_halted_core_says_and_signs_nothing_more_and_wakes_nobody():
    cluster = cut_off()
    final_at(cluster, 1)
    receive(cluster, 0, 1, Status(0, 9, 9, cluster.certificate("finalize", 1, b"x" * 32), None, None, ()))
    core = cluster.cores[0]
    core.mempool.add(request_tx(1), WALL0)
    for now in (1.0, 2.0, 90.0):
        core.submit(now, WALL0)
        core.tick(now, WALL0)
        assert core.take_effects() == []
        assert core.next_deadline() > now


def test_a_core_that_halted_stays_halted_after_a_restart():
    cluster = cut_off()
    restored = Restored(anchor_tip(cluster.committee), halted="people must look")
    core = Core(cluster.committee, cluster.keys[0], Mempool(cluster.genesis.chain_id), restored, 0, WALL0)
    core.mempool.add(request_tx(1), WALL0)
    core.submit(0, WALL0)
    core.tick(10, WALL0)
    assert (core.halted, core.take_effects()) == ("people must look", [])


# --- catch-up ----------------------------------------------------------------------------------------------------------


def test_a_page_below_a_finalization_that_waits_does_not_make_it_forgotten():
    cluster = cut_off()
    blocks, parent = [], None
    for view in (1, 2, 3):
        blocks.append(cluster.block(view, parent=parent))
        parent = blocks[-1].header
    certs = [cluster.certificate("finalize", b.header.view, b.header.id) for b in blocks]
    receive(cluster, 0, 1, Status(0, 4, 3, certs[2], None, None, ()))
    receive(cluster, 0, 1, Chain(tuple(blocks[:1]), (blocks[1].header,), certs[1]))
    core = cluster.cores[0]
    assert core.tip.height == 1
    receive(cluster, 0, 1, Body(blocks[2]))
    core.tick(1.0, WALL0)
    assert Want(blocks[1].header.id) in sent_by(core, Want)
    receive(cluster, 0, 1, Body(blocks[1]))
    assert core.tip.height == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda page, cluster: REPLACE(page, blocks=page.blocks[::-1]),
        lambda page, cluster: REPLACE(page, blocks=page.blocks[:1]),
        lambda page, cluster: REPLACE(page, blocks=(page.blocks[0], REPLACE(page.blocks[1], txs=()))),
        lambda page, cluster: REPLACE(page, links=(page.blocks[1].header,)),
        lambda page, cluster: REPLACE(
            page, finalization=cluster.certificate("notarize", 2, page.finalization.block)
        ),
        lambda page, cluster: REPLACE(page, finalization=REPLACE(page.finalization, view=3)),
        lambda page, cluster: REPLACE(
            page, finalization=REPLACE(page.finalization, signatures=(bytes(64),) * 3)
        ),
    ],
)
def test_a_damaged_page_changes_nothing_and_the_true_one_is_taken_after_it(damage):
    cluster = cut_off()
    first = cluster.block(1, request_tx(1))
    second = cluster.block(2, request_tx(2), parent=first.header)
    page = Chain((first, second), (), cluster.certificate("finalize", 2, second.header.id))
    effects = receive(cluster, 0, 1, damage(page, cluster))
    assert not any(isinstance(e, Finalized | SaveBlock | Halted) for e in effects)
    receive(cluster, 0, 1, page)
    assert cluster.cores[0].tip.height == 2


# --- anything at all ---------------------------------------------------------------------------------------------------

FAR = [2**40 + 1, 2**62 + 1]
views = st.one_of(st.integers(0, 9), st.sampled_from(FAR))
numbers = st.one_of(st.integers(0, 9), st.sampled_from([WALL0 + 1, WALL0 + 2, *FAR]))
raws = st.sampled_from(
    [request_tx(1), request_tx(2), b"", b"junk", request_tx(3, "other"), request_tx(4, expires_ms=5)]
)


class Liars:
    """All other keys of a cluster in one hand: draws messages that are true, nearly true or absurd, on what was said before."""

    def __init__(self, draw, cluster: Cluster, me: int) -> None:
        self.draw, self.cluster = draw, cluster
        self.members = [m for m in range(4) if m != me]
        self.headers: list[Header] = []
        self.blocks: list[Block] = []

    def block(self) -> Block:
        parent = self.draw(st.sampled_from([None, *self.headers]))
        after = parent.view + 1 if parent else 1
        view = self.draw(st.one_of(st.just(after), views))
        block = self.cluster.block(view or 1, *self.draw(st.lists(raws, max_size=3)), parent=parent)
        if self.draw(st.integers(0, 4)) == 0:
            name = self.draw(st.sampled_from(block.header.__struct_fields__))
            value = b"z" * 32 if isinstance(getattr(block.header, name), bytes) else self.draw(numbers)
            value = "other" if name == "chain_id" else value % 64 if name == "proposer" else value
            block = REPLACE(block, header=REPLACE(block.header, **{name: value}))
        covering = []
        if (parent.view if parent else 0) < block.header.view < 1000:
            covering = self.cluster.committee.covering_terms(parent.view if parent else 0, block.header.view)
        skips = tuple(self.cluster.certificate("nullify", v, None, *self.members) for _, v in covering)
        block = REPLACE(block, skips=self.draw(st.sampled_from([skips, skips, (), skips[::-1]])))
        self.headers.append(block.header)
        self.blocks.append(block)
        return block

    def id(self) -> bytes:
        return self.draw(st.sampled_from([bytes(32), *(h.id for h in self.headers)]))

    def known(self) -> tuple[int, bytes]:
        """A view and a block in it, mostly of a header that exists."""
        if self.headers and self.draw(st.integers(0, 4)):
            header = self.draw(st.sampled_from(self.headers))
            return header.view, header.id
        return self.draw(views), self.id()

    def certificate(self) -> Certificate:
        kind = self.draw(st.sampled_from(["notarize", "nullify", "finalize"]))
        view, block = self.known()
        cert = self.cluster.certificate(kind, view, None if kind == "nullify" else block, *self.members)
        flaw = self.draw(st.integers(0, 9))
        if flaw == 0:
            cert = REPLACE(cert, signatures=())
        elif flaw == 1:
            cert = REPLACE(cert, signers=b"\xff" * 16)
        elif flaw == 2:
            cert = REPLACE(cert, block=None if cert.block else bytes(32))
        return cert

    def maybe_certificate(self) -> Certificate | None:
        return self.certificate() if self.draw(st.booleans()) else None

    def vote(self) -> Vote:
        kind = self.draw(st.sampled_from(["notarize", "nullify", "finalize"]))
        view, block = self.known()
        signer = self.draw(st.sampled_from(self.members))
        vote = self.cluster.committee.sign(
            self.cluster.keys[signer], signer, kind, view, None if kind == "nullify" else block
        )
        return REPLACE(vote, signer=self.draw(st.sampled_from([signer, signer, signer, 0, 3, 4, 63])))

    def votes(self) -> tuple[Vote, ...]:
        return tuple(self.vote() for _ in range(self.draw(st.integers(0, 3))))

    def proposal(self) -> Proposal:
        block = self.block()
        signer = block.header.proposer % 4
        header = block.header
        vote = self.cluster.committee.sign(
            self.cluster.keys[signer], signer, "notarize", header.view, header.id
        )
        parent = None
        if header.parent_view and self.draw(st.booleans()):
            parent = self.cluster.certificate("notarize", header.parent_view, header.parent, *self.members)
        elif header.parent_view:
            parent = self.maybe_certificate()
        return Proposal(block, parent, vote)

    def message(self):
        match self.draw(
            st.sampled_from(["proposal", "proposal", "votes", "status", "want", "body", "chain"])
        ):
            case "proposal":
                return self.proposal()
            case "votes":
                return Votes(self.votes(), self.maybe_certificate())
            case "status":
                certs = [self.maybe_certificate() for _ in range(3)]
                return Status(0, self.draw(numbers), self.draw(numbers), *certs, self.votes())
            case "want":
                return Want(self.id())
            case "body":
                return Body(self.draw(st.sampled_from(self.blocks)) if self.blocks else self.block())
            case "chain":
                blocks = tuple(self.block() for _ in range(self.draw(st.integers(1, 3))))
                known = [b for b in self.blocks if b not in blocks]
                blocks = (
                    (*self.draw(st.lists(st.sampled_from(known), max_size=2)), *blocks) if known else blocks
                )
                links = tuple(self.draw(st.lists(st.sampled_from(self.headers), max_size=2)))
                last = links[-1] if links else blocks[-1].header
                true = self.cluster.certificate("finalize", last.view, last.id, *self.members)
                return Chain(blocks, links, true if self.draw(st.booleans()) else self.certificate())


def check_signing_rules(cluster: Cluster, votes: list[Vote]) -> None:
    """I1 and I2 over everything one core ever signed."""
    term = cluster.committee.term
    by_key: dict[tuple[int, str], Vote] = {}
    for vote in votes:
        assert by_key.setdefault((vote.view, vote.kind), vote) is vote, "I1: one vote of a kind per view"
    for (view, kind), vote in by_key.items():
        if kind == "finalize":
            notarized = by_key.get((view, "notarize"))
            assert notarized is None or notarized.block == vote.block, "I1: for the same block"
            nullified = [u for u, k in by_key if k == "nullify" and u <= view and term(u) == term(view)]
            assert not nullified, "I2: no nullify at or before a finalize of one term"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.data(), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_no_messages_of_all_other_members_together_crash_a_core_or_make_it_break_a_rule(data, me, length):
    cluster = cut_off(term_length=length)
    core = cluster.cores[me]
    liars = Liars(data.draw, cluster, me)
    now, signed, place = 0.0, [], (core.view, core.tip.height)
    for _ in range(data.draw(st.integers(1, 14))):
        action = data.draw(st.sampled_from(["message", "message", "message", "message", "tick", "submit"]))
        wall = WALL0 + int(now * 1000)
        if action == "message":
            message = decode_message(encode(liars.message()))
            core.receive(data.draw(st.sampled_from(liars.members)), message, now, wall)
        elif action == "tick":
            now += data.draw(st.sampled_from([0.1, 0.6, 2.0]))
            core.tick(now, wall)
        else:
            core.mempool.add(request_tx(50 + len(signed)), wall)
            core.submit(now, wall)
        for effect in core.take_effects():
            if isinstance(effect, Send):
                assert decode_message(encode(effect.message)) == effect.message
            elif isinstance(effect, SaveVote):
                signed.append(effect.vote)
                if effect.vote.kind == "notarize" and effect.vote.block in core._held:
                    liars.headers.append(core._held[effect.vote.block].block.header)
            elif isinstance(effect, Finalized):
                assert all(b.header.tx_count == len(b.txs) == len(txs) for b, txs in effect.blocks)
        assert core.view >= place[0]
        assert core.tip.height >= place[1], "I3: view and height never fall"
        place = (core.view, core.tip.height)
        if core.halted is None:
            assert core.next_deadline() > now - 1e-9 or core._status_at <= now
    check_signing_rules(cluster, signed)
