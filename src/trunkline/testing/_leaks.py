"""Finds the responses and connections that a test leaves open.

This module knows pytest's hooks and which objects a test has made. It does not know fixtures, nor
how a transport finds its own leaks.

A response that is dropped while it is open says so itself, in a `ResourceWarning`: two filters make
that an error of the test. One that is still held, and a connection that is still open once the
test and its fixtures are over, are found by keeping, weakly, what the test made: `Response` and
`PooledTransport` tell of it while pytest runs, and only then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import pytest

MAY_LEAK = "trunkline_may_leak"
# What is watched; imported for it only where the tests import trunkline.
_WATCHED = (("trunkline._messages", "Response"), ("trunkline.pool._transport", "PooledTransport"))
_FILTERS = (
    "error:unclosed response <Response:ResourceWarning",
    "error:(?s)Exception .*unclosed response <Response:pytest.PytestUnraisableExceptionWarning",
)


class LeakWatch:
    """A pytest plugin: fails a test that passed but for what it leaked."""

    def __init__(self, config: pytest.Config) -> None:
        self._undo: dict[str, Callable[[], None]] = {}
        self._made: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._file: Path | None = None
        self._shared = 0
        self._has_failed = False
        for line in _FILTERS:
            config.addinivalue_line("filterwarnings", line)

    # -- what is made ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Be told of what is made from now on, of the classes that are loaded."""
        for module, name in _WATCHED:
            if name not in self._undo and module in sys.modules:
                kind = getattr(sys.modules[module], name)
                self._undo[name] = _tell_of(kind, self._remember)

    def _remember(self, made: object) -> None:
        if self._file is not None and not self._shared:
            self._made[made] = _line_in(self._file)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
        trunkline = sys.modules["trunkline"]
        # By identity: what a stranger's module holds may compare as it likes.
        if any(value is trunkline for module in modules for value in vars(module).values()):
            for module, _ in _WATCHED:
                import_module(module)

    def pytest_unconfigure(self) -> None:
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    # -- by whom -----------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._watch()
        self._made.clear()
        self._file, self._has_failed = item.path, False
        try:
            return (yield)
        finally:
            self._file = None

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What a fixture makes for more tests than one may outlast this one."""
        is_shared = fixturedef.scope != "function"
        self._shared += is_shared
        try:
            return (yield)
        finally:
            self._shared -= is_shared

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        self._has_failed = self._has_failed or call.excinfo is not None
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        result = yield
        leaks = [line for made, where in list(self._made.items()) for line in _take(made, where)]
        # One that has failed already has a better reason to tell of.
        if leaks and not self._has_failed and item.get_closest_marker(MAY_LEAK) is None:
            pytest.fail("\n".join(["the test leaks:", *leaks]), pytrace=False)
        return result


def _tell_of(kind: Any, tell: Callable[[object], None]) -> Callable[[], None]:
    """Have `tell` called with each new object of `kind`; the function returned ends it."""
    init = kind.__init__

    @wraps(init)
    def telling_init(self: object, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        tell(self)

    def undo() -> None:
        kind.__init__ = init

    kind.__init__ = telling_init
    return undo


def _line_in(file: Path) -> str:
    """The line of `file` that is being run, if any."""
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    name = str(file)
    while frame is not None and frame.f_code.co_filename != name:
        frame = frame.f_back
    return "" if frame is None else f" ({file.name}:{frame.f_lineno})"


def _take(made: Any, where: str) -> list[str]:
    """What `made` leaks, in a line; a response is given back, as if it had been dropped."""
    from trunkline import Response
    from trunkline._bodies import LocalStream

    if not isinstance(made, Response):
        snapshot = made.snapshot()
        number = snapshot.open + snapshot.connecting
        origins = ", ".join(snapshot.origins)
        leak = f"  a transport{where} is not closed, with {number} connections open: {origins}"
        return [leak] if number else []
    stream = made._stream  # pyright: ignore[reportPrivateUsage]
    if made.is_closed or isinstance(stream, LocalStream):
        return []
    # Or it would say so once more, and in another test, when it is dropped at last.
    made.is_closed = True
    stream.abandon()
    origin = f" from {made.request.origin}" if made.request is not None else ""
    return [f"  {made!r}{origin}{where} is neither read to its end nor closed"]
