"""Sealing of a record's parts, each under its own key, and wrapping of those keys (paper eqs. 2-4).

    part key  seals  01 ‖ nonce (12) ‖ AES-256-GCM(tag (32) ‖ zstd frame)  for suite, record, index, sealed_in
    class key wraps  nonce (12) ‖ AES-256-GCM(part key (32))               for suite, context, index

What stands after "for" is the associated data, canonically encoded.

Invariants: a ciphertext opens only at the record, index and version it was made for; the CES tag of a part
lies inside its ciphertext, never beside it; the frame states the size of the message, and nothing larger than
the reader's limit is ever allocated for it, because even who holds the keys may be hostile. AES-GCM as in
NIST SP 800-38D with random 96-bit nonces: a part key seals once, a class key wraps at most some thousand
keys, far below the bound of 2^32. Zstandard is RFC 8878. A ciphertext shows the compressed size of its
message, which can betray something about a short one.
"""

import os
from collections.abc import Callable

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crypto.codec import encode
from crypto.errors import Malformed, Unauthentic

MAX_MESSAGE = 64 << 20
"""Bytes of one message."""
MAX_SEALED = 64 << 20
"""Bytes of one sealed part; only an incompressible message within some kilobytes of `MAX_MESSAGE` meets this
first."""
KEY_BYTES = 32
TAG_BYTES = 32
WRAPPED_BYTES = 60

_SEAL_SUITE = "zstd+aes-256-gcm"
_WRAP_SUITE = "wrap+aes-256-gcm"
_MARKER = b"\x01"
_NONCE_BYTES = 12
_GCM_TAG_BYTES = 16


def seal_part(
    key32: bytes,
    record: bytes,
    index: int,
    sealed_in: int,
    tag: bytes,
    message: bytes,
    random: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """Ciphertext of `message` and its CES `tag` (32 bytes), bound to `record`, `index`, `sealed_in`.

    `key32` must be fresh. Raises `Malformed` if the message or its ciphertext is too large to be stored.
    """
    if len(tag) != TAG_BYTES:
        raise ValueError("a CES tag has 32 bytes")
    if len(message) > MAX_MESSAGE:
        raise Malformed(f"part {index} has {len(message)} bytes, more than {MAX_MESSAGE}: split it")
    # An empty message has no frame: the library stops reading at a stated size of 0 and lets others follow.
    frame = zstandard.ZstdCompressor().compress(message) if message else b""
    sealed = _MARKER + _seal(key32, tag + frame, encode((_SEAL_SUITE, record, index, sealed_in)), random)
    if len(sealed) > MAX_SEALED:
        raise Malformed(f"part {index} has {len(sealed)} bytes when sealed, more than {MAX_SEALED}: split it")
    return sealed


def open_part(
    key32: bytes, record: bytes, index: int, sealed_in: int, sealed: bytes, limit: int = MAX_MESSAGE
) -> tuple[bytes, bytes]:
    """The CES tag (32 bytes) and the message (at most `limit` bytes) of a sealed part.

    Raises `Unauthentic` if anything differs from what was sealed, with this key, for this record, index and
    version; `Malformed` if what was sealed is not a tag and one frame of a stated size within the limit.
    """
    if len(sealed) > MAX_SEALED:
        raise Malformed(f"sealed part {index} has {len(sealed)} bytes, more than {MAX_SEALED}")
    if not sealed.startswith(_MARKER):
        raise Unauthentic(f"part {index} is damaged, or sealed in a form that this version does not know")
    context = encode((_SEAL_SUITE, record, index, sealed_in))
    plaintext = _open(key32, sealed[len(_MARKER) :], context, f"part {index}")
    if len(plaintext) < TAG_BYTES:
        raise Malformed(f"part {index} was sealed without a tag: ask its owner to seal it again")
    return plaintext[:TAG_BYTES], _decompress(plaintext[TAG_BYTES:], index, limit)


def wrap_key(
    class_key32: bytes, context: bytes, index: int, key32: bytes, random: Callable[[int], bytes] = os.urandom
) -> bytes:
    """60 bytes that carry the key of part `index` to holders of the class key; `context` says of which record
    version and access class, canonically encoded."""
    if len(key32) != KEY_BYTES:
        raise ValueError("a part key has 32 bytes")
    return _seal(class_key32, key32, encode((_WRAP_SUITE, context, index)), random)


def unwrap_key(class_key32: bytes, context: bytes, index: int, wrapped: bytes) -> bytes:
    """The 32-byte key of part `index`, or `Unauthentic` unless it was wrapped under this class key, context
    and index."""
    if len(wrapped) != WRAPPED_BYTES:
        raise Unauthentic(f"the wrapped key of part {index} has {len(wrapped)} bytes, not {WRAPPED_BYTES}")
    return _open(
        class_key32, wrapped, encode((_WRAP_SUITE, context, index)), f"the wrapped key of part {index}"
    )


def _aead(key32: bytes) -> AESGCM:
    if len(key32) != KEY_BYTES:
        raise ValueError("an AES-256 key has 32 bytes")  # AESGCM would take a shorter one for AES-128
    return AESGCM(key32)


def _seal(key32: bytes, plaintext: bytes, context: bytes, random: Callable[[int], bytes]) -> bytes:
    nonce = random(_NONCE_BYTES)
    return nonce + _aead(key32).encrypt(nonce, plaintext, context)


def _open(key32: bytes, sealed: bytes, context: bytes, what: str) -> bytes:
    if len(sealed) < _NONCE_BYTES + _GCM_TAG_BYTES:
        raise Unauthentic(f"{what} is cut short: fetch it again")
    try:
        return _aead(key32).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except InvalidTag:
        raise Unauthentic(
            f"{what} does not open: it was changed, or belongs to another record, index, version or key"
        ) from None


def _decompress(frame: bytes, index: int, limit: int) -> bytes:
    if not frame:
        return b""
    try:
        size = zstandard.frame_content_size(frame)
        if size < 1:  # -1: not stated
            raise Malformed(f"part {index} does not state the size of its message: refused")
        if size > limit:
            raise Malformed(f"part {index} unpacks to {size} bytes, more than the limit of {limit}: refused")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        raise Malformed(f"part {index} is not one zstd frame of the size that it states: refused") from None
