"""The pool's rules, one by one: reuse, limits, room for others, sharing, the queue, the end.

Knows `Pool` with connections that are nothing but flags. Does not know how a request uses it. What
holds under any order of events is in test_pool_properties.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from trunkline import (
    CertificateError,
    ConnectError,
    ConnectionInfo,
    DeadlineExceeded,
    DecodeError,
    GoAway,
    HeadersTimeout,
    InvalidRequest,
    Limits,
    Origin,
    PoolFull,
    PoolSnapshot,
    PoolTimeout,
    ReadTimeout,
    RemoteDisconnected,
    Request,
    Response,
    StreamRefused,
    Timeouts,
    Timings,
    TransportClosed,
    TransportError,
    WriteTimeout,
)
from trunkline.pool._alarm import Alarm
from trunkline.pool._attempt import ExchangeAttempt
from trunkline.pool._body import LeasedBody
from trunkline.pool._call import Call
from trunkline.pool._lease import Lease
from trunkline.pool._origin import Pooled
from trunkline.pool._pool import Pool
from trunkline.pool._queue import Ticket
from trunkline.pool._runtime import Runtime, make_runtime

pytestmark = pytest.mark.anyio

HERE = Origin("https", "here.example", 443)
THERE = Origin("https", "there.example", 443)
PLAIN = Origin("http", "here.example", 80)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param("trio", id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Connection:
    """A connection that is nothing but flags."""

    http_version = "HTTP/1.1"
    peer = None

    def __init__(self, max_exchanges: int = 1) -> None:
        self.max_exchanges = max_exchanges
        self.is_alive = True
        self.is_closed = False

    def is_usable(self) -> bool:
        return self.is_alive and not self.is_closed

    def close(self) -> None:
        self.is_closed = True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("_pool", "_lease", "_origin", "_queue"):
        monkeypatch.setattr(f"trunkline.pool.{module}.monotonic", made)
    return made


def make(runtime: Runtime | None = None, *, multiplexes: bool = False, **limits: Any) -> Pool:
    """A pool; without a runtime it is one that nobody can wait in."""
    return Pool(Limits(**limits), cast("Runtime", runtime), multiplexes=multiplexes)


def have(lease: Lease | None) -> Lease:
    assert lease is not None, "there is none to be had"
    return lease


def take(pool: Pool, origin: Origin = HERE, max_exchanges: int = 1) -> Lease:
    """A lease on a connection, which is opened if need be and begins an exchange."""
    lease = have(pool.acquire_nowait(origin))
    if lease.pooled is None:
        lease.attach(cast("Any", Connection(max_exchanges)))
    pooled_of(lease).exchanges += 1
    return lease


def pooled_of(lease: Lease) -> Pooled:
    assert lease.pooled is not None, "it is a slot still"
    return lease.pooled


def connection_of(lease: Lease) -> Connection:
    return cast("Connection", pooled_of(lease).connection)


def leave_idle(pool: Pool, *origins: Origin) -> list[Connection]:
    """Open a connection to each and leave it idle; the first has been idle longest."""
    leases = [take(pool, origin) for origin in origins]
    for lease in leases:
        lease.release()
    return [connection_of(lease) for lease in leases]


def closed_by(pool: Pool) -> dict[str, int]:
    return dict(pool.snapshot().closed)


# --- opening and reusing


def test_the_first_lease_is_a_slot_to_open_a_connection_on() -> None:
    pool = make()

    lease = have(pool.acquire_nowait(HERE))

    assert lease.pooled is None
    assert not lease.reused
    assert pool.snapshot().connecting == 1
    lease.attach(cast("Any", Connection()))
    assert (pool.snapshot().connecting, pool.snapshot().active) == (0, 1)


def test_a_released_connection_is_lent_again_and_counts_as_reused() -> None:
    pool = make()
    first = take(pool)
    first.release()

    second = take(pool)

    assert second.pooled is first.pooled
    assert (first.reused, second.reused) == (False, True)
    assert (pool.snapshot().created, pool.snapshot().reused) == (1, 1)


def test_a_connection_that_was_opened_ahead_does_not_count_as_reused() -> None:
    pool = make()
    slot = have(pool.acquire_nowait(HERE, fresh=True))
    slot.attach(cast("Any", Connection()))
    slot.release()

    lease = take(pool)

    assert not lease.reused
    assert pool.snapshot().reused == 0


def test_a_connection_is_lent_to_one_at_a_time() -> None:
    pool = make()

    assert connection_of(take(pool)) is not connection_of(take(pool))


def test_the_one_used_last_is_lent_first() -> None:
    pool = make()
    older, newer = leave_idle(pool, HERE, HERE)

    assert connection_of(take(pool)) is newer
    assert connection_of(take(pool)) is older


def test_connections_go_to_their_own_origin_only() -> None:
    pool = make()
    leave_idle(pool, HERE)

    for other in (THERE, PLAIN, Origin("https", "here.example", 8443)):
        assert have(pool.acquire_nowait(other)).pooled is None


def test_a_fresh_one_is_opened_beside_those_that_are_idle() -> None:
    pool = make()
    leave_idle(pool, HERE)

    assert have(pool.acquire_nowait(HERE, fresh=True)).pooled is None
    assert pool.snapshot().idle == 1


def test_who_wants_a_fresh_one_in_vain_shares_at_once() -> None:
    pool = make(max_connections=1, multiplexes=True)
    lease = take(pool, max_exchanges=3)

    assert have(pool.acquire_nowait(HERE, fresh=True)).pooled is lease.pooled


def test_releasing_twice_gives_back_once() -> None:
    pool = make()
    lease = take(pool)
    lease.release()
    again = take(pool)

    lease.release()

    assert pool.snapshot().active == 1
    again.release()
    assert pool.snapshot().idle == 1


def test_a_failed_dial_gives_its_slot_back() -> None:
    pool = make(max_connections=1)
    for give_up in (Lease.release, pool.abort):
        slot = have(pool.acquire_nowait(HERE))
        assert pool.acquire_nowait(HERE) is None
        give_up(slot)

    assert pool.acquire_nowait(HERE) is not None
    assert pool.snapshot().created == 0


# --- what is not used again


def test_what_its_peer_has_closed_is_not_used_again() -> None:
    pool = make()
    idle, busy = take(pool), take(pool)
    idle.release()
    connection_of(idle).is_alive = False
    connection_of(busy).is_alive = False

    busy.release()
    assert have(pool.acquire_nowait(HERE)).pooled is None

    assert connection_of(idle).is_closed
    assert connection_of(busy).is_closed
    assert closed_by(pool) == {"ended": 2}


def test_what_has_been_idle_too_long_is_not_used_again(clock: Clock) -> None:
    pool = make(keepalive_expiry=30.0)
    (connection,) = leave_idle(pool, HERE)
    clock.now += 29.9
    lease = take(pool)
    assert connection_of(lease) is connection
    clock.now += 100  # not idle: it is in use
    lease.release()
    clock.now += 29.9
    lease = take(pool)
    assert connection_of(lease) is connection
    lease.release()
    clock.now += 30

    assert connection_of(take(pool)) is not connection
    assert closed_by(pool) == {"expired": 1}


def test_no_expiry_keeps_for_ever_and_zero_keeps_nothing(clock: Clock) -> None:
    forever, never = make(keepalive_expiry=None), make(keepalive_expiry=0.0)
    (kept,), (gone,) = leave_idle(forever, HERE), leave_idle(never, HERE)
    clock.now += 1e9

    assert connection_of(take(forever)) is kept
    assert connection_of(take(never)) is not gone
    assert gone.is_closed


def test_what_is_too_old_is_not_used_again_even_if_it_was_busy(clock: Clock) -> None:
    pool = make(max_connection_age=100.0, keepalive_expiry=None)
    leases = [take(pool) for _ in range(20)]
    connections = [connection_of(lease) for lease in leases]

    clock.now += 89.9
    leases.pop().release()
    assert pool.snapshot().idle == 1
    clock.now += 20.2
    for lease in leases:
        lease.release()

    assert all(one.is_closed for one in connections[:-1])
    assert closed_by(pool) == {"aged": 19}
    assert connection_of(take(pool)) not in connections
    assert closed_by(pool) == {"aged": 20}


def test_connections_opened_together_do_not_age_together(clock: Clock) -> None:
    pool = make(max_connection_age=100.0, max_keepalive_connections=None, keepalive_expiry=None)
    leave_idle(pool, *[HERE] * 50)

    clock.now += 100
    pool.tidy()

    assert 0 < closed_by(pool)["aged"] < 50


def test_an_exchange_that_failed_takes_its_connection_with_it() -> None:
    pool = make()
    lease = take(pool)
    connection_of(lease).close()

    pool.abort(lease)

    assert pool.snapshot().open == 0
    assert closed_by(pool) == {"aborted": 1}


# --- limits


def test_no_more_than_max_connections_are_open_or_being_opened() -> None:
    pool = make(max_connections=2)
    take(pool, HERE)
    have(pool.acquire_nowait(THERE))

    assert pool.acquire_nowait(HERE) is None
    assert pool.acquire_nowait(PLAIN) is None
    assert pool.snapshot().utilization == 1.0


def test_no_more_than_max_connections_per_host_are_open_to_one_origin() -> None:
    pool = make(max_connections_per_host=1)
    take(pool, HERE)

    assert pool.acquire_nowait(HERE) is None
    assert pool.acquire_nowait(PLAIN) is not None
    assert pool.acquire_nowait(THERE) is not None


def test_none_is_no_limit() -> None:
    pool = make(max_connections=None, max_keepalive_connections=None)

    leave_idle(pool, *[HERE] * 300)

    now = pool.snapshot()
    assert (now.idle, now.max_connections, now.utilization) == (300, None, 0.0)


def test_the_connection_idle_longest_makes_room_for_another_host() -> None:
    pool = make(max_connections=3)
    oldest, older, newest = leave_idle(pool, HERE, THERE, HERE)

    assert have(pool.acquire_nowait(PLAIN)).pooled is None

    assert (oldest.is_closed, older.is_closed, newest.is_closed) == (True, False, False)
    assert closed_by(pool) == {"evicted": 1}


def test_a_fresh_connection_takes_the_place_of_an_idle_one_at_the_limit() -> None:
    for pool in (make(max_connections=1), make(max_connections_per_host=1)):
        (connection,) = leave_idle(pool, HERE)

        assert have(pool.acquire_nowait(HERE, fresh=True)).pooled is None
        assert connection.is_closed


@pytest.mark.parametrize("most", [0, 1, 2])
def test_beyond_max_keepalive_the_one_idle_longest_is_closed(most: int) -> None:
    pool = make(max_keepalive_connections=most)

    connections = leave_idle(pool, HERE, THERE, HERE)

    assert [one.is_closed for one in connections] == [True] * (3 - most) + [False] * most
    assert closed_by(pool) == {"surplus": 3 - most}


@pytest.mark.parametrize("limits", [{"max_connections": 1}, {"max_keepalive_connections": 1}])
def test_an_origin_that_holds_nothing_is_forgotten(limits: dict[str, Any]) -> None:
    pool = make(**limits)

    for number in range(100):
        leave_idle(pool, Origin("https", f"{number}.example", 443))

    assert list(pool.snapshot().origins) == ["https://99.example"]


async def test_an_origin_whose_calls_were_refused_is_forgotten() -> None:
    pool = make(make_runtime(), max_connections=1, max_waiting=0)
    take(pool, HERE)

    assert pool.acquire_nowait(THERE) is None
    with pytest.raises(PoolFull):
        await wait(pool, THERE, 1.0)

    assert list(pool.snapshot().origins) == [str(HERE)]


# --- sharing a connection (HTTP/2)


def test_one_handshake_serves_all_who_come_meanwhile() -> None:
    pool = make(multiplexes=True)
    slot = have(pool.acquire_nowait(HERE))
    assert pool.acquire_nowait(HERE) is None
    assert pool.acquire_nowait(THERE) is not None
    slot.attach(cast("Any", Connection(max_exchanges=3)))

    leases = [take(pool) for _ in range(2)]

    assert {lease.pooled for lease in leases} == {slot.pooled}
    assert pool.snapshot().origins[str(HERE)].exchanges == 3
    assert have(pool.acquire_nowait(HERE)).pooled is None


def test_without_tls_every_call_has_a_connection_of_its_own() -> None:
    pool = make(multiplexes=True)

    assert have(pool.acquire_nowait(PLAIN)).pooled is None
    assert have(pool.acquire_nowait(PLAIN)).pooled is None


def test_an_origin_that_does_not_multiplex_is_known_after_the_first_connection() -> None:
    pool = make(multiplexes=True)
    take(pool, max_exchanges=1)

    assert have(pool.acquire_nowait(HERE)).pooled is None
    assert have(pool.acquire_nowait(HERE)).pooled is None


def test_a_shared_connection_is_idle_when_the_last_exchange_is_over() -> None:
    pool = make(multiplexes=True)
    first, second = take(pool, max_exchanges=2), take(pool)

    first.release()
    assert (pool.snapshot().active, pool.snapshot().idle) == (1, 0)
    second.release()
    assert (pool.snapshot().active, pool.snapshot().idle) == (0, 1)


def test_an_exchange_that_failed_leaves_those_that_share_its_connection() -> None:
    pool = make(multiplexes=True)
    failed, other = take(pool, max_exchanges=2), take(pool)

    pool.abort(failed)

    assert not connection_of(other).is_closed
    other.release()
    assert pool.snapshot().idle == 1


def test_a_shared_connection_that_is_lost_closes_once() -> None:
    pool = make(multiplexes=True)
    leases = [take(pool, max_exchanges=3) for _ in range(3)]
    connection_of(leases[0]).is_alive = False

    for lease in leases:
        pool.abort(lease)

    assert closed_by(pool) == {"aborted": 1}


def test_a_connection_that_goes_away_is_not_shared_any_more_but_finishes() -> None:
    pool = make(multiplexes=True)
    failed, last = take(pool, max_exchanges=3), take(pool)
    connection_of(last).is_alive = False

    assert have(pool.acquire_nowait(HERE)).pooled is None
    pool.abort(failed)
    assert not connection_of(last).is_closed
    last.release()

    assert connection_of(last).is_closed
    assert closed_by(pool) == {"ended": 1}


def test_a_connection_that_allows_no_exchange_at_the_moment_is_not_lent() -> None:
    pool = make(multiplexes=True)
    lease = take(pool, max_exchanges=3)
    lease.release()
    connection_of(lease).max_exchanges = 0

    assert have(pool.acquire_nowait(HERE)).pooled is None
    assert not connection_of(lease).is_closed


# --- seeing


def test_a_snapshot_counts_each_connection_once() -> None:
    pool = make(max_connections=10)
    leave_idle(pool, HERE, THERE)
    take(pool, HERE).release()
    take(pool, THERE)
    have(pool.acquire_nowait(THERE))

    now = pool.snapshot()

    assert now == PoolSnapshot(
        open=2,
        active=1,
        idle=1,
        connecting=1,
        waiting=0,
        max_connections=10,
        utilization=0.2,
        created=2,
        reused=2,
        closed={},
        origins=now.origins,
    )
    there = now.origins["https://there.example"]
    assert (there.open, there.active, there.idle, there.connecting) == (1, 1, 0, 1)
    assert there.exchanges == 1


def test_changes_are_told_with_their_reason() -> None:
    told: list[tuple[int, str | None]] = []
    pool = Pool(
        Limits(max_keepalive_connections=1),
        cast("Runtime", None),
        on_change=lambda pooled, reason: told.append((pooled.id, reason)),
    )

    leave_idle(pool, HERE, THERE)
    pool.close()

    assert told == [(1, None), (2, None), (1, "surplus"), (2, "shutdown")]


# --- keeping house


def test_tidying_closes_what_may_not_be_used_again(clock: Clock) -> None:
    pool = make(keepalive_expiry=30.0)
    assert pool.tidy() is None
    first, _ = leave_idle(pool, HERE, THERE)
    assert pool.tidy() == 30.0
    first.is_alive = False
    clock.now += 10

    assert pool.tidy() == 20.0
    assert closed_by(pool) == {"ended": 1}
    assert list(pool.snapshot().origins) == [str(THERE)]
    clock.now += 20

    assert pool.tidy() is None
    assert closed_by(pool) == {"ended": 1, "expired": 1}


def test_who_runs_short_of_spare_connections_is_told() -> None:
    short: list[Origin] = []
    pool = Pool(
        Limits(min_idle_connections=1, max_connections=2),
        cast("Runtime", None),
        on_short=short.append,
    )
    assert pool.spare(HERE) is None  # not used yet
    take(pool)
    assert short == [HERE]

    slot = have(pool.spare(HERE))
    assert pool.spare(HERE) is None  # one is being opened
    slot.attach(cast("Any", Connection()))
    slot.release()

    assert pool.spare(HERE) is None  # one is ready
    assert pool.snapshot().idle == 1


def test_a_spare_connection_takes_nothing_from_anybody() -> None:
    pool = make(min_idle_connections=1, max_connections=2)
    take(pool, HERE)
    take(pool, THERE)
    assert pool.spare(HERE) is None

    pool = make(min_idle_connections=1, max_connections_per_host=1)
    take(pool, HERE)
    assert pool.spare(HERE) is None


def test_warming_reserves_as_many_as_are_wanted_and_can_be_kept() -> None:
    pool = make(max_keepalive_connections=3)

    assert [pool.reserve(HERE, 2) is not None for _ in range(3)] == [True, True, False]
    assert [pool.reserve(THERE, 2) is not None for _ in range(2)] == [True, False]
    assert pool.snapshot().connecting == 3


def test_warming_takes_the_place_of_an_idle_connection_but_of_no_call() -> None:
    pool = make(max_connections=2)
    (idle,) = leave_idle(pool, THERE)
    take(pool, PLAIN)

    assert pool.reserve(HERE, 2) is not None
    assert idle.is_closed
    assert pool.reserve(HERE, 2) is None
    assert set(pool.snapshot().origins) == {str(HERE), str(PLAIN)}


# --- the end


def test_closing_closes_everything_and_lends_nothing() -> None:
    pool = make()
    busy = take(pool, HERE)
    leave_idle(pool, THERE)

    pool.close()
    pool.close()
    busy.release()

    assert connection_of(busy).is_closed
    assert closed_by(pool) == {"shutdown": 2}
    assert pool.snapshot().open == 0
    with pytest.raises(TransportClosed):
        pool.acquire_nowait(HERE)
    assert pool.spare(HERE) is None
    assert pool.tidy() is None


def test_a_connection_that_is_opened_after_the_end_is_closed_at_once() -> None:
    pool = make()
    slot = have(pool.acquire_nowait(HERE))
    pool.close()
    connection = Connection()

    with pytest.raises(TransportClosed):
        slot.attach(cast("Any", connection))
    slot.release()

    assert connection.is_closed
    assert pool.snapshot().open == 0


def test_a_retired_pool_keeps_nothing_and_lets_what_is_under_way_finish() -> None:
    pool = make()
    busy = take(pool, HERE)
    (idle,) = leave_idle(pool, THERE)

    pool.retire()

    assert (idle.is_closed, connection_of(busy).is_closed) == (True, False)
    busy.release()
    assert closed_by(pool) == {"shutdown": 2}
    assert pool.snapshot().origins == {}


# --- waiting, on every loop


async def wait(
    pool: Pool, origin: Origin, seconds: float | None, priority: int = 0, *, fresh: bool = False
) -> Lease:
    ticket = pool.queue(origin, seconds, priority, fresh=fresh)
    try:
        await ticket.wait()
        return pool.claim(ticket)
    except BaseException:
        pool.leave(ticket)
        raise


class Queue:
    """Callers that wait beside the test; `got` has what came of each, in order."""

    group: anyio.abc.TaskGroup

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.got: list[tuple[str, Lease | Exception]] = []

    async def add(self, name: str, origin: Origin = HERE, priority: int = 0) -> anyio.CancelScope:
        """Have one more wait, for ten seconds at most; return when it does."""
        before = self.pool.waiting
        scope = anyio.CancelScope()

        async def queue_up() -> None:
            with scope:
                try:
                    self.got.append((name, await wait(self.pool, origin, 10.0, priority)))
                except TransportError as error:
                    self.got.append((name, error))

        assert self.pool.acquire_nowait(origin) is None
        self.group.start_soon(queue_up)
        await until(lambda: self.pool.waiting > before)
        return scope

    @property
    def served(self) -> list[str]:
        return [name for name, result in self.got if isinstance(result, Lease)]


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def settle() -> None:
    """Let everybody run who can."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_who_waits_gets_the_connection_that_is_given_back() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("a")
        lease.release()

    assert queue.served == ["a"]
    ((_, got),) = queue.got
    assert isinstance(got, Lease)
    assert got.pooled is lease.pooled
    assert pool.snapshot().waited == 1
    assert 0 <= pool.snapshot().wait_max == pool.snapshot().wait_total < 10


