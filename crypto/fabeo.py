"""Ciphertext-policy attribute-based encryption: only who holds attributes that satisfy a policy can open.

FABEO (Riepel and Wee, CCS 2022, eprint 2022/1415, the CP-ABE scheme), adaptively secure in the generic group
model with random oracles, as a key encapsulation mechanism on BLS12-381. B and H(u) are points of G1 hashed
from fixed names, [x]_i is x times the generator of G_i:

    master key a;  public key e(g1, g2)^a
    key for S      [a]_1 + r B,  r H(u) for u in S,  [r]_2
    header         [s]_2,  [t_1]_2 .. [t_tau]_2,  l_i B + t_rho(i) H(pi(i)) for each leaf i
    it hides       e(g1, g2)^(a s)

Here l_1, l_2, ... share s over the policy, pi(i) is the attribute of leaf i and rho(i) says which of its
occurrences that leaf is. The t_j differ by occurrence: with one t for all of them, a holder of A alone opens
`A and B or B and C or A and C`.

The Fujisaki-Okamoto transform makes it secure against chosen ciphertexts, and is the only mode: a random m is
masked by a hash of the hidden element; the policy, the caller's context, the public key and m determine s, t
and l; opening recomputes the header from m and compares all its bytes. So a header opens only where it was
made, and a changed one never does.

The authority that holds the master key can open everything (key escrow). Timing: see `crypto.group`.
"""

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Self, TypeVar

import msgspec

from crypto.codec import Bytes32, Decoder, Short, Wire, encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.group import (
    G1,
    G1_BYTES,
    G1_GENERATOR,
    G2,
    G2_BYTES,
    G2_GENERATOR,
    GT,
    GT_BYTES,
    ORDER,
    WIDE_BYTES,
    gt_generator,
    hash_name,
    pairing_product,
    random_scalar,
    scalar_from_bytes,
    scalar_from_wide,
    scalar_to_bytes,
)
from crypto.policy import MAX_LEAVES, Policy, check_attribute, coefficients, parse, share
from crypto.sign import domain_tag

SUITE = "fabeo-bls12381-fo"
KEY_BYTES = 32
MAX_ATTRIBUTES = 256
"""Attributes of one key."""
MAX_HEADER_BYTES = G2_BYTES * (1 + MAX_LEAVES) + G1_BYTES * MAX_LEAVES + 128
MAX_ATTRIBUTE_KEY_BYTES = (G1_BYTES + 132) * MAX_ATTRIBUTES + 256

_B = ("fabeo-base", "")
_ATTRIBUTE_DOMAIN = "fabeo-attribute"

Random = Callable[[int], bytes]
T = TypeVar("T", bound="_Suited")


class _Suited(Wire, frozen=True):
    suite: Short


class _PublicKey(_Suited, frozen=True):
    element: Annotated[bytes, msgspec.Meta(min_length=GT_BYTES, max_length=GT_BYTES)]


class _MasterKey(_Suited, frozen=True):
    secret: Bytes32


class _AttributeKey(_Suited, frozen=True):
    """`points` are those of `attributes`, in their order."""

    attributes: Annotated[tuple[Short, ...], msgspec.Meta(min_length=1, max_length=MAX_ATTRIBUTES)]
    base: bytes
    points: bytes
    randomizer: bytes


class _Header(_Suited, frozen=True):
    """`seeds` are [s]_2, [t_1]_2, ...; `rows` are one point of G1 for each leaf of the canonical policy."""

    seeds: bytes
    rows: bytes
    masked: Bytes32


class _AnySuite(msgspec.Struct, array_like=True):
    suite: Short


_decode_public = Decoder(_PublicKey, "a FABEO public key", 1024)
_decode_master = Decoder(_MasterKey, "a FABEO master key", 128)
_decode_key = Decoder(_AttributeKey, "a FABEO attribute key", MAX_ATTRIBUTE_KEY_BYTES)
_decode_header = Decoder(_Header, "a FABEO header", MAX_HEADER_BYTES)
_peek = msgspec.msgpack.Decoder(_AnySuite)


