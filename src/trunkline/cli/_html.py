"""The report of `trunkline compare --html`: one file with plots, no script, nothing to fetch.

Knows HTML. Does not know how the runs were made, or how a plot is drawn (`_plots`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

from trunkline.cli import _plots
from trunkline.cli._runs import (
    FIGURES,
    Results,
    Run,
    failures,
    figures,
    savings,
    setup_share,
)

_SETUP, _REST = "opening connections", "the rest"
_BLUE, _ORANGE, _LIGHT_BLUE = _plots.PALETTE[0], _plots.PALETTE[1], _plots.PALETTE[5]
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #d5d9de; --paper: #fff;
  --failure: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --faint: #3c4147; --paper: #16181b; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 800px; margin: 2rem auto; padding: 0 1rem; }
.finding { font-size: 1.15rem; font-weight: 600; margin: .2rem 0; }
.failure { color: var(--failure); }
.note { opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--faint); }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
svg { width: 100%; height: auto; }
"""


def report(
    results: Results, introduction: Iterable[str], versions: Mapping[str, str | None]
) -> str:
    """The whole page. `introduction` says what was measured, a sentence each."""
    runs = results.runs
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts = [
        "<h1>What pooling saves</h1>",
        *(f'<p class="finding">{escape(saving.sentence())}</p>' for saving in savings(runs)),
        *(f'<p class="failure">{escape(line)}</p>' for line in _troubles(results)),
        *(f"<p>{escape(line)}</p>" for line in introduction),
        "<h2>Where the time went</h2>",
        _totals(runs),
        "<h2>How long each call took</h2>",
        *(_latencies(name, of_one) for name, of_one in _by_backend(runs)),
        "<h2>Numbers</h2>",
        _table(runs),
        f'<p class="note">Measured with {escape(installed)}.</p>',
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>trunkline compare</title><style>{_STYLE}</style></head>"
        f"<body>\n{body}\n</body></html>\n"
    )


def _troubles(results: Results) -> list[str]:
    others = results.broken | results.unusable
    return [*failures(results.runs), *(f"{name}: {reason}" for name, reason in others.items())]


def _by_backend(runs: Sequence[Run]) -> Iterable[tuple[str, Iterable[Run]]]:
    return groupby(runs, key=lambda run: run.backend)


def _totals(runs: Sequence[Run]) -> str:
    """A bar for each run's total, split into set-up and the rest."""
    setup = [run.total * setup_share(run) for run in runs]
    rest = [run.total - part for run, part in zip(runs, setup, strict=True)]
    return _inline(
        _plots.bars(
            _plots.Plot(
                title="Total time of each run",
                unit="seconds",
                colours={_SETUP: _ORANGE, _REST: _LIGHT_BLUE},
            ),
            [f"{run.backend}, {run.mode}" for run in runs],
            {_SETUP: setup, _REST: rest},
            stacked=True,
        )
    )


def _latencies(backend: str, runs: Iterable[Run]) -> str:
    """A dot for each call of one backend, in the order of the calls."""
    return _inline(
        _plots.dots(
            _plots.Plot(
                title=backend, unit="milliseconds", colours={"cold": _ORANGE, "pooled": _BLUE}
            ),
            {
                run.mode: [None if one is None else one * 1000 for one in run.latencies]
                for run in runs
            },
            across="call",
        )
    )


def _inline(svg: str) -> str:
    """A plot in the colours of the page."""
    for ours, name in ((_plots.INK, "ink"), (_plots.FAINT, "faint"), (_plots.PAPER, "paper")):
        svg = svg.replace(ours, f"var(--{name})")
    return svg


def _table(runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("Backend", "Mode", "HTTP", *FIGURES))
    rows = "\n".join("<tr>" + "".join(map(_cell, _cells(run))) + "</tr>" for run in runs)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>'


def _cells(run: Run) -> tuple[str, ...]:
    versions = ", ".join(version.removeprefix("HTTP/") for version in run.http_versions)
    return run.backend, run.mode, versions, *figures(run)


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"