async def test_those_who_wait_are_served_in_order_and_no_newcomer_before_them() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        for name in "abc":
            await queue.add(name)
        for _ in range(3):
            lease.release()
            assert pool.acquire_nowait(HERE) is None
            await settle()
            lease = cast("Lease", queue.got[-1][1])

    assert queue.served == ["a", "b", "c"]


async def test_a_higher_priority_goes_first_and_equal_ones_in_order() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        for name, origin, priority in (
            ("low", HERE, -1),
            ("a", HERE, 0),
            ("b", THERE, 0),
            ("high", THERE, 5),
            ("c", HERE, 0),
        ):
            await queue.add(name, origin, priority)
        for _ in range(5):
            lease.release()
            await settle()
            lease = cast("Lease", queue.got[-1][1])

    assert queue.served == ["high", "a", "b", "c", "low"]


async def test_who_may_not_have_what_is_free_lets_others_pass() -> None:
    pool = make(make_runtime(), max_connections=2, max_connections_per_host=1)
    here, there = take(pool, HERE), take(pool, THERE)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("here", HERE)
        await queue.add("plain", PLAIN)
        there.release()
        await settle()
        assert queue.served == ["plain"]
        here.release()

    assert queue.served == ["plain", "here"]


@pytest.mark.parametrize("seconds", [0.02, 0.0, -1.0])
async def test_waiting_ends_at_the_deadline_with_the_pools_numbers(seconds: float) -> None:
    pool = make(make_runtime(), max_connections=1)
    take(pool)
    assert pool.acquire_nowait(THERE) is None

    with pytest.raises(PoolTimeout, match=rf"within {seconds:g} s: 1 connections active") as caught:
        await wait(pool, THERE, seconds)

    assert caught.value.phase == "pool"
    assert pool.waiting == 0
    assert list(pool.snapshot().origins) == [str(HERE)]


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    pool = make(make_runtime(), max_connections=1, max_waiting=2)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("a", HERE)
        await queue.add("b", THERE)
        assert pool.acquire_nowait(HERE) is None
        with pytest.raises(PoolFull, match="max_waiting is 2"):
            await wait(pool, HERE, None)
        lease.release()
        await settle()
        queue.group.cancel_scope.cancel()

    assert queue.served == ["a"]


