"""Calls that are begun by who gives a connection back, while their own tasks wait.

Knows asyncio's tasks, and the aiohttp backend, which can begin an exchange at once. What such a
call is promised is the conformance suite's; this is what it spares.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio
import pytest

from trunkline import AiohttpTransport, Limits, Request, Response, TransportConfig
from trunkline.testing._conformance._helpers import until
from trunkline.testing._script import expect_request, response, send, serve, wait
from trunkline.testing._servers import ScriptedServer

pytestmark = pytest.mark.anyio
T = TypeVar("T")

PAGE = response(200, b"page")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Counted(Generic[T]):
    """Awaits a coroutine, and counts how often its task was woken."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self.wakes = 0

    def __await__(self) -> Generator[Any, None, T]:
        while True:
            try:
                awaited = self._coroutine.send(None)
            except StopIteration as end:
                result: T = end.value
                return result
            yield awaited
            self.wakes += 1


async def result_of(counted: Counted[T]) -> T:
    return await counted


@asynccontextmanager
async def waiting(
    server: ScriptedServer, count: int
) -> AsyncGenerator[tuple[Response, list[Counted[Response]], list[asyncio.Task[Response]]]]:
    """An answer that holds the only connection, and `count` calls that wait for it."""
    config = TransportConfig(limits=Limits(max_connections=1))
    transport = AiohttpTransport(config)
    try:
        held = await transport.send(Request("GET", f"{server.url}/held"))
        counted = [
            Counted(transport.send(Request("GET", f"{server.url}/{number}")))
            for number in range(count)
        ]
        tasks = [asyncio.create_task(result_of(one)) for one in counted]
        await asyncio.sleep(0)
        assert transport.snapshot().waiting == count
        with anyio.fail_after(10):
            yield held, counted, tasks
    finally:
        await transport.aclose()


async def test_a_call_that_waited_is_woken_once_and_by_its_answer() -> None:
    with ScriptedServer(serve(PAGE)) as server:
        async with waiting(server, 3) as (held, counted, tasks):
            await held.aread()
            for task in tasks:
                assert await (await task).aread() == b"page"

        assert [one.wakes for one in counted] == [1, 1, 1]


async def test_its_request_is_sent_while_its_task_has_no_turn() -> None:
    script = [expect_request(), send(PAGE), expect_request(), wait("seen"), send(PAGE)]
    with ScriptedServer(script) as server:
        async with waiting(server, 1) as (held, counted, tasks):
            await held.aread()
            await until(lambda: len(server.requests) == 2)
            assert counted[0].wakes == 0
            server.open("seen")
            assert await (await tasks[0]).aread() == b"page"
