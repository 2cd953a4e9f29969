"""What an API has beside generations: models, embeddings, uploaded files.

This module knows the shapes of OpenAI's, Anthropic's and Google's lists and objects. A file is read
to its end and forgotten: what is told of it is its size and its SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trunkline.testing._llm.errors import anthropic_error, google_error, openai_error, refuse_for
from trunkline.testing._llm.model import DEFAULT_MODEL

_DIMENSIONS = 8


# -- models ----------------------------------------------------------------------------------------


async def list_models(request: Request) -> Response:
    """`GET /v1/models`, of OpenAI and of Anthropic, and `GET /v1beta/models`, of Google."""
    model = _model(request)
    if refuse_for(request) is google_error:
        return JSONResponse({"models": [model]})
    if refuse_for(request) is anthropic_error:
        ends = {"first_id": DEFAULT_MODEL, "last_id": DEFAULT_MODEL, "has_more": False}
        return JSONResponse({"data": [model], **ends})
    return JSONResponse({"object": "list", "data": [model]})


async def get_model(request: Request) -> Response:
    """One of them, by its name."""
    name = request.path_params["model"]
    if name != DEFAULT_MODEL:
        return refuse_for(request)(404, f"The model '{name}' does not exist")
    return JSONResponse(_model(request))


def _model(request: Request) -> dict[str, Any]:
    if refuse_for(request) is google_error:
        return {"name": f"models/{DEFAULT_MODEL}", "displayName": DEFAULT_MODEL}
    if refuse_for(request) is anthropic_error:
        made = {"display_name": DEFAULT_MODEL, "created_at": "1970-01-01T00:00:00Z"}
        return {"type": "model", "id": DEFAULT_MODEL, **made}
    return {"id": DEFAULT_MODEL, "object": "model", "created": 0, "owned_by": "trunkline"}


# -- embeddings ------------------------------------------------------------------------------------


class EmbeddingsRequest(BaseModel):
    """What is read of `POST /v1/embeddings`."""

    model: Annotated[str, Field(min_length=1)]
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"

    def answer(self) -> dict[str, Any]:
        inputs = self._inputs()
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(each)}
            for index, each in enumerate(inputs)
        ]
        tokens = sum(len(each.split()) for each in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    def _inputs(self) -> list[str]:
        """A text for each input; numbers of tokens count as words."""
        if isinstance(self.input, str):
            return [self.input]
        texts = [each for each in self.input if isinstance(each, str)]
        numbers = [each for each in self.input if isinstance(each, int)]
        lists = [each for each in self.input if isinstance(each, list)]
        return texts + [" ".join(map(str, each)) for each in ([numbers] if numbers else lists)]

    def _encoded(self, text: str) -> list[float] | str:
        vector = embedding_of(text)
        if self.encoding_format == "float":
            return vector
        return base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector)).decode()


def embedding_of(text: str) -> list[float]:
    """A vector that only this text has, of numbers from -1 to 1."""
    digest = hashlib.sha256(text.encode()).digest()
    return [(byte - 128) / 128 for byte in digest[:_DIMENSIONS]]


# -- files -----------------------------------------------------------------------------------------


async def upload_file(request: Request) -> Response:
    """`POST /v1/files`, of OpenAI and of Anthropic: a multipart form with one file."""
    async with request.form() as form:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            return refuse_for(request)(400, "file: Field required", param="file")
        content = await file.read()
    told = {"filename": file.filename, "sha256": hashlib.sha256(content).hexdigest()}
    if refuse_for(request) is anthropic_error:
        made = {"mime_type": file.content_type, "created_at": "1970-01-01T00:00:00Z"}
        size = {"size_bytes": len(content), "downloadable": False}
        return JSONResponse({"type": "file", "id": _id_of(content), **told, **made, **size})
    if purpose is None:
        return openai_error(400, "purpose: Field required", param="purpose")
    head = {"id": _id_of(content), "object": "file", "created_at": int(time.time())}
    rest = {"bytes": len(content), "purpose": purpose, "status": "processed"}
    return JSONResponse({**head, **told, **rest})


async def upload_resumable(request: Request) -> Response:
    """`POST /upload/v1beta/files`, of Google: begin, then the bytes to the URL that was given."""
    command = request.headers.get("x-goog-upload-command", "")
    if command == "start":
        headers = {"x-goog-upload-url": str(request.url), "x-goog-upload-status": "active"}
        return JSONResponse({}, headers=headers)
    if "finalize" not in command:
        return google_error(400, "X-Goog-Upload-Command: only 'upload, finalize' in one is served")
    content = await request.body()
    digest = base64.b64encode(hashlib.sha256(content).hexdigest().encode()).decode()
    file = {
        "name": f"files/{_id_of(content)}",
        "sizeBytes": str(len(content)),
        "sha256Hash": digest,
        "state": "ACTIVE",
    }
    return JSONResponse({"file": file}, headers={"x-goog-upload-status": "final"})


def _id_of(content: bytes) -> str:
    return f"file-{hashlib.sha256(content).hexdigest()[:12]}"
