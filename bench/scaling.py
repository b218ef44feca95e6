"""What one chain does beyond one machine: 4 to 100 nodes in one city, one country, one continent, around the world, in virtual time.

The consensus core of every node is the real one. The network is `tests.simulation.wide`: latencies between Azure regions (bench/data), an
uplink for each node, and a processor that each message, signature and transaction takes time of. How much, is measured when the run
begins, with the code that does it (`bench.costs`). How far off the simulator is, is measured too: four real nodes on loopback beside four
simulated ones that share as many processors.

    python -m bench.scaling                      # all sizes and placements; prints the remaining time
    python -m bench.scaling --quick              # three sizes, one seed
    python -m bench.scaling --resume             # go on with a run that was interrupted

Writes into `--out`: costs.csv, calibration.csv, finality.csv and capacity.csv, the same as pictures (PNG, SVG), sizing.csv, and the tables as scaling.md.
"""

import asyncio
import csv
import multiprocessing
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from bench import costs as measured
from bench import sizing
from bench.consensus import Diptych
from bench.costs import MakeTx, attest_tx, refused_tx
from bench.results import Row, console, draw, publish, read_rows, write_rows
from tests.simulation.wide import Costs, Network, WideArea, metered_signatures

MATRIX = Path(__file__).parent / "data" / "azure_rtt_p95_ms.csv"
WITHIN_REGION_MS = 2.0
"""Round trip between two data centres of a region: what clouds say of their zones at most."""
LOOPBACK_MS, LOOPBACK_BITS = 0.1, 1e11
PLACES = {
    "city": ("France Central",),
    "country": ("France Central", "France South"),
    "continent": (
        "Austria East",
        "Belgium Central",
        "Denmark East",
        "France Central",
        "France South",
        "Germany West Central",
        "Italy North",
        "North Europe",
        "Poland Central",
        "Spain Central",
        "Sweden Central",
        "West Europe",
    ),
    "world": (
        "Australia East",
        "Brazil South",
        "Central India",
        "East US",
        "Japan East",
        "Mexico Central",
        "Poland Central",
        "South Africa North",
        "Southeast Asia",
        "UAE North",
        "West Europe",
        "West US 2",
    ),
}
SIZES = (4, 7, 10, 16, 25, 31, 49, 64, 100)
QUICK_SIZES = (4, 16, 49)
IN_FLIGHT, WEIGHT = 12_000, 20
"""Under full load: transactions under way on a chain, and for how many of them one simulated transaction stands."""
LOADS = (1, 200, 2000)
BATCH = 100
TERM, TIMEOUT_MS, MAX_BLOCK_TXS = 64, 4000, 1000
BUSY = 0.8
"""From this part of its time on, a processor or uplink is what holds a chain up."""


@dataclass(frozen=True)
class Finality:
    """One transaction on a chain without other load, from its node's taking it to its node's having executed it, beside what the
    links alone would take."""

    place: str
    members: int
    seed: int
    origin: int
    finality_ms: float
    least_ms: float


@dataclass(frozen=True)
class Capacity:
    """One chain under full load. `processor` and `uplink` are the busy parts of their time at the busiest node, `skipped` the views that
    ended without a block, for each block; messages and bytes are those of the whole chain for each block, those of the transactions on
    their way to the leader apart."""

    place: str
    members: int
    seed: int
    tx_s: float
    block_ms: float
    block_txs: float
    processor: float
    uplink: float
    skipped: float
    bottleneck: str
    messages: float
    kilobytes: float
    tx_kilobytes: float


@dataclass(frozen=True)
class Calibration:
    """Four nodes on loopback: real, simulated with the costs as measured, and with those times the factor of `calibrate`. `cpu_us` is for
    each transaction and node."""

    in_flight: int
    real_tx_s: float
    bare_tx_s: float
    fitted_tx_s: float
    real_p50_ms: float
    bare_p50_ms: float
    fitted_p50_ms: float
    real_cpu_us: float
    bare_cpu_us: float
    fitted_cpu_us: float


