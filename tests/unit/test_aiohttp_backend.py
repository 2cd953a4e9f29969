"""What the aiohttp backend relies on of aiohttp, documented or not.

Each touch below aiohttp's public surface is held to the behaviour relied on, so that a release of
aiohttp that changes it fails here and by name. Bytes are fed to the protocol by hand; only the
connector gets sockets. Does not know what a request makes of it: that is the conformance suite's.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import warnings
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import client_exceptions, http_exceptions
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

import trunkline
from trunkline import Origin, TransportError
from trunkline.pool._watch import Steps
from trunkline.proxy import Proxy
from trunkline.tcp import Delivery
from trunkline_aiohttp._protocol import (
    Handler,
    make_connector,
    on_protocol_made,
    open_socket,
    take_body,
)
from trunkline_aiohttp._translate import (
    DURING_EXCHANGE,
    WHILE_CONNECTING,
    connect_error,
    exchange_error,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- the protocol


class Transport(asyncio.Transport):
    """A transport that only remembers what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_paused = False
        self.is_aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.Protocol()

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_aborted

    def close(self) -> None:
        self.is_aborted = True

    def abort(self) -> None:
        self.is_aborted = True


def connected() -> tuple[Handler, Transport]:
    handler, transport = Handler(asyncio.get_running_loop()), Transport()
    handler.connection_made(transport)
    handler.hand_over(Delivery(None), None)
    return handler, transport


async def answered(data: bytes, *, without_body: bool = False) -> tuple[Handler, StreamReader]:
    """A protocol that has been sent `data`, and the body of the response in it."""
    handler, _ = connected()
    handler.begin(without_body=without_body)
    handler.data_received(data)
    _, body = await handler.read()
    return handler, body


async def failure_of(read: Any) -> Exception:
    with anyio.fail_after(5), pytest.raises(Exception) as caught:  # noqa: PT011
        await read
    return caught.value


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_a_head_has_what_a_response_is_made_of() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    handler.data_received(
        b"HTTP/1.1 404 Not  Here\r\nX-Odd: caf\xe9\r\nx-odd: 2\r\nContent-Length: 0\r\n\r\n"
    )

    message, body = await handler.read()

    assert message.code == 404
    assert message.reason.split() == ["Not", "Here"]
    assert message.version == (1, 1)
    assert isinstance(message.headers, CIMultiDictProxy)
    assert message.headers.getall("X-ODD") == ["caf\udce9", "2"]
    assert message.raw_headers[:2] == ((b"X-Odd", b"caf\xe9"), (b"x-odd", b"2"))
    assert body.at_eof()


async def test_white_space_around_a_value_is_no_part_of_it() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    handler.data_received(HEAD + b"X-A: \t padded \t \r\nContent-Length: 0\r\n\r\n")

    message, _ = await handler.read()

    assert message.headers["X-A"] == "padded"
    assert message.raw_headers[0] == (b"X-A", b"padded")


async def test_interim_heads_are_handed_out_each() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    handler.data_received(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    )
    handler.data_received(HEAD + b"Content-Length: 2\r\n\r\nab")

    codes = [(await handler.read())[0].code for _ in range(2)]
    message, body = await handler.read()

    assert [*codes, message.code] == [100, 103, 200]
    assert await body.readany() == b"ab"


async def test_waiting_for_a_head_ends_when_it_comes_in_pieces() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    head = asyncio.ensure_future(handler.read())

    for byte in HEAD + b"Content-Length: 1\r\n\r\nx":
        await asyncio.sleep(0)
        handler.data_received(bytes([byte]))
    message, _ = await head

    assert message.code == 200


async def test_a_body_is_read_at_once_or_awaited_and_knows_its_end() -> None:
    handler, body = await answered(HEAD + b"Content-Length: 4\r\n\r\nab")

    assert body.read_nowait() == b"ab"
    assert not body.at_eof()
    assert body.read_nowait() == b""
    assert body.total_bytes == 2
    handler.data_received(b"cd")
    assert body.is_eof()
    assert not body.at_eof()
    assert await body.readany() == b"cd"
    assert body.at_eof()
    assert await body.readany() == b""


