"""Signed records and their packages as a patient receives them, from doctors who may lie and over ways where anything may happen."""

import io
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import doctor
from client.doctor import Package, SignedPart, decode_part, header_digest, write_package
from client.patient import Patient
from crypto import ces
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, Unauthentic
from crypto.parts import seal_part
from crypto.seal import SealKey, seal
from tests.client.consent_world import LABELS, RECORD, World

PATIENT = SealKey(bytes(range(32)))
SIGNER = ces.CesSigner.generate(ces.ED25519)
PARTS = SignedPart("m0", b"{}"), SignedPart("m1", b'{"a":1}'), SignedPart("m2", os.urandom(9000))


def sign(messages: Sequence[bytes], **more: object) -> ces.FullSignature:
    about = {
        "record": b"R" * 16,
        "patient": b"P" * 32,
        "doctor": b"D" * 32,
        "created_ms": 0,
        "profile": "safe",
    }
    return ces.sign(messages, SIGNER, **{**about, **more})  # type: ignore[arg-type]


def package(*parts: SignedPart, labels: Sequence[str] | None = None, **more: object) -> bytes:
    messages = [encode(part) for part in parts]
    into = io.BytesIO()
    listed = labels or [part.label for part in parts]
    write_package(sign(messages, **more), listed, iter(messages), PATIENT.public, into)
    return into.getvalue()


def opened(data: bytes, key: SealKey = PATIENT) -> list[SignedPart]:
    return [decode_part(message) for message in Package(io.BytesIO(data), key).messages()]


def pieces(data: bytes) -> list[bytes]:
    """The head of a package and its parts, each with its length before it."""
    found = []
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_a_record_comes_out_of_its_package_with_messages_that_verify() -> None:
    data = package(*PARTS)
    assert opened(data) == list(PARTS)
    received = Package(io.BytesIO(data), PATIENT)
    commitments = received.signature.commitments(received.messages())
    ces.verify_full(received.signature, commitments, ces.ED25519, SIGNER.public)


def test_a_package_is_read_one_part_at_a_time() -> None:
    file = io.BytesIO(package(*PARTS))
    received = Package(file, PATIENT)
    places = [file.tell()] + [file.tell() for _ in received.messages()]
    assert len(set(places)) == len(PARTS) + 1


def test_parts_that_are_swapped_repeated_cut_changed_left_out_or_of_another_package_are_refused() -> None:
    head, *parts = pieces(package(*PARTS))
    _, *others = pieces(package(*PARTS))
    for lie in (
        [parts[1], parts[0], parts[2]],
        [parts[0], parts[0], parts[2]],
        [parts[0], others[1], parts[2]],
        [parts[0], parts[1], parts[2][:-20]],
        [parts[0], parts[1]],
        [],
        [*parts, parts[2]],
        [*parts, b"\0"],
        [parts[0], struct.pack(">I", 1 << 31) + parts[1][4:], parts[2]],
        [parts[0], framed(b""), parts[2]],
    ):
        with pytest.raises((Malformed, Unauthentic)):
            opened(head + b"".join(lie))
    whole = head + b"".join(parts)
    for at in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[at] ^= 1
        with pytest.raises((Malformed, Unauthentic)):
            opened(bytes(changed))
        with pytest.raises((Malformed, Unauthentic)):
            opened(whole[:at])


def test_two_parts_with_one_label_are_refused() -> None:
    with pytest.raises(Malformed, match="one label"):
        opened(package(SignedPart("m0", b"a"), SignedPart("m0", b"b")))


def test_a_part_whose_label_is_not_the_one_in_the_head_is_refused() -> None:
    with pytest.raises(Unauthentic, match="not the one"):
        opened(package(SignedPart("m0", b"a"), SignedPart("m1", b"b"), labels=["m0", "m2"]))


def test_a_head_with_more_or_fewer_parts_than_were_signed_is_refused() -> None:
    messages = [encode(part) for part in PARTS]
    signature = sign(messages)
    for labels in (["m0", "m1"], ["m0", "m1", "m2", "m3"]):
        head = doctor._Head(signature, tuple((label, bytes(32)) for label in labels))
        sealed = seal(PATIENT.public, encode(head))
        with pytest.raises(Malformed, match="other parts"):
            Package(io.BytesIO(framed(encode(doctor._Package(doctor._SUITE, sealed)))), PATIENT)


