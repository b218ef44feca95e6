"""Keys that are not in the process that uses them: a signer command, which may front an HSM, another user or another machine.

The command is started through /bin/sh once and answers lines on standard input with lines on standard output until its input ends:

    public        ->  ok SUITE HEX          the suite and public key: `ed25519` with 32 bytes, or a CES suite with its encoding
    sign HEX      ->  ok HEX                a signature over exactly these bytes
                      error SENTENCE        to either, for people

Every message begins with `diptych/1/<domain> 00`, so a signer can tell votes from transactions and refuse what is not its business. An
answer is checked against the public key before it is used, and the public key against the one that the first process told. `serve` is
the other side: key files as such a command.
"""

import os
import select
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from threading import Lock

from configs.files import read_key, write_key
from configs.settings import Settings
from crypto import ces
from crypto.errors import Conflict, Denied, DiptychError, Malformed, Unauthentic, Unavailable
from crypto.sign import SEED_BYTES, Ed25519Signer, SigningKey, domain_tag, is_valid

ED25519 = "ed25519"
ANSWER_S = 10
"""Seconds that a signer may take, over a start of its process as over an answer."""
END_S = 1
"""Seconds that it has to end by itself at the end of its input; its shell is killed then."""
MAX_ANSWER = 16 << 10
_PREFIX = domain_tag("")[:-1]


class _Broken(Exception):
    """The process ended, answered too late or not by a line."""


class _Process:
    """One signer command and its key, started at once and again when it breaks; one question at a time."""

    def __init__(self, command: str, suites: Collection[str]) -> None:
        self._command = command
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.suite, _, key = self._ask("public").partition(" ")
            self.public = _unhex(key)
            if self.suite not in suites:
                raise Malformed(
                    f"the signer command has a key of the suite {self.suite[:64]!r}; this needs {' or '.join(suites)}"
                )
        except DiptychError:
            self.close()
            raise

    def sign(self, message: bytes) -> bytes:
        return _unhex(self._ask(f"sign {message.hex()}"))

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _ask(self, line: str) -> str:
        with self._lock:
            fresh = self._process is None
            try:
                return self._answer(line)
            except _Broken as trouble:
                self._stop()
                if fresh:
                    raise _unavailable(trouble) from None
            try:
                if self._answer("public") != f"{self.suite} {self.public.hex()}":
                    raise Conflict("the signer command has another key since it was started again")
                return self._answer(line)
            except _Broken as trouble:
                self._stop()
                raise _unavailable(trouble) from None

    def _answer(self, line: str) -> str:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", self._command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        word, _, rest = _exchange(self._process, line.encode() + b"\n").partition(" ")
        if word == "ok":
            return rest
        if word == "error":
            raise Denied(f"the signer refuses: {''.join(filter(str.isprintable, rest))[:200]}")
        raise _Broken("answered neither ok nor error")

    def _stop(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _exchange(process: "subprocess.Popen[bytes]", request: bytes) -> str:
    """Write a line, read a line, both before the time is over, whatever the process does."""
    assert process.stdin is not None
    assert process.stdout is not None
    to, source, deadline = process.stdin.fileno(), process.stdout.fileno(), time.monotonic() + ANSWER_S
    os.set_blocking(to, False)
    poll, answer = select.poll(), b""
    poll.register(to, select.POLLOUT)
    poll.register(source, select.POLLIN)
    while not answer.endswith(b"\n"):
        ready = dict(poll.poll(max(0, deadline - time.monotonic()) * 1000))
        if not ready:
            raise _Broken(f"did not answer within {ANSWER_S} s")
        if to in ready:
            try:
                request = request[os.write(to, request) :]
            except OSError:
                raise _Broken("ended") from None
            if not request:
                poll.unregister(to)
        if source in ready:
            chunk = os.read(source, MAX_ANSWER)
            answer += chunk
            if not chunk or len(answer) > MAX_ANSWER:
                raise _Broken("ended" if not chunk else "answered too much")
    try:
        return answer.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _Broken("did not answer in ASCII") from None


def _unavailable(trouble: _Broken) -> Unavailable:
    return Unavailable(f"the signer command {trouble}; run it by hand, write the line public to it, and see")


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Malformed("the signer's line holds something that is not hexadecimal") from None


class CommandSigner:
    """An `Ed25519Signer` behind a command. Raises `Unavailable`, `Denied` (the signer's own word) or `Unauthentic`."""

    def __init__(self, command: str) -> None:
        self._process = _Process(command, [ED25519])
        self.public = self._process.public
        self.close = self._process.close

    def sign(self, domain: str, payload: bytes) -> bytes:
        signature = self._process.sign(domain_tag(domain) + payload)
        if not is_valid(self.public, domain, payload, signature):
            raise Unauthentic("the signer command answered with a signature that does not hold; check it")
        return signature


class CommandCesSigner:
    """A doctor's record-signing key behind a command, as `ces.Signer`; its signatures are checked by `Doctor.sign`."""

    def __init__(self, command: str) -> None:
        self._process = _Process(command, ces.SUITES)
        self.suite, self.public = self._process.suite, self._process.public
        self.close = self._process.close

    def sign(self, payload: bytes) -> bytes:
        return self._process.sign(domain_tag("ces") + payload)


def signer_of(settings: Settings, key_file: str, passphrase: bytes | None) -> Ed25519Signer:
    """A daemon's signing key: behind its `signer_command` if it has one, else in its folder of keys."""
    if settings.signer_command:
        return CommandSigner(settings.signer_command)
    return SigningKey(read_key(settings.keys / key_file, passphrase))


# --- the other side -------------------------------------------------------------------------------------------------------------------


def make_key(path: Path, suite: str, passphrase: bytes | None) -> None:
    """A new key file for `serve`; `Malformed` for an unknown suite, `Conflict` if the file exists."""
    write_key(
        path,
        SigningKey.generate().seed if suite == ED25519 else ces.CesSigner.generate(suite).to_bytes(),
        passphrase,
    )


def serve(
    path: Path, passphrase: bytes | None, only: Collection[str], lines: Iterable[bytes]
) -> Iterator[str]:
    """Answer a signer command's lines with the key in a key file; with `only`, for messages of these domains alone."""
    secret = read_key(path, passphrase)
    key = SigningKey(secret) if len(secret) == SEED_BYTES else ces.CesSigner.from_bytes(secret)
    for line in lines:
        try:
            yield f"ok {_answer(key, only, line)}"
        except DiptychError as refusal:
            yield f"error {refusal}"


def _answer(key: SigningKey | ces.CesSigner, only: Collection[str], line: bytes) -> str:
    word, _, argument = line.strip().partition(b" ")
    if word == b"public":
        return f"{ED25519 if isinstance(key, SigningKey) else key.suite} {key.public.hex()}"
    if word != b"sign":
        raise Malformed("a signer knows the words public and sign")
    message = _unhex(argument.decode("ascii", "replace"))
    head, found, payload = message.partition(b"\0")
    domain = head.removeprefix(_PREFIX).decode("ascii", "replace")
    if not found or not head.startswith(_PREFIX):
        raise Denied("the message is none of Diptych's, and this key signs no other")
    if only and domain not in only:
        raise Denied(f"this signer signs {', '.join(only)}, not {domain!r}")
    if isinstance(key, SigningKey):
        return key.sign(domain, payload).hex()
    if domain != "ces":
        raise Denied("a record-signing key signs records alone")
    return key.sign(payload).hex()
