"""A server that answers every request with the same small JSON, as fast as Python can.

It is a process of its own, so that the client has its core to itself. It knows just enough HTTP/1.1
to find the end of a request with a Content-Length; it is no server for anything else.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

_BODY = b'{"id":"chatcmpl-1","choices":[]}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)


class _Answering(asyncio.Protocol):
    def __init__(self) -> None:
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no asyncio class

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end].lower()
            _, _, after = head.partition(b"content-length:")
            whole = end + 4 + int(after.split(b"\r\n")[0] or 0)
            if len(self._held) < whole:
                return
            self._held = self._held[whole:]
            self._transport.write(_ANSWER)


def pin(core: int) -> None:
    """Keep this process on one core, where there is more than one and the system can."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > core:
        os.sched_setaffinity(0, {core})


async def _serve(pipe: Connection) -> None:
    server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)
    server.close()


def _run(pipe: Connection) -> None:
    pin(1)
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(_serve(pipe))
    else:
        uvloop.run(_serve(pipe))


@contextmanager
def serving() -> Generator[str]:
    """Run the server; yields its URL."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1/chat/completions"
    finally:
        ours.send(None)
        process.join(5)
        process.kill()
