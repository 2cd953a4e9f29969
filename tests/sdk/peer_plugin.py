"""A pytest plugin that puts Trunkline under another project's tests.

This module knows where httpx and httpx2 take their transports from. It does not know which tests
are run: `peer_suites` does. Two environment variables say what to do: PEER_FAMILY is the library,
PEER_BACKEND our backend, or "own" to leave the library's transports where they are. What comes of
each test is written to PEER_REPORT, as JSON.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from trunkline import TransportConfig, UnsupportedOption
from trunkline.adapters._options import SHAPING, make_config

FAMILY = os.environ["PEER_FAMILY"]
BACKEND = os.environ["PEER_BACKEND"]

sent: set[str] = set()
results: dict[str, tuple[str, str]] = {}
running: list[str] = [""]


def pytest_configure(config: pytest.Config) -> None:
    """Swap, before any test module is imported.

    Only what clients make by themselves: our own backend on httpx needs the library's.
    """
    clients = import_module(f"{FAMILY}._client")
    names = {"AsyncHTTPTransport": "handle_async_request", "HTTPTransport": "handle_request"}
    for name, method in names.items():
        base = getattr(clients, name) if BACKEND == "own" else swapped(name)
        setattr(clients, name, counting(base, method))


def swapped(name: str) -> Any:
    """A class of ours that takes the arguments of the library's."""
    adapter = import_module(f"trunkline.adapters.{FAMILY}")
    base = adapter.AsyncTransport if name.startswith("Async") else adapter.SyncTransport

    def init(self: Any, **options: Any) -> None:
        given = TransportConfig(backend=BACKEND, uds=options.pop("uds", None))
        shaping = {key: options.pop(key) for key in SHAPING if key in options}
        if any(options.values()):
            raise UnsupportedOption(f"{', '.join(options)}: not an option of ours")
        base.__init__(self, make_config(given, shaping))

    return type(name, (base,), {"__init__": init})


def counting(base: Any, method: str) -> Any:
    """The transport, which notes the tests that send through it."""

    def send(self: Any, request: Any) -> Any:
        sent.add(running[0])
        return getattr(base, method)(self, request)

    return type(base.__name__, (base,), {method: send})


def pytest_runtest_logstart(nodeid: str) -> None:
    running[0] = nodeid


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        results[report.nodeid] = (report.outcome, getattr(crash, "message", "").partition("\n")[0])


def pytest_sessionfinish() -> None:
    report = {
        test: {"outcome": outcome, "why": why, "sent": test in sent}
        for test, (outcome, why) in results.items()
    }
    Path(os.environ["PEER_REPORT"]).write_text(json.dumps(report), encoding="utf-8")
