"""Rounds, interleaved, and what they come to.

Knows workers and medians. A ratio is taken in each round, between neighbours in time, and the
median of those is shown: what else the machine was doing then, it did to both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

from benchmarks._model import Load, Round, Target
from benchmarks._worker import ClientFailed, Worker

Figure: TypeAlias = Literal["rate", "cost", "p50", "p99"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload: the rounds of each client, in the order they were run."""

    workload: str
    in_flight: int
    rounds: dict[str, list[Round]] = field(default_factory=dict[str, list[Round]])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Clients that could not do it: why."""

    def median(self, client: str, figure: Figure) -> float | None:
        """Of a client's rounds; None where it has none."""
        rounds = self.rounds.get(client)
        return median(getattr(one, figure) for one in rounds) if rounds else None


def ratio(ours: Sequence[Round], theirs: Sequence[Round], figure: Figure) -> float:
    """The median over the rounds of `ours` to `theirs`."""
    pairs = zip(ours, theirs, strict=True)
    ratios: list[float] = [getattr(one, figure) / getattr(other, figure) for one, other in pairs]
    return median(ratios)


def measure(
    workload: str,
    workers: Mapping[str, Worker],
    target: Target,
    loads: Sequence[Load],
    rounds: int,
    warming: Load,
) -> list[Cell]:
    """Open every client, warm it up, and run the rounds in turn: a cell for each load.

    Every other round goes through the clients backwards, so that none is always the first.
    """
    cells = [Cell(workload, load.in_flight) for load in loads]
    failed: dict[str, str] = {}
    order = list(workers)
    for name, worker in workers.items():
        try:
            worker.open(target)
            worker.round(warming)
        except ClientFailed as failure:
            failed[name] = str(failure)
    for number in range(rounds):
        for name in order if number % 2 == 0 else reversed(order):
            if name not in failed:
                try:
                    for cell, load in zip(cells, loads, strict=True):
                        cell.rounds.setdefault(name, []).append(workers[name].round(load))
                except ClientFailed as failure:
                    failed[name] = str(failure)
    for worker in workers.values():
        if worker.is_alive:
            worker.close()
    for cell in cells:
        cell.failed.update(failed)
        for name in failed:
            cell.rounds.pop(name, None)
    return cells
