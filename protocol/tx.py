"""Transactions: what patients, doctors, data users and the authority say on a chain.

Signed over chain id, sender, nonce, expiry and action; valid on that chain only and final at most once: a block takes a transaction
only until it expires, and refuses an id it has taken before.
"""

from typing import Annotated, Literal

import msgspec

from crypto.codec import Bytes16, Bytes32, Bytes64, Decoder, Short, UInt, Wire, encode
from crypto.dkg import Complaint, Dealing
from crypto.errors import Denied, Malformed
from crypto.sign import Ed25519Signer, verify
from protocol.block import MAX_TX, Committee
from protocol.genesis import Genesis, Member, check_members
from protocol.identity import Purpose, SignedCredential
from protocol.quorum import MAX_MEMBERS
from protocol.record import digest

MAX_LIFETIME_MS = 600_000
"""A transaction expires at most this long after the block that carries it; nodes remember ids that long."""


PolicyText = Annotated[str, msgspec.Meta(max_length=16 << 10)]
Ground = Literal["unconscious", "life-threatening", "cannot-consent", "public-danger"]
"""Why the glass is broken, in a word that says nothing of the patient's condition."""
Power = Literal["read", "decide"]
"""What a proxy may do for a patient: ask for records as the patient could; decide on requests and review emergencies."""


class Rule(Wire, frozen=True):
    """When the contract lets a reader have the index of a record: `policy` over certified attributes (the grammar of
    `crypto.policy`), one of `purposes`, from `from_ms` on and before `until_ms` (None: no bound), at most `uses` times (None: any number),
    and not on the `deny` list.

    With `approval`, a second person must agree to each request, whose certified attributes satisfy that policy; the patient and
    proxies who may decide can always do it. `emergency` says which two people may break the glass together; None: nobody may.
    """

    policy: PolicyText
    purposes: Annotated[tuple[Purpose, ...], msgspec.Meta(max_length=8)]
    until_ms: UInt | None
    deny: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=256)]
    from_ms: UInt | None = None
    uses: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    approval: PolicyText | None = None
    emergency: PolicyText | None = None

    @property
    def digest(self) -> bytes:
        """32 bytes."""
        return digest("rule", encode(self))


class Certify(Wire, frozen=True, tag="identity.certify"):
    """The authority puts a credential on chain; a newer one for the same subject replaces it."""

    credential: SignedCredential


class Revoke(Wire, frozen=True, tag="identity.revoke"):
    """The authority ends a credential at once."""

    subject: Bytes32


class Approval(Wire, frozen=True):
    """The signature of the admin with this place in the genesis."""

    admin: Annotated[int, msgspec.Meta(ge=0, lt=32)]
    signature: Bytes64


class ChangeMembers(Wire, frozen=True, tag="members.change"):
    """The admins agree that `members` take over when `epoch` ends, which it does with the block that carries this
    (`protocol.epochs`). Whoever sends it, the approvals count."""

    epoch: UInt
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]
    approvals: Annotated[tuple[Approval, ...], msgspec.Meta(max_length=32)]

    def __post_init__(self) -> None:
        check_members(self.members)

    def approve(self, genesis: Genesis, admin: Ed25519Signer) -> "ChangeMembers":
        """The same with the approval of one more admin; `Denied` if the key is not one."""
        if admin.public not in genesis.admins:
            raise Denied("this key is not among the admins that the genesis names")
        index = genesis.admins.index(admin.public)
        approval = Approval(index, admin.sign("members", self._payload(genesis)))
        others = [a for a in self.approvals if a.admin != index]
        approvals = tuple(sorted([*others, approval], key=lambda a: a.admin))
        return msgspec.structs.replace(self, approvals=approvals)

    def check(self, committee: Committee) -> None:
        """`Denied` or `Unauthentic` unless enough admins agree, in order and once each, to end this very epoch with other members."""
        genesis = committee.genesis
        if self.epoch != committee.epoch:
            raise Denied(
                f"the change of members is for the end of epoch {self.epoch}, and this is epoch {committee.epoch}; make it anew"
            )
        if self.members == committee.members:
            raise Denied("the change of members changes nothing")
        admins = [a.admin for a in self.approvals]
        if admins != sorted(set(admins)) or any(a >= len(genesis.admins) for a in admins):
            raise Denied(
                "the approvals name an admin twice, out of order, or one that the genesis does not know"
            )
        payload = self._payload(genesis)
        for approval in self.approvals:
            verify(
                genesis.admins[approval.admin], "members", payload, approval.signature, "an admin's approval"
            )
        if not genesis.admins or len(admins) < genesis.admin_quorum:
            raise Denied(
                f"{len(admins)} admins have approved where {genesis.admin_quorum} of {len(genesis.admins)} must"
            )

    def _payload(self, genesis: Genesis) -> bytes:
        return encode((genesis.hash, self.epoch, self.members))


