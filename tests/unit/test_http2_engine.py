"""The HTTP/2 engine, without IO: against h2's server side, and against bytes of any kind.

This module knows frames. What a backend makes of the engine is tested beside the backend, and what
callers see of every fault in `tests/faults`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import hyperframe.frame as frames
import pytest
from h2.errors import ErrorCodes
from hypothesis import given, strategies as st

from trunkline import (
    GoAway,
    LimitExceeded,
    RemoteDisconnected,
    RemoteProtocolError,
    Request,
    StreamRefused,
    StreamReset,
)
from trunkline.http2 import Http2Engine, Http2Exchange
from trunkline.http2._fields import encode_head
from trunkline.http2._hpack import HeaderDecoder
from trunkline.http2._protocol import Protocol

T = TypeVar("T")
URL = "https://api.test/v1"
OK = [(":status", "200")]
MIB = 1024 * 1024


class Attempt:
    """An attempt without deadlines."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.response_started = self.is_body_untouched = self.is_untaken = False
        self.phases: list[str] = []

    def begin(self, phase: str) -> None:
        self.phases.append(phase)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        return await awaitable


class Exchange(Http2Exchange):
    """One that nobody has to wait for: all that comes is there before it is asked."""

    def wake(self) -> None:
        pass

    async def until(self, ready: Callable[[], bool]) -> None:
        assert ready(), "it would have waited for ever"

    async def flush(self) -> None:
        pass

    def outcome(self) -> bytes | BaseException:
        async def read() -> bytes:
            await self.head()
            body = b""
            while piece := await self.read():
                body += piece
            return body

        try:
            return asyncio.run(read())
        except Exception as error:  # noqa: BLE001  # it is the result
            return error


class Wire:
    """An engine and h2's server, which have greeted each other."""

    def __init__(self, **options: Any) -> None:
        self.engine = Http2Engine(**options)
        self.server = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.server.initiate_connection()
        self.cross()
        self.cross()

    def cross(self) -> list[h2.events.Event]:
        """Carry what there is over, both ways; return what the server made of it."""
        events = self.server.receive_data(self.engine.take_output())
        self.engine.receive(self.server.data_to_send())
        return events

    def ask(self, method: str = "GET", **options: Any) -> Exchange:
        request = Request(method, URL, **options)
        exchange = Exchange(self.engine, request, Attempt())
        content = request.content
        exchange.begin(request, end=not content)
        if isinstance(content, bytes) and content:
            assert not exchange.send_nowait(memoryview(content), is_last=True)
        self.cross()
        return exchange

    def answer(
        self, exchange: Exchange, body: bytes = b"", fields: Any = OK, *, end: bool = True
    ) -> None:
        self.server.send_headers(exchange.id, fields, end_stream=end and not body)
        for at in range(0, len(body), 16384):
            is_last = end and at + 16384 >= len(body)
            self.server.send_data(exchange.id, body[at : at + 16384], end_stream=is_last)
        self.cross()

    def inject(self, *sent: frames.Frame) -> None:
        self.engine.receive(b"".join(frame.serialize() for frame in sent))


def headers(
    exchange: Exchange, *fields: tuple[bytes, bytes], flags: tuple[str, ...] = ("END_HEADERS",)
) -> frames.Frame:
    block = hpack.Encoder().encode([(b":status", b"200"), *fields])
    return frames.HeadersFrame(exchange.id, block, flags=list(flags))


# -- messages --------------------------------------------------------------------------------------


def test_a_request_and_its_response_cross() -> None:
    wire = Wire()
    asked = wire.ask("POST", content=b"question")
    wire.answer(asked, b"answer")
    assert asked.outcome() == b"answer"
    assert (asked.status_code, wire.engine.is_busy) == (200, False)


def test_fields_that_only_http_1_1_has_are_left_out_and_secrets_are_never_indexed() -> None:
    request = Request(
        "GET",
        "https://[::1]:8443/a?b",
        headers=[
            ("X-Name", " value\t"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "gzip"),
            ("Authorization", "Bearer key"),
        ],
    )
    fields = encode_head(request)
    assert fields == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"[::1]:8443"),
        (b":path", b"/a?b"),
        (b"x-name", b"value"),
        (b"authorization", b"Bearer key"),
    ]
    assert isinstance(fields[-1], hpack.NeverIndexedHeaderTuple)


