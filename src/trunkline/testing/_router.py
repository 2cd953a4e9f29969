"""`Router`: answers by method, URL and what else a request says, for `MockTransport`.

This module knows routes and their answers. It does not know how a route tells that a request is its
own, nor anything of transports but that a mock one calls it.
"""

from __future__ import annotations

import inspect
import json as jsonlib
import re
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, TypeAlias, cast

from trunkline import HTTPStatusError, Request, Response, ServerSentEvent, TransportError
from trunkline.testing._facts import happened, place
from trunkline.testing._mock import Handler, MockTransport, as_response
from trunkline.testing._pattern import JSON, Pattern, Patterns, Predicate, URLPattern
from trunkline.testing._received import Chunks, ReceivedRequest, UnexpectedRequest, receive
from trunkline.testing._redaction import Redaction, Redactor
from trunkline.testing._shown import redact

Failure: TypeAlias = BaseException | type[BaseException]
SSE: TypeAlias = Sequence[str | ServerSentEvent | Mapping[str, Any] | list[Any]]

_UNSET: Any = object()
_BODILESS = frozenset({204, 205, 304})
_NEWLINE = re.compile(r"\r\n|\r|\n")  # each ends a line of an event stream


class Route:
    """What to answer to the requests that match. Made by `Router.route` and its short forms.

    Each of `respond`, `raises` and `side_effect` adds one answer; they are given in turn, and the
    last one again and again. A route without any answers 200 with no body.

    Attributes:
        calls: the requests that came here, in order, with their bodies read.
    """

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._answers: list[Handler] = []
        self.calls: list[ReceivedRequest] = []

    @property
    def called(self) -> bool:
        return bool(self.calls)

    @property
    def call_count(self) -> int:
        return len(self.calls)

    def respond(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        json: Any = _UNSET,
        text: str | None = None,
        content: bytes | Sequence[bytes] | None = None,
        sse: SSE | None = None,
    ) -> Route:
        """Answer with a response. At most one of `json`, `text`, `content`, `sse`.

        Args:
            content: bytes, or the pieces of a body that is streamed.
            sse: events, each a piece of its own: the data as text or as what JSON makes of it, or
                a `ServerSentEvent`.
        """
        bodies = {"json": json, "text": text, "content": content, "sse": sse}
        given = [name for name, value in bodies.items() if value not in (None, _UNSET)]
        if json is None:
            given.append("json")
        if len(given) > 1:
            raise TypeError(f"give one body, not both: {', '.join(given)}")
        body, content_type = _body(given[0], bodies[given[0]]) if given else (b"", None)
        fields = dict(headers or {})
        present = {name.lower() for name in fields}
        if content_type is not None and "content-type" not in present:
            fields["Content-Type"] = content_type
        has_length = isinstance(body, bytes) and status >= 200 and status not in _BODILESS
        if has_length and "content-length" not in present:
            fields["Content-Length"] = str(len(body))
        Response(status, headers=fields)  # refuses now what could not be answered later

        def answer(request: Request) -> Response:
            if request.method == "HEAD":
                return Response(status, headers=fields)
            pieces = body if isinstance(body, bytes) else Chunks(body)
            return Response(status, headers=fields, content=pieces)

        return self.side_effect(answer)

    def raises(self, error: Failure) -> Route:
        """Answer with an error.

        Args:
            error: an exception, raised as it is; or a class. An error of Trunkline's own made from
                its class has the facts (`phase`, `bytes_sent`, `replay` ...) of a real one.
        """
        if isinstance(error, type) and issubclass(error, HTTPStatusError):
            raise TypeError("raises: a status is no error of a transport; give respond(404), say")

        def answer(request: Request) -> Response:
            if isinstance(error, type) and issubclass(error, TransportError):
                made = happened(error, "raised by a route of the test", request)
                place(made, request, MockTransport.capabilities.name, started=monotonic())
                raise made
            raise error

        return self.side_effect(answer)

    def side_effect(self, handler: Handler) -> Route:
        """Answer by calling `handler`, as `MockTransport` does, with a `ReceivedRequest`."""
        self._answers.append(handler)
        return self

    def differences(
        self, request: ReceivedRequest, shown: ReceivedRequest | None = None
    ) -> list[str]:
        """What about `request` is not as this route wants it; empty where it matches.

        Args:
            shown: the same request as it may be shown; None for as it is.
        """
        return self._pattern.differences(request, shown)

    async def answer(self, request: ReceivedRequest) -> Response:
        self.calls.append(request)
        if not self._answers:
            return Response(200)
        handler = self._answers[min(len(self.calls), len(self._answers)) - 1]
        answer = handler(request)
        if inspect.isawaitable(answer):
            answer = await answer
        return as_response(answer)

    def __repr__(self) -> str:
        return f"<Route {self._pattern}>"


