"""Records of very many parts, and the doctor's rules about what may be shown without what, over real processes."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from client.doctor import Doctor, SignedPart, header_digest
from client.fhir import load_profile, tokens_equal
from client.pack import new_pack
from client.patient import Patient, StoredRecord
from client.reader import Reader
from client.session import KINDS, Session
from client.stored import StoredPart
from client.web import now_ms
from crypto import ces
from crypto.codec import encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.parts import seal_part
from node.devnet import Supervisor
from protocol.tx import Attest

POLICIES = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}
REPORTS = 2_000


@dataclass
class World:
    doctor: Session
    patient: Session
    researcher: Session

    def sign(self, bundle: bytes, profile: str, *rules: str) -> StoredRecord:
        key = self.patient.home.sign.public
        _, package, _ = Doctor(self.doctor).sign(bundle, key, load_profile(profile), rules)
        return Patient(self.patient).receive(package)

    def store(self, signed: StoredRecord) -> StoredRecord:
        profile = load_profile(signed.header.profile)
        access = {label: profile.access_of(label) for label in signed.labels}
        return Patient(self.patient).store(signed.header.record, access, POLICIES, ("research", "treatment"))

    def read(self, stored: StoredRecord) -> dict[str, bytes]:
        reader = Reader(self.researcher)
        assert reader.request(stored.header.record, "sharing", "research").ok
        return reader.open(stored.header.record, "sharing").parts


@pytest.fixture(scope="module")
def world(join_as: Callable[..., Session]) -> World:
    return World(join_as("doctor"), join_as("patient"), join_as("user", "role:researcher"))


@pytest.fixture(scope="module")
def large() -> bytes:
    """A bundle of thousands of resources: a patient, two diagnoses, and laboratory reports with a value each."""
    report = {"resourceType": "Observation", "category": [{"coding": [{"code": "laboratory"}]}]}
    diagnosis = {"resourceType": "Condition", "clinicalStatus": {"coding": [{"code": "active"}]}}
    resources = [
        {"resourceType": "Patient", "gender": "female", "birthDate": "1964-02-29"},
        *({**diagnosis, "id": f"d{i}"} for i in (1, 2)),
        *({**report, "valueInteger": i} for i in range(REPORTS)),
    ]
    entry = [{"resource": resource} for resource in resources]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entry}).encode()


def test_a_record_of_thousands_of_parts_is_shared_part_by_part(world: World, large: bytes):
    signed = world.sign(large, "fine")
    assert signed.header.form == "merkle"
    assert signed.header.count > REPORTS
    stored = world.store(signed)
    record = stored.header.record
    assert set(world.read(stored)) == {"m2", "m5", "m6", "m6-1", "m6-2", "m7", "birth-year"}

    moved = Patient(world.patient).move(record, "m8-1234", "shared")
    opened = world.read(moved)
    assert [label for label in opened if label.startswith("m8")] == ["m8-1234"]
    assert json.loads(opened["m8-1234"])["entries"][0]["resource"]["valueInteger"] == 1233

    whole = Patient(world.patient).move(record, "m8", "shared")
    assert len(world.read(whole)) > REPORTS

    reader = Reader(world.doctor)
    assert reader.request(record, "storage", "treatment").ok
    assert tokens_equal(reader.open(record, "storage").bundle(), large)


def test_the_clouds_disk_has_neither_tags_nor_labels_of_a_record(
    world: World, net: Supervisor, sample: bytes
):
    stored = world.store(world.sign(sample, "fine"))
    files = [path.read_bytes() for path in (net.folder / "cloud" / "data").rglob("*") if path.is_file()]
    blobs = {hashlib.sha256(data).digest() for data in files}
    assert {part.blob.hash for part in stored.parts} <= blobs, "the record is on this disk"
    for data in files:
        assert b"birth-year" not in data
        for index in range(stored.header.count):
            assert stored.signature.tag(index) not in data


def test_what_the_doctor_ties_together_the_patient_cannot_part(world: World, sample: bytes):
    stored = world.store(world.sign(sample, "safe", "together(m5, m6)", "if(m5, m7)"))
    assert {"m5", "m6", "m7"} <= set(world.read(stored))
    for name, rule in (("m5", 1), ("m6", 1), ("m7", 2)):
        with pytest.raises(Denied, match=f"rule {rule} "):
            Patient(world.patient).move(stored.header.record, name, "private")
    for kind in KINDS:
        assert world.patient.chains[kind].verified_record(stored.header.record).version == 1, (
            "nothing was sent"
        )
    assert Patient(world.patient).move(stored.header.record, "m2", "private").version == 2


def test_a_rule_about_a_part_that_there_is_not_signs_nothing(world: World, sample: bytes):
    for rule in ("together(m5, m77)", "together(m5"):
        with pytest.raises(Malformed, match="column"):
            world.sign(sample, "safe", rule)


def test_an_extracted_signature_belongs_to_one_version_of_one_record(world: World, sample: bytes):
    """Whoever puts an extract into the envelope of another version or record makes it unopenable, however true both are."""
    patient, reader = Patient(world.patient), Reader(world.researcher)
    first = world.store(world.sign(sample, "safe"))
    second = patient.set_policies(
        first.header.record, {"shared": "role:researcher or role:doctor or role:insurer"}
    )
    moved = patient.move(first.header.record, "m7", "private")
    other = world.store(world.sign(sample, "safe"))
    envelopes = {
        name: patient._envelope(stored, "shared", "role:researcher")
        for name, stored in (("first", first), ("second", second), ("moved", moved), ("other", other))
    }
    for name, envelope in envelopes.items():
        assert reader._class_key(envelope) is not None
        for donor in envelopes.values():
            if donor.extract != envelope.extract:
                with pytest.raises(Unauthentic):
                    reader._class_key(msgspec.structs.replace(envelope, extract=donor.extract))
        if name != "first":
            with pytest.raises(Unauthentic):
                reader._class_key(msgspec.structs.replace(envelope, record=first.header.record, version=1))
    headers = {name: ces.decode_extract(e.extract).header for name, e in envelopes.items()}
    assert headers["first"] == headers["second"] == headers["moved"] != headers["other"]


def test_a_reader_refuses_a_record_whose_doctor_and_patient_conspire_to_use_a_label_twice(world: World):
    doctor, patient = world.doctor, world.patient
    messages = [encode(SignedPart("m5", content)) for content in (b'{"first":1}', b'{"second":2}')]
    signature = ces.sign(
        messages,
        doctor.home.ces,
        record=os.urandom(16),
        patient=patient.home.sign.public,
        doctor=doctor.home.sign.public,
        created_ms=now_ms(),
        profile="safe",
    )
    record = signature.header.record
    attest = Attest(record, patient.home.sign.public, header_digest(signature.header))
    doctor.on_chains(lambda kind: doctor.chains[kind].execute(doctor.home.sign, attest))
    parts = []
    with new_pack(patient.home.pack(record, 1)) as pack:
        for i, message in enumerate(messages):
            place = pack.add(seal_part(bytes(32), record, i, 1, signature.tag(i), message))
            commitment = signature.commit(i, message)
            parts.append(StoredPart("m5", commitment, False, "private", bytes(32), 1, *place))
    Patient(patient)._save(StoredRecord(signature, 0, tuple(parts), (), ()))
    stored = Patient(patient).store(record, {"m5": "shared"}, POLICIES, ("research",))
    with pytest.raises(Malformed, match="one label"):
        world.read(stored)
