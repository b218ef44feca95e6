"""The report: report.md, and report.html in one file with its pictures, both from nothing but the CSV files and conditions.json of a folder."""

import base64
import html
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.paper.lab import Row
from bench.paper.plots import NODES, PLOTS, SCHEMES, draw_rows
from bench.results import read_rows

EXPERIMENTS = ("storage", "index", "fig7", "fig8", "changes", "claims")
CONDITIONS = "conditions.json"


class Heading(NamedTuple):
    level: int
    text: str


class Words(NamedTuple):
    text: str


class Literal(NamedTuple):
    text: str


class Table(NamedTuple):
    head: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    name: str
    text: str


Block = Heading | Words | Literal | Table | Picture


def make_report(folder: Path) -> None:
    """Draw the pictures anew and write both forms of the report; experiments without a CSV file are said to be missing."""
    blocks = _blocks(folder)
    (folder / "report.md").write_text(_markdown(blocks))
    (folder / "report.html").write_text(_html(blocks, folder))


def _blocks(folder: Path) -> list[Block]:
    conditions = json.loads((folder / CONDITIONS).read_text())
    blocks: list[Block] = [Heading(1, "Diptych beside what the paper compares it with"), *_about(conditions)]
    for name in EXPERIMENTS:
        module = importlib.import_module(f"bench.paper.{name}")
        blocks.append(Heading(2, module.TITLE))
        path = folder / f"{name}.csv"
        if not path.exists():
            blocks.append(Words(f"Not run yet: `python -m bench paper --only {name}`."))
            continue
        rows = read_rows(path)
        blocks += _docstring(module.__doc__ or "")
        if name in PLOTS:
            draw_rows(name, rows, folder)
            blocks.append(Picture(name, module.TITLE))
        blocks += TABLES[name](rows)
        done = conditions["experiments"].get(name)
        if done:
            blocks.append(
                Words(
                    f"Source: `{name}.csv`, {len(rows)} rows; run on {done['date']} at commit `{done['commit']}` in {done['seconds']:.0f} s."
                )
            )
    return blocks


def _about(conditions: dict[str, Any]) -> list[Block]:
    mode = conditions["mode"]
    return [
        Words(
            f"Made by `python -m bench paper{' --quick' if mode == 'quick' else ''}` (mode: {mode}, seed {conditions['seed']}). All schemes run on the same "
            "nodes, cloud, client and cryptography; nodes, cloud, authority and users are processes and threads of one machine and talk over loopback, "
            "so times hold no network latency, and everything shares the cores. Times wobble with whatever else the machine does: where a figure decides, read how far the runs lie apart."
        ),
        Table(
            ["condition", ""],
            [
                *([name, str(value)] for name, value in conditions["machine"].items()),
                ["bundles", ", ".join(conditions["bundles"])],
            ],
        ),
    ]


def _docstring(text: str) -> list[Block]:
    """Paragraphs of a module's docstring; indented lines as they are."""
    blocks: list[Block] = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("    "):
            blocks.append(Literal(paragraph))
        else:
            blocks.append(Words(" ".join(paragraph.split())))
    return blocks


# --- tables ---------------------------------------------------------------------------------------------------------------


def _storage(rows: Sequence[Row]) -> list[Block]:
    fields = ("ciphertext", "key_headers", "signatures", "other", "total", "blobs")
    by_scheme = _grouped((r for r in rows if not r["bundle"].startswith("made")), "scheme")
    means = [
        [_title(name), *(_number(_mean(r[field] for r in found)) for field in fields)]
        for name, found in by_scheme.items()
    ]
    by_bundle = _grouped(rows, "bundle")
    totals = [
        [
            bundle,
            _number(found[0]["plain_bytes"]),
            _number(found[0]["plain_shared_bytes"]),
            *(_number(r["total"]) for r in found),
        ]
        for bundle, found in by_bundle.items()
    ]
    return [
        Words("Mean bytes of a record over the bundles (without the made records):"),
        Table(["scheme", "ciphertext", "key headers", "signatures", "other", "total", "files"], means),
        Words(
            "Total bytes of each. BPDS keeps the shared parts alone: the whole record cannot be had from the cloud."
        ),
        Table(["bundle", "in the clear", "of it shared", *(_title(name) for name in by_scheme)], totals),
    ]


def _index(rows: Sequence[Row]) -> list[Block]:
    counts = sorted({r["shared_parts"] for r in rows})
    table = []
    for name, found in _grouped(rows, "scheme").items():
        for field, title, kinds in (
            ("count", "index entries", ("record.publish",)),
            ("count", "doctor's statements", ("record.attest",)),
            ("count", "requests of a reader", ("access.request",)),
            ("bytes", "bytes to store", ("record.publish", "record.attest")),
        ):
            sums = [
                sum(r[field] for r in found if r["shared_parts"] == k and r["transaction"] in kinds)
                for k in counts
            ]
            table.append([_title(name), title, *map(_number, sums)])
    return [Table(["scheme", "on chain", *(f"k = {k}" for k in counts)], table)]


