"""`PooledTransport`: the contract of `Transport`, kept with the one pool over any dialer.

This module knows the course of a request: lease, connect, exchange, and again where that is proved
safe. It does not know which library opens connections or runs exchanges: a backend supplies a
`Dialer`, one for each event loop the transport is used from.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from asyncio import get_running_loop
from collections.abc import Callable
from itertools import count
from typing import ClassVar
from weakref import ref

import anyio
from multidict import istr

from trunkline._config import Timeouts, TransportConfig
from trunkline._contract import Capabilities, Connection, Dialer, Exchange, PoolSnapshot
from trunkline._errors import (
    ConnectionFailed,
    ConnectTimeout,
    GoAway,
    InvalidRequest,
    NetworkError,
    PoolTimeout,
    StreamRefused,
    TransportClosed,
    TransportError,
    UnsupportedOption,
)
from trunkline._events import Observer
from trunkline._messages import ConnectionInfo, Request, Response
from trunkline._urls import Origin
from trunkline.dns import Resolver, refuse_dns
from trunkline.pool._body import LeasedBody
from trunkline.pool._call import Call
from trunkline.pool._home import Home
from trunkline.pool._lease import Lease
from trunkline.pool._origin import Pooled
from trunkline.pool._queue import Ticket
from trunkline.pool._runtime import current_loop, make_runtime, sniff_loop
from trunkline.pool._watch import Steps, Watch
from trunkline.proxy import find_proxy

_MAX_ATTEMPTS = 2
_MAX_REFUSALS = 3  # attempts, where an HTTP/2 server says each time that it did not process one
_OTHER_LOOPS_SECONDS = 0.01  # between two looks at whether another loop has drained
_KEEP_ALIVE = istr("Keep-Alive")  # found at once, where a str is folded first
_KEEP_ALIVE_TIMEOUT = re.compile(r"(?:^|[\s,;])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class PooledTransport(ABC):
    """A `Transport` on the one pool. A backend sets `capabilities` and makes dialers.

    Nothing is opened before the first call, so it may be made outside an event loop; each event
    loop it is used from has connections of its own, which are closed with the loop.

    Attributes:
        left_open: for each connection that was still open when its event loop ended, the origin; a
            leak, until the transport is closed after all.

    Raises:
        UnsupportedOption: the config asks for what the backend cannot do.
    """

    capabilities: ClassVar[Capabilities]

    def __init__(self, config: TransportConfig | None = None) -> None:
        self.config = config or TransportConfig()
        check_capabilities(self.config, self.capabilities)
        self._homes: dict[object, Home] = {}
        self._observers: list[Observer] = []
        self._request_ids = count(1)
        self._closed = False
        self.left_open: list[str] = []
        self._given_timeouts: Timeouts | None = None
        self._timeouts = self.config.timeouts

    @abstractmethod
    def make_dialer(self, resolver: Resolver) -> Dialer:
        """A dialer for the running event loop."""

    # -- the contract ----------------------------------------------------------------------------

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        timeouts, home = self.config.timeouts, self._home()
        if request.timeouts is not None:
            timeouts = self._timeouts_for(request.timeouts)
        call = Call(request, home, timeouts, self.capabilities.name)
        if self._observers:
            identity = next(self._request_ids)
            call.watch = Watch(self._observers, request.origin, identity, request)
            call.watch.start("request")
        while True:
            lease = exchange = begun = None
            try:
                is_fresh = call.attempts > 0
                lease = home.pool.acquire_nowait(request.origin, fresh=is_fresh)
                if lease is None:
                    ticket = self._queue(call, fresh=is_fresh)
                    await ticket.wait()
                    lease, begun = _claim(call, ticket), ticket.exchange
                call.lease, pooled = lease, lease.pooled
                if pooled is None:
                    pooled = lease.attach(await self._connect(call, request.origin))
                if begun is None:
                    begun = call.begin_on(pooled)
                if begun is None:
                    exchange = await pooled.connection.exchange(request, call)
                else:
                    exchange = await begun.answer()
                return _respond(call, exchange, lease, pooled)
            except BaseException as error:
                if exchange is not None:
                    exchange.close()
                if not _may_go_on(call, lease, error):
                    raise

    def _timeouts_for(self, given: Timeouts) -> Timeouts:
        """The transport's, with what is `given` in their place; callers tend to repeat theirs."""
        if given is not self._given_timeouts:
            self._given_timeouts = given
            self._timeouts = self.config.timeouts.overridden_by(given)
        return self._timeouts

    def _queue(self, call: Call, *, fresh: bool) -> Ticket:
        if call.watch is not None:
            call.watch.start("queue")
        request = call.request
        seconds = call.seconds(call.timeouts.pool)
        # One that is observed goes on in its own context: an observer may ask for that.
        caller = call if call.watch is None else None
        call.ticket = ticket = call.home.pool.queue(
            request.origin, seconds, request.priority, fresh=fresh, caller=caller
        )
        return ticket

    async def _connect(self, call: Call, origin: Origin) -> Connection:
        dial, home = Steps(call.watch), call.home
        seconds = call.seconds(call.timeouts.connect)
        with home.dialing(seconds):
            try:
                connection = await home.dialer.connect(origin, dial)
            except ConnectionFailed:
                self._doubt_addresses(home, origin)
                raise
            dial.finish()
            took, timings = dial.seconds, call.timings
            timings.dns, timings.tls = took.get("dns"), took.get("tls")
            timings.connect = took.get("connect", 0.0) + took.get("proxy", 0.0)
            return connection
        if home.pool.is_closed:
            raise TransportClosed("the transport was closed meanwhile", phase=dial.phase)
        self._doubt_addresses(home, origin)
        if call.due_is_total:
            raise call.too_late(dial.phase)
        raise ConnectTimeout(f"no connection within {seconds:g} s", phase=dial.phase)

    def _doubt_addresses(self, home: Home, origin: Origin) -> None:
        """No connection came of the names of `origin` and its proxy: have them looked up anew."""
        proxy = find_proxy(self.config, origin)
        for host in (origin.host,) if proxy is None else (origin.host, proxy.host):
            home.resolver.expire(host)

    async def warm(self, url: str, connections: int = 1) -> int:
        """See `Transport.warm`."""
        if connections < 1:
            raise InvalidRequest("connections: it must be at least 1")
        request, home = Request("GET", url), self._home()
        pool, origin = home.pool, request.origin
        pool.tidy()
        failures: list[TransportError] = []

        async with anyio.create_task_group() as group:
            while (lease := pool.reserve(origin, connections)) is not None:
                group.start_soon(self._open_idle, home, origin, lease, failures)
        ready = min(pool.idle_to(origin), connections)
        if failures and not ready:
            raise failures[0]
        return ready

    async def _open_spares(self, home: Home, origin: Origin) -> None:
        """Fill up to `min_idle_connections`; after a failure the next upkeep tries again."""
        failures: list[TransportError] = []
        while not failures and (lease := home.pool.spare(origin)) is not None:
            await self._open_idle(home, origin, lease, failures)
            if lease.pooled is None or lease.pooled.closed:
                return

    async def _open_idle(
        self, home: Home, origin: Origin, lease: Lease, failures: list[TransportError]
    ) -> None:
        watch = Watch(self._observers, origin) if self._observers else None
        request = Request("GET", str(origin))
        call = Call(request, home, self.config.timeouts, self.capabilities.name)
        call.watch = watch
        try:
            lease.attach(await self._connect(call, origin))
        except BaseException as error:
            if watch is not None:
                watch.fail(error)
            if not isinstance(error, TransportError):
                raise
            call.tell(error)
            failures.append(error)
        finally:
            lease.release()

    def snapshot(self) -> PoolSnapshot:
        """See `Transport.snapshot`. Of the running event loop's connections, if one is running."""
        try:
            home = self._homes.get(current_loop())
        except RuntimeError:
            home = next(iter(self._homes_here().values()), None)
        if home is None:
            return PoolSnapshot(max_connections=self.config.limits.max_connections)
        return home.pool.snapshot()

    async def aclose(self, drain: float = 0.0) -> None:
        """See `Transport.aclose`."""
        self._closed = True
        self.left_open.clear()
        here, homes = current_loop(), self._homes_here()
        for loop, home in homes.items():
            if loop is not here:
                home.end_soon(drain)
        if here in homes:
            await homes.pop(here).aclose(drain)
        with anyio.move_on_after(drain):
            # No event of this loop can be set from another one.
            while not all(home.pool.is_closed for home in homes.values()):  # noqa: ASYNC110
                await anyio.sleep(_OTHER_LOOPS_SECONDS)

    # -- beyond the contract -----------------------------------------------------------------------

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Have `observer` told of every event from now on.

        Returns:
            A function that ends it.
        """
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def flush_dns(self, host: str | None = None) -> None:
        """Forget the addresses of `host`, or of every host."""
        for home in list(self._homes.values()):
            home.resolver.flush(host)

    # -- loops -------------------------------------------------------------------------------------

    def _home(self) -> Home:
        if self._closed:
            raise TransportClosed("the transport is closed")
        try:
            loop: object = get_running_loop()  # of asyncio; `current_loop` asks for both
        except RuntimeError:
            loop = current_loop()
        return self._homes.get(loop) or self._move_in()

    def _homes_here(self) -> dict[object, Home]:
        """Those of this process. After a fork the others are the parent's, sockets and all."""
        process = os.getpid()
        return {loop: home for loop, home in self._homes.items() if home.process == process}

    def _move_in(self) -> Home:
        runtime = make_runtime()
        refuse_loop("trio" if runtime.is_trio else "asyncio", self.capabilities)
        loop = current_loop()
        home = Home(
            self.config,
            runtime,
            self._observers,
            self.make_dialer,
            self._open_spares,
            lambda: self._move_out(loop),
        )
        self._homes[loop] = home
        return home

    def _move_out(self, loop: object) -> None:
        """Its event loop ends, and the connections with it."""
        home = self._homes.pop(loop, None)
        if home is not None and not self._closed:
            origins = home.pool.snapshot().origins
            self.left_open += [name for name, origin in origins.items() for _ in range(origin.open)]


