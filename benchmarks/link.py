"""Agents 50 ms away from their server, on a real network path: `python -m benchmarks.link`.

Two network namespaces, each with a TUN device; a process between them reads every packet from one
and writes it to the other 25 ms later. So it is the kernel's own TCP that pays for each round trip:
SYN, TLS and request alike. Needs Linux, root and iproute2; everything is undone at the end.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import median
from time import monotonic
from typing import get_args
from urllib.parse import urlsplit

from benchmarks import _nginx
from benchmarks._cores import clean_up_when_told_to_end, cores, enter, pin
from benchmarks._model import Agent, Load, Mode, Target, Trip
from benchmarks._worker import ClientFailed, MissingLibrary, Worker, start
from benchmarks.clients import Spec, specs

RTT = 0.05
"""Seconds."""
CALLS = 20
AGENTS = 5
"""In each client's process, a part of a round trip apart: none is in another's way."""

_CLIENT, _SERVER = "10.213.77.1", "10.213.77.2"
_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_TUN, _NO_PACKET_INFO = 0x0001, 0x1000
_MTU = 1500
_HANDSHAKES = 3  # before the first client and after each
_WARMING, _WARMING_SECONDS = 40, 0.3
_IDLE_ROUNDS = 100_000  # a few milliseconds


def why_not() -> str | None:
    """What is missing for the link here; None where it can be made."""
    if not sys.platform.startswith("linux"):
        return "the link needs Linux"
    if os.geteuid() != 0:
        return "the link needs root, for network namespaces and TUN devices"
    if not os.path.exists("/dev/net/tun"):
        return "the link needs /dev/net/tun"
    if shutil.which("ip") is None:
        return "the link needs the ip command: apt-get install iproute2"
    return None


@dataclass(slots=True)
class Trips:
    """By client: the agent's round trips in each mode, and those of each step of its first call."""

    rtt: float = RTT
    """Seconds of a round trip, as bare TCP handshakes between the clients' turns take it."""

    agents: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    steps: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    failed: dict[str, str] = field(default_factory=dict[str, str])


def measure(chosen: Iterable[Spec], modes: Iterable[Mode], *, agents: int = AGENTS) -> Trips:
    """Run the agents on each client over the link. Raises OSError where it cannot be made."""
    client_core, server_core = cores()
    with ExitStack() as stack:
        client, server = stack.enter_context(_namespaces(server_core))
        inside = ("ip", "netns", "exec", server)
        nginx = stack.enter_context(_nginx.serving(server_core, host=_SERVER, inside=inside))
        stack.enter_context(_awake(client_core))
        target = Target(url=f"{nginx.tls}/small", ca_file=nginx.ca_file)
        path = f"/run/netns/{client}"
        handshakes = stack.enter_context(_handshakes(path, nginx.plain, client_core))
        trips, ran = Trips(), list[tuple[str, Mode, Trip]]()
        workers = [stack.enter_context(start(spec, client_core, namespace=path)) for spec in chosen]
        with ThreadPoolExecutor(len(workers) or 1) as pool:
            ready = [pool.submit(_warm_up, worker, target) for worker in workers]
            wait(ready)
        took = handshakes()
        for worker, warmed in zip(workers, ready, strict=True):
            try:
                warmed.result()
                for mode, trip in _agents(worker, target, modes, agents):
                    ran.append((worker.spec.name, mode, trip))
            except (MissingLibrary, ClientFailed) as error:
                trips.failed[worker.spec.name] = str(error)
            took += handshakes()
    trips.rtt = median(took)
    for name, mode, trip in ran:
        trips.agents.setdefault(name, {})[mode] = trip.total / trips.rtt
        if trip.steps:
            trips.steps[name] = {step: seconds / trips.rtt for step, seconds in trip.steps.items()}
    return trips


def _agents(
    worker: Worker, target: Target, modes: Iterable[Mode], agents: int
) -> Iterator[tuple[Mode, Trip]]:
    for mode in modes:
        if mode == "warmed" and not worker.spec.is_ours:
            continue
        yield (
            mode,
            worker.agent(
                Agent(mode=mode, target=target, calls=CALLS, together=agents, apart=RTT / agents)
            ),
        )


def _warm_up(worker: Worker, target: Target) -> None:
    """A process' first calls are not the link's: imports, and code that has not run before."""
    worker.check()
    worker.open(target)
    worker.round(Load(in_flight=_WARMING, seconds=_WARMING_SECONDS))
    worker.close()


