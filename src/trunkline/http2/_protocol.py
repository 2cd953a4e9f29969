"""The `h2` library, as it is used here: its settings, and every touch below its public surface.

This module knows `H2Connection` and what of it is not documented: `_begin_new_stream`,
`H2Stream.state_machine`, `_frame_dispatch_table`, `_prepare_for_sending`, `_data_to_send`,
`_inbound_flow_control_window_manager`, `_stream_is_closed_by_reset`, `_closed_streams`,
`_open_streams` and `_handle_data_on_closed_stream`. It does not know exchanges. A test holds each
of these to the behaviour relied on, with the lowest and the newest h2 supported.

Why below `receive_data`: a GOAWAY is the end of the connection to it, though the peer goes on with
the streams up to its last id (RFC 9113 section 6.8); what came before a bad frame is lost; each
frame that comes late on a stream that was reset is answered with one more RST_STREAM; and what
every request and response has, HEADERS and DATA, costs more there than all the rest of a call.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, TrailersReceived
from h2.exceptions import (
    DenialOfServiceError,
    FrameTooLargeError,
    NoAvailableStreamIDError,
    ProtocolError,
    StreamClosedError,
    StreamIDTooLowError,
    TooManyStreamsError,
)
from h2.settings import SettingCodes, Settings
from h2.stream import StreamInputs
from hpack import HPACKError, OversizedHeaderListError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import Frame

from trunkline.http2._hpack import HeaderDecoder, HeaderEncoder

if TYPE_CHECKING:
    from hpack import HeaderTuple
    from hyperframe.frame import DataFrame

RawFrame: TypeAlias = tuple[int, int, int, bytes]
"""Type, flags, stream id and payload (RFC 9113 section 4.1)."""

MAX_STREAMS = 100
STREAM_WINDOW = 1024 * 1024
CONNECTION_WINDOW = MAX_STREAMS * STREAM_WINDOW
DATA, HEADERS, CONTINUATION = 0x0, 0x1, 0x9
END_STREAM, END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_HEAD = struct.Struct(">HBBBI")  # two bytes of length, one more, type, flags, stream id
_MAX_FRAME = 16 * 1024
_MAX_BLOCK = 128 * 1024
_MAX_PARTS = 64
_HIGHEST_ID = 2**31 - 1


class Protocol(H2Connection):
    """A client's side of h2, with the preface and our settings ready to be sent.

    Header fields are checked before and after it (`_fields`), once and not twice.

    Attributes:
        late: bytes of DATA that came on streams that were over, still to be given back.
    """

    def __init__(self) -> None:
        super().__init__(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self.late = 0
        self._rest = b""
        self._block: tuple[int, int, list[bytes]] | None = None
        self.encoder = HeaderEncoder()
        self.decoder = self._fields = HeaderDecoder()
        self._fields.max_header_list_size = self.DEFAULT_MAX_HEADER_LIST_SIZE
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: self.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self.initiate_connection()
        # Room for every stream's window: one that is read slowly holds up no other.
        self.increment_flow_control_window(CONNECTION_WINDOW - 65_535)

    # -- out -------------------------------------------------------------------------------------

    def send_request(self, fields: list[tuple[bytes, bytes]], *, end: bool) -> int:
        """`send_headers` on a new stream, whose id it returns.

        Raises:
            TooManyStreamsError, NoAvailableStreamIDError
        """
        stream_id = self.highest_outbound_stream_id + 2 if self.highest_outbound_stream_id else 1
        if stream_id > _HIGHEST_ID:
            raise NoAvailableStreamIDError("there are no more stream ids")
        if len(self.streams) >= self.remote_settings.max_concurrent_streams:
            raise TooManyStreamsError("as many streams are open as the peer allows")
        self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        machine = self._begin_new_stream(stream_id, AllowedStreamIDs.ODD).state_machine
        machine.process_input(StreamInputs.SEND_HEADERS)
        if end:
            machine.process_input(StreamInputs.SEND_END_STREAM)
        block, most = self.encoder.encode(fields), self.max_outbound_frame_size
        kind, flags = HEADERS, END_STREAM if end else 0
        while len(block) > most:
            self._add_frame(kind, flags, stream_id, block[:most])
            kind, flags, block = CONTINUATION, 0, block[most:]
        self._add_frame(kind, flags | END_HEADERS, stream_id, block)
        return stream_id

    def _add_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._data_to_send += _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload

    # -- in --------------------------------------------------------------------------------------

    def frames(self, data: bytes) -> Iterator[RawFrame]:
        """The frames that are complete, HEADERS with all their CONTINUATION.

        Raises:
            ProtocolError: the next one cannot be one. It comes after those before it.
        """
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        while size - at >= 9:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(data, at)
            begin = at + 9
            end = begin + (high << 8 | low)
            if end - begin > _MAX_FRAME:  # before any more of it is taken in
                raise FrameTooLargeError(f"a frame of {end - begin} bytes")
            if end > size:
                break
            at = end
            frame = (kind, flags, stream_id & _HIGHEST_ID, data[begin:end])
            if self._block is None and (kind != HEADERS or flags & END_HEADERS):
                yield frame
            elif (joined := self._join(frame)) is not None:
                yield joined
        self._rest = data[at:]

    def _join(self, frame: RawFrame) -> RawFrame | None:
        """HEADERS with the CONTINUATION that follow; None until they are all there."""
        kind, flags, stream_id, payload = frame
        if self._block is None:
            self._block = (flags, stream_id, [_unpadded(flags, payload)])
            return None
        first_flags, first_id, parts = self._block
        if kind != CONTINUATION or stream_id != first_id:
            raise ProtocolError("a header block is interrupted")
        parts.append(payload)
        if len(parts) > _MAX_PARTS or sum(map(len, parts)) > _MAX_BLOCK:
            raise DenialOfServiceError("a header block without end")
        if not flags & END_HEADERS:
            return None
        self._block = None
        return HEADERS, first_flags & END_STREAM | END_HEADERS, stream_id, b"".join(parts)

    def take_headers(self, frame: RawFrame) -> tuple[list[HeaderTuple], bool, bool]:
        """The fields of a complete header block on an open stream.

        Returns:
            The fields, whether they are an interim head, and whether they are trailers.

        Raises:
            ProtocolError
        """
        _, flags, stream_id, payload = frame
        try:
            fields = self._fields.decode(_unpadded(flags, payload))
        except OversizedHeaderListError as error:
            raise DenialOfServiceError("the header list is too long") from error
        except (HPACKError, IndexError) as error:
            raise ProtocolError("the header block cannot be decoded") from error
        machine = self.streams[stream_id].state_machine
        is_interim = bool(fields) and fields[0][0] == b":status" and fields[0][1][:1] == b"1"
        if is_interim:
            if flags & END_STREAM:
                raise ProtocolError("an interim response ends the stream")
            machine.process_input(StreamInputs.RECV_INFORMATIONAL_HEADERS)
            return fields, True, False
        events = machine.process_input(StreamInputs.RECV_HEADERS)
        is_trailers = isinstance(events[0], TrailersReceived)
        if flags & END_STREAM:
            machine.process_input(StreamInputs.RECV_END_STREAM)
        elif is_trailers:
            raise ProtocolError("trailers do not end the stream")
        return fields, False, is_trailers

    def take_data(self, frame: RawFrame) -> bytes:
        """The content of a DATA frame on an open stream; all of its payload counts as received.

        Raises:
            ProtocolError
        """
        _, flags, stream_id, payload = frame
        self._inbound_flow_control_window_manager.window_consumed(len(payload))
        stream = self.streams[stream_id]
        stream.receive_data(b"", bool(flags & END_STREAM), len(payload))
        return _unpadded(flags, payload) if flags & _PADDED else payload

    def take(self, frame: Frame) -> list[Event]:
        """What any other frame means; answers are ready to be sent.

        Raises:
            ProtocolError
        """
        events: list[Event]
        handlers = cast("dict[type[Frame], Any]", self._frame_dispatch_table)  # pyright: ignore[reportUnknownMemberType]
        try:
            replies, events = handlers[frame.__class__](frame)
        except (StreamClosedError, StreamIDTooLowError) as error:
            if not self._stream_is_closed_by_reset(error.stream_id):
                raise
            return []
        if replies:
            self._prepare_for_sending(replies)
        return events

    def cancel(self, stream_id: int, code: int) -> None:
        """Reset the stream, unless it is over."""
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.closed:
            self.reset_stream(stream_id, code)

    def forget(self, stream_id: int) -> None:
        """The stream is over, and nobody asks for it any more."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self._closed_streams[stream_id] = stream.closed_by

    def _open_streams(self, remainder: int) -> int:
        # h2 looks at every stream for each new one, also to find those that `forget` takes away.
        return len(self.streams)

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[Event]]:
        self.late += frame.flow_controlled_length
        return [], events


def parse(frame: RawFrame) -> Frame:
    """The library's frame.

    Raises:
        ProtocolError: it is not what a frame of its type must be.
    """
    kind, flags, stream_id, payload = frame
    size = len(payload)
    head = _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id)
    try:
        parsed, _ = Frame.parse_frame_header(memoryview(head))
        parsed.parse_body(memoryview(payload))
    except HyperframeError as error:
        raise ProtocolError("a frame is not what it must be") from error
    return parsed


def _unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of HEADERS or DATA without padding and priority (RFC 9113 section 6.1, 6.2)."""
    begin, end = 0, len(payload)
    if flags & _PADDED:
        begin, end = 1, end - payload[0] if payload else -1
    if flags & _PRIORITY:
        begin += 5
    if begin > end:
        raise ProtocolError("a frame has more padding than content")
    return payload[begin:end] if begin or end < len(payload) else payload


def code_name(code: int) -> str:
    """The name of an error code (RFC 9113 section 7)."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"
