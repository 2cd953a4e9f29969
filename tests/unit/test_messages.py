"""Requests and responses: what is refused, what goes on the wire, how a body may be read.

Knows the messages alone. Does not know connections: bodies come from memory or from a stream made
here.
"""

from __future__ import annotations

import gc
import gzip
import json
import re
import string
import traceback
from collections.abc import AsyncIterator, Callable
from encodings.aliases import aliases
from typing import Any

import anyio
import pytest
from hypothesis import example, given, settings, strategies as st
from multidict import CIMultiDict
from yarl import URL

from trunkline import (
    BodyTruncated,
    DecodeError,
    HTTPStatusError,
    InvalidRequest,
    Request,
    Response,
    Timeouts,
    TransportError,
)

pytestmark = pytest.mark.anyio

SECRET = "hunter2"
ON_THE_WIRE = re.compile(r"/[\x21-\x7e]*")
A_HOST = re.compile(r"[0-9a-z._~!$&'()*+,;=-]+|[0-9a-f:.]+(%[0-9a-z._~-]+)?")

# What a careless check would let through: all kinds of line ends, what ends a URL's parts, what has
# no bytes. Apart from the control characters, which would have almost every example refused.
odd = st.text(st.sampled_from(" \x85\u2028\ud800\udc0d\u0130\uff0f:/@?#[]%\\ab0é"), max_size=8)
controls = st.text(st.sampled_from("\r\n\0\t\x0b\x0c\x1c\x7fa:/"), max_size=8)
any_text = odd | controls | st.text(st.characters(), max_size=20)
many = settings(max_examples=400)


def get(url: str, **options: Any) -> Request:
    return Request("GET", url, **options)


