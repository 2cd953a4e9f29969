"""`httpx2.AsyncClient` on Trunkline's pool: the adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks._model import Target
from benchmarks.clients._httpx_like import HttpxLike
from benchmarks.clients.trunkline_backend import config_for
from trunkline.adapters.httpx2 import AsyncClient


class _Client(HttpxLike):
    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)
        self._transport = client.transport

    async def warm(self, url: str) -> None:
        await self._transport.warm(url)


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[_Client]:
    async with AsyncClient(config_for(target, "auto")) as client:
        yield _Client(client)
