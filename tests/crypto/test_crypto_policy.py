import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import epoch
from crypto import policy as policies
from crypto.errors import Malformed, PolicyError
from crypto.policy import coefficients, either, parse, share, spread

MODULUS = 2**61 - 1
WEEKS = ("2026w46", "2026w47", "2027w02")
NAMES = ("role:doctor", "role:nurse", "org:st-mary", *(f"status:active@{week}" for week in WEEKS))


def gates(children):
    return st.lists(children, min_size=1, max_size=4).flatmap(
        lambda inside: st.tuples(st.integers(1, len(inside)), st.just(tuple(inside)))
    )


trees = st.recursive(st.sampled_from(NAMES), gates, max_leaves=12)
held_sets = st.frozensets(st.sampled_from(NAMES))


def written(tree, noise) -> str:
    """One of the ways to write `tree`, by the choices of `noise`, a random.Random."""
    if isinstance(tree, str):
        return f"( {tree} )" if noise.random() < 0.1 else tree
    k, children = tree
    parts = [written(child, noise) for child in noise.sample(children, len(children))]
    if k == len(children) and noise.random() < 0.7:
        return "(" + " and ".join(parts) + ")"
    if k == 1 and noise.random() < 0.7:
        return "(" + "\n or ".join(parts) + ")"
    return f"{k} of({' ,'.join(parts)})"


def holds(held, name) -> bool:
    """Whether `name`, or the same for a later week, is in `held`."""
    base, _, week = name.partition("@")
    return any(other == name or (week and other.startswith(base + "@") and other > name) for other in held)


def meets(tree, held) -> bool:
    if isinstance(tree, str):
        return holds(held, tree)
    k, children = tree
    return sum(meets(child, held) for child in children) >= k


@settings(max_examples=200, deadline=None)
@given(tree=trees, held=held_sets, first=st.randoms(), second=st.randoms())
def test_a_policy_means_its_formula_and_has_one_text_however_it_is_written(tree, held, first, second):
    policy = parse(written(tree, first))
    assert policy.satisfied(held) == meets(tree, held)
    again = parse(written(tree, second))
    assert (again, str(again), again.leaves) == (policy, str(policy), policy.leaves)
    assert parse(str(policy)) == policy
    assert str(parse(str(policy))) == str(policy)


@settings(max_examples=200, deadline=None)
@given(tree=trees, held=held_sets, noise=st.randoms(), secret=st.integers(0, MODULUS - 1))
def test_shares_of_a_satisfying_set_and_of_no_other_give_the_secret(tree, held, noise, secret):
    policy = parse(written(tree, noise))
    source = random.Random(7)
    shares = share(policy, secret, lambda: source.randrange(MODULUS), MODULUS)
    assert len(shares) == len(policy.leaves)
    weights = coefficients(policy, held, MODULUS)
    assert (weights is not None) == meets(tree, held)
    if weights is not None:
        assert {policy.leaves[leaf] for leaf in weights} <= {
            part for name in held for part in epoch.held(name)
        }
        assert sum(shares[leaf] * weight for leaf, weight in weights.items()) % MODULUS == secret


