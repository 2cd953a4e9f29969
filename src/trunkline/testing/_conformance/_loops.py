"""One transport and many event loops: one after the other, at the same time, and gone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import pytest

from trunkline._config import Limits, Tls
from trunkline._contract import Transport
from trunkline._errors import TransportClosed, TransportError
from trunkline._messages import Request, Response
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._base import PATIENCE, Conformance, needs
from trunkline.testing._conformance._helpers import counts, info, until
from trunkline.testing._conversation import ReceivedRequest
from trunkline.testing._promises import keeps
from trunkline.testing._script import expect_request, hold, response, send, serve, start_tls, wait
from trunkline.testing._servers import ScriptedServer

PAGE = response(200, b"page")
UNFINISHED = [expect_request(), send(PAGE[:-1]), hold()]

Run: TypeAlias = Callable[..., Any]
"""Runs an async function to its end in an event loop of its own, of the test's kind."""


class Loops(Conformance):
    promise = 16

    # -- one after the other -----------------------------------------------------------------------

    def test_a_transport_serves_one_loop_after_the_other(self, in_a_loop: Run) -> None:
        with ScriptedServer(serve(PAGE)) as server:
            transport = self.open_transport(self.config())
            for _ in range(3):
                assert in_a_loop(_fetch, transport, server.url).content == b"page"

            assert len(server.requests) == server.connections == 3

    @needs("asyncio", "trio")
    def test_a_transport_serves_loops_of_different_kinds(self, in_a_loop: Run) -> None:
        pytest.importorskip("trio")
        with ScriptedServer(serve(PAGE)) as server:
            transport = self.open_transport(self.config())
            for other in ("trio", "asyncio"):
                assert in_a_loop(_fetch, transport, server.url).content == b"page"
                assert anyio.run(_fetch, transport, server.url, backend=other).content == b"page"

    def test_a_loop_does_not_see_what_another_has_left(self, in_a_loop: Run) -> None:
        async def look() -> tuple[int, int, int, int, int]:
            before = counts(transport.snapshot())
            await _fetch(transport, server.url)
            if transport.capabilities.pooled:
                assert transport.snapshot().created == 1
            return before

        with ScriptedServer(serve(PAGE)) as server:
            transport = self.open_transport(self.config())
            for _ in range(2):
                assert in_a_loop(look) == (0, 0, 0, 0, 0)
            assert server.connections == 2

    def test_the_connections_of_a_loop_are_closed_with_it(self, in_a_loop: Run) -> None:
        with ScriptedServer(serve(PAGE)) as server:
            transport = self.open_transport(self.config())
            in_a_loop(_fetch, transport, server.url)

            _wait_until(lambda: server.open_connections == 0)
            assert server.conversations[0].client_closed

    def test_a_connection_in_use_is_closed_with_its_loop(self, in_a_loop: Run) -> None:
        with ScriptedServer(UNFINISHED) as server:
            transport = self.open_transport(self.config())
            answered = in_a_loop(transport.send, Request("GET", server.url))

            _wait_until(lambda: server.open_connections == 0)
            answered.close()

    @pytest.mark.parametrize("spares", [0, 2])
    def test_a_loop_that_ends_leaves_no_warning(self, in_a_loop: Run, spares: int) -> None:
        options: dict[str, Any] = {"leak_after": 60.0}
        if spares:
            options["limits"] = Limits(min_idle_connections=spares)
        if not self.capabilities().pooled:
            if spares:
                pytest.skip("a library with a pool of its own keeps no spare connections")
            options = {}
        with ScriptedServer(serve(PAGE)) as server, _no_warning():
            transport = self.open_transport(self.config(**options))
            in_a_loop(_fetch, transport, server.url)
            _wait_until(lambda: server.open_connections == 0)

    @needs("pooled")
    def test_a_loop_that_ends_while_a_connection_is_opened_leaves_no_warning(
        self, in_a_loop: Run
    ) -> None:
        async def leave() -> None:
            request = Request("GET", f"https://127.0.0.1:{server.port}/")
            async with await transport.send(request) as answered:
                await until(lambda: server.connections == 2)
                await answered.aread()

        with Certificates() as certificates, _no_warning():
            script = [start_tls(certificates.server_context()), *serve(PAGE)]
            with ScriptedServer(script, [hold()]) as server:
                tls = Tls(ca_file=Path(certificates.ca_file))
                limits = Limits(min_idle_connections=1)
                transport = self.open_transport(self.config(tls=tls, limits=limits))
                in_a_loop(leave)
                _wait_until(lambda: server.open_connections == 0)

    def test_a_transport_can_be_closed_in_a_later_loop(self, in_a_loop: Run) -> None:
        with ScriptedServer(serve(PAGE)) as server, _no_warning():
            transport = self.open_transport(self.config())
            in_a_loop(_fetch, transport, server.url)
            in_a_loop(transport.aclose)

            with pytest.raises(TransportClosed):
                in_a_loop(_fetch, transport, server.url)

    def test_a_loop_that_was_closed_by_hand_does_no_harm_to_later_ones(
        self, in_a_loop: Run, anyio_backend_name: str
    ) -> None:
        if anyio_backend_name != "asyncio":
            pytest.skip("this is asyncio's own way to end a loop")
        with ScriptedServer(serve(PAGE)) as server, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # nothing closed its sockets
            transport = self.open_transport(self.config())
            loop = asyncio.new_event_loop()
            answered = loop.run_until_complete(transport.send(Request("GET", server.url)))
            loop.close()

            assert in_a_loop(_fetch, transport, server.url).content == b"page"
            in_a_loop(answered.aclose)
            in_a_loop(transport.aclose)
            del answered, transport, loop
            gc.collect()

    # -- responses of a loop that is over ----------------------------------------------------------

    def test_a_response_of_an_earlier_loop_can_be_closed_in_a_later_one(
        self, in_a_loop: Run
    ) -> None:
        with ScriptedServer(UNFINISHED) as server:
            transport = self.open_transport(self.config())
            answered = in_a_loop(transport.send, Request("GET", server.url))

            in_a_loop(answered.aclose)
            assert answered.is_closed

    @keeps(12)
    def test_a_response_of_an_earlier_loop_never_looks_whole(self, in_a_loop: Run) -> None:
        with ScriptedServer(UNFINISHED) as server:
            transport = self.open_transport(self.config())
            answered = in_a_loop(transport.send, Request("GET", server.url))

            with pytest.raises(TransportError):
                in_a_loop(answered.aread)

    def test_a_response_of_an_earlier_loop_may_be_dropped(self, in_a_loop: Run) -> None:
        async def leave_it_open() -> None:
            left_open.append(await transport.send(Request("GET", server.url)))

        with ScriptedServer(UNFINISHED) as server:
            transport = self.open_transport(self.config())
            left_open: list[Response] = []
            in_a_loop(leave_it_open)
            with pytest.warns(ResourceWarning, match="unclosed response"):
                left_open.clear()

            _wait_until(lambda: server.open_connections == 0)

    # -- before any loop ---------------------------------------------------------------------------

    def test_a_transport_of_no_loop_yet_can_be_asked_how_it_is(self) -> None:
        transport = self.open_transport(self.config(limits=Limits(max_connections=7)))
        now = transport.snapshot()

        assert (counts(now), now.max_connections) == ((0, 0, 0, 0, 0), 7)

    # -- at the same time --------------------------------------------------------------------------

    @needs("pooled")
    async def test_loops_at_the_same_time_do_not_mix_their_answers(self, in_a_loop: Run) -> None:
        gated = [expect_request(), wait("all"), send(PAGE), *serve(_echo)]
        async with self.rig(gated) as rig:

            async def many() -> set[int]:
                async def one(number: int) -> None:
                    answered = await rig.fetch("GET", f"/{number}")
                    assert answered.content == b"page"
                    ids.add(info(answered).id)
                    answered = await rig.fetch("GET", f"/{number}")
                    assert answered.content == f"/{number}".encode()

                ids: set[int] = set()
                async with anyio.create_task_group() as group:
                    for number in range(5):
                        group.start_soon(one, number)
                return ids

            async with anyio.create_task_group() as group:
                group.start_soon(many)
                group.start_soon(anyio.to_thread.run_sync, in_a_loop, many)
                await rig.until_received(10)
                rig.server.open("all")

            assert rig.server.connections == 10

    @keeps(11)
    async def test_closing_a_transport_closes_the_connections_of_other_loops(
        self, in_a_loop: Run
    ) -> None:
        answered, closed = threading.Event(), threading.Event()

        async def stay() -> None:
            await rig.fetch()
            answered.set()
            await until(closed.is_set)
            await until(lambda: rig.server.open_connections == 0)
            with pytest.raises(TransportClosed):
                await rig.fetch()

        async with self.rig(serve(PAGE)) as rig, anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, in_a_loop, stay)
            await until(answered.is_set)
            await rig.fetch()
            await rig.transport.aclose()
            closed.set()

    @keeps(11)
    async def test_draining_lets_responses_in_other_loops_finish(self, in_a_loop: Run) -> None:
        script = [expect_request(), send(PAGE[:-1]), wait("rest"), send(PAGE[-1:])]
        draining = threading.Event()

        async def read() -> bytes:
            async with await rig.send() as answered:
                begun.set()
                await until(draining.is_set)
                await anyio.sleep(0.05)
                rig.server.open("rest")
                return await answered.aread()

        begun = threading.Event()
        async with self.rig(script) as rig:
            bodies: list[bytes] = []

            async def read_elsewhere() -> None:
                bodies.append(await anyio.to_thread.run_sync(in_a_loop, read))

            async with anyio.create_task_group() as group:
                group.start_soon(read_elsewhere)
                await until(begun.is_set)
                draining.set()
                await rig.transport.aclose(10.0)

            assert bodies == [b"page"]

    @keeps(5)
    async def test_a_response_that_another_thread_drops_gives_its_connection_back(self) -> None:
        def drop() -> None:
            with pytest.warns(ResourceWarning, match="unclosed response"):
                dropped.clear()

        async with self.rig(UNFINISHED) as rig:
            dropped = [await rig.transport.send(rig.request())]
            await anyio.to_thread.run_sync(drop)

            await until(lambda: counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0))
            await rig.until_client_closed()

    @pytest.fixture
    def in_a_loop(self, anyio_backend_name: str, anyio_backend_options: dict[str, Any]) -> Run:
        return partial(anyio.run, backend=anyio_backend_name, backend_options=anyio_backend_options)


async def _fetch(transport: Transport, url: str) -> Response:
    with anyio.fail_after(PATIENCE):
        async with await transport.send(Request("GET", url)) as answered:
            await answered.aread()
    return answered


def _echo(request: ReceivedRequest) -> bytes:
    return response(200, request.target.encode())


def _wait_until(predicate: Callable[[], bool]) -> None:
    """`until`, where no loop runs."""
    deadline = time.monotonic() + 10.0
    while not predicate():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)


@contextmanager
def _no_warning() -> Generator[None]:
    """A block that emits none, nor do the finalizers of what it leaves."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
