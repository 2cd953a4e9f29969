"""What a run of `trunkline compare` came to: the numbers, and the JSON file made of them.

Knows runs and arithmetic. Does not know how the runs were made or how they are shown. Durations are
seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

SCHEMA = 1
"""Version of the JSON file's keys; it grows when one is removed or changes its meaning."""

Mode: TypeAlias = Literal["cold", "pooled"]
"""cold: a client, and so a connection, per call. pooled: one client for all calls."""

MODES: tuple[Mode, ...] = ("cold", "pooled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one backend did in one mode. Durations in seconds."""

    backend: str
    mode: Mode
    http_versions: tuple[str, ...]
    """Those the answers came in, e.g. ("HTTP/1.1",)."""
    connections: int
    """Connections opened."""
    setup: float
    """Name resolution, TCP and TLS handshakes: the sum over the calls, as the client saw them."""
    latencies: tuple[float | None, ...]
    """Of each call, in the order of the agent's turns; None where it failed."""
    total: float
    """From the first call to the end of the last."""
    errors: Mapping[str, int]
    """How many calls failed, by class of error."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a comparison came to, in the order in which it was made."""

    runs: list[Run] = field(default_factory=list[Run])
    unusable: dict[str, str] = field(default_factory=dict[str, str])
    """Backends that cannot do what is asked: why."""
    broken: dict[str, str] = field(default_factory=dict[str, str])
    """Backends whose warm-up call failed: how."""

    @property
    def is_clean(self) -> bool:
        return not self.broken and not any(run.errors for run in self.runs)


def percentile(latencies: Iterable[float | None], fraction: float) -> float | None:
    """The nearest-rank percentile of the calls that were answered; None when none was.

    It is always a latency that was measured, never one in between two.
    """
    answered = sorted(latency for latency in latencies if latency is not None)
    if not answered:
        return None
    return answered[max(math.ceil(fraction * len(answered)), 1) - 1]


def calls_per_second(run: Run) -> float:
    """Answered calls by the second of the whole run."""
    answered = sum(latency is not None for latency in run.latencies)
    return answered / run.total if run.total > 0 else 0.0


def setup_share(run: Run) -> float:
    """Which part of the time its answered calls took went into opening connections, 0 to 1."""
    waited = sum(latency or 0.0 for latency in run.latencies)
    return min(run.setup / waited, 1.0) if waited > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What pooling changed for one backend."""

    cold: Run
    pooled: Run

    @property
    def saved(self) -> float:
        return self.cold.total - self.pooled.total

    @property
    def fraction(self) -> float:
        """Of the cold run's time, negative where the pooled run was slower."""
        return self.saved / self.cold.total if self.cold.total > 0 else 0.0

    @property
    def is_comparable(self) -> bool:
        """Whether both runs did all the work; a failed call may be quick for the wrong reason."""
        return not self.cold.errors and not self.pooled.errors

    def sentence(self) -> str:
        backend = self.pooled.backend
        opened = counted(self.pooled.connections, "connection")
        if not self.is_comparable:
            return f"{backend}: not compared, because calls failed."
        if self.pooled.connections >= self.cold.connections:
            return f"{backend}: pooling saved nothing: {opened}, no fewer than without it."
        connections = f"{opened} instead of {self.cold.connections}"
        if self.saved <= 0:
            return f"{backend}: pooling saved no time, though {connections} had to be opened."
        return (
            f"{backend}: pooling saved {duration(self.saved)} of {duration(self.cold.total)} "
            f"({self.fraction:.0%}): {connections}."
        )


def savings(runs: Iterable[Run]) -> list[Saving]:
    """One for each backend that ran in both modes, in the order of the runs."""
    by_backend: dict[str, dict[str, Run]] = {}
    for run in runs:
        by_backend.setdefault(run.backend, {})[run.mode] = run
    return [
        Saving(cold=modes["cold"], pooled=modes["pooled"])
        for modes in by_backend.values()
        if modes.keys() >= {"cold", "pooled"}
    ]


def failures(runs: Iterable[Run]) -> list[str]:
    """A line for each run in which calls failed: how many, and by which class of error."""
    return [
        f"{run.backend}, {run.mode}: {sum(run.errors.values())} of {len(run.latencies)} calls "
        "failed: " + ", ".join(f"{name} ({count})" for name, count in run.errors.items()) + "."
        for run in runs
        if run.errors
    ]


def counted(number: int, thing: str) -> str:
    """`1 call`, `20 calls`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """For people: "48.2 ms", "153 ms", "3.09 s"; "-" for None."""
    if seconds is None:
        return "-"
    if seconds >= 0.9995:
        return f"{seconds:.2f} s" if seconds < 99.995 else f"{seconds:.0f} s"
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 99.95 else f"{milliseconds:.1f} ms"


FIGURES = ("Opened", "Set-up", "p50", "p95", "Total", "Calls/s", "Failed")


def figures(run: Run) -> tuple[str, ...]:
    """The numbers of a run for people, in the order of `FIGURES`."""
    return (
        str(run.connections),
        duration(run.setup),
        duration(percentile(run.latencies, 0.5)),
        duration(percentile(run.latencies, 0.95)),
        duration(run.total),
        f"{calls_per_second(run):.1f}",
        str(sum(run.errors.values())),
    )


def as_json(
    config: Mapping[str, Any],
    versions: Mapping[str, str | None],
    results: Results,
) -> dict[str, Any]:
    """The JSON file. Its keys are stable; durations are seconds.

    schema: the version of this layout, 1.
    config: what was asked for: `url` (null for the embedded server), `calls`, `concurrency`,
        `backends`, `rtt` (seconds; 0 for no emulation), `http2`, `model`, and `headers`, the names
        of the headers that were added, never their values.
    versions: of `python`, `trunkline`, `aiohttp`, `httpx`; null where not installed.
    runs: a list, in the order they were made: `backend`, `mode` ("cold" or "pooled"),
        `http_versions`, `connections` (opened), `setup` (sum of name resolution, TCP and TLS
        handshakes), `p50` and `p95` (of the calls that were answered; null when none was), `total`,
        `calls_per_second`, `errors` (class of error: count) and `latencies`, one for each call,
        null where it failed.
    summary: for each backend that ran in both modes: `backend`, `saved` (may be negative),
        `saved_fraction` (of the cold run's total), `connections_cold`, `connections_pooled`,
        `comparable` (false when a call failed) and `sentence`.
    skipped: backends that did not run: why.
    """
    return {
        "schema": SCHEMA,
        "config": dict(config),
        "versions": dict(versions),
        "runs": [_run_as_json(run) for run in results.runs],
        "summary": [_saving_as_json(saving) for saving in savings(results.runs)],
        "skipped": results.unusable | results.broken,
    }


def _run_as_json(run: Run) -> dict[str, Any]:
    return {
        "backend": run.backend,
        "mode": run.mode,
        "http_versions": list(run.http_versions),
        "connections": run.connections,
        "setup": run.setup,
        "p50": percentile(run.latencies, 0.5),
        "p95": percentile(run.latencies, 0.95),
        "total": run.total,
        "calls_per_second": calls_per_second(run),
        "errors": dict(run.errors),
        "latencies": list(run.latencies),
    }


def _saving_as_json(saving: Saving) -> dict[str, Any]:
    return {
        "backend": saving.pooled.backend,
        "saved": saving.saved,
        "saved_fraction": saving.fraction,
        "connections_cold": saving.cold.connections,
        "connections_pooled": saving.pooled.connections,
        "comparable": saving.is_comparable,
        "sentence": saving.sentence(),
    }
