"""Guardians by the command line: sheets, QR codes, and the way back; nothing here needs a running network."""

import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from client_world import network_files

from client import cli, guardians
from client.home import Home
from configs.files import read_key
from crypto.errors import Conflict, Malformed
from crypto.guardians import Share, recover, split_secret

SECRET = bytes(range(32))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The command line with these words; what it wrote to standard output, or to standard error if it failed."""

    def call(*words: object, given: str = "", code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["diptych", *map(str, words)])
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == code, out + err
        return err if code else out

    return call


@pytest.fixture
def diptych(run: Callable[..., str]) -> Callable:
    def call(home: Path, *words: object, given: str = "", code: int = 0):
        return json.loads(run("--home", home, "-o", "json", *words, given=given, code=code))

    return call


@pytest.fixture(scope="module")
def shares() -> list[Share]:
    return split_secret(SECRET, ["Bob", "Žofie", ""], 2)


def test_a_sheet_is_read_back_and_says_what_to_do_without_a_word_of_the_secret(shares, tmp_path):
    files = guardians.write_sheets(shares, tmp_path / "out", "svg")
    assert sorted(path.name for path in files) == sorted(
        f"share-{n}.{kind}" for n in (1, 2, 3) for kind in ("txt", "svg")
    )
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    found = [guardians.read_share(tmp_path / "out" / f"share-{n}.txt") for n in (1, 2, 3)]
    assert found == shares
    assert recover(found[1:]).secret == SECRET
    text = (tmp_path / "out" / "share-2.txt").read_text()
    assert "share 2 of 3 for Žofie" in text
    assert "any 2 of its 3" in text
    assert max(map(len, text.splitlines())) < 130
    assert SECRET.hex() not in text
    with pytest.raises(Conflict):
        guardians.write_sheets(shares, tmp_path / "out", "none")


def test_the_longest_share_fits_a_code_that_a_phone_reads_from_paper():
    longest = split_secret(SECRET, ["x" * 24, "y" * 24], 2)[0]
    code = guardians.qr(longest)
    assert code.mode == "alphanumeric"
    assert code.version <= 9
    assert code.error in "MQH"


def modules_of_png(data: bytes, scale: int, border: int) -> list[list[int]]:
    """The modules of a one-bit greyscale PNG (1: dark), read by hand; its rows are plain or sums with the row above."""
    at, idat, width = 8, b"", 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width = int.from_bytes(body[:4], "big")
            assert body[8:10] == bytes([1, 0])
        idat += body if kind == b"IDAT" else b""
        at += size + 12
    raw, stride = zlib.decompress(idat), (width + 7) // 8 + 1
    rows, above = [], bytes(stride - 1)
    for start in range(0, len(raw), stride):
        kind, *row = raw[start : start + stride]
        assert kind in (0, 2)
        above = bytes((x + y * (kind == 2)) % 256 for x, y in zip(row, above, strict=True))
        rows.append(above)
    bits = [[row[x // 8] >> (7 - x % 8) & 1 ^ 1 for x in range(width)] for row in rows]
    return [
        row[scale * border : width - scale * border : scale]
        for row in bits[scale * border : width - scale * border : scale]
    ]


def test_the_picture_and_the_terminal_show_the_code_of_the_same_text(shares, tmp_path, run):
    guardians.write_sheets(shares[:1], tmp_path, "png")
    code = guardians.qr(shares[0])
    matrix = [[int(module) for module in row] for row in code.matrix]
    assert modules_of_png((tmp_path / "share-1.png").read_bytes(), 8, code.default_border_size) == matrix
    shown = run("guardians", "check", tmp_path / "share-1.txt", "--qr")
    assert len(shown.splitlines()) == (len(matrix) + 2 * code.default_border_size + 1) // 2
    assert set(shown) <= set(" █▀▄\n")


def test_a_mistyped_file_is_named_with_the_group(shares, tmp_path):
    groups = shares[0].groups()
    groups[6] = groups[6][1] + groups[6][0] + groups[6][2:]
    path = tmp_path / "typed.txt"
    path.write_text(" ".join(groups))
    if groups[6] == shares[0].groups()[6]:
        pytest.skip("the two characters are the same")
    with pytest.raises(Malformed, match=r"typed\.txt: group 7 of the share is mistyped"):
        guardians.read_share(path)


def test_a_patient_who_lost_everything_but_paper_comes_back(tmp_path: Path, diptych: Callable):
    network, home, out = network_files(tmp_path / "n"), tmp_path / "alice", tmp_path / "shares"
    key = Home.create(home, network, None, b"forgotten").sign.public.hex()
    known = ["--passphrase-command", "echo forgotten"]
    made = diptych(home, *known, "guardians", "split", "Bob", "Carol", "Dave", "--needed", "2", "--out", out)
    assert made["needed"] == 2
    assert [share["guardian"] for share in made["shares"]] == ["Bob", "Carol", "Dave"]
    assert len(list(out.iterdir())) == 6

    share = [out / f"share-{n}.txt" for n in (1, 2, 3)]
    checked = diptych(home, "guardians", "check", "-", given=share[1].read_text())
    assert (checked["set"], checked["number"], checked["guardian"]) == (made["set"], 2, "Carol")

    too_few = diptych(home, "guardians", "recover", share[0], code=5)
    assert "ask 1 more of the 3 guardians" in too_few["message"]
    twice = diptych(home, "guardians", "recover", share[0], share[0], code=3)
    assert "given twice" in twice["message"]

    back = diptych(home, "--passphrase-command", "echo new", "guardians", "recover", share[0], share[2])
    assert back == {"key": key, "records": 0, "altered": []}
    assert read_key(home / "master.key", b"new")

    anew = diptych(tmp_path / "phone", "guardians", "recover", share[1], "-", "--network", network,
                   given=share[2].read_text())  # fmt: skip
    assert anew["key"] == key


def test_a_persons_passphrase_changes_by_descriptor_and_the_old_one_is_gone(
    tmp_path: Path, diptych: Callable
):
    home = tmp_path / "alice"
    Home.create(home, network_files(tmp_path / "n"), None, b"old")
    out, into = os.pipe()
    os.write(into, b"old\nnew\nnew\nold\n")
    os.close(into)
    given = ["--passphrase-fd", out]
    assert diptych(home, *given, "passphrase", "--new-passphrase-fd", out) == {"changed": True}
    assert diptych(home, *given, "record", "list") == []
    refused = diptych(home, *given, "record", "list", code=5)
    os.close(out)
    assert "does not open" in refused["message"]
    assert "none was given" in diptych(home, "record", "list", code=5)["message"]


@pytest.mark.parametrize(
    "words", [["guardians", "split"], ["guardians", "recover"], ["guardians", "check"], ["passphrase"]]
)
def test_help_has_examples(run: Callable[..., str], words):
    assert "Example" in run(*words, "--help")
