"""The bodies of requests that the libraries' clients have been at: redirected, or read by a hook.

This module knows both libraries, sync and async, and a server that follows a script.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import trunkline.adapters.httpx
import trunkline.adapters.httpx2
from trunkline import Request
from trunkline.testing import MockTransport
from trunkline.testing._conversation import ReceivedRequest
from trunkline.testing._script import response, serve
from trunkline.testing._servers import ScriptedServer

FAMILIES: dict[str, tuple[Any, Any]] = {
    "httpx2": (httpx2, trunkline.adapters.httpx2),
    "httpx": (httpx, trunkline.adapters.httpx),
}


@pytest.fixture(params=FAMILIES)
def library(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param][0]


@pytest.fixture(params=["AsyncClient", "Client"])
def make(library: Any, request: pytest.FixtureRequest) -> Any:
    return getattr(FAMILIES[library.__name__][1], request.param)


async def settled(outcome: Any) -> Any:
    """What a method of a client returns, whether the client is async or not."""
    return await outcome if inspect.isawaitable(outcome) else outcome


def fetch(client: Any, method: str, url: str, **options: Any) -> Any:
    """Send one request, and close the client."""

    async def call() -> Any:
        try:
            return await settled(client.request(method, url, **options))
        finally:
            await settled(client.aclose() if hasattr(client, "aclose") else client.close())

    return anyio.run(call)


def streamed(make: Any, *pieces: bytes) -> Any:
    """A body that can be iterated over once, as the client of that class takes it."""

    async def produced() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return produced() if make.__name__ == "AsyncClient" else iter(pieces)


def read_hook(make: Any) -> Any:
    async def read_async(request: Any) -> None:
        await request.aread()

    def read(request: Any) -> None:
        request.read()

    return read_async if make.__name__ == "AsyncClient" else read


def framing(received: ReceivedRequest) -> tuple[str | None, str | None]:
    return received.header("Content-Length"), received.header("Transfer-Encoding")


def redirect(status: int) -> Any:
    def reply(request: ReceivedRequest) -> bytes:
        if request.target == "/end":
            return response(200, b"" if request.method == "HEAD" else b"end")
        return response(status, b"", ("Location", "/end"))

    return reply


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_redirected_request_without_a_body_has_none(make: Any, method: str) -> None:
    with ScriptedServer(serve(redirect(307))) as server:
        fetch(make(), method, server.url)

        assert [one.target for one in server.requests] == ["/", "/end"]
        assert framing(server.requests[1]) == (None, None)


def test_a_redirected_body_of_bytes_can_be_sent_once_more_if_its_connection_is_lost(
    make: Any,
) -> None:
    def handler(request: Request) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, b"") if request.path == "/end" else (307, {"Location": "/end"}, b"")

    transport = MockTransport(handler)
    fetch(make(transport), "POST", "http://api.test/", content=b"body")

    redirected = transport.requests[1]
    assert (redirected.method, redirected.content) == ("POST", b"body")
    assert redirected.is_rewindable


def test_a_stream_that_a_hook_has_read_is_sent(make: Any) -> None:
    with ScriptedServer(serve()) as server:
        client = make(event_hooks={"request": [read_hook(make)]})
        fetch(client, "POST", server.url, content=streamed(make, b"one", b"two"))

        assert server.requests[0].body == b"onetwo"
        assert framing(server.requests[0]) == ("6", None)


def test_a_stream_that_an_auth_has_read_is_sent(make: Any, library: Any) -> None:
    class Signed(library.Auth):  # type: ignore[misc]
        requires_request_body = True

        def auth_flow(self, request: Any) -> Iterator[Any]:
            request.headers["X-Length"] = str(len(request.content))
            yield request

    with ScriptedServer(serve()) as server:
        fetch(make(), "POST", server.url, content=streamed(make, b"one"), auth=Signed())

        assert server.requests[0].body == b"one"
        assert server.requests[0].header("X-Length") == "3"


def test_a_coding_of_the_callers_own_is_refused(make: Any, library: Any) -> None:
    headers = {"Transfer-Encoding": "gzip, chunked"}
    with pytest.raises(library.LocalProtocolError, match="Transfer-Encoding"):
        fetch(make(), "POST", "http://127.0.0.1:1/", content=b"x", headers=headers)
