"""Settings of daemons: flags over environment over file, paths relative to the file, faults listed with their field."""

from pathlib import Path
from typing import get_args

import pytest

from configs.settings import AuthoritySettings, CloudSettings, NetworkSettings, NodeSettings, Pairing
from crypto.errors import Malformed, NotFound
from crypto.group import BACKENDS

FILE = """
network = "../network.toml"
keys = "keys"
data = "/var/lib/diptych"
http_port = 8000
p2p_port = 4000
chain = "storage"
name = "n1"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "config.toml").write_text(FILE)
    return folder / "config.toml"


def test_the_file_alone_gives_values_and_defaults(path):
    settings = NodeSettings.load(path)
    assert (settings.http_port, settings.p2p_port, settings.chain, settings.name) == (
        8000,
        4000,
        "storage",
        "n1",
    )
    assert (settings.http_host, settings.passphrase_command, settings.log_level) == (
        "127.0.0.1",
        None,
        "info",
    )


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_HTTP_PORT", "8001")
    assert NodeSettings.load(path).http_port == 8001
    assert NodeSettings.load(path, http_port=8002).http_port == 8002
    assert NodeSettings.load(path, http_port=None).http_port == 8001, "a flag not given is no value"


def test_paths_of_the_file_are_relative_to_the_file_wherever_the_daemon_is_started(path, monkeypatch):
    for start in (path.parent.parent, path.parent):
        monkeypatch.chdir(start)
        for given in (path, path.relative_to(start)):
            settings = NodeSettings.load(given)
            assert settings.keys == path.parent / "keys"
            assert settings.network.resolve() == path.parent.parent / "network.toml"
            assert settings.data == Path("/var/lib/diptych")
            assert settings.network.is_absolute()


def test_paths_of_flags_and_environment_are_relative_to_the_working_folder(path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_KEYS", "elsewhere")
    settings = NodeSettings.load(path, data=Path("here"))
    assert (settings.keys, settings.data) == (path.parent.parent / "elsewhere", path.parent.parent / "here")


def test_a_tilde_is_the_home_folder_everywhere(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DIPTYCH_DATA", "~/data")
    path.write_text(FILE.replace('"keys"', '"~/keys"'))
    settings = NodeSettings.load(path)
    assert (settings.keys, settings.data) == (tmp_path / "home" / "keys", tmp_path / "home" / "data")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("http_port = 8000", "http_port = 65536", "http_port"),
        ("http_port = 8000", 'http_port = "web"', "http_port"),
        ("http_port = 8000", "", "http_port"),
        ("p2p_port = 4000", "p2p_port = 0", "p2p_port"),
        ('chain = "storage"', 'chain = "public"', "chain"),
        ('name = "n1"', "", "name"),
        ('keys = "keys"', "keys = 5", "keys"),
        ('name = "n1"', 'name = "n1"\nlog_level = "loud"', "log_level"),
        ('name = "n1"', 'name = "n1"\nunknown = 1', "unknown"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_the_file(path, old, new, field):
    assert old in FILE
    path.write_text(FILE.replace(old, new))
    with pytest.raises(Malformed, match=rf"config\.toml .*{field}: "):
        NodeSettings.load(path)


def test_all_wrong_values_are_listed_at_once_whatever_they_come_from(path, monkeypatch):
    path.write_text(FILE.replace("4000", "70000"))
    monkeypatch.setenv("DIPTYCH_CHAIN", "public")
    with pytest.raises(Malformed) as caught:
        NodeSettings.load(path, http_port=-1)
    assert all(f"{field}: " in str(caught.value) for field in ("p2p_port", "chain", "http_port"))


@pytest.mark.parametrize("text", ["network = ", "x = " + "[" * 50_000, "network = 1\nnetwork = 2"])
def test_what_is_not_toml_is_refused_by_name(path, text):
    path.write_text(text)
    with pytest.raises(Malformed, match=r"config\.toml is not valid TOML"):
        NodeSettings.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"absent\.toml"):
        NodeSettings.load(tmp_path / "absent.toml")


def test_settings_cannot_be_changed_after_loading(path):
    with pytest.raises(ValueError, match="frozen"):
        NodeSettings.load(path).http_port = 1


@pytest.mark.parametrize(
    ("kind", "line"), [(CloudSettings, "quota_bytes = 0"), (AuthoritySettings, "credential_days = 0")]
)
def test_each_daemon_has_its_own_bounds(path, kind, line):
    common = "\n".join(FILE.splitlines()[:5])
    path.write_text(common)
    kind.load(path)
    path.write_text(f"{common}\n{line}")
    with pytest.raises(Malformed, match=line.split(" ")[0]):
        kind.load(path)


def test_every_pairing_library_can_be_preferred_and_no_other(path, monkeypatch):
    assert get_args(Pairing) == tuple(BACKENDS)
    assert NodeSettings.load(path).pairing is None
    monkeypatch.setenv("DIPTYCH_PAIRING", "arkworks")
    assert NodeSettings.load(path).pairing == "arkworks"
    monkeypatch.setenv("DIPTYCH_PAIRING", "pbc")
    with pytest.raises(Malformed, match="pairing"):
        NodeSettings.load(path)


@pytest.mark.parametrize(
    ("lines", "authorities", "threshold"),
    [
        ("", 1, 1),
        ("authorities = 2", 2, 2),
        ("authorities = 3", 3, 2),
        ("authorities = 4", 4, 3),
        ("authorities = 5\nauthority_threshold = 2", 5, 2),
    ],
)
def test_a_new_network_needs_a_majority_of_its_authorities_unless_it_says_otherwise(
    tmp_path, lines, authorities, threshold
):
    (tmp_path / "shape.toml").write_text(lines)
    shape = NetworkSettings.load(tmp_path / "shape.toml")
    assert (shape.authorities, shape.threshold) == (authorities, threshold)


@pytest.mark.parametrize(
    "lines",
    [
        "authorities = 0",
        "authorities = 33",
        "authorities = 3\nauthority_threshold = 1",
        "authorities = 3\nauthority_threshold = 4",
        "authority_threshold = 2",
        'authorities = 3\nscheme = "fame"',
    ],
)
def test_a_new_network_with_authorities_that_cannot_issue_keys_together_is_refused(tmp_path, lines):
    (tmp_path / "shape.toml").write_text(lines)
    with pytest.raises(Malformed, match="authorit"):
        NetworkSettings.load(tmp_path / "shape.toml")


def test_a_daemon_signs_by_its_command_and_takes_its_passphrase_from_one_place(path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_SIGNER_COMMAND", "ssh vault sign")
    monkeypatch.setenv("DIPTYCH_PASSPHRASE_FD", "3")
    settings = NodeSettings.load(path)
    assert (settings.signer_command, settings.passphrase_fd) == ("ssh vault sign", 3)
    monkeypatch.setenv("DIPTYCH_PASSPHRASE_FD", "-1")
    with pytest.raises(Malformed, match="passphrase_fd"):
        NodeSettings.load(path)


def test_a_passphrase_itself_is_no_setting_and_is_not_repeated_in_the_refusal(path):
    path.write_text(FILE + 'passphrase = "hunter2"')
    with pytest.raises(Malformed, match="passphrase: ") as caught:
        NodeSettings.load(path)
    assert "hunter2" not in str(caught.value)
