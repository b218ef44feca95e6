"""`Net` over libp2p: TCP, Noise, Yamux and direct streams between the members of one chain.

py-libp2p 0.8.1 makes the connection: peer ids, the Noise handshake, multistream-select. Above that it is not used: its swarm
and Yamux are trio tasks, so that a frame crosses two threads and a dozen tasks and costs ten times what it costs here, and no
identify, ping, discovery or pubsub is wanted. The Noise messages and Yamux frames of an established connection are therefore
read and written here, in the asyncio loop. At the other end any libp2p may stand that speaks Noise and Yamux; the tests put
py-libp2p's own swarm there. What of 0.8.1 must be worked around is marked `0.8.1:`.

Links are those of node/links.py. A node refuses to be dialled by anyone but the members that do, inside the Noise handshake. A
connection carries two streams that its dialler opens, ctl (votes, pings) and bulk (the rest), so that a block of megabytes does
not queue in front of a vote; their protocol ids name the chain. It becomes a link when both are open and ends as a whole. Frames
are those of node/frames.py, never in pieces.
Sources: github.com/libp2p/specs (noise, yamux, connections, peer-ids); the Noise specification, sections 5 and 13.
"""

import asyncio
import logging
import struct
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport

from node.frames import LIMITS, PING, BrokenRules, Cutter, Queues
from node.links import Link, LinkNet
from node.net import Chan

YAMUX = "/yamux/1.0.0"

# The frames of each stream, most urgent first, with their largest body.
_STREAMS: dict[str, dict[int, int]] = {
    "ctl": {chan: LIMITS[chan] for chan in (Chan.VOTE, PING)},
    "bulk": {chan: LIMITS[chan] for chan in (Chan.PROPOSAL, Chan.SYNC, Chan.TX)},
}
_TALK = 16 << 10  # bytes of a handshake, and of each negotiation after it
_EARLY = 1 << 20  # bytes of a stream that may come before its link is up here
_PROPOSALS = 8  # protocols that a dialler may propose in one negotiation

_ED25519 = bytes.fromhex("002408011220")  # how the peer id of an Ed25519 key begins

_LENGTH = struct.Struct(">H")  # before each Noise message
_SEALED = 65535 - 16  # plaintext in the largest Noise message

_FRAME = struct.Struct(">BBHII")  # Yamux: version, type, flags, stream, length
_DATA, _WINDOW, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_FIRST_WINDOW = 256 << 10  # bytes that a stream may send before it is granted more
_OUR_WINDOW = 4 << 20  # what it may send to us

# 0.8.1: texts of exceptions carry payloads, and the library logs them.
for _name in ["libp2p", "multiaddr", "trio", *logging.root.manager.loggerDict]:
    if _name.partition(".")[0] in ("libp2p", "multiaddr", "trio"):
        logging.getLogger(_name).setLevel(logging.CRITICAL if _name.startswith("libp2p") else logging.ERROR)


def identity_of(seed: bytes) -> str:
    """The libp2p peer id, in base58, of the Ed25519 key with this 32-byte seed."""
    return str(ID.from_pubkey(_key_pair(seed).public_key))


def _key_pair(seed: bytes) -> Any:
    if len(seed) != 32:
        raise ValueError("a libp2p identity seed has 32 bytes")
    return create_new_key_pair(seed)


class GatedNoise(NoiseTransport):  # type: ignore[misc]
    """Noise that admits an inbound peer only if it is one of `dialers`; anyone else is refused before the handshake ends.

    Outbound needs no gate: the library compares the peer's key with the identity that was dialled.
    """

    def __init__(self, key_pair: Any, dialers: Collection[Any]) -> None:
        super().__init__(key_pair, noise_privkey=create_new_x25519_key_pair().private_key)
        self._dialers = dialers

    async def secure_inbound(self, conn: Any) -> Any:
        secure = await super().secure_inbound(conn)
        if secure.get_remote_peer() not in self._dialers:
            raise HandshakeFailure("not a member that dials this node")
        return secure


class _Pipe:
    """A connection or stream as the library's negotiations read and write it, until `open` leads what arrives elsewhere.

    0.8.1: multistream-select reads as much as a length prefix asks for, before the peer is authenticated; so no more than
    `left` bytes may arrive until then.
    """

    def __init__(self, write: Callable[[bytes], None], left: int) -> None:
        self._write, self._left = write, left
        self._buffer = bytearray()
        self._has_news = asyncio.Event()
        self._is_closed = False
        self._sink: Callable[[bytes], None] | None = None

    def feed(self, data: bytes) -> None:
        if self._sink:
            return self._sink(data)
        self._left -= len(data)
        if self._left < 0:
            raise BrokenRules("says too much before it is a member")
        self._buffer += data
        self._has_news.set()

    def open(self, sink: Callable[[bytes], None]) -> None:
        """From now on what arrives, and what has arrived, goes to `sink`."""
        self._sink, early = sink, bytes(self._buffer)
        self._buffer.clear()
        if early:
            sink(early)

    def close(self) -> None:
        self._is_closed = True
        self._has_news.set()

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        while not self._buffer:
            if self._is_closed:
                raise IOException("the connection has ended")
            self._has_news.clear()
            await self._has_news.wait()
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        return data

    async def write(self, data: bytes) -> None:
        self._write(data)


