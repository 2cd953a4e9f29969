"""The end of a transport: every socket closed, every caller told; and responses nobody closed."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from trunkline._config import Limits
from trunkline._errors import TransportClosed, TransportError
from trunkline._messages import Response
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import counts, until
from trunkline.testing._promises import keeps
from trunkline.testing._script import expect_request, hold, response, send, serve, wait

PAGE = response(200, b"page")


class Closing(Conformance):
    promise = 11

    async def test_closing_twice_does_no_harm_to_a_transport(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            await rig.transport.aclose()
            await rig.transport.aclose()

    async def test_two_may_close_at_once(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose)
                group.start_soon(rig.transport.aclose)

    async def test_a_transport_that_was_never_used_can_be_closed(self) -> None:
        async with self.transport() as transport:
            await transport.aclose()

    async def test_close_leaves_no_socket(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            answers = [await rig.send() for _ in range(3)]
            for answered in answers:
                await answered.aread()
            await rig.transport.aclose()

            await until(lambda: all(each.client_closed for each in rig.server.conversations))
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
            rig.expect_closed(shutdown=3)

    async def test_sending_after_close_is_an_error(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            await rig.transport.aclose()
            with pytest.raises(TransportClosed) as caught:
                await rig.send()

            assert (caught.value.request_sent, caught.value.replay) == (False, "safe")
            assert rig.server.connections == 1

    async def test_warming_after_close_is_an_error(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.transport.aclose()
            with pytest.raises(TransportClosed):
                await rig.transport.warm(rig.url())

            assert rig.server.connections == 0

    async def test_calls_that_wait_are_told(self) -> None:
        async with self.rig(serve(PAGE), limits=Limits(max_connections=1)) as rig:
            await rig.send()
            waiting = [rig.begin_fetch() for _ in range(3)]
            await until(lambda: rig.transport.snapshot().waiting == 3)
            await rig.transport.aclose()

            for call in waiting:
                with anyio.fail_after(5.0):
                    error = await call.failure()
                assert isinstance(error, TransportClosed)
                assert (error.request_sent, error.replay) == (False, "safe")

    @needs("aborts")
    async def test_a_call_that_is_connecting_is_told(self) -> None:
        async with self.rig([hold()]) as rig:
            call = rig.start(lambda: rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/"))
            await until(lambda: rig.server.connections == 1)
            await rig.transport.aclose()

            with anyio.fail_after(5.0):
                assert isinstance(await call.failure(), TransportError)
            await rig.until_client_closed()

    async def test_a_call_that_waits_for_its_head_ends_with_an_error(self) -> None:
        async with self.rig([expect_request(), hold()]) as rig:
            call = rig.begin_fetch("POST", content=b"body")
            await rig.until_received()
            await rig.transport.aclose()

            with anyio.fail_after(5.0):
                error = await call.failure()
            assert isinstance(error, TransportError)
            assert error.replay == "if_idempotent"

    async def test_a_body_that_is_being_read_ends_with_an_error(self) -> None:
        async with self.rig([expect_request(), send(PAGE[:-1]), hold()]) as rig:
            answered = await rig.send()

            async def read() -> Response:
                await answered.aread()
                return answered

            call = rig.start(read)
            await anyio.sleep(0.02)
            await rig.transport.aclose()

            with anyio.fail_after(5.0):
                assert isinstance(await call.failure(), TransportError)
            assert answered.is_closed

    @keeps(12)
    async def test_a_body_read_after_the_close_never_looks_whole(self) -> None:
        async with self.rig([expect_request(), send(PAGE[:-1]), hold()]) as rig:
            answered = await rig.send()
            await rig.transport.aclose()

            with pytest.raises(TransportError):
                await answered.aread()

    async def test_an_old_response_may_be_closed_after_the_transport(self) -> None:
        async with self.rig([expect_request(), send(PAGE[:-1]), hold()]) as rig:
            answered = await rig.send()
            await rig.transport.aclose()

            await answered.aclose()

    # -- draining ----------------------------------------------------------------------------------

    async def test_draining_lets_calls_under_way_finish(self) -> None:
        script = [expect_request(), send(PAGE[:-1]), wait("closing"), send(PAGE[-1:])]
        async with self.rig(script) as rig:
            call = rig.begin_fetch()
            await until(lambda: rig.server.sent > 0)
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose, 10.0)
                await anyio.sleep(0.02)
                rig.server.open("closing")

            assert (await call.result()).content == b"page"
            assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)

    async def test_draining_takes_no_new_calls(self) -> None:
        script = [expect_request(), send(PAGE[:-1]), wait("refused"), send(PAGE[-1:])]
        async with self.rig(script) as rig:
            call = rig.begin_fetch()
            await until(lambda: rig.server.sent > 0)
            async with anyio.create_task_group() as group:
                group.start_soon(rig.transport.aclose, 10.0)
                await anyio.sleep(0.02)
                with pytest.raises(TransportClosed):
                    await rig.fetch()
                rig.server.open("refused")

            await call.result()

    @needs("aborts")
    async def test_draining_ends_what_takes_longer(self) -> None:
        async with self.rig([expect_request(), hold()]) as rig:
            call = rig.begin_fetch()
            await rig.until_received()
            with anyio.fail_after(5.0):
                await rig.transport.aclose(0.1)

            with anyio.fail_after(5.0):
                assert isinstance(await call.failure(), TransportError)
            await rig.until_client_closed()

    async def test_draining_waits_for_nobody_when_nothing_is_under_way(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            await rig.fetch()
            with anyio.fail_after(5.0):
                await rig.transport.aclose(60.0)

    # -- responses nobody closed -------------------------------------------------------------------

    @keeps(5)
    async def test_a_response_that_is_dropped_gives_its_connection_back(self) -> None:
        async with self.rig([expect_request(), send(PAGE[:-1]), hold()]) as rig:
            answered = await rig.transport.send(rig.request())
            assert rig.transport.snapshot().active == 1
            with pytest.warns(ResourceWarning, match="unclosed response"):
                del answered  # there is no cycle: this is its end

            await until(lambda: counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0))
            await rig.until_client_closed()

    @keeps(5)
    async def test_an_iterator_that_is_dropped_gives_its_connection_back(self) -> None:
        async with self.rig([expect_request(), send(PAGE[:-1]), hold()]) as rig:
            pieces = (await rig.transport.send(rig.request())).aiter_bytes()
            assert await anext(pieces) == b"pag"
            with pytest.warns(ResourceWarning, match="unclosed response"):
                del pieces

            await until(lambda: counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0))

    # -- event loops -------------------------------------------------------------------------------

    @keeps(16)
    async def test_a_transport_may_be_used_from_a_second_event_loop(
        self, anyio_backend_name: str
    ) -> None:
        limits = Limits(max_keepalive_connections=0)
        async with self.rig(serve(PAGE), limits=limits) as rig:
            await rig.fetch("GET", "/first")

            def elsewhere() -> Response:
                return anyio.run(rig.fetch, "GET", "/second", backend=anyio_backend_name)

            assert (await anyio.to_thread.run_sync(elsewhere)).content == b"page"
            assert (await rig.fetch("GET", "/third")).content == b"page"

            assert [each.target for each in rig.server.requests] == ["/first", "/second", "/third"]
            assert rig.server.connections == 3
