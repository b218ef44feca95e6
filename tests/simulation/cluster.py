"""A cluster of consensus cores over a simulated network in virtual time: seeded, single-threaded, nothing real but the core.

A host is one running instance: the first n are the members of genesis, then come spares, which no epoch knows yet, and twins (a second
instance with the key of a member). What is called member here is a place in `keys`, the same in all epochs; a core numbers the
members of its epoch, and `roster` translates.
A step's durable effects are one transaction on the host's disk, a model of `node.store.Store`; a crash may strike before it,
after it, or between two sends, and loses all but the disk; a power cut loses the last steps of recoverable effects too. Given an oracle, every step is checked; the story collects what a
person would tell of a run, and the digest everything.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import msgspec

from crypto.codec import encode
from crypto.errors import DiptychError
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
    validators_hash,
)
from protocol.core import (
    RECOVERABLE,
    Core,
    Effect,
    EpochEnded,
    Finalized,
    Halted,
    Record,
    Restored,
    SaveAbstention,
    SaveBlock,
    SaveCertificate,
    SaveVote,
    Send,
    ServeChain,
    Tip,
    anchor_tip,
)
from protocol.epochs import Handover, follow
from protocol.evidence import Evidence
from protocol.genesis import Genesis, Member
from protocol.mempool import Mempool, Pending
from protocol.quorum import Mode
from protocol.tx import MAX_LIFETIME_MS, ChangeMembers, Request, Tx, decode_tx
from tests.dealer import share_point

WALL0 = 1_700_000_000_000
CLIENT = SigningKey(bytes([99]) * 32)
ADMINS = tuple(SigningKey(bytes([200 + i]) * 32) for i in range(3))


def member(i: int, key: SigningKey) -> Member:
    return Member(f"n{i}", key.public, f"peer-{i}", share_point(i))


def make_genesis(n: int = 4, mode: Mode = "bft", **changes: int) -> tuple[Genesis, list[SigningKey]]:
    keys = [SigningKey(bytes([i + 1]) * 32) for i in range(n)]
    members = tuple(member(i, key) for i, key in enumerate(keys))
    changes.setdefault("term_length", 4)
    authority, admins = SigningKey(bytes([77]) * 32).public, tuple(a.public for a in ADMINS)
    chain = "diptych/1/storage/test"
    return Genesis(chain, "storage", mode, members, authority, WALL0, admins, 2, **changes), keys


def change_tx(
    genesis: Genesis,
    epoch: int,
    members: tuple[Member, ...],
    admins: tuple[SigningKey, ...] = ADMINS[:2],
    expires_ms: int = WALL0 + 500_000,
) -> bytes:
    """The admins' agreement on the members after an epoch."""
    change = ChangeMembers(epoch, members, ())
    for admin in admins:
        change = change.approve(genesis, admin)
    nonce = merkle.root([encode(change)])[:16]
    return encode(Tx.make(genesis.chain_id, ADMINS[0], nonce, expires_ms, change))


def request_tx(
    number: int, chain_id: str = "diptych/1/storage/test", expires_ms: int = WALL0 + 500_000
) -> bytes:
    action = Request(number.to_bytes(16, "big"), "research")
    return encode(Tx.make(chain_id, CLIENT, number.to_bytes(16, "big"), expires_ms, action))


