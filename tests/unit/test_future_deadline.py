"""A deadline of futures is never early, however often it is put off, and never forgotten."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest

from trunkline.pool._runtime import FutureDeadline, make_runtime


class Late(Exception):
    pass


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: pip install {request.param}")

    def run(main: Callable[[], Awaitable[None]]) -> None:
        factory = None
        if request.param == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop

        async def bounded() -> None:
            async with asyncio.timeout(10):
                await main()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    return run


def make_deadline() -> FutureDeadline:
    deadline = make_runtime().deadline(Late)
    assert deadline is not None
    return deadline


def bound(deadline: FutureDeadline, due: float) -> asyncio.Future[None]:
    future = asyncio.get_running_loop().create_future()
    assert deadline.bounds(future, due)
    return future


def test_a_future_that_is_not_done_in_time_ends_with_the_error(run: Callable[..., None]) -> None:
    async def main() -> None:
        with pytest.raises(Late):
            await bound(make_deadline(), monotonic() + 0.01)

    run(main)


def test_a_deadline_that_was_put_off_is_not_early(run: Callable[..., None]) -> None:
    async def main() -> None:
        deadline = make_deadline()
        bound(deadline, monotonic() + 0.01).set_result(None)
        due = monotonic() + 0.1
        with pytest.raises(Late):
            await bound(deadline, due)
        assert monotonic() > due - 0.002  # uvloop's timers may be a millisecond early

    run(main)


def test_a_deadline_that_was_moved_nearer_is_not_late(run: Callable[..., None]) -> None:
    async def main() -> None:
        deadline = make_deadline()
        future = bound(deadline, monotonic() + 600)
        deadline.move(monotonic() + 0.01)
        with pytest.raises(Late):
            await future

    run(main)


def test_a_deadline_that_was_taken_away_can_be_set_again(run: Callable[..., None]) -> None:
    async def main() -> None:
        deadline = make_deadline()
        bound(deadline, monotonic() + 0.01).set_result(None)
        deadline.move(None)
        with pytest.raises(Late):
            await bound(deadline, monotonic() + 0.02)

    run(main)


def test_a_deadline_that_passed_while_nothing_was_awaited_can_be_set_again(
    run: Callable[..., None],
) -> None:
    async def main() -> None:
        deadline = make_deadline()
        bound(deadline, monotonic() + 0.01).set_result(None)
        with pytest.raises(Late):
            await bound(make_deadline(), monotonic() + 0.03)  # so long
        with pytest.raises(Late):
            await bound(deadline, monotonic() + 0.01)

    run(main)
