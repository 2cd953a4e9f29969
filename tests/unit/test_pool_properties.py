"""The pool under any order of events: limits hold, nothing leaks, nobody waits for nothing.

Drives `Pool` step by step, without an event loop: a caller that waits is a ticket, and whether it
goes on, is cancelled or runs out of time is an event like any other. So every order is
tried in which an event loop could run the same calls, the moment between being given a connection
and waking up included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trunkline import Limits, Origin, PoolFull, PoolTimeout, TransportClosed
from trunkline.pool._lease import Lease
from trunkline.pool._origin import Pooled
from trunkline.pool._pool import Pool
from trunkline.pool._queue import Ticket
from trunkline.pool._runtime import Runtime

ORIGINS = (
    Origin("http", "plain", 80),
    Origin("https", "one", 443),  # speaks HTTP/1.1 whatever is offered
    Origin("https", "many", 443),  # speaks HTTP/2 if it is offered
)
STREAMS = 2
AGE = 30.0


class Waiter:
    def __init__(self, told: Callable[[Waiter], None]) -> None:
        self._told = told

    def set(self) -> None:
        self._told(self)

    def leave(self) -> None:
        """Nothing is left of waiting."""


class SteppedRuntime:
    """An event loop that does nothing by itself."""

    def __init__(self, told: Callable[[Waiter], None]) -> None:
        self._told = told
        self.last_waiter: Waiter | None = None

    def waiter(self) -> Waiter:
        self.last_waiter = Waiter(self._told)
        return self.last_waiter


class Connection:
    """An open connection, or one that its peer has closed."""

    http_version = "HTTP/1.1"
    peer = None

    def __init__(self, origin: Origin, max_exchanges: int, opened: float) -> None:
        self.origin = origin
        self.max_exchanges = max_exchanges
        self.opened = opened
        self.is_alive = True
        self.is_closed = False

    def is_usable(self) -> bool:
        return self.is_alive and not self.is_closed

    def close(self) -> None:
        self.is_closed = True


class Caller:
    """One that waits for a lease."""

    def __init__(self, origin: Origin, ticket: Ticket) -> None:
        self.origin = origin
        self.ticket = ticket
        self.waiter = cast("Waiter", ticket.waiter)
        self.rank = (-ticket.priority, ticket.number)


class Holder:
    """One that has a lease: to open a connection, or to run an exchange on `connection`."""

    def __init__(self, origin: Origin, lease: Lease) -> None:
        self.origin = origin
        self.lease = lease

    @property
    def connection(self) -> Connection | None:
        pooled = self.lease.pooled
        return None if pooled is None else cast("Connection", pooled.connection)


some = st.sampled_from
an_origin = some([*ORIGINS, ORIGINS[2]])  # sharing takes the most callers to come about


class PoolMachine(RuleBasedStateMachine):
    """What may happen to a pool, and what must hold after each of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._clocks = [
            mock.patch(f"trunkline.pool.{module}.monotonic", self.clock)
            for module in ("_pool", "_lease", "_origin", "_queue")
        ]
        for clock in self._clocks:
            clock.start()
        self.queues: dict[Origin, list[Caller]] = {origin: [] for origin in ORIGINS}
        self.woken: list[Caller] = []
        self.leases: list[Holder] = []
        self.connections: list[Connection] = []
        self.numbers = 0
        self.closings: Counter[str] = Counter()

    @initialize(
        max_connections=some([None, 1, 2, 3]),
        per_host=some([None, 1, 2, 3]),
        keepalive=some([None, 0, 1, 2]),
        expiry=some([None, 0.0, 10.0]),
        age=some([None, AGE]),
        max_waiting=some([None, 0, 2]),
        multiplexes=some([True, True, False]),
    )
    def open_pool(
        self,
        max_connections: int | None,
        per_host: int | None,
        keepalive: int | None,
        expiry: float | None,
        age: float | None,
        max_waiting: int | None,
        multiplexes: bool,
    ) -> None:
        self.limits = Limits(
            max_connections=max_connections,
            max_connections_per_host=per_host,
            max_keepalive_connections=keepalive,
            keepalive_expiry=expiry,
            max_connection_age=age,
            max_waiting=max_waiting,
        )
        self.multiplexes = multiplexes
        self.runtime = SteppedRuntime(self.told)
        self.pool = Pool(
            self.limits,
            cast("Runtime", self.runtime),
            multiplexes=multiplexes,
            on_change=self.connection_changed,
        )

    def clock(self) -> float:
        return self.now

    # -- what the pool tells -----------------------------------------------------------------------

    def told(self, waiter: Waiter) -> None:
        """A caller is woken: by being served, in order, or because the pool was closed."""
        for queue in self.queues.values():
            for caller in queue:
                if caller.waiter is waiter:
                    if not self.pool.is_closed:
                        assert caller is min(queue, key=lambda one: one.rank), "not in order"
                    queue.remove(caller)
                    self.woken.append(caller)
                    return
        assert waiter is self.runtime.last_waiter, "woken twice, or after having left"

    def connection_changed(self, pooled: Pooled, reason: str | None) -> None:
        connection = cast("Connection", pooled.connection)
        assert connection.is_closed == (reason is not None)
        if reason is not None:
            self.closings[reason] += 1

    # -- callers -----------------------------------------------------------------------------------

    @rule(origin=an_origin, priority=some([0, 0, 0, 1]), fresh=some([False, False, False, True]))
    def call(self, origin: Origin, priority: int, fresh: bool) -> None:
        try:
            lease = self.pool.acquire_nowait(origin, fresh=fresh)
        except TransportClosed:
            assert self.pool.is_closed
            return
        if lease is not None:
            assert not self.queues[origin], "a newcomer went before those who wait"
            assert not (fresh and lease.pooled) or origin.host == "many", "asked for a fresh one"
            self.hold(origin, lease)
            assert lease.pooled is None or lease.pooled.connection.is_usable(), "lent when closed"
        else:
            self.queue_up(origin, priority, fresh)

    def queue_up(self, origin: Origin, priority: int, fresh: bool) -> None:
        waiting = sum(map(len, self.queues.values()))
        most = self.limits.max_waiting
        try:
            ticket = self.pool.queue(origin, 5.0, priority, fresh=fresh)
        except PoolFull:
            assert most is not None
            assert waiting >= most
            return
        assert most is None or waiting < most
        self.numbers += 1
        self.queues[origin].append(Caller(origin, ticket))

    def hold(self, origin: Origin, lease: Lease) -> None:
        holder = Holder(origin, lease)
        self.leases.append(holder)
        connection = holder.connection
        if connection is not None:
            assert connection.origin == origin, "lent to another origin"

    def end_of(self, caller: Caller, *, is_cancelled: bool) -> None:
        """Let it take what it was served, or be told why there is nothing."""
        try:
            if not is_cancelled:
                self.hold(caller.origin, self.pool.claim(caller.ticket))
                return
        except PoolTimeout:
            assert caller not in self.woken
        except TransportClosed:
            assert self.pool.is_closed
        finally:
            self.forget(caller)
        self.pool.leave(caller.ticket)

    def forget(self, caller: Caller) -> None:
        if caller in self.woken:
            self.woken.remove(caller)
        elif caller in self.queues[caller.origin]:
            self.queues[caller.origin].remove(caller)

    @rule(data=st.data())
    @precondition(lambda self: self.woken)
    def wake_up(self, data: st.DataObject) -> None:
        self.end_of(data.draw(some(self.woken)), is_cancelled=False)

    @rule(data=st.data(), is_cancelled=st.booleans())
    @precondition(lambda self: self.suspended())
    def give_up(self, data: st.DataObject, is_cancelled: bool) -> None:
        """Cancelled or too late, whether it still waits or was served a moment ago."""
        self.end_of(data.draw(some(self.suspended())), is_cancelled=is_cancelled)

    def suspended(self) -> list[Caller]:
        return [*self.woken, *(caller for queue in self.queues.values() for caller in queue)]

    # -- holders -----------------------------------------------------------------------------------

    @rule(data=st.data())
    @precondition(lambda self: any(holder.connection is None for holder in self.leases))
    def connect(self, data: st.DataObject) -> None:
        holder = data.draw(some([one for one in self.leases if one.connection is None]))
        speaks_http2 = self.multiplexes and holder.origin.host == "many"
        connection = Connection(holder.origin, STREAMS if speaks_http2 else 1, self.now)
        try:
            pooled = holder.lease.attach(cast("Any", connection))
        except TransportClosed:
            assert self.pool.is_closed
            assert connection.is_closed, "a socket was left open"
            self.leases.remove(holder)
        else:
            assert not self.pool.is_closed
            pooled.exchanges += 1
            self.connections.append(connection)

    @rule(data=st.data(), twice=st.booleans())
    @precondition(lambda self: self.leases)
    def release(self, data: st.DataObject, twice: bool) -> None:
        """An exchange has come to its end, or a dial failed."""
        holder = data.draw(some(self.leases))
        self.leases.remove(holder)
        holder.lease.release()
        if twice:
            holder.lease.release()

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def abort(self, data: st.DataObject) -> None:
        """An exchange failed or was cancelled: with its connection, unless others are on it."""
        holder = data.draw(some(self.leases))
        self.leases.remove(holder)
        connection = holder.connection
        if connection is not None and connection.max_exchanges == 1:
            connection.close()
        self.pool.abort(holder.lease)

    @rule(data=st.data())
    @precondition(lambda self: self.open_connections())
    def peer_closes(self, data: st.DataObject) -> None:
        data.draw(some(self.open_connections())).is_alive = False

    # -- time and upkeep ---------------------------------------------------------------------------

    @rule(seconds=some([0.1, 5.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tidy(self) -> None:
        due = self.pool.tidy()
        idle = [one for one in self.open_connections() if not self.users_of(one)]
        assert due is None or due > 0
        assert all(one.is_usable() for one in idle if due is not None)

    @rule()
    @precondition(lambda self: self.numbers + len(self.connections) > 3)
    def close(self) -> None:
        self.pool.close()

    # -- what must hold ----------------------------------------------------------------------------

    def open_connections(self) -> list[Connection]:
        return [one for one in self.connections if not one.is_closed]

    def users_of(self, connection: Connection) -> int:
        return sum(holder.connection is connection for holder in self.leases)

    @invariant()
    def counts_are_exact(self) -> None:
        now = self.pool.snapshot()
        # A connection that its exchange has closed is the pool's until it is given back.
        assert now.open >= len(self.open_connections())
        assert now.open == now.active + now.idle
        assert now.created == len(self.connections)
        assert now.created == now.open + sum(now.closed.values())
        assert Counter(now.closed) == self.closings
        assert now.waiting == sum(map(len, self.queues.values()))
        assert self.pool.in_use == now.active + now.connecting or self.pool.is_closed

    @invariant()
    def origins_add_up(self) -> None:
        now = self.pool.snapshot()
        for field in ("open", "active", "idle", "connecting", "waiting"):
            assert getattr(now, field) == sum(getattr(o, field) for o in now.origins.values())
        for name, origin in now.origins.items():
            assert origin.open == origin.active + origin.idle
            assert origin.open + origin.connecting + origin.waiting, f"{name} is remembered"

    @invariant()
    def limits_hold(self) -> None:
        now, limits = self.pool.snapshot(), self.limits
        if limits.max_connections is not None:
            assert now.open + now.connecting <= limits.max_connections
            assert now.utilization == (now.active + now.connecting) / limits.max_connections
        if limits.max_connections_per_host is not None:
            for origin in now.origins.values():
                assert origin.open + origin.connecting <= limits.max_connections_per_host
        if limits.max_keepalive_connections is not None:
            assert now.idle <= limits.max_keepalive_connections

    @invariant()
    def leases_are_counted_and_no_connection_is_lent_too_often(self) -> None:
        for connection in self.connections:
            assert self.users_of(connection) <= connection.max_exchanges
        if self.pool.is_closed:
            return
        now = self.pool.snapshot()
        lent = now.connecting + sum(origin.exchanges for origin in now.origins.values())
        assert lent == len(self.leases) + len(self.woken)

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        if self.pool.is_closed:
            assert not any(self.queues.values())
            return
        now, limits = self.pool.snapshot(), self.limits
        is_full = now.open + now.connecting == limits.max_connections
        for origin in ORIGINS:
            if not self.queues[origin]:
                continue
            of_it = now.origins[str(origin)]
            assert not of_it.idle, "it could have an idle connection"
            host_is_full = of_it.open + of_it.connecting == limits.max_connections_per_host
            awaits_handshake = self.multiplexes and origin.is_tls and of_it.connecting
            if not (host_is_full or awaits_handshake):
                assert is_full, "it could open one"
                assert not now.idle, "it could have the place of one that is idle"
            if not self.woken:
                assert not self.has_a_free_stream(origin), "it could share one"

    def has_a_free_stream(self, origin: Origin) -> bool:
        return any(
            one.origin == origin
            and one.is_usable()
            and 0 < self.users_of(one) < one.max_exchanges
            and self.now - one.opened < AGE * 0.9
            for one in self.connections
        )

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.everybody_leaves()
        finally:
            for clock in self._clocks:
                clock.stop()

    def everybody_leaves(self) -> None:
        while self.suspended() or self.leases:
            for caller in self.suspended():
                self.end_of(caller, is_cancelled=True)
            while self.leases:
                self.leases.pop().lease.release()
        now = self.pool.snapshot()
        assert (now.active, now.connecting, now.waiting) == (0, 0, 0)
        self.limits_hold()
        self.pool.close()
        now = self.pool.snapshot()
        assert (now.open, now.origins) == (0, {})
        assert now.created == sum(now.closed.values())
        assert not self.open_connections()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=400,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
