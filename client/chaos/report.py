"""What a chaos run leaves behind: report.txt for people, report.json and history.json for programs, chart.svg to look at."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from client.chaos.history import History, Injected, Seen
from client.chaos.runner import Outcome
from configs.files import write


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one chain: times in seconds; `longest_pause` is the longest time in which no client got a receipt."""

    chain: str
    submitted: int
    acknowledged: int
    height: int
    latency_median: float
    latency_p95: float
    latency_most: float
    longest_pause: float
    progress_after_last_fault: float | None


def figures(history: History) -> list[Figures]:
    found = []
    for chain in history.finals:
        sent = {s.tx: s.at for s in history.submitted if s.chain == chain}
        acks = sorted((a for a in history.acknowledged if a.chain == chain), key=lambda a: a.at)
        latencies = sorted(a.at - sent[a.tx] for a in acks) or [math.nan]
        healed = history.last_fault_end
        after = [a.at - healed for a in acks if sent[a.tx] >= healed]
        found.append(
            Figures(
                chain,
                len(sent),
                len(acks),
                max((a.height for a in acks), default=0),
                statistics.median(latencies),
                latencies[math.ceil(0.95 * len(latencies)) - 1],
                latencies[-1],
                max((b - a for a, b in pairwise([0.0, *(a.at for a in acks)])), default=0.0),
                min(after, default=None),
            )
        )
    return found


def write_report(outcome: Outcome, folder: Path) -> None:
    """Write the four files into `folder`, which is made; `Conflict` if it holds a report already."""
    numbers = figures(outcome.history)
    data = {
        "scenario": outcome.scenario,
        "holds": outcome.holds,
        "verdicts": outcome.verdicts,
        "faults": outcome.history.injected,
        "figures": numbers,
    }
    files = {
        "report.txt": text(outcome).encode(),
        "report.json": msgspec.json.format(msgspec.json.encode(data), indent=2),
        "history.json": msgspec.json.encode(outcome.history),
        "chart.svg": chart(outcome).encode(),
    }
    for name, content in files.items():
        write(folder / name, content, mode=0o644)


def text(outcome: Outcome) -> str:
    scenario, history = outcome.scenario, outcome.history
    network = scenario.network
    lines = [
        scenario.title,
        f"{network.nodes} nodes on {network.chain}, {network.mode} quorum, timeout {network.base_timeout_ms} ms, "
        f"{scenario.load.clients} clients a chain, seed {scenario.seed}",
        "",
        "faults",
    ]
    lines += [f"  {f.start:5.1f} to {f.end:5.1f} s  {f.what}" for f in history.injected] or ["  none"]
    lines += ["", "what clients saw"]
    for f in figures(history):
        progress = f.progress_after_last_fault
        healed = "never" if progress is None else f"after {progress:.2f} s"
        lines += [
            f"  {f.chain}: {f.acknowledged} of {f.submitted} transactions acknowledged, {f.height} blocks",
            f"    latency median {f.latency_median * 1000:.0f} ms, 95 % within {f.latency_p95 * 1000:.0f} ms, "
            f"all within {f.latency_most:.2f} s",
            f"    longest time without a receipt {f.longest_pause:.2f} s; first new one after the last fault: {healed}",
        ]
    lines += ["", "properties"]
    for verdict in outcome.verdicts:
        lines.append(f"  {'held    ' if verdict.holds else 'VIOLATED'}  {verdict.name}")
        lines += [f"              {violation}" for violation in verdict.violations]
        if verdict.count > len(verdict.violations):
            lines.append(f"              and {verdict.count - len(verdict.violations)} more")
    return "\n".join([*lines, "", "PASSED" if outcome.holds else "FAILED", ""])


