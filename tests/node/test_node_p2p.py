"""What every `Net` back end promises, over real sockets, threads and processes (`BACKENDS` in conftest.py)."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from crypto.errors import Conflict, Malformed
from node import links
from node.net import MAX_BODY, Chan, PeerDown, PeerUp, Received


async def test_frames_of_every_channel_and_size_arrive_intact_at_all_others(network):
    members = await network("abc").start_all()
    for sender in members:
        for chan in Chan:
            bodies = [b"", b"\x00", os.urandom(70_000 % MAX_BODY[chan]), os.urandom(MAX_BODY[chan])]
            for body in bodies:
                assert sender.net.broadcast(chan, body) == 2
            for receiver in members:
                if receiver is not sender:
                    assert await receiver.received(4) == [
                        Received(sender.net.me, chan, body) for body in bodies
                    ]


async def test_a_burst_of_5000_frames_arrives_complete_and_in_order_per_channel(network):
    a, b = await network("ab").start_all()
    for number in range(5000):
        assert a.net.send("b", Chan.VOTE, b"%d" % number)
        assert a.net.send("b", Chan.TX, b"%d" % number)
    frames = await b.received(10_000)
    for chan in (Chan.VOTE, Chan.TX):
        assert [int(frame.body) for frame in frames if frame.chan is chan] == list(range(5000))
    assert b.net.stats()["received_vote"] == a.net.stats()["sent_vote"] == 5000


async def test_a_vote_does_not_wait_for_megabytes_of_blocks(network):
    a, b = await network("ab").start_all()
    for _ in range(3):
        assert a.net.send("b", Chan.PROPOSAL, bytes(MAX_BODY[Chan.PROPOSAL]))
    assert a.net.send("b", Chan.VOTE, b"vote")
    assert Chan.VOTE in [frame.chan for frame in (await b.received(4))[:-1]]


async def test_a_body_over_the_limit_of_its_channel_is_refused_at_the_sender(network):
    a, _ = await network("ab").start_all()
    for chan in Chan:
        with pytest.raises(ValueError, match=chan.name):
            a.net.send("b", chan, bytes(MAX_BODY[chan] + 1))
        with pytest.raises(ValueError, match=chan.name):
            a.net.broadcast(chan, bytes(MAX_BODY[chan] + 1))


async def test_nothing_is_sent_to_who_is_not_linked(network):
    a = await network("ab").start("a")
    assert not a.net.send("b", Chan.VOTE, b"x")
    assert not a.net.send("nobody", Chan.VOTE, b"x")
    assert not a.net.send("a", Chan.VOTE, b"x")
    assert a.net.broadcast(Chan.VOTE, b"x") == 0
    assert a.net.peers() == frozenset()


async def test_events_come_in_the_thread_of_the_loop_and_agree_with_peers(network):
    net = network("ab")
    a = net.make("a")
    seen = []
    done = asyncio.Event()

    def on_event(event):
        seen.append((threading.get_ident(), event, a.net.peers()))
        done.set()

    await a.net.start(on_event)
    await net.start("b")
    await asyncio.wait_for(done.wait(), 10)
    assert seen == [(threading.get_ident(), PeerUp("b"), frozenset("b"))]


async def test_a_key_outside_the_address_book_is_refused(network):
    net = network("abc")
    b = await net.start("b")
    outsider = await net.start("a", identity_seed=os.urandom(32), listen_port=net.free_port())
    await net.until(lambda: b.net.stats()["refused"] >= 2)
    assert b.net.peers() == outsider.net.peers() == frozenset()
    await net.start("a")
    assert await b.until(PeerUp("a")) == []
    assert outsider.events.empty()


async def test_a_node_does_not_talk_to_another_key_at_the_address_of_a_peer(network):
    net = network("ab")
    impostor = await net.start("b", identity_seed=os.urandom(32))
    a = await net.start("a")
    await net.until(lambda: impostor.net.stats()["refused"] >= 2)
    assert a.events.empty()
    assert impostor.events.empty()


async def test_nodes_of_another_chain_are_refused_though_their_keys_are_right(network):
    net = network("ab")
    b = await net.start("b", chain_id="storage-1")
    a = await net.start("a", chain_id="storage/1")
    await net.until(lambda: b.net.stats()["refused"] >= 2)
    assert a.events.empty()
    assert b.events.empty()


async def test_strangers_that_say_nothing_cannot_keep_members_out(network, monkeypatch):
    monkeypatch.setattr(links, "_MAX_SETUPS", 4)
    monkeypatch.setattr(links, "_SETUP_S", 60.0)
    net = network("ab")
    b = await net.start("b")
    idle = [await asyncio.open_connection(net.book["b"].host, net.book["b"].port) for _ in range(12)]
    for reader, _ in idle[:8]:
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)
    assert b.net.stats()["refused"] == 8
    await net.start("a")
    assert await b.next() == PeerUp("a")
    for _, writer in idle:
        writer.close()


async def test_a_handshake_that_takes_too_long_is_ended(network, monkeypatch):
    monkeypatch.setattr(links, "_SETUP_S", 0.2)
    net = network("ab")
    b = await net.start("b")
    reader, writer = await asyncio.open_connection(net.book["b"].host, net.book["b"].port)
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await net.until(lambda: b.net.stats()["refused"] == 1)


@pytest.mark.parametrize("host", ["localhost", "::1"])
async def test_peers_may_be_given_by_name_or_ipv6_address(network, host):
    try:
        net = network("ab", host)
    except OSError:
        pytest.skip("this machine has no IPv6")
    a, b = await net.start_all()
    assert a.net.send("b", Chan.VOTE, b"hello")
    assert await b.received(1) == [Received("a", Chan.VOTE, b"hello")]


async def test_a_restarted_node_is_linked_again_by_itself_in_both_directions(network):
    net = network("abc")
    a, b, c = await net.start_all()
    await b.net.stop()
    for other in (a, c):  # a dials b, b dials c
        assert isinstance(await other.next(), PeerDown)
        assert not other.net.send("b", Chan.VOTE, b"lost")
    b = await net.start("b")
    for other in (a, c):
        assert await other.next() == PeerUp("b")
        assert other.net.send("b", Chan.SYNC, b"again")
        await b.until(Received(other.net.me, Chan.SYNC, b"again"))
        assert b.net.send(other.net.me, Chan.SYNC, b"welcome")
        assert await other.next() == Received("b", Chan.SYNC, b"welcome")


@pytest.mark.parametrize(("me", "child"), ["ab", "ba"])
async def test_a_killed_process_is_noticed_and_comes_back(network, me, child):
    net = network("ab")
    member = await net.start(me)
    process = await net.spawn(child)
    assert await member.next() == PeerUp(child)
    await member.echo(child)
    await process.kill()
    assert isinstance(await member.next(), PeerDown)
    await net.spawn(child)
    assert await member.next() == PeerUp(child)
    await member.echo(child)


@pytest.mark.parametrize(("me", "child"), ["ab", "ba"])
async def test_a_stopped_process_is_reported_silent_and_comes_back(network, me, child):
    net = network("ab")
    member = await net.start(me)
    process = await net.spawn(child)
    assert await member.next() == PeerUp(child)
    process.signal(signal.SIGSTOP)
    assert await member.next() == PeerDown(child, "silent")
    assert not member.net.send(child, Chan.VOTE, b"x")
    process.signal(signal.SIGCONT)
    assert await member.next() == PeerUp(child)
    await member.echo(child)


async def test_the_queue_to_a_stalled_peer_is_bounded_and_send_says_so(network):
    net = network("ab")
    a = await net.start("a")
    process = await net.spawn("b")
    assert await a.next() == PeerUp("b")
    process.signal(signal.SIGSTOP)
    accepted = tried = 0
    while tried < 200 and a.net.peers():
        accepted += a.net.send("b", Chan.SYNC, bytes(1 << 20))
        tried += 1
        await asyncio.sleep(0)
    assert tried == 200, "the link ended before the queue was tried"
    assert 8 <= accepted <= 64
    assert a.net.stats()["dropped_sync"] == tried - accepted
    assert a.net.send("b", Chan.VOTE, b"another channel has its own room")
    for _ in range(100_000):
        if not a.net.send("b", Chan.VOTE, b""):
            break
    else:
        pytest.fail("the number of empty frames is not bounded")


async def test_two_processes_with_one_key_replace_each_other_with_paired_events(network):
    net = network("ab")
    b = await net.start("b")
    await net.start("a")
    assert await b.next() == PeerUp("a")
    await net.start("a", listen_port=net.free_port())
    for _ in range(2):
        assert isinstance(await b.next(), PeerDown)
        assert await b.next() == PeerUp("a")


async def test_a_port_in_use_is_refused_by_name_and_its_owner_goes_on(network):
    net = network("ab")
    a, b = await net.start_all()
    with pytest.raises(Conflict, match=f"127.0.0.1:{net.book['a'].port} is in use"):
        await net.start("a")
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=str(port)):
            await net.start("a", listen_port=port)
    assert a.net.send("b", Chan.VOTE, b"still here")
    assert await b.next() == Received("a", Chan.VOTE, b"still here")


async def test_stop_ends_every_thread_frees_the_port_and_may_be_repeated(network):
    net = network("ab")
    before = {thread for thread in threading.enumerate() if not thread.daemon}
    a, b = await net.start_all()
    await a.net.stop()
    await a.net.stop()
    await b.net.stop()
    assert (
        not {t for t in threading.enumerate() if not t.daemon and not t.name.startswith("asyncio")} - before
    )
    for peer in net.book.values():
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(peer.host, peer.port)
    assert a.net.peers() == frozenset()
    assert not a.net.send("b", Chan.VOTE, b"x")
    assert a.events.empty(), "an event was reported after stop"


async def test_a_transport_starts_once(network):
    net = network("ab")
    a = await net.start("a")
    with pytest.raises(Conflict, match="started before"):
        await a.net.start(a.events.put_nowait)
    unused = net.make("b")
    await unused.net.stop()
    with pytest.raises(Conflict, match="started before"):
        await unused.net.start(unused.events.put_nowait)


def test_an_address_book_that_repeats_or_misspells_an_identity_is_refused(network):
    net = network("abc")
    a, b, c = net.book.values()
    for peers in ([b, b], [a, b], [b, type(b)("c", b.identity, c.host, c.port)]):
        with pytest.raises(Malformed, match="twice"):
            net.make("a", peers=peers)
    with pytest.raises(Malformed, match="'b'"):
        net.make("a", peers=[type(b)("b", "no peer id", b.host, b.port)])


def test_the_interface_can_be_imported_without_any_back_end():
    code = (
        "import sys, node.net; sys.exit(any(name in sys.modules for name in ('libp2p', 'trio', 'multiaddr')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
