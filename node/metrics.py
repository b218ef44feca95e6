"""What a node tells operators about itself: Prometheus metrics, and what it has seen of each member lately (`/v1/status`).

Everything is an aggregate or a member's name: no key, no transaction, nothing of patients. What a member says about itself (its view,
its height, its votes) is shown as said and proves nothing; a liar can make its own row wrong and no other.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from protocol.block import Message, Proposal, Status, Votes
from protocol.core import Effect, Finalized, SaveBlock, SaveVote, Send

if TYPE_CHECKING:
    from node.daemon import Node

MAX_UNFINISHED = 1024
_COUNTERS = {
    "messages_received": ("Consensus messages that decode", "type"),
    "messages_sent": ("Consensus messages, a broadcast once", "type"),
    "votes_received": ("Votes of other members as they come, before any check", "kind"),
    "votes_sent": ("Own votes signed", "kind"),
    "blocks": ("Blocks that became final since the start", None),
    "transactions": ("Transactions that became final since the start", None),
}
_COMMIT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_WRITE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


@runtime_checkable
class Counting(Protocol):
    """A transport that counts: both real back ends do."""

    def stats(self) -> dict[str, int]: ...


@dataclass(slots=True)
class Sight:
    """What one member has last said of itself, `heard` on the monotonic clock; `votes`: the view of its last vote by kind."""

    heard: float | None = None
    height: int | None = None
    view: int | None = None
    votes: dict[str, int] = field(default_factory=dict)


class Metrics:
    """The counters of one node; call each method in the node's loop."""

    def __init__(self, node: "Node") -> None:
        self.registry = CollectorRegistry()
        self._node = node
        self._sights: dict[str, Sight] = {}
        self.last_final = time.monotonic()
        """When this process last saw a block become final, at first its start."""
        self._saved: OrderedDict[bytes, float] = OrderedDict()
        self.counts: dict[str, Counter[str]] = {
            name: Counter() if label else Counter({"": 0}) for name, (_, label) in _COUNTERS.items()
        }
        """By the label of each of `_COUNTERS`. Counting in the library's own objects costs as much as decoding the message."""
        self._commit = self._histogram(
            "commit_seconds", "From a block's arrival here until it is final here", _COMMIT_BUCKETS
        )
        self._write = self._histogram(
            "journal_write_seconds", "One transaction of the journal", _WRITE_BUCKETS
        )
        self.registry.register(_State(node))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"diptych_{name}", text, buckets=buckets, registry=self.registry)

    def received(self, src: str, message: Message) -> None:
        self.counts["messages_received"][type(message).__name__] += 1
        sight = self.sight(src)
        sight.heard = time.monotonic()
        votes = message.votes if isinstance(message, Votes | Status) else ()
        if isinstance(message, Proposal):
            votes = (message.vote,)
        if isinstance(message, Status):
            sight.height, sight.view = message.height, message.view
        for vote in votes:
            self.counts["votes_received"][vote.kind] += 1
            members = self._node.core.committee.members
            if vote.signer < len(members) and members[vote.signer].name == src:
                sight.votes[vote.kind] = vote.view

    def sight(self, member: str) -> Sight:
        """What a peer has last said; nothing yet of one that has been silent."""
        return self._sights.setdefault(member, Sight())

    def wrote(self, seconds: float) -> None:
        self._write.observe(seconds)

    def carried_out(self, effects: Iterable[Effect]) -> None:
        """The effects of one step, durable by now."""
        now, effects = time.monotonic(), list(effects)
        final: set[bytes] = set()
        for effect in effects:
            match effect:
                case Finalized(blocks, _):
                    self.last_final = now
                    for block, entries in blocks:
                        block_id = block.header.id
                        final.add(block_id)
                        self.counts["blocks"][""] += 1
                        self.counts["transactions"][""] += len(entries)
                        saved = self._saved.pop(block_id, None)
                        if saved is not None:
                            self._commit.observe(now - saved)
                case SaveVote(vote):
                    self.counts["votes_sent"][vote.kind] += 1
                case Send(_, message):
                    self.counts["messages_sent"][type(message).__name__] += 1
        for effect in effects:
            if isinstance(effect, SaveBlock) and (block_id := effect.block.header.id) not in final:
                self._saved.setdefault(block_id, now)
        while len(self._saved) > MAX_UNFINISHED:  # lost branches never become final
            self._saved.popitem(last=False)


class _State(Collector):
    """The node's state at the moment of the question."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        node, core = self._node, self._node.core
        gauges = {
            "height": (node.tip.height, "Height of the last final block"),
            "epoch": (core.committee.epoch, "How often the members have changed"),
            "view": (core.view, "The current view"),
            "executed_height": (node.executed_height, "Height up to which the contract has executed"),
            "mempool_transactions": (len(node.mempool), "Transactions that wait"),
            "halted": (core.halted is not None, "1 if the chain is halted here for ever"),
            "alarm": (node.alarm is not None, "1 while this node cannot write its disk"),
            "index_share": (
                node.holder.status["holds_share"],
                "1 while this node holds a share of the index key",
            ),
            "seconds_since_final": (
                time.monotonic() - node.metrics.last_final,
                "Since a block became final here",
            ),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(f"diptych_{name}", text, float(value))
        for name, (text, label) in _COUNTERS.items():
            counter = CounterMetricFamily(f"diptych_{name}", text, labels=(label,) if label else ())
            for value, count in node.metrics.counts[name].items():
                counter.add_metric((value,) if label else (), count)
            yield counter
        yield CounterMetricFamily(
            "diptych_evidence", "Pairs of contradicting votes on record", len(node.evidence)
        )
        linked = node.net.peers()
        peers = GaugeMetricFamily(
            "diptych_peer_linked", "1 while there is a link to the member", labels=("peer",)
        )
        for member in core.committee.members:
            if member.name != node.name:
                peers.add_metric((member.name,), float(member.name in linked))
        yield peers
        refused = CounterMetricFamily("diptych_messages_refused", "By member, or why", labels=("peer",))
        for name, count in list(node.refused.items()):
            refused.add_metric((name,), count)
        yield refused
        net = CounterMetricFamily("diptych_net", "Counters of the transport", labels=("what",))
        for what, count in (node.net.stats() if isinstance(node.net, Counting) else {}).items():
            net.add_metric((what,), count)
        yield net
