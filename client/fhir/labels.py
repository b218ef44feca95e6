"""Security labels: which resources are of a sensitive category, by what FHIR says of them in `meta.security`.

A resource is sensitive if it, a resource inside it, or (by an inline label) an element of it bears a code of HL7's sensitivity policies
for what they say of a person, or one of the confidentialities R (restricted) and V (very restricted). A code without a system counts,
whatever system was meant. Sources: FHIR R4 section 6.1.1; v3-ActCode and v3-Confidentiality; HL7 DS4P for inline labels.
"""

import json
from collections.abc import Iterator
from typing import Any

_ACT = frozenset(
    {
        "http://terminology.hl7.org/CodeSystem/v3-ActCode",
        "http://hl7.org/fhir/v3/ActCode",
        "urn:oid:2.16.840.1.113883.5.4",
    }
)
_CONFIDENTIALITY = frozenset(
    {
        "http://terminology.hl7.org/CodeSystem/v3-Confidentiality",
        "http://hl7.org/fhir/v3/Confidentiality",
        "urn:oid:2.16.840.1.113883.5.25",
    }
)
SENSITIVITIES = frozenset(
    [
        "ADOL",
        "BH",
        "CEL",
        "COGN",
        "DIA",
        "DRGIS",
        "DVD",
        "EMOTDIS",
        "ETH",
        "ETHUD",
        "GDIS",
        "HIV",
        "MH",
        "MST",
        "OPIOIDUD",
        "PDS",
        "PHY",
        "PREGNANT",
        "PRS",
        "PSY",
        "PSYTHPN",
        "SCA",
        "SDV",
        "SENSITIVE",
        "SEX",
        "SICKLE",
        "SPI",
        "STD",
        "SUD",
        "TBOO",
        "VIO",
        "42CFRPART2",
        "HIPAAPSYNOTES",
        "TITLE38SECTION7332",
        "PROCESSINLINELABEL",
    ]
)
"""Codes of v3-ActCode, in upper case: sensitivity policies, the laws that demand them, and the mark that labels follow inside."""
CONFIDENTIALITIES = frozenset("RV")
_INLINE = "extension-inline-sec-label"


def is_sensitive(resource: bytes) -> bool:
    """Whether a resource, given as checked JSON, bears a sensitive label, itself or anywhere inside."""
    # only an escape of letters spells either word otherwise
    if not any(mark in resource for mark in (b'"security"', _INLINE.encode(), b"\\u")):
        return False
    document = json.loads(resource, parse_int=str, parse_float=str)
    return any(_is_label(coding) for coding in _labels_in(document))


def _labels_in(node: Any) -> Iterator[Any]:
    if isinstance(node, list):
        for item in node:
            yield from _labels_in(item)
    elif isinstance(node, dict):
        meta = node.get("meta")
        labels = meta.get("security") if isinstance(meta, dict) else None
        yield from labels if isinstance(labels, list) else [labels]
        if str(node.get("url", "")).endswith(_INLINE):
            yield node.get("valueCoding")
        for value in node.values():
            yield from _labels_in(value)


def _is_label(coding: Any) -> bool:
    if not isinstance(coding, dict):
        return False
    system, code = coding.get("system"), str(coding.get("code", "")).upper()
    return (code in SENSITIVITIES and (system is None or system in _ACT)) or (
        code in CONFIDENTIALITIES and (system is None or system in _CONFIDENTIALITY)
    )
