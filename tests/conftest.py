"""What every test here relies on, whatever it tests.

Knows the process's environment and how examples are generated. Does not know which event loop a
test runs on (the conformance suite decides that), nor any part of trunkline.

Warnings are errors (pyproject.toml), so an unclosed socket, an exception in a finalizer or one in
a thread fails the run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# The same examples on every run, and no deadline: a busy machine is not a fault in the code.
settings.register_profile("trunkline", deadline=None, derandomize=True, database=None)
settings.load_profile("trunkline")

_READ_BY_LIBRARIES = frozenset(
    {
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "SSLKEYLOGFILE",
    }
)


@pytest.fixture(scope="session", autouse=True)
def unconfigured_environment() -> Iterator[None]:
    """Proxies, certificates and TRUNKLINE_* settings of this machine reach no test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in tuple(os.environ):
            if name.upper() in _READ_BY_LIBRARIES or name.upper().startswith("TRUNKLINE_"):
                patch.delenv(name)
        yield