class PublicKey:
    """What encryption needs; `fingerprint` is the SHA-256 of its bytes."""

    def __init__(self, element: GT) -> None:
        self.element = element
        self.fingerprint = hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        return encode(_PublicKey(SUITE, self.element.to_bytes()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`.

        It is not authenticated: whoever replaces it reads what is encrypted under it.
        """
        return cls(GT.from_bytes(_decode(_decode_public, data).element))

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint.hex()[:16]}…)"


class AttributeKey:
    """What one holder of `attributes` opens headers with. Keys do not combine: each has its own random r."""

    def __init__(self, base: G1, points: dict[str, G1], randomizer: G2) -> None:
        self.attributes = frozenset(points)
        self._base = base
        self._points = points
        self._randomizer = randomizer

    def to_bytes(self) -> bytes:
        """The secret key itself, unencrypted."""
        names = sorted(self._points)
        points = b"".join(self._points[name].to_bytes() for name in names)
        return encode(
            _AttributeKey(SUITE, tuple(names), self._base.to_bytes(), points, self._randomizer.to_bytes())
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`."""
        wire = _decode(_decode_key, data)
        names = [check_attribute(name) for name in wire.attributes]
        points = [G1.from_bytes(part) for part in _cut(wire.points, G1_BYTES)]
        if names != sorted(set(names)) or len(points) != len(names):
            raise Malformed("a FABEO attribute key must have one point for each attribute, in their order")
        return cls(
            G1.from_bytes(wire.base), dict(zip(names, points, strict=True)), G2.from_bytes(wire.randomizer)
        )

    def __repr__(self) -> str:
        return f"AttributeKey(<{len(self.attributes)} attributes>)"


class MasterKey:
    """The attribute authority's secret: it issues every attribute key and can open every header."""

    def __init__(self, secret: int) -> None:
        self._secret = secret
        self._base = G1_GENERATOR * secret
        self.public = PublicKey(gt_generator() ** secret)

    @classmethod
    def generate(cls, random: Random = os.urandom) -> Self:
        return cls(random_scalar(random))

    def issue(self, attributes: Iterable[str], random: Random = os.urandom) -> AttributeKey:
        """A key for 1 to `MAX_ATTRIBUTES` attributes, or `Malformed`."""
        names = {check_attribute(name) for name in attributes}
        if not 1 <= len(names) <= MAX_ATTRIBUTES:
            raise Malformed(f"a key has 1 to {MAX_ATTRIBUTES} attributes, not {len(names)}")
        r = random_scalar(random)
        return AttributeKey(
            self._base + hash_name(*_B) * r,
            {name: hash_name(_ATTRIBUTE_DOMAIN, name) * r for name in names},
            G2_GENERATOR * r,
        )

    def to_bytes(self) -> bytes:
        """The secret key itself, unencrypted."""
        return encode(_MasterKey(SUITE, scalar_to_bytes(self._secret)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`."""
        return cls(scalar_from_bytes(_decode(_decode_master, data).secret))

    def __repr__(self) -> str:
        return f"MasterKey({self.public!r})"


def encapsulate(
    public: PublicKey, policy: str, context: bytes, random: Random = os.urandom
) -> tuple[bytes, bytes]:
    """A header and the fresh key of `KEY_BYTES` that it carries for whoever satisfies `policy`.

    The header (96 bytes for each of 1 + tau seeds, 48 for each leaf, less than 80 more) holds neither
    `policy` nor `context`; both are needed to open it. Raises `PolicyError`.
    """
    return _seal(public, parse(policy), context, random(32))


def decapsulate(public: PublicKey, key: AttributeKey, policy: str, header: bytes, context: bytes) -> bytes:
    """The key that `encapsulate` returned with `header`.

    Raises `Denied` if the attributes of `key` do not satisfy `policy`, `Malformed` if `header` or a point
    that is needed of it does not decode or `policy` does not parse, `Unauthentic` if the header was changed
    or made for another policy, context or public key.
    """
    parsed = parse(policy)
    wire = _decode(_decode_header, header)
    seeds, rows = _cut(wire.seeds, G2_BYTES), _cut(wire.rows, G1_BYTES)
    if (len(seeds), len(rows)) != (1 + max(_occurrences(parsed)), len(parsed.leaves)):
        raise _unauthentic()
    weights = coefficients(parsed, key.attributes, ORDER)
    if weights is None:
        shown = policy if len(policy) <= 200 else policy[:200] + "…"
        raise Denied(
            f"the attributes of this key do not satisfy the policy {shown!r}; ask for a key that does"
        )
    hidden = _open(key, parsed, weights, seeds, rows)
    m = _xor(wire.masked, _mask(hidden))
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
    occurrences = _occurrences(policy)
    # s, one t for each occurrence, and at most one draw less than leaves for sharing.
    wide = _hash(
        "fabeo-coins",
        WIDE_BYTES * (max(occurrences) + len(policy.leaves)),
        str(policy),
        context,
        m,
        public.fingerprint,
    )
    coins = iter([scalar_from_wide(part) for part in _cut(wide, WIDE_BYTES)])
    s = next(coins)
    t = [next(coins) for _ in range(max(occurrences))]
    shares = share(policy, s, coins.__next__, ORDER)
    base = hash_name(*_B)
    rows = [
        base * part + hash_name(_ATTRIBUTE_DOMAIN, name) * t[occurrence - 1]
        for part, name, occurrence in zip(shares, policy.leaves, occurrences, strict=True)
    ]
    header = encode(
        _Header(
            SUITE,
            b"".join((G2_GENERATOR * exponent).to_bytes() for exponent in [s, *t]),
            b"".join(row.to_bytes() for row in rows),
            _xor(m, _mask(public.element**s)),
        )
    )
    return header, _hash("fabeo-key", KEY_BYTES, m, header, context)


def _open(
    key: AttributeKey, policy: Policy, weights: dict[int, int], seeds: Sequence[bytes], rows: Sequence[bytes]
) -> GT:
    """The hidden element, from the rows and seeds that `weights` name; the others are not even decoded."""
    occurrences = _occurrences(policy)
    by_occurrence: dict[int, list[tuple[G1, int]]] = {}
    for leaf, weight in weights.items():
        by_occurrence.setdefault(occurrences[leaf], []).append((key._points[policy.leaves[leaf]], weight))
    blinded = _weighted_sum([(G1.from_bytes(rows[leaf]), weight) for leaf, weight in weights.items()])
    return pairing_product(
        [
            (key._base, G2.from_bytes(seeds[0])),
            *((_weighted_sum(points), G2.from_bytes(seeds[j])) for j, points in by_occurrence.items()),
            (-blinded, key._randomizer),
        ]
    )


def _occurrences(policy: Policy) -> list[int]:
    """For each leaf, how many leaves up to and including it have its attribute."""
    seen: Counter[str] = Counter()
    occurrences = []
    for name in policy.leaves:
        seen[name] += 1
        occurrences.append(seen[name])
    return occurrences


def _weighted_sum(terms: Sequence[tuple[G1, int]]) -> G1:
    first, *rest = (point if weight == 1 else point * weight for point, weight in terms)
    return sum(rest, start=first)


def _mask(hidden: GT) -> bytes:
    return _hash("fabeo-mask", 32, hidden.to_bytes())


def _hash(domain: str, size: int, *parts: bytes | str) -> bytes:
    """`size` bytes of SHAKE256 over the domain, the suite and the parts, each with its length."""
    return hashlib.shake_256(domain_tag(domain) + encode((SUITE, *parts))).digest(size)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _cut(data: bytes, size: int) -> list[bytes]:
    """`data` in pieces of `size` bytes, or `Malformed` if it does not come out even."""
    if len(data) % size:
        raise Malformed(f"{len(data)} bytes of points do not divide into points of {size} bytes")
    return [data[start : start + size] for start in range(0, len(data), size)]


def _decode(decoder: Decoder[T], data: bytes) -> T:
    """As `decoder`, but an object of another suite, whatever its form, is refused by that name."""
    with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        suite = _peek.decode(data).suite
        if suite != SUITE:
            raise Malformed(f"the suite {suite!r} is unknown here, only {SUITE!r} is; update this software")
    return decoder(data)
