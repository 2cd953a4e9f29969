"""The resolver: one cache semantics over aiodns and the system's resolver, on every event loop.

Knows `trunkline.dns` and two scripted sources of answers: a name server on loopback, and a
stand-in for `socket.getaddrinfo`. Does not know transports; that they use it is in the
conformance suite.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import anyio
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

import trunkline.dns
from trunkline import Dns, DNSError, TransportClosed, UnsupportedOption
from trunkline.dns import (
    NEGATIVE_SECONDS,
    RECHECK_SECONDS,
    STALE_PATIENCE,
    STALE_SECONDS,
    Resolver,
    interleave,
)
from trunkline.testing._dns_server import (
    NXDOMAIN,
    SERVFAIL,
    SILENCE,
    Answer,
    DNSServer,
    addresses,
)

pytestmark = pytest.mark.anyio

GOOD = addresses("192.0.2.1")
BETTER = addresses("192.0.2.2")
TTL = 100.0
PATIENCE = 10.0


class Source(Protocol):
    """Where a resolver's answers come from."""

    names: dict[str, Answer]

    def asked(self, name: str) -> int: ...

    def release(self) -> None: ...


class FakeSystem:
    """`socket.getaddrinfo` that answers from `names`, and takes as long as they say."""

    def __init__(self) -> None:
        self.names: dict[str, Answer] = {}
        self.questions: list[str] = []
        self._released = threading.Event()

    def getaddrinfo(self, host: bytes, port: object, **options: object) -> list[Any]:
        name = host.decode()
        answer = self.names.get(name, NXDOMAIN)
        self.questions.append(name)
        if answer.delay:
            self._released.wait(min(answer.delay, PATIENCE))
        if answer.code == "SERVFAIL":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if not answer.addresses:
            number = socket.EAI_NONAME if answer.code == "NXDOMAIN" else socket.EAI_NODATA
            raise socket.gaierror(number, "Name or service not known")
        return [
            (socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (each, 0)) for each in answer.addresses
        ]

    def asked(self, name: str) -> int:
        return self.questions.count(name)

    def release(self) -> None:
        self._released.set()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Kind: TypeAlias = tuple[str, dict[str, bool], str]

