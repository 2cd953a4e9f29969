"""Which plots the page has, and what is in each.

Knows results and which of them to show. Does not know how a plot is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks._results import Results
from benchmarks._rounds import Cell
from trunkline.cli import _plots
from trunkline.cli._plots import Plot

_OURS = {"trunkline-aiohttp": "#0072b2", "trunkline-httpx": "#d55e00"}
_OTHER, _PEER = "#56b4e9", "#a9aeb4"
_MODES = ("cold", "pooled", "warmed")


def figures(results: Results) -> Iterator[tuple[str, str]]:
    """The name of each plot and its SVG; a plot with nothing in it is left out."""
    for over in ("plain", "tls", "http2"):
        series = _by_in_flight(results, f"small-{over}")
        if series:
            plot = Plot(
                title=results.titles[f"small-{over}"],
                unit="requests a second",
                log=True,
                colours=_OURS,
            )
            thick = tuple(_OURS)
            yield f"rate-{over}", _plots.lines(plot, series, across="calls in flight", thick=thick)
    if (cell := results.cell("small-plain", 100)) is not None:
        yield "cpu", _costs(results, cell, "CPU microseconds a request", log=True)
    if (cell := results.cell("sse-paced", 100)) is not None:
        yield "streams", _costs(results, cell, "CPU microseconds an event", log=False)
    if results.memory:
        yield "memory", _memory(results)
    if results.link:
        yield "link", _link(results)


def _by_in_flight(results: Results, workload: str) -> dict[str, dict[int, float]]:
    series: dict[str, dict[int, float]] = {}
    for cell in results.cells_of(workload):
        for name in cell.rounds:
            series.setdefault(name, {})[cell.in_flight] = cell.median(name, "rate") or 0.0
    return series


def _costs(results: Results, cell: Cell, unit: str, *, log: bool) -> str:
    costs = {client: cell.median(client, "cost") or 0.0 for client in cell.rounds}
    ordered = sorted(costs, key=lambda client: costs[client])
    plot = Plot(
        title=f"{results.titles[cell.workload]}, {cell.in_flight} at a time",
        unit=unit,
        log=log,
        colours={unit: _PEER}
        | {name: _OURS.get(name, _OTHER) for name in ordered if _is_ours(name)},
    )
    return _plots.bars(plot, ordered, {unit: [costs[client] for client in ordered]})


def _is_ours(client: str) -> bool:
    return "trunkline" in client


def _memory(results: Results) -> str:
    kinds = {"idle": "an idle connection", "stream": "an open stream"}
    plot = Plot(title="Memory of each, 1,000 held", unit="KiB")
    return _plots.bars(
        plot,
        list(results.memory),
        {
            label: [each[kind] / 1024 if kind in each else None for each in results.memory.values()]
            for kind, label in kinds.items()
        },
    )


def _link(results: Results) -> str:
    plot = Plot(
        title=f"A 20-call agent, {results.rtt * 1000:.0f} ms from its server, over TLS",
        unit="round trips",
    )
    modes = [mode for mode in _MODES if any(mode in trips for trips in results.link.values())]
    return _plots.bars(
        plot,
        list(results.link),
        {mode: [trips.get(mode) for trips in results.link.values()] for mode in modes},
    )
