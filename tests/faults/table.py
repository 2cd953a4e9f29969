"""`python -m tests.faults.table`: play every fault against every client, and write docs/faults.md.

This module knows processes and Markdown. Each client is played in a process of its own, which is
killed when it says nothing for a while: some clients hang so that no deadline helps.
"""

from __future__ import annotations

import gc
import json
import logging
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Timer

import anyio
from tests.faults import http2
from tests.faults._judge import faults_found, is_right
from tests.faults._lab import OTHERS, Answers, Fails, Fault
from tests.faults._play import Outcome, play
from tests.faults.catalogue import CHAPTERS, FAULTS
from tests.faults.clients import OURS, PEERS, Kind

from trunkline import DecompressionLimit, InvalidRequest
from trunkline.testing import Certificates

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
KINDS = {kind.name: kind for kind in (*OURS, *PEERS)}
LIBRARIES = ("aiohttp", "httpx", "httpcore", "h11", "h2", "httpx2")

_PROCESSES = 3  # for each client
_PATIENCE = 5.0  # seconds until a call has hung
_SILENCE = 40.0  # seconds until a process has: a call, three good ones, and looking for leaks
_MEMORY = 4 * 2**30  # bytes of address space for a process
_NOT_PLAYED = "n/a"
_ACCEPTED = {InvalidRequest: "sent", DecompressionLimit: "taken"}
_BAD = ("HANG", "WRONG", "LEAK", "MEMORY", "AFTER", "UNEXPECTED")


# -- in the process of one client ------------------------------------------------------------------


def play_some(kind: Kind, start: int, stop: int) -> None:
    """Play the faults with these numbers, and print the cell of each as a line of JSON."""
    _limit_memory()
    logging.disable()  # the pool tells when it is exhausted
    gc.disable()  # a socket that only the collector closes has leaked
    with Certificates() as certificates:
        for fault in FAULTS[start:stop]:
            cell = _NOT_PLAYED
            if kind.plays(fault):
                cell = anyio.run(_cell, kind, fault, certificates)
                gc.collect()
            print(json.dumps(cell), flush=True)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


async def _cell(kind: Kind, fault: Fault, certificates: Certificates) -> str:
    try:
        outcome = await play(fault, kind.open, certificates, patience=_PATIENCE)
    except Exception as error:  # noqa: BLE001  # a client that breaks the lab itself
        return f"**UNEXPECTED** {type(error).__name__}"
    return ", ".join(_findings(kind, fault, outcome))


def _findings(kind: Kind, fault: Fault, outcome: Outcome) -> Iterator[str]:
    yield _end(fault, outcome)
    if outcome.elapsed > OTHERS - 0.1 and not outcome.hung:
        yield "late"
    for each in outcome.after:
        if each:
            yield "**AFTER**: " + each
            break
    if outcome.left:
        yield "**LEAK**"
    if outcome.growth > fault.memory:
        yield "**MEMORY**"
    if kind.is_ours and (found := faults_found(fault, outcome)):
        print(f"{kind.name}: {fault.name}: {'; '.join(found)}", file=sys.stderr)
        yield "**UNEXPECTED**"


def _end(fault: Fault, outcome: Outcome) -> str:
    reply = outcome.reply
    if outcome.hung:
        return "**HANG**"
    if reply is not None and isinstance(fault.expect, Fails) and fault.expect.error in _ACCEPTED:
        return _ACCEPTED[fault.expect.error]
    if reply is not None:
        answers = [each for each in fault.allowed if isinstance(each, Answers)]
        right = any(is_right(each, reply) for each in answers)
        return "right" if right else f"**WRONG**: {reply.status}, {len(reply.body)} bytes"
    name = type(outcome.error).__name__
    may_fail = any(isinstance(each, Fails) for each in fault.allowed)
    return name if may_fail else f"*{name}*"


# -- in the process that writes the table ----------------------------------------------------------


def results_of(kind: Kind, start: int, stop: int) -> list[str]:
    """The cells of the faults with these numbers, in order."""
    cells: list[str] = []
    while start + len(cells) < stop:
        cells += _one_process(kind, start + len(cells), stop)
        if start + len(cells) < stop:
            cells.append("**HANG**, killed")
    return cells


def _one_process(kind: Kind, start: int, stop: int) -> list[str]:
    command = [sys.executable, "-m", "tests.faults.table", kind.name, str(start), str(stop)]
    errors = None if kind.is_ours else subprocess.DEVNULL
    cells: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        while True:
            watchdog = Timer(_SILENCE, process.kill)
            watchdog.start()
            line = process.stdout.readline()
            watchdog.cancel()
            if not line:
                return cells
            cells.append(json.loads(line))


def play_everything() -> dict[str, list[str]]:
    """Every fault against every client, ours first: what the others take must not slow them down.

    Each client has several processes, since most of it is waiting.
    """
    columns = {kind.name: kind for kind in OURS}, {kind.name: kind for kind in PEERS}
    return {name: cells for kinds in columns for name, cells in _play_side_by_side(kinds).items()}


