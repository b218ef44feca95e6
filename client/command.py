"""What the commands of the client share: the options that stand before a command, questions to the user, and how results are shown."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from client.consequences import Consequences
from client.fhir import group_of, is_chunk
from client.home import Home, Outside
from client.patient import Agree
from client.session import Session
from client.stored import StoredRecord
from client.terminal import Terminal, time_text
from configs import passphrases
from configs.signer import CommandCesSigner, CommandSigner
from crypto import ceas
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from protocol.contract import Receipt
from protocol.identity import ChainKind, Purpose
from protocol.record import CloudEntry

EXIT_CODES: dict[type[DiptychError], int] = {
    Malformed: 3,
    Unauthentic: 4,
    Denied: 5,
    NotFound: 6,
    Unavailable: 7,
    Conflict: 8,
}
DEFAULT_HOME = Path("~/.diptych")
DEFAULT_PURPOSES: tuple[Purpose, ...] = ("treatment", "research", "public-health")

ChainOption = Annotated[
    ChainKind, typer.Option("--chain", help="storage: the whole record; sharing: its shared part.")
]
RecordId = Annotated[str, typer.Argument(metavar="RECORD", help="A record id: 32 hex digits.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Go on without asking.")]
Key = Annotated[str, typer.Option(help="A public key: 64 hex digits, as printed by `diptych whoami`.")]


@dataclass
class Context:
    home: Path
    as_json: bool
    console: Terminal
    passphrase_command: str | None = None
    passphrase_fd: int | None = None
    signer_command: str | None = None
    ces_signer_command: str | None = None

    def begin(self, given: "Context") -> None:
        """Take over what one command line gives, and forget what an earlier one gave."""
        self.__dict__ = vars(given)

    def open(self) -> Session:
        """The home's session; asks for the passphrase on a terminal if the home has one."""
        path, secret = self.home.expanduser(), self.passphrase
        if secret is None and sys.stdin.isatty() and passphrases.is_needed([path / "master.key"]):
            secret = passphrases.ask()
        return Session(Home(path, secret, self.outside()), self.progress)

    @cached_property
    def passphrase(self) -> bytes | None:
        """The one that was given, read once: a file descriptor gives it only once."""
        return passphrases.passphrase_from(self.passphrase_command, self.passphrase_fd)

    def outside(self) -> Outside:
        return Outside(
            CommandSigner(self.signer_command) if self.signer_command else None,
            CommandCesSigner(self.ces_signer_command) if self.ces_signer_command else None,
        )

    def progress(self, step: str) -> None:
        if not self.as_json:
            self.console.print(f"· {step} …", style="dim")

    def show(self, data: Any, human: Callable[[Terminal], None]) -> None:
        """Print `data` as JSON, or let `human` print it."""
        if self.as_json:
            print(json.dumps(data, ensure_ascii=False, indent=2))
        else:
            human(Terminal())


context = Context(DEFAULT_HOME, False, Terminal(stderr=True))


def agreeing(yes: bool) -> Agree:
    """Tells the user what a change leads to and asks; `Denied` if they do not want it, or nobody is there to say so.

    Programs are told on standard error, as one line of JSON, and are only stopped by a warning.
    """

    def agree(found: Consequences) -> None:
        if found.change == "store" and not found.warnings:
            return
        if context.as_json:
            print(json.dumps(found.fields, ensure_ascii=False), file=sys.stderr)
        else:
            _tell(found)
        if yes or (context.as_json and not found.warnings):
            return
        if context.as_json or not sys.stdin.isatty():
            because = f": {found.warnings[0]}" if found.warnings else ""
            raise Denied(f"nothing was changed{because}; repeat it with --yes if that is meant")
        if not typer.confirm("Go on?", err=True):
            raise Denied("nothing was changed")

    return agree


def _tell(found: Consequences) -> None:
    console = context.console
    if found.change != "store":
        console.print(f"record {found.record.hex()}")
        for what, sentences in (("before", found.before), ("after", found.after), ("kept", found.kept)):
            for number, sentence in enumerate(sentences):
                console.print(f"{'' if number else what:8} {sentence}")
    for sentence in found.warnings:
        console.print(f"{'warning':8} {sentence}", style="yellow")


def hex_bytes(text: str, size: int, what: str) -> bytes:
    with suppress(ValueError):
        if len(value := bytes.fromhex(text)) == size:
            return value
    raise Malformed(f"{what} must be {2 * size} hex digits")


def record_id(text: str) -> bytes:
    return hex_bytes(text, 16, "the record id")


