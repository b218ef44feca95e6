"""The lint: who the patient is, found in the parts about to be shared, however it is written there; and the word that it waits for."""

import base64
import gzip
import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.fhir import load_bundle, load_profile, read_bundle, split
from client.fhir.lint import Finding, FindingsLeft, has_fields, lint, require_acknowledged
from client.sharing import check_signing, is_open_for_research
from crypto.errors import Denied

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "client" / "samples"
REAL = sorted((ROOT.parent / "shared" / "data" / "synthea").glob("*.json.gz"))
PATIENT = {
    "resourceType": "Patient",
    "id": "p1",
    "name": [
        {"use": "official", "given": ["Zoë", "J."], "family": "O'Rourke-Ångström", "prefix": ["Dr."], "suffix": ["Esquire"]},
        {"use": "maiden", "family": "Müller"},
        {"text": "Prof. Kesi Łuczak"},
        {"given": ["山田太郎"]},
    ],
    "telecom": [{"value": "+1 (555) 867-5309"}, {"system": "email", "value": "zoe.a@example.org"}],
    "address": [{"line": ["12 Sample Street\nApt 3 rear"], "city": "New Bedford", "postalCode": "02740", "state": "MA"}],
    "identifier": [{"value": "999-06-1964"}, {"value": "DX-00812"}, {"value": "17"}],
    "birthDate": "1964-02-29",
    "contact": [{"name": {"family": "Nwosu"}}],
    "extension": [{"url": "http://hl7.org/fhir/StructureDefinition/patient-mothersMaidenName", "valueString": "Brückner"}],
}  # fmt: skip


def linted(*resources: Any, patient: Any = PATIENT, shared: set[str] | None = None) -> list[Finding]:
    data = json.dumps({"resourceType": "Bundle", "entry": [{"resource": r} for r in (patient, *resources)]})
    parts = split(read_bundle(data.encode()), load_profile("safe"))
    classes = shared or {part.label for part in parts if part.access != "private"}
    about = {part.label for part in parts if has_fields(part.content)}
    return lint({part.label: part.content for part in parts}, classes, about)


def kinds(*resources: Any, **more: Any) -> set[str]:
    return {finding.kind for finding in linted(*resources, **more)}


def condition(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Condition", "clinicalStatus": {"coding": [{"code": "active"}]}, **elements}


def noted(text: str) -> dict[str, Any]:
    return condition(note=[{"text": text}])


def attached(data: bytes, content_type: str | None = None) -> dict[str, Any]:
    attachment = {"data": base64.b64encode(data).decode()} | (
        {"contentType": content_type} if content_type else {}
    )
    return condition(extension=[{"url": "urn:x", "valueAttachment": attachment}])


def test_a_record_that_names_nobody_has_no_findings() -> None:
    assert (
        linted(
            noted("A patient of sixty years, seen by Dr. Ada Okonkwo on 2020-02-29, MRN of the ward 17"),
            condition(),
        )
        == []
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("seen with ZOE today", "name"),
        ("zoë", "name"),
        ("Zoe\u0308 came", "name"),
        ("Z\u00ado\u00eb", "name"),
        ("Zoë's mother", "name"),
        ("Mrs ORourke", "name"),
        ("mrs rourke", "name"),
        ("ANGSTROM, Z.", "name"),
        ("born Mueller", "name"),
        ("born MULLER", "name"),
        ("K. Luczak", "name"),
        ("Zoe965 Angstrom12", "name"),
        ("患者山田太郎です", "name"),
        ("her friend Nwosu", "name"),
        ("née Bruckner", "name"),
        ("<p>Z<b>o</b>ë</p>", "name"),
        ("<td>Zoe</td><td>x</td>", "name"),
        ("Zo&#235;", "name"),
        ('<img alt="Zoe"/>', "name"),
        ("file://x/Zo%C3%AB.pdf", "name"),
        ("lives at 12, sample street", "address"),
        ("12 SAMPLE  STREET", "address"),
        ("of new bedford", "address"),
        ("MA 02740", "address"),
        ("MA 02740-1234", "address"),
        ("call 555.867.5309", "telecom"),
        ("call 0015558675309", "telecom"),
        ("call (555) 867 53 09", "telecom"),
        ("ZOE.A@EXAMPLE.ORG", "telecom"),
        ("SSN 999061964", "identifier"),
        ("SSN 999 06 1964", "identifier"),
        ("chart dx00812", "identifier"),
        ("born 1964-02-29", "birth-date"),
        ("born 19640229", "birth-date"),
        ("born 29.2.1964", "birth-date"),
        ("born 02/29/1964", "birth-date"),
        ("born February 29th, 1964", "birth-date"),
        ("born 29 Feb 1964", "birth-date"),
        ("1964-02-29T04:30:00Z", "birth-date"),
    ],
)
def test_the_patient_is_found_however_it_is_written(text: str, kind: str) -> None:
    assert kind in kinds(noted(text))
    assert kind in kinds(attached(text.encode(), "text/plain"))


