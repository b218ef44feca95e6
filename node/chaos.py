"""Fault injection into one real node: bad links, a wrong clock, a full disk, a member that contradicts itself.

It exists only in a node whose config says `chaos = true`, which such a node accepts on a loopback HTTP address alone. Faults are changed at
run time by `PUT /chaos` with a `NodeFaults` order. Everything is injected below the code under test: links between transport and daemon, the disk inside
SQLite (real SQLITE_FULL errors), the clock where the daemon reads it, lies on the way out, after the honest core has spoken and journalled.
"""

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from math import inf, nextafter

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from configs.faults import Link, NodeFaults
from configs.web import read_body
from crypto.codec import encode
from crypto.errors import Malformed
from crypto.sign import Ed25519Signer
from node import daemon
from node.daemon import FRAME_BYTES, Node
from node.net import Chan, Event, Net, NodeId, PeerDown, Received
from protocol.block import Committee, Message, Proposal, Votes, decode_message
from protocol.record import digest

QUEUE_BYTES, QUEUE_S = 16 << 20, 2.0
"""What waits on one link at most, by size and by the time that its bandwidth needs; more is dropped, as a router does."""
LATE = 5
"""A reordered frame comes this many further delays late."""
LATE_S = 0.005
"""The further delay of a reordered or duplicated frame on a link that has none of its own."""
MAX_ORDER = 64 << 10
UNLIMITED_PAGES = 1_073_741_823
"""The largest number of pages every SQLite accepts as a limit."""

_decode_order = msgspec.json.Decoder(NodeFaults)
_HEALTHY = Link()


class Faults:
    """The links to one node. `plan` decides the fate of each frame; the same seed and frames give the same fates."""

    def __init__(self, me: NodeId, order: NodeFaults | None = None) -> None:
        self._me = me
        self.equivocator: Equivocator | None = None
        self.set(order or NodeFaults())

    def set(self, order: NodeFaults) -> None:
        """Replace all faults and start the random sequence anew from the order's seed."""
        self._order = order
        self._rng = random.Random(f"{order.seed}/{self._me}")  # noqa: S311 - a reproducible sequence, no secret
        self._free_at: dict[NodeId, float] = {}
        self._last_at: dict[NodeId, float] = {}

    def plan(self, src: NodeId, size: int, now: float) -> list[float]:
        """When copies of a frame of `size` bytes from `src` arrive, in seconds on the clock of `now`; none: it is lost."""
        if src in self._order.cut:
            return []
        link, rng = self._order.links.get(src, _HEALTHY), self._rng
        if rng.random() < link.drop:
            return []
        sent = max(now, self._free_at.get(src, now))
        if link.bytes_per_s:
            if sent > now + QUEUE_S:
                return []
            sent += size / link.bytes_per_s
            self._free_at[src] = sent
        least, most = link.delay_ms
        at = sent + rng.uniform(least, most) / 1000
        further = max(rng.uniform(least, most) / 1000, LATE_S)
        if rng.random() < link.reorder:
            at += LATE * further
        else:
            # Strictly later: the event loop orders timers by time alone.
            at = self._last_at[src] = max(at, nextafter(self._last_at.get(src, -inf), inf))
        return [at, at + further] if rng.random() < link.duplicate else [at]


class Equivocator:
    """Makes a member's statements into contradictions, signed with its own key. It knows no more than the member itself."""

    def __init__(self, committee: Committee, key: Ed25519Signer) -> None:
        self._committee, self._key = committee, key
        self._me = committee.keys.index(key.public)

    def contradiction(self, message: Message) -> Message | None:
        """A second proposal for the view of a proposal, votes for other blocks than those of votes; None: nothing to say."""
        if isinstance(message, Proposal) and message.vote.signer == self._me:
            header = message.block.header
            other = msgspec.structs.replace(header, time_ms=header.time_ms + 1)
            vote = self._committee.sign(self._key, self._me, "notarize", header.view, other.id)
            block = msgspec.structs.replace(message.block, header=other)
            return msgspec.structs.replace(message, block=block, vote=vote)
        if isinstance(message, Votes):
            votes = tuple(
                self._committee.sign(self._key, self._me, v.kind, v.view, digest("another block", v.block))
                for v in message.votes
                if v.block
            )
            return Votes(votes, None) if votes else None
        return None


