"""A backend that blocks: urllib3, each step of it in a thread.

A stranger's, in the sense that Trunkline knows nothing of it but its entry point. It opens
connections and runs one exchange on each; all the rest is the pool's.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.client import HTTPException
from typing import Any, TypeVar

import anyio
from anyio import from_thread, to_thread
from multidict import CIMultiDict, CIMultiDictProxy
from urllib3 import HTTPHeaderDict, exceptions
from urllib3.connection import HTTPConnection
from urllib3.util import SKIP_HEADER

import trunkline
from trunkline import Attempt, Dial, Origin, Request
from trunkline.dns import Resolver
from trunkline.pool import PooledTransport
from trunkline.tls import LazyContext

T = TypeVar("T")

_OF_THE_WIRE = (OSError, HTTPException, exceptions.HTTPError, ValueError, OverflowError)


class Urllib3Transport(PooledTransport):
    """Trunkline's transport on urllib3, in threads, on asyncio and trio."""

    capabilities = trunkline.Capabilities(name="urllib3", trio=True)

    def __init__(self, config: trunkline.TransportConfig | None = None) -> None:
        super().__init__(config)
        self._tls = LazyContext(self.config.tls)

    def make_dialer(self, resolver: Resolver) -> Dialer:
        return Dialer(self._tls, resolver)


class Dialer:
    """Implements `trunkline.Dialer`."""

    def __init__(self, tls: LazyContext, resolver: Resolver) -> None:
        self._tls, self._resolver = tls, resolver
        self._threads = anyio.CapacityLimiter(1000)  # the pool bounds them, not anyio

    async def connect(self, origin: Origin, dial: Dial) -> Connection:
        dial.begin("dns")
        addresses = await self._resolver.resolve(origin.host)
        dial.begin("connect")
        sock = await self._open(addresses, origin.port)
        if origin.is_tls:
            dial.begin("tls")
            sock = await self._start_tls(sock, origin.host)
        try:
            return Connection(sock, self._threads)
        except OSError as error:  # the peer has gone already
            end(sock)
            raise trunkline.ConnectError("the connection was ended") from error

    async def _open(self, addresses: tuple[str, ...], port: int) -> socket.socket:
        error: Exception = OSError("no address")
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family)
            try:
                await self._run(sock, sock.connect, (address, port))
            except OSError as failed:
                error = failed
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        raise trunkline.ConnectError("the connection failed") from error

    async def _start_tls(self, sock: socket.socket, host: str) -> socket.socket:
        context = self._tls.get()
        try:
            tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            await self._run(tls, tls.do_handshake)
        except OSError as error:
            end(sock)
            bad = isinstance(error, ssl.SSLCertVerificationError)
            kind = trunkline.CertificateError if bad else trunkline.TLSError
            raise kind("the TLS handshake failed", phase="tls") from error
        return tls

    async def _run(self, sock: socket.socket, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await in_thread(function, *arguments, limiter=self._threads)
        except BaseException:
            end(sock)
            raise

    async def aclose(self) -> None:
        """The connections share nothing."""


class Connection:
    """Implements `trunkline.Connection`: urllib3's, on a socket that is open."""

    http_version, max_exchanges = "HTTP/1.1", 1

    def __init__(self, sock: socket.socket, threads: anyio.CapacityLimiter) -> None:
        host, port = sock.getpeername()[:2]
        self.peer: str | None = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._inner = HTTPConnection("origin")
        self._inner.sock = self._sock = sock
        self._threads = threads

    def is_usable(self) -> bool:
        try:
            self._sock.settimeout(0.0)
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):  # open, and nothing has come unasked
            self._sock.settimeout(None)
            return self._inner.sock is not None
        except OSError:
            return False
        return False

    def close(self) -> None:
        end(self._sock)
        self._inner.close()

    async def exchange(self, request: Request, attempt: Attempt) -> Exchange:
        attempt.begin("write")
        try:
            await self.wait(attempt, self._send, request, attempt)
            attempt.begin("headers")
            return Exchange(self, await self.wait(attempt, self._inner.getresponse), attempt)
        except BaseException:
            self.close()
            raise

    async def wait(self, attempt: Attempt, function: Callable[..., T], *arguments: Any) -> T:
        """Run what blocks in a thread; who is cancelled leaves it, and closing ends it."""
        try:
            return await attempt.wait(in_thread(function, *arguments, limiter=self._threads))
        except trunkline.TransportError:  # a deadline, which is an OSError too
            raise
        except _OF_THE_WIRE as error:
            raise translate(error, attempt) from error

    def _send(self, request: Request, attempt: Attempt) -> None:
        headers = HTTPHeaderDict({"User-Agent": SKIP_HEADER, "Accept-Encoding": SKIP_HEADER})
        for name in ("User-Agent", "Accept-Encoding"):
            if name in request.headers:
                del headers[name]
        for name, value in request.wire_headers():
            headers.add(name, value.strip().encode("utf-8", "surrogateescape").decode("latin-1"))
        send = self._inner.send

        def count(data: bytes) -> None:
            send(data)
            attempt.bytes_sent += len(data)

        self._inner.send = count  # type: ignore[method-assign, assignment]
        body = request.content if request.is_rewindable else pieces(request, attempt)
        self._inner.request(request.method, request.path, body=body, headers=headers,  # type: ignore[arg-type]
                            preload_content=False, decode_content=False)  # fmt: skip
        self._inner.send = send  # type: ignore[method-assign]