# The loops, each with the sources of answers that there are on it.
KINDS: dict[str, Kind] = {
    "asyncio-aiodns": ("asyncio", {}, "aiodns"),
    "uvloop-aiodns": ("asyncio", {"use_uvloop": True}, "aiodns"),
    "asyncio-system": ("asyncio", {}, "system"),
    "trio-system": ("trio", {}, "system"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def anyio_backend(kind: Kind) -> tuple[str, dict[str, bool]]:
    return kind[:2]


@pytest.fixture
def source(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Generator[Source]:
    if kind[2] == "system":
        system = FakeSystem()
        monkeypatch.setattr(socket, "getaddrinfo", system.getaddrinfo)
        yield system
        system.release()
    else:
        with DNSServer() as server:
            yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Resolver]


@pytest.fixture
async def make(kind: Kind, source: Source, clock: Clock) -> AsyncGenerator[Make]:
    """Makes resolvers of `Dns` options, and closes them."""
    made: list[Resolver] = []

    def make(**options: Any) -> Resolver:
        options.setdefault("ttl", TTL)
        if isinstance(source, DNSServer):
            options["nameservers"] = (source.address,)
        elif kind[0] == "asyncio":
            options["resolver"] = "system"
        resolver = Resolver(Dns(**options), trio=kind[0] == "trio", clock=clock)
        made.append(resolver)
        return resolver

    yield make
    for resolver in made:
        await resolver.aclose()


async def until(predicate: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not predicate():  # noqa: ASYNC110  # what it waits for is in another thread
            await anyio.sleep(0.002)


class Caller:
    """A call of `resolve` beside the test."""

    def __init__(self, resolver: Resolver, host: str) -> None:
        self.answer: tuple[str, ...] | None = None
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self._resolver = resolver
        self._host = host

    async def run(self) -> None:
        with self.scope:
            try:
                self.answer = await self._resolver.resolve(self._host)
            except Exception as error:  # noqa: BLE001  # the test looks at it
                self.error = error


@asynccontextmanager
async def callers(resolver: Resolver, *hosts: str) -> AsyncGenerator[list[Caller]]:
    """Calls under way during the block, which have all ended after it."""
    calls = [Caller(resolver, host) for host in hosts]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(call.run)
            yield calls


async def expect_error(resolver: Resolver, host: str) -> DNSError:
    with anyio.fail_after(PATIENCE), pytest.raises(DNSError) as caught:
        await resolver.resolve(host)
    return caught.value


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::1", "::1", "fe80::1%lo"])
async def test_an_address_is_returned_as_it_is(make: Make, source: Source, host: str) -> None:
    assert await make().resolve(host) == (host,)
    assert source.asked(host) == 0


@pytest.mark.parametrize("host", ["api.test", "api.test.", "my_service.test", "xn--bcher-kva.test"])
async def test_a_name_is_resolved(make: Make, source: Source, host: str) -> None:
    source.names = {host: GOOD, host.rstrip("."): GOOD}

    assert await make().resolve(host) == GOOD.addresses


async def test_an_answer_may_come_late(make: Make, source: Source) -> None:
    source.names["api.test"] = Answer(GOOD.addresses, delay=0.05)

    assert await make().resolve("api.test") == GOOD.addresses


async def test_addresses_of_both_families_come_in_turns(make: Make, source: Source) -> None:
    source.names["api.test"] = addresses("::1", "::2", "127.0.0.1", "127.0.0.2")

    found = await make().resolve("api.test")

    assert sorted(found) == sorted(source.names["api.test"].addresses)
    assert all((":" in one) != (":" in other) for one, other in pairwise(found))


async def test_a_name_that_does_not_exist_is_a_dns_error(make: Make) -> None:
    error = await expect_error(make(), "nobody.test")

    assert (error.phase, error.replay) == ("dns", "safe")
    assert error.__cause__ is not None


async def test_a_name_without_address_is_a_dns_error(make: Make, source: Source) -> None:
    source.names["mail.test"] = addresses()

    await expect_error(make(), "mail.test")


async def test_a_resolver_that_fails_is_a_dns_error(make: Make, source: Source) -> None:
    source.names["api.test"] = SERVFAIL

    error = await expect_error(make(), "api.test")

    assert error.__cause__ is not None


@pytest.mark.parametrize("host", ["a..b", ".test", "x" * 64 + ".test", "b\xfccher..test"])
async def test_what_cannot_be_a_name_is_a_dns_error(make: Make, host: str) -> None:
    await expect_error(make(), host)


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.1", "2130706433", "1.2.3.4.", "api.0x", "256.1.1.1"]
)
async def test_a_number_is_not_taken_for_an_address(make: Make, source: Source, host: str) -> None:
    source.names[host] = GOOD

    error = await expect_error(make(), host)

    assert "number" in str(error)
    assert source.asked(host) == 0


# -- how long an answer is kept --------------------------------------------------------------------


async def test_an_answer_is_kept_for_its_ttl(make: Make, source: Source, clock: Clock) -> None:
    resolver = make()
    source.names["api.test"] = GOOD
    await resolver.resolve("api.test")
    source.names["api.test"] = BETTER

    clock.now += TTL - 1
    assert await resolver.resolve("api.test") == GOOD.addresses
    assert source.asked("api.test") == 1
    clock.now += 1
    assert await resolver.resolve("api.test") == BETTER.addresses


async def test_with_a_ttl_of_zero_each_call_asks(make: Make, source: Source) -> None:
    resolver = make(ttl=0)
    source.names["api.test"] = GOOD
    for count in (1, 2, 3):
        assert await resolver.resolve("api.test") == GOOD.addresses
        assert source.asked("api.test") == count
    for _ in range(2):
        await expect_error(resolver, "nobody.test")
    assert source.asked("nobody.test") == 2


@pytest.mark.parametrize("answer", [NXDOMAIN, addresses()], ids=["no-name", "no-address"])
async def test_that_there_is_no_address_is_believed_for_a_second(
    make: Make, source: Source, clock: Clock, answer: Answer
) -> None:
    resolver = make()
    source.names["api.test"] = answer
    errors = [await expect_error(resolver, "api.test") for _ in range(5)]
    assert source.asked("api.test") == 1
    assert len(set(map(id, errors))) == 5
    source.names["api.test"] = GOOD

    clock.now += NEGATIVE_SECONDS
    assert await resolver.resolve("api.test") == GOOD.addresses


async def test_that_the_resolver_failed_is_not_kept(make: Make, source: Source) -> None:
    resolver = make()
    source.names["api.test"] = SERVFAIL
    await expect_error(resolver, "api.test")
    source.names["api.test"] = GOOD

    assert await resolver.resolve("api.test") == GOOD.addresses


async def test_the_cache_is_bounded(
    make: Make, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunkline.dns, "MAX_NAMES", 2)
    resolver = make()
    source.names = {"a.test": GOOD, "b.test": GOOD, "c.test": GOOD}
    for name in ("a.test", "b.test", "c.test", "b.test", "c.test", "a.test"):
        await resolver.resolve(name)

    asked = [source.asked(name) for name in source.names]
    assert asked == [2, 1, 1]


async def test_a_renewed_answer_takes_no_other_name_s_place(
    make: Make, source: Source, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunkline.dns, "MAX_NAMES", 2)
    resolver = make()
    await grow_stale(resolver, source, clock, SERVFAIL)
    source.names["other.test"] = GOOD
    for _ in range(2):
        await resolver.resolve("other.test")
        clock.now += NEGATIVE_SECONDS
        resolver.expire("other.test")

    assert source.asked("other.test") == 2
    assert await resolver.resolve("api.test") == GOOD.addresses


# -- one look-up for many callers ------------------------------------------------------------------


async def test_callers_at_once_share_a_look_up(make: Make, source: Source) -> None:
    source.names["api.test"] = GOOD.held()
    async with callers(make(), *["api.test"] * 20) as calls:
        await until(lambda: source.asked("api.test") == 1)
        source.release()

    assert [call.answer for call in calls] == [GOOD.addresses] * 20
    assert source.asked("api.test") == 1


async def test_with_a_ttl_of_zero_callers_at_once_share_a_look_up_too(
    make: Make, source: Source
) -> None:
    source.names["api.test"] = GOOD.held()
    async with callers(make(ttl=0), *["api.test"] * 5) as calls:
        await until(lambda: source.asked("api.test") == 1)
        source.release()

    assert [call.answer for call in calls] == [GOOD.addresses] * 5
    assert source.asked("api.test") == 1


async def test_callers_that_share_a_failure_get_an_error_each(make: Make, source: Source) -> None:
    source.names["api.test"] = NXDOMAIN.held()
    async with callers(make(), *["api.test"] * 3) as calls:
        await until(lambda: source.asked("api.test") == 1)
        source.release()

    errors = [call.error for call in calls if isinstance(call.error, DNSError)]
    assert len(set(map(id, errors))) == 3
    for error in errors:
        assert error.__cause__ is not None
        assert error.__cause__.__traceback__ is None, "what they share keeps frames alive"


async def test_a_cancelled_caller_disturbs_no_other(make: Make, source: Source) -> None:
    source.names["api.test"] = GOOD.held()
    async with callers(make(), *["api.test"] * 3) as calls:
        await until(lambda: source.asked("api.test") == 1)
        calls[0].scope.cancel()
        await until(lambda: calls[0].scope.cancelled_caught)
        source.release()

    assert [call.answer for call in calls] == [None, GOOD.addresses, GOOD.addresses]
    assert source.asked("api.test") == 1


async def test_a_look_up_that_all_have_left_is_joined_by_the_next_caller(
    make: Make, source: Source
) -> None:
    resolver = make()
    source.names["api.test"] = GOOD.held()
    async with callers(resolver, "api.test", "api.test") as calls:
        await until(lambda: source.asked("api.test") == 1)
        for call in calls:
            call.scope.cancel()
    async with callers(resolver, "api.test") as calls:
        await anyio.lowlevel.checkpoint()
        source.release()

    assert calls[0].answer == GOOD.addresses
    assert source.asked("api.test") == 1


async def test_silence_about_many_names_holds_up_no_other(make: Make, source: Source) -> None:
    # More than the default executor of asyncio and the common limit of anyio have threads.
    names = [f"mute{number}.test" for number in range(50)]
    source.names = dict.fromkeys(names, SILENCE) | {"api.test": GOOD}
    resolver = make()
    async with callers(resolver, *names) as calls:
        await until(lambda: all(source.asked(name) for name in names))
        with anyio.fail_after(PATIENCE):
            assert await resolver.resolve("api.test") == GOOD.addresses
        for call in calls:
            call.scope.cancel()


async def test_one_look_up_more_than_allowed_waits_for_its_turn(
    make: Make, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunkline.dns, "MAX_LOOKUPS", 2)
    resolver = make()
    source.names = dict.fromkeys(["a.test", "b.test", "c.test", "d.test"], GOOD.held())
    async with callers(resolver, "a.test", "b.test") as first:
        await until(lambda: source.asked("a.test") + source.asked("b.test") == 2)
        async with callers(resolver, "c.test", "d.test") as queued:
            await anyio.lowlevel.checkpoint()
            queued[0].scope.cancel()
            await until(lambda: queued[0].scope.cancelled_caught)
            source.names["d.test"] = GOOD
            assert source.asked("c.test") + source.asked("d.test") == 0
            source.release()

    assert [call.answer for call in (*first, *queued)] == [
        GOOD.addresses,
        GOOD.addresses,
        None,
        GOOD.addresses,
    ]
    assert source.asked("c.test") == 0, "a name was looked up that nobody waited for any more"


# -- when the resolver fails -----------------------------------------------------------------------


async def grow_stale(resolver: Resolver, source: Source, clock: Clock, then: Answer) -> None:
    """An answer that has outlived its ttl, and `then` from now on."""
    source.names["api.test"] = GOOD
    await resolver.resolve("api.test")
    clock.now += TTL
    source.names["api.test"] = then


async def test_while_the_resolver_fails_the_last_answer_is_used(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make()
    await grow_stale(resolver, source, clock, SERVFAIL)

    assert await resolver.resolve("api.test") == GOOD.addresses
    asked = source.asked("api.test")
    assert asked > 1
    clock.now += RECHECK_SECONDS - 1
    assert await resolver.resolve("api.test") == GOOD.addresses
    assert source.asked("api.test") == asked, "it was asked again too soon"
    clock.now += 1
    source.names["api.test"] = BETTER
    assert await resolver.resolve("api.test") == BETTER.addresses


async def test_a_stale_answer_is_used_for_an_hour_at_most(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make()
    await grow_stale(resolver, source, clock, SERVFAIL)

    clock.now += STALE_SECONDS - 1
    assert await resolver.resolve("api.test") == GOOD.addresses
    clock.now += 1
    await expect_error(resolver, "api.test")


async def test_without_stale_on_error_a_failure_is_an_error(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make(stale_on_error=False)
    await grow_stale(resolver, source, clock, SERVFAIL)

    await expect_error(resolver, "api.test")


async def test_that_a_name_no_longer_exists_is_an_answer(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make()
    await grow_stale(resolver, source, clock, NXDOMAIN)

    await expect_error(resolver, "api.test")
    clock.now += NEGATIVE_SECONDS
    source.names["api.test"] = SERVFAIL
    await expect_error(resolver, "api.test")
    source.names["api.test"] = BETTER
    assert await resolver.resolve("api.test") == BETTER.addresses


async def test_while_the_resolver_is_silent_the_last_answer_is_used(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make()
    await grow_stale(resolver, source, clock, BETTER.held())
    async with callers(resolver, "api.test") as calls:
        await until(lambda: source.asked("api.test") == 2)
        clock.now += STALE_PATIENCE
        with anyio.fail_after(PATIENCE):
            assert await resolver.resolve("api.test") == GOOD.addresses
            assert await resolver.resolve("api.test") == GOOD.addresses
        source.release()

    assert calls[0].answer == BETTER.addresses
    assert await resolver.resolve("api.test") == BETTER.addresses


# -- flush and expire ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["api.test", None])
async def test_after_flush_the_next_call_asks(make: Make, source: Source, host: str | None) -> None:
    resolver = make()
    source.names = {"api.test": GOOD, "other.test": GOOD}
    for name in source.names:
        await resolver.resolve(name)
    source.names["api.test"] = BETTER

    resolver.flush(host)

    assert await resolver.resolve("api.test") == BETTER.addresses
    await resolver.resolve("other.test")
    assert source.asked("other.test") == (2 if host is None else 1)


async def test_after_flush_nothing_stale_is_left(make: Make, source: Source, clock: Clock) -> None:
    resolver = make()
    await grow_stale(resolver, source, clock, SERVFAIL)

    resolver.flush("api.test")

    await expect_error(resolver, "api.test")


@pytest.mark.parametrize("host", ["api.test", None])
async def test_the_answer_of_a_look_up_before_flush_is_not_kept(
    make: Make, source: Source, host: str | None
) -> None:
    resolver = make()
    source.names["api.test"] = GOOD.held()
    async with callers(resolver, "api.test") as calls:
        await until(lambda: source.asked("api.test") == 1)
        resolver.flush(host)
        source.names["api.test"] = BETTER
        assert await resolver.resolve("api.test") == BETTER.addresses
        source.release()

    assert calls[0].answer == GOOD.addresses
    assert await resolver.resolve("api.test") == BETTER.addresses


async def test_after_expire_the_next_call_asks(make: Make, source: Source, clock: Clock) -> None:
    resolver = make()
    source.names["api.test"] = GOOD
    await resolver.resolve("api.test")
    source.names["api.test"] = BETTER
    clock.now += NEGATIVE_SECONDS

    resolver.expire("api.test")

    assert await resolver.resolve("api.test") == BETTER.addresses


async def test_an_expired_answer_is_used_if_the_resolver_fails(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make()
    source.names["api.test"] = GOOD
    await resolver.resolve("api.test")
    source.names["api.test"] = SERVFAIL
    clock.now += NEGATIVE_SECONDS

    resolver.expire("api.test")

    assert await resolver.resolve("api.test") == GOOD.addresses
    asked = source.asked("api.test")
    resolver.expire("api.test")
    assert await resolver.resolve("api.test") == GOOD.addresses
    assert source.asked("api.test") == asked, "a resolver that has just failed was asked again"


async def test_a_server_that_is_down_does_not_cause_a_look_up_for_each_call(
    make: Make, source: Source
) -> None:
    resolver = make()
    source.names["api.test"] = GOOD
    for _ in range(10):
        await resolver.resolve("api.test")
        resolver.expire("api.test")

    assert source.asked("api.test") == 1


async def test_expire_of_an_unknown_name_does_nothing(make: Make) -> None:
    make().expire("api.test")


# -- the end ---------------------------------------------------------------------------------------


async def test_aclose_ends_look_ups(make: Make, source: Source) -> None:
    resolver = make()
    source.names["api.test"] = SILENCE
    async with callers(resolver, "api.test", "api.test") as calls:
        await until(lambda: source.asked("api.test") == 1)
        await resolver.aclose()

    assert [type(call.error) for call in calls] == [TransportClosed] * 2


async def test_aclose_ends_look_ups_that_there_is_a_stale_answer_for(
    make: Make, source: Source, clock: Clock
) -> None:
    resolver = make()
    await grow_stale(resolver, source, clock, SILENCE)
    async with callers(resolver, "api.test") as calls:
        await until(lambda: source.asked("api.test") == 2)
        await resolver.aclose()

    assert isinstance(calls[0].error, TransportClosed)


async def test_after_aclose_no_name_is_resolved(make: Make, source: Source) -> None:
    resolver = make()
    source.names["api.test"] = GOOD
    await resolver.resolve("api.test")
    await resolver.aclose()
    await resolver.aclose()

    with pytest.raises(TransportClosed):
        await resolver.resolve("api.test")


async def test_no_file_descriptor_is_left(make: Make, source: Source) -> None:
    resolver = make(ttl=0)
    source.names = {"api.test": GOOD, "mute.test": SILENCE}
    await resolver.resolve("api.test")

    def count() -> int:
        return len(os.listdir("/dev/fd"))

    before = count()
    for _ in range(10):
        await resolver.resolve("api.test")
        with anyio.move_on_after(0.001):
            await resolver.resolve("mute.test")
    await resolver.aclose()

    await until(lambda: count() <= before)


async def test_look_ups_that_are_over_are_not_kept(make: Make, source: Source) -> None:
    resolver = make(ttl=0)
    source.names["api.test"] = GOOD

    def count() -> int:
        gc.collect()
        return len(gc.get_objects())

    await resolver.resolve("api.test")
    before = count()
    for _ in range(50):
        await resolver.resolve("api.test")

    # A look-up is several objects; a source may keep one or the other for each question.
    assert count() - before < 100


def test_after_aclose_no_task_is_left() -> None:
    async def leave(server: DNSServer) -> set[asyncio.Task[Any]]:
        resolver = Resolver(Dns(nameservers=(server.address,)))
        with anyio.move_on_after(PATIENCE) as scope:
            async with callers(resolver, "mute.test"):
                await until(lambda: server.asked("mute.test") == 1)
                scope.cancel()
        await resolver.aclose()
        return asyncio.all_tasks() - {asyncio.current_task()}

    with DNSServer({"mute.test": SILENCE}) as server:
        assert asyncio.run(leave(server)) == set()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_may_end_under_a_look_up(loop: str) -> None:
    with DNSServer({"api.test": GOOD.held()}) as server:
        dns = Dns(nameservers=(server.address,))
        kept: list[Resolver] = []

        async def leave() -> None:
            resolver = Resolver(dns)
            kept.append(resolver)
            with anyio.move_on_after(PATIENCE) as scope:
                async with callers(resolver, "api.test"):
                    await until(lambda: server.asked("api.test") == 1)
                    scope.cancel()

        async def come_again() -> tuple[str, ...]:
            async with callers(Resolver(dns), "api.test") as calls:
                await until(lambda: server.asked("api.test") == 2)
                server.release()
            assert calls[0].answer is not None
            return calls[0].answer

        options = {"use_uvloop": loop == "uvloop"}
        anyio.run(leave, backend_options=options)

        # An answer for the loop that is no more would show up as an unraisable exception.
        assert anyio.run(come_again, backend_options=options) == GOOD.addresses


# -- what can be asked for -------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nameservers_are_asked(host: str) -> None:
    with DNSServer({"api.test": GOOD}, host=host) as server:
        resolver = Resolver(Dns(nameservers=(server.address,)))

        assert asyncio.run(resolver.resolve("api.test")) == GOOD.addresses


def test_the_second_nameserver_is_asked_if_the_first_is_not_there() -> None:
    with DNSServer({"api.test": GOOD}, host="127.0.0.1") as server:
        port = server.address.rpartition(":")[2]
        resolver = Resolver(Dns(nameservers=(f"127.0.0.9:{port}", server.address)))

        assert asyncio.run(resolver.resolve("api.test")) == GOOD.addresses


def test_aiodns_knows_localhost() -> None:
    found = asyncio.run(Resolver(Dns(resolver="aiodns")).resolve("localhost"))

    assert set(found) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("options", "trio", "named"),
    [
        ({"resolver": "aiodns"}, True, "dns.resolver"),
        ({"nameservers": ("192.0.2.1",)}, True, "dns.nameservers"),
        ({"nameservers": ("192.0.2.1",), "resolver": "system"}, False, "dns.nameservers"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    options: dict[str, Any], trio: bool, named: str
) -> None:
    with pytest.raises(UnsupportedOption, match=named):
        Resolver(Dns(**options), trio=trio)


@pytest.mark.parametrize(
    "nameserver", ["192.0.2.1", "192.0.2.1:53", "::1", "[::1]", "[2001:db8::1]:5353"]
)
def test_a_nameserver_is_an_address_that_may_have_a_port(nameserver: str) -> None:
    assert Dns(nameservers=(nameserver,)).nameservers == (nameserver,)


@pytest.mark.parametrize(
    "nameserver",
    ["", "ns.test", "ns.test:53", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x",
     "[::1", "[::1]x", "[::1]:"],
)  # fmt: skip
def test_anything_else_is_refused_by_name(nameserver: str) -> None:
    with pytest.raises(ValidationError, match="nameservers"):
        Dns(nameservers=(nameserver,))


def test_nameservers_share_a_port() -> None:
    with pytest.raises(ValidationError, match="same port"):
        Dns(nameservers=("192.0.2.1", "192.0.2.2:5353"))


# -- the order of addresses ------------------------------------------------------------------------

an_address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(st.lists(an_address, max_size=12))
def test_interleaving_keeps_the_order_of_each_family(found: list[str]) -> None:
    ordered = interleave(found)
    unique = list(dict.fromkeys(found))

    for family in (True, False):
        assert [each for each in ordered if (":" in each) == family] == [
            each for each in unique if (":" in each) == family
        ]
    assert ordered[:1] == tuple(found[:1])


@given(st.lists(an_address, max_size=12))
def test_interleaving_changes_families_while_both_have_addresses(found: list[str]) -> None:
    ordered = interleave(found)
    families = [":" in each for each in ordered]
    turns = 2 * min(families.count(True), families.count(False))

    assert all(one != other for one, other in pairwise(families[:turns]))
