"""HTTP/2 on a connection that aiohttp's connector has opened: an asyncio protocol on the engine.

This module knows transports, callbacks and futures. It does not know frames, windows or what a
failure means: `trunkline.http2` does.

What all exchanges have to say in one step of the event loop goes out in one write.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from trunkline import Attempt, Phase, Request
from trunkline.http2 import Http2Engine, Http2Exchange, RequestContent
from trunkline_aiohttp._exchange import peer_name
from trunkline_aiohttp._reads import Reader, read_alone, read_for

if TYPE_CHECKING:
    import ssl

    from aiohttp.connector import Connection as Opened

    from trunkline_aiohttp._protocol import Handler
    from trunkline_aiohttp._reads import Reads

_AT_ONCE = 65536  # bytes: a body up to this needs no task; what waits beyond it is written now
_SLICE = 262144  # bytes of a body, after which other tasks have a turn
_ENDED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR  # RDHUP is Linux's


class Http2Connection(Reader):
    """Implements `trunkline.Connection`. It takes the transport over from `handler`.

    Its streams are read together anyway.
    """

    http_version = "HTTP/2"

    def __init__(
        self,
        opened: Opened | None,
        handler: Handler,
        *,
        ping_interval: float | None,
        reads: Reads | None,
    ) -> None:
        transport = handler.transport
        assert transport is not None
        self._opened = opened
        self._handler = handler
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self.peer = peer_name(transport.get_extra_info("peername"))
        self.ssl_object: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), _ENDED)
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self.is_paused = False
        self.engine = Http2Engine(ping_interval=ping_interval)
        self.engine.on_output = self._schedule
        # Nothing is left of what was written when writing goes on.
        transport.set_write_buffer_limits(_AT_ONCE, 0)
        transport.set_protocol(self)
        read_for(self, transport, reads)
        self.flush()
        self._keep_alive()
        self.data_received(handler.take_early())

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
        if engine.is_retired or self._transport.is_closing():
            return False
        return engine.is_busy or not self._poll.poll(0)  # a FIN that the loop has not seen yet

    async def exchange(self, request: Request, attempt: Attempt) -> _Exchange:
        exchange = _Exchange(self, request, attempt)
        try:
            await exchange.run(request)
        except BaseException:
            attempt.bytes_sent = min(exchange.size, max(0, self._handed() - exchange.sent_from))
            exchange.close()
            raise
        return exchange

    def close(self) -> None:
        if self._loop.is_closed():
            # Nothing can be scheduled there any more; the socket goes with the transport.
            self._handler.transport = None
        else:
            self.engine.close()
            self._give_up()
        if self._opened is not None:
            self._opened.close()

    # -- sending ---------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def _flush_scheduled(self) -> None:
        self._is_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what there is to send."""
        data = self.engine.take_output()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _handed(self) -> int:
        """How many bytes of all that was produced the operating system has, as far as is known."""
        engine = self.engine
        return engine.produced - engine.outbox_size - self._transport.get_write_buffer_size()

    # -- the protocol ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.engine.receive(data)
        if self.engine.is_closed:
            self._give_up()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.engine.wake_all()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        self.engine.end(exc if isinstance(exc, Exception) else None)
        self._handler.connection_lost(exc)

    def _give_up(self) -> None:
        """The engine has ended the connection: say so to the peer, and close the socket."""
        self.flush()
        self._stop_timer()
        # abort, not close: unsent bytes of a peer that does not read would hold the socket open.
        if isinstance(self._loop, asyncio.BaseEventLoop):
            read_alone(self._transport)
            self._transport.abort()
        else:  # uvloop joins all that is written in one round
            self._loop.call_soon(self._transport.abort)

    def _keep_alive(self) -> None:
        seconds = self.engine.keep_alive()
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._keep_alive)
        elif self.engine.is_closed:
            self._give_up()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _Exchange(Http2Exchange):
    """An exchange that is awaited with futures.

    The caller's own task awaits the response, and keeps every deadline. A body that does not go out
    at once is sent by a task beside it, also after the response has begun.
    """

    __slots__ = ("_connection", "_is_flushed", "_last_turn", "_room_waiter", "_upload", "_waiter")

    def __init__(self, connection: Http2Connection, request: Request, attempt: Attempt) -> None:
        super().__init__(connection.engine, request, attempt)
        self._connection = connection
        self._waiter: asyncio.Future[None] | None = None
        self._room_waiter: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._is_flushed = True
        self._last_turn = 0

    async def run(self, request: Request) -> None:
        content, attempt = request.content, self.attempt
        if not content:
            self.begin(request, end=True)
        else:
            self.begin(request, end=False)
            if not (isinstance(content, bytes) and self._send_at_once(content)):
                self._send_beside(request)
        attempt.bytes_sent = self.size
        if self._upload is None:
            self._is_flushed = not self._connection.is_paused
            attempt.begin("headers" if self._is_flushed else "write")
        await self.head()
        if self.is_refused():
            self._stop_upload()

    def _send_at_once(self, content: bytes) -> bool:
        if len(content) > min(_AT_ONCE, self.engine.window(self)):
            return False
        rest = memoryview(content)
        while rest:
            rest = self.send_nowait(rest, is_last=True)
        return True

    # -- waiting ---------------------------------------------------------------------------------

    def wake(self) -> None:
        if not self._is_flushed and not self._connection.is_paused:
            self._is_flushed = True
            self.begin_sending("headers")
        for waiter in (self._waiter, self._room_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    async def until(self, ready: Callable[[], bool]) -> None:
        loop, attempt = asyncio.get_running_loop(), self.attempt
        while not ready():
            self._waiter = loop.create_future()
            await attempt.wait(self._waiter)

    async def until_room(self, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while not ready():
            self._room_waiter = loop.create_future()
            await self._room_waiter

    # -- a body that takes longer ----------------------------------------------------------------

    def begin_sending(self, phase: Phase) -> None:
        if not self.status_code:  # from then on the deadlines are the reader's
            self.attempt.begin(phase)

    def _send_beside(self, request: Request) -> None:
        content = RequestContent(request, self.attempt, begin=self.begin_sending, wait=_plainly)
        self.begin_sending("request" if content.is_streamed else "write")
        self._upload = asyncio.ensure_future(self._send_content(content))

    async def _send_content(self, content: RequestContent) -> None:
        try:
            try:
                await self.send(content)
            finally:
                if not content.is_over:
                    await content.aclose()
        except BaseException as error:
            if not self.is_refused():  # nor was it stopped for that
                self.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self.begin_sending("headers")

    async def flush(self) -> None:
        connection = self._connection
        self.attempt.bytes_sent = self.size
        if self.engine.outbox_size >= _AT_ONCE:
            connection.flush()
        if connection.is_paused:
            self.begin_sending("write")
            await self.until_room(lambda: not connection.is_paused or self.is_refused())
        elif self.size - self._last_turn > _SLICE:
            # A body that never waits, to a peer that is never slow: let the loop see an answer.
            await asyncio.sleep(0)
        else:
            return
        self._last_turn = self.size

    def _stop_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()

    def close(self) -> None:
        self._stop_upload()
        super().close()


async def _plainly(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
