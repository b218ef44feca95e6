"""Sealing of a record's parts, each under its own key, and wrapping of those keys (paper eqs. 2-4).

    part key  seals  01 ‖ nonce (12) ‖ AES-256-GCM(padded)      for suite, record, index, sealed_in
                     padded: tag (32) ‖ size of the frame (4, big-endian) ‖ zstd frame ‖ zeros
    class key wraps  nonce (12) ‖ AES-256-GCM(part key (32))    for suite, context, index

What stands after "for" is the associated data, canonically encoded. The zeros make up one of a few sizes: at least 512
bytes without the tag, above that the sizes of Padmé, at most 7 % more (Nikitin et al., PoPETs 2019(4)). Without them the
size of a part would tell a gender, and whether there is a diagnosis at all.

Invariants: a ciphertext opens only at the record, index and version it was made for; the CES tag of a part
lies inside its ciphertext, never beside it; the frame states the size of the message, and nothing larger than
the reader's limit is ever allocated for it, because even who holds the keys may be hostile. AES-GCM as in
NIST SP 800-38D with random 96-bit nonces: a part key seals once, a class key wraps at most some thousand
keys, far below the bound of 2^32. Zstandard is RFC 8878. A ciphertext still shows roughly how large a message is.
"""

import os
from collections.abc import Callable
from typing import TypeVar

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

_SEAL_SUITE = "zstd+padme+aes-256-gcm"
_WRAP_SUITE = "wrap+aes-256-gcm"
_MARKER = b"\x01"
_NONCE_BYTES = 12
_GCM_TAG_BYTES = 16
_SIZE_BYTES = 4
_LEAST = 512
_OVERHEAD = len(_MARKER) + _NONCE_BYTES + TAG_BYTES + _GCM_TAG_BYTES
"""What a sealed part has beside the padded frame and its size."""

T = TypeVar("T")
_compressors: list[zstandard.ZstdCompressor] = []
_decompressors: list[zstandard.ZstdDecompressor] = []


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
    frame = _compress(message) if message else b""
    used = _SIZE_BYTES + len(frame)
    if (size := _OVERHEAD + used) > MAX_SEALED:
        raise Malformed(f"part {index} has {size} bytes when sealed, more than {MAX_SEALED}: split it")
    zeros = bytes(min(_padded_size(used), MAX_SEALED - _OVERHEAD) - used)
    # Of a large part, each copy counts: there are as few as can be.
    padded = b"".join((tag, len(frame).to_bytes(_SIZE_BYTES, "big"), frame, zeros))
    del frame
    context = encode((_SEAL_SUITE, record, index, sealed_in))
    return _seal(key32, padded, context, random, _MARKER)


def open_part(
    key32: bytes, record: bytes, index: int, sealed_in: int, sealed: bytes, limit: int = MAX_MESSAGE
) -> tuple[bytes, bytes]:
    """The CES tag (32 bytes) and the message (at most `limit` bytes) of a sealed part.

    Raises `Unauthentic` if anything differs from what was sealed, with this key, for this record, index and
    version; `Malformed` if what was sealed is not a tag, one frame of a stated size within the limit, and zeros.
    """
    if len(sealed) > MAX_SEALED:
        raise Malformed(f"sealed part {index} has {len(sealed)} bytes, more than {MAX_SEALED}")
    if not sealed.startswith(_MARKER):
        raise Unauthentic(f"part {index} is damaged, or sealed in a form that this version does not know")
    context = encode((_SEAL_SUITE, record, index, sealed_in))
    plaintext = memoryview(_open(key32, memoryview(sealed)[len(_MARKER) :], context, f"part {index}"))
    tag, content = bytes(plaintext[:TAG_BYTES]), plaintext[TAG_BYTES:]
    end = _SIZE_BYTES + int.from_bytes(content[:_SIZE_BYTES], "big")
    if len(content) < max(_SIZE_BYTES, end) or bytes(content[end:]).strip(b"\0"):
        raise Malformed(f"part {index} is not a tag, a frame and zeros: ask its owner to seal it again")
    return tag, _decompress(content[_SIZE_BYTES:end], index, limit)


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


def _seal(
    key32: bytes, plaintext: bytes, context: bytes, random: Callable[[int], bytes], marker: bytes = b""
) -> bytes:
    nonce = random(_NONCE_BYTES)
    return b"".join((marker, nonce, _aead(key32).encrypt(nonce, plaintext, context)))


def _open(key32: bytes, sealed: bytes | memoryview, context: bytes, what: str) -> bytes:
    if len(sealed) < _NONCE_BYTES + _GCM_TAG_BYTES:
        raise Unauthentic(f"{what} is cut short: fetch it again")
    try:
        return _aead(key32).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except InvalidTag:
        raise Unauthentic(
            f"{what} does not open: it was changed, or belongs to another record, index, version or key"
        ) from None


def _padded_size(size: int) -> int:
    """At least `_LEAST`; the next number whose E - S lowest bits are zero, E = floor(log2(size)) and S the bits of E."""
    exponent = size.bit_length() - 1
    low = exponent - exponent.bit_length()
    return max(_LEAST, -(-size >> low) << low)


def _lent(idle: list[T], make: Callable[[], T]) -> T:
    """One of the idle machines, or a new one: to make one takes as long as all else that is done to a small part, and no two threads
    may use the same. Whoever is done with it gives it back."""
    try:
        return idle.pop()
    except IndexError:
        return make()


def _compress(message: bytes) -> bytes:
    machine = _lent(_compressors, zstandard.ZstdCompressor)
    frame = machine.compress(message)
    _compressors.append(machine)
    return frame


def _decompress(frame: memoryview, index: int, limit: int) -> bytes:
    if not frame:
        return b""
    try:
        size = zstandard.frame_content_size(frame)
        if size < 1:  # -1: not stated
            raise Malformed(f"part {index} does not state the size of its message: refused")
        if size > limit:
            raise Malformed(f"part {index} unpacks to {size} bytes, more than the limit of {limit}: refused")
        machine = _lent(_decompressors, zstandard.ZstdDecompressor)
        message = machine.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        raise Malformed(f"part {index} is not one zstd frame of the size that it states: refused") from None
    _decompressors.append(machine)
    return message
