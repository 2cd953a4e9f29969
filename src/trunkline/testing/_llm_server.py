"""`LLMServer`: the echoing LLM API on real sockets, in a thread with an event loop of its own.

This module knows when the server runs and what it is asked about. It does not know what is served
(`_llm_app`), nor how (`_llm.serving`, `_llm.sockets`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from trunkline.testing._certificates import LOOPBACK_NAMES, Certificate, Certificates
from trunkline.testing._llm.counts import Call, Counts, Tally
from trunkline.testing._llm.serving import THREAD_NAME as THREAD_NAME, Config, serving, settle
from trunkline.testing._llm.sockets import listen_on
from trunkline.testing._llm_app import LLMApp


class LLMServer:
    """An LLM API for tests, demos and benchmarks: OpenAI's, Anthropic's and Google's wire formats.

    `LLMApp` says what it answers.

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
                for listener in listen_on(self._host, self._port, self._tally)
            ]
            config = Config(self._tally, certificate, self._client_ca)
            config.alpn_protocols = ["h2", "http/1.1"] if self._http2 else ["http/1.1"]
            config.keep_alive_timeout = self._keep_alive_timeout
            self._portal = stack.enter_context(serving(self._app, config, listeners))
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
        """What an OpenAI client calls its base URL: `url` and "/v1". Others want `url`."""
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
            self._portal.call(settle)
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
    def completed(self) -> int:
        """Generations so far, streamed or not, that were sent to their last byte."""
        return self.counts.completed

    @property
    def calls(self) -> tuple[Call, ...]:
        """The requests so far, oldest first: the last 10,000 of them.

        An SDK's own retries show in them: OpenAI's and Anthropic's count theirs in the header
        `x-stainless-retry-count`, and keep the `idempotency-key` where they send one.
        """
        if self._portal is not None:
            self._portal.call(settle)
        return self._tally.calls()

    @property
    def cancelled(self) -> int:
        """Generations so far, streamed or not, whose client left before the end."""
        return self.counts.cancelled

    def reset(self) -> None:
        """Zero the counts (but `open_connections`) and forget what `rate_limit` still had to do."""
        if self._portal is not None:
            self._portal.call(settle)
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

    def rate_limit(self, next_n: int, *, retry_after: float = 1.0, status: int = 429) -> None:
        """Answer the next `next_n` requests of the APIs with 429 and `Retry-After`, in seconds.

        `status` is another one of an error: 529, with which Anthropic says that it is overloaded.
        """
        self._app.rate_limit(next_n, retry_after=retry_after, status=status)
