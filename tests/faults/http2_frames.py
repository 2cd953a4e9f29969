"""HTTP/2 faults in the frames: such as no server may send, and such as have to be let pass."""

from __future__ import annotations

import contextlib

from tests.faults._http2 import (
    BAD_BODY,
    BAD_HEAD,
    BAD_LINE,
    BAD_STREAM,
    CALL_ID,
    PAGE,
    broken,
    fault,
    server_of,
)
from tests.faults._lab import Answers, Ask, Client, Fault, Group, Reply, Stage, call

from trunkline.testing._session import Session
from trunkline.testing.frames import (
    announce,
    answer,
    data,
    data_frame,
    fields,
    frame,
    head,
    pause,
    ping,
    send,
)

LATER = pause(0.03)
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION, ALTSVC, ORIGIN, PRIORITY_UPDATE = 9, 10, 12, 16
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32
OK = b"\x88"  # :status 200, of the static table
OK_ENDS = frame(HEADERS, OK, END_HEADERS | END_STREAM, CALL_ID)
OK_OPEN = frame(HEADERS, OK, END_HEADERS, CALL_ID)
EMPTY = Answers(body=b"")


def _padded(content: bytes, padding: int, flags: int = 0) -> bytes:
    return frame(DATA, bytes([padding]) + content + bytes(padding), PADDED | flags, CALL_ID)


