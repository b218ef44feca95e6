"""The contract: who may do what, in which order, until when; refusals change nothing."""

import msgspec
import pytest

from crypto.errors import Denied
from crypto.tdh2 import encrypt
from protocol.contract import (
    TICKET_LIFETIME_MS,
    check_grant,
    get_person,
    get_record,
    may_send,
    next_root,
)
from protocol.identity import SignedCredential
from protocol.index_key import index_label
from protocol.tx import Attest, Certify, Request, Revoke
from tests.dealer import index_key, sealed
from tests.protocol.contract_world import (
    AUTHORITY,
    DOCTOR,
    GENESIS,
    PATIENT,
    RECORD,
    RULE,
    STRANGER,
    UNTIL,
    USER,
    World,
    credential,
    publish,
)
from tests.simulation.cluster import WALL0, make_genesis


def test_the_whole_way_from_credential_to_ticket():
    world = World().published()
    world.time += 1
    receipt = world.do(USER, Request(RECORD, "research"))
    assert (receipt.ok, receipt.code, receipt.record, receipt.purpose) == (
        True,
        "allowed",
        RECORD,
        "research",
    )
    ticket, entry, person = check_grant(world.state, receipt.tx, world.time)
    assert (ticket.chain_id, ticket.request, ticket.record) == (GENESIS.chain_id, receipt.tx, RECORD)
    assert (ticket.version, ticket.commit, ticket.requester) == (1, b"\x01" * 32, USER.public)
    assert (ticket.purpose, ticket.expires_ms) == ("research", world.time + TICKET_LIFETIME_MS)
    assert (entry.sealed_index, entry.doctor) == (publish(1).sealed_index, DOCTOR.public)
    assert entry.header == b"h" * 32
    assert person.subject == USER.public


# --- identities --------------------------------------------------------------------------------------------------------


def test_only_the_authority_certifies_and_revokes():
    world = World().certified()
    for sender in (DOCTOR, PATIENT, STRANGER):
        assert world.do(sender, Certify(credential(STRANGER, "doctor"))).code == "not-authority"
        assert world.do(sender, Revoke(USER.public)).code == "not-authority"
    assert world.do(AUTHORITY, Revoke(STRANGER.public)).code == "unknown-person"


@pytest.mark.parametrize(
    "signed",
    [
        SignedCredential.issue(credential(USER, "user").credential, STRANGER),
        SignedCredential(credential(USER, "doctor").credential, credential(USER, "user").signature),
        credential(USER, "user", not_before_ms=WALL0 + 1),
        credential(USER, "user", not_after_ms=WALL0),
    ],
)
def test_a_forged_early_or_expired_credential_is_not_taken_even_from_the_authority(signed):
    world = World()
    assert world.do(AUTHORITY, Certify(signed)).code == "bad-credential"
    assert get_person(world.state, USER.public) is None


def test_the_credential_on_chain_bears_the_authoritys_signature():
    world = World().certified()
    assert get_person(world.state, USER.public).signed == credential(USER, "user", "org:lab")


def test_a_rule_that_names_a_week_is_met_by_who_is_certified_for_it_or_a_later_week():
    rule = msgspec.structs.replace(RULE, policy="org:lab and status:active@2026w47")
    world = World().published(rule)
    for week, code in (
        ("2026w46", "policy-not-met"),
        ("2026w47", "allowed"),
        ("2027w01", "allowed"),
        ("2026w99", "policy-not-met"),
        ("week", "policy-not-met"),
    ):
        world.do(AUTHORITY, Certify(credential(USER, "user", "org:lab", f"status:active@{week}")))
        assert world.do(USER, Request(RECORD, "research")).code == code, week


def test_a_newer_credential_replaces_the_old_one_at_once():
    world = World().published()
    world.do(AUTHORITY, Certify(credential(USER, "user")))
    assert world.do(USER, Request(RECORD, "research")).code == "policy-not-met"
    world.do(AUTHORITY, Certify(credential(USER, "user", "org:lab")))
    assert world.do(USER, Request(RECORD, "research")).ok


def test_a_revoked_key_is_never_certified_again():
    """Whoever has stolen it would come back with the next renewal."""
    world = World().published()
    assert world.do(AUTHORITY, Revoke(USER.public)).ok
    assert world.do(USER, Request(RECORD, "research")).code == "revoked"
    assert world.do(AUTHORITY, Certify(credential(USER, "user", "org:lab"))).code == "revoked"
    assert world.do(USER, Request(RECORD, "research")).code == "revoked"
    assert world.do(AUTHORITY, Revoke(USER.public)).ok
    assert get_person(world.state, USER.public).is_revoked


