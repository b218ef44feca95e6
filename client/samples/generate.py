"""Writes the sample bundles next to it: four invented patients in the style of Synthea, the same bytes on
every run.

    python -m client.samples.generate                  the samples
    python -m client.samples.generate FOLDER COUNT     as many more as one likes, for tests of large imports

Nobody in them exists. Each is laid out differently on purpose (indented UTF-8, compact, tabs with escapes),
and they hold what breaks importers that re-encode: decimals with meaningful digits (`565.00`, `1.3E+2`),
conditional references, names that are not ASCII, base64 attachments. The fourth has what must not be shared unseen: resources with
security labels, and a patient's name, telephone and birth date in notes among her symptoms.
"""

import base64
import datetime
import json
import random
import re
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Json = dict[str, Any]

LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
RXNORM, CVX = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://hl7.org/fhir/sid/cvx"
HL7 = "http://terminology.hl7.org/CodeSystem/"
US = "http://hl7.org/fhir/us/core/StructureDefinition/"

VITAL_SIGNS = [
    ("8302-2", "Body height", "cm", "171.4"),
    ("29463-7", "Body weight", "kg", "82.10"),
    ("39156-5", "Body mass index", "kg/m2", "27.95"),
    ("8867-4", "Heart rate", "/min", "7.2E+1"),
    ("8310-5", "Body temperature", "Cel", "36.80"),
]
LABORATORY = [
    ("2339-0", "Glucose [Mass/volume] in Blood", "mg/dL", "1.3E+2"),
    ("38483-4", "Creatinine [Mass/volume] in Blood", "mg/dL", "1.00"),
    ("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", "6.40"),
    ("2093-3", "Cholesterol [Mass/volume] in Serum or Plasma", "mg/dL", "201.0"),
    ("6690-2", "Leukocytes [#/volume] in Blood", "10*3/uL", "5.30"),
]
IMMUNIZATIONS = [
    ("140", "Influenza, seasonal, injectable, preservative free"),
    ("113", "Td (adult) preservative free"),
]


@dataclass(frozen=True)
class Person:
    file: str
    given: str
    family: str
    gender: str
    born: str
    city: str
    visits: int
    active: tuple[str, str]
    resolved: tuple[str, str]
    drug: tuple[str, str]
    procedure: tuple[str, str]
    allergy: tuple[str, str]
    indent: str | int | None
    ascii_only: bool
    is_delicate: bool = False


PEOPLE = [
    Person(
        "zoe-angstrom", "Zoë", "Ångström", "female", "1964-02-29", "Quincy", 3,
        ("44054006", "Diabetes mellitus type 2"), ("195662009", "Acute viral pharyngitis"),
        ("860975", "24 HR Metformin hydrochloride 500 MG Extended Release Oral Tablet"),
        ("274031008", "Rectal polypectomy"), ("91935009", "Allergy to peanut"), 1, False,
    ),
    Person(
        "tomas-orourke", "Tomás", "O'Rourke-Ibáñez", "male", "1987-11-03", "Lowell", 5,
        ("59621000", "Essential hypertension"), ("10509002", "Acute bronchitis"),
        ("314076", "Lisinopril 10 MG Oral Tablet"),
        ("80146002", "Excision of appendix"), ("300916003", "Allergy to latex"), None, False,
    ),
    Person(
        "mbali-nxumalo", "Mbali", "Nxumalo 💐", "female", "2003-07-15", "Holyoke", 2,
        ("195967001", "Asthma"), ("444814009", "Viral sinusitis"),
        ("895994", "120 ACTUAT Fluticasone propionate 0.044 MG/ACTUAT Metered Dose Inhaler"),
        ("127783003", "Spirometry"), ("418689008", "Allergy to grass pollen"), "\t", True,
    ),
    Person(
        "zsofia-barat", "Zsófia", "Barát-Őri", "female", "1991-05-30", "Beverly", 1,
        ("370143000", "Major depressive disorder"), ("10509002", "Acute bronchitis"),
        ("314076", "Lisinopril 10 MG Oral Tablet"),
        ("80146002", "Excision of appendix"), ("300916003", "Allergy to latex"), 1, False, True,
    ),
]  # fmt: skip


def number(digits: str) -> str:
    """A stand-in for a decimal with exactly these digits, which no Python number keeps."""
    return f"<number {digits}>"


def concept(system: str, code: str, display: str) -> Json:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


