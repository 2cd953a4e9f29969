"""HTTP/1.1 faults of the connection: where it ends, and how, in and between exchanges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio
from tests.faults._lab import (
    Answers,
    Ask,
    Client,
    Expect,
    Fails,
    Fault,
    Group,
    Reply,
    Stage,
    after_one,
    call,
    scripted,
)
from tests.faults._shorthand import (
    BAD_HEAD,
    CUT_BODY,
    CUT_HEAD,
    GONE,
    HEAD_CHUNKED,
    HEAD_TO_EOF,
    LATER,
    PAGE,
    RIGHT,
    fault,
)

from trunkline import (
    BodyTruncated,
    ConnectError,
    ReadError,
    RemoteDisconnected,
    TransportError,
    WriteError,
)
from trunkline.testing._script import (
    await_bytes,
    chunk,
    close,
    expect_request,
    fin,
    response,
    rst,
    send,
)
from trunkline.testing._servers import Step

HEAD_PART = b"HTTP/1.1 200 OK\r\nContent-Le"
_ENDS: tuple[tuple[str, Callable[[], Step]], ...] = (("FIN", fin), ("RST", rst))
_EITHER: tuple[type[TransportError], ...] = (RemoteDisconnected, WriteError)


def _each(name: str, *steps: Step, expect: Fails) -> tuple[Fault, ...]:
    """`steps`, and then either end of the connection."""
    return tuple(fault(f"{how} {name}", *steps, LATER, end(), expect=expect) for how, end in _ENDS)


def _at_accept(how: str, end: Step) -> Fault:
    # It depends on the moment whether it comes while connecting, writing or waiting.
    expect = Fails(error=(*_EITHER, ConnectError), phase=None, replay=None, sent=None,
                   started=False, attempts=None)  # fmt: skip
    return Fault(name=f"{how} at accept", stage=scripted([end]), expect=expect)


def _unread(how: str, end: Step) -> Fault:
    expect = Fails(error=_EITHER, phase=("headers", "write"), replay="if_idempotent", sent=None,
                   started=False)  # fmt: skip
    stage = scripted([await_bytes(), end])
    return Fault(name=f"{how} when the request is there, unread", stage=stage, expect=expect)


_RESET_BODY = Fails(error=(BodyTruncated, ReadError), phase="body")

ENDS = Group(
    "The end of the connection",
    (
        _at_accept("FIN", fin()),
        _at_accept("close", close()),
        _at_accept("RST", rst()),
        _unread("close", close()),
        _unread("RST", rst()),
        *_each("before the head", expect=GONE),
        *_each("in the status line", send(b"HTTP/1."), expect=CUT_HEAD),
        *_each("inside the head", send(HEAD_PART), expect=CUT_HEAD),
        *_each("before the end of the head", send(PAGE[:-6]), expect=CUT_HEAD),
        *_each("after an interim response", send(b"HTTP/1.1 102 Processing\r\n\r\n"),
               expect=CUT_HEAD),
        fault("FIN after the head, before the body", send(PAGE[:-4]), fin(), expect=CUT_BODY),
        fault("RST after the head, before the body", send(PAGE[:-4]), LATER, rst(),
              expect=_RESET_BODY),
        fault("FIN one byte before the end of the body", send(PAGE[:-1]), fin(), expect=CUT_BODY),
        fault("RST one byte before the end of the body", send(PAGE[:-1]), LATER, rst(),
              expect=_RESET_BODY),
        fault("FIN after a chunk, the last one missing", send(HEAD_CHUNKED + chunk(b"page")), fin(),
              expect=CUT_BODY),
        fault("RST after a chunk, the last one missing", send(HEAD_CHUNKED + chunk(b"page")), LATER,
              rst(), expect=_RESET_BODY),
        fault("FIN inside a chunk", send(HEAD_CHUNKED + chunk(b"page")[:-4]), fin(),
              expect=CUT_BODY),
        fault("FIN inside a chunk size", send(HEAD_CHUNKED + chunk(b"page") + b"1"), fin(),
              expect=CUT_BODY),
        fault("FIN between a chunk and its CRLF", send(HEAD_CHUNKED + b"4\r\npage"), fin(),
              expect=CUT_BODY),
        fault("FIN after the last chunk, its empty line missing",
              send(HEAD_CHUNKED + chunk(b"page") + b"0\r\n"), fin(), expect=CUT_BODY),
        fault("FIN inside the trailers", send(HEAD_CHUNKED + chunk(b"page") + b"0\r\nX-Sum: 1"),
              fin(), expect=CUT_BODY),
        fault("RST in a body that ends with the connection", send(HEAD_TO_EOF + b"pa"), LATER,
              rst(), expect=_RESET_BODY),
        fault("FIN in a body that ends with the connection", send(HEAD_TO_EOF + b"page"), fin(),
              expect=RIGHT),
        fault("RST right after a whole answer", send(PAGE), LATER, rst(), expect=RIGHT),
        fault("FIN right after a whole answer", send(PAGE), fin(), expect=RIGHT),
    ),
)  # fmt: skip


_GET = Ask(method="GET", content=None)
_KEYED = Ask(headers=(("Idempotency-Key", "1"),))
_AGAIN = Answers(body=b"/call")  # from the next connection
_SECRET = response(200, b"another caller's answer")


def _reused(name: str, *scripts: Sequence[Step], expect: Expect, **more: Any) -> Fault:
    """The first of `scripts` goes on after a good exchange; the others are of new connections."""
    stage = scripted(after_one(scripts[0]), *scripts[1:])
    return Fault(name=name, stage=stage, expect=expect, before=1, **more)


async def _rest(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call, once what the server does to the idle connection has arrived."""
    await anyio.sleep(0.1)
    return await call(client, stage.origin, ask)


