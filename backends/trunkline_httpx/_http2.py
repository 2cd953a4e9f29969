"""HTTP/2: a connection on h2, the protocol library under httpx, and the exchanges on it.

This module knows streams, windows and frames (RFC 9113). It does not know how the connection was
opened, or when a connection may be used again by whom.

It stands beside httpx's own HTTP/2 because that one never resets a stream, ends all of them at a
GOAWAY, starts with one stream at a time, and cannot wait for less window than none.

No task runs in the background. Of the exchanges that wait for the peer, one reads for all, and when
it has what it needs the next one takes over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes
from multidict import CIMultiDictProxy

from trunkline import (
    Attempt,
    GoAway,
    InvalidRequest,
    LimitExceeded,
    RemoteProtocolError,
    Request,
    StreamRefused,
    StreamReset,
    TransportError,
)
from trunkline_httpx._exchange import RequestBody, decode_headers
from trunkline_httpx._frames import FrameFilter
from trunkline_httpx._network import Stream
from trunkline_httpx._translate import EXCHANGE, Course, Table, translate

_MAX_STREAMS = 100
_STREAM_WINDOW = 1024 * 1024
_MAX_OUTBOX = 1024 * 1024
_HOP_BY_HOP = frozenset(  # RFC 9113 section 8.2.2
    {b"connection", b"host", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

HTTP2: Table = (
    (h2.exceptions.DenialOfServiceError, lambda *_: LimitExceeded("the peer floods the connection")),
    (h2.exceptions.H2Error, lambda *_: RemoteProtocolError("the peer broke the rules of HTTP/2")),
    *EXCHANGE,
)


class Http2Connection:
    """Implements `trunkline.Connection`."""

    http_version = "HTTP/2"

    def __init__(self, stream: Stream) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._frames = FrameFilter()
        self._http = _make_protocol()
        self._exchanges: dict[int, Http2Exchange] = {}
        self._waiting: dict[Http2Exchange, anyio.Event] = {}
        self._reading = self._writing = False
        self._outbox = bytearray()
        self._sent = 0
        self._retired = self._closed = False
        self.push()

    # -- the contract ----------------------------------------------------------------------------

    @property
    def max_exchanges(self) -> int:
        return min(_MAX_STREAMS, self._http.remote_settings.max_concurrent_streams)

    def is_usable(self) -> bool:
        if not self._retired and not self._reading:
            while self._take_in():
                pass
        return not self._retired

    async def exchange(self, request: Request, attempt: Attempt) -> Http2Exchange:
        ...
