"""Commands about consent: the rule of a record and its end, requests that need a second person, proxies."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from client.command import (
    EXIT_CODES,
    ChainOption,
    RecordId,
    Yes,
    agreeing,
    context,
    hex_bytes,
    print_fields,
    purposes_of,
    receipt_fields,
    record_id,
    show_stored,
    table,
)
from client.decisions import Decisions, Task
from client.erasure import Erasure, decode_erasure, erase
from client.fhir.audit_event import audit_events
from client.fhir.consent import MAX_CONSENT, consent_from_rule, rule_from_consent
from client.lint_cli import Acknowledge
from client.patient import Patient
from client.reader import Reader
from client.stored import Terms
from client.tags import Coding, tag_of
from client.terminal import Terminal, time_text
from client.web import now_ms
from configs.files import read, write
from crypto.errors import Conflict, Denied, Malformed, NotFound
from protocol.contract import Proxy, Receipt
from protocol.identity import ChainKind
from protocol.tx import Ground, Power, Rule

NONE = "none"
"""Written to lift a condition."""

record_app = typer.Typer()
"""Joins the commands of `diptych record`."""
access_app = typer.Typer(
    no_args_is_help=True, help="Requests that need a second person: decide, break the glass, review."
)
proxy_app = typer.Typer(no_args_is_help=True, help="Who acts for you, and for whom you act.")

From = Annotated[
    str | None,
    typer.Option(
        "--from", help="Nobody is granted it before: 2026-12-01, or a time such as 2026-12-01T08:00Z."
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", help="Nobody is granted it from then on; a date begins at 00:00 UTC.")
]
Uses = Annotated[str | None, typer.Option("--uses", help="How often it is granted in all.")]
Deny = Annotated[
    list[str] | None, typer.Option("--deny", help="A public key that is never granted it; repeatable.")
]
Approval = Annotated[
    str | None,
    typer.Option(
        "--approval", help="Each request waits for you, or for a second person who satisfies this policy."
    ),
]
EmergencyPolicy = Annotated[
    str | None,
    typer.Option("--emergency", help="Two people who satisfy this policy may break the glass together."),
]
Registry = Annotated[
    str | None, typer.Option(help="The registry whose researchers find the codings given with --tag.")
]
Tag = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        help="SYSTEM|CODE, by which researchers of the --registry find the record, or a tag of 64 hex digits; repeatable.",
    ),
]

ConsentFile = Annotated[
    Path | None,
    typer.Option(
        "--consent",
        help="A FHIR R4 Consent in a file: who may read the shared parts, and the conditions. Other options change what it says.",
    ),
]


def consent_rule(file: Path | None, patient: bytes, record: bytes) -> Rule | None:
    """The rule that a Consent in a file writes for this record; None without a file."""
    return None if file is None else rule_from_consent(read(file, MAX_CONSENT), patient, record)


def terms_of(
    base: Terms,
    from_: str | None,
    until: str | None,
    uses: str | None,
    deny: list[str] | None,
    approval: str | None,
    emergency: str | None,
    allow: list[str] | None = None,
) -> Terms:
    """`base` with what was given changed; `none` lifts a condition, `deny` and `allow` put on and take off the deny list."""
    given: dict[str, Any] = {
        "from_ms": _moment(from_),
        "until_ms": _moment(until),
        "uses": _count(uses),
        "approval": None if approval == NONE else approval,
        "emergency": None if emergency == NONE else emergency,
    }
    texts = {"from_ms": from_, "until_ms": until, "uses": uses, "approval": approval, "emergency": emergency}
    changed = {name: value for name, value in given.items() if texts[name] is not None}
    off = {hex_bytes(key, 32, "a key to allow") for key in allow or []}
    if missing := off - set(base.deny):
        raise Malformed(f"{min(missing).hex()} is not on the deny list")
    denied = (set(base.deny) | {hex_bytes(key, 32, "a key to deny") for key in deny or []}) - off
    return msgspec.structs.replace(base, **changed, deny=tuple(sorted(denied)))


def tags_of(texts: list[str] | None, registry: str | None) -> tuple[bytes, ...] | None:
    """None if none were given; codings become the tags by which the registry finds them."""
    if texts is None or not texts:
        return None
    return () if texts == [NONE] else tuple(_tag(text, registry) for text in texts)


def _tag(text: str, registry: str | None) -> bytes:
    if "|" not in text:
        return hex_bytes(text, 32, "a tag")
    if registry is None:
        raise Malformed("name the registry that shall find this coding, with --registry")
    return tag_of(registry, Coding.parse(text))


def _moment(text: str | None) -> int | None:
    if text is None or text == NONE:
        return None
    try:
        moment = datetime.fromisoformat(text)
        milliseconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0:
        raise Malformed(f"{text!r} is no time; write a date such as 2026-12-01, or 2026-12-01T08:00Z")
    return milliseconds


def _count(text: str | None) -> int | None:
    if text is None or text == NONE:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or not 1 <= int(text) <= 2**31:
        raise Malformed(f"{text!r} is no number of uses; write 1 or more, or {NONE}")
    return int(text)


# --- the rule of a record, and its end ----------------------------------------------------------------------------------------


@record_app.command("rule")
def record_rule(
    record: RecordId,
    purpose: Annotated[
        list[str] | None, typer.Option(help="What the record may be asked for, all of it; repeatable.")
    ] = None,
    from_: From = None,
    until: Until = None,
    uses: Uses = None,
    deny: Deny = None,
    allow: Annotated[list[str] | None, typer.Option(help="Take a key off the deny list; repeatable.")] = None,
    approval: Approval = None,
    emergency: EmergencyPolicy = None,
    tag: Tag = None,
    registry: Registry = None,
    consent: ConsentFile = None,
    acknowledge: Acknowledge = None,
    yes: Yes = False,
) -> None:
    """Patient: change under which conditions the record is granted, by re-encrypting keys alone. `none` lifts a condition.

    Purposes, times, uses, the deny list and the second person bind the contract, and with it every cloud that is honest. Against a
    cloud that is not stand the policies alone: see docs/consent.md.

    A FHIR Consent says all of it at once, and who may read the shared parts; `record consent` writes one.

    Examples: `diptych record rule 3fa2… --until 2027-01-01 --uses 10` · `diptych record rule 3fa2… --deny 5c1f… --approval none` ·
    `diptych record rule 3fa2… --consent consent.json`
    """
    with context.open() as session:
        patient = Patient(session, agreeing(yes))
        wanted = record_id(record)
        stored = patient.load(wanted)
        rule = consent_rule(consent, session.home.sign.public, wanted)
        base = Terms.of(rule) if rule else stored.terms
        terms = terms_of(base, from_, until, uses, deny, approval, emergency, allow)
        purposes = purposes_of(purpose) if purpose else rule.purposes if rule else None
        policies = {stored.shared_class: rule.policy} if rule else None
        tags = tags_of(tag, registry)
        show_stored(patient.set_terms(wanted, purposes, terms, tags, acknowledge or (), policies))


@record_app.command("consent")
def record_consent(
    record: RecordId,
    chain: ChainOption = "sharing",
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output by default.")] = None,
) -> None:
    """Patient: the record's rule on a chain as a FHIR R4 Consent, which `--consent` reads.

    Example: `diptych record consent 3fa2… --out consent.json`
    """
    with context.open() as session:
        wanted = record_id(record)
        stored = Patient(session).load(wanted)
        if not stored.version or stored.is_retired:
            raise Conflict("the record has no rule: it is not stored yet, or retired")
        document = consent_from_rule(stored.rule(chain), session.home.sign.public, wanted)
    _write(document, out)


@record_app.command("audit-events")
def record_audit_events(
    record: RecordId,
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output by default.")] = None,
) -> None:
    """Patient: the record's log on both chains as a Bundle of FHIR R4 AuditEvents (IHE BALP).

    Example: `diptych record audit-events 3fa2… --out log.json`
    """
    with context.open() as session:
        wanted, me = record_id(record), session.home.sign.public
        if not any(session.home.has(f"{kind}-{wanted.hex()}") for kind in ("record", "erasure")):
            raise NotFound("this home has no such record; list yours with: diptych record list")
        log = Patient(session).log(wanted)
        receipts = [(session.home.chains[kind].chain_id, receipt) for kind, receipt in log]
        done = f"erasure-{wanted.hex()}"
        deletions = []
        if session.home.has(done) and (state := decode_erasure(session.home.load(done))).deletion:
            deletions.append((session.cloud.key, state.receipt))
        document = audit_events(receipts, me, deletions=deletions)
    _write(document, out)


def _write(document: bytes, out: Path | None) -> None:
    if out:
        write(out, document, replace=True)
        context.console.print(f"{len(document):,} bytes written to {out}")
    else:
        sys.stdout.buffer.write(document + b"\n")


@record_app.command("rekey")
def record_rekey(
    record: RecordId,
    part: Annotated[
        list[str] | None, typer.Argument(metavar="[PART]…", help="Labels or groups; all parts by default.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Patient: encrypt parts under new keys and upload the new ciphertexts.

    Protects from whoever has kept a key and not the ciphertext: the cloud's next thief with an old reader's keys. Who has kept both
    reads what they have.

    Example: `diptych record rekey 3fa2… m8`
    """
    with context.open() as session:
        show_stored(Patient(session, agreeing(yes)).rekey(record_id(record), part or []))