class ChaosNet:
    """A `Net` around another: mistreats what comes in as `Faults` says; if they have an equivocator, lies in what goes out.

    A cut link loses every frame and stays up, as behind a firewall that drops packets. Announcements of links pass at once; frames under
    way when a link ends are lost with it.
    """

    def __init__(self, inner: Net, faults: Faults) -> None:
        self._inner, self.faults = inner, faults
        self.me = inner.me
        self._under_way: dict[NodeId, set[asyncio.TimerHandle]] = {}
        self._bytes: Counter[NodeId] = Counter()

    def send(self, dst: NodeId, chan: Chan, body: bytes) -> bool:
        return self._inner.send(dst, chan, body)

    def broadcast(self, chan: Chan, body: bytes) -> int:
        lie = None
        if self.faults.equivocator and chan in (Chan.VOTE, Chan.PROPOSAL):
            lie = self.faults.equivocator.contradiction(decode_message(body))
        if lie is None:
            return self._inner.broadcast(chan, body)
        if isinstance(lie, Proposal):  # some members get one block, some the other
            return sum(
                self._inner.send(peer, chan, encode(lie) if number % 2 else body)
                for number, peer in enumerate(sorted(self._inner.peers()))
            )
        self._inner.broadcast(chan, encode(lie))
        return self._inner.broadcast(chan, body)

    def peers(self) -> frozenset[NodeId]:
        return self._inner.peers()

    async def start(self, on_event: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()

        def on_inner(event: Event) -> None:
            if isinstance(event, Received):
                for at in self.faults.plan(event.src, len(event.body), loop.time()):
                    deliver(event, at)
                return
            if isinstance(event, PeerDown):
                self._lose(event.peer)
            on_event(event)

        def deliver(event: Received, at: float) -> None:
            waiting = self._under_way.setdefault(event.src, set())
            if at <= loop.time() and not waiting:
                on_event(event)
                return
            size = len(event.body) + FRAME_BYTES
            if self._bytes[event.src] + size > QUEUE_BYTES:
                return
            self._bytes[event.src] += size

            def arrive() -> None:
                waiting.discard(handle)
                self._bytes[event.src] -= size
                on_event(event)

            handle = loop.call_at(at, arrive)
            waiting.add(handle)

        await self._inner.start(on_inner)

    async def stop(self) -> None:
        await self._inner.stop()
        for peer in list(self._under_way):
            self._lose(peer)

    def _lose(self, peer: NodeId) -> None:
        for handle in self._under_way.pop(peer, set()):
            handle.cancel()
        self._bytes.pop(peer, None)


def limit_pages(db: sqlite3.Connection, is_full: bool) -> None:
    """Let the database file grow no further, or again without limit. A write that needs a new page then fails with SQLITE_FULL."""
    pages = db.execute("PRAGMA page_count").fetchone()[0] if is_full else UNLIMITED_PAGES
    db.execute(f"PRAGMA max_page_count={pages}")


def admin(node: Node, faults: Faults, key: Ed25519Signer) -> Route:
    """`PUT /chaos`: the order that the node, on `ChaosNet`s with these `faults`, obeys from now on, as JSON. `Malformed` with the
    reason for any other."""
    true_wall_ms, skew_ms = daemon.wall_ms, 0

    def wall_ms() -> int:
        return true_wall_ms() + skew_ms

    daemon.wall_ms = wall_ms
    structlog.get_logger().warning(
        "chaos is on: whoever reaches the HTTP address can break this node", node=node.name
    )

    async def put(request: Request) -> Response:
        nonlocal skew_ms
        # A web page cannot send this type to another origin without asking first, and nobody here answers such questions.
        if request.headers.get("content-type") != "application/json":
            raise Malformed("send the faults with content-type application/json")
        try:
            order = _decode_order.decode(await read_body(request, MAX_ORDER))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Malformed(f"the faults are not valid: {error}") from None
        committee = node.core.committee
        unknown = {*order.links, *order.cut} - {m.name for m in committee.members}
        if unknown:
            raise Malformed(f"no member of this chain is called {', '.join(sorted(unknown))}")
        limit_pages(node._store._db, order.disk_full)
        faults.set(order)
        faults.equivocator = Equivocator(committee, key) if order.equivocate else None
        skew_ms = order.skew_ms
        return JSONResponse(msgspec.to_builtins(order))

    return Route("/chaos", put, methods=["PUT"])
