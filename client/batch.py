"""Work on many records at once: a hospital's import, a researcher's opening.

    jobs  ->  worker processes, several to a core, each with connections of its own and one record at a time
          ->  results as they come, and one report

More processes than cores, because a record waits for the chain most of its time. What is done stands in the home or in the folder of
results before it counts as done, so that the same command goes on after a crash where it was. Whatever is wrong with one record becomes a
line of the report; the others go on.
"""

import fcntl
import io
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from client.attach import write_attached
from client.doctor import Doctor, Signed
from client.fhir import Profile, is_chunk, load_bundle
from client.home import MAX_FILE, Home
from client.reader import Reader
from client.session import Session
from configs.files import write
from crypto.codec import Bytes16, Bytes32, Decoder, Wire, encode
from crypto.errors import Conflict, Denied, DiptychError, NotFound, Unavailable
from protocol.identity import ChainKind, Purpose
from protocol.record import digest

PER_CORE = 4
LOCK_WAIT_S = 10.0
WATCH_S = 0.5


class Failure(NamedTuple):
    name: str
    error: str
    reason: str


@dataclass
class Report:
    """What became of each job, by name; `cpu_seconds` are those of all processes of the batch."""

    done: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def fields(self) -> dict[str, Any]:
        return {
            "done": len(self.done),
            "skipped": len(self.skipped),
            "failed": len(self.failed),
            "seconds": round(self.seconds, 2),
            "per_second": round(len(self.done) / self.seconds, 2) if self.seconds else 0.0,
            "cpu_seconds": round(self.cpu_seconds, 2),
            "records": self.done,
            "already": self.skipped,
            "failures": [failure._asdict() for failure in self.failed],
        }


class ImportJob(NamedTuple):
    """A bundle for a patient. `name` is for the report; `started` what an earlier run has signed of it."""

    name: str
    bundle: bytes
    patient: bytes
    profile: Profile
    rules: tuple[str, ...]
    acknowledged: tuple[str, ...]
    out: Path
    digest: bytes
    started: "Import | None"


class OpenJob(NamedTuple):
    """A record to be opened into `out`, as RECORD.json."""

    name: str
    record: bytes
    chain: ChainKind
    purpose: Purpose
    out: Path


class Import(Wire, frozen=True, tag="batch-import/1"):
    """What an import has signed for a bundle; `package` is empty once the record is attested on both chains."""

    digest: Bytes32
    record: Bytes16
    patient: Bytes32
    header: Bytes32
    package: bytes


_decode_import = Decoder(Import, "an import", MAX_FILE)


# --- importing --------------------------------------------------------------------------------------------------------------


