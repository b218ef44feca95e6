"""A network and a doctor whose signing keys are all in other processes."""

import shlex
import sys
from pathlib import Path

import pytest
from e2e_files import ROOT, SAMPLES

from client.authority import Authority
from client.doctor import Doctor
from client.fhir import load_bundle, load_profile
from client.home import Home, Outside
from client.patient import Patient
from client.session import Session
from configs.settings import AuthoritySettings, NetworkSettings
from configs.signer import CommandCesSigner, CommandSigner, make_key
from crypto.ces import RSA_PSS
from crypto.errors import Unavailable
from node.devnet import Supervisor, make

KEYS = {"storage-1": "consensus", "sharing-1": "consensus", "cloud": "cloud", "authority": "authority"}


def command(key: Path, *flags: str) -> str:
    return shlex.join([sys.executable, str(ROOT / "run_node.py"), "signer", "--key", str(key), *flags])


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """One node a chain; every daemon's signing key lies in a vault that only its signer opens."""
    folder, vault = tmp_path / "net", tmp_path / "vault"
    make(folder, NetworkSettings(storage=1, sharing=1, transport="tls"))
    vault.mkdir()
    for name, key in KEYS.items():
        (folder / name / "keys" / f"{key}.key").rename(vault / f"{name}.key")
        config = folder / name / "config.toml"
        config.write_text(config.read_text() + f"signer_command = {command(vault / f'{name}.key')!r}\n")
    return folder


def test_a_record_is_signed_and_attested_where_no_process_holds_its_signing_key(net: Path, tmp_path: Path):
    make_key(tmp_path / "me.key", "ed25519", None)
    make_key(tmp_path / "ces.key", RSA_PSS, None)
    outside = Outside(
        CommandSigner(command(tmp_path / "me.key")),
        CommandCesSigner(command(tmp_path / "ces.key", "--only", "ces")),
    )
    with Supervisor(net) as supervisor:
        supervisor.start()
        supervisor.wait_ready()
        authority = Authority.open(AuthoritySettings.load(net / "authority" / "config.toml"), None)
        network = net / "network.toml"
        with (
            Session(Home.create(tmp_path / "doctor", network, RSA_PSS, None, outside)) as doctor,
            Session(Home.create(tmp_path / "patient", network, None)) as patient,
        ):
            doctor.enrol(authority.invite("doctor", ["org:st-mary"], 1))
            patient.enrol(authority.invite("patient", [], 1))
            bundle, profile = load_bundle(SAMPLES[0]), load_profile("safe")
            record, package, _ = Doctor(doctor).sign(bundle, patient.home.sign.public, profile)
            assert Patient(patient).receive(package).header.record == record
        for name in KEYS:
            assert not list((net / name / "keys").glob("consensus.key"))


def test_a_daemon_whose_signer_does_not_answer_says_so_and_does_not_start(net: Path):
    config = net / "cloud" / "config.toml"
    config.write_text(config.read_text().replace("signer --key", "signer --no-such-option"))
    with Supervisor(net) as supervisor:
        supervisor.start("cloud")
        with pytest.raises(Unavailable, match="signer command ended"):
            supervisor.wait_ready()
