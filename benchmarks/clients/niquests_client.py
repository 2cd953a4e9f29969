"""niquests' `AsyncSession`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import niquests

from benchmarks._model import Target
from benchmarks.clients import Events, Headers


class _Client:
    def __init__(self, session: niquests.AsyncSession) -> None:
        self._session = session

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        response = await self._session.request(method, url, data=body, headers=dict(headers))
        response.raise_for_status()
        return response.content or b""

    @asynccontextmanager
    async def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AsyncGenerator[Events]:
        response = await self._session.post(url, data=body, headers=dict(headers), stream=True)
        response.raise_for_status()
        yield _events(response)
        await response.close()


async def _events(response: niquests.AsyncResponse) -> Events:
    data: list[str] = []
    async for line in response.iter_lines():
        if line.startswith(b"data:"):
            data.append(line[5:].strip().decode())
        elif not line and data:
            yield "\n".join(data)
            data.clear()


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[_Client]:
    async with niquests.AsyncSession(
        pool_connections=1,
        pool_maxsize=target.connections,
        multiplexed=False,
        disable_http2=not target.http2,
        disable_http3=True,
        timeout=120,
    ) as session:
        session.verify = target.ca_file or True
        session.trust_env = False
        yield _Client(session)
