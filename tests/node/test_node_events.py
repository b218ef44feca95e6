"""Server-sent events of a node: each receipt that was asked for once and in order, from any place on, and bounds on who may listen."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import httpx2
import pytest
from node_world import AUTHORITY, TIMEOUT, World

from configs.web import serve
from crypto.codec import encode
from crypto.sign import SigningKey
from node import feed as feed_module
from node.feed import Feed, Filter, Matter
from protocol.contract import Receipt, decode_receipt
from protocol.identity import Credential, SignedCredential
from protocol.tx import Action, Attest, Certify, Decide, Emergency, Publish, Request, Rule, Tx
from tests.dealer import sealed

DOCTOR, PATIENT, OTHER, USER = (SigningKey(bytes([i]) * 32) for i in (11, 12, 13, 14))
RULE = Rule("role:user", ("research",), None, (), emergency="role:user or role:doctor")


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path, size=1)
    await made.start()
    yield made
    await made.stop()


async def do(world: World, sender: SigningKey, action: Action) -> Receipt:
    node = world.nodes[0]
    raw = encode(Tx.make(world.genesis.chain_id, sender, os.urandom(16), node.clock_ms() + 60_000, action))
    receipt = await node.receipt(node.submit(raw).id, TIMEOUT)
    assert receipt is not None
    return receipt


async def certify(world: World, key: SigningKey, role: str) -> Receipt:
    now = world.nodes[0].clock_ms()
    body = Credential(key.public, role, (f"role:{role}",), bytes(32), None, now - 1000, now + 10**6)
    return await do(world, AUTHORITY, Certify(SignedCredential.issue(body, AUTHORITY)))


async def history(world: World) -> list[Receipt]:
    """Two patients' records, a request, and an emergency that a second person allows."""
    receipts = [
        await certify(world, key, role)
        for key, role in ((DOCTOR, "doctor"), (PATIENT, "patient"), (OTHER, "patient"), (USER, "user"))
    ]
    for record, patient in ((b"1" * 16, PATIENT), (b"2" * 16, OTHER)):
        receipts.append(await do(world, DOCTOR, Attest(record, patient.public, bytes(32))))
        entry = sealed(world.genesis, record, 1, RULE)
        receipts.append(await do(world, patient, Publish(record, 1, b"c" * 32, entry, RULE)))
        receipts.append(await do(world, USER, Request(record, "treatment")))
    asked = await do(world, USER, Request(b"1" * 16, "emergency", Emergency("unconscious", b"note")))
    receipts += [asked, await do(world, DOCTOR, Decide(asked.tx, True))]
    return receipts


