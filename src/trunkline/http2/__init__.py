"""HTTP/2 for backends: the client's side of a connection over the `h2` library, without any IO.

A backend owns the socket and the waiting: it makes an `Http2Engine`, feeds it what comes, sends
what it gives, and runs each request as an `Http2Exchange`. Framing, header compression and the
state of streams are the library's; flow control, the rules for header fields, what a failure means
and the bounds on what a peer may do are here.
"""

from trunkline._content import RequestContent as RequestContent
from trunkline.http2._engine import MAX_STREAMS as MAX_STREAMS, Http2Engine as Http2Engine
from trunkline.http2._exchange import Http2Exchange as Http2Exchange

__all__ = ["MAX_STREAMS", "Http2Engine", "Http2Exchange", "RequestContent"]