# --- the chart ------------------------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT = 1000, 70, 130
_HEIGHTS, _LATENCIES = (88, 288), (330, 510)
"""Top and bottom of the two panels; a lane for each fault follows."""
_LANES, _LANE = 552, 22
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7d00", "#444444")
"""Okabe and Ito's palette, which colour-blind people can tell apart (yellow darkened for white paper)."""
_LETTER = 6.8
"""About the width of a letter."""
_SILENCE_S = 1.0
"""A node that gave no answer for so long has a gap in its line."""


def chart(outcome: Outcome) -> str:
    """Height of every node, latency of every receipt and the faults, over one time axis, as an SVG document."""
    history = outcome.history
    end = max([1.0, *(s.at for s in history.seen), *(f.end for f in history.injected)])
    bottom = _LANES + _LANE * max(1, len(history.injected))

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(at, 0.0), end) / end

    held = sum(v.holds for v in outcome.verdicts)
    result = "PASSED" if outcome.holds else "FAILED"
    colour = "#00734f" if outcome.holds else "#b00020"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + 44}" '
        f'viewBox="0 0 {_WIDTH} {bottom + 44}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(_LEFT, 26, outcome.scenario.title, size=16, weight="bold"),
        _text(_LEFT, 46, f"{result}: {held} of {len(outcome.verdicts)} properties held", fill=colour),
    ]
    for fault in history.injected:
        width = max(x(fault.end) - x(fault.start), 1.5)
        parts.append(
            f'<rect x="{x(fault.start):.1f}" y="{_HEIGHTS[0]}" width="{width:.1f}" height="{bottom - _HEIGHTS[0]}" '
            'fill="#d55e00" opacity="0.07"/>'
        )
    parts += _time_axis(x, end, bottom)
    parts += _height_panel(history, x)
    parts += _latency_panel(history, x)
    parts += _fault_lanes(history.injected, x)
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 12,
    anchor: str = "start",
    weight: str = "normal",
    fill: str = "#222",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'


def _step(extent: float, marks: int) -> float:
    """A round distance (1, 2 or 5 times a power of ten) that puts at most `marks` marks on `extent`."""
    rough = max(extent, 1e-9) / marks
    power = math.pow(10, math.floor(math.log10(rough)))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))


def _time_axis(x: Callable[[float], float], end: float, bottom: float) -> Iterable[str]:
    step = _step(end, 12)
    for number in range(int(end / step) + 1):
        at = number * step
        yield _line(x(at), _HEIGHTS[0], x(at), bottom, "#eee")
        yield _text(x(at), bottom + 16, f"{at:g}", anchor="middle", fill="#555")
    yield _text(
        (x(0) + x(end)) / 2, bottom + 34, "seconds since the load began", anchor="middle", fill="#555"
    )