@dataclass(frozen=True)
class Job:
    place: str
    members: int
    seed: int
    is_full: bool
    uplink: float
    costs: Costs
    count: int
    """Transactions one after another, or blocks under full load."""

    @property
    def effort(self) -> float:
        """How long it takes, in proportion."""
        return self.members**2 * self.count * (4 if self.is_full else 1)


def network(place: str, members: int, seed: int, uplink: float) -> Network:
    """Members in turn in the regions of a place, beginning at one that the seed says, which so leads first."""
    with MATRIX.open(newline="") as file:
        rtt = {row.pop("source"): row for row in csv.DictReader(file)}
    regions = PLACES[place]
    at = [regions[(5 * seed + m) % len(regions)] for m in range(members)]

    def one_way(a: int, b: int) -> float:
        if a == b:
            return 0.0
        return (WITHIN_REGION_MS if at[a] == at[b] else float(rtt[at[a]][at[b]])) / 2000

    return Network([[one_way(a, b) for b in range(members)] for a in range(members)], uplink)


def run_light(job: Job) -> list[Finality]:
    """One transaction at a time, each at another node."""
    links = network(job.place, job.members, job.seed, job.uplink)
    rows = []
    with metered_signatures() as meter:
        cluster = WideArea(
            links, job.costs, meter, seed=job.seed, term_length=TERM, base_timeout_ms=TIMEOUT_MS
        )
        for number in range(job.count):
            origin = number * 7 % job.members
            took = cluster.time_to_final(origin, attest_tx(cluster.genesis, number))
            core = cluster.cores[0]
            assert core is not None
            least = links.least_finality(core.committee.leader(core.tip.view), origin)
            rows.append(Finality(job.place, job.members, job.seed, origin, 1e3 * took, 1e3 * least))
        cluster.check_prefixes()
    return rows


