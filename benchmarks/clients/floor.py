"""The floor: an asyncio protocol with httptools that writes one prepared request per answer.

It has no deadlines, no pool limits, no checks and no errors worth the name: what is left is what
the event loop, the sockets and a parser in C cost. Nothing written in Python goes below it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpResponseParser

from benchmarks._model import Target
from benchmarks.clients import Events, Headers


class _Exchange(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[bytes]
        self._body: list[bytes] = []
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._parser = HttpResponseParser(self)
        self._answer.set_result(b"".join(self._body))
        self._body.clear()

    def send(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.close()


class _Client:
    def __init__(self, target: Target) -> None:
        self._tls = ssl.create_default_context(cafile=target.ca_file) if target.ca_file else None
        self._idle: list[_Exchange] = []
        self._prepared: dict[tuple[str, str, Headers, bytes | None], bytes] = {}
        self._limit = asyncio.Semaphore(target.connections)

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        key = method, url, headers, body
        request = self._prepared.get(key)
        if request is None:
            request = self._prepared[key] = _prepare(*key)
        async with self._limit:
            exchange = self._idle.pop() if self._idle else await self._dial(url)
            answer = await exchange.send(request)
            if exchange.is_open:
                self._idle.append(exchange)
        return answer

    async def _dial(self, url: str) -> _Exchange:
        parts = urlsplit(url)
        tls = self._tls if parts.scheme == "https" else None
        _, exchange = await asyncio.get_running_loop().create_connection(
            _Exchange, parts.hostname or "", parts.port or 0, ssl=tls
        )
        return exchange

    def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AbstractAsyncContextManager[Events]:
        raise NotImplementedError("the floor reads no streams")

    def close(self) -> None:
        for exchange in self._idle:
            exchange.close()


def _prepare(method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + (body or b"")


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[_Client]:
    client = _Client(target)
    try:
        yield client
    finally:
        client.close()
        await asyncio.sleep(0)
