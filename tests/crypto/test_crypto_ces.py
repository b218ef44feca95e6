"""Claims C1 and C2 of the paper and the extraction rules, seen by who tampers, extracts and verifies."""

import hashlib
import random
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from crypto import ceas, ces, commitvector
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed, Unauthentic

SIGNERS = {suite: ces.CesSigner.generate(suite) for suite in ces.SUITES}
OTHERS = {suite: ces.CesSigner.generate(suite) for suite in ces.SUITES}
FORMS: tuple[commitvector.Form, ...] = ("flat", "merkle")
MESSAGES = tuple(f"content of the part number {i}".encode() for i in range(9))
SHARED = (1, 2, 3, 4, 5, 6)
ABOUT = {
    "record": b"R" * 16,
    "patient": b"P" * 32,
    "doctor": b"D" * 32,
    "created_ms": 1_700_000_000_000,
    "profile": "paper",
}


def make(messages: Iterable[bytes] = MESSAGES, suite: str = ces.ED25519, **more: Any) -> ces.FullSignature:
    return ces.sign(tuple(messages), SIGNERS[suite], **{**ABOUT, **more})


def verify_full(full: ces.FullSignature, messages: Iterable[bytes], suite: str, public: bytes) -> None:
    ces.verify_full(full, full.commitments(messages), suite, public)


