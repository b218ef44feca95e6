"""Attribute keys that t of n authorities issue together; none of them, nor any t - 1, can issue one or open anything.

The master key y of FABEO is born shared (`crypto.dkg`): authority i holds y_i = f(i + 1) of a polynomial of degree t - 1 with f(0) = y. What
it issues under its share, with an r_i of its own, is an ordinary FABEO key for the public key [y_i]_2:

    part    y_i A + r_i B,  r_i H(u) for u in S,  [r_i]_2
    check   e(y_i A + r_i B, g2) = e(A, [y_i]_2) e(B, [r_i]_2)   and   e(r_i H(u), g2) = e(H(u), [r_i]_2) for each u

and with the Lagrange weights w_i of t authorities the parts add up, element by element, to an ordinary key for [y]_2 and S with
r = sum of w_i r_i. As one of t authorities is honest, r is uniform. The checks are made at once, each with a random weight of 128 bits.

Why this is as good as one authority. Who holds t - 1 shares and asks for ordinary keys can make every part that an honest authority issues:
y_i is a known combination of y and the shares held, so scaling and shifting a key for [y]_2 gives the part. So parts are worth no more than
ordinary keys for the same attributes. People who pool parts for different attributes open only what the attributes of each of t parts, from
different authorities, satisfy alone; a key they make at most for what these have in common. The generation publishes [y]_1 and the [y_i]_1
besides; in the argument of `crypto.fabeo` they have other degrees in x than in y, too.

A single authority is the case n = 1, of any scheme: its part is the key.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self

import msgspec

from crypto import abe, fabeo
from crypto.abe import Random, parts_of
from crypto.codec import Decoder, Short, Wire, encode
from crypto.errors import Conflict, Malformed, Unauthentic
from crypto.group import G1, G2, G2_GENERATOR, hash_name, pairing_product
from crypto.schemes import read_master, read_public
from crypto.sharing import lagrange

JOINT_SUITE = "abe-joint"
ISSUER_SUITE = "abe-issuer"
MAX_ISSUERS = 32
_WEIGHT_BYTES = 16
_MAX_KEY = 4 << 10
"""Bytes of one public or master key of any scheme."""
MAX_JOINT_BYTES = MAX_ISSUERS * _MAX_KEY

Number = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ISSUERS)]
"""An authority's place among the n, from 0."""


class _Joint(Wire, frozen=True):
    suite: Short
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_ISSUERS)]
    keys: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=MAX_ISSUERS)]


class _Issuer(Wire, frozen=True):
    suite: Short
    number: Number
    joint: bytes
    master: bytes


_decode_joint = Decoder(_Joint, "a joint public key", MAX_JOINT_BYTES, JOINT_SUITE)
_decode_issuer = Decoder(
    _Issuer, "an authority's part of a master key", MAX_JOINT_BYTES + (8 << 10), ISSUER_SUITE
)


