"""Passphrases from commands, file descriptors and terminals, and that they go nowhere else."""

import hashlib
import io
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import run_node
from configs import passphrases
from configs.files import read_key, write_key
from configs.passphrases import passphrase_from
from crypto import keyfile
from crypto.errors import Denied, Malformed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def readable():
    """A descriptor to read the given bytes from."""
    opened = []

    def make(content: bytes) -> int:
        out, into = os.pipe()
        os.write(into, content)
        os.close(into)
        opened.append(out)
        return out

    yield make
    for fd in opened:
        os.close(fd)


def test_the_passphrase_is_what_the_command_prints_without_the_line_end():
    assert passphrase_from("printf 'correct horse \\r\\n'") == b"correct horse "
    assert passphrase_from(None) is None
    assert passphrase_from("") is None


@pytest.mark.parametrize("command", ["exit 3", "true", "echo", "echo leak >&2; false", "/no/such/program"])
def test_a_passphrase_command_that_fails_or_prints_nothing_is_refused_without_its_output(command):
    with pytest.raises(Denied, match="passphrase command failed") as caught:
        passphrase_from(command)
    assert "leak" not in str(caught.value)


def test_a_passphrase_command_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(passphrases, "COMMAND_TIMEOUT_S", 0.05)
    with pytest.raises(Denied, match="did not end"):
        passphrase_from("exec sleep 30")


def test_a_descriptor_gives_one_passphrase_a_line(readable: Callable[[bytes], int]):
    fd = readable(b"old one\r\nnew one\nlast")
    assert [passphrase_from(None, fd) for _ in range(3)] == [b"old one", b"new one", b"last"]
    with pytest.raises(Denied, match="gave no passphrase"):
        passphrase_from(None, fd)


def test_a_descriptor_that_gives_no_line_is_refused_without_what_it_gave(readable: Callable[[bytes], int]):
    with pytest.raises(Malformed, match="no line of at most 4096") as caught:
        passphrase_from(None, readable(b"secret" * 1000))
    assert "secret" not in str(caught.value)
    with pytest.raises(Denied, match="gave no passphrase"):
        passphrase_from(None, readable(b"\n"))
    with pytest.raises(Denied, match="cannot be read"):
        passphrase_from(None, 10_000)
    with pytest.raises(Malformed, match="one of them"):
        passphrase_from("echo x", 0)


# --- as operators and people use them ----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`run_node.py` with these words; what it said. Logging stays as it is: its stream would outlive the capture."""
    monkeypatch.setattr(run_node, "configure", lambda *_: None)

    def call(*words: object, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["run_node.py", *map(str, words)])
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            run_node.run(run_node.app)
        said = "".join(capsys.readouterr())
        assert ended.value.code == code, said
        return said

    return call


@pytest.fixture
def _quick_kdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key derivation that costs nothing."""

    class Quick:
        def __init__(self, *, salt: bytes, **_: int) -> None:
            self._salt = salt

        def derive(self, passphrase: bytes) -> bytes:
            return hashlib.sha256(self._salt + passphrase).digest()

    monkeypatch.setattr(keyfile, "Argon2id", Quick)


@pytest.mark.usefixtures("_quick_kdf")
def test_a_daemons_keys_get_a_new_passphrase_by_command_and_descriptor(
    tmp_path: Path, run: Callable, readable: Callable
):
    for name in ("consensus", "network"):
        write_key(tmp_path / "keys" / f"{name}.key", name.encode())
    (tmp_path / "keys" / "consensus.journal").write_text("no key")
    command = ["passphrase", tmp_path / "keys"]
    assert "changed 2 of 2" in run(*command, "--new-passphrase-command", "echo first")

    def both(lines: bytes) -> list[object]:
        fd = readable(lines)
        return [*command, "--passphrase-fd", fd, "--new-passphrase-fd", fd]

    assert "changed 2 of 2" in run(*both(b"first\nsecond\n"))
    assert read_key(tmp_path / "keys" / "network.key", b"second") == b"network"
    assert "done before" in run(*both(b"first\nsecond\n"))
    refused = run(*both(b"hunter2\nthird\n"), code=1)
    assert "does not open" in refused
    assert "hunter2" not in refused
    assert "changed 2 of 2" in run(*command, "--passphrase-fd", readable(b"second\n"), "--remove")
    assert read_key(tmp_path / "keys" / "consensus.key") == b"consensus"


def test_what_cannot_be_changed_is_said(tmp_path: Path, run: Callable):
    (tmp_path / "keys").mkdir()
    assert "no key file" in run("passphrase", tmp_path / "keys", "--remove", code=1)
    write_key(tmp_path / "x.key", b"secret")
    assert "no terminal" in run("passphrase", tmp_path / "x.key", code=1)
    both = ["--remove", "--new-passphrase-command", "echo x"]
    assert "choose one" in run("passphrase", tmp_path / "x.key", *both, code=1)
    assert "Examples" in run("passphrase", "--help")
    assert "Examples" in run("signer", "--help")


def test_a_person_at_a_terminal_is_asked_twice_and_nothing_is_echoed(tmp_path: Path):
    write_key(tmp_path / "x.key", b"secret")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "run_node.py", "passphrase", str(tmp_path / "x.key")])
    shown = b""
    for prompt in (b"New passphrase: ", b"Again: "):
        while not shown.endswith(prompt):
            shown += os.read(terminal, 1024)
        os.write(terminal, b"typed unseen\n")
    try:
        while chunk := os.read(terminal, 1024):
            shown += chunk
    except OSError:  # Linux says EIO at the end of a terminal
        pass
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert b"changed 1 of 1" in shown
    assert b"typed" not in shown
    assert read_key(tmp_path / "x.key", b"typed unseen") == b"secret"


@pytest.mark.usefixtures("_quick_kdf")
def test_a_daemon_reads_its_passphrase_from_a_descriptor(
    tmp_path: Path, run: Callable, readable: Callable, monkeypatch
):
    network = tmp_path / "net"
    run("devnet", "--dir", network, "--storage", "1", "--sharing", "1", "--only-make")
    run("passphrase", network / "cloud" / "keys", "--new-passphrase-command", "echo secret")
    check = ["cloud", "--config", network / "cloud" / "config.toml", "--check"]
    assert "none was given" in run(*check, code=1)
    for line, code, said in ((b"secret\n", 0, "is valid"), (b"wrong\n", 1, "does not open")):
        monkeypatch.setenv("DIPTYCH_PASSPHRASE_FD", str(readable(line)))
        assert said in run(*check, code=code)
