"""Simulate consensus from the command line: many seeds, or one again. `python -m tests.simulation.run --help` says how."""

import multiprocessing
import os
import sys
from collections import Counter
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from protocol.quorum import Mode
from tests.simulation import stories
from tests.simulation.simulation import Outcome, Plan, replay_command, shrink, simulate

console = Console()
MODES: tuple[Mode, ...] = ("bft", "majority")


def _one(job: tuple[int, Mode]) -> tuple[Plan, Outcome]:
    plan = Plan.make(*job)
    outcome = simulate(plan)
    outcome.story.clear()
    return plan, outcome


def _many(first: int, count: int, processes: int) -> int:
    jobs = [(seed, mode) for seed in range(first, first + count) for mode in MODES]
    totals: dict[str, Counter[str]] = {mode: Counter() for mode in MODES}
    failures: list[Plan] = []
    columns = ("simulating", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with multiprocessing.Pool(processes) as pool, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(jobs))
        for plan, outcome in pool.imap_unordered(_one, jobs, chunksize=4):
            progress.advance(task)
            totals[plan.mode].update(
                {
                    "runs": 1,
                    "with liars": bool(plan.liars),
                    "faults": len(plan.faults),
                    "events": outcome.events,
                    "final blocks": outcome.blocks,
                    "evidence": outcome.evidence,
                    "violations": outcome.violation is not None,
                }
            )
            if outcome.violation:
                failures.append(plan)
                console.print(f"[red]{outcome.violation}[/red]\n  {replay_command(plan)}", highlight=False)
    table = Table("mode", *next(iter(totals.values())))
    for mode, total in totals.items():
        table.add_row(mode, *(f"{value:,}" for value in total.values()))
    console.print(table)
    for plan in failures[:3]:
        kept = shrink(plan)
        console.print(f"shrunk to {len(kept)} of {len(plan.faults)} faults:\n  {replay_command(plan, kept)}")
    return 1 if failures else 0


def _again(seed: int, mode: Mode, keep: str | None) -> int:
    plan = Plan.make(seed, mode)
    if keep is not None:
        plan = plan.keeping(tuple(int(i) for i in keep.split(",")) if keep != "none" else ())
    console.print(f"{plan.members} members, {mode}, terms of {plan.term_length}, liars: {dict(plan.liars)}")
    outcome = simulate(plan)
    for line in outcome.story:
        console.print(line, highlight=False, markup=False)
    console.print(
        f"{outcome.violation or 'no violation'} · {outcome.events} events · digest {outcome.digest}"
    )
    return 1 if outcome.violation else 0


def main(
    seeds: Annotated[int, typer.Option(help="How many seeds to run in each mode.")] = 200,
    first: Annotated[int, typer.Option(help="The first of them.")] = 0,
    processes: Annotated[int, typer.Option(help="How many run at a time.")] = os.cpu_count() or 1,
    seed: Annotated[int | None, typer.Option(help="Run this one seed again and tell its story.")] = None,
    mode: Annotated[Literal["bft", "majority"], typer.Option(help="The quorum, with --seed.")] = "bft",
    keep: Annotated[
        str | None, typer.Option(help="With --seed: strike only these faults, as 0,3,5 or none.")
    ] = None,
    regenerate: Annotated[bool, typer.Option("--regenerate", help="Write the golden stories anew.")] = False,
) -> None:
    """Run the deterministic simulator; exit code 1 when an oracle objects."""
    if regenerate:
        sys.exit(stories.regenerate())
    sys.exit(_many(first, seeds, processes) if seed is None else _again(seed, mode, keep))


if __name__ == "__main__":
    typer.run(main)
