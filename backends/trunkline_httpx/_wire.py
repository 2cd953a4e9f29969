"""The wire as httpcore sees it.

This module knows httpcore's network stream: what it writes, in which steps, and what it takes for
an error. It does not know HTTP.
"""

from __future__ import annotations

from typing import Any

import anyio

from trunkline import Attempt, Request, TransportError
from trunkline.http1 import RequestContent, UploadStopped, Wire
from trunkline.net import Stream

_ONE_SEGMENT = 16 * 1024


class HttpcoreWire(Wire):
    """Implements httpcore's `AsyncNetworkStream`, as far as a connection uses it."""

    def __init__(self, stream: Stream, core: Any) -> None:
        super().__init__(stream)
        self._core = core
        self._joins = False
        self._head = b""

    def begin(self, request: Request, attempt: Attempt, content: RequestContent) -> None:
        super().begin(request, attempt, content)
        self._joins = 0 < content.size <= _ONE_SEGMENT and not (self._expects or self._is_apart)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if self._joins:
            self._joins, self._head = False, buffer
            return
        if self._head:
            buffer, self._head = self._head + buffer, b""
        try:
            await self.send(buffer)
        except UploadStopped as error:  # httpcore then reads the response
            raise self._core.WriteError from error
        if self._content.is_over:
            self.sent()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            return await self.receive(max_bytes)
        except TransportError:  # a deadline, which is an OSError too
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            raise self._core.ReadError from error

    async def aclose(self) -> None:
        self.close()
