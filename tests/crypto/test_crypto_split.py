"""Keys issued jointly: what t authorities make, what t - 1 and pooling users cannot, by algebra and on real points."""

import itertools

import pytest
from crypto_algebra import computable, plus, share_vectors, times, unknown
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import abe, fabeo, fame
from crypto.abe import decapsulate, encapsulate
from crypto.codec import encode
from crypto.errors import Conflict, Denied, Malformed, Unauthentic
from crypto.group import G1, ORDER, hash_name, random_scalar
from crypto.policy import parse
from crypto.sharing import lagrange, share_of
from crypto.split import IssuerKey, JointKey

A, B, C = "has:a", "has:b", "has:c"
CONTEXT = b"record 7, class shared, version 3"


def dealt(threshold: int, count: int) -> list[IssuerKey]:
    """The authorities' keys, from a dealer; how they come without one is tested with the ceremony."""
    coefficients = [random_scalar() for _ in range(threshold)]
    masters = [fabeo.MasterKey(share_of(coefficients, number)) for number in range(count)]
    joint = JointKey(threshold, [master.public for master in masters])
    assert joint.public.to_bytes() == fabeo.MasterKey(coefficients[0]).public.to_bytes()
    return [IssuerKey(number, joint, master) for number, master in enumerate(masters)]


ISSUERS = dealt(2, 3)
JOINT = ISSUERS[0].joint


def opens(key: abe.AttributeKey, policy: str, public: abe.PublicKey = JOINT.public) -> bool:
    header, secret = encapsulate(public, policy, CONTEXT)
    try:
        return decapsulate(public, key, policy, header, CONTEXT) == secret
    except (Denied, Unauthentic):
        return False


# --- what it is for -------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_t_authorities_issue_a_key_like_any_other(data):
    count = data.draw(st.integers(1, 6))
    threshold = data.draw(st.integers(1, count))
    issuers = dealt(threshold, count)
    joint = issuers[0].joint
    attributes = data.draw(st.sets(st.sampled_from([A, B, "status:active@2026w47"]), min_size=1))
    parts = {issuer.number: issuer.issue(attributes) for issuer in issuers}
    for number, part in parts.items():
        joint.check(number, part, attributes)
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    key = joint.combine({number: parts[number] for number in chosen})
    assert key.attributes == attributes
    again = fabeo.AttributeKey.from_bytes(key.to_bytes())
    for name in (A, B):
        assert opens(again, name, joint.public) == (name in attributes)
    sole = JointKey(1, [joint.public])
    sole.check(0, again, attributes)


@pytest.mark.parametrize("scheme", [fabeo.MasterKey, fame.MasterKey])
def test_a_single_authority_of_any_scheme_is_the_simple_case(scheme):
    master = scheme.generate()
    issuer = IssuerKey.from_bytes(master.to_bytes())
    part = issuer.issue([A])
    issuer.joint.check(0, part, [A])
    key = issuer.joint.combine({0: part})
    assert opens(key, A, master.public)
    assert issuer.joint.public.to_bytes() == master.public.to_bytes()
    assert JointKey.from_bytes(issuer.joint.to_bytes()).public.to_bytes() == master.public.to_bytes()


def test_fewer_than_t_parts_are_refused_and_open_nothing_on_their_own():
    part = ISSUERS[0].issue([A])
    with pytest.raises(ValueError, match="2 parts"):
        JOINT.combine({0: part})
    assert not opens(part, A)


def test_keys_of_two_people_do_not_share_randomness():
    keys = [JOINT.combine({i: ISSUERS[i].issue([A]) for i in (0, 2)}) for _ in range(4)]
    assert len({key.to_bytes() for key in keys}) == 4


# --- a cheating authority ------------------------------------------------------------------------------------------


def altered_parts():
    good, other = ISSUERS[1].issue([A, B]), ISSUERS[1].issue([A, B])
    names = list(good._points)

    def with_(**changes):
        fields = {
            "attributes": good.attributes,
            "base": good._base,
            "points": good._points,
            "randomizer": good._randomizer,
        }
        return fabeo.AttributeKey(**{**fields, **changes})

    return {
        "another share": ISSUERS[2].issue([A, B]),
        "a share plus one": fabeo.MasterKey(ISSUERS[1]._master._secret + 1).issue([A, B]),
        "no attribute point at all": with_(points=dict.fromkeys(names, hash_name("fabeo-base", ""))),
        "one point of another key": with_(points={**good._points, names[1]: other._points[names[1]]}),
        "two points exchanged": with_(points=dict(zip(names, reversed(good._points.values()), strict=True))),
        "base of another key": with_(base=other._base),
        "randomizer of another key": with_(randomizer=other._randomizer),
        "errors that cancel": with_(
            points={
                names[0]: good._points[names[0]] + other._base,
                names[1]: good._points[names[1]] - other._base,
            }
        ),
        "an error hidden in base and point": with_(
            base=good._base + other._base,
            points={**good._points, names[0]: good._points[names[0]] - other._base},
        ),
    }


