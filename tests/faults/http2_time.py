"""HTTP/2 faults in time and in number: silence, dripping, floods, and streams beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import anyio
from tests.faults._http2 import (
    BAD_HEAD,
    BAD_LINE,
    LARGE_HEAD,
    NO_BODY,
    NO_HEAD,
    NOT_TAKEN,
    RESET,
    TOO_MUCH,
    Expect,
    NotReset,
    cancelled,
    connections,
    fault,
    look,
    only,
    played,
    results,
    seen,
    server_of,
    sibling,
    unhurt,
)
from tests.faults._lab import Ask, Client, Fails, Fault, Group, Reply, Stage, call

from trunkline import DeadlineExceeded, LimitExceeded, Limits
from trunkline.testing import FrameServer
from trunkline.testing._frames import FrameStep
from trunkline.testing._script import hold
from trunkline.testing._session import Session
from trunkline.testing.frames import (
    CANCEL,
    answer,
    data,
    expect_head,
    expect_request,
    expect_reset,
    fields,
    flood,
    frame,
    greet,
    head,
    pause,
    ping,
    raw,
    repeat,
    send,
    serve,
    wait,
    window,
)

_OFTEN = 0.02
_CALL_ID = 1
_OK = b"\x88"
_ONE_CONNECTION = {"limits": Limits(max_connections=1)}
HALF = (head(200, ("content-length", "8")), data(b"half"))


# -- silence ---------------------------------------------------------------------------------------


def _silent(name: str, *steps: FrameStep, expect: Expect = NO_HEAD, by: str = "headers") -> Fault:
    """The server says nothing that brings the answer nearer."""
    return played(
        name, [greet(), expect_request(), *steps, pause(60)], expect=expect, bounded_by=by
    )


_SETTINGS = frame(4, bytes.fromhex("000300000064"))
_EMPTY_DATA = (frame(0, b"", 0, _CALL_ID), frame(0, b"\x04" + bytes(4), 8, _CALL_ID))
_NO_PROGRESS = (
    ping(),
    _SETTINGS,
    frame(8, bytes([0, 0, 0, 1]), 0, _CALL_ID),  # WINDOW_UPDATE
    frame(2, bytes(5), 0, _CALL_ID),  # PRIORITY
    frame(0x77, b"x", 0, _CALL_ID),
)

SILENCE = Group(
    "Silence, and what is none",
    (
        played("silence after the handshake", [pause(60)], expect=NO_HEAD, bounded_by="headers"),
        played("silence after SETTINGS, nothing read", [greet(), raw(hold())], expect=NO_HEAD,
               bounded_by="headers"),
        fault("no answer, while others are answered", expect=NO_HEAD, bounded_by="headers",
              saw=cancelled),
        fault("no body, while others are answered", *HALF, expect=NO_BODY, bounded_by="read",
              saw=cancelled),
        _silent("silence before the head"),
        _silent("silence in the middle of the body", *HALF, expect=NO_BODY, by="read"),
        _silent("PING, SETTINGS, WINDOW_UPDATE, PRIORITY and unknown frames instead of the head",
                repeat(_OFTEN, send(*_NO_PROGRESS))),
        _silent("PING and the like instead of the rest of the body", *HALF,
                repeat(_OFTEN, send(*_NO_PROGRESS)), expect=NO_BODY, by="read"),
        _silent("DATA that is empty, or only padding, instead of the rest of the body", *HALF,
                repeat(_OFTEN, send(*_EMPTY_DATA)), expect=NO_BODY, by="read"),
        _silent("interim responses instead of the head", repeat(_OFTEN, head(103)),
                expect=replace(NO_HEAD, started=True, replay="unsafe")),
        _silent("a head that drips", send(frame(1, _OK, 0, _CALL_ID)),
                *[send(frame(9, b"", 0, _CALL_ID)), pause(_OFTEN)] * 20,
                send(frame(9, b"", 4, _CALL_ID)), serve(),
                expect=(NO_HEAD, replace(NO_HEAD, started=True, replay="unsafe"))),
        _silent("a body that drips without end", head(200), repeat(_OFTEN, data(b"x")), by="total",
                expect=Fails(error=DeadlineExceeded, phase="body")),
        _silent("a body that never ends", head(200), repeat(0.001, data(bytes(1000))), by="total",
                expect=Fails(error=DeadlineExceeded, phase="body")),
        played("PING instead of a window",
               [greet(replies=("settings",)), expect_head(), repeat(_OFTEN, send(ping()))],
               ask=Ask(content=bytes(200_000)), expect=NOT_TAKEN, bounded_by="write"),
    ),
)  # fmt: skip


# -- floods ----------------------------------------------------------------------------------------

_CALMED: Expect = (TOO_MUCH, NO_HEAD)
_CALMED_BODY: Expect = (Fails(error=LimitExceeded, phase="body"), NO_BODY)


def _flood(name: str, *steps: FrameStep, expect: Expect = _CALMED, by: str = "headers") -> Fault:
    return played(name, [greet(), expect_request(), *steps], expect=expect, bounded_by=by)


def _bomb(session: Session) -> bytes:
    """A head of 16 KiB that is 46 MiB when it is decoded: one long field, again and again."""
    block = _OK + session.encoder.encode([(b"x-bomb", b"v" * 3900)], huffman=False)
    return frame(1, block + b"\xbe" * 12_000, 4, _CALL_ID)


_OPEN_HEAD = send(frame(1, _OK, 0, _CALL_ID))
_LARGE = (LARGE_HEAD, TOO_MUCH, BAD_HEAD, BAD_LINE)
"""A library may count frames before it counts bytes, and call it a breach of the protocol."""

FLOODS = Group(
    "Floods",
    (
        _flood("SETTINGS without end", flood(_SETTINGS)),
        _flood("PING without end", flood(ping())),
        _flood("PING without end, whose answers are not read", flood(ping(), unread=True)),
        _flood("SETTINGS without end, whose answers are not read", flood(_SETTINGS, unread=True)),
        _flood("PRIORITY without end", flood(frame(2, bytes(5), 0, 3))),
        _flood("frames of an unknown type without end", flood(frame(0x77, bytes(100)))),
        _flood("WINDOW_UPDATE without end", flood(frame(8, bytes([0, 0, 0, 1]), 0, 0))),
        _flood("interim responses without end", flood(frame(1, b"\x08\x03103", 4, _CALL_ID)),
               expect=(LARGE_HEAD, replace(NO_HEAD, started=True, replay="unsafe"))),
        _flood("empty DATA without end", head(200), flood(frame(0, b"", 0, _CALL_ID)),
               expect=_CALMED_BODY, by="read"),
        _flood("DATA that is only padding, without end", head(200),
               flood(frame(0, b"\xff" + bytes(255), 8, _CALL_ID)), expect=_CALMED_BODY, by="read"),
        _flood("fifty thousand RST_STREAM",
               flood(frame(3, CANCEL.to_bytes(4), 0, _CALL_ID), 50_000), serve(), expect=RESET),
        _flood("CONTINUATION without end", _OPEN_HEAD, flood(frame(9, b"\x00\x03x-a\x01b", 0, 1)),
               expect=_LARGE),
        _flood("empty CONTINUATION without end", _OPEN_HEAD, flood(frame(9, b"", 0, _CALL_ID)),
               expect=_LARGE),
        fault("a head of a megabyte", fields((":status", "200"), ("x-long", "v" * 2**20), end=True),
              expect=_LARGE),
        fault("ten thousand fields", fields((":status", "200"), *[("x-a", "1")] * 10_000, end=True),
              expect=_LARGE),
        fault("a head that is small until it is decoded", send(_bomb), expect=_LARGE),
        fault("trailers of a megabyte", head(200), data(b"page"), pause(0.03),
              fields(("x-long", "v" * 2**20), end=True),
              expect=(Fails(error=LimitExceeded, phase="body"),
                      replace(BAD_HEAD, phase="body"))),
    ),
)  # fmt: skip


# -- streams beside each other ---------------------------------------------------------------------


async def _beside(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call stalls; its sibling drips for longer than any one deadline, and is not hurt."""

    async def last() -> Reply:
        await seen(stage, 2)
        return await call(client, stage.origin, ask)

    dripped, called = await results(sibling(client, stage, "/drip"), last)
    unhurt([dripped], b"drop" * 6)
    return only(called)


