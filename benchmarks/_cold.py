"""Cold start: how long a library takes to import, and its first call after that.

Runs once in a process of its own, started for it, and prints what it took as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from statistics import median
from time import perf_counter

from benchmarks._model import BODY, JSON, Target
from benchmarks.clients import Connect, Spec, specs

_TIMES = 3


def measure(spec: Spec, url: str) -> dict[str, float]:
    """Medians, in seconds. Raises CalledProcessError where the client cannot do it."""
    command = [sys.executable, "-m", "benchmarks._cold", spec.name, url]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(_TIMES)
    ]
    return {name: median(run[name] for run in runs) for name in ("import", "first")}


async def _first(connect: Connect, url: str) -> float:
    began = perf_counter()
    async with connect(Target(url=url)) as client:
        await client.call("POST", url, tuple(JSON.items()), BODY)
        return perf_counter() - began


def main() -> None:
    name, url = sys.argv[1:]
    spec = specs()[name]
    began = perf_counter()
    connect = spec.load()
    imported = perf_counter() - began
    print(json.dumps({"import": imported, "first": asyncio.run(_first(connect, url))}))


if __name__ == "__main__":
    main()
