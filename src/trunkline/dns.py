"""Names to addresses, with one cache semantics on every backend and event loop.

This module knows the cache, coalescing, and two resolvers: aiodns (asyncio) and the system's. It
does not know who connects to the addresses.

A look-up belongs to nobody: it runs in a task of its own, and callers wait for it as long as their
own deadline allows. So a caller that is cancelled disturbs no other, and a name whose look-up takes
long is asked for once, however many callers come and go.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest
from time import monotonic
from typing import Any, TypeAlias

import anyio
import anyio.to_thread

from trunkline._config import Dns, split_nameserver
from trunkline._errors import DNSError, TransportClosed, UnsupportedOption

STALE_SECONDS = 3600.0
"""For so long past its ttl an answer is used while the resolver fails."""

STALE_PATIENCE = 1.8
"""A caller for whom there is such an answer waits so many seconds, from the beginning of the
look-up, for a better one (RFC 8767 section 5, the client response timer)."""

RECHECK_SECONDS = 30.0
"""A resolver that failed while there was such an answer is left alone for so long (the failure
recheck timer of the same section)."""

NEGATIVE_SECONDS = 1.0
"""So long it is believed that a name does not exist or has no address."""

MAX_LOOKUPS = 64
"""So many names are looked up at once. One more waits for its turn, in order of arrival, within its
callers' `timeouts.connect`; names in the cache do not wait."""

MAX_NAMES = 1000
"""So many names are remembered; the one that was looked up longest ago makes room."""

