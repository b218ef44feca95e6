"""Attacks on FAME by algebra, without `decapsulate`; `test_crypto_abe` has what it shares with FABEO.

`can_open` decides in the model of `crypto_algebra` whether the hidden element can be computed, with the sharing and the
numbering of uses of the code. `one_use` is the mistake of published codes: the same points for all occurrences of an
attribute.
"""

import itertools

import pytest
from crypto_algebra import combination, computable, plus, share_vectors, subsets, times, unknown
from test_crypto_fabeo import BREAKABLE_WITH_ONE_SEED as BREAKABLE_WITH_ONE_USE
from test_crypto_fabeo import OTHERS

from crypto import abe, fame
from crypto.abe import decapsulate, encapsulate
from crypto.errors import PolicyError, Unauthentic
from crypto.fame import AttributeKey, MasterKey
from crypto.group import G1, G2, ORDER, pairing_product, random_scalar
from crypto.policy import coefficients, parse

A, B = "has:a", "has:b"
CONTEXT = b"record 7, class shared, version 3"
MASTER = MasterKey.generate()
PUBLIC = MASTER.public
ROWS, TS = (1, 2, 3), (1, 2)


def one_use(policy):
    return [1] * len(policy.leaves)


def inverse_weighted(t, *exponents):
    return times(unknown(f"1/a{t}"), plus(*exponents))


def can_open(policy, keys, uses, same_r=False):
    """Whether a holder of keys for the attribute sets `keys` can compute the hidden element of a header for `policy`."""
    one, vectors = unknown(), share_vectors(policy)
    names, numbers = set(policy.leaves).union(*keys), sorted(set(uses))
    columns = {"s": 1} | {f"v{i}": i + 2 for i in range(len({v for vector in vectors for v in vector}) - 1)}

    def of_attribute(name, use, row, t):
        return unknown(f"h {name} {use} {row} {t}")

    def of_column(j, row, t):
        return unknown(f"c {j} {row} {t}")

    public = [plus(unknown(f"d{t}", f"a{t}"), unknown("d3")) for t in TS]
    g1 = [one]
    g1 += [of_attribute(name, use, row, t) for name in names for use in numbers for row in ROWS for t in TS]
    g1 += [of_column(j, row, t) for j in columns.values() for row in ROWS for t in TS]
    g2 = [one, *(unknown(f"a{t}") for t in TS), *public]

    g2 += [unknown("a1", "s1"), unknown("a2", "s2"), plus(unknown("s1"), unknown("s2"))]
    for vector, name, use in zip(vectors, policy.leaves, uses, strict=True):
        for row in ROWS:
            points = {
                t: plus(
                    of_attribute(name, use, row, t),
                    *(times({(): m}, of_column(columns[v], row, t)) for v, m in vector.items()),
                )
                for t in TS
            }
            g1.append(plus(*(times(unknown(f"s{t}"), points[t]) for t in TS)))

    for number, held in enumerate(keys):
        tag = "" if same_r else f" {number}"
        r1, r2 = unknown("r1" + tag), unknown("r2" + tag)
        r = [times(unknown("b1"), r1), times(unknown("b2"), r2), plus(r1, r2)]
        g2 += r

        def three(at, x, r=r):
            masked = [
                inverse_weighted(
                    t, *(times(e, at(row, t)) for row, e in zip(ROWS, r, strict=True)), unknown(x)
                )
                for t in TS
            ]
            return [*masked, {(x,): -1}]

        base = three(lambda row, t: of_column(1, row, t), f"x {number}")
        g1 += [plus(point, unknown(f"d{i}")) for i, point in enumerate(base, 1)]
        for name, use in itertools.product(held, numbers):
            g1 += three(
                lambda row, t, name=name, use=use: of_attribute(name, use, row, t), f"x {number} {name} {use}"
            )
    target = plus(*(times(unknown(f"s{t}"), public[t - 1]) for t in TS))
    return computable(g1, g2, public, target)


@pytest.mark.parametrize("text", BREAKABLE_WITH_ONE_USE + OTHERS)
def test_the_generic_attacker_opens_exactly_what_the_attributes_allow(text):
    policy = parse(text)
    for held in subsets(policy.leaves):
        assert can_open(policy, [held], abe.occurrences(policy)) == policy.satisfied(held), held


@pytest.mark.parametrize("text", BREAKABLE_WITH_ONE_USE)
def test_the_generic_attacker_breaks_the_published_single_use_variant(text):
    policy = parse(text)
    unauthorised = [held for held in subsets(policy.leaves) if not policy.satisfied(held)]
    assert any(can_open(policy, [held], one_use(policy)) for held in unauthorised)


