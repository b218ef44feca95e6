"""A record's rule as a FHIR R4 Consent, and back: the form in which patients and hospitals write who may read what, for what, until when.

docs/consent-fhir.md maps every field. The base of such a Consent is that nobody may read (`Rule` knows no other); its one root provision
permits, and what is nested in it denies. What a Consent says and a rule cannot express is refused with a sentence that names the
element, so that no permission becomes wider than it was written. Extensions that narrow a permission are modifier extensions, which
a reader who does not know them must refuse; the one that widens it is an ordinary extension.

Source: HL7 FHIR R4 (4.0.1), section 6.2 Consent; value sets v3-ActReason, v3-ActCode, v3-ParticipationType.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

import msgspec

from client.fhir.jsontext import minify
from crypto.codec import Decoder, encode
from crypto.errors import Malformed
from crypto.policy import either, parse
from protocol.identity import Purpose
from protocol.tx import Rule

MAX_CONSENT = 1 << 20
"""Bytes of one Consent."""
HL7 = "http://terminology.hl7.org/CodeSystem/"
POLICY = "urn:diptych:policy"
"""System of an identifier whose value is a policy over certified attributes (`crypto.policy`)."""
KEY = "urn:diptych:key"
"""System of an identifier whose value is a person's public key in 64 hex digits."""
RECORD = "urn:diptych:record"
"""System of an identifier whose value is a record id in 32 hex digits."""
USES = "urn:diptych:consent:uses"
APPROVAL = "urn:diptych:consent:approval"
EMERGENCY = "urn:diptych:consent:emergency"
REASONS: Final[dict[Purpose, str]] = {
    "treatment": "TREAT",
    "research": "HRESCH",
    "payment": "HPAYMT",
    "public-health": "PUBHLTH",
    "patient-request": "PATRQT",
    "emergency": "ETREAT",
}
"""Purposes of use as codes of v3-ActReason."""

_PURPOSES: dict[str, Purpose] = {code: purpose for purpose, code in REASONS.items()}
_ABOUT_THE_DOCUMENT = {
    "id",
    "meta",
    "language",
    "text",
    "identifier",
    "dateTime",
    "performer",
    "organization",
}
_ABOUT_THE_DOCUMENT |= {"sourceAttachment", "sourceReference", "category"}
_RECIPIENTS = {"IRCP", "PRCP"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MS = 253_402_300_800_000
"""The end of the year 9999, the last that a FHIR date can name."""
_date_time = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d))?)?)?"
)
_decode_rule = Decoder(Rule, "the rule in the Consent", MAX_CONSENT)


# --- a rule as a Consent ----------------------------------------------------------------------------------------------------


