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
from typing import TypeAlias, TypeVar

import anyio
import h11
import httpcore
import httpx

from trunkline import (
    BodyTruncated,
    CertificateError,
    ConnectError,
    ConnectTimeout,
    InvalidRequest,
    LimitExceeded,
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
        ended: the end of what the peer sends has arrived.
    """

    written: bool
    started: bool
    ended: bool


E = TypeVar("E", bound=TransportError)
Make: TypeAlias = Callable[[BaseException, Course], TransportError]

# No message of a library goes into one of ours: it may quote what was sent or received.


def _say(error: type[TransportError], message: str) -> Make:
    return lambda _, course: error(message)


def _disconnected(_: BaseException, course: Course) -> TransportError:
    if course.started:
        return BodyTruncated("the peer ended the connection inside the response")
    return RemoteDisconnected("the peer ended the connection before any byte of the response")


def _broken(error: BaseException, course: Course) -> TransportError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    if course.written or course.started:
        return ReadError(f"the connection failed while the response was read: {reason}")
    return WriteError(f"the connection failed while the request was written: {reason}")


def _bad_response(error: BaseException, course: Course) -> TransportError:
    if course.ended:
        return _disconnected(error, course)
    if getattr(error, "error_status_hint", 0) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return LimitExceeded("the response head, or the framing of its body, is too long")
    return RemoteProtocolError("the response is not valid HTTP/1.1")


def _timed_out(error: type[TransportError]) -> Make:
    return _say(error, "the library's own timeout")


_BAD_REQUEST = _say(
    InvalidRequest, "request: a header, or the length of the content, is not valid HTTP (RFC 9112)"
)

EXCHANGE: tuple[tuple[type[Exception], Make], ...] = (
    (h11.LocalProtocolError, _BAD_REQUEST),
    (h11.RemoteProtocolError, _bad_response),
    (ssl.SSLEOFError, _disconnected),
    (ConnectionError, _disconnected),
    (anyio.ClosedResourceError, _disconnected),
    (OSError, _broken),
    (httpcore.ConnectionNotAvailable, _disconnected),
    (httpcore.LocalProtocolError, _BAD_REQUEST),
    (httpx.LocalProtocolError, _BAD_REQUEST),
    (httpcore.UnsupportedProtocol, _BAD_REQUEST),
    (httpx.UnsupportedProtocol, _BAD_REQUEST),
    (httpcore.ProtocolError, _bad_response),
    (httpx.ProtocolError, _bad_response),
    (httpcore.PoolTimeout, _timed_out(PoolTimeout)),
    (httpx.PoolTimeout, _timed_out(PoolTimeout)),
    (httpcore.ConnectTimeout, _timed_out(ConnectTimeout)),
    (httpx.ConnectTimeout, _timed_out(ConnectTimeout)),
    (httpcore.WriteTimeout, _timed_out(WriteTimeout)),
    (httpx.WriteTimeout, _timed_out(WriteTimeout)),
    (httpcore.TimeoutException, _timed_out(ReadTimeout)),
    (httpx.TimeoutException, _timed_out(ReadTimeout)),
    (httpcore.ProxyError, _say(ProxyError, "the proxy failed")),
    (httpx.ProxyError, _say(ProxyError, "the proxy failed")),
    (httpcore.ConnectError, _say(ConnectError, "no connection")),
    (httpx.ConnectError, _say(ConnectError, "no connection")),
    (httpcore.NetworkError, _broken),
    (httpx.NetworkError, _broken),
    (httpx.TransportError, _broken),
)
"""Most specific first; what a library wraps comes before the wrapping."""
