"""What OpenTelemetry's own SDK is told of requests, connections and traces, and that it is exact.

Knows the SDK's readers and exporters in memory, and servers on real sockets. Does not know how
`trunkline.observe` finds it out.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import baggage, propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import attach, detach
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, MetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, generate_latest

import trunkline
from trunkline import Client, Event, Limits, Request, Timeouts, Tls, TransportConfig
from trunkline.observe.otel import HasTransport, instrument
from trunkline.testing import LLMServer, MockTransport
from trunkline_aiohttp import AiohttpTransport

pytestmark = pytest.mark.anyio

BACKENDS = ("aiohttp", "httpx")
STREAMED = {
    "model": "demo",
    "stream": True,
    "messages": [{"role": "user", "content": "one two three"}],
}
SLOW = {"x-token-delay": "30"}

every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Generator[LLMServer]:
    with LLMServer() as running:
        yield running


@pytest.fixture(scope="module")
def http2_server() -> Generator[LLMServer]:
    with LLMServer(tls=True, http2=True) as running:
        yield running


def trusting(server: LLMServer) -> Tls:
    assert server.ca_file is not None
    return Tls(ca_file=Path(server.ca_file))


class Point(NamedTuple):
    """What was measured under one set of attributes. `value` is a histogram's sum."""

    attributes: Mapping[str, Any]
    value: float
    samples: int
    bounds: tuple[float, ...]


