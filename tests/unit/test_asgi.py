"""The transport that calls an ASGI application: streaming, lifespan, disconnects, deadlines."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.requests import Request as AppRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from trunkline import (
    BodyTruncated,
    Client,
    ConnectError,
    DeadlineExceeded,
    HeadersTimeout,
    InvalidRequest,
    ReadTimeout,
    Request,
    Response,
    Timeouts,
    Transport,
    TransportClosed,
    TransportError,
    WriteTimeout,
)
from trunkline.testing import ASGITransport

pytestmark = pytest.mark.anyio

URL = "http://app.test/a%20b?x=1"
GET = Request("GET", URL)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncGenerator[ASGITransport]:
    transport = ASGITransport(app, **options)
    try:
        yield transport
    finally:
        with anyio.fail_after(5, shield=True):
            await transport.aclose()


def http(app: App) -> App:
    """An application without a lifespan."""

    async def whole(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await app(scope, receive, send)

    return whole


async def eventually(events: list[Any]) -> None:
    with anyio.fail_after(5):
        while not events:  # noqa: ASYNC110
            await anyio.sleep(0.001)


def answering(*bodies: bytes, status: int = 200, headers: dict[str, str] | None = None) -> App:
    fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": fields})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    return http(app)


async def test_an_application_answers_through_a_client() -> None:
    async def echo(request: AppRequest) -> JSONResponse:
        return JSONResponse({"got": await request.json(), "for": request.path_params["name"]})

    app = Starlette(routes=[Route("/echo/{name}", echo, methods=["POST"])])
    transport = ASGITransport(app)
    async with Client(base_url="http://app.test", transport=transport) as client:
        response = await client.post("/echo/me", json={"a": 1})

    assert isinstance(transport, Transport)
    assert response.json() == {"got": {"a": 1}, "for": "me"}
    assert response.connection is not None
    assert response.timings.total is not None
    assert client.snapshot().closed == {"ended": 1}


async def test_the_scope_says_what_was_asked_and_by_whom() -> None:
    scopes: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answering()(scope, receive, send)

    request = Request("PUT", URL, headers=[("X-A", "é"), ("x-a", "2")], content=b"12")
    async with serving(http(app), root_path="/api", client=("10.0.0.1", 7)) as transport:
        await (await transport.send(request)).aread()

    scope = scopes[0]
    assert (scope["type"], scope["http_version"], scope["method"]) == ("http", "1.1", "PUT")
    assert (scope["path"], scope["raw_path"]) == ("/a b", b"/a%20b")
    assert (scope["query_string"], scope["root_path"]) == (b"x=1", "/api")
    assert (scope["scheme"], scope["server"]) == ("http", ("app.test", 80))
    assert scope["client"] == ("10.0.0.1", 7)
    assert scope["headers"] == [
        (b"host", b"app.test"),
        (b"x-a", "é".encode()),
        (b"x-a", b"2"),
        (b"content-length", b"2"),
    ]


async def test_the_response_has_status_headers_and_pieces_as_they_were_sent() -> None:
    app = answering(b"one", b"two", status=418, headers={"X-A": "1", "set-cookie": "é"})
    async with serving(app) as transport:
        response = await transport.send(GET)
        assert (response.status_code, response.reason_phrase) == (418, "I'm a Teapot")
        assert response.headers["set-cookie"] == "é"
        assert response.raw_headers[0] == (b"X-A", b"1")
        assert [piece async for piece in response.aiter_raw()] == [b"one", b"two"]


async def test_the_application_goes_on_when_its_piece_was_taken_and_not_before() -> None:
    sent: list[int] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            sent.append(number)
        await send({"type": "http.response.body"})

    async with serving(http(app)) as transport:
        response = await transport.send(GET)
        pieces = response.aiter_raw()
        for taken in range(3):
            await anyio.wait_all_tasks_blocked()
            assert sent == list(range(taken))
            await pieces.__anext__()
        assert [piece async for piece in pieces] == []


async def test_both_bodies_stream_at_once() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        while (message := await receive())["more_body"]:
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body"})

    said, questions = list[bytes](), anyio.create_memory_object_stream[bytes](1)
    async with questions[0], questions[1], serving(http(app)) as transport:
        response = await transport.send(Request("POST", URL, content=questions[1]))
        pieces = response.aiter_raw()
        for question in (b"1", b"2"):
            await questions[0].send(question)
            said.append(await pieces.__anext__())
        await questions[0].aclose()
        said += [piece async for piece in pieces]
    assert said == [b"1", b"2"]


async def test_the_callers_own_iterable_may_fail() -> None:
    failure, seen = KeyError("mine"), list[str]()

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        seen.extend([(await receive())["type"] for _ in range(2)])

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1"
        raise failure

    async with serving(http(app)) as transport:
        with pytest.raises(KeyError) as caught:
            await transport.send(Request("POST", URL, content=pieces()))
    assert caught.value is failure
    assert seen == ["http.request", "http.disconnect"]


async def test_a_request_body_that_contradicts_its_length_is_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"12"

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    for length in ("1", "3"):
        request = Request("POST", URL, content=pieces(), headers={"Content-Length": length})
        async with serving(http(app)) as transport:
            with pytest.raises(InvalidRequest, match="Content-Length"):
                await transport.send(request)


async def test_an_upload_nobody_wants_is_closed() -> None:
    events: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"1"
        finally:
            events.append("closed")

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        await answering(status=413)(scope, receive, send)

    async with serving(http(app)) as transport:
        response = await transport.send(Request("POST", URL, content=pieces()))
        await response.aread()
    assert (response.status_code, events) == (413, ["closed"])


# -- http's rules ----------------------------------------------------------------------------------


async def test_a_head_request_gets_no_body() -> None:
    async with serving(answering(b"12345", headers={"Content-Length": "5"})) as transport:
        response = await transport.send(Request("HEAD", URL))
        assert response.headers["Content-Length"] == "5"
        assert await response.aread() == b""


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (answering(b"12", headers={"Content-Length": "1"}), "longer than its Content-Length"),
        (answering(b"12", headers={"Content-Length": "3"}), "shorter than its Content-Length"),
        (answering(b"12", status=204), "sent a body with a 204"),
    ],
)
async def test_a_body_that_http_does_not_allow_is_the_applications_fault(
    app: App, message: str
) -> None:
    async with serving(app) as transport:
        response = await transport.send(GET)
        with pytest.raises(RuntimeError, match=message):
            await response.aread()
    async with serving(app, raise_app_exceptions=False) as transport:
        response = await transport.send(GET)
        with pytest.raises(BodyTruncated) as caught:
            await response.aread()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.replay == "unsafe"


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "returned before its response was complete"),
        ([{"type": "http.response.body"}], "before its head"),
        ([{"type": "http.response.push"}], "'http.response.push'"),
        ([{"type": "http.response.start", "status": 200, "headers": [(b"a b", b"")]}], "headers"),
    ],
)
async def test_what_is_no_response_is_the_applications_fault(
    messages: list[dict[str, Any]], complaint: str
) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async with serving(http(app)) as transport:
        with pytest.raises(RuntimeError, match=complaint):
            await transport.send(GET)


# -- the application's exceptions ------------------------------------------------------------------


async def test_what_the_application_raises_is_raised_as_it_is() -> None:
    failure = KeyError("of the application")

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await answering(b"x")(scope, receive, send)
        elif scope["path"] == "/body":
            await send({"type": "http.response.start", "status": 200})
        raise failure

    transport = ASGITransport(http(app))
    with pytest.raises(KeyError) as caught:
        await transport.send(Request("GET", "http://h/"))
    assert caught.value is failure
    response = await transport.send(Request("GET", "http://h/body"))
    with pytest.raises(KeyError):
        await response.aread()
    response = await transport.send(Request("GET", "http://h/late"))
    with pytest.raises(KeyError):
        await response.aread()
    await transport.aclose()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_starlette_raises_after_its_own_500_is_raised_by_the_call(method: str) -> None:
    async def boom(request: AppRequest) -> None:
        raise ZeroDivisionError("boom")

    transport = ASGITransport(Starlette(routes=[Route("/boom", boom)]))
    async with Client(transport=transport, base_url="http://h") as client:
        with pytest.raises(ZeroDivisionError):
            await client.request(method, "/boom")


async def test_what_is_raised_long_after_the_response_is_raised_by_aclose() -> None:
    is_read = anyio.Event()

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await answering(b"x")(scope, receive, send)
        await is_read.wait()
        raise KeyError("in the background")

    client = Client(transport=ASGITransport(http(app)), base_url="http://h")
    assert (await client.get("/")).content == b"x"
    is_read.set()
    with pytest.raises(KeyError, match="in the background"):
        await client.aclose(drain=5)


async def test_or_becomes_what_a_server_makes_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    async with serving(http(app), raise_app_exceptions=False) as transport:
        response = await transport.send(GET)
        assert (response.status_code, await response.aread()) == (500, b"Internal Server Error")
        response = await transport.send(Request("HEAD", URL))
        assert (response.status_code, await response.aread()) == (500, b"")
    assert [record.message for record in caplog.records] == ["the application failed"] * 2


async def test_an_error_of_the_applications_own_upstream_keeps_its_facts() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        error = ConnectError("upstream")
        error.host = "upstream.test"
        raise error

    async with serving(http(app)) as transport:
        with pytest.raises(ConnectError) as caught:
            await transport.send(GET)
    assert (caught.value.host, caught.value.attempts) == ("upstream.test", 0)


# -- the client goes -------------------------------------------------------------------------------


class Endless:
    """Streams for ever; remembers how it ended."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] != "/silent":
            await send({"type": "http.response.start", "status": 200})
        async with anyio.create_task_group() as group:
            group.start_soon(self._stream, send)
            self.events.append((await receive())["type"])
            group.cancel_scope.cancel()

    async def _stream(self, send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})


