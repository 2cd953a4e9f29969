"""The one pool, for backends: derive from `PooledTransport` and supply a `Dialer`."""

from trunkline.pool._runtime import make_runtime as make_runtime
from trunkline.pool._transport import PooledTransport as PooledTransport
