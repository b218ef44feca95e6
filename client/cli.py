"""The command line of the light client: `diptych`, or `python -m client`.

For people by default, `-o json` for programs: then standard output holds one JSON document and nothing else. Progress and errors go to
standard error. Exit codes: see `EXIT_CODES`.
"""

import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from client import audit, batch_cli, consent_cli, find_cli, lint_cli, proofs
from client.attach import attached, of_bundle, write_attached
from client.command import (
    DEFAULT_HOME,
    EXIT_CODES,
    ChainOption,
    Context,
    Key,
    RecordId,
    Yes,
    agreeing,
    cloud_fields,
    context,
    hex_bytes,
    pairs_of,
    print_fields,
    purposes_of,
    receipt_fields,
    record_id,
    show_stored,
    table,
)
from client.diagnosis import diagnose
from client.doctor import Doctor
from client.enrolment import Invitation
from client.fhir import group_of, is_attached, is_chunk, join, load_bundle, load_profile
from client.guardians import QrKind, qr, read_share, write_sheets
from client.home import Home
from client.light import ProvedLog
from client.lint_cli import Acknowledge
from client.patient import Patient, merged
from client.reader import Reader
from client.session import Session
from client.stored import Terms
from client.terminal import Terminal, time_text
from configs import passphrases
from configs.files import read, read_text, reading, write, writing
from configs.settings import Pairing
from crypto import ces, group, guardians
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed, Unavailable
from protocol.genesis import from_toml
from protocol.identity import ChainKind

FORK = 9
CONVICTION = ("member", "epoch", "kind", "signed", "block", "and", "other block")
DEFAULT_POLICIES = {
    "private": "role:doctor or role:government",
    "shared": "role:doctor or role:government or role:researcher or role:insurer",
}
CES_SUITES = {"rsa-pss-3072": ces.RSA_PSS, "ed25519": ces.ED25519}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diptych's light client for doctors, patients and data users.",
    epilog="Exit codes: 0 done · 1 internal error · 2 wrong usage · 3 malformed input · 4 forged or changed · 5 denied · "
    "6 not found · 7 unavailable, try again · 8 conflicts with what is there · 9 fork found by an audit · 130 interrupted",
)
record_app = typer.Typer(no_args_is_help=True, help="Sign, store, share, request, open and export records.")
chain_app = typer.Typer(no_args_is_help=True, help="Look at the chains.")
guardians_app = typer.Typer(
    no_args_is_help=True, help="Have people you trust keep shares of your keys, in case you lose them."
)
app.add_typer(record_app, name="record")
app.add_typer(guardians_app, name="guardians")
app.add_typer(chain_app, name="chain")
app.add_typer(consent_cli.access_app, name="access")
app.add_typer(consent_cli.proxy_app, name="proxy")
record_app.add_typer(consent_cli.record_app)
record_app.add_typer(find_cli.record_app)
app.add_typer(find_cli.app)
app.add_typer(proofs.app, name="proof")
record_app.add_typer(lint_cli.app)
app.add_typer(batch_cli.app, name="batch")


@app.callback()
def _options(
    home: Annotated[
        Path, typer.Option("--home", envvar="DIPTYCH_HOME", help="The folder with your keys and records.")
    ] = DEFAULT_HOME,
    output: Annotated[
        Literal["table", "json"], typer.Option("-o", "--output", help="For people, or for programs.")
    ] = "table",
    passphrase_command: Annotated[
        str | None,
        typer.Option(
            envvar="DIPTYCH_PASSPHRASE_COMMAND", help="A command that prints the home's passphrase."
        ),
    ] = None,
    passphrase_fd: Annotated[
        int | None,
        typer.Option(
            min=0, envvar="DIPTYCH_PASSPHRASE_FD", help="A file descriptor that gives it as one line."
        ),
    ] = None,
    signer_command: Annotated[
        str | None,
        typer.Option(
            envvar="DIPTYCH_SIGNER_COMMAND", help="A command that signs, for a home whose key is elsewhere."
        ),
    ] = None,
    ces_signer_command: Annotated[
        str | None,
        typer.Option(envvar="DIPTYCH_CES_SIGNER_COMMAND", help="The same for a doctor's record-signing key."),
    ] = None,
    pairing: Annotated[
        Pairing | None,
        typer.Option(envvar="DIPTYCH_PAIRING", help="Prefer this pairing library to the fastest."),
    ] = None,
) -> None:
    context.begin(
        Context(
            home,
            output == "json",
            Terminal(stderr=True),
            passphrase_command,
            passphrase_fd,
            signer_command,
            ces_signer_command,
        )
    )
    if notice := (group.use(pairing) if pairing else group.chosen()).notice:
        context.console.print(notice)


