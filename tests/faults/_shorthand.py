"""What the tables of HTTP/1.1 faults are written with: outcomes by name, and scripts as faults.

This module knows the lab's model and the scripted server's vocabulary. It states no fault.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from tests.faults._lab import GOOD, Answers, Expect, Fails, Fault, echo, scripted

from trunkline import (
    BodyTruncated,
    DecodeError,
    LimitExceeded,
    RemoteDisconnected,
    RemoteProtocolError,
)
from trunkline.testing._script import (
    answer,
    chunk,
    chunked,
    expect_request,
    pause,
    response,
    send,
)
from trunkline.testing._servers import Step

PAGE = response(200, b"page")
ASKED_CLOSE = response(200, b"page", ("Connection", "close"))
HEAD_CHUNKED = response(200, framing="chunked").removesuffix(chunked())
HEAD_TO_EOF = response(200, b"", framing="close")
LATER = pause(0.03)
"""Makes what is sent next a packet of its own."""

BAD_HEAD = Fails(error=RemoteProtocolError, phase="headers")
BAD_BODY = Fails(error=RemoteProtocolError, phase="body")
LARGE_HEAD = Fails(error=LimitExceeded, phase="headers")
LARGE_BODY = Fails(error=LimitExceeded, phase="body")
GONE = Fails(error=RemoteDisconnected, phase="headers", replay="if_idempotent", started=False)
CUT_HEAD = Fails(error=BodyTruncated, phase="headers")
CUT_BODY = Fails(error=BodyTruncated, phase="body")
CORRUPT = Fails(error=DecodeError, phase="body")
RIGHT = Answers()

RIGHT_OR_BAD: Expect = (RIGHT, BAD_HEAD)
"""The parser may choose: what it lets pass does no harm."""


def fault(name: str, *steps: Step, expect: Expect, **more: Any) -> Fault:
    """The server reads the request and takes `steps`; after an answer it serves on.

    With `before`, the connection has carried so many good exchanges.
    """
    good = [answer(echo)] * more.get("before", 0)
    allowed = expect if isinstance(expect, tuple) else (expect,)
    rest = GOOD if any(isinstance(each, Answers) for each in allowed) else ()
    stage = scripted([*good, expect_request(), *steps, *rest])
    return Fault(name=name, stage=stage, expect=expect, **more)


def head(line: str, raw: bytes, expect: Expect = BAD_HEAD, **more: Any) -> Fault:
    """An answer that is sent as it is."""
    return fault(line, send(raw), expect=expect, **more)


def field(name: str, raw: bytes, expect: Expect = BAD_HEAD) -> Fault:
    """An otherwise good answer with this among its header fields."""
    rest = b"\r\nContent-Length: 4\r\n\r\npage"
    return head(name, b"HTTP/1.1 200 OK\r\nX-First: 1\r\n" + raw + rest, expect)


def twice(name: str, raw: bytes, *expect: Fails | Answers) -> tuple[Fault, Fault]:
    """This inside a chunked body: in the packet of the head, and in a later one."""
    expect = expect or (BAD_BODY,)
    return (
        fault(f"{name}, with the head", send(HEAD_CHUNKED + raw),
              expect=tuple(map(_with_head, expect))),
        fault(f"{name}, in a later packet", send(HEAD_CHUNKED + chunk(b"good")), LATER, send(raw),
              expect=tuple(map(_later, expect))),
    )  # fmt: skip


def _with_head(expect: Fails | Answers) -> Fails | Answers:
    # Where the parser gives up the packet, the head in it has not come.
    return replace(expect, phase=("headers", "body")) if isinstance(expect, Fails) else expect


def _later(expect: Fails | Answers) -> Fails | Answers:
    if isinstance(expect, Fails):
        return expect
    return replace(expect, body=b"good" + (expect.body or b""))


async def upload() -> AsyncIterator[bytes]:
    """16 MiB, in pieces."""
    for _ in range(256):
        yield bytes(64 * 1024)
