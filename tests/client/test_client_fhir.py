"""FHIR import and export: token for token on real and random bundles, and refusal of everything malformed."""

import gzip
import io
import json
import random
import re
import sys
import tomllib
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.fhir import (
    MAX_BUNDLE,
    MAX_DEPTH,
    MAX_ENTRIES,
    Part,
    join,
    load_bundle,
    load_profile,
    minify,
    named,
    read_bundle,
    split,
    tokens_equal,
)
from client.samples import generate
from crypto.ceas import MAX_PARTS
from crypto.errors import Malformed, NotFound

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "client" / "samples").glob("*.json"))
REAL = sorted((ROOT.parent / "shared" / "data" / "synthea").glob("*.json.gz"))
BUNDLES = [pytest.param(path, id=f"{path.parent.name}-{i}") for i, path in enumerate(SAMPLES + REAL)]
PROFILES = ["paper", "safe", "fine"]

_token = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)


def tokens(data: bytes) -> list[str]:
    """The tokens of valid JSON, by another road than the code under test."""
    return _token.findall(data.decode())


def contents(parts: list[Part]) -> dict[str, bytes]:
    return {part.label: part.content for part in parts}


def sample_parts(profile: str = "safe") -> list[Part]:
    return split(read_bundle(SAMPLES[0].read_bytes()), load_profile(profile))


def document(*resources: Any, **members: Any) -> bytes:
    entry = [{"resource": resource} for resource in resources]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entry, **members}).encode()


PATIENT = {"resourceType": "Patient", "id": "p", "gender": "other", "birthDate": "1964-02-29"}


def routed(*resources: Any, profile: str = "paper", patient: Any = PATIENT) -> dict[str, Any]:
    parts = split(read_bundle(document(patient, *resources)), load_profile(profile))
    return {label: json.loads(content) for label, content in contents(parts).items()}


# --- export gives back every token


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", BUNDLES)
def test_export_gives_back_the_imported_bundle_token_for_token(path: Path, profile: str) -> None:
    data = load_bundle(path)
    exported = join(contents(split(read_bundle(data), load_profile(profile))))
    assert tokens(exported) == tokens(data)
    assert tokens_equal(exported, data)


@pytest.mark.parametrize("path", BUNDLES)
def test_every_resource_in_a_part_is_a_slice_of_the_received_bytes(path: Path) -> None:
    data = load_bundle(path)
    received, bundle = "".join(tokens(data)), read_bundle(data)
    assert all("".join(tokens(resource)) in received for resource in bundle.resources)
    parts = split(bundle, load_profile("paper"))
    written = b"".join(part.content for part in parts)
    assert all(resource in written for i, resource in enumerate(bundle.resources) if i != bundle.patient)


def test_a_bundle_without_whitespace_is_sliced_and_exported_byte_for_byte() -> None:
    data = (ROOT / "client" / "samples" / "tomas-orourke.json").read_bytes().strip()
    bundle = read_bundle(data)
    assert all(resource in data for resource in bundle.resources)
    assert join(contents(split(bundle, load_profile("safe")))) == data


class Number(str):
    """A number token."""


def render(value: Any, rng: random.Random) -> str:
    """JSON text of a value in one of its many spellings."""

    def space() -> str:
        return rng.choice(["", "", "", " ", "\n", "\t ", "\r\n  "])

    def string(text: str) -> str:
        return '"' + "".join(character(c) for c in text) + '"'

    def character(c: str) -> str:
        style = rng.randrange(4)
        if style == 0:
            units = c.encode("utf-16-be").hex()
            units = units.upper() if rng.random() < 0.5 else units
            return "".join("\\u" + units[i : i + 4] for i in range(0, len(units), 4))
        return "\\/" if c == "/" and style == 1 else json.dumps(c, ensure_ascii=style == 2)[1:-1]

    if isinstance(value, Number):
        text = str(value)
    elif isinstance(value, str):
        text = string(value)
    elif isinstance(value, list):
        text = "[" + space() + ",".join(render(item, rng) for item in value) + "]"
    elif isinstance(value, dict):
        pairs = [space() + string(key) + space() + ":" + render(item, rng) for key, item in value.items()]
        text = "{" + space() + ",".join(pairs) + space() + "}"
    else:
        text = json.dumps(value)
    return space() + text + space()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(['"', "\\", "]}", "/"])
NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,3})?", fullmatch=True).map(
    Number
)
VALUE = st.recursive(
    st.none() | st.booleans() | TEXT | NUMBER,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
NAMED = st.dictionaries(
    st.sampled_from(["name", "category", "_birthDate", "birthDate", "clinicalStatus", "resource", "i"])
    | TEXT,
    VALUE,
    max_size=5,
)
KIND = st.sampled_from(["Observation", "Condition", "Claim", "Organization", "Bundle", "NoSuchType"])


@st.composite
def bundle_values(draw: st.DrawFn) -> dict[str, Any]:
    def shuffled(pairs: dict[str, Any]) -> dict[str, Any]:
        return dict(draw(st.permutations(list(pairs.items()))))

    kinds = draw(st.lists(KIND, max_size=5))
    kinds.insert(draw(st.integers(0, len(kinds))), "Patient")
    entries = [
        shuffled(draw(NAMED) | {"resource": shuffled(draw(NAMED) | {"resourceType": kind})}) for kind in kinds
    ]
    return shuffled(draw(NAMED) | {"resourceType": "Bundle", "entry": entries})


@settings(max_examples=200, deadline=None)
@given(bundle_values(), st.randoms(use_true_random=False), st.sampled_from(PROFILES))
def test_any_bundle_in_any_spelling_survives_split_and_join(
    value: Any, rng: random.Random, profile: str
) -> None:
    data = render(value, rng).encode()
    parts = split(read_bundle(data), load_profile(profile))
    assert tokens(join(contents(parts))) == tokens(data)
    assert all(isinstance(json.loads(part.content), dict) for part in parts)


def refuse(_: str) -> None:
    raise ValueError


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def is_strict_json(data: bytes) -> bool:
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_int=str, parse_float=str
        )
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


@settings(max_examples=600, deadline=None)
@given(VALUE, st.randoms(use_true_random=False), st.integers(0, 3))
def test_what_is_accepted_as_json_is_exactly_strict_json(value: Any, rng: random.Random, edits: int) -> None:
    data = bytearray(render(value, rng).encode())
    for _ in range(edits):
        at = rng.randrange(len(data) + 1)
        junk = [
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"0",
            b"-",
            b".",
            b"e",
            b"\\",
            b"\\ud83d",
            b"a",
            b"\x00",
            b"\xed\xa0\x80",
            b" ",
            b"true",
            b"NaN",
        ]
        data[at : at + rng.randrange(3)] = rng.choice(junk)
    try:
        minified = minify(bytes(data))
    except Malformed:
        assert not is_strict_json(bytes(data))
    else:
        assert is_strict_json(bytes(data))
        assert tokens(minified) == tokens(bytes(data))
        assert minify(minified) == minified


def test_tokens_differ_when_a_digit_an_escape_or_the_order_does() -> None:
    assert tokens_equal(b'{"a": 565.00}', b'{"a":565.00}\n')
    for a, b in [
        (b"565.00", b"565"),
        (b"1.3E+2", b"130"),
        (rb'"\u00e5"', '"å"'.encode()),
        (b"[1,2]", b"[2,1]"),
    ]:
        assert not tokens_equal(a, b)


# --- what is refused, and how

SECRET = "Zebulon"
OBS = f'{{"resourceType":"Observation","note":"{SECRET}"}}'


def around(inside: str) -> bytes:
    """A bundle that is good but for `inside`, which stands where a value may."""
    return f'{{"resourceType":"Bundle","entry":[{{"resource":{{"resourceType":"Patient","{SECRET}":"{SECRET}","x":{inside}}}}}]}}'.encode()


def bundle_of(*resources: str) -> bytes:
    return (
        '{"resourceType":"Bundle","entry":[' + ",".join(f'{{"resource":{r}}}' for r in resources) + "]}"
    ).encode()


