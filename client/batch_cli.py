"""The commands for many records: `diptych batch import` and `diptych batch open`."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.batch import Report, import_bundles, open_records
from client.command import EXIT_CODES, ChainOption, context, hex_bytes, purposes_of, record_id
from client.fhir import load_profile
from client.lint_cli import Acknowledge
from client.session import Session
from client.terminal import Terminal
from configs.files import read, write
from crypto.errors import Conflict, Malformed, Unavailable

MAX_LIST = 64 << 20
SHOWN = 20
"""Failures shown on a terminal; the report has all."""

app = typer.Typer(no_args_is_help=True, help="Work on many records at once: import them, open them.")

ReportFile = Annotated[
    Path | None,
    typer.Option(help="Write the report here, as JSON: what was done, left out, and failed, and why."),
]
Processes = Annotated[
    int | None, typer.Option(min=1, max=256, help="How many records at a time; four to a core by default.")
]


@app.command("import")
def batch_import(
    mapping: Annotated[
        Path,
        typer.Argument(
            help="A CSV file of two columns, bundle and patient: a file's path, its patient's key."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the packages, RECORD.diptych each.")],
    profile: Annotated[
        str, typer.Option(help="How bundles are cut into parts: safe, fine, paper, or a TOML file.")
    ] = "safe",
    rule: Annotated[list[str] | None, typer.Option(help="As for `record import`; repeatable.")] = None,
    acknowledge: Acknowledge = None,
    report: ReportFile = None,
    processes: Processes = None,
) -> None:
    """Doctor: sign and attest many bundles, on all cores. Repeat the command after a crash: it goes on, and signs no bundle twice.

    Paths in the file are relative to it. Ends with exit code 7 if some bundles failed; repeat it when their trouble is mended.

    Example: `diptych --home ~/st-mary batch import bundles.csv --out packages/ --report report.json`
    """
    bundles, cut = _mapping(mapping), load_profile(profile)
    with context.open() as session, _bar("importing", len(bundles)) as step:
        _check_keys_inside(session)
        found = import_bundles(
            session.home, bundles, cut, tuple(rule or ()), tuple(acknowledge or ()), out, processes, step
        )
    _finish(found, report)


@app.command("open")
def batch_open(
    out: Annotated[Path, typer.Option(help="The folder for the opened records, RECORD.json each, one line.")],
    records: Annotated[
        Path | None, typer.Option("--list", help="A file with a record id on each line.")
    ] = None,
    granted: Annotated[
        bool, typer.Option("--granted", help="All records that the chain has granted to you.")
    ] = False,
    chain: ChainOption = "sharing",
    purpose: Annotated[str, typer.Option(help="The purpose of new requests.")] = "research",
    report: ReportFile = None,
    processes: Processes = None,
) -> None:
    """Data user: request, fetch, decrypt and verify many records, on all cores. Repeat the command to go on after a crash.

    `cat study/*.json` is the whole as NDJSON. Ends with exit code 7 if some records failed.

    Example: `diptych --home ~/rs batch open --list ids.txt --out study/ --report report.json`
    """
    if (records is None) == (not granted):
        raise Malformed("name the records with --list FILE, or take all with --granted")
    (asked,) = purposes_of([purpose])
    with context.open() as session:
        _check_keys_inside(session)
        if records:
            lines = read(records, MAX_LIST).decode(errors="replace").split()
            wanted = [record_id(line) for line in lines]
        else:
            grants = session.chains[chain].grants_of(session.home.sign.public)
            wanted = list(dict.fromkeys(ticket.record for ticket in grants))
        with _bar("opening", len(set(wanted))) as step:
            found = open_records(session.home, wanted, chain, asked, out, processes, step)
    _finish(found, report)


def _mapping(path: Path) -> list[tuple[Path, bytes]]:
    """The bundles and their patients; all of it is read before anything is done."""
    try:
        rows = list(csv.reader(read(path, MAX_LIST).decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        raise Malformed(f"{path} is no CSV file in UTF-8") from None
    found = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells == ["bundle", "patient"]):
            continue
        if len(cells) != 2:
            raise Malformed(
                f"line {number} of {path} must have two columns: a bundle's path, its patient's key"
            )
        found.append(
            (path.parent / cells[0], hex_bytes(cells[1], 32, f"the patient's key in line {number} of {path}"))
        )
    return found


def _check_keys_inside(session: Session) -> None:
    if context.signer_command or context.ces_signer_command:
        raise Conflict(
            "a signer command serves one process at a time; import with record import, one bundle after another"
        )


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, for people; the function makes a step."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=context.console, disable=context.as_json, auto_refresh=False) as progress:
        task = progress.add_task(what, total=total)

        def step() -> None:
            progress.advance(task)
            progress.refresh()

        yield step


def _finish(found: Report, report: Path | None) -> None:
    data = found.fields()
    if report:
        write(report, json.dumps(data, ensure_ascii=False, indent=2).encode() + b"\n", replace=True)

    def human(console: Terminal) -> None:
        for failure in found.failed[:SHOWN]:
            console.print(f"failed   {failure.name}: {failure.reason}")
        if len(found.failed) > SHOWN:
            console.print(f"failed   {len(found.failed) - SHOWN} more, see the report")
        console.print(
            f"{len(found.done)} done, {len(found.skipped)} done before, {len(found.failed)} failed, in {found.seconds:.1f} s "
            f"({data['per_second']} a second, {found.cpu_seconds:.1f} s of processor time)"
        )

    context.show(data, human)
    if found.failed:
        raise typer.Exit(EXIT_CODES[Unavailable])
