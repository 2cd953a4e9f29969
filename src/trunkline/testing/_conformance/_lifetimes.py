"""How long a connection lasts: its age, its rest, the server's word on it, and its pending end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio
import pytest

from trunkline._config import Limits
from trunkline.testing._conformance._base import Conformance, Rig, needs
from trunkline.testing._conformance._helpers import counts, until
from trunkline.testing._script import (
    answer,
    close_notify,
    expect_request,
    fin,
    mark,
    response,
    rst,
    send,
    serve,
    wait,
)
from trunkline.testing._servers import Script, Step

PAGE = response(200, b"page")

ENDS: dict[str, Step] = {"fin": fin(), "rst": rst()}


class Lifetimes(Conformance):
    promise = 13

    # -- age ---------------------------------------------------------------------------------------

    @needs("pooled")
    async def test_a_connection_that_gets_too_old_in_use_ends_with_its_exchange(self) -> None:
        script = [expect_request(), send(PAGE[:-2]), wait("old"), send(PAGE[-2:]), *serve(PAGE)]
        async with self.rig(script, limits=Limits(max_connection_age=0.05)) as rig:
            async with await rig.send() as answered:
                await anyio.sleep(0.1)
                assert counts(rig.transport.snapshot()) == (1, 1, 0, 0, 0)
                rig.server.open("old")
                assert await answered.aread() == b"page"

            now = rig.transport.snapshot()
            assert (now.open, now.closed) == (0, {"aged": 1})
            await rig.until_client_closed()

    @needs("pooled")
    async def test_an_idle_connection_that_gets_too_old_is_closed_though_nobody_calls(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connection_age=0.1)) as rig:
            await rig.fetch()

            await rig.until_client_closed()
            now = rig.transport.snapshot()
            assert (now.open, now.closed) == (0, {"aged": 1})

    # -- rest --------------------------------------------------------------------------------------

    async def test_an_expired_connection_is_closed_though_nobody_calls(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(keepalive_expiry=0.1)) as rig:
            await rig.fetch()

            await rig.until_client_closed()
            assert rig.transport.snapshot().open == 0
            rig.expect_closed(expired=1)
            assert len(rig.server.requests) == 1

    async def test_an_expiry_of_zero_keeps_nothing(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(keepalive_expiry=0)) as rig:
            await rig.fetch()

            assert rig.transport.snapshot().open == 0
            rig.expect_closed(expired=1)
            await rig.until_client_closed()

    @needs("pooled")
    async def test_a_warm_connection_expires_too(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(keepalive_expiry=0.05)) as rig:
            await rig.transport.warm(rig.url())
            await anyio.sleep(0.1)
            await rig.fetch()

            assert rig.server.connections == 2
            assert rig.transport.snapshot().closed == {"expired": 1}

    # -- what the server says of it ----------------------------------------------------------------

    @needs("pooled")
    async def test_a_connection_is_not_used_when_the_server_may_be_about_to_close_it(self) -> None:
        hint = response(200, b"page", ("Connection", "keep-alive"), ("Keep-Alive", "timeout=1"))
        async with self.rig(serve(hint)) as rig:
            await rig.fetch()
            await rig.fetch()
            assert rig.server.connections == 1

            await anyio.sleep(0.6)
            await rig.fetch()
            assert rig.server.connections == 2
            assert rig.transport.snapshot().closed == {"expired": 1}

    @pytest.mark.parametrize(
        "hint", ["timeout=0", "max=100, timeout=0", 'Timeout = "0"'], ids=["only", "last", "quoted"]
    )
    @needs("pooled")
    async def test_a_keep_alive_of_no_time_ends_the_connection(self, hint: str) -> None:
        async with self.rig(serve(response(200, b"page", ("Keep-Alive", hint)))) as rig:
            await rig.fetch()
            await rig.until_client_closed()

            assert rig.transport.snapshot().closed == {"expired": 1}

    @pytest.mark.parametrize(
        "hint",
        ["timeout=soon", "timeout=", "timeout=-1", "timeout", "max=0", "xtimeout=0", "0", ""],
    )
    async def test_a_keep_alive_that_says_no_time_is_ignored(self, hint: str) -> None:
        async with self.rig(serve(response(200, b"page", ("Keep-Alive", hint)))) as rig:
            await rig.fetch()
            await rig.fetch()

            assert rig.server.connections == 1

    async def test_a_keep_alive_does_not_lengthen_the_expiry(self) -> None:
        generous = serve(response(200, b"page", ("Keep-Alive", "timeout=3600")))
        async with self.rig(generous, limits=Limits(keepalive_expiry=0.05)) as rig:
            await rig.fetch()
            await anyio.sleep(0.1)
            await rig.fetch()

            assert rig.server.connections == 2

    # -- a pending end, pending bytes --------------------------------------------------------------

    @pytest.mark.parametrize("ending", ENDS)
    async def test_an_end_that_the_loop_has_not_heard_of_is_noticed(self, ending: str) -> None:
        async with self.rig(_idle_then(ENDS[ending]), serve(PAGE)) as rig:
            await _is_not_used_again(rig, loop_hears=False)

    @pytest.mark.parametrize("ending", ENDS)
    @pytest.mark.parametrize("loop_hears", [True, False], ids=["heard", "unheard"])
    async def test_an_end_over_tls_is_noticed(self, ending: str, loop_hears: bool) -> None:
        async with self.secure_rig(_idle_then(ENDS[ending]), serve(PAGE)) as rig:
            await _is_not_used_again(rig, loop_hears=loop_hears)

    async def test_a_farewell_over_tls_is_noticed(self) -> None:
        # The mark comes first: the step waits for the client's farewell.
        farewell = [answer(PAGE), wait("idle"), mark("done"), close_notify()]
        async with self.secure_rig(farewell, serve(PAGE)) as rig:
            await _is_not_used_again(rig, loop_hears=True)

    @needs("pooled")
    @pytest.mark.parametrize("ending", ENDS)
    async def test_an_end_of_a_warm_connection_that_the_loop_has_not_heard_of_is_noticed(
        self, ending: str
    ) -> None:
        script = [wait("warm"), ENDS[ending], mark("done")]
        async with self.secure_rig(script, serve(PAGE)) as rig:
            await rig.transport.warm(rig.url())
            rig.server.open("warm")
            _stand_still_until(lambda: "done" in rig.server.conversations[0].marks)

            assert (await rig.fetch("POST", content=b"order")).content == b"page"
            assert rig.server.connections == 2

    @pytest.mark.parametrize("served", ["plain", "tls"])
    async def test_bytes_that_the_loop_has_not_heard_of_never_become_the_next_answer(
        self, served: str
    ) -> None:
        poisoned = [*_idle_then(send(response(200, b"poison"))), *serve(PAGE)]
        async with self._rig_for(served, poisoned, serve(PAGE)) as rig:
            await _is_not_used_again(rig, loop_hears=False)

    async def test_bytes_on_an_idle_connection_over_tls_never_become_the_next_answer(self) -> None:
        poisoned = [*_idle_then(send(response(200, b"poison"))), *serve(PAGE)]
        async with self.secure_rig(poisoned, serve(PAGE)) as rig:
            await _is_not_used_again(rig, loop_hears=True)

    async def test_bytes_glued_to_an_answer_over_tls_never_become_the_next_answer(self) -> None:
        glued = [answer(PAGE + response(200, b"poison")), mark("done"), *serve(PAGE)]
        async with self.secure_rig(glued, serve(PAGE)) as rig:
            await _is_not_used_again(rig, loop_hears=True)

    def _rig_for(self, served: str, *scripts: Script) -> AbstractAsyncContextManager[Rig]:
        return self.rig(*scripts) if served == "plain" else self.secure_rig(*scripts)


def _idle_then(step: Step) -> list[Step]:
    """Answer once; when the test says so, `step`."""
    return [answer(PAGE), wait("idle"), step, mark("done")]


async def _is_not_used_again(rig: Rig, *, loop_hears: bool) -> None:
    """The connection's script comes to its mark after the first call; the second goes elsewhere.

    Args:
        loop_hears: the event loop runs between the mark and the second call.
    """
    assert (await rig.fetch("POST", content=b"first")).content == b"page"
    used = rig.server.conversations[0]
    rig.server.open("idle")
    if loop_hears:
        await until(lambda: "done" in used.marks)
        await anyio.sleep(0.03)
    else:
        _stand_still_until(lambda: "done" in used.marks)
    received = len(used.received)

    assert (await rig.fetch("POST", content=b"second")).content == b"page"
    assert len(used.received) == received
    assert rig.server.connections == 2
    rig.expect_closed(ended=1)


def _stand_still_until(predicate: Callable[[], bool]) -> None:
    """Wait without letting the event loop run."""
    deadline = time.monotonic() + 10.0
    while not predicate():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.001)
