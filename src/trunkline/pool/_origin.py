"""The connections to one origin: their history, who waits for one, and whose turn it is.

This module knows one origin, and how two of them compare. It does not know limits over all origins.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from random import uniform
from time import monotonic

from trunkline._config import Limits
from trunkline._contract import Begin, Connection, OriginSnapshot
from trunkline._urls import Origin
from trunkline.pool._queue import Queue

_AGE_JITTER = 0.1


class Pooled:
    """A connection with its history.

    `active` counts the exchanges on it now, `exchanges` all there were; `expiry` is how long it may
    sit idle, `retire_at` when it is too old; times are of the monotonic clock.
    """

    __slots__ = ("active", "begin", "closed", "connection", "created", "exchanges", "expiry", "id",
                 "idle_since", "leased_at", "origin", "retire_at")  # fmt: skip

    def __init__(
        self, identity: int, origin: OriginState, connection: Connection, limits: Limits
    ) -> None:
        self.id = identity
        self.origin = origin
        self.connection = connection
        self.begin: Begin | None = getattr(connection, "begin", None)
        self.created = self.idle_since = self.leased_at = monotonic()
        self.active = 0
        self.exchanges = 0
        self.closed = False
        self.expiry = inf if limits.keepalive_expiry is None else limits.keepalive_expiry
        age = limits.max_connection_age
        self.retire_at = (
            inf if age is None else self.created + age * uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)
        )

    def unfit(self, now: float) -> str | None:
        """Why no new exchange may begin on it; None if one may."""
        if not self.connection.is_usable():
            return "ended"
        if now >= self.retire_at:
            return "aged"
        if not self.active and now - self.idle_since >= self.expiry:
            return "expired"
        return None


class OriginState:
    """The connections to one origin, and who waits for one."""

    __slots__ = ("busy", "connecting", "idle", "keeps_ready", "multiplexes", "name", "waiting")

    def __init__(self, name: Origin, *, multiplexes: bool) -> None:
        self.name = name
        self.idle: OrderedDict[Pooled, None] = OrderedDict()  # newest last
        self.busy: dict[Pooled, None] = {}
        self.connecting = 0
        self.waiting = Queue()
        self.multiplexes = multiplexes
        self.keeps_ready = False

    @property
    def held(self) -> int:
        return len(self.idle) + len(self.busy) + self.connecting


def turn(state: OriginState) -> tuple[int, int, int]:
    """Whose turn it is, the lowest: by priority, then who uses the fewest, then who came first."""
    first = state.waiting.first()
    return -first.priority, len(state.busy) + state.connecting, first.number


def has_precedence(state: OriginState, other: OriginState) -> bool:
    """Whether a connection of `other`, for which callers wait too, is given up for `state`.

    Only if `state` still holds fewer afterwards: so two busy hosts share the limit evenly, and do
    not take connections from each other in turn. One that holds none gets one.
    """
    if not state.held or state.held + 1 < other.held:
        return True
    waiting = state.waiting.size > 0
    return waiting and state.waiting.first().priority > other.waiting.first().priority


def origin_snapshot(state: OriginState) -> OriginSnapshot:
    return OriginSnapshot(
        open=len(state.busy) + len(state.idle),
        active=len(state.busy),
        idle=len(state.idle),
        connecting=state.connecting,
        waiting=state.waiting.size,
        exchanges=sum(pooled.active for pooled in state.busy),
    )
