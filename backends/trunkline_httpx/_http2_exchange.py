"""One HTTP/2 exchange: a stream, from the request head to the end of the response.

This module knows what a stream has sent and received. It does not know how bytes come and go: its
connection does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import h2.connection
import h2.events
from h2.errors import ErrorCodes
from multidict import CIMultiDict, CIMultiDictProxy

from trunkline import (
    Attempt,
    GoAway,
    LimitExceeded,
    RemoteProtocolError,
    StreamRefused,
    StreamReset,
    TransportError,
)
from trunkline_httpx._http2_protocol import code_name
from trunkline_httpx._message import RawHeaders, RequestBody, decode_headers
from trunkline_httpx._network import FAIR_SHARE, give_way
from trunkline_httpx._translate import Course


class Multiplexer(Protocol):
    """What an exchange needs of its connection."""

    protocol: h2.connection.H2Connection

    def is_usable(self) -> bool: ...

    def room(self, stream_id: int) -> int:
        """How many bytes of content may go now; it may be negative (RFC 9113 section 6.9.2)."""
        ...

    async def flush(self, exchange: Http2Exchange) -> None:
        """Send what h2 has to send, all of it, unless the exchange is refused meanwhile."""
        ...

    async def until(self, exchange: Http2Exchange, ready: Callable[[], bool]) -> None:
        """Serve the connection, or wait while another exchange does, until `ready()`."""
        ...

    def acknowledge(self, exchange: Http2Exchange, size: int) -> None:
        """`size` bytes were taken from the window: the peer may send as many more."""
        ...

    def release(self, exchange: Http2Exchange) -> None:
        """Forget the exchange, and tell the peer if it is not over."""
        ...


class Http2Exchange:
    """Implements `trunkline.Exchange`.

    Attributes:
        id: of the stream.
        pieces: of the body, not read yet, each with the window it takes up.
        failure: why the response will not be complete.
        is_gone: the peer has ended the stream, or will never begin it.
    """

    reason_phrase = ""
    http_version = "HTTP/2"

    def __init__(
        self, connection: Multiplexer, stream_id: int, attempt: Attempt, *, has_body: bool
    ) -> None:
        self.id = stream_id
        self.attempt = attempt
        self.status_code = 0
        self.headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        self.raw_headers: RawHeaders = ()
        self.pieces: deque[tuple[bytes, int]] = deque()
        self.failure: TransportError | None = None
        self.is_gone = False
        self._connection = connection
        self._is_sent = not has_body
        self._is_received = False
        self._is_closed = False
        self._frames = 0

    @property
    def is_complete(self) -> bool:
        """Request and response are: the stream is closed (RFC 9113 section 5.1)."""
        return self._is_sent and self._is_received

    @property
    def is_refused(self) -> bool:
        """The rest of the request is of no use: the response is an error, or over, or failed."""
        is_error = self.status_code != 0 and not 200 <= self.status_code <= 299
        return is_error or self._is_received or self.failure is not None

    def course(self) -> Course:
        return Course(self._is_sent, self.attempt.response_started, ended=True)

    # -- sending ---------------------------------------------------------------------------------

    async def run(self, body: RequestBody) -> None:
        """From the request head, which h2 has, to the response head."""
        connection = self._connection
        if body.is_streamed:
            await connection.flush(self)
        async for piece in body:
            await self._send(memoryview(piece), is_last=not body.is_streamed)
            if self.is_refused:
                break
        if body.is_over and not self._is_sent and not self.is_refused:
            connection.protocol.end_stream(self.id)
            self._is_sent = True
        await connection.flush(self)
        if self._is_sent:
            self.attempt.begin("headers")
        await connection.until(self, self._has_head)
        if self.failure is not None and not self.status_code:
            raise self.failure

    async def _send(self, data: memoryview, *, is_last: bool) -> None:
        connection = self._connection
        while data and not self.is_refused:
            room = connection.room(self.id)
            if room <= 0:
                await connection.flush(self)
                await connection.until(self, self._has_room)
                self.attempt.begin("write")
                continue
            frame, data = bytes(data[:room]), data[room:]
            self._is_sent = is_last and not data
            connection.protocol.send_data(self.id, frame, end_stream=self._is_sent)
            await connection.flush(self)
            self._frames += 1
            if self._frames % FAIR_SHARE == 0:
                connection.is_usable()  # it takes in what has come, a refusal perhaps
                await self.attempt.wait(give_way())

    def _has_room(self) -> bool:
        return self.is_refused or self._connection.room(self.id) > 0

    def _has_head(self) -> bool:
        return self.status_code != 0 or self.failure is not None

    # -- receiving -------------------------------------------------------------------------------

    def handle(self, event: h2.events.Event) -> None:
        """Something has come on this stream."""
        if isinstance(event, h2.events.DataReceived):
            self._take(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.ResponseReceived):
            self._take_head(event.headers or [])
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.attempt.response_started = True
        elif isinstance(event, h2.events.StreamEnded):
            self._is_received = True
        elif isinstance(event, h2.events.StreamReset):
            self.is_gone = True
            self.fail(_explain_reset(int(event.error_code or 0)))

    def _take(self, data: bytes, size: int) -> None:
        if data:
            self.pieces.append((data, size))
        elif size:  # only padding
            self._connection.protocol.acknowledge_received_data(size, self.id)

    def _take_head(self, fields: list[tuple[bytes, bytes]]) -> None:
        self.attempt.response_started = True
        try:
            self.raw_headers = tuple(field for field in fields if not field[0].startswith(b":"))
            self.headers = decode_headers(self.raw_headers)
            self.status_code = int(dict(fields)[b":status"])
        except LimitExceeded as error:
            self.fail(error)
        except ValueError as error:
            failure = RemoteProtocolError("the response head is not valid HTTP/2")
            failure.__cause__ = error
            self.fail(failure)

    def pass_over(self) -> None:
        """A GOAWAY says that the peer has not begun this stream, and will not."""
        self.is_gone = True
        self.fail(GoAway("the peer closes the connection, and has not begun the stream"))

    def fail(self, error: TransportError) -> None:
        """The response will not be complete, unless it is so already."""
        if self.failure is None and not self._is_received:
            self.failure = error

    async def read(self) -> bytes:
        if self._is_closed:
            return b""
        self.attempt.begin("body")
        try:
            if not self._has_news():
                await self._connection.until(self, self._has_news)
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


def _explain_reset(code: int) -> TransportError:
    if code == ErrorCodes.REFUSED_STREAM:
        return StreamRefused("the peer did not process the stream: REFUSED_STREAM")
    error = StreamReset(f"the peer reset the stream: {code_name(code)}")
    error.code = code
    return error
