"""Mutation of what a target takes: of msgpack as a tree of values, so that what comes out is mostly canonical and gets past the decoder, and of bytes."""

import random
from typing import Any

import msgspec

from crypto.codec import encode

EDGES = (0, 1, 2, 63, 64, 127, 128, 255, 256, 2**16, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1)
MAX_NODES = 2000


def mutate(data: bytes, rng: random.Random, limit: int) -> bytes:
    """Another input near `data`, of at most `limit` bytes."""
    tree = _tree(data)
    if tree is None or rng.random() < 0.1:
        return _bytes(data, rng)[:limit]
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = _edit(tree, rng, tree)
    changed = encode(tree)
    return changed if len(changed) <= limit else _bytes(data, rng)[:limit]


def _tree(data: bytes) -> Any:
    """The value that `data` encodes, if it is a list."""
    try:
        value = msgspec.msgpack.decode(data)
        encode(value)  # which knows less than what decodes
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, TypeError):
        return None
    return value if isinstance(value, list) and value and _size(value) <= MAX_NODES else None


def _size(value: Any) -> int:
    return 1 + sum(map(_size, value)) if isinstance(value, list) else 1


def _edit(node: Any, rng: random.Random, whole: Any) -> Any:
    """The tree with one value in it changed."""
    if isinstance(node, list) and node and rng.random() < 0.85:
        at = rng.randrange(len(node))
        return [*node[:at], _edit(node[at], rng, whole), *node[at + 1 :]]
    if rng.random() < 0.1:
        return rng.choice((_any(whole, rng), None, [], {}, True, 1.5, "", b""))
    match node:
        case bool():
            return not node
        case int():
            other = rng.choice((rng.choice(EDGES), node + 1, node - 1, node ^ (1 << rng.randrange(16))))
            return min(max(other, -(2**63)), 2**64 - 1)  # what msgpack has room for
        case bytes():
            inner = _tree(node)
            return encode(_edit(inner, rng, inner)) if inner and rng.random() < 0.7 else _bytes(node, rng)
        case str():
            return _bytes(node.encode(), rng).decode(errors="replace")
        case list():
            return _list(node, rng, whole)
        case _:
            return _any(whole, rng)


def _list(node: list[Any], rng: random.Random, whole: Any) -> list[Any]:
    at, other = rng.randrange(len(node) + 1), rng.randrange(len(node) + 1)
    low, high = min(at, other), max(at, other)
    return rng.choice(
        (
            node[:low] + node[high:],
            [*node[:at], _any(whole, rng), *node[at:]],
            node[:low] + node[low:high] * 2 + node[high:],
            node[:low] + node[low:high][::-1] + node[high:],
            node[low:high] * rng.choice((1, 30)),
        )
    )


def _any(node: Any, rng: random.Random) -> Any:
    while isinstance(node, list) and node and rng.random() < 0.8:
        node = rng.choice(node)
    return node


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16))
    return rng.choice(
        (
            data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            if at < len(data)
            else b"",
            data[:at] + rng.randbytes(size) + data[at + size :],
            data[:at] + rng.randbytes(size) + data[at:],
            data[:at] + data[at + size :],
            data[:at] + data[at : at + size] * 40 + data[at:],
            data[:at],
        )
    )
