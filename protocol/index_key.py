"""The index key of a chain: made and re-shared by its members, with the chain as the bulletin board (`crypto.dkg`, docs/protocol.md).

    dealing   every dealer sends its dealing (`Deal`); until all have, or the deadline has passed and there are enough
    judging   every holder opens its pieces and sends what is wrong with them (`Judge`), often nothing; until all have, or the
              deadline has passed and there are enough to use the key
    key       the dealers against whom no complaint holds make it, or, if they are too few, the next round begins

Enough dealers are as many as one needs shares, so that one of them is honest where fewer collude. The deadlines are counted in the time of blocks
from the first dealing on, and from the end of dealing on; as an idle chain makes no blocks, a member says when they have passed
(`Close`). Everything here is part of the contract: a function of the state and the transaction.

The first round begins with the chain, among the members of its genesis. `open_resharing` begins another: the holders of the key deal their
shares to new holders, and the key itself stays what it is, until and after the round is through.

State: `index-key` (the current key), `index-key/round` (the open round), `index-key/dealing/<round>/<dealer>`.
"""

from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from crypto import dkg
from crypto.codec import Bytes48, Bytes64, Decoder, UInt, Wire, encode
from crypto.dkg import Dealing, Number, combined_key
from crypto.errors import DiptychError, Malformed
from crypto.group import G1
from crypto.sharing import SharedKey, lagrange
from crypto.sign import Ed25519Signer, is_valid
from protocol.genesis import Genesis, Member
from protocol.quorum import MAX_MEMBERS, quorum
from protocol.record import digest
from protocol.state import Refused, State, StateReader
from protocol.tx import Close, Deal, Judge

DEALING_MS = JUDGING_MS = 10_000
"""How long a round waits for all before it goes on with enough."""

Members = Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]
Numbers = Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_MEMBERS)]
"""Places among dealers or holders, in ascending order."""


class IndexKey(Wire, frozen=True, tag="index-key/1"):
    """The key that index entries are encrypted to, and who holds shares of it: holder i is `holders[i]`. `commitments` are those of
    the polynomial behind it (`crypto.sharing`), the key itself first; `dealers` are those of its `round` who count."""

    round: UInt
    holders: Members
    commitments: Annotated[tuple[Bytes48, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]
    dealers: Numbers
    is_reshared: bool

    @property
    def public(self) -> G1:
        return G1.from_bytes(self.commitments[0])

    @property
    def shared(self) -> SharedKey:
        """The key with everything needed to check decryption shares."""
        return SharedKey.decode(self.commitments)

    @property
    def threshold(self) -> int:
        return len(self.commitments)

    @property
    def weights(self) -> dict[int, int]:
        """By dealer, the weight of its dealing."""
        return lagrange(self.dealers) if self.is_reshared else dict.fromkeys(self.dealers, 1)

    def place(self, key: bytes) -> int | None:
        """The number of the holder with this consensus key, or None."""
        return _place(self.holders, key)


class SignedIndexKey(Wire, frozen=True, tag="signed-index-key/1"):
    """One member's word on what the index key is. A client believes a quorum of them."""

    key: IndexKey
    signer: Annotated[int, msgspec.Meta(ge=0, lt=MAX_MEMBERS)]
    signature: Bytes64

    @classmethod
    def make(cls, genesis: Genesis, key: IndexKey, signer: int, secret: Ed25519Signer) -> "SignedIndexKey":
        return cls(key, signer, secret.sign("index-key", encode((genesis.hash, key))))

    def is_signed(self, genesis: Genesis, members: tuple[bytes, ...]) -> bool:
        """Whether the member it names has signed it, `members` being the consensus keys."""
        return self.signer < len(members) and is_valid(
            members[self.signer], "index-key", encode((genesis.hash, self.key)), self.signature
        )


class KeyRound(Wire, frozen=True, tag="key-round/1"):
    """A round that is under way. Its dealers are the holders of the current key or, if there is none yet, its own holders. The
    deadline is None before the first dealing."""

    number: UInt
    holders: Members
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)]
    phase: Literal["dealing", "judging"] = "dealing"
    deadline_ms: UInt | None = None
    dealt: Numbers = ()
    judged: Numbers = ()
    guilty: Numbers = ()


decode_index_key = Decoder(IndexKey, "an index key", 64 << 10)
decode_signed_index_key = Decoder(SignedIndexKey, "a signed index key", 64 << 10)
_decode_round = Decoder[KeyRound | None](KeyRound | None, "a round of the index key", 64 << 10)  # type: ignore[arg-type]
_decode_dealing = Decoder(Dealing, "a dealing", 64 << 10, dkg.SUITE)

