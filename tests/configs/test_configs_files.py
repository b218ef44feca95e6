"""Files of daemons and clients: whole or not there, for their owner's eyes, and errors that name the file."""

import os
import stat
from pathlib import Path

import msgspec
import pytest

from configs import files
from configs.files import load_network, passphrase_from, read, read_key, read_text, write, write_key
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


# --- the passphrase command --------------------------------------------------------------------------------------------


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
    run = files.subprocess.run
    monkeypatch.setattr(files.subprocess, "run", lambda *a, **k: run(*a, **{**k, "timeout": 0.05}))
    with pytest.raises(Denied, match="did not end"):
        passphrase_from("exec sleep 30")


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
