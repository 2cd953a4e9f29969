"""Trunkline's transport, on the backend that `variant` names: `send`, then the whole body."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trunkline
from benchmarks._model import Target
from benchmarks.clients import Events, Headers

# The pool is full here on purpose; nobody needs to be warned of it.
logging.getLogger("trunkline").addHandler(logging.NullHandler())


class _Client:
    def __init__(self, transport: trunkline.Transport) -> None:
        self.transport = transport

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        request = trunkline.Request(method, url, headers=headers, content=body)
        response = await self.transport.send(request)
        await response.aread()
        return response.raise_for_status().content

    @asynccontextmanager
    async def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AsyncGenerator[Events]:
        request = trunkline.Request("POST", url, headers=headers, content=body)
        async with await self.transport.send(request) as response:
            yield response.raise_for_status().aiter_sse()

    async def warm(self, url: str) -> None:
        await self.transport.warm(url)

    async def steps(self, url: str) -> dict[str, float]:
        async with await self.transport.send(trunkline.Request("GET", url)) as response:
            timings = response.timings
        found = {
            "TCP (SYN)": timings.connect,
            "TLS": timings.tls,
            "request": timings.wait,
        }
        return {name: seconds for name, seconds in found.items() if seconds is not None}


def config_for(target: Target, backend: str) -> trunkline.TransportConfig:
    return trunkline.TransportConfig(
        backend=backend,
        http2=target.http2,
        limits=trunkline.Limits(
            max_connections=target.connections, max_keepalive_connections=None, keepalive_expiry=600
        ),
        timeouts=trunkline.Timeouts(pool=120),
        tls=trunkline.Tls(ca_file=Path(target.ca_file) if target.ca_file else None),
    )


@asynccontextmanager
async def connect(target: Target, variant: str) -> AsyncGenerator[_Client]:
    transport = trunkline.open_transport(config_for(target, variant))
    try:
        yield _Client(transport)
    finally:
        await transport.aclose()
