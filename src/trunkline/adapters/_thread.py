"""A thread with an event loop, for callers who have none.

This module knows how the thread begins and ends, forks and the interpreter's exit included. It does
not know what runs in it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress

import anyio
from anyio.from_thread import BlockingPortal


class LoopThread:
    """Runs until `stop`, or the interpreter's exit. The threads of a process do not survive a fork:
    `process` is the one it belongs to, and in any other the methods do nothing.

    Args:
        at_end: called in the loop at the end, before what still runs there is cancelled.

    Attributes:
        has_ended: nothing runs any more.
        left_over: called when it has ended. Who adds to it looks at `has_ended` afterwards, and is
            told for certain: a task handed over at the last moment might never have begun.
    """

    loop: asyncio.AbstractEventLoop
    has_ended: bool = False

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self.process = os.getpid()
        self._at_end = at_end
        self._is_ending = self._is_exiting = False
        self.left_over: set[Callable[[], object]] = set()
        started: Future[None] = Future()
        # A daemon: the others are joined at exit before anybody could stop it.
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="trunkline", daemon=True
        )
        self._thread.start()
        started.result()
        atexit.register(self._exit)

    def stop(self) -> None:
        """End it, and wait until it has ended. Idempotent."""
        self.end_soon()
        if self.process == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    def end_soon(self) -> None:
        """Have it end. Waits for nothing, so that a finalizer may call it, in any thread.

        A finalizer may run when the interpreter has taken the modules apart. `_exit` was before.
        """
        if self._is_ending:
            return
        self._is_ending = True
        atexit.unregister(self._exit)
        self.call_soon(self._end.set)

    def start_task(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run it as a task, unless the loop has ended. An exception that it raises is lost."""
        with suppress(RuntimeError):  # the loop has ended
            self._portal.start_task_soon(run)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run `callback` in the loop, unless that has ended."""
        if self.process == os.getpid():
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(callback)

    def hold_daemons(self) -> None:
        """At the interpreter's exit, never return to a daemon thread.

        It would raise what nobody catches, into a terminal that is not interested.
        """
        if self._is_exiting and threading.current_thread().daemon:
            threading.Event().wait()

    def _exit(self) -> None:
        self._is_exiting = True
        self.stop()

    def _run(self, started: Future[None]) -> None:
        try:
            anyio.run(self._main, started, backend="asyncio")
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            self.has_ended = True
            for tell in list(self.left_over):
                tell()

    async def _main(self, started: Future[None]) -> None:
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with BlockingPortal() as self._portal:
            started.set_result(None)
            await self._end.wait()
            await self._at_end()
            await self._portal.stop(cancel_remaining=True)
