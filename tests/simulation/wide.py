"""A cluster on a wide-area network: the core of `tests.simulation.cluster`, unchanged, on hosts with a processor and an uplink each.

What a host does takes virtual time (`Costs`), and a host works at one thing at a time, in steps as the daemon does (`node.daemon`): all
that has come goes into one step, the journal is written, then the sends leave over the uplink, votes before blocks and blocks before gossip. Links keep no order and lose nothing; there are no TCP windows.
Signatures are verified once in the process and charged to every host that verifies them, so that results are those of real ones.

For high loads a transaction may stand for `weight` of its kind, in bytes, in processor time and in the count of a block.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import crypto.sign
import protocol.block
from crypto.codec import encode
from crypto.errors import DiptychError
from node.daemon import GOSSIP_DELAY, REGOSSIP_COUNT, REGOSSIP_PERIOD
from node.net import MAX_BODY, Chan
from protocol.block import Body, Chain, Message, Proposal, decode_message
from protocol.core import Core, Effect, EpochEnded, Finalized, Halted, SaveBlock, SaveVote, Send, ServeChain
from protocol.quorum import quorum
from tests.simulation.cluster import Cluster
from tests.simulation.simulation import cheap_signatures

JITTER = 0.05
"""A frame is late by up to this part of its latency, evenly spread."""


@dataclass(frozen=True)
class Costs:
    """Seconds of one processor: for each signature, consensus message, frame on a link (at either end) and byte in it, step that writes
    the journal, and transaction in each station of its way through a node."""

    verify: float
    sign: float
    message: float
    """What the core does with a message but for signatures; and with each member of the committee."""
    message_member: float
    block: float
    """What the core does once a block, whatever is in it."""
    frame: float
    byte: float
    commit: float
    """A step without a vote: written, and left to the system to bring to the disk."""
    vote_commit: float
    """A step with a vote, on the disk before it is sent."""
    tx_admit: float
    """Taken from a client or a member, without its signature."""
    tx_again: float
    """The same when it is known already."""
    tx_propose: float
    tx_follow: float
    """In the proposal of another, when it has been admitted before."""
    tx_journal: float
    tx_execute: float

    def times(self, factor: float) -> "Costs":
        """All but the wait for the disk grown by a factor."""
        grown = {field.name: factor * getattr(self, field.name) for field in fields(self)}
        return Costs(**{**grown, "vote_commit": self.vote_commit})


@dataclass(frozen=True)
class Network:
    """`latency` from host to host one way, seconds; `uplink` of each host, bits a second; `cores` that all hosts share, or None if each
    has a processor of its own."""

    latency: Sequence[Sequence[float]]
    uplink: float
    cores: int | None = None

    @cached_property
    def _fastest(self) -> list[list[float]]:
        """Latencies by the fastest way: what one host knows may reach another over a third."""
        found = [list(row) for row in self.latency]
        for by, onwards in enumerate(found):
            for row in found:
                there = row[by]
                row[:] = [min(direct, there + onward) for direct, onward in zip(row, onwards, strict=True)]
        return found

    def least_finality(self, leader: int, origin: int) -> float:
        """Seconds before which a transaction handed to `origin` cannot be known there to be final while `leader` leads, whatever the
        processors: it reaches the leader, a quorum notarizes, a quorum finalizes."""
        hosts = range(len(self.latency))
        enough = quorum(len(self.latency), "bft") - 1
        fastest = self._fastest
        sent = fastest[origin][leader]
        voted = [sent + fastest[leader][h] for h in hosts]

        def quorum_at(host: int, times: Sequence[float]) -> float:
            return sorted(times[h] + fastest[h][host] for h in hosts)[enough]

        notarized = [quorum_at(host, voted) for host in hosts]
        return quorum_at(origin, notarized)


@contextmanager
def metered_signatures() -> Iterator[Counter[str]]:
    """As `cheap_signatures`, counting the checks asked for: those of a "tx" and of what is "said" by members."""
    meter: Counter[str] = Counter()
    with cheap_signatures():
        cached = crypto.sign.is_valid

        def counted(public: bytes, domain: str, payload: bytes, signature: bytes) -> bool:
            meter["tx" if domain == "tx" else "said"] += 1
            return cached(public, domain, payload, signature)

        crypto.sign.is_valid = protocol.block.is_valid = counted
        yield meter


@dataclass(frozen=True)
class _Frame:
    src: int
    message: Message
    size: int


@dataclass(frozen=True)
class _Txs:
    """From a client (`src` None) or a member."""

    src: int | None
    raws: tuple[bytes, ...]


class WideArea(Cluster):
    """Run it inside `metered_signatures`, whose counter is `meter`. `on_executed` is told of each block that a host has executed, at
    the moment it has."""

    def __init__(
        self, network: Network, costs: Costs, meter: Counter[str], *, weight: int = 1, **others: Any
    ) -> None:
        n = len(network.latency)
        self.network, self.costs, self.meter, self.weight = network, costs, meter, weight
        self.on_executed: Callable[[int, tuple[bytes, ...]], None] = lambda host, txs: None
        self.work: list[Counter[str]] = [Counter() for _ in range(n)]
        """Seconds that each processor has worked, by kind of work."""
        self.uplink_busy = [0.0] * n
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._inbox: list[deque[_Frame | _Txs | None]] = [deque() for _ in range(n)]
        self._is_awake = [False] * n
        self._free = [0.0] * n
        self._uplink_free = [[0.0] * len(Chan) for _ in range(n)]
        """When the uplink of a host has sent what it has of a channel and of more urgent ones."""
        self._cores = [0.0] * (network.cores or 0)
        self._spent = self._began = 0.0
        self._is_written = self._has_vote = False
        self._executed: list[tuple[bytes, ...]] = []
        self._outbox: list[list[bytes]] = [[] for _ in range(n)]
        self._may_gossip, self._asleep = [0.0] * n, [True] * n
        self._encoded: tuple[Message | None, Message | None, int] = (None, None, 0)
        self._everybody = list(range(n))
        super().__init__(n, **others)
        for host in self._everybody:
            self.at(self.random.uniform(0, REGOSSIP_PERIOD), lambda host=host: self._regossip(host, set()))

    def send_in(self, host: int, raws: Sequence[bytes]) -> None:
        """A client near `host` hands it transactions."""
        self._put(host, _Txs(None, tuple(raws)))

    def time_to_final(self, host: int, raw: bytes) -> float:
        """Hand a transaction to `host` and run until it has executed it: the seconds that took."""
        began, done = self.now, []

        def see(where: int, txs: tuple[bytes, ...]) -> None:
            if where == host and raw in txs:
                done.append(self.now)

        self.on_executed = see
        self.send_in(host, [raw])
        self.run_until(lambda: bool(done))
        return done[0] - began

    # --- steps of a host ---------------------------------------------------------------------------------------------------

    def _put(self, host: int, item: _Frame | _Txs | None) -> None:
        self._inbox[host].append(item)
        self._wake(host)

    def _wake(self, host: int) -> None:
        if not self._is_awake[host]:
            self._is_awake[host] = True
            self.at(self._when_free(host), lambda: self._step(host))

    def _when_free(self, host: int) -> float:
        return max(self.now, self._free[host], min(self._cores, default=0.0))

    def _step(self, host: int) -> None:
        if self._when_free(host) > self.now:  # the others have taken the processors
            return self.at(self._when_free(host), lambda: self._step(host))
        self._is_awake[host] = False
        core, inbox = self.cores[host], self._inbox[host]
        if core is None:
            inbox.clear()
            return
        self._begin()
        is_new = False
        while inbox:
            match inbox.popleft():
                case None:
                    self._spread(host)
                case _Txs(src, raws):
                    is_new |= self._admit(host, core, src, raws)
                case _Frame(src, message, size):
                    self._take(host, core, src, message, size)
        if is_new:
            core.submit(self.now, self.wall(host))
        self._end(host, core)

    def _after(self, host: int, core: Core) -> None:
        """The core was started or its clock has rung."""
        self._begin()
        self._end(host, core)

    def _begin(self) -> None:
        self._spent, self._is_written, self._has_vote, self._executed = 0.0, False, False, []

    def _end(self, host: int, core: Core) -> None:
        """Write, send and execute what the step has brought, and be busy for as long as all that takes."""
        self._began = self._when_free(host)
        self.run_effects(host)
        executed, self._executed = self._executed, []
        for txs in executed:
            self._pay(
                host, "transactions", len(txs) * self.weight * self.costs.tx_execute + self.costs.commit
            )
        end = self._began + self._spent
        self._free[host] = end
        if self._cores:
            heapq.heapreplace(self._cores, end)
        for txs in executed:
            self.at(end, lambda txs=txs: self.on_executed(host, txs))
        if self.cores[host] is core:
            self._arm(host, core)

    def _pay(self, host: int, kind: str, seconds: float) -> None:
        self.work[host][kind] += seconds
        self._spent += seconds

    # --- what comes in -----------------------------------------------------------------------------------------------------

    def _receive(self, src: int, dst: int, message: Message, mark: bytes) -> None:
        raise NotImplementedError("frames come by `_put`")

    def _take(self, host: int, core: Core, src: int, message: Message, size: int) -> None:
        costs, said, txs = self.costs, self.meter["said"], self.meter["tx"]
        self._digest.update(b"%d %d %.9f" % (src, host, self.now))
        self._pay(host, "links", costs.frame + size * costs.byte)
        self._pay(host, "votes", costs.message + len(self.work) * costs.message_member)
        core.receive(src, message, self.now, self.wall(host))
        self._pay(host, "votes", (self.meter["said"] - said) * costs.verify)
        self._pay(host, "transactions", (self.meter["tx"] - txs) * self.weight * costs.verify)
        if isinstance(message, Proposal):
            self._pay(host, "transactions", len(message.block.txs) * self.weight * costs.tx_follow)

    def _admit(self, host: int, core: Core, src: int | None, raws: tuple[bytes, ...]) -> bool:
        costs, is_new = self.costs, False
        self._pay(host, "links", costs.frame + sum(map(len, raws)) * self.weight * costs.byte)
        for raw in raws:
            before, had = self.meter["tx"], len(core.mempool)
            with suppress(DiptychError):  # final meanwhile
                core.mempool.add(raw, self.wall(host))
            checks = self.meter["tx"] - before
            each = checks * costs.verify + (costs.tx_admit if checks else costs.tx_again)
            self._pay(host, "transactions", self.weight * each)
            if len(core.mempool) > had:
                is_new = True
                if src is None:
                    self._outbox[host].append(raw)
        if self._outbox[host] and self._asleep[host]:
            self._asleep[host] = False
            self.at(max(self.now, self._may_gossip[host]), lambda: self._put(host, None))
        return is_new

    # --- what goes out -----------------------------------------------------------------------------------------------------

    def roster(self, core: Core) -> list[int]:
        return self._everybody

    def _tell(self, host: int, effect: Effect) -> None:
        costs = self.costs
        if not self._is_written and not isinstance(effect, Send | ServeChain):
            self._is_written = True
            self._pay(host, "journal", costs.commit)
        match effect:
            case SaveVote():
                self._pay(host, "votes", costs.sign)
                if not self._has_vote:
                    self._has_vote = True
                    self._pay(host, "journal", costs.vote_commit - costs.commit)
            case SaveBlock(block):
                self._pay(host, "transactions", len(block.txs) * self.weight * costs.tx_journal)
                if block.header.proposer == host:
                    self._pay(host, "transactions", len(block.txs) * self.weight * costs.tx_propose)
            case Finalized(blocks, _):
                for block, _ in blocks:
                    self._pay(host, "votes", costs.block)
                    self._executed.append(block.txs)
            case Halted() | EpochEnded():
                super()._tell(host, effect)

    def deliver(self, src: int, member: int, message: Message | bytes) -> None:
        assert not isinstance(message, bytes)
        if self._encoded[0] is not message:
            data = encode(message)
            self._encoded = (
                message,
                decode_message(data),
                len(data) + (self.weight - 1) * _tx_bytes(message),
            )
            core = self.cores[src]
            assert core is not None
            self.oracle.sends(src, core, message)
        _, decoded, size = self._encoded
        assert decoded is not None
        self._post(src, member, type(message).__name__, size, _Frame(src, decoded, size))

    def _post(self, src: int, dst: int, kind: str, size: int, item: _Frame | _Txs) -> None:
        """Put a frame on the wire: when the processor has come to it, and the uplink through what is as urgent."""
        self._pay(src, "links", self.costs.frame + size * self.costs.byte)
        seconds = size * 8 / self.network.uplink
        self.uplink_busy[src] += seconds
        free, chan = self._uplink_free[src], _channel(kind, size)
        began = max(self._began + self._spent, free[chan])
        for other in range(chan, len(free)):
            free[other] = max(free[other], began) + seconds
        self.messages[kind] += 1
        self.bytes[kind] += size
        if not self.cut(src, dst):
            latency = self.network.latency[src][dst] * (1 + JITTER * self.random.random())
            self.at(began + seconds + latency, lambda: self._put(dst, item))

    def _spread(self, host: int) -> None:
        raws, self._outbox[host] = tuple(self._outbox[host]), []
        self._asleep[host] = True
        self._may_gossip[host] = self.now + GOSSIP_DELAY
        self._gossip(host, raws)

    def _gossip(self, host: int, raws: tuple[bytes, ...]) -> None:
        self._began = self.now
        size = sum(map(len, raws)) * self.weight
        for other in self._everybody:
            if raws and other != host:
                self._post(host, other, "transactions", size, _Txs(host, raws))

    def _regossip(self, host: int, known: set[bytes]) -> None:
        """Say again what has waited long, as the daemon does."""
        core = self.cores[host]
        oldest = core.mempool.oldest(max(1, REGOSSIP_COUNT // self.weight)) if core else []
        self._begin()
        self._gossip(host, tuple(e.raw for e in oldest if e.id in known))
        self._free[host] = max(self._free[host], self.now + self._spent)
        ids = {e.id for e in oldest}
        self.at(self.now + REGOSSIP_PERIOD, lambda: self._regossip(host, ids))


def _channel(kind: str, size: int) -> Chan:
    """As the daemon chooses it."""
    if kind == "transactions":
        return Chan.TX
    if kind == Proposal.__name__:
        return Chan.PROPOSAL
    is_small = kind not in (Body.__name__, Chain.__name__) and size <= MAX_BODY[Chan.VOTE]
    return Chan.VOTE if is_small else Chan.SYNC


def _tx_bytes(message: Message) -> int:
    match message:
        case Proposal(block) | Body(block):
            return sum(map(len, block.txs))
        case Chain(blocks):
            return sum(len(raw) for block in blocks for raw in block.txs)
    return 0
