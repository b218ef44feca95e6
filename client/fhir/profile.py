"""Profiles: which resources of a bundle and fields of its patient form which part of a record, and who may see it.

A profile is data (TOML, see client/profiles), so an operator adds one without code:

    name     what the record's header says
    groups   the parts in order, each with a label, a title and its first access class; m0, the header, leads;
             `each = true` makes a part of its own of every resource of the group: m8-1, m8-2, ...
    fields   top-level elements of Patient -> group; `_birthDate`, which extends `birthDate`, follows it
    rules    resource types, optionally with codes of which an element has one -> group; the first that fits decides
    default  the group of all that neither names
    derived  parts made from a date of the patient, for readers who must not see it; export ignores them

The group `sensitive`, always private at first, takes every resource with a sensitive security label (`client.fhir.labels`) before
any rule is asked: no profile shares these, the patient alone can.

The groups and their order depend on the profile alone, never on the record, so without `each` the number of
parts tells nothing about a record. With it, who sees any part sees how many parts there are, not which.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from client.fhir.labels import is_sensitive
from crypto.errors import Malformed, NotFound

HEADER = "m0"
SENSITIVE = "sensitive"
PRIVATE = "private"
"""The access class that only the storage chain's index reaches."""
MAX_PROFILE = 256 << 10
"""Bytes of a profile file."""
_BUNDLED = Path(__file__).parents[1] / "profiles"

Label = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z]{1,64}\Z")]
_date = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?")


_of_one_resource = re.compile(r"-[0-9]+\Z")
_of_attachment = re.compile(r"a[1-9][0-9]{0,3}(-[1-9][0-9]{0,3})?\Z")
_MAX_EACH = 27
"""Characters of the label of a group with `each`, so that its parts' labels are labels too."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part that every record under the profile has."""

    label: Label
    title: Title
    access: Label


class Group(Place, frozen=True, forbid_unknown_fields=True):
    """A part for elements of the patient and for resources; with `each`, these become parts `label`-1, `label`-2, ..."""

    each: bool = False


class Derived(Place, frozen=True, forbid_unknown_fields=True):
    """A part that holds, under `key`, the year (`take` = 4) or year and month (7) of a date field of the
    patient."""

    field: _Name
    take: Literal[4, 7]
    key: _Name

    def content(self, value: bytes | None) -> bytes:
        """The part, for the JSON token of the field or None. What is not a FHIR date gives null: free text
        never passes."""
        text = _plain(value) if value else None
        dated = isinstance(text, str) and len(text) >= self.take and _date.fullmatch(text)
        return msgspec.json.encode({self.key: str(text)[: self.take] if dated else None})


class _FieldRule(msgspec.Struct, forbid_unknown_fields=True):
    field: Annotated[list[_Name], msgspec.Meta(min_length=1)]
    group: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    name: Label
    default: str
    groups: Annotated[list[Group], msgspec.Meta(min_length=1, max_length=256)]
    fields: list[_FieldRule]
    rules: list[dict[_Name, str | list[str]]]
    derived: Annotated[list[Derived], msgspec.Meta(max_length=16)] = []


class Rule(msgspec.Struct, frozen=True):
    """Resources of one of `types` whose every element in `codes` carries one of its codes go into `group`."""

    types: frozenset[str]
    codes: dict[str, frozenset[str]]
    group: str

    def fits(self, kind: str, resource: bytes) -> bool:
        if kind not in self.types:
            return False
        if not self.codes:
            return True
        elements = msgspec.json.decode(resource, type=dict[str, msgspec.Raw])
        return all(
            name in elements and not wanted.isdisjoint(_codes_in(_plain(bytes(elements[name]))))
            for name, wanted in self.codes.items()
        )


class Profile(msgspec.Struct, frozen=True):
    """A checked profile; made by `load_profile`."""

    name: str
    groups: tuple[Group, ...]
    derived: tuple[Derived, ...]
    rules: tuple[Rule, ...]
    fields: dict[str, str]
    default: str

    def access_of(self, label: str) -> str:
        """The first access class of the part `label`; private for one that the profile does not know."""
        places = {place.label: place.access for place in (*self.groups, *self.derived)}
        return places.get(group_of(label), PRIVATE)

    def group_of_field(self, name: str) -> str:
        """The label of the group for a top-level element of Patient."""
        return self.fields.get(name.removeprefix("_"), self.default)

    def group_of_resource(self, kind: str, resource: bytes) -> str:
        """The label of the group for a resource of type `kind`, given as checked JSON."""
        if is_sensitive(resource):
            return SENSITIVE
        return next((rule.group for rule in self.rules if rule.fits(kind, resource)), self.default)


