"""The life of an ASGI application: its startup before the first request, its shutdown at the end.

This module knows the lifespan protocol (ASGI specification, "Lifespan Protocol"). It does not know
requests, nor when they come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import anyio

from trunkline import ConnectError, TransportError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
# Any: applications type their scope and messages in many ways, and each is right.
ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

_VERSIONS = {"version": "3.0", "spec_version": "2.0"}


class Lifespan:
    """One life of `app`, on one event loop. `run` is spawned beside everything else.

    An application that fails before it has asked for a message does not know the protocol: it is
    served without, as the specification says.

    Attributes:
        state: what the application's startup left for its requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._inbox = [{"type": "lifespan.startup"}]
        self._stop = anyio.Event()
        self._started = anyio.Event()
        self._ended = anyio.Event()
        self._has_asked = False
        self._failure: str | None = None
        self._cause: BaseException | None = None

    async def run(self) -> None:
        scope = {"type": "lifespan", "asgi": _VERSIONS, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except anyio.get_cancelled_exc_class():
            self._fail("it was cancelled")
            raise
        # What a test framework raises to end a test is no Exception.
        except BaseException as error:  # noqa: BLE001
            self._cause = error
            if self._has_asked:
                self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._started.set()
            self._ended.set()

    def _fail(self, message: str) -> None:
        self._failure = self._failure or message

    async def _receive(self) -> Message:
        self._has_asked = True
        if not self._inbox:
            await self._stop.wait()
            self._stop = anyio.Event()  # a third message never comes
            return {"type": "lifespan.shutdown"}
        return self._inbox.pop()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            lines = (message.get("message") or "it gives no reason").strip().splitlines()
            self._fail(lines[-1])  # of a traceback, the exception
        elif kind not in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            raise RuntimeError(f"the application sent {kind!r} in its lifespan")
        (self._started if ".startup." in kind else self._ended).set()

    async def startup(self) -> None:
        """Return when the application has started.

        Raises:
            ConnectError: it could not; its own exception, if there is one, is the cause.
        """
        await self._started.wait()
        if self._failure is not None:
            raise ConnectError(f"the application did not start: {self._failure}") from self._cause

    async def shutdown(self) -> None:
        """Have the application shut down, and return when it has.

        Raises:
            TransportError: it failed to.
        """
        await self._started.wait()
        failed_before = self._failure is not None
        self._stop.set()
        await self._ended.wait()
        if self._failure is not None and not failed_before:
            raise TransportError(
                f"the application did not shut down: {self._failure}"
            ) from self._cause