def _height_panel(history: History, x: Callable[[float], float]) -> Iterable[str]:
    """A line a node. Nodes of a chain mostly agree, so earlier lines are drawn wider and stay visible below later ones."""
    top, bottom = _HEIGHTS
    heights = [s.height for s in history.seen] or [0]
    low, high = min(heights), max([*heights, min(heights) + 1])

    def y(height: float) -> float:
        return bottom - (bottom - top) * (height - low) / (high - low)

    step = max(1, round(_step(high - low, 5)))
    for mark in range(-(-low // step) * step, high + 1, step):
        yield _line(x(0), y(mark), _WIDTH - _RIGHT, y(mark))
        yield _text(x(0) - 8, y(mark) + 4, f"{mark:,}", anchor="end", fill="#555")
    yield _text(x(0), top - 6, "height of the finalized tip, by node", weight="bold")
    row = top + 4
    for chain, nodes in history.finals.items():
        dash = ' stroke-dasharray="7 3"' if chain == "sharing" and len(history.finals) > 1 else ""
        for number, node in enumerate(nodes):
            colour = _COLOURS[number % len(_COLOURS)]
            width = 1.4 + 4.2 * (len(nodes) - 1 - number) / max(1, len(nodes) - 1)
            style = f'fill="none" stroke="{colour}" stroke-width="{width:.1f}" stroke-linejoin="round"{dash}'
            for run in _runs([s for s in history.seen if s.node == node]):
                points = " ".join(f"{x(s.at):.1f},{y(s.height):.1f}" for s in run)
                yield f'<polyline points="{points}" {style}/>'
            legend = _WIDTH - _RIGHT + 12
            yield f'<line x1="{legend}" y1="{row}" x2="{legend + 24}" y2="{row}" {style}/>'
            yield _text(legend + 30, row + 4, node)
            row += 17


def _runs(seen: Sequence[Seen]) -> Iterable[list[Seen]]:
    """The answers of one node, cut where it was silent."""
    run: list[Seen] = []
    for s in seen:
        if run and s.at - run[-1].at > _SILENCE_S:
            yield run
            run = []
        run.append(s)
    if run:
        yield run


def _latency_panel(history: History, x: Callable[[float], float]) -> Iterable[str]:
    """A dot a receipt, at the moment it came; logarithmic."""
    top, bottom = _LATENCIES
    sent = {(s.chain, s.tx): s.at for s in history.submitted}
    dots = [(a.chain, a.at, max(a.at - sent[a.chain, a.tx], 1e-4)) for a in history.acknowledged]
    low = math.floor(math.log10(min((d[2] for d in dots), default=0.01)))
    high = max(low + 1, math.ceil(math.log10(max((d[2] for d in dots), default=1.0))))

    def y(seconds: float) -> float:
        return bottom - (bottom - top) * (math.log10(seconds) - low) / (high - low)

    for power in range(low, high + 1):
        mark = 10.0**power
        yield _line(x(0), y(mark), _WIDTH - _RIGHT, y(mark))
        name = f"{mark:g} s" if mark >= 1 else f"{mark * 1000:g} ms"
        yield _text(x(0) - 8, y(mark) + 4, name, anchor="end", fill="#555")
    yield _text(
        x(0), top - 8, "commit latency of each transaction, at the time of its receipt", weight="bold"
    )
    row = top + 4
    for number, chain in enumerate(history.finals):
        colour = _COLOURS[(0, 5)[number % 2]]
        for _, at, latency in (d for d in dots if d[0] == chain):
            yield f'<circle cx="{x(at):.1f}" cy="{y(latency):.1f}" r="1.7" fill="{colour}" opacity="0.55"/>'
        legend = _WIDTH - _RIGHT + 24
        yield f'<circle cx="{legend}" cy="{row}" r="3.5" fill="{colour}"/>'
        yield _text(legend + 18, row + 4, chain)
        row += 17


def _fault_lanes(faults: Sequence[Injected], x: Callable[[float], float]) -> Iterable[str]:
    yield _text(x(0), _LANES - 8, "faults", weight="bold")
    if not faults:
        yield _text(x(0) + 60, _LANES - 8, "none", fill="#555")
    for number, fault in enumerate(sorted(faults, key=lambda f: f.start)):
        y = _LANES + number * _LANE
        width = max(x(fault.end) - x(fault.start), 3)
        yield (
            f'<rect x="{x(fault.start):.1f}" y="{y + 3}" width="{width:.1f}" height="{_LANE - 8}" rx="2" '
            f'fill="#d55e00" opacity="0.75"/>'
        )
        words, needed = fault.what, len(fault.what) * _LETTER
        if x(fault.end) + 6 + needed < _WIDTH:
            yield _text(x(fault.end) + 6, y + _LANE - 8, words)
        elif x(fault.start) - 6 - needed > 0:
            yield _text(x(fault.start) - 6, y + _LANE - 8, words, anchor="end")
        else:
            fitting = max(8, int(max(width, _WIDTH - x(fault.start)) / _LETTER))
            shown = words if len(words) <= fitting else words[: fitting - 1] + "…"
            yield _text(x(fault.start) + 6, y + _LANE - 8, shown)
