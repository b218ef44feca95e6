"""Sealed delivery to one X25519 key: libsodium's sealed boxes (ephemeral X25519, XSalsa20-Poly1305).

The sender stays anonymous and cannot open the box afterwards; what binds the content to its place is inside it.
"""

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from crypto.errors import Malformed, Unauthentic

OVERHEAD = 48
"""Bytes that sealing adds."""


class SealKey:
    """An X25519 key pair from its 32 secret bytes."""

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)
        self.public = bytes(self._key.public_key)

    def open(self, sealed: bytes, what: str) -> bytes:
        """The content, or `Unauthentic`, naming `what`, if it was sealed to another key or changed."""
        try:
            return SealedBox(self._key).decrypt(sealed)
        except CryptoError:
            raise Unauthentic(f"{what} does not open: it was sealed to another key, or changed") from None

    def __repr__(self) -> str:
        return f"SealKey({self.public.hex()[:16]}…)"


def seal(public: bytes, content: bytes) -> bytes:
    """`content` for the holder of `public` alone, `OVERHEAD` bytes longer."""
    try:
        return SealedBox(PublicKey(public)).encrypt(content)
    except (CryptoError, ValueError):
        raise Malformed("the X25519 key to seal to is not valid") from None
