"""Looks for who the patient is in the parts of a record that others are about to read.

What a record says of its patient in fields (names, addresses, telecoms, identifiers, birth date) is looked for in all text of the
parts: strings, keys, narrative, decoded attachments. Case, accents and markup do not hide it, nor separators between digits.
Names are found as whole words of three letters or more; those of scripts that put no spaces between words, as any stretch of two.

A finding names a place, never what stands there, so it may be logged. Where a text stands at like places (the same path but for
places in lists), it is one finding. What could not be looked into is a finding too, and so is a sensitive security label.
"""

import datetime
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from client.fhir.attachments import decode_base64, texts_in, texts_inside
from client.fhir.labels import is_sensitive
from client.fhir.profile import group_of, is_chunk
from crypto.errors import Denied, Malformed

Kind = Literal["name", "address", "telecom", "identifier", "birth-date", "sensitive", "unread"]
MEANING: dict[Kind, str] = {
    "name": "a name of the patient or of a contact",
    "address": "a street, city or postal code of the patient",
    "telecom": "a telephone number or address of the patient",
    "identifier": "an identifier of the patient",
    "birth-date": "the full birth date",
    "sensitive": "a sensitive security label",
    "unread": "an attachment that could not be looked into, or not wholly",
}
ALL = "all"
"""Acknowledges every finding."""
MIN_WORD = 3
"""Letters of a name that is looked for."""
MIN_DIGITS = 6
"""Digits of a telephone number that is looked for; of an identifier, one letter or digit less."""
SHOWN = 40
"""Findings that a refusal lists."""
MAX_DECODED = 128 << 20
"""Characters of all attachments of a record that are looked into; the others are unread."""

_POSTCODE = "postcode"
_word = re.compile(r"[^\W\d_]+")
_token = re.compile(r"[^\W_]+")
_not_token = re.compile(r"[\W_]+")
_inline = re.compile(
    r"</?(?:a|abbr|b|big|em|font|i|mark|s|small|span|strong|sub|sup|tt|u)(?:\s[^<>]*+)?>", re.IGNORECASE
)
_tag = re.compile(r"<[^<>]*+>")
_plain_key = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_spelled_out = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_SEPARATOR = r"[\W_]{0,3}"


class _Number(str):
    """A number token, which is no postal code."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A place in a part that says who the patient is, or may. `path` is the first of `places` like ones."""

    id: str
    part: str
    path: str
    kind: Kind
    places: int
    text: str = field(repr=False)


class FindingsLeft(Denied):
    """Parts cannot be shared before somebody has acknowledged `findings`."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        listed = [f"  {f.id}  {f.kind} in {f.part} at {f.path} ({f.places} places)" for f in findings[:SHOWN]]
        if len(findings) > SHOWN:
            listed.append(f"  and {len(findings) - SHOWN} more; list them with: diptych record lint")
        super().__init__(
            f"{len(findings)} findings in the parts to be shared may say who the patient is; take them out, make their parts private, or "
            "acknowledge them with --acknowledge ID (all for all):\n" + "\n".join(listed)
        )


def require_acknowledged(findings: Iterable[Finding], acknowledged: Collection[str]) -> None:
    """`FindingsLeft` unless each finding's id, or `ALL`, is among `acknowledged`."""
    left = [f for f in findings if f.id not in acknowledged]
    if left and ALL not in acknowledged:
        raise FindingsLeft(left)


def lint(parts: Mapping[str, bytes], shared: Collection[str], about: Collection[str]) -> list[Finding]:
    """The findings in the parts `shared` of a record with these `parts` by label, of which `about` have fields of the patient.

    Only these are read. In the order of the parts; `Malformed` if one is none that `split` makes. An attached file is not looked into,
    which is one finding. The id of a finding is 16 hex digits; it stays while kind, path and the first resource concerned stay.
    """
    try:
        texts = _Texts(_Wanted.of(_patient(parts[label] for label in about)))
        found: list[Finding] = []
        unread: dict[str, int] = {}
        for label in parts:
            if label in shared and is_chunk(label):
                unread[group_of(label)] = unread.get(group_of(label), 0) + 1
            elif label in shared:
                found += _Part(label, parts[label], texts).findings()
        for label, chunks in unread.items():
            unit = _Unit("$.data", parts.get(label, b""))
            found.append(Finding(unit.id_of("unread", label), label, unit.path, "unread", chunks, ""))
        return found
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, RecursionError):
        raise Malformed(
            "a part of the record is not in the form that bundles are cut into, so nobody can look for names in it; "
            "ask the doctor to sign the record again"
        ) from None


