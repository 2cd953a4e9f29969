"""What a response says: status, headers, version, and where its body ends."""

from __future__ import annotations

import pytest

from trunkline._errors import HTTPStatusError
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import until
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    answer,
    chunk,
    chunked,
    close,
    expect_request,
    fin,
    response,
    send,
    serve,
)


class Responses(Conformance):
    promise = 12

    # -- the head ----------------------------------------------------------------------------------

    @needs("verbatim")
    async def test_status_and_reason_are_the_servers(self) -> None:
        async with self.rig(serve(response(299, reason="Quite Fine"))) as rig:
            answered = await rig.fetch()

            assert (answered.status_code, answered.reason_phrase) == (299, "Quite Fine")

    @needs("verbatim")
    async def test_an_absent_reason_is_no_error(self) -> None:
        async with self.rig(serve(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok")) as rig:
            answered = await rig.fetch()

            assert (answered.reason_phrase, answered.content) == ("", b"ok")

    @pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
    async def test_the_http_version_is_the_servers(self, version: str) -> None:
        async with self.rig([answer(response(200, version=version)), fin()]) as rig:
            assert (await rig.fetch()).http_version == version

    async def test_headers_are_found_whatever_their_case(self) -> None:
        async with self.rig(serve(response(200, b"", ("X-RateLimit", "7")))) as rig:
            headers = (await rig.fetch()).headers

            assert headers["x-ratelimit"] == headers["X-RATELIMIT"] == "7"

    async def test_duplicate_headers_are_kept_in_order(self) -> None:
        fields = [("Set-Cookie", "a=1"), ("X-Between", "-"), ("Set-Cookie", "b=2, c")]
        async with self.rig(serve(response(200, b"", *fields))) as rig:
            answered = await rig.fetch()

            assert answered.headers.getall("set-cookie") == ["a=1", "b=2, c"]

    @needs("verbatim")
    async def test_raw_headers_are_the_bytes_of_the_wire(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nX-ODD-case:  padded \t\r\nx-latin: caf\xe9\r\nx-empty:\r\n"
        async with self.rig(serve(head + b"Content-Length: 0\r\n\r\n")) as rig:
            answered = await rig.fetch()

            assert answered.raw_headers == (
                (b"X-ODD-case", b"padded"),
                (b"x-latin", b"caf\xe9"),
                (b"x-empty", b""),
                (b"Content-Length", b"0"),
            )

    @needs("verbatim")
    async def test_header_values_outside_ascii_lose_nothing(self) -> None:
        head = (
            b"HTTP/1.1 200 OK\r\nX-Utf: \xe2\x82\xac\r\nX-Latin: \xe9\r\nContent-Length: 0\r\n\r\n"
        )
        async with self.rig(serve(head)) as rig:
            headers = (await rig.fetch()).headers

            assert headers["X-Utf"] == "\u20ac"
            assert headers["X-Latin"].encode("utf-8", "surrogateescape") == b"\xe9"

    @pytest.mark.parametrize("status", [100, 102, 103])
    async def test_interim_responses_are_passed_over(self, status: int) -> None:
        interim = response(status, b"", ("Link", "</style.css>"), framing="none", reason="Wait")
        async with self.rig(serve(interim + interim + response(200, b"final"))) as rig:
            answered = await rig.fetch()

            assert (answered.status_code, answered.content) == (200, b"final")
            assert "Link" not in answered.headers

    # -- what a transport does not act on ----------------------------------------------------------

    @keeps(2)
    @pytest.mark.parametrize("status", [400, 404, 429, 500, 503, 599])
    async def test_an_error_status_is_a_response(self, status: int) -> None:
        async with self.rig(serve(response(status, b"why", reason="No"))) as rig:
            answered = await rig.fetch()

            assert (answered.status_code, answered.content) == (status, b"why")
            assert answered.is_error

    @keeps(1)
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirects_are_not_followed(self, status: int) -> None:
        async with self.rig(serve(response(status, b"", ("Location", "/elsewhere")))) as rig:
            answered = await rig.fetch()

            assert (answered.status_code, answered.headers["Location"]) == (status, "/elsewhere")
            assert len(rig.server.requests) == 1

    @keeps(1)
    async def test_cookies_are_not_kept(self) -> None:
        async with self.rig(serve(response(200, b"", ("Set-Cookie", "session=1; Path=/")))) as rig:
            await rig.fetch()
            await rig.fetch()

            assert [request.header("Cookie") for request in rig.server.requests] == [None, None]

    @keeps(1)
    async def test_a_challenge_is_not_answered(self) -> None:
        challenge = response(401, b"", ("WWW-Authenticate", "Basic realm=x"))
        async with self.rig(serve(challenge)) as rig:
            assert (await rig.fetch()).status_code == 401
            assert len(rig.server.requests) == 1

    @keeps(2)
    async def test_raise_for_status_raises_for_errors_only(self) -> None:
        async with self.rig(serve(response(404), response(302), response(200))) as rig:
            missing = await rig.fetch()
            with pytest.raises(HTTPStatusError) as caught:
                missing.raise_for_status()

            assert (caught.value.status_code, caught.value.response) == (404, missing)
            for _ in range(2):
                answered = await rig.fetch()
                assert answered.raise_for_status() is answered

    # -- where the body ends -----------------------------------------------------------------------

    async def test_a_body_has_the_length_that_content_length_says(self) -> None:
        async with self.rig(serve(response(200, b"hello"))) as rig:
            assert (await rig.fetch()).content == b"hello"

    async def test_an_empty_body_leaves_the_connection_usable(self) -> None:
        async with self.rig(serve(response(200, b""))) as rig:
            assert [(await rig.fetch()).content for _ in range(2)] == [b"", b""]
            assert rig.server.connections == 1

    async def test_the_answer_to_head_has_no_body(self) -> None:
        head = response(200, b"12345")[:-5]
        async with self.rig(serve(head, response(200, b"next"))) as rig:
            answered = await rig.fetch("HEAD")

            assert (answered.content, answered.headers["Content-Length"]) == (b"", "5")
            assert (await rig.fetch()).content == b"next"
            assert rig.server.connections == 1

    async def test_the_chunked_answer_to_head_has_no_body(self) -> None:
        head = response(200, b"", framing="chunked").removesuffix(chunked())
        async with self.rig(serve(head, response(200, b"next"))) as rig:
            assert (await rig.fetch("HEAD")).content == b""
            assert (await rig.fetch()).content == b"next"
            assert rig.server.connections == 1

    @pytest.mark.parametrize("framing", ["none", "content-length"])
    @pytest.mark.parametrize("status", [204, 304])
    async def test_204_and_304_have_no_body(self, status: int, framing: str) -> None:
        fields = [("Content-Length", "5")] if (framing, status) == ("content-length", 304) else []
        bare = response(status, b"", *fields, framing="none")
        async with self.rig(serve(bare, response(200, b"next"))) as rig:
            answered = await rig.fetch()

            assert (answered.status_code, answered.content) == (status, b"")
            assert (await rig.fetch()).content == b"next"
            assert rig.server.connections == 1

    @pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
    async def test_a_body_without_a_length_ends_with_the_connection(self, version: str) -> None:
        whole = response(200, b"all of it", framing="none", version=version)
        async with self.rig([answer(whole[:-3]), send(whole[-3:]), fin()], serve()) as rig:
            assert (await rig.fetch()).content == b"all of it"

            await rig.fetch()
            assert rig.server.connections == 2

    async def test_the_chunks_of_a_body_are_joined(self) -> None:
        head = response(200, b"", framing="chunked").removesuffix(chunked())
        async with self.rig(serve(head + chunked(b"one, ", b"two, ", b"three"))) as rig:
            for _ in range(2):
                assert (await rig.fetch()).content == b"one, two, three"
            assert rig.server.connections == 1

    async def test_chunks_may_be_cut_anywhere_on_the_wire(self) -> None:
        whole = response(200, b"", framing="chunked").removesuffix(chunked())
        whole += chunked(b"one, ", b"two, ", b"three")
        bytewise = [whole[at : at + 1] for at in range(len(whole))]
        async with self.rig([expect_request(), send(*bytewise), *serve()]) as rig:
            assert (await rig.fetch()).content == b"one, two, three"
            await rig.fetch()
            assert rig.server.connections == 1

    async def test_chunk_extensions_are_passed_over(self) -> None:
        head = response(200, b"", framing="chunked").removesuffix(chunked())
        body = b'5;name=value;other="quoted"\r\nhello\r\n0;last\r\n\r\n'
        async with self.rig(serve(head + body)) as rig:
            assert (await rig.fetch()).content == b"hello"

    async def test_trailers_are_passed_over(self) -> None:
        head = response(200, b"", framing="chunked").removesuffix(chunked())
        body = chunk(b"hello") + b"0\r\nX-Checksum: 1\r\nX-More: 2\r\n\r\n"
        async with self.rig(serve(head + body)) as rig:
            answered = await rig.fetch()

            assert answered.content == b"hello"
            assert "X-Checksum" not in answered.headers
            assert (await rig.fetch()).content == b"hello"
            assert rig.server.connections == 1

    async def test_an_answer_that_closes_is_read_to_its_end(self) -> None:
        script = [answer(response(200, b"bye", ("Connection", "close"))), close()]
        async with self.rig(script) as rig:
            assert (await rig.fetch()).content == b"bye"
            await until(lambda: rig.transport.snapshot().open == 0)
