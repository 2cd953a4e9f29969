"""What an error says, and what it keeps to itself; what is refused before anything is sent."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from trunkline._config import Timeouts
from trunkline._errors import (
    BodyTruncated,
    ConnectError,
    HeadersTimeout,
    InvalidRequest,
    RemoteDisconnected,
    RemoteProtocolError,
    TransportError,
)
from trunkline._messages import Request
from trunkline.testing._conformance._base import Conformance, Rig, needs
from trunkline.testing._conformance._helpers import closed_port
from trunkline.testing._script import expect_request, fin, hold, response, send, serve
from trunkline.testing._servers import Script

PAGE = response(200, b"page")

FAULTS: dict[str, tuple[type[TransportError], Script]] = {
    "disconnected": (RemoteDisconnected, [expect_request(), fin()]),
    "truncated": (BodyTruncated, [expect_request(), send(PAGE[:-1]), fin()]),
    "not-http": (RemoteProtocolError, [expect_request(), send(b"secret-answer\r\n\r\n")]),
    "timeout": (HeadersTimeout, [expect_request(), hold()]),
    "refused": (ConnectError, []),
}


class Facts(Conformance):
    promise = 7

    @asynccontextmanager
    async def _faulty(self, fault: str) -> AsyncGenerator[tuple[Rig, TransportError]]:
        """A call with secrets in every part of it, and the error that came of it."""
        kind, script = FAULTS[fault]
        async with self.rig(script, serve(PAGE), timeouts=Timeouts(headers=0.3)) as rig:
            origin = rig.server.url if script else f"http://127.0.0.1:{closed_port()}"
            request = Request(
                "POST",
                f"{origin}/secret-path?secret-key=secret-value",
                headers={"Authorization": "Bearer secret-token"},
                content=b"secret-body",
            )
            with pytest.raises(kind) as caught:
                async with await rig.transport.send(request) as answered:
                    await answered.aread()
            yield rig, caught.value

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_an_error_says_where_it_happened(self, fault: str) -> None:
        async with self._faulty(fault) as (rig, error):
            assert error.backend == self.capabilities().name
            assert error.host == "127.0.0.1"
            assert fault == "refused" or error.port == rig.server.port
            assert error.elapsed is not None
            assert 0.0 < error.elapsed < 10.0
            assert error.attempts == (0 if fault == "refused" else 1)

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_an_error_holds_nothing_that_is_private(self, fault: str) -> None:
        async with self._faulty(fault) as (_, error):
            shown = f"{error} {error!r} {error.args} {getattr(error, '__notes__', '')}"

            assert "secret" not in shown

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_an_error_can_be_pickled(self, fault: str) -> None:
        async with self._faulty(fault) as (_, error):
            copy = pickle.loads(pickle.dumps(error))

            assert type(copy) is type(error)
            assert (str(copy), vars(copy)) == (str(error), vars(error))

    async def test_the_exception_of_the_library_is_the_cause(self) -> None:
        async with self._faulty("refused") as (_, error):
            assert error.__cause__ is not None
            assert not isinstance(error.__cause__, TransportError)

    @needs("pooled")
    async def test_the_size_of_what_was_sent_is_told(self) -> None:
        async with self._faulty("disconnected") as (rig, error):
            assert error.bytes_sent == len(rig.server.received)

    async def test_errors_of_the_body_tell_the_same_facts(self) -> None:
        async with self.rig([expect_request(), send(PAGE[:-1]), fin()]) as rig:
            answered = await rig.send("POST", content=b"order")
            with pytest.raises(BodyTruncated) as caught:
                await answered.aread()

            error = caught.value
            assert (error.host, error.port) == ("127.0.0.1", rig.server.port)
            assert (error.backend, error.attempts) == (self.capabilities().name, 1)
            assert (error.request_sent, error.response_started) == (True, True)
            if self.capabilities().pooled:
                assert error.bytes_sent == len(rig.server.received)

    # -- refused before anything is sent -----------------------------------------------------------

    @pytest.mark.parametrize(
        ("name", "value"),
        [("X-A\r\nX-B", "1"), ("X A", "1"), ("X:A", "1"), ("", "1"), ("X-\x00", "1"),
         ("X-\u00e9", "1"), ("X-A", "1\r\nX-B: 2"), ("X-A", "1\nX-B: 2"), ("X-A", "1\x00")],
    )  # fmt: skip
    def test_a_header_that_would_break_the_message_is_refused(self, name: str, value: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            Request("GET", "http://127.0.0.1/", headers=[(name, value)])

        assert (caught.value.phase, caught.value.replay) == ("request", "safe")

    @pytest.mark.parametrize("method", ["", "GET /", "GE T", "GET\r\nX: 1", "G\x00T", "G\u00c9T"])
    def test_a_method_that_is_no_token_is_refused(self, method: str) -> None:
        with pytest.raises(InvalidRequest):
            Request(method, "http://127.0.0.1/")

    @pytest.mark.parametrize(
        "url",
        ["/path", "127.0.0.1/", "ftp://127.0.0.1/", "http:///path", "http://127.0.0.1:99999/",
         "http://127.0.0.1:port/", "http://user:secret@127.0.0.1/", "http://127.0.0.1/a\r\nb",
         "http://127.0.0.1/\x00", "http://bad host/", "http://[::1/", "http://a\x7f/"],
    )  # fmt: skip
    def test_a_url_that_cannot_be_asked_for_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            Request("GET", url)

        assert "secret" not in f"{caught.value} {caught.value!r}"

    @pytest.mark.parametrize(
        ("headers", "content"),
        [({"Transfer-Encoding": "chunked"}, b"body"), ({"Content-Length": "3"}, b"body"),
         ({"Content-Length": "-4"}, b"body"), ({"Content-Length": "4, 4"}, b"body"),
         ({"Content-Length": "1"}, None), ({}, 7)],
    )  # fmt: skip
    def test_a_body_that_contradicts_its_framing_is_refused(
        self, headers: dict[str, str], content: object
    ) -> None:
        with pytest.raises(InvalidRequest):
            Request("POST", "http://127.0.0.1/", headers=headers, content=content)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async def test_text_that_cannot_be_encoded_is_refused(self) -> None:
        async with self.rig(serve(PAGE)) as rig:
            with pytest.raises(InvalidRequest):
                await rig.fetch(headers={"X-A": "\ud800"})
            with pytest.raises(InvalidRequest):
                await rig.fetch("GET", "/\ud800")

            assert rig.server.requests == []
            assert (await rig.fetch()).content == b"page"

    async def test_a_body_that_produces_no_bytes_is_refused(self) -> None:
        async def produce() -> AsyncIterator[bytes]:
            yield "text"  # type: ignore[misc]  # pyright: ignore[reportReturnType]

        async with self.rig(serve(PAGE)) as rig:
            with pytest.raises(InvalidRequest):
                await rig.fetch("POST", content=produce())

            assert (await rig.fetch()).content == b"page"
