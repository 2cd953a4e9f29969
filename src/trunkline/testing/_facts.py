"""What an error says when there was no connection: the facts a retry needs, as a real one has them.

This module knows which facts go with which phase. It does not know who fails or why.
"""

from __future__ import annotations

from time import monotonic

from trunkline import (
    EgressDenied,
    GoAway,
    InvalidRequest,
    Phase,
    Request,
    StreamRefused,
    StreamReset,
    TransportClosed,
    TransportError,
    UnsupportedOption,
)
from trunkline.pool._attempt import verdict

_ON_A_CONNECTION = ("request", "write", "headers", "body")
_NEVER_TRIED = (EgressDenied, InvalidRequest, TransportClosed, UnsupportedOption)
_OF_HTTP2 = (GoAway, StreamRefused, StreamReset)


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
    kind: type[TransportError], message: str, request: Request, phase: Phase | None = None
) -> TransportError:
    """An error of class `kind` with the facts of one that happened in `phase`.

    Args:
        phase: None for the usual one of the class.
    """
    error = kind(message, phase=phase)
    tell(error, request)
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
        error.response_started = error.phase == "body"
    error.replay = verdict(error)
