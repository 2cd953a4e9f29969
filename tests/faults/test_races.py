"""A server that closes its idle connections, or dies under a request: nothing is processed twice.

The server is a process of its own and counts what it processed. `python -m tests.faults.races`
plays every cell, with more requests.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.faults.races import Race, Result, races, run

from trunkline import Client, RemoteDisconnected
from trunkline.testing import Certificates
from trunkline.testing._script import (
    answer,
    expect_request,
    fin,
    repeat,
    response,
    rst,
    serve,
    wait,
)
from trunkline.testing._servers import ScriptedServer
from trunkline_aiohttp._exchange import AiohttpConnection
from trunkline_httpx._exchange import Http1Connection

REQUESTS = 400
MOST_FAILED = 0.08  # the bar is 2 % of 2,000, on a quiet machine


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with Certificates() as made:
        yield made


def _cases(*modes: str) -> Iterator[Any]:
    for race in races():
        is_alone = race.at_once == 1
        if race.mode not in modes or (is_alone and race.loop != "asyncio"):
            continue
        missing = race.loop != "asyncio" and importlib.util.find_spec(race.loop) is None
        marks = [pytest.mark.skip(reason=f"{race.loop} is not installed")] if missing else []
        yield pytest.param(race, id="-".join(str(race).split()), marks=marks)


def _run(race: Race, certificates: Certificates) -> Result:
    # One after the other they take the server's pauses in full.
    requests = REQUESTS if race.at_once > 1 else REQUESTS // 4
    result = run(race, requests, certificates)
    assert result.answered + sum(result.failed.values()) == requests
    return result


@pytest.mark.parametrize("race", list(_cases("fin", "rst")))
def test_few_requests_fail_where_idle_connections_are_closed(
    race: Race, certificates: Certificates
) -> None:
    result = _run(race, certificates)

    assert (result.duplicates, result.wrong) == ([], 0)
    assert result.share_failed <= MOST_FAILED, result.failed
    assert result.connections > 20, "the server closed none: there was no race"


@pytest.mark.parametrize("race", list(_cases("crash")))
def test_what_a_server_processed_before_it_died_is_never_sent_again(
    race: Race, certificates: Certificates
) -> None:
    result = _run(race, certificates)

    assert (result.duplicates, result.wrong) == ([], 0)
    # One in five is processed and not answered, and that is told.
    unanswered = len(result.processed) - result.answered
    assert unanswered > 0
    assert sum(result.failed.values()) >= unanswered


# -- bodies that can be had once -------------------------------------------------------------------

PAGE = response(200, b"page")
CONNECTIONS = {"aiohttp": AiohttpConnection, "httpx": Http1Connection}
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _say_yes(connection: object) -> bool:
    return True


class Pieces:
    """A body that counts how often it is asked for its pieces."""

    def __init__(self) -> None:
        self.asked = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.asked += 1
        yield b"piece"


@pytest.mark.parametrize("backend", CONNECTIONS)
async def test_a_stream_of_which_a_piece_was_taken_is_not_sent_again(backend: str) -> None:
    content = Pieces()
    with ScriptedServer([answer(PAGE), expect_request(), fin()], serve(PAGE)) as server:
        async with Client(backend=backend) as client:
            await client.get(server.url)
            with pytest.raises(RemoteDisconnected) as caught:
                await client.put(server.url, content=content)

        assert (caught.value.connection_reused, caught.value.attempts) == (True, 1)
        assert (content.asked, len(server.requests)) == (1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is proved")
@pytest.mark.parametrize("before", [1, 40], ids=["young", "in steady use"])
@pytest.mark.parametrize("backend", CONNECTIONS)
async def test_a_stream_of_which_nothing_was_taken_is_sent_again(
    backend: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Pieces()
    script = [repeat(before, [answer(PAGE)]), wait("reset"), rst()]
    with ScriptedServer(script, serve(PAGE)) as server:
        async with Client(backend=backend) as client:
            for _ in range(before):
                await client.post(server.url, content=b"piece")
            server.open("reset")
            while server.open_connections:  # and the event loop sees nothing of it
                time.sleep(0.001)  # noqa: ASYNC251
            # The reset comes a moment after the pool has looked.
            with monkeypatch.context() as patch:
                patch.setattr(CONNECTIONS[backend], "is_usable", _say_yes)
                assert (await client.post(server.url, content=content)).content == b"page"

            assert client.snapshot().created == 2
            assert (content.asked, len(server.requests)) == (1, before + 1)
            assert server.requests[-1].body == b"piece"
