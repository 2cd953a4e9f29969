"""HTTP/2 responses that nobody reads: what the server sees of their windows, on every backend.

This module knows the lab's clients and stages. It is beside the table of faults because it needs
more of a client than calls: responses that stay open.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import pytest
from tests.faults._http2 import framed, server_of
from tests.faults.clients import OURS

from trunkline import (
    RemoteProtocolError,
    Request,
    Response,
    Timeouts,
    Transport,
    TransportConfig,
    open_transport,
)
from trunkline.testing import Certificates, FrameServer
from trunkline.testing.frames import (
    CANCEL,
    FLOW_CONTROL_ERROR,
    data,
    data_frame,
    expect_request,
    greet,
    head,
    serve,
    wait,
)

_BACKENDS = [kind.name.removeprefix("trunkline ") for kind in OURS if "http2" in kind.can]
_LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
_TIMEOUTS = Timeouts(pool=5.0, connect=5.0, write=5.0, headers=5.0, read=5.0)
_MIB = 2**20

Case: TypeAlias = tuple[str, tuple[str, dict[str, Any]]]
"""A backend, and the loop it runs on."""

pytestmark = pytest.mark.anyio


def _cases() -> Iterator[Any]:
    for backend in _BACKENDS:
        for loop, library in _LOOPS.items():
            if loop != "asyncio" and importlib.util.find_spec(loop) is None:
                continue
            if loop != "trio" or backend != "aiohttp":
                yield pytest.param((backend, library), id=f"{backend}-{loop}")


@pytest.fixture(params=_cases())
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


@pytest.fixture
def anyio_backend(case: Case) -> tuple[str, dict[str, Any]]:
    return case[1]


@asynccontextmanager
async def _running(case: Case, *script: Any) -> AsyncGenerator[tuple[Transport, FrameServer]]:
    with Certificates() as certificates, framed(script)(certificates) as stage:
        config = TransportConfig(backend=case[0], timeouts=_TIMEOUTS, **stage.options)
        transport = open_transport(config)
        try:
            with anyio.fail_after(20):
                yield transport, server_of(stage)
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()


async def _send(transport: Transport, server: FrameServer, path: str) -> Response:
    return await transport.send(Request("GET", server.url + path))


async def _fetch(transport: Transport, server: FrameServer, path: str) -> bytes:
    async with await _send(transport, server, path) as response:
        return await response.aread()


_UNREAD = (greet(), expect_request("/unread"), head(200))


async def test_a_response_that_is_not_read_takes_up_its_own_window_and_no_more(
    case: Case,
) -> None:
    serves = serve(unread=[head(200), data(bytes(8 * _MIB), end=True)])
    async with _running(case, greet(), serves) as (transport, server):
        response = await _send(transport, server, "/unread")
        (session,) = server.sessions
        await server.until(lambda: session.room(server.streams[0]) <= 0)
        sent, left = session.sent, session.granted - session.sent
        await response.aclose()

        assert sent <= 2 * _MIB
        assert left > _MIB, "nothing is left for its siblings"


async def test_a_response_that_is_not_read_holds_up_no_sibling(case: Case) -> None:
    unread = [head(200), *[data(bytes(16_384))] * 64]  # all that its window allows
    async with _running(case, greet(), serve(unread=unread)) as (transport, server):
        async with await _send(transport, server, "/unread"):
            await server.until(lambda: server.streams[0].sent == _MIB)
            for path in ("/one", "/two", "/three"):
                assert await _fetch(transport, server, path) == path.encode()

        await server.until(lambda: server.streams[0].reset == CANCEL)
        assert server.connections == 1


async def test_what_was_held_back_comes_when_it_is_read(case: Case) -> None:
    serves = serve(unread=[head(200), data(bytes(4 * _MIB), end=True)])
    async with _running(case, greet(), serves) as (transport, server):
        async with await _send(transport, server, "/unread") as response:
            await server.until(lambda: server.sessions[0].room(server.streams[0]) <= 0)
            size = 0
            async for piece in response.aiter_bytes():
                size += len(piece)

        assert size == 4 * _MIB


async def test_data_beyond_the_window_ends_the_connection(case: Case) -> None:
    too_much = [data_frame(bytes(16_384))] * 80
    async with _running(case, *_UNREAD, *too_much, wait("never")) as (transport, server):
        async with await _send(transport, server, "/unread") as response:
            with contextlib.suppress(RemoteProtocolError):
                await _fetch(transport, server, "/sibling")  # a backend may read only for somebody
            await server.until(lambda: server.conversations[0].client_closed)
            with pytest.raises(RemoteProtocolError) as caught:
                await response.aread()

        assert type(caught.value) is RemoteProtocolError
        assert caught.value.phase == "body"
        goaway = server.sessions[0].goaway
        # It may be lost: the socket is closed on what the server still sends, which resets it.
        assert goaway is None or goaway[1] == FLOW_CONTROL_ERROR
