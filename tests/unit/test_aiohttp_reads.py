"""Small reads go by way of shared memory, large ones asyncio's way; a protocol notices nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import accumulate

import pytest
from hypothesis import given, settings, strategies as st

from trunkline_aiohttp._reads import Reader, Reads, make_reads, read_for

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Receiver(Reader):
    """Remembers what its transport tells it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.told: list[str] = []
        self._more = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self._more.set()

    def eof_received(self) -> bool | None:
        self._tell("eof")
        return True

    def pause_writing(self) -> None:
        self._tell("pause")

    def resume_writing(self) -> None:
        self._tell("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._tell("lost")

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self._more.set()

    async def until(self, *, size: int = 0, told: list[str] | None = None) -> None:
        async with asyncio.timeout(5):
            while len(self.data) < size or not set(told or ()) <= set(self.told):
                self._more.clear()
                await self._more.wait()

    @property
    def reads_small(self) -> bool:
        return isinstance(self.transport.get_protocol(), asyncio.BufferedProtocol)


@asynccontextmanager
async def connected(
    reads: Reads | None = None,
) -> AsyncGenerator[tuple[Receiver, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with theirs:
        transport, receiver = await asyncio.get_running_loop().create_connection(
            Receiver, sock=ours
        )
        read_for(receiver, transport, reads or make_reads())
        try:
            yield receiver, theirs
        finally:
            transport.abort()
            await receiver.until(told=["lost"])


async def read_each(receiver: Receiver, peer: socket.socket, sizes: list[int]) -> None:
    """Have as many bytes come as each of `sizes` says, and be read, before the next do."""
    begin = len(receiver.data)
    for size, total in zip(sizes, accumulate(sizes), strict=True):
        peer.sendall(bytes(size))
        await receiver.until(size=begin + total)


async def test_a_small_read_is_made_into_the_memory_that_connections_share() -> None:
    reads = make_reads()
    assert reads is not None
    buffer = reads.buffer
    async with connected(reads) as (one, peer), connected(reads) as (other, its_peer):
        peer.sendall(b"to the one")
        await one.until(size=10)
        assert bytes(buffer[:10]) == b"to the one"
        its_peer.sendall(b"TO the other")
        await other.until(size=12)

        assert bytes(buffer[:12]) == b"TO the other"
        assert one.data == b"to the one"
        assert other.data == b"TO the other"


async def test_after_a_large_read_asyncio_reads_in_its_own_way() -> None:
    async with connected() as (receiver, peer):
        assert receiver.reads_small
        await read_each(receiver, peer, [100_000])
        assert not receiver.reads_small


async def test_small_reads_in_a_row_are_made_into_the_memory_again() -> None:
    async with connected() as (receiver, peer):
        await read_each(receiver, peer, [100_000, *[200] * 20])
        assert receiver.reads_small


async def test_the_small_ends_of_large_responses_do_not_change_how_is_read() -> None:
    async with connected() as (receiver, peer):
        for _ in range(20):
            await read_each(receiver, peer, [50_000, 200])
            assert not receiver.reads_small


_SIZES = st.sampled_from([1, 200, 8192, 8193, 32767, 32768, 65535, 65536, 65537, 200_000])


@given(sizes=st.lists(_SIZES, max_size=12))
@settings(max_examples=40, deadline=None)
def test_whatever_the_sizes_all_bytes_come_in_order(sizes: list[int]) -> None:
    async def run() -> None:
        async with connected() as (receiver, peer):
            sent = bytearray()
            for number, size in enumerate(sizes):
                piece = bytes([number]) * size
                sent += piece
                await asyncio.get_running_loop().run_in_executor(None, peer.sendall, piece)
            await receiver.until(size=len(sent))
            assert receiver.data == sent

    asyncio.run(run())


@pytest.mark.parametrize("first", [10, 100_000], ids=["small", "large"])
async def test_the_protocol_hears_of_everything_else_too(first: int) -> None:
    async with connected() as (receiver, peer):
        await read_each(receiver, peer, [first])
        receiver.transport.set_write_buffer_limits(0)
        peer.setblocking(True)
        size = 4 << 20
        receiver.transport.write(bytes(size))
        await receiver.until(told=["pause"])
        while size:
            size -= len(await asyncio.get_running_loop().run_in_executor(None, peer.recv, 1 << 20))
        await receiver.until(told=["resume"])
        peer.shutdown(socket.SHUT_WR)
        await receiver.until(told=["eof"])
    assert receiver.told == ["pause", "resume", "eof", "lost"]


def test_a_loop_with_memory_of_its_own_is_left_alone() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        assert make_reads() is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
