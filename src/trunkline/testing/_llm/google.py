"""Google's generateContent: the request, the response, and the events of a stream.

The shapes are those of the API reference, `models.generateContent` and
`models.streamGenerateContent`. Keys are read in camelCase and in snake_case: the SDK writes both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt
from pydantic.alias_generators import to_camel

from trunkline.testing._llm.answer import HOLE, filled, sse
from trunkline.testing._llm.model import MAX_TOKENS, Prompt, Reply
from trunkline.testing._llm.tools import Choice, Tool


class _Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class _Part(_Camel):
    text: str = ""
    function_response: dict[str, Any] | None = None

    def said(self) -> str:
        if self.function_response is None:
            return self.text
        return json.dumps(self.function_response.get("response"))


class _Content(_Camel):
    parts: list[_Part]
    role: str = "user"

    def text(self) -> str:
        return " ".join(part.said() for part in self.parts)


class _Function(_Camel):
    name: str
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None


class _Tools(_Camel):
    function_declarations: list[_Function] = []


class _Calling(_Camel):
    mode: str = "AUTO"
    allowed_function_names: list[str] = []


class _ToolConfig(_Camel):
    function_calling_config: _Calling = _Calling()


class _Generation(_Camel):
    max_output_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None


class GenerateRequest(_Camel):
    """What is read of a request; other fields are Google's too, and are let pass."""

    contents: Annotated[list[_Content], Field(min_length=1)]
    system_instruction: _Content | None = None
    generation_config: _Generation = _Generation()
    tools: list[_Tools] = []
    tool_config: _ToolConfig = _ToolConfig()

    def prompt(self, model: str) -> Prompt:
        system = [self.system_instruction.text()] if self.system_instruction else []
        declared = [each for tools in self.tools for each in tools.function_declarations]
        calling = self.tool_config.function_calling_config
        return Prompt(
            model,
            [*system, *(content.text() for content in self.contents)],
            self.generation_config.max_output_tokens,
            [
                Tool(each.name, each.parameters_json_schema or each.parameters or {})
                for each in declared
            ],
            Choice(calling.mode != "NONE", next(iter(calling.allowed_function_names), None)),
            any(part.function_response for part in self.contents[-1].parts),
        )

    def shape(self, model: str, number: int, *, stream: bool) -> Generated:
        return Generated(Reply.to(self.prompt(model), number), stream)


class Generated:
    """A reply as a GenerateContentResponse."""

    id_header = "x-request-id"

    def __init__(self, reply: Reply, stream: bool) -> None:
        self.reply = reply
        self.stream = stream
        self.request_id = f"gen-{reply.number:012d}"

    def whole(self) -> dict[str, Any]:
        if self.reply.tool:
            part = {"functionCall": {"name": self.reply.tool, "args": self.reply.arguments}}
            return self._response(part, "STOP")
        return self._response({"text": self.reply.text}, "STOP")

    def opening(self) -> bytes:
        return b""

    def pieces(self) -> Iterator[bytes]:
        if self.reply.tool:  # A call is never cut.
            return iter(())
        return filled(sse(self._response({"text": HOLE})), iter(self.reply.tokens))

    def closing(self) -> bytes:
        return sse(self.whole() if self.reply.tool else self._response({"text": ""}, "STOP"))

    def _response(self, part: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        return {
            "candidates": [candidate],
            "usageMetadata": self._usage(),
            "modelVersion": self.reply.model,
            "responseId": self.request_id,
        }

    def _usage(self) -> dict[str, int]:
        return {
            "promptTokenCount": self.reply.prompt_tokens,
            "candidatesTokenCount": len(self.reply.tokens),
            "totalTokenCount": self.reply.total_tokens,
        }