@pytest.mark.parametrize("label", ["../../home/x", "/etc/passwd", "m8/1", "", "M1", "m1\n", "m" * 33, "-m"])
def test_a_label_that_could_name_a_file_elsewhere_is_refused(label: str) -> None:
    with pytest.raises(Malformed):
        decode_part(encode((label, b"content")))
    with pytest.raises(Malformed):
        opened(package(SignedPart(label, b"content")))
    with pytest.raises(DiptychError):
        opened(package(SignedPart(label, b"content"), labels=["m0"]))


def test_a_package_of_another_suite_key_or_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unauthentic):
        opened(package(*PARTS), SealKey(bytes(32)))
    with pytest.raises(Malformed, match="no record package"):
        opened(b'{"resourceType": "Bundle"}')
    monkeypatch.setattr(doctor, "_SUITE", "diptych-package/rot13")
    with pytest.raises(Malformed, match="rot13"):
        opened(package(*PARTS))


def test_a_package_that_unpacks_to_more_than_a_record_may_have_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "MAX_RECORD", 10_000)
    bomb = [SignedPart(f"m{n}", bytes(4_000)) for n in range(4)]
    with pytest.raises(Malformed, match="more than 10000 bytes"):
        opened(package(*bomb))


def test_nothing_of_a_package_that_does_not_verify_becomes_part_of_the_home(tmp_path: Path) -> None:
    world = World(tmp_path)
    session = world.session()
    before = {path.name: path.read_bytes() for path in session.home.path.iterdir()}
    head, *parts = pieces(world.package)
    received = Package(io.BytesIO(world.package), session.home.seal)
    key = received._keys[1]
    lie = encode(SignedPart(LABELS[1], b'{"part":"a lie"}'))
    resealed = seal_part(key, RECORD, 1, 0, received.signature.tag(1), lie)
    lies = {
        "a part that was not signed": head + parts[0] + framed(resealed) + parts[2],
        "cut short": world.package[:-1],
        "longer": world.package + b"x",
        "swapped": head + parts[1] + parts[0] + parts[2],
    }
    for name, data in lies.items():
        with pytest.raises((Unauthentic, Malformed)):
            Patient(session).receive(data)
        assert {path.name: path.read_bytes() for path in session.home.path.iterdir()} == before, name
    assert Patient(session).receive(world.package).labels == list(LABELS)


def test_a_part_in_the_home_that_was_changed_cut_or_lost_is_not_taken_for_what_was_signed(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    session = world.session()
    patient = Patient(session)
    contents = patient.contents(patient.receive(world.package))
    assert {label: contents[label] for label in contents} == {
        label: b'{"part":"%s"}' % label.encode() for label in LABELS
    }
    path = session.home.pack(RECORD, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    good = path.read_bytes()
    assert not any(contents[label] in good for label in LABELS)
    size = len(good) // 3
    path.write_bytes(good[size:] + good[:size])
    with pytest.raises(Unauthentic, match="does not open"):
        contents["m0"]
    path.write_bytes(good[: size // 2])
    with pytest.raises(Unauthentic, match="cut short"):
        contents["m0"]
    path.unlink()
    with pytest.raises(DiptychError, match="does not exist"):
        contents["m0"]


def test_the_digest_on_chain_is_of_one_content_and_tells_nothing_of_it() -> None:
    """The same header fields and even the same tags: another content has another digest; other tags hide the same content."""
    messages = [encode(part) for part in (SignedPart("m0", b"female"), SignedPart("m1", b"x"))]
    first, second = sign(messages), sign(messages)
    assert header_digest(first.header) != header_digest(second.header)
    same_tags = sign([encode(SignedPart("m0", b"male")), messages[1]], random=lambda _: first.tags)
    assert same_tags.tags == first.tags
    assert header_digest(same_tags.header) != header_digest(first.header)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_part_or_package_or_refused_with_a_sentence(data: bytes) -> None:
    with suppress(DiptychError):
        decode_part(data)
    with suppress(DiptychError):
        opened(data)
    with suppress(DiptychError):
        opened(framed(data))
