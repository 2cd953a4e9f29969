"""The client: what it makes of a URL, headers and a body, and what it does with the answer.

Knows `Client` on a transport made of a function. Does not know backends or pools.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError
from yarl import URL

from trunkline import (
    BodyTruncated,
    Capabilities,
    Client,
    InvalidRequest,
    PoolSnapshot,
    Request,
    Response,
    StreamReset,
    Timeouts,
    Transport,
    TransportClosed,
    TransportConfig,
    __version__,
)
from trunkline.testing import MockTransport

pytestmark = pytest.mark.anyio


def answer(request: Request) -> Response:
    return Response(200, content=b"ok")


def make(**options: Any) -> Client:
    return Client(transport=MockTransport(answer), **options)


def built(method: str = "POST", url: str = "https://h/", **options: Any) -> Request:
    return make().build_request(method, url, **options)


# --- URLs


@pytest.mark.parametrize(
    ("base_url", "url", "expected"),
    [
        ("", "https://h/x", "https://h/x"),
        ("https://h", "x", "https://h/x"),
        ("https://h", "/x", "https://h/x"),
        ("https://h/", "/x", "https://h/x"),
        ("https://h/v1", "x", "https://h/v1/x"),
        ("https://h/v1", "/x", "https://h/v1/x"),
        ("https://h/v1/", "x", "https://h/v1/x"),
        ("https://h/v1/", "/x", "https://h/v1/x"),
        ("https://h/v1/", "/x/", "https://h/v1/x/"),
        ("https://h/v1", "x/y?a=b/c", "https://h/v1/x/y?a=b/c"),
        ("https://h/v1", "", "https://h/v1"),
        ("https://h/v1/", "", "https://h/v1/"),
        ("https://h:8443/v1", "/x", "https://h:8443/v1/x"),
        ("https://h/v1", "x:y", "https://h/v1/x:y"),
        ("https://h/v1", "/r?to=https://other/", "https://h/v1/r?to=https://other/"),
        ("https://h/v1", "r/https://other/", "https://h/v1/r/https://other/"),
        ("https://h/v1", "http://other/x", "http://other/x"),
        ("https://h/v1", "HTTPS://other/x", "HTTPS://other/x"),
        ("https://h/v1%2Fa", "/b%2Fc", "https://h/v1%2Fa/b%2Fc"),
    ],
)
def test_a_url_is_joined_to_the_base(base_url: str, url: str, expected: str) -> None:
    request = make(base_url=base_url).build_request("GET", url)

    wanted = Request("GET", expected)
    assert (request.origin, request.path) == (wanted.origin, wanted.path)


@pytest.mark.parametrize(
    "url", ["//other/x", "///other/x", "/../x", "@other/x", ":80/x", "?a", "\\x"]
)
def test_no_relative_url_leaves_the_host_of_the_base(url: str) -> None:
    request = make(base_url="https://h/v1").build_request("GET", url)

    assert str(request.origin) == "https://h"
    assert request.path.startswith("/v1")


relative = st.text(
    st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="#"), max_size=20
).filter(lambda text: "://" not in text)


@given(url=relative)
def test_whatever_is_relative_stays_below_the_base(url: str) -> None:
    request = make(base_url="https://h:8443/v1/").build_request("GET", url)

    assert str(request.origin) == "https://h:8443"
    assert request.path.startswith("/v1")


def test_url_objects_are_as_good_as_text() -> None:
    client = make(base_url=URL("https://h/v1"))

    assert client.build_request("GET", URL("/x")).path == "/v1/x"


@pytest.mark.parametrize(
    "base_url",
    [
        "h",
        "/v1",
        "ftp://h",
        "https://",
        "https://user:hunter2@h/",
        "https://h/v1?k=1",
        "https://h/#f",
    ],
)
def test_a_base_url_that_is_none_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make(base_url=base_url)

    assert "hunter2" not in str(caught.value)


def test_a_relative_url_without_a_base_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="absolute"):
        make().build_request("GET", "/x")


# --- params


@pytest.mark.parametrize(
    ("url", "params", "path"),
    [
        ("https://h/x", None, "/x"),
        ("https://h/x", {}, "/x"),
        ("https://h/x", {"a": "1", "b": 2}, "/x?a=1&b=2"),
        ("https://h/x?z=0", {"a": "1"}, "/x?z=0&a=1"),
        ("https://h", {"a": "1"}, "/?a=1"),
        ("https://h/x", {"a": [1, 2], "b": (3,)}, "/x?a=1&a=2&b=3"),
        ("https://h/x", [("a", 1), ("b", 2), ("a", 3)], "/x?a=1&b=2&a=3"),
        ("https://h/x", {"a": True, "b": False, "c": None, "d": 1.5}, "/x?a=true&b=false&c=&d=1.5"),
        ("https://h/x", {"a": []}, "/x"),
        ("https://h/x#fragment", {"a": 1}, "/x?a=1"),
        ("https://h/x?z=0#fragment", {"a": 1}, "/x?z=0&a=1"),
    ],
)
def test_params_are_added_to_the_query(url: str, params: Any, path: str) -> None:
    assert built("GET", url, params=params).path.rstrip("?") == path


pairs = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    max_size=5,
)


@given(params=pairs)
def test_params_of_any_text_arrive_as_they_were(params: list[tuple[str, str]]) -> None:
    request = built("GET", "https://h/x?z=0", params=params)

    query = urlsplit(request.path).query
    assert parse_qsl(query, keep_blank_values=True) == [("z", "0"), *params]


@pytest.mark.parametrize("params", ["a=1", 5, ["a"], {"a": "\ud800"}, {"\ud800": 1}])
def test_what_are_no_params_is_refused_by_name(params: Any) -> None:
    with pytest.raises(InvalidRequest, match="params"):
        built("GET", params=params)


# --- headers


def test_defaults_are_sent_unless_replaced() -> None:
    headers = make().build_request("GET", "https://h/").headers

    assert headers["Accept"] == "*/*"
    assert headers["User-Agent"] == f"trunkline/{__version__}"
    assert set(headers["Accept-Encoding"].split(", ")) == {"gzip", "deflate", "br", "zstd"}
    assert len(headers) == 3


def test_a_later_header_of_a_name_replaces_all_earlier_ones() -> None:
    client = make(headers=[("user-agent", "me"), ("X-A", "1"), ("x-a", "2"), ("X-B", "3")])

    own = client.build_request("GET", "https://h/").headers
    theirs = client.build_request("GET", "https://h/", headers=[("X-a", "4"), ("x-A", "5")]).headers

    assert own.getall("User-Agent") == ["me"]
    assert own.getall("X-A") == ["1", "2"]
    assert theirs.getall("X-A") == ["4", "5"]
    assert theirs.getall("X-B") == ["3"]


def test_one_requests_headers_are_not_the_next_ones() -> None:
    client = make()
    client.build_request("GET", "https://h/", headers={"Authorization": "secret"})

    assert "Authorization" not in client.build_request("GET", "https://h/").headers


def test_a_header_that_has_changed_is_sent_as_it_is_now() -> None:
    client, headers = make(), {"X-Attempt": "1", "X-Other": "same"}
    for attempt in ("1", "2", "1"):
        headers["X-Attempt"] = attempt
        request = client.build_request("POST", "https://h/", headers=headers, json={})
        assert request.headers["X-Attempt"] == attempt


@pytest.mark.parametrize(
    "headers", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"a": 1}, {"a": ["b"]}, (("a", ["b"]),)]
)
def test_bad_headers_are_refused_wherever_they_are_given(headers: Any) -> None:
    with pytest.raises(InvalidRequest, match="headers"):
        make(headers=headers)
    with pytest.raises(InvalidRequest, match="headers"):
        built(headers=headers)


# --- bodies


def test_json_is_compact_utf8_with_its_type() -> None:
    request = built(json={"text": "é☃", "list": [1, 2.5, None, True]})

    assert request.content == '{"text":"é☃","list":[1,2.5,null,true]}'.encode()
    assert request.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("value", [0, False, "", [], {}])
def test_an_empty_json_value_is_a_body_too(value: Any) -> None:
    assert built(json=value).content == json.dumps(value).encode()


json_values: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(value=json_values)
def test_any_json_arrives_as_it_was(value: Any) -> None:
    content = built(json=value).content

    assert isinstance(content, bytes)
    assert json.loads(content) == value


def circular() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def deep() -> list[Any]:
    items: list[Any] = []
    for _ in range(100_000):
        items = [items]
    return items


@pytest.mark.parametrize(
    "value",
    [
        {"a": object()},
        {"a": b"bytes"},
        {"a": {1, 2}},
        float("nan"),
        [float("inf")],
        {(1, 2): 3},
        {"a": "\ud800"},
        circular(),
        deep(),
    ],
    ids=["object", "bytes", "set", "nan", "inf", "key", "surrogate", "circular", "deep"],
)
def test_what_json_has_no_form_for_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="json"):
        built(json=value)


def test_form_fields_are_encoded_with_their_type() -> None:
    request = built(data={"a": "é &=", "b": [1, True], "c": None})

    assert request.content == b"a=%C3%A9+%26%3D&b=1&b=true&c="
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"


def test_no_form_fields_are_an_empty_form() -> None:
    request = built(data={})

    assert request.content == b""
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"


@pytest.mark.parametrize("data", ["a=1", 5, ["a"], {"a": "\ud800"}])
def test_what_are_no_form_fields_is_refused_by_name(data: Any) -> None:
    with pytest.raises(InvalidRequest, match="data"):
        built(data=data)


@pytest.mark.parametrize("content_type", ["application/vnd.api+json", ""])
def test_a_content_type_that_is_given_is_kept(content_type: str) -> None:
    headers = {"content-type": content_type}

    for request in (built(headers=headers, json={}), built(headers=headers, data={})):
        assert request.headers.getall("Content-Type") == [content_type]


def test_a_content_type_of_the_clients_headers_is_kept_too() -> None:
    client = make(headers={"Content-Type": "application/vnd.api+json"})

    request = client.build_request("POST", "https://h/", json={})

    assert request.headers.getall("Content-Type") == ["application/vnd.api+json"]


def test_content_sets_no_type() -> None:
    request = built(content=b"body")

    assert request.content == b"body"
    assert "Content-Type" not in request.headers


@pytest.mark.parametrize(
    "bodies",
    [
        {"content": b"", "json": {}},
        {"content": "", "data": {}},
        {"json": 0, "data": {}},
        {"content": b"", "json": {}, "data": {}},
    ],
)
def test_two_bodies_are_refused(bodies: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="content, json, data"):
        built(**bodies)


def test_options_of_the_request_reach_it() -> None:
    timeouts = Timeouts(read=1)

    request = built(timeouts=timeouts, idempotent=True, priority=3)

    assert request.timeouts is timeouts
    assert request.is_idempotent
    assert request.priority == 3


# --- sending


@pytest.mark.parametrize("method", ["get", "head", "post", "put", "patch", "delete", "options"])
async def test_each_verb_sends_its_method_and_reads_the_answer(method: str) -> None:
    transport = MockTransport(answer)
    async with Client(transport=transport, base_url="https://h/v1") as client:
        response: Response = await getattr(client, method)("/x", headers={"X-A": "1"})

    (request,) = transport.requests
    assert (request.method, request.path) == (method.upper(), "/v1/x")
    assert request.headers["X-A"] == "1"
    assert response.is_closed
    assert response.content == b"ok"
    assert response.request is request


async def test_a_request_is_sent_as_it_is() -> None:
    transport = MockTransport(answer)
    request = Request("GET", "https://other/x")

    async with (
        Client(transport=transport, base_url="https://h/", headers={"X-A": "1"}) as client,
        await client.send(request) as response,
    ):
        assert not response.is_closed

    assert transport.requests == [request]
    assert "X-A" not in request.headers


@pytest.mark.parametrize("status", [100, 301, 404, 500])
async def test_a_status_is_no_error_and_no_redirect_is_followed(status: int) -> None:
    transport = MockTransport(lambda request: (status, {"Location": "/elsewhere"}, b"body"))
    async with Client(transport=transport) as client:
        response = await client.get("https://h/")

    assert (response.status_code, response.content) == (status, b"body")
    assert len(transport.requests) == 1


async def test_no_cookie_is_kept() -> None:
    transport = MockTransport(lambda request: (200, {"Set-Cookie": "a=b"}, b""))
    async with Client(transport=transport) as client:
        await client.get("https://h/")
        await client.get("https://h/")

    assert "Cookie" not in transport.requests[1].headers


async def pieces_then(*pieces: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


async def test_a_stream_is_read_by_the_block_and_closed_after_it() -> None:
    transport = MockTransport(lambda request: Response(200, content=pieces_then(b"a", b"b")))
    async with (
        Client(transport=transport) as client,
        client.stream("POST", "https://h/", json={"stream": True}) as response,
    ):
        assert not response.is_closed
        assert [piece async for piece in response.aiter_bytes()] == [b"a", b"b"]

    assert response.is_closed
    assert transport.requests[0].content == b'{"stream":true}'


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
async def test_a_stream_is_closed_however_its_block_is_left(how: str) -> None:
    seen: list[Response] = []
    async with make() as client:
        with anyio.CancelScope() as scope:
            try:
                async with client.stream("GET", "https://h/") as response:
                    seen.append(response)
                    if how == "raise":
                        raise KeyError(how)
                    if how == "cancel":
                        scope.cancel()
                        await anyio.sleep_forever()
            except KeyError:
                assert how == "raise"

    assert seen[0].is_closed


async def test_an_answer_that_breaks_off_is_an_error_of_the_call() -> None:
    failure = BodyTruncated("cut")
    transport = MockTransport(
        lambda request: Response(200, content=pieces_then(b"a", error=failure))
    )
    async with Client(transport=transport) as client:
        with pytest.raises(BodyTruncated) as caught:
            await client.get("https://h/")

    assert caught.value is failure


async def test_an_error_of_the_transport_comes_through_as_it_is() -> None:
    failure = StreamReset("reset")

    def fail(request: Request) -> Response:
        raise failure

    async with Client(transport=MockTransport(fail)) as client:
        with pytest.raises(StreamReset) as caught:
            await client.get("https://h/")

    assert caught.value is failure


@pytest.mark.parametrize("url", ["/x", "https://h/\r\nX: y", "ftp://h/"])
async def test_a_request_that_is_refused_is_never_sent(url: str) -> None:
    transport = MockTransport(answer)
    async with Client(transport=transport) as client:
        with pytest.raises(InvalidRequest):
            await client.get(url)
        with pytest.raises(InvalidRequest):
            async with client.stream("GET", url):
                raise AssertionError

    assert transport.requests == []


async def test_an_unknown_option_of_a_request_is_an_error() -> None:
    async with make() as client:
        with pytest.raises(TypeError, match="timeout"):
            await client.get("https://h/", timeout=5)


# --- the client itself


def test_the_client_tells_its_transport_and_why() -> None:
    transport = MockTransport(answer)
    client = Client(transport=transport)

    assert client.transport is transport
    assert client.backend == "mock"
    assert client.backend_reason == "mock: the transport was given"
    assert client.snapshot() == PoolSnapshot()
    assert repr(client) == "<Client on mock>"


def test_a_client_is_made_of_a_config_or_its_fields() -> None:
    config = TransportConfig(backend="aiohttp")

    for client in (Client(config), Client(backend="aiohttp")):
        assert client.backend == "aiohttp"
        assert client.backend_reason == "aiohttp: the config names it"


def test_a_client_takes_either_a_transport_or_a_config() -> None:
    transport = MockTransport(answer)

    with pytest.raises(TypeError, match="http2"):
        Client(TransportConfig(), http2=True)
    with pytest.raises(TypeError, match="not both"):
        Client(TransportConfig(), transport=transport)
    with pytest.raises(TypeError, match="not both"):
        Client(transport=transport, http2=True)


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        ({"timeout": 5}, "timeouts"),
        ({"max_connections": 5}, "limits.max_connections"),
        ({"limits": {"max_connection": 5}}, "max_connections"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_one(
    options: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(ValidationError, match=rf"did you mean {nearest}\?"):
        Client(**options)


def test_a_bad_value_of_a_field_is_named() -> None:
    with pytest.raises(ValidationError, match=r"limits\.max_connections"):
        Client(limits={"max_connections": 0})


async def test_a_closed_client_sends_nothing() -> None:
    client = make()
    await client.aclose()
    await client.aclose()

    with pytest.raises(TransportClosed):
        await client.get("https://h/")


async def test_warming_is_relative_to_the_base_too() -> None:
    asked: list[tuple[str, int]] = []

    class Warmed(MockTransport):
        async def warm(self, url: str, connections: int = 1) -> int:
            asked.append((url, connections))
            return connections

    client = Client(transport=Warmed(answer), base_url="https://h:8443/v1")
    assert await client.warm() == 1
    assert await client.warm("/x", 4) == 4
    assert await client.warm(URL("https://other/"), connections=2) == 2

    assert [(Request("GET", url).origin.host, count) for url, count in asked] == [
        ("h", 1),
        ("h", 4),
        ("other", 2),
    ]


class Least:
    """A transport with what the contract asks for and nothing else."""

    capabilities = Capabilities(name="least", trio=True)

    def __init__(self) -> None:
        self.closed = False

    async def send(self, request: Request) -> Response:
        return Response(204, request=request)

    async def warm(self, url: str, connections: int = 1) -> int:
        return 0

    def snapshot(self) -> PoolSnapshot:
        return PoolSnapshot()

    async def aclose(self) -> None:
        self.closed = True


async def test_a_transport_of_the_pinned_contract_is_enough() -> None:
    transport = Least()
    assert isinstance(transport, Transport)

    untyped: Any = transport
    async with Client(transport=untyped) as client:
        response = await client.get("https://h/")

    assert (client.backend, response.status_code) == ("least", 204)
    assert transport.closed
