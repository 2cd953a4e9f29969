"""aiohttp's exceptions as Trunkline's, in two tables: while connecting, and during an exchange.

This module knows what each exception of aiohttp means. It does not know when which is raised.
"""

from __future__ import annotations

import ssl

import aiohttp
from aiohttp import http_exceptions

import trunkline
from trunkline import Dial, TransportError

# Most specific first.
WHILE_CONNECTING: tuple[tuple[type[BaseException], type[TransportError], str], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        trunkline.CertificateError,
        "the server's certificate was not accepted",
    ),
    (ssl.CertificateError, trunkline.CertificateError, "the server's certificate was not accepted"),
    (aiohttp.ClientSSLError, trunkline.TLSError, "the TLS handshake failed"),
    (ssl.SSLError, trunkline.TLSError, "the TLS handshake failed"),
    (aiohttp.ClientHttpProxyError, trunkline.ProxyError, "the proxy refused to connect"),
    (aiohttp.ClientProxyConnectionError, trunkline.ProxyError, "the proxy could not be reached"),
    (aiohttp.ClientConnectorDNSError, trunkline.DNSError, "the name could not be resolved"),
    (aiohttp.ClientConnectorError, trunkline.ConnectError, "the connection failed"),
    (aiohttp.InvalidURL, trunkline.InvalidRequest, "url: aiohttp cannot use the host"),
    (aiohttp.ClientError, trunkline.ConnectError, "the connection failed"),
    (http_exceptions.HttpProcessingError, trunkline.ProxyError, "the proxy's answer is not HTTP"),
    (OSError, trunkline.ConnectError, "the connection failed"),
)

# The second class is for a response whose head has arrived.
DURING_EXCHANGE: tuple[
    tuple[type[BaseException], type[TransportError], type[TransportError], str], ...
] = (
    (
        http_exceptions.LineTooLong,
        trunkline.LimitExceeded,
        trunkline.LimitExceeded,
        "a line of the response is longer than allowed",
    ),
    (
        http_exceptions.HttpProcessingError,
        trunkline.RemoteProtocolError,
        trunkline.RemoteProtocolError,
        "the response is not valid HTTP",
    ),
    (
        aiohttp.ClientPayloadError,
        trunkline.RemoteDisconnected,
        trunkline.BodyTruncated,
        "the connection ended inside the response",
    ),
    (
        aiohttp.ServerConnectionError,
        trunkline.RemoteDisconnected,
        trunkline.BodyTruncated,
        "the peer ended the connection",
    ),
    (ssl.SSLError, trunkline.ReadError, trunkline.ReadError, "the TLS connection failed"),
    (
        aiohttp.ClientError,
        trunkline.RemoteDisconnected,
        trunkline.BodyTruncated,
        "the connection was lost",
    ),
    (
        OSError,
        trunkline.RemoteDisconnected,
        trunkline.BodyTruncated,
        "the connection was lost",
    ),
)


def connect_error(error: BaseException, dial: Dial, *, proxied: bool) -> TransportError:
    """What an exception of `open_socket` means; the caller raises it `from` the exception."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return trunkline.ProxyError(f"the proxy refused to connect: status {error.status}")
    for library, ours, message in WHILE_CONNECTING:
        if isinstance(error, library):
            if proxied and dial.phase in ("connect", "proxy") and ours is trunkline.ConnectError:
                return trunkline.ProxyError("the proxy ended the connection")
            translated = ours(_with_reason(message, error))
            if ours is trunkline.ConnectError:
                translated.phase = dial.phase
            return translated
    raise error


def exchange_error(error: BaseException, *, has_head: bool, started: bool) -> TransportError:
    """What an exception of the protocol means; the caller makes the exception its cause."""
    cause = error.__cause__
    if isinstance(cause, http_exceptions.BadHttpMessage) and _is_over_a_limit(cause):
        return trunkline.LimitExceeded("the response head is larger than allowed")
    for library, before, inside, message in DURING_EXCHANGE:
        if isinstance(error, library):
            ours = inside if has_head else before
            if has_head:
                return _in_body(ours(message))
            if ours is trunkline.RemoteDisconnected and started:
                # Some bytes of the head came: the peer had begun to answer.
                return trunkline.BodyTruncated(
                    "the connection ended inside the response head",
                    phase="headers",
                    response_started=True,
                )
            return ours(message)
    raise error


def _in_body(error: TransportError) -> TransportError:
    error.phase = "body"
    return error


def _is_over_a_limit(error: http_exceptions.BadHttpMessage) -> bool:
    # Too many header fields have no class of their own.
    return isinstance(error, http_exceptions.LineTooLong) or "Too many headers" in error.message


def _with_reason(message: str, error: BaseException) -> str:
    """The reason of the operating system or OpenSSL, which names no secret."""
    inner = getattr(error, "os_error", None) or error
    reason = getattr(inner, "verify_message", None) or getattr(inner, "reason", None)
    reason = reason or getattr(inner, "strerror", None)
    return f"{message}: {reason}" if isinstance(reason, str) and reason else message
