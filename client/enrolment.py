"""How a person gets certified: the authority's staff hands out an invitation, the person proves the keys they made themselves.

The authority has checked by its own means who the person is when it issues the invitation; whoever holds it can use it once. What of it goes
over the network is of no use to who listens: the key in it stays with the person, and signs for the person's own keys alone. Once certified on the chains, the person asks those who issue attribute keys for one, a part from each.
"""

import base64
from typing import Annotated

import msgspec

from crypto.abe import MAX_ATTRIBUTE_KEY_BYTES
from crypto.codec import Bytes32, Bytes64, Decoder, UInt, Wire, encode
from crypto.errors import Malformed
from crypto.seal import OVERHEAD
from crypto.sign import Ed25519Signer, SigningKey, verify
from crypto.split import MAX_JOINT_BYTES
from protocol.identity import Attribute, CesKey, Role, SignedCredential

_PREFIX = "diptych-invite-"
MAX_ENROLMENT = 32 << 10
MAX_SKEW_MS = 600_000
"""How far the clock of who asks for a renewal or a key may be off."""


class InviteBody(Wire, frozen=True):
    """`key` is the public half of the invitation's own key."""

    role: Role
    attributes: Annotated[tuple[Attribute, ...], msgspec.Meta(max_length=64)]
    key: Bytes32
    expires_ms: UInt


class Invite(Wire, frozen=True):
    """What the authority has signed; public."""

    body: InviteBody
    signature: Bytes64

    def verify(self, authority: bytes) -> None:
        verify(authority, "invite", encode(self.body), self.signature, "the invitation")


class Invitation(Wire, frozen=True, tag="invitation/1"):
    """What one person is given: the invite and the seed of its key. Travels as a line of text, by a way that only they can read."""

    invite: Invite
    seed: Bytes32

    @classmethod
    def make(
        cls, role: Role, attributes: tuple[str, ...], expires_ms: int, seed: bytes, authority: Ed25519Signer
    ) -> "Invitation":
        """`seed` is 32 fresh random bytes."""
        body = InviteBody(role, attributes, SigningKey(seed).public, expires_ms)
        return cls(Invite(body, authority.sign("invite", encode(body))), seed)

    def to_text(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(encode(self)).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> "Invitation":
        """The invitation in `text`, or `Malformed`."""
        text = text.strip()
        if not text.startswith(_PREFIX) or len(text) > 2 * MAX_ENROLMENT:
            raise Malformed(f"an invitation is a line that starts with {_PREFIX}; copy it whole")
        encoded = text[len(_PREFIX) :]
        try:
            return _decode_invitation(
                base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            )
        except ValueError:
            raise Malformed("the invitation is damaged; copy it whole") from None


class EnrolmentBody(Wire, frozen=True):
    """What the person asks to have certified; `seal_key` is X25519."""

    invite: Invite
    subject: Bytes32
    seal_key: Bytes32
    ces_key: CesKey | None


class Enrolment(Wire, frozen=True, tag="enrolment/1"):
    """Signed by the subject's own key, as proof of possession, and by the invitation's, so that nobody else's key takes its place."""

    body: EnrolmentBody
    signature: Bytes64
    invited: Bytes64

    @classmethod
    def make(cls, body: EnrolmentBody, subject: Ed25519Signer, invitation: Invitation) -> "Enrolment":
        payload = encode(body)
        invited = SigningKey(invitation.seed).sign("invited", payload)
        return cls(body, subject.sign("enrolment", payload), invited)

    def verify(self) -> None:
        payload = encode(self.body)
        verify(self.body.subject, "enrolment", payload, self.signature, "the enrolment")
        verify(self.body.invite.body.key, "invited", payload, self.invited, "the use of the invitation")


class RenewalBody(Wire, frozen=True):
    subject: Bytes32
    time_ms: UInt


class Renewal(Wire, frozen=True, tag="renewal/1"):
    """A certified person asks for the current week's attributes; signed by the subject's own key."""

    body: RenewalBody
    signature: Bytes64

    @classmethod
    def make(cls, subject: Ed25519Signer, time_ms: int) -> "Renewal":
        body = RenewalBody(subject.public, time_ms)
        return cls(body, subject.sign("renewal", encode(body)))

    def verify(self) -> None:
        verify(self.body.subject, "renewal", encode(self.body), self.signature, "the renewal")


class KeyRequestBody(Wire, frozen=True):
    """What a certified person asks an authority for: the attribute key to `credential`, or that authority's part of it."""

    credential: SignedCredential
    issuer: Bytes32
    time_ms: UInt


class KeyRequest(Wire, frozen=True, tag="key-request/1"):
    """Signed by the subject of the credential."""

    body: KeyRequestBody
    signature: Bytes64

    @classmethod
    def make(cls, body: KeyRequestBody, subject: Ed25519Signer) -> "KeyRequest":
        return cls(body, subject.sign("key-request", encode(body)))

    def verify(self) -> None:
        subject = self.body.credential.credential.subject
        verify(subject, "key-request", encode(self.body), self.signature, "the request for a key")


class Issued(Wire, frozen=True, tag="issued/1"):
    """An authority's answer: the joint public key as it knows it, and its part of the attribute key, sealed to the subject. Signed with
    the request that it answers."""

    joint: Annotated[bytes, msgspec.Meta(max_length=MAX_JOINT_BYTES)]
    sealed_part: Annotated[bytes, msgspec.Meta(max_length=MAX_ATTRIBUTE_KEY_BYTES + OVERHEAD)]
    signature: Bytes64

    @classmethod
    def make(cls, request: KeyRequest, joint: bytes, sealed_part: bytes, issuer: Ed25519Signer) -> "Issued":
        return cls(joint, sealed_part, issuer.sign("issued", encode((request, joint, sealed_part))))

    def verify(self, request: KeyRequest) -> None:
        payload = encode((request, self.joint, self.sealed_part))
        verify(request.body.issuer, "issued", payload, self.signature, "the authority's answer")


_decode_invitation = Decoder(Invitation, "an invitation", MAX_ENROLMENT)
decode_enrolment = Decoder(Enrolment, "an enrolment", MAX_ENROLMENT)
decode_renewal = Decoder(Renewal, "a renewal", 1 << 10)
decode_key_request = Decoder(KeyRequest, "a request for a key", MAX_ENROLMENT)
decode_issued = Decoder(Issued, "an issued key", MAX_JOINT_BYTES + MAX_ATTRIBUTE_KEY_BYTES + (1 << 10))
