"""Names to addresses, with one cache semantics on every backend.

This module knows the cache, coalescing and two resolvers: aiodns (asyncio) and the system's. It
does not know who connects to the addresses.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from time import monotonic
from typing import Any

import anyio

from trunkline._config import Dns
from trunkline._errors import DNSError, UnsupportedOption

_STALE_SECONDS = 3600.0
_MAX_NAMES = 1000


class _Lookup:
    """A look-up under way; those who want the same name wait for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: DNSError | None = None


class Resolver:
    """Resolves host names for one event loop.

    Concurrent look-ups of a name are one; an answer is kept for `dns.ttl` seconds, and used past
    that while the resolver fails, if `dns.stale_on_error`.

    Raises:
        UnsupportedOption: aiodns was asked for on trio.
    """

    def __init__(self, dns: Dns, *, trio: bool = False) -> None:
        if trio and dns.resolver == "aiodns":
            raise UnsupportedOption("dns.resolver: aiodns needs asyncio; use 'auto' or 'system'")
        self._dns = dns
        self._use_aiodns = not trio and dns.resolver != "system"
        self._aiodns: Any = None
        self._cache: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._lookups: dict[str, _Lookup] = {}

    async def resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of `host`, at least one, in the order to try them.

        Raises:
            DNSError: it has none, or the resolver failed.
        """
        if _is_address(host):
            return (host,)
        while True:
            cached = self._cache.get(host)
            if cached is not None and monotonic() - cached[0] < self._dns.ttl:
                return cached[1]
            lookup = self._lookups.get(host)
            if lookup is None:
                return await self._look_up(host)
            await lookup.done.wait()
            if lookup.error is not None:
                # An exception object belongs to one caller: its traceback and facts are written to.
                raise DNSError(str(lookup.error)) from lookup.error.__cause__
            if self._dns.ttl == 0 and host in self._cache:
                return self._cache[host][1]

    async def _look_up(self, host: str) -> tuple[str, ...]:
        lookup = self._lookups[host] = _Lookup()
        try:
            addresses = await self._ask(host)
        except DNSError as error:
            stale = self._stale(host)
            if stale is None:
                lookup.error = error
                raise
            return stale
        finally:
            # A cancelled look-up leaves no error: one of those who wait asks again.
            del self._lookups[host]
            lookup.done.set()
        if len(self._cache) >= _MAX_NAMES:
            del self._cache[next(iter(self._cache))]
        self._cache[host] = (monotonic(), addresses)
        return addresses

    def _stale(self, host: str) -> tuple[str, ...] | None:
        cached = self._cache.get(host)
        if cached is None or not self._dns.stale_on_error:
            return None
        age = monotonic() - cached[0]
        return cached[1] if age < self._dns.ttl + _STALE_SECONDS else None

    async def _ask(self, host: str) -> tuple[str, ...]:
        ask = self._ask_aiodns if self._use_aiodns else _ask_system
        addresses = tuple(dict.fromkeys(await ask(host)))
        if not addresses:
            raise DNSError(f"{host!r} has no address")
        return addresses

    async def _ask_aiodns(self, host: str) -> list[str]:
        import aiodns

        if self._aiodns is None:
            self._aiodns = aiodns.DNSResolver()
        try:
            answer = await self._aiodns.getaddrinfo(
                host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM
            )
        except aiodns.error.DNSError as error:
            raise DNSError(f"{host!r} could not be resolved: {error.args[-1]}") from error
        return [node.addr[0].decode() for node in answer.nodes]

    async def aclose(self) -> None:
        resolver, self._aiodns = self._aiodns, None
        if resolver is not None:
            await resolver.close()


async def _ask_system(host: str) -> list[str]:
    try:
        answers = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DNSError(f"{host!r} could not be resolved") from error
    return [str(answer[4][0]) for answer in answers]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
