"""Who is who: credentials that the authority signs, and tickets that the nodes of a chain sign.

Everyone makes their own keys; a credential certifies the public halves, a role and expiring attributes (the paper's CA makes
everybody's private keys, docs/deviations.md). People are named by their Ed25519 public key, never by a name.
"""

from typing import Annotated, Literal

import msgspec

from crypto.codec import Bytes16, Bytes32, Bytes64, Decoder, Short, UInt, Wire, encode
from crypto.errors import Denied, Unauthentic
from crypto.sign import SigningKey, is_valid, verify
from protocol.quorum import MAX_MEMBERS

Role = Literal["doctor", "patient", "user"]
Purpose = Literal["treatment", "research", "payment", "public-health", "patient-request", "emergency"]
ChainKind = Literal["storage", "sharing"]
Attribute = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[a-z][a-z0-9-]*:[A-Za-z0-9._@-]+\Z")]


class CesKey(Wire, frozen=True):
    """A doctor's record-signing key: `suite` names the algorithm, `public` is its encoding under that suite."""

    suite: Short
    public: Annotated[bytes, msgspec.Meta(max_length=1024)]


class Credential(Wire, frozen=True):
    """What the authority certifies of one person; times are Unix milliseconds."""

    subject: Bytes32
    role: Role
    attributes: Annotated[tuple[Attribute, ...], msgspec.Meta(max_length=64)]
    seal_key: Bytes32
    ces_key: CesKey | None
    not_before_ms: UInt
    not_after_ms: UInt


class SignedCredential(Wire, frozen=True):
    credential: Credential
    signature: Bytes64

    @classmethod
    def issue(cls, credential: Credential, authority: SigningKey) -> "SignedCredential":
        return cls(credential, authority.sign("credential", encode(credential)))

    def verify(self, authority: bytes, now_ms: int) -> Credential:
        """The credential, or `Unauthentic` (signature) or `Denied` (not valid at `now_ms`)."""
        verify(authority, "credential", encode(self.credential), self.signature, "the credential")
        if not self.credential.not_before_ms <= now_ms < self.credential.not_after_ms:
            raise Denied("the credential is not valid now; ask the authority to renew it")
        return self.credential


decode_credential = Decoder(SignedCredential, "a credential", 16 << 10)


class Ticket(Wire, frozen=True):
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
            raise Unauthentic("the ticket was issued by another chain")
        if self.epoch != epoch:
            raise Denied("the members of the chain have changed; exchange the request for a ticket again")
        signers = [s.signer for s in self.signatures]
        if signers != sorted(set(signers)) or (signers and signers[-1] >= len(members)):
            raise Unauthentic(
                "the ticket lists its signers twice, out of order or beyond the members of the chain"
            )
        payload = encode(self.ticket)
        good = sum(is_valid(members[s.signer], "ticket", payload, s.signature) for s in self.signatures)
        if good < quorum:
            raise Unauthentic(f"the ticket bears {good} valid node signatures where {quorum} are needed")
        if now_ms >= self.ticket.expires_ms:
            raise Denied("the ticket has expired; request access again")
        return self.ticket


class Release(Wire, frozen=True):
    """One node's answer to a granted request: its signature on the ticket, and the index entry sealed to the requester.

    Until the index is encrypted to a threshold key, every node of the chain can open it (docs/deviations.md).
    """

    ticket: Ticket
    epoch: UInt
    signature: TicketSignature
    sealed_index: Annotated[bytes, msgspec.Meta(max_length=4096)]


decode_release = Decoder(Release, "a release", 16 << 10)
