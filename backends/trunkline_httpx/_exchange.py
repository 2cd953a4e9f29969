"""HTTP/1.1: a connection that httpx runs exchanges on, and an exchange.

This module knows how httpx and httpcore take a request apart and give a response back. It does not
know how the stream was opened, or when a connection may be used again by whom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio.lowlevel

from trunkline import Attempt, Request
from trunkline.http1 import RawHeaders, check_head, decode_headers, wire_fields
from trunkline.net import Stream
from trunkline_httpx._family import Family
from trunkline_httpx._httpcore import Message, drop_lock, make_transport, unread
from trunkline_httpx._message import RequestBody
from trunkline_httpx._translate import translate
from trunkline_httpx._wire import HttpcoreWire


class Http1Connection:
    """Implements `trunkline.Connection`.

    Args:
        stream: open, and to the origin or to a proxy that forwards.
        family: the libraries that run the exchanges.
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
        family: Family,
        prefix: str = "",
        extra_headers: RawHeaders = (),
        cut_short: list[AsyncIterator[bytes]],
    ) -> None:
        self.peer = stream.peer
        self.ssl_object = stream.ssl_object
        self._stream = stream
        self._prefix = prefix
        self._extra_headers = extra_headers
        self._cut_short = cut_short
        self._family = family
        self._wire = HttpcoreWire(stream, family.core)
        self._inner = family.core.AsyncHTTP11Connection(
            family.origin, self._wire, keepalive_expiry=None
        )
        drop_lock(self._inner)
        self._transport = make_transport(self._inner, family.client)
        self._used = False

    def is_usable(self) -> bool:
        if self._used and not self._inner.is_idle():
            return False
        return not unread(self._inner) and self._wire.is_silent()

    async def exchange(self, request: Request, attempt: Attempt) -> Http1Exchange:
        # A call that has been cancelled sends nothing, and else would not notice.
        await anyio.lowlevel.checkpoint_if_cancelled()
        attempt.begin("write")
        body = self._family.body(request, attempt)
        self._used = True
        self._wire.begin(request, attempt, body)
        try:
            message = self._message(request, body)
            response = await self._transport.handle_async_request(message)
            self._wire.head_done()
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

    def _message(self, request: Request, body: RequestBody) -> Message:
        headers = wire_fields(request)
        headers[1:1] = self._extra_headers
        return Message(request.method, (self._prefix + request.path).encode(), headers, body)

    def translate(self, error: BaseException) -> BaseException | None:
        return translate(error, self._family.table, self._wire.course())

    def cut_short(self, pieces: AsyncIterator[bytes]) -> None:
        self.abort()
        self._cut_short.append(pieces)

    def abort(self) -> None:
        self._wire.close()

    def close(self) -> None:
        self._stream.close()


class Http1Exchange:
    """Implements `trunkline.Exchange`."""

    def __init__(self, connection: Http1Connection, response: Any, attempt: Attempt) -> None:
        extensions = response.extensions
        self.status_code: int = response.status_code
        self.http_version: str = extensions["http_version"].decode("ascii")
        self.reason_phrase: str = extensions["reason_phrase"].decode("utf-8", "surrogateescape")
        self.raw_headers: RawHeaders = tuple(response.headers.raw)
        self.headers = decode_headers(self.raw_headers)
        check_head(self.status_code, self.http_version, self.headers)
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
