"""One simulated run from one seed: a plan of faults and lies, carried out in virtual time under the oracles, shrunk if it fails.

Faults strike for `STORM` seconds; then the network is whole, all hosts run, at most n-Q members are faulty, and every submitted
transaction must become final on every honest host within `PATIENCE` seconds.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import crypto.sign
import protocol.block
from crypto.errors import DiptychError
from crypto.sign import SigningKey
from protocol.block import Committee
from protocol.core import Core
from protocol.genesis import Genesis
from protocol.quorum import Mode, quorum
from tests.simulation.cluster import Cluster, Link, MakeCore, request_tx
from tests.simulation.liars import LIARS, TWINS
from tests.simulation.oracle import Invariants, Violation

STORM, PATIENCE = 25.0, 400.0
SPARES = 2
CRASH_POINTS = ("at rest", "before commit", "after commit", "between sends")


@dataclass(frozen=True)
class Fault:
    """`kind`: crash, wipe, split or noise, from `at` for `seconds`; `value` says which or how."""

    at: float
    kind: str
    seconds: float
    value: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.value} at {self.at:.3f} for {self.seconds:.3f} s"


@dataclass(frozen=True)
class Change:
    """At `at` the admins agree that `members` decide in the next epoch; some of them come with a new key."""

    at: float
    members: tuple[int, ...]
    rotated: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    seed: int
    mode: Mode
    members: int
    changes: tuple[Change, ...]
    spare: int
    """How many members may lie, abstain or be dead at once, whatever the epoch."""
    term_length: int
    base_timeout_ms: int
    liars: tuple[tuple[int, str], ...]
    submissions: tuple[tuple[float, int, int], ...]
    skew: tuple[int, ...]
    """How far the clock of each host is off, in milliseconds: less than the drift that nodes allow."""
    dead: tuple[int, ...]
    """Honest hosts that stay down after the storm, as far as that leaves a quorum which does not abstain."""
    faults: tuple[Fault, ...]

    @classmethod
    def make(cls, seed: int, mode: Mode) -> "Plan":
        rng = random.Random(f"{mode} {seed}")
        n = rng.choice((4, 4, 4, 5, 7)) if mode == "bft" else rng.choice((3, 3, 4, 5, 7))
        sizes = [n] + [
            max(3, n + rng.choice((-1, 0, 1, 1))) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3)))
        ]
        spare = min(size - quorum(size, mode) for size in sizes)
        safe = min(2 * quorum(size, mode) - size - 1 for size in sizes)
        count = rng.randint(0, min(spare, safe)) if mode == "bft" else 0
        liars = tuple((m, rng.choice((TWINS, *LIARS))) for m in rng.sample(range(n), count))
        honest = [m for m in range(n + SPARES) if m not in dict(liars)]
        hosts = n + SPARES + sum(kind == TWINS for _, kind in liars)
        changes: list[Change] = []
        for at, size in zip(sorted(rng.uniform(0, STORM) for _ in sizes[1:]), sizes[1:], strict=True):
            bad = [m for m, _ in liars]
            members = tuple(sorted(bad + rng.sample(honest, size - len(bad))))
            rotated = tuple(m for m in members if m in honest and rng.random() < 0.2)
            if not rotated and members == (changes[-1].members if changes else tuple(range(n))):
                rotated = (next(m for m in members if m in honest),)
            changes.append(Change(at, members, rotated))
        faults = []
        for _ in range(rng.randint(0, rng.choice((6, 9, 30)))):
            at, seconds = rng.uniform(0, STORM), rng.expovariate(0.3)
            kind = rng.choice(("crash", "crash", "crash", "split", "split", "noise", "wipe"))
            value: tuple[Any, ...]
            if kind == "crash":
                value = (rng.randrange(hosts), rng.choice(CRASH_POINTS), rng.randrange(8))
            elif kind == "wipe":
                value = (rng.choice(honest),)
            elif kind == "split":
                value = tuple(rng.randrange(2) for _ in range(hosts))
            else:
                delay = rng.choice((0.005, 0.05, 0.5, 2.0))
                value = (rng.choice((0.0, 0.05, 0.3)), delay, rng.choice((0.0, 0.3)))
            faults.append(Fault(at, kind, seconds, value))
        submissions = [(rng.uniform(0, STORM), k, rng.choice(honest)) for k in range(rng.randint(3, 15))]
        return cls(
            seed,
            mode,
            n,
            tuple(changes),
            spare,
            rng.choice((1, 2, 4, 4, 8)),
            rng.choice((200, 500, 1000)),
            liars,
            tuple(sorted(submissions)),
            tuple(rng.choice((0, 0, -900, 900)) for _ in range(hosts)),
            tuple(rng.sample(honest, max(0, rng.randint(0, spare) - len(liars)))),
            tuple(sorted(faults, key=lambda f: f.at)),
        )

    def keeping(self, indices: tuple[int, ...]) -> "Plan":
        """Only some of the faults, by their place in the plan of the seed."""
        return replace(self, faults=tuple(self.faults[i] for i in indices))


@dataclass
class Outcome:
    digest: str = ""
    violation: str | None = None
    story: list[str] = field(default_factory=list)
    blocks: int = 0
    evidence: int = 0
    events: int = 0


@contextmanager
def cheap_signatures() -> Iterator[None]:
    """Remember the verdicts of the one signature check while a simulation runs: pure, and most of its time."""
    original = crypto.sign.is_valid
    cached = lru_cache(1 << 16)(original)
    crypto.sign.is_valid = protocol.block.is_valid = cached
    try:
        yield
    finally:
        crypto.sign.is_valid = protocol.block.is_valid = original


class Simulation:
    """`core` and `committee` may be broken on purpose; `demand_rejoin` False models an operator whom nobody stops."""

    def __init__(
        self,
        plan: Plan,
        core: MakeCore = Core,
        committee: Callable[[Genesis], Committee] = Committee,
        *,
        demand_rejoin: bool = True,
    ) -> None:
        self.plan, self._demand_rejoin = plan, demand_rejoin
        liars = dict(plan.liars)
        twins = tuple(m for m, kind in plan.liars if kind == TWINS)
        hosts = plan.members + SPARES
        self.honest = [m for m in range(hosts) if m not in liars]
        self._down: dict[int, float] = {}
        """How long a host stays down after a crash that waits for its step."""
        self._splits: list[tuple[int, ...]] = []
        self._gone: set[int] = set()
        genesis = {"term_length": plan.term_length, "base_timeout_ms": plan.base_timeout_ms}

        def make_core(host: int) -> MakeCore:
            kind = liars.get(host)
            return core if kind in (None, TWINS) else LIARS[kind]

        self.cluster = Cluster(
            plan.members,
            plan.mode,
            plan.seed,
            make_oracle=lambda genesis: Invariants(genesis, frozenset(liars), hosts),
            make_core=make_core,
            make_committee=committee,
            spares=SPARES,
            twins=twins,
            may_halt=True,
            **genesis,
        )
        assert isinstance(self.cluster.oracle, Invariants)
        self.oracle = self.cluster.oracle
        self.cluster.on_crash = self._crashed
        self.cluster.cut = lambda a, b: any(s[a] != s[b] for s in self._splits)

    def run(self) -> Outcome:
        with cheap_signatures():
            violation = None
            try:
                self._storm()
                self._calm()
            except Violation as error:
                violation = str(error)
            except AssertionError as error:
                violation = f"assertion: {error}"
        c = self.cluster
        evidence = sum(len(c.disks[h].evidence) for h in self.honest)
        return Outcome(c.digest, violation, c.story, len(self.oracle.log), evidence, c.events)

    def _storm(self) -> None:
        c = self.cluster
        c.skew[:] = self.plan.skew
        for at, number, host in self.plan.submissions:
            c.at(at, lambda number=number, host=host: self._submit(number, host))
        for fault in self.plan.faults:
            c.at(fault.at, lambda fault=fault: self._strike(fault))
        for epoch, change in enumerate(self.plan.changes):
            c.at(change.at, lambda epoch=epoch, change=change: self._change(epoch, change))
        c.run_for(STORM)

    def _submit(self, number: int, host: int) -> None:
        """Hand a transaction to one host, which tells the others as far as the network lets it."""
        c = self.cluster
        if not self._add(request_tx(number), host):
            return
        for other in range(len(c.member)):
            if other != host and not c.cut(host, other) and c.random.random() >= c.link.drop:
                at = c.now + c.random.uniform(*c.link.delay)
                c.at(at, lambda other=other: self._add(request_tx(number), other))

    def _add(self, raw: bytes, host: int) -> bool:
        try:
            self.cluster.submit(raw, to=host)
        except DiptychError:
            return False  # already final
        return self.cluster.cores[host] is not None

    def _change(self, epoch: int, change: Change) -> None:
        """The admins' tool: wait for the epoch that the change ends, then tell every node, until it has ended."""
        c = self.cluster
        now = len(self.oracle.epochs) - 1
        if now == epoch:
            for place in change.rotated:
                new, keys = (
                    SigningKey(bytes([100 + 10 * epoch + place]) * 32),
                    c.new_keys.setdefault(place, []),
                )
                if new.public not in [k.public for k in keys]:
                    keys.append(new)
            raw = c.change(epoch, *change.members)
            for host in self.honest:
                self._add(raw, host)
        if now <= epoch:
            c.at(c.now + 1.0, lambda: self._change(epoch, change))

    def _strike(self, fault: Fault) -> None:
        c = self.cluster
        c.say(f"fault: {fault}")
        match fault.kind:
            case "crash":
                self._crash(*fault.value, seconds=fault.seconds)
            case "wipe":
                (host,) = fault.value
                if self._may_wipe(host):
                    c.lose_disk(host, rejoin=self._demand_rejoin)
                    self._crashed(host, fault.seconds)
            case "split":
                self._splits.append(fault.value)
                c.at(c.now + fault.seconds, lambda: self._heal(fault.value))
            case "noise":
                drop, delay, duplicate = fault.value
                c.link = Link(drop, (0.001, delay), duplicate)
                c.at(c.now + fault.seconds, lambda: setattr(c, "link", Link()))

    def _crash(self, host: int, point: Any, number: int, seconds: float) -> None:
        if point == "at rest":
            self.cluster.crash(host, cuts_power=number % 2 == 0)
            self._crashed(host, seconds)
        elif self.cluster.cores[host]:
            self.cluster.crash_next[host] = (point, number)
            self._down[host] = seconds

    def _crashed(self, host: int, seconds: float | None = None) -> None:
        seconds = self._down.pop(host, 0.1) if seconds is None else seconds
        self.cluster.at(self.cluster.now + seconds, lambda: self._restart(host))

    def _restart(self, host: int) -> None:
        if self.cluster.cores[host] is None and host not in self._gone:
            self.cluster.say(f"{self.cluster.name(host)} starts again")
            self.cluster.start(host)

    def _heal(self, groups: tuple[int, ...]) -> None:
        if groups in self._splits:
            self._splits.remove(groups)
            self.cluster.say("a partition heals")

    def _may_wipe(self, host: int) -> bool:
        """Members that lie or abstain count as faulty together; and a report needs a quorum of others."""
        abstaining = [h for h in self.honest if h != host and self._abstains(h)]
        return not abstaining and self.plan.spare > len(self.plan.liars)

    def _abstains(self, host: int) -> bool:
        """Now, or again when the epoch ends: with a block of a view up to `until`, which may be one of before the loss."""
        c = self.cluster
        until, committee = c.disks[host].abstain_until, c.disks[host].committee
        core = c.cores[host]
        if until == 0:
            return False
        if until is None or core is None or core.view < committee.term_start(committee.term(until) + 1):
            return True
        return committee.epoch < len(self.plan.changes) and core.tip.view < until

    def _calm(self) -> None:
        c = self.cluster
        c.say("the storm is over")
        self._splits.clear()
        c.link = Link()
        c.crash_next.clear()
        for host in range(len(c.member)):
            self._restart(host)
        abstaining = sum(map(self._abstains, self.honest))
        dead = self.plan.dead[: max(0, self.plan.spare - len(self.plan.liars) - abstaining)]
        for host in dead:
            c.say(f"{c.name(host)} is gone for good")
            c.crash(host)
        self._gone.update(dead)
        live = [h for h in self.honest if h not in dead]
        wanted = {request_tx(number) for _, number, _ in self.plan.submissions}
        for _, number, _ in self.plan.submissions:
            for host in live:
                self._add(request_tx(number), host)

        def all_final() -> bool:
            if len(self.oracle.epochs) <= len(self.plan.changes):
                return False
            heights = {len(c.disks[h].final) for h in live}
            return len(heights) == 1 and all(wanted <= set(c.final_txs(h)) for h in live)

        end = c.now + PATIENCE
        while not all_final():
            if c.now > end:
                heights = {c.name(h): len(c.disks[h].final) for h in live}
                views = [core.view if core else None for core in c.cores]
                raise Violation(
                    f"liveness: not everything is final {PATIENCE} s after the storm: {heights}, {views}"
                )
            c.run_for(0.25)


def simulate(plan: Plan, **broken: Any) -> Outcome:
    return Simulation(plan, **broken).run()


def shrink(plan: Plan, **broken: Any) -> tuple[int, ...]:
    """The places of a few faults of a failing plan without any of which it no longer fails."""
    kept, before = tuple(range(len(plan.faults))), None
    while kept != before:
        before = kept
        for index in before:
            fewer = tuple(i for i in kept if i != index)
            if simulate(plan.keeping(fewer), **broken).violation:
                kept = fewer
    return kept


def replay_command(plan: Plan, kept: tuple[int, ...] | None = None) -> str:
    keep = "" if kept is None else f" --keep {','.join(map(str, kept)) or 'none'}"
    return f"python -m tests.simulation.run --seed {plan.seed} --mode {plan.mode}{keep}"
