"""The contract: a deterministic function (state, transaction) -> (state, receipt), the same code on both chains.

Every transaction in a final block gets a receipt, `ok` or refused with a reason; a refused one changes nothing else. The receipts of
`access.request` are the patient's access log (C12). Times are the block's, so that all nodes decide alike.
State is a map from byte keys to canonical objects: `person/<key>`, `record/<id>`, `grant/<transaction id>` (the ticket a granted request may be
exchanged for), `members` (the epoch, where it began, and who decides in it), and those of `protocol.index_key`.
"""

from typing import Annotated

import msgspec

from crypto import policy, tdh2
from crypto.codec import Bytes16, Bytes32, Decoder, Short, UInt, Wire, encode
from crypto.errors import Denied, DiptychError, PolicyError
from protocol import index_key, merkle
from protocol.block import Committee
from protocol.genesis import Genesis, Member
from protocol.identity import Credential, Purpose, Role, SignedCredential, Ticket
from protocol.index_key import index_label
from protocol.quorum import quorum
from protocol.record import digest
from protocol.state import Refused, State
from protocol.tx import Attest, Certify, ChangeMembers, Close, Deal, Judge, Publish, Request, Revoke, Rule, Tx

TICKET_LIFETIME_MS = 600_000
MAX_OBJECT = 64 << 10
MEMBERS_KEY = b"members"


class Person(Wire, frozen=True, tag="person/1"):
    """`signed` bears the authority's signature, so a client need not trust the node that shows it."""

    signed: SignedCredential
    is_revoked: bool


class RecordEntry(Wire, frozen=True, tag="record-entry/1"):
    """A record on this chain: attested by its doctor (`version` 0), then published by its patient."""

    patient: Bytes32
    doctor: Bytes32
    header: Bytes32
    version: UInt
    commit: Bytes32
    sealed_index: Annotated[bytes, msgspec.Meta(max_length=2048)]
    rule: Rule | None
    time_ms: UInt


class Receipt(Wire, frozen=True, tag="receipt/1"):
    """The contract's word on one transaction; `code` is for programs, `reason` for people."""

    tx: Bytes32
    height: UInt
    position: UInt
    time_ms: UInt
    kind: Short
    sender: Bytes32
    record: Bytes16 | None
    purpose: Purpose | None
    ok: bool
    code: Short
    reason: Annotated[str, msgspec.Meta(max_length=1024)]


decode_receipt = Decoder(Receipt, "a receipt", MAX_OBJECT)
decode_person = Decoder(Person, "a person", MAX_OBJECT)
decode_record = Decoder(RecordEntry, "a record entry", MAX_OBJECT)
decode_members = Decoder[tuple[int, int, tuple[Member, ...]]](
    tuple[UInt, UInt, tuple[Member, ...]],
    "the members",
    MAX_OBJECT,
)
decode_ticket = Decoder(Ticket, "a ticket", MAX_OBJECT)


def person_key(subject: bytes) -> bytes:
    return b"person/" + subject


def record_key(record: bytes) -> bytes:
    return b"record/" + record


def grant_key(tx_id: bytes) -> bytes:
    return b"grant/" + tx_id


def get_person(state: State, subject: bytes) -> Person | None:
    data = state.get(person_key(subject))
    return decode_person(data) if data else None


def get_record(state: State, record: bytes) -> RecordEntry | None:
    data = state.get(record_key(record))
    return decode_record(data) if data else None


def may_send(state: State, genesis: Genesis, sender: bytes) -> bool:
    """Whether a node takes transactions of this sender in at all: the authority, the admins, certified people, and the chain's members while they
    make their index key."""
    return (
        sender == genesis.authority
        or sender in genesis.admins
        or get_person(state, sender) is not None
        or index_key.may_take_part(state, genesis, sender)
    )


