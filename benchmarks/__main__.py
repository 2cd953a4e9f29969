"""Small POSTs at 1, 20 and 100 in flight: each transport beside the library it stands on.

Rounds are interleaved and the median is shown, with the CPU time a request costs the client. Only
the ratios mean something: the machine's own speed cancels out.
"""

from __future__ import annotations

import asyncio
import platform
import statistics
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter, process_time
from typing import TypeAlias

import aiohttp
import httpx
from rich.console import Console
from rich.table import Table

import trunkline
from benchmarks._server import pin, serving

Call: TypeAlias = Callable[[], Awaitable[object]]

_BODY = b'{"model":"demo","messages":[{"role":"user","content":"Why?"}]}'
_HEADERS = {"Content-Type": "application/json"}
_MOST = 100
_ROUNDS = 5
_SECONDS = 0.5  # a round, about
_PAIRS = {"aiohttp": "ClientSession", "httpx": "AsyncClient"}


@asynccontextmanager
async def _clients(url: str) -> AsyncGenerator[dict[str, Call]]:
    limits = trunkline.Limits(max_connections=_MOST, max_keepalive_connections=_MOST)
    most = httpx.Limits(max_connections=_MOST, max_keepalive_connections=_MOST)
    calls: dict[str, Call] = {}
    async with AsyncExitStack() as stack:
        for backend in _PAIRS:
            config = trunkline.TransportConfig(backend=backend, limits=limits)
            calls[backend] = _ours(await stack.enter_async_context(trunkline.Client(config)), url)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_MOST))
        )
        client = await stack.enter_async_context(httpx.AsyncClient(limits=most))

        async def by_session() -> None:
            async with session.post(url, data=_BODY, headers=_HEADERS) as response:
                await response.read()

        calls["ClientSession"] = by_session
        calls["AsyncClient"] = lambda: client.post(url, content=_BODY, headers=_HEADERS)
        yield calls


def _ours(client: trunkline.Client, url: str) -> Call:
    return lambda: client.post(url, content=_BODY, headers=_HEADERS)


async def _round(call: Call, in_flight: int) -> tuple[float, float]:
    """Requests a second, and microseconds of CPU a request."""
    done = 0
    began, cpu = perf_counter(), process_time()

    async def work() -> None:
        nonlocal done
        while perf_counter() - began < _SECONDS:
            await call()
            done += 1

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return done / (perf_counter() - began), (process_time() - cpu) / done * 1e6


async def _measure(url: str, table: Table) -> None:
    async with _clients(url) as calls:
        for in_flight in (1, 20, _MOST):
            rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
            for _ in range(_ROUNDS):
                for name, call in calls.items():
                    rounds[name].append(await _round(call, in_flight))
            for ours, theirs in _PAIRS.items():
                (rate, cpu), (other, other_cpu) = (
                    (
                        statistics.median(r for r, _ in rounds[n]),
                        statistics.median(c for _, c in rounds[n]),
                    )
                    for n in (ours, theirs)
                )
                table.add_row(
                    ours, theirs, str(in_flight), f"{rate:,.0f}", f"{other:,.0f}",
                    f"{rate / other:.2f}x", f"{cpu:.0f}", f"{other_cpu:.0f}",
                )  # fmt: skip


def main() -> None:
    pin(0)
    table = Table(title=f"requests a second, Python {platform.python_version()}")
    for column in ("trunkline on", "beside", "in flight", "ours", "theirs", "ratio",
                   "CPU us", "theirs"):  # fmt: skip
        table.add_column(
            column, justify="right" if column not in ("trunkline on", "beside") else "left"
        )
    with serving() as url:
        asyncio.run(_measure(url, table))
    Console().print(table)


if __name__ == "__main__":
    main()