@pytest.mark.parametrize(
    "text",
    [
        "zoeal growth", "Muellers", "rourkesque", "dr. prof. esquire", "bedford", "sample street 12", "new York", "LOINC 02740-4",
        "1.02740", "27402", "9999061964", "DX-008123", "17", "5555", "1964-02-2", "1965-02-29", "11964-02-299", "J", "03/29/1964", "田",
    ],
)  # fmt: skip
def test_words_that_merely_resemble_are_left_alone(text: str) -> None:
    assert linted(noted(text)) == []


def test_numbers_codes_and_keys_are_told_apart() -> None:
    assert linted(condition(valueQuantity={"value": 2740})) == []
    assert kinds(condition(code={"coding": [{"code": "02740"}]})) == set()
    assert kinds(condition(valueDecimal=999061964)) == {"identifier"}
    [finding] = linted(condition(**{"Zoë Å": {"note": "x"}}))
    assert (finding.kind, finding.path) == ("name", "$.entries[0].resource.*")


def rtf(text: str) -> bytes:
    return b"{\\rtf1\\ansi {\\b Zo\\'eb}\\par " + text.encode("ascii") + b"}"


def pdf(*operators: bytes) -> bytes:
    content = zlib.compress(b"BT " + b" ".join(operators) + b" ET")
    return b"%PDF-1.4\n1 0 obj <</Length 9>>\nstream\r\n" + content + b"\nendstream endobj"


@pytest.mark.parametrize(
    "resource",
    [
        attached(gzip.compress(b"of Zoe"), "application/gzip"),
        attached("of Zoë".encode("utf-16"), "text/plain"),
        attached("of Zoë".encode("latin-1"), "text/plain; charset=iso-8859-1"),
        attached("of Zoë".encode("cp1252")),
        attached(
            b'<ClinicalDocument><text mediaType="x">'
            + base64.encodebytes(b"of Zoe " * 60)
            + b"</text></ClinicalDocument>"
        ),
        attached(rtf("x")),
        attached(rtf("\\u269?uczak")),
        attached(pdf(b"(of Zo\\353) Tj")),
        attached(pdf(b"[(Z) -3 (oe)] TJ")),
        attached(pdf(b"<5A6F65> Tj")),
        {
            "resourceType": "Medication",
            "x": [{"resourceType": "Binary", "data": base64.b64encode(b"Zoe").decode()}],
        },
        condition(extension=[{"url": "urn:x", "valueBase64Binary": base64.b64encode(b"for Zoe").decode()}]),
        condition(contained=[{"resourceType": "Observation", "note": [{"text": "Zoe"}]}]),
    ],
)
def test_the_name_is_found_inside_attachments(resource: dict[str, Any]) -> None:
    assert "name" in kinds(resource)


