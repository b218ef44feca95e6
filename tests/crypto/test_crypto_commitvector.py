"""Commitments, roots and openings against a slow reference, and attacks on the tree by algebra."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import ceas, ces, commitvector
from crypto.codec import encode
from crypto.commitvector import Form, commit, opening, root
from crypto.errors import Malformed, Unauthentic

FORMS: tuple[Form, ...] = ("flat", "merkle")


def hashes(count: int, salt: int = 0) -> list[bytes]:
    return [hashlib.sha256(b"%d %d" % (salt, i)).digest() for i in range(count)]


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"diptych/1/ces-node\x00" + left + right).digest()


def reference(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1.1 word by word: split at the largest power of two below the number of leaves."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node(reference(leaves[:k]), reference(leaves[k:]))


def tops(leaves: list[bytes], keep: set[int], first: int = 0) -> list[tuple[int, int, bytes]]:
    """(height, first leaf, hash) of the largest subtrees without a kept leaf, by recursion from the root."""
    mine = range(first, first + len(leaves))
    if keep.isdisjoint(mine):
        return [((len(leaves) - 1).bit_length(), first, reference(leaves))]
    if len(leaves) == 1:
        return []
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return tops(leaves[:k], keep, first) + tops(leaves[k:], keep, first + k)


def split(leaves: list[bytes], keep: Iterable[int]) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """The leaves as `opening` and as `root` want them."""
    kept = set(keep)
    return {i: b"" if i in kept else h for i, h in enumerate(leaves)}, {i: leaves[i] for i in sorted(kept)}


def selections(count: int) -> Iterable[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(count), k) for k in range(1, count + 1))


@given(data=st.data(), count=st.integers(1, 300))
def test_root_and_opening_of_the_tree_are_those_of_a_reference_by_recursion(
    data: st.DataObject, count: int
) -> None:
    leaves = hashes(count)
    assert root("merkle", count, dict(enumerate(leaves))) == reference(leaves)
    keep = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    cut, at_hand = split(leaves, keep)
    found = opening("merkle", count, cut)
    expected = tops(leaves, keep)
    assert sorted(found[i : i + 32] for i in range(0, len(found), 32)) == sorted(h for _, _, h in expected)
    # An odd node moves up before it is paired: its height in the tree is that of its sibling.
    if count & (count - 1) == 0:
        assert found == b"".join(h for _, _, h in sorted(expected))
    assert root("merkle", count, at_hand, found) == reference(leaves)


@pytest.mark.parametrize("form", FORMS)
def test_every_selection_of_small_records_opens_and_reduces_to_every_smaller_one(form: Form) -> None:
    for count in range(1, 7):
        leaves = hashes(count)
        whole = root(form, count, dict(enumerate(leaves)))
        for keep in selections(count):
            cut, at_hand = split(leaves, keep)
            found = opening(form, count, cut)
            assert root(form, count, at_hand, found) == whole
            for again in selections(count):
                if set(again) <= set(keep):
                    reduced = opening(form, count, {i: b"" if i in again else leaves[i] for i in keep}, found)
                    assert reduced == opening(form, count, split(leaves, again)[0])


@pytest.mark.parametrize("form", FORMS)
def test_an_opening_fits_one_selection_only(form: Form) -> None:
    for count in range(2, 7):
        leaves = hashes(count)
        whole = root(form, count, dict(enumerate(leaves)))
        for keep in selections(count):
            found = opening(form, count, split(leaves, keep)[0])
            for other in selections(count):
                if other == keep:
                    continue
                at_hand = split(leaves, other)[1]
                with suppress(Malformed):
                    assert root(form, count, at_hand, found) != whole


@pytest.mark.parametrize("form", FORMS)
def test_no_other_order_or_number_of_hashes_gives_the_root(form: Form) -> None:
    count = 11
    leaves = hashes(count)
    whole = root(form, count, dict(enumerate(leaves)))
    cut, at_hand = split(leaves, [2, 7])
    found = opening(form, count, cut)
    chunks = [found[i : i + 32] for i in range(0, len(found), 32)]
    for i, j in combinations(range(len(chunks)), 2):
        swapped = chunks.copy()
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert root(form, count, at_hand, b"".join(swapped)) != whole
    for bad in (found[:-1], found[:-32], found + b"\0", found + bytes(32), b"", found * 2):
        with pytest.raises(Malformed):
            root(form, count, at_hand, bad)
        with pytest.raises(Malformed):
            opening(form, count, dict.fromkeys(at_hand, b""), bad)


@given(data=st.data(), count=st.integers(2, 500))
def test_an_opening_in_the_tree_is_never_larger_than_the_flat_one(data: st.DataObject, count: int) -> None:
    leaves = hashes(count)
    keep = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    cut, _ = split(leaves, keep)
    depth = (count - 1).bit_length()
    assert len(opening("merkle", count, cut)) <= min(len(opening("flat", count, cut)), 32 * depth * len(keep))


# --- attacks


def test_commitments_nodes_and_flat_roots_hash_in_domains_none_of_which_begins_another() -> None:
    seen: list[bytes] = []

    class Spy:
        def __init__(self, data: bytes) -> None:
            seen.append(data)
            self._hash = hashlib.sha256(data)
            self.update, self.digest = self._hash.update, self._hash.digest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commitvector, "_sha256", Spy)
        for size in (0, 10, 10_000):
            commit(b"R" * 16, 3, b"t" * 32, bytes(size))
        leaves = dict(enumerate(hashes(5)))
        root("flat", 5, leaves)
        root("merkle", 5, leaves)
    prefixes = {data[: data.index(b"\x00") + 1] for data in seen}
    assert prefixes == {b"diptych/1/ces-part\x00", b"diptych/1/ces-flat\x00", b"diptych/1/ces-node\x00"}
    assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)


@given(index=st.integers(0, 4095), tag=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200))
def test_what_is_hashed_for_a_part_says_where_every_field_ends(
    index: int, tag: bytes, message: bytes
) -> None:
    seen: list[bytes] = []
    real: Callable[[bytes], object] = hashlib.sha256
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commitvector, "_sha256", lambda data: (seen.append(data), real(data))[1])
        commit(b"R" * 16, index, tag, message)
    rest = seen[0].removeprefix(b"diptych/1/ces-part\x00")
    assert (rest[:16], int.from_bytes(rest[16:20], "big"), rest[20:52]) == (b"R" * 16, index, tag)
    assert (int.from_bytes(rest[52:60], "big"), rest[60:]) == (len(message), message)


SIGNER = ces.CesSigner.generate(ces.ED25519)


def signed(messages: tuple[bytes, ...], **more: object) -> ces.FullSignature:
    return ces.sign(
        messages,
        SIGNER,
        record=b"R" * 16,
        patient=b"P" * 32,
        doctor=b"D" * 32,
        created_ms=0,
        profile="safe",
        form="merkle",
        **more,  # type: ignore[arg-type]
    )


def test_a_tree_of_another_number_of_leaves_with_the_same_root_is_stopped_by_the_signed_count() -> None:
    """Under four leaves and under three, part 0 can have one and the same path: the hash of leaves 2 and 3 passes for leaf 2."""
    messages = (b"a", b"b", b"c", b"d")
    full = signed(messages)
    extract = full.extract(full.commitments(messages), [0])
    of_part = {0: commit(b"R" * 16, 0, full.tag(0), b"a")}
    assert root("merkle", 3, of_part, extract.hashes) == root("merkle", 4, of_part, extract.hashes)
    forged = ces.decode_extract(
        encode(
            ces.Extract(
                ces.Header(
                    *[3 if f == "count" else getattr(extract.header, f) for f in ces.Header.__struct_fields__]
                ),
                extract.selection,
                extract.hashes,
                extract.signature,
            )
        )
    )
    with pytest.raises(Unauthentic, match="header was changed"):
        ces.verify(forged, {0: (full.tag(0), b"a")}, (ces.ED25519, SIGNER.public))


def test_an_inner_node_does_not_pass_for_a_part_nor_a_part_for_an_inner_node() -> None:
    """The second preimage of a tree without domains: what was hashed for a node, shown as what was hashed for a part."""
    leaves = hashes(2)
    inner = node(*leaves)
    as_part = leaves[0] + leaves[1]
    for cut in range(len(as_part) + 1):
        tag, message = as_part[:cut].ljust(32, b"\0")[:32], as_part[cut:]
        assert commit(b"R" * 16, 0, tag, message) != inner
    # With the domains gone, a doctor finds a part that is a node: the attack is real, and it is the domains that stop it.
    record, tag, message = b"R" * 16, b"t" * 32, b"mmmm"
    preimage = record + commitvector._FIXED.pack(0, tag, len(message)) + message
    assert len(preimage) == 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commitvector, "_PART", b"")
        patch.setattr(commitvector, "_NODE", b"")
        assert root("merkle", 2, {0: preimage[:32], 1: preimage[32:]}) == commit(record, 0, tag, message)
    assert root("merkle", 2, {0: preimage[:32], 1: preimage[32:]}) != commit(record, 0, tag, message)


def test_repeating_the_last_leaf_gives_another_tree() -> None:
    for count in range(1, 40):
        leaves = hashes(count)
        longer = [*leaves, leaves[-1]]
        assert root("merkle", count, dict(enumerate(leaves))) != root(
            "merkle", count + 1, dict(enumerate(longer))
        )


@given(st.data())
def test_any_opening_of_any_length_is_refused_or_gives_a_root_in_bounded_work(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, ceas.MAX_PARTS))
    keep = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=20))
    given_bytes = data.draw(st.binary(max_size=2000))
    form = data.draw(st.sampled_from(FORMS))
    try:
        found = root(form, count, {i: b"c" * 32 for i in sorted(keep)}, given_bytes)
    except Malformed:
        return
    assert len(found) == 32


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_tag_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(Malformed, match=f"{size} bytes instead of 32"):
        commit(b"R" * 16, 3, bytes(size), b"message")
