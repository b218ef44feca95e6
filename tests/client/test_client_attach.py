"""Files attached to a record, as a doctor signs them and as they come back, without a network."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from client import attach
from client.attach import CHUNK, attached, files, of_bundle, write_attached
from client.doctor import Doctor, Package, decode_part, header_digest
from client.fhir import is_attached, is_chunk, load_bundle, load_profile
from client.fhir.lint import FindingsLeft, lint
from client.patient import Patient
from client.session import Session, quiet
from client.sharing import check_sharing
from crypto import ces
from crypto.errors import Conflict, Malformed, Unauthentic
from protocol.tx import Attest
from tests.client.consent_world import DOCTOR_CES, POLICIES, World

SAMPLE = load_bundle(Path(__file__).parents[2] / "client" / "samples" / "zsofia-barat.json")


class Meddling(ces.CesSigner):
    """A signer during whose work something happens to a file."""

    def __init__(self, meddle: Callable[[], object] = lambda: None) -> None:
        super().__init__(ces.SigningKey.generate())
        self._meddle = meddle

    def sign(self, payload: bytes) -> bytes:
        self._meddle()
        return super().sign(payload)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def prepared(
    world: World, *paths: Path, signer: ces.Signer | None = None, rules: tuple[str, ...] = ()
) -> bytes:
    """The package that a doctor makes of the sample with these files."""
    patient = world.session()
    home = SimpleNamespace(ces=signer or Meddling(), sign=world.doctor)
    session = SimpleNamespace(home=home, chains=patient.chains, progress=quiet)
    session.meter = lambda *about: Session.meter(session, *about)  # type: ignore[arg-type]
    package = io.BytesIO()
    doctor = Doctor(session)  # type: ignore[arg-type]
    doctor.prepare(SAMPLE, patient.home.sign.public, load_profile("safe"), package, rules, ["all"], paths)
    return package.getvalue()


def contents(world: World, package: bytes) -> dict[str, bytes]:
    received = Package(io.BytesIO(package), world.session().home.seal)
    return {part.label: part.content for part in map(decode_part, received.messages())}


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_file_of_any_size_comes_back_byte_for_byte(world: World, tmp_path: Path, size: int) -> None:
    scan = tmp_path / "knee.dcm"
    scan.write_bytes(os.urandom(size))
    parts = contents(world, prepared(world, scan))
    assert max(map(len, parts.values())) <= CHUNK
    [found] = write_attached(parts, tmp_path / "out")
    assert (found.label, found.title, found.content_type, found.size) == (
        "a1",
        "knee.dcm",
        "application/dicom",
        size,
    )
    assert (tmp_path / "out" / "a1.bin").read_bytes() == scan.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a1.bin"]
    assert not any(map(is_attached, of_bundle(parts)))


def test_a_file_that_changes_between_signing_and_sealing_is_signed_by_nobody(
    world: World, tmp_path: Path
) -> None:
    scan = tmp_path / "knee.dcm"
    changes: dict[type[Exception], Callable[[], object]] = {
        Unauthentic: lambda: scan.write_bytes(b"B" * (CHUNK + 5)),
        Conflict: lambda: scan.write_bytes(b"A" * CHUNK),
    }
    for error, change in changes.items():
        scan.write_bytes(b"A" * (CHUNK + 5))
        with pytest.raises(error, match="changed"):
            prepared(world, scan, signer=Meddling(change))
    scan.write_bytes(b"A" * (CHUNK + 5))
    with pytest.raises(Conflict, match="changed"):
        prepared(world, scan, signer=Meddling(lambda: scan.write_bytes(b"A" * (CHUNK + 6))))


def test_doctors_may_tie_the_stretches_of_a_file_together(world: World, tmp_path: Path) -> None:
    scan = tmp_path / "knee.dcm"
    scan.write_bytes(bytes(2 * CHUNK))
    received = Package(io.BytesIO(prepared(world, scan, rules=("together(a1)",))), world.session().home.seal)
    full, labels = received.signature, received.labels
    commitments = full.commitments(received.messages())
    stretch = [labels.index("a1"), labels.index("a1-1")]
    with pytest.raises(Exception, match="rule 1"):
        full.extract(commitments, stretch)
    assert full.extract(commitments, [*stretch, labels.index("a1-2")])


def test_more_files_than_a_record_has_parts_for_are_refused_with_what_would_fit(tmp_path: Path) -> None:
    for number in (1, 2):
        with (tmp_path / f"{number}.img").open("wb") as file:
            file.truncate(2048 * CHUNK)
    both = [tmp_path / "1.img", tmp_path / "2.img"]
    assert len(files(both[:1], 100)[0].labels) == 2049
    with pytest.raises(Malformed, match="at most 15,976 MiB"):
        files(both, 100)


@pytest.mark.parametrize(
    "lie",
    [b"", b"[]", b"{}", b'{"size": -2}', b'{"size": 1e300}', b'{"size": 99999999999999999999}', b'{"size": "1"}', b"[" * 9999],
)  # fmt: skip
def test_a_part_that_says_nothing_sensible_of_its_file_is_refused(tmp_path: Path, lie: bytes) -> None:
    with pytest.raises(Malformed, match="does not say"):
        write_attached({"a1": lie}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_not_the_size_that_was_signed_is_not_written(tmp_path: Path) -> None:
    said = json.dumps({"size": CHUNK + 3}).encode()
    with pytest.raises(Malformed, match="the record says"):
        write_attached({"a1": said, "a1-1": bytes(CHUNK), "a1-2": b"ab"}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    [found] = attached({"a1": said, "a1-2": b"abc"})
    assert not found.is_whole


def test_looking_at_what_is_attached_reads_none_of_it() -> None:
    class Locked(dict[str, bytes]):
        def __getitem__(self, label: str) -> bytes:
            assert not is_chunk(label)
            return super().__getitem__(label)

    parts = Locked({"m0": b"{}", "a1": b'{"size": 5}', "a1-1": b"12345"})
    assert [found.is_whole for found in attached(parts)] == [True]
    assert set(of_bundle(parts)) == {"m0"}
    [finding] = lint(parts, {"a1", "a1-1"}, {"m0"})
    assert (finding.part, finding.kind, finding.path) == ("a1", "unread", "$.data")


def test_the_name_of_a_file_that_says_who_the_patient_is_is_a_finding_of_its_own() -> None:
    parts = {
        "m1": json.dumps({"fields": {"name": [{"family": "Nwosu"}]}, "entries": []}).encode(),
        "a1": json.dumps({"size": 1, "title": "knee of nwosu.dcm"}).encode(),
        "a1-1": b"x",
        "a1-2": b"x",
        "a2": json.dumps({"size": 0, "title": "empty"}).encode(),
    }
    found = {(f.part, f.kind, f.path, f.places) for f in lint(parts, set(parts) - {"m1"}, {"m1"})}
    assert found == {("a1", "name", "$.title", 1), ("a1", "unread", "$.data", 2)}


def test_a_profile_cannot_take_the_labels_of_files(tmp_path: Path) -> None:
    text = (Path(attach.__file__).parent / "profiles" / "safe.toml").read_text()
    path = tmp_path / "own.toml"
    path.write_text(text.replace('"m9"', '"a9"'))
    with pytest.raises(Malformed, match="attached file"):
        load_profile(path)
    assert [is_attached(label) for label in ("a1", "a12-7", "a0", "a1-0", "a", "ab1", "m1", "a1-1-1")] == [
        True, True, False, False, False, False, False, False,
    ]  # fmt: skip


def test_sharing_a_file_looks_at_what_it_is_and_never_into_it(world: World, tmp_path: Path) -> None:
    scan = tmp_path / "knee.dcm"
    scan.write_bytes(b'\xff "security" \\u ' * 99)
    package = prepared(world, scan, signer=DOCTOR_CES)
    session = world.session()
    header = Package(io.BytesIO(package), session.home.seal).signature.header
    for chain in world.chains.values():
        chain.execute(world.doctor, Attest(header.record, header.patient, header_digest(header)))
    patient = Patient(session)
    before = patient.receive(package)
    shared = [
        msgspec.structs.replace(part, access="shared" if is_attached(part.label) else "private")
        for part in before.parts
    ]
    after = msgspec.structs.replace(before.with_parts(shared, POLICIES), purposes=("research",))
    with pytest.raises(FindingsLeft, match="unread in a1 at"):
        check_sharing(before, after, patient.contents(before), ())
    assert check_sharing(before, after, patient.contents(before), ["all"]) == []
