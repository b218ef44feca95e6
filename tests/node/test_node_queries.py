"""Listings of the state: what belongs to somebody, a page at a time, and nothing else; wrong questions are refused with a sentence."""

import os

import pytest
from node_world import AUTHORITY, TIMEOUT, World

from crypto.codec import encode
from crypto.sign import SigningKey
from node.ledger import Ledger
from protocol import contract, queries
from protocol.contract import decode_pending, decode_person, decode_proxy, decode_record, decode_ticket
from protocol.identity import Credential, SignedCredential
from protocol.tx import (
    Action,
    Attest,
    Certify,
    Decide,
    Emergency,
    Publish,
    Request,
    Retire,
    Rule,
    SetProxy,
    Tx,
)
from tests.dealer import sealed
from tests.simulation.cluster import Cluster

# Keys whose listings lie side by side among the state's keys, and one that ends with the greatest byte.
DOCTOR, PATIENT, OTHER, USER, HELPER = (SigningKey(bytes([i]) * 32) for i in (11, 12, 13, 14, 15))
TAG, NEXT_TAG = b"\xff" * 32, b"\xff" * 31 + b"\xfe"
RULE = Rule("role:user", ("research",), None, (), emergency="role:user or role:doctor")
ASKING = Rule("role:user", ("research",), None, (), approval="role:doctor")


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path, size=1)
    await made.start()
    yield made
    await made.stop()


