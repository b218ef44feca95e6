"""Fault injection does what its names say, repeatably, and only where it was asked for."""

import asyncio
import sqlite3
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.faults import Link, NodeFaults
from configs.settings import NodeSettings
from crypto.errors import Malformed
from crypto.sign import SigningKey
from node.chaos import ChaosNet, Equivocator, Faults, limit_pages
from node.net import Chan, PeerUp
from node.store import connect
from protocol import merkle
from protocol.block import Block, Committee, Header, Proposal, Votes
from protocol.evidence import conflict
from protocol.genesis import Genesis, Member
from tests.dealer import share_point

delays = st.tuples(st.floats(0, 500), st.floats(0, 500)).map(lambda pair: tuple(sorted(pair)))
shares = st.floats(0, 1)


def faults(link: Link, **order) -> Faults:
    return Faults("b", NodeFaults(links={"a": link}, **order))


@given(
    seed=st.integers(0, 2**53),
    link=st.builds(Link, drop=shares, duplicate=shares, reorder=shares, delay_ms=delays),
)
def test_the_same_seed_and_frames_meet_the_same_fate(seed: int, link: Link):
    first, second = (faults(link, seed=seed) for _ in range(2))
    assert [first.plan("a", 100, t) for t in range(30)] == [second.plan("a", 100, t) for t in range(30)]


@given(link=st.builds(Link, duplicate=shares, delay_ms=delays, bytes_per_s=st.integers(1000, 10**6)))
def test_frames_that_are_not_reordered_arrive_in_their_order(link: Link):
    plan = faults(link)
    arrivals = [copies[0] for n in range(50) if (copies := plan.plan("a", 100, n / 100))]
    assert all(a < b for a, b in pairwise(arrivals))


def test_a_cut_loses_every_frame_of_its_peer_and_of_no_other():
    plan = Faults("b", NodeFaults(cut=("a",)))
    assert [plan.plan("a", 1, 0.0), plan.plan("c", 1, 0.0)] == [[], [0.0]]


def test_a_lossy_link_loses_about_its_share():
    plan = faults(Link(drop=0.3))
    assert 600 < sum(bool(plan.plan("a", 1, n)) for n in range(1000)) < 800


def test_a_reordered_frame_is_overtaken():
    plan = faults(Link(reorder=0.2))
    arrivals = [plan.plan("a", 1, n / 1000)[0] for n in range(100)]
    assert arrivals != sorted(arrivals)


def test_a_duplicated_frame_comes_twice():
    assert len(faults(Link(duplicate=1.0)).plan("a", 1, 0.0)) == 2


