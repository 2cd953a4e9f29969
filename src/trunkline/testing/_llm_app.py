"""An LLM API that echoes: the OpenAI chat-completions wire format as an ASGI application.

This module knows ASGI and the shapes of OpenAI's requests, answers, events and errors. It does not
know servers, sockets or threads of control: whoever serves it counts the connections.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

import anyio
import anyio.to_thread
from pydantic import BaseModel, Field, StrictBool, StrictInt, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULT_MODEL = "trunkline-echo"
DEFAULT_TOKENS = 16
MAX_TOKENS = 1_000_000
_BODILESS = frozenset({204, 205, 304})


# -- counting --------------------------------------------------------------------------------------

CountName: TypeAlias = Literal[
    "connections", "open_connections", "handshakes", "requests", "cancelled"
]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has seen so far.

    Attributes:
        connections: TCP connections accepted, with those that never sent a request.
        open_connections: those of them that are open now.
        handshakes: TLS handshakes that succeeded.
        requests: requests whose head arrived, whatever the path and the answer.
        cancelled: generations, streamed or not, whose client left before the last byte was sent,
            and those that the server's stop cut.
    """

    connections: int = 0
    open_connections: int = 0
    handshakes: int = 0
    requests: int = 0
    cancelled: int = 0


class Tally:
    """`Counts` that can be added to and waited for, from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._values: dict[CountName, int] = dict.fromkeys(get_args(CountName), 0)

    def add(self, name: CountName, amount: int = 1) -> None:
        with self._changed:
            self._values[name] += amount
            self._changed.notify_all()

    def snapshot(self) -> Counts:
        with self._changed:
            return Counts(**self._values)

    def reset(self) -> None:
        """Zero what is counted. `open_connections` is not a count of the past: it stays."""
        with self._changed:
            for name in self._values:
                if name != "open_connections":
                    self._values[name] = 0

    async def wait_until(self, predicate: Callable[[Counts], bool], timeout: float) -> Counts:  # noqa: ASYNC109
        """Wait until `predicate` holds, and return the counts that it held for.

        Raises:
            TimeoutError: it did not hold within `timeout` seconds.
        """
        gave_up = threading.Event()
        try:
            return await anyio.to_thread.run_sync(
                self._wait, predicate, timeout, gave_up, abandon_on_cancel=True
            )
        finally:
            # A cancelled caller leaves its thread behind: let that end now, not at the timeout.
            gave_up.set()
            with self._changed:
                self._changed.notify_all()

    def _wait(
        self, predicate: Callable[[Counts], bool], timeout: float, gave_up: threading.Event
    ) -> Counts:
        def ready() -> bool:
            return gave_up.is_set() or predicate(Counts(**self._values))

        with self._changed:
            in_time = self._changed.wait_for(ready, timeout)
            counts = Counts(**self._values)
        if not in_time:
            raise TimeoutError(f"not seen within {timeout:g} s; the server has counted {counts}")
        return counts


# -- the wire shapes -------------------------------------------------------------------------------


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


class _StreamOptions(BaseModel):
    include_usage: StrictBool = False


_TokenLimit: TypeAlias = Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None


class _ChatRequest(BaseModel):
    """What is read of a request; other fields are OpenAI's too, and are let pass."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: StrictBool = False
    stream_options: _StreamOptions | None = None
    max_tokens: _TokenLimit = None
    max_completion_tokens: _TokenLimit = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def token_count(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS

    def words(self) -> list[str]:
        return " ".join(message.text() for message in self.messages).split()


@dataclass(frozen=True, slots=True)
class _Generation:
    """The answer to one request: the words of its last message, over and over."""

    head: dict[str, Any]
    tokens: list[str]
    usage: dict[str, int]

    @classmethod
    def of(cls, chat: _ChatRequest, number: int) -> _Generation:
        count = chat.token_count()
        words = itertools.cycle(chat.messages[-1].text().split() or ["(nothing)"])
        tokens = [next(words), *(f" {word}" for word in itertools.islice(words, count - 1))]
        prompt = len(chat.words())
        return cls(
            head={
                "id": f"chatcmpl-{number:012d}",
                "object": "chat.completion.chunk" if chat.stream else "chat.completion",
                "created": int(time.time()),
                "model": chat.model,
            },
            tokens=tokens,
            usage={
                "prompt_tokens": prompt,
                "completion_tokens": count,
                "total_tokens": prompt + count,
            },
        )

    def completion(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.tokens), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {**self.head, "choices": [choice], "usage": self.usage}

    def opening(self, include_usage: bool) -> bytes:
        return self._event({"role": "assistant", "content": ""}, None, include_usage)

    def token_events(self, include_usage: bool) -> Iterator[bytes]:
        # All but the token is the same in each event, and there may be a million of them.
        before, after = self._event({"content": "\0"}, None, include_usage).split(rb'"\u0000"')
        for token in self.tokens:
            yield b"".join((before, json.dumps(token).encode(), after))

    def closing(self, include_usage: bool) -> Iterator[bytes]:
        yield self._event({}, "stop", include_usage)
        if include_usage:
            yield _sse({**self.head, "choices": [], "usage": self.usage})

    def _event(self, delta: dict[str, str], finish: str | None, include_usage: bool) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if include_usage else {}
        return _sse({**self.head, "choices": [choice], **usage})


def _sse(data: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % json.dumps(data, separators=(",", ":")).encode()


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    if status in _BODILESS:
        return Response(status_code=status, headers=headers)
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def _invalid(error: ValidationError) -> Response:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return _error(400, f"We could not parse the JSON body of your request: {first['msg']}")
    param = ".".join(str(step) for step in first["loc"])
    return _error(400, f"{param or 'body'}: {first['msg']}", param=param or None)


# -- the application -------------------------------------------------------------------------------


class LLMApp:
    """The ASGI application.

    - `POST /v1/chat/completions`: plain and streamed (`"stream": true`). The answer is the words of
      the last message, repeated until there are `max_tokens` (or `max_completion_tokens`) of them,
      `DEFAULT_TOKENS` without either; one word is one token.
    - `GET /v1/models`; `GET /health`; `GET /stats`: the counts.
    - any method on `/echo`: what arrived, as JSON: `method`, `path`, `raw_path`, `query`, `headers`
      (a list of pairs, in order, with duplicates), `body` (base64), `text` (None unless the body is
      UTF-8), `http_version`, `client_port`.

    A request may ask for special treatment by header: `x-token-delay` (seconds, instead of the
    constructor's), and, on every path, `x-fail-status` (answer with this status and no more).

    Args:
        token_delay: seconds of silence before each token; an answer that is not streamed comes
            after the sum of them.
        tally: where to count; its connection counters are for whoever serves the application.
    """

    def __init__(self, *, token_delay: float = 0.0, tally: Tally | None = None) -> None:
        self.token_delay = _check_delay("token_delay", token_delay)
        self.tally = tally or Tally()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._refusals = 0
        self._retry_after = 0.0
        self._router = Router(
            routes=[
                Route("/v1/chat/completions", _Endpoint(self._chat), methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/echo", _Endpoint(self._echo)),
                Route("/stats", self._stats, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
            ],
            redirect_slashes=False,
            default=_not_found,
        )

    def rate_limit(self, next_n: int, *, retry_after: float = 1.0) -> None:
        """Answer the next `next_n` requests under /v1/ with 429.

        `retry_after` is in seconds: `Retry-After` says it in whole ones, rounded up (RFC 9110,
        section 10.2.3), and `retry-after-ms` in milliseconds, as OpenAI does.
        """
        if next_n < 0:
            raise ValueError(f"next_n: {next_n} is negative")
        with self._lock:
            self._refusals = next_n
            self._retry_after = _check_delay("retry_after", retry_after)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.tally.add("requests")
        request = Request(scope, receive)
        try:
            # Whatever the answer is: one over the head of an unread body costs the connection.
            body = await request.body()
        except ClientDisconnect:
            return  # It left in the middle of its own request: there is nobody to answer.
        answer = self._refusal(request) or self._router
        await answer(scope, _replay(body, receive), send)

    def _refusal(self, request: Request) -> Response | None:
        wanted = request.headers.get("x-fail-status")
        if wanted is not None:
            if not (wanted.isascii() and wanted.isdigit() and 200 <= int(wanted) <= 599):
                return _error(400, "x-fail-status: not a status from 200 to 599")
            return _error(int(wanted), f"The request asked for {wanted}", kind="server_error")
        if not request.url.path.startswith("/v1/"):
            return None
        with self._lock:
            if not self._refusals:
                return None
            self._refusals -= 1
            delay = self._retry_after
        headers = {"retry-after": str(math.ceil(delay)), "retry-after-ms": f"{delay * 1000:g}"}
        message = f"Rate limit reached. Please try again in {delay:g}s."
        return _error(429, message, kind="requests", code="rate_limit_exceeded", headers=headers)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            chat = _ChatRequest.model_validate_json(await request.body())
            delay = self._delay_of(request)
        except ValidationError as error:
            await _invalid(error)(scope, receive, send)
            return
        except ValueError as error:
            await _error(400, str(error))(scope, receive, send)
            return
        answer = _Answer(_Generation.of(chat, next(self._numbers)), chat, delay, self.tally)
        await answer.run(scope, receive, send)

    def _delay_of(self, request: Request) -> float:
        asked = request.headers.get("x-token-delay")
        return self.token_delay if asked is None else _check_delay("x-token-delay", asked)

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
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

    async def _models(self, _request: Request) -> Response:
        model = {"id": DEFAULT_MODEL, "object": "model", "created": 0, "owned_by": "trunkline"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _stats(self, _request: Request) -> Response:
        return JSONResponse(asdict(self.tally.snapshot()))

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})


class _Endpoint:
    """Says to starlette that a method is an ASGI application, and not a view."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Answer:
    """One generation on its way to one client, which may leave."""

    def __init__(
        self, generation: _Generation, chat: _ChatRequest, delay: float, tally: Tally
    ) -> None:
        self._generation = generation
        self._chat = chat
        self._delay = delay
        self._tally = tally
        self._finished = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, receive, group.cancel_scope)
            if self._chat.stream:
                await self._stream(send)
            else:
                await self._complete(scope, receive, send)
            group.cancel_scope.cancel()

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        # The server says "disconnect" after a whole answer too, while its last send still runs.
        if not self._finished:
            self._tally.add("cancelled")
            scope.cancel()

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep(self._delay * len(self._generation.tokens))
        self._finished = True
        headers = {"x-request-id": self._generation.head["id"]}
        await JSONResponse(self._generation.completion(), headers=headers)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        generation, include_usage = self._generation, self._chat.include_usage
        await send(_stream_head(generation.head["id"]))
        await send(_part(generation.opening(include_usage)))
        for event in generation.token_events(include_usage):
            await anyio.sleep(self._delay)
            await send(_part(event))
        for event in generation.closing(include_usage):
            await send(_part(event))
        self._finished = True
        await send(_part(b"data: [DONE]\n\n", more=False))


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole of `body` to give first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return messages.pop() if messages else await receive()

    return replaying


def _stream_head(request_id: str) -> Message:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-request-id", request_id.encode()),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _part(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    response = _error(404, f"Unknown request URL: {scope['method']} {scope['path']}")
    await response(scope, receive, send)


def _check_delay(name: str, value: float | str) -> float:
    """`value` as seconds.

    Raises:
        ValueError: it is not a finite number of seconds, zero or more.
    """
    try:
        seconds = float(value)
    except ValueError as exc:
        raise ValueError(f"{name}: not a number of seconds") from exc
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name}: {seconds} is not a finite number of seconds, zero or more")
    return seconds
