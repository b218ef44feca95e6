"""Records with large attached files, by commands alone against a real network: what comes back, what it takes, and what a change touches."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from e2e_files import ROOT, SAMPLES

from client.attach import CHUNK
from client.fhir import tokens_equal
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from node.devnet import Supervisor

LARGE = 128 << 20
ROOM = 64 << 20
"""Bytes by which a process may grow over one that does the same with a small record: half of what the file has."""


MEASURED = """
import atexit, pathlib, sys
atexit.register(lambda: sys.stderr.write("MEMORY" + pathlib.Path("/proc/self/status").read_text()))
from client.cli import main
main()
"""


class Done(NamedTuple):
    said: Any
    errors: str
    peak: int
    """Bytes of memory, at most."""


def diptych(session: Session, *words: object, code: int = 0) -> Done:
    """Run a command as the person of a home, and see what memory it took."""
    line = [sys.executable, "-c", MEASURED, "--home", session.home.path, "-o", "json", *words]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    errors, _, status = done.stderr.rpartition("MEMORY")
    assert done.returncode == code, errors
    return Done(json.loads(done.stdout) if done.stdout else None, errors, peak(status))


def peak(status: str) -> int:
    """From /proc: the process's own, since its program began. What `getrusage` says begins with what its parent had."""
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def file_of(path: Path, size: int) -> Path:
    """A file of noise, which does not compress."""
    noise = random.Random(size)
    with path.open("wb") as file:
        for at in range(0, size, 1 << 20):
            file.write(noise.randbytes(min(1 << 20, size - at)))
    return path


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def peak_of_cloud(net: Supervisor) -> int:
    process = net.daemons["cloud"].process
    assert process is not None
    return peak(Path(f"/proc/{process.pid}/status").read_text())


@pytest.fixture(scope="module")
def people(join_as: Callable[..., Session]) -> SimpleNamespace:
    return SimpleNamespace(
        doctor=join_as("doctor"), patient=join_as("patient"), researcher=join_as("user", "role:researcher")
    )


def imported(people: SimpleNamespace, folder: Path, *files: Path) -> tuple[str, Path, Done]:
    package = folder / "record.diptych"
    attach = [word for file in files for word in ("--attach", file)]
    key = people.patient.home.sign.public.hex()
    done = diptych(people.doctor, "record", "import", SAMPLES[0], "--patient", key, "--out", package, *attach)
    return done.said["record"], package, done


def ask(people: SimpleNamespace, record: str) -> None:
    assert Reader(people.researcher).request(bytes.fromhex(record), "sharing", "research").ok


def kept(session: Session, record: str = "") -> set[str]:
    """The packs in a home, and what is left of unfinished ones."""
    names = {path.name for path in session.home.path.iterdir() if path.suffix in (".pack", ".tmp")}
    return {name for name in names if record in name}


