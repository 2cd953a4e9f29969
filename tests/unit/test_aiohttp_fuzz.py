"""Whatever bytes come as a response, cut wherever, the aiohttp exchange ends, and never wrongly.

It ends with a response or a TransportError; a body that is said to be whole is; and a connection on
which bytes are left over is not used again. What is whole is said by a reader of its own (`whole`),
which knows nothing but RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from trunkline import Request, TransportError
from trunkline_aiohttp._exchange import AiohttpConnection
from trunkline_aiohttp._protocol import Handler

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MESSAGES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunked": CHUNKED + b"3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
    "not modified": b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n',
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    "large": b"HTTP/1.1 500 Oh\r\nX: " + b"y" * 200 + b"\r\nContent-Length: 40\r\n\r\n" + b"z" * 40,
}
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"
TO_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"


# --- what is whole


@dataclass
class Whole:
    status: int
    body: bytes
    left: bytes


_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?:[ \t][^\n]*)?\r?\n")
_EMPTY_VALUE = re.compile(rb"\A([^\n:]*:[ \t]*)\r(?!\n|\Z)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\n]*)?\r?\n")


def whole(data: bytes, *, to_head: bool = False, cut: bool = False) -> Whole | None:
    """The response that `data` begins with, if it is all there; `cut`: the connection was reset.

    Lenient where no end is at stake: lines may end with LF alone.
    """
    while True:
        start = _STATUS.match(data.lstrip(b"\r\n"))
        if start is None:
            return None
        status = int(start[1])
        rest = data.lstrip(b"\r\n")[start.end() :]
        taken = _fields(rest)
        if taken is None:
            return None
        fields, data = taken
        if status >= 200:
            break
    if to_head or status in (204, 304):
        return Whole(status, b"", data)
    lengths = {value for name, value in fields if name == b"content-length"}
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if codings:
        return _chunked(status, data) if codings == [b"chunked"] and not lengths else None
    if not lengths:
        return None if cut else Whole(status, data, b"")
    if len(lengths) > 1 or not (length := lengths.pop()).isdigit() or len(data) < int(length):
        return None
    return Whole(status, data[: int(length)], data[int(length) :])


def _fields(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
    fields: list[tuple[bytes, bytes]] = []
    while True:
        # After an empty value aiohttp's parser lets a bare CR end the line.
        data = _EMPTY_VALUE.sub(rb"\1\r\n", data, count=1)
        line, end, data = data.partition(b"\n")
        line = line.removesuffix(b"\r")
        if not end:
            return None
        if not line:
            return fields, data
        if line[:1] in (b" ", b"\t") and fields:  # folded: RFC 9112 section 5.2
            name, value = fields[-1]
            fields[-1] = (name, b" ".join((value, line.strip())).strip())
            continue
        name, _, value = line.partition(b":")
        fields.append((name.strip().lower(), value.strip()))


def _chunked(status: int, data: bytes) -> Whole | None:
    body = b""
    while start := _CHUNK.match(data):
        size = int(start[1], 16)
        data = data[start.end() :]
        if not size:
            taken = _fields(data)
            return None if taken is None else Whole(status, body, taken[1])
        body, after = body + data[:size], data[size:]
        data = after.removeprefix(b"\r").removeprefix(b"\n")
        if len(after) - len(data) not in (1, 2) or len(body) < size:
            return None
    return None


# --- the exchange, without a network


class Transport(asyncio.Transport):
    """What is written goes nowhere; once closed it says so to its protocol, as real ones do."""

    def __init__(self, protocol: Handler, sock: socket.socket) -> None:
        super().__init__()
        self._protocol = protocol
        self._socket = sock
        self._is_closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self._socket}.get(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self._is_closing

    def end(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)

    def close(self) -> None:
        self.end(None)

    abort = close


class Attempt:
    """An attempt without deadlines."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.response_started = self.is_body_untouched = self.is_untaken = False

    def begin(self, phase: str) -> None: ...

    def wait(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        return awaitable


@dataclass
class Outcome:
    """`error`, or a whole answer; `is_usable`: whether the connection may carry the next one."""

    status: int = 0
    body: bytes = b""
    error: TransportError | None = None
    is_usable: bool = False


async def exchange(
    pieces: list[bytes], *, method: str = "GET", end: Exception | bool = False, eager: bool = False
) -> Outcome:
    """Feed `pieces` to an exchange; `end`: how the connection ends after them, True for a FIN."""
    client, server = socket.socketpair()
    with client, server:
        handler = Handler(asyncio.get_running_loop())
        transport = Transport(handler, client)
        handler.connection_made(transport)
        connection = AiohttpConnection(None, handler, None, reads=None)
        task = asyncio.create_task(_run(connection, method, at_once=eager))
        await asyncio.sleep(0)
        for piece in pieces:
            if not transport.is_closing():
                handler.data_received(piece)
            if not eager:
                await asyncio.sleep(0)
        await asyncio.wait([task], timeout=0)
        is_usable = task.done() and connection.is_usable()
        if end is not False and not transport.is_closing():
            if end is True:
                handler.eof_received()
            transport.end(end if isinstance(end, Exception) else None)
        async with asyncio.timeout(2):  # nothing it could wait for takes any time
            outcome = await task
        outcome.is_usable = is_usable
        connection.close()
        await asyncio.sleep(0)
        return outcome


async def _run(connection: AiohttpConnection, method: str, *, at_once: bool) -> Outcome:
    attempt: Any = Attempt()
    outcome = Outcome()
    try:
        running = await connection.exchange(Request(method, "http://origin/"), attempt)
        outcome.status = running.status_code
        rest = running.take_rest() if at_once else None
        while rest is None and (piece := await running.read()):
            outcome.body += piece
        outcome.body += rest or b""
    except TransportError as error:
        outcome.error = error
        connection.close()
    return outcome


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Outcome]]:
    """`exchange`, on one event loop for all examples."""
    with asyncio.Runner() as runner:
        yield lambda *args, **options: runner.run(exchange(*args, **options))


