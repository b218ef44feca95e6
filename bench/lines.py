"""What a benchmark of small operations measures and prints: lines with our figure, a peer's beside it, and what we aim at.

Times are CPU time of the measuring thread, so that other work on the machine disturbs less. The median is what is compared;
the minimum tells what the machine gives when nothing disturbs.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bench.results import Row

Unit = Literal["ms", "us", "bytes"]
SCALES: dict[Unit, float] = {"ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Sample:
    """Figures of one thing in the unit of its line, over `runs` repetitions. A size is a sample of one run."""

    minimum: float
    median: float
    runs: int = 1

    @classmethod
    def size(cls, count: int) -> "Sample":
        return cls(count, count)


@dataclass(frozen=True)
class Peer:
    """Somebody else's median for the same thing; `source` says whether we saw it in this run."""

    name: str
    median: float
    source: Literal["this run", "published", "measured once"]


@dataclass(frozen=True)
class Line:
    """One row. `goal` is the largest figure that we promise, if any."""

    name: str
    unit: Unit
    ours: Sample
    peer: Peer | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times our median the peer's is."""
        return self.peer.median / self.ours.median if self.peer else None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        if self.ours.median <= self.goal:
            return "met"
        return "met by the minimum only" if self.ours.minimum <= self.goal else "missed"


def measure(
    operation: Callable[[], object],
    unit: Unit = "ms",
    seconds: float = 1.0,
    clock: Callable[[], float] = time.thread_time,
) -> Sample:
    """Time of `operation` by `clock`, repeated for about `seconds` and at least five times after a warm-up.

    An operation below 20 us is repeated within each sample, so that reading the clock does not count.
    """
    operation()
    began = clock()
    operation()
    once = max(clock() - began, 1e-7)
    inner = max(1, round(20e-6 / once))
    runs = min(max(5, int(seconds / (once * inner))), 20_000)
    times = []
    for _ in range(runs):
        began = clock()
        for _ in range(inner):
            operation()
        times.append((clock() - began) / inner * SCALES[unit])
    return Sample(min(times), statistics.median(times), runs * inner)


def rows(lines: Iterable[Line]) -> list[Row]:
    """The lines as rows of a table."""
    return [
        {
            "what": line.name,
            "unit": line.unit,
            "median": line.ours.median,
            "min": line.ours.minimum,
            "runs": line.ours.runs,
            "peer": line.peer and line.peer.name,
            "its median": line.peer and line.peer.median,
            "seen": line.peer and line.peer.source,
            "peer / ours": line.ratio,
            "goal": line.goal,
            "verdict": line.verdict,
        }
        for line in lines
    ]
