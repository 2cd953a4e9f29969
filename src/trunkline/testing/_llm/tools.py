"""Tools: which one the echoing model calls, and with what arguments.

This module knows JSON Schema well enough to make a value of the right type. It does not know how an
API says any of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PIECE = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the caller offers; `parameters` is the JSON Schema of its arguments."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the caller says about tools: `allowed` False is none of them, `name` only that one."""

    allowed: bool = True
    name: str | None = None

    def among(self, tools: Sequence[Tool]) -> Tool | None:
        """The tool to call: the named one, or the first."""
        named = (tool for tool in tools if self.name in (None, tool.name))
        return next(named, None) if self.allowed else None


def arguments_for(tool: Tool, text: str) -> dict[str, Any]:
    """A value for each parameter: for a string, the text that the model was asked with."""
    properties: dict[str, dict[str, Any]] = tool.parameters.get("properties", {})
    return {name: _value(schema, text) for name, schema in properties.items()}


def _value(schema: dict[str, Any], text: str) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    kinds: dict[str, Any] = {
        "integer": 1,
        "number": 1.5,
        "boolean": True,
        "array": [],
        "object": {},
        "null": None,
    }
    return kinds.get(str(schema.get("type", "string")).lower(), text)


def pieces_of(json: str) -> list[str]:
    """`json` in the pieces that it is streamed in."""
    return _PIECE.findall(json)
