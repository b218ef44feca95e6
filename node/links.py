"""What the back ends of `Net` over TCP share: who dials whom, the life of a link, its rhythm, its counters.

Of every pair the member with the smaller name dials. A link is one connection; a newer connection of a peer replaces the
older. A ping goes each way every second. How a connection becomes a link, and how frames become its bytes, is the back end's.
"""

import asyncio
import contextlib
import errno
import random
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from configs.sockets import listening_socket
from crypto.errors import Conflict, Malformed, Unavailable
from node.frames import PING, BrokenRules, Queues
from node.net import Chan, Event, NodeId, Peer, PeerDown, PeerUp, Received, check_body

_PING_S, _SILENT_S = 1.0, 3.5
_PAUSE_S = (0.2, 2.0)  # between two dials of a peer: first and longest
_SETUP_S = 5.0  # for what comes before a connection is a link
_MAX_SETUPS = 256  # that strangers may hold open; one more ends the oldest
_UNSENT = (
    128 << 10
)  # bytes that may wait below the queues, where no vote overtakes them: in the transport, in the kernel


class Link(asyncio.Protocol, ABC):
    """One connection; the link to `peer` from `was_up` to its end. Frames of a channel wait in its `queues`."""

    def __init__(self, net: "LinkNet", queues: Mapping[int, Queues]) -> None:
        self._net, self._queues = net, queues
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._flush_is_due = self._is_paused = self._has_ended = False
        self.peer: NodeId = ""
        self.was_up = False
        self.closed = asyncio.Event()

    @abstractmethod
    async def set_up(self) -> None:
        """Make a link of a connection that is open; raises whatever the peer causes."""

    @abstractmethod
    def _next(self) -> bytes:
        """What to write next; empty: nothing, or nothing that the peer would take."""

    @abstractmethod
    def _received(self, data: bytes) -> None:
        """What the peer has written; `BrokenRules` ends the link."""

    def put(self, chan: int, body: bytes) -> bool:
        """Whether there was room."""
        if not self._queues[chan].put(chan, body):
            return False
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        return True

    def end(self, why: str) -> None:
        """Close the connection, if there is one, at once; the first reason counts."""
        if self._transport is None or self._has_ended:
            return
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        self._net._on_end(self, why)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_UNSENT)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # else the kernel queues megabytes towards a slow peer
            raw: socket.socket = transport.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._received(data)
        except BrokenRules as error:
            self.end(str(error))

    def eof_received(self) -> None:
        self.end("closed by the peer")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end("closed by the peer")
        self.closed.set()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    def _up(self) -> None:
        self.was_up = True
        self._net._on_up(self)

    def _deliver(self, frames: Iterable[tuple[Chan, bytes]]) -> None:
        for chan, body in frames:
            if self._has_ended:
                return
            self._net._on_frame(self, chan, body)

    def _flush(self) -> None:
        self._flush_is_due = False
        while not (self._is_paused or self._has_ended) and (data := self._next()):
            cast(asyncio.Transport, self._transport).write(data)

    def _beat(self) -> None:
        """Begin, and go on, to ping the peer and to hang up on one that is silent."""
        if self._timer is None:
            self._heard = self._loop.time()
        if self._loop.time() - self._heard > _SILENT_S:
            return self.end("silent")
        self.put(PING, b"")
        self._timer = self._loop.call_later(_PING_S, self._beat)


