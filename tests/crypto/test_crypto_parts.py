"""Sealed parts and wrapped keys, seen by who measures them, tampers with them, moves them, or seals something hostile."""

import json
import math
import tracemalloc

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from crypto import parts
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, Unauthentic

KEY, RECORD, TAG = b"k" * 32, b"R" * 16, b"t" * 32


def sealed_by_hand(plaintext: bytes) -> bytes:
    """What a hostile holder of the key can seal: any plaintext at part 3 of RECORD in version 7."""
    context = encode(("zstd+padme+aes-256-gcm", RECORD, 3, 7))
    return b"\x01" + bytes(12) + AESGCM(KEY).encrypt(bytes(12), plaintext, context)


def open_hostile(frame: bytes, limit: int = parts.MAX_MESSAGE, after: bytes = b"") -> bytes:
    plaintext = TAG + len(frame).to_bytes(4, "big") + frame + after
    return parts.open_part(KEY, RECORD, 3, 7, sealed_by_hand(plaintext), limit)[1]


@given(message=st.binary(max_size=2000), index=st.integers(0, 4095), version=st.integers(0, 2**63 - 1))
def test_a_sealed_part_opens_to_what_was_sealed(message: bytes, index: int, version: int) -> None:
    sealed = parts.seal_part(KEY, RECORD, index, version, TAG, message)
    assert parts.open_part(KEY, RECORD, index, version, sealed) == (TAG, message)


def test_a_sealed_part_shows_neither_message_nor_tag_and_never_repeats() -> None:
    message = b"gender: female"
    first, second = (parts.seal_part(KEY, RECORD, 3, 7, TAG, message) for _ in range(2))
    assert message not in first
    assert TAG not in first
    assert first != second


def test_the_format_is_pinned_to_the_documented_layout() -> None:
    frame = zstandard.ZstdCompressor().compress(b"hello" * 100)
    assert open_hostile(frame) == b"hello" * 100
    sealed = parts.seal_part(KEY, RECORD, 3, 7, TAG, b"hello" * 100, random=bytes)
    assert sealed == sealed_by_hand(TAG + (len(frame).to_bytes(4, "big") + frame).ljust(512, b"\0"))


def sealed_size(message: bytes) -> int:
    return len(parts.seal_part(KEY, RECORD, 3, 7, TAG, message))


def test_the_size_of_a_short_part_does_not_tell_a_gender_a_year_or_whether_there_is_a_diagnosis() -> None:
    diagnosis = {"resourceType": "Condition", "code": {"coding": [{"code": "44054006"}]}, "id": "d1"}
    contents = [
        {"fields": {}, "entries": []},
        *({"fields": {"gender": gender}, "entries": []} for gender in ("male", "female", "other", "unknown")),
        {"birthYear": "1964"},
        {"birthYear": None},
        {"fields": {}, "entries": [{"i": 7, "resource": diagnosis}]},
    ]
    assert {sealed_size(json.dumps(content).encode()) for content in contents} == {573}


@given(st.integers(0, 60_000))
def test_the_size_of_any_part_is_one_of_few_and_little_larger_than_it_must_be(size: int) -> None:
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    frame = zstandard.ZstdCompressor().compress(message) if message else b""
    least = 4 + len(frame)
    padded = sealed_size(message) - 1 - 12 - 32 - 16
    assert padded == 512 or least <= padded <= least * 1.07
    significant = padded.bit_length() - (padded & -padded).bit_length() + 1
    assert significant <= math.floor(math.log2(math.log2(padded))) + 2, "few sizes: log2(log2(n)) bits"


def test_what_stands_in_the_padding_or_overlaps_it_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(b"x" * 1000)
    assert open_hostile(frame, after=bytes(100)) == b"x" * 1000
    for after in (b"\1", bytes(100) + b"\1", b"\1" + bytes(100)):
        with pytest.raises(Malformed, match="zeros"):
            open_hostile(frame, after=after)
    for plaintext in (TAG, TAG + bytes(3), TAG + (5).to_bytes(4, "big") + b"four", TAG + b"\xff" * 4 + frame):
        with pytest.raises(Malformed, match="a frame"):
            parts.open_part(KEY, RECORD, 3, 7, sealed_by_hand(plaintext))


def test_a_part_moved_to_another_record_index_version_or_key_does_not_open() -> None:
    sealed = parts.seal_part(KEY, RECORD, 3, 7, TAG, b"message")
    for args in (
        (KEY, b"S" * 16, 3, 7),
        (KEY, RECORD, 4, 7),
        (KEY, RECORD, 3, 8),
        (KEY, RECORD, 7, 3),
        (b"l" * 32, RECORD, 3, 7),
    ):
        with pytest.raises(Unauthentic):
            parts.open_part(*args, sealed)


def test_every_changed_byte_and_every_truncation_is_unauthentic() -> None:
    sealed = parts.seal_part(KEY, RECORD, 3, 7, TAG, b"message")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        for bad in (bytes(changed), sealed[:at]):
            with pytest.raises(Unauthentic):
                parts.open_part(KEY, RECORD, 3, 7, bad)
    with pytest.raises(Unauthentic):
        parts.open_part(KEY, RECORD, 3, 7, sealed + b"\0")


