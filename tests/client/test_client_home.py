"""A person's folder: what is in it, what opens it, and what brings it back."""

import shutil
from pathlib import Path

import msgspec
import pytest
from client_world import network_files

from client.home import Home, Outside
from configs.files import change_passphrase
from crypto import ces, guardians
from crypto.errors import Conflict, Denied, NotFound, Unauthentic
from crypto.sign import SigningKey
from protocol.network import Service, to_toml


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return network_files(tmp_path / "network")


def keys_of(home: Home) -> tuple[bytes, bytes]:
    return home.sign.public, home.seal.public


def recovered(home: Home) -> bytes:
    """What two of three guardians give back."""
    _, *two = home.split(["Bob", "Carol", ""], 2)
    return guardians.recover(two).secret


def test_a_home_opens_to_the_same_keys_and_two_homes_have_none_in_common(tmp_path, network):
    made = [Home.create(tmp_path / name, network, ces.ED25519) for name in "ab"]
    again = Home(tmp_path / "a")
    assert keys_of(again) == keys_of(made[0])
    assert again.ces.public == made[0].ces.public
    assert len({key for home in made for key in keys_of(home)} | {home.ces.public for home in made}) == 6
    with pytest.raises(Conflict):
        Home.create(tmp_path / "a", network, None)


def test_the_files_show_neither_root_nor_keys(tmp_path, network):
    home = Home.create(tmp_path / "home", network, ces.ED25519, b"passphrase")
    home.save("record-00", b"contents of a record")
    stored = b"".join(file.read_bytes() for file in (tmp_path / "home").iterdir())
    for secret in (
        home._root,
        home.sign.seed,
        home.ces.to_bytes(),
        b"contents of a record",
        home.sign.public,
    ):
        assert secret not in stored


def test_what_was_saved_opens_only_in_its_home_and_place(tmp_path, network):
    home, other = (Home.create(tmp_path / name, network, None) for name in "ab")
    home.save("record-1", b"content")
    shutil.copy(tmp_path / "a" / "record-1.sealed", tmp_path / "a" / "record-2.sealed")
    shutil.copy(tmp_path / "a" / "record-1.sealed", tmp_path / "b")
    assert home.load("record-1") == b"content"
    for where, name in ((home, "record-2"), (other, "record-1")):
        with pytest.raises(Unauthentic):
            where.load(name)
    (tmp_path / "a" / "record-1.sealed").write_bytes(b"short")
    with pytest.raises(Unauthentic):
        home.load("record-1")


# --- guardians ---------------------------------------------------------------------------------------------------------


def test_guardians_bring_back_a_home_with_a_forgotten_passphrase_and_all_that_is_in_it(tmp_path, network):
    home = Home.create(tmp_path / "home", network, ces.ED25519, b"forgotten")
    home.save("record-00", b"content")
    Home.restore(tmp_path / "home", recovered(home), b"new")
    again = Home(tmp_path / "home", b"new")
    assert keys_of(again) == keys_of(home)
    assert again.ces.public == home.ces.public
    assert again.load("record-00") == b"content"
    with pytest.raises(Denied):
        Home(tmp_path / "home", b"forgotten")


def test_a_copy_without_its_master_key_is_enough(tmp_path, network):
    home = Home.create(tmp_path / "home", network, None)
    home.save("record-00", b"content")
    shutil.copytree(tmp_path / "home", tmp_path / "copy", ignore=shutil.ignore_patterns("master.key"))
    with pytest.raises(NotFound):
        Home(tmp_path / "copy")
    with pytest.raises(Conflict, match="holds a home already"):
        Home.create(tmp_path / "copy", network, None)
    Home.restore(tmp_path / "copy", recovered(home), None)
    assert Home(tmp_path / "copy").load("record-00") == b"content"


