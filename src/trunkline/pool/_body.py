"""The body of a response that holds a lease: read through the exchange, given back at every exit.

This module knows when a lease ends. It does not know how bytes are read or decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from trunkline._contract import Exchange
from trunkline._errors import TransportClosed, TransportError
from trunkline._messages import Timings
from trunkline.pool._pool import Lease, Pool
from trunkline.pool._runtime import Runtime


class LeasedBody:
    """A `BodyStream` on an exchange; the single owner of the lease from the head on."""

    __slots__ = ("_annotate", "_exchange", "_head_at", "_lease", "_pool", "_runtime", "_started",
                 "_timings")  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        lease: Lease,
        pool: Pool,
        runtime: Runtime,
        timings: Timings,
        started: float,
        annotate: Callable[[TransportError], None],
    ) -> None:
        self._exchange = exchange
        self._lease: Lease | None = lease
        self._pool = pool
        self._runtime = runtime
        self._timings = timings
        self._started = started
        self._head_at = monotonic()
        self._annotate = annotate

    async def read(self) -> bytes:
        if self._lease is None:
            return b""
        try:
            piece = await self._exchange.read()
        except TransportError as error:
            self.close()
            self._annotate(error)
            if self._pool.is_closed:
                raise self._closed_under_us() from error
            raise
        except BaseException:
            self.close()
            raise
        if not piece:
            self._end()
        return piece

    def _closed_under_us(self) -> TransportClosed:
        error = TransportClosed("the transport was closed while the body was being read")
        self._annotate(error)
        return error

    def _end(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            now = monotonic()
            self._timings.receive = now - self._head_at
            self._timings.total = now - self._started
            lease.release()

    def close(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            self._exchange.close()
            self._pool.abort(lease)

    def abandon(self) -> None:
        self._runtime.call_soon_threadsafe(self.close)

    def annotate(self, error: TransportError) -> None:
        self._annotate(error)
