"""Merkle trees against RFC 6962: published vectors, the recursive definition, and proofs that somebody changed."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import merkle

# The eight leaves and the roots of their first n that implementations of RFC 6962 test each other with.
LEAVES = [
    bytes.fromhex(h)
    for h in [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

trees = st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


def leaves_of(count: int) -> list[bytes]:
    return [b"leaf %d" % i for i in range(count)]


def recursive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest() if leaves else hashlib.sha256(b"").digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])).digest()


@pytest.mark.parametrize("count", range(9))
def test_roots_are_those_of_the_published_vectors(count):
    assert merkle.root(LEAVES[:count]).hex() == ROOTS[count]


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_root_is_the_recursive_definition(leaves):
    assert merkle.root(leaves) == recursive_root(leaves)


@given(trees)
def test_every_leaf_has_a_proof_of_logarithmic_length(tree):
    count, index = tree
    leaves = leaves_of(count)
    path = merkle.proof(leaves, index)
    assert len(path) <= (count - 1).bit_length()
    assert merkle.is_included(leaves[index], index, count, path, merkle.root(leaves))


@given(trees, st.data())
def test_a_proof_does_not_hold_for_another_leaf_place_path_or_root(tree, data):
    count, index = tree
    leaves = leaves_of(count)
    path, root = merkle.proof(leaves, index), merkle.root(leaves)
    for other in {-1, 0, index ^ 1, count, count + index, 2**63} - {index}:
        assert not merkle.is_included(leaves[index], other, count, path, root)
    assert not merkle.is_included(b"another", index, count, path, root)
    assert not merkle.is_included(leaves[index], index, count, (*path, bytes(32)), root)
    assert not merkle.is_included(leaves[index], index, count, path, bytes(32))
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert not merkle.is_included(leaves[index], index, count, path[:at] + path[at + 1 :], root)
        changed = bytes([path[at][0] ^ 1]) + path[at][1:]
        assert not merkle.is_included(
            leaves[index], index, count, (*path[:at], changed, *path[at + 1 :]), root
        )


@given(trees, st.integers(-2, 200))
def test_a_proof_holds_for_another_leaf_count_only_if_the_path_to_the_leaf_has_the_same_shape(tree, other):
    """The root alone does not fix the count: who relies on it must have it signed beside the root, as a header does."""
    count, index = tree
    leaves = leaves_of(count)

    def shape(n: int) -> list[str]:
        sides, i, last = [], index, n - 1
        while last > 0:
            if i % 2 or i < last:
                sides.append("left" if i % 2 else "right")
            i, last = i // 2, last // 2
        return sides

    held = merkle.is_included(leaves[index], index, other, merkle.proof(leaves, index), merkle.root(leaves))
    assert held == (index < other and shape(other) == shape(count))


def test_an_inner_node_does_not_pass_for_a_leaf():
    leaves = leaves_of(4)
    left = hashlib.sha256(b"\x01" + merkle.leaf_hash(leaves[0]) + merkle.leaf_hash(leaves[1])).digest()
    right = hashlib.sha256(b"\x01" + merkle.leaf_hash(leaves[2]) + merkle.leaf_hash(leaves[3])).digest()
    assert merkle.root([left, right]) != merkle.root(leaves)
    node = merkle.leaf_hash(leaves[0]) + merkle.leaf_hash(leaves[1])
    assert not merkle.is_included(node, 0, 2, (right,), merkle.root(leaves))


def test_nothing_is_included_in_the_empty_tree():
    assert not merkle.is_included(b"", 0, 0, (), merkle.EMPTY_ROOT)
