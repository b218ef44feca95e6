"""The report of the paper's experiments: made from rows alone, the same each time, and honest about what does not hold or was not run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.paper import claims
from bench.paper.lab import Piece, made_parts, quantile
from bench.paper.report import CONDITIONS, EXPERIMENTS, make_report
from bench.paper.run import _Left, run
from bench.results import read_rows, write_rows
from crypto.errors import Conflict

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = ("traditional", "bpds", "diptych", "diptych_one_chain")
Row = dict[str, Any]


def stored(**totals: int) -> list[Row]:
    kinds = {"ciphertext": 1, "key_headers": 2, "signatures": 3, "other": 4, "blobs": 5}
    plain = {"bundle": "a.json", "keeps_whole": 1, "plain_bytes": 9, "plain_shared_bytes": 5}
    return [{**plain, "scheme": name, **kinds, "total": total} for name, total in totals.items()]


def answered(**means: dict[int, float]) -> list[Row]:
    rest = {
        "p95_ms": 2.0,
        "servers_cpu_ms": 3.0,
        "user_cpu_ms": 4.0,
        "responses": 5,
        "users": 1,
    }
    return [
        {
            "scheme": name,
            "shared_parts": k,
            **rest,
            "mean_ms": ms,
            "p50_ms": ms,
            "min_ms": ms - 1,
            "max_ms": ms + 1,
        }
        for name, points in means.items()
        for k, ms in points.items()
    ]


def sent(**counts: dict[int, int]) -> list[Row]:
    return [
        {"scheme": name, "shared_parts": k, "chain": "sharing", "transaction": kind, "count": n, "bytes": 700 * n}
        for name, points in counts.items()
        for k, n in points.items()
        for kind in ("record.publish", "record.attest")
    ] + [
        {"scheme": name, "shared_parts": k, "chain": "sharing", "transaction": "access.request", "count": k if name == "bpds" else 1, "bytes": 200}
        for name, points in counts.items()
        for k in points
    ]  # fmt: skip


def loaded(**means: float) -> list[Row]:
    rest = {
        "responses": 9,
        "seconds": 1.0,
        "per_second": 9.0,
        "p50_ms": 5.0,
        "nodes_cpu_ms": 1.5,
        "load_cpu_ms": 0.5,
        "run": 0,
    }
    return [
        {"nodes": name[1:], "users": users, "split": 0.5 if name == "n2x4" else 1.0, **rest, "mean_ms": ms, "p95_ms": 2 * ms}
        for name, ms in means.items()
        for users in (64, 512)
    ]  # fmt: skip


def changed(**uploads: dict[int, int]) -> list[Row]:
    return [
        {"scheme": name, "change": change, "record_bytes": size, "ms": 80.0 + run, "uploaded_bytes": n, "chain_bytes": 1300, "transactions": 2}
        for name, points in uploads.items()
        for size, n in points.items()
        for change in ("redefine a part", "change rights")
        for run in range(3)
    ]  # fmt: skip


ROWS: dict[str, list[Row]] = {
    "storage": stored(traditional=90, bpds=30, diptych=60, diptych_one_chain=59),
    "index": sent(traditional={1: 2, 9: 2}, bpds={1: 1, 9: 9}, diptych={1: 2, 9: 2}, diptych_one_chain={1: 1, 9: 1}),
    "fig7": answered(bpds={1: 50, 9: 450}, diptych={1: 50, 9: 51, 200: 55}, diptych_one_chain={1: 50, 9: 52}),
    "fig8": loaded(n2x4=800, n1x4=1500, n1x8=2000),
    "changes": changed(bpds={10_000: 20_000, 1_000_000: 800_000}, diptych={10_000: 3_000, 1_000_000: 3_100}),
}  # fmt: skip
DONE = {"date": "2026-01-02", "commit": "0123456789", "seconds": 3.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        write_rows(tmp_path / f"{name}.csv", rows)
    conditions = {
        "mode": "quick",
        "seed": 7,
        "bundles": ["a.json"],
        "machine": {"processor": "abacus <64 beads>", "cores": "2"},
        "experiments": dict.fromkeys(ROWS, DONE),
    }
    (tmp_path / CONDITIONS).write_text(json.dumps(conditions))
    return tmp_path


def test_a_report_is_made_from_the_rows_alone_and_is_the_same_each_time(folder: Path):
    make_report(folder)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {f"{name}.{kind}" for name in ROWS for kind in ("png", "svg")} <= made.keys()
    make_report(folder)
    assert made == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_report_states_conditions_rows_and_what_was_not_run(folder: Path):
    make_report(folder)
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for words in ("seed 7", "abacus", "2026-01-02", "0123456789", "python -m bench paper --quick"):
        assert words in text
        assert words in page
    assert "| Diptych | 50 (2; 5) | 51 (2; 5) | 55 (2; 5) |" in text
    assert "--only claims" in text
    assert "<64 beads>" not in page, "what comes from elsewhere is text in the page, never markup"
    assert page.count("data:image/png;base64,") == len(ROWS)
    assert "http" not in page, "the page needs nothing from elsewhere"


def results(**other: list[Row]) -> dict[str, list[Row]]:
    return {**ROWS, **other}


def verdicts(of: dict[str, list[Row]]) -> dict[str, bool]:
    found = {claim.name: claim.measured(of) for claim in claims.CLAIMS}
    return {name: verdict.holds for name, verdict in found.items() if verdict is not None}


def test_measured_claims_hold_where_the_numbers_say_so():
    assert verdicts(results()) == dict.fromkeys(("C5", "C6", "C7", "C8", "C9"), True)


@pytest.mark.parametrize(
    ("claim", "other"),
    [
        ("C5", {"storage": stored(traditional=50, bpds=30, diptych=60)}),
        ("C5", {"storage": stored(traditional=90, bpds=70, diptych=60)}),
        ("C6", {"index": sent(bpds={1: 1, 9: 9}, diptych={1: 2, 9: 3})}),
        ("C6", {"index": sent(bpds={1: 1, 9: 5}, diptych={1: 2, 9: 2})}),
        ("C7", {"fig7": answered(bpds={1: 50, 9: 450}, diptych={1: 50, 9: 51, 200: 61})}),
        ("C8", {"fig8": loaded(n2x4=1500, n1x4=1400, n1x8=2000)}),
        ("C8", {"fig8": loaded(n2x4=1500, n1x4=1600, n1x8=1400)}),
        ("C9", {"changes": changed(bpds={9: 1, 99: 1}, diptych={9: 3_000, 99: 7_000})}),
    ],
)
def test_a_claim_that_the_numbers_contradict_does_not_hold(claim: str, other: dict[str, list[Row]]):
    assert verdicts(results(**other)) == {**dict.fromkeys(("C5", "C6", "C7", "C8", "C9"), True), claim: False}


def test_claims_are_not_judged_by_numbers_that_there_are_not():
    assert verdicts({name: [] for name in ROWS}) == {}


def test_a_failed_test_is_told_in_the_table(folder: Path):
    row = {
        "claim": "C1",
        "says": "so",
        "tests": "tests/x.py::test_y",
        "passed": 1,
        "failed": 1,
        "measured": "",
    }
    write_rows(folder / "claims.csv", [{**row, "holds": 0, "is_known": 1}])
    make_report(folder)
    assert (
        "| C1 | so | `tests/x.py::test_y` | 1 passed, 1 failed | **does not hold here**: a test failed |"
        in (folder / "report.md").read_text()
    )


def test_tests_are_really_run_and_one_that_is_not_there_counts_as_failed():
    test = "tests/protocol/test_protocol_quorum.py::test_any_two_quorums_share_a_member_and_all_members_together_are_one"
    found = claims._run_tests([test])
    assert found[test][0] > 0
    assert not found[test][1]
    assert claims._run_tests(["tests/protocol/test_protocol_quorum.py::test_nothing"]) == {
        "tests/protocol/test_protocol_quorum.py::test_nothing": (0, True)
    }


def test_every_test_that_a_claim_names_exists():
    for claim in claims.CLAIMS:
        for test in claim.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test


def test_rows_of_another_run_are_not_mixed_in(folder: Path):
    with pytest.raises(Conflict, match="--out"):
        run(folder, False, 8, [Path("a.json")], (), fresh=False)
    assert read_rows(folder / "storage.csv") == ROWS["storage"]


def test_rows_of_another_run_all_go_when_one_experiment_is_begun_afresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bench.paper.storage.pieces", lambda _: [Piece("one", 1, lambda: ROWS["storage"])])
    run(folder, True, 8, [Path("a.json")], ["storage"], fresh=True)
    assert {path.stem for path in folder.glob("*.csv")} == {"storage"}
    assert "seed 8" in (folder / "report.md").read_text()
    monkeypatch.setattr("bench.paper.index.pieces", lambda _: [Piece("one", 1, lambda: ROWS["index"])])
    run(folder, True, 8, [Path("a.json")], ["index"], fresh=True)
    assert {path.stem for path in folder.glob("*.csv")} == {"storage", "index"}, "of this run, rows stay"


def test_the_time_that_is_left_follows_the_pace_so_far():
    left = _Left(100)
    assert str(left) == "about 2 min left"
    left.done(10, 20)
    assert str(left) == "about 3 min left"
    left.done(90, 180)
    assert str(left) == "about 0 s left"


def test_made_records_are_the_same_for_a_seed_and_have_the_size_that_is_asked_for():
    parts = made_parts(1, 2, 1, 5_000)
    assert [p.label for p in parts] == ["m5-1", "m5-2", "m8-1"]
    assert parts == made_parts(1, 2, 1, 5_000)
    assert parts != made_parts(2, 2, 1, 5_000)
    for part in parts:
        assert abs(len(part.content) - 5_000) < 10
        assert json.loads(part.content)["resourceType"] == "Observation"


def test_a_quantile_is_a_value_that_was_seen():
    assert [quantile([4.0, 1.0, 3.0, 2.0], q) for q in (0.0, 0.5, 0.95, 1.0)] == [1.0, 2.0, 4.0, 4.0]


@pytest.mark.campaign
def test_the_quick_mode_gives_the_whole_report(tmp_path: Path):
    words = [sys.executable, "-m", "bench", "paper", "--quick", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Not run yet" not in text
    for name in EXPERIMENTS:
        assert read_rows(tmp_path / "out" / f"{name}.csv")
    assert not [r["claim"] for r in read_rows(tmp_path / "out" / "claims.csv") if r["failed"]]
