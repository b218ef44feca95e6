"""Ciphertext-policy attribute-based encryption as a key encapsulation mechanism, whatever the scheme.

A scheme (`crypto.fabeo`, `crypto.fame`) hides an element of GT under a policy, secure against chosen plaintexts:
`PublicKey.hide` makes points of G2 (*seeds*) and of G1 (*rows*) out of random *coins*, `AttributeKey.reveal` finds
the element again. The Fujisaki-Okamoto transform here makes any of them secure against chosen ciphertexts, and is
the only mode: a random m is masked by a hash of the hidden element; the policy, the caller's context, the public
key and m determine the coins; opening makes the header anew from m and compares all its bytes. So a header opens
only where it was made, and a changed one never does.

Every object begins with the suite of its scheme and is refused by that name under another. The authority that
holds a master key can open everything (key escrow). Timing: see `crypto.group`.
"""

import hashlib
import hmac
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Annotated, ClassVar, NamedTuple, Self, TypeVar

import msgspec

from crypto import epoch
from crypto.codec import Bytes32, Decoder, Short, Wire, encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.group import G1, G1_BYTES, G2, G2_BYTES, GT, ORDER, WIDE_BYTES, scalar_from_wide
from crypto.policy import MAX_LEAVES, Policy, check_attribute, coefficients, parse
from crypto.sign import domain_tag

KEY_BYTES = 32
MAX_ATTRIBUTES = 256
"""Attributes of one key; a time-bound one counts as the `epoch.MAX_PARTS` parts that it may have."""
MAX_HEADER_BYTES = G2_BYTES * (1 + MAX_LEAVES) + 3 * G1_BYTES * MAX_LEAVES + 128
MAX_ATTRIBUTE_KEY_BYTES = 192 << 10

Random = Callable[[int], bytes]
T = TypeVar("T", bound="Suited")


class Suited(Wire, frozen=True):
    """Base of a scheme's wire objects."""

    suite: Short


class _AttributeKey(Suited, frozen=True):
    """`points` are those of the parts of `attributes` (`epoch.held`), in their order."""

    attributes: Annotated[tuple[Short, ...], msgspec.Meta(min_length=1, max_length=MAX_ATTRIBUTES)]
    base: bytes
    points: bytes
    randomizer: bytes


class _Header(Suited, frozen=True):
    """The points of G2 and of G1 that hide an element, and m under the mask of that element."""

    seeds: bytes
    rows: bytes
    masked: Bytes32


class _AnySuite(msgspec.Struct, array_like=True):
    suite: Short


_decode_key = Decoder(_AttributeKey, "an attribute key", MAX_ATTRIBUTE_KEY_BYTES)
_decode_header = Decoder(_Header, "a CP-ABE header", MAX_HEADER_BYTES)
_peek = msgspec.msgpack.Decoder(_AnySuite)


class Shape(NamedTuple):
    """How many points of G2 and of G1 a header has, and how many coins determine it."""

    seeds: int
    rows: int
    coins: int


class PublicKey(ABC):
    """What encryption needs."""

    suite: ClassVar[str]

    @cached_property
    def fingerprint(self) -> bytes:
        """The SHA-256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    @abstractmethod
    def to_bytes(self) -> bytes: ...

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`.

        It is not authenticated: whoever replaces it reads what is encrypted under it.
        """

    @abstractmethod
    def shape(self, policy: Policy) -> Shape:
        """Of a header for `policy`; `PolicyError` if the scheme has none for it."""

    @abstractmethod
    def hide(self, policy: Policy, coins: Sequence[int]) -> tuple[bytes, bytes, GT]:
        """Seeds, rows, and the element they hide; everything is determined by the arguments."""

    def __repr__(self) -> str:
        return f"PublicKey({self.suite}, {self.fingerprint.hex()[:16]}…)"


