"""Every touch of aiohttp below its public surface.

This module knows `TCPConnector.connect`, the connection's protocol (`ResponseHandler`), the bodies
it makes (`StreamReader`) and what of them is not documented: `connector._factory`,
`_get_ssl_context`, `ClientRequest`, `set_response_params`, `_drain_helper`, `_EXC_SENTINEL`, and
the attributes in which the two keep what they have received. It does not know Trunkline's contract.
A test holds each of these to the behaviour relied on, with the lowest and the newest aiohttp
supported.

Why below `ClientSession`: it costs more than all the rest of a request together.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import NEEDS_CLEANUP_CLOSED, Connection as Opened
from aiohttp.helpers import _EXC_SENTINEL, EMPTY_BODY_STATUS_CODES, TimerNoop
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from yarl import URL

from trunkline.tcp import limit_unsent
from trunkline_aiohttp._reads import Reader, read_alone, read_for

if TYPE_CHECKING:
    from aiohttp.http import RawResponseMessage

    from trunkline.proxy import Proxy
    from trunkline.tcp import Delivery
    from trunkline_aiohttp._reads import Reads

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s
_READ_BUFFER = 131072  # bytes; reading pauses at twice this
_END = b"\r\n\r\n"  # of a message that does not end with bytes of its body
_END_SIZE = len(_END)
_OF_THREE_DIGITS = 2 + 0xFF + 2 + 3  # bytes of a chunk, with all that is around its data
_MOST_BARREN = 262144  # bytes that bring neither a head nor a byte of a body
_NO_TIMER = TimerNoop()  # bodies would make one each
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)

_addresses: ContextVar[tuple[str, ...]] = ContextVar("addresses")
_sockets: ContextVar[list[socket.socket]] = ContextVar("sockets")
_proxy_tls: ContextVar[ssl.SSLContext | None] = ContextVar("proxy_tls", default=None)
on_protocol_made: ContextVar[Callable[[], None] | None] = ContextVar(
    "on_protocol_made", default=None
)
"""Called when a socket has been connected and its TLS handshake, if any, is about to begin."""


class Body(StreamReader):
    """aiohttp's body, which tells the protocol where chunks begin and end.

    It does not remember where each ended, for `readchunk`, which nobody calls.
    """

    __slots__ = ()
    _protocol: Handler

    def begin_http_chunk_receiving(self) -> None:
        self._protocol.is_between_chunks = False
        if self._http_chunk_splits is None:
            super().begin_http_chunk_receiving()

    def end_http_chunk_receiving(self) -> None:
        self._protocol.is_between_chunks = True
        if len(self._buffer) > self._high_water_chunks:
            self._protocol.pause_reading()


class Handler(ResponseHandler, Reader):
    """aiohttp's protocol, made to tell what it knows, and to do no more than an exchange needs.

    Until `hand_over` it is aiohttp's own: a proxy may have to be talked to. From then on:

    - One parser serves all exchanges of a kind; aiohttp makes one for each.
    - Bytes that come while no exchange runs, or behind the end of a response, make the connection
      unusable: aiohttp would keep them for the next answer.
    - An error of the connection or the parser reaches the body that is being read; aiohttp tells
      only those who wait for a head, so a bad chunk size in a later packet than the head would hang
      for ever.
    - A reset ends a body that is delimited by the end of the connection with an error, and so does
      an end of TLS without close_notify.
    - A chunk that comes by itself to a reader who waits for it, as each event of most streams does,
      goes past the parser: see `_pass_on`.
    """

    # aiohttp's own attributes are in a dict, which is larger and slower with more than 30 in it.
    __slots__ = ("_barren", "_has_final", "_is_ours", "_last_piece", "_progress", "_recent", "_tls",
                 "delivery", "heads", "is_between_chunks", "is_idle", "is_streaming", "is_untaken",
                 "received")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._is_ours = self.is_idle = self.is_streaming = False
        self.delivery: Delivery | None = None
        self._tls: ssl.SSLObject | None = None
        self.is_untaken = self.is_between_chunks = False
        self.received = 0
        self._has_final = False
        self.heads = 0
        self._recent = b""  # what came last of the response, before what has just come
        self._last_piece = b""  # of the body, that has come
        self._barren = 0
        self._progress: tuple[int, int] = (0, 0)

    def hand_over(self, delivery: Delivery, reads: Reads | None) -> None:
        """The connection is open, to the origin or to a proxy that forwards.

        `reads`: see `trunkline_aiohttp._reads`.
        """
        self._is_ours = self.is_idle = True
        self._parser = None
        self.delivery = delivery
        if self.transport is not None:
            self._tls = self.transport.get_extra_info("ssl_object")
            read_for(self, self.transport, reads)

    # -- what the event loop and aiohttp call ------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.is_between_chunks and self._pass_on(data):
            return
        size = len(data)
        if not self._is_ours:
            self.received += size
            if self.received <= _MOST_BARREN:
                super().data_received(data)
            elif self.transport is not None:
                self.transport.abort()
                self.set_exception(LineTooLong(b"", _MOST_BARREN))
            return
        if self.is_idle:
            if data and self.transport is not None:
                self.transport.abort()
            return
        parser: Any = self._parser
        if parser is None:
            return  # it has failed before
        self.received += size
        try:
            if not self._has_final and _has_bare_cr(self._recent[-3:] + data):
                raise BadHttpMessage("a CR without LF in the head")
            messages, _, _ = parser.feed_data(data)
        except BaseException as error:
            self._refuse(error)
            if not isinstance(error, Exception):
                raise
            return
        for message, body in messages:
            self._accept(message, body)
        if self._has_final:
            payload: StreamReader | None = self._payload
            if payload is None or payload is EMPTY_PAYLOAD or payload._eof:
                self.is_streaming = False
                self._check_end(data)
                return
            self.is_streaming = True
            if data[-2:] != b"\r\n":
                self.is_between_chunks = False  # the next one may have begun
            if payload._buffer:
                self._last_piece = payload._buffer[-1]
        # What `_check_end` needs if nothing more comes: where reading was paused, the parser holds
        # back a part of `data`, or only the end of the message, and is given b"" to go on.
        if size >= _END_SIZE:
            self._recent = data
        elif size:
            self._recent = self._recent[-3:] + data
        self._barren += size
        if self._barren > _MOST_BARREN:
            self._check_progress()

    def _pass_on(self, data: bytes) -> bool:
        """Give `data` to who waits for the body, if it is one whole chunk (RFC 9112 section 7.1).

        The parser has seen the chunk before to its end, and nothing behind it. It need not know of
        this one: that spares it, and a call each for the chunk's beginning, bytes and end.
        """
        payload: Any = self._payload
        whole = len(data)
        digits = 2 if whole < _OF_THREE_DIGITS else 3
        head = b"%x\r\n" % (whole - digits - 4)
        waiter: asyncio.Future[bytes | None] | None = payload._waiter
        if (
            waiter is None
            or not data.startswith((head, head.upper()))
            or not data.endswith(b"\r\n")
            or len(head) != digits + 2
            or waiter.done()
        ):
            return False
        payload._waiter = None
        waiter.set_result(data[digits + 2 : -2])
        return True

    def _accept(self, message: RawResponseMessage, payload: StreamReader) -> None:
        if self._has_final:
            self._should_close = True  # a message behind the end of the response
            return
        self._has_final = message.code >= 200
        self.heads += 1
        if message.should_close:
            self._should_close = True
        if self._skip_payload or message.code in EMPTY_BODY_STATUS_CODES:
            payload = EMPTY_PAYLOAD
        if payload is not EMPTY_PAYLOAD:
            payload.__class__ = Body
        self._payload = payload
        self.feed_data((message, payload))

    def _check_end(self, data: bytes) -> None:
        """The response is complete: drop the connection if it is not what `data` ends with."""
        end = _END
        payload: StreamReader | None = self._payload
        if payload is not None and payload is not EMPTY_PAYLOAD:
            pieces, is_chunked = payload._buffer, payload._http_chunk_splits is not None
            if not is_chunked and (pieces or not data):
                end = pieces[-1] if pieces else self._last_piece
        if not (data if len(data) >= _END_SIZE else self._recent + data).endswith(end):
            self._should_close = True
        self._recent = self._last_piece = b""

    def _check_progress(self) -> None:
        """End an endless chunk extension, trailer or head, which the parser would take in."""
        payload: StreamReader | None = self._payload
        progress = self.heads, 0 if payload is None else payload.total_bytes
        if progress == self._progress and self.transport is not None:
            self.transport.abort()
            self.set_exception(LineTooLong(b"", _MOST_BARREN))
        self._barren, self._progress = 0, progress

    def _refuse(self, error: BaseException) -> None:
        """The parser does not take it for HTTP, and cannot go on."""
        self._parser = None
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.cut()
        elif self.transport is not None:
            read_alone(self.transport)
            self.transport.close()
        if isinstance(error, Exception):
            refusal = error if isinstance(error, HttpProcessingError) else HttpProcessingError()
            self.set_exception(refusal, error)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls it for every piece and every end of a body.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> None:
        super().eof_received()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.cut()  # asyncio would go on with what the peer no longer reads

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        if exc_cause is not _EXC_SENTINEL and exc.__cause__ is None:
            exc.__cause__ = exc_cause
        payload: StreamReader | None = self._payload
        waiter, self._waiter = self._waiter, None
        super().set_exception(exc, exc_cause)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)  # `take_head` raises it
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.delivery is not None:
            has_fin = exc is None or isinstance(exc, BrokenPipeError)
            self.is_untaken = self.delivery.is_untaken(has_fin=has_fin)
        payload: StreamReader | None = self._payload
        if payload is not None and not payload.is_eof():
            reason = exc or self._missing_goodbye()
            if reason is not None:
                payload.set_exception(reason)
        super().connection_lost(exc)

    def _missing_goodbye(self) -> ConnectionError | None:
        """Why a body that ends with the TLS connection may have been cut off, if it may.

        asyncio and uvloop end a connection in the same way whether the peer said close_notify or
        anybody cut the TCP connection (RFC 8446 section 6.1). OpenSSL knows: after a close_notify
        there is nothing more to read, else it wants more.
        """
        if self._tls is None:
            return None
        try:
            self._tls.read(1)
        except ssl.SSLZeroReturnError:
            return None
        except ssl.SSLError:
            return ConnectionError("TLS ended without close_notify")
        return None

    # -- what a connection and its exchanges call --------------------------------------------------

    def is_fit(self) -> bool:
        """Whether a new exchange may begin, as far as is known without asking the kernel."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._should_close:
            return False
        return self._exception is None and not self._buffer and not self._tail

    def begin(self, *, without_body: bool) -> bool:
        """Expect a response; `without_body`: to a HEAD request. False: the connection is gone."""
        self.is_idle = self._has_final = self.is_untaken = self.is_between_chunks = False
        self.received = self._barren = self.heads = 0
        self._progress = (0, 0)
        self._recent = self._last_piece = b""
        if self._parser is None or without_body or self._skip_payload:
            self.set_response_params(
                timer=_NO_TIMER,
                skip_payload=without_body,
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
            )
        return self.transport is not None

    def head_waiter(self) -> asyncio.Future[None] | None:
        """Something to await until `take_head` has something; None: it has."""
        if self._buffer or self._eof:
            return None
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiter = waiter
        return waiter

    def wake_at_head(self, waiter: asyncio.Future[None]) -> bool:
        """Have `waiter` set when `take_head` has something; False: it has."""
        if self._buffer or self._eof:
            return False
        self._waiter = waiter
        return True

    def take_head(self) -> tuple[RawResponseMessage, StreamReader]:
        """The next response head, 1xx included, and its body. Raises what ended the connection."""
        if self._buffer:
            return self._buffer.popleft()[0]
        # aiohttp forgets the error of a connection that it is told to close.
        raise self._exception or aiohttp.ServerDisconnectedError()

    def body_waiter(self, payload: StreamReader) -> asyncio.Future[bytes | None]:
        """Something to await until there is more of the body, its end or an error.

        It comes to a piece of the body, or to None where `take_body` may have one.
        """
        waiter: asyncio.Future[Any] = self._loop.create_future()
        payload._waiter = waiter
        return waiter

    def take_early(self) -> bytes:
        """What has come before anything was asked for: an HTTP/2 peer's SETTINGS."""
        data, self._tail = self._tail, b""
        return data

    def cut(self) -> None:
        """Close the socket with a reset: the kernel, too, drops what it has not sent."""
        transport = self.transport
        if transport is not None:
            sock = transport.get_extra_info("socket")  # None: of TLS that has ended already
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            read_alone(transport)
            transport.abort()

    def give_up(self) -> None:
        """The connection is being closed by us: whoever reads the body is to hear of it."""
        if self.transport is not None:
            read_alone(self.transport)
        payload: StreamReader | None = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientConnectionError("the connection was closed"))

    async def drain(self) -> None:
        """Wait until the transport's write buffer has room."""
        await self._drain_helper()


