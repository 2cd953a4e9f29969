"""Recording and replaying: what is in the file, what is not, and which answer comes again."""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import anyio
import pytest
from backports import zstd
from hypothesis import given, settings, strategies as st

import trunkline
from trunkline import (
    BodyTruncated,
    Client,
    ConnectError,
    DecodeError,
    InvalidRequest,
    Request,
    Response,
    Transport,
    TransportClosed,
)
from trunkline.testing import (
    Fault,
    FaultTransport,
    LLMServer,
    MockTransport,
    RecordingTransport,
    Redaction,
    ReplayTransport,
    Router,
    UnexpectedRequest,
)
from trunkline.testing._cassette import Cassette
from trunkline.testing._received import Chunks, receive
from trunkline.testing._redaction import Redactor

pytestmark = pytest.mark.anyio

URL = "https://api.example.com/v1"
brotli: Any = importlib.import_module("brotli")  # it has no types
SECRET = "sk-0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cassettes" / "one.json"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def is_there(path: Path) -> bool:
    return path.exists()


def read(path: Path) -> list[dict[str, Any]]:
    data = json.loads(text_of(path))
    assert data["trunkline_cassette"] == 1
    entries: list[dict[str, Any]] = data["interactions"]
    return entries


def chat(question: str, **options: Any) -> Request:
    body = json.dumps({"model": "m", "messages": [{"content": question}]}).encode()
    return Request("POST", f"{URL}/chat", content=body, **options)


def counting() -> MockTransport:
    """Answers the number of the request."""
    transport = MockTransport(lambda request: (200, {}, str(len(transport.requests)).encode()))
    return transport


def both(inner: Transport, path: Path, **options: Any) -> Iterator[Transport]:
    """One that records, and then one that replays that."""
    yield RecordingTransport(inner, path, **options)
    yield ReplayTransport(path, **options)


async def ask(transport: Transport, request: Request) -> str:
    return (await (await transport.send(request)).aread()).decode()


async def test_what_was_recorded_is_replayed_without_a_server(path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "m", "messages": messages, "stream": True, "max_tokens": 5}

    async def talk(base_url: str, transport: Transport) -> tuple[list[str], Any]:
        async with Client(base_url=base_url, transport=transport) as client:
            async with client.stream("POST", "/chat/completions", json=body) as response:
                events = [event.data async for event in response.aiter_sse()]
            whole = await client.post("/chat/completions", json={**body, "stream": False})
            return events, whole.json()

    with LLMServer() as server:
        base_url = server.base_url
        recording = RecordingTransport(trunkline.HttpxTransport(), path)
        recorded = await talk(base_url, recording)
        assert recording.snapshot().open == 0
    assert len(recorded[0]) > 5
    assert await talk(base_url, ReplayTransport(path)) == recorded

    first, second = read(path)
    assert first["request"]["body"]["json"] == body
    assert all(chunk.startswith("data: ") for chunk in first["response"]["body"]["chunks"])
    assert second["response"]["body"]["json"]["object"] == "chat.completion"