@record_app.command("retire")
def record_retire(
    record: RecordId,
    replaced_by: Annotated[
        str | None, typer.Option(help="The id of a later record of yours that takes its place.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Patient: end a record on both chains; nobody is granted it any more. Its ciphertexts stay, see `record erase`.

    Example: `diptych record retire 3fa2… --replaced-by 77b0…`
    """
    by = None if replaced_by is None else hex_bytes(replaced_by, 16, "the id of the replacement")
    with context.open() as session:
        show_stored(Patient(session, agreeing(yes)).retire(record_id(record), by))


@record_app.command("erase")
def record_erase(record: RecordId, yes: Yes = False) -> None:
    """Patient: have a record deleted for good, from the chains' state, the cloud and this home. Repeat it if it was interrupted.

    Ends with what is proven. Your keys to the record are destroyed: nobody can bring it back. Delete the doctor's package, too.

    Example: `diptych record erase 3fa2…`
    """
    with context.open() as session:
        done = erase(session, record_id(record), agreeing(yes))
    data = _erasure_fields(done)

    def human(console: Terminal) -> None:
        proof = done.receipt
        console.print(
            f"cloud    signed at {time_text(proof.time_ms)}: {proof.views} views and {proof.blobs} blobs deleted, {proof.size:,} bytes"
        )
        for entry in done.chains:
            console.print(
                f"{entry.kind:8} erased at height {entry.height}, {time_text(entry.time_ms)}, with the cloud's word"
            )
        console.print("home     keys, tags and content overwritten and removed")
        console.print(
            "proven   that the cloud has said so, and when; not that no copy is left with it, or with who has read"
        )

    context.show(data, human)


def _erasure_fields(done: Erasure) -> dict[str, Any]:
    proof = done.receipt
    return {
        "record": done.record.hex(),
        "cloud": {
            "time": time_text(proof.time_ms),
            "views": proof.views,
            "blobs": proof.blobs,
            "bytes": proof.size,
            "receipt": done.deletion.hex(),
        },
        "chains": {
            entry.kind: {"tx": entry.tx.hex(), "height": entry.height, "time": time_text(entry.time_ms)}
            for entry in done.chains
        },
        "home": "destroyed",
    }


# --- second persons -----------------------------------------------------------------------------------------------------------


@access_app.command("pending")
def access_pending() -> None:
    """What waits for you: as a patient or a proxy, requests and emergencies to review; as an approver, requests you may decide.

    Example: `diptych --home ~/me access pending`
    """
    with context.open() as session:
        rows = [_task_fields(task) for task in Decisions(session).pending()]
    columns = (
        "request",
        "chain",
        "record",
        "requester",
        "second",
        "purpose",
        "waits_for",
        "ground",
        "reason",
        "until",
    )

    def human(console: Terminal) -> None:
        if not rows:
            console.print("nothing waits for you")
        for row in rows:
            print_fields(console, {name: row[name] for name in columns if row[name]})
            console.print()

    context.show(rows, human)


def _task_fields(task: Task) -> dict[str, Any]:
    pending = task.pending
    return {
        "request": pending.request.hex(),
        "chain": task.kind,
        "record": pending.record.hex(),
        "patient": pending.patient.hex(),
        "requester": pending.requester.hex(),
        "second": pending.second.hex() if pending.second else None,
        "purpose": pending.purpose,
        "waits_for": "your review" if task.what == "review" else "a decision",
        "you_are": task.standing,
        "ground": pending.emergency.ground if pending.emergency else None,
        "reason": task.reason,
        "asked": time_text(pending.time_ms),
        "until": None if task.what == "review" else time_text(pending.expires_ms),
    }


RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST", help="A request: 64 hex digits, from access pending.")
]


@access_app.command("approve")
def access_approve(request: RequestId) -> None:
    """Agree to a request that waits, as its patient, their proxy, an approver, or the second person in an emergency.

    In an emergency you vouch for the ground: the patient sees both names at once, and reviews it.

    Example: `diptych access approve 9b1e…`
    """
    _decide(request, True)


@access_app.command("decline")
def access_decline(request: RequestId) -> None:
    """Refuse a request that waits.

    Example: `diptych access decline 9b1e…`
    """
    _decide(request, False)


def _decide(request: str, allow: bool) -> None:
    wanted = hex_bytes(request, 32, "the request")
    with context.open() as session:
        kind, receipt = Decisions(session).decide(wanted, allow)
    _show_receipt(kind, receipt)


@access_app.command("emergency")
def access_emergency(
    record: RecordId,
    ground: Annotated[Ground, typer.Option(help="For everyone to see.")],
    reason: Annotated[str, typer.Option(help="In words that only the patient can read.")],
    chain: ChainOption = "sharing",
) -> None:
    """Break the glass: ask for a record whose patient cannot be asked. A second person must agree; the patient is told and reviews it.

    When they have agreed: `diptych record open`.

    Example: `diptych access emergency 3fa2… --ground unconscious --reason 'found at the station, no relatives'`
    """
    with context.open() as session:
        reader = Reader(session)
        receipt = reader.break_glass(record_id(record), chain, ground, reason)
        if receipt.code == "waiting":
            context.progress(f"waits for {reader.who_decides(receipt, chain)}")
    _show_receipt(chain, receipt)


@access_app.command("review")
def access_review(
    request: RequestId,
    verdict: Annotated[
        Literal["justified", "contested"], typer.Argument(help="Your word, for everyone to see.")
    ],
) -> None:
    """Patient, or their proxy: say of an emergency access whether it was justified. It stays on the record's log.

    Example: `diptych access review 9b1e… contested`
    """
    with context.open() as session:
        kind, receipt = Decisions(session).review(hex_bytes(request, 32, "the request"), verdict)
    _show_receipt(kind, receipt)


def _show_receipt(kind: ChainKind, receipt: Receipt) -> None:
    data = {"chain": kind, **receipt_fields(receipt)}
    context.show(data, lambda c: print_fields(c, data))
    if not receipt.ok:
        raise typer.Exit(EXIT_CODES[Denied])


# --- proxies ------------------------------------------------------------------------------------------------------------------

ProxyKey = Annotated[str, typer.Argument(metavar="KEY", help="Their public key: 64 hex digits.")]


@proxy_app.command("set")
def proxy_set(
    key: ProxyKey,
    until: Annotated[str, typer.Option(help="When it ends: a date or a time.")],
    power: Annotated[
        list[str] | None,
        typer.Option(
            help="read: ask for records as you could; decide: on requests and emergencies; both by default."
        ),
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help="When it begins; now by default.")] = None,
) -> None:
    """Patient: let somebody act for you, such as a parent or guardian; gives every stored record a new version that they can open.

    They ask with `diptych record request RECORD --purpose patient-request`. A new set replaces an old one for the same key. Repeat it
    if it was interrupted.

    Example: `diptych proxy set 5c1f… --until 2031-05-01 --power read`
    """
    powers = power or ["decide", "read"]
    known = Power.__args__  # type: ignore[attr-defined]
    if unknown := set(powers) - set(known):
        raise Malformed(f"{min(unknown)!r} is no power; use one of {', '.join(known)}")
    start, end = _moment(from_), _moment(until)
    if end is None:
        raise Malformed("a proxy acts until a time: give --until a date")
    _set_proxy(key, powers, now_ms() if start is None else start, end)


@proxy_app.command("end")
def proxy_end(key: ProxyKey) -> None:
    """Patient: end what somebody may do for you at once, and give every stored record a new version that they cannot open.

    What they have read they may have kept.

    Example: `diptych proxy end 5c1f…`
    """
    _set_proxy(key, [], 0, 0)


def _set_proxy(key: str, powers: list[str], from_ms: int, until_ms: int) -> None:
    proxy = hex_bytes(key, 32, "the proxy's key")
    with context.open() as session:
        changed = Patient(session).set_proxy(proxy, powers, from_ms, until_ms)  # type: ignore[arg-type]
    data = {"proxy": proxy.hex(), "powers": sorted(powers), "records": [record.hex() for record in changed]}
    context.show(data, lambda c: print_fields(c, data))


@proxy_app.command("list")
def proxy_list() -> None:
    """Who acts for you, as this home last said, and for whom you may act.

    Example: `diptych proxy list`
    """
    with context.open() as session:
        mine = [
            {"acts": "for you", "key": p.proxy.hex(), **_span(p)} for p in Patient(session).proxies().proxies
        ]
        wards = [{"acts": "you for", "key": p.patient.hex(), **_span(p)} for p in Decisions(session).wards()]
    rows = [*mine, *wards]
    context.show(rows, lambda c: c.print(table(rows, "acts", "key", "powers", "from", "until")))


def _span(proxy: Proxy) -> dict[str, Any]:
    return {
        "powers": ", ".join(proxy.powers),
        "from": time_text(proxy.from_ms),
        "until": time_text(proxy.until_ms),
    }
