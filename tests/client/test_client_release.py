"""Opening an index entry with the help of nodes some of whom lie: who is believed, who is named, and what is refused."""

import os
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest

from client.chain import ChainClient
from crypto import tdh2
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed, Unauthentic, Unavailable
from crypto.group import G1_GENERATOR
from crypto.seal import SealKey, seal
from crypto.sharing import lagrange, share_of
from crypto.sign import SigningKey
from protocol.identity import Release, Ticket
from protocol.index_key import IndexKey, SignedIndexKey, get_dealing, index_label, run_of
from protocol.network import ChainAddresses, NodeAddress
from protocol.record import BlobRef, Index, View
from protocol.tx import Rule
from tests.dealer import deal, index_key, sealed, share_key
from tests.memory_state import MemoryState
from tests.simulation.cluster import make_genesis

GENESIS, KEYS = make_genesis(4)
OTHER_GENESIS, _ = make_genesis(5)
PATIENT, READER, STRANGER = SigningKey(b"p" * 32), SealKey(b"r" * 32), SealKey(b"s" * 32)
RECORD, REQUEST = b"r" * 16, b"q" * 32
RULE = Rule("role:user", ("research",), None, ())
VIEW = View(GENESIS.chain_id, RECORD, 1, PATIENT.public, bytes(32), (BlobRef.of(b"envelope"),))
INDEX = Index.make(VIEW, PATIENT)
ENTRY = sealed(GENESIS, RECORD, 1, RULE, encode(INDEX))
TICKET = Ticket(GENESIS.chain_id, REQUEST, RECORD, 1, VIEW.commit, b"u" * 32, "research", 2**60)
KEY = index_key(GENESIS)


STATE = MemoryState()
deal(GENESIS, STATE)
RUN = run_of(GENESIS.hash, 0, GENESIS.members, 3)
SHARES = [RUN.piece(0, get_dealing(STATE, 0, 0), i, share_key(i)) for i in range(4)]


def part(i: int, entry: bytes = ENTRY, rule: Rule = RULE, version: int = 1) -> bytes:
    label = index_label(GENESIS.chain_id, RECORD, version, rule.digest)
    return tdh2.decryption_share(KEY.public, label, entry, SHARES[i])


def release(i: int, *, signer: int | None = None, ticket: Ticket = TICKET, **changes) -> Release:
    """What member i answers, except for the changes."""
    own = signer if signer is not None else i
    said = {"entry": ENTRY, "rule": RULE.digest, "round": 0, "sealed_share": seal(READER.public, part(i))}
    return Release.make(ticket, 0, own, KEYS[i], **(said | changes))


