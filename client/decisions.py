"""Second persons: who decides on requests that wait, who reviews emergency accesses, and for whom somebody acts as a proxy."""

from dataclasses import dataclass
from typing import Literal

from client.session import KINDS, Session
from client.web import now_ms
from crypto.errors import DiptychError, NotFound, Unauthentic
from crypto.policy import parse
from protocol.contract import Pending, Proxy, Receipt
from protocol.identity import ChainKind
from protocol.tx import Decide, Review

Standing = Literal["patient", "proxy", "approver"]


@dataclass(frozen=True)
class Task:
    """Something that waits for this person, who may act in it as `standing`. `reason`: why the glass was broken, in the words that are
    sealed to the patient; None for anybody else."""

    kind: ChainKind
    pending: Pending
    what: Literal["decide", "review"]
    standing: Standing
    reason: str | None


class Decisions:
    def __init__(self, session: Session) -> None:
        self._session, self._home = session, session.home
        self._me = session.home.sign.public

    def pending(self) -> list[Task]:
        """What waits on both chains for this person as a patient, a proxy, or an approver; what has expired is left out."""
        self._session.progress("asking both chains what waits")
        found = self._session.on_chains(self._pending)
        return [task for tasks in found for task in tasks]

    def _pending(self, kind: ChainKind) -> list[Task]:
        chain, now = self._session.chains[kind], now_ms()
        patients: dict[bytes, Standing] = {
            ward.patient: "proxy"
            for ward in chain.wards_of(self._me)
            if "decide" in ward.powers and ward.from_ms <= now < ward.until_ms
        }
        patients[self._me] = "patient"
        tasks: dict[bytes, Task] = {}
        for patient, standing in patients.items():
            waiting, reviews = chain.inbox_of(patient)
            for pending in waiting:
                tasks[pending.request] = self._task(kind, pending, "decide", standing)
            for pending in reviews:
                tasks[pending.request] = self._task(kind, pending, "review", standing)
        for pending in chain.waiting():
            if pending.request not in tasks and self._may_approve(kind, pending):
                tasks[pending.request] = self._task(kind, pending, "decide", "approver")
        return [
            task
            for task in tasks.values()
            if task.what == "review" or (now < task.pending.expires_ms and task.pending.requester != self._me)
        ]

    def _task(
        self, kind: ChainKind, pending: Pending, what: Literal["decide", "review"], standing: Standing
    ) -> Task:
        reason = None
        if pending.emergency is not None and standing == "patient":
            try:
                reason = self._home.seal.open(pending.emergency.note, "the reason").decode()
            except (Unauthentic, UnicodeDecodeError):
                reason = "(the reason was not sealed to you, and cannot be read)"
        return Task(kind, pending, what, standing, reason)

    def _may_approve(self, kind: ChainKind, pending: Pending) -> bool:
        """As the contract decides it (`protocol.contract`)."""
        try:
            rule = self._session.chains[kind].verified_record(pending.record).rule
        except NotFound:
            return False
        if rule is None or self._me in rule.deny:
            return False
        wanted = rule.emergency if pending.purpose == "emergency" else rule.approval
        attributes = self._home.credential.credential.attributes
        return wanted is not None and parse(wanted).satisfied(attributes)

    def decide(self, request: bytes, allow: bool) -> tuple[ChainKind, Receipt]:
        """Say yes or no to a request that waits; the receipt says whether the contract took it."""
        return self._say(request, Decide(request, allow))

    def review(self, request: bytes, verdict: Literal["justified", "contested"]) -> tuple[ChainKind, Receipt]:
        """The patient's word on an emergency access."""
        return self._say(request, Review(request, verdict))

    def _say(self, request: bytes, action: Decide | Review) -> tuple[ChainKind, Receipt]:
        kind = self._chain_of(request)
        self._session.progress(f"telling the {kind} chain")
        return kind, self._session.chains[kind].send(self._home.sign, action)

    def _chain_of(self, request: bytes) -> ChainKind:
        """The chain on which a request was made."""
        trouble: DiptychError | None = None
        for kind in KINDS:
            try:
                self._session.chains[kind].verified_receipt(request)
                return kind
            except NotFound as error:
                trouble = trouble or error
            except DiptychError as error:
                trouble = error
        raise trouble or NotFound("no chain knows this request")

    def wards(self) -> list[Proxy]:
        """For whom this person may act, as the sharing chain says."""
        return self._session.chains["sharing"].wards_of(self._me)
