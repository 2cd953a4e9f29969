"""HTTP/2 faults in how streams and connections end: GOAWAY, RST_STREAM, FIN, RST (RFC 9113)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from tests.faults._http2 import (
    BAD_LINE,
    CUT_BODY,
    GONE,
    PAGE,
    REFUSED,
    RESET,
    RESET_BODY,
    SENT_AWAY,
    SiblingHurt,
    broken,
    connections,
    fault,
    only,
    played,
    results,
    seen,
    server_of,
    sibling,
    unhurt,
)
from tests.faults._lab import (
    Act,
    Answers,
    Ask,
    Client,
    Fails,
    Group,
    Reply,
    Stage,
    call,
)

from trunkline import (
    BodyTruncated,
    ConnectError,
    GoAway,
    ReadError,
    RemoteDisconnected,
    StreamReset,
    TransportError,
    WriteError,
)
from trunkline.testing._script import await_bytes, close, fin, mark, rst, send as send_bytes
from trunkline.testing.frames import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    HTTP_1_1_REQUIRED,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    answer,
    data,
    expect_head,
    expect_request,
    frame,
    goaway,
    greet,
    head,
    pause,
    raw,
    reset,
    send,
    serve,
    wait,
)

LATER = pause(0.03)
ANY_ID = 2**31 - 1
HALF = (head(200, ("content-length", "8")), data(b"half"))


# -- GOAWAY ----------------------------------------------------------------------------------------


async def upload_once() -> AsyncIterator[bytes]:
    yield b"order"


_ONCE = Ask(content=upload_once)


async def _once_done(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call, once the server has done to the idle connection what it does."""
    server = server_of(stage)
    await server.until(lambda: "done" in server.conversations[0].marks)
    return await call(client, stage.origin, ask)


async def _three(client: Client, stage: Stage, ask: Ask) -> Reply:
    """Two siblings, of which the server finishes the streams, and the call, above the last id."""

    async def last() -> Reply:
        await seen(stage, 3)
        return await call(client, stage.origin, ask)

    siblings = [sibling(client, stage, path) for path in ("/one", "/two")]
    *found, called = await results(*siblings, last)
    unhurt(found, b"/one", b"/two")
    return only(called)


GOAWAYS = Group(
    "GOAWAY",
    (
        played("GOAWAY(NO_ERROR), then the answer, and no more",
               [greet(), expect_request(), goaway(1), LATER, answer()]),
        played("GOAWAY(NO_ERROR) in the middle of the body, then the rest",
               [greet(), expect_request(), *HALF, goaway(1), LATER, data(b"done", end=True)],
               expect=Answers(body=b"halfdone")),
        played("GOAWAY that leaves the stream out", [greet(), expect_request(), goaway(0)]),
        played("GOAWAY that leaves the stream out, then FIN",
               [greet(), expect_request(), goaway(0), raw(fin())]),
        played("GOAWAY(INTERNAL_ERROR) that leaves the stream out",
               [greet(), expect_request(), goaway(0, INTERNAL_ERROR)]),
        played("GOAWAY as the first word", [greet(), goaway(0)]),
        played("GOAWAY as the first word, then FIN", [greet(), goaway(0), raw(fin())]),
        played("GOAWAY that leaves a stream out, of three",
               [greet(), serve(1), expect_request("/one"), expect_request("/two"),
                expect_request("/call"), goaway(5), LATER, answer(nth=1), answer(nth=2)],
               before=1, act=_three, saw=connections(2)),
        played("GOAWAY in two steps, then the answer",
               [greet(), expect_request(), goaway(ANY_ID), LATER, goaway(1), LATER, answer()]),
        played("GOAWAY in two steps, the second leaves the stream out",
               [greet(), expect_request(), goaway(ANY_ID), LATER, goaway(0)]),
        played("GOAWAY on an idle connection", [greet(), serve(1), goaway(1), raw(mark("done"))],
               before=1, act=_once_done),
        played("GOAWAY on each connection",
               *[[greet(), expect_request(), goaway(0)]] * 3,
               expect=replace(REFUSED, error=GoAway)),
        played("GOAWAY that leaves out a stream whose body cannot be made again",
               [greet(), expect_request(), goaway(0)], ask=_ONCE,
               expect=replace(REFUSED, error=GoAway, attempts=1)),
        played("GOAWAY(NO_ERROR), then FIN before the answer",
               [greet(), expect_request(), goaway(1), raw(fin())], expect=GONE),
        played("GOAWAY(ENHANCE_YOUR_CALM), then FIN before the answer",
               [greet(), expect_request(), goaway(1, ENHANCE_YOUR_CALM), raw(fin())],
               expect=SENT_AWAY),
        played("GOAWAY(NO_ERROR), then FIN in the middle of the body",
               [greet(), expect_request(), *HALF, goaway(1), raw(fin())], expect=CUT_BODY),
        played("GOAWAY(INTERNAL_ERROR), then FIN in the middle of the body",
               [greet(), expect_request(), *HALF, goaway(1, INTERNAL_ERROR), raw(fin())],
               expect=replace(CUT_BODY, error=GoAway)),
        played("GOAWAY that leaves out a stream that is being answered",
               [greet(), expect_request(), *HALF, LATER, goaway(0)],
               expect=replace(CUT_BODY, error=GoAway)),
        broken("GOAWAY of a stream", send(frame(7, bytes(8), 0, 1))),
        broken("GOAWAY of four bytes", send(frame(7, bytes(4)))),
    ),
)  # fmt: skip


