"""Hiding commitments to the parts of a record, and the one root that stands for all of them, flat or as a Merkle tree.

A part is committed to under a random tag of its own, as SHA-256(ces-part ‖ record ‖ i ‖ tag ‖ |m| ‖ m): CommitVector of
Steinfeld, Bull and Zheng (ICISC 2001). The root is

    flat    SHA-256(ces-flat ‖ all commitments in order)
    merkle  the root of the tree of RFC 6962 section 2.1.1 with the commitments as leaves and SHA-256(ces-node ‖ left ‖ right)
            as nodes; the odd node at the end of a level moves up as it is

An *opening* stands in for the parts that are not at hand, so that the root still follows from those that are: flat, their
commitments in order; in the tree, the tops of the largest subtrees without a part at hand, level by level from the leaves up
and from left to right in each. Which hashes these are follows from the number of parts and the selection alone, so there is one
opening for a selection, and its length is known before it is read.

Invariants: part, node and flat root hash in domains of their own, so none passes for another; every field before the message has
a fixed size; a commitment says nothing about its part to who does not know the tag, hence neither does an opening.
"""

import hashlib
from collections.abc import Mapping
from struct import Struct
from typing import Literal

from crypto.errors import Malformed
from crypto.sign import domain_tag

Form = Literal["flat", "merkle"]

TAG_BYTES = 32
HASH_BYTES = 32

_PART, _FLAT, _NODE = domain_tag("ces-part"), domain_tag("ces-flat"), domain_tag("ces-node")
_FIXED = Struct(">I32sQ")
_SMALL = 4096
"""Bytes of a message up to which copying it is cheaper than a second call."""
_sha256 = hashlib.sha256


def commit(record: bytes, index: int, tag: bytes, message: bytes) -> bytes:
    """32 bytes that bind `record` (16 bytes), `index`, `tag` (32 bytes, or `Malformed`) and `message`."""
    if len(tag) != TAG_BYTES:
        raise Malformed(f"the tag of part {index} has {len(tag)} bytes instead of {TAG_BYTES}")
    fixed = _PART + record + _FIXED.pack(index, tag, len(message))
    if len(message) <= _SMALL:
        return _sha256(fixed + message).digest()
    commitment = _sha256(fixed)
    commitment.update(message)
    return commitment.digest()


def root(form: Form, count: int, commitments: Mapping[int, bytes], opening: bytes = b"") -> bytes:
    """The root over `count` parts: `commitments` by ascending index of those at hand (at least one), `opening` for the rest.

    `Malformed` unless the opening has exactly the hashes that are missing.
    """
    if form == "flat":
        return _sha256(_FLAT + _row(count, commitments, opening)).digest()
    return _climb(count, commitments, opening)[0]


def opening(form: Form, count: int, parts: Mapping[int, bytes], old: bytes = b"") -> bytes:
    """The opening for a selection of `parts`: by ascending index, the commitment of each part that goes and b"" for each that
    stays (at least one).

    `parts` are all parts, or those of an extract whose opening is `old`; `Malformed` unless the two fit each other.
    """
    if form == "flat":
        return _row(count, parts, old)
    return _climb(count, parts, old)[1]


def _row(count: int, parts: Mapping[int, bytes], opening: bytes) -> bytes:
    if len(opening) != HASH_BYTES * (count - len(parts)):
        raise _misfit()
    hashes = (opening[at : at + HASH_BYTES] for at in range(0, len(opening), HASH_BYTES))
    return b"".join(parts[i] if i in parts else next(hashes) for i in range(count))


def _climb(count: int, parts: Mapping[int, bytes], opening: bytes) -> tuple[bytes, bytes]:
    """From the leaves up: the root, and the opening for the leaves that are b"" (then there is no root)."""
    indices, hashes = list(parts), list(parts.values())
    hidden: list[bytes] = []
    size, used = count, 0
    while size > 1:
        above: list[int] = []
        nodes: list[bytes] = []
        at = 0
        while at < len(indices):
            index, left = indices[at], hashes[at]
            at += 1
            above.append(index >> 1)
            if index == size - 1 and not index & 1:
                nodes.append(left)
                continue
            if not index & 1 and at < len(indices) and indices[at] == index + 1:
                right = hashes[at]
                at += 1
            else:
                right = opening[used : used + HASH_BYTES]
                used += HASH_BYTES
                if index & 1:
                    left, right = right, left
            if left and right:
                nodes.append(_sha256(_NODE + left + right).digest())
            else:
                nodes.append(b"")
                hidden.append(left or right)
        indices, hashes, size = above, nodes, (size + 1) >> 1
    if used != len(opening):
        raise _misfit()
    return hashes[0], b"".join(hidden)


def _misfit() -> Malformed:
    return Malformed(
        "the extract does not carry exactly the hashes that its selection of parts needs: get it again"
    )
