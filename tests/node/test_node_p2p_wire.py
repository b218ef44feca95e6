"""What node/p2p.py says on the wire is libp2p, and who may not speak to it or breaks the rules is cut off.

At the other end stands py-libp2p as it comes, with its own swarm and Yamux, in a trio run of its own.
"""

import asyncio
import logging
import os
import socket
from importlib.metadata import version

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libp2p.network.config import RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from node import links, p2p
from node.frames import HEADER, PING, BrokenRules, Cutter
from node.net import MAX_BODY, Chan, PeerDown, PeerUp, Received

pytestmark = pytest.mark.parametrize("network", ["node.p2p:P2PNet"], indirect=True, ids=["libp2p"])
PROTOCOLS = {kind: f"/diptych/storage%2F1/{kind}/1" for kind in ("ctl", "bulk")}


def swarm_of(seed):
    """The library's own stack, with the key of a member."""
    pair = p2p.create_new_key_pair(seed)
    me, store = ID.from_pubkey(pair.public_key), PeerStore()
    store.add_key_pair(me, pair)
    noise = NoiseTransport(pair, noise_privkey=p2p.create_new_x25519_key_pair().private_key)
    upgrader = TransportUpgrader({p2p.NOISE: noise}, {p2p.YAMUX: Yamux})
    return Swarm(me, store, upgrader, [TCP()], RetryConfig(max_retries=0))


def address_of(net, name):
    return Multiaddr(f"/ip4/{net.book[name].host}/tcp/{net.book[name].port}")


async def as_stock(net, seed, script):
    """Run `script(dial)` over the library; `dial()` connects to b and returns the connection."""

    async def run():
        swarm = swarm_of(seed)
        async with background_trio_service(swarm) as manager:

            async def dial():
                return await swarm.dial_addr(address_of(net, "b"), ID.from_string(net.book["b"].identity))

            with trio.fail_after(20):
                await script(dial)
            manager.cancel()

    await asyncio.to_thread(trio.run, run)


async def open_streams(connection):
    streams = {}
    for kind, protocol in PROTOCOLS.items():
        streams[kind] = await connection.new_stream()
        speaker = MultiselectCommunicator(streams[kind])
        assert await MultiselectClient().select_one_of([protocol], speaker, 5) == protocol
    return streams


async def frame_of(stream, chan):
    """The next frame that is no ping."""
    while True:
        head = await exactly(stream, HEADER.size)
        kind, size = HEADER.unpack(head)
        body = await exactly(stream, size)
        if kind != PING:
            assert kind == chan
            return body


async def exactly(stream, size):
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data


def raw_of(connection):
    return connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer


async def until_closed(connection):
    await connection.muxed_conn.event_closed.wait()


def multistream(*words):
    return b"".join(bytes([len(word) + 1]) + word + b"\n" for word in (b"/multistream/1.0.0", *words))


BODIES = [(Chan.VOTE, b"vote"), (Chan.TX, b""), (Chan.SYNC, os.urandom(3 << 20)), (Chan.PROPOSAL, b"end")]


def stream_of(chan):
    return "ctl" if chan is Chan.VOTE else "bulk"


def test_the_version_is_the_one_whose_faults_are_known(network):
    assert version("libp2p") == "0.8.1"


async def test_a_member_that_runs_the_library_alone_dials_and_exchanges_frames_of_every_size(network):
    net = network("ab")
    b = await net.start("b")

    async def script(dial):
        connection = await dial()
        streams = await open_streams(connection)
        for chan, body in BODIES:
            stream = streams[stream_of(chan)]
            await stream.write(HEADER.pack(chan, len(body)) + body)
            assert await frame_of(stream, chan) == body
        await connection.close()

    talk = asyncio.create_task(as_stock(net, net.seeds["a"], script))
    assert await b.next() == PeerUp("a")
    for chan, body in BODIES:
        assert await b.next() == Received("a", chan, body)
        assert b.net.send("a", chan, body)
    await talk
    assert await b.next() == PeerDown("a", "closed by the peer")


async def test_a_member_that_runs_the_library_alone_is_dialled_and_exchanges_frames_of_every_size(network):
    net = network("ab")
    a = await net.start("a")
    done = trio.Event()

    async def on_stream(stream):
        selector, speaker = Multiselect(dict.fromkeys(PROTOCOLS.values())), MultiselectCommunicator(stream)
        protocol, _ = await selector.negotiate(speaker, 5)
        for chan, _ in BODIES:
            if PROTOCOLS[stream_of(chan)] == protocol:
                body = await frame_of(stream, chan)
                await stream.write(HEADER.pack(chan, len(body)) + body)
        if protocol == PROTOCOLS["bulk"]:
            await exactly(stream, 1)  # the end of the test
            done.set()

    async def run():
        swarm = swarm_of(net.seeds["b"])
        swarm.set_stream_handler(on_stream)
        async with background_trio_service(swarm) as manager:
            assert await swarm.listen(address_of(net, "b"))
            with trio.fail_after(20):
                await done.wait()
            await swarm.close()
            manager.cancel()

    talk = asyncio.create_task(asyncio.to_thread(trio.run, run))
    assert await a.next() == PeerUp("b")
    for chan, body in BODIES:
        assert a.net.send("b", chan, body)
        assert await a.next() == Received("b", chan, body)
    assert a.net.send("b", Chan.TX, b"that is all")
    await talk
    assert await a.next() == PeerDown("b", "closed by the peer")


