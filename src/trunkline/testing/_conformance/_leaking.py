"""Responses that are forgotten: found, told of, and their connections taken back."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from trunkline._config import Limits
from trunkline._errors import TransportError
from trunkline._messages import Response
from trunkline.testing._conformance._base import Conformance, Rig
from trunkline.testing._conformance._helpers import counts
from trunkline.testing._conformance._recorder import observed
from trunkline.testing._promises import keeps
from trunkline.testing._script import expect_request, hold, response, send, serve, wait

PAGE = response(200, b"page")
UNFINISHED = [expect_request(), send(PAGE[:-1]), hold()]
GATED = [expect_request(), send(PAGE[:-1]), wait("rest"), send(PAGE[-1:])]
ONE = Limits(max_connections=1)
SOON: dict[str, Any] = {"leak_after": 0.06}


class Leaking(Conformance):
    promise = 15
    part_needs = ("pooled",)

    # -- open and not read -------------------------------------------------------------------------

    async def test_a_response_that_is_not_read_is_told_of_and_its_connection_taken_back(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(UNFINISHED, **SOON) as rig:
            forgotten = await rig.send("GET", "/secret")
            await rig.until_client_closed()

            now = rig.transport.snapshot()
            assert (counts(now), now.closed) == ((0, 0, 0, 0, 0), {"aborted": 1})
            (line,) = _leaks(caplog)
            assert rig.server.url in line
            assert "secret" not in line
            with pytest.raises(TransportError):
                await forgotten.aread()

    async def test_the_connection_of_a_forgotten_response_goes_to_a_waiting_call(self) -> None:
        async with self.rig(UNFINISHED, serve(PAGE), limits=ONE, **SOON) as rig:
            await rig.send()

            assert (await rig.fetch()).content == b"page"

    @keeps(12)
    async def test_a_forgotten_response_never_looks_whole(self) -> None:
        async with self.rig([expect_request(), send(PAGE)], **SOON) as rig:
            forgotten = await rig.send()
            pieces = forgotten.aiter_bytes()
            await rig.until_client_closed()

            with pytest.raises(TransportError, match="leak_after"):
                await anext(pieces)
            with pytest.raises((TransportError, RuntimeError)):
                await forgotten.aread()

    async def test_a_response_that_is_left_in_the_middle_is_forgotten_too(self) -> None:
        async with self.rig(UNFINISHED, **SOON) as rig:
            pieces = (await rig.send()).aiter_bytes()
            assert await anext(pieces) == b"pag"
            await rig.until_client_closed()

            with pytest.raises(TransportError, match="leak_after"):
                await anext(pieces)

    async def test_a_response_that_is_being_read_is_not_forgotten(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(UNFINISHED, GATED, **SOON) as rig:
            await rig.send("GET", "/forgotten")
            call = rig.begin_fetch("GET", "/read")
            await rig.until_client_closed()  # of the other one, which is as old
            await anyio.sleep(0.1)
            rig.server.open("rest")

            assert (await call.result()).content == b"page"
            assert len(_leaks(caplog)) == 1

    async def test_a_call_that_waits_for_its_head_is_not_forgotten(self) -> None:
        script = [expect_request(), wait("head"), send(PAGE)]
        async with self.rig(UNFINISHED, script, **SOON) as rig:
            await rig.send()
            call = rig.begin_fetch()
            await rig.until_client_closed()
            await anyio.sleep(0.1)
            rig.server.open("head")

            assert (await call.result()).content == b"page"

    async def test_without_leak_after_a_response_may_stay_open(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(GATED) as rig, await rig.send() as answered:
            await anyio.sleep(0.1)
            rig.server.open("rest")

            assert await answered.aread() == b"page"
            assert _leaks(caplog) == []

    async def test_a_forgotten_response_ends_with_an_error_for_observers(self) -> None:
        async with self.rig(UNFINISHED, **SOON) as rig:
            await rig.transport.warm(rig.url())
            with observed(rig.transport) as seen:
                await rig.send()
                await rig.until_client_closed()

            assert seen.tree() == "request(headers() body()!ReadError)!ReadError"

    # -- dropped -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("options", [{}, {"leak_stack": True}, {"leak_after": 60.0}],
                             ids=["plain", "stack", "after"])  # fmt: skip
    async def test_a_response_that_is_dropped_is_told_of(
        self, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
    ) -> None:
        async with self.rig(UNFINISHED, **options) as rig:
            with _dropping():
                await self._forget(rig)

            await rig.until_client_closed()
            assert len(_leaks(caplog)) == 1

    async def test_with_leak_stack_it_is_told_where_the_response_was_opened(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(UNFINISHED, leak_stack=True) as rig:
            with _dropping():
                await self._forget(rig)

            await rig.until_client_closed()
            (line,) = _leaks(caplog)
            assert "_forget" in line
            assert __file__ in line

    async def test_with_leak_stack_it_is_told_of_a_response_that_is_not_read_too(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(UNFINISHED, leak_stack=True, **SOON) as rig:
            kept = await self._forget(rig)
            await rig.until_client_closed()

            (line,) = _leaks(caplog)
            assert "_forget" in line
            kept.close()

    async def test_a_response_that_was_closed_is_not_told_of(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.rig(serve(PAGE), leak_stack=True, **SOON) as rig:
            await (await rig.send()).aclose()
            await rig.fetch()
            await anyio.sleep(0.1)

            assert _leaks(caplog) == []

    async def _forget(self, rig: Rig) -> Response:
        return await rig.transport.send(rig.request())


@contextmanager
def _dropping() -> Generator[None]:
    """A block that drops a response."""
    with pytest.warns(ResourceWarning, match="unclosed response"):
        yield


def _leaks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "trunkline.leaks"]
