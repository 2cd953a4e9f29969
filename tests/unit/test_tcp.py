"""What the kernel proves about a request, clause by clause, on real sockets.

Each case is a peer that ends a connection under a request, having read it or not. One that has read
it must never be said not to have.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from trunkline import tcp
from trunkline.tcp import Delivery, limit_unsent, watched

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is proved")

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n"
BODY = b"x" * 20
WHOLE = HEAD + BODY


@dataclass
class Pair:
    """A client's connection that has carried some exchanges, and the server's end of it."""

    client: socket.socket
    server: socket.socket
    delivery: Delivery = field(init=False)

    def __post_init__(self) -> None:
        self.delivery = watched(self.client)

    def exchange(self, *, counted: int = len(WHOLE)) -> None:
        self.delivery.begin()
        self.client.sendall(WHOLE)
        self.read_request()
        self.server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.client.recv(65536)
        self.delivery.end(counted)

    def send(self, *, apart: bool = False) -> None:
        """Write a request as a backend does."""
        self.delivery.begin()
        try:
            if apart:
                self.client.sendall(HEAD)
                self.delivery.head_sent()
            self.client.sendall(BODY if apart else WHOLE)
        except OSError:
            """The connection has ended before."""

    def read_request(self) -> None:
        left = len(WHOLE)
        while left:
            left -= len(self.server.recv(left))

    def reset(self) -> None:
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.close()

    def await_end(self) -> None:
        """Wait until the client's kernel has heard of the end of the connection."""
        poll = select.poll()
        poll.register(self.client, select.POLLRDHUP)
        assert poll.poll(5000), "no end came"

    def await_reset(self) -> None:
        poll = select.poll()
        poll.register(self.client, 0)  # POLLERR and POLLHUP are always told
        assert poll.poll(5000), "no reset came"


@pytest.fixture(params=[20, 40], ids=["young", "in steady use"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made = Pair(client, server)
        # A young connection acknowledges at once what later waits for an answer to go with. One in
        # steady use is not asked what it has acknowledged before each request.
        for _ in range(request.param):
            made.exchange()
        yield made
        made.delivery.end(0)


either_way = pytest.mark.parametrize("apart", [False, True], ids=["one segment", "two segments"])


# --- proved


@linux
@either_way
def test_a_peer_that_had_closed_took_nothing(pair: Pair, apart: bool) -> None:
    pair.server.close()
    pair.await_end()
    pair.send(apart=apart)
    pair.await_reset()

    assert pair.delivery.is_untaken(has_fin=True)


@linux
def test_a_fin_that_has_seen_no_byte_proves_it_while_the_connection_is_half_open(
    pair: Pair,
) -> None:
    pair.delivery.begin()
    pair.server.shutdown(socket.SHUT_WR)
    pair.await_end()

    assert pair.delivery.is_untaken(has_fin=False)


@linux
def test_what_our_kernel_never_sent_was_not_taken(pair: Pair) -> None:
    pair.reset()
    pair.await_reset()
    pair.send()

    assert pair.delivery.is_untaken(has_fin=False)


@linux
def test_two_segments_that_lay_unread_when_the_peer_reset_were_not_taken(pair: Pair) -> None:
    pair.send(apart=True)
    pair.reset()
    pair.await_reset()

    assert pair.delivery.is_untaken(has_fin=False)


@linux
def test_the_proof_holds_where_the_owner_has_closed_the_socket(pair: Pair) -> None:
    early = watched(pair.client, is_closed_early=True)
    pair.reset()
    pair.await_reset()
    early.begin()
    pair.client.close()

    assert early.is_untaken(has_fin=False)
    early.end(0)


# --- not proved


@linux
def test_one_segment_that_was_reset_may_have_been_read(pair: Pair) -> None:
    """Its acknowledgement may have waited for an answer to go with."""
    pair.send()
    pair.reset()
    pair.await_reset()

    assert not pair.delivery.is_untaken(has_fin=False)


@linux
@either_way
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_a_peer_that_has_read_it_is_never_said_not_to_have(
    pair: Pair, end: str, apart: bool
) -> None:
    pair.send(apart=apart)
    pair.read_request()
    if end == "rst":
        pair.reset()
        pair.await_reset()
    else:
        pair.server.close()
        pair.await_end()

    assert not pair.delivery.is_untaken(has_fin=end == "fin")


@linux
def test_a_head_that_the_kernel_held_back_is_no_segment(pair: Pair) -> None:
    pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    pair.send(apart=True)
    pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    pair.reset()
    pair.await_reset()

    assert not pair.delivery.is_untaken(has_fin=False)


@linux
def test_what_was_sent_and_not_counted_proves_nothing(pair: Pair) -> None:
    for _ in range(40):
        pair.exchange(counted=len(HEAD))
    pair.server.close()
    pair.await_end()
    pair.send()
    pair.await_reset()

    assert not pair.delivery.is_untaken(has_fin=True)


@linux
def test_under_tls_the_kernel_is_asked_before_each_request(pair: Pair) -> None:
    """It counts what TLS adds."""
    pair.delivery.is_under_tls = True
    for _ in range(40):
        pair.exchange(counted=0)
    pair.server.close()
    pair.await_end()
    pair.send()
    pair.await_reset()

    assert pair.delivery.is_untaken(has_fin=True)


@linux
def test_of_a_connection_that_is_open_nothing_is_proved(pair: Pair) -> None:
    pair.delivery.begin()

    assert not pair.delivery.is_untaken(has_fin=False)


@linux
def test_the_proof_is_of_one_request(pair: Pair) -> None:
    pair.delivery.begin()
    pair.delivery.end(0)
    pair.delivery.end(0)
    pair.reset()
    pair.await_reset()

    assert not pair.delivery.is_untaken(has_fin=False)


@linux
def test_of_a_closed_socket_nothing_is_proved(pair: Pair) -> None:
    pair.reset()
    pair.await_reset()
    pair.delivery.begin()
    pair.client.close()
    assert not pair.delivery.is_untaken(has_fin=True)

    assert not pair.delivery.begin()
    pair.delivery.head_sent()
    assert not pair.delivery.is_untaken(has_fin=True)


@linux
def test_of_a_socket_that_cannot_be_duplicated_nothing_is_proved(pair: Pair) -> None:
    early = watched(pair.client, is_closed_early=True)
    pair.reset()
    pair.await_reset()
    pair.client.close()

    assert not early.begin()
    assert not early.is_untaken(has_fin=True)


class Mute:
    """A socket of a kernel that tells less than it should."""

    family = socket.AF_INET

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        return bytes(size - 1)

    def dup(self) -> socket.socket:
        raise OSError


@linux
def test_of_a_kernel_that_does_not_count_nothing_is_proved() -> None:
    delivery = watched(Mute())

    assert not delivery.begin()
    assert not delivery.is_untaken(has_fin=True)


def test_of_a_unix_socket_nothing_is_proved() -> None:
    client, server = socket.socketpair()
    with client, server:
        delivery = watched(client)
        assert not delivery.begin()
        server.close()

        assert not delivery.is_untaken(has_fin=True)


def test_on_another_system_nothing_is_proved(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    delivery = watched(pair.client)
    pair.server.close()

    assert not delivery.begin()
    delivery.head_sent()
    assert not delivery.is_untaken(has_fin=True)
    delivery.end(0)


# --- when a body goes apart


@linux
def test_a_body_goes_apart_while_a_connection_is_young_or_has_rested(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(tcp, "monotonic", lambda: now)
    delivery = watched(pair.client)

    def is_apart(rest: float) -> bool:
        nonlocal now
        now += rest
        answer = delivery.begin()
        delivery.end(0)
        return answer

    assert [is_apart(0.0) for _ in range(33)] == [True] * 32 + [False]
    assert not is_apart(0.9)
    assert is_apart(1.0)
    assert not is_apart(0.0)


# --- what the kernel holds


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has no such limit")
def test_the_kernel_holds_little_that_it_has_not_sent(pair: Pair) -> None:
    limit_unsent(pair.client)

    assert pair.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 131072


def test_a_unix_socket_has_no_such_limit() -> None:
    client, server = socket.socketpair()
    with client, server:
        limit_unsent(client)