PAT = f'{{"resourceType":"Patient","name":"{SECRET}"}}'
BAD = {
    "empty": (b"", "is empty"),
    "only whitespace": (b" \n", "is empty"),
    "not JSON": (b"MSH|^~\\&|Zebulon", "not valid JSON (byte 0, line 1, column 1)"),
    "not JSON on a later line": (b'{"resourceType":\n  Zebulon}', "(byte 19, line 2, column 3)"),
    "comma missing": (around("[1 2]"), "not valid JSON (byte"),
    "trailing comma": (around("[1,]"), "not valid JSON"),
    "brackets crossed": (around("[1}"), "not valid JSON"),
    "bracket too many": (around("1") + b"]", "not valid JSON"),
    "key in a list": (around('["Zebulon":1]'), "not valid JSON"),
    "two documents": (around("1") + around("1"), "not valid JSON"),
    "leading zero": (around("01"), "not valid JSON"),
    "single quotes": (around("'Zebulon'"), "not valid JSON"),
    "raw newline in a string": (around('"Zebulon\n"'), "control character"),
    "unknown escape": (around(r'"Zebulon\x41"'), "unknown escape"),
    "duplicate key": (around('{"Zebulon":1,"Zebulon":2}'), "same key twice"),
    "duplicate key in two spellings": (around(r'{"Zebulon":1,"\u005aebulon":2}'), "same key twice"),
    "duplicate key at the top": (around("1")[:-1] + b',"resourceType":"Bundle"}', "same key twice"),
    "NaN": (around("NaN"), "NaN or Infinity"),
    "Infinity": (around("[-Infinity]"), "NaN or Infinity"),
    "lone high surrogate": (around(r'"Zebulon\ud83d"'), "half of a surrogate pair"),
    "lone low surrogate": (around(r'"Zebulon\uDC00"'), "half of a surrogate pair"),
    "surrogates in the wrong order": (around(r'"\ude00\ud83d"'), "half of a surrogate pair"),
    "surrogate in a key": (around(r'{"\ud83dZebulon":1}'), "half of a surrogate pair"),
    "raw surrogate": (around('"Zebulon@"').replace(b"@", b"\xed\xa0\x80"), "not valid UTF-8 (byte"),
    "Latin-1": (around('"Zebulon@"').replace(b"@", b"\xeb"), "not valid UTF-8 (byte"),
    "byte order mark": (b"\xef\xbb\xbf" + around("1"), "byte order mark"),
    "UTF-16": (around("1").decode().encode("utf-16"), "not valid UTF-8"),
    "100,000 levels": (around("[" * 100_000 + "]" * 100_000), "deeper than 64"),
    "100,000 levels unclosed": (b'{"a":' * 100_000, "deeper than 64"),
    "a list": (b'["Zebulon"]', "not an object"),
    "a string": (b'"Zebulon"', "not an object"),
    "no resourceType": (b'{"entry":[]}', "$.resourceType"),
    "another resource": (PAT.encode(), "not a FHIR Bundle"),
    "resourceType a number": (b'{"resourceType":5}', "$.resourceType"),
    "no entry": (b'{"resourceType":"Bundle","total":0}', "no entries"),
    "empty entry": (b'{"resourceType":"Bundle","entry":[]}', "no entries"),
    "entry not a list": (b'{"resourceType":"Bundle","entry":"Zebulon"}', "$.entry"),
    "entry not an object": (b'{"resourceType":"Bundle","entry":["Zebulon"]}', "$.entry[0]"),
    "entry without resource": (b'{"resourceType":"Bundle","entry":[{"fullUrl":"Zebulon"}]}', "$.entry[0].resource"),
    "resource a string": (bundle_of(PAT, '"Zebulon"'), "$.entry[1].resource"),
    "resource null": (bundle_of(PAT, "null"), "$.entry[1].resource"),
    "resource without type": (bundle_of(PAT, '{"a":"Zebulon"}'), "$.entry[1].resource"),
    "resource type a list": (bundle_of(PAT, '{"resourceType":["Zebulon"]}'), "Entry 1"),
    "no Patient": (bundle_of(OBS), "0 Patient"),
    "two Patients": (bundle_of(PAT, OBS, PAT), "2 Patient"),
    "too many entries": (b'{"resourceType":"Bundle","entry":[' + b"{}," * MAX_ENTRIES + b"{}]}", "entries"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_bundle_is_refused_with_a_sentence_that_quotes_nothing_of_it(data: bytes, says: str) -> None:
    with pytest.raises(Malformed) as refused:
        read_bundle(data)
    sentence = str(refused.value)
    assert says in sentence
    assert SECRET not in sentence
    assert len(sentence) < 200
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_every_cut_of_a_bundle_is_reported_as_cut_off() -> None:
    data = around(r'[true, false, null, -1.50E+2, "\"\u00e5\ud83d\ude00å💐", {}]')
    assert read_bundle(data)
    for end in range(1, len(data)):
        with pytest.raises(Malformed, match="cut off"):
            read_bundle(data[:end])


class Oversized(bytes):
    """Claims to be just over the limit of a bundle; to look at its content is an error."""

    def __len__(self) -> int:
        return MAX_BUNDLE + 1

    def decode(self, *_: Any, **__: Any) -> str:
        raise AssertionError("the content was looked at")

    def startswith(self, *_: Any) -> bool:
        raise AssertionError("the content was looked at")


def test_an_oversized_bundle_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Malformed, match=f"over the limit of {MAX_BUNDLE}"):
        read_bundle(Oversized())


def test_as_many_entries_as_the_limit_are_accepted_and_exported() -> None:
    filler = b',{"resource":{"resourceType":"Basic"}}' * (MAX_ENTRIES - 1)
    data = b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Patient"}}' + filler + b"]}"
    assert join(contents(split(read_bundle(data), load_profile("safe")))) == data


def test_nesting_up_to_the_limit_survives_wherever_it_stands() -> None:
    def nested(levels: int) -> Any:
        return json.loads("[" * levels + "]" * levels)

    in_resource = document(PATIENT, {"resourceType": "Basic", "x": nested(MAX_DEPTH - 4)})
    in_patient = document(PATIENT | {"x": nested(MAX_DEPTH - 4)})
    in_shell = document(PATIENT, x=nested(MAX_DEPTH - 1))
    for data in (in_resource, in_patient, in_shell):
        assert tokens(join(contents(split(read_bundle(data), load_profile("paper"))))) == tokens(data)
        with pytest.raises(Malformed, match="deeper than 64"):
            read_bundle(data.replace(b'"x": [', b'"x": [['))


