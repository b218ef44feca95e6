"""The chaos scenarios of configs/chaos in the simulator: the same files as for real daemons, seeded, in virtual time, under the oracles.

Each chain of a scenario is a run of its own. What a file says of processes is said of hosts: a full disk is a host that does nothing
while it is full; a second process with the same key is refused by the machine, which is not simulated. A node that equivocates does
so for the whole run. Links keep no order, so that every link reorders, and have no bandwidth.
"""

import multiprocessing
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from client.chaos.scenario import (
    BadLinks,
    Disconnect,
    DiskFull,
    Equivocate,
    Fault,
    Kill,
    Partition,
    Pause,
    Restart,
    Scenario,
    Skew,
    Wipe,
    choose,
    describe,
    lasts,
    load_scenario,
)
from configs import faults
from crypto.errors import DiptychError
from protocol.core import Core
from protocol.identity import ChainKind
from tests.simulation.cluster import Cluster, Link, MakeCore, request_tx
from tests.simulation.liars import Equivocator
from tests.simulation.oracle import Invariants, Violation
from tests.simulation.simulation import Outcome, cheap_signatures

LEAST_PAUSE_S = 0.25
"""Clients pause at least this long, since a run has not the size of its load for a subject."""
RESTART_S = 0.4
"""How long a node is down in a restart, and then up before the next one's turn."""


