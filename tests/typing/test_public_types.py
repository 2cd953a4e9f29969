"""The public names: that they are there, and the types that users' checkers see.

The functions whose names do not begin with `test_` are never called: mypy and pyright check them
with the rest of the tests, and a type that changes is an error there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from importlib import import_module
from typing import Any, assert_type

import httpx
import httpx2
import pytest
from multidict import CIMultiDictProxy
from starlette.types import Receive, Scope, Send

import trunkline
from trunkline.adapters import httpx as adapters_httpx, httpx2 as adapters_httpx2
from trunkline.testing import (
    ASGITransport,
    Fault,
    FaultPlan,
    FaultTransport,
    InjectedFault,
    MockTransport,
    ReceivedRequest,
    RecordingTransport,
    Redaction,
    ReplayTransport,
    Route,
    Router,
)

NAMES = {
    "trunkline": """
        TransportConfig Limits Timeouts Dns Tls load_config open_transport
        Transport Capabilities PoolSnapshot OriginSnapshot
        Request Response Client AiohttpTransport HttpxTransport
        TransportError InvalidRequest TransportClosed UnsupportedOption BackendUnavailable
        EgressDenied PoolFull TransportTimeout PoolTimeout ConnectTimeout WriteTimeout
        HeadersTimeout ReadTimeout DeadlineExceeded ConnectionFailed DNSError ConnectError
        ProxyError TLSError CertificateError NetworkError WriteError RemoteDisconnected
        BodyTruncated ReadError RemoteProtocolError LimitExceeded StreamReset StreamRefused
        GoAway DecodeError DecompressionLimit HTTPStatusError
    """,
    "trunkline.testing": """
        MockTransport Router Route ReceivedRequest UnexpectedRequest ASGITransport
        RecordingTransport ReplayTransport Redaction FaultTransport Fault FaultPlan InjectedFault
        LLMServer TransportConformance
    """,
    "trunkline.pool": "PooledTransport",
    "trunkline.adapters.httpx": "AsyncClient AsyncTransport Client SyncTransport",
    "trunkline.adapters.httpx2": "AsyncClient AsyncTransport Client SyncTransport",
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in NAMES for name in NAMES[module].split()]
)
def test_a_public_name_is_importable(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is not None


def config() -> None:
    made = trunkline.TransportConfig(
        backend="auto",
        http2=True,
        limits=trunkline.Limits(
            max_connections=100,
            max_connections_per_host=None,
            max_keepalive_connections=20,
            keepalive_expiry=30.0,
            max_connection_age=None,
            max_waiting=None,
        ),
        timeouts=trunkline.Timeouts(
            pool=10.0, connect=5, write=10.0, headers=None, read=60.0, total=None
        ),
        dns=trunkline.Dns(ttl=300.0, stale_on_error=True, resolver="aiodns"),
        tls=trunkline.Tls(verify=True, ca_file=None, client_cert=None),
        proxy="http://proxy.example:3128",
        uds=None,
        trust_env=False,
    )
    assert_type(made.limits.max_connections, int | None)
    assert_type(made.timeouts.total, float | None)
    assert_type(made.timeouts.overridden_by(trunkline.Timeouts(read=1)), trunkline.Timeouts)
    assert_type(trunkline.load_config("trunkline.toml"), trunkline.TransportConfig)
    assert_type(trunkline.load_config(), trunkline.TransportConfig)
    assert_type(trunkline.open_transport(made), trunkline.Transport)
    assert_type(trunkline.available_backends(), tuple[str, ...])
    trunkline.Dns(resolver="bind")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    trunkline.Limits(max_conections=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def transports() -> list[trunkline.Transport]:
    """All of them are a `Transport` to a checker."""
    made = trunkline.TransportConfig()
    aiohttp: trunkline.Transport = trunkline.AiohttpTransport(made)
    httpx: trunkline.Transport = trunkline.HttpxTransport(made)
    mock: trunkline.Transport = MockTransport(lambda request: (200, {}, b""))
    routed: trunkline.Transport = Router().transport
    application: trunkline.Transport = ASGITransport(asgi_app, raise_app_exceptions=False)
    recording: trunkline.Transport = RecordingTransport(mock, "cassette.json", mode="new")
    replaying: trunkline.Transport = ReplayTransport("cassette.json", match=("method", "path"))
    faulty: trunkline.Transport = FaultTransport(mock, [Fault(error=trunkline.ReadTimeout)], seed=1)
    return [aiohttp, httpx, mock, routed, application, recording, replaying, faulty]


async def asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError


def kit() -> None:
    router = Router()
    assert_type(router.post("/x", json={"a": 1}).respond(429).respond(json={}), Route)
    assert_type(router.calls, list[ReceivedRequest])
    assert_type(router.calls[0].body, bytes)
    ReplayTransport("cassette.json", match=lambda recorded, sent: recorded.body == sent.body)
    RecordingTransport(router.transport, "c", mode="some")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plan = FaultPlan(faults=(Fault(status=429, times=2), Fault(cut_after=(1, 9))), seed=7)
    assert_type(FaultTransport(router.transport, plan).injected, list[InjectedFault])
    assert_type(Redaction(headers=Redaction.HEADERS | {"x-team"}), Redaction)


async def transport(transport: trunkline.Transport) -> None:
    request = trunkline.Request("GET", "https://example.com/")
    assert_type(await transport.send(request), trunkline.Response)
    assert_type(await transport.warm("https://example.com/", connections=4), int)
    assert_type(await transport.warm("https://example.com/", 4), int)
    assert_type(transport.snapshot(), trunkline.PoolSnapshot)
    assert_type(transport.capabilities, trunkline.Capabilities)
    assert_type(transport.capabilities.http2, bool)
    await transport.aclose()


def snapshot(pool: trunkline.PoolSnapshot) -> None:
    assert_type(pool.open + pool.active + pool.idle + pool.connecting + pool.waiting, int)
    assert_type(pool.created + pool.reused, int)
    assert_type(pool.max_connections, int | None)
    assert_type(pool.utilization, float)
    assert_type(pool.closed, Mapping[str, int])
    assert_type(pool.origins, Mapping[str, trunkline.OriginSnapshot])


async def client() -> None:
    async with trunkline.Client(backend="httpx", base_url="https://example.com/v1") as client:
        assert_type(client, trunkline.Client)
        assert_type(await client.post("/x", json={"a": [1]}), trunkline.Response)
        assert_type(await client.get("/x", params={"a": [1, 2]}), trunkline.Response)
        assert_type(await client.get("/x", headers={"a": "b"}), trunkline.Response)
        assert_type(await client.get("/x", headers=[("a", "b")]), trunkline.Response)
        assert_type(await client.request("PUT", "/x", content=b"body"), trunkline.Response)
        assert_type(await client.send(client.build_request("GET", "/x")), trunkline.Response)
        async with client.stream("POST", "/x", json={}) as response:
            assert_type(response, trunkline.Response)
            async for event in response.aiter_sse():
                assert_type(event, trunkline.ServerSentEvent)
                assert_type((event.event, event.data, event.id), tuple[str, str, str])
                assert_type(event.retry, int | None)
        assert_type(client.transport, trunkline.Transport)
        assert_type((client.backend, client.backend_reason), tuple[str, str])
        assert_type(client.snapshot(), trunkline.PoolSnapshot)
        assert_type(await client.warm("/x", 4), int)


async def pieces() -> AsyncIterator[bytes]:
    yield b"piece"


def request() -> None:
    made = trunkline.Request(
        "POST",
        "https://example.com/",
        headers={"a": "b"},
        content=pieces(),
        timeouts=trunkline.Timeouts(read=1),
        idempotent=True,
    )
    assert_type(made.headers, CIMultiDictProxy[str])
    assert_type(made.origin, trunkline.Origin)
    assert_type(made.is_idempotent, bool)
    trunkline.Request("POST", "https://example.com/", content="text")
    trunkline.Request("POST", "https://example.com/", content=bytearray(b"bytes"))
    trunkline.Request("POST", "https://example.com/", content=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def response(response: trunkline.Response) -> None:
    assert_type(response.status_code, int)
    assert_type(response.headers, CIMultiDictProxy[str])
    assert_type(response.http_version, str)
    assert_type(response.timings, trunkline.Timings)
    assert_type(response.timings.connect, float | None)
    assert_type(response.connection, trunkline.ConnectionInfo | None)
    assert_type(await response.aread(), bytes)
    assert_type((response.content, response.text), tuple[bytes, str])
    assert_type(response.json(), Any)
    assert_type(response.raise_for_status(), trunkline.Response)
    assert_type(response.aiter_bytes(), AsyncIterator[bytes])
    assert_type(response.aiter_raw(), AsyncIterator[bytes])
    assert_type(response.aiter_text(), AsyncIterator[str])
    assert_type(response.aiter_lines(), AsyncIterator[str])
    assert_type(response.aiter_sse(), AsyncIterator[trunkline.ServerSentEvent])
    async with response as same:
        assert_type(same, trunkline.Response)
    await response.aclose()


def adapters(config: trunkline.TransportConfig) -> object:
    """A checker takes each for what the library's users know, and knows its transport."""
    clients: list[httpx.AsyncClient] = [adapters_httpx.AsyncClient(config, timeout=5)]
    clients2: list[httpx2.AsyncClient] = [adapters_httpx2.AsyncClient(config, timeout=5)]
    sync: tuple[httpx.Client, httpx2.Client] = adapters_httpx.Client(), adapters_httpx2.Client()
    httpx.AsyncClient(transport=adapters_httpx.AsyncTransport(trunkline.open_transport(config)))
    httpx2.AsyncClient(transport=adapters_httpx2.AsyncTransport())
    httpx.Client(transport=adapters_httpx.SyncTransport(config))
    httpx2.Client(transport=adapters_httpx2.SyncTransport())
    assert_type(adapters_httpx2.AsyncClient().transport, trunkline.Transport)
    assert_type(adapters_httpx2.SyncTransport().transport, trunkline.Transport)
    assert_type(adapters_httpx2.Client().get("https://example.com/"), httpx2.Response)
    return clients, clients2, sync


def error(error: trunkline.TransportError) -> None:
    assert_type(error.request_sent, bool | None)
    assert_type((error.bytes_sent, error.attempts), tuple[int, int])
    assert_type((error.response_started, error.connection_reused), tuple[bool, bool])
    assert_type(
        (error.host, error.backend, error.http_version), tuple[str | None, str | None, str | None]
    )
    assert_type(error.port, int | None)
    assert_type(error.elapsed, float | None)
    if error.replay == "never":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        return
    if isinstance(error, trunkline.StreamReset):
        assert_type(error.code, int | None)