@pytest.mark.parametrize("number", ["1e400", "9" * 5000, "-0.0", "1E-400"])
def test_numbers_beyond_any_machine_type_pass_untouched(number: str) -> None:
    data = (
        (
            '{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Patient","birthDate":@}},'
            '{"resource":{"resourceType":"Condition","clinicalStatus":{"coding":[{"code":@}]}}}]}'
        )
        .replace("@", number)
        .encode()
    )
    assert join(contents(split(read_bundle(data), load_profile("safe")))) == data


def test_records_do_not_show_in_the_representation_of_bundles_and_parts() -> None:
    bundle = read_bundle(SAMPLES[0].read_bytes())
    shown = repr(bundle) + repr(split(bundle, load_profile("safe")))
    assert "Nxumalo" not in shown
    assert "Observation" not in shown


# --- loading files


def test_plain_and_gzip_files_and_standard_input_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SAMPLES[0].read_bytes()
    packed = tmp_path / "packed"
    half = len(data) // 2
    packed.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed.read_bytes())))
    assert load_bundle(SAMPLES[0]) == load_bundle(str(packed)) == load_bundle("-") == data


def test_a_gzip_bomb_of_half_a_gigabyte_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(bytes(16 << 20), 1) * 32)
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="more than"):
            load_bundle(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_BUNDLE


@pytest.mark.parametrize(
    "damage",
    [lambda z: z[:-9], lambda z: z[:20] + b"\xff" * 40 + z[60:], lambda z: z + b"x", lambda z: z[:2]],
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "damaged.json.gz"
    path.write_bytes(damage(gzip.compress(SAMPLES[0].read_bytes())))
    with pytest.raises(Malformed, match="damaged gzip"):
        load_bundle(path)


def test_a_file_that_cannot_be_read_is_reported_without_its_name(tmp_path: Path) -> None:
    for path in (tmp_path / f"{SECRET}.json", tmp_path):
        with pytest.raises(NotFound, match="cannot be read") as refused:
            load_bundle(path)
        assert SECRET not in str(refused.value)


# --- parts


def test_the_number_labels_and_order_of_parts_do_not_depend_on_the_record() -> None:
    empty = split(read_bundle(document({"resourceType": "Patient"})), load_profile("safe"))
    shape = [(part.label, part.access, part.title) for part in sample_parts()]
    assert [(part.label, part.access, part.title) for part in empty] == shape
    assert [label for label, _, _ in shape] == [f"m{i}" for i in range(10)] + [
        "billing",
        "admin",
        "sensitive",
        "other",
        "birth-year",
    ]


def test_access_classes_are_those_of_the_paper_and_stricter_in_safe() -> None:
    def shared(profile: str) -> set[str]:
        return {part.label for part in sample_parts(profile) if part.access == "shared"}

    assert shared("paper") == {"m2", "m3", "m4", "m5", "m6", "m7"}
    assert shared("safe") == {"m2", "m5", "m6", "m7", "birth-year"}
    assert {part.access for part in sample_parts("safe")} == {"shared", "private"}


def test_all_bundled_profiles_sort_a_record_alike() -> None:
    paper, *others = map(load_profile, PROFILES)
    for other in others:
        assert (paper.rules, paper.fields, paper.default) == (other.rules, other.fields, other.default)


def test_fine_differs_from_safe_in_the_grain_alone() -> None:
    safe, fine = load_profile("safe"), load_profile("fine")
    assert fine.derived == safe.derived
    assert [(g.label, g.title, g.access) for g in fine.groups] == [
        (g.label, g.title, g.access) for g in safe.groups
    ]
    assert {g.label for g in fine.groups if g.each} == {"m5", "m6", "m7", "m8", "m9", "sensitive"}
    assert not any(g.each for g in safe.groups)


def test_each_resource_of_a_fine_group_is_a_part_of_its_own() -> None:
    report = {"resourceType": "DiagnosticReport"}
    data = document(PATIENT, report | {"id": "a"}, {"resourceType": "Claim"}, report | {"id": "b"})
    parts = split(read_bundle(data), load_profile("fine"))
    shown = {part.label: json.loads(part.content) for part in parts if part.label.startswith("m8")}
    assert list(shown) == ["m8", "m8-1", "m8-2"]
    assert shown["m8"] == {"fields": {}, "entries": []}
    assert [[e["resource"]["id"] for e in shown[label]["entries"]] for label in ("m8-1", "m8-2")] == [
        ["a"],
        ["b"],
    ]
    assert {part.access for part in parts if part.label in shown} == {"private"}
    assert [part.title for part in parts if part.label == "m8-2"] == ["Examination report 2"]
    profile = load_profile("fine")
    assert [profile.access_of(name) for name in ("m8", "m8-17", "m5-1", "birth-year", "unknown")] == [
        "private",
        "private",
        "shared",
        "shared",
        "private",
    ]


def test_a_group_names_all_its_parts_and_a_part_itself() -> None:
    labels = ["m0", "m8", "m8-1", "m8-2", "birth-year"]
    assert named(labels) == {
        "m0": (0,),
        "m8": (1, 2, 3),
        "m8-1": (2,),
        "m8-2": (3,),
        "birth-year": (4,),
    }


def test_more_parts_than_a_signature_can_be_over_are_refused() -> None:
    room = MAX_PARTS - len(split(read_bundle(document(PATIENT)), load_profile("fine")))
    reports = [{"resourceType": "Observation"}] * (room + 1)
    assert len(split(read_bundle(document(PATIENT, *reports[:-1])), load_profile("fine"))) == MAX_PARTS
    with pytest.raises(Malformed, match="4097 parts"):
        split(read_bundle(document(PATIENT, *reports)), load_profile("fine"))


def test_patient_fields_go_to_their_parts_and_unknown_ones_to_a_private_one() -> None:
    patient = PATIENT | {
        "name": [{"family": "A"}],
        "identifier": [],
        "_birthDate": {},
        "deceasedBoolean": True,
        "new": 1,
    }
    parts = routed(patient=patient)
    assert parts["m0"]["fields"] == {"resourceType": "Patient", "id": "p"}
    assert parts["m1"]["fields"] == {"name": [{"family": "A"}]}
    assert parts["m2"]["fields"] == {"gender": "other"}
    assert parts["m3"]["fields"] == {"birthDate": "1964-02-29", "_birthDate": {}, "deceasedBoolean": True}
    assert parts["m4"]["fields"] == {"identifier": []}
    assert parts["other"]["fields"] == {"new": 1}


@pytest.mark.parametrize(
    ("resource", "label"),
    [
        ({"resourceType": "Encounter"}, "m5"),
        ({"resourceType": "Observation", "category": [{"coding": [{"code": "vital-signs"}]}]}, "m5"),
        ({"resourceType": "Observation", "category": [{"coding": [{"code": "laboratory"}]}]}, "m8"),
        ({"resourceType": "Observation", "category": [{"coding": [{"code": "survey"}, {"code": "exam"}]}]}, "m8"),
        ({"resourceType": "Observation", "category": [{"text": "vital-signs"}]}, "m8"),
        ({"resourceType": "Observation"}, "m8"),
        ({"resourceType": "Condition", "clinicalStatus": {"coding": [{"code": "active"}]}}, "m6"),
        ({"resourceType": "Condition", "clinicalStatus": "active"}, "m6"),
        ({"resourceType": "Condition", "clinicalStatus": {"coding": [{"code": "inactive"}]}}, "m9"),
        ({"resourceType": "Condition", "clinicalStatus": [[[7]]]}, "m9"),
        ({"resourceType": "Condition"}, "m9"),
        ({"resourceType": "MedicationRequest"}, "m7"),
        ({"resourceType": "DiagnosticReport"}, "m8"),
        ({"resourceType": "Immunization"}, "m9"),
        ({"resourceType": "Claim"}, "billing"),
        ({"resourceType": "Practitioner"}, "admin"),
        ({"resourceType": "Bundle", "entry": [{"resource": PATIENT}]}, "other"),
        ({"resourceType": "patient"}, "other"),
    ],
)  # fmt: skip
def test_a_resource_goes_to_the_part_of_its_kind(resource: dict[str, Any], label: str) -> None:
    parts = routed(resource)
    assert parts[label]["entries"] == [{"i": 1, "resource": resource}]
    assert sum(len(part["entries"]) for part in parts.values()) == 1


@pytest.mark.parametrize(
    ("born", "year"),
    [("1964-02-29", "1964"), ("1964-02", "1964"), ("1964", "1964"), ("Zebulon", None), ("1964Zebulon", None), (None, None), ({}, None)],
)  # fmt: skip
def test_the_shared_birth_year_is_a_year_or_nothing(born: Any, year: str | None) -> None:
    parts = routed(patient=PATIENT | {"birthDate": born}, profile="safe")
    assert parts["birth-year"] == {"birthYear": year}
    assert parts["m3"]["fields"] == {"birthDate": born}


def test_a_patient_without_birth_date_has_an_empty_birth_year() -> None:
    assert routed(patient={"resourceType": "Patient"}, profile="safe")["birth-year"] == {"birthYear": None}


@pytest.mark.parametrize("path", SAMPLES[:3], ids=lambda path: path.stem)
def test_shared_parts_of_safe_hold_neither_birth_date_nor_name_nor_id_numbers(path: Path) -> None:
    data = path.read_bytes()
    patient = json.loads(data)["entry"][0]["resource"]
    shared = b"".join(
        p.content for p in split(read_bundle(data), load_profile("safe")) if p.access == "shared"
    )
    for secret in (patient["birthDate"], patient["identifier"][1]["value"], patient["name"][0]["family"]):
        assert secret.encode() not in shared
        assert json.dumps(secret).encode() not in shared


# --- sensitive categories


ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"


def labelled(system: str | None, code: str) -> dict[str, Any]:
    return {"meta": {"security": [{"code": code} | ({"system": system} if system else {})]}}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "Condition"} | labelled(ACT, "MH"),
        {"resourceType": "Claim"} | labelled(ACT, "HIV"),
        {"resourceType": "Observation"} | labelled("urn:oid:2.16.840.1.113883.5.4", "SUD"),
        {"resourceType": "Encounter"} | labelled(CONFIDENTIALITY, "R"),
        {"resourceType": "Encounter"} | labelled(CONFIDENTIALITY, "V"),
        {"resourceType": "Unheard"} | labelled(None, "psy"),
        {"resourceType": "Encounter", "contained": [{"resourceType": "Observation"} | labelled(ACT, "SEX")]},
        {"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Condition"} | labelled(ACT, "ETH")}]},
        {"resourceType": "Parameters", "parameter": [{"resource": labelled(ACT, "STD")}]},
        {"resourceType": "Condition", "note": [{"extension": [{
            "url": "http://hl7.org/fhir/uv/security-label-ds4p/StructureDefinition/extension-inline-sec-label",
            "valueCoding": {"system": ACT, "code": "BH"}}]}]},
    ],
)  # fmt: skip
def test_a_resource_with_a_sensitive_label_goes_into_the_private_sensitive_part(
    resource: dict[str, Any], profile: str
) -> None:
    data = document(PATIENT, resource, {"resourceType": "Condition", "id": "plain"})
    parts = split(read_bundle(data), load_profile(profile))
    holding = [
        part for part in parts if resource["resourceType"].encode() in part.content and part.label != "m0"
    ]
    sensitive = [part for part in parts if part.label.startswith("sensitive")]
    assert {part.access for part in sensitive} == {"private"}
    assert sum(len(json.loads(part.content)["entries"]) for part in sensitive) == 1
    assert tokens(join(contents(parts))) == tokens(data)
    if resource["resourceType"] != "Condition":
        assert [part.label for part in holding] == [sensitive[-1].label]