class _Run:
    def __init__(
        self, scenario: Scenario, kind: ChainKind, seed: int, core: MakeCore, *, demand_rejoin: bool
    ) -> None:
        self._scenario, self._kind, self._demand_rejoin = scenario, kind, demand_rejoin
        self._rng = random.Random(f"{seed}/{kind}")
        self._names = scenario.network.members(kind)
        self._liars = frozenset(
            host
            for fault in scenario.fault
            if isinstance(fault, Equivocate)
            for host in self._hosts(fault, lambda: self._rng.choice(self._names))
        )
        self._cluster = Cluster(
            len(self._names),
            scenario.network.mode,
            seed,
            make_oracle=lambda genesis: Invariants(genesis, self._liars, len(self._names)),
            make_core=lambda host: Equivocator if host in self._liars else core,
            may_halt=True,
            term_length=scenario.network.term_length,
            base_timeout_ms=scenario.network.base_timeout_ms,
        )
        self._down: Counter[int] = Counter()
        """How many faults keep a host from running."""
        self._paused: dict[int, Core] = {}
        self._cuts: list[Callable[[int, int], bool]] = []
        self._links: list[tuple[set[int], Link]] = []
        self._cluster.cut = lambda a, b: any(cut(a, b) for cut in self._cuts)
        self._cluster.link_between = lambda a, b: next(
            (link for hosts, link in reversed(self._links) if a in hosts or b in hosts), self._cluster.link
        )
        self._sent = 0
        self._healed = max((f.at + self._lasts(f) for f in scenario.fault), default=0.0)

    def run(self) -> Outcome:
        violation, c = None, self._cluster
        with cheap_signatures():
            try:
                self._play()
            except Violation as error:
                violation = str(error)
            except AssertionError as error:
                violation = f"assertion: {error}"
        assert isinstance(c.oracle, Invariants)
        evidence = sum(len(c.disks[h].evidence) for h in self._honest)
        return Outcome(c.digest, violation, c.story, len(c.oracle.log), evidence, c.events)

    @property
    def _honest(self) -> list[int]:
        return [h for h in range(len(self._names)) if h not in self._liars]

    def _play(self) -> None:
        c, expect, load = self._cluster, self._scenario.expect, self._scenario.load
        for fault in self._scenario.fault:
            c.at(fault.at, partial(self._begin, fault))
        pause = max(LEAST_PAUSE_S, load.pause_ms / 1000)
        for _ in range(load.clients):
            at = self._rng.uniform(0, pause)
            while at < load.seconds:
                c.at(at, self._submit)
                at += self._rng.uniform(0.5, 1.5) * pause
        c.run_for(self._healed + 0.001 - c.now)
        probe = self._submit()
        self._within(expect.progress_within_s, "progress", lambda: self._is_final_somewhere(probe))
        c.run_for(max(0.001, load.seconds - c.now))
        for number in range(self._sent):  # a client sends again what has no receipt
            self._spread(number)
        self._within(expect.catch_up_within_s, "every node has everything", self._is_all_final)

    def _within(self, seconds: float, what: str, done: Callable[[], bool]) -> None:
        end = self._cluster.now + seconds
        while not done():
            if self._cluster.now >= end:
                heights = [len(disk.final) for disk in self._cluster.disks]
                raise Violation(f"liveness: not within {seconds:g} s: {what}; heights {heights}")
            self._cluster.run_for(min(0.05, end - self._cluster.now))

    def _is_final_somewhere(self, number: int) -> bool:
        return any(request_tx(number) in self._cluster.final_txs(h) for h in self._honest)

    def _is_all_final(self) -> bool:
        wanted = {request_tx(number) for number in range(self._sent)}
        return all(wanted <= set(self._cluster.final_txs(h)) for h in self._honest)

    # --- load -------------------------------------------------------------------------------------------------------------

    def _submit(self) -> int:
        self._sent += 1
        self._spread(self._sent - 1)
        return self._sent - 1

    def _spread(self, number: int) -> None:
        """One client's transaction reaches all hosts that run, as nodes pass it on and a client turns to the next node."""
        for host, core in enumerate(self._cluster.cores):
            if core:
                with suppress(DiptychError):  # final there
                    self._cluster.submit(request_tx(number), to=host)

    # --- faults -----------------------------------------------------------------------------------------------------------

    def _lasts(self, fault: Fault) -> float:
        """Seconds; a restart takes its time for each node in turn."""
        return 2 * RESTART_S * len(self._names) if isinstance(fault, Restart) else lasts(fault)

    def _hosts(self, fault: Fault, leader: Callable[[], str]) -> list[int]:
        if isinstance(fault, Partition):
            return [self._names.index(n) for group in fault.groups for n in group if n in self._names]
        mine = tuple(n for n in fault.nodes if n.startswith(f"{self._kind}-"))
        chosen = choose(self._scenario.network, mine, self._rng, lambda _: leader())
        return [self._names.index(name) for name in chosen]

    def _leader(self) -> str:
        """Who leads in the highest view that a host is in."""
        cores = [core for core in self._cluster.cores if core]
        first = max(cores, key=lambda core: core.view, default=None)
        return self._names[first.committee.leader(first.view)] if first else self._rng.choice(self._names)

    def _begin(self, fault: Fault) -> None:
        c = self._cluster
        hosts = self._hosts(fault, self._leader)
        if not hosts:
            return
        c.say(f"fault: {describe(fault, tuple(self._names[h] for h in hosts))}")
        over = partial(c.at, c.now + self._lasts(fault))
        match fault:
            case Kill() | Wipe() | DiskFull():
                for host in hosts:
                    self._stop(host, wipes=isinstance(fault, Wipe))
                over(lambda: [self._start(host) for host in hosts])
            case Restart():
                for number, host in enumerate(hosts):
                    c.at(c.now + 2 * RESTART_S * number, partial(self._stop, host))
                    c.at(c.now + RESTART_S * (2 * number + 1), partial(self._start, host))
            case Pause():
                for host in hosts:
                    core = c.pause(host)
                    if core:
                        self._paused[host] = core
                over(lambda: [self._resume(host) for host in hosts])
            case Disconnect():
                self._cut(lambda a, b: a in hosts or b in hosts, over)
            case Partition(groups=groups):
                side = {
                    self._names.index(n): i
                    for i, group in enumerate(groups)
                    for n in group
                    if n in self._names
                }
                self._cut(lambda a, b: side.get(a) != side.get(b), over)
            case BadLinks(link=link):
                entry = (set(hosts), _simulated(link))
                self._links.append(entry)
                over(lambda: self._links.remove(entry))
            case Skew(ms=ms):
                for host in hosts:
                    c.skew[host] += ms
                over(lambda: [self._turn_back(host, ms) for host in hosts])
            case _:
                pass  # who equivocates does so from the start; a second process is refused by the machine

    def _cut(self, cut: Callable[[int, int], bool], over: Callable[[Callable[[], None]], None]) -> None:
        self._cuts.append(cut)
        over(lambda: self._cuts.remove(cut))

    def _turn_back(self, host: int, ms: int) -> None:
        self._cluster.skew[host] -= ms

    def _stop(self, host: int, *, wipes: bool = False) -> None:
        self._down[host] += 1
        self._paused.pop(host, None)
        if wipes:
            self._cluster.lose_disk(host, rejoin=self._demand_rejoin)
        else:
            self._cluster.crash(host, cuts_power=self._rng.random() < 0.5)

    def _start(self, host: int) -> None:
        self._down[host] -= 1
        if not self._down[host] and self._cluster.cores[host] is None:
            self._cluster.start(host)

    def _resume(self, host: int) -> None:
        core = self._paused.pop(host, None)
        if core:
            self._cluster.resume(host, core)


