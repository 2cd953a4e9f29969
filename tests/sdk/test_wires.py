"""What an SDK asks of its connection arrives: time-outs, proxies, headers, URLs to the byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.sdk._sdks import Google, OpenAI, Sdk, need, original

import trunkline
from trunkline import Limits, Tls, TransportConfig
from trunkline.testing import LLMServer
from trunkline.testing._script import (
    close,
    expect_request,
    pause,
    response,
    serve,
    small_buffers,
    tunnel,
)
from trunkline.testing._servers import ScriptedServer

pytestmark = pytest.mark.anyio

Open = Callable[..., tuple[Any, Any]]

PATIENCE = 10.0
"""Seconds after which a time-out that did not come is known not to come."""

SILENT = [expect_request(), pause(PATIENCE), close()]


# -- time-outs -------------------------------------------------------------------------------------


def short(sdk: Sdk) -> Any:
    """A time-out for the answer; Google's is one for all, and a busy machine has to connect."""
    return 0.5 if isinstance(sdk, Google) else sdk.library.Timeout(5, read=0.05)


async def test_an_answer_that_does_not_come_is_the_sdks_time_out(sdk: Sdk, opened: Open) -> None:
    with ScriptedServer(SILENT) as server:
        client, http = opened(server.url, timeout=short(sdk))
        with pytest.raises(sdk.timeout_error) as caught:
            await sdk.ask(client, "one")
        error = original(caught.value)
        assert isinstance(error, trunkline.HeadersTimeout)
        assert (error.request_sent, error.replay != "safe") == (True, True)
        assert (len(server.requests), http.transport.snapshot().open) == (1, 0)


def test_an_answer_that_does_not_come_is_the_sync_sdks_time_out(
    sdk: Sdk, opened_sync: Open
) -> None:
    with ScriptedServer(SILENT) as server:
        client, _ = opened_sync(server.url, timeout=short(sdk))
        with pytest.raises(sdk.timeout_error) as caught:
            sdk.ask_sync(client, "one")
        assert isinstance(original(caught.value), trunkline.HeadersTimeout)
        assert len(server.requests) == 1


async def test_each_time_out_of_the_client_arrives(sdk: Sdk, backend: str) -> None:
    skip_where_the_clients_time_outs_are_overruled(sdk)
    with deaf_port() as port:
        error = await timed_out(sdk, backend, f"http://127.0.0.1:{port}", "hi", connect=0.05)
        assert isinstance(error, trunkline.ConnectTimeout)
    with ScriptedServer([small_buffers(), pause(PATIENCE), close()]) as server:
        error = await timed_out(sdk, backend, server.url, "hi " * 4_000_000, write=0.05)
        assert isinstance(error, trunkline.WriteTimeout)


def skip_where_the_clients_time_outs_are_overruled(sdk: Sdk) -> None:
    if isinstance(sdk, Google):
        pytest.skip("google-genai sends its own single time-out with each request, or none")


async def timed_out(
    sdk: Sdk, backend: str, url: str, text: str, **limit: float
) -> trunkline.TransportError:
    timeout = sdk.library.Timeout(None, **limit)
    async with sdk.adapter.AsyncClient(TransportConfig(backend=backend), timeout=timeout) as http:
        with anyio.fail_after(PATIENCE), pytest.raises(sdk.timeout_error) as caught:
            await sdk.ask(sdk.open(url, http), text)
    return original(caught.value)


