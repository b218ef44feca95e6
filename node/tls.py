"""`Net` over asyncio and mutual TLS 1.3 with pinned keys: no libp2p, no second thread, no certificate authority.

A member is known by the Ed25519 key that its libp2p peer id spells out (an identity multihash), so the address book is all
that members need of each other. TLS wants a certificate around a key, and Python's ssl offers neither raw public keys
(RFC 7250) nor a verification callback; so the certificate has one fixed form with the key filled in, which everyone computes
from the peer id. Its signature field is empty and nobody relies on it. What a link rests on:

- a node trusts these certificates only, by the whole of their bytes: as server, of the members that dial it; as dialler, of
  the one it dials. OpenSSL refuses all others inside the handshake, and `_Link` compares once more;
- in TLS 1.3 the owner of a certificate signs the handshake with its key, so nobody gets far with the certificate of another;
- the two agree by ALPN on the chain. Older TLS, plaintext and resumed sessions are refused.

Of every pair the member with the smaller name dials. A link is one connection. The dialler counts it as up at the first
byte that it reads, because TLS 1.3 judges the dialler last. A newer connection of a peer replaces the older. Frames are
those of node/frames.py, in pieces, so that a vote does not queue behind megabytes. A ping goes each way every second.
Sources: RFC 8446 section 4.4.3, RFC 7301, RFC 5280 section 6.1.1 (trust anchors), github.com/libp2p/specs (peer-ids).
"""

import asyncio
import contextlib
import functools
import hashlib
import os
import random
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from crypto.errors import Conflict, Malformed
from node.frames import HEADER, PAUSE_S, PING, PING_S, SILENT_S, Queues, listen
from node.net import MAX_BODY, Chan, Event, NodeId, Peer, PeerDown, PeerUp, Received, check_body

# Most urgent first. A ping among megabytes may wait: whatever a peer sends shows that it lives.
_LIMITS = {**{int(chan): size for chan, size in MAX_BODY.items()}, PING: 0}
_PIECE = 64 << 10  # part of what the two sides agree on
_UNSENT = (
    128 << 10
)  # bytes that may wait below the queues, where no vote overtakes them: in the transport, in the kernel
_SETUP_S = 5.0  # for a handshake
_MAX_HANDSHAKES = 256  # that strangers may hold open; one more ends the oldest

_Book: TypeAlias = Mapping[bytes, NodeId]  # who may be at the other end, by certificate

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID = bytes.fromhex(
    "0024 08011220"
)  # identity multihash of 36 bytes: protobuf of an Ed25519 key, of which 32 follow
# X.509 v3, serial 1, Ed25519, from "nobody", valid 2000 to 9999, for "diptych"; the key; not a CA, signature of zeros.
_BEFORE_KEY = bytes.fromhex(
    "3081e3 308196 a003020102 020101 300506032b6570 3011310f300d06035504030c066e6f626f6479"
    "3020 170d3030303130313030303030305a 180f39393939313233313233353935395a"
    "30123110300e06035504030c0764697074796368 302a300506032b6570032100"
)
_AFTER_KEY = bytes.fromhex("a310300e300c0603551d130101ff04023000 300506032b6570 034100") + bytes(64)


def identity_of(seed: bytes) -> str:
    """The libp2p peer id, in base58, of the Ed25519 key with this 32-byte seed."""
    return _peer_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


def _peer_id(public: bytes) -> str:
    number, digits = int.from_bytes(_PEER_ID + public), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" + digits  # the leading zero byte


def _public_key(identity: str) -> bytes:
    """The key in a peer id; `ValueError` unless that is the one spelling of an Ed25519 key."""
    number = 0
    for character in identity[:64]:
        number = number * 58 + _BASE58.index(character)
    public = (number % (1 << 256)).to_bytes(32)
    if _peer_id(public) != identity:
        raise ValueError("not the peer id of an Ed25519 key")
    return public


def _certificate(public: bytes) -> bytes:
    return _BEFORE_KEY + public + _AFTER_KEY


