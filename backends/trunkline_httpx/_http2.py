"""HTTP/2 on a stream of ours: who of the exchanges reads and writes for all.

This module knows turns. It does not know how the stream of bytes was opened, nor frames, windows or
what a failure means: `trunkline.http2` does.

It stands in for httpx's own HTTP/2 connection, which never resets a stream, ends every stream at a
GOAWAY, and loses its way when a window or the number of streams shrinks.

No task runs in the background. Of the exchanges that wait for the peer one reads for all, and when
it has what it waits for the next one takes over.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from trunkline import Attempt, LimitExceeded, Request, TransportError
from trunkline.http2 import Http2Engine, Http2Exchange, RequestContent
from trunkline.net import FAIR_SHARE, RECEIVE_SIZE, Stream, give_way

_MAX_OUTBOX = 4 * 1024 * 1024


class Http2Connection:
    """Implements `trunkline.Connection`, and what its exchanges need."""

    http_version = "HTTP/2"

    def __init__(self, stream: Stream, *, ping_interval: float | None = None) -> None:
        self.peer = stream.peer
        self.ssl_object = stream.ssl_object
        self.engine = Http2Engine(ping_interval=ping_interval)
        self._stream = stream
        self._waiting: dict[_Exchange, anyio.Event] = {}
        self._flushing: dict[_Exchange, int] = {}
        self._is_reading = self._is_writing = False
        self._outbox = bytearray()
        self._sent = 0
        self._is_blocked = False
        self._receptions = 0
        self.push()

    # -- the contract ----------------------------------------------------------------------------

    @property
    def max_exchanges(self) -> int:
        return self.engine.max_exchanges

    @property
    def on_change(self) -> Callable[[], None] | None:
        return self.engine.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[], None] | None) -> None:
        self.engine.on_change = callback

    def is_usable(self) -> bool:
        engine = self.engine
        if not self._is_reading:
            for _ in range(FAIR_SHARE):
                if engine.is_retired or not self._take_in():
                    break
            if not engine.is_busy:  # nobody else keeps it alive
                self._keep_alive()
        return not engine.is_retired

    async def exchange(self, request: Request, attempt: Attempt) -> Http2Exchange:
        attempt.begin("write")
        exchange = _Exchange(self, request, attempt)
        content = RequestContent(request, attempt)
        try:
            exchange.begin(request, end=not (content.is_streamed or content.size))
            await exchange.run(content)
        except BaseException:
            exchange.close()
            raise
        finally:
            if not content.is_over:
                await content.aclose()
        return exchange

    def close(self) -> None:
        self.engine.close()
        self.push()
        self._stream.close()

    # -- for its exchanges -----------------------------------------------------------------------

    async def flush(self, exchange: _Exchange) -> None:
        try:
            self.push()
            if self._is_blocked:
                end = self._flushing[exchange] = self.engine.produced
                await self.until(exchange, lambda: self._is_out(end) or exchange.is_refused())
        finally:
            self._flushing.pop(exchange, None)
            exchange.attempt.bytes_sent = min(
                exchange.size, max(0, self._sent - exchange.sent_from)
            )

    async def until(self, exchange: _Exchange, ready: Callable[[], bool]) -> None:
        try:
            while not ready():
                await self._take_turn(exchange)
        finally:
            self._hand_over()

    def wake(self, exchange: _Exchange) -> None:
        event = self._waiting.get(exchange)
        if event is not None:
            event.set()

    # -- taking turns ----------------------------------------------------------------------------

    async def _take_turn(self, exchange: _Exchange) -> None:
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
        except anyio.ClosedResourceError:
            self._end(ConnectionError("the connection was closed"))
        except OSError as error:
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
        if self.engine.is_closed:
            return
        stream = self._stream
        if reads and writes:
            await attempt.wait(stream.wait_either())
        elif writes:
            await attempt.wait(stream.wait_writable())
        else:
            await attempt.wait(self._wait_readable())
        if writes:
            self.push()
        if reads:
            self._take_in()

    async def _wait_readable(self) -> None:
        """Wait for the peer, and when it is silent for long ask whether it is there."""
        seconds = self._keep_alive()
        if seconds is None:
            await self._stream.wait_readable()
        else:
            with anyio.move_on_after(seconds):
                await self._stream.wait_readable()

    def _keep_alive(self) -> float | None:
        seconds = self.engine.keep_alive()
        self.push()
        return seconds

    def _hand_over(self) -> None:
        if not self._is_reading or (self._is_blocked and not self._is_writing):
            for event in self._waiting.values():
                event.set()
                return

    # -- sending ---------------------------------------------------------------------------------

    def push(self) -> None:
        """Send what there is to send, as far as that goes at once."""
        engine = self.engine
        was_blocked, before = self._is_blocked, self._sent
        self._outbox += engine.take_output()
        try:
            while self._outbox and (taken := self._stream.send_nowait(self._outbox)):
                del self._outbox[:taken]
                self._sent += taken
            self._is_blocked = bool(self._outbox) or not self._stream.flush_nowait()
        except OSError as error:
            self._outbox.clear()
            while not engine.is_closed and self._receive():  # what the peer said before it went
                pass
            self._end(error)
            return
        if was_blocked and (self._sent > before or not self._is_blocked):
            self._note_progress()
        if engine.is_closed:
            self._stream.close()
        elif len(self._outbox) > _MAX_OUTBOX:
            self._end(LimitExceeded("the peer demands answers and does not take them"))

    def _is_out(self, mark: int) -> bool:
        return self._sent > mark or (self._sent == mark and not self._is_blocked)

    def _note_progress(self) -> None:
        for exchange, mark in self._flushing.items():
            exchange.attempt.begin("write")
            if self._is_out(mark):
                self.wake(exchange)

    # -- receiving -------------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Receive what waits, and answer it; False if that is nothing, or the end."""
        has_more = self._receive()
        self.push()
        return has_more

    def _receive(self) -> bool:
        try:
            data = self._stream.receive_nowait(RECEIVE_SIZE)
        except OSError as error:
            self._end(error)
            return False
        if data is None:
            return False
        if data:
            self.engine.receive(data)
        else:
            self._end(None)
        return not self.engine.is_closed

    def _end(self, error: Exception | None) -> None:
        """The end of the connection, and of every exchange that still needs it."""
        self.engine.end(error)
        self._stream.close()


class _Exchange(Http2Exchange):
    """An exchange that serves the connection while it waits."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Http2Connection, request: Request, attempt: Attempt) -> None:
        super().__init__(connection.engine, request, attempt)
        self._connection = connection

    async def run(self, content: RequestContent) -> None:
        await self.send(content)
        await self.flush()
        if self.is_sent:
            self.attempt.begin("headers")
        await self.head()

    def wake(self) -> None:
        self._connection.wake(self)

    async def until(self, ready: Callable[[], bool]) -> None:
        await self._connection.until(self, ready)

    async def flush(self) -> None:
        await self._connection.flush(self)

    async def read(self) -> bytes:
        piece = await super().read()
        self._connection.push()
        return piece

    def close(self) -> None:
        super().close()
        self._connection.push()
