"""Past asyncio's transports: what is read and written, and what is told, is what they would."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from trunkline_aiohttp._direct import Reading, call_when_readable, writer

pytestmark = pytest.mark.anyio

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Connection(asyncio.BufferedProtocol):
    """The end that is read and written directly; asyncio's own way to read it is a mistake."""

    def __init__(self) -> None:
        self.data = b""
        self.told: list[object] = []
        self._more = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.write = writer(transport)
        self.reading = Reading(transport, memoryview(bytearray(65536)), self.deliver)
        call_when_readable(transport, self.reading.read)

    def deliver(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self._more.set()

    def get_buffer(self, sizehint: int) -> bytearray:
        return bytearray(1)

    def buffer_updated(self, nbytes: int) -> None:
        self.told.append("asyncio read it")

    def eof_received(self) -> bool:
        self._tell("end")
        return True

    def pause_writing(self) -> None:
        self._tell("pause")

    def resume_writing(self) -> None:
        self._tell("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(type(exc))

    def _tell(self, what: object) -> None:
        self.told.append(what)
        self._more.set()

    async def until(self, *, data: bytes = b"", told: object = None) -> None:
        async with asyncio.timeout(5):
            while self.data != data or (told is not None and told not in self.told):
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[Connection, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, *listening.getsockname()
        )
        peer, _ = listening.accept()
    with peer:
        try:
            yield connection, peer
        finally:
            connection.transport.abort()
            await asyncio.sleep(0)


async def receive(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await asyncio.to_thread(peer.recv, size - len(data))
    return data


async def test_what_comes_is_delivered_and_asyncio_reads_none_of_it() -> None:
    async with connected() as (connection, peer):
        peer.sendall(b"one")
        await connection.until(data=b"one")
        peer.sendall(b" two")
        await connection.until(data=b"one two")
        assert connection.told == []


async def test_nothing_there_after_all_is_no_end() -> None:
    async with connected() as (connection, peer):
        connection.reading.read()
        peer.sendall(b"one")
        await connection.until(data=b"one")
        assert connection.told == []


async def test_an_end_is_told_once() -> None:
    async with connected() as (connection, peer):
        peer.sendall(b"the last")
        peer.shutdown(socket.SHUT_WR)
        await connection.until(data=b"the last", told="end")
        await asyncio.sleep(0)
        assert connection.told == ["end"]


async def test_a_reset_is_told_as_what_it_is() -> None:
    async with connected() as (connection, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        peer.close()
        await connection.until(told=ConnectionResetError)


# The first is not the socket's, which has something to read.
@pytest.mark.parametrize("error", [BlockingIOError, asyncio.CancelledError])
async def test_who_fails_at_what_was_delivered_ends_its_connection(
    error: type[BaseException],
) -> None:
    async with connected() as (connection, peer):

        def fail(data: bytes) -> None:
            raise error

        reading = Reading(connection.transport, memoryview(bytearray(100)), fail)
        call_when_readable(connection.transport, reading.read)
        peer.sendall(b"one")
        await connection.until(told=error)


async def test_nothing_is_read_of_a_connection_that_was_aborted() -> None:
    async with connected() as (connection, peer):
        peer.sendall(b"too late")
        connection.transport.abort()
        connection.reading.read()
        await connection.until(told=type(None))
        assert connection.data == b""


async def test_what_fits_is_with_the_kernel_at_once() -> None:
    async with connected() as (connection, peer):
        connection.write(b"request")
        assert connection.transport.get_write_buffer_size() == 0
        assert peer.recv(100) == b"request"


async def test_what_the_kernel_does_not_take_follows_in_order() -> None:
    pieces = [bytes([number]) * 300_000 for number in range(40)]
    async with connected() as (connection, peer):
        for piece in pieces:
            connection.write(piece)
        assert connection.transport.get_write_buffer_size() > 0
        assert connection.told == ["pause"]
        assert await receive(peer, 40 * 300_000) == b"".join(pieces)
        await connection.until(told="resume")


async def test_what_is_written_does_not_overtake_what_is_held_back() -> None:
    async with connected() as (connection, peer):
        connection.write(first := b"a" * 10_000_000)
        size = connection.transport.get_write_buffer_size()
        assert size > 0
        got = b""
        while len(got) < len(first) - size:  # the kernel has room again, and the loop no turn
            got += peer.recv(1 << 20)
        connection.write(second := b"b" * 100)
        assert got + await receive(peer, size + len(second)) == first + second


async def test_a_failed_write_ends_the_connection_with_its_own_error() -> None:
    """The kernel tells it once: who writes again is told of a broken pipe instead."""
    async with connected() as (connection, peer):
        connection.transport.pause_reading()  # else the loop may meet it first
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        peer.close()
        connection.write(b"request")
        assert connection.transport.is_closing()
        await connection.until(told=ConnectionResetError)


async def test_a_write_after_the_end_is_no_error() -> None:
    async with connected() as (connection, peer):
        connection.transport.abort()
        connection.write(b"request")
        await connection.until(told=type(None))
        peer.settimeout(5)
        assert peer.recv(100) == b""
