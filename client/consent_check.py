"""What is wrong with a rule, said before the patient signs it: that the contract will refuse it, or that nobody can ever satisfy it."""

from collections.abc import Sequence

from crypto import policy
from crypto.errors import PolicyError
from crypto.policy import Policy
from protocol.identity import Credential
from protocol.tx import Rule


def warnings(rule: Rule, people: Sequence[Credential], now_ms: int) -> list[str]:
    """One sentence for each fault of `rule`, at `now_ms` on a chain where these `people` are certified and not revoked; none if it
    opens the record to somebody.

    Who is certified may change, so what nobody satisfies now somebody may satisfy later; but a rule that ends before it begins, or
    has ended, or does not parse stays as it is.
    """
    current = [p for p in people if now_ms < p.not_after_ms]
    return [*_of_form(rule), *_of_times(rule, now_ms), *_of_people(rule, current)]


def _of_form(rule: Rule) -> list[str]:
    found = []
    for what, text in (("policy", rule.policy), ("approval", rule.approval), ("emergency", rule.emergency)):
        try:
            if text is not None:
                policy.parse(text)
        except PolicyError as error:
            found.append(f"the contract will refuse this rule, as its {what} does not parse: {error}")
    if not rule.purposes:
        found.append("the contract will refuse this rule, as it allows no purpose; name at least one")
    if "emergency" in rule.purposes:
        found.append(
            "the contract will refuse this rule, as emergency is no purpose of it; say with its emergency policy who may break the glass"
        )
    return found


def _of_times(rule: Rule, now_ms: int) -> list[str]:
    if rule.until_ms is None:
        return []
    if rule.from_ms is not None and rule.from_ms >= rule.until_ms:
        return ["the contract will refuse this rule, as it ends before it begins; give it a later end"]
    if rule.until_ms <= now_ms:
        return ["this rule has ended already, so that nobody could read the record; give it a later end"]
    return []


def _of_people(rule: Rule, people: Sequence[Credential]) -> list[str]:
    found = []
    allowed = [p for p in people if p.subject not in rule.deny]
    readers = _who(rule.policy, allowed)
    if not readers and _who(rule.policy, people):
        found.append("the deny list has on it everybody who satisfies the policy, so that nobody may read")
    elif not readers and _parsed(rule.policy):
        found.append(
            f"nobody certified on this chain satisfies the policy `{_short(rule.policy)}`, so that nobody may read; check how its"
            " attributes are written"
        )
    approvers = _who(rule.approval, allowed)
    if _parsed(rule.approval) and not any(r != a for r in readers or {b""} for a in approvers):
        found.append(
            f"nobody but the patient, and the patient's proxies, can agree to a request: no second person satisfies the approval"
            f" `{_short(rule.approval)}`"
        )
    breakers = _who(rule.emergency, allowed)
    if _parsed(rule.emergency) and len(breakers) < 2:
        found.append(
            f"{'one person satisfies' if breakers else 'nobody satisfies'} the emergency policy `{_short(rule.emergency)}`, and it takes two"
            " to break the glass"
        )
    return found


def _parsed(text: str | None) -> Policy | None:
    try:
        return policy.parse(text) if text is not None else None
    except PolicyError:
        return None


def _who(text: str | None, people: Sequence[Credential]) -> set[bytes]:
    """The keys of those who satisfy a policy; nobody does if there is none, or it does not parse."""
    parsed = _parsed(text)
    return {p.subject for p in people if parsed and parsed.satisfied(p.attributes)}


def _short(text: str | None) -> str:
    return text if text and len(text) <= 200 else f"{(text or '')[:200]}…"
