"""The one pool: who may open, use and keep connections, and in which order callers get them.

This module knows counts, queues and times. It does not know how a connection is opened, what an
exchange is or which library runs it; everything but `wait` is synchronous, so that a lease can be
given back on every exit, in the middle of a cancellation too.

A call goes: `acquire_nowait`, else `wait`; both give a `Lease`, either on an open connection or on
a free slot. The holder of a slot dials and calls `attach`. `Lease.release` ends it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import count
from time import monotonic

from trunkline._config import Limits
from trunkline._contract import Connection, OriginSnapshot, PoolSnapshot
from trunkline._errors import PoolFull, PoolTimeout, TransportClosed
from trunkline._messages import Origin
from trunkline.pool._runtime import Runtime, Waiter


class Pooled:
    """A connection with its history.

    `active` counts the exchanges on it now, `exchanges` all there were.
    """

    __slots__ = ("active", "closed", "connection", "created", "exchanges", "id", "idle_since",
                 "origin")  # fmt: skip

    def __init__(self, identity: int, origin: OriginState, connection: Connection) -> None:
        self.id = identity
        self.origin = origin
        self.connection = connection
        self.created = self.idle_since = monotonic()
        self.active = 0
        self.exchanges = 0
        self.closed = False


class OriginState:
    """The connections to one origin, and who waits for one."""

    __slots__ = ("busy", "connecting", "idle", "multiplexes", "name", "waiting")

    def __init__(self, name: Origin, multiplexes: bool) -> None:
        self.name = name
        self.idle: OrderedDict[Pooled, None] = OrderedDict()  # newest last
        self.busy: dict[Pooled, None] = {}
        self.connecting = 0
        self.waiting: OrderedDict[_Ticket, None] = OrderedDict()
        self.multiplexes = multiplexes

    @property
    def held(self) -> int:
        return len(self.idle) + len(self.busy) + self.connecting


class _Ticket:
    """A place in the queue; `lease` is set before the waiter is woken."""

    __slots__ = ("lease", "number", "waiter")

    def __init__(self, number: int, waiter: Waiter) -> None:
        self.number = number
        self.waiter = waiter
        self.lease: Lease | None = None


class Lease:
    """The right to run one exchange on a connection, or to open one. It has one owner.

    `pooled` is None while it is a slot.
    """

    __slots__ = ("_pool", "_state", "pooled", "reused")

    def __init__(self, pool: Pool, state: OriginState, pooled: Pooled | None) -> None:
        self._pool: Pool | None = pool
        self._state = state
        self.pooled = pooled
        self.reused = pooled is not None and pooled.exchanges > 0

    def attach(self, connection: Connection) -> Pooled:
        """The slot's connection is open.

        Raises:
            TransportClosed: the pool was closed meanwhile, and the connection with it.
        """
        pool = self._pool
        if pool is None:
            connection.close()
            raise TransportClosed(
                "the transport was closed while a connection was being opened", phase="connect"
            )
        self.pooled = pool.attach(self._state, connection)
        return self.pooled

    def release(self) -> None:
        """Give it back. Synchronous and idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.take_back(self._state, self.pooled)