def _context(side: int, net: "TlsNet", certificates: Iterable[bytes]) -> ssl.SSLContext:
    """TLS 1.3 between this node and the owners of exactly these certificates."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the key is the name
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a trusted certificate needs no issuer
    context.set_alpn_protocols([net.protocol])
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    for certificate in certificates:
        context.load_verify_locations(cadata=certificate)
    own = ssl.DER_cert_to_PEM_cert(_certificate(net.key.public_key().public_bytes_raw())).encode()
    secret = net.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _as_path(own) as certfile, _as_path(secret) as keyfile:
        context.load_cert_chain(certfile, keyfile)
    return context


@contextlib.contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """A path to read it from once, for what Python takes from files only; it is a pipe and never touches a disk."""
    reader, writer = os.pipe()
    try:
        with open(writer, "wb") as pipe:
            pipe.write(content)
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)


class _Link(asyncio.Protocol):
    """One connection to the owner of a certificate in `book`; the link to `peer` from `was_up` to its end."""

    def __init__(self, net: "TlsNet", book: _Book, is_dialled: bool) -> None:
        self._net, self._book, self._is_dialled = net, book, is_dialled
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._queues = Queues(_LIMITS, _PIECE)
        self._flush_is_due = self._is_paused = self._has_ended = False
        self._buffer = bytearray()
        self._begun: dict[
            int, tuple[int, list[bytes]]
        ] = {}  # per channel: bytes missing of a body, and its pieces
        self.peer: NodeId = ""
        self.was_up = False
        self.closed = asyncio.Event()

    def put(self, chan: int, body: bytes) -> bool:
        """Whether there was room."""
        if not self._queues.put(chan, body):
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
        """The handshake succeeded here."""
        self._transport = cast(asyncio.Transport, transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        peer = self._book.get(tls.getpeercert(binary_form=True) or b"")
        if peer is None or tls.selected_alpn_protocol() != self._net.protocol:
            return self.end("not a member of this chain")
        self.peer = peer
        self._transport.set_write_buffer_limits(_UNSENT)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # else the kernel queues megabytes towards a slow peer
            raw: socket.socket = transport.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        self._heard = self._loop.time()
        self._tick()
        if not self._is_dialled:
            self._net._on_up(self)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into pieces and join these to frames."""
        self._heard = self._loop.time()
        if not self.was_up:
            self._net._on_up(self)
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= HEADER.size and not self._has_ended:
            chan, left = HEADER.unpack_from(buffer, at)
            missing, pieces = self._begun.get(chan, (left, []))
            if left != missing or left > _LIMITS.get(chan, -1):
                return self.end("sent a frame that is too large or malformed")
            size = min(left, _PIECE)
            if len(buffer) - at < HEADER.size + size:
                break
            at += HEADER.size + size
            with memoryview(buffer) as view:
                pieces.append(bytes(view[at - size : at]))
            if left > size:
                self._begun[chan] = left - size, pieces
                continue
            self._begun.pop(chan, None)
            if chan != PING:
                self._net._on_frame(self, Chan(chan), b"".join(pieces))
        del buffer[:at]

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

    def _flush(self) -> None:
        self._flush_is_due = False
        while not (self._is_paused or self._has_ended) and (parts := self._queues.take()):
            cast(asyncio.Transport, self._transport).write(b"".join(parts))

    def _tick(self) -> None:
        if self._loop.time() - self._heard > SILENT_S:
            return self.end("silent")
        self.put(PING, b"")
        self._timer = self._loop.call_later(PING_S, self._tick)


