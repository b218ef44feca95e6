"""How records end, by which tags they are found, and what their logs hold."""

import msgspec
import pytest

from crypto.codec import encode
from crypto.errors import Denied
from protocol.contract import (
    MAX_OBJECT,
    MAX_REASON,
    RecordEntry,
    check_grant,
    get_log_head,
    get_record,
    next_log_head,
    patient_list,
    record_key,
    tag_list,
)
from protocol.record import decode_deletion_receipt
from protocol.tx import (
    Attest,
    Certify,
    Decide,
    Erase,
    Publish,
    Request,
    Retire,
    Revoke,
    Rule,
    SetProxy,
)
from tests.protocol.contract_world import (
    AUTHORITY,
    CLOUD,
    DOCTOR,
    PATIENT,
    RECORD,
    RULE,
    STRANGER,
    USER,
    World,
    credential,
    deletion,
    publish,
)
from tests.simulation.cluster import WALL0

OTHER = b"o" * 16
TAGS = tuple(bytes([n]) * 32 for n in range(1, 5))


def two_records() -> World:
    world = World().published()
    assert world.do(DOCTOR, Attest(OTHER, PATIENT.public, b"h" * 32)).ok
    return world


def tagged(world: World) -> dict[bytes, set[bytes]]:
    return {
        tag: {key.removeprefix(tag_list(tag)) for key in world.state if key.startswith(tag_list(tag))}
        for tag in TAGS
    }


# --- retired -----------------------------------------------------------------------------------------------------------------


def test_a_retired_record_is_granted_to_nobody_and_says_what_has_taken_its_place():
    world = two_records()
    granted = world.do(USER, Request(RECORD, "research"))
    assert world.do(PATIENT, Retire(RECORD, OTHER)).code == "retired"
    refused = world.do(USER, Request(RECORD, "research"))
    assert (refused.ok, refused.code, OTHER.hex() in refused.reason) == (False, "retired", True)
    assert world.do(PATIENT, Request(RECORD, "patient-request")).code == "retired"
    with pytest.raises(Denied, match="retired"):
        check_grant(world.state, granted.tx, world.time)
    entry = get_record(world.state, RECORD)
    assert (entry.status, entry.replaced_by, entry.rule, entry.sealed_index) == ("retired", OTHER, None, b"")


def test_a_retired_record_is_published_no_more_and_retired_once():
    world = World().published()
    assert world.do(PATIENT, Retire(RECORD, None)).ok
    again = world.do(PATIENT, Retire(RECORD, None))
    assert (again.ok, again.code) == (False, "retired")
    published = world.do(PATIENT, publish(2))
    assert (published.ok, published.code) == (False, "retired")
    assert world.do(DOCTOR, Attest(RECORD, PATIENT.public, b"h" * 32)).code == "record-exists"


def test_only_the_patient_retires_and_erases():
    world = World().published()
    world.do(AUTHORITY, Certify(credential(STRANGER, "patient")))
    for action in (Retire(RECORD, None), Erase(RECORD, deletion())):
        assert world.do(STRANGER, action).code == "not-owner"
        assert world.do(DOCTOR, action).code == "wrong-role"
        assert world.do(CLOUD, action).code == "not-certified"
    for action in (Retire(OTHER, None), Erase(OTHER, deletion(OTHER))):
        assert world.do(PATIENT, action).code == "not-attested"


def test_the_replacement_is_another_live_record_of_the_same_patient():
    world = two_records()
    world.do(AUTHORITY, Certify(credential(STRANGER, "patient")))
    world.do(DOCTOR, Attest(b"s" * 16, STRANGER.public, b"h" * 32))
    for bad in (RECORD, b"x" * 16, b"s" * 16):
        assert world.do(PATIENT, Retire(RECORD, bad)).code == "bad-replacement"
    assert world.do(PATIENT, Retire(RECORD, OTHER)).ok
    assert world.do(PATIENT, Retire(OTHER, RECORD)).code == "bad-replacement", "no circle"
    assert world.do(PATIENT, Retire(OTHER, None)).ok


def test_an_attested_record_can_be_retired_before_it_was_ever_published():
    world = World().attested()
    assert world.do(PATIENT, Retire(RECORD, None)).ok
    assert world.do(PATIENT, publish(1)).code == "retired"


def test_a_request_that_waits_for_a_retired_record_can_only_be_declined():
    world = World().published(msgspec.structs.replace(RULE, approval="role:doctor"))
    asked = world.do(USER, Request(RECORD, "research"))
    world.do(PATIENT, Retire(RECORD, None))
    assert world.do(DOCTOR, Decide(asked.tx, True)).code == "not-approver"
    assert world.do(PATIENT, Decide(asked.tx, True)).code == "retired"
    assert world.do(PATIENT, Decide(asked.tx, False)).code == "declined"


# --- erased ------------------------------------------------------------------------------------------------------------------