def apply(state: State, genesis: Genesis, tx: Tx, height: int, position: int, time_ms: int) -> Receipt:
    """Execute one transaction of the final block at `height` and `time_ms`; never raises for what a sender wrote."""
    action, sender = tx.body.action, tx.body.sender
    try:
        match action:
            case Certify():
                code, reason = _certify(state, genesis, sender, action, time_ms)
            case Revoke():
                code, reason = _revoke(state, genesis, sender, action)
            case ChangeMembers():
                code, reason = _change_members(state, genesis, action, height)
            case Attest():
                code, reason = _attest(state, sender, action, time_ms)
            case Publish():
                code, reason = _publish(state, genesis, sender, action, time_ms)
            case Request():
                code, reason = _request(state, genesis, tx, action, time_ms)
            case Deal():
                code, reason = index_key.deal(state, genesis, sender, action, time_ms)
            case Judge():
                code, reason = index_key.judge(state, genesis, sender, action, time_ms)
            case Close():
                code, reason = index_key.close(state, genesis, sender, action, time_ms)
        ok = True
    except Refused as refused:
        ok, code, reason = False, refused.code, refused.reason
    record = action.record if isinstance(action, Attest | Publish | Request) else None
    purpose = action.purpose if isinstance(action, Request) else None
    kind = action.__struct_config__.tag
    return Receipt(tx.id, height, position, time_ms, str(kind), sender, record, purpose, ok, code, reason)


def next_root(root: bytes, block_id: bytes, receipts: list[Receipt]) -> bytes:
    """The running root of receipts after a block: nodes that agree on it executed the same history alike."""
    return digest("receipts", encode((root, block_id, merkle.root([encode(r) for r in receipts]))))


def _certify(state: State, genesis: Genesis, sender: bytes, action: Certify, time_ms: int) -> tuple[str, str]:
    if sender != genesis.authority:
        raise Refused("not-authority", "only the authority certifies people")
    try:
        credential = action.credential.verify(genesis.authority, time_ms)
    except DiptychError as error:
        raise Refused("bad-credential", str(error)) from None
    state.put(person_key(credential.subject), encode(Person(action.credential, False)))
    return "certified", f"certified as {credential.role}"


def _revoke(state: State, genesis: Genesis, sender: bytes, action: Revoke) -> tuple[str, str]:
    if sender != genesis.authority:
        raise Refused("not-authority", "only the authority revokes credentials")
    person = get_person(state, action.subject)
    if person is None:
        raise Refused("unknown-person", "nobody with this key is certified on this chain")
    state.put(person_key(action.subject), encode(Person(person.signed, True)))
    return "revoked", "the credential is revoked"


def get_members(state: State, genesis: Genesis) -> tuple[int, tuple[Member, ...]]:
    """The current epoch and its members."""
    epoch, _, members = _members(state, genesis)
    return epoch, members


def _members(state: State, genesis: Genesis) -> tuple[int, int, tuple[Member, ...]]:
    """The current epoch, the height of the block that it builds on, and its members."""
    data = state.get(MEMBERS_KEY)
    return decode_members(data) if data else (0, 0, genesis.members)


def _change_members(state: State, genesis: Genesis, action: ChangeMembers, height: int) -> tuple[str, str]:
    epoch, last_change, members = _members(state, genesis)
    if height == last_change:
        raise Refused("bad-change", f"this block has ended epoch {epoch - 1} already; send the change again")
    try:
        action.check(Committee(genesis, epoch, members))
    except DiptychError as error:
        raise Refused("bad-change", str(error)) from None
    state.put(MEMBERS_KEY, encode((epoch + 1, height, action.members)))
    index_key.open_resharing(state, genesis, action.members, quorum(len(action.members), genesis.mode))
    return "members-changed", f"epoch {epoch + 1} begins with {len(action.members)} members"


def _certified(state: State, key: bytes, time_ms: int, role: Role | None = None) -> Credential:
    person = get_person(state, key)
    if person is None:
        raise Refused(
            "not-certified", "the key is not certified on this chain; ask the authority for a credential"
        )
    if person.is_revoked:
        raise Refused("revoked", "the credential of this key was revoked")
    credential = person.signed.credential
    if not credential.not_before_ms <= time_ms < credential.not_after_ms:
        raise Refused(
            "credential-expired", "the credential of this key is not valid now; ask the authority to renew it"
        )
    if role and credential.role != role:
        raise Refused("wrong-role", f"this needs a key certified as {role}, not as {credential.role}")
    return credential


