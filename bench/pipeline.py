"""The way of a record from the doctor's file to the reader's eyes: how long one takes, how many a second, and where the time goes.

The whole network (four nodes a chain, cloud, authority) and all clients share this machine. Each size runs in a process of its own, so that its
peak of memory is its own. Records up to 10 MB are invented bundles; above, a bundle of 1 MB with an attached file of random bytes, which no
compression makes smaller.

    sign          the doctor: from the bundle to a package for the patient, attested on both chains
    store         the patient: from the package, verified and sealed anew, to proved receipts of both chains and the record in the cloud
    open shared   a reader: request, decision, index, ticket, ciphertexts to verified plaintext, of the shared part
    open whole    the same for the whole record over the storage chain

The floor beside them is what no scheme goes below: as many bytes sealed by AES-256-GCM into one file and synced, or read and opened again.

    python -m bench.pipeline                          # 10 kB to 1 GB
    python -m bench.pipeline --quick                  # 10 kB and 1 MB, few runs
    python -m bench.pipeline --size 1000000 --runs 50 --out pipeline

Writes latency.csv, steps.csv, memory.csv, throughput.csv, cold.csv, conditions.csv and pictures of them.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.proc import status
from bench.results import Row, console, draw, publish, read_rows
from bench.steps import Steps
from bench.town import Town, record_of, town
from client.doctor import Doctor
from client.fhir import PRIVATE, load_profile
from client.home import Home
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from protocol.identity import ChainKind, Purpose

RUNS = {10_000: 40, 1_000_000: 40, 10_000_000: 15, 100_000_000: 5, 1_000_000_000: 1}
"""Records of each size, in bytes, that are measured one by one."""
TOGETHER = {10_000: 60, 1_000_000: 30, 10_000_000: 6, 100_000_000: 2}
"""Records that each of the clients stores in a row while others do the same."""
CLIENTS = 2
COLD = 1_000_000
LARGEST_BUNDLE = 10_000_000
POLICIES = {
    PRIVATE: "role:doctor or role:government",
    "shared": "role:doctor or role:government or role:researcher",
}
PURPOSE: Purpose = "public-health"
CHUNK = 4 << 20


@dataclass(frozen=True)
class Cast:
    """The homes of those who take part; sessions do not cross to another process."""

    doctor: Path
    patient: Path
    researcher: Path
    hospital: Path

    @classmethod
    def join(cls, place: Town) -> "Cast":
        doctor, patient = place.join("doctor"), place.join("patient")
        researcher, hospital = place.join("user", "role:researcher"), place.join("doctor")
        return cls(*(person.home.path for person in (doctor, patient, researcher, hospital)))


@dataclass(frozen=True)
class Job:
    """What one process measures: `runs` records of `size` bytes. `cloud` is the cloud's process, whose memory is of interest too."""

    cast: Cast
    size: int
    runs: int
    cloud: int