@pytest.mark.parametrize("text", [BREAKABLE_WITH_ONE_USE[0], f"{A} and {B}"])
def test_colluders_open_only_what_one_of_them_may_open_alone(text):
    policy = parse(text)
    for pair in itertools.combinations(subsets(policy.leaves), 2):
        allowed = any(policy.satisfied(held) for held in pair)
        assert can_open(policy, list(pair), abe.occurrences(policy)) == allowed, pair
        pooled = policy.satisfied(set.union(*pair))
        assert can_open(policy, list(pair), abe.occurrences(policy), same_r=True) == pooled, pair


# --- the same attacks on real group elements ---


def attack_weights(policy, held):
    """Weights of leaves that give the secret and, under one use, cancel every attribute not in `held`."""
    unheld = set(policy.leaves) - held
    vectors = [
        {**vector, f"h {name}": int(name in unheld)}
        for vector, name in zip(share_vectors(policy), policy.leaves, strict=True)
    ]
    return combination(vectors, {"s": 1})


def attack(key, policy, weights, uses, seeds, rows):
    """What the weighted rows give a holder of `key`."""
    pairs = []
    for i in range(3):
        own = [(key._base[i], 1)]
        own += [
            (key._points[name][3 * (uses[leaf] - 1) + i], weights[leaf])
            for leaf, name in enumerate(policy.leaves)
            if name in key.attributes
        ]
        blinded = abe.weighted_sum(
            [(G1.from_bytes(rows[3 * leaf + i]), weight) for leaf, weight in enumerate(weights)]
        )
        pairs += [(abe.weighted_sum(own), G2.from_bytes(seeds[i])), (-blinded, key._seeds[i])]
    return pairing_product(pairs)


@pytest.mark.parametrize("text", BREAKABLE_WITH_ONE_USE)
def test_the_published_attack_recovers_the_single_use_variant_and_not_ours(text, monkeypatch):
    policy = parse(text)
    unauthorised = [held for held in subsets(policy.leaves) if held and not policy.satisfied(held)]
    attackable = [(held, w) for held in unauthorised if (w := attack_weights(policy, held)) is not None]
    assert attackable
    coins, uses = [random_scalar(), random_scalar()], abe.occurrences(policy)
    for numbering, breaks in ((one_use, True), (abe.occurrences, False)):
        monkeypatch.setattr(fame, "occurrences", numbering)
        seeds, rows, hidden = PUBLIC.hide(policy, coins)
        points = abe.cut(seeds, 96), abe.cut(rows, 48)
        entitled = MASTER.issue(policy.leaves)
        assert entitled.reveal(policy, coefficients(policy, policy.leaves, ORDER), *points) == hidden
        for held, weights in attackable:
            key = MASTER.issue(held)
            found = [attack(key, policy, weights, guess, *points) for guess in (one_use(policy), uses)]
            assert (hidden in found) == breaks


def test_two_colluders_cannot_swap_the_parts_of_their_keys():
    text = f"{A} and {B}"
    header, _ = encapsulate(PUBLIC, text, CONTEXT)
    one, two = MASTER.issue([A]), MASTER.issue([B])
    for base, seeds in itertools.product((one, two), repeat=2):
        pooled = AttributeKey([A, B], base._base, {**one._points, **two._points}, seeds._seeds)
        with pytest.raises(Unauthentic):
            decapsulate(PUBLIC, pooled, text, header, CONTEXT)


def test_each_occurrence_of_an_attribute_has_points_of_its_own_in_header_and_key():
    text = f"2 of ({', '.join([A] * fame.USES)}, {B})"
    seeds, rows, _ = PUBLIC.hide(parse(text), [5, 7])
    assert len(set(abe.cut(rows, 48))) == 3 * (fame.USES + 1)
    assert len(abe.cut(seeds, 96)) == 3
    key = MASTER.issue([A])
    assert len({point.to_bytes() for point in key._points[A]}) == 3 * fame.USES
    header, opened = encapsulate(PUBLIC, text, CONTEXT)
    assert decapsulate(PUBLIC, key, text, header, CONTEXT) == opened


def test_a_policy_with_more_occurrences_than_the_keys_have_uses_is_refused_with_a_sentence():
    text = f"2 of ({', '.join([A] * (fame.USES + 1))})"
    with pytest.raises(PolicyError, match="more than 4 times"):
        encapsulate(PUBLIC, text, CONTEXT)
    with pytest.raises(PolicyError, match="more than 4 times"):
        decapsulate(PUBLIC, MASTER.issue([A]), text, encapsulate(PUBLIC, A, CONTEXT)[0], CONTEXT)
