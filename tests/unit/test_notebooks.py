"""Notebooks: code that an answer has woken runs its event loop once more, inside itself.

Knows `nest_asyncio`, which makes asyncio allow that, in a process of its own: it patches asyncio.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

_CELL = """
import asyncio, sys
import nest_asyncio
from trunkline import Client
from trunkline.testing import LLMServer

async def cell(url):
    loop = asyncio.get_running_loop()
    async with Client(backend=sys.argv[1]) as client:
        for calls in (1, 4):
            await asyncio.gather(*(client.get(url) for _ in range(calls)))
            await client.get(url)
            inner = asyncio.gather(*(client.get(url) for _ in range(calls)))
            print([response.status_code for response in loop.run_until_complete(inner)])

with LLMServer() as server:
    loop = asyncio.new_event_loop()
    nest_asyncio.apply(loop)
    loop.run_until_complete(asyncio.wait_for(cell(f"{server.base_url}/models"), 10))
"""


@pytest.mark.parametrize("backend", ["aiohttp", "httpx", "httpx2", "pyreqwest"])
def test_code_that_an_answer_woke_may_run_the_loop_again(backend: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _CELL, backend],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.stdout, ran.stderr) == ("[200]\n[200, 200, 200, 200]\n", "")
