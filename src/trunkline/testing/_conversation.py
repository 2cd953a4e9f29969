"""One connection that a test's server has accepted: what came in on it, and ways to answer.

This module knows blocking sockets, TLS on the server's side, and enough of HTTP/1.1 to say where a
request ends. It does not know what the server is to do (`_script`), nor who accepts (`_servers`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field

PATIENCE = 20.0
"""Seconds that a script waits for its client before the script counts as wrong."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time (socket(7))
_PEER_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
_HEAD_END = b"\r\n\r\n"


class ClientGone(Exception):
    """The client ended the connection; the script ends with it. No error."""


@dataclass(slots=True)
class ReceivedRequest:
    """One request as it came, from its head on; `body` grows while it arrives.

    Attributes:
        raw_head: the bytes of the request line and the header lines.
        headers: in order, with the case of the wire.
        chunks: the pieces of a chunked body.
        complete: the body has arrived to its end.
    """

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    raw_head: bytes
    body: bytearray = field(default_factory=bytearray)
    chunks: list[bytes] = field(default_factory=list[bytes])
    complete: bool = False

    def header(self, name: str) -> str | None:
        """The value of a header, looked up without case; None if it is not there."""
        values = self.all(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Gates:
    """What the scripts of one server wait for beside their clients.

    Attributes:
        released: set when scripts wait for nothing but their client any more.
        stopping: set when scripts have to end.
    """

    def __init__(self) -> None:
        self.released = threading.Event()
        self.stopping = threading.Event()
        self._gates: dict[str, threading.Event] = {}

    def get(self, name: str) -> threading.Event:
        gate = self._gates.setdefault(name, threading.Event())
        if self.released.is_set():
            gate.set()
        return gate

    def release(self) -> None:
        self.released.set()
        for gate in tuple(self._gates.values()):
            gate.set()


class Conversation:
    """One accepted connection: what came in on it, and the script's hand on it.

    Attributes:
        number: 0 for the first connection that was accepted.
        received: every byte that was read, after decryption.
        requests: those whose head has arrived.
        sent: bytes written.
        client_closed: the client has ended the connection, in whatever way.
        client_reset: it did so by RST.
        alpn: the protocol that was agreed on in the TLS handshake.
        client_certificate: what the client showed in it, as `SSLSocket.getpeercert` gives it.
        handshake_error: why it failed.
        marks: what the script has passed; see `_script.mark`.
        ended: the script is over and the socket closed.
    """

    def __init__(self, number: int, plain: socket.socket, gates: Gates) -> None:
        self.number = number
        self.gates = gates
        self.received = bytearray()
        self.requests: list[ReceivedRequest] = []
        self.sent = 0
        self.client_closed = False
        self.client_reset = False
        self.alpn: str | None = None
        self.client_certificate: object = None
        self.handshake_error: ssl.SSLError | OSError | None = None
        self.marks: set[str] = set()
        self.ended = False
        self._socket = plain
        self._ahead = bytearray()
        self._socket.settimeout(PATIENCE)
        if plain.family != socket.AF_UNIX:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def is_open(self) -> bool:
        """Whether our end of the socket is there."""
        return self._socket.fileno() != -1

    @property
    def _tls(self) -> ssl.SSLSocket | None:
        return self._socket if isinstance(self._socket, ssl.SSLSocket) else None

    # -- reading -----------------------------------------------------------------------------------

    def read_some(self) -> bytes:
        """What is there, at least one byte. Raises `ClientGone` at the end."""
        if self._ahead:
            data, self._ahead = bytes(self._ahead), bytearray()
            return data
        try:
            data = self._socket.recv(256 * 1024)
        except TimeoutError as error:
            raise AssertionError("the script waited for bytes that never came") from error
        except OSError as error:
            raise self._gone(reset=isinstance(error, ConnectionResetError)) from error
        if not data:
            raise self._gone(reset=False)
        self.received += data
        return data

    def _gone(self, *, reset: bool) -> ClientGone:
        # A reset after a FIN is the kernel's answer to what was still sent, not the client's.
        self.client_reset = self.client_reset or (reset and not self.client_closed)
        self.client_closed = True
        return ClientGone()

    def read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self.read_some()
        self._ahead[:0] = data[size:]
        return bytes(data[:size])

    def read_until(self, end: bytes) -> bytes:
        data = bytearray()
        while (found := data.find(end)) < 0:
            data += self.read_some()
        self._ahead[:0] = data[found + len(end) :]
        return bytes(data[: found + len(end)])

    def read_head(self) -> ReceivedRequest:
        head = self.read_until(_HEAD_END)
        first, *lines = head[: -len(_HEAD_END)].decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        fields = [line.partition(":") for line in lines]
        headers = [(name, value.strip(" \t")) for name, _, value in fields]
        request = ReceivedRequest(method, target, version, headers, head)
        self.requests.append(request)
        return request

    def read_body(self, request: ReceivedRequest) -> None:
        if "chunked" in (request.header("Transfer-Encoding") or ""):
            self._read_chunks(request)
        else:
            left = int(request.header("Content-Length") or 0)
            while left:
                piece = self.read_some()
                self._ahead[:0] = piece[left:]
                request.body += piece[:left]
                left -= len(piece[:left])
        request.complete = True

    def _read_chunks(self, request: ReceivedRequest) -> None:
        while size := int(self.read_until(b"\r\n").partition(b";")[0], 16):
            chunk = self.read_exactly(size)
            request.chunks.append(chunk)
            request.body += chunk
            assert self.read_exactly(2) == b"\r\n", "a chunk does not end with CRLF"
        while self.read_until(b"\r\n") != b"\r\n":
            """Trailers are let pass."""

    def drain(self) -> None:
        """Read, and forget, until the client ends the connection."""
        with contextlib.suppress(ClientGone):
            while True:
                self.read_some()

    def is_readable(self, seconds: float = 0.0) -> bool:
        """Whether `read_some` would return at once, or does within `seconds`."""
        if self._ahead or (self._tls is not None and self._tls.pending()):
            return True
        return bool(select.select([self._socket], [], [], seconds)[0])

    def wait_gone(self) -> None:
        """Wait until the client ends the connection, without reading a byte of it."""
        poll = select.poll()
        poll.register(self._socket, _PEER_GONE)
        while not self.gates.stopping.is_set():
            for _, event in poll.poll(20):
                raise self._gone(reset=bool(event & select.POLLERR))

    def wait_readable(self) -> None:
        """Wait until something has come, and leave it where it is."""
        while not self._ahead and not self.gates.stopping.is_set():
            if select.select([self._socket], [], [], 0.02)[0]:
                return

    # -- writing -----------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                written = self._socket.send(view)
                self.sent += written
                view = view[written:]
        except TimeoutError as error:
            raise AssertionError("the client has not read what the script sends") from error
        except OSError as error:
            raise self._gone(reset=isinstance(error, ConnectionResetError)) from error

    def send_beneath(self, data: bytes) -> None:
        """Send past TLS, straight to TCP: what comes is no TLS record, or a broken one."""
        with contextlib.suppress(OSError):  # The client was first.
            socket.socket.sendall(self._socket, data)
            self.sent += len(data)

    def fin(self) -> None:
        """End our direction; with TLS without a close_notify."""
        with contextlib.suppress(OSError):  # The client was first.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def close_notify(self) -> None:
        """Say goodbye as TLS asks for (RFC 8446, section 6.1); the client may answer or not."""
        if self._tls is not None:
            with contextlib.suppress(OSError):
                self._socket = self._tls.unwrap()

    def rst(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def close(self) -> None:
        self._socket.close()

    def shrink_buffers(self, size: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    # -- more than HTTP ----------------------------------------------------------------------------

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands. Raises `ClientGone` when that fails; `handshake_error` says why."""
        try:
            # The handshake comes after the assignment, so that `hang_up` can end it.
            self._socket = tls = context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
            tls.do_handshake()
            self.alpn, self.client_certificate = tls.selected_alpn_protocol(), tls.getpeercert()
        except OSError as error:  # ssl.SSLError is one
            self.handshake_error = error
            raise self._gone(reset=isinstance(error, ConnectionResetError)) from error

    def relay_to(self, host: str, port: int, greeting: bytes) -> None:
        """Connect to there, send `greeting`, and pass bytes both ways until either side ends."""
        with socket.create_connection((host, port), PATIENCE) as upstream:
            self.send(greeting)
            back = threading.Thread(target=self._relay_back, args=(upstream,), daemon=True)
            back.start()
            try:
                while True:
                    upstream.sendall(self.read_some())
            finally:
                _shut(upstream)
                back.join()

    def _relay_back(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError, ClientGone):
            while data := upstream.recv(256 * 1024):
                self.send(data)
        self.hang_up()

    def hang_up(self) -> None:
        """End both directions, from whatever thread: what waits in another one returns."""
        _shut(self._socket)


def _shut(either: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(either, socket.SHUT_RDWR)
