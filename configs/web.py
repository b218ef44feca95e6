"""What the HTTP side of every daemon shares: refusals as RFC 9457 problems, and a server that stops cleanly.

A problem's `detail` is the sentence of the `DiptychError`, and `code` its word for programs if it has one; anything unexpected becomes a 500 without internals.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from configs.sockets import listening_socket
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable

_STATUS: dict[type[DiptychError], int] = {
    Malformed: 400,
    Unauthentic: 401,
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    Unavailable: 503,
}
_IDLE_S = 30
BODY_S = 60
"""How long a client may take for a request body; otherwise some slow ones could keep all connections."""
RETRY_AFTER_S = 1
"""What a client that gets a 503 is asked to wait: a full mempool has room again a block or two later."""
_log = structlog.get_logger()


def problem(
    status: int,
    detail: str,
    kind: str = "about:blank",
    headers: Mapping[str, str] | None = None,
    code: str = "",
) -> Response:
    content = {"type": kind, "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    content |= {"code": code} if code else {}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def _on_refusal(_: Request, error: Exception) -> Response:
    kind = type(error)
    status = getattr(error, "status", None) or next(_STATUS[base] for base in kind.__mro__ if base in _STATUS)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return problem(status, str(error), f"urn:diptych:{kind.__name__}", headers, getattr(error, "code", ""))


def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, headers=error.headers)


def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


def _on_bug(_: Request, error: Exception) -> Response:
    _log.error("request failed", kind=type(error).__name__)
    return problem(500, "the server failed on this request; tell its operator")


EXCEPTION_HANDLERS: dict[Any, Any] = {
    DiptychError: _on_refusal,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}
"""For `Starlette(exception_handlers=…)`. A `DiptychError` may choose its status by an attribute `status`."""


def hexed(value: Any) -> Any:
    """JSON-ready data with byte strings in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        fields = {name: hexed(getattr(value, name)) for name in value.__struct_fields__}
        return {"type": tag, **fields} if tag else fields
    return [hexed(v) for v in value] if isinstance(value, tuple | list) else value


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body of at most `limit` bytes; HTTP 413 beyond that, 408 if it takes longer than `BODY_S`."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise HTTPException(413, f"the request is over the limit of {limit} bytes")
    except TimeoutError:
        raise HTTPException(408, "the request came too slowly; try again over a better connection") from None
    return bytes(body)


class _Protocol(H11Protocol):
    """Drops connections on which nothing moves: uvicorn itself waits for ever for the end of a request head, for the rest of
    a refused body, and for a client that does not read the end of an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last: RequestResponseCycle | None = None
        self._timer = self.loop.call_later(_IDLE_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        between_requests = cycle is None or cycle.response_complete or self.transport.is_closing()
        if between_requests and cycle is self._last:
            self.transport.abort()
            return
        self._last = cycle if between_requests else None
        self._timer = self.loop.call_later(_IDLE_S, self._look)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, on_started: Callable[[], None], on_stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_started, self._on_stopping = on_started, on_stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stopping()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal once more after stopping, which would kill the daemon before it has cleaned up.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listening_socket(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))
    except OSError as error:
        raise Conflict(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from None


async def serve(
    app: Starlette,
    host: str,
    port: int,
    ready: Callable[[int], None] | None = None,
    connections: int = 1024,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` until SIGTERM, SIGINT or cancellation; answers under way then have 10 s to finish.

    Runs on the main thread. `port` 0 takes a free one; `ready` is called with the port once connections are accepted, `stopping` before
    the answers under way are waited for. Raises `Conflict` if the address is in use.
    """
    async with app.router.lifespan_context(app):
        listener = _listen(host, port)
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=connections,
            h11_max_incomplete_event_size=16 << 10,
            timeout_graceful_shutdown=10,
        )
        bound = listener.getsockname()[1]
        server = _Server(config, lambda: ready(bound) if ready else None, stopping)
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            server.should_exit = True
            await running
            raise
