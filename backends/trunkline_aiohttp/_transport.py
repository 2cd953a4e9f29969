"""`AiohttpTransport` and how it opens connections.

This module knows the config and aiohttp's connector. It does not know how an exchange runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from trunkline import (
    Capabilities,
    ConnectError,
    Connection,
    Dial,
    Dialer,
    Origin,
    Phase,
    ProxyError,
    TLSError,
    TransportConfig,
    TransportError,
)
from trunkline.dns import Resolver
from trunkline.pool import PooledTransport
from trunkline.proxy import find_proxy
from trunkline.tls import LazyContext
from trunkline_aiohttp._exchange import AiohttpConnection
from trunkline_aiohttp._protocol import (
    make_connector,
    on_protocol_made,
    open_socket,
    open_unix_socket,
)
from trunkline_aiohttp._reads import make_reads
from trunkline_aiohttp._translate import connect_error

if TYPE_CHECKING:
    import ssl

    from aiohttp.connector import Connection as Opened

    from trunkline_aiohttp._protocol import Handler


class AiohttpTransport(PooledTransport):
    """HTTP on connections of aiohttp's connector, below `ClientSession`; asyncio and uvloop.

    HTTP/1.1 runs on aiohttp's parser, HTTP/2 on `trunkline.http2`.

    Streams over HTTP/1.1 are read together on asyncio's own loop on Linux: where events come more
    often than about 300 times a second, on whichever streams, one may come to its reader late, by
    some 4 ms, and by some 11 ms at most where the loop has much to do. uvloop reads each at once.

    Raises:
        UnsupportedOption: the config asks for a SOCKS proxy, or it is made under trio.
    """

    capabilities = Capabilities(
        name="aiohttp", http2=True, prior_knowledge=True, proxy=True, uds=True, duplex=True
    )

    def __init__(self, config: TransportConfig | None = None) -> None:
        super().__init__(config)
        self._tls = LazyContext(self.config.tls, http2=bool(self.config.http2))

    def make_dialer(self, resolver: Resolver) -> Dialer:
        return _AiohttpDialer(self.config, self._tls, resolver)


class _AiohttpDialer:
    """Implements `trunkline.Dialer` with a `TCPConnector`."""

    def __init__(self, config: TransportConfig, tls: LazyContext, resolver: Resolver) -> None:
        limits = config.limits
        self._config = config
        self._tls = tls
        self._resolver = resolver
        self._reads = make_reads()
        self._connector = make_connector(
            limit=limits.max_connections or 0,
            limit_per_host=limits.max_connections_per_host or 0,
            keepalive_timeout=limits.keepalive_expiry,
        )

    async def connect(self, origin: Origin, dial: Dial) -> Connection:
        proxy = find_proxy(self._config, origin)
        if proxy is not None and proxy.is_socks:
            raise ProxyError(
                "the environment names a SOCKS proxy, which backend 'aiohttp' cannot use; "
                "choose backend='httpx'"
            )
        addresses: tuple[str, ...] = ()
        if self._config.uds is None:
            dial.begin("dns")
            addresses = await self._resolver.resolve(origin.host if proxy is None else proxy.host)
        opened: Opened | None = None
        tls = self._tls.get() if origin.is_tls else None
        is_https_proxy = proxy is not None and proxy.scheme == "https"
        proxy_tls = self._tls.for_proxy() if is_https_proxy else None
        token = on_protocol_made.set(_Steps(dial, proxied=proxy is not None, tls=origin.is_tls))
        try:
            if self._config.uds is not None:
                protocol = await open_unix_socket(str(self._config.uds), tls, origin.host)
            else:
                opened = await open_socket(
                    self._connector, str(origin), addresses, tls, proxy, proxy_tls
                )
                protocol = cast("Handler", opened.protocol)
        except Exception as error:
            if isinstance(error, TransportError):
                raise
            raise connect_error(error, dial, proxied=proxy is not None) from error
        finally:
            on_protocol_made.reset(token)
        transport = protocol.transport
        if transport is None or transport.get_extra_info("socket") is None:
            # It ended while it was handed over: an alert right after a TLS 1.3 handshake.
            if opened is not None:
                opened.close()
            if tls is not None or proxy_tls is not None:
                raise TLSError("the peer ended the connection after the TLS handshake")
            raise ConnectError("the peer ended the connection as soon as it was open")
        forward = proxy if proxy is not None and not origin.is_tls else None
        if self._speaks_http2(origin, protocol, is_forwarded=forward is not None):
            from trunkline_aiohttp._http2 import Http2Connection

            ping_interval = self._config.limits.ping_interval
            return Http2Connection(opened, protocol, ping_interval=ping_interval, reads=self._reads)
        return AiohttpConnection(opened, protocol, forward, reads=self._reads)

    def _speaks_http2(self, origin: Origin, protocol: Handler, *, is_forwarded: bool) -> bool:
        if origin.is_tls:
            assert protocol.transport is not None
            tls: ssl.SSLObject = protocol.transport.get_extra_info("ssl_object")
            return tls.selected_alpn_protocol() == "h2"
        return self._config.http2 == "prior_knowledge" and not is_forwarded

    async def aclose(self) -> None:
        if self._reads is not None:
            self._reads.close()
        await self._connector.close()
        # Aborted transports close their sockets in the loop's next rounds.
        for _ in range(3):
            await asyncio.sleep(0)


class _Steps:
    """Keeps `dial` current while the connector works.

    The connector makes one protocol when the TCP connection is there, and through a CONNECT proxy a
    second one when the tunnel is.
    """

    def __init__(self, dial: Dial, *, proxied: bool, tls: bool) -> None:
        self._dial = dial
        self._left: list[Phase] = []
        if tls:
            self._left = ["proxy", "tls"] if proxied else ["tls"]
        dial.begin("connect")

    def __call__(self) -> None:
        if self._left:
            self._dial.begin(self._left.pop(0))
