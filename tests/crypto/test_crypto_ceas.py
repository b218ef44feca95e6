"""Extraction rules: what they allow, what their language says, and what is no rule."""

from itertools import chain, combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import ceas
from crypto.ceas import ALWAYS, Gate, Rule
from crypto.codec import Decoder, encode
from crypto.errors import Malformed

NAMES = {f"m{i}": (i,) for i in range(9)} | {"group": (5, 6, 7), "all": (0,)}


def mask(*parts: int) -> int:
    return sum(1 << i for i in parts)


def subsets(count: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(count), k) for k in range(count + 1)))


def allowed(text: str, count: int = 9) -> set[tuple[int, ...]]:
    rule = ceas.parse(text, NAMES, count)
    return {s for s in subsets(count) if rule.allows(mask(*s))}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("m1", lambda s: 1 in s),
        ("together(m2, m3)", lambda s: (2 in s) == (3 in s)),
        ("together(m0,m1,m2)", lambda s: len({0, 1, 2} & s) in (0, 3)),
        ("never(m8)", lambda s: 8 not in s or len(s) == 9),
        ("never(m7, m8)", lambda s: not {7, 8} & s or len(s) == 9),
        ("least(2, m4, m5, m6)", lambda s: len({4, 5, 6} & s) >= 2),
        ("if(m6, m7)", lambda s: 6 not in s or 7 in s),
        ("if(m6, any(m7, all(m8, m1)))", lambda s: 6 not in s or 7 in s or {8, 1} <= s),
        ("if(all(m1, m2), least(1, m3, m4))", lambda s: not {1, 2} <= s or bool({3, 4} & s)),
        ("any(m1, all(m2, m3))", lambda s: 1 in s or {2, 3} <= s),
        (
            "least(2, m1, all(m2, m3), any(m4, m5))",
            lambda s: (1 in s) + ({2, 3} <= s) + bool({4, 5} & s) >= 2,
        ),
        ("together(group)", lambda s: len({5, 6, 7} & s) in (0, 3)),
        ("if(any(group), m0)", lambda s: not {5, 6, 7} & s or 0 in s),
        ("if(group, m0)", lambda s: not s >= {5, 6, 7} or 0 in s),
        ("least(2, group)", lambda s: len({5, 6, 7} & s) >= 2),
        ("all", lambda s: 0 in s),
        (" if ( m6 ,\n\tm7 ) ", lambda s: 6 not in s or 7 in s),
    ],
)
def test_a_rule_allows_what_it_says(text: str, meaning) -> None:
    assert allowed(text) == {s for s in subsets(9) if meaning(set(s))}


@given(data=st.data(), count=st.integers(1, 4))
def test_any_set_of_selections_with_the_complete_record_in_it_can_be_said(
    data: st.DataObject, count: int
) -> None:
    whole = tuple(range(count))
    family = data.draw(st.sets(st.sampled_from(subsets(count)))) | {whole}
    rules = []
    for forbidden in set(subsets(count)) - family:
        others = set(whole) - set(forbidden)
        when = Gate(len(forbidden), ceas.part_set(forbidden), ()) if forbidden else ALWAYS
        rules.append(Rule(when, Gate(1, ceas.part_set(others), ())))
        rules[-1].check(count)
    assert {s for s in subsets(count) if all(rule.allows(mask(*s)) for rule in rules)} == family


GATES = st.recursive(
    st.builds(
        lambda s, k: Gate(1 + k % len(s), ceas.part_set(s), ()),
        st.sets(st.integers(0, 8), min_size=1),
        st.integers(0, 8),
    ),
    lambda inner: st.builds(
        lambda s, gates, k: Gate(1 + k % (len(s) + len(gates)), ceas.part_set(s), tuple(gates)),
        st.sets(st.integers(0, 8)),
        st.lists(inner, min_size=1, max_size=3),
        st.integers(0, 11),
    ),
    max_leaves=8,
)


@given(st.one_of(st.builds(Rule, st.one_of(st.just(ALWAYS), GATES), GATES)))
def test_a_rule_written_out_reads_back_as_itself(rule: Rule) -> None:
    text = ceas.text(rule, 9, lambda i: f"m{i}")
    assert ceas.parse(text, NAMES, 9) == rule