def pairs_of(texts: list[str], form: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if any(not name or not value for name, _, value in pairs):
        raise Malformed(f"write {form}")
    return {name.strip(): value for name, _, value in pairs}


def purposes_of(texts: list[str] | None) -> tuple[Purpose, ...]:
    if not texts:
        return DEFAULT_PURPOSES
    known = Purpose.__args__  # type: ignore[attr-defined]
    if unknown := set(texts) - set(known):
        raise Malformed(f"{min(unknown)!r} is no purpose of use; use one of {', '.join(known)}")
    return tuple(texts)  # type: ignore[arg-type]


def decision(receipt: Receipt) -> str:
    """In a word: what was refused or declined is denied, what needs a second person is waiting."""
    if not receipt.ok or receipt.code == "declined":
        return "denied"
    return "waiting" if receipt.code == "waiting" else "allowed"


def receipt_fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "tx": receipt.tx.hex(),
        "height": receipt.height,
        "time": time_text(receipt.time_ms),
        "kind": receipt.kind,
        "sender": receipt.sender.hex(),
        "record": receipt.record.hex() if receipt.record else None,
        "purpose": receipt.purpose,
        "request": receipt.request.hex() if receipt.request else None,
        "decision": decision(receipt),
        "code": receipt.code,
        "reason": receipt.reason,
    }


def table(rows: list[dict[str, Any]], *columns: str) -> Table:
    table = Table(*columns)
    for row in rows:
        cells = [f"{v:,}" if isinstance(v := row[c], int) and c == "bytes" else str(v) for c in columns]
        table.add_row(*[cell[:16] + "…" if len(cell) == 64 else cell for cell in cells])
    return table


def print_fields(console: Terminal, data: Mapping[str, Any]) -> None:
    width = max(map(len, data))
    for name, value in data.items():
        console.print(f"{name:{width}}  {', '.join(value) if isinstance(value, list) else value}")


def cloud_fields(entry: CloudEntry, record: str) -> dict[str, Any]:
    """A download at the cloud beside the receipts of the chains."""
    is_served = entry.code == "served"
    missing = f"; {entry.unlisted} refusals before it are not listed" if entry.unlisted else ""
    what = f"{entry.parts} parts" if entry.parts else "the envelopes"
    return {
        "chain": "cloud",
        "tx": None,
        "height": None,
        "time": time_text(entry.time_ms),
        "kind": "cloud.download",
        "sender": entry.requester.hex(),
        "record": record,
        "purpose": entry.purpose,
        "request": entry.request.hex() if entry.request else None,
        "decision": "allowed" if is_served else "denied",
        "code": entry.code,
        "reason": f"{'served' if is_served else 'refused'} {what} of version {entry.version}{missing}",
    }


def terms_fields(stored: StoredRecord) -> dict[str, Any]:
    terms = stored.terms
    return {
        "purposes": list(stored.purposes),
        "from": None if terms.from_ms is None else time_text(terms.from_ms),
        "until": None if terms.until_ms is None else time_text(terms.until_ms),
        "uses": terms.uses,
        "deny": [key.hex() for key in terms.deny],
        "approval": terms.approval,
        "emergency": terms.emergency,
        "tags": [tag.hex() for tag in stored.tags],
        "proxies": [key.hex() for key in stored.proxies],
        "retired": stored.is_retired,
    }


def _folded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of parts, with those of an attached file's bytes in one class made one."""
    shown: list[dict[str, Any]] = []
    for row in rows:
        last = shown[-1] if shown else row
        like = [(group_of(r["part"]), r["access"]) for r in (last, row)]
        if (
            shown
            and is_chunk(row["part"])
            and is_chunk(last["part"].partition(" ")[0])
            and like[0] == like[1]
        ):
            first = last["part"].partition(" ")[0]
            shown[-1] = row | {
                "part": f"{first} to {row['part']}",
                "ciphertext": "…",
                "bytes": last["bytes"] + row["bytes"],
            }
        else:
            shown.append(row)
    return shown


def show_stored(stored: StoredRecord) -> None:
    header, labels = stored.header, stored.labels
    rows = [
        {"part": p.label, "access": p.access, "ciphertext": p.blob.hash.hex(), "bytes": p.blob.size}
        for p in stored.parts
        if stored.version
    ]
    policies = dict(stored.policies)
    rules = [ceas.text(rule, header.count, labels.__getitem__) for rule in header.rules]
    data = {
        "record": header.record.hex(),
        "version": stored.version,
        "policies": policies,
        **terms_fields(stored),
        "rules": rules,
        "parts": rows,
    }

    def human(console: Terminal) -> None:
        console.print(table(_folded(rows), "part", "access", "ciphertext", "bytes"))
        for name, policy in policies.items():
            console.print(f"{name:8} {policy}")
        print_fields(console, {name: value for name, value in terms_fields(stored).items() if value})
        for rule in rules:
            console.print(f"rule     {rule}")
        console.print(
            f"record   {header.record.hex()}  version {stored.version}"
            + ("" if stored.version else " (not stored yet)")
            + (" (retired)" if stored.is_retired else "")
        )

    context.show(data, human)