async def test_an_answer_to_head_has_no_body() -> None:
    handler, body = await answered(HEAD + b"Content-Length: 5\r\n\r\n", without_body=True)

    assert body.at_eof()
    assert not handler.should_close


async def test_a_body_is_not_decoded() -> None:
    coded = gzip.compress(b"body")
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(coded)

    _, body = await answered(head + coded)

    assert await body.readany() == coded


async def test_reading_pauses_when_a_body_is_not_read_and_goes_on_when_it_is() -> None:
    handler, transport = connected()
    handler.begin(without_body=False)
    handler.data_received(HEAD + b"Content-Length: 10000000\r\n\r\n")
    _, body = await handler.read()

    sent = 0
    while not transport.is_paused:
        assert sent < 1_000_000
        handler.data_received(b"x" * 16384)
        sent += 16384
    while transport.is_paused:
        assert body.read_nowait()

    assert sent >= 65536


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    handler, body = await answered(HEAD + b"\r\nall of it")

    assert await body.readany() == b"all of it"
    assert not body.at_eof()
    handler.connection_lost(None)
    assert await body.readany() == b""


@pytest.mark.parametrize("head", [HEAD, HEAD + b"Content-Length: 99\r\n", CHUNKED[:-2]])
async def test_a_connection_that_is_reset_cuts_any_body(head: bytes) -> None:
    handler, body = await answered(head + b"\r\n")

    handler.connection_lost(ConnectionResetError())

    error = await failure_of(body.readany())
    translated = exchange_error(error, has_head=True, started=True)
    assert type(translated) is trunkline.BodyTruncated


@pytest.mark.parametrize("head", [HEAD + b"Content-Length: 99\r\n", CHUNKED[:-2]])
async def test_a_connection_that_ends_cuts_a_body_that_has_a_length(head: bytes) -> None:
    handler, body = await answered(head + b"\r\n")

    handler.connection_lost(None)

    error = await failure_of(body.readany())
    assert type(exchange_error(error, has_head=True, started=True)) is trunkline.BodyTruncated


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 O"])
async def test_a_connection_that_ends_before_the_head_is_told_to_who_awaits_it(
    error: OSError | None, data: bytes
) -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    if data:
        handler.data_received(data)
    handler.connection_lost(error)

    failure = await failure_of(handler.read())

    translated = exchange_error(failure, has_head=False, started=handler.received > 0)
    began = bool(data)
    assert type(translated) is (trunkline.BodyTruncated if began else trunkline.RemoteDisconnected)
    assert (translated.response_started, translated.phase) == (began, "headers")


@pytest.mark.parametrize("rest", [b"xyz\r\n", b"-1\r\n", b"10000000000000000\r\n", b"2\r\nabX\r\n"])
async def test_a_bad_chunk_that_comes_after_the_head_reaches_who_reads_the_body(
    rest: bytes,
) -> None:
    handler, body = await answered(CHUNKED)

    handler.data_received(rest)
    error = await failure_of(read_all(body))

    translated = exchange_error(error, has_head=True, started=True)
    assert type(translated) is trunkline.RemoteProtocolError
    assert translated.phase == "body"


LIKE_A_CHUNK = b"10\r\n0123456789abcdef\r\n"


async def between_chunks() -> tuple[Handler, StreamReader]:
    """A protocol whose peer has sent a whole chunk, which has been taken."""
    handler, body = await answered(CHUNKED)
    handler.data_received(b"1\r\nx\r\n")
    assert take_body(body) == b"x"
    return handler, body


