"""Anthropic's messages: the request, the message, and the events of a stream.

The shapes are those of the API reference, `POST /v1/messages` and `/v1/messages/count_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt

from trunkline.testing._llm.answer import HOLE, filled, sse
from trunkline.testing._llm.model import MAX_TOKENS, Prompt, Reply
from trunkline.testing._llm.tools import Choice, Tool


class _Block(BaseModel):
    type: str
    text: str = ""
    content: str | list[_Block] = ""

    def said(self) -> str:
        if isinstance(self.content, list):
            return " ".join(block.said() for block in self.content)
        return self.text or self.content


class _Message(BaseModel):
    role: str
    content: str | list[_Block]

    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(block.said() for block in self.content)
        return self.content

    @property
    def has_result(self) -> bool:
        blocks = self.content if isinstance(self.content, list) else []
        return any(block.type == "tool_result" for block in blocks)


class _Tool(BaseModel):
    name: str
    input_schema: dict[str, Any] = {}


class _ToolChoice(BaseModel):
    type: str = "auto"
    name: str | None = None


class CountRequest(BaseModel):
    """What is read of a request whose tokens are to be counted."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[_Message], Field(min_length=1)]
    system: str | list[_Block] = ""
    tools: list[_Tool] = []
    tool_choice: _ToolChoice = _ToolChoice()

    def prompt(self, limit: int | None = None) -> Prompt:
        system = _Message(role="system", content=self.system)
        return Prompt(
            self.model,
            [message.text() for message in (system, *self.messages)],
            limit,
            [Tool(tool.name, tool.input_schema) for tool in self.tools],
            Choice(self.tool_choice.type != "none", self.tool_choice.name),
            self.messages[-1].has_result,
        )


class MessagesRequest(CountRequest):
    """What is read of a request; other fields are Anthropic's too, and are let pass."""

    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)]
    stream: StrictBool = False

    def shape(self, number: int) -> ModelMessage:
        return ModelMessage(Reply.to(self.prompt(self.max_tokens), number), self.stream)


class ModelMessage:
    """A reply as a message."""

    id_header = "request-id"

    def __init__(self, reply: Reply, stream: bool) -> None:
        self.reply = reply
        self.stream = stream
        self.request_id = f"req_{reply.number:012d}"
        self._stop = "tool_use" if reply.tool else "end_turn"

    def whole(self) -> dict[str, Any]:
        return self._message([self._block(whole=True)], self._stop, len(self.reply.tokens))

    def opening(self) -> bytes:
        begun = self._message([], None, 1)
        return b"".join(
            (
                self._event("message_start", message=begun),
                self._event("content_block_start", index=0, content_block=self._block(whole=False)),
                self._event("ping"),
            )
        )

    def pieces(self) -> Iterator[bytes]:
        delta = {"type": "text_delta", "text": HOLE}
        if self.reply.tool:
            delta = {"type": "input_json_delta", "partial_json": HOLE}
        event = self._event("content_block_delta", index=0, delta=delta)
        return filled(event, iter(self.reply.tokens))

    def closing(self) -> bytes:
        stop = {"stop_reason": self._stop, "stop_sequence": None}
        usage = {"output_tokens": len(self.reply.tokens)}
        return b"".join(
            (
                self._event("content_block_stop", index=0),
                self._event("message_delta", delta=stop, usage=usage),
                self._event("message_stop"),
            )
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, **fields}, event=kind)

    def _block(self, *, whole: bool) -> dict[str, Any]:
        if self.reply.tool is None:
            return {"type": "text", "text": self.reply.text if whole else "", "citations": None}
        call = {"id": f"toolu_{self.reply.number:012d}", "name": self.reply.tool}
        return {"type": "tool_use", **call, "input": self.reply.arguments if whole else {}}

    def _message(
        self, content: list[dict[str, Any]], stop: str | None, output_tokens: int
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self.reply.number:012d}",
            "type": "message",
            "role": "assistant",
            "model": self.reply.model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": self.reply.prompt_tokens, "output_tokens": output_tokens},
        }