def _has_bare_cr(data: bytes) -> bool:
    """Whether a head has a CR without LF (RFC 9112 section 2.2), which the parser may take."""
    end = data.find(_END) + _END_SIZE
    if end < _END_SIZE:
        end = len(data) - data.endswith(b"\r")
    return data.count(b"\r", 0, end) != data.count(b"\r\n", 0, end)


def take_body(payload: StreamReader) -> bytes | None:
    """All that is here of a body and has not been taken; b"" at its end, None where more may come.

    What `read_nowait` does, in one step for all the chunks that have come. Raises what ended the
    body early.
    """
    if payload is EMPTY_PAYLOAD:
        return b""
    if payload._exception is not None:
        raise payload._exception
    pieces = payload._buffer
    if not pieces:
        return b"" if payload._eof else None
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    pieces.clear()
    payload._size = 0
    payload._protocol.resume_reading()
    return data


def take_rest(payload: StreamReader) -> bytes | None:
    """All that is left of a body, if it is here to its end; else None."""
    is_here = payload is EMPTY_PAYLOAD or (payload._eof and payload._exception is None)
    return take_body(payload) if is_here else None


def is_taken(payload: StreamReader) -> bool:
    """Whether `take_body` has given all of the body, and it was whole."""
    return payload._eof and not payload._buffer and payload._exception is None


class _Connector(aiohttp.TCPConnector):
    def _get_ssl_context(self, req: ClientRequest) -> ssl.SSLContext | None:
        # aiohttp has one context for the proxy and the origin, which alone is offered HTTP/2.
        if req.proxy is None and (context := _proxy_tls.get()) is not None:
            return context
        return super()._get_ssl_context(req)


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
    connector = _Connector(
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
    limit_unsent(made)
    _sockets.get().append(made)
    return made


async def open_socket(
    connector: aiohttp.TCPConnector,
    url: str,
    addresses: tuple[str, ...],
    tls: ssl.SSLContext | None,
    proxy: Proxy | None,
    proxy_tls: ssl.SSLContext | None,
) -> Opened:
    """Dial `addresses`: happy eyeballs, proxy and TLS are the connector's.

    `tls` is for the origin, `proxy_tls` for a proxy that is spoken to over TLS.
    """
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
    context.run(_proxy_tls.set, proxy_tls)
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