def test_crumbs_of_a_cookie_are_joined() -> None:
    wire = Wire()
    asked = wire.ask()
    wire.inject(headers(asked, (b"cookie", b"a=1"), (b"cookie", b"b=2")))
    assert asked.headers.getall("cookie") == ["a=1; b=2"]


@pytest.mark.parametrize(
    "field",
    [
        (b"X-Upper", b"1"),
        (b"x name", b"1"),
        (b"", b"1"),
        (b":path", b"/"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b" a"),
        (b"x", b"a\t"),
        (b"content-length", b"+1"),
        (b"content-length", b"1, 2"),
    ],
)
def test_a_malformed_head_ends_its_stream_and_no_other(field: tuple[bytes, bytes]) -> None:
    wire = Wire()
    asked, other = wire.ask(), wire.ask()
    wire.inject(headers(asked, field))
    events = wire.cross()
    assert [type(event) for event in events] == [h2.events.StreamReset]
    assert type(asked.outcome()) is RemoteProtocolError
    wire.answer(other, b"answer")
    assert other.outcome() == b"answer"


@pytest.mark.parametrize(
    ("method", "fields", "body", "fits"),
    [
        ("GET", [(":status", "200"), ("content-length", "3")], b"abc", True),
        ("GET", [(":status", "200"), ("content-length", "4")], b"abc", False),
        ("GET", [(":status", "200"), ("content-length", "2")], b"abc", False),
        ("GET", [(":status", "200"), ("content-length", "2")], b"", False),
        ("HEAD", [(":status", "200"), ("content-length", "9")], b"", True),
        ("HEAD", [(":status", "200")], b"abc", False),
        ("GET", [(":status", "304"), ("content-length", "9")], b"", True),
        ("GET", [(":status", "204")], b"abc", False),
    ],
)
def test_content_length_is_held_against_the_body(
    method: str, fields: Any, body: bytes, fits: bool
) -> None:
    wire = Wire()
    asked = wire.ask(method)
    wire.answer(asked, body, fields)
    outcome = asked.outcome()
    if fits:
        assert outcome == body
    else:
        assert isinstance(outcome, RemoteProtocolError)
    assert not wire.engine.is_closed


# -- windows ---------------------------------------------------------------------------------------


def test_ten_thousand_dropped_bodies_leave_the_windows_whole() -> None:
    wire = Wire()
    for number in range(10_000):
        asked = wire.ask()
        wire.answer(asked, bytes(16384), end=False)
        if number % 2:
            wire.server.send_data(asked.id, bytes(16384))  # crosses with the reset
        asked.close()
        wire.cross()
    assert wire.server.outbound_flow_control_window > 98 * MIB
    last = wire.ask()
    wire.answer(last, b"answer")
    assert last.outcome() == b"answer"


def test_padding_is_given_back_too() -> None:
    wire = Wire()
    for _ in range(20):
        asked = wire.ask()
        wire.server.send_headers(asked.id, OK)
        for _ in range(400):
            wire.server.send_data(asked.id, b"x", pad_length=255)
        wire.server.end_stream(asked.id)
        wire.cross()
        assert asked.outcome() == b"x" * 400
    wire.cross()
    assert wire.server.outbound_flow_control_window > 98 * MIB


def test_a_stream_that_is_read_gets_more_than_its_first_window() -> None:
    wire = Wire()
    asked = wire.ask()
    wire.answer(asked, bytes(MIB), end=False)
    assert wire.server.local_flow_control_window(asked.id) == 0
    asyncio.run(asked.read())
    wire.cross()
    assert wire.server.local_flow_control_window(asked.id) == MIB


# -- ends ------------------------------------------------------------------------------------------


def test_a_goaway_ends_what_it_leaves_out_and_finishes_the_rest() -> None:
    wire = Wire()
    told: list[bool] = []
    wire.engine.on_change = lambda: told.append(wire.engine.is_retired)
    first, second = wire.ask(), wire.ask()
    wire.inject(frames.GoAwayFrame(0, last_stream_id=first.id))
    assert told == [True]
    assert isinstance(second.outcome(), GoAway)
    wire.answer(first, b"answer")
    assert first.outcome() == b"answer"
    with pytest.raises(StreamRefused):
        wire.ask()


