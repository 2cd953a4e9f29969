"""What the pool says of itself: exact at each moment; and what a response says of its exchange."""

from __future__ import annotations

import anyio

from trunkline._config import Limits
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import counts, info, until
from trunkline.testing._script import expect_request, pause, response, send, serve, wait
from trunkline.testing._servers import ScriptedServer

PAGE = response(200, b"page")
GATED = [expect_request(), wait("head"), send(PAGE[:-4]), wait("body"), send(PAGE[-4:]), *serve()]


class Snapshots(Conformance):
    promise = 15

    async def test_a_new_transport_has_opened_nothing(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=7)) as rig:
            now = rig.transport.snapshot()

            assert counts(now) == (0, 0, 0, 0, 0)
            assert (now.created, now.reused, now.closed, now.origins) == (0, 0, {}, {})
            assert (now.max_connections, now.utilization) == (7, 0.0)

    @needs("pooled")
    async def test_the_snapshot_follows_a_call_from_moment_to_moment(self) -> None:
        async with self.rig(GATED) as rig:
            call = rig.begin()
            await rig.until_received()
            assert counts(rig.transport.snapshot()) == (1, 1, 0, 0, 0)

            rig.server.open("head")
            answered = await call.result()
            assert counts(rig.transport.snapshot()) == (1, 1, 0, 0, 0)

            rig.server.open("body")
            await answered.aread()
            assert counts(rig.transport.snapshot()) == (1, 0, 1, 0, 0)

    @needs("pooled")
    async def test_a_connection_being_opened_is_counted(self) -> None:
        async with self.rig([wait("never")], limits=Limits(max_connections=2)) as rig:
            call = rig.start(lambda: rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/"))
            await until(lambda: rig.transport.snapshot().connecting == 1)

            now = rig.transport.snapshot()
            assert counts(now) == (0, 0, 0, 1, 0)
            assert (now.created, now.utilization) == (0, 0.5)
            call.cancel()
            await call.done.wait()
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)

    async def test_calls_that_wait_are_counted(self) -> None:
        async with self.rig(GATED, limits=Limits(max_connections=1)) as rig:
            calls = [rig.begin() for _ in range(3)]
            await rig.until_received()

            assert counts(rig.transport.snapshot()) == (1, 1, 0, 0, 2)
            for call in calls:
                call.cancel()
            for call in calls:
                await call.done.wait()
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)

    async def test_calls_that_had_to_wait_are_summed_up(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            await rig.fetch()
            held = await rig.send()
            waiting = [rig.begin_fetch() for _ in range(2)]
            await until(lambda: rig.transport.snapshot().waiting == 2)
            await anyio.sleep(0.05)
            await held.aread()
            for call in waiting:
                await call.result()

            now = rig.transport.snapshot()
            assert now.waited == 2
            assert 0.04 <= now.wait_max <= now.wait_total < 10.0
            assert now.wait_total >= 2 * 0.04

    @needs("pooled")
    async def test_every_connection_is_accounted_for(self) -> None:
        limits = Limits(max_keepalive_connections=1)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            answers = [await rig.send() for _ in range(3)]
            await answers[0].aclose()
            await answers[1].aread()
            await answers[2].aread()
            await rig.fetch()

            now = rig.transport.snapshot()
            assert (now.created, now.open, now.reused) == (3, 1, 1)
            assert now.closed == {"aborted": 1, "surplus": 1}
            assert rig.server.connections == 3

    @needs("pooled")
    async def test_origins_are_told_apart(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                async with await rig.send():
                    await rig.fetch_url(other.url)

                    origins = rig.transport.snapshot().origins
                    assert set(origins) == {rig.server.url, other.url}
                    here, there = origins[rig.server.url], origins[other.url]
                    assert (here.open, here.active, here.idle, here.exchanges) == (1, 1, 0, 1)
                    assert (there.open, there.active, there.idle, there.exchanges) == (1, 0, 1, 0)

    async def test_an_old_snapshot_does_not_change(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            before = rig.transport.snapshot()
            await rig.fetch()

            assert counts(before) == (0, 0, 0, 0, 0)
            assert (before.created, before.origins) == (0, {})

    # -- what a response says ----------------------------------------------------------------------

    @needs("pooled")
    async def test_a_response_says_which_connection_it_came_on(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            first, second = info(await rig.fetch()), info(await rig.fetch())

            assert (first.reused, first.requests) == (False, 1)
            assert (second.reused, second.requests) == (True, 2)
            assert first.id == second.id
            assert 0.0 <= first.age <= second.age < 10.0
            assert first.http_version == "HTTP/1.1"
            assert first.peer == f"127.0.0.1:{rig.server.port}"

    async def test_timings_say_where_the_time_went(self) -> None:
        script = [expect_request(), pause(0.1), send(PAGE[:-1]), pause(0.1), send(PAGE[-1:])]
        async with self.rig(script) as rig:
            took = (await rig.fetch()).timings

            assert took.wait is not None
            assert took.receive is not None
            assert took.total is not None
            assert took.wait >= 0.09
            assert took.receive >= 0.09
            assert took.wait + took.receive <= took.total < 10.0

    @needs("pooled")
    async def test_timings_of_a_new_connection_tell_its_steps(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            answered = await rig.fetch_url(f"https://localhost:{rig.server.port}/")

            steps = [answered.timings.dns, answered.timings.connect, answered.timings.tls]
            assert all(step is not None and 0.0 <= step < 10.0 for step in steps)

    async def test_timings_of_a_used_connection_tell_no_steps(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            took = (await rig.fetch()).timings

            assert (took.dns, took.connect, took.tls) == (None, None, None)

    async def test_timings_tell_how_long_a_call_waited_for_a_connection(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            held = await rig.send()
            waiting = rig.begin_fetch()
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await anyio.sleep(0.1)
            await held.aread()

            took = (await waiting.result()).timings
            assert took.queue is not None
            assert took.queue >= 0.09

    async def test_timings_are_complete_when_the_body_has_been_read(self) -> None:
        async with self.rig(serve(PAGE)) as rig, await rig.send() as answered:
            assert (answered.timings.receive, answered.timings.total) == (None, None)

            await answered.aread()
            assert answered.timings.receive is not None
            assert answered.timings.total is not None
