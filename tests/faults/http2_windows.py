"""HTTP/2 faults in what the server allows: streams at once, windows, sizes (RFC 9113, 5 and 6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.faults._http2 import (
    BAD_BODY,
    BAD_HEAD,
    BAD_LINE,
    BAD_STREAM,
    NOT_TAKEN,
    RIGHT,
    Expect,
    broken,
    cancelled,
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
from tests.faults._lab import Ask, Client, Fails, Fault, Group, Reply, Stage, call

from trunkline import Limits, PoolTimeout
from trunkline.testing._frames import FrameStep
from trunkline.testing.frames import (
    REFUSED_STREAM,
    announce,
    answer,
    data_frame,
    expect,
    expect_acks,
    expect_head,
    expect_request,
    expect_rest,
    frame,
    greet,
    head,
    pause,
    reset,
    send,
    serve,
    wait,
    window,
)

LATER = pause(0.03)
_MOST = 2**31 - 1
_ONE = {"limits": Limits(max_connections=1)}
_KNOWN = (expect_request(), announce(max_concurrent_streams=0), expect_acks(), answer())
"""A good exchange, at whose end the client knows that no stream is allowed."""

_NO_ROOM = Fails(
    error=PoolTimeout, phase="pool", replay="safe", sent=False, started=False, attempts=0
)


# -- streams at once -------------------------------------------------------------------------------


async def _five(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call and four more, at once."""
    siblings = [sibling(client, stage, f"/{number}") for number in range(4)]
    *found, called = await results(*siblings, lambda: call(client, stage.origin, ask))
    unhurt(found, b"/0", b"/1", b"/2", b"/3")
    return only(called)


