"""`trunkline sizing`: the limits that a load needs, and why.

This module knows the arithmetic of queues and how it is shown. It sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite, sqrt
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trunkline.cli._plan import refusal

_STREAMS = 100  # what most servers allow, and RFC 9113 section 6.5.2 asks for at least
_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 10.0
_TOO_MANY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What arrives. `streams` is None for HTTP/1.1.

    Attributes:
        rps: requests a second, on average.
        latency: seconds from the request to the end of its response body, on average.
        burst: the busiest minutes, as a multiple of `rps`.
        streams: exchanges that one HTTP/2 connection carries at a time.
    """

    rps: float
    latency: float
    burst: float
    streams: int | None = None

    @property
    def average(self) -> float:
        """Requests in flight, by Little's law."""
        return self.rps * self.latency

    @property
    def peak(self) -> float:
        """The same in the busiest minutes."""
        return self.average * self.burst

    @property
    def headroom(self) -> float:
        """Square-root staffing: arrivals at random make the number in flight vary by its root.

        Twice the root is more than there is at about 98 of 100 moments.
        """
        return 2 * sqrt(self.peak)

    @property
    def needed(self) -> int:
        """Requests in flight that there should be room for."""
        return _up(self.peak + self.headroom)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The limits for a load, by their names in the config."""

    max_connections: int
    max_keepalive_connections: int
    max_waiting: int
    pool: float

    @classmethod
    def of(cls, load: Load) -> Sizing:
        carries = load.streams or 1
        # On HTTP/2 one more: to take over while another, which the server told to go, finishes.
        connections = _up(load.needed / carries) + (load.streams is not None)
        pool = min(max(load.latency, _SHORTEST_WAIT), _LONGEST_WAIT)
        # When all is in use `needed` calls end in a latency: this many are served in `pool`.
        served = floor(load.needed * pool / load.latency)
        return cls(
            max_connections=connections,
            max_keepalive_connections=max(1, min(_up(load.average / carries), connections)),
            max_waiting=max(served, 1),
            pool=round(pool, 1),
        )

    def as_toml(self, *, http2: bool) -> str:
        """A file for `trunkline.load_config`."""
        lines = ["http2 = true", ""] if http2 else []
        lines += [
            "[limits]",
            f"max_connections = {self.max_connections}",
            f"max_keepalive_connections = {self.max_keepalive_connections}",
            f"max_waiting = {self.max_waiting}",
            "",
            "[timeouts]",
            f"pool = {self.pool}",
        ]
        return "\n".join(lines)


def _up(number: float) -> int:
    """Rounded up; not for the sake of a last digit, as in 0.1 * 30."""
    return ceil(round(number, 6))


def sizing(
    rps: Annotated[
        float, typer.Option(metavar="N", help="Requests a second to one host, on average.")
    ],
    latency: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="From the request to the end of the answer, on average. A stream is in flight "
            "until its last token.",
        ),
    ],
    burst: Annotated[
        float, typer.Option(metavar="FACTOR", help="The busiest minutes, in multiples of --rps.")
    ] = 1.5,
    http2: Annotated[
        bool, typer.Option("--http2", help="Many requests share a connection.")
    ] = False,
    streams: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Requests that one HTTP/2 connection carries at a time. Default: 100.",
        ),
    ] = None,
) -> None:
    """Work out the limits of the pool for a load, with the reasons and a config file."""
    load = checked(rps, latency, burst, http2, streams)
    show(Console(), load, Sizing.of(load))


def checked(rps: float, latency: float, burst: float, http2: bool, streams: int | None) -> Load:
    """The load, if every option makes sense; else the command ends with code 2."""
    for option, value in (("--rps", rps), ("--latency", latency)):
        if not (isfinite(value) and value > 0):
            raise refusal(option, f"{value:g} is not a finite number above zero")
    if not (isfinite(burst) and burst >= 1):
        raise refusal("--burst", f"{burst:g} is not a finite number, one or more")
    if streams is not None and not http2:
        raise refusal("--streams", "on HTTP/1.1 a connection carries one request; add --http2")
    if streams is not None and streams < 1:
        raise refusal("--streams", f"{streams} is not one or more")
    load = Load(
        rps=rps, latency=latency, burst=burst, streams=(streams or _STREAMS) if http2 else None
    )
    if load.peak > _TOO_MANY:
        raise refusal("--rps", f"with this latency more than {_TOO_MANY:,} would be in flight")
    return load


def show(console: Console, load: Load, sizes: Sizing) -> None:
    console.print(_in_flight(load))
    console.print(_limits(load, sizes))
    console.print(f"{_other_version(load)}\n")
    toml = sizes.as_toml(http2=load.streams is not None)
    console.print("# trunkline.toml", toml, sep="\n", markup=False, highlight=False, soft_wrap=True)


def _in_flight(load: Load) -> Table:
    table = Table("", title="Requests in flight", title_justify="left")
    table.add_column("in flight", justify="right")
    table.add_column("how")
    how = f"{load.rps:g} a second x {load.latency:g} s (Little's law)"
    table.add_row("on average", f"{load.average:.1f}", how)
    table.add_row("in busy minutes", f"{load.peak:.1f}", f"x {load.burst:g} (--burst)")
    how = f"+ 2 x sqrt({load.peak:.1f}) (square-root staffing)"
    table.add_row("with headroom", f"{load.needed}", how)
    return table


def _limits(load: Load, sizes: Sizing) -> Table:
    table = Table("option", title="Limits", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("why")
    most, kept = f"{load.needed} in flight", f"{load.average:.1f} in flight on average"
    if load.streams is not None:
        most, kept = f"{most} / {load.streams}, + 1 spare", f"{kept} / {load.streams}"
    table.add_row("max_connections", f"{sizes.max_connections}", most)
    table.add_row("max_keepalive_connections", f"{sizes.max_keepalive_connections}", kept)
    served = f"as many as are served within {sizes.pool:g} s"
    table.add_row("max_waiting", f"{sizes.max_waiting}", served)
    table.add_row("timeouts.pool", f"{sizes.pool:g}", "no longer than a call takes (1 to 10 s)")
    return table


def _other_version(load: Load) -> str:
    """What the other version of HTTP would need."""
    streams = None if load.streams is not None else _STREAMS
    other = Load(rps=load.rps, latency=load.latency, burst=load.burst, streams=streams)
    connections = Sizing.of(other).max_connections
    if streams is None:
        return f"With HTTP/1.1: max_connections = {connections}."
    return f"With --http2 and {streams} streams a connection: max_connections = {connections}."
