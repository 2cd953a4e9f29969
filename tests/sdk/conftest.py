"""What the tests of real SDKs share: both backends, the SDKs, and a server.

Knows which noise these libraries make by themselves. Does not know what they are asked.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.sdk._sdks import SDKS, Sdk

from trunkline import TransportConfig
from trunkline.testing import LLMServer

# litellm would fetch its list of prices from the network when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# What these libraries warn of by themselves, of no fault of ours: message, class, module.
NOISE = (
    # litellm's own types, when pydantic first reads them.
    r"ignore:Items? .+ on TypedDict class .+ using the `ReadOnly` qualifier:UserWarning:pydantic",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for noise in NOISE:
                item.add_marker(pytest.mark.filterwarnings(noise))


Opened: TypeAlias = tuple[Any, Any]
"""The SDK's client, and the HTTP client under it."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["aiohttp", "httpx"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(backend: str) -> TransportConfig:
    return TransportConfig(backend=backend)


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    made, family = SDKS[request.param]
    return made(family)


@pytest.fixture(scope="session")
def running_server() -> Iterator[LLMServer]:
    with LLMServer() as running:
        yield running


@pytest.fixture
def server(running_server: LLMServer) -> LLMServer:
    """A server whose counts are zero, and which no earlier test has connections to."""
    running_server.reset()
    return running_server


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """The garbage collector looks at what the test makes, not at all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
async def opened(sdk: Sdk, config: TransportConfig) -> AsyncIterator[Callable[..., Opened]]:
    """Opens the SDK's async client on ours; both are closed in the end."""
    async with AsyncExitStack() as stack:

        def open_on(url: str, *, http: dict[str, Any] | None = None, **options: Any) -> Opened:
            http_client = sdk.adapter.AsyncClient(config, **(http or {}))
            stack.push_async_callback(http_client.aclose)
            return sdk.open(url, http_client, **options), http_client

        yield open_on


@pytest.fixture
def opened_sync(sdk: Sdk, config: TransportConfig) -> Iterator[Callable[..., Opened]]:
    """Opens the SDK's sync client on ours; both are closed in the end."""
    with ExitStack() as stack:

        def open_on(url: str, *, http: dict[str, Any] | None = None, **options: Any) -> Opened:
            http_client = sdk.adapter.Client(config, **(http or {}))
            stack.callback(http_client.close)
            return sdk.open_sync(url, http_client, **options), http_client

        yield open_on
