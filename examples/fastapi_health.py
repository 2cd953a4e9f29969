"""A FastAPI application with one client for its life, and a health check that shows its pool.

- `POST /ask` with `{"question": "..."}` asks the model.
- `GET /health/pool` is the pool as JSON; its status is 503 while the pool is nearly used up, so
  that a load balancer sends the next requests elsewhere.

Try it against the echoing server, from this folder, in two terminals:

    trunkline serve
    hypercorn --bind 127.0.0.1:8001 fastapi_health:app

It needs `pip install 'trunkline[cli]' fastapi`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import trunkline

NEARLY_FULL = 0.9
"""The share of `max_connections` from which on the health check says 503."""


class Question(BaseModel):
    question: str


def create_app(base_url: str, config: trunkline.TransportConfig | None = None) -> FastAPI:
    """The application, for the API at `base_url`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # Made here, not in a handler: every request shares its connections.
        async with trunkline.Client(config, base_url=base_url) as client:
            app.state.llm = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/ask")
    async def ask(asked: Question) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        messages = [{"role": "user", "content": asked.question}]
        client: trunkline.Client = app.state.llm
        try:
            response = await client.post(
                "/chat/completions", json={"model": "demo", "messages": messages}
            )
            response.raise_for_status()
        except (trunkline.PoolTimeout, trunkline.PoolFull) as error:
            raise HTTPException(503, "too many questions at once") from error
        except trunkline.TransportError as error:
            raise HTTPException(502, f"the model did not answer: {error}") from error
        return {"answer": response.json()["choices"][0]["message"]["content"]}

    @app.get("/health/pool")
    async def pool_health() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        client: trunkline.Client = app.state.llm
        now = client.snapshot()
        return JSONResponse(asdict(now), 503 if now.utilization >= NEARLY_FULL else 200)

    return app


app = create_app(os.environ.get("LLM_BASE_URL", "http://127.0.0.1:8000/v1"))