@app.command()
def init(
    network: Annotated[
        Path, typer.Option(help="The network file; it and the genesis files beside it are pinned.")
    ],
    invite: Annotated[str, typer.Option(help="The authority's invitation.")],
    suite: Annotated[
        str, typer.Option("--ces", help=f"A doctor's record-signing suite: {', '.join(CES_SUITES)}.")
    ] = "rsa-pss-3072",
    passphrase: Annotated[
        bool, typer.Option(help="Protect the keys with a passphrase, asked for on the terminal.")
    ] = False,
) -> None:
    """Make your keys and have the authority certify them. Repeat it if it was interrupted.

    Example: `diptych --home ~/alice init --network devnet/network.toml --invite diptych-invite-…`
    """
    if suite not in CES_SUITES:
        raise Malformed(f"{suite!r} is no record-signing suite; use one of {', '.join(CES_SUITES)}")
    invited = Invitation.from_text(invite).invite.body
    path = context.home.expanduser()
    if not (path / "master.key").exists():
        if passphrase and context.passphrase is None:
            context.passphrase = passphrases.ask_new()
        ces_suite = CES_SUITES[suite] if invited.role == "doctor" else None
        Home.create(path, network, ces_suite, context.passphrase, context.outside())
    with context.open() as session:
        session.enrol(invite)
        _whoami(session)


@app.command()
def whoami() -> None:
    """Show your public key, role and attributes. The key is what a doctor needs to make a record for you."""
    with context.open() as session:
        _whoami(session)


@app.command()
def renew() -> None:
    """Have your time-bound attributes, such as status:active@2026w47, moved to this week, as long as you are certified.

    Run it weekly (cron), or when a request is denied because of an earlier week.

    Example: `diptych --home ~/rs renew`
    """
    with context.open() as session:
        session.renew()
        _whoami(session)


def _whoami(session: Session) -> None:
    credential = session.home.credential.credential
    data = {
        "key": credential.subject.hex(),
        "role": credential.role,
        "attributes": list(credential.attributes),
        "valid_until": time_text(credential.not_after_ms),
    }
    context.show(data, lambda c: print_fields(c, data))


@app.command("passphrase")
def change_passphrase(
    new_passphrase_command: Annotated[
        str | None, typer.Option(help="A command that prints the new passphrase.")
    ] = None,
    new_passphrase_fd: Annotated[
        int | None, typer.Option(min=0, help="A file descriptor that gives it; may be the present one's.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Leave the home without a passphrase.")] = False,
) -> None:
    """Change, set or remove the passphrase of your home; asks on the terminal for what is not given.

    The key file is replaced whole. Old copies of it keep the old passphrase.

    Examples: `diptych --home ~/alice passphrase` ·
    `diptych --passphrase-command 'pass old' passphrase --new-passphrase-command 'pass new'` ·
    `printf 'old\\nnew\\n' | diptych --passphrase-fd 0 passphrase --new-passphrase-fd 0`
    """
    old = context.passphrase
    new = passphrases.passphrase_from(new_passphrase_command, new_passphrase_fd)
    changed = passphrases.change([context.home.expanduser() / "master.key"], old, new, remove=remove)
    data = {"changed": bool(changed)}
    context.show(
        data, lambda c: c.print("the passphrase is " + ("changed" if changed else "the new one already"))
    )


# --- guardians --------------------------------------------------------------------------------------------------------------


