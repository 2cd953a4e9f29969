"""A server that speaks HTTP/2 frame by frame, and does with them what a script says.

This module knows whom its scripts talk to, and how a test waits for what they see. It does not know
frames (`_session`), nor what scripts are made of (`frames`).
"""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import TypeAlias

import anyio
import anyio.to_thread

from trunkline.testing._conversation import Conversation
from trunkline.testing._servers import ScriptedServer, Step
from trunkline.testing._session import Session
from trunkline.testing._transcript import Stream

FrameStep: TypeAlias = Callable[[Session], None]
FrameScript: TypeAlias = Sequence[FrameStep]

_GLANCE = 0.05  # seconds between looks at what rings no bell: sockets that end


class FrameServer(ScriptedServer):
    """Gives each connection a script of HTTP/2 frames, and keeps what came in on it.

    ::

        with FrameServer([greet(), expect_request(), reset(8)], tls=context) as server:
            ...  # a client asks server.url, and finds its stream cancelled
            await server.until(lambda: server.sessions[0].goaway is not None)

    It stands on frames and header compression alone, not on a state machine of HTTP/2, which would
    refuse to break its rules. The steps are in `trunkline.testing.frames`. At the end of its script
    a session goes on reading, answering SETTINGS and PING, until the client ends the connection.

    Args:
        scripts: one for each connection; the last is for all that follow.
        tls: serve https with this; offer "h2" by ALPN. Without it, HTTP/2 by prior knowledge.
        host: the address to listen on.

    Attributes:
        sessions: one for each connection whose TLS handshake was good, in their order.
    """

    def __init__(
        self, *scripts: FrameScript, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        super().__init__(*([self._speak(script)] for script in scripts), tls=tls, host=host)
        self.sessions: list[Session] = []
        self._bell = _Bell()

    def _speak(self, script: FrameScript) -> Step:
        def step(conversation: Conversation) -> None:
            session = Session(conversation, self._bell)
            self.sessions.append(session)
            for each in script:
                each(session)
            session.linger()

        return step

    # -- what it saw -------------------------------------------------------------------------------

    @property
    def streams(self) -> list[Stream]:
        """All that clients opened, by connection."""
        return [stream for session in tuple(self.sessions) for stream in session.streams]

    @property
    def violations(self) -> list[str]:
        """What clients did that HTTP/2 forbids; each had its connection ended for it."""
        return [each for session in tuple(self.sessions) for each in session.violations]

    def processed(self, header: str = "x-request-id") -> Counter[str]:
        """How often each request was taken on, by what it says in `header`.

        A stream that was refused, or left out of a GOAWAY, was not.
        """
        taken_on = (stream for stream in self.streams if not stream.refused)
        return Counter(value for stream in taken_on if (value := stream.header(header)))

    # -- waiting for it ----------------------------------------------------------------------------

    async def until(self, predicate: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait, on any event loop, until `predicate` holds. It is called in another thread.

        Raises:
            TimeoutError: it did not within `seconds`.
        """
        gave_up = threading.Event()
        try:
            await anyio.to_thread.run_sync(
                lambda: self.wait(lambda: gave_up.is_set() or predicate(), seconds),
                abandon_on_cancel=True,
            )
        finally:
            gave_up.set()

    def wait(self, predicate: Callable[[], bool], seconds: float = 10.0) -> None:
        """`until`, for tests without an event loop."""
        if not self._bell.wait(predicate, seconds):
            raise TimeoutError(f"not seen within {seconds:g} s; the server saw {self.sessions}")


class _Bell:
    """Held while something changes; then those who wait for a change look again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        self._changed.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._changed.notify_all()
        self._changed.release()

    def wait(self, predicate: Callable[[], bool], seconds: float) -> bool:
        deadline = monotonic() + seconds
        with self._changed:
            while not predicate():
                if monotonic() > deadline:
                    return False
                self._changed.wait(_GLANCE)
        return True
