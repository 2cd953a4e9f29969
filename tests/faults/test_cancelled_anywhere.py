"""A call that is cancelled at each of its steps, one after the other: nothing is ever left.

A step is one time that the task of the call, or a task that it started, gives way to the event
loop. A call is made again and again, and cancelled at its first step, its second, and so on until
it ends by itself: while resolving, connecting, shaking hands, queueing, sending, waiting for the
head, reading the body.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
import sniffio
from tests.faults._left import LOOPS, Baseline

import trunkline
from trunkline import Limits, Request, Timeouts, Tls, Transport, TransportConfig, TransportTimeout
from trunkline._registry import capabilities_of
from trunkline.testing import Certificates, FrameServer
from trunkline.testing._conversation import Conversation
from trunkline.testing._script import chunk, chunked, response
from trunkline.testing._servers import ScriptedServer
from trunkline.testing._transcript import Stream
from trunkline.testing.frames import CANCEL, data, greet, head, pause, serve

MOST_STEPS = 200
PAUSE = 0.001  # seconds between the parts of an answer: each wakes the call
PATIENT = Timeouts(pool=30.0, connect=30.0, write=30.0, headers=30.0, read=30.0)


# -- steps -----------------------------------------------------------------------------------------

OnStep: TypeAlias = Callable[[Any], object]


class Steps:
    """Awaits `call`, and tells `on_step` of those of its steps that are in `at`.

    Attributes:
        taken: how many there were.
        has_fired: whether one of `at` was among them.
    """

    def __init__(self, call: Coroutine[Any, Any, None], at: tuple[int, ...]) -> None:
        self._call = call
        self._at = at
        self.on_step: OnStep = lambda awaited: None
        self.taken = 0
        self.has_fired = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self._count(self._call)

    def make_task(
        self, loop: asyncio.AbstractEventLoop, call: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """For `set_task_factory`: the steps of tasks that the call starts are its own."""

        @types.coroutine
        def run() -> Generator[Any, Any, Any]:
            return (yield from self._count(call))

        async def counted() -> Any:
            return await run()

        return asyncio.Task(counted(), loop=loop, **options)

    def _count(self, call: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        inner = call.__await__()
        resume: Callable[[], Any] = partial(inner.send, None)
        while True:
            try:
                awaited = resume()
            except StopIteration as end:
                return end.value
            self.taken += 1
            if self.taken in self._at:
                self.has_fired = True
                self.on_step(awaited)
            try:
                got = yield awaited
            except BaseException as error:  # noqa: BLE001  # it is the call's
                resume = partial(inner.throw, error)
            else:
                resume = partial(inner.send, got)


# -- ways to cancel; each returns whether the call ended by it -------------------------------------


async def by_task(steps: Steps) -> bool:
    return await _in_task(steps, lambda task, awaited: task.cancel())


async def by_task_when_it_is_served(steps: Steps) -> bool:
    """What the call waits for has just come when it is cancelled, and it has not run since."""

    def cancel(task: asyncio.Task[None], awaited: asyncio.Future[Any] | None) -> None:
        if awaited is None:
            task.cancel()
        else:
            awaited.add_done_callback(lambda _: task.cancel())

    return await _in_task(steps, cancel)


async def _in_task(steps: Steps, cancel: Callable[[asyncio.Task[None], Any], object]) -> bool:
    async def run() -> None:
        await steps

    task = asyncio.create_task(run())
    steps.on_step = lambda awaited: cancel(task, awaited)
    with _counting(steps):
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


@contextmanager
def _counting(steps: Steps) -> Generator[None]:
    """On asyncio, count the steps of all the tasks that are started."""
    if sniffio.current_async_library() == "trio":
        yield
        return
    loop = asyncio.get_running_loop()
    loop.set_task_factory(steps.make_task)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def by_scope(steps: Steps) -> bool:
    with anyio.CancelScope() as scope:
        steps.on_step = lambda awaited: scope.cancel()
        with _counting(steps):
            await steps
    return scope.cancelled_caught


async def by_timeout(steps: Steps) -> bool:
    try:
        async with asyncio.timeout(None) as timeout:
            steps.on_step = lambda awaited: timeout.reschedule(0.0)
            with _counting(steps):
                await steps
    except TransportTimeout as error:
        raise AssertionError("the caller's timeout became the transport's") from error
    except TimeoutError:
        return True
    return False


async def by_nursery(steps: Steps) -> bool:
    import trio

    has_ended = False

    async def run() -> None:
        nonlocal has_ended
        await steps
        has_ended = True

    async with trio.open_nursery() as nursery:
        steps.on_step = lambda awaited: nursery.cancel_scope.cancel()
        nursery.start_soon(run)
    return not has_ended


Cancel: TypeAlias = Callable[[Steps], Awaitable[bool]]

WAYS: dict[str, tuple[Cancel, int]] = {
    "task": (by_task, 1),
    "task-when-served": (by_task_when_it_is_served, 1),
    "task-twice": (by_task, 2),
    "scope": (by_scope, 1),
    "timeout": (by_timeout, 1),
    "nursery": (by_nursery, 1),
}
_OF_TRIO = ("scope", "nursery")
_OF_ASYNCIO = ("task", "task-when-served", "task-twice", "scope", "timeout")


# -- calls -----------------------------------------------------------------------------------------


async def _pieces() -> AsyncIterator[bytes]:
    for piece in (b"a", b"b"):
        yield piece
        await anyio.lowlevel.checkpoint()


async def _call(transport: Transport, url: str) -> None:
    request = Request("POST", f"{url}/call", content=_pieces())
    async with await transport.send(request) as answered:
        assert await answered.aread() == b"page"


async def _good(transport: Transport, url: str) -> None:
    with anyio.fail_after(20):
        async with await transport.send(Request("GET", f"{url}/good")) as answered:
            assert await answered.aread() == b"/good"


def _speak_http1(conversation: Conversation) -> None:
    """Answer calls part by part, and everything else at once."""
    while True:
        request = conversation.read_head()
        conversation.read_body(request)
        if request.target != "/call":
            conversation.send(response(200, request.target.encode()))
            continue
        start = response(framing="none")
        for part in (
            start[:9],
            start[9:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
            chunk(b"pa"),
            chunked(b"ge"),
        ):
            conversation.gates.released.wait(PAUSE)
            conversation.send(part)


_SPEAK_HTTP2 = (
    greet(),
    serve(
        call=[pause(PAUSE), head(), pause(PAUSE), data(b"pa"), pause(PAUSE), data(b"ge", end=True)]
    ),
)


@dataclass
class Case:
    """One way to cancel one kind of call; each of its runs is cancelled one step later."""

    backend: str
    protocol: str
    way: str
    config: TransportConfig
    steps: int = 0

    async def run(self, server: ScriptedServer) -> None:
        baseline, step = Baseline(), 1
        while await self._run_once(server, step):
            step += 1
            assert step < MOST_STEPS, "the call has no end"
        self.steps = step - 1
        await baseline.check()

    async def _run_once(self, server: ScriptedServer, step: int) -> bool:
        """Cancel at `step`; False: the call ended before."""
        cancel, times = WAYS[self.way]
        baseline = Baseline()
        transport = trunkline.open_transport(self.config)
        try:
            at = tuple(range(step, step + times))
            steps = Steps(_call(transport, server.url), at)
            was_cancelled = False
            async with anyio.create_task_group() as group:
                if self.protocol == "queue":
                    await self._hold(transport, server.url, group)
                with anyio.fail_after(20):
                    was_cancelled = await cancel(steps)
            # A scope that is cancelled at the very last step may come too late.
            assert was_cancelled == steps.has_fired or (steps.has_fired and "task" not in self.way)
            await self._check(transport, server)
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()
        await baseline.check_descriptors()
        return steps.has_fired

    async def _hold(self, transport: Transport, url: str, group: Any) -> None:
        """Take the one connection, until the call waits for it."""
        held = await transport.send(Request("GET", f"{url}/good"))

        async def let_go() -> None:
            with anyio.move_on_after(0.005):
                while not transport.snapshot().waiting:
                    await anyio.lowlevel.checkpoint()
                await anyio.sleep(0.002)
            await held.aread()

        group.start_soon(let_go)

    async def _check(self, transport: Transport, server: ScriptedServer) -> None:
        now = transport.snapshot()
        assert (now.active, now.connecting, now.waiting) == (0, 0, 0), now
        # What is not idle in the pool is closed, and its server knows.
        with anyio.fail_after(10):
            while server.open_connections > transport.snapshot().open:  # noqa: ASYNC110
                await anyio.sleep(0.0005)
        await _good(transport, server.url)
        if isinstance(server, FrameServer):
            await server.until(lambda: all(map(_is_over, server.streams)))
            assert server.violations == []


def _is_over(stream: Stream) -> bool:
    """Answered, or its server was told that nobody wants the answer."""
    return stream.answered if stream.reset is None else stream.reset == CANCEL


def _cases() -> Iterator[Any]:
    for backend in ("aiohttp", "httpx"):
        for protocol in ("tls", "queue", "h2"):
            for loop in LOOPS:
                if loop == "trio" and not capabilities_of(backend).trio:
                    continue
                missing = loop != "asyncio" and importlib.util.find_spec(loop) is None
                marks = [pytest.mark.skip(reason=f"{loop} is not installed")] if missing else []
                for way in _OF_TRIO if loop == "trio" else _OF_ASYNCIO:
                    name = f"{backend}-{protocol}-{loop}-{way}"
                    yield pytest.param(backend, protocol, loop, way, id=name, marks=marks)


def _serving(protocol: str, certificates: Certificates) -> ScriptedServer:
    if protocol == "h2":
        return FrameServer(_SPEAK_HTTP2, tls=certificates.server_context(alpn=("h2",)))
    tls = None if protocol == "queue" else certificates.server_context()
    return ScriptedServer([_speak_http1], tls=tls)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with Certificates() as made:
        yield made


@pytest.mark.parametrize(("backend", "protocol", "loop", "way"), list(_cases()))
def test_a_call_that_is_cancelled_at_any_step_leaves_nothing(
    backend: str, protocol: str, loop: str, way: str, certificates: Certificates
) -> None:
    options: dict[str, Any] = {"limits": Limits(max_connections=1)}
    if protocol != "queue":
        options["tls"] = Tls(ca_file=Path(certificates.ca_file))
    config = TransportConfig(backend=backend, timeouts=PATIENT, http2=protocol == "h2", **options)
    case = Case(backend, protocol, way, config)
    with _serving(protocol, certificates) as server:
        anyio.run(case.run, server, **LOOPS[loop])
    gc.collect()  # what was dropped unclosed says so now

    assert case.steps > 2, "the call had hardly a step to be cancelled at"
