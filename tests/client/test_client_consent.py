"""A patient's changes of consent: what they lead to on chains, in cloud and home, wherever they are cut off."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from client.chain import now_ms
from client.consequences import Consequences
from client.decisions import Decisions
from client.erasure import erase
from client.patient import Patient, envelope_context
from client.reader import Reader
from client.session import KINDS, Session
from client.stored import StoredRecord, Terms
from crypto.abe import decapsulate
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unavailable
from crypto.parts import open_part, unwrap_key
from protocol.record import Envelope, decode_deletion_receipt, decode_envelope
from tests.client.consent_world import ACCESS, CLOUD, DAY_MS, POLICIES, RECORD, Cut, World

OTHER = b"o" * 16


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def opened_by(world: World, reader: Session) -> set[int]:
    """The parts that an attribute key opens in the newest envelopes, with the cloud's help and against the contract."""
    newest = world.cloud.uploads[RECORD][-1].body.views[0]
    found = set()
    for ref in newest.envelopes:
        envelope = decode_envelope(world.cloud.blobs[ref.hash])
        context = context_of(envelope)
        try:
            key = decapsulate(
                reader.home.abe_public, reader.home.attribute_key, envelope.policy, envelope.header, context
            )
        except Denied:
            continue
        for part in envelope.parts:
            part_key = unwrap_key(key, context, part.index, part.wrapped_key)
            open_part(part_key, RECORD, part.index, part.sealed_in, world.cloud.blobs[part.blob.hash])
            found.add(part.index)
    return found


def context_of(envelope: Envelope) -> bytes:
    return envelope_context(envelope.record, envelope.version, envelope.access_class, envelope.extract)


def everywhere(world: World, act: Callable[[Session], object], check: Callable[[], None]) -> int:
    """Do `act` once, then from the start again for each step of it, cut off after that and repeated; `check` holds each time. The number
    of steps."""
    restore = world.saved()
    restore()
    act(world.session())
    check()
    steps = world.steps.count
    for number in range(steps):
        restore()
        world.steps.cut = number
        with pytest.raises(Cut):
            act(world.session())
        world.steps.cut = None
        act(world.session())
        check()
    return steps


# --- wherever it is cut off ---------------------------------------------------------------------------------------------------


def test_an_erasure_that_is_cut_off_anywhere_is_finished_by_repeating_it(world: World):
    world.stored()

    def check() -> None:
        left = {path.name for path in (world.folder / "patient").glob(f"*{RECORD.hex()}*")}
        assert left == {f"erasure-{RECORD.hex()}.sealed"}
        assert world.cloud.uploads[RECORD] == []
        for chain in world.chains.values():
            entry = chain.verified_record(RECORD)
            assert entry.status == "erased"
            assert entry.patient == bytes(32)
            decode_deletion_receipt(entry.deletion).verify(RECORD, CLOUD.public)
            assert [r.ok for r in chain.receipts if r.kind in ("record.retire", "record.erase")] == [True] * 2

    assert everywhere(world, lambda session: erase(session, RECORD), check) >= 10
    done = erase(world.session(), RECORD)
    assert [entry.kind for entry in done.chains] == list(KINDS)
    assert all(
        world.chains[entry.kind].verified_receipt(entry.tx).proof.receipt.code == "erased"
        for entry in done.chains
    ), "the proof names the transactions that erased it"
    with pytest.raises(Conflict, match="erased"):
        Patient(world.session()).load(RECORD)


def test_a_receipt_and_store_that_are_cut_off_anywhere_are_finished_by_repeating_them(world: World):
    def act(session: Session) -> None:
        patient = Patient(session)
        patient.receive(world.package)
        with suppress(Conflict):  # cut off after its very end
            patient.store(RECORD, ACCESS, POLICIES, ("research",))

    def check() -> None:
        patient = Patient(world.session())
        stored = patient.load(RECORD)
        assert {label: content for label, content in patient.contents(stored).items()} == {
            label: b'{"part":"%s"}' % label.encode() for label in ACCESS
        }
        assert packs(world) == {f"{RECORD.hex()}-1.pack"}
        for kind, chain in world.chains.items():
            assert (chain.verified_record(RECORD).version, kind) == (1, kind)
        with pytest.raises(Conflict, match="stored already"):
            patient.store(RECORD, ACCESS, POLICIES, ("research",))

    assert everywhere(world, act, check) >= 7


