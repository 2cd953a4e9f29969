"""The server that the conformance suite stands on, met with plain sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.testing._certificates import Certificates
from trunkline.testing._conversation import Conversation
from trunkline.testing._script import (
    answer,
    await_bytes,
    chunked,
    close,
    drip,
    expect_head,
    expect_request,
    expect_rest,
    fin,
    flood,
    hold,
    mark,
    pause,
    repeat,
    response,
    rst,
    send,
    send_beneath,
    serve,
    small_buffers,
    start_tls,
    tunnel,
    wait,
)
from trunkline.testing._servers import THREAD_NAME, ScriptedServer

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENCE = 10.0


def call(server: ScriptedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def until(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


def test_requests_are_taken_apart() -> None:
    with ScriptedServer([expect_request(), expect_request()]) as server, call(server) as client:
        client.sendall(
            b"POST /a%2C HTTP/1.1\r\nX-One: 1\r\nx-one:  2 \r\nContent-Length: 4\r\n\r\nbody"
        )
        client.sendall(
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"a", b"bc")
        )
        until(lambda: len(server.requests) == 2 and server.requests[1].complete)

        first, second = server.requests
        assert (first.method, first.target, first.version) == ("POST", "/a%2C", "HTTP/1.1")
        assert first.headers == [("X-One", "1"), ("x-one", "2"), ("Content-Length", "4")]
        assert (first.header("X-ONE"), first.all("x-one")) == ("1", ["1", "2"])
        assert bytes(first.body) == b"body"
        assert (bytes(second.body), second.chunks) == (b"abc", [b"a", b"bc"])


def test_each_connection_has_its_script_and_the_last_is_for_the_rest() -> None:
    with ScriptedServer([send(b"1")], [send(b"2")]) as server:
        for expected in (b"1", b"2", b"2"):
            with call(server) as client:
                assert client.recv(9) == expected

        assert server.connections == 3


def test_serve_answers_one_request_after_the_other() -> None:
    script = serve(response(200, b"one"), lambda request: response(200, request.target.encode()))
    with ScriptedServer(script) as server, call(server) as client:
        for expected in (b"one", b"/", b"/"):
            client.sendall(GET)
            until(lambda: client.recv(9999).endswith(expected))  # noqa: B023  # called at once


def test_a_gate_holds_the_script_until_the_test_opens_it() -> None:
    with (
        ScriptedServer([mark("here"), wait("go"), send(b"gone")]) as server,
        call(server) as client,
    ):
        until(lambda: server.connections == 1 and "here" in server.conversations[0].marks)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(9)

        server.open("go")
        client.settimeout(PATIENCE)
        assert client.recv(9) == b"gone"


def test_release_opens_every_gate_and_ends_every_pause() -> None:
    with (
        ScriptedServer([pause(60), wait("one"), wait("two"), drip(b"bytes", 60)]) as server,
        call(server) as client,
    ):
        until(lambda: server.connections == 1)
        server.release()

        assert client.recv(1) == b"b"


def test_fin_ends_one_direction_only() -> None:
    with ScriptedServer([fin(), expect_request(), mark("got")]) as server, call(server) as client:
        assert client.recv(9) == b""
        client.sendall(GET)

        until(lambda: "got" in server.conversations[0].marks)


@pytest.mark.parametrize("ending", [rst(), close()], ids=["rst", "close"])
def test_rst_and_close_end_both(ending: Callable[..., None]) -> None:
    with ScriptedServer([expect_head(), ending]) as server, call(server) as client:
        client.sendall(GET + b"unread")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(9) == b""
        until(lambda: server.open_connections == 0)

        with pytest.raises(ConnectionError):  # noqa: PT012  # the answer takes a moment
            for _ in range(1000):
                client.sendall(b"more")
                time.sleep(0.002)


def test_hold_sees_the_client_go_although_it_reads_nothing() -> None:
    with ScriptedServer([hold()]) as server, call(server) as client:
        client.sendall(b"unread")
        until(lambda: server.connections == 1)
        client.close()

        until(lambda: server.conversations[0].client_closed)


def test_a_client_that_goes_ends_the_script_quietly() -> None:
    with ScriptedServer([expect_request(), mark("never")]) as server:
        with call(server) as client:
            client.sendall(GET[:9])
        until(lambda: server.open_connections == 0 and server.connections == 1)

        assert server.conversations[0].client_closed
        assert not server.conversations[0].marks


def test_flood_stops_when_the_client_does_not_read() -> None:
    with ScriptedServer([small_buffers(), flood(bytes(65536))]) as server, call(server):
        until(lambda: server.sent > 0)
        before = -1
        while before != (before := server.sent):
            time.sleep(0.1)

        assert server.sent < 64 * 1024 * 1024


def test_a_body_may_be_left_and_read_later() -> None:
    script = [expect_head(), send(b"early"), wait("go"), expect_rest()]
    with ScriptedServer(script) as server, call(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody")
        assert client.recv(9) == b"early"
        assert server.requests[0].body == b""

        server.open("go")
        until(lambda: bytes(server.requests[0].body) == b"body")


def test_tls_and_its_failures_are_recorded() -> None:
    with Certificates() as certificates:
        context = certificates.server_context(alpn=("http/1.1",))
        with ScriptedServer([answer()], tls=context) as server:
            ours = certificates.client_context()
            with call(server) as plain:
                client = ours.wrap_socket(plain, server_hostname="localhost")
                with client:
                    client.sendall(GET)
                    assert client.recv(99).startswith(b"HTTP/1.1 200")
            with call(server) as plain, pytest.raises(ssl.SSLCertVerificationError):
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
            until(lambda: server.open_connections == 0)

            good, bad = server.conversations
            assert (good.alpn, good.handshake_error) == ("http/1.1", None)
            assert isinstance(bad.handshake_error, ssl.SSLError)


def test_bytes_can_be_awaited_and_left_unread() -> None:
    with ScriptedServer([await_bytes(), mark("there"), rst()]) as server, call(server) as client:
        client.sendall(GET)

        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert "there" in server.conversations[0].marks
        assert server.received == b""


def test_bytes_can_be_sent_past_tls() -> None:
    with Certificates() as certificates:
        script = [start_tls(certificates.server_context()), send(b"page"), send_beneath(bytes(64))]
        with ScriptedServer(script) as server, call(server) as plain:
            context = certificates.client_context()
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                assert client.recv(4) == b"page"
                with pytest.raises(ssl.SSLError):
                    client.recv(1)


def test_a_unix_socket_can_be_listened_on(tmp_path: Path) -> None:
    path = tmp_path / "server"
    with ScriptedServer([answer()], uds=path) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(GET)
            assert client.recv(99).startswith(b"HTTP/1.1 200")

        assert server.url == "http://localhost"


def test_a_tunnel_passes_bytes_both_ways() -> None:
    origin = ScriptedServer([answer(response(200, b"origin")), fin()])
    with origin, ScriptedServer([tunnel("user:password")]) as proxy, call(proxy) as client:
        login = b"Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==\r\n"
        client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n%b\r\n" % (origin.port, login))
        assert client.recv(99).startswith(b"HTTP/1.1 200")

        client.sendall(GET)
        assert read_to_end(client).endswith(b"origin")


def test_a_tunnel_asks_for_credentials() -> None:
    with ScriptedServer([tunnel("user:password")]) as proxy, call(proxy) as client:
        client.sendall(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n")

        assert client.recv(99).startswith(b"HTTP/1.1 407")


def test_a_script_that_is_wrong_fails_the_test() -> None:
    def step(conversation: Conversation) -> None:
        raise LookupError("the script's own")

    def serve_once() -> None:
        with ScriptedServer([step]) as server, call(server):
            until(lambda: bool(server.failures))

    with pytest.raises(LookupError, match="own"):
        serve_once()


def test_steps_can_be_repeated() -> None:
    with ScriptedServer([repeat(3, [send(b"x")]), fin()]) as server, call(server) as client:
        assert read_to_end(client) == b"xxx"


def test_nothing_is_left_after_the_end() -> None:
    with ScriptedServer([hold()], [wait("never")], [pause(60)], [flood(b"x" * 65536)]) as server:
        clients = [call(server) for _ in range(4)]
        until(lambda: server.connections == 4)
    for client in clients:
        client.close()

    assert server.open_connections == 0
    assert not [each for each in threading.enumerate() if each.name == THREAD_NAME]
    with pytest.raises(ConnectionRefusedError):
        call(server)
