"""One call: its deadlines, its body on the way out, its response, and the facts of its errors.

This module knows what can be seen of an exchange from outside the library: when it asks for a piece
of the body, when the head is there, and when a piece of the response is. What happens between those
moments (whether a connection was reused, how much has left the machine) it does not know, and says
so: such facts are None, and the verdict on a replay is the cautious one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import timedelta
from time import monotonic
from typing import Any, TypeVar

from multidict import CIMultiDict, CIMultiDictProxy
from pyreqwest.bytes import Bytes
from pyreqwest.client import Client
from pyreqwest.http import Url
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response as Inner

import trunkline
from trunkline import InvalidRequest, Phase, Request, Timeouts, Timings, TransportError
from trunkline.pool import Runtime, Scope
from trunkline_pyreqwest._translate import translate

T = TypeVar("T")

_PIECE = 64 * 1024
_OF_STREAMS = (trunkline.StreamRefused, trunkline.StreamReset, trunkline.GoAway)
_TIMEOUTS: dict[Phase, tuple[str, type[trunkline.TransportTimeout], str]] = {
    "write": ("write", trunkline.WriteTimeout, "no piece of the request was taken for {:g} s"),
    "headers": ("headers", trunkline.HeadersTimeout, "no complete response head within {:g} s"),
    "body": ("read", trunkline.ReadTimeout, "no byte of the response body for {:g} s"),
}


class Call:
    """The course of one call.

    Args:
        http2: the exchange may run over HTTP/2.
        by_proxy: a failure to connect is the proxy's.
        on_end: called once, when the exchange is over, however it ends.
    """

    def __init__(
        self,
        request: Request,
        runtime: Runtime,
        timeouts: Timeouts,
        *,
        backend: str,
        http2: bool,
        by_proxy: bool,
        on_end: Callable[[Call], None],
    ) -> None:
        self.request = request
        self.timeouts = timeouts
        self.timings = Timings()
        self.started = self.head_at = monotonic()
        self.is_closed = False
        self.pending: asyncio.Future[Any] | None = None
        self.end_body: Callable[[], None] | None = None
        self._runtime = runtime
        self._backend = backend
        self._http2 = http2
        self._by_proxy = by_proxy
        self._on_end: Callable[[Call], None] | None = on_end
        self._scope: Scope | None = None
        self._due_is_total = False
        self._phase: Phase = "headers"
        self._since = self.started
        self._attempts = self._bytes_sent = 0
        self._is_sent: bool | None = False
        self._has_head = False
        self._version: str | None = None
        self._upload: Upload | None = None

    # -- deadlines ---------------------------------------------------------------------------------

    def begin(self, phase: Phase) -> None:
        """Enter a phase: its deadline starts now."""
        self._phase, self._since = phase, monotonic()
        if self._scope is not None:
            self._scope.move(self.seconds(self._limit()))

    def _limit(self) -> float | None:
        entry = _TIMEOUTS.get(self._phase)
        return None if entry is None else getattr(self.timeouts, entry[0])

    def seconds(self, limit: float | None) -> float | None:
        """What is left of `limit` since the phase began, or of `total` if that is less."""
        now = monotonic()
        left = None if limit is None else self._since + limit - now
        total = self.timeouts.total
        rest = None if total is None else self.started + total - now
        self._due_is_total = rest is not None and (left is None or rest < left)
        return rest if self._due_is_total else left

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await the library, no longer than the deadlines allow and the transport is open."""
        # A task of its own: the library answers a cancellation with one that is not the caller's.
        task: asyncio.Future[T] = asyncio.ensure_future(awaitable)
        self.pending = task
        with self._runtime.scope(self.seconds(self._limit())) as scope:
            self._scope = scope
            try:
                await asyncio.wait((task,))
                return task.result()
            finally:
                self._scope = None
                task.cancel()
        raise self._cut_short()

    def _cut_short(self) -> TransportError:
        if self.is_closed:
            return trunkline.TransportClosed("the transport was closed meanwhile")
        if self._due_is_total:
            return self.too_late(self._phase)
        name, error, message = _TIMEOUTS[self._phase]
        return error(message.format(getattr(self.timeouts, name)))

    def too_late(self, phase: Phase) -> trunkline.DeadlineExceeded:
        return trunkline.DeadlineExceeded(f"not over in {self.timeouts.total:g} s", phase=phase)

    @property
    def is_total_due(self) -> bool:
        """Whether the deadline that was asked for last is that of the whole call."""
        return self._due_is_total

    def stop(self) -> None:
        """The transport is closed: whoever waits is told."""
        self.is_closed = True
        if self._scope is not None:
            self._scope.cancel()
        if self.end_body is not None:
            self.end_body()
        self.over()

    # -- the exchange ------------------------------------------------------------------------------

    async def send(self, client: Client) -> tuple[StreamRequest, Inner]:
        """Run the exchange up to the response head."""
        message = self._message(client)
        self._attempts, self._is_sent = 1, None
        self.begin("headers")
        try:
            inner = await self._head(message)
        except Exception as error:  # noqa: BLE001  # it is raised below
            failure = self.failure(error)
        else:
            self._note_head(inner)
            return message, inner
        raise failure

    async def _head(self, message: StreamRequest) -> Inner:
        try:
            inner = await self.wait(message.__aenter__())
            self._has_head = True
        finally:
            if self._upload is not None and not self._has_head:
                await self._upload.aclose()
        return inner

    def _note_head(self, inner: Inner) -> None:
        self.head_at = monotonic()
        self._version = inner.version.replace("/2.0", "/2")
        self._is_sent = True if self._upload is None or self._upload.is_over else None
        self.timings.wait = self.head_at - self._since

    def _message(self, client: Client) -> StreamRequest:
        request, content = self.request, self.request.content
        try:
            url = Url(request.url)
        except ValueError as error:
            raise InvalidRequest("url: pyreqwest cannot use it") from error
        if _target(url) != request.path:
            raise InvalidRequest("url: pyreqwest would change its path; give it normalized")
        builder = client.request(request.method, url).streamed_read_buffer_limit(0)
        # The framing of what has no length is the library's.
        by_library = {("Transfer-Encoding", "chunked")}
        if (
            self._http2
        ):  # there the library says it as ":authority", and nginx refuses to hear it twice
            by_library.add(("Host", request.origin.authority))
        fields = [pair for pair in request.wire_headers() if pair not in by_library]
        builder = builder.headers(fields)
        if isinstance(content, bytes) and len(content) <= _PIECE:
            self._bytes_sent = len(content)
            builder = builder.body_bytes(content)
        elif content is not None:
            self._upload = Upload(self)
            builder = builder.body_stream(self._upload)
        if self.timeouts.total is not None:
            # An exchange that is given up before its head goes on in the library; not for ever.
            builder = builder.timeout(timedelta(seconds=self.timeouts.total))
        return builder.build_streamed()

    def took(self, size: int) -> None:
        """The library has taken a piece of the body, and wants the next."""
        self._bytes_sent += size

    def sent(self) -> None:
        """The library has taken the whole body."""
        self._is_sent = True
        self.timings.send = monotonic() - self._since
        self.begin("headers")

    def over(self) -> None:
        """The exchange has ended."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)
            if self._upload is not None and not self._upload.is_over:
                self._runtime.spawn(self._upload.aclose, keep=True)

    # -- what its errors say -----------------------------------------------------------------------

    def failure(self, error: Exception) -> Exception:
        """What `error` means.

        It is raised where `error` is not being handled any more: one of the caller's own stays as
        it is, with the cause and context that it has.
        """
        failure = self._upload.failure if self._upload is not None else None
        if failure is None and not isinstance(error, TransportError):
            failure = translate(error, in_body=self._has_head, by_proxy=self._by_proxy)
            if failure is not None:
                failure.__cause__ = error
        failure = failure or error
        if isinstance(failure, trunkline.ConnectTimeout) and not self.request.origin.is_tls:
            failure.phase = "connect"  # the library does not always say that it was at TCP
        if isinstance(failure, TransportError):
            self.describe(failure)
        return failure

    def describe(self, error: TransportError) -> None:
        """Write the facts into `error`."""
        error.host, error.port = self.request.origin.host, self.request.origin.port
        error.backend, error.http_version = self._backend, self._version
        error.attempts, error.elapsed = self._attempts, monotonic() - self.started
        never_sent = isinstance(error, (trunkline.ConnectionFailed, trunkline.ConnectTimeout,
                                        InvalidRequest))  # fmt: skip
        if not self._attempts or never_sent:
            error.attempts, error.request_sent, error.bytes_sent = 0, False, 0
            error.replay = "safe"
            return
        if error.phase is None:
            error.phase = self._phase
        error.request_sent, error.bytes_sent = self._is_sent, self._bytes_sent
        # What cannot be understood has begun to arrive.
        error.response_started = self._has_head or (
            isinstance(error, trunkline.RemoteProtocolError) and not isinstance(error, _OF_STREAMS)
        )
        if isinstance(error, trunkline.StreamRefused):
            error.replay = "safe"
        else:
            error.replay = "unsafe" if error.response_started else "if_idempotent"


def _target(url: Url) -> str:
    query = url.query_string
    return url.path if query is None else f"{url.path}?{query}"


class Upload:
    """A body on its way out: an async iterator for the library, which asks when it can send more.

    Attributes:
        failure: what the caller's iterable raised, or what is wrong with what it produced.
        is_over: all of it has been taken.
    """

    def __init__(self, call: Call) -> None:
        content = call.request.content
        self._call = call
        self._pieces = _slices(content) if isinstance(content, bytes) else content.__aiter__()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        length = call.request.headers.get("Content-Length")
        self._left = None if length is None else int(length)
        self._is_stopped = False
        self._puller: asyncio.Task[Any] | None = None
        self.failure: Exception | None = None
        self.is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_stopped:
            raise RuntimeError("the call is over; its body is not wanted any more")
        self._call.begin("request")
        self._puller = asyncio.current_task()
        try:
            piece = await self._next()
        except StopAsyncIteration:
            self.is_over = True
            self._call.sent()
            raise
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._puller = None
        self._call.took(len(piece))
        self._call.begin("write")
        return piece

    async def _next(self) -> bytes:
        try:
            piece = b""
            while not piece:
                piece = await anext(self._pieces)
                if not isinstance(piece, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise InvalidRequest("content: the iterable has to produce bytes")
        except StopAsyncIteration:
            if self._left:
                raise InvalidRequest("content: shorter than its Content-Length") from None
            raise
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                raise InvalidRequest("content: longer than its Content-Length")
        return piece

    async def aclose(self) -> None:
        """Nothing more is sent: end the caller's async generator in good order."""
        self._is_stopped = True
        puller = self._puller
        if puller is not None:
            puller.cancel()
            await asyncio.wait((puller,))
        close: Any = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


