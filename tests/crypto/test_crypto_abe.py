"""What holds for every CP-ABE scheme: against a slow second implementation, and in the hands of others."""

import hashlib
import itertools
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import crypto_reference
import msgspec
import py_arkworks_bls12381 as ark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crypto_fabeo import outside_the_subgroup

from crypto import abe, schemes
from crypto.abe import decapsulate, encapsulate
from crypto.codec import encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.group import G1, G2, ORDER
from crypto.policy import Attribute, coefficients, parse
from crypto.schemes import SCHEMES, read_attributes, read_master, read_public

A, B, C = "has:a", "has:b", "has:c"
ATTRIBUTES = [A, B, C, *(f"status:active@{week}" for week in ("2026w01", "2026w47", "2027w02"))]
CONTEXT = b"record 7, class shared, version 3"
TEXT = f"{A} and (2 of ({A}, {B}, {C}) or status:active@2026w47)"


def drawing(seed):
    """Random bytes that depend on nothing but `seed`, for one use."""
    drawn = iter(range(1 << 30))
    return lambda size: hashlib.shake_256(f"{seed} {next(drawn)}".encode()).digest(size)


def scalars_of(random):
    """The scalars that an implementation makes of the same bytes."""
    while True:
        yield from crypto_reference.scalars(random(48))


def tree_of(node):
    return node.name if isinstance(node, Attribute) else (node.k, tuple(map(tree_of, node.children)))


def scheme_of(name):
    master = SCHEMES[name].master.generate(drawing("master"))
    other = SCHEMES[name].master.generate(drawing("other master"))
    header, key = encapsulate(master.public, TEXT, CONTEXT, drawing("m"))
    return SimpleNamespace(
        name=name,
        master=master,
        public=master.public,
        other=other,
        holder=master.issue([A, B], drawing("holder")),
        reference=crypto_reference.SCHEMES[name](scalars_of(drawing("master"))),
        header=header,
        key=key,
    )


ALL = {name: scheme_of(name) for name in SCHEMES}
each_scheme = pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)


def gate(children):
    return st.lists(children, min_size=2, max_size=3).flatmap(
        lambda inside: st.integers(1, len(inside)).map(lambda k: f"{k} of ({', '.join(inside)})")
    )


trees = st.recursive(st.sampled_from(ATTRIBUTES), gate, max_leaves=5).filter(
    lambda text: max(abe.occurrences(parse(text))) <= 4
)


# --- against the reference ---


@each_scheme
def test_the_reference_makes_the_same_keys_byte_for_byte(scheme):
    assert crypto_reference.master_key(scheme.reference) == scheme.master.to_bytes()
    assert crypto_reference.public_key(scheme.reference) == scheme.public.to_bytes()
    names = [C, A, "status:active@2026w47", "status:active@2031w52"]
    expected = crypto_reference.attribute_key(scheme.reference, names, scalars_of(drawing(1)))
    assert scheme.master.issue(names, drawing(1)).to_bytes() == expected


@each_scheme
@settings(max_examples=20, deadline=None)
@given(text=trees, m=st.binary(min_size=32, max_size=32), context=st.binary(max_size=40))
def test_the_reference_makes_the_same_header_and_key_byte_for_byte(scheme, text, m, context):
    policy = parse(text)
    sealed = crypto_reference.seal(scheme.reference, str(policy), tree_of(policy.root), context, m)
    assert encapsulate(scheme.public, text, context, lambda size: m) == sealed


HELD = [{A}, {A, "status:active@2026w47"}, {B, C}, {"status:active@2027w02"}]


@cache
def two_keys(name, number):
    """For the attributes `HELD[number]`: the bytes of a key of ours and of one of the reference."""
    held, scheme = HELD[number], ALL[name]
    theirs = crypto_reference.attribute_key(scheme.reference, held, scalars_of(drawing(2)))
    return scheme.master.issue(held).to_bytes(), theirs


