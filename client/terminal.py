"""A terminal that shows what others have written instead of obeying it.

Reasons, names and policies come from servers and other people. In them, a control character could clear the screen or rewrite what it
says, and rich's markup could colour a lie or hide it behind a link.
"""

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text


class Terminal(Console):
    """A console without markup or highlighting, on which control characters appear as escapes such as `\\x1b`."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("".join(map(_visible, text)), **options)


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t\u00a0":
        return character
    return character.encode("unicode_escape").decode()


def time_text(ms: int) -> str:
    """UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