def test_a_store_that_was_cut_off_is_not_passed_off_as_one_under_other_terms(world: World):
    patient = Patient(world.session())
    patient.receive(world.package)
    world.steps.cut = world.steps.count + 1
    with pytest.raises(Cut):
        patient.store(RECORD, ACCESS, POLICIES, ("research",))
    world.steps.cut = None
    with pytest.raises(Conflict, match="under other terms"):
        Patient(world.session()).store(RECORD, ACCESS, POLICIES, ("treatment",))
    assert Patient(world.session()).load(RECORD).purposes == ("research",)


def packs(world: World) -> set[str]:
    return {path.name for path in (world.folder / "patient").glob("*.pack*")}


def test_new_keys_that_are_cut_off_anywhere_are_finished_by_repeating_it(world: World):
    before = {part.key for part in world.stored().load(RECORD).parts}

    def check() -> None:
        patient = Patient(world.session())
        stored = patient.load(RECORD)
        assert not before & {part.key for part in stored.parts}
        assert list(map(len, patient.contents(stored).values())), "its parts are there"
        assert packs(world) == {f"{RECORD.hex()}-{stored.version}.pack"}
        for kind, chain in world.chains.items():
            assert (chain.verified_record(RECORD).version, kind) == (stored.version, kind)

    everywhere(world, lambda session: Patient(session).rekey(RECORD), check)


def test_a_retirement_that_is_cut_off_anywhere_is_finished_by_repeating_it(world: World):
    world.stored()

    def check() -> None:
        assert [chain.verified_record(RECORD).status for chain in world.chains.values()] == ["retired"] * 2
        assert Patient(world.session()).load(RECORD).is_retired

    everywhere(world, lambda session: Patient(session).retire(RECORD), check)


def test_between_a_retirement_that_was_cut_off_and_its_end_no_version_is_begun(world: World):
    world.stored()
    restore = world.saved()
    for number in range(1, 3):
        restore()
        world.steps.cut = number
        with pytest.raises(Cut):
            Patient(world.session()).retire(RECORD)
        world.steps.cut = None
        with pytest.raises(Conflict, match="retired"):
            Patient(world.session()).move(RECORD, "m8", "shared")
        Patient(world.session()).retire(RECORD)


def test_a_proxy_that_is_set_or_ended_and_cut_off_anywhere_is_so_by_repeating_it(world: World):
    world.stored()
    parent = world.join("parent", "user", "role:relative")
    key, until = parent.home.sign.public, now_ms() + DAY_MS

    def check_set() -> None:
        assert opened_by(world, parent) == {0, 1, 2}
        assert [p.proxy for p in Patient(world.session()).proxies().proxies] == [key]
        assert all(chain.wards_of(key) for chain in world.chains.values())

    everywhere(world, lambda s: Patient(s).set_proxy(key, ("read",), now_ms(), until), check_set)

    def check_ended() -> None:
        assert opened_by(world, parent) == set()
        assert not any(chain.wards_of(key) for chain in world.chains.values())

    everywhere(world, lambda s: Patient(s).set_proxy(key, (), 0, 0), check_ended)


def test_an_erasure_waits_for_a_cloud_that_is_down_and_lets_nothing_else_begin(world: World):
    patient = world.stored()
    world.cloud.is_down = True
    with pytest.raises(Unavailable):
        erase(world.session(), RECORD)
    with pytest.raises(Conflict, match="record erase"):
        patient.move(RECORD, "m8", "shared")
    assert patient.records() == []
    world.cloud.is_down = False
    assert erase(world.session(), RECORD).is_done


