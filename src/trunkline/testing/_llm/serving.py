"""An ASGI application in a thread with an event loop of its own.

This module knows hypercorn, threads and TLS. It does not know what is served.

How handshakes are counted: the TLS context makes `SSLObject`s of a subclass that counts its
handshake (`sslobject_class`, documented in `ssl`).

Below hypercorn's documented surface: `_Connection`, and what is imported for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Generator, Sequence
from typing import Any, cast

import hypercorn.config
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from starlette.types import ASGIApp

from trunkline.testing._certificates import Certificate
from trunkline.testing._llm.counts import Tally
from trunkline.testing._llm.sockets import Listener

THREAD_NAME = "trunkline-llm-server"
_BACKLOG = 1024
_UNLIMITED = 2**62
_SETTLING_TURNS = 30
_STOP_TIMEOUT = 1.0

_logger = logging.getLogger("trunkline.testing")


@contextlib.contextmanager
def serving(
    app: ASGIApp, config: Config, listeners: Sequence[Listener]
) -> Generator[BlockingPortal, None, None]:
    options = {"loop_factory": asyncio.SelectorEventLoop}
    with start_blocking_portal("asyncio", options) as portal:
        stopping = asyncio.Event()
        served, _ = portal.start_task(_serve, app, config, listeners, stopping)
        try:
            yield portal
        finally:
            portal.call(stopping.set)
            served.result()


async def _serve(
    app: ASGIApp,
    config: Config,
    listeners: Sequence[Listener],
    stopping: asyncio.Event,
    *,
    task_status: TaskStatus[None],
) -> None:
    threading.current_thread().name = THREAD_NAME
    asyncio.get_running_loop().set_exception_handler(_note)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_Connection(app, config, reader, writer).serve())
        connections.add(task)
        task.add_done_callback(connections.discard)

    tls = config.create_ssl_context()
    servers = [
        await asyncio.start_server(connected, sock=listener, ssl=tls, backlog=_BACKLOG)
        for listener in listeners
    ]
    task_status.started()
    await stopping.wait()
    for listener in listeners:
        listener.hang_up()
    try:
        await settle()  # asyncio forgets what it has accepted when its server is closed
    finally:
        for server in servers:
            server.close()
    if connections:
        await asyncio.wait(connections, timeout=_STOP_TIMEOUT)
    await settle()  # a socket is closed after its connection is over


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # What clients do to their connections and handshakes is what the server is there for.
    if isinstance(context.get("exception"), (ConnectionError, TimeoutError, ssl.SSLError)):
        _logger.debug("%s: %r", context["message"], context["exception"])
    else:
        loop.default_exception_handler(context)


async def settle() -> None:
    # One turn for the loop to see that a listener is ready, one to accept, some for the handshake
    # or the goodbye of what was accepted; a turn in which nothing is ready costs microseconds.
    for _ in range(_SETTLING_TURNS):
        await asyncio.sleep(0)


class _Connection(TCPServer):
    """hypercorn's side of one connection.

    hypercorn keeps a connection whose client has left while it was idle until the keep-alive
    timeout is over. Here it ends when there is no more to read.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        framework = ASGIWrapper(cast("Any", app))  # Its ASGI types are stricter than starlette's.
        loop, context = asyncio.get_running_loop(), WorkerContext(None)
        super().__init__(framework, loop, config, context, {}, reader, writer)
        self._read_all = asyncio.Event()

    async def serve(self) -> None:
        try:
            await self.run()
        except Exception:
            _logger.exception("a connection failed in hypercorn")

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        finally:
            self._read_all.set()

    async def _idle_timeout(self) -> None:
        try:
            async with asyncio.timeout(self.config.keep_alive_timeout):
                await self._read_all.wait()
        except TimeoutError:
            await asyncio.shield(self._initiate_server_close())


class Config(hypercorn.config.Config):
    """hypercorn's settings, and a TLS context that counts."""

    accesslog = None
    errorlog = _logger
    keep_alive_max_requests = _UNLIMITED

    def __init__(
        self, tally: Tally, certificate: Certificate | None, client_ca: str | None
    ) -> None:
        self._tally = tally
        if certificate is not None:
            self.certfile, self.keyfile = certificate.cert_file, certificate.key_file
        if client_ca is not None:
            self.ca_certs, self.verify_mode = client_ca, ssl.VerifyMode.CERT_REQUIRED

    def create_ssl_context(self) -> ssl.SSLContext | None:
        context = super().create_ssl_context()
        if context is not None:
            context.sslobject_class = _counting(self._tally)
        return context


def _counting(tally: Tally) -> type[ssl.SSLObject]:
    class CountingSSLObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()  # Raises SSLWantReadError until it is done.
            tally.add("handshakes")

    return CountingSSLObject