@pytest.mark.parametrize("size", [b"10", b"1a", b"1A", b"ff", b"FF", b"100", b"abc", b"fff"])
async def test_a_chunk_that_comes_by_itself_goes_past_the_parser_to_who_waits(size: bytes) -> None:
    handler, body = await between_chunks()
    waiter = handler.body_waiter(body)
    parser, handler._parser = handler._parser, None  # pyright: ignore[reportPrivateUsage]

    handler.data_received(size + b"\r\n" + bytes(int(size, 16)) + b"\r\n")

    assert waiter.result() == bytes(int(size, 16))
    handler._parser = parser  # pyright: ignore[reportPrivateUsage]
    handler.data_received(b"2\r\nxy\r\n0\r\n\r\n")
    assert take_body(body) == b"xy"
    assert take_body(body) == b""


@pytest.mark.parametrize(
    "piece",
    [
        b"10\r\n0123456789abcdef..",
        b"10\r\n0123456789abcdefg\r",
        b"10\r\n0123456789abcdefg\r\n",
        b"ff\r\n%b\r\r\n" % bytes(255),
        b"-10\r\n0123456789abcdef\r\n",
        b"\r\n0123456789abcdef\r\n",
    ],
)
async def test_what_is_no_chunk_is_refused_between_chunks_too(piece: bytes) -> None:
    handler, body = await between_chunks()
    waiter = handler.body_waiter(body)

    handler.data_received(piece)

    is_told = waiter.done() and waiter.exception() is None
    assert not is_told or waiter.result() is None
    assert isinstance(await failure_of(read_all(body)), http_exceptions.HttpProcessingError)


async def test_a_chunk_for_a_reader_who_has_gone_is_kept_for_the_next() -> None:
    handler, body = await between_chunks()
    handler.body_waiter(body).cancel()

    handler.data_received(LIKE_A_CHUNK)

    assert take_body(body) == b"0123456789abcdef"


async def test_reading_pauses_at_so_many_chunks_however_small() -> None:
    handler, transport = connected()
    handler.begin(without_body=False)
    handler.data_received(CHUNKED)

    handler.data_received(b"1\r\nx\r\n" * 10_000)

    assert transport.is_paused
    _, body = handler.take_head()
    assert take_body(body)
    assert not transport.is_paused
    assert len(take_body(body) or b"") > 1000


async def test_a_body_of_a_given_length_may_look_like_a_chunk_after_a_chunked_one() -> None:
    handler, _ = await between_chunks()
    handler.data_received(b"0\r\n\r\n")
    handler.begin(without_body=False)
    handler.data_received(HEAD + b"Content-Length: %d\r\n\r\n" % len(LIKE_A_CHUNK))
    _, body = handler.take_head()
    handler.body_waiter(body)

    handler.data_received(LIKE_A_CHUNK)

    assert take_body(body) == LIKE_A_CHUNK


async def read_all(body: StreamReader) -> bytes:
    data = b""
    while not body.at_eof():
        data += await body.readany()
    return data


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
    ],
)
async def test_a_head_that_is_no_http_is_told_to_who_awaits_it(head: bytes) -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    handler.data_received(head)

    error = await failure_of(handler.read())

    translated = exchange_error(error, has_head=False, started=True)
    assert type(translated) is trunkline.RemoteProtocolError
    assert handler.should_close


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        HEAD + b"X" * 100_000 + b": x\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
        HEAD + b"X: x\r\n" * 10_000 + b"\r\n",
    ],
    ids=["value", "name", "reason", "many"],
)
async def test_a_head_beyond_the_parsers_limits_is_told_as_such(head: bytes) -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    handler.data_received(head)

    error = await failure_of(handler.read())

    translated = exchange_error(error, has_head=False, started=True)
    assert type(translated) is trunkline.LimitExceeded


async def test_a_future_that_was_lent_is_set_when_there_is_a_head() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    lent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    assert handler.wake_at_head(lent)
    assert not lent.done()
    handler.data_received(HEAD + b"Content-Length: 0\r\n\r\n")

    assert lent.done()
    assert not handler.wake_at_head(lent)
    message, _ = handler.take_head()
    assert message.code == 200


