"""One real network for all end-to-end tests: ten processes on loopback, stopped by their own handles at the end."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from e2e_files import ROOT, SAMPLES

from client.authority import Authority
from client.fhir import load_bundle
from client.home import Home
from client.session import Session
from configs.settings import AuthoritySettings, NetworkSettings
from crypto.ces import ED25519
from node.devnet import Supervisor, make
from protocol.identity import Role


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    folder = tmp_path_factory.mktemp("network")
    make(folder, NetworkSettings())
    with Supervisor(folder) as supervisor:
        supervisor.start()
        supervisor.wait_ready()
        yield supervisor


@pytest.fixture
def whole_net(net: Supervisor) -> Iterator[Supervisor]:
    """The network for a test that kills processes: whole again afterwards."""
    yield net
    net.start()
    net.wait_ready()


@pytest.fixture(scope="session")
def invite(net: Supervisor) -> Callable[[Role, list[str], int], str]:
    return Authority.open(AuthoritySettings.load(net.folder / "authority" / "config.toml"), None).invite


@pytest.fixture(scope="session")
def join_as(
    net: Supervisor, invite: Callable[[Role, list[str], int], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Session]]:
    """Enrols new people: `join_as("user", "role:researcher")` gives their session."""
    sessions: list[Session] = []

    def join(role: Role, *attributes: str) -> Session:
        home = Home.create(
            tmp_path_factory.mktemp(role) / "home",
            net.folder / "network.toml",
            ED25519 if role == "doctor" else None,
        )
        sessions.append(Session(home))
        sessions[-1].enrol(invite(role, list(attributes), 1))
        return sessions[-1]

    yield join
    for session in sessions:
        session.close()


@pytest.fixture(scope="session")
def sample() -> bytes:
    return load_bundle(SAMPLES[0])


@pytest.fixture
def run() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a program of the project as a user does."""

    def run_program(*words: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "160"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run_program
