"""What the tables of HTTP/2 faults are written with: stages, outcomes by name, and what is watched.

This module knows the lab's model and the vocabulary of frames. It states no fault.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import anyio
from tests.faults._lab import (
    ID,
    THE_CALL,
    Act,
    Answers,
    Ask,
    Client,
    Fails,
    Fault,
    MakeStage,
    Reply,
    Stage,
    call,
)

from trunkline import (
    BodyTruncated,
    GoAway,
    HeadersTimeout,
    LimitExceeded,
    ReadTimeout,
    RemoteDisconnected,
    RemoteProtocolError,
    StreamRefused,
    StreamReset,
    Tls,
    WriteTimeout,
)
from trunkline.testing import Certificates, FrameServer
from trunkline.testing._frames import FrameScript, FrameStep
from trunkline.testing.frames import CANCEL, expect_request, greet, serve

Expect: TypeAlias = Fails | Answers | tuple[Fails | Answers, ...]
Saw: TypeAlias = Callable[[FrameServer], Awaitable[None]]

CALL_ID = 1
"""The stream of the call, where it is the first."""

GOOD: FrameScript = (greet(), serve())

RIGHT = Answers(body=b"/call")
PAGE = Answers(body=b"page")

GONE = Fails(error=RemoteDisconnected, phase="headers", replay="if_idempotent", started=False)
CUT_BODY = Fails(error=BodyTruncated, phase="body")
BAD_LINE = Fails(error=RemoteProtocolError, phase="headers", replay="if_idempotent", started=False)
"""Something that is of no stream, or of another."""
BAD_STREAM = BAD_LINE
BAD_HEAD = Fails(error=RemoteProtocolError, phase="headers")
BAD_BODY = Fails(error=RemoteProtocolError, phase="body")
LARGE_HEAD = Fails(error=LimitExceeded, phase="headers")
TOO_MUCH = replace(BAD_LINE, error=LimitExceeded)
RESET = Fails(error=StreamReset, phase="headers", replay="if_idempotent", started=False)
RESET_BODY = Fails(error=StreamReset, phase="body")
REFUSED = Fails(
    error=StreamRefused, phase="headers", replay="safe", started=False, attempts=3, reused=None
)
SENT_AWAY = Fails(error=GoAway, phase="headers", replay="if_idempotent", started=False)
NO_HEAD = Fails(error=HeadersTimeout, phase="headers", replay="if_idempotent", started=False)
NO_BODY = Fails(error=ReadTimeout, phase="body")
NOT_TAKEN = Fails(
    error=WriteTimeout, phase="write", replay="if_idempotent", sent="partly", started=False
)


# -- stages ----------------------------------------------------------------------------------------


def framed(*scripts: FrameScript, good: bool = False, plain: bool = False) -> MakeStage:
    """A server whose first connections get `scripts`, and all that follow good answers.

    With `good`, the good requests go to a server of their own. With `plain` it has no TLS, and its
    clients have to know beforehand that it speaks HTTP/2.
    """

    @contextmanager
    def stage(certificates: Certificates) -> Generator[Stage]:
        tls = None if plain else certificates.server_context(alpn=("h2",))
        options: dict[str, Any] = {"http2": "prior_knowledge"}
        if not plain:
            options = {"http2": True, "tls": Tls(ca_file=Path(certificates.ca_file))}
        with FrameServer(*scripts, GOOD, tls=tls) as server, FrameServer(GOOD, tls=tls) as other:
            yield Stage(
                origin=server.url,
                good=other.url if good else "",
                options=options,
                servers=(server, other),
                seen=lambda: server.processed()[THE_CALL],
            )

    return stage


def server_of(stage: Stage) -> FrameServer:
    return cast(FrameServer, stage.servers[0])


# -- faults ----------------------------------------------------------------------------------------


def played(
    name: str,
    *scripts: FrameScript,
    expect: Expect = RIGHT,
    act: Act | None = None,
    saw: Saw | None = None,
    good: bool = False,
    plain: bool = False,
    **more: Any,
) -> Fault:
    """The first connections get `scripts`, all others are good.

    After the call `saw` looks at what the server has seen; and no client may do what HTTP/2
    forbids, or have a POST processed twice.
    """
    return Fault(
        name=f"HTTP/2: {name}",
        stage=framed(*scripts, good=good, plain=plain),
        expect=expect,
        act=_watched(act or _alone, saw),
        needs=("http2", "prior_knowledge") if plain else ("http2",),
        **more,
    )


def fault(name: str, *steps: FrameStep, expect: Expect = RIGHT, **more: Any) -> Fault:
    """The server reads the call, takes `steps`, and serves on."""
    before = [serve(more["before"])] if more.get("before") else []
    return played(
        name, [greet(), *before, expect_request(), *steps, serve()], expect=expect, **more
    )


def broken(name: str, *steps: FrameStep, expect: Expect = BAD_LINE, **more: Any) -> Fault:
    """`fault`, after which nothing on the connection can be right: it must not be used again."""
    return fault(name, *steps, expect=expect, ends_connection=True, **more)


async def _alone(client: Client, stage: Stage, ask: Ask) -> Reply:
    return await call(client, stage.origin, ask)


def _watched(act: Act, saw: Saw | None) -> Act:
    async def watch(client: Client, stage: Stage, ask: Ask) -> Reply:
        server = server_of(stage)
        try:
            return await act(client, stage, ask)
        finally:
            if saw is not None:
                await saw(server)
            _check(server)

    return watch


def _check(server: FrameServer) -> None:
    if server.violations:
        raise BrokeHttp2(server.violations[0])
    posts = [each for each in server.streams if each.method == "POST" and not each.refused]
    if len({each.header(ID) for each in posts}) < len(posts):
        raise ProcessedTwice(f"{len(posts)} POSTs")


# -- what the server must have seen ----------------------------------------------------------------


class BrokeHttp2(AssertionError):
    """The client sent what HTTP/2 forbids."""


class ProcessedTwice(AssertionError):
    """The server took on a POST twice."""


class NotReset(AssertionError):
    """The server was not told that an answer is not wanted any more, or not by CANCEL."""


class OtherConnection(AssertionError):
    """A connection was given up that was good, or used that was not."""


class SiblingHurt(AssertionError):
    """What became of one stream had to do with another."""


async def look(
    server: FrameServer, predicate: Callable[[], bool], error: type[AssertionError]
) -> None:
    """Wait until the server sees it; raise `error` if it does not."""
    try:
        await server.until(predicate, 2.0)
    except TimeoutError as cause:
        raise error(str(cause)) from cause


async def cancelled(server: FrameServer) -> None:
    """The client has reset the stream of the call, by CANCEL."""

    def is_reset() -> bool:
        streams = [each for each in server.streams if each.header(ID) == THE_CALL]
        return bool(streams) and streams[-1].reset == CANCEL

    await look(server, is_reset, NotReset)


def connections(number: int) -> Saw:
    async def check(server: FrameServer) -> None:
        if server.connections != number:
            raise OtherConnection(f"{server.connections} connections, not {number}")

    return check


# -- several calls ---------------------------------------------------------------------------------


async def results(*calls: Callable[[], Awaitable[Reply]]) -> list[Reply | Exception]:
    """What came of calls that were made at once."""
    found: dict[int, Reply | Exception] = {}

    async def one(number: int, make: Callable[[], Awaitable[Reply]]) -> None:
        try:
            found[number] = await make()
        except Exception as error:  # noqa: BLE001  # it is what came of it
            found[number] = error

    async with anyio.create_task_group() as group:
        for number, make in enumerate(calls):
            group.start_soon(one, number, make)
    return [found[number] for number in range(len(calls))]


def sibling(
    client: Client, stage: Stage, path: str, content: bytes | None = None
) -> Callable[[], Awaitable[Reply]]:
    """A GET beside the call, or a POST of `content`, which the server tells by its path."""
    method = "GET" if content is None else "POST"
    ask = Ask(method=method, path=path, headers=((ID, path),), content=content)
    return lambda: client.fetch(stage.origin, ask)


async def seen(stage: Stage, number: int) -> None:
    """Wait until the server has the heads of so many requests."""
    server = server_of(stage)
    await server.until(lambda: len(server.streams) >= number)


def only(result: Reply | Exception) -> Reply:
    if isinstance(result, Exception):
        raise result
    return result


def unhurt(results: list[Reply | Exception], *bodies: bytes) -> None:
    """The siblings have to have got these answers."""
    for result, body in zip(results, bodies, strict=True):
        if not isinstance(result, Reply) or result.body != body:
            raise SiblingHurt(repr(result))
