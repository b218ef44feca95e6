"""Claims C1 and C2 of the paper and the extraction rules, seen by who tampers, extracts and verifies."""

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from crypto import ces
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed, Unauthentic

SIGNERS = {suite: ces.CesSigner.generate(suite) for suite in ces.SUITES}
OTHERS = {suite: ces.CesSigner.generate(suite) for suite in ces.SUITES}
MESSAGES = tuple(f"content of the part number {i}".encode() for i in range(9))


def header(suite: str = ces.ED25519, count: int = 9, rules: tuple[ces.Rule, ...] = ()) -> ces.Header:
    return ces.Header(
        suite=suite,
        record=b"R" * 16,
        patient=b"P" * 32,
        doctor=b"D" * 32,
        created_ms=1_700_000_000_000,
        labels=tuple(f"m{i}" for i in range(1, count + 1)),
        profile="paper",
        rules=rules,
    )


@dataclass
class Signed:
    suite: str
    full: ces.FullSignature
    messages: tuple[bytes, ...] = MESSAGES

    @property
    def key(self) -> tuple[str, bytes]:
        return self.suite, SIGNERS[self.suite].public

    def parts(self, keep: Any) -> dict[int, tuple[bytes, bytes]]:
        return {i: (self.full.tags[i], self.messages[i]) for i in keep}

    def extract(self, keep: Any) -> ces.Extract:
        return self.full.extract(self.messages, keep)


def signed_with(*rules: ces.Rule, messages: tuple[bytes, ...] = MESSAGES) -> Signed:
    full = ces.sign(header(count=len(messages), rules=rules), messages, SIGNERS[ces.ED25519])
    return Signed(ces.ED25519, full, messages)


@pytest.fixture(params=ces.SUITES)
def signed(request: pytest.FixtureRequest) -> Signed:
    suite = request.param
    return Signed(suite, ces.sign(header(suite), MESSAGES, SIGNERS[suite]))


SHARED = (1, 2, 3, 4, 5, 6)


