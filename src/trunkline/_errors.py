"""The error tree, and the facts about a failed exchange that a retry needs.

This module knows what can go wrong and what it means for the caller. It does not know which library
failed: each backend maps its library's exceptions here, in one table.

    TransportError
    ├─ InvalidRequest              url, header, method, or a body that contradicts its framing
    ├─ TransportClosed             the transport was closed before or during the call
    ├─ UnsupportedOption           (also a ValueError) raised when the transport is made
    │  └─ BackendUnavailable       (also an ImportError) no such backend, or its library is missing
    ├─ EgressDenied                policy forbids the address
    ├─ PoolFull                    more than max_waiting already wait
    ├─ TransportTimeout            (also the builtin TimeoutError)
    │  ├─ PoolTimeout              no connection became free in `pool` seconds
    │  ├─ ConnectTimeout           .phase says dns, connect or tls
    │  ├─ WriteTimeout             the peer took no byte of the request for `write` seconds
    │  ├─ HeadersTimeout           no complete response head in `headers` seconds
    │  ├─ ReadTimeout              no body byte for `read` seconds
    │  └─ DeadlineExceeded         the whole exchange took `total` seconds
    ├─ ConnectionFailed            before any byte of the request
    │  ├─ DNSError
    │  ├─ ConnectError
    │  ├─ ProxyError
    │  └─ TLSError
    │     └─ CertificateError
    ├─ NetworkError                after the request had begun
    │  ├─ WriteError
    │  ├─ RemoteDisconnected       the connection ended before any byte of the response
    │  ├─ BodyTruncated            the connection ended inside the response
    │  └─ ReadError
    ├─ RemoteProtocolError         the peer broke the protocol
    │  ├─ LimitExceeded            the peer sent more than a limit allows
    │  ├─ StreamReset              HTTP/2 RST_STREAM
    │  ├─ StreamRefused            HTTP/2 REFUSED_STREAM: not processed
    │  └─ GoAway                   HTTP/2 GOAWAY closed the stream
    ├─ DecodeError                 Content-Encoding that does not decode
    │  └─ DecompressionLimit
    └─ HTTPStatusError             only from Response.raise_for_status()

No message holds a path, query, header value, body or userinfo: an error may be logged as it is.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

Replay: TypeAlias = Literal["safe", "if_idempotent", "unsafe"]
"""May the request be sent again? See `TransportError.replay`."""

Phase: TypeAlias = Literal[
    "request", "pool", "dns", "connect", "proxy", "tls", "write", "headers", "body"
]


class TransportError(Exception):
    """Base of every error that Trunkline raises.

    Attributes:
        phase: what was being done: "request" (checking it), "pool" (waiting for a connection),
            "dns", "connect", "proxy", "tls", "write", "headers", "body"; None where no exchange
            was under way.
        request_sent: True when the whole request was handed to the operating system, False when
            not one byte was, None when it is in between or unknown.
        bytes_sent: bytes of the request (head and body) handed to the operating system.
        response_started: True once a byte of the response has arrived.
        connection_reused: True when the connection had carried an exchange before.
        replay: "safe": the server cannot have processed it, send it again; "if_idempotent": it may
            have been processed, send it again only where twice equals once; "unsafe": the server
            has begun to answer, so it was processed, and the caller may hold part of the answer.
        host, port: of the origin, None where none was known.
        backend: name of the backend, e.g. "aiohttp".
        http_version: "HTTP/1.1", "HTTP/2" ..., None before a connection was there.
        attempts: how many times the request was tried on a connection, this failure included.
        elapsed: seconds since `send` was called.

    The library's own exception, where there is one, is `__cause__`.
    """

    phase: Phase | None = None
    request_sent: bool | None = False
    bytes_sent: int = 0
    response_started: bool = False
    connection_reused: bool = False
    replay: Replay = "safe"
    host: str | None = None
    port: int | None = None
    backend: str | None = None
    http_version: str | None = None
    attempts: int = 0
    elapsed: float | None = None

    def __init__(
        self,
        message: str = "",
        *,
        phase: Phase | None = None,
        request_sent: bool | None = False,
        bytes_sent: int = 0,
        response_started: bool = False,
    ) -> None:
        super().__init__(message)
        if phase is not None:
            self.phase = phase
        self.request_sent = request_sent
        self.bytes_sent = bytes_sent
        self.response_started = response_started

    def __reduce__(self) -> tuple[Any, ...]:
        # A response holds a live connection, which cannot cross a process boundary.
        state = {name: value for name, value in self.__dict__.items() if name != "response"}
        return type(self), self.args, state


class InvalidRequest(TransportError):
    """The request cannot be sent as it is; the message names the field. Nothing was sent."""

    phase: Phase | None = "request"


class TransportClosed(TransportError):
    """The transport is closed, or was closed while the call waited for a connection."""


class UnsupportedOption(TransportError, ValueError):
    """The chosen backend cannot honour an option; raised when the transport is made."""


class BackendUnavailable(UnsupportedOption, ImportError):
    """No backend of that name is installed, or the library it needs is missing."""


class EgressDenied(TransportError):
    """Policy forbids connecting to the address."""


class PoolFull(TransportError):
    """More than `limits.max_waiting` calls already wait for a connection."""

    phase: Phase | None = "pool"


class TransportTimeout(TransportError, TimeoutError):
    """A deadline passed. `phase` says in which part of the exchange."""


class PoolTimeout(TransportTimeout):
    """No connection became free within `timeouts.pool` seconds."""

    phase: Phase | None = "pool"


class ConnectTimeout(TransportTimeout):
    """No connection within `timeouts.connect` seconds; `phase` is "dns", "connect" or "tls"."""

    phase: Phase | None = "connect"


class WriteTimeout(TransportTimeout):
    """The peer took no byte of the request for `timeouts.write` seconds."""

    phase: Phase | None = "write"


class HeadersTimeout(TransportTimeout):
    """The response head was not complete `timeouts.headers` seconds after the request was sent."""

    phase: Phase | None = "headers"


class ReadTimeout(TransportTimeout):
    """No byte of the response body came for `timeouts.read` seconds."""

    phase: Phase | None = "body"


class DeadlineExceeded(TransportTimeout):
    """The exchange was not over `timeouts.total` seconds after `send` was called."""


class ConnectionFailed(TransportError):
    """No connection could be made; not one byte of the request was sent."""

    phase: Phase | None = "connect"


class DNSError(ConnectionFailed):
    """The host name could not be resolved."""

    phase: Phase | None = "dns"


class ConnectError(ConnectionFailed):
    """The TCP (or Unix socket) connection was refused, reset or unreachable."""


class ProxyError(ConnectionFailed):
    """The proxy could not be reached, or refused to connect us to the origin."""

    phase: Phase | None = "proxy"


class TLSError(ConnectionFailed):
    """The TLS handshake failed."""

    phase: Phase | None = "tls"


class CertificateError(TLSError):
    """The server's certificate is not trusted, has expired, or is for another host."""


