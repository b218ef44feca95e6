import json
import os
from pathlib import Path

import py_arkworks_bls12381 as ark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import group
from crypto.errors import Malformed
from crypto.group import G1, G1_GENERATOR, G2, G2_GENERATOR, ORDER

VECTORS = Path(__file__).parents[2].parent / "shared/data/vectors/rfc9380_BLS12381G1_XMD_SHA-256_SSWU_RO.json"
FIELD = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
GROUPS = [(G1, G1_GENERATOR, ark.G1Point), (G2, G2_GENERATOR, ark.G2Point)]
scalars = st.integers(1, ORDER - 1)
each_group = pytest.mark.parametrize(("kind", "generator", "other"), GROUPS, ids=["G1", "G2"])


def outside_the_subgroup(other) -> bytes:
    size = len(other().to_compressed_bytes())
    for x in range(1, 100):
        try:
            point = other.from_compressed_bytes_unchecked(b"\x80" + x.to_bytes(size - 1, "big"))
        except ValueError:
            continue
        if not point.is_in_subgroup():
            return point.to_compressed_bytes()
    raise AssertionError("every small x gave a point of the subgroup")


@each_group
@settings(max_examples=40, deadline=None)
@given(k=scalars)
def test_points_are_encoded_as_arkworks_encodes_them_and_decode_to_themselves(kind, generator, other, k):
    point = generator * k
    data = point.to_bytes()
    assert data == (other() * ark.Scalar.from_be_bytes(k.to_bytes(32, "big"))).to_compressed_bytes()
    assert len(data) == kind.SIZE
    assert kind.from_bytes(data) == point
    assert (-point).to_bytes() != data
    assert (-point).to_bytes()[1:] == data[1:]


@each_group
def test_points_that_are_not_exactly_one_canonical_group_element_are_refused(kind, generator, other):
    good = generator.to_bytes()
    identity = other.identity().to_compressed_bytes()
    assert (generator - generator).to_bytes() == identity
    with_infinity_flag = bytes([good[0] | 0x40]) + good[1:]
    uncompressed_flag = bytes([good[0] & 0x7F]) + good[1:]
    x_too_large = bytes([0x80 | FIELD.to_bytes(48, "big")[0]]) + FIELD.to_bytes(48, "big")[1:] + good[48:]
    bad = [
        b"",
        good[:-1],
        good + b"\0",
        identity,
        bytes([identity[0] | 0x20]) + identity[1:],
        bytes(kind.SIZE),
        b"\xff" * kind.SIZE,
        b"\x80" + bytes(kind.SIZE - 1),
        with_infinity_flag,
        uncompressed_flag,
        x_too_large,
        outside_the_subgroup(other),
    ]
    for data in bad:
        with pytest.raises(Malformed):
            kind.from_bytes(data)


@each_group
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_decodes_encodes_to_the_same_bytes_and_arkworks_takes_it_too(kind, generator, other, data):
    raw = data.draw(st.binary(min_size=kind.SIZE, max_size=kind.SIZE))
    raw = bytes([raw[0] & 0x1F | 0x80]) + raw[1:]
    try:
        ours = kind.from_bytes(raw).to_bytes()
    except Malformed:
        ours = None
    try:
        theirs = other.from_compressed_bytes(raw).to_compressed_bytes()
    except ValueError:
        theirs = None
    assert ours == theirs
    assert ours in (None, raw)


@settings(max_examples=5, deadline=None)
@given(a=scalars, b=scalars)
def test_the_pairing_is_bilinear_and_equals_that_of_arkworks(a, b):
    p, q = G1_GENERATOR * a, G2_GENERATOR * b
    product = group.pairing_product([(p, q), (G1_GENERATOR, q), (p, G2_GENERATOR)])
    assert product == group.gt_generator() ** (a * b + a + b)
    alone = ark.GT.pairing(
        ark.G1Point.from_compressed_bytes(p.to_bytes()), ark.G2Point.from_compressed_bytes(q.to_bytes())
    )
    assert group.pairing_product([(p, q)]).to_bytes().hex() == str(alone)


def test_points_form_a_group_and_scalars_wrap_at_its_order():
    for _, generator, _ in GROUPS:
        assert generator * 3 - generator == generator + generator
        assert generator * (ORDER + 5) == generator * 5
        assert generator * -1 == -generator
        assert (generator * ORDER).is_identity
    assert G1_GENERATOR != G2_GENERATOR


def test_forked_workers_draw_distinct_scalars_after_a_draw_of_the_parent():
    drawn = {group.random_scalar()}
    for _ in range(4):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, group.scalar_to_bytes(group.random_scalar()))
            os._exit(0)
        os.close(writer)
        drawn.add(group.scalar_from_bytes(os.read(reader, 64)))
        os.close(reader)
        os.waitpid(child, 0)
    assert len(drawn) == 5


def test_scalars_are_never_zero_and_have_one_encoding():
    assert group.scalar_from_wide(bytes(48)) == 1
    assert group.scalar_from_wide((ORDER - 1).to_bytes(48, "big")) == 1
    assert group.random_scalar(lambda size: b"\xff" * size) < ORDER
    assert group.scalar_from_bytes(group.scalar_to_bytes(ORDER - 1)) == ORDER - 1
    for data in (bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32, b"\x01", b"\0" + b"\x01" * 32, b""):
        with pytest.raises(Malformed):
            group.scalar_from_bytes(data)


@pytest.mark.skipif(not VECTORS.exists(), reason="the RFC 9380 vectors are not here")
def test_hashing_to_g1_gives_the_published_points_of_rfc_9380():
    suite = json.loads(VECTORS.read_text())
    assert suite["vectors"]
    for vector in suite["vectors"]:
        point = group.hash_to_g1(vector["msg"].encode(), suite["dst"].encode())
        x, y = (int(vector["P"][axis], 16) for axis in "xy")
        sign = 0x20 if 2 * y > FIELD else 0
        assert point.to_bytes() == bytes([0x80 | sign | x >> 376]) + (x % 2**376).to_bytes(47, "big")


def test_names_of_different_domains_or_splits_hash_to_different_points():
    pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("b", "ac"), ("a", "bc\0")]
    assert len({group.hash_name(*pair).to_bytes() for pair in pairs}) == len(pairs)
    assert group.hash_name("a", "bc") == group.hash_name("a", "bc")
