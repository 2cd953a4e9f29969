"""The whole suite, in order: servers, clients, workloads, and the figures that are no rounds.

Knows what there is to run. Does not know how a figure is measured, shown or judged.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Literal, TypeAlias, get_args

from benchmarks import _cold, _llm, _nginx, _workloads, guard, link
from benchmarks._cores import cores
from benchmarks._model import JSON, Load, Mode, Target
from benchmarks._results import Results
from benchmarks._rounds import Cell, measure
from benchmarks._worker import ClientFailed, MissingLibrary, Worker, start, told
from benchmarks._workloads import OURS, Workload
from benchmarks.clients import Spec, specs

Kind: TypeAlias = Literal["full", "quick"]
Say: TypeAlias = Callable[[str], None]

_HELD, _AT_ONCE = 1000, 4
_QUICK_LINK = (*OURS, "aiohttp", "pyreqwest")


def run(kind: Kind, say: Say, *, uvloop: bool = False) -> Results:
    """Everything of that kind; `say` is told what is under way."""
    results = Results(kind=kind, date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    began = monotonic()
    workloads = _workloads.full() if kind == "full" else _workloads.quick()
    known = specs()
    needed = {name for workload in workloads for name in workload.chosen(known)}
    with bench({name: known[name] for name in known if name in needed}, uvloop=uvloop) as running:
        results.missing = running.missing
        results.machine, results.versions = _machine(), _versions(running)
        for workload in workloads:
            say(workload.title)
            results.titles[workload.name] = workload.title
            results.add(running.measure(workload))
        say("bytecodes and CPU in one process")
        try:
            results.guard = guard.measure(f"{running.nginx.plain}/small", running.core)
        except Exception as error:  # noqa: BLE001 - a client under test may raise anything
            results.notes.append(f"the guard: {told(error)}")
        if kind == "full":
            _beyond_rounds(running, results, say)
        installed = [running.workers[name].spec for name in running.workers]
    say("the link")
    _link(kind, installed, results)
    results.took = monotonic() - began
    return results


@dataclass(frozen=True, slots=True)
class Bench:
    """The servers and the clients' processes, all running."""

    nginx: _nginx.Nginx
    chat: _llm.Chat
    workers: Mapping[str, Worker]
    missing: list[str]
    core: int

    def measure(self, workload: Workload) -> list[Cell]:
        specs = {name: worker.spec for name, worker in self.workers.items()}
        chosen = {name: self.workers[name] for name in workload.chosen(specs)}
        return measure(
            workload.name,
            chosen,
            self.target(workload),
            workload.loads,
            workload.rounds,
            workload.warming,
        )

    def target(self, workload: Workload) -> Target:
        connections = workload.connections or workload.most
        if workload.over == "llm":
            return Target(url=self.chat.url, connections=connections)
        if workload.over == "plain":
            return Target(url=self.nginx.plain + workload.path, connections=connections)
        return Target(
            url=self.nginx.tls + workload.path,
            ca_file=self.nginx.ca_file,
            http2=workload.over == "http2",
            connections=connections,
        )


@contextmanager
def bench(known: Mapping[str, Spec], *, uvloop: bool = False) -> Generator[Bench]:
    """Start everything; the clients import their libraries at the same time."""
    client_core, server_core = cores()
    with ExitStack() as stack:
        nginx = stack.enter_context(_nginx.serving(server_core))
        chat = stack.enter_context(_llm.serving(server_core))
        workers = {
            name: stack.enter_context(start(spec, client_core, uvloop=uvloop))
            for name, spec in known.items()
        }
        missing: list[str] = []
        for name in tuple(workers):
            try:
                workers[name].check()
            except MissingLibrary as reason:
                missing.append(str(reason))
                del workers[name]
        yield Bench(nginx, chat, workers, missing, client_core)


def _beyond_rounds(bench: Bench, results: Results, say: Say) -> None:
    chosen = [worker.spec for worker in bench.workers.values() if not worker.spec.is_sdk]
    say("memory")
    held = [(spec, what) for spec in chosen for what in ("idle", "stream")[: 1 + spec.streams]]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # who runs beside it changes nobody's memory
        figures = [(spec, what, pool.submit(_memory, spec, what, bench)) for spec, what in held]
        for spec, what, figure in figures:
            try:
                results.memory.setdefault(spec.name, {})[what] = figure.result()
            except ClientFailed as failure:
                results.notes.append(f"{spec.name}, memory of each {what}: {failure}")
    for spec in chosen:
        say(f"cold start of {spec.name}")
        try:
            results.cold[spec.name] = _cold.measure(spec, f"{bench.nginx.plain}/small")
        except subprocess.CalledProcessError as error:
            results.notes.append(f"{spec.name}, cold start: {error.stderr.splitlines()[-1]}")


def _memory(spec: Spec, what: str, bench: Bench) -> float:
    """Bytes of an idle connection, or of an open stream, in a process that did nothing before."""
    streams = what == "stream"
    held = min(_HELD, spec.most or _HELD)
    pace = "1" if streams else "3"  # seconds to the next token; for all calls to be sent
    load = Load(
        in_flight=held,
        body=_llm.body(100 if streams else 1, stream=streams),
        headers=(*JSON.items(), ("x-token-delay", pace)),
        stream=streams,
    )
    with start(spec, bench.core) as worker:
        worker.check()
        worker.open(Target(url=bench.chat.url, connections=held + 1))
        memory = worker.streams(load) if streams else worker.idle(load)
        worker.close()
        return memory.each


def _link(kind: Kind, installed: list[Spec], results: Results) -> None:
    reason = link.why_not()
    if reason is not None:
        results.notes.append(f"the link was skipped: {reason}")
        return
    modes: tuple[Mode, ...] = get_args(Mode) if kind == "full" else ("pooled", "warmed")
    chosen = [
        spec
        for spec in installed
        if not spec.is_sdk and (kind == "full" or spec.name in _QUICK_LINK)
    ]
    trips = link.measure(chosen, modes)
    results.link, results.steps, results.rtt = trips.agents, trips.steps, trips.rtt
    results.notes += [f"{name}, over the link: {why}" for name, why in trips.failed.items()]


def _versions(bench: Bench) -> dict[str, str]:
    found = {"python": platform.python_version(), "nginx": bench.nginx.version}
    libraries = dict.fromkeys(worker.spec.library for worker in bench.workers.values())
    for name in (*libraries, "h2", "uvloop"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        names = [line for line in about.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "CPU": cpu,
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }
