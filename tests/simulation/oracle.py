"""The invariants I1-I9 of docs/protocol.md, checked from outside after every step of every honest host.

Nothing here asks the code under test for its opinion: signatures, terms and contradictions are worked out anew.
"""

from typing import NoReturn

from crypto.codec import encode
from crypto.sign import is_valid
from protocol.block import Block, Certificate, Message, Proposal, Status, Vote, Votes
from protocol.core import (
    Core,
    Effect,
    Finalized,
    Halted,
    Record,
    Restored,
    SaveBlock,
    SaveCertificate,
    SaveVote,
)
from protocol.genesis import Genesis, Member
from protocol.tx import ChangeMembers, decode_tx
from tests.simulation.cluster import Disk, Oracle


class Violation(AssertionError):
    """An invariant is broken; the text begins with its name."""


class Invariants(Oracle):
    """`liars` are the Byzantine members; the `hosts` first hosts without them are honest and checked."""

    def __init__(self, genesis: Genesis, liars: frozenset[int], hosts: int) -> None:
        self._genesis, self._liars, self._hosts = genesis, liars, hosts
        self.epochs: list[tuple[Member, ...]] = [genesis.members]
        """Who decides, by epoch, worked out from the finalized chain."""
        self.log: list[bytes] = []
        """The one finalized chain, block ids by height from 1."""
        self._txs: set[bytes] = set()
        self._logs: dict[int, int] = {}
        self._signed: dict[tuple[int, int], dict[tuple[int, str], bytes | None]] = {}
        """All that the key of a host ever signed in an epoch, lost disks or not."""
        self._durable: dict[int, set[tuple[int, int, str]]] = {}
        self._sent: dict[int, set[tuple[int, int, str]]] = {}
        self._place: dict[int, tuple[int, int, int]] = {}
        self._bodies: dict[bytes, set[int]] = {}
        self._true: set[tuple[int, str, int, bytes | None, bytes, tuple[bytes, ...]]] = set()

    def starts(self, host: int, core: Core, restored: Restored) -> None:
        if self._is_liar(host):
            return
        self._stands(host, core)
        epoch = core.committee.epoch
        first = self._term_start(restored.tip.view) if restored.tip.view else 1
        held = {(epoch, v.view, v.kind) for v in restored.votes}
        lost = {key for key in self._sent.get(host, set()) if key[0] == epoch and key[1] >= first} - held
        if lost:
            self._fail("I8", host, f"has forgotten its votes {sorted(lost)} after a restart")

    def loses_disk(self, host: int) -> None:
        for book in (self._sent, self._durable, self._place, self._logs):
            book.pop(host, None)

    def loses_power(self, host: int, disk: Disk) -> None:
        """Epoch, view and height may fall to what the disk has (I3), and bodies be lost with them (I5); votes may not (I8)."""
        self._place.pop(host, None)
        self._logs[host] = len(disk.final)
        held = disk.blocks.keys() | {block.header.id for block, _ in disk.final}
        for block_id, hosts in self._bodies.items():
            if block_id not in held:
                hosts.discard(host)

    def _stands(self, host: int, core: Core) -> None:
        before, now = self._place.get(host, (0, 1, 0)), (core.committee.epoch, core.view, core.tip.height)
        if now[:2] < before[:2] or now[2] < before[2]:
            self._fail("I3", host, f"falls from epoch, view and height {before} to {now}")
        self._place[host] = now

    def sends(self, host: int, core: Core, message: Message) -> None:
        if self._is_liar(host):
            return
        match message:
            case Votes() | Status():
                votes = message.votes
            case Proposal():
                votes = (message.vote,)
            case _:
                return
        for vote in votes:
            if vote.signer == core.me:
                self._on_vote(host, core.committee.epoch, vote)
                key = (core.committee.epoch, vote.view, vote.kind)
                if key not in self._durable.get(host, set()):
                    self._fail("I8", host, f"sends {vote.kind} in view {vote.view} before it is durable")
                self._sent.setdefault(host, set()).add(key)

    def committed(self, host: int, core: Core, effects: list[Effect]) -> None:
        if self._is_liar(host):
            return
        self._stands(host, core)
        epoch = core.committee.epoch
        for effect in effects:
            match effect:
                case SaveVote(vote):
                    self._on_vote(host, epoch, vote)
                    self._durable.setdefault(host, set()).add((epoch, vote.view, vote.kind))
                case SaveBlock(block):
                    self._bodies.setdefault(block.header.id, set()).add(host)
                case SaveCertificate(certificate):
                    self._on_certificate(host, epoch, certificate)
                case Finalized(blocks, certificate):
                    self._on_certificate(host, epoch, certificate)
                    for block, _ in blocks:
                        self._on_final(host, block)
                case Record(evidence):
                    name = self.epochs[evidence.epoch][evidence.first.signer].name
                    if int(name[1:]) not in self._liars:
                        self._fail("I9", host, f"records {evidence.kind} against honest {name}")
                case Halted(reason):
                    self._fail("I4", host, f"halts: {reason}")

    def _on_vote(self, member: int, epoch: int, vote: Vote) -> None:
        if (
            not 0 <= vote.signer < len(self.epochs[epoch])
            or self.epochs[epoch][vote.signer].name != f"n{member}"
        ):
            self._fail("I6", member, f"votes as member {vote.signer} of epoch {epoch}, which it is not")
        signed = self._signed.setdefault((epoch, member), {})
        key = (vote.view, vote.kind)
        if signed.get(key, vote.block) != vote.block:
            self._fail("I1", member, f"signs {vote.kind} twice in view {vote.view}")
        if key in signed:
            return
        signed[key] = vote.block
        other = "finalize" if vote.kind == "notarize" else "notarize"
        if vote.kind != "nullify" and signed.get((vote.view, other), vote.block) != vote.block:
            self._fail("I1", member, f"notarizes and finalizes different blocks in view {vote.view}")
        start, length = self._term_start(vote.view), self._genesis.term_length
        if vote.kind == "finalize" and any((u, "nullify") in signed for u in range(start, vote.view + 1)):
            self._fail("I2", member, f"finalizes view {vote.view} after a nullify in its term")
        if vote.kind == "nullify" and any(
            (v, "finalize") in signed for v in range(vote.view, start + length)
        ):
            self._fail("I2", member, f"nullifies view {vote.view} at or before one it finalized in its term")

    def _quorum(self, epoch: int) -> int:
        n = len(self.epochs[epoch])
        return n // 2 + 1 if self._genesis.mode == "majority" else n - (n - 1) // 3

    def _on_certificate(self, host: int, epoch: int, cert: Certificate) -> None:
        key = (epoch, cert.kind, cert.view, cert.block, cert.signers, cert.signatures)
        if key in self._true:
            return
        signers = [i for i in range(8 * len(cert.signers)) if cert.signers[i // 8] >> i % 8 & 1]
        payload = encode((self._genesis.chain_id, epoch, cert.kind, cert.view, cert.block))
        members = self.epochs[epoch]
        good = len(signers) == len(cert.signatures) == self._quorum(epoch) and all(
            s < len(members) and is_valid(members[s].key, "vote", payload, signature)
            for s, signature in zip(signers, cert.signatures, strict=True)
        )
        if not good:
            self._fail(
                "I6", host, f"takes a certificate of view {cert.view} without a quorum of true signatures"
            )
        self._true.add(key)

    def _on_final(self, host: int, block: Block) -> None:
        height = self._logs.get(host, 0) + 1
        self._logs[host] = height
        if block.header.height != height:
            self._fail("I4", host, f"finalizes height {block.header.height} where {height} is next")
        block_id = block.header.id
        if height <= len(self.log):
            if self.log[height - 1] != block_id:
                self._fail("I4", host, f"finalizes another block at height {height}: a fork")
            return
        self.log.append(block_id)
        if block.header.epoch != len(self.epochs) - 1:
            self._fail("I4", host, f"finalizes a block of epoch {block.header.epoch} at height {height}")
        members = {int(m.name[1:]) for m in self.epochs[-1]}
        if len((self._bodies.get(block_id, set()) | self._liars) & members) < self._quorum(-1):
            self._fail("I5", host, f"finalizes height {height} with fewer than a quorum of durable bodies")
        ids = {decode_tx(raw).id for raw in block.txs}
        if ids & self._txs or len(ids) != len(block.txs):
            self._fail("I7", host, f"finalizes a transaction twice, at height {height}")
        self._txs |= ids
        self._follow(host, block)

    def _follow(self, host: int, block: Block) -> None:
        """The first change that enough admins have signed for this epoch ends it, and nothing else does."""
        for raw in block.txs:
            action = decode_tx(raw).body.action
            if isinstance(action, ChangeMembers) and action.epoch == len(self.epochs) - 1:
                payload = encode((self._genesis.hash, action.epoch, action.members))
                signed = {
                    a.admin
                    for a in action.approvals
                    if is_valid(self._genesis.admins[a.admin], "members", payload, a.signature)
                }
                if len(signed) >= self._genesis.admin_quorum and action.members != self.epochs[-1]:
                    self.epochs.append(action.members)
                    break
        has_ended = len(self.epochs) - 1 > block.header.epoch
        if has_ended != (block.header.next_validators_hash != block.header.validators_hash):
            self._fail(
                "I4",
                host,
                f"finalizes a block at height {block.header.height} that is wrong about the epoch's end",
            )

    def _is_liar(self, host: int) -> bool:
        return host >= self._hosts or host in self._liars

    def _term_start(self, view: int) -> int:
        return view - (view - 1) % self._genesis.term_length

    def _fail(self, name: str, host: int, what: str) -> NoReturn:
        raise Violation(f"{name}: n{host} {what}")
