"""A connection that is lost under an SDK, at each phase: how often the server was asked, and what
the SDK's user gets to know.

The truth is the server's: it counts what reached it, byte by byte.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.sdk._sdks import OpenAI, Sdk, original, refused_port

import trunkline
from trunkline import TransportConfig
from trunkline.testing import LLMServer
from trunkline.testing._script import (
    answer,
    close,
    expect_head,
    expect_request,
    fin,
    response,
    rst,
    send,
)
from trunkline.testing._servers import ScriptedServer, Step

pytestmark = pytest.mark.anyio

Open = Callable[..., tuple[Any, Any]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


# What each of our errors has to be to the users of httpx and httpx2.
NAMES: dict[type[trunkline.TransportError], str] = {
    trunkline.ConnectError: "ConnectError",
    trunkline.RemoteDisconnected: "RemoteProtocolError",
    trunkline.BodyTruncated: "RemoteProtocolError",
}


@dataclass(frozen=True)
class Loss:
    """How a connection ends, and what has to be said of it.

    Attributes:
        asked: requests that the server has read.
        errors: the classes of our error that are right.
        started: the response had begun.
    """

    steps: Sequence[Step]
    asked: int
    errors: tuple[type[trunkline.TransportError], ...]
    started: bool = False


# A connection that is closed at once is found closed before the request is written, or after.
AT_ONCE = (trunkline.ConnectError, trunkline.RemoteDisconnected)
BEFORE = (trunkline.RemoteDisconnected,)
WITHIN = (trunkline.BodyTruncated,)
CUT = response(200, b"{}" * 9)[:-3]

LOST = {
    "closed at accept": Loss([close()], 0, AT_ONCE),
    "FIN after the head": Loss([expect_head(), fin()], 1, BEFORE),
    "FIN after the request": Loss([expect_request(), fin()], 1, BEFORE),
    "RST after the request": Loss([expect_request(), rst()], 1, BEFORE),
    "FIN inside the head": Loss([expect_request(), send(HEAD), fin()], 1, WITHIN, started=True),
    "FIN inside the body": Loss([expect_request(), send(CUT), fin()], 1, WITHIN, started=True),
    "RST inside the body": Loss([expect_request(), send(CUT), rst()], 1, WITHIN, started=True),
}


@pytest.mark.parametrize("loss", LOST.values(), ids=LOST)
async def test_a_lost_connection_is_the_sdks_connection_error_with_the_facts(
    sdk: Sdk, opened: Open, loss: Loss
) -> None:
    with ScriptedServer(loss.steps) as server:
        client, http = opened(server.url)
        with pytest.raises(sdk.connection_error) as caught:
            await sdk.ask(client, "one")
        assert (len(server.requests), server.connections) == (loss.asked, 1)
        check(sdk, caught.value, loss)
        assert http.transport.snapshot().open == 0


@pytest.mark.parametrize("loss", LOST.values(), ids=LOST)
def test_a_lost_connection_is_the_sync_sdks_connection_error_with_the_facts(
    sdk: Sdk, opened_sync: Open, loss: Loss
) -> None:
    with ScriptedServer(loss.steps) as server:
        client, _ = opened_sync(server.url)
        with pytest.raises(sdk.connection_error) as caught:
            sdk.ask_sync(client, "one")
        assert (len(server.requests), server.connections) == (loss.asked, 1)
        check(sdk, caught.value, loss)


def check(sdk: Sdk, raised: Exception, loss: Loss) -> None:
    assert not isinstance(raised, sdk.timeout_error)
    error = original(raised)
    assert type(error) in loss.errors
    assert translated(raised, error).__name__ == NAMES[type(error)]
    assert error.response_started is loss.started
    assert error.connection_reused is False
    assert error.attempts <= 1
    if loss.asked:
        assert error.request_sent is not False
        assert error.replay != "safe"


def translated(raised: BaseException, error: trunkline.TransportError) -> type[BaseException]:
    """The class of what stands between the SDK's error and ours, or is the SDK's."""
    cause = raised
    while cause.__cause__ is not error:
        assert cause.__cause__ is not None
        cause = cause.__cause__
    return type(cause)


# -- nobody there ----------------------------------------------------------------------------------


async def test_a_refused_connection_is_known_not_to_have_been_sent(sdk: Sdk, opened: Open) -> None:
    with refused_port() as port:
        client, _ = opened(f"http://127.0.0.1:{port}")
        with pytest.raises(sdk.connection_error) as caught:
            await sdk.ask(client, "one")
    error = original(caught.value)
    assert isinstance(error, trunkline.ConnectError)
    assert translated(caught.value, error).__name__ == "ConnectError"
    assert (error.replay, error.request_sent, error.bytes_sent) == ("safe", False, 0)


def test_a_refused_connection_is_known_to_the_sync_sdk_too(sdk: Sdk, opened_sync: Open) -> None:
    with refused_port() as port:
        client, _ = opened_sync(f"http://127.0.0.1:{port}")
        with pytest.raises(sdk.connection_error) as caught:
            sdk.ask_sync(client, "one")
    assert original(caught.value).replay == "safe"


# -- on a connection that was used before ----------------------------------------------------------


def good(sdk: Sdk) -> bytes:
    return response(200, sdk.answer(), ("Content-Type", "application/json"))


async def test_a_post_that_the_server_has_read_is_not_sent_twice(sdk: Sdk, opened: Open) -> None:
    with ScriptedServer([answer(good(sdk)), expect_request(), fin()]) as server:
        client, _ = opened(server.url)
        await sdk.ask(client, "one")
        with pytest.raises(sdk.connection_error) as caught:
            await sdk.ask(client, "two")
        error = original(caught.value)
        assert (error.connection_reused, error.attempts) == (True, 1)
        assert error.replay != "safe"
        assert (len(server.requests), server.connections) == (2, 1)


async def test_a_connection_that_was_closed_while_idle_costs_no_error_and_no_second_bill(
    sdk: Sdk, opened: Open
) -> None:
    first = [answer(good(sdk)), close()]
    with ScriptedServer(first, first, first, first, first) as server:
        client, _ = opened(server.url)
        for _ in range(5):
            assert await sdk.ask(client, "one")
            await ended(server)
        assert (len(server.requests), server.connections) == (5, 5)


async def test_a_key_lets_a_lost_request_be_sent_again_once(backend: str) -> None:
    sdk = OpenAI("httpx2")
    lost = [answer(good(sdk)), expect_request(), fin()]
    with ScriptedServer(lost, [answer(good(sdk))]) as server:
        async with sdk.adapter.AsyncClient(TransportConfig(backend=backend)) as http:
            client = sdk.open(server.url, http, default_headers={"Idempotency-Key": "once"})
            assert await sdk.ask(client, "one")
            assert await sdk.ask(client, "two")
        assert [each.header("Idempotency-Key") for each in server.requests] == ["once"] * 3
        assert server.requests[1].body == server.requests[2].body


async def test_in_a_race_with_idle_closes_nothing_is_generated_twice(backend: str) -> None:
    sdk, calls = OpenAI("httpx2"), 60
    pauses = random.Random(1)
    failed: list[trunkline.TransportError] = []
    async with LLMServer(keep_alive_timeout=0.02) as server:
        async with sdk.adapter.AsyncClient(TransportConfig(backend=backend)) as http:
            client = sdk.open(server.url, http)
            for _ in range(calls):
                try:
                    await sdk.ask(client, "one", 1)
                except sdk.connection_error as error:
                    failed.append(original(error))
                await anyio.sleep(pauses.uniform(0.017, 0.023))
        # Not `server.requests`: a head whose body lies unread at the close is one of them.
        generated = server.completed + server.cancelled
        assert calls - len(failed) <= server.completed <= generated <= calls
        assert server.connections > 1
    # What surfaces reached the server's kernel before the close: that is no proof of anything.
    assert not [error for error in failed if error.connection_reused and error.replay == "safe"]


async def ended(server: ScriptedServer) -> None:
    """Wait until what the server closed is closed."""
    while server.open_connections:
        await anyio.to_thread.run_sync(time.sleep, 0.001)


# -- in a stream -----------------------------------------------------------------------------------


async def test_a_stream_that_is_cut_is_never_taken_for_a_whole_one(sdk: Sdk, opened: Open) -> None:
    part = response(200, b"", ("Content-Type", "text/event-stream"), framing="none")[:-2]
    part += b"Transfer-Encoding: chunked\r\n\r\n"
    with ScriptedServer([expect_request(), send(part), fin()]) as server:
        client, http = opened(server.url)
        with pytest.raises((sdk.connection_error, sdk.library.TransportError)) as caught:
            [piece async for piece in sdk.stream(client, "one")]
        error = original(caught.value)
        assert isinstance(error, trunkline.BodyTruncated)
        assert error.response_started
        assert (len(server.requests), http.transport.snapshot().open) == (1, 0)


# -- the SDK's own retries -------------------------------------------------------------------------


async def test_every_attempt_of_the_sdk_reaches_the_server_once(
    sdk: Sdk, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [expect_request(), fin()]
    with ScriptedServer(lost, lost, [answer(good(sdk))]) as server:
        client, _ = opened(server.url, retries=2)
        shorten_delays(sdk, monkeypatch)
        attempts = await attempts_of(sdk, client, server)
        assert attempts == (3 if sdk.closes_streams else 1)


def shorten_delays(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    module = getattr(sdk, "module")  # noqa: B009  # of the tests' own, not of the protocol
    if hasattr(module, "_base_client"):
        monkeypatch.setattr(module._base_client, "INITIAL_RETRY_DELAY", 0.001)


async def attempts_of(sdk: Sdk, client: Any, server: ScriptedServer) -> int:
    try:
        await sdk.ask(client, "one")
    except sdk.connection_error:
        """Google's SDK does not retry what it calls a protocol error."""
    return len(server.requests)
