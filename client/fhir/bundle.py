"""FHIR R4 bundles to the parts of a record and back, token for token (paper section 1: M = m_1 ‖ ... ‖ m_9).

What is signed is what was received: resources are slices of the received bytes, with whitespace between
tokens removed and every token as it was written (see jsontext). A part is JSON that can be read on its own:

    {"fields": {"birthDate": "1964-02-29"}, "entries": [{"i": 12, "resource": {"resourceType": ...}}, ...]}

`fields` are top-level elements of the one Patient, `entries` whole other resources, `i` the index in
Bundle.entry. The header part m0 has besides

    bundle   the received bundle with null in place of each resource: order, fullUrl, request, links stay here
    patient  the index of the Patient's entry; `order` the keys of that Patient in order
    parts    the labels of all parts that a rebuild needs; `derived` those it ignores

A record that was opened may come from a liar, so `join` bounds and checks all of it, and gives back only what
`read_bundle` accepts.
"""

import io
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from gzip import BadGzipFile, GzipFile
from pathlib import Path
from typing import TypeVar

import msgspec

from client.fhir.jsontext import MAX_BUNDLE, MAX_DEPTH, members, minify
from client.fhir.labels import is_sensitive
from client.fhir.profile import HEADER, SENSITIVE, Group, Label, Profile
from crypto.ceas import MAX_PARTS
from crypto.errors import Malformed, NotFound

MAX_CONTENT = 2 * MAX_BUNDLE + (1 << 20)
"""Bytes of all parts of one record; no bundle splits into more."""

T = TypeVar("T")
_NO_VALUE = msgspec.Raw(b"")


class _Entry(msgspec.Struct):
    resource: msgspec.Raw = _NO_VALUE


class _Root(msgspec.Struct):
    resourceType: str = ""  # noqa: N815 (FHIR's name)
    entry: list[_Entry] = []


class _Resource(msgspec.Struct):
    resourceType: str = ""  # noqa: N815


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    i: int
    resource: msgspec.Raw


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    fields: dict[str, msgspec.Raw]
    entries: list[_Item]


class _Header(_Content, forbid_unknown_fields=True):
    bundle: msgspec.Raw
    patient: int
    order: list[msgspec.Raw]
    parts: list[Label]
    derived: list[Label]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle in slices. `shell` is the minified bundle with null for each resource; `resources` and
    their `types` stand in the order of Bundle.entry; `patient` is the index of the one Patient."""

    shell: bytes = field(repr=False)
    resources: tuple[bytes, ...] = field(repr=False)
    types: tuple[str, ...] = field(repr=False)
    patient: int


@dataclass(frozen=True, slots=True)
class Part:
    """A sub-message: what the doctor signs and the patient shares as one."""

    label: str
    access: str
    title: str
    content: bytes = field(repr=False)


def load_bundle(path: str | Path) -> bytes:
    """The bytes of a bundle file, or of standard input for `-`; unpacked if they are gzip.

    Raises `NotFound` if the file cannot be read and `Malformed` if it is damaged gzip or holds more than
    `MAX_BUNDLE` bytes, packed or unpacked; never holds more than about that in memory.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_BUNDLE + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise NotFound(
            f"The bundle file cannot be read ({error.strerror}): check its path and rights"
        ) from None
    if data.startswith(b"\x1f\x8b") and len(data) <= MAX_BUNDLE:
        try:
            data = GzipFile(fileobj=io.BytesIO(data)).read(MAX_BUNDLE + 1)
        except (BadGzipFile, EOFError, zlib.error):
            raise Malformed(
                "The bundle file is damaged gzip: fetch it again, or unpack it yourself"
            ) from None
    if len(data) > MAX_BUNDLE:
        raise Malformed(f"The bundle file holds more than {MAX_BUNDLE} bytes: split it and import the pieces")
    return data