def _claim(call: Call, ticket: Ticket) -> Lease:
    lease = ticket.lease
    if lease is None or ticket.exchange is None:
        try:
            lease = call.home.pool.claim(ticket)
        except PoolTimeout as error:
            if call.due_is_total:
                raise call.too_late("pool") from error
            raise
    ticket.waiter.leave()
    call.timings.queue = lease.waited
    if call.watch is not None:
        call.watch.end("queue")
    call.ticket = None
    return lease


def _may_go_on(call: Call, lease: Lease | None, error: BaseException) -> bool:
    """End the attempt that `error` has ended; whether the request may be sent once more.

    Raises:
        TransportClosed: it is what lies behind `error`.
    """
    pool, watch = call.home.pool, call.watch
    closed: TransportClosed | None = None
    ticket, call.ticket = call.ticket, None
    if ticket is not None:
        if ticket.exchange is not None and ticket.lease is not None:
            ticket.exchange.close()
            pool.abort(ticket.lease)
        pool.leave(ticket)
    if lease is not None:
        call.end()
        pool.abort(lease)
    if isinstance(error, TransportError):
        if lease is not None:
            call.describe(error)
            if pool.is_closed and not isinstance(error, TransportClosed):
                closed = TransportClosed("the transport was closed while the call was under way")
                call.describe(closed)
        call.tell(closed or error)
        if closed is None and _may_replay(call, error):
            call.is_in_doubt = call.is_in_doubt or error.replay != "safe"
            call.renew()
            if watch is not None:
                watch.end("headers", error=type(error).__name__)
                watch.connection_id = None
            return True
        call.doubt(closed or error)
    if watch is not None:
        watch.fail(closed or error)
    if closed is not None:
        raise closed from error
    return False