# -- RST_STREAM ------------------------------------------------------------------------------------


def _with_code(code: int) -> Act:
    async def act(client: Client, stage: Stage, ask: Ask) -> Reply:
        try:
            return await call(client, stage.origin, ask)
        except StreamReset as error:
            if error.code != code:
                raise AssertionError(f"the code is {error.code}") from error
            raise

    return act


_LARGE = Ask(content=bytes(2**20))
_NO_CREDIT = greet(replies=("settings", "ping"))
_REFUSES = [greet(), serve(call=[reset(REFUSED_STREAM)])]

RESETS = Group(
    "RST_STREAM",
    (
        fault("REFUSED_STREAM, once", reset(REFUSED_STREAM)),
        fault("REFUSED_STREAM, twice", reset(REFUSED_STREAM), expect_request(),
              reset(REFUSED_STREAM)),
        played("REFUSED_STREAM, always", *[_REFUSES] * 9, expect=REFUSED),
        played("REFUSED_STREAM of a body that cannot be made again", _REFUSES, ask=_ONCE,
               expect=replace(REFUSED, attempts=1)),
        fault("CANCEL before the head", reset(CANCEL), expect=RESET, act=_with_code(CANCEL),
              saw=connections(1)),
        fault("CANCEL in the middle of the body", *HALF, LATER, reset(CANCEL), expect=RESET_BODY,
              act=_with_code(CANCEL), saw=connections(1)),
        fault("INTERNAL_ERROR before the head", reset(INTERNAL_ERROR), expect=RESET,
              act=_with_code(INTERNAL_ERROR)),
        fault("INTERNAL_ERROR in the middle of the body", *HALF, LATER, reset(INTERNAL_ERROR),
              expect=RESET_BODY, act=_with_code(INTERNAL_ERROR)),
        fault("ENHANCE_YOUR_CALM before the head", reset(ENHANCE_YOUR_CALM), expect=RESET,
              act=_with_code(ENHANCE_YOUR_CALM)),
        fault("HTTP_1_1_REQUIRED", reset(HTTP_1_1_REQUIRED), expect=RESET,
              act=_with_code(HTTP_1_1_REQUIRED)),
        fault("NO_ERROR before the head", reset(NO_ERROR), expect=RESET, act=_with_code(NO_ERROR)),
        fault("NO_ERROR in the middle of the body", *HALF, LATER, reset(NO_ERROR),
              expect=RESET_BODY, act=_with_code(NO_ERROR)),
        fault("an error code that nobody knows", reset(0xDEAD), expect=RESET,
              act=_with_code(0xDEAD)),
        fault("CANCEL after a whole answer", answer(), reset(CANCEL)),
        played("NO_ERROR after a whole answer, while the body is still being sent",
               [_NO_CREDIT, expect_head(), answer(b"page"), reset(NO_ERROR), serve()],
               ask=_LARGE, expect=PAGE, saw=connections(1)),
        played("a 413 while the body is still being sent, then nothing",
               [_NO_CREDIT, expect_head(), answer(b"page", 413), serve()],
               ask=_LARGE, expect=Answers(status=413), saw=connections(1)),
        played("a 200 while the body is still being sent, then nothing",
               [_NO_CREDIT, expect_head(), answer(b"page"), serve()], ask=_LARGE, expect=PAGE),
        broken("RST_STREAM of three bytes", send(frame(3, bytes(3), 0, 1))),
        broken("RST_STREAM of the connection", send(frame(3, bytes(4), 0, 0))),
    ),
)  # fmt: skip


# -- the end of the connection ---------------------------------------------------------------------

_EITHER = (RemoteDisconnected, WriteError)
_AT_ONCE = Fails(error=(*_EITHER, ConnectError), phase=None, replay=None, sent=None, started=False)
_RESET_LINE = replace(GONE, error=_EITHER)
_RESET_IN_BODY = replace(CUT_BODY, error=(BodyTruncated, ReadError))
_CUT_HEAD = replace(CUT_BODY, phase="headers")
_HEAD_PART = frame(1, b"\x88", 0, 1)  # :status 200, and no END_HEADERS


