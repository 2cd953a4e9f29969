"""What the pool needs of an event loop: deadlines, a one-shot wake-up, and which loop this is.

This module knows asyncio (uvloop too); `_runtime_trio` knows trio. It does not know what is waited
for. asyncio has a flavour of its own because the deadline of a body read and the wake-up of a
queued call are on the hot path: an anyio scope there costs several times as much.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

_EARLY = 0.001  # seconds by which a timer of uvloop may come early


class Scope(Protocol):
    """A block with a deadline: at the deadline it is cancelled, and the code after it goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool: ...

    def move(self, seconds: float | None) -> None:
        """Set the deadline anew, `seconds` from now; None takes it away."""
        ...

    def cancel(self) -> None:
        """Cancel the block now."""
        ...


class FutureDeadline(Protocol):
    """Ends one future after another with an error, where it is not done in time."""

    def bounds(self, awaitable: object, due: float) -> bool:
        """Whether `awaitable` is a future, which is ended at `due` (of `time.monotonic`) then."""
        ...

    def move(self, due: float | None) -> None:
        """Set the deadline anew; None takes it away."""
        ...


class Lent(Protocol):
    """A wake-up that has been left to others: `future` wakes who waits, its result is not asked."""

    @property
    def future(self) -> asyncio.Future[None]: ...

    def move(self, due: float | None) -> None:
        """Wait until `due` (of `time.monotonic`) at most; None: however long it takes."""
        ...


class Waiter(Protocol):
    """A one-shot wake-up."""

    def set(self) -> None: ...

    def lend(self) -> Lent | None:
        """Leave it to others to set; None where it has been set or cancelled, or is no future."""
        ...

    def wait(self, seconds: float | None) -> Awaitable[None]:
        """Wait until it is set, or for `seconds` where that is shorter."""
        ...

    def leave(self) -> None:
        """Nobody waits any more."""
        ...


class Runtime(Protocol):
    """One event loop."""

    is_trio: bool

    def is_running(self) -> bool:
        """Whether this is the loop that is running here."""
        ...

    def scope(self, seconds: float | None) -> Scope: ...

    def deadline(self, make_error: Callable[[], Exception]) -> FutureDeadline | None:
        """A cheaper deadline than a scope, for who waits for futures; None where there is none."""
        ...

    def waiter(self) -> Waiter: ...

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the next round of the loop, which is running here."""
        ...

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the loop; from any thread. If the loop is closed, nothing happens."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Run `callback` in the loop after `seconds`, unless what is returned is called before."""
        ...

    def spawn(self, function: Callable[[], Awaitable[None]], *, keep: bool = False) -> None:
        """Run `function` beside everything else; `cancel_spawned` ends it, unless `keep`."""
        ...

    def cancel_spawned(self) -> None: ...


