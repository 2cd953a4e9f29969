"""One exchange on two threads: a task in the event loop's, a caller who waits in its own.

This module knows what passes between them. It does not know the libraries that are served, nor how
the loop's thread lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeAlias

from trunkline import Request, Response, Transport, TransportClosed
from trunkline.adapters._thread import LoopThread

_READ_AHEAD = 262144  # bytes of a response that may wait for the caller
_END = b""  # of the response's body

# None asks for a piece of the request's body.
_Item: TypeAlias = Response | bytes | BaseException | None


class Exchange:
    """The task sends the request and reads the response ahead of the caller, a bounded way.

    So a piece that is here already costs the caller no change of threads, and the body of a small
    response has been read when the caller asks for it. A request's body that is an iterator is
    iterated over in the caller's thread, to which its files and cursors may be bound.
    """

    def __init__(self, thread: LoopThread, body: Iterable[bytes] | None) -> None:
        self._thread = thread
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self.upload = None if body is None else _Upload(self._inbox, iter(body))
        self._task: Future[None] | None = None
        self._is_over = False
        # Each is written by one of the threads only.
        self._given = self._taken = 0
        self._room: asyncio.Event | None = None

    # -- in the caller's thread --------------------------------------------------------------------

    def start(self, transport: Transport, request: Request) -> Response:
        """Send the request and wait for the response's head.

        Raises:
            TransportError: see `Transport.send`.
        """
        self._thread.left_over.add(self._give_up)
        try:
            self._task = self._thread.portal.start_task_soon(self._run, transport, request)
        except RuntimeError:
            self._give_up()
        if self._thread.has_ended:
            self._give_up()
        response = self._take()
        assert isinstance(response, Response)
        return response

    def read(self) -> bytes:
        """The next piece of the response's body; b"" at its end. Raises as `Response.aread`."""
        if self._is_over:
            return _END
        piece = self._take()
        assert isinstance(piece, bytes)
        self._is_over = not piece
        self._taken += len(piece)
        room = self._room
        if room is not None and self._given - self._taken <= _READ_AHEAD // 2:
            self._thread.call_soon(room.set)
        return piece

    @property
    def is_running(self) -> bool:
        """Whether it holds a connection."""
        return self._task is not None and not self._task.done()

    def cancel(self) -> None:
        """End the exchange, and with it the connection or stream. Idempotent, waits for nothing."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    def _take(self) -> Response | bytes:
        try:
            while True:
                item = self._inbox.get()
                if item is None:
                    self._produce()
                elif isinstance(item, BaseException):
                    self._thread.hold_daemons()
                    raise item
                else:
                    return item
        except BaseException:  # KeyboardInterrupt above all, which arrives here
            self.cancel()
            raise

    def _produce(self) -> None:
        assert self.upload is not None
        self._thread.call_soon(self.upload.produce())

    def _give_up(self) -> None:
        self._inbox.put(TransportClosed("the transport is closed"))

    # -- in the loop's thread ----------------------------------------------------------------------

    async def _run(self, transport: Transport, request: Request) -> None:
        inbox = self._inbox
        try:
            async with await transport.send(request) as response:
                inbox.put(response)
                async for piece in response.aiter_raw():
                    self._given += len(piece)
                    inbox.put(piece)
                    if self._given - self._taken > _READ_AHEAD:
                        await self._wait_for_room()
            inbox.put(_END)
        except asyncio.CancelledError:
            self._give_up()
            raise
        except Exception as error:  # noqa: BLE001  # the caller's thread raises it
            inbox.put(error)
        finally:
            self._thread.left_over.discard(self._give_up)

    async def _wait_for_room(self) -> None:
        self._room = asyncio.Event()
        if self._given - self._taken > _READ_AHEAD:  # the caller may not have seen `_room`
            await self._room.wait()
        self._room = None


class _Upload(AsyncIterator[bytes]):
    """A request's body for the task, out of an iterator of the caller's."""

    def __init__(self, inbox: SimpleQueue[_Item], pieces: Iterator[bytes]) -> None:
        self._inbox = inbox
        self._pieces = pieces
        self._reply: asyncio.Future[bytes | None]

    async def __anext__(self) -> bytes:
        self._reply = asyncio.get_running_loop().create_future()
        self._inbox.put(None)
        piece = await self._reply
        if piece is None:
            raise StopAsyncIteration
        return piece

    def produce(self) -> Callable[[], None]:
        """Take the next piece, in the caller's thread; what it returns is for the loop's."""
        try:
            piece = next(self._pieces, None)
        except Exception as error:  # noqa: BLE001  # it ends the exchange, which raises it
            return partial(self._fail, error)
        return partial(self._give, piece)

    def _give(self, piece: bytes | None) -> None:
        if not self._reply.done():
            self._reply.set_result(piece)

    def _fail(self, error: Exception) -> None:
        if not self._reply.done():
            self._reply.set_exception(error)
