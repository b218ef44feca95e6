"""kill -9 of any one process, lying disks and stolen things: nothing acknowledged is lost, nothing false is believed."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import pytest

from client.doctor import Doctor
from client.fhir import load_profile
from client.patient import Patient
from client.reader import Reader
from client.session import KINDS, Session
from client.web import now_ms
from crypto.codec import encode
from crypto.errors import Denied, Unauthentic, Unavailable
from crypto.sign import SigningKey
from node.devnet import Supervisor
from protocol.tx import Request, Tx

POLICIES = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}


@dataclass
class World:
    doctor: Session
    patient: Session
    researcher: Session
    bundle: bytes

    def sign(self) -> bytes:
        """A new signed record in the patient's home; its id."""
        patient_key = self.patient.home.sign.public
        record, package, _ = Doctor(self.doctor).sign(self.bundle, patient_key, load_profile("safe"))
        Patient(self.patient).receive(package)
        return record

    def store(self, record: bytes) -> None:
        profile = load_profile("safe")
        access = {g.label: g.access for g in (*profile.groups, *profile.derived)}
        Patient(self.patient).store(record, access, POLICIES, ("research",))

    def read(self, record: bytes) -> dict[str, bytes]:
        reader = Reader(self.researcher)
        assert reader.request(record, "sharing", "research").ok
        return reader.open(record, "sharing").parts


@pytest.fixture(scope="module")
def world(join_as: Callable[..., Session], sample: bytes) -> World:
    return World(join_as("doctor"), join_as("patient"), join_as("user", "role:researcher"), sample)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killing_any_one_node_of_each_chain_in_mid_run_loses_nothing_acknowledged(
    world: World, whole_net: Supervisor, number: int
):
    record = world.sign()
    for kind in KINDS:
        whole_net.kill(f"{kind}-{number}")
    world.store(record)
    assert world.read(record)
    whole_net.start()
    whole_net.wait_ready()
    for kind in KINDS:
        chain = world.patient.chains[kind]
        for url in list(chain._urls):
            answer, deadline = {}, time.monotonic() + 30
            while answer.get("version") != 1:  # a node that was away catches up by itself
                assert time.monotonic() < deadline
                answer = httpx2.get(f"{url}/v1/record/{record.hex()}", trust_env=False).json()


def test_all_nodes_killed_at_once_come_back_with_everything(world: World, whole_net: Supervisor):
    record = world.sign()
    world.store(record)
    for kind in KINDS:
        for number in (1, 2, 3, 4):
            whole_net.kill(f"{kind}-{number}")
    whole_net.start()
    whole_net.wait_ready()
    assert world.read(record)


def test_a_killed_cloud_serves_everything_acknowledged_after_its_restart(world: World, whole_net: Supervisor):
    record = world.sign()
    world.store(record)
    before = world.read(record)
    whole_net.kill("cloud")
    with pytest.raises(Unavailable, match="the cloud does not answer"):
        world.read(record)
    whole_net.start("cloud")
    whole_net.wait_ready()
    assert world.read(record) == before


def test_a_store_that_was_interrupted_is_finished_by_the_next_attempt(world: World, whole_net: Supervisor):
    record = world.sign()
    whole_net.kill("cloud")
    with pytest.raises(Unavailable):
        world.store(record)
    for kind in KINDS:
        assert world.patient.chains[kind].verified_record(record).version == 0, (
            "nothing half-stored is on chain"
        )
    whole_net.start("cloud")
    whole_net.wait_ready()
    stored = Patient(world.patient).resume(record)
    assert stored is not None
    assert stored.version == 1
    assert world.read(record)


def test_a_ciphertext_changed_on_the_clouds_disk_is_not_believed(world: World, net: Supervisor):
    record = world.sign()
    world.store(record)
    stored = Patient(world.patient).load(record)
    [index] = stored.indices_of("m5")
    blob = stored.parts[index].blob.hash.hex()
    (path,) = (net.folder / "cloud" / "data").rglob(f"*{blob}*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))
    with pytest.raises(Unauthentic, match="changed a ciphertext"):
        world.read(record)


def test_an_old_version_of_a_record_is_not_released_any_more(world: World):
    record = world.sign()
    world.store(record)
    receipt = Reader(world.researcher).request(record, "sharing", "research")
    Patient(world.patient).set_policies(record, {"shared": "role:doctor"})
    with pytest.raises(Denied, match="newer version"):
        world.researcher.chains["sharing"].release(receipt.tx, world.researcher.home.seal)


def post(session: Session, raw: bytes) -> httpx2.Response:
    return httpx2.post(f"{session.chains['sharing']._urls[0]}/v1/tx", content=raw, trust_env=False)


def make_tx(session: Session, chain_id: str, record: bytes) -> Tx:
    return Tx.make(
        chain_id, session.home.sign, os.urandom(16), now_ms() + 60_000, Request(record, "research")
    )


def test_a_transaction_for_the_other_chain_is_refused_with_the_name_of_its_chain(world: World):
    storage = world.researcher.home.chains["storage"].chain_id
    answer = post(world.researcher, encode(make_tx(world.researcher, storage, bytes(16))))
    assert answer.status_code == 400
    assert storage in answer.json()["detail"]


def test_a_replayed_transaction_is_refused_and_changes_nothing(world: World):
    record = world.sign()
    world.store(record)
    chain = world.researcher.chains["sharing"]
    tx = make_tx(world.researcher, world.researcher.home.chains["sharing"].chain_id, record)
    assert post(world.researcher, encode(tx)).status_code == 202
    assert httpx2.get(f"{chain._urls[0]}/v1/tx/{tx.id.hex()}?wait=10", trust_env=False).status_code == 200
    replayed = post(world.researcher, encode(tx))
    assert (replayed.status_code, replayed.json()["type"]) == (409, "urn:diptych:Conflict")
    assert len([r for r in chain.verified_log(record).receipts if r.tx == tx.id]) == 1


def test_a_tampered_transaction_and_one_of_an_uncertified_key_are_refused(world: World, tmp_path: Path):
    sharing = world.researcher.home.chains["sharing"].chain_id
    tx = make_tx(world.researcher, sharing, bytes(16))
    forged = msgspec.structs.replace(tx, signature=bytes(64))
    assert post(world.researcher, encode(forged)).status_code == 401
    nobody = Tx.make(
        sharing, SigningKey.generate(), os.urandom(16), now_ms() + 60_000, Request(bytes(16), "research")
    )
    answer = post(world.researcher, encode(nobody))
    assert answer.status_code == 403
    assert "ask the authority" in answer.json()["detail"]
