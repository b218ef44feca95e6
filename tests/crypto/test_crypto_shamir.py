"""Shamir's sharing: what enough shares give, and by counting what too few say."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import shamir
from crypto.errors import Malformed
from crypto.shamir import combine, split


@st.composite
def schemes(draw):
    total = draw(st.integers(1, 9))
    return draw(st.binary(max_size=40)), draw(st.integers(1, total)), total


@given(scheme=schemes(), data=st.data())
def test_any_needed_shares_give_the_secret_and_each_other(scheme, data):
    secret, needed, total = scheme
    shares = split(secret, needed, total)
    assert list(shares) == list(range(1, total + 1))
    chosen = data.draw(st.permutations(list(shares)))[:needed]
    some = {x: shares[x] for x in chosen}
    assert combine(some) == secret
    assert all(combine(some, at=x) == share for x, share in shares.items())


@given(secret=st.binary(min_size=4, max_size=4))
def test_more_shares_than_needed_give_the_same(secret):
    assert combine(split(secret, 2, 5)) == secret


def test_the_field_is_the_one_of_aes():
    """Products from FIPS 197, section 4.2, and the field's axioms on all of it."""
    assert shamir._times(0x57, 0x83) == 0xC1
    assert shamir._times(0x57, 0x13) == 0xFE
    assert all(shamir._times(a, shamir._inverse(a)) == 1 for a in range(1, 256))
    assert all(sorted(shamir._row(a)) == list(range(256)) for a in range(1, 256))


def test_a_known_answer():
    """f(x) = 42 + 57 x + 83 x^2 in hexadecimal, its values worked out from the powers of x."""
    draws = iter([b"\x57", b"\x83"])
    shares = split(b"\x42", 3, 3, lambda _: next(draws))
    squares = {x: shamir._times(x, x) for x in (1, 2, 3)}
    assert shares == {
        x: bytes([0x42 ^ shamir._times(0x57, x) ^ shamir._times(0x83, squares[x])]) for x in (1, 2, 3)
    }
    assert shares[1] == bytes([0x42 ^ 0x57 ^ 0x83])


@pytest.mark.parametrize("secret", [0, 1, 0xA7, 0xFF])
def test_one_share_of_two_is_uniform_whatever_the_secret(secret):
    """Over all 256 draws: so the leading coefficient may be zero, too."""
    seen = Counter(split(bytes([secret]), 2, 2, lambda _, c=c: bytes([c]))[2] for c in range(256))
    assert set(seen.values()) == {1}
    assert len(seen) == 256


def test_two_shares_of_three_are_consistent_with_every_secret_exactly_once():
    """By algebra: for each secret there is one polynomial through the two shares, and one draw that makes it."""
    shares = split(b"\x5a", 3, 3)
    stolen = {x: shares[x] for x in (1, 3)}
    completions = {combine({**stolen, 2: bytes([guess])}) for guess in range(256)}
    assert len(completions) == 256


def test_the_draws_are_fresh_for_every_byte_and_coefficient():
    asked = []
    split(bytes(32), 4, 5, lambda size: asked.append(size) or bytes(size))
    assert asked == [32, 32, 32]
    assert len({tuple(sorted(split(bytes(32), 3, 3).items())) for _ in range(4)}) == 4
    share = split(bytes(64), 2, 2)[1]
    assert len(set(share)) > 32, "each byte has its own polynomial"


@pytest.mark.parametrize(("needed", "total"), [(0, 3), (4, 3), (1, 0), (-1, 2), (2, 256)])
def test_impossible_schemes_are_refused(needed, total):
    with pytest.raises(Malformed, match="split"):
        split(b"secret", needed, total)


@pytest.mark.parametrize("shares", [{}, {0: b"ab"}, {256: b"ab"}, {1: b"ab", 2: b"abc"}])
def test_what_cannot_be_shares_is_refused(shares):
    with pytest.raises(Malformed):
        combine(shares)


def test_a_number_of_pairs_of_wrong_size_shares_gives_something_else():
    shares = split(b"thirty-two bytes of a secret....", 3, 5)
    for pair in itertools.combinations(shares, 2):
        assert combine({x: shares[x] for x in pair}) != b"thirty-two bytes of a secret...."