async def test_a_future_that_was_lent_is_set_by_a_failure_but_not_to_the_error() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    lent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert handler.wake_at_head(lent)

    handler.set_exception(ZeroDivisionError())

    assert lent.result() is None
    with pytest.raises(ZeroDivisionError):
        handler.take_head()


async def test_a_future_that_was_lent_may_be_done_already() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    lent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert handler.wake_at_head(lent)
    lent.cancel()

    handler.set_exception(ZeroDivisionError())

    assert lent.cancelled()


@pytest.mark.parametrize("line", [b"1;ext=", b"0\r\nTrailer: "])
async def test_endless_bytes_that_bring_no_body_are_ended(line: bytes) -> None:
    handler, body = await answered(CHUNKED)

    handler.data_received(line)
    for _ in range(100):
        handler.data_received(b"x" * 16384)
    error = await failure_of(read_all(body))

    assert isinstance(exchange_error(error, has_head=True, started=True), trunkline.LimitExceeded)


async def test_a_large_body_may_come_twice_in_the_same_pieces() -> None:
    handler, _ = connected()
    body = bytes(600_000)
    for _ in range(2):
        handler.begin(without_body=False)
        handler.data_received(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        _, payload = await handler.read()
        received = b""
        for start in range(0, len(body), 150_000):
            handler.data_received(body[start : start + 150_000])
            received += take_body(payload) or b""
        assert received == body


async def test_a_large_body_is_no_endless_head() -> None:
    handler, body = await answered(HEAD + b"Content-Length: 1000000\r\n\r\n")

    for _ in range(1000):
        handler.data_received(b"x" * 1000)
        body.read_nowait()

    assert body.at_eof()
    assert handler.exception() is None


async def test_an_error_with_a_cause_keeps_it() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    error, cause = aiohttp.ClientError("outer"), KeyError("inner")

    handler.set_exception(error, cause)

    assert await failure_of(handler.read()) is error
    assert error.__cause__ is cause


async def test_an_error_without_a_cause_gets_none() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)
    error = aiohttp.ClientError("alone")

    handler.set_exception(error)

    assert await failure_of(handler.read()) is error
    assert error.__cause__ is None


async def test_a_body_that_we_close_is_told_to_who_reads_it() -> None:
    handler, body = await answered(CHUNKED)
    assert body.exception() is None

    handler.give_up()

    assert isinstance(await failure_of(body.readany()), aiohttp.ClientError)
    handler, body = await answered(HEAD + b"Content-Length: 1\r\n\r\nx")
    handler.give_up()
    assert await body.readany() == b"x"


async def test_the_next_exchange_begins_anew() -> None:
    handler, _ = connected()
    for number in range(3):
        handler.begin(without_body=False)
        handler.data_received(HEAD + b"Content-Length: 1\r\n\r\n%d" % number)
        _, body = await handler.read()
        assert await body.readany() == b"%d" % number
        assert not handler.should_close


@pytest.mark.parametrize(
    ("data", "should_close"),
    [
        (HEAD + b"Content-Length: 1\r\n\r\nx", False),
        (CHUNKED + b"1\r\nx\r\n0\r\n\r\n", False),
        (HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\nx", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", True),
        (HEAD + b"Content-Length: 2\r\n\r\nx", True),
        (CHUNKED + b"1\r\nx\r\n", True),
        (HEAD + b"\r\nx", True),
        (HEAD + b"Content-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n\r\n", True),
    ],
)
async def test_a_connection_that_cannot_be_used_again_says_so(
    data: bytes, should_close: bool
) -> None:
    handler, body = await answered(data)
    assert await body.readany() == b"x"

    assert handler.should_close is should_close


async def test_a_connection_can_be_told_to_close() -> None:
    handler, body = await answered(HEAD + b"Content-Length: 1\r\n\r\nx")
    await body.readany()

    handler.force_close()

    assert handler.should_close


