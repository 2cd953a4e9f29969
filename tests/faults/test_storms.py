"""After hundreds of cancelled calls the next hundred are answered, and nothing is left.

`python -m tests.faults.storms` raises greater ones.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from tests.faults.storms import AT_ONCE, run, run_handshakes, storms

REQUESTS = 500
HANDSHAKES = 150


def _cases() -> Iterator[Any]:
    for storm in storms():
        missing = storm.loop != "asyncio" and importlib.util.find_spec(storm.loop) is None
        marks = [pytest.mark.skip(reason=f"{storm.loop} is not installed")] if missing else []
        yield pytest.param(storm, id="-".join(str(storm).split()), marks=marks)


@pytest.mark.parametrize("storm", list(_cases()))
def test_a_storm_of_cancelled_calls_leaves_nothing_and_hurts_nobody(storm: Any) -> None:
    counts = run(storm, REQUESTS)
    gc.collect()  # what was dropped unclosed says so now

    assert counts["cancelled"] > REQUESTS // 4
    assert counts["answered"] >= REQUESTS // 10
    assert counts["good"] == AT_ONCE


@pytest.mark.parametrize("storm", [case for case in _cases() if case.values[0].protocol == "h1"])
def test_handshakes_that_are_cancelled_leave_no_socket(storm: Any) -> None:
    counts = run_handshakes(storm.backend, storm.loop, HANDSHAKES)
    gc.collect()

    assert counts["cancelled"] > HANDSHAKES // 4