class Exchange:
    """Implements `trunkline.Exchange`."""

    def __init__(self, connection: Connection, response: Any, attempt: Attempt) -> None:
        attempt.response_started = True
        self.status_code, self.reason_phrase = response.status, response.reason
        self.http_version = f"HTTP/{response.version / 10}"
        self.raw_headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in response.headers.items()
        )
        self.headers = CIMultiDictProxy(CIMultiDict(
            (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
            for name, value in self.raw_headers))  # fmt: skip
        if response.status == 101:
            raise trunkline.RemoteProtocolError("the peer switched to another protocol")
        self._connection, self._attempt, self._is_over = connection, attempt, False
        self._pieces: Iterator[bytes] = (
            response.read_chunked(decode_content=False)
            if response.chunked
            else iter(lambda: response.read1(65536, decode_content=False), b"")
        )

    async def read(self) -> bytes:
        if self._is_over:
            return b""
        self._attempt.begin("body")
        try:
            piece = await self._connection.wait(self._attempt, self._next)
        except BaseException:
            self.close()
            raise
        self._is_over = not piece
        return piece

    def _next(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._connection.close()


def in_thread(
    function: Callable[..., T], *arguments: Any, limiter: anyio.CapacityLimiter
) -> Awaitable[T]:
    """Await what blocks; who is cancelled does not wait for it."""
    return to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=limiter)


def pieces(request: Request, attempt: Attempt) -> Iterator[bytes]:
    """In a thread: the body that the caller's loop produces."""
    iterator = request.pieces()
    while True:
        from_thread.run_sync(attempt.begin, "request")
        piece: Any = from_thread.run(_next, iterator)
        from_thread.run_sync(attempt.begin, "write")
        if piece is None:
            return
        if not isinstance(piece, bytes):
            raise trunkline.InvalidRequest("content: the iterable has to produce bytes")
        if piece:
            yield piece


async def _next(iterator: AsyncIterator[bytes]) -> bytes | None:
    return await anext(iterator, None)


def translate(error: Exception, attempt: Attempt) -> trunkline.TransportError:
    """Trunkline's error for one of the wire."""
    cause = error.args[-1] if isinstance(error, exceptions.ProtocolError) else error
    is_cut = isinstance(cause, (OSError, exceptions.IncompleteRead, str))
    if not is_cut or (
        isinstance(cause, exceptions.InvalidChunkLength) and cause.length
    ):  # a chunk size that is none
        attempt.response_started = True
        return trunkline.RemoteProtocolError("the response is not valid HTTP")
    if attempt.response_started:
        return trunkline.BodyTruncated("the connection ended inside the response")
    return trunkline.RemoteDisconnected("the connection ended before the response")


def end(sock: socket.socket) -> None:
    """Close a socket that a thread may be waiting on: the thread is woken."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