def round_trip(people: SimpleNamespace, net: Supervisor, folder: Path, size: int, room: int) -> str:
    """A record with a file of this size goes from doctor to researcher and back to its patient, by processes none of which takes more than
    `room` more memory than with a record without; its id."""
    folder.mkdir()
    _, small, importing = imported(people, folder)
    storing = diptych(people.patient, "record", "store", small)
    record = storing.said["record"]
    ask(people, record)
    opening = diptych(people.researcher, "record", "open", record, "--out", folder / "small")
    small.unlink()
    cloud = peak_of_cloud(net)

    scan = file_of(folder / "scan of the knee.DCM", size)
    record, package, done = imported(people, folder, scan)
    assert done.peak < importing.peak + room, "the doctor's command"
    [listed] = [part for part in done.said["parts"] if part["part"] == "a1"]
    assert (listed["access"], listed["bytes"], listed["title"]) == ("private", size, scan.name)
    done = diptych(people.patient, "record", "store", package)
    assert done.peak < storing.peak + room, "the patient's command"
    package.unlink()
    held = diptych(people.patient, "record", "move", record, "a1", "--to", "shared", code=5)
    [finding] = diptych(people.patient, "record", "lint", record, "--share", "a1").said
    assert (finding["part"], finding["kind"], finding["places"]) == ("a1", "unread", -(-size // CHUNK))
    assert finding["id"] in held.errors
    diptych(people.patient, "record", "move", record, "a1", "--to", "shared", "--acknowledge", finding["id"])
    ask(people, record)
    done = diptych(people.researcher, "record", "open", record, "--out", folder / "study")
    assert done.peak < opening.peak + room, "the researcher's command"
    assert done.said["attachments"] == [
        {"part": "a1", "title": scan.name, "type": "application/dicom", "bytes": size, "whole": True}
    ]
    assert digest(folder / "study" / "a1.bin") == digest(scan)
    assert json.loads((folder / "study" / "a1.json").read_bytes())["size"] == size
    assert not [path.name for path in (folder / "study").iterdir() if "knee" in path.name]
    assert peak_of_cloud(net) < cloud + room, "the cloud"
    return record


def test_a_record_with_a_large_file_goes_from_doctor_to_researcher_in_little_memory(
    people: SimpleNamespace, net: Supervisor, tmp_path: Path
):
    record = round_trip(people, net, tmp_path / "large", LARGE, ROOM)
    diptych(
        people.patient,
        "record",
        "export",
        record,
        "--out",
        tmp_path / "bundle.json",
        "--attachments",
        tmp_path / "mine",
    )
    assert tokens_equal((tmp_path / "bundle.json").read_bytes(), SAMPLES[0].read_bytes())
    assert digest(tmp_path / "mine" / "a1.bin") == digest(tmp_path / "large" / "study" / "a1.bin")


@pytest.mark.campaign
def test_a_record_of_a_gigabyte_takes_no_more_memory_than_one_of_a_tenth(
    people: SimpleNamespace, net: Supervisor, tmp_path: Path
):
    round_trip(people, net, tmp_path / "huge", 1 << 30, ROOM)


@pytest.fixture(scope="module")
def stored(people: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A record with two files, of 20 MiB and of none."""
    folder = tmp_path_factory.mktemp("files")
    files = file_of(folder / "film.mp4", (20 << 20) + 1), file_of(folder / "empty.txt", 0)
    record, package, _ = imported(people, folder, *files)
    diptych(people.patient, "record", "store", package, "--access", "a1=shared", "--acknowledge", "all")
    return bytes.fromhex(record)


def test_a_change_of_rights_sends_no_part_and_reads_none(
    people: SimpleNamespace, stored: bytes, monkeypatch: pytest.MonkeyPatch
):
    """The parts are even away meanwhile."""
    patient, home = Patient(people.patient), people.patient.home
    [pack] = kept(people.patient, stored.hex())
    (home.path / pack).rename(home.path / "elsewhere")
    sent = 0
    upload = people.patient.cloud.upload

    def counting(head: Any, content: Any) -> Any:
        nonlocal sent
        pieces = list(content)
        sent += sum(map(len, pieces))
        return upload(head, pieces)

    monkeypatch.setattr(people.patient.cloud, "upload", counting)
    before = [part.blob for part in patient.load(stored).parts]
    patient.move(stored, "a1", "private")
    moved = patient.set_policies(stored, {"shared": "role:researcher or role:doctor or role:insurer"})
    assert [part.blob for part in moved.parts] == before
    assert {moved.parts[i].access for i in moved.indices_of("a1")} == {"private"}
    assert sent < 64 << 10
    (home.path / "elsewhere").rename(home.path / pack)
    patient.move(stored, "a1", "shared", acknowledged=("all",))


def test_who_may_read_only_a_stretch_of_a_file_gets_that_and_is_told_so(
    people: SimpleNamespace, stored: bytes, tmp_path: Path
):
    patient = Patient(people.patient)
    patient.move(stored, "a1-2", "private")
    ask(people, stored.hex())
    said = diptych(people.researcher, "record", "open", stored.hex(), "--out", tmp_path / "study").said
    assert [(file["part"], file["whole"]) for file in said["attachments"]] == [("a1", False)]
    names = {path.name for path in (tmp_path / "study").glob("a1*")}
    assert names == {"a1.json", "a1-1.bin", "a1-3.bin", "a1-4.bin", "a1-5.bin", "a1-6.bin"}
    out = tmp_path / "batch"
    (tmp_path / "ids").write_text(stored.hex())
    diptych(people.researcher, "batch", "open", "--list", tmp_path / "ids", "--out", out)
    parts = json.loads((out / f"{stored.hex()}.json").read_bytes())["parts"]
    assert {"a1", "m5"} <= set(parts), "what a file is stands among the parts"
    assert "a1-1" not in parts
    assert (out / f"{stored.hex()}-a1-1.bin").stat().st_size == CHUNK
    patient.move(stored, "a1-2", "shared", acknowledged=("all",))


def test_new_keys_for_a_file_replace_its_ciphertext_in_the_home_and_in_the_cloud(
    people: SimpleNamespace, net: Supervisor, stored: bytes
):
    patient = Patient(people.patient)
    before = patient.load(stored)
    after = patient.rekey(stored, ["a1"])
    assert kept(people.patient, stored.hex()) == {f"{stored.hex()}-{n}.pack" for n in (1, after.version)}
    film = before.indices_of("a1")
    blobs = {path.name for path in (net.folder / "cloud" / "data" / "blobs").rglob("*")}
    assert not {before.parts[i].blob.hash.hex() for i in film} & blobs
    assert {part.blob.hash.hex() for part in after.parts} <= blobs
    contents = patient.contents(after)
    assert len(contents["a1-6"]) == 1
    assert len(contents["a1-1"]) == CHUNK
    whole = patient.rekey(stored)
    assert kept(people.patient, stored.hex()) == {f"{stored.hex()}-{whole.version}.pack"}


def test_a_store_killed_while_it_uploads_is_finished_by_the_same_command(
    people: SimpleNamespace, join_as: Callable[..., Session], net: Supervisor, tmp_path: Path
):
    patient = join_as("patient")
    people = SimpleNamespace(**{**vars(people), "patient": patient})
    scan = file_of(tmp_path / "scan.dcm", 48 << 20)
    record, package, _ = imported(people, tmp_path, scan)
    arriving = net.folder / "cloud" / "data" / "tmp"
    words = [sys.executable, "-m", "client", "--home", patient.home.path, "record", "store", package]
    with subprocess.Popen(
        list(map(str, words)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not list(arriving.glob("*/*")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert patient.chains["storage"].verified_record(bytes.fromhex(record)).version == 0
    assert diptych(patient, "record", "store", package).said["version"] == 1
    assert kept(patient) == {f"{record}-1.pack"}
    diptych(patient, "record", "store", package, code=8)
    contents = Patient(patient).contents(Patient(patient).load(bytes.fromhex(record)))
    whole = hashlib.sha256(b"".join(contents[f"a1-{n}"] for n in range(1, 13))).digest()
    assert whole == digest(scan)


def test_a_receipt_killed_in_the_middle_leaves_no_record_and_the_next_one_no_leftovers(
    people: SimpleNamespace, join_as: Callable[..., Session], tmp_path: Path
):
    patient = join_as("patient")
    people = SimpleNamespace(**{**vars(people), "patient": patient})
    record, package, _ = imported(people, tmp_path, file_of(tmp_path / "scan.dcm", 48 << 20))
    words = [sys.executable, "-m", "client", "--home", patient.home.path, "record", "store", package]
    with subprocess.Popen(
        list(map(str, words)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not kept(patient):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert Patient(patient).records() == []
    assert diptych(patient, "record", "store", package).said["record"] == record
    assert kept(patient) == {f"{record}-1.pack"}
    diptych(patient, "record", "erase", record, "--yes")
    assert kept(patient) == set()


def test_what_cannot_be_attached_is_refused_and_leaves_no_package(people: SimpleNamespace, tmp_path: Path):
    key = people.patient.home.sign.public.hex()
    sparse = tmp_path / "sparse.img"
    with sparse.open("wb") as file:
        file.truncate(17 << 30)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a\nb").write_bytes(b"")
    for name, code, words in (
        ("sparse.img", 3, "more than 4,096"),
        ("pipe", 3, "no ordinary file"),
        (".", 3, "no ordinary file"),
        ("a\nb", 3, "rename it"),
        ("missing", 6, "does not exist"),
    ):
        package = tmp_path / "out" / "record.diptych"
        done = diptych(
            people.doctor, "record", "import", SAMPLES[0], "--patient", key, "--out", package, "--attach", tmp_path / name,
            code=code,
        )  # fmt: skip
        assert words in done.errors
        assert list(package.parent.iterdir()) == []
