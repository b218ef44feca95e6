"""mcl through the Python methods of pymcl: what `crypto.pairing.mcl` is checked against and falls back to.

mcl writes x little-endian with the parity of y, ZCash x big-endian with the order of y and -y. mcl hashes to the curve in
a way of its own in these methods, so arkworks hashes.
"""

from collections.abc import Sequence
from typing import Any

import pymcl
from py_arkworks_bls12381 import G1Point

from crypto.pairing.backend import (
    COMPRESSED,
    FIELD,
    FLAGS,
    G1_GENERATOR,
    G2_GENERATOR,
    IDENTITY,
    LARGER_Y,
    ORDER,
    Row,
)


def _scalar(s: int) -> Any:
    return pymcl.Fr.deserialize((s % ORDER).to_bytes(32, "little"))


class _Curve:
    def __init__(self, kind: Any, generator: bytes) -> None:
        self._kind = kind
        self._size = len(generator)
        self.generator = self.decode(generator, True)

    def add(self, p: Any, q: Any) -> Any:
        return p + q

    def negate(self, p: Any) -> Any:
        return -p

    def multiply(self, p: Any, scalar: int) -> Any:
        return p * _scalar(scalar)

    def combine(self, rows: Sequence[Row]) -> list[Any]:
        return [sum((p * _scalar(s) for p, s in row), start=self._kind()) for row in rows]

    def equal(self, p: Any, q: Any) -> bool:
        return bool(p == q)

    def is_identity(self, p: Any) -> bool:
        return bool(p.is_zero())

    def encode(self, points: Sequence[Any]) -> list[bytes]:
        return [self._encode(point) for point in points]

    def _encode(self, p: Any) -> bytes:
        if p.is_zero():
            return bytes([COMPRESSED | IDENTITY]) + bytes(self._size - 1)
        data = bytearray(reversed(p.serialize()))
        data[0] = data[0] & ~FLAGS | COMPRESSED | (LARGER_Y if _has_larger_y(p) else 0)
        return bytes(data)

    def decode(self, data: bytes, in_group: bool) -> Any:
        # The library always checks the order; there is nothing to save.
        x = bytes([data[0] & ~FLAGS & 0xFF]) + data[1:]
        point = self._kind.deserialize(x[::-1])
        if point.is_zero():
            raise ValueError("the identity in another encoding")
        return point if _has_larger_y(point) == bool(data[0] & LARGER_Y) else -point


def _has_larger_y(point: Any) -> bool:
    _, *coordinates = map(int, str(point).split())
    y = coordinates[len(coordinates) // 2 :]
    return next((2 * part > FIELD for part in reversed(y) if part), False)


class MclPlain:
    def __init__(self) -> None:
        self.g1 = _Curve(pymcl.G1, G1_GENERATOR)
        self.g2 = _Curve(pymcl.G2, G2_GENERATOR)

    def hash_to_g1(self, message: bytes, dst: bytes) -> Any:
        return self.g1.decode(G1Point.hash_to_curve(message, dst).to_compressed_bytes(), True)

    def pairing_product(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        product = pymcl.GT()
        for p, q in pairs:
            product = product * pymcl.pairing(p, q)
        return product

    def gt_multiply(self, a: Any, b: Any) -> Any:
        return a * b

    def gt_power(self, a: Any, scalar: int) -> Any:
        return a ** _scalar(scalar)

    def gt_encode(self, a: Any) -> bytes:
        return bytes(a.serialize())