@contextmanager
def deaf_port() -> Generator[int]:
    """A port whose queue of connections is full: the kernel drops each SYN to it."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
        yield port
        for caller in callers:
            caller.close()


async def test_a_full_pool_is_the_sdks_time_out_and_safe_to_send_again(
    sdk: Sdk, backend: str, server: LLMServer
) -> None:
    skip_where_the_clients_time_outs_are_overruled(sdk)
    config = TransportConfig(
        backend=backend, limits=Limits(max_connections=1), warn_utilization=None
    )
    options = {"timeout": sdk.library.Timeout(5, pool=0.05), "headers": {"x-token-delay": "0.01"}}
    async with sdk.adapter.AsyncClient(config, **options) as http:
        client = sdk.open(server.url, http)
        streaming = asyncio.create_task(drained(sdk, client))
        await server.wait_until(lambda counts: counts.requests == 1)
        with anyio.fail_after(PATIENCE), pytest.raises(sdk.timeout_error) as caught:
            await sdk.ask(client, "one")
        streaming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await streaming
    error = original(caught.value)
    assert isinstance(error, trunkline.PoolTimeout)
    assert error.replay == "safe"
    assert server.requests == 1


async def drained(sdk: Sdk, client: Any) -> None:
    async with aclosing(sdk.stream(client, "one", 10_000)) as pieces:
        async for _ in pieces:
            """Nothing else is wanted."""


# -- proxies ---------------------------------------------------------------------------------------


async def test_a_proxy_is_gone_through(sdk: Sdk, backend: str) -> None:
    with LLMServer(tls=True) as server, ScriptedServer([tunnel("user:word")]) as proxy:
        tls = Tls(ca_file=Path(server.ca_file or ""))
        config = TransportConfig(
            backend=backend, tls=tls, proxy=f"http://user:word@127.0.0.1:{proxy.port}"
        )
        async with sdk.adapter.AsyncClient(config) as http:
            client = sdk.open(server.url, http)
            assert await sdk.ask(client, "one two") == "one two one two"
            assert await sdk.ask(client, "one two") == "one two one two"
        assert (server.completed, server.connections, proxy.connections) == (2, 1, 1)


async def test_the_environments_proxy_is_gone_through_unless_the_host_is_exempt(
    sdk: Sdk, opened: Open, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = response(200, sdk.answer(), ("Content-Type", "application/json"))
    with ScriptedServer(serve(answer)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        client, _ = opened("http://model.test")
        assert await sdk.ask(client, "hi")
        assert proxy.requests[0].target.startswith("http://model.test/v1/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        client, _ = opened(server.url)
        assert await sdk.ask(client, "hi")
        assert (len(proxy.requests), server.requests) == (1, 1)


# -- HTTP/2 ----------------------------------------------------------------------------------------


async def test_over_http2_many_calls_share_a_connection_and_one_that_leaves_costs_a_stream(
    sdk: Sdk, backend: str
) -> None:
    with LLMServer(tls=True, http2=True) as server:
        tls = Tls(ca_file=Path(server.ca_file or ""))
        config = TransportConfig(backend=backend, http2=True, tls=tls)
        async with sdk.adapter.AsyncClient(config) as http:
            client = sdk.open(server.url, http)
            await sdk.ask(client, "one")
            answers = await asyncio.gather(*(sdk.ask(client, f"n{n}", 1) for n in range(20)))
            assert answers == [f"n{n}" for n in range(20)]
            http.headers["x-token-delay"] = "0.01"
            leaving = asyncio.create_task(drained(sdk, client))
            await server.wait_until(lambda counts: counts.requests == 22)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await server.wait_cancelled()
            assert await sdk.ask(client, "one", 1)
        assert (server.completed, server.cancelled, server.connections) == (22, 1, 1)


# -- to the byte -----------------------------------------------------------------------------------


async def test_the_target_is_sent_as_the_sdk_makes_it(backend: str, server: LLMServer) -> None:
    openai = need("openai")
    path = "/echo/a%2Cb%20c?sig=x%2Cy%2B&empty=&z=~"
    targets: list[str] = []
    for family in ("httpx2", "httpx"):
        sdk = OpenAI(family)
        config = TransportConfig(backend=backend)
        for http in (sdk.library.AsyncClient(), sdk.adapter.AsyncClient(config)):
            async with http:
                client = openai.AsyncOpenAI(
                    base_url=f"{server.url}/a%2Cb/", api_key="key", http_client=http, max_retries=0
                )
                with pytest.raises(openai.NotFoundError):
                    await client.get(path, cast_to=object)
            targets.append(server.calls[-1].target)
    assert targets == ["/a%2Cb/echo/a%2Cb%20c?sig=x%2Cy%2B&empty=&z=~"] * 4


async def test_the_headers_are_those_that_the_library_itself_would_send(
    sdk: Sdk, backend: str, server: LLMServer
) -> None:
    sent: list[dict[str, str]] = []
    config = TransportConfig(backend=backend)
    for http in (sdk.library.AsyncClient(), sdk.adapter.AsyncClient(config)):
        async with http:
            await sdk.ask(sdk.open(server.url, http), "one")
        headers = dict(server.calls[-1].headers)
        for name in ("connection", "x-stainless-read-timeout"):  # What the client was made with.
            headers.pop(name, None)
        sent.append(headers)
    assert sent[1] == sent[0]


async def test_the_request_id_of_the_server_arrives(opened: Open, sdk: Sdk) -> None:
    """Response headers are the SDK's to read, whatever their case."""
    head = ("X-Request-Id", "req-1"), ("Request-Id", "req-1"), ("X-Twice", "a"), ("X-Twice", "b")
    answer = response(200, sdk.answer(), ("Content-Type", "application/json"), *head)
    with ScriptedServer(serve(answer)) as server:
        _, http = opened(server.url)
        got = await http.get(f"{server.url}/")
        assert got.headers.get_list("x-twice") == ["a", "b"]
        assert got.headers["request-id"] == "req-1"
        assert (b"X-Twice", b"b") in got.headers.raw
        assert (got.http_version, got.reason_phrase) == ("HTTP/1.1", "OK")