def test_only_certified_people_and_the_authority_may_send_at_all():
    world = World().certified()
    assert all(may_send(world.state, GENESIS, k.public) for k in (AUTHORITY, DOCTOR, PATIENT, USER))
    assert not may_send(world.state, GENESIS, STRANGER.public)


# --- records -----------------------------------------------------------------------------------------------------------


def test_a_doctor_attests_a_record_of_a_patient_once():
    world = World().certified()
    attest = Attest(RECORD, PATIENT.public, b"h" * 32)
    for sender in (PATIENT, USER):
        assert world.do(sender, attest).code == "wrong-role"
    for sender in (STRANGER, AUTHORITY):
        assert world.do(sender, attest).code == "not-certified"
    assert world.do(DOCTOR, Attest(RECORD, STRANGER.public, b"h" * 32)).code == "not-certified"
    assert world.do(DOCTOR, Attest(RECORD, DOCTOR.public, b"h" * 32)).code == "wrong-role"
    assert world.do(DOCTOR, attest).ok
    assert world.do(DOCTOR, attest).code == "record-exists"


def test_only_the_patient_publishes_and_only_what_was_attested():
    world = World().certified()
    assert world.do(PATIENT, publish(1)).code == "not-attested"
    world = World().attested()
    assert world.do(DOCTOR, publish(1)).code == "wrong-role"
    world.do(AUTHORITY, Certify(credential(STRANGER, "patient")))
    assert world.do(STRANGER, publish(1)).code == "not-owner"
    assert world.do(PATIENT, publish(1)).ok


def test_versions_grow_by_one_and_the_refusal_names_the_next():
    world = World().attested()
    for version in (0, 2, 2**63 - 1):
        receipt = world.do(PATIENT, publish(version))
        assert (receipt.code, "next version is 1" in receipt.reason) == ("wrong-version", True)
    assert world.do(PATIENT, publish(1)).ok
    assert world.do(PATIENT, publish(1)).code == "wrong-version"
    assert world.do(PATIENT, publish(2)).ok
    entry = get_record(world.state, RECORD)
    assert (entry.version, entry.commit, entry.doctor) == (2, b"\x02" * 32, DOCTOR.public)


@pytest.mark.parametrize(
    "text", ["", "role:user and", "(" * 100, "é" * 10_000, "9 of (a:x)", "not a:x", "a:x b:y" * 1000]
)
def test_a_rule_that_no_reader_could_parse_is_refused(text):
    world = World().attested()
    receipt = world.do(PATIENT, publish(1, msgspec.structs.replace(RULE, policy=text)))
    assert receipt.code == "bad-policy"


def test_a_rule_without_a_purpose_is_refused():
    rule = msgspec.structs.replace(RULE, purposes=())
    assert World().attested().do(PATIENT, publish(1, rule)).code == "bad-rule"


def test_an_index_entry_that_is_not_encrypted_for_its_very_place_is_refused():
    """Otherwise whoever copied the entry of a record into a record of their own would be let into it."""
    world = World().attested()
    world.do(DOCTOR, Attest(b"x" * 16, PATIENT.public, b"h" * 32))
    other_rule = msgspec.structs.replace(RULE, purposes=("research",))
    elsewhere = index_label("diptych/1/sharing/test", RECORD, 1, RULE.digest)
    entries = {
        "the other chain's label": encrypt(index_key(GENESIS).public, elsewhere, b"entry"),
        "another record": publish(1, record=b"x" * 16).sealed_index,
        "another version": publish(2).sealed_index,
        "another rule": publish(1, other_rule).sealed_index,
        "another key": sealed(make_genesis(5)[0], RECORD, 1, RULE),
        "no ciphertext": b"sealed",
        "nothing": b"",
    }
    for what, entry in entries.items():
        receipt = world.do(PATIENT, msgspec.structs.replace(publish(1), sealed_index=entry))
        assert receipt.code == "bad-index", what
    assert world.do(PATIENT, publish(1)).ok
    stolen = msgspec.structs.replace(publish(1), record=b"x" * 16)
    assert world.do(PATIENT, stolen).code == "bad-index"