def read_bundle(data: bytes) -> Bundle:
    """Check the bytes of a FHIR R4 bundle and slice it into its resources.

    Raises `Malformed`, never quoting the record, if it is not strict JSON (see `jsontext.minify`), not a
    Bundle, has no entries, an entry without a resource or without its type, or not exactly one Patient.
    References are not followed, so conditional references and unknown resource types pass untouched.
    """
    text = minify(data, "The bundle", MAX_BUNDLE)
    if not text.startswith(b"{"):
        raise Malformed("The bundle is JSON but not an object: a FHIR Bundle begins with {")
    root = _decode(text, _Root, "The bundle")
    if root.resourceType != "Bundle":
        raise Malformed(
            'The document is not a FHIR Bundle: its resourceType (JSON path $.resourceType) must be "Bundle"'
        )
    if not root.entry:
        raise Malformed(
            "The bundle has no entries (JSON path $.entry): export it again with the patient's resources"
        )
    resources, types = [], []
    for i, entry in enumerate(root.entry):
        resource, path = bytes(entry.resource), f"$.entry[{i}].resource"
        if not resource.startswith(b"{"):
            raise Malformed(
                f"Entry {i} of the bundle has no resource (JSON path {path}): remove the entry or complete it"
            )
        kind = _decode(resource, _Resource, f"Entry {i} of the bundle").resourceType
        if not kind:
            raise Malformed(
                f"Entry {i} of the bundle has a resource without resourceType (JSON path {path}): add its type"
            )
        resources.append(resource)
        types.append(kind)
    if (patients := types.count("Patient")) != 1:
        raise Malformed(
            f"The bundle has {patients} Patient resources: a record is about exactly one, export one per patient"
        )
    shell = _fill(text, [b"null"] * len(resources))
    return Bundle(shell, tuple(resources), tuple(types), types.index("Patient"))


def split(bundle: Bundle, profile: Profile) -> list[Part]:
    """The parts of a record: one per group in the profile's order (m0 first, empty ones too), after a group with
    `each` one per resource of it, then the derived. `Malformed` if these are more than `MAX_PARTS`.

    A sensitive security label on the Patient sends its fields into the sensitive part and leaves the derived parts empty; one on the
    bundle itself sends everything there.
    """
    is_all_sensitive = is_sensitive(bundle.shell)
    is_patient_sensitive = is_all_sensitive or is_sensitive(bundle.resources[bundle.patient])
    fields: dict[str, list[bytes]] = {group.label: [] for group in profile.groups}
    entries: dict[str, list[bytes]] = {group.label: [] for group in profile.groups}
    for i, (kind, resource) in enumerate(zip(bundle.types, bundle.resources, strict=True)):
        if i != bundle.patient:
            label = SENSITIVE if is_all_sensitive else profile.group_of_resource(kind, resource)
            entries[label].append(b'{"i":%d,"resource":%b}' % (i, resource))
    patient = members(bundle.resources[bundle.patient])
    for name, key, value in patient:
        label = SENSITIVE if is_patient_sensitive else profile.group_of_field(name)
        fields[label].append(key + b":" + value)

    labels = []
    for group in profile.groups:
        of_its_own = len(entries[group.label]) if group.each else 0
        labels += [group.label, *(f"{group.label}-{n}" for n in range(1, of_its_own + 1))]
    if (count := len(labels) + len(profile.derived)) > MAX_PARTS:
        raise Malformed(
            f"The bundle makes {count} parts under the profile {profile.name}, more than {MAX_PARTS}: use one "
            "that keeps resources together"
        )

    def body(fields: Sequence[bytes], entries: Sequence[bytes]) -> bytes:
        return b'"fields":{%b},"entries":[%b]}' % (b",".join(fields), b",".join(entries))

    def parts(group: Group) -> Iterator[Part]:
        start = b"{"
        if group.label == HEADER:
            start = b'{"bundle":%b,"patient":%d,"order":[%b],"parts":%b,"derived":%b,' % (
                bundle.shell,
                bundle.patient,
                b",".join(key for _, key, _ in patient),
                msgspec.json.encode(labels),
                msgspec.json.encode([part.label for part in profile.derived]),
            )
        own, shared = (entries[group.label], []) if group.each else ([], entries[group.label])
        yield Part(group.label, group.access, group.title, start + body(fields[group.label], shared))
        for n, entry in enumerate(own, 1):
            yield Part(f"{group.label}-{n}", group.access, f"{group.title} {n}", b"{" + body([], [entry]))

    values = {} if is_patient_sensitive else {name: value for name, _, value in patient}
    return [part for group in profile.groups for part in parts(group)] + [
        Part(part.label, part.access, part.title, part.content(values.get(part.field)))
        for part in profile.derived
    ]


