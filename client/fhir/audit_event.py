"""The log of a record as FHIR R4 AuditEvents, in the patterns of IHE's Basic Audit Log Patterns (BALP 1.1).

A request for access and a decision on one become an authorization decision (BALP `AuthZconsent`): success for a grant, a serious
failure for a denial, with the chain's reason. What was done to a record becomes a create, update or delete of it. The profiles are
not claimed in `meta.profile`: they want the network address of a client and its organization, and the chain knows neither.

The same receipts give the same bytes, ids included. Nobody is named but by key, and nothing is said that is not on chain: an
emergency's ground and sealed note stay there.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from client.fhir.consent import HL7, KEY, REASONS, RECORD
from crypto.codec import encode
from protocol.contract import Receipt
from protocol.record import DeletionReceipt, digest

CHAIN = "urn:diptych:chain"
"""System of an identifier whose value is a chain id."""
TRANSACTION = "urn:diptych:transaction"
"""System of codes for the kinds of transactions, and of identifiers whose values are their ids, in hex digits."""
ATTRIBUTE = "urn:diptych:attribute"
"""System of codes for certified attributes."""

_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_AUTHZ = "https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType"
_INTERACTION = "http://hl7.org/fhir/restful-interaction"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SECURITY_ALERT = {"system": _DCM, "code": "110113", "display": "Security Alert"}
_ROLES_CHANGED = {"system": _DCM, "code": "110136", "display": "Security Roles Changed"}
_ACTIVITY = {"system": _DCM, "code": "110100", "display": "Application Activity"}
_REST = {"system": f"{HL7}audit-event-type", "code": "rest", "display": "Restful Operation"}

_DECISIONS = {"access.request", "access.decide"}
_GRANTS = {"allowed", "emergency-allowed"}
_KINDS: dict[str, tuple[dict[str, str], str, dict[str, str] | None]] = {
    "access.request": (_SECURITY_ALERT, "E", {"system": _AUTHZ, "code": "AuthZ-Consent"}),
    "access.decide": (_SECURITY_ALERT, "E", {"system": _AUTHZ, "code": "AuthZ-Consent"}),
    "access.review": (_SECURITY_ALERT, "U", None),
    "record.attest": (_REST, "C", {"system": _INTERACTION, "code": "create"}),
    "record.publish": (_REST, "U", {"system": _INTERACTION, "code": "update"}),
    "record.retire": (_REST, "U", {"system": _INTERACTION, "code": "update"}),
    "record.erase": (_REST, "D", {"system": _INTERACTION, "code": "delete"}),
    "identity.certify": (_ROLES_CHANGED, "U", None),
    "identity.revoke": (_ROLES_CHANGED, "D", None),
    "proxy.set": (_ROLES_CHANGED, "U", None),
}
"""Type, action and subtype by kind of transaction; others are application activity."""


def audit_events(
    receipts: Iterable[tuple[str, Receipt]],
    patient: bytes,
    attributes: Mapping[bytes, Sequence[str]] | None = None,
    deletions: Iterable[tuple[bytes, DeletionReceipt]] = (),
    form: Literal["bundle", "ndjson"] = "bundle",
) -> bytes:
    """The receipts of a patient's records, each with the id of its chain, as AuditEvents: one `collection` Bundle, or a line for each.

    `attributes` are those certified of the people in the log, by public key. `deletions` are the cloud's own entries, each with the
    public key of the cloud. In the order given, deletions last.
    """
    events = [_event(chain, receipt, patient, attributes or {}) for chain, receipt in receipts]
    events += [_deletion(cloud, receipt, patient) for cloud, receipt in deletions]
    if form == "ndjson":
        return b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    entries = [{"fullUrl": f"urn:uuid:{event['id']}", "resource": event} for event in events]
    bundle = {"resourceType": "Bundle", "type": "collection"} | ({"entry": entries} if entries else {})
    return msgspec.json.encode(bundle)


def _event(
    chain: str, receipt: Receipt, patient: bytes, attributes: Mapping[bytes, Sequence[str]]
) -> dict[str, Any]:
    kind, action, subtype = _KINDS.get(receipt.kind, (_ACTIVITY, "E", None))
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": _id(encode((chain, receipt))),
        "type": kind,
        "subtype": [*([subtype] if subtype else []), {"system": TRANSACTION, "code": receipt.kind}],
        "action": action,
        "recorded": _instant(receipt.time_ms),
        "outcome": _outcome(receipt),
        "outcomeDesc": f"{receipt.code}: {receipt.reason}",
    }
    if receipt.purpose:
        event["purposeOfEvent"] = [_purpose(receipt.purpose)]
    event["agent"] = [_person(receipt, patient, attributes.get(receipt.sender, ())), _chain(chain)]
    event["source"] = {
        "observer": _by(CHAIN, chain),
        "type": [_code(f"{HL7}security-source-type", "6", "Security Server")],
    }
    event["entity"] = [*_about(patient, receipt.record), _transaction(receipt)]
    if receipt.kind in _DECISIONS and receipt.record is not None:
        rule = {
            "what": _by(RECORD, receipt.record.hex()),
            "type": _code("http://hl7.org/fhir/resource-types", "Consent"),
        }
        event["entity"].append(rule)
    return event


def _deletion(cloud: bytes, receipt: DeletionReceipt, patient: bytes) -> dict[str, Any]:
    """What the cloud says that it deleted."""
    return {
        "resourceType": "AuditEvent",
        "id": _id(encode((cloud, receipt))),
        "type": _REST,
        "subtype": [{"system": _INTERACTION, "code": "delete"}],
        "action": "D",
        "recorded": _instant(receipt.time_ms),
        "outcome": "0",
        "outcomeDesc": f"deleted {receipt.views} views and {receipt.blobs} blobs, {receipt.size} bytes",
        "agent": [
            {
                "type": _concept(f"{HL7}v3-ParticipationType", "AUT"),
                "who": _by(KEY, patient.hex()),
                "requestor": True,
            },
            {
                "type": _concept(_DCM, "110152", "Destination Role ID"),
                "who": _by(KEY, cloud.hex()),
                "requestor": False,
            },
        ],
        "source": {
            "observer": _by(KEY, cloud.hex()),
            "type": [_code(f"{HL7}security-source-type", "3", "Web Server")],
        },
        "entity": list(_about(patient, receipt.record)),
    }


def _id(of: bytes) -> str:
    """A UUID of version 8 (RFC 9562) out of a digest."""
    number = int.from_bytes(digest("audit-event", of)[:16], "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | (0x8 << 76) | (0x2 << 62)
    return str(uuid.UUID(int=number))


def _outcome(receipt: Receipt) -> str:
    """0 for what was done or granted; 8 for access denied or declined; 4 for what waits or was refused otherwise."""
    if receipt.kind in _DECISIONS:
        return "0" if receipt.code in _GRANTS else "4" if receipt.code == "waiting" else "8"
    return "0" if receipt.ok else "4"


def _purpose(purpose: Any) -> dict[str, Any]:
    codings = [_code(f"{HL7}v3-ActReason", REASONS[purpose])]
    if purpose == "emergency":
        codings.append(_code(f"{HL7}v3-ActReason", "BTG", "break the glass"))
    return {"coding": codings}


def _person(receipt: Receipt, patient: bytes, attributes: Sequence[str]) -> dict[str, Any]:
    """Who sent the transaction: who asks for a record receives it, everybody else acts on one."""
    code, display = (
        ("IRCP", "information recipient")
        if receipt.kind == "access.request"
        else ("AUT", "author (originator)")
    )
    roles = [{"coding": [_code(ATTRIBUTE, attribute)]} for attribute in attributes]
    if receipt.sender == patient:
        roles.append(_concept(f"{HL7}v3-RoleClass", "PAT", "patient"))
    agent: dict[str, Any] = {"type": _concept(f"{HL7}v3-ParticipationType", code, display)}
    agent |= {"role": roles} if roles else {}
    agent |= {"who": _by(KEY, receipt.sender.hex()), "requestor": True}
    return agent | ({"purposeOfUse": [_purpose(receipt.purpose)]} if receipt.purpose else {})


def _chain(chain: str) -> dict[str, Any]:
    """The chain's contract, which decides."""
    kind = _concept(f"{HL7}extra-security-role-type", "authserver", "authorization server")
    return {"type": kind, "who": _by(CHAIN, chain), "requestor": False}


