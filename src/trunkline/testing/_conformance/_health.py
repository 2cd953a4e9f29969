"""How the pool is: what it counts, what it warns of in the log, and where a call's time went."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import astuple

import anyio
import pytest

from trunkline._config import Limits, Timeouts
from trunkline._contract import PoolSnapshot
from trunkline._errors import PoolTimeout
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import counts, info, until
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    answer,
    expect_request,
    hold,
    pause,
    response,
    send,
    serve,
    wait,
)

PAGE = response(200, b"page")
GATED = [expect_request(), wait("go"), send(PAGE), *serve(PAGE)]
ONE = Limits(max_connections=1)
FOUR = Limits(max_connections=4)


class _Raises(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ZeroDivisionError


@contextmanager
def _handling(handler: logging.Handler) -> Generator[None]:
    logger = logging.getLogger("trunkline")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class Health(Conformance):
    promise = 15

    # -- what it counts ----------------------------------------------------------------------------

    async def test_calls_that_waited_are_counted_with_their_time(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send()
            calls = [rig.begin_fetch() for _ in range(2)]
            await until(lambda: rig.transport.snapshot().waiting == 2)
            assert rig.transport.snapshot().waited == 0
            await anyio.sleep(0.1)
            await held.aread()
            for call in calls:
                await call.result()

            now = rig.transport.snapshot()
            assert now.waited == 2
            assert 0.09 <= now.wait_max <= now.wait_total
            assert now.wait_total >= 0.18

    async def test_calls_that_need_not_wait_do_not_count_as_waiting(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            for _ in range(3):
                await rig.fetch()

            now = rig.transport.snapshot()
            assert (now.waited, now.wait_total, now.wait_max) == (0, 0.0, 0.0)

    async def test_calls_that_waited_in_vain_are_not_counted(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE, timeouts=Timeouts(pool=0.05)) as rig:
            async with await rig.send():
                with pytest.raises(PoolTimeout):
                    await rig.fetch()

            assert rig.transport.snapshot().waited == 0

    @needs("pooled")
    async def test_the_numbers_agree_at_every_moment_of_a_storm(self) -> None:
        limits = Limits(max_connections=6, max_keepalive_connections=3)
        chance = random.Random(11)
        seen: list[PoolSnapshot] = []

        async def one(seconds: float) -> None:
            with anyio.move_on_after(seconds):
                await rig.fetch()
            seen.append(rig.transport.snapshot())

        opened = self.rig(serve(PAGE), limits=limits)
        async with opened as rig, anyio.create_task_group() as group:
            for _ in range(120):
                group.start_soon(one, chance.expovariate(1 / 0.01))

        for now in seen:
            assert now.created == now.open + sum(now.closed.values())
            assert now.open == now.active + now.idle
            assert now.open + now.connecting <= 6
            assert now.idle <= 3
            assert now.utilization == (now.active + now.connecting) / 6
            for field in ("open", "active", "idle", "connecting", "waiting"):
                parts = [getattr(origin, field) for origin in now.origins.values()]
                assert sum(parts) == getattr(now, field)

    # -- where the time went -----------------------------------------------------------------------

    @needs("pooled")
    async def test_timings_of_a_call_tell_every_step(self) -> None:
        script = [expect_request(), pause(0.05), send(PAGE[:-1]), pause(0.05), send(PAGE[-1:])]
        cut_short = [expect_request(), send(PAGE[:-1]), hold()]
        async with self.secure_rig(cut_short, script, limits=ONE) as rig:
            url = f"https://localhost:{rig.server.port}/"
            held = await rig.send()
            call = rig.start(lambda: rig.fetch_url(url))
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await anyio.sleep(0.05)
            await held.aclose()  # the call gets its slot, and has to open a connection

            *steps, total = astuple((await call.result()).timings)
            assert all(step is not None and step >= 0.0 for step in steps)
            assert 0.14 <= sum(steps) <= total + 0.001
            assert sum(steps) >= total / 2

    @needs("pooled")
    async def test_the_time_it_takes_to_send_is_told_apart(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            yield b"one"
            await anyio.sleep(0.1)
            yield b"two"

        async with self.rig([expect_request(), pause(0.1), send(PAGE)]) as rig:
            took = (await rig.fetch("POST", content=produce())).timings

            assert took.send is not None
            assert took.wait is not None
            assert took.total is not None
            assert 0.09 <= took.send <= took.total - 0.09
            assert 0.09 <= took.wait <= took.total - 0.09

    @needs("pooled")
    async def test_a_response_tells_the_age_of_its_connection(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            first = info(await rig.fetch())
            await anyio.sleep(0.1)
            second = info(await rig.fetch())

            assert first.age < 0.1
            assert 0.1 <= second.age < 10.0

    # -- what it warns of --------------------------------------------------------------------------

    @needs("pooled")
    async def test_a_connection_is_no_younger_than_nothing_to_a_call_that_waited_for_it(
        self,
    ) -> None:
        async with self.rig(GATED, limits=ONE) as rig:
            calls = [rig.begin_fetch(), rig.begin_fetch()]  # both before it is opened
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await rig.until_received()
            await anyio.sleep(0.05)
            rig.server.open("go")
            ages = [info(await call.result()).age for call in calls]

            assert min(ages) == 0.0
            assert max(ages) >= 0.05

    async def test_a_pool_that_is_nearly_used_up_warns_once_with_the_numbers(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(serve(PAGE), limits=FOUR, warn_utilization=0.75) as rig:
            for _ in range(2):
                await rig.send()
            assert _warnings(caplog) == []

            await rig.send()
            (warning,) = _warnings(caplog)
            assert "3 of 4" in warning
            await rig.send()
            assert _warnings(caplog) == [warning]

    async def test_a_pool_that_is_no_longer_nearly_used_up_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(serve(PAGE), limits=FOUR, warn_utilization=0.5) as rig:
            await rig.send()
            async with await rig.send():
                caplog.clear()

            (line,) = _warnings(caplog)
            assert "1 of 4" in line

    @needs("pooled")
    async def test_connections_being_opened_count_as_used(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig([hold()], limits=FOUR, warn_utilization=0.5) as rig:
            url = f"https://127.0.0.1:{rig.server.port}/"
            calls = [rig.start(lambda: rig.fetch_url(url)) for _ in range(2)]
            await until(lambda: rig.transport.snapshot().connecting == 2)
            for call in calls:
                call.cancel()
                await call.done.wait()

            assert any("2 of 4" in line for line in _warnings(caplog))

    async def test_a_pool_that_goes_up_and_down_does_not_fill_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(serve(PAGE), limits=FOUR, warn_utilization=0.25) as rig:
            for _ in range(50):
                await rig.fetch()

            assert len(_warnings(caplog)) == 2  # once up and once down within ten seconds

    async def test_a_pool_that_makes_calls_wait_warns_once_with_the_numbers(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        limits = Limits(max_connections=2)
        async with self.rig(GATED, limits=limits) as rig:
            calls = [rig.begin_fetch() for _ in range(2)]
            await rig.until_received(2)
            caplog.clear()
            calls += [rig.begin_fetch() for _ in range(5)]
            await until(lambda: rig.transport.snapshot().waiting == 5)
            (line,) = _warnings(caplog)
            rig.server.open("go")
            for call in calls:
                await call.result()

            assert "2 of 2" in line
            assert "1 calls wait" in line

    @keeps(5)
    @needs("pooled")
    async def test_a_log_handler_that_raises_costs_nobody_a_connection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging, "raiseExceptions", False)
        unfinished = [expect_request(), send(PAGE[:-1]), hold()]
        script = [answer(PAGE), answer(PAGE), *unfinished]
        with _handling(_Raises()):
            async with self.rig(script, serve(PAGE), limits=ONE, leak_after=0.5) as rig:
                held = await rig.send()
                call = rig.begin_fetch()
                await until(lambda: rig.transport.snapshot().waiting == 1)
                await held.aread()
                await call.result()
                await rig.send()  # nobody reads it

                assert (await rig.fetch()).content == b"page"
                assert counts(rig.transport.snapshot()) == (1, 0, 1, 0, 0)

    @pytest.mark.parametrize(
        ("limits", "share"),
        [(ONE, None), (Limits(max_connections=None), 0.1)],
        ids=["switched-off", "no-limit"],
    )
    async def test_a_pool_that_has_nothing_to_warn_of_is_silent(
        self, caplog: pytest.LogCaptureFixture, limits: Limits, share: float | None
    ) -> None:
        async with self.rig(serve(PAGE), limits=limits, warn_utilization=share) as rig:
            held = await rig.send()
            call = rig.begin_fetch()
            await anyio.sleep(0.02)
            await held.aread()
            await call.result()

            assert _warnings(caplog) == []

    async def test_a_warning_holds_nothing_that_is_private(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send("GET", "/secret", headers={"Authorization": "secret"})
            call = rig.begin_fetch("GET", "/?secret")
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await held.aread()
            await call.result()

            assert _warnings(caplog)
            assert "secret" not in caplog.text


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the transport has logged at this level and above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("trunkline") and record.levelno >= logging.WARNING
    ]
