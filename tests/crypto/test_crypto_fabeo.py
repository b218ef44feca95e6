"""Besides the ordinary promises, these tests attack FABEO by algebra, without `decapsulate`.

`can_open` decides in the model of `crypto_algebra` whether the hidden element can be computed, with the sharing and
occurrence numbers of the code. `one_seed` is the published mistake: a single t for all occurrences of an attribute.
"""

import itertools

import msgspec
import py_arkworks_bls12381 as ark
import pytest
from crypto_algebra import combination, computable, share_vectors, subsets
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import abe, fabeo
from crypto.codec import encode
from crypto.errors import Denied, Malformed, PolicyError, Unauthentic
from crypto.fabeo import AttributeKey, MasterKey, PublicKey, decapsulate, encapsulate
from crypto.group import (
    G1,
    G1_GENERATOR,
    G2,
    G2_GENERATOR,
    ORDER,
    hash_name,
    pairing_product,
    random_scalar,
)
from crypto.policy import coefficients, parse, share

A, B, C, D, H, N = (f"has:{letter}" for letter in "abcdhn")
CONTEXT = b"record 7, class shared, version 3"
MASTER = MasterKey.generate()
PUBLIC = MASTER.public
BASE = hash_name("fabeo-base", "")

BREAKABLE_WITH_ONE_SEED = [
    f"{A} and ({B} or {A})",
    f"({A} and ({B} or {C})) and ({D} or {A})",
    f"({A} and {B}) or ({B} and {C}) or ({A} and {C})",
    f"({D} and {H}) or ({N} and ({H} or {D}))",
    f"({D} or {N}) and ({H} or {D})",
    f"({A} or {B}) and ({A} or {C})",
]
OTHERS = [
    f"({A} and {B}) or ({A} and {C})",
    f"2 of ({A}, {B}, {C})",
    f"2 of ({A}, {B} and {C}, {A} and {D})",
    f"3 of ({A}, {A}, {B}, {C})",
    f"2 of ({A}, {B}, 2 of ({A}, {C}, {D}))",
    f"{A}",
]


def point_of(name):
    return hash_name("fabeo-attribute", name)


def per_occurrence(policy):
    return abe.occurrences(policy)


def one_seed(policy):
    return [1] * len(policy.leaves)


# --- the generic attacker ---


def can_open(policy, keys, occurrences, same_r=False):
    """Whether a holder of keys for the attribute sets `keys` can compute the hidden element of a header.

    The public key gives x in G1 and y in G2.
    """
    names = set(policy.leaves).union(*keys)
    g1 = [{(): 1}, {("x",): 1}, {("b",): 1}, *({(f"h {name}",): 1} for name in names)]
    g2 = [{(): 1}, {("y",): 1}, {("s",): 1}, *({(f"t{j}",): 1} for j in set(occurrences))]
    for vector, name, occurrence in zip(share_vectors(policy), policy.leaves, occurrences, strict=True):
        row = {("b", unknown): value for unknown, value in vector.items()}
        g1.append({**row, (f"h {name}", f"t{occurrence}"): 1})
    for number, held in enumerate(keys):
        r = "r" if same_r else f"r{number}"
        g1 += [{("x", "y"): 1, ("b", r): 1}, *({(f"h {name}", r): 1} for name in held)]
        g2.append({(r,): 1})
    return computable(g1, g2, [], {("s", "x", "y"): 1})


@pytest.mark.parametrize("text", BREAKABLE_WITH_ONE_SEED + OTHERS)
def test_the_generic_attacker_opens_exactly_what_the_attributes_allow(text):
    policy = parse(text)
    for held in subsets(policy.leaves):
        assert can_open(policy, [held], per_occurrence(policy)) == policy.satisfied(held), held


