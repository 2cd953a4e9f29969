"""OpenTelemetry: metrics, client spans and trace context for the requests of a transport.

This module knows what is hooked up where, and how it is undone. It does not know what is measured:
`_calls` knows requests, `_connections` connections.

The names are those of the semantic conventions for HTTP clients, and `http.client.request.\
time_in_queue` as .NET has it. `docs/observing.md` lists them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Protocol, runtime_checkable

from trunkline import (
    Event,
    Observer,
    Request,
    Response,
    Transport,
    UnsupportedOption,
    __version__ as version,
)

try:
    from opentelemetry import metrics, trace
    from opentelemetry.propagators.textmap import TextMapPropagator
except ModuleNotFoundError as error:
    raise ImportError(
        "trunkline.observe.otel needs opentelemetry-api: pip install 'trunkline[otel]'"
    ) from error

from trunkline.observe._calls import Calls
from trunkline.observe._connections import Connections


@runtime_checkable
class HasTransport(Protocol):
    """A `trunkline.Client`, or what else sends all its requests through one transport."""

    @property
    def transport(self) -> Transport: ...


@runtime_checkable
class _Observable(Protocol):
    """A transport that has events."""

    def observe(self, observer: Observer) -> Callable[[], None]: ...


class _Telemetry:
    """The observer: passes each event on to whom it concerns."""

    def __init__(self, calls: Calls, connections: Connections) -> None:
        self._calls = calls
        self._connections: Connections | None = connections

    def on_event(self, event: Event) -> None:
        # The connection first: a request that is over has given its connection back.
        if self._connections is not None:
            self._connections.on_event(event)
        self._calls.on_event(event)

    def stop_counting(self) -> None:
        """Report no connection any more."""
        if self._connections is not None:
            self._connections.reset()
            self._connections = None


def instrument(
    client_or_transport: HasTransport | Transport,
    *,
    meter_provider: metrics.MeterProvider | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    propagator: TextMapPropagator | None = None,
) -> Callable[[], None]:
    """Report every request and connection from now on, and send the trace context with requests.

    The request that the caller made is not changed: a copy of it carries the `traceparent` header.
    A span lasts until the response body has been read or given up. No query, no userinfo, no header
    and no body is reported.

    Connections that are open already are not counted: instrument before the first request. Of a
    client the present transport is instrumented: after `Client.reconfigure`, instrument it again.

    Args:
        meter_provider, tracer_provider: None for the global one.
        propagator: writes the headers; None for the global one, which writes those of W3C.

    Returns:
        A function that ends it: new requests are not reported, spans under way end in their time,
        and `http.client.open_connections` goes back to zero. Idempotent.

    Raises:
        UnsupportedOption: the transport has no events, as `MockTransport`.
        RuntimeError: it is instrumented already.
    """
    transport = (
        client_or_transport.transport
        if isinstance(client_or_transport, HasTransport)
        else client_or_transport
    )
    if not isinstance(transport, _Observable):
        raise UnsupportedOption(f"instrument: {transport.capabilities.name} has no events")
    if "send" in vars(transport):
        raise RuntimeError("the transport is instrumented already")
    meter = metrics.get_meter("trunkline", version, meter_provider)
    tracer = trace.get_tracer("trunkline", version, tracer_provider)
    calls = Calls(meter, tracer, propagator)
    telemetry = _Telemetry(calls, Connections(meter))
    stop_events = transport.observe(telemetry)
    # On the instance, over the method of its class: whoever holds the transport goes through it.
    vars(transport)["send"] = _traced(transport.send, calls)
    is_on = True

    def uninstrument() -> None:
        nonlocal is_on
        if is_on:
            is_on = False
            del vars(transport)["send"]
            telemetry.stop_counting()
            calls.when_over(stop_events)

    return uninstrument


def _traced(
    inner: Callable[[Request], Awaitable[Response]], calls: Calls
) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        call = calls.begin(request)
        try:
            response = await inner(calls.carried(request, call))
        except BaseException as error:
            # Most failures were told by an event; not those before the transport took the request.
            calls.end(call, monotonic(), type(error).__name__)
            raise
        response.request = request
        return response

    return send