async def test_chunks_headers_and_status_come_again_as_they_were(path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a\xc3", b"\xa9b", b"\xff\x00", b"c"):
            yield piece

    inner = MockTransport(
        lambda request: Response(
            299,
            headers=[("X-A", "1"), ("x-b", "é: 2"), ("X-A", "3")],
            content=pieces(),
            reason_phrase="Odd",
            http_version="HTTP/2",
        )
    )
    request = Request("GET", URL)
    for transport in both(inner, path):
        response = await transport.send(request)
        assert [piece async for piece in response.aiter_raw()] == [
            b"a\xc3", b"\xa9b", b"\xff\x00", b"c",
        ]  # fmt: skip
        assert (response.status_code, response.reason_phrase) == (299, "Odd")
        assert list(response.headers.items()) == [("X-A", "1"), ("x-b", "é: 2"), ("X-A", "3")]
        assert (response.http_version, response.request) == ("HTTP/2", request)
    assert read(path)[0]["response"]["body"]["chunks"][2:] == [{"base64": "/wA="}, "c"]


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
            lambda value: json.dumps(value, indent=2).encode()
        ),
        st.dictionaries(st.text(), st.floats()).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_body_comes_again_byte_for_byte(tmp_path_factory: Any, body: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "c.json"

    async def run() -> None:
        inner = MockTransport(lambda request: (200, {"Content-Length": str(len(body))}, body))
        request = Request("POST", URL, content=body)
        none = Redaction(headers=(), query=(), json=())
        for transport in both(inner, path, redaction=none):
            response = await transport.send(request)
            assert await response.aread() == body

    anyio.run(run)


async def test_json_is_kept_as_what_it_says(path: Path) -> None:
    inner = MockTransport(lambda request: (200, {}, b'{\n  "a": [\n    1\n  ]\n}'))
    await ask(RecordingTransport(inner, path), chat("x"))
    (entry,) = read(path)
    assert entry["request"]["body"] == {"json": {"model": "m", "messages": [{"content": "x"}]}}
    assert entry["response"]["body"] == {"json": {"a": [1]}, "style": "indented"}


async def test_an_encoded_body_is_recorded_decoded(path: Path) -> None:
    packed = gzip.compress(b'{"a": "text"}')
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
    inner = MockTransport(lambda request: (200, headers, packed))
    for transport in both(inner, path):
        response = await transport.send(chat("x"))
        assert await response.aread() == b'{"a": "text"}'
        assert not response.headers
    assert read(path)[0]["response"]["body"]["json"] == {"a": "text"}


async def test_a_body_that_does_not_decode_fails_again(path: Path) -> None:
    inner = MockTransport(lambda request: (200, {"Content-Encoding": "gzip"}, b"no gzip"))
    for transport in both(inner, path):
        response = await transport.send(chat("x"))
        with pytest.raises(DecodeError):
            await response.aread()


# -- errors ----------------------------------------------------------------------------------------


async def test_errors_come_again_with_their_facts(path: Path) -> None:
    faults = [Fault(error=ConnectError, times=1), Fault(cut_after=2, times=1)]
    inner = FaultTransport(MockTransport(lambda request: (200, {}, b"12345")), faults)
    for transport in both(inner, path):
        with pytest.raises(ConnectError) as refused:
            await transport.send(chat("1"))
        response = await transport.send(chat("2"))
        pieces = response.aiter_raw()
        assert await pieces.__anext__() == b"12"
        with pytest.raises(BodyTruncated) as cut:
            await pieces.__anext__()
        assert (refused.value.phase, refused.value.replay) == ("connect", "safe")
        assert (refused.value.host, refused.value.port) == ("api.example.com", 443)
        facts = (cut.value.phase, cut.value.replay, cut.value.response_started)
        assert facts == ("body", "unsafe", True)
        assert cut.value.request_sent is True
        assert cut.value.bytes_sent > 0


async def test_a_body_nobody_read_to_its_end_is_replayed_so_far(path: Path) -> None:
    router = Router()
    router.post().respond(content=[b"1", b"2", b"3"])
    for transport in both(router.transport, path):
        async with await transport.send(chat("x")) as response:
            assert await response.aiter_raw().__anext__() == b"1"
    response = await ReplayTransport(path).send(chat("x"))
    with pytest.raises(UnexpectedRequest, match="nobody read on"):
        await response.aread()


async def test_a_response_still_open_when_the_transport_closes_is_recorded(path: Path) -> None:
    recording = RecordingTransport(counting(), path)
    response = await recording.send(chat("x"))
    await recording.aclose()
    await response.aclose()
    assert read(path)[0]["response"]["body"] == {"text": "", "is_whole": False}
    with pytest.raises(TransportClosed):
        await recording.send(chat("x"))


async def test_a_cancelled_call_is_not_recorded(path: Path) -> None:
    recording = RecordingTransport(MockTransport(lambda request: anyio.sleep_forever()), path)  # type: ignore[arg-type,return-value]  # pyright: ignore
    with anyio.move_on_after(0.01):
        await recording.send(chat("x"))
    await recording.aclose()
    assert not is_there(path)


# -- modes -----------------------------------------------------------------------------------------


async def test_once_records_once(path: Path) -> None:
    recording = RecordingTransport(counting(), path)
    assert [await ask(recording, chat(q)) for q in "aba"] == ["1", "2", "3"]

    inner = counting()
    replaying = RecordingTransport(inner, path)
    assert [await ask(replaying, chat(q)) for q in "baa"] == ["2", "1", "3"]
    with pytest.raises(UnexpectedRequest, match="mode 'once'"):
        await replaying.send(chat("c"))
    assert inner.requests == []


async def test_new_records_what_is_missing(path: Path) -> None:
    await ask(RecordingTransport(counting(), path), chat("a"))
    inner = counting()
    recording = RecordingTransport(inner, path, mode="new")
    assert [await ask(recording, chat(q)) for q in "bab"] == ["1", "1", "2"]
    assert len(inner.requests) == 2
    replayed = ReplayTransport(path)
    assert [await ask(replayed, chat(q)) for q in "abb"] == ["1", "1", "2"]


async def test_all_records_everything_anew(path: Path) -> None:
    for _ in range(2):
        inner = MockTransport(lambda request: (200, {}, b"same"))
        await ask(RecordingTransport(inner, path, mode="all"), chat("a"))
        assert len(inner.requests) == 1
    assert len(read(path)) == 1


async def test_none_records_nothing(path: Path) -> None:
    inner = counting()
    transport = RecordingTransport(inner, path, mode="none")
    with pytest.raises(UnexpectedRequest, match="nothing is recorded"):
        await transport.send(chat("a"))
    assert await transport.warm(URL) == 0
    assert (inner.requests, is_there(path)) == ([], False)
    with pytest.raises(ValueError, match="mode"):
        RecordingTransport(inner, path, mode="some")  # type: ignore[arg-type]  # pyright: ignore


async def test_an_exchange_is_in_the_file_as_soon_as_it_is_over(path: Path) -> None:
    recording = RecordingTransport(counting(), path)
    await ask(recording, chat("a"))
    assert len(read(path)) == 1
    await ask(recording, chat("b"))
    assert len(read(path)) == 2
    assert [one.name for one in path.parent.iterdir()] == [path.name]


async def test_a_failed_write_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(RecordingTransport(counting(), path), chat("a"))
    before = text_of(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        await ask(RecordingTransport(counting(), path, mode="all"), chat("b"))
    assert text_of(path) == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


async def test_the_order_in_the_file_is_that_of_the_calls(path: Path) -> None:
    recording = RecordingTransport(counting(), path)
    first = await recording.send(chat("a"))
    await ask(recording, chat("b"))
    await first.aread()
    bodies = [entry["request"]["body"]["json"]["messages"][0]["content"] for entry in read(path)]
    assert bodies == ["a", "b"]


@pytest.mark.parametrize("mode", ["once", "new", "all"])
async def test_nothing_is_lost_where_two_record_into_one_file(path: Path, mode: Any) -> None:
    mine, other = counting(), counting()
    first = RecordingTransport(mine, path, mode=mode)
    second = RecordingTransport(other, path, mode=mode)
    half = await second.send(chat("c"))
    await ask(first, chat("a"))
    with pytest.raises(RuntimeError, match=r"one\.json: something else has written to it"):
        await ask(second, chat("b"))
    assert (len(mine.requests), len(other.requests)) == (1, 1)
    with pytest.raises(RuntimeError, match=r"one\.json: something else has written to it"):
        await second.aclose()
    await half.aclose()
    assert len(read(path)) == 1
    with pytest.raises(TransportClosed):
        await other.send(chat("d"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"trunkline_cassette": 2, "interactions": []}',
        '{"trunkline_cassette": 1, "interactions": "abc"}',
    ],
)
def test_another_file_is_refused(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="cassette"):
        ReplayTransport(path)


def entry(**changes: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"method": "GET", "url": URL, "headers": []}
    response: dict[str, Any] = {
        "status": 200,
        "http_version": "HTTP/1.1",
        "headers": [],
        "body": {"text": "x"},
    }
    return {"request": request, "response": {**response, **changes}}


@pytest.mark.parametrize(
    "garbled",
    [
        {},
        {"request": {"method": "GET", "url": URL, "headers": []}},
        {**entry(), "request": {"method": "GET", "url": "h/", "headers": []}},
        {"request": entry()["request"], "error": {"type": "Nope", "message": ""}},
        entry(status="x"),
        entry(headers=["a b: 1"]),
        entry(http_version=None),
        entry(body={"txt": "x"}),
        entry(body={"chunks": ["x", "y"], "pauses": [0]}),
        entry(body={"text": "x", "error": {"type": "Nope", "message": ""}}),
    ],
)
def test_what_could_not_be_played_is_refused_when_the_file_is_opened(
    path: Path, garbled: dict[str, Any]
) -> None:
    path.parent.mkdir()
    data = {"trunkline_cassette": 1, "interactions": [entry(), garbled]}
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=r"one\.json: interaction no\. 2 is garbled: "):
        ReplayTransport(path)


