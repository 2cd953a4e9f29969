"""The sync clients of the official SDKs on Trunkline: calls, streams, threads, forks."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import anyio
import pytest
from tests.sdk._sdks import Sdk

from trunkline import TransportConfig
from trunkline.testing import LLMServer

Open = Callable[..., tuple[Any, Any]]


def test_twenty_questions_are_one_connection(
    sdk: Sdk, opened_sync: Open, server: LLMServer
) -> None:
    client, http = opened_sync(server.url)

    assert {sdk.ask_sync(client, "one two") for _ in range(20)} == {"one two one two"}
    assert (server.requests, server.completed, server.connections) == (20, 20, 1)
    assert http.transport.snapshot().reused == 19


def test_a_stream_comes_token_by_token(sdk: Sdk, opened_sync: Open, server: LLMServer) -> None:
    client, _ = opened_sync(server.url)

    assert [*sdk.stream_sync(client, "one two three", 5)] == [
        "one", " two", " three", " one", " two",
    ]  # fmt: skip
    assert server.completed == 1


def test_many_threads_share_one_pool_and_each_gets_its_own_answers(
    sdk: Sdk, opened_sync: Open, server: LLMServer
) -> None:
    client, http = opened_sync(server.url)
    together = threading.Barrier(8)

    def ask(thread: int) -> list[str]:
        together.wait()
        return [sdk.ask_sync(client, f"t{thread}n{number}", 1) for number in range(10)]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))

    assert answers == [[f"t{thread}n{number}" for number in range(10)] for thread in range(8)]
    assert server.requests == 80
    assert server.connections <= 8
    pool = http.transport.snapshot()
    assert (pool.created, pool.active) == (server.connections, 0)


def test_the_sdk_retries_a_429_on_the_same_connection(
    sdk: Sdk, opened_sync: Open, server: LLMServer
) -> None:
    client, _ = opened_sync(server.url, retries=2)
    server.rate_limit(2, retry_after=0.01)

    assert sdk.ask_sync(client, "one two") == "one two one two"
    assert (server.requests, server.completed, server.connections) == (3, 1, 1)


@pytest.mark.usefixtures("quick_collection")
def test_leaving_a_stream_closes_the_socket_that_the_server_writes_to(
    sdk: Sdk, opened_sync: Open, server: LLMServer
) -> None:
    client, _ = opened_sync(server.url, http={"headers": {"x-token-delay": "0.01"}})

    with closing(sdk.stream_sync(client, "one two", 10_000)) as pieces:
        assert next(pieces) == "one"
        assert server.cancelled == 0
    if not sdk.closes_streams:  # It leaves a cycle of generators, with the response in it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del pieces
            gc.collect()

    anyio.run(server.wait_cancelled)
    assert server.completed == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_a_pool_of_its_own(
    sdk: Sdk, opened_sync: Open, server: LLMServer
) -> None:
    client, _ = opened_sync(server.url)
    sdk.ask_sync(client, "one two")

    child = os.fork()
    if child == 0:
        os._exit(sdk.ask_sync(client, "one two") != "one two one two")
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert sdk.ask_sync(client, "one two") == "one two one two"
    assert (server.completed, server.connections) == (3, 2)


def test_closing_the_sdk_closes_the_pool(sdk: Sdk, backend: str, server: LLMServer) -> None:
    http = sdk.adapter.Client(TransportConfig(backend=backend))
    client = sdk.open_sync(server.url, http)
    sdk.ask_sync(client, "one two")
    assert server.open_connections == 1

    http.close()

    anyio.run(server.wait_open_connections, 0)
    assert not [each for each in threading.enumerate() if each.name == "trunkline"]
