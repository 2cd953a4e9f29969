"""From the exceptions of httpx and of what is under it to Trunkline's: a table for an exchange.

This module knows every exception that one can end with, and what it means at that point. It does
not know whether a request may be sent again: the pool decides that.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeAlias

import anyio
import h11

from trunkline import (
    ConnectError,
    ConnectTimeout,
    InvalidRequest,
    LimitExceeded,
    PoolTimeout,
    ProxyError,
    ReadTimeout,
    RemoteProtocolError,
    TransportError,
    WriteTimeout,
)
from trunkline.http1 import Course, causes

Make: TypeAlias = Callable[[BaseException, Course], TransportError]
Table: TypeAlias = tuple[tuple[type[Exception], Make], ...]

# No message of a library goes into one of ours: it may quote what was sent or received.


def say(error: type[TransportError], message: str) -> Make:
    """Make `error` with `message`, whatever the cause."""
    return lambda cause, course: error(message)


def _lost(error: BaseException, course: Course) -> TransportError:
    return course.lost()


def _of_the_socket(error: BaseException, course: Course) -> TransportError:
    return course.failure(error)


def _bad_response(error: BaseException, course: Course) -> TransportError:
    if course.ended:
        return course.lost()
    if getattr(error, "error_status_hint", 0) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return LimitExceeded("the response head, or the framing of its body, is too long")
    return RemoteProtocolError("the response is not valid HTTP/1.1")


def _no_connection(error: BaseException, course: Course) -> TransportError:
    return ConnectError(f"no connection: {type(error).__name__}")


def _broken(error: BaseException, course: Course) -> TransportError:
    return course.broken(error)


_UNDERNEATH: Table = (
    (h11.LocalProtocolError, say(InvalidRequest, "request: a header, or the length of the content,"
                                                  " is not valid HTTP")),
    (h11.RemoteProtocolError, _bad_response),
    (OSError, _of_the_socket),
    (anyio.ClosedResourceError, _of_the_socket),
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
        (core.ConnectionNotAvailable, _lost),
        *((getattr(each, name), make) for name, make in _OF_BOTH.items() for each in both),
        (client.TransportError, _broken),
    )


def translate(error: BaseException, table: Table, course: Course) -> TransportError | None:
    """Trunkline's error for one that `table` knows; None for any other, and for Trunkline's own."""
    if isinstance(error, TransportError):
        return None
    chain = list(causes(error))
    for kind, make in table:
        for cause in chain:
            if isinstance(cause, kind):
                return make(cause, course)
    return None
