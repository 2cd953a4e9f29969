"""The body of a response that holds a lease: read through the exchange, given back at every exit.

This module knows when a lease ends, and which bodies nobody reads. It does not know how bytes are
read or decoded.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING

from trunkline._contract import Exchange
from trunkline._errors import ReadError, TransportClosed, TransportError
from trunkline._urls import Origin
from trunkline.pool._log import tell

if TYPE_CHECKING:
    from trunkline.pool._call import Call

logger = logging.getLogger("trunkline.leaks")

_DONE = b"data: [DONE]\n\n"
_DONE_SECONDS = 0.1  # for the few bytes that end the body


class LeasedBody:
    """A `BodyStream` on an exchange; the single owner of the lease from the head on."""

    __slots__ = ("__weakref__", "_call", "_exchange", "_failure", "_last", "_lease",
                 "head_at", "is_over")  # fmt: skip

    def __init__(self, exchange: Exchange, call: Call) -> None:
        self._exchange = exchange
        self._call = call
        self._lease = call.lease
        self._failure: TransportError | None = None
        self._last = b""
        self.head_at = monotonic()
        self.is_over = False

    async def read(self) -> bytes:
        if self.is_over:
            return b""
        home = self._call.home
        if self._lease is None or home.pool.is_closed:
            raise self._no_longer_ours()
        try:
            if home.leaks is not None:
                piece = await home.leaks.watched(self, self._exchange.read)
            else:
                piece = await self._exchange.read()
        except TransportError as error:
            self._call.annotate(error)
            if home.pool.is_closed:
                closed = self._no_longer_ours()
                self._give_up(closed)
                raise closed from error
            self._give_up(error)
            raise
        except BaseException as error:
            self._give_up(error)
            raise
        if not piece or getattr(self._exchange, "is_over", False):
            self._end()
        self._last = piece
        return piece

    def take_rest(self) -> bytes | None:
        """What is left, if all of it is here: most answers that are no streams. Else None."""
        take_rest = getattr(self._exchange, "take_rest", None)
        if take_rest is None or self._lease is None or self._call.home.pool.is_closed:
            return None
        rest: bytes | None = take_rest()
        if rest is not None:
            self._end()
        return rest

    def _no_longer_ours(self) -> TransportError:
        error: TransportError
        if self._call.home.pool.is_closed:
            error = TransportClosed("the transport was closed while the body was being read")
        else:
            error = ReadError("the response was not read for leak_after seconds, and taken back")
        self.annotate(error)
        return error

    def _end(self) -> None:
        lease, self._lease = self._lease, None
        self.is_over = True
        if lease is not None:
            now, call = monotonic(), self._call
            call.end()
            call.timings.receive = now - self.head_at
            call.timings.total = now - call.started
            lease.release(now)
            if call.watch is not None or call.home.leaks is not None:
                self._tell_end()

    def _tell_end(self, error: BaseException | None = None) -> None:
        call = self._call
        if call.home.leaks is not None:
            call.home.leaks.forget(self)
        watch, call.watch = call.watch, None
        if watch is None:
            return
        if error is not None:
            watch.fail(error)
        else:
            watch.end("request")

    def _give_up(self, error: BaseException | None) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            self._exchange.close()
            self._call.end()
            self._call.home.pool.abort(lease)
            self._tell_end(error)

    async def aclose(self) -> None:
        """Close; keep the connection if the end of the body is here, or just behind `[DONE]`.

        A reader of OpenAI's streams stops at that line, and what ends the body is left unread.
        """
        home = self._call.home
        is_ours = self._lease is not None and not home.pool.is_closed
        if not (is_ours and self._last and home.runtime.is_running()):
            self.close()
            return
        try:
            with home.runtime.scope(_DONE_SECONDS if self._last.endswith(_DONE) else 0.0):
                await self.read()
        except TransportError:
            return  # it has been closed
        finally:
            self.close()

    def close(self) -> None:
        self._give_up(self._failure)

    def reclaim(self) -> None:
        """Take the connection back from a caller who does not read."""
        self._give_up(self._no_longer_ours())

    def abandon(self) -> None:
        self._call.home.runtime.call_soon_threadsafe(self._reclaim_dropped)

    def _reclaim_dropped(self) -> None:
        if self._lease is not None:
            report(self, "was dropped without being closed", self._call.home.leaks)
            self.close()

    def annotate(self, error: TransportError) -> None:
        self._failure = error
        self._call.annotate(error)


class _Open:
    """A body that is open: since when nobody reads it (None while somebody does), and whose."""

    __slots__ = ("origin", "stack", "unread_since")

    def __init__(self, origin: Origin, stack: str) -> None:
        self.origin = origin
        self.stack = stack
        self.unread_since: float | None = monotonic()


class Leaks:
    """The open bodies of one pool; finds those that nobody reads.

    Args:
        after: seconds without a read after which a body is taken back; None for never.
        with_stack: remember where each was opened.
    """

    def __init__(self, after: float | None, *, with_stack: bool) -> None:
        self._after = after
        self._with_stack = with_stack
        self._open: dict[LeasedBody, _Open] = {}

    def add(self, body: LeasedBody, origin: Origin) -> None:
        stack = "".join(traceback.format_stack(limit=12)[:-4]) if self._with_stack else ""
        self._open[body] = _Open(origin, stack)

    def forget(self, body: LeasedBody) -> None:
        self._open.pop(body, None)

    def about(self, body: LeasedBody) -> _Open | None:
        return self._open.get(body)

    async def watched(self, body: LeasedBody, read: Callable[[], Awaitable[bytes]]) -> bytes:
        entry = self._open.get(body)
        if entry is None:
            return await read()
        entry.unread_since = None
        try:
            return await read()
        finally:
            entry.unread_since = monotonic()

    def reclaim(self) -> float | None:
        """Take back what nobody reads; return the seconds until the next may be due."""
        if self._after is None:
            return None
        now, next_due = monotonic(), self._after
        for body, entry in list(self._open.items()):
            if entry.unread_since is None:
                continue
            left = entry.unread_since + self._after - now
            if left <= 0:
                report(body, f"has not been read for {self._after:g} s", self)
                body.reclaim()
            else:
                next_due = min(next_due, left)
        return next_due


def report(body: LeasedBody, what: str, leaks: Leaks | None) -> None:
    """Log a leaked response, with where it was opened if that is known."""
    entry = leaks.about(body) if leaks is not None else None
    origin = f" from {entry.origin}" if entry is not None else ""
    stack = (
        f"; it was opened at:\n{entry.stack}"
        if entry is not None and entry.stack
        else ("; leak_stack=True tells where it was opened")
    )
    message = "a response%s %s; its connection is taken back%s"
    tell(logger.warning, message, origin, what, stack)