@guardians_app.command("split")
def guardians_split(
    guardian: Annotated[
        list[str], typer.Argument(help="A name for each guardian, which stands on their share.")
    ],
    needed: Annotated[int, typer.Option(help="How many of them together recover your keys.")],
    out: Annotated[Path, typer.Option(help="The folder for the sheets, one text a guardian to print.")],
    qr_code: Annotated[QrKind, typer.Option("--qr", help="Write a QR code beside each sheet.")] = "svg",
) -> None:
    """Split your keys among guardians: any --needed of them can bring you back, fewer know nothing.

    Print each sheet, hand it over in person, then delete the folder. Guardians who join up to that number can act as you: choose people
    who would not. A new split does not undo an old one; ask for old sheets back.

    Example: `diptych --home ~/alice guardians split Bob Carol Dave --needed 2 --out shares/`
    """
    with context.open() as session:
        shares = session.home.split(guardian, needed)
    written = write_sheets(shares, out, qr_code)
    data = {
        "set": guardians.set_name(shares[0].set_id),
        "needed": needed,
        "shares": [{"number": share.number, "guardian": share.label} for share in shares],
        "files": [str(path) for path in written],
    }

    def human(console: Terminal) -> None:
        console.print(table(data["shares"], "number", "guardian"))  # type: ignore[arg-type]
        console.print(
            f"set {data['set']}: any {needed} recover the keys; written to {out}, delete it once printed"
        )

    context.show(data, human)


@guardians_app.command("check")
def guardians_check(
    share: Annotated[Path, typer.Argument(help="A share in a file, or - for standard input.")],
    qr_code: Annotated[bool, typer.Option("--qr", help="Show it as a QR code on the terminal.")] = False,
) -> None:
    """Read a share and say what it is, or which groups of it are mistyped. Needs no home and no other share.

    Examples: `diptych guardians check share-2.txt` · `diptych guardians check share-2.txt --qr`
    """
    found = read_share(share)
    if qr_code:
        qr(found).terminal(sys.stdout, compact=True)
        return
    data = {
        "set": guardians.set_name(found.set_id),
        "number": found.number,
        "total": found.total,
        "needed": found.needed,
        "guardian": found.label,
    }
    context.show(data, lambda c: print_fields(c, data))


