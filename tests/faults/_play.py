"""Plays a fault against a client, and looks for what is left behind.

This module knows what has to be watched while it is done: time, memory, sockets, tasks. It does not
know whether what came of it is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
from tests.faults._lab import (
    ID,
    OTHERS,
    PATIENT,
    THE_CALL,
    Ask,
    Client,
    Fault,
    Reply,
    Stage,
    call,
)

from trunkline import Timeouts
from trunkline.testing import Certificates
from trunkline.testing._servers import ScriptedServer


@dataclass(slots=True)
class Outcome:
    """What came of a fault.

    Attributes:
        reply, error: what the call ended with; neither if it did not end (`hung`).
        elapsed: seconds it took.
        after: what came of each of the good requests after it; "" for the right answer.
        left: what was left behind, in words.
        growth: bytes by which the resident memory grew meanwhile, at its peak.
        seen: how often a server got the call.
        used_again: a good request went over the connection of the call.
    """

    reply: Reply | None = None
    error: Exception | None = None
    hung: bool = False
    elapsed: float = 0.0
    after: list[str] = field(default_factory=list[str])
    left: list[str] = field(default_factory=list[str])
    growth: int = 0
    seen: int | None = None
    used_again: bool = False


async def play(
    fault: Fault,
    open_client: Callable[[dict[str, Any], Timeouts], Client],
    certificates: Certificates,
    *,
    patience: float = 10.0,
) -> Outcome:
    """Play `fault` against a new client, then three good requests, and look for what is left.

    Args:
        open_client: makes the client of a `TransportConfig`'s options and deadlines.
        patience: seconds after which the call has hung.
    """
    outcome = Outcome()
    sockets, tasks = count_sockets(), _tasks()
    with fault.stage(certificates) as stage:
        client = open_client({**stage.options, **fault.options}, PATIENT)
        try:
            for number in range(fault.before):
                assert not await _good(client, stage, number, OTHERS), "the stage does not work"
            await _call(fault, client, stage, outcome, patience)
            for number in range(7, 10) if fault.recovers else ():
                outcome.after.append(await _good(client, stage, number, OTHERS + 1))
                if outcome.after[-1]:
                    break
            if at_work := await _settled(client.at_work):
                outcome.left.append(at_work)
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()
        outcome.seen = None if stage.seen is None else stage.seen()
        outcome.used_again = any(_was_used_again(server) for server in stage.servers)
        for server in stage.servers:
            server.release()
        if await _settled(lambda: sum(each.open_connections for each in stage.servers)):
            outcome.left.append("a connection that the server still sees open")
    if more := await _settled(lambda: max(0, count_sockets() - sockets)):
        outcome.left.append(f"{more} sockets")
    if others := await _settled(lambda: _tasks() - tasks):
        outcome.left.append(f"{len(others)} tasks")
    return outcome


async def _call(
    fault: Fault, client: Client, stage: Stage, outcome: Outcome, patience: float
) -> None:
    ask = replace(fault.ask, timeouts=fault.timeouts)
    begun, memory = monotonic(), _PeakMemory()
    outcome.hung = True
    with anyio.move_on_after(patience):
        try:
            if fault.act is None:
                outcome.reply = await call(client, stage.origin, ask)
            else:
                outcome.reply = await fault.act(client, stage, ask)
        except Exception as error:  # noqa: BLE001  # it is what came of it
            # What its frames hold would count as left behind.
            outcome.error = _without_traceback(error)
        outcome.hung = False
    outcome.elapsed = monotonic() - begun
    outcome.growth = memory.growth()


async def _good(client: Client, stage: Stage, number: int, patience: float) -> str:
    ask = Ask(method="GET", path=f"/good/{number}", content=None)
    with anyio.move_on_after(patience):
        try:
            reply = await client.fetch(stage.good or stage.origin, ask)
        except Exception as error:  # noqa: BLE001  # it is what came of it
            return type(error).__name__
        return "" if (reply.status, reply.body) == (200, ask.path.encode()) else "wrong answer"
    return "hung"


def _was_used_again(server: ScriptedServer) -> bool:
    return any(
        THE_CALL in [request.header(ID) for request in each.requests[:-1]]
        for each in server.conversations
    )


async def _settled(look: Callable[[], Any], seconds: float = 1.0) -> Any:
    """What `look` says once it is nothing, or after `seconds`."""
    with anyio.move_on_after(seconds):
        while look():  # noqa: ASYNC110  # what it waits for is in other threads
            await anyio.sleep(0.002)
    return look()


def _without_traceback(error: BaseException) -> Any:
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        each = rest.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            rest += [each.__cause__, each.__context__]
    return error


def count_sockets() -> int:
    """How many sockets this process has; 0 where the system does not say."""
    found = 0
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # it was closed meanwhile
                found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def _tasks() -> set[Any]:
    try:
        return {task for task in asyncio.all_tasks() if not task.done()}
    except RuntimeError:  # it is not asyncio that runs; trio leaves no task behind
        return set()


class _PeakMemory:
    """The peak of the resident memory since it was made (proc(5): VmHWM, clear_refs)."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _status("VmRSS")

    def growth(self) -> int:
        return _status("VmHWM") - self._start


def _status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