def cut_at(data: bytes, *places: int) -> list[bytes]:
    points = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(points)]
    return [piece for piece in pieces if piece]


# --- whole responses


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("eager", [False, True], ids=["step by step", "at once"])
def test_wherever_a_response_is_cut_it_is_whole_and_its_connection_usable(
    run: Callable[..., Outcome], name: str, eager: bool
) -> None:
    message = MESSAGES[name]
    expected = whole(message)
    assert expected is not None
    assert expected.left == b""
    cuts = [cut_at(message, first) for first in range(len(message))]
    cuts += [
        cut_at(message, first, first + size) for first in range(len(message)) for size in (1, 3)
    ]
    cuts.append([bytes([byte]) for byte in message])
    for pieces in cuts:
        outcome = run(pieces, eager=eager)
        assert (outcome.status, outcome.body) == (expected.status, expected.body), pieces
        assert outcome.is_usable, pieces


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("glued", [b"H", b"\0", b"\n", b"x\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
def test_bytes_glued_to_a_response_are_never_part_of_one_and_end_the_connection(
    run: Callable[..., Outcome], name: str, glued: bytes
) -> None:
    message = MESSAGES[name]
    expected = whole(message)
    assert expected is not None
    for place in range(len(message)):
        outcome = run(cut_at(message + glued, place), eager=place % 2 == 0)
        if outcome.error is None:
            assert (outcome.status, outcome.body) == (expected.status, expected.body), place
        assert not outcome.is_usable, place


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("end", [True, ConnectionResetError()], ids=["fin", "rst"])
def test_a_response_that_is_cut_short_is_an_error_wherever(
    run: Callable[..., Outcome], name: str, end: Exception | bool
) -> None:
    message = MESSAGES[name]
    for size in range(len(message)):
        outcome = run([message[:size]] if size else [], end=end)
        assert outcome.error is not None, size
        assert not outcome.is_usable


def test_a_body_that_the_end_of_the_connection_delimits_is_whole_only_after_a_fin(
    run: Callable[..., Outcome],
) -> None:
    head = UNTIL_THE_END.index(b"\r\n\r\n") + 4
    for size in range(len(UNTIL_THE_END)):
        outcome = run(cut_at(UNTIL_THE_END[:size], size // 2), end=True)
        assert (outcome.error is None) == (size >= head), size
        assert outcome.body == UNTIL_THE_END[head:size]
        assert run([UNTIL_THE_END[:size]], end=ConnectionResetError()).error is not None


def test_the_answer_to_head_ends_with_its_head(run: Callable[..., Outcome]) -> None:
    for place in range(len(TO_HEAD)):
        outcome = run(cut_at(TO_HEAD, place), method="HEAD")
        assert (outcome.status, outcome.body, outcome.is_usable) == (200, b"", True)


# --- chunks: one that comes by itself goes past the parser


_CHUNK_SIZES = st.sampled_from([b"%x", b"%x", b"%X", b"0%x", b"%x;a=b", b"%x;3", b"%x "])
_LIKE_A_CHUNK = b"10\r\n0123456789abcdef\r\n"
_CHUNK_DATA = st.sampled_from(
    [b"x", b"\r\n", b"0\r\n\r\n", _LIKE_A_CHUNK, b"y" * 16, b"z" * 255, b"z" * 256, b"z" * 5000]
)


@st.composite
def chunks(draw: st.DrawFn) -> list[bytes]:
    """The chunks of a body, with their frames."""
    drawn = draw(st.lists(st.tuples(_CHUNK_SIZES, _CHUNK_DATA), min_size=1, max_size=8))
    return [size % len(data) + b"\r\n" + data + b"\r\n" for size, data in drawn]


@settings(max_examples=1500)
@given(
    parts=chunks(),
    shifts=st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 5, -1, -2, -3]), max_size=9),
    eager=st.booleans(),
)
@example([b"5\r\nhello\r\n", b"10;" + _LIKE_A_CHUNK], [0, 3, 0], False)
@example([b"5\r\nhello\r\n", b"16;a\r\n%b\r\n" % _LIKE_A_CHUNK], [0, 6, -2], False)
def test_wherever_chunks_are_cut_their_body_is_whole(
    run: Callable[..., Outcome], parts: list[bytes], shifts: list[int], eager: bool
) -> None:
    pieces = [CHUNKED, *parts, b"0\r\n\r\n"]
    message = b"".join(pieces)
    ends = [sum(map(len, pieces[: number + 1])) for number in range(len(pieces) - 1)]
    for place, shift in enumerate(shifts[: len(ends)]):
        ends[place] += shift

    outcome = run(cut_at(message, *ends), eager=eager)

    expected = whole(message)
    assert expected is not None
    assert (outcome.status, outcome.body, outcome.error) == (200, expected.body, None)
    assert outcome.is_usable


# --- mutated ones

_BYTES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b";",
        b"0",
        b"-1",
        b"f",
        b"\xff",
        b"HTTP/1.1 200 OK\r\n",
    ]
) | st.binary(max_size=3)
_FIELDS = st.sampled_from(
    [
        b"\r\nContent-Length: 3",
        b"\r\nContent-Length: 5",
        b"\r\nContent-Length: +5",
        b"\r\nContent-Length: 5, 5",
        b"\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer-Encoding: gzip, chunked",
        b"\r\nTransfer-Encoding: x",
        b"\r\nConnection: close",
        b"\r\n folded",
        b"\r\n\r\n",
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from([*MESSAGES.values(), UNTIL_THE_END]))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        size = draw(st.sampled_from([0, 0, 1, 2, 8]))
        kind = draw(st.sampled_from(["replace", "replace", "field", "repeat", "glue"]))
        if kind == "replace":
            data = data[:begin] + draw(_BYTES) + data[begin + size :]
        elif kind == "field":
            place = data.find(b"\r\n")
            data = data[:place] + draw(_FIELDS) + data[place:] if place >= 0 else data
        elif kind == "repeat":
            data = data[: begin + size] + data[begin:]
        else:
            data += draw(st.sampled_from(list(MESSAGES.values())) | _BYTES)
    return data


@settings(max_examples=1500)
@given(
    data=mutated(),
    places=st.lists(st.integers(0, 400), max_size=4),
    end=st.sampled_from(["fin", "rst"]),
    eager=st.booleans(),
    method=st.sampled_from(["GET", "GET", "HEAD"]),
)
@example(MESSAGES["chunked"].replace(b"3\r\nhel", b"g\r\nhel"), [50], "fin", False, "GET")
@example(MESSAGES["length"] + MESSAGES["length"], [], "fin", True, "GET")
def test_whatever_comes_the_exchange_ends_and_no_body_looks_whole_that_is_not(
    run: Callable[..., Outcome], data: bytes, places: list[int], end: str, eager: bool, method: str
) -> None:
    reset = ConnectionResetError()
    outcome = run(
        cut_at(data, *places), method=method, end=reset if end == "rst" else True, eager=eager
    )

    assert not outcome.is_usable or outcome.error is None
    if outcome.error is not None:
        return
    expected = whole(data, to_head=method == "HEAD", cut=end == "rst")
    assert expected is not None, "it looks whole, and is not"
    assert (outcome.status, outcome.body) == (expected.status, expected.body)
    # An empty line is no part of anything: the parser passes over it.
    assert not (outcome.is_usable and expected.left.strip(b"\r\n")), "bytes are left behind"
