"""arkworks (py_arkworks_bls12381), which writes ZCash form and hashes to the curve by itself.

It has no powers in GT, so they are made of products. Its multi-pairings, multi-exponentiations and hashes free the
interpreter's lock.
"""

from collections.abc import Sequence
from typing import Any

from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

from crypto.pairing.backend import ORDER, Row

_WINDOW = 4
"""Bits of an exponent that one multiplication takes care of."""


def _scalar(s: int) -> Any:
    return Scalar.from_le_bytes((s % ORDER).to_bytes(32, "little"))


class _Curve:
    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._identity = kind.identity()
        self.generator = kind()

    def add(self, p: Any, q: Any) -> Any:
        return p + q

    def negate(self, p: Any) -> Any:
        return -p

    def multiply(self, p: Any, scalar: int) -> Any:
        return p * _scalar(scalar)

    def combine(self, rows: Sequence[Row]) -> list[Any]:
        return [self._sum_of_products(row) for row in rows]

    def _sum_of_products(self, row: Row) -> Any:
        if len(row) == 1:
            return self.multiply(*row[0])
        return self._kind.multiexp_unchecked([p for p, _ in row], [_scalar(s) for _, s in row])

    def equal(self, p: Any, q: Any) -> bool:
        return bool(p == q)

    def is_identity(self, p: Any) -> bool:
        return bool(p == self._identity)

    def encode(self, points: Sequence[Any]) -> list[bytes]:
        return [point.to_compressed_bytes() for point in points]

    def decode(self, data: bytes, in_group: bool) -> Any:
        if in_group:
            return self._kind.from_compressed_bytes(data)
        return self._kind.from_compressed_bytes_unchecked(data)


class Arkworks:
    def __init__(self) -> None:
        self.g1 = _Curve(G1Point)
        self.g2 = _Curve(G2Point)

    def hash_to_g1(self, message: bytes, dst: bytes) -> Any:
        return G1Point.hash_to_curve(message, dst)

    def pairing_product(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        return GT.multi_pairing([p for p, _ in pairs], [q for _, q in pairs])

    def gt_multiply(self, a: Any, b: Any) -> Any:
        return a * b

    def gt_power(self, a: Any, scalar: int) -> Any:
        powers = [GT.one()]
        while len(powers) < 1 << _WINDOW:
            powers.append(powers[-1] * a)
        result = powers[0]
        for shift in reversed(range(0, ORDER.bit_length(), _WINDOW)):
            for _ in range(_WINDOW):
                result = result * result
            result = result * powers[scalar >> shift & (1 << _WINDOW) - 1]
        return result

    def gt_encode(self, a: Any) -> bytes:
        return bytes.fromhex(str(a))
