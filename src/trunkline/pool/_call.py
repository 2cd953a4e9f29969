"""One call of `send`: what all its attempts share, and what its errors say.

This module knows the clock and the facts of a call. It does not know its course.
"""

from __future__ import annotations

from time import monotonic

from trunkline._config import Timeouts
from trunkline._contract import BegunExchange
from trunkline._errors import DeadlineExceeded, Phase, TransportError
from trunkline._messages import Request, Timings
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.pool._home import Home
from trunkline.pool._lease import Lease
from trunkline.pool._origin import Pooled
from trunkline.pool._queue import Ticket
from trunkline.pool._watch import Watch


class Call(ExchangeAttempt):
    """A call, and the attempt of it that is under way."""

    __slots__ = ("attempts", "backend", "home", "is_in_doubt", "lease", "request", "started",
                 "ticket", "timings", "watch")  # fmt: skip

    def __init__(self, request: Request, home: Home, timeouts: Timeouts, backend: str) -> None:
        now = monotonic()
        ExchangeAttempt.__init__(self, home.runtime, timeouts, now)
        self.started = now
        self.request = request
        self.home = home
        self.backend = backend
        self.timings = Timings()
        self.attempts = 0
        self.is_in_doubt = False  # an attempt that was followed by another may have been processed
        self.lease: Lease | None = None
        self.ticket: Ticket | None = None
        self.watch: Watch | None = None

    def begin_on(self, pooled: Pooled) -> BegunExchange | None:
        """An attempt on `pooled`: its exchange, where that is begun at once; else None."""
        self.attempts += 1
        pooled.exchanges += 1
        if self.watch is not None:
            self.watch.connection_id = pooled.id
            self.watch.start("headers")
        self.begun = self.head_due_from = monotonic()
        begin = pooled.begin
        return None if begin is None else begin(self.request, self)

    def start(self, ticket: Ticket) -> bool:
        """Begin the exchange on the connection that came free, while the call's task still waits.

        So the task is woken once, by the answer.
        """
        waiter = ticket.waiter.lend()
        if waiter is None:
            return False
        pooled = self.home.pool.claim(ticket).pooled
        exchange = ticket.exchange = None if pooled is None else self.begin_on(pooled)
        if exchange is None or not exchange.wake(waiter.future):
            return False
        waiter.move(self._due)
        return True

    def seconds(self, limit: float | None) -> float | None:
        """`limit`, or what is left of `timeouts.total` if that is less; `due_is_total` says so."""
        if self.total_due is None:
            return limit
        left = self.total_due - monotonic()
        self.due_is_total = limit is None or left < limit
        return left if self.due_is_total else limit

    def too_late(self, phase: Phase) -> DeadlineExceeded:
        return DeadlineExceeded(f"not over within {self.timeouts.total:g} s", phase=phase)

    def tell(self, error: TransportError) -> None:
        """Write what is known of the call into `error`."""
        error.host, error.port = self.request.origin.host, self.request.origin.port
        error.backend = self.backend
        error.attempts = self.attempts
        error.elapsed = monotonic() - self.started
        lease = self.lease
        if lease is not None and lease.pooled is not None:
            error.connection_reused = lease.reused
            error.http_version = lease.pooled.connection.http_version

    def doubt(self, error: TransportError) -> None:
        """Let `error` speak for the attempts before the last one too."""
        if self.is_in_doubt and error.replay == "safe":
            error.replay = "if_idempotent"
            error.request_sent = error.request_sent or None

    def annotate(self, error: TransportError) -> None:
        """Write what is known of the call and the attempt into `error`."""
        self.describe(error)
        self.tell(error)
