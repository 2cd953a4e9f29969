"""What of a message is the same in HTTP/1.1 and HTTP/2: header values, and content on its way out.

This module knows a request's content and who waits for whom while it is sent. It does not know how
either is framed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from multidict import CIMultiDict, CIMultiDictProxy

from trunkline import Attempt, InvalidRequest, LimitExceeded, Request

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

_MAX_FIELDS = 1000


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


class RequestBody:
    """The content of a request on its way out.

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
        self.is_streamed = attempt.is_body_untouched = self._pieces is not None
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
        if self._left:
            self.failure = InvalidRequest("content: it is shorter than Content-Length")
            raise self.failure
        self.is_over = True
        raise StopAsyncIteration

    async def _next_piece(self, pieces: AsyncIterator[Any]) -> bytes:
        while True:
            # What the caller needs to produce a piece is no delay of the peer's.
            self._attempt.is_body_untouched = False
            self._attempt.begin("request")
            piece = _to_bytes(await self._attempt.wait(pieces.__anext__()))
            self._attempt.begin("write")
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