def rank(rows) -> int:
    rows, found = [list(row) for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column] % MODULUS), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        inverse = pow(rows[found][column], -1, MODULUS)
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] * inverse
            rows[i] = [(a - factor * b) % MODULUS for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


@settings(max_examples=100, deadline=None)
@given(tree=trees, held=held_sets, noise=st.randoms())
def test_shares_of_a_set_that_does_not_satisfy_tell_nothing_about_the_secret(tree, held, noise):
    policy = parse(written(tree, noise))
    draws = []
    share(policy, 0, lambda: draws.append(0) or 0, MODULUS)
    assert len(draws) < len(policy.leaves)
    columns = [share(policy, 1, lambda: 0, MODULUS)]
    for chosen in range(len(draws)):
        one = iter([int(i == chosen) for i in range(len(draws))])
        columns.append(share(policy, 0, one.__next__, MODULUS))
    own = {part for name in held for part in epoch.held(name)}
    rows = [row for row, leaf in zip(zip(*columns, strict=True), policy.leaves, strict=True) if leaf in own]
    target = [1] + [0] * len(draws)
    spans = rank(rows) == rank([*rows, target]) if rows else False
    assert spans == meets(tree, held)


def test_a_secret_of_any_group_is_shared_as_a_number_is():
    """Pairs of numbers stand for a group; each coordinate is shared with its own draws."""

    class Pair(tuple):
        def __add__(self, other):
            return Pair((self[0] + other[0], self[1] + other[1]))

        def __sub__(self, other):
            return Pair((self[0] - other[0], self[1] - other[1]))

    policy = parse("3 of (a:1, b:1 and c:1, 2 of (a:1, d:1, e:1), f:1 or g:1, h:1)")
    first, second = ([random.Random(seed).randrange(MODULUS) for _ in range(9)] for seed in (1, 2))
    pairs = iter([Pair(both) for both in zip(first, second, strict=True)])
    shared = spread(policy, Pair((5, 6)), pairs.__next__)
    for index, (secret, draws) in enumerate(((5, first), (6, second))):
        expected = share(policy, secret, iter(draws).__next__, MODULUS)
        assert [part[index] % MODULUS for part in shared] == expected


@pytest.mark.parametrize(("k", "count"), [(2, 3), (3, 7), (128, 256)])
def test_shares_of_a_threshold_are_those_of_shamir_a_polynomial_of_degree_below_it(k, count):
    source = random.Random(5)
    shares = share(
        parse(f"{k} of ({', '.join(f'a:{i:03}' for i in range(count))})"),
        99,
        lambda: source.randrange(MODULUS),
        MODULUS,
    )
    column = [99, *shares]
    for _ in range(k):
        assert any(column)
        column = [(after - before) % MODULUS for before, after in itertools.pairwise(column)]
    assert not any(column)


def test_weights_are_one_for_and_and_or_and_few_leaves_are_used():
    policy = parse("a:x and b:x and c:x or d:x")
    assert coefficients(policy, ["a:x", "b:x", "c:x"], MODULUS) == {0: 1, 1: 1, 2: 1}
    assert list(coefficients(policy, ["a:x", "b:x", "c:x", "d:x"], MODULUS).values()) == [1]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("role:doctor", "role:doctor"),
        ("((role:doctor))", "role:doctor"),
        ("b:1 or a:1 and c:1", "a:1 and c:1 or b:1"),
        ("(b:1 or a:1) and c:1", "(a:1 or b:1) and c:1"),
        ("c:1 and (b:1 and (a:1))", "a:1 and b:1 and c:1"),
        ("c:1 or (1 of (b:1, a:1))", "a:1 or b:1 or c:1"),
        ("3 of (c:1, 2 of (a:1, b:1), d:1)", "a:1 and b:1 and c:1 and d:1"),
        ("2 of (c:1, 2 of (z:1, b:1, a:1), d:1 or e:1)", "2 of (2 of (a:1, b:1, z:1), c:1, d:1 or e:1)"),
        ("02 of(a:1,a:1,b:1)", "2 of (a:1, a:1, b:1)"),
        ("1 of (a:1)", "a:1"),
        ("a:1 and a:1", "a:1"),
        ("1 of (a:1, a:1, a:1)", "a:1"),
        ("b:1 or a:1 or (b:1)", "a:1 or b:1"),
        ("(a:1 or b:1) and c:1 and (b:1 or a:1)", "(a:1 or b:1) and c:1"),
        ("(b:1 or a:1 and a:1) or (1 of (a:1, b:1))", "a:1 or b:1"),
        ("2 of (a:1 and b:1, b:1 and a:1)", "a:1 and b:1"),
        ("2 of (a:1, a:1, a:1)", "2 of (a:1, a:1, a:1)"),
        ("c:1 and (a:1 or a:1) and b:1", "a:1 and b:1 and c:1"),
        ("\tstatus:active@2026w47\r\n", "status:active@2026w47"),
    ],
)
def test_the_canonical_text(text, canonical):
    assert str(parse(text)) == canonical
    assert str(parse(canonical)) == canonical


def test_repeated_children_count_in_a_threshold():
    assert parse("2 of (a:1, a:1, b:1)").satisfied({"a:1"})
    assert not parse("2 of (a:1, c:1, b:1)").satisfied({"a:1"})


def test_and_binds_tighter_than_or():
    policy = parse("a:1 or b:1 and c:1")
    expected = {(): False, ("a:1",): True, ("b:1",): False, ("b:1", "c:1"): True, ("c:1",): False}
    assert {held: policy.satisfied(held) for held in expected} == expected


