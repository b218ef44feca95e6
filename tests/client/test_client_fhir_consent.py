"""A rule as a FHIR Consent and back: nothing is lost, and nothing that a rule cannot say is passed over."""

import copy
import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta, timezone
from typing import Any

import pytest
from fhir_r4 import check
from hypothesis import given
from hypothesis import strategies as st

from client.fhir.consent import (
    APPROVAL,
    EMERGENCY,
    HL7,
    KEY,
    POLICY,
    USES,
    consent_from_rule,
    rule_from_consent,
)
from crypto.errors import DiptychError, Malformed
from crypto.policy import parse
from protocol.tx import Rule

PATIENT, RECORD = b"p" * 32, b"r" * 16
DAY = 86_400_000

attribute = st.sampled_from(
    ["role:doctor", "role:researcher", "org:st-mary", "status:active@week", "a:b", "status:active@2026w47"]
)
policy = st.recursive(
    attribute,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(" or ".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: " and ".join(f"({p})" for p in parts)),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"2 of ({', '.join(parts)})"),
    ),
    max_leaves=6,
).map(lambda text: str(parse(text)))
purpose = st.sampled_from(["treatment", "research", "payment", "public-health", "patient-request"])
moment = st.integers(0, 253_402_300_799_999)


@st.composite
def rules(draw: Callable[..., Any]) -> Rule:
    begin, end = draw(st.none() | moment), draw(st.none() | moment.map(lambda ms: ms + 1))
    if begin is not None and end is not None and begin >= end:
        begin, end = end - 1, begin + 1
    return Rule(
        draw(policy),
        tuple(draw(st.lists(purpose, min_size=1, max_size=5))),
        end,
        tuple(draw(st.lists(st.binary(min_size=32, max_size=32), max_size=4))),
        begin,
        draw(st.none() | st.integers(1, 2**31)),
        draw(st.none() | policy),
        draw(st.none() | policy),
    )


RULE = Rule("org:st-mary and role:doctor or role:researcher", ("treatment", "research"), 2_000_000_000_000,
            (b"d" * 32,), 1_700_000_000_000, 3, "role:doctor", "2 of (org:a, org:b, role:doctor)")  # fmt: skip
WHOLE: dict[str, Any] = json.loads(consent_from_rule(RULE, PATIENT, RECORD))


def read(consent: Any, **more: Any) -> Rule:
    return rule_from_consent(json.dumps(consent).encode(), PATIENT, RECORD, **more)


@given(rules())
def test_a_rule_comes_back_from_its_consent_as_it_was(rule: Rule) -> None:
    data = consent_from_rule(rule, PATIENT, RECORD)
    assert rule_from_consent(data, PATIENT, RECORD) == rule
    assert consent_from_rule(rule, PATIENT, RECORD) == data


@given(rules())
def test_every_consent_has_the_structure_that_r4_publishes(rule: Rule) -> None:
    consent = json.loads(consent_from_rule(rule, PATIENT, RECORD))
    check(consent, "Consent")
    assert "policyRule" in consent, "invariant ppc-1"
    assert "patient" in consent, "invariant ppc-2"


def test_the_largest_rule_fits_a_consent() -> None:
    text = " or ".join(f"org:{'x' * 52}{n:03}" for n in range(256))
    rule = Rule(str(parse(text)), ("research",), None, tuple(bytes([n]) * 32 for n in range(256)))
    assert rule_from_consent(consent_from_rule(rule, PATIENT, RECORD), PATIENT, RECORD) == rule


def test_the_alternatives_of_a_policy_are_the_actors() -> None:
    actors = [a["reference"]["identifier"] for a in WHOLE["provision"]["actor"]]
    assert actors == [
        {"system": POLICY, "value": "org:st-mary and role:doctor"},
        {"system": POLICY, "value": "role:researcher"},
    ]
    codes = [(c["system"], c["code"]) for c in WHOLE["provision"]["purpose"]]
    assert codes == [(f"{HL7}v3-ActReason", "TREAT"), (f"{HL7}v3-ActReason", "HRESCH")]


def test_what_narrows_a_permission_is_a_modifier_that_strangers_must_not_pass_over() -> None:
    provision = WHOLE["provision"]
    assert [e["url"] for e in provision["modifierExtension"]] == [USES, APPROVAL]
    assert [e["url"] for e in provision["extension"]] == [EMERGENCY]


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    consent = copy.deepcopy(WHOLE)
    change(consent)
    return consent


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(consent: dict[str, Any]) -> None:
        *steps, last = [int(s) if s.isdigit() else s for s in path.split(".")]
        node: Any = consent
        for step in steps:
            node = node[step]
        node[last] = value

    return change


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