@pytest.mark.parametrize("text", BREAKABLE_WITH_ONE_SEED)
def test_the_generic_attacker_breaks_the_published_single_seed_variant(text):
    policy = parse(text)
    broken = [held for held in subsets(policy.leaves) if can_open(policy, [held], one_seed(policy))]
    assert any(not policy.satisfied(held) for held in broken)


def test_a_single_seed_is_enough_where_the_sharing_happens_to_allow_it():
    policy = parse(f"({A} and {B}) or ({A} and {C})")
    for held in subsets(policy.leaves):
        assert can_open(policy, [held], one_seed(policy)) == policy.satisfied(held)


@pytest.mark.parametrize(
    "text", [BREAKABLE_WITH_ONE_SEED[0], BREAKABLE_WITH_ONE_SEED[2], OTHERS[1], f"{A} and {B}"]
)
def test_colluders_open_only_what_one_of_them_may_open_alone(text):
    policy = parse(text)
    for pair in itertools.combinations(subsets(policy.leaves), 2):
        allowed = any(policy.satisfied(held) for held in pair)
        assert can_open(policy, list(pair), per_occurrence(policy)) == allowed, pair
        pooled = policy.satisfied(set.union(*pair))
        assert can_open(policy, list(pair), per_occurrence(policy), same_r=True) == pooled, pair


# --- the same attacks on real group elements ---


def attack_weights(policy, held):
    """Row weights that give the secret and, under one seed, cancel every attribute not in `held`."""
    unheld = set(policy.leaves) - held
    vectors = [
        {**vector, f"h {name}": int(name in unheld)}
        for vector, name in zip(share_vectors(policy), policy.leaves, strict=True)
    ]
    return combination(vectors, {"s": 1})


def attack(key, policy, weights, occurrences, seeds, rows):
    """What the weighted rows give a holder of `key`, with every seed where the scheme has it."""
    total = sum((row * weight for row, weight in zip(rows, weights, strict=True)), start=BASE - BASE)
    pairs = [(key._base, seeds[0]), (-total, key._randomizer)]
    for leaf, name in enumerate(policy.leaves):
        if name in key.attributes:
            pairs.append((key._points[name] * weights[leaf], seeds[occurrences[leaf]]))
    return pairing_product(pairs)


def single_seed_ciphertext(policy):
    s, t = random_scalar(), random_scalar()
    rows = [
        BASE * part + point_of(name) * t
        for part, name in zip(share(policy, s, random_scalar, ORDER), policy.leaves, strict=True)
    ]
    return [G2_GENERATOR * s, G2_GENERATOR * t], rows, PUBLIC.element**s


def opened(header):
    """The seeds and rows of a header as points."""
    _, seeds, rows, _ = msgspec.msgpack.decode(header)
    return (
        [G2.from_bytes(seeds[i : i + 96]) for i in range(0, len(seeds), 96)],
        [G1.from_bytes(rows[i : i + 48]) for i in range(0, len(rows), 48)],
    )


def hidden_element(header, policy):
    """What an authorised holder computes."""
    key = MASTER.issue(policy.leaves)
    _, seeds, rows, _ = msgspec.msgpack.decode(header)
    weights = coefficients(policy, key.attributes, ORDER)
    return key.reveal(policy, weights, abe.cut(seeds, 96), abe.cut(rows, 48))


@pytest.mark.parametrize("text", BREAKABLE_WITH_ONE_SEED)
def test_the_published_attack_recovers_the_single_seed_variant_and_not_ours(text):
    policy = parse(text)
    unauthorised = [held for held in subsets(policy.leaves) if held and not policy.satisfied(held)]
    attackable = [(held, w) for held in unauthorised if (w := attack_weights(policy, held)) is not None]
    assert attackable
    header, _ = encapsulate(PUBLIC, text, CONTEXT)
    seeds, rows = opened(header)
    for held, weights in attackable:
        key = MASTER.issue(held)
        broken_seeds, broken_rows, broken_hidden = single_seed_ciphertext(policy)
        assert attack(key, policy, weights, one_seed(policy), broken_seeds, broken_rows) == broken_hidden
        same_for_all = [[j] * len(rows) for j in range(1, len(seeds))]
        for guess in (per_occurrence(policy), *same_for_all):
            assert attack(key, policy, weights, guess, seeds, rows) != hidden_element(header, policy)


