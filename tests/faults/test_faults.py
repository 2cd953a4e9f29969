"""Every fault on every backend and loop: the right error or answer, in time, with nothing left."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from tests.faults import table
from tests.faults._judge import faults_found
from tests.faults._lab import Ask, Fails, Fault
from tests.faults._play import Outcome, play
from tests.faults.catalogue import CHAPTERS, FAULTS
from tests.faults.clients import OURS, Kind

from trunkline.testing import Certificates
from trunkline.testing._servers import THREAD_NAME

_LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with Certificates() as made:
        yield made


def _cases() -> Iterator[Any]:
    for kind in OURS:
        for loop in _LOOPS:
            for _, groups in CHAPTERS:
                for group in groups:
                    for fault in group.faults:
                        if _plays(kind, loop, fault, is_parsing=group.is_parsing):
                            name = f"{kind.name}-{loop}-{fault.name}"
                            yield pytest.param(fault, kind, loop, id=name)


def _plays(kind: Kind, loop: str, fault: Fault, *, is_parsing: bool) -> bool:
    if loop != "asyncio" and (is_parsing or importlib.util.find_spec(loop) is None):
        return False
    if loop == "trio" and ("trio" not in kind.can or "asyncio" in fault.needs):
        return False
    return kind.plays(fault)


@pytest.mark.parametrize(("fault", "kind", "loop"), list(_cases()))
def test_what_a_caller_must_see(
    fault: Fault, kind: Kind, loop: str, certificates: Certificates
) -> None:
    async def run() -> Outcome:
        return await play(fault, kind.open, certificates)

    outcome = anyio.run(run, **_LOOPS[loop])

    assert faults_found(fault, outcome) == []


_SECRET = "the-callers-secret"


def _one_of_each_outcome() -> list[Any]:
    """A fault for each error that is expected of any."""
    found: dict[object, Fault] = {}
    for fault in FAULTS:
        for expected in fault.allowed:
            error = expected.error if isinstance(expected, Fails) else None
            found.setdefault(error, fault)
    return [pytest.param(fault, id=fault.name) for fault in found.values()]


@pytest.mark.parametrize("fault", _one_of_each_outcome())
@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_no_secret_is_told(
    fault: Fault, kind: Kind, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a header's value, a query or a body nothing is in an error or a log."""
    if not kind.plays(fault):
        pytest.skip("the backend does not have what the fault needs")
    ask = replace(
        fault.ask,
        path=f"{fault.ask.path}?key={_SECRET}",
        headers=(*fault.ask.headers, ("Authorization", _SECRET), ("Cookie", _SECRET)),
        content=_SECRET.encode() if fault.ask.content == Ask().content else fault.ask.content,
    )
    caplog.set_level(logging.DEBUG)

    async def run() -> Outcome:
        return await play(replace(fault, ask=ask), kind.open, certificates)

    outcome = anyio.run(run)

    ours = [r.getMessage() for r in caplog.records if r.threadName != THREAD_NAME]
    assert _SECRET not in f"{outcome.error} {outcome.error!r} {ours}"


def test_each_fault_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in FAULTS]

    assert sorted(set(names)) == sorted(names)


def test_the_page_lists_every_fault() -> None:
    names = [
        line.removeprefix("| ").partition(" | ")[0]
        for line in table.PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]

    missing = [fault.name for fault in FAULTS if table.name_of(fault) not in names]
    assert missing == [], "run `make fault-table`"


def test_the_page_has_nothing_of_ours_that_a_caller_must_not_see() -> None:
    """Cells of Trunkline's backends are as the tests want them."""
    rows = [
        line.strip("| ").split(" | ")
        for line in table.PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    names = {table.name_of(fault) for fault in FAULTS}
    ours = [cell for row in rows if row[0] in names for cell in row[1 : 1 + len(OURS)]]

    assert [cell for cell in ours if "**" in cell] == []