class NetworkError(TransportError):
    """The connection failed after the request had begun."""


class WriteError(NetworkError):
    """The connection failed while the request was being written."""

    phase: Phase | None = "write"


class RemoteDisconnected(NetworkError):
    """The peer ended the connection before any byte of the response."""

    phase: Phase | None = "headers"


class BodyTruncated(NetworkError):
    """The connection ended before the response was complete."""

    phase: Phase | None = "body"


class ReadError(NetworkError):
    """The connection failed while the response was being read."""

    phase: Phase | None = "body"


class RemoteProtocolError(TransportError):
    """The peer sent something that HTTP does not allow."""


class LimitExceeded(RemoteProtocolError):
    """The peer sent more than a limit allows, e.g. a head of a megabyte."""


class StreamReset(RemoteProtocolError):
    """The peer reset the HTTP/2 stream (RFC 9113 section 6.4); `code` is its error code."""

    code: int | None = None


class StreamRefused(RemoteProtocolError):
    """REFUSED_STREAM: the peer did not process the request (RFC 9113 section 8.7)."""


class GoAway(RemoteProtocolError):
    """The peer closed the HTTP/2 connection under the stream (RFC 9113 section 6.8)."""


class DecodeError(TransportError):
    """The body does not decode as its Content-Encoding says."""

    phase: Phase | None = "body"


class DecompressionLimit(DecodeError):
    """The body decodes to more than the limits allow."""


class HTTPStatusError(TransportError):
    """Raised by `Response.raise_for_status()` only: the status is 4xx or 5xx.

    `status_code` is the status; `response` is the response itself (not kept by pickle).
    """

    status_code: int
    response: Any = None
