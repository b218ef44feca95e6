"""Files that must not be lost, torn or read by others: atomic writes, owner-only modes, key files."""

import os
import subprocess
from pathlib import Path

from crypto import keyfile
from crypto.errors import Conflict, Denied, Malformed, NotFound
from protocol import genesis, network
from protocol.genesis import Genesis
from protocol.network import Network

MAX_CONFIG = 1 << 20


def read(path: Path, limit: int = MAX_CONFIG) -> bytes:
    """The bytes of a file of at most `limit`; `NotFound` or `Malformed` naming it otherwise."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise Malformed(f"{path} is larger than {limit} bytes, which is more than such a file can have")
    return data


def read_text(path: Path) -> str:
    try:
        return read(path).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{path} is not UTF-8 text") from None


def write(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = False) -> None:
    """Write a whole file or none of it, durably. `Conflict` if it exists and `replace` is not set."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not replace and path.exists():
        raise Conflict(f"{path} exists already and is not overwritten; move it away first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_key(path: Path, secret: bytes, passphrase: bytes | None = None) -> None:
    """A new key file, mode 0600; an existing key is never overwritten."""
    write(path, keyfile.seal(secret, passphrase))


def read_key(path: Path, passphrase: bytes | None = None) -> bytes:
    """The secret of a key file; `Denied` when others may read it or the passphrase is missing or wrong."""
    data = read(path)
    if path.stat().st_mode & 0o077:
        raise Denied(f"{path} holds a private key but others may read it; run: chmod 600 {path}")
    try:
        return keyfile.open_sealed(data, passphrase)
    except (Malformed, Denied) as error:
        raise type(error)(f"{path}: {error}") from None


def passphrase_from(command: str | None) -> bytes | None:
    """What the operator's passphrase command prints, without the line end; None without a command."""
    if not command:
        return None
    try:
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=60, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise Denied("the passphrase command did not end within 60 s; run it by hand to see why") from None
    if done.returncode != 0 or not done.stdout.strip():
        raise Denied(
            f"the passphrase command failed with exit code {done.returncode}; run it by hand to see why"
        )
    return done.stdout.rstrip(b"\r\n")


def load_network(path: Path) -> tuple[Network, dict[str, Genesis]]:
    """The network file and the genesis of each of its chains, checked against the hashes it pins."""
    found = network.from_toml(read_text(path))
    chains: dict[str, Genesis] = {}
    for kind, addresses in found.chains.items():
        chain = genesis.from_toml(read_text(path.parent / addresses.genesis))
        if chain.hash.hex() != addresses.genesis_hash:
            raise Malformed(
                f"{addresses.genesis} is not the genesis that {path.name} names; get the right pair of files"
            )
        if chain.kind != kind:
            raise Malformed(f"{addresses.genesis} and {path.name} disagree about the {kind} chain")
        missing = {m.name for m in chain.members} - set(addresses.nodes)
        if missing and not chain.admins:  # with admins, the members may have changed since genesis
            raise Malformed(f"{path.name} has no address of {', '.join(sorted(missing))}; add it")
        chains[kind] = chain
    return found, chains