def test_each_reset_is_told_by_its_code() -> None:
    wire = Wire()
    refused, cancelled = wire.ask(), wire.ask()
    wire.server.reset_stream(refused.id, ErrorCodes.REFUSED_STREAM)
    wire.server.reset_stream(cancelled.id, ErrorCodes.ENHANCE_YOUR_CALM)
    wire.cross()
    assert isinstance(refused.outcome(), StreamRefused)
    error = cancelled.outcome()
    assert isinstance(error, StreamReset)
    assert error.code == ErrorCodes.ENHANCE_YOUR_CALM


def test_what_came_before_a_bad_frame_is_delivered() -> None:
    wire = Wire()
    whole, open_still = wire.ask(), wire.ask()
    wire.inject(headers(whole, flags=("END_HEADERS", "END_STREAM")), frames.ContinuationFrame(5))
    assert whole.outcome() == b""
    assert isinstance(open_still.outcome(), RemoteProtocolError)
    assert wire.engine.is_closed


def test_a_fault_of_ours_ends_every_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    asked = [wire.ask(), wire.ask()]

    def fail(*_: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(Exchange, "take_head", fail)
    wire.answer(asked[0])
    assert wire.engine.is_closed
    assert {type(each.outcome()) for each in asked} == {RemoteProtocolError}


def test_a_change_of_the_number_of_streams_is_told_once() -> None:
    wire = Wire()
    told: list[int] = []
    wire.engine.on_change = lambda: told.append(wire.engine.max_exchanges)
    for number in (10, 10, 0, 1000):
        code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
        wire.server.update_settings({code: number})
        wire.cross()
        wire.cross()
    assert told == [10, 0, 100]


@pytest.mark.parametrize("frame", [frames.PingFrame(0), frames.SettingsFrame(0)])
def test_a_flood_ends_the_connection(frame: frames.Frame) -> None:
    wire = Wire()
    asked = wire.ask()
    wire.inject(*[frame] * 1500)
    assert isinstance(asked.outcome(), LimitExceeded)


# -- signs of life ---------------------------------------------------------------------------------


def test_a_silent_peer_is_asked_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("trunkline.http2._engine.monotonic", lambda: now[0])
    wire = Wire(ping_interval=10.0)
    asked = wire.ask()
    assert wire.engine.keep_alive() == 10.0
    now[0] += 10.0
    assert wire.engine.keep_alive() == 10.0
    wire.cross()  # the answer
    now[0] += 10.0
    assert wire.engine.keep_alive() == 10.0
    now[0] += 10.0
    assert wire.engine.keep_alive() is None
    error = asked.outcome()
    assert isinstance(error, RemoteDisconnected)
    assert isinstance(error.__cause__, TimeoutError)
    assert wire.engine.is_closed


# -- any bytes -------------------------------------------------------------------------------------

_IDS = st.integers(1, 6)


def _data(stream_id: int, data: bytes) -> frames.Frame:
    return frames.DataFrame(stream_id, data=data)


def _end(stream_id: int) -> frames.Frame:
    return frames.DataFrame(stream_id, flags=["END_STREAM"])


def _head(stream_id: int, status: bytes) -> frames.Frame:
    block = hpack.Encoder().encode([(b":status", status)])
    return frames.HeadersFrame(stream_id, block, flags=["END_HEADERS"])


def _reset(stream_id: int, code: int) -> frames.Frame:
    return frames.RstStreamFrame(stream_id, error_code=code)


def _goaway(last_id: int) -> frames.Frame:
    return frames.GoAwayFrame(0, last_stream_id=last_id)


def _window(stream_id: int, increment: int) -> frames.Frame:
    return frames.WindowUpdateFrame(stream_id, window_increment=increment)


def _settings(code: int, value: int) -> frames.Frame:
    return frames.SettingsFrame(0, settings={code: value})


def _ping(data: bytes) -> frames.Frame:
    return frames.PingFrame(0, opaque_data=data)


_FRAMES = (
    st.builds(_data, _IDS, st.binary(max_size=40))
    | st.builds(_end, _IDS)
    | st.builds(_head, _IDS, st.sampled_from([b"200", b"103", b"bad"]))
    | st.builds(_reset, _IDS, st.integers(0, 20))
    | st.builds(_goaway, st.integers(0, 6))
    | st.builds(_window, st.integers(0, 6), st.integers(1, 2**31 - 1))
    | st.builds(_settings, st.integers(1, 7), st.integers(0, 2**31))
    | st.builds(_ping, st.binary(max_size=8))
    | st.just(frames.ContinuationFrame(1))
)


@given(sent=st.lists(_FRAMES, max_size=25), garbage=st.binary(max_size=20), close=st.booleans())
def test_whatever_comes_nobody_is_left_waiting_and_nothing_is_left(
    sent: list[frames.Frame], garbage: bytes, close: bool
) -> None:
    wire = Wire()
    asked = [wire.ask() for _ in range(3)]
    if close:
        asked[1].close()
    for frame in sent:
        wire.inject(frame)
    wire.engine.receive(garbage)
    wire.engine.end(None)
    for each in asked:
        assert each.failure is not None or each.is_complete or (close and each is asked[1])
        each.outcome()
        each.close()
    assert not wire.engine.is_busy


@given(
    sent=st.lists(
        st.builds(_data, st.integers(1, 9), st.binary(max_size=40))
        | st.builds(_ping, st.binary(max_size=8)),
        max_size=8,
    ),
    cuts=st.lists(st.integers(0, 500), max_size=6),
)
def test_frames_are_the_same_wherever_the_bytes_are_cut(
    sent: list[frames.Frame], cuts: list[int]
) -> None:
    data = b"".join(frame.serialize() for frame in sent)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    protocol = Protocol()
    found = [frame for start, end in pairwise(edges) for frame in protocol.frames(data[start:end])]
    assert b"".join(payload for *_, payload in found) == b"".join(
        frame.serialize_body() for frame in sent
    )


# -- below the surface of the libraries ------------------------------------------------------------


@given(
    blocks=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([b":status", b"server", b"x-name", b"set-cookie"])
                | st.binary(max_size=12),
                st.sampled_from([b"200", b"nginx", b"gzip"]) | st.binary(max_size=80),
            ),
            max_size=8,
        ),
        max_size=6,
    ),
    huffman=st.booleans(),
    size=st.sampled_from([0, 100, 4096]),
)
def test_header_blocks_decode_as_the_library_decodes_them(
    blocks: list[list[tuple[bytes, bytes]]], huffman: bool, size: int
) -> None:
    encoder, theirs, ours = hpack.Encoder(), hpack.Decoder(), HeaderDecoder()
    encoder.header_table_size = size
    for fields in blocks:
        block = encoder.encode(fields, huffman=huffman)
        assert ours.decode(block) == list(theirs.decode(block, raw=True)) == fields


@given(data=st.binary(max_size=60))
def test_bad_header_blocks_are_refused_as_the_library_refuses_them(data: bytes) -> None:
    theirs, ours = hpack.Decoder(), HeaderDecoder()
    try:
        expected = list(theirs.decode(data, raw=True))
    except (hpack.HPACKError, IndexError):
        with pytest.raises((hpack.HPACKError, IndexError)):
            ours.decode(data)
    else:
        assert ours.decode(data) == expected


def test_h2_has_what_is_used_of_it_below_its_surface() -> None:
    protocol = Protocol()
    assert protocol.data_to_send().startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    stream_id = protocol.send_request([(b":method", b"GET")], end=True)
    assert stream_id == protocol.highest_outbound_stream_id == 1
    assert protocol.open_outbound_streams == len(protocol.streams) == 1
    protocol.reset_stream(stream_id)
    protocol.forget(stream_id)
    assert protocol.open_outbound_streams == 0
    protocol.data_to_send()
    late = frames.DataFrame(stream_id, b"late")
    assert protocol.take(late) == []
    assert (protocol.late, protocol.data_to_send()) == (4, b"")  # and no second RST_STREAM