_DRIPS = (greet(), serve(1), expect_request("/drip"), head(200), data(b"drop"))
_DROPS = (*[step for _ in range(4) for step in (pause(0.07), data(b"drop", nth=1))],
          pause(0.07), data(b"drop", end=True, nth=1))  # fmt: skip


async def _cancel(client: Client, stage: Stage, ask: Ask, *, ready: Callable[[FrameServer], bool],
                  content: bytes | None = None) -> Reply:  # fmt: skip
    """A sibling that is cancelled when the server is `ready`, and then the call."""
    server = server_of(stage)
    async with anyio.create_task_group() as group:
        group.start_soon(results, sibling(client, stage, "/cancelled", content))
        await server.until(lambda: bool(server.streams) and ready(server))
        group.cancel_scope.cancel()
    await look(server, lambda: server.streams[0].reset == CANCEL, NotReset)
    return await call(client, stage.origin, ask)


def _cancelled(name: str, *steps: FrameStep, ready: Callable[[FrameServer], bool],
               content: bytes | None = None) -> Fault:  # fmt: skip
    async def act(client: Client, stage: Stage, ask: Ask) -> Reply:
        return await _cancel(client, stage, ask, ready=ready, content=content)

    script = [greet(replies=("settings", "ping")), expect_head("/cancelled"), *steps, serve()]
    return played(name, script, act=act, saw=connections(1))