def import_bundles(
    home: Home,
    bundles: Iterable[tuple[Path, bytes]],
    profile: Profile,
    rules: tuple[str, ...],
    acknowledged: tuple[str, ...],
    out: Path,
    processes: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> Report:
    """Sign and attest each of the bundles, given with its patient's key, and write the packages into `out`; `step` is called after each.

    `acknowledged` as in `client.doctor`: a bundle with other findings fails.
    A bundle is signed once for a patient, also by repeated runs, under whatever file name. `Conflict` while another batch runs in this home.
    """
    report = Report()
    with _only_one(home):
        known = {
            i.digest: i
            for name in home.names("import")
            for i in [_decode_import(home.load(f"import-{name}"))]
        }

        def jobs() -> Iterator[ImportJob]:
            taken: dict[bytes, str] = {}
            for path, patient in bundles:
                try:
                    bundle = load_bundle(path)
                except DiptychError as error:
                    report.failed.append(Failure(str(path), type(error).__name__, str(error)))
                    step()
                    continue
                name = digest("batch-import", patient + bundle)
                started = known.get(name)
                if name in taken:
                    report.skipped[str(path)] = f"the same as {taken[name]}"
                    step()
                elif started and not started.package:
                    report.skipped[str(path)] = started.record.hex()
                    step()
                else:
                    yield ImportJob(
                        str(path), bundle, patient, profile, rules, acknowledged, out, name, started
                    )
                taken[name] = str(path)

        _run(home, jobs(), _import, processes, report, step)
    return report


def _import(session: Session, job: ImportJob) -> str:
    doctor, home, made = Doctor(session), session.home, job.started
    if made is None:
        package = io.BytesIO()
        signed, _ = doctor.prepare(job.bundle, job.patient, job.profile, package, job.rules, job.acknowledged)
        made = Import(job.digest, *signed, package.getvalue())
        # Before anyone hears of the record: after a crash, this is the one that the bundle has.
        home.save(f"import-{made.record.hex()}", encode(made))
    write(job.out / f"{made.record.hex()}.diptych", made.package, replace=True)
    doctor.attest(Signed(made.record, made.patient, made.header))
    home.save(
        f"import-{made.record.hex()}",
        encode(Import(made.digest, made.record, made.patient, made.header, b"")),
    )
    return made.record.hex()


# --- opening ----------------------------------------------------------------------------------------------------------------


def open_records(
    home: Home,
    records: Iterable[bytes],
    chain: ChainKind,
    purpose: Purpose,
    out: Path,
    processes: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> Report:
    """Request, fetch, decrypt and verify each of the records, and write it into `out` as RECORD.json, one line, its attached files beside it as
    RECORD-a1.bin and so on; `step` is called after each.

    What is in `out` already is left as it is. `Conflict` while another batch runs in this home.
    """
    report = Report()
    with _only_one(home):

        def jobs() -> Iterator[OpenJob]:
            for record in dict.fromkeys(records):
                if (out / f"{record.hex()}.json").exists():
                    report.skipped[record.hex()] = "opened already"
                    step()
                else:
                    yield OpenJob(record.hex(), record, chain, purpose, out)

        _run(home, jobs(), _open, processes, report, step)
    return report


def _open(session: Session, job: OpenJob) -> str:
    reader = Reader(session)
    try:
        opened = reader.open(job.record, job.chain)
    except (NotFound, Denied):  # never asked for, or no longer granted
        receipt = reader.request(job.record, job.chain, job.purpose)
        if not receipt.ok:
            raise Denied(f"{receipt.reason} ({receipt.code})") from None
        opened = reader.open(job.record, job.chain)
    head = {
        "record": job.name,
        "version": opened.version,
        "doctor": opened.header.doctor.hex(),
        "signed_ms": opened.header.created_ms,
        "closed_classes": list(opened.closed),
    }
    with opened:
        write_attached(opened.parts, job.out, f"{job.name}-")
        texts = [(label, opened.parts[label]) for label in opened.parts if not is_chunk(label)]
    parts = b",".join(json.dumps(label).encode() + b":" + content for label, content in texts)
    line = json.dumps(head).encode()[:-1] + b',"parts":{' + parts + b"}}\n"
    write(job.out / f"{job.name}.json", line)
    return f"{len(opened.parts)} parts"


# --- running ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _only_one(home: Home) -> Iterator[None]:
    """Held by this process and its workers: after a crash, until the last of them has ended."""
    fd = os.open(home.path / "batch.lock", os.O_CREAT | os.O_RDWR, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Conflict(
                        "another batch is at work in this home; wait for its end, or stop it"
                    ) from None
                time.sleep(WATCH_S)
        yield
    finally:
        os.close(fd)


def _run(
    home: Home,
    jobs: Iterable[Any],
    work: Callable[[Session, Any], str],
    processes: int | None,
    report: Report,
    step: Callable[[], None],
) -> None:
    """Have `work` done on each job, at most twice as many in memory as there are `processes`."""
    count = processes or PER_CORE * (os.cpu_count() or 1)
    started, cpu = time.monotonic(), _cpu_seconds()
    pool = ProcessPoolExecutor(count, get_context("fork"), _begin, (home, os.getpid()))
    waiting: dict[Future[tuple[str, Failure | None]], str] = {}

    def collect(least: int) -> None:
        while len(waiting) > least:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                name = waiting.pop(future)
                said, failure = future.result()
                if failure is None:
                    report.done[name] = said
                else:
                    report.failed.append(failure)
                step()

    try:
        for job in jobs:
            waiting[pool.submit(_attempt, work, job)] = job.name
            collect(2 * count)
        collect(0)
    except BrokenProcessPool:
        raise Unavailable(
            "a worker process was killed, perhaps for want of memory; repeat the command, with fewer processes if need be: it goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        report.seconds, report.cpu_seconds = time.monotonic() - started, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


_session: Session | None = None


def _begin(home: Home, parent: int) -> None:
    """Set up a worker process, which ends when its parent does."""
    global _session
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _session = Session(home)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _attempt(work: Callable[[Session, Any], str], job: Any) -> tuple[str, Failure | None]:
    assert _session is not None
    try:
        return work(_session, job), None
    except DiptychError as error:
        return "", Failure(job.name, type(error).__name__, str(error))
    except Exception as error:  # a bug met by one record must not end the batch
        return "", Failure(job.name, type(error).__name__, "an internal error; try this record alone")
