"""The one pool, for backends: derive from `PooledTransport` and supply a `Dialer`.

A backend that has a pool of its own finds here what it shares with the others: `check_capabilities`
refuses what it cannot do, a `Runtime` has the deadlines of the event loop, and an `Alarm` the log's
warnings of `warn_utilization`.
"""

from trunkline.pool._alarm import Alarm as Alarm
from trunkline.pool._runtime import (
    Runtime as Runtime,
    Scope as Scope,
    Waiter as Waiter,
    make_runtime as make_runtime,
)
from trunkline.pool._transport import (
    PooledTransport as PooledTransport,
    check_capabilities as check_capabilities,
)
