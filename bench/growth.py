"""Does anything but the disk grow with the length of a chain? Chains of several lengths, the same questions to each, side by side.

`bench.chains` builds chains of 10^3, 10^5 and 10^6 transactions of one storage node (people certified, records attested and published, access
requested and granted, some of it refused), a hundred transactions a block and a block a minute. Then, for each length:

- the time from the start of a node's process to its readiness, its memory then and after all questions;
- queries over HTTP, of things picked at random from the whole chain: a record, a person, a receipt, a log, pages of listings; beside them, as
  the floor, the same server's answer to `/healthz`, which looks at nothing; and the CPU time that the node spent on each;
- queries that the light client proves from genesis (record, absence, receipt, complete log), with the bytes of the proofs;
- the same point query in this process: SQLite alone on a table of the same rows, the ledger's state, and the state with its proof;
- what the next blocks cost: CPU time of journal, ledger and tidying per transaction, on a copy of the databases;
- the disk: databases and tables per transaction and record, a backup, a snapshot.

The chains are asked in turns, so that what else the machine does disturbs all alike. All of it goes into `growth.csv` and `growth.md`, a picture of
it into `growth.png` and `growth.svg`. The goal is that no median at the longest chain is over 1.5 times that at the shortest.

    python -m bench.growth                                  # some six minutes for the chains, three for the rest
    python -m bench.growth --keep ~/chains                  # keeps them, and takes up one that was interrupted
    python -m bench.growth --quick                          # 10^3, 10^4 and 3 x 10^4, in under two minutes
"""

import csv
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx2
import typer
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench import chains, results
from bench.chains import BLOCK_TXS, MEMBER, RECORDS, TAGS, UNIT, Chain, Writer, build
from bench.proc import run_seconds, status
from bench.results import console, draw
from client.light import LightClient
from client.web import checked, http_client
from configs.files import load_network
from crypto import tdh2
from crypto.group import G1
from node.backup import backup
from node.daemon import TIDY_TXS
from node.devnet import Daemon, Supervisor
from node.ledger import Ledger
from node.store import JOURNAL, LEDGER
from protocol.contract import log_key, person_key, record_key
from protocol.tx import Attest, Tx, decode_tx

GOAL, SHORTEST = 1.5, 1000
SIZES, QUICK_SIZES = "1000,100000,1000000", "1000,10000,30000"
PAGE = 20
"""Items of a page of a listing: the shortest chain has as many."""
NEXT_BLOCKS = 100
QUERIES, LIGHT_QUERIES, POINT_QUERIES, STARTS = 600, 150, 5000, 5
ROUND = 10
"""Queries of one kind that a chain answers before it is the turn of the next."""


class Row(NamedTuple):
    """One figure at one size: median and 95th percentile of `runs`. Those with a `has_goal` may not grow."""

    size: int
    what: str
    unit: str
    p50: float
    p95: float
    runs: int
    has_goal: bool


@dataclass
class Subject:
    """One chain that is asked, by a node that serves it."""

    size: int
    folder: Path
    writer: Writer
    chance: random.Random
    supervisor: Supervisor
    client: LightClient
    http: httpx2.Client

    @property
    def daemon(self) -> Daemon:
        return self.supervisor.daemons[MEMBER]

    @property
    def units(self) -> int:
        return (self.size - BLOCK_TXS) // UNIT

    def record(self) -> bytes:
        return self.writer.record(self.chance.randrange(self.units * RECORDS))

    def patient(self) -> bytes:
        return self.writer.patient(self.chance.randrange(self.units)).public

    def receipt(self) -> bytes:
        """The id of the transaction that attests a record."""
        number = self.chance.randrange(self.units * RECORDS)
        unit, writer = number // RECORDS, self.writer
        block, place = 1 + unit * UNIT // BLOCK_TXS, unit * UNIT % BLOCK_TXS + 1 + number % RECORDS
        action = Attest(writer.record(number), writer.patient(writer.owner(number)).public, bytes(32))
        tx: Tx = decode_tx(writer.tx(block, place, writer.doctor(number), action))
        return tx.id

    def get(self, path: str) -> bytes:
        return checked(self.http.get(self.daemon.url + path)).content

    def reader(self) -> bytes:
        return self.writer.reader(self.chance.randrange(chains.READERS)).public


