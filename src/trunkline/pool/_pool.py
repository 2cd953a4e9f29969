"""The one pool: who may open, use and keep connections, and in which order callers get them.

This module knows counts, queues and times. It does not know how a connection is opened, what an
exchange is or which library runs it; everything but `drained` is synchronous, so that a lease can
be given back on every exit, in the middle of a cancellation too.

A call goes: `acquire_nowait`, else `queue` and `claim`; both give a `Lease`, either on an open
connection or on a free slot. The holder of a slot dials and calls `attach`. `Lease.release` ends
it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from itertools import count
from math import inf
from time import monotonic
from typing import Literal, cast
from weakref import ref

from trunkline._config import Limits
from trunkline._contract import Connection, Multiplexing, PoolSnapshot
from trunkline._errors import PoolFull, PoolTimeout, TransportClosed
from trunkline._urls import Origin
from trunkline.pool._alarm import Alarm
from trunkline.pool._lease import Lease
from trunkline.pool._origin import OriginState, Pooled, has_precedence, origin_snapshot, turn
from trunkline.pool._queue import Caller, Ticket
from trunkline.pool._runtime import Runtime


def _when_changed(pool: ref[Pool]) -> Callable[[], None]:
    # Weak: its open connections do not keep a pool that was dropped alive.
    def tell() -> None:
        alive = pool()
        if alive is not None:
            # Not now: it may be the pool itself that has just asked the connection.
            alive.serve_soon()

    return tell


class Pool:
    """Connections to many origins under one set of limits, on one event loop.

    Args:
        multiplexes: expect a connection over TLS to carry many exchanges, until one does not;
            "prior_knowledge": one without TLS too.
        on_change: called with a connection when it was opened or closed, and then why.
        on_short: called with an origin that has fewer idle connections than it should.
        alarm: told when the pool is nearly used up.
    """

    def __init__(
        self,
        limits: Limits,
        runtime: Runtime,
        *,
        multiplexes: bool | Literal["prior_knowledge"] = False,
        on_change: Callable[[Pooled, str | None], None] | None = None,
        on_short: Callable[[Origin], None] | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self._limits = limits
        self._max_open = limits.max_connections or inf
        self._max_per_host = limits.max_connections_per_host or inf
        most_idle = limits.max_keepalive_connections
        self._max_idle = inf if most_idle is None else most_idle
        self._runtime = runtime
        self._multiplexes = multiplexes
        self._on_change = on_change
        self._on_short = on_short
        self._alarm = alarm or Alarm(None, None)
        self._origins: dict[Origin, OriginState] = {}
        self._queues: dict[OriginState, None] = {}
        self._idle: OrderedDict[Pooled, None] = OrderedDict()  # over all origins, newest last
        self._held = 0
        self._connecting = 0
        self._keeps_ready = limits.min_idle_connections > 0 and limits.keepalive_expiry != 0
        self._numbers = count()
        self._created = 0
        self._reused = 0
        self._waited = 0
        self._wait_total = 0.0
        self._wait_max = 0.0
        self._served: list[Ticket] = []
        self._closed_by: Counter[str] = Counter()
        self._surplus = "surplus"
        self._on_drained: Callable[[], None] | None = None
        self.is_closed = False

    # -- getting a lease -----------------------------------------------------------------------

    def acquire_nowait(self, origin: Origin, *, fresh: bool = False) -> Lease | None:
        """A lease if there is one to be had at once.

        `fresh`: to open a connection; where calls share them and no new one may be opened, on one
        that is there.

        Raises:
            TransportClosed
        """
        if self.is_closed:
            raise TransportClosed("the transport is closed")
        state = self._origins.get(origin) or self._add_origin(origin)
        if state.waiting.size:
            return None
        lease = self._take(state, fresh=fresh)
        if lease is None and fresh and state.multiplexes:
            # A stream of a busy connection is as good as a fresh one: nobody waits for that.
            lease = self._take(state)
        if lease is None:
            self._forget_if_unused(state)
        return lease

    def _add_origin(self, origin: Origin) -> OriginState:
        state = self._origins[origin] = OriginState(
            origin,
            multiplexes=bool(self._multiplexes)
            and (origin.is_tls or self._multiplexes == "prior_knowledge"),
        )
        return state

    def queue(
        self,
        origin: Origin,
        seconds: float | None,
        priority: int = 0,
        *,
        fresh: bool = False,
        caller: Caller | None = None,
    ) -> Ticket:
        """A place in the queue, after `acquire_nowait` gave no lease. `fresh`: as there.

        Who has it awaits `ticket.wait()`, `seconds` at most, and calls `claim`; whatever either
        raises, `leave`. `caller` is told first of a connection that can begin an exchange at once.

        Raises:
            PoolFull: `max_waiting` calls wait already.
        """
        most = self._limits.max_waiting
        if most is not None and self.waiting >= most:
            raise PoolFull(f"max_waiting is {most}: {self._in_numbers()}")
        state = self._origins.get(origin) or self._add_origin(origin)
        fresh = fresh and not state.multiplexes
        waiter, number = self._runtime.waiter(), next(self._numbers)
        ticket = Ticket(state, number, priority, waiter, seconds, fresh=fresh, caller=caller)
        state.waiting.push(ticket)
        self._queues[state] = None
        if ticket.since >= self._alarm.full_due:
            self._alarm.exhausted(self)
        return ticket

    def claim(self, ticket: Ticket) -> Lease:
        """What `ticket` was served, once waiting for it is over.

        Raises:
            PoolTimeout: nothing came free in time.
            TransportClosed: the pool was closed meanwhile.
        """
        lease = ticket.lease
        if lease is None:
            raise self._unserved(ticket)
        lease.waited = waited = monotonic() - ticket.since
        self._waited += 1
        self._wait_total += waited
        if waited > self._wait_max:
            self._wait_max = waited
        return lease

    def _unserved(self, ticket: Ticket) -> TransportClosed | PoolTimeout:
        if self.is_closed:
            return TransportClosed("the transport was closed while the call waited", phase="pool")
        return PoolTimeout(
            f"no connection became free within {ticket.seconds:g} s: {self._in_numbers()}"
        )

    def leave(self, ticket: Ticket) -> None:
        """Give up `ticket`, and the lease it may have been served. Idempotent."""
        ticket.caller = None  # it may be about to be started
        ticket.waiter.leave()
        self._unqueue(ticket)
        self._forget_if_unused(ticket.origin)
        if ticket.lease is not None:
            ticket.lease.release()

    def _in_numbers(self) -> str:
        now = self.snapshot()
        oldest = min((p.leased_at for s in self._origins.values() for p in s.busy), default=None)
        held = "" if oldest is None else f" (the longest for {monotonic() - oldest:.1f} s)"
        return (
            f"{now.active} connections active{held}, {now.idle} idle, {now.connecting} connecting; "
            f"{now.waiting} calls waiting; max_connections {now.max_connections}"
        )

    # -- giving ----------------------------------------------------------------------------------

    def _take(self, state: OriginState, *, fresh: bool = False) -> Lease | None:
        """What `state` can have now: an idle connection, a stream on a busy one, or a slot."""
        if not fresh:
            lease = self._lend_idle(state) if state.idle else None
            if lease is not None:
                return lease
            pooled = self._with_a_free_stream(state) if state.multiplexes else None
            if pooled is not None:
                return self._lend(pooled)
        if not self._may_open(state):
            return None
        return self._slot(state)

    def _slot(self, state: OriginState) -> Lease:
        state.connecting += 1
        self._connecting += 1
        self._held += 1
        if self._held - len(self._idle) >= self._alarm.line and not self._alarm.is_on:
            self._alarm.rise(self)
        return Lease(self, state, None)

    def reserve(self, origin: Origin, wanted: int) -> Lease | None:
        """A slot to open a connection on that nobody needs yet; towards `wanted` idle ones.

        It takes nothing from a caller, and is not given for what could not be kept.

        Raises:
            TransportClosed
        """
        if self.is_closed:
            raise TransportClosed("the transport is closed")
        state = self._origins.get(origin) or self._add_origin(origin)
        is_kept = len(self._idle) + self._connecting < self._max_idle
        is_wanted = len(state.idle) + state.connecting < wanted and not self._queues
        if is_kept and is_wanted and state.held < self._max_per_host and self._has_room(state):
            return self._slot(state)
        self._forget_if_unused(state)
        return None

    def _has_room(self, state: OriginState) -> bool:
        if self._held < self._max_open:
            return True
        others = (pooled for pooled in self._idle if pooled.origin is not state)
        oldest = next(others, None)
        if oldest is None or oldest.origin.keeps_ready:
            return False
        self._close(oldest, "evicted")
        self._forget_if_unused(oldest.origin)
        return True

    def spare(self, origin: Origin) -> Lease | None:
        """A slot towards `min_idle_connections`; None if there are enough."""
        state = self._origins.get(origin)
        if self.is_closed or state is None or not state.keeps_ready:
            return None
        if self._held >= self._max_open:
            return None
        return self.reserve(origin, self._limits.min_idle_connections)

    def _lend(self, pooled: Pooled, now: float | None = None) -> Lease:
        lease = Lease(self, pooled.origin, pooled)
        if not pooled.active:
            pooled.leased_at = now or monotonic()
        pooled.active += 1
        if lease.reused:
            self._reused += 1
        if pooled.origin.keeps_ready:
            self._refill(pooled.origin)
        if self._held - len(self._idle) >= self._alarm.line and not self._alarm.is_on:
            self._alarm.rise(self)
        return lease

    def _lend_idle(self, state: OriginState) -> Lease | None:
        """The idle connection that was used last, since it is the likeliest to be alive."""
        now = monotonic()
        while state.idle:
            pooled, _ = state.idle.popitem()
            reason = pooled.unfit(now)
            if reason is not None:
                self._close(pooled, reason)
            elif pooled.connection.max_exchanges < 1:
                state.idle[pooled] = None
                return None  # HTTP/2: the peer allows no stream at the moment
            else:
                del self._idle[pooled]
                state.busy[pooled] = None
                return self._lend(pooled, now)
        return None

    def _with_a_free_stream(self, state: OriginState) -> Pooled | None:
        now = monotonic()
        for pooled in state.busy:
            connection = pooled.connection
            if pooled.active < connection.max_exchanges and pooled.unfit(now) is None:
                return pooled
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
        """Close the connection that has been idle longest, unless its origin needs it more."""
        for pooled in self._idle:
            other = pooled.origin
            if other is state or not other.waiting.size or has_precedence(state, other):
                self._close(pooled, "evicted")
                if other is not state:
                    self._forget_if_unused(other)
                return True
        return False

    def attach(self, state: OriginState, connection: Connection) -> Pooled:
        state.connecting -= 1
        self._connecting -= 1
        self._created += 1
        state.keeps_ready = self._keeps_ready
        pooled = Pooled(self._created, state, connection, self._limits)
        pooled.active = 1
        state.busy[pooled] = None
        if self._on_change is not None:
            self._on_change(pooled, None)
        if state.keeps_ready:
            self._refill(state)
        if hasattr(connection, "on_change"):  # isinstance of a Protocol takes microseconds
            cast(Multiplexing, connection).on_change = _when_changed(ref(self))
            self._serve_waiting()
        elif state.multiplexes:
            state.multiplexes = connection.max_exchanges > 1
            self._serve_waiting()
        return pooled

    def serve_soon(self) -> None:
        """Look in the event loop's next round who can have what."""
        self._runtime.call_soon_threadsafe(self._serve_waiting)

    # -- taking back -----------------------------------------------------------------------------

    def take_back(self, state: OriginState, pooled: Pooled | None, now: float) -> None:
        if self.is_closed:
            return
        if pooled is None:
            state.connecting -= 1
            self._connecting -= 1
            self._held -= 1
        elif not pooled.closed:
            if state.waiting.size and self._hand_on(state, pooled, now):
                return
            self._end_exchange(state, pooled, now)
        if self._queues:
            self._serve_waiting()
        while len(self._idle) > self._max_idle:
            surplus = next(iter(self._idle))
            self._close(surplus, self._surplus)
            self._forget_if_unused(surplus.origin)
        if not state.idle:
            self._forget_if_unused(state)
        if self._alarm.is_on and self.in_use < self._alarm.line:
            self._alarm.fall(self)
        if self._on_drained is not None and not self._held:
            self._on_drained()

    def _hand_on(self, state: OriginState, pooled: Pooled, now: float) -> bool:
        """Give a connection that is free to who is next of its origin, if nobody else waits."""
        if pooled.active > 1 or len(self._queues) > 1:
            return False
        ticket = state.waiting.first()
        if ticket.fresh or pooled.expiry <= 0 or pooled.unfit(now) is not None:
            return False
        self._unqueue(ticket)
        lease = Lease(self, state, pooled)
        if lease.reused:
            self._reused += 1
        pooled.leased_at = now
        self._serve(ticket, lease)
        return True

    def _serve(self, ticket: Ticket, lease: Lease) -> None:
        ticket.lease, pooled = lease, lease.pooled
        if ticket.caller is None or pooled is None or pooled.begin is None:
            ticket.waiter.set()
            return
        if not self._served:
            self._runtime.call_soon(self._start_served)
        self._served.append(ticket)

    def _start_served(self) -> None:
        """Have those go on who were served in this round of the event loop.

        All at once: a server that has been woken for one request finds the others.
        """
        served, self._served = self._served, []
        for ticket in served:
            if ticket.caller is None or not ticket.caller.start(ticket):
                ticket.waiter.set()

    def _unqueue(self, ticket: Ticket) -> None:
        state = ticket.origin
        state.waiting.remove(ticket)
        if not state.waiting.size:
            self._queues.pop(state, None)

    def _end_exchange(self, state: OriginState, pooled: Pooled, now: float) -> None:
        pooled.active -= 1
        if pooled.active:
            return
        pooled.idle_since = now
        reason = pooled.unfit(now)
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
        if self._on_change is not None:
            self._on_change(pooled, reason)
        if state.keeps_ready and reason in ("ended", "aborted"):
            self._refill(state)

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
        queues: Iterable[OriginState] = self._queues
        if len(self._queues) > 1:
            queues = sorted(queues, key=turn)
        for state in queues:
            ticket = state.waiting.first()
            lease = self._take(state, fresh=ticket.fresh)
            if lease is not None:
                self._unqueue(ticket)
                self._serve(ticket, lease)
                return True
        return False

    def _forget_if_unused(self, state: OriginState) -> None:
        is_used = state.held or state.waiting.size or state.keeps_ready
        if not is_used and self._origins.get(state.name) is state:
            del self._origins[state.name]

    # -- keeping house -----------------------------------------------------------------------------

    def _refill(self, state: OriginState) -> None:
        spare = len(state.idle) + state.connecting
        if self._on_short is not None and spare < self._limits.min_idle_connections:
            self._on_short(state.name)

    def tidy(self) -> float | None:
        """Close what may not be used again and see that enough is ready.

        Returns:
            Seconds until it is due again; None when there is nothing to watch.
        """
        if self.is_closed:
            return None
        now = monotonic()
        for pooled in list(self._idle):
            reason = pooled.unfit(now)
            if reason is not None:
                self._close(pooled, reason)
                self._forget_if_unused(pooled.origin)
        for state in list(self._origins.values()):
            if state.keeps_ready:
                self._refill(state)
        due = (min(p.idle_since + p.expiry, p.retire_at) - now for p in self._idle)
        watched = bool(self._idle) or any(s.keeps_ready for s in self._origins.values())
        return min(due, default=inf) if watched else None

    # -- seeing and ending -------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return sum(state.waiting.size for state in self._queues)

    @property
    def in_use(self) -> int:
        """Connections that are active or being opened."""
        return self._held - len(self._idle)

    def idle_to(self, origin: Origin) -> int:
        """How many connections to `origin` are open and idle."""
        state = self._origins.get(origin)
        return len(state.idle) if state is not None else 0

    def snapshot(self) -> PoolSnapshot:
        origins = {str(s.name): origin_snapshot(s) for s in self._origins.values()}
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
            waited=self._waited,
            wait_total=self._wait_total,
            wait_max=self._wait_max,
            closed=dict(self._closed_by),
            origins=origins,
        )

    def retire(self) -> None:
        """Let what is under way finish, and keep nothing: a connection closes when it is done."""
        self._max_idle = 0
        self._surplus = "shutdown"
        self._keeps_ready = False
        for state in self._origins.values():
            state.keeps_ready = False
        for pooled in list(self._idle):
            self._close(pooled, "shutdown")
            self._forget_if_unused(pooled.origin)

    async def drained(self, seconds: float) -> None:
        """Wait until nothing is leased, `seconds` at most. The pool has been retired."""
        if self._held:
            waiter = self._runtime.waiter()
            self._on_drained = waiter.set
            try:
                await waiter.wait(seconds)
            finally:
                waiter.leave()

    def close(self) -> None:
        """Close every connection and send every waiting call away. Synchronous, idempotent."""
        if self.is_closed:
            return
        self.retire()
        self.is_closed = True
        for state in self._origins.values():
            for pooled in list(state.busy):
                self._close(pooled, "shutdown")
            state.waiting.wake_all()
        self._origins.clear()
        self._queues.clear()
        if self._on_drained is not None:
            self._on_drained()
