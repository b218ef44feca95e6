"""What the back ends of `Net` say to each other: the form of a frame, the queue towards a peer, the cutter of what comes from it.

A frame is its channel (1 byte), a length (4 bytes, big endian) and a body. Channel 255 is a ping with an empty body.
"""

import struct
from collections import deque
from collections.abc import Iterator, Mapping

from node.net import MAX_BODY, Chan

HEADER = struct.Struct(">BI")
PING = 255
FRAME_COST = 256  # what a frame counts on top of its body, so that a budget of bytes bounds the number of frames as well

LIMITS: Mapping[int, int] = {**{int(chan): size for chan, size in MAX_BODY.items()}, PING: 0}
"""The largest body of each channel, most urgent first. A ping among megabytes may wait: whatever a peer sends shows that it lives."""

# Bytes that wait for one peer, per channel.
_QUEUE = {Chan.VOTE: 4 << 20, Chan.PROPOSAL: 16 << 20, Chan.SYNC: 16 << 20, Chan.TX: 4 << 20, PING: 4 << 10}
_BATCH = 60_000  # bytes after which no further frame is joined to a write; just under one Noise message
_WHOLE = max(MAX_BODY.values())
_CHANNELS = {int(chan): chan for chan in Chan}


class BrokenRules(Exception):
    """A peer does not keep to the protocol; the text is a phrase for logs and carries nothing that the peer sent."""


class Queues:
    """Frames that wait for one peer on the channels of `limits`, most urgent first; bounded.

    A body longer than `piece` bytes leaves in pieces with a header each, whose length is what is left of the body, this
    piece included: between two of them, frames of more urgent channels leave.
    """

    def __init__(self, limits: Mapping[int, int], piece: int = _WHOLE) -> None:
        self._queues: dict[int, deque[memoryview]] = {chan: deque() for chan in limits}
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

    def take(self) -> bytes:
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
        return b"".join(parts)


class Cutter:
    """Cuts a stream of bytes into the frames that `Queues` of the same `limits` and `piece` made."""

    def __init__(self, limits: Mapping[int, int], piece: int = _WHOLE) -> None:
        self._limits, self._piece = limits, piece
        self._buffer = bytearray()
        self._begun: dict[int, tuple[int, list[bytes]]] = {}  # bytes missing of a body, and its pieces

    def cut(self, data: bytes) -> Iterator[tuple[Chan, bytes]]:
        """The frames that are whole now, without pings. `BrokenRules` before the body of a bad one."""
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= HEADER.size:
            chan, left = HEADER.unpack_from(buffer, at)
            missing, pieces = self._begun.get(chan, (left, []))
            if left != missing or left > self._limits.get(chan, -1):
                raise BrokenRules("sent a frame that is too large or malformed")
            size = min(left, self._piece)
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
                yield _CHANNELS[chan], b"".join(pieces)
        del buffer[:at]
