"""`RecordingTransport`: around another transport, writes what goes through it into a cassette.

This module knows when something is recorded and what of it. It does not know the form of the file,
nor what is secret.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection
from functools import partial
from time import monotonic
from typing import Literal, TypeAlias, cast

from multidict import CIMultiDict

from trunkline import (
    PoolSnapshot,
    Request,
    Response,
    Timeouts,
    Transport,
    TransportClosed,
    TransportError,
)
from trunkline.testing._cassette import (
    Cassette,
    Entry,
    open_cassette,
    write_body,
    write_error,
    write_headers,
    write_request,
)
from trunkline.testing._matching import Aspect, Matcher, Matching
from trunkline.testing._passing import PassedBody, PassingTransport, pass_on
from trunkline.testing._received import (
    Chunks,
    check_piece,
    copied,
    end,
    receive,
    with_content,
)
from trunkline.testing._redaction import Redaction, Redactor
from trunkline.testing._replaying import ASPECTS, Player
from trunkline.testing._shown import redact
from trunkline.testing._timed import TimedCall, timeouts_of

_LENGTH = "content-length"

RecordMode: TypeAlias = Literal["none", "once", "new", "all"]


class RecordingTransport(PassingTransport):
    """A `Transport` that passes requests to `inner` and writes the exchanges to a file.

    The file is written anew, all at once, after each exchange. Secrets are taken out before that.
    Bodies are recorded decoded, so that a secret in them is found, and a response's is handed on
    decoded, so that a replay is the same as the recording; `Content-Encoding` and the length of the
    encoded body are left out. A streamed
    request body is sent as it is produced, unless there is a recording that may match it: then it
    is read to its end first.

    Args:
        inner: any transport; closed with this one.
        path: of the cassette.
        mode: "once": if there is a file, replay it, and refuse what is not in it; else record.
            "new": replay what is in the file, record the rest. "all": record all, in the place of
            what is in the file. "none": only replay; `inner` gets nothing.
        match: as of `ReplayTransport`.
        redaction: what is secret.
        pace: record how long was waited for the head and for each piece of a body; in replaying,
            wait as long, but no longer than the deadlines allow.
        timeouts: that hold in replaying; None for those of `inner` where it tells them, else the
            defaults. A request's own count too.

    Raises:
        ValueError: the file is not a cassette.
    """

    def __init__(
        self,
        inner: Transport,
        path: str | os.PathLike[str] | Cassette,
        *,
        mode: RecordMode = "once",
        match: Collection[Aspect] | Matcher = ASPECTS,
        redaction: Redaction | None = None,
        pace: bool = False,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(inner)
        if mode not in ("none", "once", "new", "all"):
            raise ValueError(f"mode: {mode!r} is none of none, once, new, all")
        cassette = open_cassette(path, is_blank=mode == "all")
        redaction = redaction or Redaction()
        self._player = Player(cassette, Matching(match), redaction, pace=pace)
        self._redactor = Redactor(redaction, cassette.secrets)
        self._pace = pace
        self._timeouts = timeouts or timeouts_of(inner)
        self._mode = mode
        self._takes: list[_Take] = []
        self._is_closed = False

    @property
    def is_recording(self) -> bool:
        """Whether a request that is not in the file goes to `inner`."""
        return self._mode in ("new", "all") or (
            self._mode == "once" and self._player.cassette.is_new
        )

    async def send(self, request: Request) -> Response:
        """See `Transport.send`.

        Raises:
            UnexpectedRequest: it is not in the file, and nothing is recorded.
        """
        if self._is_closed:
            raise TransportClosed("the transport is closed")
        if self.is_recording and not self._player.cassette.entries:
            return await self._record(request)
        call = TimedCall(request, self._timeouts, self.capabilities.name)
        received = await call.wait("request", receive(request))
        entry = self._player.find(received)
        if entry is not None:
            return await self._player.play(entry, request, self.capabilities.name, call)
        if not self.is_recording:
            raise self._player.refuse(received, f"mode {self._mode!r}")
        return await self._record(request, Chunks([received.body]))

    async def _record(
        self, request: Request, pieces: AsyncIterator[bytes] | None = None
    ) -> Response:
        """`pieces` stand for a streamed body that has been read."""
        sent = request
        if not request.is_rewindable:
            given = cast("AsyncIterable[bytes]", request.content) if pieces is None else pieces
            sent = copied(request, Tee(given.__aiter__()), request.timeouts)
        cassette = self._player.cassette
        cassette.check_unchanged()
        take = _Take(sent, self._redactor, cassette.save, pace=self._pace)
        self._takes.append(take)
        cassette.takes.append(take)
        try:
            response = await self.inner.send(sent)
        except TransportError as error:
            take.failed(error)
            raise
        except BaseException:
            self._takes.remove(take)
            cassette.takes.remove(take)  # cancelled, or no failure of the network's: nothing came
            raise
        response.request = request
        return take.began(response)

    async def warm(self, url: str, connections: int = 1) -> int:
        """See `Transport.warm`; 0 where nothing is recorded."""
        return await self.inner.warm(url, connections) if self.is_recording else 0

    def snapshot(self) -> PoolSnapshot:
        """See `Transport.snapshot`."""
        return self.inner.snapshot()

    async def aclose(self, drain: float = 0.0) -> None:
        """See `Transport.aclose`. Responses still open are recorded as far as they were read."""
        self._is_closed = True
        try:
            for take in self._takes:
                take.end()
        finally:
            await super().aclose(drain)


class Tee(AsyncIterator[bytes]):
    """A streamed request body; keeps what was sent of it."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.taken: list[bytes] = []
        self.is_whole = False

    async def __anext__(self) -> bytes:
        try:
            piece = check_piece(await self._pieces.__anext__())
        except StopAsyncIteration:
            self.is_whole = True
            raise
        self.taken.append(piece)
        return piece

    async def aclose(self) -> None:
        await end(self._pieces)


