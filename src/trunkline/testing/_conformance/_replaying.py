"""What is sent a second time, and what never is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from trunkline._config import Limits, Timeouts
from trunkline._errors import NetworkError, PoolTimeout, RemoteDisconnected
from trunkline.testing._conformance._base import Conformance, Rig, needs
from trunkline.testing._conformance._helpers import until
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    answer,
    expect_request,
    fin,
    hold,
    response,
    rst,
    send,
    serve,
    wait,
)
from trunkline.testing._servers import Step

PAGE = response(200, b"page")
# The second request on it is read, and then answered with the end of the connection.
HANGS_UP = [answer(PAGE), expect_request(), fin()]


async def _produce() -> AsyncIterator[bytes]:
    yield b"order"


async def _produce_nothing() -> AsyncIterator[bytes]:
    for piece in list[bytes]():
        yield piece


class Replaying(Conformance):
    promise = 6

    @needs("pooled")
    async def test_an_idempotent_request_is_sent_again_when_a_used_connection_fails(self) -> None:
        async with self.rig(HANGS_UP, serve(PAGE)) as rig:
            await rig.fetch("GET", "/first")
            assert (await rig.fetch("GET", "/second")).content == b"page"

            targets = [request.target for request in rig.server.requests]
            assert targets == ["/first", "/second", "/second"]
            assert rig.server.connections == 2

    @keeps(7)
    @needs("pooled")
    async def test_a_second_attempt_that_sends_nothing_does_not_make_the_first_one_unsent(
        self,
    ) -> None:
        script = [answer(PAGE), expect_request(), wait("end"), fin()]
        limits = Limits(max_connections=1)
        async with self.rig(script, [expect_request(), hold()], limits=limits) as rig:
            await rig.fetch("GET", "/first")
            call = rig.begin_fetch("GET", "/second", timeouts=Timeouts(pool=0.2))
            await rig.until_received(2)
            rig.begin_fetch("GET", "/before-its-second-attempt")
            await until(lambda: rig.transport.snapshot().waiting == 1)
            rig.server.open("end")

            error = await call.failure()
            assert isinstance(error, PoolTimeout)
            assert (error.replay, error.request_sent, error.attempts) == ("if_idempotent", None, 1)

    @pytest.mark.parametrize("end", [fin(), rst()], ids=["fin", "rst"])
    @pytest.mark.parametrize("content", [b"order", b"", None], ids=["body", "empty", "none"])
    async def test_a_post_that_may_have_been_processed_is_sent_once(
        self, content: bytes | None, end: Step
    ) -> None:
        script = [answer(PAGE), expect_request(), end]
        async with self.rig(script, serve(PAGE)) as rig:
            await rig.fetch("POST", "/first", content=b"order")
            with pytest.raises(RemoteDisconnected) as caught:
                await rig.fetch("POST", "/second", content=content)

            error = caught.value
            assert (error.replay, error.attempts) == ("if_idempotent", 1)
            assert error.request_sent is not False  # it may not be known
            if self.capabilities().pooled:
                assert (error.connection_reused, error.request_sent) == (True, True)
            assert [request.target for request in rig.server.requests] == ["/first", "/second"]

    async def test_a_body_that_turns_out_empty_is_no_second_segment(self) -> None:
        script = [answer(PAGE), expect_request(), rst()]
        async with self.rig(script, serve(PAGE)) as rig:
            await rig.fetch("POST", "/first", content=b"order")
            with pytest.raises(RemoteDisconnected) as caught:
                await rig.fetch(
                    "POST", "/second", content=_produce_nothing(), headers={"Content-Length": "0"}
                )

            assert caught.value.replay == "if_idempotent"

    @pytest.mark.parametrize(
        "options",
        [{"idempotent": True}, {"headers": {"Idempotency-Key": "1"}}],
        ids=["told", "by-header"],
    )
    @needs("pooled")
    async def test_a_post_that_is_said_to_be_idempotent_is_sent_again(
        self, options: dict[str, Any]
    ) -> None:
        async with self.rig(HANGS_UP, serve(PAGE)) as rig:
            await rig.fetch()
            answered = await rig.fetch("POST", "/order", content=b"order", **options)

            assert answered.content == b"page"
            first, second = rig.server.requests[1:]
            assert first.raw_head == second.raw_head
            assert first.body == second.body == b"order"

    async def test_a_get_that_is_said_not_to_be_idempotent_is_sent_once(self) -> None:
        async with self.rig(HANGS_UP, serve(PAGE)) as rig:
            await rig.fetch()
            with pytest.raises(RemoteDisconnected):
                await rig.fetch("GET", "/second", idempotent=False)

            assert len(rig.server.requests) == 2

    async def test_nothing_is_sent_again_when_a_new_connection_fails(self) -> None:
        async with self.rig([expect_request(), fin()], serve(PAGE)) as rig:
            with pytest.raises(RemoteDisconnected) as caught:
                await rig.fetch("GET", "/only")

            assert (caught.value.connection_reused, caught.value.attempts) == (False, 1)
            assert len(rig.server.requests) == 1

    async def test_nothing_is_sent_again_once_the_response_has_begun(self) -> None:
        script = [answer(PAGE), expect_request(), send(b"HTTP/1.1 200"), fin()]
        async with self.rig(script, serve(PAGE)) as rig:
            await rig.fetch()
            with pytest.raises(NetworkError) as caught:
                await rig.fetch("GET", "/second")

            # A library that tells of whole heads only says the same where half a one has come.
            if self.capabilities().pooled:
                assert (caught.value.response_started, caught.value.replay) == (True, "unsafe")
            assert len(rig.server.requests) == 2

    @needs("pooled")
    async def test_nothing_is_sent_a_third_time(self) -> None:
        async with self.rig(HANGS_UP, [expect_request(), fin()], serve(PAGE)) as rig:
            await rig.fetch()
            with pytest.raises(RemoteDisconnected) as caught:
                await rig.fetch("GET", "/second")

            assert caught.value.attempts == 2
            assert len(rig.server.requests) == 3

    async def test_a_body_that_is_iterated_is_sent_once(self) -> None:
        async with self.rig(HANGS_UP, serve(PAGE)) as rig:
            await rig.fetch()
            with pytest.raises(RemoteDisconnected):
                await rig.fetch("PUT", "/second", content=_produce(), idempotent=True)

            assert len(rig.server.requests) == 2

    @needs("pooled")
    async def test_it_is_sent_again_on_a_connection_that_carried_nothing_yet(self) -> None:
        gated = [expect_request(), wait("both"), send(PAGE), expect_request(), fin()]
        async with self.rig(gated, gated, serve(PAGE)) as rig:
            await _both(rig)
            assert (await rig.fetch("GET", "/second")).content == b"page"

            assert rig.server.connections == 3
            assert [len(each.requests) for each in rig.server.conversations][2] == 1


async def _both(rig: Rig) -> None:
    """Two calls at once, so that two connections are idle."""
    calls = [rig.begin_fetch() for _ in range(2)]
    await rig.until_received(2)
    rig.server.open("both")
    for call in calls:
        await call.result()
    await until(lambda: rig.transport.snapshot().idle == 2)