def test_an_escaped_label_is_a_label() -> None:
    data = document(PATIENT, {"resourceType": "Condition"} | labelled(ACT, "MH"))
    for spelled in (b'"security"', b'"MH"', b'"meta"'):
        hidden = b'"' + b"".join(b"\\u%04x" % c for c in spelled.strip(b'"')) + b'"'
        parts = contents(split(read_bundle(data.replace(spelled, hidden)), load_profile("safe")))
        assert len(json.loads(parts["sensitive"])["entries"]) == 1


@pytest.mark.parametrize(
    "label", [labelled(CONFIDENTIALITY, "N"), labelled(ACT, "R"), labelled("https://other.example", "MH"),
              labelled(ACT, "AMB"), {"meta": {"security": "MH"}}, {"meta": None}],
)  # fmt: skip
def test_labels_of_ordinary_confidentiality_change_nothing(label: dict[str, Any]) -> None:
    assert routed({"resourceType": "Claim"} | label)["sensitive"]["entries"] == []


def test_a_sensitive_patient_shows_no_field_and_no_birth_year() -> None:
    found = routed(patient=PATIENT | labelled(ACT, "CEL"), profile="safe")
    assert found["sensitive"]["fields"].keys() == {"resourceType", "id", "meta", "gender", "birthDate"}
    assert found["birth-year"] == {"birthYear": None}
    assert found["m2"]["fields"] == {}


