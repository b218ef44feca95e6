"""The objects of consensus (docs/protocol.md, "Objects") and the messages that nodes exchange.

A block is the paper's data set with its hash (eqs. 10-13): the leader's ordered transactions under one header that every node
votes on. Every signed string carries the chain id and the epoch, so nothing signed for one chain holds on the other.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

from crypto.codec import Bytes32, Bytes64, Decoder, Short, UInt, Wire, encode
from crypto.sign import Ed25519Signer, is_valid
from protocol.genesis import Genesis, Member
from protocol.quorum import MAX_MEMBERS, quorum
from protocol.record import digest

Kind = Literal["notarize", "nullify", "finalize"]
Signer = Annotated[int, msgspec.Meta(ge=0, lt=MAX_MEMBERS)]
SignerSet = Annotated[bytes, msgspec.Meta(max_length=MAX_MEMBERS // 8)]
"""A set of members, as short as it can be: i is in it if bit i % 8 of byte i // 8 is set."""
MAX_TX = 48 << 10
"""Bytes of one encoded transaction."""


class Header(Wire, frozen=True):
    chain_id: Short
    epoch: UInt
    view: UInt
    height: UInt
    parent: Bytes32
    parent_view: UInt
    tx_root: Bytes32
    tx_count: UInt
    time_ms: UInt
    validators_hash: Bytes32
    next_validators_hash: Bytes32
    proposer: Signer

    @property
    def id(self) -> bytes:
        """The block id: SHA-256 of the canonical header."""
        return digest("block", encode(self))


class Vote(Wire, frozen=True):
    """One member's signed word on a view; `block` is None exactly for nullify."""

    kind: Kind
    view: UInt
    block: Bytes32 | None
    signer: Signer
    signature: Bytes64


def signer_set(signers: Iterable[int]) -> bytes:
    """The `SignerSet` of these members."""
    mask = sum(1 << i for i in set(signers))
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


class Certificate(Wire, frozen=True):
    """Exactly a quorum of votes for the same thing: a notarization, nullification or finalization.

    `signatures` follow in ascending order of signer.
    """

    kind: Kind
    view: UInt
    block: Bytes32 | None
    signers: SignerSet
    signatures: Annotated[tuple[Bytes64, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


class Block(Wire, frozen=True, tag="block/1"):
    """Header, ordered encoded transactions, and the nullifications that justify the views skipped before it."""

    header: Header
    txs: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=10_000)]
    skips: Annotated[tuple[Certificate, ...], msgspec.Meta(max_length=1024)]


class Proposal(Wire, frozen=True, tag="proposal/1"):
    """A block with the proof that it may stand where it stands; `parent_cert` is None only on top of genesis."""

    block: Block
    parent_cert: Certificate | None
    vote: Vote


class Votes(Wire, frozen=True, tag="votes/1"):
    """Fresh votes; a nullify comes with the sender's highest notarization."""

    votes: Annotated[tuple[Vote, ...], msgspec.Meta(max_length=64)]
    notarization: Certificate | None


class Status(Wire, frozen=True, tag="status/1"):
    """What a node knows and has signed: the only retransmission there is. To a member of another epoch only `epoch` and `height` speak."""

    epoch: UInt
    view: UInt
    height: UInt
    finalization: Certificate | None
    notarization: Certificate | None
    nullification: Certificate | None
    votes: Annotated[tuple[Vote, ...], msgspec.Meta(max_length=64)]


class Want(Wire, frozen=True, tag="want/1"):
    """Asks for an unfinalized block by id."""

    block: Bytes32


class Body(Wire, frozen=True, tag="body/1"):
    """Answers `Want`."""

    block: Block


class Chain(Wire, frozen=True, tag="chain/1"):
    """A page of finalized blocks of one epoch in height order; `links` are the headers from the last block to the one that
    `finalization` names."""

    blocks: Annotated[tuple[Block, ...], msgspec.Meta(min_length=1, max_length=4096)]
    links: Annotated[tuple[Header, ...], msgspec.Meta(max_length=4096)]
    finalization: Certificate


class Rejoin(Wire, frozen=True, tag="rejoin/1"):
    """A member that has lost its journal asks how far the others are; `nonce` is fresh, so that no old report answers it."""

    nonce: Bytes32


class Report(Wire, frozen=True, tag="report/1"):
    """Answers `Rejoin`, signed: `view` is the highest view that the sender may have signed in. `proof` is a certificate that
    leads into that view or a few terms before it, so that a liar cannot name a view for ever ahead; None in the first terms."""

    nonce: Bytes32
    view: UInt
    proof: Certificate | None
    signature: Bytes64


class Accusation(Wire, frozen=True, tag="accusation/1"):
    """Two contradicting votes of one member, passed on so that every member holds the evidence."""

    first: Vote
    second: Vote


Message = Proposal | Votes | Status | Want | Body | Chain | Rejoin | Report | Accusation
decode_message = Decoder[Message](Message, "a consensus message", 4 << 20)  # type: ignore[arg-type]
decode_block = Decoder(Block, "a block", 4 << 20)
decode_vote = Decoder(Vote, "a vote", 1 << 10)
decode_certificate = Decoder(Certificate, "a certificate", 16 << 10)


class Anchor(NamedTuple):
    """The block that an epoch builds on, final and notarized by definition as its view 0: genesis, or the last block of the
    epoch before."""

    id: bytes
    height: int
    time_ms: int


