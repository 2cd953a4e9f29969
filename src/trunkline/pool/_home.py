"""What a transport has on one event loop: the pool, the dialer, the resolver, and their upkeep.

This module knows when the house is kept and how it ends with its loop. It does not know requests.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager

import anyio.lowlevel

from trunkline._config import TransportConfig
from trunkline._contract import Dialer
from trunkline._events import Observer
from trunkline._urls import Origin
from trunkline.dns import Resolver
from trunkline.pool._alarm import Alarm
from trunkline.pool._body import Leaks
from trunkline.pool._origin import Pooled
from trunkline.pool._pool import Pool
from trunkline.pool._runtime import Runtime, Scope
from trunkline.pool._watch import Watch

_TIDY_SECONDS = 1.0  # how often at least idle connections are looked at
_SHORTEST_PAUSE = 0.01
_ROUNDS_TO_CANCEL = 100  # of the loop, for the dials that were cancelled to close their sockets


class Home:
    """One event loop's share of a transport.

    Args:
        make_dialer: the backend's.
        open_spare: opens connections on the slots that `Pool.spare` gives.
        on_loop_end: called when the loop has shut down.

    Attributes:
        process: whose sockets these are; in a forked child the loop never runs again.
    """

    def __init__(
        self,
        config: TransportConfig,
        runtime: Runtime,
        observers: Sequence[Observer],
        make_dialer: Callable[[Resolver], Dialer],
        open_spare: Callable[[Home, Origin], Awaitable[None]],
        on_loop_end: Callable[[], object],
    ) -> None:
        self.process = os.getpid()
        self.runtime = runtime
        self.resolver = Resolver(config.dns, trio=runtime.is_trio)
        self.dialer = make_dialer(self.resolver)
        self.pool = Pool(
            config.limits,
            runtime,
            multiplexes=config.http2,
            on_change=self._connection_changed,
            on_short=self._want_spare,
            alarm=Alarm(config.warn_utilization, config.limits.max_connections),
        )
        # Without either there is nothing to report that the response itself does not say.
        finds_leaks = config.leak_after is not None or config.leak_stack
        self.leaks = Leaks(config.leak_after, with_stack=config.leak_stack) if finds_leaks else None
        self._observers = observers
        self._watches: dict[Pooled, Watch] = {}
        self._open_spare = open_spare
        self.on_loop_end = on_loop_end
        self._opening: set[Origin] = set()
        self._dials: set[Scope] = set()
        self._is_ticking = False
        self._stop_ticking: Callable[[], None] | None = None
        times = (
            config.limits.keepalive_expiry,
            config.limits.max_connection_age,
            config.leak_after,
        )
        self._period = max(min([_TIDY_SECONDS, *(t for t in times if t)]), _SHORTEST_PAUSE)
        self._loop_end = _until_the_loop_ends(weakref.ref(self))
        _start(self._loop_end)

    # -- connections come and go -------------------------------------------------------------------

    def _connection_changed(self, pooled: Pooled, reason: str | None) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._tick_in(self._period)
        if reason is None and self._observers:
            watch = self._watches[pooled] = Watch(self._observers, pooled.origin.name)
            watch.connection_id = pooled.id
            watch.connection(is_end=False)
        elif reason is not None and pooled in self._watches:
            self._watches.pop(pooled).connection(is_end=True, reason=reason)

    def _want_spare(self, origin: Origin) -> None:
        if origin not in self._opening and not self.pool.is_closed:
            self._opening.add(origin)
            self.runtime.spawn(lambda: self._open_spares(origin))

    async def _open_spares(self, origin: Origin) -> None:
        try:
            await self._open_spare(self, origin)
        finally:
            self._opening.discard(origin)

    @contextmanager
    def dialing(self, seconds: float | None) -> Generator[None]:
        """A block that opens a connection, for `seconds` at most and while the home is open."""
        with self.runtime.scope(seconds) as scope:
            self._dials.add(scope)
            try:
                yield
            finally:
                self._dials.discard(scope)

    # -- upkeep ------------------------------------------------------------------------------------

    def _tick_in(self, seconds: float) -> None:
        # Weak: a transport that was dropped is not kept alive by its own upkeep.
        home = weakref.ref(self)

        def tick() -> None:
            alive = home()
            if alive is not None:
                alive._tick()

        self._stop_ticking = self.runtime.call_later(seconds, tick)

    def _tick(self) -> None:
        due = [self.pool.tidy(), self.leaks.reclaim() if self.leaks is not None else None]
        seconds = [one for one in due if one is not None]
        self._is_ticking = bool(seconds) or self.pool.in_use > 0
        if self._is_ticking and not self.pool.is_closed:
            self._tick_in(max(min([self._period, *seconds]), _SHORTEST_PAUSE))

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the sockets and end the dials under way. Synchronous, idempotent."""
        self.pool.close()
        if self._stop_ticking is not None:
            self._stop_ticking()
        self.resolver.close()
        self.runtime.cancel_spawned()
        for scope in list(self._dials):
            scope.cancel()

    def end_soon(self, drain: float) -> None:
        """Have `aclose` done in this home's own loop; called from another one."""
        self.runtime.call_soon_threadsafe(
            lambda: self.runtime.spawn(lambda: self.aclose(drain), keep=True)
        )

    async def aclose(self, drain: float) -> None:
        await self.end(drain)
        self.on_loop_end = lambda: None  # the loop goes on, and the snapshot with it
        await self._loop_end.aclose()

    async def end(self, drain: float) -> None:
        """Close everything; what `aclose` and the end of the loop have in common."""
        if drain > 0 and not self.pool.is_closed:
            self.pool.retire()
            try:
                await self.pool.drained(drain)
            finally:
                self.close()
        self.close()
        for _ in range(_ROUNDS_TO_CANCEL):
            if not self._dials:
                break
            await anyio.lowlevel.checkpoint()
        await self.dialer.aclose()
        await self.resolver.aclose()


async def _until_the_loop_ends(home: weakref.ref[Home]) -> AsyncGenerator[None]:
    """Closes the home when its event loop shuts down, if nobody has done it before.

    `asyncio.run`, `uvloop.run` and `trio.run` end every async generator that is still alive before
    they close the loop, while sockets can still be closed in good order.
    """
    try:
        yield
    finally:
        alive = home()
        if alive is not None:
            alive.on_loop_end()
        if alive is not None and not alive.pool.is_closed:
            alive.close()
            if not alive.runtime.is_trio:  # there nothing may be awaited any more
                await alive.end(0.0)


def _start(generator: AsyncGenerator[None]) -> None:
    """Run it to its `yield`, which does not suspend, so that the loop knows of it."""
    try:
        generator.__anext__().__await__().__next__()
    except StopIteration:
        return
