"""One pool after another: reconfiguring a client, and draining a transport that is to be closed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from trunkline._client import Client
from trunkline._config import Limits, Tls, TransportConfig
from trunkline._errors import (
    BackendUnavailable,
    CertificateError,
    TransportClosed,
    TransportError,
    UnsupportedOption,
)
from trunkline._registry import available_backends, capabilities_of
from trunkline.pool._runtime import sniff_loop
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._base import Conformance, Rig, needs
from trunkline.testing._conformance._helpers import counts, until
from trunkline.testing._script import expect_request, hold, response, send, serve, wait
from trunkline.testing._servers import Script

PAGE = response(200, b"page")
GATED = [expect_request(), send(PAGE[:-1]), wait("rest"), send(PAGE[-1:])]
UNFINISHED = [expect_request(), send(PAGE[:-1]), hold()]
ONE = Limits(max_connections=1)
LONG = 3600.0


class Generations(Conformance):
    promise = 11

    @asynccontextmanager
    async def _client(self, *scripts: Script, **options: Any) -> AsyncGenerator[tuple[Rig, Client]]:
        """A rig, and a client on its transport."""
        if self.backend not in available_backends():
            pytest.skip("a config can name this transport by its entry point only")
        async with (
            self.rig(*scripts, **options) as rig,
            Client(transport=rig.transport, base_url=rig.server.url) as client,
        ):
            yield rig, client

    # -- reconfiguring -----------------------------------------------------------------------------

    @pytest.mark.parametrize("before", ["head", "end"])
    async def test_a_call_under_way_outlives_a_reconfiguration(self, before: str) -> None:
        begun = b"" if before == "head" else PAGE[:-1]
        script = [expect_request(), send(begun), wait("rest"), send(PAGE[len(begun) :])]
        async with self._client(script) as (rig, client):
            call = rig.begin_fetch()
            await rig.until_received()
            await client.reconfigure(self.config())
            await anyio.sleep(0.02)
            rig.server.open("rest")

            assert (await call.result()).content == b"page"

    async def test_a_call_that_waits_for_a_connection_outlives_a_reconfiguration(self) -> None:
        async with self._client(serve(PAGE), limits=ONE) as (rig, client):
            held = await rig.send()
            waiting = rig.begin_fetch()
            await until(lambda: rig.transport.snapshot().waiting == 1)
            await client.reconfigure(self.config())
            await anyio.sleep(0.02)
            await held.aread()

            assert (await waiting.result()).content == b"page"

    async def test_a_connection_in_use_is_closed_when_its_response_is_over(self) -> None:
        async with self._client(GATED) as (rig, client), await rig.send() as answered:
            await client.reconfigure(self.config())
            rig.server.open("rest")
            await answered.aread()

            await rig.until_client_closed()

    async def test_idle_connections_are_closed_by_a_reconfiguration(self) -> None:
        async with self._client(serve(PAGE)) as (rig, client):
            await rig.fetch()
            await client.reconfigure(self.config())

            await rig.until_client_closed()

    async def test_calls_after_a_reconfiguration_keep_to_the_new_limits(self) -> None:
        generations = self._client(GATED, serve(PAGE), limits=ONE)
        async with generations as (rig, client), await rig.send():
            await client.reconfigure(self.config(limits=Limits(max_connections=2)))

            assert (await client.get("/")).content == b"page"
            assert client.snapshot().max_connections == 2

    @pytest.mark.parametrize("by", ["file", "context"])
    async def test_calls_after_a_reconfiguration_trust_whom_the_new_config_trusts(
        self, by: str
    ) -> None:
        if by == "context" and not self.capabilities().tls_context:
            pytest.skip("the backend takes no context")
        with Certificates() as certificates:
            context = certificates.server_context()
            new = {"file": Tls(ca_file=Path(certificates.ca_file)),
                   "context": Tls(context=certificates.client_context())}[by]  # fmt: skip
            async with self._client(serve(PAGE), context=context) as (_, client):
                with pytest.raises(CertificateError):
                    await client.get("/")
                await client.reconfigure(self.config(tls=new))

                assert (await client.get("/")).content == b"page"

    async def test_calls_after_a_reconfiguration_go_through_the_new_backend(self) -> None:
        async with self._client(serve(PAGE)) as (_, client):
            name = _another_backend(self.backend)
            await client.reconfigure(TransportConfig(backend=name))

            assert (await client.get("/")).content == b"page"
            assert client.backend == name

    @pytest.mark.parametrize("refused", ["backend", "certificate"])
    async def test_a_reconfiguration_that_is_refused_changes_nothing(
        self, refused: str, tmp_path: Path
    ) -> None:
        nothing = tmp_path / "nothing.pem"
        nothing.write_text("no certificate\n")
        bad = {
            "backend": TransportConfig(backend="there-is-none-of-this-name"),
            "certificate": self.config(tls=Tls(ca_file=nothing)),
        }[refused]
        async with self._client(serve(PAGE)) as (rig, client):
            await client.get("/")
            reason = client.backend_reason
            with pytest.raises((BackendUnavailable, UnsupportedOption)):
                await client.reconfigure(bad)

            await client.get("/")
            assert (client.backend, client.backend_reason) == (self.backend, reason)
            assert rig.server.connections == 1

    async def test_a_response_is_cut_when_the_drain_of_a_reconfiguration_is_over(self) -> None:
        async with self._client(UNFINISHED) as (rig, client), await rig.send() as answered:
            await client.reconfigure(self.config(), drain=0.05)

            await rig.until_client_closed()
            with pytest.raises(TransportClosed):
                await answered.aread()

    async def test_responses_of_several_generations_finish(self) -> None:
        async with self._client(GATED) as (rig, client):
            answers = [await client.send(rig.request())]
            for _ in range(2):
                await client.reconfigure(self.config())
                answers.append(await client.send(rig.request()))
            await anyio.sleep(0.02)
            rig.server.open("rest")

            assert [await answered.aread() for answered in answers] == [b"page"] * 3

    async def test_closing_a_client_closes_every_generation(self) -> None:
        async with self._client(UNFINISHED) as (rig, client), await client.send(rig.request()):
            await client.reconfigure(self.config())
            async with await client.send(rig.request()):
                await client.aclose()

                await until(lambda: rig.server.open_connections == 0)

    async def test_draining_a_client_lets_responses_of_every_generation_finish(self) -> None:
        async with self._client(GATED) as (rig, client):
            call = rig.begin_fetch()
            await rig.until_received()
            await client.reconfigure(self.config())
            async with anyio.create_task_group() as group:
                group.start_soon(client.aclose, 10.0)
                await anyio.sleep(0.05)
                rig.server.open("rest")

            assert (await call.result()).content == b"page"

    async def test_a_closed_client_is_not_opened_by_a_reconfiguration(self) -> None:
        async with self._client(serve(PAGE)) as (_, client):
            await client.aclose()
            with suppress(TransportClosed):
                await client.reconfigure(self.config())

            with pytest.raises(TransportClosed):
                await client.get("/")

    # -- draining ----------------------------------------------------------------------------------

    async def test_a_response_under_way_finishes_while_a_transport_drains(self) -> None:
        async with self.rig(GATED) as rig:
            call = rig.begin_fetch()
            await rig.until_received()
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose, LONG)
                await anyio.sleep(0.05)
                rig.server.open("rest")

            assert (await call.result()).content == b"page"
            rig.expect_closed(shutdown=1)

    async def test_calls_that_wait_for_a_connection_are_served_while_a_transport_drains(
        self,
    ) -> None:
        async with self.rig([*GATED, *serve(PAGE)], limits=ONE) as rig:
            calls = [rig.begin_fetch() for _ in range(3)]
            await until(lambda: rig.transport.snapshot().waiting == 2)
            await rig.until_received()
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose, LONG)
                await anyio.sleep(0.02)
                rig.server.open("rest")

            assert [(await call.result()).content for call in calls] == [b"page"] * 3

    async def test_no_call_is_taken_while_a_transport_drains(self) -> None:
        async with self.rig(GATED) as rig:
            call = rig.begin_fetch()
            await rig.until_received()
            failures: list[TransportClosed] = []
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose, LONG)
                await anyio.sleep(0.02)
                for refused in (rig.fetch(), rig.transport.warm(rig.url())):
                    try:
                        await refused
                    except TransportClosed as error:
                        failures.append(error)
                rig.server.open("rest")

            await call.result()
            assert [(each.request_sent, each.replay) for each in failures] == [(False, "safe")] * 2
            assert rig.server.connections == 1

    @needs("pooled")
    async def test_idle_connections_are_closed_at_once_when_a_transport_drains(self) -> None:
        async with self.rig([*GATED, *serve(PAGE)]) as rig:
            call = rig.begin_fetch()
            await rig.until_received()
            await rig.transport.warm(rig.url(), 2)
            await until(lambda: rig.server.connections == 3)

            async def let_the_rest_come() -> None:
                await until(lambda: rig.server.open_connections == 1)
                rig.server.open("rest")

            async with anyio.create_task_group() as group:
                group.start_soon(let_the_rest_come)
                await rig.transport.aclose(LONG)

            await call.result()

    async def test_a_response_is_cut_when_the_drain_is_over(self) -> None:
        async with self.rig(UNFINISHED) as rig, await rig.send() as answered:
            await rig.transport.aclose(0.05)

            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            await rig.until_client_closed()
            with pytest.raises(TransportClosed):
                await answered.aread()

    @needs("pooled")
    async def test_a_call_that_waits_for_its_head_is_cut_when_the_drain_is_over(self) -> None:
        async with self.rig([expect_request(), hold()]) as rig:
            call = rig.begin_fetch("POST", content=b"order")
            await rig.until_received()
            await rig.transport.aclose(0.05)

            error = await call.failure()
            assert isinstance(error, TransportError)
            assert (error.request_sent, error.replay) == (True, "if_idempotent")

    async def test_draining_when_nothing_is_under_way_is_over_at_once(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            with anyio.fail_after(10.0):
                await rig.transport.aclose(LONG)

            await rig.until_client_closed()

    async def test_closing_ends_a_drain(self) -> None:
        async with self.rig(UNFINISHED) as rig, await rig.send():
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose, LONG)
                await anyio.sleep(0.02)
                await rig.transport.aclose()

            await rig.until_client_closed()

    async def test_a_drain_that_is_cancelled_closes_all_the_same(self) -> None:
        async with self.rig(UNFINISHED) as rig, await rig.send():
            with anyio.move_on_after(0.05):
                await rig.transport.aclose(LONG)

            await rig.until_client_closed()
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)


def _another_backend(name: str) -> str:
    """One that is installed, and runs on this event loop."""
    loop = sniff_loop() or ""
    for other in available_backends():
        with suppress(BackendUnavailable):
            if other != name and getattr(capabilities_of(other), loop):
                return other
    pytest.skip("no other backend runs on this loop")
