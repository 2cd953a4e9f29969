"""A server, a process of its own, that answers each request as its header fields ask.

    python _soak_server.py <port> <TLS port> <certificate> <key>

A port may be 0; the ports are printed once it listens. It speaks HTTP/1.1 on both, and HTTP/2 on
the second to whom asks for it by ALPN. Without state but for its connections: it may be killed at
any moment.

Header fields of a request: `x-id`; `x-size`, of the answer's body, which repeats the id;
`x-pieces`, in how many parts it is sent; `x-fault`, what to do instead. The answer has `x-id` and
`x-crc`, of the request's body.

This module knows asyncio's streams, HTTP/1.1 and the `h2` library. It imports nothing of Trunkline.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import GoAwayFrame

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s
_STALL = 5.0  # seconds; whom it is meant for has long gone
_PAUSE = 0.002  # seconds between parts of an answer
_CANCEL, _REFUSED_STREAM, _INTERNAL_ERROR = 8, 7, 2


def content(identity: str, size: int) -> bytes:
    """The body of the answer."""
    one = f"{identity}.".encode()
    return (one * (size // len(one) + 1))[:size]


@dataclass(slots=True)
class Ask:
    identity: str
    size: int
    pieces: int
    fault: str
    crc: int

    @classmethod
    def of(cls, fields: dict[str, str], body: bytes | bytearray) -> Ask:
        number = {name: int(fields.get(name, "0")) for name in ("x-size", "x-pieces")}
        fault, crc = fields.get("x-fault", ""), zlib.crc32(body)
        return cls(fields.get("x-id", ""), number["x-size"], number["x-pieces"], fault, crc)

    @property
    def is_cut(self) -> bool:
        """Half of the body is not sent."""
        return self.fault in ("stall-body", "cut")

    def parts(self) -> Iterator[bytes]:
        body = content(self.identity, self.size)
        step = max(1, len(body) // max(1, self.pieces))
        if self.is_cut:
            body = body[: len(body) // 2]
        return (body[at : at + step] for at in range(0, len(body), step))


# -- HTTP/1.1 --------------------------------------------------------------------------------------


async def speak_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await _answer(await _read(reader), writer):
            pass
    except (asyncio.IncompleteReadError, OSError):
        """The client has gone."""
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Ask:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = [line.partition(":") for line in head.split("\r\n")[1:] if line]
    fields = {name.lower(): value.strip() for name, _, value in lines}
    body = b""
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    elif "transfer-encoding" in fields:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return Ask.of(fields, body)


async def _answer(ask: Ask, writer: asyncio.StreamWriter) -> bool:
    """Answer, or do what is asked for instead. False: the connection is to be closed."""
    if ask.fault == "stall":
        await asyncio.sleep(_STALL)
    if ask.fault == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()
    if ask.fault == "garbage":
        writer.write(b"\x00garbage\r\n\r\n")
    if ask.fault in ("stall", "reset", "garbage", "hang-up"):
        return False
    await _send(ask, writer)
    if ask.is_cut:
        await asyncio.sleep(_STALL if ask.fault == "stall-body" else 0.0)
        return False
    if ask.fault == "close-idle":
        await asyncio.sleep(random.random() * 0.005)
        return False
    return True


async def _send(ask: Ask, writer: asyncio.StreamWriter) -> None:
    head = f"HTTP/1.1 200 OK\r\nx-id: {ask.identity}\r\nx-crc: {ask.crc}\r\n"
    if not ask.pieces:
        writer.write(f"{head}Content-Length: {ask.size}\r\n\r\n".encode())
    else:
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    for part in ask.parts():
        writer.write(b"%x\r\n%b\r\n" % (len(part), part) if ask.pieces else part)
        await writer.drain()
        if ask.pieces:
            await asyncio.sleep(_PAUSE)
    if ask.pieces and not ask.is_cut:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


# -- HTTP/2 ----------------------------------------------------------------------------------------


class Http2:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._has_room = asyncio.Event()
        self._last_id: int | None = None

    async def run(self) -> None:
        self._h2.initiate_connection()
        self._flush()
        try:
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
                await self._writer.drain()
        except (OSError, h2.exceptions.ProtocolError):
            """The client has gone."""
        finally:
            for task in self._answers.values():
                task.cancel()
            self._writer.close()

    def _flush(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(self._h2.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self._has_room.set()
        number = getattr(event, "stream_id", 0) or 0
        if self._last_id is not None and number > self._last_id:
            return
        if isinstance(event, h2.events.RequestReceived):
            fields = {str(name): str(value) for name, value in event.headers or ()}
            self._requests[number] = (fields, bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self._requests[number][1].extend(event.data or b"")
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
        elif isinstance(event, h2.events.StreamEnded):
            ask = Ask.of(*self._requests.pop(number))
            self._answers[number] = asyncio.create_task(self._answer(number, ask))
        elif isinstance(event, h2.events.StreamReset):
            self._requests.pop(number, None)
            self._has_room.set()
            if number in self._answers:
                self._answers[number].cancel()

    async def _answer(self, number: int, ask: Ask) -> None:
        try:
            await self._do(number, ask)
        except (OSError, h2.exceptions.ProtocolError):
            """The stream, or its client, has gone."""
        finally:
            self._answers.pop(number, None)
            self._flush()

    async def _do(self, number: int, ask: Ask) -> None:
        if ask.fault == "stall":
            await asyncio.sleep(_STALL)
        if ask.fault in ("stall", "reset", "refuse"):
            code = _REFUSED_STREAM if ask.fault == "refuse" else _CANCEL
            self._h2.reset_stream(number, code)
            return
        fields = [(":status", "200"), ("x-id", ask.identity), ("x-crc", str(ask.crc))]
        self._h2.send_headers(number, fields)
        for part in ask.parts():
            await self._send(number, part)
            if ask.pieces:
                await asyncio.sleep(_PAUSE)
        if ask.is_cut:
            await asyncio.sleep(_STALL if ask.fault == "stall-body" else 0.0)
            self._h2.reset_stream(number, _INTERNAL_ERROR)
            return
        self._h2.end_stream(number)
        if ask.fault == "goaway" and self._last_id is None:
            self._flush()
            self._last_id = self._h2.highest_inbound_stream_id
            self._writer.write(GoAwayFrame(0, self._last_id).serialize())

    async def _send(self, number: int, data: bytes) -> None:
        while data:
            room = self._h2.local_flow_control_window(number)
            if room <= 0:
                self._has_room.clear()
                await self._has_room.wait()
                continue
            size = min(room, self._h2.max_outbound_frame_size, len(data))
            self._h2.send_data(number, data[:size])
            data = data[size:]
            self._flush()
            await self._writer.drain()


# -- both ------------------------------------------------------------------------------------------


async def _speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    tls = writer.get_extra_info("ssl_object")
    if tls is not None and tls.selected_alpn_protocol() == "h2":
        await Http2(reader, writer).run()
    else:
        await speak_http1(reader, writer)


async def main(port: str, tls_port: str, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = await asyncio.start_server(_speak, "127.0.0.1", int(port), backlog=256)
    secure = await asyncio.start_server(
        _speak, "127.0.0.1", int(tls_port), backlog=256, ssl=context
    )
    print(*(server.sockets[0].getsockname()[1] for server in (plain, secure)), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it has gone


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
