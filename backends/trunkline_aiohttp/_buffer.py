"""The memory that the connections of an event loop read into.

For each read of a plain `Protocol` asyncio makes a `bytes` of 256 KiB, and cuts it down to what has
come. The C library maps so large a block from the kernel and gives it back, which costs several
times what reading a small message does. This module knows asyncio's `BufferedProtocol`, which reads
into memory that is there. It does not know what is read.
"""

from __future__ import annotations

import asyncio

_SIZE = 65536  # bytes; a copy of so many is still no mapping of its own


def make_buffer() -> memoryview:
    """For all connections of one event loop: they read one after the other."""
    return memoryview(bytearray(_SIZE))


class Buffered(asyncio.Protocol, asyncio.BufferedProtocol):
    """A protocol that is given what has come as `data_received`, read by way of a shared buffer.

    uvloop takes it for the `asyncio.Protocol` that it is too: it does not read as asyncio does.
    """

    buffer: memoryview

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))