def test_a_zip_bomb_is_refused_before_memory_is_taken_for_it() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(parts.MAX_MESSAGE + 1))
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="limit"):
            open_hostile(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_callers_own_limit_is_exact() -> None:
    frame = zstandard.ZstdCompressor().compress(b"x" * 1000)
    assert open_hostile(frame, limit=1000) == b"x" * 1000
    with pytest.raises(Malformed, match="999"):
        open_hostile(frame, limit=999)


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(b"z" * 200)
    assert frame[5] == 200
    for lie in (1, 100, 199, 201, 255):
        with pytest.raises(Malformed):
            open_hostile(frame[:5] + bytes([lie]) + frame[6:])


def test_frames_without_size_trailing_bytes_many_frames_and_junk_are_refused() -> None:
    compress = zstandard.ZstdCompressor().compress
    frame, empty = compress(b"x" * 1000), compress(b"")
    skippable = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"abcd"
    for hostile in (
        zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 1000),
        frame + b"\0",
        frame + frame,
        frame + empty,
        empty,
        empty + b"hidden bytes",
        empty + frame,
        skippable,
        skippable + frame,
        skippable[:4] + bytes(4),
        frame[:-1],
        b"\x28",
        b"junk" * 10,
    ):
        with pytest.raises(Malformed):
            open_hostile(hostile)


def test_a_plaintext_too_short_for_a_tag_is_refused() -> None:
    with pytest.raises(Malformed, match="tag"):
        parts.open_part(KEY, RECORD, 3, 7, sealed_by_hand(TAG[:-1]))


@given(st.binary(max_size=200))
def test_whatever_a_key_holder_seals_opens_or_is_refused_with_a_sentence(plaintext: bytes) -> None:
    refusal = "part 3"
    try:
        parts.open_part(KEY, RECORD, 3, 7, sealed_by_hand(plaintext), limit=1 << 16)
    except DiptychError as error:
        refusal = str(error)
    assert "part 3" in refusal


def test_a_message_over_the_limit_is_not_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_MESSAGE", 100)
    assert parts.seal_part(KEY, RECORD, 3, 7, TAG, bytes(100))
    with pytest.raises(Malformed, match="split"):
        parts.seal_part(KEY, RECORD, 3, 7, TAG, bytes(101))


def test_what_seals_to_more_than_the_cloud_stores_is_refused_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = b"message"
    sealed = parts.seal_part(KEY, RECORD, 3, 7, TAG, message)
    least = 1 + 12 + 32 + 4 + len(zstandard.ZstdCompressor().compress(message)) + 16
    monkeypatch.setattr(parts, "MAX_SEALED", least)
    tight = parts.seal_part(KEY, RECORD, 3, 7, TAG, message)
    assert len(tight) == least, "padded no further than the cloud stores"
    assert parts.open_part(KEY, RECORD, 3, 7, tight) == (TAG, message)
    with pytest.raises(Malformed, match="more than"):
        parts.open_part(KEY, RECORD, 3, 7, sealed)
    monkeypatch.setattr(parts, "MAX_SEALED", least - 1)
    with pytest.raises(Malformed, match="when sealed"):
        parts.seal_part(KEY, RECORD, 3, 7, TAG, message)


def test_a_wrapped_key_has_60_bytes_and_unwraps_only_in_its_place() -> None:
    wrapped = parts.wrap_key(KEY, b"context", 3, b"p" * 32)
    assert len(wrapped) == parts.WRAPPED_BYTES == 60
    assert parts.unwrap_key(KEY, b"context", 3, wrapped) == b"p" * 32
    for args in ((KEY, b"contexT", 3), (KEY, b"context", 4), (b"l" * 32, b"context", 3)):
        with pytest.raises(Unauthentic):
            parts.unwrap_key(*args, wrapped)


def test_every_change_to_a_wrapped_key_is_unauthentic() -> None:
    wrapped = parts.wrap_key(KEY, b"context", 3, b"p" * 32)
    for at in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[at] ^= 0x80
        for bad in (bytes(changed), wrapped[:at]):
            with pytest.raises(Unauthentic):
                parts.unwrap_key(KEY, b"context", 3, bad)
    with pytest.raises(Unauthentic):
        parts.unwrap_key(KEY, b"context", 3, wrapped + b"\0")


def test_a_sealed_part_is_no_wrapped_key_even_under_the_same_key_and_place() -> None:
    sealed = sealed_by_hand(b"p" * 32)
    assert len(sealed[1:]) == parts.WRAPPED_BYTES
    with pytest.raises(Unauthentic):
        parts.unwrap_key(KEY, RECORD, 3, sealed[1:])


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_keys_and_tags_of_another_size_are_programming_errors(size: int) -> None:
    short = bytes(size)
    with pytest.raises(ValueError, match="32 bytes"):
        parts.seal_part(short, RECORD, 3, 7, TAG, b"")
    with pytest.raises(ValueError, match="32 bytes"):
        parts.seal_part(KEY, RECORD, 3, 7, short, b"")
    with pytest.raises(ValueError, match="32 bytes"):
        parts.wrap_key(KEY, b"context", 3, short)
