"""The async adapters: what goes in and out of httpx's and httpx2's messages, on real sockets.

This module knows both libraries and a server that follows a script. Errors, options and the sync
adapters have modules of their own.
"""

from __future__ import annotations

import gc
import gzip
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import httpx2
import pytest
from hypothesis import given, strategies as st

import trunkline
import trunkline.adapters.httpx
import trunkline.adapters.httpx2
from trunkline import Request, Tls, TransportConfig
from trunkline.testing import Certificates, MockTransport
from trunkline.testing._conversation import ClientGone, Conversation
from trunkline.testing._script import (
    chunk,
    expect_head,
    expect_request,
    fin,
    hold,
    response,
    send,
    serve,
    wait,
)
from trunkline.testing._servers import ScriptedServer, Step

pytestmark = pytest.mark.anyio

FAMILIES: dict[str, tuple[Any, Any]] = {
    "httpx2": (httpx2, trunkline.adapters.httpx2),
    "httpx": (httpx, trunkline.adapters.httpx),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
LANES = {"aiohttp": "asyncio", "httpx": "asyncio", "httpx-trio": "trio"}


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(lane: str) -> str:
    return LANES[lane]


@pytest.fixture
def config(lane: str) -> TransportConfig:
    return TransportConfig(backend=lane.partition("-")[0])


@pytest.fixture(params=FAMILIES)
def library(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param][0]


@pytest.fixture
def adapter(library: Any) -> Any:
    return FAMILIES[library.__name__][1]


@pytest.fixture
async def client(adapter: Any, config: TransportConfig) -> AsyncIterator[Any]:
    with anyio.fail_after(20):
        async with adapter.AsyncClient(config) as opened:
            yield opened


def tell(event: threading.Event) -> Step:
    """Set it when the script comes here."""
    return lambda conversation: event.set()


def tell_when_gone(event: threading.Event) -> Step:
    def step(conversation: Conversation) -> None:
        try:
            conversation.wait_gone()
        except ClientGone:
            event.set()
            raise
        event.set()

    return step


def drop(held: list[Any]) -> None:
    held.clear()
    gc.collect()


async def wait_for(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(partial(event.wait, 20), abandon_on_cancel=True)


# -- requests --------------------------------------------------------------------------------------


async def test_header_bytes_go_out_as_they_are_in_order_and_case(client: Any, library: Any) -> None:
    fields = [
        (b"Host", b"api.test"),
        (b"X-Twice", b"1"),
        (b"x-OTHER", b"caf\xe9 \xc3\xa9"),
        (b"X-twice", b"2"),
    ]
    with ScriptedServer(serve()) as server:
        request = library.Request("GET", server.url, headers=fields)
        await client.send(request)
        lines = server.requests[0].raw_head.split(b"\r\n")[1:-2]

    assert lines[: len(fields)] == [name + b": " + value for name, value in fields]


@pytest.mark.parametrize(
    "target",
    ["/a%2Cb?sig=%2c,%2F&x=%7e~", "/v1/models/a:b?q={x}|^`", "/%C3%A9?%zz", "/?", "/a//b/"],
)
async def test_a_url_goes_out_byte_for_byte(client: Any, library: Any, target: str) -> None:
    with ScriptedServer(serve()) as server:
        url = library.URL(server.url + target)
        await client.get(url)

        assert server.requests[0].target.encode() == url.raw_path


@given(text=st.text(max_size=20))
@every_family
def test_the_target_is_what_the_library_makes_of_a_url(family: str, text: str) -> None:
    library, adapter = FAMILIES[family]
    transport = MockTransport(lambda request: (200, {}, b""))
    try:
        url = library.URL(f"http://api.test/{text}")
    except library.InvalidURL:
        return

    async def call() -> None:
        await adapter.AsyncClient(transport).get(url)

    anyio.run(call)

    assert transport.requests[0].path.encode() == url.raw_path
    assert transport.requests[0].url.encode() == b"http://api.test" + url.raw_path


async def test_a_target_may_be_given_apart_from_the_url(client: Any) -> None:
    with ScriptedServer(serve()) as server:
        await client.request("OPTIONS", server.url, extensions={"target": b"*"})

        assert server.requests[0].raw_head.startswith(b"OPTIONS * HTTP/1.1\r\n")


async def test_credentials_in_a_url_become_a_header(client: Any) -> None:
    with ScriptedServer(serve()) as server:
        await client.get(server.url.replace("://", "://user:secret@"))

        assert server.requests[0].header("Authorization") == "Basic dXNlcjpzZWNyZXQ="


async def test_a_body_that_is_a_stream_is_sent_as_it_is_produced(client: Any) -> None:
    arrived = threading.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for(arrived)
        yield b"two"

    def first_piece(conversation: Conversation) -> None:
        conversation.read_until(b"one\r\n")
        arrived.set()
        conversation.read_until(b"0\r\n\r\n")

    with ScriptedServer([expect_head(), first_piece, send(response(200, b"ok"))]) as server:
        answered = await client.post(server.url, content=pieces())

        assert answered.text == "ok"
        assert server.received.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert server.requests[0].all("Transfer-Encoding") == ["chunked"]


async def test_a_multipart_upload_arrives_whole_with_its_length(client: Any) -> None:
    content = bytes(range(256)) * 2000
    with ScriptedServer(serve()) as server:
        files = {"file": ("data.bin", content, "application/octet-stream")}
        await client.post(server.url, data={"purpose": "assistants"}, files=files)
        received = server.requests[0]

    assert content in received.body
    assert b'name="purpose"' in received.body
    assert received.header("Content-Length") == str(len(received.body))
    assert received.header("Transfer-Encoding") is None


async def test_what_the_callers_stream_raises_is_raised(client: Any) -> None:
    class OwnError(Exception):
        pass

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        raise OwnError

    with ScriptedServer([expect_request(), hold()]) as server, pytest.raises(OwnError):
        await client.post(server.url, content=pieces())


@pytest.mark.parametrize("extension", ["sni_hostname", "trace"])
async def test_an_extension_we_cannot_honour_is_refused(
    client: Any, library: Any, extension: str
) -> None:
    with pytest.raises(library.UnsupportedProtocol, match=extension):
        await client.get("http://127.0.0.1:1/", extensions={extension: "x"})


# -- timeouts --------------------------------------------------------------------------------------


async def timeouts_of(adapter: Any, asked: Any, **config: Any) -> trunkline.Timeouts:
    """What reaches a transport of that config for a request with that time-out."""
    transport: Any = MockTransport(lambda request: (200, {}, b""))
    transport.config = TransportConfig(**config)
    await adapter.AsyncClient(transport).get("http://api.test/", timeout=asked)
    timeouts: trunkline.Timeouts = transport.config.timeouts
    return timeouts.overridden_by(transport.requests[0].timeouts)


async def test_every_timeout_arrives(adapter: Any, library: Any) -> None:
    timeout = library.Timeout(connect=1.0, read=2.0, write=3.0, pool=4.0)
    limits = {"timeouts": trunkline.Timeouts(total=9)}

    assert await timeouts_of(adapter, timeout, **limits) == trunkline.Timeouts(
        connect=1.0, read=2.0, headers=2.0, write=3.0, pool=4.0, total=9
    )


async def test_none_is_no_timeout(adapter: Any) -> None:
    assert await timeouts_of(adapter, None) == trunkline.Timeouts(
        connect=None, read=None, headers=None, write=None, pool=None, total=None
    )


@pytest.mark.parametrize(("head", "read", "holds"), [(30, 600, 30), (30, 5, 5), (30, None, 30)])
async def test_the_configs_limit_for_a_head_stays(
    adapter: Any, head: float, read: float | None, holds: float
) -> None:
    config = {"timeouts": trunkline.Timeouts(headers=head)}

    assert (await timeouts_of(adapter, read, **config)).headers == holds


async def test_a_timeout_of_nothing_is_over_at_once(client: Any, library: Any) -> None:
    with (
        ScriptedServer([expect_request(), hold()]) as server,
        pytest.raises(library.ReadTimeout),
    ):
        await client.get(server.url, timeout=library.Timeout(20, read=0))


# -- responses -------------------------------------------------------------------------------------


async def test_response_header_bytes_come_as_they_are(client: Any) -> None:
    fields = [(b"Set-Cookie", b"a=1"), (b"x-Odd", b"caf\xe9"), (b"set-cookie", b"b=2")]
    head = b"HTTP/1.1 200 Fine\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in fields)
    with ScriptedServer([expect_request(), send(head + b"Content-Length: 0\r\n\r\n")]) as server:
        got = await client.get(server.url)

    assert got.headers.raw[:3] == fields
    assert (got.reason_phrase, got.http_version) == ("Fine", "HTTP/1.1")
    assert got.extensions["http_version"] == b"HTTP/1.1"
    assert got.extensions["reason_phrase"] == b"Fine"


@pytest.mark.parametrize(
    ("version", "said", "phrase"),
    [
        ("HTTP/2", "", "Not Found"),
        ("HTTP/1.1", "", ""),
        ("HTTP/1.1", "Gone", "Gone"),
    ],
)
async def test_http2_has_the_usual_reason_phrase(
    adapter: Any, library: Any, version: str, said: str, phrase: str
) -> None:
    answered = trunkline.Response(404, reason_phrase=said, http_version=version)
    got = await adapter.AsyncClient(MockTransport(lambda request: answered)).get("http://api.test/")

    assert got.reason_phrase == phrase
    with pytest.raises(library.HTTPStatusError, match=f"'404 {phrase}'"):
        got.raise_for_status()


async def test_a_coded_body_is_the_librarys_to_decode(client: Any) -> None:
    coded = gzip.compress(b"plain " * 100)
    reply = response(200, coded, ("Content-Encoding", "gzip"))
    with ScriptedServer(serve(reply)) as server:
        whole = await client.get(server.url)
        async with client.stream("GET", server.url) as streamed:
            raw = b"".join([piece async for piece in streamed.aiter_raw()])

    assert whole.content == b"plain " * 100
    assert whole.headers["Content-Encoding"] == "gzip"
    assert raw == coded


async def test_a_response_is_streamed(client: Any) -> None:
    head = response(framing="chunked").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    script = [
        expect_request(),
        send(head + chunk(b"one")),
        wait("read"),
        send(chunk(b"two"), b"0\r\n\r\n"),
    ]
    with ScriptedServer(script) as server:
        async with client.stream("GET", server.url) as streamed:
            pieces = streamed.aiter_bytes()
            assert await anext(pieces) == b"one"
            server.open("read")
            assert [piece async for piece in pieces] == [b"two"]

        assert client.transport.snapshot().idle == 1


# httpx leaves async generators of its own half-way, of which trio warns.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_leaving_a_stream_half_way_closes_the_connection(client: Any) -> None:
    gone = threading.Event()
    head = response(framing="chunked").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    script = [expect_request(), send(head + chunk(b"one")), tell_when_gone(gone)]
    with ScriptedServer(script) as server:
        async with (
            client.stream("GET", server.url) as streamed,
            aclosing(streamed.aiter_bytes()) as pieces,
        ):
            assert await anext(pieces) == b"one"
        await wait_for(gone)

        assert client.transport.snapshot().open == 0


@pytest.mark.trunkline_may_leak
async def test_a_response_that_is_dropped_is_told_and_gives_its_connection_back(
    client: Any, library: Any
) -> None:
    gone = threading.Event()
    head = response(framing="chunked").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    script = [expect_request(), send(head + chunk(b"one")), tell_when_gone(gone)]
    with ScriptedServer(script) as server:
        held = [await client.send(library.Request("GET", server.url), stream=True)]
        with pytest.warns(ResourceWarning, match="unclosed response"):
            drop(held)
        await wait_for(gone)


async def test_a_body_that_was_read_is_counted_and_timed(client: Any) -> None:
    with ScriptedServer(serve(response(200, b"whole"))) as server:
        got = await client.get(server.url)

    assert (got.content, await got.aread(), got.num_bytes_downloaded) == (b"whole", b"whole", 5)
    assert got.is_closed
    assert got.is_stream_consumed
    assert got.elapsed.total_seconds() > 0


async def test_a_stream_that_was_put_around_the_body_is_read_through(
    adapter: Any, library: Any, config: TransportConfig
) -> None:
    class Loud(library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in self.inner:
                yield piece.upper()

        async def aclose(self) -> None:
            await self.inner.aclose()

    async def wrap(answered: Any) -> None:
        answered.stream = Loud(answered.stream)

    with ScriptedServer(serve(response(200, b"quiet"))) as server:
        async with adapter.AsyncClient(config, event_hooks={"response": [wrap]}) as client:
            got = await client.get(server.url)

    assert got.content == b"QUIET"


async def test_a_whole_body_is_read_past_the_librarys_generators(client: Any, library: Any) -> None:
    """The contract with what lies below the library's public surface: `Family.is_direct`."""
    with ScriptedServer(serve(response(200, b"whole"))) as server:
        request = library.Request("GET", server.url)
        got = await client.send(request, stream=True)

        assert got._family.is_direct(got, got.body)
        await got.aread()


async def test_a_body_that_is_cut_is_the_librarys_error_with_its_request(
    client: Any, library: Any
) -> None:
    cut = response(200, b"whole").replace(b"Content-Length: 5", b"Content-Length: 9")
    with ScriptedServer([expect_request(), send(cut), fin()]) as server:
        got = await client.send(library.Request("GET", server.url), stream=True)
        with pytest.raises(library.RemoteProtocolError) as caught:
            await got.aread()

    assert caught.value.request is got.request
    assert got.is_closed


async def test_network_stream_says_who_answered(adapter: Any, config: TransportConfig) -> None:
    with Certificates() as certificates:
        certificate = certificates.server()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.cert_file, certificate.key_file)
        tls = config.model_copy(update={"tls": Tls(ca_file=Path(certificate.ca_file))})
        with ScriptedServer(serve(), tls=context) as server:
            async with adapter.AsyncClient(tls) as client:
                stream = (await client.get(server.url)).extensions["network_stream"]

    assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
    assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
    assert stream.get_extra_info("ssl_object").getpeercert()["subjectAltName"]
    assert stream.get_extra_info("socket") is None


# -- whose transport -------------------------------------------------------------------------------


async def test_a_transport_that_was_given_stays_open(adapter: Any, config: TransportConfig) -> None:
    transport = trunkline.open_transport(config)
    with ScriptedServer(serve(), serve()) as server:
        async with adapter.AsyncClient(transport) as client:
            await client.get(server.url)
        own = await transport.send(Request("GET", server.url))
        await own.aread()
        await transport.aclose()

        assert server.connections == 1


async def test_a_transport_made_here_is_closed_here(adapter: Any, config: TransportConfig) -> None:
    sender = adapter.AsyncTransport(config)
    async with sender:
        pass

    with pytest.raises(trunkline.TransportClosed):
        await sender.transport.send(Request("GET", "http://127.0.0.1:1/"))


@every_family
def test_one_client_serves_several_event_loops(family: str) -> None:
    client = FAMILIES[family][1].AsyncClient()

    async def call(url: str) -> int:
        return int((await client.get(url)).status_code)

    with ScriptedServer(serve()) as server:
        assert [anyio.run(call, server.url) for _ in range(3)] == [200] * 3
        anyio.run(client.aclose)


@every_family
def test_a_missing_library_is_named_with_the_command_that_installs_it(family: str) -> None:
    script = (
        f"import sys; sys.modules[{family!r}] = None\n"
        f"try: import trunkline.adapters.{family}\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert ran.stdout.strip().endswith(f"needs {family}: pip install 'trunkline[{family}]'")


@pytest.mark.parametrize(("one", "other"), [("httpx", "httpx2"), ("httpx2", "httpx")])
def test_one_library_is_enough(one: str, other: str) -> None:
    script = f"import sys; sys.modules[{other!r}] = None\nimport trunkline.adapters.{one} as one"

    subprocess.run([sys.executable, "-c", f"{script}\none.Client()"], check=True)