@guardians_app.command("recover")
def guardians_recover(
    share: Annotated[
        list[Path], typer.Argument(help="Files with the shares as printed or scanned; - for standard input.")
    ],
    network: Annotated[
        Path | None,
        typer.Option(help="The network file, if no copy of the home is left to put its key into."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--ces", help="With --network, for a doctor: the suite of a new record-signing key."),
    ] = None,
    passphrase: Annotated[
        bool, typer.Option(help="Protect the keys with a new passphrase, asked for on the terminal.")
    ] = False,
) -> None:
    """Bring your keys back from guardians' shares, into a copy of your home or, with --network, into a new one.

    A copy (without its master.key, or with a forgotten passphrase) gets its key back and has all your records. A new home has your
    identity again: `diptych renew` fetches what is certified, or `diptych init` with a new invitation; ask your doctors for the records.

    Examples: `diptych --home ~/alice guardians recover share-1.txt share-3.txt --passphrase` ·
    `diptych --home ~/alice guardians recover share-1.txt share-3.txt --network network.toml`
    """
    if suite and suite not in CES_SUITES:
        raise Malformed(f"{suite!r} is no record-signing suite; use one of {', '.join(CES_SUITES)}")
    found = guardians.recover([read_share(path) for path in share])
    if passphrase and context.passphrase is None:
        context.passphrase = passphrases.ask_new()
    path = context.home.expanduser()
    if network:
        ces_suite = CES_SUITES[suite] if suite else None
        Home.create(path, network, ces_suite, context.passphrase, context.outside(), found.secret)
    else:
        Home.restore(path, found.secret, context.passphrase)
    with context.open() as session:
        key, records = session.home.sign.public.hex(), len(session.home.names("record"))
    altered = [share.name for share in found.altered]
    data = {"key": key, "records": records, "altered": altered}

    def human(console: Terminal) -> None:
        console.print(f"your keys are back: public key {key}, {records} records")
        if altered:
            console.print(f"altered since the split and left out: {', '.join(altered)}", markup=False)
        if network:
            console.print(
                "fetch your credential and attribute key with: diptych renew (doctors: diptych init --invite …)"
            )

    context.show(data, human)


# --- records ----------------------------------------------------------------------------------------------------------------


@record_app.command("import")
def record_import(
    bundle: Annotated[
        Path, typer.Argument(help="A FHIR R4 bundle: .json, .json.gz, or - for standard input.")
    ],
    patient: Key,
    profile: Annotated[
        str, typer.Option(help="How the bundle is cut into parts: safe, fine, paper, or a TOML file.")
    ] = "safe",
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="Which parts may be shown without which: 'together(m6, m7)', 'never(m8)', 'least(2, m5, m6, m7)', "
            "'if(m6, any(m7, m8))'; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the package for the patient goes; RECORD.diptych by default.")
    ] = None,
    attach: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file that goes with the bundle, such as a scan, as parts a1, a2, …; private; repeatable."
        ),
    ] = None,
    acknowledge: Acknowledge = None,
) -> None:
    """Doctor: slice, group and sign a bundle; attest it on both chains; write the package that the patient stores.

    Attached files may be of any size up to 16 GiB together: they are read twice, 4 MiB at a time. Their names go into the record, where
    who may open them sees them.

    Examples: `diptych record import patient.json --patient 5c1f…` ·
    `diptych record import patient.json --patient 5c1f… --profile fine --rule 'together(m6, m7)'` ·
    `diptych record import patient.json --patient 5c1f… --attach scan.dcm --attach letter.pdf`
    """
    key, data, cut = hex_bytes(patient, 32, "the patient's key"), load_bundle(bundle), load_profile(profile)
    with context.open() as session:
        doctor, record = Doctor(session), os.urandom(16)
        path = out or Path(f"{record.hex()}.diptych")
        with writing(path) as package:
            signed, parts = doctor.prepare(
                data, key, cut, package, rule or (), acknowledge or (), attach or (), record
            )
            doctor.attest(signed)
    sizes = {part.label: len(part.content) for part in parts}
    sizes |= {file.label: file.size for file in attached({part.label: part.content for part in parts})}
    listed = [{"part": p.label, "title": p.title, "access": p.access, "bytes": sizes[p.label]} for p in parts]
    result = {"record": record.hex(), "package": str(path), "parts": listed}

    def human(console: Terminal) -> None:
        console.print(table(listed, "part", "title", "access", "bytes"))
        console.print(f"record   {record.hex()}\npackage  {path}  (only the patient can open it)")

    context.show(result, human)


