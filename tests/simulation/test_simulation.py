"""Consensus in virtual time: no seed breaks an invariant, every run can be repeated, and the stories stay as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crypto.errors import DiptychError
from node.store import Store
from protocol.block import Block
from protocol.core import Core, Effect, SaveAbstention, Send, ServeChain
from protocol.evidence import Evidence
from tests.simulation import stories
from tests.simulation.cluster import Cluster, Disk, Link, request_tx
from tests.simulation.liars import LIARS, TWINS
from tests.simulation.oracle import Invariants
from tests.simulation.simulation import CRASH_POINTS, SPARES, Plan, Simulation, replay_command, simulate

SEEDS, BATCH = 120, 20


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
@pytest.mark.parametrize("mode", ["bft", "majority"])
def test_no_seed_breaks_an_invariant_and_everything_submitted_becomes_final(mode, first):
    for seed in range(first, first + BATCH):
        plan = Plan.make(seed, mode)
        outcome = simulate(plan)
        assert outcome.violation is None, f"{outcome.violation}; {replay_command(plan)}"


def test_who_must_ask_again_when_the_epoch_ends_counts_as_missing_until_then():
    """Two members that lost their disks one after the other, and then both wait in the next epoch, would stop it for ever."""
    plan = Plan.make(1369, "bft")
    assert simulate(plan).violation is None


def one_liar(liar: int, kind: str) -> Plan:
    """Four members, one of whom lies while nothing else goes wrong."""
    honest = [m for m in range(4) if m != liar]
    submissions = tuple((0.4 * k, k, honest[k % 3]) for k in range(15))
    skew = (0,) * (4 + SPARES + (kind == TWINS))
    return Plan(liar, "bft", 4, (), 1, 4, 500, ((liar, kind),), submissions, skew, (), ())


@pytest.mark.parametrize("kind", [TWINS, *LIARS])
@pytest.mark.parametrize("liar", range(4))
def test_no_kind_of_liar_breaks_an_invariant_and_the_chain_goes_on(kind, liar):
    assert simulate(one_liar(liar, kind)).violation is None


@pytest.mark.parametrize("kind", ["Equivocator", "DoubleVoter", "NullifyThenFinalize"])
def test_who_contradicts_themself_is_convicted_by_every_honest_member(kind):
    plan = one_liar(0, kind)
    simulation = Simulation(plan)
    assert simulation.run().violation is None
    for host in simulation.honest:
        evidence = simulation.cluster.disks[host].evidence
        assert {e.first.signer for e in evidence} == {0}
        assert all(
            simulation.cluster.committee.is_valid_vote(v) for e in evidence for v in (e.first, e.second)
        )
        assert len(evidence) <= 16, "a liar cannot fill the disk"


def test_the_same_seed_is_the_same_run_in_another_process_with_another_hash_seed():
    jobs = [(seed, mode) for seed in range(4) for mode in ("bft", "majority")]
    script = (
        "from tests.simulation.simulation import Plan, simulate\n"
        f"for seed, mode in {jobs}: print(simulate(Plan.make(seed, mode)).digest)"
    )
    root = Path(__file__).resolve().parents[2]
    runs = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        runs.append(done.stdout.split())
    here = [simulate(Plan.make(seed, mode)).digest for seed, mode in jobs]
    assert runs[0] == runs[1] == here
    assert len(set(here)) == len(jobs)


@pytest.mark.parametrize("name", stories.STORIES)
def test_the_story_is_as_it_was(name):
    told = (stories.GOLDEN / f"{name}.txt").read_text()
    assert stories.told(name) == told, "if the change is meant: python -m tests.simulation.run --regenerate"


def test_there_is_no_story_without_its_teller():
    assert {path.stem for path in stories.GOLDEN.glob("*.txt")} == set(stories.STORIES)


class Mirror(Disk):
    """The model with a real store beside it, compared whenever either is read."""

    def __init__(self, committee, folder: Path) -> None:
        super().__init__(committee)
        self._store = Store(folder, committee.genesis)

    def apply(self, effects: list[Effect]) -> None:
        super().apply(effects)
        self._store.apply(e for e in effects if not isinstance(e, Send | ServeChain))

    def cut_power(self) -> None:
        """The store can only be killed, which undoes nothing."""

    def load(self):
        model, store = super().load(), self._store.load()
        assert store.tip == model.tip
        assert (store.halted, store.abstain_until) == (model.halted, model.abstain_until)
        assert _sorted(store.votes) == _sorted(model.votes)
        assert {b.header.id: b for b in store.blocks} == {b.header.id: b for b in model.blocks}
        assert _sorted(store.certificates) == _sorted(model.certificates)
        assert {p.id for p in store.final_txs} == {p.id for p in model.final_txs}
        assert sorted(map(_pair, store.evidence)) == sorted(map(_pair, model.evidence))
        return model

    def page(self, height: int, size: int = 256):
        page = super().page(height, size)
        assert self._store.page(height) == page
        return page


def _sorted(things: list) -> list:
    return sorted(things, key=lambda t: (t.view, t.kind))


def _pair(evidence: Evidence) -> str:
    return repr(evidence)


@pytest.mark.parametrize(("seed", "mode"), [(3, "bft"), (8, "bft"), (11, "majority"), (20, "majority")])
def test_the_modelled_disk_keeps_what_the_store_keeps(tmp_path, monkeypatch, seed, mode):
    made = []

    def mirror(committee) -> Mirror:
        made.append(Mirror(committee, tmp_path / str(len(made))))
        return made[-1]

    monkeypatch.setattr("tests.simulation.cluster.Disk", mirror)
    assert simulate(Plan.make(seed, mode)).violation is None
    for disk in made:
        disk.load()
        disk.page(1)
        disk._store.close()


class SmallCluster(RuleBasedStateMachine):
    """Whatever happens to four members with at most one down or abstaining at a time, no invariant breaks, and they recover."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(
            link=Link(delay=(0.001, 0.08), duplicate=0.1),
            make_oracle=no_liars,
            term_length=2,
            base_timeout_ms=500,
        )
        self.submitted: list[bytes] = []

    @rule(host=st.integers(0, 3))
    def submit(self, host: int) -> None:
        self.submitted.append(request_tx(len(self.submitted)))
        self._submit(self.submitted[-1], host)

    @rule(host=st.integers(0, 3), point=st.sampled_from(CRASH_POINTS), number=st.integers(0, 5))
    def crash(self, host: int, point: str, number: int) -> None:
        if point == "at rest":
            self.cluster.crash(host, cuts_power=number % 2 == 0)
        elif self.cluster.cores[host]:
            self.cluster.crash_next[host] = (point, number)

    @rule(host=st.integers(0, 3))
    def start(self, host: int) -> None:
        if self.cluster.cores[host] is None:
            self.cluster.start(host)

    @precondition(lambda self: all(self._is_whole(h) for h in range(4)))
    @rule(host=st.integers(0, 3))
    def lose_disk(self, host: int) -> None:
        self.cluster.lose_disk(host)
        self.cluster.start(host)

    @rule(apart=st.sets(st.integers(0, 3), max_size=2), drop=st.sampled_from([0.0, 0.0, 0.3]))
    def change_network(self, apart: set[int], drop: float) -> None:
        self.cluster.cut = lambda a, b: (a in apart) != (b in apart)
        self.cluster.link = Link(drop, (0.001, 0.08), 0.1)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.0, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.cluster.run_for(seconds)

    @invariant()
    def final_logs_agree(self) -> None:
        self.cluster.check_prefixes()

    def teardown(self) -> None:
        c = self.cluster
        c.cut, c.link = (lambda a, b: False), Link()
        c.crash_next.clear()
        for host in range(4):
            self.start(host)
        for raw in self.submitted:
            for host in range(4):
                self._submit(raw, host)
        c.run_until(lambda: all(set(self.submitted) <= set(c.final_txs(i)) for i in range(4)), 400)

    def _submit(self, raw: bytes, host: int) -> None:
        try:
            self.cluster.submit(raw, to=host)
        except DiptychError:
            return  # already final

    def _is_whole(self, host: int) -> bool:
        until, core = self.cluster.disks[host].abstain_until, self.cluster.cores[host]
        return until is not None and core is not None and core.view > until + 2


