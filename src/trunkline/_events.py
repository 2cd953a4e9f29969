"""What can be observed of a transport, as it happens.

This module knows the events and their order. It does not know who emits them or what is done with
them.

    request                          one call of `send`, until its body has been read or given up
    ├─ queue                         waiting for a connection; left out when there is one at once
    ├─ dns, connect, proxy, tls      opening one; left out on a reused connection
    ├─ headers                       from the first byte written to the response head
    └─ body                          from the head to the end of the body
    connection                       from its opening to its closing; `reason` says why

Every start has its end, also when the call fails or is cancelled: then the end carries `error`, the
name of the exception's class. A step that is tried again starts again. `dns` to `tls` of a
connection opened ahead of any request have the request id None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from trunkline._messages import Request, Response
from trunkline._urls import Origin

Step: TypeAlias = Literal[
    "request", "queue", "dns", "connect", "proxy", "tls", "headers", "body", "connection"
]


@dataclass(frozen=True, slots=True)
class Event:
    """The start or the end of one step.

    Attributes:
        step: which; see the module.
        is_end: False for the start.
        at: `time.monotonic()`.
        origin: of the request or connection.
        request_id: counts the calls of `send` of one transport; None for a step of no request.
        connection_id: as in `response.connection.id`; None before there is one.
        error: name of the exception's class, at the end of a step that failed.
        reason: why a connection was closed, as in `PoolSnapshot.closed`; at its end only.
        request, response: what was sent and came, for observers that read their public parts.
    """

    step: Step
    is_end: bool
    at: float
    origin: Origin
    request_id: int | None = None
    connection_id: int | None = None
    error: str | None = None
    reason: str | None = None
    request: Request | None = None
    response: Response | None = None


class Observer(Protocol):
    """Sees the events of a transport: `transport.observe(observer)`."""

    def on_event(self, event: Event) -> None:
        """Called in the event loop at each start and end. It must not block.

        An `Exception` it raises is logged to `trunkline.observers`, and the call goes on.
        """
        ...
