"""Names: how often they are asked for, what comes of bad answers, and which address is used.

This module knows a scripted name server, which takes the place of the system's where that can be
done. It does not know resolvers.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

from trunkline._config import Dns, Timeouts
from trunkline._errors import ConnectTimeout, DNSError, TransportError
from trunkline._messages import Request, Response
from trunkline.pool._runtime import sniff_loop
from trunkline.testing._conformance._base import TIMEOUTS, Conformance, Rig
from trunkline.testing._conformance._helpers import counts, until
from trunkline.testing._dns_server import (
    NXDOMAIN,
    SERVFAIL,
    SILENCE,
    Answer,
    DNSServer,
    addresses,
)
from trunkline.testing._promises import keeps
from trunkline.testing._script import response, serve
from trunkline.testing._servers import ScriptedServer

PAGE = response(200, b"page")
HERE = addresses("127.0.0.1")


class Named:
    """A rig whose hosts have names."""

    def __init__(self, rig: Rig, names: DNSServer) -> None:
        self.rig = rig
        self.names = names

    async def send(self, host: str, **options: Any) -> Response:
        """Send to the host of this name, and return with the response open."""
        request = Request("GET", f"http://{host}:{self.rig.server.port}/", **options)
        return await self.rig.transport.send(request)

    async def fetch(self, host: str, **options: Any) -> Response:
        """Send, and read the body to its end."""
        async with await self.send(host, **options) as answered:
            await answered.aread()
        return answered

    async def fetch_anew(self, host: str) -> None:
        """Fetch on a new connection: all that are open carry something."""
        before = self.rig.server.connections
        async with await self.send(host):
            await until(lambda: self.rig.server.connections == before + 1)


class Names(Conformance):
    promise = 10
    part_needs = ("pooled",)

    @asynccontextmanager
    async def named(
        self, names: dict[str, Answer], *, timeouts: Timeouts = TIMEOUTS, **dns: Any
    ) -> AsyncGenerator[Named]:
        if sniff_loop() == "trio":
            pytest.skip("name servers can be set on asyncio only")
        with DNSServer(names) as server:
            config = Dns(nameservers=(server.address,), **dns)
            async with self.rig(serve(PAGE), dns=config, timeouts=timeouts) as rig:
                yield Named(rig, server)

    # -- bad answers -------------------------------------------------------------------------------

    @keeps(7)
    @pytest.mark.parametrize(
        "answer", [NXDOMAIN, addresses(), SERVFAIL], ids=lambda each: each.code
    )
    async def test_a_name_without_an_address_is_a_dns_error(self, answer: Answer) -> None:
        async with self.named({"bad.test": answer}) as named:
            with pytest.raises(DNSError) as caught:
                await named.fetch("bad.test")

            error = caught.value
            assert (error.phase, error.host, error.replay) == ("dns", "bad.test", "safe")
            assert error.__cause__ is not None
            assert counts(named.rig.transport.snapshot()) == (0, 0, 0, 0, 0)

    @keeps(8)
    async def test_a_silent_name_server_is_a_connect_timeout_and_holds_up_no_other_host(
        self,
    ) -> None:
        async with self.named({"mute.test": SILENCE, "api.test": HERE}) as named:
            soon = Timeouts(connect=0.3)
            call = named.rig.start(lambda: named.fetch("mute.test", timeouts=soon))
            await until(lambda: named.names.asked("mute.test") > 0)
            assert (await named.fetch("api.test")).content == b"page"

            error = await call.failure()
            assert isinstance(error, ConnectTimeout)
            assert (error.phase, error.replay) == ("dns", "safe")
            assert error.elapsed is not None
            assert 0.29 <= error.elapsed < 5.0

    async def test_a_burst_of_calls_to_a_bad_name_asks_once(self) -> None:
        async with self.named({"bad.test": NXDOMAIN}) as named:
            for _ in range(5):
                with pytest.raises(DNSError):
                    await named.fetch("bad.test")

            assert named.names.asked("bad.test") == 1

    async def test_while_the_resolver_fails_the_last_answer_is_used(self) -> None:
        names = {"api.test": HERE}
        async with self.named(names, ttl=0) as named, await named.send("api.test"):
            named.names.names["api.test"] = SERVFAIL

            await named.fetch_anew("api.test")

    async def test_without_stale_on_error_it_is_not_used(self) -> None:
        given = self.named({"api.test": HERE}, ttl=0, stale_on_error=False)
        async with given as named, await named.send("api.test"):
            named.names.names["api.test"] = SERVFAIL

            with pytest.raises(DNSError):
                await named.fetch_anew("api.test")

    # -- how often ---------------------------------------------------------------------------------

    async def test_an_answer_serves_all_connections_until_its_ttl_is_over(self) -> None:
        async with self.named({"api.test": HERE}) as named:
            async with await named.send("api.test"), await named.send("api.test"):
                await named.fetch_anew("api.test")

            assert named.rig.server.connections == 3
            assert named.names.asked("api.test") == 1

    async def test_with_a_ttl_of_zero_each_connection_asks(self) -> None:
        async with self.named({"api.test": HERE}, ttl=0) as named:
            async with await named.send("api.test"):
                await named.fetch_anew("api.test")

            assert named.names.asked("api.test") == 2

    async def test_a_reused_connection_asks_nothing(self) -> None:
        async with self.named({"api.test": HERE}, ttl=0) as named:
            for _ in range(3):
                await named.fetch("api.test")

            assert named.names.asked("api.test") == 1

    async def test_calls_at_once_share_a_look_up(self) -> None:
        async with self.named({"api.test": HERE.held()}) as named:
            rig = named.rig
            calls = [rig.start(lambda: named.fetch("api.test")) for _ in range(20)]
            await until(lambda: rig.transport.snapshot().connecting == 20)
            named.names.release()
            for call in calls:
                await call.result()

            assert named.names.asked("api.test") == 1

    @keeps(5)
    async def test_a_cancelled_call_does_not_end_the_look_up_of_another(self) -> None:
        async with self.named({"api.test": HERE.held()}) as named:
            first = named.rig.start(lambda: named.fetch("api.test"))
            await until(lambda: named.names.asked("api.test") == 1)
            second = named.rig.start(lambda: named.fetch("api.test"))
            await until(lambda: named.rig.transport.snapshot().connecting == 2)
            first.cancel()
            await first.done.wait()
            named.names.release()

            assert (await second.result()).content == b"page"
            assert first.cancelled

    @keeps(11)
    async def test_closing_the_transport_ends_a_look_up(self) -> None:
        async with self.named({"mute.test": SILENCE}) as named:
            call = named.rig.start(lambda: named.fetch("mute.test"))
            await until(lambda: named.names.asked("mute.test") == 1)
            await named.rig.transport.aclose()

            assert isinstance(await call.failure(), TransportError)

    # -- which address -----------------------------------------------------------------------------

    async def test_when_an_address_refuses_another_is_used(self) -> None:
        refusing = ("::1", "127.0.0.2", "127.0.0.3")
        async with self.named({"api.test": addresses(*refusing, "127.0.0.1")}) as named:
            assert (await named.fetch("api.test")).content == b"page"

    async def test_when_an_address_does_not_answer_another_is_used(self) -> None:
        timeouts = Timeouts(connect=4.0)
        names = {"api.test": addresses("::1", "127.0.0.1")}
        async with self.named(names, timeouts=timeouts) as named:
            with unanswering(named.rig.server):
                assert (await named.fetch("api.test")).content == b"page"


@contextmanager
def unanswering(server: ScriptedServer) -> Generator[None]:
    """On ::1, the address that is tried first, the port of `server` answers no SYN."""
    with ExitStack() as queue:
        try:
            listener = queue.enter_context(socket.socket(socket.AF_INET6))
            listener.bind(("::1", server.port))
        except OSError:
            pytest.skip("the port cannot be had on ::1")
        listener.listen(0)
        for _ in range(4):
            filler = queue.enter_context(socket.socket(socket.AF_INET6))
            filler.setblocking(False)
            filler.connect_ex(("::1", server.port))
        probe = queue.enter_context(socket.socket(socket.AF_INET6))
        probe.settimeout(0.05)
        if probe.connect_ex(("::1", server.port)) == 0:
            pytest.skip("this system accepts connections beyond the backlog")
        yield
