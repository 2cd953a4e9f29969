"""The server that HTTP/2 faults are made with, met with plain sockets and frames."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import hpack
import hyperframe.frame as wire
import pytest

from trunkline.testing import Certificates, FrameServer
from trunkline.testing._frames import FrameStep
from trunkline.testing._script import fin
from trunkline.testing._transcript import PREFACE
from trunkline.testing.frames import (
    CANCEL,
    REFUSED_STREAM,
    announce,
    answer,
    data,
    data_frame,
    drip,
    expect_acks,
    expect_head,
    expect_request,
    expect_reset,
    expect_rest,
    fields,
    flood,
    frame,
    goaway,
    greet,
    head,
    pause,
    ping,
    raw,
    repeat,
    reset,
    send,
    serve,
    wait,
    window,
)

PATIENCE = 10.0


class Client:
    """A client's side of HTTP/2, in frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._buffer = b""

    def begin(self, **settings: int) -> None:
        codes = {getattr(wire.SettingsFrame, name): value for name, value in settings.items()}
        self.socket.sendall(PREFACE + wire.SettingsFrame(settings=codes).serialize())

    def send(self, *frames: wire.Frame) -> None:
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def request(
        self, stream_id: int, path: str = "/", *more: tuple[str, str], end: bool = True
    ) -> wire.HeadersFrame:
        pairs = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)]
        block = self.encoder.encode([*pairs, *more])
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return wire.HeadersFrame(stream_id, data=block, flags=flags)

    def next(self) -> wire.Frame | None:
        """The next frame; None at the end of the connection."""
        if (start := self._read(9)) is None:
            return None
        received, size = wire.Frame.parse_frame_header(memoryview(start))
        body = self._read(size)
        assert body is not None, "the end, in the middle of a frame"
        received.parse_body(memoryview(body))
        return received

    def until(self, kind: type[wire.Frame], **wanted: object) -> wire.Frame:
        """The next frame of a kind; those before it are passed over."""
        while (received := self.next()) is not None:
            if isinstance(received, kind) and all(
                getattr(received, name) == value for name, value in wanted.items()
            ):
                return received
        raise AssertionError(f"there was no {kind.__name__}")

    def answer(self) -> tuple[str, bytes]:
        """Status and body of the next answer."""
        received = self.until(wire.HeadersFrame)
        assert isinstance(received, wire.HeadersFrame)
        status = dict(self.decoder.decode(received.data, raw=True))[b":status"].decode()
        body, stream_id = b"", received.stream_id
        while "END_STREAM" not in received.flags:
            received = self.until(wire.DataFrame, stream_id=stream_id)
            assert isinstance(received, wire.DataFrame)
            body += received.data
        return status, body

    def _read(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            piece = self.socket.recv(65_536)
            if not piece:
                return None
            self._buffer += piece
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


@contextmanager
def call(server: FrameServer) -> Generator[Client]:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        yield Client(sock)


@contextmanager
def running(*script: FrameStep) -> Generator[tuple[FrameServer, Client]]:
    """A server with one script, and a client that has begun."""
    with FrameServer(script) as server, call(server) as client:
        client.begin()
        yield server, client


# -- what it sees ----------------------------------------------------------------------------------


def test_requests_are_taken_apart() -> None:
    with running(greet(), serve()) as (server, client):
        client.send(client.request(1, "/a", ("x-tag", "one"), ("x-tag", "two"), end=False))
        client.send(wire.DataFrame(1, data=b"bo"), wire.DataFrame(1, data=b"dy"))
        trailers = client.encoder.encode([("x-sum", "1")])
        client.send(wire.HeadersFrame(1, data=trailers, flags=["END_HEADERS", "END_STREAM"]))
        assert client.answer() == ("200", b"/a")

        (stream,) = server.streams
        assert (stream.id, stream.method, stream.target, stream.complete) == (1, "GET", "/a", True)
        assert stream.headers == [("host", "a"), ("x-tag", "one"), ("x-tag", "two")]
        assert (bytes(stream.body), stream.frames) == (b"body", [2, 2])
        assert stream.trailers == [("x-sum", "1")]
        assert server.requests == [stream]


def test_a_head_may_come_in_several_frames() -> None:
    with running(greet(), serve()) as (server, client):
        whole = client.request(1, "/long")
        first = wire.HeadersFrame(1, data=whole.data[:3], flags=["END_STREAM"])
        client.send(first, wire.ContinuationFrame(1, data=whole.data[3:], flags=["END_HEADERS"]))

        assert client.answer() == ("200", b"/long")
        assert server.streams[0].complete


def test_what_a_client_says_of_the_connection_is_kept() -> None:
    with FrameServer([greet()]) as server, call(server) as client:
        client.begin(INITIAL_WINDOW_SIZE=1000)
        client.send(client.request(1))
        client.send(wire.WindowUpdateFrame(0, window_increment=10))
        client.send(wire.WindowUpdateFrame(0, window_increment=5))
        client.send(wire.WindowUpdateFrame(1, window_increment=7))
        client.send(wire.PingFrame(0, opaque_data=b"question"))
        client.send(wire.PingFrame(0, flags=["ACK"], opaque_data=b"trunklin"))
        client.send(wire.SettingsFrame(flags=["ACK"]))
        client.send(wire.RstStreamFrame(1, error_code=CANCEL))
        client.send(wire.GoAwayFrame(0, last_stream_id=0, error_code=3))
        server.wait(lambda: bool(server.sessions) and server.sessions[0].goaway is not None)

        (session,) = server.sessions
        assert session.settings == {4: 1000}
        assert (session.granted, session.streams[0].granted) == (15, 7)
        assert (session.pings, session.pongs) == ([b"question"], [b"trunklin"])
        assert (session.settings_acks, session.goaway) == (1, (0, 3))
        assert session.streams[0].reset == CANCEL


def test_the_first_reset_of_a_stream_counts() -> None:
    with running(greet()) as (server, client):
        client.send(client.request(1), wire.RstStreamFrame(1, error_code=CANCEL))
        client.send(wire.RstStreamFrame(1, error_code=5), wire.GoAwayFrame(0))
        server.wait(lambda: bool(server.sessions) and server.sessions[0].goaway is not None)

        assert server.streams[0].reset == CANCEL


def test_requests_that_were_processed_are_counted_by_their_ids() -> None:
    script = [greet(), serve(2), expect_request(), reset(REFUSED_STREAM), goaway(5), serve()]
    with running(*script) as (server, client):
        for stream_id, name in ((1, "a"), (3, "a"), (5, "b")):
            client.send(client.request(stream_id, "/", ("x-request-id", name)))
        client.until(wire.GoAwayFrame)
        client.send(client.request(7, "/", ("x-request-id", "c")))
        server.wait(lambda: len(server.streams) == 4)

        assert server.processed() == {"a": 2}


def test_tests_on_an_event_loop_wait_without_blocking_it() -> None:
    async def main() -> None:
        with running(greet()) as (server, client):
            turns = 0

            async def turn() -> None:
                nonlocal turns
                while True:
                    await anyio.lowlevel.checkpoint()
                    turns += 1

            async with anyio.create_task_group() as group:
                group.start_soon(turn)
                client.send(client.request(1))
                await server.until(lambda: len(server.streams) == 1)
                with pytest.raises(TimeoutError, match="1: GET"):
                    await server.until(lambda: False, 0.05)
                with anyio.move_on_after(0.01):
                    await server.until(lambda: False)
                group.cancel_scope.cancel()
            assert turns > 3

    anyio.run(main)


# -- what it forbids -------------------------------------------------------------------------------


def _breach(*frames: wire.Frame) -> str:
    with running(greet(max_concurrent_streams=2), expect_acks(), serve()) as (server, client):
        client.until(wire.SettingsFrame)
        client.send(wire.SettingsFrame(flags=["ACK"]), *frames)
        goodbye = client.until(wire.GoAwayFrame)
        assert isinstance(goodbye, wire.GoAwayFrame)
        assert [goodbye.additional_data.decode()] == server.violations
        return server.violations[0]


def _headers(stream_id: int, *pairs: tuple[str, str]) -> wire.HeadersFrame:
    start = [(":method", "GET"), (":scheme", "http"), (":path", "/")]
    block = hpack.Encoder().encode([*start, *pairs])
    return wire.HeadersFrame(stream_id, data=block, flags=["END_HEADERS"])


def test_what_http2_forbids_a_client_ends_the_connection() -> None:
    assert "cannot be opened" in _breach(_headers(2))
    assert "cannot be opened" in _breach(_headers(3), _headers(1))
    assert "streams at once" in _breach(_headers(1), _headers(3), _headers(5))
    assert "not there" in _breach(wire.DataFrame(1, data=b"early"))
    assert "not there" in _breach(wire.RstStreamFrame(1))
    assert "does not allow" in _breach(_headers(1, ("connection", "close")))
    assert "does not allow" in _breach(_headers(1, ("X-Upper", "1")))
    assert "does not allow" in _breach(_headers(1, ("x-a", "1\r\n")))
    assert "comes after" in _breach(_headers(1, ("x-a", "1"), (":authority", "a")))
    assert "twice" in _breach(_headers(1, (":path", "/")))
    assert "a frame of" in _breach(wire.PingFrame(0), wire.ContinuationFrame(1, bytes(16_385)))
    assert "nothing" in _breach(wire.ContinuationFrame(1))
    half = wire.HeadersFrame(1, data=b"\x82")
    assert "interrupted" in _breach(half, wire.PingFrame(0))
    push = wire.PushPromiseFrame(1, promised_stream_id=2)
    assert "push" in _breach(push)
    done = _headers(1)
    done.flags.add("END_STREAM")
    assert "after the end" in _breach(done, wire.DataFrame(1, data=b"more"))


def test_data_beyond_a_window_ends_the_connection() -> None:
    whole = [wire.DataFrame(1, data=bytes(16_384)) for _ in range(4)]
    with running(greet(replies=("settings",))) as (server, client):
        client.send(_headers(1), *whole)
        client.until(wire.GoAwayFrame)

        assert server.violations == ["DATA beyond the window"]


def test_a_client_is_held_to_settings_once_it_has_acknowledged_them() -> None:
    script = [greet(replies=()), expect_head(), announce(initial_window_size=10)]
    with running(*script) as (server, client):
        client.send(_headers(1), wire.DataFrame(1, data=bytes(20)))
        client.send(wire.SettingsFrame(flags=["ACK"]))  # of the first
        client.until(wire.SettingsFrame)
        client.until(wire.SettingsFrame, settings={4: 10})
        client.send(wire.DataFrame(1, data=bytes(20)))  # it may not have seen them yet
        client.send(wire.SettingsFrame(flags=["ACK"]), wire.DataFrame(1), wire.PingFrame(0))
        server.wait(lambda: bool(server.sessions) and len(server.sessions[0].pings) == 1)
        assert server.violations == []

        client.send(wire.DataFrame(1, data=b"x"))
        client.until(wire.GoAwayFrame)
        assert server.violations == ["DATA beyond the window"]


def test_what_is_no_preface_ends_the_connection() -> None:
    with FrameServer([greet()]) as server, call(server) as client:
        client.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.until(wire.GoAwayFrame)

        assert "preface" in server.violations[0]


# -- what it does ----------------------------------------------------------------------------------


def test_each_connection_has_its_script_and_the_last_is_for_the_rest() -> None:
    with FrameServer([send(b"1")], [send(b"2")]) as server:
        for expected in (b"1", b"2", b"2"):
            with call(server) as client:
                assert client.socket.recv(9) == expected


def test_it_serves_tls_by_alpn() -> None:
    with (
        Certificates() as made,
        FrameServer([greet(), serve()], tls=made.server_context(alpn=("h2",))) as server,
        socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain,
    ):
        context: ssl.SSLContext = made.client_context(alpn=("h2", "http/1.1"))
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            client = Client(sock)
            client.begin()
            client.send(client.request(1, "/tls"))

            assert client.answer() == ("200", b"/tls")
            assert (sock.selected_alpn_protocol(), server.url[:8]) == ("h2", "https://")


def test_settings_pings_and_data_are_answered_by_themselves() -> None:
    with running(greet(), serve()) as (_, client):
        client.send(wire.PingFrame(0, opaque_data=b"question"), client.request(1, end=False))
        client.send(wire.DataFrame(1, data=b"four"))
        assert client.until(wire.SettingsFrame, flags=wire.SettingsFrame(flags=["ACK"]).flags)
        client.until(wire.PingFrame, opaque_data=b"question")
        client.until(wire.WindowUpdateFrame, stream_id=0, window_increment=4)
        client.until(wire.WindowUpdateFrame, stream_id=1, window_increment=4)


def test_nothing_is_answered_that_a_script_does_not_want_answered() -> None:
    script = [greet(replies=()), expect_request(), window(9), window(8, 0), answer(b"")]
    with running(*script) as (_, client):
        client.send(wire.PingFrame(0, opaque_data=b"question"), client.request(1, end=False))
        client.send(wire.DataFrame(1, data=b"four", flags=["END_STREAM"]))
        kinds: list[tuple[int | None, int]] = []
        while (received := client.next()) is not None and received.type != 1:
            kinds.append((received.type, received.stream_id))

        assert kinds == [(4, 0), (8, 0), (8, 1)]


def test_streams_are_told_apart_by_the_order_in_which_they_were_taken_on() -> None:
    script = [
        *(greet(), expect_request("/b"), expect_request("/a")),
        *(head(200, nth=0), head(404, nth=1), data(b"of b", nth=0), reset(CANCEL, nth=1)),
        *(data_frame(b"", end=True, nth=0),),
    ]
    with running(*script) as (_, client):
        client.send(client.request(1, "/a"), client.request(3, "/b"))
        seen = [client.until(kind) for kind in (wire.HeadersFrame, wire.HeadersFrame)]

        assert [each.stream_id for each in seen] == [3, 1]
        assert client.until(wire.DataFrame).stream_id == 3
        assert client.until(wire.RstStreamFrame, error_code=CANCEL).stream_id == 1


def test_bodies_keep_to_the_clients_windows() -> None:
    with FrameServer([greet(), serve(big=[answer(bytes(100))])]) as server, call(server) as client:
        client.begin(INITIAL_WINDOW_SIZE=60)
        client.send(client.request(1, "/big"))
        first = client.until(wire.DataFrame)
        assert isinstance(first, wire.DataFrame)
        assert len(first.data) == 60

        client.send(wire.WindowUpdateFrame(1, window_increment=1000))
        second = client.until(wire.DataFrame)
        assert isinstance(second, wire.DataFrame)
        assert (len(second.data), "END_STREAM" in second.flags) == (40, True)


def test_the_rest_of_a_body_is_left_out_when_the_client_resets_the_stream() -> None:
    script = [greet(), expect_request(), head(200), data(bytes(100)), expect_reset(), serve()]
    with FrameServer(script) as server, call(server) as client:
        client.begin(INITIAL_WINDOW_SIZE=0)
        client.send(client.request(1, "/big"))
        client.until(wire.HeadersFrame)
        client.send(wire.RstStreamFrame(1, error_code=CANCEL), client.request(3, "/next"))

        assert client.until(wire.HeadersFrame).stream_id == 3


def test_a_long_head_is_sent_in_several_frames() -> None:
    with running(greet(), expect_request(), head(200, ("x-long", "v" * 20_000))) as (_, client):
        client.send(client.request(1))
        first, second = client.until(wire.HeadersFrame), client.next()
        assert isinstance(first, wire.HeadersFrame)
        assert isinstance(second, wire.ContinuationFrame)
        assert "END_HEADERS" not in first.flags
        assert "END_HEADERS" in second.flags
        decoded = dict(client.decoder.decode(first.data + second.data, raw=True))
        assert decoded[b"x-long"] == b"v" * 20_000


def test_heads_need_not_be_valid() -> None:
    script = [greet(), expect_request(), fields(("X-Upper", "a\r\nb"), (":status", "abc"))]
    with running(*script) as (_, client):
        client.send(client.request(1))
        received = client.until(wire.HeadersFrame)
        assert isinstance(received, wire.HeadersFrame)
        decoded = list(client.decoder.decode(received.data, raw=True))
        assert decoded == [(b"X-Upper", b"a\r\nb"), (b":status", b"abc")]


def test_a_head_to_which_there_is_no_body_ends_the_stream() -> None:
    with running(greet(), serve()) as (_, client):
        pairs = [(":method", "HEAD"), (":scheme", "http"), (":path", "/")]
        block = client.encoder.encode(pairs)
        client.send(wire.HeadersFrame(1, data=block, flags=["END_HEADERS", "END_STREAM"]))
        assert "END_STREAM" in client.until(wire.HeadersFrame).flags


def test_frames_can_be_made_of_anything() -> None:
    assert frame(0x77, b"ab", 0xFF, 2**31 + 1) == b"\0\0\2\x77\xff\x80\0\0\1ab"
    assert wire.Frame.parse_frame_header(memoryview(ping()[:9]))[0].type == 6


def test_a_gate_holds_the_script_until_the_test_opens_it_and_frames_are_read_meanwhile() -> None:
    with running(greet(), wait("go"), send(frame(0x77))) as (server, client):
        client.send(wire.PingFrame(0, opaque_data=b"question"))
        client.until(wire.PingFrame, opaque_data=b"question")
        server.open("go")
        assert client.until(wire.ExtensionFrame).type == 0x77


def test_release_ends_every_pause() -> None:
    with running(greet(), pause(60), send(frame(0x77))) as (server, client):
        client.until(wire.SettingsFrame)
        server.release()
        assert client.until(wire.ExtensionFrame).type == 0x77


def test_a_script_that_waits_for_what_never_comes_ends_with_its_client() -> None:
    with running(greet(), expect_head(), expect_rest()) as (server, client):
        client.send(client.request(1, end=False))
        server.wait(lambda: len(server.streams) == 1)
        client.socket.shutdown(socket.SHUT_WR)
        server.wait(lambda: server.open_connections == 0)


def test_drips_repetitions_and_floods_go_on_beside_other_requests() -> None:
    script = [greet(), expect_request(), head(200), drip(b"ab", 0.0), repeat(0.001, data(b"c"))]
    with running(*script) as (_, client):
        client.send(client.request(1))
        pieces = [client.until(wire.DataFrame) for _ in range(4)]
        assert [getattr(each, "data", b"") for each in pieces] == [b"a", b"b", b"c", b"c"]

        client.send(client.request(3, "/other"))
        assert client.until(wire.DataFrame, stream_id=3, data=b"/other")
        client.send(wire.RstStreamFrame(1, error_code=CANCEL), client.request(5, "/last"))
        assert client.until(wire.DataFrame, stream_id=5, data=b"/last")


def test_a_flood_is_as_long_as_it_should_be() -> None:
    with running(greet(), flood(ping(), 10_000), raw(fin())) as (_, client):
        count = 0
        while (received := client.next()) is not None:
            count += received.type == 6

        assert count == 10_000


def test_a_flood_without_end_ends_with_its_client() -> None:
    with FrameServer([greet(), flood(ping(), unread=True)]) as server:
        with call(server) as client:
            client.begin()
            client.until(wire.PingFrame)
        server.wait(lambda: server.open_connections == 0)


def test_a_script_that_fails_fails_the_test() -> None:
    def broken(session: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), FrameServer([broken]) as server, call(server):
        server.wait(lambda: bool(server.failures))


def test_stopping_ends_scripts_that_wait_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with running(greet(), expect_request()), running(greet(), wait("never")):
        assert threading.active_count() > before
    assert threading.active_count() == before
