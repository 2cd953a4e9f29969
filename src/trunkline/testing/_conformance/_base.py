"""What every part of the conformance suite stands on: loops, servers, transports, and patience.

This module knows pytest, anyio's plugin for it, and the contract. It does not know any backend, and
states no behaviour, but for what `Rig` checks at the end of each test: nothing is left.
"""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import pytest
from anyio.abc import TaskGroup

from trunkline._config import Timeouts, Tls, TransportConfig
from trunkline._contract import Capabilities, Transport
from trunkline._messages import Request, Response
from trunkline._registry import capabilities_of, open_transport
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._helpers import counts, until
from trunkline.testing._conversation import ReceivedRequest
from trunkline.testing._promises import PROMISES, promise_of
from trunkline.testing._servers import Script, ScriptedServer

PATIENCE = 30.0
"""Seconds after which a test that waits for something that never comes fails."""

TIMEOUTS = Timeouts(pool=15.0, connect=15.0, write=15.0, headers=15.0, read=15.0)

_OF_A_TEST = (Exception, pytest.fail.Exception, pytest.skip.Exception)
"""What the body of a test ends with when it does not pass."""

Test = TypeVar("Test", bound=Callable[..., object])

_LOOPS: tuple[tuple[str, str, dict[str, Any], str | None], ...] = (
    ("asyncio", "asyncio", {}, None),
    ("uvloop", "asyncio", {"use_uvloop": True}, "uvloop"),
    ("trio", "trio", {}, "trio"),
)


def needs(*capabilities: str) -> Callable[[Test], Test]:
    """Mark a test for backends that have all these `Capabilities`."""

    def decorate(test: Test) -> Test:
        test.__dict__["needs"] = capabilities
        return test

    return decorate


class Call:
    """A call that runs beside the test; `response` or `error` is what came of it.

    It is `cancelled` when it ended by `cancel`.
    """

    def __init__(self, make: Callable[[], Awaitable[Response]]) -> None:
        self.response: Response | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self._make = make

    def cancel(self) -> None:
        self.scope.cancel()

    async def run(self) -> None:
        with self.scope:
            try:
                self.response = await self._make()
            except Exception as error:  # noqa: BLE001  # `result` raises it
                self.error = error
        self.cancelled = self.scope.cancelled_caught
        self.done.set()

    async def result(self) -> Response:
        """Wait for the end. Raises what the call raised."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.response is not None, "the call was cancelled"
        return self.response

    async def failure(self) -> Exception:
        """Wait for the end, which has to be an error."""
        await self.done.wait()
        assert self.error is not None, "the call did not fail"
        return self.error


class Rig:
    """A transport, the scripted server it calls, and tasks to call from."""

    def __init__(self, transport: Transport, server: ScriptedServer, group: TaskGroup) -> None:
        self.transport = transport
        self.server = server
        self._group = group
        self._responses: list[Response] = []

    def url(self, path: str = "/") -> str:
        return self.server.url + path

    def request(self, method: str = "GET", path: str = "/", **options: Any) -> Request:
        return Request(method, self.url(path), **options)

    async def send(self, method: str = "GET", path: str = "/", **options: Any) -> Response:
        """Send, and return with the response open."""
        response = await self.transport.send(self.request(method, path, **options))
        self._responses.append(response)
        return response

    async def fetch_url(self, url: str) -> Response:
        """GET from whatever server."""
        async with await self.transport.send(Request("GET", url)) as response:
            await response.aread()
        return response

    async def fetch(self, method: str = "GET", path: str = "/", **options: Any) -> Response:
        """Send, and read the body to its end."""
        async with await self.send(method, path, **options) as response:
            await response.aread()
        return response

    def close_responses(self) -> None:
        for response in self._responses:
            response.close()

    def start(self, make: Callable[[], Awaitable[Response]]) -> Call:
        call = Call(make)
        self._group.start_soon(call.run)
        return call

    def begin(self, method: str = "GET", path: str = "/", **options: Any) -> Call:
        """`send`, beside the test."""
        return self.start(lambda: self.send(method, path, **options))

    def begin_fetch(self, method: str = "GET", path: str = "/", **options: Any) -> Call:
        """`fetch`, beside the test."""
        return self.start(lambda: self.fetch(method, path, **options))

    @property
    def received(self) -> ReceivedRequest:
        """The request that the server got; there has to be one only."""
        (request,) = self.server.requests
        return request

    def expect_closed(self, **reasons: int) -> None:
        """The snapshot has to say why connections were closed, unless the pool is a library's."""
        if self.transport.capabilities.pooled:
            assert self.transport.snapshot().closed == reasons

    async def until_received(self, count: int = 1) -> None:
        """Wait until the heads of `count` requests have arrived."""
        await until(lambda: len(self.server.requests) >= count)

    async def until_client_closed(self, number: int = 0) -> None:
        """Wait until the server has seen the end of its connection `number`."""
        await until(
            lambda: any(each.client_closed for each in self.server.conversations[number:][:1])
        )


@cache
def _ask_once(capabilities: Callable[[], Capabilities]) -> Capabilities:
    return capabilities()


