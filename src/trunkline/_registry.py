"""From a backend's name to a transport, through the entry points in the group `trunkline.backends`.

This module knows which backends are installed and what each can do. It does not know any of them:
the built-in ones come through the same door as a stranger's. An entry point names a class whose
`capabilities` is a `Capabilities` and which is called with a `TransportConfig`.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from trunkline._config import TransportConfig
from trunkline._contract import Capabilities, Transport
from trunkline._errors import BackendUnavailable, UnsupportedOption

if TYPE_CHECKING:
    from collections.abc import Callable

    Factory = Callable[[TransportConfig], Transport]

_GROUP = "trunkline.backends"
_PREFERRED = ("aiohttp", "httpx")


def available_backends() -> tuple[str, ...]:
    """Names of the backends that are installed, the preferred ones first.

    A backend may be installed without the library it needs; opening it then raises
    `BackendUnavailable` with the command that installs it.
    """
    names = sorted({entry.name for entry in _entries(tuple(sys.path))})
    return tuple(sorted(names, key=lambda name: (*_PREFERRED, name).index(name)))


def load_backend(name: str) -> Any:
    """The class behind a backend's name.

    Raises:
        BackendUnavailable: there is none of that name, or its library is missing.
    """
    entry = _find(name)
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        missing = error.name or "a module"
        if missing.partition(".")[0] == entry.module.partition(".")[0]:
            raise
        ours = entry.dist is not None and entry.dist.name == "trunkline"
        extra = "" if name == "aiohttp" else f"[{name}]"  # aiohttp is no extra
        what = f"'trunkline{extra}'" if ours else missing
        message = f"backend {name!r} needs {missing}: pip install {what}"
        raise BackendUnavailable(message) from error


@lru_cache(maxsize=8)
def _entries(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The backends installed on `path`; to look at every distribution takes a tenth of a second."""
    return tuple(entry_points(group=_GROUP))


def _find(name: str) -> EntryPoint:
    for entry in _entries(tuple(sys.path)):
        if entry.name == name:
            return entry
    known = ", ".join(available_backends()) or "none"
    raise BackendUnavailable(
        f"backend: there is no {name!r}; installed are: {known}, or use 'auto'"
    )


def open_transport(config: TransportConfig | None = None) -> Transport:
    """Make the transport that `config` asks for. Nothing is opened yet.

    Raises:
        BackendUnavailable: there is no such backend, or its library is missing.
        UnsupportedOption: the backend cannot honour an option; the message names it.
    """
    transport, _ = choose(config or TransportConfig())
    return transport


def choose(config: TransportConfig) -> tuple[Transport, str]:
    """The transport for `config`, and a sentence that says why this backend."""
    if config.backend != "auto":
        return _make(config.backend, config), f"{config.backend}: the config names it"
    return _choose_automatically(config)


def _choose_automatically(config: TransportConfig) -> tuple[Transport, str]:
    passed_over: list[str] = []
    for name in available_backends():
        try:
            transport = _make(name, config)
        except UnsupportedOption as error:
            fact, _, _ = str(error).partition("; ")
            passed_over.append(f"{name} is out ({fact})")
        else:
            why = "; ".join(passed_over) or "auto prefers it, and it can do what the config asks"
            return transport, f"{name}: {why}"
    raise UnsupportedOption("backend: none can do what the config asks; " + "; ".join(passed_over))


def _make(name: str, config: TransportConfig) -> Transport:
    factory = cast("Factory", load_backend(name))
    return factory(config)


def capabilities_of(name: str) -> Capabilities:
    """What the backend can do.

    Raises:
        BackendUnavailable: as `load_backend`.
    """
    return cast("Capabilities", load_backend(name).capabilities)
