"""A server's side of one HTTP/2 connection: waiting for the client, and ways to answer it.

This module knows when to read, and how an answer is cut into frames. It does not know what a client
may send (`_transcript`), nor what the server is to do (`frames`): it sends what it is told to,
wrong or right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, TypeAlias

import hyperframe.frame as wire

from trunkline.testing._conversation import PATIENCE, ClientGone, Conversation
from trunkline.testing._transcript import FRAME, MALFORMED, Stream, Transcript

Fields: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]

_TURN = 0.01  # seconds that a look at the socket takes while a script waits for something else
_PROTOCOL_ERROR = 1


class Session(Transcript):
    """One HTTP/2 connection, and the script's hand on it.

    Attributes:
        conversation: the connection below: raw bytes, and its end.
        taken: the streams that the script has taken on; its steps count them from 0.
        violations: what the client did that is forbidden.

    See `Transcript` for what has come in.
    """

    def __init__(self, conversation: Conversation, bell: AbstractContextManager[None]) -> None:
        super().__init__()
        self.conversation = conversation
        self.taken: list[Stream] = []
        self.violations: list[str] = []
        self._bell = bell
        self._untaken: list[Stream] = []

    def __repr__(self) -> str:
        seen = ", ".join(
            f"{each.id}: {each.method} with {len(each.body)} bytes"
            f"{', complete' if each.complete else ''}"
            f"{'' if each.reset is None else f', reset {each.reset}'}"
            for each in self.streams[-20:]
        )
        return f"<Session {self.conversation.number}: goaway {self.goaway}, streams [{seen}]>"

    # -- waiting, which is reading -----------------------------------------------------------------

    def until(self, ready: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Take in what comes until `ready()`.

        Raises:
            AssertionError: it was not within `seconds`.
            ClientGone: the client went, or did something forbidden.
        """
        deadline = monotonic() + seconds
        while not ready():
            if monotonic() > deadline:
                raise AssertionError(f"the script waited for what never came: {self}")
            self.look(_TURN)

    def take_on(self, is_ready: Callable[[Stream], bool]) -> Stream:
        """Wait for a stream that the script has not had yet, and that is as far as it should be."""
        found: list[Stream] = []

        def look() -> bool:
            found[:] = [each for each in self._untaken if is_ready(each) and not each.refused][:1]
            return bool(found)

        self.until(look)
        self._untaken.remove(found[0])
        self.taken.append(found[0])
        return found[0]

    def ready(self) -> int:
        """How many requests have arrived whole, and were not taken on yet."""
        return sum(each.complete and not each.refused for each in self._untaken)

    def look(self, seconds: float = 0.0) -> bool:
        """Take in what has come, or comes first within `seconds`. False if that is nothing."""
        if self.conversation.gates.stopping.is_set():
            raise ClientGone
        if not self.conversation.is_readable(seconds):
            return False
        data = self.conversation.read_some()
        try:
            with self._bell:
                opened = self.take(data)
        except MALFORMED as error:
            self._punish(str(error))
            raise ClientGone from error
        self._untaken += opened
        self.conversation.requests += opened
        replies, self.outbox = self.outbox, bytearray()
        if replies:
            self.conversation.send(bytes(replies))
        return True

    def _punish(self, violation: str) -> None:
        self.violations.append(violation)
        why = wire.GoAwayFrame(error_code=_PROTOCOL_ERROR, additional_data=violation.encode())
        self.conversation.send(why.serialize())
        self.conversation.close()

    def linger(self, seconds: float | None = None) -> None:
        """Take in what comes, for `seconds` or until the client ends the connection."""
        deadline = None if seconds is None else monotonic() + seconds
        while self.conversation.is_open and (deadline is None or monotonic() < deadline):
            self.look(_TURN)
            if deadline is not None and self.conversation.gates.released.is_set():
                return

    # -- writing -----------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self.conversation.send(data)

    def head(self, stream_id: int, fields: Fields, *, end: bool = False) -> bytes:
        """HEADERS, and as much CONTINUATION as they need."""
        pairs = [(_bytes(name), _bytes(value)) for name, value in fields]
        block = self.encoder.encode(pairs, huffman=False)
        pieces = [block[at : at + FRAME] for at in range(0, len(block), FRAME)] or [b""]
        frames: list[wire.HeadersFrame | wire.ContinuationFrame] = [
            wire.HeadersFrame(stream_id, data=pieces[0], flags=["END_STREAM"] if end else []),
            *(wire.ContinuationFrame(stream_id, data=piece) for piece in pieces[1:]),
        ]
        frames[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in frames)

    def send_head(self, stream: Stream, fields: Fields, *, end: bool = False) -> None:
        stream.answered = stream.answered or end
        self.send(self.head(stream.id, fields, end=end))

    def send_data(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Send DATA as the windows allow, and wait where they do not.

        Of a stream that the client resets meanwhile the rest is left out.
        """
        while data and stream.reset is None:
            self.until(lambda: self.room(stream) > 0 or stream.reset is not None)
            size = min(self.room(stream), FRAME, len(data))
            if stream.reset is None:
                self.send_frame(stream, data[:size], end=end and size == len(data))
            data = data[size:]
            self.look()

    def send_frame(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Send one DATA frame, whatever the windows are."""
        stream.sent += len(data)
        self.sent += len(data)
        stream.answered = stream.answered or end
        flags = ["END_STREAM"] if end else []
        self.send(wire.DataFrame(stream.id, data=data, flags=flags).serialize())


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