class Member:
    """A member's HTTP server: `release` and `key` are what it answers, an error is answered as a problem."""

    def __init__(self, i: int) -> None:
        self.release: Release | DiptychError | bytes = release(i)
        self.key: SignedIndexKey | DiptychError | bytes = SignedIndexKey.make(GENESIS, KEY, i, KEYS[i])
        member = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                said = member.key if self.path == "/v1/index-key" else member.release
                status, content = 200, said if isinstance(said, bytes) else b""
                if isinstance(said, DiptychError):
                    status = {Denied: 403, Unavailable: 503}[type(said)]
                    content = msgspec.json.encode({"detail": str(said)})
                elif not isinstance(said, bytes):
                    content = encode(said)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class World:
    def __init__(self) -> None:
        self.members = [Member(i) for i in range(4)]
        names = [m.name for m in GENESIS.members]
        nodes = {n: NodeAddress("127.0.0.1:1", m.url) for n, m in zip(names, self.members, strict=True)}
        self.warnings: list[str] = []
        self.client = ChainClient(GENESIS, ChainAddresses("g", "0" * 64, nodes), self.warnings.append)

    def release(self, seconds: float = 0.0) -> Index:
        index, ticket = self.client.release(REQUEST, READER, seconds)
        assert (
            ticket.verify(GENESIS.chain_id, 0, tuple(k.public for k in KEYS), 3, time.time_ns() // 1_000_000)
            == TICKET
        )
        return index


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.client.close()
    for member in made.members:
        member.stop()


# --- the index key -----------------------------------------------------------------------------------------------------


def test_the_index_key_is_what_a_quorum_signs_whatever_one_member_says(world):
    false = index_key(OTHER_GENESIS)
    world.members[1].key = SignedIndexKey.make(GENESIS, false, 1, KEYS[1])
    assert world.client.index_key(0) == KEY


@pytest.mark.parametrize(
    "answer",
    [
        lambda i: SignedIndexKey.make(GENESIS, index_key(OTHER_GENESIS), 0, KEYS[0]),
        lambda i: SignedIndexKey.make(OTHER_GENESIS, KEY, i, KEYS[i]),
        lambda i: SignedIndexKey.make(GENESIS, KEY, (i + 1) % 4, KEYS[i]),
        lambda i: SignedIndexKey.make(GENESIS, KEY, 60, KEYS[i]),
        lambda i: SignedIndexKey(KEY, i, bytes(64)),
        lambda i: Unavailable("still making its index key"),
        lambda i: b"junk",
    ],
    ids=[
        "one signature many times",
        "other chain",
        "other signer",
        "no member",
        "unsigned",
        "none yet",
        "junk",
    ],
)
def test_an_index_key_without_the_signatures_of_a_quorum_is_not_believed(world, answer: Callable):
    for i in (0, 1, 2):
        world.members[i].key = answer(i)
    with pytest.raises(Unavailable, match="no quorum of the storage chain's nodes names one index key"):
        world.client.index_key(0)


def test_a_client_waits_while_a_new_chain_makes_its_key(world):
    later, world.members[0].key = world.members[0].key, Unavailable("still making its index key")
    asked = []

    def making(path: str, read: Callable, ask=world.client._ask_all):
        asked.append(path)
        if len(asked) == 3:
            world.members[0].key = later
        return ask(path, read)

    world.members[3].key = Unavailable("down")
    world.client._ask_all = making
    assert world.client.index_key(20) == KEY
    assert len(asked) == 3


# --- releases ----------------------------------------------------------------------------------------------------------


def test_a_quorum_opens_the_entry_and_the_fourth_need_not_answer(world):
    world.members[2].release = Unavailable("starting")
    assert world.release() == INDEX
    assert world.warnings == []


def wrong_shares() -> dict[str, bytes | None]:
    other = sealed(GENESIS, RECORD, 2, RULE, b"another")
    return {
        "of another member": seal(READER.public, part(2)),
        "of another entry": seal(READER.public, part(1, other, version=2)),
        "junk": seal(READER.public, b"junk"),
        "sealed to another": seal(STRANGER.public, part(1)),
        "not sealed": part(1),
    }


@pytest.mark.parametrize("what", wrong_shares())
def test_a_node_that_gives_a_wrong_share_is_named_and_the_others_open(world, what):
    world.members[1].release = release(1, sealed_share=wrong_shares()[what])
    for _ in range(20):  # whether the liar is among the first three is a race
        assert world.release() == INDEX
        if world.warnings:
            break
    assert world.warnings[0] == "n1 gave a wrong decryption share; tell its operator"


def test_two_nodes_with_wrong_shares_are_named_in_the_refusal(world):
    for i in (0, 3):
        world.members[i].release = release(i, sealed_share=wrong_shares()["of another member"])
    with pytest.raises(Unauthentic, match="wrong decryption shares came from n0, n3"):
        world.release()
    assert sorted(world.warnings) == [
        f"n{i} gave a wrong decryption share; tell its operator" for i in (0, 3)
    ]


def test_a_share_that_was_changed_on_the_way_makes_nobody_look_like_a_liar(world):
    honest = release(1)
    world.members[1].release = msgspec.structs.replace(honest, sealed_share=wrong_shares()["junk"])
    world.members[3].release = Unavailable("starting")
    with pytest.raises(Unavailable, match="where 3 are needed"):
        world.release()
    world.members[3].release = release(3)
    assert world.release() == INDEX
    assert world.warnings == []


def test_a_node_that_signs_tickets_and_holds_no_share_is_no_liar(world):
    world.members[1].release = release(1, sealed_share=None)
    assert world.release() == INDEX
    world.members[2].release = release(2, sealed_share=None)
    with pytest.raises(Unavailable, match="too few of them alike, where 3 are needed"):
        world.release()
    assert world.warnings == []


@pytest.mark.parametrize(
    "lie",
    [
        lambda i: release(i, entry=sealed(GENESIS, RECORD, 1, RULE, b"forged")),
        lambda i: release(i, rule=b"r" * 32),
        lambda i: release(i, ticket=msgspec.structs.replace(TICKET, purpose="treatment")),
        lambda i: release(i, ticket=msgspec.structs.replace(TICKET, request=b"x" * 32)),
        lambda i: release(i, ticket=msgspec.structs.replace(TICKET, chain_id=OTHER_GENESIS.chain_id + "x")),
        lambda i: release(i, round=7),
        lambda i: release(i, signer=(i + 1) % 4),
        lambda i: b"junk",
        lambda i: os.urandom(2000),
    ],
    ids=["entry", "rule", "ticket", "request", "chain", "round", "signer", "junk", "noise"],
)
def test_a_node_that_answers_something_else_than_the_others_neither_spoils_nor_frames(world, lie: Callable):
    world.members[1].release = lie(1)
    assert world.release() == INDEX
    world.members[2].release = lie(2)
    with pytest.raises(Unavailable, match="where 3 are needed"):
        world.release()
    assert world.warnings == [], "an honest node's share is not held against another node's entry"


def test_when_no_quorum_is_left_that_would_release_the_refusal_says_why(world):
    for i in (1, 2):
        world.members[i].release = Denied("the grant has expired; request access again")
    with pytest.raises(Denied, match="grant has expired"):
        world.release(20)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"no index at all", Malformed, "index entry"),
        (encode(msgspec.structs.replace(INDEX, record=b"x" * 16)), Denied, "another record or version"),
        (encode(msgspec.structs.replace(INDEX, version=2)), Denied, "another record or version"),
        (encode(msgspec.structs.replace(INDEX, chain_id="other")), Denied, "another record or version"),
    ],
)
def test_an_entry_that_is_no_index_of_this_record_version_is_refused(world, content, error, words):
    entry = sealed(GENESIS, RECORD, 1, RULE, content)
    for i, member in enumerate(world.members):
        member.release = release(i, entry=entry, sealed_share=seal(READER.public, part(i, entry)))
    with pytest.raises(error, match=words):
        world.release()


def test_after_a_resharing_the_client_fetches_the_new_verification_keys(world):
    assert world.release() == INDEX
    coefficients = [sum(w * SHARES[i] for i, w in lagrange([0, 1, 2]).items()), 5, 7]
    commitments = tuple((G1_GENERATOR * c).to_bytes() for c in coefficients)
    new = IndexKey(1, GENESIS.members, commitments, (0, 1, 2), True)
    assert new.public == KEY.public
    label = index_label(GENESIS.chain_id, RECORD, 1, RULE.digest)
    for i, member in enumerate(world.members):
        share = tdh2.decryption_share(KEY.public, label, ENTRY, share_of(coefficients, i))
        member.release = release(i, round=1, sealed_share=seal(READER.public, share))
        member.key = SignedIndexKey.make(GENESIS, new, i, KEYS[i])
    assert world.release() == INDEX
    assert world.client.index_key() == new
    assert world.warnings == []
