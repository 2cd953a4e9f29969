"""Calls that are cancelled, at every point: nothing is left, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import anyio
import pytest

from trunkline._config import Limits
from trunkline.testing._conformance._base import PATIENCE, Call, Conformance, Rig, needs
from trunkline.testing._conformance._helpers import counts, unanswering_port, until
from trunkline.testing._script import (
    drain,
    expect_head,
    expect_request,
    hold,
    response,
    send,
    serve,
    small_buffers,
    wait,
)

PAGE = response(200, b"page")
ONE = Limits(max_connections=1)


class Cancelling(Conformance):
    promise = 5

    async def test_cancelled_while_waiting_for_a_connection(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send()
            call = rig.begin_fetch()
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await _cancel(call)

            assert rig.transport.snapshot().waiting == 0
            await held.aread()
            await _serves(rig)

    @needs("aborts")
    async def test_cancelled_while_connecting(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            with unanswering_port() as port:
                call = rig.start(lambda: rig.fetch_url(f"http://127.0.0.1:{port}/"))
                await until(lambda: rig.transport.snapshot().connecting == 1)
                await _cancel(call)

            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            await _serves(rig)

    @needs("aborts")
    async def test_cancelled_while_shaking_hands(self) -> None:
        async with self.rig([hold()], serve(PAGE), limits=ONE) as rig:
            call = rig.start(lambda: rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/"))
            await until(lambda: rig.server.connections == 1)
            await anyio.sleep(0.02)
            await _cancel(call)

            await rig.until_client_closed()
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            await _serves(rig)

    @needs("aborts")
    async def test_cancelled_while_the_body_waits_for_the_server(self) -> None:
        # A reset does not get past a full window (RFC 9293 section 3.10.7.4): it is read after all.
        script = [small_buffers(), expect_head(), wait("cancelled"), drain()]
        async with self.rig(script, limits=ONE) as rig:
            call = rig.begin_fetch("POST", content=bytes(64 * 1024 * 1024))
            await rig.until_received()
            await anyio.sleep(0.1)
            await _cancel(call)
            rig.server.open("cancelled")

            await rig.until_client_closed()
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)

    async def test_cancelled_while_the_server_waits_for_the_body(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            yield b"first"
            await anyio.sleep_forever()

        async with self.rig([expect_request()], serve(PAGE), limits=ONE) as rig:
            call = rig.begin_fetch("POST", content=produce())
            await rig.until_received()
            await _cancel(call)

            await rig.until_client_closed()
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            await _serves(rig)

    @needs("aborts")
    async def test_cancelled_while_waiting_for_the_head(self) -> None:
        async with self.rig([expect_request(), hold()], serve(PAGE), limits=ONE) as rig:
            call = rig.begin_fetch()
            await rig.until_received()
            await _cancel(call)

            await rig.until_client_closed()
            assert rig.transport.snapshot().closed == {"aborted": 1}
            await _serves(rig)

    async def test_cancelled_while_reading_the_body(self) -> None:
        script = [expect_request(), send(PAGE[:-1]), hold()]
        async with self.rig(script, serve(PAGE), limits=ONE) as rig:
            answered = await rig.send()
            with anyio.move_on_after(0.05) as scope:
                await answered.aread()

            assert scope.cancelled_caught
            await rig.until_client_closed()
            assert answered.is_closed
            if self.capabilities().pooled:
                assert rig.transport.snapshot().closed == {"aborted": 1}
            await _serves(rig)

    async def test_cancelled_before_it_began(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await rig.fetch()

            assert scope.cancelled_caught
            now = rig.transport.snapshot()
            assert (now.active, now.connecting, now.waiting) == (0, 0, 0)
            await _serves(rig)

    # -- the others --------------------------------------------------------------------------------

    async def test_a_cancelled_call_disturbs_no_other(self) -> None:
        script = [expect_request(), send(PAGE[:-2]), wait("rest"), send(PAGE[-2:]), *serve(PAGE)]
        async with self.rig(script) as rig:
            bystander = await rig.send()
            call = rig.begin_fetch()
            await rig.until_received(2)
            await _cancel(call)
            rig.server.open("rest")

            assert await bystander.aread() == b"page"
            await _serves(rig)
            rig.expect_closed(aborted=1)
            assert rig.transport.snapshot().idle == 1 or not self.capabilities().pooled

    async def test_a_cancelled_waiting_call_hands_its_connection_on(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send()
            first, second = rig.begin_fetch(), rig.begin_fetch()
            await until(lambda: rig.transport.snapshot().waiting == 2)
            # The connection comes free for the first in the very moment in which it is cancelled.
            await held.aread()
            first.cancel()

            assert (await second.result()).content == b"page"
            await _serves(rig)
            assert counts(rig.transport.snapshot())[3:] == (0, 0)

    async def test_the_others_move_up_when_a_waiting_call_is_cancelled(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send("GET", "/0")
            calls: list[Call] = []
            for number in (1, 2, 3):
                calls.append(rig.begin_fetch("GET", f"/{number}"))
                await until(lambda: rig.transport.snapshot().waiting == len(calls))
            await _cancel(calls[1])
            await held.aread()
            for call in (calls[0], calls[2]):
                await call.result()

            assert [each.target for each in rig.server.requests] == ["/0", "/1", "/3"]

    # -- ways to cancel ----------------------------------------------------------------------------

    async def test_cancelled_twice(self) -> None:
        async with self.rig([expect_request(), hold()], serve(PAGE), limits=ONE) as rig:
            call = rig.begin_fetch()
            await rig.until_received()
            with anyio.CancelScope() as outer, anyio.CancelScope() as inner:
                call.cancel()
                inner.cancel()
                outer.cancel()
                await rig.fetch()
            await call.done.wait()

            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            await _serves(rig)

    @needs("aborts")
    async def test_a_task_of_asyncio_may_be_cancelled_twice(self, anyio_backend_name: str) -> None:
        if anyio_backend_name != "asyncio":
            pytest.skip("this is asyncio's own way to cancel")
        async with self.rig([expect_request(), hold()], serve(PAGE), limits=ONE) as rig:
            task = asyncio.ensure_future(rig.fetch())
            await rig.until_received()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            await rig.until_client_closed()
            await _serves(rig)

    @needs("aborts")
    async def test_a_timeout_of_asyncio_stays_a_timeout(self, anyio_backend_name: str) -> None:
        if anyio_backend_name != "asyncio":
            pytest.skip("this is asyncio's own way to cancel")
        async with self.rig([expect_request(), hold()], serve(PAGE), limits=ONE) as rig:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.1):
                    await rig.fetch()

            assert type(caught.value) is TimeoutError
            await rig.until_client_closed()
            await _serves(rig)

    async def test_a_deadline_of_the_callers_stays_his(self) -> None:
        async with self.rig([expect_request(), hold()], serve(PAGE), limits=ONE) as rig:
            with pytest.raises(TimeoutError) as caught:
                with anyio.fail_after(0.1):
                    await rig.fetch()

            assert type(caught.value) is TimeoutError
            await _serves(rig)

    # -- storms ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("served", ["plain", "tls"])
    async def test_a_storm_of_cancelled_calls_leaves_nothing(self, served: str) -> None:
        most_idle = {"max_keepalive_connections": 8} if self.capabilities().pooled else {}
        limits = Limits(max_connections=8, **most_idle)
        slow = serve(lambda request: response(200, request.target.encode(), framing="chunked"))
        open_rig = self.rig if served == "plain" else self.secure_rig
        async with open_rig(slow, limits=limits) as rig:
            await _storm(rig, times=200, at_once=40)
            assert counts(rig.transport.snapshot())[3:] == (0, 0)
            assert rig.transport.snapshot().active == 0

            calls = [rig.begin_fetch("GET", f"/good/{number}") for number in range(20)]
            for number, call in enumerate(calls):
                assert (await call.result()).content == f"/good/{number}".encode()
            now = rig.transport.snapshot()
            assert (now.active, now.connecting, now.waiting) == (0, 0, 0)
            assert now.created == now.open + sum(now.closed.values())


async def _cancel(call: Call) -> None:
    call.cancel()
    with anyio.fail_after(5.0):
        await call.done.wait()
    assert call.cancelled, f"the call did not end by being cancelled: {call.error!r}"


async def _serves(rig: Rig) -> None:
    """The transport is as good as new."""
    with anyio.fail_after(PATIENCE):
        assert (await rig.fetch("GET", "/after")).status_code == 200
    assert rig.transport.snapshot().active == 0


async def _storm(rig: Rig, *, times: int, at_once: int) -> None:
    """Calls that are cancelled at a random moment, or answered before it."""
    chance = random.Random(20)
    limiter = anyio.CapacityLimiter(at_once)

    async def one(number: int, seconds: float) -> None:
        async with limiter:
            with anyio.move_on_after(seconds):
                answered = await rig.send("GET", f"/{number}")
                assert await answered.aread() == f"/{number}".encode()

    async with anyio.create_task_group() as group:
        for number in range(times):
            group.start_soon(one, number, chance.expovariate(1 / 0.005))