async def test_a_header_without_its_last_space_is_read(path: Path) -> None:
    path.parent.mkdir()
    data = {"trunkline_cassette": 1, "interactions": [entry(headers=["X-E:", "X-F: a: b"])]}
    text = json.dumps(data)
    await anyio.Path(path).write_text(text, encoding="utf-8")
    response = await ReplayTransport(path).send(Request("GET", URL))
    assert (response.headers["X-E"], response.headers["X-F"]) == ("", "a: b")


async def test_a_streamed_request_body_is_recorded_and_sent(path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a"'
        yield b": 1}"

    router = Router()
    route = router.post()
    await ask(RecordingTransport(router.transport, path), Request("POST", URL, content=pieces()))
    assert route.calls[0].json() == {"a": 1}
    assert read(path)[0]["request"]["body"] == {"json": {"a": 1}}


async def test_a_streamed_request_body_is_sent_while_it_is_produced(path: Path) -> None:
    answered = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1"
        with anyio.fail_after(5):
            await answered.wait()
        yield b"2"

    async def take_one(request: Request) -> Response:
        body = request.pieces()
        assert await body.__anext__() == b"1"
        answered.set()
        assert [piece async for piece in body] == [b"2"]
        return Response(200)

    await ask(
        RecordingTransport(MockTransport(take_one), path), Request("POST", URL, content=pieces())
    )
    assert read(path)[0]["request"]["body"] == {"json": 12}


async def test_a_body_that_produces_no_bytes_is_refused(path: Path) -> None:
    async def pieces() -> AsyncIterator[Any]:
        yield "text"

    reading = MockTransport(receive)  # type: ignore[arg-type]  # pyright: ignore
    for transport in (RecordingTransport(reading, path), ReplayTransport(path)):
        with pytest.raises(InvalidRequest, match="bytes"):
            await transport.send(Request("POST", URL, content=pieces()))


async def test_a_header_outside_utf8_comes_again(path: Path) -> None:
    value = b"caf\xe9".decode("utf-8", "surrogateescape")
    inner = MockTransport(lambda request: (200, {"X-A": value}, b""))
    for transport in both(inner, path):
        response = await transport.send(Request("GET", URL))
        assert response.headers["X-A"] == value
        await response.aread()
    assert "caf\\udce9" in text_of(path)


# -- matching --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "match", "fits"),
    [
        (("POST", "/a?x=1&y=2", '{"p": 1, "q": [2]}'), None, True),
        (("POST", "/a?y=2&x=1", '{"q":[2],"p":1}'), None, True),
        (("PUT", "/a?x=1&y=2", '{"p": 1, "q": [2]}'), None, False),
        (("POST", "/b?x=1&y=2", '{"p": 1, "q": [2]}'), None, False),
        (("POST", "/a?x=1", '{"p": 1, "q": [2]}'), None, False),
        (("POST", "/a?x=1&y=2", '{"p": 1, "q": [3]}'), None, False),
        (("POST", "/a?x=1&y=2", "text"), None, False),
        (("POST", "/b", "text"), ("method", "host"), True),
        (("POST", "/a", "text"), ("path",), True),
        (("GET", "/b?y=2&x=1", ""), ("query",), True),
        (("GET", "/b?y=2&x=1", ""), lambda recorded, sent: "x=1" in sent.path, True),  # pyright: ignore
        (("GET", "/b", ""), lambda recorded, sent: False, False),  # pyright: ignore
    ],
)
async def test_matching(path: Path, sent: tuple[str, str, str], match: Any, fits: bool) -> None:
    recorded = Request("POST", "https://h/a?x=1&y=2", content='{"p": 1, "q": [2]}')
    await ask(RecordingTransport(counting(), path), recorded)
    transport = ReplayTransport(path) if match is None else ReplayTransport(path, match=match)
    request = Request(sent[0], f"https://h{sent[1]}", content=sent[2])
    if fits:
        assert await ask(transport, request) == "1"
    else:
        with pytest.raises(UnexpectedRequest):
            await transport.send(request)


