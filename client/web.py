"""HTTP to servers that may lie: bounded answers, direct connections, refusals as `DiptychError`."""

import time
from collections.abc import Iterator

import httpx2

from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable

MAX_ANSWER = 8 << 20
"""Bytes of any server's answer, unless the request says otherwise in its extension `max_answer`."""
MAX_RETRY_AFTER = 30.0
IDLE_S = 2.0
"""How long a connection is kept for the next request: less than servers wait before they close it."""
_ERRORS: dict[int, type[DiptychError]] = {
    400: Malformed,
    401: Unauthentic,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: Malformed,
}


class Busy(Unavailable):
    """A server that has too much to do or cannot work now; `seconds`: not to ask it again before."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class TooLarge(httpx2.TransportError):
    """A server's answer is larger than any honest one."""


class _Capped(httpx2.SyncByteStream):
    """An answer that breaks off with `TooLarge` once more than `limit` bytes have come."""

    def __init__(self, stream: httpx2.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        left = self._limit
        for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise TooLarge(f"the answer is over the limit of {self._limit} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _Transport(httpx2.HTTPTransport):
    """Bounds what a lying server can make its client hold; what is compressed could unpack to anything, so nothing is."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.stream.close()
            raise TooLarge("the answer is compressed although that was not asked for")
        response.stream = _Capped(response.stream, request.extensions.get("max_answer", MAX_ANSWER))
        return response


def http_client(seconds: float) -> httpx2.Client:
    """Direct connections only: a proxy from the environment would see who asks for whom."""
    return httpx2.Client(
        timeout=httpx2.Timeout(seconds, connect=3),
        headers={"accept-encoding": "identity"},
        trust_env=False,
        follow_redirects=False,
        transport=_Transport(trust_env=False, limits=httpx2.Limits(keepalive_expiry=IDLE_S)),
    )


def checked(response: httpx2.Response) -> httpx2.Response:
    """The response if it is a success, otherwise its problem as the `DiptychError` it stands for."""
    if response.is_success:
        return response
    try:
        found = response.json()
        detail, code = str(found["detail"])[:1000], str(found.get("code", ""))[:64]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        detail, code = f"the server answered with HTTP status {response.status_code}", ""
    if response.status_code == 503:
        raise Busy(detail, _retry_after(response.headers.get("retry-after", "")))
    raise _ERRORS.get(response.status_code, Unavailable)(detail, code)


def _retry_after(text: str) -> float:
    """Seconds that a server asks for, within reason; 1 if it says nothing usable."""
    return (
        min(float(text), MAX_RETRY_AFTER) if text.isascii() and text.isdecimal() and len(text) < 10 else 1.0
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000
