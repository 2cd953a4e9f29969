"""The page `docs/benchmarks.md`, its plots, and the JSON files they are made of.

Knows Markdown and where the files are. Does not know how anything was measured. There is nothing on
the page but what a run printed: the tables and plots are of the last full run, where there is one,
and the bars of whichever run was the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import _figures
from benchmarks._bars import check
from benchmarks._results import Results
from benchmarks._rounds import Figure

DOCS = Path(__file__).parent.parent / "docs"
_METHOD = Path(__file__).parent / "method.md"


def save(results: Results, docs: Path = DOCS) -> None:
    """Write a run's JSON file, `docs/benchmarks/full.json` or `quick.json`."""
    folder = docs / "benchmarks"
    folder.mkdir(exist_ok=True)
    document = json.dumps(results.as_json(), indent=1)
    (folder / f"{results.kind}.json").write_text(f"{document}\n", encoding="utf-8")


def write(docs: Path = DOCS) -> None:
    """Write the page and its plots, of the JSON files there are. Raises SystemExit without any."""
    runs = [run for kind in ("full", "quick") if (run := _load(docs, kind))]
    if not runs:
        raise SystemExit("nothing was measured yet: make bench")
    shown = runs[0]
    plots = dict(_figures.figures(shown))
    for old in (docs / "benchmarks").glob("*.svg"):
        old.unlink()
    for name, svg in plots.items():
        (docs / "benchmarks" / f"{name}.svg").write_text(svg, encoding="utf-8")
    last = max(runs, key=lambda run: run.date)
    lines = [*_opening(), *_bars(last), *_figures_of(shown, plots), *_closing(shown)]
    (docs / "benchmarks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _load(docs: Path, kind: str) -> Results | None:
    file = docs / "benchmarks" / f"{kind}.json"
    return (
        Results.from_json(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    )


def _opening() -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield (
        "Trunkline beside the libraries it stands on, and beside those it could be replaced by. "
        "Only the ratios mean something on another machine. Two commands make this page anew:"
    )
    yield ""
    yield from ("```console", "$ make bench-quick", "$ make bench", "```")
    yield ""


def _bars(run: Results) -> Iterator[str]:
    verdicts = check(run)
    met = sum(verdict.is_met for verdict in verdicts)
    yield "## Against the bars"
    yield ""
    yield f"`{_command(run)}` on {run.date}: {met} of {len(verdicts)} bars met."
    yield ""
    rows = [(v.what, v.measured, v.bar, v.word) for v in verdicts]
    yield from _table(("ratio", "measured", "bar", ""), rows)


def _figures_of(run: Results, plots: Iterable[str]) -> Iterator[str]:
    yield "## What was measured"
    yield ""
    yield f"`{_command(run)}` on {run.date}, in {run.took:.0f} s. Medians of interleaved rounds."
    yield ""
    for name in plots:
        yield f"![{name}](benchmarks/{name}.svg)"
        yield ""
    yield from _rates(run)
    yield from _streams(run)
    yield from _by_client("Memory of each, 1,000 held, KiB", run.memory, 1 / 1024, 1)
    yield from _by_client("Cold start, milliseconds", run.cold, 1000, 0)
    yield from _by_client("Round trips of a 20-call agent over the link, TLS", run.link, 1, 2)
    yield from _by_client("Round trips of the first call's steps", run.steps, 1, 2)


def _rates(run: Results) -> Iterator[str]:
    for workload, title in run.titles.items():
        cells = [cell for cell in run.cells_of(workload) if not workload.startswith("sse")]
        if not cells:
            continue
        yield f"### {title[0].upper()}{title[1:]}"
        yield ""
        yield "Requests a second, and microseconds of CPU for each; p99 over p50 of the latency."
        yield ""
        names = dict.fromkeys(name for cell in cells for name in cell.rounds)
        rows = [
            (name, *(_figures_in(cell.median(name, "rate"), cell.median(name, "cost"),
                                 cell.median(name, "p99"), cell.median(name, "p50"))
                     for cell in cells))
            for name in names
        ]  # fmt: skip
        head = ("client", *(f"{cell.in_flight:,} in flight" for cell in cells))
        yield from _table(head, rows)


def _figures_in(
    rate: float | None, cost: float | None, p99: float | None, p50: float | None
) -> str:
    if rate is None or cost is None or p99 is None or not p50:
        return "-"
    return f"{rate:,.0f}/s, {cost:,.0f} µs, {p99 / p50:.1f}"


def _streams(run: Results) -> Iterator[str]:
    for workload, title in run.titles.items():
        for cell in run.cells_of(workload) if workload.startswith("sse") else ():
            figures: tuple[Figure, ...] = ("rate", "cost", "p50", "p99")
            yield f"### {title[0].upper()}{title[1:]}"
            yield ""
            rows: list[tuple[str, ...]] = []
            for name in cell.rounds:
                rate, cost, p50, p99 = (cell.median(name, figure) or 0.0 for figure in figures)
                rows.append(
                    (name, f"{rate:,.0f}", f"{cost:.1f}", f"{p50 * 1e3:.1f}", f"{p99 * 1e3:.1f}")
                )
            head = ("client", "events/s", "CPU µs an event", "p50 gap, ms", "p99 gap, ms")
            yield from _table(head, rows)


def _by_client(
    title: str, figures: dict[str, dict[str, float]], scale: float, digits: int
) -> Iterator[str]:
    if not figures:
        return
    names = list(dict.fromkeys(name for each in figures.values() for name in each))
    yield f"### {title}"
    yield ""
    rows = [
        (
            client,
            *(f"{each[name] * scale:,.{digits}f}" if name in each else "-" for name in names),
        )
        for client, each in figures.items()
    ]
    yield from _table(("client", *names), rows)


def _closing(run: Results) -> Iterator[str]:
    yield _METHOD.read_text(encoding="utf-8").rstrip()
    yield ""
    yield "## Machine and versions"
    yield ""
    facts = {**run.machine, **run.versions}
    yield ", ".join(f"{name} {value}" for name, value in facts.items()) + "."
    failures = [
        f"{name}, {run.titles[cell.workload]}, {cell.in_flight} in flight: {why}"
        for cell in run.cells
        for name, why in cell.failed.items()
    ]
    if left_out := [*run.missing, *run.notes, *failures]:
        yield ""
        yield "Not measured:"
        yield ""
        yield from (f"- {line}" for line in left_out)


def _command(run: Results) -> str:
    return "make bench" if run.kind == "full" else "make bench-quick"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
