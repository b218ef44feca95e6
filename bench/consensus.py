"""How fast one chain is: four nodes as separate processes on loopback, real transport, real disk, every node verifying every signature.

Closed-loop clients keep 1, 200 or 2,000 transactions in flight; a transaction counts when the client holds its receipt. The yardstick in the
same run is etcd with four members under the same load (it checks no signature); without an installed `etcd` it is skipped with a notice.

    python -m bench.consensus                    # every size and load, both systems
    python -m bench.consensus --in-flight 1 --seconds 5
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx2
import msgspec
import typer

from bench.proc import cpu_seconds
from bench.results import Row, console, publish
from client.chain import ChainClient
from client.web import now_ms
from configs.files import load_network, read_key
from configs.settings import NetworkSettings
from crypto.codec import encode
from crypto.sign import SigningKey
from node.devnet import Supervisor, free_ports, make
from protocol.identity import Credential, SignedCredential
from protocol.tx import Certify, Publish, Rule, Tx

BATCH = 100
"""Transactions in one HTTP request or etcd transaction stream slot when many are in flight."""
MOST_TX = 8_000
"""Transactions a second for which requests are made ready; if more are needed, clients make them on the way."""
MOST_IDLE_S = 2
"""How long a connection may lie idle and be used again; a node closes it after 5 s."""


@dataclass
class Result:
    """What one load on one system gave; times in seconds."""

    count: int
    seconds: float
    latencies: list[float]
    cpu: float

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def quantile(self, q: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(q * len(self.latencies)))]


async def closed_loop(
    send: Callable[[int], Awaitable[int]], in_flight: int, seconds: float
) -> tuple[int, float, list[float]]:
    """Keep `in_flight` operations going, in batches of at most `BATCH`, for `seconds` after a warm-up of a fifth of it."""
    batch = min(BATCH, in_flight)
    latencies: list[float] = []
    count = 0
    start = time.perf_counter() + seconds / 5
    end = start + seconds

    async def worker() -> None:
        nonlocal count
        while (began := time.perf_counter()) < end:
            done = await send(batch)
            now = time.perf_counter()
            if start <= now <= end:
                count += done
                latencies.append(now - began)

    await asyncio.gather(*(worker() for _ in range(in_flight // batch)))
    return count, seconds, latencies


class Connection:
    """Kept-alive HTTP to one node, with as little work as the yardstick's gRPC client does: a general HTTP client in Python
    costs more than the node that answers it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._used = time.monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the node surely still listens on it."""
        return time.monotonic() - self._used < MOST_IDLE_S

    @classmethod
    async def to(cls, url: str) -> "Connection":
        host, port = url.removeprefix("http://").rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port)))

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of the answer, which must be a 200."""
        status, content = await self.ask("POST", path, body)
        assert status == 200, content
        return content

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nhost: node\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        content = await self._reader.readexactly(length)
        self._used = time.monotonic()
        return int(answer[9:12]), content

    def close(self) -> None:
        self._writer.close()


class Diptych:
    """Four storage nodes and a certified sender."""

    def __init__(self, folder: Path, transport: str, **shape: int) -> None:
        make(folder, NetworkSettings.model_validate({"sharing": 1, "transport": transport, **shape}))
        self.supervisor = Supervisor(folder)
        names = [f"storage-{n}" for n in range(1, 5)]
        self.supervisor.start(*names)
        self.supervisor.wait_ready()
        network, chains = load_network(folder / "network.toml")
        self._genesis, addresses = chains["storage"], network.chains["storage"]
        self.urls = {name: addresses.nodes[name].http for name in names}
        authority = SigningKey(read_key(folder / "authority" / "keys" / "authority.key"))
        self._sender = SigningKey.generate()
        credential = Credential(
            self._sender.public, "user", ("role:bench",), bytes(32), None, 0, now_ms() + 10**9
        )
        self._bare = len(self._publish(b"", now_ms()))
        client = ChainClient(self._genesis, addresses)
        client.execute(authority, Certify(SignedCredential.issue(credential, authority)))
        client.close()
        with httpx2.Client(trust_env=False) as http:
            for url in self.urls.values():
                while http.get(f"{url}/v1/identity/{self._sender.public.hex()}").is_error:
                    time.sleep(0.01)

    def pids(self) -> list[int]:
        return [d.process.pid for d in self.supervisor.daemons.values() if d.process is not None]

    def tx(self, size: int, lifetime_ms: int = 300_000) -> bytes:
        """A signed transaction of `size` bytes, or 251 if that is more."""
        padding = size - self._bare
        return self._publish(os.urandom(max(0, padding - (padding > 255))), now_ms() + lifetime_ms)

    def _publish(self, padding: bytes, expires_ms: int) -> bytes:
        action = Publish(os.urandom(16), 1, bytes(32), padding, Rule("role:bench", (), None, ()))
        return encode(Tx.make(self._genesis.chain_id, self._sender, os.urandom(16), expires_ms, action))

    async def run(self, in_flight: int, seconds: float, size: int) -> Result:
        urls = list(self.urls.values())
        batch = min(BATCH, in_flight)
        idle: dict[str, list[Connection]] = {url: [] for url in urls}
        ready = deque(self._body(batch, size) for _ in range(int(1.2 * seconds * MOST_TX / (batch + 15))))
        turn = 0

        async def send(batch: int) -> int:
            nonlocal turn
            turn += 1
            url = urls[turn % len(urls)]
            while idle[url] and not idle[url][0].is_fresh:
                idle[url].pop(0).close()
            connection = idle[url].pop() if idle[url] else await Connection.to(url)
            body = ready.popleft() if ready else self._body(batch, size)
            answer = await connection.post("/v1/txs?wait=20" if batch > 1 else "/v1/tx?wait=20", body)
            idle[url].append(connection)
            if batch > 1:
                results = msgspec.msgpack.decode(answer)
                assert all(isinstance(r, bytes) for r in results), results[:3]
            return batch

        before = sum(map(cpu_seconds, self.pids()))
        count, took, latencies = await closed_loop(send, in_flight, seconds)
        used = sum(map(cpu_seconds, self.pids())) - before
        for connection in (c for connections in idle.values() for c in connections):
            connection.close()
        return Result(count, took, latencies, used)

    def _body(self, batch: int, size: int) -> bytes:
        """One request, signed before the measurement: clients have machines of their own."""
        return encode(tuple(self.tx(size) for _ in range(batch))) if batch > 1 else self.tx(size)

    def close(self) -> None:
        self.supervisor.stop()


