"""What an HTTP/2 client sent on one connection, frame by frame, and whether it was allowed to.

This module knows frames, header compression, windows, and what a client must not do (RFC 9113). It
does not know sockets, or what the server answers beside what it has to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import hpack
import hyperframe.exceptions
import hyperframe.frame as wire

from trunkline.testing._conversation import ReceivedRequest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW = 65_535  # RFC 9113 section 6.9.2
MAX_WINDOW = MAX_ID = 2**31 - 1
FRAME = 16_384  # RFC 9113 section 4.2

_FRAME_HEAD = 9
_OF_THE_CONNECTION = frozenset(  # RFC 9113 section 8.2.2
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)


class Violation(Exception):
    """The client did what HTTP/2 forbids."""


MALFORMED = (
    Violation,
    hyperframe.exceptions.HyperframeError,
    hpack.HPACKError,
    UnicodeDecodeError,
)


@dataclass(slots=True, eq=False)
class Stream(ReceivedRequest):
    """One request as it came, and how far its answer is.

    Attributes:
        id: of the stream.
        trailers: header fields after the body.
        frames: the length of each DATA frame, padding included.
        granted: the sum of its WINDOW_UPDATEs.
        reset: the code of the first RST_STREAM that came; None while none has.
        allowed: bytes that it may still send, as far as its own window goes.
        sent: bytes of the answer that count against the client's window.
        answered: we have ended our side, in whatever way.
        refused: we have said that it was not processed.
    """

    id: int = 0
    trailers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    frames: list[int] = field(default_factory=list[int])
    granted: int = 0
    reset: int | None = None
    allowed: int = 0
    sent: int = 0
    answered: bool = False
    refused: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it counts as one of the client's (RFC 9113 section 5.1.2)."""
        return self.reset is None and not (self.answered and self.complete) and not self.refused


