"""What the kernel knows of a request's delivery: the proof that the peer has not taken it.

This module knows Linux's `TCP_INFO` and what a server's kernel acknowledges when. It does not know
HTTP. Elsewhere, and on a Unix socket, nothing is ever proved.
`docs/decisions/0010-proved-replay.md` has the reasoning and the measurements.
"""

from __future__ import annotations

import socket
import struct
import sys
from time import monotonic
from typing import Protocol

_MOST_UNSENT = 131072  # bytes
_WARY_EXCHANGES = 32
_WARY_SECONDS = 1.0
# state, bytes_acked, bytes_sent and bytes_retrans of struct tcp_info in linux/tcp.h (Linux 4.19)
_INFO = struct.Struct("=B119xQ72xQQ")
_CLOSED, _CLOSE_WAIT = 7, 8  # of the states in linux/tcp_states.h


class Socket(Protocol):
    """What is needed of a socket; asyncio's `TransportSocket` has it too."""

    @property
    def family(self) -> int: ...

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...

    def dup(self) -> socket.socket: ...


class Delivery:
    """Whether the peer's kernel took any byte of the request under way, on one connection.

    To know it, the kernel is asked before a request is written. On a connection that is in steady
    use it need not be: its counts have moved by the bytes that were sent since, all of which have
    been acknowledged if the connection was fit to be used again. Where they have not, or not all
    were counted, the sum is not what the kernel says after the failure, and nothing is proved.

    Args:
        sock: the connected socket, or None where nothing can be known.
        is_closed_early: TLS on it closes it before it tells of the end: keep a duplicate of it
            while a request awaits its answer.

    Attributes:
        is_under_tls: the bytes that are sent are not those that the kernel counts.
    """

    __slots__ = ("_before", "_is_apart", "_is_awaited", "_is_closed_early", "_rested_at", "_reuses",
                 "_sent", "_socket", "_twin", "is_under_tls")  # fmt: skip

    def __init__(self, sock: Socket | None, *, is_closed_early: bool = False) -> None:
        self._socket = sock
        self._is_closed_early = is_closed_early
        self._twin: socket.socket | None = None
        self._before = b""
        self._sent = 0  # bytes since `_before`
        self._is_awaited = self._is_apart = False
        self.is_under_tls = is_closed_early
        self._reuses = 0
        self._rested_at = monotonic()

    def begin(self) -> bool:
        """A request is about to be written on a connection that has carried one before.

        Returns:
            Whether to write its body as a segment of its own: a reset proves something only then.
            It is asked for where a connection is likely to be closed by its server: while it is
            young, and after a rest. `head_sent` then tells where the one ends.
        """
        sock = self._socket
        if sock is None:
            return False
        self._reuses += 1
        self._is_awaited, self._is_apart = True, False
        is_young = self._reuses <= _WARY_EXCHANGES
        is_wary = is_young or monotonic() - self._rested_at >= _WARY_SECONDS
        if is_wary or self.is_under_tls or not self._before:
            self._ask(sock)
        return is_wary and self._before != b""

    def _ask(self, sock: Socket) -> None:
        self._before, self._sent = _read(sock), 0
        if self._is_closed_early:
            try:
                self._twin = sock.dup()
            except OSError:  # it is closed, or there are no more descriptors
                self._before = b""

    def head_sent(self) -> None:
        """The head of a request that has a body has been handed to the kernel, and no more of it.

        Without a body the head is the request, and to send it apart proves nothing.
        """
        sock = self._twin or self._socket
        if sock is None or not self._before:
            return
        now = _read(sock)
        self._is_apart = now != b"" and _counts(now)[3] > self._counts_before()[2]

    def end(self, sent: int) -> None:
        """The request has been answered, or has failed. Idempotent.

        Args:
            sent: the bytes of it that have been handed to the kernel; fewer, where not all were.
        """
        self._rested_at = monotonic()
        if self._is_awaited:
            self._is_awaited = False
            self._sent += sent
        if self._twin is not None:
            self._twin.close()
            self._twin = None

    def is_untaken(self, *, has_fin: bool) -> bool:
        """Whether it is proved that the peer has processed nothing of the request.

        Asked when the connection has ended, before its socket is closed.

        Args:
            has_fin: the peer is known to have sent a FIN before anything else ended the connection.

        Anything unknown is no proof.
        """
        sock = self._twin or self._socket
        if sock is None or not self._before or not self._is_awaited:
            return False
        now = _read(sock)
        if not now:
            return False
        state, acked, sent, _ = _counts(now)
        acked_before, sent_before, _ = self._counts_before()
        if acked != acked_before:
            return False
        if state == _CLOSE_WAIT:
            return True
        return state == _CLOSED and (has_fin or sent == sent_before or self._is_apart)

    def _counts_before(self) -> tuple[int, int, int]:
        """What had been acknowledged, sent and sent afresh when the request began."""
        _, acked, sent, fresh = _counts(self._before)
        return acked + self._sent, sent + self._sent, fresh + self._sent


def _read(sock: Socket) -> bytes:
    """`struct tcp_info`; b"" where it cannot be had."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except (OSError, ValueError):  # it is closed; uvloop says so with the latter
        return b""
    return info if len(info) == _INFO.size else b""


def _counts(info: bytes) -> tuple[int, int, int, int]:
    """The state; the bytes that the peer has acknowledged, that were sent, and that were not again.

    Of the last two the one is never too low, and the other never too high: the kernel counts what
    it sends again before it knows that it can.
    """
    state, acked, sent, sent_again = _INFO.unpack(info)
    return state, acked, sent, sent - sent_again


def limit_unsent(sock: socket.socket) -> None:
    """Have the kernel hold little that it has not sent, so that a slow peer is seen to take some.

    Linux would call the socket writable only when a third of a send buffer of up to 4 MiB is free.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT)


def watched(sock: Socket, *, is_closed_early: bool = False) -> Delivery:
    """The `Delivery` of a connected socket; where the kernel cannot tell it proves nothing."""
    can_tell = sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6)
    return Delivery(sock if can_tell else None, is_closed_early=is_closed_early)
