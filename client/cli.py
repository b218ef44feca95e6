"""The command line of the light client: `diptych`, or `python -m client`.

For people by default, `-o json` for programs: then standard output holds one JSON document and nothing else. Progress and errors go to
standard error. Exit codes: see `EXIT_CODES`.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from client import audit, lint_cli
from client.diagnosis import diagnose
from client.doctor import Doctor
from client.enrolment import Invitation
from client.fhir import group_of, join, load_bundle, load_profile
from client.guardians import QrKind, qr, read_share, write_sheets
from client.home import Home, Outside
from client.lint_cli import Acknowledge
from client.patient import Patient, StoredRecord
from client.reader import Reader
from client.session import Session
from client.terminal import Terminal
from configs import passphrases
from configs.files import read, read_text, write
from configs.settings import Pairing
from configs.signer import CommandCesSigner, CommandSigner
from crypto import ceas, ces, group, guardians
from crypto.codec import encode
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from protocol.contract import Receipt
from protocol.genesis import from_toml
from protocol.identity import ChainKind, Purpose

EXIT_CODES: dict[type[DiptychError], int] = {
    Malformed: 3,
    Unauthentic: 4,
    Denied: 5,
    NotFound: 6,
    Unavailable: 7,
    Conflict: 8,
}
FORK = 9
CONVICTION = ("member", "epoch", "kind", "signed", "block", "and", "other block")
DEFAULT_HOME = Path("~/.diptych")
DEFAULT_POLICIES = {
    "private": "role:doctor or role:government",
    "shared": "role:doctor or role:government or role:researcher or role:insurer",
}
DEFAULT_PURPOSES: tuple[Purpose, ...] = ("treatment", "research", "public-health")
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

ChainOption = Annotated[
    ChainKind, typer.Option("--chain", help="storage: the whole record; sharing: its shared part.")
]
RecordId = Annotated[str, typer.Argument(metavar="RECORD", help="A record id: 32 hex digits.")]
Key = Annotated[str, typer.Option(help="A public key: 64 hex digits, as printed by `diptych whoami`.")]


@dataclass
class _Context:
    home: Path
    as_json: bool
    console: Terminal
    passphrase_command: str | None = None
    passphrase_fd: int | None = None
    signer_command: str | None = None
    ces_signer_command: str | None = None

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


_context = _Context(DEFAULT_HOME, False, Terminal(stderr=True))
lint_cli.add_to(record_app, lambda: _context)


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
    global _context
    _context = _Context(
        home,
        output == "json",
        Terminal(stderr=True),
        passphrase_command,
        passphrase_fd,
        signer_command,
        ces_signer_command,
    )
    if notice := (group.use(pairing) if pairing else group.chosen()).notice:
        _context.console.print(notice)


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
    path = _context.home.expanduser()
    if not (path / "master.key").exists():
        if passphrase and _context.passphrase is None:
            _context.passphrase = passphrases.ask_new()
        ces_suite = CES_SUITES[suite] if invited.role == "doctor" else None
        Home.create(path, network, ces_suite, _context.passphrase, _context.outside())
    with _context.open() as session:
        session.enrol(invite)
        _whoami(session)


@app.command()
def whoami() -> None:
    """Show your public key, role and attributes. The key is what a doctor needs to make a record for you."""
    with _context.open() as session:
        _whoami(session)


@app.command()
def renew() -> None:
    """Have your time-bound attributes, such as status:active@2026w47, moved to this week, as long as you are certified.

    Run it weekly (cron), or when a request is denied because of an earlier week.

    Example: `diptych --home ~/rs renew`
    """
    with _context.open() as session:
        session.renew()
        _whoami(session)


def _whoami(session: Session) -> None:
    credential = session.home.credential.credential
    data = {
        "key": credential.subject.hex(),
        "role": credential.role,
        "attributes": list(credential.attributes),
        "valid_until": _time(credential.not_after_ms),
    }
    _context.show(data, lambda c: _print_fields(c, data))


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
    old = _context.passphrase
    new = passphrases.passphrase_from(new_passphrase_command, new_passphrase_fd)
    changed = passphrases.change([_context.home.expanduser() / "master.key"], old, new, remove=remove)
    data = {"changed": bool(changed)}
    _context.show(
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
    with _context.open() as session:
        shares = session.home.split(guardian, needed)
    written = write_sheets(shares, out, qr_code)
    data = {
        "set": guardians.set_name(shares[0].set_id),
        "needed": needed,
        "shares": [{"number": share.number, "guardian": share.label} for share in shares],
        "files": [str(path) for path in written],
    }

    def human(console: Terminal) -> None:
        console.print(_table(data["shares"], "number", "guardian"))  # type: ignore[arg-type]
        console.print(
            f"set {data['set']}: any {needed} recover the keys; written to {out}, delete it once printed"
        )

    _context.show(data, human)


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
    _context.show(data, lambda c: _print_fields(c, data))


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
    if passphrase and _context.passphrase is None:
        _context.passphrase = passphrases.ask_new()
    path = _context.home.expanduser()
    if network:
        ces_suite = CES_SUITES[suite] if suite else None
        Home.create(path, network, ces_suite, _context.passphrase, _context.outside(), found.secret)
    else:
        Home.restore(path, found.secret, _context.passphrase)
    with _context.open() as session:
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

    _context.show(data, human)


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
    acknowledge: Acknowledge = None,
) -> None:
    """Doctor: slice, group and sign a bundle; attest it on both chains; write the package that the patient stores.

    Examples: `diptych record import patient.json --patient 5c1f…` ·
    `diptych record import patient.json --patient 5c1f… --profile fine --rule 'together(m6, m7)'`
    """
    key, data, cut = _hex(patient, 32, "the patient's key"), load_bundle(bundle), load_profile(profile)
    with _context.open() as session:
        record, package, parts = Doctor(session).sign(data, key, cut, rule or (), acknowledge or ())
    path = out or Path(f"{record.hex()}.diptych")
    write(path, package)
    listed = [{"part": p.label, "title": p.title, "access": p.access, "bytes": len(p.content)} for p in parts]
    result = {"record": record.hex(), "package": str(path), "parts": listed}

    def human(console: Terminal) -> None:
        console.print(_table(listed, "part", "title", "access", "bytes"))
        console.print(f"record   {record.hex()}\npackage  {path}  (only the patient can open it)")

    _context.show(result, human)


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
    acknowledge: Acknowledge = None,
) -> None:
    """Patient: verify the doctor's signature, encrypt, upload once, index on both chains.

    In a policy, `@week` stands for the week in which the record is sealed: `status:active@week` is met by whoever was
    certified for it in that week or later (`diptych record renew` seals anew).

    Examples: `diptych record store 3fa2….diptych` · `diptych record store r.diptych --policy 'private=role:doctor and org:st-mary'`
    """
    policies = DEFAULT_POLICIES | _pairs(policy or [], "--policy CLASS=POLICY")
    moved = _pairs(access or [], "--access PART=CLASS")
    with _context.open() as session:
        patient = Patient(session)
        stored = patient.receive(read(package, 200 << 20))
        header = stored.header
        for name in moved:
            stored.indices_of(name)  # refuses a part that there is not
        usual = load_profile(profile or header.profile)
        classes = {
            label: moved.get(label) or moved.get(group_of(label)) or usual.access_of(label)
            for label in stored.labels
        }
        stored = patient.store(header.record, classes, policies, _purposes(purpose), acknowledge or ())
        _show_stored(stored)


@record_app.command("list")
def record_list() -> None:
    """Patient: the records in your home."""
    with _context.open() as session:
        patient = Patient(session)
        stored = [patient.load(record) for record in patient.records()]
    rows = [
        {
            "record": s.header.record.hex(),
            "version": s.version,
            "signed": _time(s.header.created_ms),
            "parts": s.header.count,
            "profile": s.header.profile,
        }
        for s in stored
    ]
    _context.show(rows, lambda c: c.print(_table(rows, "record", "version", "signed", "parts", "profile")))


@record_app.command("show")
def record_show(record: RecordId) -> None:
    """Patient: the parts of a record, their access classes and policies."""
    with _context.open() as session:
        _show_stored(Patient(session).load(_record(record)))


@record_app.command("move")
def record_move(
    record: RecordId,
    part: Annotated[str, typer.Argument(help="The part's label, such as m8.")],
    to: Annotated[
        str, typer.Option(help="The access class it goes to: shared, private, or one of your own.")
    ],
    policy: Annotated[str | None, typer.Option(help="The policy, if the class is new.")] = None,
    acknowledge: Acknowledge = None,
) -> None:
    """Patient: move a part, or all parts of a group, between private and shared by re-encrypting keys alone.

    Whoever could read the part before may have kept it: moving it away keeps new readers out, not old ones.

    Example: `diptych record move 3fa2… m8 --to shared`
    """
    with _context.open() as session:
        _show_stored(Patient(session).move(_record(record), part, to, policy, acknowledge or ()))


@record_app.command("policy")
def record_policy(
    record: RecordId,
    policy: Annotated[list[str], typer.Argument(help="CLASS=POLICY, one or several, changed together.")],
    acknowledge: Acknowledge = None,
) -> None:
    """Patient: change who may read by re-encrypting keys alone.

    Whoever could read before may have kept keys or plaintext: the change keeps new requests out, not old copies.

    Example: `diptych record policy 3fa2… 'shared=role:researcher and org:st-mary'`
    """
    with _context.open() as session:
        changed = _pairs(policy, "CLASS=POLICY")
        _show_stored(Patient(session).set_policies(_record(record), changed, acknowledge or ()))


@record_app.command("renew")
def record_renew(
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECORD]…", help="Record ids; all with time-bound policies by default."),
    ] = None,
) -> None:
    """Patient: encrypt the keys anew for this week, where a policy says so: status:active@week.

    Whose attributes were not renewed since opens nothing that is sealed from now on.

    Example: `diptych record renew`
    """
    with _context.open() as session:
        patient = Patient(session)
        wanted = [_record(text) for text in records] if records else patient.time_bound()
        renewed = [patient.renew(record) for record in wanted]
    rows = [{"record": s.header.record.hex(), "version": s.version} for s in renewed]
    _context.show(rows, lambda c: c.print(_table(rows, "record", "version")))


@record_app.command("log")
def record_log(record: RecordId) -> None:
    """The record's access log from both chains: every request, allowed or denied, and why."""
    with _context.open() as session:
        entries = Patient(session).log(_record(record))
    rows = [{"chain": kind, **_receipt(receipt)} for kind, receipt in entries]
    columns = ("time", "chain", "sender", "purpose", "decision", "reason")
    _context.show(rows, lambda c: c.print(_table(rows, *columns)))


