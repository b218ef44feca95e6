"""Canonical msgpack: one value, one encoding.

Whatever is hashed or signed is encoded here. A decoder accepts only the bytes that the encoder would write for the decoded
value, so two different byte strings never mean the same object (otherwise an attacker could vary ids without a key).
Types are `msgspec` structs whose fields carry their bounds; a float never occurs.

Whatever is decoded on its own begins with the name of its suite (docs/suites.md), most often as the tag of its struct: `tx/1`.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import inspect

from crypto.errors import Malformed

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of wire objects: an immutable msgpack array with a fixed number of typed, bounded fields.

    Subclasses repeat `frozen=True` for the type checker, which does not inherit it. The garbage collector passes them over, as
    what cannot change cannot come to be part of a cycle.
    """


Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes48 = Annotated[bytes, msgspec.Meta(min_length=48, max_length=48)]
Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Short = Annotated[str, msgspec.Meta(max_length=128)]
UInt = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _AnySuite(msgspec.Struct, array_like=True):
    suite: Short


_peek = msgspec.msgpack.Decoder(_AnySuite)
_IS_SUITE = re.compile(r"[a-z][a-z0-9-]*(/[a-z0-9.+-]{1,32}){1,2}")


def encode(value: object) -> bytes:
    """The canonical encoding of a wire object or of plain tuples, strings, bytes and integers."""
    return _encoder.encode(value)


class Decoder(Generic[T]):
    """Decodes exactly one `kind` of at most `limit` bytes, named `what` in error messages.

    An object of another suite, whatever its form, is refused by that name. `known` are the suites of `kind`: its tags, or the values
    of a literal first field; with a `suite`, the first field is a string and this its only value.
    """

    def __init__(self, kind: type[T], what: str, limit: int, suite: str | None = None) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._what = what
        self._limit = limit
        self._suite = suite
        self.known = (suite,) if suite is not None else tuple(_suites(inspect.type_info(kind)))

    def __call__(self, data: bytes) -> T:
        """The object, or `Malformed` if `data` is too long, of another form, or not canonical."""
        if len(data) > self._limit:
            raise Malformed(f"{self._what} of {len(data)} bytes is over the limit of {self._limit}")
        if self._suite is not None:
            with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                check_suite(_peek.decode(data).suite, self._suite)
        try:
            value = self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._check_name(data)
            raise Malformed(f"{self._what} does not decode: {error}") from None
        if _encoder.encode(value) != data:
            raise Malformed(f"{self._what} is not canonically encoded")
        return value

    def _check_name(self, data: bytes) -> None:
        """Only for what has failed to decode: names cost the good objects nothing."""
        if self.known:
            with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                check_named(self._what, _peek.decode(data).suite, self.known)


def check_named(what: str, suite: str, known: Iterable[str]) -> None:
    """`Malformed`, saying of `what` that it is of an unknown suite or of another kind, if `suite` is the name of a suite, and not one
    of `known`."""
    known = tuple(known)
    if suite in known or not _IS_SUITE.fullmatch(suite):
        return
    kind = suite.rpartition("/")[0]
    same = [name for name in known if name.rpartition("/")[0] == kind]
    if same:
        raise Malformed(
            f"{what} of suite {suite}, which this version does not know (it knows {' and '.join(same)}); update this program"
        )
    raise Malformed(f"{what} was expected, and this is of suite {suite}: an object of another kind")


def _suites(kind: inspect.Type) -> Iterable[str]:
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _suites(each)
    elif isinstance(kind, inspect.StructType):
        first = kind.fields[0].type
        if kind.tag is not None:
            yield str(kind.tag)
        elif isinstance(first, inspect.LiteralType):
            yield from filter(_IS_SUITE.fullmatch, map(str, first.values))


def check_suite(suite: str, known: str) -> None:
    """`Malformed`, naming the suite, unless it is the one this software knows."""
    if suite != known:
        raise Malformed(f"the suite {suite!r} is unknown here, only {known!r} is; update this software")
