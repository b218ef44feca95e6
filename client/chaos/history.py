"""What the clients of a run saw, and the judgement over it.

The checker trusts no node's word about itself: it compares what different nodes told clients at different times, and what clients
were promised with what every node shows at the end. Times are seconds since the load began. A history is plain data and can be made by hand.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

MAX_SHOWN = 20
"""Violations of one property that a verdict lists."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client began to send a transaction."""

    at: float
    chain: str
    tx: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A node gave a client the receipt of a transaction."""

    at: float
    chain: str
    tx: str
    node: str
    height: int
    position: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A node's answer to a question about its status. Answers of one node stand in the order of their questions."""

    at: float
    chain: str
    node: str
    height: int
    block: str
    executed_height: int
    receipts_root: str
    alarm: str | None = None
    halted: str | None = None
    evidence: int = 0
    """How many pairs of contradicting votes the node has recorded."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    at: float
    chain: str
    node: str


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that was carried out; `what` describes it. `trouble` says why it was not, or what it brought to light."""

    kind: str
    nodes: tuple[str, ...]
    start: float
    end: float
    what: str
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """One block as a node served it after the run."""

    height: int
    id: str
    parent: str
    txs: tuple[str, ...]


@dataclass(slots=True)
class History:
    """`finals`: for each node of each chain, all blocks it served at the end, from height 1; None: it did not answer."""

    submitted: list[Submitted] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    no_answer: list[NoAnswer] = field(default_factory=list)
    injected: list[Injected] = field(default_factory=list)
    finals: dict[str, dict[str, list[FinalBlock] | None]] = field(default_factory=dict)

    @property
    def last_fault_end(self) -> float:
        return max((f.end for f in self.injected), default=0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a property held. `violations` are sentences, at most `MAX_SHOWN` of `count`."""

    name: str
    count: int
    violations: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.count == 0


def judge(history: History, progress_within_s: float) -> list[Verdict]:
    """One verdict per property that applies to this run."""
    checks = {
        "no fork": _forks(history),
        "nothing acknowledged is lost": _lost(history),
        "each transaction is final at most once": _repeated(history),
        "no tip falls": _falls(history),
        f"progress within {progress_within_s:g} s after the last fault": _progress(
            history, progress_within_s
        ),
        "every node catches up": _laggards(history),
        "no chain halts": _halts(history),
        "faults were carried out": (f"{f.what}: {f.trouble}" for f in history.injected if f.trouble),
    }
    if _of_kind(history, "equivocate"):
        checks["honest nodes record the contradiction"] = _unseen_liars(history)
    else:
        checks["no honest node is accused"] = _accused(history)
    if _of_kind(history, "disk-full"):
        checks["a full disk stops voting, not reading, and heals by itself"] = _full_disks(history)
    verdicts = []
    for name, found in checks.items():
        violations = list(dict.fromkeys(found))
        verdicts.append(Verdict(name, len(violations), tuple(violations[:MAX_SHOWN])))
    return verdicts


def _of_kind(history: History, kind: str) -> list[Injected]:
    return [f for f in history.injected if f.kind == kind]


def _finals(history: History) -> Iterator[tuple[str, str, list[FinalBlock]]]:
    for chain, nodes in history.finals.items():
        for node, blocks in nodes.items():
            if blocks is not None:
                yield chain, node, blocks


def _forks(history: History) -> Iterator[str]:
    """At one height there is one block, at one executed height one history of receipts, and every block names its parent."""
    blocks: dict[tuple[str, int], tuple[str, str]] = {}
    roots: dict[tuple[str, int], tuple[str, str]] = {}
    places: dict[tuple[str, int, int], str] = {}
    claims = [(s.chain, s.node, s.height, s.block) for s in history.seen]
    claims += [(chain, node, b.height, b.id) for chain, node, final in _finals(history) for b in final]
    for chain, node, height, block in claims:
        other, first = blocks.setdefault((chain, height), (node, block))
        if first != block:
            yield f"{chain} height {height}: {other} shows block {first[:16]}, {node} shows {block[:16]}"
    for s in history.seen:
        other, root = roots.setdefault((s.chain, s.executed_height), (s.node, s.receipts_root))
        if root != s.receipts_root:
            yield f"{s.chain} height {s.executed_height}: {other} and {s.node} executed different histories"
    for ack in history.acknowledged:
        tx = places.setdefault((ack.chain, ack.height, ack.position), ack.tx)
        if tx != ack.tx:
            yield f"{ack.chain} {ack.height}.{ack.position}: receipts of {tx[:16]} and of {ack.tx[:16]}"
    for chain, node, final in _finals(history):
        if [b.height for b in final] != list(range(1, len(final) + 1)):
            yield f"{node} of {chain} serves blocks with gaps in their heights"
        for parent, block_ in pairwise(final):
            if block_.parent != parent.id:
                yield f"{node}: the {chain} block at height {block_.height} does not follow the one before"


def _lost(history: History) -> Iterator[str]:
    """Every node that answers at the end shows each acknowledged transaction at the height and position of its receipt."""
    for chain, node, final in _finals(history):
        for ack in history.acknowledged:
            if ack.chain != chain:
                continue
            block = final[ack.height - 1] if 0 < ack.height <= len(final) else None
            if block is None or not 0 <= ack.position < len(block.txs) or block.txs[ack.position] != ack.tx:
                yield f"{ack.tx[:16]}, acknowledged by {ack.node} at {chain} {ack.height}.{ack.position}, is not there at {node}"


def _repeated(history: History) -> Iterator[str]:
    """No transaction stands twice in a history, and all its receipts name one place."""
    for chain, node, final in _finals(history):
        for tx, times in Counter(tx for block in final for tx in block.txs).items():
            if times > 1:
                yield f"{tx[:16]} is final {times} times on the {chain} chain of {node}"
    places: dict[tuple[str, str], tuple[int, int]] = {}
    for ack in history.acknowledged:
        place = places.setdefault((ack.chain, ack.tx), (ack.height, ack.position))
        if place != (ack.height, ack.position):
            yield f"{ack.tx[:16]} has receipts at {place[0]}.{place[1]} and at {ack.height}.{ack.position}"


def _falls(history: History) -> Iterator[str]:
    """No client sees a node's tip lower than it was, whatever happened to the node in between, short of the loss of its disk."""
    last: dict[str, Seen] = {}
    for s in history.seen:
        before = last.get(s.node, s)
        wiped = (f for f in _of_kind(history, "wipe") if s.node in f.nodes)
        if s.height < before.height and not any(before.at <= f.end and s.at >= f.start for f in wiped):
            yield f"{s.node} fell from height {before.height} to {s.height} at {s.at:.1f} s"
        last[s.node] = s


def _progress(history: History, within: float) -> Iterator[str]:
    """A transaction submitted after the last fault is acknowledged in time, on every chain."""
    healed = history.last_fault_end
    sent = {(s.chain, s.tx): s.at for s in history.submitted}
    for chain in history.finals:
        times = [
            a.at - healed
            for a in history.acknowledged
            if a.chain == chain and sent.get((chain, a.tx), -1.0) >= healed
        ]
        if not times:
            yield f"the {chain} chain acknowledged nothing that was submitted after {healed:.1f} s"
        elif min(times) > within:
            yield f"the {chain} chain needed {min(times):.1f} s after the last fault"


def _laggards(history: History) -> Iterator[str]:
    highest: dict[str, int] = defaultdict(int)
    for ack in history.acknowledged:
        highest[ack.chain] = max(highest[ack.chain], ack.height)
    for chain, nodes in history.finals.items():
        for node, final in nodes.items():
            if final is None:
                yield f"{node} did not serve its blocks at the end"
            elif len(final) < highest[chain]:
                yield f"{node} is at height {len(final)} at the end, receipts reach height {highest[chain]}"


def _halts(history: History) -> Iterable[str]:
    return (f"{s.node}: {s.halted}" for s in history.seen if s.halted)


def _accused(history: History) -> Iterable[str]:
    return (
        f"{s.node} holds evidence of contradicting votes, though nobody was made to lie"
        for s in history.seen
        if s.evidence
    )


def _unseen_liars(history: History) -> Iterator[str]:
    """After a member contradicted itself, every other node of its chain holds evidence."""
    liars = {node for fault in _of_kind(history, "equivocate") for node in fault.nodes}
    accusers = {s.node for s in history.seen if s.evidence}
    for nodes in history.finals.values():
        for node in nodes if liars & nodes.keys() else ():
            if node not in liars | accusers:
                yield f"{node} has no evidence against {', '.join(sorted(liars & nodes.keys()))}"


def _full_disks(history: History) -> Iterator[str]:
    """While its alarm is on, a node with a full disk answers, unless another fault has hit it too, and its tip stands still;
    later the alarm goes and the tip rises."""
    for fault in _of_kind(history, "disk-full"):
        for node in fault.nodes:
            starts = [f.start for f in _of_kind(history, "disk-full") if node in f.nodes]
            until = min((start for start in starts if start > fault.start), default=math.inf)
            told = [s for s in history.seen if s.node == node and fault.start <= s.at < until]
            alarmed = [s for s in told if s.alarm]
            after = [s for s in told if s.at > fault.end]
            if not alarmed:
                yield f"{node} raised no alarm"
                continue
            if len({s.height for s in alarmed}) > 1:
                yield f"{node} went on finalizing with a full disk"
            silent = [n.at for n in history.no_answer if n.node == node and fault.start <= n.at <= fault.end]
            others = [f.start for f in history.injected if f is not fault and node in f.nodes]
            if any(all(at < other for other in others) for at in silent):
                yield f"{node} did not answer while its disk was full"
            if not after or after[-1].alarm or after[-1].height <= alarmed[-1].height:
                yield f"{node} did not resume after its disk had room again"
