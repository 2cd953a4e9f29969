"""`trunkline sizing`: the arithmetic, the config file it writes, what it refuses, and its guide."""

from __future__ import annotations

import re
import shlex
from math import exp
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner, Result

import trunkline
from trunkline.cli import _app  # pyright: ignore[reportPrivateUsage]
from trunkline.cli._sizing import Load, Sizing, checked

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "sizing.md"

loads = st.builds(
    Load,
    rps=st.floats(0.001, 1000),
    latency=st.floats(0.001, 300),
    burst=st.floats(1, 10),
    streams=st.none() | st.integers(1, 1000),
)


def run(command: str) -> Result:
    return CliRunner().invoke(_app(), shlex.split(command), env={"COLUMNS": "80"})


def toml_of(output: str) -> str:
    return output.partition("# trunkline.toml\n")[2]


# -- the numbers -----------------------------------------------------------------------------------


def test_requests_in_flight_are_rate_times_latency() -> None:
    load = Load(rps=40, latency=2.5, burst=1.5)

    assert (load.average, load.peak) == (100, 150)
    assert load.needed == 175  # 150 + 2 * sqrt(150) is 174.5


@pytest.mark.parametrize("in_flight", [0.1, 1, 2, 5, 17, 60, 300])
def test_the_headroom_is_enough_at_97_of_100_moments(in_flight: float) -> None:
    """With arrivals at random the number in flight is of a Poisson distribution."""
    room = Load(rps=in_flight, latency=1, burst=1).needed

    share, term = 0.0, exp(-in_flight)
    for number in range(room + 1):
        share += term
        term *= in_flight / (number + 1)
    assert share >= 0.97


def test_on_http1_each_request_in_flight_has_a_connection() -> None:
    assert Sizing.of(Load(rps=40, latency=2.5, burst=1.5)) == Sizing(
        max_connections=175, max_keepalive_connections=100, max_waiting=175, pool=2.5
    )


def test_on_http2_a_connection_carries_many_and_one_is_spare() -> None:
    assert Sizing.of(Load(rps=40, latency=2.5, burst=1.5, streams=50)) == Sizing(
        max_connections=5, max_keepalive_connections=2, max_waiting=175, pool=2.5
    )


@pytest.mark.parametrize(
    ("latency", "pool", "waiting"), [(0.05, 1.0, 60), (2.34, 2.3, 3), (60.0, 10.0, 1)]
)
def test_a_call_waits_no_longer_than_one_takes(latency: float, pool: float, waiting: int) -> None:
    load = Load(rps=1 / latency, latency=latency, burst=1)  # one in flight: room for 3
    sizes = Sizing.of(load)

    assert (sizes.pool, sizes.max_waiting) == (pool, waiting)


def test_the_last_digit_of_a_float_costs_no_connection() -> None:
    load = Load(rps=100, latency=0.07, burst=1)

    assert load.average > 7  # 7.000000000000001
    assert Sizing.of(load).max_keepalive_connections == 7


@given(loads)
def test_every_load_gets_limits_that_hold_it(load: Load) -> None:
    sizes = Sizing.of(load)

    assert sizes.max_connections * (load.streams or 1) >= load.needed >= load.peak
    assert 1 <= sizes.max_keepalive_connections <= sizes.max_connections
    assert sizes.max_waiting >= 1
    assert 1 <= sizes.pool <= 10


# -- the config file -------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", ["", " --http2", " --http2 --streams 10"])
def test_the_file_it_prints_can_be_loaded(http2: str, tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    result = run(f"sizing --rps 200 --latency 1.25 --burst 2{http2}")
    file.write_text(toml_of(result.output))

    config = trunkline.load_config(file)

    load = checked(200, 1.25, 2, bool(http2), 10 if "10" in http2 else None)
    sizes = Sizing.of(load)
    assert config.http2 is bool(http2)
    assert config.limits.max_connections == sizes.max_connections
    assert config.limits.max_keepalive_connections == sizes.max_keepalive_connections
    assert config.limits.max_waiting == sizes.max_waiting
    assert config.timeouts.pool == sizes.pool


def test_it_says_what_the_other_version_of_http_would_need() -> None:
    options = "sizing --rps 40 --latency 2.5"

    assert "With --http2 and 100 streams a connection: max_connections = 3." in run(options).output
    assert "With HTTP/1.1: max_connections = 175." in run(f"{options} --http2").output


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--rps 0 --latency 1", "--rps"),
        ("--rps -1 --latency 1", "--rps"),
        ("--rps nan --latency 1", "--rps"),
        ("--rps inf --latency 1", "--rps"),
        ("--rps many --latency 1", "--rps"),
        ("--rps 1e9 --latency 1", "--rps"),
        ("--latency 1", "--rps"),
        ("--rps 1", "--latency"),
        ("--rps 1 --latency 0", "--latency"),
        ("--rps 1 --latency nan", "--latency"),
        ("--rps 1 --latency 1 --burst 0.5", "--burst"),
        ("--rps 1 --latency 1 --burst inf", "--burst"),
        ("--rps 1 --latency 1 --streams 10", "--streams"),
        ("--rps 1 --latency 1 --http2 --streams 0", "--streams"),
        ("--rps 1 --latency 1 --http2 --streams 1.5", "--streams"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_option(options: str, named: str) -> None:
    result = run(f"sizing {options}")

    assert result.exit_code == 2
    assert f"'{named}'" in result.output


# -- the guide -------------------------------------------------------------------------------------

_CONSOLE = re.compile(r"```console\n\$ trunkline ([^\n]*)\n(.*?)```", re.DOTALL)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_guide_shows_commands() -> None:
    assert len(_CONSOLE.findall(GUIDE.read_text())) >= 2


@pytest.mark.parametrize(("command", "shown"), _CONSOLE.findall(GUIDE.read_text()))
def test_each_figure_of_the_guide_is_what_the_command_prints(command: str, shown: str) -> None:
    result = run(command)

    assert result.exit_code == 0
    assert lines_of(result.output) == lines_of(shown)
