"""HTTP/1.1 faults in the framing of bodies: lengths, chunks, trailers, and bytes that are nobody's
(RFC 9112, sections 6 and 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
from tests.faults._lab import Answers, Ask, Client, Expect, Fails, Fault, Group, Reply, Stage, call
from tests.faults._shorthand import (
    BAD_BODY,
    BAD_HEAD,
    HEAD_CHUNKED,
    LARGE_HEAD,
    LATER,
    PAGE,
    RIGHT,
    RIGHT_OR_BAD,
    fault,
    head,
    twice,
)

from trunkline import LimitExceeded, ReadTimeout
from trunkline.testing._script import chunk, chunked, flood, response, send
from trunkline.testing._servers import Step

_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKS = chunked(b"page")


def _framed(name: str, fields: bytes, body: bytes, expect: Expect = BAD_HEAD) -> Fault:
    raw = _OK + fields + b"\r\n\r\n" + body
    return head(name, raw, expect)


LENGTHS = Group(
    is_parsing=True,
    title="The length of a body",
    faults=(
        _framed("two lengths that differ", b"Content-Length: 4\r\nContent-Length: 5", b"page!"),
        _framed("two lengths that differ, as a list", b"Content-Length: 4, 5", b"page!"),
        _framed(
            "the same length twice",
            b"Content-Length: 4\r\nContent-Length: 4",
            b"page",
            RIGHT_OR_BAD,
        ),
        _framed("the same length twice, as a list", b"Content-Length: 4, 4", b"page", RIGHT_OR_BAD),
        _framed("a negative length", b"Content-Length: -4", b"page"),
        _framed("a length with a plus", b"Content-Length: +4", b"page"),
        _framed("a length of letters", b"Content-Length: four", b"page"),
        _framed("a length in hexadecimal", b"Content-Length: 0x4", b"page"),
        _framed("a length with a fraction", b"Content-Length: 4.0", b"page"),
        _framed("a length with a space inside", b"Content-Length: 1 4", b"page"),
        _framed("a length with an underscore", b"Content-Length: 1_0", b"page567890"),
        _framed("a length in other digits", "Content-Length: \u0664".encode(), b"page"),
        _framed("an empty length", b"Content-Length:", b"page"),
        _framed("a length of 30 digits", b"Content-Length: " + b"9" * 30, b"page"),
        _framed("a length of 5,000 digits", b"Content-Length: " + b"9" * 5000, b"page"),
        _framed("a length with spaces around it", b"Content-Length:  4  ", b"page", RIGHT),
    ),
)

CODINGS = Group(
    is_parsing=True,
    title="Transfer-Encoding",
    faults=(
        _framed("Content-Length and chunked", b"Content-Length: 4\r\nTransfer-Encoding: chunked",
                _CHUNKS),
        _framed("chunked and Content-Length", b"Transfer-Encoding: chunked\r\nContent-Length: 4",
                _CHUNKS),
        _framed("an unknown coding", b"Transfer-Encoding: x-own", b"page"),
        _framed("an unknown coding, then chunked", b"Transfer-Encoding: x-own, chunked", _CHUNKS),
        _framed("chunked, then gzip", b"Transfer-Encoding: chunked, gzip", _CHUNKS),
        _framed("gzip, then chunked", b"Transfer-Encoding: gzip, chunked", _CHUNKS),
        _framed("chunked twice", b"Transfer-Encoding: chunked, chunked", _CHUNKS),
        _framed("chunked twice, in two fields",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", _CHUNKS),
        _framed("identity", b"Transfer-Encoding: identity", b"page"),
        _framed("a coding that is no token", b"Transfer-Encoding: \x0bchunked", _CHUNKS),
        _framed("an empty coding", b"Transfer-Encoding:", b"page"),
        _framed("chunked in capitals", b"Transfer-Encoding: CHUNKED", _CHUNKS, RIGHT),
        head("chunked in HTTP/1.0",
             b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKS, RIGHT),
    ),
)  # fmt: skip

_END = b"page\r\n0\r\n\r\n"

CHUNKS = Group(
    is_parsing=True,
    title="Chunks",
    faults=(
        *twice("a chunk size of letters", b"xyz\r\n" + _END),
        *twice("an empty chunk size", b"\r\n" + _END),
        *twice("a negative chunk size", b"-4\r\n" + _END),
        *twice("a chunk size with a plus", b"+4\r\n" + _END),
        *twice("a chunk size with 0x", b"0x4\r\n" + _END),
        *twice("a chunk size with an underscore", b"0_4\r\n" + _END),
        *twice("a chunk size with a space before it", b" 4\r\n" + _END),
        *(replace(each, bounded_by="read", why="It is a promise that h11 waits for.")
          for each in twice("a chunk size of 2**64 + 4", b"10000000000000004\r\n" + _END,
                            BAD_BODY, Fails(error=ReadTimeout, phase="body"))),
        *twice("a chunk size of 400 digits", b"f" * 400 + b"\r\n" + _END),
        *twice("a chunk longer than its size", b"2\r\n" + _END),
        *twice("a chunk that does not end in CRLF", b"4\r\npagexx0\r\n\r\n"),
        *twice("a chunk size that ends with a bare LF", b"4\n" + _END),
        *twice("a bare CR in a chunk size", b"4\r4\r\n" + _END),
        *twice("NUL in a chunk extension", b"4;a\x00b\r\n" + _END, RIGHT, BAD_BODY),
        *twice("a bare LF in a chunk extension", b"4;a\nb\r\n" + _END),
        *twice("a trailer that is no field", b"4\r\npage\r\n0\r\nnonsense\r\n\r\n"),
        *twice("a chunk extension", b"4;name=value\r\n" + _END, RIGHT),
        *twice("trailers", b"4\r\npage\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", RIGHT),
        *twice("a trailer that looks like framing",
               b"4\r\npage\r\n0\r\nContent-Length: 9\r\n\r\n", RIGHT, BAD_BODY),
    ),
)  # fmt: skip

LARGE_BODY = Fails(error=LimitExceeded, phase=("headers", "body"))

ENDLESS = Group(
    "Framing without measure",
    (
        fault("a chunk size without end", send(HEAD_CHUNKED), flood(b"0" * 65536),
              expect=LARGE_BODY),
        fault("a chunk extension without end", send(HEAD_CHUNKED + b"4;"), flood(b"x" * 65536),
              expect=LARGE_BODY),
        fault("a chunk extension without end, later", send(HEAD_CHUNKED + chunk(b"page")), LATER,
              send(b"4;"), flood(b"x" * 65536), expect=LARGE_BODY),
        fault("a trailer without end", send(HEAD_CHUNKED + chunk(b"page") + b"0\r\nX: "),
              flood(b"x" * 65536), expect=LARGE_BODY),
        fault("trailers without end", send(HEAD_CHUNKED + chunk(b"page") + b"0\r\n"),
              flood(b"X-More: again\r\n" * 4096), expect=LARGE_BODY),
        fault("ten thousand trailers",
              send(HEAD_CHUNKED + chunk(b"page") + b"0\r\n" + b"X-A: 1\r\n" * 10_000 + b"\r\n"),
              expect=(RIGHT, LARGE_BODY)),
    ),
)  # fmt: skip

_HEAD = Ask(method="HEAD", content=None)
_OTHERS_ANSWER = response(200, b"another caller's answer")
_NO_BODY = Answers(status=204, body=b"")
_EMPTY = Answers(body=b"")
_INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
_SWITCH = response(101, b"", ("Upgrade", "x-own"), ("Connection", "upgrade"), framing="none")


async def _rest(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call; what the server sends after the answer has arrived before anything else is sent."""
    reply = await call(client, stage.origin, ask)
    await anyio.sleep(0.1)
    return reply


