"""The lab itself: what is wrong with a client is found."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from tests.faults._judge import faults_found
from tests.faults._lab import OTHERS, Answers, Ask, Fails, Fault, Reply, scripted
from tests.faults._play import play
from tests.faults.clients import OURS, Ours

from trunkline import ReadTimeout, RemoteDisconnected, Timeouts
from trunkline.testing import Certificates
from trunkline.testing._script import expect_request, fin, response, send, serve

_KIND = OURS[0]
_PAGE = response(200, b"page")
_RIGHT = Fault(name="none", stage=scripted([expect_request(), send(_PAGE)]), expect=Answers())
_GONE = Fails(error=RemoteDisconnected, phase="headers", replay="if_idempotent", started=False)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with Certificates() as made:
        yield made


def _found(
    certificates: Certificates,
    fault: Fault,
    make: Callable[[dict[str, Any], Timeouts], Ours] | None = None,
) -> list[str]:
    async def run() -> list[str]:
        return faults_found(fault, await play(fault, make or _KIND.open, certificates, patience=1))

    return anyio.run(run)


def _fault(expect: Fails | Answers, *, bounded_by: str | None = None) -> Fault:
    stage = scripted([expect_request(), fin()])
    return Fault(name="FIN", stage=stage, expect=expect, bounded_by=bounded_by)


def test_a_client_that_does_as_it_should_is_not_blamed(certificates: Certificates) -> None:
    assert _found(certificates, _fault(_GONE)) == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (Answers(), "expected an answer"),
        (Fails(error=ReadTimeout, phase="headers"), "expected ['ReadTimeout']"),
        (Fails(error=RemoteDisconnected, phase="body"), "phase"),
        (Fails(error=RemoteDisconnected, phase="headers", replay="safe"), "replay"),
        (Fails(error=RemoteDisconnected, phase="headers", sent=False), "request_sent"),
        (Fails(error=RemoteDisconnected, phase="headers", started=True), "response_started"),
        (Fails(error=RemoteDisconnected, phase="headers", reused=True), "connection_reused"),
        (Fails(error=RemoteDisconnected, phase="headers", attempts=2), "attempts"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_each_fact_is_looked_at(
    certificates: Certificates, wrong: Fails | Answers, word: str
) -> None:
    assert any(word in each for each in _found(certificates, _fault(wrong)))


def test_another_answer_is_found(certificates: Certificates) -> None:
    fault = Fault(name="other", stage=scripted(serve(_PAGE)), expect=Answers(body=b"other"))

    found = _found(certificates, fault)

    assert "expected Answers" in found[0]
    assert "a good request after it: wrong answer" in found


class _Leaking(Ours):
    """Leaves a socket behind at each request."""

    kept: list[socket.socket]

    async def fetch(self, url: str, ask: Ask) -> Reply:
        self.kept = [*getattr(self, "kept", []), socket.socket()]
        return await super().fetch(url, ask)


def test_a_socket_that_is_left_is_found(certificates: Certificates) -> None:
    clients: list[_Leaking] = []

    def make(options: dict[str, Any], timeouts: Timeouts) -> Ours:
        clients.append(_Leaking("aiohttp", options, timeouts))
        return clients[0]

    found = _found(certificates, _RIGHT, make)
    for each in clients[0].kept:
        each.close()

    assert any("sockets" in each for each in found)


class _Hanging(Ours):
    async def fetch(self, url: str, ask: Ask) -> Reply:
        if ask.method == "POST":
            await anyio.sleep(OTHERS * 10)
        return await super().fetch(url, ask)


def test_a_call_that_does_not_end_is_found(certificates: Certificates) -> None:
    def make(options: dict[str, Any], timeouts: Timeouts) -> Ours:
        return _Hanging("aiohttp", options, timeouts)

    assert "it hung" in _found(certificates, _RIGHT, make)


class _Twice(Ours):
    """Sends everything a second time."""

    async def fetch(self, url: str, ask: Ask) -> Reply:
        await super().fetch(url, ask)
        return await super().fetch(url, ask)


def test_a_call_that_is_processed_twice_is_found(certificates: Certificates) -> None:
    def make(options: dict[str, Any], timeouts: Timeouts) -> Ours:
        return _Twice("aiohttp", options, timeouts)

    served = Fault(name="served", stage=scripted(serve(_PAGE)), expect=Answers())

    assert any("2 times" in each for each in _found(certificates, served, make))
