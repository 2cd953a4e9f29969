"""HTTP/2: a connection on h2, the protocol library that httpx uses, and the exchanges on it.

This module knows streams, windows and GOAWAY (RFC 9113). It does not know how the stream of bytes
was opened, or who waits for a connection.

It stands in for httpx's own HTTP/2 connection, which never resets a stream, ends every stream at a
GOAWAY, and loses its way when a window or the number of streams shrinks.

No task runs in the background. Of the exchanges that wait for the peer one reads for all, and when
it has what it waits for the next one takes over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes
from multidict import CIMultiDict, CIMultiDictProxy

from trunkline import (
    Attempt,
    GoAway,
    InvalidRequest,
    LimitExceeded,
    RemoteProtocolError,
    Request,
    StreamRefused,
    StreamReset,
    TransportError,
)
from trunkline_httpx._exchange import RawHeaders, RequestBody, decode_headers, encode_value
from trunkline_httpx._network import RECEIVE_SIZE, Stream
from trunkline_httpx._translate import EXCHANGE, Course, Table, say, translate

_MAX_STREAMS = 100
_STREAM_WINDOW = 1024 * 1024
_MAX_OUTBOX = 4 * 1024 * 1024
_FAIR_SHARE = 16
_FRAME_HEAD = 9
_MAX_FRAME = 16 * 1024
_GOAWAY = 7
_CONNECTION_HEADERS = frozenset(  # RFC 9113 section 8.2.2
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)

_TABLE: Table = (
    (h2.exceptions.DenialOfServiceError, say(LimitExceeded, "the response head is too long")),
    (h2.exceptions.H2Error, say(RemoteProtocolError, "what the peer sends is not HTTP/2")),
    *EXCHANGE,
)


class Http2Connection:
    """Implements `trunkline.Connection`."""

    http_version = "HTTP/2"

    def __init__(self, stream: Stream) -> None:
        self.peer = stream.peer
        self.protocol = _make_protocol()
        self._stream = stream
        self._frames = _FrameFilter()
        self._exchanges: dict[int, Http2Exchange] = {}
        self._waiting: dict[Http2Exchange, anyio.Event] = {}
        self._flushing: dict[Http2Exchange, int] = {}
        self._is_reading = self._is_writing = False
        self._outbox = bytearray()
        self._sent = 0
        self._is_blocked = False
        self._streak = 0
        self._goaway: int | None = None
        self._is_retired = self._is_broken = self._is_closed = False
        self.push()

    # -- the contract --------------------------------------------------------------------------

    @property
    def max_exchanges(self) -> int:
        return min(_MAX_STREAMS, self.protocol.remote_settings.max_concurrent_streams)

    def is_usable(self) -> bool:
        if not self._is_reading:
            for _ in range(_FAIR_SHARE):
                if self._is_retired or not self._take_in():
                    break
        return not self._is_retired

    async def exchange(self, request: Request, attempt: Attempt) -> Http2Exchange:
        attempt.begin("write")
        body = RequestBody(request, attempt)
        exchange = self._open(request, attempt, has_body=body.is_streamed or body.size > 0)
        try:
            await attempt.wait(exchange.run(body))
            if not body.is_over:
                await body.aclose()
        except BaseException:
            exchange.close()
            await body.aclose()
            raise
        return exchange

    def close(self) -> None:
        if self._is_closed:
            return
        if not self._is_broken:
            self.protocol.close_connection()
            self.push()
        self._fail(anyio.ClosedResourceError())

    # -- for its exchanges -----------------------------------------------------------------------

    def room(self, stream_id: int) -> int:
        """How many bytes of a request body may be sent now; may be negative (section 6.9.2)."""
        protocol = self.protocol
        return min(protocol.local_flow_control_window(stream_id), protocol.max_outbound_frame_size)

    def push(self) -> None:
        """Send what is to be sent, as far as that goes at once."""
        if self._is_broken:
            return
        was_blocked, before = self._is_blocked, self._sent
        self._outbox += self.protocol.data_to_send()
        try:
            while self._outbox and (taken := self._stream.send_nowait(self._outbox)):
                del self._outbox[:taken]
                self._sent += taken
            self._is_blocked = bool(self._outbox) or not self._stream.flush_nowait()
        except OSError as error:
            self._is_broken = True
            while self._take_in():  # what the peer said before it went
                pass
            self._fail(error)
            return
        if was_blocked and (self._sent > before or not self._is_blocked):
            self._note_progress()
        if len(self._outbox) > _MAX_OUTBOX:
            self._fail(LimitExceeded("the peer demands answers and does not take them"))

    async def flush(self, exchange: Http2Exchange) -> None:
        """Send what is to be sent, all of it, unless the exchange fails meanwhile."""
        start = self._sent + len(self._outbox)
        self.push()
        end = self._sent + len(self._outbox)
        try:
            if self._is_blocked:
                self._flushing[exchange] = end
                await self.until(exchange, lambda: self._is_out(end) or exchange.is_refused)
        finally:
            self._flushing.pop(exchange, None)
            exchange.attempt.bytes_sent += max(0, min(self._sent, end) - start)

    async def until(self, exchange: Http2Exchange, ready: Callable[[], bool]) -> None:
        """Serve the connection, or wait while another exchange does, until `ready()`."""
        try:
            while not ready():
                await self._take_turn(exchange)
        finally:
            self._hand_over()

    def release(self, exchange: Http2Exchange) -> None:
        """Forget an exchange; if it is not over, reset its stream, and give back the window."""
        del self._exchanges[exchange.id]
        if self._is_closed:
            return
        if not exchange.is_complete and exchange.failure is None:
            self.protocol.reset_stream(exchange.id, ErrorCodes.CANCEL)
        for _, size in exchange.pieces:
            self.protocol.acknowledge_received_data(size, exchange.id)
        self.push()
        if self._is_retired and not self._exchanges:
            self.close()

    def acknowledge(self, exchange: Http2Exchange, size: int) -> None:
        """The caller has taken `size` bytes: the peer may send as many more."""
        if not self._is_closed:
            self.protocol.acknowledge_received_data(size, exchange.id)
            self.push()

    # -- taking turns ----------------------------------------------------------------------------

    async def _take_turn(self, exchange: Http2Exchange) -> None:
        reads = not self._is_reading
        writes = self._is_blocked and not self._is_writing
        if not reads and not writes:
            event = self._waiting[exchange] = anyio.Event()
            try:
                await event.wait()
            finally:
                del self._waiting[exchange]
            return
        self._is_reading |= reads
        self._is_writing |= writes
        try:
            await self._serve(reads, writes)
        except (OSError, anyio.ClosedResourceError) as error:
            self._fail(error)
        finally:
            self._is_reading &= not reads
            self._is_writing &= not writes

    async def _serve(self, reads: bool, writes: bool) -> None:
        if reads and self._take_in():
            self._streak += 1
            if self._streak % _FAIR_SHARE == 0:
                await anyio.lowlevel.checkpoint()
            return
        if self._is_closed:
            return
        if reads and writes:
            await self._stream.wait_either()
        else:
            await (self._stream.wait_readable() if reads else self._stream.wait_writable())
        if writes:
            self.push()
        if reads:
            self._take_in()

    def _hand_over(self) -> None:
        if not self._is_reading or (self._is_blocked and not self._is_writing):
            for event in self._waiting.values():
                event.set()
                return

    def _wake(self, exchange: Http2Exchange) -> None:
        event = self._waiting.get(exchange)
        if event is not None:
            event.set()

    def _is_out(self, mark: int) -> bool:
        return self._sent >= mark and (self._sent > mark or not self._is_blocked)

    def _note_progress(self) -> None:
        for exchange, mark in self._flushing.items():
            exchange.attempt.begin("write")
            if self._is_out(mark):
                self._wake(exchange)

    # -- what the peer sends ---------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Receive what waits; False if that is nothing, or the last."""
        try:
            data = self._stream.receive_nowait(RECEIVE_SIZE)
            if data is None:
                return False
            if not data:
                raise ConnectionError("the peer closed the connection")
            for event in self.protocol.receive_data(self._frames.feed(data)):
                self._handle(event)
        except (OSError, h2.exceptions.H2Error) as error:
            self.push()  # a GOAWAY that says why
            self._fail(error)
            return False
        for last_id, code in self._frames.take_goaways():
            self._obey_goaway(last_id, code)
        self.push()
        return True

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, (h2.events.RemoteSettingsChanged, h2.events.WindowUpdated)):
            for waiting in self._waiting.values():
                waiting.set()
            return
        exchange = self._exchanges.get(getattr(event, "stream_id", None) or 0)
        if exchange is not None:
            exchange.handle(event)
            self._wake(exchange)

    def _obey_goaway(self, last_id: int, code: int) -> None:
        """No new streams, and none above `last_id` (section 6.8); those up to it go on."""
        self._is_retired = True
        self._goaway = code
        for exchange in self._exchanges.values():
            if exchange.id > last_id:
                exchange.fail(GoAway("the peer closes the connection, and has not begun this"))
                self._wake(exchange)

    def _fail(self, error: Exception) -> None:
        """The end of the connection, and of every exchange that needs it still."""
        if self._is_closed:
            return
        self._is_retired = self._is_broken = self._is_closed = True
        self._stream.close()
        for exchange in self._exchanges.values():
            exchange.fail(self._explain(exchange, error))
            self._wake(exchange)

    def _explain(self, exchange: Http2Exchange, error: Exception) -> TransportError:
        failure: TransportError | None
        if self._goaway and isinstance(error, ConnectionError):
            failure = GoAway(f"the peer closed the connection: {_code_name(self._goaway)}")
            failure.replay = "if_idempotent"
        else:
            failure = translate(error, _TABLE, exchange.course())
        if failure is None:
            failure = LimitExceeded(str(error))
        failure.__cause__ = error
        return failure

    def _open(self, request: Request, attempt: Attempt, *, has_body: bool) -> Http2Exchange:
        if self._is_retired:
            raise StreamRefused("the connection takes no more streams")
        try:
            stream_id = self.protocol.get_next_available_stream_id()
            self.protocol.send_headers(stream_id, _encode_head(request), end_stream=not has_body)
        except h2.exceptions.TooManyStreamsError as error:
            raise StreamRefused("the peer takes no more streams now") from error
        except h2.exceptions.NoAvailableStreamIDError as error:
            self._is_retired = True
            raise StreamRefused("the connection has no stream left") from error
        except h2.exceptions.ProtocolError as error:
            self._is_retired = True
            raise InvalidRequest("request: a header is not valid HTTP/2") from error
        exchange = Http2Exchange(self, stream_id, attempt, has_body)
        self._exchanges[stream_id] = exchange
        return exchange


