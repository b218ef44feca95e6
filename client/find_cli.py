"""The commands that find things and follow what happens: `diptych watch` and `diptych find`."""

import json
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Annotated, Any

import typer

from client.command import ChainOption, RecordId, context, receipt_fields, record_id, table
from client.fhir import PRIVATE, is_attached
from client.patient import Patient
from client.session import KINDS, Session
from client.tags import Coding, codings_of, tag_of
from client.terminal import Terminal, time_text
from crypto.codec import Decoder, UInt, encode
from crypto.errors import Malformed
from protocol.contract import Receipt, RecordEntry
from protocol.identity import ChainKind

app, record_app = typer.Typer(), typer.Typer()
_decode_place = Decoder[tuple[int, int]](tuple[UInt, UInt], "the place watched up to", 64)


@app.command("watch")
def watch(
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many events; by default, never.")
    ] = None,
) -> None:
    """Show what concerns you as it happens: requests for your records, grants, refusals, emergencies; or answers to your own requests.

    Goes on after the last event that it has shown, also after a pause: what happened meanwhile comes first. With `-o json`, one line each.

    Example: `diptych --home ~/alice watch`
    """
    with context.open() as session:
        for number, (kind, receipt) in enumerate(_events(session), 1):
            _show_event(kind, receipt)
            session.home.save(f"watched-{kind}", encode((receipt.height, receipt.position)))
            if number == count:
                return


def _events(session: Session) -> Iterator[tuple[ChainKind, Receipt]]:
    """What concerns the home's person, from both chains as it comes."""
    home, queue = session.home, SimpleQueue[tuple[ChainKind, Receipt] | Exception]()
    mine = {"patient" if home.credential.credential.role == "patient" else "reader": home.sign.public}

    def follow(kind: ChainKind) -> None:
        after = _decode_place(home.load(f"watched-{kind}")) if home.has(f"watched-{kind}") else None
        try:
            for receipt in session.chains[kind].events(**mine, after=after):  # type: ignore[arg-type]
                queue.put((kind, receipt))
        except Exception as error:  # raised where the events are read
            queue.put(error)

    for kind in KINDS:
        Thread(target=follow, args=[kind], daemon=True).start()
    while True:
        event = queue.get()
        if isinstance(event, Exception):
            raise event
        yield event


def _show_event(kind: ChainKind, receipt: Receipt) -> None:
    if context.as_json:
        print(json.dumps({"chain": kind, **receipt_fields(receipt)}, ensure_ascii=False), flush=True)
        return
    is_emergency = receipt.purpose == "emergency"
    about = f" of record {receipt.record.hex()}" if receipt.record else ""
    Terminal().print(
        f"{time_text(receipt.time_ms)}  {'EMERGENCY  ' if is_emergency else ''}{receipt.kind}{about}"
        f" by {receipt.sender.hex()[:16]}…: {receipt.reason} ({receipt.code})",
        style="bold red" if is_emergency else None,
    )


@record_app.command("codings")
def record_codings(
    record: RecordId,
    registry: Annotated[
        str | None, typer.Option(help="Show for each coding the tag with which this registry finds it.")
    ] = None,
) -> None:
    """Patient: the codings in the parts of a record that others may get, from which you may choose research tags.

    A tag tells whoever knows the registry's name that your record has this coding: they can try all codes. It is on chain for ever.

    Example: `diptych record codings 3fa2…`, then
    `diptych record rule 3fa2… --tag 'SYSTEM|CODE' --registry 'Diabetes NL'`
    """
    with context.open() as session:
        patient = Patient(session)
        stored = patient.load(record_id(record))
    contents = patient.contents(stored)
    shared = (
        contents[part.label]
        for part in stored.parts
        if not is_attached(part.label) and (not stored.version or part.access != PRIVATE)
    )
    rows = [
        {
            "coding": str(coding),
            "display": display,
            "tag": tag_of(registry, coding).hex() if registry else None,
        }
        for coding, display in codings_of(shared).items()
    ]

    def human(console: Terminal) -> None:
        for row in rows:
            console.print(f"{row['coding']}  {row['display']}" + (f"\n    {row['tag']}" if registry else ""))

    context.show(rows, human)


@app.command("find")
def find(
    coding: Annotated[str, typer.Argument(help="SYSTEM|CODE, such as 'http://snomed.info/sct|44054006'.")],
    registry: Annotated[
        str, typer.Option(help="The registry's name, with which the patients have salted their tags.")
    ],
    chain: ChainOption = "sharing",
) -> None:
    """Data user: the records that their patients have tagged with a coded condition, and what their rules say.

    Example: `diptych find --registry 'Diabetes NL' 'http://snomed.info/sct|44054006'`
    """
    with context.open() as session:
        wanted = tag_of(registry, Coding.parse(coding))
        found = session.chains[chain].tagged(wanted)
    rows = [_row(record, entry) for record, entry in found.items()]

    def human(console: Terminal) -> None:
        console.print(table(rows, "record", "version", "purposes", "policy", "needs", "until"))
        console.print(f"{len(rows)} records bear the tag; ask for one with: diptych record request RECORD")

    context.show(rows, human)


def _row(record: bytes, entry: RecordEntry) -> dict[str, Any]:
    rule = entry.rule
    if rule is None:
        raise Malformed("a record that bears a tag has no rule: the node shows what cannot be")
    return {
        "record": record.hex(),
        "version": entry.version,
        "policy": rule.policy,
        "purposes": ", ".join(rule.purposes),
        "needs": f"approval by {rule.approval}" if rule.approval else "–",
        "uses": rule.uses,
        "from": time_text(rule.from_ms) if rule.from_ms is not None else None,
        "until": time_text(rule.until_ms) if rule.until_ms is not None else "–",
    }