@pytest.mark.parametrize("text", [BREAKABLE_WITH_ONE_SEED[0], BREAKABLE_WITH_ONE_SEED[2], OTHERS[3]])
def test_headers_are_what_the_generic_attacker_was_given(text):
    """Seeds differ, and satisfying rows less attribute terms, each under its occurrence's seed, give s B."""
    policy = parse(text)
    seeds, rows = opened(encapsulate(PUBLIC, text, CONTEXT)[0])
    occurrences = per_occurrence(policy)
    assert len(seeds) == 1 + max(occurrences)
    assert len({seed.to_bytes() for seed in seeds}) == len(seeds)
    vectors = share_vectors(policy)
    for chosen in subsets(map(str, range(len(rows)))):
        leaves = sorted(map(int, chosen))
        weights = combination([vectors[leaf] for leaf in leaves], {"s": 1})
        if weights is None:
            continue
        total = sum((rows[leaf] * w for leaf, w in zip(leaves, weights, strict=True)), start=BASE - BASE)
        terms = [
            (point_of(policy.leaves[leaf]) * w, seeds[occurrences[leaf]])
            for leaf, w in zip(leaves, weights, strict=True)
        ]
        assert pairing_product([(total, G2_GENERATOR)]) == pairing_product([(BASE, seeds[0]), *terms])


def test_two_colluders_cannot_swap_the_parts_of_their_keys():
    text = f"{A} and {B}"
    header, _ = encapsulate(PUBLIC, text, CONTEXT)
    one, two = MASTER.issue([A]), MASTER.issue([B])
    for base, randomizer in itertools.product((one, two), repeat=2):
        pooled = AttributeKey([A, B], base._base, {**one._points, **two._points}, randomizer._randomizer)
        with pytest.raises(Unauthentic):
            decapsulate(PUBLIC, pooled, text, header, CONTEXT)


# --- round trips ---

ATTRIBUTES = [A, B, C, D]
trees = st.recursive(
    st.sampled_from(ATTRIBUTES),
    lambda children: st.lists(children, min_size=2, max_size=3).flatmap(
        lambda inside: st.integers(1, len(inside)).map(lambda k: f"{k} of ({', '.join(inside)})")
    ),
    max_leaves=7,
)


@settings(max_examples=60, deadline=None)
@given(text=trees, held=st.frozensets(st.sampled_from(ATTRIBUTES), min_size=1))
def test_a_header_opens_for_exactly_those_who_satisfy_its_policy(text, held):
    header, key = encapsulate(PUBLIC, text, CONTEXT)
    holder = MASTER.issue(held)
    if parse(text).satisfied(held):
        assert decapsulate(PUBLIC, holder, text, header, CONTEXT) == key
    else:
        with pytest.raises(Denied):
            decapsulate(PUBLIC, holder, text, header, CONTEXT)


@pytest.mark.parametrize("count", [1, 10, 60])
def test_headers_of_many_leaves_open_and_have_the_promised_size(count):
    names = [f"group:{i}" for i in range(count)]
    for text, held in ((" and ".join(names), names), (" or ".join(names), names[-1:])):
        header, key = encapsulate(PUBLIC, text, CONTEXT)
        assert len(header) - (2 * 96 + 48 * count) < 80
        assert decapsulate(PUBLIC, MASTER.issue(held), text, header, CONTEXT) == key


def test_the_largest_policy_fits_the_limit_of_headers():
    text = f"2 of ({', '.join([A] * 256)})"
    header, key = encapsulate(PUBLIC, text, CONTEXT)
    assert decapsulate(PUBLIC, MASTER.issue([A]), text, header, CONTEXT) == key


