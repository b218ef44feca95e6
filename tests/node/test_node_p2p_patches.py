"""What py-libp2p 0.8.1 gets wrong and node/p2p.py puts right. An upgrade of the library that changes it fails here.

The attackers are built from the library, in a trio run of their own.
"""

import asyncio
import logging
import os
import socket
from importlib.metadata import version

import pytest
import trio
from libp2p.tools.anyio_service import background_trio_service

from node import p2p
from node.net import MAX_BODY, Chan, PeerDown, PeerUp, Received

pytestmark = pytest.mark.parametrize("network", ["node.p2p:P2PNet"], indirect=True, ids=["libp2p"])


async def attack(net, attacker, script):
    """Run `script(swarm, dial)` as the member behind `attacker`; `dial()` connects to b and returns the muxed connection."""

    async def run():
        swarm = attacker._new_swarm()
        async with background_trio_service(swarm) as manager:
            address = p2p._multiaddr(net.book["b"].host, net.book["b"].port)

            async def dial():
                return (await swarm.dial_addr(address, p2p.ID.from_string(net.book["b"].identity))).muxed_conn

            with trio.fail_after(20):
                await script(swarm, dial)
            manager.cancel()

    await asyncio.to_thread(trio.run, run)


def connections(member):
    return sum(map(len, member.net._swarm.connections.values()))


def slots(member):
    return member.net._swarm._inbound_limiter.borrowed_tokens


def multistream(*words):
    return b"".join(bytes([len(word) + 1]) + word + b"\n" for word in (b"/multistream/1.0.0", *words))


def test_the_version_is_the_one_whose_faults_are_known(network):
    assert version("libp2p") == "0.8.1"


