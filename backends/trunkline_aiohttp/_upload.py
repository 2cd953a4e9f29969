"""A request body on its way out while the response is awaited.

This module knows pieces and back-pressure. It does not know what the response is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import trunkline
from trunkline import Attempt, Request

if TYPE_CHECKING:
    from trunkline_aiohttp._exchange import AiohttpConnection

SLICE = 262144  # bytes of a large body handed to the transport at once
_CONTINUE_SECONDS = 1.0  # wait for a 100 as long as curl does, then send the body


class ConnectionGoneError(Exception):
    """The connection was lost while the request was being sent."""


class Upload:
    """Sends a request that does not fit into the transport's buffer at once.

    `request` is None where everything has been handed to the transport and only has to drain. An
    error of the caller's iterable, a CancelledError of its own included, is kept in `error` and
    aborts the connection, which wakes whoever awaits the response.
    """

    def __init__(
        self, connection: AiohttpConnection, request: Request | None, attempt: Attempt
    ) -> None:
        self._connection = connection
        self._attempt = attempt
        self._continue = asyncio.Event()
        self._since_yield = 0
        self._is_cancelled = self.is_done = False
        self.error: BaseException | None = None
        self._task = asyncio.ensure_future(self._run(request))

    def cancel(self) -> None:
        self._is_cancelled = True
        self._task.cancel()

    def go_on(self) -> None:
        """The server has sent 100 (Continue)."""
        self._continue.set()

    async def _run(self, request: Request | None) -> None:
        try:
            if request is not None:
                await self._send(request)
            await self._drain()
        except ConnectionGoneError:
            return  # whoever awaits the response knows more
        except BaseException as error:
            if not self._is_cancelled:
                self.error = error
                self._connection.transport.abort()
            if not isinstance(error, Exception):
                raise
        else:
            self.is_done = True
            self._attempt.begin("headers")

    async def _send(self, request: Request) -> None:
        self._attempt.bytes_sent += self._connection.write(request, b"")
        if request.expects_continue:
            await self._drain()
            self._attempt.begin("headers")
            await self._wait_for_continue()
        content = request.content
        if isinstance(content, bytes):
            for start in range(0, len(content), SLICE):
                await self._write(content[start : start + SLICE])
        elif content is not None:
            self._attempt.is_body_untouched = True
            await self._connection.flush()
            if self._connection.transport.is_closing():
                raise ConnectionGoneError
            await self._send_pieces(request, content.__aiter__())

    async def _send_pieces(self, request: Request, pieces: AsyncIterator[bytes]) -> None:
        length = request.headers.get("Content-Length")
        left = None if length is None else int(length)
        try:
            # The caller's own time to produce a piece is no delay of the peer's.
            self._attempt.begin("request")
            self._attempt.is_body_untouched = False
            async for piece in pieces:
                if not isinstance(piece, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise trunkline.InvalidRequest("content: it produced something else than bytes")
                if left is None:
                    await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"")
                else:
                    left -= len(piece)
                    _check_left(left < 0, "more")
                    await self._write(piece)
                self._attempt.begin("request")
            _check_left(bool(left), "fewer")
        finally:
            close: Any = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        if left is None:
            await self._write(b"0\r\n\r\n")

    async def _write(self, data: bytes) -> None:
        transport = self._connection.transport
        for start in range(0, len(data), SLICE):
            part = data[start : start + SLICE]
            if transport.is_closing():
                raise ConnectionGoneError
            transport.write(part)
            self._attempt.bytes_sent += len(part)
            self._since_yield += len(part) + 1024
            await self._drain()

    async def _drain(self) -> None:
        if self._connection.protocol.writing_paused:
            self._attempt.begin("write")
            try:
                await self._connection.protocol.drain()
            except OSError as error:
                raise ConnectionGoneError from error
        elif self._since_yield > SLICE:
            # A body that never waits, to a peer that is never slow: let the loop see an answer.
            await asyncio.sleep(0)
        else:
            return
        self._since_yield = 0

    async def _wait_for_continue(self) -> None:
        try:
            async with asyncio.timeout(_CONTINUE_SECONDS):
                await self._continue.wait()
        except TimeoutError:
            return


def _check_left(wrong: bool, how: str) -> None:
    if wrong:
        raise trunkline.InvalidRequest(
            f"content: it produced {how} bytes than the Content-Length header says"
        )