class Router:
    """Routes for `MockTransport`: the first one that matches, in the order they were made, answers.

    `Client(transport=router.transport)` or `MockTransport(router)`. A request body is read to its
    end before the routes see it.

    Attributes:
        calls: every request, in order, those that nothing matched included.
        unexpected: those that nothing matched; each raised `UnexpectedRequest`.
    """

    def __init__(self) -> None:
        self._routes: list[Route] = []
        self.calls: list[ReceivedRequest] = []
        self.unexpected: list[ReceivedRequest] = []

    def route(
        self,
        method: str | None = None,
        url: URLPattern = None,
        *,
        host: str | None = None,
        params: Patterns | None = None,
        headers: Patterns | None = None,
        json: JSON = None,
        where: Predicate | None = None,
    ) -> Route:
        """A route for the requests that meet every condition given.

        Args:
            method: e.g. "POST".
            url: a path ("/v1/models/*") or a whole URL ("https://api.example.com/v1/models"),
                where `*` stands for anything but a slash and a query is what `params` is; or a
                compiled pattern, searched for in the whole URL.
            host: e.g. "api.example.com", or "*.example.com".
            params: of the query, each a text, several in a list, or a compiled pattern; there may
                be more in the request.
            headers: the same for header fields.
            json: what the body holds as JSON. Of objects the keys given count: there may be more.
            where: called with the `ReceivedRequest`; whether it is the route's.
        """
        route = Route(Pattern(method, url, host, params, headers, json, where))
        self._routes.append(route)
        return route

    def get(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("GET", ...)`."""
        return self.route("GET", url, **conditions)

    def head(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("HEAD", ...)`."""
        return self.route("HEAD", url, **conditions)

    def post(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("POST", ...)`."""
        return self.route("POST", url, **conditions)

    def put(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("PUT", ...)`."""
        return self.route("PUT", url, **conditions)

    def patch(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("PATCH", ...)`."""
        return self.route("PATCH", url, **conditions)

    def delete(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("DELETE", ...)`."""
        return self.route("DELETE", url, **conditions)

    def options(self, url: URLPattern = None, **conditions: Any) -> Route:
        """`route("OPTIONS", ...)`."""
        return self.route("OPTIONS", url, **conditions)

    @property
    def called(self) -> bool:
        return bool(self.calls)

    @property
    def call_count(self) -> int:
        return len(self.calls)

    @property
    def transport(self) -> MockTransport:
        """A new transport on this router: a client closes the one it was given.

        `MockTransport(router, timeouts=...)` is one with deadlines other than the defaults.
        """
        return MockTransport(self)

    async def __call__(self, request: Request) -> Response:
        """Answer as the first route that matches.

        Raises:
            UnexpectedRequest: none does; it says what each would have matched.
        """
        received = await receive(request)
        self.calls.append(received)
        for route in self._routes:
            if not route.differences(received):
                return await route.answer(received)
        self.unexpected.append(received)
        raise UnexpectedRequest(self._explain(received))

    def _explain(self, request: ReceivedRequest) -> str:
        shown = redact(request, Redactor(Redaction()))
        if not self._routes:
            return f"{shown.method} {shown.url}: the router has no routes"
        found = [(route.differences(request, shown), route) for route in self._routes]
        found.sort(key=lambda pair: len(pair[0]))
        lines = [f"  {route!r}: {'; '.join(differences)}" for differences, route in found]
        return "\n".join([f"no route matches {shown.method} {shown.url}", *lines])

    def assert_all_called(self) -> None:
        """Raise AssertionError if a route was not called; it names them."""
        idle = [repr(route) for route in self._routes if not route.called]
        if idle:
            raise AssertionError(f"not called: {', '.join(idle)}")

    def assert_all_expected(self) -> None:
        """Raise AssertionError if there were requests that nothing matched; it names them.

        For where the code under test may have caught the `UnexpectedRequest`.
        """
        if self.unexpected:
            raise AssertionError("\n".join(map(self._explain, self.unexpected)))


def _body(name: str, value: Any) -> tuple[bytes | list[bytes], str | None]:
    if name == "json":
        return _dump(value).encode(), "application/json"
    if name == "text":
        return cast("str", value).encode(), "text/plain; charset=utf-8"
    if name == "sse":
        return [_event(one).encode() for one in value], "text/event-stream"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(cast("bytes", value)), None
    pieces: list[Any] = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(piece, bytes) for piece in pieces):
        raise TypeError("content: give bytes, or a list of bytes; text goes into text=")
    return pieces, None


def _event(event: Any) -> str:
    if not isinstance(event, ServerSentEvent):
        event = ServerSentEvent(data=event if isinstance(event, str) else _dump(event))
    fields = [("event", event.event)] if event.event != "message" else []
    if event.id:
        fields.append(("id", event.id))
    if event.retry is not None:
        fields.append(("retry", str(event.retry)))
    fields += [("data", line) for line in _NEWLINE.split(event.data)]
    return "".join(f"{field}: {value}\n" for field, value in fields) + "\n"


def _dump(value: Any) -> str:
    return jsonlib.dumps(value, ensure_ascii=False, separators=(",", ":"))
