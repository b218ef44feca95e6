"""The structure of FHIR R4 (4.0.1) Consent and AuditEvent, written down from the published definitions, and a check against it.

Each element: (least, most or None, kind). A kind is a name below, a set of codes (a required binding), or a pattern.
"""

import re
from typing import Any

DATE_TIME = re.compile(
    r"([0-9]{4})(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01])(T([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
    r"(Z|[+-]((0[0-9]|1[0-3]):[0-5][0-9]|14:00)))?)?)?"
)
INSTANT = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
    r"(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])"
)
URI, CODE, ID = re.compile(r"\S+"), re.compile(r"\S+( \S+)*"), re.compile(r"[A-Za-z0-9.-]{1,64}")
STRING = re.compile(r"[\s\S]+")

STRUCTURES: dict[str, dict[str, tuple[int, int | None, Any]]] = {
    "Coding": {"system": (0, 1, URI), "version": (0, 1, STRING), "code": (0, 1, CODE), "display": (0, 1, STRING)},
    "CodeableConcept": {"coding": (0, None, "Coding"), "text": (0, 1, STRING)},
    "Identifier": {"system": (0, 1, URI), "value": (0, 1, STRING)},
    "Reference": {"reference": (0, 1, STRING), "type": (0, 1, URI), "identifier": (0, 1, "Identifier"), "display": (0, 1, STRING)},
    "Period": {"start": (0, 1, DATE_TIME), "end": (0, 1, DATE_TIME)},
    "Extension": {"url": (1, 1, URI), "valueString": (0, 1, STRING)},
    "Consent": {
        "resourceType": (1, 1, {"Consent"}),
        "id": (0, 1, ID),
        "identifier": (0, None, "Identifier"),
        "status": (1, 1, {"draft", "proposed", "active", "rejected", "inactive", "entered-in-error"}),
        "scope": (1, 1, "CodeableConcept"),
        "category": (1, None, "CodeableConcept"),
        "patient": (0, 1, "Reference"),
        "dateTime": (0, 1, DATE_TIME),
        "performer": (0, None, "Reference"),
        "organization": (0, None, "Reference"),
        "policyRule": (0, 1, "CodeableConcept"),
        "provision": (0, 1, "Provision"),
    },
    "Provision": {
        "extension": (0, None, "Extension"),
        "modifierExtension": (0, None, "Extension"),
        "type": (0, 1, {"deny", "permit"}),
        "period": (0, 1, "Period"),
        "actor": (0, None, "Actor"),
        "action": (0, None, "CodeableConcept"),
        "securityLabel": (0, None, "Coding"),
        "purpose": (0, None, "Coding"),
        "class": (0, None, "Coding"),
        "code": (0, None, "CodeableConcept"),
        "dataPeriod": (0, 1, "Period"),
        "data": (0, None, "Data"),
        "provision": (0, None, "Provision"),
    },
    "Actor": {"role": (1, 1, "CodeableConcept"), "reference": (1, 1, "Reference")},
    "Data": {"meaning": (1, 1, {"instance", "related", "dependents", "authoredby"}), "reference": (1, 1, "Reference")},
    "AuditEvent": {
        "resourceType": (1, 1, {"AuditEvent"}),
        "id": (0, 1, ID),
        "type": (1, 1, "Coding"),
        "subtype": (0, None, "Coding"),
        "action": (0, 1, set("CRUDE")),
        "period": (0, 1, "Period"),
        "recorded": (1, 1, INSTANT),
        "outcome": (0, 1, {"0", "4", "8", "12"}),
        "outcomeDesc": (0, 1, STRING),
        "purposeOfEvent": (0, None, "CodeableConcept"),
        "agent": (1, None, "Agent"),
        "source": (1, 1, "Source"),
        "entity": (0, None, "Entity"),
    },
    "Agent": {
        "type": (0, 1, "CodeableConcept"),
        "role": (0, None, "CodeableConcept"),
        "who": (0, 1, "Reference"),
        "altId": (0, 1, STRING),
        "name": (0, 1, STRING),
        "requestor": (1, 1, bool),
        "policy": (0, None, URI),
        "purposeOfUse": (0, None, "CodeableConcept"),
    },
    "Source": {"site": (0, 1, STRING), "observer": (1, 1, "Reference"), "type": (0, None, "Coding")},
    "Entity": {
        "what": (0, 1, "Reference"),
        "type": (0, 1, "Coding"),
        "role": (0, 1, "Coding"),
        "name": (0, 1, STRING),
        "description": (0, 1, STRING),
        "detail": (0, None, "Detail"),
    },
    "Detail": {"type": (1, 1, STRING), "valueString": (1, 1, STRING)},
    "Bundle": {
        "resourceType": (1, 1, {"Bundle"}),
        "type": (1, 1, {"collection", "document", "batch", "transaction", "searchset", "history"}),
        "entry": (0, None, "Entry"),
    },
    "Entry": {"fullUrl": (0, 1, URI), "resource": (0, 1, "AuditEvent")},
}  # fmt: skip


def check(node: Any, kind: Any, at: str = "$") -> None:
    """Assert that a value has the structure that R4 gives it: known elements, cardinalities, lists, codes, primitive forms."""
    if isinstance(kind, set):
        assert node in kind, at
    elif kind is bool:
        assert isinstance(node, bool), at
    elif isinstance(kind, re.Pattern):
        assert isinstance(node, str), at
        assert kind.fullmatch(node), at
    else:
        elements = STRUCTURES[kind]
        assert isinstance(node, dict), at
        assert node, at
        assert node.keys() <= elements.keys(), (at, node.keys() - elements.keys())
        for name, (least, most, inside) in elements.items():
            if name not in node:
                assert least == 0, f"{at}.{name} is missing"
            elif most == 1:
                check(node[name], inside, f"{at}.{name}")
            else:
                assert isinstance(node[name], list), f"{at}.{name}"
                assert node[name], f"{at}.{name} is empty"
                for item in node[name]:
                    check(item, inside, f"{at}.{name}")