def test_a_policy_written_in_another_order_is_the_same_policy():
    header, key = encapsulate(PUBLIC, f"{A} and ({B} or {C})", CONTEXT)
    assert decapsulate(PUBLIC, MASTER.issue([A, C]), f"(({C} or {B})) and {A}", header, CONTEXT) == key


def test_every_header_has_a_key_of_its_own():
    made = [encapsulate(PUBLIC, A, CONTEXT) for _ in range(5)]
    assert len({header for header, _ in made}) == len({key for _, key in made}) == 5
    assert all(len(key) == abe.KEY_BYTES for _, key in made)


def ark_gt(pairs):
    return bytes.fromhex(str(ark.GT.multi_pairing(*map(list, zip(*pairs, strict=True)))))


def test_a_slow_reader_over_arkworks_finds_the_same_hidden_element():
    text = f"{A} and ({B} or {A}) and 2 of ({B}, {C}, {D})"
    policy, key = parse(text), MASTER.issue([A, B, D])
    _, seeds, rows, _ = msgspec.msgpack.decode(encapsulate(PUBLIC, text, CONTEXT)[0])
    seeds = [ark.G2Point.from_compressed_bytes(part) for part in abe.cut(seeds, 96)]
    rows = [ark.G1Point.from_compressed_bytes(part) for part in abe.cut(rows, 48)]
    _, names, base, points, randomizer = msgspec.msgpack.decode(key.to_bytes())
    held = {
        name: ark.G1Point.from_compressed_bytes(part)
        for name, part in zip(names, abe.cut(points, 48), strict=True)
    }
    seen, pairs = {}, [(ark.G1Point.from_compressed_bytes(base), seeds[0])]
    weights = coefficients(policy, names, ORDER)
    for leaf, name in enumerate(policy.leaves):
        seen[name] = seen.get(name, 0) + 1
        if leaf in weights:
            weight = ark.Scalar.from_be_bytes(weights[leaf].to_bytes(32, "big"))
            pairs.append((held[name] * weight, seeds[seen[name]]))
            pairs.append((-(rows[leaf] * weight), ark.G2Point.from_compressed_bytes(randomizer)))
    header_seeds = [seed.to_compressed_bytes() for seed in seeds]
    header_rows = [row.to_compressed_bytes() for row in rows]
    assert key.reveal(policy, weights, header_seeds, header_rows).to_bytes() == ark_gt(pairs)


# --- headers in the hands of others ---

TEXT = f"{A} and ({A} or {B})"
HOLDER = MASTER.issue([A])
HEADER, KEY = encapsulate(PUBLIC, TEXT, CONTEXT)


def test_a_header_with_any_one_byte_changed_is_refused():
    assert decapsulate(PUBLIC, HOLDER, TEXT, HEADER, CONTEXT) == KEY
    for position in range(len(HEADER)):
        changed = bytearray(HEADER)
        changed[position] ^= 1 << position % 8
        with pytest.raises((Malformed, Unauthentic)):
            decapsulate(PUBLIC, HOLDER, TEXT, bytes(changed), CONTEXT)


def test_a_header_cut_short_or_with_trailing_bytes_is_refused():
    for header in (b"", HEADER[:-1], HEADER + b"\0", HEADER + HEADER, b"\xc1", b"\x91" * 40000):
        with pytest.raises(Malformed):
            decapsulate(PUBLIC, HOLDER, TEXT, header, CONTEXT)


def rebuilt(**changes):
    fields = dict(zip(("suite", "seeds", "rows", "masked"), msgspec.msgpack.decode(HEADER), strict=True))
    return encode(tuple({**fields, **changes}.values()))


