"""Listening sockets that count what they accept, and what of it is open.

This module knows sockets. It does not know what is served on them.

How connections are counted: the listening sockets are of a subclass whose `accept` counts, and
whose accepted sockets count their `close`. This rests on one thing that asyncio does without
promising it: the selector event loop accepts by the listening socket's `accept`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

from trunkline.testing._llm.counts import Tally


class Listener(socket.socket):
    """A listening socket that counts what it accepts. Used by one thread, after `listen_on`."""

    def __init__(self, family: socket.AddressFamily, tally: Tally) -> None:
        # Only with the protocol named does asyncio set TCP_NODELAY on what is accepted. Without it
        # each answer would wait for the client's delayed ACK, 40 ms.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._tally = tally
        self._accepted: set[_Accepted] = set()
        self._hung_up = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self._hung_up:
            raise BlockingIOError(errno.EAGAIN, "the server is stopping")
        plain, address = super().accept()
        accepted = _Accepted(plain, self._tally, self._accepted)
        return accepted, address

    def hang_up(self) -> None:
        """Accept no more, and end what was accepted: each of them reads an end of stream now.

        Asking nicely takes as long as the clients like: a TLS connection waits for a close_notify
        (RFC 8446, section 6.1) that an idle client does not send, a stream for its last token.
        """
        self._hung_up = True
        for accepted in tuple(self._accepted):
            with contextlib.suppress(OSError):  # It is not connected any more.
                accepted.shutdown(socket.SHUT_RDWR)


class _Accepted(socket.socket):
    """An accepted connection: open from its making until its `close`."""

    def __init__(self, plain: socket.socket, tally: Tally, peers: set[_Accepted]) -> None:
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self._tally = tally
        self._peers = peers
        peers.add(self)
        tally.add("connections")
        tally.add("open_connections")

    def close(self) -> None:
        super().close()
        if self in self._peers:
            self._peers.remove(self)
            self._tally.add("open_connections", -1)


def listen_on(host: str, port: int, tally: Tally) -> list[Listener]:
    """Listeners on every address of `host`, all on one port.

    The machine may have no IPv6: of "localhost", 127.0.0.1 is enough.
    """
    listeners: list[Listener] = []
    with contextlib.ExitStack() as stack:
        for address in ("127.0.0.1", "::1") if host == "localhost" else (host,):
            try:
                listener = _bound(address, port, tally)
            except OSError as error:
                if listeners and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise
            stack.callback(listener.close)
            listeners.append(listener)
            port = listener.getsockname()[1]
        stack.pop_all()
    return listeners


def _bound(address: str, port: int, tally: Tally) -> Listener:
    listener = Listener(socket.AF_INET6 if ":" in address else socket.AF_INET, tally)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener
