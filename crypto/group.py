"""BLS12-381: the groups G1, G2, GT of prime order `ORDER` and the pairing e: G1 x G2 -> GT.

What computes is one of the pairing libraries in `crypto.pairing`: `use` chooses it, after a self-test, and the choice
stands when this module is imported. All of them stand behind the same bytes, so what one made the others take.
Scalars are Python integers, taken modulo `ORDER`.

- Points on the wire are in the compressed form of ZCash (big-endian x with three flag bits, as in the
  pairing-friendly curves draft of the CFRG): one point, one encoding. A decoded point is on the curve, in the
  subgroup of order `ORDER`, and not the identity.
- GT elements have bytes to be hashed, and are decoded nowhere: what comes from outside is points.
- Scalars come from the operating system through `random_scalar`. mcl's own generator reads ahead through a
  buffer that forked processes inherit, so they would all draw the same "random" scalars.
- Nothing here runs in constant time: code that multiplies by a long-lived secret whenever a stranger asks
  must blind it.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from typing import Any, ClassVar, Self

from crypto.errors import Malformed, Unavailable
from crypto.pairing.backend import COMPRESSED, IDENTITY, Backend, Curve, self_test
from crypto.pairing.backend import ORDER as ORDER

SCALAR_BYTES = 32
WIDE_BYTES = 48
"""Uniform bytes to reduce to one scalar: 129 bits more than `ORDER` has, so the bias is below 2**-128."""
G1_BYTES = 48
G2_BYTES = 96
GT_BYTES = 576

_DST = b"DIPTYCH-V01-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"
_WINDOW = 8
"""Bits of a scalar that one entry of a table takes care of."""
_WORTH_A_TABLE = 64
"""Multiplications of one element after which making a table for it was not too early."""


# --- scalars ---


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


# --- elements ---


class _Table:
    """Multiples of an element that is multiplied often, or its powers.

    The table holds d * 2**(8 i) times the element for every digit d and place i, and is made when it pays.
    """

    __slots__ = ("_add", "_element", "_multiply", "_places", "_uses")

    def __init__(
        self, element: Any, add: Callable[[Any, Any], Any], multiply: Callable[[Any, int], Any]
    ) -> None:
        self._element, self._add, self._multiply = element, add, multiply
        self._places: list[list[Any]] = []
        self._uses = 0

    def build(self) -> None:
        places, unit = [], self._element
        for _ in range(0, ORDER.bit_length(), _WINDOW):
            multiples = [unit]
            while len(multiples) < (1 << _WINDOW) - 1:
                multiples.append(self._add(multiples[-1], unit))
            places.append(multiples)
            unit = self._add(multiples[-1], unit)
        self._places = places

    def times(self, scalar: int) -> Any:
        if not self._places:
            self._uses += 1
            if self._uses <= _WORTH_A_TABLE:
                return self._multiply(self._element, scalar)
            self.build()
        digits = scalar.to_bytes(len(self._places), "little")
        chosen = [place[digit - 1] for place, digit in zip(self._places, digits, strict=True) if digit]
        return reduce(self._add, chosen) if chosen else self._multiply(self._element, 0)


class _Point:
    """What G1 and G2 share."""

    __slots__ = ("_native", "_table")
    SIZE: ClassVar[int]
    _curve: ClassVar[Curve]

    def __init__(self, native: Any) -> None:
        self._native = native
        self._table: _Table | None = None

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return type(self)(self._curve.add(self._native, other._native))

    def __neg__(self) -> Self:
        return type(self)(self._curve.negate(self._native))

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __mul__(self, scalar: int) -> Self:
        if self._table:
            return type(self)(self._table.times(scalar % ORDER))
        return type(self)(self._curve.multiply(self._native, scalar % ORDER))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._curve.equal(self._native, other._native)

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def is_identity(self) -> bool:
        return self._curve.is_identity(self._native)

    def as_base(self) -> Self:
        """The same point, for many multiplications: after some it has a table for them."""
        base = type(self)(self._native)
        base._become_base(self._native)
        return base

    def _become_base(self, native: Any) -> None:
        self._native = native
        self._table = _Table(native, self._curve.add, self._curve.multiply)

    def to_bytes(self) -> bytes:
        """`SIZE` bytes."""
        return self._curve.encode([self._native])[0]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The point, or `Malformed` unless `data` encodes a point of the group other than the identity."""
        return cls._decode(data, True)

    @classmethod
    def from_bytes_to_compare(cls, data: bytes) -> Self:
        """As `from_bytes`, but the point may be outside the group.

        Only for callers who afterwards compare `data` with the encoding of a point that they made, and until
        then let nothing out that depends on it: that comparison is the stronger check.
        """
        return cls._decode(data, False)

    @classmethod
    def _decode(cls, data: bytes, in_group: bool) -> Self:
        name = cls.__name__
        if len(data) != cls.SIZE:
            raise Malformed(f"a point of {name} has {cls.SIZE} bytes, not {len(data)}")
        if data[0] & (COMPRESSED | IDENTITY) != COMPRESSED:
            raise Malformed(f"a point of {name} must be compressed and not the identity")
        try:
            return cls(cls._curve.decode(data, in_group))
        except ValueError:
            raise Malformed(f"these bytes are no canonical point of {name}") from None

    @classmethod
    def combine(cls, rows: Sequence[Sequence[tuple[Self, int]]]) -> list[Self]:
        """For each row of (point, scalar), the sum of the products: multi-exponentiations, many at a time."""
        if any(type(p) is not cls for row in rows for p, _ in row):
            raise TypeError(f"all points must be of {cls.__name__}")
        scaled = [[(p._native, s % ORDER) for p, s in row if s != 1] for row in rows]
        sums = iter(cls._curve.combine([row for row in scaled if row]))
        combined = []
        for row, products in zip(rows, scaled, strict=True):
            parts = [p._native for p, s in row if s == 1]
            if products:
                parts.append(next(sums))
            combined.append(cls(reduce(cls._curve.add, parts)))
        return combined

    @classmethod
    def encode(cls, points: Sequence[Self]) -> bytes:
        """The bytes of all points, one after the other."""
        return b"".join(cls._curve.encode([point._native for point in points]))


