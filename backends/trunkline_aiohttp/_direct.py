"""A socket of asyncio's selector loops, read and written past its transport.

What a transport does around a read or a write, for protocols and data of every kind, takes longer
than many a one itself. What is out of the ordinary is left to it: an end, and a socket that is
full.

This module knows asyncio's selector transports, below their public surface: `_sock`, `_conn_lost`,
`_buffer`, `_read_ready_cb`, which is called when there is something to read, and `_fatal_error`. It
does not know what is read or written. A test holds the lowest and the newest Python supported to
what is relied on.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
from asyncio import selector_events
from collections.abc import Callable
from typing import Any, TypeAlias

Deliver: TypeAlias = Callable[[bytes], None]

_internals: Any = selector_events
_SOCKET_TRANSPORT: Any = _internals._SelectorSocketTransport


def is_of_selector_loop(transport: Any) -> bool:
    """Whether `transport` is one that this module knows: without TLS, and not uvloop's."""
    return isinstance(transport, _SOCKET_TRANSPORT)


class Reading:
    """How such a transport is read: into `buffer`, and what has come is given to `deliver`.

    The transport's protocol is an `asyncio.BufferedProtocol`, for the end to be read.
    """

    __slots__ = ("_buffer", "_deliver", "_read_end", "_receive", "_transport")

    def __init__(self, transport: Any, buffer: memoryview, deliver: Deliver) -> None:
        self._transport = transport
        self._receive: Callable[[memoryview], int] = transport._sock.recv_into
        self._read_end: Callable[[], None] = transport._read_ready_cb
        self._buffer = buffer
        self._deliver = deliver

    def read(self) -> None:
        """There is something to read."""
        transport, buffer, size = self._transport, self._buffer, -1
        if transport._conn_lost:
            return
        try:
            size = self._receive(buffer)
            if size:
                self._deliver(bytes(buffer[:size]))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the connection ends, as with asyncio
            if size >= 0 or not isinstance(error, BlockingIOError):
                transport._fatal_error(error, "cannot read a connection")
        if size == 0:
            self._read_end()


def call_when_readable(transport: Any, callback: Callable[[], None]) -> None:
    """Have the loop call it, until the transport is given another protocol."""
    transport._read_ready_cb = callback


def writer(transport: asyncio.Transport) -> Deliver:
    """What to call instead of `transport.write`, with bytes that are not empty."""
    if not is_of_selector_loop(transport):
        return transport.write
    below: Any = transport
    send: Callable[[bytes], int] = below._sock.send

    def write(data: bytes) -> None:
        if below._buffer or below._conn_lost:
            below.write(data)
            return
        try:
            sent = send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            below._fatal_error(error, "cannot write to a connection")
            return
        if sent < len(data):
            below.write(data[sent:])

    return write
