"""Files of daemons and clients: whole or not there, for their owner's eyes, and errors that name the file."""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from configs import files
from configs.files import change_passphrase, load_network, read, read_key, read_text, write, write_key
from crypto import keyfile
from crypto.errors import Conflict, Denied, Malformed, NotFound
from crypto.sign import SigningKey
from protocol import genesis, network
from protocol.genesis import Genesis, Member
from protocol.network import ChainAddresses, Network, NodeAddress, Service
from tests.dealer import share_point

MEMBERS = (Member("n1", SigningKey(bytes(32)).public, "peer-1", share_point(0)),)
STORAGE = Genesis("storage/x", "storage", "bft", MEMBERS, bytes(32), 0)
SHARING = msgspec.structs.replace(STORAGE, chain_id="sharing/x", kind="sharing")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- writing and reading -----------------------------------------------------------------------------------------------


def test_a_written_file_is_whole_private_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    write(path, b"content")
    assert read(path) == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)


def test_a_destroyed_file_is_overwritten_where_it_lay_before_it_is_removed(tmp_path):
    path, other_name = tmp_path / "file", tmp_path / "link"
    write(path, b"secret" * 1000)
    os.link(path, other_name)
    files.destroy(path)
    assert not path.exists()
    left = other_name.read_bytes()
    assert len(left) == 6000
    assert b"secret" not in left
    files.destroy(path)


def test_an_existing_file_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with pytest.raises(Conflict, match="not overwritten"):
        write(path, b"new")
    assert read(path) == b"old"
    write(path, b"new", replace=True)
    assert read(path) == b"new"


