"""The echoing model: what it is asked and what it replies, in no API's words.

One word is one token. The model answers with the words of the last message, over and over, until
there are as many as were asked for. If it is offered tools, and the last message is not the result
of one, it calls a tool instead.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.testing._llm.tools import Choice, Tool, arguments_for, pieces_of

DEFAULT_MODEL = "trunkline-echo"
DEFAULT_TOKENS = 16
MAX_TOKENS = 1_000_000
_ANY_TOOL = Choice()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request asks.

    Attributes:
        texts: the text of each message; the last one is what is echoed.
        limit: how many tokens; None for `DEFAULT_TOKENS`.
        answers_a_call: the last message is the result of a tool.
    """

    model: str
    texts: Sequence[str]
    limit: int | None = None
    tools: Sequence[Tool] = ()
    choice: Choice = _ANY_TOOL
    answers_a_call: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(text.split()) for text in self.texts)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says to one prompt.

    Attributes:
        number: 1 for the first of a server; ids are made of it.
        tokens: the pieces, in order: of the text, or of the JSON of the tool's arguments.
        tool: the name of the tool that is called; None for text.
        arguments: what it is called with.
        prompt_tokens: how many there were in the prompt.
    """

    number: int
    model: str
    tokens: Sequence[str]
    prompt_tokens: int
    tool: str | None = None
    arguments: dict[str, Any] | None = None

    @classmethod
    def to(cls, prompt: Prompt, number: int) -> Reply:
        text = prompt.texts[-1]
        tool = None if prompt.answers_a_call else prompt.choice.among(prompt.tools)
        if tool is None:
            tokens = _echo(text, prompt.limit or DEFAULT_TOKENS)
            return cls(number, prompt.model, tokens, prompt.tokens)
        arguments = arguments_for(tool, text)
        tokens = pieces_of(json.dumps(arguments))
        return cls(number, prompt.model, tokens, prompt.tokens, tool.name, arguments)

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + len(self.tokens)


def _echo(text: str, count: int) -> list[str]:
    words = itertools.cycle(text.split() or ["(nothing)"])
    return [next(words), *(f" {word}" for word in itertools.islice(words, count - 1))]