class ClosedLoop:
    """Clients who keep batches of transactions under way, each at the next node when it is final, as those of `bench.consensus` do."""

    def __init__(self, cluster: WideArea, make_tx: MakeTx, in_flight: int, batch: int) -> None:
        self._cluster, self._make_tx, self._batch = cluster, make_tx, batch
        self._sent = self._turn = 0
        self._waiting: list[list[tuple[float, set[bytes]]]] = [[] for _ in cluster.cores]
        self.blocks: list[tuple[float, int]] = []
        """When the last node had executed a block, and its transactions."""
        self.latencies: list[tuple[float, float]] = []
        """When a batch was final, and the seconds it took."""
        cluster.on_executed = self._see
        for _ in range(in_flight // batch):
            self._send()

    def _send(self) -> None:
        host = self._turn % len(self._waiting)
        self._turn += 1
        raws = [self._make_tx(self._cluster.genesis, self._sent + i) for i in range(self._batch)]
        self._sent += self._batch
        self._waiting[host].append((self._cluster.now, set(raws)))
        self._cluster.send_in(host, raws)

    def _see(self, host: int, txs: tuple[bytes, ...]) -> None:
        now = self._cluster.now
        if host == len(self._waiting) - 1:
            self.blocks.append((now, len(txs)))
        for began, raws in self._waiting[host]:
            raws.difference_update(txs)
            if not raws:
                self.latencies.append((now, now - began))
                self._send()
        self._waiting[host] = [batch for batch in self._waiting[host] if batch[1]]


def run_full(job: Job) -> Capacity:
    """Blocks on end, after some for the load to spread."""
    links = network(job.place, job.members, job.seed, job.uplink)
    with metered_signatures() as meter:
        cluster = WideArea(
            links,
            job.costs,
            meter,
            weight=WEIGHT,
            seed=job.seed,
            term_length=TERM,
            base_timeout_ms=TIMEOUT_MS,
            max_block_txs=MAX_BLOCK_TXS // WEIGHT,
        )
        load = ClosedLoop(cluster, attest_tx, IN_FLIGHT // WEIGHT, BATCH // WEIGHT)
        warm = max(4, job.count // 3)
        cluster.run_until(lambda: len(load.blocks) >= warm, 120)
        before = [Counter(work) for work in cluster.work]
        uplinks, messages = list(cluster.uplink_busy), cluster.messages.copy()
        sizes, began, first, view = cluster.bytes.copy(), cluster.now, len(load.blocks), _view(cluster)
        cluster.run_until(lambda: len(load.blocks) >= first + job.count, 240)
        cluster.check_prefixes()
    seconds, count = cluster.now - began, len(load.blocks) - first
    txs = WEIGHT * sum(txs for _, txs in load.blocks[first:])
    works = [after - old for after, old in zip(cluster.work, before, strict=True)]
    uplink = max(after - old for after, old in zip(cluster.uplink_busy, uplinks, strict=True)) / seconds
    messages.subtract(cluster.messages)
    sizes.subtract(cluster.bytes)
    return Capacity(
        job.place,
        job.members,
        job.seed,
        tx_s=txs / seconds,
        block_ms=1e3 * seconds / count,
        block_txs=txs / count,
        processor=min(1.0, max(work.total() for work in works) / seconds),
        uplink=min(1.0, uplink),
        skipped=max(0, _view(cluster) - view - count) / count,
        bottleneck=bottleneck(works, uplink, seconds),
        messages=-sum(n for kind, n in messages.items() if kind != "transactions") / count,
        kilobytes=-sum(n for kind, n in sizes.items() if kind != "transactions") / count / 1e3,
        tx_kilobytes=-sizes["transactions"] / count / 1e3,
    )


def _view(cluster: WideArea) -> int:
    return max(core.view for core in cluster.cores if core)


def bottleneck(works: Sequence[Counter[str]], uplink: float, seconds: float) -> str:
    """What is busy for most of its time; if nothing is, the chain waits for messages to arrive."""
    busiest = max(works, key=lambda work: work.total())
    kind, _ = busiest.most_common(1)[0]
    if max(busiest.total() / seconds, uplink) < BUSY:
        return "latency"
    return "uplink" if uplink > busiest.total() / seconds else f"processor ({kind})"


def on_loopback(costs: Costs, in_flight: int, seconds: float = 1.0) -> tuple[float, float, float]:
    """Four simulated nodes that share the processors of this machine, under the load of `bench.consensus`: transactions a second, median
    seconds, and seconds of processor for each transaction and node."""
    latency = [[0.0 if a == b else LOOPBACK_MS / 2000 for b in range(4)] for a in range(4)]
    with metered_signatures() as meter:
        links = Network(latency, LOOPBACK_BITS, os.cpu_count())
        cluster = WideArea(links, costs, meter, term_length=TERM)
        load = ClosedLoop(cluster, refused_tx, in_flight, min(BATCH, in_flight))
        cluster.run_for(seconds / 3)
        began, before = cluster.now, sum(work.total() for work in cluster.work)
        cluster.run_for(seconds)
    count = sum(txs for at, txs in load.blocks if at > began)
    work = sum(work.total() for work in cluster.work) - before
    return count / seconds, statistics.median(t for at, t in load.latencies if at > began), work / 4 / count


def calibrate(costs: Costs, seconds: float) -> tuple[float, list[Calibration]]:
    """Real nodes beside simulated ones. A real one does more than the simulator knows of (asyncio, HTTP, memory): the factor is how much
    more processor time it takes for a transaction at the highest load."""
    with tempfile.TemporaryDirectory(prefix="diptych-scaling-") as folder:
        real = Diptych(Path(folder) / "real", "libp2p")
        try:
            found = {load: asyncio.run(real.run(load, seconds, 250)) for load in LOADS}
        finally:
            real.close()
    spent = {load: r.cpu / 4 / r.count / 1.2 for load, r in found.items()}  # 1.2: the warm-up counts in it
    factor = spent[LOADS[-1]] / on_loopback(costs, LOADS[-1])[2]
    rows = []
    for load, result in found.items():
        bare, fitted = on_loopback(costs, load), on_loopback(costs.times(factor), load)
        p50 = 1e3 * statistics.median(result.latencies)
        rows.append(
            Calibration(
                load,
                result.rate,
                bare[0],
                fitted[0],
                p50,
                1e3 * bare[1],
                1e3 * fitted[1],
                1e6 * spent[load],
                1e6 * bare[2],
                1e6 * fitted[2],
            )
        )
    return factor, rows


# --- the run -------------------------------------------------------------------------------------------------------------


def jobs(costs: Costs, uplink: float, seeds: int, *, quick: bool) -> list[Job]:
    """The longest first, so that both processors end together."""
    found = []
    for members in QUICK_SIZES if quick else SIZES:
        light, blocks = (12, 24) if members < 40 else (6, 6)
        for place in PLACES:
            found += [Job(place, members, seed, False, uplink, costs, light) for seed in range(seeds)]
            found += [Job(place, members, seed, True, uplink, costs, blocks) for seed in range(seeds)]
    return sorted(found, key=lambda job: (-job.members, not job.is_full))


def run(job: Job) -> tuple[Job, list[Finality] | list[Capacity]]:
    return job, [run_full(job)] if job.is_full else run_light(job)


def quantile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def summary(finality: list[Row], capacity: list[Row]) -> list[Row]:
    """A row for each place and number of members: medians over the seeds."""
    rows: list[Row] = []
    full = grouped(capacity, "place", "members")
    for (place, members), light in sorted(grouped(finality, "place", "members").items(), key=_in_order):
        times = [row["finality_ms"] for row in light]
        runs = full.get((place, members), [])

        def middle(name: str, runs: list[Row] = runs) -> float | None:
            return statistics.median(row[name] for row in runs) if runs else None

        rows.append(
            {
                "place": place,
                "nodes": members,
                "finality p50 ms": quantile(times, 0.5),
                "p95 ms": quantile(times, 0.95),
                "links alone, p50 ms": quantile((row["least_ms"] for row in light), 0.5),
                "tx/s": middle("tx_s"),
                "block ms": middle("block_ms"),
                "held up by": Counter(row["bottleneck"] for row in runs).most_common(1)[0][0]
                if runs
                else None,
                "processor": middle("processor"),
                "uplink": middle("uplink"),
                "views skipped a block": middle("skipped"),
                "messages a block": middle("messages"),
                "kB a block": middle("kilobytes"),
                "kB of gossip a block": middle("tx_kilobytes"),
                "runs": len(runs),
            }
        )
    return rows


def _in_order(item: tuple[tuple[Any, ...], Any]) -> tuple[int, int]:
    (place, members), _ = item
    return list(PLACES).index(place), members


def markdown(title: str, rows: Sequence[Row]) -> str:
    names = list(rows[0])
    lines = [f"### {title}", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(_shown(row[name]) for name in names) + " |" for row in rows]
    return "\n".join([*lines, "", ""])


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return f"{value:,}" if isinstance(value, int) else value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def pictures(out: Path, rows: list[Row]) -> None:
    """Finality and capacity over the number of nodes, a line for each place."""

    def plot(figure: Figure, name: str, label: str, *, is_log: bool, least: str | None = None) -> None:
        axes = figure.subplots()
        for place in PLACES:
            mine = [row for row in rows if row["place"] == place and row[name] is not None]
            (line,) = axes.plot([r["nodes"] for r in mine], [r[name] for r in mine], marker="o", label=place)
            if least:
                axes.plot([r["nodes"] for r in mine], [r[least] for r in mine], ":", color=line.get_color())
        axes.set(xlabel="nodes of a chain", ylabel=label, xscale="log", xticks=SIZES, xticklabels=SIZES)
        axes.minorticks_off()
        if is_log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend()

    draw(
        out / "finality",
        lambda figure: plot(
            figure,
            "finality p50 ms",
            "ms to finality, median (dotted: links alone)",
            is_log=True,
            least="links alone, p50 ms",
        ),
    )
    draw(
        out / "capacity",
        lambda figure: plot(figure, "tx/s", "transactions a second, full load", is_log=False),
    )
    draw(
        out / "bytes",
        lambda figure: plot(figure, "kB a block", "kB of consensus messages a block", is_log=True),
    )


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Three sizes, one seed.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what an interrupted run has found.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each case.")] = None,
    uplink_mbit: Annotated[float, typer.Option(min=1, help="Of each node, Mbit/s.")] = 1000.0,
    out: Annotated[Path, typer.Option(help="The folder for the results.")] = Path("bench/results/scaling"),
) -> None:
    """Simulate chains of 4 to 100 nodes on wide-area links, and size a city, a country and a continent."""
    out.mkdir(parents=True, exist_ok=True)
    seeds = seeds or (1 if quick else 2)
    calibration: Sequence[Row]
    if resume and (out / "costs.csv").exists() and (out / "calibration.csv").exists():
        costs = Costs(**{row["cost"]: row["charged_us"] / 1e6 for row in read_rows(out / "costs.csv")})
        calibration = read_rows(out / "calibration.csv")
    else:
        for name in ("finality.csv", "capacity.csv"):
            (out / name).unlink(missing_ok=True)
        console.print("measuring what work costs here, and four real nodes …")
        factor, compared = calibrate(measured.measure(refused_tx), 2 if quick else 8)
        bare = measured.measure(attest_tx)
        costs = bare.times(factor)
        charged: list[Row] = [
            {"cost": name, "measured_us": 1e6 * seconds, "charged_us": 1e6 * getattr(costs, name)}
            for name, seconds in asdict(bare).items()
        ]
        write_rows(out / "costs.csv", charged)
        calibration = [asdict(row) for row in compared]
        write_rows(out / "calibration.csv", calibration)
    finality, capacity = _simulate(jobs(costs, uplink_mbit * 1e6, seeds, quick=quick), out)
    rows = summary(finality, capacity)
    pictures(out, rows)
    carried = {(row["place"], row["nodes"]): row["tx/s"] for row in rows}
    tables: dict[str, Sequence[Row]] = {
        "calibration": calibration,
        "summary": rows,
        "assumptions": sizing.assumptions(),
        "ceremony": sizing.ceremony(),
        "sizing": sizing.table(carried, sizing.measure()),
    }
    publish(out, **tables)
    (out / "scaling.md").write_text("".join(markdown(title, found) for title, found in tables.items()))


def _simulate(wanted: list[Job], out: Path) -> tuple[list[Row], list[Row]]:
    """Carry the jobs out on all processors, but for those whose rows are there; every row is on the disk as soon as it is known."""
    tables: dict[bool, list[Row]] = {}
    paths = {False: out / "finality.csv", True: out / "capacity.csv"}
    for is_full, path in paths.items():
        tables[is_full] = list(read_rows(path)) if path.exists() else []
    there = {
        (is_full, row["place"], row["members"], row["seed"])
        for is_full, rows in tables.items()
        for row in rows
    }
    left = [job for job in wanted if (job.is_full, job.place, job.members, job.seed) not in there]
    console.print(f"{len(wanted)} simulated runs, {len(wanted) - len(left)} of them done before")
    total = sum(job.effort for job in left)
    columns = (BarColumn(), "{task.percentage:3.0f} %", TimeElapsedColumn(), "left", TimeRemainingColumn())
    with multiprocessing.Pool(os.cpu_count()) as pool, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        for job, rows in pool.imap_unordered(run, left):
            tables[job.is_full] += [asdict(row) for row in rows]
            write_rows(paths[job.is_full], tables[job.is_full])
            progress.advance(task, job.effort)
    return tables[False], tables[True]


if __name__ == "__main__":
    typer.run(main)
