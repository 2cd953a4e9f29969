"""What a server has seen: counts that can be waited for from any thread, and the last calls.

This module knows threads. It does not know servers, sockets or APIs: others tell it what to count.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import anyio
import anyio.to_thread

KEPT_CALLS = 10_000

CountName: TypeAlias = Literal[
    "connections", "open_connections", "handshakes", "requests", "completed", "cancelled"
]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has seen so far.

    Attributes:
        connections: TCP connections accepted, with those that never sent a request.
        open_connections: those of them that are open now.
        handshakes: TLS handshakes that succeeded.
        requests: requests whose head arrived, whatever the path and the answer.
        completed: generations, streamed or not, whose last byte was handed to the kernel.
        cancelled: generations, streamed or not, whose client left before the last byte was sent,
            and those that the server's stop cut.
    """

    connections: int = 0
    open_connections: int = 0
    handshakes: int = 0
    requests: int = 0
    completed: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One request whose head arrived.

    Attributes:
        number: 1 for the first, over the life of the server.
        method: "POST".
        target: path and query as they were on the wire: "/v1/files?purpose=a%2Cb".
        headers: names in lower case, in the order of the wire.
    """

    number: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """The first value of a header, looked up without case; None if it is not there."""
        return next((value for key, value in self.headers if key == name.lower()), None)


class Tally:
    """`Counts` that can be added to and waited for, from any thread, and the last `Call`s."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._values: dict[CountName, int] = dict.fromkeys(get_args(CountName), 0)
        self._calls: deque[Call] = deque(maxlen=KEPT_CALLS)

    def add(self, name: CountName, amount: int = 1) -> None:
        with self._changed:
            self._values[name] += amount
            self._changed.notify_all()

    def called(self, call: Call) -> None:
        with self._changed:
            self._calls.append(call)
            self._values["requests"] += 1
            self._changed.notify_all()

    def snapshot(self) -> Counts:
        with self._changed:
            return Counts(**self._values)

    def calls(self) -> tuple[Call, ...]:
        with self._changed:
            return tuple(self._calls)

    def reset(self) -> None:
        """Zero what is counted. `open_connections` is not a count of the past: it stays."""
        with self._changed:
            self._calls.clear()
            for name in self._values:
                if name != "open_connections":
                    self._values[name] = 0

    async def wait_until(self, predicate: Callable[[Counts], bool], timeout: float) -> Counts:  # noqa: ASYNC109
        """Wait until `predicate` holds, and return the counts that it held for.

        Raises:
            TimeoutError: it did not hold within `timeout` seconds.
        """
        gave_up = threading.Event()
        try:
            return await anyio.to_thread.run_sync(
                self._wait, predicate, timeout, gave_up, abandon_on_cancel=True
            )
        finally:
            # A cancelled caller leaves its thread behind: let that end now, not at the timeout.
            gave_up.set()
            with self._changed:
                self._changed.notify_all()

    def _wait(
        self, predicate: Callable[[Counts], bool], timeout: float, gave_up: threading.Event
    ) -> Counts:
        def ready() -> bool:
            return gave_up.is_set() or predicate(Counts(**self._values))

        with self._changed:
            in_time = self._changed.wait_for(ready, timeout)
            counts = Counts(**self._values)
        if not in_time:
            raise TimeoutError(f"not seen within {timeout:g} s; the server has counted {counts}")
        return counts
