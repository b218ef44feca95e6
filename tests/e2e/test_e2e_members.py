"""Members come, change their key and go while the network runs, by the operators' commands; nobody else notices."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from e2e_files import SAMPLES

from client.authority import Authority
from client.doctor import Doctor
from client.fhir import load_bundle, load_profile
from client.home import Home
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from configs.files import load_network
from configs.settings import AuthoritySettings, NetworkSettings
from crypto.ces import ED25519
from node.devnet import Supervisor, free_ports, make

POLICIES = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}


class Operators:
    """Runs the operators' commands on the storage chain of one network."""

    def __init__(self, folder: Path, run: Callable[..., Any]) -> None:
        self.folder, self._run = folder, run
        self.file = folder / "change"

    def members(self, command: str, *words: object, admin: int, code: int = 0) -> str:
        chain = ("--network", self.folder / "network.toml", "--chain", "storage")
        key = self.folder / "admins" / f"admin-{admin}.key"
        done = self._run("run_node.py", "members", command, *words, *chain, "--key", key, code=code)
        return done.stderr

    def agree(self, *change: object) -> None:
        """Two of the three admins agree on a change, and it becomes final."""
        self.file.unlink(missing_ok=True)
        self.until_all_hold_shares()
        said = self.members("change", *change, "--out", self.file, admin=1)
        assert "1 admins have approved where 2 of 3 must" in said
        assert "1 admins have approved" in self.members("submit", self.file, admin=1, code=1)
        assert "submit it" in self.members("sign", self.file, admin=3)
        assert "final at height" in self.members("submit", self.file, admin=3)

    def status(self, name: str) -> dict[str, Any]:
        found, _ = load_network(self.folder / "network.toml")
        return httpx2.get(f"{found.chains['storage'].nodes[name].http}/v1/status", timeout=5).json()  # type: ignore[no-any-return]

    def until_all_hold_shares(self) -> None:
        """The index key is shared among the present members."""
        deadline = time.monotonic() + 60
        members = self.status("storage-3")["members"]
        while not all(
            self.status(m)["index_key"]["holds_share"] and not self.status(m)["index_key"]["phase"]
            for m in members
        ):
            assert time.monotonic() < deadline, [self.status(m)["index_key"] for m in members]
            time.sleep(0.1)

    def until(self, name: str, **expected: object) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            try:
                status = self.status(name)
                if all(status[key] == value for key, value in expected.items()):
                    return status
            except httpx2.HTTPError:
                status = {}
            assert time.monotonic() < deadline, (name, expected, status)
            time.sleep(0.1)


@pytest.fixture(params=["libp2p", "tls"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervisor]:
    make(tmp_path / "net", NetworkSettings(storage=4, sharing=1, transport=request.param))
    with Supervisor(tmp_path / "net") as supervisor:
        supervisor.start()
        supervisor.wait_ready()
        yield supervisor


def enrolled(net: Supervisor, folder: Path, role: Any, *attributes: str) -> Session:
    invite = Authority.open(AuthoritySettings.load(net.folder / "authority" / "config.toml"), None).invite
    suite = ED25519 if role == "doctor" else None
    session = Session(Home.create(folder / role, net.folder / "network.toml", suite))
    session.enrol(invite(role, list(attributes), 1))
    return session


def store(doctor: Session, patient: Session) -> bytes:
    profile = load_profile("safe")
    record, package, _ = Doctor(doctor).sign(load_bundle(SAMPLES[0]), patient.home.sign.public, profile)
    Patient(patient).receive(package)
    access = {g.label: g.access for g in (*profile.groups, *profile.derived)}
    Patient(patient).store(record, access, POLICIES, ("treatment",))
    return record


def test_a_node_joins_another_changes_its_key_and_a_third_leaves_while_records_come_and_go(
    net: Supervisor, tmp_path: Path, run: Callable[..., Any]
) -> None:
    folder, operators = net.folder, Operators(net.folder, run)
    with enrolled(net, tmp_path, "doctor") as doctor, enrolled(net, tmp_path, "patient") as patient:
        old = store(doctor, patient)

        p2p, http = free_ports(2)
        run(
            "run_node.py", "new-node", "--network", folder / "network.toml", "--chain", "storage",
            "--name", "storage-5", "--p2p", f"127.0.0.1:{p2p}", "--http", f"http://127.0.0.1:{http}",
            "--dir", folder / "storage-5",
        )  # fmt: skip
        transport = (folder / "storage-1" / "config.toml").read_text()
        config = folder / "storage-5" / "config.toml"
        config.write_text(config.read_text() + next(x for x in transport.splitlines() if "transport" in x))
        operators.agree("--put", folder / "storage-5" / "member.toml")
        assert "make it anew" in operators.members("submit", operators.file, admin=3, code=1)
        with Supervisor(folder) as more:
            more.start("storage-5")
            more.wait_ready()
            joined = operators.until("storage-5", epoch=1, is_member=True)
            assert (joined["quorum"], len(joined["members"])) == (4, 5)
            assert store(doctor, patient)

            run("run_node.py", "rotate-key", "--config", folder / "storage-2" / "config.toml")
            net.kill("storage-2")
            net.start("storage-2")
            net.wait_ready()
            operators.agree("--put", folder / "storage-2" / "member.toml")
            operators.until("storage-2", epoch=2, is_member=True)

            said = operators.members(
                "change", *(w for n in (2, 3, 4) for w in ("--remove", f"storage-{n}")), "--out", folder / "no",
                admin=1, code=1,
            )  # fmt: skip
            assert "in several steps" in said
            operators.agree("--remove", "storage-1")
            left = operators.until("storage-1", epoch=3, is_member=False)
            assert "storage-1" not in left["members"]
            net.kill("storage-1")

            more.kill("storage-5")
            more.start("storage-5")
            more.wait_ready()
            operators.until("storage-5", epoch=3, is_member=True)
            new = store(doctor, patient)
            with enrolled(net, tmp_path / "late", "doctor") as colleague:
                for record in (old, new):
                    reader = Reader(colleague)
                    assert reader.request(record, "storage", "treatment").ok
                    assert reader.open(record, "storage").parts
