"""The four touches of what httpx and httpcore keep to themselves, each with a contract test.

This module knows names that are not public, and what httpx's transport reads of a request. It does
not know what they are used for.
"""

from __future__ import annotations

import ssl
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # spares httpx loading one that is never used


def make_transport(connection: Any, client: Any) -> Any:
    """A transport of `client` (httpx or its like) that sends on `connection` and nowhere else.

    The connection takes the place of httpx's pool of one, which has the same
    `handle_async_request`: a queue in front of the only connection costs a quarter of the requests
    a second.
    """
    one = client.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
    transport = client.AsyncHTTPTransport(
        verify=_NO_TLS, trust_env=False, http1=True, http2=False, limits=one, retries=0
    )
    transport._pool = connection
    return transport


def drop_lock(connection: Any) -> None:
    """Spare `connection` its lock: the pool runs one exchange at a time on it.

    It is taken twice in each exchange, and each time gives the event loop a turn: one before the
    request goes out, one before the end of the response is told.
    """
    connection._state_lock = nullcontext()


def unread(connection: Any) -> bytes:
    """What `connection` has received beyond the end of the last response."""
    data: bytes = connection._h11_state.trailing_data[0]
    return data


@dataclass(frozen=True, slots=True)
class _Url:
    """Of every request; what is sent is the extension "target"."""

    raw_scheme: bytes = b"http"
    raw_host: bytes = b"origin"
    port: None = None
    raw_path: bytes = b"/"


class _Headers:
    __slots__ = ("raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw


class Message:
    """What httpx's transport reads of a request.

    Its own class checks and copies once more what Trunkline's has checked, and writes the method in
    upper case.
    """

    __slots__ = ("extensions", "headers", "method", "stream")

    url = _Url()

    def __init__(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], stream: Any
    ) -> None:
        self.method = method
        self.headers = _Headers(headers)
        self.stream = stream
        self.extensions = {"target": target}
