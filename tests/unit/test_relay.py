"""The relay of `trunkline compare`, over real sockets: order, integrity, delay, FIN and RST."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from trunkline.cli._relay import Relay

PATIENCE = 10.0
"""Seconds before a test that waits for something that never comes gives up."""


@pytest.fixture(autouse=True)
def nothing_goes_wrong_inside(caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """What a callback of the relay raises, asyncio only logs."""
    yield
    logged = caplog.get_records("call")
    assert [record.message for record in logged if record.name == "asyncio"] == []


FILES = Path("/proc/self/fd")


class Link:
    """Both ends of one connection that runs through a relay."""

    def __init__(self, relay: Relay, listener: socket.socket) -> None:
        self.opened_at = time.monotonic()
        self.client = socket.create_connection(("127.0.0.1", relay.port), PATIENCE)
        self.server = listener.accept()[0]
        for end in (self.client, self.server):
            end.settimeout(PATIENCE)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def settle(self) -> None:
        """One exchange, so that the handshake is over and nothing is under way."""
        self.client.sendall(b"?")
        assert self.server.recv(1) == b"?"
        self.server.sendall(b"!")
        assert self.client.recv(1) == b"!"

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextmanager
def listening() -> Generator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@contextmanager
def relayed(rtt: float) -> Generator[tuple[Relay, Link]]:
    with listening() as listener, Relay("127.0.0.1", port_of(listener), rtt=rtt) as relay:
        link = Link(relay, listener)
        try:
            yield relay, link
        finally:
            link.close()


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def read_exactly(sock: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size and (chunk := sock.recv(size - len(received))):
        received += chunk
    return bytes(received)


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def send_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def send_until_refused(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"x" * 65536)


def pattern(size: int) -> bytes:
    """Bytes whose order shows: each group of four is its own index."""
    return b"".join(struct.pack(">I", index) for index in range(size // 4 + 1))[:size]


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(data):
            return
        yield data[start : start + size]
        start += size


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 300_000),
    sizes=st.lists(st.integers(1000, 70_000), min_size=1, max_size=8),
    rtt=st.sampled_from([0.0, 0.001, 0.01]),
)
def test_bytes_arrive_whole_and_in_order_however_they_are_cut(
    size: int, sizes: list[int], rtt: float
) -> None:
    data = pattern(size)
    with relayed(rtt) as (_, link):

        def answer() -> None:
            for chunk in cut(data[::-1], sizes[::-1]):
                link.server.sendall(chunk)

        answering = threading.Thread(target=answer)
        answering.start()
        for chunk in cut(data, sizes):
            link.client.sendall(chunk)
        assert read_exactly(link.server, size) == data
        assert read_exactly(link.client, size) == data[::-1]
        answering.join()


def test_the_first_exchange_pays_for_the_handshake() -> None:
    with relayed(rtt=0.05) as (_, link):
        link.settle()
        assert time.monotonic() - link.opened_at >= 0.1


def test_what_a_client_says_at_once_is_heard_after_the_handshake_and_half_a_round_trip() -> None:
    with relayed(rtt=0.05) as (_, link):
        link.client.sendall(b"hello")
        assert link.server.recv(100) == b"hello"
        assert time.monotonic() - link.opened_at >= 0.075


def test_a_connection_that_was_idle_since_its_handshake_pays_it_only_once() -> None:
    rtt = 0.4
    with relayed(rtt) as (_, link):
        link.settle()
        start = time.monotonic()
        link.settle()
        elapsed = time.monotonic() - start
        assert rtt <= elapsed
        assert elapsed < 2 * rtt


@pytest.mark.parametrize("speaker", ["client", "server"])
def test_each_way_takes_half_a_round_trip(speaker: str) -> None:
    with relayed(rtt=0.06) as (_, link):
        link.settle()
        talks, hears = (
            (link.client, link.server) if speaker == "client" else (link.server, link.client)
        )
        start = time.monotonic()
        talks.sendall(b"x")
        assert hears.recv(1) == b"x"
        assert time.monotonic() - start >= 0.03


def test_a_server_that_speaks_first_is_heard_after_two_round_trips() -> None:
    with relayed(rtt=0.05) as (_, link):
        link.server.sendall(b"220 hello")
        assert link.client.recv(100) == b"220 hello"
        assert time.monotonic() - link.opened_at >= 0.1


def test_many_chunks_are_under_way_at_once() -> None:
    rtt, chunks = 0.3, 50
    with relayed(rtt) as (_, link):
        link.settle()
        start = time.monotonic()
        for _ in range(chunks):
            link.client.sendall(b"x" * 100)
            time.sleep(0.001)  # so that they are chunks to the relay as well
        assert len(read_exactly(link.server, chunks * 100)) == chunks * 100
        assert time.monotonic() - start < chunks * rtt / 2 / 4


def test_a_half_close_passes_and_the_answer_still_comes_back() -> None:
    with relayed(rtt=0.02) as (_, link):
        link.client.sendall(b"question")
        link.client.shutdown(socket.SHUT_WR)
        assert read_to_end(link.server) == b"question"
        link.server.sendall(b"answer")
        link.server.close()
        assert read_to_end(link.client) == b"answer"


def test_the_end_of_a_stream_takes_half_a_round_trip() -> None:
    with relayed(rtt=0.06) as (_, link):
        link.settle()
        start = time.monotonic()
        link.server.close()
        assert link.client.recv(1) == b""
        assert time.monotonic() - start >= 0.03


@pytest.mark.parametrize("culprit", ["client", "server"])
def test_a_reset_arrives_as_a_reset_half_a_round_trip_later(culprit: str) -> None:
    with relayed(rtt=0.06) as (_, link):
        link.settle()
        resets, hears = (
            (link.client, link.server) if culprit == "client" else (link.server, link.client)
        )
        start = time.monotonic()
        send_reset(resets)
        with pytest.raises(ConnectionResetError):
            hears.recv(1)
        assert time.monotonic() - start >= 0.03


def test_a_reset_after_a_half_close_still_arrives() -> None:
    with relayed(rtt=0.02) as (_, link):
        link.settle()
        link.client.shutdown(socket.SHUT_WR)
        assert link.server.recv(1) == b""
        link.client.close()  # what the server sends from here on is answered with RST
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_refused(link.server)


def end_by_closing(first: socket.socket, second: socket.socket) -> None:
    first.close()
    assert second.recv(1) == b""
    second.close()


def end_by_reset(first: socket.socket, second: socket.socket) -> None:
    send_reset(first)
    with pytest.raises(ConnectionResetError):
        second.recv(1)
    second.close()


def end_by_answering_the_gone(first: socket.socket, second: socket.socket) -> None:
    first.close()
    assert second.recv(1) == b""
    second.sendall(b"this is answered with RST")
    second.close()


@pytest.mark.skipif(not FILES.is_dir(), reason="needs a list of the open files")
@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize(
    "end", [end_by_closing, end_by_reset, end_by_answering_the_gone], ids=lambda end: end.__name__
)
def test_however_a_connection_ends_no_socket_is_left(
    end: Callable[[socket.socket, socket.socket], None], first: str
) -> None:
    with listening() as listener, Relay("127.0.0.1", port_of(listener), rtt=0.02) as relay:
        before = len(list(FILES.iterdir()))
        link = Link(relay, listener)
        link.settle()
        ends = (link.client, link.server) if first == "client" else (link.server, link.client)
        end(*ends)
        deadline = time.monotonic() + PATIENCE
        while len(list(FILES.iterdir())) > before and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(list(FILES.iterdir())) == before


def test_a_client_gone_before_its_target_was_dialled_leaves_no_connection_behind() -> None:
    with listening() as listener, Relay("127.0.0.1", port_of(listener), rtt=0.02) as relay:
        send_reset(socket.create_connection(("127.0.0.1", relay.port), PATIENCE))
        server = listener.accept()[0]
        server.settimeout(PATIENCE)
        with server, pytest.raises(ConnectionResetError):
            server.recv(1)


def test_a_refusing_target_is_a_reset_one_round_trip_after_connecting() -> None:
    with listening() as listener:
        port = port_of(listener)
    with Relay("127.0.0.1", port, rtt=0.05) as relay:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", relay.port), PATIENCE) as client:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert time.monotonic() - start >= 0.05


def test_a_sender_nobody_reads_is_held_back_and_nothing_is_lost() -> None:
    too_much = 64 * 1024 * 1024
    block = pattern(1024 * 1024)
    with relayed(rtt=0.01) as (_, link):
        link.settle()
        link.client.settimeout(0.3)
        sent = 0
        with suppress(TimeoutError):
            while sent < too_much:
                sent += link.client.send(block[sent % len(block) :])
        assert sent < too_much
        link.client.shutdown(socket.SHUT_WR)
        received = 0
        while chunk := link.server.recv(len(block) - received % len(block)):
            start = received % len(block)
            assert chunk == block[start : start + len(chunk)]
            received += len(chunk)
        assert received == sent


def test_connections_are_counted_since_the_last_reset() -> None:
    with listening() as listener, Relay("127.0.0.1", port_of(listener), rtt=0.0) as relay:
        for expected in (1, 2):
            Link(relay, listener).close()
            assert relay.connections == expected
        relay.reset()
        Link(relay, listener).close()
        assert relay.connections == 1


def test_closing_the_relay_resets_what_is_still_connected() -> None:
    with listening() as listener:
        with Relay("127.0.0.1", port_of(listener), rtt=0.01) as relay:
            link = Link(relay, listener)
            link.settle()
        for end in (link.client, link.server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        link.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", relay.port), PATIENCE)


@pytest.mark.parametrize("rtt", [-0.001, float("inf"), float("nan")])
def test_an_impossible_round_trip_is_refused(rtt: float) -> None:
    with pytest.raises(ValueError, match="rtt"):
        Relay("127.0.0.1", 1, rtt=rtt)
