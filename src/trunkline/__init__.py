"""One HTTP transport layer with one pool, for programs that call LLM and AI APIs.

Every public name is here and is loaded when it is first used, so that `import trunkline` costs next
to nothing. This module knows where names live and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trunkline._version import __version__ as __version__

if TYPE_CHECKING:
    from trunkline._client import Client as Client
    from trunkline._config import (
        Dns as Dns,
    )
    from trunkline._config import (
        Limits as Limits,
    )
    from trunkline._config import (
        Timeouts as Timeouts,
    )
    from trunkline._config import (
        Tls as Tls,
    )
    from trunkline._config import (
        TransportConfig as TransportConfig,
    )
    from trunkline._config import (
        load_config as load_config,
    )
    from trunkline._contract import (
        Attempt as Attempt,
    )
    from trunkline._contract import (
        Capabilities as Capabilities,
    )
    from trunkline._contract import (
        Connection as Connection,
    )
    from trunkline._contract import (
        Dial as Dial,
    )
    from trunkline._contract import (
        Dialer as Dialer,
    )
    from trunkline._contract import (
        Exchange as Exchange,
    )
    from trunkline._contract import (
        OriginSnapshot as OriginSnapshot,
    )
    from trunkline._contract import (
        PoolSnapshot as PoolSnapshot,
    )
    from trunkline._contract import (
        Transport as Transport,
    )
    from trunkline._errors import (
        BackendUnavailable as BackendUnavailable,
    )
    from trunkline._errors import (
        BodyTruncated as BodyTruncated,
    )
    from trunkline._errors import (
        CertificateError as CertificateError,
    )
    from trunkline._errors import (
        ConnectError as ConnectError,
    )
    from trunkline._errors import (
        ConnectionFailed as ConnectionFailed,
    )
    from trunkline._errors import (
        ConnectTimeout as ConnectTimeout,
    )
    from trunkline._errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from trunkline._errors import (
        DecodeError as DecodeError,
    )
    from trunkline._errors import (
        DecompressionLimit as DecompressionLimit,
    )
    from trunkline._errors import (
        DNSError as DNSError,
    )
    from trunkline._errors import (
        EgressDenied as EgressDenied,
    )
    from trunkline._errors import (
        GoAway as GoAway,
    )
    from trunkline._errors import (
        HeadersTimeout as HeadersTimeout,
    )
    from trunkline._errors import (
        HTTPStatusError as HTTPStatusError,
    )
    from trunkline._errors import (
        InvalidRequest as InvalidRequest,
    )
    from trunkline._errors import (
        LimitExceeded as LimitExceeded,
    )
    from trunkline._errors import (
        NetworkError as NetworkError,
    )
    from trunkline._errors import (
        Phase as Phase,
    )
    from trunkline._errors import (
        PoolFull as PoolFull,
    )
    from trunkline._errors import (
        PoolTimeout as PoolTimeout,
    )
    from trunkline._errors import (
        ProxyError as ProxyError,
    )
    from trunkline._errors import (
        ReadError as ReadError,
    )
    from trunkline._errors import (
        ReadTimeout as ReadTimeout,
    )
    from trunkline._errors import (
        RemoteDisconnected as RemoteDisconnected,
    )
    from trunkline._errors import (
        RemoteProtocolError as RemoteProtocolError,
    )
    from trunkline._errors import (
        StreamRefused as StreamRefused,
    )
    from trunkline._errors import (
        StreamReset as StreamReset,
    )
    from trunkline._errors import (
        TLSError as TLSError,
    )
    from trunkline._errors import (
        TransportClosed as TransportClosed,
    )
    from trunkline._errors import (
        TransportError as TransportError,
    )
    from trunkline._errors import (
        TransportTimeout as TransportTimeout,
    )
    from trunkline._errors import (
        UnsupportedOption as UnsupportedOption,
    )
    from trunkline._errors import (
        WriteError as WriteError,
    )
    from trunkline._errors import (
        WriteTimeout as WriteTimeout,
    )
    from trunkline._events import Event as Event
    from trunkline._events import Observer as Observer
    from trunkline._messages import (
        BodyStream as BodyStream,
    )
    from trunkline._messages import (
        ConnectionInfo as ConnectionInfo,
    )
    from trunkline._messages import (
        Origin as Origin,
    )
    from trunkline._messages import (
        Request as Request,
    )
    from trunkline._messages import (
        Response as Response,
    )
    from trunkline._messages import (
        Timings as Timings,
    )
    from trunkline._registry import (
        available_backends as available_backends,
    )
    from trunkline._registry import (
        open_transport as open_transport,
    )
    from trunkline._sse import ServerSentEvent as ServerSentEvent
    from trunkline_aiohttp import AiohttpTransport as AiohttpTransport
    from trunkline_httpx import HttpxTransport as HttpxTransport


_HOMES = {
    "trunkline._client": "Client",
    "trunkline._config": "Dns Limits Timeouts Tls TransportConfig load_config",
    "trunkline._contract": "Attempt Capabilities Connection Dial Dialer Exchange OriginSnapshot "
    "PoolSnapshot Transport",
    "trunkline._errors": "BackendUnavailable BodyTruncated CertificateError ConnectError "
    "ConnectTimeout ConnectionFailed DNSError DeadlineExceeded DecodeError DecompressionLimit "
    "EgressDenied GoAway HTTPStatusError HeadersTimeout InvalidRequest LimitExceeded NetworkError "
    "Phase PoolFull PoolTimeout ProxyError ReadError ReadTimeout RemoteDisconnected "
    "RemoteProtocolError StreamRefused StreamReset TLSError TransportClosed TransportError "
    "TransportTimeout UnsupportedOption WriteError WriteTimeout",
    "trunkline._events": "Event Observer",
    "trunkline._messages": "BodyStream ConnectionInfo Origin Request Response Timings",
    "trunkline._registry": "available_backends open_transport",
    "trunkline._sse": "ServerSentEvent",
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
