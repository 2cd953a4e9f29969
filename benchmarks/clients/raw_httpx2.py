"""`httpx2.AsyncClient`, as it comes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2

from benchmarks._model import Target
from benchmarks.clients._httpx_like import HttpxLike


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[HttpxLike]:
    limits = httpx2.Limits(
        max_connections=target.connections,
        max_keepalive_connections=target.connections,
        keepalive_expiry=600,
    )
    context = ssl.create_default_context(cafile=target.ca_file)
    async with httpx2.AsyncClient(
        limits=limits,
        http2=target.http2,
        verify=context,
        timeout=httpx2.Timeout(60, pool=120),
        trust_env=False,
    ) as client:
        yield HttpxLike(client)
