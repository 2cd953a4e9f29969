"""`trunkline.http1`: what is taken for a response, and where one ends.

The conformance suite has the rest of it, through the backends that use it. h11 is the judge of
bytes that are cut anywhere.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, strategies as st

from trunkline import LimitExceeded, RemoteProtocolError, Request
from trunkline.http1 import Course, Head, wire_fields
from trunkline.http1._bounds import bounds_of
from trunkline.http1._head import MAX_HEAD, parse_head, split_head

OK = b"HTTP/1.1 200 OK\r\n"


def parse(*lines: bytes, method: str = "GET", status: bytes = OK) -> Head:
    return parse_head(status + b"".join(line + b"\r\n" for line in lines) + b"\r\n", method)


# -- the head --------------------------------------------------------------------------------------


def test_a_head_says_what_it_says() -> None:
    head = parse(b"X-ODD:  padded \t", b"x-latin: caf\xe9", b"x-empty:", b"Content-Length: 7")

    assert (head.status_code, head.reason_phrase, head.http_version) == (200, "OK", "HTTP/1.1")
    assert head.raw_headers[:3] == (
        (b"X-ODD", b"padded"),
        (b"x-latin", b"caf\xe9"),
        (b"x-empty", b""),
    )
    assert head.headers["X-Latin"].encode("utf-8", "surrogateescape") == b"caf\xe9"
    assert (head.length, head.is_chunked, head.keeps_alive) == (7, False, True)


def test_a_folded_line_is_one_value() -> None:
    assert parse(b"X: one", b"  two", b"Y: 3").raw_headers == ((b"X", b"one two"), (b"Y", b"3"))


def test_lines_may_end_without_cr() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\nX: 1\n\n", "GET").raw_headers == ((b"X", b"1"),)


@pytest.mark.parametrize(
    "status", [b"HTTP/1.1 20 OK\r\n", b"HTTP/2.0 200 OK\r\n", b"SSH-2.0\r\n", b"HTTP/1.1 099 \r\n",
               b"HTTP/1.1 200OK\r\n", b"HTTP/1.1 200 O\x00K\r\n", b"\r\n"]
)  # fmt: skip
def test_a_status_line_that_is_none_is_an_error(status: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse(status=status)


@pytest.mark.parametrize(
    "line", [b"nonsense", b"X Y: 1", b"X : 1", b": 1", b"X: a\x00b", b"X: a\rb",
             b"Content-Length: -1", b"Content-Length: five", b"Content-Length: 1, 2",
             b"Transfer-Encoding: gzip, chunked",
             b"Transfer-Encoding: chunked\r\nContent-Length: 3"]
)  # fmt: skip
def test_a_field_that_breaks_the_rules_is_an_error(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse(line)


def test_too_many_fields_exceed_a_limit() -> None:
    with pytest.raises(LimitExceeded):
        parse(*[b"X: 1"] * 1001)


def test_a_head_without_end_exceeds_a_limit() -> None:
    assert split_head(b"x" * MAX_HEAD) == 0
    with pytest.raises(LimitExceeded):
        split_head(b"x" * (MAX_HEAD + 1))


@pytest.mark.parametrize(
    ("lines", "status", "keeps"),
    [
        ((b"Content-Length: 1",), OK, True),
        ((b"Content-Length: 1", b"Connection: x, Close"), OK, False),
        ((b"Content-Length: 1",), b"HTTP/1.0 200 OK\r\n", False),
        ((b"Content-Length: 1", b"Connection: keep-alive"), b"HTTP/1.0 200 OK\r\n", True),
        ((b"Transfer-Encoding: Chunked",), OK, True),
        ((), OK, False),
        ((), b"HTTP/1.1 204 No Content\r\n", True),
    ],
)
def test_a_connection_is_kept_as_the_head_says(
    lines: tuple[bytes, ...], status: bytes, keeps: bool
) -> None:
    assert parse(*lines, status=status).keeps_alive is keeps


def test_the_answer_to_head_has_no_body_whatever_it_says() -> None:
    for line in (b"Content-Length: 5", b"Transfer-Encoding: chunked"):
        assert bounds_of(parse(line, method="HEAD")).is_over


# -- where the body ends ---------------------------------------------------------------------------


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
    extension = draw(st.sampled_from([b"", b";a=b", b'; x="\xe9"']))
    trailers = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: 1\r\nB: 2\r\n"]))
    chunks = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces]
    return b"".join(chunks) + b"0" + extension + b"\r\n" + trailers + b"\r\n"


@given(chunked_bodies(), st.binary(max_size=30), st.lists(st.integers(0, 300), max_size=6))
def test_a_chunked_body_ends_where_h11_ends_it(body: bytes, behind: bytes, cuts: list[int]) -> None:
    data, head = body + behind, parse(b"Transfer-Encoding: chunked")
    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    judge.send(h11.EndOfMessage())
    judge.receive_data(head.raw + data)
    while not isinstance(judge.next_event(), h11.EndOfMessage):
        pass
    bounds, taken = bounds_of(head), 0
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        taken += bounds.take(data[start:end])

    assert data[taken:] == judge.trailing_data[0] == behind
    assert bounds.is_over


@given(st.integers(0, 50), st.lists(st.binary(max_size=30), max_size=6))
def test_no_byte_beyond_the_length_is_the_bodys(length: int, arrivals: list[bytes]) -> None:
    bounds = bounds_of(parse(b"Content-Length: %d" % length))
    taken = sum(bounds.take(data) for data in arrivals)

    assert taken == min(length, sum(map(len, arrivals)))
    assert bounds.is_over is bounds.may_end is (taken == length)


def test_a_body_without_a_length_may_end_at_any_byte() -> None:
    bounds = bounds_of(parse())

    assert bounds.take(b"12345") == 5
    assert bounds.may_end
    assert not bounds.is_over


@pytest.mark.parametrize(
    "chunks", [b"xyz\r\n", b"-4\r\n", b"f" * 16 + b"\r\n", b"2\r\nbody\r\n", b"\r\n", b"1 0\r\n"]
)
def test_a_chunk_that_breaks_the_rules_is_an_error(chunks: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        bounds_of(parse(b"Transfer-Encoding: chunked")).take(chunks)


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"5;", b"x" * 1000), (b"0\r\n", b"X: 1\r\n" * 100)],
    ids=["line", "trailers"],
)
def test_framing_without_end_exceeds_a_limit(start: bytes, more: bytes) -> None:
    bounds = bounds_of(parse(b"Transfer-Encoding: chunked"))
    bounds.take(start)
    with pytest.raises(LimitExceeded):
        sum(bounds.take(more) for _ in range(1000))


# -- the rest --------------------------------------------------------------------------------------


def test_fields_go_on_the_wire_as_utf_8_and_without_space_around() -> None:
    request = Request("POST", "http://api.test/", headers={"X": " \u20ac\udce9 "}, content=b"1")

    assert wire_fields(request) == [
        (b"Host", b"api.test"),
        (b"X", b"\xe2\x82\xac\xe9"),
        (b"Content-Length", b"1"),
    ]


def test_an_error_of_ours_among_the_causes_is_the_failure() -> None:
    ours = LimitExceeded("too long")
    theirs = ValueError("a library's")
    theirs.__cause__ = ours

    assert Course().failure(theirs) is ours