def _decode(text: bytes) -> Any:
    return json.loads(text, parse_int=_Number, parse_float=_Number)


class _Fields(msgspec.Struct):
    fields: dict[str, msgspec.Raw] = {}


def has_fields(content: bytes) -> bool:
    """Whether a part has fields of the patient, which say what to look for."""
    try:
        return bool(msgspec.json.decode(content, type=_Fields).fields)
    except (msgspec.DecodeError, RecursionError):
        return False


def _patient(parts: Iterable[bytes]) -> dict[str, Any]:
    """The fields of the patient, from whichever parts they stand in."""
    found: dict[str, Any] = {}
    for content in parts:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).get("fields")
        found |= _decode(bytes(fields)) if fields is not None else {}
    return found


# --- what is looked for -----------------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """The text in lower case, without accents and invisible characters."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKD", text.casefold()).translate(_FOLDED)


class _Folds(dict[int, int | str | None]):
    """What each character of a decomposed text becomes, found out when it first comes."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        is_mark = unicodedata.combining(char) or unicodedata.category(char) == "Cf"
        self[code] = kept = None if is_mark else code
        return kept


_LETTERS: dict[str, int | str | None] = {
    "ø": "o", "đ": "d", "ł": "l", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i"
}  # fmt: skip
_FOLDED = _Folds(str.maketrans(_LETTERS | dict.fromkeys("’ʼ‘`", "'")))


@dataclass(frozen=True, slots=True)
class _Sign:
    """Something to look for: `compact` is a cheap test on the letters and digits of a text, `pattern` decides on its folded form."""

    kind: str
    compact: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """All that a record says of who its patient is, in the forms in which it is looked for."""

    words: frozenset[str]
    glyphs: frozenset[str]
    signs: tuple[_Sign, ...]

    @classmethod
    def of(cls, patient: Mapping[str, Any]) -> "_Wanted":
        words: set[str] = set()
        glyphs: set[str] = set()
        for name in _names(patient):
            for form in {fold(name), fold(name.lower().translate(_spelled_out))}:
                for word in chain(_word.findall(form), _word.findall(form.replace("'", ""))):
                    if all(unicodedata.category(c) == "Lo" for c in word):
                        if len(word) > 1:
                            glyphs.add(word)
                    elif len(word) >= MIN_WORD:
                        words.add(word)
        signs = {sign.pattern.pattern: sign for sign in _signs(patient)}
        return cls(frozenset(words), frozenset(glyphs), tuple(signs.values()))

    def kinds_in(self, text: str) -> Iterator[str]:
        """The kinds of what stands in a text, each at least once."""
        folded = fold(text)
        words = set(_word.findall(folded))
        if "'" in folded:
            words.update(_word.findall(folded.replace("'", "")))
        if not self.words.isdisjoint(words) or any(glyph in folded for glyph in self.glyphs):
            yield "name"
        compact = _not_token.sub("", folded)
        for sign in self.signs:
            if sign.compact in compact and sign.pattern.search(folded):
                yield sign.kind


def _all(node: Any, key: str) -> Iterator[Any]:
    """The values under `key`, or under value[x] of that type in an extension, anywhere inside, lists taken apart."""
    if isinstance(node, list):
        for item in node:
            yield from _all(item, key)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield from value if isinstance(value, list) else [value]
            else:
                yield from _all(value, key)


def _strings(nodes: Iterable[Any], *keys: str) -> Iterator[str]:
    for node in nodes:
        for key in keys:
            values = node.get(key) if isinstance(node, dict) else None
            yield from (v for v in (values if isinstance(values, list) else [values]) if isinstance(v, str))


def _names(patient: Mapping[str, Any]) -> Iterator[str]:
    """Given, family, maiden names and those of contacts, without prefixes and suffixes."""
    for name in chain(_all(patient, "name"), _all(patient, "valueHumanName")):
        yield from _strings([name], "given", "family")
        for text in _strings([name], "text"):
            titles = set(_strings([name], "prefix", "suffix"))
            yield " ".join(
                word for word in text.split() if word.strip(",") not in titles and not word.endswith(".")
            )
    for extension in _all(patient, "extension"):
        if isinstance(extension, dict) and str(extension.get("url", "")).endswith("mothersMaidenName"):
            yield from _strings([extension], "valueString")


def _signs(patient: Mapping[str, Any]) -> Iterator[_Sign]:
    for address in chain(_all(patient, "address"), _all(patient, "valueAddress")):
        for line in _strings([address], "line", "text"):
            for piece in re.split(r"[\r\n;]|, ", line):
                if len(_token.findall(piece)) > 1:
                    yield from _sign("address", piece)
        for city in _strings([address], "city"):
            yield from _sign("address", city)
        for code in _strings([address], "postalCode"):
            yield from _sign(_POSTCODE, code)
    for telecom in chain(_all(patient, "telecom"), _all(patient, "valueContactPoint")):
        for value in _strings([telecom], "value"):
            digits = re.sub(r"\D", "", value)
            if "@" in value or "://" in value or len(digits) < MIN_DIGITS:
                yield from _sign("telecom", value)
            else:  # with or without the codes of country and area
                yield _Sign("telecom", digits[-9:], re.compile(_SEPARATOR.join(digits[-9:]) + r"(?!\d)"))
    for value in _strings(chain(_all(patient, "identifier"), _all(patient, "valueIdentifier")), "value"):
        if len(_not_token.sub("", value)) >= MIN_DIGITS - 1:
            yield from _sign("identifier", value)
    for born in _strings([patient], "birthDate"):
        yield from _birth_date(born)


def _sign(kind: str, text: str) -> Iterator[_Sign]:
    """The text as whole words, whatever stands between them and between digits."""
    tokens = _token.findall(fold(text))
    compact = "".join(tokens)
    if len(compact) < MIN_WORD:
        return
    spelled = [re.sub(r"(?<=\d)(?=\d)|(?<=\d)(?=\D)|(?<=\D)(?=\d)", "\0", token) for token in tokens]
    pattern = _SEPARATOR.join(_SEPARATOR.join(map(re.escape, token.split("\0"))) for token in spelled)
    if kind == _POSTCODE:  # not the front of a longer code, unless of a longer postal code
        yield _Sign(kind, compact, re.compile(rf"(?<![\w.-]){pattern}(?:-?\d{{4}})?(?![\w-])"))
    else:
        yield _Sign(kind, compact, re.compile(rf"(?<![^\W_]){pattern}(?![^\W_])"))


def _birth_date(text: str) -> Iterator[_Sign]:
    """A full date as ISO 8601, with or without hyphens, as day, month, year or month, day, year, and in English words."""
    try:
        born = datetime.date.fromisoformat(text)
    except ValueError:
        return
    year, month, day = str(born.year), f"0?{born.month}", f"0?{born.day}"
    name = _MONTHS[born.month - 1]
    word = rf"{name[:3]}(?:{name[3:]})?\.?"
    ordinal = rf"{day}(?:st|nd|rd|th)?"
    forms = [
        rf"{year}[-/. ]?{month}[-/. ]?{day}",
        rf"(?:{day}[-/. ]{month}|{month}[-/. ]{day})[-/. ]{year}",
        rf"(?:{ordinal}[-. ]?(?:of )?{word}|{word} {ordinal}),?[- ]{year}",
    ]
    yield _Sign("birth-date", year, re.compile(rf"(?<!\d)(?:{'|'.join(forms)})(?!\d)"))


# --- where it is looked for -------------------------------------------------------------------------------------------------


class _Texts:
    """What is found in a text, each different text looked into once: records repeat most of theirs."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted
        self._left = MAX_DECODED
        self._known: dict[tuple[str, str | None], frozenset[str]] = {}

    def kinds(self, text: str, content_type: str | None = None) -> frozenset[str]:
        """The kinds of findings in a text; with a `content_type`, in the attachment that it is the base64 of."""
        if (known := self._known.get((text, content_type))) is None:
            known = self._known[text, content_type] = frozenset(self._look(text, content_type))
        return known

    def _look(self, text: str, content_type: str | None) -> Iterator[str]:
        data = decode_base64(text) if content_type is not None else None
        found = texts_in(data, content_type or "") if data is not None else chain([text], texts_inside(text))
        for piece in found:
            if piece is None or len(piece) > self._left:
                yield "unread"
                continue
            if piece is not text:
                self._left -= len(piece)
            for form in _forms(piece):
                yield from self._wanted.kinds_in(form)


