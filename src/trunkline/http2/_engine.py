"""A client's HTTP/2 connection without IO: what came goes in, what is to be sent comes out.

This module knows streams, windows, and what the end of a connection means for each of them. It does
not know sockets, event loops, or who waits for what.

Whatever the peer does, and whatever goes wrong in here, each exchange hears of its end once.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes
from h2.events import DataReceived, RemoteSettingsChanged, StreamReset, WindowUpdated
from h2.exceptions import (
    DenialOfServiceError,
    H2Error,
    NoAvailableStreamIDError,
    ProtocolError,
    TooManyStreamsError,
)
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from trunkline._errors import (
    BodyTruncated,
    GoAway,
    LimitExceeded,
    Phase,
    ReadError,
    RemoteDisconnected,
    RemoteProtocolError,
    StreamRefused,
    TransportError,
    WriteError,
)
from trunkline._messages import Request
from trunkline.http2._fields import encode_head
from trunkline.http2._protocol import (
    END_STREAM,
    HEADERS,
    MAX_STREAMS as MAX_STREAMS,
    STREAM_WINDOW,
    Protocol,
    RawFrame,
    code_name,
    parse,
)

if TYPE_CHECKING:
    from trunkline.http2._exchange import Http2Exchange

_OWED = STREAM_WINDOW  # bytes of the connection's window that are given back together
_MOST_BARREN = 1000  # frames in a second that bring no exchange forward
_SUSPICIOUS = 100  # of them, when a deadline passes
_LATE_WEIGHT = 0.01  # of one on a stream that is over: thousands that we cancel have a few each
_MAX_OUTBOX = 4 * 1024 * 1024


class Http2Engine:
    """One connection.

    Args:
        ping_interval: seconds of silence after which the peer is asked for a sign of life, and
            after which the connection is dead if none comes; None for never.

    Attributes:
        on_output: called when there is something to send, see `take_output`.
        on_change: called when `max_exchanges` or `is_retired` has changed.
        is_retired: no exchange may begin any more; those under way go on.
        is_closed: nothing more comes in or goes out.
        produced: bytes that were ever ready to be sent.
    """

    def __init__(self, *, ping_interval: float | None = None) -> None:
        self._protocol = Protocol()
        self._exchanges: dict[int, Http2Exchange] = {}
        self._outbox: list[bytes] = []
        self._ping_interval = ping_interval
        self._heard_at = monotonic()
        self._pinged_at: float | None = None
        self._owed = 0
        self._barren = 0.0
        self._barren_since = 0.0
        self._goaway_code = 0
        self._has_changed = False
        self._reason: Exception | None = None
        self.on_output: Callable[[], None] | None = None
        self.on_change: Callable[[], None] | None = None
        self.max_exchanges = MAX_STREAMS
        self.is_retired = self.is_closed = False
        self.outbox_size = self.produced = 0
        self._collect()

    @property
    def is_busy(self) -> bool:
        return bool(self._exchanges)

    # -- output ----------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """What is to be sent, all of it."""
        data = b"".join(self._outbox) if len(self._outbox) != 1 else self._outbox[0]
        self._outbox.clear()
        self.outbox_size = 0
        return data

    def _collect(self) -> None:
        data = self._protocol.data_to_send()
        if not data:
            return
        self._outbox.append(data)
        self.outbox_size += len(data)
        self.produced += len(data)
        if self.on_output is not None:
            self.on_output()

    # -- for exchanges ---------------------------------------------------------------------------

    def open(self, exchange: Http2Exchange, request: Request, *, end: bool) -> None:
        """Begin a stream with the head of `request`; `end`: there is nothing more of it.

        Raises:
            RemoteDisconnected, RemoteProtocolError: the connection ended before.
            StreamRefused: it takes no more streams, or none now.
        """
        if self.is_closed:
            raise self._explain(exchange, self._reason) from self._reason
        if self.is_retired:
            raise StreamRefused("the connection takes no more streams")
        fields = encode_head(request)
        protocol = self._protocol
        exchange.sent_from = self.produced
        try:
            stream_id = protocol.send_request(fields, end=end)
        except TooManyStreamsError as error:
            raise StreamRefused("the peer takes no more streams now") from error
        except NoAvailableStreamIDError as error:
            self._retire()
            raise StreamRefused("the connection has no stream left") from error
        exchange.id = stream_id
        self._exchanges[stream_id] = exchange
        self._collect()

    def room(self, exchange: Http2Exchange) -> int:
        """Bytes of content that may go now in one frame; negative after a window has shrunk."""
        if exchange.is_gone or self.is_closed:
            return 0
        protocol = self._protocol
        return min(
            protocol.local_flow_control_window(exchange.id), protocol.max_outbound_frame_size
        )

    def window(self, exchange: Http2Exchange) -> int:
        """Bytes of content that may go now in any number of frames."""
        return self._protocol.local_flow_control_window(exchange.id)

    def send(self, exchange: Http2Exchange, data: bytes, *, end: bool) -> None:
        """Send a frame of content, no more than there is room for."""
        self._barren = 0  # as many WINDOW_UPDATE may follow
        if data:
            self._protocol.send_data(exchange.id, data, end)
        else:
            self._protocol.end_stream(exchange.id)
        self._collect()

    def consumed(self, exchange: Http2Exchange, size: int) -> None:
        """`size` bytes of the response were taken: the peer may send as many more."""
        if self.is_closed:
            return
        exchange.unreturned += size
        if exchange.unreturned >= STREAM_WINDOW // 2 and exchange.wants_more:
            self._protocol.increment_flow_control_window(exchange.unreturned, exchange.id)
            exchange.unreturned = 0
        self._give_back(size)

    def _give_back(self, size: int) -> None:
        self._owed += size
        if self._owed >= _OWED:
            self._protocol.increment_flow_control_window(self._owed)
            self._owed = 0
        self._collect()

    def release(self, exchange: Http2Exchange, *, code: int = ErrorCodes.CANCEL) -> None:
        """Forget an exchange, and tell the peer if its stream is not over."""
        if self._exchanges.pop(exchange.id, None) is None or self.is_closed:
            return
        if not exchange.is_complete and not exchange.is_gone:
            self._protocol.cancel(exchange.id, code)
        self._protocol.forget(exchange.id)
        self._give_back(exchange.held)

    # -- input -----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what has come. It raises nothing: a fault ends the connection."""
        if self.is_closed:
            return
        self._heard_at = monotonic()
        protocol = self._protocol
        try:
            for frame in protocol.frames(data):
                self._take(frame)
            if protocol.late:
                late, protocol.late = protocol.late, 0
                self._give_back(late)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave anyone waiting
            self.terminate(error)
            return
        self._collect()
        if self.outbox_size > _MAX_OUTBOX:
            self.end(LimitExceeded("the peer demands answers and does not take them"))
        elif self._has_changed:
            self._tell()

    def _take(self, frame: RawFrame) -> None:
        kind, flags, stream_id, _ = frame
        exchange = self._exchanges.get(stream_id)
        if exchange is None or kind > HEADERS or not exchange.wants_more:
            self._take_other(parse(frame), exchange)
        elif kind == HEADERS:
            self._take_headers(frame, exchange)
        else:
            data = self._protocol.take_data(frame)
            if not data and not flags & END_STREAM:
                self._count_barren(1)
            exchange.take_data(data, len(frame[3]))
            if flags & END_STREAM:
                exchange.take_end()

    def _take_headers(self, frame: RawFrame, exchange: Http2Exchange) -> None:
        exchange.attempt.response_started = True
        fields, is_interim, is_trailers = self._protocol.take_headers(frame)
        if is_interim:
            exchange.take_interim(fields)
            return
        if is_trailers:
            exchange.take_trailers(fields)
        else:
            exchange.take_head(fields)
        if frame[1] & END_STREAM:
            exchange.take_end()

    def _take_other(self, frame: Frame, exchange: Http2Exchange | None) -> None:
        if isinstance(frame, GoAwayFrame):
            self._obey_goaway(frame)
            return
        if isinstance(frame, HeadersFrame) and not frame.stream_id % 2:
            raise ProtocolError("the peer opens a stream")
        self._count_barren(_LATE_WEIGHT if self._is_late(frame, exchange) else 1)
        for event in self._protocol.take(frame):
            if isinstance(event, RemoteSettingsChanged):
                self._adopt_settings()
            elif isinstance(event, WindowUpdated) and not event.stream_id:
                self.wake_all()
            elif exchange is not None and isinstance(event, StreamReset):
                self._take_reset(event, exchange)
            elif exchange is not None and isinstance(event, WindowUpdated):
                exchange.wake()
            elif isinstance(event, DataReceived):  # on a stream that nobody wants any more
                self._give_back(event.flow_controlled_length or 0)

    def _is_late(self, frame: Frame, exchange: Http2Exchange | None) -> bool:
        """Whether it was on its way when we ended the stream."""
        if not isinstance(frame, (DataFrame, HeadersFrame, RstStreamFrame)):
            return False
        was_opened = 0 < frame.stream_id <= self._protocol.highest_outbound_stream_id
        return was_opened and (exchange is None or not exchange.wants_more)

    def _take_reset(self, event: StreamReset, exchange: Http2Exchange) -> None:
        if event.remote_reset:
            exchange.take_reset(int(event.error_code or 0))
        else:  # h2 has reset the stream: its window was opened too far
            exchange.is_gone = True
            exchange.fail(RemoteProtocolError("the peer opens the stream's window too far"))

    def wake_all(self) -> None:
        for each in self._exchanges.values():
            each.wake()

    def _adopt_settings(self) -> None:
        most = min(MAX_STREAMS, self._protocol.remote_settings.max_concurrent_streams)
        self.wake_all()  # the windows may have grown
        if most != self.max_exchanges:
            self.max_exchanges = most
            self._has_changed = True

    def _count_barren(self, weight: float) -> None:
        """Bound what a peer may have us do for nothing: floods of SETTINGS, PING, empty DATA."""
        if self._heard_at - self._barren_since > 1.0:
            self._barren_since, self._barren = self._heard_at, 0
        self._barren += weight
        if self._barren > _MOST_BARREN:
            raise LimitExceeded("the peer floods the connection with frames that say nothing")

    def _obey_goaway(self, frame: GoAwayFrame) -> None:
        """No new streams, and none above the last id; the others go on (RFC 9113 section 6.8)."""
        self._goaway_code = frame.error_code
        for exchange in list(self._exchanges.values()):
            if exchange.id > frame.last_stream_id:
                exchange.pass_over()
        self._retire()

    def _retire(self) -> None:
        self._has_changed = self._has_changed or not self.is_retired
        self.is_retired = True

    def _tell(self) -> None:
        self._has_changed = False
        if self.on_change is not None:
            self.on_change()

    def doubt(self, since: float) -> None:
        """A deadline has passed that was waited for `since` (`monotonic` time).

        If nothing at all has come for half of that time, the path may be dead, and if much has come
        that says nothing, the peer may be hostile: no new exchange is risked on it.
        """
        is_silent = self._heard_at <= (since + monotonic()) / 2
        if (is_silent or self._barren > _SUSPICIOUS) and not self.is_closed:
            self._retire()
            self._tell()

    # -- signs of life ---------------------------------------------------------------------------

    def keep_alive(self) -> float | None:
        """Ask a silent peer for a sign of life; end the connection if none has come.

        Returns:
            Seconds until it is to be called again, None for never.
        """
        interval = self._ping_interval
        if interval is None or self.is_closed:
            return None
        now = monotonic()
        if self._pinged_at is not None and self._heard_at < self._pinged_at:
            left = self._pinged_at + interval - now
            if left > 0:
                return left
            self.end(TimeoutError(f"no answer to a PING within {interval:g} s"))
            return None
        left = self._heard_at + interval - now
        if left > 0:
            return left
        self._pinged_at = now
        self._protocol.ping(b"trunkln.")
        self._collect()
        return interval

    # -- the end ---------------------------------------------------------------------------------

    def fail(self, exchange: Http2Exchange, error: TransportError) -> None:
        """The peer broke the rules on one stream only: reset it (RFC 9113 section 5.4.2)."""
        exchange.fail(error)
        if not exchange.is_gone and exchange.id in self._exchanges:
            exchange.is_gone = True
            self._protocol.cancel(exchange.id, ErrorCodes.PROTOCOL_ERROR)
            self._collect()

    def terminate(self, error: Exception) -> None:
        """Say why in a GOAWAY, then `end`."""
        code = ErrorCodes.INTERNAL_ERROR
        if isinstance(error, H2Error):
            code = getattr(error, "error_code", ErrorCodes.PROTOCOL_ERROR)
        elif isinstance(error, LimitExceeded):
            code = ErrorCodes.ENHANCE_YOUR_CALM
        try:
            self._protocol.close_connection(code)
            self._collect()
        finally:
            self.end(error)

    def close(self) -> None:
        """We end the connection: have the peer told with what is still to be sent."""
        if not self.is_closed:
            self._protocol.close_connection()
            self._collect()
            self.end(ConnectionError("the connection was closed"))

    def end(self, error: Exception | None) -> None:
        """The connection is over, and each exchange that still needs it. None: the peer closed it.

        Idempotent; the first reason counts.
        """
        if self.is_closed:
            return
        self.is_retired = self.is_closed = True
        self._reason = error
        for exchange in list(self._exchanges.values()):
            exchange.fail(self._explain(exchange, error))
        self._tell()

    def _explain(self, exchange: Http2Exchange, error: Exception | None) -> TransportError:
        failure = self._translate(exchange, error)
        failure.__cause__ = error
        return failure

    def _translate(self, exchange: Http2Exchange, error: Exception | None) -> TransportError:
        if isinstance(error, TransportError):
            return type(error)(str(error))  # one for each: its facts are written into it
        if isinstance(error, DenialOfServiceError):
            return LimitExceeded("the response head is too long")
        if error is not None and not isinstance(error, OSError):
            return RemoteProtocolError("what the peer sends is not HTTP/2")
        if self._goaway_code and _is_disconnection(error):
            goaway = GoAway(f"the peer closed the connection: {code_name(self._goaway_code)}")
            goaway.replay = "if_idempotent"
            return goaway
        if isinstance(error, TimeoutError) or _is_disconnection(error):
            why = str(error) if isinstance(error, TimeoutError) else "the connection ended"
            if exchange.attempt.response_started:
                phase: Phase = "body" if exchange.status_code else "headers"
                return BodyTruncated(f"{why} inside the response", phase=phase)
            return RemoteDisconnected(f"{why} before any byte of the response")
        reason = getattr(error, "strerror", None) or type(error).__name__
        if exchange.is_sent or exchange.attempt.response_started:
            return ReadError(f"the connection failed under the response: {reason}")
        return WriteError(f"the connection failed under the request: {reason}")


def _is_disconnection(error: Exception | None) -> bool:
    return error is None or isinstance(error, (ConnectionError, ssl.SSLEOFError))
