"""For tests: transports without a network, faults, an LLM server, and the conformance suite.

This module knows where the names live. Servers, certificates and the
conformance suite need `pip install 'trunkline[testing]'`; the transports need nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trunkline.testing._asgi import ASGITransport as ASGITransport
    from trunkline.testing._certificates import Certificates as Certificates
    from trunkline.testing._conformance import TransportConformance as TransportConformance
    from trunkline.testing._dns_server import DNSServer as DNSServer
    from trunkline.testing._fault_plan import Fault as Fault, FaultPlan as FaultPlan
    from trunkline.testing._faults import (
        FaultTransport as FaultTransport,
        InjectedFault as InjectedFault,
    )
    from trunkline.testing._frames import FrameServer as FrameServer
    from trunkline.testing._llm_server import LLMServer as LLMServer
    from trunkline.testing._mock import MockTransport as MockTransport
    from trunkline.testing._received import (
        ReceivedRequest as ReceivedRequest,
        UnexpectedRequest as UnexpectedRequest,
    )
    from trunkline.testing._recording import RecordingTransport as RecordingTransport
    from trunkline.testing._redaction import Redaction as Redaction
    from trunkline.testing._replaying import ReplayTransport as ReplayTransport
    from trunkline.testing._router import Route as Route, Router as Router

_HOME_OF = {
    "ASGITransport": "trunkline.testing._asgi",
    "Certificates": "trunkline.testing._certificates",
    "DNSServer": "trunkline.testing._dns_server",
    "FrameServer": "trunkline.testing._frames",
    "Fault": "trunkline.testing._fault_plan",
    "FaultPlan": "trunkline.testing._fault_plan",
    "FaultTransport": "trunkline.testing._faults",
    "InjectedFault": "trunkline.testing._faults",
    "LLMServer": "trunkline.testing._llm_server",
    "MockTransport": "trunkline.testing._mock",
    "ReceivedRequest": "trunkline.testing._received",
    "RecordingTransport": "trunkline.testing._recording",
    "Redaction": "trunkline.testing._redaction",
    "ReplayTransport": "trunkline.testing._replaying",
    "Route": "trunkline.testing._router",
    "Router": "trunkline.testing._router",
    "TransportConformance": "trunkline.testing._conformance",
    "UnexpectedRequest": "trunkline.testing._received",
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