def _surplus(name: str, *steps: Step, expect: Expect, **more: Any) -> Fault:
    """After which nothing that comes on the connection can be trusted."""
    return fault(name, *steps, expect=expect, ends_connection=True, **more)


EXTRA = Group(
    "More than was asked for",
    (
        _surplus("an answer glued to the answer", send(PAGE + _OTHERS_ANSWER), expect=RIGHT),
        _surplus("bytes after the answer", send(PAGE + b"surplus"), expect=RIGHT_OR_BAD),
        _surplus("one byte after the answer", send(PAGE + b"H"), expect=RIGHT),
        _surplus("an empty line after the answer", send(PAGE + b"\r\n"), expect=RIGHT),
        _surplus("half an answer after the answer", send(PAGE + _OTHERS_ANSWER[:30]),
                 expect=RIGHT),
        _surplus("bytes after the answer, in a later packet", send(PAGE), LATER,
                 send(b"surplus"), expect=RIGHT, act=_rest),
        _surplus("an answer after the last chunk", send(HEAD_CHUNKED + _CHUNKS +
                 _OTHERS_ANSWER), expect=RIGHT),
        _surplus("a 204 with a length and a body", send(response(204, b"page")),
                 expect=(_NO_BODY, BAD_HEAD)),
        _surplus("a 204 with an answer after it", send(response(204, framing="none") +
                 _OTHERS_ANSWER), expect=_NO_BODY),
        _surplus("a 204 with chunks", send(response(204, b"page", framing="chunked")),
                 expect=(_NO_BODY, BAD_HEAD)),
        _surplus("a 304 with a body", send(response(304, b"page")), expect=(Answers(status=304,
                 body=b""), BAD_HEAD)),
        _surplus("a body to a HEAD", send(PAGE), expect=(_EMPTY, BAD_HEAD), ask=_HEAD),
        _surplus("chunks to a HEAD", send(response(200, b"page", framing="chunked")),
                 expect=(_EMPTY, BAD_HEAD), ask=_HEAD),
        _surplus("an answer glued to the answer to a HEAD", send(PAGE + _OTHERS_ANSWER),
                 expect=(_EMPTY, BAD_HEAD), ask=_HEAD),
        fault("an unasked 101", send(_SWITCH), expect=BAD_HEAD),
        fault("an unasked 101, then an answer", send(_SWITCH + PAGE), expect=BAD_HEAD),
        fault("an Upgrade field with the answer",
              send(response(200, b"page", ("Upgrade", "h2c"), ("Connection", "upgrade"))),
              expect=RIGHT),
        fault("a 100 nobody waits for", send(b"HTTP/1.1 100 Continue\r\n\r\n" + PAGE),
              expect=RIGHT),
        fault("a 103 before the answer", send(_INTERIM), LATER, send(PAGE), expect=RIGHT),
        fault("a 103 with a length",
              send(b"HTTP/1.1 103 Early\r\nContent-Length: 4\r\n\r\n" + PAGE), expect=RIGHT),
        fault("1xx answers without end", flood(_INTERIM * 1000),
              expect=LARGE_HEAD),
        fault("Connection: close, and it stays open",
              send(response(200, b"page", ("Connection", "close"))), expect=RIGHT),
        fault("keep-alive in HTTP/1.0", send(response(200, b"page", ("Connection", "keep-alive"),
              version="HTTP/1.0")), expect=RIGHT),
        fault("Connection: keep-alive, close",
              send(response(200, b"page", ("Connection", "keep-alive, close"))), expect=RIGHT),
    ),
)  # fmt: skip

GROUPS = (LENGTHS, CODINGS, CHUNKS, ENDLESS, EXTRA)
