"""A process for each client under test, told over a pipe what to do.

Knows processes and pipes. A process of its own keeps one library's memory, garbage and threads out
of another's figures; it does one thing at a time, when told, so that rounds can be interleaved.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeAlias, cast

from benchmarks import _agent, _load
from benchmarks._cores import enter, pin
from benchmarks._model import Agent, Load, Memory, Round, Target, Trip
from benchmarks.clients import Connect, Spec

_PATIENCE = 120.0  # seconds for one command

Command: TypeAlias = tuple[str, Any]


class ClientFailed(Exception):
    """The client could not do it; the text says how."""


class MissingLibrary(Exception):
    """The client's library is not installed."""


class Worker:
    """The harness's end of a client's process."""

    def __init__(self, spec: Spec, pipe: Connection) -> None:
        self.spec = spec
        self._pipe = pipe
        self.is_alive = True

    def check(self) -> None:
        """Wait until the library is imported. Raises MissingLibrary."""
        self._receive()

    def open(self, target: Target) -> None:
        """Make a client for `target`, instead of the one before."""
        self._ask("open", target)

    def round(self, load: Load) -> Round:
        answer: Round = self._ask("run", load)
        return answer

    def agent(self, agent: Agent) -> Trip:
        answer: Trip = self._ask("agent", agent)
        return answer

    def idle(self, load: Load) -> Memory:
        answer: Memory = self._ask("idle", load)
        return answer

    def streams(self, load: Load) -> Memory:
        answer: Memory = self._ask("streams", load)
        return answer

    def close(self) -> None:
        self._ask("close", None)

    def _ask(self, name: str, argument: object) -> Any:
        if not self.is_alive:
            raise ClientFailed("its process is gone")
        self._pipe.send((name, argument))
        return self._receive()

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(_PATIENCE):
                raise ClientFailed(f"no answer in {_PATIENCE:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, ClientFailed) as error:
            self.is_alive = False
            raise ClientFailed(str(error) or "its process ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def start(
    spec: Spec, core: int, *, uvloop: bool = False, namespace: str | None = None
) -> Generator[Worker]:
    """Run `spec`'s process on `core`; it is ended at the end of the block, whatever it does.

    In `namespace`, the path of a network namespace, where one is given.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_main, args=(spec, theirs, core, uvloop, namespace), daemon=True
    )
    process.start()
    theirs.close()
    try:
        yield Worker(spec, ours)
    finally:
        ours.close()
        process.join(2)
        process.kill()
        process.join()


def _main(spec: Spec, pipe: Connection, core: int, uvloop: bool, namespace: str | None) -> None:
    if namespace is not None:
        enter(namespace)
    try:
        connect = spec.load()
    except ModuleNotFoundError as error:
        pipe.send(
            MissingLibrary(f"{spec.name}: no module {error.name}: pip install {spec.install}")
        )
        return
    pin(0, core)  # not before: imports are not measured here, and may share every core
    pipe.send(None)
    with asyncio.Runner(loop_factory=_factory(uvloop)) as runner:
        runner.run(_serve(connect, pipe))


def _factory(uvloop: bool) -> Any:
    if not uvloop:
        return None
    import uvloop as faster

    return faster.new_event_loop


async def _serve(connect: Connect, pipe: Connection) -> None:
    """Obey until the harness closes the pipe, or is gone."""
    served = _Served(connect)
    with suppress(EOFError, ConnectionError):
        while True:
            name, argument = await asyncio.to_thread(pipe.recv)
            try:
                answer: object = await getattr(served, name)(argument)
            except Exception as error:  # noqa: BLE001 - a client under test may raise anything
                answer = ClientFailed(told(error))
            pipe.send(answer)


def told(error: Exception) -> str:
    """What went wrong first, in a line."""
    inner: Any = error
    while isinstance(inner, ExceptionGroup):
        inner = cast("ExceptionGroup[Exception]", inner).exceptions[0]
    return f"{type(inner).__name__}: {inner}"


class _Served:
    """What a process can be told to do."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._stack = AsyncExitStack()

    async def open(self, target: Target) -> None:
        await self.close(None)
        self._target = target
        self._client = await self._stack.enter_async_context(self._connect(target))

    async def run(self, load: Load) -> Round:
        return await _load.run(self._client, self._target, load)

    async def agent(self, agent: Agent) -> Trip:
        return await _agent.run(self._connect, agent)

    async def idle(self, load: Load) -> Memory:
        return await _load.idle(self._client, self._target, load)

    async def streams(self, load: Load) -> Memory:
        return await _load.streams(self._client, self._target, load)

    async def close(self, _: None) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()