class JointKey:
    """The public side: `keys` are the authorities' own public keys in their order, `public` is the one to encrypt under."""

    def __init__(self, threshold: int, keys: Sequence[abe.PublicKey]) -> None:
        """`Malformed` unless the keys are of one sharing in which `threshold` shares make the secret."""
        if not 1 <= threshold <= len(keys) <= MAX_ISSUERS:
            raise Malformed(
                f"1 to {MAX_ISSUERS} authorities issue keys, 1 to all of them together, not {threshold} of {len(keys)}"
            )
        self.threshold, self.keys = threshold, tuple(keys)
        self.public = keys[0] if len(keys) == 1 else self._joined(range(threshold))
        for further in range(threshold, len(keys)):
            if self._joined([*range(1, threshold), further]).to_bytes() != self.public.to_bytes():
                raise Malformed(
                    f"the public keys of the authorities are not of one sharing by {threshold} shares"
                )

    def check(
        self, number: int, part: abe.AttributeKey, attributes: Iterable[str], random: Random = os.urandom
    ) -> None:
        """Raise `Unauthentic` unless `part` is what authority `number` has to issue for exactly these attributes.

        The part of a single authority of another scheme than FABEO is taken at its word: nobody else's word is at stake.
        """
        if part.attributes != frozenset(attributes):
            raise Unauthentic("the key was issued for other attributes than those that are certified")
        public = self.keys[number]
        if len(self.keys) == 1 and not isinstance(public, fabeo.PublicKey):
            return
        key, point = _fabeo_key(part), _fabeo_point(public)
        names = parts_of(sorted(part.attributes))
        weights = [int.from_bytes(random(_WEIGHT_BYTES), "big") for _ in names]
        [issued, hashed] = G1.combine(
            [
                [
                    (key._base, 1),
                    *((key._points[name], weight) for name, weight in zip(names, weights, strict=True)),
                ],
                [
                    (hash_name(*fabeo._B), 1),
                    *(
                        (hash_name(fabeo._ATTRIBUTE_DOMAIN, name), weight)
                        for name, weight in zip(names, weights, strict=True)
                    ),
                ],
            ]
        )
        expected = pairing_product([(hash_name(*fabeo._A), point), (hashed, key._randomizer)])
        if pairing_product([(issued, G2_GENERATOR)]) != expected:
            raise Unauthentic("the key does not fit the public key of the authority that issued it")

    def combine(self, parts: Mapping[int, abe.AttributeKey]) -> abe.AttributeKey:
        """The key that checked parts for the same attributes, exactly `threshold` of them by authority, add up to."""
        if len(parts) != self.threshold:
            raise ValueError(f"a key is made of {self.threshold} parts")
        if len(self.keys) == 1:
            return parts[0]
        weights = lagrange(parts)
        keys = [(_fabeo_key(part), weights[number]) for number, part in parts.items()]
        names = list(keys[0][0]._points)
        base, *points = G1.combine(
            [
                [(key._base, weight) for key, weight in keys],
                *([(key._points[name], weight) for key, weight in keys] for name in names),
            ]
        )
        [randomizer] = G2.combine([[(key._randomizer, weight) for key, weight in keys]])
        attributes = keys[0][0].attributes
        return fabeo.AttributeKey(attributes, base, dict(zip(names, points, strict=True)), randomizer)

    def to_bytes(self) -> bytes:
        return encode(_Joint(JOINT_SUITE, self.threshold, tuple(key.to_bytes() for key in self.keys)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`. It is not authenticated."""
        wire = _decode_joint(data)
        return cls(wire.threshold, [read_public(key) for key in wire.keys])

    def _joined(self, numbers: Iterable[int]) -> fabeo.PublicKey:
        weights = lagrange(list(numbers))
        [point] = G2.combine([[(_fabeo_point(self.keys[i]), weight) for i, weight in weights.items()]])
        return fabeo.PublicKey(point)


class IssuerKey:
    """What one authority holds: its number, its share of the master key as a master key of its own, and the joint key."""

    def __init__(self, number: int, joint: JointKey, master: abe.MasterKey) -> None:
        """`Conflict` if the share does not fit the joint key."""
        if not 0 <= number < len(joint.keys) or master.public.to_bytes() != joint.keys[number].to_bytes():
            raise Conflict(
                "the share of the master key is not the one that its joint public key says; restore the right key file"
            )
        self.number, self.joint = number, joint
        self._master = master

    @classmethod
    def sole(cls, master: abe.MasterKey) -> Self:
        """The only authority's."""
        return cls(0, JointKey(1, [master.public]), master)

    def issue(self, attributes: Iterable[str], random: Random = os.urandom) -> abe.AttributeKey:
        """This authority's part of a key for 1 to `abe.MAX_ATTRIBUTES` attributes, or `Malformed`."""
        return self._master.issue(attributes, random)

    def to_bytes(self) -> bytes:
        """The secret itself, unencrypted."""
        return encode(_Issuer(ISSUER_SUITE, self.number, self.joint.to_bytes(), self._master.to_bytes()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key; from the bytes of a master key, that of the only authority. `Malformed` or `Conflict` otherwise."""
        if abe.suite_of(data) != ISSUER_SUITE:
            return cls.sole(read_master(data))
        wire = _decode_issuer(data)
        return cls(wire.number, JointKey.from_bytes(wire.joint), read_master(wire.master))

    def __repr__(self) -> str:
        return f"IssuerKey(<{self.number + 1} of {len(self.joint.keys)}>)"


def _fabeo_key(key: abe.AttributeKey) -> fabeo.AttributeKey:
    if not isinstance(key, fabeo.AttributeKey):
        raise _not_fabeo(key.suite)
    return key


def _fabeo_point(key: abe.PublicKey) -> G2:
    if not isinstance(key, fabeo.PublicKey):
        raise _not_fabeo(key.suite)
    return key._point


def _not_fabeo(suite: str) -> Malformed:
    return Malformed(f"several authorities issue keys of {fabeo.SUITE} together, not of {suite!r}")