async def _behind_one(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call, and two more, wait behind a stream that the server holds until it has them."""
    server = server_of(stage)

    async def after(make: Callable[[], Awaitable[Reply]]) -> Reply:
        await seen(stage, 1)
        server.open("more")
        return await make()

    *found, called = await results(
        sibling(client, stage, "/held"),
        partial(after, sibling(client, stage, "/1")),
        partial(after, sibling(client, stage, "/2")),
        partial(after, partial(call, client, stage.origin, ask)),
    )
    unhurt(found, b"/held", b"/1", b"/2")
    return only(called)


STREAMS = Group(
    "MAX_CONCURRENT_STREAMS",
    (
        played("one stream at once", [greet(max_concurrent_streams=1), serve()], options=_ONE,
               act=_five, saw=connections(1)),
        played("one stream at once, and connections allowed",
               *[[greet(max_concurrent_streams=1), serve()]] * 9, act=_five),
        fault("ten streams at once, then one", announce(max_concurrent_streams=1), answer(),
              options=_ONE, act=_five, saw=connections(1)),
        played("no stream at all, from the beginning",
               [greet(max_concurrent_streams=0), expect_head(), reset(REFUSED_STREAM)]),
        played("no stream any more, and connections allowed", [greet(), *_KNOWN], before=1),
        played("no stream any more, and one connection allowed", [greet(), *_KNOWN], before=1,
               options=_ONE, bounded_by="pool", good=True, expect=(RIGHT, _NO_ROOM)),
        played("no stream for a while, then ten",
               [greet(), *_KNOWN, LATER, announce(max_concurrent_streams=10), serve()], before=1,
               options=_ONE),
        played("one stream, then ten, while three calls wait",
               [greet(max_concurrent_streams=1), expect_request("/held"), wait("more"), LATER,
                announce(max_concurrent_streams=10), serve(3), answer(nth=0), serve()],
               options=_ONE, act=_behind_one, saw=connections(1)),
        played("no stream any more, while one is open",
               [greet(), expect_request(), announce(max_concurrent_streams=0), expect_acks(),
                answer()]),
    ),
)  # fmt: skip


# -- windows ---------------------------------------------------------------------------------------

_NO_CREDIT = ("settings", "ping")
_LARGE = Ask(content=bytes(200_000))
_OPEN = 10**6


def _has(size: int) -> FrameStep:
    return expect(lambda stream: len(stream.body) >= size)


def _upload(name: str, *steps: FrameStep, settings: dict[str, int] | None = None,
            expect: Expect = RIGHT, **more: Any) -> Fault:  # fmt: skip
    """The call is of 200,000 bytes, and gives back no window unless `steps` do."""
    script = [greet(replies=_NO_CREDIT, **(settings or {})), expect_head(), *steps, serve()]
    return played(name, script, ask=_LARGE, expect=expect, **more)


def _stuck(name: str, *steps: FrameStep, **more: Any) -> Fault:
    return _upload(name, *steps, expect=NOT_TAKEN, bounded_by="write", saw=cancelled, **more)


_REST = (expect_rest(), answer())

WINDOWS = Group(
    "Windows for what the client sends",
    (
        _stuck("both windows are never opened again"),
        _stuck("the connection's window is never opened again", window(_OPEN, 0)),
        _stuck("the stream's window is never opened again", window(_OPEN)),
        _stuck("an initial window of nothing", window(_OPEN), settings={"initial_window_size": 0}),
        _stuck("a window of one byte, again and again, then no more",
               *[window(1, 0), window(1), pause(0.01)] * 5),
        _upload("an initial window of nothing, opened later", LATER, window(_OPEN),
                window(_OPEN, 0), *_REST, settings={"initial_window_size": 0}),
        played("an initial window of nothing, known before the call",
               [greet(replies=_NO_CREDIT, initial_window_size=0), expect_request(), expect_acks(),
                answer(), expect_head(), LATER, window(_OPEN, -1), window(_OPEN), *_REST, serve()],
               ask=_LARGE, before=1),
        _upload("windows opened byte by byte, then at once", _has(65_535),
                *[window(1), window(1, 0)] * 10, window(_OPEN, 0), window(_OPEN), *_REST),
        _upload("an initial window shrunk below what is in flight", _has(65_535),
                announce(initial_window_size=1000), expect_acks(), window(_OPEN), LATER,
                window(60_000, 0), LATER, window(_OPEN, 0), *_REST),
        _upload("an initial window shrunk to nothing, then grown", _has(65_535),
                announce(initial_window_size=0), expect_acks(), window(_OPEN), LATER,
                announce(initial_window_size=300_000), *_REST),
        _upload("an initial window grown while a stream waits for it", _has(65_535),
                window(_OPEN), LATER, announce(initial_window_size=300_000), *_REST),
        broken("WINDOW_UPDATE that overflows the connection's window",
               send(frame(8, _MOST.to_bytes(4)))),
        fault("WINDOW_UPDATE that overflows the stream's window",
              send(frame(8, _MOST.to_bytes(4), 0, 1)), expect=BAD_STREAM),
        broken("WINDOW_UPDATE of nothing on the connection", send(frame(8, bytes(4)))),
        fault("WINDOW_UPDATE of nothing on the stream", send(frame(8, bytes(4), 0, 1)),
              expect=BAD_STREAM),
        broken("WINDOW_UPDATE of three bytes", send(frame(8, bytes(3)))),
        fault("WINDOW_UPDATE of a stream that is over", answer(),
              send(frame(8, bytes([0, 0, 0, 9]), 0, 1))),
    ),
)  # fmt: skip


# -- SETTINGS --------------------------------------------------------------------------------------


def _setting(code: int, value: int) -> bytes:
    return frame(4, code.to_bytes(2) + value.to_bytes(4))


_TOLD = Ask(content=bytes(2**20))

SETTINGS = Group(
    "SETTINGS",
    (
        broken("an initial window that is too large", send(_setting(4, 2**31))),
        broken("an initial window that makes the stream's overflow",
               send(frame(8, (_MOST - 65_535).to_bytes(4), 0, 1), _setting(4, 2**30))),
        broken("a maximal frame size below the least", send(_setting(5, 16_383))),
        broken("a maximal frame size above the most", send(_setting(5, 2**24))),
        broken("SETTINGS of five bytes", send(frame(4, bytes(5)))),
        broken("SETTINGS of a stream", send(frame(4, b"", 0, 1))),
        broken("an acknowledgement with a payload", send(frame(4, bytes(6), 1))),
        fault("an acknowledgement that nobody waits for", send(frame(4, b"", 1)), answer()),
        fault("settings that nobody knows", send(_setting(0x99, 1), _setting(0xFFFF, 0)), answer()),
        fault("push that is enabled by the server", send(_setting(2, 1)), answer(),
              expect=(BAD_LINE, RIGHT)),
        fault("a header table of nothing", announce(header_table_size=0), expect_acks(), answer(),
              act=_five),
        fault("a header table of 16 MiB", announce(header_table_size=2**24), expect_acks(),
              answer(), act=_five),
        fault("the least maximal frame size", answer(), ask=_TOLD),
        played("a maximal frame size of 1 MiB", [greet(max_frame_size=2**20), serve()], ask=_TOLD),
        played("the largest maximal frame size", [greet(max_frame_size=2**24 - 1), serve()],
               ask=_TOLD),
        broken("a DATA frame that is one byte too large", head(200), LATER,
               data_frame(bytes(16_385)), expect=BAD_BODY),
        broken("a frame that says it has 16 MiB", send(b"\xff\xff\xff" + bytes(6)),
               expect=(BAD_LINE, BAD_HEAD)),
    ),
    is_parsing=True,
)  # fmt: skip

GROUPS = (STREAMS, WINDOWS, SETTINGS)
