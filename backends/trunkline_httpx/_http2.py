"""An HTTP/2 connection on h2, the protocol library that httpx uses.

This module knows who reads and writes for whom, and when the connection may carry no new exchange.
It does not know how the stream of bytes was opened, or what an exchange makes of what has come.

It stands in for httpx's own HTTP/2 connection, which never resets a stream, ends every stream at a
GOAWAY, and loses its way when a window or the number of streams shrinks.

No task runs in the background. Of the exchanges that wait for the peer one reads for all, and when
it has what it waits for the next one takes over.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes

from trunkline import (
    Attempt,
    GoAway,
    InvalidRequest,
    LimitExceeded,
    RemoteDisconnected,
    RemoteProtocolError,
    Request,
    StreamRefused,
    TransportError,
)
from trunkline_httpx._http2_exchange import Http2Exchange
from trunkline_httpx._http2_protocol import (
    MAX_STREAMS,
    FrameFilter,
    code_name,
    encode_head,
    make_protocol,
)
from trunkline_httpx._message import RequestBody
from trunkline_httpx._network import FAIR_SHARE, RECEIVE_SIZE, Stream, give_way
from trunkline_httpx._translate import EXCHANGE, Table, say, translate

_MAX_OUTBOX = 4 * 1024 * 1024

HTTP2: Table = (
    (h2.exceptions.DenialOfServiceError, say(LimitExceeded, "the response head is too long")),
    (h2.exceptions.H2Error, say(RemoteProtocolError, "what the peer sends is not HTTP/2")),
    *EXCHANGE,
)


class Http2Connection:
    """Implements `trunkline.Connection`, and what its exchanges need."""

    http_version = "HTTP/2"

    def __init__(self, stream: Stream) -> None:
        self.peer = stream.peer
        self.protocol = make_protocol()
        self._stream = stream
        self._frames = FrameFilter()
        self._exchanges: dict[int, Http2Exchange] = {}
        self._waiting: dict[Http2Exchange, anyio.Event] = {}
        self._flushing: dict[Http2Exchange, int] = {}
        self._is_reading = self._is_writing = False
        self._outbox = bytearray()
        self._sent = 0
        self._is_blocked = False
        self._receptions = 0
        self._goaway_code = 0
        self._is_retired = self._is_broken = self._is_closed = False
        self.push()

    # -- the contract ----------------------------------------------------------------------------

    @property
    def max_exchanges(self) -> int:
        return min(MAX_STREAMS, self.protocol.remote_settings.max_concurrent_streams)

    def is_usable(self) -> bool:
        if not self._is_reading:
            for _ in range(FAIR_SHARE):
                if self._is_retired or not self._take_in():
                    break
        return not self._is_retired

    async def exchange(self, request: Request, attempt: Attempt) -> Http2Exchange:
        attempt.begin("write")
        body = RequestBody(request, attempt)
        exchange = self._open(request, attempt, has_body=body.is_streamed or body.size > 0)
        try:
            await exchange.run(body)
        except BaseException:
            exchange.close()
            raise
        finally:
            if not body.is_over:
                await body.aclose()
        return exchange

    def _open(self, request: Request, attempt: Attempt, *, has_body: bool) -> Http2Exchange:
        if self._is_closed:
            raise RemoteDisconnected("the connection ended before the request was sent")
        if self._is_retired:
            raise StreamRefused("the connection takes no more streams")
        try:
            stream_id = self.protocol.get_next_available_stream_id()
            self.protocol.send_headers(stream_id, encode_head(request), end_stream=not has_body)
        except h2.exceptions.TooManyStreamsError as error:
            raise StreamRefused("the peer takes no more streams now") from error
        except h2.exceptions.NoAvailableStreamIDError as error:
            self._is_retired = True
            raise StreamRefused("the connection has no stream left") from error
        except h2.exceptions.ProtocolError as error:
            self._is_retired = True
            raise InvalidRequest("request: a header is not valid HTTP/2") from error
        exchange = Http2Exchange(self, stream_id, attempt, has_body=has_body)
        self._exchanges[stream_id] = exchange
        return exchange

    def close(self) -> None:
        if self._is_closed:
            return
        if not self._is_broken:
            self.protocol.close_connection()
            self.push()
        self._end(anyio.ClosedResourceError())

    # -- for its exchanges, see `Multiplexer` ----------------------------------------------------

    def room(self, stream_id: int) -> int:
        protocol = self.protocol
        return min(protocol.local_flow_control_window(stream_id), protocol.max_outbound_frame_size)

    async def flush(self, exchange: Http2Exchange) -> None:
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
        try:
            while not ready():
                await self._take_turn(exchange)
        finally:
            self._hand_over()

    def acknowledge(self, exchange: Http2Exchange, size: int) -> None:
        if not self._is_closed:
            self.protocol.acknowledge_received_data(size, exchange.id)
            self.push()

    def release(self, exchange: Http2Exchange) -> None:
        del self._exchanges[exchange.id]
        if self._is_closed:
            return
        if not exchange.is_complete and not exchange.is_gone:
            self.protocol.reset_stream(exchange.id, ErrorCodes.CANCEL)
        for _, size in exchange.pieces:  # give back the connection's window
            self.protocol.acknowledge_received_data(size, exchange.id)
        self.push()
        if self._is_retired and not self._exchanges:
            self.close()

    # -- taking turns ----------------------------------------------------------------------------

    async def _take_turn(self, exchange: Http2Exchange) -> None:
        reads = not self._is_reading
        writes = self._is_blocked and not self._is_writing
        if not reads and not writes:
            event = self._waiting[exchange] = anyio.Event()
            try:
                await exchange.attempt.wait(event.wait())
            finally:
                del self._waiting[exchange]
            return
        self._is_reading |= reads
        self._is_writing |= writes
        try:
            await self._serve(exchange.attempt, reads, writes)
        except TransportError:  # a deadline, which is an OSError too
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            self._end(error)
        finally:
            self._is_reading &= not reads
            self._is_writing &= not writes

    async def _serve(self, attempt: Attempt, reads: bool, writes: bool) -> None:
        if reads and self._take_in():
            self._receptions += 1
            if self._receptions % FAIR_SHARE == 0:
                await attempt.wait(give_way())
            return
        if self._is_closed:
            return
        stream = self._stream
        if reads and writes:
            await attempt.wait(stream.wait_either())
        else:
            await attempt.wait(stream.wait_readable() if reads else stream.wait_writable())
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

    # -- sending ---------------------------------------------------------------------------------

    def push(self) -> None:
        """Send what h2 has to send, as far as that goes at once."""
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
            self._end(error)
            return
        if was_blocked and (self._sent > before or not self._is_blocked):
            self._note_progress()
        if len(self._outbox) > _MAX_OUTBOX:
            self._end(LimitExceeded("the peer demands answers and does not take them"))

    def _is_out(self, mark: int) -> bool:
        return self._sent > mark or (self._sent == mark and not self._is_blocked)

    def _note_progress(self) -> None:
        for exchange, mark in self._flushing.items():
            exchange.attempt.begin("write")
            if self._is_out(mark):
                self._wake(exchange)

    # -- receiving -------------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Receive what waits; False if that is nothing, or the end."""
        try:
            data = self._stream.receive_nowait(RECEIVE_SIZE)
            if data is None:
                return False
            if not data:
                raise ConnectionError("the peer closed the connection")
            for event in self.protocol.receive_data(self._frames.feed(data)):
                self._handle(event)
        except (OSError, h2.exceptions.H2Error) as error:
            self.push()  # the GOAWAY that says why
            self._end(error)
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
        """No new streams, and none above `last_id`; the others go on (RFC 9113 section 6.8)."""
        self._is_retired = True
        self._goaway_code = code
        for exchange in self._exchanges.values():
            if exchange.id > last_id:
                exchange.pass_over()
                self._wake(exchange)

    def _end(self, error: Exception) -> None:
        """The end of the connection, and of every exchange that still needs it."""
        if self._is_closed:
            return
        self._is_retired = self._is_broken = self._is_closed = True
        self._stream.close()
        for exchange in self._exchanges.values():
            exchange.fail(self._explain(exchange, error))
            self._wake(exchange)

    def _explain(self, exchange: Http2Exchange, error: Exception) -> TransportError:
        failure: TransportError | None
        if isinstance(error, TransportError):
            failure = type(error)(str(error))  # one for each: its facts are written into it
        elif self._goaway_code and isinstance(error, ConnectionError):
            failure = GoAway(f"the peer closed the connection: {code_name(self._goaway_code)}")
            failure.replay = "if_idempotent"
        else:
            failure = translate(error, HTTP2, exchange.course())
        if failure is None:
            raise error  # an exception that no table knows is a fault of ours
        failure.__cause__ = error
        return failure