def _attest(state: State, sender: bytes, action: Attest, time_ms: int) -> tuple[str, str]:
    _certified(state, sender, time_ms, "doctor")
    _certified(state, action.patient, time_ms, "patient")
    if get_record(state, action.record):
        raise Refused("record-exists", "a record with this id is already on this chain")
    entry = RecordEntry(action.patient, sender, action.header, 0, bytes(32), b"", None, time_ms)
    state.put(record_key(action.record), encode(entry))
    return "attested", "the doctor's statement is on chain"


def _publish(state: State, genesis: Genesis, sender: bytes, action: Publish, time_ms: int) -> tuple[str, str]:
    _certified(state, sender, time_ms, "patient")
    entry = get_record(state, action.record)
    if entry is None:
        raise Refused("not-attested", "no doctor has attested this record on this chain")
    if entry.patient != sender:
        raise Refused("not-owner", "only the patient of a record publishes it")
    if action.version != entry.version + 1:
        raise Refused(
            "wrong-version",
            f"the next version is {entry.version + 1}, not {action.version}; fetch it and retry",
        )
    try:
        policy.parse(action.rule.policy)
    except PolicyError as error:
        raise Refused("bad-policy", f"the rule's policy does not parse: {error}"[:1024]) from None
    if not action.rule.purposes:
        raise Refused("bad-rule", "the rule allows no purpose, so nobody could ever read the record")
    key = index_key.get_key(state)
    if key is None:
        raise Refused(
            "no-index-key", "the members of this chain are still making its index key; try again later"
        )
    label = index_label(genesis.chain_id, action.record, action.version, action.rule.digest)
    try:
        tdh2.check(key.public, label, action.sealed_index)
    except DiptychError as error:
        raise Refused(
            "bad-index", f"the index entry is not for this record, version and rule: {error}"
        ) from None
    entry = msgspec.structs.replace(
        entry,
        version=action.version,
        commit=action.commit,
        sealed_index=action.sealed_index,
        rule=action.rule,
        time_ms=time_ms,
    )
    state.put(record_key(action.record), encode(entry))
    return "published", f"version {action.version} is the current one"


def _request(state: State, genesis: Genesis, tx: Tx, action: Request, time_ms: int) -> tuple[str, str]:
    sender = tx.body.sender
    credential = _certified(state, sender, time_ms)
    entry = get_record(state, action.record)
    if entry is None or entry.rule is None:
        raise Refused("unknown-record", "no such record is published on this chain")
    rule = entry.rule
    if sender in rule.deny:
        raise Refused("denied-by-patient", "the patient has put this key on the record's deny list")
    if rule.until_ms is not None and time_ms >= rule.until_ms:
        raise Refused("rule-expired", "the patient's permission has expired")
    if action.purpose not in rule.purposes:
        raise Refused("wrong-purpose", f"the record is not open for {action.purpose}")
    if not policy.parse(rule.policy).satisfied(credential.attributes):
        raise Refused(
            "policy-not-met", "the certified attributes of this key do not satisfy the record's rule"
        )
    expires = time_ms + TICKET_LIFETIME_MS
    ticket = Ticket(
        genesis.chain_id, tx.id, action.record, entry.version, entry.commit, sender, action.purpose, expires
    )
    state.put(grant_key(tx.id), encode(ticket))
    return "allowed", "the rule is satisfied"


def check_grant(state: State, tx_id: bytes, now_ms: int) -> tuple[Ticket, RecordEntry, Credential]:
    """What a node needs to release an index for the granted request `tx_id`; `Denied` if there is no live grant of the
    record's current version to a certified requester."""
    data = state.get(grant_key(tx_id))
    if data is None:
        raise Denied("the contract has not allowed this request; see its receipt for the reason")
    ticket = decode_ticket(data)
    entry = get_record(state, ticket.record)
    if entry is None or entry.version != ticket.version:
        raise Denied("the record has a newer version than the request; request access again")
    if now_ms >= ticket.expires_ms:
        raise Denied("the grant has expired; request access again")
    try:
        return ticket, entry, _certified(state, ticket.requester, now_ms)
    except Refused as refused:
        raise Denied(refused.reason) from None