def outside_the_subgroup(other):
    size = len(other().to_compressed_bytes())
    for x in range(1, 100):
        try:
            point = other.from_compressed_bytes_unchecked(b"\x80" + x.to_bytes(size - 1, "big"))
        except ValueError:
            continue
        if not point.is_in_subgroup():
            return point.to_compressed_bytes()
    raise AssertionError("every small x gave a point of the subgroup")


@pytest.mark.parametrize("bad", ["identity", "outside"])
def test_a_header_with_an_identity_or_a_point_outside_the_subgroup_is_refused_in_every_place(bad):
    _, seeds, rows, _ = msgspec.msgpack.decode(HEADER)
    assert rebuilt() == HEADER
    for field, data, other in (("seeds", seeds, ark.G2Point), ("rows", rows, ark.G1Point)):
        point = other.identity().to_compressed_bytes() if bad == "identity" else outside_the_subgroup(other)
        for start in range(0, len(data), len(point)):
            changed = rebuilt(**{field: data[:start] + point + data[start + len(point) :]})
            with pytest.raises((Malformed, Unauthentic)):
                decapsulate(PUBLIC, HOLDER, TEXT, changed, CONTEXT)


def test_a_row_shifted_by_a_point_that_no_pairing_sees_is_refused():
    """Its part outside the subgroup has an order prime to `ORDER`, so a pairing gives as if it were not there."""
    outside = ark.G1Point.from_compressed_bytes_unchecked(outside_the_subgroup(ark.G1Point))
    unseen = ark.G1Point.identity()
    for bit in bin(ORDER)[2:]:
        unseen = unseen + unseen + (outside if bit == "1" else ark.G1Point.identity())
    assert unseen != ark.G1Point.identity()
    _, _, rows, _ = msgspec.msgpack.decode(HEADER)
    policy = parse(TEXT)
    for start in range(0, len(rows), 48):
        row = ark.G1Point.from_compressed_bytes(rows[start : start + 48]) + unseen
        shifted = rebuilt(rows=rows[:start] + row.to_compressed_bytes() + rows[start + 48 :])
        assert hidden_element(shifted, policy) == hidden_element(HEADER, policy)
        with pytest.raises(Unauthentic):
            decapsulate(PUBLIC, HOLDER, TEXT, shifted, CONTEXT)


def test_a_header_with_too_many_or_too_few_points_is_refused():
    _, seeds, rows, _ = msgspec.msgpack.decode(HEADER)
    for changes in (
        {"seeds": seeds[:-96]},
        {"seeds": seeds + seeds[:96]},
        {"rows": rows[:-48]},
        {"rows": rows + rows[:48]},
        {"rows": b""},
        {"seeds": b""},
        {"rows": rows[:-1]},
    ):
        with pytest.raises((Malformed, Unauthentic)):
            decapsulate(PUBLIC, HOLDER, TEXT, rebuilt(**changes), CONTEXT)


def test_a_header_rerandomised_by_hand_so_that_the_plain_scheme_would_open_it_is_refused():
    """The plain scheme is malleable: [s]_2 and the rows times two still hang together."""
    seeds, rows = opened(HEADER)
    doubled = {
        "seeds": b"".join((seed * 2).to_bytes() for seed in seeds),
        "rows": b"".join((row * 2).to_bytes() for row in rows),
    }
    policy = parse(TEXT)
    hidden = hidden_element(HEADER, policy)
    header = rebuilt(**doubled)
    assert hidden_element(header, policy) == hidden**2
    masks = abe.xor(abe.mask(fabeo.SUITE, hidden), abe.mask(fabeo.SUITE, hidden**2))
    masked = abe.xor(msgspec.msgpack.decode(HEADER)[3], masks)
    for attempt in (header, rebuilt(**doubled, masked=masked)):
        with pytest.raises(Unauthentic):
            decapsulate(PUBLIC, HOLDER, TEXT, attempt, CONTEXT)


