"""The official SDKs, in one form, so that a test is written once for all of them.

This module knows how each is opened on a base URL with an HTTP client, asked, streamed from and
closed, and what its errors are called. It does not know what the HTTP client sends through.
"""

from __future__ import annotations

import json
import socket
from base64 import b64decode
from collections.abc import AsyncGenerator, Generator
from contextlib import closing, contextmanager
from importlib import import_module
from io import BytesIO
from typing import Any, ClassVar, Protocol

import pytest

import trunkline
from trunkline.testing._llm.anthropic import MessagesRequest
from trunkline.testing._llm.chat import ChatRequest
from trunkline.testing._llm.google import GenerateRequest

GROUP = "pip install --group sdk"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def need(module: str) -> Any:
    """The module, or a skip that says how to get it."""
    reason = f"{module} is not installed: {GROUP}"
    return pytest.importorskip(module, reason=reason, exc_type=ImportError)


def original(error: BaseException) -> trunkline.TransportError:
    """Trunkline's error at the root of an SDK's."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, trunkline.TransportError):
        cause = cause.__cause__
    assert cause is not None, f"{error!r} was not caused by an error of Trunkline's"
    return cause


class Sdk(Protocol):
    """One SDK on one family of HTTP clients.

    Attributes:
        library: the module `httpx` or `httpx2`.
        adapter: the module of Trunkline's for it.
        connection_error: what the SDK raises when a connection is lost.
        timeout_error: what it raises when time is up.
        closes_streams: closing its stream closes the response.
        limit_error: what it raises for a 429 in the end.
    """

    library: Any
    adapter: Any
    connection_error: type[Exception]
    timeout_error: type[Exception]
    limit_error: type[Exception]
    closes_streams: bool

    def open(self, url: str, http_client: Any, **options: Any) -> Any:
        """An async client. Options: `retries`, and `timeout` in seconds."""
        ...

    def open_sync(self, url: str, http_client: Any, **options: Any) -> Any: ...

    async def ask(self, client: Any, text: str, tokens: int = 4) -> str: ...

    def ask_sync(self, client: Any, text: str, tokens: int = 4) -> str: ...

    def stream(self, client: Any, text: str, tokens: int = 4) -> AsyncGenerator[str]: ...

    def stream_sync(self, client: Any, text: str, tokens: int = 4) -> Generator[str]: ...

    async def call_tool(self, client: Any, text: str) -> tuple[str, Any]:
        """The tool that the model calls, and its arguments."""
        ...

    async def stream_tool(self, client: Any, text: str) -> tuple[str, Any]: ...

    async def upload(self, client: Any, content: bytes) -> str:
        """The SHA-256 of what the server got, in hex."""
        ...

    def answer(self) -> bytes:
        """A whole answer to `ask`, as JSON."""
        ...


class _OnFamily:
    closes_streams = True

    def __init__(self, family: str) -> None:
        self.library = need(family)
        self.adapter: Any = import_module(f"trunkline.adapters.{family}")


# -- OpenAI ----------------------------------------------------------------------------------------


class OpenAI(_OnFamily):
    def __init__(self, family: str) -> None:
        super().__init__(family)
        self.module = need("openai")
        self.connection_error = self.module.APIConnectionError
        self.timeout_error = self.module.APITimeoutError
        self.limit_error = self.module.RateLimitError

    def open(self, url: str, http_client: Any, **options: Any) -> Any:
        return self.module.AsyncOpenAI(**self._arguments(url, http_client, options))

    def open_sync(self, url: str, http_client: Any, **options: Any) -> Any:
        return self.module.OpenAI(**self._arguments(url, http_client, options))

    def _arguments(self, url: str, http_client: Any, options: dict[str, Any]) -> dict[str, Any]:
        retries = options.pop("retries", 0)
        base = {"base_url": f"{url}/v1", "api_key": "key", "http_client": http_client}
        return {**base, "max_retries": retries, **options}

    async def ask(self, client: Any, text: str, tokens: int = 4) -> str:
        done = await client.chat.completions.create(**_chat(text, max_tokens=tokens))
        return str(done.choices[0].message.content)

    def ask_sync(self, client: Any, text: str, tokens: int = 4) -> str:
        done = client.chat.completions.create(**_chat(text, max_tokens=tokens))
        return str(done.choices[0].message.content)

    async def stream(self, client: Any, text: str, tokens: int = 4) -> AsyncGenerator[str]:
        body = _chat(text, max_tokens=tokens, stream=True)
        async with await client.chat.completions.create(**body) as chunks:
            async for chunk in chunks:
                if piece := chunk.choices[0].delta.content:
                    yield piece

    def stream_sync(self, client: Any, text: str, tokens: int = 4) -> Generator[str]:
        body = _chat(text, max_tokens=tokens, stream=True)
        with client.chat.completions.create(**body) as chunks:
            for chunk in chunks:
                if piece := chunk.choices[0].delta.content:
                    yield piece

    async def call_tool(self, client: Any, text: str) -> tuple[str, Any]:
        done = await client.chat.completions.create(**_chat(text, tools=[self._tool]))
        (call,) = done.choices[0].message.tool_calls
        return call.function.name, json.loads(call.function.arguments)

    async def stream_tool(self, client: Any, text: str) -> tuple[str, Any]:
        async with client.chat.completions.stream(**_chat(text, tools=[self._tool])) as stream:
            done = await stream.get_final_completion()
        (call,) = done.choices[0].message.tool_calls
        return call.function.name, json.loads(call.function.arguments)

    _tool: ClassVar[dict[str, Any]] = {
        "type": "function",
        "function": {"name": "weather", "parameters": SCHEMA, "strict": True},
    }

    async def upload(self, client: Any, content: bytes) -> str:
        file = ("notes.bin", content)
        return str((await client.files.create(file=file, purpose="user_data")).sha256)

    def answer(self) -> bytes:
        return _json(ChatRequest.model_validate(_chat("hi")).shape(1).whole())


def _chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


# -- Anthropic -------------------------------------------------------------------------------------


class Anthropic(_OnFamily):
    def __init__(self, family: str) -> None:
        super().__init__(family)
        self.module = need("anthropic")
        self.connection_error = self.module.APIConnectionError
        self.timeout_error = self.module.APITimeoutError
        self.limit_error = self.module.RateLimitError

    def open(self, url: str, http_client: Any, **options: Any) -> Any:
        return self.module.AsyncAnthropic(**self._arguments(url, http_client, options))

    def open_sync(self, url: str, http_client: Any, **options: Any) -> Any:
        return self.module.Anthropic(**self._arguments(url, http_client, options))

    def _arguments(self, url: str, http_client: Any, options: dict[str, Any]) -> dict[str, Any]:
        retries = options.pop("retries", 0)
        base = {"base_url": url, "api_key": "key", "http_client": http_client}
        return {**base, "max_retries": retries, **options}

    async def ask(self, client: Any, text: str, tokens: int = 4) -> str:
        done = await client.messages.create(**_chat(text, max_tokens=tokens))
        return str(done.content[0].text)

    def ask_sync(self, client: Any, text: str, tokens: int = 4) -> str:
        done = client.messages.create(**_chat(text, max_tokens=tokens))
        return str(done.content[0].text)

    async def stream(self, client: Any, text: str, tokens: int = 4) -> AsyncGenerator[str]:
        async with client.messages.stream(**_chat(text, max_tokens=tokens)) as stream:
            async for piece in stream.text_stream:
                yield piece

    def stream_sync(self, client: Any, text: str, tokens: int = 4) -> Generator[str]:
        with client.messages.stream(**_chat(text, max_tokens=tokens)) as stream:
            yield from stream.text_stream

    async def call_tool(self, client: Any, text: str) -> tuple[str, Any]:
        done = await client.messages.create(**_chat(text, max_tokens=4, tools=[self._tool]))
        return done.content[0].name, done.content[0].input

    async def stream_tool(self, client: Any, text: str) -> tuple[str, Any]:
        body = _chat(text, max_tokens=4, tools=[self._tool])
        async with client.messages.stream(**body) as stream:
            done = await stream.get_final_message()
        return done.content[0].name, done.content[0].input

    _tool: ClassVar[dict[str, Any]] = {"name": "weather", "input_schema": SCHEMA}

    async def upload(self, client: Any, content: bytes) -> str:
        file = ("notes.bin", content, "application/octet-stream")
        return str((await client.beta.files.upload(file=file)).sha256)

    def answer(self) -> bytes:
        return _json(MessagesRequest.model_validate(_chat("hi", max_tokens=4)).shape(1).whole())


# -- Google ----------------------------------------------------------------------------------------


class Google(_OnFamily):
    """It raises the HTTP library's own errors, and leaves streams to the garbage collector."""

    closes_streams = False

    def __init__(self, family: str) -> None:
        super().__init__(family)
        self.module = need("google.genai")
        self.connection_error = self.library.TransportError
        self.timeout_error = self.library.TimeoutException
        self.limit_error = self.module.errors.ClientError

    def open(self, url: str, http_client: Any, **options: Any) -> Any:
        return self._client(url, options, http_client, self._unused(self.library.Client)).aio

    def open_sync(self, url: str, http_client: Any, **options: Any) -> Any:
        return self._client(url, options, self._unused(self.library.AsyncClient), http_client)

    def _unused(self, kind: Any) -> Any:
        """Without it the SDK makes a client of its own, with a TLS context, each time."""
        return kind(transport=self.library.MockTransport(print))

    def _client(
        self, url: str, options: dict[str, Any], async_client: Any, sync_client: Any
    ) -> Any:
        types = self.module.types
        retry = types.HttpRetryOptions(
            attempts=options.pop("retries", 0) + 1, initial_delay=0.01, jitter=0
        )
        timeout = options.pop("timeout", None)
        http_options = types.HttpOptions(
            base_url=url,
            retry_options=retry,
            timeout=None if timeout is None else int(timeout * 1000),
            httpx_async_client=async_client,
            httpx_client=sync_client,
        )
        return self.module.Client(api_key="key", http_options=http_options, **options)

    async def ask(self, client: Any, text: str, tokens: int = 4) -> str:
        done = await client.models.generate_content(**_contents(text, max_output_tokens=tokens))
        return str(done.text)

    def ask_sync(self, client: Any, text: str, tokens: int = 4) -> str:
        done = client.models.generate_content(**_contents(text, max_output_tokens=tokens))
        return str(done.text)

    async def stream(self, client: Any, text: str, tokens: int = 4) -> AsyncGenerator[str]:
        body = _contents(text, max_output_tokens=tokens)
        chunks = await client.models.generate_content_stream(**body)
        try:
            async for chunk in chunks:
                if chunk.text:
                    yield chunk.text
        finally:
            await chunks.aclose()

    def stream_sync(self, client: Any, text: str, tokens: int = 4) -> Generator[str]:
        body = _contents(text, max_output_tokens=tokens)
        with closing(client.models.generate_content_stream(**body)) as chunks:
            for chunk in chunks:
                if chunk.text:
                    yield chunk.text

    async def call_tool(self, client: Any, text: str) -> tuple[str, Any]:
        done = await client.models.generate_content(**_contents(text, tools=[self._tool]))
        return done.function_calls[0].name, done.function_calls[0].args

    async def stream_tool(self, client: Any, text: str) -> tuple[str, Any]:
        body = _contents(text, tools=[self._tool])
        chunks = [chunk async for chunk in await client.models.generate_content_stream(**body)]
        (call,) = [call for chunk in chunks for call in chunk.function_calls or ()]
        return call.name, call.args

    _tool: ClassVar[dict[str, Any]] = {
        "function_declarations": [{"name": "weather", "parameters_json_schema": SCHEMA}]
    }

    async def upload(self, client: Any, content: bytes) -> str:
        config = {"mime_type": "application/octet-stream"}
        file = await client.files.upload(file=BytesIO(content), config=config)
        return b64decode(file.sha256_hash).decode()

    def answer(self) -> bytes:
        body = {"contents": [{"parts": [{"text": "hi"}]}]}
        shape = GenerateRequest.model_validate(body).shape("m", 1, stream=False)
        return _json(shape.whole())


def _contents(text: str, **config: Any) -> dict[str, Any]:
    return {"model": "m", "contents": text, "config": config}


SDKS: dict[str, tuple[type[OpenAI] | type[Anthropic] | type[Google], str]] = {
    "openai-httpx2": (OpenAI, "httpx2"),
    "openai-httpx": (OpenAI, "httpx"),
    "anthropic-httpx2": (Anthropic, "httpx2"),
    "google-httpx2": (Google, "httpx2"),
    "google-httpx": (Google, "httpx"),
}


@contextmanager
def refused_port() -> Generator[int]:
    """A port of 127.0.0.1 on which nobody listens, and which nobody else gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