async def _and_after(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call; what comes after it may end the connection, before the next one."""
    reply = await call(client, stage.origin, ask)
    server = server_of(stage)
    with contextlib.suppress(TimeoutError):
        await server.until(lambda: server.conversations[0].client_closed, 0.2)
    return reply


NONSENSE = Group(
    "Frames that no server may send",
    (
        broken("garbage", send(bytes(range(128, 256)) * 4)),
        broken("an HTTP/1.1 answer", send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")),
        broken("DATA of the connection", send(frame(DATA, b"page", END_STREAM, 0))),
        broken("HEADERS of the connection", send(frame(HEADERS, OK, END_HEADERS, 0))),
        broken("HEADERS of a stream that the server opens",
               send(frame(HEADERS, OK, END_HEADERS, 2))),
        broken("HEADERS of a stream that is not there yet",
               send(frame(HEADERS, OK, END_HEADERS, 99))),
        broken("DATA of a stream that is not there yet", send(frame(DATA, b"page", 0, 99))),
        broken("PUSH_PROMISE, although push is off",
               send(frame(PUSH_PROMISE, b"\0\0\0\2\x82\x84\x87", END_HEADERS, CALL_ID))),
        broken("DATA before the head", send(frame(DATA, b"page", END_STREAM, CALL_ID)),
               expect=(BAD_STREAM, BAD_HEAD)),
        broken("a head that is interrupted by PING",
               send(frame(HEADERS, OK, 0, CALL_ID), ping()), expect=(BAD_LINE, BAD_HEAD)),
        broken("a head that is interrupted by DATA",
               send(frame(HEADERS, OK, 0, CALL_ID), frame(DATA, b"page", END_STREAM, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("a head that is continued on another stream",
               send(frame(HEADERS, OK, 0, CALL_ID), frame(CONTINUATION, b"", END_HEADERS, 99)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("CONTINUATION of nothing", send(frame(CONTINUATION, OK, END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("padding that is longer than the frame",
               send(OK_OPEN), LATER, send(frame(DATA, b"\xffpage", PADDED, CALL_ID)),
               expect=BAD_BODY),
        broken("padding that is as long as the frame",
               send(OK_OPEN), LATER, send(frame(DATA, b"\x05page", PADDED, CALL_ID)),
               expect=BAD_BODY),
        broken("a padded frame of nothing",
               send(OK_OPEN), LATER, send(frame(DATA, b"", PADDED, CALL_ID)), expect=BAD_BODY),
        broken("HEADERS whose padding is longer than they are",
               send(frame(HEADERS, b"\xff" + OK, PADDED | END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("PING of seven bytes", send(frame(PING, bytes(7)))),
        broken("PING of a stream", send(frame(PING, bytes(8), 0, CALL_ID))),
        broken("PRIORITY of four bytes", send(frame(PRIORITY, bytes(4), 0, CALL_ID))),
        broken("HEADERS with half a priority",
               send(frame(HEADERS, bytes(3), WITH_PRIORITY | END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        fault("DATA after the end of the stream", answer(), data_frame(b"another caller's answer")),
        fault("HEADERS after the end of the stream", answer(), LATER, head(200, end=True),
              act=_and_after),
        fault("DATA after END_STREAM in the same packet",
              send(OK_ENDS + frame(DATA, b"page", END_STREAM, CALL_ID)),
              expect=(EMPTY, BAD_HEAD, BAD_BODY)),
        broken("header compression that does not decode",
               send(frame(HEADERS, b"\xff" * 20, END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("header compression with index 0",
               send(frame(HEADERS, b"\x80", END_HEADERS, CALL_ID)), expect=(BAD_LINE, BAD_HEAD)),
        broken("header compression with an index beyond the table",
               send(frame(HEADERS, OK + b"\xbe", END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("header compression with a table that is too large",
               send(frame(HEADERS, b"\x3f\xff\xff\xff\x03" + OK, END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("header compression that ends inside a string",
               send(frame(HEADERS, OK + b"\x40\x7fx", END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        broken("header compression whose Huffman code is none",
               send(frame(HEADERS, OK + b"\x40\x81\xff\x01a", END_HEADERS, CALL_ID)),
               expect=(BAD_LINE, BAD_HEAD)),
        fault("no head, but an empty block", send(frame(HEADERS, b"", END_HEADERS, CALL_ID)),
              expect=BAD_HEAD),
    ),
    is_parsing=True,
)  # fmt: skip


# -- what has to be let pass -----------------------------------------------------------------------


def _split(session: Session) -> bytes:
    """A head in frames of one byte each."""
    block = OK + b"\x00\x03x-a\x01b"
    pieces = [frame(HEADERS, block[:1], 0, CALL_ID)]
    pieces += [frame(CONTINUATION, bytes([byte]), 0, CALL_ID) for byte in block[1:]]
    return b"".join([*pieces, frame(CONTINUATION, b"", END_HEADERS, CALL_ID)])


HARMLESS = Group(
    "Frames that are rare and right",
    (
        fault("frames of unknown types", send(frame(0x77, b"x"), frame(0xFF, b"", 255, CALL_ID)),
              answer(), send(frame(0x77, bytes(16_384), 0, CALL_ID))),
        fault("ALTSVC, ORIGIN and PRIORITY_UPDATE",
              send(frame(ALTSVC, b"\0\x09localhost" + b'h3=":1"'),
                   frame(ORIGIN, b"\0\x0chttps://a.test"),
                   frame(PRIORITY_UPDATE, b"\0\0\0\1u=1")), answer()),
        fault("flags that nobody knows", send(frame(PING, bytes(8), 0xFE)), answer()),
        fault("the reserved bit of a stream's number",
              send(frame(HEADERS, OK, END_HEADERS | END_STREAM, 2**31 | CALL_ID)), expect=EMPTY),
        fault("PRIORITY of streams that are not there",
              send(frame(PRIORITY, bytes(5), 0, 99), frame(PRIORITY, bytes(5), 0, 2)), answer()),
        fault("a head with a priority",
              send(frame(HEADERS, bytes(5) + OK, WITH_PRIORITY | END_HEADERS | END_STREAM, 1)),
              expect=EMPTY),
        fault("a head in frames of one byte", send(_split), data(b"page", end=True), expect=PAGE),
        fault("a padded head and a padded body",
              send(frame(HEADERS, b"\x03" + OK + bytes(3), PADDED | END_HEADERS, CALL_ID),
                   _padded(b"pa", 200), _padded(b"", 255), _padded(b"ge", 0, END_STREAM)),
              expect=PAGE),
        fault("a body in frames of one byte", head(200),
              *[data(bytes([byte])) for byte in b"pag"], data_frame(b"e", end=True), expect=PAGE),
        fault("empty DATA between the pieces, and at the end", head(200), data_frame(b""),
              data(b"pa"), data_frame(b""), data(b"ge"), data_frame(b"", end=True), expect=PAGE),
        fault("an empty body told by the head", head(204, end=True),
              expect=Answers(status=204, body=b"")),
        fault("an empty body told by DATA", head(200), data_frame(b"", end=True), expect=EMPTY),
        fault("a 304 with the length of what is not sent",
              head(304, ("content-length", "1000"), end=True),
              expect=Answers(status=304, body=b"")),
        fault("HEAD with the length of what is not sent",
              head(200, ("content-length", "1000"), end=True), expect=EMPTY,
              ask=Ask(method="HEAD", content=None)),
        fault("an interim response, and then the answer", head(103, ("link", "</a>")), LATER,
              answer()),
        fault("ten interim responses", *[head(100), head(103)] * 5, answer()),
        fault("trailers", head(200, ("trailer", "x-sum")), data(b"page"),
              fields(("x-sum", "1"), end=True), expect=PAGE),
        fault("trailers without a body", head(200), fields(("x-sum", "1"), end=True),
              expect=EMPTY),
        fault("SETTINGS in the middle of the body", head(200), data(b"pa"),
              announce(max_concurrent_streams=50), LATER, data(b"ge", end=True), expect=PAGE),
    ),
    is_parsing=True,
)  # fmt: skip


# -- heads -----------------------------------------------------------------------------------------

_OK = (":status", "200")


def _bad(name: str, *pairs: tuple[str | bytes, str | bytes], status: bool = True) -> Fault:
    given = (_OK, *pairs) if status else pairs
    return fault(name, fields(*given, end=True), expect=BAD_HEAD)


_HEAD_ONLY = Ask(method="HEAD", content=None)

HEADS = Group(
    "Heads that HTTP does not allow",
    (
        _bad("no :status", ("x-a", "1"), status=False),
        _bad("two :status", _OK),
        _bad("two :status that differ", (":status", "404")),
        _bad(":status after a header", ("x-a", "1"), _OK, status=False),
        _bad("a :status of letters", (":status", "abc"), status=False),
        _bad("an empty :status", (":status", ""), status=False),
        _bad("a :status of two digits", (":status", "20"), status=False),
        _bad("a :status of four digits", (":status", "2000"), status=False),
        _bad("a :status with a sign", (":status", "+20"), status=False),
        _bad("a :status in digits that are not ASCII", (b":status", b"\xb2\xb2\xb2"), status=False),
        _bad(":status 101", (":status", "101"), status=False),
        _bad(":status 099", (":status", "099"), status=False),
        _bad("a pseudo-header of a request", (":path", "/")),
        _bad("a pseudo-header that nobody knows", (":answer", "42")),
        _bad("an interim response that ends the stream", (":status", "103"), status=False),
        _bad("a name in upper case", ("X-Upper", "1")),
        _bad("an empty name", ("", "1")),
        _bad("a space in a name", ("x a", "1")),
        _bad("a colon in a name", ("x:a", "1")),
        _bad("NUL in a name", ("x-\0a", "1")),
        _bad("CR and LF in a name", ("x-a\r\nx-b", "1")),
        _bad("a name that is not ASCII", ("x-ä", "1")),
        _bad("NUL in a value", ("x-a", "a\0b")),
        _bad("CR in a value", ("x-a", "a\rb")),
        _bad("LF in a value", ("x-a", "a\nb")),
        _bad("a field hidden by CR and LF", ("x-a", "1\r\nset-cookie: a=b")),
        _bad("connection", ("connection", "close")),
        _bad("keep-alive", ("keep-alive", "timeout=5")),
        _bad("transfer-encoding", ("transfer-encoding", "chunked")),
        _bad("upgrade", ("upgrade", "websocket")),
        _bad("proxy-connection", ("proxy-connection", "close")),
        _bad("content-length of letters", ("content-length", "abc")),
        _bad("a negative content-length", ("content-length", "-1")),
        _bad("content-length with a plus", ("content-length", "+0")),
        _bad("two content-lengths that differ", ("content-length", "0"), ("content-length", "4")),
        _bad("two content-lengths in one field", ("content-length", "0, 4")),
    ),
    is_parsing=True,
)  # fmt: skip


# -- bodies ----------------------------------------------------------------------------------------


def _length(value: int) -> tuple[str, str]:
    return "content-length", str(value)


BODIES = Group(
    "Bodies that HTTP does not allow",
    (
        fault("a body that is shorter than its content-length", head(200, _length(8)), LATER,
              data(b"half", end=True), expect=BAD_BODY),
        fault("no body, though there is a content-length", head(200, _length(8), end=True),
              expect=(BAD_HEAD, BAD_BODY)),
        fault("no body, told by empty DATA, though there is a content-length",
              head(200, _length(8)), LATER, data_frame(b"", end=True), expect=BAD_BODY),
        fault("a body that is longer than its content-length", head(200, _length(4)), LATER,
              data(b"pagepage", end=True), expect=BAD_BODY),
        fault("a body that goes on after its content-length", head(200, _length(4)), LATER,
              data(b"page"), LATER, data(b"page"), expect=BAD_BODY),
        fault("a body on a 204", head(204), LATER, data(b"page", end=True),
              expect=(BAD_BODY, Answers(status=204, body=b""))),
        fault("a body on a 304", head(304), LATER, data(b"page", end=True),
              expect=(BAD_BODY, Answers(status=304, body=b""))),
        fault("a body on HEAD", head(200), LATER, data(b"page", end=True), ask=_HEAD_ONLY,
              expect=(BAD_BODY, EMPTY)),
        fault("trailers that do not end the stream", head(200), data(b"page"), LATER,
              fields(("x-sum", "1")), expect=BAD_BODY),
        fault("trailers with :status", head(200), data(b"page"), LATER,
              fields(_OK, end=True), expect=BAD_BODY),
        fault("trailers with a name in upper case", head(200), data(b"page"), LATER,
              fields(("X-Sum", "1"), end=True), expect=BAD_BODY),
        fault("trailers with CR and LF in a value", head(200), data(b"page"), LATER,
              fields(("x-sum", "1\r\nx-b: 2"), end=True), expect=BAD_BODY),
        fault("trailers that come before the content-length is reached", head(200, _length(8)),
              data(b"half"), LATER, fields(("x-sum", "1"), end=True), expect=BAD_BODY),
        fault("a second head", head(200), LATER, head(200), data(b"page", end=True),
              expect=BAD_BODY),
        fault("an interim response in the middle of the body", head(200), data(b"pa"), LATER,
              head(103), data(b"ge", end=True), expect=BAD_BODY),
    ),
    is_parsing=True,
)  # fmt: skip

GROUPS = (NONSENSE, HARMLESS, HEADS, BODIES)