class Disk:
    """What `node.store.Store` keeps, in memory; a test holds the two side by side."""

    def __init__(self, committee: Committee) -> None:
        self.committee = committee
        self.handovers: list[Handover] = []
        self.blocks: dict[bytes, Block] = {}
        self.final: list[tuple[Block, Certificate | None]] = []
        self.certificates: dict[tuple[int, str], Certificate] = {}
        self.votes: dict[tuple[int, str], Vote] = {}
        self.evidence: list[Evidence] = []
        self.abstain_until: int | None = 0
        self.halted: str | None = None
        self._before_cut: dict[str, Any] | None = None
        """What a power cut now would leave: all before the last steps of recoverable effects."""

    def cut_power(self) -> None:
        if self._before_cut is not None:
            vars(self).update(self._before_cut)

    def apply(self, effects: list[Effect]) -> None:
        if not all(isinstance(effect, RECOVERABLE) for effect in effects):
            self._before_cut = None
        elif self._before_cut is None:
            self._before_cut = {name: copy(value) for name, value in vars(self).items()}
        for effect in effects:
            match effect:
                case SaveVote(vote):
                    assert (vote.view, vote.kind) not in self.votes, "I1: a second vote of a kind in a view"
                    self.votes[vote.view, vote.kind] = vote
                case SaveAbstention(until):
                    self.abstain_until = until
                case SaveBlock(block):
                    self.blocks.setdefault(block.header.id, block)
                case SaveCertificate(certificate):
                    self.certificates[certificate.view, certificate.kind] = certificate
                case Finalized(blocks, certificate):
                    self._finalize([block for block, _ in blocks], certificate)
                case EpochEnded(handover):
                    self.committee = follow(self.committee, handover)
                    self.handovers.append(handover)
                    self.blocks, self.certificates, self.votes = {}, {}, {}
                case Record(evidence):
                    self.evidence.append(evidence)
                case Halted(reason):
                    self.halted = reason

    def _finalize(self, blocks: list[Block], certificate: Certificate) -> None:
        for block in blocks:
            own = certificate if certificate.block == block.header.id else None
            self.final.append((block, own))
        last = blocks[-1].header.view
        first = self.committee.term_start(self.committee.term(last))
        self.blocks = {i: b for i, b in self.blocks.items() if b.header.view > last}
        self.certificates = {k: c for k, c in self.certificates.items() if k[0] > last}
        self.votes = {k: v for k, v in self.votes.items() if k[0] >= first}

    def load(self) -> Restored:
        certificates = [c for _, c in sorted(self.certificates.items())]
        tip = anchor_tip(self.committee)
        if self.final and self.final[-1][0].header.epoch == self.committee.epoch:
            block, certificate = self.final[-1]
            header = block.header
            pending = [c for c in certificates if c.kind == "finalize"]
            certificate = certificate or (pending[-1] if pending else None)
            tip = Tip(header.id, header.view, header.height, header.time_ms, certificate)
        recent = [b for b, _ in self.final if b.header.time_ms > tip.time_ms - MAX_LIFETIME_MS]
        final = [Pending(raw, decode_tx(raw)) for b in recent for raw in b.txs]
        return Restored(
            tip,
            list(self.blocks.values()),
            certificates,
            list(self.votes.values()),
            [p for p in final if p.expires_ms > tip.time_ms],
            self.halted,
            self.abstain_until,
            list(self.evidence),
        )

    def page(self, height: int, size: int = 8) -> Chain | None:
        rest = self.final[height - 1 :]
        end = next((h for h in self.handovers if h.header.height >= height), None)
        if end:
            rest = rest[: end.header.height - height + 1]
        blocks, rest = rest[:size], rest[size:]
        if not blocks:
            return None
        while len(blocks) > 1 and blocks[-1][1] is None and not (end and not rest):
            rest.insert(0, blocks.pop())
        links, certificate = [], blocks[-1][1]
        while certificate is None and rest:
            block, certificate = rest.pop(0)
            links.append(block.header)
        if certificate is None and end:
            links += end.links
            certificate = end.finalization
        if certificate is None:
            return None
        return Chain(tuple(b for b, _ in blocks), tuple(links), certificate)


@dataclass
class Link:
    drop: float = 0.0
    delay: tuple[float, float] = (0.001, 0.005)
    duplicate: float = 0.0


class Oracle:
    """Told of every committed step, send and start; `tests.simulation.oracle` has the one that checks the invariants."""

    def committed(self, host: int, core: Core, effects: list[Effect]) -> None: ...

    def sends(self, host: int, core: Core, message: Message) -> None: ...

    def starts(self, host: int, core: Core, restored: Restored) -> None: ...

    def loses_disk(self, host: int) -> None: ...

    def loses_power(self, host: int, disk: Disk) -> None: ...


CrashPoint = tuple[Literal["before commit", "after commit", "between sends"], int]
MakeCore = Callable[..., Core]


