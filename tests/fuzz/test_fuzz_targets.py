"""The fuzz targets hold for valid inputs and for some changed ones, they notice what they are for, and `make fuzz` runs them under atheris."""

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from crypto.codec import encode
from crypto.errors import DiptychError
from node import api as node_api
from node import daemon
from protocol.block import decode_message
from tests.fuzz import systems
from tests.fuzz.mutation import mutate
from tests.fuzz.recorded import LIAR, chain_messages
from tests.fuzz.run import FOLDER
from tests.fuzz.systems import TARGETS
from tests.simulation.cluster import WALL0

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    """What the targets start, and what they change in the modules under them, ends with them."""
    before = daemon.wall_ms, node_api.MAX_WAIT_S
    yield
    systems.stop()
    daemon.wall_ms, node_api.MAX_WAIT_S = before
    structlog.reset_defaults()


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_holds_for_its_seeds_and_for_changes_of_them(name):
    target, rng = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    for data in seeds:
        target.run(data)
    for _ in range(60):
        data = mutate(rng.choice(seeds), rng, target.max_bytes)
        try:
            target.run(data)
        except BaseException:
            (FOLDER / name).mkdir(parents=True, exist_ok=True)
            (FOLDER / name / "found").write_bytes(data)
            raise


def test_a_core_that_a_liar_floods_stays_as_small_as_it_was():
    core, rng = systems.fresh_core(), random.Random(5)
    messages, taken = [encode(message) for message in chain_messages()], 0
    for number in range(20_000):
        now, wall = number / 1000, WALL0 + number
        with suppress(DiptychError):
            message = decode_message(mutate(rng.choice(messages), rng, 1 << 16))
            core.receive(LIAR, systems.lie(message), now, wall)
            taken += 1
        if now >= core.next_deadline():
            core.tick(now, wall)
        core.take_effects()
    assert taken > 2000
    assert core.halted is None
    assert sum(len(held) for held in vars(core).values() if hasattr(held, "__len__")) < 1000


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name, capsys):
    assert importlib.util.find_spec("atheris"), "atheris is not installed; run: make fuzz"
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 600)
    said = (done.stderr + done.stdout).splitlines()
    with capsys.disabled():
        print(said[-1])
    assert done.returncode == 0, "\n".join(said[-60:])