class TlsNet:
    """`Net` of the member `me`, reachable at `listen_host`:`listen_port`; `peers` are the others of the chain `chain_id`.

    `identity_seed` (32 bytes) is the Ed25519 key behind this node's own entry in the others' address books. Addresses are
    resolved anew for each dial. `Malformed`: an identity that is not the peer id of an Ed25519 key, or a name or identity
    that occurs twice.
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
        self.key = Ed25519PrivateKey.from_private_bytes(identity_seed)
        self.protocol = f"diptych/1/{hashlib.sha256(chain_id.encode()).hexdigest()}"
        self._listen = listen_host, listen_port
        self._book: dict[bytes, Peer] = {}
        for peer in peers:
            try:
                self._book[_certificate(_public_key(peer.identity))] = peer
            except ValueError:
                raise Malformed(
                    f"the identity of peer {peer.node!r} is not the libp2p peer id of an Ed25519 key"
                ) from None
        if len({me, *(peer.node for peer in peers)}) <= len(peers) or len(self._book) < len(peers):
            raise Malformed("the address book names a member or an identity twice, or this node itself")
        self._stats: Counter[str] = Counter()
        self._links: dict[NodeId, _Link] = {}
        self._on_event: Callable[[Event], None] | None = None
        self._was_used = False
        self._tasks: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}  # inbound, oldest first

    def send(self, dst: NodeId, chan: Chan, body: bytes) -> bool:
        check_body(chan, body)
        link = self._links.get(dst)
        sent = link is not None and link.put(chan, body)
        self._stats[f"{'sent' if sent else 'dropped'}_{chan.name.lower()}"] += 1
        return sent

    def broadcast(self, chan: Chan, body: bytes) -> int:
        return sum(self.send(peer, chan, body) for peer in self._links)

    def peers(self) -> frozenset[NodeId]:
        return frozenset(self._links)

    def stats(self) -> dict[str, int]:
        """Counters since the start: `connects`, `refused` (inbound connections that became no link), and per channel,
        as in `sent_vote`, `sent`, `received`, `dropped` (refused by `send`).
        """
        names = [f"{what}_{chan.name.lower()}" for what in ("sent", "received", "dropped") for chan in Chan]
        return {name: self._stats[name] for name in ("connects", "refused", *names)}

    async def start(self, on_event: Callable[[Event], None]) -> None:
        used = "this transport was started before; make a new one"
        if self._was_used:
            raise Conflict(used)
        inbound = {cert: peer.node for cert, peer in self._book.items() if peer.node < self.me}
        outbound = {cert: peer for cert, peer in self._book.items() if peer.node > self.me}
        server = _context(ssl.PROTOCOL_TLS_SERVER, self, inbound)
        clients = [_context(ssl.PROTOCOL_TLS_CLIENT, self, [cert]) for cert in outbound]
        listener = await listen(*self._listen)
        if self._was_used:  # stopped while the name was resolved
            listener.close()
            raise Conflict(used)
        self._was_used, self._on_event = True, on_event
        dials = map(self._dial_forever, clients, outbound, outbound.values())
        self._tasks = [asyncio.create_task(run) for run in (self._accept(listener, server, inbound), *dials)]

    async def stop(self) -> None:
        self._was_used, self._on_event = True, None
        tasks, links = [*self._tasks, *self._handshakes], list(self._links.values())
        for task in tasks:
            task.cancel()
        for link in links:
            link.end("this node stops")
        await asyncio.gather(*tasks, *(link.closed.wait() for link in links), return_exceptions=True)

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext, book: _Book) -> None:
        listener.setblocking(False)
        with listener:
            while True:
                try:
                    raw, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # out of descriptors, or reset while it was queued
                    await asyncio.sleep(PAUSE_S[0])
                    continue
                if len(self._handshakes) >= _MAX_HANDSHAKES:
                    oldest = next(iter(self._handshakes))
                    del self._handshakes[oldest]
                    oldest.cancel()
                task = asyncio.create_task(self._admit(raw, context, book))
                self._handshakes[task] = None
                task.add_done_callback(lambda done: self._handshakes.pop(done, None))
                await asyncio.sleep(0)  # sock_accept does not yield while connections are queued

    async def _admit(self, raw: socket.socket, context: ssl.SSLContext, book: _Book) -> None:
        link, loop = _Link(self, book, is_dialled=False), asyncio.get_running_loop()
        try:
            with contextlib.suppress(Exception):  # whatever a stranger causes; it is counted
                await loop.connect_accepted_socket(
                    lambda: link, raw, ssl=context, ssl_handshake_timeout=_SETUP_S
                )
        finally:
            self._stats["refused"] += not link.was_up

    async def _dial_forever(self, context: ssl.SSLContext, certificate: bytes, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        dial = functools.partial(
            loop.create_connection,
            lambda: _Link(self, {certificate: peer.node}, is_dialled=True),
            peer.host,
            peer.port,
            ssl=context,
            server_hostname="",
            ssl_handshake_timeout=_SETUP_S,
            happy_eyeballs_delay=0.25,
        )
        pause, longest = PAUSE_S
        while True:
            began = loop.time()
            with contextlib.suppress(Exception):  # nobody there, or not the peer: that has many exceptions
                async with asyncio.timeout(2 * _SETUP_S):
                    _, link = await dial()
                try:
                    await link.closed.wait()
                finally:
                    link.end("this node stops")
            if loop.time() - began > longest:
                pause = PAUSE_S[0]
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the dials, is no secret
            pause = min(2 * pause, longest)

    # -- called by links

    def _on_up(self, link: _Link) -> None:
        if older := self._links.get(link.peer):
            older.end("replaced by a newer connection")
        link.was_up = True
        self._links[link.peer] = link
        self._stats["connects"] += 1
        self._report(PeerUp(link.peer))

    def _on_end(self, link: _Link, why: str) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._report(PeerDown(link.peer, why))

    def _on_frame(self, link: _Link, chan: Chan, body: bytes) -> None:
        self._stats[f"received_{chan.name.lower()}"] += 1
        self._report(Received(link.peer, chan, body))

    def _report(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
