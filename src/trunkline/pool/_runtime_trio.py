"""The runtime of a trio event loop.

This module knows trio, through anyio where that has what is needed. It does not know the pool.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio

from trunkline.pool._runtime import FutureDeadline, Scope, Waiter, current_loop


class TrioScope:
    def __init__(self, seconds: float | None) -> None:
        self._scope = anyio.CancelScope()
        self.move(seconds)

    def cancel(self) -> None:
        self._scope.cancel()

    def move(self, seconds: float | None) -> None:
        self._scope.deadline = math.inf if seconds is None else anyio.current_time() + seconds

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return bool(self._scope.__exit__(kind, error, traceback))


class TrioWaiter:
    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    def lend(self) -> None:
        """Nobody else can set it."""

    async def wait(self, seconds: float | None) -> None:
        with anyio.move_on_after(seconds):
            await self._event.wait()

    def leave(self) -> None:
        """Nothing is left of `wait`."""


class TrioRuntime:
    is_trio = True

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._finished = trio.RunFinishedError
        self._spawn = trio.lowlevel.spawn_system_task
        self._spawned: set[anyio.CancelScope] = set()

    def is_running(self) -> bool:
        return current_loop() is self._token

    def scope(self, seconds: float | None) -> Scope:
        return TrioScope(seconds)

    def deadline(self, make_error: Callable[[], Exception]) -> FutureDeadline | None:
        return None

    def waiter(self) -> Waiter:
        return TrioWaiter()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._token.run_sync_soon(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(callback)
        except self._finished:
            return

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await anyio.sleep(seconds)
                callback()

        self._spawn(run)
        return scope.cancel

    def spawn(self, function: Callable[[], Awaitable[None]], *, keep: bool = False) -> None:
        scope = anyio.CancelScope()

        async def run() -> None:
            if not keep:
                self._spawned.add(scope)
            try:
                with scope:
                    await function()
            finally:
                self._spawned.discard(scope)

        self._spawn(run)

    def cancel_spawned(self) -> None:
        for scope in list(self._spawned):
            scope.cancel()