def consent_from_rule(rule: Rule, patient: bytes, record: bytes) -> bytes:
    """The Consent by which `patient` (public key) lets a record be read under `rule`: JSON, UTF-8, the same bytes for the same rule.

    Policies stand in it in canonical text. Raises `Malformed` for a rule that the contract would refuse, or with a time past the
    year 9999.
    """
    policy = _canonical(rule.policy, "policy")
    purposes = [p for p in rule.purposes if p != "emergency"]
    if len(purposes) != len(rule.purposes) or not purposes:
        raise Malformed("a rule names at least one purpose, and emergency is none of them")
    provision: dict[str, Any] = {}
    if rule.emergency is not None:
        provision["extension"] = [
            {"url": EMERGENCY, "valueString": _canonical(rule.emergency, "emergency policy")}
        ]
    narrower: list[dict[str, Any]] = []
    if rule.uses is not None:
        narrower.append({"url": USES, "valueString": str(rule.uses)})
    if rule.approval is not None:
        narrower.append({"url": APPROVAL, "valueString": _canonical(rule.approval, "approval policy")})
    if narrower:
        provision["modifierExtension"] = narrower
    provision["type"] = "permit"
    if (period := _period(rule)) is not None:
        provision["period"] = period
    provision["actor"] = [_actor(POLICY, text) for text in _alternatives(policy)]
    provision["purpose"] = [{"system": f"{HL7}v3-ActReason", "code": REASONS[p]} for p in purposes]
    provision["data"] = [{"meaning": "instance", "reference": _reference(RECORD, record.hex())}]
    if rule.deny:
        provision["provision"] = [{"type": "deny", "actor": [_actor(KEY, key.hex()) for key in rule.deny]}]
    consent = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [{"system": f"{HL7}consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": _reference(KEY, patient.hex()),
        "policyRule": {"coding": [{"system": f"{HL7}v3-ActCode", "code": "OPTIN"}]},
        "provision": provision,
    }
    return msgspec.json.encode(consent)


def _canonical(text: str, what: str) -> str:
    try:
        return str(parse(text))
    except Malformed as error:
        raise Malformed(f"the rule's {what} does not parse: {error}") from None


def _alternatives(policy: str) -> list[str]:
    """The policies of which a canonical one is the `or`: FHIR's actors are alternatives too."""
    found, depth = [""], 0
    for word in re.split(r"( or |[()])", policy):
        depth += (word == "(") - (word == ")")
        if word == " or " and not depth:
            found.append("")
        else:
            found[-1] += word
    return found


def _reference(system: str, value: str) -> dict[str, Any]:
    return {"identifier": {"system": system, "value": value}}


def _actor(system: str, value: str) -> dict[str, Any]:
    role = {"coding": [{"system": f"{HL7}v3-ParticipationType", "code": "IRCP"}]}
    return {"role": role, "reference": _reference(system, value)}


def _period(rule: Rule) -> dict[str, str] | None:
    period = {}
    if rule.from_ms is not None:
        period["start"] = _instant(rule.from_ms)
    if rule.until_ms is not None:  # FHIR's end is the last moment that belongs to the period
        period["end"] = _instant(rule.until_ms - 1)
    if rule.from_ms is not None and rule.until_ms is not None and rule.from_ms >= rule.until_ms:
        raise Malformed("the rule ends before it begins")
    return period or None


def _instant(ms: int) -> str:
    if ms >= _MAX_MS:
        raise Malformed("the rule names a time after the year 9999, which FHIR cannot write")
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- a Consent as a rule ----------------------------------------------------------------------------------------------------


def rule_from_consent(
    data: bytes, patient: bytes, record: bytes, known: Mapping[str, str] | None = None, zone: tzinfo = UTC
) -> Rule:
    """The rule that a Consent of `patient` writes for `record`.

    `known` says what a foreign Consent's references stand for: `Patient/17` or `https://hospital.example|17` a public key in hex
    digits, `Organization/3` a policy such as `org:st-mary`. A date without a time of day is one of `zone`.

    Raises `Malformed` for what is no R4 Consent, is not about this patient and record, or says what a rule cannot express.
    """
    return _Reader(patient, record, known or {}, zone).rule(
        msgspec.json.decode(minify(data, "The Consent", MAX_CONSENT))
    )


class _Refusal(Malformed):
    """A Consent that makes no rule, because of one of its elements."""

    def __init__(self, element: str, why: str) -> None:
        super().__init__(f"{element} {why}")


class _Reader:
    def __init__(self, patient: bytes, record: bytes, known: Mapping[str, str], zone: tzinfo) -> None:
        self._patient, self._record, self._known, self._zone = patient, record, known, zone

    def rule(self, consent: Any) -> Rule:
        if not isinstance(consent, dict) or consent.get("resourceType") != "Consent":
            raise Malformed('The document is not a FHIR Consent: its resourceType must be "Consent"')
        said = {"resourceType", "status", "scope", "patient", "policyRule", "provision", "verification"}
        _only(consent, said | _ABOUT_THE_DOCUMENT, "Consent")
        if consent.get("status") != "active":
            raise _Refusal("Consent.status", 'is not "active": only an active consent makes a rule')
        _require_code(consent.get("scope"), f"{HL7}consentscope", {"patient-privacy"}, "Consent.scope")
        _require_code(
            consent.get("policyRule"), f"{HL7}v3-ActCode", {"OPTIN", "OPTINR"}, "Consent.policyRule"
        )
        if not _list(consent, "category", "Consent"):
            raise _Refusal("Consent.category", "is missing: FHIR R4 wants at least one")
        for n, verified in enumerate(_list(consent, "verification", "Consent")):
            if _object(verified, f"Consent.verification[{n}]").get("verified") is not True:
                raise _Refusal(f"Consent.verification[{n}]", "says that the consent is not verified")
        if self._key(consent.get("patient"), "Consent.patient") != self._patient:
            raise _Refusal("Consent.patient", "is another patient than the record's")
        return self._permission(_object(consent.get("provision"), "Consent.provision"))

    def _permission(self, provision: dict[str, Any]) -> Rule:
        at = "Consent.provision"
        said = {
            "id",
            "type",
            "period",
            "actor",
            "action",
            "purpose",
            "data",
            "provision",
            "extension",
            "modifierExtension",
        }
        _only(provision, said, at)
        if provision.get("type") != "permit":
            raise _Refusal(f"{at}.type", 'is not "permit": a rule names who may read, everybody else may not')
        for n, action in enumerate(_list(provision, "action", at)):
            _require_code(action, f"{HL7}consentaction", {"access"}, f"{at}.action[{n}]")
        for n, datum in enumerate(_list(provision, "data", at)):
            self._check_data(_object(datum, f"{at}.data[{n}]"), f"{at}.data[{n}]")
        begins, ends = self._times(provision.get("period"), f"{at}.period")
        extensions = _extensions(provision, "extension", {EMERGENCY}, at)
        extensions |= _extensions(provision, "modifierExtension", {USES, APPROVAL}, at)
        uses = extensions.get(USES)
        if uses is not None and not re.fullmatch(r"[1-9][0-9]{0,9}", uses):
            raise _Refusal(f"{at}.modifierExtension {USES}", "is no number of uses from 1 on")
        rule = Rule(
            self._policy(_list(provision, "actor", at), f"{at}.actor"),
            tuple(self._purposes(_list(provision, "purpose", at), f"{at}.purpose")),
            ends,
            tuple(self._denied(_list(provision, "provision", at), f"{at}.provision")),
            begins,
            int(uses) if uses is not None else None,
            *(_stated(extensions.get(url), f"{at} extension {url}") for url in (APPROVAL, EMERGENCY)),
        )
        return _decode_rule(encode(rule))

    def _check_data(self, datum: dict[str, Any], at: str) -> None:
        _only(datum, {"id", "meaning", "reference"}, at)
        if datum.get("meaning") != "instance":
            raise _Refusal(f"{at}.meaning", 'is not "instance": a rule is about one record as it stands')
        named = self._named(datum.get("reference"), f"{at}.reference", RECORD)
        if named != self._record.hex():
            raise _Refusal(f"{at}.reference", "names other data than this record")

    def _times(self, period: Any, at: str) -> tuple[int | None, int | None]:
        if period is None:
            return None, None
        _only(_object(period, at), {"id", "start", "end"}, at)
        start, end = period.get("start"), period.get("end")
        begins = None if start is None else max(0, self._moments(start, f"{at}.start")[0])
        ends = None if end is None else self._moments(end, f"{at}.end")[1]
        if ends is not None and ends <= (begins or 0):
            raise _Refusal(at, "ends before it begins, so nobody could ever read the record")
        return begins, ends

    def _moments(self, text: Any, at: str) -> tuple[int, int]:
        """When a FHIR dateTime begins, and when it is over, in Unix milliseconds: a day lasts a day, a second a second."""
        found = _date_time.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise _Refusal(at, "is no FHIR dateTime, such as 2026-11-30 or 2026-11-30T12:00:00Z")
        year, month, day, hour, _, _, fraction, offset = found.groups()
        try:
            if hour is None:
                begin = datetime(int(year), int(month or 1), int(day or 1), tzinfo=self._zone)
                if day:
                    over = begin + timedelta(days=1)
                elif month:
                    over = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
                else:
                    over = begin.replace(year=begin.year + 1)
                return _ms(begin), _ms(over)
            digits = (fraction or "")[:3]
            whole = datetime.fromisoformat(f"{text[:19]}{offset}")
            begins = _ms(whole) + int(digits.ljust(3, "0"))
            return begins, begins + 10 ** (3 - len(digits))
        except (ValueError, OverflowError):
            raise _Refusal(at, "is no date of the calendar before the end of the year 9999") from None

    def _policy(self, actors: list[Any], at: str) -> str:
        if not actors:
            raise _Refusal(at, "is missing: a rule says who may read, so name them")
        policies = []
        for n, actor in enumerate(actors):
            place = f"{at}[{n}]"
            text = self._named(self._recipient(actor, place), f"{place}.reference", POLICY)
            policies.append(_stated(text, f"{place}.reference") or "")
        return either(*policies)

    def _recipient(self, actor: Any, at: str) -> Any:
        _only(_object(actor, at), {"id", "role", "reference"}, at)
        _require_code(actor.get("role"), f"{HL7}v3-ParticipationType", _RECIPIENTS, f"{at}.role")
        return actor.get("reference")

    def _purposes(self, codings: list[Any], at: str) -> Iterable[Purpose]:
        if not codings:
            raise _Refusal(at, "is missing: a rule names the purposes of use, so name each")
        for n, coding in enumerate(codings):
            code = _code(coding, f"{HL7}v3-ActReason", f"{at}[{n}]")
            if code in ("ETREAT", "BTG"):
                raise _Refusal(
                    f"{at}[{n}]",
                    f"is an emergency: the extension {EMERGENCY} says which two people may break the glass",
                )
            if code not in _PURPOSES:
                raise _Refusal(f"{at}[{n}]", f"is no purpose that a rule knows; use {', '.join(_PURPOSES)}")
            yield _PURPOSES[code]

    def _denied(self, nested: list[Any], at: str) -> Iterable[bytes]:
        for n, provision in enumerate(nested):
            place = f"{at}[{n}]"
            _only(_object(provision, place), {"id", "type", "actor"}, place)
            if provision.get("type") != "deny":
                raise _Refusal(
                    f"{place}.type", 'is not "deny": only people are taken out of a rule, by their keys'
                )
            actors = _list(provision, "actor", place)
            if not actors:
                raise _Refusal(f"{place}.actor", "is missing: it would deny everybody")
            for m, actor in enumerate(actors):
                yield self._key(
                    self._recipient(actor, f"{place}.actor[{m}]"), f"{place}.actor[{m}].reference"
                )

    def _key(self, reference: Any, at: str) -> bytes:
        text = self._named(reference, at, KEY)
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise _Refusal(at, "is no public key of 64 hex digits: a rule names single people by their keys")
        return bytes.fromhex(text)

    def _named(self, reference: Any, at: str, system: str) -> str:
        """What a Reference stands for: the value of an identifier of `system`, or what `known` says of a foreign one."""
        _only(_object(reference, at), {"id", "reference", "type", "identifier", "display"}, at)
        identifier, literal = reference.get("identifier"), reference.get("reference")
        names = [literal] if isinstance(literal, str) else []
        own = None
        if identifier is not None:
            _only(
                _object(identifier, f"{at}.identifier"),
                {"id", "use", "type", "system", "value", "assigner"},
                f"{at}.identifier",
            )
            value = identifier.get("value")
            if not isinstance(value, str):
                raise _Refusal(f"{at}.identifier.value", "is missing")
            if identifier.get("system") == system:
                own = value
            else:
                names.append(f"{identifier.get('system')}|{value}")
        meant = {self._known[name] for name in names if name in self._known} | ({own} - {None})
        if len(meant) != 1 or any(name not in self._known for name in names):
            raise _Refusal(
                at,
                f"names somebody or something unknown: use an identifier of {system}, or say what the reference stands for",
            )
        return str(meant.pop())


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _stated(text: str | None, at: str) -> str | None:
    try:
        return None if text is None else str(parse(text))
    except Malformed as error:
        raise _Refusal(at, f"holds no policy: {error}") from None


def _only(node: Mapping[str, Any], said: set[str], at: str) -> None:
    """Refuse an element that no rule expresses."""
    if others := sorted(node.keys() - said):
        raise _Refusal(
            f"{at}.{others[0][:64]}",
            "says what a rule cannot express; take it out of the Consent only if it is meant to hold without it",
        )


def _object(node: Any, at: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise _Refusal(at, "is missing or is no object")
    return node


def _list(node: Mapping[str, Any], name: str, at: str) -> list[Any]:
    found = node.get(name, [])
    if not isinstance(found, list):
        raise _Refusal(f"{at}.{name}", "is no list")
    return found


def _code(coding: Any, system: str, at: str) -> str:
    _only(_object(coding, at), {"id", "system", "version", "code", "display", "userSelected"}, at)
    if coding.get("system") != system or not isinstance(coding.get("code"), str):
        raise _Refusal(at, f"is no code of {system}")
    return str(coding["code"])


def _require_code(concept: Any, system: str, codes: set[str], at: str) -> None:
    """Refuse a CodeableConcept whose codings are not all among `codes` of `system`, or that has none."""
    _only(_object(concept, at), {"id", "coding", "text"}, at)
    codings = _list(concept, "coding", at)
    if not codings or any(_code(coding, system, f"{at}.coding") not in codes for coding in codings):
        raise _Refusal(at, f"is not {' or '.join(sorted(codes))} of {system}")


def _extensions(node: Mapping[str, Any], name: str, urls: set[str], at: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for n, extension in enumerate(_list(node, name, at)):
        place = f"{at}.{name}[{n}]"
        _only(_object(extension, place), {"id", "url", "valueString"}, place)
        url, value = extension.get("url"), extension.get("valueString")
        if not isinstance(url, str) or url not in urls or url in found or not isinstance(value, str):
            raise _Refusal(place, f"is none of {', '.join(sorted(urls))}, each once with a valueString")
        found[url] = value
    return found
