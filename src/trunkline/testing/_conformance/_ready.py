"""Warming: what it is bound by, what it costs nobody, and what it says of its failures."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from trunkline._config import Limits, Timeouts, Tls
from trunkline._errors import CertificateError, ConnectTimeout
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._base import Conformance
from trunkline.testing._conformance._helpers import counts, info, until
from trunkline.testing._script import (
    close,
    expect_request,
    fin,
    hold,
    mark,
    response,
    rst,
    send,
    serve,
    start_tls,
    wait,
)
from trunkline.testing._servers import Step

PAGE = response(200, b"page")


class Ready(Conformance):
    promise = 14
    part_needs = ("pooled",)

    async def test_a_warm_connection_does_not_count_as_reused(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.transport.warm(rig.url())
            first = info(await rig.fetch())

            assert (first.reused, first.requests) == (False, 1)
            assert rig.transport.snapshot().reused == 0

    async def test_warming_takes_nothing_from_calls_under_way(self) -> None:
        async with (
            self.rig(serve(PAGE), limits=Limits(max_connections=3)) as rig,
            await rig.send(),
        ):
            assert await rig.transport.warm(rig.url(), 5) == 2
            assert counts(rig.transport.snapshot()) == (3, 1, 2, 0, 0)

    async def test_warming_when_everything_is_in_use_opens_nothing(self) -> None:
        async with (
            self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig,
            await rig.send(),
        ):
            assert await rig.transport.warm(rig.url()) == 0
            assert rig.server.connections == 1

    async def test_warming_does_not_overtake_a_waiting_call(self) -> None:
        gated = [expect_request(), wait("go"), send(PAGE), *serve(PAGE)]
        async with self.rig(gated, limits=Limits(max_connections=1)) as rig:
            calls = [rig.begin_fetch() for _ in range(2)]
            await until(lambda: rig.transport.snapshot().waiting == 1)
            assert await rig.transport.warm(rig.url()) == 0

            rig.server.open("go")
            for call in calls:
                await call.result()
            assert rig.server.connections == 1

    @pytest.mark.parametrize(
        "limits",
        [
            Limits(max_connections=2),
            Limits(max_connections_per_host=2),
            Limits(max_keepalive_connections=2),
        ],
        ids=["all", "per-host", "idle"],
    )
    async def test_warming_up_to_a_limit_opens_no_more_than_that(self, limits: Limits) -> None:
        async with self.rig(serve(PAGE), limits=limits) as rig:
            assert await rig.transport.warm(rig.url()) == 1
            assert await rig.transport.warm(rig.url(), 5) == 2

            now = rig.transport.snapshot()
            assert (counts(now), now.created) == ((2, 0, 2, 0, 0), 2)

    async def test_warming_that_fails_in_part_tells_what_is_ready(self) -> None:
        with Certificates() as certificates:
            secure = [start_tls(certificates.server_context()), *serve(PAGE)]
            tls = Tls(ca_file=Path(certificates.ca_file))
            async with self.rig([close()], secure, tls=tls) as rig:
                url = f"https://127.0.0.1:{rig.server.port}/"
                assert await rig.transport.warm(url, 3) == 2
                assert counts(rig.transport.snapshot()) == (2, 0, 2, 0, 0)

    async def test_warming_a_server_that_is_not_trusted_is_an_error(self) -> None:
        with Certificates() as certificates:
            async with self.rig(serve(PAGE), context=certificates.server_context()) as rig:
                with pytest.raises(CertificateError) as caught:
                    await rig.transport.warm(rig.url())

                error = caught.value
                assert (error.phase, error.host, error.port) == (
                    "tls",
                    "127.0.0.1",
                    rig.server.port,
                )

    async def test_warming_takes_no_longer_than_the_connect_timeout(self) -> None:
        async with self.rig([hold()], timeouts=Timeouts(connect=0.3)) as rig:
            with pytest.raises(ConnectTimeout) as caught:
                await rig.transport.warm(f"https://127.0.0.1:{rig.server.port}/", 2)

            assert caught.value.phase == "tls"
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)

    async def test_warming_that_is_cancelled_leaves_nothing(self) -> None:
        async with self.rig([hold()]) as rig:
            url = f"https://127.0.0.1:{rig.server.port}/"
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.warm, url, 3)
                await until(lambda: rig.server.connections == 3)
                group.cancel_scope.cancel()

            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            await until(lambda: rig.server.open_connections == 0)

    @pytest.mark.parametrize("ending", [fin(), rst()], ids=["fin", "rst"])
    async def test_a_warm_connection_that_the_server_closed_is_not_used(self, ending: Step) -> None:
        script = [wait("warm"), ending, mark("ended")]
        async with self.rig(script, serve(PAGE)) as rig:
            await rig.transport.warm(rig.url())
            rig.server.open("warm")
            await until(lambda: any("ended" in each.marks for each in rig.server.conversations))

            assert (await rig.fetch("POST", content=b"order")).content == b"page"
            assert rig.server.conversations[0].received == b""
