"""What a change of a record's protection leads to, said before it is made: who could read before, who can after, and what somebody who
has read may have kept.

What is counted are the people certified on the sharing chain, as one node lists them; and past readers, as both chains' logs show them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from client.consent_check import warnings
from client.fhir import PRIVATE, group_of
from client.session import KINDS
from client.stored import StoredRecord
from client.terminal import time_text
from crypto.policy import parse
from protocol.contract import Receipt
from protocol.identity import ChainKind, Credential

Change = Literal["store", "rewrap", "rekey", "retire", "erase"]
NOBODY = "nobody, by the contract"
SHOWN_KEYS = 4
KEPT: dict[Change, str] = {
    "store": "nothing: the record was not stored before",
    "rewrap": "keys and ciphertexts of the parts stay as they are, so that this protects nothing that was read already: who once opened a "
    "part can have kept its key, its ciphertext and what it says; record rekey makes new keys",
    "rekey": "a key kept from earlier opens none of the new ciphertexts; who has also kept an old ciphertext, or what it says, still reads "
    "that",
    "retire": "everything they opened; tickets that were given out open the cloud for ten minutes more, and the ciphertexts stay there, "
    "encrypted, until record erase",
    "erase": "everything they opened, and ciphertexts they fetched with the keys to them; the cloud signs that it has deleted its copy, but "
    "nobody can prove that no other copy exists",
}


@dataclass(frozen=True)
class Consequences:
    """Sentences about a change of `record`. `warnings`: why the rule lets nobody read, or not as it says."""

    record: bytes
    change: Change
    before: tuple[str, ...]
    after: tuple[str, ...]
    kept: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fields(self) -> dict[str, object]:
        return {
            "record": self.record.hex(),
            "before": list(self.before),
            "after": list(self.after),
            "kept": list(self.kept),
            "warnings": list(self.warnings),
        }


def foresee(
    change: Change,
    before: StoredRecord,
    after: StoredRecord | None,
    people: Sequence[Credential],
    past: Iterable[bytes],
    now_ms: int,
) -> Consequences:
    """`after` is None where nobody can read any more; `people` are certified, `past` were granted the record before."""
    current = [p for p in people if now_ms < p.not_after_ms]
    past = sorted(past)
    kept = KEPT[change]
    if change != "store":
        shown = f": {_keys(past)}" if past else ""
        kept = f"of {len(past)} keys that the record was granted to so far{shown}: {kept}"
    rules = [after.rule(kind) for kind in KINDS] if after else []
    warned = dict.fromkeys(sentence for rule in rules for sentence in warnings(rule, current, now_ms))
    return Consequences(
        before.header.record,
        change,
        _access(before, current) if before.version else (NOBODY,),
        (*(_access(after, current) if after else (NOBODY,)), *_difference(before, after, current)),
        (kept,),
        tuple(warned),
    )


def past_readers(log: Iterable[tuple[ChainKind, Receipt]]) -> set[bytes]:
    """The keys to which the contract has granted the record."""
    receipts = [receipt for _, receipt in log]
    senders = {r.tx: r.sender for r in receipts if r.kind == "access.request"}
    asked = {r.sender for r in receipts if r.kind == "access.request" and r.code == "allowed"}
    granted = {r.request for r in receipts if r.code in ("allowed", "emergency-allowed") and r.request}
    return asked | {senders[tx] for tx in granted if tx in senders}


def _access(stored: StoredRecord, people: Sequence[Credential]) -> tuple[str, ...]:
    """A sentence for each access class, then the conditions of all."""
    lines = []
    readers = _readers(stored, people)
    for name, policy in stored.policies:
        groups = dict.fromkeys(group_of(label) for label in stored.labels_in(name))
        who = readers[name]
        shown = f": {_keys(sorted(who))}" if who else ""
        lines.append(
            f"{name} ({', '.join(groups)}): {policy} — {len(who)} of {len(people)} certified keys{shown}"
        )
    terms = stored.terms
    conditions = [f"for {', '.join(stored.purposes)}"]
    if terms.from_ms is not None:
        conditions.append(f"from {time_text(terms.from_ms)}")
    if terms.until_ms is not None:
        conditions.append(f"until {time_text(terms.until_ms)}")
    if terms.uses is not None:
        conditions.append(f"{terms.uses} times under one rule")
    if terms.deny:
        conditions.append(f"not {_keys(terms.deny)}")
    if terms.approval is not None:
        conditions.append(f"each time when a second person agrees: you, or {terms.approval}")
    lines.append("; ".join(conditions))
    if terms.emergency is not None:
        classes = [name for name, _ in stored.policies if name != PRIVATE]
        lines.append(
            f"in an emergency two people who satisfy {terms.emergency}: what is in {', '.join(classes)}"
        )
    if stored.proxies:
        lines.append(f"acting for you, everything: {_keys(stored.proxies)}")
    if stored.tags:
        lines.append(f"found by {len(stored.tags)} tags, by anyone")
    return tuple(lines)


def _readers(stored: StoredRecord, people: Sequence[Credential]) -> Mapping[str, set[bytes]]:
    """By access class, the keys of those who satisfy its policy and are not denied."""
    policies = stored.class_policies()
    return {
        name: {
            p.subject
            for p in people
            if p.subject not in stored.terms.deny and parse(text).satisfied(p.attributes)
        }
        for name, text in policies.items()
    }


def _difference(
    before: StoredRecord, after: StoredRecord | None, people: Sequence[Credential]
) -> tuple[str, ...]:
    """Who of those certified now loses a part, and who gains one."""
    old = _by_part(before, people) if before.version else {}
    new = _by_part(after, people) if after else {}
    lost = {key for label, keys in old.items() for key in keys - new.get(label, set())}
    gained = {key for label, keys in new.items() for key in keys - old.get(label, set())}
    sentences = []
    for keys, what in ((lost, "lose"), (gained, "gain")):
        if keys:
            sentences.append(f"{len(keys)} of the keys certified now {what} parts: {_keys(sorted(keys))}")
    return tuple(sentences)


def _by_part(stored: StoredRecord, people: Sequence[Credential]) -> dict[str, set[bytes]]:
    readers = _readers(stored, people)
    return {label: readers[part.access] for label, part in zip(stored.labels, stored.parts, strict=True)}


def _keys(keys: Sequence[bytes]) -> str:
    shown = [f"{key.hex()[:16]}…" for key in keys[:SHOWN_KEYS]]
    more = len(keys) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