def group_of(label: str) -> str:
    """The label of the group that the part `label` belongs to."""
    return _of_one_resource.sub("", label)


def is_attached(label: str) -> bool:
    """Whether the part belongs to a file attached to the record (`client.attach`): a1, a1-1, a1-2, …"""
    return _of_attachment.match(label) is not None


def is_chunk(label: str) -> bool:
    """Whether the part is a stretch of such a file's bytes: a1-1, a1-2, …, but not a1, which is about the file."""
    return is_attached(label) and group_of(label) != label


def named(labels: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """What a name may stand for in a record whose parts are `labels`, by index: a part, or all parts of a group."""
    names: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for name in {label, group_of(label)}:
            names.setdefault(name, []).append(index)
    return {name: tuple(indices) for name, indices in names.items()}


def load_profile(name_or_path: str | Path) -> Profile:
    """A profile by the name of a bundled one (`paper`, `safe`, `fine`) or by the path of a TOML file.

    Raises `NotFound` if there is none, `Malformed` saying which key is wrong.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and re.fullmatch(r"[a-z0-9-]+", name_or_path):
        path = _BUNDLED / f"{name_or_path}.toml"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PROFILE + 1)
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in _BUNDLED.glob("*.toml")))
        raise NotFound(
            f"The profile cannot be read ({error.strerror}): give one of {known}, or the path of a TOML file"
        ) from None
    if len(text) > MAX_PROFILE:
        raise Malformed(f"The profile is over {MAX_PROFILE} bytes: shorten it")
    try:
        return _check(msgspec.convert(tomllib.loads(text.decode()), _File))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or a number too long
        raise Malformed(f"The profile is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise Malformed(f"The profile does not have the form of a profile: {error}") from None


def _check(file: _File) -> Profile:
    labels = [group.label for group in file.groups]
    if labels[0] != HEADER:
        raise Malformed(f"The profile's groups must begin with {HEADER}, the header that export needs")
    for label in (every := labels + [part.label for part in file.derived]):
        if every.count(label) > 1:
            raise Malformed(
                f"The profile has the label {label} twice: labels of groups and derived parts must differ"
            )
        if is_attached(label):
            raise Malformed(f"The profile's label {label} is one of an attached file: call it otherwise")
        if group_of(label) != label:
            raise Malformed(
                f"The profile's label {label} ends like that of a single resource: end it without a number"
            )
    for group in file.groups:
        if group.each and (group.label == HEADER or len(group.label) > _MAX_EACH):
            raise Malformed(
                f"The profile's group {group.label} cannot have a part for each resource: "
                f"{HEADER} never can, and a label must have at most {_MAX_EACH} characters"
            )
    fields: dict[str, str] = {}
    for i, entry in enumerate(file.fields):
        _known(entry.group, labels, f"fields[{i}].group")
        for name in entry.field:
            if fields.setdefault(name, entry.group) != entry.group:
                raise Malformed(f"The profile's fields[{i}].field sends {name} to a second group: keep one")
    rules = tuple(_rule(entry, labels, f"rules[{i}]") for i, entry in enumerate(file.rules))
    _known(file.default, labels, "default")
    if not any(group.label == SENSITIVE and group.access == PRIVATE for group in file.groups):
        raise Malformed(
            f'The profile needs a group {SENSITIVE} with access = "{PRIVATE}", for resources with sensitive security labels: '
            "only the patient may share them"
        )
    return Profile(file.name, tuple(file.groups), tuple(file.derived), rules, fields, file.default)


def _rule(entry: dict[str, str | list[str]], labels: list[str], where: str) -> Rule:
    codes = {key: frozenset([v] if isinstance(v, str) else v) for key, v in entry.items() if key != "group"}
    for key in ("type", *codes):
        if not codes.get(key):
            raise Malformed(f"The profile's {where}.{key} is missing or empty: name at least one")
    group = entry.get("group")
    _known(group, labels, f"{where}.group")
    return Rule(codes.pop("type"), codes, str(group))


def _known(group: object, labels: list[str], where: str) -> None:
    if group not in labels:
        raise Malformed(
            f"The profile's {where} names no group of the profile: use one of {', '.join(labels)}"
        )


def _plain(text: bytes) -> object:
    # numbers as text: none is looked at, and one that is out of range must not stop an import
    return json.loads(text, parse_int=str, parse_float=str)


def _codes_in(element: object) -> Iterator[str]:
    """The codes of a `code`, Coding or CodeableConcept, or of a list of these."""
    if isinstance(element, str):
        yield element
    elif isinstance(element, list):
        for item in element:
            yield from _codes_in(item)
    elif isinstance(element, dict):
        yield from _codes_in(element.get("code"))
        yield from _codes_in(element.get("coding"))
