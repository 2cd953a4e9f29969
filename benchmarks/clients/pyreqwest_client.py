"""pyreqwest: Rust's reqwest. Its runtime threads share the client's one core."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from pyreqwest.client import Client as Reqwest, ClientBuilder
from pyreqwest.response import Response

from benchmarks._model import Target
from benchmarks.clients import Events, Headers


class _Client:
    def __init__(self, client: Reqwest) -> None:
        self._client = client

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        request = self._client.request(method, url).headers(headers)
        if body is not None:
            request = request.body_bytes(body)
        response = await request.build().send()
        return bytes(await response.bytes())

    @asynccontextmanager
    async def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AsyncGenerator[Events]:
        request = self._client.post(url).headers(headers).body_bytes(body or b"")
        # Unless told otherwise it reads ahead before it gives the response.
        async with request.streamed_read_buffer_limit(0).build_streamed() as response:
            yield _events(response)


async def _events(response: Response) -> Events:
    held = b""
    while chunk := await response.body_reader.read_chunk():
        *events, held = (held + bytes(chunk)).split(b"\n\n")
        for event in events:
            lines = event.splitlines()
            data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
            yield b"\n".join(data).decode()


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[_Client]:
    builder = (
        ClientBuilder()
        .max_connections(target.connections)
        .pool_max_idle_per_host(target.connections)
        .pool_idle_timeout(timedelta(seconds=600))
        .timeout(timedelta(seconds=120))
        .error_for_status(True)
        .no_proxy()
    )
    if not target.http2:
        builder = builder.http1_only()
    if target.ca_file:
        builder = builder.add_root_certificate_pem(_read(target.ca_file))
    async with builder.build() as client:
        yield _Client(client)