class Telemetry:
    """The SDK, in memory."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self.reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def on(self, target: HasTransport | trunkline.Transport) -> Any:
        return instrument(target, meter_provider=self.meters, tracer_provider=self.tracers)

    def points(self, name: str) -> list[Point]:
        return [point for metric, point in self.everything() if metric == f"http.client.{name}"]

    def everything(self) -> list[tuple[str, Point]]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            (metric.name, as_point(point))
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]

    def point(self, name: str) -> Point:
        (point,) = self.points(name)
        return point

    def open_connections(self) -> dict[str, float]:
        counts = {"active": 0.0, "idle": 0.0}
        for point in self.points("open_connections"):
            counts[point.attributes["http.connection.state"]] += point.value
        return counts

    @property
    def active_requests(self) -> float:
        return sum(point.value for point in self.points("active_requests"))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span


def as_point(point: Any) -> Point:
    if isinstance(point, HistogramDataPoint):
        return Point(point.attributes or {}, point.sum, point.count, tuple(point.explicit_bounds))
    return Point(point.attributes or {}, point.value, 0, ())


@pytest.fixture
def telemetry() -> Generator[Telemetry]:
    made = Telemetry()
    yield made
    made.meters.shutdown()
    made.tracers.shutdown()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nok"
DROPPED = b""


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncGenerator[str]:
    """A server that gives these answers, one to a request, and then hangs up at each request."""
    left = list(answers)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        with suppress(anyio.BrokenResourceError):
            async with stream:
                async for _ in stream:
                    answer = left.pop(0) if left else DROPPED
                    await stream.send(answer)
                    if answer in (CUT, DROPPED):
                        return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{port}"
        group.cancel_scope.cancel()


# -- metrics of requests ---------------------------------------------------------------------------


@every_backend
async def test_a_request_is_measured_with_the_attributes_of_the_conventions(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(backend=backend) as client:
        telemetry.on(client)
        await client.post(f"{server.url}/echo?key=1")

    measured = telemetry.point("request.duration")
    assert measured.attributes == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
    }
    assert measured.samples == 1
    assert measured.bounds == (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5,
                               7.5, 10)  # fmt: skip


@pytest.mark.parametrize("status", [404, 503])
async def test_an_error_status_is_the_type_of_the_error(
    status: int, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client() as client:
        telemetry.on(client)
        await client.get(server.url, headers={"x-fail-status": str(status)})

    attributes = telemetry.point("request.duration").attributes
    assert attributes["http.response.status_code"] == status
    assert attributes["error.type"] == str(status)
    assert telemetry.span.status.status_code is StatusCode.ERROR
    assert telemetry.span.status.description is None


async def test_an_unknown_method_is_no_attribute_of_its_own(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client() as client:
        telemetry.on(client)
        await client.request("PROPFIND", f"{server.url}/echo")

    assert telemetry.point("request.duration").attributes["http.request.method"] == "_OTHER"
    span = telemetry.span
    assert span.name == "HTTP"
    assert span.attributes is not None
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "PROPFIND"


async def test_the_environment_says_which_methods_are_known(
    server: LLMServer, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "PROPFIND, GET")
    async with Client() as client:
        telemetry.on(client)
        await client.request("PROPFIND", f"{server.url}/echo")
        await client.post(f"{server.url}/echo")

    assert [span.name for span in telemetry.spans] == ["PROPFIND", "HTTP"]


async def test_a_request_is_active_until_its_body_is_over(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(base_url=server.base_url) as client:
        telemetry.on(client)
        async with client.stream("POST", "/chat/completions", json=STREAMED, headers=SLOW):
            assert telemetry.active_requests == 1
            assert telemetry.points("request.duration") == []
            assert telemetry.spans == ()
        assert telemetry.active_requests == 0
        assert telemetry.point("request.duration").samples == 1

    # Giving up the rest of a stream is no error.
    assert telemetry.span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(("backend", "loop"), [*((b, "asyncio") for b in BACKENDS),
                                               ("httpx", "trio")])  # fmt: skip
def test_a_cancelled_request_is_an_error_of_that_name(
    backend: str, loop: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async def main() -> None:
        async with Client(backend=backend, base_url=server.base_url) as client:
            telemetry.on(client)
            with anyio.CancelScope() as scope:
                async with client.stream(
                    "POST", "/chat/completions", json=STREAMED, headers=SLOW
                ) as response:
                    scope.cancel()
                    await response.aread()
            assert telemetry.open_connections() == {"active": 0, "idle": 0}

    anyio.run(main, backend=loop)
    name = {"asyncio": "CancelledError", "trio": "Cancelled"}[loop]
    attributes = telemetry.point("request.duration").attributes
    assert (attributes["error.type"], attributes["http.response.status_code"]) == (name, 200)
    assert telemetry.active_requests == 0
    assert telemetry.span.status.status_code is StatusCode.ERROR


@pytest.mark.trunkline_may_leak
@every_backend
async def test_a_response_that_is_dropped_ends_its_span(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(backend=backend, base_url=server.base_url) as client:
        telemetry.on(client)
        responses = [await client.send(client.build_request("GET", "/models"))]
        with pytest.warns(ResourceWarning, match="unclosed response"):
            responses.clear()
        await anyio.lowlevel.checkpoint()
        assert telemetry.active_requests == 0
        assert_exact(telemetry, client)

    assert (telemetry.span.attributes or {})["http.response.status_code"] == 200


@every_backend
async def test_a_failure_before_any_response_has_no_status(
    backend: str, telemetry: Telemetry
) -> None:
    async with serving(DROPPED) as url, Client(backend=backend) as client:
        telemetry.on(client)
        with pytest.raises(trunkline.RemoteDisconnected):
            await client.post(url)

    attributes = telemetry.point("request.duration").attributes
    assert attributes["error.type"] == "RemoteDisconnected"
    assert "http.response.status_code" not in attributes
    assert telemetry.active_requests == 0
    assert telemetry.span.status.status_code is StatusCode.ERROR


@every_backend
async def test_a_body_that_ends_early_is_an_error_after_a_status(
    backend: str, telemetry: Telemetry
) -> None:
    async with serving(CUT) as url, Client(backend=backend) as client:
        telemetry.on(client)
        with pytest.raises(trunkline.BodyTruncated):
            await client.get(url)

    attributes = telemetry.point("request.duration").attributes
    assert attributes["error.type"] == "BodyTruncated"
    assert attributes["http.response.status_code"] == 200


async def test_a_request_that_the_transport_does_not_take_is_counted_too(
    server: LLMServer, telemetry: Telemetry
) -> None:
    client = Client()
    telemetry.on(client)
    await client.aclose()
    with pytest.raises(trunkline.TransportClosed):
        await client.get(server.url)

    assert telemetry.point("request.duration").attributes["error.type"] == "TransportClosed"
    assert telemetry.active_requests == 0
    assert len(telemetry.spans) == 1


async def test_the_time_in_the_queue_is_measured_for_those_who_wait(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(base_url=server.base_url, limits=Limits(max_connections=1)) as client:
        telemetry.on(client)
        async with client.stream("POST", "/chat/completions", json=STREAMED, headers=SLOW):
            assert telemetry.points("request.time_in_queue") == []
            with pytest.raises(trunkline.PoolTimeout):
                await client.get("/models", timeouts=Timeouts(pool=0.02))

    measured = telemetry.point("request.time_in_queue")
    assert measured.samples == 1
    assert measured.value >= 0.015
    assert measured.attributes == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.scheme": "http",
    }


# -- metrics of connections ------------------------------------------------------------------------


def assert_exact(telemetry: Telemetry, client: Client) -> None:
    now = client.snapshot()
    assert telemetry.open_connections() == {"active": now.active, "idle": now.idle}


@every_backend
async def test_connections_are_counted_by_state(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(backend=backend, base_url=server.base_url) as client:
        telemetry.on(client)
        await client.warm(connections=2)
        assert telemetry.open_connections() == {"active": 0, "idle": 2}
        await client.get("/models")
        assert telemetry.open_connections() == {"active": 0, "idle": 2}
        async with client.stream("POST", "/chat/completions", json=STREAMED, headers=SLOW):
            assert telemetry.open_connections() == {"active": 1, "idle": 1}
        assert telemetry.open_connections() == {"active": 0, "idle": 1}
        assert_exact(telemetry, client)
    assert telemetry.open_connections() == {"active": 0, "idle": 0}


async def test_the_counts_of_connections_have_the_attributes_of_the_conventions(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(base_url=server.base_url) as client:
        telemetry.on(client)
        await client.get("/models")

    found = {json.dumps(dict(point.attributes)) for point in telemetry.points("open_connections")}
    origin = {"server.address": "127.0.0.1", "server.port": server.port, "url.scheme": "http"}
    assert found == {
        json.dumps({"http.connection.state": state, **origin}) for state in ("active", "idle")
    }


async def test_an_http2_connection_is_active_while_it_carries_an_exchange(
    http2_server: LLMServer, telemetry: Telemetry
) -> None:
    tls = trusting(http2_server)
    url = f"{http2_server.base_url}/chat/completions"
    async with Client(backend="httpx", http2=True, tls=tls) as client:
        telemetry.on(client)
        async with client.stream("POST", url, json=STREAMED, headers=SLOW):
            async with client.stream("POST", url, json=STREAMED, headers=SLOW):
                assert telemetry.open_connections() == {"active": 1, "idle": 0}
            assert telemetry.open_connections() == {"active": 1, "idle": 0}
        assert telemetry.open_connections() == {"active": 0, "idle": 1}
        assert_exact(telemetry, client)

    assert [(span.attributes or {})["network.protocol.version"] for span in telemetry.spans] == [
        "2",
        "2",
    ]


@every_backend
async def test_the_duration_of_a_connection_is_measured_at_its_end(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(backend=backend, base_url=server.base_url) as client:
        telemetry.on(client)
        await client.get("/models")
        await client.get("/models")
        assert telemetry.points("connection.duration") == []

    measured = telemetry.point("connection.duration")
    assert measured.samples == 1
    assert measured.attributes == {
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
    }
    assert measured.bounds == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


async def cancel_at_random(client: Client, url: str, calls: int, random: Random) -> None:
    """Calls, ten at a time, each given up after a while: some in the queue, some when answered."""
    places = anyio.CapacityLimiter(10)

    async def call(seconds: float, delay: str) -> None:
        async with places:
            with anyio.move_on_after(seconds):
                await client.post(url, json=STREAMED, headers={"x-token-delay": delay})

    async with anyio.create_task_group() as group:
        for _ in range(calls):
            group.start_soon(call, random.uniform(0, 0.02), random.choice(["0", "0.002"]))


async def watch_the_total(client: Client, telemetry: Telemetry) -> None:
    """Which is exact at every moment; the states are when no task is about to run."""
    while True:
        assert sum(telemetry.open_connections().values()) == client.snapshot().open
        await anyio.sleep(0.002)


@pytest.mark.parametrize(
    ("backend", "http2"), [("aiohttp", False), ("httpx", False), ("httpx", True)]
)
async def test_the_counts_are_exact_after_a_storm_of_cancellations(
    backend: str, http2: bool, server: LLMServer, http2_server: LLMServer, telemetry: Telemetry
) -> None:
    target = http2_server if http2 else server
    limits = Limits(max_connections=4, max_keepalive_connections=2)
    tls = trusting(target) if http2 else Tls()
    url = f"{target.base_url}/chat/completions"
    async with Client(backend=backend, http2=http2, limits=limits, tls=tls) as client:
        telemetry.on(client)
        async with anyio.create_task_group() as group:
            group.start_soon(watch_the_total, client, telemetry)
            await cancel_at_random(client, url, 120, Random(backend))
            group.cancel_scope.cancel()
        assert_exact(telemetry, client)
        assert (await client.post(url, json=STREAMED)).status_code == 200
        assert_exact(telemetry, client)

    assert telemetry.open_connections() == {"active": 0, "idle": 0}
    assert telemetry.active_requests == 0
    durations = telemetry.points("request.duration")
    ended = sum(point.samples for point in durations)
    assert ended == len(telemetry.spans)
    assert any(point.attributes.get("error.type") == "CancelledError" for point in durations)


@pytest.mark.trunkline_may_leak
def test_connections_of_several_event_loops_are_counted_together(
    server: LLMServer, telemetry: Telemetry
) -> None:
    transport = trunkline.open_transport(TransportConfig(backend="aiohttp"))
    telemetry.on(transport)
    both_are_open = threading.Barrier(2)
    seen: list[dict[str, float]] = []

    def run() -> None:
        async def main() -> None:
            response = await transport.send(Request("GET", f"{server.base_url}/models"))
            await response.aread()
            await asyncio.to_thread(both_are_open.wait, 5)
            seen.append(telemetry.open_connections())
            await asyncio.to_thread(both_are_open.wait, 5)

        asyncio.run(main())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == [{"active": 0, "idle": 2}] * 2
    assert telemetry.open_connections() == {"active": 0, "idle": 0}


# -- spans -----------------------------------------------------------------------------------------


@every_backend
async def test_a_span_has_the_name_kind_and_attributes_of_the_conventions(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(backend=backend, base_url=server.url) as client:
        telemetry.on(client)
        await client.get("/echo", params={"api_key": "secret"})

    span = telemetry.span
    assert (span.name, span.kind) == ("GET", SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.scheme": "http",
        "url.full": f"{server.url}/echo",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": server.port,
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_a_span_takes_as_long_as_the_metric_says(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(base_url=server.base_url) as client:
        telemetry.on(client)
        await client.get("/models")

    span = telemetry.span
    assert span.start_time is not None
    assert span.end_time is not None
    seconds = (span.end_time - span.start_time) / 1e9
    assert seconds == pytest.approx(telemetry.point("request.duration").value, abs=1e-6)


async def test_a_span_is_the_child_of_the_one_around_the_call(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(base_url=server.base_url) as client:
        telemetry.on(client)
        with telemetry.tracers.get_tracer("app").start_as_current_span("agent") as agent:
            await client.get("/models")

    call = telemetry.spans[0]
    assert call.name == "GET"
    assert call.parent == agent.get_span_context()


@every_backend
async def test_a_request_that_is_sent_again_says_so(backend: str, telemetry: Telemetry) -> None:
    async with serving(OK, DROPPED, OK) as url, Client(backend=backend) as client:
        telemetry.on(client)
        await client.get(url)
        await client.get(url)
        assert_exact(telemetry, client)

    once, twice = telemetry.spans
    assert "http.request.resend_count" not in (once.attributes or {})
    assert (twice.attributes or {})["http.request.resend_count"] == 1
    assert telemetry.point("request.duration").samples == 2


@every_backend
async def test_no_secret_is_in_what_is_reported(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    headers = {"Authorization": "Bearer hunter2", "x-hunter2": "hunter2", "x-fail-status": "401"}
    async with Client(backend=backend, headers=headers) as client:
        telemetry.on(client)
        await client.post(f"{server.url}/echo?hunter2=hunter2", content=b"hunter2")
        with pytest.raises(trunkline.TransportError):
            await client.post("http://127.0.0.1:1/?hunter2=hunter2", content=b"hunter2")

    assert len(telemetry.spans) == 2
    assert all("hunter2" not in span.to_json() for span in telemetry.spans)
    assert "hunter2" not in repr(telemetry.everything())


# -- the context of the trace ----------------------------------------------------------------------


def sent_headers(echo: trunkline.Response, name: str) -> list[str]:
    return [value for header, value in echo.json()["headers"] if header.lower() == name]


@every_backend
async def test_the_server_gets_the_context_of_the_span(
    backend: str, server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(backend=backend) as client:
        telemetry.on(client)
        echo = await client.get(f"{server.url}/echo", headers={"TraceParent": "the caller's own"})

    context = telemetry.span.get_span_context()
    assert context is not None
    assert sent_headers(echo, "traceparent") == [
        f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    ]


async def test_the_request_of_the_caller_is_not_changed(
    server: LLMServer, telemetry: Telemetry
) -> None:
    request = Request("GET", f"{server.url}/echo", headers={"x-mine": "1"})
    async with Client() as client:
        telemetry.on(client)
        response = await client.send(request)
        await response.aread()

    assert sent_headers(response, "traceparent") != []
    assert dict(request.headers) == {"x-mine": "1"}
    assert response.request is request


async def test_all_the_rest_of_the_request_is_sent_as_it_is(
    server: LLMServer, telemetry: Telemetry
) -> None:
    sent: list[Request] = []

    class Spy:
        def on_event(self, event: Event) -> None:
            if event.request is not None and not event.is_end:
                sent.append(event.request)

    request = Request(
        "POST",
        f"{server.url}/echo?a=1",
        headers=[("x-mine", "1"), ("x-mine", "2")],
        content=b"body",
        timeouts=Timeouts(read=7),
        idempotent=True,
        priority=3,
    )
    async with Client() as client:
        telemetry.on(client)
        client.observe(Spy())
        response = await client.send(request)
        await response.aread()

    assert sent_headers(response, "x-mine") == ["1", "2"]
    for field in set(Request.__slots__) - {"_headers", "fields"}:
        assert getattr(sent[0], field) == getattr(request, field), field


@pytest.fixture
def in_a_tenant() -> Generator[None]:
    token = attach(baggage.set_baggage("tenant", "7"))
    yield
    detach(token)


@pytest.fixture
def global_baggage() -> Generator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(W3CBaggagePropagator())
    yield
    propagate.set_global_textmap(before)


@pytest.mark.usefixtures("in_a_tenant", "global_baggage")
async def test_the_global_propagator_is_the_default(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client() as client:
        telemetry.on(client)
        echo = await client.get(f"{server.url}/echo")

    assert sent_headers(echo, "baggage") == ["tenant=7"]
    assert sent_headers(echo, "traceparent") == []


@pytest.mark.usefixtures("in_a_tenant")
async def test_a_propagator_of_ones_own_writes_the_headers(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client() as client:
        instrument(
            client,
            meter_provider=telemetry.meters,
            tracer_provider=telemetry.tracers,
            propagator=W3CBaggagePropagator(),
        )
        echo = await client.get(f"{server.url}/echo")

    assert sent_headers(echo, "baggage") == ["tenant=7"]
    assert sent_headers(echo, "traceparent") == []


# -- on and off ------------------------------------------------------------------------------------


async def test_uninstrumenting_ends_it(server: LLMServer, telemetry: Telemetry) -> None:
    async with Client(base_url=server.base_url) as client:
        uninstrument = telemetry.on(client)
        await client.get("/models")
        uninstrument()
        uninstrument()
        assert telemetry.open_connections() == {"active": 0, "idle": 0}

        echo = await client.get(f"{server.url}/echo")
        assert sent_headers(echo, "traceparent") == []
    assert len(telemetry.spans) == 1


async def test_a_request_under_way_is_still_reported_to_its_end(
    server: LLMServer, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[bool] = []
    async with Client(backend="aiohttp", base_url=server.base_url) as client:
        assert isinstance(client.transport, AiohttpTransport)
        observe = client.transport.observe

        def observe_and_note(observer: trunkline.Observer) -> Callable[[], None]:
            stop = observe(observer)

            def stop_and_note() -> None:
                stop()
                stopped.append(True)

            return stop_and_note

        monkeypatch.setattr(client.transport, "observe", observe_and_note)
        uninstrument = telemetry.on(client)
        async with client.stream("POST", "/chat/completions", json=STREAMED, headers=SLOW):
            uninstrument()
            await client.get("/models")  # on a connection that nobody counts
            assert telemetry.open_connections() == {"active": 0, "idle": 0}
            assert (telemetry.active_requests, stopped) == (1, [])
        assert (telemetry.active_requests, stopped) == (0, [True])
    assert telemetry.span.name == "POST"


async def test_it_can_be_instrumented_again_but_not_twice(
    server: LLMServer, telemetry: Telemetry
) -> None:
    async with Client(base_url=server.base_url) as client:
        uninstrument = telemetry.on(client)
        with pytest.raises(RuntimeError, match="instrumented already"):
            telemetry.on(client.transport)
        uninstrument()
        telemetry.on(client.transport)
        await client.get("/models")

    assert len(telemetry.spans) == 1


class Observed(MockTransport):
    """A transport of somebody else's that has events."""

    def __init__(self) -> None:
        super().__init__(lambda request: (200, {}, b""))
        self.observers: list[trunkline.Observer] = []

    def observe(self, observer: trunkline.Observer) -> Callable[[], None]:
        self.observers.append(observer)
        return lambda: self.observers.remove(observer)


