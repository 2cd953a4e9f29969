"""What `LLMServer`, `LLMApp`, `Certificates` and `trunkline serve` promise, over real sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import aiohttp
import anyio
import h2.connection
import h2.events
import httpx
import pytest
import typer
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from trunkline.cli._serve import serve
from trunkline.testing._certificates import LOOPBACK_NAMES, Certificate, Certificates
from trunkline.testing._llm_app import DEFAULT_TOKENS
from trunkline.testing._llm_server import THREAD_NAME, LLMServer


class Wire(TypedDict, total=False):
    tls: bool
    http2: bool


EVERY_WIRE = [
    pytest.param(Wire(), id="http"),
    pytest.param(Wire(tls=True), id="https"),
    pytest.param(Wire(tls=True, http2=True), id="h2"),
]
ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
WIDE = {"COLUMNS": "200"}
NEVER = {"x-token-delay": "600"}


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param("trio", id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer() as server:
        yield server


@pytest.fixture
def client(server: LLMServer) -> Iterator[httpx.Client]:
    server.reset()
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with Certificates() as certificates:
        yield certificates


def trusting(server: LLMServer, *alpn: str) -> ssl.SSLContext:
    assert server.ca_file is not None
    context = ssl.create_default_context(cafile=server.ca_file)
    context.set_alpn_protocols(list(alpn or ("http/1.1",)))
    return context


def connect(server: LLMServer) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    if server.ca_file is None:
        return plain
    return trusting(server).wrap_socket(plain, server_hostname="localhost")


def httpx_client(server: LLMServer, *, http2: bool = False) -> httpx.Client:
    verify = trusting(server) if server.ca_file else False
    return httpx.Client(base_url=server.url, verify=verify, http2=http2)


def chat(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def events_of(body: str) -> list[Any]:
    datas = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", EVERY_WIRE)
def test_twenty_calls_of_one_client_are_one_connection(options: Wire) -> None:
    with LLMServer(**options) as server:
        with httpx_client(server, http2="http2" in options) as client:
            versions = {
                client.post("/v1/chat/completions", json=chat()).http_version for _ in range(20)
            }
        assert versions == {"HTTP/2" if "http2" in options else "HTTP/1.1"}
        assert (server.requests, server.connections) == (20, 1)
        assert server.handshakes == (1 if "tls" in options else 0)
        assert server.cancelled == 0


@pytest.mark.parametrize("options", EVERY_WIRE)
def test_a_connection_that_sends_nothing_is_counted_at_once(options: Wire) -> None:
    with LLMServer(**options) as server:
        for n in range(1, 11):
            connection = connect(server)
            assert (server.connections, server.open_connections) == (n, 1)
            assert server.handshakes == (n if "tls" in options else 0)
            connection.close()
            assert server.open_connections == 0
        assert server.requests == 0


def test_a_refused_handshake_is_a_connection_but_no_handshake() -> None:
    with LLMServer(tls=True) as server:
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
        assert (server.connections, server.handshakes) == (1, 0)


def test_reset_zeroes_all_but_what_is_open(server: LLMServer) -> None:
    with connect(server), httpx.Client(base_url=server.url) as client:
        client.get("/health")
        server.rate_limit(5)
        server.reset()
        counts = server.counts
        assert (counts.connections, counts.requests, counts.open_connections) == (0, 0, 2)
        assert client.get("/v1/models").status_code == 200


def test_stats_are_the_counts(server: LLMServer, client: httpx.Client) -> None:
    client.get("/health")
    stats = client.get("/stats").json()
    assert stats == {
        "connections": 1,
        "open_connections": 1,
        "handshakes": 0,
        "requests": 2,
        "completed": 0,
        "cancelled": 0,
    }


def test_an_idle_connection_is_closed_after_the_keep_alive_timeout() -> None:
    with LLMServer(keep_alive_timeout=0.05) as server, connect(server) as connection:
        assert connection.recv(1) == b""
        assert server.open_connections == 0


@pytest.mark.anyio
async def test_waiting_in_vain_says_what_was_counted(server: LLMServer) -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.01 s.*cancelled=0"):
        await server.wait_until(lambda counts: counts.cancelled == 99, timeout=0.01)


# -- its life --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_async_with_serves_any_event_loop() -> None:
    async with LLMServer(tls=True) as server:
        async with httpx.AsyncClient(verify=trusting(server)) as client:
            answer = await client.get(f"{server.url}/health")
        assert answer.json() == {"status": "ok"}
        await server.wait_open_connections(0)
    assert server.connections == 1


@pytest.mark.parametrize("options", EVERY_WIRE)
def test_stop_is_prompt_and_leaves_nothing(options: Wire) -> None:
    before = _threads_and_descriptors()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(LLMServer(**options))
        ca_file = server.ca_file
        client = stack.enter_context(httpx_client(server, http2="http2" in options))
        slow = stack.enter_context(
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=NEVER)
        )
        flood = stack.enter_context(
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=10**6))
        )
        assert (slow.status_code, flood.status_code) == (200, 200)
        stack.enter_context(connect(server))
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2
        assert silent.recv(1) == b""
        assert server.open_connections == 0
    assert _threads_and_descriptors() == before
    assert ca_file is None or not Path(ca_file).parent.exists()


def _threads_and_descriptors() -> tuple[int, int]:
    threads = [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]
    return len(threads), len(os.listdir("/dev/fd"))


def test_a_stopped_server_starts_again_on_its_port() -> None:
    server = LLMServer()
    server.start()
    port = server.port
    server.stop()
    server.stop()
    with server:
        assert server.port == port
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(RuntimeError, match="running"):
            server.start()


def test_a_taken_port_is_an_error_of_start(server: LLMServer) -> None:
    other = LLMServer(port=server.port, tls=True)
    with pytest.raises(OSError, match="in use"):
        other.start()
    other.stop()


def test_nothing_is_said_in_development_mode() -> None:
    script = (
        "import socket\n"
        "from trunkline.testing._llm_server import LLMServer\n"
        "with LLMServer(tls=True, http2=True) as server:\n"
        "    gone = socket.create_connection(('127.0.0.1', server.port))\n"
        "    gone.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n')\n"
        "    gone.close()\n"
        "    kept = socket.create_connection(('127.0.0.1', server.port))\n"
        "    assert server.connections == 2\n"
        "kept.close()\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "options", [{"http2": True}, {"client_ca": "ca.pem"}, {"token_delay": -1.0}]
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tls=True|token_delay"):
        LLMServer(**options)


def test_localhost_is_both_loopback_addresses() -> None:
    with LLMServer(host="localhost") as server:
        assert server.url == f"http://localhost:{server.port}"
        with socket.create_connection(("127.0.0.1", server.port)):
            assert server.connections == 1
        if socket.has_dualstack_ipv6():
            with socket.create_connection(("::1", server.port)):
                assert server.connections == 2


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("http2", "agreed"), [(False, "http/1.1"), (True, "h2")])
def test_alpn_offers_h2_only_when_asked_to(http2: bool, agreed: str) -> None:
    with LLMServer(tls=True, http2=http2) as server:
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        context = trusting(server, "h2", "http/1.1")
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            assert connection.selected_alpn_protocol() == agreed


@pytest.mark.parametrize("name", LOOPBACK_NAMES)
def test_the_certificate_is_valid_for_every_loopback_name(name: str) -> None:
    with LLMServer(tls=True) as server:
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with trusting(server).wrap_socket(plain, server_hostname=name) as connection:
            assert connection.getpeercert()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Certificates.expired, "certificate has expired"),
        (Certificates.wrong_host, "Hostname mismatch"),
        (Certificates.self_signed, "self-signed certificate"),
    ],
)
def test_a_bad_certificate_is_bad_in_the_one_way_it_says(
    certificates: Certificates, make: Callable[[Certificates], Certificate], why: str
) -> None:
    with LLMServer(tls=True, certificate=make(certificates)) as server:
        assert server.ca_file == certificates.ca_file
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with plain, pytest.raises(ssl.SSLCertVerificationError) as caught:
            certificates.client_context().wrap_socket(plain, server_hostname="localhost")
        assert caught.value.verify_message.startswith(why)


def test_client_ca_lets_in_only_who_shows_a_certificate(certificates: Certificates) -> None:
    good, authority = certificates.server(), certificates.ca_file
    with LLMServer(tls=True, certificate=good, client_ca=authority) as server:
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health", verify=certificates.client_context())
        shown = certificates.client_context(certificates.client())
        assert httpx.get(f"{server.url}/health", verify=shown).status_code == 200
        assert (server.connections, server.handshakes, server.requests) == (2, 1, 1)


@pytest.mark.parametrize("shown", [True, False])
def test_a_server_context_can_require_a_client_certificate(
    certificates: Certificates, shown: bool
) -> None:
    server = certificates.server_context(alpn=["h2"], require_client_certificate=True)
    certificate = certificates.client() if shown else None
    client = certificates.client_context(certificate, alpn=["h2"])
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)

    def answer() -> None:
        with theirs, contextlib.suppress(ssl.SSLError), contextlib.ExitStack() as stack:
            connection = stack.enter_context(server.wrap_socket(theirs, server_side=True))
            connection.sendall(connection.recv(4))

    thread = threading.Thread(target=answer)
    thread.start()
    with client.wrap_socket(ours, server_hostname="localhost") as connection:
        assert connection.selected_alpn_protocol() == "h2"
        if shown:
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
        else:
            with pytest.raises(ssl.SSLError, match="certificate required"):
                connection.recv(4)
    thread.join()


# -- what it answers -------------------------------------------------------------------------------


def test_a_completion_has_the_shape_of_openai(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat(max_tokens=5))
    body = answer.json()
    assert answer.headers["x-request-id"] == body.pop("id")
    assert abs(body.pop("created") - time.time()) < 60
    message = {"role": "assistant", "content": "one two three one two", "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }


def test_a_stream_is_role_tokens_finish_usage_done(client: httpx.Client) -> None:
    body = chat(max_tokens=2, stream=True, stream_options={"include_usage": True})
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events_of(answer.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


def test_streamed_and_whole_answers_are_the_same_words(client: httpx.Client) -> None:
    @given(text=st.text(max_size=50), tokens=st.integers(1, 40))
    def check(text: str, tokens: int) -> None:
        body = chat(text, max_completion_tokens=tokens)
        whole = client.post("/v1/chat/completions", json=body).json()
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
        _role, *chunks, _finish, done = events_of(streamed.text)
        assert done == "[DONE]"
        pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
        assert "".join(pieces) == whole["choices"][0]["message"]["content"]
        assert len(pieces) == tokens

    check()


def test_parts_are_read_and_the_default_length_holds(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "left"}, {"type": "text", "text": "right"}]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}], "temperature": 1}
    answer = client.post("/v1/chat/completions", json=body).json()
    content = answer["choices"][0]["message"]["content"]
    assert content.split() == ["left", "right"] * (DEFAULT_TOKENS // 2)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"{}", "model"),
        (json.dumps({"model": "m", "messages": []}).encode(), "messages"),
        (json.dumps(chat(max_tokens=0)).encode(), "max_tokens"),
        (json.dumps(chat(stream="yes")).encode(), "stream"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field(
    client: httpx.Client, body: bytes, param: str | None
) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_tokens_come_as_slowly_as_asked(client: httpx.Client) -> None:
    began = time.monotonic()
    for stream in (True, False):
        body = chat(max_tokens=3, stream=stream)
        client.post("/v1/chat/completions", json=body, headers={"x-token-delay": "0.02"})
    assert time.monotonic() - began >= 2 * 3 * 0.02


def test_tokens_come_so_many_at_once(server: LLMServer) -> None:
    body = json.dumps(chat(max_tokens=7, stream=True)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.test\r\nx-tokens-at-once: 3\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(head.encode() + body)
        with sock.makefile("rb") as answer:
            _, _, chunks = answer.read().partition(b"\r\n\r\n")

    tokens = [chunk.count(b'"content":') for chunk in chunks.split(b"\n\n\r\n")]
    assert tokens[1:4] == [3, 3, 1]


def test_answers_do_not_wait_for_the_acknowledgement_of_their_heads(client: httpx.Client) -> None:
    began = time.monotonic()
    for _ in range(50):
        client.get("/health")
    assert time.monotonic() - began < 1  # A delayed ACK takes 40 ms: most of 50 would be 2 s.


@pytest.mark.parametrize("delay", ["soon", "-1", "inf", "nan"])
def test_a_bad_delay_is_a_400(client: httpx.Client, delay: str) -> None:
    answer = client.post("/v1/chat/completions", json=chat(), headers={"x-token-delay": delay})
    assert answer.status_code == 400
    assert "x-token-delay" in answer.json()["error"]["message"]


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "many"])
def test_a_bad_number_of_tokens_at_once_is_a_400(client: httpx.Client, count: str) -> None:
    answer = client.post("/v1/chat/completions", json=chat(), headers={"x-tokens-at-once": count})
    assert answer.status_code == 400
    assert "x-tokens-at-once" in answer.json()["error"]["message"]


def test_rate_limit_refuses_the_next_requests_of_the_api(
    server: LLMServer, client: httpx.Client
) -> None:
    server.rate_limit(2, retry_after=1.5)
    assert client.get("/health").status_code == 200
    answers = [client.post("/v1/chat/completions", json=chat()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "2"
    assert answers[0].headers["retry-after-ms"] == "1500"
    assert answers[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert server.connections == 1


@pytest.mark.parametrize(("asked", "status"), [("503", 503), ("204", 204), ("99", 400)])
def test_a_request_can_ask_to_fail(client: httpx.Client, asked: str, status: int) -> None:
    answer = client.post("/echo", content=b"x" * 100_000, headers={"x-fail-status": asked})
    assert answer.status_code == status
    assert bool(answer.content) == (status != 204)


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/health", 405)])
def test_a_body_nobody_wanted_does_not_cost_the_connection(
    server: LLMServer, client: httpx.Client, path: str, status: int
) -> None:
    for _ in range(2):
        assert client.post(path, content=b"x" * 100_000).status_code == status
    assert server.connections == 1


def test_models_are_listed(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["object"] == "model"


def test_echo_says_what_arrived(client: httpx.Client) -> None:
    headers = [("x-b", "1"), ("x-a", "2"), ("x-b", "3")]
    answer = client.request("PURGE", "/echo?b=%20&a=1&a", headers=headers, content=b"\xff\x00")
    seen = answer.json()
    assert (seen["method"], seen["path"], seen["query"]) == ("PURGE", "/echo", "b=%20&a=1&a")
    assert [pair for pair in seen["headers"] if pair[0] in ("x-a", "x-b")] == [
        ["x-b", "1"],
        ["x-a", "2"],
        ["x-b", "3"],
    ]
    assert (base64.b64decode(seen["body"]), seen["text"]) == (b"\xff\x00", None)
    assert (seen["raw_path"], seen["http_version"]) == ("/echo", "1.1")
    port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
    assert seen["client_port"] == port
    assert client.post("/echo", content="größe".encode()).json()["text"] == "größe"


# -- clients that leave ----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("options", EVERY_WIRE)
async def test_a_client_that_leaves_a_stream_is_noticed(options: Wire) -> None:
    body = chat(stream=True, max_tokens=1000)
    async with LLMServer(token_delay=0.01, **options) as server:
        verify = trusting(server) if server.ca_file else False
        async with httpx.AsyncClient(verify=verify, http2="http2" in options) as client:
            url = f"{server.base_url}/chat/completions"
            async with client.stream("POST", url, json=body) as answer:
                assert answer.status_code == 200
        await server.wait_cancelled()
        await server.wait_open_connections(0)
        assert server.cancelled == 1


@pytest.mark.anyio
@ASYNCIO
async def test_a_client_that_leaves_before_the_answer_is_noticed(server: LLMServer) -> None:
    server.reset()
    async with aiohttp.ClientSession() as session:
        with anyio.move_on_after(10) as scope:
            async with anyio.create_task_group() as group:

                async def ask() -> None:
                    url = f"{server.base_url}/chat/completions"
                    await session.post(url, json=chat(), headers=NEVER)

                group.start_soon(ask)
                await server.wait_until(lambda counts: counts.requests == 1)
                group.cancel_scope.cancel()
        assert not scope.cancelled_caught
        await server.wait_cancelled()


@pytest.mark.anyio
@ASYNCIO
async def test_a_hundred_leavers_do_not_disturb_a_hundred_stayers(server: LLMServer) -> None:
    server.reset()
    url = f"{server.base_url}/chat/completions"
    lengths: list[int] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def stay() -> None:
            async with session.post(url, json=chat(stream=True, max_tokens=20)) as answer:
                lengths.append(len(events_of(await answer.text())))

        async def leave() -> None:
            async with session.post(url, json=chat(stream=True), headers=NEVER) as answer:
                await answer.content.readany()
                answer.close()

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(leave)
                group.start_soon(stay)
    assert lengths == [20 + 3] * 100
    await server.wait_cancelled(100)
    await server.wait_open_connections(0)
    assert server.counts.cancelled == 100


@pytest.mark.anyio
@ASYNCIO
async def test_a_reset_h2_stream_is_noticed_and_its_connection_goes_on() -> None:
    async with LLMServer(tls=True, http2=True) as server:
        await anyio.to_thread.run_sync(_reset_streams, server, 50)
        await server.wait_cancelled(50)
        assert (server.connections, server.requests, server.cancelled) == (1, 51, 50)


def _reset_streams(server: LLMServer, count: int) -> None:
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with trusting(server, "h2").wrap_socket(plain, server_hostname="localhost") as tls:
        peer = h2.connection.H2Connection()
        peer.initiate_connection()
        for _ in range(count):
            stream = _ask(peer, tls, chat(stream=True), NEVER)
            _read_until(peer, tls, stream, h2.events.DataReceived)
            peer.reset_stream(stream, error_code=8)
        last = _ask(peer, tls, chat(stream=True), {})
        _read_until(peer, tls, last, h2.events.StreamEnded)


def _ask(
    peer: h2.connection.H2Connection,
    tls: ssl.SSLSocket,
    body: dict[str, Any],
    headers: dict[str, str],
) -> int:
    stream = peer.get_next_available_stream_id()
    path = "/v1/chat/completions"
    pseudo = {":method": "POST", ":path": path, ":authority": "localhost", ":scheme": "https"}
    peer.send_headers(stream, [*pseudo.items(), *headers.items()])
    peer.send_data(stream, json.dumps(body).encode(), end_stream=True)
    tls.sendall(peer.data_to_send())
    return stream


def _read_until(
    peer: h2.connection.H2Connection,
    tls: ssl.SSLSocket,
    stream: int,
    kind: type[h2.events.DataReceived] | type[h2.events.StreamEnded],
) -> None:
    while data := tls.recv(65536):
        events = peer.receive_data(data)
        if any(isinstance(event, kind) and event.stream_id == stream for event in events):
            return
    raise AssertionError("the server closed the connection")


# -- the command -----------------------------------------------------------------------------------


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(serve)
    return app


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    script = "import typer; from trunkline.cli._serve import serve; typer.run(serve)"
    options = ["--port", "0", "--tls", "--http2", "--token-delay", "0"]
    started = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **WIDE},
    )
    with started as process:
        assert process.stdout is not None
        told = dict(process.stdout.readline().rsplit(maxsplit=1) for _ in range(3))
        assert process.stdout.readline() == "\n"
        curl = process.stdout.readline()
        assert f"--cacert {told['CA file']} {told['base_url']}/chat/completions" in curl
        context = ssl.create_default_context(cafile=told["CA file"])
        with httpx.Client(verify=context) as client:
            assert client.get(f"{told['URL']}/health").status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert "handshakes" in out
    assert not Path(told["CA file"]).exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--http2"], "add --tls"),
        (["--port", "65536"], "65535"),
        (["--token-delay", "-1"], "zero or more"),
        (["--token-delay", "nan"], "zero or more"),
    ],
)
def test_serve_refuses_bad_options_in_words(options: list[str], says: str) -> None:
    result = CliRunner().invoke(command(), options, env=WIDE)
    assert result.exit_code == 2
    assert says in result.output


def test_serve_says_that_the_port_is_taken(server: LLMServer) -> None:
    result = CliRunner().invoke(command(), ["--port", str(server.port)], env=WIDE)
    assert result.exit_code == 2
    assert f"port {server.port} is in use" in result.output
