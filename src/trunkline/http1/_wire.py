"""One exchange after another on a stream, as bytes that a library has framed or is to read.

This module knows when a byte goes out or comes in, and tells the attempt under way. It does not
know how a request is framed, nor how a body is taken out of its framing: that is the library's.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from trunkline._content import RequestContent
from trunkline._contract import Attempt
from trunkline._errors import LimitExceeded, TransportError
from trunkline._messages import Request
from trunkline.http1._bounds import Bounds, bounds_of
from trunkline.http1._failure import Course
from trunkline.http1._head import Head, parse_head, split_head
from trunkline.net import FAIR_SHARE, RECEIVE_SIZE, Stream, give_way

_MAX_HELD = 256 * 1024
_MAX_HEADS = 512 * 1024
_CONTINUE_SECONDS = 1.0


class UploadStopped(BrokenPipeError):
    """The peer does not want the rest of the request, or cannot have it: read its response.

    A broken pipe is what libraries on sockets know, and do that after it.
    """


class Wire:
    """A stream with one exchange at a time.

    While it sends it listens too: a peer that answers with an error before it has the whole request
    does not want the rest (RFC 9112 section 9.6), and may never read it.

    `upload`, `head` and `body` are an exchange from its beginning to its end. A backend whose
    library reads heads itself uses `begin`, `send`, `receive` and the rest instead.

    Attributes:
        is_sending: the request is not with the operating system yet, not all of it.
        awaits_head: of the final response.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._request: Request
        self._attempt: Attempt
        self._content: RequestContent
        self._bounds = Bounds(0)
        self._expects = self._is_apart = self._is_used = self._is_last = False
        self._held = b""
        self._received = self._receptions = 0
        self._failure: Exception | None = None
        self._has_ended = False
        self.is_sending = self.awaits_head = False

    def begin(self, request: Request, attempt: Attempt, content: RequestContent) -> None:
        """A request is about to be written."""
        self._request, self._attempt, self._content = request, attempt, content
        is_wary = self._is_used and self._stream.delivery.begin()
        self._is_apart = is_wary and not content.is_empty and not request.is_idempotent
        self._is_used = True
        self._received = 0
        self.is_sending = self.awaits_head = True
        self._expects = request.expects_continue

    def is_silent(self) -> bool:
        """Whether the connection is open, and no byte has come that nobody has read."""
        try:
            return not self._held and self._stream.is_silent()
        except OSError:
            return False

    def is_fit(self) -> bool:
        """Whether the exchange before left the connection fit for another, and it still is."""
        is_done = self._bounds.is_over and not (self.is_sending or self.awaits_head)
        return is_done and not self._is_last and self.is_silent()

    def course(self) -> Course:
        """How far the exchange has come."""
        return Course(
            written=not self.is_sending,
            started=self._attempt.response_started,
            in_head=self.awaits_head,
            ended=self._has_ended,
        )

    def close(self) -> None:
        """Close the stream at once. Synchronous and idempotent."""
        if self.awaits_head and not self._attempt.response_started:
            has_fin = self._has_ended or isinstance(self._failure, BrokenPipeError)
            self._attempt.is_untaken = self._stream.delivery.is_untaken(has_fin=has_fin)
            self.awaits_head = False
        self._stream.delivery.end(0)
        if self.is_sending:
            self._stream.abort()  # or the system goes on sending what it has of the request
        else:
            self._stream.close()

    # -- the request -------------------------------------------------------------------------------

    @asynccontextmanager
    async def upload(self, request: Request, attempt: Attempt) -> AsyncGenerator[RequestContent]:
        """Send a request: its content is given, and the block sends the head and every piece of it.

        The block ends early, without an error, where the peer wants or takes no more: `head` has
        its answer. Else an error of the block is raised, and the content closed. A call that has
        been cancelled sends nothing.
        """
        # An exchange that need not wait for anything would not notice.
        await anyio.lowlevel.checkpoint_if_cancelled()
        content = RequestContent(request, attempt)
        attempt.begin("write")
        self.begin(request, attempt, content)
        try:
            yield content
            self.sent()
        except UploadStopped:
            return
        finally:
            await content.aclose()

    async def send(self, data: bytes) -> None:
        """Hand `data` to the operating system; the head of a request first, and by itself.

        Raises:
            UploadStopped: there is no use in sending more.
            WriteTimeout, DeadlineExceeded: the peer takes no more, and says nothing.
        """
        attempt, stream = self._attempt, self._stream
        rest, is_blocked = memoryview(data), False
        try:
            if self._content.is_streamed and attempt.bytes_sent:
                self._listen()
            for turn in itertools.count(1):
                sent = stream.send_nowait(rest)
                if sent:
                    attempt.bytes_sent += sent
                    rest = rest[sent:]
                    if is_blocked:
                        attempt.begin("write")
                elif rest or not stream.flush_nowait():
                    await self._wait_for_room()
                    is_blocked = True
                else:
                    break
                if turn % FAIR_SHARE == 0:
                    await attempt.wait(give_way())
            if self._is_apart or self._expects:
                await self._after_head()
        except (TransportError, UploadStopped):  # they are OSErrors too, a deadline at least
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            self._failure = error
            raise UploadStopped from error

    def sent(self) -> None:
        """The whole request has been handed to the operating system."""
        self.is_sending = False
        self._attempt.begin("headers")

    async def _wait_for_room(self) -> None:
        self._listen()
        stream, is_full = self._stream, len(self._held) >= _MAX_HELD
        await self._attempt.wait(stream.wait_writable() if is_full else stream.wait_either())

    async def _after_head(self) -> None:
        if self._is_apart:
            self._is_apart = False
            self._stream.delivery.head_sent()
        if not self._expects:
            return
        self._expects = False
        # No longer than curl does: RFC 9110 section 10.1.1 says not to wait for ever.
        with anyio.move_on_after(_CONTINUE_SECONDS):
            await self._attempt.wait(self._stream.wait_readable())
        self._listen()

    def _listen(self) -> None:
        """Take in what the peer says already.

        Raises:
            UploadStopped: it does not want the rest.
        """
        if len(self._held) >= _MAX_HELD:
            return
        data = self._stream.receive_nowait(RECEIVE_SIZE)
        if data is None:
            return
        self._held += data
        self._count(data)
        if not data or is_refusal(self._held):
            raise UploadStopped

    # -- the response ------------------------------------------------------------------------------

    async def head(self) -> Head:
        """The final response head, checked; interim (1xx) responses are passed over.

        Raises:
            RemoteDisconnected, BodyTruncated, ReadError, WriteError: the connection failed.
            RemoteProtocolError, LimitExceeded: it is no head, or more than is bearable.
        """
        try:
            while (head := await self._next_head()).is_interim:
                pass
        except TransportError:
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            raise self.course().failure(error) from error
        self.head_done()
        self._bounds = bounds_of(head)
        options = self._request.fields.controls.get("connection", ())
        self._is_last = not head.keeps_alive or "close" in ",".join(options).lower()
        return head

    async def _next_head(self) -> Head:
        data, size = bytearray(), 0
        while not size:
            piece = await self.receive()
            if not piece:
                raise ConnectionResetError("the connection ended")
            before = len(data)
            data += piece
            size = split_head(data, before)
        self._held = bytes(data[size:])
        return parse_head(bytes(data[:size]), self._request.method)

    def head_done(self) -> None:
        """The final response head has come, or is not waited for any more."""
        self.awaits_head = False
        self._stream.delivery.end(self._attempt.bytes_sent)

    async def body(self) -> bytes:
        """Some bytes of the body as they came, its framing included; b"" when there are no more.

        Raises:
            BodyTruncated, ReadError: the connection ended before the body.
            RemoteProtocolError, LimitExceeded: the chunks are not well-formed, or too long.
        """
        if self._bounds.is_over:
            return b""
        try:
            data = await self.receive()
        except TransportError:  # a deadline, which is an OSError too
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            raise self.course().failure(error) from error
        if not data and not self._bounds.may_end:
            raise self.course().lost()
        size = self._bounds.take(data)
        self._held = data[size:]
        return data[:size]

    async def receive(self, max_bytes: int = RECEIVE_SIZE) -> bytes:
        """Some bytes, whatever they are; b"" at the end.

        Raises:
            OSError, anyio.ClosedResourceError: the connection failed.
            LimitExceeded: too many of them are not the final head.
        """
        if self._held:
            held, self._held = self._held, b""
            return held
        attempt, stream = self._attempt, self._stream
        if self.awaits_head and not self._received:
            # Other callers have their turn, however fast the peer answers. When it has come back
            # the answer is often there, and nothing has to be registered with the event loop.
            await anyio.lowlevel.checkpoint()
        data = stream.receive_nowait(max_bytes)
        while data is None:
            await attempt.wait(stream.wait_readable())
            data = stream.receive_nowait(max_bytes)
        self._receptions += 1
        if self._receptions % FAIR_SHARE == 0:
            await attempt.wait(give_way())
        if self.awaits_head:
            self._count(data)
        if not data:
            if self._failure is not None:
                # A reset that the write met looks like a proper end here, and is none.
                raise self._failure
            self._has_ended = True
        return data

    def _count(self, data: bytes) -> None:
        if data:
            self._attempt.response_started = True
        self._received += len(data)
        if self._received > _MAX_HEADS:
            raise LimitExceeded("interim (1xx) responses without end")