async def test_the_application_sees_a_response_being_closed() -> None:
    app = Endless()
    async with serving(http(app)) as transport:
        response = await transport.send(GET)
        async for _ in response.aiter_raw():
            break
        await response.aclose()
        await eventually(app.events)
        assert app.events == ["http.disconnect"]
        assert transport.snapshot().open == 0
        assert transport.snapshot().closed == {"aborted": 1}


async def test_the_application_sees_a_call_being_cancelled() -> None:
    seen: list[str] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        seen.append((await receive())["type"])

    async with serving(http(app)) as transport:
        with anyio.move_on_after(0.01):
            await transport.send(GET)
        await eventually(seen)
        assert seen == ["http.disconnect"]


@pytest.mark.trunkline_may_leak
async def test_the_application_sees_a_response_being_dropped() -> None:
    app = Endless()
    async with serving(http(app)) as transport:
        with pytest.warns(ResourceWarning, match="unclosed response"):
            await transport.send(GET)
        await eventually(app.events)
        assert app.events == ["http.disconnect"]


async def test_a_starlette_stream_ends_with_its_client() -> None:
    ended: list[bool] = []

    async def endless(request: AppRequest) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await anyio.sleep_forever()
            finally:
                ended.append(True)

        return StreamingResponse(pieces())

    app = Starlette(routes=[Route("/", endless)])
    async with serving(app, spec_version="2.3") as transport:
        async with await transport.send(Request("GET", "http://h/")) as response:
            assert await response.aiter_raw().__anext__() == b"first"
        await eventually(ended)


