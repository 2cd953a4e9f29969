"""What the clients with httpx's interface share: a call, and reading events from lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from benchmarks.clients import Events, Headers


class _Response(Protocol):
    @property
    def content(self) -> bytes: ...

    def raise_for_status(self) -> Any: ...

    def aiter_lines(self) -> AsyncIterator[str]: ...


class _AsyncClient(Protocol):
    async def request(
        self, method: str, url: str, *, content: bytes | None, headers: Any
    ) -> _Response: ...

    def stream(
        self, method: str, url: str, *, content: bytes | None, headers: Any
    ) -> AbstractAsyncContextManager[_Response]: ...


class HttpxLike:
    """httpx, httpx2 and what is built on them."""

    def __init__(self, client: Any) -> None:
        self._client: _AsyncClient = client

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        response = await self._client.request(method, url, content=body, headers=headers)
        response.raise_for_status()
        return response.content

    @asynccontextmanager
    async def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AsyncGenerator[Events]:
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            response.raise_for_status()
            yield _events(response.aiter_lines())


async def _events(lines: AsyncIterator[str]) -> Events:
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].strip())
        elif not line and data:
            yield "\n".join(data)
            data.clear()