@dataclass
class Signed:
    suite: str
    full: ces.FullSignature
    messages: tuple[bytes, ...] = MESSAGES

    @property
    def key(self) -> tuple[str, bytes]:
        return self.suite, SIGNERS[self.suite].public

    def parts(self, keep: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        return {i: (self.full.tag(i), self.messages[i]) for i in keep}

    def extract(self, keep: Any) -> ces.Extract:
        return self.full.extract(self.full.commitments(self.messages), keep)


def signed_with(*rules: ceas.Rule, messages: tuple[bytes, ...] = MESSAGES, **more: Any) -> Signed:
    return Signed(ces.ED25519, make(messages, rules=rules, **more), messages)


def re_signed(signed: Signed, **changes: Any) -> ces.FullSignature:
    """What a doctor who follows no rules can sign: any header."""
    header = msgspec.structs.replace(signed.full.header, **changes)
    return msgspec.structs.replace(
        signed.full, header=header, signature=SIGNERS[signed.suite].sign(encode(header))
    )


@pytest.fixture(params=[(s, f) for s in ces.SUITES for f in FORMS], ids=lambda p: f"{p[0][4:7]}-{p[1]}")
def signed(request: pytest.FixtureRequest) -> Signed:
    suite, form = request.param
    return Signed(suite, make(suite=suite, form=form))


def flip(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def part_set(indices: Iterable[int]) -> bytes:
    return ceas.part_set(indices)


# --- what verifies


def test_full_signature_and_extract_verify_after_a_trip_over_the_wire(signed: Signed) -> None:
    full = ces.decode_full(encode(signed.full))
    verify_full(full, MESSAGES, *signed.key)
    extract = ces.decode_extract(encode(full.extract(full.commitments(MESSAGES), SHARED)))
    assert extract.kept == SHARED
    ces.verify(extract, signed.parts(SHARED), signed.key)


def test_commitments_root_and_signed_bytes_are_pinned_to_the_documented_layout() -> None:
    for form in FORMS:
        signed = signed_with(form=form)
        head, tags = signed.full.header, signed.full.tags
        hashes = [
            hashlib.sha256(
                b"diptych/1/ces-part\x00"
                + head.record
                + struct.pack(">I32sQ", i, tags[32 * i : 32 * i + 32], len(MESSAGES[i]))
                + MESSAGES[i]
            ).digest()
            for i in range(9)
        ]

        def node(left: bytes, right: bytes) -> bytes:
            return hashlib.sha256(b"diptych/1/ces-node\x00" + left + right).digest()

        pairs = [node(*hashes[i : i + 2]) for i in (0, 2, 4, 6)]
        left, right = node(*pairs[:2]), node(*pairs[2:])
        extract = signed.extract([4])
        if form == "flat":
            assert extract.hashes == b"".join(hashes[:4] + hashes[5:])
            assert head.root == hashlib.sha256(b"diptych/1/ces-flat\x00" + b"".join(hashes)).digest()
        else:
            assert extract.hashes == hashes[5] + pairs[3] + left + hashes[8]
            assert head.root == node(node(left, right), hashes[8])
        assert extract.selection == b"\x10"
        by_the_layout = SIGNERS[ces.ED25519]._key.sign("ces", encode(head))
        assert extract.signature == by_the_layout


def test_a_tree_is_chosen_for_records_of_many_parts_and_both_forms_on_demand() -> None:
    few, many = (b"",) * (ces.MERKLE_FROM - 1), (b"",) * ces.MERKLE_FROM
    assert make(few).header.form == "flat"
    assert make(many).header.form == "merkle"
    assert make(few, form="merkle").header.form == "merkle"
    assert make(many, form="flat").header.form == "flat"


def test_one_part_alone_can_be_a_record(signed: Signed) -> None:
    for form in FORMS:
        one = signed_with(messages=(b"only",), form=form)
        verify_full(one.full, (b"only",), *one.key)
        extract = one.extract([0])
        assert extract.hashes == b""
        ces.verify(extract, one.parts([0]), one.key)


@pytest.mark.parametrize("form", FORMS)
def test_a_record_of_thousands_of_parts_verifies_and_an_extract_of_a_tree_stays_small(
    form: commitvector.Form,
) -> None:
    count = ceas.MAX_PARTS
    messages = tuple(b"part %d" % i for i in range(count))
    signed = signed_with(messages=messages, form=form)
    verify_full(ces.decode_full(encode(signed.full)), messages, *signed.key)
    chosen = random.Random(7).sample(range(count), 1500)
    for keep in ([0], [count - 1], [77, 2048], chosen, range(count)):
        extract = ces.decode_extract(encode(signed.extract(keep)))
        ces.verify(extract, signed.parts(keep), signed.key)
        if form == "merkle":
            assert len(extract.hashes) <= 32 * min(count - len(keep), 12 * len(keep))
    if form == "merkle":
        assert len(encode(signed.extract([count - 1]))) < 1200
    with pytest.raises(Malformed):
        make((*messages, b"one more"))


# --- what is refused


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


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 100_000])
def test_a_lengthened_or_shortened_message_is_refused_at_every_size(size: int) -> None:
    message = bytes(size)
    signed = signed_with(messages=(message, b"other"))
    ces.verify(signed.extract([0]), signed.parts([0]), signed.key)
    for changed in (message + b"\0", message[:-1], message[:-1] + b"\1"):
        if changed != message:
            with pytest.raises(Unauthentic):
                ces.verify(signed.extract([0]), {0: (signed.full.tag(0), changed)}, signed.key)


def test_a_changed_added_or_missing_hash_is_refused(signed: Signed) -> None:
    extract = signed.extract(SHARED)
    for at in range(0, len(extract.hashes), 16):
        with pytest.raises(Unauthentic):
            ces.verify(
                msgspec.structs.replace(extract, hashes=flip(extract.hashes, at)),
                signed.parts(SHARED),
                signed.key,
            )
    for hashes in (
        b"",
        extract.hashes[:-1],
        extract.hashes[:-32],
        extract.hashes[32:],
        extract.hashes + b"\0",
        extract.hashes + bytes(32),
    ):
        with pytest.raises(Malformed, match="exactly the hashes"):
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
            verify_full(msgspec.structs.replace(signed.full, signature=bad), MESSAGES, *signed.key)


def test_swapped_positions_are_refused(signed: Signed) -> None:
    parts = signed.parts(SHARED)
    parts[1], parts[2] = parts[2], parts[1]
    extract = signed.extract(SHARED)
    with pytest.raises(Unauthentic):
        ces.verify(extract, parts, signed.key)
    first, second, rest = extract.hashes[:32], extract.hashes[32:64], extract.hashes[64:]
    with pytest.raises(Unauthentic):
        ces.verify(
            msgspec.structs.replace(extract, hashes=second + first + rest), signed.parts(SHARED), signed.key
        )


