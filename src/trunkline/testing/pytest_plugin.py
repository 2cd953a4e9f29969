"""pytest's door to the testing kit: fixtures, `--trunkline-record`, and the search for leaks.

This module knows pytest. It is loaded with it wherever Trunkline is installed, so it imports next
to nothing: what a fixture needs is imported when the fixture is used. `-p no:trunkline` keeps it
out.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from trunkline.testing._leaks import MAY_LEAK, LeakWatch

if TYPE_CHECKING:
    from trunkline import Transport
    from trunkline.testing import LLMServer, RecordingTransport, ReplayTransport, Router
    from trunkline.testing._cassette import Cassette

_OPTION = "--trunkline-record"
_LONGEST_NAME = 120
_MODES = ("none", "once", "new", "all")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("trunkline").addoption(
        _OPTION,
        choices=_MODES,
        default="none",
        help="what the fixture trunkline_cassette records: none (only replay), once (what has no "
        "file yet), new (what is not in its file yet), all (everything anew); default: none",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MAY_LEAK}: the test may leave responses and connections open"
    )
    config.pluginmanager.register(LeakWatch(), "trunkline-leaks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trunkline_backends" in metafunc.fixturenames:
        from trunkline import available_backends

        metafunc.parametrize("trunkline_backends", available_backends(), indirect=True)


@pytest.fixture
def trunkline_backends(request: pytest.FixtureRequest) -> str:
    """The name of a backend: the test runs once for each that is installed.

    One whose library is missing is skipped, and so is one that does not run on the event loop that
    anyio's plugin has chosen for the test.
    """
    from trunkline import BackendUnavailable
    from trunkline._registry import capabilities_of

    name: str = request.param
    try:
        capabilities = capabilities_of(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    if "anyio_backend" in request.fixturenames:
        loop: str = request.getfixturevalue("anyio_backend_name")
        if not {"asyncio": capabilities.asyncio, "trio": capabilities.trio}[loop]:
            pytest.skip(f"{name} does not run on {loop}")
    return name


@pytest.fixture
def llm_server() -> Generator[LLMServer]:
    """A running `LLMServer`, over plain HTTP on a port of its own."""
    from trunkline.testing import LLMServer

    with LLMServer() as server:
        yield server


@pytest.fixture
def trunkline_router() -> Generator[Router]:
    """A `Router`. The test fails if a request came that no route matched, caught or not."""
    from trunkline.testing import Router

    router = Router()
    yield router
    router.assert_all_expected()


class CassetteOfTest:
    """What the fixture `trunkline_cassette` gives: called, a transport on the test's cassette.

    Called again, another one on the same: they record into one file, and replay each exchange once.

    Attributes:
        path: "cassettes", beside the test's file, then the names of the file and of the test.
        mode: of `--trunkline-record`.
    """

    def __init__(self, path: Path, mode: str) -> None:
        self.path = path
        self.mode = mode
        self._cassette: Cassette | None = None

    def __call__(
        self, inner: Transport | None = None, **options: Any
    ) -> RecordingTransport | ReplayTransport:
        """A `RecordingTransport` around `inner`; in mode "none" a `ReplayTransport` will do.

        Args:
            inner: None for `trunkline.open_transport()`.
            options: `match`, `redaction`, `pace`.
        """
        from trunkline import open_transport
        from trunkline.testing import RecordingTransport, ReplayTransport
        from trunkline.testing._cassette import Cassette

        if self._cassette is None:
            self._cassette = Cassette(self.path, is_blank=self.mode == "all")
        if inner is None and self.mode == "none":
            return ReplayTransport(self._cassette, **options)
        mode = cast("Any", self.mode)
        return RecordingTransport(inner or open_transport(), self._cassette, mode=mode, **options)


@pytest.fixture
def trunkline_cassette(request: pytest.FixtureRequest) -> CassetteOfTest:
    """The cassette named after the test: `trunkline_cassette()` is a transport for it."""
    node = cast("pytest.Function", request.node)
    name = node.name if node.cls is None else f"{node.cls.__qualname__}.{node.name}"
    path = node.path.parent / "cassettes" / node.path.stem / f"{_file_name(name)}.json"
    return CassetteOfTest(path, cast("str", request.config.getoption(_OPTION)))


def _file_name(name: str) -> str:
    """`name` where a file may have it; else what is left of it, with a hash that tells it apart."""
    plain = re.sub(r"[^\w.\-]+", "-", name).strip("-")[:_LONGEST_NAME]
    return plain if plain == name else f"{plain}-{sha256(name.encode()).hexdigest()[:8]}"
