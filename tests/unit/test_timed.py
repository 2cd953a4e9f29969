"""Deadlines on the transports for tests: each holds, by the error a connection would give.

This module knows a slow answer, and each test transport that can give one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from trunkline import (
    Client,
    DeadlineExceeded,
    HeadersTimeout,
    ReadTimeout,
    Request,
    Response,
    Timeouts,
    Transport,
    TransportTimeout,
)
from trunkline.testing import (
    ASGITransport,
    Fault,
    FaultTransport,
    MockTransport,
    RecordingTransport,
    ReplayTransport,
    Router,
)

pytestmark = pytest.mark.anyio

LOOPS: list[tuple[str, dict[str, bool]]] = [
    ("asyncio", {}),
    ("asyncio", {"use_uvloop": True}),
    ("trio", {}),
]
URL = "https://api.example.com/v1/responses"
NEVER = 600.0
SOON = 0.05


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


async def pieces(before_second: float) -> AsyncIterator[bytes]:
    yield b"one"
    await anyio.sleep(before_second)
    yield b"two"


def handler(before_head: float, before_second: float) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        await anyio.sleep(before_head)
        return Response(200, content=pieces(before_second))

    return answer


def mock(before_head: float, before_second: float, **options: Any) -> Transport:
    return MockTransport(handler(before_head, before_second), **options)


def router(before_head: float, before_second: float, **options: Any) -> Transport:
    routes = Router()
    routes.post(URL).side_effect(handler(before_head, before_second))
    return MockTransport(routes, **options)


def asgi(before_head: float, before_second: float, **options: Any) -> Transport:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(before_head)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for piece in pieces(before_second):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    return ASGITransport(app, lifespan=False, **options)


def faults(before_head: float, before_second: float, **options: Any) -> Transport:
    inner = MockTransport(lambda request: Response(200, content=b"onetwo"))
    plan = [Fault(delay=before_head, drip_size=3, drip_pause=before_second or 0.001)]
    return FaultTransport(inner, plan, **options)


CASSETTE = """{"trunkline_cassette": 1, "interactions": [{
  "request": {"method": "POST", "url": "%s", "headers": [], "body": {"text": "question"}},
  "wait": %g,
  "response": {"status": 200, "http_version": "HTTP/1.1", "headers": [],
               "body": {"chunks": ["one", "two"], "pauses": [0.0, %g]}}}]}"""


@pytest.fixture
def replayed(tmp_path: Path) -> Callable[..., Path]:
    def write(before_head: float, before_second: float) -> Path:
        path = tmp_path / "slow.json"
        path.write_text(CASSETTE % (URL, before_head, before_second), encoding="utf-8")
        return path

    return write


@pytest.fixture(params=["mock", "router", "asgi", "faults", "replay", "recording"])
def make(request: pytest.FixtureRequest, replayed: Callable[..., Path]) -> Callable[..., Transport]:
    def replay(before_head: float, before_second: float, **options: Any) -> Transport:
        return ReplayTransport(replayed(before_head, before_second), pace=True, **options)

    def recording(before_head: float, before_second: float, **options: Any) -> Transport:
        path = replayed(before_head, before_second)
        inner = MockTransport(lambda request: (500, {}, b"it is replayed"))
        return RecordingTransport(inner, path, pace=True, **options)

    makers = {"mock": mock, "router": router, "asgi": asgi, "faults": faults}
    return {**makers, "replay": replay, "recording": recording}[request.param]


def ask(**options: Any) -> Request:
    return Request("POST", URL, content=b"question", **options)


def check(error: TransportTimeout, phase: str) -> None:
    facts = (error.phase, error.host, error.port, error.attempts, error.http_version)
    assert facts == (phase, "api.example.com", 443, 1, "HTTP/1.1")
    assert error.request_sent
    assert error.bytes_sent > len("question")
    assert error.response_started == (phase == "body")
    assert error.replay == ("unsafe" if phase == "body" else "if_idempotent")
    assert error.elapsed is not None
    assert error.elapsed > 0.9 * SOON


async def test_what_is_in_time_arrives(make: Callable[..., Transport]) -> None:
    patient = Timeouts(headers=NEVER, read=NEVER, total=NEVER)
    async with Client(transport=make(0.0, 0.0, timeouts=patient)) as client:
        assert (await client.post(URL, content=b"question")).content == b"onetwo"


@pytest.mark.parametrize("by", ["transport", "request"])
async def test_a_slow_head_is_a_headers_timeout(make: Callable[..., Transport], by: str) -> None:
    short, patient = Timeouts(headers=SOON), Timeouts(headers=NEVER)
    transport = make(NEVER, 0.0, timeouts=short if by == "transport" else patient)
    with anyio.fail_after(20), pytest.raises(HeadersTimeout) as caught:
        await transport.send(ask(timeouts=short if by == "request" else None))

    check(caught.value, "headers")
    await transport.aclose()


async def test_silence_in_a_body_is_a_read_timeout(make: Callable[..., Transport]) -> None:
    transport = make(0.0, NEVER, timeouts=Timeouts(read=SOON))
    response = await transport.send(ask())
    with anyio.fail_after(20), pytest.raises(ReadTimeout) as caught:
        await response.aread()

    check(caught.value, "body")
    assert response.is_closed
    await transport.aclose()


@pytest.mark.parametrize("where", ["headers", "body"])
async def test_total_bounds_head_and_body(make: Callable[..., Transport], where: str) -> None:
    pauses = (NEVER, 0.0) if where == "headers" else (0.0, NEVER)
    transport = make(*pauses, timeouts=Timeouts(total=SOON))
    with anyio.fail_after(20), pytest.raises(DeadlineExceeded) as caught:
        await (await transport.send(ask())).aread()

    check(caught.value, where)
    await transport.aclose()


async def test_a_handlers_own_timeout_is_left_as_it_is() -> None:
    own = ReadTimeout("the handler's", phase="body")

    async def fail(request: Request) -> Response:
        await anyio.lowlevel.checkpoint()
        raise own

    with pytest.raises(ReadTimeout) as caught:
        await MockTransport(fail, timeouts=Timeouts(headers=NEVER)).send(ask())

    assert caught.value is own
    assert (own.host, own.attempts) == (None, 0)


async def test_a_handler_that_is_too_slow_is_cancelled() -> None:
    ended = anyio.Event()

    async def answer(request: Request) -> Response:
        try:
            await anyio.sleep(NEVER)
        finally:
            ended.set()
        raise AssertionError

    with pytest.raises(HeadersTimeout):
        await MockTransport(answer, timeouts=Timeouts(headers=SOON)).send(ask())

    assert ended.is_set()


async def test_the_time_that_a_caller_takes_to_produce_a_body_is_not_the_heads() -> None:
    async def slow_body() -> AsyncIterator[bytes]:
        yield b"one"
        await anyio.sleep(3 * SOON)

    transport = router(0.0, 0.0, timeouts=Timeouts(headers=SOON))
    assert (await transport.send(Request("POST", URL, content=slow_body()))).status_code == 200

    async def endless() -> AsyncIterator[bytes]:
        yield b"one"
        await anyio.sleep(NEVER)

    request = Request("POST", URL, content=endless(), timeouts=Timeouts(total=SOON))
    with anyio.fail_after(20), pytest.raises(DeadlineExceeded) as caught:
        await transport.send(request)

    facts = (caught.value.phase, caught.value.request_sent, caught.value.replay)
    assert facts == ("request", None, "if_idempotent")
