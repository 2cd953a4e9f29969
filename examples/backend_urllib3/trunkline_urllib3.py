"""A backend on a library that blocks: urllib3, each step of it in a thread.

A stranger's, in the sense that Trunkline knows nothing of it but its entry point. What urllib3
takes for its socket is a wire of Trunkline's: the thread waits there for the event loop, so every
deadline holds, and a call that is cancelled ends its thread.
"""

from __future__ import annotations

import io
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import anyio
from anyio import from_thread, to_thread
from urllib3 import HTTPHeaderDict
from urllib3.connection import HTTPConnection
from urllib3.util import SKIP_HEADER

import trunkline
from trunkline import Attempt, Dial, Origin, Request
from trunkline.dns import Resolver
from trunkline.http1 import RequestContent, Wire, WireExchange, wire_fields
from trunkline.net import Stream, open_stream
from trunkline.pool import PooledTransport
from trunkline.tls import LazyContext

T = TypeVar("T")


class Urllib3Transport(PooledTransport):
    """Trunkline's transport on urllib3, in threads, on asyncio and trio."""

    capabilities = trunkline.Capabilities(name="urllib3", trio=True, uds=True)

    def __init__(self, config: trunkline.TransportConfig | None = None) -> None:
        super().__init__(config)
        self._tls = LazyContext(self.config.tls)

    def make_dialer(self, resolver: Resolver) -> Dialer:
        return Dialer(self.config, resolver, self._tls)


class Dialer:
    """Implements `trunkline.Dialer`."""

    def __init__(
        self, config: trunkline.TransportConfig, resolver: Resolver, tls: LazyContext
    ) -> None:
        self._config, self._resolver, self._tls = config, resolver, tls
        self._threads = anyio.CapacityLimiter(1000)  # the pool bounds them, not anyio

    async def connect(self, origin: Origin, dial: Dial) -> Connection:
        stream = await open_stream(
            origin, dial, config=self._config, resolver=self._resolver, tls=self._tls
        )
        return Connection(stream, self._threads)

    async def aclose(self) -> None:
        """The connections share nothing that would have to be freed."""


class Connection:
    """Implements `trunkline.Connection`."""

    http_version, max_exchanges = "HTTP/1.1", 1

    def __init__(self, stream: Stream, threads: anyio.CapacityLimiter) -> None:
        self.peer, self.ssl_object = stream.peer, stream.ssl_object
        self._wire, self._threads = Wire(stream), threads

    def is_usable(self) -> bool:
        return self._wire.is_fit()

    def close(self) -> None:
        self._wire.close()

    async def exchange(self, request: Request, attempt: Attempt) -> WireExchange:
        urllib3 = HTTPConnection("origin")
        sock: Any = Socket(self._wire)
        urllib3.sock = sock
        try:
            async with self._wire.upload(request, attempt) as content:
                await self._in_thread(send, urllib3, request, content)
            head = await self._wire.head()
            sock.held = head.raw
            response: Any = await self._in_thread(urllib3.getresponse)
        except BaseException:
            self.close()
            raise

        async def read() -> bytes:
            piece: bytes = await self._in_thread(response.read1, 65536)
            return piece

        return WireExchange(self._wire, head, attempt, read)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what blocks, in a task of its own: however we are cancelled, it ends before us."""
        outcome: list[T] = []
        failure: list[Exception] = []

        async def run() -> None:
            try:
                outcome.append(
                    await to_thread.run_sync(function, *arguments, limiter=self._threads)
                )
            except Exception as error:  # noqa: BLE001  # it is raised below: the group would wrap it
                failure.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
        for error in failure:
            raise error
        return outcome[0]


def send(urllib3: HTTPConnection, request: Request, content: RequestContent) -> None:
    """In a thread: send `request`."""
    headers = HTTPHeaderDict()
    for name in ("User-Agent", "Accept-Encoding"):  # urllib3 would add its own
        if name not in request.headers:
            headers[name] = SKIP_HEADER
    for field, value in wire_fields(request):
        headers.add(field.decode(), value.decode("latin-1"))
    body = None if request.content is None else pieces(content)
    urllib3.request(
        request.method, request.path, body, headers, preload_content=False, decode_content=False
    )


async def in_loop(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """What a thread waits for. It is cancelled with the call, but not if it begins too late."""
    if anyio.current_effective_deadline() == -math.inf:
        raise anyio.ClosedResourceError
    return await function(*arguments)


def pieces(content: RequestContent) -> Iterator[bytes]:
    """In a thread: the body, which the caller's loop produces."""

    async def next_piece() -> bytes:
        return await anext(content, b"")

    while piece := from_thread.run(in_loop, next_piece):
        yield piece


class Socket(io.RawIOBase):
    """In a thread: what urllib3 takes for its socket, for one exchange."""

    type = socket.SOCK_STREAM

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.held = b""

    def sendall(self, data: bytes) -> None:
        from_thread.run(in_loop, self._wire.send, data)

    def recv(self, size: int) -> bytes:
        data = self.held or from_thread.run(in_loop, self._wire.body)
        self.held = data[size:]
        return data[:size]

    def readinto(self, buffer: Any) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def makefile(self, mode: str, buffering: int = -1) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        """The wire is the connection's, which closes it."""

    def settimeout(self, seconds: float | None) -> None:
        """The wire has the deadlines."""

    def gettimeout(self) -> None:
        """It never blocks longer than they allow."""

    def getsockopt(self, *_: int) -> int:
        raise io.UnsupportedOperation("this socket has no options")

    def getpeername(self) -> tuple[str, int]:
        return "origin", 80