def test_an_unknown_aspect_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="match: cookies"):
        ReplayTransport(path, match=("cookies",))  # type: ignore[arg-type]  # pyright: ignore


async def test_an_unmatched_request_is_told_how_the_nearest_differs(path: Path) -> None:
    recording = RecordingTransport(counting(), path)
    await ask(recording, Request("GET", f"{URL}/models"))
    await ask(recording, chat("What is a trunk line?"))
    with pytest.raises(UnexpectedRequest) as caught:
        await ReplayTransport(path).send(chat("What is a party line?"))

    lines = str(caught.value).splitlines()
    assert lines[0] == f"POST {URL}/chat is not in {path} (it is only replayed)"
    assert lines[1] == "  the nearest of 2 is no. 2; it differs in"
    (difference,) = lines[2:-1]
    assert difference.startswith("    body.messages[0].content: recorded ")
    assert difference.endswith('"What is a trunk line?", sent "What is a party line?"')
    assert "--trunkline-record=new" in lines[-1]


async def test_a_request_sent_too_often_is_told_so(path: Path) -> None:
    await ask(RecordingTransport(counting(), path), chat("a"))
    transport = ReplayTransport(path)
    await ask(transport, chat("a"))
    with pytest.raises(UnexpectedRequest, match=r"recorded 1 times \(no. 1\), all played already"):
        await transport.send(chat("a"))


# -- pace ------------------------------------------------------------------------------------------


async def test_the_pace_is_recorded_and_kept_on_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"1", b"2"):
            await anyio.sleep(0.02)
            yield piece

    inner = MockTransport(lambda request: Response(200, content=pieces()))
    await ask(RecordingTransport(inner, path, pace=True), chat("a"))
    pauses = read(path)[0]["response"]["body"]["pauses"]
    assert all(pause >= 0.015 for pause in pauses)

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("trunkline.testing._replaying.anyio.sleep", sleep)
    assert await ask(ReplayTransport(path), chat("a")) == "12"
    assert slept == []
    assert await ask(ReplayTransport(path, pace=True), chat("a")) == "12"
    assert slept[1:] == pauses


# -- secrets ---------------------------------------------------------------------------------------


