"""Connections for backends whose library does not dial: sockets and TLS on asyncio, uvloop, trio.

A `StreamDialer` looks a name up, connects to the first address that answers, shakes hands, tells
the dial each step, and raises what the contract says: all but proxies. The steps are here one by
one too. A `Stream` reads and writes; what is said over it is not known here.
"""

from trunkline.net._open import (
    StreamDialer as StreamDialer,
    dial_tcp as dial_tcp,
    open_stream as open_stream,
    open_tcp as open_tcp,
    open_unix as open_unix,
    opening_error as opening_error,
    start_tls as start_tls,
)
from trunkline.net._streams import (
    FAIR_SHARE as FAIR_SHARE,
    RECEIVE_SIZE as RECEIVE_SIZE,
    SocketStream as SocketStream,
    Stream as Stream,
    TLSStream as TLSStream,
    give_way as give_way,
)
