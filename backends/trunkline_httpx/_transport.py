"""The transport of httpx and of its like: what it can do, and how it opens a connection.

This module knows the steps from an origin to an open connection. It does not know how an exchange
runs on one, or who waits for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import ClassVar

import anyio

from trunkline import (
    Capabilities,
    ConnectError,
    Connection,
    ConnectionFailed,
    Dial,
    Dialer,
    Origin,
    ProxyError,
    TLSError,
    TransportConfig,
    UnsupportedOption,
)
from trunkline.dns import Resolver
from trunkline.net import Stream, dial_tcp, open_stream, start_tls
from trunkline.pool import PooledTransport
from trunkline.proxy import Proxy, find_proxy
from trunkline.tls import LazyContext
from trunkline_httpx._exchange import Http1Connection
from trunkline_httpx._family import Family
from trunkline_httpx._proxy import HAS_SOCKS, SOCKS_REMEDY, open_socks, open_tunnel


def capabilities(name: str) -> Capabilities:
    """What a backend of this family can do, whatever its name."""
    return Capabilities(
        name=name,
        trio=True,
        http2=True,
        prior_knowledge=True,
        proxy=True,
        socks=HAS_SOCKS,
        uds=True,
    )


class FamilyTransport(PooledTransport):
    """A transport on httpx or its like. A backend sets `capabilities` and `family`.

    Raises:
        UnsupportedOption: the config needs what is not installed.
    """

    family: ClassVar[Family]

    def __init__(self, config: TransportConfig | None = None) -> None:
        if config is not None and (config.proxy or "").startswith("socks") and not HAS_SOCKS:
            raise UnsupportedOption(f"proxy: {SOCKS_REMEDY}")
        super().__init__(config)
        self._tls = LazyContext(self.config.tls, http2=bool(self.config.http2))

    def make_dialer(self, resolver: Resolver) -> Dialer:
        return FamilyDialer(self.family, self.config, resolver, self._tls)


class FamilyDialer:
    """Implements `trunkline.Dialer`."""

    def __init__(
        self, family: Family, config: TransportConfig, resolver: Resolver, tls: LazyContext
    ) -> None:
        self._family = family
        self._config = config
        self._resolver = resolver
        self._tls = tls
        self._cut_short: list[AsyncIterator[bytes]] = []

    async def connect(self, origin: Origin, dial: Dial) -> Connection:
        await self._finish_cut_short()
        proxy = None if self._config.uds is not None else find_proxy(self._config, origin)
        if proxy is None:
            stream = await open_stream(
                origin, dial, config=self._config, resolver=self._resolver, tls=self._tls
            )
        else:
            stream = await self._open_through(proxy, origin, dial)
        return self._make_connection(stream, origin, proxy)

    async def aclose(self) -> None:
        await self._finish_cut_short()

    async def _finish_cut_short(self) -> None:
        """Run the iterators of abandoned responses to their end.

        Their connections are closed, so that comes soon. To drop an async generator half-way would
        leave it to the garbage collector, which asyncio answers with a task and trio with a
        warning; and to close a response is synchronous.
        """
        while self._cut_short:
            pieces = self._cut_short.pop()
            with contextlib.suppress(self._family.client.TransportError):
                async for _ in pieces:
                    pass

    def _make_connection(self, stream: Stream, origin: Origin, proxy: Proxy | None) -> Connection:
        is_forwarded = proxy is not None and not (proxy.is_socks or origin.is_tls)
        knows = self._config.http2 == "prior_knowledge" and not (origin.is_tls or is_forwarded)
        if stream.alpn == "h2" or knows:
            from trunkline_httpx._http2 import Http2Connection

            return Http2Connection(stream, ping_interval=self._config.limits.ping_interval)
        if proxy is None or proxy.is_socks or origin.is_tls:
            return Http1Connection(stream, family=self._family, cut_short=self._cut_short)
        credentials = proxy.authorization
        extra = ((b"Proxy-Authorization", credentials.encode()),) if credentials else ()
        return Http1Connection(
            stream,
            family=self._family,
            prefix=str(origin),
            extra_headers=extra,
            cut_short=self._cut_short,
        )

    # -- the steps -----------------------------------------------------------------------------

    async def _open_through(self, proxy: Proxy, origin: Origin, dial: Dial) -> Stream:
        stream: Stream
        try:
            stream = await dial_tcp(proxy.host, proxy.port, dial, self._resolver)
        except ConnectionFailed as error:
            raise ProxyError(f"the proxy cannot be reached: {error}") from error
        try:
            stream = await self._pass(proxy, stream, origin, dial)
            if origin.is_tls:
                stream = await start_tls(stream, self._tls.get(), origin.host, dial)
        except BaseException:
            stream.close()
            raise
        return stream

    async def _pass(self, proxy: Proxy, stream: Stream, origin: Origin, dial: Dial) -> Stream:
        """From an open connection to the proxy to one that the origin's bytes go over."""
        try:
            if proxy.scheme == "https":
                stream = await start_tls(stream, self._tls.for_proxy(), proxy.host, dial)
            dial.begin("proxy")
            if proxy.is_socks:
                await self._pass_socks(proxy, stream, origin)
            elif origin.is_tls:
                await open_tunnel(stream, proxy, origin)
        except (TLSError, ConnectError, OSError, anyio.ClosedResourceError) as error:
            raise ProxyError("the connection to the proxy failed") from error
        return stream

    async def _pass_socks(self, proxy: Proxy, stream: Stream, origin: Origin) -> None:
        if not HAS_SOCKS:  # the environment named it, which is not known before now
            raise ProxyError(SOCKS_REMEDY)
        host = origin.host
        if proxy.scheme == "socks5":
            host = (await self._resolver.resolve(host))[0]
        await open_socks(stream, proxy, host, origin.port)
