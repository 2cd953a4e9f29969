"""Calls that are begun by who gives a connection back, while their own tasks wait.

Knows asyncio's tasks, and the aiohttp backend, which can begin an exchange at once. What such a
call is promised is the conformance suite's; this is what it spares, and what is left to its task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

import anyio
import pytest

from trunkline import (
    AiohttpTransport,
    Limits,
    RemoteDisconnected,
    Request,
    Response,
    Timeouts,
    TransportClosed,
    TransportConfig,
)
from trunkline.dns import Resolver
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.pool._home import Home
from trunkline.pool._runtime import make_runtime
from trunkline.pool._watch import Steps
from trunkline.testing._conformance._helpers import until
from trunkline.testing._script import expect_request, fin, hold, response, send, serve, wait
from trunkline.testing._servers import ScriptedServer
from trunkline_aiohttp._exchange import AiohttpConnection
from trunkline_aiohttp._protocol import Handler

pytestmark = pytest.mark.anyio
T = TypeVar("T")

PAGE = response(200, b"page")


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


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
async def one_connection(**options: Any) -> AsyncGenerator[AiohttpTransport]:
    transport = AiohttpTransport(TransportConfig(limits=Limits(max_connections=1), **options))
    try:
        with anyio.fail_after(10):
            yield transport
    finally:
        await transport.aclose()


def home_of(transport: AiohttpTransport) -> Home:
    return transport._homes[asyncio.get_running_loop()]  # pyright: ignore[reportPrivateUsage]


async def queue(
    transport: AiohttpTransport, *urls: str
) -> tuple[list[Counted[Response]], list[asyncio.Task[Response]]]:
    """Calls that begin to wait, one for each of `urls`."""
    waited = transport.snapshot().waiting
    counted = [Counted(transport.send(Request("GET", url))) for url in urls]
    tasks = [asyncio.create_task(result_of(one)) for one in counted]
    await asyncio.sleep(0)
    assert transport.snapshot().waiting == waited + len(urls)
    return counted, tasks


# --- what it spares


async def test_a_call_that_waited_is_woken_once_and_by_its_answer() -> None:
    with ScriptedServer(serve(PAGE)) as server:
        async with one_connection() as transport:
            held = await transport.send(Request("GET", server.url))
            counted, tasks = await queue(transport, *[server.url] * 3)
            await held.aread()
            for task in tasks:
                assert await (await task).aread() == b"page"

    assert [one.wakes for one in counted] == [1, 1, 1]


async def test_where_calls_to_two_hosts_wait_those_that_need_not_connect_are_woken_once() -> None:
    with ScriptedServer(serve(PAGE)) as server, ScriptedServer(serve(PAGE)) as other:
        async with one_connection() as transport:
            held = await transport.send(Request("GET", server.url))
            counted, tasks = await queue(transport, server.url, server.url, other.url)
            await held.aread()
            for task in tasks:
                assert await (await task).aread() == b"page"

    assert [one.wakes for one in counted[:2]] == [1, 1]


async def test_its_request_is_sent_while_its_task_has_no_turn() -> None:
    script = [expect_request(), send(PAGE), expect_request(), wait("seen"), send(PAGE)]
    with ScriptedServer(script) as server:
        async with one_connection() as transport:
            held = await transport.send(Request("GET", server.url))
            counted, tasks = await queue(transport, server.url)
            await held.aread()
            await until(lambda: len(server.requests) == 2)
            assert counted[0].wakes == 0
            server.open("seen")
            assert await (await tasks[0]).aread() == b"page"


# --- what is left behind


@pytest.mark.parametrize("timeouts", [Timeouts(headers=60.0), Timeouts(total=60.0), Timeouts()])
async def test_nothing_watches_the_deadline_of_a_call_that_has_been_answered(
    timeouts: Timeouts,
) -> None:
    with ScriptedServer(serve(PAGE)) as server:
        async with one_connection(timeouts=timeouts) as transport:
            held = await transport.send(Request("GET", server.url))
            _, tasks = await queue(transport, *[server.url] * 3)
            await held.aread()
            for task in tasks:
                await (await task).aread()

            assert cast("Any", home_of(transport).runtime).scopes == set()


async def test_a_call_that_was_thrown_away_when_it_was_served_is_not_begun() -> None:
    with ScriptedServer(serve(PAGE)) as server:
        async with one_connection() as transport:
            held = await transport.send(Request("GET", f"{server.url}/held"))
            call = transport.send(Request("GET", f"{server.url}/thrown-away"))
            call.send(None)
            _, tasks = await queue(transport, f"{server.url}/next")
            await held.aread()
            call.close()

            assert await (await tasks[0]).aread() == b"page"

    assert [each.target for each in server.requests] == ["/held", "/next"]


async def test_a_transport_that_is_closed_in_the_round_in_which_a_connection_ends_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose = Handler.connection_lost

    def lose_and_close(handler: Handler, error: BaseException | None) -> None:
        lose(handler, error)
        pool.close()

    script = [expect_request(), send(PAGE), expect_request(), wait("end"), fin()]
    with ScriptedServer(script) as server:
        async with one_connection() as transport:
            held = await transport.send(Request("GET", server.url))
            _, tasks = await queue(transport, server.url)
            await held.aread()
            await until(lambda: len(server.requests) == 2)
            pool = home_of(transport).pool
            monkeypatch.setattr(Handler, "connection_lost", lose_and_close)
            server.open("end")

            with pytest.raises(TransportClosed):
                await tasks[0]


# --- what is left to its task


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[AiohttpConnection]:
    """A connection that has carried one exchange."""
    config = TransportConfig()
    resolver = Resolver(config.dns, trio=False)
    dialer = AiohttpTransport(config).make_dialer(resolver)
    request = Request("GET", url)
    connection = cast("Any", await dialer.connect(request.origin, Steps(None)))
    try:
        exchange = await connection.exchange(request, attempt())
        await exchange.read()
        yield connection
    finally:
        connection.close()
        await dialer.aclose()
        await resolver.aclose()


def attempt() -> ExchangeAttempt:
    return ExchangeAttempt(make_runtime(), Timeouts(), asyncio.get_running_loop().time())


async def test_a_post_on_a_young_connection_is_written_by_its_task_head_and_body_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bytes] = []
    write = AiohttpConnection.write

    def tell(connection: AiohttpConnection, request: Request, body: bytes) -> int:
        written.append(body)
        return write(connection, request, body)

    with ScriptedServer(serve(PAGE)) as server:
        async with connected(server.url) as connection:
            monkeypatch.setattr(AiohttpConnection, "write", tell)
            exchange = connection.begin(Request("POST", server.url, content=b"body"), attempt())
            assert written == []

            await exchange.answer()

    assert (written, bytes(server.requests[1].body)) == ([b""], b"body")


@pytest.mark.parametrize("size", [1, 3_000_000])
async def test_a_connection_that_ends_before_its_task_has_written_takes_nothing(size: int) -> None:
    with ScriptedServer([expect_request(), send(PAGE), hold()]) as server:
        async with connected(server.url) as connection:
            call = attempt()
            exchange = connection.begin(Request("POST", server.url, content=bytes(size)), call)
            connection.transport.abort()

            with pytest.raises(RemoteDisconnected):
                await exchange.answer()

    assert (call.bytes_sent, call.response_started) == (0, False)


async def test_what_comes_before_its_task_has_written_is_no_answer() -> None:
    with ScriptedServer([expect_request(), send(PAGE), wait("go"), send(PAGE), hold()]) as server:
        async with connected(server.url) as connection:
            exchange = connection.begin(Request("POST", server.url, content=b"body"), attempt())
            server.open("go")
            await until(connection.transport.is_closing)

            with pytest.raises(RemoteDisconnected):
                await exchange.answer()


async def test_a_request_on_a_connection_that_is_gone_is_not_written() -> None:
    with ScriptedServer([expect_request(), send(PAGE), fin()]) as server:
        async with connected(server.url) as connection:
            await until(lambda: connection.protocol.transport is None)
            call = attempt()
            exchange = connection.begin(Request("GET", server.url), call)
            assert not exchange.wake(asyncio.get_running_loop().create_future())

            with pytest.raises(RemoteDisconnected):
                await exchange.answer()

    assert (call.bytes_sent, call.response_started) == (0, False)
