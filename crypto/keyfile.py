"""What lies on disk for a private key: the secret itself, or the secret encrypted under a passphrase.

Invariants: bytes in, bytes out (who writes the file gives it mode 0600); the parameters of the key derivation
are authenticated, and bounded on reading, so that a hostile file can demand neither gigabytes nor hours; no
error tells more than that the passphrase does not fit. Argon2id is RFC 9106, with its second recommended
setting (64 MiB, 3 passes) on one lane.
"""

import os
from collections.abc import Callable
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from msgspec import Meta

from crypto.codec import Bytes16, Decoder, Wire, encode
from crypto.errors import Denied, Malformed

MAX_SECRET = 1 << 20
"""Bytes of one secret."""

_NONCE_BYTES = 12
_GCM_TAG_BYTES = 16


class _Argon2(Wire, frozen=True):
    memory_kib: Annotated[int, Meta(ge=8 << 10, le=256 << 10)]
    passes: Annotated[int, Meta(ge=1, le=16)]
    lanes: Annotated[int, Meta(ge=1, le=8)]
    salt: Bytes16


class _KeyFile(Wire, frozen=True):
    """`body` is the secret (`plain`) or nonce ‖ ciphertext."""

    suite: Literal["diptych-key/plain", "diptych-key/argon2id+aes-256-gcm"]
    kdf: _Argon2 | None
    body: bytes


_decode = Decoder(_KeyFile, "a key file", MAX_SECRET + 256)


def seal(secret: bytes, passphrase: bytes | None, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """The content of a key file for `secret` (at most 1 MiB); without a passphrase the secret stands in it as
    it is.

    Takes some tenths of a second and 64 MiB with a passphrase. Raises `Malformed` for an empty one or an
    oversized secret.
    """
    if len(secret) > MAX_SECRET:
        raise Malformed(f"a secret of {len(secret)} bytes is over the limit of {MAX_SECRET} for a key file")
    if passphrase is None:
        return encode(_KeyFile("diptych-key/plain", None, secret))
    if not passphrase:
        raise Malformed("an empty passphrase protects nothing: give a longer one, or none at all")
    kdf = _Argon2(memory_kib=64 << 10, passes=3, lanes=1, salt=random(16))
    nonce = random(_NONCE_BYTES)
    body = nonce + _aead(kdf, passphrase).encrypt(nonce, secret, encode(kdf))
    return encode(_KeyFile("diptych-key/argon2id+aes-256-gcm", kdf, body))


def is_sealed(data: bytes) -> bool:
    """Whether the key file `data` needs a passphrase, or `Malformed`. What the file says of itself; `open_sealed` checks."""
    return _decode(data).kdf is not None


def open_sealed(data: bytes, passphrase: bytes | None) -> bytes:
    """The secret in the key file `data`.

    Raises `Denied` if the passphrase is wrong, missing, or given for a file that has none (otherwise who
    swaps the file for a plain one would go unnoticed); `Malformed` if `data` is not a key file or demands too
    much memory or time.
    """
    file = _decode(data)
    if (file.kdf is None) != (file.suite == "diptych-key/plain"):
        raise Malformed(
            "the key file is damaged: its parameters do not fit its kind; restore it from a backup"
        )
    if file.kdf is None:
        if passphrase is not None:
            raise Denied(
                "a passphrase was given, but the key file has none: it may have been replaced; "
                "if it is yours, open it without a passphrase"
            )
        return file.body
    if passphrase is None:
        raise Denied("the key file is protected by a passphrase and none was given")
    if len(file.body) < _NONCE_BYTES + _GCM_TAG_BYTES:
        raise Malformed("the key file is damaged: its body is too short; restore it from a backup")
    nonce, ciphertext = file.body[:_NONCE_BYTES], file.body[_NONCE_BYTES:]
    try:
        return _aead(file.kdf, passphrase).decrypt(nonce, ciphertext, encode(file.kdf))
    except InvalidTag:
        raise Denied(
            "the passphrase does not open the key file: check it, or restore the file if it was damaged"
        ) from None


def _aead(kdf: _Argon2, passphrase: bytes) -> AESGCM:
    return AESGCM(
        Argon2id(
            salt=kdf.salt, length=32, iterations=kdf.passes, lanes=kdf.lanes, memory_cost=kdf.memory_kib
        ).derive(passphrase)
    )