async def test_who_is_cancelled_leaves_the_queue() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        first = await queue.add("a")
        await queue.add("b")
        first.cancel()
        await until(lambda: pool.waiting == 1)
        lease.release()

    assert queue.served == ["b"]


async def test_who_is_cancelled_when_served_passes_it_on() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        first = await queue.add("a")
        await queue.add("b")
        lease.release()
        first.cancel()
        while not queue.got:
            await anyio.lowlevel.checkpoint()
        # Whether "a" was cancelled before it could take it is the loop's affair.
        cast("Lease", queue.got[0][1]).release()

    assert queue.served in (["b"], ["a", "b"])
    cast("Lease", queue.got[-1][1]).release()
    assert (pool.snapshot().active, pool.snapshot().waiting) == (0, 0)


# Trio does not cancel a task that is about to run.
@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})])
async def test_a_task_that_is_cancelled_when_it_was_served_passes_it_on() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    async with asyncio.timeout(10):
        assert pool.acquire_nowait(HERE) is None
        tasks = [asyncio.ensure_future(wait(pool, HERE, 10.0)) for _ in range(2)]
        await until(lambda: pool.waiting == 2)

        lease.release()
        tasks[0].cancel()
        got = await tasks[1]

    assert tasks[0].cancelled()
    assert got.pooled is lease.pooled
    got.release()
    assert pool.snapshot().idle == 1