def current_loop() -> object:
    """The identity of the running event loop.

    Raises:
        RuntimeError: none is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        trio: Any = sys.modules.get("trio")
        if trio is None:
            raise
        return trio.lowlevel.current_trio_token()


def sniff_loop() -> str | None:
    """The kind of the running loop, "asyncio" or "trio"; None when none is running."""
    try:
        loop = current_loop()
    except RuntimeError:
        return None
    return "asyncio" if isinstance(loop, asyncio.AbstractEventLoop) else "trio"


def make_runtime() -> Runtime:
    """The runtime of the running loop."""
    loop = current_loop()
    if isinstance(loop, asyncio.AbstractEventLoop):
        return _AsyncioRuntime(loop)
    from trunkline.pool._runtime_trio import TrioRuntime

    return TrioRuntime()


class _Watched(Protocol):
    due: float

    def cancel(self) -> None:
        """The time is over."""
        ...


class _AsyncioScope:
    """`asyncio.timeout`, without the exception, the coroutine and a timer of its own."""

    __slots__ = ("_cancelling", "_fired", "_runtime", "_seconds", "_task", "due")

    _task: asyncio.Task[object]
    _cancelling: int

    def __init__(self, runtime: _AsyncioRuntime, seconds: float | None) -> None:
        self._runtime = runtime
        self._seconds = seconds
        self._fired = False
        self.due = 0.0

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._runtime.loop)
        if task is None:
            raise RuntimeError("a deadline needs a task to cancel")
        self._task = task
        self._cancelling = task.cancelling()
        if self._seconds is not None:
            self._runtime.watch(self, monotonic() + self._seconds)
        return self

    def move(self, seconds: float | None) -> None:
        if seconds is None:
            self._runtime.scopes.discard(self)
        elif not self._fired:
            self._runtime.watch(self, monotonic() + seconds)

    def cancel(self) -> None:
        if not self._fired:
            self._fired = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._runtime.scopes.discard(self)
        if not self._fired:
            return False
        # Somebody else's cancellation, arriving together with ours, goes on.
        ours = self._task.uncancel() <= self._cancelling
        return ours and kind is not None and issubclass(kind, asyncio.CancelledError)


class _FutureDeadline:
    """Implements `FutureDeadline`: no task is cancelled, so nobody has to be asked whose it is.

    To put it off, as each piece of a body does, sets an attribute: it is watched anew when the time
    it was watched for is over.
    """

    __slots__ = ("_actual", "_future", "_make_error", "_runtime", "due")

    def __init__(self, runtime: _AsyncioRuntime, make_error: Callable[[], Exception]) -> None:
        self._runtime = runtime
        self._make_error = make_error
        self._future: asyncio.Future[Any] | None = None
        self.due = self._actual = math.inf

    def bounds(self, awaitable: object, due: float) -> bool:
        if type(awaitable) is not asyncio.Future:
            return False
        self._future = awaitable
        self._set(due)
        return True

    def move(self, due: float | None) -> None:
        if due is None:
            self._runtime.scopes.discard(self)
            self.due = math.inf
        elif self._future is not None and not self._future.done():
            self._set(due)

    def _set(self, due: float) -> None:
        if due < self.due or not self._runtime.is_monotonic:
            self._runtime.watch(self, due)
            due = self.due
        self._actual = due

    def cancel(self) -> None:
        was_put_off, self.due = self._actual > self.due, math.inf
        if self._future is None or self._future.done():
            return
        if was_put_off:
            self._set(self._actual)
        else:
            self._future.set_exception(self._make_error())


class _AsyncioWaiter:
    __slots__ = ("_runtime", "due", "future")

    due: float

    def __init__(self, runtime: _AsyncioRuntime) -> None:
        self._runtime = runtime
        self.future: asyncio.Future[None] = runtime.loop.create_future()

    def set(self) -> None:
        self._runtime.scopes.discard(self)
        if not self.future.done():
            self.future.set_result(None)

    def lend(self) -> Lent | None:
        return None if self.future.done() else self

    def move(self, due: float | None) -> None:
        if due is None:
            self._runtime.scopes.discard(self)
        else:
            self._runtime.watch(self, due)

    def wait(self, seconds: float | None) -> Awaitable[None]:
        if seconds is not None:
            self._runtime.watch(self, monotonic() + seconds)
        return self.future

    def leave(self) -> None:
        self._runtime.scopes.discard(self)

    def cancel(self) -> None:
        self.set()


class _AsyncioRuntime:
    is_trio = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.scopes: set[_Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        # asyncio's own loops have that clock. uvloop's stands still in a round, a test's may jump.
        time: Any = getattr(loop.time, "__func__", None)
        self.is_monotonic = time is asyncio.BaseEventLoop.time
        self._spawned: dict[asyncio.Future[None], bool] = {}

    def is_running(self) -> bool:
        return current_loop() is self.loop

    def scope(self, seconds: float | None) -> Scope:
        return _AsyncioScope(self, seconds)

    def deadline(self, make_error: Callable[[], Exception]) -> FutureDeadline | None:
        return _FutureDeadline(self, make_error)

    def watch(self, scope: _Watched, due: float) -> None:
        """Cancel `scope` at `due` (of `time.monotonic`), if it is still among `scopes` then.

        One timer serves all: it is set for the deadline that is due first, and where that one has
        been left or moved meanwhile it is set anew. So a deadline that does not pass costs a place
        in a set.
        """
        if not self.is_monotonic:
            due += self.loop.time() - monotonic()
        scope.due = due
        self.scopes.add(scope)
        if self._timer is None or self._timer_due > due:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        self._timer, self._timer_due = self.loop.call_at(due, self._on_time), due

    def _on_time(self) -> None:
        self._timer, now = None, self.loop.time() + _EARLY
        for scope in [scope for scope in self.scopes if scope.due <= now]:
            self.scopes.discard(scope)
            scope.cancel()
        if self.scopes:
            self._set_timer(min([scope.due for scope in self.scopes]))

    def waiter(self) -> Waiter:
        return _AsyncioWaiter(self)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        return self.loop.call_later(seconds, callback).cancel

    def spawn(self, function: Callable[[], Awaitable[None]], *, keep: bool = False) -> None:
        task = asyncio.ensure_future(function())
        self._spawned[task] = keep
        task.add_done_callback(self._spawned.pop)

    def cancel_spawned(self) -> None:
        for task, keep in self._spawned.items():
            if not keep:
                task.cancel()
