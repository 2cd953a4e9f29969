"""The contract: what a transport promises its callers, and what a backend promises the pool.

This module knows the promises and nothing that keeps them. There are two ways in for a backend:

- One that can open connections and run an exchange on each implements `Dialer`, `Connection` and
  `Exchange`, and is a `trunkline.pool.PooledTransport`: queueing, limits, reuse, deadlines, error
  facts and the snapshot are the pool's, the same on every backend.
- One that has a pool of its own implements `Transport`.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from multidict import CIMultiDictProxy

from trunkline._errors import Phase
from trunkline._messages import Request, Response
from trunkline._urls import Origin

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do. An option that needs more is refused when the transport is made.

    Attributes:
        name: of the backend, as in `TransportConfig.backend`.
        asyncio, trio: the event loops it runs on (uvloop counts as asyncio).
        http2: HTTP/2 by ALPN over TLS.
        prior_knowledge: HTTP/2 without TLS, where the config says that the origin knows it.
        proxy: HTTP proxies, forwarding and CONNECT, with Basic credentials.
        socks: SOCKS5 proxies.
        uds: Unix sockets.
        tls_context: an `ssl.SSLContext` of the caller's.
        duplex: the rest of a streamed request body is still sent after the response has begun.
        pooled: it runs on the one pool. One that has a pool of its own bounds by `max_connections`
            the exchanges that run at once, and its snapshot counts these and the calls that waited;
            it has no events, warms nothing, and refuses the options of what it does not own.
        verbatim: a request goes out as it was given, and a response's head is the bytes of the
            wire. Without it the library may add headers, order them and change their case.
        aborts: a call that is cancelled before its head ends its exchange at once.
    """

    name: str
    asyncio: bool = True
    trio: bool = False
    http2: bool = False
    prior_knowledge: bool = False
    proxy: bool = False
    socks: bool = False
    uds: bool = False
    tls_context: bool = True
    duplex: bool = False
    pooled: bool = True
    verbatim: bool = True
    aborts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginSnapshot:
    """The pool's connections to one origin; see `PoolSnapshot` for the fields."""

    open: int
    active: int
    idle: int
    connecting: int
    waiting: int
    exchanges: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """The pool at one moment; exact, not sampled.

    Attributes:
        open: connections that are open: `active` + `idle`.
        active: those that carry at least one exchange.
        idle: those that carry none and may be used again.
        connecting: being opened; they count against the limits.
        waiting: calls that wait for a connection.
        max_connections: the limit, None where there is none.
        utilization: (`active` + `connecting`) / `max_connections`, 0.0 without a limit.
        created: connections opened so far; equals `open` + the sum of `closed`.
        reused: exchanges that ran on a connection that had carried one before.
        closed: connections closed so far, by reason: "expired" (idle too long), "aged",
            "evicted" (to make room for another host), "surplus" (more idle than allowed),
            "ended" (by the peer, or not fit to be used again), "aborted" (its exchange failed, was
            cancelled or not read to its end), "shutdown".
        waited, wait_total, wait_max: calls that had to wait for a connection and got one, and how
            many seconds, together and at most.
        origins: the same by origin, e.g. "https://api.example.com".
    """

    open: int = 0
    active: int = 0
    idle: int = 0
    connecting: int = 0
    waiting: int = 0
    max_connections: int | None = None
    utilization: float = 0.0
    created: int = 0
    reused: int = 0
    waited: int = 0
    wait_total: float = 0.0
    wait_max: float = 0.0
    closed: Mapping[str, int] = field(default_factory=dict[str, int])
    origins: Mapping[str, OriginSnapshot] = field(default_factory=dict[str, OriginSnapshot])