async def test_a_stream_that_is_not_read_gets_no_more_than_its_window_and_votes_pass_it(network, monkeypatch):
    async def grant_nothing(stream, bytes_read):
        pass

    monkeypatch.setattr(YamuxStream, "_auto_tune_and_send_window_update", grant_nothing)
    net = network("ab")
    b = await net.start("b")

    async def script(dial):
        connection = await dial()
        streams = await open_streams(connection)
        assert await frame_of(streams["ctl"], Chan.VOTE) == b"first"
        assert await frame_of(streams["ctl"], Chan.VOTE) == b"second"
        unread = connection.muxed_conn.stream_buffers[streams["bulk"].muxed_stream.stream_id]
        assert 0 < len(unread) <= p2p._FIRST_WINDOW

    talk = asyncio.create_task(as_stock(net, net.seeds["a"], script))
    assert await b.next() == PeerUp("a")
    assert b.net.send("a", Chan.VOTE, b"first")
    for _ in range(3):
        assert b.net.send("a", Chan.PROPOSAL, bytes(MAX_BODY[Chan.PROPOSAL]))
    asyncio.get_running_loop().call_later(0.3, b.net.send, "a", Chan.VOTE, b"second")
    await talk


@pytest.mark.parametrize("offer", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0"])
async def test_nothing_but_noise_is_accepted(network, offer):
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


@pytest.mark.parametrize("who", ["a stranger", "a member that must not dial"])
async def test_who_may_not_dial_is_refused_in_the_handshake(network, who):
    net = network("abc")
    b = await net.start("b")

    async def script(dial):
        with pytest.raises(Exception, match=r"upgrade|Failed"):
            await dial()

    await as_stock(net, os.urandom(32) if who == "a stranger" else net.seeds["c"], script)
    await net.until(lambda: b.net.stats()["refused"] == 1)
    assert b.events.empty()


@pytest.mark.parametrize(
    "speech", [b"\xff\xff\xff\xff\x0f", b"\x07/noise\n\xff\xff"], ids=["multistream", "noise"]
)
async def test_a_stranger_cannot_make_the_handshake_read_what_it_announces(network, monkeypatch, speech):
    taken = []
    feed = p2p._Pipe.feed

    def counting(pipe, data):
        feed(pipe, data)
        taken.append(len(data))

    monkeypatch.setattr(p2p._Pipe, "feed", counting)
    net = network("ab")
    b = await net.start("b")

    def flood():
        with socket.create_connection((net.book["b"].host, net.book["b"].port), timeout=10) as raw:
            raw.sendall(multistream() + speech)  # much follows
            for _ in range(4096):
                raw.sendall(bytes(1 << 20))

    with pytest.raises(ConnectionError):
        await asyncio.to_thread(flood)
    await net.until(lambda: b.net.stats()["refused"] == 1)
    assert sum(taken) <= p2p._TALK


async def test_closed_connections_leave_nothing_behind(network, monkeypatch):
    monkeypatch.setattr(links, "_MAX_SETUPS", 2)
    net = network("ab")
    b = await net.start("b")

    async def script(dial):
        for _ in range(8):
            await raw_of(await dial()).close()

    await as_stock(net, net.seeds["a"], script)
    await net.until(lambda: b.net.stats()["refused"] == 8 and not b.net._setups)
    await net.start("a")
    assert await b.next() == PeerUp("a")


async def test_a_connection_whose_streams_are_not_opened_is_closed(network, monkeypatch):
    monkeypatch.setattr(links, "_SETUP_S", 0.5)
    net = network("ab")
    b = await net.start("b")

    async def script(dial):
        await until_closed(await dial())

    await as_stock(net, net.seeds["a"], script)
    assert b.events.empty()


@pytest.mark.parametrize(
    "speech",
    [
        b"\x02\xff\n",
        b"\xff" * 12,
        multistream(b"/diptych/other/ctl/1"),
        multistream(b"ls") * 99,
        bytes(2 << 20),
    ],
)
async def test_garbage_on_a_stream_ends_that_connection_and_nothing_else(network, speech):
    net = network("ab")
    b = await net.start("b")

    async def script(dial):
        connection = await dial()
        stream = await connection.muxed_conn.open_stream()
        try:
            await stream.write(speech)
            await stream.close()
        except Exception:
            assert len(speech) > p2p._FIRST_WINDOW  # cut off while it spoke
        await until_closed(connection)

    await as_stock(net, net.seeds["a"], script)
    await net.until(lambda: b.net.stats()["refused"] == 1)
    await net.start("a")
    assert await b.next() == PeerUp("a")


async def misbehave(net, b, deed):
    """Be linked as a, do the deed and be cut off; the reason that b gives."""

    async def script(dial):
        connection = await dial()
        await deed(connection, await open_streams(connection))
        await until_closed(connection)

    talk = asyncio.create_task(as_stock(net, net.seeds["a"], script))
    assert await b.next() == PeerUp("a")
    why = await b.until_down("a")
    await talk
    await net.start("a")
    assert await b.next() == PeerUp("a")
    return why


async def test_a_third_stream_ends_the_link(network):
    net = network("ab")

    async def third(connection, streams):
        await connection.muxed_conn.open_stream()

    assert await misbehave(net, await net.start("b"), third) == "does not speak the protocol of this chain"


@pytest.mark.parametrize("kind", PROTOCOLS)
async def test_a_stream_that_is_reset_takes_the_link_down(network, kind):
    net = network("ab")

    async def reset(connection, streams):
        await streams[kind].reset()

    assert await misbehave(net, await net.start("b"), reset) == "closed by the peer"


@pytest.mark.parametrize(
    ("kind", "chan", "size"),
    [
        ("ctl", Chan.VOTE, MAX_BODY[Chan.VOTE] + 1),
        ("bulk", Chan.PROPOSAL, MAX_BODY[Chan.PROPOSAL] + 1),
        ("bulk", Chan.TX, 2**32 - 1),
        ("bulk", Chan.VOTE, 1),
        ("ctl", Chan.TX, 1),
        ("ctl", PING, 1),
        ("ctl", 7, 0),
    ],
)
async def test_an_oversize_or_misplaced_frame_ends_the_link_before_its_body(network, kind, chan, size):
    net = network("ab")

    async def send(connection, streams):
        await streams[kind].write(HEADER.pack(chan, size))

    why = await misbehave(net, await net.start("b"), send)
    assert why == "sent a frame that is too large or malformed"


async def test_a_changed_byte_under_noise_ends_the_link(network):
    net = network("ab")

    async def spoil(connection, streams):
        await raw_of(connection).write(b"\x00\x20" + os.urandom(32))

    assert await misbehave(net, await net.start("b"), spoil) == "sent what does not decrypt"


frames = st.tuples(
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 4),
    st.integers(0, 15),
    st.integers(0, 6),
    st.integers(0, 80),
).map(lambda fields: p2p._FRAME.pack(*fields))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(frames | st.binary(max_size=60), max_size=20))
def test_whatever_a_member_multiplexes_is_taken_or_ends_the_link(network, pieces):
    async def run():
        link = p2p._Link(network("ab").make("b").net, None)
        link._noise = Unsealed()
        for piece in pieces:
            try:
                link._demultiplex(piece)
            except BrokenRules:
                return
            assert len(link._numbers) <= 2
            assert len(link._muxed) < p2p._FRAME.size

    asyncio.run(run())


