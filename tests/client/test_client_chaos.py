"""The history checker catches each way in which a network can break its promises, and a bad scenario is refused with a sentence."""

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from client.chaos.history import (
    Acknowledged,
    FinalBlock,
    History,
    Injected,
    NoAnswer,
    Seen,
    Submitted,
    judge,
)
from client.chaos.report import figures, text, write_report
from client.chaos.runner import Outcome
from client.chaos.scenario import load_scenario
from crypto.errors import Conflict, Malformed

NODES = ("s-1", "s-2", "s-3", "s-4")
SCENARIO = """
title = "a <small> one & sound"
seed = 1
[load]
seconds = 10
[[fault]]
kind = "kill"
at = 1
for = 2
nodes = ["storage-leader"]
"""


def seen(node: str, at: float, height: int, **other) -> Seen:
    root = f"root{height}"
    return replace(Seen(at, "storage", node, height, f"b{height}", height, root), **other)


def good() -> History:
    """Ten blocks of one transaction each, a second apart; a kill from 2 to 4 s."""
    blocks = [FinalBlock(h, f"b{h}", f"b{h - 1}", (f"tx{h}",)) for h in range(1, 11)]
    return History(
        submitted=[Submitted(h - 0.5, "storage", f"tx{h}") for h in range(1, 11)],
        acknowledged=[Acknowledged(float(h), "storage", f"tx{h}", "s-1", h, 0) for h in range(1, 11)],
        seen=[seen(node, h + 0.1, h) for h in range(1, 11) for node in NODES],
        injected=[Injected("kill", ("s-2",), 2.0, 4.0, "kill: s-2")],
        finals={"storage": {node: list(blocks) for node in NODES}},
    )


def violated(history: History, within: float = 5.0) -> dict[str, tuple[str, ...]]:
    return {v.name: v.violations for v in judge(history, within) if not v.holds}


def test_a_good_history_holds_every_property():
    assert violated(good()) == {}
    assert len(judge(good(), 5.0)) == 9


def test_two_nodes_that_serve_different_blocks_at_one_height_are_a_fork():
    history = good()
    history.finals["storage"]["s-3"][4] = FinalBlock(5, "other", "b4", ("tx5",))
    assert "s-3 shows other" in str(violated(history)["no fork"])


def test_a_fork_that_was_seen_for_a_moment_and_is_gone_at_the_end_is_caught():
    history = good()
    history.seen.append(seen("s-4", 20.0, 10, block="other"))
    assert set(violated(history)) == {"no fork"}


def test_nodes_that_executed_different_histories_are_caught():
    history = good()
    history.seen.append(seen("s-4", 20.0, 10, receipts_root="other"))
    assert set(violated(history)) == {"no fork"}


def test_receipts_of_two_transactions_for_one_place_are_a_fork():
    history = good()
    history.submitted.append(Submitted(9.0, "storage", "tx11"))
    history.acknowledged.append(Acknowledged(11.0, "storage", "tx11", "s-2", 10, 0))
    assert "no fork" in violated(history)


@pytest.mark.parametrize(
    "last", [FinalBlock(10, "b10", "elsewhere", ("tx10",)), FinalBlock(12, "b12", "b9", ("tx10",))]
)
def test_a_chain_that_does_not_link_up_or_leaves_heights_out_is_caught(last: FinalBlock):
    history = good()
    for blocks in history.finals["storage"].values():
        blocks[9] = last
    assert set(violated(history)) == {"no fork"}


@pytest.mark.parametrize("txs", [(), ("tx99",), ("tx99", "tx5")])
def test_an_acknowledged_transaction_that_one_node_lacks_or_has_elsewhere_is_lost(txs: tuple[str, ...]):
    history = good()
    history.finals["storage"]["s-2"][4] = FinalBlock(5, "b5", "b4", txs)
    assert "tx5" in str(violated(history)["nothing acknowledged is lost"])


def test_a_transaction_that_is_final_twice_is_caught():
    history = good()
    for blocks in history.finals["storage"].values():
        blocks[7] = FinalBlock(8, "b8", "b7", ("tx8", "tx5"))
    assert set(violated(history)) == {"each transaction is final at most once"}


