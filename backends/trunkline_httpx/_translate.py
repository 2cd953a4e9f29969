"""From the exceptions of httpx and of what is under it to Trunkline's: one table for opening a
connection, one for an exchange on it.

This module knows every exception that either can end with, and what it means at that point. It does
not know whether a request may be sent again: the pool decides that.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

import anyio
import h11

from trunkline import (
    BodyTruncated,
    CertificateError,
    ConnectError,
    ConnectTimeout,
    InvalidRequest,
    LimitExceeded,
    Phase,
    PoolTimeout,
    ProxyError,
    ReadError,
    ReadTimeout,
    RemoteDisconnected,
    RemoteProtocolError,
    TLSError,
    TransportError,
    WriteError,
    WriteTimeout,
)


@dataclass(frozen=True, slots=True)
class Course:
    """How far an exchange had come when it failed.

    Attributes:
        written: the request has been handed to the operating system.
        started: a byte of the response has arrived.
        in_head: the final head of the response is not complete.
        ended: the end of what the peer sends has arrived.
    """

    written: bool = False
    started: bool = False
    in_head: bool = False
    ended: bool = False


Make: TypeAlias = Callable[[BaseException, Course], TransportError]
Table: TypeAlias = tuple[tuple[type[Exception], Make], ...]

# No message of a library goes into one of ours: it may quote what was sent or received.


def say(error: type[TransportError], message: str) -> Make:
    """Make `error` with `message`, whatever the cause."""
    return lambda cause, course: error(message)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _disconnected(error: BaseException, course: Course) -> TransportError:
    if course.started:
        phase: Phase = "headers" if course.in_head else "body"
        return BodyTruncated("the peer ended the connection inside the response", phase=phase)
    return RemoteDisconnected("the peer ended the connection before any byte of the response")


def _broken(error: BaseException, course: Course) -> TransportError:
    if course.written or course.started:
        return ReadError(f"the connection failed under the response: {_reason(error)}")
    return WriteError(f"the connection failed under the request: {_reason(error)}")


def _bad_response(error: BaseException, course: Course) -> TransportError:
    if course.ended:
        return _disconnected(error, course)
    if getattr(error, "error_status_hint", 0) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return LimitExceeded("the response head, or the framing of its body, is too long")
    return RemoteProtocolError("the response is not valid HTTP/1.1")


def _not_tls(error: BaseException, course: Course) -> TransportError:
    # `reason` is OpenSSL's name of what went wrong, e.g. WRONG_VERSION_NUMBER.
    return TLSError(f"the TLS handshake failed: {getattr(error, 'reason', None) or 'no TLS'}")


def _bad_certificate(error: BaseException, course: Course) -> TransportError:
    message: str = getattr(error, "verify_message", "") or "it is not trusted"
    return CertificateError(f"the server's certificate: {message}")


def _no_connection(error: BaseException, course: Course) -> TransportError:
    return ConnectError(f"no connection: {_reason(error)}")


OPENING: Table = (
    (ssl.SSLCertVerificationError, _bad_certificate),
    (ssl.SSLError, _not_tls),
    (anyio.ClosedResourceError, _no_connection),
    (OSError, _no_connection),
    (ValueError, say(TLSError, "no certificate can be for a host of this name")),
)

_UNDERNEATH: Table = (
    (h11.LocalProtocolError, say(InvalidRequest, "request: a header, or the length of the content,"
                                                  " is not valid HTTP")),
    (h11.RemoteProtocolError, _bad_response),
    (ssl.SSLEOFError, _disconnected),
    (ConnectionError, _disconnected),
    (anyio.ClosedResourceError, _disconnected),
    (OSError, _broken),
)  # fmt: skip

_OF_BOTH: dict[str, Make] = {
    "LocalProtocolError": say(InvalidRequest, "request: it is not valid HTTP"),
    "UnsupportedProtocol": say(InvalidRequest, "url: it must start with http:// or https://"),
    "ProtocolError": _bad_response,
    "PoolTimeout": say(PoolTimeout, "httpx's own timeout"),
    "ConnectTimeout": say(ConnectTimeout, "httpx's own timeout"),
    "WriteTimeout": say(WriteTimeout, "httpx's own timeout"),
    "TimeoutException": say(ReadTimeout, "httpx's own timeout"),
    "ProxyError": say(ProxyError, "the proxy failed"),
    "ConnectError": _no_connection,
    "NetworkError": _broken,
}


def exchange_table(client: Any, core: Any) -> Table:
    """For an exchange by `client` on `core`, which are httpx and httpcore or their like.

    Most specific first, and what a library wraps before its wrapping.
    """
    both = (core, client)
    return (
        *_UNDERNEATH,
        (core.ConnectionNotAvailable, _disconnected),
        *((getattr(each, name), make) for name, make in _OF_BOTH.items() for each in both),
        (client.TransportError, _broken),
    )


def translate(error: BaseException, table: Table, course: Course) -> TransportError | None:
    """Trunkline's error for one that `table` knows; None for any other, and for Trunkline's own."""
    if isinstance(error, TransportError):
        return None
    causes = list(_causes(error))
    for kind, make in table:
        for cause in causes:
            if isinstance(cause, kind):
                return make(cause, course)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
