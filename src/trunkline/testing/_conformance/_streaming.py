"""Bodies in motion: pieces go when they are there, and no faster than the other side takes them."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable

import anyio
import pytest

from trunkline._errors import NetworkError
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import pieces_of, until
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    chunk,
    chunked,
    close,
    expect_head,
    expect_request,
    expect_rest,
    fin,
    flood,
    hold,
    response,
    rst,
    send,
    serve,
    wait,
)
from trunkline.testing._servers import Step

MIB = 1024 * 1024
CHUNKED_HEAD = response(200, framing="chunked").removesuffix(chunked())

# What the kernel of either side may hold for a connection (tcp_rmem and tcp_wmem, tcp(7)), with
# room for a machine that is set up for long fat networks.
KERNEL_BUFFERS = 24 * MIB


class Streaming(Conformance):
    promise = 3

    # -- down --------------------------------------------------------------------------------------

    async def test_the_head_is_returned_before_the_body_has_come(self) -> None:
        whole = response(200, b"late")
        async with (
            self.rig([expect_request(), send(whole[:-4]), wait("head"), send(b"late")]) as rig,
            await rig.send() as answered,
        ):
            assert answered.status_code == 200

            rig.server.open("head")
            assert await answered.aread() == b"late"

    async def test_a_piece_is_given_before_the_next_has_come(self) -> None:
        first = [expect_request(), send(CHUNKED_HEAD + chunk(b"first"))]
        async with (
            self.rig([*first, wait("first"), send(chunked(b"second"))]) as rig,
            await rig.send() as answered,
        ):
            pieces = answered.aiter_bytes()
            assert await anext(pieces) == b"first"

            rig.server.open("first")
            assert b"".join([piece async for piece in pieces]) == b"second"

    @keeps(12)
    @pytest.mark.parametrize("framing", ["length", "chunked", "close"])
    async def test_a_large_body_is_received_whole(self, framing: str) -> None:
        body = random.Random(8).randbytes(8 * MIB)
        whole = response(200, body, framing="length")
        if framing == "chunked":
            cut = range(0, len(body), 30_011)
            whole = CHUNKED_HEAD + chunked(*(body[at : at + 30_011] for at in cut))
        if framing == "close":
            whole = response(200, body, framing="close")
        ending = [fin()] if framing == "close" else []
        async with self.rig([expect_request(), send(whole), *ending]) as rig:
            digest = hashlib.sha256()
            async with await rig.send() as answered:
                async for piece in answered.aiter_bytes():
                    digest.update(piece)

            assert digest.digest() == hashlib.sha256(body).digest()

    async def test_a_reader_that_does_not_read_stops_the_server(self) -> None:
        piece = bytes(64 * 1024)
        head = response(200, framing="none").removesuffix(b"\r\n")
        head += b"Content-Length: %d\r\n\r\n" % (1600 * len(piece))
        async with self.rig([expect_request(), send(head), flood(piece, 1600)]) as rig:
            answered = await rig.send()
            await _until_still(lambda: rig.server.sent)

            assert rig.server.sent < KERNEL_BUFFERS
            await answered.aclose()

    async def test_a_reader_that_goes_on_reading_gets_the_rest(self) -> None:
        piece, times = bytes(64 * 1024), 500
        head = response(200, framing="none").removesuffix(b"\r\n")
        head += b"Content-Length: %d\r\n\r\n" % (times * len(piece))
        async with self.rig([expect_request(), send(head), flood(piece, times)]) as rig:
            async with await rig.send() as answered:
                await _until_still(lambda: rig.server.sent)
                size = sum([len(piece) async for piece in answered.aiter_bytes()])

            assert size == times * len(piece)

    async def test_no_piece_is_huge(self) -> None:
        body = bytes(16 * MIB)
        async with self.rig(serve(response(200, body))) as rig:
            async with await rig.send() as answered:
                await anyio.sleep(0.05)  # let what can pile up pile up
                largest = max([len(piece) async for piece in answered.aiter_bytes()])

            assert largest <= MIB

    # -- up ----------------------------------------------------------------------------------------

    async def test_a_body_is_sent_as_it_is_produced(self) -> None:
        async with self.rig(serve()) as rig:

            async def produce() -> AsyncIterator[bytes]:
                yield b"first"
                await until(lambda: b"first" in rig.server.received)
                yield b"second"

            await rig.fetch("POST", content=produce())
            assert rig.received.body == b"firstsecond"

    async def test_a_body_is_not_produced_faster_than_the_server_takes_it(self) -> None:
        produced = 0

        async def produce() -> AsyncIterator[bytes]:
            nonlocal produced
            for _ in range(1600):  # 100 MiB
                produced += 64 * 1024
                yield bytes(64 * 1024)

        async with self.rig([expect_head(), hold()]) as rig:
            call = rig.begin("POST", content=produce())
            await rig.until_received()
            await _until_still(lambda: produced)

            assert 0 < produced < KERNEL_BUFFERS
            call.cancel()

    @keeps(7)
    async def test_an_error_of_the_body_reaches_the_caller(self) -> None:
        async with self.rig(serve()) as rig:
            with pytest.raises(_OwnError):
                await rig.fetch("POST", content=_broken(b"first"))

            assert not any(request.complete for request in rig.server.requests)

    @keeps(7)
    async def test_an_error_of_the_body_keeps_its_own_cause(self) -> None:
        async with self.rig(serve()) as rig:
            with pytest.raises(_OwnError) as raised:
                await rig.fetch("POST", content=_broken(b"first"))

            assert type(raised.value.__cause__) is KeyError

    @keeps(7)
    async def test_a_body_that_awaits_a_cancelled_task_ends_the_call(
        self, anyio_backend_name: str
    ) -> None:
        if anyio_backend_name != "asyncio":
            pytest.skip("elsewhere cancellation does not spread to who awaits")
        task = asyncio.ensure_future(asyncio.sleep(60))

        async def produce() -> AsyncIterator[bytes]:
            yield b"first"
            task.cancel()
            await task

        async with self.rig(serve()) as rig:
            with pytest.raises(asyncio.CancelledError), anyio.fail_after(20):
                await rig.fetch("POST", content=produce())

            await rig.until_client_closed()
            assert not any(request.complete for request in rig.server.requests)

    @keeps(7)
    async def test_an_error_of_the_body_ends_the_connection(self) -> None:
        async with self.rig(serve()) as rig:
            with pytest.raises(_OwnError):
                await rig.fetch("POST", content=_broken(b"first"))

            await rig.until_client_closed()
            assert (await rig.fetch("GET", "/next")).status_code == 200
            assert [each.target for each in rig.server.conversations[1].requests] == ["/next"]

    @keeps(5)
    async def test_the_body_is_closed_when_the_call_is_cancelled(self) -> None:
        begun, closed = anyio.Event(), anyio.Event()

        async def produce() -> AsyncIterator[bytes]:
            try:
                begun.set()
                yield b"first"
                await anyio.sleep_forever()
            finally:
                closed.set()

        async with self.rig([expect_head(), hold()]) as rig:
            call = rig.begin("POST", content=produce())
            await begun.wait()
            call.cancel()

            await call.done.wait()
            await until(closed.is_set)

    # -- both at once ------------------------------------------------------------------------------

    @pytest.mark.parametrize("ending", ["kept-open", "half-closed", "closed", "reset"])
    async def test_an_early_refusal_is_delivered_and_stops_the_upload(self, ending: str) -> None:
        endings: dict[str, Step] = {
            "kept-open": hold(),
            "half-closed": fin(),
            "closed": close(),
            "reset": rst(),
        }
        script = [expect_head(), send(response(413, b"too large")), wait("read"), endings[ending]]
        async with self.rig(script, serve()) as rig:
            answered = await rig.send("POST", content=_more_than_fits())
            assert (await answered.aread(), answered.status_code) == (b"too large", 413)

            rig.server.open("read")
            await until(lambda: rig.transport.snapshot().open == 0)
            assert (await rig.fetch()).status_code == 200

    async def test_an_early_refusal_closes_the_body(self) -> None:
        closed = anyio.Event()
        async with self.rig([expect_head(), send(response(413)), hold()]) as rig:
            await rig.fetch("POST", content=_more_than_fits(closed))

            await until(closed.is_set)

    @keeps(7)
    async def test_a_server_that_hangs_up_on_an_upload_is_an_error_with_facts(self) -> None:
        async with self.rig([expect_head(), rst()]) as rig:
            with pytest.raises(NetworkError) as caught:
                await rig.fetch("POST", content=_more_than_fits())

            assert caught.value.request_sent is None
            assert caught.value.bytes_sent > 0
            assert caught.value.replay == "if_idempotent"

    @needs("duplex")
    async def test_the_rest_of_a_body_is_sent_after_the_response_has_begun(self) -> None:
        script = [expect_head(), send(CHUNKED_HEAD + chunk(b"welcome"))]
        async with self.rig([*script, wait("more"), expect_rest(), send(chunked(b"done"))]) as rig:
            greeted = anyio.Event()

            async def produce() -> AsyncIterator[bytes]:
                yield b"one"
                await greeted.wait()
                yield b"two"

            async with await rig.send("POST", content=produce()) as answered:
                pieces = answered.aiter_bytes()
                assert await anext(pieces) == b"welcome"

                greeted.set()
                rig.server.open("more")
                assert b"".join([piece async for piece in pieces]) == b"done"
            assert rig.received.body == b"onetwo"

    async def test_expect_100_continue_gets_its_continue(self) -> None:
        script = [expect_head(), send(response(100, framing="none")), expect_rest()]
        async with self.rig([*script, send(response(200, b"thanks"))]) as rig:
            answered = await rig.fetch(
                "POST", headers={"Expect": "100-continue"}, content=pieces_of(b"body")
            )

            assert answered.content == b"thanks"
            assert rig.received.body == b"body"


class _OwnError(Exception):
    """What a caller's body raises."""


async def _broken(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    raise _OwnError from KeyError("why")


async def _more_than_fits(closed: anyio.Event | None = None) -> AsyncIterator[bytes]:
    """It never waits: whoever sends it has to see for himself that the other side has gone."""
    try:
        for _ in range(8 * KERNEL_BUFFERS // 16384):
            yield bytes(16384)
    finally:
        if closed is not None:
            closed.set()


async def _until_still(count: Callable[[], int]) -> None:
    """Wait until `count` has begun to grow, and has not grown for a while."""
    await until(lambda: count() > 0)
    before = -1
    while before != (before := count()):  # noqa: ASYNC110  # it counts in other threads
        await anyio.sleep(0.1)
