"""The consensus core: Simplex (Chan and Pass, eprint 2023/463) with leader terms, as a sans-IO state machine.

Bytes and time go in (`receive`, `submit`, `tick`), effects come out (`take_effects`); the timer is a query (`next_deadline`). No callback, no
task, no socket, no clock. docs/protocol.md states the rules; each method here names the rule it implements. The caller must make all
`Save*`, `Finalized`, `Record` and `Halted` effects of a step durable in one transaction before it carries out any `Send` of that step;
of what that means for `RECOVERABLE` effects a power cut may take something back.

Invariants: one notarize and one finalize per view, for the same block (I1); never a nullify at or before a finalize of one
term (I2); view and height never fall (I3); a certificate counts only with exactly a quorum of distinct valid signers (I6).
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from crypto.errors import DiptychError
from crypto.sign import Ed25519Signer
from protocol import merkle
from protocol.block import (
    Accusation,
    Block,
    Body,
    Certificate,
    Chain,
    Committee,
    Header,
    Message,
    Proposal,
    Rejoin,
    Report,
    Status,
    Vote,
    Votes,
    Want,
    validators_hash,
)
from protocol.epochs import Handover, next_change, successor
from protocol.evidence import Evidence, conflict
from protocol.mempool import Mempool, Pending, is_admissible
from protocol.tx import ChangeMembers

DRIFT_MS = 2_000
"""How far ahead of the own clock a block's time may be."""
MAX_TIMEOUT = 60.0
STATUS_BUSY, STATUS_IDLE = 0.5, 5.0
VOTES_IN_STATUS = 48
MAX_ORPHANS = 128
MAX_EVIDENCE = 4
"""Pairs kept of each kind and member: one convicts, and a liar could make one a view."""


@dataclass(frozen=True, slots=True)
class SaveVote:
    """Own vote; must be durable before it is sent, for ever (I8)."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class SaveAbstention:
    """Sign nothing in views up to `until`; None: nothing at all until enough members have reported (rule "Rejoin")."""

    until: int | None


@dataclass(frozen=True, slots=True)
class SaveBlock:
    block: Block


@dataclass(frozen=True, slots=True)
class SaveCertificate:
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Finalized:
    """Blocks that are final now, in height order, each with its transactions; `certificate` finalizes the last or, in
    catch-up, a descendant of it."""

    blocks: tuple[tuple[Block, tuple[Pending, ...]], ...]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """The last of the `Finalized` blocks in this step ends the epoch: after it go on with `Core.next_epoch`."""

    handover: Handover


@dataclass(frozen=True, slots=True)
class Record:
    """Two contradicting votes of one member."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Send:
    """To member `to`, or to all others if None."""

    to: int | None
    message: Message


@dataclass(frozen=True, slots=True)
class ServeChain:
    """Member `to` lacks the finalized blocks from `height` on: send a `Chain` page from the store."""

    to: int
    height: int


@dataclass(frozen=True, slots=True)
class Halted:
    """Safety is broken (more liars than the mode bears): the chain stops here, also after a restart; people must look."""

    reason: str


Effect = (
    SaveVote
    | SaveAbstention
    | SaveBlock
    | SaveCertificate
    | Finalized
    | EpochEnded
    | Record
    | Send
    | ServeChain
    | Halted
)


RECOVERABLE = (SaveBlock, SaveCertificate, Finalized, Send, ServeChain)
"""Steps of these alone need not survive a power cut, if no later step survives either: nothing was signed since, others have the
blocks and certificates, and what is final is so by votes that a quorum has on its disks."""


@dataclass(frozen=True, slots=True)
class Tip:
    """The last finalized block; `certificate` finalizes it or a descendant. At the anchor of an epoch `view` is 0 and
    `certificate` None."""

    id: bytes
    view: int
    height: int
    time_ms: int
    certificate: Certificate | None


@dataclass(slots=True)
class Restored:
    """What the store held at start: everything of the epoch above the finalized tip, and the ids that may not come again."""

    tip: Tip
    blocks: list[Block] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    final_txs: list[Pending] = field(default_factory=list)
    halted: str | None = None
    abstain_until: int | None = 0
    """As in `SaveAbstention`; 0 where the journal has been whole from the first vote on."""
    evidence: list[Evidence] = field(default_factory=list)


@dataclass(slots=True)
class _Held:
    """An unfinalized block that is connected to the finalized chain."""

    block: Block
    id: bytes
    entries: tuple[Pending, ...]
    is_valid: bool
    change: ChangeMembers | None
    """Set when this block or an ancestor above the tip ends the epoch."""


