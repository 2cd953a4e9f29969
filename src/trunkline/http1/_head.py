"""The head of a response, checked.

This module knows RFC 9112 sections 4 to 6: what a head may hold, and where the body it announces
ends. It does not know where the bytes come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from multidict import CIMultiDict, CIMultiDictProxy

from trunkline._errors import LimitExceeded, RemoteProtocolError
from trunkline._messages import Request

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

MAX_HEAD = 128 * 1024
_MAX_FIELDS = 1000

_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\x00\r]*))?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00\r]*?)[ \t]*")
_FOLD = re.compile(rb"[ \t]*\r?\n[ \t]+")  # obsolete: RFC 9112 section 5.2 says to take it for SP
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Head:
    """A response head that keeps to the rules.

    Attributes:
        raw: its bytes, the empty line included.
        length: of the body in bytes, 0 where the response cannot have one; None: it says not.
        is_chunked: the body is.
    """

    status_code: int
    reason_phrase: str
    http_version: str
    raw_headers: RawHeaders
    headers: CIMultiDictProxy[str]
    raw: bytes
    length: int | None
    is_chunked: bool

    @property
    def is_interim(self) -> bool:
        return self.status_code < 200

    @property
    def keeps_alive(self) -> bool:
        """Whether another exchange may follow on the connection (RFC 9112 section 9.3)."""
        options = ",".join(self.headers.getall("Connection", ())).lower().split(",")
        names = {option.strip() for option in options}
        if self.length is None and not self.is_chunked:
            return False
        return "close" not in names and (self.http_version != "HTTP/1.0" or "keep-alive" in names)


def split_head(data: bytes | bytearray, seen: int = 0) -> int:
    """The size of the head that `data` begins with; 0 where it is not complete.

    In the first `seen` bytes it has been looked for before.

    Raises:
        LimitExceeded: it is too large.
    """
    end = _END.search(data, max(seen - 2, 0))
    size = len(data) if end is None else end.end()
    if size > MAX_HEAD:
        raise LimitExceeded(f"the response head is larger than {MAX_HEAD} bytes")
    return 0 if end is None else size


def parse_head(raw: bytes, method: str) -> Head:
    """The head of a response to a request with `method`.

    Raises:
        RemoteProtocolError: it breaks the rules.
        LimitExceeded: it has too many fields.
    """
    first, *lines = [line.removesuffix(b"\r") for line in _FOLD.sub(b" ", raw).split(b"\n")[:-2]]
    status = _STATUS_LINE.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if status is None or None in fields:
        raise RemoteProtocolError("the response head is not valid HTTP/1.1")
    code, version = int(status[2]), f"HTTP/1.{status[1].decode()}"
    raw_headers = tuple((field[1], field[2]) for field in fields if field is not None)
    headers = decode_headers(raw_headers)
    check_head(code, version, headers)
    is_empty = method == "HEAD" or code in (204, 304) or code < 200
    return Head(
        status_code=code,
        reason_phrase=(status[3] or b"").decode("utf-8", "surrogateescape"),
        http_version=version,
        raw_headers=raw_headers,
        headers=headers,
        raw=raw,
        length=0 if is_empty else _length(headers.getall("Content-Length", ())),
        is_chunked=not is_empty and "Transfer-Encoding" in headers,
    )


def check_head(status_code: int, http_version: str, headers: CIMultiDictProxy[str]) -> None:
    """Refuse what libraries let through.

    Raises:
        RemoteProtocolError: another major version (RFC 9112 section 2.3), a 101 (nobody can have
            asked for it), two ways to frame the body (section 6.3: it may be an attempt to smuggle
            a response), or a transfer coding that we have not asked for.
    """
    if not http_version.startswith("HTTP/1."):
        raise RemoteProtocolError("the response is of another major version of HTTP")
    if status_code == 101:
        raise RemoteProtocolError("the peer switched to a protocol that nobody asked for")
    if "Transfer-Encoding" not in headers:
        return
    if "Content-Length" in headers:
        raise RemoteProtocolError("the response has Transfer-Encoding and Content-Length")
    if [coding.lower() for coding in headers.getall("Transfer-Encoding")] != ["chunked"]:
        raise RemoteProtocolError("the response has an unknown Transfer-Encoding")


def _length(values: Iterable[str]) -> int | None:
    lengths = {length.strip() for value in values for length in value.split(",")}
    if not lengths:
        return None
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise RemoteProtocolError("the Content-Length of the response is not one number")
    return int(length)


def decode_headers(raw_headers: RawHeaders) -> CIMultiDictProxy[str]:
    """For `Exchange.headers`.

    Raises:
        LimitExceeded: they are too many.
    """
    if len(raw_headers) > _MAX_FIELDS:
        raise LimitExceeded(f"the response head has more than {_MAX_FIELDS} fields")
    return CIMultiDictProxy(
        CIMultiDict(
            (name.decode("ascii"), value.decode("utf-8", "surrogateescape"))
            for name, value in raw_headers
        )
    )


def wire_fields(request: Request) -> list[tuple[bytes, bytes]]:
    """`Request.wire_headers` as bytes; space around a value is no part of it (RFC 9110 5.5)."""
    return [
        (name.encode(), value.strip(" \t").encode("utf-8", "surrogateescape"))
        for name, value in request.wire_headers()
    ]