@pytest.mark.parametrize("name", altered_parts())
def test_a_part_that_does_not_fit_its_authoritys_public_key_is_found(name):
    JOINT.check(1, ISSUERS[1].issue([A, B]), [A, B])
    with pytest.raises(Unauthentic, match="does not fit the public key"):
        JOINT.check(1, altered_parts()[name], [A, B])


def test_a_part_for_other_attributes_is_found():
    for issued in ([A], [A, B, C], [C]):
        with pytest.raises(Unauthentic, match="other attributes"):
            JOINT.check(1, ISSUERS[1].issue(issued), [A, B])


def test_a_wrong_part_that_nobody_checked_gives_a_key_that_fails():
    for part in altered_parts().values():
        key = JOINT.combine({0: ISSUERS[0].issue([A, B]), 1: part})
        assert not all(opens(key, policy) for policy in (A, B, f"{A} and {B}"))


# --- what is not enough, by algebra --------------------------------------------------------------------------------


def shares(threshold, stolen):
    """y_i for authorities 0 to 3 in the unknowns `y`, `a1`, ... and, where a share was stolen, numbers the attacker knows.

    The polynomial through y at 0, the stolen shares, and as many unknown values as are missing.
    """
    free = threshold - 1 - len(stolen)
    assert free >= 0
    known = {0: unknown("y")}
    known |= {number + 1: {(): 1000 + number} for number in stolen}
    known |= {50 + place: unknown(f"a{place}") for place in range(free)}

    def at(x):
        terms = []
        for place, value in known.items():
            weight = 1
            for other in known:
                if other != place:
                    weight = weight * (x - other) * pow(place - other, -1, ORDER) % ORDER
            terms.append(times(value, {(): weight}))
        return plus(*terms)

    return [at(number + 1) for number in range(4)]


def can_open(policy_text, threshold, parts=(), stolen=()):
    """Whether `parts` (authority, attributes) and `stolen` shares make the hidden element of a header computable."""
    policy = parse(policy_text)
    ys = shares(threshold, stolen)
    occurrences = abe.occurrences(policy)
    names = {A, B, C, *policy.leaves}
    one, x, b = {(): 1}, unknown("x"), unknown("b")
    # Public: everybody's [y_i]_1 and [y_i]_2, and with them [y]_1, [y]_2 and the commitments of the generation.
    g1 = [one, x, b, unknown("y"), *ys, *(unknown(f"h {name}") for name in names)]
    g2 = [one, unknown("y"), *ys, unknown("s"), *(unknown(f"t{j}") for j in set(occurrences))]
    for vector, name, occurrence in zip(share_vectors(policy), policy.leaves, occurrences, strict=True):
        row = {("b", draw): value for draw, value in vector.items()}
        g1.append(plus(row, times(unknown(f"h {name}"), unknown(f"t{occurrence}"))))
    for number in stolen:
        assert ys[number] == {(): 1000 + number} or set(ys[number].values()) == {0, 1000 + number}
        g1.append(times(x, ys[number]))
    for order, (number, held) in enumerate(parts):
        r = unknown(f"r{order}")
        g1.append(plus(times(x, ys[number]), times(b, r)))
        g1 += [times(unknown(f"h {name}"), r) for name in held]
        g2.append(r)
    return computable(g1, g2, [], unknown("s", "x", "y"))


def test_t_parts_open_and_fewer_do_not():
    for threshold in (1, 2, 3):
        parts = [(number, [A]) for number in range(threshold)]
        assert can_open(A, threshold, parts)
        assert not can_open(A, threshold, parts[:-1])
        assert not can_open(B, threshold, parts)


def test_stolen_shares_of_t_less_one_authorities_open_nothing_and_are_worth_that_many_parts():
    for threshold in (2, 3):
        stolen = range(threshold - 1)
        assert not can_open(A, threshold, stolen=stolen)
        assert can_open(A, threshold, [(3, [A])], stolen)
        assert not can_open(A, threshold, [(3, [B])], stolen)
        assert not can_open(A, threshold, [(3, [A])], list(stolen)[:-1])


