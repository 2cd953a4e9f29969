"""The README: each of its blocks is run. Knows the blocks by the comment in their first line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import anyio
import pytest

import trunkline
from trunkline import TransportConfig, _registry
from trunkline.testing import LLMServer, MockTransport, TransportConformance

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
BY_NAME = {code.split("\n", 1)[0].removeprefix("# "): code for _, code in BLOCKS}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def run(name: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(BY_NAME[name], f"README.md ({name})", "exec", dont_inherit=True), namespace)
    return namespace


def test_every_python_block_has_a_test() -> None:
    python = {
        code.split("\n", 1)[0].removeprefix("# ") for kind, code in BLOCKS if kind == "python"
    }
    tested = set(re.findall(r'run\("([a-z ]+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert python == tested


def test_the_capability_table_is_what_the_backends_say() -> None:
    rows = {
        "asyncio and uvloop": "asyncio",
        "trio": "trio",
        "HTTP/2": "http2",
        "HTTP proxies": "proxy",
        "SOCKS5": "socks",
        "Unix sockets": "uds",
        "streams the rest": "duplex",
    }
    text = README.read_text(encoding="utf-8")
    backends = [_registry.capabilities_of(name) for name in ("aiohttp", "httpx")]
    for label, capability in rows.items():
        said = re.search(
            rf"^\| {re.escape(label)}.*\| (yes|no) \| (yes|no) \|$", text, re.MULTILINE
        )
        assert said is not None, label
        able = ["yes" if getattr(backend, capability) else "no" for backend in backends]
        assert list(said.groups()) == able, label


def test_the_fastapi_example_answers() -> None:
    testing: Any = import_module("fastapi.testclient")
    app = run("fastapi")["app"]
    with LLMServer() as server:
        app.state.llm_url = server.base_url
        with testing.TestClient(app) as client:
            answers = [client.post("/ask", params={"question": "Why?"}) for _ in range(3)]
        assert all(answer.status_code == 200 and answer.json() for answer in answers)
        assert server.connections == 1


@pytest.mark.anyio
async def test_the_streaming_example_yields_tokens() -> None:
    stream_answer = run("streaming")["stream_answer"]
    async with LLMServer() as server, trunkline.Client(base_url=server.base_url) as client:
        tokens = [token async for token in stream_answer(client, "Why?")]
    assert len("".join(tokens).split()) > 3


@pytest.mark.anyio
async def test_the_error_example_tries_again_only_when_it_is_safe() -> None:
    ask = run("errors")["ask_again_when_safe"]
    tries = 0

    def refuse_once(request: trunkline.Request) -> trunkline.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise trunkline.ConnectError("refused")
        error = trunkline.RemoteDisconnected("gone")
        error.replay = "if_idempotent"
        raise error

    client = trunkline.Client(transport=MockTransport(refuse_once), base_url="http://api.test")
    with pytest.raises(trunkline.RemoteDisconnected):
        await ask(client, {})
    assert tries == 2


def test_the_choice_by_code_works() -> None:
    client = run("by code")["client"]
    assert client.backend == "httpx"


def test_the_choice_by_file_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toml,) = (code for name, code in BY_NAME.items() if name.startswith("trunkline.toml"))
    (tmp_path / "trunkline.toml").write_text(toml, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUNKLINE_LIMITS__MAX_CONNECTIONS", "20")
    assert run("by file")["client"].backend == "httpx"
    assert trunkline.load_config("trunkline.toml").limits.max_connections == 20


def test_the_mock_example_passes() -> None:
    anyio.run(run("mock")["test_asks_the_model"])


def test_the_conformance_example_is_the_suite() -> None:
    assert issubclass(run("conformance")["TestStreams"], TransportConformance)


STREAMS = run("backend")["StreamsTransport"]


class _Entry(EntryPoint):
    def load(self) -> Any:
        return STREAMS


@pytest.fixture
def streams_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _Entry(name="streams", value="my_package:StreamsTransport", group="trunkline.backends")

    def find(name: str) -> EntryPoint:
        return entry

    monkeypatch.setattr(_registry, "_find", find)


@pytest.mark.usefixtures("streams_installed")
@pytest.mark.anyio
async def test_the_backend_of_the_readme_serves_an_agent_over_tls() -> None:
    async with LLMServer(tls=True) as server:
        tls = trunkline.Tls(ca_file=Path(server.ca_file or ""))
        config = TransportConfig(backend="streams", tls=tls)
        async with trunkline.Client(config, base_url=server.base_url) as client:
            assert client.backend == "streams"
            for _ in range(20):
                body = {"model": "demo", "messages": [{"role": "user", "content": "Why?"}]}
                (await client.post("/chat/completions", json=body)).raise_for_status()
        assert (server.requests, server.connections) == (20, 1)


@pytest.mark.usefixtures("streams_installed")
@pytest.mark.anyio
async def test_the_backend_of_the_readme_keeps_the_pools_promises() -> None:
    limits = trunkline.Limits(max_connections=2)
    async with LLMServer() as server:
        config = TransportConfig(backend="streams", limits=limits)
        async with trunkline.Client(config, base_url=server.url) as client:

            async def upload() -> None:
                async def body() -> AsyncIterator[bytes]:
                    yield b"one "
                    yield b"two"

                response = await client.post("/echo", content=body())
                assert response.json()["text"] == "one two"

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(upload)
            async with client.stream("GET", "/echo"):
                pass
            assert server.connections == 2
            assert client.snapshot().active == 0
        with pytest.raises(trunkline.TransportClosed):
            await client.get("/echo")
    async with trunkline.Client(config) as client:
        with pytest.raises(trunkline.ConnectError) as caught:
            await client.get(server.url)
    assert (caught.value.backend, caught.value.replay) == ("streams", "safe")
