"""What every benchmark that keeps its results writes: rows as CSV, pictures as PNG and SVG made from them, and the conditions they were had under."""

import csv
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

console = Console(soft_wrap=True)
if not console.is_terminal:
    console.width = 170
Row = Mapping[str, Any]
LIBRARIES = (
    "cryptography",
    "libp2p",
    "msgspec",
    "py-arkworks-bls12381",
    "pymcl",
    "pynacl",
    "sd-jwt",
    "starlette",
    "uvicorn",
    "zstandard",
)
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
    "#F0E442",
    "#882255",
)
"""Those of Okabe and Ito, which people with any kind of colour vision tell apart, and two more."""
_STYLE: Any = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.autolayout": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "diptych",
}


def publish(out: Path, **tables: Sequence[Row]) -> None:
    """Show tables and write them as CSV files into `out`, the conditions beside them."""
    for name, rows in tables.items():
        write_rows(out / f"{name}.csv", rows)
        _show(name, rows)
    held = conditions()
    write_rows(out / "conditions.csv", [{"what": what, "value": value} for what, value in held.items()])
    console.print(
        ", ".join(f"{name} {value}" for name, value in held.items()), f"\nwritten to {out}", highlight=False
    )


def _show(title: str, rows: Sequence[Row]) -> None:
    table = Table(*dict.fromkeys(name for row in rows for name in row), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else _text(v) for v in row.values()))
    console.print(table)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV with the columns of all rows in the order of their first appearance; numbers with six significant digits, None as nothing."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    temporary.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote, numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def draw(path: Path, plot: Callable[[Figure], None], size: tuple[float, float] = (6.4, 4.0)) -> None:
    """The picture that `plot` draws, as `path` with .png and .svg; the same bytes for the same rows."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size)
        plot(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def conditions() -> dict[str, str]:
    """The machine, the versions and the commit that figures were had with; no name of a host or a path."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
        **{name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Of the source that runs, with a plus if it was changed since."""
    root = Path(__file__).parent.parent
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or "unknown"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
