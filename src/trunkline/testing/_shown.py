"""Requests as they may be shown and written down: without their secrets.

This module knows the parts of a request. It does not know what in them is secret, nor who shows
them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from trunkline import DecodeError
from trunkline.testing._received import ReceivedRequest, with_content
from trunkline.testing._redaction import Redactor

_OF_THE_CODING = ("content-encoding", "content-length")


def redact(request: ReceivedRequest, redactor: Redactor) -> ReceivedRequest:
    """`request` without its secrets, and without the coding that would hide them."""
    decoded = _decoded(request)
    return redactor.settled(lambda: _redacted(decoded, redactor))


def _redacted(request: ReceivedRequest, redactor: Redactor) -> ReceivedRequest:
    fields = [(name, redactor.header(name, value)) for name, value in request.headers.items()]
    content: Any = request.content
    if content is not None:
        (content,) = redactor.chunks([request.body], request.headers.get("Content-Type", ""))
        fields = [pair for pair in fields if pair[0].lower() != "content-length"]
    url = redactor.text(f"{request.origin}{request.path}")
    return ReceivedRequest(request.method, url, headers=fields, content=content)


def _decoded(request: ReceivedRequest) -> ReceivedRequest:
    """`request` with its body decoded as far as it goes, if its coding is known."""
    from trunkline.decode import make_decoder

    pieces: list[bytes] = []
    with suppress(DecodeError):
        decoder = make_decoder(request.headers.get("Content-Encoding"))
        if decoder is None:
            return request
        pieces.extend(decoder.feed(request.body))
    fields = [pair for pair in request.headers.items() if pair[0].lower() not in _OF_THE_CODING]
    return with_content(request, b"".join(pieces), fields)
