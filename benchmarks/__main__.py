"""`python -m benchmarks`: measure, print every figure against its bar, write the page.

    python -m benchmarks full     everything, under ten minutes
    python -m benchmarks quick    what a bar is about, under a minute
    python -m benchmarks probe    one workload on clients of your choice, round by round
    python -m benchmarks page     the page again, of the figures there are

`full` and `quick` end with code 1 where a figure is below its bar.
"""

from __future__ import annotations

import argparse
import sys
from time import monotonic

from rich.console import Console
from rich.table import Table

from benchmarks import _page, _suite
from benchmarks._bars import Verdict, check
from benchmarks._cores import clean_up_when_told_to_end
from benchmarks._model import Load
from benchmarks._results import Results
from benchmarks._rounds import Cell, ratio
from benchmarks._workloads import Workload
from benchmarks.clients import specs


def main() -> int:
    options = _parse()
    clean_up_when_told_to_end()
    if options.command == "page":
        _page.write()
        return 0
    if options.command == "probe":
        _probe(options)
        return 0
    began = monotonic()
    results = _suite.run(
        options.command,
        lambda what: print(f"{monotonic() - began:4.0f} s  {what}", file=sys.stderr, flush=True),
    )
    _page.save(results)
    _page.write()
    return tell(results, Console())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("full", "quick", "page"):
        commands.add_parser(name)
    probe = commands.add_parser("probe")
    probe.add_argument("--clients", default="trunkline-aiohttp,trunkline-httpx,aiohttp,floor")
    probe.add_argument("--in-flight", default="1,20,100")
    probe.add_argument("--over", default="plain", choices=("plain", "tls", "http2"))
    probe.add_argument("--rounds", type=int, default=5)
    probe.add_argument("--seconds", type=float, default=0.3)
    probe.add_argument("--uvloop", action="store_true")
    return parser.parse_args()


def tell(results: Results, console: Console) -> int:
    """Print the bars, and what could not be measured. The exit code: 1 where a bar is not met."""
    verdicts = check(results)
    console.print(bars_table(verdicts))
    for line in (*results.missing, *results.notes, *_failures(results)):
        console.print(line, style="yellow", highlight=False)
    below = sum(not verdict.is_met for verdict in verdicts)
    console.print(f"{len(verdicts) - below} of {len(verdicts)} bars met, in {results.took:.0f} s")
    return 1 if below else 0


def bars_table(verdicts: list[Verdict]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("what", overflow="fold")
    for name in ("measured", "bar", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for verdict in verdicts:
        style = "" if verdict.is_met else "red"
        table.add_row(verdict.what, verdict.measured, verdict.bar, verdict.word, style=style)
    return table


def _failures(results: Results) -> list[str]:
    return [
        f"{name}, {cell.workload} at {cell.in_flight}: {why}"
        for cell in results.cells
        for name, why in cell.failed.items()
    ]


def _probe(options: argparse.Namespace) -> None:
    known = specs()
    names = options.clients.split(",")
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"no such client: {', '.join(unknown)}; there are: {', '.join(known)}")
    console = Console(highlight=False, soft_wrap=True)
    with _suite.bench({name: known[name] for name in names}, uvloop=options.uvloop) as bench:
        for line in bench.missing:
            console.print(line, style="yellow")
        for in_flight in map(int, options.in_flight.split(",")):
            workload = Workload(
                name=options.over,
                title=options.over,
                over=options.over,
                loads=(Load(in_flight=in_flight, seconds=options.seconds),),
                rounds=options.rounds,
                clients=tuple(names),
            )
            for cell in bench.measure(workload):
                _show(cell, console)


def _show(cell: Cell, console: Console) -> None:
    """Each client's figures, and how the first one's rate compares with its, round by round."""
    console.print(f"{cell.workload}, {cell.in_flight} in flight")
    for name, rounds in cell.rounds.items():
        first = next(iter(cell.rounds.values()))
        each = " ".join(
            f"{ours.rate / theirs.rate:.2f}" for ours, theirs in zip(first, rounds, strict=True)
        )
        console.print(
            f"  {name:28} {cell.median(name, 'rate') or 0:8,.0f}/s "
            f"{cell.median(name, 'cost') or 0:8.1f} us CPU   "
            f"first's rate to its: {ratio(first, rounds, 'rate'):.2f} ({each})"
        )
    for name, why in cell.failed.items():
        console.print(f"  {name:28} failed: {why}")


if __name__ == "__main__":
    sys.exit(main())
