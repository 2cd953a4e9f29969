"""`Client`: the facade. Builds requests, adds defaults, and owns one transport.

This module knows URLs relative to a base, default headers and JSON. It does not know connections:
everything it sends goes through a `Transport`, chosen by config or given.
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any, Self, TypeAlias, cast
from urllib.parse import urlencode

import anyio
from yarl import URL

from trunkline._config import Timeouts, TransportConfig
from trunkline._contract import PoolSnapshot, Transport
from trunkline._errors import InvalidRequest, TransportClosed, UnsupportedOption
from trunkline._events import Observer
from trunkline._fields import Fields, HeaderTypes
from trunkline._messages import Content, Request, Response
from trunkline._registry import choose
from trunkline._urls import parse_url
from trunkline._version import __version__
from trunkline.pool import PooledTransport, make_runtime

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Params: TypeAlias = Mapping[str, Any] | Iterable[tuple[str, Any]] | None


class Client:
    """Sends requests through one transport, and closes it.

    Args:
        config: a `TransportConfig`; or give its fields by name: `Client(backend="httpx")`.
        base_url: put before every relative URL.
        headers: sent with every request, unless the request has a header of that name.
        transport: use this one instead of making one from a config. The client closes it.

    Raises:
        pydantic.ValidationError: a field of the config is unknown or wrong.
        BackendUnavailable, UnsupportedOption: as `open_transport`.
        InvalidRequest: `base_url` or `headers` are no good.
    """

    transport: Transport
    """What the requests go through."""
    backend_reason: str
    """Why this backend, in a sentence."""

    def __init__(
        self,
        config: TransportConfig | None = None,
        *,
        base_url: str | URL = "",
        headers: HeaderTypes = None,
        transport: Transport | None = None,
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise TypeError(f"give a config or its fields, not both: {', '.join(options)}")
        if transport is not None and (config is not None or options):
            raise TypeError("give a transport or a config, not both")
        self._base_url = str(base_url)
        if self._base_url:
            parse_url(self._base_url)
            if "?" in self._base_url or "#" in self._base_url:
                raise InvalidRequest("base_url: it must have no query and no fragment")
        self._fields = Fields(headers).over(_defaults())
        # Callers repeat their headers, and mostly in dicts that are made anew.
        self._known_fields = lru_cache(maxsize=64)(partial(_complete, self._fields))
        self._observed: dict[Observer, list[Callable[[], None]]] = {}
        self._is_closed = False
        self._retired: set[Transport] = set()
        if transport is not None:
            self.transport = transport
            self.backend_reason = f"{transport.capabilities.name}: the transport was given"
        else:
            self.transport, self.backend_reason = choose(config or TransportConfig(**options))

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self.transport.capabilities.name

    def build_request(
        self,
        method: str,
        url: str | URL,
        *,
        params: Params = None,
        headers: HeaderTypes = None,
        content: Content = None,
        json: Any = None,
        data: Mapping[str, Any] | None = None,
        timeouts: Timeouts | None = None,
        idempotent: bool | None = None,
        priority: int = 0,
    ) -> Request:
        """A request with the client's base URL and headers.

        Args:
            params: added to the query; a list as value gives the key several times.
            content: the body as bytes, text or an async iterable of bytes.
            json: a body of JSON; sets Content-Type.
            data: a body of form fields; sets Content-Type.

        Raises:
            InvalidRequest: naming what is wrong.
        """
        body, content_type = _body(content, json, data)
        return Request(
            method,
            self._join(str(url), params),
            headers=self._fields_for(headers, content_type),
            content=body,
            timeouts=timeouts,
            idempotent=idempotent,
            priority=priority,
        )

    def _fields_for(self, headers: HeaderTypes, content_type: str | None) -> Fields:
        given: Any = () if headers is None else headers
        if type(given) is dict:
            given = tuple(cast("dict[str, str]", given).items())
        try:
            if type(given) is tuple:
                return self._known_fields(cast("tuple[tuple[str, str], ...]", given), content_type)
        except TypeError:
            pass  # a value is no text, and cannot be looked up: `Fields` says which
        return _complete(self._fields, headers, content_type)

    def _join(self, url: str, params: Params) -> str:
        if self._base_url and not _ABSOLUTE.match(url):
            is_path = url and not url.startswith(("?", "#"))
            base = self._base_url.rstrip("/") + "/" if is_path else self._base_url
            url = base + url.removeprefix("/")
        url = url.partition("#")[0]
        if params:
            url += ("&" if "?" in url else "?") + _encode("params", params)
        return url

    async def send(self, request: Request) -> Response:
        """Send a request as it is; see `Transport.send`."""
        return await self.transport.send(request)

    async def request(self, method: str, url: str | URL, **options: Any) -> Response:
        """Send a request and read the whole answer. Options as in `build_request`.

        Raises:
            TransportError: see `trunkline.TransportError`. A 4xx or 5xx is not an error.
        """
        response = await self.transport.send(self.build_request(method, url, **options))
        await response.aread()
        return response

    @asynccontextmanager
    async def stream(self, method: str, url: str | URL, **options: Any) -> AsyncGenerator[Response]:
        """Send a request; the block gets the response as soon as its head is here.

        Leaving the block before the body has been read ends the exchange.
        """
        response = await self.transport.send(self.build_request(method, url, **options))
        try:
            yield response
        finally:
            await response.aclose()

    async def get(self, url: str | URL, **options: Any) -> Response:
        """`request("GET", ...)`."""
        return await self.request("GET", url, **options)

    async def head(self, url: str | URL, **options: Any) -> Response:
        """`request("HEAD", ...)`."""
        return await self.request("HEAD", url, **options)

    async def post(self, url: str | URL, **options: Any) -> Response:
        """`request("POST", ...)`."""
        return await self.request("POST", url, **options)

    async def put(self, url: str | URL, **options: Any) -> Response:
        """`request("PUT", ...)`."""
        return await self.request("PUT", url, **options)

    async def patch(self, url: str | URL, **options: Any) -> Response:
        """`request("PATCH", ...)`."""
        return await self.request("PATCH", url, **options)

    async def delete(self, url: str | URL, **options: Any) -> Response:
        """`request("DELETE", ...)`."""
        return await self.request("DELETE", url, **options)

    async def options(self, url: str | URL, **options: Any) -> Response:
        """`request("OPTIONS", ...)`."""
        return await self.request("OPTIONS", url, **options)

    def snapshot(self) -> PoolSnapshot:
        """The pool at this moment; see `PoolSnapshot`."""
        return self.transport.snapshot()

    async def warm(self, url: str | URL = "", connections: int = 1) -> int:
        """Open connections ahead of the first request; see `Transport.warm`.

        `url` may be relative to the base URL.
        """
        return await self.transport.warm(self._join(str(url), None), connections)

    async def reconfigure(self, config: TransportConfig, *, drain: float = 3600.0) -> None:
        """Send every request from now on through a transport made of `config`.

        Requests and responses under way finish on the old one, which takes no new ones, closes each
        connection when it is done, and after `drain` seconds whatever is left.

        Raises:
            BackendUnavailable, UnsupportedOption: as `open_transport`; then nothing has changed.
            TransportClosed: the client is closed.
        """
        if self._is_closed:
            raise TransportClosed("the client is closed")
        old = self.transport
        new, reason = choose(config)
        for observer, stops in self._observed.items():
            stops.append(_observe(new, observer))
        self.transport, self.backend_reason = new, reason
        self._retired.add(old)

        async def close_old() -> None:
            await _close(old, drain)
            self._retired.discard(old)

        make_runtime().spawn(close_old, keep=True)

    def flush_dns(self, host: str | None = None) -> None:
        """Forget the addresses of `host`, or of every host.

        Raises:
            UnsupportedOption: the transport resolves names by itself.
        """
        if not isinstance(self.transport, PooledTransport):
            raise UnsupportedOption(f"flush_dns: {self.backend} resolves names by itself")
        self.transport.flush_dns(host)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Have `observer` told of every event from now on; the function returned ends it.

        It stays when the client is reconfigured.

        Raises:
            UnsupportedOption: the transport has no events.
        """
        stops = self._observed[observer] = [_observe(self.transport, observer)]

        def stop() -> None:
            self._observed.pop(observer, None)
            for one in stops:
                one()

        return stop

    async def aclose(self, drain: float = 0.0) -> None:
        """Close the transport, and those retired by `reconfigure`; see `Transport.aclose`."""
        self._is_closed = True
        if not self._retired:
            await _close(self.transport, drain)  # what it raises comes out as it is
            return
        async with anyio.create_task_group() as group:
            for transport in (self.transport, *self._retired):
                group.start_soon(_close, transport, drain)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Client on {self.backend}>"