_KEY, _ROUND = b"index-key", b"index-key/round"


def index_label(chain_id: str, record: bytes, version: int, rule: bytes) -> bytes:
    """What an index entry is encrypted for: the version of a record on a chain, under the rule with this digest."""
    return encode(("index", chain_id, record, version, rule))


# --- questions to the state -------------------------------------------------------------------------------------------


def get_key(state: StateReader) -> IndexKey | None:
    data = state.get(_KEY)
    return decode_index_key(data) if data else None


def get_round(state: StateReader, genesis: Genesis) -> KeyRound | None:
    """The open round, if there is one."""
    data = state.get(_ROUND)
    if data:
        return _decode_round(data)
    if state.get(_KEY):
        return None
    return KeyRound(0, genesis.members, quorum(len(genesis.members), genesis.mode))


def get_dealing(state: StateReader, number: int, dealer: int) -> Dealing:
    """The dealing that a dealer has made in round `number`."""
    data = state.get(_dealing_key(number, dealer))
    if data is None:
        raise Malformed(f"the state lacks the dealing of dealer {dealer} in round {number}; it is damaged")
    return _decode_dealing(data)


def get_dealers(state: StateReader, open_round: KeyRound) -> tuple[Member, ...]:
    key = get_key(state)
    return key.holders if key else open_round.holders


def awaited(state: StateReader, open_round: KeyRound) -> tuple[Member, ...]:
    """Those who have not dealt, or not judged, in the present phase."""
    if open_round.phase == "dealing":
        everybody, there = get_dealers(state, open_round), open_round.dealt
    else:
        everybody, there = open_round.holders, open_round.judged
    return tuple(member for place, member in enumerate(everybody) if place not in there)


def is_overdue(state: StateReader, open_round: KeyRound, time_ms: int) -> bool:
    """Whether the deadline of the present phase has passed and enough have said their word for the round to go on."""
    is_late = open_round.deadline_ms is not None and time_ms >= open_round.deadline_ms
    if open_round.phase == "judging":
        return is_late and len(open_round.judged) >= open_round.threshold
    return is_late and len(open_round.dealt) >= _dealers_needed(state, open_round)


def _dealers_needed(state: StateReader, open_round: KeyRound) -> int:
    """How many dealers must count for a round to give a key."""
    key = get_key(state)
    return key.threshold if key else open_round.threshold


def may_take_part(state: StateReader, genesis: Genesis, sender: bytes) -> bool:
    """Whether this consensus key deals or holds in the open round."""
    current = get_round(state, genesis)
    if current is None:
        return False
    return any(sender == m.key for m in (*current.holders, *get_dealers(state, current)))


@lru_cache(maxsize=16)
def run_of(genesis_hash: bytes, number: int, holders: tuple[Member, ...], threshold: int) -> dkg.Round:
    """The run of key generation that a round is."""
    session = digest("index-key-round", encode((genesis_hash, number)))
    return dkg.Round(session, tuple(G1.from_bytes(m.share_key) for m in holders), threshold)


# --- steps of the contract ----------------------------------------------------------------------------------------------


def deal(state: State, genesis: Genesis, sender: bytes, action: Deal, time_ms: int) -> tuple[str, str]:
    current = _open_round(state, genesis, action.round, "dealing")
    dealer = _place(get_dealers(state, current), sender)
    if dealer is None:
        raise Refused("not-a-dealer", "this key deals no part of the index key")
    if dealer in current.dealt:
        raise Refused("already-dealt", "this dealer has dealt in this round")
    key = get_key(state)
    try:
        run = run_of(genesis.hash, current.number, current.holders, current.threshold)
        run.check(dealer, action.dealing, key.shared.verification_key(dealer) if key else None)
    except DiptychError as error:
        raise Refused("bad-dealing", str(error)) from None
    state.put(_dealing_key(current.number, dealer), encode(action.dealing))
    deadline = time_ms + DEALING_MS if current.deadline_ms is None else current.deadline_ms
    current = replace(current, dealt=_with(current.dealt, dealer), deadline_ms=deadline)
    return _advance(state, current, time_ms, ("dealt", f"the dealing counts in round {current.number}"))