REQUESTS: list[Callable[[str], Request]] = [
    lambda s: Request("GET", URL, headers={"Authorization": f"Bearer {s}"}),
    lambda s: Request("GET", URL, headers={"x-api-key": s}),
    lambda s: Request("GET", URL, headers={"api-key": s}),
    lambda s: Request("GET", URL, headers={"X-Goog-Api-Key": s}),
    lambda s: Request("GET", URL, headers={"Ocp-Apim-Subscription-Key": s}),
    lambda s: Request("GET", URL, headers={"X-Functions-Key": s}),
    lambda s: Request("GET", URL, headers={"X-Auth": s}),
    lambda s: Request("GET", URL, headers={"X-Auth-Key": s}),
    lambda s: Request("GET", f"{URL}?api%5Fkey={s}"),
    lambda s: Request("GET", URL, headers={"Cookie": f"session={s}"}),
    lambda s: Request("GET", URL, headers={"X-Amz-Security-Token": s}),
    lambda s: Request("GET", URL, headers={"Referer": f"https://h/?access_token={s}"}),
    lambda s: Request("GET", f"{URL}?key={s}"),
    lambda s: Request("GET", f"{URL}?a=1&ACCESS_TOKEN={s}&b=2"),
    lambda s: Request("POST", URL, content=json.dumps({"client_secret": s})),
    lambda s: Request("POST", URL, content=json.dumps({"a": [{"Api_Key": s}]})),
    lambda s: Request("POST", URL, content=json.dumps({"password": {"of": [s]}})),
    lambda s: Request("POST", URL, content=json.dumps({"a": json.dumps({"apiKey": s})})),
    lambda s: Request("POST", URL, content=json.dumps({"u": f"https://u:{s}@h/"})),
    lambda s: Request("POST", URL, content=f'{{"api_key": "{s}'),
    lambda s: Request(
        "POST",
        URL,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        content=f"client_secret={s}&grant_type=x",
    ),
]


@pytest.mark.parametrize("make", REQUESTS)
async def test_no_secret_of_a_request_reaches_the_disk(
    path: Path, make: Callable[[str], Request]
) -> None:
    request = make(SECRET)
    echo = {"you sent": SECRET, "url": f"https://u:{SECRET}@h/?sig={SECRET}"}
    inner = MockTransport(lambda request: (200, {}, json.dumps(echo).encode()))
    await ask(RecordingTransport(inner, path), request)

    text = text_of(path)
    assert SECRET not in text
    assert "REDACTED" in text
    # Another key finds the same answer.
    assert "REDACTED" in await ask(ReplayTransport(path), make("another-secret-of-another-length"))


@pytest.mark.parametrize(
    ("headers", "chunks"),
    [
        ({"Set-Cookie": f"session={SECRET}; Secure"}, [b""]),
        ({"Location": f"https://h/?code={SECRET}"}, [b""]),
        ({}, [b'{"access_token": "' + SECRET.encode() + b'", "expires_in": 3}']),
        ({}, [b'data: {"api_key":"sk-01234', b'56789abcdef"}\n\n', b"data: [DONE]\n\n"]),
        ({}, [b'{"id_tok', b'en": "', *[bytes([byte]) for byte in SECRET.encode()], b'"}']),
        ({}, [b'{"password": ["' + SECRET.encode() + b'"], "x": 1}']),
        ({}, [b'{"secret": "' + SECRET.encode() + b'", "again": "' + SECRET.encode() + b'"}']),
    ],
)
async def test_no_secret_of_a_response_reaches_the_disk(
    path: Path, headers: dict[str, str], chunks: list[bytes]
) -> None:
    router = Router()
    router.get().respond(headers=headers, content=chunks)
    request = Request("GET", URL)
    response = await RecordingTransport(router.transport, path).send(request)
    seen = await response.aread()
    assert seen == b"".join(chunks)  # the caller gets it all

    text = text_of(path)
    for part in (SECRET, SECRET[8:], SECRET[:8]):
        assert part not in text
    replayed = await ask(ReplayTransport(path), request)
    if replayed.startswith("{"):
        json.loads(replayed)


TOKEN = "tok-1234567890"


def saying(request: Request) -> tuple[int, dict[str, str], bytes]:
    body = {"access_token": TOKEN} if request.path == "/v1/login" else {"fine": request.path}
    return 200, {"X-Echo": request.headers.get("X-Debug", "")}, json.dumps(body).encode()


@pytest.mark.parametrize(
    "requests",
    [
        [Request("GET", f"{URL}/login"), Request("GET", f"{URL}/session/{TOKEN}")],
        [Request("GET", f"{URL}/session/{TOKEN}?x=1"), Request("GET", f"{URL}/login")],
        [Request("GET", f"{URL}/?api_key={TOKEN}", headers={"X-Debug": TOKEN})],
        [
            Request(
                "POST", URL, headers={"X-Debug": TOKEN}, content=f'{{"secret":"{TOKEN}"}}'.encode()
            )
        ],
        [
            Request("POST", URL, content=f'{{"a":["{TOKEN}",1]}}'.encode()),
            Request("POST", URL, content=f"{TOKEN} is plain".encode()),
            Request("GET", URL, headers={"Authorization": f"Bearer {TOKEN}"}),
        ],
    ],
    ids=["a later path", "an earlier path", "a query in a header", "JSON in a header", "bodies"],
)
async def test_a_secret_found_anywhere_is_taken_out_everywhere(
    path: Path, requests: list[Request]
) -> None:
    recording = RecordingTransport(MockTransport(saying), path)
    for request in requests:
        await ask(recording, request)

    assert TOKEN not in text_of(path)
    replay = ReplayTransport(path)
    for request in requests:
        await ask(replay, request)


