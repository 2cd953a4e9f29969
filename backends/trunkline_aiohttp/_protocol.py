"""Every touch of aiohttp below its public surface.

This module knows `TCPConnector.connect`, the connection's protocol (`ResponseHandler`) and what of
them is not documented: `connector._factory`, `ClientRequest`, `set_response_params`, and the names
`_payload`, `_drain_helper` and `_EXC_SENTINEL`. It does not know Trunkline's contract. A test holds
each of these to the behaviour relied on, with the lowest and the newest aiohttp supported.

Why below `ClientSession`: it costs more than all the rest of a request together.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import NEEDS_CLEANUP_CLOSED, Connection as Opened
from aiohttp.helpers import _EXC_SENTINEL  # pyright: ignore[reportPrivateUsage]
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

if TYPE_CHECKING:
    import ssl

    from aiohttp.http import RawResponseMessage
    from aiohttp.streams import StreamReader

    from trunkline.proxy import Proxy
    from trunkline.tcp import Delivery

_READ_BUFFER = 65536  # bytes; reading pauses at twice this
_MOST_BARREN = 262144  # bytes that bring neither a head nor a byte of a body
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)

_addresses: ContextVar[tuple[str, ...]] = ContextVar("addresses")
_sockets: ContextVar[list[socket.socket]] = ContextVar("sockets")
on_protocol_made: ContextVar[Callable[[], None] | None] = ContextVar(
    "on_protocol_made", default=None
)
"""Called when a socket has been connected and its TLS handshake, if any, is about to begin."""


class Handler(ResponseHandler):
    """aiohttp's protocol, made to tell what it knows.

    - Bytes that come while no exchange runs make the connection unusable: aiohttp would keep them
      for the next answer.
    - An error of the connection or the parser reaches the body that is being read; aiohttp tells
      only those who wait for a head, so a bad chunk size in a later packet than the head would hang
      for ever.
    - A reset ends a body that is delimited by the end of the connection with an error.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.is_idle = False  # until the connection is handed over: a proxy may have to answer
        self.delivery: Delivery | None = None
        self.is_untaken = False
        self.received = 0
        self._body: StreamReader | None = None
        self._heads = 0
        self._barren = 0
        self._progress: tuple[int, int] = (0, 0)

    def data_received(self, data: bytes) -> None:
        if self.is_idle and data:
            if self.transport is not None:
                self.transport.abort()
            return
        self.received += len(data)
        super().data_received(data)
        self._barren += len(data)
        if self._barren > _MOST_BARREN:
            self._check_progress()

    def _check_progress(self) -> None:
        """End an endless chunk extension, trailer or head, which the parser would take in."""
        payload: StreamReader | None = self._payload
        progress = self._heads + len(self), 0 if payload is None else payload.total_bytes
        if progress == self._progress and self.transport is not None:
            self.transport.abort()
            self.set_exception(LineTooLong(b"", _MOST_BARREN))
        self._barren, self._progress = 0, progress

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        if exc_cause is not _EXC_SENTINEL and exc.__cause__ is None:
            exc.__cause__ = exc_cause
        payload: StreamReader | None = self._payload
        super().set_exception(exc, exc_cause)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.delivery is not None:
            has_fin = exc is None or isinstance(exc, BrokenPipeError)
            self.is_untaken = self.delivery.is_untaken(has_fin=has_fin)
        payload: StreamReader | None = self._payload
        if exc is not None and payload is not None and not payload.is_eof():
            payload.set_exception(exc)
        super().connection_lost(exc)

    def begin(self, *, without_body: bool) -> None:
        """Expect a response; `without_body`: to a HEAD request."""
        self.is_idle = False
        self.received = self._barren = self._heads = 0
        self._progress = (0, 0)
        self.set_response_params(
            skip_payload=without_body,
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
        )

    async def head(self) -> tuple[RawResponseMessage, StreamReader]:
        """The next response head, 1xx included, and its body."""
        message, payload = await self.read()
        self._heads += 1
        error = self.exception()
        if error is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(error)
        self._body = payload
        return message, payload

    def give_up(self) -> None:
        """The connection is being closed by us: whoever reads the body is to hear of it."""
        body = self._body
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientConnectionError("the connection was closed"))

    async def drain(self) -> None:
        """Wait until the transport's write buffer has room."""
        await self._drain_helper()