@record_app.command("store")
def record_store(
    package: Annotated[Path, typer.Argument(help="The package that the doctor made.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="CLASS=POLICY, such as 'shared=role:researcher and org:st-mary'.")
    ] = None,
    access: Annotated[
        list[str] | None, typer.Option(help="PART=CLASS, to put a part elsewhere than the profile says.")
    ] = None,
    purpose: Annotated[
        list[str] | None, typer.Option(help="What the record may be asked for; repeatable.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A profile file, if the doctor used one that is not built in.")
    ] = None,
    from_: consent_cli.From = None,
    until: consent_cli.Until = None,
    uses: consent_cli.Uses = None,
    deny: consent_cli.Deny = None,
    approval: consent_cli.Approval = None,
    emergency: consent_cli.EmergencyPolicy = None,
    tag: consent_cli.Tag = None,
    registry: consent_cli.Registry = None,
    consent: consent_cli.ConsentFile = None,
    acknowledge: Acknowledge = None,
    yes: Yes = False,
) -> None:
    """Patient: verify the doctor's signature, encrypt, upload once, index on both chains.

    In a policy, `@week` stands for the week in which the record is sealed: `status:active@week` is met by whoever was
    certified for it in that week or later (`diptych record renew` seals anew).

    Examples: `diptych record store 3fa2….diptych` · `diptych record store r.diptych --policy 'private=role:doctor and org:st-mary'` ·
    `diptych record store r.diptych --until 2027-01-01 --approval 'role:ethics-board' --emergency 'role:doctor and dept:emergency'` ·
    `diptych record store r.diptych --consent consent.json`
    """
    given = pairs_of(policy or [], "--policy CLASS=POLICY")
    moved = pairs_of(access or [], "--access PART=CLASS")
    with context.open() as session:
        patient = Patient(session, agreeing(yes))
        with reading(package) as file:
            stored = patient.receive(file)
        header = stored.header
        for name in moved:
            stored.indices_of(name)  # refuses a part that there is not
        usual = load_profile(profile or header.profile)
        classes = {
            label: moved.get(label) or moved.get(group_of(label)) or usual.access_of(label)
            for label in stored.labels
        }
        rule = consent_cli.consent_rule(consent, session.home.sign.public, header.record)
        written = {"shared": rule.policy} if rule else {}
        base = Terms.of(rule) if rule else Terms()
        terms = consent_cli.terms_of(base, from_, until, uses, deny, approval, emergency)
        purposes = rule.purposes if rule and not purpose else purposes_of(purpose)
        tags = consent_cli.tags_of(tag, registry) or ()
        policies = DEFAULT_POLICIES | written | given
        stored = patient.store(header.record, classes, policies, purposes, terms, tags, acknowledge or ())
        show_stored(stored)


@record_app.command("list")
def record_list() -> None:
    """Patient: the records in your home."""
    with context.open() as session:
        patient = Patient(session)
        stored = [patient.load(record) for record in patient.records()]
    rows = [
        {
            "record": s.header.record.hex(),
            "version": s.version,
            "signed": time_text(s.header.created_ms),
            "parts": s.header.count,
            "profile": s.header.profile,
        }
        for s in stored
    ]
    context.show(rows, lambda c: c.print(table(rows, "record", "version", "signed", "parts", "profile")))


@record_app.command("show")
def record_show(record: RecordId) -> None:
    """Patient: the parts of a record, their access classes and policies."""
    with context.open() as session:
        show_stored(Patient(session).load(record_id(record)))


@record_app.command("move")
def record_move(
    record: RecordId,
    part: Annotated[str, typer.Argument(help="The part's label, such as m8.")],
    to: Annotated[
        str, typer.Option(help="The access class it goes to: shared, private, or one of your own.")
    ],
    policy: Annotated[str | None, typer.Option(help="The policy, if the class is new.")] = None,
    acknowledge: Acknowledge = None,
    yes: Yes = False,
) -> None:
    """Patient: move a part, or all parts of a group, between private and shared by re-encrypting keys alone.

    Whoever could read the part before may have kept it: moving it away keeps new readers out, not old ones.

    Example: `diptych record move 3fa2… m8 --to shared`
    """
    with context.open() as session:
        show_stored(
            Patient(session, agreeing(yes)).move(record_id(record), part, to, policy, acknowledge or ())
        )


@record_app.command("policy")
def record_policy(
    record: RecordId,
    policy: Annotated[list[str], typer.Argument(help="CLASS=POLICY, one or several, changed together.")],
    acknowledge: Acknowledge = None,
    yes: Yes = False,
) -> None:
    """Patient: change who may read by re-encrypting keys alone.

    Whoever could read before may have kept keys or plaintext: the change keeps new requests out, not old copies.

    Example: `diptych record policy 3fa2… 'shared=role:researcher and org:st-mary'`
    """
    with context.open() as session:
        patient, changed = Patient(session, agreeing(yes)), pairs_of(policy, "CLASS=POLICY")
        show_stored(patient.set_policies(record_id(record), changed, acknowledge or ()))


@record_app.command("renew")
def record_renew(
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECORD]…", help="Record ids; all with time-bound policies by default."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Patient: encrypt the keys anew for this week, where a policy says so: status:active@week.

    Whose attributes were not renewed since opens nothing that is sealed from now on.

    Example: `diptych record renew --yes` (weekly, by cron)
    """
    with context.open() as session:
        patient = Patient(session, agreeing(yes))
        wanted = [record_id(text) for text in records] if records else patient.time_bound()
        renewed = [patient.renew(record) for record in wanted]
    rows = [{"record": s.header.record.hex(), "version": s.version} for s in renewed]
    context.show(rows, lambda c: c.print(table(rows, "record", "version")))


@record_app.command("log")
def record_log(
    record: RecordId,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say too what proves that nothing is missing, and by whose word.")
    ] = False,
) -> None:
    """The record's log: every version, request, decision and review on both chains, and, for its patient, every download that the cloud
    has served or refused. Allowed, denied or waiting, and why.

    What the chains hold is shown only if it is proved to be complete. As a file that proves it to others: `diptych proof export RECORD`.

    Example: `diptych record log 3fa2… --verify`
    """
    with context.open() as session:
        patient, wanted = Patient(session), record_id(record)
        logs = patient.proved_logs(wanted)
        entries: list[tuple[int, dict[str, Any]]] = [
            (receipt.time_ms, {"chain": kind, **receipt_fields(receipt)}) for kind, receipt in merged(logs)
        ]
        entries += [(entry.time_ms, cloud_fields(entry, record)) for entry in patient.cloud_log(wanted)]
        proofs = [_completeness(kind, log, session) for kind, log in logs] if verify else []
    rows = [row for _, row in sorted(entries, key=lambda e: e[0])]
    columns = ("time", "chain", "kind", "sender", "purpose", "decision", "reason")

    def human(console: Terminal) -> None:
        console.print(table(rows, *columns))
        for proof in proofs:
            console.print(
                f"{proof['chain']}: {proof['receipts']} receipts and no others up to height {proof['height']}, {proof['time']}, "
                f"as signed by {', '.join(proof['signed_by'])}"
            )

    context.show({"log": rows, "complete": proofs} if verify else rows, human)


def _completeness(kind: ChainKind, log: ProvedLog, session: Session) -> dict[str, Any]:
    """Where the chain stood when it held just these receipts, and who has signed for that."""
    signed, members = log.head.signed, session.chains[kind].committee.members
    return {
        "chain": kind,
        "receipts": len(log.receipts),
        "height": signed.checkpoint.height,
        "time": time_text(signed.checkpoint.time_ms),
        "signed_by": [members[s.signer].name for s in signed.signatures],
    }


@record_app.command("request")
def record_request(
    record: RecordId,
    chain: ChainOption = "sharing",
    purpose: Annotated[
        str, typer.Option(help="treatment, research, payment, public-health, patient-request.")
    ] = "research",
) -> None:
    """Data user: ask for access. The decision and its reason are on chain; denied ends with exit code 5.

    If it must wait for a second person, `diptych record open` works once they have agreed. In an emergency: `diptych access emergency`.

    Example: `diptych record request 3fa2… --chain storage --purpose treatment`
    """
    (asked,) = purposes_of([purpose])
    with context.open() as session:
        reader = Reader(session)
        receipt = reader.request(record_id(record), chain, asked)
        if receipt.code == "waiting":
            context.progress(f"waits for {reader.who_decides(receipt, chain)}")
        if not receipt.ok and session.is_renewal_due:
            context.progress("your attributes are of an earlier week; run diptych renew and ask again")
    data = receipt_fields(receipt)
    context.show(data, lambda c: print_fields(c, data))
    if not receipt.ok:
        raise typer.Exit(EXIT_CODES[Denied])


@record_app.command("open")
def record_open(
    record: RecordId,
    chain: ChainOption = "sharing",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write each part as PART.json into this folder, and attached files as a1.bin, a2.bin, …"
        ),
    ] = None,
) -> None:
    """Data user: fetch, decrypt and verify what the last allowed request gives access to.

    What an attached file was called and is stands in a1.json, a2.json, …

    Example: `diptych record open 3fa2… --out study/`
    """
    with context.open() as session, Reader(session).open(record_id(record), chain) as opened:
        texts = [label for label in opened.parts if not is_chunk(label)]
        files = write_attached(opened.parts, out) if out else attached(opened.parts)
        if out:
            for label in texts:
                write(out / f"{label}.json", opened.parts[label], replace=True)
        shown = (
            {} if out or not context.as_json else {label: json.loads(opened.parts[label]) for label in texts}
        )
    rows = [{"part": label, "bytes": opened.parts.sizes[label]} for label in texts]
    data: dict[str, Any] = {
        "record": record,
        "version": opened.version,
        "doctor": opened.header.doctor.hex(),
        "signed": time_text(opened.header.created_ms),
        "opened": rows,
        "closed_classes": list(opened.closed),
    }
    if files:
        data["attachments"] = [file.fields for file in files]
    if shown:
        data["parts"] = shown

    def human(console: Terminal) -> None:
        console.print(table(rows, "part", "bytes"))
        if files:
            console.print(table([file.fields for file in files], "part", "title", "type", "bytes", "whole"))
        console.print(f"the doctor's signature holds over these {len(opened.parts)} parts")
        if opened.closed:
            console.print(f"closed to you: {', '.join(opened.closed)}")
        if out:
            console.print(f"written to {out}")

    context.show(data, human)


@record_app.command("export")
def record_export(
    record: RecordId,
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output by default.")] = None,
    attachments: Annotated[
        Path | None,
        typer.Option(help="Write attached files into this folder, as a1.bin, and what they are as a1.json."),
    ] = None,
) -> None:
    """The FHIR bundle back, token for token: from your own home (patient), or opened through the storage chain (readers).

    Attached files are no part of the bundle; name a folder for them.

    Examples: `diptych record export 3fa2… --out bundle.json` ·
    `diptych record export 3fa2… --out bundle.json --attachments files/`
    """
    with context.open() as session:
        if session.home.has(f"record-{record}"):
            owner = Patient(session)
            parts: Mapping[str, bytes] = owner.contents(owner.load(record_id(record)))
            bundle = join(of_bundle(parts))
        else:
            opened = Reader(session).open(record_id(record), "storage")
            parts, bundle = opened.parts, opened.bundle()
        if attachments:
            for file in write_attached(parts, attachments):
                write(attachments / f"{file.label}.json", parts[file.label], replace=True)
        elif any(map(is_attached, parts)):
            context.progress(
                "files are attached, which are no part of the bundle; write them with --attachments FOLDER"
            )
    if out:
        write(out, bundle, replace=True)
        context.console.print(f"{len(bundle):,} bytes written to {out}")
    else:
        sys.stdout.buffer.write(bundle + b"\n")


# --- chains -----------------------------------------------------------------------------------------------------------------


@chain_app.command("status")
def chain_status(
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Say of each chain in a sentence why it does or does not move."),
    ] = False,
) -> None:
    """Every node of both chains: height, view, leader, peers, and what is wrong if anything is.

    Examples: `diptych chain status` · `diptych chain status --verbose`
    """
    with context.open() as session:
        found = session.on_chains(lambda kind: session.chains[kind].status())
    said = (
        [diagnose(c.committee, nodes) for c, nodes in zip(session.chains.values(), found, strict=True)]
        if verbose
        else []
    )
    nodes = [s for chain in found for s in chain]
    rows = [
        {
            "node": s.get("node", s.get("url")),
            "height": s.get("height", "–"),
            "view": s.get("view", "–"),
            "leader": s.get("leader", "–"),
            "peers": len(s.get("peers", [])),
            "mempool": s.get("mempool", "–"),
            "trouble": s.get("error") or s.get("halted") or s.get("alarm") or "",
        }
        for s in nodes
    ]
    columns = ("node", "height", "view", "leader", "peers", "mempool", "trouble")

    def human(console: Terminal) -> None:
        console.print(table(rows, *columns))
        for kind, sentences in zip(session.chains, said, strict=False):
            for sentence in sentences:
                console.print(f"{kind}: {sentence}")

    data = {"nodes": nodes, "diagnosis": dict(zip(session.chains, said, strict=True))} if verbose else nodes
    context.show(data, human)


@chain_app.command("block")
def chain_block(
    height: Annotated[str, typer.Argument(help="A height, or 'latest'.")] = "latest",
    chain: ChainOption = "storage",
) -> None:
    """One final block with its transactions."""
    with context.open() as session:
        block = session.chains[chain].get(f"/v1/block/{height}")
    header = block["header"]
    rows = [{"tx": t["tx"], "kind": t["action"]["type"], "sender": t["sender"][:16]} for t in block["txs"]]

    def human(console: Terminal) -> None:
        fields = ("height", "view", "time_ms", "parent", "tx_root", "proposer")
        print_fields(console, {"block": block["block"], **{name: header[name] for name in fields}})
        console.print(table(rows, "tx", "kind", "sender"))

    context.show(block, human)


@chain_app.command("tx")
def chain_tx(
    tx: Annotated[str, typer.Argument(help="A transaction id: 64 hex digits.")],
    chain: ChainOption = "storage",
) -> None:
    """The receipt of one final transaction."""
    with context.open() as session:
        data = receipt_fields(
            session.chains[chain].verified_receipt(hex_bytes(tx, 32, "the transaction id")).proof.receipt
        )
    context.show(data, lambda c: print_fields(c, data))


@app.command("audit")
def audit_databases(
    databases: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DB_A DB_B [DB_C…]", help="consensus.db of two or more nodes, or copies."),
    ] = None,
    genesis: Annotated[Path, typer.Option(help="The chain's genesis file.")] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path | None, typer.Option(help="Write the pairs of votes that convict members here.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Check such a file instead of comparing databases.")
    ] = None,
) -> None:
    """Compare nodes' consensus databases offline: one history, or a fork, and whose signatures prove who made it.

    A node that has fetched blocks from others lacks some of their certificates: name more databases if two do not show who made a
    fork. Ends with exit code 0 for one history and 9 for a fork. The evidence convinces anyone who has the genesis.

    Examples: `diptych audit a/consensus.db b/consensus.db --genesis genesis-storage.toml --out evidence.bin` ·
    `diptych audit --verify evidence.bin --genesis genesis-storage.toml`
    """
    chain = from_toml(read_text(genesis))
    if verify:
        if databases or out:
            raise Malformed("--verify checks a file alone; leave the databases and --out away")
        rows = _convictions_shown(audit.verify(read(verify, audit.MAX_FILE), chain))
        context.show(rows, lambda c: c.print(table(rows, *CONVICTION)))
        return
    if not databases or len(databases) < 2:
        raise Malformed("name two or more databases to compare, or --verify FILE")
    report = audit.audit(databases, chain)
    rows = _convictions_shown(report.convictions)
    if out and rows:
        write(out, encode(audit.evidence_file(report, chain)))
    verdict = f"one history: proved up to heights {', '.join(map(str, report.heights))}"
    branches = [[str(databases[i]) for i in branch] for branch in report.branches]
    if report.fork is not None:
        sides = " against ".join(", ".join(branch) for branch in branches)
        verdict = f"FORK at height {report.fork}: {len(branches)} histories are certified, {sides}"
        if not rows:
            verdict += "; these databases lack the certificates that name the members who made it: add those of other nodes"
    data = {
        "heights": list(report.heights),
        "fork": report.fork,
        "branches": branches,
        "verdict": verdict,
        "evidence": rows,
    }

    def human(console: Terminal) -> None:
        console.print(verdict)
        if rows:
            console.print(table(rows, *CONVICTION))

    context.show(data, human)
    if report.fork is not None:
        raise typer.Exit(FORK)


def _convictions_shown(convictions: Sequence[audit.Conviction]) -> list[dict[str, Any]]:
    return [
        {
            "member": member.name,
            "key": member.key.hex(),
            "epoch": pair.epoch,
            "kind": pair.kind,
            "signed": f"{pair.first.kind} in view {pair.first.view}",
            "block": pair.first.block.hex() if pair.first.block else "–",
            "and": f"{pair.second.kind} in view {pair.second.view}",
            "other block": pair.second.block.hex() if pair.second.block else "–",
        }
        for member, pair in convictions
    ]


def main() -> None:
    """Entry point: a refusal becomes one sentence on standard error and its exit code."""
    try:
        app()
    except DiptychError as error:
        code = next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)
        if context.as_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}), file=sys.stderr)
        else:
            context.console.print(f"error: {error}", style="red")
        sys.exit(code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        context.console.print("error: the disk is full; make room and repeat the command", style="red")
        sys.exit(EXIT_CODES[Unavailable])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
