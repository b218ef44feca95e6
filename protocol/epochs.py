"""Epochs: how the members of a chain change, and how anyone follows from genesis who they are.

The admins' change is a transaction (`protocol.tx.ChangeMembers`). The first block that carries a valid one ends its epoch: its header names
the next members, and whatever its epoch still puts on top of it is empty, helps to make it final and is dropped. The next epoch is a
fresh engine whose genesis is that block; its views start at 1 again. docs/protocol.md, "Members and epochs".
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

import msgspec

from crypto.codec import Decoder, Wire
from crypto.errors import DiptychError, Unauthentic
from protocol.block import Anchor, Certificate, Committee, Header, validators_hash
from protocol.genesis import Member
from protocol.tx import ChangeMembers, Tx


class Handover(Wire, frozen=True, tag="handover/1"):
    """The end of an epoch, proved to whoever knows its members: the header of its last block, the headers from there to the one that
    `finalization` names, and the admins' change whose members the last block's header commits to."""

    header: Header
    links: Annotated[tuple[Header, ...], msgspec.Meta(max_length=4096)]
    finalization: Certificate
    change: ChangeMembers


decode_handover = Decoder(Handover, "the end of an epoch", 2 << 20)


def next_change(committee: Committee, txs: Iterable[Tx]) -> ChangeMembers | None:
    """The first valid change among the transactions of a block, which ends its epoch; None if there is none."""
    actions = (tx.body.action for tx in txs)
    return next((a for a in actions if isinstance(a, ChangeMembers) and _is_agreed(a, committee)), None)


def _is_agreed(change: ChangeMembers, committee: Committee) -> bool:
    """Whether the admins agree to it; the contract says in a receipt why not."""
    try:
        change.check(committee)
    except DiptychError:
        return False
    return True


def successor(committee: Committee, last: Header, members: tuple[Member, ...]) -> Committee:
    """The committee of the epoch that builds on `last`."""
    return Committee(
        committee.genesis, committee.epoch + 1, members, Anchor(last.id, last.height, last.time_ms)
    )


def follow(committee: Committee, handover: Handover) -> Committee:
    """The committee after the one given; `Unauthentic` if the handover does not prove it.

    A quorum must have made the end final, and the admins have agreed to the next members: neither can replace them alone. The last
    block carries the change and what stands on it is empty, so no other block can pass for the one to build on.
    """
    headers, members = [handover.header, *handover.links], handover.change.members
    proof = handover.finalization
    holds = (
        all(h.chain_id == committee.genesis.chain_id and h.epoch == committee.epoch for h in headers)
        and all(b.parent == a.id for a, b in pairwise(headers))
        and handover.header.tx_count > 0
        and not any(h.tx_count for h in handover.links)
        and handover.header.validators_hash == committee.validators_hash
        and handover.header.next_validators_hash == validators_hash(committee.genesis, members)
        and _is_agreed(handover.change, committee)
        and proof.kind == "finalize"
        and proof.block == headers[-1].id
        and committee.is_valid_certificate(proof)
    )
    if not holds:
        raise Unauthentic(
            f"what should prove the end of epoch {committee.epoch} of {committee.genesis.chain_id} does not; "
            "whoever sent it lies or runs another network"
        )
    return successor(committee, handover.header, members)