def test_nothing_is_left_on_the_transport(telemetry: Telemetry) -> None:
    transport = Observed()
    before = dict(vars(transport))
    uninstrument = telemetry.on(transport)
    assert len(transport.observers) == 1

    uninstrument()

    assert transport.observers == []
    assert dict(vars(transport)) == before


def test_a_transport_without_events_is_refused(telemetry: Telemetry) -> None:
    mock = MockTransport(lambda request: (200, {}, b""))

    with pytest.raises(trunkline.UnsupportedOption, match="mock has no events"):
        telemetry.on(Client(transport=mock))


def test_without_opentelemetry_the_import_says_what_to_install() -> None:
    script = "import sys; sys.modules['opentelemetry'] = None; import trunkline.observe.otel"

    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )

    assert ended.stderr.splitlines()[-1] == (
        "ImportError: trunkline.observe.otel needs opentelemetry-api: pip install 'trunkline[otel]'"
    )


async def test_prometheus_can_scrape_it(server: LLMServer) -> None:
    registry = CollectorRegistry()
    reader: MetricReader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    meters = MeterProvider([reader])
    async with Client(base_url=server.base_url) as client:
        instrument(client, meter_provider=meters)
        await client.get("/models")
        lines = generate_latest(registry).decode().splitlines()
    meters.shutdown()

    origin = f'server_address="127.0.0.1",server_port="{server.port}",url_scheme="http"'
    assert f'http_client_open_connections{{http_connection_state="idle",{origin}}} 1.0' in lines
    assert f'http_client_active_requests{{http_request_method="GET",{origin}}} 0.0' in lines
    assert (
        'http_client_request_duration_seconds_count{http_request_method="GET",'
        f'http_response_status_code="200",network_protocol_version="1.1",{origin}}} 1.0' in lines
    )