@each_scheme
@settings(max_examples=20, deadline=None)
@given(text=trees, number=st.integers(0, len(HELD) - 1))
def test_each_opens_what_the_other_sealed_and_only_for_who_satisfies_the_policy(scheme, text, number):
    policy = parse(text)
    allowed = policy.satisfied(HELD[number])
    header, key = encapsulate(scheme.public, text, CONTEXT)
    for made in two_keys(scheme.name, number):
        tree = tree_of(policy.root)
        opened = crypto_reference.unseal(scheme.reference, made, str(policy), tree, header, CONTEXT)
        assert opened == (key if allowed else None)
        holder = read_attributes(made)
        if allowed:
            assert decapsulate(scheme.public, holder, text, header, CONTEXT) == key
        else:
            with pytest.raises(Denied):
                decapsulate(scheme.public, holder, text, header, CONTEXT)


# --- large policies ---


@each_scheme
@pytest.mark.parametrize("form", ["and", "or", "100 of", "pairs"])
def test_policies_of_two_hundred_leaves_are_parsed_sealed_and_opened(scheme, form):
    names = [f"group:{i:03}" for i in range(200)]
    pairs = " or ".join(f"({a} and {b})" for a, b in itertools.pairwise(names[:101]))
    text, held = {
        "and": (" and ".join(names), names),
        "or": (" or ".join(names), names[-1:]),
        "100 of": (f"100 of ({', '.join(names)})", names[50:150]),
        "pairs": (pairs, names[7:9]),
    }[form]
    policy = parse(text)
    assert len(policy.leaves) == 200
    assert parse(str(policy)) == policy
    assert not policy.satisfied(held[1:])
    header, key = encapsulate(scheme.public, text, CONTEXT)
    assert decapsulate(scheme.public, scheme.master.issue(held), text, header, CONTEXT) == key
    with pytest.raises(Denied):
        decapsulate(scheme.public, scheme.holder, text, header, CONTEXT)


def test_a_key_has_a_bounded_number_of_attributes_and_time_bound_ones_count_more():
    master, week = ALL["fabeo"].master, [f"{'a' * 110}:{i}@2097w51" for i in range(9)]
    most = master.issue(week + [f"b:{i}" for i in range(4)])
    assert read_attributes(most.to_bytes()).attributes == most.attributes
    for names in (
        [*week, *(f"b:{i}" for i in range(5))],
        [*week, "c:1@2020w01"],
        [],
        ["doctor"],
        ["a:b@2026w99"],
    ):
        with pytest.raises(Malformed):
            master.issue(names)


# --- headers in the hands of others ---


def rebuilt(scheme, header=None, **changes):
    names = ("suite", "seeds", "rows", "masked")
    fields = dict(zip(names, msgspec.msgpack.decode(header or scheme.header), strict=True))
    return encode(tuple({**fields, **changes}.values()))


def refused(
    scheme, header, holder=None, public=None, text=TEXT, context=CONTEXT, error=(Malformed, Unauthentic)
):
    with pytest.raises(error):
        decapsulate(public or scheme.public, holder or scheme.holder, text, header, context)


@each_scheme
def test_a_header_with_a_byte_changed_is_refused_wherever_it_is(scheme):
    assert decapsulate(scheme.public, scheme.holder, TEXT, scheme.header, CONTEXT) == scheme.key
    size = len(scheme.header)
    for position in {*range(60), *range(60, size, 7), *range(size - 40, size)}:
        changed = bytearray(scheme.header)
        changed[position] ^= 1 << position % 8
        refused(scheme, bytes(changed))


@each_scheme
def test_a_header_opens_in_no_other_record_policy_or_network(scheme):
    everything = [A, B, C, "status:active@2026w47"]
    key = scheme.master.issue(everything)
    for holder, public, text, context in (
        (key, scheme.public, TEXT, b"record 8, class shared, version 3"),
        (key, scheme.public, TEXT, CONTEXT + b"\0"),
        (key, scheme.public, TEXT, b""),
        (key, scheme.public, f"{A} and (2 of ({A}, {C}, {C}) or status:active@2026w47)", CONTEXT),
        (key, scheme.public, f"{A} and (2 of ({A}, {B}, {C}) or status:active@2026w46)", CONTEXT),
        (key, scheme.public, A, CONTEXT),
        (key, scheme.other.public, TEXT, CONTEXT),
        (scheme.other.issue(everything), scheme.public, TEXT, CONTEXT),
        (scheme.other.issue(everything), scheme.other.public, TEXT, CONTEXT),
    ):
        refused(scheme, scheme.header, holder, public, text, context, Unauthentic)