async def test_sending_to_a_client_that_has_gone_is_an_error_of_the_operating_system(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised: list[str] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["asgi"]["spec_version"] == "2.4"
        await send({"type": "http.response.start", "status": 200})
        await receive()
        await receive()
        try:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as error:
            raised.append(str(error))
            raise KeyError("as Starlette makes another error of it")  # noqa: B904

    async with serving(http(app)) as transport:
        await (await transport.send(GET)).aclose()
        await eventually(raised)
    assert not caplog.records


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_starlette_may_stream_the_request_into_its_response(is_streamed: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            await anyio.lowlevel.checkpoint()
            yield piece

    async def echo(request: AppRequest) -> StreamingResponse:
        return StreamingResponse(request.stream())

    content = pieces() if is_streamed else b"abc"
    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    async with serving(app) as transport:
        with anyio.fail_after(5):
            response = await transport.send(Request("POST", "http://h/", content=content))
            assert await response.aread() == b"abc"


async def test_two_tasks_may_receive_at_once() -> None:
    received: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            await anyio.lowlevel.checkpoint()
            yield piece

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def take() -> None:
            while (message := await receive()).get("more_body"):
                received.append(message["body"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await take()
            tasks.cancel_scope.cancel()
        await answering()(scope, receive, send)

    async with serving(http(app)) as transport:
        with anyio.fail_after(5):
            response = await transport.send(Request("POST", "http://h/", content=pieces()))
            await response.aread()
    assert received == [b"a", b"b", b"c"]


# -- deadlines -------------------------------------------------------------------------------------


async def test_deadlines_hold() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] == "/read":
            await send({"type": "http.response.start", "status": 200})
        await anyio.sleep_forever()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    short = Timeouts(headers=0.01, read=0.02, write=0.03)
    async with serving(http(app), timeouts=short) as transport:
        with pytest.raises(HeadersTimeout) as headers:
            await transport.send(Request("POST", URL, content=b"1234"))
        with pytest.raises(WriteTimeout) as write:
            await transport.send(Request("POST", URL, content=pieces()))
        with pytest.raises(DeadlineExceeded):
            await transport.send(Request("GET", URL, timeouts=Timeouts(total=0.001)))
        patient = Timeouts(headers=5)
        response = await transport.send(Request("GET", "http://app.test/read", timeouts=patient))
        with pytest.raises(ReadTimeout) as read:
            await response.aread()

    assert (headers.value.phase, headers.value.replay) == ("headers", "if_idempotent")
    assert (headers.value.request_sent, write.value.request_sent) == (True, None)
    assert (headers.value.host, headers.value.backend) == ("app.test", "asgi")
    assert headers.value.attempts == 1
    assert (read.value.response_started, read.value.replay) == (True, "unsafe")


# -- lifespan --------------------------------------------------------------------------------------


async def test_startup_comes_before_the_first_request_and_shutdown_with_aclose() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, str]]:
        events.append("startup")
        await anyio.lowlevel.checkpoint()
        yield {"from": "startup"}
        events.append("shutdown")

    async def page(request: AppRequest) -> JSONResponse:
        events.append("request")
        return JSONResponse(request.state["from"])

    transport = ASGITransport(Starlette(routes=[Route("/", page)], lifespan=lifespan))
    assert events == []
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(read, transport)
    await transport.aclose()
    await transport.aclose()
    assert events == ["startup", "request", "request", "shutdown"]
    with pytest.raises(TransportClosed):
        await transport.send(GET)


async def read(transport: ASGITransport) -> Response:
    response = await transport.send(Request("GET", "http://h/"))
    await response.aread()
    assert response.json() == "startup"
    return response


async def test_warming_starts_the_application() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        events.append("startup")
        yield

    async with serving(Starlette(lifespan=lifespan)) as transport:
        assert await transport.warm("http://h/") == 0
        assert events == ["startup"]


async def test_a_failed_startup_is_an_error_of_every_request() -> None:
    failure = KeyError("no database")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        raise failure
        yield

    async with serving(Starlette(lifespan=lifespan)) as transport:
        for _ in range(2):
            with pytest.raises(ConnectError, match=r"did not start: .*no database") as caught:
                await transport.send(GET)
            assert (caught.value.replay, caught.value.request_sent) == ("safe", False)
            assert caught.value.__cause__ is failure


async def test_an_application_that_fails_having_asked_to_start_has_failed() -> None:
    failure = KeyError("no database")

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        raise failure

    async with serving(app) as transport:
        with pytest.raises(ConnectError, match="KeyError") as caught:
            await transport.send(GET)
    assert caught.value.__cause__ is failure


async def test_a_failed_shutdown_is_an_error_of_aclose() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        raise KeyError("too late")

    transport = ASGITransport(Starlette(lifespan=lifespan))
    await transport.warm("http://h/")
    with pytest.raises(TransportError, match=r"did not shut down: .*too late"):
        await transport.aclose()


async def test_without_lifespan_the_application_is_not_told() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await answering(b"x")(scope, receive, send)

    async with serving(app, lifespan=False) as transport:
        assert await (await transport.send(GET)).aread() == b"x"


# -- closing ---------------------------------------------------------------------------------------


async def test_closing_ends_what_is_under_way() -> None:
    app = Endless()
    transport = ASGITransport(http(app))
    response = await transport.send(GET)
    await transport.aclose()
    with pytest.raises(TransportClosed):
        await response.aread()
    assert app.events == ["http.disconnect"]


async def test_closing_lets_it_finish_for_a_while() -> None:
    go_on = anyio.Event()

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"finished"})

    transport = ASGITransport(http(app))
    response = await transport.send(GET)
    async with anyio.create_task_group() as group:
        group.start_soon(transport.aclose, 5.0)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        assert await response.aread() == b"finished"


async def test_an_application_that_ignores_its_clients_going_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trunkline.testing._asgi._GRACE", 0.01)
    events: list[str] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")

    transport = ASGITransport(http(app))
    async with anyio.create_task_group() as group:
        group.start_soon(must_be_closed, transport)
        await anyio.wait_all_tasks_blocked()
        await transport.aclose()
    assert events == ["cancelled"]


async def must_be_closed(transport: ASGITransport) -> None:
    with pytest.raises(TransportClosed):
        await transport.send(GET)
