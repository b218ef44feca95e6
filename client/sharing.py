"""What stands before a part is shared: nobody shares for research what may say who the patient is, unless they acknowledge it.

A class is open for research if the record may be asked for research and its policy can be met by somebody who is not a doctor, a patient or
government: those treat, own or oversee; of every other attribute it is assumed that a researcher may have it.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from client.fhir import PRIVATE, Part, is_chunk
from client.fhir.labels import is_sensitive
from client.fhir.lint import Finding, has_fields, lint, require_acknowledged
from crypto.policy import Attribute, Node, parse
from protocol.identity import Purpose

if TYPE_CHECKING:
    from client.stored import StoredRecord

NOT_RESEARCHERS = frozenset({"role:doctor", "role:patient", "role:government"})


def is_open_for_research(policy: str, purposes: Collection[Purpose]) -> bool:
    """Whether a class under this policy is open for research. `PolicyError` if the policy does not parse."""
    parsed = parse(policy)
    return "research" in purposes and parsed.satisfied(_attributes(parsed.root) - NOT_RESEARCHERS)


def _attributes(node: Node) -> set[str]:
    if isinstance(node, Attribute):
        return {node.name}
    return set().union(*map(_attributes, node.children))


def check_signing(parts: Collection[Part], acknowledged: Collection[str]) -> None:
    """For the doctor, before signing: `FindingsLeft` unless all findings in parts that the profile shares are acknowledged."""
    shared = {part.label for part in parts if part.access != PRIVATE}
    about = {part.label for part in parts if has_fields(part.content)}
    require_acknowledged(lint({part.label: part.content for part in parts}, shared, about), acknowledged)


def check_sharing(
    before: "StoredRecord",
    after: "StoredRecord",
    contents: Mapping[str, bytes],
    acknowledged: Collection[str],
) -> list[str]:
    """For the patient, before a version is made: `FindingsLeft` unless all findings in parts that were not open for research and
    will be are acknowledged. Returns the labels of parts that leave the private class and hold what is marked as sensitive. Of the
    record's `contents`, only what is looked into is read."""
    # A record that is not stored yet has no policies, so none of its parts is open.
    opened = _labels(after, _for_research(after)) - _labels(before, _for_research(before))
    if opened:
        require_acknowledged(lint(contents, opened, after.about), acknowledged)
    others = {name for name, _ in (*before.policies, *after.policies)} - {PRIVATE}
    left = _labels(after, others) - _labels(before, others)
    return [
        label
        for label in after.labels
        if label in left and not is_chunk(label) and is_sensitive(contents[label])
    ]


def findings_of(
    stored: "StoredRecord", contents: Mapping[str, bytes], access: Mapping[str, str]
) -> list[Finding]:
    """The findings in those parts of a patient's record that `access` (class by label) puts outside the private class."""
    shared = {label for label in stored.labels if access.get(label, PRIVATE) != PRIVATE}
    return lint(contents, shared, stored.about)


def _for_research(stored: "StoredRecord") -> set[str]:
    return {name for name, policy in stored.policies if is_open_for_research(policy, stored.purposes)}


def _labels(stored: "StoredRecord", classes: Collection[str]) -> set[str]:
    """The labels of the parts in these classes."""
    return {part.label for part in stored.parts if part.access in classes}
