"""What `LLMServer` answers in the shapes of OpenAI, Anthropic and Google, over real sockets.

Chat completions, and everything that is not a shape, are in `test_llm_server`; that the SDKs
themselves read these shapes, in `tests/sdk`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from trunkline.testing import LLMServer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "exact": {"type": "boolean"},
    },
}
ARGUMENTS = {"city": "one two", "days": 1, "unit": "C", "exact": True}
ANTHROPICS = {"anthropic-version": "2023-06-01"}
GOOGLES = {"x-goog-api-key": "key"}


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer() as server:
        yield server


@pytest.fixture
def client(server: LLMServer) -> Iterator[httpx.Client]:
    server.reset()
    with httpx.Client(base_url=server.url) as client:
        yield client


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[tuple[str | None, Any]]:
    """The events of a stream: the name, if there is one, and the data."""
    answer = client.post(path, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [_event(block) for block in answer.text.split("\n\n") if block]


def _event(block: str) -> tuple[str | None, Any]:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    data = fields["data"]
    return fields.get("event"), data if data == "[DONE]" else json.loads(data)


def openai(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "one two"}], **fields}


def anthropic(**fields: Any) -> dict[str, Any]:
    return {**openai(max_tokens=3), **fields}


def google(**fields: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": "one two"}]}], **fields}


# -- OpenAI ----------------------------------------------------------------------------------------

CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
PATH = "/v1/chat/completions"


def test_a_completion_calls_the_tool_it_is_offered(client: httpx.Client) -> None:
    (choice,) = post(client, PATH, openai(tools=[CHAT_TOOL]))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS


def test_a_streamed_call_comes_in_pieces(client: httpx.Client) -> None:
    chunks = [data for _, data in events(client, PATH, openai(tools=[CHAT_TOOL], stream=True))]
    assert chunks.pop() == "[DONE]"
    first, *rest, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ""}
    pieces = [part["delta"]["tool_calls"][0]["function"]["arguments"] for part in rest]
    assert len(pieces) > 3
    assert json.loads("".join(pieces)) == ARGUMENTS
    assert last["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "called"),
    [
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "required"}, "weather"),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, "time"),
        ({"messages": [{"role": "tool", "content": "sunny", "tool_call_id": "1"}]}, None),
    ],
)
def test_the_choice_of_a_tool_is_the_callers(
    client: httpx.Client, fields: dict[str, Any], called: str | None
) -> None:
    tools = [CHAT_TOOL, {"type": "function", "function": {"name": "time"}}]
    message = post(client, PATH, openai(tools=tools, **fields))["choices"][0]["message"]
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    assert names == ([called] if called else [])
    assert bool(message["content"]) == (called is None)


def test_a_response_is_text_and_usage(client: httpx.Client) -> None:
    body = post(client, "/v1/responses", {"model": "m", "input": "one two", "max_output_tokens": 3})
    (item,) = body["output"]
    assert (body["object"], body["status"], item["role"]) == ("response", "completed", "assistant")
    assert item["content"][0]["text"] == "one two one"
    usage = body["usage"]
    counted = [usage[key] for key in ("input_tokens", "output_tokens", "total_tokens")]
    assert counted == [2, 3, 5]


def test_a_streamed_response_is_numbered_and_ends_whole(client: httpx.Client) -> None:
    asked = {"model": "m", "input": [{"role": "user", "content": "one two"}], "stream": True}
    told = events(client, "/v1/responses", {**asked, "max_output_tokens": 3})
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    assert all(name == data["type"] for name, data in told)
    deltas = [data["delta"] for name, data in told if name == "response.output_text.delta"]
    assert deltas == ["one", " two", " one"]
    name, last = told[-1]
    assert name == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "one two one"


def test_a_response_calls_a_tool(client: httpx.Client) -> None:
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA}
    asked = {"model": "m", "input": "one two", "tools": [tool]}
    (call,) = post(client, "/v1/responses", asked)["output"]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    told = events(client, "/v1/responses", {**asked, "stream": True})
    pieces = [data["delta"] for name, data in told if str(name).endswith("arguments.delta")]
    assert json.loads("".join(pieces)) == json.loads(call["arguments"]) == ARGUMENTS
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    answered = post(client, "/v1/responses", {**asked, "input": [result], "max_output_tokens": 1})
    assert answered["output"][0]["content"][0]["text"] == "sunny"


def test_an_embedding_is_of_its_text_in_both_encodings(client: httpx.Client) -> None:
    plain = post(client, "/v1/embeddings", {"model": "m", "input": ["one", "two words", "one"]})
    one, two, again = [entry["embedding"] for entry in plain["data"]]
    assert one == again != two
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    asked = {"model": "m", "input": "one", "encoding_format": "base64"}
    packed = post(client, "/v1/embeddings", asked)["data"][0]["embedding"]
    assert list(struct.unpack("<8f", base64.b64decode(packed))) == one
    numbers = post(client, "/v1/embeddings", {"model": "m", "input": [[1, 2], [3]]})
    assert len(numbers["data"]) == 2


def test_an_upload_is_measured_and_forgotten(client: httpx.Client) -> None:
    content = bytes(range(256)) * 5000
    files = {"file": ("notes.bin", content)}
    told = client.post("/v1/files", files=files, data={"purpose": "user_data"}).json()
    assert (told["bytes"], told["filename"], told["purpose"]) == (
        len(content),
        "notes.bin",
        "user_data",
    )
    assert told["sha256"] == hashlib.sha256(content).hexdigest()
    refused = client.post("/v1/files", files=files)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "purpose")
    assert client.post("/v1/files", data={"purpose": "x"}).json()["error"]["param"] == "file"


# -- Anthropic -------------------------------------------------------------------------------------


def test_a_message_has_the_shape_of_anthropic(client: httpx.Client) -> None:
    answer = client.post("/v1/messages", json=anthropic(system="be brief"))
    body = answer.json()
    assert body.pop("id").startswith("msg_")
    assert answer.headers["request-id"].startswith("req_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "one two one", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 4, "output_tokens": 3},
    }


def test_a_streamed_message_is_events_by_name(client: httpx.Client) -> None:
    told = events(client, "/v1/messages", anthropic(stream=True))
    assert [name for name, _ in told] == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == data["type"] for name, data in told)
    assert [data["delta"]["text"] for _, data in told[3:6]] == ["one", " two", " one"]
    assert told[-2][1]["usage"] == {"output_tokens": 3}


def test_a_message_uses_a_tool_and_answers_its_result(client: httpx.Client) -> None:
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    body = post(client, "/v1/messages", anthropic(tools=tools))
    (use,) = body["content"]
    assert (body["stop_reason"], use["name"], use["input"]) == ("tool_use", "weather", ARGUMENTS)
    told = events(client, "/v1/messages", anthropic(tools=tools, stream=True))
    parts = [data["delta"] for name, data in told if name == "content_block_delta"]
    assert json.loads("".join(part["partial_json"] for part in parts)) == ARGUMENTS
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "sunny"}
    asked = anthropic(tools=tools, messages=[{"role": "user", "content": [result]}])
    assert post(client, "/v1/messages", asked)["content"][0]["text"] == "sunny sunny sunny"
    none = anthropic(tools=tools, tool_choice={"type": "none"})
    assert post(client, "/v1/messages", none)["content"][0]["type"] == "text"


def test_tokens_are_counted_without_generating(server: LLMServer, client: httpx.Client) -> None:
    assert post(client, "/v1/messages/count_tokens", openai()) == {"input_tokens": 2}
    assert post(client, "/v1/models/m:countTokens", google()) == {"totalTokens": 2}
    assert (server.requests, server.completed) == (2, 0)


# -- Google ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_a_generation_has_the_shape_of_google(client: httpx.Client, version: str) -> None:
    asked = google(generationConfig={"maxOutputTokens": 3})
    body = post(client, f"/{version}/models/m:generateContent", asked)
    (candidate,) = body["candidates"]
    assert candidate["content"] == {"parts": [{"text": "one two one"}], "role": "model"}
    assert (candidate["finishReason"], body["modelVersion"]) == ("STOP", "m")
    assert body["usageMetadata"] == {
        "promptTokenCount": 2,
        "candidatesTokenCount": 3,
        "totalTokenCount": 5,
    }


def test_a_streamed_generation_is_responses_in_parts(client: httpx.Client) -> None:
    asked = google(generationConfig={"maxOutputTokens": 3})
    told = events(client, "/v1beta/models/m:streamGenerateContent?alt=sse", asked)
    candidates = [data["candidates"][0] for _, data in told]
    texts = [candidate["content"]["parts"][0]["text"] for candidate in candidates]
    assert texts == ["one", " two", " one", ""]
    assert [each.get("finishReason") for each in candidates] == [None, None, None, "STOP"]


@pytest.mark.parametrize("key", ["parameters", "parametersJsonSchema", "parameters_json_schema"])
def test_a_generation_calls_a_function(client: httpx.Client, key: str) -> None:
    tools = [{"functionDeclarations": [{"name": "weather", key: SCHEMA}]}]
    whole = post(client, "/v1/models/m:generateContent", google(tools=tools))
    path = "/v1/models/m:streamGenerateContent?alt=sse"
    ((_, streamed),) = events(client, path, google(tools=tools))
    for body in (whole, streamed):
        (part,) = body["candidates"][0]["content"]["parts"]
        assert part["functionCall"] == {"name": "weather", "args": ARGUMENTS}


def test_a_function_result_is_answered_in_words(client: httpx.Client) -> None:
    part = {"functionResponse": {"name": "weather", "response": {"is": "sunny"}}}
    tools = [{"functionDeclarations": [{"name": "weather"}]}]
    asked = {"contents": [{"role": "user", "parts": [part]}], "tools": tools}
    body = post(client, "/v1/models/m:generateContent", asked)
    assert "sunny" in body["candidates"][0]["content"]["parts"][0]["text"]


def test_a_resumable_upload_is_taken_in_one_piece(client: httpx.Client) -> None:
    begun = client.post("/upload/v1beta/files", headers={"x-goog-upload-command": "start"}, json={})
    assert begun.headers["x-goog-upload-status"] == "active"
    command = {"x-goog-upload-command": "upload, finalize"}
    ended = client.post(begun.headers["x-goog-upload-url"], headers=command, content=b"bytes")
    assert ended.headers["x-goog-upload-status"] == "final"
    digest = base64.b64decode(ended.json()["file"]["sha256Hash"]).decode()
    assert digest == hashlib.sha256(b"bytes").hexdigest()


# -- what they share -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {"model": "m"}, "input"),
        ("/v1/messages", openai(), "max_tokens"),
        ("/v1/messages/count_tokens", {"model": "m"}, "messages"),
        ("/v1beta/models/m:generateContent", {}, "contents"),
        ("/v1beta/models/m:countTokens", {}, "contents"),
        ("/v1/embeddings", {"model": "m"}, "input"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field(
    client: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(param)


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        (PATH, openai(), 429, {"type": "requests", "code": "rate_limit_exceeded"}),
        (PATH, openai(), 503, {"type": "server_error"}),
        ("/v1/messages", anthropic(), 429, {"type": "rate_limit_error"}),
        ("/v1/messages", anthropic(), 529, {"type": "overloaded_error"}),
        ("/v1beta/models/m:generateContent", google(), 429, {"status": "RESOURCE_EXHAUSTED"}),
        ("/v1beta/models/m:generateContent", google(), 503, {"status": "UNAVAILABLE", "code": 503}),
    ],
)
def test_a_refusal_has_the_shape_of_the_api_that_was_asked(
    server: LLMServer,
    client: httpx.Client,
    path: str,
    body: dict[str, Any],
    status: int,
    error: dict[str, Any],
) -> None:
    server.rate_limit(1, retry_after=0.25, status=status)
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert answer.headers["retry-after-ms"] == "250"
    assert error.items() <= answer.json()["error"].items()
    assert client.post(path, json=body).status_code == 200


def test_only_errors_can_be_asked_for(server: LLMServer) -> None:
    with pytest.raises(ValueError, match="status: 200"):
        server.rate_limit(1, status=200)


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/models", {}, {"object": "list"}),
        ("/v1/models", ANTHROPICS, {"has_more": False}),
        ("/v1/models/trunkline-echo", {}, {"object": "model"}),
        ("/v1/models/trunkline-echo", ANTHROPICS, {"type": "model"}),
        ("/v1beta/models/trunkline-echo", {}, {"name": "models/trunkline-echo"}),
        ("/v1/models/trunkline-echo", GOOGLES, {"name": "models/trunkline-echo"}),
    ],
)
def test_models_are_told_in_the_shape_of_who_asks(
    client: httpx.Client, path: str, headers: dict[str, str], expected: dict[str, Any]
) -> None:
    assert expected.items() <= client.get(path, headers=headers).json().items()


def test_a_model_that_is_not_there_is_a_404(client: httpx.Client) -> None:
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/v1beta/models").json()["models"]


def test_a_stream_that_is_no_sse_is_not_served(client: httpx.Client) -> None:
    answer = client.post("/v1beta/models/m:streamGenerateContent", json=google())
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_calls_are_kept_as_they_came(server: LLMServer, client: httpx.Client) -> None:
    client.get("/echo?a=%2C&b=1", headers={"X-Stainless-Retry-Count": "2"})
    client.post(PATH, json=openai())
    first, second = server.calls
    assert (first.method, first.target) == ("GET", "/echo?a=%2C&b=1")
    assert first.header("x-stainless-retry-count") == "2"
    assert first.header("idempotency-key") is None
    assert (second.number - first.number, second.target) == (1, PATH)
    server.reset()
    assert server.calls == ()


def test_what_was_sent_to_its_end_is_completed(server: LLMServer, client: httpx.Client) -> None:
    client.post(PATH, json=openai())
    client.post("/v1/messages", json=anthropic(stream=True))
    client.post("/v1/messages", json={})
    client.get("/v1/models")
    assert (server.requests, server.completed, server.cancelled) == (4, 2, 0)
