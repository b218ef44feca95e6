"""A record's log as FHIR AuditEvents: what each says of who, what, why and how it ended, denials among them."""

import json
from typing import Any

import msgspec
from fhir_r4 import check
from hypothesis import given
from hypothesis import strategies as st

from client.fhir.audit_event import CHAIN, TRANSACTION, audit_events
from client.fhir.consent import HL7, KEY, RECORD
from crypto.sign import SigningKey
from protocol.contract import Receipt
from protocol.record import DeletionReceipt

PATIENT, READER, ID, TX = b"p" * 32, b"u" * 32, b"r" * 16, b"t" * 32
CLOUD = SigningKey(bytes(32))
TOLD = Receipt(
    TX,
    7,
    2,
    1_764_000_000_123,
    "access.request",
    READER,
    ID,
    "research",
    None,
    True,
    "allowed",
    "the rule is satisfied",
)
KINDS = ["access.request", "access.decide", "access.review", "record.attest", "record.publish", "record.retire", "record.erase",
         "identity.certify", "identity.revoke", "proxy.set", "members.change", "index.deal", "something.new"]  # fmt: skip
PURPOSES = ["treatment", "research", "payment", "public-health", "patient-request", "emergency", None]


def event(receipt: Receipt, **more: Any) -> dict[str, Any]:
    [entry] = json.loads(audit_events([("storage-x", receipt)], PATIENT, **more))["entry"]
    assert entry["fullUrl"] == f"urn:uuid:{entry['resource']['id']}"
    return entry["resource"]


def told(**changes: Any) -> dict[str, Any]:
    return event(msgspec.structs.replace(TOLD, **changes))


receipts = st.builds(
    Receipt, st.binary(min_size=32, max_size=32), st.integers(0, 2**40), st.integers(0, 999), st.integers(0, 253_402_300_799_999),
    st.sampled_from(KINDS), st.sampled_from([PATIENT, READER]), st.sampled_from([ID, None]), st.sampled_from(PURPOSES),
    st.sampled_from([TX, None]), st.booleans(), st.sampled_from(["allowed", "waiting", "declined", "policy-not-met"]),
    st.text(max_size=50),
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["storage-x", "sharing-y"]), receipts), max_size=5))
def test_every_receipt_becomes_an_event_of_the_structure_that_r4_publishes(
    log: list[tuple[str, Receipt]],
) -> None:
    bundle = json.loads(audit_events(log, PATIENT))
    check(bundle, "Bundle")
    lines = audit_events(log, PATIENT, form="ndjson").splitlines()
    assert [json.loads(line) for line in lines] == [entry["resource"] for entry in bundle.get("entry", [])]
    assert len(lines) == len(log)
    assert audit_events(log, PATIENT) == audit_events(log, PATIENT)


def test_a_grant_is_an_authorization_decision_that_succeeded() -> None:
    found = told()
    assert (found["type"]["code"], found["action"], found["outcome"]) == ("110113", "E", "0")
    assert {
        "system": "https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType",
        "code": "AuthZ-Consent",
    } in found["subtype"]
    assert {"system": TRANSACTION, "code": "access.request"} in found["subtype"]
    assert found["recorded"] == "2025-11-24T16:00:00.123Z"
    user, authorizer = found["agent"]
    assert user["type"]["coding"][0]["code"] == "IRCP"
    assert (user["who"], user["requestor"]) == ({"identifier": {"system": KEY, "value": READER.hex()}}, True)
    assert (authorizer["who"], authorizer["requestor"]) == (
        {"identifier": {"system": CHAIN, "value": "storage-x"}},
        False,
    )
    assert authorizer["type"]["coding"][0]["code"] == "authserver"
    assert found["source"]["observer"] == authorizer["who"]
    assert [c["code"] for c in found["purposeOfEvent"][0]["coding"]] == ["HRESCH"]
    assert user["purposeOfUse"] == found["purposeOfEvent"]
    patient, record, transaction, consent = found["entity"]
    assert (patient["type"]["code"], patient["role"]["code"]) == ("1", "1")
    assert patient["what"]["identifier"]["value"] == PATIENT.hex()
    assert record["what"]["identifier"] == {"system": RECORD, "value": ID.hex()}
    assert transaction["what"]["identifier"] == {"system": TRANSACTION, "value": TX.hex()}
    assert consent["type"]["code"] == "Consent"


def test_a_denial_is_a_serious_failure_with_the_reason_of_the_chain() -> None:
    found = told(ok=False, code="wrong-purpose", reason="the record is not open for research")
    assert found["outcome"] == "8"
    assert found["outcomeDesc"] == "wrong-purpose: the record is not open for research"
    assert told(kind="access.decide", code="declined", reason="the request is declined")["outcome"] == "8"


def test_a_request_that_waits_is_no_grant() -> None:
    assert told(code="waiting")["outcome"] == "4"
    assert told(kind="record.publish", ok=False, code="wrong-version")["outcome"] == "4"


def test_broken_glass_is_told_as_such() -> None:
    found = told(purpose="emergency", code="emergency-allowed")
    codings = found["purposeOfEvent"][0]["coding"]
    assert [(c["system"], c["code"]) for c in codings] == [
        (f"{HL7}v3-ActReason", "ETREAT"),
        (f"{HL7}v3-ActReason", "BTG"),
    ]
    assert found["outcome"] == "0"


def test_certified_attributes_are_the_roles_of_the_agent() -> None:
    found = event(TOLD, attributes={READER: ["role:researcher", "org:x"]})
    assert [r["coding"][0]["code"] for r in found["agent"][0]["role"]] == ["role:researcher", "org:x"]
    mine = told(sender=PATIENT, kind="record.publish", purpose=None)
    assert (mine["action"], mine["agent"][0]["role"][0]["coding"][0]["code"]) == ("U", "PAT")


def test_ids_are_of_the_chain_and_the_whole_receipt() -> None:
    ids = {
        event(r)["id"]
        for r in (TOLD, msgspec.structs.replace(TOLD, ok=False), msgspec.structs.replace(TOLD, position=3))
    }
    [entry] = json.loads(audit_events([("sharing-y", TOLD)], PATIENT))["entry"]
    assert len(ids | {entry["resource"]["id"]}) == 4
    assert {i[14] for i in ids} == {"8"}


def test_the_clouds_word_on_a_deletion_is_told_too() -> None:
    said = DeletionReceipt(b"q" * 32, ID, views=2, blobs=14, size=999, time_ms=0, signature=bytes(64))
    [line] = audit_events([], PATIENT, deletions=[(CLOUD.public, said)], form="ndjson").splitlines()
    found = json.loads(line)
    check(found, "AuditEvent")
    assert (found["action"], found["source"]["observer"]["identifier"]["value"]) == ("D", CLOUD.public.hex())
    assert found["outcomeDesc"] == "deleted 2 views and 14 blobs, 999 bytes"
