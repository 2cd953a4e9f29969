"""One HTTP/1.1 exchange on an aiohttp connection.

This module knows the order of things: write the request, pass over 1xx, hand out the body. It does
not know how the connection was made or who shares it, and touches aiohttp only through
`_protocol.Handler`.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Any

from multidict import istr

import trunkline
from trunkline import Attempt, Request
from trunkline.tcp import watched
from trunkline_aiohttp._direct import writer
from trunkline_aiohttp._protocol import Handler, is_taken, take_body, take_rest
from trunkline_aiohttp._translate import exchange_error
from trunkline_aiohttp._upload import SLICE, Upload

if TYPE_CHECKING:
    from aiohttp.connector import Connection as Opened
    from aiohttp.http import RawResponseMessage
    from aiohttp.streams import StreamReader
    from multidict import CIMultiDictProxy

    from trunkline.proxy import Proxy
    from trunkline_aiohttp._reads import Reads

_GONE = "the connection was closed while it was idle"
_MOST_INTERIM = 100
_PENDING = select.POLLIN | getattr(select, "POLLRDHUP", 0)  # the latter is Linux's
_TRANSFER_ENCODING = istr("Transfer-Encoding")  # found at once, where a str is folded first
_VERSIONS = {(1, 1): "HTTP/1.1", (1, 0): "HTTP/1.0"}


class AiohttpConnection:
    """Implements `trunkline.Connection`."""

    http_version = "HTTP/1.1"
    max_exchanges = 1

    def __init__(
        self,
        opened: Opened | None,
        protocol: Handler,
        forward: Proxy | None,
        *,
        reads: Reads | None,
    ) -> None:
        self._opened = opened
        self.protocol = protocol
        self._forward = forward
        transport = protocol.transport
        assert transport is not None
        self.transport = transport
        self.peer = peer_name(transport.get_extra_info("peername"))
        self._loop = asyncio.get_running_loop()
        self._socket = transport.get_extra_info("socket")
        self._write = writer(transport)
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), _PENDING)
        self._is_reused = self._is_cut = self._was_read = False
        self._kind: tuple[object, ...] = ()
        self._head = b""
        # TLS 1.3 session tickets come after the handshake, and are no reason to drop it.
        self.ssl_object = transport.get_extra_info("ssl_object")
        self._may_hold_tickets = self.ssl_object is not None
        # asyncio closes the socket under TLS before it tells of the end.
        self.delivery = watched(self._socket, is_closed_early=self._may_hold_tickets)
        protocol.hand_over(self.delivery, reads)

    def is_usable(self) -> bool:
        protocol = self.protocol
        if not protocol.is_fit():
            return False
        if self._was_read:  # the loop has just been at the socket
            self._was_read = False
            return True
        if not protocol.is_idle:
            return True
        # Does the kernel hold what the loop has not read: a FIN, or bytes nobody asked for?
        events = self._poll.poll(0)
        return not events or (self._may_hold_tickets and events[0][1] == select.POLLIN)

    async def exchange(self, request: Request, attempt: Attempt) -> AiohttpExchange:
        return await self.begin(request, attempt).answer()

    def begin(self, request: Request, attempt: Attempt) -> AiohttpExchange:
        """Write `request`, if it can be written at once and whole; else nothing of it."""
        body = _small_body(request)
        exchange = AiohttpExchange(self, attempt)
        was_reused, self._is_reused = self._is_reused, True
        try:
            is_wary = was_reused and self.delivery.begin()
            if body is None or (is_wary and body and not request.is_idempotent):
                exchange.left = request
            elif self.protocol.begin(without_body=request.method == "HEAD"):
                exchange.sent(self.write(request, body))
            else:
                raise trunkline.RemoteDisconnected(_GONE)
        except Exception as error:  # noqa: BLE001  # `answer` raises it
            exchange.left = error
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def write_apart(self, request: Request, body: bytes) -> int:
        """Write the body as a TCP segment of its own: see `trunkline.tcp.Delivery.begin`."""
        size = self.write(request, b"")
        await self.flush()
        self.delivery.head_sent()
        if not self.transport.is_closing():
            self.transport.write(body)
            size += len(body)
        return size

    def write(self, request: Request, body: bytes) -> int:
        """Write the request line and header fields, and with them a small body."""
        fields = request.fields
        kind = (request.method, request.path, fields.pairs)
        if kind != self._kind:  # mostly a request has the head of the one before
            self._kind, self._head = kind, self._make_head(request)
        if fields.controls and "close" in ",".join(fields.controls.get("connection", ())).lower():
            self.protocol.force_close()
        framing = request.framing()
        if framing is None:
            data = b"%b\r\n%b" % (self._head, body)
        else:
            data = b"%b%b: %b\r\n\r\n%b" % (self._head, *framing, body)
        self._write(data)
        return len(data)

    def _make_head(self, request: Request) -> bytes:
        """All of the head but the field that says where the body ends."""
        target, fields = request.path, request.unframed_headers()
        if self._forward is not None:  # RFC 9112 section 3.2.2
            target = f"{request.origin}{target}"
            credentials = self._forward.authorization
            if credentials is not None:
                fields.append(("Proxy-Authorization", credentials))
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
        return f"{request.method} {target} HTTP/1.1\r\n{lines}".encode("utf-8", "surrogateescape")

    async def flush(self) -> None:
        """Hand what was written to the operating system, unless it will not take it now."""
        if not isinstance(self._loop, asyncio.BaseEventLoop):
            await asyncio.sleep(0)  # uvloop joins all that is written in one round

    def finish(self) -> None:
        """An exchange is over, and the connection as it was before it."""
        self._may_hold_tickets = False
        self.protocol.is_idle = self._was_read = True

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
        if self._is_cut:
            self.protocol.cut()
        self.transport.abort()
        if self._opened is not None:
            self._opened.close()


class AiohttpExchange:
    """Implements `trunkline.Exchange`."""

    __slots__ = ("_attempt", "_connection", "_payload", "_protocol", "headers", "http_version",
                 "is_over", "left", "raw_headers", "reason_phrase", "status_code",
                 "upload")  # fmt: skip

    _payload: StreamReader
    status_code: int
    reason_phrase: str
    http_version: str
    headers: CIMultiDictProxy[str]
    raw_headers: tuple[tuple[bytes, bytes], ...]

    def __init__(self, connection: AiohttpConnection, attempt: Attempt) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._attempt = attempt
        self.left: Request | Exception | None = None  # to send, or to raise, by `answer`
        self.upload: Upload | None = None
        self.is_over = False

    def sent(self, size: int) -> None:
        """The whole request, of `size` bytes, has been handed to the transport."""
        attempt = self._attempt
        attempt.bytes_sent += size
        if self._protocol.writing_paused:
            self.upload = Upload(self._connection, None, attempt)
        else:
            attempt.begin("headers")

    def wake(self, waiter: asyncio.Future[None]) -> bool:
        """See `trunkline.BegunExchange`."""
        is_sent = self.left is None and self.upload is None
        return is_sent and self._protocol.wake_at_head(waiter)

    async def answer(self) -> AiohttpExchange:
        """See `trunkline.BegunExchange`."""
        attempt, protocol = self._attempt, self._protocol
        try:
            if self.left is not None:
                await self._go_on(self.left)
            is_answered = False
            while not is_answered:
                waiter = protocol.head_waiter()
                if waiter is not None:
                    await attempt.wait(waiter)
                is_answered = self._take_head()
        except Exception as error:  # noqa: BLE001  # it is raised below
            failure = self.failure(error, has_head=False)
        except BaseException:
            self.close()
            raise
        else:
            self._connection.delivery.end(attempt.bytes_sent)
            return self
        self.close()
        raise failure

    async def _go_on(self, left: Request | Exception) -> None:
        if isinstance(left, Exception):
            raise left
        request, connection = left, self._connection
        is_there = self._protocol.begin(without_body=request.method == "HEAD")
        if not is_there or connection.transport.is_closing():
            raise trunkline.RemoteDisconnected(_GONE)
        body = _small_body(request)
        if body is None:
            self.upload = Upload(connection, request, self._attempt)
        else:
            self.sent(await connection.write_apart(request, body))

    def _take_head(self) -> bool:
        """Take a response head that has come; whether it is no interim one (1xx)."""
        message, self._payload = self._protocol.take_head()
        self._attempt.response_started = True
        code = message.code
        if code >= 200:
            self._accept(message)
            return True
        if code < 100:
            raise trunkline.RemoteProtocolError("the response has a status below 100")
        if code == 101:
            raise trunkline.RemoteProtocolError("the server switched protocols unasked (101)")
        if self._protocol.heads > _MOST_INTERIM:
            raise trunkline.LimitExceeded(f"more than {_MOST_INTERIM} interim (1xx) responses")
        if code == 100 and self.upload is not None:
            self.upload.go_on()
        return False

    def _accept(self, message: RawResponseMessage) -> None:
        headers, version = message.headers, message.version
        if _TRANSFER_ENCODING in headers:
            _check_codings(headers.getall(_TRANSFER_ENCODING))
        name = _VERSIONS.get(version)
        if name is None:
            raise trunkline.RemoteProtocolError("the response is of another version than HTTP/1")
        if "\x00" in message.reason:
            raise trunkline.RemoteProtocolError("the reason phrase of the response contains NUL")
        self.status_code = message.code
        self.reason_phrase = message.reason
        self.http_version = name
        self.headers = headers
        self.raw_headers = message.raw_headers
        # A refusal while the body is being sent: the rest is of no use (RFC 9112 section 9.3).
        if self.upload is not None and message.code >= 300:
            self._stop_upload()

    def take_rest(self) -> bytes | None:
        rest = take_rest(self._payload)
        if rest is not None:
            self._finish()
        return rest

    async def read(self) -> bytes:
        payload = self._payload
        try:
            data = take_body(payload)
            while data is None:
                self._attempt.begin("body")
                data = await self._attempt.wait(self._protocol.body_waiter(payload))
                if data is None:
                    data = take_body(payload)
        except Exception as error:  # noqa: BLE001  # it is raised below
            failure = self.failure(error, has_head=True)
        else:
            if not data or is_taken(payload):
                self._finish()
            return data
        raise failure

    def _finish(self) -> None:
        if not self.is_over:
            self.is_over = True
            if self.upload is not None:
                self._stop_upload()
            self._connection.finish()

    def close(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._connection.delivery.end(self._attempt.bytes_sent)
        self._stop_upload()
        self._connection.close()

    def _stop_upload(self) -> None:
        upload = self.upload
        if upload is not None and not upload.is_done:
            upload.cancel()
            self._connection.cut_request()

    def failure(self, error: Exception, *, has_head: bool) -> BaseException:
        """What `error` means, after noting the facts.

        It is raised where `error` is not being handled any more: one of the caller's own stays as
        it is, with the cause and context that it has.
        """
        upload, protocol, attempt = self.upload, self._protocol, self._attempt
        started = attempt.response_started = attempt.response_started or protocol.received > 0
        attempt.is_untaken = protocol.is_untaken and not started
        transport = protocol.transport
        if transport is not None:
            attempt.bytes_sent -= min(transport.get_write_buffer_size(), attempt.bytes_sent)
        if upload is not None and upload.error is not None:
            return upload.error
        if isinstance(error, trunkline.TransportError):
            return error
        translated = exchange_error(error, has_head=has_head, started=started)
        translated.__cause__ = error
        return translated


def _small_body(request: Request) -> bytes | None:
    """The body, b"" where there is none; None: it is produced, large, or waits to be asked for."""
    content = request.content
    if content is None:
        return b""
    if type(content) is not bytes or len(content) > SLICE:
        return None
    return None if request.fields.controls and request.expects_continue else content


def _check_codings(codings: list[str]) -> None:
    """Refuse what the parser would take for a body that the end of the connection delimits."""
    if len(codings) > 1 or codings[0].strip(" \t").lower() != "chunked":
        raise trunkline.RemoteProtocolError("the response has an unknown Transfer-Encoding")


def peer_name(address: tuple[Any, ...] | str | None) -> str | None:
    if not isinstance(address, tuple):
        return address or None
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
