"""Sets the project up on a machine with Python 3.11 and nothing else. Standard library only.

Makes `.venv` beside `run_node.py`, installs the locked dependencies with their hashes checked, and starts the program again inside. Where the
dependencies are importable already (an environment the operator made), it does nothing.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
_STAMP = VENV / "installed.sha256"
_NEEDED = (
    "libp2p",
    "pymcl",
    "nacl",
    "msgspec",
    "typer",
    "starlette",
    "uvicorn",
    "httpx2",
    "matplotlib",
    "pytest",
)


def ensure() -> None:
    """Return inside an environment that has every dependency; otherwise make one and replace this process."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            f"Diptych needs Python 3.11 (3.12 works too); this is {sys.version.split()[0]}. Try: python3.11 run_node.py …"
        )
    lock_hash = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    is_current = _STAMP.exists() and _STAMP.read_text() == lock_hash
    if (inside and is_current) or (not inside and all(importlib.util.find_spec(name) for name in _NEEDED)):
        return
    if not is_current:
        _install(lock_hash)
    python = str(VENV / "bin" / "python")
    os.execv(python, [python, *sys.orig_argv[1:]])  # noqa: S606


def _install(lock_hash: str) -> None:
    print(
        "Setting up .venv with the locked dependencies (once, about a minute) …", file=sys.stderr, flush=True
    )
    python = str(VENV / "bin" / "python")
    steps = [
        [sys.executable, "-m", "venv", str(VENV)],
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--require-hashes",
            "-r",
            str(LOCK),
        ],
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
            "-e",
            str(ROOT),
        ],
    ]
    for step in steps:
        if step[1:3] == ["-m", "venv"] and Path(python).exists():
            continue
        if subprocess.run(step, check=False, stdout=sys.stderr).returncode != 0:  # noqa: S603
            sys.exit(
                f"Setting up failed at: {' '.join(step)}\nSee the message above; check the network and the disk, then run again."
            )
    _STAMP.write_text(lock_hash)
