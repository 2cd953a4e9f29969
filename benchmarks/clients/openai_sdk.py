"""The whole openai SDK: a chat completion, on the HTTP client that `variant` names."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import httpx2
import openai

from benchmarks._model import Target
from benchmarks.clients import Events, Headers
from benchmarks.clients.trunkline_backend import config_for
from trunkline.adapters.httpx2 import AsyncClient as OnTrunkline


class _Client:
    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        self._sdk = sdk

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        completion = await self._sdk.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Why is the sky blue?"}]
        )
        return (completion.choices[0].message.content or "").encode()

    def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AbstractAsyncContextManager[Events]:
        raise NotImplementedError("streams are measured without the SDK")


def _make(target: Target, variant: str) -> Any:
    if variant == "trunkline":
        return OnTrunkline(config_for(target, "auto"))
    context = ssl.create_default_context(cafile=target.ca_file)
    limits = {
        "max_connections": target.connections,
        "max_keepalive_connections": target.connections,
    }
    if variant == "httpx2":
        return httpx2.AsyncClient(limits=httpx2.Limits(**limits), verify=context, timeout=120)
    return openai.DefaultAioHttpClient(limits=httpx.Limits(**limits), verify=context, timeout=120)


@asynccontextmanager
async def connect(target: Target, variant: str) -> AsyncGenerator[_Client]:
    base_url = target.url.removesuffix("/chat/completions")
    async with (
        _make(target, variant) as client,
        openai.AsyncOpenAI(
            api_key="none", base_url=base_url, http_client=client, max_retries=0
        ) as sdk,
    ):
        yield _Client(sdk)