def test_an_erasure_takes_a_version_with_it_that_was_begun_and_never_sent(world: World):
    patient = world.stored()
    world.steps.count, world.steps.cut = 0, 0
    with pytest.raises(Cut):
        patient.move(RECORD, "m8", "shared")
    world.steps.cut = None
    assert world.session().home.has(f"pending-{RECORD.hex()}")
    erase(world.session(), RECORD)
    assert not world.session().home.has(f"pending-{RECORD.hex()}")


# --- what readers can and cannot ----------------------------------------------------------------------------------------------


def test_the_envelopes_of_shared_classes_open_to_who_may_break_the_glass_and_the_private_one_does_not(
    world: World,
):
    world.stored(terms=Terms(emergency="dept:emergency"))
    medic = world.join("medic", "user", "dept:emergency")
    reader = world.join("reader", "user", "role:researcher")
    stranger = world.join("stranger", "user", "role:advertiser")
    assert opened_by(world, medic) == {1}
    assert opened_by(world, reader) == {1}
    assert opened_by(world, stranger) == set()


def test_a_proxy_who_may_only_decide_opens_no_envelope(world: World):
    patient = world.stored()
    helper = world.join("helper", "user", "role:relative")
    changed = patient.set_proxy(helper.home.sign.public, ("decide",), now_ms(), now_ms() + DAY_MS)
    assert changed == []
    assert opened_by(world, helper) == set()


def test_a_proxy_reads_what_the_patient_could_and_nobody_with_another_key_does(world: World):
    patient = world.stored()
    parent, other = (world.join(name, "user", "role:relative") for name in ("parent", "other"))
    patient.set_proxy(parent.home.sign.public, ("read",), now_ms(), now_ms() + DAY_MS)
    assert opened_by(world, parent) == {0, 1, 2}
    assert opened_by(world, other) == set()
    receipt = Reader(parent).request(RECORD, "storage", "patient-request")
    assert receipt.code == "allowed"
    assert Reader(other).request(RECORD, "storage", "patient-request").code == "wrong-purpose"


def test_a_key_kept_from_before_opens_nothing_after_rekey_and_everything_after_rewrap(world: World):
    patient = world.stored()
    kept = {i: part.key for i, part in enumerate(patient.load(RECORD).parts)}

    def still_opens() -> set[int]:
        parts = patient.load(RECORD).parts
        found = set()
        for i, part in enumerate(parts):
            try:
                open_part(kept[i], RECORD, i, part.sealed_in, world.cloud.blobs[part.blob.hash])
                found.add(i)
            except DiptychError:
                pass
        return found

    patient.set_policies(RECORD, {"shared": "role:doctor"})
    assert still_opens() == {0, 1, 2}
    patient.rekey(RECORD, ["m8"])
    assert still_opens() == {0, 1}
    patient.rekey(RECORD)
    assert still_opens() == set()


# --- rules --------------------------------------------------------------------------------------------------------------------


def test_the_conditions_of_a_rule_stand_on_both_chains_and_change_without_new_ciphertexts(world: World):
    reader = world.join("reader", "user", "role:researcher")
    denied = reader.home.sign.public
    terms = Terms(now_ms(), now_ms() + DAY_MS, 2, (denied,), "role:board", "dept:emergency")
    patient = world.stored(terms=terms, tags=(b"t" * 32,))
    for chain in world.chains.values():
        rule = chain.verified_record(RECORD).rule
        assert rule is not None
        found = (rule.from_ms, rule.until_ms, rule.uses, rule.deny, rule.approval, rule.emergency)
        assert found == (terms.from_ms, terms.until_ms, 2, (denied,), "role:board", "dept:emergency")
        assert chain.verified_record(RECORD).tags == (b"t" * 32,)
    assert Reader(reader).request(RECORD, "sharing", "research").code == "denied-by-patient"
    blobs = [part.blob for part in patient.load(RECORD).parts]
    changed = patient.set_terms(RECORD, terms=Terms(), tags=())
    assert [part.blob for part in changed.parts] == blobs
    assert changed.version == 2
    assert Reader(reader).request(RECORD, "sharing", "research").code == "allowed"
    with pytest.raises(Conflict, match="already"):
        patient.set_terms(RECORD, terms=Terms())


