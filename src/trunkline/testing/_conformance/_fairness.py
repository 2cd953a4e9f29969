"""Who gets a connection when many want one: hosts, priorities, and what the others are told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import anyio
import pytest

from trunkline._config import Limits, Timeouts
from trunkline._errors import PoolFull, PoolTimeout
from trunkline._messages import Request, Response
from trunkline.testing._conformance._base import Call, Conformance, Rig, needs
from trunkline.testing._conformance._helpers import until
from trunkline.testing._script import expect_request, response, send, serve, wait
from trunkline.testing._servers import ScriptedServer

PAGE = response(200, b"page")
ONE = Limits(max_connections=1)
CALLS = 240


class Fairness(Conformance):
    promise = 8

    # -- hosts -------------------------------------------------------------------------------------

    @needs("pooled")
    async def test_a_busy_host_does_not_starve_another(self) -> None:
        stages = [expect_request(), wait("first"), send(PAGE), expect_request(), wait("second")]
        busy = [*stages, send(PAGE), *serve(PAGE)]
        async with self.rig(busy, limits=Limits(max_connections=4)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                calls = [rig.begin_fetch() for _ in range(40)]
                await until(lambda: rig.transport.snapshot().waiting == 36)
                lone = rig.start(lambda: rig.fetch_url(other.url))
                await until(lambda: rig.transport.snapshot().waiting == 37)
                # Four connections come free; whoever gets one next at the busy host keeps it.
                rig.server.open("first")

                await until(lambda: lone.response is not None, seconds=5.0)
                rig.server.open("second")
                for call in calls:
                    await call.result()

    @pytest.mark.parametrize("most", [3, 4])
    async def test_two_busy_hosts_share_the_connections(self, most: int) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=most)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                # A server that is slow for a while on a busy machine has as many answers later.
                answers = await _keep_busy(rig, (rig.server, other), most=8 * CALLS)

                assert min(answers.values()) >= CALLS / 4

    @pytest.mark.parametrize("most", [3, 4])
    async def test_two_busy_hosts_do_not_take_connections_from_each_other_in_turn(
        self, most: int
    ) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=most)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                await _keep_busy(rig, (rig.server, other))

                assert rig.server.connections + other.connections <= CALLS / 10

    async def test_max_waiting_holds_over_all_hosts(self) -> None:
        limits = Limits(max_connections=1, max_waiting=2)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                held = await rig.send()
                waiting = [rig.begin_fetch(), rig.start(lambda: rig.fetch_url(other.url))]
                await until(lambda: rig.transport.snapshot().waiting == 2)
                with pytest.raises(PoolFull):
                    await rig.fetch_url(other.url)

                await held.aread()
                for call in waiting:
                    await call.result()

    # -- priorities --------------------------------------------------------------------------------

    async def test_a_call_of_higher_priority_goes_first(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            served = await _served(rig, [("/usual", 0), ("/later", -1), ("/now", 2), ("/soon", 1)])

            assert served == ["/now", "/soon", "/usual", "/later"]

    async def test_calls_of_equal_priority_go_in_order(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            served = await _served(rig, [("/1", 1), ("/a", 0), ("/2", 1), ("/b", 0), ("/3", 1)])

            assert served == ["/1", "/2", "/3", "/a", "/b"]

    async def test_a_call_of_higher_priority_goes_before_those_to_other_hosts(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                held = await rig.send()
                order: list[str] = []
                calls = [await _queue(rig, rig.server.url, 0, order) for _ in range(2)]
                calls.append(await _queue(rig, other.url, 1, order))
                await held.aread()
                for call in calls:
                    await call.result()

                assert order == [other.url, rig.server.url, rig.server.url]

    async def test_a_free_connection_to_another_host_makes_room_for_a_higher_priority(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=2)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                async with await rig.send():
                    there = await rig.transport.send(Request("GET", other.url))
                    order: list[str] = []
                    usual = await _queue(rig, other.url, 0, order)
                    urgent = await _queue(rig, rig.server.url, 1, order)
                    await there.aread()
                    for call in (urgent, usual):
                        await call.result()

                    assert order == [rig.server.url, other.url]

    async def test_a_priority_takes_nothing_from_a_call_under_way(self) -> None:
        gated = [expect_request(), wait("go"), send(PAGE), *serve(PAGE)]
        async with self.rig(gated, limits=ONE) as rig:
            usual = rig.begin_fetch("GET", "/usual")
            await rig.until_received()
            urgent = rig.begin_fetch("GET", "/urgent", priority=9)
            await until(lambda: rig.transport.snapshot().waiting == 1)
            rig.server.open("go")

            assert (await usual.result()).content == b"page"
            await urgent.result()
            assert rig.server.connections == 1

    # -- what is told ------------------------------------------------------------------------------

    async def test_a_call_that_is_refused_is_told_the_numbers(self) -> None:
        limits = Limits(max_connections=2, max_waiting=3)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            async with await rig.send(), await rig.send():
                calls = [rig.begin_fetch() for _ in range(3)]
                await until(lambda: rig.transport.snapshot().waiting == 3)
                with pytest.raises(PoolFull) as caught:
                    await rig.fetch()
            for call in calls:
                await call.result()

            told = str(caught.value)
            assert re.search(r"max_waiting\D+3\b", told)
            assert re.search(r"\b2 connections active", told)
            assert re.search(r"\b3 calls waiting", told)
            assert re.search(r"max_connections 2\b", told)

    async def test_a_call_that_waited_in_vain_is_told_the_numbers(self) -> None:
        limits, timeouts = Limits(max_connections=2), Timeouts(pool=0.1)
        async with self.rig(serve(PAGE), limits=limits, timeouts=timeouts) as rig:
            async with await rig.send():
                await anyio.sleep(0.1)
                async with await rig.send():
                    with pytest.raises(PoolTimeout) as caught:
                        await rig.fetch()

            told = str(caught.value)
            assert re.search(r"\b2 connections active", told)
            assert re.search(r"\b1 calls waiting", told)
            longest = re.search(r"longest for (\d+\.\d+) s", told)
            assert longest is not None
            assert 0.2 <= float(longest[1]) < 10.0


async def _keep_busy(
    rig: Rig, servers: Sequence[ScriptedServer], *, most: int = CALLS
) -> Counter[str]:
    """Call all servers without a pause, six callers each; count the answers of each.

    At least `CALLS` times, and then until each has a fair part of them, but `most` times at most.
    """
    answers = Counter({server.url: 0 for server in servers})

    def goes_on() -> bool:
        total = answers.total()
        return total < CALLS or (total < most and min(answers.values()) < CALLS / 4)

    async def caller(url: str) -> None:
        while goes_on():
            await rig.fetch_url(url)
            answers[url] += 1

    async with anyio.create_task_group() as group:
        for _ in range(6):
            for server in servers:
                group.start_soon(caller, server.url)
    return answers


async def _served(rig: Rig, wanted: Sequence[tuple[str, int]]) -> list[str]:
    """Queue a call for each path and priority behind one connection; say who came when."""
    held = await rig.send("GET", "/held")
    calls: list[Call] = []
    for path, priority in wanted:
        calls.append(rig.begin_fetch("GET", path, priority=priority))
        await until(lambda: rig.transport.snapshot().waiting == len(calls))
    await held.aread()
    for call in calls:
        await call.result()
    return [request.target for request in rig.server.requests[1:]]


async def _queue(rig: Rig, url: str, priority: int, order: list[str]) -> Call:
    """Begin a call that has to wait, and that writes into `order` when it is answered."""

    async def fetch() -> Response:
        async with await rig.transport.send(Request("GET", url, priority=priority)) as answered:
            order.append(url)
            await answered.aread()
        return answered

    before = rig.transport.snapshot().waiting
    call = rig.start(fetch)
    await until(lambda: rig.transport.snapshot().waiting == before + 1)
    return call