class LinkNet(ABC):
    """`Net` of the member `me`, reachable at `listen_host`:`listen_port`; `peers` are the others of its chain.

    A back end also takes the `chain_id` and the `identity_seed` (32 bytes), the Ed25519 key behind this node's own entry in
    the others' address books. Addresses are resolved anew for each dial. `Malformed`: an identity that is not the peer id of an Ed25519 key, or a name or identity
    that occurs twice.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        listen_host: str,
        listen_port: int,
        peers: Sequence[Peer],
    ) -> None:
        self.me = me
        self._listen = listen_host, listen_port
        self.book: dict[Any, Peer] = {}
        for peer in peers:
            try:
                self.book[self._identity(peer.identity)] = peer
            except ValueError:
                raise Malformed(
                    f"the identity of peer {peer.node!r} is not the libp2p peer id of an Ed25519 key"
                ) from None
        if len({me, *(peer.node for peer in peers)}) <= len(peers) or len(self.book) < len(peers):
            raise Malformed("the address book names a member or an identity twice, or this node itself")
        self._inbound = {identity: peer for identity, peer in self.book.items() if peer.node < me}
        self._outbound = {identity: peer for identity, peer in self.book.items() if peer.node > me}
        self._stats: Counter[str | tuple[str, Chan]] = Counter()
        self._links: dict[NodeId, Link] = {}
        self._on_event: Callable[[Event], None] | None = None
        self._was_used = False
        self._tasks: list[asyncio.Task[None]] = []
        self._setups: dict[asyncio.Task[None], None] = {}  # inbound, oldest first

    @abstractmethod
    def _identity(self, text: str) -> Any:
        """What the back end knows a peer by, hashable; `ValueError` if it is not the peer id of an Ed25519 key."""

    @abstractmethod
    def _new_link(self, identity: Any | None) -> tuple[Link, dict[str, Any]]:
        """A link to the owner of `identity`, or from one of `_inbound`, and the options for asyncio to connect it with."""

    def send(self, dst: NodeId, chan: Chan, body: bytes) -> bool:
        check_body(chan, body)
        link = self._links.get(dst)
        sent = link is not None and link.put(chan, body)
        self._stats["sent" if sent else "dropped", chan] += 1
        return sent

    def broadcast(self, chan: Chan, body: bytes) -> int:
        return sum(self.send(peer, chan, body) for peer in self._links)

    def peers(self) -> frozenset[NodeId]:
        return frozenset(self._links)

    def stats(self) -> dict[str, int]:
        """Counters since the start: `connects`, `refused` (inbound connections that became no link), and per channel,
        as in `sent_vote`, `sent`, `received`, `dropped` (refused by `send`).
        """
        frames = {
            f"{what}_{chan.name.lower()}": self._stats[what, chan]
            for what in ("sent", "received", "dropped")
            for chan in Chan
        }
        return {"connects": self._stats["connects"], "refused": self._stats["refused"], **frames}

    async def start(self, on_event: Callable[[Event], None]) -> None:
        used = "this transport was started before; make a new one"
        if self._was_used:
            raise Conflict(used)
        listener = await _listen(*self._listen)
        if self._was_used:  # stopped while the name was resolved
            listener.close()
            raise Conflict(used)
        self._was_used, self._on_event = True, on_event
        dials = (self._dial_forever(identity, peer) for identity, peer in self._outbound.items())
        self._tasks = [asyncio.create_task(run) for run in (self._accept(listener), *dials)]

    async def stop(self) -> None:
        self._was_used, self._on_event = True, None
        tasks, links = [*self._tasks, *self._setups], list(self._links.values())
        for task in tasks:
            task.cancel()
        for link in links:
            link.end("this node stops")
        await asyncio.gather(*tasks, *(link.closed.wait() for link in links), return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        with listener:
            while True:
                try:
                    raw, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # out of descriptors, or reset while it was queued
                    await asyncio.sleep(_PAUSE_S[0])
                    continue
                if len(self._setups) >= _MAX_SETUPS:
                    oldest = next(iter(self._setups))
                    del self._setups[oldest]
                    oldest.cancel()
                task = asyncio.create_task(self._admit(raw))
                self._setups[task] = None
                task.add_done_callback(lambda done: self._setups.pop(done, None))
                await asyncio.sleep(0)  # sock_accept does not yield while connections are queued

    async def _admit(self, raw: socket.socket) -> None:
        link, options = self._new_link(None)
        try:
            with contextlib.suppress(Exception):  # whatever a stranger causes; it is counted
                async with asyncio.timeout(_SETUP_S):
                    await asyncio.get_running_loop().connect_accepted_socket(lambda: link, raw, **options)
                    await link.set_up()
        finally:
            if not link.was_up:
                self._stats["refused"] += 1
                link.end("not a member of this chain")

    async def _dial_forever(self, identity: Any, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        pause, longest = _PAUSE_S
        while True:
            began = loop.time()
            link, options = self._new_link(identity)
            try:
                with contextlib.suppress(
                    Exception
                ):  # nobody there, or not the peer: that has many exceptions
                    async with asyncio.timeout(2 * _SETUP_S):
                        await loop.create_connection(
                            lambda link=link: link,  # type: ignore[misc]
                            peer.host,
                            peer.port,
                            happy_eyeballs_delay=0.25,
                            **options,
                        )
                        await link.set_up()
                    await link.closed.wait()
            finally:
                link.end("this node stops")
            if loop.time() - began > longest:
                pause = _PAUSE_S[0]
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the dials, is no secret
            pause = min(2 * pause, longest)

    # -- called by links

    def _on_up(self, link: Link) -> None:
        if older := self._links.get(link.peer):
            older.end("replaced by a newer connection")
        self._links[link.peer] = link
        self._stats["connects"] += 1
        self._report(PeerUp(link.peer))

    def _on_end(self, link: Link, why: str) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._report(PeerDown(link.peer, why))

    def _on_frame(self, link: Link, chan: Chan, body: bytes) -> None:
        self._stats["received", chan] += 1
        self._report(Received(link.peer, chan, body))

    def _report(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


async def _listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens at the first address of `host`. `Conflict`: the port is in use; `Unavailable`: cannot listen."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return listening_socket(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"{host}:{port} is in use by another process; stop it or choose another") from None
        raise Unavailable(f"cannot listen on {host}:{port} ({error.strerror}); check the address") from None
