"""mcl through its C interface (mcl/bn.h, version 3.04), which the shared object of pymcl exports beside its Python methods.

The Python methods take one point a call and hold the interpreter's lock; the C functions multiply many points at once
(with AVX-512 sixteen in the time of five), multiply pairings before the one final exponentiation, and may set the lock
free while they work. `crypto.pairing.mcl_plain` is the same library without them.

Elements are `bytes` as mcl lays them out in memory: x, y, z of a Jacobian point (z of the identity is 0), each
coordinate little-endian in Montgomery form, which for a number v is v * 2**384 mod FIELD, for a scalar s is
s * 2**256 mod ORDER. C reads as many bytes as a point of the group has: `crypto.group` lets points of one kind only
come together.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar

import pymcl

from crypto.pairing.backend import (
    COMPRESSED,
    FIELD,
    FLAGS,
    G1_GENERATOR,
    G2_GENERATOR,
    IDENTITY,
    LARGER_Y,
    ORDER,
    Broken,
    Row,
)

_VERSION, _BLS12_381 = 0x304, 5
_FP, _FR = 48, 32
_ONE = ((1 << 384) % FIELD).to_bytes(_FP, "little")
_FROM_MONTGOMERY = pow(1 << 384, -1, FIELD)
_BLOCK = 16
"""Points that AVX-512 multiplies at once."""
_WORTH_A_BLOCK = 6
"""From this many on, points left over are multiplied faster in a block filled up with others."""
_HAS_BLOCKS = "_ZN3mcl3EcTINS_3FpTILi0ELm384EEEE11mulEachOptiE"
"""mcl's pointer to its AVX-512 code, null on a processor without it."""

# The first keeps the interpreter's lock, for calls below some 100 us; the second sets it free.
_quick = ctypes.PyDLL(pymcl._pymcl.__file__)
_long = ctypes.CDLL(pymcl._pymcl.__file__)


def _function(library: ctypes.CDLL, name: str, *arguments: Any, result: Any = ctypes.c_int) -> Any:
    found = getattr(library, name)
    found.argtypes, found.restype = arguments, result
    return found


def _to_field(v: int) -> bytes:
    return ((v << 384) % FIELD).to_bytes(_FP, "little")


def _from_field(data: bytes) -> int:
    return int.from_bytes(data, "little") * _FROM_MONTGOMERY % FIELD


def _scalar(s: int) -> bytes:
    return ((s << 256) % ORDER).to_bytes(_FR, "little")