def test_an_unused_row_of_a_header_may_not_be_changed_either():
    text = f"{A} or {B}"
    header, _ = encapsulate(PUBLIC, text, CONTEXT)
    suite, seeds, rows, masked = msgspec.msgpack.decode(header)
    changed = encode((suite, seeds, rows[:48] + (G1_GENERATOR * 5).to_bytes(), masked))
    for held in (A, B):
        with pytest.raises(Unauthentic):
            decapsulate(PUBLIC, MASTER.issue([held]), text, changed, CONTEXT)


def test_a_header_does_not_open_in_another_place_policy_or_under_another_authority():
    other = MasterKey.generate()
    key = MASTER.issue([A, B, C])
    twin = f"{A} and ({A} or {C})"
    for public, holder, text, context in (
        (PUBLIC, key, TEXT, CONTEXT + b"0"),
        (PUBLIC, key, TEXT, b""),
        (PUBLIC, key, twin, CONTEXT),
        (PUBLIC, key, f"{A} and {B}", CONTEXT),
        (PUBLIC, key, A, CONTEXT),
        (other.public, key, TEXT, CONTEXT),
        (PUBLIC, other.issue([A, B, C]), TEXT, CONTEXT),
        (other.public, other.issue([A, B, C]), TEXT, CONTEXT),
    ):
        with pytest.raises(Unauthentic):
            decapsulate(public, holder, text, HEADER, context)


def test_a_refusal_names_the_policy_and_no_attribute_of_the_key():
    with pytest.raises(Denied) as caught:
        decapsulate(PUBLIC, MASTER.issue([D]), TEXT, HEADER, CONTEXT)
    assert TEXT in str(caught.value)
    assert D not in str(caught.value)


def test_a_policy_that_does_not_parse_is_refused_on_both_sides():
    with pytest.raises(PolicyError):
        encapsulate(PUBLIC, f"{A} and", CONTEXT)
    with pytest.raises(PolicyError):
        decapsulate(PUBLIC, HOLDER, f"{A} and", HEADER, CONTEXT)


# --- keys ---


def test_keys_survive_their_encoding():
    master = MasterKey.from_bytes(MASTER.to_bytes())
    public = PublicKey.from_bytes(PUBLIC.to_bytes())
    holder = AttributeKey.from_bytes(master.issue([B, A]).to_bytes())
    assert holder.attributes == frozenset({A, B})
    assert (public.fingerprint, master.public.fingerprint) == (PUBLIC.fingerprint, PUBLIC.fingerprint)
    assert decapsulate(public, holder, TEXT, HEADER, CONTEXT) == KEY
    for key in (master, public, holder):
        assert type(key).from_bytes(key.to_bytes()).to_bytes() == key.to_bytes()


@pytest.mark.parametrize("key", [MASTER, PUBLIC, HOLDER], ids=["master", "public", "attribute"])
def test_keys_that_are_damaged_or_of_another_suite_are_refused(key):
    data = key.to_bytes()
    suite, *fields = msgspec.msgpack.decode(data)
    assert suite == fabeo.SUITE
    for bad in (
        b"",
        data[:-1],
        data + b"\0",
        data[:-40] + bytes(40),
        encode((suite,)),
        encode((suite, *fields, b"")),
    ):
        with pytest.raises(Malformed):
            type(key).from_bytes(bad)
    for bad in (encode(("fabeo-2", *fields)), encode(("fabeo-2", 1, 2, 3, 4, 5, 6, 7)), encode(("fabeo-2",))):
        with pytest.raises(Malformed, match="fabeo-2"):
            type(key).from_bytes(bad)


def test_a_header_of_another_suite_is_refused_by_name():
    with pytest.raises(Malformed, match="fabeo-2"):
        decapsulate(PUBLIC, HOLDER, TEXT, rebuilt(suite="fabeo-2"), CONTEXT)


