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
from protocol.quorum import MAX_MEMBERS
from protocol.tx import ChangeMembers, Tx


class Handover(Wire, frozen=True, tag="handover/1"):
    """The end of an epoch, proved to whoever knows its members: the header of its last block, the headers from there to the one that
    `finalization` names, and the members that the last block's header commits to."""

    header: Header
    links: Annotated[tuple[Header, ...], msgspec.Meta(max_length=4096)]
    finalization: Certificate
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]


decode_handover = Decoder(Handover, "the end of an epoch", 2 << 20)


def next_members(committee: Committee, txs: Iterable[Tx]) -> tuple[Member, ...] | None:
    """The members that the first valid change among the transactions of a block names; None if there is none."""
    for tx in txs:
        action = tx.body.action
        if isinstance(action, ChangeMembers):
            try:
                action.check(committee)
            except DiptychError:
                continue  # the contract refuses it in a receipt, with the reason
            return action.members
    return None


def successor(committee: Committee, last: Header, members: tuple[Member, ...]) -> Committee:
    """The committee of the epoch that builds on `last`."""
    return Committee(
        committee.genesis, committee.epoch + 1, members, Anchor(last.id, last.height, last.time_ms)
    )


def follow(committee: Committee, handover: Handover) -> Committee:
    """The committee after the one given; `Unauthentic` if the handover does not prove it.

    The last block carries the change and what stands on it is empty, so no other block can pass for the one to build on."""
    headers = [handover.header, *handover.links]
    proof = handover.finalization
    holds = (
        all(h.chain_id == committee.genesis.chain_id and h.epoch == committee.epoch for h in headers)
        and all(b.parent == a.id for a, b in pairwise(headers))
        and handover.header.tx_count > 0
        and not any(h.tx_count for h in handover.links)
        and handover.header.validators_hash == committee.validators_hash
        and handover.header.next_validators_hash == validators_hash(committee.genesis, handover.members)
        and handover.header.next_validators_hash != committee.validators_hash
        and proof.kind == "finalize"
        and proof.block == headers[-1].id
        and committee.is_valid_certificate(proof)
    )
    if not holds:
        raise Unauthentic(
            f"what should prove the end of epoch {committee.epoch} of {committee.genesis.chain_id} does not; "
            "whoever sent it lies or runs another network"
        )
    return successor(committee, handover.header, handover.members)
