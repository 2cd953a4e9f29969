"""HTTP/1.1: a connection that httpx runs exchanges on, and an exchange.

This module knows how httpx and httpcore take a request apart and give a response back. It does not
know how the stream was opened, or when a connection may be used again by whom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import anyio
import httpcore
import httpx
from multidict import CIMultiDict, CIMultiDictProxy

from trunkline import Attempt, InvalidRequest, LimitExceeded, RemoteProtocolError, Request
from trunkline_httpx._httpcore import make_transport, unread
from trunkline_httpx._network import RECEIVE_SIZE, Stream
from trunkline_httpx._translate import EXCHANGE, Course, translate

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

_MAX_FIELDS = 1000
_MAX_HELD = 256 * 1024
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
        self._wire.begin(attempt, body)
        try:
            message = self._message(request, body)
            response = await attempt.wait(self._transport.handle_async_request(message))
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
        if self._wire.sending:
            self._stream.abort()
        else:
            self._stream.close()

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
            piece = await self._attempt.wait(self._next())
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


def encode_value(value: str) -> bytes:
    """A header value for the wire: space around it is not a part of it (RFC 9110 section 5.5)."""
    return value.strip(" \t").encode("utf-8", "surrogateescape")


def decode_headers(raw_headers: RawHeaders) -> CIMultiDictProxy[str]:
    """For `Exchange.headers`.

    Raises:
        LimitExceeded: they are too many.
    """
    if len(raw_headers) > _MAX_FIELDS:
        raise LimitExceeded(f"the response head has more than {_MAX_FIELDS} fields")
    return CIMultiDictProxy(
        CIMultiDict(
            (name.decode("ascii"), value.decode("utf-8", "surrogateescape"))
            for name, value in raw_headers
        )
    )


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


class RequestBody(httpx.AsyncByteStream):
    """The content of a request on its way out. At its end the response is waited for.

    An iterator, not an async generator: one that is dropped half-way leaves nothing to finalize.

    Attributes:
        size: of content that is bytes.
        is_streamed: it is an async iterable, and is sent as it is produced.
        is_over: all of it has been taken.
        failure: what the caller's iterable raised.
    """

    def __init__(self, request: Request, attempt: Attempt) -> None:
        content = request.content
        self._attempt = attempt
        self._whole = content if isinstance(content, bytes) and content else None
        self._pieces: AsyncIterator[bytes] | None = None
        self._left: int | None = None
        if content is not None and not isinstance(content, bytes):
            self._pieces = content.__aiter__()
            length = request.headers.get("Content-Length")
            self._left = None if length is None else int(length)
        self.size = len(self._whole or b"")
        self.is_streamed = self._pieces is not None
        self.is_over = False
        self.failure: Exception | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        whole, self._whole = self._whole, None
        if whole is not None:
            return whole
        if self._pieces is not None:
            try:
                return await self._next_piece(self._pieces)
            except StopAsyncIteration:
                self._pieces = None
            except Exception as error:
                self.failure = error
                raise
        self.is_over = True
        self._attempt.begin("headers")
        raise StopAsyncIteration

    async def _next_piece(self, pieces: AsyncIterator[object]) -> bytes:
        while True:
            try:
                piece = await pieces.__anext__()
            except StopAsyncIteration:
                if self._left:
                    raise InvalidRequest("content: it is shorter than Content-Length") from None
                raise
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise InvalidRequest("content: the async iterable must produce bytes")
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    raise InvalidRequest("content: it is longer than Content-Length")
            if piece:
                self._attempt.begin("write")
                return bytes(piece)

    async def aclose(self) -> None:
        """The rest is not sent: let the caller's generator clean up."""
        pieces, self._pieces = self._pieces, None
        aclose = getattr(pieces, "aclose", None)
        if aclose is not None:
            await aclose()


class _Wire(httpcore.AsyncNetworkStream):
    """The stream as httpcore sees it, which reports to the attempt under way.

    It also listens while it writes: a peer that answers with an error before it has the whole
    request does not want the rest (RFC 9112 section 9.6), and may never read it.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._attempt: Attempt
        self._body: RequestBody
        self._join = False
        self._head: bytes | None = None
        self._held = b""
        self._failure: Exception | None = None
        self._ended = False
        self.sending = False

    def begin(self, attempt: Attempt, body: RequestBody) -> None:
        self._attempt = attempt
        self._body = body
        self.sending = True
        self._join = 0 < body.size <= _ONE_SEGMENT

    def course(self) -> Course:
        return Course(
            written=not self.sending, started=self._attempt.response_started, ended=self._ended
        )

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if self._join:
            self._join, self._head = False, buffer
            return
        if self._head is not None:
            buffer, self._head = self._head + buffer, None
        try:
            await self._send(memoryview(buffer))
        except (OSError, anyio.ClosedResourceError) as error:
            self._failure = error
            raise httpcore.WriteError from error

    async def _send(self, rest: memoryview) -> None:
        attempt, stream, blocked = self._attempt, self._stream, False
        if self._body.is_streamed and attempt.bytes_sent:
            self._listen()
        while True:
            sent = stream.send_nowait(rest)
            if sent:
                attempt.bytes_sent += sent
                rest = rest[sent:]
                if blocked:
                    attempt.begin("write")
            if not rest and stream.flush_nowait():
                break
            self._listen()
            await (stream.wait_either() if len(self._held) < _MAX_HELD else stream.wait_writable())
            blocked = True
        self.sending = not self._body.is_over

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
        self._attempt.response_started = bool(self._held)
        if not data or _is_refusal(self._held):
            raise httpcore.WriteError

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data, self._held = self._held, b""
        if data:
            return data
        try:
            data = await self._stream.receive(max_bytes)
        except (OSError, anyio.ClosedResourceError) as error:
            raise httpcore.ReadError from error
        if data:
            self._attempt.response_started = True
        elif self._failure is not None:
            # A reset that the write met looks like a proper end here, and is none.
            raise httpcore.ReadError from self._failure
        else:
            self._ended = True
        return data

    async def aclose(self) -> None:
        if self.sending:
            self._stream.abort()
        else:
            self._stream.close()


def _is_refusal(received: bytes) -> bool:
    """Whether the first bytes of a response say that the rest of the request is of no use."""
    while received.startswith(b"HTTP/1.") and received[9:10] == b"1":  # informational: go on
        _, _, received = received.partition(b"\r\n\r\n")
    return len(received) > 9 and received[9:10] != b"2"