class _Resolved(AbstractResolver):
    """Tells aiohttp the addresses that the dial under way has already got."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in _addresses.get()
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def make_connector(
    *,
    limit: int,
    limit_per_host: int,
    keepalive_timeout: float | None,
) -> aiohttp.TCPConnector:
    """A connector on the running loop; 0 means no limit."""
    connector = aiohttp.TCPConnector(
        resolver=_Resolved(),
        use_dns_cache=False,  # trunkline.dns is the cache: see docs/decisions/0005-dns.md
        limit=limit,
        limit_per_host=limit_per_host,
        keepalive_timeout=keepalive_timeout,
        # Elsewhere it is a no-op with a DeprecationWarning.
        enable_cleanup_closed=NEEDS_CLEANUP_CLOSED,
        socket_factory=_make_socket,
    )
    connector._factory = make_handler  # type: ignore[assignment]
    return connector


def make_handler() -> Handler:
    """What the connector makes for each connection."""
    notify = on_protocol_made.get()
    if notify is not None:
        notify()
    return Handler(asyncio.get_running_loop())


def _make_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    _sockets.get().append(made)
    return made


async def open_socket(
    connector: aiohttp.TCPConnector,
    url: str,
    addresses: tuple[str, ...],
    tls: ssl.SSLContext | None,
    proxy: Proxy | None,
) -> Opened:
    """Dial `addresses`: happy eyeballs, proxy and TLS are the connector's."""
    credentials = None if proxy is None else proxy.authorization
    request = ClientRequest(
        "GET",
        URL(url),
        loop=asyncio.get_running_loop(),
        ssl=True if tls is None else tls,
        proxy=None if proxy is None else URL(proxy.url),
        proxy_headers=None if credentials is None else {"Proxy-Authorization": credentials},
    )
    sockets: list[socket.socket] = []
    context = copy_context()
    context.run(_sockets.set, sockets)
    context.run(_addresses.set, addresses)
    loop = asyncio.get_running_loop()
    task = loop.create_task(connector.connect(request, [], _NO_TIMEOUT), context=context)
    try:
        return await asyncio.shield(task)
    except BaseException:
        _end(task, sockets)
        raise


def _end(task: asyncio.Task[Opened], sockets: list[socket.socket]) -> None:
    """End a dial that failed or was cancelled, and see that no socket is left of it.

    A TLS handshake is ended by shutting its socket, which each loop notices in good order; to be
    cancelled in it makes uvloop write to a transport that it has closed.
    """
    was_shut = [_shut(one) for one in sockets]
    if not any(was_shut):
        task.cancel()
    task.add_done_callback(partial(_after_failure, sockets))


def _shut(sock: socket.socket) -> bool:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # not connected yet, or closed
        return False
    return True


def _after_failure(sockets: list[socket.socket], task: asyncio.Task[Opened]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()  # it was done when it was cancelled
    elif not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        # uvloop closes the descriptor of a connection that it could not make, and forgets to tell
        # the socket, which would close the same number once more.
        for one in sockets:
            if one.fileno() >= 0:
                one.detach()


async def open_unix_socket(path: str, tls: ssl.SSLContext | None, host: str) -> Handler:
    """Dial a Unix socket. aiohttp's `UnixConnector` knows no TLS."""
    loop = asyncio.get_running_loop()
    server_hostname = None if tls is None else host
    _, handler = await loop.create_unix_connection(
        make_handler, path, ssl=tls, server_hostname=server_hostname
    )
    return handler
