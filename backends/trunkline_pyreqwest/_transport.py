"""The pyreqwest transport: what it can honour, and one client of the library per event loop.

This module knows the options and the numbers. It does not know the course of a call.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from urllib.parse import quote
from weakref import WeakKeyDictionary

import anyio
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.http import Url
from pyreqwest.proxy import ProxyBuilder

import trunkline
from trunkline import (
    Capabilities,
    InvalidRequest,
    OriginSnapshot,
    PoolSnapshot,
    Request,
    Response,
    TransportConfig,
    UnsupportedOption,
)
from trunkline.pool import Alarm, check_capabilities, make_runtime
from trunkline.proxy import find_proxy
from trunkline.tls import LazyContext
from trunkline_pyreqwest._exchange import Call, Download, decode_head
from trunkline_pyreqwest._slots import Slots

_OTHER_LOOPS_SECONDS = 0.01  # between two looks at whether another loop has drained
_TLS_VERSIONS = {"1.2": "TLSv1.2", "1.3": "TLSv1.3"}


class PyreqwestTransport:
    """Trunkline's transport on pyreqwest: HTTP/1.1 and HTTP/2 by reqwest and hyper, on asyncio.

    The connections are the library's. `limits.max_connections` bounds the exchanges that run at
    once, each of which has one connection or stream; idle connections come on top, up to
    `max_keepalive_connections` to each host. `warm` opens nothing, since the library has no way
    to. `tls.ca_file` is trusted beside the system's authorities, not instead of them. The
    `headers` deadline of a request whose body is small or none counts from the call, since it
    cannot be seen when the library has sent it.

    Raises:
        UnsupportedOption: the config asks for what the library cannot do.
    """

    capabilities = Capabilities(
        name="pyreqwest",
        http2=True,
        proxy=True,
        socks=True,
        tls_context=False,
        pooled=False,
        verbatim=False,
        aborts=False,
    )

    def __init__(self, config: TransportConfig | None = None) -> None:
        self.config = config or TransportConfig()
        check_capabilities(self.config, self.capabilities)
        for option in _refused(self.config):
            raise UnsupportedOption(
                f"{option}: backend 'pyreqwest' has a pool of its own that cannot honour it; leave "
                "it out, or choose another backend"
            )
        LazyContext(self.config.tls)  # refuses files that are none
        self._homes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Home] = WeakKeyDictionary()
        self._is_closed = False

    # -- the contract ------------------------------------------------------------------------------

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        home = self._home()
        call = self._call(request, home)
        try:
            await self._queue(call, home)
            home.started(call)
            try:
                message, inner = await call.send(home.client)
                body = Download(call, message, inner, home.runtime)
                try:
                    headers = decode_head(inner)
                except BaseException:
                    body.close()
                    home.renew_client()
                    raise
            except BaseException:
                call.over()
                raise
        except trunkline.TransportError as error:
            call.describe(error)
            raise
        version = inner.version.replace("/2.0", "/2")
        return Response(
            inner.status,
            headers=headers,
            http_version=version,
            request=request,
            timings=call.timings,
            stream=body,
        )

    def _call(self, request: Request, home: _Home) -> Call:
        timeouts = self.config.timeouts.overridden_by(request.timeouts)
        return Call(
            request,
            home.runtime,
            timeouts,
            backend=self.capabilities.name,
            http2=bool(self.config.http2) and request.origin.is_tls,
            by_proxy=find_proxy(self.config, request.origin) is not None,
            on_end=home.ended,
        )

    async def _queue(self, call: Call, home: _Home) -> None:
        seconds = call.seconds(call.timeouts.pool)
        try:
            call.timings.queue = await home.slots.take(call.request.priority, seconds)
        except trunkline.PoolTimeout as error:
            if call.is_total_due:
                raise call.too_late("pool") from error
            raise

    async def warm(self, url: str, connections: int = 1) -> int:
        """See `Transport.warm`: the library opens no connection without a request, so it is 0."""
        if connections < 1:
            raise InvalidRequest("connections: it must be at least 1")
        Request("GET", url)
        self._home()
        return 0

    def snapshot(self) -> PoolSnapshot:
        """See `Transport.snapshot`. Exact of exchanges; connections without one are not known."""
        most = self.config.limits.max_connections
        try:
            home = self._homes.get(asyncio.get_running_loop())
        except RuntimeError:
            home = next(iter(self._homes_here().values()), None)
        if home is None:
            return PoolSnapshot(max_connections=most)
        active = home.slots.in_use
        return PoolSnapshot(
            open=active,
            active=active,
            waiting=home.slots.waiting,
            max_connections=most,
            utilization=active / most if most else 0.0,
            created=active,
            waited=home.slots.waited,
            wait_total=home.slots.wait_total,
            wait_max=home.slots.wait_max,
            origins=home.origins(),
        )

    async def aclose(self, drain: float = 0.0) -> None:
        """See `Transport.aclose`."""
        self._is_closed = True
        here, homes = asyncio.get_running_loop(), self._homes_here()
        for loop, home in homes.items():
            if loop is not here:
                home.end_soon(drain)
        if here in homes:
            await homes[here].aclose(drain)
        with anyio.move_on_after(drain):
            # No event of this loop can be set from another one.
            while not all(home.is_closed for home in homes.values()):  # noqa: ASYNC110
                await anyio.sleep(_OTHER_LOOPS_SECONDS)

    # -- loops -------------------------------------------------------------------------------------

    def _homes_here(self) -> dict[asyncio.AbstractEventLoop, _Home]:
        """Those of this process. After a fork the others are the parent's."""
        process = os.getpid()
        return {loop: home for loop, home in self._homes.items() if home.process == process}

    def _home(self) -> _Home:
        if self._is_closed:
            raise trunkline.TransportClosed("the transport is closed")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise UnsupportedOption("backend: pyreqwest needs asyncio; use 'auto'") from error
        home = self._homes.get(loop)
        if home is None:
            home = self._homes[loop] = _Home(self.config)
        return home


