"""Bytes and text cut into server-sent events and lines.

This module knows the event stream format (WHATWG HTML section 9.2.6) and line ends. It does not
know responses, connections, reconnecting, or who reads; it does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from trunkline._errors import LimitExceeded

MAX_EVENT_SIZE = 16 * 1024 * 1024

_BLANK, _CR = b"\n\n", ord("\r")
_EVENT, _DATA, _BETWEEN = "event: ", "data: ", "\n\ndata: "
_BOM = b"\xef\xbb\xbf"
# A longer number of milliseconds is no time anyone waits, and int() itself refuses 4,301 digits.
_MAX_RETRY_DIGITS = 18


_new: Callable[..., Any] = tuple.__new__  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


class ServerSentEvent(NamedTuple):
    """One event of a `text/event-stream`.

    Attributes:
        event: the event type, "message" unless the server names one.
        data: the data lines, joined with "\\n".
        id: the last event id the stream has named so far, "" before the first.
        retry: the reconnection time in milliseconds (as on the wire) that this very event carried,
            or None.
    """

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: int | None = None

    def json(self) -> Any:
        """Return `data` parsed as JSON. Raises `json.JSONDecodeError` (a ValueError)."""
        return json.loads(self.data)

    def __repr__(self) -> str:
        # Data and id are body: a log line or a traceback that shows the event must not show them.
        return f"ServerSentEvent(event={self.event!r}, data=<{len(self.data)} characters>)"


class SSEDecoder:
    """Cuts the bytes of an event stream into events, as WHATWG HTML section 9.2.6 says.

    Chunks may end anywhere, also inside a character or between CR and LF; the events are the same.
    An event is given out as soon as the line end of its blank line is there. Invalid UTF-8 becomes
    U+FFFD. A `retry` of more than 18 digits is ignored.

    Args:
        max_event_size: bytes that one line, or the joined data of one event, may have. Comments
            between events do not add up.
    """

    __slots__ = ("_after_cr", "_data", "_id", "_is_between", "_max", "_partial", "_retry",
                 "_started", "_type")  # fmt: skip

    def __init__(self, *, max_event_size: int = MAX_EVENT_SIZE) -> None:
        self._max = max_event_size
        self._partial = bytearray()
        self._after_cr = False
        self._started = self._is_between = False
        self._type = ""
        self._id = ""
        # None: no data line yet. Most events have one line, which then is never copied to join.
        self._data: bytes | bytearray | None = None
        self._retry: int | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that `chunk` completes, in order.

        Raises:
            LimitExceeded: a line or an event is larger than `max_event_size`. The decoder is of no
                more use, and events completed earlier in the same chunk are lost.
        """
        # One event of one line in a chunk of its own: most of what models send.
        if (
            self._is_between
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n") == len(chunk) - 2
            and _CR not in chunk
            and len(chunk) <= self._max
        ):
            data = chunk[6:-2].decode("utf-8", "replace")
            return [_new(ServerSentEvent, ("message", data, self._id, None))]
        events = self._feed(chunk) if chunk else []
        self._is_between = self._started and not (self._after_cr or self._is_inside)
        return events

    def _feed(self, chunk: bytes) -> list[ServerSentEvent]:
        if self._after_cr or _CR in chunk:
            chunk = self._unify(chunk)
        if len(chunk) > self._max:
            return self._feed_lines(chunk)
        events: list[ServerSentEvent] = []
        if self._is_inside or not self._started:
            # Up to the end of the event that has begun, which the loop below cannot see whole.
            end = chunk.find(_BLANK) + len(_BLANK)
            if end < len(_BLANK):
                return self._feed_lines(chunk)
            events, chunk = self._feed_lines(chunk[:end]), chunk[end:]
        whole, blank, rest = chunk.rpartition(_BLANK)
        if blank:
            self._feed_whole(whole, events)
        if rest:
            events += self._feed_lines(rest)
        return events

    @property
    def _is_inside(self) -> bool:
        """Something of an event has come, and not its end."""
        has_field = self._data is not None or bool(self._type) or self._retry is not None
        return has_field or bool(self._partial)

    def _feed_whole(self, chunk: bytes, events: list[ServerSentEvent]) -> None:
        """Events that are here from beginning to end: nearly all are one line of data."""
        text, last_id = str(chunk, "utf-8", "replace"), self._id
        if text.startswith(_DATA):
            lines = text[len(_DATA) :].split(_BETWEEN)
            whole = [
                _new(ServerSentEvent, ("message", line, last_id, None))
                for line in lines
                if "\n" not in line
            ]
            if len(whole) == len(lines):
                events += whole
                return
        for each in text.split("\n\n"):
            self._feed_event(each, events)

    def _feed_event(self, text: str, events: list[ServerSentEvent]) -> None:
        """One event without its blank line; many name their type before their line of data."""
        kind = ""
        fields = text
        if text.startswith(_EVENT):
            kind, _, fields = text[len(_EVENT) :].partition("\n")
        if fields.startswith(_DATA) and "\n" not in fields:
            data = fields[len(_DATA) :]
            events.append(_new(ServerSentEvent, (kind or "message", data, self._id, None)))
        elif text:
            events += self._feed_lines(f"{text}\n\n".encode())

    def _feed_lines(self, chunk: bytes) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        for line in self._lines(chunk):
            if line.startswith(b"data: "):
                self._add_data(line[6:])
            elif line:
                self._field(line)
            else:
                if self._data is not None:
                    data = str(self._data, "utf-8", "replace")
                    events.append(
                        ServerSentEvent(self._type or "message", data, self._id, self._retry)
                    )
                    self._data = None
                self._type = ""
                self._retry = None
        return events

    def finish(self) -> None:
        """Discard the event that the end of the stream left incomplete, as the standard says."""
        self._partial = bytearray()
        self._data = None
        self._type = ""
        self._retry = None

    def _lines(self, chunk: bytes) -> list[bytes]:
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines:
            if self._partial:
                lines[0] = bytes(self._partial + lines[0])
                self._partial = bytearray()
            if not self._started:
                self._started = True
                lines[0] = lines[0].removeprefix(_BOM)
            if len(chunk) > self._max or len(lines[0]) > self._max:
                self._refuse_above_limit(max(map(len, lines)))
        if rest:
            self._partial += rest
            self._refuse_above_limit(len(self._partial))
        return lines

    def _unify(self, chunk: bytes) -> bytes:
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _add_data(self, value: bytes) -> None:
        if self._data is None:
            self._data = value
            return
        self._refuse_above_limit(len(self._data) + 1 + len(value))
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        self._data += b"\n"
        self._data += value

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add_data(value)
        elif name == b"event":
            self._type = str(value, "utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = str(value, "utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self._retry = int(value)

    def _refuse_above_limit(self, size: int) -> None:
        if size > self._max:
            raise LimitExceeded(
                f"a line or event of an event stream exceeds {self._max} bytes", phase="body"
            )


class LineDecoder:
    """Cuts text into lines, without their line ends.

    A line ends at LF, CRLF or CR, also when a CRLF is cut between two chunks, and at nothing else:
    not at the form feeds, U+0085, U+2028 and the like where `str.splitlines` cuts, since those may
    stand inside a line of JSON. A line is given out as soon as its line end is there, and text
    after the last line end is a line of its own.
    """

    __slots__ = ("_after_cr", "_partial")

    def __init__(self) -> None:
        self._partial: list[str] = []
        self._after_cr = False

    def feed(self, text: str) -> list[str]:
        """Return the lines that `text` completes, in order."""
        if not text:
            return []
        if self._after_cr or "\r" in text:
            text = self._unify(text)
        lines = text.split("\n")
        rest = lines.pop()
        if lines and self._partial:
            self._partial.append(lines[0])
            lines[0] = "".join(self._partial)
            self._partial.clear()
        if rest:
            self._partial.append(rest)
        return lines

    def finish(self) -> list[str]:
        """Return the last line, if the text did not end with a line end."""
        rest = "".join(self._partial)
        self._partial.clear()
        return [rest] if rest else []

    def _unify(self, text: str) -> str:
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        return text.replace("\r\n", "\n").replace("\r", "\n")