# RFC 1123 section 2.1: the last label of a name is not a number. Some resolvers take such a host
# for an address of which a check of the host did not know: "127.1", "0x7f.1", "2130706433".
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A look-up without addresses. `final`: the answer is that there are none."""

    reason: str
    final: bool
    cause: Exception | None = None


_Outcome: TypeAlias = tuple[str, ...] | _Failure
_Ask: TypeAlias = Callable[[str], Awaitable[Iterable[str] | _Failure]]


class Resolver:
    """Resolves host names, on one event loop.

    - Concurrent look-ups of a name are one, of which each caller waits as long as it likes.
    - An answer is kept for `dns.ttl` seconds. With 0 it is given to those who wait for it only.
    - While the resolver fails (an error, or silence) the last good answer is used, if
      `dns.stale_on_error`, up to `STALE_SECONDS` past its ttl. That there is no such name is an
      answer, not a failure (RFC 8767 section 4).
    - That there is no such name is believed for `NEGATIVE_SECONDS` (at most `dns.ttl`), so a burst
      of calls to a bad name asks once. Other failures are not kept.
    - Addresses come in the resolver's order (RFC 6724), then in turns by family (RFC 8305
      section 4), which is the order to try them in.
    - No more than `MAX_LOOKUPS` look-ups run at once. Those of the system's resolver run in threads
      that no other part of the program waits for, but for the end of the process on asyncio.

    Raises:
        UnsupportedOption: see `refuse_dns`.
    """

    def __init__(
        self, dns: Dns, *, trio: bool = False, clock: Callable[[], float] = monotonic
    ) -> None:
        refuse_dns(dns, "trio" if trio else "asyncio")
        self._trio = trio
        self._clock = clock
        self._cache = _Cache(dns, clock)
        self._ask: _Ask = _ask_system
        if not trio and dns.resolver != "system":
            self._ask = _Aiodns(dns.nameservers).ask
        self._places = anyio.CapacityLimiter(MAX_LOOKUPS)
        self._joinable: dict[str, _Lookup] = {}
        self._running: set[_Lookup] = set()
        self._closed = False

    async def resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of `host`, at least one, in the order to try them.

        `host` is a name in ASCII (A-labels), or an IP address, which is returned as it is.

        Raises:
            DNSError: it has none, or the resolver failed.
            TransportClosed: the resolver was closed.
        """
        outcome = self._cache.get(host)
        if outcome is None:
            if _is_address(host):
                return (host,)
            outcome = await self._wait(host)
        if isinstance(outcome, _Failure):
            # An exception object belongs to one caller: its traceback and facts are written to.
            message = f"{host!r} could not be resolved: {outcome.reason}"
            raise DNSError(message) from outcome.cause
        return outcome

    def flush(self, host: str | None = None) -> None:
        """Drop what is known of `host`, or of every name; the next connection asks anew.

        Whoever waits for a look-up already under way still gets its answer.
        """
        self._cache.flush(host)
        for name in [host] if host is not None else list(self._joinable):
            self._joinable.pop(name, None)

    def expire(self, host: str) -> None:
        """None of the addresses of `host` could be connected to: the next connection asks anew.

        Unlike after `flush`, the answer can still be used if the resolver fails then. An answer
        younger than `NEGATIVE_SECONDS` stays, so that a server that is down does not cause a
        look-up for each call.
        """
        self._cache.expire(host)

    def close(self) -> None:
        """End every look-up; those who wait get `TransportClosed`. Synchronous, idempotent."""
        self._closed = True
        self.flush()
        for lookup in self._running:
            lookup.scope.cancel()

    async def aclose(self) -> None:
        """`close`, and wait until nothing is left but threads that the system does not let go."""
        self.close()
        for lookup in list(self._running):
            await lookup.done.wait()

    # -- look-ups ----------------------------------------------------------------------------------

    async def _wait(self, host: str) -> _Outcome:
        while True:
            lookup = self._joinable.get(host) or self._begin(host)
            stale = self._cache.stale(host)
            patience = None
            if stale is not None:
                patience = max(lookup.began + STALE_PATIENCE - self._clock(), 0.0)
            await lookup.wait(patience)
            if lookup.outcome is not None:
                return lookup.outcome
            if stale is not None and not self._closed:
                return stale
            # It was ended: by `close`, or because nobody waited when its turn had come.

    def _begin(self, host: str) -> _Lookup:
        if self._closed:
            raise TransportClosed("the transport is closed", phase="dns")
        lookup = _Lookup(host, self._clock())
        self._joinable[host] = lookup
        self._running.add(lookup)
        if self._trio:
            import trio

            trio.lowlevel.spawn_system_task(self._run, lookup)
        else:
            lookup.task = asyncio.create_task(self._run(lookup))
        return lookup

    async def _run(self, lookup: _Lookup) -> None:
        try:
            with lookup.scope:
                async with self._places:
                    if lookup.waiting:
                        await self._fill(lookup)
        finally:
            if self._joinable.get(lookup.host) is lookup:
                del self._joinable[lookup.host]
            self._running.discard(lookup)
            lookup.done.set()

    async def _fill(self, lookup: _Lookup) -> None:
        outcome = await self._outcome(lookup.host)
        if self._joinable.get(lookup.host) is lookup:  # else it has been flushed meanwhile
            outcome = self._cache.put(lookup.host, outcome)
        lookup.outcome = outcome

    async def _outcome(self, host: str) -> _Outcome:
        if _ENDS_IN_NUMBER.fullmatch(host):
            return _Failure("it ends in a number but is not an IP address", final=True)
        try:
            answer = await self._ask(host)
        except Exception as error:  # noqa: BLE001  # `resolve` raises it, in the callers' tasks
            return _Failure("the resolver failed", final=False, cause=error.with_traceback(None))
        if isinstance(answer, _Failure):
            return answer
        return interleave(answer) or _Failure("it has no address", final=True)


@dataclass(slots=True, eq=False)
class _Lookup:
    """A look-up under way. `outcome` stays None if it was ended before its end."""

    host: str
    began: float
    outcome: _Outcome | None = None
    waiting: int = 0
    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    task: object = None  # asyncio itself keeps a weak reference only

    async def wait(self, seconds: float | None) -> None:
        """Wait for its end, no longer than `seconds`."""
        self.waiting += 1
        try:
            with anyio.move_on_after(seconds):
                await self.done.wait()
        finally:
            self.waiting -= 1


def refuse_dns(dns: Dns, loop: str | None) -> None:
    """Refuse what cannot be had on `loop`: "asyncio", "trio", or None where it is not yet known.

    Raises:
        UnsupportedOption: naming the option, and a way out.
    """
    if dns.nameservers and dns.resolver == "system":
        raise UnsupportedOption(
            "dns.nameservers: the system's resolver has its own; use dns.resolver='auto'"
        )
    if loop != "trio":
        return
    if dns.resolver == "aiodns":
        raise UnsupportedOption("dns.resolver: aiodns needs asyncio; use 'auto' or 'system'")
    if dns.nameservers:
        raise UnsupportedOption("dns.nameservers: they need asyncio; leave them out on trio")


