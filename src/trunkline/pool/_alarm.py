"""Warns in the log when the pool is nearly used up, and when callers have to wait.

This module knows the log and its pace: at most one line of a kind in ten seconds. It does not know
where the numbers come from.
"""

from __future__ import annotations

import logging
from math import ceil, inf
from time import monotonic
from typing import Protocol

from trunkline.pool._log import tell

logger = logging.getLogger("trunkline.pool")

_QUIET_SECONDS = 10.0


class Load(Protocol):
    """How much is asked of a pool."""

    @property
    def in_use(self) -> int: ...

    @property
    def waiting(self) -> int: ...


class Alarm:
    """`line` is the number of connections in use from which on it is on.

    Before `full_due`, of the monotonic clock, there is no need to call `exhausted`.

    Args:
        share: of `most` that is too much; None for never.
        most: `max_connections`; None without a limit.
    """

    def __init__(self, share: float | None, most: int | None) -> None:
        self._most = most
        self.line: float = inf if share is None or most is None else ceil(share * most)
        self.is_on = False
        self.full_due: float = inf if self.line == inf else -inf
        self._last: dict[str, float] = {}

    def rise(self, load: Load) -> None:
        self.is_on = True
        self._say("high", "%d of %d connections are in use, %d calls wait", load)

    def fall(self, load: Load) -> None:
        self.is_on = False
        self._say("low", "back to %d of %d connections in use, %d calls wait", load)

    def exhausted(self, load: Load) -> None:
        self._say("full", "exhausted: %d of %d connections are in use, %d calls wait", load)
        self.full_due = self._last["full"] + _QUIET_SECONDS

    def _say(self, kind: str, message: str, load: Load) -> None:
        now = monotonic()
        if now - self._last.get(kind, -inf) >= _QUIET_SECONDS:
            self._last[kind] = now
            tell(logger.warning, message, load.in_use, self._most, load.waiting)