class Pool:
    """Connections to many origins under one set of limits, on one event loop."""

    def __init__(self, limits: Limits, runtime: Runtime, *, multiplexes: bool = False) -> None:
        self._limits = limits
        self._max_open = limits.max_connections or float("inf")
        self._max_per_host = limits.max_connections_per_host or float("inf")
        self._max_idle = (
            float("inf")
            if limits.max_keepalive_connections is None
            else limits.max_keepalive_connections
        )
        self._runtime = runtime
        self._multiplexes = multiplexes
        self._origins: dict[Origin, OriginState] = {}
        self._queues: dict[OriginState, None] = {}
        self._idle: OrderedDict[Pooled, None] = OrderedDict()  # over all origins, newest last
        self._held = 0
        self._numbers = count()
        self._created = 0
        self._reused = 0
        self._closed_by: Counter[str] = Counter()
        self.is_closed = False

    # -- getting a lease -----------------------------------------------------------------------

    def acquire_nowait(self, origin: Origin, *, fresh: bool = False) -> Lease | None:
        """A lease if there is one to be had at once. `fresh`: not on a connection used before.

        Raises:
            TransportClosed
        """
        if self.is_closed:
            raise TransportClosed("the transport is closed")
        state = self._origins.get(origin)
        if state is None:
            multiplexes = self._multiplexes and origin.is_tls
            state = self._origins[origin] = OriginState(origin, multiplexes)
        if state.waiting:
            return None
        return self._take(state, fresh=fresh)

    async def wait(self, origin: Origin, seconds: float | None) -> Lease:
        """Queue for a lease, after `acquire_nowait` gave none.

        Raises:
            PoolFull: `max_waiting` calls wait already.
            PoolTimeout: nothing came free within `seconds`.
            TransportClosed: the pool was closed meanwhile.
        """
        state = self._origins[origin]
        self._refuse_when_full()
        ticket = _Ticket(next(self._numbers), self._runtime.waiter())
        state.waiting[ticket] = None
        self._queues[state] = None
        try:
            with self._runtime.scope(seconds):
                await ticket.waiter.wait()
        except BaseException:
            if ticket.lease is not None:
                ticket.lease.release()
            raise
        finally:
            self._leave_queue(state, ticket)
        if ticket.lease is not None:
            return ticket.lease
        if self.is_closed:
            raise TransportClosed("the transport was closed while the call waited", phase="pool")
        raise PoolTimeout(f"no connection became free within {seconds:g} s: {self._in_numbers()}")

    def _refuse_when_full(self) -> None:
        most = self._limits.max_waiting
        if most is not None and self.waiting >= most:
            raise PoolFull(f"{self.waiting} calls wait already, max_waiting is {most}: "
                           f"{self._in_numbers()}")  # fmt: skip

    def _leave_queue(self, state: OriginState, ticket: _Ticket) -> None:
        state.waiting.pop(ticket, None)
        if not state.waiting:
            self._queues.pop(state, None)
        self._forget_if_unused(state)

    def _in_numbers(self) -> str:
        now = self.snapshot()
        return (f"{now.active} active, {now.idle} idle, {now.connecting} connecting, "
                f"{now.waiting} waiting, max_connections {now.max_connections}")  # fmt: skip

    # -- giving ----------------------------------------------------------------------------------

    def _take(self, state: OriginState, *, fresh: bool = False) -> Lease | None:
        """What `state` can have now: an idle connection, a stream on a busy one, or a slot."""
        if not fresh:
            pooled = self._newest_idle(state) or self._with_a_free_stream(state)
            if pooled is not None:
                return self._lend(pooled)
        if not self._may_open(state):
            return None
        state.connecting += 1
        self._held += 1
        return Lease(self, state, None)

    def _lend(self, pooled: Pooled) -> Lease:
        lease = Lease(self, pooled.origin, pooled)
        pooled.active += 1
        if lease.reused:
            self._reused += 1
        return lease

    def _newest_idle(self, state: OriginState) -> Pooled | None:
        while state.idle:
            pooled, _ = state.idle.popitem()
            del self._idle[pooled]
            state.busy[pooled] = None
            reason = self._unfit(pooled)
            if reason is None:
                return pooled
            self._close(pooled, reason)
        return None

    def _with_a_free_stream(self, state: OriginState) -> Pooled | None:
        if not state.multiplexes:
            return None
        for pooled in state.busy:
            connection = pooled.connection
            if pooled.active < connection.max_exchanges and self._unfit(pooled) is None:
                return pooled
        return None

    def _unfit(self, pooled: Pooled) -> str | None:
        """Why no new exchange may begin on it."""
        if not pooled.connection.is_usable():
            return "ended"
        now = monotonic()
        limits = self._limits
        oldest, longest = limits.max_connection_age, limits.keepalive_expiry
        if oldest is not None and now - pooled.created >= oldest:
            return "aged"
        if longest is not None and not pooled.active and now - pooled.idle_since >= longest:
            return "expired"
        return None

    def _may_open(self, state: OriginState) -> bool:
        if state.multiplexes and state.connecting:
            return False  # the handshake under way may carry this exchange too
        if state.held >= self._max_per_host:
            # Reached by asking for a fresh connection while there are idle ones.
            if not state.idle:
                return False
            self._close(next(iter(state.idle)), "evicted")
        return self._held < self._max_open or self._evict_for(state)

    def _evict_for(self, state: OriginState) -> bool:
        """Close the connection that has been idle longest, unless its origin needs it more.

        Needs it more: callers wait for that origin, and it would be left with fewer connections
        than `state` would then have. So two busy hosts share the limit evenly, without closing
        connections in turn.
        """
        for pooled in self._idle:
            other = pooled.origin
            if other is state or not other.waiting or state.held < other.held:
                self._close(pooled, "evicted")
                return True
        return False

    def attach(self, state: OriginState, connection: Connection) -> Pooled:
        state.connecting -= 1
        self._created += 1
        pooled = Pooled(self._created, state, connection)
        pooled.active = 1
        state.busy[pooled] = None
        if state.multiplexes:
            state.multiplexes = connection.max_exchanges > 1
            self._serve_waiting()
        return pooled

    # -- taking back -----------------------------------------------------------------------------

    def take_back(self, state: OriginState, pooled: Pooled | None) -> None:
        if self.is_closed:
            return
        if pooled is None:
            state.connecting -= 1
            self._held -= 1
        elif not pooled.closed:
            self._end_exchange(state, pooled)
        self._serve_waiting()
        while len(self._idle) > self._max_idle:
            self._close(next(iter(self._idle)), "surplus")
        self._forget_if_unused(state)

    def _end_exchange(self, state: OriginState, pooled: Pooled) -> None:
        pooled.active -= 1
        if pooled.active:
            return
        pooled.idle_since = monotonic()
        reason = self._unfit(pooled)
        if reason is not None:
            self._close(pooled, reason)
            return
        del state.busy[pooled]
        state.idle[pooled] = None
        self._idle[pooled] = None

    def _close(self, pooled: Pooled, reason: str) -> None:
        state = pooled.origin
        state.idle.pop(pooled, None)
        state.busy.pop(pooled, None)
        self._idle.pop(pooled, None)
        pooled.closed = True
        self._held -= 1
        self._closed_by[reason] += 1
        pooled.connection.close()

    def abort(self, lease: Lease) -> None:
        """End a lease whose exchange did not end well; its connection is not used again."""
        pooled = lease.pooled
        was_last = pooled is not None and not pooled.closed and pooled.active <= 1
        if was_last and pooled is not None and not pooled.connection.is_usable():
            self._close(pooled, "aborted")
        lease.release()

    def _serve_waiting(self) -> None:
        """Give what is free to those who wait, in the order in which they came."""
        while self._queues and self._serve_one():
            pass

    def _serve_one(self) -> bool:
        queues = self._queues
        in_order = list(queues) if len(queues) == 1 else sorted(queues, key=_oldest_ticket)
        for state in in_order:
            lease = self._take(state)
            if lease is not None:
                ticket, _ = state.waiting.popitem(last=False)
                if not state.waiting:
                    del queues[state]
                ticket.lease = lease
                ticket.waiter.set()
                return True
        return False

    def _forget_if_unused(self, state: OriginState) -> None:
        if not state.held and not state.waiting:
            self._origins.pop(state.name, None)

    # -- seeing and ending -------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return sum(len(state.waiting) for state in self._queues)

    def idle_to(self, origin: Origin) -> int:
        """How many connections to `origin` are open and idle."""
        state = self._origins.get(origin)
        return len(state.idle) if state is not None else 0

    def drop_unfit(self) -> None:
        """Close the idle connections that may not be used again."""
        for pooled in list(self._idle):
            reason = self._unfit(pooled)
            if reason is not None:
                self._close(pooled, reason)
                self._forget_if_unused(pooled.origin)

    def snapshot(self) -> PoolSnapshot:
        origins = {str(s.name): _origin_snapshot(s) for s in self._origins.values()}
        active = sum(o.active for o in origins.values())
        connecting = sum(o.connecting for o in origins.values())
        most = self._limits.max_connections
        return PoolSnapshot(
            open=active + len(self._idle),
            active=active,
            idle=len(self._idle),
            connecting=connecting,
            waiting=self.waiting,
            max_connections=most,
            utilization=(active + connecting) / most if most else 0.0,
            created=self._created,
            reused=self._reused,
            closed=dict(self._closed_by),
            origins=origins,
        )

    def close(self) -> None:
        """Close every connection and send every waiting call away. Synchronous, idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        for state in self._origins.values():
            for pooled in [*state.idle, *state.busy]:
                self._close(pooled, "shutdown")
            for ticket in state.waiting:
                ticket.waiter.set()
        self._origins.clear()
        self._queues.clear()


def _oldest_ticket(state: OriginState) -> int:
    return next(iter(state.waiting)).number


def _origin_snapshot(state: OriginState) -> OriginSnapshot:
    return OriginSnapshot(
        open=len(state.busy) + len(state.idle),
        active=len(state.busy),
        idle=len(state.idle),
        connecting=state.connecting,
        waiting=len(state.waiting),
        exchanges=sum(pooled.active for pooled in state.busy),
    )
