"""Every exception class of the libraries under us is translated, or cannot reach us for a reason.

The classes are found by walking the libraries' modules, so that one which a new release adds fails
here, by its name, until it has been thought about.
"""

from __future__ import annotations

import importlib
import pkgutil
import ssl
import warnings
from collections.abc import Awaitable, Callable
from fnmatch import fnmatch
from functools import cache
from types import ModuleType
from typing import Any

import anyio
import pytest
import socksio.exceptions

from trunkline import CertificateError, ProxyError, Request, TLSError, TransportError
from trunkline.http1 import Course
from trunkline.http2 import Http2Engine, Http2Exchange
from trunkline.http2._protocol import Protocol
from trunkline.net import opening_error
from trunkline.pool._watch import Steps
from trunkline_aiohttp._translate import connect_error, exchange_error
from trunkline_httpx import _proxy
from trunkline_httpx._translate import exchange_table, translate

OF_AIOHTTP = ("aiohttp", "ssl")
OF_HTTPX = {
    "httpx": ("httpx", "httpcore", "h11", "ssl", "anyio"),
    "httpx2": ("httpx2", "httpcore2", "h11", "ssl", "anyio"),
}
OF_HTTP2 = ("h2", "hpack", "hyperframe")

CANNOT_REACH_US: dict[str, tuple[str, ...]] = {
    "of aiohttp's server": ("aiohttp.web*",),
    "of WebSockets": (
        "aiohttp._websocket.*",
        "aiohttp.client_exceptions.WSMessageTypeError",
        "httpx2.websockets.*",
    ),
    "of forms and files that aiohttp encodes: our bodies are bytes": (
        "aiohttp.multipart.*",
        "aiohttp.payload.LookupError",
    ),
    "of decoding by aiohttp, which is off": ("aiohttp.compression_utils.*",),
    "raised and caught within aiohttp's StreamReader": ("aiohttp.streams.EofStream",),
    "of httpx's Client, Request and Response: only its transports send here": (
        "httpx*.CookieConflict",
        "httpx*.DecodingError",
        "httpx*.HTTPError",
        "httpx*.HTTPStatusError",
        "httpx*.InvalidURL",
        "httpx*.RequestError",
        "httpx*.RequestNotRead",
        "httpx*.ResponseNotRead",
        "httpx2.SSEError",
        "httpx*.StreamClosed",
        "httpx*.StreamConsumed",
        "httpx*.StreamError",
        "httpx*.TooManyRedirects",
        "httpx*._exceptions.HTTPXDeprecationWarning",
    ),
    "a base: h11 raises its two subclasses": ("h11._util.ProtocolError",),
    "of anyio's streams: the sockets are ours": (
        "anyio.BrokenResourceError",
        "anyio.DelimiterNotFound",
        "anyio.EndOfStream",
        "anyio.IncompleteRead",
        "anyio._core._exceptions.TypedAttributeLookupError",
    ),
    "two tasks wait for one socket: a bug of ours, not to be hidden": (
        "anyio._core._exceptions.BusyResourceError",
    ),
    "of anyio's queues, workers, portals and futures, which no exchange uses": (
        "anyio.RunFinishedError",
        "anyio.WouldBlock",
        "anyio._core._exceptions.BrokenWorker*",
        "anyio._core._exceptions.Future*",
        "anyio._core._exceptions.Task*",
    ),
    "outside of an event loop": ("anyio._core._exceptions.NoEventLoopError",),
}


@cache
def exceptions_of(library: str) -> tuple[type[BaseException], ...]:
    """Every one that a module of the library defines."""
    found: set[type[BaseException]] = set()
    for module in _modules_of(library):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseException):
                found.add(value)
    of_it = [one for one in found if one.__module__.partition(".")[0] == library]
    assert of_it, f"none of {library} is found"
    return tuple(sorted(of_it, key=_name))


