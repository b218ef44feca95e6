"""Proofs in G1 that one secret x links points, without telling x: images[k] = x bases[k] for every pair.

One pair is Schnorr's proof of knowledge (CRYPTO '89), two are Chaum and Pedersen's proof of equal logarithms (CRYPTO '92). Made
non-interactive by Fiat and Shamir in the strong form: the challenge hashes the purpose, the context, every base and image, and the
prover's commitments. Proofs of one purpose or context never hold in another. A proof is challenge ‖ response.

`blinded` is how every long-lived secret meets a point here. The group back ends do not run in constant time, so a secret x is split
anew each time into random summands: what a clock measures depends on numbers that are never used again.
"""

import hashlib
import os
from collections.abc import Callable, Sequence

from crypto.codec import encode
from crypto.errors import Malformed
from crypto.group import (
    G1,
    ORDER,
    SCALAR_BYTES,
    WIDE_BYTES,
    random_scalar,
    scalar_from_bytes,
    scalar_from_wide,
    scalar_to_bytes,
)
from crypto.sign import domain_tag

PROOF_BYTES = 2 * SCALAR_BYTES

Random = Callable[[int], bytes]
Pairs = Sequence[tuple[G1, G1]]
"""Bases with their images."""


def blinded(point: G1, secret: int, random: Random = os.urandom) -> G1:
    """secret * point, computed on two random summands of the secret."""
    mask = random_scalar(random)
    return point * mask + point * ((secret - mask) % ORDER)


def hash_to_scalar(domain: str, *parts: bytes | int) -> int:
    """A scalar in [1, ORDER): SHAKE256 over the domain and the parts, each with its length."""
    return scalar_from_wide(hashlib.shake_256(domain_tag(domain) + encode(parts)).digest(WIDE_BYTES))


def prove(purpose: str, context: bytes, secret: int, pairs: Pairs, random: Random = os.urandom) -> bytes:
    """`PROOF_BYTES` that show: one secret, which the prover knows, takes every base to its image. The images are not checked."""
    nonce, mask = random_scalar(random), random_scalar(random)
    commitments = [blinded(base, nonce, random) for base, _ in pairs]
    challenge = _challenge(purpose, context, pairs, commitments)
    response = nonce + challenge * mask + challenge * ((secret - mask) % ORDER)
    return scalar_to_bytes(challenge) + scalar_to_bytes(response)


def holds(purpose: str, context: bytes, pairs: Pairs, proof: bytes) -> bool:
    """Whether `proof` was made with these very arguments by someone who knows the secret."""
    try:
        challenge, response = (
            scalar_from_bytes(part) for part in (proof[:SCALAR_BYTES], proof[SCALAR_BYTES:])
        )
    except Malformed:
        return False
    commitments = [base * response - image * challenge for base, image in pairs]
    return challenge == _challenge(purpose, context, pairs, commitments)


def _challenge(purpose: str, context: bytes, pairs: Pairs, commitments: Sequence[G1]) -> int:
    points = [point for pair in pairs for point in pair]
    return hash_to_scalar(purpose, context, *(point.to_bytes() for point in [*points, *commitments]))