@pytest.mark.parametrize(
    ("text", "column", "sentence"),
    [
        ("", 1, "expected an attribute"),
        ("   ", 4, "the end"),
        ("role:doctor and", 16, "expected an attribute"),
        ("and role:doctor", 1, "expected an attribute"),
        ("role:doctor role:nurse", 13, "expected `and`, `or` or the end"),
        ("role:doctor)", 12, "found `)`"),
        ("(role:doctor", 13, "for the `(` in column 1"),
        ("(a:1, b:1)", 5, "found `,`"),
        ("()", 2, "expected an attribute"),
        ("role:doctor AND org:x", 13, "lower case"),
        ("doctor", 1, "write kind:value"),
        ("not role:doctor", 1, "write kind:value"),
        ("a:1 or Role:doctor", 8, "write kind:value"),
        ("a:1 or role:", 8, "write kind:value"),
        ("a:1 or role:a:b", 8, "write kind:value"),
        ("a:1 or a:" + "x" * 127, 8, "write kind:value"),
        ("role:dok\u00edr", 9, "no place"),
        ("a:1 & b:1", 5, "no place"),
        ("a:1\x00", 4, "no place"),
        ("a:1\u00a0or b:1", 4, "no place"),
        ("2 (a:1, b:1)", 3, "expected `of`"),
        ("2 of a:1, b:1", 6, "expected `(`"),
        ("2 of (a:1, b:1", 15, "expected `and`, `or`, `,` or `)`"),
        ("2 of (a:1, b:1,)", 16, "expected an attribute"),
        ("a:1 and 3 of (a:1, b:1)", 9, "from 1 to 2"),
        ("0 of (a:1, b:1)", 1, "from 1 to 2"),
        ("9" * 6000 + " of (a:1, b:1)", 1, "from 1 to 2"),
        ("-1 of (a:1, b:1)", 1, "write kind:value"),
        ("(" * 33 + "a:1" + ")" * 33, 33, "nested"),
        ("(" * 16000, 33, "nested"),
        ("1 of (" * 33 + "a:1" + ")" * 33, 198, "nested"),
        (" or ".join(["a:1"] * 257), 256 * 7 + 1, "more than 256"),
        (" or ".join(f"a:{i}@2026w47" for i in range(65)), 1, "more than 256"),
        ("a:1 or status:active@2026w54", 8, "2026w54 is no week"),
        ("a:1 or status:active@2025w53", 8, "no week"),
        ("status:active@2026W47", 1, "such as 2026w47"),
        ("status:active@2026w7", 1, "no week"),
        ("status:active@1999w01", 1, "from 2020"),
        ("a:1" + " " * 16382, 16385, "longer than 16384"),
    ],
)
def test_a_mistake_is_refused_at_its_column_with_a_sentence(text, column, sentence):
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert caught.value.column == column
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["and", "or", "of", "(", ")", ",", "2", "a:1", "é", "b:"]), max_size=30))
def test_any_row_of_words_parses_or_is_refused_with_a_column(words):
    text = " ".join(words)
    column = None
    try:
        policy = parse(text)
    except PolicyError as error:
        column = error.column
    if column is None:
        assert parse(str(policy)) == policy
    else:
        assert 1 <= column <= len(text) + 1


def test_policies_at_the_bounds_parse_and_their_text_parses_again():
    deep = "(" * 32 + "a:1" + ")" * 32
    assert str(parse(deep)) == "a:1"
    assert len(parse(" or ".join(f"(a:{i})" for i in range(256))).leaves) == 256
    assert len(parse(" or ".join(f"a:{i}@2026w47" for i in range(64))).leaves) == 256
    alternating = "a:1"
    for level in range(32):
        alternating = f"b:{level} and ({alternating} or c:{level})"
    for text in (
        alternating,
        " or ".join(f"a:{i}" for i in range(256)),
        f"128 of ({','.join(['a:1'] * 256)})",
    ):
        policy = parse(text)
        assert parse(str(policy)) == policy
        assert policy.satisfied(policy.leaves)
        source = random.Random(3)
        shares = share(policy, 42, lambda source=source: source.randrange(MODULUS), MODULUS)
        weights = coefficients(policy, policy.leaves, MODULUS)
        assert sum(shares[leaf] * weight for leaf, weight in weights.items()) % MODULUS == 42


def test_a_policy_whose_canonical_text_would_be_too_long_to_parse_is_refused():
    names = [f"a:{i:0>59}" for i in range(256)]
    text = f"256 of({','.join(names)})"
    assert len(text) < policies.MAX_TEXT
    with pytest.raises(PolicyError):
        parse(text)


def test_either_is_the_canonical_or_of_whole_policies():
    assert either("b:1 and a:1", "c:1") == "a:1 and b:1 or c:1"
    assert either("c:1", "a:1 and b:1") == either("a:1 and b:1 or c:1") == "a:1 and b:1 or c:1"
    for texts in (
        [],
        ["a:1) or (b:1", "c:1"],
        ["a:1", ""],
        [" or ".join(f"{kind}:{i}" for i in range(200)) for kind in "ab"],
    ):
        with pytest.raises(PolicyError):
            either(*texts)


@settings(max_examples=50, deadline=None)
@given(left=trees, right=trees, held=held_sets, noise=st.randoms())
def test_either_is_met_by_whoever_meets_one(left, right, held, noise):
    both = parse(either(written(left, noise), written(right, noise)))
    assert both.satisfied(held) == (meets(left, held) or meets(right, held))


def test_only_attributes_pass_the_attribute_check():
    assert policies.check_attribute("status:active@2026w47") == "status:active@2026w47"
    for name in (
        "",
        "role",
        "role:",
        ":x",
        "Role:x",
        "role:x\n",
        "role:x y",
        "role:a:b",
        "1:x",
        "a:" + "x" * 127,
    ):
        with pytest.raises(Malformed):
            policies.check_attribute(name)


def test_policies_are_immutable_and_hashable():
    policy = parse("a:1 and b:1")
    assert len({policy, parse("b:1 and a:1")}) == 1
    for change in itertools.product([policy, policy.root], ["root", "k", "children", "text"]):
        with pytest.raises((AttributeError, TypeError)):
            setattr(*change, None)