@contextmanager
def _awake(core: int) -> Generator[None]:
    """Keep a core from falling asleep between two packets: to be woken is no client's doing."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_idle, args=(core, os.getpid()), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _idle(core: int, parent: int) -> None:
    """Run where nobody else wants to, for as long as there is a parent."""
    pin(0, core)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while os.getppid() == parent:
        for _ in range(_IDLE_ROUNDS):
            pass


@contextmanager
def _handshakes(namespace: str, url: str, core: int) -> Generator[Callable[[], list[float]]]:
    """What measures a few TCP handshakes, in seconds, from a process in that namespace."""
    context = multiprocessing.get_context("spawn")
    where = (namespace, core)
    with ProcessPoolExecutor(1, mp_context=context, initializer=_go, initargs=where) as pool:
        yield lambda: pool.submit(_connect, urlsplit(url).port or 0).result()


def _go(namespace: str, core: int) -> None:
    enter(namespace)
    pin(0, core)


def _connect(port: int) -> list[float]:
    took: list[float] = []
    for _ in range(_HANDSHAKES):
        began = monotonic()
        with socket.create_connection((_SERVER, port)):
            took.append(monotonic() - began)
    return took


@contextmanager
def _namespaces(core: int) -> Generator[tuple[str, str]]:
    """Two namespaces that are `RTT` from each other; yields their names."""
    tag = f"bench{os.getpid()}"
    client, server = f"{tag}c", f"{tag}s"
    with ExitStack() as stack:
        for name in (client, server):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        stack.enter_context(_wire(f"{tag}0", f"{tag}1", core))
        for device, name, here, there in (
            (f"{tag}0", client, _CLIENT, _SERVER),
            (f"{tag}1", server, _SERVER, _CLIENT),
        ):
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", here, "peer", there, "dev", device)
            _ip("-n", name, "link", "set", device, "up")
        yield client, server


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True)


@contextmanager
def _wire(left: str, right: str, core: int) -> Generator[None]:
    """Two TUN devices and the process between them; all of them end with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_carry, args=(left, right, theirs, core), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
    finally:
        ours.close()
        process.join(2)
        process.kill()
        process.join()


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH", name.encode(), _TUN | _NO_PACKET_INFO))
    return device


def _carry(left: str, right: str, pipe: Connection, core: int) -> None:
    """Carry packets both ways, each `RTT / 2` late, until the pipe is closed."""
    pin(0, core)
    near, far = _open_tun(left), _open_tun(right)
    pipe.send(None)
    told = pipe.fileno()
    other = {near: far, far: near}
    queue: deque[tuple[float, int, bytes]] = deque()
    while True:
        # select, and not poll, which counts in milliseconds; and awake for the last of them, since
        # to be woken takes a part of one.
        wait = max(queue[0][0] - monotonic() - 0.001, 0.0) if queue else None
        ready, _, _ = select.select([near, far, told], [], [], wait)
        if told in ready:
            return
        for device in (near, far):
            if device in ready:
                queue.append((monotonic() + RTT / 2, other[device], os.read(device, _MTU)))
        while queue and queue[0][0] <= monotonic():
            _, device, packet = queue.popleft()
            with suppress(OSError):  # a device that is down: lost, as on any link
                os.write(device, packet)


def table(trips: Trips) -> Mapping[str, list[str]]:
    """A row for each client: its round trips cold, pooled and warmed; "-" where it cannot."""
    modes: tuple[Mode, ...] = get_args(Mode)
    return {
        name: [f"{of[mode]:.2f}" if mode in of else "-" for mode in modes]
        for name, of in trips.agents.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link")
    parser.add_argument(
        "--agents", type=int, choices=range(1, 6), default=AGENTS, help="at a time in each process"
    )
    agents = parser.parse_args().agents
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"skipped: {reason}")
    clean_up_when_told_to_end()
    modes: tuple[Mode, ...] = get_args(Mode)
    chosen = [spec for spec in specs().values() if not spec.is_sdk]
    trips = measure(chosen, modes, agents=agents)
    print(f"round trips ({trips.rtt * 1000:.1f} ms) of a {CALLS}-call agent over TLS")
    print(f"{'':22}" + "".join(f"{mode:>10}" for mode in modes))
    for name, row in table(trips).items():
        print(f"{name:22}" + "".join(f"{figure:>10}" for figure in row))
    for name, steps in trips.steps.items():
        told = ", ".join(f"{step} {took:.2f}" for step, took in steps.items())
        print(f"{name}: round trips of the first call: {told}")
    for name, reason in trips.failed.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
