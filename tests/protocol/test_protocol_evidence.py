"""Which pairs of votes convict their signer, and that no pair an honest member may sign does."""

from hypothesis import given
from hypothesis import strategies as st

from crypto.codec import encode
from protocol.block import Committee, Vote
from protocol.evidence import Evidence, conflict, decode_evidence
from tests.simulation.cluster import make_genesis

GENESIS, KEYS = make_genesis(4, term_length=4)
COMMITTEE = Committee(GENESIS)
A, B = b"a" * 32, b"b" * 32


def vote(kind: str, view: int, block: bytes | None, signer: int = 0) -> Vote:
    return Vote(kind, view, block, signer, bytes(64))


def kind_of(a: Vote, b: Vote) -> str | None:
    found, swapped = conflict(COMMITTEE, a, b), conflict(COMMITTEE, b, a)
    assert (found and found.kind) == (swapped and swapped.kind), "the order of the votes does not matter"
    return found.kind if found else None


def test_two_blocks_in_one_view_convict():
    assert kind_of(vote("notarize", 5, A), vote("notarize", 5, B)) == "E1"
    assert kind_of(vote("finalize", 5, A), vote("finalize", 5, B)) == "E2"
    assert kind_of(vote("notarize", 5, A), vote("finalize", 5, B)) == "E3"


def test_a_nullify_at_or_before_a_finalize_of_one_term_convicts():
    assert kind_of(vote("nullify", 5, None), vote("finalize", 5, A)) == "E4"
    assert kind_of(vote("nullify", 5, None), vote("finalize", 8, A)) == "E4"


def test_what_an_honest_member_may_sign_does_not_convict():
    assert kind_of(vote("notarize", 5, A), vote("finalize", 5, A)) is None
    assert kind_of(vote("notarize", 5, A), vote("nullify", 5, None)) is None
    assert kind_of(vote("nullify", 5, None), vote("notarize", 6, A)) is None
    assert kind_of(vote("finalize", 5, A), vote("nullify", 6, None)) is None
    assert kind_of(vote("nullify", 4, None), vote("finalize", 5, A)) is None, "view 5 opens the next term"
    assert kind_of(vote("notarize", 5, A), vote("notarize", 6, B)) is None


votes = st.builds(
    lambda kind, view, block, signer: vote(kind, view, None if kind == "nullify" else block, signer),
    st.sampled_from(["notarize", "nullify", "finalize"]),
    st.integers(1, 9),
    st.sampled_from([A, B]),
    st.integers(0, 1),
)


@given(votes, votes)
def test_a_pair_convicts_exactly_when_it_breaks_a_signing_rule_and_is_of_one_signer(a, b):
    two_blocks = a.view == b.view and None not in (a.block, b.block) and a.block != b.block
    rule_f = any(
        x.kind == "nullify"
        and y.kind == "finalize"
        and x.view <= y.view
        and (x.view - 1) // 4 == (y.view - 1) // 4
        for x, y in ((a, b), (b, a))
    )
    assert (kind_of(a, b) is not None) == (a.signer == b.signer and (two_blocks or rule_f))


def test_evidence_survives_its_encoding():
    found = conflict(COMMITTEE, *(COMMITTEE.sign(KEYS[2], 2, "finalize", 3, block) for block in (A, B)))
    assert isinstance(found, Evidence)
    again = decode_evidence(encode(found))
    assert again == found
    assert COMMITTEE.is_valid_vote(again.first)
    assert COMMITTEE.is_valid_vote(again.second)
