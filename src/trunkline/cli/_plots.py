"""Plots as SVG, for the report of `trunkline compare --html` and the page of the benchmarks.

Knows matplotlib. Does not know what is plotted. Importing it raises ModuleNotFoundError where the
`plots` extra is not installed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

INK, FAINT, PAPER = "#1c1e21", "#d5d9de", "#ffffff"
"""Of text, of grid lines and of the ground: a page may put its own in their place."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
"""Colours that are told apart with any eyes (Okabe and Ito), and two more."""

_mpl: Any = matplotlib  # many of its types are unknown
_Figure: Any = Figure
_GROUP_ID = re.compile(r'<g id="[^"]*"')
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": FAINT,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What every plot has: a title, what its figures are in, and colours by series, or by row.

    Where `log` is set, the figures' axis is logarithmic.
    """

    title: str
    unit: str
    log: bool = False
    colours: Mapping[str, str] = field(default_factory=dict[str, str])

    def colour(self, series: str, number: int) -> str:
        return self.colours.get(series, PALETTE[number % len(PALETTE)])

    def colours_of(self, rows: Sequence[str], series: str, number: int) -> list[str]:
        return [self.colours.get(row, self.colour(series, number)) for row in rows]


def bars(
    plot: Plot,
    rows: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    stacked: bool = False,
) -> str:
    """Horizontal bars: a row for each name, with a bar of each series beside, or after, the last.

    None is no bar.
    """
    thick = 0.8 if stacked else 0.8 / len(series)
    height = 1.2 + len(rows) * (0.3 if stacked else 0.12 + 0.17 * len(series))
    with _figure(plot, height) as (axes, svg):
        ends = [0.0] * len(rows)
        for number, (name, values) in enumerate(series.items()):
            aside = 0.0 if stacked else (number - (len(series) - 1) / 2) * thick
            places = [row + aside for row in range(len(rows))]
            widths = [value or 0.0 for value in values]
            drawn = axes.barh(
                places, widths, thick, left=ends if stacked else 0.0,
                label=name, color=plot.colours_of(rows, name, number),
            )  # fmt: skip
            if stacked:
                ends = [end + width for end, width in zip(ends, widths, strict=True)]
            else:
                labels = ["" if value is None else _short(value) for value in values]
                axes.bar_label(drawn, labels, padding=3, fontsize=8)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        _scale(axes, "x", plot)
        if plot.log:  # bars have to begin somewhere: at a power of ten
            least = min(value for values in series.values() for value in values if value)
            axes.set_xlim(left=10 ** math.floor(math.log10(least)))
        if len(series) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return svg.getvalue()


def dots(plot: Plot, series: Mapping[str, Sequence[float | None]], *, across: str) -> str:
    """A dot for each figure of each series, in their order, counted from 1; None is no dot."""
    with _figure(plot, 2.6) as (axes, svg):
        for number, (name, values) in enumerate(series.items()):
            there = [(place, value) for place, value in enumerate(values, 1) if value is not None]
            axes.scatter(
                [place for place, _ in there], [value for _, value in there],
                s=24, label=name, color=plot.colour(name, number),
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(across)
        _scale(axes, "y", plot)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return svg.getvalue()


def lines(
    plot: Plot, series: Mapping[str, Mapping[int, float]], *, across: str, thick: Sequence[str] = ()
) -> str:
    """A line for each series, over numbers on a logarithmic axis; those of `thick` stand out."""
    ticks = sorted({number for points in series.values() for number in points})
    with _figure(plot, 4.2) as (axes, svg):
        for number, (name, points) in enumerate(series.items()):
            stands_out = name in thick
            axes.plot(
                list(points), list(points.values()), marker="o", label=name,
                color=plot.colour(name, number), linewidth=2.4 if stands_out else 1.0,
                markersize=5 if stands_out else 3,
                linestyle="-" if number < len(PALETTE) else "--",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(across)
        _scale(axes, "y", plot)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return svg.getvalue()


@contextmanager
def _figure(plot: Plot, height: float) -> Generator[tuple[Any, StringIO]]:
    """Axes to draw on, and where the SVG is afterwards: the element alone, always the same text."""
    svg = StringIO()
    # The salt makes the ids of one plot differ from another's on the same page.
    with _mpl.rc_context({**_STYLE, "svg.hashsalt": plot.title}):
        figure = _Figure(figsize=(8, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(plot.title)
        yield axes, svg
        whole = StringIO()
        figure.savefig(whole, format="svg", metadata={"Date": None})
    text = whole.getvalue()
    # Groups are numbered alike in every figure, and nothing refers to them.
    svg.write(_GROUP_ID.sub("<g", text[text.index("<svg") :]))


def _scale(axes: Any, which: str, plot: Plot) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if plot.log:
        getattr(axes, f"set_{which}scale")("log")
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(_short))
    axis.set_label_text(plot.unit)
    axes.grid(axis=which)


def _short(value: float, _: object = None) -> str:
    """Two or three digits: 0.25, 3.1, 47, 12,300."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2g}"