def test_another_selection_than_the_one_cut_is_refused(signed: Signed) -> None:
    extract = signed.extract(SHARED)
    for selection in ((0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 7), (2, 3, 4, 5, 6, 7)):
        moved = dict(zip(selection, signed.parts(SHARED).values(), strict=True))
        with pytest.raises((Unauthentic, Malformed)):
            ces.verify(msgspec.structs.replace(extract, selection=part_set(selection)), moved, signed.key)


@given(data=st.data())
def test_nothing_of_two_records_or_two_versions_of_one_can_be_mixed(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    change = data.draw(
        st.sampled_from([{}, {"record": b"S" * 16}, {"created_ms": 1}, {"messages": (b"new", *MESSAGES[1:])}])
    )
    count = len(MESSAGES)
    tags = [bytes([i]) * 32 * count for i in (1, 2)]
    # the second version reuses the tags of the first, the worst that a doctor can do; or draws its own
    same_tags = data.draw(st.booleans())
    old = signed_with(form=form, random=lambda _: tags[0])
    new = signed_with(form=form, random=lambda _: tags[0 if same_tags else 1], **change)
    if new.full == old.full:
        return
    keep = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    mine, theirs = old.extract(keep), new.extract(keep)
    fields = data.draw(st.sets(st.sampled_from(["header", "hashes", "signature"]), min_size=1, max_size=3))
    mixed = msgspec.structs.replace(mine, **{name: getattr(theirs, name) for name in fields})
    parts = old.parts(keep) | new.parts(data.draw(st.sets(st.sampled_from(sorted(keep)))))
    accepted = []
    for whole in (old, new):
        if mixed == whole.extract(keep) and parts == whole.parts(keep):
            accepted.append(whole)
    if accepted:
        ces.verify(mixed, parts, old.key)
    else:
        with pytest.raises(Unauthentic):
            ces.verify(mixed, parts, old.key)


def test_extracts_of_one_signature_share_a_header_and_those_of_two_never_do() -> None:
    first, second = signed_with(), signed_with()
    assert first.extract([1]).header == first.extract([2, 3]).header
    assert first.extract([1]).header != second.extract([1]).header
    changed = signed_with(messages=(b"new", *MESSAGES[1:]), random=lambda _: first.full.tags)
    assert changed.full.tags == first.full.tags
    assert changed.full.header != first.full.header


@pytest.mark.parametrize(
    "change",
    [
        {"record": b"S" * 16},
        {"patient": b"Q" * 32},
        {"doctor": b"E" * 32},
        {"created_ms": 1_700_000_000_001},
        {"profile": "safe"},
        {"count": 10},
        {"count": 8},
        {"root": b"r" * 32},
        {"rules": (ceas.least(1, ceas.part_set([1, 2])),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_header_field_is_refused(signed: Signed, change: dict[str, Any]) -> None:
    forged = msgspec.structs.replace(signed.full.header, **change)
    extract = msgspec.structs.replace(signed.extract(SHARED), header=forged)
    with pytest.raises((Unauthentic, Malformed)):
        ces.verify(extract, signed.parts(SHARED), signed.key)
    with pytest.raises((Unauthentic, Malformed)):
        verify_full(msgspec.structs.replace(signed.full, header=forged), MESSAGES, *signed.key)


def test_an_extract_of_one_form_is_refused_as_the_other_even_with_hashes_that_would_fit() -> None:
    for form, other in (FORMS, FORMS[::-1]):
        signed = signed_with(form=form)
        for keep in (range(9), SHARED, [0]):
            forged = msgspec.structs.replace(signed.full.header, form=other)
            hashes = commitvector.opening(
                other,
                9,
                {
                    i: b""
                    if i in keep
                    else commitvector.commit(b"R" * 16, i, signed.full.tag(i), MESSAGES[i])
                    for i in range(9)
                },
            )
            extract = msgspec.structs.replace(signed.extract(keep), header=forged, hashes=hashes)
            with pytest.raises(Unauthentic):
                ces.verify(extract, signed.parts(keep), signed.key)
            # nor with the root that the other form has: that is another header than the one signed
            root = commitvector.root(
                other,
                9,
                {i: commitvector.commit(b"R" * 16, i, signed.full.tag(i), MESSAGES[i]) for i in range(9)},
            )
            extract = msgspec.structs.replace(extract, header=msgspec.structs.replace(forged, root=root))
            with pytest.raises(Unauthentic, match="header was changed"):
                ces.verify(extract, signed.parts(keep), signed.key)


def test_a_record_cannot_be_shortened_or_lengthened() -> None:
    for form in FORMS:
        signed = signed_with(form=form)
        keep = range(8)
        shorter = msgspec.structs.replace(
            signed.extract(keep), header=msgspec.structs.replace(signed.full.header, count=8), hashes=b""
        )
        with pytest.raises(Unauthentic):
            ces.verify(shorter, signed.parts(keep), signed.key)
        # the duplicated last leaf that makes two trees one where odd nodes are paired with themselves
        longer = msgspec.structs.replace(
            signed.extract(range(9)),
            header=msgspec.structs.replace(signed.full.header, count=10),
            selection=part_set(range(10)),
        )
        with pytest.raises(Unauthentic):
            ces.verify(longer, signed.parts(range(9)) | {9: signed.parts([8])[8]}, signed.key)


def test_another_doctors_key_does_not_verify(signed: Signed) -> None:
    with pytest.raises(Unauthentic):
        ces.verify(signed.extract(SHARED), signed.parts(SHARED), (signed.suite, OTHERS[signed.suite].public))


def test_a_record_of_one_suite_is_refused_under_a_key_of_the_other(signed: Signed) -> None:
    other = next(s for s in ces.SUITES if s != signed.suite)
    with pytest.raises(Unauthentic, match="certified key"):
        ces.verify(signed.extract(SHARED), signed.parts(SHARED), (other, SIGNERS[other].public))


def test_an_unknown_suite_or_form_is_refused_by_name(signed: Signed) -> None:
    strange = msgspec.structs.replace(
        signed.extract(SHARED), header=re_signed(signed, suite="ces-rot13").header
    )
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.verify(strange, signed.parts(SHARED), signed.key)
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.verify(signed.extract(SHARED), signed.parts(SHARED), ("ces-rot13", b""))
    with pytest.raises(Malformed, match="ces-rot13"):
        ces.CesSigner.generate("ces-rot13")
    with pytest.raises(Malformed, match="bonsai"):
        ces.decode_full(encode(re_signed(signed, form="bonsai")))
    with pytest.raises(Malformed, match="bonsai"):
        make(form="bonsai")


def test_a_strange_signer_is_refused_at_signing() -> None:
    class Strange:
        suite, public = "ces-rot13", b""

        def sign(self, payload: bytes) -> bytes:
            raise AssertionError("asked to sign")

    with pytest.raises(Malformed, match="ces-rot13"):
        ces.sign(MESSAGES, Strange(), **ABOUT)


# --- what an extract says about what was removed


def test_an_extract_holds_neither_removed_parts_nor_any_tag(signed: Signed) -> None:
    wire = encode(signed.extract(SHARED))
    for i, message in enumerate(MESSAGES):
        assert signed.full.tag(i) not in wire
        assert message not in wire


def test_who_knows_a_removed_part_but_not_its_tag_cannot_confirm_it_by_hashing() -> None:
    messages = (b"female", b"diagnosis")
    twice = [make(messages) for _ in range(2)]
    assert len({full.extract(full.commitments(messages), [1]).hashes for full in twice}) == 2
    assert len({full.tag(i) for full in twice for i in (0, 1)}) == 4


@given(
    form=st.sampled_from(FORMS),
    count=st.integers(2, 40),
    data=st.data(),
)
def test_an_extract_depends_on_a_removed_part_only_through_its_commitment(
    form: commitvector.Form, count: int, data: st.DataObject
) -> None:
    """Two records that differ in removed parts alone, in an ideal world where commitments are random whatever they are to:
    every byte of the two extracts is the same. So all an extract says of a removed part is a SHA-256 under a tag of 32 bytes
    that the extract does not have."""
    keep = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    removed = st.tuples(*[st.binary(max_size=8) if i not in keep else st.just(b"kept") for i in range(count)])
    worlds = data.draw(removed), data.draw(removed)
    tags = data.draw(st.binary(min_size=32 * count, max_size=32 * count))

    def ideal(record: bytes, index: int, tag: bytes, message: bytes) -> bytes:
        seen = message if index in keep else b""
        return hashlib.sha256(record + bytes([index]) + tag + seen).digest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ces, "commit", ideal)
        extracts = [
            encode(Signed(ces.ED25519, full, messages).extract(keep))
            for messages in worlds
            for full in [make(messages, form=form, random=lambda _: tags)]
        ]
    assert extracts[0] == extracts[1]
    real = [
        Signed(ces.ED25519, make(messages, form=form, random=lambda _: tags), messages).extract(keep)
        for messages in worlds
    ]
    assert len({(len(e.hashes), e.selection) for e in real}) == 1


def test_tags_are_drawn_anew_for_every_part_and_signature() -> None:
    asked: list[int] = []

    def random_bytes(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    make(random=random_bytes)
    assert sum(asked) == 32 * len(MESSAGES)
    fulls = [make() for _ in range(3)]
    assert len({full.tag(i) for full in fulls for i in range(9)}) == 27


# --- selections and counts


def test_parts_other_than_the_kept_ones_are_refused(signed: Signed) -> None:
    for keep in (SHARED[:-1], (*SHARED, 7), (*SHARED[:-1], 7), ()):
        with pytest.raises(Malformed, match="not exactly"):
            ces.verify(signed.extract(SHARED), signed.parts(keep), signed.key)


@pytest.mark.parametrize("keep", [[], [9], [-1], [1, 1], [1, 100_000]])
def test_an_impossible_selection_is_refused(keep: list[int]) -> None:
    for form in FORMS:
        signed = signed_with(form=form)
        with pytest.raises(Malformed):
            signed.extract(keep)
        with pytest.raises(Malformed):
            signed.extract(SHARED).reduce(signed.parts(SHARED), keep)


@pytest.mark.parametrize("selection", [b"", b"\x7e\x00", b"\x00\x04", b"\x00", b"\xff" * 512])
def test_a_selection_that_is_empty_beyond_the_record_or_not_as_short_as_it_can_be_is_refused(
    selection: bytes,
) -> None:
    for form in FORMS:
        signed = signed_with(form=form)
        extract = msgspec.structs.replace(signed.extract(SHARED), selection=selection)
        parts = {i: signed.parts([i % 9])[i % 9] for i in extract.kept}
        with pytest.raises(Malformed, match="part"):
            ces.verify(extract, parts, signed.key)
        with pytest.raises(Malformed, match="part"):
            extract.reduce(signed.parts(range(9)), [1])


def test_a_wrong_number_of_messages_or_tags_is_refused() -> None:
    signed = signed_with()
    right = signed.full.commitments(MESSAGES)
    for commitments in (right[:-1], [*right, bytes(32)]):
        with pytest.raises(Malformed, match="9 parts"):
            ces.verify_full(signed.full, commitments, *signed.key)
        with pytest.raises(Malformed, match="9 parts"):
            signed.full.extract(commitments, SHARED)
    with pytest.raises(Malformed, match="commit to the parts first"):
        signed.full.extract(MESSAGES, SHARED)
    with pytest.raises(Malformed, match="tag of part 9"):
        signed.full.commitments((*MESSAGES, b"more"))
    for tags in (signed.full.tags[:-32], signed.full.tags + b"t" * 32, signed.full.tags[:-1]):
        with pytest.raises(Malformed, match="9 parts"):
            ces.verify_full(msgspec.structs.replace(signed.full, tags=tags), right, *signed.key)


@pytest.mark.parametrize(
    "change", [{"record": b"short"}, {"created_ms": -1}, {"profile": "x" * 129}, {"messages": ()}]
)
def test_a_header_out_of_bounds_is_not_signed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        make(**change)


def test_the_largest_header_that_can_be_signed_still_makes_decodable_objects() -> None:
    count = ceas.MAX_PARTS
    everything = part_set(range(count))
    # four sets of 512 bytes each: 256 such rules come close to the limit of a header
    gates = (ceas.Gate(1, everything, ()), ceas.Gate(2, everything, ()), ceas.Gate(3, everything, ()))
    rule = ceas.Rule(ceas.ALWAYS, ceas.Gate(1, everything, gates))
    messages = (b"",) * count
    signed = signed_with(*(rule,) * 250, messages=messages)
    assert len(encode(signed.full.header)) > ces.MAX_HEADER - 16_000
    verify_full(ces.decode_full(encode(signed.full)), messages, *signed.key)
    extract = ces.decode_extract(encode(signed.extract([3])))
    ces.verify(extract, signed.parts([3]), signed.key)
    with pytest.raises(Malformed, match="limit"):
        signed_with(*(rule,) * 256, messages=messages)


# --- rules


def test_rules_let_through_what_they_say_and_nothing_else() -> None:
    signed = signed_with(
        ceas.together(part_set([2, 3])), ceas.never(part_set([8]), 9), ceas.least(2, part_set([4, 5, 6]))
    )
    for keep in ([4, 5], [2, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6, 7], range(9)):
        ces.verify(signed.extract(keep), signed.parts(keep), signed.key)
    for keep, rule in (([2, 4, 5], 1), ([3, 4, 5], 1), ([4, 5, 8], 2), (range(1, 9), 2), ([4], 3), ([0], 3)):
        with pytest.raises(Denied, match=f"rule {rule} "):
            signed.extract(keep)


def test_an_extract_cut_by_hand_against_the_rules_is_denied_by_its_verifier() -> None:
    for form in FORMS:
        signed = signed_with(ceas.together(part_set([2, 3])), form=form)
        free = msgspec.structs.replace(signed.full.header, rules=())
        lenient = msgspec.structs.replace(signed.full, header=free)
        forced = msgspec.structs.replace(
            lenient.extract(lenient.commitments(MESSAGES), [2]), header=signed.full.header
        )
        with pytest.raises(Denied, match="rule 1 "):
            ces.verify(forced, signed.parts([2]), signed.key)


def test_a_rule_that_makes_no_sense_is_neither_signed_nor_accepted() -> None:
    rule = ceas.least(3, part_set([1, 2]))
    with pytest.raises(Malformed, match="3 of 2"):
        signed_with(rule)
    by_a_careless_doctor = ces.decode_full(encode(re_signed(signed_with(), rules=(rule,))))
    key = ces.ED25519, SIGNERS[ces.ED25519].public
    with pytest.raises(Malformed, match="3 of 2"):
        verify_full(by_a_careless_doctor, MESSAGES, *key)
    with pytest.raises(Malformed, match="3 of 2"):
        by_a_careless_doctor.extract(by_a_careless_doctor.commitments(MESSAGES), [1])


GATES = st.recursive(
    st.builds(
        lambda s, k: ceas.Gate(1 + k % len(s), ceas.part_set(s), ()),
        st.sets(st.integers(0, 5), min_size=1),
        st.integers(0, 5),
    ),
    lambda inner: st.builds(
        lambda s, gates, k: ceas.Gate(1 + k % (len(s) + len(gates)), ceas.part_set(s), tuple(gates)),
        st.sets(st.integers(0, 5)),
        st.lists(inner, min_size=1, max_size=3),
        st.integers(0, 8),
    ),
    max_leaves=6,
)
RULES = st.lists(st.builds(ceas.Rule, st.one_of(st.just(ceas.ALWAYS), GATES), GATES), max_size=3)


def holds(gate: ceas.Gate, keep: set[int]) -> bool:
    """Gates, said again in other words than the code's."""
    parts = [i in keep for i in range(6) if ceas.part_set([i])[0] & (gate.parts or b"\0")[0]]
    return (parts + [holds(inner, keep) for inner in gate.gates]).count(True) >= gate.k


@given(
    messages=st.lists(st.binary(max_size=64), min_size=6, max_size=6).map(tuple),
    rules=RULES,
    form=st.sampled_from(FORMS),
    keep=st.sets(st.integers(0, 5), min_size=1),
    again=st.sets(st.integers(0, 5)),
)
def test_every_allowed_selection_verifies_and_every_other_is_refused_by_who_extracts_and_who_verifies(
    messages: tuple[bytes, ...],
    rules: list[ceas.Rule],
    form: commitvector.Form,
    keep: set[int],
    again: set[int],
) -> None:
    signed = signed_with(*rules, messages=messages, form=form)

    def allowed(kept: set[int]) -> bool:
        return all(not holds(rule.when, kept) or holds(rule.then, kept) for rule in rules)

    assert allowed(set(range(6))), "the complete record is always allowed"
    if not allowed(keep):
        with pytest.raises(Denied):
            signed.extract(keep)
        free = msgspec.structs.replace(
            signed.full, header=msgspec.structs.replace(signed.full.header, rules=())
        )
        forced = msgspec.structs.replace(
            free.extract(free.commitments(messages), keep), header=signed.full.header
        )
        with pytest.raises(Denied):
            ces.verify(forced, signed.parts(keep), signed.key)
        return
    extract = ces.decode_extract(encode(signed.extract(keep)))
    assert extract.kept == tuple(sorted(keep))
    ces.verify(extract, signed.parts(keep), signed.key)
    victim = min(keep)
    forged = signed.parts(keep) | {victim: (signed.full.tag(victim), messages[victim] + b"!")}
    with pytest.raises(Unauthentic):
        ces.verify(extract, forged, signed.key)
    smaller = (keep & again) or keep
    if allowed(smaller):
        assert extract.reduce(signed.parts(keep), smaller) == signed.extract(smaller)
    else:
        with pytest.raises(Denied):
            extract.reduce(signed.parts(keep), smaller)


# --- extracts of extracts


@given(data=st.data())
def test_an_extract_of_an_extract_is_the_extract_made_at_once(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 70))
    messages = tuple(b"%d" % i for i in range(count))
    signed = signed_with(messages=messages, form=data.draw(st.sampled_from(FORMS)))
    keep = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    current = signed.extract(keep)
    for _ in range(3):
        smaller = data.draw(st.sets(st.sampled_from(sorted(keep)), min_size=1))
        gone = {i: part for i, part in signed.parts(keep).items() if i not in smaller}
        current = current.reduce(gone, smaller)
        keep = smaller
        assert encode(current) == encode(signed.extract(keep))
    ces.verify(current, signed.parts(keep), signed.key)


def test_reducing_obeys_the_rules_and_needs_the_removed_parts() -> None:
    for form in FORMS:
        signed = signed_with(ceas.together(part_set([2, 3])), form=form)
        extract = signed.extract([1, 2, 3])
        with pytest.raises(Denied):
            extract.reduce(signed.parts([1, 2, 3]), [1, 2])
        with pytest.raises(Malformed, match="missing"):
            extract.reduce(signed.parts([1, 2]), [1])
        with pytest.raises(Malformed):
            extract.reduce(signed.parts([1, 2, 3]), [1, 4])


# --- decoders and keys


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
    rules = (ceas.together(part_set([2, 3])), ceas.least(1, part_set([1, 2])))
    signed = signed_with(*rules, form=data.draw(st.sampled_from(FORMS)))
    wire = bytearray(encode(signed.extract(SHARED)))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DiptychError):
        ces.verify(ces.decode_extract(bytes(wire)), signed.parts(SHARED), signed.key)


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused_with_a_sentence(data: bytes) -> None:
    for decode in (ces.decode_header, ces.decode_full, ces.decode_extract, ces.CesSigner.from_bytes):
        with pytest.raises(Malformed):
            decode(data)


ANY_EXTRACT = st.builds(
    ces.Extract,
    st.builds(
        ces.Header,
        st.sampled_from((*ces.SUITES, "x")),
        st.sampled_from(FORMS),
        st.just(b"R" * 16),
        st.just(b"P" * 32),
        st.just(b"D" * 32),
        st.just(0),
        st.just(""),
        st.integers(1, 12),
        RULES.map(tuple),
        st.just(b"r" * 32),
    ),
    st.binary(min_size=1, max_size=3),
    st.integers(0, 12).flatmap(lambda n: st.binary(min_size=32 * n, max_size=32 * n)),
    st.binary(max_size=64),
)


@given(extract=ANY_EXTRACT, keep=st.sets(st.integers(0, 12)))
def test_any_well_typed_extract_is_refused_in_bounded_work(extract: ces.Extract, keep: set[int]) -> None:
    """What a stranger can send: everything of the right types, nothing signed."""
    received = ces.decode_extract(encode(extract))
    parts = {i: (bytes(32), b"m") for i in received.kept}
    with pytest.raises(DiptychError):
        ces.verify(received, parts, (ces.ED25519, SIGNERS[ces.ED25519].public))
    try:
        smaller = received.reduce(parts, keep)
        assert set(smaller.kept) == keep
    except DiptychError:
        pass


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
    verify_full(ces.sign(MESSAGES, signer, **ABOUT), MESSAGES, *signed.key)


def test_damaged_signer_bytes_are_refused_without_showing_them() -> None:
    small = rsa.generate_private_key(65537, 2048)
    for suite in ces.SUITES:
        good = SIGNERS[suite].to_bytes()
        damaged = [
            good + b"\0",
            good[:-1],
            b"",
            encode((suite, b"no key")),
            encode(("ces-rot13", b"no key")),
            encode((ces.RSA_PSS, bytes(32))),
        ]
        for bad in damaged:
            with pytest.raises(Malformed):
                ces.CesSigner.from_bytes(bad)
    with pytest.raises(Malformed, match="3072 bits"):
        ces.CesSigner(small)


def test_rsa_verification_refuses_keys_of_other_kinds_sizes_and_encodings() -> None:
    signed = Signed(ces.RSA_PSS, make(suite=ces.RSA_PSS))
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    bad_keys = [
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(*spki),
        ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*spki),
        SIGNERS[ces.RSA_PSS].public + b"\0",
        SIGNERS[ces.ED25519].public,
        b"",
    ]
    for public in bad_keys * 2:
        with pytest.raises(Malformed):
            ces.verify(signed.extract(SHARED), signed.parts(SHARED), (ces.RSA_PSS, public))


class Lazy(Sequence[bytes]):
    """Messages that are read as they are asked for, and say how many are alive at once."""

    alive, most = 0, 0

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> bytes:
        if not 0 <= index < self._count:
            raise IndexError
        return Counted(b"%d" % index * 100)


class Counted(bytes):
    def __new__(cls, content: bytes) -> "Counted":
        made = super().__new__(cls, content)
        Lazy.alive += 1
        Lazy.most = max(Lazy.most, Lazy.alive)
        return made

    def __del__(self) -> None:
        Lazy.alive -= 1


def test_no_more_than_one_message_is_held_at_a_time_while_signing_cutting_and_verifying() -> None:
    messages = Lazy(300)
    full = ces.sign(messages, SIGNERS[ces.ED25519], **ABOUT)
    commitments = full.commitments(messages)
    key = (ces.ED25519, SIGNERS[ces.ED25519].public)
    ces.verify_full(full, commitments, *key)

    class Opened(Mapping[int, tuple[bytes, bytes]]):
        def __getitem__(self, index: int) -> tuple[bytes, bytes]:
            return full.tag(index), messages[index]

        def __iter__(self) -> Iterator[int]:
            return iter(range(200))

        def __len__(self) -> int:
            return 200

    ces.verify(full.extract(commitments, range(200)), Opened(), key)
    assert Lazy.most <= 2, "the next is read while the last is let go"
