"""What a request costs beside raw aiohttp, told in ways that need no quiet machine.

`bytecodes` counts the bytecode instructions that a call makes the interpreter run, event loop and
all: the same number at each run, or nearly. `cpu` is the CPU time of short rounds that take turns
in one process. Both are ratios of Trunkline on its aiohttp backend to aiohttp's `ClientSession`.

    python -m benchmarks.guard
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from types import FrameType
from typing import Any

from benchmarks import _load, _nginx
from benchmarks._cores import cores, pin
from benchmarks._model import Load, Target
from benchmarks.clients import Client, specs

_OURS, _THEIRS = "trunkline-aiohttp", "aiohttp"
_CALLS = 50
_ROUNDS = 6
_SHORT = Load(in_flight=20, seconds=0.08)


def measure(url: str, core: int) -> dict[str, float]:
    """The two ratios, and the counts behind the first, from a process of its own on `core`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_in_process, url, core).result()


def _in_process(url: str, core: int) -> dict[str, float]:
    pin(0, core)
    return asyncio.run(_both(Target(url=url, connections=_SHORT.in_flight)))


async def _both(target: Target) -> dict[str, float]:
    known = specs()
    async with (
        known[_OURS].load()(target) as ours,
        known[_THEIRS].load()(target) as theirs,
    ):
        costs: list[float] = []
        for _ in range(_ROUNDS):
            rounds = [await _load.run(client, target, _SHORT) for client in (ours, theirs)]
            costs.append(rounds[0].cost / rounds[1].cost)
        counts = [await count(client, target) for client in (ours, theirs)]
    return {
        "cpu": median(costs),
        "bytecodes": counts[0] / counts[1],
        f"bytecodes of {_OURS}": counts[0],
        f"bytecodes of {_THEIRS}": counts[1],
    }


async def count(client: Client, target: Target) -> float:
    """Bytecode instructions per call, one call at a time.

    The first calls are traced and not counted: the interpreter still adapts the code to its work.
    """
    load = Load(in_flight=1)
    counter = _Counter()
    sys.settrace(counter.enter)
    try:
        for _ in ("to adapt", "to count"):
            counter.seen = 0
            for _ in range(_CALLS):
                await client.call(load.method, target.url, load.headers, load.body)
    finally:
        sys.settrace(None)
    return counter.seen / _CALLS


class _Counter:
    """A trace function that counts instructions, in every frame entered since it was set."""

    def __init__(self) -> None:
        self.seen = 0

    def enter(self, frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._trace

    def _trace(self, _frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "opcode":
            self.seen += 1
        return self._trace


def main() -> None:
    client_core, server_core = cores()
    with _nginx.serving(server_core) as nginx:
        for name, figure in measure(f"{nginx.plain}/small", client_core).items():
            print(f"{name:32} {figure:10,.2f}")


if __name__ == "__main__":
    main()
