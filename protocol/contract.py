"""The contract: a deterministic function (state, transaction) -> (state, receipt), the same code on both chains.

Every transaction in a final block gets a receipt, `ok` or refused with a reason; a refused one changes nothing else. The receipts that
concern a record are its log, and with it the patient's access log (C12). Times are the block's, so that all nodes decide alike.
State is a map from byte keys to canonical objects; docs/contract.md lists the keys, and each transition with its conditions in the
order in which they are checked.
"""

from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

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
from protocol.record import decode_deletion_receipt, digest
from protocol.state import Refused, State, StateReader
from protocol.tx import (
    Action,
    Attest,
    Certify,
    ChangeMembers,
    Close,
    Deal,
    Decide,
    Emergency,
    Erase,
    Judge,
    Power,
    Publish,
    Request,
    Retire,
    Review,
    Revoke,
    Rule,
    SetProxy,
    Tx,
)

TICKET_LIFETIME_MS = 600_000
"""A ticket ends no later than that, nor than what it was granted for: the requester's credential, the rule, the proxy's time."""
EMERGENCY_LIFETIME_MS = 3_600_000
"""How long a ticket of an emergency lasts, and before it the request waits for the second person."""
WAITING_LIFETIME_MS = 7 * 86_400_000
"""How long any other request waits for a second person."""
MAX_OBJECT = 64 << 10
MAX_REASON = 1024
MEMBERS_KEY = b"members"
LISTED = encode(True)
"""The value of keys that only list something under its patient, reader, proxy or tag."""


class Person(Wire, frozen=True, tag="person/1"):
    """`signed` bears the authority's signature, so a client need not trust the node that shows it."""

    signed: SignedCredential
    is_revoked: bool


class RecordEntry(Wire, frozen=True, tag="record-entry/1"):
    """A record on this chain: attested by its doctor (`version` 0), published by its patient, retired or erased in the end.

    `tags` are those of the current version. An erased record keeps its id, so that it cannot come back, and the cloud's
    encoded `DeletionReceipt` in `deletion`; everything else of it is zero or empty.
    """

    patient: Bytes32
    doctor: Bytes32
    header: Bytes32
    version: UInt
    commit: Bytes32
    sealed_index: Annotated[bytes, msgspec.Meta(max_length=2048)]
    rule: Rule | None
    time_ms: UInt
    status: Literal["attested", "published", "retired", "erased"]
    tags: tuple[Bytes32, ...]
    replaced_by: Bytes16 | None
    deletion: Annotated[bytes, msgspec.Meta(max_length=1024)]


class Pending(Wire, frozen=True, tag="pending-request/1"):
    """A request that waits for a second person until `expires_ms`; granted only for the version that it was made for. `second` is who
    agreed, where an emergency access waits for its review."""

    request: Bytes32
    record: Bytes16
    version: UInt
    patient: Bytes32
    requester: Bytes32
    purpose: Purpose
    emergency: Emergency | None
    time_ms: UInt
    expires_ms: UInt
    second: Bytes32 | None = None


class Proxy(Wire, frozen=True, tag="proxy/1"):
    """Who may act for a patient, in what, from when until when."""

    patient: Bytes32
    proxy: Bytes32
    powers: tuple[Power, ...]
    from_ms: UInt
    until_ms: UInt


class Uses(Wire, frozen=True, tag="uses/1"):
    """How often the rule with this digest has granted a record."""

    rule: Bytes32
    count: UInt


class LogHead(Wire, frozen=True, tag="log-head/1"):
    """How many receipts concern a record, and the digest that chains them all: whoever has it can tell a complete log."""

    count: UInt
    digest: Bytes32


class Receipt(Wire, frozen=True, tag="receipt/1"):
    """The contract's word on one transaction; `code` is for programs, `reason` for people. `record` is the record concerned, if it is
    known to the chain; `request` the request that a decision or a review is about."""

    tx: Bytes32
    height: UInt
    position: UInt
    time_ms: UInt
    kind: Short
    sender: Bytes32
    record: Bytes16 | None
    purpose: Purpose | None
    request: Bytes32 | None
    ok: bool
    code: Short
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


