"""What every daemon's HTTP side bears from its clients."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from configs import web

LIMIT = 1000


@pytest.fixture
def client() -> httpx2.AsyncClient:
    async def echo(request: Request) -> Response:
        return Response(await web.read_body(request, LIMIT))

    app = Starlette(routes=[Route("/", echo, methods=["POST"])], exception_handlers=web.EXCEPTION_HANDLERS)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://daemon")


async def test_a_body_is_taken_up_to_its_limit_and_no_further(client: httpx2.AsyncClient):
    for size in (0, 1, LIMIT):
        assert (await client.post("/", content=bytes(size))).content == bytes(size)
    refused = await client.post("/", content=bytes(LIMIT + 1))
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")


async def test_a_client_that_never_ends_its_body_does_not_keep_the_connection(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    async def endless() -> AsyncIterator[bytes]:
        yield b"a beginning"
        await asyncio.Event().wait()

    monkeypatch.setattr(web, "BODY_S", 0.05)
    async with asyncio.timeout(20):
        refused = await client.post("/", content=endless())
    assert refused.status_code == 408
    assert "too slowly" in refused.json()["detail"]