class Committee:
    """The members of one epoch: who leads, what a vote signs, what makes a certificate. By default those of epoch 0."""

    def __init__(
        self,
        genesis: Genesis,
        epoch: int = 0,
        members: tuple[Member, ...] | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        self.genesis, self.epoch = genesis, epoch
        self.members = genesis.members if members is None else members
        self.anchor = anchor or Anchor(genesis.hash, 0, genesis.time_ms)
        self.keys = tuple(m.key for m in self.members)
        self.size, self.quorum = len(self.members), quorum(len(self.members), genesis.mode)
        self.validators_hash = validators_hash(genesis, self.members)
        self._length = genesis.term_length

    def term(self, view: int) -> int:
        return (view - 1) // self._length

    def term_start(self, term: int) -> int:
        return term * self._length + 1

    def leader(self, view: int) -> int:
        return self.term(view) % self.size

    def _payload(self, kind: Kind, view: int, block: bytes | None) -> bytes:
        return encode((self.genesis.chain_id, self.epoch, kind, view, block))

    def sign(self, key: Ed25519Signer, signer: int, kind: Kind, view: int, block: bytes | None) -> Vote:
        return Vote(kind, view, block, signer, key.sign("vote", self._payload(kind, view, block)))

    def report(
        self, key: Ed25519Signer, signer: int, nonce: bytes, view: int, proof: Certificate | None
    ) -> Report:
        return Report(nonce, view, proof, key.sign("report", self._report_payload(signer, nonce, view)))

    def _report_payload(self, signer: int, nonce: bytes, view: int) -> bytes:
        return encode((self.genesis.chain_id, self.epoch, signer, nonce, view))

    def is_valid_report(self, report: Report, signer: int) -> bool:
        """Signed by the member, with a view that its proof supports: at most a term for each member, who may all have
        rejoined in turn since, beyond the view that the proof leads into."""
        return (
            signer < self.size
            and self.term(report.view) <= self.term(self.opened_by(report.proof)) + self.size
            and is_valid(
                self.keys[signer],
                "report",
                self._report_payload(signer, report.nonce, report.view),
                report.signature,
            )
        )

    def opened_by(self, cert: Certificate | None) -> int:
        """The view that a certificate leads into; without any, the first."""
        if cert is None:
            return 1
        return self.term_start(self.term(cert.view) + 1) if cert.kind == "nullify" else cert.view + 1

    def is_valid_vote(self, vote: Vote) -> bool:
        return (
            vote.signer < self.size
            and (vote.block is None) == (vote.kind == "nullify")
            and vote.view > 0
            and is_valid(
                self.keys[vote.signer],
                "vote",
                self._payload(vote.kind, vote.view, vote.block),
                vote.signature,
            )
        )

    def certify(self, votes: Iterable[Vote]) -> Certificate:
        """A certificate from at least a quorum of valid votes for one thing by different signers."""
        chosen = sorted(votes, key=lambda v: v.signer)[: self.quorum]
        first, signers = chosen[0], signer_set(v.signer for v in chosen)
        return Certificate(first.kind, first.view, first.block, signers, tuple(v.signature for v in chosen))

    def votes_of(self, cert: Certificate) -> list[Vote]:
        """The votes in a certificate that has a quorum of them; otherwise none."""
        mask = int.from_bytes(cert.signers, "little")
        signers = [i for i in range(mask.bit_length()) if mask >> i & 1]
        if not len(signers) == len(cert.signatures) == self.quorum or cert.signers[-1] == 0:
            return []
        pairs = zip(signers, cert.signatures, strict=True)
        return [Vote(cert.kind, cert.view, cert.block, signer, signature) for signer, signature in pairs]

    def is_valid_certificate(self, cert: Certificate) -> bool:
        """Exactly a quorum of distinct members, each with a valid signature of their own (I6)."""
        votes = self.votes_of(cert)
        return bool(votes) and all(map(self.is_valid_vote, votes))

    def _skipped_terms(self, parent_view: int, view: int) -> range:
        """The terms touched by the views strictly between; a range, as a liar may name views 2^60 apart."""
        return (
            range(self.term(parent_view + 1), self.term(view - 1) + 1) if view - parent_view > 1 else range(0)
        )

    def covering_terms(self, parent_view: int, view: int) -> Iterator[tuple[int, int]]:
        """For each term touched by the views strictly between: (term, first skipped view)."""
        terms = self._skipped_terms(parent_view, view)
        return ((t, max(parent_view + 1, self.term_start(t))) for t in terms)

    def is_legal_parent(self, parent_view: int, view: int, skips: tuple[Certificate, ...]) -> bool:
        """Whether a block at `view` may build on `parent_view`, `skips` being exactly the list that shows it (section 2)."""
        if view != self.term_start(self.term(view)):
            return parent_view == view - 1 and not skips
        if parent_view >= view or len(self._skipped_terms(parent_view, view)) != len(skips):
            return False
        return all(
            skip.kind == "nullify" and self.term(skip.view) == term and skip.view <= first
            for (term, first), skip in zip(self.covering_terms(parent_view, view), skips, strict=True)
        )


def validators_hash(genesis: Genesis, members: tuple[Member, ...]) -> bytes:
    """What headers say of the members of an epoch (32 bytes): who they are, and by which rule they agree."""
    return digest("validators", encode((genesis.mode, members)))
