"""Fuzz one target, or feed it files again: `python -m tests.fuzz.run TARGET --seconds 60`, `python -m tests.fuzz.run TARGET FILE…`.

Fuzzing needs atheris (requirements-fuzz.lock), which watches what of our code an input reaches and keeps inputs that reach more; its
corpus, and what it finds, stay in `.fuzz/TARGET`. Feeding files needs nothing. `make fuzz` does all targets in turn.
"""

import random
import sys
from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path(".fuzz")
PACKAGES = ["crypto", "protocol", "configs", "node", "cloudstub", "client"]
MEMORY_MB, SLOW_S = 1024, 30
"""An input that makes the process larger or takes longer is a finding."""


def fuzz(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=PACKAGES):
        from tests.fuzz.systems import TARGETS
    from tests.fuzz.mutation import mutate

    target, folder = TARGETS[name], FOLDER / name
    for part in ("corpus", "seeds"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    seeds = target.seeds()
    for number, data in enumerate(seeds):
        (folder / "seeds" / str(number)).write_bytes(data)

    def mutated(data: bytes, limit: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:  # most decoding is out of sight in C, so the corpus keeps few of the seeds
            data = rng.choice(seeds)
        return (
            mutate(data, rng, limit) if target.is_tree and rng.random() < 0.9 else atheris.Mutate(data, limit)
        )

    flags = {
        "max_total_time": seconds,
        "rss_limit_mb": MEMORY_MB,
        "timeout": SLOW_S,
        "max_len": target.max_bytes,
        "artifact_prefix": f"{folder}/",
        "print_final_stats": 1,
    }
    words = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items())]
    words += [str(folder / "corpus"), str(folder / "seeds")]
    atheris.Setup(words, target.run, custom_mutator=mutated)
    atheris.Fuzz()


def main(
    target: Annotated[str, typer.Argument(help="The name of a target, such as wire-objects.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Inputs to feed to it again.")] = None,
    seconds: Annotated[int, typer.Option(help="How long to fuzz.")] = 60,
) -> None:
    """Feed one target with files, or with what atheris makes up."""
    if not files:
        return fuzz(target, seconds)
    from tests.fuzz import systems

    try:
        for file in files:
            systems.TARGETS[target].run(file.read_bytes())
    finally:
        systems.stop()


if __name__ == "__main__":
    typer.run(main)
