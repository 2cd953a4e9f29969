"""Agents' calls, each agent's one after the other, inside the process that is measured.

Knows the three ways to make them. Does not know which library makes them, or over what link.
"""

from __future__ import annotations

import asyncio
from statistics import median
from time import perf_counter
from typing import Protocol, runtime_checkable

from benchmarks._model import BODY, JSON, Agent, Trip
from benchmarks.clients import Client, Connect

_HEADERS = tuple(JSON.items())


@runtime_checkable
class Warming(Protocol):
    """A client that can connect before there is anything to send."""

    async def warm(self, url: str) -> None: ...


@runtime_checkable
class Timing(Protocol):
    """A client that says how long each step of a call took, in seconds."""

    async def steps(self, url: str) -> dict[str, float]: ...


class CannotWarm(Exception):
    """The client connects only to send something."""


async def run(connect: Connect, agent: Agent) -> Trip:
    """Raises an ExceptionGroup with CannotWarm, or what the client raises."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_one(connect, agent, number * agent.apart))
            for number in range(agent.together)
        ]
    total = median(task.result() for task in tasks)
    steps = await _steps(connect, agent) if agent.mode == "cold" else {}
    return Trip(total=total, steps=steps)


async def _one(connect: Connect, agent: Agent, after: float) -> float:
    await asyncio.sleep(after)
    if agent.mode == "cold":
        return await _cold(connect, agent)
    async with connect(agent.target) as client:
        if agent.mode == "warmed":
            if not isinstance(client, Warming):
                raise CannotWarm("it connects only to send something")
            await client.warm(agent.target.url)
        began = perf_counter()
        for _ in range(agent.calls):
            await _call(client, agent)
        return perf_counter() - began


async def _cold(connect: Connect, agent: Agent) -> float:
    began = perf_counter()
    for _ in range(agent.calls):
        async with connect(agent.target) as client:
            await _call(client, agent)
    return perf_counter() - began


async def _steps(connect: Connect, agent: Agent) -> dict[str, float]:
    async with connect(agent.target) as client:
        return await client.steps(agent.target.url) if isinstance(client, Timing) else {}


async def _call(client: Client, agent: Agent) -> None:
    await client.call("POST", agent.target.url, _HEADERS, BODY)