def _simulated(link: faults.Link) -> Link:
    low, high = (ms / 1000 for ms in link.delay_ms)
    return Link(link.drop, (max(low, 0.001), max(high, 0.005)), link.duplicate)


def simulate(
    scenario: Scenario, seed: int, core: MakeCore = Core, *, demand_rejoin: bool = True
) -> list[Outcome]:
    """One run of each chain of the scenario; `core` and `demand_rejoin` as in `tests.simulation.simulation`."""
    return [
        _Run(scenario, kind, seed, core, demand_rejoin=demand_rejoin).run()
        for kind in scenario.network.chains
    ]


@dataclass(frozen=True)
class _Job:
    path: Path
    seed: int


def _one(job: _Job) -> tuple[_Job, list[Outcome]]:
    outcomes = simulate(load_scenario(job.path), job.seed)
    for outcome in outcomes:
        outcome.story.clear()
    return job, outcomes


def run(paths: Sequence[Path], seeds: int, console: Console) -> int:
    """Simulate each file with `seeds` seeds, from its own on, on all cores; the number of runs in which something did not hold."""
    jobs = [_Job(path, load_scenario(path).seed + number) for path in paths for number in range(seeds)]
    totals: dict[Path, Counter[str]] = {path: Counter() for path in paths}
    columns = ("simulating", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with multiprocessing.Pool(os.cpu_count()) as pool, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(jobs))
        for job, outcomes in pool.imap_unordered(_one, jobs, chunksize=4):
            progress.advance(task)
            broken = [o.violation for o in outcomes if o.violation]
            totals[job.path].update(
                {
                    "runs": 1,
                    "events": sum(o.events for o in outcomes),
                    "final blocks": sum(o.blocks for o in outcomes),
                    "evidence": sum(o.evidence for o in outcomes),
                    "violations": bool(broken),
                }
            )
            for violation in broken:
                console.print(f"[red]{violation}[/red]", highlight=False)
                console.print(f"  python3 run_node.py chaos {job.path} --simulate --seed {job.seed}")
    table = Table("scenario", *next(iter(totals.values())))
    for path, total in totals.items():
        table.add_row(path.stem, *(f"{value:,}" for value in total.values()))
    console.print(table)
    return sum(total["violations"] for total in totals.values())


def tell(path: Path, seed: int, console: Console) -> int:
    """Simulate one file with one seed and tell the story; the number of chains on which something did not hold."""
    scenario, failed = load_scenario(path), 0
    for kind, outcome in zip(scenario.network.chains, simulate(scenario, seed), strict=True):
        console.rule(f"{path.stem}, {kind} chain", align="left")
        for line in outcome.story:
            console.print(line, highlight=False, markup=False)
        console.print(
            f"{outcome.violation or 'everything held'} · {outcome.events} events · digest {outcome.digest}"
        )
        failed += outcome.violation is not None
    return failed


def main(
    files: list[Path],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds for each file.")] = 100,
    seed: Annotated[int | None, typer.Option(min=0, help="Only this seed, and tell its story.")] = None,
) -> None:
    """Run chaos scenarios in the simulator; exit code 1 when something does not hold."""
    console = Console()
    if seed is not None:
        sys.exit(1 if sum(tell(path, seed, console) for path in files) else 0)
    sys.exit(1 if run(files, seeds, console) else 0)


if __name__ == "__main__":
    typer.run(main)
