"""`MockTransport`: a function in the place of the network.

This module knows the contract of `Transport`. It does not know sockets, pools or backends.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from trunkline import (
    Capabilities,
    InvalidRequest,
    PoolSnapshot,
    Request,
    Response,
    Timeouts,
    TransportClosed,
)
from trunkline.testing._timed import TimedCall, timed

Answer: TypeAlias = Response | tuple[int, dict[str, str], bytes]
Handler: TypeAlias = Callable[[Request], Answer | Awaitable[Answer]]


def as_response(answer: Any) -> Response:
    """What a handler answered. Raises TypeError: it is no answer."""
    if isinstance(answer, Response):
        return answer
    kind, parts = type(answer).__name__, _parts(answer)
    if parts is None:
        raise TypeError(
            f"a handler has to return a Response or (status code, headers, body), not {kind}"
        )
    status_code, headers, body = parts
    return Response(status_code, headers=headers, content=body)


def _parts(answer: Any) -> tuple[int, dict[str, str], bytes] | None:
    size: int = len(answer) if isinstance(answer, tuple) else 0  # pyright: ignore[reportUnknownArgumentType]
    return cast("Any", answer) if size == 3 else None


class MockTransport:
    """A `Transport` that answers every request by calling a function.

    Args:
        handler: called with the `Request`, plain or async; returns a `Response`, or a tuple of
            status code, headers and body bytes. What it raises, `send` raises.
        timeouts: as in `TransportConfig`. An async handler that takes longer than `headers` (from
            the call on; where the request's body is a stream, which is the handler's to read, only
            `total` counts) is cancelled and `HeadersTimeout` raised; `read` bounds each piece of a
            body that an iterable produces, and `total` all of it.

    Attributes:
        requests: what was sent, in order.
    """

    capabilities = Capabilities(name="mock", trio=True)

    def __init__(self, handler: Handler, *, timeouts: Timeouts | None = None) -> None:
        self._handler = handler
        self._timeouts = timeouts or Timeouts()
        self.requests: list[Request] = []
        self._closed = False

    async def send(self, request: Request) -> Response:
        """Call the handler.

        Raises:
            TransportClosed: after `aclose`.
            HeadersTimeout, DeadlineExceeded: the handler took too long.
        """
        if self._closed:
            raise TransportClosed("the transport is closed")
        self.requests.append(request)
        call = TimedCall(request, self._timeouts, self.capabilities.name)
        answer = self._handler(request)
        if inspect.isawaitable(answer):
            answer = await call.wait("headers" if request.is_rewindable else "request", answer)
        response = as_response(answer)
        if response.request is None:
            response.request = request
        response._stream = timed(response._stream, call)  # pyright: ignore[reportPrivateUsage]
        return response

    async def warm(self, url: str, connections: int = 1) -> int:
        """There is nothing to open: 0. Raises `TransportClosed` after `aclose`."""
        if self._closed:
            raise TransportClosed("the transport is closed")
        if connections < 1:
            raise InvalidRequest("connections: it must be at least 1")
        Request("GET", url)
        return 0

    def snapshot(self) -> PoolSnapshot:
        """An empty one."""
        return PoolSnapshot()

    async def aclose(self, drain: float = 0.0) -> None:
        """After this, `send` raises `TransportClosed`."""
        self._closed = True
