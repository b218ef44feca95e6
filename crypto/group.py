"""BLS12-381: the groups G1, G2, GT of prime order `ORDER` and the pairing e: G1 x G2 -> GT.

The only module that touches a pairing library, so that another can take its place behind the same bytes: mcl
(pymcl) computes, arkworks (py_arkworks_bls12381) hashes to the curve by RFC 9380. Scalars are Python
integers, taken modulo `ORDER`.

- Points on the wire are in the compressed form of ZCash (big-endian x with three flag bits, as in the
  pairing-friendly curves draft of the CFRG): one point, one encoding. A decoded point is on the curve, in the
  subgroup of order `ORDER`, and not the identity.
- GT elements are decoded nowhere but in public keys, after a membership test from the definition of the group
  (`GT.from_bytes`).
- Scalars come from the operating system through `random_scalar`. mcl's own generator reads ahead through a
  buffer that forked processes inherit, so they would all draw the same "random" scalars.
- Nothing here runs in constant time: code that multiplies by a long-lived secret whenever a stranger asks
  must blind it.
"""

import os
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, ClassVar, Self

import pymcl
from py_arkworks_bls12381 import G1Point

from crypto.errors import Malformed

ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
SCALAR_BYTES = 32
WIDE_BYTES = 48
"""Uniform bytes to reduce to one scalar: 129 bits more than `ORDER` has, so the bias is below 2**-128."""
G1_BYTES = 48
G2_BYTES = 96
GT_BYTES = 576

_DST = b"DIPTYCH-V01-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"
_FIELD = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
_COMPRESSED, _IDENTITY, _LARGER_Y = 0x80, 0x40, 0x20
_FLAGS = _COMPRESSED | _IDENTITY | _LARGER_Y


def scalar_from_wide(data: bytes) -> int:
    """A scalar in [1, ORDER) from `WIDE_BYTES` uniform bytes."""
    if len(data) != WIDE_BYTES:
        raise ValueError(f"a scalar is reduced from {WIDE_BYTES} bytes")
    return int.from_bytes(data, "big") % (ORDER - 1) + 1


def random_scalar(random: Callable[[int], bytes] = os.urandom) -> int:
    """A uniform scalar in [1, ORDER)."""
    return scalar_from_wide(random(WIDE_BYTES))


def scalar_to_bytes(scalar: int) -> bytes:
    """`SCALAR_BYTES` bytes, big-endian."""
    return (scalar % ORDER).to_bytes(SCALAR_BYTES, "big")


def scalar_from_bytes(data: bytes) -> int:
    """The scalar in [1, ORDER) that `scalar_to_bytes` wrote, or `Malformed`."""
    scalar = int.from_bytes(data, "big")
    if len(data) != SCALAR_BYTES or not 0 < scalar < ORDER:
        raise Malformed(f"a scalar is a number from 1 to the group order in {SCALAR_BYTES} bytes")
    return scalar


def _native_scalar(scalar: int) -> Any:
    return pymcl.Fr.deserialize((scalar % ORDER).to_bytes(SCALAR_BYTES, "little"))