decode_receipt = Decoder(Receipt, "a receipt", MAX_OBJECT)
decode_person = Decoder(Person, "a person", MAX_OBJECT)
decode_record = Decoder(RecordEntry, "a record entry", MAX_OBJECT)
decode_members = Decoder[tuple[int, int, tuple[Member, ...]]](
    tuple[UInt, UInt, tuple[Member, ...]],
    "the members",
    MAX_OBJECT,
)
decode_ticket = Decoder(Ticket, "a ticket", MAX_OBJECT)
decode_pending = Decoder(Pending, "a waiting request", MAX_OBJECT)
decode_proxy = Decoder(Proxy, "a proxy", MAX_OBJECT)
decode_log_head = Decoder(LogHead, "the head of a log", MAX_OBJECT)
decode_uses = Decoder(Uses, "the uses of a rule", MAX_OBJECT)


def person_key(subject: bytes) -> bytes:
    return b"person/" + subject


def record_key(record: bytes) -> bytes:
    return b"record/" + record


def log_key(record: bytes) -> bytes:
    return b"log/" + record


def grant_key(tx_id: bytes) -> bytes:
    return b"grant/" + tx_id


def pending_key(tx_id: bytes) -> bytes:
    return b"pending/" + tx_id


def review_key(tx_id: bytes) -> bytes:
    return b"review/" + tx_id


def proxy_key(patient: bytes, proxy: bytes) -> bytes:
    return b"proxy/" + patient + proxy


def patient_list(patient: bytes) -> bytes:
    """Prefix of the keys that end with the ids of a patient's records."""
    return b"of/" + patient


def grant_list(reader: bytes) -> bytes:
    """Prefix of the keys that end with the ids of a reader's granted requests."""
    return b"granted/" + reader


def inbox_list(patient: bytes) -> bytes:
    """Prefix of the keys that end with the ids of requests that wait for a decision, or for the patient's review."""
    return b"inbox/" + patient


def ward_list(proxy: bytes) -> bytes:
    """Prefix of the keys that end with the keys of the patients for whom somebody may act."""
    return b"ward/" + proxy


def tag_list(tag: bytes) -> bytes:
    """Prefix of the keys that end with the ids of the records that bear a tag."""
    return b"tag/" + tag


def _uses_key(record: bytes) -> bytes:
    return b"uses/" + record


def _waiting_key(record: bytes, requester: bytes) -> bytes:
    return b"waiting/" + record + requester


def get_person(state: StateReader, subject: bytes) -> Person | None:
    data = state.get(person_key(subject))
    return decode_person(data) if data else None


def get_record(state: StateReader, record: bytes) -> RecordEntry | None:
    data = state.get(record_key(record))
    return decode_record(data) if data else None


def get_log_head(state: StateReader, record: bytes) -> LogHead:
    data = state.get(log_key(record))
    return decode_log_head(data) if data else LogHead(0, bytes(32))


def next_log_head(head: LogHead, receipt: Receipt) -> LogHead:
    return LogHead(head.count + 1, digest("record-log", head.digest + encode(receipt)))


def get_waiting(state: StateReader, tx_id: bytes) -> Pending | None:
    """A request that waits for a second person."""
    data = state.get(pending_key(tx_id))
    return decode_pending(data) if data else None


def get_review(state: StateReader, tx_id: bytes) -> Pending | None:
    """An emergency access that the patient has not reviewed."""
    data = state.get(review_key(tx_id))
    return decode_pending(data) if data else None


def get_proxy(state: StateReader, patient: bytes, proxy: bytes) -> Proxy | None:
    data = state.get(proxy_key(patient, proxy))
    return decode_proxy(data) if data else None


