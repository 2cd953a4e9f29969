"""The README: each of its blocks is run. Knows the blocks by the comment in their first line."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import pytest

import trunkline
from trunkline import _registry
from trunkline.testing import LLMServer, MockTransport, TransportConformance

_OURS = ("aiohttp", "httpx", "httpx2", "pyreqwest")
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
        "an `ssl.SSLContext`": "tls_context",
        "streams the rest": "duplex",
        "runs on Trunkline's pool": "pooled",
        "sends a request as it was given": "verbatim",
        "ends an exchange at once": "aborts",
    }
    text = README.read_text(encoding="utf-8")
    backends = [_registry.capabilities_of(name) for name in _OURS]
    assert "| | " + " | ".join(f"`{name}`" for name in _OURS) + " |\n" in text
    for label, capability in rows.items():
        said = re.search(
            rf"^\| {re.escape(label)}[^|]*" + r"\| (yes|no) " * len(_OURS) + r"\|$", text, re.M
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
