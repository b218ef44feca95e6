"""What happens on the chain, told to subscribers as server-sent events (docs/queries.md).

    executed blocks  ->  the recent receipts, read once for all  ->  each subscriber takes those that it asked for
    the ledger       ->  older receipts, a page at a time        ->  a subscriber that resumes far behind

A subscriber is a place in the chain and a filter, so it needs no queue: one that reads slowly holds up nobody and costs no memory.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from configs.web import hexed
from crypto.codec import encode
from crypto.errors import Unavailable
from protocol.contract import Receipt

MAX_SUBSCRIBERS = 256
MAX_RECENT = 2_000
PAGE = 200
HEARTBEAT_S = 15.0
SLOW_S, STALLED_S = 10.0, 30.0
"""A subscriber that takes so long for one event is told to come again, or is cut off if it takes nothing at all."""

MAX_POSITION = 2**31

Place = tuple[int, int]
"""Height and position."""


class Matter(NamedTuple):
    """A receipt and whom it concerns besides its sender: the patient of its record, and the sender of the request that it is about."""

    receipt: Receipt
    patient: bytes | None
    requester: bytes | None

    @property
    def place(self) -> Place:
        return self.receipt.height, self.receipt.position


class Filter(NamedTuple):
    """None: any. A patient or reader is concerned by what they have sent themselves, too."""

    record: bytes | None = None
    patient: bytes | None = None
    reader: bytes | None = None
    kind: str | None = None

    def takes(self, matter: Matter) -> bool:
        receipt = matter.receipt
        return (
            self.record in (None, receipt.record)
            and self.patient in (None, receipt.sender, matter.patient)
            and self.reader in (None, receipt.sender, matter.requester)
            and self.kind in (None, receipt.kind)
        )


class Feed:
    """`read` gives the matters after a place in chain order, at most so many; `height` is that of the last executed block, after
    which the node calls `wake`."""

    def __init__(
        self, read: Callable[[Place, int], Awaitable[list[Matter]]], height: Callable[[], int]
    ) -> None:
        self._read, self._height = read, height
        self._recent: deque[Matter] = deque()
        self._start = self._end = (0, 0)
        """`_recent` is all there is after the one place, up to the other."""
        self._executed, self._told = asyncio.Event(), asyncio.Event()
        self._reading = asyncio.Lock()
        self._subscribers = 0
        self._is_closed = False

    def wake(self) -> None:
        self._executed.set()

    def close(self) -> None:
        """End all subscriptions: the node stops."""
        self._is_closed = True
        self._told.set()

    async def run(self) -> None:
        while True:
            await self._executed.wait()
            self._executed.clear()
            while self._subscribers and (page := await self._read(self._end, PAGE)):
                self._recent.extend(page)
                self._end = page[-1].place
                while len(self._recent) > MAX_RECENT:
                    self._start = self._recent.popleft().place
                told, self._told = self._told, asyncio.Event()
                told.set()

    @contextmanager
    def subscription(self) -> Iterator[None]:
        """`Unavailable` if there are too many."""
        if self._is_closed or self._subscribers >= MAX_SUBSCRIBERS:
            raise Unavailable("this node has as many subscribers as it takes; ask another node")
        if not self._subscribers:  # nobody has listened, so nothing was read
            self._recent.clear()
            self._start = self._end = (self._height(), MAX_POSITION)
        self._subscribers += 1
        try:
            yield
        finally:
            self._subscribers -= 1

    async def follow(self, wanted: Filter, after: Place | None) -> AsyncIterator[tuple[Place, Matter | None]]:
        """What is wanted of all that comes after a place, or from now on, in chain order and without end, each with its place. A place
        alone says that there was nothing else up to it: that comes first, and whenever there is nothing for `HEARTBEAT_S`."""
        at = after or self._end
        yield at, None
        while not self._is_closed:
            told = self._told
            if at < self._start:
                async with (
                    self._reading
                ):  # one at a time: who asks for all history must not keep others from the ledger
                    page = await self._read(at, PAGE)
            else:
                page = [m for m in self._recent if m.place > at]
            for matter in page:
                at = matter.place
                if wanted.takes(matter):
                    yield at, matter
            if not page:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await told.wait()
                except TimeoutError:
                    yield at, None


class EventStream(StreamingResponse):
    """A subscription as an answer over HTTP."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, wanted: Filter, after: Place | None) -> None:
        self._feed = feed
        super().__init__(self._events(wanted, after), headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.subscription():
            await super().__call__(scope, receive, send)

    async def _events(self, wanted: Filter, after: Place | None) -> AsyncIterator[str]:
        async for (height, position), matter in self._feed.follow(wanted, after):
            sent = time.monotonic()
            if matter is None:
                yield f": nothing else so far\nid: {height}.{position}\n\n"
            else:
                receipt = matter.receipt
                data = json.dumps({**hexed(receipt), "encoded": encode(receipt).hex()})
                yield f"id: {height}.{position}\nevent: {receipt.kind}\ndata: {data}\n\n"
            if time.monotonic() - sent > SLOW_S:
                yield 'event: too-slow\ndata: "you read more slowly than this node sends; come again from the last id"\n\n'
                return

    async def stream_response(self, send: Send) -> None:
        async def in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        with suppress(TimeoutError):
            await super().stream_response(in_time)