@record_app.command("request")
def record_request(
    record: RecordId,
    chain: ChainOption = "sharing",
    purpose: Annotated[
        str, typer.Option(help="treatment, research, payment, public-health, patient-request.")
    ] = "research",
) -> None:
    """Data user: ask for access. The decision and its reason are on chain; denied ends with exit code 5.

    Example: `diptych record request 3fa2… --chain storage --purpose treatment`
    """
    (asked,) = _purposes([purpose])
    with _context.open() as session:
        receipt = Reader(session).request(_record(record), chain, asked)
        if not receipt.ok and session.is_renewal_due:
            _context.progress("your attributes are of an earlier week; run diptych renew and ask again")
    data = _receipt(receipt)
    _context.show(data, lambda c: _print_fields(c, data))
    if not receipt.ok:
        raise typer.Exit(EXIT_CODES[Denied])


@record_app.command("open")
def record_open(
    record: RecordId,
    chain: ChainOption = "sharing",
    out: Annotated[Path | None, typer.Option(help="Write each part as PART.json into this folder.")] = None,
) -> None:
    """Data user: fetch, decrypt and verify what the last allowed request gives access to.

    Example: `diptych record open 3fa2… --out study/`
    """
    with _context.open() as session:
        opened = Reader(session).open(_record(record), chain)
    if out:
        for label, content in opened.parts.items():
            write(out / f"{label}.json", content, replace=True)
    rows = [{"part": label, "bytes": len(content)} for label, content in opened.parts.items()]
    data: dict[str, Any] = {
        "record": record,
        "version": opened.version,
        "doctor": opened.header.doctor.hex(),
        "signed": _time(opened.header.created_ms),
        "opened": rows,
        "closed_classes": list(opened.closed),
    }
    if not out and _context.as_json:
        data["parts"] = {label: json.loads(content) for label, content in opened.parts.items()}

    def human(console: Terminal) -> None:
        console.print(_table(rows, "part", "bytes"))
        console.print(f"the doctor's signature holds over these {len(rows)} parts")
        if opened.closed:
            console.print(f"closed to you: {', '.join(opened.closed)}")
        if out:
            console.print(f"written to {out}")

    _context.show(data, human)


@record_app.command("export")
def record_export(
    record: RecordId,
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output by default.")] = None,
) -> None:
    """The FHIR bundle back, token for token: from your own home (patient), or opened through the storage chain (readers).

    Example: `diptych record export 3fa2… --out bundle.json`
    """
    with _context.open() as session:
        if session.home.has(f"record-{record}"):
            stored = Patient(session).load(_record(record))
            bundle = join({part.label: part.content for part in stored.record.parts})
        else:
            bundle = Reader(session).open(_record(record), "storage").bundle()
    if out:
        write(out, bundle, replace=True)
        _context.console.print(f"{len(bundle):,} bytes written to {out}")
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
    with _context.open() as session:
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
        console.print(_table(rows, *columns))
        for kind, sentences in zip(session.chains, said, strict=False):
            for sentence in sentences:
                console.print(f"{kind}: {sentence}")

    data = {"nodes": nodes, "diagnosis": dict(zip(session.chains, said, strict=True))} if verbose else nodes
    _context.show(data, human)


@chain_app.command("block")
def chain_block(
    height: Annotated[str, typer.Argument(help="A height, or 'latest'.")] = "latest",
    chain: ChainOption = "storage",
) -> None:
    """One final block with its transactions."""
    with _context.open() as session:
        block = session.chains[chain].get(f"/v1/block/{height}")
    header = block["header"]
    rows = [{"tx": t["tx"], "kind": t["action"]["type"], "sender": t["sender"][:16]} for t in block["txs"]]

    def human(console: Terminal) -> None:
        fields = ("height", "view", "time_ms", "parent", "tx_root", "proposer")
        _print_fields(console, {"block": block["block"], **{name: header[name] for name in fields}})
        console.print(_table(rows, "tx", "kind", "sender"))

    _context.show(block, human)


