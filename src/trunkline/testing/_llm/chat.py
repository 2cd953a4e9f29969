"""OpenAI's chat completions: the request, the completion, and the chunks of a stream.

The shapes are those of the API reference, `POST /v1/chat/completions`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Field, StrictBool, StrictInt

from trunkline.testing._llm.answer import HOLE, filled, sse
from trunkline.testing._llm.model import MAX_TOKENS, Prompt, Reply
from trunkline.testing._llm.tools import Choice, Tool

TokenLimit: TypeAlias = Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None


class _Part(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    role: str
    content: str | list[_Part] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


class _Function(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class _Tool(BaseModel):
    function: _Function


class _StreamOptions(BaseModel):
    include_usage: StrictBool = False


class ChatRequest(BaseModel):
    """What is read of a request; other fields are OpenAI's too, and are let pass."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: StrictBool = False
    stream_options: _StreamOptions | None = None
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] = "auto"

    def prompt(self) -> Prompt:
        functions = [tool.function for tool in self.tools or ()]
        return Prompt(
            self.model,
            [message.text() for message in self.messages],
            self.max_completion_tokens or self.max_tokens,
            [Tool(function.name, function.parameters) for function in functions],
            self._choice(),
            self.messages[-1].role == "tool",
        )

    def _choice(self) -> Choice:
        if isinstance(self.tool_choice, str):
            return Choice(allowed=self.tool_choice != "none")
        return Choice(name=self.tool_choice.get("function", {}).get("name"))

    def shape(self, number: int) -> Completion:
        asked = self.stream_options is not None and self.stream_options.include_usage
        return Completion(Reply.to(self.prompt(), number), self.stream, include_usage=asked)


class Completion:
    """A reply as a chat completion."""

    id_header = "x-request-id"

    def __init__(self, reply: Reply, stream: bool, *, include_usage: bool) -> None:
        self.reply = reply
        self.stream = stream
        self.request_id = f"chatcmpl-{reply.number:012d}"
        self._include_usage = include_usage
        self._finish = "tool_calls" if reply.tool else "stop"
        self._head = {
            "id": self.request_id,
            "object": "chat.completion.chunk" if stream else "chat.completion",
            "created": int(time.time()),
            "model": reply.model,
        }

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        if self.reply.tool:
            message["tool_calls"] = [self._call(self.reply.text)]
        else:
            message["content"] = self.reply.text
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {**self._head, "choices": [choice], "usage": self._usage()}

    def opening(self) -> bytes:
        if self.reply.tool is None:
            return self._chunk({"role": "assistant", "content": ""})
        call = {"index": 0, **self._call("")}
        return self._chunk({"role": "assistant", "content": None, "tool_calls": [call]})

    def pieces(self) -> Iterator[bytes]:
        delta: dict[str, Any] = {"content": HOLE}
        if self.reply.tool:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": HOLE}}]}
        return filled(self._chunk(delta), iter(self.reply.tokens))

    def closing(self) -> bytes:
        usage = b""
        if self._include_usage:
            usage = sse({**self._head, "choices": [], "usage": self._usage()})
        return self._chunk({}, self._finish) + usage + b"data: [DONE]\n\n"

    def _call(self, arguments: str) -> dict[str, Any]:
        function = {"name": self.reply.tool, "arguments": arguments}
        return {"id": f"call_{self.reply.number:012d}", "type": "function", "function": function}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.reply.prompt_tokens,
            "completion_tokens": len(self.reply.tokens),
            "total_tokens": self.reply.total_tokens,
        }

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self._include_usage else {}
        return sse({**self._head, "choices": [choice], **usage})
