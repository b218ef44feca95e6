"""A patient's proof of who asked for a record, from real nodes to a court's expert who has a file and the genesis."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from e2e_files import ROOT

from client.doctor import Doctor
from client.fhir import load_profile
from client.light import LightClient
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from configs.files import load_network
from node.devnet import Supervisor
from node.store import LEDGER


@pytest.fixture(scope="module")
def patient(join_as: Callable[..., Session]) -> Session:
    return join_as("patient")


@pytest.fixture(scope="module")
def record(patient: Session, join_as: Callable[..., Session], sample: bytes) -> bytes:
    """A record that a researcher was granted and a janitor was denied."""
    profile = load_profile("paper")
    record, package, _ = Doctor(join_as("doctor")).sign(
        sample, patient.home.sign.public, profile, acknowledged=("all",)
    )
    Patient(patient).receive(package)
    access = {g.label: g.access for g in (*profile.groups, *profile.derived)}
    policies = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}
    Patient(patient).store(record, access, policies, ("research",), acknowledged=("all",))
    assert Reader(join_as("user", "role:researcher")).request(record, "sharing", "research").ok
    assert not Reader(join_as("user", "role:janitor")).request(record, "sharing", "research").ok
    return record


def test_the_access_log_with_its_denials_verifies_offline_by_two_programs(
    net: Supervisor, patient: Session, record: bytes, run: Callable, tmp_path: Path
):
    file, genesis = tmp_path / "proof.json", net.folder / "genesis-sharing.toml"
    home = ["-m", "client", "--home", patient.home.path]
    run(*home, "proof", "export", record.hex(), "--chain", "sharing", "--out", file)
    ours = run(
        "-m",
        "client",
        "--home",
        tmp_path / "nobody",
        "-o",
        "json",
        *("proof", "verify", file),
        "--genesis",
        genesis,
    )
    state, log = json.loads(ours.stdout)
    assert (state["status"], state["version"]) == ("published", 1)
    assert [(r["kind"], r["ok"]) for r in log["receipts"]] == [
        ("record.attest", True),
        ("record.publish", True),
        ("access.request", True),
        ("access.request", False),
    ]
    assert len(log["signed_by"]) == 3
    theirs = run(ROOT / "docs" / "examples" / "verify_proof.py", file, genesis)
    assert f"the complete log of record {record.hex()}: 4 receipts" in theirs.stdout
    assert "denied" in theirs.stdout
    changed = tmp_path / "changed.json"
    document = json.loads(file.read_text())
    document["statements"][1]["receipts"].pop()
    changed.write_text(json.dumps(document))
    run(*home, "proof", "verify", changed, "--genesis", genesis, code=4)
    run(ROOT / "docs" / "examples" / "verify_proof.py", changed, genesis, code=1)
    denied = log["receipts"][3]["tx"]
    one = tmp_path / "tx.json"
    run(*home, "proof", "export", "--tx", denied, "--chain", "sharing", "--out", one)
    assert "denied" in run(*home, "proof", "verify", one, "--genesis", genesis).stdout
    assert "denied" in run(ROOT / "docs" / "examples" / "verify_proof.py", one, genesis).stdout


def test_a_node_whose_database_was_falsified_is_named_and_the_patient_still_has_the_whole_log(
    whole_net: Supervisor, patient: Session, record: bytes
):
    """Its operator deletes a request from the log, while the node runs."""
    ledger = whole_net.folder / "sharing-1" / "data" / LEDGER
    with closing(sqlite3.connect(ledger, timeout=10)) as db, db:
        query = "SELECT rowid, * FROM receipts WHERE record = ? ORDER BY height DESC LIMIT 1"
        taken = db.execute(query, (record,)).fetchone()
        db.execute("DELETE FROM receipts WHERE rowid = ?", (taken[0],))
    network, chains = load_network(whole_net.folder / "network.toml")
    said: list[str] = []
    client = LightClient(chains["sharing"], network.chains["sharing"], said.append)
    try:
        liar = network.chains["sharing"].nodes["sharing-1"].http
        client._urls.sort(key=lambda url: url != liar)
        assert len(client.verified_log(record).receipts) == 4
        assert [s.split(" ")[0] for s in said] == ["sharing-1"]
        assert "withholds" in said[0]
    finally:
        client.close()
        with closing(sqlite3.connect(ledger, timeout=10)) as db, db:
            marks = ",".join("?" * (len(taken) - 1))
            db.execute(f"INSERT INTO receipts VALUES ({marks})", taken[1:])
