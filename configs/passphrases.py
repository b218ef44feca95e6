"""Where passphrases come from: a command, a file descriptor, or a person at a terminal. Never an argument or a variable.

Arguments and environment of a process are visible to others on its host and end up in histories and logs; so a passphrase is in neither,
and no message repeats one.
"""

import getpass
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.files import change_passphrase, read
from crypto import keyfile
from crypto.errors import Denied, Malformed

MAX_PASSPHRASE = 4096
COMMAND_TIMEOUT_S = 60


def passphrase_from(command: str | None, fd: int | None = None) -> bytes | None:
    """The passphrase that the command prints, or the next line of the open file descriptor; None if neither is given.

    The line end does not belong to it. `Malformed` if both are given, `Denied` if nothing comes.
    """
    if command and fd is not None:
        raise Malformed("a passphrase comes from a command or from a file descriptor; give one of them")
    if command:
        return _printed_by(command)
    return None if fd is None else _line_of(fd)


def change(paths: Sequence[Path], old: bytes | None, new: bytes | None, *, remove: bool) -> int:
    """Change the passphrase of key files as `change_passphrase` does, asking for what is not given; `remove` leaves none."""
    if remove and new is not None:
        raise Malformed("a new passphrase was given, and none is to be set; choose one")
    if old is None and sys.stdin.isatty() and is_needed(paths):
        old = ask("Present passphrase (empty: none): ") or None
    return change_passphrase(paths, old, new if remove or new else ask_new())


def is_needed(paths: Sequence[Path]) -> bool:
    """Whether any of these key files, as far as they are there, says that it has a passphrase."""
    return any(keyfile.is_sealed(read(path)) for path in paths if path.exists())


def ask(prompt: str = "Passphrase: ") -> bytes:
    """One that a person types unseen; `Denied` without a terminal."""
    if not sys.stdin.isatty():
        raise Denied(
            "a passphrase is needed and there is no terminal to ask on; give a passphrase command or file descriptor"
        )
    return getpass.getpass(prompt).encode()


def ask_new() -> bytes:
    """A new one, typed twice alike."""
    typed = ask("New passphrase: ")
    if ask("Again: ") != typed:
        raise Malformed("the two passphrases differ; nothing was changed")
    return typed


def _printed_by(command: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603
            ["/bin/sh", "-c", command], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Denied(
            f"the passphrase command did not end within {COMMAND_TIMEOUT_S} s; run it by hand to see why"
        ) from None
    if done.returncode != 0 or not done.stdout.strip():
        raise Denied(
            f"the passphrase command failed with exit code {done.returncode}; run it by hand to see why"
        )
    return done.stdout.rstrip(b"\r\n")


def _line_of(fd: int) -> bytes:
    """Read byte by byte, so that a second passphrase may follow on the same descriptor."""
    line = bytearray()
    try:
        while (byte := os.read(fd, 1)) not in (b"", b"\n"):
            line += byte
            if len(line) > MAX_PASSPHRASE:
                raise Malformed(
                    f"file descriptor {fd} holds no line of at most {MAX_PASSPHRASE} bytes, as a passphrase is"
                )
    except OSError as error:
        raise Denied(
            f"file descriptor {fd} cannot be read: {error.strerror}; open it, as in: 3<passphrase-file"
        ) from None
    if not line.strip():
        raise Denied(f"file descriptor {fd} gave no passphrase; write one line to it")
    return bytes(line).rstrip(b"\r")
