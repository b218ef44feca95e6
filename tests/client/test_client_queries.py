"""Listings and events as clients read them, from nodes of which some leave things out, invent them, fail or talk nonsense."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from test_client_liars import receipt, saying, server

from client.chain import ChainClient
from client.events import MAX_LINE, _events, _lines
from client.tags import Coding, codings_of, tag_of
from crypto.codec import encode
from crypto.errors import Malformed, Unavailable
from crypto.sign import SigningKey
from protocol import queries
from protocol.contract import LISTED, RecordEntry, patient_list, record_key
from protocol.genesis import Genesis, Member
from protocol.network import ChainAddresses, NodeAddress
from tests.dealer import share_point
from tests.memory_state import MemoryState

PATIENT = b"P" * 32
RECORDS = [bytes([i]) * 16 for i in (0, 1, 2, 255)]


class State(MemoryState):
    def listing(self, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        rests = sorted(k[len(prefix) :] for k in self if k.startswith(prefix))
        return [rest for rest in rests if rest > after][:limit]


def state(*records: bytes, patient: bytes = PATIENT) -> State:
    made = State()
    for record in records:
        entry = RecordEntry(
            patient, bytes(32), bytes(32), 1, bytes(32), b"", None, 0, "published", (), None, b""
        )
        made.put(record_key(record), encode(entry))
        made.put(patient_list(PATIENT) + record, LISTED)
    return made


def node(shown: State, height: int):
    """An answer to the listing of a patient's records, three a page."""

    def answer(handler) -> None:
        asked = parse_qs(urlsplit(handler.path).query)
        after = bytes.fromhex(asked.get("after", [""])[0])
        items, more = queries.page(shown, queries.RECORDS, PATIENT, after, min(3, int(asked["limit"][0])))
        listed = [{name: getattr(item, name).hex() for name in item._fields} for item in items]
        body = {"height": height, "items": listed, "next": more.hex() if more else None}
        saying(json.dumps(body).encode())(handler)

    return answer


class Known(ChainClient):
    """A client to whom the true state is proved at height 10; how it is proved is tested elsewhere."""

    truth: State

    def verified_state(self, key: bytes, seconds: float = 15):  # type: ignore[override]
        checkpoint = SimpleNamespace(checkpoint=SimpleNamespace(height=10))
        return SimpleNamespace(value=self.truth.get(key), signed=checkpoint)


@pytest.fixture
def network() -> Iterator:
    with ExitStack() as stack:

        def make(truth: State, *answers) -> tuple[Known, list[str]]:
            members = tuple(
                Member(f"n{i}", SigningKey(bytes([i + 1]) * 32).public, f"p{i}", share_point(i))
                for i in range(len(answers))
            )
            genesis = Genesis("diptych/1/sharing/x", "sharing", "bft", members, bytes(32), 0)
            urls = [stack.enter_context(server(answer)) for answer in answers]
            nodes = {f"n{i}": NodeAddress("127.0.0.1:1", url) for i, url in enumerate(urls)}
            said: list[str] = []
            client = Known(genesis, ChainAddresses("g", "0" * 64, nodes), said.append)
            client.truth = truth
            stack.callback(client.close)
            return client, said

        yield make


TRUTH = state(*RECORDS)


def test_a_listing_that_all_nodes_agree_on_is_taken_over_all_its_pages(network):
    client, said = network(TRUTH, *[node(TRUTH, 10)] * 4)
    assert list(client.records_of(PATIENT)) == RECORDS
    assert said == []


@pytest.mark.parametrize("liars", [1, 3])
@pytest.mark.parametrize("record", RECORDS)
def test_what_nodes_leave_out_is_found_and_they_are_named(network, record, liars):
    less = state(*(r for r in RECORDS if r != record))
    client, said = network(TRUTH, *[node(less, 11)] * liars, *[node(TRUTH, 10)] * (4 - liars))
    assert list(client.records_of(PATIENT)) == RECORDS
    assert sorted(s[:2] for s in said) == [f"n{i}" for i in range(liars)]
    assert all("leaves out" in s for s in said)


def test_what_nodes_invent_is_not_believed_and_they_are_named(network):
    more = state(*RECORDS, b"i" * 16)
    client, said = network(TRUTH, *[node(more, 10)] * 3, node(TRUTH, 10))
    assert list(client.records_of(PATIENT)) == RECORDS
    assert sorted(s[:2] for s in said) == ["n0", "n1", "n2"]
    assert all("does not have" in s for s in said)


def test_a_node_that_is_behind_is_no_liar(network):
    client, said = network(TRUTH, node(state(*RECORDS[:2]), 9), *[node(TRUTH, 10)] * 3)
    assert list(client.records_of(PATIENT)) == RECORDS
    assert said == []


