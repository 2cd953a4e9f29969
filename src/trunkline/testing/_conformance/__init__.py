"""The conformance suite: the promises of `trunkline.Transport` as tests that any backend can run.

A backend's whole test file, with pytest and anyio's plugin (which comes with anyio)::

    from trunkline.testing import TransportConformance

    class TestMine(TransportConformance):
        backend = "mine"  # the name of an entry point in the group `trunkline.backends`

Each test states one behaviour and runs on every event loop that the backend's `Capabilities` name;
what needs a capability the backend has not is skipped. The servers are real, on loopback.

This package knows the contract and the wire. It does not know any backend.
"""

import pkgutil

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
)

from trunkline.testing._conformance._suite import (  # noqa: E402  # has to come after the line above
    TransportConformance as TransportConformance,
)
