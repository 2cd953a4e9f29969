"""aiohttp's own `ClientSession`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp

from benchmarks._model import Target
from benchmarks.clients import Events, Headers


class _Client:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        async with self._session.request(method, url, data=body, headers=headers) as response:
            response.raise_for_status()
            return await response.read()

    @asynccontextmanager
    async def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AsyncGenerator[Events]:
        async with self._session.post(url, data=body, headers=headers) as response:
            response.raise_for_status()
            yield _events(response.content)


async def _events(lines: aiohttp.StreamReader) -> Events:
    data: list[str] = []
    async for line in lines:
        if line.startswith(b"data:"):
            data.append(line[5:].strip().decode())
        elif not line.strip() and data:
            yield "\n".join(data)
            data.clear()


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[_Client]:
    context = ssl.create_default_context(cafile=target.ca_file) if target.ca_file else True
    connector = aiohttp.TCPConnector(limit=target.connections, keepalive_timeout=600, ssl=context)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield _Client(session)
