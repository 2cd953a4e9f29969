"""What is left of a call where a stranger's backend breaks its contract: nothing.

Knows the pool's side of the contract. Uses no network.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from trunkline import Attempt, Capabilities, Dial, Event, Origin, Request
from trunkline.dns import Resolver
from trunkline.pool import PooledTransport

pytestmark = pytest.mark.anyio


class Connection:
    http_version = "HTTP/1.1"
    max_exchanges = 1
    peer = None
    is_open = True

    def is_usable(self) -> bool:
        return self.is_open

    async def exchange(self, request: Request, attempt: Attempt) -> Any:
        return SimpleNamespace(status_code=200, headers=None, close=self.close)

    def close(self) -> None:
        self.is_open = False


class Dialer:
    def __init__(self) -> None:
        self.opened: list[Connection] = []

    async def connect(self, origin: Origin, dial: Dial) -> Any:
        self.opened.append(Connection())
        return self.opened[-1]

    async def aclose(self) -> None: ...


class Transport(PooledTransport):
    capabilities = Capabilities(name="broken", trio=True)

    def __init__(self) -> None:
        super().__init__()
        self.dialer = Dialer()

    def make_dialer(self, resolver: Resolver) -> Dialer:
        return self.dialer


class Recorder:
    def __init__(self) -> None:
        self.told: Counter[tuple[str, bool]] = Counter()

    def on_event(self, event: Event) -> None:
        self.told[event.step, event.is_end] += 1


async def test_an_exchange_that_is_no_response_leaves_no_step_open_and_no_lease() -> None:
    transport, recorder = Transport(), Recorder()
    transport.observe(recorder)

    with pytest.raises(TypeError):
        await transport.send(Request("GET", "http://origin/"))

    told, snapshot = recorder.told, transport.snapshot()
    assert told["request", False] == 1
    assert [step for step, _ in tuple(told) if told[step, True] != told[step, False]] == []
    assert not any(connection.is_open for connection in transport.dialer.opened)
    assert (snapshot.open, snapshot.active) == (0, 0)
    await transport.aclose()