def _forms(text: str) -> Iterator[str]:
    """A text as it stands, and without its markup or escapes."""
    yield text
    if "<" in text:
        yield html.unescape(_tag.sub(" ", _inline.sub("", text)))
    if "&" in text:
        yield html.unescape(text)
    if "%" in text:
        yield unquote(text)


@dataclass(frozen=True, slots=True)
class _Unit:
    """The piece of a part that a finding's id is bound to: a resource, or a field of the patient."""

    path: str
    raw: bytes

    def id_of(self, kind: str, path: str) -> str:
        content = hashlib.sha256(self.raw).digest()
        return hashlib.sha256(b"diptych/lint/" + f"{kind} {path} ".encode() + content).hexdigest()[:16]


class _Part:
    """One part about to be shared; gathers its findings."""

    def __init__(self, label: str, content: bytes, texts: _Texts) -> None:
        self._label, self._content, self._texts = label, content, texts
        self._found: dict[tuple[str, str, str], Finding] = {}

    def findings(self) -> list[Finding]:
        for unit in self._units():
            if is_sensitive(unit.raw):
                self._add("sensitive", unit, "", unit.path)
            self._walk(_decode(unit.raw), unit, "", "", None)
        return list(self._found.values())

    def _units(self) -> Iterator[_Unit]:
        for key, raw in msgspec.json.decode(self._content, type=dict[str, msgspec.Raw]).items():
            if key == "entries":
                for n, entry in enumerate(msgspec.json.decode(raw, type=list[dict[str, msgspec.Raw]])):
                    yield _Unit(f"$.entries[{n}].resource", bytes(entry["resource"]))
            elif key == "fields":
                for name, value in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items():
                    yield _Unit(f"$.fields.{_step(name)}", bytes(value))
            else:
                yield _Unit(f"$.{_step(key)}", bytes(raw))

    def _walk(self, node: Any, unit: _Unit, path: str, key: str, content_type: str | None) -> None:
        if isinstance(node, str):
            kinds = self._texts.kinds(node, content_type)
            for kind in sorted(kinds):
                if kind != _POSTCODE:
                    self._add(kind, unit, path, node)
                elif key != "code" and not isinstance(node, _Number):
                    self._add("address", unit, path, node)
        elif isinstance(node, list):
            for n, item in enumerate(node):
                self._walk(item, unit, f"{path}[{n}]", key, content_type)
        elif isinstance(node, dict):
            for name, value in node.items():
                step = _step(name)
                if kinds := self._texts.kinds(name) - {_POSTCODE}:
                    step = "*"
                    for kind in sorted(kinds):
                        self._add(kind, unit, f"{path}.*", name)
                self._walk(value, unit, f"{path}.{step}", name, _content_type(node, name))

    def _add(self, kind: Any, unit: _Unit, path: str, text: str) -> None:
        like = re.sub(r"\[\d+\]", "[*]", path)
        key = (kind, re.sub(r"\[\d+\]", "[*]", unit.path) + like, text)
        first = self._found.get(key)
        if first is None:
            self._found[key] = Finding(unit.id_of(kind, path), self._label, unit.path + path, kind, 1, text)
        else:
            self._found[key] = Finding(first.id, first.part, first.path, kind, first.places + 1, text)


def _content_type(node: Mapping[str, Any], name: str) -> str | None:
    """The content type of the base64 under `name`, or None if that is no base64."""
    if name == "valueBase64Binary" or (
        name == "data" and ("contentType" in node or node.keys().isdisjoint({"origin", "dimensions"}))
    ):
        return str(node.get("contentType", ""))
    return None


def _step(key: str) -> str:
    return key if _plain_key.fullmatch(key) else "*"
