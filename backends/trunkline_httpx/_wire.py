"""HTTP/1.1: the byte stream that httpcore writes requests to and reads responses from.

This module knows when a byte goes out or comes in, and tells the attempt under way. Of HTTP it
knows what it has to listen for while it writes: the first bytes of a response.
"""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import anyio.lowlevel

from trunkline import Attempt, LimitExceeded, Request, TransportError
from trunkline_httpx._message import RequestBody
from trunkline_httpx._network import FAIR_SHARE, RECEIVE_SIZE, Stream, give_way
from trunkline_httpx._translate import Course

_MAX_HELD = 256 * 1024
_MAX_HEADS = 512 * 1024
_CONTINUE_SECONDS = 1.0
_ONE_SEGMENT = 16 * 1024


class Wire:
    """The stream as httpcore sees it, which reports to the attempt under way.

    It also listens while it writes: a peer that answers with an error before it has the whole
    request does not want the rest (RFC 9112 section 9.6), and may never read it.

    Attributes:
        is_sending: the request is not with the operating system yet, not all of it.
        awaits_head: of the final response.
    """

    def __init__(self, stream: Stream, core: Any) -> None:
        self._stream = stream
        self._core = core
        self._attempt: Attempt
        self._body: RequestBody
        self._joins = self._expects = self._is_apart = False
        self._head: bytes | None = None
        self._held = b""
        self._received = self._receptions = 0
        self._failure: Exception | None = None
        self._has_ended = False
        self.is_sending = self.awaits_head = False

    def begin(
        self, request: Request, attempt: Attempt, body: RequestBody, *, is_apart: bool
    ) -> None:
        """A request is about to be written; `is_apart`: its body as a segment of its own."""
        self._attempt = attempt
        self._body = body
        self._received = 0
        self.is_sending = self.awaits_head = True
        self._expects = request.headers.get("Expect", "").lower() == "100-continue"
        self._is_apart = is_apart
        self._joins = 0 < body.size <= _ONE_SEGMENT and not (self._expects or is_apart)

    def course(self) -> Course:
        return Course(
            written=not self.is_sending,
            started=self._attempt.response_started,
            in_head=self.awaits_head,
            ended=self._has_ended,
        )

    # -- what httpcore asks for --------------------------------------------------------------------

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if self._joins:
            self._joins, self._head = False, buffer
            return
        if self._head is not None:
            buffer, self._head = self._head + buffer, None
        try:
            await self._send(memoryview(buffer))
            if self._is_apart:
                self._is_apart = False
                self._stream.delivery.head_sent()
            if self._expects:
                self._expects = False
                await self._wait_for_continue()
        except TransportError:  # a deadline, which is an OSError too
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            self._failure = error
            raise self._core.WriteError from error
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
                raise self._core.ReadError from error
        if self.awaits_head:
            self._count(data)
        if not data:
            if self._failure is not None:
                # A reset that the write met looks like a proper end here, and is none.
                raise self._core.ReadError from self._failure
            self._has_ended = True
        return data

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        if self.awaits_head and not self._attempt.response_started:
            has_fin = self._has_ended or isinstance(self._failure, BrokenPipeError)
            self._attempt.is_untaken = self._stream.delivery.is_untaken(has_fin=has_fin)
            self.awaits_head = False
        if self.is_sending:
            self._stream.abort()  # or the system goes on sending what it has of the request
        else:
            self._stream.close()

    # -- the steps -----------------------------------------------------------------------------

    async def _send(self, rest: memoryview) -> None:
        attempt, stream, is_blocked = self._attempt, self._stream, False
        if self._body.is_streamed and attempt.bytes_sent:
            self._listen()
        for turn in itertools.count(1):
            sent = stream.send_nowait(rest)
            if sent:
                attempt.bytes_sent += sent
                rest = rest[sent:]
                if is_blocked:
                    attempt.begin("write")
            elif rest or not stream.flush_nowait():
                self._listen()
                is_full = len(self._held) >= _MAX_HELD
                await attempt.wait(stream.wait_writable() if is_full else stream.wait_either())
                is_blocked = True
            else:
                return
            if turn % FAIR_SHARE == 0:
                await attempt.wait(give_way())

    async def _wait_for_continue(self) -> None:
        # No longer than curl does: RFC 9110 section 10.1.1 says not to wait for ever.
        with anyio.move_on_after(_CONTINUE_SECONDS):
            await self._attempt.wait(self._stream.wait_readable())
        self._listen()

    async def _receive(self, max_bytes: int) -> bytes:
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
            raise self._core.WriteError

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
