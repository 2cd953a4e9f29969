"""The transport that makes things go wrong: each fault, whom it meets, and having it all again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import get_args

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given, strategies as st
from pydantic import ValidationError

import trunkline
from trunkline import (
    BodyTruncated,
    Client,
    ConnectError,
    DeadlineExceeded,
    GoAway,
    HeadersTimeout,
    PoolSnapshot,
    ReadTimeout,
    RemoteDisconnected,
    Request,
    Response,
    StreamReset,
    Timeouts,
    Transport,
    TransportClosed,
    TransportError,
)
from trunkline.testing import Fault, FaultPlan, FaultTransport, LLMServer, MockTransport, Router
from trunkline.testing._facts import phases_of

pytestmark = pytest.mark.anyio

URL = "https://h/x"
GET = Request("GET", URL)
POST = Request("POST", URL, content=b"1234")


def inner(body: bytes = b"0123456789") -> MockTransport:
    return MockTransport(lambda request: (200, {"X-A": "1"}, body))


async def test_without_a_fault_all_is_as_inside() -> None:
    transport = FaultTransport(inner(), [])
    assert isinstance(transport, Transport)
    async with Client(transport=transport) as client:
        assert (await client.get(URL)).content == b"0123456789"
        assert (client.backend, client.snapshot()) == ("mock", PoolSnapshot())
        assert await client.warm(URL) == 0
    with pytest.raises(TransportClosed):
        await transport.send(GET)
    with pytest.raises(TransportClosed):
        await transport.inner.send(GET)


@pytest.mark.parametrize(
    ("kind", "phase", "facts", "was_asked"),
    [
        ("PoolTimeout", "pool", (False, 0, False, "safe"), False),
        ("ConnectError", "connect", (False, 0, False, "safe"), False),
        ("WriteError", "write", (None, 1, False, "if_idempotent"), False),
        ("RemoteDisconnected", "headers", (True, 1, False, "if_idempotent"), True),
        ("RemoteProtocolError", "headers", (True, 1, True, "unsafe"), True),
        ("StreamReset", "headers", (True, 1, False, "if_idempotent"), True),
        ("StreamRefused", "headers", (True, 1, False, "safe"), False),
        ("GoAway", "write", (None, 1, False, "safe"), False),
        ("EgressDenied", "connect", (False, 0, False, "safe"), False),
        ("TransportClosed", "pool", (False, 0, False, "safe"), False),
    ],
)
async def test_an_error_before_the_body(
    kind: str, phase: str, facts: tuple[object, ...], was_asked: bool
) -> None:
    transport = FaultTransport(mock := inner(), [Fault(error=getattr(trunkline, kind))])
    with pytest.raises(getattr(trunkline, kind)) as caught:
        await transport.send(POST)

    error = caught.value
    assert isinstance(error, TransportError)
    seen = (error.request_sent, min(error.bytes_sent, 1), error.response_started, error.replay)
    assert (error.phase, seen) == (phase, facts)
    assert (error.host, error.port, error.backend) == ("h", 443, "mock")
    assert len(mock.requests) == was_asked


PHASES = get_args(trunkline.Phase)


@given(
    st.sampled_from(trunkline.__all__).filter(
        lambda name: (
            isinstance(kind := getattr(trunkline, name), type)
            and issubclass(kind, TransportError)
            and not issubclass(kind, (trunkline.HTTPStatusError, trunkline.UnsupportedOption))
        )
    ),
    st.none() | st.sampled_from(PHASES),
)
def test_no_error_says_that_a_processed_request_is_safe_to_replay(
    name: str, phase: trunkline.Phase | None
) -> None:
    if phase not in (None, *phases_of(getattr(trunkline, name))):
        with pytest.raises(ValidationError, match=f"{name} does not happen at '{phase}'; give "):
            Fault.model_validate({"error": name, "phase": phase})
        return
    fault = Fault.model_validate({"error": name, "phase": phase})
    transport = FaultTransport(mock := inner(), [fault])

    async def run() -> None:
        with pytest.raises(getattr(trunkline, name)) as caught:
            await (await transport.send(POST)).aread()
        assert caught.value.phase == fault.failure_phase
        assert phase in (None, caught.value.phase)
        assert not (mock.requests and caught.value.replay == "safe")

    anyio.run(run)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"garbage\r\n\r\n", "RemoteProtocolError"), (b"", "RemoteDisconnected")],
)
async def test_the_facts_are_those_of_a_connection(answer: bytes, error: str) -> None:
    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    seen: list[TransportError] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        request = Request("POST", f"http://127.0.0.1:{port}/x", content=b"1234")
        fault = Fault.model_validate({"error": error})
        for transport in (trunkline.HttpxTransport(), FaultTransport(inner(), [fault])):
            with pytest.raises(getattr(trunkline, error)) as caught:
                await transport.send(request)
            seen.append(caught.value)
            await transport.aclose()
        tasks.cancel_scope.cancel()

    facts = "phase request_sent response_started connection_reused replay http_version attempts"
    for fact in facts.split():
        assert getattr(seen[1], fact) == getattr(seen[0], fact), fact


async def test_an_error_of_http2_is_one_of_http2() -> None:
    faults = [
        Fault(error=StreamReset, times=1),
        Fault(error=StreamReset, code=8, phase="body", cut_after=3),
    ]
    transport = FaultTransport(inner(), faults)
    with pytest.raises(StreamReset) as first:
        await transport.send(POST)
    with pytest.raises(StreamReset) as second:
        await (await transport.send(POST)).aread()
    assert [(one.value.http_version, one.value.code) for one in (first, second)] == [
        ("HTTP/2", 2),
        ("HTTP/2", 8),
    ]


async def test_a_goaway_can_come_after_the_server_had_begun() -> None:
    transport = FaultTransport(mock := inner(), [Fault(error=GoAway, phase="headers")])
    with pytest.raises(GoAway) as caught:
        await transport.send(POST)
    assert (caught.value.replay, len(mock.requests)) == ("if_idempotent", 1)


@given(body=st.binary(max_size=40), n=st.integers(0, 50), size=st.integers(1, 50) | st.none())
def test_a_body_is_cut_after_so_many_bytes_however_it_comes(
    body: bytes, n: int, size: int | None
) -> None:
    async def run() -> None:
        fault = Fault(cut_after=n, drip_size=size)
        response = await FaultTransport(inner(body), [fault]).send(GET)
        got = b""
        try:
            async for piece in response.aiter_raw():
                assert size is None or len(piece) <= size
                got += piece
            ended = None
        except BodyTruncated as error:
            ended = error
        assert (ended is not None) is (n < len(body))
        if ended is not None:
            assert (ended.phase, ended.replay, ended.response_started) == ("body", "unsafe", True)
        assert got == body[:n]
        assert response.is_closed

    anyio.run(run)


async def test_a_body_may_end_in_another_error() -> None:
    transport = FaultTransport(inner(), [Fault(error=ReadTimeout, cut_after=3)])
    response = await transport.send(GET)
    assert response.headers["X-A"] == "1"
    pieces = response.aiter_raw()
    assert await pieces.__anext__() == b"012"
    with pytest.raises(ReadTimeout):
        await pieces.__anext__()


async def test_a_decoded_body_that_is_cut_is_truncated_and_not_corrupt() -> None:
    import gzip

    packed = gzip.compress(b"x" * 1000)
    mock = MockTransport(lambda request: (200, {"Content-Encoding": "gzip"}, packed))
    response = await FaultTransport(mock, [Fault(cut_after=len(packed) - 4)]).send(GET)
    with pytest.raises(BodyTruncated):
        await response.aread()


async def test_a_burst_of_429_and_then_as_usual() -> None:
    router = Router()
    router.post("/x").respond(text="fine")
    fault = Fault(status=429, retry_after=0.5, times=2, method="POST", path="/*")
    transport = FaultTransport(router.transport, [fault])
    seen = [await transport.send(POST) for _ in range(3)]
    assert [response.status_code for response in seen] == [429, 429, 200]
    assert [response.headers.get("Retry-After") for response in seen] == ["0.5", "0.5", None]
    assert seen[0].request is POST
    assert router.call_count == 1


async def test_a_fault_meets_only_whom_it_is_for() -> None:
    faults = [
        Fault(status=503, method="GET", path="/a/*", skip=1, times=1),
        Fault(status=500, path="/b"),
    ]
    transport = FaultTransport(inner(), faults)
    asked = ["POST /a/1", "GET /a/1", "GET /a/2", "GET /a/3", "GET /b?x", "GET /a/b/c"]
    seen = [
        (await transport.send(Request(method, f"https://h{path}"))).status_code
        for method, path in (line.split() for line in asked)
    ]
    assert seen == [200, 200, 503, 200, 500, 200]
    assert [(one.number, one.index) for one in transport.injected] == [(3, 0), (5, 1)]
    assert transport.injected[0].request.path == "/a/2"


async def test_the_deadlines_of_the_request_hold_during_a_delay() -> None:
    plan = [Fault(delay=30, path="/x"), Fault(delay=30, error=ConnectError, path="/y")]
    transport = FaultTransport(inner(), plan, timeouts=Timeouts(headers=0.01))
    with pytest.raises(HeadersTimeout) as headers:
        await transport.send(POST)
    total = Request("GET", "https://h/y", timeouts=Timeouts(total=0.01))
    with pytest.raises(DeadlineExceeded) as deadline:
        await transport.send(total)
    assert (headers.value.replay, deadline.value.replay) == ("if_idempotent", "safe")
    assert (headers.value.host, deadline.value.phase) == ("h", "connect")


@pytest.mark.parametrize(
    ("fault", "expected", "phase"),
    [
        (Fault(error=ConnectError, delay=30), trunkline.ConnectTimeout, "connect"),
        (Fault(error=trunkline.TLSError, delay=30), trunkline.ConnectTimeout, "tls"),
        (Fault(error=trunkline.PoolFull, delay=30), trunkline.PoolTimeout, "pool"),
        (Fault(error=trunkline.WriteError, delay=30), trunkline.WriteTimeout, "write"),
    ],
)
async def test_each_phase_has_its_deadline_during_a_delay(
    fault: Fault, expected: type[TransportError], phase: str
) -> None:
    short = Timeouts(pool=0.01, connect=0.01, write=0.01)
    transport = FaultTransport(mock := inner(), [fault])
    with pytest.raises(expected) as caught:
        await transport.send(Request("GET", URL, timeouts=short))
    assert (caught.value.phase, caught.value.host, mock.requests) == (phase, "h", [])


async def test_a_delay_counts_in_total_when_the_transport_inside_is_asked() -> None:
    mock = inner()
    request = Request("POST", URL, content=b"1234", timeouts=Timeouts(total=60, read=7))
    response = await FaultTransport(mock, [Fault(delay=0.05)]).send(request)

    asked = mock.requests[0].timeouts
    assert asked is not None
    assert asked.total is not None
    assert asked.total <= 59.96
    assert (asked.read, mock.requests[0].content, response.request) == (7, b"1234", request)


async def test_the_deadlines_of_the_transport_inside_hold_too() -> None:
    config = trunkline.TransportConfig(timeouts=Timeouts(headers=0.01))
    transport = FaultTransport(trunkline.HttpxTransport(config), [Fault(delay=30)])
    with pytest.raises(HeadersTimeout):
        await transport.send(GET)
    await transport.aclose()


async def test_a_short_delay_is_only_a_delay() -> None:
    transport = FaultTransport(inner(), [Fault(delay=(0.001, 0.002))])
    assert (await transport.send(GET)).status_code == 200


async def test_silence_between_drips_is_measured() -> None:
    slow = FaultTransport(inner(), [Fault(drip_size=4, drip_pause=0.001)])
    response = await slow.send(GET)
    assert [piece async for piece in response.aiter_raw()] == [b"0123", b"4567", b"89"]

    as_it_comes = FaultTransport(inner(), [Fault(drip_pause=30)])
    response = await as_it_comes.send(Request("GET", URL, timeouts=Timeouts(read=0.01)))
    with pytest.raises(ReadTimeout):
        await response.aread()

    stalled = FaultTransport(inner(), [Fault(drip_size=4, drip_pause=30)])
    response = await stalled.send(Request("GET", URL, timeouts=Timeouts(read=0.01)))
    with pytest.raises(ReadTimeout) as caught:
        await response.aread()
    assert (caught.value.response_started, caught.value.replay) == (True, "unsafe")


# -- again -----------------------------------------------------------------------------------------


async def outcomes(transport: FaultTransport) -> list[str]:
    seen: list[str] = []
    for _ in range(40):
        try:
            seen.append(repr(await (await transport.send(GET)).aread()))
        except TransportError as error:
            seen.append(type(error).__name__)
    return seen


CHANCES = [
    Fault(error=ConnectError, probability=0.3),
    Fault(cut_after=(0, 9), probability=0.5),
]


async def test_a_seed_gives_the_same_faults_again() -> None:
    first = FaultTransport(inner(), CHANCES)
    again = FaultTransport(inner(), CHANCES, seed=first.seed)
    seen = await outcomes(first)
    assert await outcomes(again) == seen
    assert len(set(seen)) > 2
    assert await outcomes(FaultTransport(inner(), CHANCES, seed=first.seed + 1)) != seen


async def test_the_plan_in_use_is_data_that_gives_it_all_again() -> None:
    first = FaultTransport(inner(), CHANCES)
    text = first.plan.model_dump_json()
    again = FaultTransport(inner(), FaultPlan.model_validate_json(text))
    assert again.plan == first.plan
    assert await outcomes(again) == await outcomes(first)


async def test_an_error_says_what_to_run_again() -> None:
    transport = FaultTransport(inner(), [Fault(status=429, times=1), *CHANCES[:1]], seed=5)
    await transport.send(GET)
    with pytest.raises(ConnectError) as caught:  # noqa: PT012
        for _ in range(100):
            await transport.send(GET)
    note = f"injected by FaultTransport: request {transport.injected[-1].number}, fault 1, seed 5"
    assert caught.value.__notes__ == [note]


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": "NoSuchError"},
        {"error": "Request"},
        {"error": "HTTPStatusError"},
        {"status": 429, "error": "ConnectError"},
        {"status": 429, "cut_after": 1},
        {"error": "ConnectError", "cut_after": 1},
        {"error": "ConnectError", "phase": "body"},
        {"phase": "headers", "delay": 1},
        {"retry_after": 1},
        {"error": "ConnectError", "code": 8},
        {"delay": -1},
        {"probability": 0},
        {"tiems": 1},
    ],
)
def test_a_plan_that_cannot_happen_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Fault.model_validate(wrong)


# -- around a real one -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [trunkline.AiohttpTransport, trunkline.HttpxTransport])
async def test_nothing_is_held_after_a_fault(
    kind: type[trunkline.HttpxTransport], anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio" and not kind.capabilities.trio:
        pytest.skip("asyncio only")
    faults = [
        Fault(error=RemoteDisconnected, times=1),
        Fault(cut_after=5, times=1),
        Fault(error=ReadTimeout, times=1),
    ]
    with LLMServer() as server:
        transport = FaultTransport(kind(), faults)
        async with Client(base_url=server.base_url, transport=transport) as client:
            for expected in (RemoteDisconnected, BodyTruncated, ReadTimeout):
                with pytest.raises(expected):
                    await client.get("/models")
            assert transport.snapshot().active == 0
            assert (await client.get("/models")).status_code == 200
        assert server.requests == 4


@pytest.mark.trunkline_may_leak
async def test_a_dropped_response_is_told_of_once() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    mock = MockTransport(lambda request: Response(200, content=pieces()))
    await FaultTransport(mock, [Fault(drip_size=1)]).send(GET)  # holds nothing: no warning
    with LLMServer() as server:
        transport = FaultTransport(trunkline.HttpxTransport(), [Fault(drip_size=1)])
        with pytest.warns(ResourceWarning, match="unclosed response") as warned:
            await transport.send(Request("GET", f"{server.base_url}/models"))
        assert len(warned) == 1
        await transport.aclose()