class Chart:
    """Collects the entries of one patient's bundle."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.entries: list[Json] = []
        self._random = random.Random(person.file)  # noqa: S311 (reproducible sample data, not a secret)
        self._day = datetime.date(2017, 1, 9)
        self.patient = self.id()
        self.clinician = (
            f"Practitioner?identifier=http://hl7.org/fhir/sid/us-npi|99999{len(person.family):05}"
        )
        self.hospital = "Organization?identifier=https://diptych.example/hospitals|17"

    def id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def add(self, kind: str, body: Json, id_: str | None = None) -> str:
        """Append a resource; returns the reference to it."""
        id_ = id_ or self.id()
        entry = {
            "fullUrl": f"urn:uuid:{id_}",
            "resource": {"resourceType": kind, "id": id_, **body},
            "request": {"method": "POST", "url": kind},
        }
        self.entries.append(entry)
        return f"urn:uuid:{id_}"

    def next_visit(self) -> str:
        self._day += datetime.timedelta(days=self._random.randint(90, 300))
        return f"{self._day}T{self._random.randint(8, 16):02}:{self._random.randint(0, 59):02}:07.453+00:00"

    def spread(self, digits: str) -> str:
        """The digits with the last one of the mantissa drawn anew."""
        mantissa, e, exponent = digits.partition("E")
        return mantissa[:-1] + str(self._random.randint(0, 9)) + e + exponent

    @property
    def subject(self) -> Json:
        return {"reference": f"urn:uuid:{self.patient}"}


def add_people(chart: Chart) -> None:
    person = chart.person
    name = {"use": "official", "family": person.family, "given": [person.given, "J."], "prefix": ["Mx."]}
    chart.add(
        "Patient",
        {
            "meta": {"profile": [f"{US}us-core-patient"]},
            "text": {
                "status": "generated",
                "div": f'<div xmlns="http://www.w3.org/1999/xhtml">Invented patient <b>{person.given}</b></div>',
            },
            "extension": [
                {"url": f"{US}us-core-birthsex", "valueCode": person.gender[0].upper()},
                {
                    "url": "https://diptych.example/quality-adjusted-life-years",
                    "valueDecimal": number("29.0"),
                },
            ],
            "identifier": [
                {
                    "type": concept(f"{HL7}v2-0203", "MR", "Medical Record Number"),
                    "system": "https://diptych.example/patients",
                    "value": f"DX-{int(chart.patient[:6], 16):08}",
                },
                {
                    "type": concept(f"{HL7}v2-0203", "SS", "Social Security Number"),
                    "system": "http://hl7.org/fhir/sid/us-ssn",
                    "value": f"999-{len(person.city):02}-{person.born[:4]}",
                },
            ],
            "name": [name],
            "telecom": [{"system": "phone", "value": "555-0142", "use": "home"}],
            "gender": person.gender,
            "birthDate": person.born,
            "_birthDate": {
                "extension": [
                    {
                        "url": "http://hl7.org/fhir/StructureDefinition/patient-birthTime",
                        "valueDateTime": f"{person.born}T04:30:00-05:00",
                    }
                ]
            },
            "address": [
                {
                    "line": ['12 Sample Street\nApt "3" \\ rear'],
                    "city": person.city,
                    "state": "MA",
                    "country": "US",
                }
            ],
            "maritalStatus": concept(f"{HL7}v3-MaritalStatus", "M", "Married"),
            "multipleBirthBoolean": False,
            "communication": [{"language": concept("urn:ietf:bcp:47", "en-US", "English")}],
        },
        chart.patient,
    )
    chart.add(
        "Organization",
        {
            "identifier": [{"system": "https://diptych.example/hospitals", "value": "17"}],
            "active": True,
            "name": f"{person.city} Sample Hospital",
        },
    )
    chart.add(
        "Practitioner",
        {
            "identifier": [
                {"system": "http://hl7.org/fhir/sid/us-npi", "value": chart.clinician.rpartition("|")[2]}
            ],
            "active": True,
            "name": [{"family": "Okonkwo-Weiß", "given": ["Ada"], "prefix": ["Dr."]}],
            "gender": "female",
        },
    )


def add_history(chart: Chart) -> None:
    person = chart.person
    when = chart.next_visit()
    chart.add(
        "AllergyIntolerance",
        {
            "clinicalStatus": concept(f"{HL7}allergyintolerance-clinical", "active", "Active"),
            "type": "allergy",
            "code": concept(SNOMED, *person.allergy),
            "patient": chart.subject,
            "recordedDate": when,
        },
    )
    for (code, display), status in ((person.active, "active"), (person.resolved, "resolved")):
        chart.add(
            "Condition",
            {
                "clinicalStatus": concept(f"{HL7}condition-clinical", status, status.title()),
                "verificationStatus": concept(f"{HL7}condition-ver-status", "confirmed", "Confirmed"),
                "code": concept(SNOMED, code, display),
                "subject": chart.subject,
                "onsetDateTime": when,
                "recordedDate": when,
            },
        )
    chart.add(
        "Procedure",
        {
            "status": "completed",
            "code": concept(SNOMED, *person.procedure),
            "subject": chart.subject,
            "performedPeriod": {"start": when, "end": when.replace(":07.453", ":52.453")},
        },
    )


def observation(chart: Chart, category: str, code: str, display: str, when: str, encounter: str) -> Json:
    return {
        "status": "final",
        "category": [{"coding": [{"system": f"{HL7}observation-category", "code": category}]}],
        "code": concept(LOINC, code, display),
        "subject": chart.subject,
        "encounter": {"reference": encounter},
        "effectiveDateTime": when,
        "issued": when,
    }


def quantity(digits: str, unit: str) -> Json:
    return {"value": number(digits), "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}


def add_visit(chart: Chart, count: int) -> None:
    person, when = chart.person, chart.next_visit()
    encounter = chart.add(
        "Encounter",
        {
            "status": "finished",
            "class": {"system": f"{HL7}v3-ActCode", "code": "AMB"},
            "type": [concept(SNOMED, "162673000", "General examination of patient")],
            "subject": chart.subject,
            "participant": [
                {"individual": {"reference": chart.clinician, "display": "Dr. Ada Okonkwo-Weiß"}}
            ],
            "period": {"start": when, "end": when.replace(":07.453", ":52.453")},
            "reasonCode": [concept(SNOMED, *person.active)],
            "serviceProvider": {"reference": chart.hospital},
        },
    )
    for code, display, unit, digits in VITAL_SIGNS:
        body = observation(chart, "vital-signs", code, display, when, encounter)
        chart.add("Observation", body | {"valueQuantity": quantity(chart.spread(digits), unit)})
    smoking = observation(chart, "social-history", "72166-2", "Tobacco smoking status", when, encounter)
    chart.add("Observation", smoking | {"valueCodeableConcept": concept(SNOMED, "266919005", "Never smoker")})

    results = []
    for code, display, unit, digits in LABORATORY:
        body = observation(chart, "laboratory", code, display, when, encounter)
        results.append(chart.add("Observation", body | {"valueQuantity": quantity(digits, unit)}))
    note = (
        f"{when[:10]}\n\n# Chief complaint\nNone today.\n\n# History\n{person.given} is a patient with "
        f"{person.active[1].lower()}.\n\n# Plan\nContinue {person.drug[1]}.\n"
    )
    attachment = {
        "contentType": "text/plain; charset=utf-8",
        "data": base64.b64encode(note.encode()).decode(),
    }
    chart.add(
        "DiagnosticReport",
        {
            "status": "final",
            "category": [concept(f"{HL7}v2-0074", "LAB", "Laboratory")],
            "code": concept(LOINC, "51990-0", "Basic metabolic panel - Blood"),
            "subject": chart.subject,
            "encounter": {"reference": encounter},
            "effectiveDateTime": when,
            "result": [{"reference": reference} for reference in results],
            "presentedForm": [attachment],
        },
    )
    chart.add(
        "DocumentReference",
        {
            "status": "current",
            "type": concept(LOINC, "34117-2", "History and physical note"),
            "subject": chart.subject,
            "date": when,
            "author": [{"reference": chart.clinician}],
            "content": [{"attachment": attachment}],
        },
    )
    prescription = chart.add(
        "MedicationRequest",
        {
            "status": "active" if count == person.visits - 1 else "stopped",
            "intent": "order",
            "medicationCodeableConcept": concept(RXNORM, *person.drug),
            "subject": chart.subject,
            "encounter": {"reference": encounter},
            "authoredOn": when,
            "requester": {"reference": chart.clinician},
            "dosageInstruction": [
                {
                    "sequence": 1,
                    "timing": {"repeat": {"frequency": 1, "period": number("1.0"), "periodUnit": "d"}},
                    "doseAndRate": [{"doseQuantity": {"value": number("1.0")}}],
                }
            ],
        },
    )
    chart.add(
        "Immunization",
        {
            "status": "completed",
            "vaccineCode": concept(CVX, *IMMUNIZATIONS[count % len(IMMUNIZATIONS)]),
            "patient": chart.subject,
            "encounter": {"reference": encounter},
            "occurrenceDateTime": when,
            "primarySource": True,
        },
    )
    chart.add(
        "Claim",
        {
            "status": "active",
            "type": concept(f"{HL7}claim-type", "institutional", "Institutional"),
            "use": "claim",
            "patient": chart.subject,
            "created": when,
            "provider": {"reference": chart.hospital},
            "prescription": {"reference": prescription},
            "item": [
                {
                    "sequence": 1,
                    "productOrService": concept(SNOMED, "162673000", "General examination of patient"),
                }
            ],
            "total": {"value": number("565.00"), "currency": "USD"},
        },
    )


def add_delicate(chart: Chart) -> None:
    """What must not be shared unseen: sensitive resources by their labels, and notes that say who the patient is."""
    person, when = chart.person, chart.next_visit()
    chart.add(
        "Condition",
        {
            "meta": {"security": [{"system": f"{HL7}v3-ActCode", "code": "MH"}]},
            "clinicalStatus": concept(f"{HL7}condition-clinical", "active", "Active"),
            "code": concept(SNOMED, *person.active),
            "subject": chart.subject,
        },
    )
    chart.add(
        "Encounter",
        {
            "contained": [
                {
                    "resourceType": "Observation",
                    "id": "hiv",
                    "meta": {"security": [{"system": f"{HL7}v3-ActCode", "code": "HIV"}]},
                    "status": "final",
                    "code": concept(LOINC, "75622-1", "HIV 1 and 2 tests - Meaningful Use set"),
                }
            ],
            "status": "finished",
            "class": {"system": f"{HL7}v3-ActCode", "code": "AMB"},
            "subject": chart.subject,
        },
    )
    survey = {
        "status": "final",
        "category": [{"coding": [{"system": f"{HL7}observation-category", "code": "survey"}]}],
        "code": concept(LOINC, "44249-1", "PHQ-9 quick depression assessment panel"),
        "effectiveDateTime": when,
    }
    chart.add(
        "Observation",
        survey
        | {
            "subject": chart.subject | {"display": f"Ms. {person.given} {person.family}"},
            "note": [
                {"text": f"MRS BARAT-ORI (born 30 May 1991), call her on +1 (555) 0142 in {person.city}"}
            ],
        },
    )
    chart.add(
        "Observation",
        survey
        | {
            "subject": chart.subject,
            "text": {
                "status": "additional",
                "div": '<div xmlns="http://www.w3.org/1999/xhtml">Asked <b>Zs</b>&#243;fia again</div>',
            },
        },
    )


def bundle(person: Person) -> bytes:
    """The sample bundle of one person, as the bytes of its file."""
    chart = Chart(person)
    add_people(chart)
    add_history(chart)
    for count in range(person.visits):
        add_visit(chart, count)
    if person.is_delicate:
        add_delicate(chart)
    text = json.dumps(
        {"resourceType": "Bundle", "type": "transaction", "entry": chart.entries},
        ensure_ascii=person.ascii_only,
        indent=person.indent,
        separators=(",", ":") if person.indent is None else (",", ": "),
    )
    return re.sub(r'"<number ([^>]*)>"', r"\1", text).encode() + b"\n"


def many(folder: Path, count: int) -> list[Path]:
    """Write `count` bundles of as many invented people, named 0001.json and so on; the same on every run."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for place in range(1, count + 1):
        chosen = random.Random(place)  # noqa: S311 - invented people, no secrets
        first, second, third = (chosen.choice(PEOPLE) for _ in range(3))
        person = replace(
            first,
            file=f"{place:04}",
            given=second.given,
            family=f"{third.family}-{place}",
            born=f"{chosen.randint(1930, 2020)}-{chosen.randint(1, 12):02}-{chosen.randint(1, 28):02}",
            visits=chosen.randint(1, 6),
            active=second.active,
        )
        files.append(folder / f"{person.file}.json")
        files[-1].write_bytes(bundle(person))
    return files


def main() -> None:
    if len(sys.argv) == 3:
        many(Path(sys.argv[1]), int(sys.argv[2]))
        return
    for person in PEOPLE:
        (Path(__file__).parent / f"{person.file}.json").write_bytes(bundle(person))


if __name__ == "__main__":
    main()
