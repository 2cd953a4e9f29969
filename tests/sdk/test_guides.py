"""The guides for SDKs: each block runs, in the order of its page, and prints what the page shows.

Knows where the pages are and what each needs installed. Does not know what is in them.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Coroutine
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from tests.sdk._sdks import need

from trunkline.testing import LLMServer

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
NEEDS = {
    "anthropic": "anthropic",
    "celery-jupyter": "openai",
    "fastapi": "openai",
    "google-genai": "google.genai",
    "langchain": "langchain_openai",
    "litellm": "litellm",
    "openai": "openai",
}

# A block of Python, and what it prints if the guide shows that.
_BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def test_every_guide_is_run() -> None:
    assert {page.stem for page in GUIDES.glob("*.md")} == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_every_block_of_a_guide_runs_and_prints_what_it_shows(name: str) -> None:
    need(NEEDS[name])
    need("httpx2")
    blocks = _BLOCK.findall((GUIDES / f"{name}.md").read_text(encoding="utf-8"))
    assert blocks
    names: dict[str, Any] = {"__name__": name}
    try:
        with asyncio.Runner() as runner:
            for number, (source, shown) in enumerate(blocks, 1):
                printed = run_as_typed(source, names, f"{name}.md, block {number}", runner)
                assert printed == shown, f"block {number}"
    finally:
        if isinstance(names.get("server"), LLMServer):
            names["server"].stop()


def run_as_typed(source: str, names: dict[str, Any], origin: str, runner: asyncio.Runner) -> str:
    """What a block prints. As in a notebook, `await` may be anywhere."""
    code = compile(source, origin, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = StringIO()
    with redirect_stdout(printed):
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(awaited(code, names))
        else:
            exec(code, names)
    return printed.getvalue()


def awaited(code: CodeType, names: dict[str, Any]) -> Coroutine[Any, Any, None]:
    made: Coroutine[Any, Any, None] = FunctionType(code, names)()
    return made
