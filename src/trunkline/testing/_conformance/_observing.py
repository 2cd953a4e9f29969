"""What is told of a call: each step once, paired and nested, whatever comes between."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from trunkline._config import Dns, Limits, Timeouts
from trunkline._errors import ConnectError, TransportError
from trunkline._events import Event, Step
from trunkline.pool._runtime import sniff_loop
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._base import Call, Conformance, needs
from trunkline.testing._conformance._helpers import closed_port, info, until
from trunkline.testing._conformance._recorder import observe, observed, without_names
from trunkline.testing._dns_server import NXDOMAIN, DNSServer
from trunkline.testing._script import (
    answer,
    expect_request,
    fin,
    hold,
    response,
    send,
    serve,
    start_tls,
    tunnel,
)
from trunkline.testing._servers import Script, ScriptedServer

PAGE = response(200, b"page")
UNFINISHED = [expect_request(), send(PAGE[:-1]), hold()]
SILENT = [expect_request(), hold()]
ONE = Limits(max_connections=1)

FAILURES: dict[str, tuple[Script, str]] = {
    "headers": ([expect_request(), fin()], "headers()!RemoteDisconnected"),
    "too-late": (SILENT, "headers()!HeadersTimeout"),
    "body": ([expect_request(), send(PAGE[:-1]), fin()], "headers() body()!BodyTruncated"),
}


class Observing(Conformance):
    promise = 15
    part_needs = ("pooled",)

    # -- calls that end well -----------------------------------------------------------------------

    async def test_a_call_on_a_new_connection_is_told_step_by_step(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen:
                await rig.fetch_url(f"https://localhost:{rig.server.port}/")

            assert seen.tree() == "request(dns() connect() tls() headers() body())"

    async def test_a_call_on_a_used_connection_has_no_steps_of_opening(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            with observed(rig.transport) as seen:
                await rig.fetch()

            assert seen.tree() == "request(headers() body())"

    async def test_a_call_that_waits_for_a_connection_begins_with_that(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig:
            held = await rig.send()
            with observed(rig.transport) as seen:
                call = rig.begin_fetch()
                await until(lambda: rig.transport.snapshot().waiting == 1)
                await held.aread()
                await call.result()

            assert seen.tree() == "request(queue() headers() body())"

    @needs("proxy")
    async def test_a_tunnel_is_a_step_of_its_own(self) -> None:
        with ScriptedServer([tunnel()]) as proxy:
            async with self.secure_rig(serve(PAGE), proxy=f"http://localhost:{proxy.port}") as rig:
                with observed(rig.transport) as seen:
                    await rig.fetch()

                assert seen.tree() == "request(dns() connect() proxy() tls() headers() body())"

    async def test_a_call_that_is_closed_early_ends_without_an_error(self) -> None:
        async with self.rig(UNFINISHED) as rig:
            await rig.transport.warm(rig.url())
            with observed(rig.transport) as seen:
                await (await rig.send()).aclose()

            assert seen.tree() == "request(headers() body())"

    async def test_a_call_whose_response_is_dropped_ends(self) -> None:
        told: list[tuple[Step, bool]] = []

        class Forgetful:
            """Keeps no event: they hold the response."""

            def on_event(self, event: Event) -> None:
                told.append((event.step, event.is_end))

        async with self.rig(UNFINISHED) as rig:
            observe(rig.transport, Forgetful())
            answered = await rig.transport.send(rig.request())
            with pytest.warns(ResourceWarning, match="unclosed response"):
                del answered  # there is no cycle: this is its end

            await until(lambda: ("request", True) in told)
            assert set(told[-3:]) == {("body", True), ("request", True), ("connection", True)}

    # -- calls that do not -------------------------------------------------------------------------

    @pytest.mark.parametrize("at", FAILURES)
    async def test_a_call_that_fails_says_at_which_step(self, at: str) -> None:
        script, steps = FAILURES[at]
        async with self.rig(script, timeouts=Timeouts(headers=0.1)) as rig:
            await rig.transport.warm(rig.url())
            with observed(rig.transport) as seen, suppress(TransportError):
                await rig.fetch("POST", content=b"order")

            error = steps.partition("!")[2]
            assert seen.tree() == f"request({steps})!{error}"

    async def test_a_connection_that_is_refused_fails_at_connect(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with observed(rig.transport) as seen, suppress(ConnectError):
                await rig.fetch_url(f"http://localhost:{closed_port()}/")

            assert seen.tree() == "request(dns() connect()!ConnectError)!ConnectError"

    async def test_a_certificate_that_is_not_trusted_fails_at_tls(self) -> None:
        with Certificates() as certificates:
            async with self.rig([start_tls(certificates.server_context())]) as rig:
                with observed(rig.transport) as seen, suppress(TransportError):
                    await rig.fetch_url(f"https://localhost:{rig.server.port}/")

                failed = "tls()!CertificateError)!CertificateError"
                assert seen.tree() == f"request(dns() connect() {failed}"

    async def test_a_name_without_an_address_fails_at_dns(self) -> None:
        if sniff_loop() == "trio":
            pytest.skip("name servers can be set on asyncio only")
        with DNSServer({"bad.test": NXDOMAIN}) as names:
            async with self.rig(serve(PAGE), dns=Dns(nameservers=(names.address,))) as rig:
                with observed(rig.transport) as seen, suppress(TransportError):
                    await rig.fetch_url("http://bad.test/")

                assert seen.tree() == "request(dns()!DNSError)!DNSError"

    async def test_a_call_that_waits_in_vain_fails_at_queue(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE, timeouts=Timeouts(pool=0.05)) as rig:
            async with await rig.send():
                with observed(rig.transport) as seen, suppress(TransportError):
                    await rig.fetch()

            assert seen.tree() == "request(queue()!PoolTimeout)!PoolTimeout"

    async def test_a_call_that_is_refused_fails_at_queue(self) -> None:
        limits = Limits(max_connections=1, max_waiting=0)
        async with self.rig(serve(PAGE), limits=limits) as rig, await rig.send():
            with observed(rig.transport) as seen, suppress(TransportError):
                await rig.fetch()

            assert seen.tree() == "request(queue()!PoolFull)!PoolFull"

    async def test_a_call_that_is_sent_again_begins_its_steps_again(self) -> None:
        hangs_up = [answer(PAGE), expect_request(), fin()]
        async with self.rig(hangs_up, serve(PAGE)) as rig:
            url = f"http://localhost:{rig.server.port}/"
            await rig.fetch_url(url)
            with observed(rig.transport) as seen:
                answered = await rig.fetch_url(url)

            again = "dns() connect() headers() body()"
            assert seen.tree() == f"request(headers()!RemoteDisconnected {again})"
            used = [(e.step, e.connection_id) for e in seen.of_request() if not e.is_end]
            assert used[-4:-2] == [("dns", None), ("connect", None)]
            assert used[-2:] == [("headers", info(answered).id), ("body", info(answered).id)]

    async def test_a_call_that_is_cancelled_in_the_queue_ends(self) -> None:
        async with self.rig(serve(PAGE), limits=ONE) as rig, await rig.send():
            with observed(rig.transport) as seen:
                call = rig.begin_fetch()
                await until(lambda: rig.transport.snapshot().waiting == 1)
                await _cancel(call)

            assert without_names(seen.tree()) == "request(queue()!)!"

    async def test_a_call_that_is_cancelled_while_connecting_ends(self) -> None:
        async with self.rig([hold()]) as rig:
            with observed(rig.transport) as seen:
                url = f"https://localhost:{rig.server.port}/"
                call = rig.start(lambda: rig.fetch_url(url))
                await until(lambda: seen.has_begun("tls"))
                await _cancel(call)

            assert without_names(seen.tree()) == "request(dns() connect() tls()!)!"

    @pytest.mark.parametrize(
        ("script", "steps"),
        [(SILENT, "headers()!"), (UNFINISHED, "headers() body()!")],
        ids=["headers", "body"],
    )
    async def test_a_call_that_is_cancelled_ends_at_its_step(
        self, script: Script, steps: str
    ) -> None:
        async with self.rig(script) as rig:
            await rig.transport.warm(rig.url())
            with observed(rig.transport) as seen:
                call = rig.begin_fetch()
                last: Step = "body" if "body" in steps else "headers"
                await until(lambda: seen.has_begun(last))
                await rig.until_received()
                await _cancel(call)

            assert without_names(seen.tree()) == f"request({steps})!"

    async def test_a_call_that_the_close_ends_is_told_to_end(self) -> None:
        async with self.rig(SILENT) as rig:
            await rig.transport.warm(rig.url())
            with observed(rig.transport) as seen:
                call = rig.begin_fetch()
                await rig.until_received()
                await rig.transport.aclose()
                await call.failure()

            assert without_names(seen.tree()) == "request(headers()!)!"


async def _cancel(call: Call) -> None:
    call.cancel()
    with anyio.fail_after(5.0):
        await call.done.wait()
    assert call.cancelled
