"""What an ASGI application is told of a request, and header fields as ASGI has them.

This module knows the scope of HTTP. It does not know its messages.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from trunkline import Request
from trunkline.testing._lifespan import Message

RawHeaders = tuple[tuple[bytes, bytes], ...]


def decode(raw_headers: RawHeaders) -> list[tuple[str, str]]:
    """Header fields as text, as the pool's backends give them."""
    return [
        (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
        for name, value in raw_headers
    ]


def make_scope(
    request: Request,
    *,
    root_path: str,
    client: tuple[str, int],
    spec_version: str,
    state: dict[str, Any],
) -> Message:
    """The connection scope of an HTTP request (ASGI specification, "HTTP Connection Scope")."""
    path, _, query = request.path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.origin.scheme,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": [
            (name.lower().encode(), value.encode("utf-8", "surrogateescape"))
            for name, value in request.wire_headers()
        ],
        "client": client,
        "server": (request.origin.host, request.origin.port),
        "state": dict(state),
    }
