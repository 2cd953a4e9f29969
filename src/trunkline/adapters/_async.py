"""The async adapter: what `AsyncTransport` of both libraries is made of.

This module knows the course of a call in the caller's event loop. It does not know which of the two
libraries it serves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from trunkline import Response, Transport, TransportError
from trunkline._bodies import RawPieces
from trunkline.adapters._family import Family, Given, head_limit, open_or_take


class AsyncAdapter:
    """Sends the library's requests through a Trunkline transport."""

    _family: ClassVar[Family]
    _body_class: ClassVar[Any]

    transport: Transport
    """What the requests go through."""

    def __init__(self, config_or_transport: Given = None) -> None:
        self.transport, self._owns = open_or_take(config_or_transport)
        self._head_limit = head_limit(self.transport)

    async def handle_async_request(self, request: Any) -> Any:
        family = self._family
        try:
            content, stream = family.content(request)
            ours = family.translate_request(request, stream or content, self._head_limit)
            response = await self.transport.send(ours)
        except TransportError as error:
            raise family.translate_error(error, request) from error
        return family.translate_response(response, self._body_class(response, request))

    async def aclose(self) -> None:
        """Close the transport, if it was made here; one that was given stays open."""
        if self._owns:
            await self.transport.aclose()


class AsyncBody:
    """A response's body as the library's `AsyncByteStream`: bytes as they came, not decoded."""

    _family: ClassVar[Family]

    def __init__(self, response: Response, request: Any) -> None:
        self._response: Response | None = response
        self._request = request

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._response is None:
            raise self._family.library.StreamClosed
        return _Pieces(self._family, self._response, self._request)

    async def aclose(self) -> None:
        # The library's response is in a cycle with its body. What hangs on ours goes at once.
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()


class _Pieces(AsyncIterator[bytes]):
    """A class, not an async generator: one that is dropped leaves nothing to finalize."""

    __slots__ = ("_family", "_request", "_source")

    def __init__(self, family: Family, response: Response, request: Any) -> None:
        self._family = family
        self._source = RawPieces(response)
        self._request = request

    async def __anext__(self) -> bytes:
        try:
            piece = await self._source.next_piece()
        except TransportError as error:
            raise self._family.translate_error(error, self._request) from error
        if not piece:
            raise StopAsyncIteration
        return piece
