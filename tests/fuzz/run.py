"""Fuzz one target, or feed it files again: `python -m tests.fuzz.run TARGET --seconds 60`, `python -m tests.fuzz.run TARGET FILE…`.

Fuzzing needs atheris (requirements-fuzz.lock), which watches what of our code an input reaches and keeps inputs that reach more; its
corpus, and what it finds, stay in `.fuzz/TARGET`. Feeding files needs nothing. `make fuzz` does all targets in turn.
"""

import hashlib
import os
import random
import resource
import sys
import time
import traceback
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

    count, end = 0, time.monotonic() + seconds

    def one(data: bytes) -> None:
        """Ends the process itself: left to libFuzzer, it would wait for the threads of a node for ever."""
        nonlocal count
        if time.monotonic() > end:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(f"{name:24} {count:>10,} inputs, {memory} MiB at most", flush=True)
            os._exit(0)
        count += 1
        try:
            target.run(data)
        except BaseException:
            found = folder / f"found-{hashlib.sha256(data).hexdigest()[:16]}"
            found.write_bytes(data)
            traceback.print_exc()
            print(f"{name} fails; again: python -m tests.fuzz.run {name} {found}", flush=True)
            os._exit(1)

    flags = {
        "rss_limit_mb": MEMORY_MB,
        "timeout": SLOW_S,
        "max_len": target.max_bytes,
        "artifact_prefix": f"{folder}/found-",
    }
    words = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items())]
    words += [str(folder / "corpus"), str(folder / "seeds")]
    atheris.Setup(words, one, custom_mutator=mutated)
    atheris.Fuzz()


app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
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
    app()