REASON = f"{HL7}v3-ActReason"
PERSON = {
    "role": concept(f"{HL7}v3-ParticipationType", "IRCP"),
    "reference": {"identifier": {"system": KEY, "value": "ab" * 32}},
}


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("status", "inactive", "Consent.status"),
        ("status", None, "Consent.status"),
        ("scope", concept(f"{HL7}consentscope", "treatment"), "Consent.scope"),
        ("category", [], "Consent.category"),
        ("policyRule", concept(f"{HL7}v3-ActCode", "OPTOUT"), "Consent.policyRule"),
        ("policy", [{"uri": "http://example.org/law"}], "Consent.policy"),
        ("implicitRules", "http://example.org/rules", "Consent.implicitRules"),
        ("modifierExtension", [{"url": "urn:x"}], "Consent.modifierExtension"),
        ("extension", [{"url": "urn:x"}], "Consent.extension"),
        ("contained", [{"resourceType": "Group"}], "Consent.contained"),
        ("_status", {"extension": []}, "Consent._status"),
        ("verification", [{"verified": False}], "Consent.verification[0]"),
        ("patient", {"identifier": {"system": KEY, "value": "ab" * 32}}, "Consent.patient"),
        ("patient", {"reference": "Patient/1"}, "Consent.patient"),
        ("provision", None, "Consent.provision"),
        ("provision.type", "deny", "Consent.provision.type"),
        ("provision.securityLabel", [{"code": "N"}], "Consent.provision.securityLabel"),
        ("provision.class", [{"code": "Observation"}], "Consent.provision.class"),
        ("provision.code", [concept("http://loinc.org", "1")], "Consent.provision.code"),
        ("provision.dataPeriod", {"start": "2020"}, "Consent.provision.dataPeriod"),
        ("provision.action", [concept(f"{HL7}consentaction", "correct")], "Consent.provision.action[0]"),
        ("provision.actor", [], "Consent.provision.actor"),
        ("provision.actor.0.role", concept(f"{HL7}v3-ParticipationType", "CST"), "Consent.provision.actor[0].role"),
        ("provision.actor.0.reference", {"reference": "Organization/3"}, "Consent.provision.actor[0].reference"),
        ("provision.actor.0.reference", PERSON["reference"], "Consent.provision.actor[0].reference"),
        ("provision.actor.0.reference.reference", "Group/all", "Consent.provision.actor[0].reference"),
        ("provision.actor.0.reference.identifier.value", "role:doctor or", "Consent.provision.actor[0].reference"),
        ("provision.actor.0.reference.identifier.period", {"end": "2020"}, "identifier.period"),
        ("provision.actor.0.extension", [], "Consent.provision.actor[0].extension"),
        ("provision.purpose", [], "Consent.provision.purpose"),
        ("provision.purpose.0.code", "HMARKT", "Consent.provision.purpose[0]"),
        ("provision.purpose.0.code", "BTG", "Consent.provision.purpose[0] is an emergency"),
        ("provision.purpose.0.code", "ETREAT", "Consent.provision.purpose[0] is an emergency"),
        ("provision.purpose.0.system", "http://example.org", "Consent.provision.purpose[0]"),
        ("provision.period", {"start": "tomorrow"}, "Consent.provision.period.start"),
        ("provision.period", {"start": "2026-02-30"}, "Consent.provision.period.start"),
        ("provision.period", {"end": "9999"}, "Consent.provision.period.end"),
        ("provision.period", {"start": "2027", "end": "2026"}, "Consent.provision.period ends"),
        ("provision.period", {"start": "2027", "_end": {}}, "Consent.provision.period._end"),
        ("provision.data.0.meaning", "related", "Consent.provision.data[0].meaning"),
        ("provision.data.0.reference.identifier.value", "00" * 16, "Consent.provision.data[0].reference"),
        ("provision.provision.0.type", "permit", "Consent.provision.provision[0].type"),
        ("provision.provision.0.purpose", [{"system": REASON, "code": "TREAT"}], "Consent.provision.provision[0].purpose"),
        ("provision.provision.0.period", {"end": "2030"}, "Consent.provision.provision[0].period"),
        ("provision.provision.0.provision", [], "Consent.provision.provision[0].provision"),
        ("provision.provision.0.actor", [], "Consent.provision.provision[0].actor"),
        ("provision.provision.0.actor.0.reference.identifier.system", POLICY, "provision[0].actor[0].reference"),
        ("provision.extension.0.url", "urn:x", "Consent.provision.extension[0]"),
        ("provision.extension", [{"url": EMERGENCY, "valueCode": "x"}], "Consent.provision.extension[0].valueCode"),
        ("provision.modifierExtension.0.url", EMERGENCY, "Consent.provision.modifierExtension[0]"),
        ("provision.modifierExtension.0.valueString", "0", "Consent.provision.modifierExtension"),
        ("provision.modifierExtension.0.valueString", "9999999999", "the rule in the Consent"),
        ("provision.modifierExtension.1.valueString", "nobody", "holds no policy"),
        ("somethingNew", True, "Consent.somethingNew"),
    ],
)  # fmt: skip
def test_what_a_rule_cannot_express_is_refused_naming_the_element(path: str, value: Any, names: str) -> None:
    with pytest.raises(Malformed, match=re.escape(names)):
        read(changed(put(path, value)))


