"""Ways to read a body: decoded or raw, as bytes, text, JSON, lines or events; once."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Callable

import pytest

from trunkline._errors import DecodeError, DecompressionLimit
from trunkline.testing._conformance._base import Conformance
from trunkline.testing._promises import keeps
from trunkline.testing._script import expect_request as expect, response, send, serve, wait

TEXT = b'{"answer": "' + b"forty-two, " * 300 + b'"}'


def _zstd(data: bytes) -> bytes:
    """A frame of one block that is stored as it is (RFC 8878, section 3.1.1)."""
    magic, single_segment_with_4_byte_size = b"\x28\xb5\x2f\xfd", b"\xa0"
    last_raw_block = (len(data) << 3 | 1).to_bytes(3, "little")
    size = len(data).to_bytes(4, "little")
    return magic + single_segment_with_4_byte_size + size + last_raw_block + data


def _brotli(data: bytes) -> bytes:
    compressed: bytes = importlib.import_module("brotli").compress(data)
    return compressed


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": _brotli,
    "zstd": _zstd,
    "gzip, br": lambda data: _brotli(gzip.compress(data)),
}


class Bodies(Conformance):
    promise = 3

    # -- content coding ----------------------------------------------------------------------------

    @pytest.mark.parametrize("coding", CODINGS)
    async def test_a_coded_body_is_decoded(self, coding: str) -> None:
        coded = response(200, CODINGS[coding](TEXT), ("Content-Encoding", coding))
        async with self.rig(serve(coded)) as rig:
            for _ in range(2):
                assert (await rig.fetch()).content == TEXT
            assert rig.server.connections == 1

    @pytest.mark.parametrize("coding", CODINGS)
    async def test_aiter_raw_gives_the_body_as_it_came(self, coding: str) -> None:
        coded = CODINGS[coding](TEXT)
        async with self.rig(serve(response(200, coded, ("Content-Encoding", coding)))) as rig:
            async with await rig.send() as answered:
                raw = b"".join([piece async for piece in answered.aiter_raw()])

            assert raw == coded
            assert answered.headers["Content-Encoding"] == coding
            assert answered.headers["Content-Length"] == str(len(coded))

    async def test_an_unknown_coding_is_left_as_it_is(self) -> None:
        async with self.rig(serve(response(200, b"%%", ("Content-Encoding", "x-own")))) as rig:
            assert (await rig.fetch()).content == b"%%"

    async def test_a_coded_body_is_decoded_as_it_arrives(self) -> None:
        coder = zlib.compressobj(wbits=31)
        first = coder.compress(b"first") + coder.flush(zlib.Z_SYNC_FLUSH)
        rest = coder.compress(b" second") + coder.flush()
        head = response(200, first + rest, ("Content-Encoding", "gzip"))[: -len(rest)]
        async with (
            self.rig([expect(), send(head), wait("read"), send(rest)]) as rig,
            await rig.send() as answered,
        ):
            pieces = answered.aiter_bytes()
            assert await anext(pieces) == b"first"

            rig.server.open("read")
            assert b"".join([piece async for piece in pieces]) == b" second"

    @keeps(7)
    @pytest.mark.parametrize("cut", ["corrupt", "truncated"])
    async def test_a_body_that_does_not_decode_is_an_error(self, cut: str) -> None:
        coded = gzip.compress(TEXT)
        broken = coded[:-9] if cut == "truncated" else coded[:20] + b"\xff\xff" + coded[22:]
        async with self.rig(serve(response(200, broken, ("Content-Encoding", "gzip")))) as rig:
            with pytest.raises(DecodeError) as caught:
                await rig.fetch()

            assert (caught.value.phase, caught.value.response_started) == ("body", True)
            assert caught.value.host == "127.0.0.1"
            assert rig.transport.snapshot().active == 0

    @keeps(7)
    async def test_a_body_that_inflates_beyond_measure_is_an_error(self) -> None:
        coder = zlib.compressobj(wbits=31)
        bomb = b"".join(coder.compress(bytes(1024 * 1024)) for _ in range(64)) + coder.flush()
        async with self.rig(serve(response(200, bomb, ("Content-Encoding", "gzip")))) as rig:
            async with await rig.send() as answered:
                largest = 0
                with pytest.raises(DecompressionLimit):  # noqa: PT012  # the pieces count
                    async for piece in answered.aiter_bytes():
                        largest = max(largest, len(piece))

            assert largest <= 1024 * 1024
            assert rig.transport.snapshot().active == 0

    # -- forms -------------------------------------------------------------------------------------

    async def test_text_is_decoded_by_the_charset_of_the_content_type(self) -> None:
        latin = response(200, b"caf\xe9", ("Content-Type", "text/plain; charset=iso-8859-1"))
        utf = response(200, "caf\u00e9".encode(), ("Content-Type", "text/plain"))
        async with self.rig(serve(latin, utf)) as rig:
            assert [(await rig.fetch()).text for _ in range(2)] == ["caf\u00e9", "caf\u00e9"]

    async def test_text_may_be_cut_inside_a_character(self) -> None:
        body = "na\u00efve \u20ac".encode()
        head = response(200, body)[: -len(body)]
        bytewise = [body[at : at + 1] for at in range(len(body))]
        async with self.rig([expect(), send(head), send(*bytewise)]) as rig:
            async with await rig.send() as answered:
                text = "".join([piece async for piece in answered.aiter_text()])

            assert text == "na\u00efve \u20ac"

    async def test_json_is_parsed(self) -> None:
        async with self.rig(serve(response(200, b'{"a": [1, 2.5, null]}'))) as rig:
            assert (await rig.fetch()).json() == {"a": [1, 2.5, None]}

    async def test_lines_come_without_their_ends(self) -> None:
        async with self.rig(serve(response(200, b"one\ntwo\r\n\r\nthree\rfour"))) as rig:
            async with await rig.send() as answered:
                lines = [line async for line in answered.aiter_lines()]

            assert lines == ["one", "two", "", "three", "four"]

    async def test_server_sent_events_are_parsed(self) -> None:
        stream = b": ping\n\nevent: delta\nid: 7\ndata: one\ndata: two\n\ndata: [DONE]\n\ndata: cut"
        async with self.rig(serve(response(200, stream, framing="chunked"))) as rig:
            async with await rig.send() as answered:
                events = [(e.event, e.data, e.id) async for e in answered.aiter_sse()]

            assert events == [("delta", "one\ntwo", "7"), ("message", "[DONE]", "7")]

    async def test_an_event_is_given_when_it_is_complete_on_the_wire(self) -> None:
        first, second = b"data: 1\n\n", b"data: 2\n\n"
        head = response(200, first + second)[: -len(second)]
        async with (
            self.rig([expect(), send(head), wait("read"), send(second)]) as rig,
            await rig.send() as answered,
        ):
            events = answered.aiter_sse()
            assert (await anext(events)).data == "1"

            rig.server.open("read")
            assert (await anext(events)).data == "2"

    # -- once --------------------------------------------------------------------------------------

    async def test_aread_may_be_called_twice(self) -> None:
        async with (
            self.rig(serve(response(200, b"body"))) as rig,
            await rig.send() as answered,
        ):
            assert await answered.aread() == await answered.aread() == b"body"

    async def test_the_body_may_be_iterated_after_aread(self) -> None:
        async with self.rig(serve(response(200, b"body"))) as rig:
            answered = await rig.fetch()

            assert [piece async for piece in answered.aiter_bytes()] == [b"body"]

    async def test_content_before_aread_is_a_mistake(self) -> None:
        async with (
            self.rig(serve(response(200, b"body"))) as rig,
            await rig.send() as answered,
        ):
            for attribute in ("content", "text"):
                with pytest.raises(RuntimeError):
                    getattr(answered, attribute)

    async def test_reading_after_close_is_a_mistake(self) -> None:
        async with self.rig(serve(response(200, b"body"))) as rig:
            answered = await rig.send()
            await answered.aclose()

            with pytest.raises(RuntimeError):
                await answered.aread()

    async def test_a_streamed_body_is_read_once(self) -> None:
        async with (
            self.rig(serve(response(200, b"body"))) as rig,
            await rig.send() as answered,
        ):
            assert [piece async for piece in answered.aiter_bytes()] == [b"body"]

            with pytest.raises(RuntimeError):
                [piece async for piece in answered.aiter_bytes()]

    async def test_reading_to_the_end_closes_the_response(self) -> None:
        async with self.rig(serve(response(200, b"body"))) as rig:
            answered = await rig.send()
            assert not answered.is_closed

            await answered.aread()
            assert answered.is_closed

    async def test_closing_twice_does_no_harm(self) -> None:
        async with self.rig(serve(response(200, b"body"))) as rig:
            answered = await rig.send()
            await answered.aclose()
            await answered.aclose()

            assert (await rig.fetch()).content == b"body"