def test_a_thin_link_takes_the_time_that_its_bytes_need_and_drops_what_does_not_fit_its_queue():
    plan = faults(Link(bytes_per_s=10_000))
    arrivals = [plan.plan("a", 1000, 0.0) for _ in range(100)]
    taken = [copies[0] for copies in arrivals if copies]
    assert taken[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert len(taken) < 30
    assert plan.plan("a", 1000, 10.0), "the queue has drained"


def test_a_link_whose_least_delay_is_over_its_most_is_refused():
    with pytest.raises(ValueError, match="least"):
        Link(delay_ms=(10, 1))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_a_node_that_others_can_reach_over_http_is_refused_chaos(tmp_path: Path, host: str):
    config = tmp_path / "config.toml"
    config.write_text(
        'network = "n"\nkeys = "k"\ndata = "d"\nchain = "storage"\nname = "a"\np2p_port = 1\nhttp_port = 2\n'
        f'chaos = true\nhttp_host = "{host}"\n'
    )
    with pytest.raises(Malformed, match="lets whoever reaches http_host break the node"):
        NodeSettings.load(config)
    assert NodeSettings.load(config, http_host="127.0.0.1").chaos


# --- around a real transport ----------------------------------------------------------------------------------------------------


class Watched(Faults):
    """Says when it has decided."""

    def __init__(self, me: str, planned: asyncio.Event) -> None:
        super().__init__(me)
        self._planned = planned

    def plan(self, src: str, size: int, now: float) -> list[float]:
        self._planned.set()
        return super().plan(src, size, now)


class Behind:
    """Member b of a network of a and b, with faults on what it receives."""

    def __init__(self, network) -> None:
        net = network("ab")
        self._a, self._b = net.make("a"), net.make("b")
        self._planned = asyncio.Event()
        self.chaos = ChaosNet(self._b.net, Watched("b", self._planned))

    async def start(self) -> None:
        await self._a.net.start(self._a.events.put_nowait)
        await self.chaos.start(self._b.events.put_nowait)
        await self._a.until(PeerUp("b"))
        await self._b.until(PeerUp("a"))

    def send(self, *bodies: bytes) -> None:
        for body in bodies:
            assert self._a.net.send("b", Chan.VOTE, body)

    async def received(self, count: int) -> list[bytes]:
        return [frame.body for frame in await self._b.received(count)]

    async def until_planned(self) -> None:
        """Until the fate of a frame has been decided."""
        await asyncio.wait_for(self._planned.wait(), 20)


@pytest.fixture
async def behind(network):
    made = Behind(network)
    await made.start()
    yield made
    await made.chaos.stop()


async def test_delayed_frames_arrive_whole_and_in_order(behind: Behind):
    behind.chaos.faults.set(NodeFaults(links={"a": Link(delay_ms=(1, 30))}))
    sent = [b"frame %d" % n for n in range(50)]
    behind.send(*sent)
    assert await behind.received(50) == sent


async def test_duplicated_frames_arrive_twice(behind: Behind):
    behind.chaos.faults.set(NodeFaults(links={"a": Link(duplicate=1.0)}))
    behind.send(b"once", b"more")
    assert sorted(await behind.received(4)) == [b"more", b"more", b"once", b"once"]


async def test_a_cut_link_stays_up_and_carries_again_once_it_heals(behind: Behind):
    behind.chaos.faults.set(NodeFaults(cut=("a",)))
    behind.send(b"lost")
    await behind.until_planned()
    assert behind.chaos.peers() == {"a"}
    behind.chaos.faults.set(NodeFaults())
    behind.send(b"kept")
    assert await behind.received(1) == [b"kept"]


async def test_nothing_arrives_after_the_stop(behind: Behind):
    behind.chaos.faults.set(NodeFaults(links={"a": Link(delay_ms=(100, 100))}))
    behind.send(b"under way")
    await behind.until_planned()
    await behind.chaos.stop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await behind.received(1)


# --- lies and disks -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def liar() -> tuple[Committee, SigningKey, Equivocator]:
    keys = [SigningKey.generate() for _ in range(4)]
    members = tuple(
        Member(f"storage-{n}", key.public, f"id{n}", share_point(n)) for n, key in enumerate(keys)
    )
    committee = Committee(Genesis("diptych/1/storage/x", "storage", "bft", members, bytes(32), 1))
    return committee, keys[0], Equivocator(committee, keys[0])


def test_each_contradicted_vote_is_evidence_against_its_signer_alone(liar):
    committee, key, equivocator = liar
    for kind in ("notarize", "finalize"):
        vote = committee.sign(key, 0, kind, 3, bytes(32))
        lie = equivocator.contradiction(Votes((vote,), None))
        assert isinstance(lie, Votes)
        assert committee.is_valid_vote(lie.votes[0])
        evidence = conflict(committee, vote, lie.votes[0])
        assert evidence is not None
        assert evidence.first.signer == 0


def test_the_second_proposal_of_a_view_is_as_sound_as_the_first(liar):
    committee, key, equivocator = liar
    genesis = committee.genesis
    hashes = (committee.validators_hash, committee.validators_hash)
    header = Header(genesis.chain_id, 0, 1, 1, genesis.hash, 0, merkle.root(()), 0, 5, *hashes, 0)
    first = Proposal(Block(header, (), ()), None, committee.sign(key, 0, "notarize", 1, header.id))
    second = equivocator.contradiction(first)
    assert isinstance(second, Proposal)
    assert committee.is_valid_vote(second.vote)
    assert second.vote.block == second.block.header.id != header.id
    assert second == equivocator.contradiction(first), "said again, it is the same lie"
    assert conflict(committee, first.vote, second.vote)


def test_a_nullify_vote_and_the_words_of_others_are_not_contradicted(liar):
    committee, key, equivocator = liar
    assert equivocator.contradiction(Votes((committee.sign(key, 0, "nullify", 3, None),), None)) is None


def test_a_full_disk_refuses_writes_with_sqlites_own_error_keeps_reading_and_recovers(tmp_path: Path):
    db = connect(tmp_path / "journal.db")
    db.execute("CREATE TABLE t (data BLOB)")
    db.execute("INSERT INTO t VALUES (?)", (b"kept",))
    limit_pages(db, is_full=True)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        db.execute("INSERT INTO t VALUES (?)", (bytes(100_000),))
    assert db.execute("SELECT data FROM t").fetchall() == [(b"kept",)]
    limit_pages(db, is_full=False)
    db.execute("INSERT INTO t VALUES (?)", (bytes(100_000),))
    assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)
    db.close()


@pytest.mark.parametrize(
    "text", [b'{"disk": true}', b'{"links": {"a": {"drop": 2}}}', b'{"skew_ms": "much"}']
)
def test_an_order_that_is_not_understood_is_refused_whole(text: bytes):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=NodeFaults)
