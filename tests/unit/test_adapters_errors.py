"""The adapters' errors: each of ours becomes the class that users of httpx and httpx2 expect.

This module knows both trees. The real failures at its end are on real sockets.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import trunkline
import trunkline.adapters.httpx
import trunkline.adapters.httpx2
from trunkline import TransportConfig, TransportError
from trunkline.adapters import _errors
from trunkline.testing import MockTransport
from trunkline.testing._script import close, expect_request, hold, response, send
from trunkline.testing._servers import ScriptedServer

FAMILIES: dict[str, tuple[Any, Any]] = {
    "httpx2": (httpx2, trunkline.adapters.httpx2),
    "httpx": (httpx, trunkline.adapters.httpx),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_backend = pytest.mark.parametrize("backend", ["aiohttp", "httpx"])


def tree(root: type[TransportError]) -> Iterator[type[TransportError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("trunkline."):
            yield from tree(child)


TREE = list(dict.fromkeys(tree(TransportError)))
every_error = pytest.mark.parametrize("ours", TREE, ids=[one.__name__ for one in TREE])


async def outcome(client: Any, url: str = "http://api.test/", **options: Any) -> Any:
    """What a POST raises, on the way to the head or while its body is read."""
    async with client:
        try:
            async with client.stream("POST", url, content=b"body", **options) as answered:
                await answered.aread()
        except Exception as error:  # noqa: BLE001  # whatever comes is what is looked at
            return error


def sync_outcome(client: Any) -> Any:
    with client:
        try:
            client.post("http://api.test/", content=b"body")
        except Exception as error:  # noqa: BLE001  # whatever comes is what is looked at
            return error


def failing(error: TransportError, *, in_body: bool) -> MockTransport:
    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        raise error

    def handler(request: trunkline.Request) -> trunkline.Response:
        if in_body:
            return trunkline.Response(200, content=body())
        raise error

    return MockTransport(handler)


@every_error
def test_every_error_has_a_row(ours: type[TransportError]) -> None:
    assert ours in _errors.NAMES, "give it a row, and think of who sends again on what"


@pytest.mark.parametrize("in_body", [False, True], ids=["head", "body"])
@every_family
@every_error
def test_an_error_becomes_the_librarys_and_stays_its_cause(
    ours: type[TransportError], family: str, in_body: bool
) -> None:
    library, adapter = FAMILIES[family]
    error = ours("what happened", bytes_sent=7)

    raised = anyio.run(outcome, adapter.AsyncClient(failing(error, in_body=in_body)))
    sync = sync_outcome(adapter.Client(failing(error, in_body=in_body)))

    for one in (raised, sync):
        assert type(one) is getattr(library, _errors.NAMES[ours])
        assert one.__cause__ is error
        assert one.request.method == "POST"
        assert str(one) == "what happened"


@every_family
def test_an_error_of_a_strangers_backend_becomes_what_its_base_does(family: str) -> None:
    library, adapter = FAMILIES[family]

    class OddError(trunkline.WriteError):
        pass

    raised = anyio.run(outcome, adapter.AsyncClient(failing(OddError(), in_body=False)))

    assert type(raised) is library.WriteError
    assert str(raised) == "OddError"


@every_error
def test_what_users_take_for_never_sent_never_was(ours: type[TransportError]) -> None:
    """On ConnectError, ConnectTimeout, PoolTimeout and ProxyError callers send again."""
    before_sending = (
        trunkline.ConnectionFailed,
        trunkline.ConnectTimeout,
        trunkline.PoolTimeout,
        trunkline.PoolFull,
        trunkline.EgressDenied,
    )
    sent_again = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}

    assert (_errors.NAMES[ours] in sent_again) == issubclass(ours, before_sending)


# -- real failures ---------------------------------------------------------------------------------

HEAD = response(200, b"0123456789")[:-10]
FAILURES: dict[str, tuple[list[Any], str, type[TransportError]]] = {
    "hangs up after the request": (
        [expect_request(), close()],
        "RemoteProtocolError",
        trunkline.RemoteDisconnected,
    ),
    "never answers": ([expect_request(), hold()], "ReadTimeout", trunkline.HeadersTimeout),
    "answers what is no HTTP": (
        [expect_request(), send(b"SSH-2.0-server\r\n\r\n")],
        "RemoteProtocolError",
        trunkline.RemoteProtocolError,
    ),
    "cuts the body short": (
        [expect_request(), send(HEAD + b"012"), close()],
        "RemoteProtocolError",
        trunkline.BodyTruncated,
    ),
    "goes silent in the body": (
        [expect_request(), send(HEAD + b"012"), hold()],
        "ReadTimeout",
        trunkline.ReadTimeout,
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@every_backend
@every_family
def test_after_a_sent_post_the_error_says_so(family: str, backend: str, failure: str) -> None:
    library, adapter = FAMILIES[family]
    script, theirs, ours = FAILURES[failure]
    client = adapter.AsyncClient(TransportConfig(backend=backend))
    with ScriptedServer(script) as server:
        timeout = library.Timeout(20, read=0.2)
        raised = anyio.run(lambda: outcome(client, server.url, timeout=timeout))

        assert len(server.requests) == 1

    assert type(raised) is getattr(library, theirs)
    cause = raised.__cause__
    assert type(cause) is ours
    assert cause.request_sent
    assert cause.bytes_sent > 0
    assert cause.replay != "safe"


@every_backend
@every_family
def test_a_refused_connection_is_a_connect_error(family: str, backend: str) -> None:
    library, adapter = FAMILIES[family]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = adapter.AsyncClient(TransportConfig(backend=backend))

    raised = anyio.run(outcome, client, f"http://127.0.0.1:{port}/")

    assert type(raised) is library.ConnectError
    assert raised.__cause__.replay == "safe"


@every_backend
@every_family
def test_a_stalled_handshake_is_a_connect_timeout(family: str, backend: str) -> None:
    library, adapter = FAMILIES[family]
    client = adapter.AsyncClient(TransportConfig(backend=backend))
    with ScriptedServer([hold()]) as server:
        timeout = library.Timeout(20, connect=0.2)
        url = server.url.replace("http:", "https:")
        raised = anyio.run(lambda: outcome(client, url, timeout=timeout))

    assert type(raised) is library.ConnectTimeout
    assert raised.__cause__.phase == "tls"


@every_backend
@every_family
def test_a_full_pool_is_a_pool_timeout(family: str, backend: str) -> None:
    library, adapter = FAMILIES[family]

    async def second(url: str) -> Any:
        limits = library.Limits(max_connections=1)
        client = adapter.AsyncClient(TransportConfig(backend=backend), limits=limits)
        async with client, client.stream("GET", url):
            return await outcome_of(client.get(url, timeout=library.Timeout(20, pool=0.1)))

    async def outcome_of(call: Any) -> Any:
        try:
            return await call
        except Exception as error:  # noqa: BLE001  # whatever comes is what is looked at
            return error

    with ScriptedServer([expect_request(), send(HEAD + b"012"), hold()]) as server:
        raised = anyio.run(second, server.url)

    assert type(raised) is library.PoolTimeout


@every_backend
@every_family
def test_a_server_that_takes_nothing_is_a_write_timeout(family: str, backend: str) -> None:
    library, adapter = FAMILIES[family]
    client = adapter.AsyncClient(TransportConfig(backend=backend))

    async def upload(url: str) -> Any:
        async with client:
            try:
                timeout = library.Timeout(20, write=0.2)
                await client.post(url, content=bytes(50_000_000), timeout=timeout)
            except Exception as error:  # noqa: BLE001  # whatever comes is what is looked at
                return error

    with ScriptedServer([hold()]) as server:
        raised = anyio.run(upload, server.url)

    assert type(raised) is library.WriteTimeout


@every_family
def test_a_scheme_we_do_not_speak_is_an_unsupported_protocol(family: str) -> None:
    library, adapter = FAMILIES[family]

    raised = anyio.run(outcome, adapter.AsyncClient(), "ws://127.0.0.1:1/")

    assert type(raised) is library.UnsupportedProtocol


@pytest.mark.parametrize(
    "headers",
    [
        [(b"X-Injected", b"a\r\nX-More: b")],
        [(b"X Space", b"a")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Content-Length", b"3")],
    ],
    ids=["CRLF", "name", "coding", "length"],
)
@every_family
def test_a_request_that_breaks_http_is_a_local_protocol_error(
    family: str, headers: list[tuple[bytes, bytes]]
) -> None:
    library, adapter = FAMILIES[family]
    transport = MockTransport(lambda request: (200, {}, b""))

    raised = anyio.run(lambda: outcome(adapter.AsyncClient(transport), headers=headers))

    assert type(raised) is library.LocalProtocolError
    assert transport.requests == []
