"""Signed records and their packages as a patient receives them, from doctors who may lie."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.doctor import Record, SignedPart, _Package, decode_part, header_digest, open_package
from crypto import ces
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, Unauthentic
from crypto.seal import SealKey, seal

PATIENT = SealKey(bytes(range(32)))
SIGNER = ces.CesSigner.generate(ces.ED25519)


def signed(*parts: SignedPart) -> Record:
    signature = ces.sign(
        [encode(part) for part in parts],
        SIGNER,
        record=b"R" * 16,
        patient=b"P" * 32,
        doctor=b"D" * 32,
        created_ms=0,
        profile="safe",
    )
    return Record(signature, parts)


def package(record: Record, suite: str = "diptych-record/x25519-sealedbox") -> bytes:
    return encode(_Package(suite, seal(PATIENT.public, encode(record))))


def test_a_record_comes_out_of_its_package_with_messages_that_verify() -> None:
    sent = signed(SignedPart("m0", b"{}"), SignedPart("m1", b'{"a":1}'))
    record = open_package(package(sent), PATIENT)
    assert record == sent
    ces.verify_full(record.signature, record.messages, ces.ED25519, SIGNER.public)
    swapped = msgspec.structs.replace(record, parts=(SignedPart("m1", b"{}"), SignedPart("m0", b'{"a":1}')))
    with pytest.raises(Unauthentic):
        ces.verify_full(swapped.signature, swapped.messages, ces.ED25519, SIGNER.public)


def test_two_parts_with_one_label_are_refused() -> None:
    with pytest.raises(Malformed, match="one label"):
        open_package(package(signed(SignedPart("m0", b"a"), SignedPart("m0", b"b"))), PATIENT)


@pytest.mark.parametrize("label", ["../../home/x", "/etc/passwd", "m8/1", "", "M1", "m1\n", "m" * 33, "-m"])
def test_a_label_that_could_name_a_file_elsewhere_is_refused(label: str) -> None:
    with pytest.raises(Malformed):
        decode_part(encode((label, b"content")))
    with pytest.raises(Malformed):
        open_package(package(signed(SignedPart(label, b"content"))), PATIENT)


def test_a_package_of_another_suite_key_or_shape_is_refused() -> None:
    good = signed(SignedPart("m0", b"{}"))
    with pytest.raises(Malformed, match="rot13"):
        open_package(package(good, "rot13"), PATIENT)
    with pytest.raises(Unauthentic):
        open_package(package(good), SealKey(bytes(32)))
    with pytest.raises(Malformed):
        open_package(package(msgspec.structs.replace(good, parts=())), PATIENT)


def test_the_digest_on_chain_is_of_one_content_and_tells_nothing_of_it() -> None:
    """The same header fields and even the same tags: another content has another digest; other tags hide the same content."""
    parts = SignedPart("m0", b"female"), SignedPart("m1", b"x")
    first, second = signed(*parts), signed(*parts)
    assert header_digest(first.signature.header) != header_digest(second.signature.header)
    same_tags = ces.sign(
        [encode(SignedPart("m0", b"male")), encode(parts[1])],
        SIGNER,
        record=b"R" * 16,
        patient=b"P" * 32,
        doctor=b"D" * 32,
        created_ms=0,
        profile="safe",
        random=lambda _: first.signature.tags,
    )
    assert same_tags.tags == first.signature.tags
    assert header_digest(same_tags.header) != header_digest(first.signature.header)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_part_or_package_or_refused_with_a_sentence(data: bytes) -> None:
    with suppress(DiptychError):
        decode_part(data)
    with suppress(DiptychError):
        open_package(data, PATIENT)
