"""A backend on a library that blocks: urllib3, each step of it in a thread.

A stranger's, in the sense that Trunkline knows nothing of it but its entry point. What urllib3
takes for its socket is a wire of Trunkline's, where the thread waits for the event loop: so every
deadline holds, and a call that is cancelled ends its thread.
"""

from __future__ import annotations

import io
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio import from_thread, to_thread
from urllib3 import HTTPHeaderDict
from urllib3.connection import HTTPConnection
from urllib3.util import SKIP_HEADER

import trunkline
from trunkline import Attempt, Request
from trunkline.dns import Resolver
from trunkline.http1 import RequestContent, Wire, WireExchange, wire_fields
from trunkline.net import Stream, StreamDialer
from trunkline.pool import PooledTransport
from trunkline.tls import LazyContext

T = TypeVar("T")


class Urllib3Transport(PooledTransport):
    """Trunkline's transport on urllib3, in threads, on asyncio and trio."""

    capabilities = trunkline.Capabilities(name="urllib3", trio=True, uds=True)

    def __init__(self, config: trunkline.TransportConfig | None = None) -> None:
        super().__init__(config)
        self._tls = LazyContext(self.config.tls)

    def make_dialer(self, resolver: Resolver) -> StreamDialer:
        threads = anyio.CapacityLimiter(1000)  # the pool bounds them, not anyio
        return StreamDialer(self.config, resolver, self._tls, partial(Connection, threads=threads))


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
        urllib3: Any = HTTPConnection("origin")
        urllib3.sock = Socket(self._wire)
        try:
            async with self._wire.upload(request, attempt) as content:
                await self._in_thread(send, urllib3, request, content)
            head = await self._wire.head()
            urllib3.sock.held = head.raw
            response = await self._in_thread(urllib3.getresponse)
        except BaseException:
            self.close()
            raise
        read = partial(self._in_thread, response.read1, 65536)
        return WireExchange(self._wire, head, attempt, read)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run what blocks, in a task of its own: however we are cancelled, it ends before us."""
        outcome: list[Any] = []

        async def run() -> None:
            try:
                limiter = self._threads
                outcome.append(await to_thread.run_sync(function, *arguments, limiter=limiter))
            except Exception as error:  # noqa: BLE001  # raised below: the group would wrap it
                outcome.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not outcome:  # not the call was cancelled, but what its body was waiting for
            raise anyio.get_cancelled_exc_class()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]


async def in_loop(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """What a thread waits for. It is cancelled with the call, but not if it begins too late."""
    if anyio.current_effective_deadline() == -math.inf:
        raise anyio.ClosedResourceError
    return await function(*arguments)


# -- in a thread -----------------------------------------------------------------------------------


def send(urllib3: HTTPConnection, request: Request, content: RequestContent) -> None:
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


def pieces(content: RequestContent) -> Iterator[bytes]:
    """The body, which the caller's loop produces."""
    next_piece = partial(anext, content, b"")
    while piece := from_thread.run(in_loop, next_piece):
        yield piece


class Socket(io.RawIOBase):
    """What urllib3 takes for its socket, for one exchange."""

    type = socket.SOCK_STREAM

    def __init__(self, wire: Wire) -> None:
        self._wire, self.held = wire, b""

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

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        """The wire is the connection's, which closes it."""

    def settimeout(self, seconds: float | None) -> None:
        """The wire has the deadlines."""

    # urllib3-future, which takes urllib3's place where it is installed, asks for these too.

    def gettimeout(self) -> float | None:
        return None

    def getsockopt(self, *_: int) -> int:
        raise io.UnsupportedOperation("this socket has no options")
