"""Shamir's sharing of a scalar (CACM 1979) with Feldman's commitments to it (FOCS '87).

A secret is the value at 0 of a polynomial of degree t - 1 over the scalars; holder i (from 0) has its value at i + 1. Any t shares
determine the secret, fewer tell nothing of it: for every candidate secret there is exactly one polynomial through t - 1 shares. The
points a_k G of the coefficients a_0 .. a_{t-1} let everybody check a share, and tell a_0 G.
"""

from collections.abc import Collection, Sequence
from typing import Self

from crypto.errors import Malformed
from crypto.group import G1, ORDER

MAX_HOLDERS = 255


class SharedKey:
    """The public side of a shared secret: `public` is the key itself, `threshold` how many shares make the secret."""

    def __init__(self, commitments: Sequence[G1]) -> None:
        if not 1 <= len(commitments) <= MAX_HOLDERS:
            raise Malformed(f"a shared key has 1 to {MAX_HOLDERS} commitments, not {len(commitments)}")
        if any(point.is_identity for point in commitments):
            raise Malformed("a commitment of a shared key must not be the identity")
        self._commitments = tuple(commitments)
        self.public = self._commitments[0]
        self.threshold = len(self._commitments)

    @classmethod
    def decode(cls, commitments: Sequence[bytes]) -> Self:
        """From the points as `encoded` gives them, or `Malformed`."""
        return cls([G1.from_bytes(data) for data in commitments])

    @property
    def encoded(self) -> tuple[bytes, ...]:
        """The commitments, `G1_BYTES` each, `public` first."""
        return tuple(point.to_bytes() for point in self._commitments)

    @classmethod
    def weighted_sum(cls, keys: Sequence[tuple["SharedKey", int]]) -> Self:
        """The key of the secret, and of the shares, that one gets by adding up those of `keys`, all of one threshold, with weights."""
        columns = zip(*(key._commitments for key, _ in keys), strict=True)
        weights = [weight for _, weight in keys]
        return cls([_weighted(column, weights) for column in columns])

    def verification_key(self, holder: int) -> G1:
        """The point share * G of holder `holder` (from 0), whose share nobody else need know."""
        check_holder(holder)
        total = self._commitments[-1]
        for point in reversed(self._commitments[:-1]):
            total = total * (holder + 1) + point
        return total


def _weighted(points: Sequence[G1], weights: Sequence[int]) -> G1:
    first, *rest = (p if w == 1 else p * w for p, w in zip(points, weights, strict=True))
    return sum(rest, start=first)


def share_of(coefficients: Sequence[int], holder: int) -> int:
    """The share of holder `holder` (from 0) under the polynomial with these coefficients, the secret first."""
    check_holder(holder)
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * (holder + 1) + coefficient) % ORDER
    return value


def lagrange(holders: Collection[int]) -> dict[int, int]:
    """By holder (from 0), the weights under which exactly these holders' shares add up to the secret."""
    weights = {}
    for i in holders:
        check_holder(i)
        numerator = denominator = 1
        for j in holders:
            if j != i:
                numerator = numerator * (j + 1) % ORDER
                denominator = denominator * (j - i) % ORDER
        weights[i] = numerator * pow(denominator, -1, ORDER) % ORDER
    return weights


def check_holder(holder: int) -> None:
    if not 0 <= holder < MAX_HOLDERS:
        raise Malformed(f"holders are numbered from 0 to {MAX_HOLDERS - 1}, not {holder}")
