"""What a failure of an exchange means, by how far the exchange had come.

This module knows errors of sockets. It does not know the libraries that raise others.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import anyio

from trunkline._errors import (
    BodyTruncated,
    NetworkError,
    ReadError,
    RemoteDisconnected,
    RemoteProtocolError,
    TransportError,
    WriteError,
)


@dataclass(frozen=True, slots=True)
class Course:
    """How far an exchange had come when it failed.

    Attributes:
        written: the request has been handed to the operating system.
        started: a byte of the response has arrived.
        in_head: the final head of the response is not complete.
        ended: the end of what the peer sends has arrived.
    """

    written: bool = False
    started: bool = False
    in_head: bool = False
    ended: bool = False

    def lost(self) -> NetworkError:
        """The connection has ended."""
        if self.started:
            return BodyTruncated(
                "the peer ended the connection inside the response",
                phase="headers" if self.in_head else "body",
            )
        return RemoteDisconnected("the peer ended the connection before any byte of the response")

    def broken(self, error: BaseException) -> NetworkError:
        """The operating system says why it does not go on."""
        reason = getattr(error, "strerror", None) or type(error).__name__
        if self.written or self.started:
            return ReadError(f"the connection failed under the response: {reason}")
        return WriteError(f"the connection failed under the request: {reason}")

    def failure(self, error: BaseException) -> TransportError:
        """What `error` means. Trunkline's own is looked for among its causes, then the socket's."""
        for cause in causes(error):
            if isinstance(cause, TransportError):
                return cause
            if isinstance(cause, (ssl.SSLEOFError, ConnectionError, anyio.ClosedResourceError)):
                return self.lost()
            if isinstance(cause, OSError):
                return self.broken(cause)
        return self.lost() if self.ended else RemoteProtocolError("the response is no HTTP/1.1")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
