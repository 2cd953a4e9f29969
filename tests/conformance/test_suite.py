"""The conformance suite itself: it says what it checks, works for a stranger, and can fail."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent
from xml.etree import ElementTree

import pytest

from trunkline import Capabilities
from trunkline.testing import TransportConformance

STRANGER = """
    from trunkline.testing import TransportConformance


    class TestMine(TransportConformance):
        backend = "aiohttp"
"""

# Transports that break a promise each, and a behaviour that has to fail for it.
BROKEN = """
    import trunkline
    from trunkline import Limits, Request, TransportError
    from trunkline.testing import TransportConformance


    class Wrapped:
        def __init__(self, config):
            self.inner = trunkline.open_transport(config)

        def __getattr__(self, name):
            return getattr(self.inner, name)


    class RaisesForAStatus(Wrapped):
        async def send(self, request):
            async with await self.inner.send(request) as response:
                await response.aread()
            return response.raise_for_status()


    class FollowsRedirects(Wrapped):
        async def send(self, request):
            response = await self.inner.send(request)
            if "Location" not in response.headers or request.url.endswith("/elsewhere"):
                return response
            await response.aclose()
            return await self.inner.send(Request("GET", f"{request.origin}/elsewhere"))


    class ReadsTheBodyFirst(Wrapped):
        async def send(self, request):
            response = await self.inner.send(request)
            await response.aread()
            return response


    class AddsAHeader(Wrapped):
        async def send(self, request):
            headers = [*request.headers.items(), ("User-Agent", "broken")]
            return await self.inner.send(
                Request(request.method, request.url, headers=headers, content=request.content)
            )


    class ChangesTheMethod(Wrapped):
        async def send(self, request):
            request.method = request.method.upper()
            return await self.inner.send(request)


    class SendsTwice(Wrapped):
        async def send(self, request):
            try:
                return await self.inner.send(request)
            except TransportError:
                return await self.inner.send(request)


    class HasNoLimits(Wrapped):
        def __init__(self, config):
            super().__init__(config.model_copy(update={"limits": Limits()}))


    class StaysOpen(Wrapped):
        async def aclose(self):
            pass


    class ShowsTheUrl(Wrapped):
        async def send(self, request):
            try:
                return await self.inner.send(request)
            except TransportError as error:
                error.args = (request.url,)
                raise


    class HidesTheCause(Wrapped):
        async def send(self, request):
            try:
                return await self.inner.send(request)
            except TransportError as error:
                error.__cause__ = None
                raise error from None


    class CallsEverythingSafe(Wrapped):
        async def send(self, request):
            try:
                return await self.inner.send(request)
            except TransportError as error:
                error.replay = "safe"
                raise


    class CannotCount(Wrapped):
        def snapshot(self):
            return trunkline.PoolSnapshot()


    class TestSound(TransportConformance):
        backend = "aiohttp"


    for broken in Wrapped.__subclasses__():
        name = f"Test{broken.__name__}"
        globals()[name] = type(
            name,
            (TestSound,),
            {"open_transport": lambda self, config, broken=broken: broken(config)},
        )
    del broken
"""

HAS_TO_FAIL = {
    "RaisesForAStatus": "test_an_error_status_is_a_response",
    "FollowsRedirects": "test_redirects_are_not_followed",
    "ReadsTheBodyFirst": "test_a_body_read_to_its_end_frees_the_connection",
    "AddsAHeader": "test_a_request_without_a_body_has_no_header_but_host",
    "ChangesTheMethod": "test_the_method_is_sent_as_given",
    "SendsTwice": "test_a_post_that_may_have_been_processed_is_sent_once",
    "HasNoLimits": "test_max_waiting_zero_turns_nobody_away_who_need_not_wait",
    "StaysOpen": "test_sending_after_close_is_an_error",
    "ShowsTheUrl": "test_an_error_holds_nothing_that_is_private",
    "HidesTheCause": "test_the_exception_of_the_library_is_the_cause",
    "CallsEverythingSafe": "test_an_end_before_the_head_is_a_disconnection",
    "CannotCount": "test_origins_are_told_apart",
}


def behaviours() -> dict[str, list[str]]:
    """Each test's name, with the parts of the suite that define it."""
    parts = [part for part in inspect.getmro(TransportConformance) if part is not object]
    names = Counter(name for part in parts for name in vars(part) if name.startswith("test_"))
    return {name: [p.__name__ for p in parts if name in vars(p)] for name in names}


def run(directory: Path, source: str, *arguments: str) -> dict[str, dict[str, str | None]]:
    """Run pytest on a file, with no conftest and no settings.

    Returns:
        For each class, each test's outcome: None if it passed, else what pytest says of it.
    """
    path = directory / "test_mine.py"
    path.write_text(dedent(source))
    report = directory / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(directory)]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    ids = [f"{path}{argument}" for argument in arguments if argument.startswith("::")]
    rest = [argument for argument in arguments if not argument.startswith("::")]
    subprocess.run([*command, *(ids or [str(path)]), *rest], cwd=directory, check=False,
                   capture_output=True, timeout=120)  # fmt: skip
    outcomes: dict[str, dict[str, str | None]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        troubles = [each.get("message") for each in case if each.tag != "system-out"]
        of_class = outcomes.setdefault(case.get("classname", "").rpartition(".")[2], {})
        of_class[case.get("name", "")] = troubles[0] if troubles else None
    return outcomes


def test_there_are_more_than_sixty_behaviours() -> None:
    assert len(behaviours()) >= 80


def test_no_behaviour_hides_another_of_its_name() -> None:
    assert {name: parts for name, parts in behaviours().items() if len(parts) > 1} == {}


def test_what_a_behaviour_needs_is_a_capability() -> None:
    capabilities = {field.name for field in dataclasses.fields(Capabilities)}

    for name in behaviours():
        needed: tuple[str, ...] = getattr(getattr(TransportConformance, name), "needs", ())
        assert set(needed) <= capabilities, name


def test_two_lines_are_a_strangers_whole_test_file(tmp_path: Path) -> None:
    chosen = "test_the_method_is_sent_as_given"
    outcomes = run(tmp_path, STRANGER, f"::TestMine::{chosen}")["TestMine"]

    assert outcomes[f"{chosen}[asyncio]"] is None
    assert set(outcomes) <= {f"{chosen}[asyncio]", f"{chosen}[uvloop]"}


def test_a_behaviour_is_skipped_for_want_of_a_capability_by_name(tmp_path: Path) -> None:
    chosen = "test_a_socks_proxy_that_refuses_is_a_proxy_error"
    outcomes = run(tmp_path, STRANGER, f"::TestMine::{chosen}")["TestMine"]

    assert outcomes == {f"{chosen}[asyncio]": "backend 'aiohttp' has no capability socks"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str | None]]:
    ids = [f"::Test{transport}::{name}" for transport, name in HAS_TO_FAIL.items()]
    ids += [f"::TestSound::{name}" for name in HAS_TO_FAIL.values()]
    return run(tmp_path_factory.mktemp("broken"), BROKEN, *ids, "-k", "asyncio")


@pytest.mark.parametrize("transport", HAS_TO_FAIL)
def test_a_transport_that_breaks_a_promise_fails(
    outcomes: dict[str, dict[str, str | None]], transport: str
) -> None:
    assert any(outcomes[f"Test{transport}"].values())


def test_a_transport_that_keeps_them_passes(outcomes: dict[str, dict[str, str | None]]) -> None:
    assert len(outcomes["TestSound"]) >= len(HAS_TO_FAIL)
    assert not any(outcomes["TestSound"].values())
