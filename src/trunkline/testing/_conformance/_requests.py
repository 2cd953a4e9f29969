"""What a request looks like on the wire: method, target, headers, body and its framing."""

from __future__ import annotations

import hashlib
import socket

import pytest

from trunkline._errors import InvalidRequest, TransportError
from trunkline._messages import Request, Response
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import pieces_of
from trunkline.testing._promises import keeps
from trunkline.testing._script import drain, expect_head, hold, response, serve

ODD_TARGETS = (
    "/a%2Cb,c?signature=%2F%2B/+&time=12:30",
    "/x/../y/./z//",
    "/sub-delims!$&'()*+,;=:@~?also=!$'()*,;:@/?",
    "/%E2%82%AC/%7Euser?%ff=%00",
    "/empty?",
)


class Requests(Conformance):
    promise = 12

    async def test_the_method_is_sent_as_given(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("Mixed-Case")

            assert rig.received.method == "Mixed-Case"

    @needs("verbatim")
    @pytest.mark.parametrize("target", ODD_TARGETS)
    async def test_the_target_is_sent_byte_for_byte(self, target: str) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("GET", target)

            assert rig.received.target == target

    async def test_a_url_without_a_path_asks_for_the_root(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("GET", "?page=2")

            assert rig.received.target == "/?page=2"

    async def test_characters_outside_ascii_are_percent_encoded(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("GET", "/caf\u00e9 au lait?q=\u20ac")

            assert rig.received.target == "/caf%C3%A9%20au%20lait?q=%E2%82%AC"

    async def test_the_fragment_is_not_sent(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("GET", "/page?a=b#part")

            assert rig.received.target == "/page?a=b"

    async def test_the_request_line_says_http_1_1(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch()

            assert rig.received.raw_head.startswith(b"GET / HTTP/1.1\r\n")

    # -- headers -----------------------------------------------------------------------------------

    async def test_the_host_header_names_the_port(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch()

            assert rig.received.all("Host") == [f"127.0.0.1:{rig.server.port}"]

    async def test_an_ipv6_host_is_put_in_brackets(self) -> None:
        _skip_without_ipv6()
        async with self.rig(serve(), host="::1") as rig:
            await rig.fetch()

            assert rig.received.all("Host") == [f"[::1]:{rig.server.port}"]

    async def test_a_host_header_of_the_callers_is_kept(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch(headers={"Host": "virtual.example"})

            assert rig.received.all("Host") == ["virtual.example"]

    @needs("verbatim")
    async def test_headers_keep_their_order_and_case(self) -> None:
        headers = [("X-Zebra", "1"), ("x-apple", "2"), ("X-MANGO", "3"), ("accept", "*/*")]
        async with self.rig(serve()) as rig:
            await rig.fetch(headers=headers)

            assert rig.received.headers[1:] == headers

    async def test_duplicate_headers_are_sent_apart(self) -> None:
        headers = [("X-Tag", "one"), ("X-Other", "-"), ("x-tag", "two, three")]
        async with self.rig(serve()) as rig:
            await rig.fetch(headers=headers)

            assert rig.received.all("X-Tag") == ["one", "two, three"]

    @needs("verbatim")
    @keeps(1)
    async def test_a_request_without_a_body_has_no_header_but_host(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("GET")

            assert [name for name, _ in rig.received.headers] == ["Host"]

    @keeps(1)
    async def test_headers_that_libraries_like_to_set_are_left_as_the_caller_set_them(self) -> None:
        headers = [
            ("User-Agent", "mine/1.0"),
            ("Accept", "text/event-stream"),
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/x-mine"),
            ("Connection", "keep-alive"),
        ]
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", headers=headers, content=b"body")

            assert rig.received.headers[1:] == [*headers, ("Content-Length", "4")]

    async def test_an_empty_header_value_is_sent(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch(headers={"X-Empty": ""})

            assert rig.received.all("X-Empty") == [""]

    # -- bodies ------------------------------------------------------------------------------------

    @needs("verbatim")
    async def test_a_body_of_bytes_is_sent_with_its_length_and_nothing_else(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=b"hello")

            assert rig.received.headers[1:] == [("Content-Length", "5")]
            assert rig.received.body == b"hello"

    @needs("verbatim")
    async def test_a_body_that_is_iterated_is_sent_chunked(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=pieces_of(b"one", b"two"))

            assert rig.received.headers[1:] == [("Transfer-Encoding", "chunked")]
            assert rig.received.body == b"onetwo"

    async def test_empty_pieces_do_not_end_a_chunked_body(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=pieces_of(b"", b"one", b"", b"two", b""))
            await rig.fetch("GET", "/next")

            assert rig.server.requests[0].body == b"onetwo"
            assert [request.target for request in rig.server.requests] == ["/", "/next"]

    async def test_a_chunked_body_may_be_empty(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=pieces_of())

            assert rig.received.complete
            assert rig.received.body == b""

    @needs("verbatim")
    async def test_a_length_declared_for_an_iterated_body_is_honoured(self) -> None:
        headers = {"Content-Length": "6"}
        async with self.rig(serve()) as rig:
            await rig.fetch("PUT", headers=headers, content=pieces_of(b"one", b"two"))

            assert rig.received.headers[1:] == [("Content-Length", "6")]
            assert rig.received.body == b"onetwo"

    @keeps(7)
    @pytest.mark.parametrize("declared", [5, 7], ids=["too-short", "too-long"])
    async def test_a_body_that_contradicts_its_declared_length_is_an_error(
        self, declared: int
    ) -> None:
        async with self.rig([expect_head(), hold()]) as rig:
            with pytest.raises(InvalidRequest):
                await rig.fetch(
                    "PUT",
                    headers={"Content-Length": str(declared)},
                    content=pieces_of(b"one", b"two"),
                )

            await rig.until_client_closed()
            assert rig.transport.snapshot().open == 0

    async def test_no_byte_beyond_the_declared_length_is_sent(self) -> None:
        async with self.rig([drain()]) as rig:
            with pytest.raises(TransportError):
                await rig.fetch(
                    "PUT", headers={"Content-Length": "4"}, content=pieces_of(b"one", b"two")
                )

            await rig.until_client_closed()
            (conversation,) = rig.server.conversations
            assert b"two" not in conversation.received

    @needs("verbatim")
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
    async def test_an_empty_post_says_that_its_length_is_zero(self, method: str) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch(method)

            assert rig.received.headers[1:] == [("Content-Length", "0")]

    async def test_a_body_is_sent_whatever_the_method(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("GET", content=b"query")

            assert rig.received.body == b"query"

    async def test_a_large_body_arrives_whole(self) -> None:
        body = bytes(range(256)) * 32 * 1024  # 8 MiB
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=body)

            assert hashlib.sha256(rig.received.body).digest() == hashlib.sha256(body).digest()

    async def test_a_large_body_that_is_iterated_arrives_whole(self) -> None:
        pieces = [bytes([number % 251]) * (1 + number * 997 % 70_000) for number in range(128)]
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=pieces_of(*pieces))

            assert (
                hashlib.sha256(rig.received.body).digest()
                == hashlib.sha256(b"".join(pieces)).digest()
            )

    # -- the request object ------------------------------------------------------------------------

    @keeps(4)
    async def test_a_request_is_not_changed_by_being_sent(self) -> None:
        async with self.rig(serve()) as rig:
            request = rig.request("POST", "/a%2Cb", headers=[("X-One", "1")], content=b"body")
            async with await rig.transport.send(request) as response:
                await response.aread()

            assert request.method == "POST"
            assert request.url == rig.url("/a%2Cb")
            assert list(request.headers.items()) == [("X-One", "1")]
            assert request.content == b"body"

    @keeps(4)
    async def test_a_request_may_be_sent_again(self) -> None:
        async with self.rig(serve()) as rig:
            request = rig.request("POST", "/twice", content=b"body")
            for _ in range(2):
                async with await rig.transport.send(request) as response:
                    await response.aread()

            first, second = rig.server.requests
            assert first.raw_head == second.raw_head
            assert first.body == second.body == b"body"

    @keeps(4)
    async def test_a_request_may_be_sent_by_two_calls_at_once(self) -> None:
        async with self.rig(serve(lambda request: response(200, bytes(request.body)))) as rig:
            request = rig.request("POST", content=b"shared")

            async def send() -> Response:
                async with await rig.transport.send(request) as answer:
                    await answer.aread()
                return answer

            calls = [rig.start(send) for _ in range(2)]
            assert [(await call.result()).content for call in calls] == [b"shared", b"shared"]

    async def test_the_response_names_its_request(self) -> None:
        async with self.rig(serve()) as rig:
            request = Request("GET", rig.url())
            async with await rig.transport.send(request) as answer:
                assert answer.request is request

    async def test_upload_and_download_run_one_after_the_other_on_one_connection(self) -> None:
        async with self.rig(serve()) as rig:
            await rig.fetch("POST", content=pieces_of(b"a" * 100_000))
            await rig.fetch("GET")
            await rig.fetch("POST", content=b"b" * 100_000)

            assert rig.server.connections == 1
            assert [len(each.body) for each in rig.server.requests] == [100_000, 0, 100_000]


def _skip_without_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
