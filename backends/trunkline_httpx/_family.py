"""What an exchange takes from the library: httpx on httpcore, or their successors by another name.

httpx2 on httpcore2 have the same interface, so this backend and `trunkline_httpx2` share everything
but two imports. This module knows what is taken. It imports neither library.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from trunkline_httpx._message import RequestBody
from trunkline_httpx._translate import Table, exchange_table


@dataclass(frozen=True, slots=True)
class Family:
    """Two libraries that belong together.

    Attributes:
        client: httpx, or what looks like it.
        core: httpcore, or what looks like it.
        table: their exceptions during an exchange.
        body: content on its way out, as `client` takes it.
        origin: of every connection; nothing is sent of it.
    """

    client: Any
    core: Any
    table: Table
    body: type[RequestBody]
    origin: Any


def make_family(client: ModuleType, core: ModuleType) -> Family:
    """The family of these two modules."""
    libraries: tuple[Any, Any] = (client, core)
    client_, core_ = libraries
    return Family(
        client=client_,
        core=core_,
        table=exchange_table(client_, core_),
        body=type("Body", (RequestBody, client_.AsyncByteStream), {}),
        origin=core_.Origin(b"http", b"origin", 80),
    )
