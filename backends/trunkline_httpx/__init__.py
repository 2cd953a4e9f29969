"""Trunkline's backend on httpx, for asyncio and trio.

httpx is imported with `HttpxTransport`, not with this package: `trunkline_httpx2` shares its
modules and does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trunkline_httpx._httpx import HttpxTransport as HttpxTransport

__all__ = ("HttpxTransport",)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("trunkline_httpx._httpx"), name)