@each_scheme
def test_parts_of_two_headers_put_together_open_nothing(scheme):
    """Headers of two records under one policy, and of one record twice."""
    for context in (CONTEXT, b"record 8"):
        other, _ = encapsulate(scheme.public, TEXT, context)
        _, seeds, rows, masked = msgspec.msgpack.decode(other)
        for changes in (
            {"seeds": seeds},
            {"rows": rows},
            {"masked": masked},
            {"seeds": seeds, "rows": rows},
            {"seeds": seeds, "masked": masked},
            {"rows": rows, "masked": masked},
        ):
            for place in (CONTEXT, context):
                refused(scheme, rebuilt(scheme, **changes), context=place)


@each_scheme
def test_a_header_multiplied_by_hand_so_that_the_plain_scheme_would_open_it_is_refused(scheme):
    policy = parse(TEXT)
    _, seeds, rows, masked = msgspec.msgpack.decode(scheme.header)
    weights = coefficients(policy, scheme.holder.attributes, ORDER)

    def hidden(seeds, rows):
        return scheme.holder.reveal(policy, weights, abe.cut(seeds, 96), abe.cut(rows, 48))

    more_seeds, more_rows = (
        kind.encode([kind.from_bytes(part) * 2 for part in abe.cut(data, kind.SIZE)])
        for kind, data in ((G2, seeds), (G1, rows))
    )
    before, after = hidden(seeds, rows), hidden(more_seeds, more_rows)
    assert after == before**2
    suite = scheme.public.suite
    adapted = abe.xor(masked, abe.xor(abe.mask(suite, before), abe.mask(suite, after)))
    for header in (
        rebuilt(scheme, seeds=more_seeds, rows=more_rows),
        rebuilt(scheme, seeds=more_seeds, rows=more_rows, masked=adapted),
    ):
        refused(scheme, header, error=Unauthentic)


@each_scheme
@pytest.mark.parametrize("bad", ["identity", "outside"])
def test_an_identity_or_a_point_outside_the_subgroup_is_refused_in_every_place(scheme, bad):
    _, seeds, rows, _ = msgspec.msgpack.decode(scheme.header)
    for field, data, other in (("seeds", seeds, ark.G2Point), ("rows", rows, ark.G1Point)):
        point = other.identity().to_compressed_bytes() if bad == "identity" else outside_the_subgroup(other)
        for start in range(0, len(data), len(point)):
            changed = data[:start] + point + data[start + len(point) :]
            refused(scheme, rebuilt(scheme, **{field: changed}))


@each_scheme
def test_a_header_with_too_many_or_too_few_points_is_refused(scheme):
    _, seeds, rows, _ = msgspec.msgpack.decode(scheme.header)
    for changes in (
        {"seeds": seeds[:-96]},
        {"seeds": seeds + seeds[:96]},
        {"rows": rows[:-48]},
        {"rows": rows + rows[:48]},
        {"rows": b""},
        {"seeds": b""},
        {"rows": rows[:-1]},
    ):
        refused(scheme, rebuilt(scheme, **changes))


# --- one scheme under the other, and unknown ones ---


@pytest.mark.parametrize(("mine", "theirs"), [("fabeo", "fame"), ("fame", "fabeo")])
def test_objects_of_one_scheme_are_refused_by_name_under_the_other(mine, theirs):
    mine, theirs = ALL[mine], ALL[theirs]
    name = theirs.public.suite
    for public, holder, header in (
        (mine.public, mine.holder, theirs.header),
        (mine.public, theirs.holder, mine.header),
        (mine.public, theirs.holder, theirs.header),
    ):
        with pytest.raises(Malformed, match=name):
            decapsulate(public, holder, TEXT, header, CONTEXT)
    kinds = SCHEMES[mine.name]
    for kind, key in (
        (kinds.master, theirs.master),
        (kinds.public, theirs.public),
        (kinds.attributes, theirs.holder),
    ):
        with pytest.raises(Malformed, match=name):
            kind.from_bytes(key.to_bytes())