async def test_the_transports_of_a_cassette_know_each_others_secrets(path: Path) -> None:
    cassette = Cassette(path)
    first, second = (RecordingTransport(MockTransport(saying), cassette) for _ in range(2))
    await ask(first, Request("GET", f"{URL}/session/{TOKEN}"))
    await ask(second, Request("GET", f"{URL}/login"))
    assert TOKEN not in text_of(path)


async def test_what_was_taken_out_may_be_anything_and_the_rest_may_not(path: Path) -> None:
    recording = RecordingTransport(MockTransport(saying), path)
    await ask(recording, Request("GET", f"{URL}/session/{TOKEN}?q=a-{TOKEN}&n=1"))
    await ask(recording, Request("GET", f"{URL}/login"))
    replay = ReplayTransport(path)
    for wrong in ("session/other/x?q=b-other&n=1", "other?q=a-b&n=1", "session/other?q=a-b&n=2"):
        with pytest.raises(UnexpectedRequest):
            await ask(replay, Request("GET", f"{URL}/{wrong}"))
    await ask(replay, Request("GET", f"{URL}/session/other?n=1&q=a-other"))


@pytest.mark.parametrize("quote", ["", '"'])
async def test_the_boundary_of_multipart_is_no_difference(path: Path, quote: str) -> None:
    def upload(boundary: str, text: str) -> Request:
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="f"\r\n\r\n{text}\r\n'
        kind = f"multipart/form-data; boundary={quote}{boundary}{quote}"
        content = f"{part}--{boundary}--\r\n".encode()
        return Request("POST", URL, headers={"Content-Type": kind}, content=content)

    await ask(RecordingTransport(counting(), path), upload("0123abcd", "of 0123abcd"))
    replay = ReplayTransport(path)
    with pytest.raises(UnexpectedRequest, match="body: it is not the same"):
        await ask(replay, upload("98765", "of another"))
    assert await ask(replay, upload("98765", "of 0123abcd")) == "1"


@pytest.mark.parametrize("fault", [Fault(error=ConnectError, times=1), Fault(status=429, times=1)])
async def test_a_streamed_body_that_was_not_sent_to_its_end_is_replayed(
    path: Path, fault: Fault
) -> None:
    async def talk(transport: Transport) -> list[str]:
        seen: list[str] = []
        for _ in range(2):
            try:
                response = await transport.send(
                    Request("POST", URL, content=Chunks([b"one", b"two"]))
                )
                seen.append(f"{response.status_code} {await response.aread()!r}")
            except ConnectError as error:
                seen.append(error.replay)
        return seen

    recorded = await talk(RecordingTransport(FaultTransport(counting(), [fault]), path))
    assert "is_whole" in read(path)[0]["request"]["body"]
    assert await talk(ReplayTransport(path)) == recorded


async def test_of_a_body_that_was_cut_off_the_beginning_has_to_be_the_same(path: Path) -> None:
    async def first_piece(request: Request) -> Response:
        assert not isinstance(request.content, (bytes, type(None)))
        async for _ in request.content:
            break
        return Response(413)

    request = Request("POST", URL, content=Chunks([b"one", b"two"]))
    await ask(RecordingTransport(MockTransport(first_piece), path), request)
    replay = ReplayTransport(path)
    with pytest.raises(UnexpectedRequest, match="body: it does not begin as what was recorded"):
        await replay.send(Request("POST", URL, content=b"on"))
    assert (await replay.send(Request("POST", URL, content=b"one and more"))).status_code == 413


def test_a_cassette_has_the_mode_of_any_file_or_the_one_it_had(path: Path) -> None:
    Cassette(path).save()
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o640)
    Cassette(path).save()
    assert path.stat().st_mode & 0o777 == 0o640


async def test_a_length_is_that_of_the_redacted_body(path: Path) -> None:
    router = Router()
    router.get().respond(json={"access_token": SECRET})
    await ask(RecordingTransport(router.transport, path), Request("GET", URL))
    response = await ReplayTransport(path).send(Request("GET", URL))
    assert int(response.headers["Content-Length"]) == len(await response.aread())


async def test_what_is_secret_can_be_set(path: Path) -> None:
    rules = Redaction(headers=Redaction.HEADERS | {"x-team"}, query=(), json={"name"})
    request = Request(
        "POST",
        f"{URL}?key=open",
        headers={"X-Team": SECRET, "Authorization": SECRET},
        content='{"name": "somebody", "password": "open"}',
    )
    await ask(RecordingTransport(counting(), path, redaction=rules), request)
    recorded = read(path)[0]["request"]
    assert recorded["url"] == f"{URL}?key=open"
    assert recorded["headers"] == ["X-Team: REDACTED", "Authorization: REDACTED"]
    assert recorded["body"]["json"] == {"name": "REDACTED", "password": "open"}


