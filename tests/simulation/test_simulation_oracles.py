"""The oracles bite: a core or an operator that breaks one rule is caught, and by the invariant that the rule serves."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from protocol.block import Certificate, Committee, Vote
from protocol.core import Core, Effect, Restored, SaveAbstention, SaveVote
from protocol.tx import ChangeMembers, Tx
from tests.simulation.cluster import ADMINS, Cluster, Link, change_tx, request_tx
from tests.simulation.oracle import Invariants, Violation
from tests.simulation.simulation import Plan, replay_command, shrink, simulate


class SendsBeforeItWrites(Core):
    """Own votes become durable one step after they were sent."""

    def take_effects(self) -> list[Effect]:
        effects = super().take_effects()
        late = getattr(self, "_late", [])
        self._late = [e for e in effects if isinstance(e, SaveVote)]
        return late + [e for e in effects if not isinstance(e, SaveVote)]


class WithoutRuleF(Core):
    def _has_nullified_up_to(self, view: int) -> bool:
        return False


class ForgetsWhatItNotarized(Core):
    """A restart loads everything but what it notarized, be it as leader."""

    def _restore(self, restored: Restored) -> None:
        super()._restore(replace(restored, votes=[v for v in restored.votes if v.kind != "notarize"]))


class OneVoteTooFew(Committee):
    def votes_of(self, cert: Certificate) -> list[Vote]:
        signers = [i for i in range(self.size) if int.from_bytes(cert.signers, "little") >> i & 1]
        if not self.quorum - 1 <= len(signers) == len(cert.signatures):
            return []
        pairs = zip(signers, cert.signatures, strict=True)
        return [Vote(cert.kind, cert.view, cert.block, signer, signature) for signer, signature in pairs]


class CountsTransactionsAgain(Core):
    """Takes no notice of what the unfinalized ancestry carries."""

    def _above(self, parent_id: bytes) -> tuple[int, int, set[bytes]]:
        height, time_ms, _ = super()._above(parent_id)
        return height, time_ms, set()


class EndsTheAbstentionAtOnce(Core):
    """Asks nobody how far it may have signed."""

    def __init__(self, committee: Committee, key: Any, mempool: Any, restored: Restored, *rest: Any) -> None:
        super().__init__(committee, key, mempool, replace(restored, abstain_until=0), *rest)


class ForgetsTheNullifyItMayHaveSent(Core):
    """Takes the views beyond its abstention for untouched, but its lost journal may hold a nullify of the last one."""

    def _has_nullified_up_to(self, view: int) -> bool:
        start = self.committee.term_start(self.committee.term(view))
        return any((u, "nullify") in self._own for u in range(start, view + 1))


class TakesTheNextEpochForUntouched(Core):
    """Whatever its lost journal may hold of it."""

    def _end_epoch(self, *args: Any) -> None:
        super()._end_epoch(*args)
        self.abstain_until = 0
        self._effects.append(SaveAbstention(0))


class BuildsOnTheEndOfAnEpoch(Core):
    """Takes the block that ends the epoch for one like any other, and what stands on it for a part of the chain."""

    def _change(self, parent_id: bytes) -> None:
        return None


class NeverNullifies(Core):
    def _try_nullify(self) -> None:
        return


def first_caught(mode: str, first: int = 0, tries: int = 150, **broken: Any) -> tuple[Plan, str]:
    for seed in range(first, first + tries):
        plan = Plan.make(seed, mode)
        found = simulate(plan, **broken).violation
        if found:
            return plan, found
    pytest.fail(f"not caught within {tries} seeds")


def lost_after_a_nullify_that_opened_a_term(core: type[Core]) -> Cluster:
    """n2 alone comes into view 3, which opens a term, nullifies it, and loses its disk while all others stand in view 2."""
    c = Cluster(
        link=Link(delay=(0.01, 0.01)),
        make_oracle=lambda genesis: Invariants(genesis, frozenset(), 4),
        make_core=lambda host: core,
        term_length=2,
    )
    c.submit(request_tx(1))
    c.run_for(0.025)
    c.cut = lambda a, b: True
    c.run_for(0.01)
    c.cut = lambda a, b: a == 2 or (a in (1, 3) and b != 2)
    c.run_until(lambda: (3, "nullify") in c.disks[2].votes)
    assert [other.view for other in c.cores if other] == [2, 2, 3, 2]
    c.lose_disk(2)
    c.cut = lambda a, b: False
    c.start(2)
    return c


def test_a_rejoined_member_finalizes_nothing_in_the_term_whose_opening_it_may_have_nullified():
    c = lost_after_a_nullify_that_opened_a_term(Core)
    for number in range(2, 8):
        c.submit(request_tx(number))
        c.run_until(lambda number=number: all(request_tx(number) in c.final_txs(i) for i in range(4)))
    assert any(kind == "finalize" for _, kind in c.disks[2].votes), "and takes part again after it"


def test_the_oracles_catch_a_rejoined_member_that_does():
    c = lost_after_a_nullify_that_opened_a_term(ForgetsTheNullifyItMayHaveSent)
    for number in range(2, 8):
        c.at(c.now + number, lambda number=number: c.submit(request_tx(number)))
    with pytest.raises(Violation, match=r"^I2: n2 finalizes"):
        c.run_for(10)


def lost_after_a_vote_in_the_next_epoch(core: type[Core]) -> Cluster:
    """n2 alone sees the epoch end, proposes in the next, and loses its disk; the others report where they stand, which is before the
    end, and then see it too."""
    c = Cluster(
        link=Link(delay=(0.01, 0.01)),
        make_oracle=lambda genesis: Invariants(genesis, frozenset(), 4),
        make_core=lambda host: core,
    )
    c.submit(c.change(0, 2, 0, 1, 3))
    c.run_for(0.025)
    c.cut = lambda a, b: b != 2
    c.run_for(0.01)
    c.submit(request_tx(1), to=2)
    assert [core.committee.epoch for core in c.cores if core] == [0, 0, 1, 0]
    assert list(c.disks[2].votes) == [(1, "notarize")]
    c.lose_disk(2)
    c.cut = lambda a, b: False
    c.start(2)
    c.run_until(lambda: c.disks[2].abstain_until is not None)
    assert [core.committee.epoch for core in c.cores if core] == [0, 0, 0, 0]
    c.at(c.now + 1, lambda: c.submit(request_tx(2)))
    return c


def test_a_rejoined_member_asks_again_in_an_epoch_that_its_lost_journal_may_have_seen():
    c = lost_after_a_vote_in_the_next_epoch(Core)
    c.run_until(lambda: all(request_tx(2) in c.final_txs(i) for i in range(4)))
    assert c.disks[2].committee.epoch == 1
    assert c.disks[2].abstain_until
    assert not c.disks[2].votes


def test_the_oracles_catch_a_rejoined_member_that_takes_the_next_epoch_for_untouched():
    c = lost_after_a_vote_in_the_next_epoch(TakesTheNextEpochForUntouched)
    with pytest.raises(Violation, match=r"^I1: n2 signs notarize twice in view 1"):
        c.run_for(10)


@pytest.mark.parametrize("approvals", [0, 1])
def test_the_oracles_catch_cores_that_take_a_change_of_too_few_admins(monkeypatch, approvals):
    def any_change(committee: Committee, txs: Iterable[Tx]) -> ChangeMembers | None:
        return next((tx.body.action for tx in txs if isinstance(tx.body.action, ChangeMembers)), None)

    def run() -> Cluster:
        c = Cluster(make_oracle=lambda genesis: Invariants(genesis, frozenset(), 4))
        c.submit(change_tx(c.genesis, 0, c.genesis.members[:3], ADMINS[:approvals]))
        c.run_until(lambda: min(c.heights()) == 1)
        return c

    assert [core.committee.epoch for core in run().cores] == [0, 0, 0, 0]
    monkeypatch.setattr("protocol.core.next_change", any_change)
    monkeypatch.setattr("protocol.epochs._is_agreed", lambda change, committee: True)
    with pytest.raises(Violation, match=r"^I4: .* is wrong about the epoch's end"):
        run()


def test_a_failing_plan_shrinks_to_what_it_takes_and_prints_how_to_replay_it():
    broken = {"core": ForgetsWhatItNotarized}
    plan, _ = first_caught("majority", **broken)
    kept = shrink(plan, **broken)
    assert simulate(plan.keeping(kept), **broken).violation
    for index in kept:
        fewer = tuple(i for i in kept if i != index)
        assert not simulate(plan.keeping(fewer), **broken).violation, "one of the faults is not needed"
    assert any(plan.faults[i].kind == "crash" for i in kept)
    keep = ",".join(map(str, kept))
    assert replay_command(plan, kept).endswith(f"--seed {plan.seed} --mode majority --keep {keep}")


BROKEN = {  # mode, the seed to begin with, what is broken, the invariants that may find it
    "votes sent before they are durable": ("majority", 0, {"core": SendsBeforeItWrites}, ("I8",)),
    "a vote after the loss of the disk": ("bft", 100, {"demand_rejoin": False}, ("I1", "I2", "I9")),
    "a rejoin without reports": ("bft", 100, {"core": EndsTheAbstentionAtOnce}, ("I1", "I2", "I9")),
    "no Rule F": ("majority", 0, {"core": WithoutRuleF}, ("I2", "I4", "I9")),
    "a certificate of Q-1 signatures": ("bft", 0, {"committee": OneVoteTooFew}, ("I6",)),
    "a restarted leader that proposes twice": (
        "majority",
        0,
        {"core": ForgetsWhatItNotarized},
        ("I1", "assertion: I1"),
    ),
    "a transaction carried twice": ("majority", 0, {"core": CountsTransactionsAgain}, ("I4", "I7")),
    "blocks on top of the one that ends the epoch": ("bft", 0, {"core": BuildsOnTheEndOfAnEpoch}, ("I4",)),
    "no timeout": ("majority", 0, {"core": NeverNullifies}, ("liveness",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_oracles_catch(name):
    mode, first, broken, invariants = BROKEN[name]
    _, found = first_caught(mode, first, **broken)
    assert found.startswith(invariants), found
