"""The fault lab: what a fault is, and the stage it is played on.

This module knows a fault as data. It does not know any fault (`catalogue`) or client (`clients`),
how one is played against the other (`_play`), or whether what comes of it is right (`_judge`).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

from trunkline import Timeouts, Tls, TransportError
from trunkline._errors import Phase, Replay
from trunkline.testing import Certificates
from trunkline.testing._conversation import ReceivedRequest
from trunkline.testing._script import answer, response, serve, start_tls
from trunkline.testing._servers import Script, ScriptedServer

DEADLINE = 0.25
"""Seconds of the deadline that bounds a fault."""

OTHERS = 3.0
"""Seconds of all other deadlines: one of them passes only if the fault was not noticed."""

ALLOWANCE = 1.0
"""Seconds that a busy machine may take beside what a fault is given."""

PATIENT = Timeouts(pool=OTHERS, connect=OTHERS, write=OTHERS, headers=OTHERS, read=OTHERS)

MEMORY = 48 * 2**20
"""Bytes by which the resident memory may grow, in the middle of a fault, servers included."""

ID = "X-Request-Id"
THE_CALL = "the-call"

Content: TypeAlias = bytes | Callable[[], AsyncIterable[bytes]] | None


# -- what is expected ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fails:
    """The call has to raise this, with these facts; `None` among them is "not looked at".

    Attributes:
        error: the class, exactly. A tuple where the kernel decides which it is.
        phase, replay, reused, attempts: as on `TransportError`; a tuple of phases likewise.
        sent: `request_sent`: True, False, or "partly" for its None.
        started: `response_started`.
    """

    error: type[TransportError] | tuple[type[TransportError], ...]
    phase: Phase | tuple[Phase, ...] | None
    replay: Replay | None = "unsafe"
    sent: bool | str | None = True
    started: bool | None = True
    reused: bool | None = False
    attempts: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The call has to get this answer, whole; `body` None is "not looked at"."""

    status: int = 200
    body: bytes | None = b"page"


Expect: TypeAlias = Fails | Answers | tuple[Fails | Answers, ...]
"""A tuple where the parser may choose."""


# -- what is played --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, whichever client sends it. `content` may be a function that makes an iterable.

    The deadlines of the call are in the `ask` that `Fault.act` gets; all other requests have
    `OTHERS`.
    """

    method: str = "POST"
    path: str = "/call"
    headers: tuple[tuple[str, str], ...] = ()
    content: Content = b"order"
    timeouts: Timeouts | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes


class Client(Protocol):
    """What a fault is played against."""

    async def fetch(self, url: str, ask: Ask) -> Reply:
        """Send, read the whole body (decoded), close. Raises what the client raises."""
        ...

    def at_work(self) -> str:
        """What its pool says is not idle; "" if all is, or it cannot be seen."""
        ...

    async def aclose(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Stage:
    """The servers of one fault, running.

    Attributes:
        origin: where the call goes, e.g. "http://127.0.0.1:1234".
        good: where the good requests go that have to work after it; by default the same.
        options: of `TransportConfig`: tls, dns, proxy ...
        servers: of them the lab asks `open_connections` (has to become 0) and calls `release`.
        seen: how often the call arrived at a server, by its `ID` header.
    """

    origin: str
    good: str = ""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    servers: tuple[ScriptedServer, ...] = ()
    seen: Callable[[], int] | None = None


MakeStage: TypeAlias = Callable[[Certificates], AbstractContextManager[Stage]]
Act: TypeAlias = Callable[[Client, Stage, Ask], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. `name` says what the server does; it is unique, and what the table shows.

    Attributes:
        stage: starts the servers.
        expect: what the caller must see. A tuple where RFC 9112 leaves it to the parser.
        ask: the request.
        options: of `TransportConfig`, over the stage's.
        bounded_by: the field of `Timeouts` that ends it; set to `DEADLINE`, all others to `OTHERS`.
        before: good requests on the same connection before the call.
        needs: capabilities of the client (`trunkline.Capabilities`, or "nameservers", "uds",
            "pool-limit", "pool-timeout"); others skip it.
        act: what is done instead of one `client.fetch`.
        ends_connection: no good request may go over the call's connection.
        recovers: good requests work after it.
        memory: bytes the resident memory may grow meanwhile.
        why: shown under the table: what can't be cured, or a choice that has to be explained.
    """

    name: str
    stage: MakeStage
    expect: Expect
    ask: Ask = Ask()
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    bounded_by: str | None = None
    before: int = 0
    needs: tuple[str, ...] = ()
    act: Act | None = None
    ends_connection: bool = False
    recovers: bool = True
    memory: int = MEMORY
    why: str = ""

    @property
    def allowed(self) -> tuple[Fails | Answers, ...]:
        return self.expect if isinstance(self.expect, tuple) else (self.expect,)

    @property
    def timeouts(self) -> Timeouts:
        """Of the call."""
        if self.bounded_by is None:
            return PATIENT
        return PATIENT.model_copy(update={self.bounded_by: DEADLINE})


@dataclass(frozen=True, slots=True)
class Group:
    """Faults under one heading of the table.

    `is_parsing`: they are of what was received, not of how: the event loop makes no difference.
    """

    title: str
    faults: tuple[Fault, ...]
    is_parsing: bool = False


# -- stages ----------------------------------------------------------------------------------------


def echo(request: ReceivedRequest) -> bytes:
    """A good answer: it says which request it is for."""
    # To a proxy that forwards, the target is a whole URL.
    return response(200, urlsplit(request.target).path.encode())


GOOD: Script = serve(echo)


def count_calls(*servers: ScriptedServer) -> Callable[[], int]:
    return lambda: sum(
        request.header(ID) == THE_CALL for server in servers for request in server.requests
    )


def scripted(*scripts: Script) -> MakeStage:
    """A plain server whose first connections get `scripts`, and all that follow good answers."""

    @contextmanager
    def stage(certificates: Certificates) -> Generator[Stage]:
        with ScriptedServer(*scripts, GOOD) as server:
            yield Stage(origin=server.url, servers=(server,), seen=count_calls(server))

    return stage


def secure(make: Callable[[Certificates], Script], host: str = "127.0.0.1") -> MakeStage:
    """The same on https: the first connection gets a script that has to start TLS by itself."""

    @contextmanager
    def stage(certificates: Certificates) -> Generator[Stage]:
        good = [start_tls(certificates.server_context()), *GOOD]
        with ScriptedServer(make(certificates), good) as server:
            yield Stage(
                origin=f"https://{host}:{server.port}",
                options={"tls": Tls(ca_file=Path(certificates.ca_file))},
                servers=(server,),
                seen=count_calls(server),
            )

    return stage


def after_one(script: Script) -> Script:
    """`script` on a connection that has carried a good exchange: for faults with `before=1`."""
    return [answer(echo), *script]


# -- what acts are made of -------------------------------------------------------------------------


async def call(client: Client, origin: str, ask: Ask) -> Reply:
    """The call of a fault, which the servers can tell from the good requests."""
    return await client.fetch(origin, replace(ask, headers=((ID, THE_CALL), *ask.headers)))
