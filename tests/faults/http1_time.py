"""HTTP/1.1 faults of time and measure: stalls, drips, bodies without end, and a peer that does not
take the request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from tests.faults._lab import GOOD, Answers, Ask, Expect, Fails, Fault, Group, scripted
from tests.faults._shorthand import (
    HEAD_CHUNKED,
    HEAD_TO_EOF,
    LATER,
    PAGE,
    RIGHT,
    fault,
    upload,
)

from trunkline import (
    DeadlineExceeded,
    HeadersTimeout,
    ReadTimeout,
    RemoteDisconnected,
    RemoteProtocolError,
    WriteError,
    WriteTimeout,
)
from trunkline._errors import Phase, Replay
from trunkline.testing._script import (
    chunk,
    close,
    drip,
    expect_head,
    expect_rest,
    fin,
    flood,
    hold,
    pause,
    response,
    rst,
    send,
    small_buffers,
)
from trunkline.testing._servers import Step

_NO_HEAD = Fails(error=HeadersTimeout, phase="headers")
_SILENT = Fails(error=HeadersTimeout, phase="headers", replay="if_idempotent", started=False)
_NO_BODY = Fails(error=ReadTimeout, phase="body")
_INTERIM = response(102, framing="none")


def _late(phase: Phase, *, started: bool) -> Fails:
    replay: Replay = "unsafe" if started else "if_idempotent"
    return Fails(error=DeadlineExceeded, phase=phase, replay=replay, started=started)


STALLS = Group(
    "Stalls and drips",
    (
        fault("silence before the head", hold(), expect=_SILENT, bounded_by="headers"),
        fault("silence before the head, and `total`", hold(), bounded_by="total",
              expect=_late("headers", started=False)),
        fault("silence inside the head", send(PAGE[:20]), hold(), expect=_NO_HEAD,
              bounded_by="headers"),
        fault("a head that drips", drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 5000, 0.02),
              expect=_NO_HEAD, bounded_by="headers"),
        fault("1xx answers that drip", *[send(_INTERIM), pause(0.05)] * 100, expect=_NO_HEAD,
              bounded_by="headers"),
        fault("silence after the head", send(PAGE[:-4]), hold(), expect=_NO_BODY,
              bounded_by="read"),
        fault("silence inside the body", send(PAGE[:-1]), hold(), expect=_NO_BODY,
              bounded_by="read"),
        fault("silence between two chunks", send(HEAD_CHUNKED + chunk(b"page")), hold(),
              expect=_NO_BODY, bounded_by="read"),
        fault("silence inside a chunk size", send(HEAD_CHUNKED + b"1"), hold(), expect=_NO_BODY,
              bounded_by="read"),
        fault("silence instead of the end of a body that ends with the connection",
              send(HEAD_TO_EOF + b"page"), hold(), expect=_NO_BODY, bounded_by="read"),
        fault("a body that drips", send(response(200, bytes(5000))[:-5000]),
              drip(bytes(5000), 0.02), expect=_late("body", started=True), bounded_by="total"),
        fault("chunks that drip", send(HEAD_CHUNKED), *[send(chunk(b"x")), pause(0.02)] * 500,
              expect=_late("body", started=True), bounded_by="total"),
        fault("a chunk extension that drips", send(HEAD_CHUNKED + b"4;"), drip(b"x" * 5000, 0.02),
              expect=_late("body", started=True), bounded_by="total"),
    ),
)  # fmt: skip

_ENDLESS = Fails(error=DeadlineExceeded, phase="body")

ENDLESS = Group(
    "Bodies without end",
    (
        fault("chunks without end", send(HEAD_CHUNKED), flood(chunk(b"x" * 1000), 20_000),
              hold(), expect=_ENDLESS, bounded_by="total"),
        fault("a body without end", send(HEAD_TO_EOF), flood(b"x" * 65536, 300), hold(),
              expect=_ENDLESS, bounded_by="total"),
    ),
)  # fmt: skip

_TOO_LARGE = response(413, b"too large", ("Connection", "close"))
_REFUSED = Answers(status=413, body=b"too large")
_LARGE = bytes(16 * 2**20)
# The server is in this process, and keeps what it has received three times.
_WITH_THE_SERVERS = 8 * len(_LARGE)


def _uploads(name: str, *steps: Step, expect: Expect,
             bounded_by: str | None = None, reads: bool = False) -> tuple[Fault, ...]:  # fmt: skip
    """A large body, as bytes and as an iterable, of which the server reads what `steps` read."""
    kinds: dict[str, bytes | Callable[[], AsyncIterator[bytes]]] = {
        "bytes": _LARGE, "an iterable": upload
    }  # fmt: skip
    return tuple(
        Fault(
            name=f"{name} ({kind})",
            stage=scripted([*([] if reads else [small_buffers()]), expect_head(), *steps]),
            expect=expect,
            ask=Ask(content=content),
            bounded_by=bounded_by,
            memory=_WITH_THE_SERVERS,
        )
        for kind, content in kinds.items()
    )


_CUT = Fails(error=(RemoteDisconnected, WriteError), phase=("headers", "write"),
             replay="if_idempotent", sent="partly", started=False)  # fmt: skip

UPLOADS = Group(
    "A large request",
    (
        *_uploads("413 at once, nothing more is read, and it stays open", send(_TOO_LARGE), hold(),
                  expect=_REFUSED),
        *_uploads("413 at once, then FIN", send(_TOO_LARGE), fin(), hold(), expect=_REFUSED),
        *_uploads("413 at once, then RST", send(_TOO_LARGE), pause(0.1), rst(), expect=_REFUSED),
        *_uploads("413 at once, and the body is read", send(_TOO_LARGE), expect_rest(),
                  expect=_REFUSED, reads=True),
        *_uploads("200 at once, and the body is read", send(PAGE), expect_rest(), *GOOD,
                  expect=RIGHT, reads=True),
        *_uploads("413 at once, then close", send(_TOO_LARGE), close(), expect=(_REFUSED, _CUT)),

        *_uploads("413 in pieces, nothing more is read", send(_TOO_LARGE[:20]), LATER,
                  send(_TOO_LARGE[20:]), hold(), expect=_REFUSED),
        *_uploads("413 without its body", send(_TOO_LARGE[:-9]), hold(), bounded_by="read",
                  expect=Fails(error=ReadTimeout, phase="body", sent="partly")),
        *_uploads("nothing more is read", hold(), bounded_by="write",
                  expect=Fails(error=WriteTimeout, phase="write", replay="if_idempotent",
                               sent="partly", started=False)),
        *_uploads("nothing more is read, and `total`", hold(), bounded_by="total",
                  expect=Fails(error=DeadlineExceeded, phase="write", replay="if_idempotent",
                               sent="partly", started=False)),
        *_uploads("RST inside the request", pause(0.05), rst(), expect=_CUT),
        *_uploads("close inside the request", pause(0.05), close(), expect=_CUT),
        *_uploads("FIN inside the request", fin(), hold(), expect=_CUT),
        *_uploads("garbage inside the request", send(b"garbage\r\n\r\n"), hold(),
                  expect=Fails(error=RemoteProtocolError, phase=("write", "request"),
                               sent="partly")),
    ),
)  # fmt: skip

GROUPS = (STALLS, ENDLESS, UPLOADS)
