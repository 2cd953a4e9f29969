"""Connections are read together: whatever happens on one of them, its protocol hears of it."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import select
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import pytest

from trunkline.tcp import Delivery
from trunkline.testing._certificates import Certificates
from trunkline_aiohttp._protocol import Handler
from trunkline_aiohttp._reads import Reader, Reads, make_reads, read_alone, read_for
from trunkline_aiohttp._sweep import Together

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's"),
]

_CHUNK = b"6\r\nevent\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_var: contextvars.ContextVar[str] = contextvars.ContextVar("_var")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Stream(Reader):
    """The end of a stream that is being read, and what its transport tells it."""

    is_streaming = True

    def __init__(self) -> None:
        self.data = b""
        self.contexts: set[str | None] = set()
        self.ended = asyncio.Event()
        self.error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.contexts.add(_var.get(None))

    def connection_lost(self, exc: BaseException | None) -> None:
        self.error = exc
        self.ended.set()

    async def end(self) -> None:
        self.transport.abort()
        await self.until_ended()

    async def until_ended(self) -> None:
        async with asyncio.timeout(5):
            await self.ended.wait()

    async def until(self, size: int) -> None:
        await until(lambda: len(self.data) >= size)


class Peer:
    """The server's end: blocking, so that what it has sent is there."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes, stream: Stream) -> None:
        """Have `data` read before anything else comes."""
        self.sock.sendall(data)
        await stream.until(len(stream.data) + len(data))


