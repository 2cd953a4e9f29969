"""The vocabulary of scripts: what a server does on a connection, as a few lines of data.

    [expect_request(), send(response(200, b"hello")[:-3]), pause(1), rst()]

A script is a sequence of steps; this module knows what each does to a `Conversation`. It does not
know sockets, threads or clients.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Literal, TypeAlias

from trunkline.testing._conversation import Conversation, ReceivedRequest
from trunkline.testing._servers import Step

Reply: TypeAlias = bytes | Callable[[ReceivedRequest], bytes]


# -- bytes -----------------------------------------------------------------------------------------


def response(
    status: int = 200,
    body: bytes = b"",
    *headers: tuple[str, str],
    framing: Literal["length", "chunked", "close", "none"] = "length",
    reason: str | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """An answer, whole. `framing` says how the end of the body is told; "none" adds nothing."""
    phrase = HTTPStatus(status).phrase if reason is None else reason
    fields = list(headers)
    if framing == "length":
        fields.append(("Content-Length", str(len(body))))
    elif framing == "chunked":
        fields.append(("Transfer-Encoding", "chunked"))
        body = chunked(body)
    elif framing == "close":
        fields.append(("Connection", "close"))
    lines = [f"{version} {status} {phrase}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(*pieces: bytes) -> bytes:
    """The pieces as a chunked body, with its end."""
    return b"".join(chunk(piece) for piece in pieces if piece) + b"0\r\n\r\n"


# -- reading ---------------------------------------------------------------------------------------


def expect_request() -> Step:
    """Read one request, to the end of its body."""

    def step(conversation: Conversation) -> None:
        conversation.read_body(conversation.read_head())

    return step


def expect_head() -> Step:
    """Read one request's head, and leave what follows."""

    def step(conversation: Conversation) -> None:
        conversation.read_head()

    return step


def expect_rest() -> Step:
    """Read the body of the request whose head was read last."""

    def step(conversation: Conversation) -> None:
        conversation.read_body(conversation.requests[-1])

    return step


def expect_bytes(size: int) -> Step:
    def step(conversation: Conversation) -> None:
        conversation.read_exactly(size)

    return step


def await_bytes() -> Step:
    """Wait until the client has sent something, and read none of it."""
    return Conversation.wait_readable


def drain() -> Step:
    """Read until the client ends the connection."""
    return Conversation.drain


def hold() -> Step:
    """Read nothing and send nothing until the client ends the connection."""
    return Conversation.wait_gone


# -- writing ---------------------------------------------------------------------------------------


def send(*pieces: bytes) -> Step:
    """Send the pieces, each in a write of its own."""

    def step(conversation: Conversation) -> None:
        for piece in pieces:
            conversation.send(piece)

    return step


def send_beneath(data: bytes) -> Step:
    """Send past TLS, straight to TCP."""

    def step(conversation: Conversation) -> None:
        conversation.send_beneath(data)

    return step


def drip(data: bytes, every: float) -> Step:
    """Send byte by byte, `every` seconds."""

    def step(conversation: Conversation) -> None:
        for byte in data:
            conversation.send(bytes([byte]))
            if conversation.gates.released.wait(every):
                return

    return step


def flood(piece: bytes, times: int | None = None) -> Step:
    """Send `piece` as often as the client takes it: `times`, or without end."""

    def step(conversation: Conversation) -> None:
        done = 0
        while times is None or done < times:
            conversation.send(piece)
            done += 1

    return step


def answer(reply: Reply = b"") -> Step:
    """Read one request and send `reply`; by default an empty 200."""

    def step(conversation: Conversation) -> None:
        request = conversation.read_head()
        conversation.read_body(request)
        conversation.send(reply(request) if callable(reply) else reply or response())

    return step


def serve(*replies: Reply) -> list[Step]:
    """A whole script: answer request after request, the last reply again and again."""

    def step(conversation: Conversation) -> None:
        for reply in replies:
            answer(reply)(conversation)
        while True:
            answer(replies[-1] if replies else b"")(conversation)

    return [step]


