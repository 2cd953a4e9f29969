"""Opening sockets: TCP to the first address that answers, and Unix.

This module knows sockets and RFC 8305. It does not know where addresses come from.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from itertools import zip_longest

import anyio

from trunkline import ConnectError
from trunkline.tcp import limit_unsent
from trunkline_httpx._network import SocketStream

_STAGGER = 0.25  # RFC 8305 section 8
_FULL_BACKLOG_PAUSE = 0.01


async def open_tcp(addresses: Sequence[str], port: int) -> SocketStream:
    """Connect to one of `addresses`, each tried 250 ms after the one before, or when that failed.

    Raises:
        ConnectError: none could be connected to. The first failure is its cause.
    """
    race = _Race(port)
    if len(addresses) == 1:
        await race.run(addresses[0])
    else:
        await race.start(interleave(addresses))
    if race.winner is None:
        cause = race.failures[0]
        raise ConnectError(f"TCP port {port}: {cause.strerror}") from cause
    return race.winner


def interleave(addresses: Sequence[str]) -> list[str]:
    """IPv6 and IPv4 in turns, from the family of the first on (RFC 8305 section 4)."""
    first = [address for address in addresses if (":" in address) == (":" in addresses[0])]
    other = [address for address in addresses if address not in first]
    return [address for pair in zip_longest(first, other) for address in pair if address]


class _Race:
    """Connections being opened to several addresses: the first wins, the others are closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._scope = anyio.CancelScope()
        self.winner: SocketStream | None = None
        self.failures: list[OSError] = []

    async def start(self, addresses: Sequence[str]) -> None:
        try:
            async with anyio.create_task_group() as group:
                self._scope = group.cancel_scope
                for address in addresses:
                    failed = anyio.Event()
                    group.start_soon(self.run, address, failed)
                    with anyio.move_on_after(_STAGGER):
                        await failed.wait()
        except BaseException:
            if self.winner is not None:
                self.winner.close()
            raise

    async def run(self, address: str, failed: anyio.Event | None = None) -> None:
        try:
            stream = await _connect(address, self._port)
        except OSError as error:
            self.failures.append(error)
            if failed is not None:
                failed.set()
            return
        if self.winner is None:
            self.winner = stream
            self._scope.cancel()
        else:
            stream.close()


async def _connect(address: str, port: int) -> SocketStream:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, kind, protocol, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=numeric
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit_unsent(sock)
        code = sock.connect_ex(where)
        if code == errno.EINPROGRESS:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0 and sock.getsockname() == sock.getpeername():
            code = errno.ECONNREFUSED  # nobody listens, and TCP has connected us to ourselves
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    host = f"[{address}]" if family == socket.AF_INET6 else address
    return SocketStream(sock, f"{host}:{port}")


async def open_unix(path: str) -> SocketStream:
    """Connect to a Unix socket.

    Raises:
        ConnectError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while (code := sock.connect_ex(path)) == errno.EAGAIN:  # noqa: ASYNC110
            # The backlog is full, and nothing tells us when it no longer is.
            await anyio.sleep(_FULL_BACKLOG_PAUSE)
        if code:
            cause = OSError(code, os.strerror(code))
            raise ConnectError(f"Unix socket: {cause.strerror}") from cause
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock, None)
