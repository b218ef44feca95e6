"""TDH2 (Shoup and Gennaro, J. Cryptology 15(2), 2002): encryption to a key that nobody holds, opened by any t of its n holders.

In G1 of BLS12-381, with G its generator and H a second one hashed from a fixed name. x is the secret behind the key Y = x G, and x_i
is the share of holder i (`crypto.sharing`):

    ciphertext         u = r G,  w = r H,  a proof that one r is in both,  body = AES-256-GCM under a hash of r Y
    decryption share   u_i = x_i u,  a proof that x_i is also the secret of the verification key x_i G
    it opens with      r Y = the sum of the weights of `lagrange` times u_i, over any t holders

Secure against chosen ciphertexts under the decisional Diffie-Hellman assumption in G1 (where no pairing helps, as it is a type 3 curve)
with random oracles, against whoever holds fewer than t shares. The ciphertext's proof covers the key, the label and the body: holders answer
only where the label says, nobody can move or change a ciphertext without its r, and whether one is sound needs no secret to tell. A holder's
proof makes a wrong share visible to whoever combines.

Secrets meet points through `crypto.proof.blinded`. The body is not padded: it is 16 bytes longer than the message.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crypto.codec import Bytes48, Bytes64, Decoder, Short, Wire, encode
from crypto.errors import DiptychError, Malformed, Unauthentic
from crypto.group import G1, G1_GENERATOR, hash_name, random_scalar
from crypto.proof import Random, blinded, holds, prove
from crypto.sharing import SharedKey, lagrange
from crypto.sign import domain_tag

SUITE = "tdh2-bls12381-aes-256-gcm"
MAX_MESSAGE = 64 << 10
"""Bytes of one message."""
OVERHEAD = 214
"""Bytes that encryption adds, at most."""

_NONCE = bytes(12)
"""Each key seals once."""
_TAG_BYTES = 16


class WrongShares(Unauthentic):
    """Too few right decryption shares; `holders` gave wrong ones."""

    def __init__(self, message: str, holders: frozenset[int]) -> None:
        super().__init__(message)
        self.holders = holders


class _Ciphertext(Wire, frozen=True):
    suite: Short
    point: Bytes48
    twin: Bytes48
    proof: Bytes64
    body: Annotated[bytes, msgspec.Meta(min_length=_TAG_BYTES, max_length=MAX_MESSAGE + _TAG_BYTES)]


class _DecryptionShare(Wire, frozen=True):
    suite: Short
    point: Bytes48
    proof: Bytes64


_decode_ciphertext = Decoder(_Ciphertext, "a TDH2 ciphertext", MAX_MESSAGE + OVERHEAD, SUITE)
_decode_share = Decoder(_DecryptionShare, "a TDH2 decryption share", 256, SUITE)


def encrypt(public: G1, label: bytes, message: bytes, random: Random = os.urandom) -> bytes:
    """A ciphertext of `message` that the holders of the key open only as `label`, at most `OVERHEAD` bytes longer."""
    if len(message) > MAX_MESSAGE:
        raise Malformed(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE}")
    r = random_scalar(random)
    point, twin = blinded(G1_GENERATOR, r, random), blinded(_second_generator(), r, random)
    body = _aead(point, blinded(public, r, random)).encrypt(_NONCE, message, label)
    proof = prove("tdh2-ciphertext", _context(public, label, body), r, _pairs(point, twin), random)
    return encode(_Ciphertext(SUITE, point.to_bytes(), twin.to_bytes(), proof, body))


def check(public: G1, label: bytes, ciphertext: bytes) -> None:
    """Raise `Malformed` or `Unauthentic` unless `ciphertext` was made for this key and label. What is inside remains unknown."""
    _opened(public, label, ciphertext)


def decryption_share(
    public: G1, label: bytes, ciphertext: bytes, share: int, random: Random = os.urandom
) -> bytes:
    """The contribution of the holder of `share` to opening a ciphertext; raises as `check` before the share is touched."""
    point, _ = _opened(public, label, ciphertext)
    part = blinded(point, share, random)
    verification_key = blinded(G1_GENERATOR, share, random)
    pairs = ((point, part), (G1_GENERATOR, verification_key))
    proof = prove("tdh2-share", _hash("tdh2-share-of", ciphertext), share, pairs, random)
    return encode(_DecryptionShare(SUITE, part.to_bytes(), proof))


def combine(
    key: SharedKey, label: bytes, ciphertext: bytes, shares: Mapping[int, bytes]
) -> tuple[bytes, frozenset[int]]:
    """The message, and which holders' shares are wrong; `shares` is by holder, from 0.

    Raises `WrongShares` when fewer than the threshold are right; `Malformed` or `Unauthentic` as `check`, and when the maker of the
    ciphertext has sealed its body to something else.
    """
    point, body = _opened(key.public, label, ciphertext)
    parts = {
        holder: part
        for holder, share in shares.items()
        if (part := _part(key, ciphertext, point, holder, share)) is not None
    }
    wrong = frozenset(shares) - frozenset(parts)
    if len(parts) < key.threshold:
        raise WrongShares(
            f"{len(parts)} right decryption shares where {key.threshold} are needed; {len(wrong)} are wrong",
            wrong,
        )
    weights = lagrange(sorted(parts)[: key.threshold])
    first, *rest = (parts[holder] * weight for holder, weight in weights.items())
    try:
        return _aead(point, sum(rest, start=first)).decrypt(_NONCE, body, label), wrong
    except InvalidTag:
        raise Unauthentic(
            "the ciphertext holds nothing that its key opens; its maker must make it anew"
        ) from None


def _opened(public: G1, label: bytes, ciphertext: bytes) -> tuple[G1, bytes]:
    """The point and the body of a sound ciphertext."""
    wire = _decode_ciphertext(ciphertext)
    point, twin = G1.from_bytes(wire.point), G1.from_bytes(wire.twin)
    if not holds("tdh2-ciphertext", _context(public, label, wire.body), _pairs(point, twin), wire.proof):
        raise Unauthentic("the ciphertext does not hold: it was changed, or made for another key or label")
    return point, wire.body


def _part(key: SharedKey, ciphertext: bytes, point: G1, holder: int, share: bytes) -> G1 | None:
    """The point of a decryption share, or None if it is not that of `holder`."""
    try:
        wire = _decode_share(share)
        part = G1.from_bytes(wire.point)
        pairs = ((point, part), (G1_GENERATOR, key.verification_key(holder)))
    except DiptychError:
        return None
    context = _hash("tdh2-share-of", ciphertext)
    return part if holds("tdh2-share", context, pairs, wire.proof) else None


def _second_generator() -> G1:
    return hash_name("tdh2-generator", "")


def _pairs(point: G1, twin: G1) -> tuple[tuple[G1, G1], tuple[G1, G1]]:
    return (G1_GENERATOR, point), (_second_generator(), twin)


def _context(public: G1, label: bytes, body: bytes) -> bytes:
    return encode((SUITE, public.to_bytes(), label, body))


def _aead(point: G1, shared: G1) -> AESGCM:
    return AESGCM(_hash("tdh2-key", point.to_bytes(), shared.to_bytes()))


def _hash(domain: str, *parts: bytes) -> bytes:
    """32 bytes of SHAKE256 over the domain, the suite and the parts, each with its length."""
    return hashlib.shake_256(domain_tag(domain) + encode((SUITE, *parts))).digest(32)
