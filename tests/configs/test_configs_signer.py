"""Signing keys in another process: honest, broken and lying ones, all real subprocesses."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs import signer
from configs.files import read_key, write_key
from configs.signer import CommandCesSigner, CommandSigner
from crypto import ces
from crypto.codec import encode
from crypto.errors import Conflict, Denied, Malformed, Unauthentic, Unavailable
from crypto.sign import SigningKey, is_valid
from protocol.tx import Request, Tx, check_tx

ROOT = Path(__file__).resolve().parents[2]
KEY = SigningKey(b"k" * 32)
SIGNER = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'run_node.py'))} signer --key"


@pytest.fixture
def connect() -> Iterator[Callable[..., CommandSigner]]:
    made: list = []

    def make(command: str, kind: type = CommandSigner) -> CommandSigner:
        made.append(kind(command))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[str], str]:
    """A command whose Python body has `line` (its words) and `n` (lines so far), and answers by `say`."""

    def make(body: str) -> str:
        script = tmp_path / "signer.py"
        script.write_text(
            "import sys, os, time, pathlib\n"
            "def say(text): sys.stdout.write(text + '\\n'); sys.stdout.flush()\n"
            f"KEY = 'ok ed25519 {KEY.public.hex()}'\n"
            f"RUN = pathlib.Path({str(tmp_path / 'runs')!r})\n"
            "RUN.open('a').write('x')\nruns = len(RUN.read_text())\n"
            "for n, line in enumerate(iter(sys.stdin.readline, '')):\n    line = line.split()\n"
            + "\n".join("    " + row for row in body.splitlines())
        )
        return f"exec {shlex.quote(sys.executable)} {shlex.quote(str(script))}"

    return make


def test_a_key_file_behind_a_command_signs_as_the_key_itself(tmp_path: Path, connect):
    write_key(tmp_path / "x.key", KEY.seed)
    remote = connect(f"{SIGNER} {shlex.quote(str(tmp_path / 'x.key'))}")
    assert remote.public == KEY.public
    assert remote.sign("vote", b"payload") == KEY.sign("vote", b"payload")
    tx = Tx.make("chain", remote, bytes(16), 1, Request(bytes(16), "research"))
    assert check_tx(encode(tx), "chain") == tx
    large = os.urandom(1 << 20)
    assert is_valid(KEY.public, "ces", large, remote.sign("ces", large)), "more than a pipe holds at once"


def test_a_signer_makes_its_own_key_and_keeps_it_under_a_passphrase(tmp_path: Path, connect):
    path = shlex.quote(str(tmp_path / "x.key"))
    made = os.popen(f"{SIGNER} {path} --make ed25519 --passphrase-command 'echo secret'").read().split()
    with pytest.raises(Denied):
        read_key(tmp_path / "x.key")
    (tmp_path / "passphrase").write_text("secret\n")
    remote = connect(f"{SIGNER} {path} --passphrase-fd 3 3<{shlex.quote(str(tmp_path / 'passphrase'))}")
    assert made == ["ok", "ed25519", remote.public.hex()]


def test_a_signer_restricted_to_a_purpose_signs_nothing_else_and_nothing_foreign(tmp_path: Path, connect):
    write_key(tmp_path / "x.key", KEY.seed)
    remote = connect(f"{SIGNER} {shlex.quote(str(tmp_path / 'x.key'))} --only vote --only ticket")
    remote.sign("vote", b"1")
    remote.sign("ticket", b"1")
    with pytest.raises(Denied, match="the signer refuses: this signer signs vote, ticket, not 'tx'"):
        remote.sign("tx", b"1")
    with pytest.raises(Denied, match="none of Diptych's"):
        remote._process.sign(b"GET / HTTP/1.1")
    remote.sign("vote", b"2")


@pytest.mark.parametrize("suite", ces.SUITES)
def test_a_doctor_signs_records_with_a_key_that_is_elsewhere(tmp_path: Path, connect, suite):
    signer.make_key(tmp_path / "ces.key", suite, None)
    remote = connect(f"{SIGNER} {shlex.quote(str(tmp_path / 'ces.key'))}", CommandCesSigner)
    parts, about = (b"one", b"two"), {"record": bytes(16), "patient": bytes(32), "doctor": bytes(32)}
    signature = ces.sign(parts, remote, **about, created_ms=0, profile="safe")
    ces.verify_full(signature, signature.commitments(parts), suite, remote.public)
    with pytest.raises(Malformed, match=f"suite '{suite}'; this needs ed25519"):
        connect(f"{SIGNER} {shlex.quote(str(tmp_path / 'ces.key'))}")


def test_threads_share_one_signer(tmp_path: Path, connect):
    write_key(tmp_path / "x.key", KEY.seed)
    remote = connect(f"{SIGNER} {shlex.quote(str(tmp_path / 'x.key'))}")
    with ThreadPoolExecutor(8) as pool:
        signatures = list(pool.map(lambda i: remote.sign("tx", b"%d" % i), range(64)))
    assert signatures == [KEY.sign("tx", b"%d" % i) for i in range(64)]


def test_a_signer_that_dies_is_started_again_and_the_same_key_expected(tmp_path: Path, connect, scripted):
    write_key(tmp_path / "x.key", KEY.seed)
    remote = connect(f"{SIGNER} {shlex.quote(str(tmp_path / 'x.key'))}")
    first = remote._process._process
    first.kill()
    first.wait()
    assert remote.sign("vote", b"1") == KEY.sign("vote", b"1")
    other = SigningKey(b"o" * 32).public.hex()
    command = scripted(f"say(KEY if runs == 1 else 'ok ed25519 {other}')\nif runs == 1: sys.exit()")
    changed = connect(command)
    with pytest.raises(Conflict, match="another key"):
        changed.sign("vote", b"1")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("sys.exit()", "ended"),
        ("say('hello')", "neither ok nor error"),
        ("say('ok ed25519 \\u00e9')", "ASCII"),
        ("say('x' * 100_000)", "too much"),
        ("time.sleep(60)", "did not answer within"),
        ("os.close(1); time.sleep(60)", "ended"),
    ],
)
def test_a_command_that_does_not_answer_properly_is_unavailable(connect, scripted, monkeypatch, body, word):
    monkeypatch.setattr(signer, "ANSWER_S", 0.7 if "60" in body else 10)
    monkeypatch.setattr(signer, "END_S", 0.01)
    with pytest.raises(Unavailable, match=word):
        connect(scripted(body))


def test_a_command_that_never_reads_does_not_block_its_user(connect, scripted, monkeypatch):
    remote = connect(scripted("say(KEY); time.sleep(60)"))
    monkeypatch.setattr(signer, "ANSWER_S", 0.3)
    monkeypatch.setattr(signer, "END_S", 0.01)
    with pytest.raises(Unavailable, match="did not answer"):
        remote.sign("ces", bytes(1 << 20))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (f"ok {'00' * 64}", Unauthentic),
        (f"ok {KEY.sign('vote', b'2').hex()}", Unauthentic),
        ("ok", Unauthentic),
        ("ok zz", Malformed),
        ("error the token is locked\\x1b[2J", Denied),
    ],
)
def test_a_false_signature_or_a_refusal_is_never_passed_on(connect, scripted, answer, error):
    remote = connect(scripted(f"say(KEY if n == 0 else '{answer}')"))
    with pytest.raises(error) as caught:
        remote.sign("vote", b"1")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("answer", ["ok rsa 00", "ok ed25519 zz", "ok"])
def test_a_key_of_an_unknown_suite_is_refused_by_name(connect, scripted, answer):
    with pytest.raises(Malformed):
        connect(scripted(f"say('{answer}')"))


def test_no_process_is_left_behind(tmp_path: Path, connect, scripted):
    with pytest.raises(Malformed):
        connect(scripted("pathlib.Path(sys.argv[0] + '.pid').write_text(str(os.getpid()))\nsay('ok rsa 00')"))
    pid = int((tmp_path / "signer.py.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_served_side_refuses_what_is_no_request(tmp_path: Path):
    write_key(tmp_path / "x.key", KEY.seed)
    lines = [
        b"public\n",
        b"sign\n",
        b"sign zz\n",
        b"sign \xff\n",
        b"export\n",
        b"\n",
        b"sign " + b"diptych/1/vote".hex().encode(),
    ]
    first, *others = signer.serve(tmp_path / "x.key", None, [], lines)
    assert first == f"ok ed25519 {KEY.public.hex()}"
    assert all(answer.startswith("error ") for answer in others)
    assert len(others) == 6
