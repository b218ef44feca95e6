"""A small network of real transports on loopback, for the tests of `Net` back ends.

A back end joins the suite by an entry in `BACKENDS`: `module:class`, where the class takes the arguments of `P2PNet` and the
module has `identity_of`.
"""

import asyncio
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.net import Chan, Event, Peer, PeerDown, PeerUp, Received

BACKENDS = {
    "libp2p": "node.p2p:P2PNet",
    "tls": "node.tls:TlsNet",
}
TIMEOUT = 20

_ROOT = str(Path(__file__).parents[2])
_CHILD = """
import asyncio, importlib, json, sys
from node.net import Peer, Received
async def main():
    arguments = json.loads(sys.argv[1])
    module, name = arguments.pop("backend").split(":")
    arguments["identity_seed"] = bytes.fromhex(arguments["identity_seed"])
    arguments["peers"] = [Peer(**peer) for peer in arguments["peers"]]
    net = getattr(importlib.import_module(module), name)(**arguments)
    def echo(event):
        if isinstance(event, Received):
            net.send(event.src, event.chan, event.body)
    await net.start(echo)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Member:
    """A transport in this process and the events it reported, in order."""

    def __init__(self, net) -> None:
        self.net = net
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    async def next(self) -> Event:
        return await asyncio.wait_for(self.events.get(), TIMEOUT)

    async def until(self, wanted: Event) -> list[Event]:
        """Wait for exactly this event; what came before it."""
        before = []
        while (event := await self.next()) != wanted:
            before.append(event)
        return before

    async def until_down(self, peer: str) -> str:
        """Wait for the end of the link to `peer`; the reason."""
        while not (isinstance(event := await self.next(), PeerDown) and event.peer == peer):
            pass
        return event.why

    async def received(self, count: int) -> list[Received]:
        """The next `count` frames."""
        frames: list[Received] = []
        while len(frames) < count:
            if isinstance(event := await self.next(), Received):
                frames.append(event)
        return frames

    async def echo(self, peer: str, body: bytes = b"are you there?") -> None:
        """Exchange a frame with a child process."""
        assert self.net.send(peer, Chan.VOTE, body)
        await self.until(Received(peer, Chan.VOTE, body))


class Child:
    """A member in a process of its own, which sends every frame back."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Network:
    """Members named a, b, c, ... with one address book; everything started here is stopped at the end of the test."""

    def __init__(self, backend: str, names: str, host: str = "127.0.0.1") -> None:
        self.backend = backend
        module, name = backend.split(":")
        self._module = importlib.import_module(module)
        self._class = getattr(self._module, name)
        self.seeds = {name: os.urandom(32) for name in names}
        self.book = {
            n: Peer(n, self._module.identity_of(self.seeds[n]), host, self.free_port(host)) for n in names
        }
        self._members: list[Member] = []
        self._children: list[Child] = []

    def arguments(self, me: str, **other: object) -> dict:
        peers = [peer for peer in self.book.values() if peer.node != me]
        own = self.book[me]
        given = {"me": me, "chain_id": "storage/1", "identity_seed": self.seeds[me], "peers": peers}
        return given | {"listen_host": own.host, "listen_port": own.port} | other

    def make(self, me: str, **other: object) -> Member:
        self._members.append(Member(self._class(**self.arguments(me, **other))))
        return self._members[-1]

    async def start(self, me: str, **other: object) -> Member:
        member = self.make(me, **other)
        await member.net.start(member.events.put_nowait)
        return member

    async def start_all(self) -> list[Member]:
        """All members, every link up and every `PeerUp` taken from the queues."""
        members = [await self.start(name) for name in self.book]
        for member in members:
            ups = {await member.next() for _ in range(len(self.book) - 1)}
            assert ups == {PeerUp(name) for name in self.book if name != member.net.me}
        return members

    async def spawn(self, me: str) -> Child:
        arguments = self.arguments(me, backend=self.backend, identity_seed=self.seeds[me].hex())
        fields = Peer.__dataclass_fields__
        arguments["peers"] = [{name: getattr(peer, name) for name in fields} for peer in arguments["peers"]]
        environment = os.environ | {"PYTHONPATH": _ROOT}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, json.dumps(arguments), env=environment
        )
        self._children.append(Child(process))
        return self._children[-1]

    @staticmethod
    def free_port(host: str = "127.0.0.1") -> int:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind(address)
            return probe.getsockname()[1]

    @staticmethod
    async def until(condition: Callable[[], object]) -> None:
        """Wait for a counter to move, which no event announces."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():  # noqa: ASYNC110 - counters have no event
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for child in self._children:
            await child.kill()
        await asyncio.gather(*(member.net.stop() for member in self._members))


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
async def network(request):
    """`network("abc")` makes a `Network` of three."""
    made = []

    def make(names: str, host: str = "127.0.0.1") -> Network:
        made.append(Network(request.param, names, host))
        return made[-1]

    yield make
    for each in made:
        await each.stop()