async def test_who_is_given_a_connection_in_the_queue_has_it_from_then_on(clock: Clock) -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    ticket = pool.queue(HERE, 10.0)
    clock.now += 7.0

    lease.release()

    got = pool.claim(ticket)
    assert pooled_of(got).leased_at == clock.now
    assert got.waited == 7.0


async def test_that_calls_wait_is_said_at_most_once_in_ten_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trunkline.pool._alarm.monotonic", clock)
    pool = Pool(Limits(max_connections=1), make_runtime(), alarm=Alarm(1.0, 1))
    take(pool)
    caplog.clear()

    for seconds in (0.0, 9.0, 2.0, 9.0, 2.0):
        clock.now += seconds
        pool.queue(HERE, 10.0)

    assert [record.getMessage().rpartition(", ")[2] for record in caplog.records] == [
        "1 calls wait",
        "3 calls wait",
        "5 calls wait",
    ]


@pytest.mark.parametrize("is_shown", [True, False])
async def test_a_log_handler_that_raises_is_shown_as_logging_is_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_shown: bool
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr(logging, "raiseExceptions", is_shown)
    broken = Broken()
    logging.getLogger("trunkline.pool").addHandler(broken)
    try:
        pool = Pool(Limits(max_connections=1), make_runtime(), alarm=Alarm(1.0, 1))
        take(pool).release()
    finally:
        logging.getLogger("trunkline.pool").removeHandler(broken)

    assert ("ZeroDivisionError" in capsys.readouterr().err) == is_shown
    assert pool.snapshot().idle == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_watches_a_deadline_that_nobody_waits_for_any_more() -> None:
    runtime = make_runtime()
    pool = make(runtime, max_connections=1)
    take(pool)
    ticket = pool.queue(HERE, 10.0)
    ticket.wait()

    pool.leave(ticket)

    assert cast("Any", runtime).scopes == set()


