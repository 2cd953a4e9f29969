"""Deadlines where no network answers: they hold as on a connection, and their errors say the same.

This module knows which deadline bounds which wait. It does not know who answers, nor how.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic
from typing import TypeVar

from trunkline import Phase, Request, Timeouts, Transport, TransportError, TransportTimeout
from trunkline._bodies import BodyStream, IterableStream, LocalStream
from trunkline.pool import PooledTransport, make_runtime
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.testing._facts import place, tell

T = TypeVar("T")


class TimedCall:
    """One call, from `send` to the end of the body.

    Args:
        timeouts: the transport's; those of the request go over them.
        backend: what errors say.
    """

    def __init__(self, request: Request, timeouts: Timeouts, backend: str) -> None:
        self.started = monotonic()
        self._request = request
        self._backend = backend
        timeouts = timeouts.overridden_by(request.timeouts)
        self._attempt = ExchangeAttempt(make_runtime(), timeouts, self.started)
        self._theirs: TransportError | None = None

    async def wait(self, phase: Phase, awaitable: Awaitable[T]) -> T:
        """Await what stands for the peer, no longer than its deadline and `total` allow.

        Args:
            phase: "headers" and "body" have a deadline of their own.

        Raises:
            HeadersTimeout, ReadTimeout, DeadlineExceeded: it was cancelled.
            Exception: what `awaitable` raises, as it is.
        """
        self._attempt.begin(phase)
        try:
            return await self._attempt.wait(self._run(awaitable))
        except TransportTimeout as error:
            if error is not self._theirs:
                tell(error, self._request)
                place(error, self._request, self._backend, self.started)
            raise

    async def _run(self, awaitable: Awaitable[T]) -> T:
        try:
            return await awaitable
        except TransportError as error:
            self._theirs = error
            raise


class TimedBody(LocalStream):
    """A body that somebody's iterable produces, each piece of it within the deadlines."""

    def __init__(self, inner: IterableStream, call: TimedCall) -> None:
        self._inner = inner
        self._call = call

    async def read(self) -> bytes:
        return await self._call.wait("body", self._inner.read())

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def annotate(self, error: TransportError) -> None:
        self._inner.annotate(error)


def timed(stream: BodyStream, call: TimedCall) -> BodyStream:
    """`stream`, within the deadlines if it is an iterable's; another is here, or has its own."""
    return TimedBody(stream, call) if isinstance(stream, IterableStream) else stream


def timeouts_of(transport: Transport) -> Timeouts:
    """Those of `transport` where it tells them, else the defaults."""
    return transport.config.timeouts if isinstance(transport, PooledTransport) else Timeouts()
