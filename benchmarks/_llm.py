"""The embedded LLM server in a process of its own, on the server's core.

Knows `LLMServer` and processes. Does not know what is measured on it.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks._cores import pin


@dataclass(frozen=True, slots=True)
class Chat:
    """A running server's endpoint for chat completions."""

    url: str


def body(tokens: int, *, stream: bool = True) -> bytes:
    """A request that is answered with so many tokens, an event each."""
    return json.dumps(
        {
            "model": "trunkline-echo",
            "stream": stream,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "Say a word or two, or more."}],
        }
    ).encode()


@contextmanager
def serving(core: int) -> Generator[Chat]:
    """Run it on `core`, on a free port of 127.0.0.1."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, core), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Chat(url=f"{ours.recv()}/chat/completions")
    finally:
        ours.close()
        process.join(5)
        process.kill()
        process.join()


def _main(pipe: Connection, core: int) -> None:
    from trunkline.testing import LLMServer

    pin(0, core)
    with LLMServer() as server:
        pipe.send(server.base_url)
        pipe.poll(None)