async def test_what_is_to_be_called_soon_is_called_but_not_now() -> None:
    called = anyio.Event()
    make_runtime().call_soon(called.set)
    assert not called.is_set()

    with anyio.fail_after(10):
        await called.wait()


async def test_who_leaves_twice_does_not_undo_what_others_did_since() -> None:
    pool = make(make_runtime(), max_connections=2, max_connections_per_host=1)
    elsewhere, lease = take(pool, THERE), have(pool.acquire_nowait(HERE))
    ticket = pool.queue(HERE, None)
    pool.leave(ticket)
    lease.release()
    have(pool.acquire_nowait(HERE))

    pool.leave(ticket)

    elsewhere.release()
    assert pool.acquire_nowait(HERE) is None


@pytest.mark.parametrize(
    ("limits", "is_kept"),
    [({"keepalive_expiry": 0.0}, False), ({"max_keepalive_connections": 0}, True)],
    ids=["kept for no time", "none idle"],
)
@pytest.mark.parametrize("others", [0, 1])
async def test_a_connection_that_is_not_to_sit_idle_goes_to_who_waits_unless_it_expires_at_once(
    limits: dict[str, Any], is_kept: bool, others: int
) -> None:
    pool = make(make_runtime(), max_connections=1, **limits)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("a")
        for _ in range(others):
            await queue.add("b", THERE)
        lease.release()
        await until(lambda: bool(queue.got))
        queue.group.cancel_scope.cancel()

    got = cast("Lease", queue.got[0][1])
    assert got.pooled is (lease.pooled if is_kept else None)
    assert connection_of(lease).is_closed != is_kept


