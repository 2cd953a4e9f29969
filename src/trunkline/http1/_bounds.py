"""Where the body of a response ends.

This module knows the framing of RFC 9112 sections 6 and 7.1. It does not decode.
"""

from __future__ import annotations

import re
from typing import Literal

from trunkline._errors import LimitExceeded, RemoteProtocolError
from trunkline.http1._head import Head

_MAX_LINE = 16 * 1024
_MAX_TRAILERS = 128 * 1024
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")


class Bounds:
    """Tells the bytes of one body from those behind it.

    Args:
        length: of the body in bytes; None: it ends with the connection.
    """

    def __init__(self, length: int | None) -> None:
        self._left = length

    @property
    def is_over(self) -> bool:
        return self._left == 0

    @property
    def may_end(self) -> bool:
        """Whether the end of the connection is a proper end of the body now."""
        return not self._left

    def take(self, data: bytes) -> int:
        """How many of the bytes that come next, `data`, are the body's."""
        if self._left is None:
            return len(data)
        size = min(len(data), self._left)
        self._left -= size
        return size


class ChunkedBounds(Bounds):
    """The same of a chunked body."""

    def __init__(self) -> None:
        super().__init__(None)
        self._line = b""
        self._kind: Literal["size", "end of a chunk", "trailer"] = "size"  # of the next line
        self._in_chunk = self._trailers = 0

    @property
    def may_end(self) -> bool:
        return self.is_over

    def take(self, data: bytes) -> int:
        """As `Bounds.take`.

        Raises:
            RemoteProtocolError: the chunks are not well-formed.
            LimitExceeded: an extension or the trailers are too long.
        """
        at = 0
        while at < len(data) and not self.is_over:
            if self._in_chunk:
                size = min(self._in_chunk, len(data) - at)
                self._in_chunk -= size
                at += size
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            at = end
            if len(self._line) > _MAX_LINE:
                raise LimitExceeded("a line between the chunks of the response is too long")
            if self._line.endswith(b"\n"):
                line, self._line = self._line, b""
                self._take_line(line)
        return at

    def _take_line(self, line: bytes) -> None:
        if self._kind == "size":
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise RemoteProtocolError("a chunk of the response has no valid size")
            self._in_chunk = int(found[1], 16)
            self._kind = "end of a chunk" if self._in_chunk else "trailer"
        elif self._kind == "end of a chunk":
            if line != b"\r\n":
                raise RemoteProtocolError("a chunk of the response does not have its size")
            self._kind = "size"
        else:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS:
                raise LimitExceeded("the trailers of the response are too long")
            if line in (b"\r\n", b"\n"):
                self._left = 0


def bounds_of(head: Head) -> Bounds:
    """Those of the body that `head` announces."""
    return ChunkedBounds() if head.is_chunked else Bounds(head.length)
