"""The parts of the conformance suite put together."""

from __future__ import annotations

import pytest

from trunkline.testing._conformance._bodies import Bodies
from trunkline.testing._conformance._cancelling import Cancelling
from trunkline.testing._conformance._closing import Closing
from trunkline.testing._conformance._connecting import Connecting
from trunkline.testing._conformance._deadlines import Deadlines
from trunkline.testing._conformance._dns import Names
from trunkline.testing._conformance._facts import Facts
from trunkline.testing._conformance._failing import Failing
from trunkline.testing._conformance._fairness import Fairness
from trunkline.testing._conformance._generations import Generations
from trunkline.testing._conformance._health import Health
from trunkline.testing._conformance._http2 import Http2
from trunkline.testing._conformance._leaking import Leaking
from trunkline.testing._conformance._lifetimes import Lifetimes
from trunkline.testing._conformance._limits import LimitsHold
from trunkline.testing._conformance._loops import Loops
from trunkline.testing._conformance._observers import Observers
from trunkline.testing._conformance._observing import Observing
from trunkline.testing._conformance._options import Options
from trunkline.testing._conformance._ready import Ready
from trunkline.testing._conformance._replaying import Replaying
from trunkline.testing._conformance._requests import Requests
from trunkline.testing._conformance._responses import Responses
from trunkline.testing._conformance._reuse import Reuse
from trunkline.testing._conformance._routes import Routes
from trunkline.testing._conformance._snapshots import Snapshots
from trunkline.testing._conformance._spares import Spares
from trunkline.testing._conformance._streaming import Streaming
from trunkline.testing._conformance._waited import Waited
from trunkline.testing._conformance._warming import Warming


class TransportConformance(
    Requests,
    Responses,
    Bodies,
    Streaming,
    Reuse,
    Lifetimes,
    LimitsHold,
    Fairness,
    Waited,
    Snapshots,
    Health,
    Observing,
    Observers,
    Warming,
    Ready,
    Spares,
    Cancelling,
    Closing,
    Leaking,
    Generations,
    Loops,
    Connecting,
    Failing,
    Deadlines,
    Replaying,
    Facts,
    Routes,
    Options,
    Http2,
    Names,
):
    """Every behaviour of the contract, as a test.

    Attributes:
        backend: name of the backend under test.
        loops: "asyncio", "uvloop", "trio": those to run on; all of the backend's if left out.
        patience: seconds after which a test that waits for what never comes fails.

    A class that tests a transport without an entry point overrides `capabilities` and
    `open_transport`.
    """

    # It leaves things open to see what becomes of them, and looks for leaks itself.
    pytestmark = pytest.mark.trunkline_may_leak
