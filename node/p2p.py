"""`Net` over py-libp2p 0.8.1: TCP, Noise, Yamux and direct streams between the members of one chain.

This is the only module that knows libp2p, trio or multiaddr. libp2p is a trio library and the daemon is asyncio, so the
transport lives in one thread of its own. Only bytes and small frozen objects cross: a frame into the lock-guarded outbox of
its stream, an event into one deque, with one wake-up per burst either way.

Of every pair the member with the smaller name dials; the other refuses to be dialled by anyone but such members, inside the
Noise handshake. A connection carries two streams, ctl (votes, pings) and bulk (the rest), so that a block of megabytes does
not queue in front of a vote; their protocol ids name the chain. A link is one connection with both streams open and ends as
a whole: whatever fails, the connection is closed and its dialler dials again. A newer connection of a peer replaces the older.

Frames are those of node/frames.py, never in pieces; a ping goes each way on ctl every second.

libp2p is used below its host: no identify, ping, discovery or pubsub runs, and of Swarm only listen, dial_addr and streams.
What of 0.8.1 must be worked around is marked `0.8.1:`; tests/node/test_node_p2p_patches.py fails when an upgrade changes it.
Sources: github.com/libp2p/specs (noise, yamux, connections); py-libp2p 0.8.1 as installed.
"""

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.exceptions import IOException
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from crypto.errors import Conflict, Malformed, Unavailable
from node.frames import FRAME_COST, PAUSE_S, PING, PING_S, SILENT_S, Queues, listen
from node.frames import HEADER as _HEADER
from node.net import MAX_BODY, Chan, Event, NodeId, Peer, PeerDown, PeerUp, Received, check_body

_log = logging.getLogger("diptych.p2p")

# The frames of each stream, most urgent first, with their largest body.
_STREAMS: dict[str, dict[int, int]] = {
    "ctl": {Chan.VOTE: MAX_BODY[Chan.VOTE], PING: 0},
    "bulk": {chan: MAX_BODY[chan] for chan in (Chan.PROPOSAL, Chan.SYNC, Chan.TX)},
}
_INBOX = 32 << 20  # bytes from one peer that wait for the asyncio loop; the excess is dropped and counted
_UNREAD = 64 << 20  # bytes in Yamux that no reader has taken; an honest peer stops at its 16 MiB windows
_BURST = 512  # events handed over before the asyncio loop may do other work

_SETUP_S = 5.0  # for a handshake, and for both streams of a fresh connection
_MAX_CONNECTIONS = 256  # strangers count while in the handshake; a member holds two at most

# 0.8.1: texts of exceptions carry payloads, and the library logs them; part of it does so on the root logger.
for _name in ["libp2p", "multiaddr", "trio", *logging.root.manager.loggerDict]:
    if _name.partition(".")[0] in ("libp2p", "multiaddr", "trio"):
        logging.getLogger(_name).setLevel(logging.CRITICAL if _name.startswith("libp2p") else logging.ERROR)
swarm_connection.logging = logging.getLogger("libp2p")


def identity_of(seed: bytes) -> str:
    """The libp2p peer id, in base58, of the Ed25519 key with this 32-byte seed."""
    return str(_peer_id(_key_pair(seed)))


def _key_pair(seed: bytes) -> Any:
    if len(seed) != 32:
        raise ValueError("a libp2p identity seed has 32 bytes")
    return create_new_key_pair(seed)


def _peer_id(key_pair: Any) -> Any:
    return ID.from_pubkey(key_pair.public_key)


