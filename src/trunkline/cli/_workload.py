"""The workload of `trunkline compare`: an agent's calls to a chat-completions API, timed.

Knows `trunkline.Client` and what an agent sends. Does not know which server answers, what lies
between, or how results are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import anyio

import trunkline
from trunkline.cli._runs import Mode, Run

_Call: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is sent, where to, and how many calls at a time."""

    base_url: str
    calls: int
    concurrency: int
    model: str
    http2: bool = False
    tls: trunkline.Tls = field(default_factory=trunkline.Tls)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def client(self, backend: str) -> trunkline.Client:
        """A new client. Raises `UnsupportedOption` where the backend cannot do what is asked."""
        config = trunkline.TransportConfig(backend=backend, http2=self.http2, tls=self.tls)
        return trunkline.Client(config, base_url=self.base_url, headers=self.headers)

    def body(self, turn: int) -> dict[str, Any]:
        """The request of the agent's turn number `turn`: its history, then the next step."""
        messages = [{"role": "system", "content": "You are an agent. Answer each step with: done."}]
        for step in range(turn):
            messages.append({"role": "user", "content": f"Step {step + 1}."})
            messages.append({"role": "assistant", "content": "done"})
        messages.append({"role": "user", "content": f"Step {turn + 1}."})
        return {"model": self.model, "messages": messages}


class _Tally:
    """What is known so far of a run."""

    def __init__(self, workload: Workload, answered: Callable[[], None]) -> None:
        self.workload = workload
        self.answered = answered
        self.latencies: list[float | None] = [None] * workload.calls
        self.connections = 0
        self.setup = 0.0
        self.http_versions: set[str] = set()
        self.errors: Counter[str] = Counter()

    async def all_turns(self, call: _Call) -> None:
        """Every turn of the agent, `concurrency` of them at a time."""
        turns = iter(range(self.workload.calls))
        async with anyio.create_task_group() as workers:
            for _ in range(self.workload.concurrency):
                workers.start_soon(self._take_turns, turns, call)

    async def _take_turns(self, turns: Iterator[int], call: _Call) -> None:
        for turn in turns:
            body = self.workload.body(turn)
            start = perf_counter()
            try:
                await call(body)
            except Exception as error:  # noqa: BLE001 - a stranger's backend may raise anything
                self.errors[error_name(error)] += 1
            else:
                self.latencies[turn] = perf_counter() - start
            self.answered()

    async def exchange(self, client: trunkline.Client, body: dict[str, Any]) -> None:
        """One call on `client`; raises what it raises, HTTPStatusError included."""
        response = await client.post("/chat/completions", json=body)
        steps = response.timings.dns, response.timings.connect, response.timings.tls
        self.setup += sum(seconds or 0.0 for seconds in steps)
        self.http_versions.add(response.http_version)
        response.raise_for_status()


def error_name(error: Exception) -> str:
    """The class of an error, with the status where that is what it is about."""
    if isinstance(error, trunkline.HTTPStatusError):
        return f"HTTPStatusError {error.status_code}"
    return type(error).__name__


async def warm_up(workload: Workload, backend: str) -> None:
    """One call that nobody counts: it pays for imports, trust stores and the server's first time.

    Raises whatever the call raises.
    """
    async with workload.client(backend) as client:
        response = await client.post("/chat/completions", json=workload.body(0))
        response.raise_for_status()


async def measure(
    workload: Workload, backend: str, mode: Mode, answered: Callable[[], None]
) -> Run:
    """Make the calls; `answered` is called after each, failed ones included.

    A call lasts from before its client is made (cold) or before it is sent (pooled) until the
    answer has been read and, cold, the client is closed: what each pattern costs its caller.
    `connections` is what the clients say; a server's own count, where there is one, is better.
    """
    tally = _Tally(workload, answered)

    async def on_a_new_client(body: dict[str, Any]) -> None:
        async with workload.client(backend) as client:
            try:
                await tally.exchange(client, body)
            finally:
                tally.connections += client.snapshot().created

    start = perf_counter()
    if mode == "cold":
        await tally.all_turns(on_a_new_client)
    else:
        async with workload.client(backend) as client:
            await tally.all_turns(partial(tally.exchange, client))
            tally.connections = client.snapshot().created
    return Run(
        backend=backend,
        mode=mode,
        http_versions=tuple(sorted(tally.http_versions)),
        connections=tally.connections,
        setup=tally.setup,
        latencies=tuple(tally.latencies),
        total=perf_counter() - start,
        errors=dict(tally.errors.most_common()),
    )
