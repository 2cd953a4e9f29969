"""One HTTP/1.1 exchange on an aiohttp connection.

This module knows the order of things: write the request, pass over 1xx, hand out the body. It does
not know how the connection was made or who shares it, and touches aiohttp only through
`_protocol.Handler`.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

import trunkline
from trunkline import Attempt, Request
from trunkline.tcp import watched
from trunkline_aiohttp._protocol import Handler
from trunkline_aiohttp._translate import exchange_error

if TYPE_CHECKING:
    from aiohttp.connector import Connection as Opened
    from aiohttp.http import RawResponseMessage
    from aiohttp.streams import StreamReader
    from multidict import CIMultiDictProxy

    from trunkline.proxy import Proxy

_SLICE = 262144  # bytes of a large body handed to the transport at once
_CONTINUE_SECONDS = 1.0  # wait for a 100 as long as curl does, then send the body
_MOST_INTERIM = 100
_PENDING = select.POLLIN | getattr(select, "POLLRDHUP", 0)  # the latter is Linux's
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s
_VERSIONS = {(1, 1): "HTTP/1.1", (1, 0): "HTTP/1.0"}


class AiohttpConnection:
    """Implements `trunkline.Connection`."""

    http_version = "HTTP/1.1"
    max_exchanges = 1

    def __init__(self, opened: Opened | None, protocol: Handler, forward: Proxy | None) -> None:
        self._opened = opened
        self.protocol = protocol
        protocol.is_idle = True
        self._forward = forward
        transport = protocol.transport
        assert transport is not None
        self.transport = transport
        self.peer = peer_name(transport.get_extra_info("peername"))
        self._is_cut = False
        self._loop = asyncio.get_running_loop()
        sock = transport.get_extra_info("socket")
        self._poll = select.poll()
        self._poll.register(sock.fileno(), _PENDING)
        self._is_reused = False
        # TLS 1.3 session tickets come after the handshake, and are no reason to drop it.
        self.ssl_object = transport.get_extra_info("ssl_object")
        self._may_hold_tickets = self.ssl_object is not None
        # asyncio closes the socket under TLS before it tells of the end.
        self.delivery = watched(sock, is_closed_early=self._may_hold_tickets)
        protocol.delivery = self.delivery

    def is_usable(self) -> bool:
        protocol = self.protocol
        if not protocol.is_connected() or protocol.should_close:
            return False
        return not protocol.is_idle or not self._holds_something()

    def _holds_something(self) -> bool:
        """Whether the kernel holds what the loop has not read: a FIN, or bytes nobody asked for."""
        events = self._poll.poll(0)
        return bool(events) and not (self._may_hold_tickets and events[0][1] == select.POLLIN)

    async def exchange(self, request: Request, attempt: Attempt) -> AiohttpExchange:
        exchange = AiohttpExchange(self, request, attempt)
        try:
            await exchange.start()
        except BaseException:
            exchange.close()
            raise
        finally:
            self.delivery.end()
        return exchange

    def begin_delivery(self, request: Request) -> bool:
        """Note what the kernel knows, so that a failure can prove that the request was not taken.

        Returns:
            Whether its body is to be a segment of its own.
        """
        was_reused, self._is_reused = self._is_reused, True
        return was_reused and self.delivery.begin() and not request.is_idempotent

    def write_head(self, request: Request, body: bytes = b"") -> int:
        """Write the request line and header fields, and with them a small body."""
        target = request.path
        fields = request.wire_headers()
        if self._forward is not None:  # RFC 9112 section 3.2.2
            target = f"{request.origin}{target}"
            credentials = self._forward.authorization
            if credentials is not None:
                fields.append(("Proxy-Authorization", credentials))
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
        head = f"{request.method} {target} HTTP/1.1\r\n{lines}\r\n"
        data = head.encode("utf-8", "surrogateescape") + body
        self.transport.write(data)
        return len(data)

    async def flush(self) -> None:
        """Hand what was written to the operating system, unless it will not take it now."""
        if not isinstance(self._loop, asyncio.BaseEventLoop):
            await asyncio.sleep(0)  # uvloop joins all that is written in one round

    def finish(self) -> None:
        """An exchange is over, and the connection as it was before it."""
        self._may_hold_tickets = False
        self.protocol.is_idle = True

    def cut_request(self) -> None:
        """The rest of a request will not be sent: the peer would take the next one for it."""
        self.protocol.force_close()
        self._is_cut = True

    def close(self) -> None:
        if self._loop.is_closed():
            # Nothing can be scheduled there any more; the socket goes with the transport.
            self.protocol.transport = None
            if self._opened is not None:
                self._opened.close()
            return
        self.protocol.give_up()
        # abort, not close: unsent bytes of a peer that does not read would hold the socket open.
        if self._is_cut and not self.transport.is_closing():
            # The kernel, too, drops what it has not sent.
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()
        if self._opened is not None:
            self._opened.close()


class AiohttpExchange:
    """Implements `trunkline.Exchange`."""

    __slots__ = ("_attempt", "_connection", "_is_over", "_payload", "_protocol", "_request",
                 "_upload", "headers", "http_version", "raw_headers", "reason_phrase",
                 "status_code")  # fmt: skip

    _payload: StreamReader
    status_code: int
    reason_phrase: str
    http_version: str
    headers: CIMultiDictProxy[str]
    raw_headers: tuple[tuple[bytes, bytes], ...]

    def __init__(self, connection: AiohttpConnection, request: Request, attempt: Attempt) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._request = request
        self._attempt = attempt
        self._upload: _Upload | None = None
        self._is_over = False

    async def start(self) -> None:
        """Send the request and take the final head."""
        request, protocol, content = self._request, self._protocol, self._request.content
        if protocol.transport is None:
            raise trunkline.RemoteDisconnected("the connection was closed while it was idle")
        protocol.begin(without_body=request.method == "HEAD")
        if "close" in request.headers.get("Connection", "").lower():
            protocol.force_close()
        is_apart = self._connection.begin_delivery(request)
        if content is None:
            self._send_at_once(b"")
        elif isinstance(content, bytes) and len(content) <= _SLICE and not _expects(request):
            if is_apart and content:
                await self._send_apart(content)
            else:
                self._send_at_once(content)
        else:
            self._upload = _Upload(self._connection, request, self._attempt)
        try:
            message, self._payload = await self._final_head()
        except Exception as error:  # noqa: BLE001  # it raises
            self._fail(error, has_head=False)
        self._accept(message)

    def _send_at_once(self, body: bytes) -> None:
        attempt = self._attempt
        attempt.bytes_sent += self._connection.write_head(self._request, body)
        self._await_answer()

    async def _send_apart(self, body: bytes) -> None:
        """Send the body as a TCP segment of its own: see `trunkline.tcp.Delivery.begin`."""
        connection = self._connection
        self._attempt.bytes_sent += connection.write_head(self._request)
        await connection.flush()
        connection.delivery.head_sent()
        if not connection.transport.is_closing():
            connection.transport.write(body)
            self._attempt.bytes_sent += len(body)
        self._await_answer()

    def _await_answer(self) -> None:
        if self._protocol.writing_paused:
            self._upload = _Upload(self._connection, None, self._attempt)
        else:
            self._attempt.begin("headers")

    async def _final_head(self) -> tuple[RawResponseMessage, StreamReader]:
        for _ in range(_MOST_INTERIM):
            message, payload = await self._attempt.wait(self._protocol.head())
            self._attempt.response_started = True
            if message.code == 101:
                raise trunkline.RemoteProtocolError("the server switched protocols unasked (101)")
            if message.code >= 200:
                return message, payload
            if message.code == 100 and self._upload is not None:
                self._upload.go_on()
        raise trunkline.LimitExceeded(f"more than {_MOST_INTERIM} interim (1xx) responses")

    def _accept(self, message: RawResponseMessage) -> None:
        codings = message.headers.get("Transfer-Encoding")
        if codings is not None and codings.strip().lower() != "chunked":
            # The parser would take the body to be delimited by the end of the connection.
            raise trunkline.RemoteProtocolError("the response has an unknown Transfer-Encoding")
        self.status_code = message.code
        self.reason_phrase = message.reason
        version = message.version
        self.http_version = _VERSIONS.get(version) or f"HTTP/{version.major}.{version.minor}"
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        # A refusal while the body is being sent: the rest is of no use (RFC 9112 section 9.3).
        if self._upload is not None and message.code >= 300:
            self._stop_upload()

    async def read(self) -> bytes:
        payload = self._payload
        try:
            data = payload.read_nowait()
            if not data and not payload.at_eof():
                self._attempt.begin("body")
                data = await self._attempt.wait(payload.readany())
        except Exception as error:  # noqa: BLE001  # it raises
            self._fail(error, has_head=True)
        if not data:
            self._end()
        return data

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._stop_upload()
            self._connection.finish()

    def close(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._stop_upload()
        self._connection.close()

    def _stop_upload(self) -> None:
        upload = self._upload
        if upload is not None and not upload.is_done:
            upload.cancel()
            self._connection.cut_request()

    def _fail(self, error: Exception, *, has_head: bool) -> NoReturn:
        """Raise what `error` means, after noting the facts."""
        upload, protocol, attempt = self._upload, self._protocol, self._attempt
        attempt.response_started = attempt.response_started or protocol.received > 0
        attempt.is_untaken = protocol.is_untaken and not attempt.response_started
        transport = protocol.transport
        if transport is not None:
            attempt.bytes_sent -= min(transport.get_write_buffer_size(), attempt.bytes_sent)
        if upload is not None and upload.error is not None:
            raise upload.error
        if isinstance(error, trunkline.TransportError):
            raise error
        raise exchange_error(error, has_head=has_head, started=protocol.received > 0) from error


class _ConnectionGoneError(Exception):
    """The connection was lost while the request was being sent."""


class _Upload:
    """Sends what does not fit into the transport's buffer, while the head is already awaited.

    `request` is None when everything has been handed to the transport and only has to drain. An
    error of the caller's iterable is kept in `error` and aborts the connection, which wakes whoever
    awaits the response.
    """

    def __init__(
        self, connection: AiohttpConnection, request: Request | None, attempt: Attempt
    ) -> None:
        self._connection = connection
        self._attempt = attempt
        self._continue = asyncio.Event()
        self._since_yield = 0
        self.is_done = False
        self.error: BaseException | None = None
        self._task = asyncio.ensure_future(self._run(request))

    def cancel(self) -> None:
        self._task.cancel()

    def go_on(self) -> None:
        """The server has sent 100 (Continue)."""
        self._continue.set()

    async def _run(self, request: Request | None) -> None:
        try:
            if request is not None:
                await self._send(request)
            await self._drain()
        except asyncio.CancelledError:
            raise
        except _ConnectionGoneError:
            return  # whoever awaits the response knows more
        except BaseException as error:
            self.error = error
            self._connection.transport.abort()
            if not isinstance(error, Exception):
                raise
        else:
            self.is_done = True
            self._attempt.begin("headers")

    async def _send(self, request: Request) -> None:
        self._attempt.bytes_sent += self._connection.write_head(request)
        if _expects(request):
            await self._drain()
            self._attempt.begin("headers")
            await self._wait_for_continue()
        content = request.content
        if isinstance(content, bytes):
            for start in range(0, len(content), _SLICE):
                await self._write(content[start : start + _SLICE])
        elif content is not None:
            self._attempt.is_body_untouched = True
            await self._connection.flush()
            if self._connection.transport.is_closing():
                raise _ConnectionGoneError
            await self._send_pieces(request, content.__aiter__())

    async def _send_pieces(self, request: Request, pieces: AsyncIterator[bytes]) -> None:
        length = request.headers.get("Content-Length")
        left = None if length is None else int(length)
        try:
            # The caller's own time to produce a piece is no delay of the peer's.
            self._attempt.begin("request")
            self._attempt.is_body_untouched = False
            async for piece in pieces:
                if not isinstance(piece, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise trunkline.InvalidRequest("content: it produced something else than bytes")
                if left is None:
                    await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"")
                else:
                    left -= len(piece)
                    _check_left(left < 0, "more")
                    await self._write(piece)
                self._attempt.begin("request")
            _check_left(bool(left), "fewer")
        finally:
            close: Any = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        if left is None:
            await self._write(b"0\r\n\r\n")

    async def _write(self, data: bytes) -> None:
        transport = self._connection.transport
        for start in range(0, len(data), _SLICE):
            part = data[start : start + _SLICE]
            if transport.is_closing():
                raise _ConnectionGoneError
            transport.write(part)
            self._attempt.bytes_sent += len(part)
            self._since_yield += len(part) + 1024
            await self._drain()

    async def _drain(self) -> None:
        if self._connection.protocol.writing_paused:
            self._attempt.begin("write")
            try:
                await self._connection.protocol.drain()
            except OSError as error:
                raise _ConnectionGoneError from error
        elif self._since_yield > _SLICE:
            # A body that never waits, to a peer that is never slow: let the loop see an answer.
            await asyncio.sleep(0)
        else:
            return
        self._since_yield = 0

    async def _wait_for_continue(self) -> None:
        try:
            async with asyncio.timeout(_CONTINUE_SECONDS):
                await self._continue.wait()
        except TimeoutError:
            return


def _check_left(wrong: bool, how: str) -> None:
    if wrong:
        raise trunkline.InvalidRequest(
            f"content: it produced {how} bytes than the Content-Length header says"
        )


def _expects(request: Request) -> bool:
    return request.headers.get("Expect", "").lower() == "100-continue"


def peer_name(address: tuple[Any, ...] | str | None) -> str | None:
    if not isinstance(address, tuple):
        return address or None
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
