"""`FaultTransport`: around another transport, makes go wrong what a plan says.

This module knows how a fault is made to happen. It does not know the transport inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random, SystemRandom
from time import monotonic
from typing import TypeVar

import anyio

from trunkline import (
    ConnectTimeout,
    Phase,
    PoolTimeout,
    Request,
    Response,
    StreamReset,
    Timeouts,
    Transport,
    TransportClosed,
    TransportError,
)
from trunkline.testing._facts import happened, place
from trunkline.testing._fault_plan import Fault, FaultPlan
from trunkline.testing._passing import PassedBody, PassingTransport, pass_on
from trunkline.testing._pattern import matches_glob
from trunkline.testing._received import copied
from trunkline.testing._timed import TimedCall, timeouts_of

T = TypeVar("T", int, float)
_LEAST_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that happened.

    Attributes:
        number: which request it was, counted from 1 in the order of the calls of `send`.
        index: which fault of the plan, counted from 0.
    """

    number: int
    index: int
    fault: Fault
    request: Request


class FaultTransport(PassingTransport):
    """A `Transport` that passes requests to `inner`, and makes some of them go wrong.

    What is left to chance depends on the seed and on the order of the calls alone. Each error says
    in a note which request, fault and seed it came of.

    Args:
        inner: any transport; closed with this one.
        plan: a `FaultPlan`, or its faults.
        seed: instead of the plan's.
        timeouts: that hold while a fault delays or drips; None for those of `inner` where it tells
            them, else the defaults. A request's own count too.

    Attributes:
        seed: the one in use.
        plan: with the seed in use: what it takes to have it all again.
        injected: what happened, in order.
    """

    def __init__(
        self,
        inner: Transport,
        plan: FaultPlan | Sequence[Fault],
        *,
        seed: int | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(inner)
        plan = plan if isinstance(plan, FaultPlan) else FaultPlan(faults=tuple(plan))
        chosen = plan.seed if seed is None else seed
        self.seed = SystemRandom().randrange(2**32) if chosen is None else chosen
        self.plan = plan.model_copy(update={"seed": self.seed})
        self.injected: list[InjectedFault] = []
        self._timeouts = timeouts or timeouts_of(inner)
        self._requests = 0
        self._met: Counter[int] = Counter()
        self._done: Counter[int] = Counter()
        self._is_closed = False

    async def send(self, request: Request) -> Response:
        """See `Transport.send`. Raises what the plan says, too."""
        if self._is_closed:
            raise TransportClosed("the transport is closed")
        self._requests += 1
        for index, fault in enumerate(self.plan.faults):
            random = Random(f"{self.seed}/{self._requests}/{index}")
            if self._is_due(index, fault, request, random):
                injected = InjectedFault(self._requests, index, fault, request)
                self.injected.append(injected)
                return await _Injection(self, injected, random, self._timeouts).run()
        return await self.inner.send(request)

    def _is_due(self, index: int, fault: Fault, request: Request, random: Random) -> bool:
        if fault.method not in (None, request.method):
            return False
        if fault.path is not None and not matches_glob(fault.path, request.path.partition("?")[0]):
            return False
        self._met[index] += 1
        if self._met[index] <= fault.skip or self._done[index] == fault.times:
            return False
        if random.random() >= fault.probability:
            return False
        self._done[index] += 1
        return True

    async def aclose(self, drain: float = 0.0) -> None:
        """See `Transport.aclose`."""
        self._is_closed = True
        await super().aclose(drain)


def _draw(value: T | tuple[T, T], between: Callable[[T, T], T]) -> T:
    return between(*value) if isinstance(value, tuple) else value


class _Injection:
    """One fault, happening to one request."""

    def __init__(
        self, transport: FaultTransport, injected: InjectedFault, random: Random, timeouts: Timeouts
    ) -> None:
        self._transport = transport
        self._fault = fault = injected.fault
        self._request = request = injected.request
        self._note = (
            f"injected by FaultTransport: request {injected.number}, "
            f"fault {injected.index}, seed {transport.seed}"
        )
        self._timeouts = timeouts.overridden_by(request.timeouts)
        self._call = TimedCall(request, timeouts, transport.capabilities.name)
        self._delay = _draw(fault.delay, random.uniform)
        cut_after = fault.cut_after
        self._cut_after = None if cut_after is None else _draw(cut_after, random.randint)

    async def run(self) -> Response:
        fault, inner = self._fault, self._transport.inner
        if self._delay:
            await self._wait_first()
        if fault.status is not None:
            fields = {"Content-Length": "0"}
            if fault.retry_after is not None:
                fields["Retry-After"] = f"{fault.retry_after:g}"
            return Response(fault.status, headers=fields, request=self._request)
        if fault.failure_phase not in (None, "body"):
            self._fail_unprocessed()
        response = await inner.send(self._within_total())
        response.request = self._request
        if fault.failure_phase == "headers":
            await response.aclose()
            raise self.error(response)
        if not fault.has_body_fault:
            return response
        return pass_on(response, _FaultyBody(response, self, fault, self._cut_after))

    async def _wait_first(self) -> None:
        phase = self._fault.failure_phase or "headers"
        if phase in ("headers", "body", "write", "request"):
            await self.pause("headers" if phase == "body" else phase, self._delay)
            return
        # A connection's deadlines, which no attempt on one has.
        is_pool = phase == "pool"
        bound = self._timeouts.pool if is_pool else self._timeouts.connect
        await self.pause(phase, self._delay if bound is None else min(bound, self._delay))
        if bound is not None and bound < self._delay:
            raise self._placed(
                happened(
                    PoolTimeout if is_pool else ConnectTimeout,
                    f"no connection within {bound:g} s",
                    self._request,
                    phase,
                )
            )

    def _within_total(self) -> Request:
        """The request, with what the delay has left of `total`."""
        request, total = self._request, self._timeouts.total
        if total is None or not self._delay:
            return request
        left = max(self._call.started + total - monotonic(), _LEAST_SECONDS)
        timeouts = (request.timeouts or Timeouts()).model_copy(update={"total": left})
        return copied(request, request.content, timeouts)

    def _fail_unprocessed(self) -> None:
        """Raise the error, unless it is of a request that the transport inside has processed."""
        error = self.error()
        if error.phase != "headers" or error.replay == "safe":
            raise error

    async def pause(self, phase: Phase, seconds: float) -> None:
        """Silence of the peer."""
        try:
            await self._call.wait(phase, anyio.sleep(seconds))
        except TransportError as error:
            error.add_note(self._note)
            raise

    def error(self, response: Response | None = None) -> TransportError:
        """The error of the plan, with the facts of a real one."""
        fault, kind = self._fault, self._fault.failure or TransportError
        error = happened(kind, "injected", self._request, fault.failure_phase, response)
        if isinstance(error, StreamReset) and fault.code is not None:
            error.code = fault.code
        return self._placed(error)

    def _placed(self, error: TransportError) -> TransportError:
        place(error, self._request, self._transport.capabilities.name, self._call.started)
        error.add_note(self._note)
        return error


class _FaultyBody(PassedBody):
    def __init__(
        self, response: Response, injection: _Injection, fault: Fault, cut_after: int | None
    ) -> None:
        super().__init__(response)
        self._injection = injection
        self._size = fault.drip_size
        self._pause = fault.drip_pause
        self._left = cut_after
        self._fails_at_once = fault.failure is not None and cut_after is None
        self._rest = b""

    async def read(self) -> bytes:
        if self._pause:
            await self._injection.pause("body", self._pause)
        if not self._fails_at_once:
            self._rest = self._rest or await super().read()
        if self._fails_at_once or (self._left == 0 and self._rest):
            raise self._injection.error(self._response)
        size = min(self._size or len(self._rest), len(self._rest))
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece
