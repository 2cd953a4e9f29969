"""All HTTP/2 faults, and what of them nobody can cure (RFC 9113)."""

from __future__ import annotations

from tests.faults import http2_frames, http2_streams, http2_time, http2_windows

GROUPS = (
    *http2_streams.GROUPS,
    *http2_windows.GROUPS,
    *http2_frames.GROUPS,
    *http2_time.GROUPS,
)

LEGEND = """\
- Of HTTP/2 a cell may also name what the server saw, whatever the caller did: `NotReset` (it was
  not told that an answer is not wanted any more), `SiblingHurt` (a fault of one stream hurt
  another), `OtherConnection` (a good connection was given up), `BrokeHttp2`, `ProcessedTwice`.
"""

NOT_CURED = """\
- HTTP/2: a stream that a GOAWAY does not leave out, and that is not answered when the connection
  ends, may have been processed or not. Nothing on the wire says which: `replay` is `if_idempotent`.
- HTTP/2: a cancelled call sends RST_STREAM(CANCEL) at once. Whether the server, or what is behind
  it, stops its work for that is the server's affair, and no frame tells.
- HTTP/2: servers count the streams that a client resets, and some close the connection for too many
  (GOAWAY with ENHANCE_YOUR_CALM). Streams at or below its last id then end with `GoAway`, although
  each cancelled call was in its right.
- HTTP/2: all streams of a connection share one TCP connection: a packet that is lost holds up all
  of them, and each one's deadline goes on.
- HTTP/2: a new connection does not know how many streams the server takes before its SETTINGS are
  there. What was too much comes back as REFUSED_STREAM; it was not processed, and is sent again.
"""
