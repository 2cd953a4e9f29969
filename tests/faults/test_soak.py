"""The soak test, for a few seconds; `make soak` goes on for ten minutes."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from tests.faults.soak import MEMORY, MIB, Report, run

SECONDS = 8.0


def test_a_short_soak_is_good(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    # In a process of its own: what other tests have left of memory is not the soak's.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        report = pool.submit(run, SECONDS, seed=1).result()
        pool.submit(gc.collect).result()  # what was dropped unclosed says so now

    assert "Warning: " not in capfd.readouterr().err
    assert report.is_good, str(report)
    assert report.restarts > 0
    assert report.cancelled > 0
    assert report.answered > report.requests // 2
    # The faults came about.
    assert len(report.errors) >= 6, report.errors


FLAT = [100 * MIB] * 30


@pytest.mark.parametrize(
    "report",
    [
        Report(unexplained=["an error"], memory=FLAT),
        Report(mismatched=["an answer"], memory=FLAT),
        Report(memory=[100 * MIB + number * MEMORY // 15 for number in range(30)]),
        Report(memory=FLAT, descriptors=list(range(30))),
    ],
    ids=["unexplained", "mismatched", "memory", "descriptors"],
)
def test_what_must_not_be_makes_it_fail(report: Report) -> None:
    assert not report.is_good
    assert str(report).endswith("NOT GOOD")


def test_what_stays_flat_is_good() -> None:
    assert Report(memory=FLAT, descriptors=[20, 21, 22] * 10).is_good
