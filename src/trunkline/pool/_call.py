"""One call of `send`: what all its attempts share, and what its errors say.

This module knows the clock and the facts of a call. It does not know its course.
"""

from __future__ import annotations

from time import monotonic

from trunkline._config import Timeouts
from trunkline._errors import DeadlineExceeded, Phase, TransportError
from trunkline._messages import Request, Timings
from trunkline.pool._home import Home
from trunkline.pool._pool import Lease
from trunkline.pool._watch import Watch


class Call:
    """See the module."""

    __slots__ = ("attempts", "backend", "home", "lease", "request", "started", "timeouts",
                 "timings", "watch")  # fmt: skip

    def __init__(
        self,
        request: Request,
        home: Home,
        timeouts: Timeouts,
        backend: str,
        watch: Watch | None = None,
    ) -> None:
        self.request = request
        self.home = home
        self.timeouts = timeouts
        self.backend = backend
        self.started = monotonic()
        self.timings = Timings()
        self.attempts = 0
        self.lease: Lease | None = None
        self.watch = watch

    def seconds(self, limit: float | None) -> float | None:
        """`limit`, or what is left of `timeouts.total` if that is less."""
        if self.timeouts.total is None:
            return limit
        left = self.started + self.timeouts.total - monotonic()
        return left if limit is None else min(limit, left)

    def check_deadline(self, phase: Phase, cause: BaseException | None = None) -> None:
        total = self.timeouts.total
        if total is not None and monotonic() >= self.started + total:
            raise DeadlineExceeded(f"not over within {total:g} s", phase=phase) from cause

    def describe(self, error: TransportError) -> None:
        error.host, error.port = self.request.origin.host, self.request.origin.port
        error.backend = self.backend
        error.attempts = self.attempts
        error.elapsed = monotonic() - self.started
        lease = self.lease
        if lease is not None and lease.pooled is not None:
            error.connection_reused = lease.reused
            error.http_version = lease.pooled.connection.http_version