@runtime_checkable
class Transport(Protocol):
    """Sends requests. The promises, which the conformance suite checks on every backend:

    1.  One request, one exchange: `send` follows no redirect, keeps no cookie, adds no credential.
    2.  A status is never an error: a 500 is a `Response`.
    3.  `send` returns when the response head has arrived; the body is read from the response.
    4.  The request is not changed, and may be sent again if its body may.
    5.  Calls may run concurrently, and be cancelled at any point: nothing leaks, no other call is
        disturbed, and a cancelled exchange ends its connection or stream at once.
    6.  Nothing is sent twice unless the first attempt was provably not processed, or the request
        is idempotent and failed on a reused connection before any byte of a response. A streamed
        body is not sent again once a piece of it was taken.
    7.  Every failure is a `TransportError` with the facts a retry needs; the library's own
        exception is its `__cause__`.
    8.  Deadlines hold, each by its own error; limits are exact.
    9.  No proxy and no credential is taken from the environment unless `trust_env` says so.
    10. An option is honoured, or refused when the transport is made; never ignored.
    11. After `aclose` no socket is left, and `send` raises `TransportClosed`.
    12. A message goes out as it was given and comes in as it was sent; a body that was cut off
        never looks whole.
    13. A connection is used again when it is fit for it and never otherwise: no byte of one answer
        becomes a part of another.
    14. Connections opened ahead of calls send nothing, and are at nobody's expense.
    15. What goes on can be seen: the snapshot is exact, a response says where its time went,
        observers are told of each step once and of its end, and a leak is told of.
    16. Each event loop has connections of its own; a transport may be made outside of any.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    async def send(self, request: Request) -> Response:
        """Send `request`; return when the response head is here.

        The caller closes the response: by reading it to its end, or with `aclose`.

        Raises:
            TransportError: one of its subclasses; see `trunkline._errors`.
        """
        ...

    async def warm(self, url: str, connections: int = 1) -> int:
        """Open connections to the origin of `url` without sending a request.

        Returns:
            How many connections to that origin are now open and idle, at most `connections`.

        Raises:
            ConnectionFailed, ConnectTimeout: none could be opened.
        """
        ...

    def snapshot(self) -> PoolSnapshot: ...

    async def aclose(self, drain: float = 0.0) -> None:
        """Close every connection. Idempotent; no new request is taken from now on.

        Requests under way may go on for `drain` seconds, then they end with an error.
        """
        ...


# -- what a backend implements under the pool ------------------------------------------------------


class Dial(Protocol):
    """The progress of opening one connection. The dialer says which step it is at."""

    @property
    def phase(self) -> Phase: ...

    def begin(self, phase: Phase) -> None:
        """Enter "dns", "connect", "proxy" or "tls": what a timeout reports, and what is timed."""
        ...


class Attempt(Protocol):
    """One attempt at a request on one connection: its deadlines, and the facts for an error.

    The exchange reports what happens as it happens, and awaits the peer only through `wait`.
    """

    bytes_sent: int
    """Bytes of the request handed to the operating system."""
    response_started: bool
    """A byte of the response has arrived."""
    is_body_untouched: bool
    """No piece of a streamed request body has been asked for: it can still be sent anew."""
    is_untaken: bool
    """It is proved that the peer has taken no byte of the request: see `trunkline.tcp`."""

    def begin(self, phase: Phase) -> None:
        """Enter "write", "headers" or "body": that phase's deadline starts now.

        Called again with "write" each time the peer has taken some bytes, and with "request" while
        the caller's own iterable is producing the next ones, which no deadline but `total` bounds.
        """
        ...

    def wait(self, awaitable: Awaitable[T]) -> Awaitable[T]:
        """Await the peer, no longer than the phase's deadline and the total one.

        Raises:
            WriteTimeout, HeadersTimeout, ReadTimeout, DeadlineExceeded: it was cancelled.
        """
        ...


class Exchange(Protocol):
    """A response whose head has arrived, on a connection.

    It may have an attribute `is_over`, which says with the last piece of the body already that
    nothing more comes; and a method `take_rest`, which gives what is left of the body if all of it
    is here, else None, and raises nothing.
    """

    status_code: int
    reason_phrase: str
    http_version: str
    headers: CIMultiDictProxy[str]
    raw_headers: tuple[tuple[bytes, bytes], ...]

    async def read(self) -> bytes:
        """The next piece of the body as it came; b"" at its end.

        It awaits the peer through `Attempt.wait`, after `begin("body")`.

        Raises:
            BodyTruncated, ReadError, RemoteProtocolError: the body cannot be completed.
        """
        ...

    def close(self) -> None:
        """The rest is not wanted. Synchronous, idempotent; after the end it does nothing.

        HTTP/1.1: closes the connection. HTTP/2: resets the stream.
        """
        ...


class BegunExchange(Exchange, Protocol):
    """An exchange whose request has been written; nothing of it, where that needs waiting."""

    def wake(self, waiter: Future[None]) -> bool:
        """Set the result of `waiter` as soon as `answer` has more to do than to wait for the peer.

        False: it has already.
        """
        ...

    async def answer(self) -> Self:
        """Send what is left of the request and return, or raise, as `Connection.exchange` does."""
        ...


class Connection(Protocol):
    """An open connection. The pool is its only user, and runs `max_exchanges` at once at most.

    One on asyncio may have a method `begin`, with the arguments of `exchange`, which gives a
    `BegunExchange` at once; it raises nothing. The pool calls that instead, and where a call has
    waited for the connection it does so before the task of the call has its turn.

    One that speaks TLS may keep its `ssl.SSLObject` in an attribute `ssl_object`, for
    `ConnectionInfo`.
    """

    http_version: str
    peer: str | None

    @property
    def max_exchanges(self) -> int:
        """How many exchanges it can carry at once now: 1 for HTTP/1.1."""
        ...

    def is_usable(self) -> bool:
        """Whether a new exchange may begin: it is open, and no byte has come unasked."""
        ...

    async def exchange(self, request: Request, attempt: Attempt) -> Exchange:
        """Send `request` and return at the final response head (1xx are passed over).

        When it raises, cancellation included, it has ended the exchange as `Exchange.close` does.

        Raises:
            TransportError: translated from the library's own, which is its `__cause__`.
        """
        ...

    def close(self) -> None:
        """Close the socket at once. Synchronous and idempotent."""
        ...


Begin: TypeAlias = Callable[[Request, Attempt], BegunExchange]
"""What `Connection.begin` is, where there is one."""


class Multiplexing(Protocol):
    """What a connection that carries many exchanges has besides, and no other."""

    on_change: Callable[[], None] | None
    """Set by the pool. Called when `max_exchanges` has changed, or it has become unusable."""


class Dialer(Protocol):
    """Opens connections, on one event loop."""

    async def connect(self, origin: Origin, dial: Dial) -> Connection:
        """Open one connection; when it raises, cancellation included, no socket is left.

        Raises:
            ConnectionFailed: one of its subclasses.
        """
        ...

    async def aclose(self) -> None:
        """Free what is shared by the connections. They have been closed before."""
        ...
