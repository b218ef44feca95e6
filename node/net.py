"""What the daemon asks of a network: frames of bytes to and from the members of one chain.

The consensus core tolerates loss, so the contract is small. A back end never blocks its caller and holds a bounded amount of
memory whatever its peers do; a frame arrives whole, from an authenticated member, at most once, in order within its channel,
unordered across channels, or not at all. A new link to a peer is announced by `PeerUp`, its end by exactly one `PeerDown`;
frames queued at that moment are lost. Bodies are opaque here; whoever consumes them validates them.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

NodeId: TypeAlias = str
"""A member's name in the chain's configuration, not a type of any transport."""


class Chan(enum.IntEnum):
    """What a frame is for; a lower number is sent first."""

    VOTE = 0  # votes, timeouts, status
    PROPOSAL = 1
    SYNC = 2
    TX = 3


MAX_BODY = {Chan.VOTE: 16 << 10, Chan.PROPOSAL: 4 << 20, Chan.SYNC: 4 << 20, Chan.TX: 64 << 10}
"""The largest body of each channel, in bytes. A peer that announces a larger one is disconnected."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Address book entry of another member: `identity` is the base58 libp2p peer id, `host` a name or an IP literal."""

    node: NodeId
    identity: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Received:
    """A frame from `src`, whose identity the transport has authenticated."""

    src: NodeId
    chan: Chan
    body: bytes


@dataclass(frozen=True, slots=True)
class PeerUp:
    """Frames to and from `peer` flow from now on."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The link to `peer` ended; `why` is a phrase for logs and carries nothing that the peer sent."""

    peer: NodeId
    why: str


Event: TypeAlias = Received | PeerUp | PeerDown


class Net(Protocol):
    """One member's view of the network. Every method is called in the asyncio thread that called `start`."""

    me: NodeId

    def send(self, dst: NodeId, chan: Chan, body: bytes) -> bool:
        """Queue one frame. False: no link to `dst`, or its queue is full. `ValueError`: body over `MAX_BODY`."""
        ...

    def broadcast(self, chan: Chan, body: bytes) -> int:
        """Queue one frame to every linked peer; how many queues took it. `ValueError`: body over `MAX_BODY`."""
        ...

    def peers(self) -> frozenset[NodeId]:
        """The peers to which there is a link now, in step with the events delivered so far."""
        ...

    async def start(self, on_event: Callable[[Event], None]) -> None:
        """Listen and connect; returns once listening. `on_event` is then called in this loop, once per event.

        Once in the life of the object. `Conflict`: the port is in use or it was started before; `Unavailable`: cannot listen.
        """
        ...

    async def stop(self) -> None:
        """Close every link and socket; no event follows. Safe to call again, and without `start`."""
        ...


def check_body(chan: Chan, body: bytes) -> None:
    """`ValueError` if `body` is longer than its channel carries: a mistake of the caller, never of a peer."""
    if len(body) > MAX_BODY[chan]:
        raise ValueError(f"a {chan.name} body has at most {MAX_BODY[chan]} bytes, this one has {len(body)}")