_HANGS_UP = [expect_request(), fin()]
_LOST = replace(GONE, reused=True)

REUSE = Group(
    "A connection that has been used",
    (
        _reused("FIN on an idle connection", [fin()], expect=_AGAIN, act=_rest),
        _reused("RST on an idle connection", [rst()], expect=_AGAIN, act=_rest),
        _reused("an answer on an idle connection", [LATER, send(_SECRET)], expect=_AGAIN,
                act=_rest),
        _reused("a 408 and FIN on an idle connection", [send(response(408)), fin()],
                expect=_AGAIN, act=_rest),
        _reused("one byte on an idle connection", [LATER, send(b"H")], expect=_AGAIN, act=_rest),
        _reused("an empty line on an idle connection", [LATER, send(b"\r\n")], expect=_AGAIN,
                act=_rest),
        _reused("FIN when it has the POST", _HANGS_UP, expect=_LOST),
        _reused("FIN when it has the GET", _HANGS_UP, expect=_AGAIN, ask=_GET),
        _reused("FIN when it has the POST with an Idempotency-Key", _HANGS_UP, expect=_AGAIN,
                ask=_KEYED),
        _reused("FIN when it has the GET, twice", _HANGS_UP, _HANGS_UP, ask=_GET, recovers=False,
                expect=replace(GONE, attempts=2)),
        _reused("RST when the POST is there, unread", [await_bytes(), rst()],
                expect=(_AGAIN, replace(_LOST, error=_EITHER))),
        _reused("RST when it has the POST", [expect_request(), rst()], expect=_LOST),
        _reused("close when it has the POST", [expect_request(), close()], expect=_LOST),
        _reused("FIN inside the head of the second answer",
                [expect_request(), send(HEAD_PART), fin()],
                expect=replace(CUT_HEAD, reused=True), ask=_GET),
        _reused("garbage as the second answer", [expect_request(), send(b"garbage\r\n\r\n")],
                expect=replace(BAD_HEAD, reused=True), ask=_GET),
    ),
)  # fmt: skip

GROUPS = (ENDS, REUSE)
