"""The HTTP side of every daemon in the Prometheus text form: requests by route and status, their duration, `GET /metrics`.

Routes are named by their pattern and unknown paths as `other`, so that nobody's ids show and a stranger cannot make new series.
"""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def instrument(app: Starlette, registry: CollectorRegistry | None = None) -> None:
    """Count the requests of an application that has not started yet, and serve `registry` with those counts at /metrics."""
    registry = registry or CollectorRegistry()

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.routes.append(Route("/metrics", metrics))
    app.add_middleware(_Requests, registry=registry)


class _Requests:
    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._count = Counter(
            "diptych_http_requests", "HTTP requests answered", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "diptych_http_seconds",
            "From a request to the end of its answer; waiting for a receipt counts",
            ("route",),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, started = 500, time.perf_counter()

        async def on_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, on_send)
        finally:
            route = scope["route"].path if "route" in scope else "other"
            self._count.labels(route, status).inc()
            self._seconds.labels(route).observe(time.perf_counter() - started)