def _about(patient: bytes, record: bytes | None) -> Iterable[dict[str, Any]]:
    yield {
        "what": {"type": "Patient", **_by(KEY, patient.hex())},
        "type": _code(f"{HL7}audit-entity-type", "1", "Person"),
        "role": _code(f"{HL7}object-role", "1", "Patient"),
    }
    if record is not None:
        yield {
            "what": _by(RECORD, record.hex()),
            "type": _code(f"{HL7}audit-entity-type", "2", "System Object"),
            "role": _code(f"{HL7}object-role", "4", "Domain Resource"),
        }


def _transaction(receipt: Receipt) -> dict[str, Any]:
    """The transaction by its id, and where it stands on the chain."""
    detail = [("height", str(receipt.height)), ("position", str(receipt.position))]
    if receipt.request is not None:
        detail.append(("request", receipt.request.hex()))
    return {
        "what": _by(TRANSACTION, receipt.tx.hex()),
        "type": _code(f"{HL7}audit-entity-type", "2", "System Object"),
        "detail": [{"type": name, "valueString": value} for name, value in detail],
    }


def _by(system: str, value: str) -> dict[str, Any]:
    return {"identifier": {"system": system, "value": value}}


def _code(system: str, code: str, display: str | None = None) -> dict[str, str]:
    return {"system": system, "code": code} | ({"display": display} if display else {})


def _concept(system: str, code: str, display: str | None = None) -> dict[str, Any]:
    return {"coding": [_code(system, code, display)]}


def _instant(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