def _play_side_by_side(kinds: dict[str, Kind]) -> dict[str, list[str]]:
    size = -(-len(FAULTS) // _PROCESSES)
    shares = [(start, min(start + size, len(FAULTS))) for start in range(0, len(FAULTS), size)]
    with ThreadPoolExecutor(len(kinds) * len(shares)) as threads:
        running = {
            name: [threads.submit(results_of, kind, *share) for share in shares]
            for name, kind in kinds.items()
        }
        return {
            name: [cell for each in those for cell in each.result()]
            for name, those in running.items()
        }


def render(columns: dict[str, list[str]]) -> str:
    """The page."""
    introduction = _INTRODUCTION.format(
        count=len(FAULTS), versions=_versions(), legend=http2.LEGEND
    )
    lines = [introduction + http2.NOT_CURED, "## In numbers", ""]
    lines += [*_summary(columns), ""]
    number = 0
    for chapter, groups in CHAPTERS:
        lines += [f"## {chapter}", ""]
        for group in groups:
            lines += [f"### {group.title}", "", *_row(["The server", *columns])]
            lines += _row(["---"] * (len(columns) + 1))
            for fault in group.faults:
                lines += _row([name_of(fault), *(cells[number] for cells in columns.values())])
                number += 1
            lines.append("")
    return "\n".join(lines)


def name_of(fault: Fault) -> str:
    """What the first cell of its row says."""
    return fault.name + (f" ({fault.why})" if fault.why else "")


def _summary(columns: dict[str, list[str]]) -> Iterator[str]:
    heads = ["client", "faults", "right answers", "errors", *_BAD, "late"]
    yield from _row(heads)
    yield from _row(["---", *["---:"] * (len(heads) - 1)])
    for name, cells in columns.items():
        played = [cell for cell in cells if cell != _NOT_PLAYED]
        counts = Counter(word for cell in played for word in (*_BAD, "late") if word in cell)
        right = sum(cell.startswith("right") for cell in played)
        ended = sum("HANG" in cell or "WRONG" in cell for cell in played)
        row = [len(played), right, len(played) - right - ended]
        row += [counts[word] for word in (*_BAD, "late")]
        yield from _row([name, *map(str, row)])


def _row(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _versions() -> str:
    named = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return f"Python {platform.python_version()} on {platform.system()}, {named}"


_INTRODUCTION = """\
# Faults, and what a caller sees

What becomes of a call when the other side misbehaves: {count} faults, each played for real on
loopback against Trunkline's two backends and, beside them, `aiohttp.ClientSession`,
`httpx.AsyncClient` and `httpx2.AsyncClient`. Nothing here was typed in: `make fault-table` plays
all of them again and writes this page.

Made with {versions}.

## How to read it

A cell says how the call ended:

- `right`: the answer that was due, whole.
- a name: the class of the error that was raised. In *italics* where an answer was due: the caller
  lost it.
{legend}- **HANG**: the call had not ended after 5 seconds, with no deadline above 3.
- **WRONG**: an answer that the caller must not take for good, e.g. a body that was cut off, or
  bytes that are another call's.
- `sent`: a request that should have been refused went out, as it was or changed.
- `taken`: a decompression bomb was unpacked to its end.
- `late`: the fault was noticed only when a deadline of 3 seconds passed, which had nothing to do
  with the fault. Where the user has set none, that is for ever.
- **AFTER**: of three good requests that followed, this became of the first that was not answered
  rightly.
- **LEAK**: after the client was closed a socket, descriptor or task was still there.
- **MEMORY**: the process grew by more than the fault is worth (48 MiB, for most).
- n/a: the client does not have what the fault needs (HTTP/2, SOCKS, a name server of one's choice).

Of Trunkline the tests (`tests/faults/`) check more than the class: phase, `replay`, `request_sent`,
`bytes_sent`, `response_started`, `connection_reused`, `attempts`, that the deadline which bounds
the fault ended it within half its length more, and that a call was not processed twice. They run on
asyncio, uvloop and trio; this table is of asyncio. **UNEXPECTED** would mark what differs.

Each client gets the same deadlines, as far as it has them: aiohttp has none for writing and none
that is absolute for the head; httpx and httpx2 none for the head and none for the whole call.

## What can't be cured from here

- Bytes that a server sends of its own accord, and that arrive after the next request was sent, look
  like its answer: HTTP/1.1 has nothing to tell them apart. What has arrived before is noticed, and
  the connection dropped.
- Where RFC 9112 leaves it to the parser whether to take something harmless or refuse it (obs-fold,
  a length that is repeated, surplus behind an answer that may not have a body), backends may
  differ: they stand on different parsers.
- A peer that resets the connection right after its answer may destroy the answer on its way: what
  the kernel has thrown away nobody can read.
"""


def main() -> None:
    if len(sys.argv) == 4:
        play_some(KINDS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]))
    else:
        PAGE.write_text(render(play_everything()), encoding="utf-8")


if __name__ == "__main__":
    main()