POLICIES = [
    A,
    C,
    f"{A} and {B}",
    f"{A} and {C}",
    f"{A} or {B}",
    f"({A} and {B}) or ({B} and {C})",
    f"2 of ({A}, {B}, {C})",
]
POOLS = [
    [(0, [A, C]), (1, [B, C])],
    [(0, [A, C]), (0, [B, C])],
    [(0, [A]), (1, [A]), (0, [B]), (1, [B])],
    [(0, [A, B]), (1, [B, C]), (2, [A, C])],
    [(0, [A, B, C]), (1, [A]), (2, [B])],
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pool", POOLS)
def test_pooled_parts_open_exactly_what_t_authorities_have_each_issued_a_satisfying_part_for(pool, policy):
    """Attributes of different parts never add up: whose t parts are for one person, opens what that person may."""
    satisfied = {number for number, held in pool if parse(policy).satisfied(frozenset(held))}
    for threshold in (1, 2, 3):
        assert can_open(policy, threshold, pool) == (len(satisfied) >= threshold)


def test_many_parts_from_one_authority_are_worth_one():
    assert not can_open(A, 2, [(0, [A]), (0, [A, B]), (0, [A, C])])
    assert can_open(A, 2, [(0, [A]), (0, [A, B]), (2, [A])])


# --- the same on real points ---------------------------------------------------------------------------------------


def test_pooled_parts_open_what_is_common_and_not_what_is_added_up():
    one, two = ISSUERS[0].issue([A, C]), ISSUERS[1].issue([B, C])
    weights = lagrange([0, 1])
    base, common = G1.combine(
        [
            [(one._base, weights[0]), (two._base, weights[1])],
            [(one._points[C], weights[0]), (two._points[C], weights[1])],
        ]
    )
    randomizer = one._randomizer * weights[0] + two._randomizer * weights[1]
    assert opens(fabeo.AttributeKey([C], base, {C: common}, randomizer), C)
    for factor, other in itertools.product((1, weights[0]), (1, weights[1])):
        pooled = {A: one._points[A] * factor, B: two._points[B] * other, C: common}
        key = fabeo.AttributeKey([A, B, C], base, pooled, randomizer)
        assert opens(key, C)
        assert not any(opens(key, policy) for policy in (A, B, f"{A} and {B}", f"{A} and {C}"))


def test_an_authority_that_acts_alone_opens_nothing():
    for issuer in ISSUERS:
        assert not opens(issuer._master.issue([A]), A)
        forged = JointKey(1, [issuer.joint.keys[issuer.number]])
        assert forged.public.to_bytes() != JOINT.public.to_bytes()


# --- the wire ------------------------------------------------------------------------------------------------------


def test_an_authoritys_key_and_the_joint_key_come_back_from_their_bytes():
    for issuer in ISSUERS:
        again = IssuerKey.from_bytes(issuer.to_bytes())
        assert again.number == issuer.number
        assert again.joint.to_bytes() == JOINT.to_bytes() == JointKey.from_bytes(JOINT.to_bytes()).to_bytes()
        JOINT.check(issuer.number, again.issue([A]), [A])
        assert "secret" not in repr(again)


def test_a_share_that_does_not_fit_its_public_key_is_refused():
    with pytest.raises(Conflict, match="restore"):
        IssuerKey(0, JOINT, ISSUERS[1]._master)
    with pytest.raises(Conflict):
        IssuerKey(3, JOINT, ISSUERS[0]._master)
    with pytest.raises(Conflict):
        IssuerKey(-1, JOINT, ISSUERS[2]._master)


def test_keys_that_are_of_no_common_sharing_are_refused():
    other = dealt(2, 3)[0].joint
    for threshold, keys in (
        (2, [*JOINT.keys[:2], other.keys[2]]),
        (1, JOINT.keys),
        (2, [JOINT.keys[1], JOINT.keys[0], JOINT.keys[2]]),
    ):
        with pytest.raises(Malformed, match="not of one sharing"):
            JointKey(threshold, keys)
    for threshold, keys in ((0, JOINT.keys), (4, JOINT.keys), (1, []), (1, JOINT.keys * 11)):
        with pytest.raises(Malformed, match="authorities issue"):
            JointKey(threshold, keys)
    fames = [fame.MasterKey.generate().public for _ in range(2)]
    with pytest.raises(Malformed, match="together, not of 'fame"):
        JointKey(2, fames)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93",
        encode(("abe-joint-9", 1, (b"",))),
        encode(("abe-joint", 1, ())),
        encode(("abe-joint", 1, (b"junk",))),
        encode(("abe-joint", 0, (JOINT.keys[0].to_bytes(),))),
        encode(("abe-joint", 2, (JOINT.keys[0].to_bytes(),))),
        JOINT.to_bytes() + b"\0",
        bytes(1 << 20),
    ],
)
def test_what_is_no_joint_key_is_refused(data):
    with pytest.raises(Malformed):
        JointKey.from_bytes(data)


def test_an_unknown_suite_is_refused_by_name():
    with pytest.raises(Malformed, match="'abe-joint-9' is unknown"):
        JointKey.from_bytes(encode(("abe-joint-9", 1, (b"",))))


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_bytes_of_an_authoritys_key_end_in_a_refusal_or_a_consistent_key(data):
    wire = bytearray(ISSUERS[0].to_bytes())
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Malformed, Conflict)):
        IssuerKey.from_bytes(bytes(wire))