QUESTIONS: dict[str, Callable[[Subject], str]] = {
    "HTTP alone (/healthz)": lambda _: "/healthz",
    "record": lambda s: f"/v1/record/{s.record().hex()}",
    "person": lambda s: f"/v1/identity/{s.patient().hex()}",
    "receipt": lambda s: f"/v1/tx/{s.receipt().hex()}",
    "block": lambda s: f"/v1/block/{s.chance.randrange(3, 3 + s.size // BLOCK_TXS)}",
    "log of a record": lambda s: f"/v1/record/{s.record().hex()}/log",
    "records of a patient": lambda s: f"/v1/patient/{s.patient().hex()}/records",
    "page of records by tag": lambda s: (
        f"/v1/tag/{s.chance.choice(TAGS).hex()}?limit={PAGE}&after={bytes([s.chance.randrange(128)]).ljust(16, b'0').hex()}"
    ),
    "page of a reader's grants": lambda s: f"/v1/reader/{s.reader().hex()}/grants?limit={PAGE // 4}",
    "page of people": lambda s: (
        f"/v1/people?limit={PAGE}&after={bytes([s.chance.randrange(128)]).ljust(32, b'0').hex()}"
    ),
}
"""The path of a question about something at random, by what is asked."""


def _prove_receipt(subject: Subject) -> None:
    """As for one who asks for the first time: on a short chain, the checkpoints of all heights would soon be believed."""
    subject.client._believed.clear()
    subject.client.verified_receipt(subject.receipt())


PROOFS: dict[str, Callable[[Subject], object]] = {
    "record, proved": lambda s: s.client.verified_record(s.record()),
    "absence of a record, proved": lambda s: s.client.verified_state(record_key(s.chance.randbytes(16))),
    "receipt, proved": _prove_receipt,
    "log of a record, proved complete": lambda s: s.client.verified_log(s.record()),
}

PROOF_PATHS: dict[str, Callable[[Subject], str]] = {
    "proof of a record": lambda s: f"/v1/proof/state/{record_key(s.record()).hex()}",
    "proof of a person": lambda s: f"/v1/proof/state/{person_key(s.patient()).hex()}",
    "proof of the head of a log": lambda s: f"/v1/proof/state/{log_key(s.record()).hex()}",
    "proof of a receipt": lambda s: f"/v1/proof/tx/{s.receipt().hex()}",
}
"""What weighs, not what takes time."""


class Growth:
    """The rows of all chains."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self, size: int, what: str, unit: str, values: Sequence[float], *, has_goal: bool = False
    ) -> None:
        ordered = sorted(values)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        self.rows.append(Row(size, what, unit, statistics.median(ordered), p95, len(ordered), has_goal))

    def p50(self, size: int, what: str) -> float:
        return next(row.p50 for row in self.rows if (row.size, row.what) == (size, what))

    def growth(self, row: Row) -> float | None:
        """How many times the median of the shortest chain it is."""
        first = self.p50(self.rows[0].size, row.what)
        return row.p50 / first if first else None


# --- what is measured on a node that runs -----------------------------------------------------------------------------------


def time_starts(growth: Growth, folders: dict[int, Path], runs: int) -> None:
    """Each run starts a node on each chain and kills it."""
    seconds = defaultdict[int, list[float]](list)
    for _ in range(runs):
        for size, folder in folders.items():
            with Supervisor(folder) as supervisor:
                began = time.perf_counter()
                supervisor.start(MEMBER)
                while not _is_ready(supervisor.daemons[MEMBER]):
                    time.sleep(0.005)
                seconds[size].append(time.perf_counter() - began)
                supervisor.kill(MEMBER)
    for size, taken in seconds.items():
        growth.add(size, "start to readiness", "s", taken, has_goal=True)


def _is_ready(daemon: Daemon) -> bool:
    if daemon.process is None or daemon.process.poll() is not None:
        raise RuntimeError(f"{daemon.name} ended at its start; see {daemon.log}")
    try:
        return httpx2.get(f"{daemon.url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def memory(subject: Subject) -> float:
    """MiB that the node's process has in memory."""
    assert subject.daemon.process
    return status(subject.daemon.process.pid, "VmRSS") / 2**20


def ask(growth: Growth, subjects: Sequence[Subject], queries: int, proofs: int) -> None:
    for what, path in QUESTIONS.items():
        _in_turns(growth, subjects, what, queries, lambda s, path=path: s.get(path(s)))  # type: ignore[misc]
    for what, prove in PROOFS.items():
        _in_turns(growth, subjects, what, proofs, prove)
    for what, path in PROOF_PATHS.items():
        for subject in subjects:
            sizes = [len(subject.get(path(subject))) for _ in range(ROUND)]
            growth.add(subject.size, what, "bytes", sizes)


def _in_turns(
    growth: Growth, subjects: Sequence[Subject], what: str, runs: int, query: Callable[[Subject], object]
) -> None:
    taken, cpu = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for _ in range(runs // ROUND):
        for subject in subjects:
            query(subject)
            assert subject.daemon.process
            before = run_seconds(subject.daemon.process.pid)
            for _ in range(ROUND):
                began = time.perf_counter()
                query(subject)
                taken[subject.size].append((time.perf_counter() - began) * 1e3)
            used = run_seconds(subject.daemon.process.pid) - before
            cpu[subject.size].append(used / ROUND * 1e3)
    for size in taken:
        growth.add(size, what, "ms", taken[size], has_goal=not what.startswith("HTTP"))
        growth.add(size, f"{what}: CPU of the node", "ms", cpu[size])


def serve(
    growth: Growth, folders: dict[int, Path], writers: dict[int, Writer], seed: int, queries: int, proofs: int
) -> None:
    """Have a node for each chain, and ask them all."""
    with ExitStack() as stack:
        subjects = []
        for size, folder in folders.items():
            supervisor = stack.enter_context(Supervisor(folder))
            supervisor.start(MEMBER)
            supervisor.wait_ready()
            network, genesis = load_network(folder / "network.toml")
            client = LightClient(genesis["storage"], network.chains["storage"])
            stack.callback(client.close)
            http = stack.enter_context(http_client(30))
            chance = random.Random(seed)  # noqa: S311
            subjects.append(Subject(size, folder, writers[size], chance, supervisor, client, http))
            _read_through(folder)
        for subject in subjects:
            growth.add(subject.size, "memory after the start", "MiB", [memory(subject)], has_goal=True)
        ask(growth, subjects, queries, proofs)
        for subject in subjects:
            growth.add(subject.size, "memory after all questions", "MiB", [memory(subject)], has_goal=True)


def _read_through(folder: Path) -> None:
    """Have the system hold the files in its page cache: what is measured is the node, not the disk."""
    for name in (JOURNAL, LEDGER):
        with (folder / MEMBER / "data" / name).open("rb") as file:
            while file.read(1 << 20):
                pass


# --- what is measured on the files -----------------------------------------------------------------------------------------


def query_alone(
    growth: Growth, folders: dict[int, Path], writers: dict[int, Writer], seed: int, runs: int
) -> None:
    """Point queries in this process, beside those of SQLite alone: a table of as many keys and values, and nothing else."""
    for size, folder in folders.items():
        data, floor = folder / MEMBER / "data", folder / "floor.db"
        floor.unlink(missing_ok=True)
        with closing(sqlite3.connect(floor)) as alone, closing(_ledger(folder)) as ledger:
            alone.execute("CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            alone.execute("ATTACH ? AS ledger", (str(data / LEDGER),))
            alone.execute("INSERT INTO state SELECT key, value FROM ledger.state ORDER BY key")
            alone.commit()
            chance, records = random.Random(seed), (size - BLOCK_TXS) // UNIT * RECORDS  # noqa: S311
            keys = [record_key(writers[size].record(chance.randrange(records))) for _ in range(runs)]
            ways: dict[str, Callable[[bytes], object]] = {
                "SQLite alone, point query": partial(_value, alone),
                "the ledger's state, point query": ledger.get,
                "the ledger's state with its proof": ledger.prove,
            }
            for what, way in ways.items():
                way(keys[0])
                taken = []
                for key in keys:
                    began = time.perf_counter()
                    way(key)
                    taken.append((time.perf_counter() - began) * 1e6)
                growth.add(size, what, "us", taken)
        floor.unlink()


def _value(db: sqlite3.Connection, key: bytes) -> Any:
    return db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()


def _ledger(folder: Path) -> Ledger:
    _, chains_ = load_network(folder / "network.toml")
    return Ledger(folder / MEMBER / "data", chains_["storage"])


def time_next_blocks(growth: Growth, folders: dict[int, Path], seed: int, blocks: int) -> None:
    """What the next blocks cost one after another, on a copy of the databases; each sample is the mean over as many as a node executes before it
    tidies its ledger. Index entries are checked by arithmetic that no length changes, so that is told apart."""
    sample = TIDY_TXS // BLOCK_TXS
    for size, folder in folders.items():
        with tempfile.TemporaryDirectory(prefix="next-", dir=folder.parent) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            with Chain(Path(copy), seed) as chain, _timed_checks() as checks:
                first, writer = chain.blocks, chain.writer
                content = [(writer.block(n), writer.time_ms(n)) for n in range(first, first + blocks)]
                final = chain.sealed(content)
                taken = defaultdict[str, list[float]](list)
                for at in range(0, blocks, sample):
                    checks.clear()
                    some = [[block] for block in final[at : at + sample]]
                    journal, executed = _timed(chain.journal, some), _timed(chain.execute, some)
                    tidied = _timed(lambda _: chain.tidy(), [None])
                    entries = sum(checks)
                    taken["journal: CPU per transaction"].append(journal.cpu)
                    taken["ledger: CPU per transaction"].append(executed.cpu - entries)
                    taken["index entries: CPU per transaction"].append(entries)
                    taken["tidying: CPU per transaction"].append(tidied.cpu)
                    taken["all four: CPU per transaction"].append(journal.cpu + executed.cpu + tidied.cpu)
                    taken["journal and ledger: time per transaction"].append(journal.wall + executed.wall)
                for what, values in taken.items():
                    each = [value / TIDY_TXS * 1e6 for value in values]
                    growth.add(size, what, "us", each, has_goal="CPU" not in what or "four" in what)


class _Spent(NamedTuple):
    cpu: float
    wall: float


def _timed(step: Callable[[Any], object], each: Sequence[Any]) -> _Spent:
    """Seconds that a step takes with these, one after another."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for one in each:
        step(one)
    return _Spent(time.thread_time() - cpu, time.perf_counter() - wall)


@contextmanager
def _timed_checks() -> Iterator[list[float]]:
    """The CPU seconds of each check of an index entry meanwhile."""
    seconds: list[float] = []
    check = tdh2.check

    def timed(public: G1, label: bytes, ciphertext: bytes) -> None:
        began = time.thread_time()
        check(public, label, ciphertext)
        seconds.append(time.thread_time() - began)

    tdh2.check = timed
    try:
        yield seconds
    finally:
        tdh2.check = check


def weigh(growth: Growth, folders: dict[int, Path]) -> None:
    """Bytes on disk: by database and table, and what a backup and a snapshot take."""
    for size, folder in folders.items():
        data, records = folder / MEMBER / "data", (size - BLOCK_TXS) // UNIT * RECORDS
        weights = {name: (data / name).stat().st_size for name in (JOURNAL, LEDGER)}
        total = sum(weights.values())
        with closing(sqlite3.connect(data / LEDGER)) as db:
            weights |= {
                f"{LEDGER}: {name}": pages
                for name, pages in db.execute(
                    "SELECT m.tbl_name, SUM(d.pgsize) FROM dbstat d JOIN sqlite_master m ON m.name = d.name GROUP BY 1"
                )
            }
        growth.add(size, "disk", "MiB", [total / 2**20])
        growth.add(size, "disk per record", "bytes", [total / records])
        growth.add(size, "disk per transaction", "bytes", [total / size])
        for name, weight in weights.items():
            growth.add(size, f"{name} per transaction", "bytes", [weight / size])
        _weigh_backups(growth, size, folder)


def _weigh_backups(growth: Growth, size: int, folder: Path) -> None:
    _, genesis = load_network(folder / "network.toml")
    for what in ("backup", "snapshot"):
        with tempfile.TemporaryDirectory(prefix="backup-", dir=folder.parent) as temporary:
            out, began = Path(temporary) / "out", time.perf_counter()
            data = folder / MEMBER / "data"
            backup(data, out, genesis["storage"], MEMBER, is_snapshot=what == "snapshot")
            growth.add(size, f"{what}, made and checked", "s", [time.perf_counter() - began])
            written = sum(file.stat().st_size for file in out.iterdir())
            growth.add(size, f"{what} per transaction", "bytes", [written / size])


# --- what is shown -----------------------------------------------------------------------------------------------------------


def conditions(seed: int) -> str:
    held = {**results.conditions(), "SQLite": sqlite3.sqlite_version, "seed": seed}
    return (
        f"{', '.join(f'{name} {value}' for name, value in held.items())}; one storage node a chain, {BLOCK_TXS} transactions a block, "
        "the files in the system's page cache"
    )


def tables(growth: Growth, sizes: Sequence[int]) -> list[list[str]]:
    """A row for each thing: its unit, median and 95th percentile at each size, its growth, its verdict."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in growth.rows:
        found[row.what].append(row)
    listed = []
    for what, rows in found.items():
        cells = [
            f"{r.p50:,.4g}" + (f" ({r.p95:,.4g})" if r.runs > 1 and r.unit != "bytes" else "") for r in rows
        ]
        times = growth.growth(rows[-1])
        verdict = "" if not rows[-1].has_goal or times is None else "flat" if times <= GOAL else "grows"
        listed.append([what, rows[0].unit, *cells, f"{times:.2f}" if times else "", verdict])
    return listed


def _write_rows(growth: Growth, out: Path) -> None:
    """After each step, so that an interruption loses one step alone."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "growth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "growth"])
        writer.writerows([*row, growth.growth(row)] for row in growth.rows)


def write_down(growth: Growth, sizes: Sequence[int], out: Path, seed: int) -> None:
    heads = ["what", "unit", *(f"{size:,} tx" for size in sizes), "growth", f"at most {GOAL}"]
    listed, said = tables(growth, sizes), f"Median (95th percentile). {conditions(seed)}."
    lines = ["# Cost against the length of the chain", "", said, ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *listed)]
    (out / "growth.md").write_text("\n".join([*lines, ""]))
    table = Table(*heads, caption=said)
    for cells in listed:
        table.add_row(*cells)
    console.print(table)
    draw(out / "growth", lambda figure: _draw(growth, sizes, figure), (13, 7.5))


def _draw(growth: Growth, sizes: Sequence[int], figure: Figure) -> None:
    panels: list[tuple[str, str, list[str]]] = [
        ("queries over HTTP", "ms, median", list(QUESTIONS)),
        ("proved by the light client", "ms, median", list(PROOFS)),
        ("start", "s, median", ["start to readiness"]),
        ("memory of a node", "MiB", ["memory after the start", "memory after all questions"]),
        (
            "CPU of one more transaction",
            "us, median",
            [
                f"{part}: CPU per transaction"
                for part in ("journal", "ledger", "index entries", "tidying", "all four")
            ],
        ),
        ("disk", "bytes per transaction", [f"{name} per transaction" for name in (JOURNAL, LEDGER)]),
    ]
    for axis, (title, unit, names) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in names:
            axis.plot(sizes, [growth.p50(size, name) for size in sizes], marker="o", label=name)
        axis.set(title=title, ylabel=unit, xscale="log", xlabel="transactions on the chain")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)


def _build_all(sizes: Sequence[int], where: Path, seed: int) -> dict[int, Path]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks, remaining"),
        TimeRemainingColumn(),
    )
    folders = {}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("chains", total=max(sizes) // BLOCK_TXS)
        for size in sorted(sizes):
            folders[size] = build(where, size, seed, os.cpu_count() or 1, lambda n: progress.advance(task, n))
            progress.update(task, completed=size // BLOCK_TXS)
    return folders


def main(
    sizes: Annotated[str | None, typer.Option(help="Lengths in transactions, multiples of 100.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("bench/results/growth"),
    keep: Annotated[
        Path | None, typer.Option(help="Keep the chains here, and use those that are here.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short chains and fewer runs.")] = False,
    seed: Annotated[int, typer.Option(help="What the chains hold, and what is asked.")] = 1,
) -> None:
    """Measure what a longer chain costs."""
    try:
        wanted = sorted({int(text) for text in (sizes or (QUICK_SIZES if quick else SIZES)).split(",")})
    except ValueError:
        raise typer.BadParameter("sizes are whole numbers with commas between them") from None
    if any(size % BLOCK_TXS or size < SHORTEST for size in wanted):
        raise typer.BadParameter(f"sizes must be multiples of {BLOCK_TXS}, at least {SHORTEST}")
    part = 4 if quick else 1
    growth = Growth()
    with tempfile.TemporaryDirectory(prefix="diptych-growth-") as temporary:
        where = keep or Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        folders = _build_all(wanted, where, seed)
        writers = {}
        for size, folder in folders.items():
            with Chain(folder, seed) as chain:
                writers[size] = chain.writer
        steps: list[tuple[str, Callable[[], None]]] = [
            ("starting nodes", lambda: time_starts(growth, folders, max(3, STARTS // part))),
            (
                "asking nodes",
                lambda: serve(growth, folders, writers, seed, QUERIES // part, LIGHT_QUERIES // part),
            ),
            ("asking databases", lambda: query_alone(growth, folders, writers, seed, POINT_QUERIES // part)),
            ("executing more", lambda: time_next_blocks(growth, folders, seed, NEXT_BLOCKS)),
            ("weighing", lambda: weigh(growth, folders)),
        ]
        for said, step in steps:
            began = time.perf_counter()
            step()
            _write_rows(growth, out)
            console.print(f"{said}: {time.perf_counter() - began:.0f} s")
        write_down(growth, wanted, out, seed)
    console.print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