def test_a_consent_for_another_patient_or_record_is_refused() -> None:
    data = json.dumps(WHOLE).encode()
    with pytest.raises(Malformed, match=r"Consent\.patient"):
        rule_from_consent(data, b"q" * 32, RECORD)
    with pytest.raises(Malformed, match=r"data\[0\]"):
        rule_from_consent(data, PATIENT, b"s" * 16)


def test_a_foreign_consent_is_read_by_what_its_references_are_said_to_stand_for() -> None:
    foreign = changed(put("patient", {"reference": "Patient/17", "display": "Zoë"}))
    del (
        foreign["provision"]["data"],
        foreign["provision"]["extension"],
        foreign["provision"]["modifierExtension"],
    )
    foreign["provision"]["actor"] = [
        {"role": PERSON["role"], "reference": {"reference": "Organization/3"}},
        {"role": PERSON["role"], "reference": {"identifier": {"system": "https://h.example", "value": "9"}}},
    ]
    foreign |= {"text": {"status": "generated", "div": "<div/>"}, "dateTime": "2026", "id": "x"}
    known = {
        "Patient/17": PATIENT.hex(),
        "Organization/3": "org:st-mary",
        "https://h.example|9": "role:doctor",
    }
    found = read(foreign, known=known)
    assert found.policy == "org:st-mary or role:doctor"
    assert (found.uses, found.approval, found.emergency) == (None, None, None)
    with pytest.raises(Malformed, match=r"actor\[1\]"):
        read(foreign, known={k: v for k, v in known.items() if "|" not in k})
    both = changed(put("provision.actor.0.reference.reference", "Organization/3"))
    with pytest.raises(Malformed, match=r"actor\[0\]"):
        read(both, known={"Organization/3": "org:other"})


@pytest.mark.parametrize(
    ("period", "hours", "begins", "ends"),
    [
        ({"start": "1970-01-02", "end": "1970-01-02"}, 0, DAY, 2 * DAY),
        ({"start": "1970-01-02", "end": "1970-01-02"}, 2, DAY - 7_200_000, 2 * DAY - 7_200_000),
        ({"start": "1970-01", "end": "1970-01"}, 0, 0, 31 * DAY),
        ({"start": "1971", "end": "1972"}, 0, 365 * DAY, (3 * 365 + 1) * DAY),
        ({"end": "1970-12"}, 0, None, 365 * DAY),
        ({"start": "1950-01-01"}, 0, 0, None),
        ({"end": "1970-01-01T00:00:10Z"}, 5, None, 11_000),
        ({"end": "1970-01-01T02:00:10.5+02:00"}, 0, None, 10_600),
        ({"end": "1970-01-01T00:00:10.250Z"}, 0, None, 10_251),
    ],
)
def test_a_period_lasts_to_the_end_of_what_its_end_names(
    period: dict[str, str], hours: int, begins: int | None, ends: int | None
) -> None:
    rule = read(changed(put("provision.period", period)), zone=timezone(timedelta(hours=hours)))
    assert (rule.from_ms, rule.until_ms) == (begins, ends)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("role:doctor", (), None, ()),
        Rule("role:doctor", ("emergency",), None, ()),
        Rule("role:doctor or", ("research",), None, ()),
        Rule("role:doctor", ("research",), None, (), None, None, "x"),
        Rule("role:doctor", ("research",), 5, (), 5),
        Rule("role:doctor", ("research",), 2**60, ()),
    ],
)
def test_a_rule_that_the_contract_would_refuse_makes_no_consent(rule: Rule) -> None:
    with pytest.raises(Malformed):
        consent_from_rule(rule, PATIENT, RECORD)


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=4) | st.integers(),
                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(
                        ["type", "actor", "reference", "identifier", "coding", "system", "url", "x"]), inner, max_size=3)),
       st.data())  # fmt: skip
def test_any_value_anywhere_makes_a_rule_or_a_refusal(value: Any, data: st.DataObject) -> None:
    consent: Any = copy.deepcopy(WHOLE)
    node = consent
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            node[key] = value
            break
        node = node[key]
    with suppress(DiptychError):
        found = read(consent)
        assert rule_from_consent(consent_from_rule(found, PATIENT, RECORD), PATIENT, RECORD) == found


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'{"resourceType":"Patient"}', b'{"a":1,"a":2}', b"{" * 100, b" " * (2 << 20)],
)
def test_what_is_no_consent_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        rule_from_consent(data, PATIENT, RECORD)
