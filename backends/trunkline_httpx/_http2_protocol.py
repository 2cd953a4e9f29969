"""HTTP/2 in bytes: what h2 has to be told, and the one kind of frame it must not be shown.

This module knows h2's settings and a frame's first nine bytes. It does not know sockets, or who
waits for what.
"""

from __future__ import annotations

import h2.config
import h2.connection
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes

from trunkline import Request
from trunkline_httpx._message import encode_value

MAX_STREAMS = 100
STREAM_WINDOW = 1024 * 1024
_FRAME_HEAD = 9
_MAX_FRAME = 16 * 1024
_GOAWAY = 7
_CONNECTION_HEADERS = frozenset(  # RFC 9113 section 8.2.2
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)


def make_protocol() -> h2.connection.H2Connection:
    """A client's side of h2, with the preface and our settings ready to be sent."""
    protocol = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding=None)
    )
    codes = h2.settings.SettingCodes
    protocol.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            codes.MAX_HEADER_LIST_SIZE: protocol.DEFAULT_MAX_HEADER_LIST_SIZE,
        },
    )
    protocol.initiate_connection()
    # Room for every stream's window: one that is read slowly holds up no other.
    protocol.increment_flow_control_window(MAX_STREAMS * STREAM_WINDOW)
    return protocol


def encode_head(request: Request) -> list[tuple[bytes, bytes]]:
    """The header fields of `request`, without those that only HTTP/1.1 has."""
    authority = request.origin.authority
    fields: list[tuple[bytes, bytes]] = []
    for cased_name, value in request.wire_headers():
        name = cased_name.lower()
        if name == "host":
            authority = value
        elif name not in _CONNECTION_HEADERS and (name != "te" or value == "trailers"):
            fields.append((name.encode(), encode_value(value)))
    return [
        (b":method", request.method.encode()),
        (b":scheme", request.origin.scheme.encode()),
        (b":authority", encode_value(authority)),
        (b":path", request.path.encode()),
        *fields,
    ]


def code_name(code: int) -> str:
    """The name of an error code (RFC 9113 section 7)."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"


class FrameFilter:
    """Takes the GOAWAY frames out of what h2 gets.

    To h2 one is the end of the connection, though the peer goes on with the streams up to its last
    id (RFC 9113 section 6.8).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._goaways: list[tuple[int, int]] = []

    def feed(self, data: bytes) -> bytes:
        """The complete frames of what has come so far, but for GOAWAY.

        Raises:
            h2.exceptions.FrameTooLargeError: h2 itself would take in all of the frame before.
        """
        data = self._rest + data
        kept: list[bytes] = []
        begin = at = 0
        while len(data) - at >= _FRAME_HEAD:
            size = int.from_bytes(data[at : at + 3])
            end = at + _FRAME_HEAD + size
            if size > _MAX_FRAME:
                raise h2.exceptions.FrameTooLargeError(f"a frame of {size} bytes")
            if end > len(data):
                break
            if data[at + 3] == _GOAWAY and size >= 8:
                kept.append(data[begin:at])
                self._note(data[at + _FRAME_HEAD : end])
                begin = end
            at = end
        kept.append(data[begin:at])
        self._rest = data[at:]
        return b"".join(kept)

    def _note(self, payload: bytes) -> None:
        last_id = int.from_bytes(payload[:4]) & 0x7FFFFFFF
        self._goaways.append((last_id, int.from_bytes(payload[4:8])))

    def take_goaways(self) -> list[tuple[int, int]]:
        """Last stream id and error code of each GOAWAY that came since this was asked."""
        goaways, self._goaways = self._goaways, []
        return goaways
