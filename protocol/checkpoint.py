"""What nodes sign of the history they have executed, and how a receipt is proved by it.

A checkpoint says where the chain stood after one block: the block, the running root of all receipts, the root of the state. The members of
an epoch sign it on demand, for any height that they have executed, their own epoch's or an earlier one's; a quorum of them makes
it believed. With it, a receipt or a value of the state needs no node's word (docs/protocol.md, "Checkpoints").
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

import msgspec

from crypto.codec import Bytes32, Bytes64, Decoder, Short, UInt, Wire, encode
from crypto.errors import Unauthentic
from crypto.sign import Ed25519Signer, is_valid
from protocol import merkle
from protocol.block import MAX_TX, Certificate, Committee, Header, Signer
from protocol.contract import Receipt, next_root_over
from protocol.quorum import MAX_MEMBERS
from protocol.tx import decode_tx


class Checkpoint(Wire, frozen=True, tag="checkpoint/1"):
    """`epoch` is that of the members who sign; `time_ms` is the time of the block `block` at `height`, at 0 of genesis."""

    chain_id: Short
    epoch: UInt
    height: UInt
    block: Bytes32
    time_ms: UInt
    receipts_root: Bytes32
    state_root: Bytes32


class CheckpointSignature(Wire, frozen=True):
    signer: Signer
    signature: Bytes64


class SignedCheckpoint(Wire, frozen=True, tag="signed-checkpoint/1"):
    """A checkpoint with signatures in the order of the members: one as a node answers, a quorum once it is believed."""

    checkpoint: Checkpoint
    signatures: Annotated[tuple[CheckpointSignature, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]

    @classmethod
    def make(cls, checkpoint: Checkpoint, signer: int, key: Ed25519Signer) -> "SignedCheckpoint":
        """With the signature of the member `signer` of the epoch that the checkpoint names."""
        signature = key.sign("checkpoint", encode(checkpoint))
        return cls(checkpoint, (CheckpointSignature(signer, signature),))

    @classmethod
    def join(cls, several: Iterable["SignedCheckpoint"]) -> "SignedCheckpoint":
        """One with the signatures of several of the same checkpoint."""
        listed = list(several)
        found = {s.signer: s for signed in listed for s in signed.signatures}
        return cls(listed[0].checkpoint, tuple(found[signer] for signer in sorted(found)))

    def signers(self, committee: Committee) -> list[int]:
        """The members of the committee who have signed this; `Unauthentic` unless all signatures hold and the epoch is theirs."""
        signers, payload = [s.signer for s in self.signatures], encode(self.checkpoint)
        if (
            (self.checkpoint.chain_id, self.checkpoint.epoch) != (committee.genesis.chain_id, committee.epoch)
            or signers != sorted(set(signers))
            or signers[-1] >= committee.size
            or not all(
                is_valid(committee.keys[s.signer], "checkpoint", payload, s.signature)
                for s in self.signatures
            )
        ):
            raise Unauthentic(
                "the signatures on a checkpoint do not hold, or are not those of the members of its epoch"
            )
        return signers

    def verify(self, committee: Committee) -> Checkpoint:
        """The checkpoint, believed: `Unauthentic` unless a quorum of the committee has signed it."""
        count = len(self.signers(committee))
        if count < committee.quorum:
            raise Unauthentic(f"{count} members have signed the checkpoint where {committee.quorum} must")
        return self.checkpoint


Path = Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=64)]


class ReceiptProof(Wire, frozen=True, tag="receipt-proof/1"):
    """A receipt with its way to the running root after its block: its path among the receipts of the block, and the root before.

    The block's header, with `links` to the block that `finalization` names, shows that consensus made it final. `tx` is the transaction
    itself, with its path under the header's Merkle root; None where the node has archived the bodies of blocks so old.
    """

    receipt: Receipt
    path: Path
    root_before: Bytes32
    header: Header
    links: Annotated[tuple[Header, ...], msgspec.Meta(max_length=4096)]
    finalization: Certificate
    tx: Annotated[bytes, msgspec.Meta(max_length=MAX_TX)] | None
    tx_path: Path

    def verify(self, checkpoint: Checkpoint, committee: Committee) -> Receipt:
        """The receipt, proved by a believed checkpoint of its height and the members of the block's epoch; `Unauthentic` otherwise."""
        receipt, header = self.receipt, self.header
        if not self._is_in(checkpoint):
            raise Unauthentic("the receipt is not among those that the members have signed for its block")
        if not self._is_final(committee):
            raise Unauthentic("what should prove that the block of a receipt is final does not")
        if self.tx is not None and not (
            decode_tx(self.tx).id == receipt.tx
            and merkle.is_included(self.tx, receipt.position, header.tx_count, self.tx_path, header.tx_root)
        ):
            raise Unauthentic("the transaction of a receipt is not in its block")
        return receipt

    def _is_in(self, checkpoint: Checkpoint) -> bool:
        receipt, header = self.receipt, self.header
        root = merkle.root_from(encode(receipt), receipt.position, header.tx_count, self.path)
        return (
            root is not None
            and (receipt.height, receipt.time_ms) == (header.height, header.time_ms)
            and (header.chain_id, header.height, header.id, header.time_ms)
            == (checkpoint.chain_id, checkpoint.height, checkpoint.block, checkpoint.time_ms)
            and next_root_over(self.root_before, header.id, root) == checkpoint.receipts_root
        )

    def _is_final(self, committee: Committee) -> bool:
        headers, proof = [self.header, *self.links], self.finalization
        return (
            all(
                (h.chain_id, h.epoch) == (committee.genesis.chain_id, committee.epoch)
                and h.validators_hash == committee.validators_hash
                for h in headers
            )
            and all(b.parent == a.id for a, b in pairwise(headers))
            and (proof.kind, proof.block) == ("finalize", headers[-1].id)
            and committee.is_valid_certificate(proof)
        )


decode_signed_checkpoint = Decoder(SignedCheckpoint, "a signed checkpoint", 16 << 10)
decode_receipt_proof = Decoder(ReceiptProof, "a receipt with its proof", 2 << 20)
