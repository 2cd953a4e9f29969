"""`ReplayTransport`: answers from a cassette, without a network.

This module knows how a recorded exchange is played. It does not know how it is recorded.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from time import monotonic

import anyio
import anyio.lowlevel

from trunkline import (
    Capabilities,
    InvalidRequest,
    PoolSnapshot,
    Request,
    Response,
    Timeouts,
    TransportClosed,
)
from trunkline._bodies import IterableStream
from trunkline.testing._cassette import (
    Cassette,
    Entry,
    load_body,
    load_error,
    load_headers,
    open_cassette,
)
from trunkline.testing._matching import Aspect, Matcher, Matching
from trunkline.testing._received import ReceivedRequest, UnexpectedRequest, receive
from trunkline.testing._redaction import Redaction, Redactor
from trunkline.testing._shown import redact
from trunkline.testing._timed import TimedBody, TimedCall

ASPECTS: tuple[Aspect, ...] = ("method", "url", "body")


class Player:
    """Plays the exchanges of a cassette: each once, the equal ones in the order of the file."""

    def __init__(
        self, cassette: Cassette, matching: Matching, redaction: Redaction, *, pace: bool
    ) -> None:
        self.cassette = cassette
        self._matching = matching
        self._redactor = Redactor(redaction, cassette.secrets)
        self._pace = pace

    def find(self, request: ReceivedRequest) -> Entry | None:
        """The next exchange for `request`, which is then played."""
        sent = redact(request, self._redactor)
        for number, recorded in enumerate(self.cassette.requests):
            if number not in self.cassette.played and self._matching.fits(recorded, sent):
                self.cassette.played.add(number)
                return self.cassette.entries[number]
        return None

    def refuse(self, request: ReceivedRequest, why: str) -> UnexpectedRequest:
        """The error for a request that `find` found nothing for."""
        recorded, sent = self.cassette.requests, redact(request, self._redactor)
        lines = [f"{sent.method} {sent.url} is not in {self.cassette.path} ({why})"]
        played = [n + 1 for n, one in enumerate(recorded) if self._matching.fits(one, sent)]
        if played:
            numbers = ", ".join(map(str, played))
            lines.append(f"  recorded {len(played)} times (no. {numbers}), all played already")
        elif recorded:
            nearest = self._matching.nearest(recorded, sent)
            lines.append(f"  the nearest of {len(recorded)} is no. {nearest + 1}; it differs in")
            lines += [f"    {one}" for one in self._matching.differences(recorded[nearest], sent)]
        else:
            lines.append("  nothing is recorded there")
        lines.append('  to record it: mode="new", or --trunkline-record=new for pytest')
        return UnexpectedRequest("\n".join(lines))

    async def play(self, entry: Entry, request: Request, backend: str, call: TimedCall) -> Response:
        """The response again, or the error."""
        await anyio.lowlevel.checkpoint()
        if self._pace:
            await call.wait("headers", anyio.sleep(entry.get("wait", 0.0)))
        if "error" in entry:
            raise load_error(entry["error"], request, backend)
        response = entry["response"]
        body = response.get("body", {"text": ""})
        pieces = _Recorded(body, request, backend, call.started, pace=self._pace)
        return Response(
            response["status"],
            headers=load_headers(response["headers"]),
            reason_phrase=response.get("reason_phrase"),
            http_version=response["http_version"],
            request=request,
            stream=TimedBody(IterableStream(pieces), call),
        )


class _Recorded(AsyncIterator[bytes]):
    """The pieces of a recorded body."""

    def __init__(
        self, body: Entry, request: Request, backend: str, started: float, *, pace: bool
    ) -> None:
        chunks = load_body(body)
        pauses: list[float] = body.get("pauses", [0.0] * len(chunks))
        self._rest = zip(chunks, pauses, strict=True)
        self._body = body
        self._request = request
        self._backend = backend
        self._started = started
        self._pace = pace

    async def __anext__(self) -> bytes:
        for chunk, pause in self._rest:
            await (anyio.sleep(pause) if self._pace else anyio.lowlevel.checkpoint())
            return chunk
        if "error" in self._body:
            error = load_error(self._body["error"], self._request, self._backend)
            error.elapsed = monotonic() - self._started
            raise error
        if not self._body.get("is_whole", True):
            raise UnexpectedRequest("the body was not recorded any further: nobody read on then")
        raise StopAsyncIteration


class ReplayTransport:
    """A `Transport` that answers from a cassette and from nothing else.

    Chunk boundaries are those recorded, and so are errors, with their facts.

    Args:
        path: of a cassette that `RecordingTransport` has written.
        match: in which aspects a request has to be the recorded one: "method", "url", "host",
            "path", "query", "body"; or a function of the recorded and the sent request.
        redaction: the one it was recorded with.
        pace: wait as long as was waited then, if that was recorded; no longer than the deadlines
            `headers`, `read` and `total` allow.
        timeouts: as in `TransportConfig`.

    Raises:
        ValueError: the file is not a cassette.
    """

    capabilities = Capabilities(name="replay", trio=True)

    def __init__(
        self,
        path: str | os.PathLike[str] | Cassette,
        *,
        match: Collection[Aspect] | Matcher = ASPECTS,
        redaction: Redaction | None = None,
        pace: bool = False,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._timeouts = timeouts or Timeouts()
        self._player = Player(
            open_cassette(path), Matching(match), redaction or Redaction(), pace=pace
        )
        self._is_closed = False

    async def send(self, request: Request) -> Response:
        """The recorded answer.

        Raises:
            UnexpectedRequest: there is none; it says how the nearest request differs.
            TransportError: that is what was recorded; or the transport is closed.
        """
        self._check_open()
        call = TimedCall(request, self._timeouts, self.capabilities.name)
        received = await call.wait("request", receive(request))
        entry = self._player.find(received)
        if entry is None:
            raise self._player.refuse(received, "it is only replayed")
        return await self._player.play(entry, request, self.capabilities.name, call)

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransportClosed("the transport is closed")

    async def warm(self, url: str, connections: int = 1) -> int:
        """There is nothing to open: 0."""
        self._check_open()
        if connections < 1:
            raise InvalidRequest("connections: it must be at least 1")
        Request("GET", url)
        return 0

    def snapshot(self) -> PoolSnapshot:
        """An empty one."""
        return PoolSnapshot()

    async def aclose(self, drain: float = 0.0) -> None:
        """After this, `send` raises `TransportClosed`."""
        self._is_closed = True
