"""A patient who lost everything is, with two guardians' shares, the same person again."""

import json
from collections.abc import Callable
from pathlib import Path

from client.doctor import Doctor
from client.fhir import load_profile
from client.home import Home
from client.patient import Patient
from client.session import Session
from node.devnet import Supervisor


def test_with_two_shares_and_no_files_a_patient_is_certified_again_and_receives_records(
    net: Supervisor, join_as: Callable[..., Session], run: Callable, sample: bytes, tmp_path: Path
):
    doctor, lost = join_as("doctor", "org:st-mary"), join_as("patient")
    record, package, _ = Doctor(doctor).sign(sample, lost.home.sign.public, load_profile("safe"))
    out, home = tmp_path / "shares", tmp_path / "new phone"
    call = ("-m", "client", "--home")
    run(*call, lost.home.path, "guardians", "split", "Bob", "Carol", "Dave", "--needed", "2", "--out", out)

    shares = [out / "share-3.txt", out / "share-1.txt"]
    run(*call, home, "guardians", "recover", *shares, "--network", net.folder / "network.toml")
    renewed = json.loads(run(*call, home, "-o", "json", "renew").stdout)
    assert renewed["key"] == lost.home.sign.public.hex()
    with Session(Home(home)) as again:
        assert again.home.credential == lost.home.credential
        stored = Patient(again).receive(package)
        assert stored.header.record == record
