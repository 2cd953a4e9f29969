"""docs/backends.md: each of its blocks is run, and its backend is examined as a reader would.

Knows the blocks by the comment in their first line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import trunkline
from trunkline import TransportConfig
from trunkline.testing import LLMServer, TransportConformance

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
PYTHON = {code.split("\n", 1)[0]: code for kind, code in BLOCKS if kind == "python"}
A_PART = (
    "test_the_method_is_sent_as_given",
    "test_an_error_status_is_a_response",
    "test_max_connections_is_never_exceeded",
    "test_silence_inside_a_body_is_a_read_timeout",
    # Each row of the page's table of what keeps which promise.
    "test_when_an_address_does_not_answer_another_is_used",
    "test_a_certificate_that_is_not_good_is_a_certificate_error",
    "test_a_body_is_not_produced_faster_than_the_server_takes_it",
    "test_a_body_that_contradicts_its_declared_length_is_an_error",
    "test_the_body_is_closed_when_the_call_is_cancelled",
    "test_an_early_refusal_is_delivered_and_stops_the_upload",
    "test_a_server_that_never_reads_is_a_write_timeout",
    "test_interim_responses_are_passed_over",
    "test_a_head_that_is_not_http_is_a_protocol_error",
    "test_a_head_that_is_too_large_exceeds_a_limit",
    "test_raw_headers_are_the_bytes_of_the_wire",
    "test_a_broken_chunk_is_a_protocol_error",
    "test_a_chunk_extension_without_end_is_an_error",
    "test_a_body_that_is_cut_off_is_truncated",
    "test_bytes_glued_to_an_answer_never_become_the_next_answer",
    "test_bytes_on_an_idle_connection_never_become_the_next_answer",
    "test_a_request_that_announces_the_end_is_the_last",
    "test_cancelled_while_waiting_for_the_head",
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def load(name: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(
        compile(PYTHON[f"# {name}"], f"{PAGE.name} ({name})", "exec", dont_inherit=True), namespace
    )
    return namespace


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer makes of the page's project and module."""
    folder = tmp_path_factory.mktemp("site")
    (project,) = (tomllib.loads(code)["project"] for kind, code in BLOCKS if kind == "toml")
    info = folder / "my_package-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    for group, doors in project["entry-points"].items():
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in doors.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
    (folder / "my_package.py").write_text(PYTHON["# backend"])
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    yield
    sys.modules.pop("my_package", None)


def test_every_block_of_the_page_is_known() -> None:
    assert set(PYTHON) == {"# backend", "# use", "# test file"}
    assert len(BLOCKS) == len(PYTHON) + 1


@pytest.mark.usefixtures("installed")
@pytest.mark.anyio
async def test_the_backend_of_the_page_is_used_by_its_name() -> None:
    ask = load("use")["ask"]
    async with LLMServer() as server:
        assert "text" in await ask(f"{server.url}/echo")
        assert server.requests == 1


def test_the_test_file_of_the_page_is_the_suite() -> None:
    suite = load("test file")["TestStreams"]

    assert issubclass(suite, TransportConformance)
    assert suite.backend == "streams"


def test_the_command_of_the_page_examines_the_backend(site: Path) -> None:
    words = " or ".join(A_PART)
    command = (sys.executable, "-m", "trunkline.testing.conformance", "streams", "-k", words)
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"streams: {len(A_PART)} behaviours" in done.stdout


@pytest.mark.usefixtures("installed")
@pytest.mark.anyio
async def test_the_backend_of_the_page_serves_an_agent_over_tls() -> None:
    async with LLMServer(tls=True) as server:
        tls = trunkline.Tls(ca_file=Path(server.ca_file or ""))
        config = TransportConfig(backend="streams", tls=tls)
        async with trunkline.Client(config, base_url=server.base_url) as client:
            assert client.backend == "streams"
            for _ in range(20):
                body = {"model": "demo", "messages": [{"role": "user", "content": "Why?"}]}
                (await client.post("/chat/completions", json=body)).raise_for_status()
        assert (server.requests, server.connections) == (20, 1)


@pytest.mark.usefixtures("installed")
@pytest.mark.anyio
async def test_the_backend_of_the_page_keeps_the_pools_promises() -> None:
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
