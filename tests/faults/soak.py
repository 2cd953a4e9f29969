"""Traffic of every kind for a long time, with faults, cancels and restarts of the server.

    python -m tests.faults.soak [--seconds 600] [--seed N]      (make soak SECONDS=600)

Small, large and streamed answers and uploads, over HTTP/1.1 plain and with TLS and over HTTP/2,
through both backends at once. One call in ten asks the server for a fault, one in ten is cancelled
or left in the middle, and the server is killed and started anew now and then. Prints what happened,
and ends with status 1 if an error is not the one that its fault has to make, if an answer is not
the request's own and whole, or if memory or descriptors grow.

This module knows calls, and which errors explain themselves. It does not know what the server does
with a connection (`_soak_server`).
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import random
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from tests.faults._left import Baseline, descriptors
from tests.faults._soak_server import content

import trunkline
from trunkline import Client, Limits, Response, Timeouts, Tls, TransportConfig, TransportError
from trunkline.testing import Certificates

SERVER = Path(__file__).with_name("_soak_server.py")
PATIENT = Timeouts(pool=60.0, connect=30.0, write=30.0, headers=30.0, read=30.0)
SHORT = {"stall": Timeouts(headers=0.3), "stall-body": Timeouts(read=0.3)}
WORKERS = 6  # for each client
MIB = 1024 * 1024
MEMORY = 12 * MIB  # bytes by which the mean of the last third may be above that of the first
DESCRIPTORS = 12.0
WARM_UP = 0.15  # of the time, before anything is measured
_SIZES = (0, 1, 100, 100, 5_000, 70_000, MIB)
_AFTERMATH = 1.0  # seconds after a restart in which its traces may be met

_HTTP1_FAULTS: dict[str, tuple[type[TransportError], ...]] = {
    "hang-up": (trunkline.RemoteDisconnected,),
    "reset": (trunkline.RemoteDisconnected, trunkline.ReadError),
    "garbage": (trunkline.RemoteProtocolError,),
    "cut": (trunkline.BodyTruncated,),
    "stall": (trunkline.HeadersTimeout,),
    "stall-body": (trunkline.ReadTimeout,),
    "close-idle": (),
}
_HTTP2_FAULTS: dict[str, tuple[type[TransportError], ...]] = {
    "reset": (trunkline.StreamReset,),
    "cut": (trunkline.StreamReset,),
    "refuse": (trunkline.StreamRefused,),
    "stall": (trunkline.HeadersTimeout,),
    "stall-body": (trunkline.ReadTimeout,),
    "goaway": (),
}
_OF_A_RESTART = (
    trunkline.ConnectionFailed,
    trunkline.ConnectTimeout,
    trunkline.GoAway,
    trunkline.NetworkError,
    trunkline.StreamRefused,
)


@dataclass(slots=True)
class Report:
    """What happened.

    Attributes:
        requests: calls that were made.
        answered, cancelled: of them.
        errors: those that were expected, by class.
        unexplained, mismatched: what must not be, told in full.
        memory, descriptors: samples, one after the other.
    """

    requests: int = 0
    answered: int = 0
    cancelled: int = 0
    restarts: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    unexplained: list[str] = field(default_factory=list[str])
    mismatched: list[str] = field(default_factory=list[str])
    memory: list[int] = field(default_factory=list[int])
    descriptors: list[int] = field(default_factory=list[int])

    @property
    def is_good(self) -> bool:
        is_flat = _growth(self.memory) <= MEMORY and _growth(self.descriptors) <= DESCRIPTORS
        return is_flat and not self.unexplained and not self.mismatched

    def __str__(self) -> str:
        first, last = _thirds(self.memory)
        first_open, last_open = _thirds(self.descriptors)
        errors = ", ".join(f"{name} {count}" for name, count in self.errors.most_common())
        return "\n".join(
            [
                f"requests             {self.requests}",
                f"answered             {self.answered}",
                f"cancelled or left    {self.cancelled}",
                f"server restarts      {self.restarts}",
                f"expected errors      {sum(self.errors.values())}: {errors}",
                f"unexplained errors   {len(self.unexplained)}",
                *(f"    {each}" for each in self.unexplained[:20]),
                f"mismatched answers   {len(self.mismatched)}",
                *(f"    {each}" for each in self.mismatched[:20]),
                f"resident memory      {first / MIB:.1f} MiB at first, {last / MIB:.1f} at last",
                f"open descriptors     {first_open:.1f} at first, {last_open:.1f} at last",
                "good" if self.is_good else "NOT GOOD",
            ]
        )


def _thirds(samples: list[int]) -> tuple[float, float]:
    size = max(1, len(samples) // 3)
    return fmean(samples[:size] or [0]), fmean(samples[-size:] or [0])


def _growth(samples: list[int]) -> float:
    first, last = _thirds(samples)
    return last - first


# -- the server ------------------------------------------------------------------------------------


class Server:
    """The process, and when it was not there."""

    def __init__(self, certificates: Certificates) -> None:
        made = certificates.server()
        self._files = (made.cert_file, made.key_file)
        self._away: list[tuple[float, float]] = []
        self.ports = ("0", "0")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), *self.ports, *self._files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        first, second = self._process.stdout.readline().decode().split()
        self.ports = (first, second)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    async def restart(self, seconds: float) -> None:
        since = time.monotonic()
        self._away.append((since, float("inf")))
        await anyio.to_thread.run_sync(self.kill)
        await anyio.sleep(seconds)
        await anyio.to_thread.run_sync(self.start)
        self._away[-1] = (since, time.monotonic() + _AFTERMATH)

    def was_away(self, since: float) -> bool:
        """Whether it was, at some time from `since` to now."""
        now = time.monotonic()
        return any(begin <= now and since <= end for begin, end in self._away[-5:])


# -- calls -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Caller:
    """One client, and whom it calls."""

    client: Client
    url: str
    is_http2: bool
    server: Server
    report: Report
    chance: random.Random

    async def work(self, until: float) -> None:
        while time.monotonic() < until:
            self.report.requests += 1
            await self._call(f"{self.report.requests}-{self.chance.randrange(10**6)}")
            await anyio.sleep(self.chance.random() * 0.01)

    async def _call(self, identity: str) -> None:
        faults = _HTTP2_FAULTS if self.is_http2 else _HTTP1_FAULTS
        fault = self.chance.choice(list(faults)) if self.chance.random() < 0.1 else ""
        is_cut_off = not fault and self.chance.random() < 0.1
        since = time.monotonic()
        try:
            with anyio.CancelScope() as scope:
                if is_cut_off and self.chance.random() < 0.7:
                    scope.deadline = anyio.current_time() + self.chance.expovariate(100.0)
                await self._send(identity, fault, leaves=is_cut_off)
            self.report.cancelled += scope.cancelled_caught
        except TransportError as error:
            self._judge(error, fault, faults.get(fault, ()), since)
            if isinstance(error, trunkline.ConnectError):
                await anyio.sleep(0.1)  # it is being started
        else:
            if fault and faults[fault]:
                self.report.mismatched.append(f"{identity}: answered in spite of {fault!r}")

    async def _send(self, identity: str, fault: str, *, leaves: bool) -> None:
        # Of a body that is cut something has to have come, and something to be missing.
        size = 5_000 if fault else self.chance.choice(_SIZES)
        body = self.chance.randbytes(self.chance.choice(_SIZES[:-1])) if not fault else b""
        headers = {"x-id": identity, "x-size": str(size), "x-fault": fault}
        if self.chance.random() < 0.3:
            headers["x-pieces"] = str(self.chance.randint(1, 10))
        options: dict[str, Any] = {"timeouts": SHORT[fault]} if fault in SHORT else {}
        if body:
            options["content"] = _pieces(body) if self.chance.random() < 0.3 else body
        method = "POST" if body else "GET"
        async with self.client.stream(method, self.url, headers=headers, **options) as response:
            if leaves and self.chance.random() < 0.3:
                self.report.cancelled += 1
                return
            await response.aread()
        self._check(response, identity, size, body)

    def _check(self, response: Response, identity: str, size: int, body: bytes) -> None:
        fields = response.headers
        is_own = (fields.get("x-id"), fields.get("x-crc")) == (identity, str(zlib.crc32(body)))
        if response.status_code == 200 and is_own and response.content == content(identity, size):
            self.report.answered += 1
        else:
            self.report.mismatched.append(
                f"{identity}: {response.status_code}, {len(response.content)} of {size} bytes, "
                f"for {fields.get('x-id')}"
            )

    def _judge(
        self,
        error: TransportError,
        fault: str,
        expected: tuple[type[TransportError], ...],
        since: float,
    ) -> None:
        is_restart = self.server.was_away(since) and isinstance(error, _OF_A_RESTART)
        # A POST that met the end of an idle connection, and that nothing proves to be untaken.
        is_race = isinstance(error, trunkline.RemoteDisconnected) and error.connection_reused
        # A stream behind a GOAWAY whose body could be had once only: nothing of it was processed.
        is_left_out = isinstance(error, trunkline.GoAway) and error.replay == "safe"
        is_of_the_protocol = is_left_out if self.is_http2 else is_race
        if isinstance(error, expected) or is_restart or is_of_the_protocol:
            self.report.errors[type(error).__name__] += 1
        else:
            what = f"{error.backend} {error.http_version}, fault {fault!r}: {error!r}"
            self.report.unexplained.append(f"{what} <- {error.__cause__!r}")


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    step = len(body) // 5 + 1
    for at in range(0, len(body), step):
        yield body[at : at + step]
        await anyio.lowlevel.checkpoint()


# -- the whole -------------------------------------------------------------------------------------


async def soak(
    seconds: float, seed: int, backends: tuple[str, ...], server: Server, ca: str
) -> Report:
    report, chance, baseline = Report(), random.Random(seed), Baseline()
    until = time.monotonic() + seconds
    clients: list[Client] = []
    async with anyio.create_task_group() as group:
        for backend in backends:
            for scheme, http2 in (("http", False), ("https", False), ("https", True)):
                tls = Tls(ca_file=Path(ca)) if scheme == "https" else Tls()
                config = TransportConfig(
                    backend=backend, http2=http2, tls=tls, timeouts=PATIENT,
                    limits=Limits(max_connections=4 if not http2 else 2),
                )  # fmt: skip
                client = Client(config)
                clients.append(client)
                url = f"{scheme}://127.0.0.1:{server.ports[scheme == 'https']}/"
                for _ in range(WORKERS):
                    own = random.Random(chance.random())
                    caller = Caller(client, url, http2, server, report, own)
                    group.start_soon(caller.work, until)
        group.start_soon(_restart_now_and_then, server, seconds, report, random.Random(seed))
        group.start_soon(_sample, seconds, report)
    for client in clients:
        now = client.snapshot()
        if (now.active, now.connecting, now.waiting) != (0, 0, 0):
            report.unexplained.append(f"a pool is not idle: {now}")
        await client.aclose()
    try:
        await baseline.check()
    except AssertionError as error:
        report.unexplained.append(f"left behind: {error}")
    return report


async def _restart_now_and_then(
    server: Server, seconds: float, report: Report, chance: random.Random
) -> None:
    until, pause = time.monotonic() + seconds, min(20.0, seconds / 4)
    while True:
        await anyio.sleep(min(pause * (0.5 + chance.random()), until - time.monotonic()))
        if time.monotonic() > until - 1.0:
            return
        await server.restart(chance.random() * 0.5)
        report.restarts += 1


async def _sample(seconds: float, report: Report) -> None:
    await anyio.sleep(seconds * WARM_UP)
    step = seconds * (1 - WARM_UP) / 90
    for _ in range(90):
        report.memory.append(_resident())
        report.descriptors.append(len(descriptors()))
        await anyio.sleep(step)


def _resident() -> int:
    # What the C library keeps in reserve for the next large body is in use by nobody.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(seconds: float, seed: int, backends: tuple[str, ...] = ("aiohttp", "httpx")) -> Report:
    with Certificates() as certificates:
        server = Server(certificates)
        try:
            return anyio.run(soak, seconds, seed, backends, server, certificates.ca_file)
        finally:
            server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--backend", action="append", choices=("aiohttp", "httpx", "httpx2"))
    options = parser.parse_args()
    logging.getLogger("trunkline").setLevel(logging.ERROR)  # that pools are full is the point
    print(f"{options.seconds:g} s, seed {options.seed}", flush=True)
    report = run(options.seconds, options.seed, tuple(options.backend or ("aiohttp", "httpx")))
    print(report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