class _Point:
    """What G1 and G2 share.

    mcl writes x little-endian with the parity of y, ZCash x big-endian with the order of y and -y.
    """

    __slots__ = ("_native",)
    SIZE: ClassVar[int]
    _kind: ClassVar[Any]

    def __init__(self, native: Any) -> None:
        self._native = native

    def __add__(self, other: Self) -> Self:
        return type(self)(self._native + other._native)

    def __sub__(self, other: Self) -> Self:
        return type(self)(self._native - other._native)

    def __neg__(self) -> Self:
        return type(self)(-self._native)

    def __mul__(self, scalar: int) -> Self:
        return type(self)(self._native * _native_scalar(scalar))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(self._native == other._native)

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def is_identity(self) -> bool:
        return bool(self._native.is_zero())

    def _has_larger_y(self) -> bool:
        _, *coordinates = map(int, str(self._native).split())
        y = coordinates[len(coordinates) // 2 :]
        return next(2 * part > _FIELD for part in reversed(y) if part)

    def to_bytes(self) -> bytes:
        """`SIZE` bytes."""
        if self.is_identity:
            return bytes([_COMPRESSED | _IDENTITY]) + bytes(self.SIZE - 1)
        data = bytearray(reversed(self._native.serialize()))
        data[0] = data[0] & ~_FLAGS | _COMPRESSED | (_LARGER_Y if self._has_larger_y() else 0)
        return bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The point, or `Malformed` unless `data` encodes a point of the group other than the identity."""
        name = cls.__name__
        if len(data) != cls.SIZE:
            raise Malformed(f"a point of {name} has {cls.SIZE} bytes, not {len(data)}")
        if data[0] & (_COMPRESSED | _IDENTITY) != _COMPRESSED:
            raise Malformed(f"a point of {name} must be compressed and not the identity")
        x = bytearray(data)
        x[0] &= ~_FLAGS & 0xFF
        try:
            point = cls(cls._kind.deserialize(bytes(reversed(x))))
        except ValueError:
            raise Malformed(f"these bytes are no point of {name}") from None
        if point.is_identity:
            raise Malformed(f"a point of {name} must not be the identity")
        if point._has_larger_y() != bool(data[0] & _LARGER_Y):
            point = -point
        if point.to_bytes() != data:
            raise Malformed(f"a point of {name} is not canonically encoded")
        return point


class G1(_Point):
    """A point of G1 (the curve over the prime field); `G1_BYTES` on the wire."""

    __slots__ = ()
    SIZE = G1_BYTES
    _kind = pymcl.G1


class G2(_Point):
    """A point of G2 (the twist over the quadratic extension); `G2_BYTES` on the wire."""

    __slots__ = ()
    SIZE = G2_BYTES
    _kind = pymcl.G2


class GT:
    """An element of the target group, written multiplicatively."""

    __slots__ = ("_native",)

    def __init__(self, native: Any) -> None:
        self._native = native

    def __mul__(self, other: "GT") -> "GT":
        return GT(self._native * other._native)

    def __pow__(self, scalar: int) -> "GT":
        return GT(self._native ** _native_scalar(scalar))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GT) and bool(self._native == other._native)

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def to_bytes(self) -> bytes:
        """`GT_BYTES` bytes: the twelve field coordinates, little-endian."""
        return bytes(self._native.serialize())

    @classmethod
    def from_bytes(cls, data: bytes) -> "GT":
        """The element, or `Malformed` unless `data` encodes one of order `ORDER`. For public keys only."""
        if len(data) != GT_BYTES:
            raise Malformed(f"an element of GT has {GT_BYTES} bytes, not {len(data)}")
        try:
            native = pymcl.GT.deserialize(data)
        except ValueError:
            raise Malformed("these bytes are no element of GT") from None
        if native.serialize() != data:
            raise Malformed("an element of GT is not canonically encoded")
        if native.is_one() or not _has_group_order(native):
            raise Malformed("these bytes are no element of GT, or are its identity")
        return cls(native)


def _has_group_order(native: Any) -> bool:
    """Whether native**ORDER is one.

    By plain multiplications: mcl reduces an exponent modulo `ORDER`, which takes the answer for granted.
    """
    power = native
    for bit in bin(ORDER)[3:]:
        power = power * power
        if bit == "1":
            power = power * native
    return bool(power.is_one())


G1_GENERATOR = G1(pymcl.g1)
G2_GENERATOR = G2(pymcl.g2)


def pairing_product(pairs: Iterable[tuple[G1, G2]]) -> GT:
    """The product of e(p, q) over `pairs`."""
    product = pymcl.GT()
    for p, q in pairs:
        product = product * pymcl.pairing(p._native, q._native)
    return GT(product)


@cache
def gt_generator() -> GT:
    """e(G1_GENERATOR, G2_GENERATOR)."""
    return pairing_product([(G1_GENERATOR, G2_GENERATOR)])


def hash_to_g1(message: bytes, dst: bytes) -> G1:
    """RFC 9380, suite BLS12381G1_XMD:SHA-256_SSWU_RO_, under the domain separation tag `dst`."""
    return G1.from_bytes(G1Point.hash_to_curve(message, dst).to_compressed_bytes())


@lru_cache(maxsize=4096)
def hash_name(domain: str, name: str) -> G1:
    """The point of `name` in `domain`; both carry their length, so no two pairs hash the same message."""
    parts = (part.encode() for part in (domain, name))
    return hash_to_g1(b"".join(len(part).to_bytes(4, "big") + part for part in parts), _DST)