def _modules_of(library: str) -> list[ModuleType]:
    package: ModuleType = pytest.importorskip(library)
    modules: list[ModuleType] = [package]
    for info in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{library}."):
        if info.name.endswith("__main__"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                modules.append(importlib.import_module(info.name))
            except ImportError:  # it needs what is not installed
                continue
    return modules


def _name(one: type[BaseException]) -> str:
    return f"{one.__module__}.{one.__qualname__}"


def _cannot_reach_us(one: type[BaseException]) -> bool:
    names = [pattern for patterns in CANNOT_REACH_US.values() for pattern in patterns]
    return any(fnmatch(_name(one), pattern) for pattern in names)


def _unthought(
    libraries: tuple[str, ...], is_translated: Callable[[type[BaseException]], bool]
) -> list[str]:
    return [
        _name(one)
        for library in libraries
        for one in exceptions_of(library)
        if not _cannot_reach_us(one) and not is_translated(one)
    ]


def _instance(one: type[BaseException]) -> Any:
    """One that has nothing but its class: the tables look at no more."""
    made: Any = one.__new__(one)
    made.status = 407
    return made


# --- aiohttp


def _by_aiohttp(one: type[BaseException]) -> bool:
    error = _instance(one)
    dial = Steps(None)
    dial.begin("connect")
    try:
        made = [
            connect_error(error, dial, proxied=False),
            connect_error(error, dial, proxied=True),
            exchange_error(error, has_head=False, started=False),
            exchange_error(error, has_head=False, started=True),
            exchange_error(error, has_head=True, started=True),
        ]
    except BaseException as raised:
        if raised is error:  # it is in no table
            return False
        raise
    return TransportError not in map(type, made)


def test_every_exception_of_aiohttp_is_translated() -> None:
    assert _unthought(OF_AIOHTTP, _by_aiohttp) == []


# --- httpx and what is under it

# What the `ssl` module tells, and what anyio tells of a socket, is translated while connecting too.
_WHILE_CONNECTING = ("ssl", "anyio")


@pytest.mark.parametrize("client", OF_HTTPX)
def test_every_exception_of_httpx_and_beneath_it_is_translated(client: str) -> None:
    libraries = OF_HTTPX[client]
    modules = [pytest.importorskip(name) for name in libraries[:2]]
    table = exchange_table(*modules)

    def is_translated(one: type[BaseException]) -> bool:
        error = _instance(one)
        courses = [
            Course(),
            Course(written=True),
            Course(written=True, started=True, in_head=True),
            Course(written=True, started=True, ended=True),
        ]
        made = [translate(error, table, course) for course in courses]
        if one.__module__.partition(".")[0] in _WHILE_CONNECTING:
            made.append(opening_error(error))
        return all(isinstance(each, TransportError) for each in made)

    assert _unthought(libraries, is_translated) == []


@pytest.mark.parametrize("library", exceptions_of("socksio"), ids=_name)
def test_every_exception_of_socksio_is_a_proxy_error(
    library: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise library("garbled")

    monkeypatch.setattr(_proxy, "_authenticate", fail)
    nothing: Any = None
    with pytest.raises(ProxyError) as caught:
        anyio.run(_proxy.open_socks, nothing, nothing, "origin", 443)

    assert isinstance(caught.value.__cause__, socksio.exceptions.SOCKSError)


# --- HTTP/2, under whichever backend


class Attempt:
    """An attempt without deadlines."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.response_started = self.is_body_untouched = self.is_untaken = False

    def begin(self, phase: str) -> None: ...

    def wait(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        return awaitable


class Exchange(Http2Exchange):
    def wake(self) -> None: ...

    async def until(self, ready: Callable[[], bool]) -> None: ...

    async def flush(self) -> None: ...


@pytest.mark.parametrize(
    "library", [one for name in OF_HTTP2 for one in exceptions_of(name)], ids=_name
)
def test_every_exception_of_the_http2_libraries_ends_the_exchanges(
    library: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Http2Engine()
    attempt: Any = Attempt()
    request = Request("GET", "https://origin/")
    exchange = Exchange(engine, request, attempt)
    engine.open(exchange, request, end=True)
    error = _instance(library)

    def fail(protocol: Protocol, data: bytes) -> None:
        raise error

    monkeypatch.setattr(Protocol, "frames", fail)
    engine.receive(b"anything")

    assert isinstance(exchange.failure, TransportError)
    assert exchange.failure.__cause__ is error
    assert engine.is_closed


# --- what the classes of `ssl` mean


@pytest.mark.parametrize("library", exceptions_of("ssl"), ids=_name)
def test_a_failed_handshake_is_told_as_one(library: type[Exception]) -> None:
    dial = Steps(None)
    dial.begin("tls")
    ours = CertificateError if issubclass(library, ssl.SSLCertVerificationError) else TLSError

    assert type(connect_error(_instance(library), dial, proxied=False)) is ours
    assert type(opening_error(_instance(library))) is ours


# --- the list


@pytest.mark.parametrize(
    "pattern", [one for patterns in CANNOT_REACH_US.values() for one in patterns]
)
def test_the_list_names_what_there_is(pattern: str) -> None:
    """An entry that names nothing any more hides what may come under the same name."""
    libraries = {
        name
        for name in (*OF_AIOHTTP, *OF_HTTPX["httpx"], *OF_HTTPX["httpx2"])
        if fnmatch(name, pattern.partition(".")[0])
    }
    names = [_name(one) for library in libraries for one in exceptions_of(library)]

    assert any(fnmatch(name, pattern) for name in names)
