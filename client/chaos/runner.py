"""Carries out a scenario on real processes: starts them, loads them, breaks them at the written times, and judges what clients saw.

Whoever composes it hands in the supervisor of a network made for this run whose nodes have `chaos = true`. One thread does all
the breaking, in the order of the scenario; a node that is told about faults while it is down is told again once it answers.
"""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2
import msgspec

from client.chaos.history import History, Injected, Verdict, judge
from client.chaos.load import ChainLoad
from client.chaos.scenario import (
    BadLinks,
    Disconnect,
    DiskFull,
    DoubleStart,
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
    kind_of,
    lasts,
)
from client.web import checked, http_client
from configs.faults import Link, NodeFaults
from configs.files import load_network
from configs.settings import NodeSettings
from crypto.errors import DiptychError, Unavailable
from crypto.sign import SigningKey
from protocol.identity import ChainKind

START_S = 30.0
"""How long a new process may take until it is ready, or has refused to start."""
STOP_S = 15.0
ORDER_TIMEOUT_S = 1.0


class Process(Protocol):
    """One daemon of the supervisor."""

    @property
    def config(self) -> Path: ...
    @property
    def url(self) -> str: ...
    @property
    def process(self) -> "subprocess.Popen[bytes] | None": ...


class Control(Protocol):
    """What the runner needs of the network's supervisor."""

    @property
    def daemons(self) -> Mapping[str, Process]: ...
    def start(self, *names: str, flags: Sequence[str] = ()) -> None: ...
    def wait_ready(self, seconds: float = 90) -> None: ...
    def kill(self, name: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    scenario: Scenario
    history: History
    verdicts: list[Verdict]

    @property
    def holds(self) -> bool:
        return all(v.holds for v in self.verdicts)


@dataclass
class _Active:
    """A fault that has begun: its nodes, the second processes it started, and what went wrong with it."""

    fault: Fault
    nodes: tuple[str, ...]
    start: float
    seconds: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    trouble: str | None = None


def run(
    network: Path,
    control: Control,
    authority: SigningKey,
    program: Sequence[str],
    scenario: Scenario,
    say: Callable[[str], None],
) -> Outcome:
    """Run the scenario on the fresh network in the folder `network`. `program` starts a daemon when followed by `node --config FILE`.

    Raises `Unavailable` when the network does not come up; what goes wrong later is in the verdicts.
    """
    runner = _Runner(network, control, authority, program, scenario, say)
    try:
        return runner.run()
    finally:
        runner.close()


class _Runner:
    def __init__(
        self,
        network: Path,
        control: Control,
        authority: SigningKey,
        program: Sequence[str],
        scenario: Scenario,
        say: Callable[[str], None],
    ) -> None:
        self._control, self._authority, self._program = control, authority, program
        self._scenario, self._say = scenario, say
        self._rng = random.Random(f"{scenario.seed}/faults")  # noqa: S311 - a reproducible schedule, no secrets
        self._started = time.monotonic()
        self._history = History()
        self._http = http_client(ORDER_TIMEOUT_S)
        self._active: list[_Active] = []
        self._orders: dict[str, NodeFaults] = {}
        self._untold: dict[str, str] = {}
        """Nodes that have not taken their order, and why."""
        self._paused: set[str] = set()
        found, chains = load_network(network / "network.toml")
        self._urls = {
            kind: {name: found.chains[kind].nodes[name].http for name in scenario.network.members(kind)}
            for kind in scenario.network.chains
        }
        self._loads = {
            kind: ChainLoad(chains[kind], urls, self._history, self._now) for kind, urls in self._urls.items()
        }

    def run(self) -> Outcome:
        scenario, history = self._scenario, self._history
        self._say(f"starting {len(scenario.network.names)} nodes")
        self._control.start(*scenario.network.names)
        self._control.wait_ready()
        for load in self._loads.values():
            load.certify(self._authority, scenario.load.clients)
        self._started = time.monotonic()
        for load in self._loads.values():
            load.start(scenario.seed, scenario.load.pause_ms / 1000)
        self._break()
        self._until_progress()
        self._say("the load ends; waiting for receipts and for nodes that are behind")
        for load in self._loads.values():
            load.send_no_more()
        for load in self._loads.values():
            load.wait_for_receipts(scenario.expect.progress_within_s)
        for load in self._loads.values():
            load.wait_for_nodes(scenario.expect.catch_up_within_s)
        for load in self._loads.values():
            load.stop()
        self._say("reading all blocks from every node")
        history.finals = {kind: load.read_finals() for kind, load in self._loads.items()}
        return Outcome(scenario, history, judge(history, scenario.expect.progress_within_s))

    def close(self) -> None:
        """Stop the load, wake paused processes, end second ones. Safe to call again."""
        for load in self._loads.values():
            load.stop()
        for active in self._active:
            for second in active.seconds:
                second.kill()
                second.communicate()
        for name in self._scenario.network.names:
            self._signal(name, signal.SIGCONT)
        self._http.close()

    def _now(self) -> float:
        return time.monotonic() - self._started

    # --- the schedule -----------------------------------------------------------------------------------------------------

    def _break(self) -> None:
        """Begin and end every fault at its time, until the load's time is over."""
        waiting = sorted(self._scenario.fault, key=lambda f: f.at)
        while self._now() < self._scenario.load.seconds or waiting or self._active:
            while waiting and waiting[0].at <= self._now():
                self._begin(waiting.pop(0))
            for active in list(self._active):
                if self._now() >= active.start + lasts(active.fault):
                    self._end(active)
            self._tell()
            time.sleep(0.02)

    def _until_progress(self) -> None:
        """Go on until every chain has shown progress after the last fault, or has had its time."""
        healed = self._history.last_fault_end
        while self._now() < healed + self._scenario.expect.progress_within_s:
            self._tell()
            if all(load.has_progress_since(healed) for load in self._loads.values()):
                return
            time.sleep(0.02)

    def _begin(self, fault: Fault) -> None:
        if isinstance(fault, Partition):
            nodes = tuple(n for group in fault.groups for n in group)
        else:
            nodes = choose(self._scenario.network, fault.nodes, self._rng, self._leader)
        active = _Active(fault, nodes, self._now())
        self._active.append(active)
        self._say(f"{self._now():5.1f} s  {describe(fault, nodes)}")
        match fault:
            case Kill():
                for name in nodes:
                    self._control.kill(name)
            case Wipe():
                for name in nodes:
                    self._control.kill(name)
                    shutil.rmtree(NodeSettings.load(self._control.daemons[name].config).data)
            case Pause():
                for name in nodes:
                    self._signal(name, signal.SIGSTOP)
                self._paused.update(nodes)
            case Restart():
                active.trouble = self._restart(nodes)
            case DoubleStart():
                active.seconds = [self._start_second(name) for name in nodes]
            case _:
                self._reorder()

    def _end(self, active: _Active) -> None:
        self._active.remove(active)
        match active.fault:
            case Kill() | Wipe():
                flags = ("--rejoin",) if isinstance(active.fault, Wipe) else ()
                self._control.start(*active.nodes, flags=flags)
                self._untold |= dict.fromkeys((n for n in active.nodes if n in self._orders), "not asked yet")
            case Pause():
                for name in active.nodes:
                    self._signal(name, signal.SIGCONT)
                self._paused.difference_update(active.nodes)
            case DoubleStart():
                active.trouble = next(filter(None, map(_acceptance, active.seconds)), None)
            case Restart():
                pass
            case _:
                untold = [
                    f"{n} did not take the order ({self._untold[n]})"
                    for n in active.nodes
                    if n in self._untold
                ]
                active.trouble = "; ".join(untold) or None
                self._reorder()
        fault, end = active.fault, self._now()
        self._say(f"{end:5.1f} s  {kind_of(fault)} is over")
        self._history.injected.append(
            Injected(
                kind_of(fault), active.nodes, active.start, end, describe(fault, active.nodes), active.trouble
            )
        )

    # --- processes ----------------------------------------------------------------------------------------------------------

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._control.daemons[name].process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def _restart(self, nodes: tuple[str, ...]) -> str | None:
        """One node after the other; why it went wrong, if it did."""
        for name in nodes:
            self._signal(name, signal.SIGTERM)
            process = self._control.daemons[name].process
            try:
                if process is not None:
                    process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                return f"{name} did not stop within {STOP_S:g} s of SIGTERM"
            self._control.start(name)
            try:
                self._control.wait_ready(START_S)
            except Unavailable as error:
                return str(error)
        return None

    def _start_second(self, name: str) -> "subprocess.Popen[bytes]":
        config = self._control.daemons[name].config
        command = [*self._program, "node", "--config", str(config), "--http-port", "0"]
        return subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def _leader(self, kind: ChainKind) -> str:
        """Who leads now, as the node with the highest view says."""
        views = []
        for url in self._urls[kind].values():
            with suppress(httpx2.HTTPError, DiptychError, KeyError, ValueError):
                status = checked(self._http.get(f"{url}/v1/status")).json()
                views.append((int(status["view"]), str(status["leader"])))
        if not views:
            raise Unavailable(f"no node of the {kind} chain says who leads")
        return max(views)[1]

    # --- faults inside nodes --------------------------------------------------------------------------------------------------

    def _reorder(self) -> None:
        """Work out anew what each node is to suffer under all active faults together."""
        for kind, urls in self._urls.items():
            for name in urls:
                order = self._order_for(name, self._scenario.network.members(kind))
                if order != self._orders.get(name, NodeFaults(seed=self._scenario.seed)):
                    self._orders[name] = order
                    self._untold[name] = "not asked yet"
        self._tell()

    def _order_for(self, name: str, members: tuple[str, ...]) -> NodeFaults:
        cut: set[str] = set()
        links: dict[str, Link] = {}
        skew_ms, disk_full, equivocate = 0, False, False
        others = [m for m in members if m != name]
        for active in self._active:
            is_hit = name in active.nodes
            match active.fault:
                case Disconnect():
                    cut.update(m for m in others if is_hit or m in active.nodes)
                case Partition(groups=groups):
                    own = next((g for g in groups if name in g), None)
                    named = {n for g in groups for n in g}
                    cut.update(m for m in others if (m not in own if own else m in named))
                case BadLinks(link=link):
                    links |= {m: link for m in others if is_hit or m in active.nodes}
                case Skew(ms=ms):
                    skew_ms += ms if is_hit else 0
                case DiskFull():
                    disk_full |= is_hit
                case Equivocate():
                    equivocate |= is_hit
                case _:
                    pass
        return NodeFaults(self._scenario.seed, links, tuple(sorted(cut)), skew_ms, disk_full, equivocate)

    def _tell(self) -> None:
        """Send their orders to the nodes that have not taken them; those that are paused could only keep the schedule waiting."""
        for name in sorted(self._untold.keys() - self._paused):
            url = self._control.daemons[name].url
            body = msgspec.json.encode(self._orders[name])
            try:
                checked(
                    self._http.put(f"{url}/chaos", content=body, headers={"content-type": "application/json"})
                )
                del self._untold[name]
            except DiptychError as error:
                self._untold[name] = str(error)
            except httpx2.HTTPError:
                self._untold[name] = "it does not answer"


def _acceptance(second: "subprocess.Popen[bytes]") -> str | None:
    """None if the second process has refused to run because of the first, for which it gets time to start; ends it otherwise."""
    try:
        _, shown = second.communicate(timeout=START_S)
    except subprocess.TimeoutExpired:
        second.kill()
        second.communicate()
        return "the second process was not refused"
    if second.returncode != 1 or b"in use by another process" not in shown:
        return f"the second process ended with code {second.returncode} for another reason"
    return None
