"""The report card: what passes, what fails and whose promise that is, what was not asked for.

Knows the command. The backend it examines is a stranger's, found by its entry point.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from trunkline import Transport
from trunkline.testing import TransportConformance, conformance
from trunkline.testing._promises import PROMISES, promise_of

BACKEND = """
    import trunkline

    class ForgetfulTransport(trunkline.AiohttpTransport):
        capabilities = trunkline.Capabilities(name="forgetful")

        async def send(self, request):
            response = await super().send(request)
            response.status_code = 200
            return response
"""
CHOSEN = (
    "test_an_error_status_is_a_response or test_the_method_is_sent_as_given"
    " or test_a_socks_proxy_that_refuses_is_a_proxy_error"
)
WITHOUT = "hypothesis", "uvloop", "trio", "typer", "rich"
COMMAND = f"""
import runpy, sys
for name in {WITHOUT!r}:
    sys.modules[name] = None
runpy.run_module("trunkline.testing.conformance", run_name="__main__", alter_sys=True)
"""


def install(site: Path) -> None:
    """What an installer leaves of a package with one module and one entry point."""
    info = site / "forgetful-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful\nVersion: 1\n")
    door = "[trunkline.backends]\nforgetful = forgetful:ForgetfulTransport\n"
    (info / "entry_points.txt").write_text(door)
    (site / "forgetful.py").write_text(dedent(BACKEND))


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, on a machine that has only what `trunkline[testing]` brings."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, int]:
    """The card on the terminal, the one on the page, and the exit code."""
    site = tmp_path_factory.mktemp("site")
    install(site)
    page = site / "cards.md"
    done = run(site, "forgetful", "-k", CHOSEN, "--markdown", str(page))
    assert page.is_file(), done.stderr
    return done.stdout, page.read_text(encoding="utf-8"), done.returncode


def test_a_card_counts_the_behaviours(examined: tuple[str, str, int]) -> None:
    card, page, _ = examined

    summary = "3 behaviours in 8 runs: 1 passed, 1 failed, 1 skipped"
    assert f"forgetful: {summary}\n" in card
    assert f"{summary}.\n" in page


def test_a_behaviour_that_fails_names_the_promise_it_breaks(
    examined: tuple[str, str, int],
) -> None:
    card, page, code = examined

    assert code == 1
    assert "FAILED test_an_error_status_is_a_response\n  breaks promise 2: A status is" in card
    assert "  [asyncio-404] AssertionError: assert (200, b" in card
    assert "- promise 2: `test_an_error_status_is_a_response`\n" in page


def test_what_is_skipped_for_want_of_a_capability_is_said(examined: tuple[str, str, int]) -> None:
    for text in examined[:2]:
        assert "1 backend 'forgetful' has no capability socks\n" in text


def test_the_page_has_a_row_for_each_promise(examined: tuple[str, str, int]) -> None:
    rows = [line for line in examined[1].splitlines() if line.startswith("| ")]

    assert [row.split(".")[0] for row in rows[1:-1]] == [f"| {number}" for number in PROMISES]
    assert rows[2].endswith("a `Response`. | 0 (1 failed) |")
    assert rows[-1] == "| **All** | **1 (1 failed, 1 skipped)** |"


def test_one_command_makes_a_card_of_each_backend(tmp_path: Path) -> None:
    install(tmp_path)
    done = run(tmp_path, "aiohttp", "forgetful", "-k", "test_an_error_status_is_a_response")

    assert "aiohttp: 1 behaviours in 6 runs: 1 passed, 0 failed" in done.stdout
    assert "forgetful: 1 behaviours in 6 runs: 0 passed, 1 failed" in done.stdout


def test_a_backend_that_keeps_what_was_asked_ends_with_zero(tmp_path: Path) -> None:
    install(tmp_path)
    done = run(tmp_path, "forgetful", "-k", "test_the_method_is_sent_as_given")

    assert (done.returncode, done.stderr) == (0, "")
    assert "FAILED" not in done.stdout


def test_a_backend_that_is_not_there_is_an_error_that_names_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert conformance.main(["nonesuch"]) == 2
    assert "there is no 'nonesuch'; installed are: aiohttp, httpx" in capsys.readouterr().err


def test_a_suite_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    install(tmp_path)
    done = run(tmp_path, "forgetful", "-k", "nothing_is_called_so")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "-k: no behaviour is called 'nothing_is_called_so'\n"


@pytest.mark.parametrize(
    ("loops", "why"),
    [
        ("asynci", "'asynci' is none of asyncio, uvloop, trio"),
        ("asyncio,", "'' is none of asyncio, uvloop, trio"),
        ("", "'' is none of asyncio, uvloop, trio"),
        ("trio", "--loops: aiohttp does not run on trio"),
    ],
)
def test_loops_that_would_leave_nothing_to_run_are_an_error(
    loops: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = conformance.main(["aiohttp", "--loops", loops])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert why in capsys.readouterr().err


def test_a_loop_that_is_not_installed_is_an_error(tmp_path: Path) -> None:
    install(tmp_path)
    done = run(tmp_path, "forgetful", "--loops", "uvloop")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--loops: uvloop is not installed: pip install uvloop\n"


def test_a_broken_backend_is_told_of_and_the_others_are_examined(tmp_path: Path) -> None:
    install(tmp_path)
    door = "broken = broken_one:Transport\nwrong = forgetful:Nonesuch\n"
    with (tmp_path / "forgetful-1.dist-info" / "entry_points.txt").open("a") as file:
        file.write(door)
    (tmp_path / "broken_one.py").write_text("raise KeyError('at import')")
    page = tmp_path / "cards.md"
    names = ("broken", "forgetful", "wrong")
    done = run(tmp_path, *names, "-k", "method_is_sent_as_given", "--markdown", str(page))

    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == "backend 'broken' cannot be loaded: KeyError: 'at import'"
    assert second.startswith("backend 'wrong' cannot be loaded: AttributeError: ")
    assert "1 passed" in done.stdout
    assert "1 passed" in page.read_text(encoding="utf-8")


def test_what_the_environment_tells_pytest_is_not_for_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    install(tmp_path)
    done = run(tmp_path, "forgetful", "-k", "test_the_method_is_sent_as_given")

    assert (done.returncode, done.stderr) == (0, "")


def test_the_promises_are_those_of_the_contract() -> None:
    assert list(PROMISES) == list(range(1, len(PROMISES) + 1))
    for text in PROMISES.values():
        assert text in " ".join((Transport.__doc__ or "").split())


def test_each_promise_has_behaviours_and_each_behaviour_a_promise() -> None:
    behaviours = [name for name in dir(TransportConformance) if name.startswith("test_")]
    assert all(inspect.isfunction(getattr(TransportConformance, name)) for name in behaviours)

    assert {promise_of(TransportConformance, name) for name in behaviours} == set(PROMISES)
