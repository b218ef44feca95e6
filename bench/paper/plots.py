"""The pictures: one style, colours that people with colour blindness tell apart (Okabe and Ito) with a marker each, the same bytes for the same rows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from bench.paper.lab import Row
from bench.results import draw

SCHEMES = {
    "traditional": ("Traditional", "#E69F00", "s"),
    "bpds": ("BPDS", "#D55E00", "^"),
    "bpds_at_once": ("BPDS, 4 at a time", "#CC79A7", "v"),
    "diptych": ("Diptych", "#0072B2", "o"),
    "diptych_one_chain": ("Diptych on one chain", "#009E73", "D"),
}
NODES = {
    "2x4": ("two chains of 4 nodes", "#0072B2", "o"),
    "1x4": ("one chain of 4 nodes", "#009E73", "D"),
    "1x8": ("one chain of 8 nodes", "#D55E00", "^"),
}
KINDS = {
    "ciphertext": ("ciphertext", "#56B4E9"),
    "key_headers": ("key headers", "#E69F00"),
    "signatures": ("signatures", "#009E73"),
    "other": ("other", "#999999"),
}
LINE: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8, "linewidth": 1.5, "markersize": 4.5}


def storage(figure: Figure, rows: Sequence[Row]) -> None:
    (axes,) = _panels(figure, 1, 1)
    rows = [r for r in rows if not r["bundle"].startswith("made")]
    names = [name for name in SCHEMES if any(r["scheme"] == name for r in rows)]
    bottom = [0.0] * len(names)
    for kind, (title, colour) in KINDS.items():
        heights = [_mean(r[kind] for r in rows if r["scheme"] == name) / 1e3 for name in names]
        axes.bar(range(len(names)), heights, 0.6, bottom=bottom, color=colour, label=title)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(names)), [SCHEMES[name][0] for name in names])
    axes.set_ylabel("kB in the cloud, mean over the bundles")
    axes.legend()


def index(figure: Figure, rows: Sequence[Row]) -> None:
    (left, right) = _panels(figure, 1, 2)
    stored = [r for r in rows if r["transaction"] != "access.request"]
    entries = [r for r in rows if r["transaction"] == "record.publish"]
    for axes, chosen, field, title in (
        (left, entries, "count", "index entries of a record"),
        (right, stored, "bytes", "bytes of transactions to store it"),
    ):
        for name, (label, colour, marker) in SCHEMES.items():
            sums: dict[int, int] = defaultdict(int)
            for row in chosen:
                if row["scheme"] == name:
                    sums[row["shared_parts"]] += row[field]
            if sums:
                points = sorted(sums.items())
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
        _logarithmic(axes)
        axes.set_xlabel("shared parts k")
        axes.set_ylabel(title)
    left.legend()


def fig7(figure: Figure, rows: Sequence[Row]) -> None:
    users = sorted({r["users"] for r in rows})
    panels = _panels(figure, 1, len(users), sharey=True)
    for axes, many in zip(panels, users, strict=True):
        _lines(
            axes,
            [r for r in rows if r["users"] == many],
            SCHEMES,
            "scheme",
            "shared_parts",
            "mean_ms",
            "min_ms",
            "max_ms",
        )
        _logarithmic(axes)
        axes.set_title("1 user" if many == 1 else f"{many} users at once", fontsize=9)
        axes.set_xlabel("shared parts k")
    panels[0].set_ylabel("response time, ms\n(mean; bars: fastest and slowest)")
    panels[0].legend(fontsize=8)


def fig8(figure: Figure, rows: Sequence[Row]) -> None:
    (left, middle, right) = _panels(figure, 1, 3)
    swept = [r for r in rows if r["nodes"] != "2x4" or r["split"] == 0.5]
    for axes, field, title in (
        (left, "mean_ms", "mean response time, ms"),
        (middle, "p95_ms", "95th percentile, ms"),
    ):
        _lines(axes, _over_runs(swept, field), NODES, "nodes", "users", "value", "least", "most")
        _logarithmic(axes)
        axes.set_xlabel("concurrent users")
        axes.set_ylabel(f"{title}\n(bars: least and most of the runs)")
    left.legend(fontsize=8)
    split = [r for r in rows if r["nodes"] == "2x4" and r["users"] == 64]
    _lines(right, _over_runs(split, "mean_ms"), NODES, "nodes", "split", "value", "least", "most")
    right.set_ylim(bottom=0)
    right.set_xlabel("share of 64 users on the sharing chain")
    right.set_ylabel("mean response time, ms")


def changes(figure: Figure, rows: Sequence[Row]) -> None:
    kinds = list(dict.fromkeys(r["change"] for r in rows))
    panels = _panels(figure, 2, len(kinds))
    fields = (("ms", "time, ms"), ("uploaded_bytes", "bytes sent to the cloud"))
    for number, (field, title) in enumerate(fields):
        for axes, kind in zip(panels[number * len(kinds) :], kinds, strict=False):
            chosen = _over_runs([r for r in rows if r["change"] == kind], field)
            _lines(axes, chosen, SCHEMES, "scheme", "record_bytes", "value", "least", "most")
            _logarithmic(axes, 10)
            axes.set_xlabel("bytes of the record")
            axes.set_ylabel(title)
            axes.set_title(kind, fontsize=9)
    panels[0].legend(fontsize=8)


PLOTS: dict[str, tuple[Callable[[Figure, Sequence[Row]], None], tuple[float, float]]] = {
    "storage": (storage, (6.4, 3.4)),
    "index": (index, (7.6, 3.2)),
    "fig7": (fig7, (9.5, 3.4)),
    "fig8": (fig8, (10.4, 3.4)),
    "changes": (changes, (7.6, 5.6)),
}


def draw_rows(name: str, rows: Sequence[Row], folder: Path) -> None:
    """Write `name`.png and `name`.svg."""
    plot, size = PLOTS[name]
    draw(folder / name, lambda figure: plot(figure, rows), size)


def _panels(figure: Figure, rows: int, columns: int, **more: Any) -> list[Axes]:
    found = figure.subplots(rows, columns, squeeze=False, **more)
    return [axes for row in found for axes in row]


def _lines(
    axes: Axes,
    rows: Iterable[Row],
    series: dict[str, tuple[str, str, str]],
    by: str,
    x: str,
    y: str,
    low: str,
    high: str,
) -> None:
    """A line for each of the `series`, with bars from `low` to `high`."""
    listed = list(rows)
    for name, (label, colour, marker) in series.items():
        points = sorted((r for r in listed if str(r[by]) == name), key=lambda r: r[x])
        if points:
            below = [r[y] - r[low] for r in points]
            above = [r[high] - r[y] for r in points]
            axes.errorbar(
                [r[x] for r in points],
                [r[y] for r in points],
                [below, above],
                color=colour,
                marker=marker,
                label=label,
                **LINE,
            )


def _over_runs(rows: Iterable[Row], field: str) -> list[Row]:
    """One row for all runs of the same: mean, least and most of a field."""
    keys = ("scheme", "change", "record_bytes", "nodes", "users", "split")
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(key) for key in keys)].append(row)
    return [
        {
            **found[0],
            "value": _mean(r[field] for r in found),
            "least": min(r[field] for r in found),
            "most": max(r[field] for r in found),
        }
        for found in groups.values()
    ]


def _logarithmic(axes: Axes, base: int = 2) -> None:
    """Logarithmic axes, the horizontal one to this base, with figures that are easy to read."""
    axes.set_xscale("log", base=base)
    axes.set_yscale("log", subs=(2, 5))
    plain = EngFormatter(sep="\N{NO-BREAK SPACE}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(plain if high < 30 * low else NullFormatter())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