async def test_a_connection_knows_whether_it_is_there() -> None:
    handler, transport = connected()
    assert handler.is_connected()
    assert handler.transport is transport

    handler.connection_lost(None)

    assert not handler.is_connected()
    assert handler.transport is None


async def test_bytes_that_come_unasked_end_the_connection() -> None:
    handler, transport = connected()
    handler.is_idle = True

    handler.data_received(HEAD + b"Content-Length: 0\r\n\r\n")

    assert not handler.is_connected()
    assert transport.is_aborted
    assert len(handler) == 0


async def test_heads_that_nobody_has_taken_are_counted() -> None:
    handler, _ = connected()
    handler.begin(without_body=False)

    handler.data_received(b"HTTP/1.1 100 Continue\r\n\r\n" * 3)

    assert len(handler) == 3


async def test_draining_waits_while_writing_is_paused() -> None:
    handler, _ = connected()
    assert not handler.writing_paused
    await handler.drain()
    handler.pause_writing()
    assert handler.writing_paused
    drained = asyncio.ensure_future(handler.drain())
    await asyncio.sleep(0)
    assert not drained.done()

    handler.resume_writing()

    await drained
    assert not handler.writing_paused


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_draining_ends_with_the_connection_and_fails_from_then_on(
    error: OSError | None,
) -> None:
    handler, _ = connected()
    handler.pause_writing()
    drained = asyncio.ensure_future(handler.drain())
    await asyncio.sleep(0)

    handler.connection_lost(error)

    with anyio.fail_after(5):
        (outcome,) = await asyncio.gather(drained, return_exceptions=True)
    assert outcome is None or isinstance(outcome, OSError)
    assert isinstance(await failure_of(handler.drain()), OSError)


# --- the connector


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncGenerator[int]:
    """A server on the loopback address; its port."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@asynccontextmanager
async def connecting() -> AsyncGenerator[aiohttp.TCPConnector]:
    connector = make_connector(limit=0, limit_per_host=0, keepalive_timeout=30.0)
    try:
        yield connector
    finally:
        await connector.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("is_needed", [True, False])
async def test_making_a_connector_warns_of_nothing(
    is_needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`enable_cleanup_closed` is a no-op with a DeprecationWarning where Python needs it not."""
    for module in ("aiohttp.connector", "trunkline_aiohttp._protocol"):
        monkeypatch.setattr(f"{module}.NEEDS_CLEANUP_CLOSED", is_needed)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with connecting() as connector:
            assert not connector.closed


async def test_a_connection_runs_on_our_protocol_and_closes_its_socket() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"bytes"
        ended.set()

    async with listening(serve) as port, connecting() as connector:
        opened = await open_socket(
            connector, f"http://127.0.0.1:{port}", ("127.0.0.1",), None, None, None
        )
        handler = opened.protocol
        assert isinstance(handler, Handler)
        assert handler.transport is not None
        assert handler.transport.get_extra_info("peername") == ("127.0.0.1", port)
        handler.transport.write(b"bytes")
        handler.force_close()
        opened.close()
        await asyncio.wait_for(ended.wait(), 5)


async def test_the_addresses_are_those_that_we_resolved() -> None:
    async with listening(ignore) as port, connecting() as connector:
        url = f"http://name-of-nothing.invalid:{port}"
        opened = await open_socket(connector, url, ("127.0.0.1",), None, None, None)
        opened.close()


async def test_an_address_that_does_not_answer_is_not_the_last_that_is_tried() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        async with listening(ignore) as port, connecting() as connector:
            addresses = ("127.0.0.2", "127.0.0.1")
            url = f"http://name-of-nothing.invalid:{port}"
            opened = await open_socket(connector, url, addresses, None, None, None)
            protocol = opened.protocol
            assert protocol is not None
            assert protocol.transport is not None
            assert protocol.transport.get_extra_info("peername")[0] == "127.0.0.1"
            opened.close()


