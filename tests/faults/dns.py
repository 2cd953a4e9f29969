"""Faults of name resolution: refusals, silence, answers that are of no use."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import anyio
from tests.faults._lab import GOOD, Answers, Ask, Client, Fails, Fault, Group, Reply, Stage, call

from trunkline import ConnectError, ConnectTimeout, Dns, DNSError
from trunkline.testing import Certificates, DNSServer
from trunkline.testing._dns_server import NXDOMAIN, SERVFAIL, SILENCE, Answer, addresses
from trunkline.testing._servers import ScriptedServer

_HERE = addresses("127.0.0.1")
_NEEDS = ("asyncio", "nameservers")
_NO_NAME = Fails(error=DNSError, phase="dns", replay="safe", sent=False, started=False,
                 attempts=0)  # fmt: skip
_SLOW = replace(_NO_NAME, error=ConnectTimeout)
_NOBODY_THERE = replace(_NO_NAME, error=ConnectError, phase="connect")
_FOUND = Answers(body=b"/call")


def _named(name: str, answer: Answer, expect: Fails | Answers, **more: object) -> Fault:
    """A name server that says this of the call's host, and the truth of all others."""

    @contextmanager
    def stage(certificates: Certificates) -> Generator[Stage]:
        names = {"call.test": answer, "good.test": _HERE}
        with ScriptedServer(GOOD) as server, DNSServer(names) as dns:
            yield Stage(
                origin=f"http://call.test:{server.port}",
                good=f"http://good.test:{server.port}",
                options={"dns": Dns(nameservers=(dns.address,))},
                servers=(server,),
            )

    return Fault(name=name, stage=stage, expect=expect, needs=_NEEDS, **more)  # type: ignore[arg-type]


async def _beside(client: Client, stage: Stage, ask: Ask) -> Reply:
    """The call, with calls to another host beside it, which have to end first."""
    others: list[int] = []
    reply: Reply | Exception | None = None

    async def good() -> None:
        for number in range(5):
            ask = Ask(method="GET", path=f"/beside/{number}", content=None)
            others.append((await client.fetch(stage.good, ask)).status)

    async with anyio.create_task_group() as group:
        group.start_soon(good)
        try:
            reply = await call(client, stage.origin, ask)
        except Exception as error:  # noqa: BLE001  # raised below: the group would wrap it
            reply = error
        assert others == [200] * 5, f"calls to another host were held up: {others}"
    if isinstance(reply, Exception):
        raise reply
    assert reply is not None
    return reply


NAMES = Group(
    "Names",
    (
        _named("NXDOMAIN", NXDOMAIN, _NO_NAME),
        _named("SERVFAIL", SERVFAIL, _NO_NAME),
        _named("REFUSED", Answer(code="REFUSED"), _NO_NAME),
        _named("FORMERR", Answer(code="FORMERR"), _NO_NAME),
        _named("NOTIMP", Answer(code="NOTIMP"), _NO_NAME),
        _named("an answer without an address", addresses(), _NO_NAME),
        _named("a name server that is silent", SILENCE, _SLOW, bounded_by="connect"),
        _named("the same, with calls to another host beside it", SILENCE, _SLOW,
               bounded_by="connect", act=_beside),
        _named("an answer that comes too late", Answer(("127.0.0.1",), delay=1.0), _SLOW,
               bounded_by="connect"),
        _named("an answer that is slow", Answer(("127.0.0.1",), delay=0.3), _FOUND),
        _named("an IPv6 address only, where nobody listens", addresses("::1"), _NOBODY_THERE),
        _named("an address where nobody listens", addresses("127.0.0.9"), _NOBODY_THERE),
        _named("an address where nobody listens, and a good one",
               addresses("127.0.0.9", "127.0.0.1"), _FOUND),
        _named("an IPv6 address where nobody listens, and a good one",
               addresses("::1", "127.0.0.1"), _FOUND),
        _named("twenty addresses where nobody listens, and a good one",
               addresses(*(f"127.0.1.{each}" for each in range(1, 21)), "127.0.0.1"), _FOUND),
    ),
)  # fmt: skip

GROUPS = (NAMES,)
