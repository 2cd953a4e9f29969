"""Tells observers what happens: each start once, and each start's end, whatever comes between.

This module knows which steps are open. It does not know what they do. What an observer raises goes
to the log, and no further.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from weakref import ref

from trunkline._errors import Phase
from trunkline._events import Event, Observer, Step
from trunkline._messages import Request, Response
from trunkline._urls import Origin
from trunkline.pool._log import tell

logger = logging.getLogger("trunkline.observers")


class Watch:
    """The open steps of one call, or of one connection opened ahead of any."""

    __slots__ = (
        "_observers",
        "_open",
        "_origin",
        "_present",
        "_request",
        "connection_id",
        "request_id",
        "response",
    )  # fmt: skip

    def __init__(
        self,
        observers: Sequence[Observer],
        origin: Origin,
        request_id: int | None = None,
        request: Request | None = None,
    ) -> None:
        # A late observer gets no end without its start, one that was removed nothing more.
        self._observers = tuple(observers)
        self._present = observers
        self._origin = origin
        self._request = request
        self._open: list[Step] = []
        self.request_id = request_id
        self.connection_id: int | None = None
        # Weak: the response holds this, and one that is dropped must not be part of a cycle.
        self.response: ref[Response] | None = None

    def start(self, step: Step) -> None:
        self._open.append(step)
        self._tell(step, is_end=False)

    def end(self, step: Step, error: str | None = None) -> None:
        """End `step`, and before it what is still open inside it. No such step: nothing."""
        while step in self._open:
            self._tell(self._open.pop(), is_end=True, error=error)

    def fail(self, error: BaseException) -> None:
        """End everything."""
        while self._open:
            self._tell(self._open.pop(), is_end=True, error=type(error).__name__)

    def connection(self, *, is_end: bool, reason: str | None = None) -> None:
        self._tell("connection", is_end=is_end, reason=reason)

    def _tell(
        self, step: Step, *, is_end: bool, error: str | None = None, reason: str | None = None
    ) -> None:
        event = Event(
            step=step,
            is_end=is_end,
            at=monotonic(),
            origin=self._origin,
            request_id=self.request_id,
            connection_id=self.connection_id,
            error=error,
            reason=reason,
            request=self._request,
            response=None if self.response is None else self.response(),
        )
        for observer in self._observers:
            if observer in self._present:
                _show(observer, event)


def _show(observer: Observer, event: Event) -> None:
    try:
        observer.on_event(event)
    except Exception:  # noqa: BLE001 - it is told
        # Whoever paid for an answer gets it, and other observers their pairs of events.
        tell(logger.exception, "an observer raised, of type %s; the call goes on", type(observer))


class Steps:
    """Implements `trunkline.Dial`: times the steps of opening a connection, and tells a watch."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch
        self._since = monotonic()
        self.phase: Phase = "dns"
        self.seconds: dict[Phase, float] = {}

    def begin(self, phase: Phase) -> None:
        self.finish()
        self.phase = phase
        self.seconds[phase] = self.seconds.get(phase, 0.0)
        if self._watch is not None and phase in ("dns", "connect", "proxy", "tls"):
            self._watch.start(phase)

    def finish(self) -> None:
        """The step under way, if any, is over."""
        now = monotonic()
        if self.phase in self.seconds:
            self.seconds[self.phase] += now - self._since
            if self._watch is not None and self.phase in ("dns", "connect", "proxy", "tls"):
                self._watch.end(self.phase)
        self._since = now
