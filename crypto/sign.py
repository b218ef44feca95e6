"""Ed25519 (RFC 8032) as libsodium decides it, with domain separation.

Libraries disagree about edge-case encodings, and a signature that half the nodes accept would split a chain; so every
Ed25519 signature in Diptych is made and checked here. What is signed is always `diptych/1/<domain> 00 <payload>`: a
signature made for one purpose is never valid for another.
"""

import os
from collections.abc import Callable
from typing import Protocol

from nacl import bindings
from nacl.exceptions import BadSignatureError

from crypto.errors import Unauthentic

SIGNATURE_BYTES = 64
PUBLIC_BYTES = 32
SEED_BYTES = 32


def domain_tag(domain: str) -> bytes:
    """The prefix that keeps hashes and signatures of one purpose apart from those of every other."""
    return b"diptych/1/" + domain.encode() + b"\x00"


class Ed25519Signer(Protocol):
    """An Ed25519 key pair, wherever its private half lives: in this process (`SigningKey`), in another one, in an HSM.

    `public` has 32 bytes; `sign` gives the 64 bytes of a signature over `domain_tag(domain) ‖ payload`.
    """

    @property
    def public(self) -> bytes: ...
    def sign(self, domain: str, payload: bytes) -> bytes: ...


class SigningKey:
    """A `Ed25519Signer` with its 32-byte seed in memory."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError("an Ed25519 seed has 32 bytes")
        self.seed = seed
        self.public, self._secret = bindings.crypto_sign_seed_keypair(seed)

    @classmethod
    def generate(cls, random: Callable[[int], bytes] = os.urandom) -> "SigningKey":
        return cls(random(SEED_BYTES))

    def sign(self, domain: str, payload: bytes) -> bytes:
        """64 bytes."""
        return bindings.crypto_sign(domain_tag(domain) + payload, self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey({self.public.hex()[:16]}…)"


def is_valid(public: bytes, domain: str, payload: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) by `public` (32 bytes) holds over `payload` in `domain`."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + domain_tag(domain) + payload, public)
    except BadSignatureError:
        return False
    return True


def verify(public: bytes, domain: str, payload: bytes, signature: bytes, what: str) -> None:
    """Raise `Unauthentic`, naming `what`, unless the signature holds."""
    if not is_valid(public, domain, payload, signature):
        raise Unauthentic(f"the signature on {what} does not hold: it was changed, or signed by another key")
