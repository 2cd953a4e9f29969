"""The race between a request and a server that closes its idle connection.

    python -m tests.faults.races [--requests 2000] [--seed 1]

prints, for each backend, mode, kind of connection and event loop, how many POSTs were answered, how
many failed, and how many the server processed twice, by its own count. It ends with status 1 if
any was, or if more than 2 % failed where none needed to.

This module knows POSTs and what came of them. It does not know the server (`_racing_server`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from tests.faults._left import LOOPS

from trunkline import Client, Timeouts, Tls, TransportConfig, TransportError
from trunkline._registry import capabilities_of
from trunkline.testing import Certificates

SERVER = Path(__file__).with_name("_racing_server.py")
MODES = ("fin", "rst", "crash")
BAR = 0.02  # of the requests to a server that crashes no request may fail
_BODY = b"x" * 20
_PATIENT = Timeouts(pool=60.0, connect=30.0, write=30.0, headers=30.0, read=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One cell: who asks, whom, over what, and how many at once."""

    backend: str
    mode: str
    is_tls: bool
    loop: str
    at_once: int

    def __str__(self) -> str:
        over = "TLS" if self.is_tls else "plain"
        return f"{self.backend:8} {self.mode:6} {over:6} {self.loop:8} {self.at_once:3} at once"


@dataclass(slots=True)
class Result:
    """What came of a race.

    Attributes:
        answered: requests that got their own answer.
        wrong: requests that got another's answer.
        failed: errors, by class, verdict and whether the connection was reused.
        processed: how often the server processed each request.
        safe: ids of requests whose error said that sending them again is safe.
        connections: how many the pool opened.
    """

    connections: int = 0
    answered: int = 0
    wrong: int = 0
    failed: Counter[tuple[str, str, bool]] = field(default_factory=Counter[tuple[str, str, bool]])
    processed: dict[str, int] = field(default_factory=dict[str, int])
    safe: list[str] = field(default_factory=list[str])

    @property
    def duplicates(self) -> list[str]:
        """Requests that were processed twice, or would be if a caller believed `replay`."""
        twice = [name for name, times in self.processed.items() if times > 1]
        return twice + [name for name in self.safe if self.processed.get(name)]

    @property
    def share_failed(self) -> float:
        failed = sum(self.failed.values())
        return failed / (self.answered + self.wrong + failed)


def races(backends: tuple[str, ...] = ("aiohttp", "httpx")) -> Iterator[Race]:
    for backend, mode, is_tls, loop, at_once in itertools.product(
        backends, MODES, (False, True), LOOPS, (1, 20)
    ):
        if loop != "trio" or capabilities_of(backend).trio:
            yield Race(backend=backend, mode=mode, is_tls=is_tls, loop=loop, at_once=at_once)


@contextmanager
def _serving(
    race: Race, seed: int, certificates: Certificates, result: Result
) -> Generator[tuple[str, Tls]]:
    """The server's origin. At the end its count is in `result`."""
    files: list[str] = []
    if race.is_tls:
        made = certificates.server()
        files = [made.cert_file, made.key_file]
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        number = listener.fileno()
        command = [sys.executable, str(SERVER), str(number), race.mode, str(seed), *files]
        with subprocess.Popen(
            command, pass_fds=[number], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            scheme = "https" if race.is_tls else "http"
            tls = Tls(ca_file=Path(certificates.ca_file)) if race.is_tls else Tls()
            try:
                yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/", tls
            finally:
                output, _ = process.communicate(timeout=30)
        result.processed = json.loads(output)


def run(race: Race, requests: int, certificates: Certificates, seed: int = 1) -> Result:
    """Send `requests` POSTs, each with an id of its own, none of which may be repeated unproved."""
    result = Result()
    with _serving(race, seed, certificates, result) as (url, tls):
        config = TransportConfig(backend=race.backend, tls=tls, timeouts=_PATIENT)
        anyio.run(
            partial(_send_all, config, url, requests, race.at_once, result), **LOOPS[race.loop]
        )
    return result


async def _send_all(
    config: TransportConfig, url: str, requests: int, at_once: int, result: Result
) -> None:
    numbers = iter(range(requests))

    async def work(client: Client) -> None:
        for number in numbers:
            await _send(client, url, str(number), result)

    async with Client(config) as client:
        async with anyio.create_task_group() as group:
            for _ in range(at_once):
                group.start_soon(work, client)
        result.connections = client.snapshot().created


async def _send(client: Client, url: str, identity: str, result: Result) -> None:
    try:
        response = await client.post(url, content=_BODY, headers={"X-Request-Id": identity})
    except TransportError as error:
        kind = (type(error).__name__, str(error.replay), bool(error.connection_reused))
        result.failed[kind] += 1
        if error.replay == "safe":
            result.safe.append(identity)
        return
    if response.text == identity:
        result.answered += 1
    else:
        result.wrong += 1


def _is_good(race: Race, result: Result) -> bool:
    is_few = race.mode == "crash" or result.share_failed <= BAR
    return is_few and not result.duplicates and not result.wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.races")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", action="append", choices=("aiohttp", "httpx", "httpx2"))
    options = parser.parse_args()
    bad = 0
    with Certificates() as certificates:
        for race in races(tuple(options.backend or ("aiohttp", "httpx"))):
            result = run(race, options.requests, certificates, options.seed)
            is_good = _is_good(race, result)
            bad += not is_good
            print(
                f"{race}: {result.answered:5} answered, {sum(result.failed.values()):4} failed "
                f"({result.share_failed:5.1%}), {result.wrong} wrong, "
                f"{len(result.duplicates)} processed twice{'' if is_good else '  <<<'}",
                flush=True,
            )
    return min(bad, 1)


if __name__ == "__main__":
    raise SystemExit(main())
