"""One request to an ASGI application and its response, both streamed, nothing buffered.

This module knows the HTTP messages of ASGI and HTTP's rules for a response. It does not know which
application answers, nor its lifespan.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel

from trunkline import (
    BodyTruncated,
    InvalidRequest,
    ReadError,
    Request,
    Timings,
    TransportClosed,
    TransportError,
)
from trunkline._messages import make_headers
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.pool._runtime import Runtime
from trunkline.testing._asgi_scope import RawHeaders, decode
from trunkline.testing._facts import head_size, place, sent_size
from trunkline.testing._lifespan import ASGIApp, Message
from trunkline.testing._received import check_piece, end

logger = logging.getLogger("trunkline.testing")

_BODILESS = frozenset({204, 304})
_TURNS = 20  # of the event loop: an application that takes more after its response does other work


class ClientGone(OSError):
    """What `send` raises then (ASGI specification, "Disconnected Client")."""


class Upload:
    """The request's body, taken by the application piece by piece."""

    def __init__(self, request: Request, attempt: ExchangeAttempt) -> None:
        content = request.content
        self._attempt = attempt
        self._pieces: AsyncIterator[bytes] | None = None
        self._whole = content if isinstance(content, bytes) else b""
        self._left: int | None = None
        if content is not None and not isinstance(content, bytes):
            self._pieces = content.__aiter__()
            length = request.headers.get("Content-Length")
            self._left = None if length is None else int(length)
        self.is_streamed = self._pieces is not None
        self.is_over = False

    async def take(self) -> Message:
        """The next `http.request` message.

        Raises:
            InvalidRequest: the body is not as long as its Content-Length says.
            Exception: whatever the caller's own iterable raises.
        """
        if self._pieces is None:
            piece, self.is_over = self._whole, True
        else:
            piece = await self._next(self._pieces)
        return {"type": "http.request", "body": piece, "more_body": not self.is_over}

    async def _next(self, pieces: AsyncIterator[bytes]) -> bytes:
        self._begin("request")
        async for piece in pieces:
            if self._left is not None:
                self._left -= len(check_piece(piece))
                self._check(self._left >= 0, "longer")
            if check_piece(piece):
                self._attempt.bytes_sent += len(piece)
                self._begin("write")
                return piece
        self._check(not self._left, "shorter")
        self.is_over = True
        self._begin("headers")
        return b""

    def _begin(self, phase: Any) -> None:
        if not self._attempt.response_started:
            self._attempt.begin(phase)

    def _check(self, is_right: bool, how: str) -> None:
        if not is_right:
            raise InvalidRequest(f"content: it is {how} than Content-Length")

    async def aclose(self) -> None:
        """The rest is not wanted."""
        await end(self._pieces)