class Transcript:
    """What came in, told apart.

    Attributes:
        streams: those that the client opened, in their order.
        settings: what the client announced, by code.
        settings_acks: how many of our SETTINGS it acknowledged.
        pings: the payloads of its PINGs.
        pongs: the payloads of its answers to ours.
        goaway: the last stream id and the code of its GOAWAY; None while none has come.
        granted: the sum of its WINDOW_UPDATEs of the connection.
        sent: bytes of all answers that count against the connection's window.
        replies: which frames are answered by themselves: "settings", "ping", and "data" with
            WINDOW_UPDATE.
        last_id: streams above it are refused.
        outbox: the replies that have to be sent.
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.settings: dict[int, int] = {}
        self.settings_acks = 0
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.goaway: tuple[int, int] | None = None
        self.granted: int = 0
        self.sent: int = 0
        self.replies: frozenset[str] = frozenset({"settings", "ping", "data"})
        self.last_id = MAX_ID
        self.outbox = bytearray()
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._by_id: dict[int, Stream] = {}
        self._buffer = bytearray()
        self._begun = False
        self._block: tuple[int, bool, bytearray] | None = None
        self._allowed = WINDOW
        self._announced: deque[dict[int, int]] = deque()
        self._in_force = {
            wire.SettingsFrame.INITIAL_WINDOW_SIZE: WINDOW,
            wire.SettingsFrame.MAX_FRAME_SIZE: FRAME,
        }

    # -- what we have said -------------------------------------------------------------------------

    def announce(self, settings: dict[int, int]) -> bytes:
        """SETTINGS; the client is held to them once it has acknowledged them."""
        self._announced.append(settings)
        return wire.SettingsFrame(settings=settings).serialize()

    def window(self, stream_id: int, size: int) -> bytes:
        """WINDOW_UPDATE: the client may send `size` bytes more."""
        if stream_id == 0:
            self._allowed += size
        else:
            self.existing(stream_id).allowed += size
        return wire.WindowUpdateFrame(stream_id, window_increment=size).serialize()

    @property
    def unacknowledged(self) -> int:
        """How many of our SETTINGS the client has not acknowledged."""
        return len(self._announced)

    def room(self, stream: Stream) -> int:
        """How many bytes of its answer the client's windows allow now."""
        initial = self.settings.get(wire.SettingsFrame.INITIAL_WINDOW_SIZE, WINDOW)
        return min(initial + stream.granted - stream.sent, WINDOW + self.granted - self.sent)

    # -- what has come -----------------------------------------------------------------------------

    def take(self, data: bytes) -> list[Stream]:
        """Take in what has come.

        Returns:
            The streams that were opened by it.

        Raises:
            MALFORMED: the client must not send this.
        """
        before = len(self.streams)
        self._buffer += data
        if self._begun or self._take_preface():
            while self._take_one():
                pass
        return self.streams[before:]

    def _take_preface(self) -> bool:
        if not PREFACE.startswith(self._buffer[: len(PREFACE)]):
            raise Violation("it does not begin with the preface of HTTP/2")
        self._begun = len(self._buffer) >= len(PREFACE)
        if self._begun:
            del self._buffer[: len(PREFACE)]
        return self._begun

    def _take_one(self) -> bool:
        if len(self._buffer) < _FRAME_HEAD:
            return False
        frame, size = wire.Frame.parse_frame_header(memoryview(bytes(self._buffer[:_FRAME_HEAD])))
        if size > self._in_force[wire.SettingsFrame.MAX_FRAME_SIZE]:
            raise Violation(f"a frame of {size} bytes")
        end = _FRAME_HEAD + size
        if len(self._buffer) < end:
            return False
        frame.parse_body(memoryview(bytes(self._buffer[_FRAME_HEAD:end])))
        del self._buffer[:end]
        if self._block is not None and not isinstance(frame, wire.ContinuationFrame):
            raise Violation("a header block is interrupted")
        self._take_frame(frame)
        return True

    def _take_frame(self, frame: wire.Frame) -> None:
        match frame:
            case wire.HeadersFrame() | wire.ContinuationFrame():
                self._take_block(frame)
            case wire.DataFrame():
                self._take_data(frame)
            case wire.SettingsFrame():
                self._take_settings(frame)
            case wire.WindowUpdateFrame():
                self._take_window(frame)
            case wire.RstStreamFrame():
                self._take_reset(frame)
            case wire.PingFrame():
                self._take_ping(frame)
            case wire.GoAwayFrame():
                self.goaway = (frame.last_stream_id, frame.error_code)
            case wire.PushPromiseFrame():
                raise Violation("a client cannot push")
            case _:
                """Frames that mean nothing to us are let pass (RFC 9113 section 4.1)."""

    def existing(self, stream_id: int) -> Stream:
        try:
            return self._by_id[stream_id]
        except KeyError as error:
            raise Violation(f"a frame of stream {stream_id}, which is not there") from error

    # -- streams -----------------------------------------------------------------------------------

    def _take_block(self, frame: wire.HeadersFrame | wire.ContinuationFrame) -> None:
        if isinstance(frame, wire.HeadersFrame):
            self._block = (frame.stream_id, "END_STREAM" in frame.flags, bytearray())
        if self._block is None or self._block[0] != frame.stream_id:
            raise Violation("CONTINUATION of nothing")
        _, ends, block = self._block
        block += frame.data
        if "END_HEADERS" in frame.flags:
            self._block = None
            decoded = self._decoder.decode(bytes(block), raw=True)
            fields = [(_text(name), _text(value)) for name, value in decoded]
            self._take_fields(frame.stream_id, fields, ends=ends)

    def _take_fields(self, stream_id: int, fields: list[tuple[str, str]], *, ends: bool) -> None:
        stream = self._by_id.get(stream_id)
        if stream is None:
            stream = self._open(stream_id, fields)
        elif stream.complete or not ends:
            raise Violation("header fields in the middle, or after the end")
        else:
            stream.trailers = fields
        stream.complete = ends

    def _open(self, stream_id: int, fields: list[tuple[str, str]]) -> Stream:
        if stream_id % 2 == 0 or (self.streams and stream_id <= self.streams[-1].id):
            raise Violation(f"stream {stream_id} cannot be opened")
        limit = self._in_force.get(wire.SettingsFrame.MAX_CONCURRENT_STREAMS)
        if limit is not None and sum(each.is_open for each in self.streams) >= limit:
            raise Violation(f"more than {limit} streams at once")
        pseudo = _check_fields(fields)
        headers = fields[len(pseudo) :]
        if ":authority" in pseudo:
            headers = [("host", pseudo[":authority"]), *headers]
        stream = Stream(pseudo[":method"], pseudo[":path"], "HTTP/2", headers, b"", id=stream_id)
        stream.allowed = self._in_force[wire.SettingsFrame.INITIAL_WINDOW_SIZE]
        stream.refused = stream_id > self.last_id
        self.streams.append(stream)
        self._by_id[stream_id] = stream
        return stream

    def _take_data(self, frame: wire.DataFrame) -> None:
        stream, size = self.existing(frame.stream_id), frame.flow_controlled_length
        if stream.complete:
            raise Violation("DATA after the end")
        stream.allowed -= size
        self._allowed -= size
        if size and (stream.allowed < 0 or self._allowed < 0):
            raise Violation("DATA beyond the window")
        stream.frames.append(size)
        stream.body += frame.data
        stream.complete = "END_STREAM" in frame.flags
        if "data" in self.replies and size:
            self.outbox += self.window(0, size)
            if stream.is_open and not stream.complete:
                self.outbox += self.window(stream.id, size)

    def _take_reset(self, frame: wire.RstStreamFrame) -> None:
        stream = self.existing(frame.stream_id)
        if stream.reset is None:  # what it says of frames that were under way does not count
            stream.reset = frame.error_code

    # -- the connection ----------------------------------------------------------------------------

    def _take_settings(self, frame: wire.SettingsFrame) -> None:
        if "ACK" in frame.flags:
            self._enforce()
            return
        self.settings |= frame.settings
        table = frame.settings.get(wire.SettingsFrame.HEADER_TABLE_SIZE)
        if table is not None:
            self.encoder.header_table_size = min(table, 4096)
        if "settings" in self.replies:
            self.outbox += wire.SettingsFrame(flags=["ACK"]).serialize()

    def _enforce(self) -> None:
        """From an acknowledgement on the client keeps to what it is of (RFC 9113, 6.5.3)."""
        self.settings_acks += 1
        initial = wire.SettingsFrame.INITIAL_WINDOW_SIZE
        announced = self._announced.popleft() if self._announced else {}
        before = self._in_force[initial]
        self._in_force |= announced
        for stream in self.streams:
            stream.allowed += self._in_force[initial] - before
        table = announced.get(wire.SettingsFrame.HEADER_TABLE_SIZE)
        if table is not None:
            self._decoder.max_allowed_table_size = table

    def _take_window(self, frame: wire.WindowUpdateFrame) -> None:
        if frame.stream_id != 0:
            self.existing(frame.stream_id).granted += frame.window_increment
            return
        self.granted += frame.window_increment
        if WINDOW + self.granted - self.sent > MAX_WINDOW:
            raise Violation("the window of the connection overflows")

    def _take_ping(self, frame: wire.PingFrame) -> None:
        if "ACK" in frame.flags:
            self.pongs.append(frame.opaque_data)
            return
        self.pings.append(frame.opaque_data)
        if "ping" in self.replies:
            self.outbox += wire.PingFrame(flags=["ACK"], opaque_data=frame.opaque_data).serialize()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _check_fields(fields: list[tuple[str, str]]) -> dict[str, str]:
    """The pseudo-headers of a request (RFC 9113 section 8.3.1)."""
    pseudo = dict(each for each in fields if each[0].startswith(":"))
    if not all(name.startswith(":") for name, _ in fields[: len(pseudo)]):
        raise Violation("a pseudo-header comes after a header")
    if len(pseudo) != sum(name.startswith(":") for name, _ in fields):
        raise Violation("a pseudo-header comes twice")
    if not {":method", ":scheme", ":path"} <= pseudo.keys():
        raise Violation("a pseudo-header is missing")
    for name, value in fields:
        if name != name.lower() or name in _OF_THE_CONNECTION or set(value) & set("\0\r\n"):
            raise Violation("a header that HTTP/2 does not allow")
    return pseudo
