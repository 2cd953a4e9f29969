"""Everything a run of the suite came to, and the JSON file of it.

Knows data and its file. Does not know how it was measured or how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks._model import Round
from benchmarks._rounds import Cell

SCHEMA = 1
"""Version of the JSON file's keys; it grows when one is removed or changes its meaning."""


@dataclass(slots=True, kw_only=True)
class Results:
    """Durations in seconds, sizes in bytes, costs in microseconds of CPU."""

    kind: str
    """"full" or "quick"."""
    date: str
    took: float = 0.0
    machine: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    missing: list[str] = field(default_factory=list[str])
    """Clients that are not installed: how to install them."""
    titles: dict[str, str] = field(default_factory=dict[str, str])
    """Of each workload."""
    cells: list[Cell] = field(default_factory=list[Cell])
    memory: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """By client: bytes of an "idle" connection and of an open "stream"."""
    cold: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """By client: seconds for the "import", and for the "first" call after it."""
    link: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """By client: round trips of the agent, by mode."""
    steps: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """By client: round trips of each step of its first call over the link."""
    rtt: float = 0.0
    """Seconds of a round trip of the link, as measured."""
    guard: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])
    """What was not measured, and why."""

    def add(self, cells: Iterable[Cell]) -> None:
        """What is measured a second time adds to the rounds of the first.

        Clients that were not measured together may share a cell; no ratio is taken of them.
        """
        for cell in cells:
            known = self.cell(cell.workload, cell.in_flight)
            if known is None:
                self.cells.append(cell)
            else:
                for name, rounds in cell.rounds.items():
                    known.rounds.setdefault(name, []).extend(rounds)
                known.failed.update(cell.failed)
                for name in known.failed:
                    known.rounds.pop(name, None)

    def cell(self, workload: str, in_flight: int) -> Cell | None:
        for cell in self.cells:
            if (cell.workload, cell.in_flight) == (workload, in_flight):
                return cell
        return None

    def cells_of(self, workload: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.workload == workload]

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Results:
        """Raises ValueError where the file is of another schema."""
        fields = dict(document)
        if fields.pop("schema") != SCHEMA:
            raise ValueError("the file is of another version of the benchmarks")
        cells = [
            Cell(
                cell["workload"],
                cell["in_flight"],
                {name: [Round(**one) for one in rounds] for name, rounds in cell["rounds"].items()},
                cell["failed"],
            )
            for cell in fields.pop("cells")
        ]
        return cls(cells=cells, **fields)
