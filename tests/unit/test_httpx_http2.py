"""The httpx backend's HTTP/2 connection, against a peer that does what HTTP/2 servers do.

This module knows frames and streams. What every backend does alike is in the conformance suite.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame as frames
import pytest
from h2.errors import ErrorCodes

from trunkline import (
    BodyTruncated,
    GoAway,
    InvalidRequest,
    LimitExceeded,
    RemoteDisconnected,
    RemoteProtocolError,
    Request,
    StreamRefused,
    StreamReset,
    TransportError,
)
from trunkline.http2 import Http2Exchange
from trunkline.net import SocketStream
from trunkline_httpx import _http2
from trunkline_httpx._http2 import Http2Connection

T = TypeVar("T")
URL = "https://api.test/v1"
OK = [(":status", "200")]
MIB = 1024 * 1024


LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


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


class Peer:
    """A server's side of HTTP/2."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = SocketStream(sock, None)
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self.http.initiate_connection()
        self._events: deque[h2.events.Event] = deque()
        self._one_at_a_time = anyio.Lock()

    async def flush(self) -> None:
        async with self._one_at_a_time:
            await self.stream.send(self.http.data_to_send())

    async def next(self, kind: type[T]) -> T:
        """The next event of a kind; those before it are passed over."""
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, kind):
                    return event
            data = await self.stream.receive()
            assert data, f"the client has gone; there was no {kind.__name__}"
            self._events.extend(self.http.receive_data(data))
            await self.flush()

    async def next_request(self) -> int:
        return (await self.next(h2.events.RequestReceived)).stream_id or 0

    async def body(self) -> bytes:
        """The content of the one request under way, with its window given back."""
        content = b""
        while True:
            event = await self.next(h2.events.Event)
            if isinstance(event, h2.events.DataReceived):
                content += event.data or b""
                size = event.flow_controlled_length or 0
                self.http.acknowledge_received_data(size, event.stream_id or 0)
                await self.flush()
            elif isinstance(event, h2.events.StreamEnded):
                return content

    async def respond(self, stream_id: int, body: bytes = b"", *, end: bool = True) -> None:
        self.http.send_headers(stream_id, OK, end_stream=end and not body)
        for at in range(0, len(body), 16384):
            self.http.send_data(stream_id, body[at : at + 16384])
        if body and end:
            self.http.end_stream(stream_id)
        await self.flush()

    async def set(self, code: h2.settings.SettingCodes, value: int) -> None:
        self.http.update_settings({code: value})
        await self.flush()

    async def send_frame(self, frame: frames.Frame) -> None:
        await self.stream.send(frame.serialize())

    async def go_away(self, last_id: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        await self.send_frame(frames.GoAwayFrame(0, last_stream_id=last_id, error_code=code))


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[Http2Connection, Peer, anyio.abc.TaskGroup]]:
    """A connection, its peer, and tasks that are ended with them."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    connection, peer = Http2Connection(SocketStream(ours, None)), Peer(theirs)
    try:
        with anyio.fail_after(30):
            await peer.flush()
            await peer.next(h2.events.RemoteSettingsChanged)
            assert connection.is_usable()
            await peer.next(h2.events.SettingsAcknowledged)
            async with anyio.create_task_group() as group:
                yield connection, peer, group
                group.cancel_scope.cancel()
    finally:
        connection.close()
        peer.stream.close()


class Call:
    """A request in a task of its own."""

    def __init__(
        self,
        group: anyio.abc.TaskGroup,
        connection: Http2Connection,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        method = "GET" if content is None else "POST"
        self.request = Request(method, URL, content=content, headers=headers)
        self.connection = connection
        self.attempt = Attempt()
        self.scope = anyio.CancelScope()
        self.is_over = anyio.Event()
        self.status: int | None = None
        self.body = b""
        self.error: Exception | None = None
        group.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                await self._exchange()
            except (TransportError, LookupError) as error:
                self.error = error
        self.is_over.set()

    async def _exchange(self) -> None:
        exchange = await self.connection.exchange(self.request, self.attempt)
        self.status = exchange.status_code
        try:
            while piece := await exchange.read():
                self.body += piece
        finally:
            exchange.close()


async def begin(connection: Http2Connection, peer: Peer) -> Http2Exchange:
    """An exchange whose head has come, and which nobody reads."""

    begun: list[Http2Exchange] = []

    async def ask() -> None:
        begun.append(await connection.exchange(Request("GET", URL), Attempt()))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await peer.respond(await peer.next_request(), end=False)
    return begun[0]


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_request_and_its_response_cross() -> None:
    async with connected() as (connection, peer, group):
        asked = Call(group, connection, b"question", {"X-Name": " value ", "Connection": "close"})
        request = await peer.next(h2.events.RequestReceived)
        assert [(name, value) for name, value in request.headers or []] == [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", b"api.test"),
            (b":path", b"/v1"),
            (b"x-name", b"value"),
            (b"content-length", b"8"),
        ]
        assert (await peer.next(h2.events.DataReceived)).data == b"question"
        await peer.respond(request.stream_id or 0, b"answer")
        await asked.is_over.wait()
        assert (asked.status, asked.body, asked.error) == (200, b"answer", None)
        assert asked.attempt.phases[:2] == ["write", "headers"]
        assert asked.attempt.bytes_sent > len("question")
        assert connection.is_usable()


@pytest.mark.anyio
async def test_a_cancelled_exchange_resets_its_stream_and_disturbs_no_other() -> None:
    async with connected() as (connection, peer, group):
        first = Call(group, connection)
        cancelled = await peer.next_request()
        second = Call(group, connection)
        good = await peer.next_request()
        first.scope.cancel()
        reset = await peer.next(h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (cancelled, ErrorCodes.CANCEL)
        await peer.respond(good, b"answer")
        await second.is_over.wait()
        assert second.body == b"answer"
        assert connection.is_usable()


@pytest.mark.anyio
async def test_a_thousand_cancelled_streams_leave_the_connection_as_it_was() -> None:
    async with connected() as (connection, peer, group):
        for _ in range(1000):
            cancelled = Call(group, connection)
            await peer.next_request()
            cancelled.scope.cancel()
            await peer.next(h2.events.StreamReset)
        last = Call(group, connection)
        await peer.respond(await peer.next_request(), b"answer")
        await last.is_over.wait()
        assert last.body == b"answer"


@pytest.mark.anyio
async def test_the_window_of_what_was_not_read_is_given_back() -> None:
    async with connected() as (connection, peer, group):
        for _ in range(110):  # of 1 MiB each; the connection's window is 100 MiB
            exchange = await begin(connection, peer)
            for _ in range(MIB // 16384):
                peer.http.send_data(exchange.id, bytes(16384))
            group.start_soon(peer.flush)
            while exchange.held < MIB:
                assert connection.is_usable()
                await anyio.lowlevel.checkpoint()
            exchange.close()
            await peer.next(h2.events.StreamReset)


@pytest.mark.anyio
async def test_a_slow_reader_does_not_hold_up_its_sibling() -> None:
    async with connected() as (connection, peer, group):
        slow = await begin(connection, peer)
        for _ in range(MIB // 16384):  # all that its window allows
            peer.http.send_data(slow.id, bytes(16384))
        group.start_soon(peer.flush)
        quick = Call(group, connection)
        await peer.respond(await peer.next_request(), b"answer")
        await quick.is_over.wait()
        assert quick.body == b"answer"
        received = 0
        while received < MIB:
            received += len(await slow.read())


@pytest.mark.anyio
async def test_no_more_exchanges_at_once_than_the_peer_takes() -> None:
    async with connected() as (connection, peer, group):
        assert connection.max_exchanges == 100
        Call(group, connection)
        await peer.next_request()
        await peer.set(h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS, 1)
        await peer.next(h2.events.SettingsAcknowledged)
        assert connection.max_exchanges == 1
        with pytest.raises(StreamRefused):
            await connection.exchange(Request("GET", URL), Attempt())
        assert connection.is_usable()


@pytest.mark.anyio
async def test_what_comes_on_an_idle_connection_is_answered_when_it_is_looked_at() -> None:
    async with connected() as (connection, peer, _):
        peer.http.ping(b"01234567")
        await peer.flush()
        assert connection.is_usable()
        await peer.next(h2.events.PingAckReceived)


@pytest.mark.anyio
async def test_a_connection_that_the_peer_closed_while_idle_is_not_usable() -> None:
    async with connected() as (connection, peer, _):
        peer.stream.close()
        assert not connection.is_usable()


# -- sending ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_upload_waits_for_the_window() -> None:
    async with connected() as (connection, peer, group):
        content = bytes(range(256)) * 4096  # 16 windows
        upload = Call(group, connection, content)
        stream_id = await peer.next_request()
        assert await peer.body() == content
        await peer.respond(stream_id)
        await upload.is_over.wait()
        assert upload.status == 200
        assert upload.attempt.bytes_sent >= len(content)


@pytest.mark.anyio
async def test_an_upload_survives_a_window_that_shrinks_below_what_is_in_flight() -> None:
    produce, produced = anyio.create_memory_object_stream[bytes](0)

    async with connected() as (connection, peer, group), produce, produced:
        upload = Call(group, connection, produced)
        stream_id = await peer.next_request()
        await produce.send(bytes(60_000))
        for _ in range(4):
            await peer.next(h2.events.DataReceived)
        await peer.set(h2.settings.SettingCodes.INITIAL_WINDOW_SIZE, 1000)
        assert connection.is_usable()
        await produce.send(b"the last")
        await produce.aclose()
        await anyio.wait_all_tasks_blocked()
        peer.http.increment_flow_control_window(100_000, stream_id)
        await peer.flush()
        assert (await peer.next(h2.events.DataReceived)).data == b"the last"
        await peer.next(h2.events.StreamEnded)
        await peer.respond(stream_id)
        await upload.is_over.wait()
        assert upload.status == 200


@pytest.mark.anyio
async def test_a_peer_that_reads_late_holds_up_nobody_for_good() -> None:
    async with connected() as (connection, peer, group):
        peer.http.increment_flow_control_window(40 * MIB)
        await peer.set(h2.settings.SettingCodes.INITIAL_WINDOW_SIZE, 20 * MIB)
        assert connection.is_usable()
        uploads = [Call(group, connection, bytes(5 * MIB)) for _ in range(2)]
        await anyio.wait_all_tasks_blocked()
        assert not any(upload.is_over.is_set() for upload in uploads)
        open_streams = {await peer.next_request(), await peer.next_request()}
        while open_streams:
            ended = await peer.next(h2.events.StreamEnded)
            open_streams.remove(ended.stream_id or 0)
            await peer.respond(ended.stream_id or 0)
        for upload in uploads:
            await upload.is_over.wait()
            assert upload.status == 200
            assert upload.attempt.phases.count("write") > 10  # as the peer took some


@pytest.mark.anyio
async def test_an_error_response_stops_the_upload_and_is_delivered() -> None:
    async with connected() as (connection, peer, group):
        upload = Call(group, connection, bytes(MIB))
        stream_id = await peer.next_request()
        peer.http.send_headers(stream_id, [(":status", "413")])
        peer.http.send_data(stream_id, b"too long", end_stream=True)
        await peer.flush()
        await upload.is_over.wait()
        assert (upload.status, upload.body) == (413, b"too long")
        assert (await peer.next(h2.events.StreamReset)).stream_id == stream_id
        assert connection.is_usable()


@pytest.mark.anyio
async def test_what_the_caller_raises_while_producing_content_is_what_the_caller_gets() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"one"
        raise LookupError("no more")

    async with connected() as (connection, peer, group):
        upload = Call(group, connection, content())
        stream_id = await peer.next_request()
        assert (await peer.next(h2.events.StreamReset)).stream_id == stream_id
        await upload.is_over.wait()
        assert isinstance(upload.error, LookupError)
        assert connection.is_usable()


@pytest.mark.anyio
@pytest.mark.parametrize("length", ["2", "4"])
async def test_content_that_contradicts_its_length_is_reset(length: str) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"one"

    async with connected() as (connection, peer, group):
        upload = Call(group, connection, content(), {"Content-Length": length})
        await peer.next(h2.events.StreamReset)
        await upload.is_over.wait()
        assert isinstance(upload.error, InvalidRequest)


@pytest.mark.anyio
async def test_content_is_sent_as_it_is_produced() -> None:
    produce, produced = anyio.create_memory_object_stream[bytes](0)

    async with connected() as (connection, peer, group), produce, produced:
        upload = Call(group, connection, produced)
        stream_id = await peer.next_request()
        for piece in (b"one", b"two"):
            await produce.send(piece)
            assert (await peer.next(h2.events.DataReceived)).data == piece
        await produce.aclose()
        await peer.next(h2.events.StreamEnded)
        await peer.respond(stream_id)
        await upload.is_over.wait()
        assert upload.status == 200


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_after_a_goaway_the_streams_up_to_its_last_id_are_finished() -> None:
    async with connected() as (connection, peer, group):
        begun = Call(group, connection)
        stream_id = await peer.next_request()
        passed_over = Call(group, connection)
        await peer.next_request()
        await peer.go_away(last_id=stream_id)
        await passed_over.is_over.wait()
        assert isinstance(passed_over.error, GoAway)
        assert passed_over.error.replay == "safe"
        assert not connection.is_usable()
        await peer.respond(stream_id, b"answer")
        await begun.is_over.wait()
        assert (begun.body, begun.error) == (b"answer", None)


@pytest.mark.anyio
async def test_a_goaway_with_an_error_and_the_end_is_no_proof_that_nothing_was_processed() -> None:
    async with connected() as (connection, peer, group):
        asked = Call(group, connection)
        await peer.go_away(await peer.next_request(), ErrorCodes.ENHANCE_YOUR_CALM)
        peer.stream.close()
        await asked.is_over.wait()
        assert isinstance(asked.error, GoAway)
        assert asked.error.replay == "if_idempotent"
        assert "ENHANCE_YOUR_CALM" in str(asked.error)


@pytest.mark.anyio
async def test_a_refused_stream_is_told_from_one_that_was_reset() -> None:
    async with connected() as (connection, peer, group):
        refused = Call(group, connection)
        peer.http.reset_stream(await peer.next_request(), ErrorCodes.REFUSED_STREAM)
        reset = Call(group, connection)
        stream_id = await peer.next_request()
        await peer.respond(stream_id, b"ans", end=False)
        peer.http.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        await peer.flush()
        await refused.is_over.wait()
        await reset.is_over.wait()
        assert isinstance(refused.error, StreamRefused)
        assert isinstance(reset.error, StreamReset)
        assert (reset.error.code, reset.body) == (ErrorCodes.INTERNAL_ERROR, b"ans")
        assert connection.is_usable()


@pytest.mark.anyio
async def test_a_reset_after_the_whole_response_is_no_failure() -> None:
    async with connected() as (connection, peer, group):
        upload = Call(group, connection, bytes(MIB))
        stream_id = await peer.next_request()
        await peer.respond(stream_id, b"enough")
        peer.http.reset_stream(stream_id, ErrorCodes.NO_ERROR)
        await peer.flush()
        await upload.is_over.wait()
        assert (upload.status, upload.body, upload.error) == (200, b"enough", None)


@pytest.mark.anyio
async def test_the_end_of_the_connection_is_told_to_each_exchange_by_itself() -> None:
    async with connected() as (connection, peer, group):
        whole = Call(group, connection)
        await peer.respond(await peer.next_request(), b"answer")
        truncated = Call(group, connection)
        await peer.respond(await peer.next_request(), b"ans", end=False)
        unanswered = Call(group, connection)
        await peer.next_request()
        peer.stream.close()
        for made in (whole, truncated, unanswered):
            await made.is_over.wait()
        assert (whole.body, whole.error) == (b"answer", None)
        assert isinstance(truncated.error, BodyTruncated)
        assert isinstance(unanswered.error, RemoteDisconnected)


@pytest.mark.anyio
async def test_closing_the_connection_ends_its_exchanges() -> None:
    async with connected() as (connection, peer, group):
        calls = [Call(group, connection) for _ in range(3)]
        for _ in calls:
            await peer.next_request()
        connection.close()
        for made in calls:
            await made.is_over.wait()
            assert isinstance(made.error, RemoteDisconnected)
        assert await peer.next(h2.events.ConnectionTerminated)


@pytest.mark.anyio
async def test_what_is_not_http2_ends_the_connection() -> None:
    async with connected() as (connection, peer, group):
        asked = Call(group, connection)
        await peer.next_request()
        await peer.stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await asked.is_over.wait()
        assert isinstance(asked.error, RemoteProtocolError)
        assert not connection.is_usable()


@pytest.mark.anyio
async def test_a_response_head_without_measure_is_refused() -> None:
    async with connected() as (connection, peer, group):
        asked = Call(group, connection)
        stream_id = await peer.next_request()
        peer.http.remote_settings.clear()
        fields = [(f"x-{number}", "v" * 100) for number in range(1500)]
        peer.http.send_headers(stream_id, [*OK, *fields])
        await peer.flush()
        await asked.is_over.wait()
        assert isinstance(asked.error, LimitExceeded)


@pytest.mark.anyio
async def test_a_peer_that_demands_answers_and_reads_none_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_http2, "_MAX_OUTBOX", 20_000)
    async with connected() as (connection, peer, group):
        asked = Call(group, connection)
        await peer.next_request()

        async def flood() -> None:
            ping = frames.PingFrame(0, opaque_data=b"01234567").serialize()
            with contextlib.suppress(ConnectionError):  # it has hung up
                while True:
                    await peer.stream.send(ping * 1000)

        group.start_soon(flood)
        await asked.is_over.wait()
        assert isinstance(asked.error, LimitExceeded)
