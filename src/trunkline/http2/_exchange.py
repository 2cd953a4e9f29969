"""One HTTP/2 exchange: a stream, from the request head to the end of the response.

This module knows what a stream has sent and received, and what its caller waits for. It does not
know how bytes come and go, or how one waits: a backend's subclass does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes
from multidict import CIMultiDict, CIMultiDictProxy

from trunkline._content import RequestContent
from trunkline._contract import Attempt
from trunkline._errors import (
    GoAway,
    LimitExceeded,
    Phase,
    RemoteProtocolError,
    StreamRefused,
    StreamReset,
    TransportError,
    TransportTimeout,
)
from trunkline._messages import Request
from trunkline.http2._fields import Fields, Head, check_trailers
from trunkline.http2._protocol import code_name

if TYPE_CHECKING:
    from trunkline.http2._engine import Http2Engine

_MOST_INTERIM = 100
_NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())


class Http2Exchange(ABC):
    """Implements `trunkline.Exchange`, but for waiting, which is the backend's.

    Attributes:
        id: of the stream; 0 before it is open.
        sent_from: how many bytes the connection had produced before it.
        size: bytes of its request that are ready to be sent, or were sent.
        held: bytes of the response that nobody has read, with their padding.
        unreturned: bytes of the stream's window that were consumed and not given back yet.
        failure: why the response will not be complete.
        is_sent: the request is, to its end.
        is_gone: the stream is over before its end, or will never begin.
    """

    __slots__ = ("_answers_head", "_due", "_has_no_body", "_interim", "_is_closed", "_is_received",
                 "_pieces", "attempt", "engine", "failure", "headers", "held", "id", "is_gone",
                 "is_sent", "raw_headers", "sent_from", "size", "status_code",
                 "unreturned")  # fmt: skip

    reason_phrase = ""
    http_version = "HTTP/2"

    def __init__(self, engine: Http2Engine, request: Request, attempt: Attempt) -> None:
        self.engine = engine
        self.attempt = attempt
        self.id = self.status_code = 0
        self.headers = _NO_HEADERS
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.sent_from = self.size = self.held = self.unreturned = 0
        self.failure: BaseException | None = None
        self.is_sent = self.is_gone = False
        self._answers_head = request.method == "HEAD"
        self._has_no_body = False
        self._pieces: deque[bytes] = deque()
        self._due: int | None = None
        self._interim = 0
        self._is_received = self._is_closed = False

    @property
    def is_complete(self) -> bool:
        """Request and response are: the stream is closed (RFC 9113 section 5.1)."""
        return self.is_sent and self._is_received

    @property
    def wants_more(self) -> bool:
        return not (self._is_received or self.is_gone or self._is_closed)

    def is_refused(self) -> bool:
        """The rest of the request is of no use: the response is an error, or over, or failed."""
        is_error = self.status_code != 0 and not 200 <= self.status_code <= 299
        return is_error or self._is_received or self.failure is not None

    # -- the backend's ---------------------------------------------------------------------------

    @abstractmethod
    def wake(self) -> None:
        """Something has changed: whoever is in `until` is to look again. It may be nobody."""

    @abstractmethod
    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, within the deadlines of the attempt."""

    async def until_room(self, ready: Callable[[], bool]) -> None:
        """`until`, of whoever sends the content."""
        await self.until(ready)

    def begin_sending(self, phase: Phase) -> None:
        """`Attempt.begin`, of whoever sends the content."""
        self.attempt.begin(phase)

    @abstractmethod
    async def flush(self) -> None:
        """Hand what there is to send to the operating system, unless the rest is refused."""

    async def _wait(
        self, until: Callable[[Callable[[], bool]], Awaitable[None]], ready: Callable[[], bool]
    ) -> None:
        since = monotonic()
        try:
            await until(ready)
        except TransportTimeout:
            self.engine.doubt(since)
            raise

    # -- sending ---------------------------------------------------------------------------------

    def begin(self, request: Request, *, end: bool) -> None:
        """Send the head. Raises as `Http2Engine.open`."""
        engine = self.engine
        before = engine.produced
        engine.open(self, request, end=end)
        self.size = engine.produced - before
        self.is_sent = end

    def send_nowait(self, data: memoryview, *, is_last: bool) -> memoryview:
        """Send a frame of content as far as there is room; return the rest."""
        engine = self.engine
        room = engine.room(self)
        if room <= 0:
            return data
        frame, rest = bytes(data[:room]), data[room:]
        before = engine.produced
        self.is_sent = is_last and not rest
        engine.send(self, frame, end=self.is_sent)
        self.size += engine.produced - before
        return rest

    async def send(self, content: RequestContent) -> None:
        """Send the content, all of it unless it is refused."""
        engine = self.engine
        if content.is_streamed:
            await self.flush()
        async for piece in content:
            rest = memoryview(piece)
            while rest and not self.is_refused():
                if engine.room(self) <= 0:
                    await self._wait(self.until_room, self._has_room)
                    self.begin_sending("write")
                rest = self.send_nowait(rest, is_last=not content.is_streamed)
                await self.flush()
            if self.is_refused():
                return
        if not self.is_sent and not self.is_refused():
            self.is_sent = True
            engine.send(self, b"", end=True)
            await self.flush()

    def _has_room(self) -> bool:
        return self.is_refused() or self.engine.room(self) > 0

    async def head(self) -> None:
        """Wait for the response head."""
        if not self.has_head():
            await self._wait(self.until, self.has_head)
        if self.failure is not None and not self.status_code:
            raise self.failure

    def has_head(self) -> bool:
        return self.status_code != 0 or self.failure is not None

    # -- receiving -------------------------------------------------------------------------------

    def take_head(self, fields: Fields) -> None:
        self.attempt.response_started = True
        try:
            head = Head(fields)
        except TransportError as error:
            self.engine.fail(self, error)
            return
        self.raw_headers, self.headers = head.raw_headers, head.headers
        self._has_no_body = self._answers_head or head.status_code in (204, 304)
        self._due = 0 if self._has_no_body else head.length
        self.status_code = head.status_code
        self.wake()

    def take_interim(self, fields: Fields) -> None:
        """A 1xx, which is passed over."""
        self.attempt.response_started = True
        self._interim += 1
        if self._interim > _MOST_INTERIM:
            many = LimitExceeded(f"more than {_MOST_INTERIM} interim (1xx) responses")
            self.engine.fail(self, many)
        elif fields[0][1] == b"101":  # RFC 9113 section 8.6
            wrong = RemoteProtocolError("the server switched protocols (101), which HTTP/2 has not")
            self.engine.fail(self, wrong)

    def take_trailers(self, fields: Fields) -> None:
        try:
            check_trailers(fields)
        except TransportError as error:
            self.engine.fail(self, error)

    def take_data(self, data: bytes, size: int) -> None:
        """Content, for which `size` bytes of the window were taken up."""
        if not self.status_code:
            wrong = RemoteProtocolError("the body comes before the response head")
            self.engine.fail(self, wrong)
        if self.failure is not None:
            self.engine.consumed(self, size)
            return
        if size > len(data):  # padding
            self.engine.consumed(self, size - len(data))
        if not data:
            return
        self.held += len(data)
        self._pieces.append(data)
        if self._due is not None:
            self._due -= len(data)
            if self._due < 0:
                why = "a body where none may be" if self._has_no_body else "more than it said"
                self.engine.fail(self, RemoteProtocolError(f"the peer sends {why}"))
                return
        self.wake()

    def take_end(self) -> None:
        if self._due:
            short = RemoteProtocolError("the body is not as long as content-length says")
            self.engine.fail(self, short)
        elif self.failure is None:
            self._is_received = True
            self.wake()

    def take_reset(self, code: int) -> None:
        self.is_gone = True
        if code == ErrorCodes.REFUSED_STREAM:
            self.fail(StreamRefused("the peer did not process the stream: REFUSED_STREAM"))
            return
        error = StreamReset(f"the peer reset the stream: {code_name(code)}")
        error.code = code
        self.fail(error)

    def pass_over(self) -> None:
        """A GOAWAY says that the peer has not begun this stream, and will not."""
        self.is_gone = True
        self.fail(GoAway("the peer closes the connection, and has not begun the stream"))

    def fail(self, error: BaseException) -> None:
        """The response will not be complete, unless it is so already."""
        if self.failure is None and not self._is_received:
            self.failure = error
        self.wake()

    async def read(self) -> bytes:
        """See `trunkline.Exchange.read`."""
        if self._is_closed:
            return b""
        try:
            if not self._pieces:
                if not self._is_received:
                    self.attempt.begin("body")
                    await self._wait(self.until, self._has_news)
                if not self._pieces:
                    return self._end()
            return self._take_pieces()
        except BaseException:
            self.close()
            raise

    def _has_news(self) -> bool:
        return bool(self._pieces) or self._is_received or self.failure is not None

    def _take_pieces(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.held = 0
        self.engine.consumed(self, len(data))
        return data

    def _end(self) -> bytes:
        if self.failure is not None:
            raise self.failure
        self.close()
        return b""

    def close(self) -> None:
        """See `trunkline.Exchange.close`."""
        if not self._is_closed:
            self._is_closed = True
            self._pieces.clear()
            self.engine.release(self)