class Etcd:
    """Four etcd members; a put of a fresh key counts when it is answered."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(8)
        peers = [f"http://127.0.0.1:{p}" for p in ports[:4]]
        self._addresses = [f"127.0.0.1:{p}" for p in ports[4:]]
        cluster = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        self._processes = []
        for i in range(4):
            words = [
                "etcd",
                "--name",
                f"m{i}",
                "--data-dir",
                str(folder / f"m{i}"),
                "--initial-cluster",
                cluster,
            ]
            words += ["--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i]]
            words += [
                "--listen-client-urls",
                f"http://{self._addresses[i]}",
                "--advertise-client-urls",
                f"http://{self._addresses[i]}",
            ]
            log = (folder / f"m{i}.log").open("wb")
            self._processes.append(subprocess.Popen(words, stdout=log, stderr=log))  # noqa: S603
        deadline = time.monotonic() + 30
        for address in self._addresses:
            while True:
                try:
                    if httpx2.get(f"http://{address}/health", trust_env=False).json().get("health") == "true":
                        break
                except (httpx2.HTTPError, ValueError):
                    pass
                if time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError("etcd did not become healthy")
                time.sleep(0.1)

    def pids(self) -> list[int]:
        return [p.pid for p in self._processes]

    async def run(self, in_flight: int, seconds: float, size: int) -> Result:
        import grpc.aio

        channels = [grpc.aio.insecure_channel(a) for a in self._addresses]
        puts = [channel.unary_unary("/etcdserverpb.KV/Put") for channel in channels]
        turn = 0

        async def put() -> None:
            nonlocal turn
            turn += 1
            key, value = os.urandom(16), os.urandom(size - 16)
            length = (
                bytes([size - 16]) if size - 16 < 128 else bytes([(size - 16) & 127 | 128, (size - 16) >> 7])
            )
            await puts[turn % 4](b"\x0a\x10" + key + b"\x12" + length + value)

        async def send(batch: int) -> int:
            await asyncio.gather(*(put() for _ in range(batch)))
            return batch

        before = sum(map(cpu_seconds, self.pids()))
        count, took, latencies = await closed_loop(send, in_flight, seconds)
        used = sum(map(cpu_seconds, self.pids())) - before
        for channel in channels:
            await channel.close()
        return Result(count, took, latencies, used)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def main(
    in_flight: Annotated[list[int] | None, typer.Option(help="Transactions in flight; repeatable.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Bytes of a transaction; repeatable.")] = None,
    transport: Annotated[list[str] | None, typer.Option(help="libp2p or tls; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 10.0,
    out: Annotated[Path, typer.Option(help="The folder for CSV files.")] = Path("bench/results/consensus"),
) -> None:
    """Measure one chain of four nodes, with etcd beside it."""
    rows: list[Row] = []
    loads, sizes = in_flight or [1, 200, 2000], size or [250, 1000]
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as temporary:
        systems: list[tuple[str, Diptych | Etcd]] = []
        try:
            for name in transport or ["libp2p", "tls"]:
                systems.append((f"diptych {name}", Diptych(Path(temporary) / name, name)))
            if shutil.which("etcd"):
                (Path(temporary) / "etcd").mkdir()
                systems.append(("etcd", Etcd(Path(temporary) / "etcd")))
            else:
                console.print("etcd is not installed (Debian: etcd-server): no yardstick in this run")
            for bytes_, load in ((b, n) for b in sizes for n in loads):
                results = {name: asyncio.run(system.run(load, seconds, bytes_)) for name, system in systems}
                for name, r in results.items():
                    rows.append(
                        {
                            "bytes": bytes_,
                            "in flight": load,
                            "system": name,
                            "tx/s": r.rate,
                            "p50 ms": 1e3 * statistics.median(r.latencies),
                            "p99 ms": 1e3 * r.quantile(0.99),
                            "CPU us per tx and node": 1e6 * r.cpu / 4 / r.count / 1.2,
                            "rate to etcd": r.rate / results["etcd"].rate if "etcd" in results else None,
                            "runs": 1,
                            "seconds": seconds,
                        }
                    )
        finally:
            for _, system in systems:
                system.close()
    publish(out, consensus=rows)


if __name__ == "__main__":
    typer.run(main)