async def test_what_everybody_gives_up_is_left_idle() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        for name in "abc":
            await queue.add(name)
        lease.release()
        queue.group.cancel_scope.cancel()

    for _, got in queue.got:
        cast("Lease", got).release()
    now = pool.snapshot()
    assert (now.active, now.connecting, now.waiting, now.idle) == (0, 0, 0, 1)


async def test_who_waits_for_a_fresh_one_opens_it() -> None:
    pool = make(make_runtime(), max_connections=1)
    lease = take(pool)
    assert pool.acquire_nowait(HERE, fresh=True) is None
    got: list[Lease] = []

    async def queue_up() -> None:
        got.append(await wait(pool, HERE, None, fresh=True))

    async with anyio.create_task_group() as group:
        group.start_soon(queue_up)
        await until(lambda: pool.waiting == 1)
        lease.release()

    assert got[0].pooled is None
    assert connection_of(lease).is_closed


async def test_a_failed_dial_lets_the_next_one_try() -> None:
    pool = make(make_runtime(), multiplexes=True)
    slot = have(pool.acquire_nowait(HERE))
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("a")
        slot.release()

    ((_, got),) = queue.got
    assert isinstance(got, Lease)
    assert got.pooled is None


@pytest.mark.parametrize(("max_exchanges", "shared"), [(3, 2), (1, 0)])
async def test_who_awaits_a_handshake_shares_it_or_dials(max_exchanges: int, shared: int) -> None:
    pool = make(make_runtime(), multiplexes=True)
    slot = have(pool.acquire_nowait(HERE))
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("a")
        await queue.add("b")
        slot.attach(cast("Any", Connection(max_exchanges)))

    pooled = [cast("Lease", got).pooled for _, got in queue.got]
    assert pooled.count(slot.pooled) == shared
    assert pooled.count(None) == 2 - shared


