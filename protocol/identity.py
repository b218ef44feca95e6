"""Who is who: credentials that the authority signs, and tickets that the nodes of a chain sign.

Everyone makes their own keys; a credential certifies the public halves, a role and expiring attributes (the paper's CA makes
everybody's private keys, docs/deviations.md). People are named by their Ed25519 public key, never by a name.
"""

from typing import Annotated, Literal

import msgspec

from crypto.codec import Bytes16, Bytes32, Bytes64, Decoder, Short, UInt, Wire, encode
from crypto.errors import Denied, Unauthentic
from crypto.sign import Ed25519Signer, is_valid, verify
from protocol.quorum import MAX_MEMBERS

Role = Literal["doctor", "patient", "user"]
Purpose = Literal["treatment", "research", "payment", "public-health", "patient-request", "emergency"]
ChainKind = Literal["storage", "sharing"]
MAX_CERTIFIED = 64
"""Attributes of one credential."""
KEY_KIND = "key"
"""The kind of attribute that names one person; the authority certifies it unasked, and for its own key alone."""
Attribute = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[a-z][a-z0-9-]*:[A-Za-z0-9._@-]+\Z")]


class CesKey(Wire, frozen=True):
    """A doctor's record-signing key: `suite` names the algorithm, `public` is its encoding under that suite."""

    suite: Short
    public: Annotated[bytes, msgspec.Meta(max_length=1024)]


class Credential(Wire, frozen=True):
    """What the authority certifies of one person; times are Unix milliseconds."""

    subject: Bytes32
    role: Role
    attributes: Annotated[tuple[Attribute, ...], msgspec.Meta(max_length=MAX_CERTIFIED)]
    seal_key: Bytes32
    ces_key: CesKey | None
    not_before_ms: UInt
    not_after_ms: UInt


def key_attribute(subject: bytes) -> str:
    """The attribute that the holder of this Ed25519 key alone is certified with, so that a policy can name one person. 128 bits of
    the key: nobody makes another one that begins alike."""
    return f"{KEY_KIND}:{subject.hex()[:32]}"


class SignedCredential(Wire, frozen=True, tag="credential/1"):
    credential: Credential
    signature: Bytes64

    @classmethod
    def issue(cls, credential: Credential, authority: Ed25519Signer) -> "SignedCredential":
        return cls(credential, authority.sign("credential", encode(credential)))

    def verify(self, authority: bytes, now_ms: int) -> Credential:
        """The credential, or `Unauthentic` (signature) or `Denied` (not valid at `now_ms`)."""
        verify(authority, "credential", encode(self.credential), self.signature, "the credential")
        if not self.credential.not_before_ms <= now_ms < self.credential.not_after_ms:
            raise Denied("the credential is not valid now; ask the authority to renew it")
        return self.credential


decode_credential = Decoder(SignedCredential, "a credential", 16 << 10)


class Ticket(Wire, frozen=True, tag="ticket/1"):
    """A chain's leave for one requester to fetch one record version from the cloud until `expires_ms`."""

    chain_id: Short
    request: Bytes32
    record: Bytes16
    version: UInt
    commit: Bytes32
    requester: Bytes32
    purpose: Purpose
    expires_ms: UInt


class TicketSignature(Wire, frozen=True):
    signer: Annotated[int, msgspec.Meta(ge=0, lt=MAX_MEMBERS)]
    signature: Bytes64


class SignedTicket(Wire, frozen=True):
    """A ticket with the signatures of a quorum of the chain's nodes, in the order of the members of `epoch`."""

    ticket: Ticket
    epoch: UInt
    signatures: Annotated[tuple[TicketSignature, ...], msgspec.Meta(max_length=MAX_MEMBERS)]

    def verify(
        self, chain_id: str, epoch: int, members: tuple[bytes, ...], quorum: int, now_ms: int
    ) -> Ticket:
        """The ticket, or `Unauthentic` (too few true signatures, other chain) or `Denied` (expired, former members)."""
        if self.ticket.chain_id != chain_id:
            raise Unauthentic("the ticket was issued by another chain", "other-chain")
        if self.epoch != epoch:
            raise Denied(
                "the members of the chain have changed; exchange the request for a ticket again",
                "other-epoch",
            )
        signers = [s.signer for s in self.signatures]
        if signers != sorted(set(signers)) or (signers and signers[-1] >= len(members)):
            raise Unauthentic(
                "the ticket lists its signers twice, out of order or beyond the members of the chain",
                "bad-ticket",
            )
        payload = encode(self.ticket)
        good = sum(is_valid(members[s.signer], "ticket", payload, s.signature) for s in self.signatures)
        if good < quorum:
            raise Unauthentic(
                f"the ticket bears {good} valid node signatures where {quorum} are needed", "bad-ticket"
            )
        if now_ms >= self.ticket.expires_ms:
            raise Denied("the ticket has expired; request access again", "expired")
        return self.ticket


class Release(Wire, frozen=True, tag="release/1"):
    """One node's answer to a granted request: its signature on the ticket, the index entry as it stands on chain with the digest of the
    rule that it was encrypted for, and the node's decryption share (`crypto.tdh2`), sealed to the requester.

    `round` is that of the index key whose share it is. A member that holds no share leaves `sealed_share` out. `proof` is the
    node's signature over everything else, so that nobody else can make its share look wrong.
    """

    ticket: Ticket
    epoch: UInt
    signature: TicketSignature
    entry: Annotated[bytes, msgspec.Meta(max_length=2048)]
    rule: Bytes32
    round: UInt
    sealed_share: Annotated[bytes, msgspec.Meta(max_length=512)] | None
    proof: Bytes64

    @classmethod
    def make(
        cls,
        ticket: Ticket,
        epoch: int,
        signer: int,
        key: Ed25519Signer,
        *,
        entry: bytes,
        rule: bytes,
        round: int,
        sealed_share: bytes | None,
    ) -> "Release":
        """Signed twice by the member `signer` of `epoch` with its `key`: the ticket alone, for the cloud, and the whole, for the requester."""
        signature = TicketSignature(signer, key.sign("ticket", encode(ticket)))
        unsigned = cls(ticket, epoch, signature, entry, rule, round, sealed_share, bytes(64))
        return msgspec.structs.replace(unsigned, proof=key.sign("release", unsigned._payload()))

    def is_signed(self, members: tuple[bytes, ...]) -> bool:
        """Whether the member it names has signed the ticket and the whole, `members` being the consensus keys."""
        signer = self.signature.signer
        return (
            signer < len(members)
            and is_valid(members[signer], "ticket", encode(self.ticket), self.signature.signature)
            and is_valid(members[signer], "release", self._payload(), self.proof)
        )

    def _payload(self) -> bytes:
        return encode(
            (self.ticket, self.epoch, self.signature, self.entry, self.rule, self.round, self.sealed_share)
        )


decode_release = Decoder(Release, "a release", 16 << 10)