class _Home:
    """One event loop's share: the library's client, and the calls that run on it."""

    def __init__(self, config: TransportConfig) -> None:
        self.process = os.getpid()
        self.runtime = make_runtime()
        alarm = Alarm(config.warn_utilization, config.limits.max_connections)
        self.slots = Slots(config.limits, self.runtime, alarm, self._oldest)
        self._config = config
        self._client: Client | None = make_client(config)
        self._calls: dict[Call, float] = {}  # since when, the oldest first
        self._exchanges: Counter[str] = Counter()
        self._idle = self.runtime.waiter()
        self._loop_end = _until_the_loop_ends(weakref.ref(self))
        with suppress(StopIteration):
            self._loop_end.asend(None).send(None)  # to its `yield`, so that the loop knows of it

    @property
    def client(self) -> Client:
        if self._client is None:
            raise trunkline.TransportClosed("the transport is closed")
        return self._client

    def _oldest(self) -> float | None:
        return next(iter(self._calls.values()), None)

    def renew_client(self) -> None:
        """No connection of up to now is used again: on one of them nobody knows what comes next."""
        if not self.is_closed:
            self._client = make_client(self._config)

    def started(self, call: Call) -> None:
        self._calls[call] = monotonic()
        self._exchanges[str(call.request.origin)] += 1

    def ended(self, call: Call) -> None:
        self._calls.pop(call, None)
        self.slots.give()
        if not self.slots.in_use:
            self._idle.set()

    def origins(self) -> dict[str, OriginSnapshot]:
        active = Counter(str(call.request.origin) for call in self._calls)
        return {
            name: OriginSnapshot(open=active[name], active=active[name], idle=0, connecting=0,
                                 waiting=0, exchanges=exchanges)
            for name, exchanges in self._exchanges.items()
        }  # fmt: skip

    @property
    def is_closed(self) -> bool:
        return self._client is None

    def end_soon(self, drain: float) -> None:
        """Have `aclose` done in this home's own loop; called from another one."""
        self.runtime.call_soon_threadsafe(
            lambda: self.runtime.spawn(lambda: self.aclose(drain), keep=True)
        )

    async def aclose(self, drain: float) -> None:
        try:
            if drain > 0 and self.slots.in_use:
                self._idle = self.runtime.waiter()
                await self._idle.wait(drain)
        finally:
            self.close()
            await self._loop_end.aclose()

    def close(self) -> None:
        self.slots.close()
        for call in list(self._calls):
            call.stop()
        # The last reference: with it the library drops its idle connections.
        self._client = None


