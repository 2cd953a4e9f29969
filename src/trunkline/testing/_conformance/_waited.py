"""Calls that had to wait for a connection: from when it is theirs they are as any other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from trunkline._config import Limits, Timeouts
from trunkline._errors import (
    DeadlineExceeded,
    HeadersTimeout,
    RemoteDisconnected,
    TransportClosed,
    TransportError,
)
from trunkline._events import Event
from trunkline.testing._conformance._base import Call, Conformance, Rig, needs
from trunkline.testing._conformance._helpers import info, until
from trunkline.testing._conformance._recorder import observe
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    answer,
    expect_request,
    fin,
    hold,
    pause,
    response,
    send,
    serve,
)

PAGE = response(200, b"page")
ONE = Limits(max_connections=1)
whose: ContextVar[str] = ContextVar("whose", default="nobody's")


class Waited(Conformance):
    promise = 8

    # -- deadlines ---------------------------------------------------------------------------------

    async def test_the_pool_timeout_is_over_once_it_has_a_connection(self) -> None:
        script = [answer(PAGE), expect_request(), pause(0.6), send(PAGE), *serve(PAGE)]
        async with self.rig(script, limits=ONE) as rig:
            call = await _waited(rig, timeouts=Timeouts(pool=0.3))

            assert (await call.result()).content == b"page"

    async def test_the_headers_deadline_is_that_of_any_call(self) -> None:
        script = [answer(PAGE), expect_request(), hold()]
        async with self.rig(script, limits=ONE) as rig:
            call = await _waited(rig, timeouts=Timeouts(headers=0.1))
            error = await call.failure()

            assert isinstance(error, HeadersTimeout)
            assert error.elapsed is not None
            assert error.elapsed < 5.0
            assert (error.phase, error.replay, error.attempts) == ("headers", "if_idempotent", 1)
            assert not error.response_started
            if self.capabilities().pooled:
                assert (error.request_sent, error.connection_reused) == (True, True)
            if self.capabilities().aborts:
                await rig.until_client_closed()

    async def test_the_total_deadline_goes_on(self) -> None:
        script = [answer(PAGE), expect_request(), hold()]
        async with self.rig(script, limits=ONE) as rig:
            call = await _waited(rig, timeouts=Timeouts(total=0.3))
            error = await call.failure()

            assert isinstance(error, DeadlineExceeded)
            assert error.elapsed is not None
            assert error.elapsed < 5.0
            assert (error.phase, error.replay) == ("headers", "if_idempotent")
            if self.capabilities().aborts:
                await rig.until_client_closed()

    # -- ends --------------------------------------------------------------------------------------

    @keeps(5)
    @needs("aborts")
    async def test_cancelled_when_its_request_is_sent_it_ends_its_connection(self) -> None:
        script = [answer(PAGE), expect_request(), hold()]
        async with self.rig(script, serve(PAGE), limits=ONE) as rig:
            call = await _waited(rig)
            await rig.until_received(2)
            next_one = rig.begin_fetch()
            await until(lambda: rig.transport.snapshot().waiting == 1)
            assert rig.transport.snapshot().waited == 1
            call.cancel()
            await call.done.wait()

            assert call.cancelled
            await rig.until_client_closed()
            assert (await next_one.result()).content == b"page"
            rig.expect_closed(aborted=1)

    @keeps(5)
    @needs("pooled")
    async def test_cancelled_when_it_is_served_it_sends_nothing(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send("GET", "/held")
            call = rig.begin_fetch("GET", "/cancelled")
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await held.aread()
            call.cancel()
            await call.done.wait()
            await rig.fetch("GET", "/after")

            assert [each.target for each in rig.server.requests] == ["/held", "/after"]

    @keeps(11)
    async def test_a_closed_transport_ends_it_while_it_waits_for_its_head(self) -> None:
        script = [answer(PAGE), expect_request(), hold()]
        async with self.rig(script, limits=ONE) as rig:
            call = await _waited(rig)
            await rig.until_received(2)
            await rig.transport.aclose()

            with anyio.fail_after(5.0):
                error = await call.failure()
            assert isinstance(error, TransportError)
            if self.capabilities().pooled:
                assert isinstance(error, TransportClosed)
            assert error.replay == "if_idempotent"

    @keeps(6)
    @needs("pooled")
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_a_connection_that_ends_fails_it_or_has_it_sent_again(self, method: str) -> None:
        script = [answer(PAGE), expect_request(), fin()]
        async with self.rig(script, serve(PAGE), limits=ONE) as rig:
            call = await _waited(rig, method)
            await call.done.wait()

            if method == "GET":
                answered = await call.result()
                assert (answered.content, info(answered).reused) == (b"page", False)
                return
            error = await call.failure()
            assert isinstance(error, RemoteDisconnected)
            assert (error.replay, error.connection_reused) == ("if_idempotent", True)
            assert len(rig.server.requests) == 2

    # -- what is sent ------------------------------------------------------------------------------

    @keeps(12)
    @pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
    async def test_its_body_is_sent_whole(self, size: int) -> None:
        # Young connections are treated with more care than those in steady use.
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            for number in range(12):
                call = await _waited(rig, "POST", content=bytes(size))
                await call.result()

                assert [len(each.body) for each in rig.server.requests[number * 2 + 1 :]] == [size]

    @keeps(12)
    async def test_its_body_is_produced_in_its_own_context(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            yield whose.get().encode()

        async def post() -> Any:
            whose.set("the call's")
            return await rig.fetch("POST", content=produce())

        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send()
            call = rig.start(post)
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await held.aread()
            await call.result()

            assert rig.server.requests[1].body == b"the call's"

    # -- what is told ------------------------------------------------------------------------------

    @keeps(15)
    @needs("pooled")
    async def test_its_events_are_told_in_its_own_context(self) -> None:
        told: set[str] = set()

        class Asks:
            def on_event(self, event: Event) -> None:
                told.add(whose.get())

        async def get() -> Any:
            whose.set("the call's")
            return await rig.fetch()

        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send()
            stop = observe(rig.transport, Asks())
            call = rig.start(get)
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await held.aread()
            await call.result()
            stop()

            assert told == {"the call's"}

    @keeps(15)
    async def test_its_timings_part_the_waiting_from_the_answering(self) -> None:
        script = [answer(PAGE), expect_request(), pause(0.3), send(PAGE), *serve(PAGE)]
        async with self.rig(script, limits=ONE) as rig:
            timings = (await (await _waited(rig)).result()).timings

            assert timings.queue is not None
            assert timings.wait is not None
            assert timings.total is not None
            assert timings.wait >= 0.25
            assert timings.queue <= timings.total - timings.wait


async def _waited(rig: Rig, method: str = "GET", **options: Any) -> Call:
    """A call whose turn has come, after it has waited for the only connection."""
    held = await rig.send("GET", "/held")
    call = rig.begin_fetch(method, **options)
    await until(lambda: rig.transport.snapshot().waiting == 1)
    await held.aread()
    return call
