"""The light client against nodes that lie: what it believes is what the chain has executed, and who lied is named."""

from collections.abc import Iterator

import msgspec
import pytest
from light_world import (
    BLOCKS,
    DOCTOR,
    GENESIS,
    HEIGHT_OF_STORY,
    KEYS,
    PATIENT,
    RECORD,
    STORY,
    STRANGER,
    USER,
    World,
    blocks_of,
    page,
    publish,
    shown,
    tx_of,
)

from crypto.codec import encode
from crypto.errors import Denied, NotFound, Unavailable
from crypto.sign import SigningKey
from protocol.checkpoint import SignedCheckpoint
from protocol.contract import decode_record, person_key, record_key
from protocol.state_tree import decode_proved_value
from protocol.tx import Request, decode_tx


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


HEIGHT = HEIGHT_OF_STORY
STATE, CHECKPOINT, TX, LOG = "/v1/proof/state/", "/v1/checkpoint/", "/v1/proof/tx/", "/log?"


def only(part: str, lie):
    """A lie about these paths alone."""
    return lambda path: lie(path) if part in path else NotImplemented


# --- honest nodes --------------------------------------------------------------------------------------------------------


def test_what_honest_nodes_prove_is_believed_and_nobody_is_named(world):
    entry = world.client.verified_record(RECORD)
    assert (entry.version, entry.status) == (2, "published")
    assert world.client.credential(DOCTOR.public).role == "doctor"
    with pytest.raises(Denied, match="revoked"):
        world.client.credential(USER.public)
    with pytest.raises(NotFound):
        world.client.verified_person(STRANGER.public)
    with pytest.raises(NotFound):
        world.client.verified_record(b"x" * 16)
    log = world.client.verified_log(RECORD).receipts
    assert [(r.height, r.ok) for r in log] == [
        *((2, True), (3, True), (3, True), (3, False)),
        *((4, True), (5, False)),
    ]
    assert world.client.verified_log(b"x" * 16).receipts == ()
    assert world.client.verified_receipt(tx_of(3, 2)).proof.receipt.code == "wrong-purpose"
    with pytest.raises(NotFound):
        world.client.verified_receipt(bytes(32))
    assert world.warnings == []


def test_a_quorum_of_answers_is_enough_and_less_is_not(world):
    world.members[1].stop()
    assert world.client.verified_record(RECORD).version == 2
    world.members[2].stop()
    with pytest.raises(Unavailable):
        world.connect().verified_state(record_key(RECORD), 0)
    assert world.warnings == []
    world.members = [world.members[0], world.members[3]]


# --- lies ----------------------------------------------------------------------------------------------------------------


def test_a_node_that_hides_the_latest_version_of_a_record_is_named_and_not_believed(world):
    """It shows a true proof of an earlier state, again and again, and signs whatever else it is asked for."""
    old = world.with_blocks("old", BLOCKS[:3])
    world.members[0].lie = only(STATE, lambda path: old.answer(0, path.replace(f"from={HEIGHT}", "from=0")))
    assert world.client.verified_record(RECORD).version == 2
    assert world.named() == {"n0"}
    assert "although it has signed height 5" in world.warnings[0]


def test_a_node_that_hides_a_revocation_is_named(world):
    old = world.with_blocks("old", BLOCKS[:3])
    world.members[2].lie = only(STATE, lambda path: old.answer(2, path.replace(f"from={HEIGHT}", "from=0")))
    assert world.client.verified_person(USER.public).is_revoked
    assert world.named() == {"n2"}


def test_a_node_that_is_behind_is_no_liar(world):
    world.members[0].history = world.with_blocks("old", BLOCKS[:3])
    assert world.client.verified_record(RECORD).version == 2
    assert world.client.verified_receipt(tx_of(5)).proof.receipt.height == 5
    assert world.warnings == []


def test_once_a_height_was_believed_no_view_of_the_chain_before_it_is(world):
    """All that still answers is rolled back together: a client that has seen more waits, a new one could not know."""
    assert world.client.verified_record(RECORD).version == 2
    old = world.with_blocks("old", BLOCKS[:3])
    for i, member in enumerate(world.members):
        member.lie = lambda path, i=i: old.answer(i, path.replace(f"from={HEIGHT}", "from=0"))
    with pytest.raises(Unavailable):
        world.client.verified_state(record_key(RECORD), 0)
    assert world.named() == {"n0", "n1", "n2", "n3"}
    assert "hides what happened since" in world.warnings[0]
    assert decode_record(world.connect().verified_state(record_key(RECORD)).value).version == 1


def changed_value(path: str, world: World) -> bytes:
    proved = decode_proved_value(world.history.answer(1, path))
    return encode(msgspec.structs.replace(proved, value=b"made up"))


