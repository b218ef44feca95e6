"""`diptych record lint`: what in the parts about to be shared says who the patient is."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from client.command import context, record_id
from client.fhir import PRIVATE, group_of, load_bundle, load_profile, read_bundle, split
from client.fhir.lint import MEANING, Finding, has_fields, lint
from client.patient import Patient
from client.sharing import findings_of
from client.terminal import Terminal
from crypto.errors import NotFound

Acknowledge = Annotated[
    list[str] | None,
    typer.Option(
        "--acknowledge",
        metavar="ID",
        help="A finding of `record lint` that may be shared, or all; repeatable.",
    ),
]


app = typer.Typer()


@app.command("lint")
def record_lint(
    what: Annotated[
        str,
        typer.Argument(metavar="BUNDLE|RECORD", help="A bundle before it is signed, or a record of yours."),
    ],
    profile: Annotated[
        str | None,
        typer.Option(help="The profile of the bundle (safe), or of a record not stored yet (its doctor's)."),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="Look as if this part, or all of this group, were shared too; repeatable."),
    ] = None,
    values: Annotated[
        bool,
        typer.Option(
            "--values", help="Show what was found: keep it out of logs and off other people's screens."
        ),
    ] = False,
) -> None:
    """Doctor and patient: find the patient's names, addresses, telecoms, identifiers and birth date in what is about to be shared.

    Also names sensitive parts, and attachments that could not be looked into. Before a part is shared for research, each finding is
    taken out, its part made private, or it is acknowledged by its id. A finding's id stays as long as its resource does.

    Examples: `diptych record lint patient.json` · `diptych record lint 3fa2… --share m8`
    """
    if Path(what).exists() or what == "-":
        parts = split(read_bundle(load_bundle(what)), load_profile(profile or "safe"))
        contents = {part.label: part.content for part in parts}
        shared = {part.label for part in parts if part.access != PRIVATE}
        about = {label for label, content in contents.items() if has_fields(content)}
        findings = lint(contents, shared | _chosen(contents, share), about)
    else:
        with context.open() as session:
            patient = Patient(session)
            stored = patient.load(record_id(what))
        access = stored.classes
        if not stored.version:
            usual = load_profile(profile or stored.header.profile)
            access = {label: usual.access_of(label) for label in stored.labels}
        findings = findings_of(
            stored, patient.contents(stored), access | dict.fromkeys(_chosen(access, share), "shared")
        )
    rows = [_row(finding, values) for finding in findings]

    def human(console: Terminal) -> None:
        _print(console, findings, rows)

    context.show(rows, human)


def _chosen(labels: Any, share: list[str] | None) -> set[str]:
    for name in (wanted := share or []):
        if not any(name in (label, group_of(label)) for label in labels):
            raise NotFound(
                f"there is no part {name!r}; the parts are {', '.join(dict.fromkeys(map(group_of, labels)))}"
            )
    return {label for label in labels if {label, group_of(label)} & set(wanted)}


def _row(finding: Finding, values: bool) -> dict[str, Any]:
    row = {
        "id": finding.id,
        "part": finding.part,
        "kind": finding.kind,
        "places": finding.places,
        "path": finding.path,
    }
    return row | ({"value": finding.text} if values else {})


def _print(console: Terminal, findings: list[Finding], rows: list[dict[str, Any]]) -> None:
    if not findings:
        console.print("nothing found that says who the patient is")
        return
    for row in rows:
        repeated = f" and {row['places'] - 1} places like it" if row["places"] > 1 else ""
        console.print(
            f"{row['id']}  {row['part']:9} {row['kind']:10}  {row['path']}{repeated}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if "value" in row:
            console.print(f"    {row['value'][:400]}", markup=False, highlight=False)
    for kind, count in Counter(finding.kind for finding in findings).items():
        console.print(f"{count:5}  {kind}: {MEANING[kind]}")
