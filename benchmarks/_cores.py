"""Where a process runs, on which core and in which network namespace, and how it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType


def cores() -> tuple[int, int]:
    """The client's core and the server's; the same one twice where there is only one."""
    if not hasattr(os, "sched_getaffinity"):
        return 0, 0
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def pin(pid: int, core: int) -> None:
    """Keep a process (0: this one), with every thread it has, on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir(f"/proc/{pid or 'self'}/task"):
            os.sched_setaffinity(int(thread), {core})


def enter(namespace: str) -> None:
    """Move this process into the network namespace at that path. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    with open(namespace, "rb") as file:
        if libc.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns", namespace)


def clean_up_when_told_to_end() -> None:
    """Let SIGTERM end this process as Ctrl-C does: servers and namespaces are not left behind."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