def join(parts: Mapping[str, bytes]) -> bytes:
    """The minified bundle from the contents of all parts by label; derived parts may be there or not.

    Raises `Malformed` if a part is missing, unknown or not as `split` writes it, if entries or fields are
    absent or stand twice, if the whole is over `MAX_CONTENT` bytes, or if what results is not a bundle that
    `read_bundle` accepts.
    """
    if sum(map(len, parts.values())) > MAX_CONTENT:
        raise Malformed(
            f"The parts of the record hold more than {MAX_CONTENT} bytes: no bundle splits into so much"
        )
    header = _content(parts, HEADER, _Header)
    if not parts.keys() <= {*header.parts, *header.derived} or len(set(header.parts)) < len(header.parts):
        raise Malformed(
            f"The parts of the record are not those that {HEADER} lists, each once: the record is inconsistent"
        )
    resources: dict[int, bytes] = {}
    fields: dict[str, bytes] = {}
    for label, content in _contents(parts, header):
        for item in content.entries:
            if item.i in resources:
                raise Malformed(
                    f"Part {label} has entry {item.i} of the bundle a second time: the record is inconsistent"
                )
            resources[item.i] = bytes(item.resource)
        if not fields.keys().isdisjoint(content.fields):
            raise Malformed(
                f"Part {label} has a field of the patient a second time: the record is inconsistent"
            )
        fields |= {name: bytes(value) for name, value in content.fields.items()}

    names = [_decode(bytes(key), str, f"The list of the patient's keys in {HEADER}") for key in header.order]
    if sorted(names) != sorted(fields) or header.patient in resources:
        raise Malformed(
            f"The patient's fields in the parts are not those that {HEADER} lists: the record is inconsistent"
        )
    resources[header.patient] = _object(
        (bytes(key), fields[name]) for key, name in zip(header.order, names, strict=True)
    )
    # checked by itself, so that its entries are counted before they become objects
    shell = minify(bytes(header.bundle), f"The bundle in {HEADER}")
    slots = _decode(shell, _Root, f"The bundle in {HEADER}").entry
    if any(bytes(slot.resource) != b"null" for slot in slots) or resources.keys() != set(range(len(slots))):
        raise Malformed(
            f"The entries in the parts are not those that {HEADER} has room for: the record is inconsistent"
        )
    whole = _fill(shell, [resources[i] for i in range(len(slots))])
    read_bundle(whole)
    return whole


def _contents(parts: Mapping[str, bytes], header: _Header) -> Iterator[tuple[str, _Content]]:
    for label in header.parts:
        yield label, header if label == HEADER else _content(parts, label, _Content)


def _content(parts: Mapping[str, bytes], label: str, kind: type[T]) -> T:
    if label not in parts:
        raise Malformed(
            f"Part {label} of the record is missing: a bundle is rebuilt from all parts, so open the full record"
        )
    what = f"Part {label} of the record"
    # one level more than a bundle has: m0 wraps the bundle
    return _decode(minify(parts[label], what, MAX_CONTENT, MAX_DEPTH + 1), kind, what)


def _decode(text: bytes, kind: type[T], what: str) -> T:
    """Checked JSON as `kind`. Tells only the path of an error; the library's message could quote a key."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        path = re.search(r"`(\$[^`]*)`\Z", str(error))
        at = path[1] if path else "$"
        raise Malformed(f"{what} has a value of the wrong kind (JSON path {at}): get it again") from None


def _fill(bundle: bytes, resources: Sequence[bytes]) -> bytes:
    """The minified bundle with `resources` in place of those of its entries, all else as written."""

    def entry(text: bytes, resource: bytes) -> bytes:
        return _object((key, resource if name == "resource" else value) for name, key, value in members(text))

    def entries(text: bytes) -> bytes:
        slots = msgspec.json.decode(text, type=list[msgspec.Raw])
        return b"[" + b",".join(entry(bytes(s), r) for s, r in zip(slots, resources, strict=True)) + b"]"

    return _object(
        (key, entries(value) if name == "entry" else value) for name, key, value in members(bundle)
    )


def _object(pairs: Iterator[tuple[bytes, bytes]]) -> bytes:
    return b"{" + b",".join(key + b":" + value for key, value in pairs) + b"}"
