"""The httpx transport: the family's, on httpx and httpcore. Knows the two imports and no more."""

from __future__ import annotations

import httpcore
import httpx

from trunkline_httpx._family import make_family
from trunkline_httpx._transport import FamilyTransport, capabilities

HTTPX = make_family(httpx, httpcore)


class HttpxTransport(FamilyTransport):
    """Trunkline's transport on httpx: HTTP/1.1 by httpx, HTTP/2 by h2, on asyncio and trio.

    A SOCKS proxy needs socksio (`pip install 'trunkline[socks]'`).

    Raises:
        UnsupportedOption: the config needs what is not installed.
    """

    capabilities = capabilities("httpx")
    family = HTTPX