async def test_closing_sends_away_who_waits() -> None:
    pool = make(make_runtime(), max_connections=1)
    take(pool)
    queue = Queue(pool)
    async with anyio.create_task_group() as queue.group:
        await queue.add("a", HERE)
        await queue.add("b", THERE)
        pool.close()

    assert [type(got) for _, got in queue.got] == [TransportClosed, TransportClosed]


async def test_draining_ends_with_the_last_lease() -> None:
    pool = make(make_runtime())
    first, second = take(pool, HERE), take(pool, THERE)
    pool.retire()
    drained = anyio.Event()

    async def drain() -> None:
        await pool.drained(60)
        drained.set()

    async with anyio.create_task_group() as group:
        group.start_soon(drain)
        await settle()
        first.release()
        await settle()
        assert not drained.is_set()
        second.release()
        with anyio.fail_after(10):
            await drained.wait()


async def test_draining_ends_in_time() -> None:
    pool = make(make_runtime())
    lease = take(pool)
    pool.retire()

    with anyio.fail_after(10):
        await pool.drained(0.02)

    assert not connection_of(lease).is_closed
    lease.release()
    with anyio.fail_after(10):
        await pool.drained(60)


async def test_draining_ends_when_the_pool_is_closed() -> None:
    pool = make(make_runtime())
    take(pool)
    pool.retire()

    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            group.start_soon(pool.drained, 60)
            await settle()
            pool.close()


