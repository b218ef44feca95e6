"""Reading a node's server-sent events (WHATWG HTML, section 9.2), with bounds on what a lying node can make its reader hold."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import httpx2

from crypto.errors import DiptychError, Malformed, Unavailable
from protocol.contract import MAX_OBJECT, Receipt, decode_receipt

SILENCE_S = 40
"""A node says something every 15 s."""
MAX_LINE = 8 * MAX_OBJECT
MAX_STREAM = 1 << 40

Place = tuple[int, int]
"""Height and position of a receipt."""


@contextmanager
def stream(
    http: httpx2.Client, url: str, wanted: Mapping[str, str], after: Place | None
) -> Iterator[Iterator[tuple[Place, Receipt | None]]]:
    """What a node tells after a place, or from now on: receipts in chain order, or None where nothing else came up to a place. `Unavailable`
    or an error of `httpx2` when it ends otherwise than by the node's own wish."""
    headers = {"last-event-id": f"{after[0]}.{after[1]}"} if after else {}
    timeout = httpx2.Timeout(SILENCE_S, connect=3)
    with http.stream(
        "GET", url, params=wanted, headers=headers, timeout=timeout, extensions={"max_answer": MAX_STREAM}
    ) as response:
        if response.status_code != 200:
            response.read()
            try:
                detail = str(response.json()["detail"])[:1000]
            except (ValueError, KeyError, TypeError, RecursionError):
                detail = f"the node answered with HTTP status {response.status_code}"
            raise (Malformed if response.status_code == 400 else Unavailable)(detail)
        yield _events(_lines(response.iter_raw()), after or (0, 0))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE:
            raise Unavailable("a node's event has no end")


def _events(lines: Iterable[bytes], last: Place) -> Iterator[tuple[Place, Receipt | None]]:
    id_ = kind = data = b""
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id":
            id_ = value
        elif name == b"event":
            kind = value
        elif name == b"data":
            data = value
        elif not line and kind == b"too-slow":
            raise Unavailable("the node says that this client reads too slowly")
        elif not line and id_:
            place, receipt = _event(id_, data)
            if place < last or (receipt is not None and place == last and last != (0, 0)):
                raise Unavailable("a node's events are out of order")
            yield place, receipt
            last, id_, kind, data = place, b"", b"", b""


def _event(id_: bytes, data: bytes) -> tuple[Place, Receipt | None]:
    try:
        height, position = map(int, id_.split(b"."))
        if not data:
            return (height, position), None
        receipt = decode_receipt(bytes.fromhex(json.loads(data)["encoded"]))
    except (DiptychError, ValueError, KeyError, TypeError, RecursionError):
        raise Unavailable("a node's events are not in the agreed form; it may run another version") from None
    if (receipt.height, receipt.position) != (height, position):
        raise Unavailable("a node's event is not of the place that it names")
    return (height, position), receipt