def test_public_keys_that_are_trivial_outside_the_subgroup_or_elements_of_gt_are_refused():
    identity = ark.G2Point.identity().to_compressed_bytes()
    for point in (identity, outside_the_subgroup(ark.G2Point), bytes(96), PUBLIC.element.to_bytes()):
        with pytest.raises(Malformed):
            PublicKey.from_bytes(encode((fabeo.SUITE, point)))


def test_attribute_keys_with_attributes_unsorted_repeated_or_without_their_point_are_refused():
    suite, names, base, points, randomizer = msgspec.msgpack.decode(MASTER.issue([A, B]).to_bytes())
    for changed_names, changed_points in (
        (names[::-1], points),
        ([A, A], points),
        ([A], points),
        (names, points[:-48]),
        (names, points[:-1]),
        ([A, "no attribute"], points),
        ([], b""),
    ):
        with pytest.raises(Malformed):
            AttributeKey.from_bytes(encode((suite, changed_names, base, changed_points, randomizer)))


def test_master_keys_of_zero_or_beyond_the_order_are_refused():
    for secret in (0, ORDER, 2**256 - 1):
        with pytest.raises(Malformed):
            MasterKey.from_bytes(encode((fabeo.SUITE, secret.to_bytes(32, "big"))))


def test_an_authority_issues_only_proper_attributes_and_a_bounded_number():
    for attributes in ([], ["doctor"], ["role:doctor\n"], [f"a:{i}" for i in range(257)]):
        with pytest.raises(Malformed):
            MASTER.issue(attributes)
    most = MASTER.issue([f"{'a' * 100}:{i:0>27}" for i in range(256)])
    assert AttributeKey.from_bytes(most.to_bytes()).attributes == most.attributes


def test_two_keys_for_the_same_attributes_have_nothing_in_common():
    one, two = (msgspec.msgpack.decode(MASTER.issue([A]).to_bytes()) for _ in range(2))
    assert all(left != right for left, right in zip(one[2:], two[2:], strict=True))


def test_no_secret_shows_when_a_key_is_printed():
    master = MasterKey.from_bytes(encode((fabeo.SUITE, (12345678901234567890).to_bytes(32, "big"))))
    for key, secret in ((master, "12345678901234567890"), (HOLDER, A)):
        assert secret not in repr(key)
        assert key.to_bytes()[-20:].hex() not in repr(key)
        assert repr(key.to_bytes()[-20:]) not in repr(key)


def test_the_random_source_of_the_caller_is_the_only_one():
    assert MasterKey.generate(bytes).to_bytes() == MasterKey.generate(bytes).to_bytes()
    assert MASTER.issue([A], bytes).to_bytes() == MASTER.issue([A], bytes).to_bytes()
    assert encapsulate(PUBLIC, A, CONTEXT, bytes) == encapsulate(PUBLIC, A, CONTEXT, bytes)
    assert encapsulate(PUBLIC, A, CONTEXT) != encapsulate(PUBLIC, A, CONTEXT, bytes)


def test_the_same_draw_for_another_place_policy_or_authority_makes_another_header():
    places = [
        (PUBLIC, f"{A} and {B}", CONTEXT),
        (PUBLIC, f"{A} or {B}", CONTEXT),
        (PUBLIC, f"{A} and {B}", CONTEXT + b"0"),
        (MasterKey.generate().public, f"{A} and {B}", CONTEXT),
    ]
    seeds = [seed for place in places for seed in opened(encapsulate(*place, bytes)[0])[0]]
    assert len({seed.to_bytes() for seed in seeds}) == 2 * len(places)


def test_the_hidden_element_is_the_one_of_the_scheme():
    header, _ = encapsulate(PUBLIC, A, CONTEXT)
    seeds, _ = opened(header)
    secret_base = hash_name("fabeo-secret", "")
    assert MasterKey(3).public.element == pairing_product([(secret_base * 3, G2_GENERATOR)])
    assert hidden_element(header, parse(A)) == pairing_product([(secret_base * MASTER._secret, seeds[0])])
