"""Content on its way out.

This module knows what of it the library does not. It does not know how it is framed.
"""

from __future__ import annotations

from trunkline.http1 import RequestContent


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