class Chain:
    """One member's chain and what is done on it."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def do(self, sender: SigningKey, *actions: Action) -> list[bytes]:
        """The ids of these transactions, all allowed."""
        node, ids = self.world.nodes[0], []
        for action in actions:
            expires = node.clock_ms() + 60_000
            raw = encode(Tx.make(self.world.genesis.chain_id, sender, os.urandom(16), expires, action))
            receipt = await node.receipt(node.submit(raw).id, TIMEOUT)
            assert receipt is not None
            assert receipt.ok, receipt
            ids.append(receipt.tx)
        return ids

    async def people(self, *people: tuple[SigningKey, str]) -> None:
        now = self.world.nodes[0].clock_ms()
        for key, role in people:
            body = Credential(key.public, role, (f"role:{role}",), bytes(32), None, now - 1000, now + 10**6)
            await self.do(AUTHORITY, Certify(SignedCredential.issue(body, AUTHORITY)))

    async def record(self, number: int, patient: SigningKey, rule: Rule, *tags: bytes) -> bytes:
        record = bytes([number]) * 16
        await self.do(DOCTOR, Attest(record, patient.public, bytes(32)))
        entry = sealed(self.world.genesis, record, 1, rule)
        await self.do(patient, Publish(record, 1, b"c" * 32, entry, rule, tags))
        return record

    async def ask(self, path: str) -> dict:
        answer = await self.world.get(0, path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def listed(self, path: str, decode) -> dict[bytes, object]:
        """The whole listing in pages of two."""
        found: dict[bytes, object] = {}
        after: str | None = ""
        while after is not None:
            answer = await self.ask(f"{path}?limit=2&after={after}")
            assert len(answer["items"]) <= 2
            found |= {bytes.fromhex(i["id"]): decode(bytes.fromhex(i["encoded"])) for i in answer["items"]}
            after = answer["next"]
        assert list(found) == sorted(found)
        return found


@pytest.fixture
async def chain(world):
    made = Chain(world)
    await made.people((DOCTOR, "doctor"), (PATIENT, "patient"), (OTHER, "patient"), (USER, "user"))
    return made


async def test_a_patients_records_are_listed_in_every_state_but_no_one_elses(chain):
    mine = [await chain.record(number, PATIENT, RULE) for number in (1, 2, 3, 4, 255)]
    await chain.record(5, OTHER, RULE)
    await chain.do(DOCTOR, Attest(b"z" * 16, PATIENT.public, bytes(32)))
    await chain.do(PATIENT, Retire(mine[1], mine[0]))
    found = await chain.listed(f"/v1/patient/{PATIENT.public.hex()}/records", decode_record)
    assert sorted(found) == sorted([*mine, b"z" * 16])
    assert {entry.status for entry in found.values()} == {"published", "retired", "attested"}
    assert all(entry.patient == PATIENT.public for entry in found.values())
    for id_, entry in found.items():
        alone = await chain.ask(f"/v1/record/{id_.hex()}")
        assert bytes.fromhex(alone["encoded"]) == encode(entry)


async def test_a_readers_grants_are_listed_with_their_tickets_and_what_was_refused_is_not(chain):
    record = await chain.record(1, PATIENT, RULE)
    granted = await chain.do(USER, *(Request(record, "research") for _ in range(5)))
    await chain.people((HELPER, "user"))
    await chain.do(HELPER, Request(record, "research"))
    found = await chain.listed(f"/v1/reader/{USER.public.hex()}/grants", decode_ticket)
    assert sorted(found) == sorted(granted)
    assert {(t.requester, t.record) for t in found.values()} == {(USER.public, record)}


async def test_the_inbox_holds_what_waits_and_emergencies_until_they_are_reviewed(chain):
    asking, open_ = await chain.record(1, PATIENT, ASKING), await chain.record(2, PATIENT, RULE)
    (request,) = await chain.do(USER, Request(asking, "research"))
    (emergency,) = await chain.do(USER, Request(open_, "emergency", Emergency("unconscious", b"note")))
    inbox, waiting = f"/v1/patient/{PATIENT.public.hex()}/inbox", "/v1/pending"
    for path in (inbox, waiting):
        found = await chain.listed(path, decode_pending)
        assert {id_: p.purpose for id_, p in found.items()} == {request: "research", emergency: "emergency"}
    await chain.do(DOCTOR, Decide(request, True), Decide(emergency, True))
    assert await chain.listed(waiting, decode_pending) == {}
    answer = await chain.ask(inbox)
    (item,) = answer["items"]
    assert (item["id"], bytes.fromhex(item["key"])) == (emergency.hex(), contract.review_key(emergency))
    assert await chain.listed(f"/v1/patient/{OTHER.public.hex()}/inbox", decode_pending) == {}


async def test_wards_tags_and_people_are_listed_for_whom_they_concern(chain):
    await chain.people((HELPER, "user"))
    for patient in (PATIENT, OTHER):
        until = chain.world.nodes[0].clock_ms() + 10**6
        await chain.do(patient, SetProxy(HELPER.public, ("decide", "read"), 0, until))
    await chain.do(OTHER, SetProxy(HELPER.public, (), 0, 0))
    wards = await chain.listed(f"/v1/proxy/{HELPER.public.hex()}/wards", decode_proxy)
    assert [(id_, p.patient, p.proxy) for id_, p in wards.items()] == [
        (PATIENT.public, PATIENT.public, HELPER.public)
    ]

    both = await chain.record(1, PATIENT, RULE, NEXT_TAG, TAG)
    one = await chain.record(2, OTHER, RULE, NEXT_TAG)
    gone = await chain.record(3, OTHER, RULE, TAG)
    await chain.do(OTHER, Retire(gone, None))
    assert list(await chain.listed(f"/v1/tag/{TAG.hex()}", decode_record)) == [both]
    assert list(await chain.listed(f"/v1/tag/{NEXT_TAG.hex()}", decode_record)) == [both, one]

    people = await chain.listed("/v1/people", decode_person)
    assert people.keys() == {k.public for k in (DOCTOR, PATIENT, OTHER, USER, HELPER)}


async def test_wrong_questions_are_refused_with_a_sentence(chain):
    key = PATIENT.public.hex()
    for path, words in (
        ("/v1/patient/xyz/records", "the key must be written as 64 hex digits"),
        (f"/v1/patient/{key}00/inbox", "64 hex digits"),
        (f"/v1/patient/{key}/records?after={key}", "after must be written as 32 hex digits"),
        ("/v1/people?after=zz", "64 hex digits"),
        ("/v1/people?limit=0", "1 to 500"),
        ("/v1/people?limit=501", "1 to 500"),
        ("/v1/people?limit=-1", "1 to 500"),
        ("/v1/people?limit=99999999999999999999", "1 to 500"),
        ("/v1/people?limit=many", "1 to 500"),
        ("/v1/tag/", "Not Found"),
    ):
        answer = await chain.world.get(0, path)
        assert answer.status_code in (400, 404), path
        assert words in answer.json()["detail"], path


async def test_somebody_of_whom_nothing_is_known_has_empty_listings(chain):
    nobody = (b"n" * 32).hex()
    for query in queries.QUERIES:
        if query.owner_size:
            answer = await chain.ask(query.path.format(key=nobody))
            assert (answer["items"], answer["next"]) == ([], None)
            assert answer["height"] == chain.world.nodes[0].executed_height


def test_a_page_ends_before_its_objects_are_too_many_bytes(tmp_path):
    ledger = Ledger(tmp_path, Cluster().genesis)
    size = queries.MAX_PAGE_BYTES // 3 + 1
    ids = [bytes([i]) * 32 for i in range(5)]
    ledger._save({contract.pending_key(id_): bytes(size) for id_ in ids}, {})
    pages, after = [], b""
    while True:
        items, more = queries.page(ledger, queries.WAITING, b"", after, 100)
        pages.append([i.id for i in items])
        if more is None:
            break
        after = more
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    ledger.close()


def test_a_listing_is_a_search_in_the_index_of_the_keys_and_no_scan(tmp_path):
    ledger = Ledger(tmp_path, Cluster().genesis)
    seen: list[str] = []
    ledger._db.set_trace_callback(seen.append)
    ledger.listing(b"of/" + bytes(32), b"", 10)
    (statement,) = seen
    plan = ledger._db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
    assert "SEARCH state USING PRIMARY KEY (key>? AND key<?)" in str(plan)
    ledger.close()