def hidden_value(path: str, world: World) -> bytes:
    return encode(msgspec.structs.replace(decode_proved_value(world.history.answer(1, path)), value=None))


def other_bucket(path: str, world: World) -> bytes:
    proved = decode_proved_value(world.history.answer(1, path))
    empty = msgspec.structs.replace(proved.proof, bucket=b"")
    return encode(msgspec.structs.replace(proved, value=None, proof=empty))


def other_key(path: str, world: World) -> bytes:
    return encode(world.history.ledger.prove(person_key(DOCTOR.public)))


@pytest.mark.parametrize("lie", [changed_value, hidden_value, other_bucket, other_key, lambda *_: b"junk"])
def test_a_value_that_the_state_does_not_hold_is_not_believed_and_its_teller_named(world, lie):
    world.members[1].lie = only(STATE, lambda path: lie(path, world))
    world.client._urls.sort(key=lambda url: url != world.members[1].url)
    assert world.client.verified_record(RECORD).version == 2
    assert world.named() == {"n1"}


FORGED = blocks_of([*STORY[:3], [(PATIENT, publish(2))], [(USER, Request(RECORD, "research"))]])


@pytest.mark.parametrize("liars", [(0,), (3, 1)])
def test_less_than_a_quorum_that_forges_headers_and_signs_for_them_proves_nothing(world, liars):
    """They have a history of their own, in which the user was never revoked, with the same height, and sign for it."""
    forged = world.with_blocks("forged", FORGED)
    for i in liars:
        world.members[i].history = forged
    if len(liars) == 1:
        assert world.client.verified_person(USER.public).is_revoked
        assert world.named() == {"n0"}
        assert any("another history" in w for w in world.warnings)
    else:
        with pytest.raises(Unavailable):
            world.client.verified_state(person_key(USER.public), 0)


def test_a_receipt_whose_block_was_forged_is_not_believed(world):
    forged = world.with_blocks("forged", FORGED)
    world.members[0].lie = only(TX, lambda path: forged.answer(0, path))
    tx = decode_tx(FORGED[4].txs[0]).id
    with pytest.raises(NotFound):
        world.client.verified_receipt(tx, 0, world.members[0].url)
    assert world.named() == {"n0"}


def changes(world: World, tx: bytes):
    """Each part of a receipt's proof, changed or taken from another."""
    true, other = world.history.receipt_proof(tx), world.history.receipt_proof(tx_of(5))
    replace = msgspec.structs.replace
    yield replace(true, receipt=replace(true.receipt, ok=True, code="allowed"))
    yield replace(true, receipt=replace(true.receipt, position=0))
    yield replace(true, receipt=replace(true.receipt, height=4))
    yield replace(true, path=())
    yield replace(true, root_before=bytes(32))
    yield replace(true, header=replace(true.header, tx_root=bytes(32)))
    yield replace(true, header=other.header)
    yield replace(true, links=true.links[1:])
    yield replace(true, finalization=replace(true.finalization, signatures=(bytes(64),) * 3))
    yield replace(true, finalization=replace(true.finalization, kind="notarize"))
    yield replace(true, tx=other.tx)
    yield replace(true, tx_path=())


def test_a_receipt_with_anything_changed_is_not_believed_and_its_teller_named(world):
    tx = tx_of(3, 2)
    for lie in changes(world, tx):
        world.warnings.clear()
        client = world.connect()
        world.members[3].lie = only(TX, lambda _, lie=lie: encode(lie))
        found = client.verified_receipt(tx, first=world.members[3].url)
        assert (found.proof.receipt.ok, found.proof.receipt.code) == (False, "wrong-purpose")
        assert world.named() == {"n3"}, lie


def test_a_node_that_withholds_a_receipt_that_it_has_signed_for_is_named(world):
    world.members[1].lie = only(TX, lambda _: None)
    assert world.client.verified_receipt(tx_of(3, 1), first=world.members[1].url).proof.receipt.ok
    assert world.named() == {"n1"}
    assert "withholds a receipt" in world.warnings[0]


def test_a_receipt_is_proved_without_the_transaction_where_bodies_were_archived(world):
    pruned = world.with_blocks("pruned", BLOCKS, is_pruned=True)
    for member in world.members:
        member.history = pruned
    proof = world.client.verified_receipt(tx_of(3, 2)).proof
    assert (proof.tx, proof.receipt.code) == (None, "wrong-purpose")
    assert world.warnings == []


