"""One attempt at a request on one connection: its deadlines, and the facts its errors carry.

This module knows which deadline holds in which phase, and what a failure means for a retry. It does
not know who writes or reads: an exchange reports to it and awaits the peer through it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic
from typing import TypeVar

from trunkline._config import Timeouts
from trunkline._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    GoAway,
    HeadersTimeout,
    Phase,
    ReadTimeout,
    Replay,
    StreamRefused,
    TransportError,
    TransportTimeout,
    WriteTimeout,
)
from trunkline.pool._runtime import FutureDeadline, Runtime, Scope

T = TypeVar("T")

_TIMEOUTS: dict[str, tuple[str, type[TransportTimeout], str]] = {
    "write": ("write", WriteTimeout, "the peer took no byte of the request for {:g} s"),
    "headers": ("headers", HeadersTimeout, "no complete response head within {:g} s"),
    "body": ("read", ReadTimeout, "no byte of the response body for {:g} s"),
}
_OTHERS_MOVE_IT = frozenset({"write", "request"})
"""Phases in which who sends the body moves the deadline of who awaits the head."""


class ExchangeAttempt:
    """Implements `trunkline.Attempt` for the pool."""

    # Slots: without them, an attribute that the first instances have not had yet, all of them made
    # before one went on, would give each later instance a dict of its own.
    __slots__ = ("_deadline", "_due", "_limit", "_runtime", "_scope", "begun", "bytes_sent",
                 "due_is_total", "head_due_from", "is_body_untouched", "is_untaken", "phase",
                 "request_sent", "response_started", "timeouts", "total_due")  # fmt: skip

    phase: Phase

    def __init__(self, runtime: Runtime, timeouts: Timeouts, started: float) -> None:
        self._runtime = runtime
        self._scope: Scope | None = None
        self._deadline: FutureDeadline | None = None
        self.timeouts = timeouts
        self.total_due = None if timeouts.total is None else started + timeouts.total
        self.due_is_total = False
        self.begun = self.head_due_from = started  # until the exchange begins
        self.renew()

    def renew(self) -> None:
        """The next attempt: nothing of it has happened yet."""
        self._due: float | None = None
        self.phase, self._limit = "write", self.timeouts.write
        self.bytes_sent = 0
        self.request_sent = self.response_started = False
        self.is_body_untouched = self.is_untaken = False

    def begin(self, phase: Phase) -> None:
        now, is_next = monotonic(), phase != self.phase
        if is_next:
            self.phase = phase
            timed = _TIMEOUTS.get(phase)
            self._limit = None if timed is None else getattr(self.timeouts, timed[0])
            if phase == "headers":
                self.request_sent = True
                self.head_due_from = now
        limit = self._limit
        due = None if limit is None else now + limit
        if self.total_due is not None:
            self.due_is_total = due is None or self.total_due < due
            if self.due_is_total:
                due = self.total_due
        self._due = due
        if self._scope is not None:
            self._scope.move(None if due is None else due - now)
        elif is_next and self._deadline is not None:
            self._deadline.move(due)

    def wait(self, awaitable: Awaitable[T]) -> Awaitable[T]:
        if self.phase in _OTHERS_MOVE_IT:
            return self._wait(awaitable)  # even without a deadline
        due = self._due
        if due is None:
            return awaitable
        deadline = self._deadline
        if deadline is None:
            deadline = self._deadline = self._runtime.deadline(self._timeout)
        if deadline is not None and deadline.bounds(awaitable, due):
            return awaitable
        return self._wait(awaitable)

    def end(self) -> None:
        """Nothing is awaited any more."""
        if self._deadline is not None:
            self._deadline.move(None)
            self._deadline = None

    async def _wait(self, awaitable: Awaitable[T]) -> T:
        seconds = None if self._due is None else self._due - monotonic()
        with self._runtime.scope(seconds) as scope:
            self._scope = scope
            try:
                return await awaitable
            finally:
                self._scope = None
        raise self._timeout()

    def _timeout(self) -> TransportTimeout:
        # Not by the clock: uvloop's timers fire up to a millisecond early.
        if self.due_is_total:
            return DeadlineExceeded(f"not over within {self.timeouts.total:g} s", phase=self.phase)
        name, error, message = _TIMEOUTS[self.phase]
        return error(message.format(getattr(self.timeouts, name)))

    def describe(self, error: TransportError) -> None:
        """Write what this attempt knows into `error`."""
        if error.phase is None:
            error.phase = self.phase
        error.bytes_sent = max(error.bytes_sent, self.bytes_sent)
        if self.request_sent:
            error.request_sent = True
        elif error.bytes_sent:
            error.request_sent = None
        error.response_started = error.response_started or self.response_started
        error.replay = "safe" if self.is_untaken else verdict(error)


def verdict(error: TransportError) -> Replay:
    """What `error` means for sending the request again; see `TransportError.replay`."""
    if isinstance(error, (ConnectionFailed, StreamRefused)):
        return "safe"
    if error.response_started:
        return "unsafe"
    if isinstance(error, GoAway) and error.replay == "safe":
        return "safe"
    return "if_idempotent" if error.bytes_sent else "safe"
