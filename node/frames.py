"""What the back ends of `Net` share: the form of a frame, the queues towards a peer, the rhythm of a link, the listening socket.

A frame is its channel (1 byte), a length (4 bytes, big endian) and a body. Channel 255 is a ping with an empty body.
"""

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Iterable

from configs.sockets import listening_socket
from crypto.errors import Conflict, Unavailable
from node.net import MAX_BODY, Chan

HEADER = struct.Struct(">BI")
PING = 255
FRAME_COST = 256  # what a frame counts on top of its body, so that a budget of bytes bounds the number of frames as well

PING_S, SILENT_S = 1.0, 3.5
PAUSE_S = (0.2, 2.0)  # between two dials of a peer: first and longest

# Bytes that wait for one peer, per channel.
_QUEUE = {Chan.VOTE: 4 << 20, Chan.PROPOSAL: 16 << 20, Chan.SYNC: 16 << 20, Chan.TX: 4 << 20, PING: 4 << 10}
_BATCH = 60_000  # bytes after which no further frame is joined to a write; just under one Yamux frame


class Queues:
    """Frames that wait for one peer on `channels`, most urgent first; bounded. Not safe between threads.

    A body longer than `piece` bytes leaves in pieces with a header each, whose length is what is left of the body, this
    piece included: between two of them, frames of more urgent channels leave.
    """

    def __init__(self, channels: Iterable[int], piece: int = max(MAX_BODY.values())) -> None:
        self._queues: dict[int, deque[memoryview]] = {chan: deque() for chan in channels}
        self._held = dict.fromkeys(self._queues, 0)
        self._piece = piece

    def put(self, chan: int, body: bytes) -> bool:
        """Whether there was room."""
        cost = len(body) + FRAME_COST
        if self._held[chan] + cost > _QUEUE[chan]:
            return False
        self._held[chan] += cost
        self._queues[chan].append(memoryview(body))
        return True

    def take(self) -> list[bytes | memoryview]:
        """Headers and bodies for one write: as many small frames as fit in it, or a large one. Empty: none waits."""
        parts: list[bytes | memoryview] = []
        size = 0
        for chan, queue in self._queues.items():
            while queue and size < _BATCH:
                rest = queue.popleft()
                piece = rest[: self._piece]
                if len(rest) > self._piece:
                    queue.appendleft(rest[self._piece :])
                else:
                    self._held[chan] -= FRAME_COST
                self._held[chan] -= len(piece)
                parts += (HEADER.pack(chan, len(rest)), piece)
                size += HEADER.size + len(piece)
        return parts


async def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens at the first address of `host`. `Conflict`: the port is in use; `Unavailable`: cannot listen."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return listening_socket(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"{host}:{port} is in use by another process; stop it or choose another") from None
        raise Unavailable(f"cannot listen on {host}:{port} ({error.strerror}); check the address") from None
