"""The official SDKs on Trunkline: what they do all day, over both backends."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.sdk._sdks import Sdk

from trunkline.testing import LLMServer

pytestmark = pytest.mark.anyio

Open = Callable[..., tuple[Any, Any]]


async def test_twenty_questions_are_one_connection(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url)

    answers = {await sdk.ask(client, "one two") for _ in range(20)}

    assert answers == {"one two one two"}
    assert (server.requests, server.completed, server.connections) == (20, 20, 1)
    pool = http.transport.snapshot()
    assert (pool.created, pool.reused, pool.idle, pool.active) == (1, 19, 1, 0)


async def test_many_at_once_share_the_pool_and_each_gets_its_own_answer(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url)
    answers: dict[str, str] = {}

    async def ask(text: str) -> None:
        answers[text] = await sdk.ask(client, text, 1)

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(ask, f"n{number}")

    assert answers == {f"n{number}": f"n{number}" for number in range(30)}
    assert server.requests == 30
    assert http.transport.snapshot().created == server.connections <= 30


async def test_a_stream_comes_token_by_token(sdk: Sdk, opened: Open, server: LLMServer) -> None:
    client, _ = opened(server.url)

    pieces = [piece async for piece in sdk.stream(client, "one two three", 5)]

    assert pieces == ["one", " two", " three", " one", " two"]
    assert server.completed == 1


async def test_a_stream_that_was_read_leaves_its_connection_to_the_next(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url)

    for _ in range(5):
        assert len([piece async for piece in sdk.stream(client, "one two three", 5)]) == 5

    assert (server.completed, server.connections) == (5, 1)
    assert http.transport.snapshot().active == 0


async def test_a_tool_is_called_whole_and_streamed(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, _ = opened(server.url)
    expected = ("weather", {"city": "in Rome", "days": 1})

    assert await sdk.call_tool(client, "in Rome") == expected
    assert await sdk.stream_tool(client, "in Rome") == expected
    assert server.completed == 2


async def test_a_file_arrives_whole(sdk: Sdk, opened: Open, server: LLMServer) -> None:
    client, _ = opened(server.url)
    content = os.urandom(3_000_001)

    assert await sdk.upload(client, content) == hashlib.sha256(content).hexdigest()
    assert server.connections == 1


# -- refusals --------------------------------------------------------------------------------------


async def test_the_sdk_retries_a_429_on_the_same_connection(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, _ = opened(server.url, retries=2)
    server.rate_limit(2, retry_after=0.01)

    assert await sdk.ask(client, "one two") == "one two one two"
    assert (server.requests, server.completed, server.connections) == (3, 1, 1)


async def test_a_429_that_stays_is_the_sdks_own_error(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url)
    server.rate_limit(1, retry_after=0.01)

    with pytest.raises(sdk.limit_error, match="429"):
        await sdk.ask(client, "one two")
    assert server.requests == 1
    assert await sdk.ask(client, "one two")
    assert http.transport.snapshot().active == 0


# -- callers who leave -----------------------------------------------------------------------------


@pytest.mark.trunkline_may_leak
@pytest.mark.usefixtures("quick_collection")
async def test_leaving_a_stream_closes_the_socket_that_the_server_writes_to(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url, http={"headers": {"x-token-delay": "0.01"}})

    async with aclosing(sdk.stream(client, "one two", 10_000)) as pieces:
        assert await anext(pieces) == "one"
        assert (server.completed, server.cancelled) == (0, 0)
    if not sdk.closes_streams:
        await collect_what_was_dropped()

    await server.wait_cancelled()
    assert (server.completed, server.cancelled) == (0, 1)
    assert http.transport.snapshot().active == 0


async def collect_what_was_dropped() -> None:
    """A response that an SDK leaves in a cycle of generators is found, closed, and told of."""
    for _ in range(10):  # Each turn of the loop ends a generator that nobody holds.
        await anyio.lowlevel.checkpoint()
    with pytest.warns(ResourceWarning):
        gc.collect()


async def test_cancelling_the_reader_of_a_stream_closes_the_socket(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url, http={"headers": {"x-token-delay": "0.01"}})
    got_one = anyio.Event()

    async def read() -> None:
        async for _ in sdk.stream(client, "one two", 10_000):
            got_one.set()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await got_one.wait()
        group.cancel_scope.cancel()

    await server.wait_cancelled()
    assert http.transport.snapshot().active == 0


async def test_cancelling_a_call_closes_the_socket(
    sdk: Sdk, opened: Open, server: LLMServer
) -> None:
    client, http = opened(server.url, http={"headers": {"x-token-delay": "60"}})

    async with anyio.create_task_group() as group:
        group.start_soon(sdk.ask, client, "one two")
        await server.wait_until(lambda counts: counts.requests == 1)
        group.cancel_scope.cancel()

    await server.wait_cancelled()
    pool = http.transport.snapshot()
    assert (pool.open, pool.active, pool.waiting) == (0, 0, 0)
