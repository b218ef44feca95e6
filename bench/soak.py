"""Does a node's memory stay bounded? Four nodes of one chain as processes under a steady load, watched for as long as wanted.

Every few seconds: resident memory, open files, threads and database sizes of each node, and rate and latency as clients see them. All
of it goes into `soak.csv`, a picture of it into `soak.svg`.

The verdict. A node may fill its caches in the first half; in the second it must not grow. Growth is the Theil-Sen slope of the samples
of the second half (the median over all pairs of samples of their slope, which a few odd samples do not move) times its length. It may be at
most 16 MiB or 5 % of the memory (whichever is more), 16 MiB of write-ahead log, 8 open files, 2 threads. Databases grow by design and are
only shown. Transactions live for at most a quarter of the run, so that ids which nodes remember so long have come to their number by
then. A node that dies, or 10 s without a receipt, breaks the promise too.

    python -m bench.soak --minutes 30                        # 500 transactions of 250 B a second, libp2p
    python -m bench.soak --minutes 5 --rate 1000 --transport tls

Exits with 1 if the promise is broken.
"""

import asyncio
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

import httpx2
import msgspec
import typer
from rich.console import Console
from rich.table import Table

from bench.consensus import Diptych
from bench.proc import cpu_seconds, open_files, status
from client.chain import TX_LIFETIME_MS
from crypto.codec import encode

BATCH, SIZE, EVERY_S, SILENCE_S = 10, 250, 5.0, 10.0
ALLOWED = {"rss": 16 << 20, "wal": 16 << 20, "files": 8, "threads": 2}
SHARE = 0.05
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Sample:
    """One node at one moment; sizes in bytes, `at` and `cpu` in seconds, the last three of the load since the sample before."""

    at: float
    node: str
    rss: int
    files: int
    threads: int
    cpu: float
    journal: int
    ledger: int
    wal: int
    tx_per_s: float
    p50_ms: float
    p99_ms: float


