"""Votes, certificates and parents: the brute-force statement of each rule, and everything that only looks like it."""

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crypto import dkg
from crypto.codec import encode
from crypto.errors import Malformed
from protocol import merkle
from protocol.block import (
    MAX_TX,
    Block,
    Body,
    Certificate,
    Chain,
    Committee,
    Header,
    Proposal,
    Status,
    Vote,
    Votes,
    Want,
    decode_certificate,
    decode_message,
    decode_vote,
    signer_set,
)
from protocol.checkpoint import Checkpoint, CheckpointSignature, SignedCheckpoint, decode_signed_checkpoint
from protocol.index_key import IndexKey, decode_index_key
from protocol.tx import Deal, Judge, Tx
from tests.simulation.cluster import ADMINS, change_tx, make_genesis, request_tx

GENESIS, KEYS = make_genesis(4, term_length=4)
COMMITTEE = Committee(GENESIS)
A = b"a" * 32


def vote(signer: int, kind: str = "notarize", view: int = 5, block: bytes | None = A) -> Vote:
    return COMMITTEE.sign(KEYS[signer], signer, kind, view, block)


def certificate(*signers: int, kind: str = "notarize", view: int = 5, block: bytes | None = A) -> Certificate:
    votes = [vote(s, kind, view, block) for s in signers]
    return Certificate(kind, view, block, signer_set(signers), tuple(v.signature for v in votes))


HEADER = Header(
    GENESIS.chain_id, 0, 1, 1, GENESIS.hash, 0, merkle.root([request_tx(1)]), 1, 1, bytes(32), bytes(32), 0
)
BLOCK = Block(HEADER, (request_tx(1),), (certificate(0, 1, 2, kind="nullify", block=None),))
MESSAGES = [
    Proposal(BLOCK, certificate(0, 1, 2), vote(0)),
    Proposal(BLOCK, None, vote(0)),
    Votes((vote(0), vote(1, "nullify", 5, None)), certificate(1, 2, 3)),
    Status(
        2,
        9,
        3,
        certificate(0, 1, 2, kind="finalize"),
        None,
        certificate(0, 1, 3, kind="nullify", block=None),
        (vote(2),),
    ),
    Want(A),
    Body(BLOCK),
    Chain((BLOCK,), (HEADER,), certificate(0, 1, 2, kind="finalize")),
]


# --- votes and certificates --------------------------------------------------------------------------------------------


def test_a_vote_holds_for_exactly_what_its_signer_signed():
    good = vote(1)
    assert COMMITTEE.is_valid_vote(good)
    for change in (
        {"kind": "finalize"},
        {"view": 6},
        {"block": b"b" * 32},
        {"block": None},
        {"signer": 2},
        {"signer": 4},
        {"signer": 63},
        {"signature": bytes(64)},
        {"kind": "nullify"},
        {"kind": "nullify", "block": None},
    ):
        assert not COMMITTEE.is_valid_vote(msgspec.structs.replace(good, **change))


def test_a_nullify_names_no_block_and_the_others_do_even_if_signed_so():
    assert COMMITTEE.is_valid_vote(vote(0, "nullify", 5, None))
    assert not COMMITTEE.is_valid_vote(vote(0, "nullify", 5, A))
    assert not COMMITTEE.is_valid_vote(vote(0, "notarize", 5, None))
    assert not COMMITTEE.is_valid_vote(vote(0, "notarize", 0, A)), "view 0 is genesis, nobody votes on it"


def test_votes_and_certificates_of_another_chain_or_epoch_do_not_hold():
    elsewhere = Committee(msgspec.structs.replace(GENESIS, chain_id="diptych/1/sharing/test"))
    later = Committee(GENESIS, epoch=1)
    for other in (elsewhere, later):
        assert other.is_valid_certificate(
            other.certify([other.sign(KEYS[s], s, "notarize", 5, A) for s in range(3)])
        )
        assert not other.is_valid_vote(vote(0))
        assert not other.is_valid_certificate(certificate(0, 1, 2))


@pytest.mark.parametrize("signers", [(0, 1, 2), (0, 1, 3), (1, 2, 3)])
def test_any_quorum_makes_a_certificate(signers):
    cert = COMMITTEE.certify([vote(s) for s in reversed(signers)])
    assert cert == certificate(*signers)
    assert COMMITTEE.is_valid_certificate(cert)
    assert decode_certificate(encode(cert)) == cert


def test_more_votes_than_needed_make_a_certificate_of_exactly_a_quorum():
    assert COMMITTEE.certify([vote(s) for s in range(4)]) == certificate(0, 1, 2)


