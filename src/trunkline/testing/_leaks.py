"""Finds the responses and connections that a test leaves open.

This module knows pytest's hooks and which objects a test has made. It does not know fixtures, nor
how a transport finds its own leaks.

What a test makes is kept weakly until the test and its fixtures are over: `Response` and
`PooledTransport` tell of it while pytest runs, and only then. A response says when it is dropped,
too, whatever the filters for warnings are; a transport remembers what was open when its event loop
ended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from weakref import ref

import pytest

MAY_LEAK = "trunkline_may_leak"


class LeakWatch:
    """A pytest plugin: fails a test that passed but for what it leaked."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._made: dict[int, tuple[ref[Any], str]] = {}
        self._dropped: list[str] = []
        self._file: Path | None = None
        self._shared = 0
        self._has_failed = False
        self._when_loaded("trunkline._messages", self._watch_responses)
        self._when_loaded("trunkline.pool._transport", self._watch_transports)

    # -- what is made ------------------------------------------------------------------------------

    def _when_loaded(self, name: str, watch: Callable[[ModuleType], None]) -> None:
        if name in sys.modules:
            watch(sys.modules[name])
        else:
            finder = _WhenLoaded(name, watch)
            sys.meta_path.insert(0, finder)
            self._undo.append(lambda: sys.meta_path.remove(finder))

    def _watch_responses(self, module: ModuleType) -> None:
        self._undo.append(_after(module.Response, "__init__", self._remember))
        self._undo.append(_before(module.Response, "__del__", self._note_dropped))

    def _watch_transports(self, module: ModuleType) -> None:
        self._undo.append(_after(module.PooledTransport, "__init__", self._remember))

    def _remember(self, made: object) -> None:
        if self._file is not None and not self._shared:
            self._made[id(made)] = ref(made), _line_in(self._file)

    def _note_dropped(self, response: Any) -> None:
        _, where = self._made.pop(id(response), (None, None))
        if where is not None and _is_open(response):
            self._dropped.append(f"  {_name(response)}{where} was dropped: unclosed response")

    def _found(self) -> list[str]:
        """What is leaked, a line for each; it is not told of again."""
        made = [(kept(), where) for kept, where in self._made.values()]
        lines = [line for one, where in made if one is not None for line in _take(one, where)]
        found = [*self._dropped, *lines]
        self._made.clear()
        self._dropped.clear()
        return found

    def pytest_unconfigure(self) -> None:
        while self._undo:
            self._undo.pop()()

    # -- by whom -----------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._made.clear()
        self._dropped.clear()
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
        try:
            result = yield
        finally:
            leaks = self._found()
        # One that has failed already has a better reason to tell of.
        if leaks and not self._has_failed and item.get_closest_marker(MAY_LEAK) is None:
            pytest.fail("\n".join(["the test leaks:", *leaks]), pytrace=False)
        return result


class _WhenLoaded(MetaPathFinder):
    """Has `then` called with the module `name` as soon as somebody has loaded it."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self._name else None
        if spec is not None and spec.loader is not None:
            _after(spec.loader, "exec_module", self._then)
        return spec


def _after(owner: Any, name: str, tell: Callable[[Any], None]) -> Callable[[], None]:
    """Have `tell` called with the first argument of `owner.name` after it; the result ends that."""
    original = getattr(owner, name)

    @wraps(original)
    def telling(subject: Any, *args: Any, **options: Any) -> None:
        original(subject, *args, **options)
        tell(subject)

    setattr(owner, name, telling)
    return lambda: setattr(owner, name, original)


def _before(owner: Any, name: str, tell: Callable[[Any], None]) -> Callable[[], None]:
    """The same, before it."""
    original = getattr(owner, name)

    @wraps(original)
    def telling(subject: Any) -> None:
        tell(subject)
        original(subject)

    setattr(owner, name, telling)
    return lambda: setattr(owner, name, original)


def _line_in(file: Path) -> str:
    """The line of `file` that is being run, if any."""
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    name = str(file)
    while frame is not None and frame.f_code.co_filename != name:
        frame = frame.f_back
    return "" if frame is None else f" ({file.name}:{frame.f_lineno})"


def _is_open(response: Any) -> bool:
    """Whether it holds something."""
    from trunkline._bodies import LocalStream

    return not getattr(response, "is_closed", True) and not isinstance(
        response._stream, LocalStream
    )


def _name(response: Any) -> str:
    return f"{response!r}" + (f" from {response.request.origin}" if response.request else "")


def _take(made: Any, where: str) -> list[str]:
    """What `made` leaks, in lines; a response is given back, as if it had been dropped."""
    from trunkline import Response

    if not isinstance(made, Response):
        return [f"  a transport{where} {leak}" for leak in _left_open(made)]
    if not _is_open(made):
        return []
    # Or it would say so once more, and in another test, when it is dropped at last.
    made.is_closed = True
    made._stream.abandon()  # pyright: ignore[reportPrivateUsage]
    return [f"  {_name(made)}{where} is neither read to its end nor closed"]


def _left_open(transport: Any) -> Iterator[str]:
    snapshot, ended = transport.snapshot(), transport.left_open
    if number := snapshot.open + snapshot.connecting:
        yield f"is not closed, with {number} connections open: {', '.join(snapshot.origins)}"
    if ended:
        origins = ", ".join(sorted(set(ended)))
        yield f"was not closed before its loop, with {len(ended)} connections open: {origins}"
