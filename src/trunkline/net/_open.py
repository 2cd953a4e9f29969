"""Opening streams: TCP to the first address that answers, Unix, and TLS over either.

This module knows sockets, RFC 8305 and what each failure means. It does not know proxies, or what
will be said over a stream.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence

import anyio

from trunkline._config import TransportConfig
from trunkline._contract import Connection, Dial
from trunkline._errors import CertificateError, ConnectError, TLSError, TransportError
from trunkline._urls import Origin
from trunkline.dns import Resolver, interleave
from trunkline.net._streams import SocketStream, Stream, TLSStream
from trunkline.tcp import limit_unsent
from trunkline.tls import LazyContext

_STAGGER = 0.25  # RFC 8305 section 8
_FULL_BACKLOG_PAUSE = 0.01


class StreamDialer:
    """Implements `trunkline.Dialer` for connections that need nothing but a stream.

    Args:
        make_connection: what an open stream becomes.
    """

    def __init__(
        self,
        config: TransportConfig,
        resolver: Resolver,
        tls: LazyContext,
        make_connection: Callable[[Stream], Connection],
    ) -> None:
        self._config, self._resolver, self._tls = config, resolver, tls
        self._make_connection = make_connection

    async def connect(self, origin: Origin, dial: Dial) -> Connection:
        stream = await open_stream(
            origin, dial, config=self._config, resolver=self._resolver, tls=self._tls
        )
        return self._make_connection(stream)

    async def aclose(self) -> None:
        """The connections share nothing that would have to be freed."""


async def open_stream(
    origin: Origin, dial: Dial, *, config: TransportConfig, resolver: Resolver, tls: LazyContext
) -> Stream:
    """Open a stream to `origin`, by `config.uds` if that is set, with TLS if it is https.

    Raises:
        DNSError, ConnectError, TLSError, CertificateError: no socket is left then.
    """
    stream: Stream
    if config.uds is not None:
        dial.begin("connect")
        stream = await open_unix(str(config.uds))
    else:
        stream = await dial_tcp(origin.host, origin.port, dial, resolver)
    return await start_tls(stream, tls.get(), origin.host, dial) if origin.is_tls else stream


async def dial_tcp(host: str, port: int, dial: Dial, resolver: Resolver) -> SocketStream:
    """Look `host` up and connect to it.

    Raises:
        DNSError, ConnectError
    """
    dial.begin("dns")
    addresses = await resolver.resolve(host)
    dial.begin("connect")
    return await open_tcp(addresses, port)


async def start_tls(
    stream: Stream, context: ssl.SSLContext, hostname: str, dial: Dial
) -> TLSStream:
    """Shake hands over `stream`, which is closed if that fails.

    Raises:
        TLSError, ConnectError: with `phase` "tls"; a CertificateError where that is the reason.
    """
    dial.begin("tls")
    try:
        tls = TLSStream(stream, context, hostname)
        await tls.handshake()
    except BaseException as error:
        stream.close()
        failure = opening_error(error)
        if failure is None:
            raise
        failure.phase = "tls"
        raise failure from error
    return tls


def opening_error(error: BaseException) -> TransportError | None:
    """What a failure of a socket or of a handshake means; None for any other."""
    # No message of a library goes into one of ours: it may quote what was sent or received.
    if isinstance(error, TransportError):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        reason: str = getattr(error, "verify_message", "") or "it is not trusted"
        return CertificateError(f"the server's certificate: {reason}")
    if isinstance(error, ssl.SSLError):
        # `reason` is OpenSSL's name of what went wrong, e.g. WRONG_VERSION_NUMBER.
        return TLSError(f"the TLS handshake failed: {getattr(error, 'reason', None) or 'no TLS'}")
    if isinstance(error, (OSError, anyio.ClosedResourceError)):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return ConnectError(f"no connection: {reason}")
    if isinstance(error, ValueError):
        return TLSError("no certificate can be for a host of this name")
    return None


async def open_tcp(addresses: Sequence[str], port: int) -> SocketStream:
    """Connect to one of `addresses`, each tried 250 ms after the one before, or when that failed.

    Raises:
        ConnectError: none could be connected to. The first failure is its cause.
    """
    race = _Race(port)
    if len(addresses) == 1:
        await race.run(addresses[0])
    else:
        await race.start(interleave(addresses))
    if race.winner is None:
        cause = race.failures[0]
        raise ConnectError(f"TCP port {port}: {cause.strerror}") from cause
    return race.winner


class _Race:
    """Connections being opened to several addresses: the first wins, the others are closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._scope = anyio.CancelScope()
        self.winner: SocketStream | None = None
        self.failures: list[OSError] = []

    async def start(self, addresses: Sequence[str]) -> None:
        try:
            async with anyio.create_task_group() as group:
                self._scope = group.cancel_scope
                for address in addresses:
                    failed = anyio.Event()
                    group.start_soon(self.run, address, failed)
                    with anyio.move_on_after(_STAGGER):
                        await failed.wait()
        except BaseException:
            if self.winner is not None:
                self.winner.close()
            raise

    async def run(self, address: str, failed: anyio.Event | None = None) -> None:
        try:
            stream = await _connect(address, self._port)
        except OSError as error:
            self.failures.append(error)
            if failed is not None:
                failed.set()
            return
        if self.winner is None:
            self.winner = stream
            self._scope.cancel()
        else:
            stream.close()


async def _connect(address: str, port: int) -> SocketStream:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, kind, protocol, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=numeric
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit_unsent(sock)
        code = sock.connect_ex(where)
        if code == errno.EINPROGRESS:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0 and sock.getsockname() == sock.getpeername():
            code = errno.ECONNREFUSED  # nobody listens, and TCP has connected us to ourselves
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    host = f"[{address}]" if family == socket.AF_INET6 else address
    return SocketStream(sock, f"{host}:{port}")


async def open_unix(path: str) -> SocketStream:
    """Connect to a Unix socket.

    Raises:
        ConnectError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while (code := sock.connect_ex(path)) == errno.EAGAIN:  # noqa: ASYNC110
            # The backlog is full, and nothing tells us when it no longer is.
            await anyio.sleep(_FULL_BACKLOG_PAUSE)
        if code:
            cause = OSError(code, os.strerror(code))
            raise ConnectError(f"Unix socket: {cause.strerror}") from cause
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock, None)
