"""Header fields as HTTP/2 has them, both ways.

This module knows RFC 9113 section 8 and RFC 9110 section 5. It does not know frames or streams.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from hpack import NeverIndexedHeaderTuple
from multidict import CIMultiDict, CIMultiDictProxy

from trunkline._errors import LimitExceeded, RemoteProtocolError
from trunkline._messages import Request

Fields: TypeAlias = Sequence[tuple[bytes, bytes]]

_MAX_FIELDS = 1000
_LONGEST_KEPT_NAME = 64
_SHORT_COOKIE = 20
_CONNECTION_FIELDS = frozenset(  # RFC 9113 section 8.2.2
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
_SECRETS = frozenset(  # RFC 7541 section 7.1.3
    {b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"x-goog-api-key"}
)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")  # RFC 9113 section 8.2.1: no upper case
_BAD_IN_VALUES = re.compile(rb"[\x00\r]|\n[ \t]|[ \t]\n")
_STATUS = re.compile(rb"[1-9][0-9]{2}\Z")


# -- out -------------------------------------------------------------------------------------------


def encode_head(request: Request) -> list[tuple[bytes, bytes]]:
    """The header fields of `request`, without those that only HTTP/1.1 has.

    `Request` has refused what no version may send: CR, LF and NUL, names that are no tokens.
    """
    origin = request.origin
    authority: str | None = None
    dropped = _named_by_connection(request)
    fields = [
        (b":method", request.method.encode()),
        (b":scheme", origin.scheme.encode()),
        (b":authority", b""),
        (b":path", request.path.encode()),
    ]
    for cased_name, value in request.wire_headers():
        name = _wire_name(cased_name)
        if name == b"host":
            authority = value
        elif name is not None and (not dropped or name not in dropped):
            if name in _SECRETS or (name == b"cookie" and len(value) < _SHORT_COOKIE):
                fields.append(NeverIndexedHeaderTuple(name, _encode(value)))
            elif name != b"te" or value == "trailers":
                fields.append((name, _encode(value)))
    fields[2] = (b":authority", _encode(origin.authority if authority is None else authority))
    return fields


@lru_cache(maxsize=512)
def _wire_name(name: str) -> bytes | None:
    lowered = name.lower()
    return None if lowered in _CONNECTION_FIELDS else lowered.encode()


def _named_by_connection(request: Request) -> frozenset[bytes]:
    """What `Connection` says is for this connection only (RFC 9110 section 7.6.1)."""
    if "Connection" not in request.headers:
        return frozenset()
    named = ",".join(request.headers.getall("Connection")).lower().split(",")
    return frozenset(name.strip().encode("utf-8", "surrogateescape") for name in named)


def _encode(value: str) -> bytes:
    # Space around a value is not a part of it (RFC 9110 section 5.5).
    return value.strip(" \t").encode("utf-8", "surrogateescape")


# -- in --------------------------------------------------------------------------------------------


class Head:
    """A response head that is as it must be.

    Attributes:
        length: what `content-length` says of the body, None where nothing does.
    """

    __slots__ = ("headers", "length", "raw_headers", "status_code")

    def __init__(self, fields: Fields) -> None:
        """
        Raises:
            LimitExceeded: there are too many fields.
            RemoteProtocolError: the head is malformed (RFC 9113 section 8.1.1).
        """
        if not fields or fields[0][0] != b":status" or not _STATUS.match(fields[0][1]):
            raise RemoteProtocolError("the response head has no valid :status")
        self.status_code = int(fields[0][1])
        raw = tuple(fields[1:])
        pairs = _decode_fields(raw)
        headers = CIMultiDict(pairs)
        if "cookie" in headers:  # RFC 9113 section 8.2.3
            headers["cookie"] = "; ".join(headers.popall("cookie"))
        self.raw_headers = raw
        self.headers = CIMultiDictProxy(headers)
        self.length = _length(headers) if "content-length" in headers else None


def check_trailers(fields: Fields) -> None:
    """Trailers have the same rules as other fields, and no pseudo-header (RFC 9113 section 8.1).

    Raises:
        LimitExceeded, RemoteProtocolError: as `Head`.
    """
    _decode_fields(fields)


def _decode_fields(fields: Fields) -> list[tuple[str, str]]:
    if len(fields) > _MAX_FIELDS:
        raise LimitExceeded(f"the response head has more than {_MAX_FIELDS} fields")
    # All values at once: a regular expression and a decoder cost more to call than to run.
    joined = b"\n".join([b"", *(value for _, value in fields), b""])
    if _BAD_IN_VALUES.search(joined) or joined.count(b"\n") != len(fields) + 1:
        raise RemoteProtocolError(
            "the response head has a value with CR, LF, NUL or space around it"
        )
    values = joined.decode("utf-8", "surrogateescape").split("\n")
    return [
        (_decode_name(name), value) for (name, _), value in zip(fields, values[1:-1], strict=True)
    ]


def _decode_name(name: bytes) -> str:
    return _known_name(name) if len(name) <= _LONGEST_KEPT_NAME else _check_name(name)


def _check_name(name: bytes) -> str:
    if not _NAME.match(name):
        raise RemoteProtocolError("a name in the response head is not valid HTTP/2")
    text = name.decode("ascii")
    if text in _CONNECTION_FIELDS:
        raise RemoteProtocolError("the response head has a field of HTTP/1.1's connections")
    return text


_known_name = lru_cache(maxsize=512)(_check_name)


def _length(headers: CIMultiDict[str]) -> int:
    lengths = set(headers.getall("content-length"))
    length = lengths.pop()
    if lengths or not length.isascii() or not length.isdigit() or len(length) > 18:
        raise RemoteProtocolError("the response head has no valid content-length")
    return int(length)
