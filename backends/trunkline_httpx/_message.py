"""Header values, and content on its way out.

This module knows what of them the library does not. It does not know how either is framed.
"""

from __future__ import annotations

from typing import TypeAlias

from multidict import CIMultiDict, CIMultiDictProxy

from trunkline import LimitExceeded
from trunkline.http2 import RequestContent

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

_MAX_FIELDS = 1000


def encode_value(value: str) -> bytes:
    """A header value for the wire: space around it is not a part of it (RFC 9110 section 5.5)."""
    return value.strip(" \t").encode("utf-8", "surrogateescape")


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