async def dial_until(
    event: asyncio.Event, connector: aiohttp.TCPConnector, url: str, proxy: Proxy | None
) -> int:
    """Dial over TLS until `event`; return how many protocols were made for it."""
    made: list[int] = []
    token = on_protocol_made.set(lambda: made.append(1))
    context = ssl.create_default_context()
    dial = asyncio.ensure_future(open_socket(connector, url, ("127.0.0.1",), context, proxy, None))
    on_protocol_made.reset(token)
    await asyncio.wait_for(event.wait(), 5)
    assert not dial.done()
    dial.cancel()
    await asyncio.wait([dial])
    return len(made)


async def test_the_protocol_is_made_when_tcp_is_connected_and_before_tls_is() -> None:
    hello = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.read(1)) == b"\x16"
        hello.set()  # and never answer it

    async with listening(serve) as port, connecting() as connector:
        assert await dial_until(hello, connector, f"https://127.0.0.1:{port}", None) == 1


@pytest.mark.parametrize(("lets_through", "count"), [(False, 1), (True, 2)])
async def test_through_a_tunnel_it_is_made_again_when_the_proxy_has_answered(
    lets_through: bool, count: int
) -> None:
    asked: list[bytes] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if lets_through:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            assert (await reader.read(1)) == b"\x16"
        done.set()

    async with listening(serve) as port, connecting() as connector:
        proxy = Proxy("http", "127.0.0.1", port, "user", "secret")
        assert await dial_until(done, connector, "https://example.com", proxy) == count

    (head,) = asked
    assert head.startswith(b"CONNECT example.com:443 HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in head


async def test_a_proxy_that_refuses_is_told_by_its_status() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with listening(serve) as port, connecting() as connector:
        proxy = Proxy("http", "127.0.0.1", port)
        context = ssl.create_default_context()
        dial = open_socket(connector, "https://example.com", ("127.0.0.1",), context, proxy, None)
        error = await failure_of(dial)

    assert isinstance(error, aiohttp.ClientHttpProxyError)
    translated = connect_error(error, Steps(None), proxied=True)
    assert type(translated) is trunkline.ProxyError
    assert "407" in str(translated)


# --- every exception of aiohttp


def exceptions_of(*modules: ModuleType) -> list[type[Exception]]:
    return sorted(
        {
            found
            for module in modules
            for found in vars(module).values()
            if isinstance(found, type) and issubclass(found, Exception)
        },
        key=lambda one: one.__name__,
    )


# Of a WebSocket message, and of the caller's own making.
NOT_OF_A_REQUEST = client_exceptions.WSMessageTypeError
OF_AIOHTTP = exceptions_of(client_exceptions, http_exceptions)
OF_AIOHTTP.remove(NOT_OF_A_REQUEST)
OF_THE_SYSTEM: list[type[Exception]] = [
    OSError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    TimeoutError,
    ssl.SSLError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLCertVerificationError,
]
every_exception = pytest.mark.parametrize("library", OF_AIOHTTP + OF_THE_SYSTEM)


def instance_of(library: type[Exception]) -> Exception:
    """One that has nothing but its class: the tables look at no more."""
    made = library.__new__(library)
    if isinstance(made, aiohttp.ClientResponseError):
        made.status = 407
    return made


def while_connecting(library: type[Exception], *, proxied: bool = False) -> TransportError:
    dial = Steps(None)
    dial.begin("connect")
    return connect_error(instance_of(library), dial, proxied=proxied)


def during_exchange(library: type[Exception], *, has_head: bool) -> TransportError:
    return exchange_error(instance_of(library), has_head=has_head, started=has_head)


@every_exception
def test_every_exception_is_translated_wherever_it_is_raised(library: type[Exception]) -> None:
    found = [
        while_connecting(library),
        while_connecting(library, proxied=True),
        during_exchange(library, has_head=False),
        during_exchange(library, has_head=True),
    ]

    assert all(type(error) is not TransportError for error in found)
    assert all(str(error) for error in found)
    connecting_errors = (trunkline.ConnectionFailed, trunkline.InvalidRequest)
    assert all(isinstance(error, connecting_errors) for error in found[:2])


@every_exception
def test_no_failure_of_an_exchange_is_told_as_one_of_connecting(library: type[Exception]) -> None:
    """Callers send again what failed while connecting: a second bill, if it was not so."""
    for has_head in (False, True):
        error = during_exchange(library, has_head=has_head)
        assert isinstance(error, (trunkline.NetworkError, trunkline.RemoteProtocolError))
        assert not isinstance(error, trunkline.ConnectionFailed)


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (aiohttp.ClientConnectorCertificateError, trunkline.CertificateError),
        (ssl.SSLCertVerificationError, trunkline.CertificateError),
        (aiohttp.ClientConnectorSSLError, trunkline.TLSError),
        (ssl.SSLEOFError, trunkline.TLSError),
        (aiohttp.ClientConnectorDNSError, trunkline.DNSError),
        (aiohttp.ClientConnectorError, trunkline.ConnectError),
        (client_exceptions.UnixClientConnectorError, trunkline.ConnectError),
        (ConnectionRefusedError, trunkline.ConnectError),
        (aiohttp.ServerDisconnectedError, trunkline.ConnectError),
        (aiohttp.ClientHttpProxyError, trunkline.ProxyError),
        (aiohttp.ClientProxyConnectionError, trunkline.ProxyError),
        (aiohttp.InvalidURL, trunkline.InvalidRequest),
    ],
)
def test_what_fails_while_connecting(
    library: type[Exception], expected: type[TransportError]
) -> None:
    assert type(while_connecting(library)) is expected