def judge(state: State, genesis: Genesis, sender: bytes, action: Judge, time_ms: int) -> tuple[str, str]:
    current = _open_round(state, genesis, action.round, "judging")
    holder = _place(current.holders, sender)
    if holder is None:
        raise Refused("not-a-holder", "this key holds no share of the index key")
    if holder in current.judged:
        raise Refused("already-judged", "this holder has judged the dealings of this round")
    run = run_of(genesis.hash, current.number, current.holders, current.threshold)
    for complaint in action.complaints:
        if complaint.dealer not in current.dealt:
            raise Refused("no-such-dealing", f"dealer {complaint.dealer} has dealt nothing in this round")
        if not run.is_justified(complaint, get_dealing(state, current.number, complaint.dealer), holder):
            raise Refused(
                "false-complaint", f"the complaint about dealer {complaint.dealer} shows no wrong piece"
            )
    guilty = current.guilty
    for complaint in action.complaints:
        guilty = _with(guilty, complaint.dealer)
    current = replace(current, judged=_with(current.judged, holder), guilty=guilty)
    return _advance(state, current, time_ms, ("judged", "the judgement of this holder counts"))


def close(state: State, genesis: Genesis, sender: bytes, action: Close, time_ms: int) -> tuple[str, str]:
    current = _open_round(state, genesis, action.round, action.phase)
    if not may_take_part(state, genesis, sender):
        raise Refused("not-a-holder", "this key has no part in the index key")
    if not is_overdue(state, current, time_ms):
        raise Refused("too-early", "the deadline has not passed, or too few have said their word")
    return _advance(state, current, time_ms, ("closed", "the deadline has passed"))


def open_resharing(state: State, genesis: Genesis, holders: tuple[Member, ...], threshold: int) -> None:
    """Begin a round in which the holders of the index key deal it to `holders`, of whom `threshold` are to open index entries from
    then on. Without a key yet, the round that makes it begins anew among them. Either way it takes the place of an open round."""
    current, key = get_round(state, genesis), get_key(state)
    number = current.number if current else key.round if key else 0
    _put_round(state, KeyRound(number + 1, holders, threshold))


def _open_round(state: StateReader, genesis: Genesis, number: int, phase: str) -> KeyRound:
    current = get_round(state, genesis)
    if current is None or current.number != number:
        raise Refused("no-such-round", f"round {number} of the index key is not under way")
    if current.phase != phase:
        raise Refused("wrong-phase", f"round {number} of the index key is {current.phase}, not {phase}")
    return current


def _advance(state: State, current: KeyRound, time_ms: int, receipt: tuple[str, str]) -> tuple[str, str]:
    """Keep the round, carried on as far as it is; the `receipt` of the step, or of what it has brought about."""
    if awaited(state, current) and not is_overdue(state, current, time_ms):
        _put_round(state, current)
        return receipt
    if current.phase == "judging":
        return _finish(state, current)
    _put_round(state, replace(current, phase="judging", deadline_ms=time_ms + JUDGING_MS))
    return "dealing-closed", f"{len(current.dealt)} dealers have dealt; their pieces are judged now"


def _finish(state: State, current: KeyRound) -> tuple[str, str]:
    """Make the key from the dealers who count, or begin the next round."""
    old = get_key(state)
    counted = tuple(dealer for dealer in current.dealt if dealer not in current.guilty)
    key = IndexKey(current.number, current.holders, (bytes(48),), counted, old is not None)
    try:
        if len(counted) < _dealers_needed(state, current):
            raise Malformed(f"only {len(counted)} dealers have dealt rightly")
        dealings = {dealer: get_dealing(state, current.number, dealer) for dealer in counted}
        commitments = combined_key(dealings, key.weights).encoded
    except Malformed as error:
        _put_round(state, KeyRound(current.number + 1, current.holders, current.threshold))
        return "round-failed", f"{error}; round {current.number + 1} begins"
    state.put(_KEY, encode(replace(key, commitments=commitments)))
    _put_round(state, None)
    return (
        "key-made",
        f"the index key is {commitments[0].hex()}; any {current.threshold} of {len(current.holders)} holders open with it",
    )


def _put_round(state: State, current: KeyRound | None) -> None:
    state.put(_ROUND, encode(current))


def _dealing_key(number: int, dealer: int) -> bytes:
    return b"index-key/dealing/" + encode((number, dealer))


def _place(members: tuple[Member, ...], key: bytes) -> int | None:
    return next((place for place, member in enumerate(members) if member.key == key), None)


def _with(numbers: tuple[int, ...], one: int) -> tuple[int, ...]:
    return tuple(sorted({*numbers, one}))
