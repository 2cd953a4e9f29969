"""All faults, in the order of the table."""

from __future__ import annotations

from tests.faults import (
    codings,
    dns,
    http1_bodies,
    http1_ends,
    http1_heads,
    http1_time,
    http2,
    proxy,
    refused,
    tls,
)
from tests.faults._lab import Fault, Group

CHAPTERS: tuple[tuple[str, tuple[Group, ...]], ...] = (
    (
        "HTTP/1.1",
        (*http1_ends.GROUPS, *http1_heads.GROUPS, *http1_bodies.GROUPS, *http1_time.GROUPS),
    ),
    ("HTTP/2", http2.GROUPS),
    ("TCP and TLS", tls.GROUPS),
    ("Name resolution", dns.GROUPS),
    ("Proxies", proxy.GROUPS),
    ("Content codings", codings.GROUPS),
    ("Requests that must not be sent", refused.GROUPS),
)

FAULTS: tuple[Fault, ...] = tuple(
    fault for _, groups in CHAPTERS for group in groups for fault in group.faults
)
