"""FAME: CP-ABE from a standard assumption, the alternative to FABEO for who trusts no generic group model.

Agrawal and Chase, CCS 2017, eprint 2017/807, section 3, adaptively secure under DLIN with a random oracle, on
BLS12-381. [x]_i is x times the generator of G_i, e = e(g1, g2), l runs over 1, 2, 3 and t over 1, 2. H(u, l, t) for a
use u of an attribute and C(j, l, t) for a column j of the policy's span program are points of G1 hashed from names:

    master key a_1, a_2, b_1, b_2, d_1, d_2, d_3
    public key [a_1]_2, [a_2]_2, [d_1 a_1 + d_3]_2, [d_2 a_2 + d_3]_2
    key for S  with r = (b_1 r_1, b_2 r_2, r_1 + r_2):  [r_1]_2, [r_2]_2, [r_3]_2 of this r,
               (sum_l r_l H(u, l, t) + [x_u]_1) / a_t for t = 1, 2, and -[x_u]_1, for each use u of S,
               the same with C(1, l, t) for H(u, l, t) and one x, plus [d_1]_1, [d_2]_1, [d_3]_1
    header     [a_1 s_1]_2, [a_2 s_2]_2, [s_1 + s_2]_2,  and for each leaf i and l = 1, 2, 3:
               sum_t s_t H(pi(i), l, t) + sum_j M_ij sum_t s_t C(j, l, t)
    it hides   e^((d_1 a_1 + d_3) s_1 + (d_2 a_2 + d_3) s_2)

The paper publishes e^(d_t a_t + d_3) instead of [d_t a_t + d_3]_2; elements of GT are not taken from outside here. In
each step of its proof either d_1, d_2, d_3 are known to the simulator, which then makes [d_t a_t + d_3]_2 of [a_t]_2 as
it makes the element, or they are information that the element and this point hold alike.

The rows M_i share column 1 over the policy; the sums over j are computed as shares of a point, draw by draw.

The proof lets a policy use an attribute once; with the same points for each occurrence, as in published codes, a
holder of A alone opens `A and B or B and C or A and C`. So each attribute has `USES` uses, which are attributes of
their own (as in Lewko et al., EUROCRYPT 2010): the j-th occurrence in a policy is use j, and a key holds all uses.
Policies with more occurrences are refused. Points: 3 of G2 and 3 of G1 for each leaf of a header, 3 * USES of G1 for each
attribute of a key.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import count
from typing import Annotated, Self

import msgspec

from crypto import abe
from crypto.abe import Random, Shape, Suited, cut, decode_suited, occurrences, weighted_sum
from crypto.codec import Decoder, encode
from crypto.errors import PolicyError
from crypto.group import (
    G1,
    G1_GENERATOR,
    G2,
    G2_BYTES,
    G2_GENERATOR,
    GT,
    ORDER,
    SCALAR_BYTES,
    hash_name,
    pairing_product,
    random_scalar,
    scalar_from_bytes,
    scalar_to_bytes,
)
from crypto.policy import Policy, share, spread

SUITE = "fame-bls12381-fo"
USES = 4
"""Occurrences of one attribute in a policy, at most."""

_SECRETS = 7
_L, _T = (1, 2, 3), (1, 2)


class _PublicKey(Suited, frozen=True):
    points: Annotated[bytes, msgspec.Meta(min_length=4 * G2_BYTES, max_length=4 * G2_BYTES)]


class _MasterKey(Suited, frozen=True):
    """a_1, a_2, b_1, b_2, d_1, d_2, d_3"""

    secrets: Annotated[
        bytes, msgspec.Meta(min_length=_SECRETS * SCALAR_BYTES, max_length=_SECRETS * SCALAR_BYTES)
    ]


_decode_public = Decoder(_PublicKey, "a FAME public key", 512)
_decode_master = Decoder(_MasterKey, "a FAME master key", 512)


def _attribute(part: str, use: int, row: int, t: int) -> G1:
    return hash_name(f"fame-attribute/{use}/{row}/{t}", part)


def _column(column: int, row: int, t: int) -> G1:
    return hash_name(f"fame-column/{row}/{t}", str(column))


class PublicKey(abe.PublicKey):
    suite = SUITE

    def __init__(self, points: Sequence[G2]) -> None:
        """Four: `[a_t]_2` and `[d_t a_t + d_3]_2`."""
        self._points = points

    @cached_property
    def _elements(self) -> list[GT]:
        """`e^(d_t a_t + d_3)`"""
        return [pairing_product([(G1_GENERATOR, point)]).as_base() for point in self._points[2:]]

    def to_bytes(self) -> bytes:
        return encode(_PublicKey(SUITE, G2.encode(self._points)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        wire = decode_suited(_decode_public, SUITE, data)
        return cls([G2.from_bytes(part) for part in cut(wire.points, G2_BYTES)])

    def shape(self, policy: Policy) -> Shape:
        if max(occurrences(policy)) > USES:
            raise PolicyError(
                f"the policy uses an attribute more than {USES} times, the most that the scheme FAME allows; "
                "write it with fewer repetitions, for instance as 2 of (…)",
                1,
            )
        return Shape(3, 3 * len(policy.leaves), 2)

    def hide(self, policy: Policy, coins: Sequence[int]) -> tuple[bytes, bytes, GT]:
        s1, s2 = coins
        draws = count()
        share(policy, 0, draws.__next__, ORDER)
        width = 1 + next(draws)
        columns = [[_column(j, row, t) for t in _T] for row in _L for j in range(1, width + 1)]
        uses = zip(policy.leaves, occurrences(policy), strict=True)
        leaves = [[_attribute(part, use, row, t) for t in _T] for part, use in uses for row in _L]
        summed = iter(G1.combine([[(first, s1), (second, s2)] for first, second in columns + leaves]))
        shared = [
            spread(policy, next(mine), mine.__next__)
            for mine in (iter([next(summed) for _ in range(width)]) for _ in _L)
        ]
        rows = [part + next(summed) for parts in zip(*shared, strict=True) for part in parts]
        seeds = [self._points[0] * s1, self._points[1] * s2, G2_GENERATOR * (s1 + s2)]
        return G2.encode(seeds), G1.encode(rows), self._elements[0] ** s1 * self._elements[1] ** s2


class AttributeKey(abe.AttributeKey):
    suite = SUITE

    def __init__(
        self, attributes: Iterable[str], base: Sequence[G1], points: dict[str, list[G1]], seeds: Sequence[G2]
    ) -> None:
        """`points` are by part of the attributes (`epoch.held`): three for each use."""
        self.attributes = frozenset(attributes)
        self._base, self._points, self._seeds = base, points, seeds

    def to_bytes(self) -> bytes:
        return abe.encode_key(SUITE, self.attributes, self._base, self._points, self._seeds)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(*abe.decode_key(SUITE, data, 3, 3 * USES, 3))

    def reveal(
        self, policy: Policy, weights: dict[int, int], seeds: Sequence[bytes], rows: Sequence[bytes]
    ) -> GT:
        used = occurrences(policy)
        pairs = []
        for i in range(3):
            own, others = [(self._base[i], 1)], []
            for leaf, weight in weights.items():
                own.append((self._points[policy.leaves[leaf]][3 * (used[leaf] - 1) + i], weight))
                others.append((G1.from_bytes_to_compare(rows[3 * leaf + i]), weight))
            pairs += [
                (weighted_sum(own), G2.from_bytes_to_compare(seeds[i])),
                (-weighted_sum(others), self._seeds[i]),
            ]
        return pairing_product(pairs)


class MasterKey(abe.MasterKey):
    suite = SUITE

    def __init__(self, secrets: Sequence[int]) -> None:
        """a_1, a_2, b_1, b_2, d_1, d_2, d_3: none of them 0."""
        self._secrets = secrets
        a, d = secrets[:2], secrets[4:]
        self.public = PublicKey([G2_GENERATOR * each for each in (*a, *(d[t] * a[t] + d[2] for t in (0, 1)))])

    @classmethod
    def generate(cls, random: Random = os.urandom) -> Self:
        return cls([random_scalar(random) for _ in range(_SECRETS)])

    def issue(self, attributes: Iterable[str], random: Random = os.urandom) -> AttributeKey:
        names = abe.check_attributes(attributes)
        a1, a2, b1, b2, *d = self._secrets
        r1, r2 = random_scalar(random), random_scalar(random)
        r = (b1 * r1, b2 * r2, r1 + r2)
        scaled = [[e * pow(a, -1, ORDER) for e in (*r, 1)] for a in (a1, a2)]

        def three(points: Sequence[Sequence[G1]]) -> list[list[tuple[G1, int]]]:
            """The terms of the three points of a use, whose hashes are listed by t and l."""
            x = random_scalar(random)
            terms = [
                [*zip(hashed, e, strict=False), (G1_GENERATOR, x * e[3])]
                for hashed, e in zip(points, scaled, strict=True)
            ]
            return [*terms, [(G1_GENERATOR, -x)]]

        base = three([[_column(1, row, t) for row in _L] for t in _T])
        rows = [[*terms, (G1_GENERATOR, each)] for terms, each in zip(base, d, strict=True)]
        parts = abe.parts_of(names)
        for part in parts:
            for use in range(1, USES + 1):
                rows += three([[_attribute(part, use, row, t) for row in _L] for t in _T])
        points = iter(G1.combine(rows))
        return AttributeKey(
            names,
            [next(points) for _ in _L],
            {part: [next(points) for _ in range(3 * USES)] for part in parts},
            [G2_GENERATOR * each for each in r],
        )

    def to_bytes(self) -> bytes:
        return encode(_MasterKey(SUITE, b"".join(scalar_to_bytes(each) for each in self._secrets)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        secrets = decode_suited(_decode_master, SUITE, data).secrets
        return cls([scalar_from_bytes(part) for part in cut(secrets, SCALAR_BYTES)])
