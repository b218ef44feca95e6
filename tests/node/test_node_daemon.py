"""Whole nodes, their disks and their HTTP API: what clients are promised, what they are refused, and what crashes and full disks leave."""

import asyncio
import os
import shutil
import sqlite3
import time
from contextlib import closing, suppress

import msgspec
import pytest
from node_world import AUTHORITY, TIMEOUT, World

from crypto import tdh2
from crypto.codec import encode
from crypto.errors import Conflict, Denied, Unauthentic, Unavailable
from crypto.seal import SealKey
from crypto.sign import SigningKey
from node import daemon
from node.net import MAX_BODY, Chan, Received
from protocol.contract import decode_receipt
from protocol.core import SaveVote
from protocol.identity import Credential, SignedCredential, SignedTicket, decode_release
from protocol.index_key import decode_signed_index_key, index_label
from protocol.record import BlobRef, Index, View, decode_index
from protocol.tx import Action, Attest, Certify, Publish, Request, Revoke, Rule, Tx
from tests.dealer import index_key, sealed

DOCTOR, PATIENT, USER, STRANGER = (SigningKey(bytes([i]) * 32) for i in (11, 12, 13, 14))
USER_SEAL = SealKey(b"u" * 32)
RECORD = b"r" * 16
RULE = Rule("role:user", ("research",), None, ())


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    await made.stop()


def tx_of(
    world: World, sender: SigningKey, action: Action, chain_id: str | None = None, life_ms: int = 60_000
) -> bytes:
    expires = time.time_ns() // 1_000_000 + life_ms
    return encode(Tx.make(chain_id or world.genesis.chain_id, sender, os.urandom(16), expires, action))


def credential(key: SigningKey, role: str, seal_key: bytes = bytes(32)) -> Certify:
    now = time.time_ns() // 1_000_000
    body = Credential(key.public, role, (f"role:{role}",), seal_key, None, now - 1000, now + 10**6)
    return Certify(SignedCredential.issue(body, AUTHORITY))


async def do(world: World, sender: SigningKey, action: Action, at: int = 0):
    """The receipt of an action sent through the HTTP API of member `at`."""
    answer = await world.request(at, "POST", f"/v1/tx?wait={TIMEOUT}", tx_of(world, sender, action))
    assert answer.status_code == 200, answer.text
    return decode_receipt(bytes.fromhex(answer.json()["encoded"]))


async def executed_everywhere(world: World) -> None:
    height = max(n.core.tip.height for n in world.nodes.values())
    await world.until(lambda: all(n.executed_height >= height for n in world.nodes.values()))


