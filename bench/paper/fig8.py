"""Figure 8: response time against the number of users who ask at the same time, on one chain and on two.

Closed loop: each of u users sends a request, waits for the answer, and sends the next. A response is the chain's whole answer: the transaction final, and after that the ticket's
signatures and decryption shares from a quorum of nodes, of all of which a user asks. What users' own machines then do (proofs, cloud, decryption) grows with no number of users and is in figure
7. Transactions are signed before the clock runs.

All run on one machine. So that every node has the same share of a core in all configurations, the nodes of either chain have one half of the cores for themselves (`Testbed.on_halves`), and the larger
chain has both. The load runs beside them (`load_cpu_ms`); `nodes_cpu_ms` is what all nodes together spend for one response.

    2x4   two chains with four nodes each, as many users on each (a split of 0.5), on both halves
    1x4   one chain with as many nodes as each of the two has, on one half
    1x8   one chain with as many nodes as the two have together, on both halves
"""

import asyncio
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import NamedTuple

import msgspec

from bench.baselines import PURPOSE, Diptych, OneChain
from bench.consensus import Connection
from bench.paper.lab import BEFORE, Lab, Piece, Row, Testbed, labels, made_parts, quantile
from client.web import now_ms
from crypto.codec import encode
from crypto.sign import SigningKey
from protocol.identity import ChainKind
from protocol.quorum import quorum
from protocol.tx import Request, Tx

TITLE = "Figure 8: response time against concurrent users"
CONFIGURATIONS = {"2x4": (4, 4), "1x4": (4, 4), "1x8": (1, 8)}
"""Nodes of the storage and the sharing chain of the network; where one chain is loaded, it is the sharing chain."""
RECORDS, MOST_USERS = 8, 512
LIFETIME_MS = 500_000
PER_SECOND = 250
"""Requests a second for which transactions are made ready; if more are needed, they are signed on the way."""
WARM_UP_S = 0.3
BEHIND_S = 0.02
"""How long a user waits before asking a node again that has not executed the block yet."""
Kinds = tuple[ChainKind, ...]
BOTH: Kinds = ("storage", "sharing")
ONE: Kinds = ("sharing",)


def pieces(lab: Lab) -> Iterator[Piece]:
    loads = (1, 8, 64, 512) if lab.is_quick else (1, 4, 16, 64, 256, 512)
    seconds, runs = (2.0, 1) if lab.is_quick else (5.0, 2)
    for name in CONFIGURATIONS:
        for users in loads:
            yield Piece(
                f"{name} nodes, {users} users",
                runs * (seconds + 0.5 + users * 0.006),
                partial(_rows, lab, name, users, 0.5, seconds, runs),
            )
    for split in (0.0, 0.25, 0.75, 1.0):
        yield Piece(
            f"2x4 nodes, 64 users, {split:g} of them on the sharing chain",
            runs * (seconds + 0.9),
            partial(_rows, lab, "2x4", 64, split, seconds, runs),
        )


def _rows(lab: Lab, name: str, users: int, split: float, seconds: float, runs: int) -> Iterable[Row]:
    world = _world(lab, name)
    with world.testbed.on_halves():
        for run in range(runs):
            yield asyncio.run(_Load(world, users, split).run(seconds)) | {"run": run}


class _World(NamedTuple):
    """What a load needs: users who are certified on the chains, and records that they may ask for."""

    name: str
    testbed: Testbed
    kinds: Kinds
    users: list[SigningKey]
    records: list[bytes]


@cache
def _world(lab: Lab, name: str) -> _World:
    testbed = lab.testbed(*CONFIGURATIONS[name])
    scheme_type, kinds = (Diptych, BOTH) if name == "2x4" else (OneChain, ONE)
    parts = made_parts(lab.seed, 2, 1, 500)
    with scheme_type(testbed.people) as scheme:
        held = [scheme.store(parts, labels(parts, "m5"), BEFORE) for _ in range(RECORDS)]
    return _World(name, testbed, kinds, testbed.users(MOST_USERS, kinds), [h.records["record"] for h in held])