class Core:
    """One member of one epoch. `me` is its index, or None for an observer that follows without voting: its key is no member's.

    Members are numbered as in the committee; whoever passes on what a peer without a place in it sent (a member of another epoch)
    numbers it from `committee.size` on.

    `nonce` is 32 fresh random bytes, used only if `restored` says that the journal was lost; without them such a core syncs
    and never signs again.
    """

    def __init__(
        self,
        committee: Committee,
        key: Ed25519Signer | None,
        mempool: Mempool,
        restored: Restored,
        now: float,
        wall_ms: int,
        nonce: bytes | None = None,
    ) -> None:
        self.committee, self.mempool, self._key = committee, mempool, key
        self.me = committee.keys.index(key.public) if key and key.public in committee.keys else None
        self.next_committee: Committee | None = None
        """Set once the epoch is over; this engine then does nothing more, and `next_epoch` makes the one that goes on."""
        self._t0 = committee.genesis.base_timeout_ms / 1000
        self._now, self._wall_ms = now, wall_ms
        self.tip = restored.tip
        self.view = self.tip.view + 1
        self.halted: str | None = None
        self.deadline: float | None = None
        self.abstain_until = restored.abstain_until
        self._nonce = nonce
        self._reports: dict[int, int] = {}
        """While the abstention is open: the views that members reported."""
        self._backoff = 0
        self._status_at = now
        self._effects: list[Effect] = []
        self._held: dict[bytes, _Held] = {}
        self._orphans: dict[bytes, Block] = {}
        self._proposals: dict[int, Proposal] = {}
        self._notarizations: dict[int, Certificate] = {}
        self._nullifications: dict[int, Certificate] = {}
        """By term: the one with the lowest view, which covers most."""
        self._finalization: Certificate | None = None
        """The highest one whose block is not held yet."""
        self._votes: dict[tuple[int, str, int], Vote] = {}
        """First valid vote of each (view, kind, signer) above the tip."""
        self._accused: set[tuple[int, str, int]] = set()
        """Those of which a second one is on record as evidence; a third adds nothing."""
        self._convicted: dict[tuple[int, str], set[tuple[int, bytes | None, int, bytes | None]]] = {}
        """By signer and kind: views and blocks of the pairs on record."""
        self._own: dict[tuple[int, str], Vote] = {}
        self._forgotten = 0
        """Votes up to this view are dropped from `_votes` and `_own`."""
        self._waiting_since: float | None = None
        self._asked: dict[bytes, float] = {}
        self._last: dict[tuple[str, int, int], float] = {}
        self._final_ids: deque[tuple[int, bytes]] = deque([(self.tip.view, self.tip.id)], maxlen=256)
        self._fresh: deque[tuple[int, int, float]] = deque()
        """Height, view and time of what has become final here lately: of the first block, where several did at once."""
        self._restore(restored)

    # --- what comes in -----------------------------------------------------------------------------------------------

    def receive(self, src: int, message: Message, now: float, wall_ms: int) -> None:
        """A decoded message from member `src`. Anything untrue in it is dropped without effect."""
        if not self._clock(now, wall_ms):
            return
        match message:
            case Proposal():
                self._on_proposal(message, src)
            case Votes():
                if message.notarization:
                    self._on_certificate(message.notarization, src)
                for vote in message.votes:
                    self._on_vote(vote)
            case Status():
                self._on_status(message, src)
            case Want():
                held = self._held.get(message.block)
                if held and self._is_due("body", src, held.block.header.view):
                    self._send(Body(held.block), src)
            case Body():
                self._on_body(message.block, src)
            case Chain():
                self._on_chain(message, src)
            case Rejoin():
                self._on_rejoin(message, src)
            case Report():
                self._on_report(message, src)
            case Accusation():
                self._on_accusation(message)
        self._progress()

    def submit(self, now: float, wall_ms: int) -> None:
        """The mempool has grown."""
        if self._clock(now, wall_ms):
            self._progress()

    def greet(self, member: int) -> None:
        """A link to `member` is new: tell it where we are, so that whoever of the two is behind catches up at once."""
        if not self.halted and not self.next_committee:
            self._send(self._status(), member)

    def tick(self, now: float, wall_ms: int) -> None:
        """Time has passed; call at `next_deadline()` at the latest."""
        if not self._clock(now, wall_ms):
            return
        self.mempool.expire(wall_ms)
        self._progress()
        if now >= self._status_at:
            is_busy = self._has_work() or self.abstain_until is None
            self._status_at = now + (STATUS_BUSY if is_busy else STATUS_IDLE)
            self._send(self._status())
            if self.abstain_until is None and self._nonce and self.me is not None:
                self._send(Rejoin(self._nonce))
            self._repeat_proposal()
            self._ask_again()

    def next_deadline(self) -> float:
        """When `tick` is due, on the clock of `now`. What a passed deadline allowed has been done in the step that saw it pass."""
        if self.halted:
            return self._now + MAX_TIMEOUT
        times = [self._status_at]
        if self.deadline is not None and self.deadline > self._now:
            times.append(self.deadline)
        if self._is_leader() and self._overdue_at() > self._now:
            times.append(self._overdue_at())
        return min(times)

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- status and the questions of operators -------------------------------------------------------------------------

    def _status(self) -> Status:
        recent = sorted((v for v in self._own.values() if v.view > self.tip.view), key=lambda v: v.view)
        return Status(
            self.committee.epoch,
            self.view,
            self.tip.height,
            self._finalization or self.tip.certificate,
            self._notarizations[max(self._notarizations)] if self._notarizations else None,
            self._nullifications[max(self._nullifications)] if self._nullifications else None,
            tuple(recent[-VOTES_IN_STATUS:]),
        )

    def missing_votes(self) -> dict[str, list[int]]:
        """For the current view: which members have sent no vote of each kind. Answers "why is it stuck"."""
        kinds = ("notarize", "nullify")
        return {
            kind: [m for m in range(self.committee.size) if (self.view, kind, m) not in self._votes]
            for kind in kinds
        }

    # --- entering views (rule "Enter view") ------------------------------------------------------------------------------

    def _enter(self, view: int) -> None:
        self.view = max(self.view, view)

    def _on_certificate(self, cert: Certificate, src: int) -> bool:
        """Take in a certificate from outside; False if what it says is not proved by it or by one known before."""
        if cert.view <= self.tip.view:
            return self._agrees_with_final(cert)
        known = self._notarizations.get(cert.view)
        if (
            (cert.kind == "notarize" and known is not None and known.block == cert.block)
            or (cert.kind == "finalize" and self._finalization == cert)
            or (cert.kind == "nullify" and self._covers(cert.view))
        ):
            return True
        if not self.committee.is_valid_certificate(cert):
            return False
        self._compare(cert)
        self._certified(cert, src)
        return True

    def _agrees_with_final(self, cert: Certificate) -> bool:
        """A certificate at or below the tip changes nothing, unless it finalizes another block than ours."""
        final = next((block_id for view, block_id in reversed(self._final_ids) if view == cert.view), None)
        is_other = final != cert.block and cert.view >= self._final_ids[0][0]
        if cert.kind == "finalize" and is_other and self.committee.is_valid_certificate(cert):
            self._compare(cert)
            self._halt(f"a finalized block of view {cert.view} is not on our chain")
        return cert.kind == "nullify" or final in (None, cert.block)

    def _certified(self, cert: Certificate, src: int | None) -> None:
        """A valid certificate above the tip, formed here or received."""
        if cert.kind == "notarize":
            known = self._notarizations.setdefault(cert.view, cert)
            if known is not cert:
                if known.block != cert.block:
                    self._compare(cert)
                    self._halt(f"view {cert.view} has two notarized blocks")
                return
            self._waiting_since = self._now if self._waiting_since is None else self._waiting_since
            self._need(cert.block, src)
            self._enter(cert.view + 1)
        elif cert.kind == "nullify":
            term = self.committee.term(cert.view)
            if self._covers(cert.view):
                return
            is_new = term not in self._nullifications
            self._nullifications[term] = cert
            if is_new:
                self._backoff += 1
                self.deadline = self._now + self._timeout()
            self._enter(self.committee.term_start(term + 1))
        else:
            if self._finalization is None or self._finalization.view < cert.view:
                self._finalization = cert
                # The others go on: whoever only lacks the block must not spoil the term it comes into by a nullify.
                self._backoff, self.deadline = 0, None
            self._need(cert.block, src)
            self._enter(cert.view + 1)
        self._effects.append(SaveCertificate(cert))

    def _compare(self, cert: Certificate) -> None:
        """Hold the votes in a valid certificate against those known: two contradicting certificates share at least 2Q-n
        signers, and each of them is guilty."""
        term = self.committee.term
        known = [*self._notarizations.values(), *self._nullifications.values()]
        known += [c for c in (self._finalization, self.tip.certificate) if c]
        against = [
            vote
            for other in known
            if (other.view == cert.view and other.block != cert.block)
            or (term(other.view) == term(cert.view) and {other.kind, cert.kind} == {"nullify", "finalize"})
            for vote in self.committee.votes_of(other)
        ]
        for vote in self.committee.votes_of(cert):
            for other in (*against, *self._votes_against(vote)):
                self._convict(other, vote)

    def _covers(self, view: int) -> bool:
        """Whether a known nullification covers `view`."""
        known = self._nullifications.get(self.committee.term(view))
        return known is not None and known.view <= view

    # --- votes -----------------------------------------------------------------------------------------------------------

    def _on_vote(self, vote: Vote) -> None:
        horizon = self.view + 2 * self.committee.genesis.term_length
        if vote.view > horizon or vote.signer == self.me:
            return
        if vote.view <= self.tip.view:  # too late to count, not too late to convict
            self._on_pair(vote, *self._votes_against(vote))
            return
        key = (vote.view, vote.kind, vote.signer)
        known = self._votes.get(key)
        if known and (known.block == vote.block or key in self._accused):
            return
        if self.committee.is_valid_vote(vote):
            self._add_vote(vote)
            if known:
                self._accused.add(key)

    def _add_vote(self, vote: Vote) -> None:
        for other in self._votes_against(vote):
            self._convict(other, vote)
        if self._votes.setdefault((vote.view, vote.kind, vote.signer), vote) is not vote:
            return
        same = [
            v
            for m in range(self.committee.size)
            if (v := self._votes.get((vote.view, vote.kind, m))) and v.block == vote.block
        ]
        if len(same) == self.committee.quorum and vote.view > self.tip.view:
            self._certified(self.committee.certify(same), None)

    def _votes_against(self, vote: Vote) -> list[Vote]:
        """The signer's known votes that `vote` could contradict: of the same view, and for E4 of the same term."""
        start = self.committee.term_start(self.committee.term(vote.view))
        keys = [(vote.view, "notarize"), (vote.view, "finalize")]
        if vote.signer >= self.committee.size or vote.view <= self._votes_from():
            return []
        if vote.kind == "finalize":
            keys += [(u, "nullify") for u in range(start, vote.view + 1)]
        elif vote.kind == "nullify":
            keys += [(v, "finalize") for v in range(vote.view, start + self.committee.genesis.term_length)]
        return [known for view, kind in keys if (known := self._votes.get((view, kind, vote.signer)))]

    def _votes_from(self) -> int:
        """Votes up to this view are forgotten. Those of the tip's term stay: E4 and Rule F look back to its first view."""
        tip = self.tip.view
        return min(tip, self.committee.term_start(self.committee.term(tip)) - 1) if tip else 0

    # --- evidence ----------------------------------------------------------------------------------------------------------

    def _on_accusation(self, accusation: Accusation) -> None:
        self._on_pair(accusation.second, accusation.first, checked=False)

    def _on_pair(self, vote: Vote, *others: Vote, checked: bool = True) -> None:
        """A vote from outside, verified only if it contradicts one of `others` and the pair is not yet on record; `others`
        too unless `checked`."""
        for other in others:
            evidence = conflict(self.committee, other, vote)
            if evidence is None or not self._is_news(evidence):
                continue
            if self.committee.is_valid_vote(vote) and (checked or self.committee.is_valid_vote(other)):
                self._convict(other, vote)

    def _is_news(self, evidence: Evidence) -> bool:
        known = self._convicted.get((evidence.first.signer, evidence.kind), set())
        return len(known) < MAX_EVIDENCE and _pair(evidence) not in known

    def _convict(self, a: Vote, b: Vote) -> None:
        """Record two valid votes if they contradict each other, and tell all members; each of them does once."""
        evidence = conflict(self.committee, a, b)
        if evidence is None or not self._is_news(evidence):
            return
        self._convicted.setdefault((a.signer, evidence.kind), set()).add(_pair(evidence))
        self._effects.append(Record(evidence))
        self._send(Accusation(evidence.first, evidence.second))

    # --- a lost journal (rule "Rejoin") ----------------------------------------------------------------------------------------

    def _may_sign(self, view: int) -> bool:
        return self.me is not None and self.abstain_until is not None and view > self.abstain_until

    def _on_rejoin(self, ask: Rejoin, src: int) -> None:
        """Say how far this member may have signed; one that is lost itself does not know."""
        if self._key is None or self.me is None or self.abstain_until is None:
            return
        if self._is_due("report", src, 0):
            candidates = [*self._notarizations.values(), *self._nullifications.values()]
            candidates += [c for c in (self._finalization, self.tip.certificate) if c]
            proof = max(candidates, key=self.committee.opened_by, default=None)
            view = max(self.view, self.abstain_until)
            self._send(self.committee.report(self._key, self.me, ask.nonce, view, proof), src)

    def _on_report(self, report: Report, src: int) -> None:
        """With reports from a quorum of others: whoever signed what led this member into its last view is among them, so that
        view opens at most the term after the highest reported one. The abstention ends with the first view of that term."""
        if self.abstain_until is not None or src == self.me or report.nonce != self._nonce:
            return
        if not self.committee.is_valid_report(report, src):
            return
        if report.proof and not self._on_certificate(report.proof, src):
            return
        self._reports[src] = report.view
        if len(self._reports) >= self.committee.quorum:
            last = max(self._reports.values())
            self.abstain_until = self.committee.term_start(self.committee.term(last) + 1)
            self._effects.append(SaveAbstention(self.abstain_until))

    def _sign(self, kind: str, view: int, block: bytes | None) -> Vote:
        """Sign, journal and count an own vote; the caller has checked the rule that allows it."""
        assert self._key is not None
        assert self.me is not None
        assert self._may_sign(view), "no vote in a view that a lost journal may hold votes of"
        assert (view, kind) not in self._own, "I1: one vote of a kind per view"
        vote = self.committee.sign(self._key, self.me, kind, view, block)  # type: ignore[arg-type]
        self._own[view, kind] = vote
        self._effects.append(SaveVote(vote))
        self._add_vote(vote)
        return vote

    # --- proposals (rules "Propose", "Accept a proposal", "Notarize") -----------------------------------------------------

    def _is_leader(self) -> bool:
        return self.committee.leader(self.view) == self.me

    def _try_propose(self) -> None:
        view = self.view
        if not self._is_leader() or not self._may_sign(view):
            return
        if (view, "notarize") in self._own or (view, "nullify") in self._own:
            return
        parent = self._parent_for(view)
        if parent is None:
            return
        parent_id, parent_view, skips = parent
        height, time_ms, taken = self._above(parent_id)
        genesis = self.committee.genesis
        time_ms = max(self._wall_ms, time_ms + 1)
        change = self._change(parent_id)
        entries: list[Pending] = []
        if change is None:
            entries = self.mempool.fill(taken, genesis.max_block_txs, genesis.max_block_bytes, time_ms)
            change = next_change(self.committee, (e.tx for e in entries))
        if not entries and self._now < self._overdue_at():
            return
        raw = tuple(e.raw for e in entries)
        header = Header(
            genesis.chain_id,
            self.committee.epoch,
            view,
            height + 1,
            parent_id,
            parent_view,
            merkle.root(raw),
            len(raw),
            time_ms,
            self.committee.validators_hash,
            self._next_hash(change),
            self.me,  # type: ignore[arg-type]
        )
        block = Block(header, raw, skips)
        self._hold(_Held(block, header.id, tuple(entries), True, change))
        proposal = Proposal(block, self._certificate_of(parent_view), self._sign("notarize", view, header.id))
        self._proposals[view] = proposal
        self._waiting_since = self._now if self._waiting_since is None else self._waiting_since
        self._send(proposal)

    def _overdue_at(self) -> float:
        """From when on an empty block is proposed so that what is notarized becomes final."""
        return inf if self._waiting_since is None else self._waiting_since + self._timeout() / 4

    def _parent_for(self, view: int) -> tuple[bytes, int, tuple[Certificate, ...]] | None:
        """The highest notarized block that is held and may be the parent of `view`: (id, view, skips)."""
        for parent_view in sorted({self.tip.view, *self._notarizations}, reverse=True):
            skips = self._skips(parent_view, view)
            cert = self._notarizations.get(parent_view)
            parent_id = cert.block if cert else self.tip.id
            if parent_view >= view or skips is None or parent_id is None:
                continue
            if parent_id == self.tip.id or parent_id in self._held:
                return parent_id, parent_view, skips
        return None

    def _skips(self, parent_view: int, view: int) -> tuple[Certificate, ...] | None:
        """The nullifications that justify `parent_view` under `view`, or None if it is no legal parent."""
        skips = []
        for term, first in self.committee.covering_terms(parent_view, view):
            cert = self._nullifications.get(term)
            if cert is None or cert.view > first:
                return None
            skips.append(cert)
        legal = self.committee.is_legal_parent(parent_view, view, tuple(skips))
        return tuple(skips) if legal else None

    def _certificate_of(self, view: int) -> Certificate | None:
        final = self.tip.certificate
        return self._notarizations.get(view) or (final if final and final.view == view else None)

    def _change(self, parent_id: bytes) -> ChangeMembers | None:
        """What ends this epoch, if a held parent does; what is built on it is empty (rule "On top of it")."""
        parent = self._held.get(parent_id)
        return parent.change if parent else None

    def _next_hash(self, change: ChangeMembers | None) -> bytes:
        committee = self.committee
        return validators_hash(committee.genesis, change.members) if change else committee.validators_hash

    def _above(self, parent_id: bytes) -> tuple[int, int, set[bytes]]:
        """Height and time of a held parent, and the transaction ids of its unfinalized ancestry."""
        taken: set[bytes] = set()
        height, time_ms = self.tip.height, self.tip.time_ms
        held = self._held.get(parent_id)
        if held:
            height, time_ms = held.block.header.height, held.block.header.time_ms
        while held:
            taken.update(e.id for e in held.entries)
            held = self._held.get(held.block.header.parent)
        return height, time_ms, taken

    def _on_proposal(self, proposal: Proposal, src: int) -> None:
        header, vote = proposal.block.header, proposal.vote
        view, parent_cert = header.view, proposal.parent_cert
        known = self._proposals.get(view)
        if view <= self.tip.view or not self._is_ours(header):
            return
        if known and known.block.header == header:
            return
        leader_vote = ("notarize", view, header.id, self.committee.leader(view))
        if (vote.kind, vote.view, vote.block, vote.signer) != leader_vote or vote.signer == self.me:
            return
        if known:
            self._on_vote(vote)  # a second proposal of one view is evidence, no more
            return
        if not self._is_whole(proposal.block):
            return
        if parent_cert is None:
            if (header.parent, header.parent_view) != (self.committee.anchor.id, 0):
                return
        else:
            is_for_parent = (parent_cert.view, parent_cert.block) == (header.parent_view, header.parent)
            if (
                not is_for_parent
                or parent_cert.kind == "nullify"
                or not self._on_certificate(parent_cert, src)
            ):
                return
        for skip in proposal.block.skips:
            if not self._on_certificate(skip, src):
                return
        if view > self.view or not self.committee.is_valid_vote(vote):
            return
        self._proposals[view] = proposal
        self._on_vote(vote)
        self._connect(proposal.block, src)

    def _try_notarize(self) -> None:
        proposal = self._proposals.get(self.view)
        if proposal is None or not self._may_sign(self.view):
            return
        header = proposal.block.header
        held = self._held.get(header.id)
        if held is None or not held.is_valid or header.time_ms > self._wall_ms + DRIFT_MS:
            return
        if (self.view, "notarize") in self._own or (self.view, "nullify") in self._own:
            return
        vote = self._sign("notarize", self.view, header.id)
        self._send(Votes((vote,), None))

    # --- blocks ------------------------------------------------------------------------------------------------------------

    def _is_ours(self, header: Header) -> bool:
        """Chain, epoch and members are this core's, and the proposer leads its view."""
        return (
            header.chain_id == self.committee.genesis.chain_id
            and header.epoch == self.committee.epoch
            and header.validators_hash == self.committee.validators_hash
            and header.view > 0
            and header.proposer == self.committee.leader(header.view)
        )

    def _is_whole(self, block: Block) -> bool:
        """Whether the parts that the block id does not hash itself are the header's own: the transactions under `tx_root`, and
        the nullifications that prove the skipped views, each of which must hold by itself as they stay in the chain. No block
        from outside is kept under its id without this: its true body could never take the place of a false one."""
        header = block.header
        return (
            header.tx_count == len(block.txs)
            and self.committee.is_legal_parent(header.parent_view, header.view, block.skips)
            and all(map(self.committee.is_valid_certificate, block.skips))
            and header.tx_root == merkle.root(block.txs)
        )

    def _on_body(self, block: Block, src: int) -> None:
        """A block asked for; taken only if a certificate or a held child's link names it."""
        block_id = block.header.id
        is_wanted = block_id in self._asked and block_id not in self._held
        if is_wanted and self._is_ours(block.header) and self._is_whole(block):
            self._connect(block, src)

    def _connect(self, block: Block, src: int | None) -> None:
        """Hold the block once its parent is held, and then whatever waited for it. A work list, never recursion."""
        work = [block]
        while work:
            current = work.pop()
            header, block_id = current.header, current.header.id
            if block_id in self._held:
                continue
            if header.parent == self.tip.id and header.height == self.tip.height + 1:
                pass
            elif header.parent not in self._held:
                if header.height <= self.tip.height + 1:
                    if self._is_needed_for_final(block_id):
                        self._halt(f"the finalized block at height {header.height} is not on our chain")
                elif len(self._orphans) < MAX_ORPHANS:
                    self._orphans[block_id] = current
                    self._need(header.parent, src)
                continue
            self._hold(self._judge(current, block_id))
            for waiting_id, waiting in list(self._orphans.items()):
                if waiting.header.parent == block_id:
                    work.append(self._orphans.pop(waiting_id))

    def _is_needed_for_final(self, block_id: bytes) -> bool:
        """Whether the pending finalization rests on this block, as far as the waiting blocks show."""
        wanted = self._finalization.block if self._finalization else None
        while wanted is not None and wanted != block_id:
            waiting = self._orphans.get(wanted)
            wanted = waiting.header.parent if waiting else None
        return wanted is not None

    def _judge(self, block: Block, block_id: bytes) -> _Held:
        """Check everything about a connected block that does not depend on the clock (rule "Notarize")."""
        header, genesis = block.header, self.committee.genesis
        height, time_ms, taken = self._above(header.parent)
        entries = [is_admissible(self.mempool, raw, header.time_ms) for raw in block.txs]
        admitted = tuple(e for e in entries if e)
        ids = {e.id for e in admitted}
        inherited = self._change(header.parent)
        change = inherited or next_change(self.committee, (e.tx for e in admitted))
        is_valid = (
            len(admitted) == len(block.txs) == len(ids) <= genesis.max_block_txs
            and sum(map(len, block.txs)) <= genesis.max_block_bytes
            and header.height == height + 1
            and header.time_ms > time_ms
            and ids.isdisjoint(taken)
            and self._parent_view_is(header)
            and header.next_validators_hash == self._next_hash(change)
            and not (inherited and block.txs)
        )
        return _Held(block, block_id, admitted, is_valid, change)

    def _parent_view_is(self, header: Header) -> bool:
        parent = self._held.get(header.parent)
        return header.parent_view == (parent.block.header.view if parent else self.tip.view)

    def _hold(self, held: _Held) -> None:
        self._held[held.id] = held
        self._asked.pop(held.id, None)
        self._effects.append(SaveBlock(held.block))

    def _need(self, block_id: bytes | None, src: int | None) -> None:
        """Ask `src` for a block that is not held, at most once in half a status interval. When no one has shown to have
        it (votes outran the proposal), note it only: the next status tick asks everybody."""
        if block_id is None or block_id in self._held or block_id in self._orphans or block_id == self.tip.id:
            return
        if src is None:
            self._asked.setdefault(block_id, self._now)
        elif self._now - self._asked.get(block_id, -MAX_TIMEOUT) >= STATUS_BUSY / 2:
            self._asked[block_id] = self._now
            self._send(Want(block_id), src)

    def _ask_again(self) -> None:
        missing = {b.header.parent for b in self._orphans.values()}
        certificates = [*self._notarizations.values(), *([self._finalization] if self._finalization else [])]
        missing.update(c.block for c in certificates[-2:] if c.block)
        for block_id in sorted(missing - self._held.keys() - self._orphans.keys() - {self.tip.id}):
            self._asked[block_id] = self._now
            self._send(Want(block_id))

    # --- finality (rules "On Q notarize", "On Q finalize") -----------------------------------------------------------------

    def _try_finalize_votes(self) -> None:
        signed = []
        for view, cert in sorted(self._notarizations.items()):
            if (view, "finalize") in self._own or cert.block is None or not self._may_sign(view):
                continue
            held = self._held.get(cert.block)
            notarized = self._own.get((view, "notarize"))
            if held is None or not held.is_valid or (notarized and notarized.block != cert.block):
                continue
            if self._covers(view) or self._has_nullified_up_to(view):
                continue
            signed.append(self._sign("finalize", view, cert.block))
        for start in range(0, len(signed), 64):
            self._send(Votes(tuple(signed[start : start + 64]), None))

    def _has_nullified_up_to(self, view: int) -> bool:
        """Rule F: an own nullify(u) with u <= view in the same term forbids finalize(view)."""
        first = self.committee.term_start(self.committee.term(view))
        if self.abstain_until is None or first <= self.abstain_until <= view:
            return True  # the lost journal may hold a nullify of that very view
        return any((u, "nullify") in self._own for u in range(first, view + 1))

    def _commit(self) -> None:
        """Finalize the block of the pending finalization and all its ancestors, once they are held. Nothing on top of a block that
        ends the epoch comes into the chain."""
        cert = self._finalization
        if cert is None or cert.block is None or cert.block not in self._held:
            return
        path: list[_Held] = []
        held = self._held.get(cert.block)
        while held:
            path.append(held)
            held = self._held.get(held.block.header.parent)
        path.reverse()
        for held in path:
            if not held.is_valid:
                return self._halt(f"the finalized block at height {held.block.header.height} is not valid")
        final = [h for h in path if not self._change(h.block.header.parent)]
        links = tuple(h.block.header for h in path[len(final) :])
        self._finish([(h.block, h.entries) for h in final], links, cert)

    def _finish(
        self, blocks: list[tuple[Block, tuple[Pending, ...]]], links: tuple[Header, ...], cert: Certificate
    ) -> None:
        """Move the tip over `blocks`, which together with `links` lead from it to the block that `cert` finalizes."""
        for block, entries in blocks:
            self.mempool.finalize(list(entries), block.header.time_ms)
            self._final_ids.append((block.header.view, block.header.id))
        first, last = blocks[0][0].header, blocks[-1][0].header
        self._fresh.append((first.height, first.view, self._now))
        self.tip = Tip(last.id, last.view, last.height, last.time_ms, cert)
        if self._finalization and self._finalization.view <= cert.view:
            self._finalization = None
        self._effects.append(Finalized(tuple(blocks), cert))
        if last.next_validators_hash != self.committee.validators_hash:
            return self._end_epoch(last, blocks[-1][1], links, cert)
        self._backoff, self.deadline = 0, None
        self._enter(cert.view + 1)
        self._prune()

    def _end_epoch(
        self, last: Header, entries: tuple[Pending, ...], links: tuple[Header, ...], cert: Certificate
    ) -> None:
        """Hand over to the members that the last block names (rule "Hand over").

        A lost journal may hold votes of the next epoch, unless the last block came in a view of which the abstention had shown that the
        member had never been there: then it had not seen the end of this epoch either. In doubt it asks again (rule "Rejoin").
        """
        change = next_change(self.committee, (e.tx for e in entries))
        if change is None or self._next_hash(change) != last.next_validators_hash:
            return self._halt(f"the block at height {last.height} names members that no change in it names")
        self._effects.append(EpochEnded(Handover(last, links, cert, change)))
        is_whole = self.abstain_until is not None and last.view > self.abstain_until
        if self.abstain_until != 0:
            self.abstain_until = 0 if is_whole else None
            self._effects.append(SaveAbstention(self.abstain_until))
        self.next_committee = successor(self.committee, last, change.members)

    def next_epoch(self, key: Ed25519Signer | None) -> "Core":
        """The engine of the epoch after this one, which must be over; `key` is the member's key in it, which may be a new one."""
        assert self.next_committee
        restored = Restored(anchor_tip(self.next_committee), abstain_until=self.abstain_until)
        committee, mempool = self.next_committee, self.mempool
        return type(self)(committee, key, mempool, restored, self._now, self._wall_ms, self._nonce)

    def _prune(self) -> None:
        """Forget what lies at or below the tip's view or no longer descends from the tip."""
        view, first = self.tip.view, self._votes_from()
        term = self.committee.term(view)
        if first > self._forgotten:
            self._forgotten = first
            self._own = {k: v for k, v in self._own.items() if k[0] > first}
            self._votes = {k: v for k, v in self._votes.items() if k[0] > first}
        self._notarizations = {v: c for v, c in self._notarizations.items() if v > view}
        self._nullifications = {t: c for t, c in self._nullifications.items() if t >= term}
        self._accused = {k for k in self._accused if k[0] > view}
        self._proposals = {v: p for v, p in self._proposals.items() if v > view}
        self._orphans = {i: b for i, b in self._orphans.items() if b.header.height > self.tip.height + 1}
        self._asked = {i: t for i, t in self._asked.items() if self._now - t < MAX_TIMEOUT}
        connected: dict[bytes, _Held] = {}
        for held in sorted(self._held.values(), key=lambda h: h.block.header.height):
            parent = held.block.header.parent
            if parent == self.tip.id or parent in connected:
                connected[held.id] = held
        self._held = connected
        self._waiting_since = self._now if self._notarizations else None

    # --- timeouts (rule "Timeout") -------------------------------------------------------------------------------------------

    def _timeout(self) -> float:
        return min(self._t0 * 2.0**self._backoff, MAX_TIMEOUT)

    def _has_work(self) -> bool:
        unfinished = self._finalization is not None or any(v > self.tip.view for v in self._notarizations)
        return len(self.mempool) > 0 or unfinished or self.view in self._proposals

    def _try_nullify(self) -> None:
        if not self._has_work():
            self.deadline = None
            return
        if self.deadline is None:
            self.deadline = self._now + self._timeout()
        if self._now < self.deadline or not self._may_sign(self.view):
            return
        view = self.view
        term = self.committee.term(view)
        finalized_later = any(
            kind == "finalize" and v >= view and self.committee.term(v) == term for v, kind in self._own
        )
        if (view, "nullify") in self._own or finalized_later:
            return
        vote = self._sign("nullify", view, None)
        highest = (
            self._notarizations[max(self._notarizations)] if self._notarizations else self.tip.certificate
        )
        self._send(Votes((vote,), highest))

    # --- anti-entropy (rule "Status") ------------------------------------------------------------------------------------------

    def _on_status(self, status: Status, src: int) -> None:
        if status.epoch < self.committee.epoch:
            if status.height < self.tip.height:  # otherwise it lies: the end of its epoch stands above it
                self._serve(src, status.height + 1)
            return
        if status.epoch > self.committee.epoch:
            return self._send_status_to(src)
        for cert in (status.finalization, status.notarization, status.nullification):
            if cert and not self._on_certificate(cert, src):
                return
        for vote in status.votes:
            self._on_vote(vote)
        if status.height < self.tip.height:
            if not self._is_on_its_way(status):
                self._serve(src, status.height + 1)
        elif status.height > self.tip.height:
            self._send_status_to(src)
        elif self._finalization:
            self._need(self._finalization.block, src)

    def _is_on_its_way(self, status: Status) -> bool:
        """Whether the next block has only just become final here, and the sender had gone on from its view: it has the block, and the votes
        that make it final are coming. If not, its next status says so."""
        while self._fresh and self._now - self._fresh[0][2] >= STATUS_BUSY:
            self._fresh.popleft()
        views = [view for height, view, _ in self._fresh if height <= status.height + 1]
        return bool(views) and status.view > views[-1]

    def _serve(self, to: int, height: int) -> None:
        """At most one page per member and step: a liar may ask for every height at once."""
        is_served = any(isinstance(e, ServeChain) and e.to == to for e in self._effects)
        if not is_served and self._is_due("chain", to, height):
            self._effects.append(ServeChain(to, height))

    def _send_status_to(self, to: int) -> None:
        """Tell a peer that is ahead where we are, so that it sends the next page."""
        if self._is_due("status", to, self.tip.height):
            self._send(self._status(), to)

    def _is_due(self, what: str, to: int, height: int) -> bool:
        """Limit answers to one per member, height and status interval."""
        if self._now - self._last.get((what, to, height), -MAX_TIMEOUT) < STATUS_BUSY:
            return False
        self._last = {k: t for k, t in self._last.items() if self._now - t < STATUS_BUSY}
        self._last[what, to, height] = self._now
        return True

    def _on_chain(self, page: Chain, src: int) -> None:
        """A page of catch-up: hash links from our tip to the header that a valid finalization names."""
        blocks = [b for b in page.blocks if b.header.height > self.tip.height]
        if not blocks or page.finalization.kind != "finalize" or page.finalization.view <= self.tip.view:
            return
        headers = [b.header for b in blocks] + list(page.links)
        if page.finalization.block != headers[-1].id or not all(self._is_ours(h) for h in headers):
            return
        if not all(b.parent == a.id and b.height == a.height + 1 for a, b in pairwise(headers)):
            return
        if not self.committee.is_valid_certificate(page.finalization) or not all(map(self._is_whole, blocks)):
            return
        if headers[0].parent != self.tip.id:
            if headers[0].height == self.tip.height + 1:
                self._halt(f"the finalized block at height {headers[0].height} is not on our chain")
            return
        try:
            parsed = [(b, tuple(self.mempool.verify(raw) for raw in b.txs)) for b in blocks]
        except DiptychError as error:
            return self._halt(f"a finalized block carries an invalid transaction ({error})")
        is_end = [b.header.next_validators_hash != self.committee.validators_hash for b in blocks]
        if any(is_end[:-1]):
            return
        self._effects.extend(SaveBlock(b) for b in blocks)
        self._finish(parsed, page.links, page.finalization)
        if self.halted:
            return
        if page.links and self._finalization is None and not self.next_committee:
            # Only a descendant of the last block is certified itself: that finalization stays pending.
            self._finalization = page.finalization
            self._effects.append(SaveCertificate(page.finalization))
        self._send_status_to(src)

    def _repeat_proposal(self) -> None:
        """The leader says its current proposal again, in case it was lost."""
        vote = self._own.get((self.view, "notarize"))
        if self._is_leader() and vote and vote.block in self._held:
            block = self._held[vote.block].block
            self._send(Proposal(block, self._certificate_of(block.header.parent_view), vote))

    # --- the step ------------------------------------------------------------------------------------------------------------

    def _clock(self, now: float, wall_ms: int) -> bool:
        self._now, self._wall_ms = max(now, self._now), wall_ms
        return self.halted is None and self.next_committee is None

    def _progress(self) -> None:
        """Carry out every rule that has become possible, until nothing changes."""
        before = None
        while before != (state := (self.view, self.tip.height, len(self._own), len(self._held))):
            before = state
            if self.halted or self.next_committee:
                return
            self._commit()
            if self.halted or self.next_committee:
                return
            self._try_finalize_votes()
            self._try_nullify()
            self._try_propose()
            self._try_notarize()
        if self._has_work():  # what is lost from now on must not wait for the slow beat of an idle chain
            self._status_at = min(self._status_at, self._now + STATUS_BUSY)

    def _send(self, message: Message, to: int | None = None) -> None:
        self._effects.append(Send(to, message))

    def _halt(self, reason: str) -> None:
        self.halted = f"chain {self.committee.genesis.chain_id} is halted: {reason}; more members lie than the mode bears"
        self._effects.append(Halted(self.halted))

    def _restore(self, restored: Restored) -> None:
        """Rule "Restart": blocks, certificates and own votes above the tip; the view follows from them."""
        for evidence in (e for e in restored.evidence if e.epoch == self.committee.epoch):
            key = (evidence.first.signer, evidence.kind)
            self._convicted.setdefault(key, set()).add(_pair(evidence))
        self.mempool.finalize(restored.final_txs, self.tip.time_ms)
        for block in sorted(restored.blocks, key=lambda b: b.header.height):
            self._connect(block, None)
        for cert in sorted(restored.certificates, key=lambda c: c.view):
            if cert.view > self.tip.view:
                self._certified(cert, None)
        for vote in restored.votes:
            self._own[vote.view, vote.kind] = vote
            if vote.view > self.tip.view:
                self._votes[vote.view, vote.kind, vote.signer] = vote
                self._enter(vote.view)
        self._backoff, self.deadline = 0, None
        self.halted = restored.halted or self.halted
        self._effects.clear()


def _pair(evidence: Evidence) -> tuple[int, bytes | None, int, bytes | None]:
    """What tells two pieces of evidence apart; signatures do not, as their maker can vary them."""
    first, second = evidence.first, evidence.second
    return first.view, first.block, second.view, second.block


def anchor_tip(committee: Committee) -> Tip:
    """What an epoch builds on is its view 0, notarized and finalized by definition."""
    anchor = committee.anchor
    return Tip(anchor.id, 0, anchor.height, anchor.time_ms, None)
