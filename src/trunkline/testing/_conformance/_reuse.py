"""Which connections carry a second request, and which never do."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import anyio
import pytest

from trunkline._config import Limits
from trunkline._errors import RemoteProtocolError
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import info, until
from trunkline.testing._script import (
    answer,
    close,
    expect_request,
    fin,
    mark,
    response,
    rst,
    send,
    serve,
    wait,
)
from trunkline.testing._servers import ScriptedServer, Step

PAGE = response(200, b"page")


class Reuse(Conformance):
    promise = 13

    async def test_calls_one_after_the_other_share_a_connection(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            for _ in range(20):
                assert (await rig.fetch()).content == b"page"

            assert rig.server.connections == 1
            if self.capabilities().pooled:
                assert rig.transport.snapshot().reused == 19

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_body_that_was_read_slowly_leaves_a_good_connection(
        self, framing: Literal["length", "chunked"]
    ) -> None:
        body = bytes(3_000_000)  # more than any buffer on its way
        async with self.rig(serve(response(200, body, framing=framing))) as rig:
            for _ in range(2):
                size = 0
                async with await rig.send() as answered:
                    async for piece in answered.aiter_raw():
                        size += len(piece)
                        await anyio.sleep(0.002)  # a reader that falls behind
                assert size == len(body)

            assert rig.server.connections == 1

    async def test_calls_at_once_have_a_connection_each(self) -> None:
        script = [expect_request(), wait("all"), send(PAGE), *serve(PAGE)]
        async with self.rig(script) as rig:
            calls = [rig.begin_fetch() for _ in range(5)]
            await rig.until_received(5)
            rig.server.open("all")
            for call in calls:
                await call.result()

            assert rig.server.connections == 5

    @needs("pooled")
    async def test_the_connection_used_last_is_used_first(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            first, second = await rig.send(), await rig.send()
            await first.aread()
            await second.aread()

            for _ in range(3):
                await rig.fetch()

            assert [len(each.requests) for each in rig.server.conversations] == [1, 4]

    async def test_hosts_do_not_share_connections(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with ScriptedServer(serve(PAGE)) as other:
                await rig.fetch()
                await rig.fetch_url(other.url)
                await rig.fetch()

                assert (rig.server.connections, other.connections) == (1, 1)

    async def test_two_names_of_one_address_are_two_hosts(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            await rig.fetch_url(f"http://localhost:{rig.server.port}/")

            assert rig.server.connections == 2
            assert rig.server.requests[1].header("Host") == f"localhost:{rig.server.port}"

    # -- given back --------------------------------------------------------------------------------

    async def test_a_body_read_to_its_end_frees_the_connection(self) -> None:
        async with self.rig(serve(PAGE)) as rig, await rig.send() as answered:
            assert rig.transport.snapshot().active == 1
            async for _ in answered.aiter_bytes():
                """Read to the end."""

            now = rig.transport.snapshot()
            assert now.active == 0
            assert now.idle == 1 or not self.capabilities().pooled
            await rig.fetch()
            assert rig.server.connections == 1

    async def test_early_close_ends_the_connection(self) -> None:
        async with self.rig([answer(PAGE[:-2])], serve(PAGE)) as rig:
            answered = await rig.send()
            await answered.aclose()

            await rig.until_client_closed()
            assert rig.transport.snapshot().open == 0
            rig.expect_closed(aborted=1)
            assert (await rig.fetch()).content == b"page"

    async def test_early_close_frees_the_slot(self) -> None:
        limits = Limits(max_connections=1)
        async with self.rig([answer(PAGE[:-2])], serve(PAGE), limits=limits) as rig:
            async with await rig.send() as answered:
                assert await anext(answered.aiter_bytes()) == b"pa"

            assert (await rig.fetch()).content == b"page"

    async def test_an_unread_body_never_becomes_the_next_answer(self) -> None:
        async with self.rig(serve(lambda request: response(200, request.target.encode()))) as rig:
            await (await rig.send("GET", "/first")).aclose()

            assert (await rig.fetch("GET", "/second")).content == b"/second"
            # A library may read what has come already, and use the connection again.
            assert rig.server.connections == 2 or not self.capabilities().pooled

    # -- not fit any more --------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "last_words",
        [
            response(200, b"bye", ("Connection", "close")),
            response(200, b"bye", ("connection", "X-Other, Close")),
            response(200, b"bye", version="HTTP/1.0"),
        ],
        ids=["close", "close-in-a-list", "http-1.0"],
    )
    async def test_an_answer_that_announces_the_end_is_the_last(self, last_words: bytes) -> None:
        async with self.rig(serve(last_words, PAGE)) as rig:
            assert (await rig.fetch()).content == b"bye"
            await rig.until_client_closed()
            await rig.fetch()

            assert rig.server.connections == 2

    async def test_a_request_that_announces_the_end_is_the_last(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch(headers={"Connection": "close"})
            await rig.fetch()

            assert rig.server.connections == 2

    @pytest.mark.parametrize("ending", [fin(), close(), rst()], ids=["fin", "close", "rst"])
    async def test_a_connection_that_the_server_closed_is_not_used_again(
        self, ending: Step
    ) -> None:
        script = [answer(PAGE), wait("idle"), ending, mark("ended")]
        async with self.rig(script, serve(PAGE)) as rig:
            await rig.fetch()
            rig.server.open("idle")
            await until(lambda: "ended" in rig.server.conversations[0].marks)

            assert (await rig.fetch("POST", content=b"once")).content == b"page"
            assert len(rig.server.requests) == 2

    @needs("pooled")
    async def test_a_connection_that_the_server_closed_is_counted_as_ended(self) -> None:
        script = [answer(PAGE), wait("idle"), close(), mark("ended")]
        async with self.rig(script, serve(PAGE)) as rig:
            await rig.fetch()
            rig.server.open("idle")
            await until(lambda: "ended" in rig.server.conversations[0].marks)
            await rig.fetch()

            assert rig.transport.snapshot().closed == {"ended": 1}

    async def test_bytes_on_an_idle_connection_never_become_the_next_answer(self) -> None:
        script = [answer(PAGE), wait("idle"), send(response(200, b"poison")), mark("sent")]
        async with self.rig([*script, *serve(PAGE)], serve(PAGE)) as rig:
            await rig.fetch()
            rig.server.open("idle")
            await until(lambda: "sent" in rig.server.conversations[0].marks)
            await anyio.sleep(0.02)  # the loop may hear of it, or not

            assert (await rig.fetch()).content == b"page"
            assert rig.server.connections == 2

    @pytest.mark.parametrize("where", ["after-length", "after-chunks", "after-204", "after-head"])
    async def test_bytes_glued_to_an_answer_never_become_the_next_answer(self, where: str) -> None:
        whole = {
            "after-length": PAGE,
            "after-chunks": response(200, b"page", framing="chunked"),
            "after-204": response(204, framing="none"),
            "after-head": PAGE[:-4],
        }[where]
        script = [answer(whole + response(200, b"poison")), *serve(PAGE)]
        async with self.rig(script, serve(PAGE)) as rig:
            with suppress(RemoteProtocolError):  # it may say so, or answer rightly
                await rig.fetch("HEAD" if where == "after-head" else "GET")

            assert (await rig.fetch()).content == b"page"
            assert rig.server.connections == 2

    # -- old ---------------------------------------------------------------------------------------

    async def test_keepalive_expiry_ends_idle_connections(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(keepalive_expiry=0.05)) as rig:
            await rig.fetch()
            await anyio.sleep(0.1)
            await rig.fetch()

            assert rig.server.connections == 2
            rig.expect_closed(expired=1)

    async def test_keepalive_expiry_does_not_end_a_connection_in_use(self) -> None:
        script = [expect_request(), send(PAGE[:-2]), wait("read"), send(PAGE[-2:]), *serve(PAGE)]
        async with self.rig(script, limits=Limits(keepalive_expiry=0.05)) as rig:
            async with await rig.send() as answered:
                await anyio.sleep(0.1)
                rig.server.open("read")
                assert await answered.aread() == b"page"
            await rig.fetch()

            assert rig.server.connections == 1

    @needs("pooled")
    async def test_max_connection_age_ends_connections_however_busy(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connection_age=0.1)) as rig:
            since = anyio.current_time()
            while anyio.current_time() < since + 0.2:
                await rig.fetch()
                await anyio.sleep(0.02)

            assert rig.server.connections >= 2
            assert set(rig.transport.snapshot().closed) == {"aged"}

    @pytest.mark.parametrize("most", [0, 2])
    async def test_max_keepalive_connections_bounds_the_idle_ones(self, most: int) -> None:
        if most and not self.capabilities().pooled:
            pytest.skip("a library with a pool of its own bounds the idle ones by host, if at all")
        limits = Limits(max_keepalive_connections=most)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            answers = [await rig.send() for _ in range(4)]
            for answered in answers:
                await answered.aread()

            assert rig.transport.snapshot().idle == most
            rig.expect_closed(surplus=4 - most)
            await until(lambda: rig.server.open_connections == most)

    @needs("pooled")
    async def test_of_too_many_idle_connections_the_newest_are_kept(self) -> None:
        limits = Limits(max_keepalive_connections=1)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            first, second = await rig.send(), await rig.send()
            await first.aread()
            await second.aread()

            assert info(await rig.fetch()).id == info(second).id
