"""`LLMServer`: the echoing LLM API on real sockets, in a thread with an event loop of its own.

This module knows hypercorn, sockets and TLS. It does not know what is served.

How connections are counted. The listening sockets are of a subclass whose `accept` counts, and
whose accepted sockets count their `close`. The TLS context makes `SSLObject`s of a subclass that
counts its handshake (`sslobject_class`, documented in `ssl`). This rests on one thing that asyncio
does without promising it: the selector event loop accepts by the listening socket's `accept`.

Below hypercorn's documented surface: `_Connection`, and what is imported for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, cast

import anyio
import anyio.to_thread
import hypercorn.config
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext

from trunkline.testing._certificates import LOOPBACK_NAMES, Certificate, Certificates
from trunkline.testing._llm_app import Counts, LLMApp, Tally

THREAD_NAME = "trunkline-llm-server"
_BACKLOG = 1024
_UNLIMITED = 2**62
_SETTLING_TURNS = 30
_STOP_TIMEOUT = 1.0

_logger = logging.getLogger(__name__)


class LLMServer:
    """An OpenAI-compatible server for tests, demos and benchmarks. `LLMApp` says what it answers.

    It runs in a thread of its own, so the code under test may use any event loop, or none::

        with LLMServer(tls=True) as server:  # `async with` does the same without blocking the loop
            config = TransportConfig(tls=Tls(ca_file=server.ca_file))
            ...
            assert (server.requests, server.connections) == (20, 1)

    The counts are exact. Reading one first lets the server take in what has reached it: a
    connection that a client has opened by then is counted, whether or not it sent anything. What
    the server learns only later (that a client has gone, say) can be waited for: `wait_cancelled`,
    `wait_open_connections`, `wait_until`.

    Args:
        tls: serve https, with a certificate that is valid for `host`, localhost, 127.0.0.1 and ::1,
            signed by an authority made for this server (`ca_file`).
        http2: offer h2 by ALPN, before http/1.1. Needs `tls`.
        host: the address to listen on. "localhost" is both 127.0.0.1 and ::1, on the same port.
        port: 0 takes a free one.
        token_delay: seconds of silence before each token.
        keep_alive_timeout: seconds after which an idle connection is closed.
        certificate: serve with this one (an expired one, say). Needs `tls`; its files have to
            outlast the server.
        client_ca: let only clients in that show a certificate signed by this authority (the path
            of a PEM file). Needs `tls`.

    Raises:
        ValueError: an argument that cannot be honoured.
    """

    def __init__(
        self,
        *,
        tls: bool = False,
        http2: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        token_delay: float = 0.0,
        keep_alive_timeout: float = 3600.0,
        certificate: Certificate | None = None,
        client_ca: str | None = None,
    ) -> None:
        if not tls and (http2 or certificate is not None or client_ca is not None):
            raise ValueError("http2, certificate and client_ca need tls=True")
        self._tls = tls
        self._http2 = http2
        self._host = host
        self._port = port
        self._keep_alive_timeout = keep_alive_timeout
        self._certificate = certificate
        self._client_ca = client_ca
        self._tally = Tally()
        self._app = LLMApp(token_delay=token_delay, tally=self._tally)
        self._portal: BlockingPortal | None = None
        self._cleanup = contextlib.ExitStack()
        self._ca_file: str | None = None

    # -- its life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, and return when requests are served.

        A stopped server may be started again: on the same port, with an authority of its own.

        Raises:
            RuntimeError: it is running.
            OSError: the address is not to be had.
        """
        if self._portal is not None:
            raise RuntimeError("the server is running")
        with contextlib.ExitStack() as stack:
            certificate = self._certificate
            if self._tls and certificate is None:
                names = dict.fromkeys((*LOOPBACK_NAMES, self._host))
                certificate = stack.enter_context(Certificates()).server(*names)
            listeners = [
                stack.enter_context(contextlib.closing(listener))
                for listener in _listen(self._host, self._port, self._tally)
            ]
            config = _Config(self._tally, certificate, self._client_ca)
            config.alpn_protocols = ["h2", "http/1.1"] if self._http2 else ["http/1.1"]
            config.keep_alive_timeout = self._keep_alive_timeout
            self._portal = stack.enter_context(_serving(self._app, config, listeners))
            self._ca_file = certificate.ca_file if certificate else None
            self._port = listeners[0].getsockname()[1]
            self._cleanup = stack.pop_all()

    def stop(self) -> None:
        """Cut every connection, open streams too, and end the thread. Does no harm when stopped.

        The counts can still be read.
        """
        self._portal = None
        self._cleanup.close()

    def __enter__(self) -> LLMServer:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> LLMServer:
        await anyio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop)

    # -- where it is -------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port; 0 before the start, where a free one was asked for."""
        return self._port

    @property
    def url(self) -> str:
        """The origin, without a slash at the end: "https://127.0.0.1:41999"."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls its base URL: `url` and "/v1"."""
        return f"{self.url}/v1"

    @property
    def ca_file(self) -> str | None:
        """A PEM file with what a client has to trust; None without TLS. Gone after `stop`."""
        return self._ca_file

    # -- what it saw -------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """All the counts, of one moment."""
        if self._portal is not None:
            self._portal.call(_settle)
        return self._tally.snapshot()

    @property
    def connections(self) -> int:
        """TCP connections accepted so far, with those that never sent a request."""
        return self.counts.connections

    @property
    def open_connections(self) -> int:
        """TCP connections that are open now."""
        return self.counts.open_connections

    @property
    def handshakes(self) -> int:
        """TLS handshakes that succeeded so far."""
        return self.counts.handshakes

    @property
    def requests(self) -> int:
        """Requests so far, whatever the path and the answer."""
        return self.counts.requests

    @property
    def cancelled(self) -> int:
        """Generations so far, streamed or not, whose client left before the end."""
        return self.counts.cancelled

    def reset(self) -> None:
        """Zero the counts (but `open_connections`) and forget what `rate_limit` still had to do."""
        if self._portal is not None:
            self._portal.call(_settle)
        self._tally.reset()
        self._app.rate_limit(0)

    async def wait_cancelled(self, n: int = 1, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until `n` generations in all have lost their client; TimeoutError if they do not."""
        await self._tally.wait_until(lambda counts: counts.cancelled >= n, timeout)

    async def wait_open_connections(self, n: int, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until exactly `n` connections are open; TimeoutError if that is not to be seen."""
        await self._tally.wait_until(lambda counts: counts.open_connections == n, timeout)

    async def wait_until(self, predicate: Callable[[Counts], bool], timeout: float = 5.0) -> Counts:  # noqa: ASYNC109
        """Wait until `predicate` holds, and return the counts that it held for.

        `predicate` is called in other threads, at each change: it looks at the counts it is given,
        not at the server. Raises TimeoutError after `timeout` seconds.
        """
        return await self._tally.wait_until(predicate, timeout)

    # -- what it is told ---------------------------------------------------------------------------

    def rate_limit(self, next_n: int, *, retry_after: float = 1.0) -> None:
        """Answer the next `next_n` requests under /v1/ with 429 and `Retry-After`, in seconds."""
        self._app.rate_limit(next_n, retry_after=retry_after)


# -- the thread ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _serving(
    app: LLMApp, config: _Config, listeners: Sequence[_Listener]
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
    app: LLMApp,
    config: _Config,
    listeners: Sequence[_Listener],
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
    for server, listener in zip(servers, listeners, strict=True):
        server.close()
        listener.hang_up()
    await _settle()
    if connections:
        await asyncio.wait(connections, timeout=_STOP_TIMEOUT)


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # What clients do to their connections and handshakes is what the server is there for.
    if isinstance(context.get("exception"), (ConnectionError, TimeoutError, ssl.SSLError)):
        _logger.debug("%s: %r", context["message"], context["exception"])
    else:
        loop.default_exception_handler(context)


async def _settle() -> None:
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
        app: LLMApp,
        config: _Config,
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


# -- the sockets -----------------------------------------------------------------------------------


class _Listener(socket.socket):
    """A listening socket that counts what it accepts. Used by one thread, after `_listen`."""

    def __init__(self, family: socket.AddressFamily, tally: Tally) -> None:
        # Only with the protocol named does asyncio set TCP_NODELAY on what is accepted. Without it
        # each answer would wait for the client's delayed ACK, 40 ms.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._tally = tally
        self._accepted: set[_Accepted] = set()
        self._hung_up = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self._hung_up:
            raise BlockingIOError(errno.EAGAIN, "the server is stopping")
        plain, address = super().accept()
        accepted = _Accepted(plain, self._tally, self._accepted)
        return accepted, address

    def hang_up(self) -> None:
        """Accept no more, and end what was accepted: each of them reads an end of stream now.

        Asking nicely takes as long as the clients like: a TLS connection waits for a close_notify
        (RFC 8446, section 6.1) that an idle client does not send, a stream for its last token.
        """
        self._hung_up = True
        for accepted in tuple(self._accepted):
            with contextlib.suppress(OSError):  # It is not connected any more.
                accepted.shutdown(socket.SHUT_RDWR)


class _Accepted(socket.socket):
    """An accepted connection: open from its making until its `close`."""

    def __init__(self, plain: socket.socket, tally: Tally, peers: set[_Accepted]) -> None:
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self._tally = tally
        self._peers = peers
        peers.add(self)
        tally.add("connections")
        tally.add("open_connections")

    def close(self) -> None:
        super().close()
        if self in self._peers:
            self._peers.remove(self)
            self._tally.add("open_connections", -1)


def _listen(host: str, port: int, tally: Tally) -> list[_Listener]:
    """Listeners on every address of `host`, all on one port.

    The machine may have no IPv6: of "localhost", 127.0.0.1 is enough.
    """
    listeners: list[_Listener] = []
    with contextlib.ExitStack() as stack:
        for address in ("127.0.0.1", "::1") if host == "localhost" else (host,):
            try:
                listener = _bound(address, port, tally)
            except OSError as error:
                if listeners and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise
            stack.callback(listener.close)
            listeners.append(listener)
            port = listener.getsockname()[1]
        stack.pop_all()
    return listeners


def _bound(address: str, port: int, tally: Tally) -> _Listener:
    listener = _Listener(socket.AF_INET6 if ":" in address else socket.AF_INET, tally)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


class _Config(hypercorn.config.Config):
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