class AttributeKey(ABC):
    """What one holder of `attributes` opens headers with. Keys do not combine: each has its own random numbers."""

    suite: ClassVar[str]
    attributes: frozenset[str]

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The secret key itself, unencrypted."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`."""

    @abstractmethod
    def reveal(
        self, policy: Policy, weights: dict[int, int], seeds: Sequence[bytes], rows: Sequence[bytes]
    ) -> GT:
        """The hidden element, from the rows that `weights` name; points that are not needed are not even decoded.

        Points may be decoded as `from_bytes_to_compare` does: the caller compares the whole header with one of its
        own making before it lets out anything that depends on the element.
        """

    def __repr__(self) -> str:
        return f"AttributeKey({self.suite}, <{len(self.attributes)} attributes>)"


class MasterKey(ABC):
    """The attribute authority's secret: it issues every attribute key and can open every header."""

    suite: ClassVar[str]
    public: PublicKey

    @classmethod
    @abstractmethod
    def generate(cls, random: Random = os.urandom) -> Self: ...

    @abstractmethod
    def issue(self, attributes: Iterable[str], random: Random = os.urandom) -> AttributeKey:
        """A key for 1 to `MAX_ATTRIBUTES` attributes, or `Malformed`."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The secret key itself, unencrypted."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`."""

    def __repr__(self) -> str:
        return f"MasterKey({self.public!r})"


def encapsulate(
    public: PublicKey, policy: str, context: bytes, random: Random = os.urandom
) -> tuple[bytes, bytes]:
    """A header and the fresh key of `KEY_BYTES` that it carries for whoever satisfies `policy`.

    The header (the points that the scheme states, and less than 80 bytes) holds neither `policy` nor `context`;
    both are needed to open it. Raises `PolicyError`.
    """
    return _seal(public, parse(policy), context, random(32))


def decapsulate(public: PublicKey, key: AttributeKey, policy: str, header: bytes, context: bytes) -> bytes:
    """The key that `encapsulate` returned with `header`.

    Raises `Denied` if the attributes of `key` do not satisfy `policy`, `Malformed` if `header` or a point
    that is needed of it does not decode, is of another scheme than `public` and `key`, or `policy` does not
    parse, `Unauthentic` if the header was changed or made for another policy, context or public key.
    """
    parsed = parse(policy)
    check_suite(public.suite, key.suite)
    wire = decode_suited(_decode_header, public.suite, header)
    seeds, rows = cut(wire.seeds, G2_BYTES), cut(wire.rows, G1_BYTES)
    if (len(seeds), len(rows)) != public.shape(parsed)[:2]:
        raise _unauthentic()
    weights = coefficients(parsed, key.attributes, ORDER)
    if weights is None:
        shown = policy if len(policy) <= 200 else policy[:200] + "…"
        raise Denied(
            f"the attributes of this key do not satisfy the policy {shown!r}; ask for a key that does"
        )
    hidden = key.reveal(parsed, weights, seeds, rows)
    m = xor(wire.masked, mask(public.suite, hidden))
    expected, opened = _seal(public, parsed, context, m)
    if not hmac.compare_digest(expected, header):
        raise _unauthentic()
    return opened


def _unauthentic() -> Unauthentic:
    return Unauthentic(
        "the header does not open: it was changed, or belongs to another policy, place or public key"
    )


def _seal(public: PublicKey, policy: Policy, context: bytes, m: bytes) -> tuple[bytes, bytes]:
    """The header that carries `m`, and the key; everything is determined by the arguments."""
    suite, size = public.suite, WIDE_BYTES * public.shape(policy).coins
    wide = _hash("abe-coins", suite, size, str(policy), context, m, public.fingerprint)
    seeds, rows, hidden = public.hide(policy, [scalar_from_wide(part) for part in cut(wide, WIDE_BYTES)])
    header = encode(_Header(suite, seeds, rows, xor(m, mask(suite, hidden))))
    return header, _hash("abe-key", suite, KEY_BYTES, m, header, context)


# --- for the schemes --------------------------------------------------------------------------------------


