"""One value, one encoding; and what every other msgpack library makes of it."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.codec import Bytes32, Decoder, UInt, Wire, encode
from crypto.errors import Malformed, Unauthentic
from crypto.seal import OVERHEAD, SealKey, seal
from crypto.sign import SigningKey, is_valid, verify


class Thing(Wire, frozen=True):
    name: str
    number: UInt
    keys: tuple[Bytes32, ...]


decode = Decoder(Thing, "a thing", 1000)
things = st.builds(
    Thing,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple),
)


@given(things)
def test_what_is_encoded_decodes_to_the_same_and_other_msgpack_libraries_read_and_write_it(thing: Thing):
    data = encode(thing)
    assert decode(data) == thing
    plain = [thing.name, thing.number, list(thing.keys)]
    assert msgpack.unpackb(data, raw=False) == plain
    assert msgpack.packb(plain, use_bin_type=True) == data


@given(things, st.binary(min_size=1, max_size=4))
def test_trailing_bytes_are_refused(thing: Thing, more: bytes):
    with pytest.raises(Malformed):
        decode(encode(thing) + more)


@pytest.mark.parametrize(
    "data",
    [
        b"\x93\xa1a\xcc\x05\x90",  # 5 in two bytes
        b"\x93\xd9\x01a\x05\x90",  # "a" with a long header
        b"\xdc\x00\x03\xa1a\x05\x90",  # the array with a long header
        b"\x93\xa1a\x05\xdc\x00\x00",
    ],
)
def test_a_second_encoding_of_the_same_value_is_refused(data: bytes):
    assert msgpack.unpackb(data) == ["a", 5, []]
    with pytest.raises(Malformed, match="canonical"):
        decode(data)


@pytest.mark.parametrize(
    "value", [["a", 5], ["a", 5, [], 1], ["a", -1, []], ["a", 1.0, []], [b"a", 5, []], {}, "a", 2**63]
)
def test_other_types_counts_and_ranges_are_refused(value: object):
    with pytest.raises(Malformed, match="a thing"):
        decode(msgpack.packb(value))


def test_more_bytes_than_the_limit_are_refused_undecoded():
    with pytest.raises(Malformed, match="over the limit of 1000"):
        decode(bytes(1001))


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decoder(data: bytes):
    with suppress(Malformed):
        assert encode(decode(data)) == data


@given(st.binary(max_size=100))
def test_a_signature_holds_for_its_key_domain_and_payload_alone(payload: bytes):
    key = SigningKey(bytes(32))
    signature = key.sign("vote", payload)
    assert is_valid(key.public, "vote", payload, signature)
    assert not is_valid(key.public, "tx", payload, signature)
    assert not is_valid(key.public, "vote", payload + b"x", signature)
    assert not is_valid(SigningKey(b"\x01" * 32).public, "vote", payload, signature)
    assert not is_valid(key.public, "vote", payload, signature[:-1])
    with pytest.raises(Unauthentic, match="the ballot"):
        verify(key.public, "tx", payload, signature, "the ballot")


def test_a_domain_is_no_prefix_of_another():
    key = SigningKey(bytes(32))
    assert key.sign("ab", b"c") != key.sign("a", b"bc")


@given(st.binary(max_size=100), st.integers(0, 147))
def test_a_sealed_box_opens_for_its_key_alone_and_unchanged(content: bytes, at: int):
    key = SealKey(bytes(range(32)))
    sealed = seal(key.public, content)
    assert len(sealed) == len(content) + OVERHEAD
    assert key.open(sealed, "it") == content
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1
    for box, owner in (
        (bytes(changed), key),
        (sealed, SealKey(b"\x07" * 32)),
        (sealed[:-1], key),
        (b"", key),
    ):
        with pytest.raises(Unauthentic):
            owner.open(box, "it")


def test_the_representation_of_keys_shows_no_secret():
    assert "07" * 8 not in repr(SigningKey(b"\x07" * 32)) + repr(SealKey(b"\x07" * 32))