def host_of(url: str) -> str:
    return get(url).origin.host


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def refusal(make: Callable[[], object]) -> str:
    """What is said of a request that is refused, with all that a log would show of it."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert caught.value.phase == "request"
    assert caught.value.request_sent is False
    return "".join(traceback.format_exception(caught.value, limit=0))


# --- URLs: the origin


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("http://api.example.com", ("http", "api.example.com", 80), "api.example.com"),
        ("https://api.example.com/", ("https", "api.example.com", 443), "api.example.com"),
        ("https://api.example.com:443/", ("https", "api.example.com", 443), "api.example.com"),
        ("https://api.example.com:80/", ("https", "api.example.com", 80), "api.example.com:80"),
        ("http://localhost:8080/v1", ("http", "localhost", 8080), "localhost:8080"),
        ("HTTP://API.Example.COM/", ("http", "api.example.com", 80), "api.example.com"),
        ("http://a_b.example/", ("http", "a_b.example", 80), "a_b.example"),
        ("http://127.0.0.1:1/", ("http", "127.0.0.1", 1), "127.0.0.1:1"),
        ("http://[::1]/", ("http", "::1", 80), "[::1]"),
        ("https://[2001:DB8::1]:8443/", ("https", "2001:db8::1", 8443), "[2001:db8::1]:8443"),
        ("http://[::ffff:10.0.0.1]:65535/", ("http", "::ffff:10.0.0.1", 65535), None),
        ("http://example.com:/", ("http", "example.com", 80), "example.com"),
        ("http://bücher.example/", ("http", "xn--bcher-kva.example", 80), None),
        ("http://例え.テスト/", ("http", "xn--r8jz45g.xn--zckzah", 80), None),
        ("http://xn--bcher-kva.example/", ("http", "xn--bcher-kva.example", 80), None),
    ],
)
def test_a_url_names_its_origin(
    url: str, origin: tuple[str, str, int], authority: str | None
) -> None:
    found = get(url).origin

    assert tuple(found) == origin
    assert found.is_tls == (origin[0] == "https")
    if authority is not None:
        assert found.authority == authority
        assert str(found) == f"{origin[0]}://{authority}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/v1/chat",
        "api.example.com",
        "api.example.com/v1",
        "//api.example.com/v1",
        "ftp://api.example.com/",
        "ws://api.example.com/",
        "file:///etc/passwd",
        "http:api.example.com",
        "http:/api.example.com",
        "http://",
        "http:///v1",
        "http://:80/",
        "http://?q",
        "http://#f",
    ],
)
def test_a_url_without_scheme_or_host_is_refused(url: str) -> None:
    assert "url: " in refusal(lambda: get(url))


@pytest.mark.parametrize(
    "host",
    [
        "a b",
        "a\\b",
        "a<b",
        "a>b",
        'a"b',
        "a^b",
        "a`b",
        "a{b",
        "a|b",
        "a%41b",
        "a%0d%0ab",
        "%",
        "a\u3000b",
        "a\u2028b",
        "\ud800",
        "ü" * 64,
        "::1",
        "[::1",
        "::1]",
        "[]",
        "[::1]]",
        "[[::1]",
        "[::1]x",
        "x[::1]",
        "[::1%]",
        "[::1% a]",
        "[::1%é]",
        "[12345::]",
        "[example.com]",
        "[v1.a]",
        "[v1.a:b]",
        "[1.2.3.4]",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    refusal(lambda: get(f"http://{host}/"))


@pytest.mark.parametrize("port", ["0", "65536", "-1", "+80", "80:80", "8o", "٨٠", " 80", "1e3"])
def test_what_is_no_port_is_refused(port: str) -> None:
    refusal(lambda: get(f"http://example.com:{port}/"))


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@example.com/",
        f"http://{SECRET}@example.com/",
        f"http://{SECRET}@[::1]/",
        f"http://user:{SECRET}/x@example.com/",
        f"http://user:{SECRET}\u2100@example.com/",
        f"http://user:{SECRET}@[::1/",
        f"http://user:{SECRET}@example.com:x/",
        f"http://user:{SECRET}@exa mple.com/",
        f"ftp://example.com/?key={SECRET}",
        f"http://example.com/?key={SECRET}\n",
        f"/v1?key={SECRET}",
    ],
)
def test_userinfo_is_refused_and_never_shown(url: str) -> None:
    assert SECRET not in refusal(lambda: get(url))


# --- URLs: the target


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h", "/"),
        ("http://h/", "/"),
        ("http://h?q=1", "/?q=1"),
        ("http://h/a?", "/a?"),
        ("http://h?", "/?"),
        ("http://h/a/../b/./c//d", "/a/../b/./c//d"),
        ("http://h/a;b=c,d", "/a;b=c,d"),
        ("http://h/%2C%2f%00", "/%2C%2f%00"),
        ("http://h/100%", "/100%"),
        ("http://h/a?b?c/d", "/a?b?c/d"),
        ("http://h/a+b?c+d", "/a+b?c+d"),
        ("http://h/a@b:c", "/a@b:c"),
        ("http://h/a[0]?b[1]=2", "/a[0]?b[1]=2"),
        ("http://h/http://i/", "/http://i/"),
        ("http://h/a b?c d", "/a%20b?c%20d"),
        ('http://h/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("http://h/é?ü=☃", "/%C3%A9?%C3%BC=%E2%98%83"),
        ("http://h/a\u2028\x85", "/a%E2%80%A8%C2%85"),
        ("http://h/a#fragment", "/a"),
        ("http://h#fragment?no", "/"),
        ("http://h/a?q#fragment", "/a?q"),
        ("http://h/a?#fragment", "/a?"),
    ],
)
def test_path_and_query_as_they_go_on_the_wire(url: str, path: str) -> None:
    assert get(url).path == path


legal = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%", max_size=30)


@given(path=legal, query=st.none() | st.text(string.ascii_letters + "-._~!$&'()*+,;=:@/?%"))
def test_legal_bytes_of_a_url_are_not_changed(path: str, query: str | None) -> None:
    target = f"/{path}" + ("" if query is None else f"?{query}")

    assert get(f"http://example.com{target}").path == target


@many
@given(text=any_text)
def test_no_text_in_a_path_splits_the_request(text: str) -> None:
    try:
        request = get(f"http://example.com/{text}")
    except InvalidRequest:
        return

    assert request.origin.host == "example.com"
    assert ON_THE_WIRE.fullmatch(request.path)


@many
@given(text=any_text)
@example("example.com:80/x@evil")
def test_no_text_in_a_host_splits_the_request(text: str) -> None:
    try:
        request = get(f"http://{text}")
    except InvalidRequest:
        return

    assert A_HOST.fullmatch(request.origin.host)
    assert 1 <= request.origin.port <= 65535
    assert ON_THE_WIRE.fullmatch(request.path)


@many
@given(text=any_text)
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        get(text)
    except InvalidRequest:
        return


@pytest.mark.parametrize("character", [*map(chr, range(0x20)), "\x7f"])
@pytest.mark.parametrize(
    "url", ["http://h/a{}b", "http://h/?a{}b", "http://h{}.example/", "{}http://h/"]
)
def test_control_characters_in_a_url_are_refused(url: str, character: str) -> None:
    assert "url: " in refusal(lambda: get(url.format(character)))


def test_a_url_object_is_as_good_as_text() -> None:
    request = Request("GET", URL("https://example.com/a?b=c"))

    assert (request.url, request.path) == ("https://example.com/a?b=c", "/a?b=c")


# --- methods and headers


@pytest.mark.parametrize("method", ["GET", "post", "PROPFIND", "M-SEARCH", "!#$%&'*+-.^_`|~09"])
def test_a_method_is_any_token_sent_as_it_is(method: str) -> None:
    assert Request(method, "http://h/").method == method


@pytest.mark.parametrize(
    "method", ["", " GET", "GET ", "GE T", "GET\n", "GET\r\nX: y", "GÉT", "G/T"]
)
def test_a_method_that_is_no_token_is_refused(method: str) -> None:
    assert "method: " in refusal(lambda: Request(method, "http://h/"))


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", "a\r\nb", "a\n", "\0", "é", "a\x7f", "(a)", "a/b"]
)
def test_a_header_name_that_is_no_token_is_refused(name: str) -> None:
    assert "headers: " in refusal(lambda: get("http://h/", headers={name: "x"}))


@pytest.mark.parametrize("value", ["a\r\nb", "a\rb", "a\nb", "\n", "a\0b", "\ud800", "a\udc0d"])
def test_a_header_value_that_splits_or_has_no_bytes_is_refused(value: str) -> None:
    shown = refusal(lambda: get("http://h/", headers={"X-Key": SECRET + value}))

    assert "headers: " in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    "headers", [5, "abc", ["abc"], {"a": 1}, {"a": None}, {"a": b"b"}, {1: "a"}, [("a", "b", "c")]]
)
def test_what_are_no_headers_is_refused(headers: Any) -> None:
    assert "headers: " in refusal(lambda: get("http://h/", headers=headers))


def test_headers_keep_order_duplicates_and_case() -> None:
    pairs = [("b", "1"), ("A", "2"), ("B", "3"), ("a", "")]

    request = get("http://h/", headers=pairs)

    assert list(request.headers.items()) == pairs
    assert request.headers["a"] == "2"
    assert request.headers.getall("b") == ["1", "3"]
    assert request.wire_headers() == [("Host", "h"), *pairs]


def test_a_request_does_not_follow_later_changes_of_what_it_was_given() -> None:
    headers, body = CIMultiDict({"a": "1"}), bytearray(b"body")

    request = Request("POST", "http://h/", headers=headers, content=body)
    headers["a"] = "2"
    body[:] = b"else"

    assert request.headers["A"] == "1"
    assert request.content == b"body"
    with pytest.raises(TypeError):
        request.headers["a"] = "3"  # type: ignore[index]


def head_of(request: Request) -> bytes:
    """The head as HTTP/1.1 has it."""
    lines = [f"{request.method} {request.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.wire_headers()]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("utf-8", "surrogateescape")


@many
@given(
    method=st.sampled_from(["GET", "POST"]) | odd | controls,
    path=any_text,
    name=st.sampled_from(["X-A", "Host", "content-length"]) | odd | controls,
    value=any_text,
)
def test_a_request_is_refused_or_is_one_head(method: str, path: str, name: str, value: str) -> None:
    try:
        request = Request(method, f"http://h/{path}", headers=[("X-B", "1"), (name, value)])
    except InvalidRequest:
        return

    head = head_of(request)

    count = 1 + len(request.wire_headers())
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == count + 1
    assert b"\0" not in head
    assert len(head.split(b"\r\n")[0].split(b" ")) == 3


def test_the_callers_host_header_replaces_ours() -> None:
    wire = get("http://127.0.0.1:8080/", headers={"host": "example.com"}).wire_headers()

    assert wire == [("host", "example.com")]


@pytest.mark.parametrize("hosts", [["a", "b"], ["a", "a"], ["a b"], ["a/b"]])
def test_more_than_one_host_or_none_of_a_name_is_refused(hosts: list[str]) -> None:
    """RFC 9112 section 3.2: a server must answer 400 to it; one that does not can be misled."""
    refusal(lambda: get("http://h/", headers=[("Host", host) for host in hosts]))


# --- bodies and framing


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"body", b"body"),
        (bytearray(b"body"), b"body"),
        (memoryview(b"_body_")[1:5], b"body"),
        ("bödy", "bödy".encode()),
        ("", b""),
        (None, None),
    ],
)
def test_a_body_of_bytes_or_text(content: Any, expected: bytes | None) -> None:
    request = Request("POST", "http://h/", content=content)

    assert request.content == expected
    assert request.is_rewindable
    assert request.wire_headers()[-1] == ("Content-Length", str(len(expected or b"")))


@pytest.mark.parametrize("content", [5, {"a": 1}, ["a"], iter([b"a"]), object(), "\ud800"])
def test_what_is_no_body_is_refused(content: Any) -> None:
    assert "content: " in refusal(lambda: Request("POST", "http://h/", content=content))


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CUSTOM"])
def test_no_body_needs_no_framing(method: str) -> None:
    assert Request(method, "http://h/").wire_headers() == [("Host", "h")]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_no_body_is_announced_where_one_is_expected(method: str) -> None:
    assert Request(method, "http://h/").wire_headers()[-1] == ("Content-Length", "0")


async def test_a_body_that_is_produced_is_chunked_unless_its_length_is_given() -> None:
    chunked = Request("POST", "http://h/", content=pieces_of(b"a"))
    counted = Request("POST", "http://h/", content=pieces_of(), headers={"content-length": "1"})

    assert chunked.wire_headers()[-1] == ("Transfer-Encoding", "chunked")
    assert counted.wire_headers()[-1] == ("content-length", "1")
    assert not any(name == "Transfer-Encoding" for name, _ in counted.wire_headers())
    assert not chunked.is_rewindable


@pytest.mark.parametrize("name", ["Transfer-Encoding", "transfer-encoding"])
@pytest.mark.parametrize("value", ["chunked", "identity", "gzip, chunked", ""])
def test_a_transfer_encoding_of_the_callers_is_refused(name: str, value: str) -> None:
    shown = refusal(lambda: Request("POST", "http://h/", content=b"a", headers={name: value}))

    assert "Transfer-Encoding" in shown


@pytest.mark.parametrize(
    "lengths",
    [["3"], ["5"], ["4", "4"], ["4", "5"], ["4, 4"], [""], ["-4"], ["+4"], ["4 "], ["0x4"], ["٤"],
     ["4.0"], ["9" * 5000], ["4" + "\x0b"]],
)  # fmt: skip
def test_a_content_length_that_contradicts_the_body_is_refused(lengths: list[str]) -> None:
    headers = [("Content-Length", length) for length in lengths]

    shown = refusal(lambda: Request("POST", "http://h/", content=b"four", headers=headers))

    assert "Content-Length" in shown


@pytest.mark.parametrize("length", ["4", "04"])
def test_a_content_length_that_is_right_is_sent_as_it_is(length: str) -> None:
    request = Request("POST", "http://h/", content=b"four", headers={"Content-Length": length})

    assert request.wire_headers() == [("Host", "h"), ("Content-Length", length)]


@given(
    length=st.integers(0, 40) | st.sampled_from([10**19, 10**5000]), content=st.binary(max_size=40)
)
def test_only_the_right_length_is_accepted(length: int, content: bytes) -> None:
    digits = "1" + "0" * 5000 if length > 10**20 else str(length)
    headers = {"Content-Length": digits}
    if length == len(content):
        assert Request("PUT", "http://h/", content=content, headers=headers).content == content
    else:
        refusal(lambda: Request("PUT", "http://h/", content=content, headers=headers))


@pytest.mark.parametrize(
    ("method", "headers", "idempotent", "expected"),
    [
        *(
            (method, {}, None, True)
            for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
        ),
        *((method, {}, None, False) for method in ("POST", "PATCH", "CONNECT", "get", "CUSTOM")),
        ("POST", {"idempotency-key": "k"}, None, True),
        ("POST", {}, True, True),
        ("GET", {}, False, False),
        ("POST", {"Idempotency-Key": "k"}, False, False),
    ],
)
def test_what_may_be_sent_twice(
    method: str, headers: dict[str, str], idempotent: bool | None, expected: bool
) -> None:
    request = Request(method, "http://h/", headers=headers, idempotent=idempotent)

    assert request.is_idempotent is expected


def test_a_request_keeps_its_timeouts() -> None:
    timeouts = Timeouts(read=1)

    assert get("http://h/", timeouts=timeouts).timeouts is timeouts


def test_a_repr_shows_neither_path_nor_headers_nor_body() -> None:
    request = Request(
        "POST",
        f"https://example.com/{SECRET}?key={SECRET}",
        headers={"Authorization": SECRET},
        content=SECRET,
    )
    response = Response(
        200, headers={"Set-Cookie": SECRET}, content=SECRET.encode(), request=request
    )

    assert repr(request) == "<Request POST https://example.com>"
    assert repr(response) == "<Response [200 OK]>"


# --- responses: head


def test_a_response_has_the_standard_reason_unless_given() -> None:
    assert Response(404).reason_phrase == "Not Found"
    assert Response(404, reason_phrase="Gone Fishing").reason_phrase == "Gone Fishing"
    assert Response(404, reason_phrase="").reason_phrase == ""
    assert Response(599).reason_phrase == ""


def test_headers_of_a_response_are_case_insensitive_and_keep_duplicates() -> None:
    response = Response(200, headers=[("Set-Cookie", "a=1"), ("set-cookie", "b=2")])

    assert response.headers.getall("SET-COOKIE") == ["a=1", "b=2"]
    assert response.raw_headers == ((b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"))


def test_raw_headers_are_kept_when_given() -> None:
    raw = ((b"X-Odd", b"caf\xe9"),)

    assert Response(200, headers={"X-Odd": "caf\udce9"}, raw_headers=raw).raw_headers == raw
    assert Response(200, headers={"X-Odd": "caf\udce9"}).raw_headers == raw


@pytest.mark.parametrize("status", [200, 204, 299])
def test_success(status: int) -> None:
    response = Response(status)

    assert (response.is_success, response.is_error) == (True, False)
    assert response.raise_for_status() is response


@pytest.mark.parametrize("status", [100, 199, 300, 304, 399])
def test_neither_success_nor_error(status: int) -> None:
    response = Response(status)

    assert (response.is_success, response.is_error) == (False, False)
    assert response.raise_for_status() is response


@pytest.mark.parametrize("status", [400, 404, 429, 499, 500, 503, 599])
def test_an_error_status_raises_when_asked_to(status: int) -> None:
    request = get(f"https://example.com:8443/{SECRET}?key={SECRET}")
    response = Response(status, request=request, http_version="HTTP/2")
    assert response.is_error

    with pytest.raises(HTTPStatusError) as caught:
        response.raise_for_status()

    error = caught.value
    assert (error.status_code, error.response) == (status, response)
    assert (error.host, error.port, error.http_version) == ("example.com", 8443, "HTTP/2")
    assert (error.request_sent, error.response_started, error.replay) == (True, True, "unsafe")
    said = [str(status), response.reason_phrase, "from https://example.com:8443"]
    assert str(error) == " ".join(filter(None, said))
    assert SECRET not in repr(error)


def test_an_error_status_needs_no_request() -> None:
    with pytest.raises(HTTPStatusError, match=r"^503 Service Unavailable$"):
        Response(503).raise_for_status()


# --- responses: body


class Stream:
    """A body that tells what was done to it."""

    is_over = False

    def __init__(self, *script: bytes | BaseException) -> None:
        self.script = list(script)
        self.closed = 0
        self.abandoned = 0
        self.annotated: list[TransportError] = []

    async def read(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.script:
            return b""
        step = self.script.pop(0)
        if isinstance(step, bytes):
            return step
        raise step

    def close(self) -> None:
        self.closed += 1

    def abandon(self) -> None:
        self.abandoned += 1

    def annotate(self, error: TransportError) -> None:
        self.annotated.append(error)


def gzipped(*pieces: bytes) -> list[bytes]:
    whole = gzip.compress(b"".join(pieces))
    return [whole[: len(whole) // 2], whole[len(whole) // 2 :]]


async def collect(iterator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in iterator]


@pytest.mark.parametrize("content", [b"body", "body", bytearray(b"body"), memoryview(b"body")])
async def test_a_response_may_be_made_of_bytes(content: Any) -> None:
    response = Response(200, content=content)

    assert await response.aread() == response.content == b"body"


@pytest.mark.parametrize("content", [None, b"", ""])
async def test_a_response_may_have_no_body(content: Any) -> None:
    assert await Response(204, content=content).aread() == b""
    assert await collect(Response(204, content=content).aiter_bytes()) == []


async def test_a_response_may_be_made_of_pieces_and_gives_them_as_they_come() -> None:
    response = Response(200, content=pieces_of(b"a", b"", b"bc"))

    assert await collect(response.aiter_raw()) == [b"a", b"bc"]
    assert response.is_closed


async def test_pieces_are_not_asked_for_before_they_are_wanted() -> None:
    asked: list[int] = []

    async def produce() -> AsyncIterator[bytes]:
        for number in range(3):
            asked.append(number)
            yield b"x"

    iterator = Response(200, content=produce()).aiter_bytes()
    assert asked == []
    await anext(iterator)
    assert asked == [0]
    await collect(iterator)


async def test_closing_ends_the_iterable_that_produces_the_body() -> None:
    ended: list[bool] = []

    async def produce() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            ended.append(True)

    async with Response(200, content=produce()) as response:
        await anext(response.aiter_bytes())

    assert ended == [True]


async def test_a_body_is_read_once_and_kept() -> None:
    stream = Stream(b"a", b"b")
    response = Response(200, stream=stream)

    assert await response.aread() == b"ab"
    assert await response.aread() == b"ab"
    assert response.content == b"ab"
    assert response.is_closed
    assert stream.closed == 1


async def test_a_body_that_was_read_may_be_iterated_again() -> None:
    response = Response(200, content=b"data: 1\n\ndata: 2\n\n")
    await response.aread()

    assert b"".join(await collect(response.aiter_bytes())) == response.content
    assert "".join(await collect(response.aiter_text())) == response.text
    assert await collect(response.aiter_lines()) == ["data: 1", "", "data: 2", ""]
    assert [event.data async for event in response.aiter_sse()] == ["1", "2"]


async def test_a_coded_body_that_was_read_is_not_decoded_twice() -> None:
    response = Response(200, headers={"Content-Encoding": "gzip"}, content=gzip.compress(b"body"))
    await response.aread()

    assert await collect(response.aiter_bytes()) == [b"body"]


@pytest.mark.parametrize("method", ["aiter_raw", "aiter_bytes", "aiter_text", "aiter_lines"])
async def test_a_body_that_was_iterated_is_gone(method: str) -> None:
    response = Response(200, content=b"body")
    await collect(getattr(response, method)())

    for again in (response.aread, lambda: collect(getattr(response, method)())):
        with pytest.raises(RuntimeError, match="read already"):
            await again()
    with pytest.raises(RuntimeError, match="aread"):
        _ = response.content


async def test_the_pieces_go_to_one_iterator() -> None:
    response = Response(200, stream=Stream(b"a", b"b", b"c"))
    first, second = response.aiter_bytes(), response.aiter_bytes()
    await anext(first)

    with pytest.raises(RuntimeError, match="read already"):
        await anext(second)

    response.close()


async def test_an_iterator_that_is_never_used_takes_nothing() -> None:
    response = Response(200, content=b"body")
    response.aiter_bytes()

    assert await response.aread() == b"body"


async def test_content_and_text_before_reading_say_what_to_do() -> None:
    response = Response(200, content=b"body")

    for use in (lambda: response.content, lambda: response.text, response.json):
        with pytest.raises(RuntimeError, match=r"await response\.aread\(\)"):
            use()


async def test_a_closed_response_cannot_be_read() -> None:
    stream = Stream(b"body")
    response = Response(200, stream=stream)
    await response.aclose()
    await response.aclose()

    for use in (response.aread, lambda: collect(response.aiter_raw())):
        with pytest.raises(RuntimeError, match="closed"):
            await use()
    assert stream.closed == 1


async def test_a_body_that_is_closed_half_way_does_not_look_whole() -> None:
    response = Response(200, stream=Stream(b"a", b"b"))
    iterator = response.aiter_bytes()
    await anext(iterator)

    response.close()

    with pytest.raises((RuntimeError, TransportError)):
        await anext(iterator)


async def test_after_its_end_an_iterator_stays_at_its_end() -> None:
    for coding in ({}, {"Content-Encoding": "gzip"}):
        body = gzip.compress(b"a") if coding else b"a"
        iterator = Response(200, headers=coding, content=body).aiter_bytes()
        assert await collect(iterator) == [b"a"]
        assert await collect(iterator) == []


async def test_leaving_the_block_closes() -> None:
    stream = Stream(b"a", b"b")

    async with Response(200, stream=stream) as response:
        async for _ in response.aiter_bytes():
            break

    assert response.is_closed
    assert stream.closed == 1


async def test_an_error_of_the_stream_closes_and_comes_through() -> None:
    failure = BodyTruncated("cut")
    for read in ("aread", "aiter_bytes"):
        stream = Stream(b"a", failure)
        response = Response(200, stream=stream)
        with pytest.raises(BodyTruncated) as caught:
            await (response.aread() if read == "aread" else collect(response.aiter_bytes()))
        assert caught.value is failure
        assert (response.is_closed, stream.closed) == (True, 1)


async def test_cancelling_a_read_closes() -> None:
    class Stalling(Stream):
        async def read(self) -> bytes:
            await anyio.sleep_forever()
            raise AssertionError

    stream = Stalling()
    response = Response(200, stream=stream)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await response.aread()

    assert scope.cancelled_caught
    assert (response.is_closed, stream.closed) == (True, 1)


@pytest.mark.trunkline_may_leak
async def test_a_dropped_response_gives_its_stream_back_and_warns() -> None:
    def drop_a_response() -> None:
        Response(200, stream=stream)
        gc.collect()

    stream = Stream(b"a")
    with pytest.warns(ResourceWarning, match="unclosed response <Response"):
        drop_a_response()

    assert (stream.abandoned, stream.closed) == (1, 0)


@pytest.mark.trunkline_may_leak
async def test_a_dropped_iterator_does_not_outlive_its_response() -> None:
    def drop_an_iterator() -> None:
        Response(200, headers={"Content-Encoding": "gzip"}, stream=stream).aiter_lines()
        gc.collect()

    stream = Stream(b"a", b"b")
    with pytest.warns(ResourceWarning):
        drop_an_iterator()

    assert stream.abandoned == 1


def test_a_response_that_holds_nothing_is_dropped_without_a_word() -> None:
    Response(200, content=b"never read")
    gc.collect()


def test_a_response_that_cannot_be_made_leaves_nothing_behind() -> None:
    with pytest.raises(InvalidRequest):
        Response(200, headers={"bad name": "x"})
    gc.collect()


# --- responses: decoding


async def test_a_coded_body_is_decoded_and_raw_is_not() -> None:
    headers = {"Content-Encoding": "gzip"}
    encoded = gzipped(b"some body")

    assert await Response(200, headers=headers, stream=Stream(*encoded)).aread() == b"some body"
    raw = Response(200, headers=headers, stream=Stream(*encoded))
    assert await collect(raw.aiter_raw()) == encoded


async def test_an_unknown_coding_is_left_as_it_is() -> None:
    response = Response(200, headers={"Content-Encoding": "x-unknown"}, content=b"\x01\x02")

    assert await response.aread() == b"\x01\x02"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"no gzip at all"),
        ("gzip", gzip.compress(b"body" * 99, mtime=0)[:-3]),
        ("gzip, gzip, gzip, gzip", b""),
    ],
)
async def test_a_body_that_does_not_decode_is_an_error_with_the_facts(
    coding: str, body: bytes
) -> None:
    stream = Stream(body)
    response = Response(200, headers={"Content-Encoding": coding}, stream=stream)

    with pytest.raises(DecodeError) as caught:
        await response.aread()

    assert stream.annotated == [caught.value]
    assert (response.is_closed, stream.closed) == (True, 1)


async def test_a_local_body_that_does_not_decode_counts_as_answered() -> None:
    response = Response(200, headers={"Content-Encoding": "gzip"}, content=b"no gzip")

    with pytest.raises(DecodeError) as caught:
        await response.aread()

    error = caught.value
    assert (error.request_sent, error.response_started, error.replay) == (True, True, "unsafe")


# --- responses: text and JSON


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        (None, "utf-8"),
        ("", "utf-8"),
        ("application/json", "utf-8"),
        ("text/html; charset=utf-8", "utf-8"),
        ("text/html; charset=ISO-8859-1", "iso-8859-1"),
        ('text/html; charset="latin-1"; boundary=x', "latin-1"),
        ("text/html; boundary=x; charset=shift_jis", "shift_jis"),
        ("text/html; charset=", "utf-8"),
        ("text/html; charset=no-such-charset", "utf-8"),
        # Python knows these, but not as ways to write text:
        *((f"text/plain; charset={name}", "utf-8") for name in ("hex", "base64", "zlib", "rot13")),
        *((f"text/plain; charset={name}", "utf-8") for name in ("undefined", "idna", "punycode")),
    ],
)
async def test_the_charset_is_that_of_the_content_type_or_utf8(
    content_type: str | None, encoding: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = Response(200, headers=headers, content=b"caf\xe9 \xff")
    await response.aread()

    assert response.encoding == encoding
    assert response.text == b"caf\xe9 \xff".decode(encoding, "replace")


EVERY_CODEC = sorted(
    {*aliases.values(), "idna", "punycode", "undefined", "unicode_escape", "utf-8-sig"}
)
header_values = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@given(
    charset=st.sampled_from(EVERY_CODEC) | header_values,
    body=st.binary(max_size=20),
)
async def test_no_charset_or_body_makes_text_fail(charset: str, body: bytes) -> None:
    headers = {"Content-Type": f"text/plain; charset={charset}"}
    response = Response(200, headers=headers, content=body)
    await response.aread()

    text = response.text

    assert "".join(await collect(response.aiter_text())) == text


@pytest.mark.parametrize("charset", ["utf-16", "utf-32", "UTF_16"])
@pytest.mark.parametrize("order", ["", "-le", "-be"], ids=["marked", "little", "big"])
async def test_text_with_or_without_a_byte_order_mark_is_as_bytes_say(
    charset: str, order: str
) -> None:
    body = "a☃".encode(charset + order)
    headers = {"Content-Type": f"text/plain; charset={charset}"}
    for cut in range(len(body) + 1):
        response = Response(200, headers=headers, content=pieces_of(body[:cut], body[cut:]))
        text = "".join(await collect(response.aiter_text()))
        assert text == body.decode(charset, "replace"), cut


async def test_a_character_cut_between_pieces_is_whole() -> None:
    response = Response(200, content=pieces_of(b"a\xe2\x98", b"\x83", b"\xe2"))

    assert await collect(response.aiter_text()) == ["a", "☃", "\ufffd"]


async def test_lines_and_events_come_from_any_pieces() -> None:
    body = b"event: delta\r\ndata: {\r", b"\ndata: }\r\n", b"\r\n"

    lines = await collect(Response(200, content=pieces_of(*body)).aiter_lines())
    events = await collect(Response(200, content=pieces_of(*body)).aiter_sse())

    assert lines == ["event: delta", "data: {", "data: }", ""]
    assert [(event.event, event.data) for event in events] == [("delta", "{\n}")]


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(value=json_values, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
async def test_json_is_read_in_any_unicode_encoding(value: Any, encoding: str) -> None:
    response = Response(200, content=json.dumps(value).encode(encoding))
    await response.aread()

    assert response.json() == value


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b'"\xff"', b"nul"])
async def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    response = Response(200, content=body)
    await response.aread()

    with pytest.raises(ValueError, match=r"JSON|Expecting|decode"):
        response.json()
