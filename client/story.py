"""The whole scheme as one story, told on a running network with real people, keys, nodes and ciphertext.

Each chapter does what it says and checks what came of it; a chapter whose outcome is not the promised one ends the story with an error.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.table import Table

from client import prooffile
from client.cli import DEFAULT_POLICIES
from client.command import DEFAULT_PURPOSES
from client.decisions import Decisions
from client.doctor import Doctor
from client.erasure import erase
from client.fhir import PRIVATE, load_bundle, load_profile, read_bundle, tokens_equal
from client.fhir.lint import FindingsLeft
from client.home import Home
from client.patient import Patient, envelope_context
from client.reader import OpenedRecord, Reader
from client.session import KINDS, Session
from client.stored import StoredRecord, Terms
from configs.files import load_network
from crypto import ces
from crypto.abe import decapsulate
from crypto.codec import encode
from crypto.errors import Denied, DiptychError
from protocol.contract import Receipt, record_key
from protocol.identity import ChainKind, Purpose, Role

T = TypeVar("T")
SAMPLE = Path(__file__).parent / "samples" / "zoe-angstrom.json"
SWAPPED = {
    PRIVATE: "role:doctor or role:researcher",
    "shared": "role:doctor or role:researcher or role:government or role:insurer",
}
"""After the patient has let government and researchers swap their rights (paper section 5, Figs. 5 and 6)."""

CAST: dict[str, tuple[Role, tuple[str, ...]]] = {
    "doctor": ("doctor", ("org:st-mary",)),
    "patient": ("patient", ()),
    "colleague": ("doctor", ("org:st-mary", "duty:emergency")),
    "researcher": ("user", ("role:researcher",)),
    "government": ("user", ("role:government",)),
    "paramedic": ("user", ("role:paramedic", "duty:emergency")),
    "stranger": ("user", ("role:advertiser",)),
}


class Control(Protocol):
    """What the story needs of the network's supervisor."""

    def start(self, *names: str) -> None: ...
    def wait_ready(self, seconds: float = 90) -> None: ...
    def kill(self, name: str) -> None: ...


class Inviter(Protocol):
    def __call__(self, role: Role, attributes: list[str], hours: int) -> str: ...


class StoryFailed(DiptychError):
    """A chapter did not come out as promised."""


@dataclass
class Outcome:
    """What a told story left behind, for whoever wants to look closer."""

    record: bytes
    exported: bytes
    log: list[tuple[ChainKind, Receipt]]