# --- what a failure means for a retry


def test_what_a_failure_means_for_sending_it_again() -> None:
    def verdict(error: TransportError, *, sent: int, started: bool = False) -> str:
        attempt = ExchangeAttempt(cast("Runtime", None), Timeouts(), 0.0)
        attempt.bytes_sent = sent
        attempt.response_started = started
        attempt.describe(error)
        return error.replay

    refused = GoAway("id above the last one")
    refused.replay = "safe"
    before: list[TransportError] = [ConnectError(), CertificateError(), StreamRefused()]
    for error in before:
        assert verdict(error, sent=0) == "safe"
    assert verdict(StreamRefused(), sent=100) == "safe"
    assert verdict(refused, sent=100) == "safe"
    assert verdict(InvalidRequest(), sent=0) == "safe"
    assert verdict(RemoteDisconnected(), sent=0) == "safe"
    assert verdict(WriteTimeout(), sent=0) == "safe"
    unanswered = [RemoteDisconnected(), WriteTimeout(), HeadersTimeout(), InvalidRequest()]
    for error in unanswered:
        assert verdict(error, sent=100) == "if_idempotent", error
    answered = [RemoteDisconnected(), ReadTimeout(), HeadersTimeout(), DecodeError()]
    for error in answered:
        assert verdict(error, sent=100, started=True) == "unsafe"


@pytest.mark.parametrize(
    ("sent", "whole", "expected"), [(0, False, False), (5, False, None), (9, True, True)]
)
def test_how_much_was_sent_is_yes_no_or_in_between(
    sent: int, whole: bool, expected: bool | None
) -> None:
    attempt = ExchangeAttempt(cast("Runtime", None), Timeouts(), 0.0)
    attempt.bytes_sent = sent
    if whole:
        attempt.begin("headers")
    error = RemoteDisconnected()

    attempt.describe(error)

    assert (error.request_sent, error.bytes_sent) == (expected, sent)


def test_of_an_attempt_that_is_renewed_nothing_has_happened_yet() -> None:
    attempt, new = (
        ExchangeAttempt(cast("Runtime", None), Timeouts(write=1, headers=2), 0.0) for _ in range(2)
    )
    attempt.begin("headers")
    attempt.begin("body")
    attempt.bytes_sent = 5
    attempt.response_started = attempt.is_body_untouched = attempt.is_untaken = True
    attempt.head_due_from = 0.0  # set when the next exchange begins

    attempt.renew()

    for name in ExchangeAttempt.__slots__:
        assert getattr(attempt, name) == getattr(new, name), name
    assert new.due_is_total is False


async def test_the_total_deadline_is_told_from_the_others_whenever_it_fires() -> None:
    """Timers of uvloop have whole milliseconds and fire early: the clock cannot tell."""
    for _ in range(20):
        timeouts = Timeouts(headers=None, read=None, total=0.0104)
        attempt = ExchangeAttempt(make_runtime(), timeouts, monotonic())
        attempt.begin("headers")
        with pytest.raises(DeadlineExceeded) as caught:
            await attempt.wait(anyio.sleep_forever())
        assert caught.value.phase == "headers"


async def test_the_deadline_of_the_phase_is_told_when_it_comes_first() -> None:
    timeouts = Timeouts(headers=0.01, total=30)
    attempt = ExchangeAttempt(make_runtime(), timeouts, monotonic())
    attempt.begin("headers")

    with pytest.raises(HeadersTimeout, match=r"0\.01 s"):
        await attempt.wait(anyio.sleep_forever())


@pytest.mark.parametrize(
    "kind", [Call, ConnectionInfo, Lease, LeasedBody, Request, Response, Ticket, Timings]
)
def test_what_is_made_for_each_call_has_no_dict_of_its_own(kind: type) -> None:
    """How much memory a call takes must not depend on how many others had begun before it."""
    assert kind.__dictoffset__ == 0
