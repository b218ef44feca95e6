"""The authenticated state: one hash over the whole of the contract's state, and short proofs of what a key holds in it, or that it holds nothing.

A binary Merkle tree of fixed depth over 65,536 buckets. A key lies in the bucket that the first 16 bits of its hash name; a bucket is the
ascending sequence of the 64-byte pairs (hash of key, hash of value) of its keys. Keys, values, buckets and nodes are hashed in
domains of their own, so none passes for another. A proof is the whole bucket with the 16 siblings on its way to the root: as the bucket is
whole, it shows absence as well as presence.

Whoever wants a bucket large must find keys for it, 65,536 hashes for each, and pay a transaction for each.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Annotated

import msgspec

from crypto.codec import Bytes32, Decoder, UInt, Wire
from crypto.errors import Unauthentic
from crypto.sign import domain_tag
from protocol.record import digest

DEPTH = 16
BUCKETS = 1 << DEPTH
PAIR = 64
MAX_BUCKET = 1 << 20
"""Bytes of a bucket that a proof may carry."""
_HASH = 32
_NODE = domain_tag("state-node")


def key_hash(key: bytes) -> bytes:
    return digest("state-key", key)


def value_hash(value: bytes) -> bytes:
    return digest("state-value", value)


def bucket_hash(bucket: bytes) -> bytes:
    return digest("state-bucket", bucket)


def bucket_of(hashed_key: bytes) -> int:
    """The number of the bucket for a key with this hash."""
    return int.from_bytes(hashed_key[: DEPTH // 8], "big")


def changed(bucket: bytes, changes: Mapping[bytes, bytes | None]) -> bytes:
    """The bucket after these changes: from the hash of a key to that of its value, None for a key that goes."""
    for hashed_key, hashed_value in changes.items():
        at = _place(bucket, hashed_key)
        after = at + PAIR if bucket[at : at + _HASH] == hashed_key else at
        pair = b"" if hashed_value is None else hashed_key + hashed_value
        bucket = bucket[:at] + pair + bucket[after:]
    return bucket


def value_in(bucket: bytes, hashed_key: bytes) -> bytes | None:
    """The hash of the value that the key with this hash has in a bucket; None if the key is not in it."""
    at = _place(bucket, hashed_key)
    is_there = bucket[at : at + _HASH] == hashed_key
    return bucket[at + _HASH : at + PAIR] if is_there else None


def _place(bucket: bytes, hashed_key: bytes) -> int:
    """Where in the bucket the pair of this key stands, or would."""
    pairs = range(0, len(bucket), PAIR)
    return PAIR * bisect_left(pairs, hashed_key, key=lambda at: bucket[at : at + _HASH])


def _node(children: bytes) -> bytes:
    return sha256(_NODE + children).digest()


def _empty_levels() -> list[bytes]:
    """The hash of an empty subtree by its level, from the root down."""
    levels = [bucket_hash(b"")]
    for _ in range(DEPTH):
        levels.append(_node(2 * levels[-1]))
    return levels[::-1]


_EMPTY = _empty_levels()
EMPTY_ROOT = _EMPTY[0]
"""The root of a state without any key."""


class StateTree:
    """The hashes of all buckets and of the nodes above them, 4 MB in memory; the buckets themselves are elsewhere."""

    def __init__(self, buckets: Iterable[tuple[int, bytes]] = ()) -> None:
        """From the number and hash of each bucket that is not empty."""
        # Node i has the children 2i and 2i + 1; 1 is the root, bucket b is node BUCKETS + b.
        self._nodes = bytearray(_HASH)
        for level, empty in enumerate(_EMPTY):
            self._nodes += empty * (1 << level)
        self.update(dict(buckets))

    @classmethod
    def of(cls, hashes: bytes) -> "StateTree":
        """From the hashes of all buckets, as `hashes` gives them."""
        tree, levels = cls(), [hashes]
        for empty in reversed(_EMPTY[1:]):
            below, empty_pair, above = levels[-1], 2 * empty, _node(2 * empty)
            pairs = (below[at : at + 2 * _HASH] for at in range(0, len(below), 2 * _HASH))
            levels.append(b"".join(above if pair == empty_pair else _node(pair) for pair in pairs))
        tree._nodes[_HASH:] = b"".join(reversed(levels))
        return tree

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._get(1)

    def bucket(self, number: int) -> bytes:
        """The hash of a bucket."""
        return self._get(BUCKETS + number)

    @property
    def hashes(self) -> bytes:
        """The hashes of all buckets one after another, 2 MB."""
        return bytes(self._nodes[_HASH * BUCKETS :])

    def update(self, buckets: Mapping[int, bytes]) -> None:
        """Put these hashes in the place of those of the buckets with these numbers."""
        nodes = self._nodes
        for number, hashed in buckets.items():
            at = _HASH * (BUCKETS + number)
            nodes[at : at + _HASH] = hashed
        above = {(BUCKETS + number) >> 1 for number in buckets}
        while above:
            for node in above:
                at = _HASH * node
                nodes[at : at + _HASH] = sha256(_NODE + nodes[2 * at : 2 * at + 2 * _HASH]).digest()
            above = {node >> 1 for node in above if node > 1}

    def siblings(self, number: int) -> tuple[bytes, ...]:
        """The hashes beside the way from a bucket to the root, from the bottom up."""
        node = BUCKETS + number
        return tuple(self._get(node >> level ^ 1) for level in range(DEPTH))

    def _get(self, node: int) -> bytes:
        return bytes(self._nodes[_HASH * node : _HASH * node + _HASH])


class StateProof(Wire, frozen=True, tag="state-proof/1"):
    """What the value of a key, or its absence, is proved with: its bucket, and the siblings from the bottom up."""

    bucket: Annotated[bytes, msgspec.Meta(max_length=MAX_BUCKET)]
    siblings: Annotated[tuple[Bytes32, ...], msgspec.Meta(min_length=DEPTH, max_length=DEPTH)]

    def root(self, key: bytes, value: bytes | None) -> bytes:
        """The root of every state in which `key` has just this value, None for none, as far as this proof tells; 32 bytes.

        `Unauthentic` if the proof shows something else of the key. Who believes the root believes the value.
        """
        hashed = key_hash(key)
        number, size = bucket_of(hashed), len(self.bucket)
        pairs = [self.bucket[at : at + PAIR] for at in range(0, size, PAIR)]
        keys = [pair[:_HASH] for pair in pairs]
        if size % PAIR or keys != sorted(set(keys)) or any(bucket_of(k) != number for k in keys):
            raise Unauthentic("what should prove a value of the state is no proof for this key")
        found = dict(zip(keys, (pair[_HASH:] for pair in pairs), strict=True)).get(hashed)
        if found != (None if value is None else value_hash(value)):
            raise Unauthentic("the proof shows another value of the state than it was sent with")
        node = bucket_hash(self.bucket)
        for level, sibling in enumerate(self.siblings):
            node = _node(sibling + node if number >> level & 1 else node + sibling)
        return node


class ProvedValue(Wire, frozen=True, tag="proved-value/1"):
    """A node's answer: what a key holds in the state after the block at `height`, None for nothing, with the proof."""

    height: UInt
    value: Annotated[bytes, msgspec.Meta(max_length=256 << 10)] | None
    proof: StateProof


decode_proved_value = Decoder(ProvedValue, "a value with its proof", MAX_BUCKET + (512 << 10))
