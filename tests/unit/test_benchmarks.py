"""The benchmarks: how rounds are taken, what they come to, and how they are judged and shown."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from benchmarks import _nginx, _page, _workloads, guard, link
from benchmarks.__main__ import tell
from benchmarks._bars import Verdict, check
from benchmarks._cores import cores
from benchmarks._load import percentile
from benchmarks._model import Load, Round, Target
from benchmarks._results import Results
from benchmarks._rounds import Cell, measure, ratio
from benchmarks._worker import ClientFailed, MissingLibrary, Worker, start
from benchmarks._workloads import Workload
from benchmarks.clients import Events, Headers, Spec, specs
from rich.console import Console

from trunkline.testing import LLMServer

TARGET = Target(url="http://localhost/")
LINKED = {"trunkline-aiohttp", "trunkline-httpx", "aiohttp"}


def of_rate(rate: float, cpu: float = 0.5) -> Round:
    return Round(done=100, wall=100 / rate, cpu=cpu, p50=0.001, p99=0.002)


# -- rounds --------------------------------------------------------------------------------------


class FakeWorker:
    """Notes what it is told, and answers with rounds made up beforehand, or fails at one."""

    def __init__(self, name: str, log: list[str], rates: Sequence[float | None] = (1.0,)) -> None:
        self.spec = replace(specs()["floor"], name=name)
        self.is_alive = True
        self._log = log
        self._rates = iter(rates)

    def open(self, target: Target) -> None:
        self._log.append(f"open {self.spec.name}")
        self._is_cold = True

    def round(self, load: Load) -> Round:
        if self._is_cold:
            self._is_cold = False
            self._log.append(f"warm {self.spec.name} with {load.in_flight}")
            return of_rate(1.0)
        self._log.append(f"{self.spec.name} {load.in_flight}")
        rate = next(self._rates)
        if rate is None:
            raise ClientFailed("it broke")
        return of_rate(rate)

    def close(self) -> None:
        self._log.append(f"close {self.spec.name}")


def run(loads: Sequence[Load], rounds: int, *workers: FakeWorker) -> list[Cell]:
    named = {worker.spec.name: cast("Worker", worker) for worker in workers}
    return measure("small", named, TARGET, loads, rounds, loads[-1])


def test_clients_take_turns_and_every_other_time_backwards() -> None:
    log: list[str] = []
    pair = [FakeWorker(name, log, (1.0,) * 3) for name in ("a", "b")]
    run([Load(in_flight=20)], 3, *pair)
    assert log[:4] == ["open a", "warm a with 20", "open b", "warm b with 20"]
    assert log[4:10] == ["a 20", "b 20", "b 20", "a 20", "a 20", "b 20"]
    assert log[10:] == ["close a", "close b"]


def test_loads_that_share_a_client_are_cells_of_their_own() -> None:
    log: list[str] = []
    few, many = run(
        [Load(in_flight=1), Load(in_flight=500)], 2, FakeWorker("a", log, (10.0, 5.0, 20.0, 8.0))
    )
    assert log.count("open a") == 1
    assert (few.in_flight, many.in_flight) == (1, 500)
    assert (few.median("a", "rate"), many.median("a", "rate")) == (15.0, 6.5)


def test_a_client_that_fails_is_named_and_the_others_go_on() -> None:
    log: list[str] = []
    [cell] = run(
        [Load(in_flight=1)],
        2,
        FakeWorker("good", log, (1.0, 1.0)),
        FakeWorker("bad", log, (1.0, None)),
    )
    assert cell.failed == {"bad": "it broke"}
    assert list(cell.rounds) == ["good"]
    assert len(cell.rounds["good"]) == 2


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_the_rates() -> None:
    # The machine was slow in the second round, for both.
    ours = [of_rate(200.0), of_rate(30.0), of_rate(220.0)]
    theirs = [of_rate(100.0), of_rate(10.0), of_rate(100.0)]
    assert ratio(ours, theirs, "rate") == pytest.approx(2.2)


def test_a_cost_is_of_each_answered_call_in_microseconds() -> None:
    assert of_rate(1.0, cpu=0.01).cost == pytest.approx(100.0)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    assert percentile([], 0.5) == 0.0


# -- a client's process --------------------------------------------------------------------------


def test_a_client_is_measured_in_a_process_of_its_own() -> None:
    spec = specs()["trunkline-aiohttp"]
    with LLMServer() as server, start(spec, cores()[0]) as worker:
        worker.check()
        worker.open(Target(url=f"{server.url}/echo"))
        taken = worker.round(Load(in_flight=4, calls=40))
        worker.close()
        assert (taken.done, server.requests, server.connections) == (40, 40, 4)
    assert taken.cpu > 0
    assert 0 < taken.p50 <= taken.p99 <= taken.wall


def test_a_call_that_fails_is_told_and_the_process_goes_on() -> None:
    with LLMServer() as server, start(specs()["aiohttp"], cores()[0]) as worker:
        worker.check()
        worker.open(Target(url=f"{server.url}/nowhere"))
        with pytest.raises(ClientFailed, match="ClientResponseError: 404"):
            worker.round(Load(in_flight=2, calls=2))
        worker.open(Target(url=f"{server.url}/echo"))
        assert worker.round(Load(in_flight=1, calls=1)).done == 1


def test_a_library_that_is_missing_is_named_with_what_installs_it() -> None:
    spec = Spec(name="rare", module="no_such_client", install="rare-http", library="rare-http")
    with (
        start(spec, cores()[0]) as worker,
        pytest.raises(MissingLibrary, match="pip install rare-http"),
    ):
        worker.check()


def test_every_installed_backend_of_trunkline_is_a_client() -> None:
    known = specs()
    assert known["trunkline-aiohttp"].variant == "aiohttp"
    assert known["trunkline-httpx"].variant == "httpx"


# -- bars ----------------------------------------------------------------------------------------


def as_measured(workloads: Sequence[Workload]) -> Results:
    """What a run of these would give, were every client equally fast."""
    known = specs()
    results = Results(kind="quick", date="2026-01-01 00:00 UTC", rtt=0.05)
    for workload in workloads:
        results.titles[workload.name] = workload.title
        for load in workload.loads:
            rounds = {name: [of_rate(100.0)] for name in workload.chosen(known)}
            results.add([Cell(workload.name, load.in_flight, rounds)])
    results.link = {name: {"pooled": 22.0, "warmed": 20.0} for name in LINKED}
    results.guard = {"bytecodes": 0.5, "cpu": 0.5}
    return results


@pytest.mark.parametrize("table", [_workloads.quick, _workloads.full])
def test_every_bar_has_a_figure_in_both_runs(table: Any) -> None:
    verdicts = check(as_measured(table()))
    assert [verdict.what for verdict in verdicts if verdict.figure is None] == []
    assert len({verdict.what for verdict in verdicts}) == len(verdicts)


def test_a_bar_is_met_at_its_limit_and_never_without_a_figure() -> None:
    assert Verdict("rate", ">=", 2.0, 2.0).is_met
    assert not Verdict("rate", ">=", 2.0, 1.99).is_met
    assert Verdict("cost", "<=", 3.5, 3.5).is_met
    assert not Verdict("cost", "<=", 3.5, 3.51).is_met
    assert not Verdict("cost", "<=", 3.5, None).is_met


def test_no_other_client_may_do_the_link_in_fewer_round_trips() -> None:
    results = as_measured(_workloads.quick())
    results.link["aiohttp"]["pooled"] = 21.0
    below = [verdict.what for verdict in check(results) if "best of the others" in verdict.what]
    assert [verdict.is_met for verdict in check(results) if verdict.what in below] == [False] * 2


def test_the_exit_code_is_1_below_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=200)
    results = as_measured(_workloads.quick())
    with console.capture() as capture:
        assert tell(results, console) == 1
    assert "to aiohttp" in capture.get()
    assert "BELOW" in capture.get()

    def all_met(_: Results) -> list[Verdict]:
        return [Verdict("it", ">=", 1.0, 2.0)]

    monkeypatch.setattr("benchmarks.__main__.check", all_met)
    with console.capture() as capture:
        assert tell(results, console) == 0
    assert "1 of 1 bars met" in capture.get()


def test_what_is_measured_at_two_times_is_one_figure() -> None:
    results = Results(kind="quick", date="2026-01-01 00:00 UTC")
    for rates in ((100.0, 200.0), (300.0,)):
        rounds = {name: [of_rate(rate) for rate in rates] for name in ("one", "other")}
        results.add([Cell("small-plain", 1, rounds)])
    (cell,) = results.cells
    assert cell.median("one", "rate") == pytest.approx(200.0)

    results.add([Cell("small-plain", 1, {"one": [of_rate(1.0)]}, {"other": "it broke"})])
    assert list(cell.rounds) == ["one"]


# -- what is written -----------------------------------------------------------------------------


def test_the_results_come_back_from_their_file() -> None:
    results = as_measured(_workloads.quick())
    results.cells[0].failed["niquests"] = "it broke"
    assert Results.from_json(results.as_json()) == results
    with pytest.raises(ValueError, match="another version"):
        Results.from_json({**results.as_json(), "schema": 0})


def test_the_page_shows_what_is_below_its_bar_and_what_was_not_measured(tmp_path: Path) -> None:
    results = as_measured(_workloads.quick())
    results.notes = ["the link was skipped: no root"]
    results.cells[0].failed["niquests"] = "it broke"
    _page.save(results, tmp_path)
    _page.write(tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "at 20 in flight, to aiohttp | 1.00 | >= 2 | BELOW |" in page
    assert "- the link was skipped: no root" in page
    assert "- niquests, small POST, 1 in flight: it broke" in page
    drawn = {file.stem for file in (tmp_path / "benchmarks").glob("*.svg")}
    assert drawn == {"rate-plain", "rate-http2", "cpu", "streams", "link"}
    for name in drawn:
        assert f"(benchmarks/{name}.svg)" in page


def test_the_page_shows_the_full_run_with_the_bars_of_the_last(tmp_path: Path) -> None:
    quick = as_measured(_workloads.quick())
    full = replace(as_measured(_workloads.full()), kind="full", date="2025-12-31 00:00 UTC")
    for results in (quick, full):
        _page.save(results, tmp_path)
    _page.write(tmp_path)
    bars, measured = (tmp_path / "benchmarks.md").read_text().split("## What was measured")
    assert "`make bench-quick` on 2026-01-01" in bars
    assert "`make bench` on 2025-12-31" in measured


def test_without_any_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make bench"):
        _page.write(tmp_path)


# -- the guard, nginx and the link ---------------------------------------------------------------


def test_the_guard_counts_the_same_for_the_same_work() -> None:
    class Client:
        def __init__(self, steps: int) -> None:
            self.steps = steps

        async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
            for _step in range(self.steps):
                pass
            return b""

        def events(
            self, url: str, headers: Headers, body: bytes | None
        ) -> AbstractAsyncContextManager[Events]:
            raise NotImplementedError

    def counted(steps: int) -> float:
        return asyncio.run(guard.count(Client(steps), TARGET))

    assert counted(10) == counted(10)
    assert counted(10) < counted(20)


def test_where_nginx_is_missing_the_way_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(_nginx, "BESIDE", ())
    with pytest.raises(SystemExit, match="apt-get install nginx-light"):
        _nginx.find()


def test_without_root_the_link_says_why_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (link.why_not() or "")


@pytest.mark.skipif(link.why_not() is not None, reason=str(link.why_not()))
@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no nginx")
def test_the_link_delays_each_call_and_leaves_nothing_behind() -> None:
    def namespaces() -> str:
        return subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout

    before = namespaces()
    trips = link.measure([specs()["trunkline-aiohttp"]], ["warmed"])
    assert trips.failed == {}
    assert trips.rtt >= link.RTT
    assert trips.agents["trunkline-aiohttp"]["warmed"] * trips.rtt >= link.CALLS * link.RTT
    with pytest.raises(ZeroDivisionError):
        link.measure((1 // 0 for _ in range(1)), ["warmed"])  # type: ignore[misc]
    assert namespaces() == before
