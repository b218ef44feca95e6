"""Files that must not be lost, torn or read by others: atomic writes, owner-only modes, key files."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from crypto import keyfile
from crypto.errors import Conflict, Denied, Malformed, NotFound
from protocol import genesis, network
from protocol.genesis import Genesis
from protocol.network import Network

MAX_CONFIG = 1 << 20


def read(path: Path, limit: int = MAX_CONFIG) -> bytes:
    """The bytes of a file of at most `limit`; `NotFound` or `Malformed` naming it otherwise."""
    with reading(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"{path} is larger than {limit} bytes, which is more than such a file can have")
    return data


def reading(path: Path) -> BinaryIO:
    """The file, to read from; `NotFound` naming it if that cannot be."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    try:
        return read(path).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{path} is not UTF-8 text") from None


def write(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = False) -> None:
    """Write a whole file or none of it, durably. `Conflict` if it exists and `replace` is not set."""
    with writing(path, mode=mode, replace=replace) as file:
        file.write(data)


@contextmanager
def writing(path: Path, *, mode: int = 0o600, replace: bool = False) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` at the end of the block, whole and durably; if the block raises, there is nothing of it.

    `Conflict` if `path` exists and `replace` is not set. What a killed process leaves is called `.NAME.PID.tmp`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not replace and path.exists():
        raise Conflict(f"{path} exists already and is not overwritten; move it away first")
    owner = path.stat() if path.exists() else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            if owner and os.geteuid() == 0:  # an administrator must not lock a daemon out of its file
                os.fchown(fd, owner.st_uid, owner.st_gid)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def destroy(path: Path) -> None:
    """Overwrite a file with random bytes on disk, then remove it; nothing if there is none.

    Where a disk or file system writes elsewhere than it is told (flash, copy on write, journals), old bytes can survive.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            left = path.stat().st_size
            while left > 0:
                left -= file.write(os.urandom(min(left, 1 << 20)))
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink()
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_key(path: Path, secret: bytes, passphrase: bytes | None = None, *, replace: bool = False) -> None:
    """A new key file, mode 0600; `Conflict` if there is a key and `replace` is not set."""
    write(path, keyfile.seal(secret, passphrase), replace=replace)


def read_key(path: Path, passphrase: bytes | None = None) -> bytes:
    """The secret of a key file; `Denied` when others may read it or the passphrase is missing or wrong."""
    data = read(path)
    if path.stat().st_mode & 0o077:
        raise Denied(f"{path} holds a private key but others may read it; run: chmod 600 {path}")
    try:
        return keyfile.open_sealed(data, passphrase)
    except (Malformed, Denied) as error:
        raise type(error)(f"{path}: {error}") from None


def change_passphrase(paths: Sequence[Path], old: bytes | None, new: bytes | None) -> int:
    """Seal each of these key files under `new` instead of `old` (None: no passphrase); how many were still to do.

    Each file is at every moment wholly the old or wholly the new one. Files that `new` opens already are left alone, so what was
    interrupted is finished by doing it again. Raises as `read_key` before any file is touched.
    """
    secrets = {}
    for path in paths:
        try:
            secrets[path] = read_key(path, old)
        except Denied as refusal:
            with suppress(Denied):
                read_key(path, new)
                continue
            raise refusal
    sealed = {path: keyfile.seal(secret, new) for path, secret in secrets.items()}
    for path, content in sealed.items():
        write(path, content, replace=True)
    return len(sealed)


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
