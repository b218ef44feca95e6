"""The authenticated state: whoever believes the root believes exactly the values that are there, and that others are not."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.codec import encode
from crypto.errors import Malformed, Unauthentic
from protocol.record import digest
from protocol.state_tree import (
    BUCKETS,
    EMPTY_ROOT,
    ProvedValue,
    StateProof,
    StateTree,
    bucket_hash,
    bucket_of,
    changed,
    decode_proved_value,
    key_hash,
    value_hash,
    value_in,
)

KEYS = [f"key-{i}".encode() for i in range(40)]


def crowded(count: int = 3) -> list[bytes]:
    """Keys that share a bucket."""
    found: dict[int, list[bytes]] = {}
    for number in range(1 << 20):
        key = b"crowd-%d" % number
        same = found.setdefault(bucket_of(key_hash(key)), [])
        same.append(key)
        if len(same) == count:
            return same
    raise AssertionError


CROWD = crowded()


class Model:
    """A state with its tree, as a ledger keeps them."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.buckets: dict[int, bytes] = {}
        self.tree = StateTree()

    def put(self, changes: dict[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            hashed = key_hash(key)
            number = bucket_of(hashed)
            self.values.pop(key, None) if value is None else self.values.update({key: value})
            hashed_value = None if value is None else value_hash(value)
            self.buckets[number] = changed(self.buckets.get(number, b""), {hashed: hashed_value})
            self.tree.update({number: bucket_hash(self.buckets[number])})

    def prove(self, key: bytes) -> StateProof:
        number = bucket_of(key_hash(key))
        return StateProof(self.buckets.get(number, b""), self.tree.siblings(number))


def naive_root(values: dict[bytes, bytes]) -> bytes:
    """The definition, written out: all buckets in a list, hashed in pairs until one is left."""
    pairs = sorted((key_hash(k), value_hash(v)) for k, v in values.items())
    buckets: dict[int, bytes] = {}
    for key, value in pairs:
        number = int.from_bytes(key[:2], "big")
        buckets[number] = buckets.get(number, b"") + key + value
    empty = digest("state-bucket", b"")
    level = {number: digest("state-bucket", pairs) for number, pairs in buckets.items()}
    for _ in range(16):
        parents = {number // 2 for number in level}
        level = {
            p: digest("state-node", level.get(2 * p, empty) + level.get(2 * p + 1, empty)) for p in parents
        }
        empty = digest("state-node", empty + empty)
    return level.get(0, empty)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from([*KEYS, *CROWD]), st.none() | st.binary(max_size=8), max_size=12),
        max_size=6,
    )
)
def test_the_root_is_that_of_the_values_whatever_order_they_came_in(batches):
    model = Model()
    for batch in batches:
        model.put(batch)
    assert model.tree.root == naive_root(model.values)
    rebuilt = StateTree((number, bucket_hash(pairs)) for number, pairs in model.buckets.items())
    assert rebuilt.root == model.tree.root
    for key in [*KEYS[:3], *CROWD]:
        value = model.values.get(key)
        assert model.prove(key).root(key, value) == model.tree.root
        with pytest.raises(Unauthentic):
            model.prove(key).root(key, b"other")
        if value is not None:
            with pytest.raises(Unauthentic):
                model.prove(key).root(key, None)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.integers(0, 30), st.integers(0, 9)),
    st.dictionaries(st.integers(0, 30), st.none() | st.integers(0, 9)),
)
def test_a_changed_bucket_is_the_ordered_pairs_of_what_is_in_it(old, changes):
    def wide(numbers):
        return {
            n.to_bytes(32, "big"): None if v is None else v.to_bytes(32, "big") for n, v in numbers.items()
        }

    def ordered(pairs):
        return b"".join(key + pairs[key] for key in sorted(pairs))

    left = {key: value for key, value in (wide(old) | wide(changes)).items() if value is not None}
    bucket = changed(ordered(wide(old)), wide(changes))
    assert bucket == ordered(left)
    for key in wide(dict.fromkeys(range(32), 0)):
        assert value_in(bucket, key) == left.get(key)


def test_a_tree_made_of_the_hashes_of_another_is_the_same_and_goes_on_alike():
    one = StateTree()
    for step in range(3):
        changes = {n * 997 % BUCKETS: bytes([n % 251, step]) * 16 for n in range(step, 400 * step, 3)}
        one.update(changes)
        other = StateTree.of(one.hashes)
        for number in (0, 1, 997, BUCKETS - 1):
            assert other.siblings(number) == one.siblings(number)
        other.update({5: bytes(32)})
        one.update({5: bytes(32)})
        assert (other.root, other.hashes) == (one.root, one.hashes)
    assert StateTree.of(StateTree().hashes).root == EMPTY_ROOT


