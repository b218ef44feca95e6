"""A second, simpler contract, written from docs/contract.md: what `protocol.contract` must answer, and what its state must say then.

It keeps plain facts only. Everything that the real state lists twice (inboxes, grants by reader, tags, ...) it works out from them when it is
asked for its `view`. Policies are functions on attributes, index entries and credentials are right if they are the ones that a right
maker would have made.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from crypto.codec import encode
from crypto.errors import DiptychError
from protocol import contract
from protocol.identity import Credential, SignedCredential
from protocol.record import decode_deletion_receipt, digest
from protocol.state import StateReader
from protocol.tx import (
    Action,
    Attest,
    Certify,
    Decide,
    Emergency,
    Erase,
    Publish,
    Request,
    Retire,
    Review,
    Revoke,
    Rule,
    SetProxy,
    Tx,
)
from tests.dealer import sealed
from tests.protocol.contract_world import AUTHORITY, GENESIS

POLICIES: dict[str, Callable[[Collection[str]], bool]] = {
    "role:user": lambda held: "role:user" in held,
    "role:doctor or org:lab": lambda held: "role:doctor" in held or "org:lab" in held,
    "org:lab and role:user": lambda held: "org:lab" in held and "role:user" in held,
    "2 of (a:x, role:user, org:lab)": lambda held: len({"a:x", "role:user", "org:lab"} & set(held)) >= 2,
    "role:nobody": lambda held: False,
}
"""Every other text that the histories use does not parse."""

HOUR, WEEK, TEN_MINUTES = 3_600_000, 604_800_000, 600_000
SUCCESSES = [
    *("certified", "revoked-now", "attested", "published", "retired-now", "erased-now", "waiting", "allowed"),
    *("emergency-allowed", "declined", "reviewed", "proxy-set", "proxy-ended"),
]
"""With "-now" where the contract uses the same code for a success and a refusal."""


class No(Exception):
    """Refused with this code."""


@dataclass
class Record:
    patient: bytes
    doctor: bytes
    status: str = "attested"
    version: int = 0
    commit: bytes = bytes(32)
    rule: Rule | None = None
    tags: tuple[bytes, ...] = ()
    replaced_by: bytes | None = None


@dataclass
class Asked:
    """A request that waits, or an emergency access under review."""

    tx: bytes
    record: bytes
    version: int
    patient: bytes
    requester: bytes
    purpose: str
    emergency: Emergency | None
    time: int
    until: int
    second: bytes | None = None


@dataclass
class Model:
    people: dict[bytes, Credential] = field(default_factory=dict)
    revoked: set[bytes] = field(default_factory=set)
    records: dict[bytes, Record] = field(default_factory=dict)
    waiting: dict[bytes, Asked] = field(default_factory=dict)
    reviews: dict[bytes, Asked] = field(default_factory=dict)
    grants: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)
    proxies: dict[tuple[bytes, bytes], tuple[Any, ...]] = field(default_factory=dict)
    uses: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    logs: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    now: int = 0

    def apply(self, tx: Tx, time: int) -> tuple[bool, str, bytes | None, str | None, bytes | None]:
        """Success, code, record, purpose and request, as the receipt must have them."""
        self.now = time
        sender, action = tx.body.sender, tx.body.action
        record, purpose, request = self._about(action)
        try:
            code = self._do(tx.id, sender, action)
            ok = True
        except No as no:
            code, ok = str(no), False
        assert not ok or code in SUCCESSES
        return ok, code.removesuffix("-now"), record if record in self.records else None, purpose, request

    def log(self, receipt: contract.Receipt) -> None:
        if receipt.record is not None:
            count, last = self.logs.get(receipt.record, (0, bytes(32)))
            self.logs[receipt.record] = count + 1, digest("record-log", last + encode(receipt))

    def _about(self, action: Action) -> tuple[bytes | None, str | None, bytes | None]:
        if isinstance(action, Attest | Publish | Retire | Erase):
            return action.record, None, None
        if isinstance(action, Request):
            return action.record, action.purpose, None
        if isinstance(action, Decide | Review):
            asked = self.waiting.get(action.request) or self.reviews.get(action.request)
            return (asked.record, asked.purpose, asked.tx) if asked else (None, None, action.request)
        return None, None, None

    def _do(self, tx: bytes, me: bytes, action: Action) -> str:
        match action:
            case Certify(signed):
                return self._certify(me, signed)
            case Revoke(subject):
                need(me == AUTHORITY.public, "not-authority")
                need(subject in self.people, "unknown-person")
                self.revoked.add(subject)
                return "revoked-now"
            case Attest():
                self._alive(me, "doctor")
                self._alive(action.patient, "patient")
                need(action.record not in self.records, "record-exists")
                self.records[action.record] = Record(action.patient, me)
                return "attested"
            case Publish():
                return self._publish(me, action)
            case Retire(record, replaced_by):
                mine = self._mine(me, record)
                need(mine.status != "retired", "retired")
                if replaced_by is not None:
                    other = self.records.get(replaced_by)
                    is_fit = other and other.patient == me and other.status in ("attested", "published")
                    need(is_fit and replaced_by != record, "bad-replacement")
                mine.status, mine.rule, mine.tags, mine.replaced_by = "retired", None, (), replaced_by
                self.uses.pop(record, None)
                return "retired-now"
            case Erase(record, deletion):
                self._mine(me, record)
                try:
                    told = decode_deletion_receipt(deletion)
                    need((told.record, told.before) == (record, None), "bad-deletion")
                except DiptychError:
                    raise No("bad-deletion") from None
                self.records[record] = Record(bytes(32), bytes(32), "erased")
                self.uses.pop(record, None)
                return "erased-now"
            case Request():
                return self._request(tx, me, action)
            case Decide():
                return self._decide(me, action)
            case Review(request, _):
                self._alive(me)
                need(request in self.reviews, "unknown-request")
                asked = self.reviews[request]
                need(self._acts(me, asked.patient, "decide"), "not-owner")
                need(me == asked.patient or me not in (asked.requester, asked.second), "own-request")
                del self.reviews[request]
                return "reviewed"
            case SetProxy():
                return self._set_proxy(me, action)
        raise AssertionError(action)

    def _certify(self, me: bytes, signed: SignedCredential) -> str:
        need(me == AUTHORITY.public, "not-authority")
        plain = signed.credential
        need(signed == SignedCredential.issue(plain, AUTHORITY), "bad-credential")
        need(plain.not_before_ms <= self.now < plain.not_after_ms, "bad-credential")
        need(plain.subject not in self.revoked, "revoked")
        self.people[plain.subject] = plain
        return "certified"

    def _alive(self, key: bytes, role: str | None = None) -> Credential:
        need(key in self.people, "not-certified")
        need(key not in self.revoked, "revoked")
        person = self.people[key]
        need(person.not_before_ms <= self.now < person.not_after_ms, "credential-expired")
        need(role in (None, person.role), "wrong-role")
        return person

    def _mine(self, me: bytes, record: bytes) -> Record:
        self._alive(me, "patient")
        need(record in self.records, "not-attested")
        need(self.records[record].status != "erased", "erased")
        need(self.records[record].patient == me, "not-owner")
        return self.records[record]

    def _publish(self, me: bytes, action: Publish) -> str:
        mine, rule = self._mine(me, action.record), action.rule
        need(mine.status != "retired", "retired")
        need(action.version == mine.version + 1, "wrong-version")
        need({rule.policy, rule.approval, rule.emergency} <= {None, *POLICIES}, "bad-policy")
        need(rule.purposes and "emergency" not in rule.purposes, "bad-rule")
        need(None in (rule.from_ms, rule.until_ms) or rule.from_ms < rule.until_ms, "bad-rule")
        need(all(a < b for a, b in zip(action.tags, action.tags[1:], strict=False)), "bad-tags")
        right = sealed(GENESIS, action.record, action.version, rule)
        need(action.sealed_index == right, "bad-index")
        mine.status, mine.version, mine.commit = "published", action.version, action.commit
        mine.rule, mine.tags = rule, action.tags
        return "published"

    def _acts(self, key: bytes, patient: bytes, power: str) -> bool:
        return key == patient or self._proxy_until(key, patient, power) is not None

    def _proxy_until(self, key: bytes, patient: bytes, power: str) -> int | None:
        powers, start, end = self.proxies.get((patient, key), ((), 0, 0))
        is_now = power in powers and start <= self.now < end and patient not in self.revoked
        return end if is_now else None

    def _access(self, record: bytes, key: bytes, purpose: str) -> tuple[bool, int]:
        """Whether it is the patient's own wish, and when it ends at the latest."""
        person = self._alive(key)
        found = self.records.get(record)
        status = found.status if found else "unknown"
        need(status != "erased", "erased")
        need(status != "retired", "retired")
        need(found is not None and found.rule is not None, "unknown-record")
        assert found is not None
        assert found.rule is not None
        rule = found.rule
        need(key not in rule.deny, "denied-by-patient")
        if purpose == "emergency":
            need(rule.emergency is not None, "no-emergency")
            need(POLICIES[str(rule.emergency)](person.attributes), "emergency-not-met")
            return False, person.not_after_ms
        if purpose == "patient-request" and self._acts(key, found.patient, "read"):
            proxy_end = self._proxy_until(key, found.patient, "read")
            return True, min(person.not_after_ms, proxy_end or person.not_after_ms)
        need(rule.from_ms is None or self.now >= rule.from_ms, "rule-not-yet")
        need(rule.until_ms is None or self.now < rule.until_ms, "rule-expired")
        need(purpose in rule.purposes, "wrong-purpose")
        need(POLICIES[rule.policy](person.attributes), "policy-not-met")
        need(rule.uses is None or self._used(record, rule) < rule.uses, "used-up")
        return False, min(
            person.not_after_ms, person.not_after_ms if rule.until_ms is None else rule.until_ms
        )

    def _used(self, record: bytes, rule: Rule) -> int:
        counted, count = self.uses.get(record, (b"", 0))
        return count if counted == rule.digest else 0

    def _request(self, tx: bytes, me: bytes, action: Request) -> str:
        is_own, _ = self._access(action.record, me, action.purpose)
        is_emergency = action.purpose == "emergency"
        need(is_emergency == (action.emergency is not None), "bad-request")
        found = self.records[action.record]
        assert found.rule is not None
        asked = Asked(
            tx,
            action.record,
            found.version,
            found.patient,
            me,
            action.purpose,
            action.emergency,
            self.now,
            self.now + (HOUR if is_emergency else WEEK),
        )
        if not is_emergency and (is_own or found.rule.approval is None):
            return self._grant(asked)
        for earlier in [a for a in self.waiting.values() if (a.record, a.requester) == (action.record, me)]:
            is_same = (earlier.version, earlier.purpose) == (found.version, action.purpose)
            need(not is_same or self.now >= earlier.until, "already-waiting")
            del self.waiting[earlier.tx]
        self.waiting[tx] = asked
        return "waiting"

    def _decide(self, me: bytes, action: Decide) -> str:
        person = self._alive(me)
        need(action.request in self.waiting, "unknown-request")
        asked = self.waiting[action.request]
        need(me != asked.requester, "own-request")
        rule = self.records[asked.record].rule
        wanted = rule and me not in rule.deny and (rule.emergency if asked.emergency else rule.approval)
        is_named = bool(wanted) and POLICIES[str(wanted)](person.attributes)
        need(self._acts(me, asked.patient, "decide") or is_named, "not-approver")
        if not action.allow:
            del self.waiting[asked.tx]
            return "declined"
        self._access(asked.record, asked.requester, asked.purpose)
        is_current = self.records[asked.record].version == asked.version and self.now < asked.until
        need(is_current, "request-expired")
        del self.waiting[asked.tx]
        if asked.emergency:
            asked.second = me
            self.reviews[asked.tx] = asked
        return self._grant(asked)

    def _grant(self, asked: Asked) -> str:
        is_own, end = self._access(asked.record, asked.requester, asked.purpose)
        found = self.records[asked.record]
        assert found.rule is not None
        end = min(end, self.now + (HOUR if asked.emergency else TEN_MINUTES))
        ticket = (asked.tx, asked.record, found.version, found.commit, asked.requester, asked.purpose, end)
        self.grants[asked.tx] = ticket
        if asked.emergency:
            return "emergency-allowed"
        if found.rule.uses is not None and not is_own:
            self.uses[asked.record] = found.rule.digest, self._used(asked.record, found.rule) + 1
        return "allowed"

    def _set_proxy(self, me: bytes, action: SetProxy) -> str:
        self._alive(me, "patient")
        if not action.powers:
            need((me, action.proxy) in self.proxies, "unknown-proxy")
            del self.proxies[me, action.proxy]
            return "proxy-ended"
        self._alive(action.proxy)
        need(
            me != action.proxy and action.powers in [("decide",), ("read",), ("decide", "read")], "bad-proxy"
        )
        need(action.from_ms < action.until_ms and self.now < action.until_ms, "bad-proxy")
        self.proxies[me, action.proxy] = action.powers, action.from_ms, action.until_ms
        return "proxy-set"

    def view(self) -> dict[str, Any]:
        """What the state must say, with all its lists."""
        asked = {**self.waiting, **self.reviews}
        return {
            "people": {key: (person, key in self.revoked) for key, person in self.people.items()},
            "records": {key: vars(record) for key, record in self.records.items()},
            "waiting": {tx: vars(a) for tx, a in self.waiting.items()},
            "reviews": {tx: vars(a) for tx, a in self.reviews.items()},
            "grants": self.grants,
            "proxies": self.proxies,
            "uses": self.uses,
            "logs": self.logs,
            "of": {(r.patient, key) for key, r in self.records.items() if r.status != "erased"},
            "granted": {(ticket[4], tx) for tx, ticket in self.grants.items()},
            "inbox": {(a.patient, tx) for tx, a in asked.items()},
            "ward": {(proxy, patient) for patient, proxy in self.proxies},
            "tag": {(tag, key) for key, r in self.records.items() for tag in r.tags},
            "one waiting": {(a.record, a.requester): tx for tx, a in self.waiting.items()},
        }


