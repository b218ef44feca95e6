"""Many records at once against a real network: imported and opened on all cores, cut off in the middle, gone on with."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_files import ROOT

from client.doctor import Package
from client.patient import Patient
from client.samples.generate import many
from client.session import Session
from configs.files import read
from node.devnet import Supervisor

POLICIES = {"private": "role:doctor", "shared": "role:researcher"}


def command(session: Session, *words: object) -> list[str]:
    return [sys.executable, "-m", "client", "--home", str(session.home.path), "-o", "json", *map(str, words)]


def batch(session: Session, *words: object, code: int = 0) -> dict:
    done = subprocess.run(
        command(session, "batch", *words), cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == code, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def mapping(folder: Path, files: list[Path], patient: Session) -> Path:
    path = folder / "bundles.csv"
    key = patient.home.sign.public.hex()
    path.write_text("bundle,patient\n" + "".join(f"{f.relative_to(folder)},{key}\n" for f in files))
    return path


def attested(session: Session, patient: Session) -> set[bytes]:
    return set(session.chains["sharing"].records_of(patient.home.sign.public))


def share(patient: Session, package: Path) -> bytes:
    """The record in a package, stored by its patient."""
    owner = Patient(patient)
    stored = owner.receive(read(package, 1 << 26))
    access = {label: "shared" if label == "m1" else "private" for label in stored.labels}
    access |= {label: "shared" for label in stored.labels[:2]}
    owner.store(stored.header.record, access, POLICIES, ("research",), acknowledged=("all",))
    return stored.header.record


def kill_in_the_middle(words: list[str], is_under_way: Callable[[], object]) -> None:
    """Kill the process itself once it is under way; its workers have to end by themselves."""
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not is_under_way():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.usefixtures("net")
def test_an_import_goes_on_after_kill_9_signs_each_bundle_once_and_reports_what_failed(join_as, tmp_path):
    doctor, patient = join_as("doctor"), join_as("patient")
    files = many(tmp_path / "bundles", 12)
    (tmp_path / "bundles" / "again.json").write_bytes(files[0].read_bytes())
    (tmp_path / "bundles" / "bad.json").write_bytes(b'{"resourceType": "Patient"}')
    listed = [*files, tmp_path / "bundles" / "again.json", tmp_path / "bundles" / "bad.json"]
    listed.append(tmp_path / "bundles" / "missing.json")
    table, out = mapping(tmp_path, listed, patient), tmp_path / "packages"

    words = command(doctor, "batch", "import", table, "--out", out, "--acknowledge", "all", "--processes", 2)
    kill_in_the_middle(words, lambda: doctor.home.names("import"))
    report = batch(doctor, "import", table, "--out", out, "--acknowledge", "all", "--processes", 4, code=7)
    assert report["done"] + report["skipped"] == len(files) + 1
    assert {Path(f["name"]).name for f in report["failures"]} == {"bad.json", "missing.json"}
    records = attested(doctor, patient)
    assert len(records) == len(files) == len(list(out.glob("*.diptych")))
    headers = {
        Package(io.BytesIO(p.read_bytes()), patient.home.seal).signature.header.record for p in out.iterdir()
    }
    assert headers == records

    again = batch(doctor, "import", table, "--out", out, code=7)
    assert (again["done"], again["skipped"], again["failed"]) == (0, len(files) + 1, 2)
    assert attested(doctor, patient) == records


@pytest.mark.usefixtures("net")
def test_opening_goes_on_after_kill_9_and_a_record_that_fails_stops_no_other(join_as, tmp_path):
    doctor, patient = join_as("doctor"), join_as("patient")
    reader = join_as("user", "role:researcher")
    files = many(tmp_path / "bundles", 6)
    batch(doctor, "import", mapping(tmp_path, files, patient), "--out", tmp_path / "packages")
    records = [share(patient, package) for package in sorted((tmp_path / "packages").iterdir())]
    ids, out = tmp_path / "ids.txt", tmp_path / "study"
    nobodys = bytes(16)
    ids.write_text("\n".join(r.hex() for r in [nobodys, *records]))

    words = command(reader, "batch", "open", "--list", ids, "--out", out, "--processes", 1)
    kill_in_the_middle(words, lambda: list(out.glob("*.json")))
    before = {p.name: p.read_bytes() for p in out.glob("*.json")}
    report = batch(reader, "open", "--list", ids, "--out", out, code=7)
    # Workers notice within a moment that their parent is gone, and finish what they are at.
    assert report["done"] + report["skipped"] == len(records)
    assert report["skipped"] >= len(before)
    (failure,) = report["failures"]
    assert failure["name"] == nobodys.hex()
    assert "unknown-record" in failure["reason"]
    opened = [json.loads(line) for p in sorted(out.glob("*.json")) for line in p.read_text().splitlines()]
    assert {o["record"] for o in opened} == {r.hex() for r in records}
    assert all(o["parts"] and o["closed_classes"] == [] for o in opened)
    assert {p.name: p.read_bytes() for p in out.glob("*.json") if p.name in before} == before
    grants = reader.chains["sharing"].grants_of(reader.home.sign.public)
    assert {g.record for g in grants} == set(records)

    everything = tmp_path / "granted"
    assert batch(reader, "open", "--granted", "--out", everything)["done"] == len(records)


def stores_all(patient: Session, packages: Path) -> list[bytes]:
    return [share(patient, package) for package in sorted(packages.iterdir())]


@pytest.mark.campaign
def test_a_thousand_bundles_are_imported_and_a_thousand_records_opened(
    net: Supervisor, join_as, tmp_path, capsys
):
    count = int(os.environ.get("DIPTYCH_BATCH", "1000"))
    doctor, patient = join_as("doctor"), join_as("patient")
    reader = join_as("user", "role:researcher")
    files = many(tmp_path / "bundles", count)
    imported = batch(
        doctor,
        "import",
        mapping(tmp_path, files, patient),
        "--out",
        tmp_path / "packages",
        "--acknowledge",
        "all",
    )
    assert imported["done"] == count
    records = stores_all(patient, tmp_path / "packages")
    (tmp_path / "ids.txt").write_text("\n".join(r.hex() for r in records))
    opened = batch(reader, "open", "--list", tmp_path / "ids.txt", "--out", tmp_path / "study")
    assert opened["done"] == count
    with capsys.disabled():
        for what, report in (("imported", imported), ("opened", opened)):
            shown = {name: report[name] for name in ("done", "seconds", "per_second", "cpu_seconds")}
            print(f"\n{what} on {os.cpu_count()} cores, the network on the same: {shown}")