@pytest.mark.parametrize(
    "text", ["together(m2, m3)", "never(m8)", "least(2, m4, m5, m6)", "if(m6, all(m7, m8))"]
)
def test_what_people_write_is_what_they_are_shown(text: str) -> None:
    assert ceas.text(ceas.parse(text, NAMES, 9), 9, lambda i: f"m{i}") == text


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 1),
        ("m9", 1),
        ("together(m2, m9)", 14),
        ("together(m2, all(m3))", 14),
        ("together m2", 10),
        ("never()", 7),
        ("if(m1)", 1),
        ("if(m1, m2, m3)", 1),
        ("if(m1, m2", 10),
        ("all(m1, if(m2, m3))", 9),
        ("not(m1)", 1),
        ("least(m1, m2)", 7),
        ("least(2)", 7),
        ("least(99999, m1)", 7),
        ("least(2(m1), m2)", 7),
        ("m1 m2", 4),
        ("m1)", 3),
        ("all(m1,)", 8),
        ("all(m1 & m2)", 8),
        ("m1, m2", 3),
        ("é", 1),
    ],
)
def test_what_is_no_rule_is_refused_with_the_column_of_the_mistake(text: str, column: int) -> None:
    with pytest.raises(Malformed, match=rf"\(column {column}\)"):
        ceas.parse(text, NAMES, 9)


@pytest.mark.parametrize("text", ["least(0, m1)", "least(3, m1, m2)", "least(2, m1, m1)"])
def test_an_impossible_number_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="1 up to all"):
        ceas.parse(text, NAMES, 9)


@given(st.text(alphabet="m123(),all nyleasttogether if", max_size=60))
def test_any_text_is_a_rule_or_refused_with_a_sentence(text: str) -> None:
    try:
        rule = ceas.parse(text, NAMES, 9)
    except Malformed:
        return
    assert rule.allows(mask(*range(9)))


def test_nesting_gates_and_length_are_bounded_in_text_and_on_the_wire() -> None:
    def deep(levels: int) -> str:
        return "all(" * levels + "m1" + ")" * levels

    ceas.parse(deep(ceas.MAX_NESTING), NAMES, 9)
    for text in (deep(ceas.MAX_NESTING + 1), deep(10_000), "all(" * 10_000):
        with pytest.raises(Malformed, match="inside one another"):
            ceas.parse(text, NAMES, 9)
    with pytest.raises(Malformed, match="longer"):
        ceas.parse("m1" + " " * ceas.MAX_TEXT, NAMES, 9)
    wide = ", ".join(["any(m1)"] * 300)
    with pytest.raises(Malformed, match="gates"):
        ceas.parse(f"all({wide})", NAMES, 9)

    decode = Decoder(Rule, "a rule", 1 << 20)
    nested = Gate(1, b"\x01", ())
    for _ in range(ceas.MAX_NESTING):
        nested = Gate(1, b"", (nested,))
    with pytest.raises(Malformed, match="inside one another"):
        decode(encode(Rule(ALWAYS, nested))).check(9)
    bottomless = b"\x92\x93\x00\xc4\x00\x90" + b"\x93\x01\xc4\x00\x91" * 100_000
    with pytest.raises(Malformed):
        decode(bottomless)


@pytest.mark.parametrize(
    "gate",
    [
        Gate(0, b"\x01", ()),
        Gate(2, b"\x01", ()),
        Gate(1, b"", ()),
        ALWAYS,
        Gate(1, b"\x01\x00", ()),
        Gate(1, b"\x00\x02", ()),
        Gate(1, b"\x01", (Gate(1, b"", ()),)),
        Gate(3, b"\x01", (Gate(1, b"\x01", ()),)),
    ],
)
def test_a_gate_that_is_empty_impossible_or_beyond_the_record_is_refused(gate: Gate) -> None:
    with pytest.raises(Malformed):
        Rule(ALWAYS, gate).check(9)
    with pytest.raises(Malformed):
        Rule(Gate(1, b"\x01", (gate,)), Gate(1, b"\x01", ())).check(9)


@given(st.sets(st.integers(0, ceas.MAX_PARTS - 1)))
def test_a_set_of_parts_has_one_form(parts: set[int]) -> None:
    packed = ceas.part_set(parts)
    assert ceas.members(packed) == tuple(sorted(parts))
    assert ceas.mask_of(packed) == mask(*parts)
    assert ceas.is_part_set(packed, ceas.MAX_PARTS)
    assert not ceas.is_part_set(packed + b"\0", ceas.MAX_PARTS)
    assert not ceas.is_part_set(packed, max(parts)) if parts else packed == b""


@pytest.mark.parametrize("index", [-1, ceas.MAX_PARTS])
def test_a_part_number_out_of_bounds_is_refused(index: int) -> None:
    with pytest.raises(Malformed, match="no part"):
        ceas.part_set([0, index])


def test_rules_over_thousands_of_parts_are_small_and_exact() -> None:
    count = ceas.MAX_PARTS
    rule = ceas.never(ceas.part_set(range(100, 4000)), count)
    rule.check(count)
    assert len(encode(rule)) < 1100
    everything = (1 << count) - 1
    assert rule.allows(everything)
    assert not rule.allows(everything - 1)
    assert rule.allows(mask(*range(100)))
    assert not rule.allows(mask(3999))
    assert msgspec.structs.replace(rule, when=ALWAYS).allows(everything)