@pytest.mark.parametrize(
    ("library", "before", "inside"),
    [
        (
            aiohttp.ServerDisconnectedError,
            trunkline.RemoteDisconnected,
            trunkline.BodyTruncated,
        ),
        (aiohttp.ClientOSError, trunkline.RemoteDisconnected, trunkline.BodyTruncated),
        (ConnectionResetError, trunkline.RemoteDisconnected, trunkline.BodyTruncated),
        (aiohttp.ClientPayloadError, trunkline.RemoteDisconnected, trunkline.BodyTruncated),
        (
            http_exceptions.TransferEncodingError,
            trunkline.RemoteProtocolError,
            trunkline.RemoteProtocolError,
        ),
        (
            http_exceptions.BadStatusLine,
            trunkline.RemoteProtocolError,
            trunkline.RemoteProtocolError,
        ),
        (http_exceptions.LineTooLong, trunkline.LimitExceeded, trunkline.LimitExceeded),
        (ssl.SSLError, trunkline.ReadError, trunkline.ReadError),
    ],
)
def test_what_fails_during_an_exchange(
    library: type[Exception], before: type[TransportError], inside: type[TransportError]
) -> None:
    assert type(during_exchange(library, has_head=False)) is before
    assert type(during_exchange(library, has_head=True)) is inside


@pytest.mark.parametrize(
    "rows",
    [[row[0] for row in WHILE_CONNECTING], [row[0] for row in DURING_EXCHANGE]],
    ids=["while connecting", "during an exchange"],
)
def test_no_row_of_a_table_hides_a_later_one(rows: list[type[BaseException]]) -> None:
    for place, row in enumerate(rows):
        assert not any(issubclass(row, earlier) for earlier in rows[:place]), row


def test_what_is_not_of_the_library_is_raised_as_it_is() -> None:
    bug = KeyError("a bug")

    with pytest.raises(KeyError) as caught:
        connect_error(bug, Steps(None), proxied=False)
    assert caught.value is bug
    with pytest.raises(KeyError) as caught:
        exchange_error(bug, has_head=True, started=True)
    assert caught.value is bug


def test_the_systems_reason_is_told_and_names_no_origin() -> None:
    key: Any = Origin("https", "secret.example", 443)
    error = aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "Connection refused"))

    translated = connect_error(error, Steps(None), proxied=False)

    assert str(translated) == "the connection failed: Connection refused"
