"""OpenAI's responses: the request, the response, and the events of a stream.

The shapes are those of the API reference, `POST /v1/responses`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool

from trunkline.testing._llm.answer import sse
from trunkline.testing._llm.chat import TokenLimit
from trunkline.testing._llm.model import Prompt, Reply
from trunkline.testing._llm.tools import Choice, Tool


class _Part(BaseModel):
    text: str = ""


class _Item(BaseModel):
    """A message, a call, or the output of one."""

    type: str = "message"
    content: str | list[_Part] = ""
    output: str = ""

    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or self.output


class _Tool(BaseModel):
    type: str
    name: str = ""
    parameters: dict[str, Any] | None = None


class ResponsesRequest(BaseModel):
    """What is read of a request; other fields are OpenAI's too, and are let pass."""

    model: Annotated[str, Field(min_length=1)]
    input: str | Annotated[list[_Item], Field(min_length=1)]
    instructions: str | None = None
    stream: StrictBool = False
    max_output_tokens: TokenLimit = None
    tools: list[_Tool] = []
    tool_choice: str | dict[str, Any] = "auto"

    def prompt(self) -> Prompt:
        items = [_Item(content=self.input)] if isinstance(self.input, str) else self.input
        functions = [tool for tool in self.tools if tool.type == "function"]
        return Prompt(
            self.model,
            [self.instructions or "", *(item.text() for item in items)],
            self.max_output_tokens,
            [Tool(function.name, function.parameters or {}) for function in functions],
            self._choice(),
            items[-1].type == "function_call_output",
        )

    def _choice(self) -> Choice:
        if isinstance(self.tool_choice, str):
            return Choice(allowed=self.tool_choice != "none")
        return Choice(name=self.tool_choice.get("name"))

    def shape(self, number: int) -> ModelResponse:
        return ModelResponse(Reply.to(self.prompt(), number), self.stream)


class ModelResponse:
    """A reply as a response object."""

    id_header = "x-request-id"

    def __init__(self, reply: Reply, stream: bool) -> None:
        self.reply = reply
        self.stream = stream
        self.request_id = f"resp_{reply.number:012d}"
        self._created_at = int(time.time())
        self._numbers = itertools.count()

    def whole(self) -> dict[str, Any]:
        return self._response([self._item(self.reply.text)], "completed")

    def opening(self) -> bytes:
        started = self._response([], "in_progress")
        events = [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started),
            self._event("response.output_item.added", output_index=0, item=self._item("")),
        ]
        if self.reply.tool is None:
            part = self._text("")
            events.append(self._event("response.content_part.added", **self._place, part=part))
        return b"".join(events)

    def pieces(self) -> Iterator[bytes]:
        for token in self.reply.tokens:
            yield self._event(f"{self._kind}.delta", **self._place, **self._logprobs, delta=token)

    def closing(self) -> bytes:
        text, whole = self.reply.text, self._item(self.reply.text)
        if self.reply.tool:
            done = {"arguments": text, "name": self.reply.tool}
            events = [self._event(f"{self._kind}.done", **self._place, **done)]
        else:
            events = [
                self._event(f"{self._kind}.done", **self._place, **self._logprobs, text=text),
                self._event("response.content_part.done", **self._place, part=self._text(text)),
            ]
        events += [
            self._event("response.output_item.done", output_index=0, item=whole),
            self._event("response.completed", response=self._response([whole], "completed")),
        ]
        return b"".join(events)

    @property
    def _kind(self) -> str:
        return f"response.{'function_call_arguments' if self.reply.tool else 'output_text'}"

    @property
    def _place(self) -> dict[str, Any]:
        place = {"item_id": self._item_id, "output_index": 0}
        return place if self.reply.tool else {**place, "content_index": 0}

    @property
    def _logprobs(self) -> dict[str, Any]:
        return {} if self.reply.tool else {"logprobs": []}

    @property
    def _item_id(self) -> str:
        return f"{'fc' if self.reply.tool else 'msg'}_{self.reply.number:012d}"

    def _event(self, kind: str, **fields: Any) -> bytes:
        numbered = {"type": kind, "sequence_number": next(self._numbers), **fields}
        return sse(numbered, event=kind)

    def _text(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, text: str) -> dict[str, Any]:
        status = "completed" if text else "in_progress"
        head = {"id": self._item_id, "status": status}
        if self.reply.tool:
            call = {"call_id": f"call_{self.reply.number:012d}", "name": self.reply.tool}
            return {**head, "type": "function_call", **call, "arguments": text}
        content = [self._text(text)] if text else []
        return {**head, "type": "message", "role": "assistant", "content": content}

    def _response(self, output: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self.reply.model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": self._usage() if status == "completed" else None,
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.reply.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": len(self.reply.tokens),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.reply.total_tokens,
        }
