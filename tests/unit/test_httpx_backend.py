"""What is particular to the httpx backend: its byte streams, how it opens them, the names of httpx
and httpcore that are not public, and the table of errors.

This module knows sockets and the insides of the backend. What every backend does alike is in the
conformance suite, HTTP/2 in `test_httpx_http2`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import httpcore
import httpcore2
import httpx
import httpx2
import pytest
import trustme
from hypothesis import given, strategies as st

import trunkline
from trunkline import Request, TransportConfig
from trunkline.dns import interleave
from trunkline.http1 import Course, is_refusal
from trunkline.net import SocketStream, Stream, TLSStream, give_way, open_tcp, open_unix
from trunkline_httpx import _proxy, _transport
from trunkline_httpx._exchange import Http1Connection
from trunkline_httpx._family import Family, make_family
from trunkline_httpx._httpcore import Message, make_transport, unread
from trunkline_httpx._httpx import HTTPX
from trunkline_httpx._translate import translate

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a client and for a server, which trust each other."""
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)  # pyright: ignore[reportUnknownMemberType]
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.test").configure_cert(server)  # pyright: ignore[reportUnknownMemberType]
    return client, server


class Attempt:
    """An attempt without deadlines, which keeps the phases it was told."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.response_started = False
        self.is_body_untouched = self.is_untaken = False
        self.phases: list[str] = []

    def begin(self, phase: str) -> None:
        self.phases.append(phase)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        return await awaitable


@asynccontextmanager
async def stream_and_socket(
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> AsyncGenerator[tuple[SocketStream, socket.socket]]:
    """A stream, and the non-blocking socket at its other end."""
    ours, theirs = socket.socketpair(type=kind)
    ours.setblocking(False)
    theirs.setblocking(False)
    stream = SocketStream(ours, None)
    with theirs, contextlib.closing(stream), anyio.fail_after(20):
        yield stream, theirs


class TLSServer:
    """The other end of a TLS stream: a plain stream, and the server's side of the protocol."""

    def __init__(self, stream: SocketStream, context: ssl.SSLContext) -> None:
        self.stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def do(self, step: Callable[[ssl.SSLObject], T]) -> T:
        while True:
            try:
                result = step(self._ssl)
            except ssl.SSLWantReadError:
                await self.stream.send(self._outgoing.read())
                self._incoming.write(await self.stream.receive())
            else:
                await self.stream.send(self._outgoing.read())
                return result