class ASGIExchange:
    """Both ends of one exchange: ASGI's `receive` and `send`, and a `BodyStream` for the response.

    A piece of the response is handed over, not stored: the application goes on when it is taken.

    Args:
        on_close: called once, when the caller is done, with the reason as in `PoolSnapshot.closed`.
    """

    def __init__(
        self,
        request: Request,
        attempt: ExchangeAttempt,
        runtime: Runtime,
        backend: str,
        on_close: Callable[[ASGIExchange, str], None],
        *,
        raise_app_exceptions: bool,
    ) -> None:
        self.request = request
        self.attempt = attempt
        self.timings = Timings()
        self.status_code = 0
        self.raw_headers: RawHeaders = ()
        self.late_failure: BaseException | None = None
        self._started = monotonic()
        self._runtime = runtime
        self._backend = backend
        self._on_close: Callable[[ASGIExchange, str], None] | None = on_close
        self._raises = raise_app_exceptions
        self._upload = Upload(request, attempt)
        self._change = anyio.Event()
        self._piece = b""
        self._length: int | None = None
        self._received = 0
        self._is_complete = False
        self._is_gone = False
        self._is_taking = False
        self._has_returned = False
        self._failure: BaseException | None = None
        self._app_error: BaseException | None = None

    def _notify(self) -> None:
        change, self._change = self._change, anyio.Event()
        change.set()

    # -- the application's end ---------------------------------------------------------------------

    async def run(self, app: ASGIApp, scope: Message) -> None:
        """Call the application; whatever comes of it is told to the caller."""
        try:
            await app(scope, self._receive, self._send)
            if not self._is_complete and not self._is_gone:
                raise RuntimeError("the application returned before its response was complete")
        except anyio.get_cancelled_exc_class():
            self._failure = TransportClosed("the transport was closed meanwhile")
            raise
        # What a test framework raises to end a test is no Exception.
        except BaseException as error:  # noqa: BLE001
            self._app_failed(error)
        finally:
            self._has_returned = True
            self._notify()
            await self._upload.aclose()

    def _app_failed(self, error: BaseException) -> None:
        if self._is_gone and isinstance(error.__context__ or error, ClientGone):
            logger.debug("the application ended with its client", exc_info=error)
        elif self._is_gone:
            logger.warning("the application failed after its client had gone", exc_info=error)
        elif self._raises:
            if self._is_complete:
                self.late_failure = error
            else:
                self._failure = self._app_error = error
        else:
            logger.error("the application failed", exc_info=error)
            self._answer_failure(error)

    def _answer_failure(self, error: BaseException) -> None:
        """As a server does."""
        if not self.status_code:
            self._piece = b"Internal Server Error"
            length = str(len(self._piece)).encode()
            self.raw_headers = ((b"content-type", b"text/plain"), (b"content-length", length))
            self.status_code = 500
            self._piece = b"" if self.request.method == "HEAD" else self._piece
            self._is_complete = True
        elif not self._is_complete:
            self._failure = BodyTruncated("the application failed inside its response")
            self._failure.__cause__ = error

    async def _receive(self) -> Message:
        while self._is_taking and not self._is_gone:  # another task of the application's takes too
            await self._change.wait()
        if not self._upload.is_over and not self._is_gone:
            self._is_taking = True
            try:
                return await self._upload.take()
            except Exception as error:  # noqa: BLE001 it is the caller's own, and raised to them
                self._failure = error
                self.close()
            finally:
                self._is_taking = False
                self._notify()
        while not self._is_gone and not self._is_complete:
            await self._change.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._is_gone:
            await anyio.lowlevel.checkpoint()
            raise ClientGone("the client has disconnected")
        if message["type"] == "http.response.start":
            self._take_head(message)
        elif message["type"] == "http.response.body":
            await self._take_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"the application sent {message['type']!r} in a response")

    def _take_head(self, message: Message) -> None:
        if self.status_code:
            raise RuntimeError("the application began its response twice")
        raw = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
        try:
            headers = make_headers(decode(raw))
        except InvalidRequest as error:
            raise RuntimeError(f"the application's response: {error}") from error
        status = message["status"]
        lengths = headers.getall("Content-Length", [])
        if self.request.method != "HEAD" and status not in _BODILESS and lengths:
            self._length = int(lengths[0])
        self.raw_headers, self.status_code = raw, status
        self.attempt.response_started = True
        self._notify()

    async def _take_body(self, piece: bytes, *, more: bool) -> None:
        if not self.status_code or self._is_complete:
            when = "before its head" if not self.status_code else "after its end"
            raise RuntimeError(f"the application sent a piece of its response {when}")
        if self.request.method == "HEAD":
            piece = b""
        elif piece and self.status_code in _BODILESS:
            raise RuntimeError(f"the application sent a body with a {self.status_code}")
        self._received += len(piece)
        if self._length is not None:
            wrong = self._received > self._length or (not more and self._received < self._length)
            if wrong:
                how = "longer" if self._received > self._length else "shorter"
                raise RuntimeError(f"the application's response is {how} than its Content-Length")
        await self._hand_over(bytes(piece), is_last=not more)

    async def _hand_over(self, piece: bytes, *, is_last: bool) -> None:
        while self._piece and not self._is_gone:  # another task of the application's sends too
            await self._change.wait()
        if self._is_gone:
            return
        self._piece = piece
        self._is_complete = is_last
        self._notify()
        while self._piece is piece and piece and not self._is_gone:
            await self._change.wait()

    # -- the caller's end --------------------------------------------------------------------------

    async def head(self) -> None:
        """Return when the response has begun.

        Raises:
            TransportError: it has not; or what the application raised.
        """
        attempt = self.attempt
        streamed = self._upload.is_streamed
        attempt.bytes_sent = head_size(self.request) if streamed else sent_size(self.request)
        attempt.begun = monotonic()
        attempt.begin("write" if streamed else "headers")
        try:
            await attempt.wait(self._until_head())
        except BaseException as error:
            self.give_up(error)
            raise
        self.timings.send = attempt.head_due_from - attempt.begun
        self.timings.wait = monotonic() - attempt.head_due_from

    async def _until_head(self) -> None:
        while not self.status_code:
            if self._failure is not None:
                raise self._failure
            await self._change.wait()
        if self.is_over:
            await self._settle()

    async def _settle(self) -> None:
        """The response is complete: raise what the application raises right after it."""
        for _ in range(_TURNS if self._raises else 0):
            if self._has_returned:
                break
            await anyio.lowlevel.checkpoint()
        if self.late_failure is not None:
            self._app_error, self.late_failure = self.late_failure, None
            raise self._app_error

    @property
    def is_over(self) -> bool:
        """Nothing more comes."""
        return self._is_complete and not self._piece

    async def read(self) -> bytes:
        if self._on_close is None and self._failure is None:
            if self._is_complete:
                return b""
            raise ReadError("the response is closed")
        self.attempt.begin("body")
        try:
            piece = await self.attempt.wait(self._next_piece())
        except BaseException as error:
            self.give_up(error)
            raise
        if self.is_over:
            self._end("ended")
        return piece

    async def _next_piece(self) -> bytes:
        while not self._piece and not self._is_complete:
            if self._failure is not None:
                raise self._failure
            await self._change.wait()
        piece, self._piece = self._piece, b""
        self._notify()
        if self.is_over:
            await self._settle()
        return piece

    def give_up(self, error: BaseException) -> None:
        """End it because of `error`, and write the facts into it unless it is the application's."""
        if isinstance(error, TransportError) and error is not self._app_error:
            self.annotate(error)
        self.close()

    def _end(self, reason: str) -> None:
        done, self._on_close = self._on_close, None
        if done is not None:
            now = monotonic()
            self.timings.total = now - self._started
            self.timings.receive = now - self.attempt.head_due_from - (self.timings.wait or 0.0)
            done(self, reason)

    def fail(self, error: TransportError) -> None:
        """End it with `error`, from outside: the caller's next read raises it."""
        self._failure = self._failure or error
        self._piece = b""
        self.close()

    def close(self) -> None:
        """The caller is gone: the application gets `http.disconnect`, unless it has finished."""
        if self._on_close is None:
            return
        self._is_gone = not self.is_over
        self._end("aborted" if self._is_gone else "ended")
        self._notify()

    def abandon(self) -> None:
        self._runtime.call_soon_threadsafe(self.close)

    def annotate(self, error: TransportError) -> None:
        self.attempt.describe(error)
        place(error, self.request, self._backend, self._started)
        error.attempts, error.http_version = 1, "HTTP/1.1"
