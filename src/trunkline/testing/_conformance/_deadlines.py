"""Deadlines: each holds by its own error, and none fires for what is not its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from trunkline._config import Limits, Timeouts
from trunkline._errors import (
    ConnectTimeout,
    DeadlineExceeded,
    HeadersTimeout,
    PoolTimeout,
    ReadTimeout,
    TransportTimeout,
    WriteTimeout,
)
from trunkline.testing._conformance._base import Conformance, Rig, needs
from trunkline.testing._conformance._helpers import counts, unanswering_port
from trunkline.testing._script import (
    answer,
    drain,
    drip,
    expect_head,
    expect_request,
    hold,
    pause,
    response,
    send,
    serve,
    small_buffers,
    wait,
)

PAGE = response(200, b"page")
_TIMED_OUT = "the client has timed out"


async def _times_out(rig: Rig, kind: type[TransportTimeout], **options: Any) -> TransportTimeout:
    """It has to, after 0.1 or 0.2 seconds more or less; and nothing may be left."""
    with pytest.raises(kind) as caught:
        await rig.fetch("POST", **options)
    error = caught.value
    assert error.elapsed is not None
    assert 0.09 <= error.elapsed < 5.0
    assert isinstance(error, TimeoutError)
    assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
    # A reset does not get past a full window (RFC 9293 section 3.10.7.4): it is read after all.
    rig.server.open(_TIMED_OUT)
    if rig.transport.capabilities.aborts:
        await rig.until_client_closed()
    return error


class Deadlines(Conformance):
    promise = 8

    async def test_no_head_in_time_is_a_headers_timeout(self) -> None:
        async with self.rig([expect_request(), hold()], timeouts=Timeouts(headers=0.1)) as rig:
            error = await _times_out(rig, HeadersTimeout, content=b"order")

            assert (error.phase, error.replay) == ("headers", "if_idempotent")
            if self.capabilities().pooled:
                assert (error.request_sent, error.response_started) == (True, False)

    async def test_a_head_that_drips_does_not_extend_the_headers_timeout(self) -> None:
        script = [expect_request(), drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 400, every=0.02)]
        async with self.rig(script, timeouts=Timeouts(headers=0.1)) as rig:
            error = await _times_out(rig, HeadersTimeout)

            if self.capabilities().pooled:
                assert (error.response_started, error.replay) == (True, "unsafe")
            assert error.replay != "safe"

    async def test_interim_responses_do_not_extend_the_headers_timeout(self) -> None:
        interim = response(102, framing="none")
        script = [expect_request(), *[send(interim), pause(0.05)] * 60]
        async with self.rig(script, timeouts=Timeouts(headers=0.1)) as rig:
            await _times_out(rig, HeadersTimeout)

    async def test_the_time_a_body_takes_to_send_is_not_the_heads(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            for _ in range(2):
                await anyio.sleep(0.2)
                yield b"piece"

        async with self.rig(serve(PAGE), timeouts=Timeouts(headers=0.3)) as rig:
            assert (await rig.fetch("POST", content=produce())).content == b"page"

    async def test_silence_inside_a_body_is_a_read_timeout(self) -> None:
        script = [expect_request(), send(PAGE[:-1]), hold()]
        async with self.rig(script, timeouts=Timeouts(read=0.1)) as rig:
            error = await _times_out(rig, ReadTimeout)

            assert (error.phase, error.replay) == ("body", "unsafe")
            assert (error.request_sent, error.response_started) == (True, True)

    async def test_a_body_that_keeps_coming_is_no_read_timeout(self) -> None:
        head, body = PAGE[:-4], PAGE[-4:]
        script = [expect_request(), send(head), drip(body, every=0.1)]
        async with self.rig(script, timeouts=Timeouts(read=0.3)) as rig:
            assert (await rig.fetch()).content == b"page"

    async def test_a_reader_who_takes_his_time_gets_no_read_timeout(self) -> None:
        script = [expect_request(), send(PAGE[:-2]), pause(0.05), send(PAGE[-2:])]
        async with self.rig(script, timeouts=Timeouts(read=0.2)) as rig:
            async with await rig.send() as answered:
                pieces = answered.aiter_bytes()
                await anext(pieces)
                await anyio.sleep(0.3)
                rest = b"".join([piece async for piece in pieces])

            assert rest == b"ge"

    @pytest.mark.parametrize("body", ["bytes", "iterated"])
    async def test_a_server_that_never_reads_is_a_write_timeout(self, body: str) -> None:
        async def produce() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield bytes(64 * 1024)

        content = produce() if body == "iterated" else bytes(64 * 1024 * 1000)
        script = [small_buffers(), expect_head(), wait(_TIMED_OUT), drain()]
        async with self.rig(script, timeouts=Timeouts(write=0.1)) as rig:
            error = await _times_out(rig, WriteTimeout, content=content)

            assert (error.phase, error.replay) == ("write", "if_idempotent")
            assert (error.request_sent, error.response_started) == (None, False)
            assert 0 < error.bytes_sent < 64 * 1024 * 1000

    async def test_a_caller_who_produces_slowly_gets_no_write_timeout(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            yield b"one"
            await anyio.sleep(0.3)
            yield b"two"

        async with self.rig(serve(PAGE), timeouts=Timeouts(write=0.2)) as rig:
            await rig.fetch("POST", content=produce())

            assert rig.received.body == b"onetwo"

    # -- total -------------------------------------------------------------------------------------

    @needs("pooled")
    async def test_the_total_deadline_holds_while_connecting(self) -> None:
        async with self.rig(serve(), timeouts=Timeouts(total=0.2)) as rig:
            with unanswering_port() as port, pytest.raises(DeadlineExceeded) as caught:
                await rig.fetch_url(f"http://127.0.0.1:{port}/")

            assert (caught.value.phase, caught.value.replay) == ("connect", "safe")

    async def test_the_total_deadline_holds_while_waiting_for_a_connection(self) -> None:
        limits, timeouts = Limits(max_connections=1), Timeouts(total=0.2)
        async with self.rig(serve(PAGE), limits=limits, timeouts=timeouts) as rig:
            held = await rig.send(timeouts=Timeouts(total=None))
            with pytest.raises(DeadlineExceeded) as caught:
                await rig.fetch()

            assert (caught.value.phase, caught.value.replay) == ("pool", "safe")
            await held.aclose()

    async def test_the_total_deadline_holds_while_sending(self) -> None:
        script = [small_buffers(), expect_head(), wait(_TIMED_OUT), drain()]
        async with self.rig(script, timeouts=Timeouts(total=0.2)) as rig:
            error = await _times_out(rig, DeadlineExceeded, content=bytes(64 * 1024 * 1000))

            assert (error.phase, error.request_sent) == ("write", None)

    async def test_the_total_deadline_holds_while_waiting_for_the_head(self) -> None:
        async with self.rig([expect_request(), hold()], timeouts=Timeouts(total=0.2)) as rig:
            error = await _times_out(rig, DeadlineExceeded)

            assert (error.phase, error.replay) == ("headers", "if_idempotent")

    async def test_the_total_deadline_holds_while_the_body_drips(self) -> None:
        script = [expect_request(), send(response(200, b"x" * 500)[:-500]), drip(b"x" * 500, 0.02)]
        async with self.rig(script, timeouts=Timeouts(total=0.2)) as rig:
            error = await _times_out(rig, DeadlineExceeded)

            assert (error.phase, error.replay) == ("body", "unsafe")

    async def test_the_total_deadline_holds_while_the_caller_produces(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            yield b"first"
            await anyio.sleep(20)

        async with self.rig([expect_head(), hold()], timeouts=Timeouts(total=0.2)) as rig:
            await _times_out(rig, DeadlineExceeded, content=produce())

    async def test_the_total_deadline_counts_from_the_call(self) -> None:
        """Not anew for each phase, nor for each piece."""
        script = [expect_request(), pause(0.15), send(PAGE[:-1]), pause(0.15), hold()]
        async with self.rig(script, timeouts=Timeouts(total=0.2, read=20.0)) as rig:
            error = await _times_out(rig, DeadlineExceeded)

            assert error.phase == "body"

    # -- which ones hold ---------------------------------------------------------------------------

    async def test_a_deadline_that_is_due_before_the_total_one_has_its_own_error(self) -> None:
        limits, timeouts = Limits(max_connections=1), Timeouts(pool=0.1, headers=0.1, total=20.0)
        script = [answer(PAGE), expect_request(), hold()]
        async with self.rig(script, limits=limits, timeouts=timeouts) as rig:
            held = await rig.send()
            with pytest.raises(PoolTimeout):
                await rig.fetch()
            await held.aread()
            await _times_out(rig, HeadersTimeout)

    @needs("pooled")
    async def test_no_connection_within_its_time_is_told_so_although_there_is_a_total_one(
        self,
    ) -> None:
        async with self.rig(serve(), timeouts=Timeouts(connect=0.1, total=20.0)) as rig:
            with unanswering_port() as port, pytest.raises(ConnectTimeout):
                await rig.fetch_url(f"http://127.0.0.1:{port}/")

    async def test_timeouts_of_the_request_replace_the_transports(self) -> None:
        async with self.rig([expect_request(), hold()], timeouts=Timeouts(headers=20.0)) as rig:
            await _times_out(rig, HeadersTimeout, timeouts=Timeouts(headers=0.1))

    async def test_timeouts_that_the_request_leaves_out_stay_the_transports(self) -> None:
        async with self.rig([expect_request(), hold()], timeouts=Timeouts(headers=0.1)) as rig:
            await _times_out(rig, HeadersTimeout, timeouts=Timeouts(read=20.0))

    async def test_none_switches_a_timeout_off(self) -> None:
        script = [expect_request(), pause(0.2), send(PAGE)]
        async with self.rig(script, timeouts=Timeouts(headers=0.1)) as rig:
            answered = await rig.fetch(timeouts=Timeouts(headers=None))

            assert answered.content == b"page"
