"""Small requests over HTTP/2, beside httpx and httpx2: `python -m benchmarks.http2`.

Knows what is measured: requests per second of a small GET over TLS, read to its end, with 1, 20 and
100 in flight, against one nginx. Client and server have a core each; the clients take turns, one
short round each, so that whatever else the machine does hits all of them. Knows no client's
insides.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import statistics
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeAlias

import httpx
import httpx2

from benchmarks import _nginx
from benchmarks._cores import cores, pin
from trunkline import AiohttpTransport, Request, Tls, TransportConfig

Fetch: TypeAlias = Callable[[], Awaitable[None]]
IN_FLIGHT = (1, 20, 100)
BARS = {1: 2.0, 20: 5.0, 100: 5.0}


@asynccontextmanager
async def ours(url: str, ca_file: str) -> AsyncGenerator[Fetch]:
    tls = Tls(ca_file=Path(ca_file))
    transport = AiohttpTransport(TransportConfig(http2=True, tls=tls, warn_utilization=None))

    async def fetch() -> None:
        response = await transport.send(Request("GET", url))
        await response.aread()
        assert (response.status_code, response.http_version) == (200, "HTTP/2")

    try:
        yield fetch
    finally:
        await transport.aclose()


def theirs(library: Any) -> Callable[[str, str], Any]:
    @asynccontextmanager
    async def client(url: str, ca_file: str) -> AsyncGenerator[Fetch]:
        context = ssl.create_default_context(cafile=ca_file)
        async with library.AsyncClient(http2=True, verify=context) as made:

            async def fetch() -> None:
                response = await made.get(url)
                assert (response.status_code, response.http_version) == (200, "HTTP/2")

            yield fetch

    return client


CLIENTS = {"trunkline": ours, "httpx": theirs(httpx), "httpx2": theirs(httpx2)}


async def run(fetch: Fetch, in_flight: int, seconds: float) -> tuple[float, float]:
    """Requests per second, and microseconds of the client's processor for each."""
    done, until = 0, perf_counter() + seconds

    async def one_after_another() -> None:
        nonlocal done
        while perf_counter() < until:
            await fetch()
            done += 1

    began, busy = perf_counter(), process_time()
    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    return done / (perf_counter() - began), (process_time() - busy) / done * 1e6


async def compare(url: str, ca_file: str, rounds: int, seconds: float) -> None:
    async with AsyncExitStack() as stack:
        fetches: dict[str, Fetch] = {
            name: await stack.enter_async_context(client(url, ca_file))
            for name, client in CLIENTS.items()
        }
        for in_flight in IN_FLIGHT:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
            for fetch in fetches.values():
                await run(fetch, in_flight, seconds / 4)  # warm
            for _ in range(rounds):
                for name, fetch in fetches.items():
                    found[name].append(await run(fetch, in_flight, seconds))
            show(in_flight, found)


def show(in_flight: int, found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{in_flight} in flight; the bar is {BARS[in_flight]:g}x")
    for name, rounds in found.items():
        speed = statistics.median(each for each, _ in rounds)
        busy = statistics.median(each for _, each in rounds)
        ratios = [
            mine / yours for (mine, _), (yours, _) in zip(found["trunkline"], rounds, strict=True)
        ]
        print(
            f"  {name:10} {speed:8,.0f} requests/s {busy:6.0f} us of processor each"
            f"   trunkline does {statistics.median(ratios):.2f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    options = parser.parse_args()
    client_core, server_core = cores()
    with _nginx.serving(server_core) as nginx:
        pin(0, client_core)
        url = f"{nginx.tls}/small"
        asyncio.run(compare(url, nginx.ca_file, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
