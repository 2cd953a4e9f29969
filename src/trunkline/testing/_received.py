"""Requests as a test sees them: with the body read; and the error for one it did not expect.

This module knows `Request`. It does not know who answers.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

import anyio.lowlevel

from trunkline import Request
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


async def receive(request: Request) -> ReceivedRequest:
    """Read the body of `request`.

    Raises:
        InvalidRequest: its length is not what its Content-Length says.
    """
    content = request.content
    if content is not None and not isinstance(content, bytes):
        content = b"".join([piece async for piece in request.pieces()])
    return ReceivedRequest(
        request.method,
        Target(request.origin, request.path),
        headers=request.headers,
        content=content,
        timeouts=request.timeouts,
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
