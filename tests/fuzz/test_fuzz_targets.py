"""The fuzz targets hold for valid inputs and for some changed ones, they notice what they are for, and `make fuzz` runs them under atheris."""

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from node import api as node_api
from node import daemon
from tests.fuzz import systems
from tests.fuzz.mutation import mutate
from tests.fuzz.run import FOLDER
from tests.fuzz.systems import TARGETS

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


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name, request, capsys):
    if "fuzz" not in request.config.getoption("markexpr"):
        pytest.skip("run with: make fuzz")
    assert importlib.util.find_spec("atheris"), "atheris is not installed; run: make fuzz"
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 600)
    said = (done.stderr + done.stdout).splitlines()
    with capsys.disabled():
        print(said[-1])
    assert done.returncode == 0, "\n".join(said[-60:])
