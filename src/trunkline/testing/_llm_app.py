"""An LLM API that echoes: OpenAI's, Anthropic's and Google's wire formats as an ASGI application.

This module knows ASGI, and which path is which API's; the shapes are in `_llm`. It does not know
servers, sockets or threads of control: whoever serves it counts the connections.
"""

from __future__ import annotations

import base64
import itertools
from dataclasses import asdict

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.testing._llm.answer import Answer, Shape
from trunkline.testing._llm.anthropic import CountRequest, MessagesRequest
from trunkline.testing._llm.chat import ChatRequest
from trunkline.testing._llm.counts import Call, Counts as Counts, Tally
from trunkline.testing._llm.errors import Refusals, check_count, check_delay, invalid, refuse_for
from trunkline.testing._llm.google import GenerateRequest
from trunkline.testing._llm.library import (
    EmbeddingsRequest,
    get_model,
    list_models,
    upload_file,
    upload_resumable,
)
from trunkline.testing._llm.model import (
    DEFAULT_MODEL as DEFAULT_MODEL,
    DEFAULT_TOKENS as DEFAULT_TOKENS,
)
from trunkline.testing._llm.responses import ResponsesRequest


class LLMApp:
    """The ASGI application.

    It answers with the words of the last message, repeated until there are as many as the request's
    limit says (`max_tokens`, `max_completion_tokens`, `max_output_tokens`, `maxOutputTokens`),
    `DEFAULT_TOKENS` without one; one word is one token. A request that offers tools gets a call of
    the first one, or of the one it names, unless its last message is the result of a call.

    - OpenAI: `POST /v1/chat/completions` and `/v1/responses`, plain and streamed;
      `POST /v1/embeddings`; `GET /v1/models` and `/v1/models/{model}`; `POST /v1/files`.
    - Anthropic: `POST /v1/messages`, plain and streamed; `POST /v1/messages/count_tokens`; the
      models and the files at OpenAI's paths, told apart by the `anthropic-version` header.
    - Google, under /v1beta and, told apart by the `x-goog-api-key` header, under /v1: `POST
      /v1/models/{model}:generateContent`, `:streamGenerateContent?alt=sse` and `:countTokens`; the
      models; `POST /upload/v1/files`, resumable uploads in one piece.
    - `GET /health`; `GET /stats`: the counts.
    - any method on `/echo`: what arrived, as JSON: `method`, `path`, `raw_path`, `query`, `headers`
      (a list of pairs, in order, with duplicates), `body` (base64), `text` (None unless the body is
      UTF-8), `http_version`, `client_port`.

    A request may ask for special treatment by header: `x-token-delay` (seconds, instead of the
    constructor's), `x-tokens-at-once` (how many of a stream come in one write, after one such
    delay), and, on every path, `x-fail-status` (answer with this status and no more).
    Errors come in the shape of the API that was asked.

    Args:
        token_delay: seconds of silence before each token; an answer that is not streamed comes
            after the sum of them.
        tally: where to count; its connection counters are for whoever serves the application.
    """

    def __init__(self, *, token_delay: float = 0.0, tally: Tally | None = None) -> None:
        self.token_delay = check_delay("token_delay", token_delay)
        self.tally = tally or Tally()
        self._numbers = itertools.count(1)
        self._calls = itertools.count(1)
        self._refusals = Refusals()
        self._router = Router(
            routes=[
                Route("/v1/chat/completions", _Endpoint(self._chat), methods=["POST"]),
                Route("/v1/responses", _Endpoint(self._responses), methods=["POST"]),
                Route("/v1/messages", _Endpoint(self._messages), methods=["POST"]),
                Route("/v1/models/{model}:{verb}", _Endpoint(self._google), methods=["POST"]),
                Route("/v1beta/models/{model}:{verb}", _Endpoint(self._google), methods=["POST"]),
                Route("/v1/messages/count_tokens", _count_tokens, methods=["POST"]),
                Route("/v1/embeddings", _embeddings, methods=["POST"]),
                Route("/v1/files", upload_file, methods=["POST"]),
                Route("/upload/v1/files", upload_resumable, methods=["POST"]),
                Route("/upload/v1beta/files", upload_resumable, methods=["POST"]),
                Route("/v1/models", list_models, methods=["GET"]),
                Route("/v1/models/{model}", get_model, methods=["GET"]),
                Route("/v1beta/models", list_models, methods=["GET"]),
                Route("/v1beta/models/{model}", get_model, methods=["GET"]),
                Route("/echo", _Endpoint(_echo)),
                Route("/stats", self._stats, methods=["GET"]),
                Route("/health", _health, methods=["GET"]),
            ],
            redirect_slashes=False,
            default=_not_found,
        )

    def rate_limit(self, next_n: int, *, retry_after: float = 1.0, status: int = 429) -> None:
        """Answer the next `next_n` requests of the APIs with 429, or another `status` of an error.

        `retry_after` is in seconds: `Retry-After` says it in whole ones, rounded up (RFC 9110,
        section 10.2.3), and `retry-after-ms` in milliseconds, as OpenAI does.
        """
        self._refusals.set(next_n, retry_after, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.tally.called(_call(next(self._calls), scope))
        request = Request(scope, receive)
        try:
            # Whatever the answer is: one over the head of an unread body costs the connection.
            body = await request.body()
        except ClientDisconnect:
            return  # It left in the middle of its own request: there is nobody to answer.
        answer = self._refusals.of(request) or self._router
        await answer(scope, _replay(body, receive), send)

    # -- generations -------------------------------------------------------------------------------

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._generate(ChatRequest, scope, receive, send)

    async def _responses(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._generate(ResponsesRequest, scope, receive, send)

    async def _messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._generate(MessagesRequest, scope, receive, send)

    async def _google(self, scope: Scope, receive: Receive, send: Send) -> None:
        verb, query = scope["path_params"]["verb"], Request(scope).query_params
        if verb == "countTokens":
            await _count_google_tokens(scope, receive, send)
        elif verb == "generateContent" or (verb, query.get("alt")) == (
            "streamGenerateContent",
            "sse",
        ):
            await self._generate(GenerateRequest, scope, receive, send)
        else:
            await _not_found(scope, receive, send)

    async def _generate(
        self,
        kind: type[ChatRequest | ResponsesRequest | MessagesRequest | GenerateRequest],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        request = Request(scope, receive)
        refuse = refuse_for(request)
        try:
            shape = self._shaped(kind.model_validate_json(await request.body()), scope)
            delay, at_once = self._pace_of(request)
        except ValidationError as error:
            await invalid(refuse, error)(scope, receive, send)
        except ValueError as error:
            await refuse(400, str(error))(scope, receive, send)
        else:
            await Answer(shape, delay, at_once, self.tally).run(scope, receive, send)

    def _shaped(
        self,
        asked: ChatRequest | ResponsesRequest | MessagesRequest | GenerateRequest,
        scope: Scope,
    ) -> Shape:
        number = next(self._numbers)
        if not isinstance(asked, GenerateRequest):
            return asked.shape(number)
        path = scope["path_params"]
        return asked.shape(path["model"], number, stream=path["verb"] == "streamGenerateContent")

    def _pace_of(self, request: Request) -> tuple[float, int]:
        asked = request.headers.get("x-token-delay")
        delay = self.token_delay if asked is None else check_delay("x-token-delay", asked)
        return delay, check_count("x-tokens-at-once", request.headers.get("x-tokens-at-once", "1"))

    async def _stats(self, _request: Request) -> Response:
        return JSONResponse(asdict(self.tally.snapshot()))


# -- what is answered at once ----------------------------------------------------------------------


async def _count_tokens(request: Request) -> Response:
    try:
        asked = CountRequest.model_validate_json(await request.body())
    except ValidationError as error:
        return invalid(refuse_for(request), error)
    return JSONResponse({"input_tokens": asked.prompt().tokens})


async def _embeddings(request: Request) -> Response:
    try:
        asked = EmbeddingsRequest.model_validate_json(await request.body())
    except ValidationError as error:
        return invalid(refuse_for(request), error)
    return JSONResponse(asked.answer())


async def _count_google_tokens(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    try:
        asked = GenerateRequest.model_validate_json(await request.body())
    except ValidationError as error:
        await invalid(refuse_for(request), error)(scope, receive, send)
        return
    answer = JSONResponse({"totalTokens": asked.prompt("").tokens})
    await answer(scope, receive, send)


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = None
    client, raw_path = scope.get("client"), scope.get("raw_path")
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": raw_path and raw_path.decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "headers": [[part.decode("latin-1") for part in pair] for pair in scope["headers"]],
        "body": base64.b64encode(body).decode(),
        "text": text,
        "http_version": scope["http_version"],
        "client_port": client[1] if client else None,
    }
    await JSONResponse(seen)(scope, receive, send)


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    refuse = refuse_for(Request(scope))
    response = refuse(404, f"Unknown request URL: {scope['method']} {scope['path']}")
    await response(scope, receive, send)


# -- ASGI ------------------------------------------------------------------------------------------


class _Endpoint:
    """Says to starlette that a method is an ASGI application, and not a view."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _call(number: int, scope: Scope) -> Call:
    raw_path = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    target = raw_path + b"?" + query if query else raw_path
    pairs = scope["headers"]
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs)
    return Call(number, scope["method"], target.decode("latin-1"), headers)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole of `body` to give first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return messages.pop() if messages else await receive()

    return replaying
