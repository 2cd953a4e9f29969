"""What a caller holds: the right to a connection, or to open one.

This module knows one lease. It does not know who else has one, or who gets the next.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from trunkline._contract import Connection
from trunkline._errors import TransportClosed
from trunkline.pool._origin import OriginState, Pooled

if TYPE_CHECKING:
    from trunkline.pool._pool import Pool


class Lease:
    """The right to run one exchange on a connection, or to open one. It has one owner.

    `pooled` is None while it is a slot. `waited` is for how many seconds who got it by
    `Pool.claim` did.
    """

    __slots__ = ("_pool", "_state", "pooled", "reused", "waited")

    waited: float

    def __init__(self, pool: Pool, state: OriginState, pooled: Pooled | None) -> None:
        self._pool: Pool | None = pool
        self._state = state
        self.pooled = pooled
        self.reused = pooled is not None and pooled.exchanges > 0

    def attach(self, connection: Connection) -> Pooled:
        """The slot's connection is open.

        Raises:
            TransportClosed: the pool was closed meanwhile, and the connection with it.
        """
        pool = self._pool
        if pool is None or pool.is_closed:
            connection.close()
            raise TransportClosed(
                "the transport was closed while a connection was being opened", phase="connect"
            )
        self.pooled = pool.attach(self._state, connection)
        return self.pooled

    def release(self, now: float | None = None) -> None:
        """Give it back. Synchronous and idempotent. `now`: of the monotonic clock, if known."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.take_back(self._state, self.pooled, now or monotonic())
