"""What a transport around another one passes on: everything, and responses with a body of its own.

This module knows the contract. It does not know why a transport is put around another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from trunkline import Capabilities, PoolSnapshot, Request, Response, Transport, TransportError
from trunkline._bodies import IterableStream
from trunkline._fields import HeaderTypes


class PassingTransport:
    """A `Transport` that has `inner` do everything. `inner` is closed with it."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    @property
    def capabilities(self) -> Capabilities:
        """Those of `inner`, its name too."""
        return self.inner.capabilities

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        return await self.inner.send(request)

    async def warm(self, url: str, connections: int = 1) -> int:
        """See `Transport.warm`."""
        return await self.inner.warm(url, connections)

    def snapshot(self) -> PoolSnapshot:
        """See `Transport.snapshot`."""
        return self.inner.snapshot()

    async def aclose(self, drain: float = 0.0) -> None:
        """See `Transport.aclose`."""
        # A transport that has nothing to drain need not take the argument.
        if drain:
            await self.inner.aclose(drain)
        else:
            await self.inner.aclose()


class PassedBody(IterableStream):
    """The body of another response, piece by piece: as it came, unless `pieces` are given.

    Local in the sense of its base: the other response holds the connection, is dropped together
    with this one, and then says so itself.
    """

    def __init__(self, response: Response, pieces: AsyncIterator[bytes] | None = None) -> None:
        super().__init__(response.aiter_raw() if pieces is None else pieces)
        self._response = response

    def close(self) -> None:
        self._response.close()

    async def aclose(self) -> None:
        await self._response.aclose()

    def annotate(self, error: TransportError) -> None:
        self._response._stream.annotate(error)  # pyright: ignore[reportPrivateUsage]


def pass_on(response: Response, body: PassedBody, headers: HeaderTypes = None) -> Response:
    """`response` with another body, and with other headers if any are given."""
    return Response(
        response.status_code,
        headers=response.headers if headers is None else headers,
        raw_headers=response.raw_headers if headers is None else None,
        reason_phrase=response.reason_phrase,
        http_version=response.http_version,
        request=response.request,
        timings=response.timings,
        connection=response.connection,
        stream=body,
    )
