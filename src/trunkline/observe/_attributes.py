"""The attributes that the semantic conventions for HTTP clients ask for, and their values.

This module knows OpenTelemetry's names (https://opentelemetry.io/docs/specs/semconv/http/). It does
not know who reports them.
"""

from __future__ import annotations

from os import environ
from typing import TypeAlias

from trunkline import ConnectionInfo, Origin, Response

Attributes: TypeAlias = dict[str, str | int]

# RFC 9110 section 9, PATCH of RFC 5789, and QUERY.
_KNOWN_METHODS = "CONNECT,DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT,QUERY,TRACE"
OTHER_METHOD = "_OTHER"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets that the conventions give for the duration of a request."""
CONNECTION_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""The same for the duration of a connection."""


def known_methods() -> frozenset[str]:
    """The methods that are reported by name; the environment variable is the conventions' own."""
    names = environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", _KNOWN_METHODS)
    return frozenset(name.strip() for name in names.split(","))


def of_origin(origin: Origin) -> Attributes:
    return {
        "server.address": origin.host,
        "server.port": origin.port,
        "url.scheme": origin.scheme,
    }


def of_response(response: Response) -> Attributes:
    """Status and protocol version; 4xx and 5xx are errors of a client's request."""
    found: Attributes = {
        "http.response.status_code": response.status_code,
        "network.protocol.version": version_of(response.http_version),
    }
    if response.is_error:
        found["error.type"] = str(response.status_code)
    return found


def of_peer(connection: ConnectionInfo | None) -> Attributes:
    """Address and port of the socket's other end; the path of a Unix socket has no port."""
    if connection is None or connection.peer is None:
        return {}
    host, colon, port = connection.peer.rpartition(":")
    if not (colon and port.isdecimal()):
        return {"network.peer.address": connection.peer}
    return {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}


def version_of(http_version: str) -> str:
    """ "1.1" of "HTTP/1.1"."""
    return http_version.removeprefix("HTTP/")