GOOD = certificate(0, 1, 2)
SIGNATURES = GOOD.signatures


@pytest.mark.parametrize(
    "forged",
    [
        certificate(0, 1),
        certificate(0, 1, 2, 3),
        Certificate("notarize", 5, A, b"", ()),
        Certificate("notarize", 5, A, b"\x07", SIGNATURES[:2]),
        Certificate("notarize", 5, A, b"\x03", SIGNATURES),
        Certificate("notarize", 5, A, b"\x03", SIGNATURES[:2]),
        Certificate("notarize", 5, A, b"\x07", (SIGNATURES[0], SIGNATURES[0], SIGNATURES[2])),
        Certificate("notarize", 5, A, b"\x07", SIGNATURES[::-1]),
        Certificate("notarize", 5, A, b"\x0b", SIGNATURES),
        Certificate("notarize", 5, A, b"\x13", SIGNATURES),
        Certificate("notarize", 5, A, signer_set((0, 1, 127)), SIGNATURES),
        Certificate("notarize", 5, A, b"\x07\x00", SIGNATURES),
        Certificate("notarize", 5, A, b"\x00\x07", SIGNATURES),
        Certificate("finalize", 5, A, b"\x07", SIGNATURES),
        Certificate("notarize", 6, A, b"\x07", SIGNATURES),
        Certificate("notarize", 5, b"b" * 32, b"\x07", SIGNATURES),
        Certificate("nullify", 5, None, b"\x07", SIGNATURES),
        certificate(0, 1, 2, kind="nullify", block=A),
        certificate(0, 1, 2, block=None),
    ],
)
def test_what_is_not_exactly_a_quorum_of_distinct_members_over_one_thing_is_no_certificate(forged):
    assert COMMITTEE.is_valid_certificate(GOOD)
    assert not COMMITTEE.is_valid_certificate(forged)


def test_the_last_of_128_members_can_sign_certificates_that_others_decode():
    genesis, keys = make_genesis(128)
    committee = Committee(genesis)
    cert = committee.certify([committee.sign(keys[s], s, "notarize", 5, A) for s in range(42, 128)])
    assert committee.is_valid_certificate(decode_certificate(encode(cert)))


def test_everything_that_128_members_with_the_longest_names_say_of_themselves_fits_its_limit():
    genesis, keys = make_genesis(128)
    members = tuple(
        msgspec.structs.replace(m, name=m.name.ljust(64, "x"), identity=m.identity.ljust(64, "x"))
        for m in genesis.members
    )
    committee = Committee(genesis, members=members)
    quorum = committee.quorum
    assert len(change_tx(genesis, 0, members, ADMINS)) <= MAX_TX
    at = Checkpoint(genesis.chain_id, 0, 2**60, A, 2**60, A, A)
    signed = SignedCheckpoint(at, tuple(CheckpointSignature(s, bytes(64)) for s in range(128)))
    assert decode_signed_checkpoint(encode(signed)) == signed
    key = IndexKey(2**60, members, (bytes(48),) * quorum, tuple(range(128)), True)
    assert decode_index_key(encode(key)) == key
    dealing = dkg.Dealing(
        dkg.SUITE, (bytes(48),) * quorum, bytes(48), (bytes(32),) * 128, bytes(64), bytes(64)
    )
    complaints = tuple(dkg.Complaint(d, bytes(48), bytes(64)) for d in range(127))
    for action in (Deal(2**60, dealing), Judge(2**60, complaints)):
        assert len(encode(Tx.make(genesis.chain_id, keys[0], bytes(16), 2**60, action))) <= MAX_TX


# --- terms and parents -------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 9))
def test_members_lead_whole_terms_in_turn(view, length):
    genesis, _ = make_genesis(4, term_length=length)
    committee = Committee(genesis)
    start = committee.term_start(committee.term(view))
    assert start <= view < start + length
    assert {committee.leader(v) for v in range(start, start + length)} == {committee.leader(view)}
    assert committee.leader(start + length) == (committee.leader(view) + 1) % 4


def nullification(view: int) -> Certificate:
    return Certificate("nullify", view, None, b"\x07", (bytes(64),) * 3)


