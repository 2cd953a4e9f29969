"""A reply on its way to one client, which may leave.

This module knows ASGI, server-sent events, and when a generation counts as completed or cancelled.
It does not know what is said: a `Shape` says it in the words of one API.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import anyio
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from trunkline.testing._llm.counts import Tally
from trunkline.testing._llm.model import Reply


class Shape(Protocol):
    """A reply in the words of one API."""

    reply: Reply
    stream: bool
    id_header: str
    """The header that carries `request_id`."""

    @property
    def request_id(self) -> str: ...

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        ...

    def opening(self) -> bytes:
        """What a stream begins with."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Then, one for each token."""
        ...

    def closing(self) -> bytes:
        """What it ends with."""
        ...


class Answer:
    """One generation.

    Args:
        delay: seconds of silence before each token; an answer that is not streamed comes after the
            sum of them.
        at_once: how many tokens of a stream come in one write, after one silence.
    """

    def __init__(self, shape: Shape, delay: float, at_once: int, tally: Tally) -> None:
        self._shape = shape
        self._delay = delay
        self._at_once = at_once
        self._tally = tally
        self._finished = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, receive, group.cancel_scope)
            if self._shape.stream:
                await self._stream(send)
            else:
                await self._complete(scope, receive, send)
            self._tally.add("completed")
            group.cancel_scope.cancel()

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        # The server says "disconnect" after a whole answer too, while its last send still runs.
        if not self._finished:
            self._tally.add("cancelled")
            scope.cancel()

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        shape = self._shape
        await anyio.sleep(self._delay * len(shape.reply.tokens))
        self._finished = True
        headers = {shape.id_header: shape.request_id}
        await JSONResponse(shape.whole(), headers=headers)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        shape = self._shape
        await send(_stream_head(shape))
        await send(_part(shape.opening()))
        pieces = shape.pieces()
        while events := b"".join(islice(pieces, self._at_once)):
            await anyio.sleep(self._delay)
            await send(_part(events))
        self._finished = True
        await send(_part(shape.closing(), more=False))


def _stream_head(shape: Shape) -> Message:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (shape.id_header.encode(), shape.request_id.encode()),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _part(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sse(data: dict[str, Any], *, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b\n\n" % (name, json.dumps(data, separators=(",", ":")).encode())


HOLE = "\0"
"""Where a token is to be put in an event: no JSON has it unescaped, and no caller sends it."""


def filled(event: bytes, tokens: Iterator[str]) -> Iterator[bytes]:
    """`event` with each of the tokens at its `HOLE`.

    All but the token is the same in each event, and there may be a million of them.
    """
    before, after = event.split(rb'"\u0000"')
    for token in tokens:
        yield b"".join((before, json.dumps(token).encode(), after))
