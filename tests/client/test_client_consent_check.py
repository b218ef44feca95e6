"""Rules that nobody can satisfy, or that the contract refuses, are warned of before they are signed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.consent_check import warnings
from protocol.identity import Credential
from protocol.tx import Rule

NOW = 1_800_000_000_000
RULE = Rule("role:user and org:lab", ("research",), NOW + 1, ())


def person(
    number: int, *attributes: str, not_before_ms: int = NOW, not_after_ms: int = NOW + 9
) -> Credential:
    return Credential(bytes([number]) * 32, "user", attributes, bytes(32), None, not_before_ms, not_after_ms)


READER = person(1, "role:user", "org:lab")
DOCTORS = [person(n, "role:doctor") for n in (2, 3)]
PEOPLE = [READER, *DOCTORS]


def found(people=PEOPLE, **changes) -> list[str]:
    return warnings(msgspec.structs.replace(RULE, **changes), people, NOW)


def test_a_rule_that_somebody_satisfies_is_not_warned_of():
    assert found() == []
    assert found(from_ms=NOW, approval="role:doctor", emergency="role:doctor", uses=1) == []
    assert found(until_ms=None, deny=(DOCTORS[0].subject,)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy": "role:user and"}, "its policy does not parse: expected an attribute"),
        ({"approval": "("}, "its approval does not parse"),
        ({"emergency": ""}, "its emergency does not parse"),
        ({"purposes": ()}, "allows no purpose"),
        ({"purposes": ("research", "emergency")}, "emergency is no purpose"),
        ({"from_ms": NOW + 1}, "ends before it begins"),
        ({"from_ms": NOW + 2}, "ends before it begins"),
        ({"until_ms": NOW}, "has ended already"),
        ({"until_ms": 0}, "has ended already"),
        (
            {"policy": "role:user and org:labb"},
            "nobody certified on this chain satisfies the policy `role:user and org:labb`",
        ),
        ({"policy": "status:active@2026w47"}, "nobody certified on this chain satisfies"),
        ({"deny": (READER.subject,)}, "deny list has on it everybody"),
        ({"approval": "role:nurse"}, "nobody but the patient"),
        ({"approval": "org:lab"}, "nobody but the patient"),
        ({"approval": "role:doctor", "deny": tuple(d.subject for d in DOCTORS)}, "nobody but the patient"),
        ({"emergency": "role:nurse"}, "nobody satisfies the emergency policy `role:nurse`"),
        ({"emergency": "org:lab"}, "one person satisfies the emergency policy"),
        (
            {"emergency": "role:doctor", "deny": (DOCTORS[0].subject,)},
            "one person satisfies the emergency policy",
        ),
    ],
)
def test_each_fault_is_named_in_a_sentence_of_its_own(changes, sentence):
    [warning] = found(**changes)
    assert sentence in warning


def test_whose_credential_has_ended_counts_no_more_and_who_begins_later_counts():
    ended = person(1, "role:user", "org:lab", not_after_ms=NOW)
    later = person(1, "role:user", "org:lab", not_before_ms=NOW + 5)
    assert "nobody certified" in found([ended])[0]
    assert found([later]) == []
    assert "one person satisfies" in found([ended, *DOCTORS, later], emergency="org:lab")[0]


def test_two_credentials_of_one_key_are_one_person():
    assert "one person satisfies" in found([READER, DOCTORS[0], DOCTORS[0]], emergency="role:doctor")[0]


def test_several_faults_are_named_each():
    assert len(found(policy="(", approval="a:x", emergency="a:x", purposes=(), until_ms=0)) == 5


def test_a_policy_of_any_length_is_quoted_shortly():
    [warning] = found(policy=" or ".join(f"a:x{n}" for n in range(200)))
    assert len(warning) < 500


@given(st.text(max_size=40), st.one_of(st.none(), st.text(max_size=40)), st.integers(0, 2**63 - 1))
def test_any_text_is_answered_with_sentences(policy, approval, until_ms):
    rule = msgspec.structs.replace(RULE, policy=policy, approval=approval, until_ms=until_ms)
    assert all(isinstance(warning, str) for warning in warnings(rule, PEOPLE, NOW))
