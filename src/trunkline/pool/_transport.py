"""`PooledTransport`: the contract of `Transport`, kept with the one pool over any dialer.

This module knows the course of a request: lease, connect, exchange, and again where that is proved
safe. It does not know which library opens connections or runs exchanges: a backend supplies a
`Dialer`, one for each event loop the transport is used from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import monotonic
from typing import ClassVar

import anyio

from trunkline._config import Timeouts, TransportConfig
from trunkline._contract import Capabilities, Connection, Dial, Dialer, Exchange, PoolSnapshot
from trunkline._errors import (
    ConnectTimeout,
    DeadlineExceeded,
    InvalidRequest,
    NetworkError,
    Phase,
    PoolTimeout,
    TransportClosed,
    TransportError,
    UnsupportedOption,
)
from trunkline._messages import ConnectionInfo, Origin, Request, Response, Timings
from trunkline.dns import Resolver
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.pool._body import LeasedBody
from trunkline.pool._pool import Lease, Pool, Pooled
from trunkline.pool._runtime import Runtime, current_loop, make_runtime, sniff_loop

_MAX_ATTEMPTS = 2


class _Home:
    """What a transport has on one event loop."""

    __slots__ = ("dialer", "pool", "resolver", "runtime")

    def __init__(self, runtime: Runtime, pool: Pool, resolver: Resolver, dialer: Dialer) -> None:
        self.runtime = runtime
        self.pool = pool
        self.resolver = resolver
        self.dialer = dialer


class _Call:
    """One call of `send`: what all its attempts share, and what its errors say."""

    __slots__ = ("attempts", "backend", "home", "lease", "request", "started", "timeouts",
                 "timings")  # fmt: skip

    def __init__(self, request: Request, home: _Home, timeouts: Timeouts, backend: str) -> None:
        self.request = request
        self.home = home
        self.timeouts = timeouts
        self.backend = backend
        self.started = monotonic()
        self.timings = Timings()
        self.attempts = 0
        self.lease: Lease | None = None

    def seconds(self, limit: float | None) -> float | None:
        """`limit`, or what is left of `timeouts.total` if that is less."""
        if self.timeouts.total is None:
            return limit
        left = self.started + self.timeouts.total - monotonic()
        return left if limit is None else min(limit, left)

    def check_deadline(self, phase: Phase, cause: BaseException | None = None) -> None:
        total = self.timeouts.total
        if total is not None and monotonic() >= self.started + total:
            raise DeadlineExceeded(f"not over within {total:g} s", phase=phase) from cause

    def describe(self, error: TransportError) -> None:
        error.host, error.port = self.request.origin.host, self.request.origin.port
        error.backend = self.backend
        error.attempts = self.attempts
        error.elapsed = monotonic() - self.started
        lease = self.lease
        if lease is not None and lease.pooled is not None:
            error.connection_reused = lease.reused
            error.http_version = lease.pooled.connection.http_version


class PooledTransport(ABC):
    """A `Transport` on the one pool. A backend sets `capabilities` and makes dialers.

    Nothing is opened before the first call, so it may be made outside an event loop; each event
    loop it is used from has connections of its own.

    Raises:
        UnsupportedOption: the config asks for what the backend cannot do.
    """

    capabilities: ClassVar[Capabilities]

    def __init__(self, config: TransportConfig | None = None) -> None:
        self.config = config or TransportConfig()
        check_capabilities(self.config, self.capabilities)
        self._homes: dict[object, _Home] = {}
        self._closed = False

    @abstractmethod
    def make_dialer(self, resolver: Resolver) -> Dialer:
        """A dialer for the running event loop."""

    # -- the contract ----------------------------------------------------------------------------

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        timeouts = self.config.timeouts.overridden_by(request.timeouts)
        call = _Call(request, self._home(), timeouts, self.capabilities.name)
        while True:
            attempt = ExchangeAttempt(call.home.runtime, timeouts, call.started)
            try:
                return await self._attempt(call, attempt)
            except TransportError as error:
                call.describe(error)
                if not _may_replay(call, error):
                    raise

    async def _attempt(self, call: _Call, attempt: ExchangeAttempt) -> Response:
        lease = await self._lease(call)
        pooled = lease.pooled
        try:
            if pooled is None:
                connection = await self._connect(call, call.request.origin)
                pooled = lease.attach(connection)
            call.attempts += 1
            pooled.exchanges += 1
            leased_at = monotonic()
            exchange = await pooled.connection.exchange(call.request, attempt)
        except BaseException as error:
            call.home.pool.abort(lease)
            if isinstance(error, TransportError):
                attempt.describe(error)
            raise
        call.timings.send = max(attempt.head_due_from - leased_at, 0.0)
        return _respond(call, attempt, exchange, lease, pooled)

    async def _lease(self, call: _Call) -> Lease:
        pool, origin = call.home.pool, call.request.origin
        lease = pool.acquire_nowait(origin, fresh=call.attempts > 0)
        if lease is None:
            since = monotonic()
            try:
                lease = await pool.wait(origin, call.seconds(call.timeouts.pool))
            except PoolTimeout as error:
                call.check_deadline("pool", error)
                raise
            call.timings.queue = monotonic() - since
        call.lease = lease
        return lease

    async def _connect(self, call: _Call, origin: Origin) -> Connection:
        dial, seconds = Dial(), call.timeouts.connect
        with call.home.runtime.scope(call.seconds(seconds)):
            connection = await call.home.dialer.connect(origin, dial)
            timings = call.timings
            timings.dns, timings.connect, timings.tls = dial.dns, dial.connect, dial.tls
            return connection
        call.check_deadline(dial.phase)
        raise ConnectTimeout(f"no connection within {seconds:g} s", phase=dial.phase)

    async def warm(self, url: str, connections: int = 1) -> int:
        """See `Transport.warm`."""
        if connections < 1:
            raise InvalidRequest("connections: it must be at least 1")
        request = Request("GET", url)
        home = self._home()
        home.pool.drop_unfit()
        failures: list[TransportError] = []

        async def open_one() -> None:
            call = _Call(request, home, self.config.timeouts, self.capabilities.name)
            try:
                await self._warm_one(call)
            except TransportError as error:
                call.describe(error)
                failures.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(connections - home.pool.idle_to(request.origin)):
                group.start_soon(open_one)
        ready = min(home.pool.idle_to(request.origin), connections)
        if failures and not ready:
            raise failures[0]
        return ready

    async def _warm_one(self, call: _Call) -> None:
        lease = call.home.pool.acquire_nowait(call.request.origin, fresh=True)
        if lease is None:
            return
        try:
            lease.attach(await self._connect(call, call.request.origin))
        finally:
            lease.release()

    def snapshot(self) -> PoolSnapshot:
        """See `Transport.snapshot`. Of the running event loop's connections, if one is running."""
        try:
            home = self._homes.get(current_loop())
        except RuntimeError:
            home = next(iter(self._homes.values()), None)
        if home is None:
            return PoolSnapshot(max_connections=self.config.limits.max_connections)
        return home.pool.snapshot()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._closed = True
        here = current_loop()
        for loop, home in list(self._homes.items()):
            if loop is here:
                home.pool.close()
                await home.dialer.aclose()
                await home.resolver.aclose()
            else:
                home.runtime.call_soon_threadsafe(home.pool.close)

    # -- loops -------------------------------------------------------------------------------------

    def _home(self) -> _Home:
        home = self._homes.get(current_loop())
        if self._closed:
            raise TransportClosed("the transport is closed")
        return home or self._move_in()

    def _move_in(self) -> _Home:
        runtime = make_runtime()
        if runtime.is_trio:
            refuse_loop("trio", self.capabilities)
        resolver = Resolver(self.config.dns, trio=runtime.is_trio)
        pool = Pool(self.config.limits, runtime, multiplexes=self.config.http2)
        home = _Home(runtime, pool, resolver, self.make_dialer(resolver))
        self._homes[current_loop()] = home
        return home