class _Take:
    """One exchange while it is recorded."""

    def __init__(
        self,
        request: Request,
        redactor: Redactor,
        save: Callable[[], None],
        *,
        pace: bool,
    ) -> None:
        self._request = request
        self._redactor = redactor
        self._save: Callable[[], None] | None = save
        self._pace = pace
        self._since = monotonic()
        self._wait = 0.0
        self._entry: Entry | None = None
        self._outcome: Callable[[], Entry] | None = None
        self._learned = 0
        self._head: Entry | None = None
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._chunks: list[bytes] = []
        self._pauses: list[float] = []

    def _lap(self) -> float:
        now = monotonic()
        seconds, self._since = round(now - self._since, 4), now
        return seconds

    @property
    def entry(self) -> Entry | None:
        """None until it is over. Made anew when more secrets have been found, maybe elsewhere."""
        if self._outcome is not None and (
            self._entry is None or self._learned < self._redactor.learned
        ):
            self._entry = self._redactor.settled(self._written)
            self._learned = self._redactor.learned
        return self._entry

    def _written(self) -> Entry:
        wait = {"wait": self._wait} if self._pace else {}
        outcome = {} if self._outcome is None else self._outcome()
        return {"request": self._written_request(), **wait, **outcome}

    def _end(self, outcome: Callable[[], Entry]) -> None:
        save, self._save = self._save, None
        if save is not None:
            self._outcome = outcome
            if self.entry is not None:  # its secrets are known before others are written again
                save()

    def failed(self, error: TransportError) -> None:
        self._wait = self._lap()
        self._end(lambda: {"error": write_error(error)})

    def began(self, response: Response) -> Response:
        """The response to hand on; it is recorded as it is read."""
        self._wait = self._lap()
        pieces, self._headers = _decoded(response, self._request.method)
        self._head = {"status": response.status_code, "http_version": response.http_version}
        if response.reason_phrase != Response(response.status_code).reason_phrase:
            self._head["reason_phrase"] = response.reason_phrase
        return pass_on(response, RecordedBody(response, pieces, self), self._headers)

    def read(self, piece: bytes) -> None:
        self._pauses.append(self._lap())
        self._chunks.append(piece)

    def end(self, error: TransportError | None = None, *, is_whole: bool = False) -> None:
        """The body has ended, or nobody reads on. Again: nothing happens."""
        if self._head is not None:
            self._end(partial(self._written_response, self._head, error, is_whole=is_whole))

    def _written_response(
        self, head: Entry, error: TransportError | None, *, is_whole: bool
    ) -> Entry:
        headers = CIMultiDict(self._headers)
        chunks = self._redactor.chunks(self._chunks, headers.get("Content-Type", ""))
        has_length = "Content-Length" in headers
        if has_length and chunks != self._chunks:
            headers["Content-Length"] = str(sum(map(len, chunks)))
        is_stream = self._pace or (len(chunks) > 1 and not has_length)
        body = write_body(chunks, is_stream=is_stream)
        if self._pace:
            body["pauses"] = self._pauses
        if error is not None:
            body["error"] = write_error(error)
        elif not is_whole:
            body["is_whole"] = False
        fields = [(name, self._redactor.header(name, value)) for name, value in headers.items()]
        return {"response": {**head, "headers": write_headers(fields), "body": body}}

    def _written_request(self) -> Entry:
        content = self._request.content
        body = b"".join(content.taken) if isinstance(content, Tee) else cast("bytes", content)
        # Of what was not sent to its end the length is not the one announced.
        fields = [pair for pair in self._request.headers.items() if pair[0].lower() != _LENGTH]
        request = redact(with_content(self._request, body, fields), self._redactor)
        return write_request(request, is_whole=not isinstance(content, Tee) or content.is_whole)


class RecordedBody(PassedBody):
    """A response's body that is recorded while it is read."""

    def __init__(self, response: Response, pieces: AsyncIterator[bytes], take: _Take) -> None:
        super().__init__(response, pieces)
        self._take = take

    async def read(self) -> bytes:
        try:
            piece = await super().read()
        except TransportError as error:
            self._take.end(error)
            raise
        if piece:
            self._take.read(piece)
        else:
            self._take.end(is_whole=True)
        return piece

    def close(self) -> None:
        super().close()
        self._take.end()

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            self._take.end()


def _decoded(response: Response, method: str) -> tuple[AsyncIterator[bytes], CIMultiDict[str]]:
    """The body as it is recorded, and the headers that go with that."""
    from trunkline.decode import make_decoder

    headers = CIMultiDict(response.headers)
    encoding = response.headers.get("Content-Encoding")
    if encoding is None or method == "HEAD":
        return response.aiter_raw(), headers
    try:
        is_encoded = make_decoder(encoding) is not None
    except TransportError:
        return response.aiter_raw(), headers  # who reads it is told so, now and in a replay
    if is_encoded:
        headers.popall("Content-Encoding")
        headers.popall("Content-Length", None)
        return response.aiter_bytes(), headers
    return response.aiter_raw(), headers
