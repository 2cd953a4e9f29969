"""A TCP relay on loopback that makes a near server look a round trip away.

Knows bytes, the end of a stream, resets, and time. Does not know HTTP, TLS, or who is talking.

Every byte is stamped on arrival and delivered half a round trip later, in order, as is the end of
the stream (FIN) and a reset (RST). Many chunks may be under way at once: the relay adds latency,
it does not emulate bandwidth, loss, or congestion control. A `connect()` to loopback returns at
once, so the round trip that a TCP handshake costs is charged to the first bytes instead: nothing
counts as sent before the handshake would have been over. A client that times its phases therefore
sees that round trip in the TLS handshake and not in `connect`; the sum of the two is right.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import threading
from collections import deque
from types import TracebackType
from typing import cast

_MAX_HELD = 4 * 1024 * 1024
"""Bytes one direction of one connection may hold before its sender is no longer read."""

_LINGER_NONE = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of zero: `close()` sends RST (POSIX; Linux `socket(7)`)."""


class _Signal(enum.Enum):
    FIN = "fin"
    RESET = "reset"


class _Line:
    """One direction of a connection: what `source` receives, `sink` is given `delay` s later.

    Held still until the sink can be written to. Reads nothing more from the source while it
    holds more than `_MAX_HELD` bytes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float, not_before: float) -> None:
        self._loop = loop
        self._delay = delay
        self._not_before = not_before
        self._under_way: deque[tuple[float, bytes | _Signal]] = deque()
        self._held = 0
        self._blocked = True
        self._dropped = False
        self._timer: asyncio.TimerHandle | None = None
        self.source: _End
        self.sink: _End
        self.ended = False
        """The sink was told that nothing more will come."""

    def push(self, item: bytes | _Signal) -> None:
        """Stamp `item` and send it on its way."""
        if self._dropped:
            return
        stamp = max(self._loop.time(), self._not_before)
        self._under_way.append((stamp + self._delay, item))
        if not isinstance(item, _Signal):
            self._held += len(item)
            if self._held > _MAX_HELD:
                self.source.transport.pause_reading()
        self._arm()

    def block(self) -> None:
        """The sink takes no more for now."""
        self._blocked = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def unblock(self) -> None:
        """The sink takes bytes (again)."""
        self._blocked = False
        self._arm()

    def drop(self) -> None:
        """The sink is gone: what is still under way will never arrive."""
        self._dropped = True
        self._under_way.clear()
        self.block()

    def _takes_more(self) -> bool:
        # A write may find the sink gone before the loop has had the time to say so.
        return bool(self._under_way) and not self._blocked and not self.sink.transport.is_closing()

    def _arm(self) -> None:
        if self._timer is None and not self._blocked and self._under_way:
            self._timer = self._loop.call_at(self._under_way[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._takes_more() and self._under_way[0][0] <= now:
            item = self._under_way.popleft()[1]
            if isinstance(item, _Signal):
                self.ended = True
                self.sink.end(item)
            else:
                self._held -= len(item)
                self.sink.transport.write(item)
        if self._held <= _MAX_HELD // 2 and not self.ended:
            self.source.transport.resume_reading()
        self._arm()


class _End(asyncio.Protocol):
    """One of the two sockets of a relayed connection."""

    def __init__(self, outbound: _Line, inbound: _Line, ends: set[_End]) -> None:
        self.transport: asyncio.Transport
        self._outbound = outbound
        self._inbound = inbound
        self._ends = ends
        outbound.source = self
        inbound.sink = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ends.add(self)
        self._inbound.unblock()

    def data_received(self, data: bytes) -> None:
        self._outbound.push(data)

    def eof_received(self) -> bool:
        self._outbound.push(_Signal.FIN)
        return True  # half-open: the other direction may still have much to say

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.discard(self)
        self._inbound.drop()
        if exc is not None:  # None: the relay itself closed this end
            self._outbound.push(_Signal.RESET)

    def pause_writing(self) -> None:
        self._inbound.block()

    def resume_writing(self) -> None:
        self._inbound.unblock()

    def end(self, signal: _Signal) -> None:
        """Pass on how the other side ended; close when both directions have."""
        if signal is _Signal.RESET:
            self.reset()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # Reset since it ended its own stream; asyncio looks no more at a socket after that.
            self._outbound.push(_Signal.RESET)
            self.transport.abort()
            return
        if self._outbound.ended:
            self.transport.close()
            self._outbound.sink.transport.close()

    def reset(self) -> None:
        """Close at once, so that the peer sees RST rather than FIN."""
        sock = cast(socket.socket, self.transport.get_extra_info("socket"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.transport.abort()


class Relay:
    """Relays TCP connections to `host:port`, `rtt` seconds away, from a thread of its own.

    Use as a context manager. Listens on a free port of 127.0.0.1 while open; closing resets what
    is still connected. A target that refuses is seen by the client as a reset, one round trip
    after it connected. Raises ValueError for a negative `rtt`.
    """

    def __init__(self, host: str, port: int, *, rtt: float) -> None:
        if not 0.0 <= rtt < float("inf"):
            raise ValueError(f"rtt: must be zero or more seconds, not {rtt}")
        self._target = (host, port)
        self._rtt = rtt
        self._ends: set[_End] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trunkline-relay", daemon=True)
        self._failure: OSError | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.port = 0
        """The port to connect to, on 127.0.0.1."""
        self.connections = 0
        """TCP connections accepted since the start, or the last `reset()`."""

    def __enter__(self) -> Relay:
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def reset(self) -> None:
        """Count connections from zero again."""
        self.connections = 0

    def _run(self) -> None:
        # The loop is named: a policy that the application installed is not the relay's business.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            server = await self._loop.create_server(self._accept, "127.0.0.1", 0)
        except OSError as failure:
            self._failure = failure
            return
        else:
            self.port = server.sockets[0].getsockname()[1]
        finally:
            self._listening.set()
        await self._stop.wait()
        server.close()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for end in tuple(self._ends):
            end.reset()
        await asyncio.sleep(0)  # lets the loop close the sockets just aborted

    def _accept(self) -> _End:
        self.connections += 1
        now, half = self._loop.time(), self._rtt / 2
        # A client speaks when the SYN-ACK is back, a server when the ACK of that has arrived.
        there = _Line(self._loop, half, not_before=now + self._rtt)
        back = _Line(self._loop, half, not_before=now + self._rtt + half)
        near, far = _End(there, back, self._ends), _End(back, there, self._ends)
        dial = self._loop.create_task(self._dial(far, back))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)
        return near

    async def _dial(self, far: _End, back: _Line) -> None:
        try:
            await self._loop.create_connection(lambda: far, *self._target)
        except OSError:
            back.push(_Signal.RESET)