def _respond(call: Call, exchange: Exchange, lease: Lease, pooled: Pooled) -> Response:
    connection, home, timings = pooled.connection, call.home, call.timings
    timings.send = call.head_due_from - call.begun
    headers = exchange.headers
    if _KEEP_ALIVE in headers:
        _shorten_expiry(pooled, headers[_KEEP_ALIVE])
    body = LeasedBody(exchange, call)
    timings.wait = body.head_at - call.head_due_from
    if home.leaks is not None:
        home.leaks.add(body, call.request.origin)
    response = Response(
        exchange.status_code,
        headers=headers,
        raw_headers=exchange.raw_headers,
        reason_phrase=exchange.reason_phrase,
        http_version=exchange.http_version,
        request=call.request,
        timings=timings,
        connection=ConnectionInfo(
            pooled.id,
            lease.reused,
            call.begun - pooled.created if lease.reused else 0.0,
            connection.http_version,
            connection.peer,
            pooled.exchanges,
            getattr(connection, "ssl_object", None),
        ),
        stream=body,
    )
    watch = call.watch
    if watch is not None:
        watch.response = ref(response)
        watch.end("headers")
        watch.start("body")
    return response


def _shorten_expiry(pooled: Pooled, keep_alive: str) -> None:
    """Obey `Keep-Alive: timeout=N` (RFC 2068 section 19.7.1.1), a little early: bytes take time."""
    found = _KEEP_ALIVE_TIMEOUT.search(keep_alive)
    if found is not None:
        seconds = float(found[1])
        pooled.expiry = min(pooled.expiry, max(seconds - 1.0, seconds / 2))


def _may_replay(call: Call, error: TransportError) -> bool:
    """Whether promise 6 of `Transport` lets us send the request once more."""
    request, is_safe = call.request, error.replay == "safe"
    if not (request.is_rewindable or call.is_body_untouched):
        return False
    if isinstance(error, (StreamRefused, GoAway)) and is_safe:
        return call.attempts < _MAX_REFUSALS
    if call.attempts >= _MAX_ATTEMPTS or error.response_started:
        return False
    if not error.connection_reused or not isinstance(error, NetworkError):
        return False
    return is_safe or (request.is_idempotent and request.is_rewindable)


def check_capabilities(config: TransportConfig, capabilities: Capabilities) -> None:
    """Refuse what a backend cannot honour.

    Raises:
        UnsupportedOption: naming the option, the backend, and a way out.
    """
    needed = {
        "http2": (bool(config.http2), capabilities.http2),
        "prior_knowledge": (config.http2 == "prior_knowledge", capabilities.prior_knowledge),
        "uds": (config.uds is not None, capabilities.uds),
        "tls.context": (config.tls.context is not None, capabilities.tls_context),
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
    refuse_dns(config.dns, sniff_loop())


def refuse_loop(loop: str | None, capabilities: Capabilities) -> None:
    """Raise UnsupportedOption if the backend does not run on `loop` ("asyncio" or "trio")."""
    able = {"trio": capabilities.trio, "asyncio": capabilities.asyncio}
    if loop is not None and not able[loop]:
        raise UnsupportedOption(
            f"backend: {capabilities.name} on {loop} does not work; use backend='auto'"
        )
