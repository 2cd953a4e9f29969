"""The httpx2 transport: that of `trunkline_httpx`, on httpx2 and httpcore2.

Knows the two imports and no more.
"""

from __future__ import annotations

import httpcore2
import httpx2

from trunkline_httpx._family import make_family
from trunkline_httpx._transport import FamilyTransport, capabilities


class Httpx2Transport(FamilyTransport):
    """Trunkline's transport on httpx2: HTTP/1.1 by httpx2, HTTP/2 by h2, on asyncio and trio.

    A SOCKS proxy needs socksio (`pip install 'trunkline[socks]'`).

    Raises:
        UnsupportedOption: the config needs what is not installed.
    """

    capabilities = capabilities("httpx2")
    family = make_family(httpx2, httpcore2)