async def _propose(protocol: str, pipe: _Pipe) -> None:
    """Agree on `protocol` by multistream-select, as the dialler; raises if the other side does not."""
    client, speaker = MultiselectClient(), MultiselectCommunicator(pipe)
    await client.handshake(speaker)
    await client.try_select(speaker, protocol)


async def _choose(protocols: Collection[str], pipe: _Pipe) -> str:
    """Agree on the first of `protocols` that the dialler proposes; raises if it proposes others too often."""
    speaker = MultiselectCommunicator(pipe)
    await Multiselect().handshake(speaker)
    for _ in range(_PROPOSALS):
        wanted: str = await speaker.read()
        if wanted in protocols:
            await speaker.write(wanted)
            return wanted
        await speaker.write("na")
    raise BrokenRules("does not speak the protocol of this chain")


class _Stream:
    """One Yamux stream: what the peer may still be sent, what it may still send, and the frames either way."""

    def __init__(self, number: int, pipe: _Pipe) -> None:
        self.number, self.pipe = number, pipe
        self.window = _FIRST_WINDOW
        self._taken = 0
        self._rest = memoryview(b"")

    def next(self, queue: Queues) -> memoryview:
        """What to send next, as far as the peer's window allows."""
        self._rest = self._rest or memoryview(queue.take())
        size = min(len(self._rest), self.window, _SEALED - _FRAME.size)
        piece, self._rest = self._rest[:size], self._rest[size:]
        self.window -= size
        return piece

    def credit(self, size: int) -> int:
        """What to grant the peer now that it has sent `size` bytes more; mostly 0."""
        self._taken += size
        granted = self._taken if self._taken >= _OUR_WINDOW // 2 else 0
        self._taken -= granted
        return granted


