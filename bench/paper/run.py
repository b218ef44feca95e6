"""One run: which experiments are left to do, how long they will take, their rows, and under which conditions they came about."""

import importlib
import json
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench.paper.lab import Lab, Piece, Row
from bench.paper.report import CONDITIONS, EXPERIMENTS, make_report
from bench.results import conditions, write_rows
from crypto.errors import Conflict


def run(
    out: Path, is_quick: bool, seed: int, bundles: Sequence[Path], only: Collection[str], fresh: bool
) -> None:
    """Run the experiments whose rows `out` does not hold yet, or those named in `only`, and make the report.

    An experiment's rows are written when all of it is done, so a run that was broken off goes on with the experiment it was at. `Conflict` if `out` has
    rows of another mode, seed, machine or other bundles, unless `fresh`: then they all go.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = _conditions(out, is_quick, seed, bundles, fresh)
    if fresh:
        _remove_rows(out, only or EXPERIMENTS)
    todo = [n for n in EXPERIMENTS if (n in only if only else not (out / f"{n}.csv").exists())]
    console = Console(soft_wrap=True, highlight=False)
    lab = Lab(out, is_quick, seed, bundles)
    try:
        _run(lab, todo, known, console)
    finally:
        lab.close()
    make_report(out)
    console.print(f"The report: {out / 'report.html'} and {out / 'report.md'}")


def _run(lab: Lab, todo: Sequence[str], known: dict[str, Any], console: Console) -> None:
    pieces: dict[str, list[Piece]] = {
        name: list(importlib.import_module(f"bench.paper.{name}").pieces(lab)) for name in todo
    }
    left = _Left(sum(piece.seconds for found in pieces.values() for piece in found))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=left.expected, left="")
        for name, found in pieces.items():
            began, rows = time.monotonic(), list[Row]()
            if not console.is_terminal:
                console.print(f"{name}: {len(found)} measurements; {left}")
            for piece in found:
                progress.update(task, description=f"{name}: {piece.title}", left=str(left))
                started = time.monotonic()
                rows += piece.run()
                left.done(piece.seconds, time.monotonic() - started)
                progress.advance(task, piece.seconds)
            write_rows(lab.out / f"{name}.csv", rows)
            seconds = time.monotonic() - began
            known["experiments"][name] = {
                "date": datetime.now(UTC).date().isoformat(),
                "commit": conditions()["commit"],
                "seconds": round(seconds, 1),
            }
            _write_conditions(lab.out, known)
            console.print(f"{name}: {len(rows)} rows in {seconds:.0f} s; {left}")


class _Left:
    """How long it will still take: what was expected, by how much longer than expected the pieces took so far."""

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self._done = self._took = 0.0

    def done(self, expected: float, took: float) -> None:
        self._done, self._took = self._done + expected, self._took + took

    def __str__(self) -> str:
        pace = self._took / self._done if self._done else 1.0
        seconds = max(0.0, (self.expected - self._done) * pace)
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"


def _conditions(out: Path, is_quick: bool, seed: int, bundles: Sequence[Path], fresh: bool) -> dict[str, Any]:
    machine = conditions()
    machine.pop("commit")  # each experiment has its own
    wanted = {
        "mode": "quick" if is_quick else "full",
        "seed": seed,
        "bundles": [path.name for path in bundles],
        "machine": machine,
    }
    before: dict[str, Any] = {}
    if (out / CONDITIONS).exists():
        before = json.loads((out / CONDITIONS).read_text())
    if before and any(before[name] != wanted[name] for name in wanted):
        if not fresh:
            raise Conflict(
                f"{out} holds a run in another mode, on another machine, with another seed or other bundles; choose another --out, "
                "or replace it with --fresh"
            )
        before = {}
        _remove_rows(out, EXPERIMENTS)
    known = {**wanted, "experiments": before.get("experiments", {})}
    _write_conditions(out, known)
    return known


def _remove_rows(out: Path, names: Collection[str]) -> None:
    for name in names:
        (out / f"{name}.csv").unlink(missing_ok=True)


def _write_conditions(out: Path, known: dict[str, Any]) -> None:
    (out / CONDITIONS).write_text(json.dumps(known, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