def test_a_sensitive_bundle_shares_nothing_under_any_profile() -> None:
    data = document(PATIENT, {"resourceType": "Condition"}, **labelled(CONFIDENTIALITY, "R"))
    for name in PROFILES:
        parts = split(read_bundle(data), load_profile(name))
        assert not any(b"Condition" in part.content for part in parts if part.access == "shared")
        assert not any(b"1964" in part.content for part in parts if part.access == "shared")


# --- join distrusts what it is given


@pytest.mark.parametrize("label", [part.label for part in sample_parts() if part.label != "birth-year"])
def test_export_without_one_of_the_parts_is_refused(label: str) -> None:
    parts = contents(sample_parts())
    del parts[label]
    with pytest.raises(Malformed, match=f"Part {label} of the record is missing"):
        join(parts)


def test_derived_parts_do_not_matter_for_export() -> None:
    parts = contents(sample_parts())
    whole = join(parts)
    parts["birth-year"] = b"anything"
    assert join(parts) == whole
    del parts["birth-year"]
    assert join(parts) == whole


def altered(label: str, change: Any) -> dict[str, bytes]:
    parts = contents(sample_parts())
    part = json.loads(parts[label])
    change(part)
    return parts | {label: json.dumps(part).encode()}


FORGERIES = {
    "an entry twice in a part": altered("m5", lambda p: p["entries"].append(p["entries"][0])),
    "an entry in two parts": altered("m6", lambda p: p["entries"].append(json.loads(contents(sample_parts())["m5"])["entries"][0])),
    "an entry absent": altered("m5", lambda p: p["entries"].pop()),
    "an index beyond the bundle": altered("m5", lambda p: p["entries"][0].update(i=10**6)),
    "a negative index": altered("m5", lambda p: p["entries"][0].update(i=-1)),
    "the patient's index": altered("m5", lambda p: p["entries"][0].update(i=0)),
    "another resource in the patient's place": altered("m5", lambda p: p["entries"].append({"i": 0, "resource": PATIENT})),
    "an index that is text": altered("m5", lambda p: p["entries"][0].update(i=SECRET)),
    "an entry that is a string": altered("m5", lambda p: p["entries"][0].update(resource=SECRET)),
    "a second patient": altered("m5", lambda p: p["entries"][0].update(resource=PATIENT)),
    "an unknown member": altered("m5", lambda p: p.update({SECRET: 1})),
    "no entries member": altered("m5", lambda p: p.pop("entries")),
    "a field twice": altered("m5", lambda p: p["fields"].update(gender="male")),
    "a field absent": altered("m2", lambda p: p["fields"].clear()),
    "a field that m0 does not list": altered("m2", lambda p: p["fields"].update({SECRET: 1})),
    "a key listed twice": altered("m0", lambda p: p["order"].append("gender")),
    "a key that is no string": altered("m0", lambda p: p["order"].append({SECRET: 1})),
    "a part listed twice": altered("m0", lambda p: p["parts"].append("other")),
    "a part not listed": altered("m0", lambda p: p["parts"].remove("m6")),
    "a label that is free text": altered("m0", lambda p: p["parts"].append(f"{SECRET}\n")),
    "the patient elsewhere": altered("m0", lambda p: p.update(patient=1)),
    "a resource in m0's bundle": altered("m0", lambda p: p["bundle"]["entry"][1].update(resource={"resourceType": SECRET})),
    "no place for a resource": altered("m0", lambda p: p["bundle"]["entry"][1].pop("resource")),
    "a bundle of another type": altered("m0", lambda p: p["bundle"].update(resourceType=SECRET)),
    "a bundle that is a list": altered("m0", lambda p: p.update(bundle=[SECRET])),
    "too many places": altered("m0", lambda p: p["bundle"].update(entry=[{}] * (MAX_ENTRIES + 1))),
    "an unknown part": contents(sample_parts()) | {"m10": b"{}"},
    "a part that is a list": contents(sample_parts()) | {"m6": b"[]"},
    "a part that is not JSON": contents(sample_parts()) | {"m6": SECRET.encode()},
    "a part with a key twice": contents(sample_parts()) | {"m6": b'{"fields":{},"entries":[1],"entries":[]}'},
    "a part nested deeply": contents(sample_parts()) | {"m6": b'{"fields":' * 100_000},
    "a part of another record": contents(sample_parts()) | {"m5": contents(split(read_bundle(SAMPLES[1].read_bytes()), load_profile("safe")))["m5"]},
    "parts too large": contents(sample_parts()) | dict.fromkeys(["m5", "m6", "m7"], Oversized()),
}  # fmt: skip