class Story:
    """A cast of people on one network; tells the story of one record at a time. Use as a context manager."""

    def __init__(self, network: Path, control: Control, invite: Inviter, console: Console) -> None:
        self._control, self._console = control, console
        self._exit = ExitStack()
        self._network, self._invite = network, invite
        self._chapter = 0
        self._started = time.monotonic()

    def __enter__(self) -> "Story":
        folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="diptych-people-")))
        self._people = {name: self._exit.enter_context(Session(self._home(folder, name))) for name in CAST}
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _home(self, folder: Path, name: str) -> Home:
        return Home.create(folder / name, self._network, ces.RSA_PSS if CAST[name][0] == "doctor" else None)

    def enrol(self) -> None:
        """Everybody makes keys and gets them certified on both chains."""
        self._title("Seven people make their keys; the authority certifies the public halves on both chains")
        for name, (role, attributes) in CAST.items():
            _, seconds = _timed(self._people[name].enrol, self._invite(role, list(attributes), 1))
            listed = ", ".join(self._people[name].home.credential.credential.attributes)
            self._say(f"{name:11} {listed}", seconds)

    def tell(self, bundle: bytes, profile: str = "safe", kill: bool = True) -> Outcome:
        """The chapters, on one FHIR bundle."""
        record, package = self._sign(bundle, profile)
        stored = self._store(record, package)
        self._researcher_reads(record, stored)
        whole = self._colleague_reads(record, stored, bundle)
        self._stranger_is_refused(record, stored)
        stored = self._move(record, stored)
        stored = self._swap(record, stored)
        if kill:
            self._nodes_die(record)
        self._two_must_agree(record)
        self._glass_is_broken(record)
        log = self._log(record)
        self._erase(record)
        return Outcome(record, whole.bundle(), log)

    # --- chapters ---------------------------------------------------------------------------------------------------------

    def _sign(self, bundle: bytes, profile: str) -> tuple[bytes, bytes]:
        self._title(
            "The doctor slices the FHIR bundle, signs its parts with one signature, attests it on both chains"
        )
        doctor, patient = Doctor(self._people["doctor"]), self._people["patient"].home.sign.public
        (record, package, parts), seconds = self._looking(
            lambda seen: doctor.sign(bundle, patient, load_profile(profile), acknowledged=seen)
        )
        table = Table("part", "what", "access", "bytes", box=None, padding=(0, 2))
        for part in parts:
            table.add_row(part.label, part.title, part.access, f"{len(part.content):,}")
        self._console.print(table)
        self._say(
            f"bundle {len(bundle):,} bytes -> {len(parts)} parts, package for the patient {len(package):,} bytes",
            seconds,
        )
        self._say(f"record {record.hex()}")
        return record, package

    def _store(self, record: bytes, package: bytes) -> StoredRecord:
        self._title("The patient verifies, encrypts, uploads once, and indexes the record on both chains")
        patient = Patient(self._people["patient"])
        signed = patient.receive(package)
        rules = load_profile(signed.header.profile)
        access = {label: rules.access_of(label) for label in signed.labels}
        stored, seconds = self._looking(
            lambda seen: patient.store(record, access, DEFAULT_POLICIES, DEFAULT_PURPOSES, acknowledged=seen)
        )
        for name, policy in stored.policies:
            labels = [
                label for label, part in zip(stored.labels, stored.parts, strict=True) if part.access == name
            ]
            self._say(f"{name:8} {', '.join(labels)}\n         who: {policy}")
        ciphertext = sum(p.blob.size for p in stored.parts)
        self._say(f"ciphertext in the cloud {ciphertext:,} bytes, stored once for both chains", seconds)
        for kind in KINDS:
            entry = self._people["patient"].chains[kind].verified_record(record)
            self._say(f"index on the {kind} chain {len(encode(entry)):,} bytes, version {entry.version}")
        return stored

    def _researcher_reads(self, record: bytes, stored: StoredRecord) -> None:
        self._title("A researcher asks the sharing chain and opens exactly the shared parts")
        opened = self._read("researcher", record, "sharing", "research")
        _expect(
            set(opened.parts) == _labels(stored, "shared"), "the researcher opens exactly the shared parts"
        )
        self._say(f"opened and verified: {', '.join(opened.parts)}")
        receipt = self._ask("researcher", record, "storage", "research")
        _expect(not receipt.ok, "the storage chain refuses the researcher the whole record")
        self._say(f"the whole record: storage chain says {receipt.code}: {receipt.reason}")

    def _colleague_reads(self, record: bytes, stored: StoredRecord, bundle: bytes) -> OpenedRecord:
        self._title("A doctor with the right attributes asks the storage chain and opens everything")
        opened = self._read("colleague", record, "storage", "treatment")
        _expect(set(opened.parts) == set(stored.labels), "the colleague opens every part")
        _expect(tokens_equal(opened.bundle(), bundle), "the bundle comes back token for token")
        self._say(f"all {len(opened.parts)} parts; the exported bundle equals the doctor's, token for token")
        self._show_sizes(record)
        return opened

    def _show_sizes(self, record: bytes) -> None:
        """What the cloud holds of a record, as a reader of the whole sees it."""
        colleague = self._people["colleague"]
        granted = self._ask("colleague", record, "storage", "treatment")
        index, ticket = colleague.chains["storage"].release(granted.tx, colleague.home.seal)
        head, envelopes, _ = colleague.cloud.fetch(index, ticket, colleague.home.sign)
        self._say(
            f"in the cloud: view {len(encode(head.view))} bytes, index entry {len(encode(index))}, ticket {len(encode(ticket))}"
        )
        for envelope, data in zip(envelopes, head.envelopes, strict=True):
            self._say(
                f"  envelope {envelope.access_class}: {len(data):,} bytes, of which CP-ABE header {len(envelope.header)}, "
                f"extracted signature {len(envelope.extract)}, {len(envelope.parts)} wrapped keys"
            )

    def _stranger_is_refused(self, record: bytes, stored: StoredRecord) -> None:
        self._title(
            "Someone with other attributes is refused: by the contract, by the cloud, by the cryptography"
        )
        stranger, researcher = self._people["stranger"], self._people["researcher"]
        receipt = self._ask("stranger", record, "sharing", "research")
        _expect(not receipt.ok, "the contract refuses the stranger")
        self._say(f"contract: {receipt.reason}")
        granted = self._ask("researcher", record, "sharing", "research")
        index, ticket = researcher.chains["sharing"].release(granted.tx, researcher.home.seal)
        for what, stolen in (("the index alone", None), ("the index and the researcher's ticket", ticket)):
            refusal = _refused(stranger.cloud.fetch, index, stolen, stranger.home.sign)
            self._say(f"cloud, with {what} stolen: {refusal}")
        head, envelopes, _ = researcher.cloud.fetch(index, ticket, researcher.home.sign)
        wanted = [part.blob for envelope in envelopes for part in envelope.parts]
        _, _, blobs = researcher.cloud.fetch(index, ticket, researcher.home.sign, wanted)
        for envelope in envelopes:
            context = envelope_context(
                head.view.record, head.view.version, envelope.access_class, envelope.extract
            )
            home = stranger.home
            refusal = _refused(
                decapsulate, home.abe_public, home.attribute_key, envelope.policy, envelope.header, context
            )
        self._say(f"CP-ABE, with {sum(map(len, blobs.values())):,} bytes of ciphertext stolen: {refusal}")

    def _move(self, record: bytes, stored: StoredRecord) -> StoredRecord:
        label = next(
            name for name in ("m8", "m9", "m1") if stored.parts[stored.indices_of(name)[0]].access == PRIVATE
        )
        self._title(
            f"The patient moves {label} from private to shared: keys are encrypted anew, data is not touched"
        )
        before = {p.blob.hash for p in stored.parts}
        [index] = stored.indices_of(label)
        patient = Patient(self._people["patient"])
        moved, seconds = self._looking(lambda seen: patient.move(record, label, "shared", acknowledged=seen))
        self._say(f"version {stored.version} -> {moved.version}", seconds)
        self._say(f"ciphertext of {label} before {stored.parts[index].blob.hash.hex()[:32]}…")
        self._say(f"                  after  {moved.parts[index].blob.hash.hex()[:32]}…")
        _expect(before == {p.blob.hash for p in moved.parts}, "no data ciphertext changed")
        self._say(f"all {len(before)} data ciphertexts in the cloud are the same")
        opened = self._read("researcher", record, "sharing", "research")
        _expect(
            set(opened.parts) == _labels(moved, "shared") and label in opened.parts,
            f"the researcher opens {label} now",
        )
        self._say(f"the researcher now opens {', '.join(opened.parts)}")
        return moved

    def _swap(self, record: bytes, stored: StoredRecord) -> StoredRecord:
        self._title("Government and researchers swap their rights: again only keys are encrypted anew")
        opened = self._read("government", record, "storage", "public-health")
        _expect(not opened.closed, "government opens everything before the swap")
        self._say(f"before: government opens all {len(opened.parts)} parts")
        patient = Patient(self._people["patient"])
        swapped, seconds = self._looking(lambda seen: patient.set_policies(record, SWAPPED, seen))
        _expect(
            [p.blob for p in swapped.parts] == [p.blob for p in stored.parts], "no data ciphertext changed"
        )
        self._say(
            f"version {stored.version} -> {swapped.version}, the same {len(swapped.parts)} data ciphertexts",
            seconds,
        )
        opened = self._read("researcher", record, "storage", "research")
        _expect(not opened.closed, "researchers open everything after the swap")
        self._say(f"after: the researcher opens all {len(opened.parts)} parts")
        receipt = self._ask("government", record, "storage", "public-health")
        _expect(not receipt.ok, "the storage chain refuses government after the swap")
        opened = self._read("government", record, "sharing", "public-health")
        _expect(
            set(opened.parts) == _labels(swapped, "shared"),
            "government opens exactly the shared parts after the swap",
        )
        self._say(
            f"       government opens {', '.join(opened.parts)} and is refused the rest ({receipt.code})"
        )
        return swapped

    def _two_must_agree(self, record: bytes) -> None:
        self._title("The patient wants a doctor's word on each request, and says who may break the glass")
        patient = Patient(self._people["patient"])
        terms = Terms(approval="role:doctor", emergency="duty:emergency")
        stored, seconds = _timed(lambda: patient.set_terms(record, terms=terms))
        self._say(f"version {stored.version}: a second person is {terms.approval}", seconds)
        asked = self._ask("researcher", record, "sharing", "research")
        _expect(asked.code == "waiting", "the researcher's request waits")
        self._say(f"researcher: {asked.reason}")
        self._decide("colleague", asked)
        opened = Reader(self._people["researcher"]).open(record, "sharing")
        self._say(f"the researcher opens {', '.join(opened.parts)}")

    def _glass_is_broken(self, record: bytes) -> None:
        self._title("An emergency: two people break the glass; the patient is told, and looks at it")
        reason = "found unconscious; allergies unknown"
        ask = Reader(self._people["paramedic"]).break_glass
        asked, seconds = _timed(lambda: ask(record, "sharing", "unconscious", reason))
        self._say(f"paramedic: {asked.reason}", seconds)
        self._decide("colleague", asked)
        opened = Reader(self._people["paramedic"]).open(record, "sharing")
        self._say(f"the paramedic opens {', '.join(opened.parts)}")
        patient = Decisions(self._people["patient"])
        [task] = [t for t in patient.pending() if t.pending.request == asked.tx]
        _expect((task.what, task.reason) == ("review", reason), "the patient alone reads the reason")
        _, receipt = patient.review(asked.tx, "justified")
        _expect(receipt.ok, "the patient has reviewed the emergency")
        self._say(f"the patient reads the reason, which was sealed to them; {receipt.reason}")

    def _decide(self, name: str, asked: Receipt) -> None:
        _, receipt = Decisions(self._people[name]).decide(asked.tx, True)
        _expect(receipt.ok, f"{name} agrees ({receipt.reason})")
        self._say(f"{name} agrees: {receipt.reason}")

    def _log(self, record: bytes) -> list[tuple[ChainKind, Receipt]]:
        self._title("The patient reads the log: every request, allowed or denied, proved to be complete")
        people = self._people["patient"]
        names = {session.home.sign.public: name for name, session in self._people.items()}
        log = Patient(people).log(record)
        table = Table("chain", "height", "who", "what", "purpose", "answer", box=None, padding=(0, 2))
        for kind, receipt in log:
            answer = receipt.code if receipt.ok else f"denied ({receipt.code})"
            who = names[receipt.sender]
            table.add_row(kind, str(receipt.height), who, receipt.kind, receipt.purpose or "", answer)
        self._console.print(table)
        _expect(sum(not r.ok for _, r in log) == 3, "the log shows the three refusals")
        chain = people.chains["sharing"]
        entry, whole = chain.verified_state(record_key(record)), chain.verified_log(record)
        data = prooffile.export(chain.genesis, chain.members.handovers, [entry, whole])
        proved, seconds = _timed(prooffile.verify, data, chain.genesis)
        self._say(
            f"a proof file of {len(data):,} bytes says the same to whoever has the genesis, signed by {', '.join(proved[0].signers)}",
            seconds,
        )
        return log

    def _erase(self, record: bytes) -> None:
        self._title("The patient has the record erased")
        erased, seconds = _timed(erase, self._people["patient"], record)
        gone = erased.receipt
        self._say(
            f"the cloud signs that it has deleted {gone.blobs} blobs of {gone.size:,} bytes; both chains have its receipt",
            seconds,
        )
        receipt = self._ask("colleague", record, "storage", "treatment")
        _expect(receipt.code == "erased", "nobody is granted an erased record")
        self._say(f"the colleague asks again: {receipt.reason}")

    def _nodes_die(self, record: bytes) -> None:
        self._title("One node of each chain is killed with -9, and the story goes on")
        leaders = [self._people["patient"].chains[kind].status()[0]["leader"] for kind in KINDS]
        for name in leaders:
            self._control.kill(name)
            self._say(f"killed {name}, the leader of its chain")
        for kind in KINDS:
            _, seconds = _timed(self._read, "researcher", record, kind, "research")
            self._say(f"the researcher reads through the {kind} chain all the same", seconds)
        self._control.start(*leaders)
        _, seconds = _timed(self._control.wait_ready)
        self._say(f"{' and '.join(leaders)} are started again and back in their networks", seconds)
        for kind in KINDS:
            tips = self._until_level(kind)
            self._say(
                f"all {tips[0]} nodes of the {kind} chain stand at height {tips[1]} with one receipts root"
            )

    def _until_level(self, kind: ChainKind, seconds: float = 30) -> tuple[int, int]:
        """Wait until every node of a chain has executed the same history; (nodes, height)."""
        deadline = time.monotonic() + seconds
        while True:
            found = self._people["patient"].chains[kind].status()
            if (
                len({(s.get("executed_height"), s.get("receipts_root")) for s in found}) == 1
                and "error" not in found[0]
            ):
                return len(found), found[0]["executed_height"]
            _expect(time.monotonic() < deadline, f"the nodes of the {kind} chain agree on their history")
            time.sleep(0.1)

    # --- helpers ------------------------------------------------------------------------------------------------------------

    def _looking(self, work: Callable[[Collection[str]], T]) -> tuple[T, float]:
        """Do what may be held up by findings of the lint; then look at them, acknowledge these and do it again."""
        try:
            return _timed(work, ())
        except FindingsLeft as held_up:
            found = Counter(f"{finding.kind} in {finding.part}" for finding in held_up.findings)
            said = ", ".join(f"{count} × {what}" for what, count in sorted(found.items()))
            self._say(f"held up by the lint: {said}; looked at and acknowledged one by one")
            return _timed(work, [finding.id for finding in held_up.findings])

    def _ask(self, name: str, record: bytes, kind: ChainKind, purpose: Purpose) -> Receipt:
        return Reader(self._people[name]).request(record, kind, purpose)

    def _read(self, name: str, record: bytes, kind: ChainKind, purpose: Purpose) -> OpenedRecord:
        """Request, release, fetch, decrypt, verify."""

        def read() -> OpenedRecord:
            receipt = self._ask(name, record, kind, purpose)
            _expect(receipt.ok, f"the {kind} chain allows {name} ({receipt.reason})")
            return Reader(self._people[name]).open(record, kind)

        opened, seconds = _timed(read)
        size = sum(map(len, opened.parts.values()))
        self._say(f"{name}: asked the {kind} chain, fetched, decrypted, verified {size:,} bytes", seconds)
        return opened

    def _title(self, text: str) -> None:
        self._chapter += 1
        self._console.print(
            f"\n[bold]{self._chapter}. {text}[/bold]  [dim]{time.monotonic() - self._started:.1f} s[/dim]"
        )

    def _say(self, text: str, seconds: float | None = None) -> None:
        took = f"  [cyan]{seconds * 1000:.0f} ms[/cyan]" if seconds is not None else ""
        self._console.print(f"   {text}{took}", highlight=False)


