"""Byte streams, plain and TLS, on non-blocking sockets.

This module knows sockets, `ssl`, and how to wait for a socket on asyncio, uvloop and trio (through
anyio). It does not know who opens a socket, or what is said over it.

The streams are ours because an exchange needs what the libraries' streams do not give: closing in
the middle of a cancellation without awaiting, the number of bytes handed to the operating system, a
look at what waits on an idle connection, and an end of file without close_notify that is an error
(RFC 8446 section 6.1) instead of an end.

A stream has one reader and one writer at a time. A `_nowait` method does what can be done at once.
Every failure is an OSError (ssl.SSLError is one) or an `anyio.ClosedResourceError`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from typing import TypeAlias

import anyio
import anyio.lowlevel

from trunkline.tcp import Delivery, watched

Data: TypeAlias = bytes | bytearray | memoryview

RECEIVE_SIZE = 64 * 1024
_RECORD = 16 * 1024
FAIR_SHARE = 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Stream(ABC):
    """An open byte stream.

    Attributes:
        peer: the address it is connected to, e.g. "127.0.0.1:443".
        delivery: what the kernel knows of the request under way.
        ssl_object: of a TLS stream, what knows the certificate.
    """

    peer: str | None
    delivery: Delivery
    ssl_object: ssl.SSLObject | None = None
    _streak = 0

    @property
    def alpn(self) -> str | None:
        """The application protocol that TLS agreed on."""
        return None

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What has arrived; None for nothing, b"" for the end."""

    @abstractmethod
    def send_nowait(self, data: Data) -> int:
        """Take a part of `data`; 0: nothing more goes until the stream is writable."""

    @abstractmethod
    def flush_nowait(self) -> bool:
        """Hand what was taken to the operating system; False when it will not take all of it."""

    @abstractmethod
    async def wait_readable(self) -> None: ...

    @abstractmethod
    async def wait_writable(self) -> None: ...

    @abstractmethod
    async def wait_either(self) -> None:
        """Return when the stream is readable or writable."""

    @abstractmethod
    def close(self) -> None:
        """Close at once. Synchronous, idempotent; whoever waits gets an error."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once with a reset: nothing that is still on its way is delivered."""

    def is_silent(self) -> bool:
        """Whether the peer has neither sent a byte that is not taken, nor ended the connection."""
        return self.receive_nowait(1) is None

    async def receive(self, max_bytes: int = RECEIVE_SIZE) -> bytes:
        """Some bytes, at most `max_bytes`; b"" at the end."""
        data = self.receive_nowait(max_bytes)
        while data is None:
            await self.wait_readable()
            self._streak = 0
            data = self.receive_nowait(max_bytes)
        self._streak += 1
        if self._streak % FAIR_SHARE == 0:
            await give_way()
        return data

    async def send(self, data: bytes) -> None:
        """Send all of `data`."""
        rest = memoryview(data)
        while rest or not self.flush_nowait():
            sent = self.send_nowait(rest)
            rest = rest[sent:]
            if not sent:
                await self.wait_writable()


async def give_way() -> None:
    """Let other tasks run, and deadlines that have passed cancel this one.

    For after `FAIR_SHARE` steps that did not have to wait: a peer that always has more would keep
    the event loop to itself.
    """
    await anyio.lowlevel.checkpoint()
    # asyncio looks at its timers after the tasks that are ready: the second time it has.
    await anyio.lowlevel.checkpoint()


class SocketStream(Stream):
    """A connected, non-blocking socket, which the stream owns."""

    def __init__(self, sock: socket.socket, peer: str | None) -> None:
        self._socket = sock
        self.peer = peer
        self.delivery = watched(sock)
        self._waiting = 0
        self._closed = False

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        try:
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            return None

    def send_nowait(self, data: Data) -> int:
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
                # Closed meanwhile: whoever waits for both uses the stream next, and is told.
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


class TLSStream(Stream):
    """TLS over another stream, which it owns. `handshake` comes first."""

    def __init__(self, inner: Stream, context: ssl.SSLContext, hostname: str) -> None:
        self._inner = inner
        self.peer = inner.peer
        self.delivery = inner.delivery
        self.delivery.is_under_tls = True
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._encrypted = memoryview(b"")
        self._failure: ssl.SSLError | None = None
        self._has_ended = False
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self.ssl_object = self._ssl

    @property
    def alpn(self) -> str | None:
        return self._ssl.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Agree on keys, and check the certificate.

        Raises:
            ssl.SSLCertVerificationError: the certificate is not good.
            OSError: the peer speaks no TLS, or none that is accepted, or has gone.
        """
        while True:
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.send(b"")
                self._feed(await self._inner.receive())
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self.flush_nowait()  # the alert that tells the peer why
                raise
        await self.send(b"")

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        if self._failure is not None:
            raise self._failure
        records: list[bytes] = []
        size = 0
        while size < max_bytes:
            record = self._read_record(max_bytes - size, first=not records)
            if not record:
                return b"".join(records) if records else record
            records.append(record)
            size += len(record)
        return b"".join(records)

    def is_silent(self) -> bool:
        if self._failure is None and not self._has_input():
            data = self._inner.receive_nowait(RECEIVE_SIZE)
            if data is None:
                return True
            self._feed(data)
        return super().is_silent()  # a session ticket is no byte of the peer's

    def _has_input(self) -> bool:
        """Whether OpenSSL can be asked for more: to find that it cannot takes it an exception."""
        incoming = self._incoming
        return bool(self._has_ended or incoming.pending or incoming.eof or self._ssl.pending())

    def _read_record(self, max_bytes: int, *, first: bool) -> bytes | None:
        """One record or a part of it. Only for the first one is the socket looked at."""
        while True:
            try:
                if self._has_input():
                    record = self._ssl.read(max_bytes)
                    self._has_ended = not record
                    return record
            except ssl.SSLWantReadError:
                with contextlib.suppress(OSError):  # what has come is read all the same
                    self.flush_nowait()  # the answer to a key update
            except ssl.SSLError as error:
                self._failure = error
                if first:
                    raise
                return None  # what came before it is delivered first
            data = self._inner.receive_nowait(RECEIVE_SIZE) if first else None
            if data is None:
                return None
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def send_nowait(self, data: Data) -> int:
        if not data or not self.flush_nowait():
            return 0
        taken = self._ssl.write(data[:_RECORD])
        self.flush_nowait()
        return taken

    def flush_nowait(self) -> bool:
        if self._outgoing.pending:
            self._encrypted = memoryview(bytes(self._encrypted) + self._outgoing.read())
        while self._encrypted:
            sent = self._inner.send_nowait(self._encrypted)
            if not sent:
                return False
            self._encrypted = self._encrypted[sent:]
        return self._inner.flush_nowait()

    async def wait_readable(self) -> None:
        await self._inner.wait_readable()

    async def wait_writable(self) -> None:
        await self._inner.wait_writable()

    async def wait_either(self) -> None:
        await self._inner.wait_either()

    def close(self) -> None:
        # RFC 8446 section 6.1: say close_notify, and do not wait for the peer's.
        with contextlib.suppress(OSError):
            self._ssl.unwrap()
        with contextlib.suppress(OSError):
            self.flush_nowait()
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()
