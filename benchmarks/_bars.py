"""What the figures have to be: a table of bars, and how each is read out of the results.

Knows results. Does not know how they were measured. A bar whose figure is missing is not met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks._results import Results
from benchmarks._rounds import Cell, Figure, ratio
from benchmarks.clients import FLOOR

_Read: TypeAlias = Callable[[Results], "float | None"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and the least, or the most, that it may be."""

    what: str
    sense: Literal[">=", "<="]
    limit: float
    read: _Read

    def check(self, results: Results) -> Verdict:
        return Verdict(self.what, self.sense, self.limit, self.read(results))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and the figure that was measured; None where none was."""

    what: str
    sense: Literal[">=", "<="]
    limit: float
    figure: float | None

    @property
    def is_met(self) -> bool:
        if self.figure is None:
            return False
        return self.figure >= self.limit if self.sense == ">=" else self.figure <= self.limit

    @property
    def measured(self) -> str:
        return "not measured" if self.figure is None else f"{self.figure:.2f}"

    @property
    def bar(self) -> str:
        return f"{self.sense} {self.limit:g}"

    @property
    def word(self) -> str:
        return "met" if self.is_met else "BELOW" if self.figure is not None else "-"


def check(results: Results) -> list[Verdict]:
    """Every bar, in the order of the table."""
    return [bar.check(results) for bar in _bars()]


def _bars() -> Iterator[Bar]:
    yield from _aiohttp_backend()
    yield from _httpx_backend()
    yield from _both_backends()
    yield from _http2()
    yield from _adapter()
    yield from _streams()
    yield from _link()
    yield from _guard()


def _aiohttp_backend() -> Iterator[Bar]:
    us = "trunkline-aiohttp"
    for in_flight, times in ((1, 1.35), (20, 2.0), (100, 2.0)):
        yield _rate(us, "aiohttp", times, in_flight)
    for in_flight, times in ((1, 1.0), (20, 0.9), (100, 0.9)):
        yield _rate(us, "pyreqwest", times, in_flight)
    yield _cost(us, FLOOR, 3.5, 100)
    yield _cost("trunkline-client", us, 1.2, 100)


def _httpx_backend() -> Iterator[Bar]:
    us = "trunkline-httpx"
    for in_flight, times in ((1, 1.2), (20, 3.0), (100, 20.0)):
        yield _rate(us, "httpx", times, in_flight)
    yield _rate(us, "httpx2", 5.0, 500)


def _both_backends() -> Iterator[Bar]:
    for us in ("trunkline-aiohttp", "trunkline-httpx"):
        yield Bar(
            f"{us}: CPU per request at 500 in flight, to 1",
            "<=",
            1.3,
            _between("growth", us, 500, 1, "cost"),
        )
        yield Bar(
            f"{us}: requests/s of 1,000 callers on 50 connections, to 50 callers",
            ">=",
            0.9,
            _between("saturated", us, 1000, 50, "rate"),
        )


def _http2() -> Iterator[Bar]:
    for them in ("httpx", "httpx2"):
        for in_flight, times in ((1, 2.0), (20, 5.0), (100, 5.0)):
            yield _rate("trunkline-aiohttp", them, times, in_flight, "small-http2", " on HTTP/2")


def _adapter() -> Iterator[Bar]:
    yield _rate("httpx2-on-trunkline", "openai-aiohttp", 1.4, 100)
    yield _rate("httpx2-on-trunkline", "httpx2", 3.0, 100)


def _streams() -> Iterator[Bar]:
    for kind, how in (("paced", "paced"), ("unpaced", "unpaced"), ("bursts", "in bursts")):
        for them, times in (("aiohttp", 0.8), ("httpx2", 0.3)):
            yield _cost("trunkline-aiohttp", them, times, 100, f"sse-{kind}", f"event, {how}")


def _link() -> Iterator[Bar]:
    for us in ("trunkline-aiohttp", "trunkline-httpx"):
        for mode, trips in (("warmed", 20.3), ("pooled", 24.0)):
            what = f"{us}: round trips of a 20-call agent, {mode}"
            yield Bar(what, "<=", trips, _trips(us, mode))
        what = f"{us}: its pooled agent, to that of the best of the others"
        yield Bar(what, "<=", _LINK_NOISE, _best(us))


_LINK_NOISE = 1.01
"""Two clients that do the same differ by this much."""


def _guard() -> Iterator[Bar]:
    yield Bar(
        "trunkline-aiohttp: bytecodes per request, to aiohttp",
        "<=",
        0.7,
        lambda results: results.guard.get("bytecodes"),
    )
    yield Bar(
        "trunkline-aiohttp: CPU per request, to aiohttp, in one process",
        "<=",
        0.75,
        lambda results: results.guard.get("cpu"),
    )


def _rate(
    us: str, them: str, times: float, in_flight: int, where: str = "small-plain", how: str = ""
) -> Bar:
    what = f"{us}: requests/s{how} at {in_flight} in flight, to {them}"
    return Bar(what, ">=", times, _beside(where, in_flight, us, them, "rate"))


def _cost(
    us: str, them: str, times: float, in_flight: int, where: str = "small-plain", of: str = ""
) -> Bar:
    what = f"{us}: CPU per {of or f'request at {in_flight} in flight'}, to {them}"
    return Bar(what, "<=", times, _beside(where, in_flight, us, them, "cost"))


def _beside(where: str, in_flight: int, us: str, them: str, figure: Figure) -> _Read:
    def read(results: Results) -> float | None:
        cell = results.cell(where, in_flight)
        return _ratio(cell, us, cell, them, figure)

    return read


def _between(where: str, us: str, many: int, few: int, figure: Figure) -> _Read:
    def read(results: Results) -> float | None:
        return _ratio(results.cell(where, many), us, results.cell(where, few), us, figure)

    return read


def _ratio(
    cell: Cell | None, us: str, other: Cell | None, them: str, figure: Figure
) -> float | None:
    if cell is None or other is None or us not in cell.rounds or them not in other.rounds:
        return None
    return ratio(cell.rounds[us], other.rounds[them], figure)


def _trips(us: str, mode: str) -> _Read:
    return lambda results: results.link.get(us, {}).get(mode)


def _best(us: str) -> _Read:
    def read(results: Results) -> float | None:
        ours = results.link.get(us, {}).get("pooled")
        others = [
            trips["pooled"]
            for name, trips in results.link.items()
            if "pooled" in trips and "trunkline" not in name
        ]
        return ours / min(others) if ours is not None and others else None

    return read