def test_with_nothing_but_shares_the_person_is_the_same(tmp_path, network):
    home = Home.create(tmp_path / "home", network, ces.ED25519, b"old")
    again = Home.create(tmp_path / "new", network, ces.ED25519, b"new", root=recovered(home))
    assert keys_of(again) == keys_of(home)
    assert again.ces.public != home.ces.public


def test_shares_of_another_home_change_nothing(tmp_path, network):
    mine, other = (Home.create(tmp_path / name, network, None) for name in "ab")
    with pytest.raises(Unauthentic, match="another home"):
        Home.restore(tmp_path / "a", recovered(other), b"theirs")
    assert keys_of(Home(tmp_path / "a")) == keys_of(mine)
    with pytest.raises(NotFound, match="--network"):
        Home.restore(tmp_path / "nowhere", recovered(other), None)


def test_a_home_that_was_cut_off_while_it_was_made_is_made_anew(tmp_path, network):
    Home.create(tmp_path / "home", network, None)
    (tmp_path / "home" / "master.key").unlink()
    Home.create(tmp_path / "home", network, None)


def test_shares_survive_a_change_of_passphrase(tmp_path, network):
    home = Home.create(tmp_path / "home", network, None, b"old")
    root = recovered(home)
    change_passphrase([tmp_path / "home" / "master.key"], b"old", b"new")
    assert keys_of(Home(tmp_path / "home", b"new")) == keys_of(home)
    assert recovered(Home(tmp_path / "home", b"new")) == root


# --- keys outside ------------------------------------------------------------------------------------------------------


def test_a_home_whose_keys_are_outside_wants_exactly_those(tmp_path, network):
    token, record_key = SigningKey(b"t" * 32), ces.CesSigner.generate(ces.ED25519)
    outside = Outside(token, record_key)
    home = Home.create(tmp_path / "home", network, ces.ED25519, outside=outside)
    assert (home.sign, home.ces) == (token, record_key)
    assert Home(tmp_path / "home", None, outside).sign.public == token.public
    for missing in (Outside(), Outside(sign=token), Outside(ces=record_key)):
        with pytest.raises(Denied, match="outside of it; give --"):
            Home(tmp_path / "home", None, missing)
    with pytest.raises(Conflict, match="not the one"):
        Home(tmp_path / "home", None, Outside(SigningKey(b"o" * 32), record_key))
    inside = Home.create(tmp_path / "inside", network, None)
    with pytest.raises(Conflict, match="leave --signer-command away"):
        Home(inside.path, None, Outside(token))


def test_who_keeps_a_copy_of_a_home_cannot_move_it_to_a_network_of_their_own(tmp_path, network):
    """They could have records sealed under their own CP-ABE key, or the index opened by their own nodes."""
    home = Home.create(tmp_path / "home", network, None, b"passphrase")
    theirs = network_files(tmp_path / "theirs", SigningKey(b"t" * 32))
    for file in theirs.parent.iterdir():
        shutil.copy(file, home.path)
    with pytest.raises(Conflict, match="exchanged"):
        Home(home.path, b"passphrase")
    for file in network.parent.iterdir():
        shutil.copy(file, home.path)
    assert keys_of(Home(home.path, b"passphrase")) == keys_of(home)


def test_a_home_follows_addresses_but_no_other_key(tmp_path, network):
    home = Home.create(tmp_path / "home", network, None)

    def names(**changed: object) -> None:
        told = msgspec.structs.replace(home.network, **changed)
        (home.path / "network.toml").write_text(to_toml(told))

    names(cloud=Service("https://cloud.example", home.network.cloud.key))
    assert keys_of(Home(home.path)) == keys_of(home)
    stranger = Service(home.network.cloud.url, SigningKey(b"s" * 32).public.hex())
    several = {"a": home.network.authority, "b": stranger}
    for changed in (
        {"cloud": stranger},
        {"authority": stranger},
        {"authorities": several, "authority_threshold": 2},
    ):
        names(**changed)
        with pytest.raises(Conflict, match="exchanged"):
            Home(home.path)
