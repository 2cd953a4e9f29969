"""Exchanges that fail on the wire: each fault has its error, and ends its connection."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trunkline._config import Timeouts
from trunkline._errors import (
    BodyTruncated,
    LimitExceeded,
    NetworkError,
    ReadError,
    RemoteDisconnected,
    RemoteProtocolError,
    TransportError,
)
from trunkline.testing._conformance._base import TIMEOUTS, Conformance, Rig
from trunkline.testing._conformance._helpers import counts
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    chunk,
    chunked,
    close,
    expect_request,
    fin,
    flood,
    pause,
    response,
    rst,
    send,
    serve,
)
from trunkline.testing._servers import Step

PAGE = response(200, b"page")
CHUNKED_HEAD = response(200, framing="chunked").removesuffix(chunked())
HEAD_WITHOUT_END = b"HTTP/1.1 200 OK\r\nX-Long: "

BROKEN_HEADS = {
    "no-http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "status-of-letters": b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
    "status-of-two-digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "header-without-colon": b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n",
    "space-in-a-name": b"HTTP/1.1 200 OK\r\nX Y: 1\r\nContent-Length: 0\r\n\r\n",
    "nul-in-a-value": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "negative-length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "length-of-letters": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "length-and-chunked": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "unknown-transfer-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x-own\r\n\r\nbody",
}

BROKEN_CHUNKS = {
    "size-of-letters": b"xyz\r\nbody\r\n0\r\n\r\n",
    "negative-size": b"-4\r\nbody\r\n0\r\n\r\n",
    "huge-size": b"fffffffffffffffffffff\r\nbody\r\n0\r\n\r\n",
    "longer-than-its-size": b"2\r\nbody\r\n0\r\n\r\n",
}


async def _fails(
    rig: Rig, kind: type[TransportError] | tuple[type[TransportError], ...]
) -> TransportError:
    """POST something, which has to fail; the transport has to be as good as new after it."""
    with pytest.raises(kind) as caught:
        await rig.fetch("POST", content=b"order")
    error = caught.value
    assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
    assert (error.attempts, error.connection_reused) == (1, False)
    assert error.http_version == "HTTP/1.1" or not rig.transport.capabilities.pooled
    assert error.bytes_sent >= len(b"order")
    assert (await rig.fetch("GET", "/after")).content == b"page"
    return error


class Failing(Conformance):
    promise = 7

    # -- the connection ends -----------------------------------------------------------------------

    @pytest.mark.parametrize("ending", [fin(), close(), rst()], ids=["fin", "close", "rst"])
    async def test_an_end_before_the_head_is_a_disconnection(self, ending: Step) -> None:
        async with self.rig([expect_request(), ending], serve(PAGE)) as rig:
            error = await _fails(rig, RemoteDisconnected)

            if self.capabilities().pooled:
                assert (error.request_sent, error.response_started) == (True, False)
            assert (error.phase, error.replay) == ("headers", "if_idempotent")

    @pytest.mark.parametrize("ending", [fin(), rst()], ids=["fin", "rst"])
    async def test_an_end_inside_the_head_is_a_network_error(self, ending: Step) -> None:
        script = [expect_request(), send(b"HTTP/1.1 200 OK\r\nContent-Le"), pause(0.02), ending]
        async with self.rig(script, serve(PAGE)) as rig:
            error = await _fails(rig, NetworkError)

            if self.capabilities().pooled:
                assert (error.response_started, error.replay) == (True, "unsafe")
            assert error.replay != "safe"

    @keeps(12)
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_body_that_is_cut_off_is_truncated(self, framing: str) -> None:
        answer = response(200, b"12345", framing="length")[:-2]
        if framing == "chunked":
            answer = CHUNKED_HEAD + chunk(b"12345")
        async with self.rig([expect_request(), send(answer), fin()], serve(PAGE)) as rig:
            error = await _fails(rig, BodyTruncated)

            assert (error.request_sent, error.response_started) == (True, True)
            assert (error.phase, error.replay) == ("body", "unsafe")

    @keeps(12)
    async def test_a_chunk_that_is_cut_off_is_truncated(self) -> None:
        script = [expect_request(), send(CHUNKED_HEAD + chunk(b"12345")[:-4]), fin()]
        async with self.rig(script, serve(PAGE)) as rig:
            await _fails(rig, BodyTruncated)

    @keeps(12)
    @pytest.mark.parametrize("framing", ["length", "chunked", "close"])
    async def test_a_body_that_is_reset_never_looks_whole(self, framing: str) -> None:
        answer = {
            "length": response(200, b"12345")[:-2],
            "chunked": CHUNKED_HEAD + chunk(b"12345"),
            "close": response(200, b"12345", framing="close"),
        }[framing]
        script = [expect_request(), send(answer), pause(0.05), rst()]
        async with self.rig(script, serve(PAGE)) as rig:
            error = await _fails(rig, (BodyTruncated, ReadError))

            assert (error.phase, error.replay) == ("body", "unsafe")

    @keeps(12)
    async def test_what_came_before_the_cut_is_delivered(self) -> None:
        script = [expect_request(), send(response(200, b"12345")[:-2]), pause(0.02), fin()]
        async with self.rig(script) as rig, await rig.send() as answered:
            pieces = answered.aiter_bytes()
            assert await anext(pieces) == b"123"

            with pytest.raises(BodyTruncated):
                await anext(pieces)

    # -- the protocol is broken --------------------------------------------------------------------

    @pytest.mark.parametrize("fault", BROKEN_HEADS)
    async def test_a_head_that_is_not_http_is_a_protocol_error(self, fault: str) -> None:
        async with self.rig([expect_request(), send(BROKEN_HEADS[fault])], serve(PAGE)) as rig:
            error = await _fails(rig, RemoteProtocolError)

            assert (error.response_started, error.replay) == (True, "unsafe")

    @pytest.mark.parametrize("fault", BROKEN_CHUNKS)
    async def test_a_broken_chunk_is_a_protocol_error(self, fault: str) -> None:
        script = [expect_request(), send(CHUNKED_HEAD + BROKEN_CHUNKS[fault])]
        async with self.rig(script, serve(PAGE)) as rig:
            await _fails(rig, RemoteProtocolError)

    @pytest.mark.parametrize("fault", BROKEN_CHUNKS)
    async def test_a_broken_chunk_in_a_later_packet_is_a_protocol_error(self, fault: str) -> None:
        broken = [send(CHUNKED_HEAD + chunk(b"good")), pause(0.05), send(BROKEN_CHUNKS[fault])]
        async with self.rig([expect_request(), *broken], serve(PAGE)) as rig:
            error = await _fails(rig, RemoteProtocolError)

            assert (error.phase, error.replay) == ("body", "unsafe")

    async def test_an_unasked_switch_of_protocols_is_a_protocol_error(self) -> None:
        switch = response(101, b"", ("Upgrade", "x-own"), ("Connection", "upgrade"), framing="none")
        async with self.rig([expect_request(), send(switch)], serve(PAGE)) as rig:
            await _fails(rig, RemoteProtocolError)

    # -- more than is bearable ---------------------------------------------------------------------

    oversized: Sequence[tuple[str, list[Step]]] = (
        ("one-huge-value", [send(HEAD_WITHOUT_END), flood(b"x" * 65536, 64)]),
        ("endless-value", [send(HEAD_WITHOUT_END), flood(b"x" * 65536)]),
        ("endless-headers", [send(b"HTTP/1.1 200 OK\r\n"), flood(b"X-One-More: again\r\n" * 4096)]),
        (
            "ten-thousand-headers",
            [send(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 10_000, b"Content-Length: 0\r\n\r\n")],
        ),
    )

    @pytest.mark.parametrize(
        "steps", [steps for _, steps in oversized], ids=[name for name, _ in oversized]
    )
    async def test_a_head_that_is_too_large_exceeds_a_limit(self, steps: list[Step]) -> None:
        async with self.rig([expect_request(), *steps], serve(PAGE)) as rig:
            await _fails(rig, LimitExceeded)

    async def test_interim_responses_without_end_are_an_error(self) -> None:
        interim = response(102, framing="none")
        timeouts = TIMEOUTS.model_copy(update={"headers": 2.0})
        script = [expect_request(), flood(interim * 100)]
        async with self.rig(script, serve(PAGE), timeouts=timeouts) as rig:
            with pytest.raises(TransportError) as caught:
                await rig.fetch()

            assert caught.value.elapsed is not None
            assert caught.value.elapsed < 10.0

    async def test_a_chunk_extension_without_end_is_an_error(self) -> None:
        script = [expect_request(), send(CHUNKED_HEAD + b"5;"), flood(b"x" * 65536)]
        timeouts = Timeouts(read=2.0, total=10.0)
        async with self.rig(script, serve(PAGE), timeouts=timeouts) as rig:
            await _fails(rig, RemoteProtocolError)