@pytest.mark.parametrize("parts", FORGERIES.values(), ids=FORGERIES.keys())
def test_forged_parts_are_refused_with_a_sentence_that_quotes_nothing_of_them(
    parts: dict[str, bytes],
) -> None:
    with pytest.raises(Malformed) as refused:
        join(parts)
    assert SECRET not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_the_entries_of_a_forged_header_are_counted_before_they_are_decoded() -> None:
    with pytest.raises(Malformed, match="more than 100000 entries"):
        join(FORGERIES["too many places"])


# --- profiles


def profile_text(**changes: str) -> str:
    keys = {
        "name": '"mine"',
        "default": '"rest"',
        "groups": '[{label="m0",title="H",access="private"},{label="rest",title="R",access="shared"},'
        '{label="sensitive",title="S",access="private"}]',
        "fields": '[{field=["name"],group="rest"}]',
        "rules": '[{type="Observation",category="exam",status=["final","amended"],group="m0"}]',
    }
    return "\n".join(f"{key} = {value}" for key, value in (keys | changes).items() if value)


def test_an_operators_own_profile_with_several_predicates_works(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(profile_text())
    profile = load_profile(path)
    exam = {"resourceType": "Observation", "category": {"code": "exam"}}
    data = document(PATIENT, exam | {"status": "final"}, exam | {"status": "registered"})
    parts = split(read_bundle(data), profile)
    found = {part.label: [entry["i"] for entry in json.loads(part.content)["entries"]] for part in parts}
    assert found == {"m0": [1], "rest": [2], "sensitive": []}
    assert tokens(join(contents(parts))) == tokens(data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": ""}, "name"),
        ({"name": '"A profile"'}, "$.name"),
        ({"default": '"m7"'}, "default"),
        ({"groups": "[]"}, "$.groups"),
        ({"groups": '[{label="rest",title="R",access="private"}]'}, "begin with m0"),
        ({"groups": '[{label="m0",title="H",access="Private"}]'}, "$.groups[0].access"),
        ({"groups": '[{label="m0",title="H"}]'}, "access"),
        ({"groups": '[{label="m0",title="H",access="a",color="red"}]'}, "color"),
        ({"groups": '[{label="m0",title="H",access="a"},{label="m0",title="H",access="a"}]'}, "m0 twice"),
        ({"groups": '[{label="m0",title="H",access="a"},{label="m-8",title="H",access="a"}]'}, "label m-8 ends"),
        ({"groups": '[{label="m0",title="H",access="a",each=true}]'}, "m0 cannot"),
        ({"groups": f'[{{label="m0",title="H",access="a"}},{{label="{"m" * 28}",title="H",access="a",each=true}}]'}, "27"),
        ({"derived": '[{label="d-1",title="D",access="a",field="birthDate",take=4,key="y"}]'}, "label d-1 ends"),
        ({"derived": '[{label="rest",title="D",access="a",field="birthDate",take=4,key="y"}]'}, "rest twice"),
        ({"derived": '[{label="d",title="D",access="a",field="birthDate",take=9,key="y"}]'}, "$.derived[0].take"),
        ({"fields": '[{field=["name"],group="m7"}]'}, "fields[0].group"),
        ({"fields": '[{field="name",group="rest"}]'}, "$.fields[0].field"),
        ({"fields": '[{field=["a"],group="rest"},{field=["a"],group="m0"}]'}, "fields[1].field"),
        ({"rules": '[{type="A",group="m7"}]'}, "rules[0].group"),
        ({"rules": '[{type="A"}]'}, "rules[0].group"),
        ({"rules": '[{type="A",group=["m0"]}]'}, "rules[0].group"),
        ({"rules": '[{category="a",group="m0"}]'}, "rules[0].type"),
        ({"rules": '[{type="A",category=[],group="m0"}]'}, "rules[0].category"),
        ({"rules": "[{type=5}]"}, "$.rules[0]"),
        ({"groups": '[{label="m0",title="H",access="a"},{label="rest",title="R",access="a"}]'}, "needs a group sensitive"),
        ({"groups": '[{label="m0",title="H",access="a"},{label="rest",title="R",access="a"},'
          '{label="sensitive",title="S",access="shared"}]'}, "only the patient may share"),
        ({"extra": "1"}, "extra"),
        ({"name": '"mine'}, "line 1"),
    ],
)  # fmt: skip
def test_a_bad_profile_is_refused_naming_the_key(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(profile_text(**changes))
    with pytest.raises(Malformed, match=re.escape(says)):
        load_profile(path)


def test_a_profile_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="one of fine, paper, safe"):
        load_profile("nosuch")
    with pytest.raises(NotFound):
        load_profile(tmp_path)
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * (1 << 20))
    with pytest.raises(Malformed, match="over"):
        load_profile(path)
    path.write_bytes(b"a = " + b"[" * 10_000)
    with pytest.raises(Malformed, match="not valid TOML"):
        load_profile(path)