def interleave(addresses: Iterable[str]) -> tuple[str, ...]:
    """IPv6 and IPv4 in turns, from the family of the first on (RFC 8305 section 4); each once."""
    families: dict[bool, list[str]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(":" in address, []).append(address)
    turns = zip_longest(*families.values())
    return tuple(address for turn in turns for address in turn if address is not None)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# -- the cache -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Entry:
    outcome: _Outcome
    since: float
    fresh_until: float
    settled_until: float  # before that, a failure to connect is no reason to ask anew


class _Cache:
    """What is known of each name, and for how long. The newest `MAX_NAMES` are kept."""

    def __init__(self, dns: Dns, clock: Callable[[], float]) -> None:
        self._dns = dns
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def get(self, host: str) -> _Outcome | None:
        """What can be said without asking."""
        entry = self._entries.get(host)
        return entry.outcome if entry is not None and self._clock() < entry.fresh_until else None

    def stale(self, host: str) -> tuple[str, ...] | None:
        """What can be said when asking fails."""
        entry = self._entries.get(host)
        if entry is None or isinstance(entry.outcome, _Failure) or not self._dns.stale_on_error:
            return None
        return entry.outcome if self._clock() < self._stale_until(entry) else None

    def put(self, host: str, outcome: _Outcome) -> _Outcome:
        """Keep `outcome`, if it is of the kind that is kept; return what to tell the callers."""
        stale = self.stale(host)
        keep = self._dns.ttl
        if isinstance(outcome, _Failure):
            if not outcome.final:
                self.defer(host)
                return outcome if stale is None else stale
            keep = min(keep, NEGATIVE_SECONDS)
        now = self._clock()
        self._entries.pop(host, None)
        if len(self._entries) >= MAX_NAMES:
            del self._entries[next(iter(self._entries))]
        self._entries[host] = _Entry(outcome, now, now + keep, now + NEGATIVE_SECONDS)
        return outcome

    def defer(self, host: str) -> None:
        """Asking has failed: be content for a while with what is stale, if anything is."""
        if self.stale(host) is None:
            return
        entry = self._entries[host]
        entry.settled_until = self._clock() + RECHECK_SECONDS
        entry.fresh_until = min(entry.settled_until, self._stale_until(entry))

    def expire(self, host: str) -> None:
        entry, now = self._entries.get(host), self._clock()
        if entry is not None and now >= entry.settled_until:
            entry.fresh_until = min(entry.fresh_until, now)

    def flush(self, host: str | None) -> None:
        if host is None:
            self._entries.clear()
        else:
            self._entries.pop(host, None)

    def _stale_until(self, entry: _Entry) -> float:
        return entry.since + self._dns.ttl + STALE_SECONDS


# -- the resolvers ---------------------------------------------------------------------------------


class _Aiodns:
    """Asks name servers by c-ares, which reads the hosts file too."""

    def __init__(self, nameservers: tuple[str, ...]) -> None:
        self._options: dict[str, Any] = {}
        if nameservers:
            hosts, ports = zip(*map(split_nameserver, nameservers), strict=True)
            self._options = {"nameservers": hosts, "udp_port": ports[0], "tcp_port": ports[0]}

    async def ask(self, host: str) -> Iterable[str] | _Failure:
        import aiodns

        library: Any = aiodns  # its types are those of pycares, which has none
        # One for each look-up: c-ares has a cache for each, which can be neither set nor emptied.
        resolver = library.DNSResolver(**self._options)
        try:
            answer = await resolver.getaddrinfo(
                host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM
            )
        except library.error.DNSError as error:
            code, reason = error.args
            final = code in (library.error.ARES_ENOTFOUND, library.error.ARES_ENODATA)
            return _Failure(reason, final, error.with_traceback(None))
        finally:
            # `close` alone may leave the end of a query to a thread, which finds the loop closed.
            resolver.cancel()
            await resolver.close()
        return [node.addr[0].decode() for node in answer.nodes]


_NO_SUCH_NAME = {
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
}


async def _ask_system(host: str) -> Iterable[str] | _Failure:
    # Not in asyncio's default executor, nor within anyio's common limit: a name server that says
    # nothing would hold up everybody who uses them.
    try:
        answers = await anyio.to_thread.run_sync(
            _getaddrinfo, host, limiter=anyio.CapacityLimiter(1), abandon_on_cancel=True
        )
    except socket.gaierror as error:
        final = error.errno in _NO_SUCH_NAME
        return _Failure(str(error.strerror), final, error.with_traceback(None))
    return [str(answer[4][0]) for answer in answers]


def _getaddrinfo(host: str) -> list[Any]:
    return socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
