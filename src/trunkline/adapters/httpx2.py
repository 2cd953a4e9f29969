"""Trunkline under everything that takes an httpx2 client or transport.

    from openai import AsyncOpenAI
    from trunkline.adapters.httpx2 import AsyncClient

    client = AsyncOpenAI(http_client=AsyncClient())

This module knows httpx2's base classes, and which parts to join them with. What the parts do is the
same for httpx and httpx2, and is in the modules beside this one.
"""

from __future__ import annotations

from typing import Any

try:
    import httpx2
except ModuleNotFoundError as error:
    if error.name != "httpx2":
        raise
    raise ModuleNotFoundError(
        "trunkline.adapters.httpx2 needs httpx2: pip install 'trunkline[httpx2]'", name="httpx2"
    ) from error

from trunkline import Transport, TransportConfig
from trunkline.adapters._async import AsyncAdapter, AsyncBody, AsyncResponse
from trunkline.adapters._clients import client_arguments
from trunkline.adapters._family import Family
from trunkline.adapters._sync import SyncAdapter, SyncBody

__all__ = ("AsyncClient", "AsyncTransport", "Client", "SyncTransport")

_FAMILY = Family(httpx2)


class _AsyncBody(AsyncBody, httpx2.AsyncByteStream):
    _family = _FAMILY


class _AsyncResponse(AsyncResponse, httpx2.Response):
    _family = _FAMILY


class _SyncBody(SyncBody, httpx2.SyncByteStream):
    _family = _FAMILY


class AsyncTransport(AsyncAdapter, httpx2.AsyncBaseTransport):
    """Sends httpx2's requests through Trunkline, from any event loop.

    Headers, URL and bodies go out as httpx2 has made them, bodies that are streams as streams. The
    request's time-outs replace the config's; a `read` one also bounds the wait for the response
    head. The response's extension `network_stream` tells the peer's address and its TLS.

    Every error is one of httpx2's; its `__cause__` is Trunkline's, with the facts a retry needs.

    Args:
        config_or_transport: a config, for a transport that `aclose` closes; or a transport, which
            whoever made it closes. None for the default config.

    Raises:
        BackendUnavailable, UnsupportedOption: as `open_transport`.
    """

    _family = _FAMILY
    _body_class = _AsyncBody
    _response_class = _AsyncResponse


class SyncTransport(SyncAdapter, httpx2.BaseTransport):
    """`AsyncTransport` for callers without an event loop, from any thread.

    The first request starts a thread with an event loop, in which all of them run. It ends with
    `close`, with the interpreter, or when the transport is dropped. A forked child starts its own,
    with connections of its own. An exchange whose caller gets a KeyboardInterrupt is cancelled.

    A request body that is an iterator is iterated over in the caller's thread; of a response body,
    256 KiB and a piece are read ahead of the caller at most. So a `read` time-out counts the
    server's silence also while the caller is busy with the piece before.

    Args:
        config_or_transport: as in `AsyncTransport`; `close` closes what was made here.

    Raises:
        BackendUnavailable, UnsupportedOption: as `open_transport`.
    """

    _family = _FAMILY
    _body_class = _SyncBody


class AsyncClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` on Trunkline, for the `http_client` of an SDK.

    What neither the config nor an argument sets is as in the SDKs' own clients: 600 s for each
    time-out but 5 s to connect, 1000 connections of which 100 may be idle, redirects followed, and
    proxies taken from the environment. WebSockets (`client.websocket`) are not supported: Trunkline
    carries HTTP only.

    Args:
        config: a config; or a transport, which whoever made it closes.
        options: the arguments of `httpx2.AsyncClient`. `limits`, `http2`, `verify`, `cert`, `proxy`
            and `trust_env` go into the config, over what it says. An `SSLContext` for `verify` is
            used as it is, for every connection; see `trunkline.Tls`. `transport` may be one of this
            module's, which is closed with the client.

    Raises:
        UnsupportedOption: (a ValueError) an argument cannot be honoured, such as `http1=False`; the
            message says what to do instead.
        BackendUnavailable: as `open_transport`.
        pydantic.ValidationError: (a ValueError) an argument's value is wrong.
    """

    transport: Transport
    """Trunkline's, e.g. for `client.transport.snapshot()`."""

    def __init__(self, config: TransportConfig | Transport | None = None, **options: Any) -> None:
        self.transport, arguments = client_arguments(_FAMILY, AsyncTransport, config, options)
        super().__init__(**arguments)

    def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
        """As the library's own; a URL that comes again is not parsed again."""
        return super().build_request(method, _FAMILY.url(url), **options)


class Client(httpx2.Client):
    """An `httpx2.Client` on Trunkline; see `AsyncClient` for its arguments, `SyncTransport` for its
    thread.
    """

    transport: Transport
    """Trunkline's, e.g. for `client.transport.snapshot()`."""

    def __init__(self, config: TransportConfig | Transport | None = None, **options: Any) -> None:
        self.transport, arguments = client_arguments(_FAMILY, SyncTransport, config, options)
        super().__init__(**arguments)

    def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
        """As the library's own; a URL that comes again is not parsed again."""
        return super().build_request(method, _FAMILY.url(url), **options)
