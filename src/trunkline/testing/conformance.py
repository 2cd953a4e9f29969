"""A backend's report card: `python -m trunkline.testing.conformance NAME`.

Runs the conformance suite on an installed backend and says what it keeps of the contract, promise
by promise; what it was not asked for want of a capability; and what it breaks. This module knows
pytest and the numbers of the promises. It does not know the behaviours, or any backend; needs
`pip install 'trunkline[testing]'`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from trunkline._contract import Capabilities
from trunkline._errors import BackendUnavailable
from trunkline._registry import available_backends, capabilities_of
from trunkline.testing._card import Behaviour as Behaviour, Card as Card, as_markdown, as_text
from trunkline.testing._promises import promise_of

# Which capability it takes.
_LOOPS = {"asyncio": "asyncio", "uvloop": "asyncio", "trio": "trio"}
_SUITE = """
from trunkline.testing import TransportConformance


class TestBackend(TransportConformance):
    backend = {name!r}
    loops = {loops!r}
    patience = {patience!r}
"""
# A leak is a broken promise; what else a library warns of is not.
_SETTINGS = """
[pytest]
markers =
    trunkline_may_leak: for the plugin, which is not loaded here
filterwarnings =
    error::ResourceWarning
    error::pytest.PytestUnraisableExceptionWarning
    error::pytest.PytestUnhandledThreadExceptionWarning
    error:coroutine .* was never awaited:RuntimeWarning
"""


def examine(
    name: str, *, loops: Sequence[str] = (), select: str = "", patience: float = 30.0
) -> Card:
    """Run the suite on the backend of this name; takes about a minute for each event loop.

    Args:
        name: of an entry point in the group `trunkline.backends`.
        loops: of "asyncio", "uvloop" and "trio"; every one of the backend's if empty.
        select: which behaviours, in the words of pytest's `-k`; all if empty.
        patience: seconds after which a behaviour that waits for what never comes has failed.

    Raises:
        BackendUnavailable: there is no such backend, it is broken, or its library is missing.
        ValueError: `loops` are none that it can run on here, or no behaviour is called `select`.
    """
    capabilities = _capabilities(name)
    _check_loops(capabilities, loops)
    collector = _Collector(name)
    with TemporaryDirectory(prefix="trunkline-conformance-") as directory:
        # A name of its own: a module is imported once in a process, a suite once for each card.
        suite = Path(directory, f"test_{uuid4().hex}.py")
        settings = Path(directory, "pytest.ini")
        suite.write_text(
            _SUITE.format(name=name, loops=tuple(loops), patience=patience), encoding="utf-8"
        )
        settings.write_text(_SETTINGS, encoding="utf-8")
        options = ["--disable-plugin-autoload", "-p", "anyio.pytest_plugin"]
        options += ["-p", "no:terminal", "-p", "no:cacheprovider", "-c", str(settings)]
        options += ["--rootdir", directory, "--import-mode=importlib", "-k", select]
        with _environment_without("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            code = pytest.main([str(suite), *options], plugins=[collector])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise ValueError(f"-k: no behaviour is called {select!r}")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"the suite did not run: pytest ended with {code!r}{collector.trouble}")
    return Card(capabilities, tuple(collector.behaviours.values()))


def _capabilities(name: str) -> Capabilities:
    try:
        return capabilities_of(name)
    except BackendUnavailable:
        raise
    except Exception as error:  # its module may do anything
        why = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"backend {name!r} cannot be loaded: {why}") from error


def _check_loops(capabilities: Capabilities, loops: Sequence[str]) -> None:
    """Refuse what would leave nothing to run."""
    for loop in loops:
        if loop not in _LOOPS:
            raise ValueError(f"--loops: {loop!r} is none of {', '.join(_LOOPS)}")
        if not getattr(capabilities, _LOOPS[loop]):
            raise ValueError(f"--loops: {capabilities.name} does not run on {loop}")
        if find_spec(loop) is None:
            raise ValueError(f"--loops: {loop} is not installed: pip install {loop}")
    if not any(getattr(capabilities, _LOOPS[loop]) and find_spec(loop) for loop in _LOOPS):
        raise ValueError(f"{capabilities.name}: no event loop that it runs on is installed")


@contextmanager
def _environment_without(*names: str) -> Generator[None]:
    """What the caller's environment tells pytest is for the caller's own tests."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


class _Collector:
    """A plugin of pytest that keeps what came of each behaviour, and shows how far it is."""

    def __init__(self, name: str) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.trouble = ""
        self._name = name
        self._done = self._total = 0
        self._seen: dict[str, tuple[Behaviour, str]] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.trouble = f": {report.longreprtext}"

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)
        for item in session.items:
            assert isinstance(item, pytest.Function)
            name, suite = item.originalname, item.cls
            assert suite is not None
            if name not in self.behaviours:
                self.behaviours[name] = Behaviour(name, promise_of(suite, name))
            self._seen[item.nodeid] = self.behaviours[name], item.name.removeprefix(name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        behaviour, run = self._seen[report.nodeid]
        if report.when == "call" or report.outcome != "passed":
            behaviour.add(report.outcome, run, _told(report))
        if report.when == "teardown":
            self._done += 1
            if sys.stderr.isatty():
                print(f"\r{self._name}: {self._done}/{self._total} ", end="", file=sys.stderr)

    def pytest_sessionfinish(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)


def _told(report: pytest.TestReport) -> str:
    """The last word on a test: why it was skipped, or the error it failed with."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text: str = getattr(crash, "message", "") or report.longreprtext
    return text.strip().partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if a behaviour failed, 2 if a backend cannot be examined."""
    given = _parser().parse_args(arguments)
    cards: list[Card] = []
    names = given.names or available_backends()
    for name in names:
        try:
            card = examine(name, loops=given.loops, select=given.k, patience=given.patience)
        except (BackendUnavailable, ValueError) as error:
            print(error, file=sys.stderr)
        else:
            cards.append(card)
            print(as_text(card))
    if given.markdown is not None:
        given.markdown.write_text(as_markdown(cards, given.loops), encoding="utf-8")
    if len(cards) < len(names):
        return 2
    return 1 if any(card.of("failed") for card in cards) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trunkline.testing.conformance",
        description="Run the conformance suite on installed backends, and print report cards.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="a backend; default: every one")
    parser.add_argument("-k", metavar="WORDS", default="", help="only these behaviours, as pytest")
    on = f"{', '.join(_LOOPS)}; default: all that the backend runs on"
    parser.add_argument("--loops", metavar="LOOP,...", type=_loops, default=(), help=on)
    waiting = "how long a behaviour may wait for what never comes; default: 30"
    parser.add_argument("--patience", metavar="SECONDS", type=float, default=30.0, help=waiting)
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the cards there too")
    return parser


def _loops(text: str) -> tuple[str, ...]:
    loops = tuple(text.split(","))
    for loop in loops:
        if loop not in _LOOPS:
            raise argparse.ArgumentTypeError(f"{loop!r} is none of {', '.join(_LOOPS)}")
    return loops


if __name__ == "__main__":
    sys.exit(main())
