"""Connections that are opened before the first call needs them."""

from __future__ import annotations

import pytest

from trunkline._config import Limits
from trunkline._errors import ConnectError
from trunkline.testing._conformance._base import Conformance
from trunkline.testing._conformance._helpers import closed_port, counts, info, until
from trunkline.testing._script import response, serve

PAGE = response(200, b"page")


class Warming(Conformance):
    promise = 14
    part_needs = ("pooled",)

    async def test_warming_opens_connections_and_sends_nothing(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            assert await rig.transport.warm(rig.url(), 3) == 3

            assert counts(rig.transport.snapshot()) == (3, 0, 3, 0, 0)
            await until(lambda: rig.server.connections == 3)
            assert rig.server.requests == []

    async def test_the_first_call_uses_a_warm_connection(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.transport.warm(rig.url())
            answered = await rig.fetch()

            assert rig.server.connections == 1
            assert (answered.timings.dns, answered.timings.connect) == (None, None)
            assert info(answered).requests == 1
            assert (info(answered).reused, rig.transport.snapshot().reused) == (False, 0)

    async def test_warming_counts_what_is_open_already(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.transport.warm(rig.url(), 2)

            assert await rig.transport.warm(rig.url(), 3) == 3
            assert await rig.transport.warm(rig.url(), 1) == 1
            await until(lambda: rig.server.connections == 3)

    async def test_warming_does_not_exceed_the_limits(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=2)) as rig:
            assert await rig.transport.warm(rig.url(), 5) == 2
            assert counts(rig.transport.snapshot()) == (2, 0, 2, 0, 0)

    async def test_warming_shakes_hands(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            assert await rig.transport.warm(rig.url()) == 1

            answered = await rig.fetch()
            assert answered.timings.tls is None
            assert rig.server.connections == 1

    async def test_warming_a_server_that_is_not_there_is_an_error(self) -> None:
        async with self.rig(serve()) as rig:
            with pytest.raises(ConnectError):
                await rig.transport.warm(f"http://127.0.0.1:{closed_port()}/", 2)

            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
