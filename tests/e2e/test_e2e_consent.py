"""The life of a record after it is stored, by commands against a real network: rules, second persons, proxies, new keys, the end."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.doctor import Doctor
from client.fhir import load_profile
from client.home import Home
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from client.stored import Terms
from crypto.errors import Conflict, DiptychError
from node.devnet import Supervisor

POLICIES = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}
PURPOSES = ("research", "treatment")
TERMS = Terms(approval="role:board", emergency="dept:emergency")


@pytest.fixture(scope="module")
def cast(join_as: Callable[..., Session]) -> SimpleNamespace:
    return SimpleNamespace(
        doctor=join_as("doctor", "org:st-mary"),
        patient=join_as("patient"),
        researcher=join_as("user", "role:researcher"),
        board=join_as("user", "role:board"),
        medic=join_as("user", "dept:emergency"),
        second=join_as("user", "dept:emergency"),
        parent=join_as("user", "role:relative"),
    )


@pytest.fixture
def store(cast: SimpleNamespace, sample: bytes) -> Callable[..., str]:
    """Stores a new record of the patient and gives its id."""

    def make(terms: Terms = Terms()) -> str:  # noqa: B008 - immutable
        profile = load_profile("safe")
        record, package, _ = Doctor(cast.doctor).sign(sample, cast.patient.home.sign.public, profile)
        patient = Patient(cast.patient)
        stored = patient.receive(package)
        access = {label: profile.access_of(label) for label in stored.labels}
        patient.store(record, access, POLICIES, PURPOSES, terms)
        return record.hex()

    return make


@pytest.fixture
def diptych(run: Callable, cast: SimpleNamespace) -> Callable:
    """`diptych("patient", "record", "list")` gives the parsed JSON; with `code`, what is said on standard error beside it."""

    def call(name: str, *words: object, code: int = 0):
        home = getattr(cast, name).home.path
        done = run("-m", "client", "--home", home, "-o", "json", *words, code=code)
        return json.loads(done.stdout) if done.stdout else json.loads(done.stderr.strip().splitlines()[-1])

    return call


def opens(session: Session, record: str, kind: str = "sharing") -> set[str]:
    return set(Reader(session).open(bytes.fromhex(record), kind).parts)  # type: ignore[arg-type]


def test_a_request_waits_for_the_board_and_opens_once_they_agree(diptych, store, cast):
    record = store(TERMS)
    asked = diptych("researcher", "record", "request", record)
    assert (asked["decision"], asked["code"]) == ("waiting", "waiting")
    waits = diptych("researcher", "record", "open", record, code=5)
    assert "role:board" in waits["message"]
    assert asked["tx"] in waits["message"]
    (task,) = diptych("board", "access", "pending")
    assert (task["request"], task["you_are"], task["waits_for"]) == (asked["tx"], "approver", "a decision")
    assert [t["request"] for t in diptych("patient", "access", "pending")] == [asked["tx"]]
    assert diptych("medic", "access", "approve", asked["tx"], code=5)["code"] == "not-approver"
    assert diptych("board", "access", "approve", asked["tx"])["decision"] == "allowed"
    opened = diptych("researcher", "record", "open", record)
    assert opened["closed_classes"] == []
    assert opened["opened"]

    again = diptych("researcher", "record", "request", record)
    assert diptych("patient", "access", "decline", again["tx"])["decision"] == "denied"
    assert "declined" in diptych("researcher", "record", "open", record, code=5)["message"]
    log = [
        (e["kind"], e["decision"])
        for e in diptych("patient", "record", "log", record)
        if e["chain"] == "sharing"
    ]
    assert log == [
        ("record.attest", "allowed"),
        ("record.publish", "allowed"),
        ("access.request", "waiting"),
        ("access.decide", "denied"),
        ("access.decide", "allowed"),
        ("access.request", "waiting"),
        ("access.decide", "denied"),
    ]


def test_two_people_break_the_glass_the_patient_is_told_and_reviews_it(diptych, store, cast):
    record = store(TERMS)
    words = ("--ground", "unconscious", "--reason", "found at the station")
    asked = diptych("medic", "access", "emergency", record, *words)
    assert asked["decision"] == "waiting"
    (told,) = [t for t in diptych("patient", "access", "pending") if t["record"] == record]
    assert (told["reason"], told["ground"]) == ("found at the station", "unconscious")
    assert diptych("medic", "access", "approve", asked["tx"], code=5)["code"] == "own-request"
    assert diptych("second", "access", "approve", asked["tx"])["code"] == "emergency-allowed"
    opened = Reader(cast.medic).open(bytes.fromhex(record), "sharing")
    assert opened.parts
    stored = Patient(cast.patient).load(bytes.fromhex(record))
    assert set(opened.parts) == set(stored.labels_in("shared"))
    (review,) = [t for t in diptych("patient", "access", "pending") if t["record"] == record]
    assert review["waits_for"] == "your review"
    both = (cast.medic.home.sign.public.hex(), cast.second.home.sign.public.hex())
    assert (review["requester"], review["second"]) == both
    downloads = [e for e in diptych("patient", "record", "log", record) if e["chain"] == "cloud"]
    assert downloads, "what the cloud has served stands beside it"
    assert {(e["sender"], e["purpose"], e["decision"]) for e in downloads} == {
        (both[0], "emergency", "allowed")
    }
    assert diptych("patient", "access", "review", asked["tx"], "contested")["code"] == "reviewed"
    assert [t for t in diptych("patient", "access", "pending") if t["record"] == record] == []
    refused = diptych("researcher", "access", "emergency", record, *words, code=5)
    assert refused["code"] == "emergency-not-met"


def test_a_proxy_opens_everything_while_they_are_one(diptych, store, cast):
    record = store()
    key = cast.parent.home.sign.public.hex()
    request = ("record", "request", record, "--chain", "storage", "--purpose", "patient-request")
    assert diptych("parent", *request, code=5)["code"] == "wrong-purpose"
    assert record in diptych("patient", "proxy", "set", key, "--until", "2090-01-01")["records"]
    assert [p["key"] for p in diptych("patient", "proxy", "list")] == [key]
    assert [p["acts"] for p in diptych("parent", "proxy", "list")] == ["you for"]
    diptych("parent", *request)
    assert opens(cast.parent, record, "storage") == set(
        Patient(cast.patient).load(bytes.fromhex(record)).labels
    )
    assert record in diptych("patient", "proxy", "end", key)["records"]
    assert diptych("parent", *request, code=5)["code"] == "wrong-purpose"
    assert diptych("patient", "proxy", "list") == []


def test_researchers_find_a_record_by_the_coding_that_its_patient_publishes_on_purpose(diptych, store):
    record, registry = store(), ("--registry", "Diabetes NL")
    codings = [row["coding"] for row in diptych("patient", "record", "codings", record, *registry)]
    published, kept = codings[0], codings[-1]
    assert "registry" in diptych("patient", "record", "rule", record, "--tag", published, code=3)["message"]
    diptych("patient", "record", "rule", record, "--tag", published, *registry)

    def found(coding: str, *name: str) -> list[str]:
        return [row["record"] for row in diptych("researcher", "find", *name, coding)]

    assert found(published, *registry) == found(published, "--registry", "diabetes  nl") == [record]
    assert found(kept, *registry) == found(published, "--registry", "another") == []
    diptych("patient", "record", "rule", record, "--tag", "none")
    assert found(published, *registry) == []


def test_a_rule_changes_by_command_and_is_warned_of_if_nobody_satisfies_it(diptych, run, store, cast):
    record = store()
    reader = cast.researcher.home.sign.public.hex()
    changed = diptych(
        "patient", "record", "rule", record, "--deny", reader, "--uses", "1", "--until", "2090-01-01"
    )
    assert (changed["version"], changed["deny"], changed["uses"]) == (2, [reader], 1)
    assert diptych("researcher", "record", "request", record, code=5)["code"] == "denied-by-patient"
    changed = diptych("patient", "record", "rule", record, "--allow", reader, "--until", "none")
    assert (changed["deny"], changed["until"]) == ([], None)
    diptych("researcher", "record", "request", record)
    assert opens(cast.researcher, record)
    assert diptych("researcher", "record", "request", record, code=5)["code"] == "used-up"
    assert "2020" in diptych("patient", "record", "rule", record, "--until", "2020-01-0x", code=3)["message"]

    change = ("record", "policy", record, "shared=role:reasearcher")
    assert "--yes" in diptych("patient", *change, code=5)["message"]
    assert Patient(cast.patient).load(bytes.fromhex(record)).version == 3
    home = ("-m", "client", "--home", cast.patient.home.path)
    said = run(*home, *change, code=5).stderr
    assert "before" in said
    assert "role:doctor or role:researcher" in said
    assert f"{reader[:16]}…" in said
    assert "protects nothing that was read already" in said
    assert "nobody certified on this chain satisfies" in said
    assert run(*home, *change, "--yes").stdout
    assert diptych("researcher", "record", "request", record, code=5)["code"] == "policy-not-met"


def test_a_rule_is_written_and_read_as_a_fhir_consent_and_its_log_as_audit_events(
    diptych, run, store, cast, tmp_path
):
    record, file = store(TERMS), tmp_path / "consent.json"
    home = ("-m", "client", "--home", cast.patient.home.path)
    run(*home, "record", "consent", record, "--out", file)
    consent = json.loads(file.read_text())
    assert (consent["resourceType"], consent["status"]) == ("Consent", "active")
    assert (
        "this very rule" in diptych("patient", "record", "rule", record, "--consent", file, code=8)["message"]
    )
    changed = diptych("patient", "record", "rule", record, "--approval", "none", "--until", "2090-01-01")
    assert changed["approval"] is None
    back = diptych("patient", "record", "rule", record, "--consent", file)
    assert (back["approval"], back["until"], back["policies"]) == ("role:board", None, changed["policies"])
    other = store()
    wrong = diptych("patient", "record", "rule", other, "--consent", file, code=3)
    assert "other data than this record" in wrong["message"]
    events = json.loads(run(*home, "record", "audit-events", record).stdout)["entry"]
    assert {e["resource"]["resourceType"] for e in events} == {"AuditEvent"}
    assert len(events) == 2 * 4, "on each chain attested, and three versions"


def test_after_new_keys_readers_read_on_and_the_cloud_has_no_old_ciphertext(
    diptych, store, cast, net: Supervisor
):
    record = store()
    before = {p["part"]: p["ciphertext"] for p in diptych("patient", "record", "show", record)["parts"]}
    made = diptych("patient", "record", "rekey", record, "m8")
    after = {p["part"]: p["ciphertext"] for p in made["parts"]}
    changed = {part for part in before if before[part] != after[part]}
    assert changed == {part for part in before if part.startswith("m8")}
    blobs = {path.name for path in (net.folder / "cloud").rglob("*") if path.is_file()}
    assert not {before[part] for part in changed} & blobs
    assert set(after.values()) <= blobs
    diptych("doctor", "record", "request", record, "--chain", "storage", "--purpose", "treatment")
    assert opens(cast.doctor, record, "storage") == set(before)


def test_a_retired_record_is_granted_no_more_and_names_what_replaces_it(diptych, store, cast):
    old, new = store(), store()
    shown = diptych("patient", "record", "retire", old, "--replaced-by", new)
    assert shown["retired"]
    refused = diptych("researcher", "record", "request", old, code=5)
    assert refused["code"] == "retired"
    assert new in refused["reason"]
    with pytest.raises(Conflict, match="retired"):
        Patient(cast.patient).move(bytes.fromhex(old), "m8", "shared")
    assert diptych("patient", "record", "retire", old)["retired"], "repeating it is harmless"


def test_an_erased_record_leaves_nothing_in_cloud_home_or_state(diptych, store, cast, net: Supervisor):
    record = store()
    raw = bytes.fromhex(record)
    diptych("researcher", "record", "request", record)
    Reader(cast.researcher).open(raw, "sharing")
    shown = diptych("patient", "record", "show", record)
    done = diptych("patient", "record", "erase", record)
    assert done["cloud"]["views"] == 2
    assert set(done["chains"]) == {"storage", "sharing"}
    left = {path.name for path in Path(cast.patient.home.path).glob(f"*{record}*")}
    assert left == {f"erasure-{record}.sealed"}
    blobs = {path.name for path in (net.folder / "cloud").rglob("*") if path.is_file()}
    assert not {p["ciphertext"] for p in shown["parts"]} & blobs
    for kind, entry in done["chains"].items():
        chain = cast.patient.chains[kind]
        found = chain.verified_record(raw)
        assert (found.status, found.patient) == ("erased", bytes(32))
        assert found.deletion.hex() == done["cloud"]["receipt"]
        assert entry["tx"] in {r.tx.hex() for r in chain.verified_log(raw).receipts if r.code == "erased"}
    assert diptych("patient", "record", "erase", record) == done, "the proof stays"
    assert record not in [r["record"] for r in diptych("patient", "record", "list")]
    assert diptych("researcher", "record", "request", record, code=5)["code"] == "erased"
    with pytest.raises(DiptychError):
        Reader(cast.researcher).open(raw, "sharing")


def test_the_authority_certifies_everybody_by_their_own_key_and_by_no_other(cast, invite):
    for person in vars(cast).values():
        assert isinstance(person.home, Home)
        names = [a for a in person.home.attribute_key.attributes if a.startswith("key:")]
        assert names == [f"key:{person.home.sign.public.hex()[:32]}"]
    with pytest.raises(DiptychError, match="own key"):
        invite("user", ["role:researcher", f"key:{'0' * 32}"], 1)
