"""pyreqwest's exceptions as Trunkline's.

This module knows what the library says of a failure: a class that often names no more than the
neighbourhood ("ConnectError" is also a response that never came), and the messages of its causes,
by which they are told apart. It does not know when which is raised.
"""

from __future__ import annotations

from collections.abc import Callable

from pyreqwest import exceptions

import trunkline
from trunkline import TransportError

_Make = Callable[[str], TransportError]

# What the causes say, most specific first. No message of the library is passed on: they hold URLs.
_CONNECTING: tuple[tuple[str, _Make, str], ...] = (
    ("dns error", trunkline.DNSError, "the name could not be resolved"),
    ("authorization required", trunkline.ProxyError, "the proxy wants other credentials (407)"),
    ("tunnel error", trunkline.ProxyError, "the proxy did not connect us"),
    ("tcp connect error", trunkline.ConnectError, "the connection failed"),
    ("socks", trunkline.ProxyError, "the proxy did not connect us"),
    ("invalid peer certificate", trunkline.CertificateError, "the certificate was not accepted"),
    ("", trunkline.TLSError, "the TLS handshake failed"),
)
_WAITING: tuple[tuple[str, _Make, str], ...] = (
    ("refused stream", trunkline.StreamRefused, "the server did not take the stream"),
    ("stream error received", trunkline.StreamReset, "the server reset the stream"),
    ("go away", trunkline.GoAway, "the server closed the HTTP/2 connection"),
    ("http2 error", trunkline.RemoteProtocolError, "the response is not HTTP/2"),
    ("head is too large", trunkline.LimitExceeded, "the response head is too large"),
    ("fatal alert", trunkline.RemoteDisconnected, "the server ended TLS before the response"),
    ("connection closed", trunkline.RemoteDisconnected, "the server ended the connection"),
    ("connection error", trunkline.RemoteDisconnected, "the server ended the connection"),
    ("os error", trunkline.RemoteDisconnected, "the server ended the connection"),
    ("canceled", trunkline.RemoteDisconnected, "the connection ended"),
)
_READING: tuple[tuple[str, _Make, str], ...] = (
    ("stream error received", trunkline.StreamReset, "the server reset the stream"),
    ("end of file", trunkline.BodyTruncated, "the connection ended inside the body"),
    ("eof", trunkline.BodyTruncated, "the connection ended inside the body"),
    ("close_notify", trunkline.BodyTruncated, "the connection ended inside the body"),
    ("os error", trunkline.ReadError, "the connection failed inside the body"),
    ("invalid chunk", trunkline.RemoteProtocolError, "the body is not framed as HTTP asks"),
    ("chunk", trunkline.LimitExceeded, "the framing of the body is too large"),
)


def translate(error: Exception, *, in_body: bool, by_proxy: bool) -> TransportError | None:
    """Trunkline's error for one of pyreqwest's; None for any other."""
    if not isinstance(error, exceptions.PyreqwestError):
        return None
    if isinstance(error, exceptions.ClientClosedError):
        return trunkline.TransportClosed("the transport was closed meanwhile")
    if isinstance(error, exceptions.BuilderError):
        return trunkline.InvalidRequest("url, method or header: pyreqwest cannot send it")
    said = _causes(error)
    if "client error (connect)" in said:
        return _not_connected(error, said, by_proxy=by_proxy)
    table = _READING if in_body else _WAITING
    for words, make, message in table:
        if words in said:
            return make(message)
    if isinstance(error, exceptions.DecodeError):
        return trunkline.RemoteProtocolError("the response is not valid HTTP")
    return trunkline.ReadError("the connection failed") if in_body else (
        trunkline.RemoteDisconnected("the connection failed"))  # fmt: skip


def _causes(error: exceptions.PyreqwestError) -> str:
    details = error.details if isinstance(error, exceptions.DetailedPyreqwestError) else None
    causes = details["causes"] if details is not None else None
    # The first names the URL, which may say anything.
    return "\n".join(cause["message"] for cause in (causes or [])[1:]).lower()


def _not_connected(error: Exception, said: str, *, by_proxy: bool) -> TransportError:
    if isinstance(error, exceptions.RequestTimeoutError):
        phase: trunkline.Phase = "connect" if "tcp connect" in said else "tls"
        return trunkline.ConnectTimeout("no connection in time", phase=phase)
    for words, make, message in _CONNECTING:
        if words in said:
            if by_proxy and make in (trunkline.DNSError, trunkline.ConnectError):
                return trunkline.ProxyError("the proxy could not be reached")
            return make(message)
    raise AssertionError("the last row takes everything")