def may_send(state: StateReader, genesis: Genesis, sender: bytes) -> bool:
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
    about = _about(state, action)
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
            case Retire():
                code, reason = _retire(state, sender, action, time_ms)
            case Erase():
                code, reason = _erase(state, sender, action, time_ms)
            case Request():
                code, reason = _request(state, genesis, tx, action, time_ms)
            case Decide():
                code, reason = _decide(state, genesis, sender, action, time_ms)
            case Review():
                code, reason = _review(state, sender, action, time_ms)
            case SetProxy():
                code, reason = _set_proxy(state, sender, action, time_ms)
            case Deal():
                code, reason = index_key.deal(state, genesis, sender, action, time_ms)
            case Judge():
                code, reason = index_key.judge(state, genesis, sender, action, time_ms)
            case Close():
                code, reason = index_key.close(state, genesis, sender, action, time_ms)
        ok = True
    except Refused as refused:
        ok, code, reason = False, refused.code, refused.reason
    record, purpose, request = about
    known = record is not None and get_record(state, record) is not None
    kind = str(action.__struct_config__.tag)
    receipt = Receipt(
        tx.id,
        height,
        position,
        time_ms,
        kind,
        sender,
        record if known else None,
        purpose,
        request,
        ok,
        code,
        reason[:MAX_REASON],
    )
    if record is not None and known:
        state.put(log_key(record), encode(next_log_head(get_log_head(state, record), receipt)))
    return receipt


def _about(state: StateReader, action: Action) -> tuple[bytes | None, Purpose | None, bytes | None]:
    """The record, purpose and earlier request that a transaction is about, before it changes anything."""
    match action:
        case Attest() | Publish() | Retire() | Erase():
            return action.record, None, None
        case Request():
            return action.record, action.purpose, None
        case Decide() | Review():
            found = get_waiting(state, action.request) or get_review(state, action.request)
            return (found.record, found.purpose, found.request) if found else (None, None, action.request)
        case _:
            return None, None, None


def next_root(root: bytes, block_id: bytes, receipts: list[Receipt]) -> bytes:
    """The running root of receipts after a block: nodes that agree on it executed the same history alike."""
    return next_root_over(root, block_id, merkle.root([encode(r) for r in receipts]))


def next_root_over(root: bytes, block_id: bytes, receipts: bytes) -> bytes:
    """As `next_root`, from the Merkle root of the block's encoded receipts."""
    return digest("receipts", encode((root, block_id, receipts)))


def _certify(state: State, genesis: Genesis, sender: bytes, action: Certify, time_ms: int) -> tuple[str, str]:
    if sender != genesis.authority:
        raise Refused("not-authority", "only the authority certifies people")
    try:
        credential = action.credential.verify(genesis.authority, time_ms)
    except DiptychError as error:
        raise Refused("bad-credential", str(error)) from None
    person = get_person(state, credential.subject)
    if person is not None and person.is_revoked:
        raise Refused("revoked", "the credential of this key was revoked for good; certify a new key")
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


def get_members(state: StateReader, genesis: Genesis) -> tuple[int, tuple[Member, ...]]:
    """The current epoch and its members."""
    epoch, _, members = _members(state, genesis)
    return epoch, members


def _members(state: StateReader, genesis: Genesis) -> tuple[int, int, tuple[Member, ...]]:
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


def _certified(state: StateReader, key: bytes, time_ms: int, role: Role | None = None) -> Credential:
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
    entry = RecordEntry(
        action.patient, sender, action.header, 0, bytes(32), b"", None, time_ms, "attested", (), None, b""
    )
    state.put(record_key(action.record), encode(entry))
    state.put(patient_list(action.patient) + action.record, LISTED)
    return "attested", "the doctor's statement is on chain"


def _own_record(state: State, sender: bytes, record: bytes, time_ms: int) -> RecordEntry:
    """The record, if its patient asks and it is not at its end."""
    _certified(state, sender, time_ms, "patient")
    entry = get_record(state, record)
    if entry is None:
        raise Refused("not-attested", "no doctor has attested this record on this chain")
    if entry.status == "erased":
        raise Refused("erased", "the record was erased")
    if entry.patient != sender:
        raise Refused("not-owner", "only the patient of a record publishes, retires or erases it")
    return entry


