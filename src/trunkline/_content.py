"""The content of a request on its way out.

This module knows a request's content, and its length against what a header says. It does not know
how it is framed, or when it may be sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from trunkline._contract import Attempt
from trunkline._errors import InvalidRequest, Phase
from trunkline._messages import Request


class RequestContent:
    """The pieces of a request's content, none of them empty.

    An iterator, not an async generator: one that is dropped half-way leaves nothing to finalize.

    Args:
        begin, wait: as those of `attempt`, which they are unless another task keeps its deadlines.

    Attributes:
        size: of content that is bytes.
        is_streamed: it is an async iterable, and is sent as it is produced.
        is_empty: it is known to have no bytes.
        is_over: all of it has been taken.
    """

    def __init__(
        self,
        request: Request,
        attempt: Attempt,
        *,
        begin: Callable[[Phase], None] | None = None,
        wait: Callable[[Awaitable[Any]], Awaitable[Any]] | None = None,
    ) -> None:
        content = request.content
        self._attempt = attempt
        self._begin = begin or attempt.begin
        self._wait = wait or attempt.wait
        self._whole = content if isinstance(content, bytes) and content else None
        self._pieces: AsyncIterator[bytes] | None = None
        self._left: int | None = None
        if content is not None and not isinstance(content, bytes):
            self._pieces = content.__aiter__()
            length = request.headers.get("Content-Length")
            self._left = None if length is None else int(length)
        self.size = len(self._whole or b"")
        self.is_streamed = attempt.is_body_untouched = self._pieces is not None
        self.is_empty = self._left == 0 if self.is_streamed else not self.size
        self.is_over = False

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
        if self._left:
            raise InvalidRequest("content: it is shorter than Content-Length")
        self.is_over = True
        raise StopAsyncIteration

    async def _next_piece(self, pieces: AsyncIterator[Any]) -> bytes:
        while True:
            # What the caller needs to produce a piece is no delay of the peer's.
            self._attempt.is_body_untouched = False
            self._begin("request")
            piece = _to_bytes(await self._wait(pieces.__anext__()))
            self._begin("write")
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    raise InvalidRequest("content: it is longer than Content-Length")
            if piece:
                return piece

    async def aclose(self) -> None:
        """The rest is not sent: let the caller's generator clean up, unless it has not begun."""
        pieces, self._pieces = self._pieces, None
        if self._attempt.is_body_untouched:
            return
        aclose = getattr(pieces, "aclose", None)
        if aclose is not None:
            await aclose()


def _to_bytes(piece: Any) -> bytes:
    if isinstance(piece, bytes):
        return piece
    try:
        return bytes(memoryview(piece))
    except TypeError as error:
        raise InvalidRequest("content: the async iterable must produce bytes") from error
