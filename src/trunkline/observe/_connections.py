"""Connections: how many are active and idle, and how long each was open.

This module knows which connections are open and how many exchanges each carries. It does not know
requests.

The addresses of the peers are left out of the counts: a connection that has carried nothing has not
told its own yet, and those of a large API change all the time, each of them a series for ever.
"""

from __future__ import annotations

from threading import get_ident
from typing import TypeAlias

from opentelemetry.metrics import Meter

from trunkline import Event, Response
from trunkline.observe._attributes import (
    CONNECTION_SECONDS,
    Attributes,
    of_origin,
    of_peer,
    version_of,
)

# Each event loop of a transport numbers its own connections.
_Key: TypeAlias = tuple[int, int | None]


class _Open:
    """An open connection; `of_wire` is what its first response has told about it."""

    __slots__ = ("attributes", "exchanges", "of_wire", "opened")

    def __init__(self, attributes: Attributes, opened: float) -> None:
        self.attributes = attributes
        self.opened = opened
        self.exchanges = 0
        self.of_wire: Attributes = {}


class Connections:
    """Reports connections, from the events of one transport."""

    def __init__(self, meter: Meter) -> None:
        self._open: dict[_Key, _Open] = {}
        self._count = meter.create_up_down_counter(
            "http.client.open_connections",
            "{connection}",
            "Number of outbound HTTP connections that are currently active or idle on the client.",
        )
        self._duration = meter.create_histogram(
            "http.client.connection.duration",
            "s",
            "The duration of the successfully established outbound HTTP connections.",
            explicit_bucket_boundaries_advisory=CONNECTION_SECONDS,
        )

    def on_event(self, event: Event) -> None:
        key = (get_ident(), event.connection_id)
        match event.step, event.is_end:
            case "connection", False:
                self._open[key] = opened = _Open(of_origin(event.origin), event.at)
                self._add(1, opened)
            case "connection", True:
                self._closed(key, event.at)
            case "headers", False:
                self._exchanges(key, 1)
            case "headers", True if event.error is not None:
                self._exchanges(key, -1)
            case "body", False if event.response is not None:
                self._learn(key, event.response)
            case "body", True:
                self._exchanges(key, -1)
            case _:
                pass

    def _learn(self, key: _Key, response: Response) -> None:
        connection = self._open.get(key)
        if connection is not None and not connection.of_wire and response.connection is not None:
            connection.of_wire = {
                "network.protocol.version": version_of(response.connection.http_version),
                **of_peer(response.connection),
            }
            connection.of_wire.pop("network.peer.port", None)

    def _exchanges(self, key: _Key, change: int) -> None:
        """One more or one less on a connection; on one that is closed, or unknown, nothing."""
        connection = self._open.get(key)
        if connection is not None:
            self._add(-1, connection)
            connection.exchanges += change
            self._add(1, connection)

    def _closed(self, key: _Key, at: float) -> None:
        connection = self._open.pop(key, None)
        if connection is not None:
            self._add(-1, connection)
            seconds = at - connection.opened
            self._duration.record(seconds, {**connection.attributes, **connection.of_wire})

    def _add(self, change: int, connection: _Open) -> None:
        state = "active" if connection.exchanges else "idle"
        self._count.add(change, {"http.connection.state": state, **connection.attributes})

    def reset(self) -> None:
        """Forget those that are open: the counts go back to zero."""
        while self._open:
            _, connection = self._open.popitem()
            self._add(-1, connection)