class _Load:
    def __init__(self, world: _World, users: int, split: float) -> None:
        self._world, self._split = world, split
        self._users = world.users[:users]
        on_sharing = round(users * split) if len(world.kinds) == 2 else users
        self._kinds: list[ChainKind] = ["sharing"] * on_sharing
        self._kinds += ["storage"] * (users - on_sharing)
        home = world.testbed.people.patient
        self._chain_ids = {kind: home.chains[kind].chain_id for kind in world.kinds}
        self._urls = {
            kind: [a.http for a in home.network.chains[kind].nodes.values()] for kind in world.kinds
        }
        self._idle: dict[str, list[Connection]] = defaultdict(list)
        self._late: set[asyncio.Task[bool]] = set()
        self._turn = 0

    async def run(self, seconds: float) -> Row:
        each = int(PER_SECOND * (seconds + WARM_UP_S) / len(self._users)) + 2
        ready = [deque(self._tx(n) for _ in range(each)) for n in range(len(self._users))]
        await self._loop(WARM_UP_S, ready)
        nodes, load, began = self._nodes_cpu(), time.process_time(), time.perf_counter()
        times = await self._loop(seconds, ready)
        took = time.perf_counter() - began
        nodes, load = self._nodes_cpu() - nodes, time.process_time() - load
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        count = len(times)
        return {
            "nodes": self._world.name,
            "users": len(self._users),
            "split": self._split if len(self._world.kinds) == 2 else 1.0,
            "responses": count,
            "seconds": took,
            "per_second": count / took,
            "mean_ms": 1e3 * sum(times) / count,
            "p50_ms": 1e3 * quantile(times, 0.5),
            "p95_ms": 1e3 * quantile(times, 0.95),
            "nodes_cpu_ms": 1e3 * nodes / count,
            "load_cpu_ms": 1e3 * load / count,
        }

    async def _loop(self, seconds: float, ready: list[deque[bytes]]) -> list[float]:
        """The response times of all requests that are sent within `seconds`."""
        times: list[float] = []
        end = time.perf_counter() + seconds

        async def user(number: int) -> None:
            while (began := time.perf_counter()) < end:
                tx = ready[number].popleft() if ready[number] else self._tx(number)
                await self._respond(self._kinds[number], tx)
                times.append(time.perf_counter() - began)

        await asyncio.gather(*(user(number) for number in range(len(self._users))))
        await asyncio.gather(*self._late)
        return times

    def _tx(self, number: int) -> bytes:
        record = self._world.records[number % RECORDS]
        chain_id = self._chain_ids[self._kinds[number]]
        request = Request(record, PURPOSE)
        return encode(Tx.make(chain_id, self._users[number], os.urandom(16), now_ms() + LIFETIME_MS, request))

    async def _respond(self, kind: ChainKind, tx: bytes) -> None:
        urls = self._urls[kind]
        self._turn += 1
        answer = await self._ask(urls[self._turn % len(urls)], "POST", "/v1/tx?wait=30", tx)
        found = msgspec.json.decode(answer, type=_Receipt)
        if not found.ok:
            raise RuntimeError("the chain refused a request of the load")
        waiting = {asyncio.ensure_future(self._release(url, found.tx)) for url in urls}
        missing = quorum(len(urls), "bft")
        while missing > 0:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            missing -= sum(task.result() for task in done)
        for task in waiting:  # the slower nodes' answers are read too, though nobody waits for them
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _release(self, url: str, tx: str) -> bool:
        while True:
            with suppress(_NotYet):
                await self._ask(url, "GET", f"/v1/release/{tx}")
                return True
            await asyncio.sleep(BEHIND_S)

    async def _ask(self, url: str, method: str, path: str, body: bytes = b"") -> bytes:
        idle = self._idle[url]
        while idle and not idle[0].is_fresh:
            idle.pop(0).close()
        connection = idle.pop() if idle else await Connection.to(url)
        status, content = await connection.ask(method, path, body)
        idle.append(connection)
        if status == 404:
            raise _NotYet
        if status != 200:
            raise RuntimeError(f"a node answered a request of the load with {status}")
        return content

    def _nodes_cpu(self) -> float:
        return sum(
            used for name, used in self._world.testbed.cpu().items() if name.startswith(self._world.kinds)
        )


class _NotYet(Exception):
    """A node has not executed the block with the request yet."""


class _Receipt(msgspec.Struct):
    tx: str
    ok: bool
