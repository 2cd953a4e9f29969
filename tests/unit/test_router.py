"""The router: which route answers, with what, and what is said where none does."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from trunkline import (
    Client,
    ConnectError,
    HTTPStatusError,
    InvalidRequest,
    ReadTimeout,
    RemoteDisconnected,
    Request,
    Response,
    ServerSentEvent,
    StreamRefused,
    TransportClosed,
    TransportError,
    WriteTimeout,
)
from trunkline.testing import MockTransport, Router, UnexpectedRequest

pytestmark = pytest.mark.anyio

URL = "https://api.example.com/v1"


async def test_a_route_answers_what_it_was_told() -> None:
    router = Router()
    route = router.post("/v1/chat/completions").respond(201, {"X-Id": "7"}, json={"ok": [1, "é"]})

    async with Client(base_url=URL, transport=router.transport) as client:
        response = await client.post("/chat/completions", json={"model": "m"})

    assert (response.status_code, response.headers["X-Id"]) == (201, "7")
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {"ok": [1, "é"]}
    assert int(response.headers["Content-Length"]) == len(response.content)
    assert route.called
    assert route.call_count == router.call_count == 1
    assert route.calls[0].json() == {"model": "m"}


async def test_a_router_is_a_handler_of_the_mock_transport() -> None:
    router = Router()
    router.get("/x").respond(text="häh")
    response = await MockTransport(router).send(Request("GET", "https://h/x"))

    await response.aread()
    assert response.text == "häh"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.request is not None


async def test_events_come_one_by_one() -> None:
    router = Router()
    named = ServerSentEvent(event="ping", data="two\nlines", id="9", retry=5)
    router.post("/v1/chat").respond(sse=[{"delta": "a"}, "[DONE]", named])

    async with (
        Client(base_url=URL, transport=router.transport) as client,
        client.stream("POST", "/chat") as response,
    ):
        events = [event async for event in response.aiter_sse()]

    assert [event.data for event in events] == ['{"delta":"a"}', "[DONE]", "two\nlines"]
    assert events[2] == named
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "Content-Length" not in response.headers


async def test_pieces_stay_pieces_and_can_be_asked_for_again() -> None:
    router = Router()
    router.get("/x").respond(content=[b"a", b"bc"])
    for _ in range(2):
        response = await router.transport.send(Request("GET", "https://h/x"))
        assert [piece async for piece in response.aiter_raw()] == [b"a", b"bc"]


async def test_answers_are_given_in_turn_and_the_last_one_stays() -> None:
    router = Router()
    router.get("/x").respond(429).raises(ConnectError("refused")).respond(200)
    seen: list[object] = []
    for _ in range(4):
        try:
            seen.append((await router.transport.send(Request("GET", "https://h/x"))).status_code)
        except ConnectError as error:
            seen.append(str(error))

    assert seen == [429, "refused", 200, 200]


async def test_a_route_without_an_answer_answers_200() -> None:
    router = Router()
    router.route()
    response = await router.transport.send(Request("GET", "https://h/x"))
    assert (response.status_code, await response.aread()) == (200, b"")


async def test_a_function_may_answer() -> None:
    router = Router()

    async def echo(request: Request) -> tuple[int, dict[str, str], bytes]:
        assert isinstance(request.content, bytes)
        return 200, {}, request.content[::-1]

    router.post("/x").side_effect(echo).side_effect(lambda request: Response(204))
    transport = router.transport
    first = await transport.send(Request("POST", "https://h/x", content=b"abc"))
    second = await transport.send(Request("POST", "https://h/x"))
    assert (await first.aread(), second.status_code) == (b"cba", 204)


async def test_a_streamed_body_has_been_read() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a"'
        yield b": 1}"

    router = Router()
    route = router.post("/x", json={"a": 1})
    await router.transport.send(Request("POST", "https://h/x?k=1&k=", content=pieces()))
    call = route.calls[0]
    assert (call.body, call.text, call.json()) == (b'{"a": 1}', '{"a": 1}', {"a": 1})
    assert call.params == {"k": ["1", ""]}


async def test_a_streamed_body_shorter_than_its_length_is_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"

    router = Router()
    router.post("/x")
    request = Request("POST", "https://h/x", content=pieces(), headers={"Content-Length": "2"})
    with pytest.raises(InvalidRequest, match="Content-Length"):
        await router.transport.send(request)


async def test_head_has_the_headers_and_no_body() -> None:
    router = Router()
    router.head("/x").respond(text="12345")
    response = await router.transport.send(Request("HEAD", "https://h/x"))
    assert response.headers["Content-Length"] == "5"
    assert await response.aread() == b""


@pytest.mark.parametrize(
    ("conditions", "url", "is_match"),
    [
        ({"url": "/v1/models"}, "https://h/v1/models?x=1", True),
        ({"url": "/v1/models"}, "https://h/v1/models/a", False),
        ({"url": "/v1/models/*"}, "https://h/v1/models/a", True),
        ({"url": "/v1/models/*"}, "https://h/v1/models/a/b", False),
        ({"url": "/*/b"}, "https://h/a/b", True),
        ({"url": "/a b"}, "https://h/a b", True),
        ({"url": "https://h/v1"}, "https://h:443/v1", True),
        ({"url": "https://h/v1"}, "http://h/v1", False),
        ({"url": "/v1?key=a"}, "https://h/v1?other=&key=a", True),
        ({"url": "/v1?key=a"}, "https://h/v1?key=b", False),
        ({"url": re.compile(r"/v[12]/")}, "https://h/v2/x", True),
        ({"url": re.compile(r"/v[12]/")}, "https://h/v3/x", False),
        ({"host": "*.example.com"}, "https://api.example.com/", True),
        ({"host": "api.example.com"}, "https://example.com/", False),
        ({"params": {"a": ["1", "2"]}}, "https://h/?a=1&a=2", True),
        ({"params": {"a": ["1", "2"]}}, "https://h/?a=2", False),
        ({"params": {"a": re.compile("^1")}}, "https://h/?a=12", True),
        ({"headers": {"x-model": "large"}}, "https://h/", True),
        ({"headers": {"x-model": re.compile("small")}}, "https://h/", False),
        ({"headers": {"x-none": "1"}}, "https://h/", False),
        ({"json": {"model": "m"}}, "https://h/", True),
        ({"json": {"messages": [{"role": "user"}]}}, "https://h/", True),
        ({"json": {"options": {"n": 1}}}, "https://h/", True),
        ({"json": {"options": {"n": 2}}}, "https://h/", False),
        ({"json": {"none": 1}}, "https://h/", False),
        ({"where": lambda request: request.json()["model"] == "m"}, "https://h/", True),  # pyright: ignore
        ({"where": lambda request: False}, "https://h/", False),  # pyright: ignore
    ],
)
async def test_conditions(conditions: dict[str, object], url: str, is_match: bool) -> None:
    router = Router()
    router.post(**conditions)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    body = b'{"model": "m", "messages": [{"role": "user"}], "options": {"n": 1, "o": 2}}'
    request = Request("POST", url, headers={"X-Model": "large"}, content=body)
    if is_match:
        await router.transport.send(request)
    else:
        with pytest.raises(UnexpectedRequest):
            await router.transport.send(request)


async def test_the_first_route_that_matches_answers() -> None:
    router = Router()
    first = router.get("/x")
    second = router.route("GET")
    await router.transport.send(Request("GET", "https://h/x"))
    assert (first.call_count, second.call_count) == (1, 0)


async def test_an_unexpected_request_is_told_what_each_route_wants_the_nearest_first() -> None:
    router = Router()
    router.get("/v1/files", host="files.example.com")
    router.post("/v1/chat/completions", json={"model": "large"})
    with pytest.raises(UnexpectedRequest) as caught:
        await router.transport.send(
            Request("POST", f"{URL}/chat/completions", content=b'{"model": "small"}')
        )

    first, second, third = str(caught.value).splitlines()
    assert first == "no route matches POST https://api.example.com/v1/chat/completions"
    assert "POST /v1/chat/completions json={'model': 'large'}" in second
    assert second.endswith(">: body.model is 'small'")
    assert "the method is POST; the host is api.example.com; the path is" in third
    assert not isinstance(caught.value, TransportError)


async def test_objects_in_lists_may_have_more_keys_and_lists_no_more_items() -> None:
    router = Router()
    router.post("/x", json={"messages": [{"role": "user"}, {"n": [1]}]})

    async def ask(messages: list[object]) -> None:
        body = json.dumps({"messages": messages}).encode()
        await router.transport.send(Request("POST", "https://h/x", content=body))

    await ask([{"role": "user", "content": "hi"}, {"n": [1], "m": 2}])
    with pytest.raises(UnexpectedRequest, match=r"body\.messages\[1\]\.n has 2 items"):
        await ask([{"role": "user"}, {"n": [1, 2]}])
    with pytest.raises(UnexpectedRequest, match=r"body\.messages\[0\]\.role is 'system'"):
        await ask([{"role": "system"}, {"n": [1]}])


@pytest.mark.parametrize("newline", ["\r", "\n", "\r\n"])
async def test_no_text_of_an_event_is_lost_after_a_newline(newline: str) -> None:
    router = Router()
    router.get("/x").respond(sse=[f"a{newline}b"])
    async with await router.transport.send(Request("GET", "https://h/x")) as response:
        assert [event.data async for event in response.aiter_sse()] == ["a\nb"]


async def says_yes(request: Request) -> bool:
    return True


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ({"params": {"limit": 10}}, "params: of 'limit' give text, .* not 10"),
        ({"headers": {"x-n": [1]}}, "headers: of 'x-n' give text"),
        ({"where": says_yes}, "where: it has to be a plain function"),
    ],
)
def test_a_condition_that_could_not_hold_is_refused_at_once(
    conditions: dict[str, Any], told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        Router().get("/x", **conditions)


@pytest.mark.parametrize("content", ["hello", ["hello"], [1]])
def test_content_that_is_no_bytes_is_refused_at_once(content: Any) -> None:
    with pytest.raises(TypeError, match="content: give bytes"):
        Router().get("/x").respond(content=content)


@pytest.mark.parametrize("content", [bytearray(b"hello"), memoryview(b"hello")])
async def test_other_buffers_are_bytes(content: Any) -> None:
    router = Router()
    router.get("/x").respond(content=content)
    response = await router.transport.send(Request("GET", "https://h/x"))
    assert await response.aread() == b"hello"


async def test_the_case_of_a_method_and_of_a_host_is_no_difference() -> None:
    router = Router()
    router.route("get", "/x", host="API.test").respond(text="fine")
    response = await router.transport.send(Request("GET", "https://api.test/x"))
    assert await response.aread() == b"fine"


def test_a_status_is_not_raised_by_a_route() -> None:
    with pytest.raises(TypeError, match="respond"):
        Router().get().raises(HTTPStatusError)


@pytest.mark.parametrize("answer", [None, {"a": 1}, (200, {})])
async def test_a_handler_that_answers_something_else_is_told_what_to(answer: Any) -> None:
    router = Router()
    router.get().side_effect(lambda request: answer)
    for transport in (router.transport, MockTransport(lambda request: answer)):
        with pytest.raises(TypeError, match="has to return a Response or"):
            await transport.send(Request("GET", "https://h/x"))


async def test_an_unexpected_request_is_told_of_without_its_secrets() -> None:
    secrets = ("sk-query-1234", "sk-header-1234", "sk-json-1234", "hunter2")
    router = Router()
    router.get("/y", params={"api_key": "sk-mine"}, headers={"authorization": "Bearer sk-mine"})
    router.post("/x", json={"auth": {"api_key": "sk-mine", "n": 1}})
    router.post("/x", json={"auth": {"password": 1}})
    router.get(re.compile("/z"))
    auth = {"api_key": secrets[2], "password": secrets[3], "n": 2}
    request = Request(
        "POST",
        f"https://h/x?api_key={secrets[0]}",
        headers={"Authorization": f"Bearer {secrets[1]}"},
        content=json.dumps({"auth": auth}).encode(),
    )
    with pytest.raises(UnexpectedRequest) as caught:
        await router.transport.send(request)
    with pytest.raises(AssertionError) as again:
        router.assert_all_expected()

    text = f"{caught.value}\n{again.value}"
    assert not [secret for secret in secrets if secret in text]
    assert "the query api_key is REDACTED; the header authorization is REDACTED" in text
    assert "body.auth.api_key is 'REDACTED'; body.auth.n is 2" in text


async def test_an_unexpected_request_that_was_hidden_is_found() -> None:
    router = Router()
    router.assert_all_expected()
    with pytest.raises(UnexpectedRequest):
        await router.transport.send(Request("GET", "https://h/x"))

    assert [request.path for request in router.unexpected] == ["/x"]
    with pytest.raises(AssertionError, match="GET https://h/x: the router has no routes"):
        router.assert_all_expected()


async def test_routes_nobody_called_are_named() -> None:
    router = Router()
    router.get("/called")
    router.delete("/idle", host="h")
    await router.transport.send(Request("GET", "https://h/called"))
    with pytest.raises(AssertionError, match=r"^not called: <Route DELETE /idle host='h'>$"):
        router.assert_all_called()

    await router.transport.send(Request("DELETE", "https://h/idle"))
    router.assert_all_called()


@pytest.mark.parametrize(
    ("kind", "phase", "request_sent", "response_started", "replay"),
    [
        (ConnectError, "connect", False, False, "safe"),
        (WriteTimeout, "write", None, False, "if_idempotent"),
        (RemoteDisconnected, "headers", True, False, "if_idempotent"),
        (StreamRefused, "headers", True, False, "safe"),
        (ReadTimeout, "body", True, True, "unsafe"),
        (TransportClosed, "pool", False, False, "safe"),
    ],
)
async def test_an_error_made_from_its_class_has_the_facts_of_a_real_one(
    kind: type[TransportError],
    phase: str | None,
    request_sent: bool | None,
    response_started: bool,
    replay: str,
) -> None:
    router = Router()
    router.post("/x").raises(kind)
    with pytest.raises(kind) as caught:
        await router.transport.send(Request("POST", "https://h/x", content=b"1234"))

    error = caught.value
    assert (error.phase, error.request_sent, error.replay) == (phase, request_sent, replay)
    assert (error.response_started, error.host, error.port) == (response_started, "h", 443)
    assert (error.bytes_sent > 4) is (request_sent is not False)


async def test_any_other_error_is_raised_as_it_is() -> None:
    failure = KeyError("x")
    router = Router()
    router.get("/x").raises(failure).raises(ZeroDivisionError)
    with pytest.raises(KeyError) as caught:
        await router.transport.send(Request("GET", "https://h/x"))
    assert caught.value is failure
    with pytest.raises(ZeroDivisionError):
        await router.transport.send(Request("GET", "https://h/x"))


def test_what_could_never_be_answered_is_refused_when_it_is_said() -> None:
    router = Router()
    with pytest.raises(TypeError, match="json, text"):
        router.get("/x").respond(json={}, text="")
    with pytest.raises(InvalidRequest, match="headers"):
        router.get("/x").respond(headers={"a b": "1"})
    with pytest.raises(ValueError, match="path"):
        router.get("x")