def test_an_erased_record_keeps_its_id_and_the_clouds_receipt_and_nothing_else():
    world = World().attested()
    assert world.do(PATIENT, publish(1, msgspec.structs.replace(RULE, uses=5), tags=TAGS)).ok
    granted = world.do(USER, Request(RECORD, "research"))
    world.time += 3
    assert world.do(PATIENT, Erase(RECORD, deletion())).code == "erased"
    zero = bytes(32)
    assert get_record(world.state, RECORD) == RecordEntry(
        zero, zero, zero, 0, zero, b"", None, world.time, "erased", (), None, deletion()
    )
    decode_deletion_receipt(get_record(world.state, RECORD).deletion).verify(RECORD, CLOUD.public)
    assert [key for key in world.state if key.startswith(patient_list(PATIENT.public))] == []
    left = {key.split(b"/")[0] for key in world.state if RECORD in key}
    assert left == {b"record", b"log"}
    with pytest.raises(Denied, match="retired"):
        check_grant(world.state, granted.tx, world.time)


def test_an_erased_record_does_not_come_back():
    world = two_records()
    world.do(PATIENT, Retire(RECORD, None))
    assert world.do(PATIENT, Erase(RECORD, deletion())).ok, "a retired record is erased too"
    assert world.do(DOCTOR, Attest(RECORD, PATIENT.public, b"h" * 32)).code == "record-exists"
    for action in (publish(1), publish(2), Retire(RECORD, None), Erase(RECORD, deletion())):
        assert (refused := world.do(PATIENT, action)).code == "erased"
        assert not refused.ok
    assert world.do(USER, Request(RECORD, "research")).code == "erased"
    assert world.do(PATIENT, Retire(OTHER, RECORD)).code == "bad-replacement"


@pytest.mark.parametrize(
    "what", [b"", b"no receipt", deletion(OTHER), deletion(before=2), deletion() + b"x", deletion()[:-1]]
)
def test_an_erasure_without_the_clouds_receipt_for_the_record_is_refused(what):
    world = World().published()
    assert world.do(PATIENT, Erase(RECORD, what)).code == "bad-deletion"
    assert world.do(USER, Request(RECORD, "research")).ok


def test_the_patient_of_an_erased_record_clears_what_still_waits_for_it():
    world = World().published(msgspec.structs.replace(RULE, approval="role:doctor"))
    asked = world.do(USER, Request(RECORD, "research"))
    world.do(PATIENT, Erase(RECORD, deletion()))
    assert world.do(PATIENT, Decide(asked.tx, True)).code == "erased"
    assert world.do(PATIENT, Decide(asked.tx, False)).code == "declined"
    assert [key for key in world.state if key.startswith((b"pending/", b"waiting/", b"inbox/"))] == []


# --- tags --------------------------------------------------------------------------------------------------------------------


def test_a_record_is_found_by_the_tags_of_its_current_version_until_it_ends():
    world = two_records()
    world.do(PATIENT, publish(2, tags=TAGS[:2]))
    world.do(PATIENT, publish(1, record=OTHER, tags=TAGS[1:3]))
    assert tagged(world) == dict(zip(TAGS, [{RECORD}, {RECORD, OTHER}, {OTHER}, set()], strict=True))
    world.do(PATIENT, publish(3, tags=(TAGS[1], TAGS[3])))
    assert tagged(world) == dict(zip(TAGS, [set(), {RECORD, OTHER}, {OTHER}, {RECORD}], strict=True))
    world.do(PATIENT, Retire(RECORD, None))
    world.do(PATIENT, Erase(OTHER, deletion(OTHER)))
    assert tagged(world) == {tag: set() for tag in TAGS}


@pytest.mark.parametrize("tags", [(TAGS[1], TAGS[0]), (TAGS[0], TAGS[0]), (*TAGS, TAGS[0])])
def test_tags_out_of_order_or_twice_are_refused(tags):
    world = World().attested()
    assert world.do(PATIENT, publish(1, tags=tags)).code == "bad-tags"
    assert tagged(world) == {tag: set() for tag in TAGS}


def test_a_refused_version_leaves_the_tags_as_they_were():
    world = World().attested()
    world.do(PATIENT, publish(1, tags=TAGS[:1]))
    bad = msgspec.structs.replace(publish(2, tags=TAGS[1:2]), sealed_index=b"")
    assert world.do(PATIENT, bad).code == "bad-index"
    assert tagged(world)[TAGS[0]] == {RECORD}


# --- the order of checks -------------------------------------------------------------------------------------------------------


def test_of_several_faults_the_first_in_the_written_order_is_named():
    world = two_records()
    bad = Publish(RECORD, 7, bytes(32), b"", Rule("(", (), None, ()), (TAGS[1], TAGS[0]))
    assert world.do(PATIENT, bad).code == "wrong-version"
    bad = msgspec.structs.replace(bad, version=2)
    assert world.do(PATIENT, bad).code == "bad-policy"
    bad = msgspec.structs.replace(bad, rule=msgspec.structs.replace(RULE, purposes=("emergency",)))
    assert world.do(PATIENT, bad).code == "bad-rule"
    bad = msgspec.structs.replace(bad, rule=RULE)
    assert world.do(PATIENT, bad).code == "bad-tags"
    bad = msgspec.structs.replace(bad, tags=())
    assert world.do(PATIENT, bad).code == "bad-index"
    del world.state[b"index-key"]
    assert world.do(PATIENT, bad).code == "no-index-key"