async def test_an_error_about_an_unmatched_request_holds_no_secret(path: Path) -> None:
    await ask(RecordingTransport(counting(), path), chat("a"))
    with pytest.raises(UnexpectedRequest) as caught:
        await ReplayTransport(path).send(
            Request("POST", f"{URL}/chat?key={SECRET}", content=f'{{"api_key": "{SECRET}"}}')
        )
    assert SECRET not in str(caught.value)


def test_what_is_no_secret_stays() -> None:
    text = (
        b'{"token": "Hello", "logprob": -1, "max_tokens": 5, "passwords": 1, "password": null,'
        b' "url": "https://h/?page_token=abc&monkey=1"}'
    )
    assert Redactor(Redaction()).chunks([text]) == [text]


@given(
    st.lists(st.text(alphabet='ab"\\{}:é \n'), min_size=1, max_size=4),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_redacted_json_is_json_and_holds_no_secret_wherever_it_is_cut(
    texts: list[str], cuts: list[int]
) -> None:
    value: dict[str, Any] = {"a": texts, "api_key": f"{SECRET}{texts[0]}", "b": {"c": texts[-1]}}
    body = json.dumps(value).encode()
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:end] for start, end in pairwise(edges)]

    redacted = Redactor(Redaction()).chunks(chunks)

    assert len(redacted) == len(chunks)
    parsed = json.loads(b"".join(redacted))
    assert parsed["api_key"] == "REDACTED"
    if not re.search(re.escape(value["api_key"]), json.dumps([texts])):
        assert parsed["a"] == value["a"]
        assert parsed["b"] == value["b"]


# How one body may hold a secret: each takes the secret and something else to say.
BODIES: dict[str, tuple[str, Callable[[str, str], str]]] = {
    "top": ("application/json", lambda s, t: json.dumps({"t": t, "api_key": s})),
    "nested": ("application/json", lambda s, t: json.dumps([{"a": [{"Client_Secret": s}, t]}])),
    "indented": ("application/json", lambda s, t: json.dumps({"id_token": s, "t": t}, indent=2)),
    "container": ("application/json", lambda s, t: json.dumps({"password": [s, {"x": t}]})),
    "repeated": ("application/json", lambda s, t: json.dumps({"secret": s, "t": f"{t} {s}"})),
    "escaped key": ("application/json", lambda s, t: f'{{"api\\u005Fkey": {json.dumps(s)}}}'),
    "escaped value": ("application/json", lambda s, t: json.dumps({"secret": s}, indent=1) + t),
    "inside a string": (
        "application/json",
        lambda s, t: json.dumps({"arguments": json.dumps({"t": t, "access_token": s})}),
    ),
    "echoed in JSON": (
        "application/json",
        lambda s, t: json.dumps({"secret": s}) + json.dumps(s).replace("/", "\\/") + t,
    ),
    "echoed in a URL": (
        "application/json",
        lambda s, t: json.dumps({"secret": s, "url": f"https://h/{quote(s, safe='')}?t={len(t)}"}),
    ),
    "URL in JSON": (
        "application/json",
        lambda s, t: json.dumps({"u": f"https://h/?a=1&api%5Fkey={quote(s, safe='')}&t"}),
    ),
    "userinfo": (
        "application/json",
        lambda s, t: json.dumps({"u": f"https://me:{quote(s, safe='')}@h/"}).replace("/", "\\/"),
    ),
    "events": (
        "text/event-stream",
        lambda s, t: "".join(
            f"event: e\ndata: {json.dumps(one)}\n\n" for one in ({"t": t}, {"refresh_token": s})
        ),
    ),
    "event of many lines": (
        "text/event-stream",
        lambda s, t: "".join(
            f"data: {line}\n" for line in ['{"t":1,', '"api_key":', f"{json.dumps(s)}", "}", ""]
        ),
    ),
    "form": (
        "application/x-www-form-urlencoded",
        lambda s, t: urlencode({"t": t, "client_secret": s, "z": "1"}),
    ),
    "form with an encoded key": (
        "application/x-www-form-urlencoded; charset=utf-8",
        lambda s, t: f"client%5Fsecret={quote_plus(s)}&t={quote_plus(t)}",
    ),
    "multipart": (
        "multipart/form-data; boundary=b",
        lambda s, t: (
            f'--b\r\nContent-Disposition: form-data; name="t"\r\n\r\n{t}\r\n'
            f'--b\r\ncontent-disposition: form-data; name="api_key"\r\n'
            f"Content-Type: text/plain\r\n\r\n{s}\r\n--b--\r\n"
        ),
    ),
}
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: bytes(brotli.compress(body)),
    "zstd": zstd.compress,
    "gzip, br": lambda body: bytes(brotli.compress(gzip.compress(body))),
}
around = st.text(alphabet='ab/+é"\\ &=%\U0001f600', max_size=4)


