"""The vocabulary of HTTP/2 scripts: what a `FrameServer` does on a connection, as lines of data.

    [greet(max_concurrent_streams=1), expect_request(), head(200), data(b"half"), reset(CANCEL)]

A script is a sequence of steps; this module knows what each does to a `Session`. It does not know
sockets, threads or clients. Streams are counted in the order in which the script took them on, as
in `nth=0`; by default a step acts on the last one. Steps for bytes and sockets, `fin()` and `rst()`
above all, are those of `ScriptedServer`: `raw(fin())`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import hyperframe.frame as wire

from trunkline.testing._frames import FrameStep
from trunkline.testing._servers import Step
from trunkline.testing._session import Session
from trunkline.testing._transcript import Stream

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, HTTP_1_1_REQUIRED = 7, 8, 11, 13

Piece: TypeAlias = bytes | Callable[[Session], bytes]

_BATCH = 64 * 1024  # bytes of a flood that go in one write


# -- bytes -----------------------------------------------------------------------------------------


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream_id: int = 0) -> bytes:
    """One frame, whatever is in it (RFC 9113 section 4.1)."""
    head = len(payload).to_bytes(3) + bytes([kind, flags])
    return head + stream_id.to_bytes(4) + payload


def ping(payload: bytes = b"trunklin") -> bytes:
    return frame(6, payload)


# -- the connection --------------------------------------------------------------------------------


def greet(*, replies: Iterable[str] = ("settings", "ping", "data"), **settings: int) -> FrameStep:
    """Begin: send SETTINGS, by their names in RFC 9113 section 6.5.2, in lower case.

    `replies` is what is answered from now on without a step: SETTINGS, PING, and DATA by giving
    back its window.
    """

    def step(session: Session) -> None:
        session.replies = frozenset(replies)
        session.send(session.announce(_codes(settings)))

    return step


def announce(**settings: int) -> FrameStep:
    """Send SETTINGS, and do not wait until they are acknowledged."""
    return lambda session: session.send(session.announce(_codes(settings)))


def expect_acks() -> FrameStep:
    """Wait until the client has acknowledged all SETTINGS."""
    return lambda session: session.until(lambda: not session.unacknowledged)


def _codes(settings: dict[str, int]) -> dict[int, int]:
    return {getattr(wire.SettingsFrame, name.upper()): value for name, value in settings.items()}


def window(size: int, nth: int | None = None) -> FrameStep:
    """Let the client send `size` bytes more, on a stream or, with None, on the connection."""

    def step(session: Session) -> None:
        session.send(session.window(0 if nth is None else session.taken[nth].id, size))

    return step


def goaway(last_id: int, code: int = NO_ERROR) -> FrameStep:
    """Take no new stream; those above `last_id` were not processed (RFC 9113 section 6.8)."""

    def step(session: Session) -> None:
        session.last_id = last_id
        for stream in session.streams:
            stream.refused = stream.refused or stream.id > last_id
        session.send(wire.GoAwayFrame(last_stream_id=last_id, error_code=code).serialize())

    return step


# -- reading ---------------------------------------------------------------------------------------


def expect_request(target: str | None = None) -> FrameStep:
    """Take on the next stream whose request has arrived to its end; or the one for `target`."""
    return _expect(target, lambda stream: stream.complete)


def expect_head(target: str | None = None) -> FrameStep:
    """Take on the next stream, and leave its body for later."""
    return _expect(target, lambda stream: True)


def _expect(target: str | None, is_far: Callable[[Stream], bool]) -> FrameStep:
    def step(session: Session) -> None:
        session.take_on(lambda stream: is_far(stream) and target in (None, stream.target))

    return step


def expect(ready: Callable[[Stream], object], nth: int = -1) -> FrameStep:
    """Wait until something holds of a stream: `expect(lambda stream: stream.reset is not None)`."""

    def step(session: Session) -> None:
        session.until(lambda: ready(session.taken[nth]))

    return step


def expect_rest(nth: int = -1) -> FrameStep:
    """Wait for the end of a request whose head has arrived."""
    return expect(lambda stream: stream.complete, nth)


def expect_reset(nth: int = -1) -> FrameStep:
    """Wait for the client's RST_STREAM."""
    return expect(lambda stream: stream.reset is not None, nth)


# -- writing ---------------------------------------------------------------------------------------


