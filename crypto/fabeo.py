"""FABEO: CP-ABE with the fewest pairings and points of those proved adaptively secure.

Riepel and Wee, CCS 2022, eprint 2022/1415, the CP-ABE scheme, in the generic group model with random oracles, on
BLS12-381. B and H(u) are points of G1 hashed from fixed names, [x]_i is x times the generator of G_i:

    master key a;  public key e(g1, g2)^a
    key for S      [a]_1 + r B,  r H(u) for u in S,  [r]_2
    header         [s]_2,  [t_1]_2 .. [t_tau]_2,  l_i B + t_rho(i) H(pi(i)) for each leaf i
    it hides       e(g1, g2)^(a s)

Here l_1, l_2, ... share s over the policy, pi(i) is the attribute of leaf i and rho(i) says which of its
occurrences that leaf is. The t_j differ by occurrence: with one t for all of them, a holder of A alone opens
`A and B or B and C or A and C`. Points: 1 + tau of G2 and one of G1 for each leaf of a header.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Annotated, Self

import msgspec

from crypto import abe
from crypto.abe import Random, Shape, Suited, decode_suited, occurrences, weighted_sum
from crypto.abe import decapsulate as decapsulate
from crypto.abe import encapsulate as encapsulate
from crypto.codec import Bytes32, Decoder, encode
from crypto.group import (
    G1,
    G1_GENERATOR,
    G2,
    G2_GENERATOR,
    GT,
    GT_BYTES,
    ORDER,
    gt_generator,
    hash_name,
    pairing_product,
    random_scalar,
    scalar_from_bytes,
    scalar_to_bytes,
)
from crypto.policy import Policy, share

SUITE = "fabeo-bls12381-fo"

_B = ("fabeo-base", "")
_ATTRIBUTE_DOMAIN = "fabeo-attribute"


class _PublicKey(Suited, frozen=True):
    element: Annotated[bytes, msgspec.Meta(min_length=GT_BYTES, max_length=GT_BYTES)]


class _MasterKey(Suited, frozen=True):
    secret: Bytes32


_decode_public = Decoder(_PublicKey, "a FABEO public key", 1024)
_decode_master = Decoder(_MasterKey, "a FABEO master key", 128)


class PublicKey(abe.PublicKey):
    suite = SUITE

    def __init__(self, element: GT) -> None:
        self.element = element

    def to_bytes(self) -> bytes:
        return encode(_PublicKey(SUITE, self.element.to_bytes()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(GT.from_bytes(decode_suited(_decode_public, SUITE, data).element))

    def shape(self, policy: Policy) -> Shape:
        leaves, tau = len(policy.leaves), max(occurrences(policy))
        # s, one t for each occurrence, and at most one draw less than leaves for sharing.
        return Shape(1 + tau, leaves, tau + leaves)

    def hide(self, policy: Policy, coins: Sequence[int]) -> tuple[bytes, bytes, GT]:
        counted, drawn = occurrences(policy), iter(coins)
        s = next(drawn)
        t = [next(drawn) for _ in range(max(counted))]
        shares = share(policy, s, drawn.__next__, ORDER)
        base = hash_name(*_B)
        rows = [
            base * part + hash_name(_ATTRIBUTE_DOMAIN, name) * t[occurrence - 1]
            for part, name, occurrence in zip(shares, policy.leaves, counted, strict=True)
        ]
        return (
            b"".join((G2_GENERATOR * exponent).to_bytes() for exponent in [s, *t]),
            b"".join(row.to_bytes() for row in rows),
            self.element**s,
        )


class AttributeKey(abe.AttributeKey):
    suite = SUITE

    def __init__(self, attributes: Iterable[str], base: G1, points: dict[str, G1], randomizer: G2) -> None:
        """`points` are by part of the attributes (`epoch.held`)."""
        self.attributes = frozenset(attributes)
        self._base = base
        self._points = points
        self._randomizer = randomizer

    def to_bytes(self) -> bytes:
        points = {part: [point] for part, point in self._points.items()}
        return abe.encode_key(SUITE, self.attributes, [self._base], points, [self._randomizer])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        names, [base], points, [randomizer] = abe.decode_key(SUITE, data, 1, 1, 1)
        return cls(names, base, {part: point for part, [point] in points.items()}, randomizer)

    def reveal(
        self, policy: Policy, weights: dict[int, int], seeds: Sequence[bytes], rows: Sequence[bytes]
    ) -> GT:
        counted = occurrences(policy)
        by_occurrence: dict[int, list[tuple[G1, int]]] = {}
        for leaf, weight in weights.items():
            by_occurrence.setdefault(counted[leaf], []).append((self._points[policy.leaves[leaf]], weight))
        blinded = weighted_sum([(G1.from_bytes(rows[leaf]), weight) for leaf, weight in weights.items()])
        return pairing_product(
            [
                (self._base, G2.from_bytes(seeds[0])),
                *((weighted_sum(points), G2.from_bytes(seeds[j])) for j, points in by_occurrence.items()),
                (-blinded, self._randomizer),
            ]
        )


class MasterKey(abe.MasterKey):
    suite = SUITE

    def __init__(self, secret: int) -> None:
        self._secret = secret
        self._base = G1_GENERATOR * secret
        self.public = PublicKey(gt_generator() ** secret)

    @classmethod
    def generate(cls, random: Random = os.urandom) -> Self:
        return cls(random_scalar(random))

    def issue(self, attributes: Iterable[str], random: Random = os.urandom) -> AttributeKey:
        names = abe.check_attributes(attributes)
        r = random_scalar(random)
        return AttributeKey(
            names,
            self._base + hash_name(*_B) * r,
            {part: hash_name(_ATTRIBUTE_DOMAIN, part) * r for part in abe.parts_of(names)},
            G2_GENERATOR * r,
        )

    def to_bytes(self) -> bytes:
        return encode(_MasterKey(SUITE, scalar_to_bytes(self._secret)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(scalar_from_bytes(decode_suited(_decode_master, SUITE, data).secret))
