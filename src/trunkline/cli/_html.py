"""The report of `trunkline compare --html`: one file with plots, no script, nothing to fetch.

Knows HTML and SVG. Does not know how the runs were made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

from trunkline.cli._runs import (
    FIGURES,
    Results,
    Run,
    duration,
    failures,
    figures,
    savings,
    setup_share,
)

_WIDTH = 760
_LEFT = 120
_RIGHT = 20
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #d5d9de; --paper: #fff;
  --setup: #d55e00; --rest: #56b4e9; --cold: #d55e00; --pooled: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --faint: #3c4147; --paper: #16181b; --pooled: #56b4e9; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 800px; margin: 2rem auto; padding: 0 1rem; }
.finding { font-size: 1.15rem; font-weight: 600; margin: .2rem 0; }
.failure { color: var(--setup); }
.note { opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--faint); }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
.grid { stroke: var(--faint); }
.setup { fill: var(--setup); } .rest { fill: var(--rest); }
.cold { fill: var(--cold); } .pooled { fill: var(--pooled); }
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
        *(_latencies(name, list(of_one)) for name, of_one in _by_backend(runs)),
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
    """Horizontal bars: each run's total, split into set-up and the rest."""
    row, top = 30, 30
    bottom = top + row * len(runs)
    longest, step = scale(max((run.total for run in runs), default=0.0))
    unit = (_WIDTH - _LEFT - _RIGHT) / longest
    marks = [_legend((("setup", "opening connections"), ("rest", "the rest")))]
    for tick in _ticks(longest, step):
        x = _LEFT + tick * unit
        marks.append(_line(x, top, x, bottom) + _text(x, bottom + 16, f"{tick:g} s", "middle"))
    for number, run in enumerate(runs):
        y = top + row * number + 4
        setup = run.total * setup_share(run)
        tip = f"{run.backend}, {run.mode}: {duration(run.total)}, set-up {duration(run.setup)}"
        marks += [
            _text(_LEFT - 8, y + 15, f"{run.backend}, {run.mode}", "end"),
            _bar(_LEFT, y, setup * unit, "setup", tip),
            _bar(_LEFT + setup * unit, y, (run.total - setup) * unit, "rest", tip),
        ]
    return _svg(bottom + 24, "Total time of each run, in seconds", marks)


def _latencies(backend: str, runs: Sequence[Run]) -> str:
    """Dots: the latency of each call of one backend, in the order of the calls."""
    top, bottom = 30, 210
    calls = max(len(run.latencies) for run in runs)
    answered = [latency for run in runs for latency in run.latencies if latency is not None]
    highest, step = scale(max(answered, default=0.0))
    unit = (bottom - top) / highest
    marks = [_text(0, 18, backend, "start"), _legend((("cold", "cold"), ("pooled", "pooled")))]
    for tick in _ticks(highest, step):
        y = bottom - tick * unit
        label = _text(_LEFT - 8, y + 4, f"{tick * 1000:g} ms", "end")
        marks.append(_line(_LEFT, y, _WIDTH - _RIGHT, y) + label)
    spacing = (_WIDTH - _LEFT - _RIGHT) / calls
    for place, run in enumerate(runs):
        aside = (place - (len(runs) - 1) / 2) * min(6, spacing / 2)  # equal dots side by side
        for number, latency in enumerate(run.latencies):
            if latency is not None:
                x, y = _LEFT + (number + 0.5) * spacing + aside, bottom - latency * unit
                tip = f"{run.mode}, call {number + 1}: {duration(latency)}"
                marks.append(_dot(x, y, run.mode, tip))
    marks += [
        _text(_LEFT + 0.5 * spacing, bottom + 16, "call 1", "middle"),
        _text(_LEFT + (calls - 0.5) * spacing, bottom + 16, f"call {calls}", "middle"),
    ]
    return _svg(bottom + 24, f"Latency of each call on {backend}, in milliseconds", marks)


def _table(runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("Backend", "Mode", "HTTP", *FIGURES))
    rows = "\n".join("<tr>" + "".join(map(_cell, _cells(run))) + "</tr>" for run in runs)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>'


def _cells(run: Run) -> tuple[str, ...]:
    versions = ", ".join(version.removeprefix("HTTP/") for version in run.http_versions)
    return run.backend, run.mode, versions, *figures(run)


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def scale(largest: float) -> tuple[float, float]:
    """The end of an axis that reaches `largest`, and a round step with at most six ticks."""
    if largest <= 0:
        return 1.0, 1.0
    power = 10.0 ** math.floor(math.log10(largest / 5))
    step = next(power * n for n in (1, 2, 5, 10) if largest / (power * n) <= 5.0001)
    return step * math.ceil(largest / step - 1e-9), step


def _ticks(end: float, step: float) -> list[float]:
    return [number * step for number in range(round(end / step) + 1)]


def _svg(height: float, title: str, marks: Iterable[str]) -> str:
    inner = "\n".join(marks)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(title)}">\n'
        f"{inner}\n</svg>"
    )


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    marks: list[str] = []
    for number, (name, label) in enumerate(entries):
        x = _LEFT + number * 170
        marks.append(f'<rect class="{name}" x="{x}" y="8" width="12" height="12" rx="2"/>')
        marks.append(_text(x + 18, 18, label, "start"))
    return "".join(marks)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bar(x: float, y: float, width: float, name: str, tip: str) -> str:
    return (
        f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="22">'
        f"<title>{escape(tip)}</title></rect>"
    )


def _dot(x: float, y: float, name: str, tip: str) -> str:
    return (
        f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
        f"<title>{escape(tip)}</title></circle>"
    )