class Http2Exchange:
    """Implements `trunkline.Exchange`: one stream.

    Attributes:
        pieces: of the body, not read yet, each with the window it takes up.
        failure: why the response will not be complete.
    """

    reason_phrase = ""
    http_version = "HTTP/2"

    def __init__(
        self, connection: Http2Connection, stream_id: int, attempt: Attempt, has_body: bool
    ) -> None:
        self.id = stream_id
        self.attempt = attempt
        self.status_code = 0
        self.headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        self.raw_headers: RawHeaders = ()
        self.pieces: deque[tuple[bytes, int]] = deque()
        self.failure: TransportError | None = None
        self._connection = connection
        self._is_sent = not has_body
        self._is_received = False
        self._is_closed = False

    @property
    def is_complete(self) -> bool:
        """Request and response are: the stream is closed (section 5.1)."""
        return self._is_sent and self._is_received

    @property
    def is_refused(self) -> bool:
        """The rest of the request is of no use: the response is an error, or over, or failed."""
        refused = self.status_code and not 200 <= self.status_code <= 299
        return bool(refused) or self._is_received or self.failure is not None

    def course(self) -> Course:
        return Course(self._is_sent, self.attempt.response_started, ended=True)

    # -- sending ---------------------------------------------------------------------------------

    async def run(self, body: RequestBody) -> None:
        """From the request head, which is ready to be sent, to the response head."""
        connection = self._connection
        if body.is_streamed:
            await connection.flush(self)
        async for piece in body:
            await self._send(memoryview(piece), last=not body.is_streamed)
            if self.is_refused:
                break
        else:
            if not self._is_sent:
                connection.protocol.end_stream(self.id)
                self._is_sent = True
            await connection.flush(self)
        await connection.until(self, lambda: bool(self.status_code) or self.failure is not None)
        if not self.status_code and self.failure is not None:
            raise self.failure

    async def _send(self, data: memoryview, *, last: bool) -> None:
        connection = self._connection
        while data and not self.is_refused:
            room = connection.room(self.id)
            if room <= 0:
                await connection.flush(self)
                await connection.until(
                    self, lambda: self.is_refused or connection.room(self.id) > 0
                )
                self.attempt.begin("write")
                continue
            frame, data = bytes(data[:room]), data[room:]
            self._is_sent = last and not data
            connection.protocol.send_data(self.id, frame, end_stream=self._is_sent)
            await connection.flush(self)

    # -- receiving -------------------------------------------------------------------------------

    def handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._take(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.ResponseReceived):
            self._take_head(event.headers or [])
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.attempt.response_started = True
        elif isinstance(event, h2.events.StreamEnded):
            self._is_received = True
        elif isinstance(event, h2.events.StreamReset):
            self.fail(_reset(int(event.error_code or 0)))

    def _take(self, data: bytes, size: int) -> None:
        if data:
            self.pieces.append((data, size))
        elif size:
            self._connection.acknowledge(self, size)

    def _take_head(self, fields: list[tuple[bytes, bytes]]) -> None:
        self.attempt.response_started = True
        try:
            self.raw_headers = tuple(f for f in fields if not f[0].startswith(b":"))
            self.headers = decode_headers(self.raw_headers)
            self.status_code = int(dict(fields)[b":status"])
        except LimitExceeded as error:
            self.fail(error)
        except ValueError as error:
            failure = RemoteProtocolError("the status of the response is not a number")
            failure.__cause__ = error
            self.fail(failure)

    def fail(self, error: TransportError) -> None:
        if self.failure is None and not self._is_received:
            self.failure = error

    async def read(self) -> bytes:
        if self._is_closed:
            return b""
        self.attempt.begin("body")
        try:
            if not self._has_news():
                await self.attempt.wait(self._connection.until(self, self._has_news))
            if self.pieces:
                data, size = self.pieces.popleft()
                self._connection.acknowledge(self, size)
                return data
            if self.failure is not None:
                raise self.failure
        except BaseException:
            self.close()
            raise
        self.close()
        return b""

    def _has_news(self) -> bool:
        return bool(self.pieces) or self._is_received or self.failure is not None

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._connection.release(self)