@pytest.mark.parametrize(
    "lie",
    [
        node(state(*RECORDS, patient=b"Q" * 32), 10),
        saying(b'{"height": 1, "items": [], "next": "00"}'),
        saying(b'{"height": 1, "items": [{"id": "00"}], "next": null}'),
        saying(b'{"height": 1, "items": 7, "next": null}'),
        saying(b"[" * 100_000),
    ],
    ids=["another's records", "no end", "no item", "no list", "deep"],
)
def test_a_listing_that_cannot_be_true_counts_for_nothing_and_its_node_is_named(network, lie):
    client, said = network(TRUTH, lie, *[node(TRUTH, 10)] * 3)
    assert list(client.records_of(PATIENT)) == RECORDS
    assert [s[:2] for s in said] == ["n0"]
    alone, _ = network(TRUTH, lie)
    with pytest.raises(Unavailable, match="no node"):
        alone.records_of(PATIENT)


# --- events ---------------------------------------------------------------------------------------------------------------


def told(*receipts, silent: str = "") -> bytes:
    lines = [
        f"id: {r.height}.{r.position}\nevent: {r.kind}\ndata: {json.dumps({'encoded': encode(r).hex()})}\n\n"
        for r in receipts
    ]
    return (f": \nid: {silent}\n\n" if silent else "").encode() + "".join(lines).encode()


def test_events_go_on_at_the_next_node_after_the_last_one_each_once_and_in_order(network):
    receipts = [receipt(1), receipt(1, 1), receipt(4), receipt(9)]
    asked: list[str | None] = []

    def answer(handler) -> None:
        last = handler.headers.get("last-event-id")
        if handler.path.startswith("/v1/events"):
            asked.append(last)
        after = tuple(map(int, last.split("."))) if last else (0, 0)
        rest = [r for r in receipts if (r.height, r.position) > after]
        saying(told(*rest[:1], silent=f"{after[0]}.{after[1]}") + b"id: 99.0\nevent: cut o")(handler)

    def nonsense(handler) -> None:
        saying(b"data: junk\nid: 1.0\n\n")(handler)

    client, _ = network(TRUTH, answer, nonsense, saying(b"gone", 503), answer)
    client._demote = lambda url: client._urls.append(client._urls.pop(0))  # type: ignore[method-assign]
    following = client.events(patient=PATIENT, after=(0, 0))
    assert [next(following) for _ in receipts] == receipts
    assert asked[0] == "0.0"
    assert [a for a in asked if a != "0.0"] == ["1.0", "1.1", "4.0"]


@pytest.mark.parametrize(
    "lie",
    [
        told(receipt(2), receipt(1)),
        told(receipt(2), receipt(2)),
        told(receipt(2)).replace(b"id: 2.0", b"id: 3.0"),
        b"id: x\n\n",
        b"id: 1\n\n",
        b'id: 1.0\ndata: {"encoded": "00"}\n\n',
        b"id: 1.0\ndata: []\n\n",
        b"id: 1.0\ndata: " + b"[" * 100_000 + b"\n\n",
        b"event: too-slow\ndata: x\n\n",
        b"x" * (MAX_LINE + 1),
    ],
)
def test_events_that_cannot_be_true_end_the_stream_of_that_node(lie):
    with pytest.raises(Unavailable):
        list(_events(_lines([lie]), (0, 0)))


def test_events_are_read_alike_however_the_bytes_are_cut():
    data = told(receipt(1), receipt(2), silent="0.0")
    whole = list(_events(_lines([data]), (0, 0)))
    assert [place for place, _ in whole] == [(0, 0), (1, 0), (2, 0)]
    assert list(_events(_lines([data[i : i + 1] for i in range(len(data))]), (0, 0))) == whole


# --- research tags --------------------------------------------------------------------------------------------------------


def test_a_tag_is_found_by_who_names_the_same_registry_system_and_code_and_by_no_one_else():
    diabetes = Coding.parse("http://snomed.info/sct|44054006")
    tag = tag_of("Diabetes NL", diabetes)
    assert tag_of(" diabetes   nl ", Coding("http://snomed.info/sct", "44054006")) == tag
    others = [
        tag_of("Diabetes BE", diabetes),
        tag_of("Diabetes NL", Coding("http://snomed.info/sct", "44054007")),
        tag_of("Diabetes NL", Coding("http://snomed.info/sct4", "4054006")),
    ]
    assert len({tag, *others}) == 4
    for text in ("", "|", "44054006", "http://snomed.info/sct|", "|44054006", "x" * 600 + "|1"):
        with pytest.raises(Malformed, match=r"SYSTEM\|CODE"):
            Coding.parse(text)
    with pytest.raises(Malformed, match="name"):
        tag_of("  ", diabetes)


def test_the_codings_of_parts_are_found_at_any_depth_once_each_in_order():
    parts = [
        b'{"code": {"coding": [{"system": "s", "code": "1"}, {"system": "s", "code": "2", "display": "two"}]}}',
        b'{"a": [[{"system": "s", "code": "1", "display": "one"}]], "code": "3", "b": {"system": "t", "code": 4}}',
    ]
    assert codings_of(parts) == {Coding("s", "1"): "one", Coding("s", "2"): "two"}
