"""What a test has left behind: descriptors, and tasks of the event loop.

This module knows /proc and the two kinds of event loop. It does not know transports.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import sniffio

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
"""Keyword arguments of `anyio.run`."""

_DESCRIPTORS = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
_PATIENCE = 10.0  # seconds for servers and loops to see that a client has gone


def descriptors() -> dict[str, str]:
    """The open sockets, pipes and files, and what each is."""
    found: dict[str, str] = {}
    for name in os.listdir(_DESCRIPTORS):
        try:
            target = os.readlink(_DESCRIPTORS / name)
        except OSError:
            continue  # the one that listed them
        if not target.startswith(("anon_inode:", "/dev/null")):  # event loops keep some by them
            found[name] = target
    return found


def tasks() -> int:
    """How many the running loop has."""
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


class Baseline:
    """What is there before: `await baseline.check()` says that there is no more of it after."""

    def __init__(self) -> None:
        self._descriptors = descriptors()
        self._tasks = tasks()

    async def check(self) -> None:
        """Wait a while for descriptors and tasks that are on their way out.

        Raises:
            AssertionError: something stays.
        """
        await self.check_descriptors()
        await _until_empty(self._more_tasks)

    async def check_descriptors(self) -> None:
        await _until_empty(self._more_descriptors)

    def _more_descriptors(self) -> str:
        now, before = descriptors(), self._descriptors.values()
        if len(now) <= len(before):
            return ""
        new = {name: what for name, what in now.items() if what not in before}
        return f"{len(now) - len(before)} descriptors more than before; new are {new}"

    def _more_tasks(self) -> str:
        more = tasks() - self._tasks
        return f"{more} tasks more than before" if more > 0 else ""


async def _until_empty(look: Callable[[], str]) -> None:
    with anyio.move_on_after(_PATIENCE):
        while look():  # noqa: ASYNC110  # nothing tells of it
            await anyio.sleep(0.005)
    assert not look(), look()
