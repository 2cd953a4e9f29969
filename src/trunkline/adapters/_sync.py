"""The sync adapter: what `SyncTransport` of both libraries is made of.

This module knows the course of a call from a caller's thread. It does not know which of the two
libraries it serves, nor how threads talk to each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from trunkline import Transport, TransportClosed, TransportError
from trunkline.adapters._exchange import Exchange
from trunkline.adapters._family import Family, Given, head_limit, open_or_take
from trunkline.adapters._thread import LoopThread


class SyncAdapter:
    """Sends the library's requests through a Trunkline transport, from any thread."""

    _family: ClassVar[Family]
    _body_class: ClassVar[Any]

    transport: Transport
    """What the requests go through, in an event loop of the adapter's own."""

    def __init__(self, config_or_transport: Given = None) -> None:
        self.transport, self._owns = open_or_take(config_or_transport)
        self._head_limit = head_limit(self.transport)
        self._thread: LoopThread | None = None
        # By process: one that another thread holds at a fork is never released in the child.
        self._locks: dict[int, threading.Lock] = {}
        self._is_closed = False

    def handle_request(self, request: Any) -> Any:
        family = self._family
        try:
            content, stream = family.content(request)
            exchange = Exchange(self._running(), stream)
            ours = family.translate_request(request, exchange.upload or content, self._head_limit)
            response = exchange.start(self.transport, ours)
        except TransportError as error:
            raise family.translate_error(error, request) from error
        return family.translate_response(
            response, self._body_class(exchange, request), family.library.Response
        )

    def close(self) -> None:
        """End what is under way, and the transport if it was made here; one given stays open."""
        self._is_closed = True
        if self._thread is not None:
            self._thread.stop()

    def _running(self) -> LoopThread:
        process = os.getpid()
        with self._locks.setdefault(process, threading.Lock()):
            if self._is_closed:
                raise TransportClosed("the transport is closed")
            if self._thread is None or self._thread.process != process:
                self._thread = LoopThread(self.transport.aclose if self._owns else _nothing)
            return self._thread

    def __del__(self) -> None:
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None:
            thread.end_soon()


async def _nothing() -> None:
    """A transport that was given is its owner's to close."""


class SyncBody:
    """A response's body as the library's `SyncByteStream`: bytes as they came, not decoded."""

    _family: ClassVar[Family]

    def __init__(self, exchange: Exchange, request: Any) -> None:
        self._exchange = exchange
        exchange.is_handed_out = True
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            while piece := self._exchange.read():
                yield piece
        except TransportError as error:
            raise self._family.translate_error(error, self._request) from error

    def close(self) -> None:
        self._exchange.cancel()