@pytest.mark.parametrize(
    ("purposes", "terms"),
    [
        ((), Terms()),
        (("research", "emergency"), Terms()),
        (("research",), Terms(from_ms=2, until_ms=2)),
        (("research",), Terms(approval="role:a andd")),
        (("research",), Terms(emergency="nothing")),
    ],
)
def test_terms_that_no_contract_takes_are_refused_before_anything_is_written(
    world: World, purposes: tuple, terms: Terms
):
    patient = world.stored()
    before = patient.load(RECORD)
    with pytest.raises(Malformed):
        patient.set_terms(RECORD, purposes, terms)
    assert patient.load(RECORD) == before
    assert not world.session().home.has(f"pending-{RECORD.hex()}")


def test_a_record_is_replaced_by_one_of_the_patients_own_alone(world: World):
    patient = world.stored()
    with pytest.raises(NotFound):
        patient.retire(RECORD, OTHER)
    assert not patient.load(RECORD).is_retired


# --- said before it is done ---------------------------------------------------------------------------------------------------


class Asked(Exception):
    """Somebody was asked and said no."""


def asked(world: World, act: Callable[[Patient], object]) -> Consequences:
    """What is said before an act; nothing of it is done if the answer is no."""
    said: list[Consequences] = []

    def agree(found: Consequences) -> None:
        said.append(found)
        raise Asked

    states = [dict(chain.state) for chain in world.chains.values()]
    files = {path.name: path.read_bytes() for path in (world.folder / "patient").iterdir()}
    with pytest.raises(Asked):
        act(Patient(world.session(), agree))
    assert [dict(chain.state) for chain in world.chains.values()] == states
    assert {path.name: path.read_bytes() for path in (world.folder / "patient").iterdir()} == files
    (found,) = said
    return found


def test_before_each_change_it_is_said_who_could_and_can_read_and_what_may_be_kept(world: World):
    world.stored()
    reader = world.join("reader", "user", "role:researcher")
    Reader(reader).request(RECORD, "sharing", "research")
    name = f"{reader.home.sign.public.hex()[:16]}…"
    found = asked(world, lambda p: p.set_policies(RECORD, {"shared": "role:doctor"}))
    assert any("role:doctor or role:researcher — 2 of 3" in line and name in line for line in found.before)
    assert found.after[-1] == f"1 of the keys certified now lose parts: {name}"
    assert name in found.kept[0]
    assert "protects nothing that was read already" in found.kept[0]
    assert found.warnings == ()
    found = asked(world, lambda p: p.move(RECORD, "m8", "shared"))
    assert found.after[-1] == f"1 of the keys certified now gain parts: {name}"
    found = asked(world, lambda p: p.rekey(RECORD, ["m8"]))
    assert found.before == found.after
    assert "opens none of the new ciphertexts" in found.kept[0]
    found = asked(world, lambda p: p.set_terms(RECORD, terms=Terms(until_ms=1)))
    assert "ended already" in found.warnings[0]
    found = asked(world, lambda p: p.retire(RECORD))
    assert found.after[0] == "nobody, by the contract"
    assert found.after[1].startswith("2 of the keys certified now lose parts")


def test_before_an_erasure_it_is_said_and_nothing_happens_without_consent(world: World):
    world.stored()

    def refuse(found: Consequences) -> None:
        assert "deleted its copy" in found.kept[0]
        raise Asked

    with pytest.raises(Asked):
        erase(world.session(), RECORD, refuse)
    assert Patient(world.session()).load(RECORD).version == 1
    assert world.chains["storage"].verified_record(RECORD).status == "published"


def test_a_rule_that_nobody_satisfies_is_warned_of_before_it_is_signed(world: World):
    patient = Patient(world.session(), _refuse_warnings)
    patient.receive(world.package)
    with pytest.raises(Asked):
        patient.store(RECORD, ACCESS, {**POLICIES, "shared": "role:reasearcher"}, ("research",))
    assert patient.load(RECORD).version == 0
    assert patient.store(RECORD, ACCESS, {**POLICIES, "shared": "role:doctor"}, ("research",)).version == 1


def _refuse_warnings(found: Consequences) -> None:
    if found.warnings:
        raise Asked


# --- second persons -----------------------------------------------------------------------------------------------------------


def test_a_request_waits_and_each_who_may_decide_sees_it_and_nobody_else(world: World):
    world.stored(terms=Terms(approval="role:board"))
    reader = world.join("reader", "user", "role:researcher")
    board, other = world.join("board", "user", "role:board"), world.join("other", "user", "role:other")
    receipt = Reader(reader).request(RECORD, "sharing", "research")
    assert receipt.code == "waiting"
    assert "role:board" in Reader(reader).who_decides(receipt, "sharing")
    seen = {
        name: [(t.pending.request, t.standing) for t in Decisions(session).pending()]
        for name, session in {
            "patient": world.session(),
            "board": board,
            "other": other,
            "reader": reader,
        }.items()
    }
    assert seen == {
        "patient": [(receipt.tx, "patient")],
        "board": [(receipt.tx, "approver")],
        "other": [],
        "reader": [],
    }
    assert Decisions(other).decide(receipt.tx, True)[1].code == "not-approver"
    assert Decisions(board).decide(receipt.tx, True) == ("sharing", world.chains["sharing"].receipts[-1])
    assert world.chains["sharing"].receipts[-1].code == "allowed"
    assert Decisions(world.session()).pending() == []


def test_the_reason_of_an_emergency_is_for_the_patient_alone_to_read(world: World):
    world.stored(terms=Terms(emergency="dept:emergency"))
    first, second = (world.join(name, "user", "dept:emergency") for name in ("first", "second"))
    receipt = Reader(first).break_glass(RECORD, "sharing", "unconscious", "found at the station")
    assert receipt.code == "waiting"
    assert [t.reason for t in Decisions(second).pending()] == [None]
    assert [t.reason for t in Decisions(world.session()).pending()] == ["found at the station"]
    assert b"station" not in b"".join(world.chains["sharing"].state.values())
    assert Decisions(first).decide(receipt.tx, True)[1].code == "own-request"
    assert Decisions(second).decide(receipt.tx, True)[1].code == "emergency-allowed"
    (review,) = Decisions(world.session()).pending()
    assert (review.what, review.pending.requester) == ("review", first.home.sign.public)
    assert Decisions(world.session()).review(receipt.tx, "contested")[1].code == "reviewed"
    with pytest.raises(Malformed, match="reason"):
        Reader(first).break_glass(RECORD, "sharing", "unconscious", "x" * 3000)


def test_a_proxy_who_may_decide_sees_what_waits_for_their_ward(world: World):
    patient = world.stored(terms=Terms(approval="role:board"))
    parent = world.join("parent", "user", "role:relative")
    reader = world.join("reader", "user", "role:researcher")
    patient.set_proxy(parent.home.sign.public, ("decide",), now_ms(), now_ms() + DAY_MS)
    receipt = Reader(reader).request(RECORD, "sharing", "research")
    assert [t.standing for t in Decisions(parent).pending()] == ["proxy"]
    assert Decisions(parent).decide(receipt.tx, False)[1].code == "declined"
    assert [w.patient for w in Decisions(parent).wards()] == [patient.load(RECORD).header.patient]


def test_a_version_is_of_one_week_and_says_so(world: World):
    patient = Patient(world.session())
    patient.receive(world.package)
    week_policy = {**POLICIES, "shared": "role:researcher and status:active@week"}
    stored: StoredRecord = patient.store(RECORD, ACCESS, week_policy, ("research",))
    assert stored.week in stored.rule("sharing").policy
    assert stored.is_time_bound
    assert msgspec.structs.replace(stored, policies=()).is_time_bound is False