# -- time ------------------------------------------------------------------------------------------


def wait(gate: str) -> Step:
    """Go on when the test opens the gate: `server.open("name")`."""

    def step(conversation: Conversation) -> None:
        conversation.gates.get(gate).wait()

    return step


def pause(seconds: float) -> Step:
    def step(conversation: Conversation) -> None:
        conversation.gates.released.wait(seconds)

    return step


def mark(name: str) -> Step:
    """Tell the test that the script has come so far: `name in conversation.marks`."""

    def step(conversation: Conversation) -> None:
        conversation.marks.add(name)

    return step


# -- ends ------------------------------------------------------------------------------------------


def fin() -> Step:
    """End our direction, and go on reading. With TLS the close_notify is left out."""
    return Conversation.fin


def close_notify() -> Step:
    """End TLS as it should be ended."""
    return Conversation.close_notify


def close() -> Step:
    """Close the socket; what the client sends from now on is answered with RST."""
    return Conversation.close


def rst() -> Step:
    """Reset the connection."""
    return Conversation.rst


def small_buffers(size: int = 4096) -> Step:
    """Let the kernel hold little in either direction."""

    def step(conversation: Conversation) -> None:
        conversation.shrink_buffers(size)

    return step


# -- more than HTTP --------------------------------------------------------------------------------


def start_tls(context: ssl.SSLContext) -> Step:
    """Go on over TLS."""

    def step(conversation: Conversation) -> None:
        conversation.start_tls(context)

    return step


def repeat(times: int, steps: Iterable[Step]) -> Step:
    steps = tuple(steps)

    def step(conversation: Conversation) -> None:
        for _ in range(times):
            for each in steps:
                each(conversation)

    return step


def tunnel(credentials: str | None = None) -> Step:
    """Be a proxy: connect where CONNECT says, if it shows `user:password`; else answer 407."""

    def step(conversation: Conversation) -> None:
        request = conversation.read_head()
        assert request.method == "CONNECT", f"a proxy that tunnels was asked to {request.method}"
        if credentials is not None and not _shows(request, credentials):
            conversation.send(response(407, b"", ("Proxy-Authenticate", "Basic")))
            return
        host, _, port = request.target.rpartition(":")
        conversation.relay_to(host.strip("[]"), int(port), response(200, framing="none"))

    return step


def _shows(request: ReceivedRequest, credentials: str) -> bool:
    expected = "Basic " + b64encode(credentials.encode()).decode()
    return request.header("Proxy-Authorization") == expected


def socks5(credentials: str | None = None) -> Step:
    """Be a SOCKS5 proxy (RFC 1928), with user name and password (RFC 1929) if `credentials`."""

    def step(conversation: Conversation) -> None:
        version, methods = conversation.read_exactly(2)
        offered = conversation.read_exactly(methods)
        method = 2 if credentials else 0
        assert version == 5
        if method not in offered:
            conversation.send(b"\x05\xff")
            return
        conversation.send(bytes([5, method]))
        if credentials and not _logs_in(conversation, credentials):
            return
        host, port = _socks_target(conversation)
        conversation.relay_to(host, port, b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")

    return step


def _logs_in(conversation: Conversation, credentials: str) -> bool:
    _, size = conversation.read_exactly(2)
    user = conversation.read_exactly(size)
    password = conversation.read_exactly(conversation.read_exactly(1)[0])
    right = b":".join((user, password)) == credentials.encode()
    conversation.send(b"\x01\x00" if right else b"\x01\x01")
    return right


def _socks_target(conversation: Conversation) -> tuple[str, int]:
    import ipaddress

    _, command, _, kind = conversation.read_exactly(4)
    assert command == 1, "only CONNECT is served"
    if kind == 3:
        host = conversation.read_exactly(conversation.read_exactly(1)[0]).decode()
    else:
        host = str(ipaddress.ip_address(conversation.read_exactly(4 if kind == 1 else 16)))
    return host, int.from_bytes(conversation.read_exactly(2), "big")
