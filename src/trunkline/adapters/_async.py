"""The async adapter: what `AsyncTransport` of both libraries is made of.

This module knows the course of a call in the caller's event loop. It does not know which of the two
libraries it serves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from trunkline import Response, Transport, TransportError
from trunkline._bodies import Pieces
from trunkline.adapters._family import Family, Given, head_limit, open_or_take


class AsyncAdapter:
    """Sends the library's requests through a Trunkline transport."""

    _family: ClassVar[Family]
    _body_class: ClassVar[Any]
    _response_class: ClassVar[Any]

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
        body = self._body_class(response, request)
        answer = family.translate_response(response, body, self._response_class)
        answer.body = body
        return answer

    async def aclose(self) -> None:
        """Close the transport, if it was made here; one that was given stays open."""
        if self._owns:
            await self.transport.aclose()


class AsyncResponse:
    """What is besides in the library's response: a whole body is read in one step.

    The library has four async generators, one inside the other, between `aread` and the transport.
    They are gone round where they have nothing to do: the body is not coded, nobody has begun to
    read it, and nobody has put a stream of his own around it.
    """

    _family: ClassVar[Family]

    body: AsyncBody

    async def aread(self: Any) -> bytes:
        """The whole body, as the library's own `aread`."""
        if self.is_stream_consumed or self.is_closed or not self._family.is_direct(self, self.body):
            library: Any = super()
            return bytes(await library.aread())
        self.is_stream_consumed = True
        try:
            content: bytes = await self.body.read_whole()
            self._content, self._num_bytes_downloaded = content, len(content)
        finally:
            await self.aclose()
        return content


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

    async def read_whole(self) -> bytes:
        """All of the body, of which nothing has been read."""
        if self._response is None:
            raise self._family.library.StreamClosed
        try:
            return await self._response.aread()
        except TransportError as error:
            raise self._family.translate_error(error, self._request) from error

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
        self._source: Pieces[bytes] = Pieces(response)
        self._request = request

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._source)
        except TransportError as error:
            raise self._family.translate_error(error, self._request) from error