def test_nothing_is_published_before_the_members_have_made_the_index_key():
    world = World().attested()
    del world.state[b"index-key"]
    receipt = world.do(PATIENT, publish(1))
    assert (receipt.code, "try again later" in receipt.reason) == ("no-index-key", True)


# --- requests ----------------------------------------------------------------------------------------------------------


def test_a_request_is_refused_with_its_reason():
    world = World().published()
    assert world.do(STRANGER, Request(RECORD, "research")).code == "not-certified"
    assert world.do(USER, Request(b"x" * 16, "research")).code == "unknown-record"
    assert world.do(USER, Request(RECORD, "payment")).code == "wrong-purpose"
    assert world.do(DOCTOR, Request(RECORD, "research")).code == "policy-not-met"
    world.do(AUTHORITY, Certify(credential(STRANGER, "user", "org:lab")))
    assert world.do(STRANGER, Request(RECORD, "research")).code == "denied-by-patient"
    world.do(AUTHORITY, Revoke(USER.public))
    assert world.do(USER, Request(RECORD, "research")).code == "revoked"


def test_an_attested_but_unpublished_record_cannot_be_requested():
    assert World().attested().do(USER, Request(RECORD, "research")).code == "unknown-record"


def test_rule_and_credential_end_at_their_millisecond():
    world = World().published()
    world.time = RULE.until_ms - 1
    assert world.do(USER, Request(RECORD, "research")).ok
    world.time = RULE.until_ms
    assert world.do(USER, Request(RECORD, "research")).code == "rule-expired"
    world = World().published(msgspec.structs.replace(RULE, until_ms=None))
    world.time = UNTIL - 1
    assert world.do(USER, Request(RECORD, "research")).ok
    world.time = UNTIL
    assert world.do(USER, Request(RECORD, "research")).code == "credential-expired"
    assert world.do(PATIENT, publish(2)).code == "credential-expired"


def test_a_refused_request_opens_nothing():
    world = World().published()
    refused = world.do(DOCTOR, Request(RECORD, "research"))
    with pytest.raises(Denied, match="not allowed"):
        check_grant(world.state, refused.tx, world.time)


def test_a_grant_ends_with_its_time_a_new_version_and_the_requesters_credential():
    def granted() -> tuple[World, bytes]:
        world = World().published()
        return world, world.do(USER, Request(RECORD, "research")).tx

    world, tx = granted()
    check_grant(world.state, tx, WALL0 + TICKET_LIFETIME_MS - 1)
    with pytest.raises(Denied, match="grant has expired"):
        check_grant(world.state, tx, WALL0 + TICKET_LIFETIME_MS)
    world.do(PATIENT, publish(2))
    with pytest.raises(Denied, match="newer version"):
        check_grant(world.state, tx, WALL0)
    world, tx = granted()
    world.do(AUTHORITY, Certify(credential(USER, "user", "org:lab", not_after_ms=WALL0 + 9)))
    with pytest.raises(Denied, match="not valid now"):
        check_grant(world.state, tx, WALL0 + 9)
    world.do(AUTHORITY, Revoke(USER.public))
    with pytest.raises(Denied, match="revoked"):
        check_grant(world.state, tx, WALL0)


def test_a_ticket_does_not_outlive_the_rule_or_the_credential_that_it_was_granted_for():
    world = World().published()
    world.time = RULE.until_ms - 7
    ticket, *_ = check_grant(world.state, world.do(USER, Request(RECORD, "research")).tx, world.time)
    assert ticket.expires_ms == RULE.until_ms
    world.do(AUTHORITY, Certify(credential(USER, "user", "org:lab", not_after_ms=world.time + 3)))
    ticket, *_ = check_grant(world.state, world.do(USER, Request(RECORD, "research")).tx, world.time)
    assert ticket.expires_ms == world.time + 3


# --- the root --------------------------------------------------------------------------------------------------------


def test_the_root_depends_on_every_receipt_its_order_the_block_and_the_past():
    world = World()
    one, two = (world.do(STRANGER, Request(RECORD, "research")) for _ in range(2))
    variants = [
        next_root(root, block, receipts)
        for root in (bytes(32), b"r" * 32)
        for block in (bytes(32), b"b" * 32)
        for receipts in ([], [one], [two], [one, two], [two, one], [msgspec.structs.replace(one, ok=True)])
    ]
    assert len(set(variants)) == len(variants)
