"""How long clients wait when the leader dies: four nodes of one chain as processes, a closed-loop load, `kill -9` of whoever leads.

Receipts come to the clients in a steady stream until a moment after the kill, then none, then they come again. A sample is the time from
the kill to the first receipt after that silence. The promise is the base timeout T0 and half a second. Half of T0 after the kill every
survivor must still wait for the dead one; a sample in which the leadership had just moved on says nothing and is drawn again. The dead node is
started again and must have caught up before the next one dies.

    python -m bench.failover                                       # 20 kills for each transport, T0 = 1 s, 200 in flight
    python -m bench.failover --in-flight 2000 --timeout-ms 500 --kills 50

Exits with 1 if a sample breaks the promise.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx2
import msgspec
import typer

from bench.consensus import Diptych
from bench.results import Row, console, publish
from crypto.codec import encode

ALLOWANCE_S = 0.5
BATCH, SIZE = 10, 250


class Failover:
    """Kills leaders of one running network; `base` is T0 in seconds."""

    def __init__(self, chain: Diptych, base: float) -> None:
        self._chain, self._base = chain, base
        self._came: list[float] = []
        """When clients got an answer with receipts in it."""
        # A connection kept from before a kill would fail the next request to the node that was started again.
        self._http = httpx2.AsyncClient(
            timeout=60, trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0)
        )

    async def samples(self, kills: int, in_flight: int) -> list[float]:
        """Seconds from each kill to the first receipt."""
        found: list[float] = []
        async with self._http, self._load(in_flight):
            await asyncio.sleep(2)
            while len(found) < kills:
                sample = await self._kill_leader()
                if sample is not None:
                    found.append(sample)
                    console.print(f"  {sample:.2f} s", end="")
            took = self._came[-1] - self._came[0]
            console.print(
                f"\n  {BATCH * len(self._came) / took:,.0f} tx/s on the whole, kills and restarts included"
            )
        return found

    async def _kill_leader(self) -> float | None:
        chain = self._chain
        statuses = await asyncio.gather(*(self._status(name) for name in chain.urls))
        leader = max((s["view"], s["leader"]) for s in statuses)[1]
        survivors = [name for name in chain.urls if name != leader]
        chain.supervisor.kill(leader)
        killed = time.perf_counter()
        await asyncio.sleep(self._base / 2)
        waited = {s["leader"] for s in await asyncio.gather(*map(self._status, survivors))} == {leader}
        await asyncio.sleep(self._base / 2 + 2 * ALLOWANCE_S)
        chain.supervisor.start(leader)
        await asyncio.to_thread(chain.supervisor.wait_ready)
        goal = (await self._status(survivors[0]))["height"]
        while (await self._status(leader))["height"] < goal:  # noqa: ASYNC110 - a node's state has no event
            await asyncio.sleep(0.05)
        await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - a moment that nothing depends on
        gaps = [(b - a, b) for a, b in pairwise(self._came) if a < killed + self._base / 2 and b > killed]
        return max(gaps)[1] - killed if waited and gaps else None

    async def _status(self, name: str) -> Any:
        return (await self._http.get(f"{self._chain.urls[name]}/v1/status")).json()

    @asynccontextmanager
    async def _load(self, in_flight: int) -> AsyncIterator[None]:
        """Batches that wait for their receipts; a client whose node is dead turns to the next."""
        urls = list(self._chain.urls.values())

        async def client(turn: int) -> None:
            while True:
                turn += 1
                body = encode(tuple(self._chain.tx(SIZE) for _ in range(BATCH)))
                try:
                    answer = await self._http.post(f"{urls[turn % len(urls)]}/v1/txs?wait=20", content=body)
                    if any(isinstance(r, bytes) for r in msgspec.msgpack.decode(answer.content)):
                        self._came.append(time.perf_counter())
                except (httpx2.HTTPError, msgspec.DecodeError):
                    await asyncio.sleep(0.05)

        clients = [asyncio.create_task(client(n)) for n in range(in_flight // BATCH)]
        try:
            yield
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


def main(
    kills: Annotated[int, typer.Option(help="Leaders to kill for each transport.")] = 20,
    timeout_ms: Annotated[int, typer.Option(help="The base timeout T0 of the chain.")] = 1000,
    in_flight: Annotated[int, typer.Option(help="Transactions in flight.")] = 200,
    transport: Annotated[list[str] | None, typer.Option(help="libp2p or tls; repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for CSV files.")] = Path("bench/results/failover"),
) -> None:
    """Kill the leader of a loaded chain again and again; time the way back."""
    base = timeout_ms / 1000
    rows: list[Row] = []
    late = 0
    for name in transport or ["libp2p", "tls"]:
        console.print(f"{name}: seconds from each kill to the next receipt")
        with tempfile.TemporaryDirectory(prefix="diptych-failover-") as temporary:
            chain = Diptych(Path(temporary) / name, name, base_timeout_ms=timeout_ms)
            try:
                found = sorted(asyncio.run(Failover(chain, base).samples(kills, in_flight)))
            finally:
                chain.close()
        over = sum(sample > base + ALLOWANCE_S for sample in found)
        late += over
        rows.append(
            {
                "transport": name,
                "base timeout s": base,
                "in flight": in_flight,
                "kills": len(found),
                "min s": found[0],
                "p50 s": statistics.median(found),
                "p95 s": found[int(0.95 * (len(found) - 1))],
                "max s": found[-1],
                "late": over,
            }
        )
    publish(out, failover=rows)
    raise typer.Exit(1 if late else 0)


if __name__ == "__main__":
    typer.run(main)
