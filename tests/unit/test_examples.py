"""The examples and the guides run, and print what they say.

Knows where they are, and servers on real sockets. Does not know what is in them: a new block of a
guide is run as soon as it is written.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config

import trunkline
from trunkline.testing import LLMServer

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
GUIDES = (ROOT / "docs" / "sizing.md", ROOT / "docs" / "observing.md")

# A block of Python, and what it prints if the guide shows that.
_BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Generator[LLMServer]:
    with LLMServer() as running:
        yield running


# -- the guides ------------------------------------------------------------------------------------


async def run_as_typed(source: str, names: dict[str, Any], origin: str) -> str:
    """What a block prints, when it is run as in `python -m asyncio`: `await` may be anywhere."""
    code = compile(source, origin, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = StringIO()
    with redirect_stdout(printed):
        ended = eval(code, names)
        if inspect.isawaitable(ended):
            await ended
    return printed.getvalue()


@pytest.mark.parametrize(
    "blocks",
    [_BLOCK.findall(guide.read_text()) for guide in GUIDES],
    ids=[guide.name for guide in GUIDES],
)
async def test_every_block_of_a_guide_runs_and_prints_what_it_shows(
    blocks: list[tuple[str, str]],
) -> None:
    assert blocks
    names: dict[str, Any] = {}
    try:
        for number, (source, shown) in enumerate(blocks, 1):
            printed = await run_as_typed(source, names, f"block {number}")
            assert printed == shown, f"block {number}"
    finally:
        await put_away(names)


async def put_away(names: dict[str, Any]) -> None:
    """Close what a guide left open, as the end of the program would."""
    for value in names.values():
        if isinstance(value, trunkline.Client):
            await value.aclose()
    for value in names.values():
        if isinstance(value, LLMServer):
            value.stop()


# -- the FastAPI application -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fastapi_health() -> ModuleType:
    path = ROOT / "examples" / "fastapi_health.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[trunkline.Client]:
    """A client of `app`, which is on a real socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = config.errorlog = None
    over = asyncio.Event()
    running = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))
    try:
        async with trunkline.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        over.set()
        await running


async def test_the_application_asks_the_model(
    fastapi_health: ModuleType, server: LLMServer
) -> None:
    async with served(fastapi_health.create_app(server.base_url)) as client:
        for question in ("one two", "three four"):
            response = await client.post("/ask", json={"question": question})
            assert question in response.json()["answer"]
        health = await client.get("/health/pool")

    assert health.status_code == 200
    pool = health.json()
    assert (pool["created"], pool["reused"], pool["idle"]) == (1, 1, 1)
    assert list(pool["origins"]) == [server.url]


async def test_the_health_check_fails_while_the_pool_is_full(
    fastapi_health: ModuleType, server: LLMServer
) -> None:
    limits = trunkline.Limits(max_connections=1)
    config = trunkline.TransportConfig(
        limits=limits, timeouts=trunkline.Timeouts(pool=0.02), warn_utilization=None
    )
    app = fastapi_health.create_app(server.base_url, config)
    async with served(app) as client:
        assert (await client.get("/health/pool")).status_code == 200
        async with app.state.llm.stream("GET", "/models"):
            full = await client.get("/health/pool")
            refused = await client.post("/ask", json={"question": "one"})
        assert (full.status_code, full.json()["utilization"]) == (503, 1.0)
        assert refused.status_code == 503
        assert (await client.get("/health/pool")).status_code == 200


async def test_a_model_that_does_not_answer_is_a_bad_gateway(
    fastapi_health: ModuleType, server: LLMServer
) -> None:
    async with served(fastapi_health.create_app(f"{server.url}/nowhere")) as client:
        response = await client.post("/ask", json={"question": "one"})

    assert response.status_code == 502
    assert "404" in response.json()["detail"]