def is_legal_by_the_rule(length: int, parent: int, view: int, skips: tuple[Certificate, ...]) -> bool:
    """Section 2, word for word: in a term a block follows the view before; a term's first block may skip views, if every
    one is covered by a nullification at or before it in its term, one for each term touched, in order."""

    def term(v: int) -> int:
        return (v - 1) // length

    if parent >= view:
        return False
    if (view - 1) % length:
        return parent == view - 1 and not skips
    skipped = range(parent + 1, view)
    covered = all(
        any(s.kind == "nullify" and term(s.view) == term(w) and s.view <= w for s in skips) for w in skipped
    )
    return covered and [term(s.view) for s in skips] == sorted({term(w) for w in skipped})


@settings(max_examples=400)
@given(st.integers(1, 4), st.integers(0, 14), st.integers(1, 14), st.data())
def test_legal_parents_are_those_of_the_rule(length, parent, view, data):
    genesis, _ = make_genesis(4, term_length=length)
    committee = Committee(genesis)
    exact = [nullification(first) for _, first in committee.covering_terms(parent, view)]
    skips = data.draw(
        st.one_of(
            st.just(tuple(exact)),
            st.permutations(exact).map(tuple),
            st.tuples(st.integers(0, len(exact)), st.integers(1, 14)).map(
                lambda at: (*exact[: at[0]], nullification(at[1]), *exact[at[0] + 1 :])
            ),
            st.lists(st.integers(1, 14).map(nullification), max_size=4).map(tuple),
            st.sampled_from(range(len(exact) + 1)).map(lambda i: tuple(exact[:i] + exact[i + 1 :])),
            st.integers(0, len(exact)).map(lambda i: (*exact[:i], GOOD, *exact[i:])),
        )
    )
    assert committee.is_legal_parent(parent, view, skips) == is_legal_by_the_rule(length, parent, view, skips)


def test_a_view_sixty_powers_of_two_away_is_refused_at_once():
    length = GENESIS.term_length
    for power in (40, 50, 60):
        assert not COMMITTEE.is_legal_parent(0, 2**power * length // 4 * 4 + 1, ())
    genesis, _ = make_genesis(4, term_length=1)
    assert not Committee(genesis).is_legal_parent(0, 2**63 - 1, (nullification(1),))


# --- the wire ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_survives_the_wire(message):
    assert decode_message(encode(message)) == message


def is_decoded_or_malformed(data: bytes) -> None:
    try:
        message = decode_message(data)
    except Malformed:
        return
    assert encode(message) == data, "what decodes is canonical"


@given(st.binary(max_size=400))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 100_000)
def test_random_bytes_decode_or_are_malformed_and_nothing_else(data):
    is_decoded_or_malformed(data)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_changed_message_decodes_or_is_malformed_and_nothing_else(message, data):
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "truncate"]))
        if action == "flip":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif len(raw) > 1:
            del raw[at : at + 1 if action == "cut" else len(raw)]
            raw = raw or bytearray(b"\xc0")
    is_decoded_or_malformed(bytes(raw))


@pytest.mark.parametrize(
    "data",
    [
        encode(["votes", [], None, None]),
        encode(["votes", []]),
        encode(["vote", [], None]),
        encode(["want", bytes(31)]),
        encode(["want", "a" * 32]),
        encode(["want", bytes(32)]) + b"\x00",
        b"\x92\xa4want\xc5\x00\x20" + bytes(32),
        b"\x92\xd9\x04want\xc4\x20" + bytes(32),
        encode(Chain((), (), GOOD)),
        encode(Status(0, -1, 0, None, None, None, ())),
        encode(Status(0, 2**63, 0, None, None, None, ())),
        encode(Votes((vote(0),) * 65, None)),
        encode(Votes((Vote("notarize", 1, A, 128, bytes(64)),), None)),
        encode(Votes((Vote("approve", 1, A, 0, bytes(64)),), None)),
        encode(Body(Block(msgspec.structs.replace(HEADER, time_ms=1.0), (), ()))),
    ],
)
def test_messages_out_of_form_or_not_canonical_are_malformed(data):
    with pytest.raises(Malformed):
        decode_message(data)


def test_a_message_over_the_limit_is_refused_before_it_is_decoded():
    with pytest.raises(Malformed, match="over the limit"):
        decode_message(bytes((4 << 20) + 1))
    with pytest.raises(Malformed, match="over the limit"):
        decode_vote(bytes(2000))


def test_the_block_id_depends_on_every_field_of_the_header():
    ids = {HEADER.id}
    for name in HEADER.__struct_fields__:
        old = getattr(HEADER, name)
        new = old + 1 if isinstance(old, int) else "x" if isinstance(old, str) else b"x" * 32
        ids.add(msgspec.structs.replace(HEADER, **{name: new}).id)
    assert len(ids) == len(HEADER.__struct_fields__) + 1
