"""`ASGITransport`: an ASGI application in the place of the network.

This module knows the contract of `Transport` and the life of the application behind it. It does not
know how an exchange with it goes.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from time import monotonic
from typing import Literal

import anyio
from multidict import CIMultiDictProxy

from trunkline import (
    Capabilities,
    ConnectionInfo,
    InvalidRequest,
    PoolSnapshot,
    Request,
    Response,
    Timeouts,
    TransportClosed,
)
from trunkline._messages import make_headers
from trunkline.pool import make_runtime
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.pool._runtime import current_loop
from trunkline.testing._asgi_exchange import ASGIExchange
from trunkline.testing._asgi_scope import decode, make_scope
from trunkline.testing._lifespan import ASGIApp, Lifespan

_GRACE = 1.0


class _Host:
    """The application on one event loop."""

    def __init__(self, app: ASGIApp, *, lifespan: bool) -> None:
        self.runtime = make_runtime()
        self.lifespan = Lifespan(app) if lifespan else None
        self.running: set[ASGIExchange] = set()
        self.failed: list[ASGIExchange] = []
        self._app = app
        self._change = anyio.Event()
        if self.lifespan is not None:
            self.runtime.spawn(self.lifespan.run)

    def start(self, exchange: ASGIExchange, scope: dict[str, object]) -> None:
        self.running.add(exchange)
        self.runtime.spawn(lambda: self._run(exchange, scope))

    async def _run(self, exchange: ASGIExchange, scope: dict[str, object]) -> None:
        try:
            await exchange.run(self._app, scope)
        finally:
            self.running.discard(exchange)
            if exchange.late_failure is not None:
                self.failed.append(exchange)
            self._change.set()

    async def _finished(self, seconds: float | None) -> None:
        with self.runtime.scope(seconds):
            while self.running:
                self._change = anyio.Event()
                await self._change.wait()

    async def aclose(self, drain: float) -> None:
        try:
            await self._finished(drain)
            for exchange in tuple(self.running):
                exchange.fail(TransportClosed("the transport was closed meanwhile"))
            await self._finished(_GRACE)
            if self.lifespan is not None:
                await self.lifespan.shutdown()
        finally:
            self.runtime.cancel_spawned()
        await self._finished(None)
        for exchange in self.failed:
            if exchange.late_failure is not None:
                raise exchange.late_failure


class ASGITransport:
    """A `Transport` that answers every request by calling an ASGI 3 application.

    It runs in the caller's event loop. Bodies stream both ways and nothing is buffered: the
    application's `send` returns when the piece has been taken. Its lifespan starts with the first
    request (or `warm`) and ends with `aclose`.
    When the caller closes a response early, or is cancelled, the application gets
    `http.disconnect`. The deadlines `write`, `headers`, `read` and `total` hold.

    Args:
        app: the application.
        timeouts: as in `TransportConfig`.
        root_path: of the scope: where the application is mounted. The path is what was asked for.
        client: of the scope: address and port of the caller.
        spec_version: of the scope. When the client has gone `send` raises OSError, which "2.4"
            tells the application of. Told "2.3", as by uvicorn, Starlette's streaming responses
            listen for `http.disconnect` besides: they end as soon as the client has gone, waiting
            or not, but lose what of the request's body is not read yet.
        lifespan: False: the application is never told of startup and shutdown.
        raise_app_exceptions: True: what the application raises, or does against the protocol, is
            raised as it is: from `send`, from reading the body, or, when the response had been read
            to its end already, from `aclose`. So that frameworks which answer 500 first and raise
            then are heard, the end of a response waits a few turns of the loop for the
            application to return. False: it is logged, and the caller sees what a server makes of
            it: a 500 before the head, `BodyTruncated` after it.
    """

    capabilities = Capabilities(name="asgi", trio=True, duplex=True)

    def __init__(
        self,
        app: ASGIApp,
        *,
        timeouts: Timeouts | None = None,
        root_path: str = "",
        client: tuple[str, int] = ("127.0.0.1", 50000),
        spec_version: Literal["2.3", "2.4"] = "2.4",
        lifespan: bool = True,
        raise_app_exceptions: bool = True,
    ) -> None:
        self._app = app
        self._timeouts = timeouts or Timeouts()
        self._root_path = root_path
        self._client = client
        self._spec_version = spec_version
        self._has_lifespan = lifespan
        self._raises = raise_app_exceptions
        self._hosts: dict[object, _Host] = {}
        self._ids = count(1)
        self._open: set[ASGIExchange] = set()
        self._created = 0
        self._closed: Counter[str] = Counter()
        self._is_closed = False

    def _host(self) -> _Host:
        if self._is_closed:
            raise TransportClosed("the transport is closed")
        loop = current_loop()
        if loop not in self._hosts:
            self._hosts[loop] = _Host(self._app, lifespan=self._has_lifespan)
        return self._hosts[loop]

    async def send(self, request: Request) -> Response:
        """See `Transport.send`.

        Raises:
            ConnectError: the application did not start.
            TransportError: see `trunkline._errors`; or what the application raised.
        """
        host = self._host()
        timeouts = self._timeouts.overridden_by(request.timeouts)
        attempt = ExchangeAttempt(host.runtime, timeouts, monotonic())
        exchange = ASGIExchange(
            request,
            attempt,
            host.runtime,
            self.capabilities.name,
            self._forget,
            raise_app_exceptions=self._raises,
        )
        self._open.add(exchange)
        self._created += 1
        try:
            if host.lifespan is not None:
                attempt.begin("connect")
                await attempt.wait(host.lifespan.startup())
            self._host()  # not closed meanwhile
        except BaseException as error:
            exchange.give_up(error)
            raise
        state = {} if host.lifespan is None else host.lifespan.state
        scope = make_scope(
            request,
            root_path=self._root_path,
            client=self._client,
            spec_version=self._spec_version,
            state=state,
        )
        host.start(exchange, dict(scope))
        await exchange.head()
        return self._respond(exchange)

    def _respond(self, exchange: ASGIExchange) -> Response:
        return Response(
            exchange.status_code,
            headers=CIMultiDictProxy(make_headers(decode(exchange.raw_headers))),
            raw_headers=exchange.raw_headers,
            request=exchange.request,
            timings=exchange.timings,
            stream=exchange,
            connection=ConnectionInfo(
                id=next(self._ids),
                reused=False,
                age=0.0,
                http_version="HTTP/1.1",
                peer=None,
                requests=1,
            ),
        )

    def _forget(self, exchange: ASGIExchange, reason: str) -> None:
        self._open.discard(exchange)
        self._closed[reason] += 1

    async def warm(self, url: str, connections: int = 1) -> int:
        """Start the application. There is nothing to open: 0.

        Raises:
            ConnectError: it did not start.
        """
        if connections < 1:
            raise InvalidRequest("connections: it must be at least 1")
        Request("GET", url)
        host = self._host()
        if host.lifespan is not None:
            await host.lifespan.startup()
        return 0

    def snapshot(self) -> PoolSnapshot:
        """Each exchange counts as a connection, open until its response is read or closed."""
        open_now = len(self._open)
        return PoolSnapshot(
            open=open_now, active=open_now, created=self._created, closed=dict(self._closed)
        )

    async def aclose(self, drain: float = 0.0) -> None:
        """End what is under way, then have the application shut down.

        Requests may go on for `drain` seconds; then the application sees its clients disconnect,
        has a second to finish, and is cancelled. Of several event loops only the running one's
        share is ended: the others' has ended, or ends, with its loop.

        Raises:
            TransportError: the application's shutdown failed.
            Exception: what the application raised after a response was complete.
        """
        self._is_closed = True
        host = self._hosts.pop(current_loop(), None)
        if host is not None:
            await host.aclose(drain)
