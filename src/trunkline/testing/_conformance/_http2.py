"""HTTP/2 (RFC 9113): many exchanges on one connection, none of which hurts another."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from trunkline._config import Limits, Timeouts, Tls
from trunkline._contract import Transport
from trunkline._errors import ReadTimeout, TransportError
from trunkline._messages import Request, Response
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import counts, info, until
from trunkline.testing._llm_server import LLMServer
from trunkline.testing._promises import keeps
from trunkline.testing._script import response, serve


class Peer:
    """A transport, and the HTTP/2 server that it calls."""

    def __init__(self, transport: Transport, server: LLMServer) -> None:
        self.transport = transport
        self.server = server

    async def send(self, method: str = "GET", path: str = "/echo", **options: Any) -> Response:
        return await self.transport.send(Request(method, self.server.url + path, **options))

    async def fetch(self, method: str = "GET", path: str = "/echo", **options: Any) -> Response:
        async with await self.send(method, path, **options) as answered:
            await answered.aread()
        return answered

    async def generate(self, tokens: int, delay: float = 0.0, **options: Any) -> Response:
        """Begin a stream of `tokens` events."""
        chat = {
            "model": "any",
            "messages": [{"role": "user", "content": "word " * 50}],
            "max_tokens": tokens,
            "stream": True,
        }
        return await self.send(
            "POST",
            "/v1/chat/completions",
            headers={"Content-Type": "application/json", "X-Token-Delay": str(delay)},
            content=json.dumps(chat).encode(),
            **options,
        )


class Http2(Conformance):
    promise = 10

    @asynccontextmanager
    async def _peer(self, **options: Any) -> AsyncGenerator[Peer]:
        server = LLMServer(tls=True, http2=True)
        with anyio.fail_after(30), server:
            tls = Tls(ca_file=Path(server.ca_file or ""))
            async with self.transport(http2=True, tls=tls, **options) as transport:
                yield Peer(transport, server)
            await server.wait_open_connections(0)

    # -- which version -----------------------------------------------------------------------------

    @needs("http2")
    async def test_http2_is_agreed_on_by_alpn(self) -> None:
        async with self._peer() as peer:
            answered = await peer.fetch()

            assert answered.http_version == "HTTP/2"
            if self.capabilities().pooled:
                assert info(answered).http_version == "HTTP/2"
            assert answered.json()["http_version"] == "2"

    @needs("http2")
    async def test_a_server_without_http2_gets_http_1_1(self) -> None:
        async with self.secure_rig(serve(response(200, b"page")), http2=True) as rig:
            for _ in range(3):
                answered = await rig.fetch()

                assert (answered.http_version, answered.content) == ("HTTP/1.1", b"page")
            assert rig.server.connections == 1

    @needs("http2")
    async def test_http_without_tls_stays_http_1_1(self) -> None:
        async with self.rig(serve(response(200, b"page")), http2=True) as rig:
            assert (await rig.fetch()).http_version == "HTTP/1.1"

    async def test_http2_is_not_offered_unless_it_is_asked_for(self) -> None:
        with LLMServer(tls=True, http2=True) as server:
            tls = Tls(ca_file=Path(server.ca_file or ""))
            async with self.transport(tls=tls) as transport:
                answered = await Peer(transport, server).fetch()

                assert answered.http_version == "HTTP/1.1"

    @needs("http2", "tls_context")
    @pytest.mark.parametrize("http2", [True, False], ids=["config", "context"])
    async def test_a_context_offers_http2_if_the_config_asks_or_it_does_so_itself(
        self, http2: bool
    ) -> None:
        with LLMServer(tls=True, http2=True) as server:
            context = ssl.create_default_context(cafile=server.ca_file)
            if not http2:
                context.set_alpn_protocols(["h2"])
            async with self.transport(http2=http2, tls=Tls(context=context)) as transport:
                for _ in range(2):
                    answered = await Peer(transport, server).fetch()

                    assert answered.http_version == "HTTP/2"

    # -- messages ----------------------------------------------------------------------------------

    @keeps(12)
    @needs("http2")
    async def test_requests_over_http2_say_what_they_were_given(self) -> None:
        headers = [("X-Tag", "one"), ("x-tag", "two"), ("X-Empty", "")]
        async with self._peer() as peer:
            seen = (
                await peer.fetch("PUT", "/echo?a=%2C&b", headers=headers, content=b"body")
            ).json()

            assert (seen["method"], seen["raw_path"], seen["query"]) == ("PUT", "/echo", "a=%2C&b")
            assert seen["text"] == "body"
            ours = [tuple(pair) for pair in seen["headers"] if pair[0].startswith("x-")]
            assert ours == [("x-tag", "one"), ("x-tag", "two"), ("x-empty", "")]

    @needs("http2", "verbatim")
    async def test_headers_that_http2_has_no_use_for_are_left_out(self) -> None:
        headers = {"Connection": "keep-alive", "Keep-Alive": "timeout=5", "Host": "virtual.example"}
        async with self._peer() as peer:
            seen = (await peer.fetch(headers=headers)).json()

            names = {name for name, _ in seen["headers"]}
            assert names.isdisjoint({"connection", "keep-alive", "transfer-encoding"})

    @keeps(12)
    @needs("http2")
    async def test_large_bodies_pass_through_http2_whole(self) -> None:
        body = b"0123456789abcdef" * 64 * 1024  # 1 MiB, many flow-control windows
        async with self._peer() as peer:
            assert (await peer.fetch("POST", content=body)).json()["text"] == body.decode()

    @keeps(2)
    @needs("http2")
    async def test_an_error_status_over_http2_is_a_response(self) -> None:
        async with self._peer() as peer:
            answered = await peer.fetch("GET", "/nowhere")

            assert (answered.status_code, answered.is_error) == (404, True)

    # -- many at once ------------------------------------------------------------------------------

    @keeps(13)
    @needs("http2")
    async def test_calls_at_once_share_a_connection(self) -> None:
        async with self._peer() as peer:
            answers = [await peer.generate(2, delay=0.05) for _ in range(20)]
            now = peer.transport.snapshot()
            if self.capabilities().pooled:
                assert counts(now) == (1, 1, 0, 0, 0)
            assert [origin.exchanges for origin in now.origins.values()] == [20]

            for answered in answers:
                assert b"[DONE]" in await answered.aread()
            assert peer.server.connections == 1
            if self.capabilities().pooled:
                assert counts(peer.transport.snapshot()) == (1, 0, 1, 0, 0)

    @keeps(13)
    @needs("http2", "pooled")
    async def test_the_first_calls_at_once_share_a_connection_too(self) -> None:
        async with self._peer() as peer:
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(peer.fetch)

            assert (peer.server.requests, peer.server.connections) == (20, 1)

    @needs("http2")
    async def test_more_calls_than_the_server_allows_streams_are_answered(self) -> None:
        limits = Limits(max_connections=1)
        async with self._peer(limits=limits) as peer:
            async with anyio.create_task_group() as group:
                for _ in range(150):
                    group.start_soon(peer.fetch)

            assert (peer.server.requests, peer.server.connections) == (150, 1)

    # -- one among many ----------------------------------------------------------------------------

    @keeps(5)
    @needs("http2", "aborts")
    async def test_a_cancelled_stream_is_reset_and_disturbs_no_other(self) -> None:
        async with self._peer() as peer:
            bystander = await peer.generate(30, delay=0.01)
            with anyio.move_on_after(0.1):
                async with await peer.generate(1000, delay=0.01) as cancelled:
                    await cancelled.aread()

            await peer.server.wait_cancelled(1)
            assert b"[DONE]" in await bystander.aread()
            assert (await peer.fetch()).status_code == 200
            assert peer.server.connections == 1

    @keeps(5)
    @needs("http2")
    async def test_a_response_over_http2_that_is_closed_early_is_reset(self) -> None:
        async with self._peer() as peer:
            async with await peer.generate(1000, delay=0.01) as answered:
                await anext(answered.aiter_sse())

            await peer.server.wait_cancelled(1)
            now = peer.transport.snapshot()
            assert (now.active, now.closed) == (0, {})
            assert counts(now) == (1, 0, 1, 0, 0) or not self.capabilities().pooled
            await peer.fetch()
            assert peer.server.connections == 1

    @keeps(5)
    @needs("http2")
    async def test_many_cancelled_streams_leave_the_connection_as_it_was(self) -> None:
        async with self._peer() as peer:
            for _ in range(130):
                async with await peer.generate(10_000) as answered:
                    await anext(answered.aiter_bytes())

            assert (await peer.fetch("POST", content=b"x" * 200_000)).status_code == 200
            assert peer.server.connections == 1

    @keeps(3)
    @needs("http2")
    async def test_a_reader_that_does_not_read_blocks_no_other_stream(self) -> None:
        async with self._peer() as peer:
            unread = await peer.generate(10_000)
            for _ in range(5):
                assert (await peer.fetch("POST", content=b"x" * 100_000)).status_code == 200

            assert b"[DONE]" in await unread.aread()
            assert peer.server.connections == 1

    @keeps(8)
    @needs("http2", "aborts")
    async def test_each_stream_has_its_own_deadline(self) -> None:
        async with self._peer() as peer:
            lively = await peer.generate(30, delay=0.02)
            stalled = await peer.generate(5, delay=20.0, timeouts=Timeouts(read=0.2))
            with pytest.raises(ReadTimeout) as caught:
                await stalled.aread()

            assert caught.value.http_version == "HTTP/2"
            assert b"[DONE]" in await lively.aread()
            assert peer.server.connections == 1

    @keeps(11)
    @needs("http2")
    async def test_closing_the_transport_ends_every_stream(self) -> None:
        async with self._peer() as peer:
            answers = [await peer.generate(1000, delay=0.05) for _ in range(3)]
            await peer.transport.aclose()

            for answered in answers:
                with pytest.raises(TransportError):
                    await answered.aread()
            await peer.server.wait_open_connections(0)

    @keeps(14)
    @needs("http2", "pooled")
    async def test_a_warm_http2_connection_carries_the_first_calls(self) -> None:
        async with self._peer() as peer:
            assert await peer.transport.warm(peer.server.url) == 1
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(peer.fetch)

            assert peer.server.connections == 1
            await until(lambda: counts(peer.transport.snapshot()) == (1, 0, 1, 0, 0))
