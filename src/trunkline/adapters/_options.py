"""From the arguments of the libraries' clients to a `TransportConfig`.

This module knows what `verify=`, `limits=` and the others mean, and which of them we cannot honour.
It does not know clients.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from yarl import URL

from trunkline import Limits, Timeouts, Tls, TransportConfig, UnsupportedOption

SHAPING = ("verify", "cert", "http1", "http2", "limits", "proxy", "trust_env")
"""The arguments that shape the transport; all others are the client's own."""

# What the SDKs' own clients have: DEFAULT_TIMEOUT and DEFAULT_CONNECTION_LIMITS of openai and
# anthropic. An idle connection is kept as long as our default says, not httpx's 5 s.
_TIMEOUTS = Timeouts(connect=5.0, read=600.0, write=600.0, pool=600.0)
_LIMITS = Limits(max_connections=1000, max_keepalive_connections=100)

_PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def make_config(config: TransportConfig | None, options: dict[str, Any]) -> TransportConfig:
    """The config with the arguments in it; where both are silent, what the SDKs have.

    Raises:
        UnsupportedOption: an argument cannot be honoured; the message says what to do instead.
        pydantic.ValidationError: a value is wrong.
    """
    given = config or TransportConfig()
    fields: dict[str, Any] = {
        "limits": _over(_LIMITS, given.limits),
        "timeouts": _over(_TIMEOUTS, given.timeouts),
    }
    if "trust_env" not in given.model_fields_set and given.uds is None:
        fields["trust_env"] = True  # the libraries' default
    fields.update(_fields_of(given, options))
    kept = {name: getattr(given, name) for name in given.model_fields_set}
    return TransportConfig(**(kept | fields))


def timeout_arguments(timeouts: Timeouts) -> dict[str, float | None]:
    """The arguments of the libraries' `Timeout`."""
    return {name: getattr(timeouts, name) for name in ("connect", "read", "write", "pool")}


def _over(defaults: Any, given: Any) -> Any:
    return defaults.model_copy(update={k: getattr(given, k) for k in given.model_fields_set})


def _fields_of(config: TransportConfig, options: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: options[name] for name in ("http2", "trust_env") if name in options
    }
    if not options.get("http1", True):
        raise UnsupportedOption("http1=False: HTTP/1.1 cannot be ruled out; leave it out")
    if "limits" in options:
        fields["limits"] = _limits(config.limits, options["limits"])
    if options.get("proxy") is not None:
        fields["proxy"] = _proxy(options["proxy"])
    verify = options.get("verify", True)
    tls = _verify(verify) | _cert(options.get("cert"), verify)
    if tls:
        kept = {name: getattr(config.tls, name) for name in config.tls.model_fields_set}
        fields["tls"] = Tls(**(kept | tls))
    return fields


def _limits(ours: Limits, theirs: Any) -> Limits:
    names = ("max_connections", "max_keepalive_connections", "keepalive_expiry")
    return Limits(**(dict(ours) | {name: getattr(theirs, name) for name in names}))


def _proxy(proxy: Any) -> str:
    headers, context = getattr(proxy, "headers", None), getattr(proxy, "ssl_context", None)
    if headers or context is not None:
        what = "headers" if headers else "ssl_context"
        raise UnsupportedOption(f"proxy: {what} of a Proxy cannot be sent; give its URL only")
    given, auth = str(getattr(proxy, "url", proxy)), getattr(proxy, "auth", None)
    try:
        url = URL(given)
    except ValueError:
        return given  # which the config refuses
    if auth is not None:
        url = url.with_user(auth[0]).with_password(auth[1])
    if url.explicit_port is None:
        url = url.with_port(_PROXY_PORTS.get(url.scheme))
    return str(url)


def _verify(verify: Any) -> dict[str, Any]:
    if verify is True:
        return {}
    if verify is False:
        return {"verify": False}
    if isinstance(verify, ssl.SSLContext):
        return {"context": verify}
    if Path(verify).is_dir():
        raise UnsupportedOption("verify: a folder is not supported; give the path of a PEM file")
    return {"ca_file": verify}


def _cert(cert: Any, verify: Any) -> dict[str, Any]:
    if cert and isinstance(verify, ssl.SSLContext):
        raise UnsupportedOption("cert: cannot go with an SSLContext; call its load_cert_chain")
    parts: tuple[Any, ...] = (cert,) if isinstance(cert, (str, Path)) else tuple(cert or ())
    names = ("client_cert", "client_key", "client_key_password")
    return {name: part for name, part in zip(names, parts, strict=False) if part is not None}
