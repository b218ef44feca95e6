"""The chaos scenarios in the simulator: what the files promise holds there too, and what is broken on purpose does not."""

from math import inf
from pathlib import Path

import pytest

from client.chaos.scenario import load_scenario
from protocol.core import Core
from tests.simulation.scenarios import simulate
from tests.simulation.test_simulation_oracles import SendsBeforeItWrites

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "chaos").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_scenario_promises_holds_in_the_simulator(path):
    for outcome in simulate(load_scenario(path), seed=1):
        assert outcome.violation is None
        assert outcome.blocks > 20


def test_a_scenario_and_a_seed_make_one_run():
    scenario = load_scenario(FILES[0])
    first, again, other = (simulate(scenario, seed)[0].digest for seed in (1, 1, 2))
    assert first == again != other


def scenario_of(tmp_path, network: str, fault: str, promise: str = ""):
    file = tmp_path / "scenario.toml"
    file.write_text(f'title = "x"\nseed = 1\n{network}\n[load]\nseconds = 8\n{promise}\n[[fault]]\n{fault}')
    return load_scenario(file)


def test_a_network_that_cannot_go_on_in_time_is_told_from_one_that_can(tmp_path):
    fault = 'kind = "kill"\nat = 1\nfor = 4\nnodes = ["storage-1"]'
    promise = "[expect]\nprogress_within_s = 0.001"
    (outcome,) = simulate(scenario_of(tmp_path, "", fault, promise), seed=1)
    assert outcome.violation
    assert "progress" in outcome.violation


class Patient(Core):
    """Never leaves a view, whatever the clock says."""

    def next_deadline(self) -> float:
        return inf


def test_a_core_that_waits_for_a_dead_leader_for_ever_is_caught():
    path = next(f for f in FILES if f.stem == "leader-killed")
    (outcome,) = simulate(load_scenario(path), 1, Patient)
    assert outcome.violation
    assert "liveness" in outcome.violation


def test_a_core_whose_votes_are_not_durable_when_they_are_sent_is_caught():
    path = next(f for f in FILES if f.stem == "all-killed")
    outcomes = [simulate(load_scenario(path), seed, SendsBeforeItWrites)[0] for seed in range(3)]
    assert any(o.violation and o.violation.startswith(("I8", "I9", "I2")) for o in outcomes), outcomes


def test_operators_who_do_not_say_that_a_disk_was_lost_are_caught():
    path = next(f for f in FILES if f.stem == "disk-lost")
    outcomes = [simulate(load_scenario(path), seed, demand_rejoin=False)[0] for seed in range(8)]
    assert any(o.violation for o in outcomes)
