"""What an error says when there was no connection: the facts a retry needs, as a real one has them.

This module knows which facts go with which phase. It does not know who fails or why.
"""

from __future__ import annotations

from time import monotonic

from trunkline import (
    BodyTruncated,
    ConnectionFailed,
    ConnectTimeout,
    DecodeError,
    EgressDenied,
    GoAway,
    HeadersTimeout,
    InvalidRequest,
    NetworkError,
    Phase,
    PoolFull,
    PoolTimeout,
    ReadError,
    ReadTimeout,
    RemoteDisconnected,
    RemoteProtocolError,
    Request,
    Response,
    StreamRefused,
    StreamReset,
    TransportClosed,
    TransportError,
    UnsupportedOption,
    WriteError,
    WriteTimeout,
)
from trunkline.pool._attempt import verdict

_CONNECTING: tuple[Phase, ...] = ("connect", "dns", "proxy", "tls")
_EXCHANGING: tuple[Phase, ...] = ("headers", "write", "body")
# Where an error can happen; a class that is not here does as its base. The first is the usual one,
# unless the class itself says another.
_PHASES: dict[type[TransportError], tuple[Phase, ...]] = {
    TransportError: (*_EXCHANGING, "request", "pool", *_CONNECTING),
    InvalidRequest: ("request",),
    UnsupportedOption: ("request",),
    TransportClosed: ("pool", *_CONNECTING, *_EXCHANGING),
    PoolFull: ("pool",),
    PoolTimeout: ("pool",),
    EgressDenied: _CONNECTING,
    ConnectionFailed: _CONNECTING,
    ConnectTimeout: _CONNECTING,
    WriteTimeout: ("write",),
    HeadersTimeout: ("headers",),
    ReadTimeout: ("body",),
    NetworkError: _EXCHANGING,
    WriteError: ("write",),
    RemoteDisconnected: ("headers", "write"),
    BodyTruncated: ("body", "headers"),
    ReadError: ("body", "headers"),
    RemoteProtocolError: ("headers", "body"),
    StreamReset: _EXCHANGING,
    StreamRefused: ("headers", "write"),
    GoAway: ("write", "headers", "body"),
    DecodeError: ("body",),
}
_ON_A_CONNECTION = ("request", *_EXCHANGING)
_NEVER_TRIED = (InvalidRequest, UnsupportedOption)
_OF_HTTP2 = (GoAway, StreamRefused, StreamReset)
_INTERNAL_ERROR = 2  # RFC 9113 section 7


def phases_of(kind: type[TransportError]) -> tuple[Phase, ...]:
    """Where an error of class `kind` can happen, the usual phase first."""
    phases = next(_PHASES[base] for base in kind.__mro__ if base in _PHASES)
    usual = kind.phase or phases[0]
    return (usual, *(phase for phase in phases if phase != usual))


def head_size(request: Request) -> int:
    """Bytes of the request's head on an HTTP/1.1 wire."""
    lines = [f"{request.method} {request.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.wire_headers()]
    return sum(len(line.encode("utf-8", "surrogateescape")) + 2 for line in lines) + 2


def sent_size(request: Request) -> int:
    """`head_size`, and the body as far as its size is known."""
    body = len(request.content) if isinstance(request.content, bytes) else 0
    return head_size(request) + body


def place(error: TransportError, request: Request, backend: str, started: float) -> None:
    """Write into `error` where and when it happened. `started` is `time.monotonic()`."""
    error.host, error.port = request.origin.host, request.origin.port
    error.backend = backend
    error.elapsed = monotonic() - started


def happened(
    kind: type[TransportError],
    message: str,
    request: Request,
    phase: Phase | None = None,
    response: Response | None = None,
) -> TransportError:
    """An error of class `kind` with the facts of one that happened in `phase`.

    Args:
        phase: None for the usual one of the class.
        response: the one that it took the place of, if any.
    """
    error = kind(message, phase=phase or phases_of(kind)[0])
    tell(error, request)
    if response is not None:
        error.connection_reused = bool(response.connection and response.connection.reused)
        if not isinstance(error, _OF_HTTP2):
            error.http_version = response.http_version
    return error


def tell(error: TransportError, request: Request) -> None:
    """Write into `error` the facts of one that happened in its phase."""
    if isinstance(error, _NEVER_TRIED):
        return
    error.phase = error.phase or "headers"
    if error.phase in _ON_A_CONNECTION:
        is_sent = error.phase in ("headers", "body")
        error.attempts = 1
        error.http_version = "HTTP/2" if isinstance(error, _OF_HTTP2) else "HTTP/1.1"
        error.request_sent = True if is_sent else None
        error.bytes_sent = sent_size(request) if is_sent else head_size(request)
        error.response_started = error.phase == "body" or _is_of_a_broken_head(error)
        if isinstance(error, StreamReset) and error.code is None:
            error.code = _INTERNAL_ERROR
        if isinstance(error, GoAway) and is_sent:
            error.replay = "if_idempotent"  # of a stream that the peer had begun
    error.replay = verdict(error)


def _is_of_a_broken_head(error: TransportError) -> bool:
    """Whether it takes a byte of the response for it to happen at "headers"."""
    is_broken = isinstance(error, (RemoteProtocolError, BodyTruncated))
    return error.phase == "headers" and is_broken and not isinstance(error, _OF_HTTP2)
