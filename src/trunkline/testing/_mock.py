"""`MockTransport`: a function in the place of the network.

This module knows the contract of `Transport`. It does not know sockets, pools or backends.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from trunkline import (
    Capabilities,
    InvalidRequest,
    PoolSnapshot,
    Request,
    Response,
    TransportClosed,
)

Answer: TypeAlias = Response | tuple[int, dict[str, str], bytes]
Handler: TypeAlias = Callable[[Request], Answer | Awaitable[Answer]]


class MockTransport:
    """A `Transport` that answers every request by calling a function.

    Args:
        handler: called with the `Request`, plain or async; returns a `Response`, or a tuple of
            status code, headers and body bytes. What it raises, `send` raises.

    Attributes:
        requests: what was sent, in order.
    """

    capabilities = Capabilities(name="mock", trio=True)

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[Request] = []
        self._closed = False

    async def send(self, request: Request) -> Response:
        """Call the handler. Raises `TransportClosed` after `aclose`."""
        if self._closed:
            raise TransportClosed("the transport is closed")
        self.requests.append(request)
        answer = self._handler(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Response):
            response = answer
        else:
            status_code, headers, body = answer
            response = Response(status_code, headers=headers, content=body)
        if response.request is None:
            response.request = request
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
