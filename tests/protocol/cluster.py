"""A cluster of consensus cores over a simulated network in virtual time: seeded, single-threaded, nothing real but the core.

A disk keeps what `Save*` and `Finalized` effects wrote; a crash loses everything else.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from crypto.codec import encode
from crypto.sign import SigningKey
from protocol import merkle
from protocol.block import (
    Block,
    Certificate,
    Chain,
    Committee,
    Header,
    Kind,
    Message,
    Proposal,
    Vote,
    decode_message,
)
from protocol.core import (
    Core,
    Finalized,
    Halted,
    Record,
    Restored,
    SaveBlock,
    SaveCertificate,
    SaveVote,
    Send,
    ServeChain,
    Tip,
    genesis_tip,
)
from protocol.evidence import Evidence
from protocol.genesis import Genesis, Member
from protocol.mempool import Mempool
from protocol.quorum import Mode
from protocol.tx import Request, Tx

WALL0 = 1_700_000_000_000
CLIENT = SigningKey(bytes([99]) * 32)


def make_genesis(n: int = 4, mode: Mode = "bft", **changes: int) -> tuple[Genesis, list[SigningKey]]:
    keys = [SigningKey(bytes([i + 1]) * 32) for i in range(n)]
    members = tuple(Member(f"n{i}", key.public, f"peer-{i}") for i, key in enumerate(keys))
    changes.setdefault("term_length", 4)
    authority = SigningKey(bytes([77]) * 32).public
    return Genesis(
        "diptych/1/storage/test", "storage", mode, members, authority, bytes(32), WALL0, **changes
    ), keys


def request_tx(
    number: int, chain_id: str = "diptych/1/storage/test", expires_ms: int = WALL0 + 500_000
) -> bytes:
    action = Request(number.to_bytes(16, "big"), "research")
    return encode(Tx.make(chain_id, CLIENT, number.to_bytes(16, "big"), expires_ms, action))


@dataclass
class Disk:
    tip: Tip
    blocks: dict[bytes, Block] = field(default_factory=dict)
    final: list[tuple[Block, Certificate | None]] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)


@dataclass
class Link:
    drop: float = 0.0
    delay: tuple[float, float] = (0.001, 0.005)
    duplicate: float = 0.0


class Cluster:
    def __init__(
        self, n: int = 4, mode: Mode = "bft", seed: int = 0, link: Link | None = None, **changes: int
    ) -> None:
        self.genesis, self.keys = make_genesis(n, mode, **changes)
        self.committee = Committee(self.genesis)
        self.random = random.Random(seed)
        self.link = link or Link()
        self.now = 0.0
        self.disks = [Disk(genesis_tip(self.committee)) for _ in range(n)]
        self.cores: list[Core | None] = [None] * n
        self.cut: Callable[[int, int], bool] = lambda a, b: False
        self.sent: list[tuple[int, Message]] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        for i in range(n):
            self.start(i)

    def start(self, i: int) -> None:
        disk, mempool = self.disks[i], Mempool(self.genesis.chain_id)
        final = {b.header.id for b, _ in disk.final}
        restored = Restored(
            disk.tip,
            [b for key, b in disk.blocks.items() if key not in final],
            disk.certificates,
            disk.votes,
            [mempool.verify(raw) for b, _ in disk.final for raw in b.txs],
        )
        core = Core(self.committee, self.keys[i], mempool, restored, self.now, self.wall())
        self.cores[i] = core
        self.run_effects(i)
        self._arm(i, core)

    def crash(self, i: int) -> None:
        self.cores[i] = None

    def wall(self) -> int:
        return WALL0 + int(self.now * 1000)

    def block(self, view: int, *raw: bytes, parent: Header | None = None, **changes: object) -> Block:
        """A block that the leader of `view` could make, on genesis or on `parent`."""
        header = Header(
            self.genesis.chain_id,
            0,
            view,
            parent.height + 1 if parent else 1,
            parent.id if parent else self.genesis.hash,
            parent.view if parent else 0,
            merkle.root(raw),
            len(raw),
            (parent.time_ms if parent else WALL0) + 1,
            self.genesis.validators_hash,
            self.genesis.validators_hash,
            self.committee.leader(view),
        )
        return Block(msgspec.structs.replace(header, **changes), raw, ())

    def proposal(self, block: Block, parent_cert: Certificate | None = None) -> Proposal:
        header = block.header
        leader = self.committee.leader(header.view)
        vote = self.committee.sign(self.keys[leader], leader, "notarize", header.view, header.id)
        return Proposal(block, parent_cert, vote)

    def certificate(self, kind: Kind, view: int, block: bytes | None, *signers: int) -> Certificate:
        """Of the members given, or of the last ones that make a quorum."""
        n, quorum = len(self.keys), self.genesis.quorum
        chosen = signers or range(n - quorum, n)
        votes = [self.committee.sign(self.keys[s], s, kind, view, block) for s in chosen]
        return self.committee.certify(votes)

    def submit(self, raw: bytes, to: int | None = None) -> None:
        for i, core in enumerate(self.cores):
            if core and to in (None, i):
                core.mempool.add(raw, self.wall())
                core.submit(self.now, self.wall())
                self.run_effects(i)

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, action))

    def run_until(self, done: Callable[[], bool], limit: float = 60.0) -> float:
        """Run until `done()`; returns the virtual seconds it took, fails after `limit`."""
        start = self.now
        while not done():
            assert self._queue, "nothing left to happen"
            time, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, time)
            assert self.now - start < limit, f"not within {limit} virtual seconds"
            action()
        return self.now - start

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        self.at(end, lambda: None)
        self.run_until(lambda: self.now >= end, seconds + 1)

    def heights(self) -> list[int]:
        return [core.tip.height if core else -1 for core in self.cores]

    def logs(self) -> list[list[bytes]]:
        return [[b.header.id for b, _ in disk.final] for disk in self.disks]

    def final_txs(self, i: int) -> list[bytes]:
        return [raw for block, _ in self.disks[i].final for raw in block.txs]

    def check_prefixes(self) -> None:
        """I4: finalized logs are prefixes of each other."""
        logs = sorted(self.logs(), key=len)
        for short, long in itertools.pairwise(logs):
            assert long[: len(short)] == short, "fork"

    def run_effects(self, i: int) -> None:
        core, disk = self.cores[i], self.disks[i]
        assert core is not None
        effects = core.take_effects()
        for effect in effects:
            match effect:
                case SaveVote(vote):
                    disk.votes.append(vote)
                case SaveBlock(block):
                    disk.blocks[block.header.id] = block
                case SaveCertificate(certificate):
                    disk.certificates.append(certificate)
                case Finalized(blocks, certificate):
                    for block, _ in blocks:
                        own = certificate if certificate.block == block.header.id else None
                        disk.final.append((block, own))
                    disk.tip = core.tip
                case Record(evidence):
                    disk.evidence.append(evidence)
                case Halted(reason):
                    raise AssertionError(reason)
        for effect in effects:
            match effect:
                case Send(to, message):
                    for peer in [to] if to is not None else [p for p in range(len(self.cores)) if p != i]:
                        self.deliver(i, peer, message)
                case ServeChain(to, height):
                    self.deliver(i, to, self.page(i, height))

    def page(self, i: int, height: int, size: int = 8) -> Chain:
        final = self.disks[i].final[height - 1 :]
        blocks, rest = final[:size], final[size:]
        while len(blocks) > 1 and blocks[-1][1] is None:
            rest.insert(0, blocks.pop())
        links, certificate = [], blocks[-1][1]
        while certificate is None:
            block, certificate = rest.pop(0)
            links.append(block.header)
        return Chain(tuple(b for b, _ in blocks), tuple(links), certificate)

    def deliver(self, src: int, dst: int, message: Message) -> None:
        self.sent.append((src, message))
        data = encode(message)
        copies = 1 + (self.random.random() < self.link.duplicate)
        for _ in range(copies):
            if self.cut(src, dst) or self.random.random() < self.link.drop:
                continue
            self.at(self.now + self.random.uniform(*self.link.delay), lambda: self._receive(src, dst, data))

    def _receive(self, src: int, dst: int, data: bytes) -> None:
        core = self.cores[dst]
        if core and not self.cut(src, dst):
            core.receive(src, decode_message(data), self.now, self.wall())
            self.run_effects(dst)
            self._arm(dst, core)

    def inject(self, dst: int, src: int, message: Message) -> None:
        """Hand a message that member `src` may have made up to `dst` at once, whatever the network does."""
        core = self.cores[dst]
        assert core is not None
        core.receive(src, decode_message(encode(message)), self.now, self.wall())
        self.run_effects(dst)
        self._arm(dst, core)

    def _arm(self, i: int, core: Core) -> None:
        def tick() -> None:
            if self.cores[i] is core and self.now + 1e-9 >= core.next_deadline():
                core.tick(self.now, self.wall())
                self.run_effects(i)
                self._arm(i, core)

        self.at(core.next_deadline(), tick)
