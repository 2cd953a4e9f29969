"""What is the pyreqwest backend's own: options it refuses, facts it cannot know, sockets it leaves.

Knows its transport. What it has in common with the others is in the conformance suite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import trunkline
from trunkline import Dns, Limits, Request, TransportConfig, UnsupportedOption
from trunkline.testing._script import expect_request, fin, response, serve
from trunkline.testing._servers import ScriptedServer
from trunkline_pyreqwest import PyreqwestTransport

PAGE = response(200, b"page")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("limits.max_connections_per_host", {"limits": Limits(max_connections_per_host=2)}),
        ("limits.max_keepalive_connections", {"limits": Limits(max_keepalive_connections=5)}),
        ("limits.max_connection_age", {"limits": Limits(max_connection_age=60.0)}),
        ("limits.min_idle_connections", {"limits": Limits(min_idle_connections=1)}),
        ("dns.ttl", {"dns": Dns(ttl=60.0)}),
        ("dns.nameservers", {"dns": Dns(nameservers=("127.0.0.1",))}),
        ("leak_after", {"leak_after": 5.0}),
        ("leak_stack", {"leak_stack": True}),
    ],
)
def test_an_option_of_what_the_library_owns_is_refused(option: str, given: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOption, match=f"^{option}: backend 'pyreqwest'"):
        PyreqwestTransport(TransportConfig(**given))


def test_the_defaults_are_no_options_that_were_asked_for() -> None:
    PyreqwestTransport(TransportConfig())
    PyreqwestTransport(TransportConfig(limits=Limits(max_keepalive_connections=0)))


@pytest.mark.anyio
async def test_closing_leaves_no_socket() -> None:
    transport = PyreqwestTransport()
    with ScriptedServer(serve(PAGE)) as server:
        for _ in range(2):
            async with await transport.send(Request("GET", server.url)) as answered:
                await answered.aread()
        assert (server.connections, server.open_connections) == (1, 1)
        await transport.aclose()
        with anyio.fail_after(10):
            while server.open_connections:  # noqa: ASYNC110  # the server is in another thread
                await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_a_fact_that_cannot_be_known_is_not_claimed() -> None:
    transport = PyreqwestTransport()
    with ScriptedServer([expect_request(), fin()]) as server:
        with pytest.raises(trunkline.RemoteDisconnected) as caught:
            await transport.send(Request("POST", server.url, content=b"order"))
        await transport.aclose()
    assert (caught.value.request_sent, caught.value.replay) == (None, "if_idempotent")


@pytest.mark.anyio
async def test_a_url_that_the_library_would_change_is_refused() -> None:
    transport = PyreqwestTransport()
    with pytest.raises(trunkline.InvalidRequest, match="url"):
        await transport.send(Request("GET", "http://127.0.0.1/a/../b"))
    await transport.aclose()


@pytest.mark.anyio
async def test_an_upload_that_is_cancelled_closes_the_callers_generator() -> None:
    closed = False

    async def produce() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"some"
            await anyio.sleep_forever()
        finally:
            closed = True

    transport = PyreqwestTransport()
    with ScriptedServer(serve(PAGE)) as server:
        with anyio.move_on_after(0.1) as scope:
            await transport.send(Request("POST", server.url, content=produce()))
        assert scope.cancelled_caught
        assert closed
        assert transport.snapshot().active == 0
        await transport.aclose()


@pytest.mark.anyio
async def test_warming_opens_nothing_and_says_so() -> None:
    transport = PyreqwestTransport()
    assert await transport.warm("http://127.0.0.1:9/") == 0
    with pytest.raises(trunkline.InvalidRequest):
        await transport.warm("http://127.0.0.1:9/", 0)
    await transport.aclose()
    with pytest.raises(trunkline.TransportClosed):
        await transport.warm("http://127.0.0.1:9/")
