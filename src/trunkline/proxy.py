"""Which proxy, if any, a request to an origin goes through.

This module knows the config and, where it says `trust_env`, the environment. It does not know how
to speak to a proxy: that is the dialer's.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from trunkline._config import TransportConfig
from trunkline._errors import ProxyError
from trunkline._urls import Origin


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is and what it must be told.

    `scheme` is "http", "https", "socks5" (we resolve names) or "socks5h" (the proxy does).
    """

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def is_socks(self) -> bool:
        return self.scheme.startswith("socks")

    @property
    def authorization(self) -> str | None:
        """Value of `Proxy-Authorization` (RFC 7617); None without credentials."""
        if self.username is None:
            return None
        credentials = f"{self.username}:{self.password or ''}"
        return "Basic " + b64encode(credentials.encode()).decode()


def parse_proxy(url: str) -> Proxy:
    """Make a `Proxy` of a URL that `TransportConfig` has checked."""
    parts = URL(url)
    return Proxy(parts.scheme, parts.host or "", parts.port or 0, parts.user, parts.password)


def find_proxy(config: TransportConfig, origin: Origin) -> Proxy | None:
    """The proxy for `origin`: `config.proxy`, or with `trust_env` what the environment says.

    From the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, lower case first, read
    anew for each connection, as `urllib.request` does. NO_PROXY may also have networks
    ("10.0.0.0/8"), IPv6 addresses with brackets or without, and a scheme before any of its entries.

    Raises:
        ProxyError: what the environment says is no URL of a proxy.
    """
    if config.proxy is not None:
        return parse_proxy(config.proxy)
    if not config.trust_env:
        return None
    proxies = getproxies()
    if _is_excluded(origin, proxies.get("no", "")):
        return None
    name = origin.scheme if proxies.get(origin.scheme) else "all"
    url = proxies.get(name)
    return None if not url else _from_environment(f"{name.upper()}_PROXY", url)


def _is_excluded(origin: Origin, no_proxy: str) -> bool:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    names = (host, f"{host}:{origin.port}")
    if proxy_bypass(names[1]):  # where the environment is silent, the system's settings
        return True
    for entry in no_proxy.lower().split(","):
        scheme, _, rest = entry.strip().rpartition("://")
        if scheme in ("", "all", origin.scheme):
            name = rest.rstrip("/").lstrip(".")
            if name == "*" or any(f".{one}".endswith(f".{name}") for one in names if name):
                return True
            if _is_in_network(origin, name):
                return True
    return False


def _is_in_network(origin: Origin, name: str) -> bool:
    try:
        return ip_address(origin.host) in ip_network(name.strip("[]"), strict=False)
    except ValueError:  # one of them is a name
        return False


def _from_environment(name: str, url: str) -> Proxy:
    try:
        config = TransportConfig(proxy=url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise ProxyError(
            f"the environment variable {name} is no proxy's URL; "
            "write it as http://[user:password@]host:port"
        ) from error
    return parse_proxy(config.proxy or "")
