"""How many connections there are, who gets the next one, and who is turned away."""

from __future__ import annotations

import pytest

from trunkline._config import Limits, Timeouts
from trunkline._errors import PoolFull, PoolTimeout
from trunkline.testing._conformance._base import Call, Conformance, Rig, needs
from trunkline.testing._conformance._helpers import closed_port, until
from trunkline.testing._script import expect_request, response, send, serve, wait
from trunkline.testing._servers import ScriptedServer

PAGE = response(200, b"page")
GATED = [expect_request(), wait("go"), send(PAGE), *serve(PAGE)]


class LimitsHold(Conformance):
    promise = 8

    async def test_max_connections_is_never_exceeded(self) -> None:
        async with self.rig(GATED, limits=Limits(max_connections=3)) as rig:
            calls = [rig.begin_fetch() for _ in range(12)]
            await rig.until_received(3)
            await until(lambda: rig.transport.snapshot().waiting == 9)
            assert rig.server.connections == 3

            rig.server.open("go")
            for call in calls:
                await call.result()
            assert rig.server.connections == 3
            assert len(rig.server.requests) == 12

    async def test_max_connections_holds_over_all_hosts(self) -> None:
        async with self.rig(GATED, limits=Limits(max_connections=2)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                here = [rig.begin_fetch() for _ in range(2)]
                await rig.until_received(2)
                there = rig.start(lambda: rig.fetch_url(other.url))
                await until(lambda: rig.transport.snapshot().waiting == 1)
                assert other.connections == 0

                rig.server.open("go")
                for call in (*here, there):
                    await call.result()
                assert other.connections == 1

    @needs("pooled")
    async def test_an_idle_connection_makes_room_for_another_host(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                await rig.fetch()
                await rig.fetch_url(other.url)

                await rig.until_client_closed()
                now = rig.transport.snapshot()
                assert (now.open, now.closed) == (1, {"evicted": 1})

    @needs("pooled")
    async def test_the_connection_that_was_idle_longest_makes_room(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=2)) as rig:
            with ScriptedServer(serve(PAGE)) as second, ScriptedServer(serve(PAGE)) as third:
                for url in (rig.url(), second.url, third.url):
                    await rig.fetch_url(url)

                await rig.until_client_closed()
                await rig.fetch_url(second.url)
                assert second.connections == 1

    @needs("pooled")
    async def test_max_connections_per_host_is_never_exceeded(self) -> None:
        limits = Limits(max_connections_per_host=2)
        async with self.rig(GATED, limits=limits) as rig:
            calls = [rig.begin_fetch() for _ in range(6)]
            await until(lambda: rig.transport.snapshot().waiting == 4)
            await rig.until_received(2)

            rig.server.open("go")
            for call in calls:
                await call.result()
            assert rig.server.connections == 2

    @needs("pooled")
    async def test_a_host_at_its_limit_does_not_hold_up_another(self) -> None:
        limits = Limits(max_connections_per_host=1)
        async with self.rig(GATED, limits=limits) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                stuck = [rig.begin_fetch() for _ in range(3)]
                await until(lambda: rig.transport.snapshot().waiting == 2)

                assert (await rig.fetch_url(other.url)).content == b"page"
                rig.server.open("go")
                for call in stuck:
                    await call.result()

    # -- the queue ---------------------------------------------------------------------------------

    async def test_calls_are_served_in_the_order_in_which_they_came(self) -> None:
        async with self.rig(GATED, limits=Limits(max_connections=1)) as rig:
            calls = [await _queue(rig, number) for number in range(6)]
            rig.server.open("go")
            for call in calls:
                await call.result()

            targets = [request.target for request in rig.server.requests]
            assert targets == [f"/{number}" for number in range(6)]

    async def test_a_newcomer_does_not_overtake_a_waiting_call(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            held = await rig.send("GET", "/held")
            waiting = await _queue(rig, 1, "/waiting")
            await held.aread()  # frees the connection; the waiting call has not run yet
            await rig.fetch("GET", "/newcomer")
            await waiting.result()

            targets = [request.target for request in rig.server.requests]
            assert targets == ["/held", "/waiting", "/newcomer"]

    async def test_a_freed_connection_goes_to_the_waiting_call(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            held = await rig.send()
            waiting = await _queue(rig, 1)
            await held.aread()

            await waiting.result()
            assert (rig.server.connections, len(rig.server.requests)) == (1, 2)

    async def test_the_slot_of_an_aborted_exchange_goes_to_the_waiting_call(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            held = await rig.send()
            waiting = await _queue(rig, 1)
            await held.aclose()

            assert (await waiting.result()).content == b"page"
            # A library may read what has come already, and use the connection again.
            assert rig.server.connections == 2 or not self.capabilities().pooled

    async def test_the_slot_of_a_failed_connection_attempt_goes_to_the_waiting_call(self) -> None:
        limits = Limits(max_connections=1)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            refused = rig.start(lambda: rig.fetch_url(f"http://127.0.0.1:{closed_port()}/"))
            waiting = rig.begin_fetch()

            await refused.failure()
            assert (await waiting.result()).content == b"page"

    # -- turned away -------------------------------------------------------------------------------

    async def test_a_call_waits_no_longer_than_the_pool_timeout(self) -> None:
        timeouts = Timeouts(pool=0.1)
        async with self.rig(
            serve(PAGE), limits=Limits(max_connections=1), timeouts=timeouts
        ) as rig:
            held = await rig.send()
            with pytest.raises(PoolTimeout) as caught:
                await rig.fetch()

            error = caught.value
            assert (error.phase, error.replay, error.attempts) == ("pool", "safe", 0)
            assert (error.request_sent, error.bytes_sent) == (False, 0)
            assert error.elapsed is not None
            assert 0.098 <= error.elapsed < 5.0
            await held.aclose()

    async def test_a_call_that_gave_up_waiting_takes_no_slot(self) -> None:
        timeouts = Timeouts(pool=0.1)
        async with self.rig(
            serve(PAGE), limits=Limits(max_connections=1), timeouts=timeouts
        ) as rig:
            held = await rig.send()
            with pytest.raises(PoolTimeout):
                await rig.fetch()
            assert rig.transport.snapshot().waiting == 0
            await held.aread()

            assert (await rig.fetch()).content == b"page"
            assert rig.transport.snapshot().active == 0

    async def test_more_than_max_waiting_calls_are_refused_at_once(self) -> None:
        limits = Limits(max_connections=1, max_waiting=2)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            held = await rig.send()
            waiting = [await _queue(rig, number) for number in (1, 2)]
            with pytest.raises(PoolFull) as caught:
                await rig.fetch()

            error = caught.value
            assert (error.phase, error.replay, error.attempts) == ("pool", "safe", 0)
            assert not error.request_sent
            await held.aread()
            for call in waiting:
                await call.result()

    async def test_max_waiting_zero_turns_nobody_away_who_need_not_wait(self) -> None:
        limits = Limits(max_connections=1, max_waiting=0)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            for _ in range(3):
                await rig.fetch()
            async with await rig.send():
                with pytest.raises(PoolFull):
                    await rig.fetch()

    # -- none --------------------------------------------------------------------------------------

    async def test_none_means_no_limit(self) -> None:
        limits = Limits(max_connections=None, max_keepalive_connections=None)
        async with self.rig(GATED, limits=limits) as rig:
            calls = [rig.begin_fetch() for _ in range(120)]
            await rig.until_received(120)
            rig.server.open("go")
            for call in calls:
                await call.result()

            now = rig.transport.snapshot()
            assert (now.max_connections, now.utilization) == (None, 0.0)
            assert now.idle == 120 or not self.capabilities().pooled
            assert rig.server.connections == 120


async def _queue(rig: Rig, place: int, path: str | None = None) -> Call:
    """Begin a call that is the `place`-th to wait, or that is under way where that is 0."""
    call = rig.begin_fetch("GET", path or f"/{place}")
    if place:
        await until(lambda: rig.transport.snapshot().waiting == place)
    else:
        await rig.until_received()
    return call
