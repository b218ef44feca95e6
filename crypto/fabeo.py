"""FABEO: CP-ABE with the fewest pairings and points of those proved adaptively secure.

Riepel and Wee, CCS 2022, eprint 2022/1415, the CP-ABE scheme, in the generic group model with random oracles, on
BLS12-381. A, B and H(u) are points of G1 hashed from fixed names, [x]_i is x times the generator of G_i:

    master key y;  public key [y]_2
    key for S      y A + r B,  r H(u) for u in S,  [r]_2
    header         [s]_2,  [t_1]_2 .. [t_tau]_2,  l_i B + t_rho(i) H(pi(i)) for each leaf i
    it hides       e(A, [y]_2)^s

Here l_1, l_2, ... share s over the policy, pi(i) is the attribute of leaf i and rho(i) says which of its
occurrences that leaf is. The t_j differ by occurrence: with one t for all of them, a holder of A alone opens
`A and B or B and C or A and C`. Points: 1 + tau of G2 and one of G1 for each leaf of a header.

The paper's public key is e(g1, g2)^a and its keys hold [a]_1, which is this with a = x y and A = [x]_1. Elements of GT
are not taken from outside here, so the key is published as the points A and [y]_2. The proof does not mind: whatever a
generic attacker makes with either of them, except e(g1, g2)^a itself, has other degrees in x than in y, while all that
the paper gives, and what the header hides, has equal ones.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Self

import msgspec

from crypto import abe
from crypto.abe import Random, Shape, Suited, decode_suited, occurrences, weighted_sum
from crypto.abe import decapsulate as decapsulate
from crypto.abe import encapsulate as encapsulate
from crypto.codec import Bytes32, Decoder, encode
from crypto.group import (
    G1,
    G2,
    G2_BYTES,
    G2_GENERATOR,
    GT,
    ORDER,
    hash_name,
    pairing_product,
    random_scalar,
    scalar_from_bytes,
    scalar_to_bytes,
)
from crypto.policy import Policy, share

SUITE = "fabeo-bls12381-fo"

_A = ("fabeo-secret", "")
_B = ("fabeo-base", "")
_ATTRIBUTE_DOMAIN = "fabeo-attribute"


class _PublicKey(Suited, frozen=True):
    point: Annotated[bytes, msgspec.Meta(min_length=G2_BYTES, max_length=G2_BYTES)]


class _MasterKey(Suited, frozen=True):
    secret: Bytes32


_decode_public = Decoder(_PublicKey, "a FABEO public key", 256)
_decode_master = Decoder(_MasterKey, "a FABEO master key", 128)


class PublicKey(abe.PublicKey):
    suite = SUITE

    def __init__(self, point: G2) -> None:
        self._point = point

    @cached_property
    def element(self) -> GT:
        """What a header hides a power of."""
        return pairing_product([(hash_name(*_A), self._point)]).as_base()

    def to_bytes(self) -> bytes:
        return encode(_PublicKey(SUITE, self._point.to_bytes()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(G2.from_bytes(decode_suited(_decode_public, SUITE, data).point))

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
            [(base, part), (hash_name(_ATTRIBUTE_DOMAIN, name), t[occurrence - 1])]
            for part, name, occurrence in zip(shares, policy.leaves, counted, strict=True)
        ]
        seeds = [G2_GENERATOR * exponent for exponent in [s, *t]]
        return G2.encode(seeds), G1.encode(G1.combine(rows)), self.element**s


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
        blinded = weighted_sum(
            [(G1.from_bytes_to_compare(rows[leaf]), weight) for leaf, weight in weights.items()]
        )
        return pairing_product(
            [
                (self._base, G2.from_bytes_to_compare(seeds[0])),
                *(
                    (weighted_sum(points), G2.from_bytes_to_compare(seeds[j]))
                    for j, points in by_occurrence.items()
                ),
                (-blinded, self._randomizer),
            ]
        )


class MasterKey(abe.MasterKey):
    suite = SUITE

    def __init__(self, secret: int) -> None:
        self._secret = secret
        self._base = hash_name(*_A) * secret
        self.public = PublicKey(G2_GENERATOR * secret)

    @classmethod
    def generate(cls, random: Random = os.urandom) -> Self:
        return cls(random_scalar(random))

    def issue(self, attributes: Iterable[str], random: Random = os.urandom) -> AttributeKey:
        names = abe.check_attributes(attributes)
        r = random_scalar(random)
        parts = abe.parts_of(names)
        base, *points = G1.combine(
            [
                [(self._base, 1), (hash_name(*_B), r)],
                *([(hash_name(_ATTRIBUTE_DOMAIN, part), r)] for part in parts),
            ]
        )
        return AttributeKey(names, base, dict(zip(parts, points, strict=True)), G2_GENERATOR * r)

    def to_bytes(self) -> bytes:
        return encode(_MasterKey(SUITE, scalar_to_bytes(self._secret)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(scalar_from_bytes(decode_suited(_decode_master, SUITE, data).secret))