def pieces_of(body: bytes, cuts: list[float]) -> list[bytes]:
    edges = sorted({0, len(body), *(int(cut * len(body)) for cut in cuts)})
    return [body[start:end] for start, end in pairwise(edges)]


def everything_in(path: Path) -> str:
    """The file, and what is in it in base64."""
    inside = re.findall(r'"base64": "([^"]+)"', text_of(path))
    return text_of(path) + "".join(base64.b64decode(one).decode("latin-1") for one in inside)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", BODIES)
@settings(max_examples=15)
@given(around, around, around, st.lists(st.floats(0, 1), max_size=6))
def test_no_secret_of_a_body_reaches_the_disk_however_it_is_cut_and_coded(
    tmp_path_factory: Any,
    kind: str,
    coding: str,
    before: str,
    after: str,
    t: str,
    cuts: list[float],
) -> None:
    content_type, make = BODIES[kind]
    plain = make(f"{before}{SECRET}{after}", t).encode()
    body = CODINGS[coding](plain)
    headers = {"Content-Type": content_type, "Content-Encoding": coding}
    folder = tmp_path_factory.mktemp("cut")

    async def record_and_replay(pieces: list[bytes], path: Path) -> str:
        router = Router()
        router.post().respond(headers=headers, content=pieces)
        request = Request("POST", URL, headers=headers, content=Chunks(pieces))
        recording = RecordingTransport(router.transport, path)
        assert await (await recording.send(request)).aread() == plain
        assert router.calls[0].body == body  # who is asked and who answers get it all
        again = Request("POST", URL, headers=headers, content=body)
        return await ask(ReplayTransport(path), again)

    replayed = [
        anyio.run(record_and_replay, pieces, folder / f"{number}.json")
        for number, pieces in enumerate(([body], pieces_of(body, cuts)))
    ]

    assert replayed[0] == replayed[1]
    assert "REDACTED" in replayed[0]
    for shown in (*replayed, *map(everything_in, folder.iterdir())):
        assert SECRET not in shown


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_coded_request_that_is_cut_off_is_recorded_as_far_as_it_goes(
    path: Path, coding: str
) -> None:
    plain = json.dumps({"api_key": SECRET, "noise": [str(n * n) for n in range(2000)]}).encode()
    cut_off = CODINGS[coding](plain)[:-20]
    request = Request("POST", URL, headers={"Content-Encoding": coding}, content=cut_off)
    await ask(RecordingTransport(counting(), path), request)

    assert SECRET not in everything_in(path)
    assert "Content-Encoding" not in text_of(path)
    assert await ask(ReplayTransport(path), request)


async def test_what_a_cookie_says_is_secret_elsewhere_too(path: Path) -> None:
    answer = Router()
    answer.get().respond(headers={"SET-COOKIE": "sid=another-secret; Path=/"}, json=[SECRET])
    request = Request("GET", URL, headers={"cookie": f'theme=dark; sid="{SECRET}"'})
    await ask(RecordingTransport(answer.transport, path), request)

    assert SECRET not in text_of(path)
    assert "another-secret" not in text_of(path)
    assert "dark" not in text_of(path)


# -- under an SDK ----------------------------------------------------------------------------------


async def talk(client: Any) -> list[Any]:
    """What a user of the OpenAI SDK writes: a question, a streamed one, and one that fails."""
    import openai

    messages: Any = [{"role": "user", "content": "What is a trunk line?"}]
    whole = await client.chat.completions.create(model="m", messages=messages, max_tokens=6)
    said: list[Any] = [whole.choices[0].message.content, whole.usage.total_tokens]
    stream = await client.chat.completions.create(
        model="m", messages=messages, max_tokens=6, stream=True
    )
    said += [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.get("/nothing-here", cast_to=object)
    return [*said, caught.value.status_code]


# On trio the SDK's own generators, which it leaves at "[DONE]", warn that they were left.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_an_sdk_said_to_a_server_is_replayed_without_one(path: Path) -> None:
    openai = pytest.importorskip("openai")
    adapter = pytest.importorskip("trunkline.adapters.httpx2")

    async def run(base_url: str, transport: Transport) -> list[Any]:
        async with openai.AsyncOpenAI(
            api_key=SECRET, base_url=base_url, http_client=adapter.AsyncClient(transport)
        ) as client:
            return await talk(client)

    with LLMServer() as server:
        base_url = server.base_url
        recording = RecordingTransport(trunkline.open_transport(), path)
        recorded = await run(base_url, recording)
        await recording.aclose()
    assert len(recorded) > 6
    assert recorded[-1] == 404
    assert await run(base_url, ReplayTransport(path)) == recorded

    text = text_of(path)
    assert SECRET not in text
    assert "authorization: redacted" in text.lower()
    assert len(read(path)) == 3