@asynccontextmanager
async def tls_pair(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> AsyncGenerator[tuple[TLSStream, TLSServer]]:
    async with stream_and_socket() as (inner, sock):
        client = TLSStream(inner, contexts[0], "api.test")
        server = TLSServer(SocketStream(sock, None), contexts[1])
        async with anyio.create_task_group() as group:
            group.start_soon(server.do, ssl.SSLObject.do_handshake)
            await client.handshake()
        yield client, server
        client.close()


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_closing_a_stream_wakes_its_reader_and_its_writer_with_an_error() -> None:
    async with stream_and_socket() as (stream, _):
        while stream.send_nowait(bytes(65536)):
            pass
        async with anyio.create_task_group() as group:

            async def wait(doing: Awaitable[object]) -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await doing

            group.start_soon(wait, stream.receive())
            group.start_soon(wait, stream.send(b"more"))
            await anyio.wait_all_tasks_blocked()
            stream.close()


@pytest.mark.anyio
async def test_closing_a_stream_wakes_one_who_waits_for_either() -> None:
    async with stream_and_socket() as (stream, _):
        while stream.send_nowait(bytes(65536)):
            pass
        async with anyio.create_task_group() as group:
            group.start_soon(stream.wait_either)
            await anyio.wait_all_tasks_blocked()
            stream.close()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.wait_readable()


@pytest.mark.anyio
async def test_a_cancelled_read_takes_nothing() -> None:
    async with stream_and_socket() as (stream, peer):
        with anyio.move_on_after(0):
            await stream.receive()
        peer.send(b"data")
        assert await stream.receive() == b"data"


@pytest.mark.anyio
async def test_a_peer_that_always_has_more_keeps_no_deadline_from_passing() -> None:
    async with stream_and_socket() as (stream, peer):
        with anyio.move_on_after(0) as scope:
            for _ in range(1000):
                peer.send(b"more")
                await stream.receive()
    assert scope.cancelled_caught


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_timer_of_asyncio_that_is_due_fires_when_way_is_given() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await give_way()
    task.uncancel()


@pytest.mark.anyio
async def test_an_aborted_stream_resets_its_peer() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stream = await open_tcp(["127.0.0.1"], listener.getsockname()[1])
        peer = stack.enter_context(listener.accept()[0])
        stream.abort()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


@pytest.mark.anyio
async def test_bytes_pass_tls_both_ways(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    data = bytes(range(256)) * 2000
    async with tls_pair(contexts) as (client, server):

        async def echo() -> None:
            left = len(data)
            while left:
                piece = await server.do(lambda tls: tls.read(65536))
                left -= len(piece)
                await server.do(lambda tls, piece=piece: tls.write(piece))  # type: ignore[misc]

        received = b""
        async with anyio.create_task_group() as group:
            group.start_soon(echo)
            group.start_soon(client.send, data)
            while len(received) < len(data):
                received += await client.receive()
        assert received == data


@pytest.mark.anyio
async def test_a_session_ticket_is_nothing_unasked_but_data_is(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with tls_pair(contexts) as (client, server):
        # A TLS 1.3 server sends its tickets right after the handshake.
        assert client.receive_nowait(1) is None
        await server.do(lambda tls: tls.write(b"unasked"))
        assert client.receive_nowait(100) == b"unasked"


@pytest.mark.anyio
async def test_an_end_without_close_notify_is_an_error(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with tls_pair(contexts) as (client, server):
        await server.do(lambda tls: tls.write(b"the last"))
        server.stream.close()
        assert await client.receive() == b"the last"
        with pytest.raises(ssl.SSLEOFError):
            await client.receive()


@pytest.mark.anyio
async def test_an_end_with_close_notify_is_an_end(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with tls_pair(contexts) as (client, server):
        await server.do(lambda tls: tls.write(b"the last"))
        async with anyio.create_task_group() as group:
            group.start_soon(server.do, ssl.SSLObject.unwrap)
            assert await client.receive() == b"the last"
            assert await client.receive() == b""
            client.close()  # says close_notify too, or the server's `unwrap` would fail


# -- opening ---------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]), unique=True))
def test_addresses_are_tried_by_turns_of_their_families(addresses: list[str]) -> None:
    ordered = interleave(addresses)
    assert sorted(ordered) == sorted(addresses)
    assert list(ordered[:1]) == addresses[:1]
    families = [":" in address for address in ordered]
    turns = min(families.count(True), families.count(False))
    assert all(a != b for a, b in pairwise(families[: 2 * turns]))


@pytest.mark.anyio
async def test_the_next_address_is_tried_when_one_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refusing = [f"127.0.0.{number}" for number in range(2, 42)]
        with anyio.fail_after(5):  # not a quarter of a second for each
            stream = await open_tcp([*refusing, "::1", "127.0.0.1"], port)
        assert stream.peer == f"127.0.0.1:{port}"
        stream.close()


@pytest.mark.anyio
async def test_the_next_address_is_tried_while_one_does_not_answer() -> None:
    with silent_address() as (silent, port), socket.create_server(("127.0.0.1", port)):
        with anyio.fail_after(20):
            stream = await open_tcp([silent, "127.0.0.1"], port)
        assert stream.peer == f"127.0.0.1:{port}"
        stream.close()


@contextmanager
def silent_address() -> Generator[tuple[str, int]]:
    """An address and a port where a connection attempt is neither taken nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(8):  # fill the backlog
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        yield "127.0.0.2", port


@pytest.mark.anyio
async def test_when_no_address_answers_the_first_failure_is_the_cause() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        with pytest.raises(trunkline.ConnectError) as caught:
            await open_tcp(["127.0.0.1", "::1"], port)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@pytest.mark.anyio
async def test_a_socket_that_is_being_opened_is_closed_when_that_is_cancelled() -> None:
    # An unclosed socket is a ResourceWarning, which fails the run.
    with silent_address() as (silent, port), anyio.move_on_after(0.01) as scope:
        await open_tcp([silent], port)
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_a_unix_socket_whose_backlog_is_full_is_waited_for(tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        opened: list[Stream] = []

        async def open_it() -> None:
            opened.append(await open_unix(path))

        async with anyio.create_task_group() as group:
            group.start_soon(open_it)
            await anyio.sleep(0.03)
            assert not opened
            stack.enter_context(listener.accept()[0])
        opened[0].close()


def test_a_socks_proxy_without_socksio_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_transport, "HAS_SOCKS", False)
    with pytest.raises(trunkline.UnsupportedOption, match=r"pip install 'trunkline\[socks\]'"):
        trunkline.HttpxTransport(TransportConfig(proxy="socks5://127.0.0.1:1080"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reply",
    [
        b"\x05\x00" + b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x05\x00" + b"\x05\x00\x00\x03\x04host\x00\x00",
        b"\x05\x00" + b"\x05\x00\x00\x04" + bytes(18),
    ],
    ids=["ipv4", "name", "ipv6"],
)
async def test_a_socks_proxys_reply_is_read_to_its_last_byte_and_no_further(reply: bytes) -> None:
    async with stream_and_socket() as (stream, peer):
        peer.send(reply + b"the origin's")
        proxy = trunkline.proxy.Proxy("socks5", "127.0.0.1", 1080)
        await _proxy.open_socks(stream, proxy, "api.test", 443)
        assert await stream.receive() == b"the origin's"


# -- HTTP/1.1 over httpx ---------------------------------------------------------------------------


@asynccontextmanager
async def connection_and_peer(
    kind: socket.SocketKind = socket.SOCK_STREAM, family: Family = HTTPX
) -> AsyncGenerator[tuple[Http1Connection, socket.socket]]:
    async with stream_and_socket(kind) as (stream, peer):
        connection = Http1Connection(stream, family=family, cut_short=[])
        yield connection, peer
        connection.close()


class Turns:
    """Counts how often another task has its turn."""

    count = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_head_and_small_content_go_in_one_piece() -> None:
    async with connection_and_peer(socket.SOCK_SEQPACKET) as (connection, peer):
        peer.send(OK)
        await connection.exchange(Request("POST", "http://a.test/", content=b"hello"), Attempt())
        assert peer.recv(65536).endswith(b"\r\n\r\nhello")


@pytest.mark.anyio
async def test_an_early_success_does_not_stop_the_upload() -> None:
    content = bytes(4 * 1024 * 1024)
    async with connection_and_peer() as (connection, sock):
        peer, received = SocketStream(sock, None), 0

        async def serve() -> None:
            nonlocal received
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
            while received < len(content):
                received += len(await peer.receive())

        attempt = Attempt()
        request = Request("POST", "http://a.test/", content=content)
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            exchange = await connection.exchange(request, attempt)
            assert exchange.status_code == 200
            assert await exchange.read() == b"ok"
            assert await exchange.read() == b""
        assert attempt.bytes_sent == received
        assert connection.is_usable()


@pytest.mark.anyio
async def test_an_upload_that_never_has_to_wait_lets_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = Turns()

    def take_a_little(_: SocketStream, data: bytes) -> int:
        return min(len(data), 1000)

    monkeypatch.setattr(SocketStream, "send_nowait", take_a_little)
    async with connection_and_peer() as (connection, peer), anyio.create_task_group() as group:
        peer.send(OK)
        group.start_soon(turns.run)
        request = Request("POST", "http://a.test/", content=bytes(1_000_000))
        await connection.exchange(request, Attempt())
        group.cancel_scope.cancel()
    assert turns.count > 100


@pytest.mark.anyio
@pytest.mark.parametrize("family", [HTTPX, make_family(httpx2, httpcore2)], ids=["1", "2"])
async def test_an_answer_that_is_here_at_once_lets_others_run_once(family: Family) -> None:
    turns = Turns()

    async with (
        connection_and_peer(family=family) as (connection, peer),
        anyio.create_task_group() as group,
    ):
        group.start_soon(turns.run)
        for number in range(1, 6):
            peer.send(OK)
            exchange = await connection.exchange(Request("GET", "http://a.test/"), Attempt())
            while await exchange.read():
                pass
            # The counting task may begin with the second of them. httpcore's lock would let it run
            # twice more in each.
            assert number - 1 <= turns.count <= number + 1
        group.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("family", [HTTPX, make_family(httpx2, httpcore2)], ids=["1", "2"])
async def test_an_exchange_that_is_cancelled_before_it_begins_sends_nothing(
    family: Family,
) -> None:
    async with connection_and_peer(family=family) as (connection, peer):
        peer.send(OK)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await connection.exchange(Request("GET", "http://a.test/"), Attempt())

        assert scope.cancelled_caught
        with pytest.raises(BlockingIOError):
            peer.recv(1)


@given(
    interim=st.lists(st.sampled_from([b"100 Continue", b"103 Early Hints\r\nLink: </a>"])),
    status=st.integers(200, 599),
    cut=st.integers(0, 200),
)
def test_only_a_final_error_refuses_the_rest_of_a_request(
    interim: list[bytes], status: int, cut: int
) -> None:
    before = b"".join(b"HTTP/1.1 %b\r\n\r\n" % head for head in interim)
    received = (before + b"HTTP/1.1 %d\r\nContent-Length: 0\r\n\r\n" % status)[:cut]
    assert is_refusal(received) == (len(received) > len(before) + 9 and status >= 300)


@pytest.mark.anyio
async def test_the_iterator_of_a_response_that_was_cut_short_is_run_to_its_end() -> None:
    # Dropped, an async generator would be a task on asyncio and a warning on trio.
    async with stream_and_socket() as (stream, peer):
        cut_short: list[AsyncIterator[bytes]] = []
        connection = Http1Connection(stream, family=HTTPX, cut_short=cut_short)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
        exchange = await connection.exchange(Request("GET", "http://a.test/"), Attempt())
        assert await exchange.read() == b"part"
        exchange.close()
        assert not connection.is_usable()
        (pieces,) = cut_short
        with pytest.raises(httpx.ReadError):
            await anext(pieces)
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)


# -- what httpx and httpcore keep to themselves ----------------------------------------------------


class Scripted(httpcore.AsyncNetworkStream):
    """Keeps what is written; reads give `answer` once, then the end."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.written = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        answer, self.answer = self.answer, b""
        return answer

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self.written += buffer

    async def aclose(self) -> None:
        """There is nothing to close."""


@pytest.mark.anyio
async def test_httpx_sends_what_it_is_handed_on_the_connection_in_the_place_of_its_pool() -> None:
    stream = Scripted(OK)
    origin = httpcore.Origin(b"http", b"origin", 80)
    connection = httpcore.AsyncHTTP11Connection(origin, stream)
    transport = make_transport(connection, httpx)
    fields = [(b"hOst", b"origin"), (b"Content-Length", b"2")]
    message = Message("pOST", b"/%7e?b=%2C", fields, httpx.ByteStream(b"ab"))
    response = await transport.handle_async_request(message)
    assert await response.aread() == b"ok"
    await response.aclose()
    head = b"pOST /%7e?b=%2C HTTP/1.1\r\nhOst: origin\r\nContent-Length: 2\r\n\r\n"
    assert stream.written == head + b"ab"
    assert connection.is_idle()


@pytest.mark.anyio
@pytest.mark.parametrize("glued", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_what_follows_a_response_is_unread(glued: bytes) -> None:
    connection = httpcore.AsyncHTTP11Connection(
        httpcore.Origin(b"http", b"origin", 80), Scripted(OK + glued)
    )
    response = await connection.handle_async_request(
        httpcore.Request("GET", "http://origin/", headers=[("Host", "origin")])
    )
    assert await response.aread() == b"ok"
    await response.aclose()
    assert unread(connection) == glued


# -- the table of errors ---------------------------------------------------------------------------

EXPECTED: dict[str, type[trunkline.TransportError]] = {
    "ConnectionNotAvailable": trunkline.RemoteDisconnected,
    "TransportError": trunkline.ReadError,
    "TimeoutException": trunkline.ReadTimeout,
    "PoolTimeout": trunkline.PoolTimeout,
    "ConnectTimeout": trunkline.ConnectTimeout,
    "ReadTimeout": trunkline.ReadTimeout,
    "WriteTimeout": trunkline.WriteTimeout,
    "NetworkError": trunkline.ReadError,
    "ConnectError": trunkline.ConnectError,
    "ReadError": trunkline.ReadError,
    "WriteError": trunkline.ReadError,
    "CloseError": trunkline.ReadError,
    "ProxyError": trunkline.ProxyError,
    "UnsupportedProtocol": trunkline.InvalidRequest,
    "ProtocolError": trunkline.RemoteProtocolError,
    "LocalProtocolError": trunkline.InvalidRequest,
    "RemoteProtocolError": trunkline.RemoteProtocolError,
}


def _exceptions(library: Any, base: type[Exception]) -> list[type[Exception]]:
    found = [getattr(library, name) for name in library.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, base)]


@pytest.mark.parametrize(
    "kind",
    [*_exceptions(httpx, httpx.TransportError), *_exceptions(httpcore, Exception)],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_every_exception_of_httpx_and_httpcore_is_translated(kind: type[Exception]) -> None:
    error = translate(kind("quoted"), HTTPX.table, Course(written=True))
    assert type(error) is EXPECTED[kind.__name__]
    assert "quoted" not in str(error)


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (Course(), trunkline.RemoteDisconnected),
        (Course(written=True), trunkline.RemoteDisconnected),
        (Course(written=True, started=True), trunkline.BodyTruncated),
    ],
)
def test_a_reset_is_told_by_how_far_the_exchange_had_come(
    course: Course, expected: type[trunkline.TransportError]
) -> None:
    wrapped = httpx.ReadError("")
    wrapped.__cause__ = httpcore.ReadError()
    wrapped.__cause__.__cause__ = ConnectionResetError()
    assert type(translate(wrapped, HTTPX.table, course)) is expected


def test_a_failure_under_the_request_is_told_from_one_under_the_response() -> None:
    error = OSError(110, "Connection timed out")
    assert type(translate(error, HTTPX.table, Course())) is trunkline.WriteError
    assert type(translate(error, HTTPX.table, Course(written=True))) is trunkline.ReadError


def test_what_is_not_an_exception_of_a_library_is_left_alone() -> None:
    assert translate(ZeroDivisionError(), HTTPX.table, Course()) is None
    assert translate(trunkline.ReadTimeout(), HTTPX.table, Course()) is None
