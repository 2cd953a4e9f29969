"""What each of our errors is to the users of httpx and httpx2: one table.

This module knows the two trees of classes. It does not know requests: who raises sets those.
"""

from __future__ import annotations

from typing import Any

import trunkline

# By name, since the two libraries have the same ones. Two rules are behind the choices. Whoever
# sends again on ConnectError and ConnectTimeout, because nothing was sent, must be right. And where
# httpx's own transport fails in the same way, its users get the class they know.
NAMES: dict[type[trunkline.TransportError], str] = {
    trunkline.TransportError: "TransportError",
    trunkline.InvalidRequest: "LocalProtocolError",
    trunkline.TransportClosed: "TransportError",
    trunkline.UnsupportedOption: "UnsupportedProtocol",
    trunkline.BackendUnavailable: "UnsupportedProtocol",
    trunkline.EgressDenied: "ConnectError",
    trunkline.PoolFull: "PoolTimeout",
    trunkline.TransportTimeout: "TimeoutException",
    trunkline.PoolTimeout: "PoolTimeout",
    trunkline.ConnectTimeout: "ConnectTimeout",
    trunkline.WriteTimeout: "WriteTimeout",
    trunkline.HeadersTimeout: "ReadTimeout",
    trunkline.ReadTimeout: "ReadTimeout",
    trunkline.DeadlineExceeded: "ReadTimeout",
    trunkline.ConnectionFailed: "ConnectError",
    trunkline.DNSError: "ConnectError",
    trunkline.ConnectError: "ConnectError",
    trunkline.ProxyError: "ProxyError",
    trunkline.TLSError: "ConnectError",
    trunkline.CertificateError: "ConnectError",
    trunkline.NetworkError: "NetworkError",
    trunkline.WriteError: "WriteError",
    trunkline.RemoteDisconnected: "RemoteProtocolError",
    trunkline.BodyTruncated: "RemoteProtocolError",
    trunkline.ReadError: "ReadError",
    trunkline.RemoteProtocolError: "RemoteProtocolError",
    trunkline.LimitExceeded: "RemoteProtocolError",
    trunkline.StreamReset: "RemoteProtocolError",
    trunkline.StreamRefused: "RemoteProtocolError",
    trunkline.GoAway: "RemoteProtocolError",
    trunkline.DecodeError: "DecodingError",
    trunkline.DecompressionLimit: "DecodingError",
    trunkline.HTTPStatusError: "TransportError",  # of a transport that calls raise_for_status
}


def class_for(error: trunkline.TransportError, library: Any) -> Any:
    """The class of httpx or httpx2 for an error; for a subclass of ours, that of its base."""
    name = next(NAMES[one] for one in type(error).__mro__ if one in NAMES)
    return getattr(library, name)