def fields(*pairs: tuple[str | bytes, str | bytes], end: bool = False, nth: int = -1) -> FrameStep:
    """Send HEADERS with these fields, `:status` and all, or trailers; whether valid or not."""

    def step(session: Session) -> None:
        session.send_head(session.taken[nth], pairs, end=end)

    return step


def head(
    status: int = 200, *headers: tuple[str, str], end: bool = False, nth: int = -1
) -> FrameStep:
    """Send the head of an answer."""
    return fields((":status", str(status)), *headers, end=end, nth=nth)


def data(content: bytes, *, end: bool = False, nth: int = -1) -> FrameStep:
    """Send a part of a body, as fast as the client's windows allow."""
    return lambda session: session.send_data(session.taken[nth], content, end=end)


def data_frame(content: bytes, *, end: bool = False, nth: int = -1) -> FrameStep:
    """Send one DATA frame, also an empty one, without a look at windows."""
    return lambda session: session.send_frame(session.taken[nth], content, end=end)


def answer(body: bytes | None = None, status: int = 200, nth: int = -1) -> FrameStep:
    """Answer, whole; without `body` with the request's target, so that answers differ."""

    def step(session: Session) -> None:
        stream = session.taken[nth]
        content = stream.target.encode() if body is None else body
        bare = not content or stream.method == "HEAD"
        session.send_head(stream, [(":status", str(status))], end=bare)
        if not bare:
            session.send_data(stream, content, end=True)

    return step


def serve(times: int | None = None, **others: Sequence[FrameStep]) -> FrameStep:
    """`answer` request after request: as many, or all that come.

    `serve(call=[reset()])` does these steps, instead, to streams whose target is "/call".
    """

    def step(session: Session) -> None:
        done = 0
        while times is None or done < times:
            stream = session.take_on(lambda stream: stream.complete)
            for each in others.get(stream.target.strip("/"), (answer(),)):
                each(session)
            done += 1

    return step


def reset(code: int = CANCEL, nth: int = -1) -> FrameStep:
    """Send RST_STREAM; REFUSED_STREAM says that the request was not processed."""

    def step(session: Session) -> None:
        stream = session.taken[nth]
        stream.answered, stream.refused = True, stream.refused or code == REFUSED_STREAM
        session.send(wire.RstStreamFrame(stream.id, error_code=code).serialize())

    return step


def send(*pieces: Piece) -> FrameStep:
    """Send frames that were made with `frame`, or any bytes."""

    def step(session: Session) -> None:
        for piece in pieces:
            session.send(piece(session) if callable(piece) else piece)

    return step


def flood(piece: Piece, times: int | None = None, *, unread: bool = False) -> FrameStep:
    """Send `piece` as often as the client takes it: `times`, or until it has gone.

    What it says meanwhile is read, or, if `unread`, left to lie.
    """

    def step(session: Session) -> None:
        one = piece(session) if callable(piece) else piece
        batch = max(1, _BATCH // len(one))
        done = 0
        while times is None or done < times:
            count = batch if times is None else min(batch, times - done)
            session.send(one * count)
            if not unread:
                session.look()
            done += count

    return step


def drip(content: bytes, every: float, nth: int = -1) -> FrameStep:
    """Send a part of a body byte by byte, one in `every` seconds."""

    def step(session: Session) -> None:
        for byte in content:
            session.send_data(session.taken[nth], bytes([byte]))
            session.linger(every)

    return step


def repeat(every: float, *steps: FrameStep) -> FrameStep:
    """Do `steps` again and again, each `every` seconds, and answer whatever else is asked.

    They see the stream that was taken on last before; once the client resets it they are left out.
    """

    def step(session: Session) -> None:
        stream = session.taken[-1]
        while stream.reset is None and not session.conversation.gates.released.is_set():
            session.taken.append(stream)
            for each in steps:
                each(session)
            session.linger(every)
            serve(session.ready())(session)
        serve()(session)

    return step


# -- time ------------------------------------------------------------------------------------------


def wait(gate: str) -> FrameStep:
    """Go on when the test opens the gate: `server.open("name")`."""
    return lambda session: session.until(session.conversation.gates.get(gate).is_set)


def pause(seconds: float) -> FrameStep:
    return lambda session: session.linger(seconds)


def raw(step: Step) -> FrameStep:
    """A step of `ScriptedServer`, on the connection below."""
    return lambda session: step(session.conversation)