class _Curve:
    """What G1 and G2 share; `_degree` is that of the field of the coordinates."""

    _degree: ClassVar[int]
    _name: ClassVar[str]

    def __init__(self, generator: bytes) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        prefix, field = f"mclBn{self._name}", "mclBnFp" if self._degree == 1 else "mclBnFp2"
        self._coordinate = _FP * self._degree
        self._size = 3 * self._coordinate
        self._one = _ONE.ljust(self._coordinate, b"\0")
        self._zero = bytes(self._coordinate)
        self._buffer = ctypes.c_char * self._size
        self._add = _function(_quick, f"{prefix}_add", pointer, pointer, pointer, result=None)
        self._neg = _function(_quick, f"{prefix}_neg", pointer, pointer, result=None)
        self._equal = _function(_quick, f"{prefix}_isEqual", pointer, pointer)
        self._normalize = _function(_quick, f"{prefix}_normalizeVec", pointer, pointer, size, result=None)
        self._mul = _function(_quick, f"{prefix}_mul", pointer, pointer, pointer, result=None)
        self._mul_vec = _function(_long, f"{prefix}_mulVec", pointer, pointer, pointer, size, result=None)
        self._has_order = _function(_quick, f"{prefix}_isValidOrder", pointer)
        self._square_root = _function(_quick, f"{field}_squareRoot", pointer, pointer)
        self.generator = self.decode(generator, False)

    def _coordinates(self, data: bytes) -> list[int]:
        """The numbers of one coordinate, the real part first."""
        return [_from_field(data[start : start + _FP]) for start in range(0, self._coordinate, _FP)]

    def _curve_equation(self, x: Sequence[int]) -> list[int]:
        """The square of y."""
        raise NotImplementedError

    def join(self, points: Sequence[bytes]) -> bytes:
        joined = b"".join(points)
        if len(joined) != len(points) * self._size:
            raise TypeError(f"not all of these are points of {self._name}")
        return joined

    def add(self, p: bytes, q: bytes) -> bytes:
        out = self._buffer()
        self._add(out, p, q)
        return out.raw

    def negate(self, p: bytes) -> bytes:
        out = self._buffer()
        self._neg(out, p)
        return out.raw

    def multiply(self, p: bytes, scalar: int) -> bytes:
        out = self._buffer()
        self._mul(out, p, _scalar(scalar))
        return out.raw

    def _sum_of_products(self, row: Row) -> bytes:
        if len(row) == 1:
            return self.multiply(*row[0])
        out = self._buffer()
        points = self.join([point for point, _ in row])
        self._mul_vec(out, points, b"".join(_scalar(s) for _, s in row), len(row))
        return out.raw

    def combine(self, rows: Sequence[Row]) -> list[bytes]:
        return [self._sum_of_products(row) for row in rows]

    def equal(self, p: bytes, q: bytes) -> bool:
        return bool(self._equal(p, q))

    def is_identity(self, p: bytes) -> bool:
        return p[2 * self._coordinate :] == self._zero

    def encode(self, points: Sequence[bytes]) -> list[bytes]:
        affine = ctypes.create_string_buffer(self.join(points), len(points) * self._size)
        self._normalize(affine, affine, len(points))
        raw = affine.raw
        return [self._encode(raw[start : start + self._size]) for start in range(0, len(raw), self._size)]

    def _encode(self, affine: bytes) -> bytes:
        if self.is_identity(affine):
            return bytes([COMPRESSED | IDENTITY]) + bytes(self._coordinate - 1)
        x = self._coordinates(affine[: self._coordinate])
        y = self._coordinates(affine[self._coordinate : 2 * self._coordinate])
        data = bytearray(b"".join(part.to_bytes(_FP, "big") for part in reversed(x)))
        data[0] |= COMPRESSED | (LARGER_Y if _is_larger(y) else 0)
        return bytes(data)

    def decode(self, data: bytes, in_group: bool) -> bytes:
        without_flags = bytes([data[0] & ~FLAGS & 0xFF]) + data[1:]
        parts = [without_flags[start : start + _FP] for start in range(0, self._coordinate, _FP)]
        x = [int.from_bytes(part, "big") for part in reversed(parts)]
        if any(part >= FIELD for part in x):
            raise ValueError("a coordinate is not below the size of the field")
        root = (ctypes.c_char * self._coordinate)()
        if self._square_root(root, b"".join(map(_to_field, self._curve_equation(x)))):
            raise ValueError("no point of the curve has this coordinate")
        y = self._coordinates(root.raw)
        if _is_larger(y) != bool(data[0] & LARGER_Y):
            y = [-part % FIELD for part in y]
        point = b"".join(map(_to_field, x + y)) + self._one
        if in_group and not self._has_order(point):
            raise ValueError("the point is outside the group")
        return point


def _is_larger(y: Sequence[int]) -> bool:
    """Whether y is larger than -y in the order of ZCash."""
    return next((2 * part > FIELD for part in reversed(y) if part), False)


