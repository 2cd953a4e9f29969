"""Connections that are read together: one callback of the event loop, not one for each of them.

For each socket that has something to read the event loop makes a list's entry, looks up a key and
runs a callback, which takes longer than to read a small answer. So the sockets are watched by an
`epoll` of their own, which the event loop watches as one descriptor.

An event of a stream is a small thing even beside what it takes to wake up for it: the kernel's
switch, a round of the event loop, caches gone cold. Those of bodies that come in small reads have
an `epoll` to themselves. While events are rare each is read at once. Where the next one comes
within `_REST` of the last, the loop stops listening, and looks again after a rest: what has come
meanwhile, on whichever stream, is read in one go. Network cards moderate their interrupts in this
way. The more the loop had to do after a look, the longer is the rest: more events then share what
reading costs.

This module knows asyncio's selector transports, below their public surface: how they are taken off
the loop's selector and put back, and `_read_ready`, which reads and tells the protocol whatever
there is to tell. It does not know what is read. A test holds the lowest and the newest Python
supported to what is relied on.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any

from trunkline_aiohttp._direct import is_of_selector_loop

_REST = 0.003  # seconds
_LONGEST_REST = 0.01
_REST_TO_WORK = 2  # streams then take a third of the loop's time, up to the longest rest


class Member:
    """A connection that is read together with others.

    Args:
        transport: what reads the socket itself.
        read: has it read, and tell what has come.
    """

    __slots__ = ("descriptor", "read", "transport")

    def __init__(self, transport: Any, read: Callable[[], None]) -> None:
        self.transport = transport
        self.descriptor: int = transport._sock_fd
        self.read = read


class Together:
    """Those of the running loop's connections that are read together, each as soon as may be."""

    def __init__(self) -> None:
        self._loop: Any = asyncio.get_running_loop()
        self._epoll: select.epoll | None = None
        self._is_closed = False
        self._members: dict[int, Member] = {}  # by descriptor
        self._may_be_haunted = False
        self._is_listening = False

    def __len__(self) -> int:
        return len(self._members)

    def join(self, transport: asyncio.Transport, read: Callable[[], None] | None) -> Member | None:
        """Read `transport` from here on; None where it is not read as said above, or not now.

        Args:
            read: does it; None for asyncio's way.
        """
        below = _below(transport)
        if not is_of_selector_loop(below) or not below.is_reading():
            return None
        member = Member(below, below._read_ready if read is None else read)
        if self._is_closed or not self._register(member):
            return None
        self._loop._remove_reader(member.descriptor)
        if member.descriptor in self._members:
            self._may_be_haunted = True  # by one that was closed, and has not left yet
        self._members[member.descriptor] = member
        self._begin()
        return member

    def _register(self, member: Member) -> bool:
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
            self._epoll.register(member.descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        except OSError:  # no more descriptors or watches: the loop goes on with it
            return False
        return True

    def leave(self, member: Member) -> None:
        """Have the loop read it again, unless it is paused or closed; idempotent."""
        if self._members.get(member.descriptor) is not member:
            return
        del self._members[member.descriptor]
        assert self._epoll is not None
        try:
            self._epoll.unregister(member.descriptor)
        except OSError:  # closed: the kernel has forgotten it, if nobody else has it open
            self._may_be_haunted = True
        member.transport._add_reader(member.descriptor, member.transport._read_ready)
        if not self._members:
            self._stop()

    def close(self) -> None:
        self._is_closed = True
        for member in list(self._members.values()):
            self.leave(member)
        if self._epoll is not None:
            self._epoll.close()

    # -- looking, in a context of its own: not that of whoever happens to join first -------------

    def _begin(self) -> None:
        self._listen()

    def _stop(self) -> None:
        self._stop_listening()

    def _listen(self) -> None:
        if not self._is_listening:
            self._is_listening = True
            Context().run(self._loop.add_reader, self._epoll, self._on_event)

    def _stop_listening(self) -> None:
        if self._is_listening:
            self._is_listening = False
            self._loop.remove_reader(self._epoll)

    def _on_event(self) -> None:
        self._look()

    def _look(self) -> bool:
        """Read whatever has come; whether anything has."""
        if self._may_be_haunted:
            self._watch_anew()
        if self._epoll is None:
            return False
        ready = self._epoll.poll(0)
        for descriptor, event in ready:
            member = self._members.get(descriptor)
            if member is None:
                continue  # it has left since, by way of another one's event
            transport = member.transport
            if event == select.EPOLLIN and not (transport._paused or transport._closing):
                member.read()
            if event != select.EPOLLIN or transport._paused or transport._closing:
                self.leave(member)  # an end is asyncio's to read
        return bool(ready)

    def _watch_anew(self) -> None:
        """Be rid of a socket that was closed before it left, and that a child process has open.

        The kernel tells of it for ever, as of whoever has its descriptor now: without the
        descriptor it cannot be unregistered.
        """
        self._may_be_haunted = False
        was_listening, members = self._is_listening, self._members
        self._stop_listening()
        if self._epoll is not None:
            self._epoll.close()
        self._epoll, self._members = None, {}
        for member in members.values():
            if self._register(member):
                self._members[member.descriptor] = member
            else:
                member.transport._add_reader(member.descriptor, member.transport._read_ready)
        if was_listening and self._members:
            self._listen()


class Sweep(Together):
    """Streams, with rests between the looks at them."""

    def __init__(self) -> None:
        super().__init__()
        self._found_at = 0.0
        self._timer: asyncio.Handle | None = None

    def _begin(self) -> None:
        if self._timer is None:
            self._listen()

    def _stop(self) -> None:
        super()._stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        """Look again later, counted from when all who were given something have had their turn."""
        self._timer = self._loop.call_soon(self._on_done)

    def _on_done(self) -> None:
        worked: float = self._loop.time() - self._found_at
        seconds = min(max(_REST, _REST_TO_WORK * worked), _LONGEST_REST)
        self._timer = self._loop.call_later(seconds, self._on_rested)

    def _on_event(self) -> None:
        # A clock that stands still is a test's, and no timer would ever end.
        is_often = 0 < self._loop.time() - self._found_at < _REST
        try:
            self._look()
        finally:
            if is_often and self._members:
                self._stop_listening()
                self._rest()

    def _on_rested(self) -> None:
        has_found = True
        try:
            has_found = self._look()
        finally:
            if has_found and self._members:
                self._rest()
            else:
                self._timer = None
                if self._members:
                    self._listen()

    def _look(self) -> bool:
        looked_at = self._loop.time()
        has_found = super()._look()
        if has_found:
            self._found_at = looked_at
        return has_found


CAN_READ_TOGETHER = sys.platform == "linux" and hasattr(select, "epoll")


def _below(transport: Any) -> Any:
    """What reads the socket itself, under whatever TLS."""
    while (tls := getattr(transport, "_ssl_protocol", None)) is not None:
        transport = tls._transport
    return transport