@chain_app.command("tx")
def chain_tx(
    tx: Annotated[str, typer.Argument(help="A transaction id: 64 hex digits.")],
    chain: ChainOption = "storage",
) -> None:
    """The receipt of one final transaction."""
    with _context.open() as session:
        data = _receipt(session.chains[chain].receipt(_hex(tx, 32, "the transaction id")))
    _context.show(data, lambda c: _print_fields(c, data))


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
        _context.show(rows, lambda c: c.print(_table(rows, *CONVICTION)))
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
            console.print(_table(rows, *CONVICTION))

    _context.show(data, human)
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


# --- helpers ----------------------------------------------------------------------------------------------------------------


def _hex(text: str, size: int, what: str) -> bytes:
    with suppress(ValueError):
        if len(value := bytes.fromhex(text)) == size:
            return value
    raise Malformed(f"{what} must be {2 * size} hex digits")


def _record(text: str) -> bytes:
    return _hex(text, 16, "the record id")


def _pairs(texts: list[str], form: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if any(not name or not value for name, _, value in pairs):
        raise Malformed(f"write {form}")
    return {name.strip(): value for name, _, value in pairs}


def _purposes(texts: list[str] | None) -> tuple[Purpose, ...]:
    if not texts:
        return DEFAULT_PURPOSES
    known = Purpose.__args__  # type: ignore[attr-defined]
    if unknown := set(texts) - set(known):
        raise Malformed(f"{min(unknown)!r} is no purpose of use; use one of {', '.join(known)}")
    return tuple(texts)  # type: ignore[arg-type]


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "tx": receipt.tx.hex(),
        "height": receipt.height,
        "time": _time(receipt.time_ms),
        "kind": receipt.kind,
        "sender": receipt.sender.hex(),
        "record": receipt.record.hex() if receipt.record else None,
        "purpose": receipt.purpose,
        "decision": "allowed" if receipt.ok else "denied",
        "code": receipt.code,
        "reason": receipt.reason,
    }


def _show_stored(stored: StoredRecord) -> None:
    header, labels = stored.header, stored.labels
    rows = [
        {"part": label, "access": part.access, "ciphertext": part.blob.hash.hex(), "bytes": part.blob.size}
        for label, part in zip(labels, stored.parts, strict=bool(stored.parts))
    ]
    policies = dict(stored.policies)
    rules = [ceas.text(rule, header.count, labels.__getitem__) for rule in header.rules]
    data = {
        "record": header.record.hex(),
        "version": stored.version,
        "policies": policies,
        "rules": rules,
        "parts": rows,
    }

    def human(console: Terminal) -> None:
        console.print(_table(rows, "part", "access", "ciphertext", "bytes"))
        for name, policy in policies.items():
            console.print(f"{name:8} {policy}")
        for rule in rules:
            console.print(f"rule     {rule}")
        console.print(
            f"record   {header.record.hex()}  version {stored.version}"
            + ("" if stored.version else " (not stored yet)")
        )

    _context.show(data, human)


def _table(rows: list[dict[str, Any]], *columns: str) -> Table:
    table = Table(*columns)
    for row in rows:
        cells = [f"{v:,}" if isinstance(v := row[c], int) and c == "bytes" else str(v) for c in columns]
        table.add_row(*[cell[:16] + "…" if len(cell) == 64 else cell for cell in cells])
    return table


def _print_fields(console: Terminal, data: Mapping[str, Any]) -> None:
    width = max(map(len, data))
    for name, value in data.items():
        console.print(f"{name:{width}}  {', '.join(value) if isinstance(value, list) else value}")


def main() -> None:
    """Entry point: a refusal becomes one sentence on standard error and its exit code."""
    try:
        app()
    except DiptychError as error:
        code = next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)
        if _context.as_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}), file=sys.stderr)
        else:
            _context.console.print(f"error: {error}", style="red")
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
