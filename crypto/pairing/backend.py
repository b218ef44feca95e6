"""What a pairing library must do for `crypto.group`, and the test that it passes before anything is computed with it.

A back end works on elements of its own, immutable values that nobody else looks into. All back ends give the same
bytes for the same elements: points in the compressed form of ZCash, hashes to the curve by RFC 9380, elements of GT
as their twelve field coordinates.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
FIELD = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
COMPRESSED, IDENTITY, LARGER_Y = 0x80, 0x40, 0x20
"""The flags in the first byte of a point."""
FLAGS = COMPRESSED | IDENTITY | LARGER_Y

G1_GENERATOR = bytes.fromhex(
    "97f1d3a73197d7942695638c4fa9ac0fc3688c4f9774b905a14e3a3f171bac586c55e83ff97a1aeffb3af00adb22c6bb"
)
G2_GENERATOR = bytes.fromhex(
    "93e02b6052719f607dacd3a088274f65596bd0d09920b61ab5da61bbdc7f5049334cf11213945d57e5ac7d055d042b7e"
    "024aa2b2f08f0a91260805272dc51051c6e47ad4fa403b02b4510b647ae3d1770bac0326a805bbefd48056c8c121bdb8"
)

Native = Any
Row = Sequence[tuple[Native, int]]


class Curve(Protocol):
    """G1 or G2. Scalars are in [0, ORDER)."""

    @property
    def generator(self) -> Native: ...

    def add(self, p: Native, q: Native) -> Native: ...

    def negate(self, p: Native) -> Native: ...

    def multiply(self, p: Native, scalar: int) -> Native: ...

    def combine(self, rows: Sequence[Row]) -> list[Native]:
        """For each row of at least one term, the sum of its points times their scalars."""

    def equal(self, p: Native, q: Native) -> bool: ...

    def is_identity(self, p: Native) -> bool: ...

    def encode(self, points: Sequence[Native]) -> list[bytes]:
        """The ZCash form of each."""

    def decode(self, data: bytes, in_group: bool) -> Native:
        """The point that `data`, of the right length and flagged as compressed and not the identity, encodes.

        `ValueError` unless it is canonical and on the curve and, if `in_group` is asked, of order `ORDER`.
        """


class Backend(Protocol):
    """GT is written multiplicatively."""

    @property
    def g1(self) -> Curve: ...

    @property
    def g2(self) -> Curve: ...

    def hash_to_g1(self, message: bytes, dst: bytes) -> Native:
        """RFC 9380, suite BLS12381G1_XMD:SHA-256_SSWU_RO_."""

    def pairing_product(self, pairs: Sequence[tuple[Native, Native]]) -> Native:
        """The product of e(p, q) over at least one pair."""

    def gt_multiply(self, a: Native, b: Native) -> Native: ...

    def gt_power(self, a: Native, scalar: int) -> Native: ...

    def gt_encode(self, a: Native) -> bytes: ...


class Broken(Exception):
    """A back end gave a wrong answer."""


# RFC 9380 appendix J.9.1
_HASH_DST = b"QUUX-V01-CS02-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"
_HASH = "83567bc5ef9c690c2ab2ecdf6a96ef1c139cc0b2f284dca0a9a7943388a49a3aee664ba5379a7655d3c68900be2f6903"
_PAIRING = "849392ca17a047335e49aa6c52463cf9a245e3bc1889eea61e3d472fd0a12d11"
"""SHA-256 of e(k g1, g2), where k is `_SCALAR`."""
_SCALAR = int.from_bytes(hashlib.sha256(b"diptych self-test").digest(), "big") % ORDER


class _Case(NamedTuple):
    """The generator, the x of a point outside the group, and an x that no point has."""

    generator: bytes
    outside: int
    no_point: int


def self_test(backend: Backend) -> None:
    """Raise, `Broken` or what the library raises, unless every operation gives known or consistent answers."""
    for name, curve, case in (
        ("G1", backend.g1, _Case(G1_GENERATOR, 4, 1)),
        ("G2", backend.g2, _Case(G2_GENERATOR, 2, 1)),
    ):
        _test_curve(name, curve, case)
    hashed = backend.g1.encode([backend.hash_to_g1(b"abc", _HASH_DST)])
    _check(hashed == [bytes.fromhex(_HASH)], "hashing to G1")
    p, q = backend.g1.multiply(backend.g1.generator, _SCALAR), backend.g2.generator
    one_pairing = backend.pairing_product([(p, q)])
    digest = hashlib.sha256(backend.gt_encode(one_pairing)).hexdigest()
    _check(digest == _PAIRING, "the pairing")
    square, fifth = backend.gt_multiply(one_pairing, one_pairing), backend.gt_power(one_pairing, 5)
    _check(
        backend.gt_encode(fifth)
        == backend.gt_encode(backend.gt_multiply(backend.gt_multiply(square, square), one_pairing)),
        "powers in GT",
    )
    product = backend.pairing_product([(p, q), (backend.g1.generator, backend.g2.multiply(q, _SCALAR))])
    _check(backend.gt_encode(product) == backend.gt_encode(square), "products of pairings")
    wide = backend.gt_power(backend.pairing_product([(backend.g1.generator, q)]), _SCALAR)
    _check(backend.gt_encode(wide) == backend.gt_encode(one_pairing), "powers in GT")


def _test_curve(name: str, curve: Curve, case: _Case) -> None:
    encoded, g = case.generator, curve.generator
    _check(curve.encode([g]) == [encoded], f"the generator of {name}")
    negated = bytes([encoded[0] ^ LARGER_Y]) + encoded[1:]
    _check(curve.encode([curve.negate(g)]) == [negated], f"the encoding of {name}")
    for in_group in (True, False):
        _check(curve.equal(curve.decode(encoded, in_group), g), f"decoding of {name}")
        _check(curve.equal(curve.decode(negated, in_group), curve.negate(g)), f"decoding of {name}")
    sums = g
    for bit in bin(_SCALAR)[3:]:
        sums = curve.add(sums, sums)
        if bit == "1":
            sums = curve.add(sums, g)
    p = curve.multiply(g, _SCALAR)
    _check(curve.equal(p, sums) and not curve.equal(p, g), f"multiplication in {name}")
    _check(curve.is_identity(curve.add(p, curve.negate(p))), f"negation in {name}")
    _check(not curve.is_identity(p), f"the identity of {name}")
    # Enough terms for code that takes many at once, and some more.
    rows = [[(p, _SCALAR - i), (g, i)] for i in range(1, 12)]
    wanted = [curve.add(*(curve.multiply(point, scalar) for point, scalar in row)) for row in rows]
    combined = curve.combine(rows) + curve.combine(rows[:1])
    _check(curve.encode(combined) == curve.encode([*wanted, wanted[0]]), f"multi-exponentiation in {name}")
    for x, what in (
        (case.outside, "outside its group"),
        (case.no_point, "off the curve"),
        (FIELD + case.outside, "whose coordinates are not canonical"),
    ):
        data = x.to_bytes(len(encoded), "big")
        try:
            curve.decode(bytes([data[0] | COMPRESSED]) + data[1:], True)
        except ValueError:
            continue
        raise Broken(f"{name} takes points {what}")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(f"{what} went wrong")
