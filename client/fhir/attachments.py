"""What the bytes of an attachment say, as far as it can be had without a library for each format.

Text of any kind, RTF and gzip are read; of a PDF, the strings that it shows, unless its fonts number their letters in a way of their own.
Whatever else (pictures, sound, archives, DICOM) is not looked into, and that is said. Everything is from outside: the work is
linear in the bytes, and what they unpack to is bounded.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Iterator

MAX_UNPACKED = 16 << 20
"""Bytes that one attachment may unpack to; of more, only this many are read."""
MAX_NESTING = 4
"""Attachments inside attachments."""

_base64_run = re.compile(r"(?<![A-Za-z0-9+/\r\n])[A-Za-z0-9+/\r\n]{256,}+={0,2}")
_charset = re.compile(r"charset=\"?([A-Za-z0-9_-]{1,32})", re.IGNORECASE)
_rtf = re.compile(
    r"\\'([0-9a-fA-F]{2})|\\u(-?[0-9]{1,6}) ?\??|\\(par|line|tab|cell|row|sect|page)b?(?![a-z])-?[0-9]{0,9} ?"
    r"|\\[a-zA-Z]{1,32}-?[0-9]{0,9} ?|[{}\r\n]|\\(.)",
    re.DOTALL,
)
_rtf_objects = ("\\pict", "\\object", "\\bin")
_pdf_string = rb"\((?>(?:[^()\\]|\\.)*)\)"
_pdf_array = re.compile(
    rb"\[((?>(?:" + _pdf_string + rb"|<[0-9A-Fa-f\s]*+>|[^\[\]()<>])*))\]\s*TJ", re.DOTALL
)
_pdf_shown = re.compile(rb"(" + _pdf_string + rb")|<([0-9A-Fa-f\s]++)>|(-[0-9]{3,9})", re.DOTALL)
_pdf_escape = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)


def decode_base64(text: str) -> bytes | None:
    """The bytes, or None if it is no base64; whitespace is passed over, as FHIR allows."""
    try:
        return base64.b64decode("".join(text.split()).encode(), validate=True)
    except (binascii.Error, ValueError):
        return None


def texts_in(data: bytes, content_type: str = "", nesting: int = 0) -> Iterator[str | None]:
    """The texts in the bytes of an attachment, and None for whatever was not, or not wholly, looked into."""
    if nesting > MAX_NESTING:
        yield None
    elif data.startswith(b"\x1f\x8b"):
        unpacked, is_whole = _inflate(data, 31)
        if not is_whole:
            yield None
        yield from texts_in(unpacked, content_type, nesting + 1)
    elif data.startswith(b"%PDF"):
        yield _pdf_text(data)
        yield None
    elif (text := _text(data, content_type)) is None:
        yield None
    elif text.startswith("{\\rtf"):
        yield _rtf.sub(_rtf_token, text)
        if any(word in text for word in _rtf_objects):
            yield None
    else:
        yield text
        yield from texts_inside(text, nesting + 1)


def texts_inside(text: str, nesting: int = 0) -> Iterator[str | None]:
    """As `texts_in`, for long stretches of base64 within a text: pictures in XHTML, documents in CDA."""
    for run in _base64_run.finditer(text):
        if (data := decode_base64(run[0])) is not None:
            yield from texts_in(data, "", nesting)


def _text(data: bytes, content_type: str) -> str | None:
    """The bytes as text, or None if they are none."""
    said = _charset.search(content_type)
    tried = [said[1]] if said else []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:64]:
        is_big = data.startswith(b"\xfe\xff") or data[:1] == b"\0"
        tried.append("utf-16-be" if is_big else "utf-16-le")
    for encoding in (*tried, "utf-8", "cp1252"):
        try:
            text = data.decode(encoding)
        except (UnicodeError, LookupError):
            continue
        sample = text[:4096]
        if sum(c < " " and c not in "\t\n\r\f\x0b\x1c\x1d\x1e" for c in sample) * 50 <= len(sample):
            return text
    return None


def _inflate(data: bytes, window: int) -> tuple[bytes, bool]:
    """What can be had of a deflate stream, and whether that is all of it."""
    machine = zlib.decompressobj(window)
    try:
        out = machine.decompress(data, MAX_UNPACKED)
    except zlib.error:
        return b"", False
    return out, machine.eof and not machine.unused_data


def _rtf_token(token: re.Match[str]) -> str:
    byte, unit, space, char = token.groups()
    if byte:
        return bytes([int(byte, 16)]).decode("cp1252", "replace")
    if unit:
        return chr(int(unit) % 0x10000)
    return " " if space else char or ""


def _pdf_text(data: bytes) -> str:
    """The strings that the pages of a PDF show, and those of its properties: arrays of strings joined, all else apart."""
    shown, left = [_pdf_strings(data)], MAX_UNPACKED
    at = data.find(b"stream")
    while at >= 0 and left > 0:
        start = at + (8 if data[at + 6 : at + 8] == b"\r\n" else 7)
        end = data.find(b"endstream", start)
        if end < 0:
            break
        content, _ = _inflate(data[start:end], 15)
        shown.append(_pdf_strings(content[:left]))
        left -= len(content)
        at = data.find(b"stream", end + 9)
    return " ".join(shown)


def _pdf_strings(content: bytes) -> str:
    arrays = ["".join(_pdf_pieces(found[1])) for found in _pdf_array.finditer(content)]
    return " ".join([*arrays, *_pdf_pieces(content)])


def _pdf_pieces(content: bytes) -> Iterator[str]:
    for literal, digits, kern in _pdf_shown.findall(content):
        if kern:
            yield " "
            continue
        if literal:
            piece = _pdf_escape.sub(_pdf_byte, literal[1:-1])
        else:
            plain = b"".join(digits.split())
            piece = bytes.fromhex((plain + b"0" * (len(plain) % 2)).decode())
        yield piece.decode("utf-16-be" if piece.startswith(b"\xfe\xff") else "cp1252", "replace")


def _pdf_byte(escape: re.Match[bytes]) -> bytes:
    if escape[1].isdigit():
        return bytes([int(escape[1], 8) & 0xFF]) if escape[1][0] < 0x38 else escape[1]
    return b"" if escape[1] in b"\r\n" else b" " if escape[1] in b"nrtbf" else escape[1]