def is_problem(answer, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(word in answer.json()["detail"] for word in words), answer.text


# --- the ordinary way --------------------------------------------------------------------------------------------------


async def test_a_transaction_sent_to_one_node_is_final_with_one_receipt_and_one_root_on_all(world):
    await world.start()
    receipt = await do(world, AUTHORITY, credential(DOCTOR, "doctor"))
    assert (receipt.ok, receipt.code) == (True, "certified")
    await executed_everywhere(world)
    assert len({(n.executed_height, n.receipts_root) for n in world.nodes.values()}) == 1
    for i in world.nodes:
        answer = (await world.get(i, f"/v1/tx/{receipt.tx.hex()}")).json()
        assert bytes.fromhex(answer["encoded"]) == encode(receipt)
        block = (await world.get(i, f"/v1/block/{receipt.height}")).json()
        assert receipt.tx.hex() in [tx["tx"] for tx in block["txs"]]
        person = (await world.get(i, f"/v1/identity/{DOCTOR.public.hex()}")).json()
        assert person["signed"]["credential"]["role"] == "doctor"
        assert (await world.get(i, "/readyz")).status_code == 200


async def test_a_client_that_does_not_wait_is_told_the_id_and_a_repeat_is_harmless(world):
    await world.start()
    raw = tx_of(world, AUTHORITY, credential(DOCTOR, "doctor"))
    answers = [await world.request(i, "POST", "/v1/tx", raw) for i in (0, 0, 1)]
    assert {a.status_code for a in answers} <= {202, 409}
    tx = answers[0].json()["tx"]
    assert (await world.get(2, f"/v1/tx/{tx}?wait={TIMEOUT}")).json()["code"] == "certified"
    await executed_everywhere(world)
    for i in world.nodes:
        is_problem(await world.request(i, "POST", "/v1/tx", raw), 409, "already final")


async def test_a_batch_is_answered_one_by_one(world):
    await world.start()
    good = tx_of(world, AUTHORITY, credential(DOCTOR, "doctor"))
    batch = encode((good, b"junk", good, tx_of(world, STRANGER, Revoke(bytes(32)))))
    answer = await world.request(0, "POST", f"/v1/txs?wait={TIMEOUT}", batch)
    done, junk, again, stranger = msgspec.msgpack.decode(answer.content)
    assert again == done
    assert decode_receipt(done).code == "certified"
    assert "does not decode" in junk
    assert "not certified" in stranger


# --- refusals ----------------------------------------------------------------------------------------------------------


async def test_wrong_transactions_are_refused_with_a_sentence_and_none_becomes_final(world):
    await world.start(0)
    good = tx_of(world, AUTHORITY, credential(DOCTOR, "doctor"))
    for content, status, words in (
        (tx_of(world, STRANGER, Request(RECORD, "research")), 403, ("not certified", "authority")),
        (
            tx_of(world, AUTHORITY, Revoke(bytes(32)), "diptych/1/sharing/world"),
            400,
            ("sharing/world", "send it there"),
        ),
        (good[:-1] + bytes([good[-1] ^ 1]), 401, ("signature",)),
        (tx_of(world, AUTHORITY, Revoke(bytes(32)), life_ms=-1), 400, ("expired",)),
        (tx_of(world, AUTHORITY, Revoke(bytes(32)), life_ms=700_000), 400, ("expires too late",)),
        (b"", 400, ("does not decode",)),
        (b"\x92" * 1000, 400, ("does not decode",)),
        (bytes(200_000), 413, ("over the limit",)),
    ):
        is_problem(await world.request(0, "POST", "/v1/tx", content), status, *words)
    is_problem(await world.request(0, "POST", "/v1/tx?wait=nan", good), 400, "seconds")
    assert len(world.nodes[0].mempool) == 0


async def test_wrong_questions_are_refused_with_a_sentence(world):
    await world.start(0)
    for path, status in (
        ("/v1/tx/zz", 400),
        (f"/v1/tx/{'00' * 31}", 400),
        (f"/v1/tx/{'00' * 32}", 404),
        (f"/v1/tx/{'00' * 32}?wait=nan", 400),
        (f"/v1/tx/{'00' * 32}?wait=-1", 400),
        (f"/v1/tx/{'00' * 32}?wait=soon", 400),
        (f"/v1/tx/{'00' * 32}?wait=0.01", 404),
        ("/v1/block/0", 400),
        ("/v1/block/-1", 400),
        ("/v1/block/latest", 400),
        ("/v1/block/1", 404),
        (f"/v1/block/{2**63}", 400),
        (f"/v1/block/{'9' * 5000}", 400),
        (f"/v1/identity/{'00' * 32}", 404),
        (f"/v1/record/{'00' * 16}", 404),
        (f"/v1/record/{'00' * 16}/log?after=x", 400),
        (f"/v1/record/{'00' * 16}/log?after=1.{'9' * 30}", 400),
        (f"/v1/release/{'00' * 32}", 404),
        ("/v1/nothing", 404),
    ):
        answer = await world.get(0, path)
        is_problem(answer, status)
        assert len(answer.json()["detail"]) > 5, path


async def test_a_node_alone_is_not_ready_and_says_who_is_missing(world):
    await world.start(0)
    assert (await world.get(0, "/readyz")).status_code == 503
    assert (await world.get(0, "/healthz")).status_code == 200
    status = (await world.get(0, "/v1/status")).json()
    assert (status["peers"], status["height"], status["leader"]) == ([], 0, "n0")


# --- crashes and disks -------------------------------------------------------------------------------------------------


async def test_a_node_that_dies_at_any_instant_comes_back_without_a_contradiction_and_catches_up(world):
    await world.start()
    await world.grow(0, 3)
    world.nodes[3].submit(world.tx())
    await asyncio.sleep(0)
    shutil.copytree(world.data(3), world.folder / "image")  # what kill -9 leaves
    await world.stop(3)
    shutil.rmtree(world.data(3))
    (world.folder / "image").rename(world.data(3))
    await world.grow(0, 3)
    await world.start(3)
    await world.grow(3)
    await executed_everywhere(world)
    assert len({(n.executed_height, n.receipts_root) for n in world.nodes.values()}) == 1
    assert not any(n.evidence for n in world.nodes.values())


async def test_a_ledger_that_was_lost_or_is_behind_is_made_again_from_the_journal(world):
    await world.start()
    await world.grow(0, 4)
    root = world.nodes[1].receipts_root, world.nodes[1].executed_height
    await world.stop(1)
    for file in world.data(1).glob("ledger.db*"):
        file.unlink()
    await world.start(1)
    assert (world.nodes[1].receipts_root, world.nodes[1].executed_height) == root


async def test_a_journal_with_a_hole_is_reported_instead_of_waited_for(world):
    await world.start()
    await world.grow(0, 2)
    await world.stop(1)
    for file in world.data(1).glob("ledger.db*"):
        file.unlink()
    db = sqlite3.connect(world.data(1) / "consensus.db")
    db.execute("DELETE FROM blocks WHERE id = (SELECT id FROM final WHERE height = 1)")
    db.commit()
    db.close()
    node = world.make(1)
    with pytest.raises(Conflict, match="lacks the block at height 1"):
        await node.start()
    await node.stop()


async def test_with_a_failing_journal_a_node_is_silent_and_says_why_and_goes_on_by_itself(world, monkeypatch):
    await world.start()
    await world.grow(0)
    node = world.nodes[0]
    is_failing, sent = True, []
    apply, send, broadcast = node._store.apply, node.net.send, node.net.broadcast

    def failing(effects):
        if is_failing:
            raise sqlite3.OperationalError("database or disk is full")
        apply(effects)

    monkeypatch.setattr(node._store, "apply", failing)
    monkeypatch.setattr(node.net, "send", lambda *a: sent.append(a) or send(*a))
    monkeypatch.setattr(node.net, "broadcast", lambda chan, body: sent.append(chan) or broadcast(chan, body))
    entry = world.nodes[1].submit(world.tx())
    await world.until(lambda: node.alarm)
    sent.clear()
    status = (await world.get(0, "/v1/status")).json()
    assert "journal cannot be written" in status["alarm"]
    assert "disk is full" in status["alarm"]
    assert (await world.get(0, "/readyz")).status_code == 503
    is_problem(await world.request(0, "POST", "/v1/tx", world.tx()), 503, "disk is full")
    assert await world.nodes[1].receipt(entry.id, TIMEOUT), "the others are a quorum"
    assert [m for m in sent if m is not Chan.TX] == []
    is_failing = False
    await world.until(lambda: node.alarm is None)
    assert await node.receipt(entry.id, TIMEOUT)
    assert (await world.get(0, "/readyz")).status_code == 200
    await world.grow(0)


async def test_with_a_failing_ledger_a_node_says_why_and_executes_everything_later(world, monkeypatch):
    await world.start()
    node = world.nodes[0]
    is_failing, execute = True, node._ledger.execute

    def failing(blocks):
        if is_failing:
            raise sqlite3.OperationalError("database or disk is full")
        return execute(blocks)

    monkeypatch.setattr(node._ledger, "execute", failing)
    entry = world.nodes[1].submit(world.tx())
    assert await world.nodes[1].receipt(entry.id, TIMEOUT)
    await world.until(lambda: node.alarm)
    assert "ledger cannot be written" in node.alarm
    with pytest.raises(Unavailable, match="disk is full"):
        node.submit(world.tx())
    is_failing = False
    assert await node.receipt(entry.id, TIMEOUT)
    await world.until(lambda: node.alarm is None)


async def test_what_was_executed_comes_into_the_ledgers_file_itself_while_the_node_runs(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(daemon, "TIDY_TXS", 3)
    world = World(tmp_path, size=1)
    await world.start()
    alone = tmp_path / "alone.db"

    def height_without_log() -> int:
        shutil.copy(world.data(0) / "ledger.db", alone)
        with closing(sqlite3.connect(alone)) as db, suppress(sqlite3.DatabaseError):
            return db.execute("SELECT MAX(height) FROM executed").fetchone()[0]
        return 0  # half of it is there yet

    await world.grow(0, 3)
    await world.until(lambda: height_without_log() >= 3)
    with monkeypatch.context() as broken:
        broken.setattr(world.nodes[0]._ledger, "_file", tmp_path / "nowhere" / "ledger.db")
        await world.grow(0, 3)  # a disk that fails then does not end the node
        await world.until(lambda: not world.nodes[0]._tidying)
    await world.grow(0, 3)
    await world.until(lambda: height_without_log() >= 9)
    await world.stop()


async def test_a_vote_that_the_journal_refuses_ends_the_node_instead_of_being_sent(world):
    """The journal knows of another vote in the view: this process must not vote any more."""
    await world.start()
    node = world.nodes[0]
    for view in range(1, 200):
        vote = node.core.committee.sign(world.keys[0], 0, "notarize", view, b"x" * 32)
        await node._from_journal(lambda vote=vote: node._store.apply([SaveVote(vote)]))
    node.submit(world.tx())
    with pytest.raises(sqlite3.IntegrityError):
        await asyncio.wait_for(node.wait(), TIMEOUT)


# --- other members who flood -------------------------------------------------------------------------------------------


async def test_what_one_member_has_waiting_here_is_bounded_in_bytes_and_leaves_room_for_others(world):
    await world.start(0)
    node = world.nodes[0]
    for _ in range(20):
        node._on_event(Received("n1", Chan.SYNC, bytes(MAX_BODY[Chan.SYNC])))
    for _ in range(100_000):
        node._on_event(Received("n2", Chan.VOTE, b""))
    node._on_event(Received("n3", Chan.VOTE, b"small"))
    waiting = sum(len(e.body) for e in node._inbox)
    assert waiting <= 2 * daemon.INBOX_BYTES
    assert len(node._inbox) < 50_000
    assert node._inbox[-1].src == "n3"
    assert node.refused["inbox full"] > 0
    await world.until(lambda: not node._inbox)
    node._on_event(Received("n1", Chan.SYNC, bytes(MAX_BODY[Chan.SYNC])))
    assert len(node._inbox) == 1, "what was read makes room again"


async def test_a_member_cannot_fill_the_mempools_of_others_with_transactions_of_made_up_keys(world):
    await world.start()
    junk = tuple(tx_of(world, SigningKey(os.urandom(32)), Revoke(bytes(32))) for _ in range(20))
    world.nodes[3].net.broadcast(Chan.TX, encode(junk))
    await world.until(lambda: world.nodes[0].refused["uncertified sender"] == 20)
    assert len(world.nodes[0].mempool) == 0
    await do(world, AUTHORITY, credential(DOCTOR, "doctor"))
    assert world.nodes[0].core.tip.height == 1


async def test_rubbish_from_a_member_is_counted_against_it_and_disturbs_nobody(world):
    await world.start()
    for chan in Chan:
        for body in (b"", b"\x00", os.urandom(1000), encode(("votes", (), None, None)), bytes(60_000)):
            if len(body) <= MAX_BODY[chan]:
                world.nodes[2].net.send("n0", chan, body)
    await world.until(lambda: world.nodes[0].refused["n2"] >= 15)
    await world.grow(0, 2)


async def test_a_transaction_sent_again_and_again_is_passed_on_once(world, monkeypatch):
    await world.start(0)
    node, spread = world.nodes[0], []
    monkeypatch.setattr(node, "_spread", spread.extend)
    raw = world.tx()
    for _ in range(50):
        node.submit(raw)
        await asyncio.sleep(0)
    await world.until(lambda: spread)
    await asyncio.sleep(3 * daemon.GOSSIP_DELAY)
    assert spread == [raw]


# --- the release of an index -------------------------------------------------------------------------------------------


async def published(world: World) -> Index:
    """A record of the patient on the chain, open for research to certified users; its index entry."""
    for key, role in ((DOCTOR, "doctor"), (PATIENT, "patient")):
        await do(world, AUTHORITY, credential(key, role))
    await do(world, AUTHORITY, credential(USER, "user", USER_SEAL.public))
    await do(world, DOCTOR, Attest(RECORD, PATIENT.public, b"h" * 32))
    view = View(world.genesis.chain_id, RECORD, 1, PATIENT.public, b"s" * 32, (BlobRef.of(b"envelope"),))
    index = Index.make(view, PATIENT)
    entry = sealed(world.genesis, RECORD, 1, RULE, encode(index))
    assert (await do(world, PATIENT, Publish(RECORD, 1, view.commit, entry, RULE))).ok
    return index


async def test_an_allowed_request_opens_the_index_and_yields_a_ticket_of_a_quorum(world):
    await world.start()
    index = await published(world)
    receipt = await do(world, USER, Request(RECORD, "research"))
    assert receipt.code == "allowed"
    await executed_everywhere(world)
    releases = []
    for i in world.nodes:
        answer = await world.get(i, f"/v1/release/{receipt.tx.hex()}")
        assert answer.headers["content-type"] == "application/msgpack"
        releases.append(decode_release(answer.content))
    assert {r.ticket for r in releases} == {releases[0].ticket}
    key, entry = index_key(world.genesis), releases[0].entry
    label = index_label(world.genesis.chain_id, RECORD, 1, RULE.digest)
    shares = {r.signature.signer: USER_SEAL.open(r.sealed_share, "a share") for r in releases}
    content, wrong = tdh2.combine(key.shared, label, entry, shares)
    assert (decode_index(content), wrong) == (index, frozenset())
    with pytest.raises(tdh2.WrongShares, match="2 right decryption shares where 3 are needed"):
        tdh2.combine(key.shared, label, entry, {i: shares[i] for i in (0, 1)})
    for release in releases:
        assert (release.entry, release.rule, release.round) == (entry, RULE.digest, key.round)
        assert release.is_signed(world.nodes[0].core.committee.keys)
        with pytest.raises(Unauthentic):
            SealKey(b"x" * 32).open(release.sealed_share, "a share")
    committee, now = world.nodes[0].core.committee, time.time_ns() // 1_000_000
    signatures = tuple(sorted((r.signature for r in releases), key=lambda s: s.signer))
    ticket = SignedTicket(releases[0].ticket, 0, signatures[:3])
    assert (
        ticket.verify(world.genesis.chain_id, 0, committee.keys, committee.quorum, now).requester
        == USER.public
    )
    log = (await world.get(1, f"/v1/record/{RECORD.hex()}/log")).json()
    story = [("attested", None), ("published", None), ("allowed", "research")]
    assert [(r["code"], r["purpose"]) for r in log["receipts"]] == story


async def test_a_refused_request_opens_nothing_and_stands_in_the_log_with_its_reason(world):
    await world.start()
    await published(world)
    refused = await do(world, USER, Request(RECORD, "payment"))
    assert (refused.ok, refused.code) == (False, "wrong-purpose")
    await executed_everywhere(world)
    for i in world.nodes:
        is_problem(await world.get(i, f"/v1/release/{refused.tx.hex()}"), 403, "not open for payment")
    log = (await world.get(2, f"/v1/record/{RECORD.hex()}/log")).json()
    story = [(True, "attested"), (True, "published"), (False, "wrong-purpose")]
    assert [(r["ok"], r["code"]) for r in log["receipts"]] == story


async def test_a_grant_ends_when_the_authority_revokes_its_requester(world):
    await world.start()
    await published(world)
    granted = await do(world, USER, Request(RECORD, "research"))
    await do(world, AUTHORITY, Revoke(USER.public))
    await executed_everywhere(world)
    with pytest.raises(Denied, match="revoked"):
        await world.nodes[2].release(granted.tx)


async def test_a_member_that_holds_no_share_still_signs_tickets_and_says_so(world):
    await world.start()
    await published(world)
    granted = await do(world, USER, Request(RECORD, "research"))
    await executed_everywhere(world)
    world.nodes[2].holder._share = (0, None)
    release = await world.nodes[2].release(granted.tx)
    assert release.sealed_share is None
    assert release.is_signed(world.nodes[0].core.committee.keys)


async def test_every_node_signs_the_index_key_for_clients(world):
    await world.start()
    for i in world.nodes:
        signed = decode_signed_index_key((await world.get(i, "/v1/index-key")).content)
        assert (signed.key, signed.signer) == (index_key(world.genesis), i)
        assert signed.is_signed(world.genesis, world.nodes[0].core.committee.keys)
        forged = msgspec.structs.replace(signed, signer=(i + 1) % 4)
        assert not forged.is_signed(world.genesis, world.nodes[0].core.committee.keys)
