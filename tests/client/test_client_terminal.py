"""What others have written is shown on a terminal, not obeyed."""

import pytest
from rich.table import Table

from client.terminal import Terminal

HOSTILE = "\x1b[2Jgone \x9b31m \x1b]0;title\x07 \r\x08 [red]allowed[/red] [link=http://evil]here[/link] \u202etxt.exe"
SHOWN = r"\x1b[2Jgone \x9b31m \x1b]0;title\x07 \r\x08 [red]allowed[/red] [link=http://evil]here[/link] \u202etxt.exe"


def shown(capsys: pytest.CaptureFixture[str], *things: object) -> str:
    for thing in things:
        Terminal().print(thing)
    return capsys.readouterr().out


def test_control_characters_and_markup_of_others_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    table = Table("reason")
    table.add_row(HOSTILE)
    for out in (shown(capsys, HOSTILE), shown(capsys, table)):
        assert SHOWN in out
        assert not set("\x1b\x9b\x07\r\x08\u202e") & set(out)


def test_words_in_any_script_lines_and_tabs_are_left_alone(capsys: pytest.CaptureFixture[str]):
    text = "Größe: 12\u00a0mg, 名前, الاسم\n\tnext"
    assert shown(capsys, text).split() == text.split()