@given(
    sent=st.lists(st.tuples(st.sampled_from(list(Chan)), st.binary(max_size=200)), max_size=20),
    size=st.integers(1, 90),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_come_out_whole_however_the_multiplexed_bytes_are_cut(network, sent, size):
    async def run():
        sender, receiver = (p2p._Link(network("ab").make(name).net, None) for name in "ab")
        seen = []
        for link in (sender, receiver):
            link._noise = Unsealed()
            link._streams = {kind: link._stream(number, 0) for number, kind in enumerate(PROTOCOLS)}
            for kind, stream in link._streams.items():
                cutter = Cutter(p2p._STREAMS[kind])
                stream.pipe.open(lambda data, cutter=cutter: seen.extend(cutter.cut(data)))
        for chan, body in sent:
            assert sender.put(chan, body)
        data = b""
        while message := sender._next():
            data += message[p2p._LENGTH.size :]
        for at in range(0, len(data), size):
            receiver._demultiplex(data[at : at + size])
        for chan in Chan:
            assert [body for c, body in seen if c is chan] == [body for c, body in sent if c is chan]

    asyncio.run(run())


class Unsealed:
    """In the place of a cipher, as the link has no connection."""

    encrypt = decrypt = bytes


async def test_nothing_of_frames_or_keys_is_logged(network, caplog):
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    net = network("ab")
    a, b = await net.start_all()
    a.net.broadcast(Chan.TX, b"SECRET" * 1000)
    await b.received(1)
    await a.net.stop()
    await b.until_down("a")
    text = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert "SECRET" not in text
    assert not [record for record in caplog.records if "libp2p" in record.pathname]
