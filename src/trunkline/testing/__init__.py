"""For tests: a transport without a network, an LLM server, and the conformance suite.

This module knows where the names live. `MockTransport` needs nothing; the others need
`pip install 'trunkline[testing]'`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trunkline.testing._certificates import Certificates as Certificates
    from trunkline.testing._conformance import TransportConformance as TransportConformance
    from trunkline.testing._dns_server import DNSServer as DNSServer
    from trunkline.testing._llm_server import LLMServer as LLMServer
    from trunkline.testing._mock import MockTransport as MockTransport

_HOME_OF = {
    "Certificates": "trunkline.testing._certificates",
    "DNSServer": "trunkline.testing._dns_server",
    "LLMServer": "trunkline.testing._llm_server",
    "MockTransport": "trunkline.testing._mock",
    "TransportConformance": "trunkline.testing._conformance",
}

__all__ = tuple(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME_OF[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trunkline"):
            raise
        raise ModuleNotFoundError(
            f"trunkline.testing.{name} needs {error.name}: pip install 'trunkline[testing]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value