async def _slices(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


class Download:
    """A `trunkline.BodyStream` on the library's reader; the single owner of the call's slot."""

    def __init__(self, call: Call, message: StreamRequest, inner: Inner, runtime: Runtime) -> None:
        self._call = call
        self._message = message
        self._reader = inner.body_reader
        self._runtime = runtime
        self.is_over = False
        call.end_body = self.close

    async def read(self) -> bytes:
        call = self._call
        if self.is_over and not call.is_closed:
            return b""
        call.begin("body")
        try:
            if call.is_closed:
                raise trunkline.TransportClosed("the transport was closed meanwhile")
            piece = await call.wait(self._reader.read_chunk())
        except Exception as error:  # noqa: BLE001  # it is raised below
            failure = call.failure(error)
        except BaseException:
            self.close()
            raise
        else:
            return self._taken(piece)
        self.close()
        raise failure

    def _taken(self, piece: Bytes | None) -> bytes:
        if piece is not None:
            return bytes(piece)
        call = self._call
        now = monotonic()
        call.timings.receive, call.timings.total = now - call.head_at, now - call.started
        self.close()
        return b""

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            pending = self._call.pending
            if pending is None or pending.done():
                self._end()
            else:
                pending.add_done_callback(lambda _: self._end())
            self._call.over()

    def _end(self) -> None:
        end(self._message.__aexit__(None, None, None))

    def abandon(self) -> None:
        self._runtime.call_soon_threadsafe(self.close)

    def annotate(self, error: TransportError) -> None:
        self._call.describe(error)


def end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run one of the library's coroutines that does not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()


def decode_head(inner: Inner) -> CIMultiDictProxy[str]:
    """The response's header fields.

    Raises:
        RemoteProtocolError: the library cannot give one of them, since it is not ASCII; or the head
            is one that nobody can have asked for, or has two ways to frame the body.
    """
    try:
        headers = CIMultiDictProxy(CIMultiDict(inner.headers.items()))
    except ValueError as error:
        raise trunkline.RemoteProtocolError("a header value is not ASCII") from error
    if inner.status == 101:
        raise trunkline.RemoteProtocolError("the peer switched to a protocol nobody asked for")
    coding = headers.get("Transfer-Encoding")
    if coding is not None and (coding.lower() != "chunked" or "Content-Length" in headers):
        # RFC 9112 section 6.3: it may be an attempt to smuggle a response.
        raise trunkline.RemoteProtocolError("the framing of the response is not clear")
    return headers