class _Link(Link):
    """A connection to `identity`, or accepted from one of the members that dial this node if that is None."""

    def __init__(self, net: "P2PNet", identity: Any | None) -> None:
        self._frames = {kind: Queues(limits) for kind, limits in _STREAMS.items()}
        super().__init__(net, {chan: self._frames[kind] for kind in _STREAMS for chan in _STREAMS[kind]})
        self._p2p, self._identity = net, identity
        self._raw = _Pipe(self._write_raw, _TALK)
        self._plain = _Pipe(self._write_plain, _TALK)
        self._noise: Any = None
        self._sealed, self._muxed = bytearray(), bytearray()
        self._missing = 0  # bytes of the Yamux frame that is coming in
        self._into: _Stream | None = None
        self._numbers: dict[int, _Stream] = {}
        self._opened: asyncio.Queue[_Stream] = asyncio.Queue()
        self._streams: dict[str, _Stream] = {}

    # -- the handshake

    async def set_up(self) -> None:
        is_dialler = self._identity is not None
        if is_dialler:
            await _propose(NOISE, self._raw)
            secure = await self._p2p.noise.secure_outbound(self._raw, self._identity)
        else:
            await _choose([NOISE], self._raw)
            secure = await self._p2p.noise.secure_inbound(self._raw)
        self.peer = self._p2p.book[secure.get_remote_peer()].node
        self._noise = secure.conn.noise_state
        self._raw.open(self._decrypt)
        await (_propose(YAMUX, self._plain) if is_dialler else _choose([YAMUX], self._plain))
        self._plain.open(self._demultiplex)
        protocols = dict(self._p2p.protocols)
        while protocols:
            if is_dialler:
                protocol, kind = next(iter(protocols.items()))
                stream = self._stream(2 * len(self._streams) + 1, _SYN)
                await _propose(protocol, stream.pipe)
            else:
                stream = await self._opened.get()
                protocol = await _choose(protocols, stream.pipe)
            self._streams[protocols.pop(protocol)] = stream
        self._streams = {kind: self._streams[kind] for kind in _STREAMS}
        self._beat()
        self._up()
        try:
            for kind, stream in self._streams.items():
                cutter = Cutter(_STREAMS[kind])
                stream.pipe.open(lambda data, cutter=cutter: self._deliver(cutter.cut(data)))  # type: ignore[misc]
        except BrokenRules as error:
            self.end(str(error))

    def _stream(self, number: int, flag: int) -> _Stream:
        """Open or accept a stream, with a larger window for the peer than the specification begins with."""
        stream = self._numbers[number] = _Stream(
            number, _Pipe(lambda data: self._write_data(stream, data), _EARLY)
        )
        self._write_frame(_WINDOW, flag, number, _OUR_WINDOW - _FIRST_WINDOW)
        return stream

    def end(self, why: str) -> None:
        super().end(why)
        for pipe in (self._raw, self._plain, *(stream.pipe for stream in self._numbers.values())):
            pipe.close()

    # -- what goes out: frames of ours in frames of Yamux in messages of Noise

    def _next(self) -> bytes:
        for kind, stream in self._streams.items():
            if piece := stream.next(self._frames[kind]):
                return self._seal(_FRAME.pack(0, _DATA, 0, stream.number, len(piece)) + piece)
        return b""

    def _seal(self, data: bytes) -> bytes:
        message: bytes = self._noise.encrypt(data)
        return _LENGTH.pack(len(message)) + message

    def _write_raw(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    def _write_plain(self, data: bytes) -> None:
        self._write_raw(self._seal(data))

    def _write_frame(self, kind: int, flags: int, number: int, length: int) -> None:
        self._write_plain(_FRAME.pack(0, kind, flags, number, length))

    def _write_data(self, stream: _Stream, data: bytes) -> None:
        stream.window -= len(data)
        self._write_plain(_FRAME.pack(0, _DATA, 0, stream.number, len(data)) + data)

    # -- what comes in

    def _received(self, data: bytes) -> None:
        self._raw.feed(data)

    def _decrypt(self, data: bytes) -> None:
        buffer, at = self._sealed, 0
        buffer += data
        while len(buffer) - at >= _LENGTH.size and not self._has_ended:
            (size,) = _LENGTH.unpack_from(buffer, at)
            if len(buffer) - at < _LENGTH.size + size:
                break
            at += _LENGTH.size + size
            try:
                plain = self._noise.decrypt(bytes(buffer[at - size : at]))
            except Exception:
                raise BrokenRules("sent what does not decrypt") from None
            self._plain.feed(plain)
        del buffer[:at]

    def _demultiplex(self, data: bytes) -> None:
        buffer, at = self._muxed, 0
        buffer += data
        while not self._has_ended:
            if self._missing:
                piece = bytes(buffer[at : at + self._missing])
                if not piece:
                    break
                at += len(piece)
                self._missing -= len(piece)
                self._feed(piece)
            elif len(buffer) - at >= _FRAME.size:
                at += _FRAME.size
                self._on_yamux(*_FRAME.unpack_from(buffer, at - _FRAME.size))
            else:
                break
        del buffer[:at]

    def _on_yamux(self, version: int, kind: int, flags: int, number: int, length: int) -> None:
        if kind == _PING and not version:
            if flags & _SYN and not self._is_paused:
                self._write_frame(_PING, _ACK, 0, length)
            return
        if kind == _GO_AWAY or flags & (_FIN | _RST):
            raise BrokenRules("closed by the peer")
        may_open = self._identity is None and len(self._numbers) < len(_STREAMS)
        if flags & _SYN and may_open and number not in self._numbers:
            self._opened.put_nowait(self._stream(number, _ACK))
        self._into = self._numbers.get(number)
        if self._into is None or version or kind not in (_DATA, _WINDOW):
            raise BrokenRules("does not speak the protocol of this chain")
        if kind == _DATA:
            self._missing = length
        else:
            self._into.window += length
            self._flush()

    def _feed(self, data: bytes) -> None:
        assert self._into is not None
        self._into.pipe.feed(data)
        if granted := self._into.credit(len(data)):
            self._write_frame(_WINDOW, 0, self._into.number, granted)


class P2PNet(LinkNet):
    __doc__ = LinkNet.__doc__

    def __init__(self, *, chain_id: str, identity_seed: bytes, **others: Any) -> None:
        super().__init__(**others)
        chain = quote(chain_id, safe="")  # injective: two chains never share a protocol id
        self.protocols = {f"/diptych/{chain}/{kind}/1": kind for kind in _STREAMS}
        self.noise = GatedNoise(_key_pair(identity_seed), self._inbound.keys())

    def _identity(self, text: str) -> Any:
        try:
            identity = ID.from_string(text)
        except Exception:
            raise ValueError("not a peer id") from None
        if not identity.to_bytes().startswith(_ED25519):
            raise ValueError("not the peer id of an Ed25519 key")
        return identity

    def _new_link(self, identity: Any | None) -> tuple[Link, dict[str, Any]]:
        return _Link(self, identity), {}
