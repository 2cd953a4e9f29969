"""Who is told of what: observers that come and go, connections, and steps of no call."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import anyio
import pytest

from trunkline._client import Client
from trunkline._config import Limits
from trunkline._errors import ConnectError
from trunkline._events import Event
from trunkline._registry import available_backends
from trunkline.testing._conformance._base import Conformance
from trunkline.testing._conformance._helpers import closed_port, info, until
from trunkline.testing._conformance._recorder import (
    Recorder,
    observe,
    observed,
    tree,
    without_names,
)
from trunkline.testing._script import answer, expect_request, fin, hold, response, send, serve

PAGE = response(200, b"page")
UNFINISHED = [expect_request(), send(PAGE[:-1]), hold()]


class Broken:
    def on_event(self, event: Event) -> None:
        raise ZeroDivisionError


class Observers(Conformance):
    promise = 15
    part_needs = ("pooled",)

    # -- what an event holds -----------------------------------------------------------------------

    async def test_each_call_has_an_id_of_its_own(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                for _ in range(3):
                    await rig.fetch()

            assert len(set(seen.request_ids)) == 3
            assert None not in seen.request_ids

    async def test_events_say_which_connection_they_are_about(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                answered = await rig.fetch()
                await rig.transport.aclose()

            about = {e.connection_id for e in seen.events if e.step in ("headers", "body")}
            opened, closed = seen.connections(is_end=False), seen.connections(is_end=True)
            assert about == {info(answered).id}
            assert [e.connection_id for e in (*opened, *closed)] == [info(answered).id] * 2

    async def test_events_say_which_host_they_are_about(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                await rig.fetch()

            assert {str(e.origin) for e in seen.events} == {rig.server.url}

    async def test_events_hold_the_request_and_once_it_is_there_the_response(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            request = rig.request()
            with observed(rig.transport) as seen:
                async with await rig.transport.send(request) as answered:
                    await answered.aread()

            *before, last = seen.of_request()
            assert all(e.request is request for e in (*before, last))
            assert before[0].response is None
            assert (last.step, last.is_end) == ("request", True)
            assert last.response is answered

    async def test_events_come_in_the_order_of_their_times(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                calls = [rig.begin_fetch() for _ in range(5)]
                for call in calls:
                    await call.result()

            times = [e.at for e in seen.events]
            assert times == sorted(times)

    # -- observers ---------------------------------------------------------------------------------

    async def test_all_observers_are_told(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as one, observed(rig.transport) as other:
                await rig.fetch()

            assert one.events == other.events
            assert one.events

    async def test_an_observer_that_raises_is_logged_and_harms_nobody(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            held = await rig.send()
            observe(rig.transport, Broken())
            with observed(rig.transport) as seen:
                call = rig.begin_fetch()
                await until(lambda: rig.transport.snapshot().waiting == 1)
                await held.aread()
                answered = await call.result()
                await rig.transport.aclose()

            assert answered.content == b"page"
            assert seen.tree() == "request(queue() headers() body())"
            assert rig.transport.snapshot().open == 0
            told = [record for record in caplog.records if record.name == "trunkline.observers"]
            assert len(told) == len(seen.events)
            assert all("Broken" in record.getMessage() for record in told)

    async def test_an_observer_that_was_removed_is_told_nothing_more(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                await rig.fetch()
            told = len(seen.events)
            await rig.fetch()
            await rig.transport.aclose()

            assert seen.events[told:] == []

    async def test_an_observer_that_is_removed_during_a_call_is_told_nothing_more(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                answered = await rig.send()
            told = len(seen.events)
            await answered.aread()

            assert seen.events[told:] == []

    async def test_an_observer_is_told_of_no_end_without_its_start(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            answered = await rig.send()
            with observed(rig.transport) as seen:
                await answered.aread()
                await rig.transport.aclose()

            assert seen.events == []

    async def test_observers_of_a_client_stay_when_it_is_reconfigured(self) -> None:
        if self.backend not in available_backends():
            pytest.skip("a config can name this transport by its entry point only")
        async with self.rig(serve(PAGE)) as rig:
            async with Client(transport=rig.transport) as client:
                seen = Recorder()
                observe(rig.transport, Recorder())  # skips where there are no events
                client.observe(seen)
                await client.reconfigure(self.config())
                await client.get(rig.url())

            assert len(seen.request_ids) == 1

    # -- connections -------------------------------------------------------------------------------

    async def test_the_end_of_a_connection_says_why(self) -> None:
        limits = Limits(max_keepalive_connections=1)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            with observed(rig.transport) as seen:
                answers = [await rig.send() for _ in range(3)]
                await answers[0].aclose()
                await answers[1].aread()
                await answers[2].aread()
                await rig.transport.aclose()

            reasons = [e.reason for e in seen.connections(is_end=True)]
            assert reasons == ["aborted", "surplus", "shutdown"]
            assert {e.reason for e in seen.connections(is_end=False)} == {None}

    async def test_the_connection_of_a_call_that_waited_and_failed_ends_as_aborted(self) -> None:
        limits = Limits(max_connections=1)
        async with self.rig([answer(PAGE), expect_request(), fin()], limits=limits) as rig:
            with observed(rig.transport) as seen:
                held = await rig.send()
                call = rig.start(lambda: rig.fetch("POST", content=b"order"))
                await until(lambda: rig.transport.snapshot().waiting == 1)
                await held.aread()
                await call.failure()

                assert [e.reason for e in seen.connections(is_end=True)] == ["aborted"]

    async def test_a_connection_ends_once_for_each_that_began(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                for number in range(4):
                    answered = await rig.send()
                    await (answered.aclose() if number % 2 else answered.aread())
                await rig.transport.aclose()

            began = Counter(e.connection_id for e in seen.connections(is_end=False))
            ended = Counter(e.connection_id for e in seen.connections(is_end=True))
            assert began == ended
            assert set(began.values()) == {1}

    # -- connections opened ahead ------------------------------------------------------------------

    async def test_warming_tells_the_steps_of_no_request(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                await rig.transport.warm(f"https://localhost:{rig.server.port}/")

            assert tree(seen.ahead) == "dns() connect() tls()"
            assert seen.request_ids == []
            assert len(seen.connections(is_end=False)) == 1

    async def test_warming_that_fails_tells_at_which_step(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen, suppress(ConnectError):
                await rig.transport.warm(f"http://localhost:{closed_port()}/")

            assert tree(seen.ahead) == "dns() connect()!ConnectError"

    async def test_warming_that_is_cancelled_tells_its_end(self) -> None:
        async with self.rig([hold()]) as rig:
            url = f"https://localhost:{rig.server.port}/"
            with observed(rig.transport) as seen:
                async with anyio.create_task_group() as group:
                    group.start_soon(rig.transport.warm, url)
                    await until(lambda: seen.has_begun("tls"))
                    group.cancel_scope.cancel()

            assert without_names(tree(seen.ahead)) == "dns() connect() tls()!"

    async def test_spare_connections_tell_the_steps_of_no_request(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(min_idle_connections=1)) as rig:
            with observed(rig.transport) as seen:
                async with await rig.send():
                    await until(lambda: rig.transport.snapshot().idle == 1)

            assert tree(seen.ahead).endswith("connect()")
            assert len(seen.connections(is_end=False)) == 2

    # -- storms ------------------------------------------------------------------------------------

    async def test_in_a_storm_of_cancelled_calls_every_step_ends(self) -> None:
        limits = Limits(max_connections=6, max_keepalive_connections=3)
        chance = random.Random(7)
        seen = Recorder()

        async def one(seconds: float) -> None:
            with anyio.move_on_after(seconds):
                await rig.fetch()

        async with self.rig(serve(PAGE), limits=limits) as rig:
            observe(rig.transport, seen)
            async with anyio.create_task_group() as group:
                for _ in range(120):
                    group.start_soon(one, chance.expovariate(1 / 0.01))
            await rig.transport.aclose()
            now = rig.transport.snapshot()

        for place in range(len(seen.request_ids)):
            assert seen.tree(place).startswith("request(")
        assert len(seen.request_ids) == 120
        assert len(seen.connections(is_end=False)) == now.created
        assert Counter(e.reason for e in seen.connections(is_end=True)) == now.closed