async def _until_the_loop_ends(home: weakref.ref[_Home]) -> AsyncGenerator[None]:
    """Closes the home when its event loop shuts down, which ends every async generator."""
    try:
        yield
    finally:
        alive = home()
        if alive is not None:
            alive.close()


def _refused(config: TransportConfig) -> Iterator[str]:
    """The options that are set and cannot be honoured."""
    limits, dns = config.limits, config.dns
    most_idle = limits.max_keepalive_connections
    refused = {
        "limits.max_connections_per_host": limits.max_connections_per_host is not None,
        "limits.max_keepalive_connections": "max_keepalive_connections" in limits.model_fields_set
        and most_idle not in (0, None),
        "limits.max_connection_age": limits.max_connection_age is not None,
        "limits.min_idle_connections": limits.min_idle_connections > 0,
        "dns.ttl": bool(dns.ttl) and "ttl" in dns.model_fields_set,
        "dns.stale_on_error": dns.stale_on_error and "stale_on_error" in dns.model_fields_set,
        "dns.resolver": dns.resolver == "aiodns",
        "dns.nameservers": bool(dns.nameservers),
        "tls.client_key_password": config.tls.client_key_password is not None,
        "leak_after": config.leak_after is not None,
        "leak_stack": config.leak_stack,
    }
    return (option for option, is_refused in refused.items() if is_refused)


def make_client(config: TransportConfig) -> Client:
    """The library's client, with everything off that it does of its own accord."""
    limits = config.limits
    builder = (
        ClientBuilder()
        .follow_redirects(False)
        .referer(False)
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .no_proxy()
        .http2(bool(config.http2))
        .pool_idle_timeout(_duration(limits.keepalive_expiry))
    )
    most_idle = 0 if limits.keepalive_expiry == 0 else limits.max_keepalive_connections
    if most_idle is not None:
        builder = builder.pool_max_idle_per_host(most_idle)
    if config.timeouts.connect is not None:
        builder = builder.connect_timeout(timedelta(seconds=config.timeouts.connect))
    if config.proxy is not None or config.trust_env:
        builder = builder.proxy(ProxyBuilder.custom(lambda url: _proxy_for(config, url)))
    return _with_tls(builder, config).build()


def _with_tls(builder: ClientBuilder, config: TransportConfig) -> ClientBuilder:
    tls = config.tls
    builder = builder.min_tls_version(_TLS_VERSIONS[tls.min_version])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    if tls.ca_file is not None:
        builder = builder.add_root_certificate_pem(tls.ca_file.read_bytes())
    if not tls.verify:
        builder = builder.danger_accept_invalid_certs(True)
    if tls.client_cert is not None:
        files: list[Path] = [tls.client_cert, *([tls.client_key] if tls.client_key else [])]
        builder = builder.identity_pem(b"\n".join(file.read_bytes() for file in files))
    return builder


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _proxy_for(config: TransportConfig, url: Url) -> str | None:
    proxy = find_proxy(config, Request("GET", str(url)).origin)
    if proxy is None or proxy.username is None:
        return None if proxy is None else proxy.url
    address = proxy.url.partition("://")
    password = quote(proxy.password or "", safe="")
    return f"{address[0]}://{quote(proxy.username, safe='')}:{password}@{address[2]}"
