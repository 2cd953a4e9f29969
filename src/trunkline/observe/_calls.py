"""Requests: their spans, their durations, how many are under way, and how long they queued.

This module knows the life of one request. It does not know connections.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time_ns

from multidict import CIMultiDict
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import Setter, TextMapPropagator
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from trunkline import Event, Request, Response
from trunkline.observe._attributes import (
    OTHER_METHOD,
    SECONDS,
    Attributes,
    known_methods,
    of_origin,
    of_peer,
    of_response,
)


class Call:
    """A request under way. `attributes` are those that every metric has."""

    __slots__ = ("attempts", "attributes", "context", "of_peer", "of_response",
                 "queued_at", "span", "started", "started_ns")  # fmt: skip

    def __init__(self, attributes: Attributes, span: Span, started_ns: int) -> None:
        self.attributes = attributes
        self.span = span
        self.context: Context = set_span_in_context(span)
        self.started_ns = started_ns
        self.started = self.queued_at = monotonic()
        self.attempts = 0
        self.of_response: Attributes = {}
        self.of_peer: Attributes = {}

    def learn(self, response: Response) -> None:
        """What is to be told of the response; the call does not hold it, or it held itself."""
        self.of_response = of_response(response)
        self.of_peer = of_peer(response.connection)


class CarriedRequest(Request):
    """What is sent in the place of the caller's request; by it an event finds its call."""

    __slots__ = ("call",)

    call: Call


class _Headers(Setter[CIMultiDict[str]]):
    """Writes the context of a trace into header fields, in the place of those of that name."""

    def set(self, carrier: CIMultiDict[str], key: str, value: str) -> None:
        carrier[key] = value


class Calls:
    """Reports requests. `begin` and `end` are for who sends one; the rest comes from events."""

    def __init__(self, meter: Meter, tracer: Tracer, propagator: TextMapPropagator | None) -> None:
        self._tracer = tracer
        self._propagator = propagator
        self._known_methods = known_methods()
        self._under_way: set[Call] = set()
        self._when_over: Callable[[], None] | None = None
        self._active = meter.create_up_down_counter(
            "http.client.active_requests", "{request}", "Number of active HTTP requests."
        )
        self._duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._queued = meter.create_histogram(
            "http.client.request.time_in_queue",
            "s",
            "The amount of time requests spent on a queue waiting for an available connection.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )

    def begin(self, request: Request) -> Call:
        is_known = request.method in self._known_methods
        method = request.method if is_known else OTHER_METHOD
        attributes: Attributes = {"http.request.method": method, **of_origin(request.origin)}
        of_span: Attributes = {**attributes, "url.full": _shown_url(request)}
        if not is_known:
            of_span["http.request.method_original"] = request.method
        now = time_ns()
        span = self._tracer.start_span(
            method if is_known else "HTTP",
            kind=SpanKind.CLIENT,
            attributes=of_span,
            start_time=now,
        )
        call = Call(attributes, span, now)
        self._under_way.add(call)
        self._active.add(1, attributes, call.context)
        return call

    def carried(self, request: Request, call: Call) -> CarriedRequest:
        """A copy of `request` that carries the context of the span."""
        headers = CIMultiDict(request.headers)
        (self._propagator or get_global_textmap()).inject(headers, call.context, _Headers())
        copy = CarriedRequest(
            request.method,
            request.url,
            headers=headers,
            content=request.content,
            timeouts=request.timeouts,
            idempotent=request.idempotent,
            priority=request.priority,
        )
        copy.call = call
        return copy

    def on_event(self, event: Event) -> None:
        if not isinstance(event.request, CarriedRequest):
            return
        call = event.request.call
        match event.step, event.is_end:
            case "queue", False:
                call.queued_at = event.at
            case "queue", True:
                self._queued.record(event.at - call.queued_at, call.attributes, call.context)
            case "headers", False:
                call.attempts += 1
            case "body", False if event.response is not None:
                call.learn(event.response)
            case "request", True:
                self.end(call, event.at, event.error)
            case _:
                pass

    def end(self, call: Call, at: float, error: str | None) -> None:
        """The request is over, at `at` of the monotonic clock. A second call does nothing."""
        if call not in self._under_way:
            return
        self._under_way.discard(call)
        seconds, outcome = at - call.started, call.of_response
        if error is not None:
            outcome["error.type"] = error
        self._active.add(-1, call.attributes, call.context)
        self._duration.record(seconds, {**call.attributes, **outcome}, call.context)
        span = call.span
        span.set_attributes({**outcome, **call.of_peer})
        if call.attempts > 1:
            span.set_attribute("http.request.resend_count", call.attempts - 1)
        if "error.type" in outcome:
            span.set_status(StatusCode.ERROR)
        # By the monotonic clock, so that span and metric tell the same.
        span.end(call.started_ns + round(seconds * 1e9))
        if self._when_over is not None:
            self.when_over(self._when_over)

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call back once no request is under way; there will be no new ones."""
        self._when_over = callback if self._under_way else None
        if not self._under_way:
            callback()


def _shown_url(request: Request) -> str:
    """The URL without its query, where keys and signatures are; it never has userinfo."""
    return f"{request.origin}{request.path.partition('?')[0]}"