_parsed = lru_cache(maxsize=256)(policy.parse)
"""The largest take milliseconds, and a block may bring a thousand requests."""


def _check_rule(rule: Rule) -> None:
    for what, text in (("policy", rule.policy), ("approval", rule.approval), ("emergency", rule.emergency)):
        try:
            if text is not None:
                _parsed(text)
        except PolicyError as error:
            raise Refused("bad-policy", f"the rule's {what} does not parse: {error}") from None
    if not rule.purposes:
        raise Refused("bad-rule", "the rule allows no purpose, so nobody could ever read the record")
    if "emergency" in rule.purposes:
        raise Refused(
            "bad-rule", "emergency is no purpose of a rule: its emergency policy says who may break the glass"
        )
    if rule.from_ms is not None and rule.until_ms is not None and rule.from_ms >= rule.until_ms:
        raise Refused("bad-rule", "the rule ends before it begins, so nobody could ever read the record")


def _publish(state: State, genesis: Genesis, sender: bytes, action: Publish, time_ms: int) -> tuple[str, str]:
    entry = _own_record(state, sender, action.record, time_ms)
    if entry.status == "retired":
        raise Refused("retired", "the record was retired; it is published no more")
    if action.version != entry.version + 1:
        raise Refused(
            "wrong-version",
            f"the next version is {entry.version + 1}, not {action.version}; fetch it and retry",
        )
    _check_rule(action.rule)
    if list(action.tags) != sorted(set(action.tags)):
        raise Refused("bad-tags", "the tags are not in ascending order, or one comes twice")
    key = index_key.get_key(state)
    if key is None:
        raise Refused(
            "no-index-key", "the members of this chain are still making its index key; try again later"
        )
    label = index_label(genesis.chain_id, action.record, action.version, action.rule.digest)
    try:
        tdh2.check(key.public, label, action.sealed_index)
    except DiptychError:
        raise Refused(
            "bad-index",
            "the index entry is not encrypted to this chain's index key for this record, version and rule; make it anew",
        ) from None
    _retag(state, action.record, entry.tags, action.tags)
    entry = msgspec.structs.replace(
        entry,
        version=action.version,
        commit=action.commit,
        sealed_index=action.sealed_index,
        rule=action.rule,
        time_ms=time_ms,
        status="published",
        tags=action.tags,
    )
    state.put(record_key(action.record), encode(entry))
    return "published", f"version {action.version} is the current one"


def _retag(state: State, record: bytes, old: tuple[bytes, ...], new: tuple[bytes, ...]) -> None:
    for tag in sorted(set(old) - set(new)):
        state.remove(tag_list(tag) + record)
    for tag in sorted(set(new) - set(old)):
        state.put(tag_list(tag) + record, LISTED)


def _retire(state: State, sender: bytes, action: Retire, time_ms: int) -> tuple[str, str]:
    entry = _own_record(state, sender, action.record, time_ms)
    if entry.status == "retired":
        raise Refused("retired", "the record was retired already")
    if action.replaced_by is not None:
        other = get_record(state, action.replaced_by)
        # Nor a retired one, so that no replacements go in a circle.
        is_live = other is not None and other.patient == sender and other.status != "retired"
        if not is_live or action.replaced_by == action.record:
            raise Refused(
                "bad-replacement", "the replacement is no other live record of this patient on this chain"
            )
    _retag(state, action.record, entry.tags, ())
    state.remove(_uses_key(action.record))
    entry = msgspec.structs.replace(
        entry,
        sealed_index=b"",
        rule=None,
        time_ms=time_ms,
        status="retired",
        tags=(),
        replaced_by=action.replaced_by,
    )
    state.put(record_key(action.record), encode(entry))
    return "retired", "the record is retired; nobody is granted it any more"


