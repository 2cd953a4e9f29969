"""How a connection's bytes are read from its socket: small reads into memory that is there.

For each read of an `asyncio.Protocol` asyncio makes a `bytes` of 256 KiB and cuts it down to what
has come. The C library may map so large a block from the kernel and give it back each time, which
costs several times what reading an event of a stream does. An `asyncio.BufferedProtocol` lends
asyncio memory instead, from where large bodies have to be copied once more. So the one or the other
stands before a connection's protocol: reads are taken to go on as they were of late.

This module knows how asyncio's selector loops read. It does not know what is read.
"""

from __future__ import annotations

import asyncio

_SIZE = 65536
_LARGE = 32768  # bytes that asyncio's way is quicker for
_SMALL = 8192
_IN_A_ROW = 8  # small reads, until it is not just the ends of large responses that they are


def make_buffer() -> memoryview | None:
    """Memory for all connections of the running loop, which reads them one after the other.

    None where the loop does not read as said above: uvloop and a proactor have memory of their own.
    """
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        return memoryview(bytearray(_SIZE))
    return None


def read_for(
    protocol: asyncio.Protocol, transport: asyncio.Transport, buffer: memoryview | None
) -> None:
    """Read what comes in `transport`, whose protocol `protocol` is, as said above.

    Args:
        buffer: what `make_buffer` made.
    """
    if buffer is not None:
        transport.set_protocol(_SmallReads(protocol, transport, buffer))


class _StandIn(asyncio.BaseProtocol):
    __slots__ = ("_buffer", "_protocol", "_transport")

    def __init__(
        self, protocol: asyncio.Protocol, transport: asyncio.Transport, buffer: memoryview
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._buffer = buffer

    def _give_way_to(self, other: type[_StandIn]) -> None:
        self._transport.set_protocol(other(self._protocol, self._transport, self._buffer))

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


class _SmallReads(_StandIn, asyncio.BufferedProtocol):
    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes >= _LARGE:
            self._give_way_to(_LargeReads)
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


class _LargeReads(_StandIn, asyncio.Protocol):
    __slots__ = ("_small_in_a_row",)

    _small_in_a_row: int

    def __init__(
        self, protocol: asyncio.Protocol, transport: asyncio.Transport, buffer: memoryview
    ) -> None:
        super().__init__(protocol, transport, buffer)
        self._small_in_a_row = 0

    def data_received(self, data: bytes) -> None:
        self._small_in_a_row = self._small_in_a_row + 1 if len(data) <= _SMALL else 0
        if self._small_in_a_row == _IN_A_ROW:
            self._give_way_to(_SmallReads)
        self._protocol.data_received(data)