class Play:
    """One record after another, of about `size` bytes each, and the seconds that each thing done to them took, in all and by step."""

    def __init__(self, cast: Cast, people: Mapping[str, Session], folder: Path, size: int) -> None:
        self._cast, self._people, self._folder = cast, people, folder
        self._bundle = record_of(size if size <= LARGEST_BUNDLE else 1_000_000)
        self._attached = [folder / "attached.bin"] if size > LARGEST_BUNDLE else []
        for path in self._attached:
            _fill(path, size - len(self._bundle))
        self.size = len(self._bundle) + sum(path.stat().st_size for path in self._attached)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.steps: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def sign(self, name: str = "package") -> tuple[Path, dict[str, str]]:
        """The package, and the access class of each part by its label."""
        path = self._folder / name
        with path.open("wb") as file, self._timed("sign"):
            doctor, patient = Doctor(self._people["doctor"]), self._people["patient"].home.sign.public
            signed, parts = doctor.prepare(
                self._bundle, patient, load_profile("paper"), file, (), ["all"], self._attached
            )
            doctor.attest(signed)
        return path, {part.label: part.access for part in parts}

    def store(self, package: Path, access: Mapping[str, str]) -> bytes:
        patient = Patient(self._people["patient"])
        with package.open("rb") as file, self._timed("store"):
            stored = patient.receive(file)
            # The chunks of an attached file, of which the doctor shows none, are private.
            classes = {label: access.get(label, PRIVATE) for label in stored.labels}
            patient.store(stored.header.record, classes, POLICIES, (PURPOSE, "treatment"))
        return stored.header.record

    def open(self, record: bytes, who: str, kind: ChainKind) -> None:
        """Go through all plaintext that `who` may read, a part at a time."""
        reader = Reader(self._people[who])
        with self._timed("open shared" if kind == "sharing" else "open whole"):
            assert reader.request(record, kind, PURPOSE if kind == "sharing" else "treatment").ok
            with reader.open(record, kind) as opened:
                assert sum(len(content) for content in opened.parts.values())

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        steps, start = Steps(), time.perf_counter()
        with steps.watching():
            yield
        self.seconds[what].append(time.perf_counter() - start)
        for step, spent in steps.seconds.items():
            self.steps[what][step] += spent

    def floor(self, runs: int) -> dict[str, list[float]]:
        """Seconds to seal as many bytes into a file and sync it, and to read and open them."""
        seconds: dict[str, list[float]] = defaultdict(list)
        aead, nonce, path = AESGCM(os.urandom(32)), os.urandom(12), self._folder / "floor"
        piece = os.urandom(min(CHUNK, self.size))
        for _ in range(runs):
            with _timed(seconds["store"]), path.open("wb") as file:
                for _ in range(-(-self.size // len(piece))):
                    file.write(aead.encrypt(nonce, piece, None))
                file.flush()
                os.fsync(file.fileno())
            with _timed(seconds["open whole"]), path.open("rb") as file:
                while sealed := file.read(len(piece) + 16):
                    aead.decrypt(nonce, sealed, None)
        return seconds


@contextmanager
def _playing(job: Job) -> Iterator[Play]:
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as temporary:
        people = {name: Session(Home(path)) for name, path in vars(job.cast).items()}
        try:
            yield Play(job.cast, people, Path(temporary), job.size)
        finally:
            for session in people.values():
                session.close()


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for at in range(0, size, CHUNK):
            file.write(os.urandom(min(CHUNK, size - at)))


def _spread(seconds: Sequence[float]) -> Row:
    times = sorted(1e3 * s for s in seconds)
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    return {"p50 ms": statistics.median(times), "p95 ms": p95, "min ms": times[0], "max ms": times[-1]}


# --- what runs in processes of its own --------------------------------------------------------------------------------------


def _singly(job: Job) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of latency.csv, steps.csv and memory.csv."""
    with _playing(job) as play:
        for run in range(job.runs + 1):
            if run == 1:  # the one before has made connections and tables
                play.seconds.clear()
                play.steps.clear()
            record = play.store(*play.sign())
            play.open(record, "researcher", "sharing")
            play.open(record, "hospital", "storage")
        peak: Row = {"client peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}
        memory: list[Row] = [{"bytes": play.size, **peak, "cloud peak MB": status(job.cloud, "VmHWM") / 1e6}]
        floor = play.floor(job.runs)
        latency: list[Row] = []
        steps: list[Row] = []
        for what, seconds in play.seconds.items():
            row = {"bytes": play.size, "operation": what, "runs": job.runs, **_spread(seconds)}
            low = _spread(floor[what])["p50 ms"] if what in floor else None
            latency.append({**row, "floor p50 ms": low, "ratio to floor": low and row["p50 ms"] / low})
            for step, spent in sorted(play.steps[what].items(), key=itemgetter(1), reverse=True):
                row = {"bytes": play.size, "operation": what, "step": step}
                steps.append({**row, "mean ms": 1e3 * spent / job.runs})
        return latency, steps, memory


_barrier: Any = None


def _meet_at(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _together(job: Job) -> tuple[int, dict[str, tuple[float, float]]]:
    """The bytes of a record, and when this process, beside others, began and ended to store its records, and to open them whole."""
    spans = {}
    with _playing(job) as play:
        packages = [play.sign(f"package-{number}") for number in range(job.runs)]
        _barrier.wait()
        start = time.monotonic()
        records = [play.store(*package) for package in packages]
        spans["store"] = start, time.monotonic()
        _barrier.wait()
        start = time.monotonic()
        for record in records:
            play.open(record, "hospital", "storage")
        spans["open"] = start, time.monotonic()
        return play.size, spans


# --- measurements -----------------------------------------------------------------------------------------------------------


def singly(place: Town, cast: Cast, size: int, runs: int) -> tuple[list[Row], list[Row], list[Row]]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_singly, Job(cast, size, runs, place.pids()["cloud"])).result()


def together(place: Town, casts: Sequence[Cast], size: int, runs: int) -> Row:
    """Records and megabytes a second that several clients store, and open whole, at once."""
    context = get_context("spawn")
    jobs = [Job(cast, size, runs, place.pids()["cloud"]) for cast in casts]
    barrier = (context.Barrier(len(casts)),)
    with ProcessPoolExecutor(len(casts), context, _meet_at, barrier) as pool:
        found = list(pool.map(_together, jobs))
    row: dict[str, Any] = {"bytes": found[0][0], "clients": len(casts), "records": len(casts) * runs}
    for what in ("store", "open"):
        spans = [span[what] for _, span in found]
        rate = row["records"] / (max(end for _, end in spans) - min(start for start, _ in spans))
        row |= {f"{what} records/s": rate, f"{what} MB/s": rate * row["bytes"] / 1e6}
    return row


def cold(place: Town, cast: Cast, size: int, runs: int) -> list[Row]:
    """The same from a cold start: as a command from a shell, interpreter and all, and in a new session of a running process."""
    seconds: dict[str, list[float]] = defaultdict(list)
    with _playing(Job(cast, size, runs, place.pids()["cloud"])) as play:

        def command(what: str, home: Path, *words: str) -> bytes:
            whole = [sys.executable, "-m", "client", "--home", str(home), "-o", "json", *words]
            with _timed(seconds[f"command: {what}"]):
                done = subprocess.run(whole, capture_output=True, check=False)  # noqa: S603
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout

        for _ in range(runs):
            command("print its help", cast.patient, "--help")
            package, _ = play.sign()
            words = ["--purpose=treatment", "--acknowledge=all", "--yes"]
            stored = command("store", cast.patient, "record", "store", str(package), *words)
            record = json.loads(stored)["record"]
            command(
                "request",
                cast.hospital,
                "record",
                "request",
                record,
                "--chain=storage",
                "--purpose=treatment",
            )
            command(
                "open", cast.hospital, "record", "open", record, "--chain=storage", f"--out={package}-out"
            )
            with _playing(Job(cast, size, runs, 0)) as fresh, _timed(seconds["new session: open whole"]):
                fresh.open(bytes.fromhex(record), "hospital", "storage")
    return [{"bytes": size, "what": what, "runs": runs, **_spread(times)} for what, times in seconds.items()]


# --- pictures ---------------------------------------------------------------------------------------------------------------


def _size(count: float) -> str:
    """A number of bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _draw_latency(rows: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    for what in dict.fromkeys(row["operation"] for row in rows):
        own = [row for row in rows if row["operation"] == what]
        (line,) = axes.plot([r["bytes"] for r in own], [r["p50 ms"] for r in own], "o-", label=what)
        axes.fill_between(
            [r["bytes"] for r in own], [r["min ms"] for r in own], [r["max ms"] for r in own], alpha=0.15
        )
        if floor := [r for r in own if r["floor p50 ms"]]:
            label, colour = f"floor of {what}", line.get_color()
            sizes, times = [r["bytes"] for r in floor], [r["floor p50 ms"] for r in floor]
            axes.plot(sizes, times, ":", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="bytes of the record", ylabel="ms (median, min to max)")
    axes.legend()


def _draw_steps(rows: Sequence[Row], figure: Figure) -> None:
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    for axes, what in zip(figure.subplots(1, len(operations)), operations, strict=True):
        own = [row for row in rows if row["operation"] == what]
        sizes = list(dict.fromkeys(row["bytes"] for row in own))
        sums = {size: sum(r["mean ms"] for r in own if r["bytes"] == size) for size in sizes}
        bottom = [0.0] * len(sizes)
        for step in steps:
            shares = [
                sum(r["mean ms"] for r in own if (r["bytes"], r["step"]) == (size, step)) / sums[size]
                for size in sizes
            ]
            axes.bar([_size(size) for size in sizes], shares, bottom=bottom, label=step)
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
        axes.set(title=what, ylabel="share of the time" if what == operations[0] else None)
        axes.tick_params("x", rotation=60)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_all(out: Path) -> None:
    """The pictures, from the CSV files in `out`."""
    latency, steps = read_rows(out / "latency.csv"), read_rows(out / "steps.csv")
    draw(out / "latency", lambda figure: _draw_latency(latency, figure))
    draw(out / "steps", lambda figure: _draw_steps(steps, figure), (11, 4))


def main(
    size: Annotated[
        list[int] | None,
        typer.Option(min=6000, help="Bytes of a record; repeatable. By default 10 kB to 1 GB."),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="How many records of each size, instead of the usual number.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="10 kB and 1 MB alone, and few of them.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for CSV files and pictures.")] = Path(
        "bench/results/pipeline"
    ),
) -> None:
    """Measure how long records take to store and open, how many a second go through, and where the time goes."""
    sizes = size or [s for s in RUNS if not quick or s <= COLD]
    counts = {s: runs or (10 if quick else RUNS.get(s, 10)) for s in sizes}
    crowds = {s: min(counts[s], TOGETHER.get(s, 0)) for s in sizes if TOGETHER.get(s)}
    latency: list[Row] = []
    steps: list[Row] = []
    memory: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with town() as place, Progress(*columns, console=console) as progress:
        task = progress.add_task("the network is up", total=len(counts) + len(crowds) + 1)

        def begin(what: str) -> None:
            progress.update(task, description=what)

        casts = [Cast.join(place) for _ in range(CLIENTS)]
        for bytes_, count in counts.items():
            begin(f"{count} records of {_size(bytes_)}, one by one")
            found = singly(place, casts[0], bytes_, count)
            for rows, new in zip((latency, steps, memory), found, strict=True):
                rows += new
            progress.advance(task)
        begin("from a cold start")
        colds = cold(place, casts[0], min(COLD, max(sizes)), 3 if quick else 10)
        progress.advance(task)
        rates = []
        for bytes_, count in crowds.items():
            begin(f"{count} records of {_size(bytes_)} by each of {CLIENTS} clients at once")
            rates.append(together(place, casts, bytes_, count))
            progress.advance(task)
    publish(out, latency=latency, steps=steps, memory=memory, cold=colds, throughput=rates)
    draw_all(out)


if __name__ == "__main__":
    typer.run(main)