def _erase(state: State, sender: bytes, action: Erase, time_ms: int) -> tuple[str, str]:
    entry = _own_record(state, sender, action.record, time_ms)
    try:
        deletion = decode_deletion_receipt(action.deletion)
    except DiptychError:
        raise Refused(
            "bad-deletion", "this is no deletion receipt of a cloud; send the one it gave"
        ) from None
    if (deletion.record, deletion.before) != (action.record, None):
        raise Refused(
            "bad-deletion", "the cloud's deletion receipt is for another record, or for old versions only"
        )
    _retag(state, action.record, entry.tags, ())
    state.remove(patient_list(sender) + action.record)
    state.remove(_uses_key(action.record))
    erased = RecordEntry(
        bytes(32), bytes(32), bytes(32), 0, bytes(32), b"", None, time_ms, "erased", (), None, action.deletion
    )
    state.put(record_key(action.record), encode(erased))
    return "erased", "the record is erased; the cloud's deletion receipt stands on chain"


def _set_proxy(state: State, sender: bytes, action: SetProxy, time_ms: int) -> tuple[str, str]:
    _certified(state, sender, time_ms, "patient")
    if not action.powers:
        if get_proxy(state, sender, action.proxy) is None:
            raise Refused("unknown-proxy", "this key is no proxy of the patient")
        state.remove(proxy_key(sender, action.proxy))
        state.remove(ward_list(action.proxy) + sender)
        return "proxy-ended", "the proxy acts for the patient no more"
    _certified(state, action.proxy, time_ms)
    if action.proxy == sender or list(action.powers) != sorted(set(action.powers)):
        raise Refused("bad-proxy", "a proxy is another person, and its powers are named once each, in order")
    if not max(time_ms, action.from_ms) < action.until_ms:
        raise Refused("bad-proxy", "the proxy's time ends before it begins, or has ended")
    proxy = Proxy(sender, action.proxy, action.powers, action.from_ms, action.until_ms)
    state.put(proxy_key(sender, action.proxy), encode(proxy))
    state.put(ward_list(action.proxy) + sender, LISTED)
    return "proxy-set", "the proxy may act for the patient"


def _acts_for(state: StateReader, key: bytes, patient: bytes, power: Power, time_ms: int) -> bool:
    """Whether somebody is the patient, or a proxy who has this power now."""
    return key == patient or _proxy_now(state, key, patient, power, time_ms) is not None


def _proxy_now(state: StateReader, key: bytes, patient: bytes, power: Power, time_ms: int) -> Proxy | None:
    """The proxy with this power now, if it is one. A patient's revoked key has none: its thief might have named them."""
    proxy, person = get_proxy(state, patient, key), get_person(state, patient)
    if proxy is None or power not in proxy.powers or person is None or person.is_revoked:
        return None
    return proxy if proxy.from_ms <= time_ms < proxy.until_ms else None


def _open_record(state: StateReader, record: bytes) -> tuple[RecordEntry, Rule]:
    """A record that can be asked for, and its rule."""
    entry = get_record(state, record)
    if entry is not None and entry.status == "erased":
        raise Refused("erased", "the record was erased")
    if entry is not None and entry.status == "retired":
        by = f"; {entry.replaced_by.hex()} has taken its place" if entry.replaced_by else ""
        raise Refused("retired", f"the record was retired{by}")
    if entry is None or entry.rule is None:
        raise Refused("unknown-record", "no such record is published on this chain")
    return entry, entry.rule


class _Leave(NamedTuple):
    """What lets a requester have a record; `is_own` if it is the patient's own wish, `until_ms` its end at the latest."""

    entry: RecordEntry
    rule: Rule
    is_own: bool
    until_ms: int


