"""The clients under test: one file each, and one for all of Trunkline's backends.

This module knows their names, what installs them and what a file has to offer: `connect(target)`,
an async context manager that gives a `Client`. Only the process that measures a client imports it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, TypeAlias

from benchmarks._model import Target

Headers: TypeAlias = tuple[tuple[str, str], ...]
Events: TypeAlias = AsyncIterator[object]


class Client(Protocol):
    """One library, made to do what the harness asks."""

    async def call(self, method: str, url: str, headers: Headers, body: bytes | None) -> bytes:
        """The whole body of the answer; anything but a 2xx is an error."""
        ...

    def events(
        self, url: str, headers: Headers, body: bytes | None
    ) -> AbstractAsyncContextManager[Events]:
        """POST, and each server-sent event as it comes, as the library's users get it."""
        ...


Connect: TypeAlias = Callable[[Target], AbstractAsyncContextManager[Client]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A client under test."""

    name: str
    module: str
    """In this package."""
    install: str
    """What `pip install` takes."""
    library: str
    """The distribution whose version is shown."""
    http2: bool = False
    streams: bool = True
    variant: str | None = None
    """Which of those that the file has; None where it has one."""
    most: int | None = None
    """Calls in flight beyond which a round would take minutes."""
    is_sdk: bool = False
    """A whole SDK, to be measured beside other SDKs only."""

    @property
    def is_ours(self) -> bool:
        return self.library == "trunkline"

    def load(self) -> Connect:
        """Import it. Raises ModuleNotFoundError where its library is missing."""
        connect = import_module(f"benchmarks.clients.{self.module}").connect
        return partial(connect, variant=self.variant) if self.variant else connect


FLOOR = "floor"

_PEERS = (
    Spec(name="aiohttp", module="raw_aiohttp", install="aiohttp", library="aiohttp"),
    Spec(
        name="httpx",
        module="raw_httpx",
        install="'httpx[http2]'",
        library="httpx",
        http2=True,
        most=100,
    ),
    Spec(
        name="httpx2", module="raw_httpx2", install="'httpx2[http2]'", library="httpx2", http2=True
    ),
    Spec(
        name="httpx-aiohttp",
        module="httpx_aiohttp_client",
        install="httpx-aiohttp",
        library="httpx-aiohttp",
    ),
    Spec(
        name="openai-aiohttp",
        module="openai_aiohttp",
        install="'openai[aiohttp]'",
        library="openai",
    ),
    Spec(
        name="niquests",
        module="niquests_client",
        install="niquests",
        library="niquests",
        http2=True,
    ),
    Spec(
        name="pyreqwest",
        module="pyreqwest_client",
        install="pyreqwest",
        library="pyreqwest",
        http2=True,
    ),
    Spec(name=FLOOR, module="floor", install="httptools", library="httptools", streams=False),
    *(
        Spec(
            name=f"openai on {variant}",
            module="openai_sdk",
            install="'openai[aiohttp]' 'trunkline[httpx2]'",
            library="openai",
            variant=variant,
            is_sdk=True,
        )
        for variant in ("trunkline", "DefaultAioHttpClient", "httpx2")
    ),
)


def specs() -> dict[str, Spec]:
    """Every client, by name: Trunkline on each installed backend first."""
    backends = sorted({entry.name for entry in entry_points(group="trunkline.backends")})
    ours = [
        Spec(
            name=f"trunkline-{backend}",
            module="trunkline_backend",
            install=f"'trunkline[{backend}]'",
            library="trunkline",
            http2=True,
            variant=backend,
        )
        for backend in backends
    ]
    facade = Spec(
        name="trunkline-client",
        module="trunkline_client",
        install="trunkline",
        library="trunkline",
        http2=True,
    )
    adapter = Spec(
        name="httpx2-on-trunkline",
        module="httpx2_on_trunkline",
        install="'trunkline[httpx2]'",
        library="trunkline",
        http2=True,
    )
    return {spec.name: spec for spec in (*ours, facade, adapter, *_PEERS)}