async def _each_once(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call is not answered; of its siblings one has half an answer, one a whole one."""

    async def last() -> Reply:
        await seen(stage, 4)
        server_of(stage).open("call")
        return await call(client, stage.origin, ask)

    paths = ("/half", "/whole", "/none")
    siblings = [sibling(client, stage, path, b"order") for path in paths]
    half, whole, none, called = await results(*siblings, last)
    unhurt([whole], b"/whole")
    if isinstance(half, Reply) or isinstance(none, Reply) or none is called:
        raise SiblingHurt(f"{half!r}, {none!r}")
    if isinstance(called, TransportError):
        assert isinstance(half, (BodyTruncated, ReadError)), f"half an answer: {half!r}"
        assert isinstance(none, (RemoteDisconnected, WriteError)), f"no answer: {none!r}"
    return only(called)


_FOUR = (greet(), serve(1), expect_request("/half"), *HALF, expect_request("/whole"), answer(),
         expect_request("/none"), wait("call"), expect_request("/call"), LATER)  # fmt: skip

ENDS = Group(
    "The end of the connection",
    (
        played("FIN after the handshake", [raw(fin())], expect=_AT_ONCE),
        played("RST after the handshake", [raw(rst())], expect=_AT_ONCE),
        played("FIN when it has the request", [greet(), expect_request(), raw(fin())],
               expect=GONE),
        played("RST when it has the request", [greet(), expect_request(), raw(rst())],
               expect=_RESET_LINE),
        played("RST when the request is there, unread", [raw(await_bytes()), raw(rst())],
               expect=replace(_RESET_LINE, phase=None, sent=None, replay=None)),
        played("FIN inside the head", [greet(), expect_request(), send(_HEAD_PART), raw(fin())],
               expect=(_CUT_HEAD, GONE)),
        played("FIN after an interim response",
               [greet(), expect_request(), head(103), raw(fin())], expect=_CUT_HEAD),
        played("FIN after the head, before the body",
               [greet(), expect_request(), head(200), raw(fin())], expect=CUT_BODY),
        played("FIN in the middle of the body", [greet(), expect_request(), *HALF, raw(fin())],
               expect=CUT_BODY),
        played("FIN inside a DATA frame",
               [greet(), expect_request(), head(200), send(frame(0, b"half", 0, 1)[:-1]),
                raw(fin())], expect=CUT_BODY),
        played("FIN after all of the body, END_STREAM missing",
               [greet(), expect_request(), head(200, ("content-length", "4")), data(b"page"),
                raw(fin())], expect=CUT_BODY),
        played("RST in the middle of the body",
               [greet(), expect_request(), *HALF, LATER, raw(rst())], expect=_RESET_IN_BODY),
        played("FIN right after a whole answer", [greet(), expect_request(), answer(), raw(fin())]),
        played("RST right after a whole answer",
               [greet(), expect_request(), answer(), LATER, raw(rst())]),
        played("FIN on an idle connection", [greet(), serve(1), raw(fin()), raw(mark("done"))],
               before=1, act=_once_done),
        played("FIN when it has the second request",
               [greet(), serve(1), expect_request(), raw(fin())], before=1,
               expect=replace(GONE, reused=True)),
        played("FIN when it has the second request, a GET",
               [greet(), serve(1), expect_request(), raw(fin())], before=1,
               ask=Ask(method="GET", content=None)),
        played("FIN with several streams open", [*_FOUR, raw(fin())], before=1,
               act=_each_once, expect=replace(GONE, reused=True)),
        played("RST with several streams open", [*_FOUR, raw(rst())], before=1,
               act=_each_once, expect=replace(_RESET_LINE, reused=True)),
    ),
)  # fmt: skip


# -- the beginning ---------------------------------------------------------------------------------

_HTTP_1 = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"

BEGINNINGS = Group(
    "The beginning of the connection",
    (
        played("HTTP/1.1 after it agreed on HTTP/2",
               [raw(send_bytes(_HTTP_1))],
               expect=replace(BAD_LINE, phase=None, sent=None, replay=None)),
        played("garbage instead of SETTINGS", [raw(send_bytes(bytes(range(128, 256)) * 4))],
               expect=replace(BAD_LINE, phase=None, sent=None, replay=None)),
        played("SETTINGS that are never acknowledged", [greet(replies=()), serve()]),
        played("FIN of the request's connection before SETTINGS",
               [raw(await_bytes()), raw(close())], expect=_AT_ONCE),
    ),
)  # fmt: skip

PLAIN = Group(
    "HTTP/2 without TLS, to a server that is known to speak it",
    (
        played("without TLS, an answer", [greet(), serve()], saw=connections(1), plain=True),
        played("without TLS, HTTP/1.1 in answer", [raw(await_bytes()), raw(send_bytes(_HTTP_1))],
               expect=replace(BAD_LINE, phase=None, sent=None, replay=None), plain=True),
        played("without TLS, GOAWAY that leaves the stream out",
               [greet(), expect_request(), goaway(0)], plain=True),
        played("without TLS, RST when it has the request", [greet(), expect_request(), raw(rst())],
               expect=_RESET_LINE, plain=True),
        played("without TLS, FIN in the middle of the body",
               [greet(), expect_request(), *HALF, raw(fin())], expect=CUT_BODY, plain=True),
    ),
)  # fmt: skip

GROUPS = (BEGINNINGS, PLAIN, GOAWAYS, RESETS, ENDS)
