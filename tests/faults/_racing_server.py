"""A server, a process of its own, that closes its connections when a request may be on its way.

    python _racing_server.py <listening descriptor> <mode> <seed> [<certificate> <key>]

This module knows blocking sockets and just enough HTTP/1.1. It imports nothing of Trunkline. A
process of its own, so that a request travels while the server closes: in one process the two would
take turns. When its standard input ends it writes, as JSON, how often it processed each request.

Modes: after an answer, one time in two, it sleeps for up to 5 ms without reading, and then closes
("fin") or resets ("rst") the connection. In "crash" it does so, and one time in five it reads a
request to its end, counts it as processed, and closes or resets without an answer.
"""

from __future__ import annotations

import json
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s
_ID = re.compile(rb"\r\nx-request-id: ([^\r]+)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
_IDLE_SECONDS = 0.005


class RacingServer:
    def __init__(self, mode: str, seed: int, context: ssl.SSLContext | None) -> None:
        self.processed: Counter[str] = Counter()
        self._mode = mode
        self._seed = seed
        self._context = context

    def serve(self, listener: socket.socket) -> None:
        number = 0
        while True:
            connection, _ = listener.accept()
            number += 1
            chance = random.Random(self._seed * 1_000_003 + number)
            threading.Thread(target=self._run, args=(connection, chance), daemon=True).start()

    def _run(self, connection: socket.socket, chance: random.Random) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            while self._answer(connection, chance):
                pass
        except OSError:
            """The client has gone."""
        finally:
            connection.close()

    def _answer(self, connection: socket.socket, chance: random.Random) -> bool:
        """One exchange. False: the connection is to be closed."""
        identity = _read_request(connection)
        if identity is None:
            return False
        self.processed[identity.decode()] += 1
        if self._mode == "crash" and chance.random() < 0.2:
            if chance.random() < 0.5:
                _reset(connection)
            return False
        connection.sendall(_ANSWER % (len(identity), identity))
        if chance.random() < 0.5:
            return True
        time.sleep(chance.random() * _IDLE_SECONDS)
        if self._mode == "rst":
            _reset(connection)
        return False


def _read_request(connection: socket.socket) -> bytes | None:
    """Read a request to its end. Returns its id; None if the connection ended before."""
    data = b""
    while True:
        head, found, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if found and len(body) >= (int(length[1]) if length else 0):
            identity = _ID.search(head + b"\r\n")
            return identity[1] if identity else b""
        more = connection.recv(65536)
        if not more:
            return None
        data += more


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def main(descriptor: str, mode: str, seed: str, *certificate: str) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.set_alpn_protocols(["http/1.1"])
    server = RacingServer(mode, int(seed), context)
    listener = socket.socket(fileno=int(descriptor))
    threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
    sys.stdin.read()
    print(json.dumps(server.processed))


if __name__ == "__main__":
    main(*sys.argv[1:])
