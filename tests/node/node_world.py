"""A chain of whole nodes in this process, over real sockets and real files, with their HTTP API at hand."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
from starlette.applications import Starlette

from crypto.codec import encode
from crypto.sign import SigningKey
from node.api import create_app
from node.daemon import Node
from node.devnet import free_ports
from node.net import Net, Peer
from node.tls import TlsNet, identity_of
from protocol.genesis import Genesis, Member
from protocol.network import NodeAddress
from protocol.tx import Request, Tx
from tests.dealer import share_key, share_point
from tests.ledger_state import deal_into

TIMEOUT = 30
AUTHORITY = SigningKey(b"a" * 32)


class World:
    """`size` members named n0, n1, ... with folders of their own; the started ones run until `stop`. A dealer has made the index key,
    so that the chain stays empty until a test fills it, unless the members are to make it themselves."""

    def __init__(
        self, folder: Path, size: int = 4, term_length: int = 4, makes_index_key: bool = False
    ) -> None:
        self.folder, self.makes_index_key = folder, makes_index_key
        self.keys = [SigningKey(bytes([i + 1]) * 32) for i in range(size)]
        self.seeds = [bytes([i + 101]) * 32 for i in range(size)]
        self.ports = free_ports(size)
        now = time.time_ns() // 1_000_000
        members = tuple(
            Member(f"n{i}", key.public, identity_of(seed), share_point(i))
            for i, (key, seed) in enumerate(zip(self.keys, self.seeds, strict=True))
        )
        self.genesis = Genesis(
            "diptych/1/storage/world",
            "storage",
            "bft",
            members,
            AUTHORITY.public,
            now,
            term_length=term_length,
        )
        self.nodes: dict[int, Node] = {}
        self.apps: dict[int, Starlette] = {}

    def data(self, i: int) -> Path:
        return self.folder / f"n{i}"

    def make(self, i: int, rejoin: bool = False) -> Node:
        def transport(peers: Sequence[Peer]) -> Net:
            return TlsNet(
                me=f"n{i}",
                chain_id=self.genesis.chain_id,
                identity_seed=self.seeds[i],
                listen_host="127.0.0.1",
                listen_port=self.ports[i],
                peers=peers,
            )

        marker, keys = self.folder / f"n{i}.journal", [self.keys[i]]
        addresses = {
            f"n{k}": NodeAddress(f"127.0.0.1:{port}", "http://127.0.0.1:1")
            for k, port in enumerate(self.ports)
        }
        data, holder = self.data(i), share_key(i)
        node = Node(self.genesis, f"n{i}", keys, holder, transport, lambda: addresses, data, marker, rejoin)
        if not self.makes_index_key:
            deal_into(node._ledger, self.genesis)
        return node

    async def start(self, *numbers: int, rejoin: bool = False) -> None:
        for i in numbers or range(len(self.keys)):
            node = self.nodes[i] = self.make(i, rejoin)
            self.apps[i] = create_app(node)
            await node.start()
        await self.until(lambda: all(len(n.net.peers()) == len(self.nodes) - 1 for n in self.nodes.values()))

    async def stop(self, *numbers: int) -> None:
        for i in numbers or list(self.nodes):
            await self.nodes.pop(i).stop()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():  # noqa: ASYNC110 - a node's state has no event
                await asyncio.sleep(0.01)

    def tx(self) -> bytes:
        """A transaction of the authority, which the contract refuses and the chain takes."""
        expires = time.time_ns() // 1_000_000 + 100_000
        action = Request(os.urandom(16), "research")
        return encode(Tx.make(self.genesis.chain_id, AUTHORITY, os.urandom(16), expires, action))

    async def grow(self, i: int, count: int = 1) -> None:
        """Make `count` transactions final through member `i`, one after another, executed at every running member."""
        for _ in range(count):
            entry = self.nodes[i].submit(self.tx())
            assert await self.nodes[i].receipt(entry.id, TIMEOUT)
        height = self.nodes[i].executed_height
        await self.until(lambda: all(n.executed_height >= height for n in self.nodes.values()))

    async def request(self, i: int, method: str, path: str, content: bytes = b"") -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.apps[i])
        async with httpx2.AsyncClient(transport=transport, base_url="http://node") as client:
            return await client.request(method, path, content=content)

    async def get(self, i: int, path: str) -> httpx2.Response:
        return await self.request(i, "GET", path)
