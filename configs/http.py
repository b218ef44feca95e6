"""The HTTP side of everything that asks a server: a server may lie, so an answer is bounded before it is read."""

from typing import Any

import httpx2

from crypto.errors import Unavailable

MAX_ANSWER = 8 << 20
"""Bytes of one answer that is not streamed."""


class Client(httpx2.Client):
    """Raises `Unavailable` for an answer that is compressed (a few bytes could unpack to gigabytes) or, unless it is streamed, longer than
    `MAX_ANSWER`. Direct connections only: a proxy from the environment would see who asks for whom."""

    def __init__(self, seconds: float, **options: Any) -> None:
        timeout = httpx2.Timeout(seconds, connect=min(seconds, 3))
        headers = {"accept-encoding": "identity"}
        super().__init__(timeout=timeout, trust_env=False, follow_redirects=False, headers=headers, **options)

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        response = super().send(request, stream=True, **options)
        if "content-encoding" in response.headers:
            response.close()
            raise Unavailable(
                "a server compressed its answer although it was asked not to; it may run another version"
            )
        if stream:
            return response
        try:
            content = read(response)
        finally:
            response.close()
        return httpx2.Response(
            response.status_code, headers=response.headers, content=content, request=request
        )


def read(response: httpx2.Response) -> bytes:
    """The whole body of a streamed answer, of at most `MAX_ANSWER` bytes."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise Unavailable(f"a server's answer is longer than {MAX_ANSWER} bytes, which no true one is")
    return bytes(content)
