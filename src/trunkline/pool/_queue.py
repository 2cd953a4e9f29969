"""Who waits for a connection to one origin: a higher priority first, equal ones in order.

This module knows order. It does not know what is waited for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trunkline.pool._pool import Lease
    from trunkline.pool._runtime import Waiter


class Ticket:
    """A place in a queue; `lease` is set before the waiter is woken."""

    __slots__ = ("fresh", "lease", "number", "priority", "waiter")

    def __init__(self, number: int, priority: int, waiter: Waiter, *, fresh: bool) -> None:
        self.fresh = fresh
        self.number = number
        self.priority = priority
        self.waiter = waiter
        self.lease: Lease | None = None


class Queue:
    """`size` tickets in the order in which they are served.

    Every operation is O(priorities in use).
    """

    __slots__ = ("_lanes", "size")

    def __init__(self) -> None:
        # OrderedDict, not dict: taking the first of a dict again and again is quadratic.
        self._lanes: dict[int, OrderedDict[Ticket, None]] = {}
        self.size = 0

    def push(self, ticket: Ticket) -> None:
        lane = self._lanes.get(ticket.priority)
        if lane is None:
            lane = self._lanes[ticket.priority] = OrderedDict()
        lane[ticket] = None
        self.size += 1

    def remove(self, ticket: Ticket) -> None:
        """Take `ticket` out, if it is still in."""
        lane = self._lanes.get(ticket.priority)
        if lane is None or ticket not in lane:
            return
        del lane[ticket]
        self.size -= 1
        if not lane:
            del self._lanes[ticket.priority]

    def first(self) -> Ticket:
        """Who is served next; the queue is not empty."""
        lanes = self._lanes
        lane = lanes[max(lanes)] if len(lanes) > 1 else next(iter(lanes.values()))
        return next(iter(lane))

    def wake_all(self) -> None:
        for lane in self._lanes.values():
            for ticket in lane:
                ticket.waiter.set()
