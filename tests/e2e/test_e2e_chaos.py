"""Chaos on real processes: `run_node.py chaos` breaks a network, judges it, says so by its exit code and leaves a report."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from e2e_files import ROOT

from node.devnet import Supervisor

SCENARIOS = sorted((ROOT / "configs" / "chaos").glob("*.toml"))
SHORT = """
title = "A killed leader, then a disconnected node"
seed = 7
[load]
seconds = 5.5
[[fault]]
kind = "kill"
at = 0.5
for = 1
nodes = ["storage-leader"]
[[fault]]
kind = "disconnect"
at = 4
for = 1
nodes = ["storage-random"]
"""
IMPATIENT = """
title = "Progress that nobody could make in time"
seed = 8
[load]
seconds = 2
clients = 1
[expect]
progress_within_s = 0.000001
[[fault]]
kind = "partition"
at = 0.5
for = 1
groups = [["storage-1", "storage-2"], ["storage-3", "storage-4"]]
"""


def write_scenario(folder: Path, content: str) -> Path:
    (folder / "scenario.toml").write_text(content)
    return folder / "scenario.toml"


def test_a_network_that_survives_its_faults_passes_and_leaves_a_report(run: Callable, tmp_path: Path):
    done = run("run_node.py", "chaos", write_scenario(tmp_path, SHORT), "--out", tmp_path / "reports")
    assert "1 of 1 scenarios passed" in done.stderr
    (report,) = (tmp_path / "reports").iterdir()
    files = {"report.txt", "report.json", "history.json", "chart.svg", "logs"}
    assert {f.name for f in report.iterdir()} == files
    data = json.loads((report / "report.json").read_text())
    assert data["holds"]
    assert [f["kind"] for f in data["faults"]] == ["kill", "disconnect"]
    assert data["figures"][0]["acknowledged"] > 20
    history = json.loads((report / "history.json").read_text())
    disconnected = data["faults"][1]["nodes"][0]
    tips = [
        (s["height"], s["node"] == disconnected)
        for s in history["seen"]
        if data["faults"][1]["start"] + 0.5 < s["at"] < data["faults"][1]["end"]
    ]
    assert len({height for height, is_cut in tips if is_cut}) == 1, "the disconnected node stood still"
    assert {f.name for f in (report / "logs").iterdir()} == {f"storage-{n}.txt" for n in (1, 2, 3, 4)}


def test_a_property_that_fails_is_named_and_the_exit_code_is_1(run: Callable, tmp_path: Path):
    path = write_scenario(tmp_path, IMPATIENT)
    done = run("run_node.py", "chaos", path, "--out", tmp_path / "reports", code=1)
    assert "VIOLATED progress within 1e-06 s after the last fault" in done.stderr
    assert "failed: scenario" in done.stderr
    (report,) = (tmp_path / "reports").iterdir()
    assert not json.loads((report / "report.json").read_text())["holds"]


def test_a_scenario_with_a_mistake_is_refused_before_anything_starts(run: Callable, tmp_path: Path):
    path = write_scenario(tmp_path, SHORT.replace("storage-leader", "storage-5"))
    done = run("run_node.py", "chaos", path, "--out", tmp_path / "reports", code=1)
    assert "fault 1 (kill): there is no node 'storage-5' in this network" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_the_scenarios_that_come_with_the_project_are_valid(run: Callable):
    run("run_node.py", "chaos", "--check", *SCENARIOS)


def test_a_node_without_chaos_in_its_config_takes_no_faults(net: Supervisor):
    url = net.daemons["storage-1"].url
    answer = httpx2.put(f"{url}/chaos", json={"disk_full": True}, trust_env=False)
    assert answer.status_code == 404


@pytest.mark.campaign
@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_every_scenario_passes(run: Callable, tmp_path: Path, path: Path):
    run("run_node.py", "chaos", path, "--out", tmp_path)