class _FrameFilter:
    """Takes GOAWAY frames out of what h2 gets.

    To h2 one is the end of the connection, though the streams up to its last id are finished by the
    peer (RFC 9113 section 6.8).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._goaways: list[tuple[int, int]] = []

    def feed(self, data: bytes) -> bytes:
        """The complete frames of what has come so far, but for GOAWAY."""
        data = self._rest + data
        kept: list[bytes] = []
        begin = at = 0
        while len(data) - at >= _FRAME_HEAD:
            size = int.from_bytes(data[at : at + 3])
            end = at + _FRAME_HEAD + size
            if size > _MAX_FRAME:
                at = len(data)  # h2 says what is wrong with it
                break
            if end > len(data):
                break
            if data[at + 3] == _GOAWAY and size >= 8:
                payload = data[at + _FRAME_HEAD : end]
                last_id = int.from_bytes(payload[:4]) & 0x7FFFFFFF
                self._goaways.append((last_id, int.from_bytes(payload[4:8])))
                kept.append(data[begin:at])
                begin = end
            at = end
        kept.append(data[begin:at])
        self._rest = data[at:]
        return b"".join(kept)

    def take_goaways(self) -> list[tuple[int, int]]:
        goaways, self._goaways = self._goaways, []
        return goaways


def _make_protocol() -> h2.connection.H2Connection:
    """A client's side of h2, with our settings ready to be sent."""
    protocol = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding=None)
    )
    codes = h2.settings.SettingCodes
    protocol.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            codes.MAX_HEADER_LIST_SIZE: protocol.DEFAULT_MAX_HEADER_LIST_SIZE,
        },
    )
    protocol.initiate_connection()
    # Room for every stream's window: one that is read slowly holds up no other.
    protocol.increment_flow_control_window(_MAX_STREAMS * _STREAM_WINDOW)
    return protocol


def _encode_head(request: Request) -> list[tuple[bytes, bytes]]:
    authority = request.origin.authority
    fields: list[tuple[bytes, bytes]] = []
    for cased_name, value in request.wire_headers():
        name = cased_name.lower()
        if name == "host":
            authority = value
        elif name not in _CONNECTION_HEADERS and (name != "te" or value == "trailers"):
            fields.append((name.encode(), encode_value(value)))
    return [
        (b":method", request.method.encode()),
        (b":scheme", request.origin.scheme.encode()),
        (b":authority", encode_value(authority)),
        (b":path", request.path.encode()),
        *fields,
    ]


def _reset(code: int) -> TransportError:
    if code == ErrorCodes.REFUSED_STREAM:
        return StreamRefused("the peer did not process the stream: REFUSED_STREAM")
    error = StreamReset(f"the peer reset the stream: {_code_name(code)}")
    error.code = code
    return error


def _code_name(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"