def need(holds: object, code: str) -> None:
    if not holds:
        raise No(code)


def observe(state: dict[bytes, bytes], reader: StateReader) -> dict[str, Any]:
    """The same of a real state: of every key, and nothing left over."""
    view: dict[str, Any] = {name: {} for name in Model().view()}
    for name in ("of", "granted", "inbox", "ward", "tag"):
        view[name] = set()
    for key, value in state.items():
        kind, _, name = key.partition(b"/")
        match kind:
            case b"person":
                person = contract.get_person(reader, name)
                assert person is not None
                view["people"][name] = person.signed.credential, person.is_revoked
            case b"record":
                entry = contract.get_record(reader, name)
                assert entry is not None
                shown = Record(
                    entry.patient,
                    entry.doctor,
                    entry.status,
                    entry.version,
                    entry.commit,
                    entry.rule,
                    entry.tags,
                    entry.replaced_by,
                )
                view["records"][name] = vars(shown)
                assert bool(entry.sealed_index) == (entry.status == "published")
                assert bool(entry.deletion) == (entry.status == "erased")
            case b"pending" | b"review":
                p = contract.decode_pending(value)
                facts = (
                    p.version,
                    p.patient,
                    p.requester,
                    p.purpose,
                    p.emergency,
                    p.time_ms,
                    p.expires_ms,
                    p.second,
                )
                view["waiting" if kind == b"pending" else "reviews"][name] = vars(
                    Asked(p.request, p.record, *facts)
                )
            case b"grant":
                t = contract.decode_ticket(value)
                assert t.chain_id == GENESIS.chain_id
                view["grants"][name] = (
                    t.request,
                    t.record,
                    t.version,
                    t.commit,
                    t.requester,
                    t.purpose,
                    t.expires_ms,
                )
            case b"proxy":
                proxy = contract.decode_proxy(value)
                assert name == proxy.patient + proxy.proxy
                view["proxies"][proxy.patient, proxy.proxy] = proxy.powers, proxy.from_ms, proxy.until_ms
            case b"uses":
                uses = contract.decode_uses(value)
                view["uses"][name] = uses.rule, uses.count
            case b"log":
                head = contract.decode_log_head(value)
                view["logs"][name] = head.count, head.digest
            case b"of" | b"granted" | b"inbox" | b"ward" | b"tag":
                assert value == contract.LISTED
                view[kind.decode()].add((name[:32], name[32:]))
            case b"waiting":
                view["one waiting"][name[:16], name[16:]] = value
            case _:
                assert kind == b"index-key", f"a key that the model does not know: {key!r}"
    return view
