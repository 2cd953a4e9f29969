"""Spare connections: kept ready in the background, at nobody's expense."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from trunkline._config import Limits, Tls
from trunkline._messages import Request
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._base import Conformance, Rig
from trunkline.testing._conformance._helpers import counts, info, until
from trunkline.testing._script import (
    close,
    expect_request,
    hold,
    response,
    send,
    serve,
    start_tls,
    wait,
)
from trunkline.testing._servers import Script, ScriptedServer

PAGE = response(200, b"page")
A_FEW = 10
"""More connections than any of these behaviours needs; a pool that churns passes it in no time."""


class Spares(Conformance):
    promise = 14
    part_needs = ("pooled",)

    # -- kept ready --------------------------------------------------------------------------------

    async def test_spare_connections_are_opened_once_a_host_is_called(self) -> None:
        async with (
            self.rig(serve(PAGE), limits=Limits(min_idle_connections=3)) as rig,
            await rig.send(),
        ):
            await until(lambda: counts(rig.transport.snapshot()) == (4, 1, 3, 0, 0))

            await until(lambda: rig.server.connections == 4)
            assert len(rig.server.requests) == 1

    async def test_spare_connections_are_opened_once_a_host_is_warmed(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(min_idle_connections=3)) as rig:
            await rig.transport.warm(rig.url())

            await _until_idle(rig, 3)
            await until(lambda: rig.server.connections == 3)
            assert rig.server.requests == []

    async def test_a_call_takes_a_spare_connection(self) -> None:
        async with (
            self.rig(serve(PAGE), limits=Limits(min_idle_connections=1)) as rig,
            await rig.send(),
        ):
            await _until_idle(rig, 1)
            second = await rig.fetch()

            assert (second.timings.connect, info(second).requests) == (None, 1)

    async def test_a_spare_connection_that_is_taken_is_replaced(self) -> None:
        async with (
            self.rig(serve(PAGE), limits=Limits(min_idle_connections=1)) as rig,
            await rig.send(),
        ):
            await _until_idle(rig, 1)
            async with await rig.send():
                await until(lambda: counts(rig.transport.snapshot()) == (3, 2, 1, 0, 0))

    async def test_a_spare_connection_that_dies_is_replaced_though_nobody_calls(self) -> None:
        scripts = [serve(PAGE), [wait("die"), close()], serve(PAGE)]
        limits = Limits(min_idle_connections=2)
        # leak_after only has the pool look more often than once a second.
        async with self.rig(*scripts, limits=limits, leak_after=0.1) as rig:
            await rig.transport.warm(rig.url())
            await _until_idle(rig, 2)
            rig.server.open("die")

            await until(lambda: rig.server.connections == 3)
            await _until_idle(rig, 2)
            assert rig.transport.snapshot().closed == {"ended": 1}

    async def test_spare_connections_shake_hands(self) -> None:
        async with (
            self.secure_rig(serve(PAGE), limits=Limits(min_idle_connections=1)) as rig,
            await rig.send(),
        ):
            await _until_idle(rig, 1)

            assert (await rig.fetch()).timings.tls is None

    @pytest.mark.parametrize(
        "limits",
        [{"max_connections": 2}, {"max_connections_per_host": 2}],
        ids=["all", "per-host"],
    )
    async def test_spare_connections_take_nothing_from_callers(
        self, limits: dict[str, int]
    ) -> None:
        limit = Limits(min_idle_connections=2, **limits)
        async with (
            self.rig(serve(PAGE), limits=limit) as rig,
            await rig.send() as first,
            await rig.send(),
        ):
            waiting = rig.begin_fetch()
            await until(lambda: rig.transport.snapshot().waiting == 1)
            assert counts(rig.transport.snapshot()) == (2, 2, 0, 0, 1)

            await first.aread()
            await waiting.result()
            assert rig.server.connections == 2

    async def test_spare_connections_do_not_push_out_those_of_another_host(self) -> None:
        limits = Limits(max_connections=3, min_idle_connections=2)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                await rig.transport.warm(rig.url())
                await _until_idle(rig, 2)
                await rig.fetch_url(other.url)

                await _settles()
                now = rig.transport.snapshot()
                assert (now.created, now.idle, now.closed) == (3, 3, {})

    @pytest.mark.parametrize(
        "limits",
        [{"max_keepalive_connections": 1}, {"keepalive_expiry": 0.0}],
        ids=["few-idle", "no-rest"],
    )
    async def test_spare_connections_that_may_not_be_kept_are_not_opened_over_and_over(
        self, limits: dict[str, Any]
    ) -> None:
        limit = Limits(min_idle_connections=3, **limits)
        async with self.rig(serve(PAGE), limits=limit) as rig:
            await rig.fetch()
            await _settles()

            assert rig.transport.snapshot().created <= A_FEW

    async def test_two_hosts_do_not_push_out_each_others_spare_connections(self) -> None:
        limits = Limits(max_keepalive_connections=3, min_idle_connections=2)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                await rig.fetch()
                await rig.fetch_url(other.url)
                await _settles()

                assert rig.transport.snapshot().created <= A_FEW

    async def test_a_server_that_ends_spare_connections_is_not_called_over_and_over(self) -> None:
        limits = Limits(min_idle_connections=2)
        async with self.rig(serve(PAGE), [close()], limits=limits) as rig:
            await rig.fetch()
            await _settles()

            assert rig.server.connections <= A_FEW

    # -- the end -----------------------------------------------------------------------------------

    async def test_no_spare_connection_is_opened_after_the_close(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(min_idle_connections=2)) as rig:
            await rig.transport.warm(rig.url())
            await _until_idle(rig, 2)
            await until(lambda: rig.server.connections == 2)
            await rig.transport.aclose()
            await _settles()

            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            assert rig.server.connections == 2

    async def test_a_spare_connection_that_is_being_opened_ends_with_the_close(self) -> None:
        async with self._rig_with_a_slow_spare(serve(PAGE), [hold()]) as rig:
            request = Request("GET", f"https://127.0.0.1:{rig.server.port}/")
            async with await rig.transport.send(request) as answered:
                await until(lambda: rig.server.connections == 2)
                await answered.aread()
            await rig.transport.aclose()

            await until(lambda: rig.server.open_connections == 0)

    async def test_no_spare_connection_is_kept_while_a_transport_drains(self) -> None:
        script = [expect_request(), send(PAGE[:-1]), wait("rest"), send(PAGE[-1:])]
        async with self._rig_with_a_slow_spare(script) as rig:
            request = Request("GET", f"https://127.0.0.1:{rig.server.port}/")
            async with await rig.transport.send(request) as answered:
                await until(lambda: rig.server.connections == 2)
                opened: list[int] = []

                async def let_the_rest_come() -> None:
                    await anyio.sleep(0.02)
                    rig.server.open("handshake")
                    await _settles()
                    opened.append(rig.server.connections)
                    rig.server.open("rest")
                    await answered.aread()

                async with anyio.create_task_group() as group:
                    group.start_soon(let_the_rest_come)
                    await rig.transport.aclose(10.0)

            assert (opened, answered.content) == ([2], b"page")

    @asynccontextmanager
    async def _rig_with_a_slow_spare(
        self, script: Script, slow: Script | None = None
    ) -> AsyncGenerator[Rig]:
        """https; a spare connection is wanted, whose handshake waits at a gate."""
        with Certificates() as certificates:
            shake = start_tls(certificates.server_context())
            tls, limits = Tls(ca_file=Path(certificates.ca_file)), Limits(min_idle_connections=1)
            slow = slow or [wait("handshake"), shake, *serve(PAGE)]
            async with self.rig([shake, *script], slow, tls=tls, limits=limits) as rig:
                yield rig


async def _until_idle(rig: Rig, count: int) -> None:
    await until(lambda: rig.transport.snapshot().idle == count)
    assert rig.transport.snapshot().connecting == 0


async def _settles() -> None:
    """Give a pool that opens one connection after the other the time to show it."""
    await anyio.sleep(0.1)