class Attest(Wire, frozen=True, tag="record.attest"):
    """A doctor states that they signed a record of this patient; `header` is a digest of the signed CES header."""

    record: Bytes16
    patient: Bytes32
    header: Bytes32


class Publish(Wire, frozen=True, tag="record.publish"):
    """The patient puts a version of a record's index on chain (eqs. 6-9): `commit` names the view, `sealed_index` is the
    address, encrypted to the chain's index key for this very record, version and rule (`protocol.index_key`), `rule` says who may have
    it. Versions grow by one. By `tags`, ascending, researchers find the record; a patient publishes them on purpose."""

    record: Bytes16
    version: UInt
    commit: Bytes32
    sealed_index: Annotated[bytes, msgspec.Meta(max_length=2048)]
    rule: Rule
    tags: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=32)] = ()


class Retire(Wire, frozen=True, tag="record.retire"):
    """The patient ends a record: nobody is granted it any more. `replaced_by` names a later record that takes its place."""

    record: Bytes16
    replaced_by: Bytes16 | None


class Erase(Wire, frozen=True, tag="record.erase"):
    """The patient has had the cloud delete a record; `deletion` is the cloud's encoded `DeletionReceipt`."""

    record: Bytes16
    deletion: Annotated[bytes, msgspec.Meta(max_length=1024)]


class Emergency(Wire, frozen=True):
    """Why somebody breaks the glass: the ground for everyone, the words sealed to the patient's key (`crypto.seal`)."""

    ground: Ground
    note: Annotated[bytes, msgspec.Meta(min_length=1, max_length=2048)]


class Request(Wire, frozen=True, tag="access.request"):
    """A data user asks for a record for a purpose (eq. 14); the receipt is the decision. The purpose `emergency`, and only that,
    comes with an `Emergency`."""

    record: Bytes16
    purpose: Purpose
    emergency: Emergency | None = None


class Decide(Wire, frozen=True, tag="access.decide"):
    """A second person's word on a request that waits: an approver's, or in an emergency the second certified person's."""

    request: Bytes32
    allow: bool


class Review(Wire, frozen=True, tag="access.review"):
    """The patient, or a proxy who may decide, has looked at an emergency access."""

    request: Bytes32
    verdict: Literal["justified", "contested"]


class SetProxy(Wire, frozen=True, tag="proxy.set"):
    """A patient lets a certified person act for them within these times; a new one replaces the old, no powers end it."""

    proxy: Bytes32
    powers: Annotated[tuple[Power, ...], msgspec.Meta(max_length=2)]
    from_ms: UInt
    until_ms: UInt


class Deal(Wire, frozen=True, tag="index.deal"):
    """A member deals its part of the index key, in a round of `protocol.index_key`."""

    round: UInt
    dealing: Dealing


class Judge(Wire, frozen=True, tag="index.judge"):
    """A member has opened its pieces of the round's dealings and proves which are wrong; most often none."""

    round: UInt
    complaints: Annotated[tuple[Complaint, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


class Close(Wire, frozen=True, tag="index.close"):
    """A member says that the deadline of this phase of the round has passed."""

    round: UInt
    phase: Literal["dealing", "judging"]


Action = (
    Certify
    | Revoke
    | ChangeMembers
    | Attest
    | Publish
    | Retire
    | Erase
    | Request
    | Decide
    | Review
    | SetProxy
    | Deal
    | Judge
    | Close
)


class TxBody(Wire, frozen=True):
    chain_id: Short
    sender: Bytes32
    nonce: Bytes16
    expires_ms: UInt
    action: Action


class Tx(Wire, frozen=True, tag="tx/1"):
    body: TxBody
    signature: Bytes64

    @classmethod
    def make(
        cls, chain_id: str, sender: Ed25519Signer, nonce: bytes, expires_ms: int, action: Action
    ) -> "Tx":
        body = TxBody(chain_id, sender.public, nonce, expires_ms, action)
        return cls(body, sender.sign("tx", encode(body)))

    @property
    def id(self) -> bytes:
        """32 bytes over what is signed, so that no second signature makes a second transaction of it."""
        return digest("tx", encode(self.body))


decode_tx = Decoder(Tx, "a transaction", MAX_TX)


def check_tx(raw: bytes, chain_id: str) -> Tx:
    """The transaction in `raw` if it is well-formed, for this chain, and signed by its sender; `Malformed` or `Unauthentic` otherwise."""
    tx = decode_tx(raw)
    if tx.body.chain_id != chain_id:
        raise Malformed(
            f"the transaction is for chain {tx.body.chain_id!r}, this is {chain_id!r}; send it there"
        )
    verify(tx.body.sender, "tx", encode(tx.body), tx.signature, "the transaction")
    return tx
