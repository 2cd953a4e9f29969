"""Storms of cancelled calls, and what is left after them.

    python -m tests.faults.storms [--requests 2000] [--seed 1]

starts as many requests, 100 in flight, each cancelled at a random moment but for one in ten, then
100 good ones, and prints for each backend, protocol and event loop how many were cancelled and
answered, and how many handshakes were cancelled. It ends with an error if anything fails or is
left.

This module knows calls and moments. It does not know how a backend ends an exchange.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from tests.faults._left import LOOPS, Baseline

from trunkline import Client, Limits, Timeouts, Tls, TransportConfig
from trunkline._registry import capabilities_of
from trunkline.testing import Certificates, FrameServer
from trunkline.testing._conversation import Conversation
from trunkline.testing._script import chunk, chunked, response
from trunkline.testing._servers import ScriptedServer
from trunkline.testing._session import Session
from trunkline.testing.frames import greet

AT_ONCE = 100
_PATIENT = Timeouts(pool=60.0, connect=60.0, write=60.0, headers=60.0, read=60.0)
_MEAN = 0.02  # seconds after which a call is cancelled
_SLOW = 0.01  # seconds at most for which the server makes an HTTP/1.1 client wait, twice an answer
_PROTOCOLS = ("h1", "h1-tls", "h2")


@dataclass(frozen=True, slots=True)
class Storm:
    backend: str
    protocol: str
    loop: str

    def __str__(self) -> str:
        return f"{self.backend:8} {self.protocol:7} {self.loop:8}"


def storms() -> Iterator[Storm]:
    for backend in ("aiohttp", "httpx"):
        for protocol in _PROTOCOLS:
            for loop in LOOPS:
                if loop != "trio" or capabilities_of(backend).trio:
                    yield Storm(backend, protocol, loop)


# -- servers ---------------------------------------------------------------------------------------


def _answer_slowly(conversation: Conversation) -> None:
    """Answer, in three pieces, with what was asked for."""
    chance = random.Random(conversation.number)
    while True:
        request = conversation.read_head()
        conversation.read_body(request)
        name = request.target.encode()
        conversation.gates.released.wait(chance.random() * _SLOW)
        conversation.send(response(framing="none")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n")
        conversation.gates.released.wait(chance.random() * _SLOW)
        conversation.send(chunk(name[:2]) + chunked(name[2:]))


def _answer_streams(session: Session) -> None:
    """Answer stream after stream; every seventh has to wait for the next one, if there is one."""
    late: list[Any] = []
    while True:
        stream = session.take_on(lambda stream: stream.complete)
        late.append(stream)
        if stream.id % 7 == 0 and session.ready():
            continue
        for each in late:
            if each.reset is None:
                session.send_head(each, [(":status", "200")])
                session.send_data(each, each.target.encode(), end=True)
        late.clear()


@contextmanager
def _serving(protocol: str) -> Generator[tuple[ScriptedServer, dict[str, Any]]]:
    """A server, and the options of a transport for it."""
    with Certificates() as certificates:
        alpn = ("h2",) if protocol == "h2" else ("http/1.1",)
        tls = None if protocol == "h1" else certificates.server_context(alpn=alpn)
        options: dict[str, Any] = {"limits": Limits(max_connections=40)}
        if tls is not None:
            options["tls"] = Tls(ca_file=Path(certificates.ca_file))
        if protocol == "h2":
            options |= {"http2": True, "limits": Limits(max_connections=2)}
        server = (
            FrameServer([greet(), _answer_streams], tls=tls)
            if protocol == "h2"
            else ScriptedServer([_answer_slowly], tls=tls)
        )
        with server:
            yield server, options


# -- calls -----------------------------------------------------------------------------------------


def run(storm: Storm, requests: int, seed: int = 1) -> Counter[str]:
    """Raises AssertionError, or what a call raised, if anything is not as it has to be."""
    with _serving(storm.protocol) as (server, options):
        config = TransportConfig(backend=storm.backend, timeouts=_PATIENT, **options)
        call = partial(_blow, config, server, requests, seed)
        counts: Counter[str] = anyio.run(call, **LOOPS[storm.loop])
    return counts


async def _blow(
    config: TransportConfig, server: ScriptedServer, requests: int, seed: int
) -> Counter[str]:
    counts: Counter[str] = Counter()
    baseline = Baseline()
    async with Client(config) as client:
        await _cancel_many(client, server.url, requests, random.Random(seed), counts)
        now = client.snapshot()
        assert (now.active, now.connecting, now.waiting) == (0, 0, 0), now
        async with anyio.create_task_group() as group:
            for number in range(AT_ONCE):
                group.start_soon(_fetch, client, f"{server.url}/good/{number}", counts, "good")
        now = client.snapshot()
        assert (now.active, now.connecting, now.waiting) == (0, 0, 0), now
        assert now.created == now.open + sum(now.closed.values())
    assert client.snapshot().open == 0
    server.release()
    await baseline.check()
    assert counts["good"] == AT_ONCE
    return counts


async def _cancel_many(
    client: Client, url: str, requests: int, chance: random.Random, counts: Counter[str]
) -> None:
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            seconds = chance.expovariate(1 / _MEAN) if number % 10 else None
            await _one(client, f"{url}/{number}", seconds, number % 3 == 0, counts)

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)


async def _one(
    client: Client, url: str, seconds: float | None, posts: bool, counts: Counter[str]
) -> None:
    """One call; after `seconds` it is cancelled. None: it is a bystander, and has to succeed."""
    with anyio.CancelScope() as scope:
        if seconds is not None:
            scope.deadline = anyio.current_time() + seconds
        await _fetch(client, url, counts, "answered", posts=posts)
    counts["cancelled"] += scope.cancelled_caught
    await anyio.lowlevel.checkpoint()


async def _fetch(
    client: Client, url: str, counts: Counter[str], kind: str, *, posts: bool = False
) -> None:
    content = bytes(20_000) if posts else None
    response = await client.request("POST" if posts else "GET", url, content=content)
    assert (response.status_code, response.text) == (200, url[url.index("/", 8) :])
    counts[kind] += 1


# -- handshakes ------------------------------------------------------------------------------------


def run_handshakes(backend: str, loop: str, handshakes: int, seed: int = 1) -> Counter[str]:
    """TLS handshakes cancelled at a random moment, with a server that answers late or never."""
    with Certificates() as certificates:
        context = certificates.server_context()

        def greet_late(conversation: Conversation) -> None:
            chance = random.Random(conversation.number)
            if chance.random() < 0.3:
                conversation.wait_gone()
                return
            conversation.gates.released.wait(chance.random() * _SLOW)
            conversation.start_tls(context)
            _answer_slowly(conversation)

        with ScriptedServer([greet_late]) as server:
            config = TransportConfig(
                backend=backend,
                timeouts=_PATIENT,
                tls=Tls(ca_file=Path(certificates.ca_file)),
                limits=Limits(max_connections=50, max_keepalive_connections=0),
            )
            call = partial(_shake, config, server, handshakes, seed)
            counts: Counter[str] = anyio.run(call, **LOOPS[loop])
    return counts


async def _shake(
    config: TransportConfig, server: ScriptedServer, handshakes: int, seed: int
) -> Counter[str]:
    chance, counts, baseline = random.Random(seed), Counter[str](), Baseline()
    url = f"https://127.0.0.1:{server.port}"
    async with Client(config) as client:
        numbers = iter(range(handshakes))

        async def work() -> None:
            for number in numbers:
                await _one(client, f"{url}/{number}", chance.random() * 0.2, False, counts)

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(work)
        now = client.snapshot()
        assert (now.open, now.active, now.connecting, now.waiting) == (0, 0, 0, 0), now
        # The transport has no socket, although it is open still.
        with anyio.fail_after(10.0):
            while server.open_connections:  # noqa: ASYNC110  # what it waits for is in threads
                await anyio.sleep(0.01)
    await baseline.check()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.storms")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("trunkline").setLevel(logging.ERROR)  # that pools are full is the point
    for storm in storms():
        counts = run(storm, options.requests, options.seed)
        print(
            f"{storm}: {counts['cancelled']:5} cancelled, {counts['answered']:5} answered, "
            f"then {counts['good']} of {AT_ONCE} good ones, nothing left",
            flush=True,
        )
    for backend, loop in {(storm.backend, storm.loop): None for storm in storms()}:
        counts = run_handshakes(backend, loop, options.requests // 2, options.seed)
        print(
            f"{backend:8} handshakes {loop:8}: {counts['cancelled']:5} cancelled, "
            f"{counts['answered']:5} answered, nothing left",
            flush=True,
        )


if __name__ == "__main__":
    main()
