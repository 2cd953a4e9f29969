"""The parts of the conformance suite put together."""

from __future__ import annotations

from trunkline.testing._conformance._bodies import Bodies
from trunkline.testing._conformance._requests import Requests
from trunkline.testing._conformance._responses import Responses
from trunkline.testing._conformance._streaming import Streaming


class TransportConformance(Requests, Responses, Bodies, Streaming):
    """Every behaviour of the contract, as a test.

    Attributes:
        backend: name of the backend under test.

    A class that tests a transport without an entry point overrides `capabilities` and
    `open_transport`.
    """
