"""Trunkline's facade, `Client.post`, on the backend that "auto" takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trunkline
from benchmarks._model import Target
from benchmarks.clients import Events, Headers
from benchmarks.clients.trunkline_backend import config_for


class _Client:
    def __init__(self, client: trunkline.Client) -> None:
        self.client = client

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        response = await self.client.request(method, url, headers=headers, content=body)
        return response.raise_for_status().content

    @asynccontextmanager
    async def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AsyncGenerator[Events]:
        async with self.client.stream("POST", url, headers=headers, content=body) as response:
            yield response.raise_for_status().aiter_sse()

    async def warm(self, url: str) -> None:
        await self.client.warm(url)


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[_Client]:
    async with trunkline.Client(config_for(target, "auto")) as client:
        yield _Client(client)