def _fig7(rows: Sequence[Row]) -> list[Block]:
    blocks: list[Block] = []
    for users, of_users in sorted(_grouped(rows, "users").items()):
        counts = sorted({r["shared_parts"] for r in of_users})
        table = []
        for name, found in _grouped(of_users, "scheme").items():
            cells = {
                r["shared_parts"]: f"{r['mean_ms']:,.0f} ({r['p95_ms']:,.0f}; {r['responses']})"
                for r in found
            }
            table.append([_title(name), *(cells.get(k, "–") for k in counts)])
        blocks += [
            Words(f"{users} users at once: mean response time in ms (95th percentile; responses):" if users > 1 else
                  "One user: mean response time in ms (95th percentile; responses):"),
            Table(["scheme", *(f"k = {k}" for k in counts)], table),
        ]  # fmt: skip
    alone = [r for r in rows if r["users"] == 1]
    shown = [k for k in (1, 6, 9, 50, 200) if any(r["shared_parts"] == k for r in alone)]
    cpu = []
    for name, found in _grouped(alone, "scheme").items():
        cells = {r["shared_parts"]: f"{r['servers_cpu_ms']:.0f} + {r['user_cpu_ms']:.0f}" for r in found}
        cpu.append([_title(name), *(cells.get(k, "–") for k in shown)])
    return [
        *blocks,
        Words("CPU time of one response in ms, all servers + the user, one user:"),
        Table(["scheme", *(f"k = {k}" for k in shown)], cpu),
    ]


def _fig8(rows: Sequence[Row]) -> list[Block]:
    table = []
    for (nodes, users, split), found in _grouped(rows, "nodes", "users", "split").items():
        table.append(
            [
                NODES[str(nodes)][0],
                str(users),
                f"{split:g}",
                f"{_mean(r['mean_ms'] for r in found):,.0f}",
                f"{min(r['mean_ms'] for r in found):,.0f}–{max(r['mean_ms'] for r in found):,.0f}",
                f"{_mean(r['p95_ms'] for r in found):,.0f}",
                f"{_mean(r['per_second'] for r in found):,.0f}",
                f"{_mean(r['nodes_cpu_ms'] for r in found):.1f}",
                f"{_mean(r['load_cpu_ms'] for r in found):.1f}",
            ]
        )
    head = [
        "chains",
        "users",
        "split",
        "mean ms",
        "runs from–to",
        "p95 ms",
        "responses/s",
        "CPU ms of nodes",
        "CPU ms of load",
    ]
    return [Words(f"Runs of each: {len({r['run'] for r in rows})}."), Table(head, table)]


def _changes(rows: Sequence[Row]) -> list[Block]:
    sizes = sorted({r["record_bytes"] for r in rows})
    table = []
    for (change, name), found in _grouped(rows, "change", "scheme").items():
        cells = [change, _title(name)]
        for size in sizes:
            of_size = [r for r in found if r["record_bytes"] == size]
            times = sorted(r["ms"] for r in of_size)
            cells.append(
                f"{times[len(times) // 2]:,.0f} ms; {_number(_mean(r['uploaded_bytes'] for r in of_size))} B; "
                f"{_number(_mean(r['chain_bytes'] for r in of_size))} B"
                if times
                else "–"
            )
        table.append(cells)
    runs = max(len(found) for found in _grouped(rows, "change", "scheme", "record_bytes").values())
    return [
        Words(f"Median time of {runs} runs; mean bytes sent to the cloud; mean bytes on chain:"),
        Table(["change", "scheme", *(f"{_number(size)} B" for size in sizes)], table),
    ]


def _claims(rows: Sequence[Row]) -> list[Block]:
    table = []
    for row in rows:
        if not row["is_known"]:
            verdict = "not measured in this run"
        elif row["holds"]:
            verdict = f"holds: {row['measured']}" if row["measured"] else "holds"
        else:
            verdict = f"**does not hold here**: {row['measured'] or 'a test failed'}"
        tests = "<br>".join(f"`{name}`" for name in (row["tests"] or "").split()) or "measured"
        ran = f"{row['passed']} passed" + (f", {row['failed']} failed" if row["failed"] else "")
        table.append([row["claim"], row["says"], tests, ran if row["tests"] else "", verdict])
    return [Table(["claim", "says", "tests", "ran", "result"], table)]


TABLES: dict[str, Callable[[Sequence[Row]], list[Block]]] = {
    "storage": _storage,
    "index": _index,
    "fig7": _fig7,
    "fig8": _fig8,
    "changes": _changes,
    "claims": _claims,
}


def _grouped(rows: Iterable[Row], *fields: str) -> dict[Any, list[Row]]:
    """The rows by the values of one field, or of several as a tuple, in the order in which they first come."""
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        key = tuple(row[field] for field in fields)
        found[key if len(fields) > 1 else key[0]].append(row)
    return dict(found)


def _title(name: str) -> str:
    return SCHEMES[name][0]


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


# --- forms ----------------------------------------------------------------------------------------------------------------


def _markdown(blocks: Iterable[Block]) -> str:
    return "\n\n".join(map(_as_markdown, blocks)) + "\n"


def _as_markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Words(text) | Literal(text):
            return text
        case Picture(name, text):
            return f"![{text}]({name}.svg)"
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _html(blocks: Iterable[Block], folder: Path) -> str:
    body = "\n".join(_as_html(block, folder) for block in blocks)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Diptych: the paper\'s experiments</title>\n<style>{_CSS}</style></head>\n<body>\n{body}\n</body></html>\n'


def _as_html(block: Block, folder: Path) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Words(text):
            return f"<p>{_inline(text)}</p>"
        case Literal(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Picture(name, text):
            data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
        case Table(head, rows):
            lines = [_line("th", head), *(_line("td", row) for row in rows)]
            return f"<table>\n{chr(10).join(lines)}\n</table>"


def _line(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    """The little Markdown that the blocks use inside a line."""
    escaped = html.escape(text, quote=False).replace("&lt;br&gt;", "<br>")
    for mark, tag in ((r"\*\*", "strong"), (r"\*", "em"), ("`", "code")):
        escaped = re.sub(rf"{mark}([^*`]+){mark}", rf"<{tag}>\1</{tag}>", escaped)
    return escaped


_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:left;vertical-align:top}"
    "img{max-width:100%}code,pre{font-size:12px;overflow-wrap:anywhere}"
)