SmallCluster.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_small_cluster = SmallCluster.TestCase


@pytest.mark.parametrize("mode", ["bft", "majority"])
def test_what_is_final_anywhere_is_final_everywhere_after_a_power_cut_at_all_members_at_once(mode):
    for seed in range(30):
        c = Cluster(mode=mode, seed=seed, link=Link(delay=(0.001, 0.08)), make_oracle=no_liars)
        for number in range(1 + seed % 3):
            c.submit(request_tx(number))
            c.run_until(
                lambda c=c, number=number: any(request_tx(number) in c.final_txs(i) for i in range(4))
            )
        final = max(map(final_blocks, c.disks), key=len)
        for host in range(4):
            c.crash(host, cuts_power=True)
        assert any(len(disk.final) < len(final) for disk in c.disks)
        for host in range(4):
            c.start(host)
        c.run_until(lambda c=c, final=final: all(len(disk.final) >= len(final) for disk in c.disks))
        for disk in c.disks:
            assert final_blocks(disk)[: len(final)] == final


def final_blocks(disk: Disk) -> list[Block]:
    return [block for block, _ in disk.final]


def no_liars(genesis) -> Invariants:
    return Invariants(genesis, frozenset(), 4)


# --- rejoining -----------------------------------------------------------------------------------------------------------


