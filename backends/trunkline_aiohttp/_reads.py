"""How a connection's bytes are read from its socket: small reads into memory that is there.

For each read of an `asyncio.Protocol` asyncio makes a `bytes` of 256 KiB and cuts it down to what
has come. The C library may map so large a block from the kernel and give it back each time, which
costs several times what reading an event of a stream does. An `asyncio.BufferedProtocol` lends
asyncio memory instead, from where large bodies have to be copied once more. So the one or the other
stands before a connection's protocol: reads are taken to go on as they were of late. The small ones
are made together with those of other connections: those of a stream with other streams', those of
answers with other answers', where more connections than one are in use.

This module knows how asyncio's selector loops read. It does not know what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from trunkline_aiohttp._direct import Reading, call_when_readable, is_of_selector_loop
from trunkline_aiohttp._sweep import CAN_READ_TOGETHER, Member, Sweep, Together

_SIZE = 65536
_LARGE = 32768  # bytes that asyncio's way is quicker for
_SMALL = 8192
_IN_A_ROW = 8  # small reads, until it is not just the ends of large responses that they are
_A_STREAM = 3  # small reads that do not end a body, until it is taken for a stream


class Reads:
    """What the connections of the running loop are read with, one after the other.

    Attributes:
        latest: `id` of what read last by itself; 0 for nothing.
    """

    __slots__ = ("answers", "buffer", "latest", "sweep")

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_SIZE))
        self.answers = Together() if CAN_READ_TOGETHER else None
        self.sweep = Sweep() if CAN_READ_TOGETHER else None
        self.latest = 0

    def close(self) -> None:
        for group in (self.answers, self.sweep):
            if group is not None:
                group.close()


def make_reads() -> Reads | None:
    """For the running loop.

    None where it does not read as said above: uvloop has memory of its own, and a proactor's reads
    overlap.
    """
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        return Reads()
    return None


class Reader(asyncio.Protocol):
    """A protocol that says whether more of a body is to come on its connection, and nothing else.

    While that is so and reads are small, they are made together with those of other such streams:
    see `trunkline_aiohttp._sweep`.
    """

    __slots__ = ()

    is_streaming = False


def read_for(protocol: Reader, transport: asyncio.Transport, reads: Reads | None) -> None:
    """Read what comes in `transport`, whose protocol `protocol` is, as said above.

    Args:
        reads: what `make_reads` made.
    """
    if reads is not None:
        _SmallReads(protocol, transport, reads).begin()


def read_alone(transport: asyncio.Transport) -> None:
    """To be called before `transport` is closed: a socket under TLS goes before anyone is told."""
    stand_in = transport.get_protocol()
    if isinstance(stand_in, _SmallReads):
        stand_in.read_alone()


class _StandIn(asyncio.BaseProtocol):
    __slots__ = ("_protocol", "_reads", "_transport")

    def __init__(self, protocol: Reader, transport: asyncio.Transport, reads: Reads) -> None:
        self._protocol = protocol
        self._transport = transport
        self._reads = reads

    def begin(self) -> None:
        self._transport.set_protocol(self)

    def _give_way_to(self, other: type[_StandIn]) -> None:
        other(self._protocol, self._transport, self._reads).begin()

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


class _SmallReads(_StandIn, asyncio.BufferedProtocol):
    __slots__ = ("_buffer", "_group", "_has_answered", "_is_tls", "_member", "_of_a_stream",
                 "_read")  # fmt: skip

    _group: Together  # that `_member` is of
    _read: Callable[[], None]  # of one without TLS

    def __init__(self, protocol: Reader, transport: asyncio.Transport, reads: Reads) -> None:
        super().__init__(protocol, transport, reads)
        self._buffer = reads.buffer
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        self._of_a_stream = 0
        self._has_answered = False
        self._member: Member | None = None

    def begin(self) -> None:
        super().begin()
        if is_of_selector_loop(self._transport):
            self._read = Reading(self._transport, self._buffer, self._receive).read
            call_when_readable(self._transport, self._read)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Of TLS."""
        self._receive(bytes(self._buffer[:nbytes]))

    def _receive(self, data: bytes) -> None:
        if len(data) >= _LARGE:
            self._read_as_asyncio_does()
            self._protocol.data_received(data)
            return
        self._protocol.data_received(data)
        if self._is_tls and not self._transport.is_reading():
            # asyncio keeps what comes while reading is paused. If the peer ends the connection
            # meanwhile, it gives a BufferedProtocol no more of that than its buffer takes.
            self._read_as_asyncio_does()
        elif self._protocol.is_streaming:
            if self._of_a_stream < _A_STREAM:
                self._go_on_with_a_stream()
        elif self._of_a_stream:
            self.read_alone()
        elif self._member is None:
            self._go_on_with_answers()

    def _read_as_asyncio_does(self) -> None:
        self.read_alone()
        self._give_way_to(_LargeReads)

    def _go_on_with_a_stream(self) -> None:
        self._of_a_stream += 1
        if self._of_a_stream == _A_STREAM and self._reads.sweep is not None:
            self._leave()
            self._join(self._reads.sweep)
            if self._member is None and not self._transport.is_reading():
                self._of_a_stream = 0

    def _go_on_with_answers(self) -> None:
        """Where it is the only one that is read the event loop is the shorter way.

        Its first answer may be its last, and does not count.
        """
        if not self._has_answered:
            self._has_answered = True
            return
        reads, me = self._reads, id(self)
        is_alone = reads.latest in (0, me) or self._transport.is_closing()
        if reads.answers is not None and not is_alone:
            self._join(reads.answers)
        reads.latest = me

    def _join(self, group: Together) -> None:
        self._member = group.join(self._transport, None if self._is_tls else self._read)
        self._group = group
        if self._member is not None and not self._is_tls:
            call_when_readable(self._transport, self._on_resumed)

    def _leave(self) -> None:
        if self._member is not None:
            self._group.leave(self._member)
            self._member = None
            if not self._is_tls:
                call_when_readable(self._transport, self._read)

    def _on_resumed(self) -> None:
        """The loop has it again, since its reader had paused."""
        self.read_alone()
        self._read()

    def read_alone(self) -> None:
        self._of_a_stream = 0
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self.read_alone()
        super().connection_lost(exc)


class _LargeReads(_StandIn, asyncio.Protocol):
    __slots__ = ("_small_in_a_row",)

    _small_in_a_row: int

    def __init__(self, protocol: Reader, transport: asyncio.Transport, reads: Reads) -> None:
        super().__init__(protocol, transport, reads)
        self._small_in_a_row = 0

    def data_received(self, data: bytes) -> None:
        self._small_in_a_row = self._small_in_a_row + 1 if len(data) <= _SMALL else 0
        self._protocol.data_received(data)
        if self._small_in_a_row >= _IN_A_ROW and self._transport.is_reading():
            self._give_way_to(_SmallReads)
