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
# state, bytes_acked and data_segs_out of struct tcp_info in linux/tcp.h
_INFO = struct.Struct("=B119xQ28xI")
_CLOSED, _CLOSE_WAIT = 7, 8  # of the states in linux/tcp_states.h


class Socket(Protocol):
    """What is needed of a socket; asyncio's `TransportSocket` has it too."""

    @property
    def family(self) -> int: ...

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...

    def dup(self) -> socket.socket: ...


class Delivery:
    """Whether the peer's kernel took any byte of the request under way, on one connection.

    Args:
        sock: the connected socket, or None where nothing can be known.
        is_closed_early: its owner closes it before it tells of the end: keep a duplicate of it
            while a request awaits its answer.
    """

    __slots__ = ("_before", "_is_apart", "_is_closed_early", "_rested_at", "_reuses", "_socket",
                 "_twin")  # fmt: skip

    def __init__(self, sock: Socket | None, *, is_closed_early: bool = False) -> None:
        self._socket = sock
        self._is_closed_early = is_closed_early
        self._twin: socket.socket | None = None
        self._before = b""
        self._is_apart = False
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
        self._is_apart = False
        if sock is None:
            return False
        before = self._before = _read(sock)
        self._reuses += 1
        if self._is_closed_early:
            try:
                self._twin = sock.dup()
            except OSError:  # it is closed, or there are no more descriptors
                before = self._before = b""
        if not before:
            return False
        return self._reuses <= _WARY_EXCHANGES or monotonic() - self._rested_at >= _WARY_SECONDS

    def head_sent(self) -> None:
        """The head has been handed to the kernel, and no byte of the body yet."""
        sock = self._twin or self._socket
        if sock is None or not self._before:
            return
        now = _read(sock)
        self._is_apart = now != b"" and _INFO.unpack(now)[2] > _INFO.unpack(self._before)[2]

    def end(self) -> None:
        """The request has been answered, or has failed. Idempotent."""
        self._before = b""
        self._rested_at = monotonic()
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
        if sock is None or not self._before:
            return False
        now = _read(sock)
        if not now:
            return False
        _, acked_before, segments_before = _INFO.unpack(self._before)
        state, acked, segments = _INFO.unpack(now)
        if acked != acked_before:
            return False
        if state == _CLOSE_WAIT:
            return True
        is_unsent = segments == segments_before
        return state == _CLOSED and (has_fin or is_unsent or self._is_apart)


def _read(sock: Socket) -> bytes:
    """`struct tcp_info`; b"" where it cannot be had."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except (OSError, ValueError):  # it is closed; uvloop says so with the latter
        return b""
    return info if len(info) == _INFO.size else b""


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