@pytest.mark.parametrize("offer", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0"])
async def test_nothing_but_noise_is_accepted(network, offer):  # S1, S2
    net = network("ab")
    b = await net.start("b")
    reader, writer = await asyncio.open_connection(net.book["b"].host, net.book["b"].port)
    writer.write(multistream(offer))
    answer = await asyncio.wait_for(reader.readexactly(len(multistream(b"na"))), 10)
    assert answer == multistream(b"na")
    writer.write(multistream(b"/noise")[20:])
    assert await asyncio.wait_for(reader.readexactly(8), 10) == b"\x07/noise\n"
    writer.close()
    await net.until(lambda: b.net.stats()["refused"] == 1)
    assert connections(b) == slots(b) == 0


@pytest.mark.parametrize("who", ["a stranger", "a member that must not dial"])
async def test_who_may_not_dial_is_refused_in_the_handshake_and_never_registered(network, who):  # S3
    net = network("abc")
    b = await net.start("b")
    attacker = net.make("c").net if who != "a stranger" else net.make("a", identity_seed=os.urandom(32)).net
    registered = []
    b.net._new_link = lambda *arguments: registered.append(arguments)

    async def script(swarm, dial):
        with pytest.raises(Exception, match=r"upgrade|Failed"):
            await dial()
        assert not swarm.connections

    await attack(net, attacker, script)
    await net.until(lambda: b.net.stats()["refused"] == 1)
    assert connections(b) == slots(b) == 0
    assert not registered


async def test_a_stranger_cannot_make_the_handshake_read_what_it_announces(network, monkeypatch):
    taken = []

    class Counting(p2p.RawConnection):
        async def read(self, n=None):
            data = await super().read(n)
            taken.append(len(data))
            return data

    monkeypatch.setattr(p2p, "RawConnection", Counting)
    net = network("ab")
    b = await net.start("b")

    def flood():
        with socket.create_connection((net.book["b"].host, net.book["b"].port), timeout=10) as raw:
            raw.sendall(multistream() + b"\xff\xff\xff\xff\x0f")  # four GiB follow
            for _ in range(4096):
                raw.sendall(bytes(1 << 20))

    with pytest.raises(ConnectionError):
        await asyncio.to_thread(flood)
    await net.until(lambda: b.net.stats()["refused"] == 1)
    assert 0 < sum(taken) <= 64 << 10
    assert slots(b) == 0


async def test_closed_connections_give_their_slots_back(network, monkeypatch):  # L1
    monkeypatch.setattr(p2p, "_MAX_CONNECTIONS", 64)
    net = network("ab")
    b = await net.start("b")

    async def script(swarm, dial):
        for _ in range(100):
            await (await dial()).link.raw.close()

    await attack(net, net.make("a").net, script)
    await net.until(lambda: b.net.stats()["refused"] == 100)
    await net.until(lambda: connections(b) == slots(b) == 0)
    await net.start("a")
    assert await b.next() == PeerUp("a")


async def test_idle_connections_of_a_member_do_not_add_up(network, monkeypatch):
    monkeypatch.setattr(p2p, "_SETUP_S", 60)
    net = network("ab")
    b = await net.start("b")

    async def script(swarm, dial):
        idle = [await dial() for _ in range(12)]
        for muxed in idle[:-1]:
            await muxed.event_closed.wait()
        assert slots(b) == 1

    await attack(net, net.make("a").net, script)


async def test_a_connection_whose_streams_are_not_opened_is_closed(network, monkeypatch):
    monkeypatch.setattr(p2p, "_SETUP_S", 1)
    net = network("ab")
    b = await net.start("b")

    async def script(swarm, dial):
        muxed = await dial()
        await muxed.event_closed.wait()

    await attack(net, net.make("a").net, script)
    assert b.net.peers() == frozenset()


@pytest.mark.parametrize(
    "speech", [b"\x02\xff\n", b"\xff" * 12, multistream(b"/diptych/other/ctl/1"), multistream(b"ls") * 99]
)
async def test_garbage_on_a_stream_ends_that_connection_and_nothing_else(network, speech):
    net = network("ab")
    b = await net.start("b")
    swarm_before = b.net._swarm

    async def script(swarm, dial):
        muxed = await dial()
        stream = await muxed.open_stream()
        await stream.write(speech)
        await stream.close()
        await muxed.event_closed.wait()

    await attack(net, net.make("a").net, script)
    await net.until(lambda: b.net.stats()["refused"] == 1)
    await net.start("a")
    assert await b.next() == PeerUp("a")
    assert b.net._swarm is swarm_before


async def test_a_third_stream_ends_the_link(network, monkeypatch):
    monkeypatch.setattr(p2p, "_SETUP_S", 60)
    net = network("ab")
    a, b = await net.start_all()
    in_trio(a, a.net._current["b"].muxed.open_stream)
    assert await b.next() == PeerDown("a", "does not speak the protocol of this chain")
    assert await b.next() == PeerUp("a")


async def test_a_peer_that_is_away_for_many_dials_is_linked_soon_after_it_comes(network):  # L2, L3
    net = network("ab")
    dials: asyncio.Queue[None] = asyncio.Queue()

    async def hang_up(reader, writer):
        writer.close()
        dials.put_nowait(None)

    server = await asyncio.start_server(hang_up, net.book["b"].host, net.book["b"].port)
    a = await net.start("a")
    for _ in range(4):
        await asyncio.wait_for(dials.get(), 10)
    server.close()
    await server.wait_closed()
    await net.start("b")
    async with asyncio.timeout(15):  # the library alone bars the peer for 60 s and then never dials again
        assert await a.next() == PeerUp("b")


def in_trio(member, function, *arguments):
    """Start a coroutine function in the trio thread of a member."""

    def spawn():
        trio.lowlevel.spawn_system_task(function, *arguments)

    member.net._run[0].run_sync_soon(spawn)


@pytest.mark.parametrize("kind", ["ctl", "bulk"])
async def test_a_stream_that_is_reset_takes_the_link_down_and_a_new_one_comes(network, kind):  # B1
    a, b = await network("ab").start_all()
    in_trio(b, b.net._current["a"].streams[kind].reset)
    for member, peer in ((a, "b"), (b, "a")):
        assert isinstance(await member.next(), PeerDown)
        assert await member.next() == PeerUp(peer)


@pytest.mark.parametrize(
    ("kind", "chan", "size"),
    [
        ("ctl", Chan.VOTE, MAX_BODY[Chan.VOTE] + 1),
        ("bulk", Chan.PROPOSAL, MAX_BODY[Chan.PROPOSAL] + 1),
        ("bulk", Chan.TX, 2**32 - 1),
        ("bulk", Chan.VOTE, 1),
        ("ctl", Chan.TX, 1),
        ("ctl", 7, 0),
    ],
)
async def test_an_oversize_or_misplaced_frame_ends_the_link_before_its_body(network, kind, chan, size):
    a, b = await network("ab").start_all()
    stream = a.net._current["b"].streams[kind]
    in_trio(a, stream.write, p2p._HEADER.pack(chan, size))
    assert await b.next() == PeerDown("a", "sent a frame that is too large or on the wrong stream")
    assert await b.next() == PeerUp("a")


async def test_frames_that_the_loop_does_not_take_are_bounded_and_counted(network, monkeypatch):
    monkeypatch.setattr(p2p, "_INBOX", 1 << 20)
    net = network("ab")
    a, b = await net.start_all()
    b.net._armed = True  # as if the loop were too busy to be woken
    assert sum(a.net.send("b", Chan.SYNC, bytes(200 << 10)) for _ in range(20)) == 20
    await net.until(lambda: b.net.stats()["overflow_sync"] == 15)
    b.net._drain()
    assert len(await b.received(5)) == 5
    assert a.net.send("b", Chan.SYNC, b"room again")
    assert await b.next() == Received("a", Chan.SYNC, b"room again")


async def test_a_peer_that_ignores_its_window_is_disconnected(network, monkeypatch):
    monkeypatch.setattr(p2p, "_UNREAD", 100_000)
    monkeypatch.setattr(p2p, "_SETUP_S", 60)
    net = network("ab")
    b = await net.start("b")

    async def script(swarm, dial):
        muxed = await dial()
        stream = await muxed.open_stream()
        await stream.write(bytes(200_000))
        await muxed.event_closed.wait()

    monkeypatch.setattr(p2p, "Multiselect", NeverAnswers)
    await attack(net, net.make("a").net, script)
    assert b.net.peers() == frozenset()


class NeverAnswers:
    def __init__(self, handlers):
        pass

    async def negotiate(self, speaker, seconds):
        await trio.sleep_forever()


async def test_a_crash_inside_the_library_is_survived(network):
    a, b = await network("ab").start_all()

    async def crash():
        raise RuntimeError("a fault of the library")

    def schedule():
        a.net._swarm.manager.run_task(crash)

    a.net._run[0].run_sync_soon(schedule)
    for member, peer in ((a, "b"), (b, "a")):
        assert isinstance(await member.next(), PeerDown)
        assert await member.next() == PeerUp(peer)
    assert a.net.send("b", Chan.VOTE, b"back")
    assert await b.next() == Received("a", Chan.VOTE, b"back")


async def test_the_library_logs_nothing_not_even_on_the_root_logger(network, caplog):  # S5
    caplog.set_level(logging.DEBUG)
    a, b = await network("ab").start_all()
    a.net.broadcast(Chan.TX, b"SECRET" * 1000)
    await b.received(1)
    in_trio(b, b.net._current["a"].streams["bulk"].reset)
    await a.until_down("b")
    await a.net.stop()
    await b.until_down("a")
    assert not [
        record for record in caplog.records if "libp2p" in record.pathname or "SECRET" in record.getMessage()
    ]