def test_bundled_profiles_name_themselves_as_their_files() -> None:
    for name in PROFILES:
        text = (ROOT / "client" / "profiles" / f"{name}.toml").read_text()
        assert load_profile(name).name == tomllib.loads(text)["name"] == name


# --- samples


@pytest.mark.parametrize("person", generate.PEOPLE, ids=lambda person: person.file)
def test_the_generator_reproduces_the_committed_sample(person: generate.Person) -> None:
    data = (ROOT / "client" / "samples" / f"{person.file}.json").read_bytes()
    assert generate.bundle(person) == data
    assert 20_000 < len(data) < 80_000


def test_samples_hold_what_breaks_importers_that_re_encode() -> None:
    data = b"".join(path.read_bytes() for path in SAMPLES)
    for token in ("565.00", "1.3E+2", "Zoë", "Ångström", "\\ud83d\\udc90", "Practitioner?identifier="):
        assert token.encode() in data
    assert len(SAMPLES) == len(generate.PEOPLE) == 4
    for path in SAMPLES:
        parts = split(read_bundle(path.read_bytes()), load_profile("paper"))
        for part in parts[1:5]:
            assert json.loads(part.content)["fields"], part.label
        for part in parts[5:12]:
            assert json.loads(part.content)["entries"], part.label
