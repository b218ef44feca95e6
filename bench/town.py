"""A whole network on this host and the people who live on it: what the benchmarks of records start from.

The daemons are real processes, the clients real homes; only the machine is shared by all of them.
"""

import base64
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from client.authority import Authority
from client.home import Home
from client.samples.generate import PEOPLE, bundle
from client.session import Session
from configs.settings import AuthoritySettings, NetworkSettings
from crypto.ces import RSA_PSS
from node.devnet import Supervisor, make
from protocol.identity import Role

VISIT_BYTES = 14_400
"""About what one more visit adds to a bundle."""


class Town:
    """A running network; `join` makes its people."""

    def __init__(self, supervisor: Supervisor, stack: ExitStack) -> None:
        self.folder, self.supervisor, self._stack = supervisor.folder, supervisor, stack
        settings = AuthoritySettings.load(self.folder / "authority" / "config.toml")
        self._invite = Authority.open(settings, None).invite
        self._homes = self.folder / "homes"
        self._homes.mkdir()
        self._count = 0

    def join(self, role: Role, *attributes: str) -> Session:
        """A newly enrolled person, connected until the town is left; a doctor signs with RSA-PSS 3072, as in the paper."""
        self._count += 1
        suite = RSA_PSS if role == "doctor" else None
        home = Home.create(self._homes / f"{role}-{self._count}", self.folder / "network.toml", suite)
        session = self._stack.enter_context(Session(home))
        session.enrol(self._invite(role, list(attributes), 1))
        return session

    def pids(self) -> dict[str, int]:
        """The processes by name."""
        daemons = self.supervisor.daemons.values()
        return {d.name: d.process.pid for d in daemons if d.process is not None}


@contextmanager
def town(**shape: object) -> Iterator[Town]:
    """A fresh network of this shape (`NetworkSettings`) in a temporary folder, stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        make(folder, NetworkSettings.model_validate(shape))
        supervisor = stack.enter_context(Supervisor(folder))
        supervisor.start()
        supervisor.wait_ready()
        yield Town(supervisor, stack)


def record_of(size: int) -> bytes:
    """An invented patient's bundle of `size` bytes, the same on every run: as many visits as that takes, and to fill it up a document. At
    least 6 kB."""
    person = PEOPLE[1]
    visits = max(0, size - len(bundle(replace(person, visits=0)))) // VISIT_BYTES
    while visits and len(bundle(replace(person, visits=visits))) + len(_document(0)) > size:
        visits -= 1
    whole = bundle(replace(person, visits=visits)).rstrip()
    assert whole.endswith(b"]}")
    return whole[:-2] + _document(size - len(whole) - len(_document(0))) + b"]}"


def _document(size: int) -> bytes:
    """An entry with this many characters of base64."""
    drawn = random.Random(size).randbytes(max(0, size) * 3 // 4)  # noqa: S311 - invented data
    data = base64.b64encode(drawn).ljust(max(0, size), b"=")
    resource = {"resourceType": "Binary", "contentType": "application/octet-stream", "data": data.decode()}
    return b"," + json.dumps({"resource": resource}, separators=(",", ":")).encode()