class G1(_Point):
    """A point of G1 (the curve over the prime field); `G1_BYTES` on the wire."""

    __slots__ = ()
    SIZE = G1_BYTES


class G2(_Point):
    """A point of G2 (the twist over the quadratic extension); `G2_BYTES` on the wire."""

    __slots__ = ()
    SIZE = G2_BYTES


class GT:
    """An element of the target group, written multiplicatively."""

    __slots__ = ("_native", "_table")
    _backend: ClassVar[Backend]

    def __init__(self, native: Any) -> None:
        self._native = native
        self._table: _Table | None = None

    def __mul__(self, other: "GT") -> "GT":
        if not isinstance(other, GT):
            return NotImplemented
        return GT(self._backend.gt_multiply(self._native, other._native))

    def __pow__(self, scalar: int) -> "GT":
        if self._table:
            return GT(self._table.times(scalar % ORDER))
        return GT(self._backend.gt_power(self._native, scalar % ORDER))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GT) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def as_base(self) -> "GT":
        """The same element, for many powers: after some it has a table for them."""
        base = GT(self._native)
        base._table = _Table(self._native, self._backend.gt_multiply, self._backend.gt_power)
        return base

    def to_bytes(self) -> bytes:
        """`GT_BYTES` bytes: the twelve field coordinates, little-endian."""
        return self._backend.gt_encode(self._native)


G1_GENERATOR = G1(None)
G2_GENERATOR = G2(None)


def pairing_product(pairs: Iterable[tuple[G1, G2]]) -> GT:
    """The product of e(p, q) over at least one of `pairs`."""
    return GT(GT._backend.pairing_product([(p._native, q._native) for p, q in pairs]))


@cache
def gt_generator() -> GT:
    """e(G1_GENERATOR, G2_GENERATOR)."""
    return pairing_product([(G1_GENERATOR, G2_GENERATOR)]).as_base()


def hash_to_g1(message: bytes, dst: bytes) -> G1:
    """RFC 9380, suite BLS12381G1_XMD:SHA-256_SSWU_RO_, under the domain separation tag `dst`."""
    return G1(GT._backend.hash_to_g1(message, dst))


@lru_cache(maxsize=4096)
def hash_name(domain: str, name: str) -> G1:
    """The point of `name` in `domain`; both carry their length, so no two pairs hash the same message."""
    parts = (part.encode() for part in (domain, name))
    return hash_to_g1(b"".join(len(part).to_bytes(4, "big") + part for part in parts), _DST)


# --- the library that computes ---


def _mcl() -> Backend:
    from crypto.pairing.mcl import Mcl

    return Mcl()


def _mcl_plain() -> Backend:
    from crypto.pairing.mcl_plain import MclPlain

    return MclPlain()


def _arkworks() -> Backend:
    from crypto.pairing.arkworks import Arkworks

    return Arkworks()


BACKENDS: dict[str, Callable[[], Backend]] = {"mcl": _mcl, "mcl-plain": _mcl_plain, "arkworks": _arkworks}
"""The fastest first."""


@dataclass(frozen=True)
class Choice:
    """The library in use, and why each that was to be preferred is not."""

    name: str
    refused: tuple[str, ...]

    @property
    def notice(self) -> str | None:
        """What an operator should read, if anything."""
        if not self.refused:
            return None
        return (
            f"pairings are computed by {self.name}: better libraries failed their self-test "
            f"({'; '.join(self.refused)}); install the locked requirements again"
        )


_choice: Choice


def use(name: str | None = None) -> Choice:
    """Compute with the library of this name, or the fastest, if it passes its self-test; else with the next that does.

    For the start of a program: points made before cannot be used with points made after. Raises `Malformed`
    for an unknown name, `Unavailable` if no library passes.
    """
    if name is not None and name not in BACKENDS:
        raise Malformed(f"there is no pairing library {name!r}; choose one of {', '.join(BACKENDS)}")
    global _choice
    refused = []
    for candidate in sorted(BACKENDS, key=lambda known: known != name):
        try:
            backend = BACKENDS[candidate]()
            self_test(backend)
        except Exception as error:  # whatever a broken library does, another may do better
            refused.append(f"{candidate}: {type(error).__name__}: {error}")
            continue
        G1._curve, G2._curve, GT._backend = backend.g1, backend.g2, backend
        G1_GENERATOR._become_base(backend.g1.generator)
        G2_GENERATOR._become_base(backend.g2.generator)
        gt_generator.cache_clear()
        hash_name.cache_clear()
        _choice = Choice(candidate, tuple(refused))
        return _choice
    raise Unavailable(
        f"no pairing library passes its self-test ({'; '.join(refused)}); install the locked requirements again"
    )


def chosen() -> Choice:
    """What the last `use` decided."""
    return _choice


use()