def _check_access(
    state: StateReader, record: bytes, requester: bytes, purpose: Purpose, time_ms: int
) -> _Leave:
    """Refuse unless the rule lets the requester have the record, with a second person's word if it wants one."""
    credential = _certified(state, requester, time_ms)
    end = credential.not_after_ms
    entry, rule = _open_record(state, record)
    if requester in rule.deny:
        raise Refused("denied-by-patient", "the patient has put this key on the record's deny list")
    if purpose == "emergency":
        if rule.emergency is None:
            raise Refused("no-emergency", "the patient's rule knows no emergency access to this record")
        if not _satisfies(credential, rule.emergency):
            raise Refused(
                "emergency-not-met", "the certified attributes of this key do not allow it to break the glass"
            )
        return _Leave(entry, rule, False, end)
    if purpose == "patient-request":
        proxy = _proxy_now(state, requester, entry.patient, "read", time_ms)
        if requester == entry.patient or proxy is not None:
            return _Leave(entry, rule, True, min(end, proxy.until_ms) if proxy else end)
    if rule.from_ms is not None and time_ms < rule.from_ms:
        raise Refused("rule-not-yet", "the patient's permission has not begun")
    if rule.until_ms is not None and time_ms >= rule.until_ms:
        raise Refused("rule-expired", "the patient's permission has expired")
    if purpose not in rule.purposes:
        raise Refused("wrong-purpose", f"the record is not open for {purpose}")
    if not _satisfies(credential, rule.policy):
        raise Refused(
            "policy-not-met", "the certified attributes of this key do not satisfy the record's rule"
        )
    if rule.uses is not None and _uses(state, record, rule) >= rule.uses:
        raise Refused(
            "used-up", f"the record has been granted {rule.uses} times, as often as the patient allows"
        )
    return _Leave(entry, rule, False, end if rule.until_ms is None else min(end, rule.until_ms))


def _satisfies(credential: Credential, text: str) -> bool:
    return _parsed(text).satisfied(credential.attributes)


def _uses(state: StateReader, record: bytes, rule: Rule) -> int:
    """How often this very rule has granted the record."""
    data = state.get(_uses_key(record))
    uses = decode_uses(data) if data else None
    return uses.count if uses and uses.rule == rule.digest else 0


def _request(state: State, genesis: Genesis, tx: Tx, action: Request, time_ms: int) -> tuple[str, str]:
    sender, purpose = tx.body.sender, action.purpose
    leave = _check_access(state, action.record, sender, purpose, time_ms)
    entry, is_emergency = leave.entry, purpose == "emergency"
    if is_emergency != (action.emergency is not None):
        raise Refused(
            "bad-request", "a request for an emergency, and no other, comes with its ground and a note"
        )
    asked = Pending(
        tx.id,
        action.record,
        entry.version,
        entry.patient,
        sender,
        purpose,
        action.emergency,
        time_ms,
        time_ms + (EMERGENCY_LIFETIME_MS if is_emergency else WAITING_LIFETIME_MS),
    )
    if not is_emergency and (leave.rule.approval is None or leave.is_own):
        return _grant(state, genesis, leave, asked, time_ms)
    waiting_key = _waiting_key(action.record, sender)
    earlier = state.get(waiting_key)
    waiting = get_waiting(state, earlier) if earlier else None
    if waiting is not None:
        if (waiting.version, waiting.purpose) == (entry.version, purpose) and time_ms < waiting.expires_ms:
            raise Refused(
                "already-waiting", "a request of this key for this record waits for a decision already"
            )
        _decided(state, waiting)
    state.put(pending_key(tx.id), encode(asked))
    state.put(waiting_key, tx.id)
    state.put(inbox_list(entry.patient) + tx.id, LISTED)
    return "waiting", "the request waits for a second person, as the patient's rule wants it"


def _decided(state: State, pending: Pending) -> None:
    """A request waits no more."""
    state.remove(pending_key(pending.request))
    state.remove(_waiting_key(pending.record, pending.requester))
    state.remove(inbox_list(pending.patient) + pending.request)


