"""JSON as text: check it strictly and drop the whitespace between its tokens, re-encoding none of them.

A signature over a medical record covers the bytes that were received: FHIR gives meaning to the digits of a
decimal (`565.00` is not `565`), and a decode-encode round trip changes digits, escapes and order. So strings
and numbers stay as they were written; only whitespace between tokens goes.

One regular expression matches one token and the whitespace after it, and it matches at every position (the
last alternative takes any byte), so a pass is linear in the input whatever the input is. The quantifiers are
possessive: no backtracking. The pass checks what JSON libraries let through and what would let two readers
see different records: duplicate keys (compared after unescaping), lone surrogates, depth. The grammar between
the tokens is then left to msgspec. Sources: RFC 8259, RFC 7493 (I-JSON).
"""

import json
import re

import msgspec

from crypto.errors import Malformed

MAX_BUNDLE = 64 << 20
"""Bytes of one FHIR bundle, as received."""
MAX_DEPTH = 64
"""Objects and lists inside one another, the outermost counted."""
MAX_ENTRIES = 100_000

_SPACE = rb"[ \t\n\r]*+"
_HEX = rb"[0-9A-Fa-f]"
_UNIT = (
    rb"\\u(?:[0-9A-CE-Fa-ce-f]" + _HEX + rb"{3}|[Dd][0-7]" + _HEX + rb"{2}"
    rb"|[Dd][89ABab]" + _HEX + rb"{2}\\u[Dd][C-Fc-f]" + _HEX + rb"{2})"
)  # a high surrogate only together with its low one
# Atomic, not possessive: Python before 3.11.5 takes a group repeated possessively for matched that has failed in its middle.
_OPEN_STRING = rb'"[^"\\\x00-\x1f]*+(?>(?:(?:\\["\\/bfnrt]|' + _UNIT + rb')[^"\\\x00-\x1f]*+)*)'
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_KEY, _ATOM, _OPEN, _CLOSE = 2, 3, 4, 5
_token = re.compile(
    rb"(?:(" + _OPEN_STRING + rb'")(?:' + _SPACE + rb"(:))?"
    rb"|(,|" + _NUMBER + rb"|true|false|null)|([\[{])|([\]}])|(.))" + _SPACE,
    re.DOTALL,
)
_string = re.compile(_OPEN_STRING + rb'"')
_open_string = re.compile(_OPEN_STRING)
_cut_escape = re.compile(rb"\\(?:u" + _HEX + rb"{0,4}(?:\\(?:u" + _HEX + rb"{0,4})?)?)?")
_cut_atom = re.compile(rb"-?[0-9]*+\.?[0-9]*+[eE]?[+-]?|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?")
_surrogate = re.compile(rb"\\u[Dd][89A-Fa-f]" + _HEX + rb"{2}")
_not_a_number = re.compile(rb"-?Inf|-?NaN")
_byte_position = re.compile(r"\(byte (\d+)\)")
_CUT = "is cut off: it ends in the middle of the JSON; fetch or export it again"


def minify(data: bytes, what: str = "The document", limit: int = MAX_BUNDLE, depth: int = MAX_DEPTH) -> bytes:
    """The same sequence of JSON tokens without whitespace between them.

    Raises `Malformed`, with `what` as the subject of the sentence and with the place but nothing of the
    content, if `data` is longer than `limit` bytes, is not UTF-8 or not JSON, nests deeper than `depth`,
    holds a duplicate key or a lone surrogate, or lists more than `MAX_ENTRIES` objects directly below its
    root.
    """
    if len(data) > limit:
        raise Malformed(
            f"{what} has {len(data)} bytes, over the limit of {limit}: split it and import the pieces"
        )
    if data.startswith(b"\xef\xbb\xbf"):
        raise Malformed(
            f"{what} begins with a byte order mark, which JSON forbids: save it as UTF-8 without BOM"
        )
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise Malformed(f"{what} {_CUT}") from None
        raise _refusal(what, "is not valid UTF-8", data, error.start, "save it as UTF-8") from None

    out = bytearray()
    parents: list[set[bytes] | None] = []
    keys: set[bytes] | None = None  # those of the innermost object, None in a list
    entries = 0
    for match in _token.finditer(data, len(data) - len(data.lstrip(b" \t\n\r"))):
        kind = match.lastindex or 0
        if kind == _KEY:
            key = match[1]
            out += key
            out += b":"
            name = key if b"\\" not in key else b'"' + json.loads(key).encode() + b'"'
            if keys is None:
                raise _refusal(what, "is not valid JSON", data, match.start())
            if name in keys:
                raise _refusal(
                    what, "has the same key twice in one object", data, match.start(), "keep one of them"
                )
            keys.add(name)
            continue
        if kind == _OPEN:
            parents.append(keys)
            if len(parents) > depth:
                raise _refusal(what, f"nests deeper than {depth} levels", data, match.start())
            keys = set() if match[_OPEN] == b"{" else None
            entries += len(parents) == 3
            if entries > MAX_ENTRIES:
                raise Malformed(f"{what} has more than {MAX_ENTRIES} entries: split it and import the pieces")
        elif kind == _CLOSE:
            if not parents:
                raise _refusal(what, "is not valid JSON", data, match.start())
            keys = parents.pop()
        elif kind > _CLOSE:
            raise _bad_token(what, data, match.start())
        out += match[kind]
    if not out:
        raise Malformed(f"{what} is empty: a JSON document is expected")
    if parents:
        raise Malformed(f"{what} {_CUT}")
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        place = _byte_position.search(str(error))
        raise _refusal(what, "is not valid JSON", data, int(place[1]) if place else len(data)) from None
    return bytes(out)


def tokens_equal(a: bytes, b: bytes) -> bool:
    """Whether two JSON documents are the same sequence of tokens. Raises `Malformed` if one is not JSON (see
    `minify`)."""
    return minify(a) == minify(b)


def members(minified: bytes) -> list[tuple[str, bytes, bytes]]:
    """(name, key token, value) of each member of a minified JSON object, in order, tokens as written."""
    found, at = [], 1
    for name, raw in msgspec.json.decode(minified, type=dict[str, msgspec.Raw]).items():
        key = _string.match(minified, at)
        assert key is not None
        value = bytes(raw)
        found.append((name, key[0], value))
        at = key.end() + len(value) + 2  # ':' and ','
    return found


def _refusal(
    what: str, wrong: str, data: bytes, at: int, remedy: str = "export it again from its source"
) -> Malformed:
    line, column = data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at)
    return Malformed(f"{what} {wrong} (byte {at}, line {line}, column {column}): {remedy}")


def _bad_token(what: str, data: bytes, at: int) -> Malformed:
    """Why no token begins at `at`."""
    if _not_a_number.match(data, at):
        return _refusal(what, "holds NaN or Infinity, which JSON does not have", data, at)
    opened = _open_string.match(data, at)
    if opened is None:
        if _cut_atom.fullmatch(data, at):
            return Malformed(f"{what} {_CUT}")
        return _refusal(what, "is not valid JSON", data, at)
    end = opened.end()
    if end == len(data) or _cut_escape.fullmatch(data, end):
        return Malformed(f"{what} {_CUT}")
    if _surrogate.match(data, end):
        return _refusal(what, "holds half of a surrogate pair in a string", data, end)
    return _refusal(what, "has a control character or an unknown escape in a string", data, end)
