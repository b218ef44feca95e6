"""Guardians' shares on paper: a sheet to print for each, with the same text as a QR code, and what reads them back."""

import io
import sys
from pathlib import Path
from typing import Literal

import segno

from configs.files import read_text, write
from crypto.errors import DiptychError
from crypto.guardians import MARK, Share, set_name

ROW = 5
"""Groups in a line of a sheet."""
QrKind = Literal["svg", "png", "none"]


def sheet(share: Share) -> str:
    """The text to print for a guardian; `read_share` reads it, by hand or scanner, from the mark on."""
    groups = share.groups()
    rows = "\n".join("    " + "  ".join(groups[at : at + ROW]) for at in range(0, len(groups), ROW))
    return f"""Recovery share {share.number} of {share.total}{f" for {share.label}" if share.label else ""}
Set {set_name(share.set_id)}: any {share.needed} of its {share.total} shares give back the keys of the person who gave you this.

Keep it where only you find it, and tell nobody what it says. Alone it reveals nothing. Bring it only when that person
has lost their keys, and only after making sure in person that it is they who ask.

Typed in, upper and lower case are the same, so are O and 0, and I, L and 1. Groups count from the left, {ROW} in a line.

{MARK}
{rows}
"""


def qr(share: Share) -> segno.QRCode:
    """A QR code of the share's text, readable with 15 % of it damaged."""
    return segno.make_qr(share.to_text(), error="m")


def write_sheets(shares: list[Share], folder: Path, kind: QrKind) -> list[Path]:
    """`share-N.txt` for each share and its QR code beside it, mode 0600; `Conflict` if one of them exists."""
    files: dict[Path, bytes] = {}
    for share in shares:
        files[folder / f"share-{share.number}.txt"] = sheet(share).encode()
        if kind != "none":
            image = io.BytesIO()
            qr(share).save(image, kind=kind, scale=8)
            files[folder / f"share-{share.number}.{kind}"] = image.getvalue()
    for path, content in files.items():
        write(path, content)
    return list(files)


def read_share(path: Path) -> Share:
    """The share in a file, or on standard input for `-`; `Malformed` naming the file and the mistyped groups."""
    text = sys.stdin.read(1 << 16) if str(path) == "-" else read_text(path)
    try:
        return Share.from_text(text)
    except DiptychError as error:
        raise type(error)(f"{path}: {error}") from None