@asynccontextmanager
async def connected(
    reads: Reads, protocol: type[Stream] = Stream
) -> AsyncGenerator[tuple[Stream, Peer]]:
    """A connection on which nothing has come yet."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        transport, stream = await asyncio.get_running_loop().create_connection(
            protocol, *listening.getsockname()
        )
        accepted, _ = listening.accept()
    with accepted:
        read_for(stream, transport, reads)
        try:
            yield stream, Peer(accepted)
        finally:
            await stream.end()


@asynccontextmanager
async def streaming(
    reads: Reads, protocol: type[Stream] = Stream
) -> AsyncGenerator[tuple[Stream, Peer]]:
    """A stream that has come far enough to be read together with others."""
    async with connected(reads, protocol) as (stream, peer):
        for _ in range(3):
            await peer.send(b"event\n", stream)
        yield stream, peer


@pytest.fixture
async def reads(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Reads]:
    made = make_reads()
    assert made is not None
    if getattr(request, "param", "streams") == "answers":
        monkeypatch.setattr(Stream, "is_streaming", False)
        made.latest = -1  # another connection is in use too
    yield made
    made.close()


of_either_kind = pytest.mark.parametrize("reads", ["streams", "answers"], indirect=True)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with Certificates() as made:
        yield made


def group_of(reads: Reads) -> Together:
    """That the connections of the test are in."""
    group = reads.sweep if Stream.is_streaming else reads.answers
    assert group is not None
    return group


async def test_a_stream_is_read_with_others_from_its_third_small_read_to_its_end(
    reads: Reads,
) -> None:
    sweep = group_of(reads)
    async with streaming(reads) as (one, its_peer), streaming(reads) as (other, peer):
        assert len(sweep) == 2
        await peer.send(b"one more\n", other)
        other.is_streaming = False
        await peer.send(b"the last\n", other)
        assert len(sweep) == 1
        await peer.send(b"the next response\n", other)
        await its_peer.send(b"one more\n", one)
    assert len(sweep) == 0


@of_either_kind
async def test_a_large_read_ends_it(reads: Reads) -> None:
    async with streaming(reads) as (stream, peer):
        reads.latest = -1
        await peer.send(bytes(60_000), stream)
        await peer.send(b"event\n", stream)
        assert len(group_of(reads)) == 0
        peer.sock.shutdown(socket.SHUT_WR)
        await stream.until_ended()
        assert stream.error is None


@of_either_kind
async def test_a_reader_that_pauses_is_not_read_for_until_it_resumes(reads: Reads) -> None:
    async with streaming(reads) as (stream, peer), streaming(reads) as (other, its_peer):
        stream.transport.pause_reading()
        peer.sock.sendall(b"later\n")
        for _ in range(3):
            await its_peer.send(b"event\n", other)
        assert stream.data == b"event\n" * 3
        assert len(group_of(reads)) == 1  # else it would be found ready again and again
        stream.transport.resume_reading()
        await stream.until(24)
        reads.latest = -1
        for _ in range(2):
            await peer.send(b"event\n", stream)
        assert len(group_of(reads)) == 2
        await peer.send(b"event\n", stream)


async def test_a_reader_that_pauses_as_it_was_to_join_joins_later(reads: Reads) -> None:
    class LateRiser(Stream):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if len(self.data) == 3 * len(b"event\n"):
                self.transport.pause_reading()

    async with streaming(reads, LateRiser) as (stream, peer):
        assert len(group_of(reads)) == 0
        stream.transport.resume_reading()
        for _ in range(3):
            await peer.send(b"event\n", stream)
        assert len(group_of(reads)) == 1


@of_either_kind
async def test_the_end_of_the_connection_is_told(reads: Reads) -> None:
    async with streaming(reads) as (stream, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        await stream.until_ended()
        assert stream.error is None
        assert len(group_of(reads)) == 0


@of_either_kind
async def test_a_reset_is_told(reads: Reads) -> None:
    async with streaming(reads) as (stream, peer):
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        peer.sock.close()
        await stream.until_ended()
        assert isinstance(stream.error, ConnectionResetError)
        assert len(group_of(reads)) == 0


@of_either_kind
async def test_who_has_left_cannot_leave_for_the_one_that_has_its_descriptor_now(
    reads: Reads,
) -> None:
    async with streaming(reads):
        pass  # from here on the sweep has its own descriptor
    async with streaming(reads) as (old, peer):
        member: Any = old.transport.get_protocol()
        member = member._member
    async with streaming(reads) as (new, peer):
        assert new.transport.get_extra_info("socket").fileno() == member.descriptor
        group_of(reads).leave(member)
        assert len(group_of(reads)) == 1
        await peer.send(b"event\n", new)


@of_either_kind
async def test_a_sweep_that_is_closed_leaves_its_streams_to_the_loop(reads: Reads) -> None:
    async with streaming(reads) as (stream, peer):
        group_of(reads).close()
        await peer.send(b"event\n", stream)


@of_either_kind
async def test_where_no_epoll_is_to_be_had_the_loop_reads(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "no more descriptors")

    monkeypatch.setattr(select, "epoll", none_left)
    async with streaming(reads) as (stream, peer):
        await peer.send(b"event\n", stream)
        assert len(group_of(reads)) == 0


@of_either_kind
async def test_an_error_of_the_protocol_ends_its_connection_alone(reads: Reads) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with streaming(reads) as (other, its_peer):
        async with streaming(reads, Broken) as (stream, peer):
            peer.sock.sendall(b"broken\n")
            await stream.until_ended()
            assert isinstance(stream.error, ZeroDivisionError)
        await its_peer.send(b"event\n", other)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


@of_either_kind
async def test_streams_are_not_read_in_the_context_of_the_one_that_came_first(
    reads: Reads,
) -> None:
    _var.set("the test's")
    async with streaming(reads) as (stream, peer):
        stream.contexts.clear()
        for _ in range(3):
            await peer.send(b"event\n", stream)
        assert stream.contexts == {None}


@asynccontextmanager
async def streaming_over_tls(
    reads: Reads, certificates: Certificates, protocol: type[Stream] = Stream
) -> AsyncGenerator[tuple[Stream, asyncio.StreamWriter]]:
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda _, writer: accepted.put_nowait(writer),
        "127.0.0.1",
        0,
        ssl=certificates.server_context(),
    )
    transport, stream = await asyncio.get_running_loop().create_connection(
        protocol, *server.sockets[0].getsockname(), ssl=certificates.client_context()
    )
    read_for(stream, transport, reads)
    writer = await accepted.get()
    for count in range(1, 5):
        writer.write(b"event\n")
        await stream.until(6 * count)
    try:
        yield stream, writer
    finally:
        await stream.end()
        writer.transport.abort()
        server.close()
        await server.wait_closed()


@of_either_kind
async def test_streams_under_tls_are_read_together_too(
    reads: Reads, certificates: Certificates
) -> None:
    async with streaming_over_tls(reads, certificates) as (stream, writer):
        assert len(group_of(reads)) == 1
        writer.write(b"the last\n")
        writer.close()
        await stream.until_ended()
        assert stream.data.endswith(b"the last\n")
        assert len(group_of(reads)) == 0


class Pausing(Stream):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if data == b"pause\n":
            self.transport.pause_reading()


@pytest.mark.parametrize("before", [[], [40_000, *[200] * 7]], ids=["small", "just small again"])
async def test_what_came_under_tls_while_reading_was_paused_is_read_after_the_peers_end(
    reads: Reads, certificates: Certificates, before: list[int]
) -> None:
    async with streaming_over_tls(reads, certificates, Pausing) as (stream, writer):
        for each in before:
            writer.write(bytes(each))
            await stream.until(len(stream.data) + each)
        size = len(stream.data) + len(b"pause\n")
        writer.write(b"pause\n")
        await stream.until(size)
        writer.write(bytes(200_000))
        await asyncio.sleep(0.02)
        writer.transport.abort()  # nothing is left to write: it is a FIN
        await asyncio.sleep(0.02)  # for asyncio to see it
        stream.transport.resume_reading()
        await stream.until_ended()
        assert len(stream.data) == size + 200_000


@of_either_kind
async def test_a_socket_that_somebody_else_has_open_too_wakes_nobody_after_its_stream_was_closed(
    reads: Reads, certificates: Certificates
) -> None:
    async with (
        streaming(reads) as (other, peer),
        streaming_over_tls(reads, certificates) as (stream, writer),
    ):
        kept = os.dup(stream.transport.get_extra_info("socket").fileno())  # as a forked child does
        read_alone(stream.transport)
        await stream.end()
        writer.write(b"more\n")
        await peer.send(b"event\n", other)
        epoll: Any = group_of(reads)
        assert epoll._epoll.poll(0.05) == []
        os.close(kept)


@of_either_kind
async def test_a_socket_that_asyncio_closed_is_not_told_of_for_ever(
    reads: Reads, certificates: Certificates
) -> None:
    """A forked child has it open, so the kernel goes on watching it, by a number that is reused."""
    async with streaming(reads) as (other, peer):
        lower = os.dup(0)  # for the next one that listens
        async with streaming_over_tls(reads, certificates) as (stream, writer):
            descriptor = stream.transport.get_extra_info("socket").fileno()
            kept = os.dup(descriptor)
            await stream.end()
            writer.write(b"more\n")
            os.close(lower)
            reads.latest = -1
            async with streaming(reads) as (successor, its_peer):
                assert successor.transport.get_extra_info("socket").fileno() == descriptor
                await peer.send(b"event\n", other)
                await its_peer.send(b"event\n", successor)
                group: Any = group_of(reads)
                await until(lambda: group._epoll.poll(0) == [])
                assert len(group) == 2
                await its_peer.send(b"event\n", successor)
            os.close(kept)


def _refuse(handler: Handler) -> None:
    handler.data_received(b"no size of a chunk\r\n")


@pytest.mark.parametrize(
    "end",
    [Handler.give_up, Handler.cut, _refuse],
    ids=["give up", "cut", "refuse"],
)
async def test_a_connection_that_we_end_leaves_the_others_before_its_socket_goes(
    reads: Reads, end: Callable[[Handler], None]
) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        transport, handler = await loop.create_connection(
            lambda: Handler(loop), *listening.getsockname()
        )
        accepted, _ = listening.accept()
    with accepted:
        handler.hand_over(Delivery(None), reads)
        handler.begin(without_body=False)
        for piece in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[_CHUNK] * 3):
            expected = handler.received + len(piece)
            accepted.sendall(piece)
            await until(partial(_has_received, handler, expected))
        assert len(group_of(reads)) == 1
        end(handler)
        assert len(group_of(reads)) == 0
        transport.abort()
        await rounds(3)


class Answers(Stream):
    is_streaming = False


async def test_answers_are_read_together_where_more_connections_than_one_are_in_use(
    reads: Reads,
) -> None:
    answers = reads.answers
    assert answers is not None
    async with streaming(reads, Answers) as (one, its_peer):
        assert len(answers) == 0, "the only one is the loop's to read"
        async with streaming(reads, Answers) as (other, peer):
            await its_peer.send(b"answer\n", one)
            await peer.send(b"answer\n", other)
            assert len(answers) == 2
        assert len(answers) == 1
        await its_peer.send(b"answer\n", one)
    assert len(answers) == 0


@pytest.mark.parametrize("reads", ["answers"], indirect=True)
async def test_a_connection_joins_the_others_with_its_second_answer(reads: Reads) -> None:
    async with connected(reads) as (stream, peer):
        await peer.send(b"the only answer, it may be\n", stream)
        assert len(group_of(reads)) == 0
        await peer.send(b"another\n", stream)
        assert len(group_of(reads)) == 1


async def test_what_turns_out_to_be_a_stream_moves_and_its_next_answer_moves_back(
    reads: Reads,
) -> None:
    answers = reads.answers
    assert answers is not None
    async with (
        streaming(reads, Answers) as (other, its_peer),
        streaming(reads, Answers) as (one, peer),
    ):
        assert (len(answers), len(group_of(reads))) == (1, 0)
        one.is_streaming = True
        for _ in range(3):
            await peer.send(b"event\n", one)
        assert (len(answers), len(group_of(reads))) == (0, 1)
        one.is_streaming = False
        await peer.send(b"the last\n", one)
        assert len(group_of(reads)) == 0
        await its_peer.send(b"answer\n", other)
        await peer.send(b"answer\n", one)
        assert (len(answers), len(group_of(reads))) == (2, 0)


@pytest.mark.parametrize("reads", ["answers"], indirect=True)
async def test_who_is_being_closed_under_tls_is_not_read_together_any_more(
    reads: Reads, certificates: Certificates
) -> None:
    """Its socket goes before it is told."""

    class Leaving(Stream):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data == b"nonsense\n":
                read_alone(self.transport)
                self.transport.close()

    async with streaming_over_tls(reads, certificates, Leaving) as (stream, writer):
        assert len(group_of(reads)) == 1
        reads.latest = -1
        writer.write(b"nonsense\n")
        await until(lambda: stream.data.endswith(b"nonsense\n"))
        assert len(group_of(reads)) == 0
        await stream.until_ended()


class Broken(Stream):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if data == b"broken\n":
            raise ZeroDivisionError


class StoppedClock(asyncio.SelectorEventLoop):
    now = 1000.0

    def time(self) -> float:
        return self.now


def test_what_comes_soon_after_the_last_is_read_a_little_later() -> None:
    async def run() -> None:
        reads = make_reads()
        assert reads is not None
        async with streaming(reads) as (stream, peer):
            loop.now += 1
            await peer.send(b"rare\n", stream)
            loop.now += 0.001
            await peer.send(b"soon\n", stream)  # read at once: who knew
            peer.sock.sendall(b"often\n")
            await rounds(20)
            assert stream.data.endswith(b"soon\n")
            loop.now += 0.004
            await rounds(3)
            assert stream.data.endswith(b"often\n")
            loop.now += 0.004
            await rounds(3)  # nothing has come
            await peer.send(b"rare again\n", stream)
        reads.close()

    loop = StoppedClock()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())


@pytest.mark.parametrize(
    ("work", "rest"), [(0.0, 0.003), (0.004, 0.008), (1.0, 0.01)], ids=["none", "some", "much"]
)
def test_after_work_streams_rest_for_twice_as_long_but_not_for_long(
    work: float, rest: float
) -> None:
    class Worker(Stream):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.data.endswith(b"often\n"):
                loop.now += work

    async def run() -> None:
        reads = make_reads()
        assert reads is not None
        async with streaming(reads, Worker) as (stream, peer):
            loop.now += 1
            await peer.send(b"rare\n", stream)
            loop.now += 0.001
            await peer.send(b"often\n", stream)
            peer.sock.sendall(b"next\n")
            await rounds(20)
            loop.now += 0.9 * rest
            await rounds(20)
            assert stream.data.endswith(b"often\n")
            loop.now += 0.2 * rest
            await rounds(3)
            assert stream.data.endswith(b"next\n")
        reads.close()

    loop = StoppedClock()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())


def test_a_clock_that_stands_still_stops_no_stream() -> None:
    async def run() -> None:
        reads = make_reads()
        assert reads is not None
        async with streaming(reads) as (stream, peer):
            for _ in range(10):
                await peer.send(b"event\n", stream)
            assert len(group_of(reads)) == 1
        reads.close()

    with asyncio.Runner(loop_factory=StoppedClock) as runner:
        runner.run(run())


def _has_received(handler: Handler, size: int) -> bool:
    return handler.received >= size


async def until(is_so: Callable[[], bool]) -> None:
    give_up_at = monotonic() + 5  # not by the loop's clock: it may be a test's
    while not is_so():
        assert monotonic() < give_up_at
        await asyncio.sleep(0)


async def rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
