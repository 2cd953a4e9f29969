"""`trunkline compare`: what it counts, what it says, what it refuses, and a real run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anyio
import pytest
import typer
from hypothesis import given, strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

import trunkline
from trunkline._registry import available_backends, capabilities_of
from trunkline.cli._compare import compare
from trunkline.cli._html import report
from trunkline.cli._report import show, table
from trunkline.cli._runs import (
    Mode,
    Results,
    Run,
    Saving,
    as_json,
    calls_per_second,
    duration,
    failures,
    percentile,
    savings,
    setup_share,
)
from trunkline.cli._workload import Workload, measure
from trunkline.testing import LLMServer
from trunkline_aiohttp import AiohttpTransport

_SVG = "{http://www.w3.org/2000/svg}"

COLD = Run(
    backend="aiohttp",
    mode="cold",
    http_versions=("HTTP/1.1",),
    connections=20,
    setup=2.0,
    latencies=(0.2,) * 20,
    total=4.0,
    errors={},
)
POOLED = replace(
    COLD, mode="pooled", connections=1, setup=0.1, latencies=(0.15, *(0.05,) * 19), total=1.0
)


# -- the numbers ---------------------------------------------------------------------------------


def test_a_percentile_is_the_nearest_rank() -> None:
    latencies = [0.4, 0.1, 0.3, 0.2]
    assert percentile(latencies, 0.5) == 0.2
    assert percentile(latencies, 0.51) == 0.3
    assert percentile(latencies, 0.95) == 0.4
    assert percentile([0.7], 0.95) == 0.7


def test_failed_calls_are_left_out_of_percentiles() -> None:
    assert percentile([None, 0.3, None, 0.1], 0.5) == 0.1
    assert percentile([None, None], 0.5) is None


@given(
    st.lists(st.floats(0, 1e6), min_size=1),
    st.floats(0, 1, exclude_min=True),
)
def test_a_percentile_was_measured_and_bounds_its_share_of_the_calls(
    latencies: list[float], fraction: float
) -> None:
    found = percentile(latencies, fraction)
    assert found in latencies
    assert found is not None
    assert sum(latency <= found for latency in latencies) >= fraction * len(latencies)


def test_only_answered_calls_count_into_the_rate() -> None:
    assert calls_per_second(COLD) == 5.0
    assert calls_per_second(replace(COLD, latencies=(0.2, None, None, 0.2))) == 0.5
    assert calls_per_second(replace(COLD, total=0.0)) == 0.0


def test_the_set_up_share_is_of_the_time_that_calls_took() -> None:
    assert setup_share(COLD) == pytest.approx(0.5)
    assert setup_share(replace(COLD, latencies=(None,) * 20)) == 0.0
    assert setup_share(replace(COLD, setup=99.0)) == 1.0


def test_the_saving_is_stated_with_its_share_and_the_connections() -> None:
    saving = Saving(cold=COLD, pooled=POOLED)
    assert saving.saved == 3.0
    assert saving.fraction == 0.75
    assert saving.sentence() == (
        "aiohttp: pooling saved 3.00 s of 4.00 s (75%): 1 connection instead of 20."
    )


def test_several_connections_are_a_plural() -> None:
    saving = Saving(cold=COLD, pooled=replace(POOLED, connections=4))
    assert saving.sentence().endswith("4 connections instead of 20.")


def test_a_slower_pooled_run_is_not_called_a_saving() -> None:
    saving = Saving(cold=replace(COLD, total=0.9), pooled=POOLED)
    assert saving.fraction < 0
    assert saving.sentence() == (
        "aiohttp: pooling saved no time, though 1 connection instead of 20 had to be opened."
    )


def test_time_is_not_put_down_to_connections_that_were_not_saved() -> None:
    saving = Saving(cold=COLD, pooled=replace(POOLED, connections=20))
    assert saving.sentence() == (
        "aiohttp: pooling saved nothing: 20 connections, no fewer than without it."
    )


@pytest.mark.parametrize("broken", ["cold", "pooled"])
def test_runs_with_failed_calls_are_not_compared(broken: str) -> None:
    errors = {"ConnectTimeout": 1}
    saving = Saving(
        cold=replace(COLD, errors=errors if broken == "cold" else {}),
        pooled=replace(POOLED, errors=errors if broken == "pooled" else {}),
    )
    assert not saving.is_comparable
    assert saving.sentence() == "aiohttp: not compared, because calls failed."


def test_savings_pair_the_modes_of_each_backend() -> None:
    other = replace(COLD, backend="httpx"), replace(POOLED, backend="httpx")
    lonely = replace(COLD, backend="third")
    pairs = savings([COLD, POOLED, *other, lonely])
    assert pairs == [Saving(cold=COLD, pooled=POOLED), Saving(cold=other[0], pooled=other[1])]


def test_failures_are_summed_up_by_class() -> None:
    errors = {"ConnectTimeout": 2, "HTTPStatusError 429": 1}
    assert failures([POOLED, replace(COLD, errors=errors)]) == [
        "aiohttp, cold: 3 of 20 calls failed: ConnectTimeout (2), HTTPStatusError 429 (1)."
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.0 ms"),
        (0.04816, "48.2 ms"),
        (0.09996, "100 ms"),
        (0.1526, "153 ms"),
        (0.9996, "1.00 s"),
        (3.094, "3.09 s"),
        (99.996, "100 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_json_file_holds_every_latency_and_the_summary() -> None:
    failed = replace(POOLED, latencies=(None, 0.05), errors={"ReadTimeout": 1})
    results = Results([COLD, failed], unusable={"httpx": "not installed"}, broken={"x": "down"})
    document = json.loads(json.dumps(as_json({"calls": 20}, {"python": "3.11"}, results)))
    assert document["schema"] == 1
    assert document["config"] == {"calls": 20}
    assert document["versions"] == {"python": "3.11"}
    assert document["skipped"] == {"httpx": "not installed", "x": "down"}
    cold, pooled = document["runs"]
    assert cold == {
        "backend": "aiohttp",
        "mode": "cold",
        "http_versions": ["HTTP/1.1"],
        "connections": 20,
        "setup": 2.0,
        "p50": 0.2,
        "p95": 0.2,
        "total": 4.0,
        "calls_per_second": 5.0,
        "errors": {},
        "latencies": [0.2] * 20,
    }
    assert pooled["latencies"] == [None, 0.05]
    assert pooled["errors"] == {"ReadTimeout": 1}
    (summary,) = document["summary"]
    assert summary == {
        "backend": "aiohttp",
        "saved": 3.0,
        "saved_fraction": 0.75,
        "connections_cold": 20,
        "connections_pooled": 1,
        "comparable": False,
        "sentence": "aiohttp: not compared, because calls failed.",
    }


# -- what is shown -------------------------------------------------------------------------------


def rendered(runs: list[Run], width: int) -> list[str]:
    console = Console(file=StringIO(), width=width)
    with console.capture() as capture:
        console.print(table(runs, width))
    return capture.get().splitlines()


@pytest.mark.parametrize("http_version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("width", [80, 99, 100, 120, 200])
def test_the_table_fits_its_width_and_cuts_nothing_off(width: int, http_version: str) -> None:
    runs = [replace(run, http_versions=(http_version,)) for run in (COLD, POOLED)]
    lines = rendered(runs, width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert "20  2.00 s   200 ms   200 ms  4.00 s      5.0       0" in "\n".join(lines)


def test_a_wide_table_draws_where_the_time_went() -> None:
    cold, pooled = [line for line in rendered([COLD, POOLED], 112) if "aiohttp" in line]
    assert cold.endswith("█" * 15 + "░" * 15)
    assert pooled.rstrip().endswith("0  █" + "░" * 7)
    assert "█" not in "".join(rendered([COLD, POOLED], 80))


def test_the_http_version_is_shown_where_it_is_not_1_1() -> None:
    assert "HTTP" not in "".join(rendered([COLD, POOLED], 80))
    assert "HTTP" in "".join(rendered([replace(COLD, http_versions=("HTTP/2",)), POOLED], 80))


def test_no_name_or_reason_is_taken_for_markup() -> None:
    console = Console(file=StringIO(), width=80)
    with console.capture() as capture:
        show(Results([replace(COLD, backend="[red]x")], unusable={"[b]y": "[i]why"}), console)
    shown = capture.get()
    assert "[red]x" in shown
    assert "[b]y: [i]why" in shown


def test_the_html_report_is_well_formed_with_a_bar_and_a_dot_for_everything_measured() -> None:
    failed = replace(POOLED, backend="<x>", latencies=(None, 0.05), errors={"ReadTimeout": 1})
    other = replace(COLD, backend="<x>", latencies=(0.2, 0.2))
    results = Results([COLD, POOLED, other, failed], unusable={"y": "not <installed>"})
    page = report(results, ["20 calls & more."], {"python": "3.11", "httpx": None})
    root = ElementTree.fromstring(page)
    ids = Counter(element.get("id") for element in root.iter() if "id" in element.attrib)
    assert set(ids.values()) == {1}
    totals, *latencies = root.iter(f"{_SVG}svg")
    assert [_dots(svg) for svg in latencies] == [20 + 20, 2 + 1]
    assert "<x>, pooled" in "".join(totals.itertext())
    text = "".join(root.itertext())
    assert Saving(cold=COLD, pooled=POOLED).sentence() in text
    assert "<x>, pooled: 1 of 2 calls failed: ReadTimeout (1)." in text
    assert "y: not <installed>" in text
    assert "20 calls & more." in text
    assert "Measured with python 3.11." in text


def _dots(svg: ElementTree.Element) -> int:
    """Marks in the two colours of the modes, without those of the legend."""
    marks = [use.get("style", "") for use in svg.iter(f"{_SVG}use")]
    return sum("fill: #d55e00" in style or "fill: #0072b2" in style for style in marks) - 2


# -- what is refused -----------------------------------------------------------------------------


def run_compare(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(compare)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--calls", ["--calls", "0"]),
        ("--calls", ["--calls", "many"]),
        ("--concurrency", ["--concurrency", "0"]),
        ("--rtt", ["--rtt", "-1"]),
        ("--rtt", ["--rtt", "nan"]),
        ("--rtt", ["--rtt", "inf"]),
        ("--rtt", ["--url", "https://localhost/v1", "--rtt", "50"]),
        ("--backends", ["--backends", "aiohttp,nosuch"]),
        ("--backends", ["--backends", ","]),
        ("--backends", ["--backends", "auto"]),
        ("--url", ["--url", "localhost/v1"]),
        ("--url", ["--url", "ftp://localhost/v1"]),
        ("--url", ["--url", "https://"]),
        ("--url", ["--url", "https://localhost/v1?key=SECRET"]),
        ("--url", ["--url", "https://SECRET@localhost/v1"]),
        ("--header", ["--header", "Authorization: Bearer SECRET"]),
        ("--header", ["--url", "https://localhost/v1", "--header", "SECRET"]),
        ("--header", ["--url", "https://localhost/v1", "--header", "X: SECRET\r\nY: Z"]),
        ("--ca-file", ["--ca-file", __file__]),
        ("--ca-file", ["--url", "https://localhost/v1", "--ca-file", "/no/such/file"]),
        ("--json", ["--json", "/no/such/directory/results.json"]),
        ("--json", ["--json", "/"]),
        ("--html", ["--html", "/no/such/directory/report.html"]),
    ],
)
def test_a_bad_option_is_named_before_anything_is_sent(option: str, arguments: list[str]) -> None:
    result = run_compare(*arguments)
    assert result.exit_code == 2
    assert option in result.output
    assert "SECRET" not in result.output
    assert "calls of an LLM agent" not in result.output


# -- real runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Generator[LLMServer]:
    with LLMServer(tls=True) as running:
        yield running


EXPECTED: dict[Mode, int] = {"cold": 6, "pooled": 1}


def workload_for(server: LLMServer, *, calls: int = 6, concurrency: int = 1) -> Workload:
    tls = trunkline.Tls(ca_file=Path(server.ca_file or ""))
    return Workload(
        base_url=server.base_url, tls=tls, calls=calls, concurrency=concurrency, model="any"
    )


def ignore() -> None:
    pass


@pytest.mark.parametrize("backend", ["aiohttp", "httpx"])
def test_cold_opens_a_connection_per_call_and_pooled_one_for_all(
    server: LLMServer, backend: str
) -> None:
    for mode, expected in EXPECTED.items():
        server.reset()
        answered: list[None] = []
        run = anyio.run(
            measure, workload_for(server), backend, mode, partial(answered.append, None)
        )
        assert (server.connections, server.requests) == (expected, 6)
        assert run.connections == expected
        assert len(answered) == 6
        assert run.errors == {}
        assert 0 < run.setup < sum(latency or 0.0 for latency in run.latencies) <= run.total


def test_as_many_calls_are_made_at_a_time_as_was_asked_for(server: LLMServer) -> None:
    server.reset()
    run = anyio.run(
        measure, workload_for(server, calls=12, concurrency=3), "aiohttp", "pooled", ignore
    )
    assert run.errors == {}
    assert (server.connections, server.requests) == (3, 12)


def test_failed_calls_are_counted_by_class_and_the_rest_goes_on(server: LLMServer) -> None:
    server.reset()
    server.rate_limit(2)
    run = anyio.run(measure, workload_for(server), "aiohttp", "pooled", ignore)
    assert run.errors == {"HTTPStatusError 429": 2}
    assert [latency is None for latency in run.latencies] == [True] * 2 + [False] * 4


def test_an_agent_sends_its_history_along(server: LLMServer) -> None:
    messages = workload_for(server).body(2)["messages"]
    assert [message["role"] for message in messages] == [
        "system",
        *("user", "assistant") * 2,
        "user",
    ]


def test_a_report_that_nothing_can_draw_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        assert name == "matplotlib"

    monkeypatch.setattr("trunkline.cli._plan.find_spec", missing)
    result = run_compare("--html", str(tmp_path / "report.html"))
    assert result.exit_code == 2
    assert "pip install 'trunkline[plots]'" in result.output
    assert not list(tmp_path.iterdir())


def test_the_command_compares_over_the_emulated_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    json_file, html_file = tmp_path / "results.json", tmp_path / "report.html"
    files = ("--json", str(json_file), "--html", str(html_file))
    result = run_compare("--calls", "3", "--rtt", "50", *files)
    assert result.exit_code == 0, result.output
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
    assert "not a real link" in result.output
    assert "aiohttp: pooling saved" in result.output
    assert "httpx: pooling saved" in result.output
    assert "httpx: pooling saved" in html_file.read_text()
    document = json.loads(json_file.read_text())
    assert document["config"]["rtt"] == 0.05
    assert [(run["backend"], run["mode"], run["connections"]) for run in document["runs"]] == [
        (backend, mode, connections)
        for backend in available_backends()
        for mode, connections in (("cold", 3), ("pooled", 1))
    ]
    for run in document["runs"]:
        # A handshake is a round trip for TCP and one for TLS 1.3; an exchange is one more.
        if capabilities_of(run["backend"]).pooled:  # no other backend sees it
            assert run["setup"] >= run["connections"] * 0.1
        assert min(run["latencies"]) >= (0.15 if run["mode"] == "cold" else 0.05)


def test_a_server_of_ones_own_is_called_with_the_headers_and_no_value_is_shown(
    server: LLMServer, tmp_path: Path
) -> None:
    server.reset()
    json_file = tmp_path / "results.json"
    options = ("--url", server.base_url, "--ca-file", server.ca_file or "", "--calls", "2")
    headers = ("--header", "Authorization: Bearer SECRET", "--header", "X-Team:SECRET")
    result = run_compare(*options, *headers, "--backends", "aiohttp", "--json", str(json_file))
    assert result.exit_code == 0, result.output
    assert f"sends 5 requests to {server.base_url}" in result.output
    assert server.requests == 5
    assert "SECRET" not in result.output + json_file.read_text()
    assert json.loads(json_file.read_text())["config"]["headers"] == ["Authorization", "X-Team"]


def test_the_headers_reach_the_server(server: LLMServer) -> None:
    options = ("--url", server.base_url, "--ca-file", server.ca_file or "", "--calls", "1")
    result = run_compare(*options, "--backends", "aiohttp", "--header", "X-Fail-Status: 503")
    assert "its first call failed: HTTPStatusError 503" in result.output


def test_a_backend_whose_warm_up_fails_is_not_measured(server: LLMServer) -> None:
    server.reset()
    server.rate_limit(1)
    options = ("--url", server.base_url, "--ca-file", server.ca_file or "", "--calls", "2")
    result = run_compare(*options, "--backends", "aiohttp")
    assert result.exit_code == 1
    assert "aiohttp: not measured: its first call failed: HTTPStatusError 429" in result.output
    assert server.requests == 1


def test_a_failed_call_ends_the_command_with_1(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_warm_up(workload: Workload, backend: str) -> None:
        pass

    monkeypatch.setattr("trunkline.cli._compare.warm_up", no_warm_up)
    server.reset()
    server.rate_limit(1)
    options = ("--url", server.base_url, "--ca-file", server.ca_file or "", "--calls", "2")
    result = run_compare(*options, "--backends", "aiohttp")
    assert result.exit_code == 1
    assert "aiohttp, cold: 1 of 2 calls failed: HTTPStatusError 429 (1)." in result.output
    assert "aiohttp: not compared, because calls failed." in result.output


def test_a_backend_that_cannot_be_opened_is_told_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def __init__(self, config: trunkline.TransportConfig) -> None:
            raise LookupError("SECRET")

    def load(name: str) -> Any:
        return Broken if name == "httpx" else AiohttpTransport

    monkeypatch.setattr("trunkline._registry.load_backend", load)
    result = run_compare("--calls", "1", "--rtt", "0")
    assert result.exit_code == 1
    assert "httpx: not measured: it cannot be opened: LookupError" in result.output
    assert "SECRET" not in result.output
    assert "aiohttp: pooling" in result.output


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {library!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["trunkline", *{arguments!r}]
from trunkline.cli import main
main()
"""


@pytest.mark.parametrize("library", ["typer", "rich"])
def test_without_the_extra_the_command_says_how_to_install_it(library: str) -> None:
    script = WITHOUT.format(library=library, arguments=["compare"])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'trunkline[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_backend_without_its_library_is_listed_and_the_others_are_measured() -> None:
    script = WITHOUT.format(library="httpx", arguments=["compare", "--calls", "2", "--rtt", "0"])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'trunkline[httpx]'" in done.stdout
    assert "aiohttp: pooling" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
