"""Frameworks on Trunkline: LiteLLM, LangChain, Pydantic AI, and the MCP client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import anyio
import pytest
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from tests.sdk._sdks import need, original, refused_port

import trunkline
from trunkline import TransportConfig
from trunkline.testing import LLMServer

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "one two"}]


@pytest.fixture(params=["httpx2", "httpx"])
def family(request: pytest.FixtureRequest) -> Any:
    """The adapter for one of the two libraries."""
    need(request.param)
    return import_module(f"trunkline.adapters.{request.param}")


# -- LiteLLM ---------------------------------------------------------------------------------------


@pytest.fixture
async def litellm(config: TransportConfig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The module, with Trunkline under its OpenAI calls."""
    module = need("litellm")
    adapter = import_module("trunkline.adapters.httpx")
    async with adapter.AsyncClient(config) as http:
        monkeypatch.setattr(module, "aclient_session", http)
        monkeypatch.setattr(module, "suppress_debug_info", True)
        yield module


def on(server: LLMServer) -> dict[str, Any]:
    asked = {"model": "openai/m", "messages": MESSAGES, "max_tokens": 4, "max_retries": 0}
    return {**asked, "api_base": server.base_url, "api_key": "key"}


async def test_litellm_shares_the_pool(litellm: Any, server: LLMServer) -> None:
    for _ in range(5):
        done = await litellm.acompletion(**on(server))
        assert done.choices[0].message.content == "one two one two"
    assert (server.requests, server.connections) == (5, 1)
    pool = litellm.aclient_session.transport.snapshot()
    assert (pool.created, pool.reused) == (1, 4)


async def test_litellm_streams_and_calls_tools(litellm: Any, server: LLMServer) -> None:
    stream = await litellm.acompletion(**on(server), stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "one two one two"

    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    done = await litellm.acompletion(**on(server), tools=[tool])
    (call,) = done.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "one two"}')


async def test_litellms_errors_have_ours_at_their_root(litellm: Any, server: LLMServer) -> None:
    server.rate_limit(1)
    with pytest.raises(litellm.RateLimitError):
        await litellm.acompletion(**on(server))
    assert server.requests == 1
    with refused_port() as port, pytest.raises(litellm.InternalServerError) as caught:
        await litellm.acompletion(**{**on(server), "api_base": f"http://127.0.0.1:{port}/v1"})
    assert root(caught.value).replay == "safe"


def root(error: BaseException) -> trunkline.TransportError:
    """As `original`, where an error was raised while another was handled."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, trunkline.TransportError):
        cause = cause.__cause__ or cause.__context__
    assert cause is not None
    return cause


async def test_litellm_asks_anthropic_through_a_transport(
    config: TransportConfig, server: LLMServer
) -> None:
    module = need("litellm")
    handlers = need("litellm.llms.custom_httpx.http_handler")
    transport = import_module("trunkline.adapters.httpx").AsyncTransport(config)
    handler = handlers.AsyncHTTPHandler(transport=transport)
    asked = {"model": "anthropic/claude-3-5-sonnet-20240620", "messages": MESSAGES, "max_tokens": 4}
    for _ in range(3):
        done = await module.acompletion(**asked, api_base=server.url, api_key="key", client=handler)
        assert done.choices[0].message.content == "one two one two"
    await handler.close()
    assert server.calls[-1].target == "/v1/messages"
    assert (server.requests, server.connections) == (3, 1)


# -- LangChain -------------------------------------------------------------------------------------


async def test_langchain_asks_streams_and_calls_tools(
    config: TransportConfig, family: Any, server: LLMServer
) -> None:
    langchain = need("langchain_openai")
    core = need("langchain_core.tools")

    def weather(city: str) -> str:
        """The weather in a city."""
        return city

    async with family.AsyncClient(config) as http:
        with family.Client(config) as sync_http:
            clients = {"http_async_client": http, "http_client": sync_http}
            base = {"base_url": server.base_url, "api_key": "key", "max_retries": 0}
            model = langchain.ChatOpenAI(model="m", max_tokens=4, **base, **clients)
            assert (await model.ainvoke("one two")).content == "one two one two"
            assert model.invoke("one two").content == "one two one two"
            pieces = [str(chunk.content) async for chunk in model.astream("one two")]
            assert "".join(pieces) == "one two one two"
            called = await model.bind_tools([core.tool(weather)]).ainvoke("in Rome")
            assert called.tool_calls[0]["args"] == {"city": "in Rome"}
            embedding = langchain.OpenAIEmbeddings(
                model="m", check_embedding_ctx_length=False, **base, **clients
            )
            assert len(await embedding.aembed_query("one")) == 8
            assert http.transport.snapshot().active == 0
    assert server.requests == 5


async def test_a_langchain_error_has_ours_at_its_root(config: TransportConfig, family: Any) -> None:
    langchain, openai = need("langchain_openai"), need("openai")
    async with family.AsyncClient(config) as http:
        with refused_port() as port, family.Client(config) as sync_http:
            base = {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "key", "max_retries": 0}
            model = langchain.ChatOpenAI(
                model="m", http_async_client=http, http_client=sync_http, **base
            )
            with pytest.raises(openai.APIConnectionError) as caught:
                await model.ainvoke("one")
    assert original(caught.value).replay == "safe"


# -- Pydantic AI -----------------------------------------------------------------------------------


async def test_an_agent_of_pydantic_ai_calls_a_tool_and_answers(
    config: TransportConfig, family: Any, server: LLMServer
) -> None:
    ai = need("pydantic_ai")
    models, providers = need("pydantic_ai.models.openai"), need("pydantic_ai.providers.openai")
    called: list[str] = []

    def weather(city: str) -> str:
        called.append(city)
        return "sunny today"

    async with family.AsyncClient(config) as http:
        provider = providers.OpenAIProvider(
            base_url=server.base_url, api_key="key", http_client=http
        )
        model = models.OpenAIChatModel("m", provider=provider)
        agent = ai.Agent(model, tools=[weather], model_settings={"max_tokens": 4})
        assert (await agent.run("in Rome")).output == "sunny today sunny today"
        async with agent.run_stream("in Oslo") as streamed:
            assert await streamed.get_output() == "sunny today sunny today"
        assert http.transport.snapshot().active == 0
    assert called == ["in Rome", "in Oslo"]
    assert server.requests == 4


# -- MCP -------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    """The origin at which `app` is on a real socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = config.errorlog = None
    over = asyncio.Event()
    running = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        over.set()
        await running


async def test_an_mcp_client_lists_and_calls_tools(config: TransportConfig) -> None:
    mcp, http2 = need("mcp"), import_module("trunkline.adapters.httpx2")
    streamable, servers = need("mcp.client.streamable_http"), need("mcp.server.mcpserver")
    tools = servers.MCPServer("weather")

    def weather(city: str) -> str:
        return f"sunny in {city}"

    tools.tool()(weather)
    with anyio.fail_after(20):
        async with served(tools.streamable_http_app()) as url, http2.AsyncClient(config) as http:
            transport = streamable.streamable_http_client(f"{url}/mcp", http_client=http)
            async with mcp.Client(transport) as client:
                listed = await client.list_tools()
                assert [tool.name for tool in listed.tools] == ["weather"]
                called = await client.call_tool("weather", {"city": "Rome"})
                assert called.content[0].text == "sunny in Rome"
            pool = http.transport.snapshot()
            assert pool.active == 0
            assert pool.reused > 0
