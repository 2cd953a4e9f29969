"""The clients that faults are played against: Trunkline's backends, and the libraries beside them.

This module knows how each client is told of a deadline, a proxy and whom to trust. It does not know
any fault. Libraries are imported when a client is opened.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tests.faults._lab import Ask, Client, Fault, Reply

import trunkline
from trunkline import Request, Timeouts, TransportConfig
from trunkline._config import split_nameserver
from trunkline._registry import capabilities_of
from trunkline.tls import make_ssl_context


@dataclass(frozen=True, slots=True)
class Kind:
    """A client by name, as the head of a column of the table.

    Attributes:
        open: makes one of a `TransportConfig`'s options and deadlines.
        can: which `Fault.needs` it meets.
        is_ours: it is Trunkline's, and has to be right.
    """

    name: str
    open: Callable[[dict[str, Any], Timeouts], Client]
    can: frozenset[str]
    is_ours: bool = False

    def plays(self, fault: Fault) -> bool:
        return self.can.issuperset(fault.needs)


# -- Trunkline -------------------------------------------------------------------------------------


class Ours:
    def __init__(self, backend: str, options: dict[str, Any], timeouts: Timeouts) -> None:
        config = TransportConfig(backend=backend, timeouts=timeouts, **options)
        self.transport = trunkline.open_transport(config)

    async def fetch(self, url: str, ask: Ask) -> Reply:
        content = ask.content() if callable(ask.content) else ask.content
        request = Request(
            ask.method, url + ask.path, headers=ask.headers, content=content, timeouts=ask.timeouts
        )
        async with await self.transport.send(request) as response:
            return Reply(response.status_code, await response.aread())

    def at_work(self) -> str:
        now = self.transport.snapshot()
        counts = {"active": now.active, "connecting": now.connecting, "waiting": now.waiting}
        return ", ".join(f"{number} {name}" for name, number in counts.items() if number)

    async def aclose(self) -> None:
        await self.transport.aclose()


def _ours(backend: str) -> Kind:
    def make(options: dict[str, Any], timeouts: Timeouts) -> Client:
        return Ours(backend, options, timeouts)

    capabilities = capabilities_of(backend)
    names = ("asyncio", "trio", "http2", "prior_knowledge", "proxy", "socks", "uds")
    can = {name for name in names if getattr(capabilities, name)}
    return Kind(f"trunkline {backend}", make, frozenset(can | {"nameservers"}), is_ours=True)


# -- aiohttp ---------------------------------------------------------------------------------------


class Session:
    """`aiohttp.ClientSession`; each deadline as the field of `ClientTimeout` that is nearest."""

    def __init__(self, options: dict[str, Any], timeouts: Timeouts) -> None:
        self._options = options
        self._timeouts = timeouts
        self._proxy = options.get("proxy")
        self._session: Any = None

    def _open(self) -> Any:
        import aiohttp

        limits = self._options.get("limits", trunkline.Limits())
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limits.max_connections or 0,
                ssl=_tls(self._options),
                resolver=self._resolver(),
            ),
        )

    def _deadlines(self, given: Timeouts) -> Any:
        import aiohttp

        return aiohttp.ClientTimeout(
            total=given.total,
            connect=_least(given.pool, given.connect),  # a connection, by waiting or by dialling
            sock_read=_least(given.read, given.headers),
        )

    def _resolver(self) -> Any:
        import aiohttp

        if "dns" not in self._options:
            return None
        (server,) = self._options["dns"].nameservers
        host, port = split_nameserver(server)
        return aiohttp.AsyncResolver(nameservers=[host], udp_port=port, tcp_port=port)

    async def fetch(self, url: str, ask: Ask) -> Reply:
        self._session = self._session or self._open()
        content = ask.content() if callable(ask.content) else ask.content
        async with self._session.request(
            ask.method,
            url + ask.path,
            headers=ask.headers,
            data=content,
            proxy=self._proxy,
            timeout=self._deadlines(ask.timeouts or self._timeouts),
        ) as response:
            return Reply(response.status, await response.read())

    def at_work(self) -> str:
        return ""

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


# -- httpx, httpx2 ---------------------------------------------------------------------------------


class Httpx:
    """`AsyncClient` of httpx or httpx2, which has no deadline for a head or for everything."""

    def __init__(self, library: str, options: dict[str, Any], timeouts: Timeouts) -> None:
        module: Any = import_module(library)
        limits = options.get("limits", trunkline.Limits())
        self._client = module.AsyncClient(
            verify=_tls(options),
            proxy=options.get("proxy"),
            http2=bool(options.get("http2")),
            trust_env=False,
            limits=module.Limits(max_connections=limits.max_connections),
        )
        self._module = module
        self._timeouts = timeouts

    def _deadlines(self, given: Timeouts) -> Any:
        return self._module.Timeout(
            connect=given.connect,
            read=_least(given.read, given.headers),
            write=given.write,
            pool=given.pool,
        )

    async def fetch(self, url: str, ask: Ask) -> Reply:
        content = ask.content() if callable(ask.content) else ask.content
        request = self._client.request
        response = await request(
            ask.method,
            url + ask.path,
            headers=list(ask.headers),
            content=content,
            timeout=self._deadlines(ask.timeouts or self._timeouts),
        )
        return Reply(response.status_code, response.content)

    def at_work(self) -> str:
        return ""

    async def aclose(self) -> None:
        await self._client.aclose()


def _httpx(library: str) -> Kind:
    def make(options: dict[str, Any], timeouts: Timeouts) -> Client:
        return Httpx(library, options, timeouts)

    return Kind(library, make, frozenset({"asyncio", "trio", "http2", "proxy", "socks", "uds"}))


def _least(*deadlines: float | None) -> float | None:
    return min((each for each in deadlines if each is not None), default=None)


def _tls(options: dict[str, Any]) -> ssl.SSLContext | bool:
    given = options.get("tls")
    return True if given is None else make_ssl_context(given)


OURS = tuple(_ours(backend) for backend in ("aiohttp", "httpx"))
PEERS = (
    Kind("aiohttp", Session, frozenset({"asyncio", "proxy", "nameservers"})),
    _httpx("httpx"),
    _httpx("httpx2"),
)