LOG_LIES = {
    "withholds a denial": lambda log: [r for r in log if r.ok],
    "withholds the last": lambda log: log[:-1],
    "withholds all": lambda log: [],
    "invents one": lambda log: [*log[:-1], msgspec.structs.replace(log[-1], sender=STRANGER.public), log[-1]],
    "turns a denial round": lambda log: [*log[:-1], msgspec.structs.replace(log[-1], ok=True)],
    "names another reader": lambda log: [*log[:-1], msgspec.structs.replace(log[-1], sender=DOCTOR.public)],
    "swaps two": lambda log: [log[1], log[0], *log[2:]],
    "repeats one": lambda log: [*log, log[-1]],
}


@pytest.mark.parametrize("what", LOG_LIES)
def test_a_log_that_is_not_the_whole_log_is_not_believed_and_its_teller_named(world, what):
    world.members[2].lie = only(LOG, lambda _: page(LOG_LIES[what](world.history.log(RECORD))))
    world.client._urls.sort(key=lambda url: url != world.members[2].url)
    assert list(world.client.verified_log(RECORD).receipts) == world.history.log(RECORD)
    assert world.named() == {"n2"}


def test_a_node_that_signs_two_histories_is_named(world):
    def other(path: str) -> bytes:
        true = world.history.checkpoint(int(path.split("/")[3].partition("?")[0]))
        return encode(SignedCheckpoint.make(msgspec.structs.replace(true, state_root=bytes(32)), 2, KEYS[2]))

    world.members[2].lie = only(CHECKPOINT, other)
    assert world.client.verified_record(RECORD).version == 2
    assert world.named() == {"n2"}


@pytest.mark.parametrize("by", ["another member", "a stranger"])
def test_a_signature_that_is_not_the_nodes_own_counts_for_nobody(world, by):
    key, number = (KEYS[0], 0) if by == "another member" else (SigningKey(b"x" * 32), 3)

    def signed(path: str) -> bytes:
        told = world.history.checkpoint(int(path.split("/")[3].partition("?")[0]))
        return encode(SignedCheckpoint.make(told, number, key))

    world.members[3].lie = only(CHECKPOINT, signed)
    assert world.client.verified_record(RECORD).version == 2
    assert world.named() == {"n3"}
    world.members[1].stop()
    with pytest.raises(Unavailable):
        world.connect().verified_state(record_key(RECORD), 0)
    world.members.pop(1)


def test_a_node_that_boasts_of_a_height_nobody_has_reached_delays_and_is_named(world):
    def boast(path: str) -> bytes:
        proved = decode_proved_value(world.history.answer(0, path))
        return encode(msgspec.structs.replace(proved, height=10**9))

    world.members[0].lie = only(STATE, boast)
    assert world.client.verified_record(RECORD).version == 2
    assert world.named() == {"n0"}


# --- transactions ----------------------------------------------------------------------------------------------------------


def answering(world: World, change=lambda receipt: receipt):
    """A node that makes a transaction final at once and answers with its receipt, changed."""
    return lambda raw: (200, shown(change(world.history.include(raw))), {})


def test_the_receipt_of_what_one_sends_is_the_proved_one(world):
    for member in world.members:
        member.on_post = answering(world)
    receipt = world.client.send(USER, Request(RECORD, "research"), 5)
    assert (receipt.height, receipt.ok, receipt.code) == (HEIGHT + 1, False, "revoked")
    assert world.warnings == []


def test_a_node_that_turns_the_receipt_of_what_one_sends_round_is_named(world):
    for member in world.members:
        member.on_post = answering(world, lambda r: msgspec.structs.replace(r, ok=True, code="allowed"))
    receipt = world.client.send(USER, Request(RECORD, "research"), 5)
    assert (receipt.ok, receipt.code) == (False, "revoked")
    assert len(world.named()) == 1
    assert "invented" in world.warnings[0]


def test_a_receipt_of_what_was_never_final_is_not_acted_on_and_its_inventors_are_named(world):
    allowed = world.history.ledger.receipt(tx_of(3, 1))

    def invent(raw: bytes):
        return 200, shown(msgspec.structs.replace(allowed, tx=decode_tx(raw).id)), {}

    for member in world.members:
        member.on_post = invent
    with pytest.raises(Unavailable):
        world.client.send(USER, Request(RECORD, "research"), 0.5)
    assert world.named() == {"n0", "n1", "n2", "n3"}


# --- no genesis but one's own ----------------------------------------------------------------------------------------------


def test_what_another_chain_proves_says_nothing_of_this_one(world):
    other = msgspec.structs.replace(GENESIS, chain_id="diptych/1/storage/other")
    world.client.genesis = other
    world.client.members._known = [type(world.client.committee)(other)]
    with pytest.raises(Unavailable):
        world.client.verified_state(record_key(RECORD), 0)
    assert world.named() == {"n0", "n1", "n2", "n3"}
