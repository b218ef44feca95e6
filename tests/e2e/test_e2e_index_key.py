"""What operators of nodes can open of the index, with the real files of a running network: fewer than a quorum nothing, a quorum everything."""

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from client.doctor import Doctor
from client.fhir import load_profile
from client.patient import Patient
from client.session import KINDS, Session
from configs.files import read, read_key
from crypto import tdh2
from crypto.dkg import HolderKey, combined_share
from node.devnet import Supervisor
from protocol.index_key import get_dealing, get_key, index_label, run_of
from protocol.record import decode_index


class Disk:
    """The contract's state as it lies in a node's data folder, read beside the running node."""

    def __init__(self, net: Supervisor, name: str) -> None:
        self._uri = f"file:{net.folder / name / 'data' / 'ledger.db'}?mode=ro"

    def get(self, key: bytes) -> bytes | None:
        with closing(sqlite3.connect(self._uri, uri=True)) as db:
            row = db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None


@pytest.fixture(scope="module")
def stored(join_as: Callable[..., Session], sample: bytes) -> tuple[Session, bytes]:
    doctor, patient = join_as("doctor"), join_as("patient")
    profile = load_profile("safe")
    record, package, _ = Doctor(doctor).sign(sample, patient.home.sign.public, profile)
    Patient(patient).receive(package)
    access = {g.label: g.access for g in (*profile.groups, *profile.derived)}
    Patient(patient).store(
        record, access, {"private": "role:doctor", "shared": "role:researcher"}, ("research",)
    )
    return patient, record


@pytest.mark.parametrize("kind", KINDS)
def test_key_files_of_fewer_nodes_than_a_quorum_open_no_index_entry(net: Supervisor, stored, kind):
    patient, record = stored
    chain, genesis = patient.chains[kind], patient.home.chains[kind]
    entry = chain.verified_record(record)
    label = index_label(genesis.chain_id, record, entry.version, entry.rule.digest)
    parts = {}
    for number in range(4):
        state = Disk(net, f"{kind}-{number + 1}")
        key = get_key(state)
        assert key is not None
        assert key == chain.index_key()
        run = run_of(genesis.hash, key.round, key.holders, key.threshold)
        secret = HolderKey.from_bytes(read_key(net.folder / f"{kind}-{number + 1}" / "keys" / "index.key"))
        pieces = {d: run.piece(d, get_dealing(state, key.round, d), number, secret) for d in key.dealers}
        share = combined_share(pieces, key.weights)
        parts[number] = tdh2.decryption_share(key.public, label, entry.sealed_index, share)
    for two in itertools.combinations(range(4), 2):
        with pytest.raises(tdh2.WrongShares, match="2 right decryption shares where 3 are needed"):
            tdh2.combine(key.shared, label, entry.sealed_index, {i: parts[i] for i in two})
    for three in itertools.combinations(range(4), 3):
        content, _ = tdh2.combine(key.shared, label, entry.sealed_index, {i: parts[i] for i in three})
        assert decode_index(content).record == record


def test_no_key_of_a_chain_lies_in_any_file_and_genesis_names_none(net: Supervisor):
    keys = [read_key(net.folder / f"{k}-{n}" / "keys" / "index.key") for k in KINDS for n in (1, 2, 3, 4)]
    assert len(set(keys)) == 8, "every node has a key of its own"
    for kind in KINDS:
        assert b"index_key" not in read(net.folder / f"genesis-{kind}.toml")
