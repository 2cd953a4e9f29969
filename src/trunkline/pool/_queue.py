"""Who waits for a connection to one origin: a higher priority first, equal ones in order.

This module knows order. It does not know what is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trunkline._contract import BegunExchange
    from trunkline.pool._lease import Lease
    from trunkline.pool._origin import OriginState
    from trunkline.pool._runtime import Waiter


class Caller(Protocol):
    """Whose ticket it is, where that can do something with its lease before it is woken."""

    def start(self, ticket: Ticket) -> bool:
        """Go on with the lease of `ticket` in the place of the task that waits; False: wake it."""
        ...


class Ticket:
    """A place in the queue of `origin`; `lease` is set before the waiter is woken.

    `fresh`: it is for a connection yet to be opened. `since` is of the monotonic clock, `seconds`
    how long the wait may take. `exchange` is what `caller` has begun. `is_queued` is the queue's.
    """

    __slots__ = ("caller", "exchange", "fresh", "is_queued", "lease", "number", "origin",
                 "priority", "seconds", "since", "waiter")  # fmt: skip

    is_queued: bool

    def __init__(
        self,
        origin: OriginState,
        number: int,
        priority: int,
        waiter: Waiter,
        seconds: float | None,
        *,
        fresh: bool,
        caller: Caller | None = None,
    ) -> None:
        self.origin = origin
        self.number = number
        self.priority = priority
        self.waiter = waiter
        self.seconds = seconds
        self.fresh = fresh
        self.since = monotonic()
        self.lease: Lease | None = None
        self.caller = caller
        self.exchange: BegunExchange | None = None

    def wait(self) -> Awaitable[None]:
        """Wait until it is served, or the pool was closed, or for `seconds`."""
        return self.waiter.wait(self.seconds)


class Queue:
    """`size` tickets in the order in which they are served.

    Every operation is O(priorities in use); `remove` on the average of many.
    """

    __slots__ = ("_gone", "_lanes", "size")

    def __init__(self) -> None:
        # Who is removed from the middle of a lane stays in it as `_gone`, but never at its head.
        self._lanes: dict[int, deque[Ticket]] = {}
        self._gone = 0
        self.size = 0

    def push(self, ticket: Ticket) -> None:
        lane = self._lanes.get(ticket.priority)
        if lane is None:
            lane = self._lanes[ticket.priority] = deque()
        lane.append(ticket)
        ticket.is_queued = True
        self.size += 1

    def first(self) -> Ticket:
        """Who is served next; the queue is not empty."""
        return self._lanes[max(self._lanes)][0]

    def remove(self, ticket: Ticket) -> None:
        """Take `ticket` out, if it is still in."""
        if not ticket.is_queued:
            return
        ticket.is_queued = False
        self.size -= 1
        lane = self._lanes[ticket.priority]
        if lane[0] is not ticket:
            self._gone += 1
            if self._gone > self.size:
                self._forget_gone()
            return
        lane.popleft()
        while lane and not lane[0].is_queued:
            lane.popleft()
            self._gone -= 1
        if not lane:
            del self._lanes[ticket.priority]

    def _forget_gone(self) -> None:
        for priority, lane in self._lanes.items():
            self._lanes[priority] = deque(one for one in lane if one.is_queued)
        self._gone = 0

    def wake_all(self) -> None:
        for lane in self._lanes.values():
            for ticket in lane:
                if ticket.is_queued:
                    ticket.waiter.set()