def _decide(state: State, genesis: Genesis, sender: bytes, action: Decide, time_ms: int) -> tuple[str, str]:
    credential = _certified(state, sender, time_ms)
    pending = get_waiting(state, action.request)
    if pending is None:
        raise Refused("unknown-request", "no request with this id waits for a decision")
    if sender == pending.requester:
        raise Refused("own-request", "nobody decides on a request of their own")
    if not (
        _acts_for(state, sender, pending.patient, "decide", time_ms)
        or _may_approve(state, pending, sender, credential)
    ):
        raise Refused("not-approver", "neither the patient nor the record's rule lets this key decide")
    if not action.allow:
        _decided(state, pending)
        return "declined", "the request is declined"
    leave = _check_access(state, pending.record, pending.requester, pending.purpose, time_ms)
    if time_ms >= pending.expires_ms or leave.entry.version != pending.version:
        raise Refused("request-expired", "the request has waited too long, or the record has a newer version")
    _decided(state, pending)
    if pending.purpose == "emergency":
        pending = msgspec.structs.replace(pending, second=sender)
        state.put(review_key(pending.request), encode(pending))
        state.put(inbox_list(pending.patient) + pending.request, LISTED)
    return _grant(state, genesis, leave, pending, time_ms)


def _may_approve(state: StateReader, pending: Pending, sender: bytes, credential: Credential) -> bool:
    """Whether the record's rule makes somebody the second person for this request."""
    entry = get_record(state, pending.record)
    rule = entry.rule if entry else None
    if rule is None or sender in rule.deny:
        return False
    wanted = rule.emergency if pending.purpose == "emergency" else rule.approval
    return wanted is not None and _satisfies(credential, wanted)


def _review(state: State, sender: bytes, action: Review, time_ms: int) -> tuple[str, str]:
    _certified(state, sender, time_ms)
    found = get_review(state, action.request)
    if found is None:
        raise Refused("unknown-request", "no emergency access with this id waits for a review")
    if not _acts_for(state, sender, found.patient, "decide", time_ms):
        raise Refused("not-owner", "only the patient, or a proxy who may decide, reviews an emergency access")
    if sender != found.patient and sender in (found.requester, found.second):
        raise Refused("own-request", "nobody reviews an emergency access in which they took part")
    state.remove(review_key(action.request))
    state.remove(inbox_list(found.patient) + action.request)
    return "reviewed", f"the emergency access was found {action.verdict}"


def _grant(state: State, genesis: Genesis, leave: _Leave, asked: Pending, time_ms: int) -> tuple[str, str]:
    entry, rule, is_emergency = leave.entry, leave.rule, asked.purpose == "emergency"
    lifetime = EMERGENCY_LIFETIME_MS if is_emergency else TICKET_LIFETIME_MS
    ticket = Ticket(
        genesis.chain_id,
        asked.request,
        asked.record,
        entry.version,
        entry.commit,
        asked.requester,
        asked.purpose,
        min(time_ms + lifetime, leave.until_ms),
    )
    state.put(grant_key(asked.request), encode(ticket))
    state.put(grant_list(asked.requester) + asked.request, LISTED)
    if is_emergency:
        return "emergency-allowed", "two people have broken the glass; the patient reviews it"
    if rule.uses is not None and not leave.is_own:
        state.put(_uses_key(asked.record), encode(Uses(rule.digest, _uses(state, asked.record, rule) + 1)))
    return "allowed", "the rule is satisfied"


def check_grant(state: StateReader, tx_id: bytes, now_ms: int) -> tuple[Ticket, RecordEntry, Credential]:
    """What a node needs to release an index for the granted request `tx_id`; `Denied` if there is no live grant of the
    record's current version to a certified requester."""
    data = state.get(grant_key(tx_id))
    if data is None:
        raise Denied("the contract has not allowed this request; see its receipt for the reason")
    ticket = decode_ticket(data)
    entry = get_record(state, ticket.record)
    if entry is None or entry.status != "published" or entry.version != ticket.version:
        raise Denied("the record has a newer version than the request, or was retired; request access again")
    if now_ms >= ticket.expires_ms:
        raise Denied("the grant has expired; request access again")
    try:
        return ticket, entry, _certified(state, ticket.requester, now_ms)
    except Refused as refused:
        raise Denied(refused.reason) from None