class Soak:
    """A load of `rate` transactions a second on `chain` for `seconds`, and what was seen of it."""

    def __init__(self, chain: Diptych, rate: float, seconds: float) -> None:
        self._chain, self._rate, self._seconds = chain, rate, seconds
        self.lifetime_ms = min(TX_LIFETIME_MS, int(seconds * 250))
        self.samples: list[Sample] = []
        self.refused = 0
        self.longest_silence = 0.0
        self._latencies: list[float] = []
        self._last = time.perf_counter()

    async def run(self) -> None:
        self._began = self._last = time.perf_counter()
        limits = httpx2.Limits(max_connections=500, max_keepalive_connections=500)
        async with httpx2.AsyncClient(timeout=30, trust_env=False, limits=limits) as http:
            watching = asyncio.create_task(self._watch())
            clients = [asyncio.create_task(self._client(http, n)) for n in range(self._clients)]
            await asyncio.wait(
                [watching, *clients], timeout=self._seconds, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in (watching, *clients):
                task.cancel()
            for result in await asyncio.gather(watching, *clients, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

    @property
    def _clients(self) -> int:
        """So many that each waits a second or more between its batches."""
        return max(1, round(self._rate / BATCH))

    async def _client(self, http: httpx2.AsyncClient, number: int) -> None:
        period = self._clients * BATCH / self._rate
        due = self._began + period * number / self._clients
        urls = list(self._chain.urls.values())
        while True:
            await asyncio.sleep(due - time.perf_counter())
            due = max(due + period, time.perf_counter())  # a client that is late leaves batches out
            body = encode(tuple(self._chain.tx(SIZE, self.lifetime_ms) for _ in range(BATCH)))
            began, number = time.perf_counter(), number + 1
            results: Sequence[object] = ()
            with suppress(httpx2.HTTPError, msgspec.DecodeError):
                answer = await http.post(f"{urls[number % len(urls)]}/v1/txs?wait=20", content=body)
                results = msgspec.msgpack.decode(answer.content)
            done, now = sum(isinstance(r, bytes) for r in results), time.perf_counter()
            self.refused += BATCH - done
            if done:
                self._latencies += [now - began] * done
                self.longest_silence = max(self.longest_silence, now - self._last)
                self._last = now

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            self.longest_silence = max(self.longest_silence, time.perf_counter() - self._last)
            latencies, self._latencies = sorted(self._latencies) or [float("nan")], []
            load = (
                len(latencies) / EVERY_S,
                1000 * statistics.median(latencies),
                1000 * latencies[int(0.99 * (len(latencies) - 1))],
            )
            for name in self._chain.urls:
                daemon = self._chain.supervisor.daemons[name]
                if daemon.process is None or daemon.process.poll() is not None:
                    raise RuntimeError(f"{name} has ended: {self._chain.supervisor.log_tail(daemon)}")
                pid, data = daemon.process.pid, daemon.config.parent / "data"
                size = {path.name: path.stat().st_size for path in data.iterdir()}
                self.samples.append(
                    Sample(
                        time.perf_counter() - self._began,
                        name,
                        status(pid, "VmRSS"),
                        open_files(pid),
                        status(pid, "Threads"),
                        cpu_seconds(pid),
                        size["consensus.db"],
                        size["ledger.db"],
                        size.get("consensus.db-wal", 0) + size.get("ledger.db-wal", 0),
                        *load,
                    )
                )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median of the slopes between all pairs of points; 0 for fewer than two."""
    return statistics.median([(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2)] or [0.0])


def growth(samples: Sequence[Sample], field: str) -> float:
    """What one node's `field` grew by over the second half of its samples."""
    half = samples[len(samples) // 2 :]
    return slope([(s.at, getattr(s, field)) for s in half]) * (half[-1].at - half[0].at)


def allowed(samples: Sequence[Sample], field: str) -> float:
    share = SHARE * statistics.median(getattr(s, field) for s in samples) if field == "rss" else 0.0
    return max(ALLOWED[field], share)


WIDTH, LEFT, TOP, HEIGHT, GAP = 1000, 90, 60, 110, 42
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
PANELS = (
    ("resident memory, MiB", ("rss",), 1 / 2**20),
    ("open files", ("files",), 1),
    ("threads", ("threads",), 1),
    ("journal and ledger, MiB", ("journal", "ledger"), 1 / 2**20),
    ("write-ahead logs, MiB", ("wal",), 1 / 2**20),
    ("transactions a second", ("tx_per_s",), 1),
    ("latency of a batch, ms: median", ("p50_ms",), 1),
    ("latency of a batch, ms: 99 %", ("p99_ms",), 1),
)


def picture(samples: Sequence[Sample], title: str) -> str:
    """The panels over one time axis, a line a node in each, as an SVG document."""
    names = sorted({s.node for s in samples})
    total = TOP + len(PANELS) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="26" font-size="16">{escape(title)}</text>',
        f'<text x="{WIDTH - 20}" y="{total - 4}" text-anchor="end">0 to {max(s.at for s in samples):,.0f} s</text>',
    ]
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        parts.append(f'<text x="{LEFT + 110 * number}" y="46" fill="{colour}">{escape(name)}</text>')
    for row, (label, columns, factor) in enumerate(PANELS):
        lines = {
            name: [
                (s.at, y)
                for s in samples
                if s.node == name and (y := factor * sum(getattr(s, c) for c in columns)) == y  # not NaN
            ]
            for name in names
        }
        parts += panel(label, lines, TOP + row * (HEIGHT + GAP) + GAP - 12)
    return "\n".join([*parts, "</svg>\n"])


def panel(label: str, lines: dict[str, list[tuple[float, float]]], top: int) -> list[str]:
    end = max((x for line in lines.values() for x, _ in line), default=1.0)
    most = max((y for line in lines.values() for _, y in line), default=0.0) or 1.0
    parts = [f'<text x="{LEFT}" y="{top - 6}">{escape(label)}</text>']
    for mark in (0.0, 0.5, 1.0):
        y = top + HEIGHT * (1 - mark)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 20}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{most * mark:,.4g}</text>'
        )
    for line, colour in zip(lines.values(), COLOURS, strict=True):
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT - 20) * x / end:.1f},{top + HEIGHT * (1 - y / most):.1f}" for x, y in line
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    rate: Annotated[float, typer.Option(help="Transactions a second.")] = 500.0,
    transport: Annotated[str, typer.Option(help="libp2p or tls.")] = "libp2p",
    out: Annotated[
        Path | None, typer.Option(help="Where CSV and picture go; a new folder in reports by default.")
    ] = None,
) -> None:
    """Load four nodes for a long time and judge whether they stay as large as they are."""
    folder = out or Path("reports") / f"soak-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="diptych-soak-") as temporary:
        chain = Diptych(Path(temporary) / "net", transport)
        soak = Soak(chain, rate, minutes * 60)
        try:
            asyncio.run(soak.run())
        finally:
            chain.close()
    samples = soak.samples
    with (folder / "soak.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Sample)])
        writer.writeheader()
        writer.writerows(map(asdict, samples))
    title = f"{minutes:g} minutes, {rate:g} transactions of {SIZE} B a second, {transport}"
    (folder / "soak.svg").write_text(picture(samples, title))
    table = Table(
        "node", "memory MiB, half / end", "grown by", "allowed", "log MiB", "files", "threads", "verdict"
    )
    broken = soak.longest_silence > SILENCE_S
    for name in chain.urls:
        own = [s for s in samples if s.node == name]
        grown = {field: growth(own, field) for field in ALLOWED}
        over = [field for field in ALLOWED if grown[field] > allowed(own, field)]
        broken |= bool(over)
        table.add_row(
            name,
            f"{own[len(own) // 2].rss / 2**20:.0f} / {own[-1].rss / 2**20:.0f}",
            f"{grown['rss'] / 2**20:+.1f}",
            f"{allowed(own, 'rss') / 2**20:.0f}",
            f"{grown['wal'] / 2**20:+.1f}",
            f"{grown['files']:+.0f}",
            f"{grown['threads']:+.0f}",
            f"grows: {', '.join(over)}" if over else "bounded",
        )
    console.print(title, table)
    whole = samples[:: len(chain.urls)]
    console.print(
        f"{statistics.mean(s.tx_per_s for s in whole):,.0f} tx/s, median latency {statistics.median(s.p50_ms for s in whole):.0f} ms, "
        f"longest time without a receipt {soak.longest_silence:.1f} s, {soak.refused} transactions without one; "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; see {folder}"
    )
    console.print("NOT bounded" if broken else "bounded")
    raise typer.Exit(1 if broken else 0)


if __name__ == "__main__":
    typer.run(main)