@asynccontextmanager
async def served(world: World):
    """The member's API over a real socket."""
    ports: asyncio.Queue[int] = asyncio.Queue()
    task = asyncio.create_task(
        serve(world.apps[0], "127.0.0.1", 0, ports.put_nowait, stopping=world.nodes[0].feed.close)
    )
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{await ports.get()}", timeout=TIMEOUT) as http:
        yield http
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def read(http, count: int, query: str = "", **headers: str) -> list[tuple[str, Receipt]]:
    """The first `count` events with their ids."""
    found: list[tuple[str, Receipt]] = []
    async with http.stream("GET", f"/v1/events?{query}", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        last = kind = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                last = value
            elif name == "event":
                kind = value
            elif name == "data":
                receipt = decode_receipt(bytes.fromhex(json.loads(value)["encoded"]))
                assert (kind, last) == (receipt.kind, f"{receipt.height}.{receipt.position}")
                found.append((last, receipt))
                if len(found) == count:
                    return found
    return found


async def test_all_receipts_come_once_in_chain_order_and_a_subscriber_goes_on_after_any_of_them(world):
    receipts = await history(world)
    async with served(world) as http:
        told = await read(http, len(receipts), "from=0.0")
        assert [r for _, r in told] == receipts
        for number in (1, 5, len(receipts) - 1):
            rest = await read(http, len(receipts) - number, **{"last-event-id": told[number - 1][0]})
            assert [r for _, r in rest] == receipts[number:]


async def test_each_filter_gives_what_concerns_that_record_patient_reader_or_kind_and_nothing_else(world):
    receipts = await history(world)
    certified, first, second, emergency = receipts[:4], receipts[4:7], receipts[7:10], receipts[10:]
    expected = {
        f"record={(b'1' * 16).hex()}": first + emergency,
        f"patient={PATIENT.public.hex()}": first + emergency,
        f"patient={OTHER.public.hex()}": second,
        f"reader={USER.public.hex()}": [first[2], second[2], *emergency],
        "kind=identity.certify": certified,
        f"patient={PATIENT.public.hex()}&kind=access.decide": emergency[1:],
    }
    async with served(world) as http:
        for query, wanted in expected.items():
            told = await read(http, len(wanted), f"from=0.0&{query}")
            assert [r for _, r in told] == wanted, query


async def test_a_patient_hears_of_an_emergency_as_it_happens(world):
    await history(world)
    async with served(world) as http:
        started = asyncio.Event()

        async def listen() -> list[tuple[str, Receipt]]:
            started.set()
            return await read(http, 1, f"patient={PATIENT.public.hex()}&kind=access.request")

        listening = asyncio.create_task(listen())
        await world.until(lambda: world.nodes[0].feed._subscribers)
        await do(world, USER, Request(b"2" * 16, "treatment"))  # another patient's
        asked = await do(world, USER, Request(b"1" * 16, "emergency", Emergency("unconscious", b"note")))
        ((_, told),) = await asyncio.wait_for(listening, TIMEOUT)
        assert told == asked
        await world.until(lambda: not world.nodes[0].feed._subscribers)


async def test_wrong_questions_and_too_many_subscribers_are_refused_with_a_sentence(world, monkeypatch):
    for query, words in (
        ("record=12", "the record must be written as 32 hex digits"),
        ("kind=gossip", "kind must be one of access.decide"),
        ("from=now", "HEIGHT.POSITION"),
        ("from=-1.0", "HEIGHT.POSITION"),
    ):
        answer = await world.get(0, f"/v1/events?{query}")
        assert answer.status_code == 400
        assert words in answer.json()["detail"]
    monkeypatch.setattr(feed_module, "MAX_SUBSCRIBERS", 1)
    async with served(world) as http, http.stream("GET", "/v1/events"):
        answer = await http.get("/v1/events")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "ask another node" in answer.json()["detail"]


async def test_a_node_that_stops_ends_its_subscriptions_at_once(world):
    async with served(world) as http, http.stream("GET", "/v1/events") as response:
        lines = response.aiter_lines()
        await anext(lines)
        world.nodes[0].feed.close()
        async with asyncio.timeout(5):
            assert [line async for line in lines if line.startswith("event")] == []


# --- the feed by itself ---------------------------------------------------------------------------------------------------


def matter(height: int, position: int = 0) -> Matter:
    tx = height.to_bytes(32, "big")
    return Matter(
        Receipt(tx, height, position, 0, "k", PATIENT.public, None, None, None, True, "c", ""), None, None
    )


class Log:
    """Matters as a ledger has them, counting how often it is read."""

    def __init__(self) -> None:
        self.matters: list[Matter] = []
        self.reads = 0
        self.feed = Feed(self.read, lambda: self.matters[-1].place[0] if self.matters else 0)

    async def read(self, after, limit):
        self.reads += 1
        await asyncio.sleep(0)
        return [m for m in self.matters if m.place > after][:limit]

    def grow(self, *matters: Matter) -> None:
        self.matters += matters
        self.feed.wake()


async def take(following, count: int) -> list[Matter]:
    found: list[Matter] = []
    async for _, m in following:
        if m is not None:
            found.append(m)
        if len(found) == count:
            break
    return found


async def test_subscribers_who_are_up_to_date_cost_the_ledger_one_reading_for_all(monkeypatch):
    log = Log()
    running = asyncio.create_task(log.feed.run())
    log.grow(matter(1))
    with log.feed.subscription():
        followers = [asyncio.create_task(take(log.feed.follow(Filter(), None), 3)) for _ in range(50)]
        await asyncio.sleep(0)
        log.grow(matter(2), matter(2, 1))
        log.grow(matter(3))
        assert await asyncio.gather(*followers) == [log.matters[1:]] * 50
        assert log.reads <= 4
    running.cancel()


async def test_one_who_falls_behind_what_the_node_remembers_is_served_from_the_ledger(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_RECENT", 3)
    monkeypatch.setattr(feed_module, "PAGE", 4)
    log = Log()
    running = asyncio.create_task(log.feed.run())
    with log.feed.subscription():
        slow = log.feed.follow(Filter(), (0, 0))
        first = asyncio.create_task(take(slow, 1))
        log.grow(matter(1))
        assert await first == log.matters
        quick = asyncio.create_task(take(log.feed.follow(Filter(), (1, 0)), 20))
        log.grow(*(matter(h) for h in range(2, 22)))
        assert await quick == log.matters[1:]
        assert len(log.feed._recent) <= 3
        assert await take(log.feed.follow(Filter(), (1, 0)), 20) == log.matters[1:]
    running.cancel()


async def test_silence_is_broken_by_the_place_up_to_which_nothing_came(monkeypatch):
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.01)
    log = Log()
    log.matters = [matter(1), matter(5, 2)]
    with log.feed.subscription():
        following = log.feed.follow(Filter(kind="nothing"), (0, 0))
        places = [await anext(following) for _ in range(2)]
    assert places == [((0, 0), None), ((5, 2), None)]
