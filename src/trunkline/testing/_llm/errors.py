"""How each API says no, and the requests that are to be refused.

This module knows the three error bodies and the headers that go with a "later". It does not know
which requests are good.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TypeAlias

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Refuse: TypeAlias = Callable[..., Response]

_BODILESS = frozenset({204, 205, 304})
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


# -- the three bodies ------------------------------------------------------------------------------


def openai_error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    kind, code = "invalid_request_error", None
    if status == 429:
        kind, code = "requests", "rate_limit_exceeded"
    elif status >= 500:
        kind = "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def anthropic_error(
    status: int,
    message: str,
    *,
    param: str | None = None,  # the message names it
    headers: dict[str, str] | None = None,
) -> Response:
    default = "api_error" if status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_KINDS.get(status, default)
    return JSONResponse(
        {"type": "error", "error": {"type": kind, "message": message}}, status, headers
    )


def google_error(
    status: int,
    message: str,
    *,
    param: str | None = None,  # the message names it
    headers: dict[str, str] | None = None,
) -> Response:
    name = _GOOGLE_STATUSES.get(status, "UNKNOWN")
    return JSONResponse(
        {"error": {"code": status, "message": message, "status": name}}, status, headers
    )


def refuse_for(request: Request) -> Refuse:
    """The way to say no to `request`, by the API that it is for."""
    path = request.url.path
    if path.startswith("/v1/messages") or "anthropic-version" in request.headers:
        return anthropic_error
    if path.startswith(("/v1beta/", "/upload/")) or "x-goog-api-key" in request.headers:
        return google_error
    return openai_error


def invalid(refuse: Refuse, error: ValidationError) -> Response:
    """A 400 that names the first field that is wrong."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return refuse(400, f"We could not parse the JSON body of your request: {first['msg']}")
    param = ".".join(str(step) for step in first["loc"])
    return refuse(400, f"{param or 'body'}: {first['msg']}", param=param or None)


# -- refusals --------------------------------------------------------------------------------------


class Refusals:
    """What has to be refused, whatever it asks. Told from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._status = 429
        self._retry_after = 0.0

    def set(self, next_n: int, retry_after: float, status: int) -> None:
        if next_n < 0:
            raise ValueError(f"next_n: {next_n} is negative")
        if not 400 <= status <= 599:
            raise ValueError(f"status: {status} is not one of an error")
        with self._lock:
            self._left = next_n
            self._status = status
            self._retry_after = check_delay("retry_after", retry_after)

    def of(self, request: Request) -> Response | None:
        """The answer to a request that is refused; None if it is let through."""
        refuse = refuse_for(request)
        wanted = request.headers.get("x-fail-status")
        if wanted is not None:
            return _as_asked(refuse, wanted)
        if not request.url.path.startswith(("/v1/", "/v1beta/")):
            return None
        with self._lock:
            if not self._left:
                return None
            self._left -= 1
            status, delay = self._status, self._retry_after
        headers = {"retry-after": str(math.ceil(delay)), "retry-after-ms": f"{delay * 1000:g}"}
        said = "Rate limit reached" if status == 429 else f"Refused with {status}"
        return refuse(status, f"{said}. Please try again in {delay:g}s.", headers=headers)


def _as_asked(refuse: Refuse, wanted: str) -> Response:
    if not (wanted.isascii() and wanted.isdigit() and 200 <= int(wanted) <= 599):
        return refuse(400, "x-fail-status: not a status from 200 to 599")
    if int(wanted) in _BODILESS:
        return Response(status_code=int(wanted))
    return refuse(int(wanted), f"The request asked for {wanted}")


def check_delay(name: str, value: float | str) -> float:
    """`value` as seconds.

    Raises:
        ValueError: it is not a finite number of seconds, zero or more.
    """
    try:
        seconds = float(value)
    except ValueError as exc:
        raise ValueError(f"{name}: not a number of seconds") from exc
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name}: {seconds} is not a finite number of seconds, zero or more")
    return seconds


def check_count(name: str, value: str) -> int:
    """`value` as a number of things.

    Raises:
        ValueError: it is not a whole number, one or more.
    """
    if not (value.isdecimal() and value.isascii() and len(value) < 7 and int(value)):
        raise ValueError(f"{name}: it is not a whole number from 1 to 999999")
    return int(value)