class _G1(_Curve):
    _degree = 1
    _name = "G1"

    def __init__(self, generator: bytes) -> None:
        super().__init__(generator)
        self._mul_each = _function(
            _long, "mclBnG1_mulEach", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, result=None
        )
        try:
            self._has_blocks = bool(ctypes.c_void_p.in_dll(_quick, _HAS_BLOCKS))
        except ValueError:
            self._has_blocks = False

    def _curve_equation(self, x: Sequence[int]) -> list[int]:
        return [(x[0] * x[0] * x[0] + 4) % FIELD]

    def combine(self, rows: Sequence[Row]) -> list[bytes]:
        total = sum(map(len, rows))
        left_over = total % _BLOCK
        room = total if left_over >= _WORTH_A_BLOCK else total - left_over
        in_blocks = 0
        if self._has_blocks:
            while in_blocks < len(rows) and len(rows[in_blocks]) <= room:
                room -= len(rows[in_blocks])
                in_blocks += 1
        return [*self._in_blocks(rows[:in_blocks]), *map(self._sum_of_products, rows[in_blocks:])]

    def _in_blocks(self, rows: Sequence[Row]) -> list[bytes]:
        terms = [term for row in rows for term in row]
        terms += [(self.generator, 0)] * (-len(terms) % _BLOCK)
        points = ctypes.create_string_buffer(self.join([p for p, _ in terms]), len(terms) * self._size)
        self._mul_each(points, b"".join(_scalar(s) for _, s in terms), len(terms))
        raw, at = points.raw, 0
        sums = []
        for row in rows:
            first, *rest = (raw[start : start + self._size] for start in self._offsets(at, len(row)))
            for product in rest:
                first = self.add(first, product)
            sums.append(first)
            at += len(row)
        return sums

    def _offsets(self, first: int, count: int) -> range:
        return range(first * self._size, (first + count) * self._size, self._size)


class _G2(_Curve):
    _degree = 2
    _name = "G2"

    def _curve_equation(self, x: Sequence[int]) -> list[int]:
        a, b = x  # (a + b i)**3 + 4 + 4 i
        return [(a * (a * a - 3 * b * b) + 4) % FIELD, (b * (3 * a * a - b * b) + 4) % FIELD]


class Mcl:
    """Raises, while it is made, if this is not the mcl that it was written for."""

    def __init__(self) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        built = tuple(
            _function(_quick, f"mclBn_{name}")()
            for name in (
                "getVersion",
                "getCurveType",
                "getG1ByteSize",
                "getFrByteSize",
                "getETHserialization",
            )
        )
        if built != (_VERSION, _BLS12_381, _FP, _FR, 0):
            raise Broken(f"pymcl carries another build of mcl than 3.04 for BLS12-381: {built}")
        self.g1 = _G1(G1_GENERATOR)
        self.g2 = _G2(G2_GENERATOR)
        self._gt = ctypes.c_char * (12 * _FP)
        self._hash = _function(_quick, "mclBnG1_hashAndMapToWithDst", pointer, pointer, size, pointer, size)
        self._miller = _function(_long, "mclBn_millerLoopVec", pointer, pointer, pointer, size, result=None)
        self._final_exp = _function(_long, "mclBn_finalExp", pointer, pointer, result=None)
        self._mul = _function(_quick, "mclBnGT_mul", pointer, pointer, pointer, result=None)
        self._pow = _function(_long, "mclBnGT_pow", pointer, pointer, pointer, result=None)
        self._serialize = _function(_quick, "mclBnGT_serialize", pointer, size, pointer, result=size)

    def hash_to_g1(self, message: bytes, dst: bytes) -> bytes:
        out = (ctypes.c_char * (3 * _FP))()
        if self._hash(out, message, len(message), dst, len(dst)):
            raise ValueError("mcl does not hash this to the curve")
        return out.raw

    def pairing_product(self, pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
        out = self._gt()
        self._miller(
            out, self.g1.join([p for p, _ in pairs]), self.g2.join([q for _, q in pairs]), len(pairs)
        )
        self._final_exp(out, out)
        return out.raw

    def gt_multiply(self, a: bytes, b: bytes) -> bytes:
        out = self._gt()
        self._mul(out, a, b)
        return out.raw

    def gt_power(self, a: bytes, scalar: int) -> bytes:
        out = self._gt()
        self._pow(out, a, _scalar(scalar))
        return out.raw

    def gt_encode(self, a: bytes) -> bytes:
        out = self._gt()
        if self._serialize(out, len(out), a) != len(out):
            raise Broken("mcl did not write an element of GT")
        return out.raw