class WireExchange:
    """Implements `trunkline.Exchange`.

    Args:
        read: the next piece of the body out of its framing, b"" at its end: the library, on what
            `wire.body` gives.
    """

    def __init__(
        self, wire: Wire, head: Head, attempt: Attempt, read: Callable[[], Awaitable[bytes]]
    ) -> None:
        self.status_code, self.reason_phrase = head.status_code, head.reason_phrase
        self.http_version, self.headers = head.http_version, head.headers
        self.raw_headers = head.raw_headers
        self._wire, self._attempt, self._read = wire, attempt, read
        self.is_over = False

    async def read(self) -> bytes:
        if self.is_over:
            return b""
        self._attempt.begin("body")
        try:
            piece = await self._read()
        except BaseException as error:
            self.close()
            failure = self._wire.course().failure(error) if isinstance(error, Exception) else error
            if failure is error:
                raise
            raise failure from error
        self.is_over = not piece
        return piece

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._wire.close()


def is_refusal(received: bytes) -> bool:
    """Whether the first bytes of a response say that the rest of the request is of no use."""
    while received.startswith(b"HTTP/1.") and received[9:10] == b"1":  # informational: go on
        _, _, received = received.partition(b"\r\n\r\n")
    return len(received) > 9 and received[9:10] != b"2"