def _respond(
    call: _Call, attempt: ExchangeAttempt, exchange: Exchange, lease: Lease, pooled: Pooled
) -> Response:
    def annotate(error: TransportError) -> None:
        attempt.describe(error)
        call.describe(error)

    connection, now = pooled.connection, monotonic()
    timings = call.timings
    timings.wait = now - attempt.head_due_from
    return Response(
        exchange.status_code,
        headers=exchange.headers,
        raw_headers=exchange.raw_headers,
        reason_phrase=exchange.reason_phrase,
        http_version=exchange.http_version,
        request=call.request,
        timings=timings,
        connection=ConnectionInfo(
            id=pooled.id,
            reused=lease.reused,
            age=attempt.begun - pooled.created if lease.reused else 0.0,
            http_version=connection.http_version,
            peer=connection.peer,
            requests=pooled.exchanges,
        ),
        stream=LeasedBody(
            exchange, lease, call.home.pool, call.home.runtime, timings, call.started, annotate
        ),
    )


def _may_replay(call: _Call, error: TransportError) -> bool:
    """Whether promise 6 of `Transport` lets us send the request once more."""
    if call.attempts >= _MAX_ATTEMPTS or error.response_started:
        return False
    if not error.connection_reused or not isinstance(error, NetworkError):
        return False
    return call.request.is_rewindable and (error.replay == "safe" or call.request.is_idempotent)


def check_capabilities(config: TransportConfig, capabilities: Capabilities) -> None:
    """Refuse what a backend cannot honour.

    Raises:
        UnsupportedOption: naming the option, the backend, and a way out.
    """
    needed = {
        "http2": (config.http2, capabilities.http2),
        "uds": (config.uds is not None, capabilities.uds),
    }
    if config.proxy is not None:
        socks = config.proxy.startswith("socks")
        needed["proxy"] = (True, capabilities.socks if socks else capabilities.proxy)
    for option, (wanted, able) in needed.items():
        if wanted and not able:
            kind = " of this scheme" if option == "proxy" else ""
            raise UnsupportedOption(
                f"{option}: backend {capabilities.name!r} has no {option}{kind}; leave the option "
                "out, or choose another backend (backend='auto' picks one that can)"
            )
    refuse_loop(sniff_loop(), capabilities)


def refuse_loop(loop: str | None, capabilities: Capabilities) -> None:
    """Raise UnsupportedOption if the backend does not run on `loop` ("asyncio" or "trio")."""
    able = {"trio": capabilities.trio, "asyncio": capabilities.asyncio}
    if loop is not None and not able[loop]:
        raise UnsupportedOption(
            f"backend: {capabilities.name} on {loop} does not work; use backend='auto'"
        )