class Cluster:
    def __init__(
        self,
        n: int = 4,
        mode: Mode = "bft",
        seed: int = 0,
        link: Link | None = None,
        *,
        make_oracle: Callable[[Genesis], Oracle] = lambda genesis: Oracle(),
        make_core: Callable[[int], MakeCore] = lambda host: Core,
        make_committee: Callable[[Genesis], Committee] = Committee,
        spares: int = 0,
        twins: tuple[int, ...] = (),
        may_halt: bool = False,
        **changes: int,
    ) -> None:
        self.genesis, self.keys = make_genesis(n, mode, **changes)
        self.keys += [SigningKey(bytes([i + 1]) * 32) for i in range(n, n + spares)]
        self.new_keys: dict[int, list[SigningKey]] = {}
        """Of members that have made other keys: each counts from the epoch on that names it."""
        self.committee = make_committee(self.genesis)
        self.random = random.Random(seed)
        self.link = link or Link()
        self.link_between: Callable[[int, int], Link] = lambda a, b: self.link
        self.now = 0.0
        self.oracle, self._make_core, self._may_halt = make_oracle(self.genesis), make_core, may_halt
        self.member = [*range(n + spares), *twins]
        self.disks = [Disk(self.committee) for _ in self.member]
        self.cores: list[Core | None] = [None for _ in self.member]
        self.skew = [0 for _ in self.member]
        self.cut: Callable[[int, int], bool] = lambda a, b: False
        self.crash_next: dict[int, CrashPoint] = {}
        self.on_crash: Callable[[int], None] = lambda host: None
        self.sent: list[tuple[int, Message]] = []
        self.story: list[str] = []
        self._digest = hashlib.sha256()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = self.events = 0
        self._due: dict[int, tuple[Core, float]] = {}
        for host in range(len(self.member)):
            self.start(host)

    @property
    def digest(self) -> str:
        """Names the whole run: every delivery, commit and fault, in order."""
        return self._digest.hexdigest()

    def name(self, host: int) -> str:
        return f"n{host}" if host < len(self.keys) else f"n{self.member[host]} (twin)"

    def say(self, line: str) -> None:
        self.story.append(f"{self.now:9.3f}  {line}")
        self._digest.update(self.story[-1].encode())

    def start(self, i: int) -> None:
        restored, mempool = self.disks[i].load(), Mempool(self.genesis.chain_id)
        nonce = self.random.randbytes(32)
        committee = self.disks[i].committee
        key = self.key_of(i, committee)
        core = self._make_core(i)(committee, key, mempool, restored, self.now, self.wall(i), nonce)
        self.cores[i] = core
        self.oracle.starts(i, core, restored)
        self._after(i, core)

    def key_of(self, host: int, committee: Committee) -> SigningKey:
        """The key by which a host is a member in an epoch, if it is one."""
        place = self.member[host]
        keys = [self.keys[place], *self.new_keys.get(place, [])]
        return next((key for key in keys if key.public in committee.keys), keys[0])

    def roster(self, core: Core) -> list[int]:
        """Who has which number in the eyes of a core: the members of its epoch, then all others."""
        members = [int(m.name[1:]) for m in core.committee.members]
        return members + [m for m in range(len(self.keys)) if m not in members]

    def change(self, epoch: int, *members: int) -> bytes:
        """The admins' agreement on who decides after an epoch; those who have a new key come with it."""
        named = tuple(member(m, [self.keys[m], *self.new_keys.get(m, [])][-1]) for m in members)
        return change_tx(self.genesis, epoch, named)

    def crash(self, i: int, *, cuts_power: bool = False) -> None:
        self.cores[i] = None
        self.crash_next.pop(i, None)
        if cuts_power:
            self.disks[i].cut_power()
            self.oracle.loses_power(i, self.disks[i])

    def pause(self, i: int) -> Core | None:
        """Stop the host in its place; what reaches it is lost. Returns what `resume` takes."""
        core, self.cores[i] = self.cores[i], None
        return core

    def resume(self, i: int, core: Core) -> None:
        self.cores[i] = core
        self._due.pop(i, None)
        core.tick(self.now, self.wall(i))
        self._after(i, core)

    def lose_disk(self, i: int, *, rejoin: bool = True) -> None:
        """The host comes back with an empty disk; `rejoin` is the operator's flag, which the node demands."""
        self.crash(i)
        self.disks[i] = Disk(self.committee)
        self.oracle.loses_disk(i)
        if rejoin:
            self.disks[i].apply([SaveAbstention(None)])

    def wall(self, host: int | None = None) -> int:
        """What the clock of a host shows; it may be off by its `skew` in milliseconds."""
        return WALL0 + int(self.now * 1000) + (self.skew[host] if host is not None else 0)

    def block(
        self,
        view: int,
        *raw: bytes,
        parent: Header | None = None,
        committee: Committee | None = None,
        **changes: object,
    ) -> Block:
        """A block that the leader of `view` could make, on the anchor of the epoch or on `parent`."""
        committee = committee or self.committee
        header = Header(
            self.genesis.chain_id,
            committee.epoch,
            view,
            (parent or committee.anchor).height + 1,
            (parent or committee.anchor).id,
            parent.view if parent else 0,
            merkle.root(raw),
            len(raw),
            (parent or committee.anchor).time_ms + 1,
            committee.validators_hash,
            committee.validators_hash,
            committee.leader(view),
        )
        return Block(msgspec.structs.replace(header, **changes), raw, ())

    def ending(
        self, committee: Committee, *members: int, view: int = 1, helpers: tuple[int, ...] = ()
    ) -> tuple[list[Block], Handover]:
        """The last block of an epoch, on its anchor, with the empty blocks in the views of `helpers`; and the proof that it ended."""
        raw = self.change(committee.epoch, *members)
        action = decode_tx(raw).body.action
        assert isinstance(action, ChangeMembers)
        after = {"next_validators_hash": validators_hash(self.genesis, action.members)}
        blocks = [self.block(view, raw, committee=committee, **after)]
        for helper in helpers:
            blocks.append(self.block(helper, parent=blocks[-1].header, committee=committee, **after))
        header, last = blocks[0].header, blocks[-1].header
        proof = self.certificate("finalize", last.view, last.id, committee=committee)
        return blocks, Handover(header, tuple(b.header for b in blocks[1:]), proof, action)

    def proposal(
        self, block: Block, parent_cert: Certificate | None = None, committee: Committee | None = None
    ) -> Proposal:
        header, committee = block.header, committee or self.committee
        leader = committee.leader(header.view)
        vote = committee.sign(self.signer(committee, leader), leader, "notarize", header.view, header.id)
        return Proposal(block, parent_cert, vote)

    def certificate(
        self,
        kind: Kind,
        view: int,
        block: bytes | None,
        *signers: int,
        committee: Committee | None = None,
    ) -> Certificate:
        """Of the members of a committee that are given, or of the last ones that make a quorum."""
        committee = committee or self.committee
        chosen = signers or range(committee.size - committee.quorum, committee.size)
        votes = [committee.sign(self.signer(committee, s), s, kind, view, block) for s in chosen]
        return committee.certify(votes)

    def signer(self, committee: Committee, place: int) -> SigningKey:
        """The key of the member with this number in a committee."""
        keys = [*self.keys, *(key for new in self.new_keys.values() for key in new)]
        return next(key for key in keys if key.public == committee.keys[place])

    def submit(self, raw: bytes, to: int | None = None) -> None:
        for i, core in enumerate(self.cores):
            if core and to in (None, i):
                core.mempool.add(raw, self.wall(i))
                core.submit(self.now, self.wall(i))
                self._after(i, core)

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
            self.events += 1
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
        """Commit what the core wants durable, then send; crash on the way if `crash_next` says so."""
        core = self.cores[i]
        assert core is not None
        effects = core.take_effects()
        if not effects:
            return
        point, number = self.crash_next.pop(i, ("", 0))
        if point == "before commit":
            return self._crashed(i, point)
        self.disks[i].apply(effects)
        for effect in effects:
            self._tell(i, effect)
        self.oracle.committed(i, core, effects)
        sends = [m for effect in effects for m in self._sends(i, core, effect)]
        if point:
            del sends[number % (len(sends) + 1) if point == "between sends" else 0 :]
        for place, message in sends:
            self.deliver(i, place, message)
        if point:
            return self._crashed(i, point)
        if core.next_committee:
            self.cores[i] = fresh = core.next_epoch(self.key_of(i, core.next_committee))
            role = "as a member" if fresh.me is not None else "watching"
            self.say(f"{self.name(i)} enters epoch {fresh.committee.epoch} {role}")
            self.oracle.starts(i, fresh, self.disks[i].load())
            self._arm(i, fresh)

    def _crashed(self, i: int, point: str) -> None:
        self.say(f"{self.name(i)} crashes {point}")
        self.crash(i)
        self.on_crash(i)

    def _sends(self, i: int, core: Core, effect: Effect) -> list[tuple[int, Message]]:
        roster = self.roster(core)
        match effect:
            case Send(to, message):
                everyone = [m for m in range(len(self.keys)) if m != self.member[i]]
                return [(m, message) for m in ([roster[to]] if to is not None else everyone)]
            case ServeChain(to, height):
                page = self.disks[i].page(height)
                return [(roster[to], page)] if page else []
        return []

    def _tell(self, i: int, effect: Effect) -> None:
        who = self.name(i)
        match effect:
            case SaveVote(vote):
                what = f" of block {vote.block.hex()[:6]}" if vote.block else ""
                self.say(f"{who} signs {vote.kind}{what} in view {vote.view}")
            case SaveCertificate(cert) if cert.kind == "nullify":
                self.say(f"{who} holds the nullification of view {cert.view} and leaves its term")
            case Finalized(blocks, _):
                for block, entries in blocks:
                    header = block.header
                    self.say(
                        f"{who} finalizes block {header.id.hex()[:6]} at height {header.height}"
                        f" (view {header.view}, {len(entries)} tx)"
                    )
            case EpochEnded(handover):
                members = " ".join(m.name for m in handover.change.members)
                self.say(
                    f"{who} sees the epoch end at height {handover.header.height}; next members: {members}"
                )
            case SaveAbstention(None):
                self.say(f"{who} signs nothing until enough others have reported")
            case SaveAbstention(0):
                self.say(f"{who} has never been in the next epoch and may sign in it")
            case SaveAbstention(until):
                self.say(f"{who} signs nothing up to view {until}")
            case Record(evidence):
                votes = (evidence.first, evidence.second)
                pair = " and ".join(f"{v.kind} in view {v.view}" for v in votes)
                self.say(f"{who} records {evidence.kind} against n{evidence.first.signer}: {pair}")
            case Halted(reason):
                self.say(f"{who} halts: {reason}")
                assert self._may_halt, reason

    def deliver(self, src: int, member: int, message: Message | bytes) -> None:
        """Put a message from host `src` on the wire to every host of `member`; bytes are what a liar makes up."""
        if isinstance(message, bytes):
            data = message
        else:
            self.sent.append((src, message))
            core = self.cores[src]
            assert core is not None
            self.oracle.sends(src, core, message)
            data = encode(message)
        try:
            decoded = decode_message(data)
        except DiptychError:
            return  # as the daemon does
        mark = hashlib.sha256(data).digest()
        for host in [h for h, m in enumerate(self.member) if m == member and h != src]:
            link = self.link_between(src, host)
            for _ in range(1 + (self.random.random() < link.duplicate)):
                if self.cut(src, host) or self.random.random() < link.drop:
                    continue
                at = self.now + self.random.uniform(*link.delay)
                self.at(at, lambda host=host: self._receive(src, host, decoded, mark))

    def _receive(self, src: int, dst: int, message: Message, mark: bytes) -> None:
        core = self.cores[dst]
        if core and not self.cut(src, dst):
            self._digest.update(b"%d %d %.9f" % (src, dst, self.now) + mark)
            core.receive(self.roster(core).index(self.member[src]), message, self.now, self.wall(dst))
            self._after(dst, core)

    def _after(self, host: int, core: Core) -> None:
        self.run_effects(host)
        if self.cores[host] is core:
            self._arm(host, core)

    def inject(self, dst: int, src: int, message: Message) -> None:
        """Hand a message that member `src` may have made up to `dst` at once, whatever the network does."""
        core = self.cores[dst]
        assert core is not None
        core.receive(src, decode_message(encode(message)), self.now, self.wall(dst))
        self._after(dst, core)

    def _arm(self, i: int, core: Core) -> None:
        """Wake the core when it asked to be; one wake-up waits at a time."""
        due = core.next_deadline()
        if self._due.get(i, (None, inf))[0] is core and self._due[i][1] <= due:
            return

        def tick() -> None:
            if self.cores[i] is not core:
                return
            if self._due.get(i) == (core, due):
                del self._due[i]
            if self.now + 1e-9 >= core.next_deadline():
                core.tick(self.now, self.wall(i))
                self._after(i, core)
            else:
                self._arm(i, core)

        self._due[i] = (core, due)
        self.at(due, tick)
