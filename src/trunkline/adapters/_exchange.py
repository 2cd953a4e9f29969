"""One exchange on two threads: a task in the event loop's, a caller who waits in its own.

This module knows what passes between them. It does not know the libraries that are served, nor how
the loop's thread lives.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import TypeAlias

from anyio import CancelScope

from trunkline import Request, Response, Transport, TransportClosed
from trunkline.adapters._thread import LoopThread

_READ_AHEAD = 262144  # bytes of a response that may wait for the caller
_END = b""  # of the response's body

# None asks for a piece of the request's body.
_Item: TypeAlias = Response | bytes | BaseException | None


class Exchange:
    """The caller's half: gives the request to the other half, and takes what comes from it.

    A request's body that is an iterator is iterated over in the caller's thread, to which its files
    and cursors may be bound. An exchange that is dropped, as by a KeyboardInterrupt that comes when
    nobody holds it yet, is cancelled.
    """

    _is_over = True  # of one that an interrupt has kept from being made

    def __init__(self, thread: LoopThread, body: Iterable[bytes] | None) -> None:
        self._thread = thread
        self._task = _Task()
        self._inbox = self._task.inbox
        self.upload = None if body is None else _Upload(self._inbox, iter(body))
        self._request: Request
        self.is_handed_out = False
        """Somebody has the response, and is to read or close it."""
        self._is_over = False

    def start(self, transport: Transport, request: Request) -> Response:
        """Send the request and wait for the response's head.

        Raises:
            TransportError: see `Transport.send`.
        """
        self._request = request
        task, left_over = self._task, self._thread.left_over
        left_over.add(task.give_up)
        self._thread.start_task(partial(task.run, transport, request, left_over))
        if self._thread.has_ended:
            task.give_up()
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
        self._task.taken += len(piece)
        if self._task.has_room:
            self._thread.call_soon(self._task.go_on)
        return piece

    def cancel(self) -> None:
        """End the exchange, and with it the connection or stream. Idempotent, waits for nothing."""
        if not self._task.is_done:
            self._thread.call_soon(self._task.cancel)
        self._thread.left_over.discard(self._task.give_up)
        self._is_over = True

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

    def __del__(self) -> None:
        if self._is_over:
            return
        holds_connection = not self._task.is_done
        self.cancel()
        if holds_connection and self.is_handed_out:
            # Of the request only what is no secret: its method and origin.
            warnings.warn(
                f"unclosed response to {self._request!r}",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class _Task:
    """The half in the loop: sends the request and reads the response ahead of the caller.

    So a piece that is here already costs the caller no change of threads, and the body of a small
    response has been read when the caller asks for it. It does not hold the caller's half, which is
    to be dropped when the caller drops it.
    """

    def __init__(self) -> None:
        self.inbox: SimpleQueue[_Item] = SimpleQueue()
        self.is_done = False
        # Each is written by one of the threads only.
        self._given = self.taken = 0
        self._room: asyncio.Event | None = None
        self._scope: CancelScope | None = None
        self._is_cancelled = False

    # -- in any thread -----------------------------------------------------------------------------

    def give_up(self) -> None:
        self.inbox.put(TransportClosed("the transport is closed"))

    @property
    def has_room(self) -> bool:
        """Whether it waits for the caller, who has taken enough by now."""
        return self._room is not None and self._given - self.taken <= _READ_AHEAD // 2

    # -- in the loop's -----------------------------------------------------------------------------

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def go_on(self) -> None:
        if self._room is not None:
            self._room.set()

    async def run(
        self, transport: Transport, request: Request, left_over: set[Callable[[], object]]
    ) -> None:
        """Put the response into the inbox, its body's pieces and `_END`, or what went wrong."""
        try:
            with CancelScope() as self._scope:
                if not self._is_cancelled:  # the caller was faster than the loop
                    await self._exchange(transport, request)
        except asyncio.CancelledError:
            self.give_up()
            raise
        except Exception as error:  # noqa: BLE001  # the caller's thread raises it
            self.inbox.put(error)
        finally:
            self.is_done = True
            left_over.discard(self.give_up)

    async def _exchange(self, transport: Transport, request: Request) -> None:
        async with await transport.send(request) as response:
            self.inbox.put(response)
            async for piece in response.aiter_raw():
                self._given += len(piece)
                self.inbox.put(piece)
                if self._given - self.taken > _READ_AHEAD:
                    await self._wait_for_room()
        self.inbox.put(_END)

    async def _wait_for_room(self) -> None:
        self._room = asyncio.Event()
        if self._given - self.taken > _READ_AHEAD:  # the caller may not have seen `_room`
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
        except StopAsyncIteration as error:  # it would look like the end of the body
            raised = RuntimeError("content: its iterator raised StopAsyncIteration")
            raised.__cause__ = error
            return partial(self._fail, raised)
        except Exception as error:  # noqa: BLE001  # it ends the exchange, which raises it
            return partial(self._fail, error)
        return partial(self._give, piece)

    def _give(self, piece: bytes | None) -> None:
        if not self._reply.done():
            self._reply.set_result(piece)

    def _fail(self, error: Exception) -> None:
        if not self._reply.done():
            self._reply.set_exception(error)
