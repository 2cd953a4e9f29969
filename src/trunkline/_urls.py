"""URLs as HTTP needs them: where to connect, and what to ask there.

This module knows RFC 3986 as far as http and https go. It does not know requests.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import quote

from trunkline._errors import InvalidRequest

_BAD_IN_URL = re.compile("[\x00-\x1f\x7f]")
_HOST = re.compile(r"[0-9a-z._~!$&'()*+,;=-]+\Z")  # RFC 3986 section 3.2.2, less "%"
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)  # RFC 3986 appendix B
_AUTHORITY = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]+))(?::([0-9]{0,5}))?\Z")
_BAD_IN_TARGET = re.compile(r"[^\x21-\x7e]")  # RFC 9112 section 3.2: no whitespace
_KEPT_IN_TARGET = "!#$%&'()*+,/:;=?@[]~"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port: what a connection is to. An IPv6 host has no brackets."""

    scheme: str
    host: str
    port: int

    @property
    def is_tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The `Host` header: the port is left out where it is the scheme's own."""
        return _authority(self)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@lru_cache(maxsize=1024)
def _authority(origin: Origin) -> str:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return host if origin.port == _DEFAULT_PORTS[origin.scheme] else f"{host}:{origin.port}"


class Target(NamedTuple):
    """A URL as HTTP needs it: the origin, and path with query as they go on the wire."""

    origin: Origin
    path: str


@lru_cache(maxsize=1024)
def parse_url(url: str) -> Target:
    """Split an absolute http or https URL.

    What is legal goes on the wire byte for byte (a signed `%2C` stays `%2C`); spaces and characters
    outside ASCII are percent-encoded, the fragment is left out.

    Raises:
        InvalidRequest: it says what is wrong, and never shows the URL.
    """
    if _BAD_IN_URL.search(url):
        raise InvalidRequest("url: it contains a control character; percent-encode it")
    parts = _URL.match(url)
    if parts is None:
        raise InvalidRequest("url: it must be absolute and start with http:// or https://")
    scheme, authority, path = parts[1].lower(), parts[2], parts[3]
    if "@" in authority:
        raise InvalidRequest("url: it contains userinfo; send an Authorization header instead")
    origin = _parse_authority(scheme, authority)
    try:
        path = quote(path if path.startswith("/") else f"/{path}", safe=_KEPT_IN_TARGET)
    except UnicodeEncodeError as error:
        raise InvalidRequest("url: it contains a lone surrogate") from error
    return Target(origin, path)


def check_target(target: Target) -> Target:
    """`target` itself, whose path goes on the wire byte for byte.

    Raises:
        InvalidRequest: the path is empty, or has a space or a character outside printable ASCII.
    """
    if not target.path or _BAD_IN_TARGET.search(target.path):
        raise InvalidRequest("url: the path contains a space or a character outside ASCII")
    return target


def _parse_authority(scheme: str, authority: str) -> Origin:
    parts = _AUTHORITY.match(authority)
    if parts is None:
        raise InvalidRequest("url: its host and port are not of the form host:port or [IPv6]:port")
    port = int(parts[3]) if parts[3] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise InvalidRequest("url: its port is not between 1 and 65535")
    host = _parse_host(parts[2].lower()) if parts[1] is None else _parse_ipv6(parts[1].lower())
    return Origin(scheme, host, port)


def _parse_ipv6(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError as error:
        raise InvalidRequest("url: what is in brackets is not an IPv6 address") from error
    if address.scope_id is not None:
        raise InvalidRequest("url: an IPv6 address with a zone is not supported")
    return host


def _parse_host(host: str) -> str:
    if not host.isascii():
        from yarl import URL

        try:
            host = URL.build(scheme="http", host=host).raw_host or ""
        except ValueError as error:
            raise InvalidRequest("url: the host is no valid international name") from error
    if not _HOST.match(host):
        raise InvalidRequest("url: the host contains a character that no host name has")
    return host
