"""Requests as a test sees them: with the body read; and the error for one it did not expect.

This module knows `Request`. It does not know who answers.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

import anyio.lowlevel

from trunkline import InvalidRequest, Request, Timeouts
from trunkline._messages import Content
from trunkline._urls import Target


class UnexpectedRequest(AssertionError):
    """A request that the test made no provision for.

    Not a `TransportError`: code under test that handles those must not hide it. Unlike theirs, its
    message shows what was sent, apart from what `Redaction` takes out of a cassette.
    """


class ReceivedRequest(Request):
    """A request whose body, streamed or not, has been read."""

    __slots__ = ()

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else b""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON. Raises ValueError: it is not."""
        return json.loads(self.body)

    @property
    def params(self) -> Mapping[str, list[str]]:
        """The query: the values of each key, decoded."""
        return parse_qs(self.path.partition("?")[2], keep_blank_values=True)


class PartialRequest(ReceivedRequest):
    """One whose body was not taken to its end: it was answered, or failed, before."""

    __slots__ = ()


async def receive(request: Request) -> ReceivedRequest:
    """Read the body of `request`.

    Raises:
        InvalidRequest: it is not as long as its Content-Length says, or no bytes.
    """
    content = request.content
    if content is not None and not isinstance(content, bytes):
        pieces = content.__aiter__()
        try:
            content = b"".join([check_piece(piece) async for piece in pieces])
        finally:
            await end(pieces)
    return with_content(request, content, request.headers.items())


async def end(pieces: AsyncIterator[bytes] | None) -> None:
    """The rest is not wanted: let a generator clean up."""
    close: Any = getattr(pieces, "aclose", None)
    if close is not None:
        await close()


def check_piece(piece: Any) -> bytes:
    """`piece` itself. Raises InvalidRequest: it is no bytes."""
    if not isinstance(piece, bytes):
        raise InvalidRequest("content: the async iterable must produce bytes")
    return piece


def with_content(
    request: Request, content: bytes | None, headers: Iterable[tuple[str, str]]
) -> ReceivedRequest:
    """`request` with another body and other headers."""
    return ReceivedRequest(
        request.method,
        Target(request.origin, request.path),
        headers=tuple(headers),
        content=content,
        timeouts=request.timeouts,
        idempotent=request.idempotent,
        priority=request.priority,
    )


def copied(request: Request, content: Content, timeouts: Timeouts | None) -> Request:
    """`request` with this body, which may be a stream, and these deadlines."""
    return Request(
        request.method,
        Target(request.origin, request.path),
        headers=request.headers,
        content=content,
        timeouts=timeouts,
        idempotent=request.idempotent,
        priority=request.priority,
    )


class Chunks(AsyncIterator[bytes]):
    """A body that comes in these pieces, with a turn of the event loop before each.

    A class, not an async generator: one dropped half-way leaves nothing to finalize.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._rest = iter(chunks)

    async def __anext__(self) -> bytes:
        for chunk in self._rest:
            await anyio.lowlevel.checkpoint()
            return chunk
        raise StopAsyncIteration