def _multiaddr(host: str, port: int) -> Any:
    """The address of an IP literal."""
    return Multiaddr(f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{port}")


class _Limited:
    """A connection or stream of which no more than `left` bytes can be read until it is lifted.

    0.8.1: multistream-select reads as much as a length prefix asks for, before the peer is authenticated.
    """

    def __init__(self, inner: Any, left: int) -> None:
        self._inner = inner
        self._left: int | None = left

    def lift(self) -> None:
        self._left = None

    async def read(self, n: int | None = None) -> bytes:
        if self._left == 0:
            raise IOException("the handshake is too long")
        if self._left is not None:
            n = self._left if n is None else min(n, self._left)
        data: bytes = await self._inner.read(n)
        if self._left is not None:
            self._left -= len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class GatedNoise(NoiseTransport):  # type: ignore[misc]
    """Noise that admits an inbound peer only if it is one of `dialers`; anyone else is refused before the handshake ends.

    Outbound needs no gate: the library compares the peer's key with the identity that was dialled.
    """

    def __init__(self, key_pair: Any, dialers: frozenset[Any]) -> None:
        super().__init__(key_pair, noise_privkey=create_new_x25519_key_pair().private_key)
        self._dialers = dialers

    async def secure_inbound(self, conn: Any) -> Any:
        secure = await super().secure_inbound(conn)
        if secure.get_remote_peer() not in self._dialers:
            raise HandshakeFailure("not a member that dials this node")
        return secure


class _Upgrader(TransportUpgrader):  # type: ignore[misc]
    """Noise, then Yamux, nothing else on offer; bounds what a handshake reads and attaches the `_Link` to the result."""

    def __init__(self, noise: GatedNoise, new_link: Callable[[Any, Any], "_Link"]) -> None:
        super().__init__({NOISE: noise}, {YAMUX: Yamux}, negotiate_timeout=int(_SETUP_S))
        self._new_link = new_link

    async def upgrade_security(self, raw_conn: Any, is_initiator: bool, peer_id: Any = None) -> Any:
        limited = _Limited(raw_conn, 64 << 10)
        secure = await super().upgrade_security(limited, is_initiator, peer_id)
        secure.limited = limited
        return secure

    async def upgrade_connection(self, conn: Any, peer_id: Any) -> Any:
        muxed = await super().upgrade_connection(conn, peer_id)
        conn.limited.lift()
        muxed.link = self._new_link(muxed, conn.limited)
        return muxed


class _Swarm(Swarm):  # type: ignore[misc]
    """A swarm that hands each inbound connection to `serve` and frees its slot when that returns."""

    serve: Callable[["_Link"], Any]
    refused: Callable[[], None]

    async def _do_handle_inbound_connection(self, closer: Any, maddr: Any, failure_event: Any) -> None:
        # 0.8.1: the method of the library keeps the slot and its task until the swarm stops; after 250 connections
        # nobody can connect any more.
        try:
            muxed = await self.upgrade_inbound_raw_conn(RawConnection(closer, False), maddr)
        except Exception:
            self.refused()
        else:
            await self.serve(muxed.link)
        finally:
            with trio.CancelScope(shield=True):
                await closer.close()


class _Outbox:
    """Frames that wait for one stream: filled by `put` in the asyncio thread, emptied by `take` in the trio thread."""

    def __init__(self, channels: dict[int, int]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._queues = Queues(channels)
        self._lock = threading.Lock()
        self._waiting = False
        self._ready = trio.Event()

    def put(self, chan: int, body: bytes) -> bool:
        """Whether there was room."""
        with self._lock:
            if not self._queues.put(chan, body):
                return False
            wake, self._waiting = self._waiting, False
        if wake:
            with contextlib.suppress(trio.RunFinishedError):  # the link is going down with the run
                self._token.run_sync_soon(lambda: self._ready.set())
        return True

    async def take(self) -> bytes:
        """The next frames, joined. Waits while there is none."""
        while True:
            with self._lock:
                parts = self._queues.take()
                if not parts:
                    self._waiting, self._ready = True, trio.Event()
            if parts:
                return b"".join(parts)
            await self._ready.wait()


class _Link:
    """One connection to `peer`; all of it runs in the trio thread except `Net.send`, which fills the outboxes.

    `taken` is written by the trio thread and `handed` by the asyncio thread only; their difference is what waits in between.
    """

    def __init__(self, peer: NodeId, muxed: Any, raw: Any) -> None:
        self.peer, self.muxed, self.raw = peer, muxed, raw
        self.outboxes = {kind: _Outbox(channels) for kind, channels in _STREAMS.items()}
        self.streams: dict[str, Any] = {}
        self.offered = 0
        self.complete = trio.Event()
        self.scope = trio.CancelScope()
        self.was_up = False
        self.why = ""
        self.heard = 0.0
        self.taken = self.handed = 0

    def fail(self, why: str) -> None:
        """End the link; the first reason counts."""
        self.why = self.why or why
        self.scope.cancel()

    def add(self, kind: str, stream: Any) -> None:
        if kind in self.streams:
            raise ValueError("the stream is already open")
        self.streams[kind] = stream
        if len(self.streams) == len(_STREAMS):
            self.complete.set()

    async def write(self, kind: str) -> None:
        outbox, stream = self.outboxes[kind], self.streams[kind]
        with self._failing("lost, or the peer does not read"):
            while True:
                await stream.write(await outbox.take())

    async def read(self, kind: str, deliver: Callable[["_Link", int, bytes], None]) -> None:
        """Cut the stream into frames. Never waits for anything but the stream: Yamux resets one that is not read."""
        stream, limits, buffer = self.streams[kind], _STREAMS[kind], bytearray()
        with self._failing("closed by the peer"):
            while data := await stream.read(256 << 10):
                self.heard = trio.current_time()
                buffer += data
                at = 0
                while len(buffer) - at >= _HEADER.size:
                    chan, size = _HEADER.unpack_from(buffer, at)
                    if size > limits.get(chan, -1):
                        return self.fail("sent a frame that is too large or on the wrong stream")
                    if len(buffer) - at < _HEADER.size + size:
                        break
                    at += _HEADER.size + size
                    if chan != PING:
                        with memoryview(buffer) as view:
                            body = bytes(view[at - size : at])
                        deliver(self, chan, body)
                del buffer[:at]
            self.fail("closed by the peer")

    async def watch(self) -> None:
        """0.8.1: Yamux pings but never asks whether an answer came, and lets a peer exceed its window."""
        while True:
            await trio.sleep(PING_S)
            self.outboxes["ctl"].put(PING, b"")
            if self.was_up and trio.current_time() - self.heard > SILENT_S:
                self.fail("silent")
            if sum(map(len, self.muxed.stream_buffers.values())) > _UNREAD:
                self.fail("sent more than its windows allow")

    @contextlib.contextmanager
    def _failing(self, why: str) -> Any:
        try:
            yield
        except Exception:  # of many unrelated types; its text may carry payload and is dropped
            self.fail(why)


class P2PNet:
    """`Net` of the member `me`, reachable at `listen_host`:`listen_port`; `peers` are the others of the chain `chain_id`.

    `identity_seed` (32 bytes) is the Ed25519 key behind this node's own entry in the others' address books. Addresses are
    resolved anew for each dial. `Malformed`: an identity that is no peer id, or a name or identity that occurs twice.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        chain_id: str,
        identity_seed: bytes,
        listen_host: str,
        listen_port: int,
        peers: Sequence[Peer],
    ) -> None:
        self.me = me
        self._key_pair = _key_pair(identity_seed)
        self._listen = listen_host, listen_port
        self._book: dict[Any, Peer] = {}
        for peer in peers:
            try:
                self._book[ID.from_string(peer.identity)] = peer
            except Exception:
                raise Malformed(f"the identity of peer {peer.node!r} is not a libp2p peer id") from None
        if len({me, *(peer.node for peer in peers)}) <= len(peers) or len(self._book) < len(peers):
            raise Malformed("the address book names a member or an identity twice, or this node itself")
        chain = quote(chain_id, safe="")  # injective: two chains never share a protocol id
        self._protocols = {kind: f"/diptych/{chain}/{kind}/1" for kind in _STREAMS}
        self._stats: Counter[str] = Counter()

        # Touched by the asyncio thread only.
        self._links: dict[NodeId, _Link] = {}
        self._on_event: Callable[[Event], None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        # Touched by the trio thread only.
        self._fresh: dict[NodeId, _Link] = {}
        self._current: dict[NodeId, _Link] = {}
        self._swarm: _Swarm
        # Touched by both.
        self._events: deque[tuple[_Link, Event]] = deque()
        self._armed = False
        self._stopping = threading.Event()
        self._run: tuple[trio.lowlevel.TrioToken, trio.CancelScope] | None = None

    # -- the asyncio side

    def send(self, dst: NodeId, chan: Chan, body: bytes) -> bool:
        check_body(chan, body)
        link = self._links.get(dst)
        sent = link is not None and link.outboxes["ctl" if chan is Chan.VOTE else "bulk"].put(chan, body)
        self._stats[f"{'sent' if sent else 'dropped'}_{chan.name.lower()}"] += 1
        return sent

    def broadcast(self, chan: Chan, body: bytes) -> int:
        return sum(self.send(peer, chan, body) for peer in self._links)

    def peers(self) -> frozenset[NodeId]:
        return frozenset(self._links)

    def stats(self) -> dict[str, int]:
        """Counters since the start: `connects`, `refused` (inbound connections that became no link), and per channel,
        as in `sent_vote`, `sent`, `received`, `dropped` (refused by `send`), `overflow` (came faster than the loop took it).
        """
        names = ["connects", "refused"]
        names += [
            f"{what}_{chan.name.lower()}"
            for what in ("sent", "received", "dropped", "overflow")
            for chan in Chan
        ]
        return {name: self._stats[name] for name in names}

    async def start(self, on_event: Callable[[Event], None]) -> None:
        if self._thread is not None or self._stopping.is_set():
            raise Conflict("this transport was started before; make a new one")
        self._loop = asyncio.get_running_loop()
        address = await self._free_address()
        self._on_event = on_event
        listening: Future[None] = Future()
        for future in (listening, self._ended):
            future.set_running_or_notify_cancel()  # cancelling the coroutine that waits does not cancel these
        target, name = self._run_thread, f"p2p-{self.me}"
        self._thread = threading.Thread(target=target, args=(address, listening), name=name, daemon=True)
        self._thread.start()
        try:
            await asyncio.wrap_future(listening)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        self._on_event = None
        self._links.clear()
        self._stopping.set()
        if self._thread is None:
            return
        if self._run is not None:
            token, scope = self._run
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._ended), 5)
        except TimeoutError:
            _log.error("the libp2p thread did not end within 5 s; it ends with the process")
        else:
            self._thread.join()

    async def _free_address(self) -> tuple[str, int]:
        """The listening address as an IP literal.

        0.8.1: the library listens with SO_REUSEPORT, so a second daemon on the port would take half of the connections
        without an error. A socket without that option cannot be had while somebody listens.
        """
        with await listen(*self._listen) as probe:
            return str(probe.getsockname()[0]), self._listen[1]

    def _drain(self) -> None:
        self._armed = False
        try:
            for _ in range(min(len(self._events), _BURST)):
                self._handle(*self._events.popleft())
        finally:
            if self._events and not self._armed:
                self._armed = True
                self._loop.call_soon(self._drain)

    def _handle(self, link: _Link, event: Event) -> None:
        if self._on_event is None:
            return
        if isinstance(event, PeerUp):
            self._links[link.peer] = link
            self._stats["connects"] += 1
        elif isinstance(event, PeerDown):
            self._links.pop(link.peer, None)
        else:
            link.handed += len(event.body) + FRAME_COST
            if self._links.get(link.peer) is not link:
                return  # read in the moment in which the link ended
            self._stats[f"received_{event.chan.name.lower()}"] += 1
        self._on_event(event)

    # -- the trio side

    def _emit(self, link: _Link, event: Event) -> None:
        self._events.append((link, event))
        if not self._armed:
            self._armed = True
            with contextlib.suppress(RuntimeError):  # the loop was closed without stop()
                self._loop.call_soon_threadsafe(self._drain)

    def _run_thread(self, address: tuple[str, int], listening: "Future[None]") -> None:
        """Run the transport until `stop`; start it again should it die, so that no peer can silence a node for good."""
        while not self._stopping.is_set():
            try:
                trio.run(self._main, address, listening)
                cause = "nothing"
            except BaseException as error:
                cause = type(error).__name__
            for link in list(self._current.values()):
                self._deactivate(link, "the transport failed here")
            self._fresh.clear()
            if not listening.done():
                break
            if not self._stopping.is_set():
                _log.error("the libp2p transport ended with %s; starting it again", cause)
                self._stopping.wait(PAUSE_S[1])
        if not listening.done():
            listening.set_exception(Unavailable("cannot listen on {} port {}".format(*address)))
        self._ended.set_result(None)

    async def _main(self, address: tuple[str, int], listening: "Future[None]") -> None:
        with trio.CancelScope() as scope:
            self._run = trio.lowlevel.current_trio_token(), scope
            if self._stopping.is_set():
                return
            swarm = self._swarm = self._new_swarm()
            async with background_trio_service(swarm):
                if not await swarm.listen(_multiaddr(*address)):
                    return
                if not listening.done():
                    listening.set_result(None)
                async with trio.open_nursery() as nursery:
                    for identity, peer in self._book.items():
                        if self.me < peer.node:
                            nursery.start_soon(self._dial_forever, identity, peer)
                    await swarm.manager.wait_finished()
                    raise RuntimeError("the swarm ended by itself")

    def _new_swarm(self) -> _Swarm:
        dialers = frozenset(identity for identity, peer in self._book.items() if peer.node < self.me)
        upgrader = _Upgrader(GatedNoise(self._key_pair, dialers), self._new_link)
        store = PeerStore()
        store.add_key_pair(_peer_id(self._key_pair), self._key_pair)
        limits = ConnectionConfig(
            max_connections=_MAX_CONNECTIONS,
            min_connections=0,
            low_watermark=0,
            high_watermark=_MAX_CONNECTIONS,
            max_connections_per_peer=_MAX_CONNECTIONS,  # `_serve` keeps it at two
            inbound_upgrade_timeout=_SETUP_S,
            outbound_upgrade_timeout=_SETUP_S,
        )
        retry = RetryConfig(max_retries=0)
        swarm = _Swarm(_peer_id(self._key_pair), store, upgrader, [TCP()], retry, limits)
        swarm.serve = self._serve
        swarm.refused = lambda: self._stats.update(refused=1)
        swarm.set_stream_handler(self._on_stream)
        return swarm

    def _new_link(self, muxed: Any, raw: Any) -> _Link:
        return _Link(self._book[muxed.peer_id].node, muxed, raw)

    async def _dial_forever(self, identity: Any, peer: Peer) -> None:
        pause, longest = PAUSE_S
        while True:
            try:
                with trio.fail_after(2 * _SETUP_S):
                    link = await self._connect(identity, peer)
            except Exception:
                link = None
            if link is not None:
                began = trio.current_time()
                await self._serve(link)
                if trio.current_time() - began > longest:
                    pause = PAUSE_S[0]
            await trio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the dials, is no secret
            pause = min(2 * pause, longest)

    async def _connect(self, identity: Any, peer: Peer) -> _Link:
        """A connection with both streams open.

        `dial_addr` rather than the library's `dial_peer` or `connect`: 0.8.1: those bar a peer for 60 s after one failure.
        """
        error: Exception = OSError("no address")
        for found in await trio.socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM):
            address = _multiaddr(str(found[4][0]), peer.port)
            try:
                connection = await self._swarm.dial_addr(address, identity)
                break
            except Exception as failure:
                error = failure
        else:
            raise error
        link: _Link = connection.muxed_conn.link
        try:
            for kind, protocol in self._protocols.items():
                stream = await connection.new_stream()
                speaker = MultiselectCommunicator(_Limited(stream, 4 << 10))
                await MultiselectClient().select_one_of([protocol], speaker, int(_SETUP_S))
                link.add(kind, stream)
        except BaseException:
            with trio.CancelScope(shield=True):
                await link.raw.close()
            raise
        return link

    async def _on_stream(self, stream: Any) -> None:
        """Take a stream that a peer opened. Must not raise: 0.8.1 stops the whole swarm if it does."""
        link: _Link = stream.muxed_conn.link
        with link._failing("does not speak the protocol of this chain"):
            link.offered += 1
            if stream.muxed_conn.is_initiator or link.offered > len(_STREAMS):
                raise ValueError("one stream too many")
            selector = Multiselect({protocol: None for protocol in self._protocols.values()})
            speaker = MultiselectCommunicator(_Limited(stream, 4 << 10))
            protocol, _ = await selector.negotiate(speaker, int(_SETUP_S))
            link.add(next(kind for kind in _STREAMS if self._protocols[kind] == protocol), stream)

    async def _serve(self, link: _Link) -> None:
        """Run a link, dialled or accepted, to its end. A peer holds one link and one that is being set up, no more."""
        if older := self._fresh.get(link.peer):
            older.fail("replaced by a newer connection")
        self._fresh[link.peer] = link
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.watch)
                    with trio.move_on_after(_SETUP_S):
                        await link.complete.wait()
                    if not link.complete.is_set():
                        link.fail("did not open its streams")
                    if link.why:
                        return
                    self._activate(link)
                    for kind in _STREAMS:
                        nursery.start_soon(link.write, kind)
                        nursery.start_soon(link.read, kind, self._deliver)
        finally:
            # 0.8.1: closing the connection politely waits for locks that a stalled peer can hold; closing the socket does
            # not, and everything above it then falls by itself.
            with trio.CancelScope(shield=True):
                await link.raw.close()
            if self._fresh.get(link.peer) is link:
                del self._fresh[link.peer]
            if not link.was_up and not link.muxed.is_initiator:
                self._stats["refused"] += 1
            self._deactivate(link, link.why or "this node stops")

    def _activate(self, link: _Link) -> None:
        if older := self._current.get(link.peer):
            older.fail("replaced by a newer connection")
            self._deactivate(older, older.why)
        self._fresh.pop(link.peer)
        self._current[link.peer] = link
        link.was_up, link.heard = True, trio.current_time()
        self._emit(link, PeerUp(link.peer))

    def _deactivate(self, link: _Link, why: str) -> None:
        if self._current.get(link.peer) is link:
            del self._current[link.peer]
            self._emit(link, PeerDown(link.peer, why))

    def _deliver(self, link: _Link, chan: int, body: bytes) -> None:
        channel, cost = Chan(chan), len(body) + FRAME_COST
        if link.taken + cost - link.handed > _INBOX:
            self._stats[f"overflow_{channel.name.lower()}"] += 1
            return
        link.taken += cost
        self._emit(link, Received(link.peer, channel, body))
