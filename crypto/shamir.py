"""Shamir's secret sharing (Communications of the ACM 22(11), 1979), byte by byte over GF(2^8).

Byte j of a secret is f_j(0) of a polynomial f_j of degree below `needed` whose other coefficients are uniform, zero
included; a share is f_j(x) for all j, at one x from 1. The field is that of AES (x^8 + x^4 + x^3 + x + 1): every byte
string is an element string, so a secret of any length has shares of the same length, none of them is out of range or
biased, and fewer than `needed` of them are uniform and independent of the secret. Nothing in a share shows whether
it was changed; `crypto.guardians` adds that.

Products come from tables indexed by secret bytes: not for use where a stranger times this process.
"""

import os
from collections.abc import Callable, Mapping
from functools import cache

from crypto.errors import Malformed

MAX_SHARES = 255
_MODULUS = 0x11B


def split(
    secret: bytes, needed: int, total: int, random: Callable[[int], bytes] = os.urandom
) -> dict[int, bytes]:
    """Shares numbered 1 to `total`, each as long as `secret`, any `needed` of which give it back.

    Raises `Malformed` unless 1 <= `needed` <= `total` <= `MAX_SHARES`.
    """
    if not 1 <= needed <= total <= MAX_SHARES:
        raise Malformed(
            f"a secret is split into 1 to {MAX_SHARES} shares, of which 1 to all are needed, not {needed} of {total}"
        )
    coefficients = [secret, *(random(len(secret)) for _ in range(needed - 1))]
    return {x: _evaluate(coefficients, x) for x in range(1, total + 1)}


def combine(shares: Mapping[int, bytes], at: int = 0) -> bytes:
    """The value at `at` (0: the secret) of the polynomials of least degree through `shares` (number to share).

    `Malformed` unless the shares have one length and numbers from 1 to `MAX_SHARES`. Too few or changed shares give a
    wrong value, not an error.
    """
    if not shares or not all(1 <= x <= MAX_SHARES for x in shares) or len({*map(len, shares.values())}) != 1:
        raise Malformed(f"shares have one length and a number from 1 to {MAX_SHARES}")
    value = bytes(len(next(iter(shares.values()))))
    for x, share in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = _times(weight, _times(at ^ other, _inverse(x ^ other)))
        value = _add(value, share.translate(_row(weight)))
    return value


def _evaluate(coefficients: list[bytes], x: int) -> bytes:
    row, value = _row(x), bytes(len(coefficients[0]))
    for coefficient in reversed(coefficients):
        value = _add(value.translate(row), coefficient)
    return value


def _add(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _times(left: int, right: int) -> int:
    product = 0
    while right:
        if right & 1:
            product ^= left
        left = left << 1 ^ (_MODULUS if left & 0x80 else 0)
        right >>= 1
    return product


@cache
def _row(factor: int) -> bytes:
    """The products of `factor` with every element, as a table for `bytes.translate`."""
    return bytes(_times(factor, element) for element in range(256))


@cache
def _inverse(element: int) -> int:
    return _row(element).index(1)