def archive() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as packed:
        packed.writestr("word/document.xml", "Zoe")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)), archive(), pdf(b"(x) Tj"), b"{\\rtf1 {\\pict 0102}}", gzip.compress(b"x" * 99)[:-9],
        gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"Zoe")))))), bytes(128) + b"DICM\x02\0\0\0",
    ],
    ids=["PNG", "ZIP", "drawn PDF", "picture in RTF", "cut gzip", "gzip in gzip", "DICOM"],
)  # fmt: skip
def test_what_could_not_be_looked_into_is_a_finding(data: bytes) -> None:
    assert "unread" in kinds(attached(data))


def test_a_bomb_is_cut_off_and_said_to_be_unread() -> None:
    assert "unread" in kinds(attached(gzip.compress(b"0" * (64 << 20))))


def test_a_sampled_curve_is_no_attachment() -> None:
    curve = condition(
        valueSampledData={"origin": {"value": 0}, "period": 10, "dimensions": 1, "data": "2041 2043 E U"}
    )
    assert linted(curve) == []


def test_a_sensitive_label_in_a_part_about_to_be_shared_is_a_finding() -> None:
    resource = condition(
        meta={"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "HIV"}]}
    )
    assert linted(resource) == []
    assert kinds(resource, shared={"sensitive"}) == {"sensitive"}


def test_private_parts_are_not_looked_into() -> None:
    assert linted({"resourceType": "Claim", "note": "Zoe"}) == []
    assert kinds({"resourceType": "Claim", "note": "Zoe"}, shared={"billing"}) == {"name"}


def test_identifiers_and_birth_date_of_the_papers_shared_fields_are_found() -> None:
    found = {(f.kind, f.path) for f in linted(shared={"m3", "m4"})}
    assert ("birth-date", "$.fields.birthDate") in found
    assert ("identifier", "$.fields.identifier[0].value") in found


def test_one_text_at_like_places_is_one_finding() -> None:
    subject = {"subject": {"reference": "Patient/p1", "display": "Zoë"}}
    [finding] = linted(*[condition(**subject, id=str(n)) for n in range(30)])
    assert (finding.places, finding.part, finding.path) == (30, "m6", "$.entries[0].resource.subject.display")
    assert len(linted(noted("Zoe here"), noted("Zoe there"))) == 2


def test_ids_stay_with_their_resource_and_tell_different_contents_apart() -> None:
    [before] = linted(condition(id="a"), noted("Zoe here"))
    [after] = linted(noted("Zoe here"), condition(id="b"))
    assert before.id == after.id
    assert (before.path, after.path) != (after.path, before.path)
    [other] = linted(noted("Zoe there"))
    assert other.id != before.id
    assert re.fullmatch(r"[0-9a-f]{16}", before.id)


def test_neither_a_finding_nor_a_refusal_shows_what_was_found() -> None:
    findings = linted(noted("Zoë of 12 Sample Street, 999-06-1964"), attached(b"Luczak 5558675309"))
    assert {f.kind for f in findings} == {"name", "address", "identifier", "telecom"}
    with pytest.raises(FindingsLeft) as refused:
        require_acknowledged(findings, ())
    shown = repr(findings) + str(refused.value)
    for secret in ("Zo", "Sample", "999", "uczak", "867", base64.b64encode(b"Lucz").decode()[:5]):
        assert secret not in shown
    assert all(finding.id in str(refused.value) for finding in findings)
    assert isinstance(refused.value, Denied)


def test_every_finding_must_be_acknowledged_or_all_at_once() -> None:
    first, second = linted(noted("Zoe here"), noted("Zoe there"))
    require_acknowledged([], ())
    require_acknowledged([first, second], [second.id, first.id, "f" * 16])
    require_acknowledged([first, second], ["all"])
    with pytest.raises(FindingsLeft) as refused:
        require_acknowledged([first, second], [first.id])
    assert refused.value.findings == [second]


def test_a_long_list_is_cut_in_the_refusal_and_says_so() -> None:
    findings = linted(*[noted(f"Zoe {n}") for n in range(100)])
    with pytest.raises(FindingsLeft, match="60 more") as refused:
        require_acknowledged(findings, ())
    assert len(refused.value.findings) == 100


# --- who counts as a researcher


@pytest.mark.parametrize(
    ("policy", "is_open"),
    [
        ("role:researcher", True),
        ("role:doctor or role:researcher", True),
        ("role:researcher and org:x and status:active@2026w47", True),
        ("org:university", True),
        ("2 of (role:doctor, org:a, org:b)", True),
        ("role:doctor", False),
        ("role:doctor or role:government", False),
        ("role:doctor and role:researcher", False),
        ("role:doctor and org:st-mary or role:patient", False),
    ],
)
def test_a_class_is_open_for_research_if_somebody_else_than_doctors_and_government_may_read_it(
    policy: str, is_open: bool
) -> None:
    assert is_open_for_research(policy, ("treatment", "research")) is is_open
    assert not is_open_for_research(policy, ("treatment", "payment"))


# --- whole bundles


def parts_of(path: Path, profile: str) -> Any:
    return split(read_bundle(load_bundle(path)), load_profile(profile))


def test_a_doctor_signs_the_ordinary_samples_unasked_and_the_delicate_one_only_when_asked() -> None:
    for name in ("mbali-nxumalo", "tomas-orourke", "zoe-angstrom"):
        check_signing(parts_of(SAMPLES / f"{name}.json", "safe"), ())
        with pytest.raises(FindingsLeft):
            check_signing(parts_of(SAMPLES / f"{name}.json", "paper"), ())
    with pytest.raises(FindingsLeft) as refused:
        check_signing(parts_of(SAMPLES / "zsofia-barat.json", "safe"), ())
    assert {f.kind for f in refused.value.findings} == {"name", "address", "telecom", "birth-date"}
    check_signing(parts_of(SAMPLES / "zsofia-barat.json", "safe"), [f.id for f in refused.value.findings])


@pytest.mark.skipif(not REAL, reason="needs the Synthea bundles beside the project")
def test_every_name_in_the_synthea_bundles_is_found_and_nothing_else() -> None:
    """Compared with a plain search for the words of the name in what the parts decode to."""
    for path in REAL:
        parts = parts_of(path, "safe")
        patient = json.loads(load_bundle(path))["entry"]
        name = next(e["resource"] for e in patient if e["resource"]["resourceType"] == "Patient")["name"][0]
        words = {re.sub(r"\d", "", w).lower() for w in [*name["given"], name["family"]]}
        clinical = {p.label: p.content for p in parts if p.label in ("m5", "m6", "m7", "m8", "m9")}
        about = {p.label for p in parts if has_fields(p.content)}
        found = {(f.part, f.path.partition(".resource")[0]) for f in lint({p.label: p.content for p in parts}, clinical, about)
                 if f.kind == "name"}  # fmt: skip
        expected = set()
        for label, content in clinical.items():
            for n, entry in enumerate(json.loads(content)["entries"]):
                text = json.dumps(entry["resource"], ensure_ascii=False)
                for data in re.findall(r'"data": "([^"]+)"', text):
                    text += base64.b64decode(data).decode(errors="replace")
                if any(
                    re.search(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", text.lower())
                    for word in words
                    if len(word) > 2
                ):
                    expected.add((label, f"$.entries[{n}]"))
        assert found <= expected
        assert bool(found) == bool(expected)


@given(
    st.binary(max_size=400),
    st.sampled_from([b"%PDF", b"{\\rtf", b"\x1f\x8b", b"", b"stream\r\n", b"[(", b"<"]),
)
def test_any_attachment_is_looked_into_or_said_to_be_unread(data: bytes, magic: bytes) -> None:
    assert kinds(attached(magic + data)) <= {"name", "unread", "address", "telecom"}
