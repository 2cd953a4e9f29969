"""What is measured: a table.

Knows names, sizes and how long. Does not know how a round is run or what its figures have to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from benchmarks import _llm
from benchmarks._model import JSON, Load
from benchmarks._nginx import SIZES
from benchmarks.clients import FLOOR, Spec

Over: TypeAlias = Literal["plain", "tls", "http2", "llm"]

_STREAMS = 100
_PACES = {"paced": (0.01, 1), "unpaced": (0.0, 1), "bursts": (0.0, 50)}
"""Seconds between two writes in a stream, and the tokens in each."""
_HEADERS = tuple(JSON.items())
_WARMING_SECONDS, _WARMING_TOKENS = 0.1, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Loads that share a client, and so its connections. Its name is in the results."""

    name: str
    title: str
    loads: tuple[Load, ...]
    path: str = "/small"
    over: Over = "plain"
    connections: int | None = None
    """The most; else one for each call in flight."""
    clients: tuple[str, ...] | None = None
    """None for all that can."""
    rounds: int = 3

    @property
    def most(self) -> int:
        return max(load.in_flight for load in self.loads)

    @property
    def warming(self) -> Load:
        """Connections for the most calls in flight, and code that has run as often as anyone's."""
        load = max(self.loads, key=lambda load: load.in_flight)
        if load.stream:
            return replace(load, body=_llm.body(_WARMING_TOKENS))
        return replace(load, calls=None, seconds=_WARMING_SECONDS)

    def chosen(self, specs: Mapping[str, Spec]) -> list[str]:
        """Names of the clients that can do it, of those that are known."""
        if self.clients is not None:
            return [name for name in self.clients if name in specs]
        return [name for name, spec in specs.items() if self._suits(spec)]

    def _suits(self, spec: Spec) -> bool:
        return (
            not spec.is_sdk
            and (self.over != "http2" or spec.http2)
            and (spec.streams or not any(load.stream for load in self.loads))
            and self.most <= (spec.most or self.most)
        )


OURS = ("trunkline-aiohttp", "trunkline-httpx")
_SDKS = ("openai on trunkline", "openai on DefaultAioHttpClient", "openai on httpx2")
_TITLES: dict[Over, str] = {
    "plain": "small POST",
    "tls": "small POST over TLS",
    "http2": "small POST over HTTP/2",
}


def _small(
    over: Over, in_flight: tuple[int, ...], seconds: float, rounds: int, *clients: str
) -> Workload:
    return Workload(
        name=f"small-{over}",
        title=_TITLES[over],
        over=over,
        loads=tuple(Load(in_flight=n, seconds=seconds) for n in in_flight),
        rounds=rounds,
        clients=clients or None,
    )


def _stream(
    kind: Literal["paced", "unpaced", "bursts"], tokens: int, rounds: int, *clients: str
) -> Workload:
    pace, at_once = _PACES[kind]
    load = Load(
        in_flight=_STREAMS,
        calls=_STREAMS,
        body=_llm.body(tokens),
        headers=(*_HEADERS, ("x-token-delay", str(pace)), ("x-tokens-at-once", str(at_once))),
        stream=True,
    )
    return Workload(
        name=f"sse-{kind}",
        title=f"Streams of {tokens} tokens, {'in ' * (kind == 'bursts')}{kind}",
        over="llm",
        path="",
        loads=(load,),
        rounds=rounds,
        clients=clients or None,
    )


def _growth(seconds: float, rounds: int) -> Workload:
    return Workload(
        name="growth",
        title="1 call in flight, and 500",
        loads=tuple(Load(in_flight=n, seconds=seconds) for n in (1, 500)),
        rounds=rounds,
        clients=OURS,
    )


def _saturated(seconds: float, rounds: int, *clients: str) -> Workload:
    return Workload(
        name="saturated",
        title="50 connections: 50 callers, and 1,000",
        loads=tuple(Load(in_flight=n, seconds=seconds) for n in (50, 1000)),
        connections=50,
        rounds=rounds,
        clients=clients,
    )


def _sdk(seconds: float, rounds: int) -> Workload:
    return Workload(
        name="sdk",
        title="chat completions by the whole openai SDK",
        path="/v1/chat/completions",
        loads=(Load(in_flight=100, seconds=seconds),),
        rounds=rounds,
        clients=_SDKS,
    )


def full() -> list[Workload]:
    """Everything, in under ten minutes."""
    bodies = [
        Workload(
            name=f"{way}-{size}",
            title=f"{size.upper()} {'down' if way == 'down' else 'up'}",
            path=f"/{size}" if way == "down" else "/upload",
            loads=(
                Load(
                    in_flight=20,
                    seconds=0.3,
                    method="GET" if way == "down" else "POST",
                    body=None if way == "down" else bytes(SIZES[size]),
                ),
            ),
        )
        for way in ("down", "up")
        for size in SIZES
    ]
    churn = Workload(
        name="churn",
        title="a connection for each call",
        loads=(Load(in_flight=20, calls=1000, headers=(*_HEADERS, ("Connection", "close"))),),
    )
    return [
        _small("plain", (1, 20, 100), 0.15, 8),
        _small("plain", (500,), 0.3, 4),
        *(_small("tls", (n,), 0.25, 3) for n in (1, 20, 100, 500)),
        *(_small("http2", (n,), 0.3, 3) for n in (1, 20, 100, 500)),
        *bodies,
        churn,
        _growth(0.3, 3),
        _saturated(0.3, 3, *OURS, "aiohttp", "pyreqwest"),
        _sdk(0.4, 3),
        _stream("bursts", 500, 3),
        _stream("unpaced", 500, 2),
        _stream("paced", 125, 4),
    ]


def quick() -> list[Workload]:
    """Only what a bar is about, each in short rounds; at two times, where a figure is near its bar.

    A bad moment of the machine takes seconds.
    """
    beside = ("trunkline-aiohttp", "aiohttp", "pyreqwest", "trunkline-client", FLOOR)
    streamed = ("trunkline-aiohttp", "aiohttp", "httpx2")
    near_their_bars = [
        _small("plain", (100,), 0.06, 3, "httpx2-on-trunkline", "openai-aiohttp", "httpx2"),
        # Longer: to start 1,000 callers takes a part of each round.
        _saturated(0.25, 3, "trunkline-aiohttp"),
        _stream("bursts", 500, 3, *streamed),
        _stream("unpaced", 200, 2, *streamed),
        _stream("paced", 40, 2, *streamed),
    ]
    return [
        _small("plain", (1, 20, 100), 0.045, 6, *beside),
        *near_their_bars,
        _small("plain", (1, 20), 0.07, 2, "trunkline-httpx", "httpx"),
        _small("plain", (100,), 0.1, 1, "trunkline-httpx", "httpx"),  # it takes a second
        _small("plain", (500,), 0.2, 1, "trunkline-httpx", "httpx2"),
        _small("http2", (1,), 0.07, 3, "trunkline-aiohttp", "httpx", "httpx2"),
        _small("http2", (20, 100), 0.07, 2, "trunkline-aiohttp", "httpx", "httpx2"),
        _growth(0.1, 2),
        _saturated(0.3, 2, "trunkline-httpx"),
        *near_their_bars,
    ]