async def _thousand(client: Client, stage: Stage, ask: Ask) -> Reply:
    """A thousand siblings, fifty at once, each cancelled while its body comes; then the call."""
    server = server_of(stage)
    await sibling(client, stage, "/first")()
    (session,) = server.sessions
    before = session.granted - session.sent
    for number in range(50, 1001, 50):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(results, sibling(client, stage, "/cancelled"))
            await server.until(partial(_has_sent, session, number * 60_000))
            group.cancel_scope.cancel()
    await look(server, lambda: all(each.reset == CANCEL for each in server.streams[1:]), NotReset)
    # It may be given back in large pieces: h2 waits for half of it.
    assert session.granted - session.sent >= before / 2 - 65_535, "the window is not given back"
    return await call(client, stage.origin, ask)


def _has_sent(session: Session, size: int) -> bool:
    return session.sent >= size


async def _bystander(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call; beside it twenty siblings are cancelled."""

    async def others() -> Reply:
        await seen(stage, 1)
        for _ in range(20):
            async with anyio.create_task_group() as group:
                group.start_soon(results, sibling(client, stage, "/cancelled"))
                await seen(stage, len(server_of(stage).streams) + 1)
                group.cancel_scope.cancel()
        server_of(stage).open("enough")
        return Reply(200, b"")

    called, _ = await results(lambda: call(client, stage.origin, ask), others)
    return only(called)


_BODY = (head(200), data(bytes(150_000)))

BESIDE = Group(
    "Streams beside each other",
    (
        played("one stream has no answer, another drips",
               [*_DRIPS, expect_request("/call"), *_DROPS, serve()], act=_beside,
               expect=replace(NO_HEAD, reused=True), bounded_by="headers", before=1,
               saw=connections(1)),
        played("one stream stalls in its body, another drips",
               [*_DRIPS, expect_request("/call"), *HALF, *_DROPS, serve()], act=_beside,
               expect=replace(NO_BODY, reused=True), bounded_by="read", before=1,
               saw=connections(1)),
        played("one stream gets no window, another drips",
               [greet(replies=("settings", "ping")), *_DRIPS[1:], expect_head("/call"), *_DROPS,
                serve()],
               act=_beside, expect=replace(NOT_TAKEN, reused=True), bounded_by="write",
               ask=Ask(content=bytes(200_000)), before=1, saw=connections(1)),
        _cancelled("a call is cancelled before its head", ready=lambda server: True),
        _cancelled("a call is cancelled in the middle of its body", *HALF,
                   ready=lambda server: server.streams[0].sent > 0),
        _cancelled("a call is cancelled while it waits for a window", expect_reset(),
                   window(65_535), content=bytes(200_000),
                   ready=lambda server: len(server.streams[0].body) == 65_535),
        played("twenty calls are cancelled beside another",
               [greet(), expect_request("/call"), wait("enough"), answer(), serve()],
               act=_bystander, saw=connections(1)),
        played("a thousand calls are cancelled in the middle of their bodies",
               [greet(), serve(cancelled=_BODY)], act=_thousand, options=_ONE_CONNECTION,
               saw=connections(1)),
    ),
)  # fmt: skip

GROUPS = (SILENCE, FLOODS, BESIDE)