def test_a_write_that_fails_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, b"new", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_file_that_is_missing_too_large_a_folder_or_no_text_is_refused_by_name(tmp_path):
    (tmp_path / "large").write_bytes(bytes(101))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(NotFound, match="absent does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(NotFound, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(Malformed, match="large is larger than 100"):
        read(tmp_path / "large", 100)
    assert len(read(tmp_path / "large", 101)) == 101
    with pytest.raises(Malformed, match="binary is not UTF-8"):
        read_text(tmp_path / "binary")


# --- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_file_gives_its_secret_back_and_is_never_overwritten(tmp_path, passphrase):
    path = tmp_path / "keys" / "x.key"
    write_key(path, b"secret", passphrase)
    assert mode_of(path) == 0o600
    assert read_key(path, passphrase) == b"secret"
    with pytest.raises(Conflict):
        write_key(path, b"other", passphrase)
    assert read_key(path, passphrase) == b"secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o777])
def test_a_key_that_others_may_touch_is_refused_with_the_command_that_helps(tmp_path, mode):
    path = tmp_path / "x.key"
    write_key(path, b"secret")
    path.chmod(mode)
    with pytest.raises(Denied, match=r"chmod 600 .*x\.key"):
        read_key(path)


def test_a_wrong_or_missing_passphrase_names_the_file_and_shows_no_secret(tmp_path):
    path = tmp_path / "x.key"
    write_key(path, b"secret", b"right")
    for wrong in (b"wrong", None):
        with pytest.raises(Denied, match=r"x\.key") as caught:
            read_key(path, wrong)
        assert "secret" not in str(caught.value)
    path.write_bytes(b"junk")
    with pytest.raises(Malformed, match=r"x\.key"):
        read_key(path)


# --- a new passphrase --------------------------------------------------------------------------------------------------


def key_files(folder: Path, passphrase: bytes | None) -> list[Path]:
    paths = [folder / f"{name}.key" for name in "abc"]
    for path in paths:
        write_key(path, path.name.encode(), passphrase)
    return paths


def opens_with(path: Path, *passphrases: bytes | None) -> list[bytes | None]:
    """Those of `passphrases` that open the file to its right secret."""
    found = []
    for passphrase in passphrases:
        with suppress(Denied):
            assert read_key(path, passphrase) == path.name.encode()
            found.append(passphrase)
    return found


@pytest.fixture
def _quick_kdf(monkeypatch):
    """A key derivation that costs nothing, for tests that open many files."""

    class Quick:
        def __init__(self, *, salt: bytes, **_: int) -> None:
            self._salt = salt

        def derive(self, passphrase: bytes) -> bytes:
            return hashlib.sha256(self._salt + passphrase).digest()

    monkeypatch.setattr(keyfile, "Argon2id", Quick)


@pytest.mark.usefixtures("_quick_kdf")
@pytest.mark.parametrize(("old", "new"), [(b"old", b"new"), (None, b"new"), (b"old", None)])
def test_a_changed_passphrase_opens_the_same_keys_and_the_old_one_no_more(tmp_path, old, new):
    paths = key_files(tmp_path, old)
    assert change_passphrase(paths, old, new) == 3
    assert [opens_with(path, old, new) for path in paths] == [[new]] * 3
    assert {mode_of(path) for path in paths} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("_quick_kdf")
def test_a_wrong_old_passphrase_changes_no_file(tmp_path):
    paths = key_files(tmp_path, b"old")
    write_key(tmp_path / "other.key", b"other", b"another")
    before = [path.read_bytes() for path in paths]
    with pytest.raises(Denied, match=r"a\.key: the passphrase does not open"):
        change_passphrase(paths, b"wrong", b"new")
    with pytest.raises(Denied, match=r"other\.key"):
        change_passphrase([*paths, tmp_path / "other.key"], b"old", b"new")
    with pytest.raises(Malformed, match="empty"):
        change_passphrase(paths, b"old", b"")
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.usefixtures("_quick_kdf")
@pytest.mark.parametrize("crash_at", range(6))
def test_a_crash_at_any_write_leaves_every_key_whole_and_doing_it_again_finishes(
    tmp_path, monkeypatch, crash_at
):
    """Each of the three files is opened for writing and renamed; the crash comes at one of the six."""
    paths, steps = key_files(tmp_path, b"old"), iter(range(100))

    class Crash(BaseException):
        pass

    def crashing(act):
        def step(*words):
            if next(steps) == crash_at:
                raise Crash
            return act(*words)

        return step

    fdopen, replace = os.fdopen, os.replace
    monkeypatch.setattr(files.os, "fdopen", crashing(fdopen))
    monkeypatch.setattr(files.os, "replace", crashing(replace))
    with pytest.raises(Crash):
        change_passphrase(paths, b"old", b"new")
    monkeypatch.setattr(files.os, "fdopen", fdopen)
    monkeypatch.setattr(files.os, "replace", replace)
    for path in paths:
        assert len(opens_with(path, b"old", b"new")) == 1
    changed = sum(opens_with(path, b"new") == [b"new"] for path in paths)
    assert change_passphrase(paths, b"old", b"new") == 3 - changed
    assert [opens_with(path, b"old", b"new") for path in paths] == [[b"new"]] * 3
    assert change_passphrase(paths, b"old", b"new") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes files for others")
def test_an_administrator_who_replaces_a_daemons_file_leaves_it_to_the_daemon(tmp_path):
    path = tmp_path / "x.key"
    write_key(path, b"secret", b"old")
    os.chown(path, 1234, 5678)
    change_passphrase([path], b"old", b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


# --- network and genesis files -----------------------------------------------------------------------------------------


def lay_out(folder: Path, storage: Genesis = STORAGE, sharing: Genesis = SHARING, **changes: str) -> Path:
    chains = {}
    for kind, chain in (("storage", storage), ("sharing", sharing)):
        write(folder / f"{kind}.toml", genesis.to_toml(chain).encode())
        pinned = changes.get(f"{kind}_hash", chain.hash.hex())
        name = changes.get("node", "n1")
        chains[kind] = ChainAddresses(f"{kind}.toml", pinned, {name: NodeAddress("h:1", "http://h:1")})
    service = Service("http://h:2", "00" * 32)
    write(folder / "network.toml", network.to_toml(Network(chains, service, service)).encode())
    return folder / "network.toml"


def test_a_network_file_brings_its_genesis_files_along(tmp_path):
    found, chains = load_network(lay_out(tmp_path))
    assert chains == {"storage": STORAGE, "sharing": SHARING}
    assert found.chains["storage"].nodes["n1"].p2p == "h:1"


def test_a_genesis_that_is_not_the_pinned_one_is_refused(tmp_path):
    with pytest.raises(Malformed, match=r"storage\.toml is not the genesis that network\.toml names"):
        load_network(lay_out(tmp_path, storage_hash="00" * 32))


def test_a_genesis_of_the_other_chain_or_with_a_member_without_address_is_refused(tmp_path):
    with pytest.raises(Malformed, match="disagree about the sharing chain"):
        load_network(lay_out(tmp_path / "a", sharing=STORAGE))
    with pytest.raises(Malformed, match="no address of"):
        load_network(lay_out(tmp_path / "b", node="n2"))


def test_a_missing_genesis_file_is_named(tmp_path):
    path = lay_out(tmp_path)
    os.unlink(tmp_path / "sharing.toml")
    with pytest.raises(NotFound, match=r"sharing\.toml"):
        load_network(path)
