"""Small things that many behaviours are stated with.

This module knows loops through anyio, loopback sockets and the contract's records.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import ExitStack, contextmanager

import anyio
import pytest

from trunkline._contract import PoolSnapshot
from trunkline._messages import ConnectionInfo, Response


async def until(predicate: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait, on any loop, until `predicate` holds.

    Raises:
        AssertionError: it did not within `seconds`.
    """
    with anyio.move_on_after(seconds) as scope:
        while not predicate():  # noqa: ASYNC110  # what it waits for is in other threads
            await anyio.sleep(0.002)
    assert not scope.cancelled_caught, f"it did not come within {seconds:g} s"


def info(response: Response) -> ConnectionInfo:
    """What the response says of its connection; it has to say it."""
    assert response.connection is not None
    return response.connection


def counts(now: PoolSnapshot) -> tuple[int, int, int, int, int]:
    return now.open, now.active, now.idle, now.connecting, now.waiting


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens: what was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    """A request body that is produced piece by piece."""
    for piece in pieces:
        yield piece


@contextmanager
def unanswering_port() -> Generator[int]:
    """A port of 127.0.0.1 that answers no SYN: its queue of connections is full."""
    with socket.socket() as listener, ExitStack() as queue:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = queue.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        with socket.socket() as probe:
            probe.settimeout(0.05)
            if probe.connect_ex(address) == 0:
                pytest.skip("this system accepts connections beyond the backlog")
        yield int(address[1])