@pytest.mark.parametrize("field", ["approval", "emergency"])
def test_every_policy_of_a_rule_must_parse(field):
    rule = msgspec.structs.replace(RULE, **{field: "role:doctor or"})
    receipt = World().attested().do(PATIENT, publish(1, rule))
    assert (receipt.code, field in receipt.reason) == ("bad-policy", True)


# --- bounds --------------------------------------------------------------------------------------------------------------------


def test_the_largest_record_that_a_transaction_can_carry_can_be_read_again():
    text = " or ".join(f"role:{'a' * 47}{n}" for n in range(200))
    deny = tuple(n.to_bytes(32, "big") for n in range(256))
    rule = Rule(text, ("research",), None, deny, 0, 2**31, text, text[: text.rindex(" or")])
    world = World().attested()
    tags = tuple(n.to_bytes(32, "big") for n in range(32))
    assert world.do(PATIENT, publish(1, rule, tags=tags)).ok
    assert get_record(world.state, RECORD).rule == rule
    assert len(world.state[record_key(RECORD)]) < MAX_OBJECT


def test_no_reason_is_too_long_to_be_read_again():
    world = World().attested()
    for text in ("z" * 16384, "a:" + "b" * 5000, "é" * 16384, "9" * 16370 + " of (a:b)", "(" * 16384):
        receipt = world.do(PATIENT, publish(1, msgspec.structs.replace(RULE, policy=text)))
        assert receipt.code == "bad-policy"
        assert len(receipt.reason) <= MAX_REASON
    assert len(world.do(PATIENT, Erase(RECORD, b"\xff" * 1024)).reason) <= MAX_REASON


# --- logs ----------------------------------------------------------------------------------------------------------------------


def test_the_head_of_a_records_log_covers_every_receipt_that_concerns_it_also_refusals():
    world = World().certified()
    receipts = [
        world.do(DOCTOR, Attest(RECORD, PATIENT.public, b"h" * 32)),
        world.do(DOCTOR, Attest(RECORD, PATIENT.public, b"h" * 32)),
        world.do(PATIENT, publish(1, msgspec.structs.replace(RULE, approval="role:doctor"))),
        world.do(STRANGER, Request(RECORD, "research")),
        (asked := world.do(USER, Request(RECORD, "research"))),
        world.do(USER, Decide(asked.tx, True)),
        world.do(DOCTOR, Decide(asked.tx, True)),
        world.do(USER, publish(2)),
        world.do(PATIENT, Retire(RECORD, None)),
        world.do(PATIENT, Erase(RECORD, deletion())),
        world.do(USER, Request(RECORD, "research")),
    ]
    assert [r.record for r in receipts] == [RECORD] * len(receipts)
    assert {r.request for r in receipts} == {None, asked.tx}
    head = get_log_head(world.state, b"never" * 3 + b".")
    for receipt in receipts:
        head = next_log_head(head, receipt)
    assert get_log_head(world.state, RECORD) == head
    assert head.count == len(receipts)


def test_a_log_with_a_receipt_left_out_changed_or_moved_has_another_head():
    world = World().published()
    log = [world.do(USER, Request(RECORD, purpose)) for purpose in ("research", "payment", "treatment")]

    def head(receipts):
        found = get_log_head(World().state, RECORD)
        for receipt in receipts:
            found = next_log_head(found, receipt)
        return found

    changed = [log[0], msgspec.structs.replace(log[1], ok=True), log[2]]
    variants = [log, log[:2], log[1:], [log[0], log[2]], [log[1], log[0], log[2]], changed, []]
    assert len({head(variant).digest for variant in variants}) == len(variants)


def test_what_concerns_no_known_record_stands_in_no_log():
    world = World().certified()
    for sender, action in [
        (USER, Request(RECORD, "research")),
        (PATIENT, publish(1)),
        (USER, Attest(RECORD, PATIENT.public, bytes(32))),
        (USER, Decide(b"x" * 32, True)),
        (AUTHORITY, Revoke(USER.public)),
        (PATIENT, SetProxy(DOCTOR.public, ("read",), 0, WALL0 + 1)),
    ]:
        assert world.do(sender, action).record is None
    assert [key for key in world.state if key.startswith(b"log/")] == []


def test_nobody_puts_a_receipt_into_the_log_of_a_record_by_naming_a_request_of_another():
    world = two_records()
    rule = msgspec.structs.replace(RULE, approval="role:doctor")
    world.do(PATIENT, publish(2, rule))
    asked = world.do(USER, Request(RECORD, "research"))
    before = get_log_head(world.state, OTHER)
    assert world.do(STRANGER, Decide(asked.tx, True)).record == RECORD
    assert get_log_head(world.state, OTHER) == before
    assert encode(before) == world.state[b"log/" + OTHER]