def test_a_member_that_lost_its_disk_signs_nothing_until_a_quorum_of_others_has_reported():
    c = Cluster()
    c.submit(request_tx(1))
    c.run_until(lambda: min(c.heights()) == 1)
    c.crash(3)
    c.lose_disk(2)
    c.start(2)
    c.submit(request_tx(2))
    c.run_for(100)
    assert c.heights()[2] == 1, "it syncs meanwhile"
    assert not c.disks[2].votes
    assert c.disks[2].abstain_until is None
    c.crash(2)
    c.start(2)
    c.run_for(10)
    assert not c.disks[2].votes, "a crash in the middle does not make it forget"
    c.start(3)
    c.run_until(lambda: all(request_tx(2) in c.final_txs(i) for i in range(4)), 300)
    c.run_until(lambda: c.disks[2].abstain_until is not None)
    assert all(view > c.disks[2].abstain_until for view, _ in c.disks[2].votes)


def test_a_liar_cannot_make_a_rejoining_member_abstain_for_ever():
    c = Cluster()
    c.submit(request_tx(1))
    c.run_until(lambda: min(c.heights()) == 1)
    c.cut = lambda a, b: True
    c.lose_disk(2)
    c.start(2)
    core, report = c.cores[2], c.committee.report
    for view in (2**40, 2**63 - 1, c.committee.term_start(5)):
        c.inject(2, 1, report(c.keys[1], 1, core._nonce, view, None))
    c.inject(2, 1, report(c.keys[0], 1, core._nonce, 1, None))
    c.inject(2, 1, report(c.keys[1], 1, bytes(32), 1, None))
    for src in (0, 3):
        c.inject(2, src, report(c.keys[src], src, core._nonce, 2, None))
    assert c.disks[2].abstain_until is None, (
        "neither an absurd view, nor a false signature, nor an old nonce counts"
    )
    c.inject(2, 1, report(c.keys[1], 1, core._nonce, 2, None))
    assert c.disks[2].abstain_until == c.committee.term_start(1)


def test_a_member_that_is_lost_itself_reports_nothing():
    c = Cluster(7)
    for host in (1, 2):
        c.lose_disk(host)
    c.cut = lambda a, b: not {a, b} <= {1, 2}
    for host in (1, 2):
        c.start(host)
    c.run_for(5)
    assert not c.cores[1]._reports
    assert not c.cores[2]._reports


def test_without_a_nonce_a_lost_member_only_follows():
    c = Cluster(make_core=lambda host: lambda *args: Core(*args[:-1]))
    c.disks[3].apply([SaveAbstention(None)])
    c.crash(3)
    c.start(3)
    c.submit(request_tx(1))
    c.run_until(lambda: min(c.heights()) == 1)
    assert not c.disks[3].votes
