"""A request as the library takes it, and its content on its way out.

This module knows what of a request httpx's transport reads, and what of the content the library
does not know. It does not know how either is framed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trunkline.http1 import RequestContent


@dataclass(frozen=True, slots=True)
class _Url:
    """Of every request; what is sent is the extension "target"."""

    raw_scheme: bytes = b"http"
    raw_host: bytes = b"origin"
    port: None = None
    raw_path: bytes = b"/"


class _Headers:
    __slots__ = ("raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw


class Message:
    """What httpx's transport reads of a request.

    Its own class checks and copies once more what Trunkline's has checked, and writes the method in
    upper case.
    """

    __slots__ = ("extensions", "headers", "method", "stream")

    url = _Url()

    def __init__(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], stream: Any
    ) -> None:
        self.method = method
        self.headers = _Headers(headers)
        self.stream = stream
        self.extensions = {"target": target}


class RequestBody(RequestContent):
    """The content of a request, which remembers why it ended early.

    `failure` is what the caller's iterable raised, or that it kept not to its length.
    """

    failure: Exception | None = None

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.failure = error
            raise
