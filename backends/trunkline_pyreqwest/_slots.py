"""How many exchanges run at once, and who is next.

This module knows numbers and order. It does not know connections: those are the library's.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import monotonic

import trunkline
from trunkline import Limits
from trunkline.pool import Alarm, Runtime, Waiter


class _Ticket:
    def __init__(self, priority: int, number: int, waiter: Waiter) -> None:
        self.rank = (-priority, number)
        self.waiter = waiter
        self.is_served = self.is_gone = False

    def __lt__(self, other: _Ticket) -> bool:
        return self.rank < other.rank


class Slots:
    """At most `limits.max_connections` exchanges; others wait, a higher priority first.

    Args:
        alarm: told when they are nearly used up.
        oldest: since when the oldest exchange has had its slot; None when there is none.
    """

    def __init__(
        self, limits: Limits, runtime: Runtime, alarm: Alarm, oldest: Callable[[], float | None]
    ) -> None:
        self._alarm = alarm
        self._oldest = oldest
        self._most = limits.max_connections
        self._max_waiting = limits.max_waiting
        self._runtime = runtime
        self._queue: list[_Ticket] = []
        self._numbers = count()
        self.in_use = self.waiting = self.waited = 0
        self.wait_total = self.wait_max = 0.0
        self.is_closed = False

    async def take(self, priority: int, seconds: float | None) -> float | None:
        """Wait for a slot, for `seconds` at most.

        Returns:
            How many seconds that took; None if there was a free one.

        Raises:
            PoolFull, PoolTimeout, TransportClosed: none was to be had.
        """
        if self._most is None or (self.in_use < self._most and not self.waiting):
            self.in_use += 1
            self._watch()
            return None
        if self._max_waiting is not None and self.waiting >= self._max_waiting:
            raise trunkline.PoolFull(f"max_waiting is {self._max_waiting}: {self._in_use()}")
        since = monotonic()
        ticket = _Ticket(priority, next(self._numbers), self._runtime.waiter())
        heappush(self._queue, ticket)
        self.waiting += 1
        try:
            if since >= self._alarm.full_due:
                self._alarm.exhausted(self)
            await ticket.waiter.wait(seconds)
        except BaseException:
            ticket.waiter.leave()
            self._leave(ticket)
            raise
        if not ticket.is_served:
            in_use = self._in_use()
            self._leave(ticket)
            if self.is_closed:
                raise trunkline.TransportClosed("the transport was closed meanwhile", phase="pool")
            raise trunkline.PoolTimeout(f"none became free within {seconds:g} s; {in_use}")
        took = monotonic() - since
        self.waited += 1
        self.wait_total += took
        self.wait_max = max(self.wait_max, took)
        return took

    def _in_use(self) -> str:
        oldest = self._oldest()
        held = "" if oldest is None else f" (the longest for {monotonic() - oldest:.1f} s)"
        return (
            f"{self.in_use} connections active{held}; {self.waiting} calls waiting; "
            f"max_connections {self._most}"
        )

    def _watch(self) -> None:
        if self.in_use >= self._alarm.line:
            if not self._alarm.is_on:
                self._alarm.rise(self)
        elif self._alarm.is_on:
            self._alarm.fall(self)

    def _leave(self, ticket: _Ticket) -> None:
        if ticket.is_served:
            self.give()
        else:
            ticket.is_gone = True
            self.waiting -= 1

    def give(self) -> None:
        """Give a slot back; it goes to whom it is due next."""
        self.in_use -= 1
        while self._queue and not self.is_closed:
            ticket = heappop(self._queue)
            if not ticket.is_gone:
                ticket.is_served = True
                self.waiting -= 1
                self.in_use += 1
                ticket.waiter.set()
                break
        self._watch()

    def close(self) -> None:
        """Turn everybody away who waits."""
        self.is_closed = True
        for ticket in self._queue:
            ticket.waiter.set()