def check_attributes(attributes: Iterable[str]) -> list[str]:
    """The distinct attributes of a key to issue, sorted; `Malformed` unless 1 to `MAX_ATTRIBUTES` proper ones."""
    names = sorted({check_attribute(name) for name in attributes})
    count = sum(epoch.MAX_PARTS if epoch.is_bound(name) else 1 for name in names)
    if not 1 <= count <= MAX_ATTRIBUTES:
        raise Malformed(
            f"a key has 1 to {MAX_ATTRIBUTES} attributes, where a time-bound one counts as {epoch.MAX_PARTS}; "
            f"these count as {count}"
        )
    return names


def parts_of(names: Iterable[str]) -> list[str]:
    """What a key for the attributes `names` has points for."""
    return [part for name in names for part in epoch.held(name)]


def encode_key(
    suite: str,
    attributes: Iterable[str],
    base: Iterable[G1],
    points: Mapping[str, Iterable[G1]],
    randomizer: Iterable[G2],
) -> bytes:
    """An attribute key; `points` holds the same number of points for each part of the attributes."""
    names = sorted(attributes)
    return encode(
        _AttributeKey(
            suite,
            tuple(names),
            G1.encode(list(base)),
            G1.encode([point for part in parts_of(names) for point in points[part]]),
            G2.encode(list(randomizer)),
        )
    )


def decode_key(
    suite: str, data: bytes, base: int, each: int, randomizer: int
) -> tuple[list[str], list[G1], dict[str, list[G1]], list[G2]]:
    """What `encode_key` wrote with `base` points, `each` for a part and `randomizer`; or `Malformed`."""
    wire = decode_suited(_decode_key, suite, data)
    names = check_attributes(wire.attributes)
    parts = parts_of(names)
    first, last = cut(wire.base, G1_BYTES), cut(wire.randomizer, G2_BYTES)
    listed = cut(wire.points, G1_BYTES * each)
    if list(wire.attributes) != names or (len(first), len(listed), len(last)) != (
        base,
        len(parts),
        randomizer,
    ):
        raise Malformed("an attribute key must have its points for each attribute, in their order")
    points = {
        part: [G1.from_bytes(point) for point in cut(found, G1_BYTES)]
        for part, found in zip(parts, listed, strict=True)
    }
    return names, [G1.from_bytes(point) for point in first], points, [G2.from_bytes(point) for point in last]


def occurrences(policy: Policy) -> list[int]:
    """For each leaf, how many leaves up to and including it have its attribute."""
    seen: Counter[str] = Counter()
    counted = []
    for name in policy.leaves:
        seen[name] += 1
        counted.append(seen[name])
    return counted


def weighted_sum(terms: Iterable[tuple[G1, int]]) -> G1:
    """The sum of point times weight over at least one of `terms`."""
    return G1.combine([list(terms)])[0]


def mask(suite: str, hidden: GT) -> bytes:
    """32 bytes that only who knows `hidden` knows."""
    return _hash("abe-mask", suite, 32, hidden.to_bytes())


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def cut(data: bytes, size: int) -> list[bytes]:
    """`data` in pieces of `size` bytes, or `Malformed` if it does not come out even."""
    if len(data) % size:
        raise Malformed(f"{len(data)} bytes of points do not divide into points of {size} bytes")
    return [data[start : start + size] for start in range(0, len(data), size)]


def suite_of(data: bytes) -> str | None:
    """The suite that an encoded object names, or None if it is not even such an object."""
    with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _peek.decode(data).suite
    return None


def check_suite(expected: str, found: str | None) -> None:
    """Raise `Malformed`, naming both, if another suite than the `expected` was found."""
    if found not in (None, expected):
        raise Malformed(
            f"the suite is {found!r} where {expected!r} is needed; use keys and records of one suite, "
            "or update this software if it does not know the suite"
        )


def decode_suited(decoder: Decoder[T], suite: str, data: bytes) -> T:
    """As `decoder`, but an object of another suite than `suite`, whatever its form, is refused by that name."""
    check_suite(suite, suite_of(data))
    return decoder(data)


def _hash(domain: str, suite: str, size: int, *parts: bytes | str) -> bytes:
    """`size` bytes of SHAKE256 over the domain, the suite and the parts, each with its length."""
    return hashlib.shake_256(domain_tag(domain) + encode((suite, *parts))).digest(size)
