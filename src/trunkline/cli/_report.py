"""What `trunkline compare` prints, on a terminal or into a pipe.

Knows how to show a plan and its results. Does not know how they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from trunkline.cli._plan import Plan
from trunkline.cli._runs import (
    FIGURES,
    MODES,
    Results,
    Run,
    counted,
    failures,
    figures,
    savings,
    setup_share,
)

_NARROW = 80
_SMALLEST_BAR = 18
_LARGEST_BAR = 30


def table(runs: Sequence[Run], width: int) -> Table:
    """The runs, one a row, for `width` columns; fits in 80, and draws a bar where there is room."""
    shows_http = any(run.http_versions not in ((), ("HTTP/1.1",)) for run in runs)
    bar_width = min(width - _NARROW - 2, _LARGEST_BAR)
    has_bar = bar_width >= _SMALLEST_BAR
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("Backend", style="bold", overflow="fold")
    for name in ("Mode", "HTTP") if shows_http else ("Mode",):
        result.add_column(name, no_wrap=True)
    for name in FIGURES:
        result.add_column(name, justify="right", no_wrap=True)
    if has_bar:
        result.add_column(Text.assemble(("█ set-up", "red"), " ", ("░ rest", "green")))
    longest = max((run.total for run in runs), default=0.0)
    for run in runs:
        http = [_http(run)] if shows_http else []
        bar = [_bar(run, longest, bar_width)] if has_bar else []
        result.add_row(
            Text(run.backend), run.mode, *http, *_figures(run), *bar, end_section=_ends_group(run)
        )
    return result


def _ends_group(run: Run) -> bool:
    return run.mode == MODES[-1]


def _figures(run: Run) -> list[Text]:
    style = "bold red" if run.errors else ""
    *others, failed = figures(run)
    return [*map(Text, others), Text(failed, style)]


def _http(run: Run) -> str:
    return " ".join(version.removeprefix("HTTP/") for version in run.http_versions)


def _bar(run: Run, longest: float, width: int) -> Text:
    length = round(width * run.total / longest) if longest > 0 else 0
    setup = round(length * setup_share(run))
    return Text.assemble(("█" * setup, "red"), ("░" * (length - setup), "green"))


def introduction(plan: Plan, backends: int) -> list[str]:
    """What is measured on so many backends, and what of it is emulated: a sentence each."""
    pace = "one at a time" if plan.concurrency == 1 else f"{plan.concurrency} at a time"
    return [
        f"{counted(plan.calls, 'call')} of an LLM agent, {pace}, on each backend.",
        "cold: a client, and so a connection, per call; pooled: one client for all.",
        _describe_link(plan, backends),
        "Each backend makes one more call first, which is not counted.",
    ]


def introduce(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        _say(console, line)
    console.print()


def _describe_link(plan: Plan, backends: int) -> str:
    if plan.url is not None:
        total = backends * (len(MODES) * plan.calls + 1)
        return f"This sends {counted(total, 'request')} to {plan.url}, over the real link."
    if plan.rtt:
        return (
            f"Embedded server, TLS. The {plan.rtt * 1000:g} ms round trip is emulated: a relay on "
            "loopback holds the bytes back; it is not a real link."
        )
    return "Embedded server, TLS, on loopback, where a round trip costs next to nothing."


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, highlight=False, markup=False)


@contextmanager
def progress(total: int) -> Generator[Callable[[str], Callable[[], None]]]:
    """A bar on a terminal's stderr, nothing elsewhere, and no trace of it afterwards."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("warming up", total=total)

        def begin(description: str) -> Callable[[], None]:
            progress.update(task, description=description)
            return partial(progress.advance, task)

        yield begin


def show(results: Results, console: Console) -> None:
    """The table, what pooling saved, and what went wrong."""
    if results.runs:
        # The bar is not drawn in ASCII.
        width = _NARROW if console.options.ascii_only else console.width
        console.print(table(results.runs, width))
        console.print()
    for saving in savings(results.runs):
        _say(console, saving.sentence(), "bold")
    for line in failures(results.runs):
        _say(console, line, "red")
    for backend, reason in results.broken.items():
        _say(console, f"{backend}: {reason}", "red")
    for backend, reason in results.unusable.items():
        _say(console, f"{backend}: {reason}", "yellow")