def test_the_empty_state_has_the_root_of_no_values_and_proves_absence():
    assert EMPTY_ROOT == naive_root({}) == StateTree().root
    assert Model().prove(b"anything").root(b"anything", None) == EMPTY_ROOT


def test_what_was_put_and_taken_away_leaves_no_trace():
    model = Model()
    model.put(dict.fromkeys([*KEYS, *CROWD], b"v"))
    model.put(dict.fromkeys([*KEYS, *CROWD]))
    assert model.tree.root == EMPTY_ROOT


def test_many_buckets_in_one_go_are_the_same_as_one_after_another():
    hashes = {number * 97 % BUCKETS: bytes([number % 256]) * 32 for number in range(1, 300)}
    one_by_one, at_once = StateTree(), StateTree()
    for number, hashed in hashes.items():
        one_by_one.update({number: hashed})
    at_once.update(hashes)
    assert one_by_one.root == at_once.root
    assert all(at_once.siblings(n) == one_by_one.siblings(n) for n in (0, 97, BUCKETS - 1))


@pytest.fixture
def model() -> Model:
    made = Model()
    made.put({key: b"of " + key for key in [*KEYS, *CROWD]})
    return made


def refused_or_other(model: Model, proof: StateProof, key: bytes, value: bytes | None) -> bool:
    try:
        return proof.root(key, value) != model.tree.root
    except Unauthentic:
        return True


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_proof_with_any_byte_changed_proves_nothing_under_the_root(data):
    model = Model()
    model.put({key: b"of " + key for key in CROWD})
    key = data.draw(st.sampled_from([*CROWD, b"absent"]))
    raw = bytearray(encode(model.prove(key)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        proof = msgspec.msgpack.decode(bytes(raw), type=StateProof)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert refused_or_other(model, proof, key, model.values.get(key))


def test_a_pair_cannot_be_left_out_to_show_absence(model):
    key = CROWD[1]
    bucket, siblings = model.prove(key).bucket, model.prove(key).siblings
    pairs = [bucket[at : at + 64] for at in range(0, len(bucket), 64)]
    without = b"".join(p for p in pairs if p[:32] != key_hash(key))
    assert len(pairs) == len(CROWD)
    assert refused_or_other(model, StateProof(without, siblings), key, None)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 1, 2), (2, 1, 0)])
def test_a_bucket_out_of_order_or_with_a_key_twice_is_no_proof(model, order):
    """Even under a root made for it: one state has one bucket, one bucket one value for a key."""
    bucket = model.prove(CROWD[0]).bucket
    pairs = [bucket[at : at + 64] for at in range(0, len(bucket), 64)]
    lie = StateProof(b"".join(pairs[i] for i in order), model.prove(CROWD[0]).siblings)
    with pytest.raises(Unauthentic, match="no proof for this key"):
        lie.root(CROWD[0], model.values[CROWD[0]])


def test_a_key_twice_with_two_values_proves_neither(model):
    key = CROWD[0]
    bucket = model.prove(key).bucket
    twice = key_hash(key) + value_hash(b"one") + key_hash(key) + value_hash(b"two")
    for value in (b"one", b"two", None):
        with pytest.raises(Unauthentic):
            StateProof(twice, model.prove(key).siblings).root(key, value)
    assert bucket


def test_the_bucket_of_another_key_shows_no_absence(model):
    there = KEYS[0]
    elsewhere = next(k for k in KEYS if bucket_of(key_hash(k)) != bucket_of(key_hash(there)))
    with pytest.raises(Unauthentic):
        model.prove(elsewhere).root(there, None)
    empty = next(n for n in range(BUCKETS) if n not in model.buckets)
    assert refused_or_other(model, StateProof(b"", model.tree.siblings(empty)), there, None)


def test_nodes_buckets_keys_and_values_do_not_pass_for_one_another(model):
    """A node has two hashes below it as a bucket of one pair has; a value may have the bytes of a key. Only the domains tell."""
    data = bytes(64)
    assert len({digest(d, data) for d in ("state-node", "state-bucket", "state-key", "state-value")}) == 4
    assert bucket_hash(data) != digest("state-node", data)
    assert key_hash(data) != value_hash(data)
    left, right = model.tree._get(2), model.tree._get(3)
    assert bucket_hash(left + right) != model.tree.root, "the root is no bucket of its children"


@pytest.mark.parametrize("change", [lambda s: s[:15], lambda s: (*s, s[0]), lambda s: ()])
def test_a_path_of_another_length_does_not_decode(model, change):
    proof = model.prove(KEYS[0])
    proved = ProvedValue(7, model.values[KEYS[0]], proof)
    assert decode_proved_value(encode(proved)) == proved
    other = msgspec.structs.replace(proved, proof=StateProof(proof.bucket, change(proof.siblings)))
    with pytest.raises(Malformed):
        decode_proved_value(encode(other))
