"""One round of calls on one client, inside the process that is measured.

Knows clocks and what a round is. Does not know which library makes the calls. What the harness adds
to a call is two readings of a clock and an append to a list, the same for every client.
"""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time

from benchmarks._model import Load, Memory, Round, Target
from benchmarks.clients import Client


def percentile(values: list[float], fraction: float) -> float:
    """Nearest rank; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def run(client: Client, target: Target, load: Load) -> Round:
    """The round. Raises what the client raises."""
    gc.collect()
    worker = _follow if load.stream else _call
    times: list[float] = []
    turns = None if load.calls is None else iter(range(load.calls))
    began, cpu = perf_counter(), process_time()
    until = began + load.seconds

    async def work() -> None:
        while perf_counter() < until if turns is None else next(turns, None) is not None:
            await worker(client, load.url or target.url, load, times)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.in_flight):
            group.create_task(work())
    wall, cpu = perf_counter() - began, process_time() - cpu
    return Round(
        done=len(times),
        wall=wall,
        cpu=cpu,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99),
    )


async def _call(client: Client, url: str, load: Load, times: list[float]) -> None:
    began = perf_counter()
    await client.call(load.method, url, load.headers, load.body)
    times.append(perf_counter() - began)


async def _follow(client: Client, url: str, load: Load, times: list[float]) -> None:
    last: float | None = None
    async with client.events(url, load.headers, load.body) as events:
        async for _ in events:
            now = perf_counter()
            times.append(0.0 if last is None else now - last)
            last = now


def _resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def idle(client: Client, target: Target, load: Load) -> Memory:
    """What each connection that stays open after a call takes.

    The calls are answered late enough that each needs a connection of its own.
    """
    url = load.url or target.url
    await client.call(load.method, url, load.headers, load.body)
    before = _resident()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.in_flight):
            group.create_task(client.call(load.method, url, load.headers, load.body))
    return Memory(held=load.in_flight, each=(_resident() - before) / load.in_flight)


async def streams(client: Client, target: Target, load: Load) -> Memory:
    """What each stream takes that is open, its first event read."""
    url = load.url or target.url
    async with AsyncExitStack() as stack:

        async def hold() -> None:
            stream = client.events(url, load.headers, load.body)
            await anext(await stack.enter_async_context(stream))

        await hold()
        before = _resident()
        await asyncio.gather(*(hold() for _ in range(load.in_flight)))
        return Memory(held=load.in_flight, each=(_resident() - before) / load.in_flight)