def flip(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_full_signature_and_extract_verify_after_a_trip_over_the_wire(signed: Signed) -> None:
    full = ces.decode_full(encode(signed.full))
    ces.verify_full(full, MESSAGES, *signed.key)
    extract = ces.decode_extract(encode(full.extract(MESSAGES, SHARED)))
    assert extract.kept == SHARED
    ces.verify(extract, signed.parts(SHARED), signed.key)


def test_hash_and_signed_payload_are_pinned_to_the_documented_layout(signed: Signed) -> None:
    head, tags = signed.full.header, signed.full.tags
    hashes = [
        hashlib.sha256(
            b"diptych/1/ces-part\x00"
            + head.record
            + struct.pack(">I32sQ", i, tags[i], len(MESSAGES[i]))
            + MESSAGES[i]
        ).digest()
        for i in range(9)
    ]
    extract = signed.extract([4])
    assert extract.hashes == tuple((i, hashes[i]) for i in range(9) if i != 4)
    payload = encode((head, hashes))
    forged_by_the_layout = msgspec.structs.replace(extract, signature=SIGNERS[signed.suite].sign(payload))
    ces.verify(forged_by_the_layout, signed.parts([4]), signed.key)


@pytest.mark.parametrize("what", [0, 1], ids=["tag", "message"])
def test_a_changed_tag_or_message_is_refused(signed: Signed, what: int) -> None:
    for i in SHARED:
        parts = signed.parts(SHARED)
        pair = list(parts[i])
        pair[what] = flip(pair[what])
        parts[i] = (pair[0], pair[1])
        with pytest.raises(Unauthentic):
            ces.verify(signed.extract(SHARED), parts, signed.key)


def test_a_byte_moved_between_tag_and_message_is_refused(signed: Signed) -> None:
    parts = signed.parts(SHARED)
    tag, message = parts[1]
    parts[1] = (tag + message[:1], message[1:])
    with pytest.raises(Malformed, match="33 bytes"):
        ces.verify(signed.extract(SHARED), parts, signed.key)


def test_a_lengthened_or_shortened_message_is_refused(signed: Signed) -> None:
    for change in (lambda m: m + b"\0", lambda m: m[:-1], lambda m: b""):
        parts = signed.parts(SHARED)
        parts[3] = (parts[3][0], change(parts[3][1]))
        with pytest.raises(Unauthentic):
            ces.verify(signed.extract(SHARED), parts, signed.key)


def test_a_changed_hash_of_a_removed_part_is_refused(signed: Signed) -> None:
    extract = signed.extract(SHARED)
    for at, (index, digest) in enumerate(extract.hashes):
        hashes = (*extract.hashes[:at], (index, flip(digest)), *extract.hashes[at + 1 :])
        with pytest.raises(Unauthentic):
            ces.verify(msgspec.structs.replace(extract, hashes=hashes), signed.parts(SHARED), signed.key)


def test_a_changed_truncated_or_absent_signature_is_refused(signed: Signed) -> None:
    good = signed.full.signature
    for bad in (flip(good), flip(good, len(good) - 1), good[:-1], good + b"\0", b"", bytes(len(good))):
        with pytest.raises(Unauthentic):
            ces.verify(
                msgspec.structs.replace(signed.extract(SHARED), signature=bad),
                signed.parts(SHARED),
                signed.key,
            )
        with pytest.raises(Unauthentic):
            ces.verify_full(msgspec.structs.replace(signed.full, signature=bad), MESSAGES, *signed.key)


def test_swapped_positions_are_refused(signed: Signed) -> None:
    parts = signed.parts(SHARED)
    parts[1], parts[2] = parts[2], parts[1]
    with pytest.raises(Unauthentic):
        ces.verify(signed.extract(SHARED), parts, signed.key)
    extract = signed.extract(SHARED)
    (i, first), (j, second), *rest = extract.hashes
    swapped = msgspec.structs.replace(extract, hashes=((i, second), (j, first), *rest))
    with pytest.raises(Unauthentic):
        ces.verify(swapped, signed.parts(SHARED), signed.key)


def test_a_part_of_another_record_is_refused_even_with_its_own_tag(signed: Signed) -> None:
    same_tags = iter(signed.full.tags)
    other_header = msgspec.structs.replace(header(signed.suite), record=b"S" * 16)
    other = ces.sign(other_header, MESSAGES, SIGNERS[signed.suite], random=lambda _: next(same_tags))
    assert other.tags == signed.full.tags
    mixed = msgspec.structs.replace(signed.extract(SHARED), hashes=other.extract(MESSAGES, SHARED).hashes)
    with pytest.raises(Unauthentic):
        ces.verify(mixed, signed.parts(SHARED), signed.key)
    fresh = ces.sign(other_header, MESSAGES, SIGNERS[signed.suite])
    parts = signed.parts(SHARED) | {4: (fresh.tags[4], MESSAGES[4])}
    with pytest.raises(Unauthentic):
        ces.verify(signed.extract(SHARED), parts, signed.key)


@pytest.mark.parametrize(
    "change",
    [
        {"record": b"S" * 16},
        {"patient": b"Q" * 32},
        {"doctor": b"E" * 32},
        {"created_ms": 1_700_000_000_001},
        {"labels": ("m2", "m1", "m3", "m4", "m5", "m6", "m7", "m8", "m9")},
        {"profile": "safe"},
        {"rules": (ces.Rule("least", (1, 2), 1),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_header_field_is_refused(signed: Signed, change: dict[str, Any]) -> None:
    forged = msgspec.structs.replace(signed.full.header, **change)
    extract = msgspec.structs.replace(signed.extract(SHARED), header=forged)
    with pytest.raises(Unauthentic):
        ces.verify(extract, signed.parts(SHARED), signed.key)
    with pytest.raises(Unauthentic):
        ces.verify_full(msgspec.structs.replace(signed.full, header=forged), MESSAGES, *signed.key)


def test_a_record_cannot_be_shortened_by_dropping_its_last_part(signed: Signed) -> None:
    shorter = msgspec.structs.replace(signed.full.header, labels=signed.full.header.labels[:-1])
    keep = range(8)
    extract = msgspec.structs.replace(signed.extract(keep), header=shorter, hashes=())
    with pytest.raises(Unauthentic):
        ces.verify(extract, signed.parts(keep), signed.key)


def test_another_doctors_key_does_not_verify(signed: Signed) -> None:
    with pytest.raises(Unauthentic):
        ces.verify(signed.extract(SHARED), signed.parts(SHARED), (signed.suite, OTHERS[signed.suite].public))


def test_a_record_of_one_suite_is_refused_under_a_key_of_the_other(signed: Signed) -> None:
    other = next(s for s in ces.SUITES if s != signed.suite)
    with pytest.raises(Unauthentic, match="certified key"):
        ces.verify(signed.extract(SHARED), signed.parts(SHARED), (other, SIGNERS[other].public))


def test_an_unknown_suite_is_refused_by_name(signed: Signed) -> None:
    strange = msgspec.structs.replace(signed.full.header, suite="ces-rot13")
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.verify(
            msgspec.structs.replace(signed.extract(SHARED), header=strange),
            signed.parts(SHARED),
            signed.key,
        )
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.verify(signed.extract(SHARED), signed.parts(SHARED), ("ces-rot13", b""))
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.CesSigner.generate("ces-rot13")
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.sign(strange, MESSAGES, SIGNERS[signed.suite])


def test_an_extract_holds_neither_removed_parts_nor_any_tag(signed: Signed) -> None:
    wire = encode(signed.extract(SHARED))
    for tag in signed.full.tags:
        assert tag not in wire
    for message in MESSAGES:
        assert message not in wire


def test_who_knows_a_removed_part_but_not_its_tag_cannot_confirm_it_by_hashing() -> None:
    messages = (b"female", b"diagnosis")
    twice = [ces.sign(header(count=2), messages, SIGNERS[ces.ED25519]) for _ in range(2)]
    hashes = {full.extract(messages, [1]).hashes[0][1] for full in twice}
    assert len(hashes) == 2
    assert len({tag for full in twice for tag in full.tags}) == 4


def test_parts_other_than_the_kept_ones_are_refused(signed: Signed) -> None:
    for keep in (SHARED[:-1], (*SHARED, 7), ()):
        with pytest.raises(Malformed, match="not exactly"):
            ces.verify(signed.extract(SHARED), signed.parts(keep), signed.key)


@pytest.mark.parametrize("keep", [[], [9], [-1], [1, 1], [1, 100_000]])
def test_an_impossible_selection_is_refused(keep: list[int]) -> None:
    signed = signed_with()
    with pytest.raises(Malformed):
        signed.extract(keep)
    with pytest.raises(Malformed):
        signed.extract(SHARED).reduce(signed.parts(SHARED), keep)


@pytest.mark.parametrize("order", [(8, 0, 7), (0, 0, 7), (0, 7, 9), tuple(range(9))])
def test_removed_parts_repeated_unordered_beyond_the_record_or_all_are_refused(
    order: tuple[int, ...],
) -> None:
    signed = signed_with()
    extract = msgspec.structs.replace(signed.extract(SHARED), hashes=tuple((i, b"h" * 32) for i in order))
    with pytest.raises(Malformed):
        ces.verify(extract, signed.parts(extract.kept), signed.key)
    with pytest.raises(Malformed):
        extract.reduce(signed.parts(range(9)), extract.kept[:1])


def test_a_wrong_number_of_messages_is_refused() -> None:
    signed = signed_with()
    for messages in (MESSAGES[:-1], (*MESSAGES, b"more")):
        with pytest.raises(Malformed, match="9 labels"):
            ces.verify_full(signed.full, messages, *signed.key)
        with pytest.raises(Malformed, match="9 labels"):
            signed.full.extract(messages, SHARED)
        with pytest.raises(Malformed, match="9 labels"):
            ces.sign(header(), messages, SIGNERS[ces.ED25519])
    for tags in (signed.full.tags[:-1], (*signed.full.tags, b"t" * 32)):
        with pytest.raises(Malformed, match="9 labels"):
            ces.verify_full(msgspec.structs.replace(signed.full, tags=tags), MESSAGES, *signed.key)


def test_rules_let_through_what_they_say_and_nothing_else() -> None:
    signed = signed_with(
        ces.Rule("together", (2, 3), 0), ces.Rule("never", (8,), 0), ces.Rule("least", (4, 5, 6), 2)
    )
    for keep in ([4, 5], [2, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6, 7], range(9)):
        ces.verify(signed.extract(keep), signed.parts(keep), signed.key)
    for keep, rule in (([2, 4, 5], 1), ([3, 4, 5], 1), ([4, 5, 8], 2), (range(1, 9), 2), ([4], 3), ([0], 3)):
        with pytest.raises(Denied, match=f"rule {rule} "):
            signed.extract(keep)


def test_an_extract_cut_by_hand_against_the_rules_is_denied_by_its_verifier() -> None:
    signed = signed_with(ces.Rule("together", (2, 3), 0))
    free = msgspec.structs.replace(signed.full.header, rules=())
    lenient = msgspec.structs.replace(signed.full, header=free)
    forced = msgspec.structs.replace(lenient.extract(MESSAGES, [2]), header=signed.full.header)
    with pytest.raises(Denied, match="rule 1 "):
        ces.verify(forced, signed.parts([2]), signed.key)


@pytest.mark.parametrize(
    "rule",
    [
        ces.Rule("together", (3, 2), 0),
        ces.Rule("together", (2, 2), 0),
        ces.Rule("never", (9,), 0),
        ces.Rule("never", (1,), 1),
        ces.Rule("least", (1, 2), 0),
        ces.Rule("least", (1, 2), 3),
        ces.Rule("least", (), 0),
        ces.Rule("never", (-1,), 0),
    ],
)
def test_a_rule_that_makes_no_sense_is_neither_signed_nor_accepted(rule: ces.Rule) -> None:
    with pytest.raises(Malformed):
        signed_with(rule)
    strange = msgspec.structs.replace(header(), rules=(rule,))
    unsigned = ces.FullSignature(strange, signed_with().full.tags, b"")
    signature = SIGNERS[ces.ED25519].sign(ces._full_payload(unsigned, MESSAGES))
    by_a_careless_doctor = encode(msgspec.structs.replace(unsigned, signature=signature))
    with pytest.raises(Malformed):
        ces.verify_full(
            ces.decode_full(by_a_careless_doctor), MESSAGES, ces.ED25519, SIGNERS[ces.ED25519].public
        )


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ()},
        {"labels": ("x",) * 4097},
        {"labels": ("",) * 9},
        {"record": b"short"},
        {"created_ms": -1},
    ],
)
def test_a_header_out_of_bounds_is_not_signed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        ces.sign(msgspec.structs.replace(header(), **change), MESSAGES, SIGNERS[ces.ED25519])


def test_the_largest_header_that_can_be_signed_still_makes_decodable_objects() -> None:
    count = 4096
    longest = tuple("𐍈" * 26 for _ in range(count))
    rules = (ces.Rule("least", tuple(range(count)), 1),) * 6
    big = msgspec.structs.replace(header(rules=rules), labels=longest)
    assert ces.MAX_HEADER - 32_768 < len(encode(big)) <= ces.MAX_HEADER
    messages = (b"",) * count
    full = ces.sign(big, messages, SIGNERS[ces.ED25519])
    ces.verify_full(ces.decode_full(encode(full)), messages, ces.ED25519, SIGNERS[ces.ED25519].public)
    ces.decode_extract(encode(full.extract(messages, [0])))


RULES = st.lists(
    st.one_of(
        st.builds(
            ces.Rule,
            st.sampled_from(["together", "never"]),
            st.sets(st.integers(0, 5), min_size=1).map(lambda s: tuple(sorted(s))),
            st.just(0),
        ),
        st.sets(st.integers(0, 5), min_size=1).flatmap(
            lambda s: st.builds(ces.Rule, st.just("least"), st.just(tuple(sorted(s))), st.integers(1, len(s)))
        ),
    ),
    max_size=3,
).map(tuple)


def allowed(rules: tuple[ces.Rule, ...], keep: set[int], count: int) -> bool:
    """The rules, said again in other words than the code's."""
    for rule in rules:
        inside = [p for p in rule.parts if p in keep]
        if rule.kind == "together" and inside and len(inside) != len(rule.parts):
            return False
        if rule.kind == "never" and inside and keep != set(range(count)):
            return False
        if rule.kind == "least" and len(inside) < rule.k:
            return False
    return True


@given(
    messages=st.lists(st.binary(max_size=64), min_size=6, max_size=6).map(tuple),
    rules=RULES,
    keep=st.sets(st.integers(0, 5), min_size=1),
)
def test_any_allowed_subset_of_random_messages_verifies_and_no_other(
    messages: tuple[bytes, ...], rules: tuple[ces.Rule, ...], keep: set[int]
) -> None:
    signed = signed_with(*rules, messages=messages)
    if not allowed(rules, keep, 6):
        with pytest.raises(Denied):
            signed.extract(keep)
        return
    extract = ces.decode_extract(encode(signed.extract(keep)))
    assert extract.kept == tuple(sorted(keep))
    ces.verify(extract, signed.parts(keep), signed.key)
    forged = signed.parts(keep)
    victim = min(keep)
    forged[victim] = (forged[victim][0], forged[victim][1] + b"!")
    with pytest.raises(Unauthentic):
        ces.verify(extract, forged, signed.key)


@given(keep=st.sets(st.integers(0, 8), min_size=1), again=st.sets(st.integers(0, 8)))
def test_an_extract_of_an_extract_is_the_extract_made_at_once(keep: set[int], again: set[int]) -> None:
    signed = signed_with()
    smaller = (keep & again) or {min(keep)}
    reduced = signed.extract(keep).reduce(signed.parts(keep), smaller)
    assert reduced == signed.extract(smaller)
    ces.verify(reduced, signed.parts(smaller), signed.key)


def test_reducing_obeys_the_rules_and_needs_the_removed_parts() -> None:
    signed = signed_with(ces.Rule("together", (2, 3), 0))
    extract = signed.extract([1, 2, 3])
    with pytest.raises(Denied):
        extract.reduce(signed.parts([1, 2, 3]), [1, 2])
    with pytest.raises(Malformed, match="missing"):
        extract.reduce(signed.parts([1, 2]), [1])
    with pytest.raises(Malformed):
        extract.reduce(signed.parts([1, 2, 3]), [1, 4])


@pytest.mark.parametrize("decode", [ces.decode_header, ces.decode_full, ces.decode_extract])
def test_decoders_refuse_trailing_bytes_truncation_and_other_encodings(decode: Any) -> None:
    signed = signed_with()
    value = {
        ces.decode_header: signed.full.header,
        ces.decode_full: signed.full,
        ces.decode_extract: signed.extract(SHARED),
    }[decode]
    wire = encode(value)
    assert decode(wire) == value
    assert wire[0] & 0xF0 == 0x90, "a short array, so that the longer form below is the same value"
    longer = b"\xdc\x00" + bytes([wire[0] & 0x0F]) + wire[1:]
    for bad in (wire + b"\x00", wire[:-1], longer, b"", b"\xc1"):
        with pytest.raises(Malformed):
            decode(bad)


@given(data=st.data())
def test_one_changed_byte_anywhere_in_an_extract_never_verifies(data: st.DataObject) -> None:
    signed = signed_with()
    wire = bytearray(encode(signed.extract(SHARED)))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DiptychError):
        ces.verify(ces.decode_extract(bytes(wire)), signed.parts(SHARED), signed.key)


def test_errors_say_nothing_of_the_content(signed: Signed) -> None:
    parts = signed.parts(SHARED)
    parts[2] = (parts[2][0], b"SECRET DIAGNOSIS")
    with pytest.raises(Unauthentic) as caught:
        ces.verify(signed.extract(SHARED), parts, signed.key)
    assert "SECRET" not in str(caught.value)
    assert "content" not in str(caught.value)


def test_a_signer_comes_back_from_its_bytes(signed: Signed) -> None:
    signer = ces.CesSigner.from_bytes(SIGNERS[signed.suite].to_bytes())
    assert (signer.suite, signer.public) == signed.key
    full = ces.sign(header(signed.suite), MESSAGES, signer)
    ces.verify_full(full, MESSAGES, *signed.key)


def test_damaged_signer_bytes_are_refused_without_showing_them(signed: Signed) -> None:
    good = SIGNERS[signed.suite].to_bytes()
    small = rsa.generate_private_key(65537, 2048)
    damaged = [
        good + b"\0",
        good[:-1],
        b"",
        encode((signed.suite, b"no key")),
        encode(("ces-rot13", b"no key")),
        encode((ces.RSA_PSS, bytes(32))),
    ]
    for bad in damaged:
        with pytest.raises(Malformed):
            ces.CesSigner.from_bytes(bad)
    with pytest.raises(Malformed, match="3072 bits"):
        ces.CesSigner(small)


def test_rsa_verification_refuses_keys_of_other_kinds_sizes_and_encodings() -> None:
    signed = Signed(ces.RSA_PSS, ces.sign(header(ces.RSA_PSS), MESSAGES, SIGNERS[ces.RSA_PSS]))
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    bad_keys = [
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(*spki),
        ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*spki),
        SIGNERS[ces.RSA_PSS].public + b"\0",
        SIGNERS[ces.ED25519].public,
        b"",
    ]
    for public in bad_keys:
        with pytest.raises(Malformed):
            ces.verify(signed.extract(SHARED), signed.parts(SHARED), (ces.RSA_PSS, public))


def test_a_signer_of_the_other_suite_is_refused_at_signing() -> None:
    with pytest.raises(Malformed, match="the key is for"):
        ces.sign(header(ces.RSA_PSS), MESSAGES, SIGNERS[ces.ED25519])
