"""The aiohttp backend's HTTP/2, and what the pool makes of it, against a server frame by frame.

This module knows what is particular to asyncio: tasks, transports, timers. What every backend does
alike is in the conformance suite, and every fault in `tests/faults`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from trunkline import (
    AiohttpTransport,
    Capabilities,
    HttpxTransport,
    Limits,
    RemoteDisconnected,
    Request,
    Response,
    Timeouts,
    TransportConfig,
    UnsupportedOption,
)
from trunkline.pool import PooledTransport
from trunkline.testing import FrameServer
from trunkline.testing.frames import (
    announce,
    answer,
    data,
    expect_acks,
    expect_head,
    expect_request,
    expect_reset,
    expect_rest,
    greet,
    head,
    serve,
    wait,
)

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
BACKENDS = [AiohttpTransport, HttpxTransport]


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@asynccontextmanager
async def speaking(
    backend: type[PooledTransport] = AiohttpTransport, **options: Any
) -> AsyncGenerator[PooledTransport]:
    transport = backend(TransportConfig(http2="prior_knowledge", warn_utilization=None, **options))
    try:
        async with asyncio.timeout(20):
            yield transport
    finally:
        await transport.aclose()


async def fetch(transport: PooledTransport, url: str, **options: Any) -> Response:
    response = await transport.send(Request("POST" if options else "GET", url, **options))
    await response.aread()
    return response


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_http2_is_spoken_without_tls_where_the_origin_is_known_to(
    backend: type[PooledTransport],
) -> None:
    with FrameServer([greet(), serve()]) as server:
        async with speaking(backend) as transport:
            answered = await fetch(transport, server.url)
            assert (answered.status_code, answered.http_version) == (200, "HTTP/2")
        await server.until(lambda: server.sessions[0].goaway is not None)
        assert server.violations == []


@pytest.mark.anyio
async def test_a_backend_that_cannot_know_beforehand_refuses_to() -> None:
    class Other(AiohttpTransport):
        capabilities = Capabilities(name="other", http2=True)

    with pytest.raises(UnsupportedOption, match="prior_knowledge"):
        Other(TransportConfig(http2="prior_knowledge"))


@pytest.mark.anyio
async def test_the_rest_of_a_body_is_sent_after_the_response_has_begun() -> None:
    go_on = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"first"
        await go_on.wait()
        yield b"last"

    with FrameServer(
        [greet(), expect_head(), head(200), expect_rest(), data(b"got it", end=True)]
    ) as server:
        async with speaking() as transport:
            response = await transport.send(Request("POST", server.url, content=content()))
            assert response.status_code == 200
            go_on.set()
            assert await response.aread() == b"got it"
            assert server.streams[0].body == b"firstlast"


@pytest.mark.anyio
@pytest.mark.parametrize("error", [LookupError("not found"), asyncio.CancelledError("mine")])
async def test_an_error_of_the_callers_iterable_is_the_callers(error: BaseException) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"first"
        raise error from KeyError("why")

    with FrameServer([greet(), expect_head(), expect_reset(), serve()]) as server:
        async with speaking() as transport:
            with pytest.raises(type(error)) as raised:
                await transport.send(Request("POST", server.url, content=content()))
            assert raised.value is error
            assert type(error.__cause__) is KeyError
            assert (await fetch(transport, server.url)).status_code == 200
            assert server.connections == 1


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_calls_that_wait_are_woken_when_the_peer_takes_more_streams(
    backend: type[PooledTransport],
) -> None:
    script = [greet(max_concurrent_streams=1), expect_request(), expect_acks(), wait("more"),
              announce(max_concurrent_streams=10), serve(3), answer(nth=0), serve()]  # fmt: skip
    with FrameServer(script) as server:
        async with speaking(backend, limits=Limits(max_connections=1)) as transport:
            held = asyncio.ensure_future(fetch(transport, f"{server.url}/held"))
            await server.until(lambda: len(server.streams) == 1)
            waiting = [asyncio.ensure_future(fetch(transport, server.url)) for _ in range(3)]
            while transport.snapshot().waiting < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
            server.open("more")
            answers = await asyncio.gather(*waiting)
            assert [each.status_code for each in answers] == [200] * 3
            assert (await held).status_code == 200
            assert server.connections == 1


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_peer_that_answers_no_ping_is_given_up(backend: type[PooledTransport]) -> None:
    script = [greet(replies=("settings",)), expect_head(), wait("never")]
    limits = Limits(ping_interval=0.05)
    with FrameServer(script, [greet(), serve()]) as server:
        async with speaking(backend, limits=limits, timeouts=Timeouts(headers=15)) as transport:
            with pytest.raises(RemoteDisconnected) as caught:
                await fetch(transport, server.url, content=b"once")
            error = caught.value
            assert (error.request_sent, error.replay) == (True, "if_idempotent")
            assert "PING" in str(error)
            assert transport.snapshot().open == 0
            assert (await fetch(transport, server.url)).status_code == 200


@pytest.mark.anyio
async def test_two_thousand_cancelled_streams_leave_the_connection_as_it_was() -> None:
    endless: dict[str, Any] = {"/endless": [head(200), data(b"x" * 16384)]}
    with FrameServer([greet(), serve(None, **endless)]) as server:
        async with speaking(limits=Limits(max_connections=1)) as transport:
            for _ in range(2000):
                response = await transport.send(Request("GET", f"{server.url}/endless"))
                await response.aclose()
            assert (await fetch(transport, server.url)).status_code == 200
            assert (server.connections, server.violations) == (1, [])
