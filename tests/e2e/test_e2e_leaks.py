"""What lies on the disks of all servers together, logs and databases included, after a record came and was read: nothing of a person."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.doctor import Doctor
from client.fhir import load_profile
from client.patient import Patient, StoredRecord
from client.reader import Reader
from client.session import Session
from node.devnet import Supervisor


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(child)


@pytest.fixture(scope="module")
def people(join_as: Callable[..., Session]) -> dict[str, Session]:
    return {
        "doctor": join_as("doctor"),
        "patient": join_as("patient"),
        "researcher": join_as("user", "role:researcher"),
        "stranger": join_as("user", "role:janitor"),
    }


@pytest.fixture(scope="module")
def stored(people: dict[str, Session], sample: bytes) -> StoredRecord:
    """A record that was stored, read by one and refused to another, moved, and asked for in wrong ways."""
    patient, profile = Patient(people["patient"]), load_profile("safe")
    record, package, _ = Doctor(people["doctor"]).sign(sample, people["patient"].home.sign.public, profile)
    access = {g.label: g.access for g in (*profile.groups, *profile.derived)}
    patient.receive(package)
    policies = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}
    patient.store(record, access, policies, ("research",))
    reader = Reader(people["researcher"])
    assert reader.request(record, "sharing", "research").ok
    assert reader.open(record, "sharing").parts
    assert not Reader(people["stranger"]).request(record, "sharing", "research").ok
    return patient.move(record, "m8", "shared", acknowledged=["all"])


@pytest.fixture(scope="module")
def files(net: Supervisor, stored: StoredRecord) -> dict[str, bytes]:
    found = {str(p.relative_to(net.folder)): p.read_bytes() for p in net.folder.rglob("*") if p.is_file()}
    for place in ("cloud/data", "storage-1/data", "sharing-4/log.txt", "authority/data", "authority/log.txt"):
        assert any(name.startswith(place) and data for name, data in found.items()), f"{place} was looked at"
    record = stored.header.record
    assert any(record in data for data in found.values()), "the record's id is where one looks"
    return found


def test_nothing_that_a_record_says_lies_on_any_server_or_in_its_log(files: dict[str, bytes], sample: bytes):
    bundle = json.loads(sample)
    [patient] = [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Patient"]
    words = {
        word for word in strings(bundle) if len(word) >= 10 and any(c in " -." or c.isdigit() for c in word)
    }
    words |= {name for name in strings(patient["name"]) if len(name) >= 4}
    assert len(words) > 50
    for name, data in files.items():
        assert [word for word in words if word.encode() in data] == [], name


def test_no_key_of_a_person_or_part_lies_on_any_server_or_in_its_log(
    files: dict[str, bytes], stored: StoredRecord, people: dict[str, Session]
):
    secrets = [part.key for part in stored.parts]
    secrets += [stored.signature.tag(i) for i in range(stored.header.count)]
    for session in people.values():
        home = session.home
        secrets += [home.sign.seed, bytes(home.seal._key), home.attribute_key.to_bytes()[-96:]]
        assert session.home.sign.public in b"".join(files.values()), "public halves are there"
    for name, data in files.items():
        for secret in secrets:
            assert secret not in data, name
            assert secret.hex().encode() not in data, name
