"""What the harness passes between its processes: where to call, and what came of it.

Knows plain data. Does not know clients, servers or how anything is measured. Durations in seconds,
sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

BODY = b'{"model":"demo","messages":[{"role":"user","content":"Why is the sky blue?"}]}'
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a client is opened for."""

    url: str
    ca_file: str | None = None
    http2: bool = False
    connections: int = 100
    """The most it may open, and the most it may keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One round of calls: `in_flight` callers, each with its next call as soon as one is answered.

    It ends after `seconds`; or, where `calls` is given, after so many.
    """

    in_flight: int
    seconds: float = 0.5
    calls: int | None = None
    method: str = "POST"
    body: bytes | None = BODY
    headers: tuple[tuple[str, str], ...] = tuple(JSON.items())
    stream: bool = False
    """Read server-sent events instead of a whole answer."""
    url: str | None = None
    """Instead of the target's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round came to."""

    done: int
    """Calls answered; events received, where they were streams."""
    wall: float
    cpu: float
    """Of the client's process: every thread, user and system."""
    p50: float
    """Latency of a call; of the gap between two events, where they were streams."""
    p99: float

    @property
    def rate(self) -> float:
        """Per second."""
        return self.done / self.wall

    @property
    def cost(self) -> float:
        """CPU microseconds for each."""
        return self.cpu / self.done * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes added by each connection or stream that is held."""

    held: int
    each: float


Mode: TypeAlias = Literal["cold", "pooled", "warmed"]
"""cold: a client for each call. pooled: one for all. warmed: one that was connected before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Calls one after the other, each needing the answer before it.

    `together` of them run in the process, each with a client of its own, and begin `apart` seconds
    after one another.
    """

    mode: Mode
    target: Target
    calls: int
    together: int
    apart: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """What an agent's calls took, and the steps of the first one where they are known."""

    total: float
    """The median, where several ran."""
    steps: dict[str, float]
