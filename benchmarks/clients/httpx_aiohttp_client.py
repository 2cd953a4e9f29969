"""`HttpxAiohttpClient`: httpx on aiohttp's transport."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import httpx_aiohttp

from benchmarks._model import Target
from benchmarks.clients._httpx_like import HttpxLike


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[HttpxLike]:
    limits = httpx.Limits(
        max_connections=target.connections,
        max_keepalive_connections=target.connections,
        keepalive_expiry=600,
    )
    context = ssl.create_default_context(cafile=target.ca_file)
    async with httpx_aiohttp.HttpxAiohttpClient(
        limits=limits, verify=context, timeout=httpx.Timeout(60, pool=120), trust_env=False
    ) as client:
        yield HttpxLike(client)