@pytest.mark.parametrize(("mine", "theirs"), [("fabeo", "fame"), ("fame", "fabeo")])
def test_a_header_renamed_to_the_other_scheme_opens_nothing(mine, theirs):
    mine, theirs = ALL[mine], ALL[theirs]
    refused(mine, rebuilt(mine, theirs.header, suite=mine.public.suite))


@each_scheme
def test_keys_are_read_as_keys_of_the_scheme_that_they_name(scheme):
    kinds = SCHEMES[scheme.name]
    for read, key, kind in (
        (read_master, scheme.master, kinds.master),
        (read_public, scheme.public, kinds.public),
        (read_attributes, scheme.holder, kinds.attributes),
    ):
        again = read(key.to_bytes())
        assert type(again) is kind
        assert again.to_bytes() == key.to_bytes()
    reread = read_attributes(scheme.holder.to_bytes())
    assert (
        decapsulate(read_public(scheme.public.to_bytes()), reread, TEXT, scheme.header, CONTEXT) == scheme.key
    )
    assert read_master(scheme.master.to_bytes()).public.fingerprint == scheme.public.fingerprint


@pytest.mark.parametrize("read", [read_master, read_public, read_attributes])
def test_keys_of_an_unknown_suite_or_none_are_refused_by_name(read):
    with pytest.raises(Malformed, match="'waters-11' is unknown"):
        read(encode(("waters-11", b"")))
    for junk in (b"", b"\x90", encode((1,)), encode(("x" * 200,)), b"\xc1"):
        with pytest.raises(Malformed, match="no key"):
            read(junk)


@each_scheme
def test_no_secret_shows_when_a_key_is_printed(scheme):
    for key in (scheme.master, scheme.holder):
        secret = key.to_bytes()[-20:]
        assert secret.hex() not in repr(key)
        assert repr(secret) not in repr(key)
        assert A not in repr(key)


# --- decoders under fire ---


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(data):
    for read in (read_master, read_public, read_attributes):
        with pytest.raises(Malformed):
            read(data)
    for scheme in ALL.values():
        refused(scheme, data, error=Malformed)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=9)
    | st.binary(max_size=200),
    lambda inside: st.lists(inside, max_size=4),
    max_leaves=8,
)


@each_scheme
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_an_object_with_fields_exchanged_or_bytes_changed_is_refused_or_is_the_same_again(scheme, data):
    kind = data.draw(st.sampled_from(["master", "public", "holder", "header"]))
    good = scheme.header if kind == "header" else getattr(scheme, kind).to_bytes()
    suite, *fields = msgspec.msgpack.decode(good)
    match data.draw(st.sampled_from(["field", "byte", "cut", "more"])):
        case "field":
            fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(values)
            changed = encode((suite, *fields))
        case "byte":
            position = data.draw(st.integers(0, len(good) - 1))
            changed = good[:position] + data.draw(st.binary(min_size=1, max_size=3)) + good[position + 1 :]
        case "cut":
            changed = good[: data.draw(st.integers(0, len(good) - 1))]
        case "more":
            changed = good + data.draw(st.binary(min_size=1, max_size=50))
    if changed == good:
        return
    if kind == "header":
        return refused(scheme, changed)
    read = {"master": read_master, "public": read_public, "holder": read_attributes}[kind]
    with suppress(Malformed):
        assert read(changed).to_bytes() == changed


def test_there_is_a_reference_and_a_name_for_every_scheme():
    assert set(SCHEMES) == set(crypto_reference.SCHEMES) == set(schemes.Name.__args__)
    assert len({scheme.master.suite for scheme in SCHEMES.values()}) == len(SCHEMES)
