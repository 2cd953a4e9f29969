"""Byte streams on non-blocking sockets, plain and TLS, and opening them.

This module knows sockets, `ssl` and how to wait for a socket on asyncio, uvloop and trio (through
anyio). It does not know HTTP, proxies or who uses a stream.

The streams are ours because an exchange needs what the libraries' streams do not give: closing in
the middle of a cancellation without awaiting, the exact number of bytes handed to the operating
system, a look at what waits on an idle connection, and an end of file without close_notify that is
an error (RFC 8446 section 6.1) instead of an end.

A stream has one reader and one writer at a time. The `_nowait` methods do what can be done at once;
the others await the rest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from itertools import zip_longest
from typing import Protocol

import anyio
import anyio.lowlevel

RECEIVE_SIZE = 64 * 1024
_RECORDS = 64 * 1024
_FAIR_SHARE = 16
_STAGGER = 0.25  # RFC 8305 section 8
_FULL_BACKLOG_PAUSE = 0.01
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Stream(Protocol):
    """An open byte stream. Every failure is an OSError or `anyio.ClosedResourceError`."""

    @property
    def peer(self) -> str | None:
        """The address it is connected to, e.g. "127.0.0.1:443"."""
        ...

    @property
    def alpn(self) -> str | None:
        """The protocol that TLS negotiated."""
        ...

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What has arrived: None for nothing, b"" for the end."""
        ...

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Take a part of `data`; 0 means that nothing more goes until `wait_writable` returns."""
        ...

    def flush_nowait(self) -> bool:
        """Hand what was taken to the operating system; False when it does not take it all."""
        ...

    async def receive(self, max_bytes: int) -> bytes: ...

    async def send(self, data: bytes) -> None: ...

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    async def wait_either(self) -> None:
        """Return when it is readable or writable."""
        ...

    def close(self) -> None:
        """Close at once, politely. Synchronous, idempotent; whoever waits gets an error."""
        ...

    def abort(self) -> None:
        """Close at once, and let the peer know with a reset that the rest is not coming."""
        ...


class _Awaiting:
    """What awaits, in terms of what does not."""

    _streak = 0

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        raise NotImplementedError

    def send_nowait(self, data: bytes | memoryview) -> int:
        raise NotImplementedError

    def flush_nowait(self) -> bool:
        raise NotImplementedError

    async def wait_readable(self) -> None:
        raise NotImplementedError

    async def wait_writable(self) -> None:
        raise NotImplementedError

    async def receive(self, max_bytes: int) -> bytes:
        """Some bytes, at most `max_bytes`; b"" at the end."""
        data = self.receive_nowait(max_bytes)
        while data is None:
            await self.wait_readable()
            self._streak = 0
            data = self.receive_nowait(max_bytes)
        self._streak += 1
        if self._streak == _FAIR_SHARE:
            # A peer that always has more would keep every other task, and every deadline, waiting.
            self._streak = 0
            await anyio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def send(self, data: bytes) -> None:
        """All of `data`."""
        rest = memoryview(data)
        while True:
            rest = rest[self.send_nowait(rest) :]
            if not rest and self.flush_nowait():
                return
            await self.wait_writable()


class SocketStream(_Awaiting):
    """A connected, non-blocking socket, which it owns."""

    def __init__(self, sock: socket.socket, peer: str | None) -> None:
        self._socket = sock
        self.peer = peer
        self.alpn: str | None = None
        self._waiting = 0
        self._closed = False

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        try:
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            return None

    def send_nowait(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data) if data else 0
        except BlockingIOError:
            return 0

    def flush_nowait(self) -> bool:
        return True

    async def wait_readable(self) -> None:
        self._check_open()
        self._waiting += 1
        try:
            await anyio.wait_readable(self._socket)
        finally:
            self._waiting -= 1

    async def wait_writable(self) -> None:
        self._check_open()
        self._waiting += 1
        try:
            await anyio.wait_writable(self._socket)
        finally:
            self._waiting -= 1

    async def wait_either(self) -> None:
        async with anyio.create_task_group() as group:

            async def wait(readable: bool) -> None:
                # Closed meanwhile: whoever uses the stream next is told.
                with contextlib.suppress(anyio.ClosedResourceError):
                    await (self.wait_readable() if readable else self.wait_writable())
                group.cancel_scope.cancel()

            group.start_soon(wait, True)
            group.start_soon(wait, False)

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._waiting:
            anyio.notify_closing(self._socket)
        self._socket.close()

    def abort(self) -> None:
        if not self._closed:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()


class TLSStream(_Awaiting):
    """TLS over another stream, which it owns; `handshake` comes first."""

    def __init__(self, inner: Stream, context: ssl.SSLContext, hostname: str) -> None:
        self._inner = inner
        self.peer = inner.peer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent = memoryview(b"")
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    @property
    def alpn(self) -> str | None:
        return self._ssl.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Agree on keys and check the certificate.

        Raises:
            ssl.SSLError: the peer speaks no TLS, or none that we accept.
            ssl.SSLCertVerificationError: its certificate is not good.
        """
        while True:
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.send(b"")
                self._feed(await self._inner.receive(RECEIVE_SIZE))
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self.flush_nowait()  # the alert that says why
                raise
        await self.send(b"")

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        pieces: list[bytes] = []
        while max_bytes > 0:
            try:
                piece = self._ssl.read(max_bytes)
            except ssl.SSLWantReadError:
                data = None if pieces else self._inner.receive_nowait(RECEIVE_SIZE)
                if data is None:
                    break
                self._feed(data)
                continue
            except ssl.SSLError:
                if pieces:
                    break  # it is raised again next time
                raise
            if not piece:
                break
            pieces.append(piece)
            max_bytes -= len(piece)
        else:
            return b"".join(pieces)
        ...

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
