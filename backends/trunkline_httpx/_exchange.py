"""HTTP/1.1: a connection that httpx runs exchanges on, and an exchange.

This module knows how httpx and httpcore take a request apart and give a response back. It does not
know how the stream was opened, or when a connection may be used again by whom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpcore
import httpx

from trunkline import Attempt, LimitExceeded, RemoteProtocolError, Request, TransportError
from trunkline_httpx._httpcore import make_transport, unread
from trunkline_httpx._message import RequestBody, decode_headers, encode_value
from trunkline_httpx._network import FAIR_SHARE, RECEIVE_SIZE, Stream, give_way
from trunkline_httpx._translate import EXCHANGE, Course, translate

_MAX_HELD = 256 * 1024
_MAX_HEADS = 512 * 1024
_CONTINUE_SECONDS = 1.0
_ONE_SEGMENT = 16 * 1024
_URL = httpx.URL("http://origin/")  # what is sent is the extension "target"
_ORIGIN = httpcore.Origin(b"http", b"origin", 80)


class Http1Connection:
    """Implements `trunkline.Connection`.

    Args:
        stream: open, and to the origin or to a proxy that forwards.
        prefix: what goes before the path: for a proxy that forwards, the origin (RFC 9112
            section 3.2.2).
        extra_headers: sent with each request, for such a proxy.
        cut_short: where the iterators of responses that were not read to their end are put.
    """

    http_version = "HTTP/1.1"
    max_exchanges = 1

    def __init__(
        self,
        stream: Stream,
        *,
        prefix: str = "",
        extra_headers: tuple[tuple[str, str], ...] = (),
        cut_short: list[AsyncIterator[bytes]],
    ) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._prefix = prefix
        self._extra_headers = extra_headers
        self._cut_short = cut_short
        self._wire = _Wire(stream)
        self._inner = httpcore.AsyncHTTP11Connection(_ORIGIN, self._wire, keepalive_expiry=None)
        self._transport = make_transport(self._inner)
        self._used = False

    def is_usable(self) -> bool:
        if self._used and not self._inner.is_idle():
            return False
        try:
            return not unread(self._inner) and self._stream.receive_nowait(1) is None
        except OSError:
            return False

    async def exchange(self, request: Request, attempt: Attempt) -> Http1Exchange:
        attempt.begin("write")
        self._used = True
        body = RequestBody(request, attempt)
        self._wire.begin(request, attempt, body)
        try:
            message = self._message(request, body)
            response = await self._transport.handle_async_request(message)
            self._wire.awaits_head = False
            if not body.is_over:
                await body.aclose()
            return Http1Exchange(self, response, attempt)
        except BaseException as error:
            self.abort()
            failure = body.failure or self.translate(error)
            await body.aclose()
            if failure is None or failure is error:
                raise
            raise failure from error

    def _message(self, request: Request, body: RequestBody) -> httpx.Request:
        fields = request.wire_headers()
        fields[1:1] = self._extra_headers
        headers = [(name.encode(), encode_value(value)) for name, value in fields]
        target = (self._prefix + request.path).encode()
        message = httpx.Request(
            request.method, _URL, headers=headers, stream=body, extensions={"target": target}
        )
        message.method = request.method  # httpx has put it in upper case
        return message

    def translate(self, error: BaseException) -> BaseException | None:
        return translate(error, EXCHANGE, self._wire.course())

    def cut_short(self, pieces: AsyncIterator[bytes]) -> None:
        self.abort()
        self._cut_short.append(pieces)

    def abort(self) -> None:
        self._wire.close()

    def close(self) -> None:
        self._stream.close()


class Http1Exchange:
    """Implements `trunkline.Exchange`."""

    def __init__(
        self, connection: Http1Connection, response: httpx.Response, attempt: Attempt
    ) -> None:
        extensions = response.extensions
        self.status_code = response.status_code
        self.http_version: str = extensions["http_version"].decode("ascii")
        self.reason_phrase: str = extensions["reason_phrase"].decode("utf-8", "surrogateescape")
        self.raw_headers = tuple(response.headers.raw)
        self.headers = decode_headers(self.raw_headers)
        _check_head(self)
        self._connection = connection
        self._attempt = attempt
        self._response: Any = response.stream
        self._pieces: AsyncIterator[bytes] | None = None
        self._over = False

    async def read(self) -> bytes:
        if self._over:
            return b""
        self._attempt.begin("body")
        try:
            piece = await self._next()
        except BaseException as error:
            self._over = True
            self._connection.abort()
            failure = self._connection.translate(error)
            if failure is None:
                raise
            raise failure from error
        self._over = not piece
        return piece

    async def _next(self) -> bytes:
        pieces = self._pieces = self._pieces or self._response.__aiter__()
        async for piece in pieces:
            if piece:
                return piece
        await self._response.aclose()
        return b""

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        if self._pieces is None:
            self._connection.abort()
        else:
            self._connection.cut_short(self._pieces)


def _check_head(head: Http1Exchange) -> None:
    """Refuse what httpcore lets through.

    Raises:
        RemoteProtocolError: a 101 (nobody can have asked for it), or two ways to frame the body.
    """
    if head.status_code == 101:
        raise RemoteProtocolError("the peer switched to a protocol that nobody asked for")
    if "Transfer-Encoding" in head.headers and "Content-Length" in head.headers:
        # RFC 9112 section 6.3: it may be an attempt to smuggle a response.
        raise RemoteProtocolError("the response has Transfer-Encoding and Content-Length")


class _Wire(httpcore.AsyncNetworkStream):
    """The stream as httpcore sees it, which reports to the attempt under way.

    It also listens while it writes: a peer that answers with an error before it has the whole
    request does not want the rest (RFC 9112 section 9.6), and may never read it.

    Attributes:
        is_sending: the request is not with the operating system yet, not all of it.
        awaits_head: of the final response.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._attempt: Attempt
        self._body: RequestBody
        self._joins = self._expects = False
        self._head: bytes | None = None
        self._held = b""
        self._received = self._receptions = 0
        self._failure: Exception | None = None
        self._has_ended = False
        self.is_sending = self.awaits_head = False

    def begin(self, request: Request, attempt: Attempt, body: RequestBody) -> None:
        self._attempt = attempt
        self._body = body
        self._received = 0
        self.is_sending = self.awaits_head = True
        self._expects = request.headers.get("Expect", "").lower() == "100-continue"
        self._joins = 0 < body.size <= _ONE_SEGMENT and not self._expects

    def course(self) -> Course:
        return Course(not self.is_sending, self._attempt.response_started, self._has_ended)

    # -- what httpcore asks for --------------------------------------------------------------------

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if self._joins:
            self._joins, self._head = False, buffer
            return
        if self._head is not None:
            buffer, self._head = self._head + buffer, None
        try:
            await self._send(memoryview(buffer))
            if self._expects:
                self._expects = False
                await self._wait_for_continue()
        except TransportError:  # a deadline, which is an OSError too
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            self._failure = error
            raise httpcore.WriteError from error
        if self._body.is_over:
            self.is_sending = False
            self._attempt.begin("headers")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data, self._held = self._held, b""
        if not data:
            try:
                data = await self._receive(max_bytes)
            except TransportError:
                raise
            except (OSError, anyio.ClosedResourceError) as error:
                raise httpcore.ReadError from error
        if self.awaits_head:
            self._count(data)
        if not data:
            if self._failure is not None:
                # A reset that the write met looks like a proper end here, and is none.
                raise httpcore.ReadError from self._failure
            self._has_ended = True
        return data

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        if self.is_sending:
            self._stream.abort()  # or the system goes on sending what it has of the request
        else:
            self._stream.close()

    # -- the steps -----------------------------------------------------------------------------

    async def _send(self, rest: memoryview) -> None:
        attempt, stream, is_blocked = self._attempt, self._stream, False
        if self._body.is_streamed and attempt.bytes_sent:
            self._listen()
        while True:
            sent = stream.send_nowait(rest)
            if sent:
                attempt.bytes_sent += sent
                rest = rest[sent:]
                if is_blocked:
                    attempt.begin("write")
            if not rest and stream.flush_nowait():
                return
            self._listen()
            is_full = len(self._held) >= _MAX_HELD
            await attempt.wait(stream.wait_writable() if is_full else stream.wait_either())
            is_blocked = True

    async def _wait_for_continue(self) -> None:
        # No longer than curl does: RFC 9110 section 10.1.1 says not to wait for ever.
        with anyio.move_on_after(_CONTINUE_SECONDS):
            await self._attempt.wait(self._stream.wait_readable())
        self._listen()

    async def _receive(self, max_bytes: int) -> bytes:
        attempt, stream = self._attempt, self._stream
        data = stream.receive_nowait(max_bytes)
        while data is None:
            await attempt.wait(stream.wait_readable())
            data = stream.receive_nowait(max_bytes)
        self._receptions += 1
        if self._receptions % FAIR_SHARE == 0:
            await attempt.wait(give_way())
        return data

    def _listen(self) -> None:
        """Take in what the peer says already.

        Raises:
            httpcore.WriteError: it does not want the rest. httpcore then reads the response.
        """
        if len(self._held) >= _MAX_HELD:
            return
        data = self._stream.receive_nowait(RECEIVE_SIZE)
        if data is None:
            return
        self._held += data
        if self._held:
            self._attempt.response_started = True
        if not data or is_refusal(self._held):
            raise httpcore.WriteError

    def _count(self, data: bytes) -> None:
        if data:
            self._attempt.response_started = True
        self._received += len(data)
        if self._received > _MAX_HEADS:
            raise LimitExceeded("interim (1xx) responses without end")


def is_refusal(received: bytes) -> bool:
    """Whether the first bytes of a response say that the rest of the request is of no use."""
    while received.startswith(b"HTTP/1.") and received[9:10] == b"1":  # informational: go on
        _, _, received = received.partition(b"\r\n\r\n")
    return len(received) > 9 and received[9:10] != b"2"