def _defaults() -> Fields:
    from trunkline.decode import ACCEPT_ENCODING

    return Fields(
        {
            "Accept": "*/*",
            "Accept-Encoding": ACCEPT_ENCODING,
            "User-Agent": f"trunkline/{__version__}",
        }
    )


def _complete(defaults: Fields, headers: HeaderTypes, content_type: str | None) -> Fields:
    """`headers` over `defaults`, with the type of the body where they do not name one."""
    fields = Fields(headers).over(defaults)
    if content_type is None or "content-type" in fields:
        return fields
    return fields.plus("Content-Type", content_type)


def _body(
    content: Content, json: Any, data: Mapping[str, Any] | None
) -> tuple[Content, str | None]:
    if json is None and data is None:
        return content, None
    if sum(part is not None for part in (content, json, data)) > 1:
        raise InvalidRequest("content, json, data: give one of them")
    if json is not None:
        try:
            text = jsonlib.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest("json: it holds a value that JSON has no form for") from error
        return _utf8("json", text), "application/json"
    assert data is not None
    return _encode("data", data).encode(), "application/x-www-form-urlencoded"


def _observe(transport: Transport, observer: Observer) -> Callable[[], None]:
    if not isinstance(transport, PooledTransport):
        raise UnsupportedOption(f"observe: {transport.capabilities.name} has no events")
    return transport.observe(observer)


async def _close(transport: Transport, drain: float) -> None:
    # A transport that has nothing to drain need not take the argument.
    if drain:
        await transport.aclose(drain)
    else:
        await transport.aclose()


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name}: it contains a lone surrogate") from error


def _encode(name: str, fields: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    given = cast("Mapping[str, Any]", fields).items() if isinstance(fields, Mapping) else fields
    pairs: list[tuple[str, str]] = []
    try:
        for key, value in given:
            values = cast("list[Any]", value) if isinstance(value, (list, tuple)) else [value]
            pairs.extend((key, _plain(one)) for one in values)
        return urlencode(pairs)
    except (TypeError, ValueError) as error:
        message = f"{name}: give a mapping, or pairs of a name and a value that text can hold"
        raise InvalidRequest(message) from error


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