def test_two_receipts_of_one_transaction_with_different_places_are_caught():
    history = good()
    history.acknowledged.append(Acknowledged(12.0, "storage", "tx5", "s-4", 6, 0))
    assert "each transaction is final at most once" in violated(history)


def test_a_tip_that_falls_over_a_restart_is_caught():
    history = good()
    history.seen.append(seen("s-2", 20.0, 9))
    assert violated(history) == {"no tip falls": ("s-2 fell from height 10 to 9 at 20.0 s",)}


def test_a_tip_may_fall_with_the_loss_of_its_disk_and_only_then():
    history = good()
    history.injected.append(Injected("wipe", ("s-2",), 11.0, 12.0, "wipe: s-2"))
    history.seen += [seen("s-2", 13.0, 1), seen("s-2", 14.0, 10)]
    history.submitted.append(Submitted(12.5, "storage", "tx11"))
    history.acknowledged.append(Acknowledged(13.0, "storage", "tx11", "s-1", 11, 0))
    for blocks in history.finals["storage"].values():
        blocks.append(FinalBlock(11, "b11", "b10", ("tx11",)))
    assert violated(history) == {}
    history.seen.append(seen("s-2", 15.0, 1))
    assert set(violated(history)) == {"no tip falls"}


def test_receipts_that_come_too_late_after_the_last_fault_are_no_progress():
    history = good()
    assert "needed 1.0 s" in str(violated(history, within=0.5))


def test_receipts_of_transactions_sent_before_the_fault_ended_are_no_progress():
    history = good()
    history.submitted = [replace(s, at=1.0) for s in history.submitted]
    assert "acknowledged nothing that was submitted after 4.0 s" in str(violated(history))


def test_a_chain_without_progress_is_caught_beside_one_that_has_it():
    history = good()
    history.finals["sharing"] = {"h-1": []}
    assert "the sharing chain" in str(violated(history))


def test_a_node_that_is_behind_or_silent_at_the_end_is_caught():
    history = good()
    history.finals["storage"]["s-3"] = history.finals["storage"]["s-3"][:9]
    history.finals["storage"]["s-4"] = None
    assert len(violated(history)["every node catches up"]) == 2


def test_a_halted_chain_is_caught():
    history = good()
    history.seen.append(seen("s-1", 11.0, 10, halted="a fork"))
    assert violated(history) == {"no chain halts": ("s-1: a fork",)}


def test_a_fault_that_was_not_carried_out_fails_the_run():
    history = good()
    history.injected[0] = replace(history.injected[0], trouble="it does not answer")
    assert violated(history) == {"faults were carried out": ("kill: s-2: it does not answer",)}


def test_evidence_against_somebody_is_a_failure_unless_somebody_was_made_to_lie():
    history = good()
    history.seen += [seen(node, 11.0, 10, evidence=1) for node in ("s-1", "s-3", "s-4")]
    assert set(violated(history)) == {"no honest node is accused"}
    history.injected.append(Injected("equivocate", ("s-2",), 3.0, 4.0, "equivocate: s-2"))
    assert violated(history) == {}


def test_a_liar_whom_an_honest_node_has_not_caught_is_reported():
    history = good()
    history.injected.append(Injected("equivocate", ("s-2",), 3.0, 4.0, "equivocate: s-2"))
    history.seen += [seen(node, 11.0, 10, evidence=1) for node in ("s-1", "s-3")]
    assert violated(history) == {
        "honest nodes record the contradiction": ("s-4 has no evidence against s-2",)
    }


def full_disk() -> History:
    """s-3's disk is full from 3 to 5 s; it stands at height 3, and catches up."""
    history = good()
    history.injected.append(Injected("disk-full", ("s-3",), 3.0, 5.0, "disk-full: s-3"))
    history.seen = [s for s in history.seen if s.node != "s-3"]
    history.seen += [
        seen("s-3", 2.1, 2),
        seen("s-3", 3.5, 3, alarm="full"),
        seen("s-3", 4.5, 3, alarm="full"),
    ]
    history.seen += [seen("s-3", 6.0, 6), seen("s-3", 10.1, 10)]
    return history


def test_a_full_disk_that_behaves_holds():
    assert violated(full_disk()) == {}