def tell(folder: Path, bundle: Path | None, control: Control, invite: Inviter) -> None:
    """Start the network in `folder` and tell the story on a bundle file, or on the bundled sample."""
    console = Console(soft_wrap=True, highlight=False)
    data = load_bundle(bundle or SAMPLE)
    read_bundle(data)  # a bad file is refused before anything is started
    started = time.monotonic()
    network, _ = load_network(folder / "network.toml")
    counts = [f"{len(chain.nodes)} {kind} nodes" for kind, chain in network.chains.items()]
    console.print(f"[bold]Starting the network: {', '.join(counts)}, a cloud, an authority[/bold]")
    control.start()
    control.wait_ready()
    console.print(f"   all processes ready  [cyan]{time.monotonic() - started:.1f} s[/cyan]")
    with Story(folder / "network.toml", control, invite, console) as story:
        story.enrol()
        story.tell(data)
    console.print(f"\n[bold green]The story is told[/bold green] in {time.monotonic() - started:.1f} s.")


def _labels(stored: StoredRecord, access: str) -> set[str]:
    return {label for label, part in zip(stored.labels, stored.parts, strict=True) if part.access == access}


def _timed(work: Callable[..., T], *args: object) -> tuple[T, float]:
    start = time.monotonic()
    result = work(*args)
    return result, time.monotonic() - start


def _expect(holds: bool, promise: str) -> None:
    if not holds:
        raise StoryFailed(f"the story broke a promise: {promise}")


def _refused(work: Callable[..., object], *args: object) -> Denied:
    """The refusal that `work` must meet."""
    try:
        work(*args)
    except Denied as refusal:
        return refusal
    raise StoryFailed("the story broke a promise: something stolen opened a door")
