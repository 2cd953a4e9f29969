"""A server that does to its clients what a script says, byte by byte.

This module knows listening sockets and threads. It does not know clients, event loops or
transports: it runs in threads of its own, so the code under test may use any loop, or none. What
scripts are made of is in `_script`; what they act on, in `_conversation`.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from trunkline.testing._conversation import ClientGone, Conversation, Gates, ReceivedRequest

THREAD_NAME = "trunkline-scripted-server"

Step: TypeAlias = Callable[[Conversation], None]
Script: TypeAlias = Sequence[Step]


class ScriptedServer:
    """Gives each connection a script, and keeps what came in on it.

    ::

        with ScriptedServer([expect_request(), send(response()), fin()]) as server:
            ...  # a client asks server.url
            assert server.requests[0].method == "GET"

    The first connection gets the first script, and so on; the last script is for all that follow.
    At the end of its script the server reads until the client ends the connection.

    Args:
        scripts: one for each connection.
        tls: serve https with this.
        host: the address to listen on.
        uds: listen at this path, on a Unix socket, instead.

    Attributes:
        conversations: one for each connection accepted, in their order.
        failures: what went wrong in scripts; `stop` raises the first.
    """

    def __init__(
        self,
        *scripts: Script,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        uds: Path | None = None,
    ) -> None:
        self.conversations: list[Conversation] = []
        self.failures: list[Exception] = []
        self._scripts = scripts
        self._tls = tls
        self._host = host
        self._gates = Gates()
        self._threads: list[threading.Thread] = []
        self._listener = _listen(host, uds)
        self.port = 0 if uds is not None else int(self._listener.getsockname()[1])

    # -- its life ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Cut every connection and end every thread.

        Raises:
            Exception: the first that a script raised.
        """
        self._gates.stopping.set()
        self.release()
        self._wake()
        self._threads[0].join()
        self._listener.close()
        for conversation in self.conversations:
            conversation.hang_up()
        for thread in self._threads:
            thread.join()
        for failure in self.failures:
            raise failure

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=THREAD_NAME, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wake(self) -> None:
        """Make `accept` return: it hears of nothing but a connection on every system."""
        with socket.socket(self._listener.family) as caller:
            caller.connect(self._listener.getsockname())

    def _accept(self) -> None:
        while True:
            plain, _ = self._listener.accept()
            if self._gates.stopping.is_set():
                plain.close()
                return
            number = len(self.conversations)
            script = self._scripts[min(number, len(self._scripts) - 1)]
            conversation = Conversation(number, plain, self._gates)
            self.conversations.append(conversation)
            self._start(self._run, conversation, script)

    def _run(self, conversation: Conversation, script: Script) -> None:
        try:
            if self._tls is not None:
                conversation.start_tls(self._tls)
            for step in script:
                step(conversation)
            if conversation.is_open:
                conversation.drain()
        except ClientGone:
            """The script is over."""
        except Exception as error:  # noqa: BLE001  # `stop` raises it in the test's thread
            self.failures.append(error)
        finally:
            conversation.close()
            conversation.ended = True

    # -- what scripts wait for ---------------------------------------------------------------------

    def open(self, name: str) -> None:
        """Let the scripts that wait at gate `name` go on, now and later."""
        self._gates.get(name).set()

    def release(self) -> None:
        """Open every gate, and end every pause: scripts wait for their clients only, from now."""
        self._gates.release()

    # -- what it saw -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The origin, without a slash at the end; of a Unix socket, a host nobody looks up."""
        scheme = "https" if self._tls else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self.port}" if self.port else f"{scheme}://localhost"

    @property
    def connections(self) -> int:
        """How many were accepted."""
        return len(self.conversations)

    @property
    def open_connections(self) -> int:
        """How many have not ended, by either side."""
        return sum(not conversation.ended for conversation in self.conversations)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All of them, by connection."""
        return [request for each in self.conversations for request in each.requests]

    @property
    def received(self) -> bytes:
        """All bytes, by connection."""
        return b"".join(bytes(each.received) for each in self.conversations)

    @property
    def sent(self) -> int:
        """How many bytes were written, over all connections."""
        return sum(each.sent for each in self.conversations)


def _listen(host: str, uds: Path | None) -> socket.socket:
    if uds is None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family, backlog=512)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(uds))
    listener.listen()
    return listener