class Conformance:
    """The frame. See `TransportConformance` for how it is used."""

    backend: ClassVar[str]
    loops: ClassVar[tuple[str, ...]] = ()
    """Of "asyncio", "uvloop" and "trio" those to run on; all of the backend's where empty."""
    patience: ClassVar[float] = PATIENCE
    """Seconds after which a test that waits for what never comes fails."""
    promise: ClassVar[int]
    """Number of the promise that the behaviours of this part belong to; see `keeps`."""
    part_needs: ClassVar[tuple[str, ...]] = ()
    """Capabilities without which no behaviour of this part can be had; see `needs`."""
    pytestmark = pytest.mark.anyio

    # -- what a backend's test class may change ----------------------------------------------------

    @classmethod
    def capabilities(cls) -> Capabilities:
        """What the backend says it can do; tests of anything else are skipped."""
        return capabilities_of(cls.backend)

    def open_transport(self, config: TransportConfig) -> Transport:
        """Make the transport under test; `config.backend` is set."""
        return open_transport(config)

    @pytest.fixture(autouse=True)
    def _name_the_promise(self, request: pytest.FixtureRequest) -> None:
        """Have a test that fails say which promise of `Transport` is broken."""
        name = request.function.__name__
        number = promise_of(type(self), name)
        request.node.add_report_section(str(number), "promise", PROMISES[number])
        missing = self._missing(name)
        if missing:
            pytest.skip(missing)

    # -- loops and gates ---------------------------------------------------------------------------

    @pytest.fixture
    def anyio_backend(self, request: pytest.FixtureRequest) -> object:
        """The event loop, for anyio's plugin: one of those that the backend runs on."""
        return request.param

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test on every loop of the backend; skip those it has no capability for."""
        if "anyio_backend" not in metafunc.fixturenames:
            return
        capabilities = _ask_once(self.capabilities)
        missing = self._missing(metafunc.function.__name__)
        marks = [pytest.mark.skip(reason=missing)] if missing else []
        loops = [
            pytest.param((library, options), id=name, marks=marks)
            for name, library, options, module in _LOOPS
            if getattr(capabilities, library)
            and (not self.loops or name in self.loops)
            and (module is None or importlib.util.find_spec(module) is not None)
        ]
        metafunc.parametrize(
            "anyio_backend", loops[:1] if missing else loops, indirect=True, scope="function"
        )

    @classmethod
    def _missing(cls, name: str) -> str:
        """Why the backend cannot be asked for this behaviour; empty where it can."""
        capabilities = _ask_once(cls.capabilities)
        needed: tuple[str, ...] = getattr(getattr(cls, name), "needs", ())
        for part in cls.__mro__:
            if name in vars(part):
                needed = (*vars(part).get("part_needs", ()), *needed)
        missing = [each for each in needed if not getattr(capabilities, each)]
        if not missing:
            return ""
        return f"backend {capabilities.name!r} has no capability {', '.join(missing)}"

    # -- what tests are made with ------------------------------------------------------------------

    def config(self, **options: Any) -> TransportConfig:
        options.setdefault("timeouts", TIMEOUTS)
        return TransportConfig(backend=self.backend, **options)

    @asynccontextmanager
    async def transport(self, **options: Any) -> AsyncGenerator[Transport]:
        """A transport made of config `options`; at the end it is closed, with nothing left."""
        transport = self.open_transport(self.config(**options))
        try:
            yield transport
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()
        now = transport.snapshot()
        assert counts(now) == (0, 0, 0, 0, 0), f"after aclose there is something left: {now}"
        assert now.created == sum(now.closed.values()), f"a connection is not accounted for: {now}"

    @asynccontextmanager
    async def rig(
        self,
        *scripts: Script,
        context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        uds: Path | None = None,
        **options: Any,
    ) -> AsyncGenerator[Rig]:
        """A server that follows `scripts`, and a transport made of config `options`.

        At the end the transport is closed, and no connection may be left at the server; unless the
        backend has said that it cannot end an exchange before its head.
        """
        if uds is not None:
            options["uds"] = uds
        server = ScriptedServer(*scripts, tls=context, host=host, uds=uds)
        failure: BaseException | None = None
        with anyio.fail_after(self.patience), server:
            async with self.transport(**options) as transport:
                group = anyio.create_task_group()
                rig = Rig(transport, server, group)
                async with group:
                    try:
                        yield rig
                    except _OF_A_TEST as error:  # raised below: the group would wrap it
                        failure = error
                    group.cancel_scope.cancel()
                rig.close_responses()
                if failure is not None:
                    raise failure
            server.release()
            if transport.capabilities.aborts:
                await until(lambda: server.open_connections == 0)

    @asynccontextmanager
    async def secure_rig(self, *scripts: Script, **options: Any) -> AsyncGenerator[Rig]:
        """A rig on https, whose transport trusts the server."""
        with Certificates() as certificates:
            options.setdefault("tls", Tls(ca_file=Path(certificates.ca_file)))
            async with self.rig(*scripts, context=certificates.server_context(), **options) as rig:
                yield rig
