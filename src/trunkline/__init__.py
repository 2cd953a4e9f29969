"""One HTTP transport layer with one pool, for programs that call LLM and AI APIs.

Every public name is here and is loaded when it is first used, so that `import trunkline` costs next
to nothing. This module knows where names live and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trunkline._version import __version__ as __version__

if TYPE_CHECKING:
    from trunkline._bodies import BodyStream as BodyStream
    from trunkline._client import Client as Client
    from trunkline._config import (
        Dns as Dns,
        Limits as Limits,
        Timeouts as Timeouts,
        Tls as Tls,
        TransportConfig as TransportConfig,
        load_config as load_config,
    )
    from trunkline._contract import (
        Attempt as Attempt,
        BegunExchange as BegunExchange,
        Capabilities as Capabilities,
        Connection as Connection,
        Dial as Dial,
        Dialer as Dialer,
        Exchange as Exchange,
        OriginSnapshot as OriginSnapshot,
        PoolSnapshot as PoolSnapshot,
        Transport as Transport,
    )
    from trunkline._errors import (
        BackendUnavailable as BackendUnavailable,
        BodyTruncated as BodyTruncated,
        CertificateError as CertificateError,
        ConnectError as ConnectError,
        ConnectionFailed as ConnectionFailed,
        ConnectTimeout as ConnectTimeout,
        DeadlineExceeded as DeadlineExceeded,
        DecodeError as DecodeError,
        DecompressionLimit as DecompressionLimit,
        DNSError as DNSError,
        EgressDenied as EgressDenied,
        GoAway as GoAway,
        HeadersTimeout as HeadersTimeout,
        HTTPStatusError as HTTPStatusError,
        InvalidRequest as InvalidRequest,
        LimitExceeded as LimitExceeded,
        NetworkError as NetworkError,
        Phase as Phase,
        PoolFull as PoolFull,
        PoolTimeout as PoolTimeout,
        ProxyError as ProxyError,
        ReadError as ReadError,
        ReadTimeout as ReadTimeout,
        RemoteDisconnected as RemoteDisconnected,
        RemoteProtocolError as RemoteProtocolError,
        StreamRefused as StreamRefused,
        StreamReset as StreamReset,
        TLSError as TLSError,
        TransportClosed as TransportClosed,
        TransportError as TransportError,
        TransportTimeout as TransportTimeout,
        UnsupportedOption as UnsupportedOption,
        WriteError as WriteError,
        WriteTimeout as WriteTimeout,
    )
    from trunkline._events import Event as Event, Observer as Observer
    from trunkline._messages import (
        ConnectionInfo as ConnectionInfo,
        Request as Request,
        Response as Response,
        Timings as Timings,
    )
    from trunkline._registry import (
        available_backends as available_backends,
        open_transport as open_transport,
    )
    from trunkline._sse import ServerSentEvent as ServerSentEvent
    from trunkline._urls import Origin as Origin
    from trunkline_aiohttp import AiohttpTransport as AiohttpTransport
    from trunkline_httpx import HttpxTransport as HttpxTransport


_HOMES = {
    "trunkline._client": "Client",
    "trunkline._config": "Dns Limits Timeouts Tls TransportConfig load_config",
    "trunkline._bodies": "BodyStream",
    "trunkline._contract": "Attempt BegunExchange Capabilities Connection Dial Dialer Exchange "
    "OriginSnapshot PoolSnapshot Transport",
    "trunkline._errors": "BackendUnavailable BodyTruncated CertificateError ConnectError "
    "ConnectTimeout ConnectionFailed DNSError DeadlineExceeded DecodeError DecompressionLimit "
    "EgressDenied GoAway HTTPStatusError HeadersTimeout InvalidRequest LimitExceeded NetworkError "
    "Phase PoolFull PoolTimeout ProxyError ReadError ReadTimeout RemoteDisconnected "
    "RemoteProtocolError StreamRefused StreamReset TLSError TransportClosed TransportError "
    "TransportTimeout UnsupportedOption WriteError WriteTimeout",
    "trunkline._events": "Event Observer",
    "trunkline._messages": "ConnectionInfo Request Response Timings",
    "trunkline._registry": "available_backends open_transport",
    "trunkline._sse": "ServerSentEvent",
    "trunkline._urls": "Origin",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_BACKEND_OF = {"AiohttpTransport": "aiohttp", "HttpxTransport": "httpx"}

__all__ = tuple(_HOME_OF) + tuple(_BACKEND_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    elif name in _BACKEND_OF:
        value = import_module("trunkline._registry").load_backend(_BACKEND_OF[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