def test_the_second_full_disk_of_a_node_is_judged_by_itself():
    history = full_disk()
    history.injected.append(Injected("disk-full", ("s-3",), 7.0, 8.0, "disk-full: s-3"))
    history.seen.insert(-1, seen("s-3", 7.5, 7, alarm="full"))
    assert violated(history) == {}


def test_each_misbehaviour_of_a_full_disk_is_caught():
    name = "a full disk stops voting, not reading, and heals by itself"
    quiet, voting, unreadable, stuck = (full_disk() for _ in range(4))
    quiet.seen = [replace(s, alarm=None) for s in quiet.seen]
    assert violated(quiet)[name] == ("s-3 raised no alarm",)
    voting.seen = [replace(s, height=4, block="b4") if s.at == 4.5 else s for s in voting.seen]
    assert violated(voting)[name] == ("s-3 went on finalizing with a full disk",)
    unreadable.no_answer.append(NoAnswer(4.0, "storage", "s-3"))
    assert violated(unreadable)[name] == ("s-3 did not answer while its disk was full",)
    stuck.seen = [s for s in stuck.seen if s.node != "s-3" or s.at < 5]
    assert violated(stuck)[name] == ("s-3 did not resume after its disk had room again",)


# --- scenarios and reports ------------------------------------------------------------------------------------------------------


def scenario_file(folder: Path, content: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('kind = "kill"', 'kind = "explode"', "Invalid value 'explode'"),
        ("at = 1", "at = 1\nwhen = 2", "unknown field `when`"),
        ("seed = 1", "seed = 1\nspeed = 2", "unknown field `speed`"),
        ('"storage-leader"', '"storage-9"', "there is no node 'storage-9' in this network"),
        ('"storage-leader"', '"sharing-1"', "there is no node 'sharing-1' in this network"),
        ("for = 2", "for = 20", "it ends after the load"),
        ("at = 1", "at = -1", ">= 0"),
        ('nodes = ["storage-leader"]', "nodes = []", "length >= 1"),
        ("seed = 1", "", "missing required field `seed`"),
        ("seed = 1", "seed = ", "not a valid chaos scenario"),
        (
            'kind = "kill"\nat = 1\nfor = 2\nnodes = ["storage-leader"]',
            'kind = "partition"\nat = 1\nfor = 2\ngroups = [["storage-1"], ["storage-1", "storage-2"]]',
            "a node stands in two groups",
        ),
    ],
)
def test_a_bad_scenario_is_refused_with_what_is_wrong(tmp_path: Path, old: str, new: str, why: str):
    assert old in SCENARIO
    with pytest.raises(Malformed, match=r"scenario.toml") as refused:
        load_scenario(scenario_file(tmp_path, SCENARIO.replace(old, new)))
    assert why in str(refused.value)


def test_a_report_tells_the_same_in_words_numbers_and_a_well_formed_picture(tmp_path: Path):
    scenario = load_scenario(scenario_file(tmp_path, SCENARIO))
    history = good()
    outcome = Outcome(scenario, history, judge(history, 5.0))
    write_report(outcome, tmp_path / "report")
    assert "PASSED" in (tmp_path / "report" / "report.txt").read_text()
    picture = ElementTree.parse(tmp_path / "report" / "chart.svg").getroot()
    assert "a <small> one & sound" in [e.text for e in picture.iter("{http://www.w3.org/2000/svg}text")]
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == len(NODES)
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == len(history.acknowledged) + 1
    numbers = figures(history)[0]
    assert (numbers.acknowledged, numbers.latency_median, numbers.progress_after_last_fault) == (10, 0.5, 1.0)
    with pytest.raises(Conflict):
        write_report(outcome, tmp_path / "report")


def test_a_run_in_which_nothing_was_acknowledged_still_gets_its_report(tmp_path: Path):
    scenario = load_scenario(scenario_file(tmp_path, SCENARIO))
    history = History(finals={"storage": dict.fromkeys(NODES)})
    outcome = Outcome(scenario, history, judge(history, 5.0))
    assert not outcome.holds
    write_report(outcome, tmp_path / "report")
    assert "FAILED" in text(outcome)
    assert math.isnan(figures(history)[0].latency_median)
